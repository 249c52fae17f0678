//! Sets of field paths, and their form in `managedFields[].fieldsV1`.
//!
//! A set is a tree. An entry says whether the path itself belongs to the set (`member`, written `.` where it also has
//! children), and which paths below do. Elements are fields (`f:name`), list items by key (`k:{"name":"a"}`), by value
//! (`v:"a"`) or by index (`i:0`).

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a field path. Keys and values are canonical JSON texts (keys sorted), so that equal means equal text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Element {
    Field(Box<str>),
    Key(Box<str>),
    Value(Box<str>),
    Index(i64),
}

impl Element {
    /// A list item by its key fields.
    pub(crate) fn key(fields: &BTreeMap<&str, &Value>) -> Self {
        let mut text = String::from("{");
        for (i, (name, value)) in fields.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            text.push_str(&Value::from(*name).to_string());
            text.push(':');
            text.push_str(&value.to_string());
        }
        text.push('}');
        Element::Key(text.into())
    }
    /// A list item by its value.
    pub(crate) fn value(value: &Value) -> Self {
        Element::Value(value.to_string().into())
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Element::Field(rest.into())),
            "v" => Some(Element::value(&serde_json::from_str::<Value>(rest).ok()?)),
            "i" => rest.parse().ok().map(Element::Index),
            "k" => {
                let map: Map<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Element::key(&map.iter().map(|(k, v)| (k.as_str(), v)).collect()))
            }
            _ => None,
        }
    }
}

/// The form inside `fieldsV1`.
pub(super) fn encode_element(e: &Element) -> String {
    match e {
        Element::Field(name) => ["f:", name].concat(),
        Element::Key(text) => ["k:", text].concat(),
        Element::Value(text) => ["v:", text].concat(),
        Element::Index(i) => format!("i:{i}"),
    }
}

/// The form in messages: `.name`, `[name="a",port=80]`, `[="a"]`, `[0]`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Value(text) => write!(f, "[={text}]"),
            Element::Index(i) => write!(f, "[{i}]"),
            Element::Key(text) => {
                let map: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
                let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", parts.join(","))
            }
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) member: bool,
    pub(crate) children: FieldSet,
}

/// A set of field paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet(BTreeMap<Element, Entry>);

impl FromIterator<(Element, Entry)> for FieldSet {
    fn from_iter<I: IntoIterator<Item = (Element, Entry)>>(entries: I) -> Self {
        FieldSet(entries.into_iter().collect())
    }
}

impl FieldSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(crate) fn iter(&self) -> btree_map::Iter<'_, Element, Entry> {
        self.0.iter()
    }
    pub(crate) fn get(&self, element: &Element) -> Option<&Entry> {
        self.0.get(element)
    }
    pub(crate) fn put(&mut self, element: Element, entry: Entry) {
        if entry.member || !entry.children.is_empty() {
            self.0.insert(element, entry);
        }
    }

    /// Inserts a path; the empty path, which names the whole object, is not tracked.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let entry = self.0.entry(first.clone()).or_default();
        if rest.is_empty() {
            entry.member = true;
        } else {
            entry.children.insert(rest);
        }
    }

    /// Adds all paths of another set.
    pub(crate) fn extend(&mut self, other: &Self) {
        for (element, theirs) in &other.0 {
            match self.0.get_mut(element) {
                Some(ours) => {
                    ours.member |= theirs.member;
                    ours.children.extend(&theirs.children);
                }
                None => {
                    self.0.insert(element.clone(), theirs.clone());
                }
            }
        }
    }
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.extend(other);
        out
    }
    /// The paths of `self` that are not themselves in `other`.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (element, ours) in &self.0 {
            match other.0.get(element) {
                None => {
                    out.0.insert(element.clone(), ours.clone());
                }
                Some(theirs) => out.put(
                    element.clone(),
                    Entry {
                        member: ours.member && !theirs.member,
                        children: ours.children.difference(&theirs.children),
                    },
                ),
            }
        }
        out
    }
    /// Takes the paths of another set out.
    pub(crate) fn subtract(&mut self, other: &Self) {
        if self.0.is_empty() {
            return;
        }
        for (element, theirs) in &other.0 {
            let Some(ours) = self.0.get_mut(element) else { continue };
            ours.member &= !theirs.member;
            ours.children.subtract(&theirs.children);
            if !ours.member && ours.children.is_empty() {
                self.0.remove(element);
            }
        }
    }
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (element, ours) in &self.0 {
            if let Some(theirs) = other.0.get(element) {
                out.put(
                    element.clone(),
                    Entry {
                        member: ours.member && theirs.member,
                        children: ours.children.intersection(&theirs.children),
                    },
                );
            }
        }
        out
    }
    /// All member paths, in order.
    pub(crate) fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }
    fn collect(&self, path: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        for (element, entry) in &self.0 {
            path.push(element.clone());
            if entry.member {
                out.push(path.clone());
            }
            entry.children.collect(path, out);
            path.pop();
        }
    }

    /// Reads `fieldsV1`. `None` if a key is none of the four forms.
    pub(crate) fn decode(fields: &Value) -> Option<Self> {
        let mut out = Self::default();
        for (key, value) in fields.as_object()? {
            if key == "." {
                // The membership of the entry above; its caller has read it.
                continue;
            }
            let element = Element::parse(key)?;
            let children = Self::decode(value)?;
            let member = value.get(".").is_some() || children.is_empty();
            out.0.insert(element, Entry { member, children });
        }
        Some(out)
    }
    /// Writes `fieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        let mut map = Map::new();
        for (element, entry) in &self.0 {
            let mut value = entry.children.encode();
            if entry.member
                && !entry.children.is_empty()
                && let Value::Object(inner) = &mut value
            {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(encode_element(element), value);
        }
        Value::Object(map)
    }
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub(crate) fn show(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}
