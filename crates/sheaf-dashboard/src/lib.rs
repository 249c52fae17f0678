//! The web UI's built assets, and how they are served: types, caching, Content-Security-Policy, one page for all routes.
//!
//! The sources are in `dashboard/`; `scripts/dashboard.sh` builds them and the build script embeds what it finds. Without
//! assets this compiles too, and then serves a page that says how to build them. No state, no network: what the pages show
//! they get from the API themselves.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use ring::rand::{SecureRandom, SystemRandom};

/// Name below `dist/` and content. A name with `.br` is the one without, compressed.
const ASSETS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/assets.rs"));
/// Where the pages are.
const BASE: &str = "/dashboard/";
/// The page of all routes.
const INDEX: &str = "index.html";
/// What the built page has in place of the nonce.
const NONCE: &str = "__SHEAF_NONCE__";
/// And in place of the way from the route up to [`BASE`], so that the page works behind any prefix.
const UP: &str = "__SHEAF_BASE__";
/// A directory that is served in place of what is embedded, for working on the dashboard.
const DIRECTORY: &str = "SHEAF_DASHBOARD_DIR";
/// Files whose names carry a hash of their content.
const HASHED: &str = "assets/";

const MISSING: &str = r#"<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sheaf</title></head>
<body>
<h1>The dashboard is not in this program</h1>
<p>It was built without the dashboard's assets. To have them, in the source directory:</p>
<pre>scripts/dashboard.sh
cargo build -p sheaf</pre>
<p>The API works all the same; <code>sheaf --help</code> and kubectl are clients of it.</p>
</body>
</html>
"#;

/// Answers a GET of a path below `/dashboard/`.
pub fn answer(path: &str, headers: &HeaderMap) -> Response<Bytes> {
    let directory = std::env::var_os(DIRECTORY);
    let find = |name: &str| match &directory {
        Some(dir) => read(Path::new(dir), name),
        None => ASSETS.iter().find(|(n, _)| *n == name).map(|(_, content)| Bytes::from_static(content)),
    };
    respond(path, headers, &find)
}

/// A file of a directory. Names that lead out of it are not found.
fn read(dir: &Path, name: &str) -> Option<Bytes> {
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let content = plain.then(|| std::fs::read(dir.join(name)))?;
    content.ok().map(Bytes::from)
}

fn respond(path: &str, headers: &HeaderMap, find: &dyn Fn(&str) -> Option<Bytes>) -> Response<Bytes> {
    let name = path.strip_prefix(BASE).unwrap_or_default();
    if name.is_empty() || name == INDEX || name.ends_with(".br") {
        return index("", find);
    }
    let Some(content) = find(name) else {
        // A script that is gone must not be answered with a page; all other names are routes.
        return if name.starts_with(HASHED) {
            plain(StatusCode::NOT_FOUND, "not found\n")
        } else {
            index(name, find)
        };
    };
    let accepts = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let brotli = accepts.split(',').any(|c| c.trim() == "br" || c.trim().starts_with("br;"));
    let compressed = brotli.then(|| find(&format!("{name}.br"))).flatten();
    let is_compressed = compressed.is_some();
    let mut response = Response::new(compressed.unwrap_or(content));
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_compressed {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
    }
    let caching = if name.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The page of all routes, with a nonce of its own for the styles that terminals and editors make.
fn index(route: &str, find: &dyn Fn(&str) -> Option<Bytes>) -> Response<Bytes> {
    let found = find(INDEX);
    let text = found.as_deref().and_then(|b| std::str::from_utf8(b).ok()).unwrap_or(MISSING);
    let mut random = [0u8; 18];
    // Without random numbers the nonce is a constant: the scripts' rule does not rest on it.
    let _ = SystemRandom::new().fill(&mut random);
    let nonce = STANDARD_NO_PAD.encode(random);
    let up = match route.matches('/').count() {
        0 => "./".to_owned(),
        depth => "../".repeat(depth),
    };
    let mut response = Response::new(Bytes::from(text.replace(NONCE, &nonce).replace(UP, &up)));
    let out = response.headers_mut();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data: blob:; font-src 'self'; \
         connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    );
    if let Ok(value) = HeaderValue::try_from(policy) {
        out.insert(header::CONTENT_SECURITY_POLICY, value);
    }
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    out.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn plain(code: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "woff2" => "font/woff2",
        "ico" => "image/x-icon",
        "webmanifest" => "application/manifest+json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Option<Bytes> {
        let text = match name {
            "index.html" => "<base href=__SHEAF_BASE__><meta name=csp-nonce content=__SHEAF_NONCE__>",
            "assets/a-1.js" => "script",
            "assets/a-1.js.br" => "small",
            "icon.svg" => "<svg/>",
            _ => return None,
        };
        Some(Bytes::from(text))
    }

    fn get(path: &str, accept_encoding: &'static str) -> Response<Bytes> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accept_encoding));
        respond(path, &headers, &find)
    }

    fn head<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |v| v.to_str().unwrap_or("?"))
    }

    #[test]
    fn routes_get_the_page_with_a_nonce_of_its_own() {
        let (a, c) = (get("/dashboard/", ""), get("/dashboard/vms/default/web.one", ""));
        assert!(String::from_utf8_lossy(a.body()).contains("href=./>"));
        assert!(String::from_utf8_lossy(c.body()).contains("href=../../>"));
        for page in [&a, &c] {
            let text = String::from_utf8(page.body().to_vec()).expect("text");
            let nonce = text.trim_end_matches('>').rsplit('=').next().expect("a nonce");
            assert_eq!(nonce.len(), 24);
            assert!(head(page, "content-security-policy").contains(&format!("'nonce-{nonce}'")));
            assert!(head(page, "content-security-policy").contains("script-src 'self';"));
            assert_eq!(head(page, "cache-control"), "no-store");
        }
        assert_ne!(a.body(), c.body());
    }

    #[test]
    fn files_have_types_and_are_kept_by_browsers() {
        let plain = get("/dashboard/assets/a-1.js", "gzip");
        assert_eq!((plain.body().as_ref(), head(&plain, "content-encoding")), (&b"script"[..], ""));
        assert_eq!(head(&plain, "content-type"), "text/javascript; charset=utf-8");
        assert!(head(&plain, "cache-control").contains("immutable"));
        let small = get("/dashboard/assets/a-1.js", "gzip, br");
        assert_eq!((small.body().as_ref(), head(&small, "content-encoding")), (&b"small"[..], "br"));
        assert_eq!(head(&get("/dashboard/icon.svg", ""), "cache-control"), "no-cache");
        assert_eq!(get("/dashboard/assets/gone-2.js", "").status(), 404);
    }

    #[test]
    fn a_directory_gives_only_its_own() {
        assert!(read(Path::new("/etc"), "../etc/passwd").is_none());
        assert!(read(Path::new("/etc"), "/etc/passwd").is_none());
        assert!(read(Path::new("/etc"), "passwd").is_some());
    }

    #[test]
    fn without_assets_it_says_how_to_build_them() {
        let page = respond("/dashboard/", &HeaderMap::new(), &|_| None);
        assert!(String::from_utf8_lossy(page.body()).contains("scripts/dashboard.sh"));
    }
}
