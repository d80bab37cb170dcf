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
