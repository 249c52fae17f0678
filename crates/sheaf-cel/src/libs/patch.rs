//! What expressions need to write a JSON patch.

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

pub(crate) const FUNCTIONS: &[Function] = &[Function {
    name: "jsonpatch.escapeKey",
    overloads: &["string -> string"],
    cost: Cost::Traverse(0, 1.0),
    call: escape,
}];

/// A key as a part of a JSON pointer.
fn escape<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(text.replace('~', "~0").replace('/', "~1"))),
        _ => Err(EvalError::NoOverload),
    }
}
