//! `x-kubernetes-validations`: rules compiled along the schema, and evaluated along an object and the one it replaces.

use std::sync::Arc;

use serde_json::Value;
use sheaf_cel::{Decl, Env, EvalError, PER_CALL_LIMIT, Program, Shape, Type};
use sheaf_meta::schema::Correlated;
use sheaf_meta::status::FieldError;

use crate::declare::declare;
use crate::embedded::join;
use crate::field_path;
use crate::json::{flag, list, object, properties, property, schema, text, texts};

/// Longest message that an expression may make, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    rule: String,
    message: String,
    reason: String,
    /// `.a[k]`: what errors add to the place of the rule.
    field_path: String,
    pub(crate) optional_old_self: Option<bool>,
    /// The rule, or why it cannot be used.
    pub(crate) program: Result<Program, String>,
    /// The expression of the message, if there is one.
    pub(crate) message_program: Option<Result<Program, String>>,
}

impl Rule {
    /// Compiles a rule of a schema whose declaration is given.
    pub(crate) fn compile(rule: &Value, decl: &Arc<Decl>) -> Self {
        let map = object(rule);
        let optional_old_self = map.get("optionalOldSelf").and_then(Value::as_bool);
        let old = if optional_old_self == Some(true) {
            Decl::of(Type::Optional(Arc::new(decl.ty.clone())))
        } else {
            decl.clone()
        };
        let env = Env::new().with("self", decl.clone()).with("oldSelf", old);
        let compile = |source: &str, wanted: &Type, sentence: &str| match env.compile(source) {
            Err(error) => Err(format!("compilation failed: {error}")),
            Ok(program) if program.result_type() == wanted => Ok(program),
            Ok(_) => Err(sentence.to_owned()),
        };
        let program = compile(text(map, "rule"), &Type::Bool, "cel expression must evaluate to a bool");
        let message = text(map, "messageExpression");
        let message_program = (!message.trim().is_empty())
            .then(|| compile(message, &Type::String, "must evaluate to a string"))
            .map(|p| p.map_err(|why| format!("messageExpression {why}")));
        let trimmed = |key: &str| text(map, key).trim().to_owned();
        Self {
            rule: trimmed("rule"),
            message: trimmed("message"),
            reason: trimmed("reason"),
            field_path: suffix(text(map, "fieldPath").trim(), decl),
            optional_old_self,
            program,
            message_program,
        }
    }

    /// Whether the rule looks at the object that is replaced.
    pub(crate) fn uses_old_self(&self) -> bool {
        self.program.as_ref().is_ok_and(|p| p.uses("oldSelf"))
    }

    /// The rule as errors about it name it.
    fn label(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }

    fn error(&self, path: &str, kind: &str, message: String) -> FieldError {
        let value = Value::from(kind);
        let mut field = format!("{path}{}", self.field_path);
        if field.is_empty() {
            field.push_str("<nil>");
        } else if path.is_empty() {
            field = field.trim_start_matches('.').to_owned();
        }
        match self.reason.as_str() {
            "FieldValueForbidden" => FieldError::forbidden(field, &message),
            "FieldValueRequired" => FieldError::required(field, &message),
            "FieldValueDuplicate" => FieldError::duplicate(field, &value),
            _ => FieldError::invalid(field, &value, &message),
        }
    }
}

/// A path of fields as errors write it: fields with dots, keys of maps in brackets.
fn suffix(path: &str, decl: &Decl) -> String {
    let mut out = String::new();
    let mut at = Some(Arc::new(decl.clone()));
    for step in field_path::parse(path).unwrap_or_default() {
        let shape = at.take().map(|d| d.shape.clone());
        match shape {
            Some(Shape::Map(values)) => {
                out.push_str(&format!("[{step}]"));
                at = Some(values);
            }
            Some(Shape::Object(object)) => {
                at = object.fields.values().find(|f| f.json == step).map(|f| f.decl.clone());
                out.push_str(&format!(".{step}"));
            }
            _ => out.push_str(&format!(".{step}")),
        }
    }
    out
}

/// The rules of a schema and of what is below it; only branches that have some.
#[derive(Debug)]
pub(crate) struct Node {
    rules: Vec<Rule>,
    decl: Arc<Decl>,
    kind: String,
    properties: Vec<(String, Node)>,
    values: Option<Box<Node>>,
    items: Option<Box<Node>>,
    /// Fields by which items of the list are told apart over time; without, they are not.
    map_keys: Vec<String>,
    /// Below, nothing is told apart over time.
    map_atomic: bool,
}

