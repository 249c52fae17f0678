//! Operators: arithmetic that refuses to overflow, comparison, indexing, membership, size.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, List, Map, Outcome, Value};

use super::strings::display;
use super::time;

pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "_+_",
        overloads: &[
            "int, int -> int",
            "uint, uint -> uint",
            "double, double -> double",
            "string, string -> string",
            "bytes, bytes -> bytes",
            "list(A), list(A) -> list(A)",
            "duration, duration -> duration",
            "timestamp, duration -> timestamp",
            "duration, timestamp -> timestamp",
        ],
        cost: Cost::Concat,
        call: add,
    },
    Function {
        name: "_-_",
        overloads: &[
            "int, int -> int",
            "uint, uint -> uint",
            "double, double -> double",
            "duration, duration -> duration",
            "timestamp, duration -> timestamp",
            "timestamp, timestamp -> duration",
        ],
        cost: Cost::One,
        call: subtract,
    },
    Function { name: "_*_", overloads: NUMERIC, cost: Cost::One, call: multiply },
    Function { name: "_/_", overloads: NUMERIC, cost: Cost::One, call: divide },
    Function {
        name: "_%_",
        overloads: &["int, int -> int", "uint, uint -> uint"],
        cost: Cost::One,
        call: modulo,
    },
    Function { name: "-_", overloads: &["int -> int", "double -> double"], cost: Cost::One, call: negate },
    Function { name: "!_", overloads: &["bool -> bool"], cost: Cost::One, call: not },
    Function { name: "_==_", overloads: &["A, A -> bool"], cost: Cost::Compare, call: equal },
    Function { name: "_!=_", overloads: &["A, A -> bool"], cost: Cost::Compare, call: unequal },
    Function { name: "_<_", overloads: ORDERED, cost: Cost::Order, call: |_, a| order(a, Ordering::is_lt) },
    Function { name: "_<=_", overloads: ORDERED, cost: Cost::Order, call: |_, a| order(a, Ordering::is_le) },
    Function { name: "_>_", overloads: ORDERED, cost: Cost::Order, call: |_, a| order(a, Ordering::is_gt) },
    Function { name: "_>=_", overloads: ORDERED, cost: Cost::Order, call: |_, a| order(a, Ordering::is_ge) },
    // These three decide for themselves which arguments they look at; the evaluator knows them.
    Function { name: "_&&_", overloads: &["bool, bool -> bool"], cost: Cost::Free, call: refuse },
    Function { name: "_||_", overloads: &["bool, bool -> bool"], cost: Cost::Free, call: refuse },
    Function { name: "_?_:_", overloads: &["bool, A, A -> A"], cost: Cost::Free, call: refuse },
    Function {
        name: "@in",
        overloads: &["A, list(A) -> bool", "A, map(A, B) -> bool"],
        cost: Cost::In,
        call: contains,
    },
    Function {
        name: "_[_]",
        overloads: &[
            "list(A), int -> A",
            "map(A, B), A -> B",
            "optional(list(A)), int -> optional(A)",
            "optional(map(A, B)), A -> optional(B)",
        ],
        cost: Cost::One,
        call: index,
    },
    Function {
        name: "_[?_]",
        overloads: &[
            "list(A), int -> optional(A)",
            "map(A, B), A -> optional(B)",
            "optional(list(A)), int -> optional(A)",
            "optional(map(A, B)), A -> optional(B)",
        ],
        cost: Cost::One,
        call: |_, a| optional_index(a),
    },
    Function {
        name: "size",
        overloads: &[
            "string -> int",
            "bytes -> int",
            "list(A) -> int",
            "map(A, B) -> int",
            ".string -> int",
            ".bytes -> int",
            ".list(A) -> int",
            ".map(A, B) -> int",
        ],
        cost: Cost::One,
        call: size,
    },
];

const NUMERIC: &[&str] = &["int, int -> int", "uint, uint -> uint", "double, double -> double"];
const ORDERED: &[&str] = &[
    "bool, bool -> bool",
    "int, int -> bool",
    "int, double -> bool",
    "int, uint -> bool",
    "uint, uint -> bool",
    "uint, double -> bool",
    "uint, int -> bool",
    "double, double -> bool",
    "double, int -> bool",
    "double, uint -> bool",
    "string, string -> bool",
    "bytes, bytes -> bool",
    "timestamp, timestamp -> bool",
    "duration, duration -> bool",
];

const INT: EvalError = EvalError::Overflow("integer");
const UINT: EvalError = EvalError::Overflow("unsigned integer");

fn refuse<'a>(_: &Cx<'_>, _: &[Value<'a>]) -> Outcome<'a> {
    Err(EvalError::NoOverload)
}

fn add<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_add(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_add(*b).ok_or(UINT)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a + b),
        [Value::String(a), Value::String(b)] => {
            let mut out = String::with_capacity(a.len() + b.len());
            out.push_str(a);
            out.push_str(b);
            Value::string(out)
        }
        [Value::Bytes(a), Value::Bytes(b)] => Value::Bytes(Rc::from([&**a, &**b].concat())),
        [Value::List(a), Value::List(b)] => a.concat(b, cx.fuel)?,
        [Value::Duration(a), Value::Duration(b)] => {
            Value::Duration(a.checked_add(*b).ok_or(EvalError::Overflow("duration"))?)
        }
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => {
            Value::Timestamp(time::shift(*t, *d)?)
        }
        _ => return Err(EvalError::NoOverload),
    })
}

