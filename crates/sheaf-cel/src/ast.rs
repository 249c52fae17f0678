//! The tree of an expression, and how it is written out again.
//!
//! Macros (`all`, `map`, `cel.bind`, ...) are nodes of their own instead of being expanded into folds: what is printed
//! is what was written, and the evaluator needs no accumulators. Costs are charged as if they had been expanded.

use std::fmt::{self, Write};

/// One node. `id` is its index in what the checker records; `at` the offset in bytes of the text.
#[derive(Debug, Clone)]
pub(crate) struct Expr {
    pub(crate) id: u32,
    pub(crate) at: u32,
    /// Levels below and including this node.
    pub(crate) depth: u16,
    pub(crate) kind: Kind,
}

/// Two trees are equal if they say the same, wherever they were written.
impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(String),
    Select {
        operand: Box<Expr>,
        field: String,
        /// `has(a.b)`.
        test: bool,
        /// `a.?b`.
        optional: bool,
    },
    /// Functions and operators (`_+_`). `&&` and `||` have as many arguments as the chain has.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    List(Vec<Element>),
    Map(Vec<Entry>),
    /// `Object.spec{replicas: 1}`: a map whose keys are the fields that are said.
    Message {
        name: String,
        entries: Vec<Entry>,
    },
    Fold(Box<Fold>),
    /// `cel.bind(name, value, body)`.
    Bind {
        name: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
    /// `target.optMap(name, body)`, `target.optFlatMap(name, body)`.
    OptMap {
        target: Box<Expr>,
        name: String,
        body: Box<Expr>,
        flat: bool,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Element {
    pub(crate) optional: bool,
    pub(crate) value: Expr,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) optional: bool,
    pub(crate) key: Expr,
    pub(crate) value: Expr,
}

/// What a macro over a list or map does with each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoldKind {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
}

impl FoldKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            FoldKind::All => "all",
            FoldKind::Exists => "exists",
            FoldKind::ExistsOne => "exists_one",
            FoldKind::Map => "map",
            FoldKind::Filter => "filter",
            FoldKind::TransformList => "transformList",
            FoldKind::TransformMap => "transformMap",
            FoldKind::TransformMapEntry => "transformMapEntry",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fold {
    pub(crate) kind: FoldKind,
    pub(crate) range: Expr,
    pub(crate) var: String,
    /// The second variable of two-variable forms: the value, where `var` is index or key.
    pub(crate) var2: Option<String>,
    /// The condition of three-argument `map` and of the transformations.
    pub(crate) filter: Option<Expr>,
    pub(crate) body: Expr,
}

/// Operators with their precedence; higher binds closer.
pub(crate) const BINARY: [(&str, &str, u8); 14] = [
    ("||", "_||_", 2),
    ("&&", "_&&_", 3),
    ("==", "_==_", 4),
    ("!=", "_!=_", 4),
    ("<=", "_<=_", 4),
    (">=", "_>=_", 4),
    ("<", "_<_", 4),
    (">", "_>_", 4),
    ("in", "@in", 4),
    ("+", "_+_", 5),
    ("-", "_-_", 5),
    ("*", "_*_", 6),
    ("/", "_/_", 6),
    ("%", "_%_", 6),
];
const TERNARY: u8 = 1;
const UNARY: u8 = 7;
const MEMBER: u8 = 8;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

/// An expression as an operand that binds closely.
struct Member<'e>(&'e Expr);

impl fmt::Display for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, MEMBER)
    }
}

impl Expr {
    fn precedence(&self) -> u8 {
        match &self.kind {
            Kind::Call { function, target: None, .. } => match function.as_str() {
                "_?_:_" => TERNARY,
                "!_" | "-_" => UNARY,
                name => BINARY.iter().find(|(_, n, _)| *n == name).map_or(MEMBER, |(_, _, p)| *p),
            },
            // A number with a sign is read as one token only where no operand stands before it.
            Kind::Literal(Literal::Int(i64::MIN..0)) => UNARY,
            Kind::Literal(Literal::Double(d)) if d.is_sign_negative() => UNARY,
            _ => MEMBER,
        }
    }

