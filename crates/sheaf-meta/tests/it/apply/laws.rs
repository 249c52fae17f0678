//! Laws of apply, over random configurations and histories.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sheaf_meta::patch::merge_patch;

use super::{Story, schema};

/// A configuration of the kind of [`schema`].
pub(super) fn config() -> impl Strategy<Value = Value> {
    let text = prop_oneof![Just("1"), Just("2")];
    let scalars = prop::collection::btree_map(prop_oneof![Just("a"), Just("b")], text.clone(), 0..3);
    let labels = prop::option::of(prop::collection::btree_map("[xyz]", text.clone(), 0..3));
    let sub =
        prop::option::of(prop::collection::btree_map(prop_oneof![Just("x"), Just("y")], text.clone(), 0..3));
    let set = prop::option::of(prop::collection::btree_set("[pqr]", 0..3));
    let args = prop::option::of(prop::collection::vec("[pq]", 0..2));
    let whole = prop::option::of(prop::collection::btree_map("[xy]", text.clone(), 0..2));
    let port = (80..82u16, prop_oneof![Just(None), Just(Some("UDP"))]);
    let container = (prop::option::of(text), prop::option::of(prop::collection::btree_set(port, 0..3)));
    let containers = prop::option::of(prop::collection::btree_map("[cde]", container, 0..3));
    (scalars, labels, sub, set, args, whole, containers).prop_map(
        |(scalars, labels, sub, set, args, whole, containers)| {
            let mut spec: Map<String, Value> =
                scalars.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
            let mut put = |key: &str, value: Option<Value>| {
                if let Some(v) = value {
                    spec.insert(key.into(), v);
                }
            };
            put("labels", labels.map(|l| json!(l)));
            put("free", sub.clone().map(|l| json!({"deep": l})));
            put("sub", sub.map(|l| json!(l)));
            put("set", set.map(|l| json!(l)));
            put("args", args.map(|l| json!(l)));
            put("whole", whole.map(|l| json!(l)));
            put(
                "containers",
                containers.map(|all| {
                    all.into_iter()
                        .map(|(name, (image, ports))| {
                            let mut c = json!({"name": name});
                            if let Some(image) = image {
                                c["image"] = json!(image);
                            }
                            if let Some(ports) = ports {
                                c["ports"] = ports
                                    .into_iter()
                                    .map(|(port, protocol)| match protocol {
                                        Some(p) => json!({"port": port, "protocol": p}),
                                        None => json!({"port": port}),
                                    })
                                    .collect();
                            }
                            c
                        })
                        .collect()
                }),
            );
            json!({"spec": spec})
        },
    )
}

/// Whether everything of a configuration is in an object; lists with keys by key, sets by value.
fn holds(object: &Value, config: &Value) -> bool {
    match (object, config) {
        (Value::Object(o), Value::Object(c)) => c.iter().all(|(k, v)| o.get(k).is_some_and(|x| holds(x, v))),
        (Value::Array(o), Value::Array(c)) => c.iter().all(|v| {
            o.iter().any(|x| {
                let same = |k: &str| v.get(k).is_none() || v.get(k) == x.get(k);
                match v {
                    Value::Object(_) => same("name") && same("port") && same("protocol") && holds(x, v),
                    _ => x == v,
                }
            })
        }),
        (o, c) => o == c,
    }
}

fn is_shared(config: &Value) -> Value {
    // A config with keys renamed so that it shares no leaf with the original.
    let mut spec = Map::new();
    for (key, value) in config["spec"].as_object().into_iter().flatten() {
        match key.as_str() {
            "a" => drop(spec.insert("n".into(), json!(7))),
            "labels" | "whole2" => {
                let renamed =
                    value.as_object().into_iter().flatten().map(|(k, v)| (format!("{k}{k}"), v.clone()));
                spec.insert(key.clone(), Value::Object(renamed.collect()));
            }
            "set" => {
                let renamed = value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|v| json!(format!("{}2", v.as_str().unwrap())));
                spec.insert(key.clone(), renamed.collect());
            }
            "containers" => {
                let renamed = value.as_array().into_iter().flatten().map(|c| {
                    let mut c = c.clone();
                    c["name"] = json!(format!("{}2", c["name"].as_str().unwrap()));
                    c
                });
                spec.insert(key.clone(), renamed.collect());
            }
            _ => {}
        }
    }
    json!({"spec": spec})
}

