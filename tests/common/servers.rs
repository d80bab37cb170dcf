//! The servers that run Flask in the world, each with the tests' application.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Process, raw::reserved_port, try_get, until, venv::venv};

/// Where the application is.
const APPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps");

/// Debian's apache2 with its mod_wsgi.
const APACHE: &str = "/usr/sbin/apache2";
const APACHE_MODULES: &str = "/usr/lib/apache2/modules";

/// One of them, running.
#[derive(Debug)]
pub struct Server {
    pub process: Process,
    address: String,
    dir: tempfile::TempDir,
}

/// How a server says where it listens.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// `before` the address.
    After(&'static str),
    /// Not at all: it was told.
    Nothing,
}

/// What a kind of server is started with. `{dir}` is a directory of its own, `{port}` a free port,
/// `{apps}` the application's directory.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    program: &'static str,
    fixed: &'static [&'static str],
    tcp: &'static [&'static str],
    unix: &'static [&'static str],
    last: &'static [&'static str],
    said: Said,
    /// Whether `GET` over HTTP works without tidegate.
    speaks_http: bool,
}

const GUNICORN: Kind = Kind {
    program: "gunicorn",
    fixed: &[
        "--no-control-socket",
        "--chdir",
        "{apps}",
        "--graceful-timeout",
        "5",
    ],
    tcp: &["--bind", "127.0.0.1:0"],
    unix: &["--bind", "unix:{dir}/app.sock"],
    last: &["app:app"],
    said: Said::After("Listening at: http://"),
    speaks_http: true,
};

pub const GUNICORN_SYNC: Kind = GUNICORN;

pub const GUNICORN_GTHREAD: Kind = Kind {
    last: &["--worker-class", "gthread", "--threads", "4", "app:app"],
    ..GUNICORN
};

pub const GUNICORN_GEVENT: Kind = Kind {
    last: &["--worker-class", "gevent", "app:app"],
    ..GUNICORN
};

pub const GUNICORN_UWSGI: Kind = Kind {
    last: &["--protocol", "uwsgi", "app:app"],
    said: Said::After("Listening at: "),
    speaks_http: false,
    ..GUNICORN
};

const UWSGI: Kind = Kind {
    program: "uwsgi",
    fixed: &[
        "--chdir",
        "{apps}",
        "--master",
        "--need-app",
        "--die-on-term",
        "--disable-logging",
        "--wsgi-file",
        "app.py",
        "--callable",
        "app",
    ],
    tcp: &[],
    unix: &[],
    last: &[],
    said: Said::After("bound to TCP address "),
    speaks_http: true,
};

pub const UWSGI_HTTP: Kind = Kind {
    tcp: &["--http-socket", "127.0.0.1:0"],
    unix: &["--http-socket", "{dir}/app.sock"],
    ..UWSGI
};

/// A router of its own in front of the workers.
pub const UWSGI_ROUTER: Kind = Kind {
    tcp: &["--http", "127.0.0.1:{port}"],
    said: Said::Nothing,
    ..UWSGI
};

/// It keeps connections.
pub const UWSGI_HTTP11: Kind = Kind {
    tcp: &["--http11-socket", "127.0.0.1:0"],
    ..UWSGI
};

pub const UWSGI_SOCKET: Kind = Kind {
    tcp: &["--socket", "127.0.0.1:0"],
    unix: &["--socket", "{dir}/app.sock"],
    speaks_http: false,
    ..UWSGI
};

pub const WAITRESS: Kind = Kind {
    program: "waitress-serve",
    fixed: &[],
    tcp: &["--listen=127.0.0.1:{port}"],
    unix: &["--unix-socket={dir}/app.sock"],
    last: &["app:app"],
    said: Said::Nothing,
    speaks_http: true,
};

pub const FLASK: Kind = Kind {
    program: "flask",
    fixed: &["--app", "app", "run"],
    tcp: &["--port", "0"],
    unix: &["--host", "unix://{dir}/app.sock"],
    last: &[],
    said: Said::After("Running on http://"),
    speaks_http: true,
};