impl Node {
    /// Compiles all rules of a schema. `None` if it has none.
    pub(crate) fn compile(definition: &Value, resource: bool) -> Option<Self> {
        if !has_any(definition) {
            return None;
        }
        Self::at(definition, &declare(definition, resource)?)
    }

    fn at(definition: &Value, decl: &Arc<Decl>) -> Option<Self> {
        let map = object(definition);
        let mut out = Self {
            rules: list(map, "x-kubernetes-validations").iter().map(|r| Rule::compile(r, decl)).collect(),
            decl: decl.clone(),
            kind: text(map, "type").to_owned(),
            properties: Vec::new(),
            values: None,
            items: None,
            map_keys: Vec::new(),
            map_atomic: text(map, "x-kubernetes-map-type") == "atomic",
        };
        match &decl.shape {
            Shape::Object(fields) => {
                for field in fields.fields.values() {
                    let child = property(map, &field.json);
                    if let Some(node) = child.and_then(|s| Self::at(s, &field.decl)) {
                        out.properties.push((field.json.clone(), node));
                    }
                }
                // Fields that expressions cannot name may have rules of their own.
                for (name, child) in properties(map) {
                    if sheaf_cel::escape(name).is_none()
                        && let Some(node) =
                            Self::compile(child, flag(object(child), "x-kubernetes-embedded-resource"))
                    {
                        out.properties.push((name.clone(), node));
                    }
                }
            }
            Shape::Map(values) => {
                out.values =
                    schema(map, "additionalProperties").and_then(|s| Self::at(s, values)).map(Box::new);
            }
            Shape::List(items, _) => {
                out.items = schema(map, "items").and_then(|s| Self::at(s, items)).map(Box::new);
                if text(map, "x-kubernetes-list-type") == "map" {
                    let keys = texts(map, "x-kubernetes-list-map-keys");
                    out.map_keys = keys.into_iter().map(str::to_owned).collect();
                }
            }
            _ => {}
        }
        let any = !out.rules.is_empty()
            || !out.properties.is_empty()
            || out.values.is_some()
            || out.items.is_some();
        any.then_some(out)
    }
}

/// Whether a schema has rules anywhere.
pub(crate) fn has_any(definition: &Value) -> bool {
    let map = object(definition);
    !list(map, "x-kubernetes-validations").is_empty()
        || properties(map).any(|(_, s)| has_any(s))
        || ["items", "additionalProperties"].iter().any(|k| schema(map, k).is_some_and(has_any))
}

/// One evaluation of all rules.
pub(crate) struct Run {
    pub(crate) errors: Vec<FieldError>,
    /// What values that did not change break: told, but no reason to refuse.
    pub(crate) warnings: Vec<String>,
    budget: u64,
    stopped: bool,
    /// Whether what did not change is tolerated.
    ratchet: bool,
}

impl Run {
    pub(crate) fn new(budget: u64) -> Self {
        Self { errors: Vec::new(), warnings: Vec::new(), budget, stopped: false, ratchet: true }
    }
    /// Nothing is tolerated for being as it was.
    pub(crate) fn strict(budget: u64) -> Self {
        Self { ratchet: false, ..Self::new(budget) }
    }

    /// Evaluates the rules of a node and below. `old` is the value that is replaced, where it is known which one that is.
    pub(crate) fn evaluate(&mut self, node: &Node, new: &Value, old: Option<&Value>, path: &str) {
        self.at(node, new, old, false, path);
    }

