//! `/version`, `/healthz`, `/livez`, `/readyz`.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sheaf_meta::status::Status;

use crate::{
    core::Core,
    http::{Outcome, Response, text},
    query::Query,
};

/// The Kubernetes version whose behaviour is served. Not a pre-release: charts ask for `>=1.25.0`.
const KUBERNETES: &str = "v1.36.2";

/// The body of `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": format!("{KUBERNETES}+sheaf-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// Whether a path is one of the health checks.
pub(crate) fn is_health(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"]
        .iter()
        .any(|p| path == *p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/')))
}

/// How long the store may take to say that it is there.
const STORE: Duration = Duration::from_secs(2);

/// A check: its name as upstream has it, and what is wrong.
type Check = (&'static str, Result<(), &'static str>);

/// Answers a health check: all of them, or one. A server that answers has read its definitions and made the objects
/// that every cluster has; while it stops it is alive and no longer ready.
pub(crate) async fn answer(core: &Core, path: &str, query: &Query) -> Outcome {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let kind = parts.next().unwrap_or_default();
    let revision = tokio::time::timeout(STORE, core.store.revision()).await;
    let store = if matches!(revision, Ok(Ok(_))) { Ok(()) } else { Err("the store does not answer") };
    let mut checks: Vec<Check> = vec![
        ("ping", Ok(())),
        ("log", Ok(())),
        ("etcd", store),
        ("poststarthook/start-apiextensions-controllers", Ok(())),
        ("poststarthook/crd-informer-synced", Ok(())),
    ];
    if kind == "readyz" {
        checks.push(("informer-sync", Ok(())));
        let stopping = core.stop.is_cancelled();
        checks.push(("shutdown", if stopping { Err("the server is shutting down") } else { Ok(()) }));
    }
    let response = match parts.next() {
        Some(one) => {
            let found = checks.iter().find(|(name, _)| *name == one).ok_or_else(Status::no_such_path)?;
            match found.1 {
                Ok(()) => text(StatusCode::OK, "ok"),
                Err(why) => {
                    text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
                }
            }
        }
        None => summary(kind, &checks, query),
    };
    Ok(response)
}

/// What all checks together say. Pure.
fn summary(kind: &str, checks: &[Check], query: &Query) -> Response {
    let mut excluded: Vec<&str> = query.all("exclude").collect();
    let (mut lines, mut good) = (String::new(), true);
    for (name, result) in checks {
        if excluded.contains(name) {
            excluded.retain(|e| e != name);
            lines += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        match result {
            Ok(()) => lines += &format!("[+]{name} ok\n"),
            Err(_) => {
                good = false;
                lines += &format!("[-]{name} failed: reason withheld\n");
            }
        }
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|e| format!("\"{e}\"")).collect();
        lines +=
            &format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(","));
    }
    let mut response = match (good, query.raw("verbose")) {
        // A failure says more than was asked for.
        (false, _) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{kind} check failed\n")),
        (true, None) => text(StatusCode::OK, "ok"),
        (true, Some(_)) => text(StatusCode::OK, format!("{lines}{kind} check passed\n")),
    };
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn ask(query: &str, ready: bool) -> (u16, String) {
        let shutdown = if ready { Ok(()) } else { Err("so it is") };
        let response =
            summary("readyz", &[("ping", Ok(())), ("shutdown", shutdown)], &Query::parse(Some(query)));
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn checks_and_what_is_left_out() {
        for (query, ready, code, body) in [
            ("", true, 200, "ok"),
            ("verbose", true, 200, "[+]ping ok\n[+]shutdown ok\nreadyz check passed\n"),
            ("", false, 500, "[+]ping ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n"),
            (
                "verbose&exclude=shutdown",
                false,
                200,
                "[+]ping ok\n[+]shutdown excluded: ok\nreadyz check passed\n",
            ),
            (
                "verbose&exclude=x&exclude=y",
                true,
                200,
                "[+]ping ok\n[+]shutdown ok\nwarn: some health checks cannot be excluded: no matches for \"x\",\"y\"\nreadyz check passed\n",
            ),
        ] {
            assert_eq!(ask(query, ready).await, (code, body.to_string()), "{query} {ready}");
        }
    }
}
