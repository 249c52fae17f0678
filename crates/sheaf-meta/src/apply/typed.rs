//! Walks of objects along their schema, as ownership sees them: which fields an object has, how two objects differ,
//! how a configuration merges, and how fields are taken out.
//!
//! Where the schema says nothing the type is deduced from the value: objects are granular, lists atomic. A value of
//! another type than its schema's is treated as the value it is; refusing it is the business of validation.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use serde_json::{Map, Value};

use super::managers::{UNOWNED, UNOWNED_METADATA};
use super::set::{Element, Entry, FieldSet, show};
use crate::changes::Change;
use crate::patch::same;
use crate::schema::{ListType, Node, Type};

/// How the items of a granular list are told apart.
#[derive(Clone)]
enum Identity<'a> {
    Keys(Vec<&'a str>),
    Value,
}

/// What a value is to ownership.
#[derive(PartialEq, Clone, Copy)]
enum Shape {
    Leaf,
    Map,
    List,
}

fn identity(node: Option<&Node>) -> Option<Identity<'_>> {
    let node = node.filter(|n| n.ty == Type::Array)?;
    match &node.list_type {
        ListType::Map(keys) if !keys.is_empty() => Some(Identity::Keys(keys.iter().map(|k| &**k).collect())),
        ListType::Set => Some(Identity::Value),
        ListType::Map(_) | ListType::Atomic => None,
        ListType::Unset if node.patch.merge => match &node.patch.merge_key {
            Some(key) => Some(Identity::Keys(vec![key])),
            None => Some(Identity::Value),
        },
        ListType::Unset => None,
    }
}

fn shape(node: Option<&Node>, value: &Value) -> Shape {
    let ty = node.map_or(Type::Any, |n| n.ty);
    let map = |node: Option<&Node>| if node.is_some_and(|n| n.map_atomic) { Shape::Leaf } else { Shape::Map };
    let list = || if identity(node).is_some() { Shape::List } else { Shape::Leaf };
    match (value, ty) {
        (Value::Object(_), Type::Object | Type::Any | Type::Array)
        | (Value::Null, Type::Object | Type::Any) => map(node),
        (Value::Array(_) | Value::Null, Type::Array) => list(),
        _ => Shape::Leaf,
    }
}

/// What two values at one place are to ownership. Items of granular lists come with their identities.
enum Pair {
    Leaf,
    Map,
    List(Vec<Element>, Vec<Element>),
    /// Values of different shapes.
    Unlike,
}

fn pair(node: Option<&Node>, left: Option<&Value>, right: Option<&Value>) -> Pair {
    match (left.map(|v| shape(node, v)), right.map(|v| shape(node, v))) {
        (Some(l), Some(r)) if l != r => Pair::Unlike,
        (Some(Shape::Map), _) | (None, Some(Shape::Map)) => Pair::Map,
        (Some(Shape::List), _) | (None, Some(Shape::List)) => {
            let read = |v: Option<&Value>| v.map_or(Some(Vec::new()), |v| elements(node, v));
            match (read(left), read(right)) {
                (Some(l), Some(r)) => Pair::List(l, r),
                // Lists whose items cannot be told apart are atomic.
                _ => Pair::Leaf,
            }
        }
        _ => Pair::Leaf,
    }
}

/// Whether a value is owned as a whole.
pub(super) fn is_leaf(node: Option<&Node>, value: &Value) -> bool {
    shape(node, value) == Shape::Leaf
}

/// The node of a field, if the schema has one.
pub(super) fn field<'a>(node: Option<&'a Node>, key: &str) -> Option<&'a Node> {
    node?.field(key).map(|n| &**n)
}
fn items(node: Option<&Node>) -> Option<&Node> {
    node?.items.as_deref()
}
fn is_named(node: Option<&Node>, key: &str) -> bool {
    node.is_some_and(|n| n.property(key).is_some())
}

fn element(identity: &Identity<'_>, items: Option<&Node>, value: &Value) -> Option<Element> {
    match identity {
        Identity::Value if value.is_object() || value.is_array() || value.is_null() => None,
        Identity::Value => Some(Element::value(value)),
        Identity::Keys(keys) => {
            let object = value.as_object()?;
            let mut fields = BTreeMap::new();
            for key in keys {
                let default = || items?.property(key)?.default.as_ref();
                fields.insert(*key, object.get(*key).or_else(default)?);
            }
            Some(Element::key(&fields))
        }
    }
}

/// The items of a granular list by identity; null reads as an empty list. `None` if some cannot be told apart.
fn elements(node: Option<&Node>, value: &Value) -> Option<Vec<Element>> {
    let identity = identity(node)?;
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|v| element(&identity, items(node), v)).collect()
}

