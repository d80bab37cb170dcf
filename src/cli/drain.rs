//! `tidegate drain`: take no new requests, finish those that are here.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::admin_client::{FAILURE, PATIENCE, complain, request};
use crate::config::Address;

/// Starts a drain; with `wait`, returns when it is over. How long that may take is the server's
/// `drain.timeout` to say, so there is no limit here.
pub fn run(address: &Address, wait: bool) -> ExitCode {
    match drain(address, wait) {
        Ok(done) => {
            let _ = writeln!(io::stdout(), "{done}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            complain(&format!("cannot drain {address}: {why}"));
            FAILURE
        }
    }
}

fn drain(address: &Address, wait: bool) -> Result<String, String> {
    let ask = |method, path, patience| match request(address, method, path, patience) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(answer.complaint()),
        Err(error) => Err(error.to_string()),
    };
    ask("POST", "/drain", Some(PATIENCE))?;
    if !wait {
        let admin = match address {
            Address::Unix(path) => format!("--unix-socket {} http://localhost", path.display()),
            other => format!("http://{other}"),
        };
        return Ok(format!(
            "draining; `curl -X POST {admin}/undrain` serves again"
        ));
    }
    ask("GET", "/drain/wait", None)?;
    Ok("drained".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        super::admin_client::tests::{serve, serve_at},
        *,
    };

    #[test]
    fn starts_and_waits() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (address, server) = serve(vec![ok, ok]);
        assert_eq!(drain(&address, true), Ok("drained".to_owned()));
        assert_eq!(
            server.join().unwrap(),
            ["POST /drain HTTP/1.1", "GET /drain/wait HTTP/1.1"]
        );
    }

    #[test]
    fn says_how_to_undo_it() {
        let (address, server) = serve(vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]);
        let expected = format!("draining; `curl -X POST http://{address}/undrain` serves again");
        assert_eq!(drain(&address, false), Ok(expected));
        server.join().unwrap();
    }

    #[test]
    fn an_address_of_ipv6_is_named_as_a_url_has_it() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let Some((address, server)) = serve_at("[::1]:0", vec![ok]) else {
            return;
        };
        let Address::Tcp { port, .. } = &address else {
            unreachable!("{address}");
        };
        let expected = format!("http://[::1]:{port}/undrain");
        let said = drain(&address, false).unwrap();
        assert!(said.contains(&expected), "{said}");
        server.join().unwrap();
    }

    #[test]
    fn says_that_it_was_undone() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let undone =
            "HTTP/1.1 409 Conflict\r\nConnection: close\r\n\r\n{\"detail\":\"It was undone.\"}";
        let (address, server) = serve(vec![ok, undone]);
        assert_eq!(
            drain(&address, true),
            Err("It was undone. (409)".to_owned())
        );
        server.join().unwrap();
    }

    #[test]
    fn says_why_not() {
        let (address, server) = serve(vec![
            "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n{\"detail\":\"Switched off.\"}",
        ]);
        assert_eq!(drain(&address, true), Err("Switched off. (403)".to_owned()));
        server.join().unwrap();
    }
}
