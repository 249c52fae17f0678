//! URLs: absolute ones and absolute paths, as Go's `url.ParseRequestURI` takes them.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Key, Outcome, Value};

/// A URL, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

const PART: &[&str] = &[".url -> string"];

pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "url", overloads: &["string -> url"], cost: Cost::Traverse(0, 1.0), call: url },
    Function { name: "isURL", overloads: &["string -> bool"], cost: Cost::One, call: is_url },
    Function {
        name: "getScheme",
        overloads: PART,
        cost: Cost::One,
        call: |_, a| part(a, |u| u.scheme.clone()),
    },
    Function { name: "getHost", overloads: PART, cost: Cost::One, call: |_, a| part(a, |u| u.host.clone()) },
    Function {
        name: "getHostname",
        overloads: PART,
        cost: Cost::One,
        call: |_, a| part(a, |u| u.hostname().to_owned()),
    },
    Function {
        name: "getPort",
        overloads: PART,
        cost: Cost::One,
        call: |_, a| part(a, |u| u.port().to_owned()),
    },
    Function {
        name: "getEscapedPath",
        overloads: PART,
        cost: Cost::One,
        call: |_, a| part(a, Url::escaped_path),
    },
    Function {
        name: "getQuery",
        overloads: &[".url -> map(string, list(string))"],
        cost: Cost::One,
        call: query,
    },
];

impl Url {
    /// Reads a URL; the error says why it is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fail = |why: &str| format!("parse {text:?}: {why}");
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(fail("net/url: invalid control character in URL"));
        }
        if text.is_empty() {
            return Err(fail("empty url"));
        }
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = scheme(rest).ok_or_else(|| fail("missing protocol scheme"))?;
        if scheme.is_empty() && !rest.starts_with('/') {
            return Err(fail("invalid URI for request"));
        }
        // An opaque URL (`mailto:a@b`) has no path to ask for.
        if !rest.starts_with('/') {
            return Err(fail("invalid URI for request"));
        }
        let (authority, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
            Some(after) => match after.find('/') {
                Some(i) => after.split_at(i),
                None => (after, ""),
            },
            None => ("", rest),
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if !valid_host(host) {
            return Err(fail("invalid host"));
        }
        if !valid_escapes(path) {
            return Err(fail("invalid URL escape"));
        }
        Ok(Self {
            text: text.to_owned(),
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        })
    }
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn hostname(&self) -> &str {
        match self.host.strip_prefix('[').and_then(|h| h.split_once(']')) {
            Some((inside, _)) => inside,
            None => self.host.split(':').next().unwrap_or(""),
        }
    }
    fn port(&self) -> &str {
        let after = self.host.rsplit_once(']').map_or(self.host.as_str(), |(_, after)| after);
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }
    /// The path with everything escaped that has no place in a path.
    fn escaped_path(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for b in self.path.bytes() {
            if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%".contains(&b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }
}

/// The scheme, if there is one, and the rest. `None` where a colon stands in the first place.
fn scheme(text: &str) -> Option<(&str, &str)> {
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i > 0 => return Some((&text[..i], &text[i + 1..])),
            b':' => return None,
            _ => break,
        }
    }
    Some(("", text))
}

fn valid_host(host: &str) -> bool {
    let port_fits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let Some((inside, after)) = rest.split_once(']') else { return false };
        let port = after.strip_prefix(':');
        return !inside.is_empty() && (after.is_empty() || port.is_some_and(port_fits));
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let plain = |b: u8| !(b.is_ascii_control() || b" <>\"`{}|\\^[]%".contains(&b));
    name.bytes().all(plain) && port_fits(port)
}

fn valid_escapes(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'%')
        .all(|(i, _)| bytes.get(i + 1..i + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

/// Decodes a key or value of a query; `None` if an escape is broken.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

fn url<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(EvalError::NoOverload) };
    Url::parse(s)
        .map(|u| Value::Url(Rc::new(u)))
        .map_err(|why| EvalError::other(format!("URL parse error during conversion from string: {why}")))
}

fn is_url<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(EvalError::NoOverload) };
    Ok(Value::Bool(Url::parse(s).is_ok()))
}

fn part<'a>(args: &[Value<'a>], f: fn(&Url) -> String) -> Outcome<'a> {
    match args {
        [Value::Url(url)] => Ok(Value::string(f(url))),
        _ => Err(EvalError::NoOverload),
    }
}

fn query<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Url(url)] = args else { return Err(EvalError::NoOverload) };
    let mut all: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
    let query = url.query.split('#').next().unwrap_or("");
    for pair in query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescape(key), unescape(value)) {
            all.entry(Key::String(key)).or_default().push(Value::string(value));
        }
    }
    Ok(Value::map(all.into_iter().map(|(k, v)| (k, Value::list(v))).collect()))
}
