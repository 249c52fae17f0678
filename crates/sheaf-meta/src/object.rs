//! Reading and writing `metadata` of an object that is a [`Value`].
//!
//! Readers never fail: what is missing or of a wrong type reads as empty, since the server checks types before it
//! relies on them ([`crate::objectmeta`]). Writers make the maps on the way and remove what becomes empty, as
//! Kubernetes' `omitempty` does.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A JSON object.
pub type JsonMap = Map<String, Value>;

/// The value at a path of keys, if it is there.
pub fn get<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |v, key| v.get(key))
}

/// The value at a JSON pointer (`/spec/template`), as [`Value::pointer`] finds it, which makes two copies of each step.
pub fn find<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    if pointer.contains('~') {
        return object.pointer(pointer);
    }
    let Some(path) = pointer.strip_prefix('/') else {
        return pointer.is_empty().then_some(object);
    };
    let mut value = object;
    let mut rest = Some(path);
    while let Some(path) = rest {
        let (step, after) = match path.split_once('/') {
            Some((step, after)) => (step, Some(after)),
            None => (path, None),
        };
        value = match value {
            Value::Object(map) => map.get(step)?,
            // A number, by rules of its own.
            Value::Array(_) => return value.pointer(&["/", path].concat()),
            _ => return None,
        };
        rest = after;
    }
    Some(value)
}

/// The string at a path of keys; empty where there is none.
pub fn str_at<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    get(object, path).and_then(Value::as_str).unwrap_or("")
}

/// `metadata` as a map, if the object has one.
pub fn metadata(object: &Value) -> Option<&JsonMap> {
    object.get("metadata").and_then(Value::as_object)
}

/// `metadata` as a map; made if it is missing, and replaced if it is no map. The object itself must be a map
/// (else it becomes one).
pub fn metadata_mut(object: &mut Value) -> &mut JsonMap {
    entry_map(as_map(object), "metadata")
}

/// The value as a map; anything else is replaced by an empty one.
pub fn as_map(value: &mut Value) -> &mut JsonMap {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("was made a map above"),
    }
}

/// The map under a key; made if it is missing or no map.
pub fn entry_map<'a>(map: &'a mut JsonMap, key: &str) -> &'a mut JsonMap {
    as_map(map.entry(key).or_insert_with(|| Value::Object(Map::new())))
}

fn meta_str<'a>(object: &'a Value, key: &str) -> &'a str {
    str_at(object, &["metadata", key])
}

fn set_meta_str(object: &mut Value, key: &str, value: &str) {
    let meta = metadata_mut(object);
    if value.is_empty() {
        meta.remove(key);
    } else {
        meta.insert(key.into(), Value::String(value.into()));
    }
}

