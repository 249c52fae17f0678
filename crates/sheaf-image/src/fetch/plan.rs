//! What follows after which answer: pure decisions of a download.
//!
//! No sockets, no clock, no files.

use std::time::Duration;

use http::{HeaderMap, StatusCode, Uri, header};

use super::FetchError;

/// What tells one version of a file on a server from another.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// A strong entity tag.
    ETag(String),
    /// The time of the last change; trusted because everybody does.
    LastModified(String),
}

impl Version {
    /// As the header `If-Range` wants it.
    pub fn if_range(&self) -> &str {
        match self {
            Version::ETag(text) | Version::LastModified(text) => text,
        }
    }
}

/// What is remembered of a transfer while its file is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartState {
    /// Where it comes from, as the user gave it.
    pub url: String,
    /// Which version, if the server tells.
    pub version: Option<Version>,
    /// Length of the whole in bytes, if the server tells.
    pub total: Option<u64>,
    /// So many bytes are durable.
    pub durable: u64,
}

/// Where a transfer goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The first byte to ask for.
    pub offset: u64,
    /// The version that the bytes before it are of.
    pub version: Option<Version>,
}

/// Whether what an earlier attempt left may be used. Without a version the pieces of two files could be put together;
/// that is risked only where a checksum would tell.
pub fn plan_resume(state: Option<&PartState>, url: &str, checksum_known: bool) -> Resume {
    match state {
        Some(state) if state.url == url && (state.version.is_some() || checksum_known) => {
            Resume { offset: state.durable, version: state.version.clone() }
        }
        _ => Resume::default(),
    }
}

/// What a server's answer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Ask there instead.
    Redirect(Uri),
    /// The whole file follows.
    Whole {
        /// Its length in bytes.
        total: Option<u64>,
        /// Which version it is.
        version: Option<Version>,
    },
    /// What was asked for follows.
    Rest {
        /// Length of the whole file in bytes.
        total: Option<u64>,
        /// Which version it is.
        version: Option<Version>,
    },
    /// The server cannot go on from there: ask for the whole.
    StartOver,
}

/// Reads the head of an answer to a request for the bytes from `offset` on.
pub fn on_reply(at: &Uri, status: StatusCode, headers: &HeaderMap, offset: u64) -> Result<Reply, FetchError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let version = || {
        let tag = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
        tag.map(|tag| Version::ETag(tag.to_owned()))
            .or_else(|| text(header::LAST_MODIFIED).map(|time| Version::LastModified(time.to_owned())))
    };
    if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
        let Some(location) = text(header::LOCATION) else {
            return Err(FetchError::Redirect { url: show(at), why: "it does not say where to".to_owned() });
        };
        let next = resolve(at, location).ok_or_else(|| FetchError::Redirect {
            url: show(at),
            why: format!("{location:?} is no http or https address"),
        })?;
        return Ok(Reply::Redirect(next));
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE && offset > 0 {
        return Ok(Reply::StartOver);
    }
    if status != StatusCode::OK && status != StatusCode::PARTIAL_CONTENT {
        let retry_after =
            text(header::RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        return Err(FetchError::Status { status, url: show(at), retry_after });
    }
    if let Some(coding) = text(header::CONTENT_ENCODING).filter(|c| !c.eq_ignore_ascii_case("identity")) {
        return Err(FetchError::Encoded { coding: coding.to_owned(), url: show(at) });
    }
    if status == StatusCode::OK {
        let total = text(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        return Ok(Reply::Whole { total, version: version() });
    }
    match text(header::CONTENT_RANGE).and_then(content_range) {
        Some((start, total)) if start == offset => Ok(Reply::Rest { total, version: version() }),
        // Other bytes than those asked for are of no use.
        _ if offset > 0 => Ok(Reply::StartOver),
        _ => Err(FetchError::Protocol {
            url: show(at),
            what: "an answer with another range than was asked for",
        }),
    }
}

/// `bytes 100-199/200`: where it begins, and the length of the whole.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes")?.trim_start().split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

/// Resolves a `Location` (RFC 3986, section 5) against the address that answered with it.
pub fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    let has_scheme = location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    let text = if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|h| !h.is_empty()))
        .then_some(uri)
}

/// An address as it may be shown: without user, password and query (which may hold a signature).
pub fn show(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

/// How patient a download is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts in a row that bring no byte, before it gives up.
    pub fruitless: u32,
    /// Wait before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { fruitless: 4, first_wait: Duration::from_secs(1), longest_wait: Duration::from_secs(30) }
    }
}

