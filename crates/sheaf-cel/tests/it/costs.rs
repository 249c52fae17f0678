//! Costs, while running and at worst, in upstream's units; and that everything ends.

use std::sync::Arc;

use serde_json::json;
use sheaf_cel::{Decl, Env, EvalError, ListKind, Shape, Value};

fn bounded(shape: Shape, max: u64) -> Arc<Decl> {
    Arc::new(Decl { max_elements: max, ..Decl::new(shape) })
}

fn env(max_items: u64, max_length: u64) -> Env {
    let text = bounded(Shape::String, max_length);
    let list = bounded(Shape::List(text.clone(), ListKind::Atomic), max_items);
    let map = bounded(Shape::Map(text.clone()), max_items);
    Env::new().with(
        "self",
        Decl::object(
            "self",
            [("text", text), ("list", list), ("map", map), ("n", Arc::new(Decl::new(Shape::Int)))],
        ),
    )
}

#[test]
fn at_worst() {
    // 10 items of 100 characters.
    for (text, worst) in [
        ("true", 0),
        ("self.n == 5", 2),
        ("has(self.text)", 1),
        ("self.text == 'abc'", 3),
        ("self.text == self.text", 14),
        ("self.text.startsWith('abc')", 3),
        ("self.text.contains('abc')", 12),
        ("self.text.matches('abcd')", 13),
        ("self.list.size() > 5", 4),
        ("self.list.all(x, x != '')", 43),
        ("self.list.exists(x, x == 'a')", 63),
        ("self.list.all(x, self.list.all(y, x == y))", 1563),
        ("'a' in self.list", 12),
        ("self.list.map(x, x + 'a').size() > 0", 255),
        ("self.map.all(k, self.map[k] != '')", 73),
        ("cel.bind(t, self.text, t + t).size() > 0", 36),
        ("self.n > 1 && self.n < 5", 6),
        ("self.n > 1 ? self.text.contains('abc') : false", 15),
        ("[1, 2, 3].all(x, x > self.n)", 10 + 3 * 7 + 1),
        ("self.list.isSorted()", 112),
    ] {
        let program = env(10, 100).compile(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(program.worst_cost(), worst, "{text}");
    }
    let huge = env(u64::MAX, u64::MAX).compile("self.list.all(x, self.list.all(y, x == y))").unwrap();
    assert_eq!(huge.worst_cost(), u64::MAX);
}

#[test]
fn while_running() {
    let data = json!({"text": "0123456789", "list": ["a", "b", "c"], "map": {"k": "v"}, "n": 3});
    let env = env(10, 100);
    let decl = Decl::object(
        "self",
        [
            ("text", Decl::string()),
            ("list", bounded(Shape::List(Decl::string(), ListKind::Atomic), 10)),
            ("n", Arc::new(Decl::new(Shape::Int))),
        ],
    );
    for (text, cost) in [
        ("true", 0),
        ("self.n == 5", 3),
        ("has(self.text)", 1),
        ("self.text.startsWith('012')", 3),
        ("self.list.all(x, x != '')", 2 + 3 * (3 + 1) + 1),
        ("self.list.exists(x, x == 'a')", 2 + 4 + 2 + 4),
        ("[1, 2].map(x, x)", 10 + 10 + 2 * (1 + 12) + 1),
        ("false && self.n == 5", 0),
        ("true ? 1 : self.n", 0),
    ] {
        let program = env.compile(text).unwrap();
        let this = Value::from_json(&data, &decl).unwrap();
        let run = program.evaluate(&[("self", this)], 1000);
        assert!(run.result.is_ok(), "{text}");
        assert_eq!(run.cost, cost, "{text}");
    }
}

#[test]
fn what_costs_too_much_is_stopped_and_absorbed_by_nothing() {
    let env = Env::new().with("l", Decl::dynamic());
    let list: Vec<u32> = (0..1000).collect();
    let list = json!(list);
    for text in [
        "l.all(a, l.all(b, l.all(c, a + b + c >= 0)))",
        "true && l.all(a, l.all(b, l.all(c, a + b + c >= 0))) || true",
        "l.map(a, l.map(b, l)).size() >= 0",
        // Doubling: 2^59 times the list.
        &(1..60).rev().fold("size(x59) > 0".to_owned(), |body, i| {
            let last = if i == 1 { "l".to_owned() } else { format!("x{}", i - 1) };
            format!("cel.bind(x{i}, {last} + {last}, {body})")
        }),
    ] {
        let program = env.compile(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let run = program.evaluate(&[("l", Value::dynamic(&list))], 50_000);
        assert_eq!(run.result.unwrap_err(), EvalError::CostExceeded, "{text}");
    }
}

/// Sets and lists with keys are compared without looking at each pair.
#[test]
fn large_sets_are_compared() {
    let forth: Vec<String> = (0..4_000).map(|i| format!("item{i}")).collect();
    let back: Vec<&String> = forth.iter().rev().collect();
    let keyed = |names: Vec<&String>| names.into_iter().map(|n| json!({"k": n})).collect::<Vec<_>>();
    let data = json!({"a": forth, "b": back, "x": keyed(forth.iter().collect()), "y": keyed(back.clone())});
    let set = Arc::new(Decl::new(Shape::List(Decl::string(), ListKind::Set)));
    let item = Decl::object("item", [("k", Decl::string())]);
    let map = Arc::new(Decl::new(Shape::List(item, ListKind::Map(vec!["k".into()]))));
    let decl = Decl::object("self", [("a", set.clone()), ("b", set), ("x", map.clone()), ("y", map)]);
    let text = "self.a == self.b && self.x == self.y && (self.a + self.b).size() == 4000 && (self.x + self.y).size() == 4000";
    let program = Env::new().with("self", decl.clone()).compile(text).unwrap();
    let run = program.evaluate(&[("self", Value::from_json(&data, &decl).unwrap())], 1_000_000);
    assert_eq!(run.result.unwrap().show(), "true");
}

#[test]
fn deep_and_long_texts_are_refused_or_run() {
    let env = Env::new();
    let deep = |n: usize| format!("{}1{}", "(".repeat(n), ")".repeat(n));
    assert!(env.compile(&deep(100)).is_ok());
    assert!(env.compile(&deep(100_000 / 2 - 1)).is_err());
    let chain = |n: usize| vec!["1"; n].join(" + ");
    let program = env.compile(&chain(200)).unwrap();
    assert!(program.evaluate(&[], 1000).result.is_ok());
    let error = env.compile(&chain(5000)).unwrap_err();
    assert_eq!(error.messages().next().unwrap(), "expression recursion limit exceeded: 250");
    // As deep as it may be, in every way that costs stack.
    for (levels, open, close) in [
        (120, "[1].all(x, ", ")"),
        (120, "cel.bind(x, 1, ", ")"),
        (60, "{'k': [", "]}['k'][0]"),
        (120, "(true ? ", " : false)"),
    ] {
        let nested = format!("{}true{}", open.repeat(levels), close.repeat(levels));
        let program = env.compile(&nested).unwrap_or_else(|e| panic!("{open}: {e}"));
        assert_eq!(program.evaluate(&[], 1_000_000).result.unwrap().show(), "true", "{open}");
    }
    // Chains of && and || are no nesting.
    let program = env.compile(&vec!["true"; 5000].join(" && ")).unwrap();
    assert!(program.evaluate(&[], 1000).result.is_ok());
    assert!(env.compile(&"-".repeat(50_000)).is_err());
    assert!(env.compile(&"[".repeat(50_000)).is_err());
    assert!(env.compile(&"a".repeat(100_001)).is_err());
}