/// `apiVersion`.
pub fn api_version(object: &Value) -> &str {
    str_at(object, &["apiVersion"])
}
/// `kind`.
pub fn kind(object: &Value) -> &str {
    str_at(object, &["kind"])
}
/// Sets `apiVersion` and `kind`.
pub fn set_gvk(object: &mut Value, api_version: &str, kind: &str) {
    let map = as_map(object);
    map.insert("apiVersion".into(), api_version.into());
    map.insert("kind".into(), kind.into());
}
/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    meta_str(object, "name")
}
/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set_meta_str(object, "name", name);
}
/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    meta_str(object, "generateName")
}
/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    meta_str(object, "namespace")
}
/// Sets `metadata.namespace`; empty removes it.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_meta_str(object, "namespace", namespace);
}
/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    meta_str(object, "uid")
}
/// Sets `metadata.uid`; empty removes it.
pub fn set_uid(object: &mut Value, uid: &str) {
    set_meta_str(object, "uid", uid);
}
/// `metadata.resourceVersion`, opaque to clients, a decimal number to us.
pub fn resource_version(object: &Value) -> &str {
    meta_str(object, "resourceVersion")
}
/// Sets `metadata.resourceVersion`; empty removes it.
pub fn set_resource_version(object: &mut Value, version: &str) {
    set_meta_str(object, "resourceVersion", version);
}
/// `metadata.generation`; 0 where there is none.
pub fn generation(object: &Value) -> i64 {
    get(object, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0)
}
/// Sets `metadata.generation`; 0 removes it.
pub fn set_generation(object: &mut Value, generation: i64) {
    let meta = metadata_mut(object);
    if generation == 0 {
        meta.remove("generation");
    } else {
        meta.insert("generation".into(), generation.into());
    }
}
/// `metadata.creationTimestamp` as written.
pub fn creation_timestamp(object: &Value) -> &str {
    meta_str(object, "creationTimestamp")
}
/// Sets `metadata.creationTimestamp`, in Kubernetes' form (whole seconds, `Z`).
pub fn set_creation_timestamp(object: &mut Value, at: jiff::Timestamp) {
    set_meta_str(object, "creationTimestamp", &time(at));
}
/// `metadata.deletionTimestamp` as written; empty where the object is not being deleted.
pub fn deletion_timestamp(object: &Value) -> &str {
    meta_str(object, "deletionTimestamp")
}
/// Whether the object is being deleted.
pub fn is_deleting(object: &Value) -> bool {
    !deletion_timestamp(object).is_empty()
}
/// Sets or removes `metadata.deletionTimestamp`.
pub fn set_deletion_timestamp(object: &mut Value, at: Option<jiff::Timestamp>) {
    set_meta_str(object, "deletionTimestamp", &at.map(time).unwrap_or_default());
}
/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    get(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64)
}
/// Sets or removes `metadata.deletionGracePeriodSeconds`.
pub fn set_deletion_grace_period_seconds(object: &mut Value, seconds: Option<i64>) {
    let meta = metadata_mut(object);
    match seconds {
        Some(s) => meta.insert("deletionGracePeriodSeconds".into(), s.into()),
        None => meta.remove("deletionGracePeriodSeconds"),
    };
}

/// A time as `metav1.Time` writes it: RFC 3339, whole seconds, UTC.
pub fn time(at: jiff::Timestamp) -> String {
    let whole = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
    // Its own form is this one, where there is no part of a second.
    whole.to_string()
}

/// A time as `metav1.MicroTime` writes it: exactly six fractional digits.
pub fn micro_time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Strings of a map of `metadata` such as labels, in order of the keys. Values that are no strings are left out.
pub fn strings<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = metadata(object).and_then(|m| m.get(key)).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> BTreeMap<&str, &str> {
    strings(object, "labels").collect()
}
/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    get(object, &["metadata", "labels", key]).and_then(Value::as_str)
}
/// Sets one label, or removes it.
pub fn set_label(object: &mut Value, key: &str, value: Option<&str>) {
    set_in_map(object, "labels", key, value);
}
/// `metadata.annotations`.
pub fn annotations(object: &Value) -> BTreeMap<&str, &str> {
    strings(object, "annotations").collect()
}
/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    get(object, &["metadata", "annotations", key]).and_then(Value::as_str)
}
/// Sets one annotation, or removes it.
pub fn set_annotation(object: &mut Value, key: &str, value: Option<&str>) {
    set_in_map(object, "annotations", key, value);
}

fn set_in_map(object: &mut Value, map: &str, key: &str, value: Option<&str>) {
    let meta = metadata_mut(object);
    match value {
        Some(v) => {
            entry_map(meta, map).insert(key.into(), v.into());
        }
        None => {
            if let Some(Value::Object(m)) = meta.get_mut(map) {
                m.remove(key);
                if m.is_empty() {
                    meta.remove(map);
                }
            }
        }
    }
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    get(object, &["metadata", "finalizers"])
        .and_then(Value::as_array)
        .map(|a| a.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}
/// Whether a finalizer is there.
pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).contains(&finalizer)
}
/// Sets `metadata.finalizers`; none removes the field.
pub fn set_finalizers<S: AsRef<str>>(object: &mut Value, finalizers: &[S]) {
    let meta = metadata_mut(object);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), finalizers.iter().map(|f| json!(f.as_ref())).collect());
    }
}
/// Adds a finalizer; `false` if it was there.
pub fn add_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if has_finalizer(object, finalizer) {
        return false;
    }
    let mut all: Vec<String> = finalizers(object).into_iter().map(str::to_owned).collect();
    all.push(finalizer.to_owned());
    set_finalizers(object, &all);
    true
}
/// Removes a finalizer; `false` if it was not there.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if !has_finalizer(object, finalizer) {
        return false;
    }
    let rest: Vec<String> =
        finalizers(object).into_iter().filter(|f| *f != finalizer).map(str::to_owned).collect();
    set_finalizers(object, &rest);
    true
}

