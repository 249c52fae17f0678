//! Which path leads to which handler, and who may take it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use http::Method;
use sheaf_meta::status::Status;

use super::{Handler, Request, Response, answer_error};

/// What the placeholders of a route stood for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<&'static str, String>);

impl Params {
    /// The value of a placeholder; empty if the route has none of this name.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

struct Route {
    method: Method,
    pattern: Vec<&'static str>,
    allowed: &'static [&'static str],
    handler: Handler,
}

/// The table of routes; the first that fits is taken.
#[derive(Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route. `pattern` is a path whose segments `{name}` match any one segment, and whose last may be
    /// `{name...}`, which matches the rest. `allowed` are the organizations that may call it.
    pub fn add<H, F>(
        &mut self,
        method: Method,
        pattern: &'static str,
        allowed: &'static [&'static str],
        handler: H,
    ) where
        H: Fn(Request, Params) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let pattern = pattern.trim_matches('/').split('/').collect();
        let handler: Handler = Arc::new(move |request, params| Box::pin(handler(request, params)));
        self.0.push(Route { method, pattern, allowed, handler });
    }

    /// Finds the route of a request and starts its handler.
    pub(super) fn dispatch(
        &self,
        request: Request,
        organizations: &[String],
    ) -> impl Future<Output = Response> + Send + use<> {
        let found = self.find(request.method(), request.uri().path(), organizations);
        async move {
            match found {
                Ok((handler, params)) => handler(request, params).await,
                Err(status) => answer_error(&status),
            }
        }
    }

    fn find(
        &self,
        method: &Method,
        path: &str,
        organizations: &[String],
    ) -> Result<(Handler, Params), Box<Status>> {
        let mut known = false;
        for route in &self.0 {
            let Some(params) = matched(&route.pattern, path) else { continue };
            known = true;
            if route.method != method {
                continue;
            }
            if !organizations.iter().any(|o| route.allowed.contains(&o.as_str())) {
                let why = format!("the certificate's organization is none of {}", route.allowed.join(", "));
                return Err(Box::new(Status::new(403, "Forbidden", why)));
            }
            return Ok((route.handler.clone(), params));
        }
        Err(Box::new(if known { Status::method_not_allowed() } else { Status::no_such_path() }))
    }
}

fn matched(pattern: &[&'static str], path: &str) -> Option<Params> {
    let mut params = BTreeMap::new();
    let mut rest = path.trim_start_matches('/');
    for (i, segment) in pattern.iter().enumerate() {
        if let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix("...}")) {
            params.insert(name, rest.to_owned());
            return Some(Params(params));
        }
        let (head, tail) = match rest.split_once('/') {
            Some((head, tail)) => (head, Some(tail)),
            None => (rest, None),
        };
        if let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            if head.is_empty() {
                return None;
            }
            params.insert(name, head.to_owned());
        } else if *segment != head {
            return None;
        }
        match tail {
            Some(tail) => rest = tail,
            None if i + 1 == pattern.len() => return Some(Params(params)),
            None => return None,
        }
    }
    // A slash at the end is forgiven; further segments are not.
    rest.is_empty().then_some(Params(params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &'static str, path: &str) -> Option<Vec<String>> {
        let pattern: Vec<&str> = pattern.trim_matches('/').split('/').collect();
        matched(&pattern, path).map(|p| p.0.into_iter().map(|(k, v)| format!("{k}={v}")).collect())
    }

    #[test]
    fn patterns() {
        let one = "/v1/{ns}/{name}/console";
        assert_eq!(
            check(one, "/v1/default/vm-a/console"),
            Some(vec!["name=vm-a".into(), "ns=default".into()])
        );
        assert_eq!(check(one, "/v1/default/vm-a/console/").map(|p| p.len()), Some(2));
        for wrong in ["/v1/default/vm-a", "/v1/default//console", "/v1/default/vm-a/console/x", "/", ""] {
            assert_eq!(check(one, wrong), None, "{wrong}");
        }
        assert_eq!(check("/p/{rest...}", "/p/80/tcp"), Some(vec!["rest=80/tcp".into()]));
    }

    #[test]
    fn who_may_and_what_there_is() {
        let mut routes = Routes::new();
        routes.add(Method::GET, "/a/{x}", &["sheaf:apiserver"], |_, _| async {
            answer_error(&Status::no_such_path())
        });
        let orgs = ["sheaf:apiserver".to_string()];
        let code =
            |method, path, orgs: &[String]| routes.find(&method, path, orgs).err().map_or(200, |s| s.code);
        assert_eq!(code(Method::GET, "/a/1", &orgs), 200);
        assert_eq!(code(Method::POST, "/a/1", &orgs), 405);
        assert_eq!(code(Method::GET, "/b/1", &orgs), 404);
        assert_eq!(code(Method::GET, "/a/1", &["system:nodes".to_string()]), 403);
        assert_eq!(code(Method::GET, "/a/1", &[]), 403);
    }
}
