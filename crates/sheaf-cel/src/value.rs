//! Values while an expression runs: views of JSON by their declaration, or built by the expression itself.
//!
//! JSON is never copied: a list or map of the object is a reference with the declaration that says how its items are to
//! be read, and an item becomes a value when it is looked at.

use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map as JsonMap, Number, Value as Json};
use sheaf_meta::quantity::Quantity;
use sheaf_meta::times;

use crate::authorizer::Authz;
use crate::libs::net::{Cidr, Ip};
use crate::libs::semver::Semver;
use crate::libs::url::Url;
use crate::types::{Decl, ListKind, Object, Opaque, Shape};

/// Why an expression has no result. The sentences are those that Kubernetes' users see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// No function of the name takes these values.
    #[error("no such overload")]
    NoOverload,
    /// A map or object lacks the key.
    #[error("no such key: {0}")]
    NoKey(String),
    /// A list has no such index.
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    /// A whole number leaves its 64 bits.
    #[error("{0} overflow")]
    Overflow(&'static str),
    /// Division by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// Modulus by zero.
    #[error("modulus by zero")]
    ModulusByZero,
    /// The expression has used up what it may cost.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl EvalError {
    pub(crate) fn other(message: impl Into<String>) -> Self {
        EvalError::Other(message.into())
    }
}

pub(crate) type Outcome<'a> = Result<Value<'a>, EvalError>;

/// What may still be looked at, item by item. Upstream's costs count the size of what is compared at the top only, so
/// that a cheap expression could compare for hours; this counts everything.
#[derive(Debug)]
pub(crate) struct Fuel(Cell<u64>);

impl Fuel {
    pub(crate) fn new(units: u64) -> Self {
        Self(Cell::new(units))
    }
    /// Takes some. `false` if there is none left; what was asked has no answer then.
    pub(crate) fn burn(&self, units: u64) -> bool {
        let left = self.0.get().checked_sub(units);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.get() == 0
    }
}