/// One entry of `metadata.ownerReferences`, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerRef<'a> {
    /// `kubevirt.io/v1`.
    pub api_version: &'a str,
    /// `VirtualMachine`.
    pub kind: &'a str,
    /// Name of the owner, in the same namespace or cluster-scoped.
    pub name: &'a str,
    /// Identity of the owner: a later object of the same name is another.
    pub uid: &'a str,
    /// Whether the owner manages this object; at most one does.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

impl OwnerRef<'_> {
    /// The entry as JSON.
    pub fn to_json(&self) -> Value {
        let mut out = json!({
            "apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid,
        });
        if self.controller {
            out["controller"] = true.into();
        }
        if self.block_owner_deletion {
            out["blockOwnerDeletion"] = true.into();
        }
        out
    }
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> Vec<OwnerRef<'_>> {
    let Some(list) = get(object, &["metadata", "ownerReferences"]).and_then(Value::as_array) else {
        return Vec::new();
    };
    list.iter()
        .map(|r| OwnerRef {
            api_version: str_at(r, &["apiVersion"]),
            kind: str_at(r, &["kind"]),
            name: str_at(r, &["name"]),
            uid: str_at(r, &["uid"]),
            controller: r.get("controller").and_then(Value::as_bool).unwrap_or(false),
            block_owner_deletion: r.get("blockOwnerDeletion").and_then(Value::as_bool).unwrap_or(false),
        })
        .collect()
}
/// The owner that manages this object.
pub fn controller_of(object: &Value) -> Option<OwnerRef<'_>> {
    owner_references(object).into_iter().find(|r| r.controller)
}
/// Replaces `metadata.ownerReferences`; none removes the field.
pub fn set_owner_references(object: &mut Value, references: Vec<Value>) {
    let meta = metadata_mut(object);
    if references.is_empty() {
        meta.remove("ownerReferences");
    } else {
        meta.insert("ownerReferences".into(), Value::Array(references));
    }
}

/// Whether a write of `a` over `b` would be a no-op: they are equal apart from `metadata.resourceVersion`,
/// `metadata.generation`, and the times in `metadata.managedFields`. Who owns what counts: taking or sharing ownership
/// of what is there already is a change.
pub fn equal_apart_from_bookkeeping(a: &Value, b: &Value) -> bool {
    let entry = |x: Option<&Value>, y: Option<&Value>| equal_but(x, y, &["time"], &|_, x, y| x == y);
    let list = |key: &str, x: Option<&Value>, y: Option<&Value>| match (key, x, y) {
        ("managedFields", Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| entry(Some(x), Some(y)))
        }
        (_, x, y) => x == y,
    };
    let metadata = |key: &str, x: Option<&Value>, y: Option<&Value>| match key {
        "metadata" => equal_but(x, y, &["resourceVersion", "generation"], &list),
        _ => x == y,
    };
    equal_but(Some(a), Some(b), &[], &metadata)
}

/// Whether two objects are equal apart from `metadata` and `status`: if not, `metadata.generation` moves.
pub fn same_desired_state(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let keep = |k: &str| k != "metadata" && k != "status";
    a.iter().filter(|(k, _)| keep(k)).all(|(k, v)| b.get(k) == Some(v))
        && b.keys().filter(|k| keep(k)).all(|k| a.contains_key(k))
}