pub const FLASK_ONE_THREAD: Kind = Kind {
    last: &["--without-threads"],
    ..FLASK
};

/// Inside of a program of its own, `serve.py`.
const EMBEDDED: Kind = Kind {
    program: "python",
    fixed: &["serve.py"],
    tcp: &[],
    unix: &[],
    last: &["{port}"],
    said: Said::Nothing,
    speaks_http: true,
};

pub const BJOERN: Kind = Kind {
    tcp: &["bjoern"],
    ..EMBEDDED
};

pub const GEVENT: Kind = Kind {
    tcp: &["gevent"],
    ..EMBEDDED
};

pub const EVENTLET: Kind = Kind {
    tcp: &["eventlet"],
    ..EMBEDDED
};

pub const CHEROOT: Kind = Kind {
    program: "cheroot",
    fixed: &["app:app"],
    tcp: &["--bind", "127.0.0.1:{port}"],
    last: &[],
    ..EMBEDDED
};

pub const HYPERCORN: Kind = Kind {
    program: "hypercorn",
    fixed: &["--bind"],
    tcp: &["127.0.0.1:{port}"],
    last: &["wsgi:app:app"],
    ..EMBEDDED
};

pub const GRANIAN: Kind = Kind {
    program: "granian",
    fixed: &["--interface", "wsgi", "--port"],
    tcp: &["{port}"],
    last: &["app:app"],
    ..EMBEDDED
};

/// With the application behind a2wsgi.
pub const UVICORN: Kind = Kind {
    program: "uvicorn",
    fixed: &["--port"],
    tcp: &["{port}"],
    last: &["serve:asgi"],
    ..EMBEDDED
};

/// Apache itself; see [`Server::mod_wsgi`].
const MOD_WSGI: Kind = Kind {
    program: APACHE,
    fixed: &["-D", "FOREGROUND", "-f", "{dir}/apache.conf"],
    tcp: &[],
    unix: &[],
    last: &[],
    said: Said::Nothing,
    speaks_http: true,
};

/// `None`, said aloud, where the server is not on this machine.
fn program(kind: &Kind) -> Option<PathBuf> {
    let program = venv().join(kind.program);
    let missing = match kind.program {
        APACHE => !Path::new(APACHE_MODULES).join("mod_wsgi.so").exists(),
        "gunicorn" if kind.last.contains(&"gevent") => {
            !venv().join("python").exists() || !has("gevent")
        }
        "python" => kind.tcp.iter().any(|module| !has(module)),
        "uvicorn" => !program.exists() || !has("a2wsgi"),
        _ => !program.exists(),
    };
    if missing {
        println!("left out: {} {:?} is not installed", kind.program, kind.tcp);
        return None;
    }
    Some(program)
}

fn has(module: &str) -> bool {
    let import = format!("import {module}");
    let python = Command::new(venv().join("python"))
        .args(["-c", &import])
        .output();
    python.is_ok_and(|output| output.status.success())
}

impl Server {
    /// On a port of its own.
    pub fn tcp(kind: Kind, more: &[&str]) -> Option<Self> {
        Self::start(
            kind,
            kind.tcp,
            more,
            tempfile::tempdir().expect("a directory"),
        )
    }

    /// On a Unix socket of its own.
    pub fn unix(kind: Kind, more: &[&str]) -> Option<Self> {
        let unix = Kind {
            said: Said::Nothing,
            ..kind
        };
        Self::start(
            unix,
            kind.unix,
            more,
            tempfile::tempdir().expect("a directory"),
        )
    }