/// A text of the object, or one that the expression made.
#[derive(Clone)]
pub enum Text<'a> {
    /// Of the object or the expression.
    Borrowed(&'a str),
    /// Made while running.
    Owned(Rc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(s) => s,
            Text::Owned(s) => s,
        }
    }
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number with sign.
    Int(i64),
    /// A whole number without sign.
    Uint(u64),
    /// A number.
    Double(f64),
    /// A text.
    String(Text<'a>),
    /// Bytes.
    Bytes(Rc<[u8]>),
    /// A moment.
    Timestamp(Timestamp),
    /// A span of time, in nanoseconds.
    Duration(i64),
    /// A list.
    List(List<'a>),
    /// A map or an object.
    Map(Map<'a>),
    /// A type.
    Type(Cow<'static, str>),
    /// `optional.of(x)` or `optional.none()`.
    Optional(Option<Rc<Value<'a>>>),
    /// A value of Kubernetes' libraries.
    Url(Rc<Url>),
    /// An IP address.
    Ip(Ip),
    /// A range of addresses.
    Cidr(Cidr),
    /// A quantity.
    Quantity(Quantity),
    /// A version.
    Semver(Rc<Semver>),
    /// A named format.
    Format(&'static str),
    /// An authorizer, or what is being asked of it.
    Authz(Rc<Authz<'a>>),
}

/// A list.
#[derive(Clone)]
pub enum List<'a> {
    /// Of the object.
    Json(&'a [Json], &'a Decl, &'a ListKind),
    /// Made while running.
    Owned(Rc<Vec<Value<'a>>>),
}

/// A map or an object.
#[derive(Clone)]
pub enum Map<'a> {
    /// Keys are data; the declaration is that of the values.
    Json(&'a JsonMap<String, Json>, &'a Decl),
    /// Fields are declared.
    Object(&'a JsonMap<String, Json>, &'a Object),
    /// Made while running.
    Owned(Rc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map that an expression made. Whole numbers of all types are one kind of key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `true`, `false`.
    Bool(bool),
    /// `int`, `uint`, and doubles that are whole.
    Number(i128),
    /// A text.
    String(String),
}

impl Key {
    pub(crate) fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Number(i128::from(*n)),
            Value::Uint(n) => Key::Number(i128::from(*n)),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 2e19 => Key::Number(*d as i128),
            Value::String(s) => Key::String(s.to_string()),
            _ => return None,
        })
    }
    fn value<'a>(&self) -> Value<'a> {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Number(n) => i64::try_from(*n).map_or(Value::Uint(*n as u64), Value::Int),
            Key::String(s) => Value::string(s.as_str()),
        }
    }
}

fn dynamic() -> &'static Decl {
    static DECL: OnceLock<Decl> = OnceLock::new();
    DECL.get_or_init(|| Decl::new(Shape::Dyn))
}

fn number<'a>(n: &Number) -> Value<'a> {
    n.as_i64().map_or_else(|| Value::Double(n.as_f64().unwrap_or(f64::NAN)), Value::Int)
}

/// A number where the schema wants a whole one, which `2.0` is too.
fn whole<'a>(n: &Number) -> Value<'a> {
    match number(n) {
        Value::Double(d) if d.fract() == 0.0 && d.abs() < 9.2e18 => Value::Int(d as i64),
        other => other,
    }
}

impl<'a> Value<'a> {
    /// A text that the value owns.
    pub fn string(text: impl AsRef<str>) -> Self {
        Value::String(Text::Owned(Rc::from(text.as_ref())))
    }
    /// A list that the value owns.
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Owned(Rc::new(items)))
    }
    /// A map that the value owns.
    pub fn map(entries: BTreeMap<Key, Value<'a>>) -> Self {
        Value::Map(Map::Owned(Rc::new(entries)))
    }
    /// `optional.of(value)` or `optional.none()`.
    pub fn optional(value: Option<Value<'a>>) -> Self {
        Value::Optional(value.map(Rc::new))
    }
    pub(crate) fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Rc::new(value)))
    }
    /// JSON as an undeclared value.
    pub fn dynamic(json: &'a Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => number(n),
            Json::String(s) => Value::String(Text::Borrowed(s)),
            Json::Array(list) => Value::List(List::Json(list, dynamic(), &ListKind::Atomic)),
            Json::Object(map) => Value::Map(Map::Json(map, dynamic())),
        }
    }

    /// JSON as the declaration says.
    pub fn from_json(json: &'a Json, decl: &'a Decl) -> Result<Self, EvalError> {
        if json.is_null() {
            if decl.nullable || matches!(decl.shape, Shape::Dyn) {
                return Ok(Value::Null);
            }
            return Err(EvalError::other("invalid data, got null for schema with nullable=false"));
        }
        Ok(match (&decl.shape, json) {
            (Shape::Dyn, json) => Value::dynamic(json),
            (Shape::Bool, Json::Bool(b)) => Value::Bool(*b),
            (Shape::Int, Json::Number(n)) => whole(n),
            (Shape::Double, Json::Number(n)) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Shape::IntOrString, Json::Number(n)) => number(n),
            (Shape::String | Shape::IntOrString, Json::String(s)) => Value::String(Text::Borrowed(s)),
            (Shape::Bytes, Json::String(s)) => {
                use base64::Engine;
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(s)
                    .map_err(|e| EvalError::other(format!("Invalid byte formatted string {s}: {e}")))?;
                Value::Bytes(bytes.into())
            }
            (Shape::Date, Json::String(s)) => {
                let date: jiff::civil::Date = s
                    .parse()
                    .map_err(|e| EvalError::other(format!("Invalid date formatted string {s}: {e}")))?;
                let at =
                    date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| EvalError::other(e.to_string()))?;
                Value::Timestamp(at.timestamp())
            }
            (Shape::DateTime, Json::String(s)) => Value::Timestamp(
                times::parse_date_time(s)
                    .ok_or_else(|| EvalError::other(format!("Invalid date-time formatted string {s}")))?,
            ),
            (Shape::Duration, Json::String(s)) => Value::Duration(
                times::parse_loose_duration(s)
                    .ok_or_else(|| EvalError::other(format!("Invalid duration formatted string {s}")))?,
            ),
            (Shape::List(items, kind), Json::Array(list)) => Value::List(List::Json(list, items, kind)),
            (Shape::Map(values), Json::Object(map)) => Value::Map(Map::Json(map, values)),
            (Shape::Object(object), Json::Object(map)) => Value::Map(Map::Object(map, object)),
            (shape, json) => {
                let wanted = match shape {
                    Shape::Object(_) | Shape::Map(_) => "object",
                    Shape::List(..) => "array",
                    Shape::Bool => "boolean",
                    Shape::Int => "integer",
                    Shape::Double => "number",
                    Shape::IntOrString => {
                        return Err(EvalError::other(format!(
                            "invalid data for XIntOrString value, got: {json}"
                        )));
                    }
                    _ => "string",
                };
                return Err(EvalError::other(format!(
                    "invalid data, expected a value of type {wanted}, got {json}"
                )));
            }
        })
    }

    /// The name of the value's type, as `type()` gives it.
    pub(crate) fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(Map::Object(_, object)) => return Cow::Owned(object.name.clone()),
            Value::Map(_) => "map",
            Value::Type(_) => "type",
            Value::Optional(_) => "optional_type",
            Value::Url(_) => Opaque::Url.name(),
            Value::Ip(_) => Opaque::Ip.name(),
            Value::Cidr(_) => Opaque::Cidr.name(),
            Value::Quantity(_) => Opaque::Quantity.name(),
            Value::Semver(_) => Opaque::Semver.name(),
            Value::Format(_) => Opaque::Format.name(),
            Value::Authz(authz) => authz.opaque().name(),
        })
    }

    /// Characters, bytes, items, entries; 1 for what has no size.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(s) => s.chars().count() as u64,
            Value::Bytes(b) => b.len() as u64,
            Value::List(l) => l.len() as u64,
            Value::Map(m) => m.len() as u64,
            Value::Ip(ip) => ip.size(),
            Value::Cidr(cidr) => cidr.size(),
            _ => 1,
        }
    }

    /// Whether the value is what `optional.ofNonZeroValue` takes for nothing.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(n) => *n == 0,
            Value::Uint(n) => *n == 0,
            Value::Double(n) => *n == 0.0,
            Value::Duration(n) => *n == 0,
            Value::Timestamp(t) => *t == Timestamp::UNIX_EPOCH,
            Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => self.size() == 0,
            Value::Optional(inner) => inner.is_none(),
            _ => false,
        }
    }

    /// Numbers of all types compare by value.
    pub(crate) fn compare_numbers(&self, other: &Value<'_>) -> Option<Ordering> {
        fn whole(v: &Value<'_>) -> Option<i128> {
            match v {
                Value::Int(n) => Some(i128::from(*n)),
                Value::Uint(n) => Some(i128::from(*n)),
                _ => None,
            }
        }
        match (self, other) {
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Double(a), b) => compare_double(*a, whole(b)?),
            (a, Value::Double(b)) => compare_double(*b, whole(a)?).map(Ordering::reverse),
            (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
        }
    }

    pub(crate) fn is_number(&self) -> bool {
        matches!(self, Value::Int(_) | Value::Uint(_) | Value::Double(_))
    }

    /// Order, where there is one.
    pub(crate) fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            (Value::Quantity(a), Value::Quantity(b)) => Some(a.cmp(b)),
            (Value::Semver(a), Value::Semver(b)) => Some(a.compare(b)),
            (a, b) => a.compare_numbers(b),
        }
    }

    /// Equality over all types; different types are unequal, not an error. Without fuel, nothing is equal.
    pub(crate) fn equals(&self, other: &Value<'_>, fuel: &Fuel) -> bool {
        if !fuel.burn(1) {
            return false;
        }
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) => **a == **b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::List(a), Value::List(b)) => a.equals(b, fuel),
            (Value::Map(a), Value::Map(b)) => a.equals(b, fuel),
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Optional(a), Value::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b, fuel),
                (None, None) => true,
                _ => false,
            },
            (Value::Url(a), Value::Url(b)) => a == b,
            (Value::Ip(a), Value::Ip(b)) => a == b,
            (Value::Cidr(a), Value::Cidr(b)) => a == b,
            (Value::Quantity(a), Value::Quantity(b)) => a == b,
            (Value::Semver(a), Value::Semver(b)) => a.compare(b).is_eq(),
            (Value::Format(a), Value::Format(b)) => a == b,
            (a, b) => a.compare_numbers(b).is_some_and(Ordering::is_eq),
        }
    }
}

fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Beyond this no 64-bit number lies.
    if a.abs() >= 2e19 {
        return Some(if a > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let whole = a.trunc();
    Some((whole as i128).cmp(&b).then(a.fract().partial_cmp(&0.0)?))
}

impl<'a> List<'a> {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            List::Json(list, ..) => list.len(),
            List::Owned(list) => list.len(),
        }
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// An item.
    pub fn get(&self, index: usize) -> Option<Outcome<'a>> {
        match self {
            List::Json(list, decl, _) => list.get(index).map(|json| Value::from_json(json, decl)),
            List::Owned(list) => list.get(index).cloned().map(Ok),
        }
    }
    /// The items.
    pub fn iter(&self) -> impl Iterator<Item = Outcome<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
    pub(crate) fn kind(&self) -> &'a ListKind {
        match self {
            List::Json(_, _, kind) => kind,
            List::Owned(_) => &ListKind::Atomic,
        }
    }
    pub(crate) fn contains(&self, value: &Value<'_>, fuel: &Fuel) -> bool {
        self.iter().any(|item| item.is_ok_and(|i| i.equals(value, fuel)))
    }

    /// The items as keys, if all can be.
    fn as_keys(&self, fuel: &Fuel) -> Option<BTreeSet<Key>> {
        fuel.burn(self.len() as u64);
        self.iter().map(|item| Key::of(&item.ok()?)).collect()
    }
    fn within(&self, other: &List<'_>, fuel: &Fuel) -> bool {
        self.iter().all(|i| i.is_ok_and(|i| other.contains(&i, fuel)))
    }

    fn equals(&self, other: &List<'_>, fuel: &Fuel) -> bool {
        if self.len() != other.len() {
            return false;
        }
        match (self.kind(), other.kind()) {
            (ListKind::Set, _) | (_, ListKind::Set) => match (self.as_keys(fuel), other.as_keys(fuel)) {
                (Some(a), Some(b)) => a == b,
                _ => self.within(other, fuel) && other.within(self, fuel),
            },
            (ListKind::Map(keys), _) | (_, ListKind::Map(keys)) => {
                let theirs: BTreeMap<_, _> =
                    other.iter().filter_map(Result::ok).map(|v| (identity(&v, keys), v)).collect();
                self.iter().all(|mine| {
                    mine.is_ok_and(|m| theirs.get(&identity(&m, keys)).is_some_and(|t| t.equals(&m, fuel)))
                })
            }
            _ => self.iter().zip(other.iter()).all(|(a, b)| match (a, b) {
                (Ok(a), Ok(b)) => a.equals(&b, fuel),
                _ => false,
            }),
        }
    }

    /// `a + b`: sets are joined, lists with keys are merged, others are put one after the other.
    pub(crate) fn concat(&self, other: &List<'a>, fuel: &Fuel) -> Outcome<'a> {
        let mut out = self.iter().collect::<Result<Vec<_>, _>>()?;
        let added = other.iter().collect::<Result<Vec<_>, _>>()?;
        match self.kind() {
            ListKind::Atomic => out.extend(added),
            ListKind::Set => {
                let mut known = self.as_keys(fuel);
                for item in added {
                    let new = match (&mut known, Key::of(&item)) {
                        (Some(known), Some(key)) => known.insert(key),
                        _ => !out.iter().any(|o| o.equals(&item, fuel)),
                    };
                    if new {
                        out.push(item);
                    }
                }
            }
            ListKind::Map(keys) => {
                let mut places: BTreeMap<_, _> =
                    out.iter().enumerate().map(|(i, v)| (identity(v, keys), i)).collect();
                for item in added {
                    let id = identity(&item, keys);
                    match places.get(&id).and_then(|i| out.get_mut(*i)) {
                        Some(place) => *place = item,
                        None => {
                            places.insert(id, out.len());
                            out.push(item);
                        }
                    }
                }
            }
        }
        Ok(Value::list(out))
    }
}

