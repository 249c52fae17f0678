//! Types of expressions, and declarations: types with the JSON shape and the bounds behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type as the checker knows it.
#[derive(Debug, Clone)]
pub enum Type {
    /// Anything; what it is shows when the expression runs.
    Dyn,
    /// `null`.
    Null,
    /// `bool`.
    Bool,
    /// `int`, 64 bits with sign.
    Int,
    /// `uint`.
    Uint,
    /// `double`.
    Double,
    /// `string`.
    String,
    /// `bytes`.
    Bytes,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.Duration`.
    Duration,
    /// `list(T)`.
    List(Arc<Type>),
    /// `map(K, V)`.
    Map(Arc<(Type, Type)>),
    /// An object with declared fields.
    Object(Arc<Object>),
    /// The type of a type.
    Meta,
    /// `optional_type(T)`.
    Optional(Arc<Type>),
    /// A type of Kubernetes' libraries.
    Opaque(Opaque),
    /// A type parameter of a function's signature; never the type of an expression.
    Param(u8),
}

/// Types of Kubernetes' libraries, about whose values only functions tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opaque {
    /// `kubernetes.URL`.
    Url,
    /// `net.IP`.
    Ip,
    /// `net.CIDR`.
    Cidr,
    /// `kubernetes.Quantity`.
    Quantity,
    /// `kubernetes.Semver`.
    Semver,
    /// `kubernetes.NamedFormat`.
    Format,
    /// `kubernetes.authorization.Authorizer` and what its builders return: declared where a caller gives one.
    Authorizer,
    /// `kubernetes.authorization.PathCheck`.
    PathCheck,
    /// `kubernetes.authorization.GroupCheck`.
    GroupCheck,
    /// `kubernetes.authorization.ResourceCheck`.
    ResourceCheck,
    /// `kubernetes.authorization.Decision`.
    Decision,
}

impl Opaque {
    /// All of them with the names by which messages and `type()` call them.
    pub(crate) const NAMES: [(&'static str, Opaque); 11] = [
        ("kubernetes.URL", Opaque::Url),
        ("net.IP", Opaque::Ip),
        ("net.CIDR", Opaque::Cidr),
        ("kubernetes.Quantity", Opaque::Quantity),
        ("kubernetes.Semver", Opaque::Semver),
        ("kubernetes.NamedFormat", Opaque::Format),
        ("kubernetes.authorization.Authorizer", Opaque::Authorizer),
        ("kubernetes.authorization.PathCheck", Opaque::PathCheck),
        ("kubernetes.authorization.GroupCheck", Opaque::GroupCheck),
        ("kubernetes.authorization.ResourceCheck", Opaque::ResourceCheck),
        ("kubernetes.authorization.Decision", Opaque::Decision),
    ];
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, o)| *o == self).map_or("", |(n, _)| n)
    }
}

/// An object type. Two are the same only if they are one.
#[derive(Debug)]
pub struct Object {
    /// Name for messages.
    pub name: String,
    /// Fields by the name under which expressions reach them.
    pub fields: BTreeMap<String, Field>,
}

/// A declared field.
#[derive(Debug)]
pub struct Field {
    /// The key in JSON (`a-b` where expressions say `a__dash__b`).
    pub json: String,
    /// What is there.
    pub decl: Arc<Decl>,
}

/// What a value looks like in JSON, and how expressions see it.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Whatever JSON says: objects are maps, whole numbers are `int`.
    Dyn,
    /// A boolean.
    Bool,
    /// A whole number.
    Int,
    /// A number; whole ones are doubles too.
    Double,
    /// A string.
    String,
    /// Base64 in JSON.
    Bytes,
    /// `2006-01-02`.
    Date,
    /// RFC 3339.
    DateTime,
    /// Go's notation.
    Duration,
    /// An integer or a string.
    IntOrString,
    /// A list.
    List(Arc<Decl>, ListKind),
    /// An object whose keys are data.
    Map(Arc<Decl>),
    /// An object with fields.
    Object(Arc<Object>),
}

/// How lists are compared and added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// Element by element.
    Atomic,
    /// As sets.
    Set,
    /// By keys.
    Map(Vec<String>),
}

/// A declaration: the type with the bounds that cost estimates need.
#[derive(Debug, Clone)]
pub struct Decl {
    /// Shape in JSON.
    pub shape: Shape,
    /// Type in expressions.
    pub ty: Type,
    /// Most characters, bytes, items or properties.
    pub max_elements: u64,
    /// Fewest bytes that a value takes in JSON.
    pub min_size: u64,
    /// Whether null is a value.
    pub nullable: bool,
}

impl Decl {
    /// A declaration without bounds.
    pub fn new(shape: Shape) -> Self {
        let ty = match &shape {
            Shape::Dyn | Shape::IntOrString => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String => Type::String,
            Shape::Bytes => Type::Bytes,
            Shape::Date | Shape::DateTime => Type::Timestamp,
            Shape::Duration => Type::Duration,
            Shape::List(items, _) => Type::List(Arc::new(items.ty.clone())),
            Shape::Map(values) => Type::Map(Arc::new((Type::String, values.ty.clone()))),
            Shape::Object(object) => Type::Object(object.clone()),
        };
        // What has no length counts as upstream counts it: not at all.
        let max_elements = match &shape {
            Shape::Bool | Shape::Int | Shape::Double | Shape::Object(_) => 0,
            _ => u64::MAX,
        };
        Self { shape, ty, max_elements, min_size: 1, nullable: false }
    }
    /// Anything.
    pub fn dynamic() -> Arc<Self> {
        Arc::new(Self::new(Shape::Dyn))
    }
    /// A string.
    pub fn string() -> Arc<Self> {
        Arc::new(Self::new(Shape::String))
    }
    /// A variable of a type that JSON has no shape for (an authorizer, an optional).
    pub fn of(ty: Type) -> Arc<Self> {
        Arc::new(Self { shape: Shape::Dyn, ty, max_elements: u64::MAX, min_size: 1, nullable: false })
    }
    /// An object with these fields, by their names in expressions and JSON.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Arc<Decl>)>) -> Arc<Self> {
        let fields =
            fields.into_iter().map(|(k, decl)| (k.to_owned(), Field { json: k.to_owned(), decl })).collect();
        Arc::new(Self::new(Shape::Object(Arc::new(Object { name: name.to_owned(), fields }))))
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a == b,
            (Type::Map(a), Type::Map(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => Arc::ptr_eq(a, b),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Dyn => "dyn",
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "timestamp",
            Type::Duration => "duration",
            Type::List(item) => return write!(f, "list({item})"),
            Type::Map(kv) => return write!(f, "map({}, {})", kv.0, kv.1),
            Type::Object(object) => &object.name,
            Type::Meta => "type",
            Type::Optional(inner) => return write!(f, "optional_type({inner})"),
            Type::Opaque(opaque) => opaque.name(),
            Type::Param(n) => return write!(f, "{}", char::from(b'A' + n)),
        })
    }
}

/// The name under which expressions reach a property, or `None` if they cannot.
pub fn escape(name: &str) -> Option<String> {
    let valid_start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !valid_start || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./-".contains(&b)) {
        return None;
    }
    if matches!(name, "true" | "false" | "null") || crate::parse::RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    Some(
        name.replace("__", "__underscores__")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__"),
    )
}
