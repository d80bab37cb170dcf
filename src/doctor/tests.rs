use super::*;
use crate::{
    config::{Sources, load},
    control::{CpuReading, MemoryReading},
    sense::{
        Accepts, Ladder, Rung, Server, Source,
        facts::{ChildFacts, ListenerFacts, ProcessFacts},
        server::Count,
    },
};

fn address() -> Address {
    Address::connect("127.0.0.1:8000").unwrap()
}

fn count(slots: u32, because: &str) -> Result<Count, String> {
    Ok(Count {
        slots,
        because: because.to_owned(),
    })
}

/// A server that was recognised by its process.
fn seen(
    profile: Profile,
    name: &'static str,
    accepts: Accepts,
    slots: Result<Count, String>,
) -> Findings {
    Findings {
        listener: Ok(ListenerFacts {
            queued: Some(0),
            backlog: Some(2048),
            via: "netlink",
        }),
        process: Ok(ProcessFacts {
            pid: 7,
            ..ProcessFacts::default()
        }),
        ladder: Ladder {
            rungs: vec![Rung {
                source: Source::Proc,
                outcome: slots.clone(),
            }],
            server: Some(Server {
                profile,
                name,
                how: "command line",
                accepts,
                slots,
            }),
        },
        profile,
        accepts,
        cpu: Ok("process 7 and its children, on 2 cores".to_owned()),
        memory: Ok("process 7 and its children".to_owned()),
    }
}

/// Nothing can be seen: another machine.
fn unseen() -> Findings {
    let no = || "it is on another machine".to_owned();
    Findings {
        listener: Err(no()),
        process: Err(no()),
        ladder: Ladder {
            rungs: vec![Rung {
                source: Source::Proc,
                outcome: Err(no()),
            }],
            server: None,
        },
        profile: Profile::Generic,
        accepts: Accepts::Unknown,
        cpu: Err(no()),
        memory: Err(no()),
    }
}

fn manners(server: Option<&str>, announced: Option<&str>, keep: Keep) -> Manners {
    Manners {
        asked: vec![Asked {
            request: "GET / HTTP/1.1".to_owned(),
            answer: Answer::Status(200),
        }],
        head: Some("HTTP/1.1 200 OK".to_owned()),
        server: server.map(str::to_owned),
        version: Some(1),
        announced: announced.map(str::to_owned),
        keep: Some(keep),
        lingers: Some(false),
        chunked: Some(Answer::Status(200)),
        continues: Some(1),
        ..Manners::default()
    }
}

fn diagnose(findings: Findings, manners: Manners) -> Diagnosis {
    conclude(
        &address(),
        &Discovery::default(),
        findings,
        Gauges::default(),
        manners,
    )
}

fn sync() -> Diagnosis {
    diagnose(
        seen(
            Profile::GunicornSync,
            "gunicorn",
            Accepts::WhenIdle,
            count(2, "2 workers, one request each"),
        ),
        manners(Some("gunicorn"), Some("close"), Keep::Closes),
    )
}

#[test]
fn the_verdict_is_a_sentence_with_the_number_in_it() {
    assert_eq!(
        sync().verdict,
        "gunicorn, 2 workers, one request each: 2 requests in parallel; the third waits in a backlog of 2048 \
         that no one sees."
    );
    let threads = diagnose(
        seen(
            Profile::GunicornGthread,
            "gunicorn",
            Accepts::Eagerly,
            count(8, "2 workers x 4 threads"),
        ),
        manners(Some("gunicorn"), None, Keep::Keeps(None)),
    );
    assert_eq!(
        threads.verdict,
        "gunicorn, 2 workers x 4 threads: 8 requests in parallel; the ninth waits inside the server, where no \
         one sees it."
    );
    assert!(
        threads
            .advice
            .iter()
            .any(|a| a.contains("One gunicorn with one worker for each socket"))
    );
    let dev = diagnose(
        seen(
            Profile::Werkzeug,
            "Werkzeug",
            Accepts::Eagerly,
            Err("it has no bound: a thread for each request".to_owned()),
        ),
        manners(
            Some("Werkzeug/3.1.3 Python/3.12"),
            Some("close"),
            Keep::Closes,
        ),
    );
    assert_eq!(
        dev.verdict,
        "Werkzeug 3.1.3: it has no bound: a thread for each request; tidegate finds the limit by measuring."
    );
}

