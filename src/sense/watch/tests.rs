use super::*;
use crate::sense::{
    Ladder, Rung,
    facts::{ChildFacts, ProcessFacts},
    server::Count,
};

fn slots(count: u32, source: Source) -> Option<Slots> {
    Some(Slots {
        count,
        source,
        because: String::new(),
    })
}

fn watch(now: Instant) -> Watch {
    Watch::new(Address::Unix("/nowhere".into()), now)
}

#[test]
fn more_slots_are_believed_at_once_and_fewer_when_they_stay_fewer() {
    let now = clock::now();
    let mut watch = watch(now);
    watch.next_look = now + LOOK;
    watch.settle_slots(slots(2, Source::Proc), now);
    watch.settle_slots(slots(4, Source::Proc), now);
    assert_eq!(watch.slots, slots(4, Source::Proc));
    watch.settle_slots(slots(3, Source::Proc), now);
    assert_eq!(watch.slots, slots(4, Source::Proc));
    // It is looked at again in time.
    assert_eq!(watch.next_look, now + CONFIRM);
    // Back again: the worker was replaced.
    watch.settle_slots(slots(4, Source::Proc), now + CONFIRM / 2);
    watch.settle_slots(slots(3, Source::Proc), now + CONFIRM);
    assert_eq!(watch.slots, slots(4, Source::Proc));
    watch.settle_slots(slots(3, Source::Proc), now + 2 * CONFIRM);
    assert_eq!(watch.slots, slots(3, Source::Proc));
    // A server that is restarted keeps its slots for a while.
    for waited in [Duration::ZERO, CONFIRM, CONFIRM_NONE / 2] {
        watch.settle_slots(None, now + 3 * CONFIRM + waited);
        assert_eq!(watch.slots, slots(3, Source::Proc));
    }
    watch.settle_slots(None, now + 3 * CONFIRM + CONFIRM_NONE);
    assert_eq!(watch.slots, None);
}

#[test]
fn the_configuration_holds_at_once_both_ways() {
    let now = clock::now();
    let mut watch = watch(now);
    watch.settle_slots(slots(9, Source::Proc), now);
    watch.settle_slots(slots(2, Source::Configured), now);
    assert_eq!(watch.slots, slots(2, Source::Configured));
    watch.settle_slots(slots(1, Source::Proc), now);
    assert_eq!(watch.slots, slots(1, Source::Proc));
}

#[test]
fn news_is_told_once_and_the_first_slots_are_marked() {
    let now = clock::now();
    let mut watch = watch(now);
    assert!(watch.news().is_some_and(|news| news.first_slots.is_none()));
    assert_eq!(watch.news(), None);
    watch.settle_slots(slots(2, Source::Proc), now);
    let news = watch.news().expect("slots are news");
    assert_eq!((news.first_slots, news.readings.slots), (Some(2), Some(2)));
    watch.settle_slots(slots(5, Source::Proc), now);
    let news = watch.news().expect("other slots are news");
    assert_eq!((news.first_slots, news.readings.slots), (None, Some(5)));
}

#[test]
fn what_was_learned_counts_where_nothing_was_found() {
    let now = clock::now();
    let mut watch = watch(now);
    for _ in 0..40 {
        watch.learned.note(5, 3);
    }
    let found = watch.slots_in_force().expect("it was learned");
    assert_eq!((found.count, found.source), (2, Source::Learned));
    watch.is_quick = true;
    assert_eq!(watch.slots_in_force(), None, "nobody waits for them");
    watch.is_quick = false;
    watch.settle_slots(slots(4, Source::Env), now);
    assert_eq!(watch.slots_in_force(), slots(4, Source::Env));
}

#[test]
fn a_reading_never_costs_more_than_its_share() {
    let ms = Duration::from_millis;
    assert_eq!(pause(GAUGES_BUSY, GAUGES_IDLE, true, ms(1)), ms(250));
    assert_eq!(pause(GAUGES_BUSY, GAUGES_IDLE, true, ms(5)), ms(1000));
    assert_eq!(pause(GAUGES_BUSY, GAUGES_IDLE, false, ms(1)), ms(2000));
}

#[tokio::test]
async fn looks_never_cost_more_than_their_share_for_long() {
    let now = clock::now();
    let config = crate::config::load(&crate::config::Sources::default())
        .expect("the defaults")
        .config;
    let ms = Duration::from_millis;
    let mut watch = watch(now);
    watch.looked_with = Some((config.clone(), None));
    // Its workers come and go, and each time a look has cost so much.
    let mut looks_again = |cost, at| {
        let (sender, looking) = oneshot::channel();
        watch.looking = Some(looking);
        let found = (findings(7, [8, 9]), Eyes::default(), cost);
        sender.send(found).expect("it is waited for");
        watch.next_look = now;
        watch.tick(&config, None, 0, now + at);
        watch.looking.take().is_some()
    };
    assert!(looks_again(ms(25), ms(0)), "5 s of its share");
    assert!(looks_again(ms(25), ms(0)), "10 s");
    assert!(!looks_again(ms(5), ms(0)), "11 s");
    assert!(!looks_again(ms(0), ms(999)));
    assert!(looks_again(ms(0), ms(1000)));
    // Who changes the configuration does not wait.
    watch.paid_until = now + 2 * LOOKS_AHEAD;
    watch.tick(&config, Some(7), 0, now);
    assert!(watch.looking.is_some());
}

