//! The closed sets of label values: each is an enum, so that no request can invent a series.

use std::borrow::Cow;

use crate::{
    config::{Address, Class},
    control::{BoundBy, Setting},
};

/// Declares an enum of label values with their spelling, in the order in which they are exported.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every value, in the order of their numbers (`value as usize`).
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// As it is spelled in metrics, logs and answers.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

label! {
    /// Who wrote an answer.
    Source {
        /// The backend; tidegate passed it on.
        Backend = "backend",
        /// tidegate itself: a refusal or an error.
        Tidegate = "tidegate",
    }
}

label! {
    /// Why tidegate answered a request itself.
    Reason {
        /// The queue has no place left.
        QueueFull = "queue_full",
        /// No permit within `queue.max_wait`.
        QueueTimeout = "queue_timeout",
        /// The client's own deadline has passed, or cannot be met.
        Deadline = "deadline",
        /// The route's `max_in_flight` is reached.
        RouteLimit = "route_limit",
        /// The budget of buffered bytes is spent.
        Memory = "memory",
        /// tidegate is shutting down.
        Draining = "draining",
        /// No connection to the backend.
        BackendUnreachable = "backend_unreachable",
        /// The backend closed before its answer was complete.
        BackendReset = "backend_reset",
        /// What the backend sent is not HTTP.
        BackendProtocol = "backend_protocol",
        /// No response head within `backend.response_timeout`.
        BackendTimeout = "backend_timeout",
        /// The request is malformed.
        BadRequest = "bad_request",
        /// The client took too long to send its request.
        RequestTimeout = "request_timeout",
        /// The body is longer than `server.max_body_bytes`.
        BodyTooLarge = "body_too_large",
        /// The request target is too long.
        TargetTooLong = "target_too_long",
        /// The header section is longer than `server.max_header_bytes`.
        HeadersTooLarge = "headers_too_large",
        /// A method or a transfer coding that tidegate does not speak.
        NotImplemented = "not_implemented",
        /// A version of HTTP that tidegate does not speak.
        Version = "version",
    }
}

impl Reason {
    /// The reasons that shed load, as opposed to those that report a fault.
    pub const REFUSING: &'static [Reason] = &[
        Reason::QueueFull,
        Reason::QueueTimeout,
        Reason::Deadline,
        Reason::RouteLimit,
        Reason::Memory,
        Reason::Draining,
    ];
}

label! {
    /// Where a request was when its client left.
    Phase {
        /// Its body was still being read.
        Reading = "reading",
        /// It waited for a permit.
        Queued = "queued",
        /// The backend was at work on it.
        InFlight = "in_flight",
        /// The backend was done, the client had not read all of the answer.
        Responding = "responding",
    }
}

label! {
    /// How a wait in the queue ended.
    WaitOutcome {
        /// With a permit.
        Admitted = "admitted",
        /// With a refusal.
        Timeout = "timeout",
        /// The client left.
        Canceled = "canceled",
    }
}

label! {
    /// What went wrong with the backend.
    ErrorKind {
        /// The connection could not be made, in time or at all.
        Connect = "connect",
        /// It was silent for too long.
        Timeout = "timeout",
        /// It closed the connection in the middle.
        Reset = "reset",
        /// It did not speak HTTP.
        Protocol = "protocol",
    }
}

/// Every class, in the order of their numbers (`class as usize`).
pub const CLASSES: [Class; 5] = [
    Class::Protected,
    Class::High,
    Class::Normal,
    Class::Low,
    Class::Stream,
];

/// A class as it is spelled in labels and in the configuration.
pub const fn class(class: Class) -> &'static str {
    match class {
        Class::Protected => "protected",
        Class::High => "high",
        Class::Normal => "normal",
        Class::Low => "low",
        Class::Stream => "stream",
    }
}

/// Every value of `bound_by`.
pub const BOUNDS: [BoundBy; 8] = [
    BoundBy::Workers,
    BoundBy::Cpu,
    BoundBy::Memory,
    BoundBy::Latency,
    BoundBy::AcceptQueue,
    BoundBy::Errors,
    BoundBy::Configured,
    BoundBy::Idle,
];

/// What holds the limit, as one word.
pub const fn bound_by(bound: BoundBy) -> &'static str {
    match bound {
        BoundBy::Workers => "workers",
        BoundBy::Cpu => "cpu",
        BoundBy::Memory => "memory",
        BoundBy::Latency => "latency",
        BoundBy::AcceptQueue => "accept_queue",
        BoundBy::Errors => "errors",
        BoundBy::Configured => "configured",
        BoundBy::Idle => "idle",
    }
}

/// The setting that holds the limit, as one word.
pub const fn setting(setting: Setting) -> &'static str {
    match setting {
        Setting::Hand => "hand",
        Setting::Fixed => "limit.algorithm",
        Setting::Max => "limit.max",
        Setting::Min => "limit.min",
    }
}

/// What holds a limit, as far as it takes to say so.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// What holds it.
    pub by: BoundBy,
    /// Who, if it is the configuration.
    pub configured_by: Option<Setting>,
    /// Requests in flight.
    pub in_flight: u32,
    /// What the backend can work on at once, if that is known.
    pub slots: Option<u32>,
    /// Of how many endpoints it is the sum.
    pub endpoints: usize,
    /// Whether one of them accepts connections.
    pub up: bool,
    /// The address of the admin server.
    pub admin: &'a Address,
}

