//! JSONPath as CustomResourceDefinitions and `kubectl -o jsonpath` write it.
//!
//! Fields (`.a.b`, `['a']`, escaped dots `.a\.b`), indexes (`[0]`, `[-1]`), slices (`[1:3]`), wildcards (`[*]`, `.*`),
//! unions (`['a','b']`), descent (`..a`) and filters (`[?(@.type=="Ready")]`). What is missing yields no result, never
//! an error: printer columns and selectors want it so. No script expressions, no ranges of templates.

use serde_json::Value;

/// Longest path that is parsed, in bytes.
pub const MAX_LEN: usize = 4096;
/// Most steps of one path.
const MAX_STEPS: usize = 64;
/// Most results that one step may yield; more are dropped.
const MAX_RESULTS: usize = 10_000;
/// Depth to which `..` descends, and to which filters nest.
const MAX_DEPTH: usize = 64;

/// Why a path cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("JSONPath {path:?}: {problem}")]
pub struct JsonPathError {
    /// The whole path.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Fields(Vec<String>),
    Index(i64),
    Indexes(Vec<i64>),
    Slice(Option<i64>, Option<i64>, i64),
    Wildcard,
    Descend,
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(Compare, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Vec<Step>),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A compiled path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

impl JsonPath {
    /// Reads a path. Braces around it and a missing first dot are accepted, as `kubectl` accepts them.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        let fail = |problem: String| JsonPathError { path: text.chars().take(200).collect(), problem };
        if text.len() > MAX_LEN {
            return Err(fail(format!("has more than {MAX_LEN} bytes")));
        }
        let trimmed = text.trim();
        let inner = trimmed.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(trimmed).trim();
        let mut parser = Parser { rest: inner, depth: 0 };
        if let Some(after) = inner.strip_prefix(['$', '@']) {
            parser.rest = after;
        }
        let steps = parser.steps(true).map_err(fail)?;
        if !parser.rest.is_empty() {
            return Err(fail(format!("cannot understand {:?}", parser.rest)));
        }
        Ok(Self { steps })
    }

    /// All results, in document order.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        evaluate(&self.steps, value)
    }
    /// The first result.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        // Paths of plain fields, nearly all of them, need no list.
        let mut at = value;
        for step in &self.steps {
            match step {
                Step::Field(key) => at = at.get(key)?,
                _ => return self.find(value).into_iter().next(),
            }
        }
        Some(at)
    }
    /// Whether the path is made of plain fields only.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.steps.iter().map(|s| if let Step::Field(f) = s { Some(f.as_str()) } else { None }).collect()
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }
    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Steps until something that cannot begin one. `first` allows a field without its dot.
    fn steps(&mut self, mut first: bool) -> Result<Vec<Step>, String> {
        let mut out = Vec::new();
        loop {
            if out.len() > MAX_STEPS {
                return Err(format!("has more than {MAX_STEPS} steps"));
            }
            if self.eat("..") {
                out.push(Step::Descend);
                if !self.rest.starts_with('[') {
                    out.push(self.field()?);
                }
            } else if self.eat(".") {
                // A lone dot is the whole object.
                if !(self.rest.is_empty() || self.rest.starts_with('[')) {
                    out.push(self.field()?);
                }
            } else if self.eat("[") {
                out.push(self.bracket()?);
            } else if first && !self.rest.is_empty() {
                out.push(self.field()?);
            } else {
                return Ok(out);
            }
            first = false;
        }
    }

    fn field(&mut self) -> Result<Step, String> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped)) => name.push(escaped),
                    None => return Err("ends with a backslash".into()),
                },
                '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}' | '(' | ')' | '=' | '!' | '<' | '>' => {
                    end = i;
                    break;
                }
                c if c.is_whitespace() => {
                    end = i;
                    break;
                }
                c => name.push(c),
            }
        }
        if end == 0 || name.is_empty() {
            return Err(format!("expected a field name at {:?}", self.rest));
        }
        let star = &self.rest[..end] == "*";
        self.rest = &self.rest[end..];
        Ok(if star { Step::Wildcard } else { Step::Field(name) })
    }

    fn bracket(&mut self) -> Result<Step, String> {
        self.spaces();
        let step = if self.eat("*") {
            Step::Wildcard
        } else if self.eat("?(") {
            let filter = self.filter()?;
            self.spaces();
            if !self.eat(")") {
                return Err("unterminated filter".into());
            }
            Step::Filter(Box::new(filter))
        } else if self.rest.starts_with(['\'', '"']) {
            let mut names = vec![self.quoted()?];
            while self.comma() {
                names.push(self.quoted()?);
            }
            if names.len() == 1 { Step::Field(names.remove(0)) } else { Step::Fields(names) }
        } else {
            self.indexes()?
        };
        self.spaces();
        if self.eat("]") { Ok(step) } else { Err("unterminated array".into()) }
    }

    fn comma(&mut self) -> bool {
        self.spaces();
        let found = self.eat(",");
        self.spaces();
        found
    }

    fn indexes(&mut self) -> Result<Step, String> {
        let first = self.number()?;
        if self.eat(":") {
            let end = self.number()?;
            let step = if self.eat(":") { self.number()?.unwrap_or(1) } else { 1 };
            if step < 1 {
                return Err("the step of a slice must be at least 1".into());
            }
            return Ok(Step::Slice(first, end, step));
        }
        let invalid = || "invalid array index".to_owned();
        let mut all = vec![first.ok_or_else(invalid)?];
        while self.comma() {
            all.push(self.number()?.ok_or_else(invalid)?);
        }
        Ok(if all.len() == 1 { Step::Index(all[0]) } else { Step::Indexes(all) })
    }

    fn number(&mut self) -> Result<Option<i64>, String> {
        self.spaces();
        let end = self.rest.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(self.rest.len());
        let (digits, after) = self.rest.split_at(end);
        self.rest = after;
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| "invalid array index".to_owned())
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut chars = self.rest.char_indices();
        let Some((_, quote @ ('\'' | '"'))) = chars.next() else {
            return Err("expected a quoted string".into());
        };
        let mut out = String::new();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped)) => out.push(escaped),
                    None => break,
                },
                c if c == quote => {
                    self.rest = &self.rest[i + 1..];
                    return Ok(out);
                }
                c => out.push(c),
            }
        }
        Err("unterminated quoted string".into())
    }

    fn filter(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("filters nest too deeply".into());
        }
        let left = self.operand()?;
        self.spaces();
        let signs = [
            ("==", Compare::Equal),
            ("!=", Compare::NotEqual),
            ("<=", Compare::LessOrEqual),
            (">=", Compare::GreaterOrEqual),
            ("<", Compare::Less),
            (">", Compare::Greater),
            ("=", Compare::Equal),
        ];
        let compare = signs.into_iter().find(|(sign, _)| self.eat(sign)).map(|(_, c)| c);
        let test = match compare {
            Some(c) => Some((c, self.operand()?)),
            None => None,
        };
        self.depth -= 1;
        Ok(Filter { left, test })
    }

    fn operand(&mut self) -> Result<Operand, String> {
        self.spaces();
        if self.eat("@") || self.eat("$") {
            return Ok(Operand::Path(self.steps(false)?));
        }
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(Value::String(self.quoted()?)));
        }
        if self.rest.starts_with('.') {
            return Ok(Operand::Path(self.steps(false)?));
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.')))
            .unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        let literal = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" | "nil" => Value::Null,
            number => match number.parse::<i64>() {
                Ok(n) => n.into(),
                Err(_) => match number.parse::<f64>() {
                    Ok(n) if n.is_finite() => n.into(),
                    _ => return Err(format!("cannot understand {:?} in a filter", self.rest)),
                },
            },
        };
        self.rest = after;
        Ok(Operand::Literal(literal))
    }
}

