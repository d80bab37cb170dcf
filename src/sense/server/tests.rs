use std::collections::BTreeMap;

use super::*;
use crate::sense::facts::ChildFacts;

/// A process as real servers show themselves, shortened.
fn process(command: &str, environment: &[(&str, &str)], children: usize) -> ProcessFacts {
    let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
    ProcessFacts {
        pid: 7,
        name: "python3".into(),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        allocates_by_glibc: true,
        thread_names: Vec::new(),
        age: 60.0,
        children: (0..children)
            .map(|i| ChildFacts {
                pid: 8 + i as u32,
                command: command.clone(),
                listens: true,
            })
            .collect(),
        command,
    }
}

fn no_files(_path: &str) -> Option<String> {
    None
}

/// Profile, slots and habit, of a server without files.
fn seen(
    command: &str,
    environment: &[(&str, &str)],
    children: usize,
) -> (Profile, Option<u32>, Accepts) {
    let server = recognise(&process(command, environment, children), &no_files).expect(command);
    (
        server.profile,
        server.slots.ok().map(|count| count.slots),
        server.accepts,
    )
}

const GUNICORN: &str = "/venv/bin/python3 /venv/bin/gunicorn";

/// An image sets it for all that is run of it.
#[test]
fn gunicorns_variable_makes_no_gunicorn_of_another_server() {
    let variable = [("GUNICORN_CMD_ARGS", "--threads 8")];
    let name = |command: &str, children| {
        let server = recognise(&process(command, &variable, children), &no_files);
        server.map(|server| (server.name, server.how))
    };
    assert_eq!(
        name("/venv/bin/python3 /venv/bin/waitress-serve app:app", 0),
        Some(("waitress", "command line"))
    );
    assert_eq!(
        name("uwsgi --http-socket :8000 -w app", 2),
        Some(("uWSGI", "command line"))
    );
    // gunicorn never serves by itself, whoever starts it.
    assert_eq!(name("python3 serve.py", 0), None);
    assert_eq!(
        name("python3 serve.py", 2),
        Some(("gunicorn", "environment"))
    );
}

#[test]
fn gunicorns_workers_are_counted_and_its_threads_read() {
    use Accepts::{Eagerly, WhenIdle};
    use Profile::{Generic, GunicornGevent, GunicornGthread, GunicornSync};
    let none: &[(&str, &str)] = &[];
    let cases = [
        ("-w 2 app:app", none, 2, (GunicornSync, Some(2), WhenIdle)),
        // TTIN made three of them.
        ("-w 2 app:app", none, 3, (GunicornSync, Some(3), WhenIdle)),
        (
            "app:app",
            &[("WEB_CONCURRENCY", "4")],
            4,
            (GunicornSync, Some(4), WhenIdle),
        ),
        (
            "--threads 8 app:app",
            none,
            1,
            (GunicornGthread, Some(8), Eagerly),
        ),
        (
            "-k gthread --threads=3 -w 2 app:app",
            none,
            2,
            (GunicornGthread, Some(6), Eagerly),
        ),
        (
            "-k gthread app:app",
            none,
            2,
            (GunicornGthread, Some(2), Eagerly),
        ),
        (
            "app:app",
            &[("GUNICORN_CMD_ARGS", "--threads=4 -k 'gthread'")],
            2,
            (GunicornGthread, Some(8), Eagerly),
        ),
        // The command line wins.
        (
            "--threads 2 app:app",
            &[("GUNICORN_CMD_ARGS", "--threads=4")],
            1,
            (GunicornGthread, Some(2), Eagerly),
        ),
        (
            "-k gevent app:app",
            none,
            2,
            (GunicornGevent, None, Eagerly),
        ),
        ("-k tornado app:app", none, 2, (Generic, Some(2), WhenIdle)),
        (
            "-k uvicorn.workers.UvicornWorker app:app",
            none,
            2,
            (Generic, None, Eagerly),
        ),
        // A file that was named and cannot be read may say anything.
        (
            "-c /etc/g.py app:app",
            none,
            2,
            (Generic, None, Accepts::Unknown),
        ),
        (
            "-c /etc/g.py -k sync --threads 1 app:app",
            none,
            2,
            (GunicornSync, Some(2), WhenIdle),
        ),
        // All workers are gone for a moment.
        ("-w 2 app:app", none, 0, (GunicornSync, None, WhenIdle)),
    ];
    for (args, environment, children, expected) in cases {
        let command = format!("{GUNICORN} {args}");
        assert_eq!(seen(&command, environment, children), expected, "{args}");
    }
}

