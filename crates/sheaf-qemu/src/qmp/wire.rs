//! QMP's messages and their framing. Pure: bytes in, messages out.
//!
//! QMP is JSON, one message to a line. A line that is not a message (garbage, or longer than the bound) is skipped
//! and counted; the next line is read as if nothing had happened.

use serde_json::{Map, Value, json};

/// The longest line that is kept. The largest known answer (`query-qmp-schema`) has about 200 KiB.
pub const LINE_MAX: usize = 4 << 20;

/// Something that happened in QEMU without being asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `SHUTDOWN`, `STOP`, `VSERPORT_CHANGE`, ...
    pub name: String,
    /// The event's own data.
    pub data: Value,
}

/// A command that QEMU refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `GenericError`, `CommandNotFound`, `DeviceNotFound`, ...
    pub class: String,
    /// QEMU's words.
    pub desc: String,
}

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first one.
    Greeting,
    /// See [`Event`].
    Event(Event),
    /// The answer to the command with this id (`None`: the command could not be read at all).
    Answer {
        /// Number of the command.
        id: Option<u64>,
        /// What came of it.
        result: Result<Value, Refusal>,
    },
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    /// The rest of the current line is dropped: it has grown beyond [`LINE_MAX`].
    skipping: bool,
    /// Lines that were no message.
    pub garbage: u64,
}

impl Decoder {
    /// Takes what was read and appends the messages it completes to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<Message>) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (body, ended) = match part.split_last() {
                Some((b'\n', body)) => (body, true),
                _ => (part, false),
            };
            if !self.skipping {
                if self.line.len() + body.len() > LINE_MAX {
                    self.skipping = true;
                    self.line = Vec::new();
                } else {
                    self.line.extend_from_slice(body);
                }
            }
            if ended {
                self.end_line(out);
            }
        }
    }

    fn end_line(&mut self, out: &mut Vec<Message>) {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            self.garbage += 1;
            return;
        }
        // The guest agent answers a resynchronisation with this byte first.
        let line: &[u8] = match line.iter().rposition(|b| *b == 0xff) {
            Some(i) => &line[i + 1..],
            None => &line,
        };
        if line.trim_ascii().is_empty() {
            return;
        }
        match serde_json::from_slice(line).ok().and_then(message) {
            Some(m) => out.push(m),
            None => self.garbage += 1,
        }
    }
}

fn message(value: Value) -> Option<Message> {
    let Value::Object(mut map) = value else { return None };
    if map.contains_key("QMP") {
        return Some(Message::Greeting);
    }
    if let Some(name) = map.get("event") {
        let name = name.as_str()?.to_string();
        return Some(Message::Event(Event { name, data: map.remove("data").unwrap_or(Value::Null) }));
    }
    let id = map.get("id").and_then(Value::as_u64);
    if let Some(result) = map.remove("return") {
        return Some(Message::Answer { id, result: Ok(result) });
    }
    let error = map.get("error")?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    Some(Message::Answer { id, result: Err(Refusal { class: text("class"), desc: text("desc") }) })
}

/// One command as a line.
pub fn command(name: &str, arguments: Option<&Value>, id: Option<u64>) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("execute".into(), json!(name));
    if let Some(a) = arguments {
        map.insert("arguments".into(), a.clone());
    }
    if let Some(id) = id {
        map.insert("id".into(), json!(id));
    }
    let mut line = Value::Object(map).to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(chunks: &[&[u8]]) -> (Vec<Message>, u64) {
        let (mut d, mut out) = (Decoder::default(), Vec::new());
        for c in chunks {
            d.feed(c, &mut out);
        }
        (out, d.garbage)
    }

    #[test]
    fn messages_split_anywhere() {
        let text = b"{\"QMP\": {}}\r\n{\"event\":\"STOP\",\"timestamp\":{}}\n{\"return\":{\"a\":1},\"id\":7}\r\n{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":8}\n";
        let want = vec![
            Message::Greeting,
            Message::Event(Event { name: "STOP".into(), data: Value::Null }),
            Message::Answer { id: Some(7), result: Ok(json!({"a": 1})) },
            Message::Answer {
                id: Some(8),
                result: Err(Refusal { class: "GenericError".into(), desc: "no".into() }),
            },
        ];
        for cut in 0..text.len() {
            let (got, garbage) = decode(&[&text[..cut], &text[cut..]]);
            assert_eq!((got, garbage), (want.clone(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn garbage_is_skipped_to_the_end_of_its_line() {
        let long = vec![b'x'; LINE_MAX + 10];
        let (got, garbage) =
            decode(&[b"nonsense\n[1]\n{\"event\":3}\n", &long, b"\n{\"return\":{},\"id\":1}\n"]);
        assert_eq!(got, vec![Message::Answer { id: Some(1), result: Ok(json!({})) }]);
        assert_eq!(garbage, 4);
    }

    proptest! {
        /// Any bytes at all: no panic, and a message after them is still read.
        #[test]
        fn survives_anything(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (got, _) = decode(&[&noise, b"\n{\"return\":{},\"id\":99}\n"]);
            prop_assert_eq!(got.last(), Some(&Message::Answer { id: Some(99), result: Ok(json!({})) }));
        }
    }
}
