//! The checker: types of all nodes, which functions are called, and what cannot be right.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex::Regex;
use sheaf_meta::times;

use crate::ast::{Entry, Expr, Fold, FoldKind, Kind, Literal};
use crate::functions::{Declared, Overload, table};
use crate::lex::Problem;
use crate::libs::{convert, pattern};
use crate::types::{Decl, Type};

/// What the checker found out, by the ids of nodes.
#[derive(Default)]
pub(crate) struct Checked {
    pub(crate) types: Vec<Type>,
    /// The function of a call, under the name of the table (`optional.of` for a call of `of` on `optional`).
    pub(crate) calls: HashMap<u32, Resolved>,
    /// Global variables that are used.
    pub(crate) used: BTreeSet<String>,
    /// Literal patterns, compiled.
    pub(crate) patterns: HashMap<u32, Regex>,
    /// Nodes that name a type.
    pub(crate) type_names: HashMap<u32, String>,
}

pub(crate) struct Resolved {
    pub(crate) declared: &'static Declared,
    /// The target of the call is the front of the function's name, and no value.
    pub(crate) namespaced: bool,
}

pub(crate) struct Checker<'e> {
    pub(crate) variables: &'e [(String, Arc<Decl>)],
    pub(crate) locals: Vec<(String, Type)>,
    pub(crate) out: Checked,
    pub(crate) problems: Vec<Problem>,
    /// Inside the arguments of `format`, whose list may have elements of all types.
    pub(crate) mixed: bool,
    /// Whether there are types of which values can be made: objects and patches.
    pub(crate) messages: bool,
}

/// Most problems that are reported.
const MAX_PROBLEMS: usize = 10;

type Bindings = [Option<Type>; 2];

