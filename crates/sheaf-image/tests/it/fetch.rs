//! Downloads: what is resumed, what starts over, what is refused with which words.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sheaf_image::fetch::{Fetcher, Patience, Progress, Source, Waits, discard, state_path, system_tls};
use sheaf_image::intake::{Stored, part_path};
use tokio::sync::watch;

use crate::server::{Server, file, head, status};
use crate::{disk, sha256, sha512};

fn fetcher() -> Fetcher {
    let patience = Patience {
        fruitless: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(5),
    };
    let waits = Waits { connect: Duration::from_secs(10), stall: Duration::from_secs(10) };
    Fetcher { tls: system_tls(&[]), waits, patience, keep_free: 0 }
}

async fn fetch(url: &str, checksum: Option<&str>, dest: &Path) -> Result<Stored, String> {
    let checksum = checksum.map(|text| text.parse().unwrap());
    let source = Source { url: url.to_owned(), checksum, checksum_header: None };
    let progress = watch::Sender::new(Progress::default());
    fetcher().fetch(&source, dest, &progress).await.map_err(|error| sheaf_image::explain(&error))
}

#[tokio::test]
async fn a_file_comes_whole_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let bytes = Arc::new(disk(5 << 20));
    let sent = Arc::clone(&bytes);
    let server = Server::start(move |_, asked| file(asked, &sent, "\"1\"", usize::MAX));
    for checksum in [None, Some(sha512(&bytes)), Some(sha256(&bytes))] {
        let stored = fetch(&server.url("/a.img"), checksum.as_deref(), &dest).await.unwrap();
        assert_eq!(std::fs::read(&dest).unwrap(), *bytes);
        assert_eq!((stored.len, stored.sha512), (5 << 20, sha512(&bytes)));
        assert!(
            stored.allocated < 4 << 20,
            "a third of it is zeroes, {} bytes are allocated",
            stored.allocated
        );
    }
    let error = fetch(&server.url("/a.img"), Some(&"0".repeat(128)), &dest).await.unwrap_err();
    assert!(error.starts_with("the checksum is wrong: 0000"), "{error}");
    assert!(!part_path(&dest).exists() && !state_path(&dest).exists());
}

#[tokio::test]
async fn a_broken_transfer_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let bytes = Arc::new(disk(5 << 20));
    let sent = Arc::clone(&bytes);
    let server = Server::start(move |_, asked| file(asked, &sent, "\"1\"", 1 << 20));
    fetch(&server.url("/a.img"), None, &dest).await.unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), *bytes);
    let offsets: Vec<usize> = server.asked().iter().map(|asked| asked.offset() >> 20).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4], "each attempt brings a piece");
}

#[tokio::test]
async fn another_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let bytes = Arc::new(disk(3 << 20));
    let sent = Arc::clone(&bytes);
    // Breaks off, then is gone for longer than anyone is patient; then it is back.
    let server = Server::start(move |n, asked| match n {
        0 => file(asked, &sent, "\"1\"", 2 << 20),
        1..4 => status("503 Service Unavailable"),
        _ => file(asked, &sent, "\"1\"", usize::MAX),
    });
    let error = fetch(&server.url("/a.img"), None, &dest).await.unwrap_err();
    assert_eq!(error, format!("HTTP 503 Service Unavailable from {}", server.url("/a.img")));
    fetch(&server.url("/a.img"), None, &dest).await.unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), *bytes);
    assert_eq!(server.asked().last().unwrap().offset(), 2 << 20);
}

#[tokio::test]
async fn a_changed_file_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let (old, new) = (disk(3 << 20), vec![7; 2 << 20]);
    let expected = new.clone();
    let server = Server::start(move |n, asked| match n {
        0 => file(asked, &old, "\"old\"", 1 << 20),
        _ => file(asked, &new, "\"new\"", usize::MAX),
    });
    fetch(&server.url("/a.img"), None, &dest).await.unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), expected);
    assert_eq!(server.asked()[1].header("if-range"), Some("\"old\""));
}

