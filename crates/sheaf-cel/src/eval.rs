//! The evaluator: a walk over the tree that charges every step and stops where the limit is reached.
//!
//! Errors are values of a kind: `&&` and `||` absorb one if the other side decides. Running out of cost is none of
//! those; nothing absorbs it. Beside the cost, which counts as upstream counts, the bytes that functions build are
//! counted, since upstream's cost leaves some of them out.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ast::{Element, Entry, Expr, Fold, FoldKind, Kind, Literal};
use crate::check::Checked;
use crate::cost::{self, CALL, LIST, MAP, SELECT};
use crate::functions::{Cost, Cx};
use crate::libs::convert::type_constant;
use crate::libs::strings::display;
use crate::value::{EvalError, Fuel, Items, Key, List, Map, Outcome, Text, Value};

/// What one evaluation may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In upstream's units.
    pub(crate) cost: u64,
    /// Bytes built in texts, lists and maps.
    pub(crate) built: u64,
    /// Items compared; so many bytes of a text that a function looks through count as one.
    pub(crate) looks: u64,
}

impl Limits {
    pub(crate) fn new(cost: u64) -> Self {
        Self { cost, built: 32 << 20, looks: 5_000_000 }
    }
}

const BYTES_A_LOOK: u64 = 16;

pub(crate) struct Run<'a, 'g> {
    checked: &'a Checked,
    globals: &'g [(&'g str, Value<'a>)],
    /// A bound value that could not be had is an error only where it is looked at.
    locals: Vec<(&'a str, Outcome<'a>)>,
    pub(crate) spent: u64,
    limits: Limits,
    built: u64,
    fuel: Fuel,
}

impl<'a, 'g> Run<'a, 'g> {
    pub(crate) fn new(checked: &'a Checked, globals: &'g [(&'g str, Value<'a>)], limits: Limits) -> Self {
        Self {
            checked,
            globals,
            locals: Vec::new(),
            spent: 0,
            built: 0,
            fuel: Fuel::new(limits.looks),
            limits,
        }
    }

    fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limits.cost { Err(EvalError::CostExceeded) } else { Ok(()) }
    }

    fn build(&mut self, value: &Value<'_>) -> Result<(), EvalError> {
        let bytes = match value {
            Value::String(Text::Owned(s)) => s.len(),
            // Made by decoding, most of the time.
            Value::Bytes(b) => 2 * b.len(),
            Value::List(List::Owned(list)) => list.len() * size_of::<Value<'_>>(),
            Value::Map(Map::Owned(map)) => map.len() * (size_of::<Value<'_>>() + size_of::<Key>()),
            _ => return Ok(()),
        };
        self.built = self.built.saturating_add(bytes as u64);
        if self.built > self.limits.built { Err(EvalError::CostExceeded) } else { Ok(()) }
    }

    pub(crate) fn eval(&mut self, expr: &'a Expr) -> Outcome<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal_value(literal)),
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test, optional } => {
                self.select(expr, operand, field, *test, *optional)
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) | Kind::Message { entries, .. } => self.map(entries),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { name, value, body } => {
                self.charge(LIST)?;
                let value = match self.eval(value) {
                    Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                    other => other,
                };
                self.within(name, value, body)
            }
            Kind::OptMap { target, name, body, flat } => self.opt_map(target, name, body, *flat),
        }
    }

    fn within(&mut self, name: &'a str, value: Outcome<'a>, body: &'a Expr) -> Outcome<'a> {
        self.locals.push((name, value));
        let out = self.eval(body);
        self.locals.pop();
        out
    }

    fn ident(&mut self, expr: &'a Expr, name: &str) -> Outcome<'a> {
        self.charge(SELECT)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(n, _)| *n == name) {
            return value.clone();
        }
        self.global(expr, name)
    }

    fn global(&self, expr: &Expr, name: &str) -> Outcome<'a> {
        if let Some(name) = self.checked.type_names.get(&expr.id) {
            return type_constant(name).ok_or(EvalError::NoOverload);
        }
        let found = self.globals.iter().find(|(n, _)| *n == name);
        found.map(|(_, v)| v.clone()).ok_or_else(|| EvalError::other(format!("no such attribute(s): {name}")))
    }

    fn select(
        &mut self,
        expr: &'a Expr,
        operand: &'a Expr,
        field: &str,
        test: bool,
        optional: bool,
    ) -> Outcome<'a> {
        if self.checked.type_names.contains_key(&expr.id) {
            self.charge(SELECT)?;
            return self.global(expr, field);
        }
        // A variable with a dot in its name: the checker left its front without a type.
        if let Kind::Ident(root) = &operand.kind
            && !self.locals.iter().any(|(n, _)| n == root)
            && let Some((_, value)) = self.globals.iter().find(|(n, _)| {
                n.strip_prefix(root.as_str()).and_then(|rest| rest.strip_prefix('.')) == Some(field)
            })
        {
            self.charge(SELECT)?;
            return Ok(value.clone());
        }
        let target = self.eval(operand)?;
        if !test {
            self.charge(SELECT)?;
        }
        let (inner, through) = match &target {
            Value::Optional(None) if test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (&**inner, true),
            other => (other, optional),
        };
        let Value::Map(map) = inner else {
            return if test { Ok(Value::Bool(false)) } else { Err(EvalError::NoKey(field.to_owned())) };
        };
        let found = map.field(field);
        match (test, through, found) {
            (true, _, found) => Ok(Value::Bool(found.is_some())),
            (false, true, None) => Ok(Value::Optional(None)),
            (false, true, Some(value)) => match value? {
                value @ Value::Optional(_) => Ok(value),
                value => Ok(Value::some(value)),
            },
            (false, false, Some(value)) => self.seen(value?),
            (false, false, None) => Err(EvalError::NoKey(field.to_owned())),
        }
    }

    /// Bytes are decoded each time that they are looked at.
    fn seen(&mut self, value: Value<'a>) -> Outcome<'a> {
        if matches!(value, Value::Bytes(_)) {
            self.build(&value)?;
        }
        Ok(value)
    }

    fn call(
        &mut self,
        expr: &'a Expr,
        name: &str,
        target: Option<&'a Expr>,
        args: &'a [Expr],
    ) -> Outcome<'a> {
        match (name, target, args) {
            ("_&&_", None, args) => return self.logical(args, false),
            ("_||_", None, args) => return self.logical(args, true),
            ("_?_:_", None, [condition, yes, no]) => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(EvalError::NoOverload),
                };
            }
            ("or" | "orValue", Some(target), [other]) => return self.or(target, other, name == "orValue"),
            _ => {}
        }
        let checked = self.checked;
        let Some(resolved) = checked.calls.get(&expr.id) else { return Err(EvalError::NoOverload) };
        let target = target.filter(|_| !resolved.namespaced);
        let mut values: Vec<Value<'a>> = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg)?);
        }
        let function = resolved.declared.function;
        // What is dear is paid for before it is done.
        let before = match function.cost {
            Cost::Join => 0,
            rule => cost::of(rule, &values, &Value::Null),
        };
        self.charge(before)?;
        let text: usize = values.iter().map(text_len).sum();
        self.fuel.burn(1 + text as u64 / BYTES_A_LOOK);
        let cx = Cx { regex: checked.patterns.get(&expr.id), fuel: &self.fuel };
        let result = (function.call)(&cx, &values);
        // Without fuel, no answer is right.
        if self.fuel.is_empty() {
            return Err(EvalError::CostExceeded);
        }
        let result = result?;
        if matches!(function.cost, Cost::Join | Cost::Convert) {
            let whole = cost::of(function.cost, &values, &result);
            self.charge(whole.saturating_sub(before))?;
        }
        self.build(&result)?;
        Ok(result)
    }

    /// `&&` and `||`: the first that decides, decides, even if one before it failed.
    fn logical(&mut self, args: &'a [Expr], decides: bool) -> Outcome<'a> {
        let mut failure = None;
        for arg in args {
            match self.eval(arg) {
                Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => drop(failure.get_or_insert(EvalError::NoOverload)),
                Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failure.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn or(&mut self, target: &'a Expr, other: &'a Expr, unwrap: bool) -> Outcome<'a> {
        match self.eval(target)? {
            Value::Optional(Some(inner)) if unwrap => Ok((*inner).clone()),
            value @ Value::Optional(Some(_)) => Ok(value),
            Value::Optional(None) => self.eval(other),
            _ => Err(EvalError::NoOverload),
        }
    }

    fn opt_map(&mut self, target: &'a Expr, name: &'a str, body: &'a Expr, flat: bool) -> Outcome<'a> {
        let target = self.eval(target)?;
        self.charge(CALL)?;
        match target {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => {
                self.charge(LIST + CALL)?;
                let result = self.within(name, Ok((*inner).clone()), body)?;
                match (flat, result) {
                    (false, result) => Ok(Value::some(result)),
                    (true, result @ Value::Optional(_)) => Ok(result),
                    (true, _) => Err(EvalError::NoOverload),
                }
            }
            _ => Err(EvalError::NoOverload),
        }
    }

    fn list(&mut self, items: &'a [Element]) -> Outcome<'a> {
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            match (item.optional, self.eval(&item.value)?) {
                (false, value) => out.push(value),
                (true, Value::Optional(Some(inner))) => out.push((*inner).clone()),
                (true, Value::Optional(None)) => {}
                (true, _) => return Err(EvalError::other("expected optional value for list element")),
            }
        }
        self.charge(LIST)?;
        let list = Value::list(out);
        self.build(&list)?;
        Ok(list)
    }

    fn map(&mut self, entries: &'a [Entry]) -> Outcome<'a> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let key = key(&self.eval(&entry.key)?)?;
            let value = match (entry.optional, self.eval(&entry.value)?) {
                (false, value) => value,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (true, Value::Optional(None)) => continue,
                (true, _) => return Err(EvalError::other("expected optional value for map entry")),
            };
            insert(&mut out, key, value)?;
        }
        self.charge(MAP)?;
        let map = Value::map(out);
        self.build(&map)?;
        Ok(map)
    }

    fn fold(&mut self, fold: &'a Fold) -> Outcome<'a> {
        let range = self.eval(&fold.range)?;
        let items = Items::of(range).ok_or(EvalError::NoOverload)?;
        match fold.kind {
            FoldKind::All => self.quantify(fold, items, false),
            FoldKind::Exists => self.quantify(fold, items, true),
            FoldKind::ExistsOne => self.exists_one(fold, items),
            FoldKind::Map | FoldKind::Filter | FoldKind::TransformList => self.fold_list(fold, items),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => self.fold_map(fold, items),
        }
    }

    /// Puts the variables of the next step in place and evaluates it; `None` after the last one. The first variable is
    /// the item of a list or the key of a map, or, where there are two, the index or the key.
    fn step<R>(
        &mut self,
        fold: &'a Fold,
        items: &mut Items<'a>,
        f: impl FnOnce(&mut Self, &Value<'a>) -> Result<R, EvalError>,
    ) -> Option<Result<R, EvalError>> {
        let (key, value) = items.next()?;
        let before = self.locals.len();
        let looked_at = items.is_list() || fold.var2.is_some();
        let value = if looked_at { value.and_then(|v| self.seen(v)) } else { Ok(Value::Null) };
        let value = match value {
            Ok(value) => value,
            Err(error) => return Some(Err(error)),
        };
        let first = if items.is_list() && fold.var2.is_none() { value.clone() } else { key };
        self.locals.push((&fold.var, Ok(first.clone())));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2, Ok(value)));
        }
        let out = f(self, &first);
        self.locals.truncate(before);
        Some(out)
    }

    fn quantify(&mut self, fold: &'a Fold, mut items: Items<'a>, decides: bool) -> Outcome<'a> {
        // The condition of the loop: `@not_strictly_false(accu)`, with a negation for `exists`.
        let condition = SELECT + CALL + if decides { CALL } else { 0 };
        let mut failure = None;
        while let Some(outcome) = self.step(fold, &mut items, |run, _| {
            run.charge(condition + SELECT)?;
            run.eval(&fold.body)
        }) {
            match outcome {
                Ok(Value::Bool(b)) if b == decides => {
                    self.charge(condition + SELECT)?;
                    return Ok(Value::Bool(decides));
                }
                Ok(Value::Bool(_)) => {}
                Ok(_) => drop(failure.get_or_insert(EvalError::NoOverload)),
                Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        self.charge(SELECT)?;
        failure.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn exists_one(&mut self, fold: &'a Fold, mut items: Items<'a>) -> Outcome<'a> {
        let mut count = 0;
        while let Some(outcome) = self.step(fold, &mut items, |run, _| run.eval(&fold.body)) {
            match outcome? {
                Value::Bool(true) => {
                    count += 1;
                    self.charge(SELECT + CALL)?;
                }
                Value::Bool(false) => self.charge(SELECT)?,
                _ => return Err(EvalError::NoOverload),
            }
        }
        self.charge(SELECT + CALL)?;
        Ok(Value::Bool(count == 1))
    }

    /// Whether the step's condition holds; true where there is none.
    fn passes(&mut self, filter: Option<&'a Expr>) -> Result<bool, EvalError> {
        match filter.map(|f| self.eval(f)).transpose()? {
            None | Some(Value::Bool(true)) => Ok(true),
            Some(Value::Bool(false)) => {
                self.charge(SELECT)?;
                Ok(false)
            }
            Some(_) => Err(EvalError::NoOverload),
        }
    }

    fn fold_list(&mut self, fold: &'a Fold, mut items: Items<'a>) -> Outcome<'a> {
        self.charge(LIST)?;
        let mut out = Vec::new();
        while let Some(item) = self.step(fold, &mut items, |run, first| {
            let item = if fold.kind == FoldKind::Filter {
                if !run.passes(Some(&fold.body))? {
                    return Ok(None);
                }
                run.charge(SELECT)?;
                first.clone()
            } else if run.passes(fold.filter.as_ref())? {
                run.eval(&fold.body)?
            } else {
                return Ok(None);
            };
            // `accu + [item]`.
            run.charge(SELECT + LIST + CALL)?;
            Ok(Some(item))
        }) {
            out.extend(item?);
        }
        self.charge(SELECT)?;
        let list = Value::list(out);
        self.build(&list)?;
        Ok(list)
    }

    fn fold_map(&mut self, fold: &'a Fold, mut items: Items<'a>) -> Outcome<'a> {
        self.charge(MAP)?;
        let mut out = BTreeMap::new();
        while let Some(done) = self.step(fold, &mut items, |run, first| {
            if !run.passes(fold.filter.as_ref())? {
                return Ok(());
            }
            let value = run.eval(&fold.body)?;
            run.charge(SELECT + CALL)?;
            if fold.kind == FoldKind::TransformMap {
                run.charge(SELECT)?;
                return insert(&mut out, key(first)?, value);
            }
            let Value::Map(entries) = value else { return Err(EvalError::NoOverload) };
            for k in entries.keys() {
                let value = entries.get(&k).unwrap_or(Ok(Value::Null))?;
                insert(&mut out, key(&k)?, value)?;
            }
            Ok(())
        }) {
            done?;
        }
        self.charge(SELECT)?;
        let map = Value::map(out);
        self.build(&map)?;
        Ok(map)
    }
}

/// The length of a text, or zero.
fn text_len(value: &Value<'_>) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Bytes(b) => b.len(),
        _ => 0,
    }
}

fn key(value: &Value<'_>) -> Result<Key, EvalError> {
    Key::of(value).ok_or_else(|| EvalError::other(format!("unsupported key type: {}", value.type_name())))
}

fn insert<'a>(map: &mut BTreeMap<Key, Value<'a>>, key: Key, value: Value<'a>) -> Result<(), EvalError> {
    if map.contains_key(&key) {
        let shown = match &key {
            Key::Bool(b) => b.to_string(),
            Key::Number(n) => n.to_string(),
            Key::String(s) => display(&Value::String(Text::Borrowed(s))),
        };
        return Err(EvalError::other(format!("Failed with repeated key: {shown}")));
    }
    map.insert(key, value);
    Ok(())
}

fn literal_value(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(d) => Value::Double(*d),
        Literal::String(s) => Value::String(Text::Borrowed(s)),
        Literal::Bytes(b) => Value::Bytes(Rc::from(b.as_slice())),
    }
}