impl Checker<'_> {
    pub(crate) fn fail(&mut self, at: u32, message: impl Into<String>) -> Type {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { at, message: message.into() });
        }
        // Dyn fits everywhere, so that one mistake is not told twice.
        Type::Dyn
    }

    pub(crate) fn check(&mut self, expr: &Expr) -> Type {
        let ty = match &expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test, optional } => {
                self.select(expr, operand, field, *test, *optional)
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut item = None;
                for element in items {
                    let mut ty = self.check(&element.value);
                    if element.optional {
                        ty = self.unwrap_optional(element.value.at, ty);
                    }
                    item = Some(self.same(item, ty, element.value.at));
                }
                Type::List(Arc::new(item.unwrap_or(Type::Dyn)))
            }
            Kind::Map(entries) => {
                let (mut key, mut value) = (None, None);
                for entry in entries {
                    let k = self.check(&entry.key);
                    if !matches!(k, Type::Dyn | Type::Bool | Type::Int | Type::Uint | Type::String) {
                        self.fail(entry.key.at, format!("unsupported map key type: {k}"));
                    }
                    key = Some(self.same(key, k, entry.key.at));
                    let mut v = self.check(&entry.value);
                    if entry.optional {
                        v = self.unwrap_optional(entry.value.at, v);
                    }
                    value = Some(self.same(value, v, entry.value.at));
                }
                Type::Map(Arc::new((key.unwrap_or(Type::Dyn), value.unwrap_or(Type::Dyn))))
            }
            Kind::Message { name, entries } => self.message(expr.at, name, entries),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { name, value, body } => {
                let ty = self.check(value);
                self.within(&[(name, ty)], |c| c.check(body))
            }
            Kind::OptMap { target, name, body, flat } => {
                let ty = self.check(target);
                let inner = self.unwrap_optional(target.at, ty);
                let result = self.within(&[(name, inner)], |c| c.check(body));
                match (flat, result) {
                    (false, result) => Type::Optional(Arc::new(result)),
                    (true, result @ (Type::Optional(_) | Type::Dyn)) => result,
                    (true, other) => {
                        let message = format!("expected type 'optional_type' but found '{other}'");
                        self.fail(body.at, message)
                    }
                }
            }
        };
        let index = expr.id as usize;
        if self.out.types.len() <= index {
            self.out.types.resize(index + 1, Type::Dyn);
        }
        self.out.types[index] = ty.clone();
        ty
    }

    fn within(&mut self, names: &[(&String, Type)], f: impl FnOnce(&mut Self) -> Type) -> Type {
        let before = self.locals.len();
        self.locals.extend(names.iter().map(|(n, t)| ((*n).clone(), t.clone())));
        let out = f(self);
        self.locals.truncate(before);
        out
    }

    fn variable(&self, name: &str) -> Option<Type> {
        if let Some((_, ty)) = self.locals.iter().rev().find(|(n, _)| n == name) {
            return Some(ty.clone());
        }
        self.variables.iter().find(|(n, _)| n == name).map(|(_, d)| d.ty.clone())
    }

    fn ident(&mut self, expr: &Expr, name: &str) -> Type {
        let local = self.locals.iter().any(|(n, _)| n == name);
        if let Some(ty) = self.variable(name) {
            if !local {
                self.out.used.insert(name.to_owned());
            }
            return ty;
        }
        if convert::type_constant(name).is_some() {
            self.out.type_names.insert(expr.id, name.to_owned());
            return Type::Meta;
        }
        self.fail(expr.at, format!("undeclared reference to '{name}' (in container '')"))
    }

    /// `a.b.c` as a name with dots, if it is one whose first part is no variable.
    fn dotted(&self, expr: &Expr) -> Option<String> {
        match &expr.kind {
            Kind::Ident(name) => self.variable(name).is_none().then(|| name.clone()),
            Kind::Select { operand, field, test: false, optional: false } => {
                Some(format!("{}.{field}", self.dotted(operand)?))
            }
            _ => None,
        }
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test: bool, optional: bool) -> Type {
        // Variables may have dots in their names (`authorizer.requestResource`).
        if let Kind::Ident(root) = &operand.kind
            && !self.locals.iter().any(|(n, _)| n == root)
        {
            let name = format!("{root}.{field}");
            if let Some((_, decl)) = self.variables.iter().find(|(n, _)| *n == name) {
                self.out.used.insert(name);
                return decl.ty.clone();
            }
        }
        if let Some(name) = self.dotted(expr)
            && convert::type_constant(&name).is_some()
        {
            self.out.type_names.insert(expr.id, name);
            return Type::Meta;
        }
        let target = self.check(operand);
        let (inner, through) = match target {
            Type::Optional(inner) => ((*inner).clone(), true),
            other => (other, optional),
        };
        let found = match &inner {
            Type::Dyn => Type::Dyn,
            Type::Map(kv) if matches!(kv.0, Type::String | Type::Dyn) => kv.1.clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(field) => field.decl.ty.clone(),
                None => self.fail(expr.at, format!("undefined field '{field}'")),
            },
            other => self.fail(expr.at, format!("type '{other}' does not support field selection")),
        };
        match (test, through) {
            (true, _) => Type::Bool,
            (false, true) if matches!(found, Type::Optional(_)) => found,
            (false, true) => Type::Optional(Arc::new(found)),
            (false, false) => found,
        }
    }

    fn unwrap_optional(&mut self, at: u32, ty: Type) -> Type {
        match ty {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => self.fail(at, format!("expected type 'optional_type' but found '{other}'")),
        }
    }

    /// Elements of a literal have one type.
    fn same(&mut self, before: Option<Type>, ty: Type, at: u32) -> Type {
        match before {
            None => ty,
            Some(before) => match join(&before, &ty) {
                Some(joined) => joined,
                None if self.mixed => Type::Dyn,
                None => self.fail(at, format!("expected type '{before}' but found '{ty}'")),
            },
        }
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let range = self.check(&fold.range);
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(item) if two => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(kv) => (kv.0.clone(), kv.1.clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fail(fold.range.at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let mut names = vec![(&fold.var, first.clone())];
        if let Some(var2) = &fold.var2 {
            names.push((var2, second));
        }
        let before = self.locals.len();
        self.locals.extend(names.into_iter().map(|(n, t)| (n.clone(), t)));
        if let Some(filter) = &fold.filter {
            self.boolean(filter);
        }
        let body = match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne | FoldKind::Filter => {
                self.boolean(&fold.body);
                Type::Bool
            }
            _ => self.check(&fold.body),
        };
        self.locals.truncate(before);
        match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => Type::Bool,
            FoldKind::Filter => Type::List(Arc::new(first)),
            FoldKind::Map | FoldKind::TransformList => Type::List(Arc::new(body)),
            FoldKind::TransformMap => Type::Map(Arc::new((first, body))),
            FoldKind::TransformMapEntry => match body {
                Type::Map(_) | Type::Dyn => body,
                other => self.fail(fold.body.at, format!("expected type 'map' but found '{other}'")),
            },
        }
    }

    /// `Object` has any fields; the type of what is in one is called after it.
    fn message(&mut self, at: u32, name: &str, entries: &[Entry]) -> Type {
        let object = name == "Object" || name.starts_with("Object.");
        if !self.messages || !(object || name == "JSONPatch") {
            return self.fail(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        for entry in entries {
            let Kind::Literal(Literal::String(field)) = &entry.key.kind else { continue };
            if !object && !matches!(field.as_str(), "op" | "path" | "from" | "value") {
                self.fail(entry.key.at, format!("undefined field '{field}'"));
            }
            let ty = self.check(&entry.value);
            if entry.optional {
                self.unwrap_optional(entry.value.at, ty);
            }
            let inner = match &entry.value.kind {
                Kind::List(items) => items.iter().map(|item| &item.value).collect(),
                _ => vec![&entry.value],
            };
            for value in inner.into_iter().filter(|_| object) {
                let expected = format!("{name}.{field}");
                if let Kind::Message { name, .. } = &value.kind
                    && *name != expected
                {
                    self.fail(value.at, format!("unexpected type name {name:?}, expected {expected:?}"));
                }
            }
        }
        Type::Dyn
    }

    fn boolean(&mut self, expr: &Expr) {
        let ty = self.check(expr);
        if !matches!(ty, Type::Bool | Type::Dyn) {
            self.fail(expr.at, format!("expected type 'bool' but found '{ty}'"));
        }
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Type {
        if matches!(function, "_&&_" | "_||_") && target.is_none() {
            return self.logical(expr, function, args);
        }
        // `optional.of(x)`: the target may be the front of the function's name.
        if let Some(target) = target
            && let Some(name) = self.dotted(target).map(|t| format!("{t}.{function}"))
            && let Some(declared) = table().get(name.as_str())
        {
            let types: Vec<Type> = args.iter().map(|a| self.check(a)).collect();
            self.out.calls.insert(expr.id, Resolved { declared, namespaced: true });
            return self.resolve(expr.at, &name, declared, false, &types);
        }
        let outer = self.mixed;
        self.mixed = outer || function == "format";
        let types: Vec<Type> = target.into_iter().chain(args).map(|a| self.check(a)).collect();
        self.mixed = outer;
        let Some(declared) = table().get(function).filter(|_| !function.contains('.')) else {
            return self.fail(expr.at, format!("undeclared reference to '{function}' (in container '')"));
        };
        self.out.calls.insert(expr.id, Resolved { declared, namespaced: false });
        self.literals(expr, function, target, args);
        self.resolve(expr.at, function, declared, target.is_some(), &types)
    }

    fn logical(&mut self, expr: &Expr, function: &str, args: &[Expr]) -> Type {
        if let Some(declared) = table().get(function) {
            self.out.calls.insert(expr.id, Resolved { declared, namespaced: false });
        }
        for arg in args {
            let ty = self.check(arg);
            if !matches!(ty, Type::Bool | Type::Dyn) {
                self.fail(arg.at, format!("expected type 'bool' but found '{ty}'"));
            }
        }
        Type::Bool
    }

    fn resolve(&mut self, at: u32, name: &str, declared: &Declared, member: bool, args: &[Type]) -> Type {
        let mut results: Vec<Type> = Vec::new();
        for overload in declared.overloads.iter().filter(|o| o.member == member) {
            if let Some(result) = fits(overload, args) {
                // What says nothing but dyn adds nothing to a result that says more.
                if !results.contains(&result) {
                    results.push(result);
                }
            }
        }
        match results.len() {
            1 => results.remove(0),
            0 => {
                let list = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
                let applied = match args {
                    [target, rest @ ..] if member => format!("{target}.({})", list(rest)),
                    all => format!("({})", list(all)),
                };
                self.fail(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
            }
            _ => Type::Dyn,
        }
    }

    /// Literals that a function will refuse whatever the object is.
    fn literals(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) {
        let text = |e: &Expr| match &e.kind {
            Kind::Literal(Literal::String(s)) => Some(s.clone()),
            _ => None,
        };
        match (function, args) {
            ("matches" | "find" | "findAll", [first, rest @ ..]) => {
                let pattern = if target.is_some() { Some(first) } else { rest.first() };
                let Some(source) = pattern.and_then(text) else { return };
                match pattern::compile(&source) {
                    Ok(regex) => drop(self.out.patterns.insert(expr.id, regex)),
                    Err(_) => drop(self.fail(first.at, "invalid matches argument")),
                }
            }
            ("duration", [only])
                if target.is_none() && text(only).is_some_and(|s| times::parse_duration(&s).is_none()) =>
            {
                self.fail(only.at, "invalid duration argument");
            }
            ("timestamp", [only])
                if target.is_none() && text(only).is_some_and(|s| times::parse_date_time(&s).is_none()) =>
            {
                self.fail(only.at, "invalid timestamp argument");
            }
            _ => {}
        }
    }
}

pub(crate) fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// The result of an overload for arguments of these types, if it takes them.
pub(crate) fn fits(overload: &Overload, args: &[Type]) -> Option<Type> {
    if overload.params.len() != args.len() {
        return None;
    }
    let mut bindings: Bindings = [None, None];
    for (param, arg) in overload.params.iter().zip(args) {
        if !assignable(param, arg, &mut bindings) {
            return None;
        }
    }
    Some(substitute(&overload.result, &bindings))
}

fn assignable(param: &Type, arg: &Type, bindings: &mut Bindings) -> bool {
    match (param, arg) {
        (Type::Param(n), arg) => {
            let Some(slot) = bindings.get_mut(usize::from(*n)) else { return false };
            let joined = match slot {
                None => Some(arg.clone()),
                Some(bound) => join(bound, arg),
            };
            match joined {
                Some(ty) => {
                    *slot = Some(ty);
                    true
                }
                None => false,
            }
        }
        (Type::Dyn, _) => true,
        (_, Type::Dyn) => {
            bind_dyn(param, bindings);
            true
        }
        (Type::List(p), Type::List(a)) | (Type::Optional(p), Type::Optional(a)) => assignable(p, a, bindings),
        (Type::Map(p), Type::Map(a)) => assignable(&p.0, &a.0, bindings) && assignable(&p.1, &a.1, bindings),
        (p, Type::Null) => takes_null(p),
        (p, a) => p == a,
    }
}

/// What stands inside a parameter may be anything, if the argument may.
fn bind_dyn(param: &Type, bindings: &mut Bindings) {
    match param {
        Type::Param(n) => {
            if let Some(slot) = bindings.get_mut(usize::from(*n)) {
                *slot = Some(Type::Dyn);
            }
        }
        Type::List(inner) | Type::Optional(inner) => bind_dyn(inner, bindings),
        Type::Map(kv) => {
            bind_dyn(&kv.0, bindings);
            bind_dyn(&kv.1, bindings);
        }
        _ => {}
    }
}

fn takes_null(ty: &Type) -> bool {
    matches!(
        ty,
        Type::Null
            | Type::Dyn
            | Type::Object(_)
            | Type::Timestamp
            | Type::Duration
            | Type::Opaque(_)
            | Type::Optional(_)
    )
}

/// The type that both are, if there is one: the more general of two that fit each other.
pub(crate) fn join(a: &Type, b: &Type) -> Option<Type> {
    match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
        (Type::List(x), Type::List(y)) => Some(Type::List(Arc::new(join(x, y)?))),
        (Type::Optional(x), Type::Optional(y)) => Some(Type::Optional(Arc::new(join(x, y)?))),
        (Type::Map(x), Type::Map(y)) => Some(Type::Map(Arc::new((join(&x.0, &y.0)?, join(&x.1, &y.1)?)))),
        (a, Type::Null) if takes_null(a) => Some(a.clone()),
        (Type::Null, b) if takes_null(b) => Some(b.clone()),
        (a, b) if a == b => Some(a.clone()),
        _ => None,
    }
}

fn substitute(ty: &Type, bindings: &Bindings) -> Type {
    match ty {
        Type::Param(n) => bindings.get(usize::from(*n)).cloned().flatten().unwrap_or(Type::Dyn),
        Type::List(inner) => Type::List(Arc::new(substitute(inner, bindings))),
        Type::Optional(inner) => Type::Optional(Arc::new(substitute(inner, bindings))),
        Type::Map(kv) => Type::Map(Arc::new((substitute(&kv.0, bindings), substitute(&kv.1, bindings)))),
        other => other.clone(),
    }
}
