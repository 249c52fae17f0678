//! Which names a definition gets, and what its conditions say. Pure.
//!
//! Within a group every name belongs to one definition. Who has a name keeps it; a newcomer that wants it is told so in
//! its conditions, and gets it once it is free.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object;

use super::definition::{Definition, Names};

/// Names of a group that others have.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Plurals, singulars and short names, which share one space.
    resources: HashSet<String>,
    /// Kinds and list kinds.
    kinds: HashSet<String>,
}

impl Taken {
    /// Notes the names that somebody has.
    pub(super) fn add(&mut self, names: &Names) {
        let resources = [&names.plural, &names.singular].into_iter().chain(&names.short_names);
        self.resources.extend(resources.filter(|n| !n.is_empty()).cloned());
        self.kinds.extend([&names.kind, &names.list_kind].into_iter().filter(|n| !n.is_empty()).cloned());
    }
}

/// What a definition's status should say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// `status.acceptedNames`.
    pub(super) accepted: Names,
    /// `status.conditions`.
    pub(super) conditions: Vec<Value>,
    /// Whether the kind is served.
    pub(super) established: bool,
}

/// Decides on the names of a definition, given those that others of its group have.
pub(super) fn plan_names(definition: &Definition, taken: &Taken, now: Timestamp) -> Verdict {
    let (wanted, mut accepted) = (&definition.wanted, definition.accepted.clone());
    let mut conflict: Option<(&str, String)> = None;
    let free = |name: &str, had: &str, used: &HashSet<String>| {
        if name.is_empty() || name == had || !used.contains(name) {
            Ok(())
        } else {
            Err(format!("\"{name}\" is already in use"))
        }
    };
    // The last conflict is the one that is told of.
    match free(&wanted.plural, &accepted.plural, &taken.resources) {
        Ok(()) => accepted.plural.clone_from(&wanted.plural),
        Err(why) => conflict = Some(("PluralConflict", why)),
    }
    match free(&wanted.singular, &accepted.singular, &taken.resources) {
        Ok(()) => accepted.singular.clone_from(&wanted.singular),
        Err(why) => conflict = Some(("SingularConflict", why)),
    }
    let had = accepted.short_names.clone();
    let refused: Vec<String> = wanted
        .short_names
        .iter()
        .filter(|name| !had.contains(name))
        .filter_map(|name| free(name, "", &taken.resources).err())
        .collect();
    if refused.is_empty() {
        accepted.short_names.clone_from(&wanted.short_names);
    } else {
        let why = if refused.len() == 1 { refused[0].clone() } else { format!("[{}]", refused.join(", ")) };
        conflict = Some(("ShortNamesConflict", why));
    }
    match free(&wanted.kind, &accepted.kind, &taken.kinds) {
        Ok(()) => accepted.kind.clone_from(&wanted.kind),
        Err(why) => conflict = Some(("KindConflict", why)),
    }
    match free(&wanted.list_kind, &accepted.list_kind, &taken.kinds) {
        Ok(()) => accepted.list_kind.clone_from(&wanted.list_kind),
        Err(why) => conflict = Some(("ListKindConflict", why)),
    }
    accepted.categories.clone_from(&wanted.categories);

    let mut conditions = definition.conditions.clone();
    let all_accepted = conflict.is_none();
    match conflict {
        None => set(&mut conditions, "NamesAccepted", true, "NoConflicts", "no conflicts found", now),
        Some((reason, why)) => set(&mut conditions, "NamesAccepted", false, reason, &why, now),
    }
    // Who was served goes on being served under the names it has.
    let established = definition.is("Established") || all_accepted;
    if !established {
        let why = "not all names are accepted";
        set(&mut conditions, "Established", false, "NotAccepted", why, now);
    } else if !definition.is("Established") {
        let why = "the initial names have been accepted";
        set(&mut conditions, "Established", true, "InitialNamesAccepted", why, now);
    }
    approve(definition, &mut conditions, now);
    Verdict { accepted, conditions, established }
}

/// What definitions in Kubernetes' own groups say of their approval.
fn approve(definition: &Definition, conditions: &mut Vec<Value>, now: Timestamp) {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    let group = &definition.group;
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|g| group == g || group.strip_suffix(g).is_some_and(|rest| rest.ends_with('.')));
    if !protected {
        conditions.retain(|c| c["type"] != KIND);
        return;
    }
    match definition.approval.as_deref().unwrap_or_default() {
        "" => {
            let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
            set(conditions, KIND, false, "MissingAnnotation", why, now);
        }
        text if text.starts_with("unapproved") => {
            set(conditions, KIND, false, "UnapprovedAnnotation", &format!("not approved: \"{text}\""), now);
        }
        text => set(conditions, KIND, true, "ApprovedAnnotation", &format!("approved in {text}"), now),
    }
}

