//! The walk of a message along the table, and the messages that JSON writes in a way of their own.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value, json};

use super::{
    DecodeError, MAX_DEPTH, MAX_VALUES,
    table::{Field, Many, Table, Type},
    wire::{Raw, Reader, WireError},
};

/// What surrounds every object.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) object: &'a [u8],
    pub(super) encoding: String,
    pub(super) content_type: String,
}

/// Reads the message `Unknown`.
pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let mut out = Envelope::default();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match number {
            1 => {
                let mut reader = Reader(raw.bytes()?);
                while let Some((number, raw)) = reader.field()? {
                    match number {
                        1 => out.api_version = text(raw, "apiVersion")?,
                        2 => out.kind = text(raw, "kind")?,
                        _ => {}
                    }
                }
            }
            2 => out.object = raw.bytes()?,
            3 => out.encoding = text(raw, "contentEncoding")?,
            4 => out.content_type = text(raw, "contentType")?,
            _ => {}
        }
    }
    Ok(out)
}

/// Reads a message.
pub(super) fn message(table: &Table, index: u16, bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    let mut out = Map::new();
    Walk { table, values: 0 }.message(index, bytes, 1, &mut out)?;
    Ok(out)
}

struct Walk<'t> {
    table: &'t Table,
    values: usize,
}

impl Walk<'_> {
    fn count(&mut self) -> Result<(), DecodeError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(DecodeError::TooMany) } else { Ok(()) }
    }

    /// Reads the fields of a message into `out`, which an earlier part of the same message may have begun. `depth`:
    /// that of `out`, from one.
    fn message(
        &mut self,
        index: u16,
        bytes: &[u8],
        depth: usize,
        out: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        let message = self.table.message(index)?;
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            if let Some(field) = message.field(number) {
                self.field(field, raw, depth, out)?;
            }
        }
        for field in message.fields().iter().filter(|f| f.keep && f.many != Many::One) {
            if !out.contains_key(field.name) {
                self.count()?;
                let empty = if field.many == Many::List { json!([]) } else { json!({}) };
                out.insert(field.name.into(), empty);
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        raw: Raw<'_>,
        depth: usize,
        out: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let name = field.name;
        match field.many {
            Many::One => {
                if let Type::Message(index) = field.ty {
                    if name.is_empty() {
                        // The depth grows although the JSON does not: a message that holds itself must not go on for ever.
                        return self.message(index, raw.bytes()?, depth + 1, out);
                    }
                    self.count()?;
                    let slot = out.entry(name).or_insert_with(|| json!({}));
                    let Value::Object(inner) = slot else { return Err(WireError::Mismatch.into()) };
                    return self.message(index, raw.bytes()?, depth + 1, inner);
                }
                let value = self.value(field, raw, depth + 1)?;
                if value.is_null() || (!field.keep && is_zero(field.ty, &value)) {
                    out.remove(name);
                } else {
                    out.insert(name.into(), value);
                }
            }
            Many::List => {
                let mut packed = match (field.ty, raw) {
                    (Type::Int32 | Type::Int64 | Type::Bool, Raw::Bytes(bytes)) => Some(Reader(bytes)),
                    _ => None,
                };
                let mut items = Vec::new();
                match &mut packed {
                    Some(reader) => {
                        while !reader.0.is_empty() {
                            items.push(self.value(field, Raw::Varint(reader.varint()?), depth + 2)?);
                        }
                    }
                    None => items.push(self.value(field, raw, depth + 2)?),
                }
                match out.entry(name).or_insert_with(|| json!([])) {
                    Value::Array(list) => list.append(&mut items),
                    _ => return Err(WireError::Mismatch.into()),
                }
            }
            Many::Map => {
                let (mut key, mut value) = (String::new(), None);
                let mut reader = Reader(raw.bytes()?);
                while let Some((number, raw)) = reader.field()? {
                    match number {
                        1 => key = text(raw, name)?,
                        2 => value = Some(self.value(field, raw, depth + 2)?),
                        _ => {}
                    }
                }
                let value = match value {
                    Some(value) => value,
                    None => self.value(field, zero(field.ty), depth + 2)?,
                };
                match out.entry(name).or_insert_with(|| json!({})) {
                    Value::Object(map) => drop(map.insert(key, value)),
                    _ => return Err(WireError::Mismatch.into()),
                }
            }
        }
        Ok(())
    }

    /// One value; null where it means "not set".
    fn value(&mut self, field: &Field, raw: Raw<'_>, depth: usize) -> Result<Value, DecodeError> {
        self.count()?;
        let unsayable = || DecodeError::NotJson(field.name.into());
        Ok(match field.ty {
            Type::String => Value::String(text(raw, field.name)?),
            Type::Bool => Value::Bool(raw.varint()? != 0),
            Type::Int32 => int32(raw)?.into(),
            Type::Int64 => raw.varint()?.cast_signed().into(),
            Type::Double => Value::Number(Number::from_f64(raw.double()?).ok_or_else(unsayable)?),
            Type::Bytes => Value::String(STANDARD.encode(raw.bytes()?)),
            Type::Message(index) => {
                let mut inner = Map::new();
                self.message(index, raw.bytes()?, depth, &mut inner)?;
                Value::Object(inner)
            }
            Type::Quantity => {
                let given = first(raw)?.map(|raw| text(raw, field.name)).transpose()?.unwrap_or_default();
                Value::String(if given.is_empty() { "0".into() } else { given })
            }
            Type::Time => time(raw.bytes()?, 0).ok_or_else(unsayable)?,
            Type::MicroTime => time(raw.bytes()?, 6).ok_or_else(unsayable)?,
            Type::IntOrString => int_or_string(raw.bytes()?, field.name)?,
            Type::Json => {
                let bytes = first(raw)?.map(Raw::bytes).transpose()?.unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(Value::Null);
                }
                let value: Value = serde_json::from_slice(bytes).map_err(|_| unsayable())?;
                if depth + levels(&value) > MAX_DEPTH {
                    return Err(DecodeError::TooDeep);
                }
                value
            }
            Type::Strings => {
                let mut list = Vec::new();
                let mut reader = Reader(raw.bytes()?);
                while let Some((number, raw)) = reader.field()? {
                    if number == 1 {
                        self.count()?;
                        list.push(Value::String(text(raw, field.name)?));
                    }
                }
                Value::Array(list)
            }
            Type::SchemaOrArray(index) | Type::SchemaOrBool(index) | Type::SchemaOrStrings(index) => {
                self.schema_or(field, index, raw.bytes()?, depth)?
            }
        })
    }

    /// What a schema has in place of a schema: `items: [..]`, `additionalProperties: true`, `dependencies: {a: [..]}`.
    fn schema_or(
        &mut self,
        field: &Field,
        index: u16,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, DecodeError> {
        let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            self.count()?;
            let mut inner = Map::new();
            match (field.ty, number) {
                (Type::SchemaOrBool(_), 1) => allows = raw.varint()? != 0,
                (Type::SchemaOrBool(_), 2) | (_, 1) => {
                    self.message(index, raw.bytes()?, depth, &mut inner)?;
                    schema = Some(Value::Object(inner));
                }
                (Type::SchemaOrArray(_), 2) => {
                    self.message(index, raw.bytes()?, depth + 1, &mut inner)?;
                    list.push(Value::Object(inner));
                }
                (Type::SchemaOrStrings(_), 2) => list.push(Value::String(text(raw, field.name)?)),
                _ => {}
            }
        }
        Ok(match (schema, field.ty) {
            (Some(schema), _) => schema,
            (None, Type::SchemaOrBool(_)) => Value::Bool(allows),
            (None, _) => Value::Array(list),
        })
    }
}

