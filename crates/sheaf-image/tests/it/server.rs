//! A server that does what a script says, one request per connection, and remembers what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first byte asked for.
    pub(crate) fn offset(&self) -> usize {
        let range =
            self.header("range").map(|value| value.trim_start_matches("bytes=").trim_end_matches('-'));
        range.map_or(0, |text| text.parse().unwrap())
    }
}

pub(crate) struct Server {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `script` gets the number of the request, from 0, and answers with raw bytes; the connection is closed then.
    pub(crate) fn start(script: impl Fn(usize, &Asked) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        // Lives as long as the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(request) = read(stream.as_ref().unwrap()) else { continue };
                let answer = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request.clone());
                    script(seen.len() - 1, &request)
                };
                let _ = stream.unwrap().write_all(&answer);
            }
        });
        Server { address, asked }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let target = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
        .collect();
    Some(Asked { target, headers })
}

pub(crate) fn head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

pub(crate) fn status(status: &str) -> Vec<u8> {
    head(status, &[("Content-Length", "0")])
}

/// The file from where it was asked for, as a good server sends it; cut off after `at_most` bytes.
pub(crate) fn file(asked: &Asked, bytes: &[u8], etag: &str, at_most: usize) -> Vec<u8> {
    let fits = asked.header("if-range").is_none_or(|version| version == etag);
    let offset = if fits { asked.offset() } else { 0 };
    let rest = &bytes[offset..];
    let len = rest.len().to_string();
    let mut out = if offset > 0 {
        let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
        head("206 Partial Content", &[("Content-Length", &len), ("Content-Range", &range), ("ETag", etag)])
    } else {
        head("200 OK", &[("Content-Length", &len), ("ETag", etag)])
    };
    out.extend(&rest[..rest.len().min(at_most)]);
    out
}