#[test]
fn threads_whose_allocator_keeps_what_was_freed_are_told_of() {
    let advised = |glibc, threads, variable: &str, limit| {
        let slots = if threads {
            "1 worker x 8 threads"
        } else {
            "8 workers"
        };
        let mut findings = seen(
            Profile::GunicornGthread,
            "gunicorn",
            Accepts::Eagerly,
            count(8, slots),
        );
        findings.process = Ok(ProcessFacts {
            allocates_by_glibc: glibc,
            environment: [(variable.to_owned(), "1".to_owned())].into(),
            ..ProcessFacts::default()
        });
        let gauges = Gauges {
            memory_limit: limit,
            ..Gauges::default()
        };
        let manners = manners(Some("gunicorn"), None, Keep::Keeps(None));
        let advice = conclude(&address(), &Discovery::default(), findings, gauges, manners).advice;
        let mut of_memory = advice.iter().filter(|a| a.contains("MALLOC_ARENA_MAX"));
        of_memory
            .next()
            .is_some_and(|a| a.contains("512MiB") && a.contains("keepalive"))
    };
    let limit = Some(512 << 20);
    assert!(advised(true, true, "HOME", limit));
    assert!(!advised(true, true, "HOME", None), "nothing bounds it");
    assert!(!advised(false, true, "HOME", limit), "another allocator");
    assert!(!advised(true, false, "HOME", limit), "no threads");
    for variable in ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"] {
        assert!(!advised(true, true, variable, limit), "{variable} is set");
    }
}

#[test]
fn nobody_and_somebody_who_does_not_answer_are_told_apart() {
    let silent = |answer| Manners {
        asked: vec![Asked {
            request: "GET / HTTP/1.1".to_owned(),
            answer,
        }],
        ..Manners::default()
    };
    let nobody = diagnose(unseen(), silent(Answer::Unreachable));
    assert_eq!(nobody.verdict, "Nothing listens at 127.0.0.1:8000.");
    assert!(!nobody.answered() && nobody.quirks.is_empty());
    let refused = |refusal| {
        let manners = Manners {
            refusal: Some(refusal),
            ..silent(Answer::Unreachable)
        };
        // That something listens can be seen nevertheless.
        let findings = Findings {
            listener: Ok(ListenerFacts {
                queued: Some(0),
                backlog: None,
                via: "netlink",
            }),
            ..unseen()
        };
        let diagnosis = diagnose(findings, manners);
        assert!(diagnosis.is_absent(), "{}", diagnosis.verdict);
        diagnosis.verdict
    };
    let denied = refused(Refusal::Denied);
    assert!(denied.contains("permission denied"), "{denied}");
    let unknown = refused(Refusal::Other("no such name".to_owned()));
    assert_eq!(unknown, "Cannot connect to 127.0.0.1:8000: no such name.");
    let busy = diagnose(unseen(), silent(Answer::Silence));
    assert!(
        busy.verdict.contains("all of its workers may be busy"),
        "{}",
        busy.verdict
    );
}

#[test]
fn a_server_that_cannot_be_seen_is_known_by_its_answers() {
    for (server, announced, keep, profile) in [
        (
            Some("gunicorn"),
            Some("close"),
            Keep::Closes,
            Profile::GunicornSync,
        ),
        (
            Some("gunicorn"),
            Some("keep-alive"),
            Keep::Keeps(None),
            Profile::GunicornGthread,
        ),
        (
            Some("Werkzeug/3.1.3 Python/3.12"),
            Some("close"),
            Keep::Closes,
            Profile::Werkzeug,
        ),
        (Some("waitress"), None, Keep::Keeps(None), Profile::Waitress),
        (
            Some("Apache/2.4.58"),
            None,
            Keep::Keeps(None),
            Profile::ModWsgi,
        ),
        (Some("granian"), None, Keep::Keeps(None), Profile::Generic),
        (None, None, Keep::Closes, Profile::Uwsgi),
    ] {
        let diagnosis = diagnose(unseen(), manners(server, announced, keep));
        assert_eq!(diagnosis.profile(), profile, "{server:?}");
        assert!(diagnosis.server.is_some(), "{server:?}");
        assert!(
            diagnosis.verdict.contains("finds the limit by measuring"),
            "{}",
            diagnosis.verdict
        );
    }
    let stranger = diagnose(unseen(), manners(None, None, Keep::Keeps(None)));
    assert_eq!(
        (stranger.server, stranger.findings.profile),
        (None, Profile::Generic)
    );
}