/// Compares the values under a key.
type Same<'a> = &'a dyn Fn(&str, Option<&Value>, Option<&Value>) -> bool;

/// Whether two maps are equal but for the keys in `skip`, their values compared by `same`.
fn equal_but(a: Option<&Value>, b: Option<&Value>, skip: &[&str], same: Same<'_>) -> bool {
    let (Some(Value::Object(a)), Some(Value::Object(b))) = (a, b) else { return a == b };
    let keep = |key: &str| !skip.contains(&key);
    a.iter().filter(|(k, _)| keep(k)).all(|(k, v)| same(k, Some(v), b.get(k)))
        && b.iter().filter(|(k, _)| keep(k)).all(|(k, v)| a.contains_key(k) || same(k, None, Some(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_misshapen_reads_as_empty() {
        for o in [json!(null), json!([]), json!({}), json!({"metadata": 7}), json!({"metadata": {"name": 7}})]
        {
            assert_eq!(name(&o), "");
            assert_eq!(generation(&o), 0);
            assert!(labels(&o).is_empty() && finalizers(&o).is_empty() && owner_references(&o).is_empty());
            assert!(!is_deleting(&o));
        }
    }

    #[test]
    fn pointers_find_what_they_name() {
        let o = json!({"a": {"b": [1, {"c": 2}], "": 3, "x/y": 4, "~": 5}, "n": null});
        for pointer in [
            "",
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/a/b/0",
            "/a/b/1/c",
            "/a/b/01",
            "/a/b/+1",
            "/a/b/-",
            "/a/b/2",
            "/a/x~1y",
            "/a/~0",
            "/a/~",
            "/n",
            "/n/x",
            "a",
            "a/b",
            "/a/b/1/c/d",
            "//",
            "/a//",
        ] {
            assert_eq!(find(&o, pointer), o.pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn setters_make_the_way_and_leave_nothing_empty_behind() {
        let mut o = json!({});
        set_label(&mut o, "a", Some("b"));
        assert_eq!(label(&o, "a"), Some("b"));
        set_label(&mut o, "a", None);
        assert_eq!(o, json!({"metadata": {}}));
        assert!(add_finalizer(&mut o, "x/y") && !add_finalizer(&mut o, "x/y"));
        assert!(remove_finalizer(&mut o, "x/y") && !remove_finalizer(&mut o, "x/y"));
        assert_eq!(o, json!({"metadata": {}}));
    }

    #[test]
    fn times_have_the_digits_of_metav1() {
        let t: jiff::Timestamp = "2026-01-02T03:04:05.123456789Z".parse().unwrap();
        assert_eq!(time(t), "2026-01-02T03:04:05Z");
        assert_eq!(micro_time(t), "2026-01-02T03:04:05.123456Z");
    }

    #[test]
    fn desired_state_is_all_but_metadata_and_status() {
        let a = json!({"metadata": {"name": "a"}, "spec": 1, "status": 1});
        assert!(same_desired_state(&a, &json!({"spec": 1})));
        assert!(!same_desired_state(&a, &json!({"spec": 1, "data": 1})));
        assert!(!same_desired_state(&a, &json!({"spec": 2})));
        let b = json!({"metadata": {"name": "a", "resourceVersion": "5"}, "spec": 1, "status": 1});
        assert!(equal_apart_from_bookkeeping(&a, &b));
        assert!(!equal_apart_from_bookkeeping(&a, &json!({"metadata": {"name": "a"}, "spec": 1})));
        let owned = |manager: &str, time: &str| {
            let entry = json!({"manager": manager, "time": time});
            json!({"metadata": {"managedFields": [entry]}})
        };
        assert!(equal_apart_from_bookkeeping(&owned("a", "1"), &owned("a", "2")));
        assert!(!equal_apart_from_bookkeeping(&owned("a", "1"), &owned("b", "1")));
        assert!(!equal_apart_from_bookkeeping(&owned("a", "1"), &json!({"metadata": {}})));
    }
}
