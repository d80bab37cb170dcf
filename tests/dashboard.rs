//! The dashboard in a real browser: it draws, it moves under load, and the console stays empty.
//! Where there is no Chromium, it is left out and says so.

#![allow(clippy::print_stdout)]

mod common;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use common::{Gunicorn, Tidegate};

/// The first of the usual names that runs.
fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success())
        })
}

/// The text in the element with this id.
fn text_of<'a>(page: &'a str, id: &str) -> &'a str {
    let mark = format!("id=\"{id}\"");
    let at = page.find(&mark).unwrap_or_else(|| panic!("no {id}"));
    let rest = &page[at..];
    let from = rest.find('>').expect("the end of the tag") + 1;
    &rest[from..from + rest[from..].find('<').expect("the end of the text")]
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

#[test]
fn it_draws_and_moves_and_the_console_stays_empty() {
    let Some(browser) = browser() else {
        println!("left out: there is no Chromium");
        return;
    };
    let app = Gunicorn::sync(2);
    let gate = Tidegate::to(app.address()).start();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stop) = (gate.client(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    client.get("/");
                }
            })
        })
        .collect();
    let profile = tempfile::tempdir().expect("a temporary directory");
    // Ten seconds of the page's own time pass as fast as it can draw them.
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--enable-logging=stderr"])
        .args(["--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/", gate.admin()))
        .output()
        .expect("it ran before");
    stop.store(true, Relaxed);
    for client in clients {
        client.join().expect("every request is answered");
    }
    let page = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("CONSOLE"), "{log}");
    assert_eq!(text_of(&page, "state"), "ready");
    assert!(text_of(&page, "limit").parse::<u32>().unwrap() >= 1);
    assert!(text_of(&page, "answered").parse::<f64>().unwrap() > 0.0);
    assert!(text_of(&page, "sentence").ends_with('.'));
    assert!(page.contains(app.address()), "the table of endpoints");
    // More than one moment is drawn.
    let line = page
        .split("<polyline class=\"s1\" points=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("a line in the first chart");
    assert!(line.split(' ').count() >= 3, "{line}");
}
