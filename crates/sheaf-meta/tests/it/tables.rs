//! JSONPaths, cells, ages, and the Table objects made of them.

use proptest::prelude::*;
use serde_json::{Value, json};
use sheaf_meta::jsonpath::JsonPath;
use sheaf_meta::kind::Column;
use sheaf_meta::table::{Columns, MetaVersion, RowObject, age_of, human_duration, single_metadata};

fn vm() -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7",
                     "labels": {"kubevirt.io/nodeName": "n1"}},
        "spec": {"n": 3, "f": 1.5, "on": true, "list": ["a", "b", "c"], "map": {"x": 1}},
        "status": {"conditions": [
            {"type": "Ready", "status": "True", "n": 1},
            {"type": "Paused", "status": "False", "n": 2}]},
    })
}

#[test]
fn paths() {
    let vm = vm();
    for (path, expected) in [
        (".metadata.name", json!(["vm"])),
        ("{.metadata.name}", json!(["vm"])),
        ("metadata.name", json!(["vm"])),
        ("$.metadata.name", json!(["vm"])),
        (".missing.deep", json!([])),
        (".metadata.name.deeper", json!([])),
        (r".metadata.labels.kubevirt\.io/nodeName", json!(["n1"])),
        (".metadata.labels['kubevirt.io/nodeName']", json!(["n1"])),
        (".metadata.labels[\"kubevirt.io/nodeName\"]", json!(["n1"])),
        (r".metadata.labels['kubevirt\.io/nodeName']", json!(["n1"])),
        (".spec.list[0]", json!(["a"])),
        (".spec.list[-1]", json!(["c"])),
        (".spec.list[9]", json!([])),
        (".spec.list[-9]", json!([])),
        (".spec.list[0,2]", json!(["a", "c"])),
        (".spec.list[1:]", json!(["b", "c"])),
        (".spec.list[:-1]", json!(["a", "b"])),
        (".spec.list[::2]", json!(["a", "c"])),
        (".spec.list[*]", json!(["a", "b", "c"])),
        (".spec.map.*", json!([1])),
        (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
        (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
        (".status.conditions[?(@.type == 'None')].status", json!([])),
        (".status.conditions[?(@.type != 'Ready')].status", json!(["False"])),
        (".status.conditions[?(@.n>1)].type", json!(["Paused"])),
        (".status.conditions[?(@.n<=1)].type", json!(["Ready"])),
        (".status.conditions[?(@.missing)].type", json!([])),
        (".status.conditions[?(@.n)].type", json!(["Ready", "Paused"])),
        (".status.conditions[*]['type','status']", json!(["Ready", "True", "Paused", "False"])),
        (".status..type", json!(["Ready", "Paused"])),
    ] {
        let found = JsonPath::parse(path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(json!(found.find(&vm)), expected, "{path}");
        assert_eq!(found.first(&vm).cloned(), expected.get(0).cloned(), "{path}");
    }
}

#[test]
fn no_paths() {
    for path in [".a[", ".a[x]", ".a['b]", ".a[?(@.b", ".a[?(@.b==)]", "..", ".a]", ".a b", ".a[1:2:0]", "\\"]
    {
        assert!(JsonPath::parse(path).is_err(), "{path}");
    }
    assert!(JsonPath::parse(&".a".repeat(200)).is_err());
}

#[test]
fn ages() {
    let (minute, hour, day) = (60, 3600, 86_400);
    for (seconds, expected) in [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (5, "5s"),
        (119, "119s"),
        (120, "2m"),
        (3 * minute + 12, "3m12s"),
        (10 * minute + 12, "10m"),
        (179 * minute, "179m"),
        (3 * hour, "3h"),
        (3 * hour + 5 * minute, "3h5m"),
        (8 * hour + 5 * minute, "8h"),
        (47 * hour, "47h"),
        (2 * day, "2d"),
        (2 * day + 4 * hour, "2d4h"),
        (8 * day + 4 * hour, "8d"),
        (729 * day, "729d"),
        (2 * 365 * day, "2y"),
        (3 * 365 * day + 7 * day, "3y7d"),
        (9 * 365 * day + 7 * day, "9y"),
    ] {
        assert_eq!(human_duration(seconds), expected, "{seconds}");
    }
    let now = "2026-01-01T00:03:12Z".parse().unwrap();
    assert_eq!(age_of("2026-01-01T00:00:00Z", now), "3m12s");
    assert_eq!(age_of("", now), "<unknown>");
    assert_eq!(age_of("yesterday", now), "<invalid>");
}

fn column(name: &str, ty: &str, path: &str) -> Column {
    Column {
        name: name.into(),
        ty: ty.into(),
        format: String::new(),
        priority: 0,
        path: path.into(),
        description: String::new(),
    }
}

#[test]
fn cells_by_type() {
    let now = "2026-01-03T04:00:00Z".parse().unwrap();
    for (ty, path, expected) in [
        ("string", ".metadata.name", json!("vm")),
        ("string", ".spec.n", json!("3")),
        ("string", ".spec.list", json!("[\"a\",\"b\",\"c\"]")),
        ("string", ".missing", json!(null)),
        ("integer", ".spec.n", json!(3)),
        ("integer", ".spec.f", json!(1)),
        ("integer", ".metadata.name", json!(null)),
        ("number", ".spec.n", json!(3.0)),
        ("boolean", ".spec.on", json!(true)),
        ("boolean", ".spec.n", json!(null)),
        ("date", ".metadata.creationTimestamp", json!("2d4h")),
        ("date", ".metadata.name", json!("<invalid>")),
        ("date", ".missing", json!(null)),
    ] {
        let columns = Columns::compile(&[column("X", ty, path)]).unwrap();
        assert_eq!(columns.cells(&vm(), now), [json!("vm"), expected], "{ty} {path}");
    }
}

#[test]
fn a_table() {
    let now = "2026-01-01T00:00:05Z".parse().unwrap();
    let vm = vm();
    let columns = Columns::compile(&[]).unwrap();
    let table = columns.table([&vm], &single_metadata(&vm), RowObject::Metadata, MetaVersion::V1, now);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(table["metadata"], json!({"resourceVersion": "7"}));
    let names: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["Name", "Age"]);
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
    assert_eq!(table["rows"][0]["cells"], json!(["vm", "5s"]));
    assert_eq!(
        table["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": vm["metadata"]})
    );
    let row = |include| columns.row(&vm, include, MetaVersion::V1beta1, now);
    assert_eq!(row(RowObject::Object)["object"], vm);
    assert_eq!(row(RowObject::None).get("object"), None);
    assert_eq!(row(RowObject::Metadata)["object"]["apiVersion"], "meta.k8s.io/v1beta1");
}

proptest! {
    #[test]
    fn arbitrary_paths_never_panic(path in ".{0,40}", near in "[.a\\[\\]'\"?()@=<>0-9:,*\\\\ -]{0,40}") {
        for text in [path, near] {
            if let Ok(p) = JsonPath::parse(&text) {
                let _ = p.find(&vm());
            }
            let _ = age_of(&text, jiff::Timestamp::UNIX_EPOCH);
        }
    }
}