#[test]
fn what_is_missing_comes_with_a_way_to_get_it() {
    let names = |diagnosis: &Diagnosis| {
        let each = diagnosis.signals.iter().filter(|signal| signal.available);
        each.map(|signal| signal.name).collect::<Vec<_>>()
    };
    let near = conclude(
        &address(),
        &Discovery::default(),
        sync().findings,
        Gauges {
            cpu: Some(CpuReading {
                cores: 2.0,
                ..CpuReading::default()
            }),
            memory: Some(MemoryReading::default()),
            memory_used: Some(100 << 20),
            memory_limit: Some(512 << 20),
            stalls: true,
            ..Gauges::default()
        },
        sync().manners,
    );
    assert_eq!(
        names(&near),
        ["slots", "accept_queue", "cpu", "memory", "psi"]
    );
    assert!(
        text(&near).contains("100 MiB in use of 512 MiB (20 %)"),
        "{}",
        text(&near)
    );
    let far = diagnose(unseen(), manners(None, None, Keep::Closes));
    assert!(names(&far).is_empty());
    let how: String = far
        .signals
        .iter()
        .map(|signal| signal.how.as_str())
        .collect();
    for way in [
        "discovery.slots",
        "network namespace",
        "shareProcessNamespace",
        "discovery.memory_limit",
    ] {
        assert!(how.contains(way), "{way}: {how}");
    }
}

#[test]
fn a_core_that_is_pinned_makes_threads_useless() {
    let gauges = Gauges {
        cpu: Some(CpuReading {
            cores: 4.0,
            pinned: 2,
            ..CpuReading::default()
        }),
        ..Gauges::default()
    };
    let diagnosis = conclude(
        &address(),
        &Discovery::default(),
        sync().findings,
        gauges,
        sync().manners,
    );
    assert!(
        diagnosis.advice[0].starts_with("Threads would not help: 2 of its processes"),
        "{:?}",
        diagnosis.advice
    );
    assert!(sync().advice[0].contains("threads are cheaper than workers"));
}

#[test]
fn habits_say_what_tidegate_does_about_them() {
    let mut manners = manners(None, None, Keep::Closes);
    manners.lingers = Some(true);
    manners.continues = Some(2);
    manners.field_limit = Some((4_200, Answer::Closed));
    manners.count_limit = Some((101, Answer::Status(431)));
    let quirks = diagnose(unseen(), manners).quirks;
    let found = |name| {
        let quirk = quirks.iter().find(|quirk| quirk.name == name);
        quirk
            .map(|quirk| format!("{}; {}", quirk.found, quirk.then))
            .unwrap_or_default()
    };
    assert!(found("linger").contains("no worker waits"));
    assert!(
        found("chunked").contains("hands the app an empty one"),
        "{quirks:?}"
    );
    assert!(found("expect_100").contains("2 times"));
    assert!(found("header_limits").starts_with(
        "does not take a field of 4200 bytes (the connection ended without an answer), nor 101 fields (431); tidegate"
    ), "{}", found("header_limits"));
    assert!(found("blocked_by").contains("a slow head"));
}

#[test]
fn servers_without_a_name_are_known_by_what_they_refuse() {
    let with = |field, count| Manners {
        line_limit: Some((8_300, Answer::Status(414))),
        field_limit: Some((field, Answer::Status(400))),
        count_limit: Some((101, Answer::Status(count))),
        ..manners(None, None, Keep::Keeps(None))
    };
    let name = |manners| diagnose(unseen(), manners).server.map(|server| server.name);
    assert_eq!(
        name(with(70_000, 400)).as_deref(),
        Some("gevent.pywsgi, perhaps")
    );
    assert_eq!(name(with(8_300, 431)).as_deref(), Some("eventlet, perhaps"));
    assert_eq!(name(with(8_300, 400)), None);
}

#[test]
fn wsgi_as_a_guest_gets_no_chunked_body_and_an_error_page_is_no_habit() {
    let chunked = |server| {
        let found = diagnose(unseen(), manners(Some(server), None, Keep::Keeps(None)));
        let quirk = found.quirks.into_iter().find(|it| it.name == "chunked");
        quirk.map(|it| it.found).unwrap_or_default()
    };
    for server in ["uvicorn", "hypercorn-h11"] {
        assert!(chunked(server).contains("hands the app an empty one"));
    }
    assert_eq!(chunked("Cheroot/11.1"), "accepts chunked bodies");
    let mut broken = manners(Some("gunicorn"), Some("close"), Keep::Closes);
    broken.asked[0].answer = Answer::Status(503);
    let told = |manners| {
        diagnose(unseen(), manners)
            .advice
            .join(" ")
            .contains("error page")
    };
    assert!(told(broken));
    assert!(!told(manners(
        Some("gunicorn"),
        Some("close"),
        Keep::Closes
    )));
}