/// What tells items of a list with keys apart.
fn identity(value: &Value<'_>, keys: &[String]) -> Vec<Option<Key>> {
    let Value::Map(map) = value else { return Vec::new() };
    keys.iter().map(|k| map.get_json_name(k).and_then(|v| v.ok()).and_then(|v| Key::of(&v))).collect()
}

impl<'a> Map<'a> {
    /// How many entries.
    pub fn len(&self) -> usize {
        match self {
            Map::Json(map, _) | Map::Object(map, _) => map.len(),
            Map::Owned(map) => map.len(),
        }
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a text key: of an object's field, by the name it has in expressions.
    pub(crate) fn field(&self, name: &str) -> Option<Outcome<'a>> {
        match self {
            Map::Json(map, decl) => map.get(name).map(|json| Value::from_json(json, decl)),
            Map::Object(map, object) => {
                let object: &'a Object = object;
                let field = object.fields.get(name)?;
                map.get(&field.json).map(|json| Value::from_json(json, &field.decl))
            }
            Map::Owned(map) => map.get(&Key::String(name.to_owned())).cloned().map(Ok),
        }
    }
    fn get_json_name(&self, name: &str) -> Option<Outcome<'a>> {
        match self {
            Map::Object(_, object) => {
                let (escaped, _) = object.fields.iter().find(|(_, f)| f.json == name)?;
                self.field(escaped)
            }
            _ => self.field(name),
        }
    }
    /// The value of a key.
    pub(crate) fn get(&self, key: &Value<'_>) -> Option<Outcome<'a>> {
        match (self, key) {
            (_, Value::String(s)) => self.field(s),
            (Map::Owned(map), key) => map.get(&Key::of(key)?).cloned().map(Ok),
            _ => None,
        }
    }
    /// The keys.
    pub(crate) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Map::Json(map, _) => map.keys().map(|k| Value::String(Text::Borrowed(k))).collect(),
            Map::Object(map, object) => object
                .fields
                .iter()
                .filter(|(_, f)| map.contains_key(&f.json))
                .map(|(k, _)| Value::string(k))
                .collect(),
            Map::Owned(map) => map.keys().map(Key::value).collect(),
        }
    }

    fn equals(&self, other: &Map<'_>, fuel: &Fuel) -> bool {
        if let (Map::Object(a, x), Map::Object(b, y)) = (self, other) {
            // Fields that no declaration knows count as they are.
            let known = |key: &str| std::ptr::eq(*x, *y) && x.fields.values().any(|f| f.json == key);
            let same = a.len() == b.len()
                && a.iter().filter(|(k, _)| !known(k)).all(|(k, v)| fuel.burn(1) && b.get(k) == Some(v));
            if !same || !std::ptr::eq(*x, *y) {
                return same && x.name == y.name;
            }
        }
        if self.len() != other.len() {
            return false;
        }
        self.keys().iter().all(|key| match (self.get(key), other.get(key)) {
            (Some(Ok(a)), Some(Ok(b))) => a.equals(&b, fuel),
            _ => false,
        })
    }
}

