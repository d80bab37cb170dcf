//! The dashboard in a real browser: it draws, it moves under load, and the console stays empty.
//! Where there is no Chromium, it is left out and says so. The stream behind it, by a plain client.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use common::{Client, Gunicorn, Tidegate, browser::Browser, until};

/// A client of `/status` that is told of it.
fn listener(gate: &Tidegate) -> Client {
    let mut client = Client::connect(gate.admin());
    client.send("GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n");
    client
}

/// The next document of a stream.
fn heard(client: &mut Client) -> serde_json::Value {
    loop {
        let chunk = client.take_chunk().expect("a chunk");
        if let Some(data) = String::from_utf8_lossy(&chunk).strip_prefix("data: ") {
            assert!(data.ends_with("\n\n"), "{data}");
            return serde_json::from_str(data.trim_end()).expect("a document on one line");
        }
    }
}

/// Ticks of CPU that a process has used, of which there are 100 a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    [11, 12]
        .iter()
        .map(|&at| fields[at].parse::<u64>().expect("ticks"))
        .sum()
}

/// A page that is open asks once a second: each answer may cost a hundredth of that, even in a build
/// that is not optimised.
#[test]
fn an_open_page_costs_next_to_nothing() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let app = Gunicorn::sync(2);
    let gate = Tidegate::to(app.address()).start();
    let mut client = gate.client();
    for _ in 0..50 {
        client.get("/");
    }
    let asked = 300;
    let before = ticks(gate.process.pid());
    for _ in 0..asked {
        assert_eq!(common::get(gate.admin(), "/status").status, 200);
    }
    let used = ticks(gate.process.pid()) - before;
    assert!(used < asked, "{used} ticks for {asked} answers");
}

/// The same of all streams together that may be open.
#[test]
fn streams_cost_next_to_nothing_and_end_with_the_drain() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let app = Gunicorn::sync(2);
    let mut gate = Tidegate::to(app.address()).start();
    for _ in 0..50 {
        gate.get("/");
    }
    let mut clients: Vec<Client> = (0..8).map(|_| listener(&gate)).collect();
    for client in &mut clients {
        assert_eq!(client.try_head().expect("a head").status, 200);
        assert_eq!(heard(client)["totals"]["answered_by_backend"], 50);
    }
    assert_eq!(listener(&gate).response().status, 503);
    let documents = 4;
    let before = ticks(gate.process.pid());
    for _ in 0..documents {
        for client in &mut clients {
            heard(client);
        }
    }
    let used = ticks(gate.process.pid()) - before;
    let most = documents * clients.len() as u64;
    assert!(used < most, "{used} ticks for {most} documents");
    assert_eq!(gate.stop(), 0);
    // The last that is heard is that it drains.
    for client in &mut clients {
        let mut last = heard(client);
        while last["draining"] == false {
            last = heard(client);
        }
        assert_eq!(last["draining"], true);
    }
}

/// What a screen reader and a keyboard need is in the page before any script has run.
#[test]
fn everything_has_a_name() {
    let app = Gunicorn::sync(1);
    let gate = Tidegate::to(app.address()).start();
    let page = common::get(gate.admin(), "/").text();
    assert!(
        page.contains("<html lang=\"en\">") && page.contains("href=\"#main\""),
        "a way past the header"
    );
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    for (tag, name) in [
        ("<svg ", "aria-label="),
        ("<section ", "aria-labelledby="),
        ("<select ", "aria-label="),
    ] {
        for part in page.split(tag).skip(1) {
            let tag = part.split('>').next().unwrap_or_default();
            assert!(tag.contains(name), "{tag}");
        }
    }
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "nothing from elsewhere"
    );
}

/// Clients that ask again and again.
struct Load(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Load {
    fn on(gate: &Tidegate) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..4).map(|_| {
            let (mut client, stop) = (gate.client(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    client.get("/");
                }
            })
        });
        Self(stop.clone(), clients.collect())
    }

    fn stop(self) {
        self.0.store(true, Relaxed);
        for client in self.1 {
            client.join().expect("every request is answered");
        }
    }
}

/// Until the page has drawn more than one moment, with something in it.
fn moves(page: &mut Browser) {
    let points = "document.querySelector('#chart_load polyline.s1')?.getAttribute('points').split(' ').length";
    until("the page moves", || {
        page.text_of("answered")
            .parse::<f64>()
            .is_ok_and(|rate| rate > 0.0)
            && page.value(points).as_u64() >= Some(3)
    });
}

#[test]
fn it_draws_and_moves_and_the_console_stays_empty() {
    let app = Gunicorn::sync(2);
    let mut gate = Tidegate::to(app.address()).start();
    let Some(mut page) = Browser::open(&format!("http://{}/", gate.admin())) else {
        return;
    };
    let load = Load::on(&gate);
    moves(&mut page);
    load.stop();
    assert_eq!(page.text_of("state"), "ready");
    assert!(page.text_of("limit").parse::<u32>().unwrap() >= 1);
    assert!(page.text_of("sentence").ends_with('.'));
    assert!(page.text_of("endpoints").contains(app.address()));
    assert_eq!(page.value("stream.readyState"), 1, "it is told");
    // Out of sight it does not listen.
    page.value("Object.defineProperty(document, 'hidden', { value: true, configurable: true })");
    until("it hangs up", || page.value("stream === null") == true);
    page.value("delete document.hidden");
    until("it listens again", || {
        page.value("stream !== null && stream.readyState") == 1
    });
    assert!(!page.log().contains("CONSOLE"), "{}", page.log());
    assert_eq!(gate.stop(), 0);
    until("it says that nobody answers", || {
        page.text_of("state") == "no answer"
    });
}

#[test]
fn without_a_stream_it_asks() {
    let app = Gunicorn::sync(2);
    let gate = Tidegate::to(app.address()).start();
    let mut others: Vec<Client> = (0..8).map(|_| listener(&gate)).collect();
    for other in &mut others {
        assert_eq!(other.try_head().expect("a head").status, 200);
    }
    let Some(mut page) = Browser::open(&format!("http://{}/", gate.admin())) else {
        return;
    };
    let load = Load::on(&gate);
    moves(&mut page);
    load.stop();
    assert_eq!(page.value("stream"), serde_json::Value::Null);
    assert_eq!(page.text_of("state"), "ready");
}