fn as_map(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}
fn as_list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The fields that an object has.
pub(super) fn field_set(node: &Node, object: &Value) -> FieldSet {
    set_of(Some(node), object).1
}

/// Whether the value itself is a leaf, and the fields below it.
fn set_of(node: Option<&Node>, value: &Value) -> (bool, FieldSet) {
    let mut out = FieldSet::default();
    match pair(node, Some(value), None) {
        Pair::Leaf | Pair::Unlike => return (true, out),
        Pair::Map => {
            for (key, v) in as_map(Some(value)).into_iter().flatten() {
                let (leaf, children) = set_of(field(node, key), v);
                // Upstream leaves empty lists out, so that applying one again and again makes it come and go.
                let empty = v.is_null()
                    || v.as_object().is_some_and(Map::is_empty)
                    || v.as_array().is_some_and(Vec::is_empty);
                let member = leaf || empty || !is_named(node, key);
                out.put(Element::Field(key.as_str().into()), Entry { member, children });
            }
        }
        Pair::List(keys, _) => {
            let mut seen = BTreeSet::new();
            let twice: BTreeSet<&Element> = keys.iter().filter(|k| !seen.insert(*k)).collect();
            for (key, v) in keys.iter().zip(as_list(Some(value))) {
                let repeated = twice.contains(key);
                let children = if repeated { FieldSet::default() } else { set_of(items(node), v).1 };
                out.put(key.clone(), Entry { member: true, children });
            }
        }
    }
    (false, out)
}

/// How an object differs from another.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    pub(super) fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

/// All paths of an object, as [`compare`] finds them added to nothing.
#[cfg(test)]
pub(super) fn added(node: &Node, object: &Value) -> FieldSet {
    added_below(Some(node), object, Place::Root)
}

/// The same without what nobody owns, and as `fieldsV1` has it: what a new object needs, with no set in between.
pub(super) fn added_encoded(node: &Node, object: &Value) -> Map<String, Value> {
    encoded_below(Some(node), object, Place::Root)
}

fn encoded_below(node: Option<&Node>, value: &Value, place: Place) -> Map<String, Value> {
    match pair(node, None, Some(value)) {
        Pair::Leaf | Pair::Unlike => Map::new(),
        Pair::Map => {
            let mut out = Map::new();
            for (key, value) in as_map(Some(value)).into_iter().flatten() {
                let (unowned, below) = match place {
                    Place::Metadata if key == "managedFields" => continue,
                    Place::Root if key == "metadata" => (true, Place::Metadata),
                    Place::Root => (UNOWNED.contains(&key.as_str()), Place::Deeper),
                    Place::Metadata => (UNOWNED_METADATA.contains(&key.as_str()), Place::Deeper),
                    Place::Deeper => (false, Place::Deeper),
                };
                let mut children = encoded_below(field(node, key), value, below);
                match (unowned, children.is_empty()) {
                    (true, true) => continue,
                    (false, false) => drop(children.insert(".".into(), Value::Object(Map::new()))),
                    _ => {}
                }
                out.insert(["f:", key].concat(), Value::Object(children));
            }
            out
        }
        // Repeated items need a look at all of them.
        Pair::List(..) => match added_below(node, value, place).encode() {
            Value::Object(fields) => fields,
            _ => Map::new(),
        },
    }
}

/// Where [`added_below`] is: `metadata.managedFields` does not count.
#[derive(PartialEq, Clone, Copy)]
enum Place {
    Root,
    Metadata,
    Deeper,
}

fn added_below(node: Option<&Node>, value: &Value, place: Place) -> FieldSet {
    let whole = |children| Entry { member: true, children };
    match pair(node, None, Some(value)) {
        Pair::Leaf | Pair::Unlike => FieldSet::default(),
        Pair::Map => {
            let fields = as_map(Some(value)).into_iter().flatten();
            let fields = fields.filter(|(key, _)| place != Place::Metadata || *key != "managedFields");
            let one = |(key, value): (&String, &Value)| {
                let metadata = place == Place::Root && key == "metadata";
                let below = if metadata { Place::Metadata } else { Place::Deeper };
                let children = added_below(field(node, key), value, below);
                (Element::Field(key.as_str().into()), whole(children))
            };
            fields.map(one).collect()
        }
        Pair::List(_, keys) => {
            let mut out: BTreeMap<Element, Entry> = BTreeMap::new();
            for (key, value) in keys.into_iter().zip(as_list(Some(value))) {
                match out.entry(key) {
                    // Repeated items are one leaf together.
                    btree_map::Entry::Occupied(mut twice) => twice.get_mut().children = FieldSet::default(),
                    btree_map::Entry::Vacant(free) => {
                        free.insert(whole(added_below(items(node), value, Place::Deeper)));
                    }
                }
            }
            out.into_iter().collect()
        }
    }
}