impl Bound<'_> {
    /// A sentence for the dashboard and `tidegate status`.
    pub fn sentence(&self) -> Cow<'static, str> {
        let sentence = match self.by {
            BoundBy::Workers => match self.slots {
                Some(slots) if self.in_flight < slots => return self.workers(slots).into(),
                _ => {
                    "Every worker is busy: more requests at once would only wait inside the backend."
                }
            },
            BoundBy::Cpu => {
                "The backend has used up its CPU: more requests at once would only share it."
            }
            BoundBy::Memory => {
                "The backend is close to its memory limit: more requests at once could kill it."
            }
            BoundBy::Latency => {
                "Requests slow down when more of them run at once: the backend's sweet spot is here."
            }
            BoundBy::AcceptQueue => {
                "Connections wait in the backend's accept queue: it takes no more than this."
            }
            BoundBy::Errors => {
                "The backend answered with signs of overload, so fewer requests are sent to it."
            }
            BoundBy::Configured => match self.configured_by {
                Some(Setting::Hand) => return self.by_hand().into(),
                Some(Setting::Fixed) => {
                    "The configuration sets this limit: limit.algorithm is \"fixed\"."
                }
                Some(Setting::Max) => "The configuration allows no more: limit.max.",
                Some(Setting::Min) => "The configuration allows no fewer: limit.min.",
                None => "The configuration sets this limit.",
            },
            BoundBy::Idle if !self.up => {
                "The backend accepts no connections: the limit stays where it is until it does."
            }
            BoundBy::Idle => {
                "There is not enough traffic to learn more: the limit stays where it is."
            }
        };
        sentence.into()
    }

    fn workers(&self, slots: u32) -> String {
        let requests = if slots == 1 { "request" } else { "requests" };
        let each = if self.endpoints > 1 {
            " for each endpoint"
        } else {
            ""
        };
        format!(
            "The backend can work on {slots} {requests} at once; the limit is that, or one more{each} so that a free worker finds the next request waiting."
        )
    }

    fn by_hand(&self) -> String {
        let admin = match self.admin {
            Address::Unix(path) => format!("--unix-socket {} http://localhost", path.display()),
            other => format!("http://{other}"),
        };
        format!(
            "The limit was set by hand (POST /limit); `curl -d '\"auto\"' {admin}/limit` leaves it to the law again."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(by: BoundBy, configured_by: Option<Setting>, admin: &Address) -> Bound<'_> {
        Bound {
            by,
            configured_by,
            in_flight: 0,
            slots: Some(8),
            endpoints: 1,
            up: true,
            admin,
        }
    }

    #[test]
    fn a_backend_that_is_down_is_not_said_to_lack_traffic() {
        let admin = Address::Unix("/run/admin".into());
        let idle = bound(BoundBy::Idle, None, &admin);
        assert!(idle.sentence().contains("not enough traffic"));
        let down = Bound { up: false, ..idle };
        assert!(down.sentence().contains("accepts no connections"));
    }

    #[test]
    fn workers_are_said_to_be_busy_only_when_they_are() {
        let admin = Address::Unix("/run/admin".into());
        let sentence = |in_flight, slots, endpoints| {
            let bound = Bound {
                in_flight,
                slots,
                endpoints,
                ..bound(BoundBy::Workers, None, &admin)
            };
            bound.sentence().into_owned()
        };
        let free = sentence(0, Some(2), 1);
        assert!(free.starts_with(
            "The backend can work on 2 requests at once; the limit is that, or one more so"
        ));
        assert!(sentence(0, Some(1), 1).contains("work on 1 request at once"));
        assert!(
            sentence(7, Some(8), 2)
                .contains("8 requests at once; the limit is that, or one more for each endpoint")
        );
        for (in_flight, slots) in [(2, Some(2)), (3, Some(2)), (0, None)] {
            assert!(sentence(in_flight, slots, 1).starts_with("Every worker is busy"));
        }
    }

    #[test]
    fn a_limit_set_by_hand_is_said_to_be_and_how_to_let_it_go() {
        let tcp = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 9180,
        };
        let unix = Address::Unix("/run/admin".into());
        let sentence = |setting, admin| {
            let bound = bound(BoundBy::Configured, Some(setting), admin);
            bound.sentence().into_owned()
        };
        assert!(
            sentence(Setting::Hand, &tcp)
                .contains("curl -d '\"auto\"' http://127.0.0.1:9180/limit")
        );
        assert!(
            sentence(Setting::Hand, &unix)
                .contains("curl -d '\"auto\"' --unix-socket /run/admin http://localhost/limit")
        );
        assert!(sentence(Setting::Fixed, &tcp).contains("limit.algorithm"));
        assert!(sentence(Setting::Max, &tcp).contains("limit.max"));
        assert!(sentence(Setting::Min, &tcp).contains("limit.min"));
    }

    #[test]
    fn the_number_of_a_value_is_its_place_in_all() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        for (place, class) in CLASSES.iter().enumerate() {
            assert_eq!(*class as usize, place);
        }
    }
}