#[test]
fn a_young_master_will_have_all_its_workers_soon() {
    let mut young = process(&format!("{GUNICORN} -w 4 app:app"), &[], 1);
    young.age = 0.3;
    let slots = |process: &ProcessFacts| {
        let server = recognise(process, &no_files).expect("gunicorn");
        server.slots.ok().map(|count| count.slots)
    };
    assert_eq!(slots(&young), Some(4));
    young.age = 30.0;
    assert_eq!(slots(&young), Some(1));
    // A helper process that does not listen is no worker.
    young.children[0].listens = false;
    assert_eq!(slots(&young), None);
}

#[test]
fn gunicorns_configuration_file_is_read_where_it_is_plain() {
    let of = |file: &str, environment: &[(&str, &str)], args: &str| {
        let process = process(&format!("{GUNICORN} {args}"), environment, 2);
        let file = file.to_owned();
        let read = move |path: &str| {
            (path == "conf/g.py" || path == "/srv/gunicorn.conf.py").then(|| file.clone())
        };
        let server = recognise(&process, &read).expect("gunicorn");
        (server.profile, server.slots.ok().map(|count| count.slots))
    };
    let threads = "import os\nworkers = os.cpu_count()\nthreads = 4\n";
    assert_eq!(
        of(threads, &[], "-c conf/g.py a:a"),
        (Profile::GunicornGthread, Some(8))
    );
    assert_eq!(
        of(threads, &[], "--config=file:conf/g.py a:a"),
        (Profile::GunicornGthread, Some(8))
    );
    // The default file, where it was started.
    assert_eq!(
        of(threads, &[("PWD", "/srv")], "a:a"),
        (Profile::GunicornGthread, Some(8))
    );
    assert_eq!(
        of("worker_class = \"gevent\"", &[("PWD", "/srv")], "a:a"),
        (Profile::GunicornGevent, None)
    );
    let computed = "threads = int(os.environ['T'])";
    assert_eq!(
        of(computed, &[], "-c conf/g.py a:a"),
        (Profile::Generic, None)
    );
    assert_eq!(
        of("from base import *", &[], "-c conf/g.py a:a"),
        (Profile::Generic, None)
    );
    assert_eq!(
        of("workers, threads = 2, 4", &[], "-c conf/g.py a:a"),
        (Profile::GunicornGthread, Some(8))
    );
    assert_eq!(
        of(computed, &[], "-c conf/g.py --threads 3 a:a"),
        (Profile::GunicornGthread, Some(6))
    );
}

#[test]
fn a_file_that_was_named_is_looked_for_where_the_server_was_started() {
    let of = |command: &str, there: &[&str], text: &str| {
        let process = process(command, &[("PWD", "/srv")], 2);
        let read = |path: &str| there.contains(&path).then(|| text.to_owned());
        let server = recognise(&process, &read).expect(command);
        server.slots.map(|count| count.slots)
    };
    let gunicorn = |args: &str, there: &[&str]| {
        let command = format!("{GUNICORN} --chdir app {args} a:a");
        of(&command, there, "threads = 4")
    };
    assert_eq!(gunicorn("-c conf/g.py", &["/srv/conf/g.py"]), Ok(8));
    assert_eq!(gunicorn("-c conf/g.py", &["conf/g.py"]), Ok(8));
    assert_eq!(gunicorn("-c /conf/g.py", &["/conf/g.py"]), Ok(8));
    let why = gunicorn("-c /conf/g.py", &["/srv//conf/g.py"]);
    assert!(
        why.is_err_and(|why| why.starts_with("its configuration file /conf/g.py was not found"))
    );
    let why = gunicorn("-c python:conf", &[]).expect_err("nobody looks into it");
    assert!(why.contains("cannot be read off"), "{why}");
    let uwsgi = of(
        "uwsgi --ini conf/u.ini --chdir app",
        &["/srv/conf/u.ini"],
        "[uwsgi]\nprocesses = 3\n",
    );
    assert_eq!(uwsgi, Ok(3));
}

#[test]
fn a_process_title_hides_the_settings() {
    let mut titled = process("x", &[], 2);
    titled.command = vec!["gunicorn: master [app:app]".into()];
    let server = recognise(&titled, &no_files).expect("gunicorn");
    assert_eq!((server.name, server.how), ("gunicorn", "process title"));
    assert!(
        server
            .slots
            .is_err_and(|why| why.contains("control socket"))
    );
}