    /// Apache with mod_wsgi's daemon, on a port of its own. Started by root, its daemon is somebody
    /// else, to whom this directory and the environment may be closed: it gets copies.
    pub fn mod_wsgi() -> Option<Self> {
        program(&MOD_WSGI)?;
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o777)).expect("permissions");
        let site = Command::new(venv().join("python"))
            .args([
                "-c",
                "import flask, os; print(os.path.dirname(os.path.dirname(flask.__file__)))",
            ])
            .output()
            .expect("python");
        let site = String::from_utf8_lossy(&site.stdout).trim().to_owned();
        // The application's packages, without the largest, which are not its own.
        for package in fs::read_dir(&site).expect("the packages") {
            let package = package.expect("a package");
            let name = package.file_name().to_string_lossy().into_owned();
            let large = [
                "pip",
                "setuptools",
                "gevent",
                "granian",
                "greenlet",
                "eventlet",
                "zope",
            ];
            if package.path().is_dir() && !large.iter().any(|known| name.starts_with(known)) {
                copy(&package.path(), &at.join("lib").join(name));
            }
        }
        copy(Path::new(APPS), &at.join("lib"));
        let shown = at.display();
        let script = format!(
            "import os\nos.environ['APP_DIR'] = '{shown}'\nfrom app import app as application\n"
        );
        fs::write(at.join("app.wsgi"), script).expect("a script");
        let modules: String = ["mpm_event", "authz_core", "wsgi"]
            .iter()
            .map(|name| format!("LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n"))
            .collect();
        let configuration = format!(
            "ServerRoot {shown}\nServerName app\nPidFile {shown}/pid\nListen 127.0.0.1:{{port}}\n{modules}\
             User nobody\nGroup nogroup\nErrorLog /dev/stderr\nMutex pthread\n\
             StartServers 1\nThreadsPerChild 8\nMaxRequestWorkers 8\nServerLimit 1\n\
             WSGISocketPrefix {shown}/wsgi\nWSGIDaemonProcess app threads=4 python-path={shown}/lib\n\
             AllowEncodedSlashes On\nWSGIProcessGroup app\nWSGIApplicationGroup %{{GLOBAL}}\nWSGIScriptAlias / {shown}/app.wsgi\n\
             <Directory />\nRequire all granted\n</Directory>\n"
        );
        fs::write(at.join("apache.conf"), configuration).expect("a configuration");
        Self::start(MOD_WSGI, &[], &[], dir)
    }

    fn start(kind: Kind, bind: &[&str], more: &[&str], dir: tempfile::TempDir) -> Option<Self> {
        let program = program(&kind)?;
        let (held, free) = reserved_port();
        let port = free.rsplit(':').next().unwrap_or_default();
        let at = dir.path().display().to_string();
        let filled = |text: &str| {
            text.replace("{dir}", &at)
                .replace("{port}", port)
                .replace("{apps}", APPS)
        };
        let configuration = dir.path().join("apache.conf");
        if let Ok(text) = fs::read_to_string(&configuration) {
            fs::write(&configuration, filled(&text)).expect("a configuration");
        }
        let args = [kind.fixed, bind, more, kind.last].concat();
        let is_unix = args.iter().any(|arg| arg.contains("app.sock"));
        drop(held);
        let mut process = Process::start(
            kind.program,
            Command::new(program)
                .args(args.iter().map(|arg| filled(arg)))
                .current_dir(APPS)
                .env("APP_DIR", dir.path())
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("PYTHONPATH", APPS)
                .env_remove("GUNICORN_CMD_ARGS")
                .env_remove("FLASK_DEBUG")
                .env_remove("PORT"),
        );
        let address = match kind.said {
            _ if is_unix => format!("unix:{at}/app.sock"),
            Said::Nothing => free.clone(),
            Said::After(mark) => process.logged("its address", |log| {
                let (_, rest) = log.split_once(mark)?;
                let end = rest.find([' ', '\n'])?;
                let address = &rest[..end];
                Some(address.trim_start_matches("http://").to_owned())
            }),
        };
        let server = Self {
            process,
            address,
            dir,
        };
        until("the server answers", || {
            if kind.speaks_http {
                try_get(&server.address, "/pid").is_ok_and(|answer| answer.status == 200)
            } else {
                super::Client::try_connect(&server.address).is_ok()
            }
        });
        Some(server)
    }

    /// `host:port` or `unix:/path`
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
