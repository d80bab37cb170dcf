//! Routes that no request ever reaches, since an earlier one takes all of theirs. That is no mistake that would keep
//! tidegate from running: what is in doubt is not told.

use std::collections::HashMap;

use super::{
    load::Loaded,
    problem::{Problem, Problems, Report},
    resolve::RouteSettings,
    route::{PathPattern, header_condition},
    schema,
};

/// Each route that can never match, and which one is in its way.
pub fn shadowed(loaded: &Loaded) -> Vec<Problem> {
    let routes = &loaded.routes;
    let mut report = Report::default();
    let mut earlier: HashMap<PathPattern, Vec<usize>> = HashMap::new();
    for (at, route) in routes.iter().enumerate() {
        let pattern = PathPattern::new(route.settings.text("route.path"));
        let wider = pattern.wider();
        let wider = wider.iter().filter_map(|pattern| earlier.get(pattern));
        let in_the_way = wider.flatten().filter(|at| takes(&routes[**at], route));
        if let Some(first) = in_the_way.min() {
            let first = &routes[*first];
            let message = format!(
                "route {:?} never matches: route {:?} ({}) comes first and takes all of its requests; \
                 move this one before it, or remove it",
                route.settings.text("route.name"),
                first.settings.text("route.name"),
                first.origin,
            );
            report.plain(&route.origin, Some(schema::ROUTE), message);
        }
        earlier.entry(pattern).or_default().push(at);
    }
    let Problems(problems) = report.finish();
    problems
}

/// Whether a route takes whatever another one could, the paths aside.
fn takes(first: &RouteSettings, route: &RouteSettings) -> bool {
    let methods = |route: &RouteSettings| route.settings.texts("route.methods");
    let (all, some) = (methods(first), methods(route));
    let methods = all.is_empty() || !some.is_empty() && some.iter().all(|one| all.contains(one));
    let header = match header(first) {
        None => true,
        wanted @ Some((_, Some(_))) => wanted == header(route),
        Some((name, None)) => header(route).is_some_and(|(other, _)| other == name),
    };
    methods && header
}

/// The header that a route asks for, and its value.
fn header(route: &RouteSettings) -> Option<(String, Option<&str>)> {
    let (name, value) = header_condition(route.settings.text("route.header"))?;
    Some((name.to_ascii_lowercase(), value))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Sources, load::load_bytes};

    fn told(routes: &[&str]) -> Vec<String> {
        let route = |(at, keys): (usize, &&str)| format!("[[route]]\nname = \"{at}\"\n{keys}\n");
        let text: String = routes.iter().enumerate().map(route).collect();
        let file = (Path::new("t.toml"), text.as_bytes());
        let loaded = load_bytes(&Sources::default(), Some(file)).expect("it is valid");
        shadowed(&loaded).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_route_behind_a_wider_one_is_told_with_both_places() {
        assert_eq!(
            told(&["path = \"/api/*\"", "path = \"/x\"", "path = \"/api/slow\""]),
            [
                "t.toml:7:1: route \"2\" never matches: route \"0\" (t.toml:1) comes first and takes all of its \
                 requests; move this one before it, or remove it"
            ]
        );
    }

    #[test]
    fn only_what_is_certain_is_told() {
        let is_told = |first: &str, route: &str| !told(&[first, route]).is_empty();
        for (first, route) in [
            ("", "path = \"/a\""),
            ("", ""),
            ("path = \"/*\"", "path = \"/a/*\""),
            ("path = \"/a\"", "path = \"/%61\""),
            ("path = \"/a/*\"", "path = \"/a\""),
            ("path = \"/a/*\"", "path = \"/a/b/c/*\""),
            ("methods = [\"GET\", \"PUT\"]", "methods = [\"PUT\"]"),
            ("header = \"X-A\"", "header = \"x-a: 1\""),
            ("header = \"X-A: 1\"", "header = \"x-a:1\""),
            ("", "header = \"X-A\""),
        ] {
            assert!(is_told(first, route), "{first} before {route}");
        }
        for (first, route) in [
            ("path = \"/a\"", ""),
            ("path = \"/a\"", "path = \"/a/*\""),
            ("path = \"/a/*\"", "path = \"/ab\""),
            ("path = \"/a/b/*\"", "path = \"/a/*\""),
            ("path = \"/a\"", "path = \"/a/\""),
            ("methods = [\"GET\"]", ""),
            ("methods = [\"GET\"]", "methods = [\"GET\", \"PUT\"]"),
            ("header = \"X-A\"", ""),
            ("header = \"X-A: 1\"", "header = \"X-A\""),
            ("header = \"X-A: 1\"", "header = \"X-A: 2\""),
            ("header = \"X-A\"", "header = \"X-B\""),
        ] {
            assert!(!is_told(first, route), "{first} before {route}");
        }
    }
}
