//! Which route a request belongs to: the first that matches.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, Method, Request};
use percent_encoding::percent_decode_str;

use super::{Cap, Class, Group};
use crate::config::{self, PathPattern, header_condition};

/// The route of requests that no `[[route]]` matches.
pub const DEFAULT: &str = config::UNROUTED;
/// Its number.
const UNROUTED: u16 = 0;
const FNV_BASIS: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// One route, ready to match.
#[derive(Clone, Debug)]
pub struct Route {
    /// The same number for the same name, also across reloads.
    pub id: u16,
    /// Its name, a metric label.
    pub name: String,
    /// The importance of its requests.
    pub class: Class,
    /// Its own cap.
    pub cap: Option<Cap>,
    path: PathPattern,
    methods: Vec<Method>,
    header: Option<(HeaderName, Option<HeaderValue>)>,
}

/// The routes in the order of the configuration; the last one matches everything.
#[derive(Clone, Debug)]
pub struct Routes {
    routes: Vec<Route>,
    names: Vec<String>,
}

impl Routes {
    /// Prepares the configured routes. `before` are those in force until now: names keep their
    /// numbers.
    pub fn new(configured: &[config::Route], before: Option<&Routes>) -> Self {
        let mut names = before.map_or_else(|| vec![DEFAULT.to_owned()], |b| b.names.clone());
        let mut routes: Vec<Route> = configured
            .iter()
            .map(|route| {
                let id = number(&mut names, &route.name);
                Route {
                    id,
                    name: route.name.clone(),
                    class: route.class,
                    cap: (route.max_in_flight > 0).then_some(Cap {
                        id,
                        max: route.max_in_flight,
                    }),
                    path: PathPattern::new(&route.path),
                    methods: route
                        .methods
                        .iter()
                        .filter_map(|method| method.parse().ok())
                        .collect(),
                    header: header(&route.header),
                }
            })
            .collect();
        routes.push(Route {
            id: UNROUTED,
            name: DEFAULT.to_owned(),
            class: Class::Normal,
            cap: None,
            path: PathPattern::Any,
            methods: Vec::new(),
            header: None,
        });
        Self { routes, names }
    }

    /// The place, in [`Routes::all`], of the first route that matches.
    pub fn find<B>(&self, request: &Request<B>) -> usize {
        if self.routes.len() == 1 {
            return 0;
        }
        let path = path_of(request);
        self.routes
            .iter()
            .position(|route| route.matches(request, &path))
            .unwrap_or(self.routes.len() - 1)
    }

    /// The fields that they look at.
    pub fn fields(&self) -> impl Iterator<Item = &HeaderName> {
        let conditions = self.routes.iter().filter_map(|route| route.header.as_ref());
        conditions.map(|(name, _)| name)
    }

    /// The routes, the one for everything else last.
    pub fn all(&self) -> &[Route] {
        &self.routes
    }
}

impl Route {
    fn matches<B>(&self, request: &Request<B>, path: &[u8]) -> bool {
        self.path.matches(path)
            && (self.methods.is_empty() || self.methods.contains(request.method()))
            && self.header.as_ref().is_none_or(|(name, value)| {
                let mut values = request.headers().get_all(name).iter();
                match value {
                    Some(value) => values.any(|v| v == value),
                    None => values.next().is_some(),
                }
            })
    }
}

/// Which requests one of this route is expected to cost as much as: those of the route, or, where none is configured for
/// it, those with the same method and path but for the segments with digits in them, which are seldom more than
/// somebody's or something's number.
pub fn group<B>(route: u16, request: &Request<B>) -> Group {
    if route != UNROUTED {
        return Group::Route(route);
    }
    let method = request.method().as_str().bytes();
    let mut hash = method.fold(FNV_BASIS, add_to_hash);
    // What it is without the present segment, and whether that has a digit.
    let (mut before, mut has_digit) = (hash, false);
    for &byte in path_of(request).iter() {
        if byte == b'/' {
            hash = add_to_hash(if has_digit { before } else { hash }, byte);
            (before, has_digit) = (hash, false);
        } else {
            hash = add_to_hash(hash, byte);
            has_digit |= byte.is_ascii_digit();
        }
    }
    if has_digit {
        hash = before;
    }
    Group::Path((hash ^ (hash >> 16)) as u16)
}

/// The path as the application will see it: `/%61` is `/a`.
fn path_of<B>(request: &Request<B>) -> Cow<'_, [u8]> {
    percent_decode_str(request.uri().path()).into()
}

