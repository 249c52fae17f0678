//! What an expression costs at worst, from the bounds that declarations give: upstream's estimate, by which rules of
//! CustomResourceDefinitions are refused before they can be slow.
//!
//! Macros are estimated as if they were expanded into folds. Only the upper end of the cost is computed; sizes have both
//! ends, since the smallest text to be replaced bounds how often it can be.

use std::sync::Arc;

use crate::ast::{Expr, Fold, FoldKind, Kind, Literal};
use crate::check::{Checked, fits};
use crate::cost::{CALL, CHECK, LIST, MAP, PATTERN, SELECT, TRAVERSAL, scale};
use crate::functions::{Cost, Declared};
use crate::types::{Decl, Shape, Type};

/// A size between two ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Size {
    min: u64,
    max: u64,
}

const UNKNOWN: Size = Size { min: 0, max: u64::MAX };

impl Size {
    fn fixed(n: u64) -> Self {
        Self { min: n, max: n }
    }
    fn plus(self, other: Size) -> Size {
        Size { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }
    fn times(self, other: Size) -> Size {
        Size { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }
    fn union(self, other: Size) -> Size {
        Size { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// What is known of the value of a node.
#[derive(Debug, Clone, Default)]
struct Info {
    /// Size, as far as the expression tells.
    size: Option<Size>,
    /// Size of items or values, as far as the expression tells.
    entry: Option<Size>,
    /// The declaration, where the value is a part of a variable.
    decl: Option<Arc<Decl>>,
}

pub(crate) struct Estimator<'e> {
    pub(crate) checked: &'e Checked,
    pub(crate) variables: &'e [(String, Arc<Decl>)],
    locals: Vec<(String, Info)>,
}

impl<'e> Estimator<'e> {
    pub(crate) fn new(checked: &'e Checked, variables: &'e [(String, Arc<Decl>)]) -> Self {
        Self { checked, variables, locals: Vec::new() }
    }

    pub(crate) fn worst(&mut self, expr: &Expr) -> u64 {
        self.cost(expr).0
    }

    fn ty(&self, expr: &Expr) -> &Type {
        self.checked.types.get(expr.id as usize).unwrap_or(&Type::Dyn)
    }

    fn size(&self, expr: &Expr, info: &Info) -> Size {
        self.known_size(expr, info).unwrap_or(UNKNOWN)
    }

    fn known_size(&self, expr: &Expr, info: &Info) -> Option<Size> {
        // What is written out has its size; of what is declared the bound is known; the rest is what it came from.
        literal_size(expr)
            .or(info.decl.as_ref().map(|d| Size { min: 0, max: d.max_elements }))
            .or(info.size)
            .or(is_scalar(self.ty(expr)).then_some(Size::fixed(1)))
    }

    fn cost(&mut self, expr: &Expr) -> (u64, Info) {
        match &expr.kind {
            Kind::Literal(_) => (0, Info::default()),
            Kind::Ident(name) => {
                let local = self.locals.iter().rev().find(|(n, _)| n == name);
                let info = local.map(|(_, i)| i.clone()).unwrap_or_else(|| Info {
                    decl: self.variables.iter().find(|(n, _)| n == name).map(|(_, d)| d.clone()),
                    ..Info::default()
                });
                (SELECT, info)
            }
            Kind::Select { operand, field, test, .. } => {
                let (cost, info) = self.cost(operand);
                if *test {
                    return (cost, Info::default());
                }
                let decl = info.decl.as_deref().and_then(|d| child(d, field));
                (cost.saturating_add(SELECT), Info { decl, size: None, entry: None })
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let (mut cost, mut entry) = (LIST, None);
                for item in items {
                    let (c, info) = self.cost(&item.value);
                    cost = cost.saturating_add(c);
                    let size = self.size(&item.value, &info);
                    entry = Some(entry.map_or(size, |e: Size| e.union(size)));
                }
                (cost, Info { entry: Some(entry.unwrap_or(Size::fixed(0))), ..Info::default() })
            }
            Kind::Map(entries) | Kind::Message { entries, .. } => {
                let (mut cost, mut entry) = (MAP, None);
                for item in entries {
                    let (c, _) = self.cost(&item.key);
                    cost = cost.saturating_add(c);
                    let (c, info) = self.cost(&item.value);
                    cost = cost.saturating_add(c);
                    let size = self.size(&item.value, &info);
                    entry = Some(entry.map_or(size, |e: Size| e.union(size)));
                }
                (cost, Info { entry: Some(entry.unwrap_or(Size::fixed(0))), ..Info::default() })
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { name, value, body } => {
                let (cost, mut info) = self.cost(value);
                info.size = self.known_size(value, &info).filter(|_| info.decl.is_none());
                self.locals.push((name.clone(), info));
                let (body, info) = self.cost(body);
                self.locals.pop();
                (LIST.saturating_add(cost).saturating_add(body), info)
            }
            Kind::OptMap { target, name, body, .. } => {
                let (cost, info) = self.cost(target);
                self.locals.push((name.clone(), info));
                let (body, info) = self.cost(body);
                self.locals.pop();
                // The target is asked whether it has a value, and then for it.
                let twice = cost.saturating_mul(2).saturating_add(LIST + 3 * CALL);
                (twice.saturating_add(body), Info { decl: None, ..info })
            }
        }
    }

    fn fold(&mut self, fold: &Fold) -> (u64, Info) {
        let (range_cost, range) = self.cost(&fold.range);
        let count = self.size(&fold.range, &range);
        let is_map = matches!(self.ty(&fold.range), Type::Map(_));
        let items = Info { decl: range.decl.as_deref().and_then(items_of), size: range.entry, entry: None };
        // Keys are declared as texts without a length.
        let keys = Info { size: Some(Size::fixed(u64::from(!is_map))), ..Info::default() };
        let (first, second) = match (is_map, fold.var2.is_some()) {
            (false, false) => (items, None),
            (true, false) => (keys, None),
            (_, true) => (keys, Some(items)),
        };
        let before = self.locals.len();
        self.locals.push((fold.var.clone(), first.clone()));
        if let (Some(var2), Some(second)) = (&fold.var2, second) {
            self.locals.push((var2.clone(), second));
        }
        let filter = fold.filter.as_ref().map(|f| self.cost(f).0);
        let (body, info) = self.cost(&fold.body);
        let body_size = self.size(&fold.body, &info);
        self.locals.truncate(before);

        let append = SELECT + LIST + CALL;
        let branch = |step: u64| match filter {
            Some(filter) => filter.saturating_add(step),
            None => step,
        };
        let (init, step, result, size, entry) = match fold.kind {
            FoldKind::All => (0, body.saturating_add(2 * SELECT + CALL), SELECT, Size::fixed(1), None),
            FoldKind::Exists => (0, body.saturating_add(2 * SELECT + 2 * CALL), SELECT, Size::fixed(1), None),
            FoldKind::ExistsOne => {
                (0, body.saturating_add(SELECT + CALL), SELECT + CALL, Size::fixed(1), None)
            }
            FoldKind::Filter => {
                let item = first.decl.as_ref().map(|d| Size { min: 0, max: d.max_elements }).or(first.size);
                (LIST, body.saturating_add(append + SELECT), SELECT, count, Some(item.unwrap_or(UNKNOWN)))
            }
            FoldKind::Map | FoldKind::TransformList => {
                (LIST, branch(body.saturating_add(append)), SELECT, count, Some(body_size))
            }
            FoldKind::TransformMap => {
                (MAP, branch(body.saturating_add(2 * SELECT + CALL)), SELECT, count, Some(body_size))
            }
            FoldKind::TransformMapEntry => {
                (MAP, branch(body.saturating_add(SELECT + CALL)), SELECT, count, info.entry)
            }
        };
        let total = range_cost
            .saturating_add(init)
            .saturating_add(count.max.saturating_mul(step))
            .saturating_add(result);
        (total, Info { size: Some(size), entry, decl: None })
    }

    fn call(&mut self, expr: &Expr, name: &str, target: Option<&Expr>, args: &[Expr]) -> (u64, Info) {
        let Some(resolved) = self.checked.calls.get(&expr.id) else { return (0, Info::default()) };
        let declared: &Declared = resolved.declared;
        let target = target.filter(|_| !resolved.namespaced);
        let all: Vec<&Expr> = target.into_iter().chain(args).collect();
        let known: Vec<(u64, Info)> = all.iter().map(|e| self.cost(e)).collect();
        let sum = known.iter().map(|(c, _)| *c).fold(0, u64::saturating_add);
        match name {
            "_?_:_" => {
                let ([(condition, _), (yes, a), (no, b)], [_, left, right]) = (&known[..], &all[..]) else {
                    return (sum, Info::default());
                };
                let size = self.size(left, a).union(self.size(right, b));
                let entry = a.entry.zip(b.entry).map(|(x, y)| x.union(y));
                let cost = condition.saturating_add(*yes.max(no));
                return (cost, Info { size: Some(size), entry, decl: None });
            }
            "dyn" => {
                let info = known.into_iter().next().map(|(_, i)| i).unwrap_or_default();
                return (sum.saturating_add(CALL), info);
            }
            _ => {}
        }
        let sizes: Vec<Size> = all.iter().zip(&known).map(|(e, (_, i))| self.size(e, i)).collect();
        let size = |i: usize| sizes.get(i).copied().unwrap_or(Size::fixed(1));
        let info = |i: usize| known.get(i).map(|(_, i)| i.clone()).unwrap_or_default();
        let types: Vec<Type> = all.iter().map(|e| self.ty(e).clone()).collect();
        // Every overload that the types allow may run; the dearest counts.
        let text =
            self.may_be(declared, target.is_some(), &types, |t| matches!(t, Type::String | Type::Bytes));
        let list = self.may_be(declared, target.is_some(), &types, |t| matches!(t, Type::List(_)));
        let tenth = |s: Size| scale(s.max, TRAVERSAL);
        let mut out = Info::default();
        let own = match declared.function.cost {
            Cost::One => match name {
                "_[_]" | "_[?_]" => {
                    out.decl = info(0).decl.as_deref().and_then(items_of);
                    out.size = info(0).entry;
                    CALL
                }
                _ => CALL,
            },
            Cost::Free => match name {
                "or" | "orValue" => {
                    out.size = Some(size(0).union(size(1)));
                    0
                }
                _ => 0,
            },
            Cost::Traverse(arg, times) => {
                if matches!(name, "lowerAscii" | "upperAscii" | "substring" | "trim" | "reverse") {
                    out.size = Some(size(0));
                }
                if name == "format" {
                    out.size = Some(size(0).plus(size(1)));
                }
                scale(size(arg).max, times * TRAVERSAL)
            }
            Cost::Parse(_) => CALL,
            Cost::Convert => match (self.ty(expr), types.first()) {
                (Type::Bytes, Some(Type::String)) => {
                    out.size = Some(Size { min: size(0).min, max: size(0).max.saturating_mul(4) });
                    tenth(size(0))
                }
                (Type::String, Some(Type::Bytes)) => {
                    out.size = Some(Size { min: size(0).min / 4, max: size(0).max });
                    tenth(size(0))
                }
                _ => CALL,
            },
            Cost::Compare => tenth(Size::fixed(size(0).max.min(size(1).max))),
            Cost::Order if text => tenth(Size::fixed(size(0).max.min(size(1).max))).max(CALL),
            Cost::Order => CALL,
            Cost::Concat => {
                if text || list {
                    out.size = Some(size(0).plus(size(1)));
                    out.entry = known[0].1.entry.zip(info(1).entry).map(|(a, b)| a.union(b));
                }
                if text { tenth(size(0).plus(size(1))) } else { CALL }
            }
            Cost::In => {
                let in_list = matches!(types.get(1), Some(Type::List(_) | Type::Dyn));
                if in_list { size(1).max } else { CALL }
            }
            Cost::Regex => {
                if name != "matches" {
                    out.size = Some(Size { min: 0, max: size(0).max });
                }
                let text = tenth(size(0).plus(Size::fixed(1)));
                text.saturating_mul(scale(size(1).max, PATTERN))
            }
            Cost::Contains => tenth(size(0)).saturating_mul(tenth(size(1))),
            Cost::Walk => match types.first() {
                Some(Type::List(item)) => {
                    let item_size =
                        info(0).decl.as_deref().and_then(items_of).map_or(u64::MAX, |d| d.max_elements);
                    let each = match **item {
                        Type::String | Type::Bytes => scale(item_size, TRAVERSAL).saturating_add(CALL),
                        _ => CALL,
                    };
                    size(0).max.saturating_mul(each)
                }
                _ => tenth(size(0)),
            },
            Cost::Join => {
                let item = info(0).decl.as_deref().and_then(items_of);
                let item = item.map_or(UNKNOWN, |d| Size { min: 0, max: d.max_elements });
                let mut joined = size(0).times(item);
                if all.len() > 1 {
                    let gaps =
                        Size { min: size(0).min.saturating_sub(1), max: size(0).max.saturating_sub(1) };
                    joined = joined.plus(size(1).times(gaps));
                }
                out.size = Some(joined);
                tenth(joined)
            }
            Cost::Replace => {
                out.size = Some(replaced(size(0), size(1), size(2)));
                scale(size(0).max, 2.0 * TRAVERSAL)
            }
            Cost::Split => {
                let limit = match args.get(1).map(|e| &e.kind) {
                    Some(Kind::Literal(Literal::Int(n))) => u64::try_from(*n).ok(),
                    _ => None,
                };
                out.size = Some(Size { min: 0, max: limit.unwrap_or(size(0).max) });
                scale(size(0).max, 2.0 * TRAVERSAL)
            }
            Cost::Sets(times) => {
                size(0).max.saturating_mul(size(1).max).saturating_mul(times).saturating_add(CALL)
            }
            // Addresses have 16 bytes at most.
            Cost::ContainsIp | Cost::ContainsCidr => {
                let parsed = if types.get(1) == Some(&Type::String) { tenth(size(1)) } else { 0 };
                let more =
                    if declared.function.cost == Cost::ContainsCidr { scale(16, TRAVERSAL) + 1 } else { 0 };
                (scale(32, TRAVERSAL) + more).saturating_add(parsed)
            }
            Cost::Check => CHECK,
        };
        (sum.saturating_add(own), out)
    }

    /// Whether one of the overloads that may run takes a first argument of a kind.
    fn may_be(&self, declared: &Declared, member: bool, args: &[Type], kind: fn(&Type) -> bool) -> bool {
        declared
            .overloads
            .iter()
            .filter(|o| o.member == member && fits(o, args).is_some())
            .any(|o| o.params.first().is_some_and(kind))
    }
}

fn replaced(text: Size, old: Size, new: Size) -> Size {
    let ceil = |a: u64, b: u64| if b == 0 { u64::MAX } else { a.div_ceil(b) };
    let (mut count, mut kept) = (Size::fixed(0), Size::fixed(0));
    if old.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = ceil(text.max, old.min);
    }
    if old.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = ceil(text.min, old.max);
    }
    count.times(new).plus(kept)
}

fn literal_size(expr: &Expr) -> Option<Size> {
    Some(Size::fixed(match &expr.kind {
        Kind::Literal(Literal::String(s)) => s.chars().count() as u64,
        Kind::Literal(Literal::Bytes(b)) => b.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List(items) => items.len() as u64,
        Kind::Map(entries) => entries.len() as u64,
        _ => return None,
    }))
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}

fn child(decl: &Decl, field: &str) -> Option<Arc<Decl>> {
    match &decl.shape {
        Shape::Object(object) => object.fields.get(field).map(|f| f.decl.clone()),
        Shape::Map(values) => Some(values.clone()),
        _ => None,
    }
}

fn items_of(decl: &Decl) -> Option<Arc<Decl>> {
    match &decl.shape {
        Shape::List(items, _) => Some(items.clone()),
        Shape::Map(values) => Some(values.clone()),
        _ => None,
    }
}
