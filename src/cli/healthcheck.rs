//! `tidegate healthcheck`: for a container's `HEALTHCHECK`, whose image need not have curl.

use std::process::ExitCode;

use super::admin_client::{FAILURE, PATIENCE, complain, request};
use crate::config::Address;

/// Asks `/livez`, or `/readyz` when `ready`: exit code 0 when the answer is yes. Anything else is
/// 1 and one line on standard error; it takes 5 s at most once it is connected.
pub fn run(address: &Address, ready: bool) -> ExitCode {
    let path = if ready { "/readyz" } else { "/livez" };
    match request(address, "GET", path, Some(PATIENCE)) {
        Ok(answer) if answer.status == 200 => ExitCode::SUCCESS,
        Ok(answer) => {
            complain(&format!("{path} at {address}: {}", answer.complaint()));
            FAILURE
        }
        Err(error) => {
            complain(&format!("{path} at {address}: {error}"));
            FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::admin_client::tests::serve, *};

    #[test]
    fn yes_and_no() {
        let (address, server) = serve(vec![
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\nnot ready\n",
        ]);
        assert_eq!(run(&address, false), ExitCode::SUCCESS);
        assert_eq!(run(&address, true), FAILURE);
        assert_eq!(
            server.join().unwrap(),
            ["GET /livez HTTP/1.1", "GET /readyz HTTP/1.1"]
        );
        assert_eq!(run(&address, false), FAILURE, "nobody listens any more");
    }
}
