//! Reading JSON bodies so that a key that comes twice is noticed, as `fieldValidation: Strict` asks.
//!
//! The last value of a repeated key wins, as in Go. Depth is bounded by the JSON parser (128 levels), size by the
//! server.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::status::Status;

mod quick;

/// Most duplicates that are reported.
pub const MAX_REPORTED: usize = 100;

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The value.
    pub value: Value,
    /// Paths of fields that came more than once (`spec.x`), each once, at most [`MAX_REPORTED`].
    pub duplicates: Vec<String>,
}

/// The body is no JSON. The text names line and column.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// Reads a JSON body.
pub fn parse(body: &[u8]) -> Result<Parsed, ParseError> {
    if let Some(value) = std::str::from_utf8(body).ok().and_then(quick::read) {
        return Ok(Parsed { value, duplicates: Vec::new() });
    }
    // Where a key came twice is only looked for if one did: following the paths costs more than reading does.
    let twice = Cell::new(false);
    let value = read(body, Plain { twice: &twice })?;
    if !twice.get() {
        return Ok(Parsed { value, duplicates: Vec::new() });
    }
    let state = State::default();
    let value = read(body, Seed { state: &state })?;
    Ok(Parsed { value, duplicates: state.duplicates.into_inner() })
}

fn read<'de>(body: &'de [u8], seed: impl DeserializeSeed<'de, Value = Value>) -> Result<Value, ParseError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = seed.deserialize(&mut deserializer).map_err(|e| ParseError(e.to_string()))?;
    deserializer.end().map_err(|e| ParseError(e.to_string()))?;
    Ok(value)
}

/// The 400 of a strict request: unknown and duplicate fields by name. `None` if there are none.
pub fn decoding_error(
    kind: &str,
    version: &str,
    unknown: &[String],
    duplicates: &[String],
) -> Option<Status> {
    let problems = problems(unknown, duplicates);
    if problems.is_empty() {
        return None;
    }
    Some(Status::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
        problems.join(", ")
    )))
}

/// `unknown field "spec.x"`, `duplicate field "spec.y"`: the texts of warnings when `fieldValidation` is `Warn`.
pub fn problems(unknown: &[String], duplicates: &[String]) -> Vec<String> {
    let mut out: Vec<String> = duplicates.iter().map(|f| format!("duplicate field \"{f}\"")).collect();
    out.extend(unknown.iter().map(|f| format!("unknown field \"{f}\"")));
    out
}

/// The sentences of [`problems`] for a body in which keys came twice, in the order in which a reader comes upon what is
/// wrong. Unknown fields that the body does not have come last.
pub fn problems_in_order(body: &[u8], unknown: &[String]) -> Vec<String> {
    let state = State { wanted: unknown.to_vec(), ..State::default() };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    // It was read before.
    let _ = (Seed { state: &state }).deserialize(&mut deserializer);
    let mut found = state.found.into_inner();
    let missing: Vec<String> = problems(unknown, &[]).into_iter().filter(|p| !found.contains(p)).collect();
    found.extend(missing);
    found
}

/// What both visitors make of values without parts.
macro_rules! scalars {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }
        fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
            Ok(Value::Bool(v))
        }
        fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
            Ok(Value::Number(v.into()))
        }
        fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
            Ok(Value::Number(v.into()))
        }
        fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
            Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
        }
        fn visit_str<E>(self, v: &str) -> Result<Value, E> {
            Ok(Value::String(v.to_owned()))
        }
        fn visit_string<E>(self, v: String) -> Result<Value, E> {
            Ok(Value::String(v))
        }
        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
    };
}

/// Reads, and notices that a key came twice.
#[derive(Clone, Copy)]
struct Plain<'a> {
    twice: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Value;

    scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(v) = seq.next_element_seed(self)? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.insert(key, map.next_value_seed(self)?).is_some() {
                self.twice.set(true);
            }
        }
        Ok(Value::Object(out))
    }
}

#[derive(Default)]
struct State {
    path: RefCell<String>,
    duplicates: RefCell<Vec<String>>,
    /// Paths whose place in the order is asked for.
    wanted: Vec<String>,
    /// Sentences on these and on duplicates, in order.
    found: RefCell<Vec<String>>,
}

impl State {
    fn enter(&self, key: &str) -> usize {
        let mut path = self.path.borrow_mut();
        let len = path.len();
        if len > 0 {
            path.push('.');
        }
        path.push_str(key);
        if self.wanted.contains(&*path) {
            self.found.borrow_mut().push(format!("unknown field \"{path}\""));
        }
        len
    }
    fn enter_index(&self, index: usize) -> usize {
        let mut path = self.path.borrow_mut();
        let len = path.len();
        let _ = write!(path, "[{index}]");
        len
    }
    fn leave(&self, len: usize) {
        self.path.borrow_mut().truncate(len);
    }
    fn report(&self) {
        let mut all = self.duplicates.borrow_mut();
        let path = self.path.borrow();
        if all.len() < MAX_REPORTED && !all.contains(&*path) {
            all.push(path.clone());
            self.found.borrow_mut().push(format!("duplicate field \"{path}\""));
        }
    }
}

struct Seed<'a> {
    state: &'a State,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let len = self.state.enter_index(out.len());
            let next = seq.next_element_seed(Seed { state: self.state })?;
            self.state.leave(len);
            match next {
                Some(v) => out.push(v),
                None => return Ok(Value::Array(out)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let len = self.state.enter(&key);
            if out.contains_key(&key) {
                self.state.report();
            }
            let value = map.next_value_seed(Seed { state: self.state })?;
            self.state.leave(len);
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}