    /// `within`: the nearest value around this one that could be told apart over time did not change.
    fn at(&mut self, node: &Node, new: &Value, old: Option<&Value>, within: bool, path: &str) {
        if self.stopped || new.is_null() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        let unchanged = self.ratchet && old.map_or(within, |o| o == new);
        for rule in &node.rules {
            self.rule(node, rule, new, (old, unchanged), path);
            if self.stopped {
                return;
            }
        }
        match new {
            Value::Object(map) => {
                let before = old.and_then(Value::as_object).filter(|_| !node.map_atomic);
                for (name, child) in &node.properties {
                    if let Some(value) = map.get(name) {
                        self.at(child, value, before.and_then(|o| o.get(name)), unchanged, &join(path, name));
                    }
                }
                if let Some(child) = &node.values {
                    for (key, value) in map {
                        let place = format!("{path}[{key}]");
                        self.at(child, value, before.and_then(|o| o.get(key)), unchanged, &place);
                    }
                }
            }
            Value::Array(list) => {
                let Some(child) = &node.items else { return };
                let before = old.and_then(Value::as_array);
                let before = before.map(|b| Correlated::new(node.map_keys.iter().map(String::as_str), b));
                for (i, value) in list.iter().enumerate() {
                    let old = before.as_ref().and_then(|b| b.get(value));
                    self.at(child, value, old, unchanged, &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn rule(
        &mut self,
        node: &Node,
        rule: &Rule,
        new: &Value,
        (old, unchanged): (Option<&Value>, bool),
        path: &str,
    ) {
        let program = match &rule.program {
            Ok(program) => program,
            Err(why) => {
                self.errors.push(rule.error(path, &node.kind, format!("rule compile error: {why}")));
                return;
            }
        };
        let transition = rule.uses_old_self();
        let optional = rule.optional_old_self == Some(true);
        if transition && old.is_none() && !optional {
            return;
        }
        let unchanged = unchanged && !transition;
        let push = |run: &mut Self, error: FieldError| {
            if unchanged {
                run.warnings.push(format!("{}: {}", error.field, error.message));
            } else {
                run.errors.push(error);
            }
        };
        let mut variables = Vec::with_capacity(2);
        match sheaf_cel::Value::from_json(new, &node.decl) {
            Ok(value) => variables.push(("self", value)),
            Err(error) => {
                let message = format!("{error} evaluating rule: {}", rule.label());
                return push(self, rule.error(path, &node.kind, message));
            }
        }
        let before = old.map(|o| sheaf_cel::Value::from_json(o, &node.decl));
        match (optional, before) {
            (false, Some(Ok(value))) => variables.push(("oldSelf", value)),
            (true, Some(Ok(value))) => variables.push(("oldSelf", sheaf_cel::Value::optional(Some(value)))),
            (true, None) => variables.push(("oldSelf", sheaf_cel::Value::optional(None))),
            // What was stored before the schema was what it is cannot be compared with.
            (_, Some(Err(_))) | (false, None) => {}
        }
        let run = program.evaluate(&variables, PER_CALL_LIMIT);
        match run.result {
            Ok(sheaf_cel::Value::Bool(true)) => {}
            Ok(_) => {
                let message = self.message(rule, &variables);
                push(self, rule.error(path, &node.kind, message));
            }
            Err(EvalError::CostExceeded) => {
                let why = EvalError::CostExceeded;
                let message = format!(
                    "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                    rule.label()
                );
                push(self, rule.error(path, &node.kind, message));
                self.stopped = true;
                return;
            }
            Err(EvalError::NoOverload) => {
                let message = format!(
                    "'{}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                    EvalError::NoOverload,
                    rule.label()
                );
                push(self, rule.error(path, &node.kind, message));
            }
            Err(error) => {
                let message = format!("{error} evaluating rule: {}", rule.label());
                push(self, rule.error(path, &node.kind, message));
            }
        }
        self.spend(run.cost, rule, node, path);
    }

    fn spend(&mut self, cost: u64, rule: &Rule, node: &Node, path: &str) {
        match self.budget.checked_sub(cost) {
            Some(left) => self.budget = left,
            None => {
                self.stopped = true;
                let message = "validation failed due to running out of cost budget, no further validation rules will be run";
                self.errors.push(rule.error(path, &node.kind, message.to_owned()));
            }
        }
    }

    fn message(&mut self, rule: &Rule, variables: &[(&str, sheaf_cel::Value<'_>)]) -> String {
        if let Some(Ok(program)) = &rule.message_program {
            let run = program.evaluate(variables, PER_CALL_LIMIT.min(self.budget));
            self.budget = self.budget.saturating_sub(run.cost);
            if let Ok(sheaf_cel::Value::String(text)) = run.result {
                let text = text.trim();
                if !text.is_empty() && !text.contains(['\n', '\r']) && text.len() <= MAX_MESSAGE {
                    return text.to_owned();
                }
            }
        }
        if rule.message.is_empty() { format!("failed rule: {}", rule.rule) } else { rule.message.clone() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The rules of an object share one budget: when it is used up, that is said, and no rule runs any more.
    #[test]
    fn the_budget_of_an_object() {
        let rule = json!({"rule": "self.l.all(x, x >= 0)"});
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": [rule, rule, rule, {"rule": "false"}]});
        let node = Node::compile(&schema, false).unwrap();
        let object = json!({"l": (0..100).collect::<Vec<_>>()});
        let run = |budget: u64| {
            let mut run = Run::new(budget);
            run.evaluate(&node, &object, None, "spec");
            run.errors.into_iter().map(|e| e.message).collect::<Vec<_>>()
        };
        assert_eq!(run(10_000), [r#"Invalid value: "object": failed rule: false"#]);
        assert_eq!(
            run(1200),
            [
                r#"Invalid value: "object": validation failed due to running out of cost budget, no further validation rules will be run"#
            ]
        );
    }
}
