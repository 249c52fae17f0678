//! What a browser asks for that is no API: handed to whoever brings the pages along, before anything is authenticated.
//!
//! Knows no page. Pages hold nothing secret: what they show they get from the API, as their user.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::http::{Request, Response, bare, full};

/// Answers a GET of a path below `/dashboard/`.
pub type Pages = Arc<dyn Fn(&str, &HeaderMap) -> http::Response<Bytes> + Send + Sync>;

/// The answer, if the request is for a page.
pub(crate) fn answer(pages: &Pages, request: &Request) -> Option<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    match request.uri().path() {
        "/" if wants_html(request.headers()) => Some(redirect("dashboard/")),
        "/dashboard" => Some(redirect("dashboard/")),
        path if path.starts_with("/dashboard/") => {
            let response = pages(path, request.headers());
            let head = *request.method() == Method::HEAD;
            Some(response.map(|body| full(if head { Bytes::new() } else { body })))
        }
        _ => None,
    }
}

/// A browser that was pointed here, and no client that lists paths.
fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/html"))
}

/// Relative, so that it is right behind a proxy that adds a prefix.
fn redirect(to: &'static str) -> Response {
    let mut response = bare(StatusCode::FOUND);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_page() {
        let pages: Pages = Arc::new(|path, _| http::Response::new(Bytes::from(path.to_owned())));
        let ask = |method: &str, path: &str, accept: &str| {
            let request = http::Request::builder().method(method).uri(path).header("accept", accept);
            answer(&pages, &request.body(full("")).unwrap()).map(|r| r.status().as_u16())
        };
        assert_eq!(ask("GET", "/", "text/html,*/*"), Some(302));
        assert_eq!(ask("GET", "/", "application/json"), None);
        assert_eq!(ask("GET", "/dashboard", "*/*"), Some(302));
        assert_eq!(ask("GET", "/dashboard/vms/default/a", "*/*"), Some(200));
        assert_eq!(ask("POST", "/dashboard/", "*/*"), None);
        assert_eq!(ask("GET", "/dashboards", "*/*"), None);
        assert_eq!(ask("GET", "/api/v1", "text/html"), None);
    }
}