/// Whether another attempt is worth it after `error`, and after what wait. `fruitless` attempts in a row, this one
/// included, have brought no byte (0 if this one did).
pub fn plan_retry(patience: &Patience, fruitless: u32, error: &FetchError) -> Option<Duration> {
    if !error.is_transient() || fruitless >= patience.fruitless {
        return None;
    }
    let doubled = patience.first_wait.saturating_mul(1 << fruitless.saturating_sub(1).min(20));
    let asked = match error {
        FetchError::Status { retry_after: Some(wait), .. } => *wait,
        _ => Duration::ZERO,
    };
    Some(doubled.max(asked).min(patience.longest_wait))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn reply(status: u16, headers: &[(&str, &str)], offset: u64) -> Result<Reply, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        on_reply(&uri("http://u:p@h/dir/a.img?sig=1"), StatusCode::from_u16(status).unwrap(), &map, offset)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn answers_are_understood() {
        let etag = Some(Version::ETag("\"v1\"".to_owned()));
        assert_eq!(
            reply(200, &[("content-length", "9"), ("etag", "\"v1\"")], 0),
            Ok(Reply::Whole { total: Some(9), version: etag.clone() })
        );
        assert_eq!(
            reply(200, &[("etag", "W/\"v1\""), ("last-modified", "Mon")], 5),
            Ok(Reply::Whole { total: None, version: Some(Version::LastModified("Mon".to_owned())) })
        );
        let range = ("content-range", "bytes 5-8/9");
        assert_eq!(
            reply(206, &[range, ("etag", "\"v1\"")], 5),
            Ok(Reply::Rest { total: Some(9), version: etag })
        );
        assert_eq!(reply(206, &[range], 4), Ok(Reply::StartOver));
        assert_eq!(reply(206, &[("content-range", "5")], 5), Ok(Reply::StartOver));
        assert_eq!(reply(416, &[], 5), Ok(Reply::StartOver));
        assert_eq!(reply(404, &[], 0), Err("HTTP 404 Not Found from http://h/dir/a.img".to_owned()));
        assert_eq!(reply(302, &[("location", "/b")], 0), Ok(Reply::Redirect(uri("http://u:p@h/b"))));
        assert!(reply(302, &[], 0).unwrap_err().contains("does not say where to"));
        assert!(
            reply(302, &[("location", "file:///etc/passwd")], 0).unwrap_err().contains("no http or https")
        );
        assert!(reply(200, &[("content-encoding", "gzip")], 0).unwrap_err().contains("gzip"));
    }

    #[test]
    fn locations_are_resolved() {
        let base = uri("https://h:1/a/b?x=1");
        for (location, expected) in [
            ("http://other/x?y#z", Some("http://other/x?y")),
            ("//other/x", Some("https://other/x")),
            ("/x:y", Some("https://h:1/x:y")),
            ("x", Some("https://h:1/a/x")),
            ("?q", Some("https://h:1/a/b?q")),
            ("ftp://h/x", None),
            ("javascript:x", None),
            ("http://", None),
        ] {
            assert_eq!(resolve(&base, location).map(|u| u.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn only_what_fits_together_is_resumed() {
        let version = Some(Version::ETag("\"1\"".to_owned()));
        let state = |version| PartState { url: "http://a/".to_owned(), version, total: None, durable: 7 };
        let at = |offset, version| Resume { offset, version };
        assert_eq!(plan_resume(None, "http://a/", true), at(0, None));
        assert_eq!(plan_resume(Some(&state(version.clone())), "http://b/", true), at(0, None));
        assert_eq!(plan_resume(Some(&state(None)), "http://a/", false), at(0, None));
        assert_eq!(plan_resume(Some(&state(None)), "http://a/", true), at(7, None));
        assert_eq!(plan_resume(Some(&state(version.clone())), "http://a/", false), at(7, version));
    }

    #[test]
    fn patience_ends() {
        let patience = Patience::default();
        let status = |code, after: Option<u64>| FetchError::Status {
            status: StatusCode::from_u16(code).unwrap(),
            url: String::new(),
            retry_after: after.map(Duration::from_secs),
        };
        let seconds =
            |fruitless, error: &FetchError| plan_retry(&patience, fruitless, error).map(|d| d.as_secs());
        assert_eq!(
            [0, 1, 2, 3, 4].map(|n| seconds(n, &status(503, None))),
            [Some(1), Some(1), Some(2), Some(4), None]
        );
        assert_eq!(seconds(1, &status(429, Some(7))), Some(7));
        assert_eq!(seconds(1, &status(503, Some(86400))), Some(30));
        assert_eq!(seconds(1, &status(404, None)), None, "waiting does not help");
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(location in "\\PC{0,60}", range in "\\PC{0,60}", status in 100u16..600, offset: u64) {
            let _ = resolve(&uri("http://h/a"), &location);
            let _ = content_range(&range);
            let mut map = HeaderMap::new();
            for (name, value) in [(header::LOCATION, &location), (header::CONTENT_RANGE, &range)] {
                if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
                    map.insert(name, value);
                }
            }
            let _ = on_reply(&uri("http://h/a"), StatusCode::from_u16(status).unwrap(), &map, offset);
        }
    }
}