    /// Writes the expression, in parentheses if it binds less closely than `least`.
    fn write(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        if self.precedence() < least {
            f.write_char('(')?;
            self.write(f, 0)?;
            return f.write_char(')');
        }
        match &self.kind {
            Kind::Literal(literal) => fmt::Display::fmt(literal, f),
            Kind::Ident(name) => f.write_str(name),
            Kind::Select { operand, field, test, optional } => {
                if *test {
                    f.write_str("has(")?;
                }
                operand.write(f, MEMBER)?;
                f.write_str(if *optional { ".?" } else { "." })?;
                f.write_str(field)?;
                if *test { f.write_char(')') } else { Ok(()) }
            }
            Kind::Call { function, target, args } => self.call(f, function, target.as_deref(), args),
            Kind::List(items) => {
                f.write_char('[')?;
                for (i, item) in items.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    f.write_str(if item.optional { "?" } else { "" })?;
                    item.value.write(f, 0)?;
                }
                f.write_char(']')
            }
            Kind::Map(entries) => {
                f.write_char('{')?;
                for (i, entry) in entries.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    f.write_str(if entry.optional { "?" } else { "" })?;
                    entry.key.write(f, 0)?;
                    f.write_str(": ")?;
                    entry.value.write(f, 0)?;
                }
                f.write_char('}')
            }
            Kind::Message { name, entries } => {
                write!(f, "{name}{{")?;
                for (i, entry) in entries.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    f.write_str(if entry.optional { "?" } else { "" })?;
                    match &entry.key.kind {
                        Kind::Literal(Literal::String(field)) => f.write_str(field)?,
                        _ => entry.key.write(f, 0)?,
                    }
                    f.write_str(": ")?;
                    entry.value.write(f, 0)?;
                }
                f.write_char('}')
            }
            Kind::Fold(fold) => {
                fold.range.write(f, MEMBER)?;
                let name = match (fold.kind, &fold.var2) {
                    (FoldKind::ExistsOne, Some(_)) => "existsOne",
                    (kind, _) => kind.word(),
                };
                write!(f, ".{name}({}, ", fold.var)?;
                if let Some(var2) = &fold.var2 {
                    write!(f, "{var2}, ")?;
                }
                if let Some(filter) = &fold.filter {
                    write!(f, "{filter}, ")?;
                }
                write!(f, "{})", fold.body)
            }
            Kind::Bind { name, value, body } => write!(f, "cel.bind({name}, {value}, {body})"),
            Kind::OptMap { target, name, body, flat } => {
                target.write(f, MEMBER)?;
                write!(f, ".{}({name}, {body})", if *flat { "optFlatMap" } else { "optMap" })
            }
        }
    }

    fn call(
        &self,
        f: &mut fmt::Formatter<'_>,
        function: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> fmt::Result {
        match (function, target, args) {
            ("_?_:_", None, [condition, yes, no]) => {
                condition.write(f, TERNARY + 1)?;
                f.write_str(" ? ")?;
                yes.write(f, TERNARY + 1)?;
                f.write_str(" : ")?;
                return no.write(f, TERNARY);
            }
            ("!_", None, [arg]) => {
                f.write_char('!')?;
                // Two signs in a row would cancel out.
                return arg.write(f, MEMBER);
            }
            // What follows a minus must not be taken for a part of a number.
            ("-_", None, [arg]) => {
                // `-0.f()` is read as a call on a negative number.
                let operand = Member(arg).to_string();
                let number = operand.starts_with(|c: char| c.is_ascii_digit() || c == '.');
                return if number { write!(f, "-({operand})") } else { write!(f, "-{operand}") };
            }
            ("_[_]", None, [list, index]) => {
                list.write(f, MEMBER)?;
                return write!(f, "[{index}]");
            }
            ("_[?_]", None, [list, index]) => {
                list.write(f, MEMBER)?;
                return write!(f, "[?{index}]");
            }
            _ => {}
        }
        if target.is_none()
            && args.len() > 1
            && let Some((sign, _, precedence)) = BINARY.iter().find(|(_, n, _)| *n == function)
        {
            for (i, arg) in args.iter().enumerate() {
                if i > 0 {
                    write!(f, " {sign} ")?;
                }
                let chain = matches!(function, "_&&_" | "_||_");
                arg.write(f, if i == 0 && !chain { *precedence } else { precedence + 1 })?;
            }
            return Ok(());
        }
        if let Some(target) = target {
            target.write(f, MEMBER)?;
            f.write_char('.')?;
        }
        write!(f, "{function}(")?;
        for (i, arg) in args.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            arg.write(f, 0)?;
        }
        f.write_char(')')
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Null => f.write_str("null"),
            Literal::Bool(b) => write!(f, "{b}"),
            Literal::Int(n) => write!(f, "{n}"),
            Literal::Uint(n) => write!(f, "{n}u"),
            Literal::Double(n) => write!(f, "{n:?}"),
            Literal::String(s) => write!(f, "{}", quote(s)),
            Literal::Bytes(bytes) => {
                f.write_str("b\"")?;
                bytes.iter().try_for_each(|b| write!(f, "\\x{b:02x}"))?;
                f.write_char('"')
            }
        }
    }
}

/// A string as a literal in double quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
