//! Functions on lists, and lists taken as sets.

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, List, Outcome, Value};

use super::strings;

const PAIRS: &[&str] = &["list(A), list(A) -> bool"];

pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "isSorted",
        overloads: &[
            ".list(int) -> bool",
            ".list(uint) -> bool",
            ".list(double) -> bool",
            ".list(bool) -> bool",
            ".list(duration) -> bool",
            ".list(timestamp) -> bool",
            ".list(string) -> bool",
            ".list(bytes) -> bool",
        ],
        cost: Cost::Walk,
        call: is_sorted,
    },
    Function {
        name: "sum",
        overloads: &[
            ".list(int) -> int",
            ".list(uint) -> uint",
            ".list(double) -> double",
            ".list(duration) -> duration",
        ],
        cost: Cost::Walk,
        call: sum,
    },
    Function { name: "min", overloads: EXTREMES, cost: Cost::Walk, call: |_, a| extreme(a, true) },
    Function { name: "max", overloads: EXTREMES, cost: Cost::Walk, call: |_, a| extreme(a, false) },
    Function {
        name: "indexOf",
        overloads: &[".list(A), A -> int", ".string, string -> int", ".string, string, int -> int"],
        cost: Cost::Walk,
        call: |cx, a| position(cx, a, false),
    },
    Function {
        name: "lastIndexOf",
        overloads: &[".list(A), A -> int", ".string, string -> int", ".string, string, int -> int"],
        cost: Cost::Walk,
        call: |cx, a| position(cx, a, true),
    },
    Function { name: "sets.contains", overloads: PAIRS, cost: Cost::Sets(1), call: contains },
    Function { name: "sets.equivalent", overloads: PAIRS, cost: Cost::Sets(2), call: equivalent },
    Function { name: "sets.intersects", overloads: PAIRS, cost: Cost::Sets(1), call: intersects },
];

const EXTREMES: &[&str] = &[
    ".list(int) -> int",
    ".list(uint) -> uint",
    ".list(double) -> double",
    ".list(bool) -> bool",
    ".list(duration) -> duration",
    ".list(timestamp) -> timestamp",
    ".list(string) -> string",
    ".list(bytes) -> bytes",
];

fn items<'a>(list: &List<'a>) -> Result<Vec<Value<'a>>, EvalError> {
    list.iter().collect()
}

fn is_sorted<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list)] = args else { return Err(EvalError::NoOverload) };
    let items = items(list)?;
    for pair in items.windows(2) {
        match pair[0].compare(&pair[1]) {
            Some(order) if order.is_gt() => return Ok(Value::Bool(false)),
            Some(_) => {}
            None => return Err(EvalError::NoOverload),
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list)] = args else { return Err(EvalError::NoOverload) };
    let plus = crate::functions::table().get("_+_").ok_or(EvalError::NoOverload)?.function.call;
    let mut items = list.iter();
    // Of an empty list nothing says the type of the elements; upstream starts from its zero.
    let Some(first) = items.next() else { return Ok(Value::Int(0)) };
    let first = first?;
    if !first.is_number() && !matches!(first, Value::Duration(_)) {
        return Err(EvalError::NoOverload);
    }
    items.try_fold(first, |total, item| plus(cx, &[total, item?]))
}

fn extreme<'a>(args: &[Value<'a>], least: bool) -> Outcome<'a> {
    let [Value::List(list)] = args else { return Err(EvalError::NoOverload) };
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        let item = item?;
        let better = match &best {
            None => true,
            Some(b) => {
                let order = item.compare(b).ok_or(EvalError::NoOverload)?;
                if least { order.is_lt() } else { order.is_gt() }
            }
        };
        if better {
            best = Some(item);
        }
    }
    let name = if least { "min" } else { "max" };
    best.ok_or_else(|| EvalError::other(format!("{name} called on empty list")))
}

fn position<'a>(cx: &Cx<'_>, args: &[Value<'a>], last: bool) -> Outcome<'a> {
    match args {
        [Value::String(_), ..] if last => strings::last_index_of(args),
        [Value::String(_), ..] => strings::index_of(args),
        [Value::List(list), wanted] => {
            let items = items(list)?;
            let place = if last {
                items.iter().rposition(|i| i.equals(wanted, cx.fuel))
            } else {
                items.iter().position(|i| i.equals(wanted, cx.fuel))
            };
            Ok(Value::Int(place.map_or(-1, |p| p as i64)))
        }
        _ => Err(EvalError::NoOverload),
    }
}

fn pair<'v, 'a>(args: &'v [Value<'a>]) -> Result<(&'v List<'a>, &'v List<'a>), EvalError> {
    match args {
        [Value::List(a), Value::List(b)] => Ok((a, b)),
        _ => Err(EvalError::NoOverload),
    }
}

fn within(cx: &Cx<'_>, part: &List<'_>, whole: &List<'_>) -> Result<bool, EvalError> {
    for item in part.iter() {
        if !whole.contains(&item?, cx.fuel) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (list, sublist) = pair(args)?;
    Ok(Value::Bool(within(cx, sublist, list)?))
}

fn equivalent<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (a, b) = pair(args)?;
    Ok(Value::Bool(within(cx, a, b)? && within(cx, b, a)?))
}

fn intersects<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (a, b) = pair(args)?;
    for item in a.iter() {
        if b.contains(&item?, cx.fuel) {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
