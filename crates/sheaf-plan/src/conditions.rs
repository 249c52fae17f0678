//! Conditions of KubeVirt's kinds: found, set and removed, with a transition time that moves only when the status
//! does. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sheaf_api::kubevirt::Condition;

/// The condition of a type, if it is there.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.r#type == kind)
}

/// Whether a condition is there and `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

/// Sets a condition. Its transition time is `now` if it is new or its status changes, else it stays.
pub fn set(
    conditions: &mut Vec<Condition>,
    now: Timestamp,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) {
    let since =
        find(conditions, kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let fresh = Condition {
        r#type: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_probe_time: None,
        last_transition_time: since.or(Some(Time(now))),
    };
    match conditions.iter_mut().find(|c| c.r#type == kind) {
        Some(old) => *old = fresh,
        None => conditions.push(fresh),
    }
}

/// Removes a condition: for those whose mere presence means something.
pub fn remove(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.r#type != kind);
}

/// `now` in whole seconds, as the API writes times.
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_time_moves_with_the_status_only() {
        let t = |s| Timestamp::from_second(s).expect("a time");
        let mut list = Vec::new();
        set(&mut list, t(1), "Ready", "False", "GuestNotRunning", "");
        set(&mut list, t(2), "Ready", "False", "Other", "still not");
        assert_eq!(find(&list, "Ready").and_then(|c| c.last_transition_time.clone()), Some(Time(t(1))));
        set(&mut list, t(3), "Ready", "True", "", "");
        assert_eq!(find(&list, "Ready").and_then(|c| c.last_transition_time.clone()), Some(Time(t(3))));
        assert!(is_true(&list, "Ready"));
        remove(&mut list, "Ready");
        assert!(list.is_empty());
    }
}
