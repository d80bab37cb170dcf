//! The data path, end to end.

mod common;

use common::{Gunicorn, Tidegate};

#[test]
fn a_request_gets_the_apps_answer() {
    let app = Gunicorn::sync(2);
    let mut tidegate = Tidegate::to(app.address()).start();
    let answer = tidegate.get("/");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "hello\n");
    assert_eq!(tidegate.stop(), 0);
}