#[tokio::test]
async fn pieces_that_do_not_fit_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let (old, new) = (vec![1; 3 << 20], disk(3 << 20));
    let sum = sha512(&new);
    let expected = new.clone();
    // The file changes, and the server claims that it does not.
    let server = Server::start(move |n, asked| match n {
        0 => file(asked, &old, "\"1\"", 1 << 20),
        _ => file(asked, &new, "\"1\"", usize::MAX),
    });
    fetch(&server.url("/a.img"), Some(&sum), &dest).await.unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), expected);
    assert_eq!(server.asked().iter().map(|asked| asked.offset()).collect::<Vec<_>>(), [0, 1 << 20, 0]);
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = disk(1 << 20);
    let server = Server::start(move |n, asked| match asked.target.as_str() {
        "/moved" => head("302 Found", &[("Location", "there/a.img"), ("Content-Length", "0")]),
        "/there/a.img" => file(asked, &bytes, "\"1\"", usize::MAX),
        "/out" => {
            head("301 Moved Permanently", &[("Location", "file:///etc/passwd"), ("Content-Length", "0")])
        }
        _ => head("302 Found", &[("Location", &format!("/loop{n}")), ("Content-Length", "0")]),
    });
    fetch(&server.url("/moved"), None, &dir.path().join("a")).await.unwrap();
    let error = fetch(&server.url("/loop"), None, &dir.path().join("b")).await.unwrap_err();
    assert!(error.contains("/loop redirects, but it was the redirect number 11 in a row"), "{error}");
    let error = fetch(&server.url("/out"), None, &dir.path().join("c")).await.unwrap_err();
    assert!(error.contains("is no http or https address"), "{error}");
}

#[tokio::test]
async fn failures_have_words() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let page = b"<!DOCTYPE html><html><body>Please accept our terms</body></html>".repeat(9);
    let server = Server::start(move |_, asked| match asked.target.as_str() {
        "/page" => file(asked, &page, "\"1\"", usize::MAX),
        "/packed" => file(asked, &[&[0x1f, 0x8b, 8], &[9; 5000][..]].concat(), "\"1\"", usize::MAX),
        "/gone" => status("404 Not Found"),
        "/rude" => b"SMTP ready\r\n\r\n".to_vec(),
        "/encoded" => head("200 OK", &[("Content-Encoding", "gzip"), ("Content-Length", "0")]),
        _ => status("403 Forbidden"),
    });
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/x", listener.local_addr().unwrap())
    };
    for (url, text) in [
        (server.url("/page"), "this looks like an HTML page, not a disk image"),
        (server.url("/packed"), "this is a gzip file"),
        (server.url("/gone"), "HTTP 404 Not Found from http://127.0.0.1:"),
        (server.url("/secret?token=1"), "/secret"),
        (server.url("/rude"), "broke off"),
        (server.url("/encoded"), "compressed (Content-Encoding: gzip)"),
        (nobody, "Connection refused"),
        ("http://user:secret@localhost:1/x".to_owned(), "cannot connect to http://localhost:1/x"),
        ("ftp://h/x".to_owned(), "\"ftp://h/x\" is not a valid http or https address"),
        ("nonsense".to_owned(), "is not a valid http or https address"),
        (String::new(), "is not a valid http or https address"),
    ] {
        let error = fetch(&url, None, &dest).await.unwrap_err();
        assert!(error.contains(text), "{url}: {error:?} does not say {text:?}");
        assert!(!error.contains("token=1"), "{error}");
        assert!(!dest.exists());
        discard(&dest);
    }
}

#[tokio::test]
async fn a_stalled_server_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    // Accepts by its backlog, and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let mut fetcher = fetcher();
    fetcher.waits.stall = Duration::from_millis(20);
    let source = Source { url, checksum: None, checksum_header: None };
    let progress = watch::Sender::new(Progress::default());
    let error = fetcher.fetch(&source, &dir.path().join("x"), &progress).await.unwrap_err();
    assert!(error.to_string().starts_with("waited too long for an answer of http://127.0.0.1"), "{error}");
}

#[tokio::test]
async fn the_servers_own_checksum_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let bytes = disk(1 << 20);
    let sum = sha512(&bytes);
    let server = Server::start(move |n, _| {
        let len = bytes.len().to_string();
        let told = if n == 0 { "1".repeat(128) } else { sum.clone() };
        let mut out = head("200 OK", &[("Content-Length", &len), ("X-Sum", &told)]);
        out.extend(&bytes);
        out
    });
    let name = http::HeaderName::from_static("x-sum");
    let source = Source { url: server.url("/"), checksum: None, checksum_header: Some(name) };
    let progress = watch::Sender::new(Progress::default());
    let error = fetcher().fetch(&source, &dest, &progress).await.unwrap_err();
    assert!(error.to_string().starts_with("the checksum is wrong"), "{error}");
    fetcher().fetch(&source, &dest, &progress).await.unwrap();
    assert_eq!(progress.borrow().percent(), 99);
}