/// Whether Go's `omitempty` would leave a value out. Messages never are.
fn is_zero(ty: Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::String | Type::Bytes, Value::String(s)) => s.is_empty(),
        (Type::Bool, Value::Bool(b)) => !b,
        (Type::Int32 | Type::Int64 | Type::Double, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Type::Strings, Value::Array(list)) => list.is_empty(),
        _ => false,
    }
}

/// The value of a map's entry that has none.
fn zero(ty: Type) -> Raw<'static> {
    match ty {
        Type::Bool | Type::Int32 | Type::Int64 => Raw::Varint(0),
        Type::Double => Raw::Fixed64(0),
        _ => Raw::Bytes(&[]),
    }
}

fn text(raw: Raw<'_>, name: &str) -> Result<String, DecodeError> {
    let bytes = raw.bytes()?;
    std::str::from_utf8(bytes).map(String::from).map_err(|_| DecodeError::NotText(name.into()))
}

/// Go keeps the low 32 bits.
fn int32(raw: Raw<'_>) -> Result<i32, WireError> {
    let [a, b, c, d, ..] = raw.varint()?.to_le_bytes();
    Ok(i32::from_le_bytes([a, b, c, d]))
}

/// Field 1 of a message that has no other.
fn first(raw: Raw<'_>) -> Result<Option<Raw<'_>>, WireError> {
    let mut reader = Reader(raw.bytes()?);
    let mut out = None;
    while let Some((number, raw)) = reader.field()? {
        if number == 1 {
            out = Some(raw);
        }
    }
    Ok(out)
}

/// Midnight of the first of January of the year 1: what Go takes for no time.
const ZERO_TIME: i64 = -62_135_596_800;

/// `{1: seconds, 2: nanoseconds}`. Go writes an empty message for its zero time. `None` if there is no such time.
fn time(bytes: &[u8], digits: usize) -> Option<Value> {
    let (mut seconds, mut nanos) = (0, 0);
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field().ok()? {
        match number {
            1 => seconds = raw.varint().ok()?.cast_signed(),
            2 => nanos = int32(raw).ok()?,
            _ => {}
        }
    }
    if seconds == ZERO_TIME {
        return Some(Value::Null);
    }
    let nanos = if digits == 0 { 0 } else { nanos };
    let at = jiff::Timestamp::new(seconds, nanos).ok()?;
    // A year before 0 or after 9999 is no RFC 3339.
    let text = format!("{at:.digits$}");
    (text.len() == "2026-01-01T00:00:00Z".len() + if digits == 0 { 0 } else { digits + 1 })
        .then_some(text.into())
}

/// `{1: which, 2: int, 3: string}`.
fn int_or_string(bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    let (mut is_text, mut number, mut string) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((field, raw)) = reader.field()? {
        match field {
            1 => is_text = raw.varint()? == 1,
            2 => number = int32(raw)?,
            3 => string = text(raw, name)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// How deep a value goes. The parser that made it has a bound.
fn levels(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(levels).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}