/// Compares two objects; `metadata.managedFields` does not count.
pub(super) fn compare(node: &Node, old: &Value, new: &Value) -> Comparison {
    compare_changed(node, old, new, &Change::Whole)
}

/// The same where it is known how they differ.
pub(super) fn compare_changed(node: &Node, old: &Value, new: &Value, change: &Change) -> Comparison {
    let mut run = Comparing { path: Vec::new(), out: Comparison::default() };
    run.values(Some(node), Some(old), Some(new), change);
    run.out
}

struct Comparing {
    path: Vec<Element>,
    out: Comparison,
}

impl Comparing {
    /// `change` says what of two values differs; [`Change::Whole`] that nobody knows.
    fn values(&mut self, node: Option<&Node>, left: Option<&Value>, right: Option<&Value>, change: &Change) {
        let pair = pair(node, left, right);
        let leaf = match &pair {
            Pair::Leaf => true,
            Pair::Unlike => {
                // What was below is gone, what is below is new, and the place itself has changed.
                let (old, new) = (self::pair(node, left, None), self::pair(node, None, right));
                self.children(node, left, None, &old, &Change::Whole);
                self.children(node, None, right, &new, &Change::Whole);
                self.out.modified.insert(&self.path);
                return;
            }
            Pair::Map => [left, right].iter().all(|v| as_map(*v).is_none_or(Map::is_empty)),
            Pair::List(l, r) => l.is_empty() && r.is_empty(),
        };
        match (left, right) {
            (Some(l), Some(r)) if leaf => {
                if !same(l, r) {
                    self.out.modified.insert(&self.path);
                }
                return;
            }
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            _ => {}
        }
        if !leaf {
            self.children(node, left, right, &pair, change);
        }
    }

    fn at(&mut self, element: Element, f: impl FnOnce(&mut Self)) {
        self.path.push(element);
        f(self);
        self.path.pop();
    }

    fn children(
        &mut self,
        node: Option<&Node>,
        left: Option<&Value>,
        right: Option<&Value>,
        pair: &Pair,
        change: &Change,
    ) {
        match pair {
            Pair::Leaf | Pair::Unlike => {}
            Pair::Map => match change {
                Change::Same => {}
                Change::Below(keys) => {
                    let (left, right) = (as_map(left), as_map(right));
                    for (key, change) in keys {
                        self.field(node, key, left, right, change);
                    }
                }
                Change::Whole => self.maps(node, as_map(left), as_map(right)),
            },
            Pair::List(l, r) => self.lists(items(node), (l, as_list(left)), (r, as_list(right))),
        }
    }

    fn maps(
        &mut self,
        node: Option<&Node>,
        left: Option<&Map<String, Value>>,
        right: Option<&Map<String, Value>>,
    ) {
        let new = right.into_iter().flatten().filter(|(k, _)| left.is_none_or(|l| !l.contains_key(*k)));
        for (key, _) in left.into_iter().flatten().chain(new) {
            self.field(node, key, left, right, &Change::Whole);
        }
    }

    fn field(
        &mut self,
        node: Option<&Node>,
        key: &str,
        left: Option<&Map<String, Value>>,
        right: Option<&Map<String, Value>>,
        change: &Change,
    ) {
        let in_metadata = matches!(&self.path[..], [Element::Field(name)] if &**name == "metadata");
        if in_metadata && key == "managedFields" {
            return;
        }
        let (l, r) = (left.and_then(|l| l.get(key)), right.and_then(|r| r.get(key)));
        // What is as it was is most of every object: compared whole, it costs no paths.
        if *change == Change::Whole && l.is_some() && l == r {
            return;
        }
        self.at(Element::Field(key.into()), |run| run.values(field(node, key), l, r, change));
    }