/// Walks over a list or a map, item by item, without looking ahead.
pub(crate) enum Items<'a> {
    List(List<'a>, usize),
    Json(serde_json::map::Iter<'a>, &'a Decl),
    Object(std::vec::IntoIter<Value<'a>>, Map<'a>),
    Owned(Rc<BTreeMap<Key, Value<'a>>>, Option<Key>),
}

impl<'a> Items<'a> {
    /// `None` for what has no items.
    pub(crate) fn of(value: Value<'a>) -> Option<Self> {
        Some(match value {
            Value::List(list) => Items::List(list, 0),
            Value::Map(Map::Json(map, decl)) => Items::Json(map.iter(), decl),
            Value::Map(Map::Owned(map)) => Items::Owned(map, None),
            Value::Map(map @ Map::Object(..)) => Items::Object(map.keys().into_iter(), map),
            _ => return None,
        })
    }
    pub(crate) fn is_list(&self) -> bool {
        matches!(self, Items::List(..))
    }
    /// The next index or key, with its value. That a value cannot be read matters only to who looks at it.
    pub(crate) fn next(&mut self) -> Option<(Value<'a>, Outcome<'a>)> {
        match self {
            Items::List(list, next) => {
                let index = *next;
                *next += 1;
                list.get(index).map(|value| (Value::Int(index as i64), value))
            }
            Items::Json(iter, decl) => {
                let decl: &'a Decl = decl;
                iter.next().map(|(k, v)| (Value::String(Text::Borrowed(k)), Value::from_json(v, decl)))
            }
            Items::Object(keys, map) => {
                let key = keys.next()?;
                let value = map.get(&key)?;
                Some((key, value))
            }
            Items::Owned(map, last) => {
                use std::ops::Bound::{Excluded, Unbounded};
                let from = last.as_ref().map_or(Unbounded, Excluded);
                let (key, value) = map.range((from, Unbounded)).next()?;
                let out = (key.value(), Ok(value.clone()));
                *last = Some(key.clone());
                Some(out)
            }
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::libs::strings::display(self))
    }
}