/// A server with workers that accept when they are idle.
fn findings(master: u32, workers: [u32; 2]) -> Findings {
    let child = |pid| ChildFacts {
        pid,
        command: Vec::new(),
        listens: true,
    };
    let not_here = || Err("not here".to_owned());
    Findings {
        listener: Err("not here".to_owned()),
        process: Ok(ProcessFacts {
            pid: master,
            children: workers.map(child).into(),
            ..ProcessFacts::default()
        }),
        ladder: Ladder {
            rungs: vec![Rung {
                source: Source::Proc,
                outcome: Ok(Count {
                    slots: 4,
                    because: String::new(),
                }),
            }],
            server: None,
        },
        profile: Profile::Generic,
        accepts: Accepts::WhenIdle,
        cpu: not_here(),
        memory: not_here(),
    }
}

#[test]
fn workers_that_were_replaced_are_news_although_there_are_as_many() {
    let now = clock::now();
    let mut watch = watch(now);
    let mut workers = |workers| {
        watch.found(findings(7, workers), Eyes::default(), now);
        Some(watch.news()?.crew?.workers)
    };
    assert_eq!(workers([8, 9]), Some(vec![8, 9]));
    assert_eq!(workers([8, 9]), None, "the same");
    assert_eq!(workers([9, 10]), Some(vec![9, 10]));
}

#[test]
fn the_secrets_of_a_command_are_not_for_everybody() {
    let now = clock::now();
    let mut watch = watch(now);
    let mut found = findings(7, [8, 9]);
    if let Ok(process) = &mut found.process {
        process.command = ["gunicorn", "--env", "DB_PASSWORD=hunter2", "-w", "2", "app"]
            .map(str::to_owned)
            .into();
    }
    watch.found(found, Eyes::default(), now);
    let document = watch.sight().document;
    assert_eq!(
        document["process"]["command"],
        "gunicorn --env DB_PASSWORD=*** -w 2 app"
    );
}

#[test]
fn what_was_learned_of_a_server_is_not_held_against_another() {
    let now = clock::now();
    let mut watch = watch(now);
    watch.found(findings(7, [8, 9]), Eyes::default(), now);
    for _ in 0..40 {
        watch.learned.note(5, 3);
    }
    watch.found(findings(7, [8, 10]), Eyes::default(), now);
    assert_eq!(watch.learned.slots(), Some(2), "the same server");
    watch.found(findings(11, [12, 13]), Eyes::default(), now);
    assert_eq!(watch.learned.slots(), None);
}

#[tokio::test]
async fn the_first_look_is_taken_at_all_endpoints_at_once() {
    // Each waits half a second for a stats server that does not answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stats = silent.local_addr().expect("bound").to_string();
    let mut config = Config::default();
    config.discovery.uwsgi_stats = Some(Address::connect(&stats).expect("an address"));
    let addresses: Vec<_> = (0..16)
        .map(|id| Address::Unix(format!("/nowhere/{id}").into()))
        .collect();
    let began = clock::now();
    let senses = Senses::default();
    let news = senses
        .first_look((0..).zip(&addresses), &Arc::new(config))
        .await;
    let took = clock::now().saturating_duration_since(began);
    let ids: Vec<u32> = news.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (0..16).collect::<Vec<_>>());
    assert!(took < Duration::from_secs(7), "{took:?}");
}

#[test]
fn an_endpoint_is_waited_for_on_this_machine_only() {
    let now = clock::now();
    let looked = |address: &str| {
        let address = Address::connect(address).expect("an address");
        let config = Config::default();
        let (findings, eyes) = look_again(&address, &config, None, &Before::default());
        assert!(findings.listener.is_err());
        let mut watch = watch(now);
        watch.next_look = now + LOOK;
        watch.found(findings, eyes, now);
        watch.next_look
    };
    // TEST-NET-1, RFC 5737: nobody's.
    assert_eq!(looked("192.0.2.1:80"), now + LOOK);
    #[cfg(target_os = "linux")]
    assert_eq!(looked("unix:/nowhere"), now + LOOK_MISSING);
}

#[test]
fn the_accept_queue_is_told_of_where_somebody_waits_longer_because_of_it() {
    let now = clock::now();
    let mut watch = watch(now);
    watch.found(findings(7, [8, 9]), Eyes::default(), now);
    watch.queued = Some(3);
    let told = |watch: &mut Watch| watch.news().expect("news").readings.accept_queue;
    assert_eq!(told(&mut watch), Some(3));
    watch.is_quick = true;
    assert_eq!(told(&mut watch), None);
}