/// Order of list items told apart by name or value does not count here.
fn sorted(mut value: Value) -> Value {
    match &mut value {
        Value::Array(list) => {
            let mut items: Vec<Value> = std::mem::take(list).into_iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(map) => {
            let taken = std::mem::take(map);
            Value::Object(taken.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        _ => value,
    }
}

fn without_times(s: &Story) -> Value {
    let mut entries = s.live()["metadata"]["managedFields"].clone();
    for e in entries.as_array_mut().into_iter().flatten() {
        e.as_object_mut().unwrap().remove("time");
    }
    sorted(entries)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Applying twice is applying once, whatever was there.
    #[test]
    fn apply_is_idempotent(before in config(), first in config(), second in config()) {
        let mut s = Story::new(&schema());
        s.update("u", &before).force("a", &first).force("a", &second);
        let once = s.live().clone();
        s.apply("a", &second);
        prop_assert_eq!(s.live(), &once);
    }

    /// What is applied is there afterwards, and owned.
    #[test]
    fn what_is_applied_is_there(history in prop::collection::vec((config(), 0..3usize, any::<bool>()), 1..6)) {
        let mut s = Story::new(&schema());
        for (body, who, by_apply) in &history {
            let manager = ["a", "b", "c"][*who];
            if *by_apply {
                s.force(manager, body);
                prop_assert!(holds(&s.body(), &json!({"spec": body["spec"]})) || body["spec"] == json!({}),
                    "{} lacks {}", s.body(), body);
            } else {
                s.update(manager, body);
            }
        }
    }

    /// Without force nothing of another manager's changes.
    #[test]
    fn no_force_no_harm(first in config(), second in config()) {
        let mut s = Story::new(&schema());
        s.apply("a", &first);
        let owned = s.owned("a");
        if s.try_apply("b", &second, false).is_ok() {
            prop_assert_eq!(s.owned("a"), owned);
            prop_assert!(holds(&s.body(), &first) || first["spec"] == json!({}), "{} lacks {}", s.body(), first);
        }
    }

    /// Managers whose configurations share no field may come in any order.
    #[test]
    fn disjoint_owners_commute(first in config()) {
        let second = is_shared(&first);
        let mut first = first;
        for shared in ["sub", "free", "whole", "args", "b"] {
            first["spec"].as_object_mut().unwrap().remove(shared);
        }
        let (mut x, mut y) = (Story::new(&schema()), Story::new(&schema()));
        x.apply("a", &first).apply("b", &second);
        y.apply("b", &second).apply("a", &first);
        prop_assert_eq!(sorted(x.body()), sorted(y.body()));
        prop_assert_eq!(without_times(&x), without_times(&y));
    }

    /// A manager that applies nothing any more leaves what the others made.
    #[test]
    fn leaving_takes_only_its_own(first in config(), second in config()) {
        let (mut x, mut y) = (Story::new(&schema()), Story::new(&schema()));
        x.force("b", &second);
        y.force("b", &second);
        if x.try_apply("a", &first, false).is_ok() {
            x.apply("a", &json!({}));
            prop_assert_eq!(sorted(x.body()), sorted(y.body()));
        }
    }

    /// An update takes exactly what it changed, and forgets what it removed: the record reads back as the object.
    #[test]
    fn updates_are_recorded(first in config(), second in config()) {
        let mut s = Story::new(&schema());
        s.apply("a", &first).update("b", &second);
        // `a` owns nothing that has another value now.
        let e = s.try_apply("c", &merge_patch(&second, &json!({})), false);
        prop_assert!(e.is_ok(), "applying what is there conflicts: {e:?}");
    }
}
