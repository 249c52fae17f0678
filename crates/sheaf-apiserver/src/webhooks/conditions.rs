//! `matchConditions`: expressions that say whether a webhook wants to see a request. Pure.

use std::sync::{Arc, OnceLock};

use serde_json::Value;
use sheaf_cel::{
    Decl, Env, Opaque, PER_CALL_LIMIT, Program, Shape, Type, Value as Cel,
    authorizer::{Authorizer, Authz, Question},
};
use sheaf_meta::status::FieldError;

/// What all conditions of a webhook together may cost for one request.
const BUDGET: u64 = 2_500_000;

/// The conditions of a webhook, compiled.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<(String, Program)>);

fn environment() -> &'static Env {
    static ENV: OnceLock<Env> = OnceLock::new();
    ENV.get_or_init(|| {
        let string = Decl::string;
        let boolean = || Arc::new(Decl::new(Shape::Bool));
        let strings = || Arc::new(Decl::new(Shape::List(string(), sheaf_cel::ListKind::Atomic)));
        let parts = |name: &str, last: &'static str| {
            Decl::object(name, [("group", string()), ("version", string()), (last, string())])
        };
        let kind = || parts("kubernetes.GroupVersionKind", "kind");
        let resource = || parts("kubernetes.GroupVersionResource", "resource");
        let extra = Arc::new(Decl::new(Shape::Map(strings())));
        let user = Decl::object(
            "kubernetes.UserInfo",
            [("username", string()), ("uid", string()), ("groups", strings()), ("extra", extra)],
        );
        let request = Decl::object(
            "kubernetes.AdmissionRequest",
            [
                ("uid", string()),
                ("kind", kind()),
                ("resource", resource()),
                ("subResource", string()),
                ("requestKind", kind()),
                ("requestResource", resource()),
                ("requestSubResource", string()),
                ("name", string()),
                ("namespace", string()),
                ("operation", string()),
                ("userInfo", user),
                ("dryRun", boolean()),
                ("options", Decl::dynamic()),
            ],
        );
        Env::new()
            .with("object", Decl::dynamic())
            .with("oldObject", Decl::dynamic())
            .with("request", request.clone())
            .with("authorizer", Decl::of(Type::Opaque(Opaque::Authorizer)))
            .with("authorizer.requestResource", Decl::of(Type::Opaque(Opaque::ResourceCheck)))
    })
}

/// The declaration of `request`, which values of it need too.
fn request_decl() -> &'static Decl {
    static DECL: OnceLock<Decl> = OnceLock::new();
    DECL.get_or_init(|| Decl::new(Shape::Dyn))
}

fn compile(expression: &str) -> Result<Program, String> {
    let program = environment().compile(expression).map_err(|e| format!("compilation failed: {e}"))?;
    match program.result_type() {
        Type::Bool | Type::Dyn => Ok(program),
        _ => Err("must evaluate to bool".into()),
    }
}

/// What is wrong with the conditions at a field. Expressions that were there before are not looked at again.
pub(super) fn validate(at: &str, conditions: &Value, known: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, condition) in conditions.as_array().into_iter().flatten().enumerate() {
        let expression = condition["expression"].as_str().unwrap_or_default();
        if expression.trim().is_empty() || known.contains(&expression) {
            continue;
        }
        if let Err(why) = compile(expression) {
            errors.push(FieldError::invalid(format!("{at}[{i}].expression"), &expression.into(), &why));
        }
    }
    errors
}

impl Conditions {
    /// Compiles them.
    pub(super) fn compile(conditions: &Value) -> Result<Self, String> {
        let one = |condition: &Value| {
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_string();
            Ok((text("name"), compile(&text("expression"))?))
        };
        conditions.as_array().into_iter().flatten().map(one).collect::<Result<_, String>>().map(Self)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of them hold. One that does not counts more than one that fails.
    pub(super) fn hold(
        &self,
        object: &Value,
        old: &Value,
        request: &Value,
        authorizer: &dyn Authorizer,
    ) -> Result<bool, String> {
        let text =
            |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_string();
        let question = Question {
            group: text("/resource/group"),
            resource: text("/resource/resource"),
            subresource: text("/subResource"),
            namespace: text("/namespace"),
            name: text("/name"),
            ..Question::default()
        };
        let variables = [
            ("object", Cel::dynamic(object)),
            ("oldObject", Cel::dynamic(old)),
            ("request", Cel::from_json(request, request_decl()).map_err(|e| e.to_string())?),
            ("authorizer", Authz::value(authorizer)),
            ("authorizer.requestResource", Authz::resource(authorizer, question)),
        ];
        let (mut left, mut failed) = (BUDGET, Vec::new());
        for (name, program) in &self.0 {
            let run = program.evaluate(&variables, left.min(PER_CALL_LIMIT));
            left = left.saturating_sub(run.cost);
            match run.result {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => return Ok(false),
                Ok(_) => failed.push(format!("condition \"{name}\": it evaluates to no boolean")),
                Err(error) => failed.push(format!("condition \"{name}\": {error}")),
            }
        }
        if failed.is_empty() { Ok(true) } else { Err(failed.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sheaf_cel::authorizer::Decision;

    use super::*;

    struct Reader;

    impl Authorizer for Reader {
        fn check(&self, question: &Question) -> Decision {
            Decision { allowed: question.verb == "get", ..Decision::default() }
        }
    }

    fn hold(expressions: &[&str]) -> Result<bool, String> {
        let list: Vec<Value> = expressions.iter().map(|e| json!({"name": "c", "expression": e})).collect();
        let request = json!({"operation": "CREATE", "userInfo": {"username": "u", "groups": ["g"]}, "name": "n",
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "dryRun": false});
        let object = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"n": 3}});
        Conditions::compile(&json!(list))?.hold(&object, &Value::Null, &request, &Reader)
    }

    #[test]
    fn conditions_as_a_table() {
        for (expressions, expected) in [
            (&["true"][..], Ok(true)),
            (&["object.spec.n > 2", "request.operation == 'CREATE'"], Ok(true)),
            (&["oldObject == null"], Ok(true)),
            (&["request.userInfo.username == 'u' && 'g' in request.userInfo.groups"], Ok(true)),
            (&["object.metadata.labels['a'] == 'x'"], Ok(false)),
            (&["has(object.status)"], Ok(false)),
            (&["request.resource.resource == 'pods' && !request.dryRun"], Ok(true)),
            (&["authorizer.requestResource.check('get').allowed()"], Ok(true)),
            (&["authorizer.group('').resource('pods').check('delete').allowed()"], Ok(false)),
            (&["object.none.x == 1"], Err("condition \"c\"")),
            (&["object.none.x == 1", "false"], Ok(false)),
        ] {
            match (hold(expressions), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{expressions:?}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, _) => panic!("{expressions:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn expressions_that_cannot_be_used_are_refused_where_they_stand() {
        let conditions = json!([{"name": "a", "expression": "1 +"}, {"name": "b", "expression": "1"},
            {"name": "c", "expression": "request.nonsense == 1"}, {"name": "d", "expression": "true"}]);
        let fields: Vec<String> = validate("m", &conditions, &[]).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["m[0].expression", "m[1].expression", "m[2].expression"]);
        assert_eq!(validate("m", &conditions, &["1 +", "1", "request.nonsense == 1"]), []);
    }
}