/// Sets a condition; the time of transition moves only with the status.
pub(super) fn set(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let new = |since: Value| json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message});
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(old) if old["status"] == status => {
            *old = new(old["lastTransitionTime"].clone());
        }
        Some(old) => *old = new(json!(object::time(now))),
        None => conditions.push(new(json!(object::time(now)))),
    }
}

#[cfg(test)]
mod tests {
    use sheaf_store::Revision;

    use super::super::definition::tests::crontabs;
    use super::*;

    fn now() -> Timestamp {
        "2026-02-03T04:05:06Z".parse().unwrap()
    }

    fn condition<'a>(verdict: &'a Verdict, kind: &str) -> (&'a str, &'a str, &'a str) {
        let found = verdict.conditions.iter().find(|c| c["type"] == kind).unwrap();
        let text = |key: &str| found[key].as_str().unwrap();
        (text("status"), text("reason"), text("message"))
    }

    #[test]
    fn a_definition_alone_gets_what_it_wants() {
        let definition = Definition::read(&crontabs(), Revision(1));
        let verdict = plan_names(&definition, &Taken::default(), now());
        assert!(verdict.established);
        assert_eq!(verdict.accepted, definition.wanted);
        assert_eq!(condition(&verdict, "NamesAccepted"), ("True", "NoConflicts", "no conflicts found"));
        assert_eq!(condition(&verdict, "Established").1, "InitialNamesAccepted");
        // What is written is what is planned next time.
        let mut crd = crontabs();
        crd["status"] = json!({"conditions": verdict.conditions, "acceptedNames": verdict.accepted});
        let again = plan_names(&Definition::read(&crd, Revision(2)), &Taken::default(), Timestamp::now());
        assert_eq!(again, verdict, "nothing moves, not even a time");
    }

    #[test]
    fn each_name_that_others_have_is_refused() {
        for (taken, reason) in [
            (json!({"plural": "crontabs"}), "PluralConflict"),
            (json!({"plural": "crontab"}), "SingularConflict"),
            (json!({"shortNames": ["ct"]}), "ShortNamesConflict"),
            (json!({"plural": "ct"}), "ShortNamesConflict"),
            (json!({"kind": "CronTab"}), "KindConflict"),
            (json!({"listKind": "CronTabList"}), "ListKindConflict"),
        ] {
            let mut all = Taken::default();
            all.add(&serde_json::from_value(taken.clone()).unwrap());
            let verdict = plan_names(&Definition::read(&crontabs(), Revision(1)), &all, now());
            assert!(!verdict.established, "{taken}");
            let (status, why, message) = condition(&verdict, "NamesAccepted");
            assert_eq!((status, why), ("False", reason), "{taken}");
            assert!(message.ends_with("is already in use"), "{message}");
            assert_eq!(
                condition(&verdict, "Established"),
                ("False", "NotAccepted", "not all names are accepted")
            );
        }
    }

    #[test]
    fn who_is_served_stays_served_under_its_old_names() {
        let mut crd = crontabs();
        let first = plan_names(&Definition::read(&crd, Revision(1)), &Taken::default(), now());
        crd["status"] = json!({"conditions": first.conditions, "acceptedNames": first.accepted});
        crd["spec"]["names"]["shortNames"] = json!(["ct", "c"]);
        let mut taken = Taken::default();
        taken.add(&serde_json::from_value(json!({"shortNames": ["c"]})).unwrap());
        let verdict = plan_names(&Definition::read(&crd, Revision(2)), &taken, now());
        assert!(verdict.established);
        assert_eq!(condition(&verdict, "NamesAccepted").1, "ShortNamesConflict");
        assert_eq!(verdict.accepted.short_names, ["ct"]);
        assert_eq!(condition(&verdict, "Established").0, "True");
    }

    #[test]
    fn approval_in_protected_groups() {
        let mut crd = crontabs();
        crd["spec"]["group"] = json!("x.k8s.io");
        for (annotation, expected) in [
            (json!({}), ("False", "MissingAnnotation")),
            (json!({"api-approved.kubernetes.io": "unapproved, trying"}), ("False", "UnapprovedAnnotation")),
            (json!({"api-approved.kubernetes.io": "https://x/1"}), ("True", "ApprovedAnnotation")),
        ] {
            crd["metadata"]["annotations"] = annotation;
            let verdict = plan_names(&Definition::read(&crd, Revision(1)), &Taken::default(), now());
            let (status, reason, _) = condition(&verdict, "KubernetesAPIApprovalPolicyConformant");
            assert_eq!((status, reason), expected);
        }
        let plain = plan_names(&Definition::read(&crontabs(), Revision(1)), &Taken::default(), now());
        assert_eq!(plain.conditions.len(), 2);
    }
}
