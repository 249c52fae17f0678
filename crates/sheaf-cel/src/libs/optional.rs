//! Optional values.

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "optional.of", overloads: &["A -> optional(A)"], cost: Cost::One, call: of },
    Function {
        name: "optional.ofNonZeroValue",
        overloads: &["A -> optional(A)"],
        cost: Cost::One,
        call: of_non_zero,
    },
    Function {
        name: "optional.none",
        overloads: &["-> optional(A)"],
        cost: Cost::One,
        call: |_, _| Ok(Value::Optional(None)),
    },
    Function { name: "hasValue", overloads: &[".optional(A) -> bool"], cost: Cost::One, call: has_value },
    Function { name: "value", overloads: &[".optional(A) -> A"], cost: Cost::One, call: value },
    // These look at their argument only where there is no value; the evaluator knows them.
    Function {
        name: "or",
        overloads: &[".optional(A), optional(A) -> optional(A)"],
        cost: Cost::Free,
        call: |_, _| Err(EvalError::NoOverload),
    },
    Function {
        name: "orValue",
        overloads: &[".optional(A), A -> A"],
        cost: Cost::Free,
        call: |_, _| Err(EvalError::NoOverload),
    },
];

fn of<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [value] => Ok(Value::some(value.clone())),
        _ => Err(EvalError::NoOverload),
    }
}

fn of_non_zero<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [value] if value.is_zero() => Ok(Value::Optional(None)),
        [value] => Ok(Value::some(value.clone())),
        _ => Err(EvalError::NoOverload),
    }
}

fn has_value<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(inner)] => Ok(Value::Bool(inner.is_some())),
        _ => Err(EvalError::NoOverload),
    }
}

fn value<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(Some(inner))] => Ok((**inner).clone()),
        [Value::Optional(None)] => Err(EvalError::other("optional.none() dereference")),
        _ => Err(EvalError::NoOverload),
    }
}
