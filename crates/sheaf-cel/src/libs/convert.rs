//! Conversions between types, `type()` and `dyn()`.

use std::borrow::Cow;
use std::rc::Rc;

use sheaf_meta::times;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

use super::time;

pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "dyn", overloads: &["A -> dyn"], cost: Cost::One, call: dynamic },
    Function { name: "type", overloads: &["A -> type"], cost: Cost::One, call: type_of },
    Function { name: "bool", overloads: &["bool -> bool", "string -> bool"], cost: Cost::One, call: to_bool },
    Function {
        name: "int",
        overloads: &[
            "int -> int",
            "uint -> int",
            "double -> int",
            "string -> int",
            "timestamp -> int",
            "duration -> int",
        ],
        cost: Cost::One,
        call: to_int,
    },
    Function {
        name: "uint",
        overloads: &["uint -> uint", "int -> uint", "double -> uint", "string -> uint"],
        cost: Cost::One,
        call: to_uint,
    },
    Function {
        name: "double",
        overloads: &["double -> double", "int -> double", "uint -> double", "string -> double"],
        cost: Cost::One,
        call: to_double,
    },
    Function {
        name: "string",
        overloads: &[
            "string -> string",
            "bool -> string",
            "int -> string",
            "uint -> string",
            "double -> string",
            "bytes -> string",
            "timestamp -> string",
            "duration -> string",
            "ip -> string",
            "cidr -> string",
        ],
        cost: Cost::Convert,
        call: to_string,
    },
    Function {
        name: "bytes",
        overloads: &["bytes -> bytes", "string -> bytes"],
        cost: Cost::Convert,
        call: to_bytes,
    },
    Function {
        name: "timestamp",
        overloads: &["timestamp -> timestamp", "string -> timestamp", "int -> timestamp"],
        cost: Cost::One,
        call: to_timestamp,
    },
    Function {
        name: "duration",
        overloads: &["duration -> duration", "string -> duration", "int -> duration"],
        cost: Cost::One,
        call: to_duration,
    },
];

fn only<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v Value<'a>, EvalError> {
    match args {
        [one] => Ok(one),
        _ => Err(EvalError::NoOverload),
    }
}

fn dynamic<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    only(args).cloned()
}

fn type_of<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Type(only(args)?.type_name()))
}

/// The names of types as identifiers.
pub(crate) fn type_constant(name: &str) -> Option<Value<'static>> {
    let name = match name {
        "null_type" => "null_type",
        "bool" => "bool",
        "int" => "int",
        "uint" => "uint",
        "double" => "double",
        "string" => "string",
        "bytes" => "bytes",
        "list" => "list",
        "map" => "map",
        "type" => "type",
        "optional_type" => "optional_type",
        "google.protobuf.Timestamp" => "google.protobuf.Timestamp",
        "google.protobuf.Duration" => "google.protobuf.Duration",
        other => crate::types::Opaque::NAMES.iter().find(|(n, _)| *n == other)?.0,
    };
    Some(Value::Type(Cow::Borrowed(name)))
}

fn unconvertible(value: &Value<'_>, to: &str) -> EvalError {
    EvalError::other(format!("type conversion error from '{}' to '{to}'", value.type_name()))
}

fn to_bool<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match only(args)? {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        value @ Value::String(s) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(unconvertible(value, "bool")),
        },
        _ => Err(EvalError::NoOverload),
    }
}

fn to_int<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    const OVERFLOW: EvalError = EvalError::Overflow("integer");
    Ok(Value::Int(match only(args)? {
        Value::Int(n) => *n,
        Value::Uint(n) => i64::try_from(*n).map_err(|_| OVERFLOW)?,
        // Both ends of the range are lost to rounding, as upstream refuses them.
        Value::Double(d) if *d > i64::MIN as f64 && *d < i64::MAX as f64 => *d as i64,
        Value::Double(_) => return Err(OVERFLOW),
        value @ Value::String(s) => s.parse().map_err(|_| unconvertible(value, "int"))?,
        Value::Timestamp(t) => t.as_second(),
        Value::Duration(nanos) => *nanos,
        _ => return Err(EvalError::NoOverload),
    }))
}

fn to_uint<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    const OVERFLOW: EvalError = EvalError::Overflow("unsigned integer");
    Ok(Value::Uint(match only(args)? {
        Value::Uint(n) => *n,
        Value::Int(n) => u64::try_from(*n).map_err(|_| OVERFLOW)?,
        Value::Double(d) if *d >= 0.0 && *d < u64::MAX as f64 => *d as u64,
        Value::Double(_) => return Err(OVERFLOW),
        value @ Value::String(s) => s.parse().map_err(|_| unconvertible(value, "uint"))?,
        _ => return Err(EvalError::NoOverload),
    }))
}

fn to_double<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Double(match only(args)? {
        Value::Double(d) => *d,
        Value::Int(n) => *n as f64,
        Value::Uint(n) => *n as f64,
        value @ Value::String(s) => s.parse().map_err(|_| unconvertible(value, "double"))?,
        _ => return Err(EvalError::NoOverload),
    }))
}

fn to_string<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let value = only(args)?;
    Ok(match value {
        Value::String(_) => value.clone(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::string(text),
            Err(_) => return Err(EvalError::other("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Timestamp(_)
        | Value::Duration(_)
        | Value::Ip(_)
        | Value::Cidr(_)
        | Value::Quantity(_)
        | Value::Url(_)
        | Value::Semver(_) => Value::string(super::strings::display(value)),
        _ => return Err(EvalError::NoOverload),
    })
}

fn to_bytes<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match only(args)? {
        Value::Bytes(b) => Ok(Value::Bytes(b.clone())),
        Value::String(s) => Ok(Value::Bytes(Rc::from(s.as_bytes()))),
        _ => Err(EvalError::NoOverload),
    }
}

fn to_timestamp<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Timestamp(match only(args)? {
        Value::Timestamp(t) => *t,
        Value::Int(seconds) => time::at_second(*seconds)?,
        value @ Value::String(s) => {
            times::parse_date_time(s).ok_or_else(|| unconvertible(value, "timestamp"))?
        }
        _ => return Err(EvalError::NoOverload),
    }))
}

fn to_duration<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Duration(match only(args)? {
        Value::Duration(d) => *d,
        Value::Int(nanos) => *nanos,
        value @ Value::String(s) => {
            times::parse_duration(s).ok_or_else(|| unconvertible(value, "duration"))?
        }
        _ => return Err(EvalError::NoOverload),
    }))
}