    fn lists(
        &mut self,
        items: Option<&Node>,
        (left, lv): (&[Element], &[Value]),
        (right, rv): (&[Element], &[Value]),
    ) {
        let mut groups: BTreeMap<&Element, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for (i, key) in left.iter().enumerate() {
            groups.entry(key).or_default().0.push(i);
        }
        for (i, key) in right.iter().enumerate() {
            groups.entry(key).or_default().1.push(i);
        }
        for (key, (li, ri)) in groups {
            let (l, r) = (li.first().map(|i| &lv[*i]), ri.first().map(|i| &rv[*i]));
            self.at(key.clone(), |run| match (li.len(), ri.len()) {
                (0..=1, 0..=1) => run.values(items, l, r, &Change::Whole),
                // Repeated items are one leaf together.
                (2.., 2..) => {
                    let equal =
                        li.len() == ri.len() && li.iter().zip(&ri).all(|(a, b)| same(&lv[*a], &rv[*b]));
                    if !equal {
                        run.out.modified.insert(&run.path);
                    }
                }
                (2.., _) => {
                    if r.is_some() {
                        run.values(items, None, r, &Change::Whole);
                    }
                    run.out.removed.insert(&run.path);
                }
                _ => {
                    if l.is_some() {
                        run.values(items, l, None, &Change::Whole);
                    }
                    run.out.added.insert(&run.path);
                }
            });
        }
    }
}

/// The live object with a configuration merged into it.
pub(super) fn merge(node: &Node, live: &Value, config: &Value) -> Value {
    merge_at(Some(node), Some(live), Some(config)).unwrap_or_else(|| Value::Object(Map::new()))
}

fn merge_at(node: Option<&Node>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let keep = || right.or(left).cloned();
    let (Some(_), Some(_)) = (left, right) else { return keep() };
    match pair(node, left, right) {
        Pair::Leaf | Pair::Unlike => keep(),
        Pair::Map => {
            let (l, r) = (as_map(left), as_map(right));
            if l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty) {
                return keep();
            }
            let mut out = Map::new();
            for (key, v) in l.into_iter().flatten() {
                if let Some(v) = merge_at(field(node, key), Some(v), r.and_then(|r| r.get(key))) {
                    out.insert(key.clone(), v);
                }
            }
            for (key, v) in r.into_iter().flatten() {
                if l.is_none_or(|l| !l.contains_key(key)) {
                    out.insert(key.clone(), v.clone());
                }
            }
            Some(Value::Object(out))
        }
        Pair::List(lk, rk) => {
            let (l, r) = (as_list(left), as_list(right));
            if l.is_empty() && r.is_empty() {
                return keep();
            }
            let merged = interleave(&lk, &rk)
                .into_iter()
                .filter_map(|(li, ri)| merge_at(items(node), li.map(|i| &l[i]), ri.map(|i| &r[i])));
            Some(Value::Array(merged.collect()))
        }
    }
}

/// The order of a merged list: shared items in the configuration's order, the others as near to their neighbours as
/// both orders allow. Pairs of indexes; live items that come twice merge with nothing.
fn interleave(left: &[Element], right: &[Element]) -> Vec<(Option<usize>, Option<usize>)> {
    let mut in_left: BTreeMap<&Element, Option<usize>> = BTreeMap::new();
    for (i, e) in left.iter().enumerate() {
        in_left.entry(e).and_modify(|at| *at = None).or_insert(Some(i));
    }
    let in_right: BTreeMap<&Element, usize> = right.iter().enumerate().map(|(i, e)| (e, i)).collect();
    let mut shared = right.iter().filter(|e| in_left.contains_key(e));
    let mut next = shared.next();
    let mut done: BTreeSet<&Element> = BTreeSet::new();
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut li, mut ri) = (0, 0);
    while li < left.len() || ri < right.len() {
        if li < left.len() && ri < right.len() {
            let e = &left[li];
            if *e == right[ri] {
                done.insert(e);
                out.push((in_left[e], Some(ri)));
                li += 1;
                ri += 1;
                next = shared.next();
                continue;
            }
            if in_right.contains_key(e) && next.is_some_and(|n| n != e) {
                // Shared, but not the one whose turn it is.
                li += 1;
                continue;
            }
        }
        if li < left.len() {
            let e = &left[li];
            if !in_right.contains_key(e) {
                out.push((Some(li), None));
                li += 1;
                continue;
            }
            if done.contains(e) || ri >= right.len() {
                li += 1;
            }
        }
        if ri < right.len() {
            let e = &right[ri];
            done.insert(e);
            out.push((in_left.get(e).copied().flatten(), Some(ri)));
            ri += 1;
            if next == Some(e) {
                next = shared.next();
            }
        }
    }
    out
}

/// The paths of `set`, and also the named fields on the way to them: pruning takes a field of a struct out when
/// nothing owned remains in it.
pub(super) fn with_named(set: &FieldSet, node: Option<&Node>) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, entry) in set.iter() {
        let (child, named) = match element {
            Element::Field(key) => (field(node, key), is_named(node, key)),
            _ => (items(node), false),
        };
        let member = entry.member || (named && !entry.children.is_empty());
        out.put(element.clone(), Entry { member, children: with_named(&entry.children, child) });
    }
    out
}

