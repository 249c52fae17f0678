//! Conditions on requests.

use serde_json::json;
use sheaf_cel::authorizer::{Authorizer, Decision, Question};
use sheaf_cel::conditions::{Conditions, MAX_CONDITIONS, Request, Verdict, validate};

/// Allows one verb.
struct Only(&'static str);
impl Authorizer for Only {
    fn check(&self, question: &Question) -> Decision {
        let allowed = question.verb == self.0 && question.resource == "pods" && question.namespace == "ns";
        Decision { allowed, ..Decision::default() }
    }
}

fn verdict(expressions: &[&str]) -> Verdict {
    let list: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(i, e)| json!({"name": format!("c{i}"), "expression": e}))
        .collect();
    let conditions = json!(list);
    assert_eq!(validate(&conditions, "webhooks[0].matchConditions"), []);
    let (object, old) = (json!({"metadata": {"labels": {"a": "b"}}}), json!(null));
    let request = json!({
        "operation": "CREATE", "namespace": "ns", "name": "", "dryRun": false, "options": {"kind": "CreateOptions"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "userInfo": {"username": "u", "groups": ["system:masters"], "extra": {"k": ["v"]}},
    });
    let who = Only("get");
    let request = Request { object: &object, old_object: &old, request: &request, authorizer: &who };
    Conditions::compile(&conditions).verdict(&request)
}

#[test]
fn verdicts() {
    let excluded = |by: &str| Verdict::Excluded { by: by.to_owned() };
    for (expressions, wanted) in [
        (&[][..], Verdict::Matches),
        (&["object.metadata.labels.a == 'b'", "oldObject == null"], Verdict::Matches),
        (&["true", "request.operation == 'DELETE'"], excluded("c1")),
        (
            &["'system:masters' in request.userInfo.groups", "request.userInfo.extra.k[0] == 'v'"],
            Verdict::Matches,
        ),
        (&["!has(request.subResource)", "request.resource.resource == 'pods'"], Verdict::Matches),
        (&["authorizer.requestResource.check('get').allowed()"], Verdict::Matches),
        (&["authorizer.requestResource.check('update').allowed()"], excluded("c0")),
        // One that fails does not hide one that excludes.
        (&["object.nope", "false"], excluded("c1")),
        (&["object.nope", "true"], Verdict::Failed(vec!["match condition c0: no such key: nope".into()])),
        (
            &["object.metadata"],
            Verdict::Failed(vec!["match condition c0: cel expression must evaluate to a bool".into()]),
        ),
    ] {
        assert_eq!(verdict(expressions), wanted, "{expressions:?}");
    }
}

#[test]
fn what_is_refused() {
    let show = |conditions| -> Vec<String> {
        validate(&conditions, "m").iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    };
    for (conditions, wanted) in [
        (json!([{"name": "a", "expression": " "}]), vec!["m[0].expression: Required value"]),
        (json!([{"expression": "true"}]), vec!["m[0].name: Required value"]),
        (
            json!([{"name": "a", "expression": "1"}]),
            vec![r#"m[0].expression: Invalid value: "1": must evaluate to bool"#],
        ),
        (
            json!([{"name": "a", "expression": "nope"}]),
            vec![
                "m[0].expression: Invalid value: \"nope\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope\n | ^",
            ],
        ),
        (
            json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
            vec![r#"m[1].name: Duplicate value: "a""#],
        ),
        (json!(null), vec![]),
    ] {
        assert_eq!(show(conditions.clone()), wanted, "{conditions}");
    }
    let many: Vec<_> =
        (0..=MAX_CONDITIONS).map(|i| json!({"name": format!("c{i}"), "expression": "true"})).collect();
    assert_eq!(show(json!(many)), ["m: Too many: 65: must have at most 64 items"]);
}
