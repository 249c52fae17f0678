//! Expressions: whatever the text, it is refused or runs to an end within its cost. What is printed is read as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_cel::{Decl, Env, EvalError, Value, normalize};

fuzz_target!(|input: (&str, &[u8])| {
    let (text, data) = input;
    if let Ok(once) = normalize(text) {
        assert_eq!(normalize(&once).ok().as_ref(), Some(&once), "printed and read again");
    }
    let env = Env::new().with("self", Decl::dynamic()).with("oldSelf", Decl::dynamic());
    let Ok(program) = env.compile(text) else { return };
    let object: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
    let variables = [("self", Value::dynamic(&object)), ("oldSelf", Value::dynamic(&object))];
    let run = program.evaluate(&variables, 10_000);
    assert!(run.cost <= 10_000 || run.result.is_err_and(|e| e == EvalError::CostExceeded));
});