#[test]
fn every_configuration_is_a_valid_one() {
    let mut odd = sync();
    odd.manners.server = Some("x\n[y".to_owned());
    let servers = [
        sync(),
        odd,
        diagnose(unseen(), manners(Some("waitress"), None, Keep::Keeps(None))),
        diagnose(
            unseen(),
            manners(Some("gunicorn"), Some("close"), Keep::Closes),
        ),
        diagnose(unseen(), manners(None, None, Keep::Closes)),
        diagnose(unseen(), manners(Some("x\n[z"), None, Keep::Keeps(None))),
        conclude(
            &Address::Unix("/run/my \"app\".sock".into()),
            &Discovery::default(),
            unseen(),
            Gauges::default(),
            manners(None, None, Keep::Closes),
        ),
    ];
    for diagnosis in servers {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, &diagnosis.toml).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap_or_else(|e| panic!("{}\n{e}", diagnosis.toml));
        assert_eq!(
            loaded.config.backend.endpoints,
            std::slice::from_ref(&diagnosis.endpoint)
        );
        let keeps = diagnosis.profile() == Profile::Waitress;
        assert_eq!(loaded.config.backend.keepalive, keeps, "{}", diagnosis.toml);
    }
}

#[test]
fn what_it_was_told_is_in_the_configuration() {
    let given = Discovery {
        gunicorn_control_socket: Some("/run/g\"1\".ctl".into()),
        uwsgi_stats: Some(Address::Unix("/run/stats".into())),
        proc: false,
        accept_queue: false,
        cgroup: crate::config::CgroupSetting::Path("/app".to_owned()),
        cpu_limit: Some(0.25),
        memory_limit: Some(300 << 20),
        ..Discovery::default()
    };
    let off = Discovery {
        cgroup: crate::config::CgroupSetting::Off,
        memory_limit: Some(1001),
        ..Discovery::default()
    };
    for given in [given, off, Discovery::default()] {
        let manners = manners(None, None, Keep::Closes);
        let diagnosis = conclude(&address(), &given, unseen(), Gauges::default(), manners);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &diagnosis.toml).unwrap();
        let sources = Sources {
            file: Some(file.path().into()),
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap_or_else(|e| panic!("{}\n{e}", diagnosis.toml));
        assert_eq!(loaded.config.discovery, given, "{}", diagnosis.toml);
        let hint = diagnosis.toml.contains("# memory_limit");
        assert_eq!(hint, given.memory_limit.is_none(), "{}", diagnosis.toml);
    }
}

#[test]
fn connections_are_kept_no_longer_than_half_of_what_the_server_keeps_them() {
    let of = |millis| {
        let idle = Some(Duration::from_millis(millis));
        let found = diagnose(unseen(), manners(Some("waitress"), None, Keep::Keeps(idle)));
        let set = found
            .toml
            .lines()
            .filter(|line| line.starts_with("keepalive"));
        let says = |word| found.quirks.iter().any(|quirk| quirk.then.contains(word));
        assert_eq!(says("backend.keepalive = true"), !says("too short"));
        (set.collect::<Vec<_>>().join(" "), says("too short"))
    };
    assert_eq!(of(2010), ("keepalive = true".to_owned(), false));
    let short = "keepalive = true keepalive_idle = \"500ms\"";
    assert_eq!(of(1013), (short.to_owned(), false));
    assert_eq!(of(99), (String::new(), true));
}

/// Kept connections are of use to threads where the workers can be told apart.
#[test]
fn several_workers_with_threads_keep_connections() {
    let gthread = |children: u32| {
        let mut findings = seen(
            Profile::GunicornGthread,
            "gunicorn",
            Accepts::Eagerly,
            count(4, "2 workers x 2 threads"),
        );
        let child = |pid| ChildFacts {
            pid,
            command: Vec::new(),
            listens: true,
        };
        let process = findings.process.as_mut().expect("it is seen");
        process.children = (1..=children).map(child).collect();
        diagnose(findings, manners(Some("gunicorn"), None, Keep::Keeps(None)))
    };
    let (told_apart, not) = (gthread(2), gthread(1));
    assert!(told_apart.toml.contains("keepalive = true"));
    assert!(!not.toml.contains("keepalive"));
    // Only where they cannot does it take a socket for each.
    let wants_sockets = |it: &Diagnosis| it.advice.iter().any(|a| a.contains("each socket"));
    assert!(!wants_sockets(&told_apart) && wants_sockets(&not));
}

#[test]
fn both_reports_have_it_all() {
    let diagnosis = sync();
    let text = text(&diagnosis);
    for part in [
        "127.0.0.1:8000\n",
        "in parallel",
        "backlog",
        "what tidegate can read here",
        "habits",
        "advice",
        "GET / HTTP/1.1",
        "[backend]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = json(&diagnosis);
    assert_eq!(json["slots"]["count"], 2);
    assert_eq!(
        (json["profile"].as_str(), json["backlog"].as_u64()),
        (Some("gunicorn-sync"), Some(2048))
    );
    assert_eq!(json["keep_alive"], "closes");
    assert!(
        json["toml"]
            .as_str()
            .unwrap()
            .contains("endpoints = [\"127.0.0.1:8000\"]")
    );
}