fn subtract<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_sub(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_sub(*b).ok_or(UINT)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a - b),
        [Value::Duration(a), Value::Duration(b)] => {
            Value::Duration(a.checked_sub(*b).ok_or(EvalError::Overflow("duration"))?)
        }
        [Value::Timestamp(t), Value::Duration(d)] => {
            let back = d.checked_neg().ok_or(EvalError::Overflow("duration"))?;
            Value::Timestamp(time::shift(*t, back)?)
        }
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let span = a.as_nanosecond() - b.as_nanosecond();
            Value::Duration(i64::try_from(span).map_err(|_| EvalError::Overflow("timestamp"))?)
        }
        _ => return Err(EvalError::NoOverload),
    })
}

fn multiply<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_mul(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_mul(*b).ok_or(UINT)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a * b),
        _ => return Err(EvalError::NoOverload),
    })
}

fn divide<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::DivisionByZero);
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_div(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a / b),
        [Value::Double(a), Value::Double(b)] => Value::Double(a / b),
        _ => return Err(EvalError::NoOverload),
    })
}

fn modulo<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::ModulusByZero);
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_rem(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a % b),
        _ => return Err(EvalError::NoOverload),
    })
}

fn negate<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match args {
        [Value::Int(n)] => Value::Int(n.checked_neg().ok_or(INT)?),
        [Value::Double(n)] => Value::Double(-n),
        _ => return Err(EvalError::NoOverload),
    })
}

fn not<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => Err(EvalError::NoOverload),
    }
}

fn equal<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [a, b] => Ok(Value::Bool(a.equals(b, cx.fuel))),
        _ => Err(EvalError::NoOverload),
    }
}

fn unequal<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [a, b] => Ok(Value::Bool(!a.equals(b, cx.fuel))),
        _ => Err(EvalError::NoOverload),
    }
}

fn order<'a>(args: &[Value<'a>], test: fn(Ordering) -> bool) -> Outcome<'a> {
    let [a, b] = args else { return Err(EvalError::NoOverload) };
    let ordered = matches!(
        (a, b),
        (Value::Bool(_), Value::Bool(_))
            | (Value::String(_), Value::String(_))
            | (Value::Bytes(_), Value::Bytes(_))
            | (Value::Timestamp(_), Value::Timestamp(_))
            | (Value::Duration(_), Value::Duration(_))
    );
    let numbers = a.is_number() && b.is_number();
    if !ordered && !numbers {
        return Err(EvalError::NoOverload);
    }
    // Nothing is less or greater than a NaN.
    Ok(Value::Bool(a.compare(b).is_some_and(test)))
}

fn contains<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [value, Value::List(list)] => Ok(Value::Bool(list.contains(value, cx.fuel))),
        [key, Value::Map(map)] => Ok(Value::Bool(map.get(key).is_some())),
        _ => Err(EvalError::NoOverload),
    }
}

fn item<'a>(container: &Value<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    match container {
        Value::List(list) => list_item(list, key),
        Value::Map(map) => map_item(map, key),
        _ => Err(EvalError::NoOverload),
    }
}

fn list_item<'a>(list: &List<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    let index = match key {
        Value::Int(n) => *n,
        Value::Uint(n) => i64::try_from(*n).map_err(|_| EvalError::OutOfBounds(i64::MAX))?,
        Value::Double(d) if d.fract() == 0.0 => *d as i64,
        Value::Double(_) => return Err(EvalError::other("unsupported index value")),
        _ => return Err(EvalError::NoOverload),
    };
    usize::try_from(index).ok().and_then(|i| list.get(i)).transpose()
}

fn map_item<'a>(map: &Map<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    map.get(key).transpose()
}

fn index<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(_), _] => optional_index(args),
        [container, key] => match (item(container, key)?, container, key) {
            (Some(value), ..) => Ok(value),
            (None, Value::List(_), Value::Int(n)) => Err(EvalError::OutOfBounds(*n)),
            (None, Value::List(_), _) => Err(EvalError::OutOfBounds(-1)),
            (None, _, key) => Err(EvalError::NoKey(display(key))),
        },
        _ => Err(EvalError::NoOverload),
    }
}

/// `a[?b]`; also `a[b]` where `a` is an optional.
pub(crate) fn optional_index<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(None), _] => Ok(Value::Optional(None)),
        [Value::Optional(Some(inner)), key] => {
            Ok(item(inner, key)?.map_or(Value::Optional(None), Value::some))
        }
        [container, key] => Ok(item(container, key)?.map_or(Value::Optional(None), Value::some)),
        _ => Err(EvalError::NoOverload),
    }
}

fn size<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
        }
        _ => Err(EvalError::NoOverload),
    }
}
