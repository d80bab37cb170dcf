//! The child process of `tidegate exec`, with real shells and real signals.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, kill_process};
use tidegate::{
    clock,
    config::Restart,
    runtime::child::{self, Child, Exit, Signal, Spec},
};

/// Long enough that only a broken test waits for it.
const FOREVER: Duration = Duration::from_secs(60);

fn spec(command: &[&str]) -> Spec {
    Spec {
        command: command.iter().map(Into::into).collect(),
        env: Vec::new(),
        restart: Restart::Never,
    }
}

fn shell(script: &str) -> Spec {
    spec(&["/bin/sh", "-c", script])
}

async fn start(spec: Spec) -> Child {
    try_start(spec).await.expect("the child starts")
}

async fn try_start(spec: Spec) -> std::io::Result<Child> {
    Child::spawn_with(env!("CARGO_BIN_EXE_tidegate").into(), spec).await
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    })
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start: Instant = clock::now();
    while !done() {
        assert!(
            clock::now() - start < FOREVER,
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn number_if_there(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.lines().next()?.parse().ok()
}

async fn number_in(file: &Path) -> i32 {
    let read = || number_if_there(file);
    until("the shell has written a process id", || read().is_some()).await;
    read().expect("it was there just now")
}

/// A directory for one test, and the path of a file in it.
fn scratch(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(name);
    (dir, file)
}

#[tokio::test]
async fn the_exit_is_the_commands_own() {
    assert_eq!(start(shell("exit 0")).await.wait().await, Exit::Code(0));
    assert_eq!(start(shell("exit 37")).await.wait().await, Exit::Code(37));

    let mut killed = start(shell("kill -KILL $$")).await;
    assert_eq!(killed.wait().await, Exit::Signal(9));
    assert_eq!(
        killed.wait().await.code(),
        137,
        "a second wait gives the same answer"
    );
}

#[tokio::test]
async fn it_has_the_environment_it_was_given_and_reads_nothing() {
    let mut spec =
        shell(r#"test "$PORT" = 8000 && test -z "$NOTIFY_SOCKET" && ! read -r line && exit 5"#);
    spec.env.push(("PORT".into(), "8000".into()));
    assert_eq!(start(spec).await.wait().await, Exit::Code(5));
}

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let odd = [
        "/bin/sh",
        "-c",
        r#"test "$#" = 3 && test "$2" = "--" && test "$3" = "a  b""#,
        "sh",
        "-c",
        "--",
        "a  b",
    ];
    assert_eq!(start(spec(&odd)).await.wait().await, Exit::Code(0));
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_told_in_one_sentence() {
    let error = try_start(spec(&["no-such-command-anywhere"]))
        .await
        .expect_err("it does not exist");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "cannot start no-such-command-anywhere: there is no such command on the PATH"
    );

    let (_dir, script) = scratch("gunicorn");
    fs::write(&script, "#!/no/such/python\n").expect("a script");
    let error = try_start(spec(&[script.to_str().expect("text")]))
        .await
        .expect_err("it is not executable");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);

    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let error = try_start(spec(&[script.to_str().expect("text")]))
        .await
        .expect_err("no interpreter");
    assert!(
        error
            .to_string()
            .ends_with("the interpreter that its first line names does not exist"),
        "{error}"
    );

    let error = try_start(spec(&[])).await.expect_err("no command");
    assert_eq!(error.to_string(), "no command was given");
}

#[tokio::test]
async fn it_leads_a_group_of_its_own() {
    let mut child = start(shell("exec sleep 600")).await;
    let pid = Pid::from_raw(child.pid().cast_signed());
    assert_eq!(rustix::process::getpgid(pid).ok(), pid);
    child.kill();
    assert_eq!(child.wait().await, Exit::Signal(9));
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let (_dir, file) = scratch("pid");
    let script = format!(
        "trap 'wait; exit 9' USR1
         sh -c 'trap \"exit 0\" USR1; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.01; done' &
         while :; do sleep 0.01; done",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    let grandchild = number_in(&file).await;
    child.signal(Signal::USR1);
    assert_eq!(child.wait().await, Exit::Code(9));
    assert!(!alive(grandchild));
}

#[tokio::test]
async fn stop_asks_the_leader_first() {
    let (_dir, file) = scratch("ready");
    let script = format!(
        "trap 'exit 4' TERM; echo 1 > {}; while :; do sleep 0.01; done",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    number_in(&file).await;
    assert_eq!(child.stop(FOREVER).await, Exit::Code(4));
    assert_eq!(
        child.stop(FOREVER).await,
        Exit::Code(4),
        "stopping twice does no harm"
    );
    child.kill();
}

#[tokio::test]
async fn stop_kills_the_group_when_the_grace_is_over() {
    let (_dir, file) = scratch("pid");
    let script = format!(
        "trap '' TERM; sh -c 'echo $$ > {}; while :; do sleep 1; done' & while :; do sleep 1; done",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    let grandchild = number_in(&file).await;
    assert_eq!(
        child.stop(Duration::from_millis(100)).await,
        Exit::Signal(9)
    );
    until("the grandchild is gone", || !alive(grandchild)).await;
}

#[tokio::test]
async fn nothing_of_the_group_outlives_its_leader() {
    let (_dir, file) = scratch("pid");
    let script = format!("sleep 600 & echo $! > {}; exit 3", file.display());
    let mut child = start(shell(&script)).await;
    assert_eq!(child.wait().await, Exit::Code(3));
    assert!(!alive(number_in(&file).await), "a TERM is enough for sleep");

    let (_dir, file) = scratch("pid");
    let script = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {0}; while :; do sleep 1; done' &
         while ! test -s {0}; do sleep 0.01; done; kill -KILL $$",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    assert_eq!(child.wait().await, Exit::Signal(9));
    let stubborn = number_in(&file).await;
    until("the stubborn one is killed", || !alive(stubborn)).await;
}

#[tokio::test]
async fn a_wait_may_be_given_up_and_taken_up_again() {
    let (_dir, file) = scratch("ends");
    let script = format!(
        "while ! test -e {}; do sleep 0.01; done; exit 6",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(10), child.wait())
            .await
            .is_err()
    );
    fs::write(&file, "").expect("a file");
    assert_eq!(child.wait().await, Exit::Code(6));
}

#[tokio::test]
async fn a_dropped_child_is_killed() {
    let child = start(shell("exec sleep 600")).await;
    let pid = child.pid().cast_signed();
    drop(child);
    until("the child is gone", || !alive(pid)).await;
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_behind() {
    let mut given_up = Vec::new();
    for millis in [0, 1, 2, 4, 8, 16, 32] {
        let (dir, file) = scratch("pid");
        let script = format!("echo $$ > {}; exec sleep 600", file.display());
        // The first poll sends the order; then nobody is there to take the child. Should it be there
        // already, it is dropped here: either way it must go.
        let time = Duration::from_millis(millis);
        drop(tokio::time::timeout(time, start(shell(&script))).await);
        given_up.push((dir, file));
    }
    // Perhaps it was killed before it could say who it is, or between opening the file and writing to it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (_dir, file) in &given_up {
        if let Some(pid) = number_if_there(file) {
            until("the child is gone", || !alive(pid)).await;
        }
    }
}

/// What keeps the helper from becoming the command is told by it, and is no child that runs.
#[tokio::test]
async fn a_helper_that_fails_before_the_command_says_why() {
    let (_dir, helper) = scratch("helper");
    for (how, errno) in [
        (r#"ulimit -n 4; exec "$TIDEGATE" "$@""#, 24),
        // Its parent is another by now.
        (r#"shift 2; exec "$TIDEGATE" __child 2147483647 "$@""#, 3),
    ] {
        // Written by a process of its own: a file that is open for writing here cannot be run.
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod +x "$0""#;
        let mut written = Command::new("/bin/sh");
        written.args(["-c", write]).arg(&helper).arg(how);
        assert!(written.status().expect("a shell").success());
        let mut spec = spec(&["true"]);
        let tidegate = env!("CARGO_BIN_EXE_tidegate").to_owned();
        spec.env.push(("TIDEGATE".to_owned(), tidegate));
        let error = Child::spawn_with(helper.clone(), spec)
            .await
            .expect_err("it was not started")
            .to_string();
        assert!(error.contains(&format!("(os error {errno})")), "{error}");
    }
}

#[test]
fn the_helper_is_not_a_command_for_users() {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg(child::HELPER)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tidegate exec"));
}

// What follows concerns the whole process, so it happens in a process of its own: this test binary
// again, playing a role.

fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test"));
    command
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("TIDEGATE_TEST_ROLE", name);
    command
}

fn playing(name: &str) -> bool {
    std::env::var("TIDEGATE_TEST_ROLE").is_ok_and(|role| role == name)
}

#[tokio::test]
async fn the_child_dies_with_a_parent_that_is_killed() {
    let mut parent = role("role_parent")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the role starts");
    let output = BufReader::new(parent.stdout.take().expect("piped"));
    let child: i32 = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("child ")?.1.parse().ok())
        .expect("the role names its child");
    assert!(alive(child));
    let pid = Pid::from_child(&parent);
    kill_process(pid, Signal::KILL).expect("kill");
    parent.wait().expect("it is dead");
    until("the child has followed", || !alive(child)).await;
}

#[test]
#[ignore = "a role: the parent that is killed"]
#[allow(clippy::print_stdout)]
fn role_parent() {
    if !playing("role_parent") {
        return;
    }
    // The thread and the runtime that asked for the child end; the child must not.
    let asked = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(start(shell("exec sleep 600")))
    });
    let child = asked.join().expect("it was started");
    std::thread::sleep(Duration::from_millis(100));
    println!("child {}", child.pid());
    std::thread::sleep(FOREVER);
}

#[test]
fn pid_1_collects_orphans_and_leaves_the_childs_status() {
    let status = role("role_pid_1")
        .stdout(Stdio::null())
        .status()
        .expect("the role starts");
    assert!(status.success());
}

#[tokio::test]
#[ignore = "a role: PID 1 of a container"]
async fn role_pid_1() {
    if !playing("role_pid_1") {
        return;
    }
    // The nearest thing to being PID 1: orphans among the descendants come here.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .expect("become the reaper");
    tokio::spawn(child::reap_orphans());

    let (_dir, file) = scratch("pids");
    // Two orphans by double fork, one of which also leaves the group; both end before the leader.
    let script = format!(
        "(sleep 0.2 & echo $! >> {0}); (setsid sleep 0.2 & echo $! >> {0}); sleep 0.6; exit 7",
        file.display()
    );
    let mut child = start(shell(&script)).await;
    let orphans = || -> Vec<i32> {
        fs::read_to_string(&file)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    };
    until("there are two orphans", || orphans().len() == 2).await;
    let orphans = orphans();
    until("no zombie is left", || {
        orphans
            .iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
    // Long dead before anybody asks.
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(child.wait().await, Exit::Code(7));

    // A death while nobody waits, and a start that fails, disturb nobody.
    let mut quick = start(shell("exit 8")).await;
    try_start(spec(&["no-such-command-anywhere"]))
        .await
        .expect_err("it does not exist");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(quick.wait().await, Exit::Code(8));
}