fn evaluate<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut current = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for v in current {
            apply(step, v, &mut next);
            if next.len() >= MAX_RESULTS {
                next.truncate(MAX_RESULTS);
                break;
            }
        }
        current = next;
    }
    current
}

fn apply<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Field(key), Value::Object(map)) => out.extend(map.get(key)),
        (Step::Fields(keys), Value::Object(map)) => out.extend(keys.iter().filter_map(|k| map.get(k))),
        (Step::Index(i), Value::Array(list)) => out.extend(at(list, *i)),
        (Step::Indexes(all), Value::Array(list)) => out.extend(all.iter().filter_map(|i| at(list, *i))),
        (Step::Wildcard, Value::Array(list)) => out.extend(list),
        (Step::Wildcard, Value::Object(map)) => out.extend(map.values()),
        (Step::Slice(start, end, step), Value::Array(list)) => {
            let len = list.len() as i64;
            let clip = |i: i64| (if i < 0 { len + i } else { i }).clamp(0, len) as usize;
            let (start, end) = (clip(start.unwrap_or(0)), clip(end.unwrap_or(len)));
            if start < end {
                let step = usize::try_from(*step).unwrap_or(usize::MAX);
                out.extend(list[start..end].iter().step_by(step));
            }
        }
        (Step::Descend, v) => descend(v, out, 0),
        (Step::Filter(f), Value::Array(list)) => out.extend(list.iter().filter(|v| f.passes(v))),
        _ => {}
    }
}

fn at(list: &[Value], index: i64) -> Option<&Value> {
    let i = if index < 0 { list.len() as i64 + index } else { index };
    list.get(usize::try_from(i).ok()?)
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>, depth: usize) {
    if out.len() >= MAX_RESULTS || depth > MAX_DEPTH {
        return;
    }
    out.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|v| descend(v, out, depth + 1)),
        Value::Object(map) => map.values().for_each(|v| descend(v, out, depth + 1)),
        _ => {}
    }
}

impl Filter {
    fn passes(&self, value: &Value) -> bool {
        let left = self.left.results(value);
        let Some((compare, right)) = &self.test else { return !left.is_empty() };
        let right = right.results(value);
        let (&[left], &[right]) = (left.as_slice(), right.as_slice()) else { return false };
        use std::cmp::Ordering;
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
            },
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        };
        match compare {
            Compare::Equal => order == Some(Ordering::Equal),
            Compare::NotEqual => order != Some(Ordering::Equal),
            Compare::Less => order == Some(Ordering::Less),
            Compare::LessOrEqual => order.is_some_and(Ordering::is_le),
            Compare::Greater => order == Some(Ordering::Greater),
            Compare::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
        }
    }
}

impl Operand {
    fn results<'a>(&'a self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Operand::Path(steps) => evaluate(steps, value),
            Operand::Literal(v) => vec![v],
        }
    }
}