/// FNV-1a in 32 bits (RFC 9923).
fn add_to_hash(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME)
}

fn number(names: &mut Vec<String>, name: &str) -> u16 {
    let known = names.iter().position(|n| n == name);
    let at = known.unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    u16::try_from(at).unwrap_or(u16::MAX)
}

fn header(text: &str) -> Option<(HeaderName, Option<HeaderValue>)> {
    let (name, value) = header_condition(text)?;
    Some((
        name.parse().ok()?,
        value.and_then(|value| value.parse().ok()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, path: &str, methods: &[&str], header: &str) -> config::Route {
        config::Route {
            name: name.to_owned(),
            path: path.to_owned(),
            methods: methods.iter().map(|&m| m.to_owned()).collect(),
            header: header.to_owned(),
            class: Class::High,
            max_in_flight: 0,
        }
    }

    fn name_of(routes: &Routes, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        routes.all()[routes.find(&request)].name.clone()
    }

    #[test]
    fn the_first_match_wins_and_the_rest_is_default() {
        let routes = Routes::new(
            &[
                route("health", "/healthz", &[], ""),
                route("writes", "/api/*", &["POST", "PUT"], ""),
                route("beta", "/api/*", &[], "X-Beta: yes"),
                route("api", "/api/*", &[], ""),
            ],
            None,
        );
        assert_eq!(name_of(&routes, "GET", "/healthz", &[]), "health");
        assert_eq!(name_of(&routes, "GET", "/healthz/x", &[]), "default");
        assert_eq!(name_of(&routes, "POST", "/api/x", &[]), "writes");
        assert_eq!(
            name_of(&routes, "GET", "/api/x", &[("x-beta", "yes")]),
            "beta"
        );
        assert_eq!(
            name_of(&routes, "GET", "/api/x", &[("x-beta", "no")]),
            "api"
        );
        assert_eq!(name_of(&routes, "GET", "/api", &[]), "api");
        assert_eq!(name_of(&routes, "GET", "/apis", &[]), "default");
    }

    fn group_of(method: &str, path: &str) -> Group {
        let request = Request::builder().method(method).uri(path);
        group(UNROUTED, &request.body(()).expect("a request"))
    }

    #[test]
    fn requests_without_a_route_are_grouped_by_what_they_ask_for() {
        let item = group_of("GET", "/items/17");
        assert_eq!(group_of("GET", "/items/4f5a-23"), item);
        assert_eq!(group_of("GET", "/items/18?page=2"), item);
        for (method, path) in [
            ("POST", "/items/17"),
            ("GET", "/items"),
            ("GET", "/items/new"),
            ("GET", "/items/17/reviews"),
            ("GET", "/users/17"),
            ("GET", "/%E6%A4%9C%E7%B4%A2/17"),
        ] {
            assert_ne!(group_of(method, path), item, "{method} {path}");
        }
        assert_eq!(
            group_of("GET", "/%69tems/17"),
            item,
            "as the application sees it"
        );
        let request = Request::new(());
        assert_eq!(group(3, &request), Group::Route(3));
    }

    /// WSGI decodes the path: a cap is none that a client gets around by another spelling.
    #[test]
    fn a_path_is_matched_as_the_application_sees_it() {
        let routes = Routes::new(
            &[
                route("slow", "/slow", &[], ""),
                route("cafe", "/caf%C3%A9/*", &[], ""),
            ],
            None,
        );
        for path in ["/slow", "/%73low", "/%73%6c%6F%77", "/slow?a=%73"] {
            assert_eq!(name_of(&routes, "GET", path, &[]), "slow", "{path}");
        }
        for path in ["/%2573low", "/slo%7", "/slow%"] {
            assert_eq!(name_of(&routes, "GET", path, &[]), "default", "{path}");
        }
        for path in ["/caf%c3%a9", "/c%61f%C3%A9%2Fx"] {
            assert_eq!(name_of(&routes, "GET", path, &[]), "cafe", "{path}");
        }
    }

    #[test]
    fn names_keep_their_numbers_across_reloads() {
        let before = Routes::new(
            &[route("a", "/a", &[], ""), route("b", "/b", &[], "")],
            None,
        );
        let after = Routes::new(
            &[route("c", "/c", &[], ""), route("b", "/b", &[], "")],
            Some(&before),
        );
        assert_eq!(before.all()[1].id, after.all()[1].id);
        assert_ne!(before.all()[0].id, after.all()[0].id);
    }
}
