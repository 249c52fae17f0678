//! Start order: a VM whose annotation names others starts when those are ready. Pure.
//!
//! ```yaml
//! metadata: {annotations: {sheaf.io/start-after: "database, cache"}}
//! ```
//!
//! Names are of the same namespace. It holds for the start only: what runs goes on whatever becomes of the others. A circle
//! is refused when it is written; one that came to be nevertheless is named in the status.

use std::collections::BTreeMap;

/// On a VM: names of the VMs that have to be ready before it starts.
pub const START_AFTER: &str = "sheaf.io/start-after";
/// More VMs than this are not followed.
pub const FOLLOWED_MAX: usize = 256;

/// The names in an annotation.
pub fn names(annotation: Option<&str>) -> Vec<String> {
    let all = annotation.unwrap_or_default().split([',', ' ', '\n']);
    all.filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// The circle that begins and ends with `vm`, if there is one. `after` has for each VM those that it waits for.
pub fn circle(vm: &str, after: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![vm.to_owned()]];
    let mut seen: Vec<String> = Vec::new();
    while let Some(way) = ways.pop() {
        let last = way.last().cloned().unwrap_or_default();
        for next in after.get(&last).into_iter().flatten() {
            let mut longer = way.clone();
            longer.push(next.clone());
            if next == vm {
                return Some(longer);
            }
            if !seen.contains(next) && seen.len() < FOLLOWED_MAX {
                seen.push(next.clone());
                ways.push(longer);
            }
        }
    }
    None
}

/// What a VM waits for, in words; `None` if nothing. `ready` says of another VM whether it is there, and ready.
pub fn waits(
    vm: &str,
    after: &BTreeMap<String, Vec<String>>,
    ready: impl Fn(&str) -> Option<bool>,
) -> Option<String> {
    if let Some(circle) = circle(vm, after) {
        return Some(format!(
            "{START_AFTER} goes round in a circle: {}; take one of them out",
            circle.join(" -> ")
        ));
    }
    let names = after.get(vm)?;
    names.iter().find_map(|name| match ready(name) {
        Some(true) => None,
        Some(false) => Some(format!("waits for VirtualMachine {name} to be ready, as {START_AFTER} says")),
        None => Some(format!("waits for VirtualMachine {name}, which does not exist, as {START_AFTER} says")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(edges: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
        edges.iter().map(|(vm, after)| ((*vm).to_owned(), names(Some(after)))).collect()
    }

    #[test]
    fn circles_are_found_and_named() {
        let after = all(&[("web", "app"), ("app", "db, cache"), ("cache", "db"), ("db", "")]);
        for vm in ["web", "app", "cache", "db", "other"] {
            assert_eq!(circle(vm, &after), None, "{vm}");
        }
        let after = all(&[("web", "app"), ("app", "cache,db"), ("db", "web")]);
        assert_eq!(circle("db", &after).expect("a circle"), ["db", "web", "app", "db"]);
        assert_eq!(circle("a", &all(&[("a", "a")])).expect("a circle"), ["a", "a"]);
        // A circle of others holds nobody who is not in it, here.
        assert_eq!(circle("x", &all(&[("x", "a"), ("a", "b"), ("b", "a")])), None);
    }

    #[test]
    fn the_first_that_is_not_ready_is_named() {
        let after = all(&[("web", "db cache")]);
        let ready = |db: Option<bool>, cache: Option<bool>| {
            waits("web", &after, move |name| if name == "db" { db } else { cache })
        };
        assert_eq!(ready(Some(true), Some(true)), None);
        assert!(ready(Some(true), Some(false)).expect("waits").contains("VirtualMachine cache to be ready"));
        assert!(ready(None, Some(false)).expect("waits").contains("db, which does not exist"));
        assert_eq!(waits("other", &after, |_| None), None);
    }
}
