//! Quantities.

use sheaf_meta::quantity::{Notation, Quantity};

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

/// These names are shared with versions, which bring their own code.
const COMPARED: &[&str] = &[".quantity, quantity -> bool", ".semver, semver -> bool"];

pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "quantity", overloads: &["string -> quantity"], cost: Cost::Parse(1.0), call: quantity },
    Function {
        name: "isQuantity",
        overloads: &["string -> bool"],
        cost: Cost::Parse(1.0),
        call: is_quantity,
    },
    Function { name: "sign", overloads: &[".quantity -> int"], cost: Cost::One, call: sign },
    Function { name: "isInteger", overloads: &[".quantity -> bool"], cost: Cost::One, call: is_integer },
    Function { name: "asInteger", overloads: &[".quantity -> int"], cost: Cost::One, call: as_integer },
    Function {
        name: "asApproximateFloat",
        overloads: &[".quantity -> double"],
        cost: Cost::One,
        call: as_float,
    },
    Function { name: "add", overloads: SUMS, cost: Cost::One, call: |_, a| combine(a, Quantity::plus) },
    Function { name: "sub", overloads: SUMS, cost: Cost::One, call: |_, a| combine(a, Quantity::minus) },
    Function {
        name: "isGreaterThan",
        overloads: COMPARED,
        cost: Cost::One,
        call: |_, a| compare(a, |o| Value::Bool(o > 0)),
    },
    Function {
        name: "isLessThan",
        overloads: COMPARED,
        cost: Cost::One,
        call: |_, a| compare(a, |o| Value::Bool(o < 0)),
    },
    Function {
        name: "compareTo",
        overloads: &[".quantity, quantity -> int", ".semver, semver -> int"],
        cost: Cost::One,
        call: |_, a| compare(a, Value::Int),
    },
];

const SUMS: &[&str] = &[".quantity, quantity -> quantity", ".quantity, int -> quantity"];

fn quantity<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(EvalError::NoOverload) };
    Quantity::parse(s).map(Value::Quantity).map_err(|e| EvalError::other(e.to_string()))
}

fn is_quantity<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(EvalError::NoOverload) };
    Ok(Value::Bool(Quantity::parse(s).is_ok()))
}

fn one(args: &[Value<'_>]) -> Result<Quantity, EvalError> {
    match args {
        [Value::Quantity(q)] => Ok(*q),
        _ => Err(EvalError::NoOverload),
    }
}

fn sign<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Int(i64::from(one(args)?.signum())))
}

const NANO: i128 = 1_000_000_000;

fn is_integer<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(one(args)?.nanos() % NANO == 0))
}

fn as_integer<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let nanos = one(args)?.nanos();
    if nanos % NANO != 0 {
        return Err(EvalError::other("cannot convert value to integer"));
    }
    i64::try_from(nanos / NANO)
        .map(Value::Int)
        .map_err(|_| EvalError::other("cannot convert value to integer"))
}

fn as_float<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Double(one(args)?.as_f64()))
}

fn combine<'a>(args: &[Value<'a>], f: fn(Quantity, Quantity) -> Quantity) -> Outcome<'a> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(Value::Quantity(f(*a, *b))),
        [Value::Quantity(a), Value::Int(n)] => {
            Ok(Value::Quantity(f(*a, Quantity::from_int(*n, Notation::Decimal))))
        }
        _ => Err(EvalError::NoOverload),
    }
}

fn compare<'a>(args: &[Value<'a>], f: fn(i64) -> Value<'a>) -> Outcome<'a> {
    match args {
        [a @ Value::Quantity(_), b @ Value::Quantity(_)] | [a @ Value::Semver(_), b @ Value::Semver(_)] => {
            a.compare(b).map(|o| f(o as i64)).ok_or(EvalError::NoOverload)
        }
        _ => Err(EvalError::NoOverload),
    }
}