#[test]
fn uwsgi_is_read_off_its_options_its_ini_file_and_its_environment() {
    use Accepts::{Eagerly, WhenIdle};
    let none: &[(&str, &str)] = &[];
    let cases = [
        (
            "--http-socket :80 --processes 4 --threads 2",
            none,
            (Some(8), WhenIdle),
        ),
        ("--http-socket :80 -p 3", none, (Some(3), WhenIdle)),
        ("--http-socket :80 --workers=3", none, (Some(3), WhenIdle)),
        ("--http-socket :80 --threads 4", none, (Some(4), WhenIdle)),
        (
            "--http-socket :80 --wsgi-file app.py",
            none,
            (Some(1), WhenIdle),
        ),
        (
            "--http-socket :80",
            &[("UWSGI_PROCESSES", "5"), ("UWSGI_THREADS", "2")],
            (Some(10), WhenIdle),
        ),
        ("--http-socket :80 --gevent 100 -p 2", none, (None, Eagerly)),
        ("--http-socket :80 --processes %k", none, (None, WhenIdle)),
        ("--yaml app.yaml", none, (None, WhenIdle)),
        ("app.ini", none, (None, WhenIdle)),
    ];
    for (args, environment, (slots, accepts)) in cases {
        let found = seen(&format!("/usr/bin/uwsgi {args}"), environment, 2);
        assert_eq!(found, (Profile::Uwsgi, slots, accepts), "{args}");
    }
    let ini = "[other]\nprocesses = 9\n[uwsgi]\nmaster = true\nprocesses = 4\nthreads=2\n";
    let read = |path: &str| (path == "/etc/app.ini").then(|| ini.to_owned());
    for args in ["--ini /etc/app.ini", "/etc/app.ini"] {
        let server = recognise(&process(&format!("uwsgi {args}"), &[], 0), &read).expect("uWSGI");
        assert_eq!(server.slots.map(|count| count.slots), Ok(8), "{args}");
    }
}

#[test]
fn the_others_are_told_apart() {
    use Accepts::{Eagerly, WhenIdle};
    let cases = [
        (
            "python3 /v/bin/waitress-serve --port 80 a:a",
            Profile::Waitress,
            Some(4),
            Eagerly,
        ),
        (
            "python3 -m waitress --threads=9 a:a",
            Profile::Waitress,
            Some(9),
            Eagerly,
        ),
        (
            "python3 /v/bin/flask --app a run -p 80",
            Profile::Werkzeug,
            None,
            Eagerly,
        ),
        (
            "python3 -m flask run --without-threads",
            Profile::Werkzeug,
            Some(1),
            WhenIdle,
        ),
        (
            "/v/bin/granian --interface wsgi a:a",
            Profile::Generic,
            None,
            Eagerly,
        ),
        (
            "granian --interface wsgi --workers 2 --blocking-threads 3 a:a",
            Profile::Generic,
            Some(6),
            Eagerly,
        ),
        (
            "granian --interface wsgi --workers 2 --backpressure 8 a:a",
            Profile::Generic,
            Some(8),
            Eagerly,
        ),
        (
            "granian --blocking-threads 3 a:a",
            Profile::Generic,
            None,
            Eagerly,
        ),
        (
            "python3 /v/bin/hypercorn -k trio -w 2 wsgi:a",
            Profile::Generic,
            Some(80),
            Eagerly,
        ),
        (
            "python3 /v/bin/hypercorn a:a",
            Profile::Generic,
            None,
            Eagerly,
        ),
        (
            "python3 /v/bin/cheroot a:a",
            Profile::Generic,
            Some(10),
            Eagerly,
        ),
        (
            "python3 /v/bin/cheroot a:a --threads 4",
            Profile::Generic,
            Some(4),
            Eagerly,
        ),
        (
            "python3 /v/bin/hypercorn wsgi:a",
            Profile::Generic,
            None,
            Eagerly,
        ),
        ("/usr/sbin/nginx -g daemon", Profile::Generic, None, Eagerly),
    ];
    for (command, profile, slots, accepts) in cases {
        assert_eq!(
            seen(command, &[], 0),
            (profile, slots, accepts),
            "{command}"
        );
    }
    let reloader = process("python3 app.py", &[("WERKZEUG_RUN_MAIN", "true")], 0);
    let server = recognise(&reloader, &no_files).expect("the development server");
    assert_eq!(server.profile, Profile::Werkzeug);
    let debugged = process("python3 serve.py", &[("WERKZEUG_DEBUG_PIN", "off")], 0);
    assert_eq!(recognise(&debugged, &no_files), None);
    let mut named = process("python3 serve.py", &[], 0);
    named.thread_names = ["python3", "waitress-0", "waitress-1"]
        .map(str::to_owned)
        .into();
    let server = recognise(&named, &no_files).expect("waitress");
    assert_eq!(
        (server.profile, server.slots.map(|c| c.slots)),
        (Profile::Waitress, Ok(2))
    );
    for unknown in [
        "python3 app.py",
        "/usr/sbin/apache2 -k start",
        "flask shell",
        "",
    ] {
        assert_eq!(
            recognise(&process(unknown, &[], 3), &no_files),
            None,
            "{unknown}"
        );
    }
}