/// Takes fields out of an object. What becomes empty thereby stays, empty, unless it is in the set itself.
pub(super) fn remove(node: &Node, object: &Value, set: &FieldSet) -> Value {
    let mut out = object.clone();
    remove_at(Some(node), &mut out, set);
    out
}

fn remove_at(node: Option<&Node>, value: &mut Value, set: &FieldSet) {
    match (shape(node, value), value) {
        (Shape::Map, Value::Object(map)) => {
            for (element, entry) in set.iter() {
                let Element::Field(key) = element else { continue };
                if entry.member {
                    map.remove(&**key);
                } else if let Some(v) = map.get_mut(&**key) {
                    remove_at(field(node, key), v, &entry.children);
                }
            }
        }
        (Shape::List, Value::Array(list)) => {
            let Some(identity) = identity(node) else { return };
            list.retain_mut(|v| {
                let Some(entry) = element(&identity, items(node), v).and_then(|e| set.get(&e)) else {
                    return true;
                };
                if !entry.member {
                    remove_at(items(node), v, &entry.children);
                }
                !entry.member
            });
        }
        _ => {}
    }
}

/// The set in terms of the present schema, which may be another than that under which it was made: where a value has
/// become atomic, its owner owns it whole; where one has become granular, its owner owns all that is there. `all` is
/// the union of all owners' sets.
pub(super) fn reconcile(
    set: &FieldSet,
    all: Option<&FieldSet>,
    node: Option<&Node>,
    live: Option<&Value>,
) -> FieldSet {
    let mut out = FieldSet::default();
    let by_key: BTreeMap<Element, &Value> = match (live, live.map(|v| shape(node, v))) {
        (Some(v), Some(Shape::List)) => {
            elements(node, v).unwrap_or_default().into_iter().zip(as_list(live)).collect()
        }
        _ => BTreeMap::new(),
    };
    for (element, entry) in set.iter() {
        let (child, value) = match element {
            Element::Field(key) => (field(node, key), live.and_then(|v| v.get(&**key))),
            _ => (items(node), by_key.get(element).copied()),
        };
        let Some(value) = value else {
            out.put(element.clone(), entry.clone());
            continue;
        };
        let below = all.and_then(|a| a.get(element)).map(|e| &e.children);
        let leaf = matches!(pair(child, Some(value), None), Pair::Leaf);
        let children = if leaf {
            FieldSet::default()
        } else if entry.member && below.is_none_or(FieldSet::is_empty) && may_have_been_atomic(child) {
            set_of(child, value).1
        } else {
            reconcile(&entry.children, below, child, Some(value))
        };
        out.put(element.clone(), Entry { member: entry.member || leaf, children });
    }
    out
}

/// A member without owned children is either a value that was atomic, or one that was empty when it was set. Lists
/// and maps of like things are taken for the former if nobody owns anything in them. Structs are not: what is in them
/// and unowned came from defaulting.
fn may_have_been_atomic(node: Option<&Node>) -> bool {
    node.is_some_and(|n| {
        n.ty == Type::Array || (n.ty == Type::Object && n.properties.is_empty() && !n.preserve_unknown)
    })
}

/// Whether the lists of a configuration can be told apart: the first that cannot, in words.
pub(super) fn check(node: &Node, config: &Value) -> Result<(), String> {
    check_at(Some(node), config, &mut Vec::new())
}

fn check_at(node: Option<&Node>, value: &Value, path: &mut Vec<Element>) -> Result<(), String> {
    match value {
        Value::Object(map) => {
            for (key, v) in map {
                path.push(Element::Field(key.as_str().into()));
                check_at(field(node, key), v, path)?;
                path.pop();
            }
        }
        Value::Array(list) => {
            let Some(identity) = identity(node) else { return Ok(()) };
            let mut seen = BTreeSet::new();
            for (i, v) in list.iter().enumerate() {
                let Some(e) = element(&identity, items(node), v) else {
                    let why = match &identity {
                        Identity::Value => "a set must hold plain values, and no null".to_owned(),
                        Identity::Keys(keys) => match keys.iter().find(|k| v.get(**k).is_none()) {
                            Some(key) => format!(
                                "associative list with keys has an element that omits key field \"{key}\" (and \
                                 doesn't have default value)"
                            ),
                            None => "associative list with keys may not have non-map elements".to_owned(),
                        },
                    };
                    return Err(format!("{}: element {i}: {why}", show(path)));
                };
                if !seen.insert(e.clone()) {
                    return Err(format!("{}: duplicate entries for key {e}", show(path)));
                }
                path.push(e);
                check_at(items(node), v, path)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}
