//! What holds for all expressions: written out and read again they are the same, and whatever they are, running them
//! ends, within the cost, without a panic.

use proptest::prelude::*;
use serde_json::json;
use sheaf_cel::{Decl, Env, EvalError, Value, normalize};

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| format!("{n}u")),
        any::<i32>().prop_map(|n| format!("{:?}", f64::from(n) / 8.0)),
        "[a-zé\\\\'\"\n]{0,6}".prop_map(|s| format!("{s:?}")),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("x".to_owned()),
        Just("object".to_owned()),
        Just("b'\\x00a'".to_owned()),
        Just("duration('1s')".to_owned()),
        Just("timestamp('2026-01-01T00:00:00Z')".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let pair = || (inner.clone(), inner.clone());
        let signs = prop::sample::select(vec![
            "+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "in", "&&", "||",
        ]);
        let members = prop::sample::select(vec![
            "size",
            "contains",
            "matches",
            "split",
            "sum",
            "max",
            "join",
            "format",
            "indexOf",
            "replace",
            "find",
            "getHours",
            "value",
            "hasValue",
            "reverse",
            "substring",
            "charAt",
            "isSorted",
            "orValue",
        ]);
        let globals = prop::sample::select(vec![
            "int",
            "uint",
            "double",
            "string",
            "bytes",
            "bool",
            "dyn",
            "type",
            "size",
            "duration",
            "timestamp",
            "quantity",
            "semver",
            "ip",
            "cidr",
            "url",
            "isIP",
            "optional.of",
            "sets.contains",
            "matches",
        ]);
        let folds = prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"]);
        let folds2 =
            prop::sample::select(vec!["all", "exists", "existsOne", "transformList", "transformMap"]);
        prop_oneof![
            (signs, pair()).prop_map(|(s, (a, b))| format!("({a}) {s} ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            (inner.clone(), pair()).prop_map(|(c, (a, b))| format!("(({c}) ? ({a}) : ({b}))")),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|l| format!("[{}]", l.join(", "))),
            pair().prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            pair().prop_map(|(a, b)| format!("({a})[{b}]")),
            pair().prop_map(|(a, b)| format!("({a})[?{b}]")),
            inner.clone().prop_map(|a| format!("({a}).x")),
            inner.clone().prop_map(|a| format!("({a}).?x")),
            inner.clone().prop_map(|a| format!("has(({a}).x)")),
            (members, inner.clone(), prop::collection::vec(inner.clone(), 0..3))
                .prop_map(|(m, t, a)| format!("({t}).{m}({})", a.join(", "))),
            (globals, prop::collection::vec(inner.clone(), 0..3))
                .prop_map(|(g, a)| format!("{g}({})", a.join(", "))),
            (folds, pair()).prop_map(|(f, (r, b))| format!("({r}).{f}(x, {b})")),
            (folds2, pair()).prop_map(|(f, (r, b))| format!("({r}).{f}(i, x, {b})")),
            pair().prop_map(|(v, b)| format!("cel.bind(x, {v}, {b})")),
            pair().prop_map(|(v, b)| format!("({v}).optMap(x, {b})")),
        ]
    })
}

/// The same with every leaf of unknown type, so that the checker lets nearly everything through.
fn untyped(text: &str) -> Env {
    let _ = text;
    Env::new().with("x", Decl::dynamic()).with("object", Decl::dynamic())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn written_and_read_again(text in expression()) {
        let once = match normalize(&text) {
            Ok(once) => once,
            // Too deep, or a variable named twice.
            Err(_) => return Ok(()),
        };
        let twice = normalize(&once);
        prop_assert_eq!(twice.as_ref().ok(), Some(&once), "{}", text);
    }

    #[test]
    fn every_run_ends_within_its_cost(text in expression()) {
        let object = json!({"x": {"x": [1, "a", {"x": null}]}, "l": [1, 2, 3]});
        let Ok(program) = untyped(&text).compile(&text) else { return Ok(()) };
        let variables = [("x", Value::dynamic(&object["x"])), ("object", Value::dynamic(&object))];
        for limit in [0, 50, 100_000] {
            let run = program.evaluate(&variables, limit);
            match run.result {
                Err(EvalError::CostExceeded) => {}
                _ => prop_assert!(run.cost <= limit, "{} cost {}", text, run.cost),
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~é\n]{0,60}") {
        let _ = Env::new().compile(&text);
    }

    #[test]
    fn any_tokens_are_read_or_refused(tokens in prop::collection::vec(
        prop::sample::select(vec!["a", "1", "'s'", "(", ")", "[", "]", "{", "}", ".", "?", ":", "-", "!", "&&", ",",
            "all", "has", "in", "cel", "bind", "r'", "0x", "1e", "u"]), 0..30)) {
        let _ = Env::new().with("a", Decl::dynamic()).compile(&tokens.concat());
        let _ = Env::new().with("a", Decl::dynamic()).compile(&tokens.join(" "));
    }
}
