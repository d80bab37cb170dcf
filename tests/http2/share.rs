//! What the answers over one connection may hold of memory.

use super::*;

#[test]
fn a_client_whose_windows_are_closed_holds_its_share_and_no_more() {
    const LENGTH: usize = 60_000;
    const SHARE: f64 = 512.0 * 1024.0;
    let backend = Raw::answering(|_| {
        let body = "a".repeat(LENGTH);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n{body}").into_bytes()
    });
    let gate = Tidegate::to(backend.address())
        .limit(100)
        .set("buffers.total=4MiB")
        .set("buffers.response=64KiB")
        .start();
    let held = || gate.metric("tidegate_buffered_bytes", &[("direction", "response")]);
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut greedy = Http2::connect(gate.address(), &[(4, 0)]);
    for stream in 0..8 {
        greedy.get(2 * stream + 1, "/");
        assert_eq!(greedy.next(&[frames::HEADERS]).stream, 2 * stream + 1);
    }
    assert!(held() <= SHARE, "{} bytes", held());
    let before = backend.requests().len();
    greedy.get(101, "/");
    greedy.next(&[frames::HEADERS]);
    let refused = [("reason", "memory")];
    gate.until_metric("tidegate_rejected_requests_total", &refused, 1.0);
    assert_eq!(backend.requests().len(), before, "no worker is asked");
    // It is the client's own affair.
    for _ in 0..3 {
        assert_eq!(gate.get("/").body.len(), LENGTH);
    }
    let mut other = Http2::connect(gate.address(), &[]);
    other.get(1, "/");
    assert_eq!(other.next(&[frames::HEADERS]).stream, 1);
    drop((greedy, other));
    nothing_is_left(&gate);
}
