//! A headless Chromium with one page, driven over the DevTools protocol: JSON with a null byte after each
//! message, through two pipes.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    process::Command,
    sync::mpsc::{Receiver, channel},
};

use serde_json::{Value, json};

use super::{PATIENCE, Process};

/// See the module's documentation.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    commands: File,
    messages: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    _dir: tempfile::TempDir,
}

/// The first of the usual names that runs.
fn program() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success())
        })
}

impl Browser {
    /// Opens a page. `None`, said aloud, where there is no Chromium.
    pub fn open(url: &str) -> Option<Self> {
        let Some(program) = program() else {
            println!("left out: there is no Chromium");
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (commands, messages) = (dir.path().join("commands"), dir.path().join("messages"));
        let made = Command::new("mkfifo").args([&commands, &messages]).status();
        assert!(made.is_ok_and(|status| status.success()), "two pipes");
        let script =
            "commands=$1 messages=$2; shift 2; exec \"$@\" 3<\"$commands\" 4>\"$messages\"";
        let profile = dir.path().join("profile");
        let process = Process::start(
            "chromium",
            Command::new("sh")
                .args(["-c", script, "sh"])
                .args([&commands, &messages])
                .arg(program)
                .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
                .args(["--disable-dev-shm-usage", "--enable-logging=stderr"])
                .args(["--window-size=1200,900", "--remote-debugging-pipe"])
                .arg(format!("--user-data-dir={}", profile.display())),
        );
        let commands = fs::OpenOptions::new()
            .write(true)
            .open(commands)
            .expect("its commands");
        let from = File::open(messages).expect("its messages");
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            loop {
                let mut message = Vec::new();
                match from.read_until(0, &mut message) {
                    Ok(length) if length > 0 => message.pop(),
                    _ => return,
                };
                let message = serde_json::from_slice(&message).expect("JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            session: None,
            sent: 0,
            _dir: dir,
        };
        let target = browser.command("Target.createTarget", json!({ "url": url }));
        let attached = browser.command(
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        );
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        Some(browser)
    }

    fn command(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands
            .write_all(format!("{message}\0").as_bytes())
            .expect("it runs");
        loop {
            let answer = self
                .messages
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("{error}: {}", self.process.log()));
            if answer["id"] == self.sent {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let answer = self.command("Runtime.evaluate", params);
        answer["result"]["value"].clone()
    }

    /// The text of the element with this id; empty if there is none.
    pub fn text_of(&mut self, id: &str) -> String {
        let expression = format!("(document.getElementById({id:?}) || {{}}).textContent || ''");
        let value = self.value(&expression);
        value.as_str().unwrap_or_default().to_owned()
    }

    /// What it has said, the console of the page among it.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
