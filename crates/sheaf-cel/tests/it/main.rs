//! What expressions mean, as tables: expression and outcome. The outcome is the value as text, or the error.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line")]

mod conditions;
mod costs;
mod language;
mod libraries;
mod properties;

use std::sync::Arc;

use serde_json::{Value as Json, json};
use sheaf_cel::{Decl, Env, ListKind, Shape, Value};

/// Variables: `object` undeclared, `self` with fields of all shapes.
pub(crate) fn env() -> Env {
    Env::new().with("object", Decl::dynamic()).with("self", declared())
}

fn decl(shape: Shape) -> Arc<Decl> {
    Arc::new(Decl::new(shape))
}

fn declared() -> Arc<Decl> {
    let list = |items: Arc<Decl>, kind| decl(Shape::List(items, kind));
    let item = Decl::object("item", [("k", Decl::string()), ("v", decl(Shape::Int))]);
    let keyed = list(item, ListKind::Map(vec!["k".into()]));
    let nullable = Arc::new(Decl {
        nullable: true,
        ..Decl::new(Shape::Object(Arc::new(sheaf_cel::Object {
            name: "n".into(),
            fields: Default::default(),
        })))
    });
    Decl::object(
        "self",
        [
            ("text", Decl::string()),
            ("number", decl(Shape::Int)),
            ("ratio", decl(Shape::Double)),
            ("flag", decl(Shape::Bool)),
            ("port", decl(Shape::IntOrString)),
            ("when", decl(Shape::DateTime)),
            ("day", decl(Shape::Date)),
            ("wait", decl(Shape::Duration)),
            ("raw", decl(Shape::Bytes)),
            ("list", list(decl(Shape::Int), ListKind::Atomic)),
            ("set", list(Decl::string(), ListKind::Set)),
            ("other", list(Decl::string(), ListKind::Set)),
            ("keyed", keyed.clone()),
            ("keyed2", keyed.clone()),
            (
                "open",
                list(Decl::object("open", [("set", list(Decl::string(), ListKind::Set))]), ListKind::Atomic),
            ),
            ("labels", decl(Shape::Map(Decl::string()))),
            ("missing", Decl::string()),
            ("nothing", nullable),
        ],
    )
}

fn data() -> Json {
    json!({
        "text": "hello", "number": 5, "ratio": 2, "flag": true, "port": "80%",
        "when": "2026-01-02T03:04:05Z", "day": "2026-01-02", "wait": "1h30m", "raw": "aGk=",
        "list": [3, 1, 2], "set": ["a", "b"], "other": ["b", "a"],
        "keyed": [{"k": "x", "v": 1}, {"k": "y", "v": 2}],
        "keyed2": [{"k": "y", "v": 2}, {"k": "x", "v": 1}],
        "open": [{"set": ["a", "b"], "x": 1}, {"set": ["a", "b"], "y": 1}, {"set": ["b", "a"], "x": 1}],
        "labels": {"a": "1", "b": "2"}, "nothing": null,
    })
}

/// The outcome of an expression as text: `value`, `! run-time error`, `? compile error`.
pub(crate) fn outcome(text: &str) -> String {
    let object = json!({
        "a": {"b": [1, 2.5, "x", null, true]}, "n": 7, "big": 9223372036854775807i64, "f": 7.0, "e": {}, "l": [],
    });
    let data = data();
    let self_decl = declared();
    let program = match env().compile(text) {
        Ok(program) => program,
        Err(error) => return format!("? {}", error.messages().next().unwrap_or("")),
    };
    let this = Value::from_json(&data, &self_decl).unwrap();
    let variables = [("object", Value::dynamic(&object)), ("self", this)];
    let run = program.evaluate(&variables, sheaf_cel::PER_CALL_LIMIT);
    match run.result {
        Ok(value) => value.show(),
        Err(error) => format!("! {error}"),
    }
}

pub(crate) fn check(table: &[(&str, &str)]) {
    let wrong: Vec<String> = table
        .iter()
        .filter_map(|(text, wanted)| {
            let found = outcome(text);
            (found != *wanted).then(|| format!("{text}\n    wanted {wanted}\n    found  {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}