#[test]
fn the_allocator_is_told_by_the_libraries() {
    use crate::sense::facts::is_glibc;
    let maps = |file: &str| format!("7f00-7f01 r-xp 0 fe:00 1 /usr/lib/{file}\n");
    assert!(is_glibc(&maps("x86_64-linux-gnu/libc.so.6")) && is_glibc(&maps("libc-2.31.so")));
    assert!(!is_glibc(&maps("ld-musl-x86_64.so.1")) && !is_glibc(""));
    let both = maps("libc.so.6") + &maps("libjemalloc.so.2");
    assert!(!is_glibc(&both));
}

#[test]
fn executors_go_by_the_cores_and_embedded_servers_by_their_libraries() {
    let on = |online: &'static str| {
        let read =
            move |path: &str| (path == "/sys/devices/system/cpu/online").then(|| online.to_owned());
        let hypercorn = process("hypercorn -w2 wsgi:a", &[], 2);
        let server = recognise(&hypercorn, &read).expect("hypercorn");
        server.slots.map(|count| count.slots).ok()
    };
    assert_eq!(on("0-1\n"), Some(12));
    assert_eq!(on("0\n"), Some(10));
    assert_eq!(on("0-3,8-11\n"), Some(24));
    assert_eq!(on("0-127\n"), Some(64), "32 at the most for each");
    assert_eq!(on("x\n"), None);

    let loaded = |library: &str, children| {
        let maps = format!("7f00-7f01 r-xp 00000000 00:01 5 /v/lib/python3/{library}.so\n");
        let read = move |path: &str| (path == "/proc/self/maps").then(|| maps.clone());
        recognise(&process("python3 app.py", &[], children), &read)
    };
    let bjoern = loaded("site-packages/_bjoern.cpython-312", 0).expect("bjoern");
    assert_eq!(
        (bjoern.name, bjoern.accepts, bjoern.slots.map(|it| it.slots)),
        ("bjoern", Accepts::WhenIdle, Ok(1))
    );
    let forked = loaded("site-packages/_bjoern.cpython-312", 3).expect("bjoern");
    assert_eq!(forked.slots.map(|it| it.slots), Ok(3));
    let gevent = loaded("site-packages/gevent/_gevent_cqueue", 0).expect("gevent");
    assert!(gevent.is_unbounded() && gevent.name == "gevent.pywsgi");
    assert_eq!(loaded("site-packages/greenlet/_greenlet", 0), None);
}

#[test]
fn apache_shows_mod_wsgis_daemons_in_its_configuration() {
    // As mod_wsgi-express 6.1 writes it, shortened.
    let config = "\
<IfDefine MOD_WSGI_MULTIPROCESS>
WSGIDaemonProcess 'localhost:8000' \\
   display-name='(wsgi:localhost:8000:0)' \\
   processes=2 \\
   threads=5 \\
   umask=0022
</IfDefine>
<IfDefine !MOD_WSGI_MULTIPROCESS>
WSGIDaemonProcess 'localhost:8000' \\
   threads=5
</IfDefine>
";
    let read = |path: &str| (path == "/tmp/m/httpd.conf").then(|| config.to_owned());
    let of = |options: &str| {
        let mut apache = process(&format!("httpd -f /tmp/m/httpd.conf {options}"), &[], 0);
        apache.command[0] = "httpd (mod_wsgi-express)".into();
        let server = recognise(&apache, &read).expect("mod_wsgi");
        assert_eq!(server.profile, Profile::ModWsgi);
        server.slots.map(|count| count.slots)
    };
    assert_eq!(of("-DMOD_WSGI_MULTIPROCESS -k start"), Ok(10));
    assert_eq!(of("-k start"), Ok(5));
    let mut apache = process("", &[], 0);
    apache.command = vec!["/usr/sbin/apache2".into(), "-k".into(), "start".into()];
    apache.children = vec![ChildFacts {
        pid: 9,
        command: vec!["(wsgi:app:0)      ".into()],
        listens: true,
    }];
    let server = recognise(&apache, &no_files).expect("mod_wsgi");
    assert!(server.slots.is_err());
}

#[test]
fn a_hint_counts_where_the_server_is_unknown() {
    assert_eq!(
        hinted(&process("python3 serve.py", &[("WEB_CONCURRENCY", "3")], 0)).map(|c| c.slots),
        Ok(3)
    );
    assert!(hinted(&process("python3 serve.py", &[("WEB_CONCURRENCY", "x")], 0)).is_err());
    assert!(hinted(&process("python3 serve.py", &[], 0)).is_err());
}
