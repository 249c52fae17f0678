//! The Common Expression Language as Kubernetes uses it: validation rules of CustomResourceDefinitions, match conditions
//! of webhooks, admission policies.
//!
//! [`Env`] declares variables and compiles a text to a [`Program`]: parsed, checked against the declarations, its cost
//! estimated. A program is run as often as one likes with values for the variables; a run is bounded by a cost, counted
//! in Kubernetes' units, and never panics. Values are views of JSON: nothing of the object is copied.
//!
//! No clock and no I/O. Who is allowed what is asked through [`authorizer::Authorizer`], where the caller gives one.
//! Messages and costs follow the original, since both are seen by users: a rule that Kubernetes accepts is accepted here,
//! and the reverse.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line"))]

use std::fmt;
use std::sync::Arc;

mod ast;
pub mod authorizer;
mod check;
pub mod conditions;
mod cost;
mod estimate;
mod eval;
mod functions;
mod json;
mod lex;
pub(crate) mod libs;
mod parse;
mod types;
mod value;

pub use types::{Decl, Field, ListKind, Object, Opaque, Shape, Type, escape};
pub use value::{EvalError, Key, List, Map, Text, Value};

/// What one expression may cost while it runs.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all rules together may cost for one object.
pub const OBJECT_BUDGET: u64 = 10_000_000;

/// Why a text is no expression that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileError {
    problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    line: usize,
    column: usize,
    message: String,
    source: String,
}

impl CompileError {
    fn new(text: &str, problems: Vec<lex::Problem>) -> Self {
        let place = |p: lex::Problem| {
            let mut at = (p.at as usize).min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let before = &text[..at];
            let start = before.rfind('\n').map_or(0, |i| i + 1);
            let line = text[start..].split('\n').next().unwrap_or("");
            Problem {
                line: before.matches('\n').count() + 1,
                column: before[start..].chars().count() + 1,
                message: p.message,
                // The whole line is shown, as long as it is one that somebody would read.
                source: line.chars().take(1024).collect(),
            }
        };
        Self { problems: problems.into_iter().map(place).collect() }
    }

    /// The sentences alone, without places.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(|p| p.message.as_str())
    }
}

impl std::error::Error for CompileError {}

/// As the original shows it: place, sentence, the line, and a caret.
impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "ERROR: <input>:{}:{}: {}", p.line, p.column, p.message)?;
            writeln!(f, " | {}", p.source)?;
            write!(f, " | {}^", ".".repeat(p.column.saturating_sub(1).min(1024)))?;
        }
        Ok(())
    }
}

/// The variables that expressions may use.
#[derive(Debug, Clone, Default)]
pub struct Env {
    variables: Vec<(String, Arc<Decl>)>,
    messages: bool,
}

impl Env {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }
    /// One more variable. Its name may have dots (`authorizer.requestResource`).
    #[must_use]
    pub fn with(mut self, name: &str, decl: Arc<Decl>) -> Self {
        self.variables.push((name.to_owned(), decl));
        self
    }

    /// Lets expressions make objects and patches: `Object{spec: Object.spec{replicas: 1}}`, `JSONPatch{op: "remove", path:
    /// "/spec"}`.
    #[must_use]
    pub fn with_messages(mut self) -> Self {
        self.messages = true;
        self
    }

    /// Parses and checks an expression.
    pub fn compile(&self, text: &str) -> Result<Program, CompileError> {
        let root = parse::parse(text).map_err(|p| CompileError::new(text, vec![p]))?;
        let mut checker = check::Checker {
            variables: &self.variables,
            locals: Vec::new(),
            out: check::Checked::default(),
            problems: Vec::new(),
            mixed: false,
            messages: self.messages,
        };
        let result = checker.check(&root);
        if !checker.problems.is_empty() {
            return Err(CompileError::new(text, checker.problems));
        }
        let checked = checker.out;
        let worst = estimate::Estimator::new(&checked, &self.variables).worst(&root);
        Ok(Program { root, checked, result, worst })
    }
}

/// Reads an expression and writes it out again in one form; the error is that of the parser.
pub fn normalize(text: &str) -> Result<String, CompileError> {
    let root = parse::parse(text).map_err(|p| CompileError::new(text, vec![p]))?;
    Ok(root.to_string())
}

/// An expression, ready to run.
pub struct Program {
    root: ast::Expr,
    checked: check::Checked,
    result: Type,
    worst: u64,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({})", self.root)
    }
}

/// What a run gave, and what it cost.
#[derive(Debug)]
pub struct Evaluation<'a> {
    /// The value, or why there is none.
    pub result: Result<Value<'a>, EvalError>,
    /// Units spent.
    pub cost: u64,
}

impl Program {
    /// The type of the result.
    pub fn result_type(&self) -> &Type {
        &self.result
    }
    /// Whether a variable is used.
    pub fn uses(&self, variable: &str) -> bool {
        self.checked.used.contains(variable)
    }
    /// The cost at worst, within the bounds of the declarations.
    pub fn worst_cost(&self) -> u64 {
        self.worst
    }

    /// Runs the expression. A variable without a value is an error only where it is looked at.
    pub fn evaluate<'a>(&'a self, variables: &[(&str, Value<'a>)], limit: u64) -> Evaluation<'a> {
        let mut run = eval::Run::new(&self.checked, variables, eval::Limits::new(limit));
        let result = run.eval(&self.root);
        Evaluation { result, cost: run.spent }
    }
}

impl Value<'_> {
    /// The value as a text, as `string()` and messages show it.
    pub fn show(&self) -> String {
        libs::strings::display(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What upstream's costs do not see is bounded all the same: deep comparisons, long texts, bytes that are decoded
    /// again and again, lists that double.
    #[test]
    fn cheap_expressions_end_too() {
        let many: Vec<u32> = (0..1000).collect();
        let data =
            json!({"l": many, "deep": [many], "text": "\u{e9}".repeat(10_000), "raw": "YWFh".repeat(5_000)});
        let list = |item: Decl| Decl::new(Shape::List(Arc::new(item), ListKind::Atomic));
        let decl = Decl::object(
            "self",
            [
                ("l", Arc::new(list(Decl::new(Shape::Int)))),
                ("deep", Arc::new(list(list(Decl::new(Shape::Int))))),
                ("text", Decl::string()),
                ("raw", Arc::new(Decl::new(Shape::Bytes))),
            ],
        );
        let env = Env::new().with("self", decl.clone());
        let small = eval::Limits { cost: 1_000_000, built: 200_000, looks: 100_000 };
        for (text, stops) in [
            ("self.deep == self.deep && self.text == self.text && self.raw == self.raw", false),
            ("self.l.all(x, self.deep == self.deep)", true),
            ("self.l.all(x, self.deep in [self.deep])", true),
            ("self.l.all(x, size(self.text) > 0)", true),
            ("self.l.all(x, size(self.raw) > 0)", true),
            ("cel.bind(a, self.l + self.l, cel.bind(b, a + a, (b + b).size() > 0))", true),
            ("self.l.all(x, self.l[x] == x)", false),
        ] {
            let program = env.compile(text).unwrap();
            let variables = [("self", Value::from_json(&data, &decl).unwrap())];
            let mut run = eval::Run::new(&program.checked, &variables, small);
            let result = run.eval(&program.root);
            assert!(run.spent < 50_000, "{text} is cheap");
            match result {
                Ok(value) => assert!(!stops && value.show() == "true", "{text}"),
                Err(error) => assert!(stops && error == EvalError::CostExceeded, "{text}: {error}"),
            }
        }
    }
}
