//! `/version`, `/healthz`, `/livez`, `/readyz`.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    http::{Outcome, text},
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

/// Answers a health check. A server that answers has opened its store and made its objects; while it stops it is
/// alive and no longer ready.
pub(crate) fn answer(path: &str, query: &Query, stopping: bool) -> Outcome {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let kind = parts.next().unwrap_or_default();
    let checks = [("ping", true), ("store", true), ("shutdown", kind != "readyz" || !stopping)];
    if let Some(one) = parts.next() {
        return match checks.iter().find(|(name, _)| *name == one) {
            Some((_, true)) => Ok(text(StatusCode::OK, "ok")),
            Some(_) => Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "not ok")),
            None => Err(sheaf_meta::status::Status::no_such_path()),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let lines = checks.iter().filter(|(name, _)| !excluded.contains(name));
    let good = lines.clone().all(|(_, ok)| *ok);
    if good && !query.flag("verbose") {
        return Ok(text(StatusCode::OK, "ok"));
    }
    let mut body: String = lines
        .map(
            |(name, ok)| {
                if *ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") }
            },
        )
        .collect();
    body += &format!("{kind} check {}\n", if good { "passed" } else { "failed" });
    Ok(text(if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, body))
}
