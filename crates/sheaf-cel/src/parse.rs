//! Tokens to a tree: precedence climbing, and the macros.

use crate::ast::{BINARY, Element, Entry, Expr, Fold, FoldKind, Kind, Literal};
use crate::lex::{Problem, Token, TokenKind, lex};

/// Longest expression, in code points.
pub(crate) const MAX_LEN: usize = 100_000;
/// Deepest nesting of an expression, as written and as a tree.
pub(crate) const MAX_DEPTH: u16 = 250;

/// Words that may name no variable.
pub(crate) const RESERVED: [&str; 18] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "in",
];

/// Reads an expression.
pub(crate) fn parse(text: &str) -> Result<Expr, Problem> {
    if text.len() > MAX_LEN && text.chars().count() > MAX_LEN {
        let message =
            format!("expression code point size exceeds limit: size: {}, limit {MAX_LEN}", text.len());
        return Err(Problem::new(0, message));
    }
    let mut parser = Parser { tokens: lex(text)?, next: 0, nodes: 0, depth: 0 };
    let root = parser.expression()?;
    match parser.peek() {
        TokenKind::End => Ok(root),
        other => Err(parser.unexpected(&show(other), "<EOF>")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    nodes: u32,
    depth: u16,
}

type Parse<T> = Result<T, Problem>;

fn show(token: &TokenKind) -> String {
    match token {
        TokenKind::Ident(name) => name.clone(),
        TokenKind::Literal(literal) => literal.to_string(),
        TokenKind::MinMagnitude => "9223372036854775808".to_owned(),
        TokenKind::Sign(sign) => (*sign).to_owned(),
        TokenKind::End => "<EOF>".to_owned(),
    }
}

impl Parser {
    fn peek(&self) -> &TokenKind {
        self.tokens.get(self.next).map_or(&TokenKind::End, |t| &t.kind)
    }
    fn at(&self) -> u32 {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |t| t.at)
    }
    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), TokenKind::Sign(s) if *s == sign)
    }
    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.next += usize::from(found);
        found
    }
    fn expect(&mut self, sign: &str) -> Parse<()> {
        if self.take(sign) {
            return Ok(());
        }
        let found = show(self.peek());
        Err(self.unexpected(&found, &format!("'{sign}'")))
    }
    fn unexpected(&self, found: &str, wanted: &str) -> Problem {
        let message = format!("Syntax error: mismatched input '{found}' expecting {wanted}");
        Problem { at: self.at(), message }
    }
    fn fail<T>(&self, at: u32, message: impl Into<String>) -> Parse<T> {
        Err(Problem { at, message: message.into() })
    }

    fn node(&mut self, at: u32, kind: Kind) -> Parse<Expr> {
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select { operand, .. } => operand.depth,
            Kind::Call { target, args, .. } => {
                args.iter().chain(target.as_deref()).map(|e| e.depth).max().unwrap_or(0)
            }
            Kind::List(items) => items.iter().map(|e| e.value.depth).max().unwrap_or(0),
            Kind::Map(entries) => entries.iter().map(|e| e.key.depth.max(e.value.depth)).max().unwrap_or(0),
            Kind::Fold(fold) => {
                let filter = fold.filter.as_ref().map_or(0, |f| f.depth);
                fold.range.depth.max(fold.body.depth).max(filter)
            }
            Kind::Message { entries, .. } => entries.iter().map(|e| e.value.depth).max().unwrap_or(0),
            Kind::Bind { value, body, .. } => value.depth.max(body.depth),
            Kind::OptMap { target, body, .. } => target.depth.max(body.depth),
        };
        if below >= MAX_DEPTH {
            return self.too_deep(at);
        }
        let id = self.nodes;
        self.nodes += 1;
        Ok(Expr { id, at, depth: below + 1, kind })
    }

    fn too_deep<T>(&self, at: u32) -> Parse<T> {
        self.fail(at, format!("expression recursion limit exceeded: {MAX_DEPTH}"))
    }

    fn call(&mut self, at: u32, function: &str, args: Vec<Expr>) -> Parse<Expr> {
        self.node(at, Kind::Call { function: function.to_owned(), target: None, args })
    }

    fn expression(&mut self) -> Parse<Expr> {
        // Each level of nesting costs a few frames here.
        if self.depth >= MAX_DEPTH / 2 {
            return self.too_deep(self.at());
        }
        self.depth += 1;
        let out = self.ternary();
        self.depth -= 1;
        out
    }

    fn ternary(&mut self) -> Parse<Expr> {
        let condition = self.binary(2)?;
        let at = self.at();
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.binary(2)?;
        self.expect(":")?;
        let no = self.expression()?;
        self.call(at, "_?_:_", vec![condition, yes, no])
    }

    fn binary(&mut self, least: u8) -> Parse<Expr> {
        let mut left = self.unary()?;
        loop {
            let TokenKind::Sign(sign) = self.peek() else { return Ok(left) };
            let Some(&(sign, function, precedence)) =
                BINARY.iter().find(|(s, _, p)| s == sign && *p >= least)
            else {
                return Ok(left);
            };
            let at = self.at();
            if matches!(sign, "&&" | "||") {
                let mut args = vec![left];
                while self.take(sign) {
                    args.push(self.binary(precedence + 1)?);
                }
                left = self.call(at, function, args)?;
                continue;
            }
            self.next += 1;
            let right = self.binary(precedence + 1)?;
            left = self.call(at, function, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Parse<Expr> {
        let at = self.at();
        if self.is("!") {
            let mut count = 0;
            while self.take("!") {
                count += 1;
            }
            let operand = self.member()?;
            // As upstream: an even number of signs cancels out.
            return if count % 2 == 0 { Ok(operand) } else { self.call(at, "!_", vec![operand]) };
        }
        if self.is("-") {
            // A minus directly before a number belongs to it.
            let number = self.tokens.get(self.next + 1).is_some_and(|t| {
                matches!(
                    t.kind,
                    TokenKind::Literal(Literal::Int(_) | Literal::Double(_)) | TokenKind::MinMagnitude
                )
            });
            if number {
                return self.member();
            }
            let mut count = 0;
            while self.take("-") {
                count += 1;
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(at, "-_", vec![operand]) };
        }
        self.member()
    }

    fn member(&mut self) -> Parse<Expr> {
        let mut left = self.primary()?;
        loop {
            let at = self.at();
            if self.take(".") {
                let optional = self.take("?");
                let (field_at, field) = self.identifier()?;
                if !optional && self.is("(") {
                    let args = self.arguments()?;
                    left = self.member_call(at, field_at, left, field, args)?;
                } else {
                    let operand = Box::new(left);
                    left = self.node(at, Kind::Select { operand, field, test: false, optional })?;
                }
            } else if self.take("[") {
                let function = if self.take("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                left = self.call(at, function, vec![left, index])?;
            } else if self.is("{")
                && let Some(name) = dotted(&left)
            {
                left = self.message(at, name)?;
            } else if self.is("{") && matches!(left.kind, Kind::Select { .. }) {
                return self.fail(at, format!("undeclared reference to '{left}' (in container '')"));
            } else {
                return Ok(left);
            }
        }
    }

    /// A name, and where it is.
    fn identifier(&mut self) -> Parse<(u32, String)> {
        let at = self.at();
        let TokenKind::Ident(name) = self.peek().clone() else {
            let found = show(self.peek());
            return Err(self.unexpected(&found, "IDENTIFIER"));
        };
        self.next += 1;
        Ok((at, name))
    }

    /// The fields of a message, whose name was read.
    fn message(&mut self, at: u32, name: String) -> Parse<Expr> {
        self.expect("{")?;
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let (field_at, field) = self.identifier()?;
            self.expect(":")?;
            let key = self.node(field_at, Kind::Literal(Literal::String(field)))?;
            let value = self.expression()?;
            entries.push(Entry { optional, key, value });
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, Kind::Message { name, entries })
    }

    fn arguments(&mut self) -> Parse<Vec<Expr>> {
        self.expect("(")?;
        let mut args = Vec::new();
        if self.take(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if !self.take(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Parse<Expr> {
        let at = self.at();
        let token = self.peek().clone();
        self.next += 1;
        match token {
            TokenKind::MinMagnitude => self.fail(at, "Syntax error: invalid int literal"),
            TokenKind::Literal(literal) => self.node(at, Kind::Literal(literal)),
            TokenKind::Sign("-") => {
                let negated = match self.peek() {
                    TokenKind::Literal(Literal::Int(n)) => Literal::Int(-n),
                    TokenKind::Literal(Literal::Double(n)) => Literal::Double(-n),
                    TokenKind::MinMagnitude => Literal::Int(i64::MIN),
                    _ => return Err(self.unexpected("-", "a number")),
                };
                self.next += 1;
                self.node(at, Kind::Literal(negated))
            }
            TokenKind::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            TokenKind::Sign("[") => self.list(at),
            TokenKind::Sign("{") => self.map(at),
            TokenKind::Sign(".") => match self.peek().clone() {
                TokenKind::Ident(name) => {
                    self.next += 1;
                    self.named(at, name)
                }
                other => Err(self.unexpected(&show(&other), "IDENTIFIER")),
            },
            TokenKind::Ident(name) => self.named(at, name),
            other => {
                self.next -= 1;
                let message = match other {
                    TokenKind::End => "Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', \
                                       '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
                                       IDENTIFIER}"
                        .to_owned(),
                    other => format!(
                        "Syntax error: extraneous input '{}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', \
                         'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}",
                        show(&other)
                    ),
                };
                self.fail(at, message)
            }
        }
    }

    fn named(&mut self, at: u32, name: String) -> Parse<Expr> {
        if self.is("(") {
            let args = self.arguments()?;
            return self.global_call(at, name, args);
        }
        if RESERVED.contains(&name.as_str()) {
            return self.fail(at, format!("Syntax error: reserved identifier: {name}"));
        }
        self.node(at, Kind::Ident(name))
    }

    fn list(&mut self, at: u32) -> Parse<Expr> {
        let mut items = Vec::new();
        while !self.take("]") {
            let optional = self.take("?");
            let value = self.expression()?;
            items.push(Element { optional, value });
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        self.node(at, Kind::List(items))
    }

    fn map(&mut self, at: u32) -> Parse<Expr> {
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            entries.push(Entry { optional, key, value });
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, Kind::Map(entries))
    }

    fn global_call(&mut self, at: u32, name: String, mut args: Vec<Expr>) -> Parse<Expr> {
        if name == "has" && args.len() == 1 {
            return match args.remove(0) {
                Expr { kind: Kind::Select { operand, field, test: false, optional: false }, .. } => {
                    self.node(at, Kind::Select { operand, field, test: true, optional: false })
                }
                other => self.fail(other.at, "invalid argument to has() macro"),
            };
        }
        self.node(at, Kind::Call { function: name, target: None, args })
    }

    fn member_call(
        &mut self,
        at: u32,
        name_at: u32,
        target: Expr,
        function: String,
        args: Vec<Expr>,
    ) -> Parse<Expr> {
        use FoldKind::{All, Exists, ExistsOne, Filter, Map, TransformList, TransformMap, TransformMapEntry};
        let two_variables = |kind| (kind, true, false);
        let form = match (function.as_str(), args.len()) {
            ("all", 2) => (All, false, false),
            ("exists", 2) => (Exists, false, false),
            ("exists_one" | "existsOne", 2) => (ExistsOne, false, false),
            ("map", 2) => (Map, false, false),
            ("map", 3) => (Map, false, true),
            ("filter", 2) => (Filter, false, false),
            ("all", 3) => two_variables(All),
            ("exists", 3) => two_variables(Exists),
            ("existsOne", 3) => two_variables(ExistsOne),
            ("transformList", 3) => two_variables(TransformList),
            ("transformMap", 3) => two_variables(TransformMap),
            ("transformMapEntry", 3) => two_variables(TransformMapEntry),
            ("transformList", 4) => (TransformList, true, true),
            ("transformMap", 4) => (TransformMap, true, true),
            ("transformMapEntry", 4) => (TransformMapEntry, true, true),
            ("bind", 3) if matches!(&target.kind, Kind::Ident(n) if n == "cel") => {
                return self.bind(name_at, args);
            }
            ("optMap" | "optFlatMap", 2) => return self.opt_map(name_at, target, &function, args),
            _ => return self.node(at, Kind::Call { function, target: Some(Box::new(target)), args }),
        };
        let (kind, two, filtered) = form;
        let mut args = args.into_iter();
        let mut next = || args.next().unwrap_or_else(|| unreachable!("the arguments were counted"));
        let var = self.variable(next())?;
        let var2 = if two { Some(self.variable(next())?) } else { None };
        if var2.as_ref() == Some(&var) {
            return self.fail(name_at, "duplicate variable name");
        }
        let filter = filtered.then(&mut next);
        let body = next();
        let fold = Fold { kind, range: target, var, var2, filter, body };
        self.node(name_at, Kind::Fold(Box::new(fold)))
    }

    fn bind(&mut self, at: u32, args: Vec<Expr>) -> Parse<Expr> {
        let Ok([name, value, body]) = <[Expr; 3]>::try_from(args) else {
            return self.fail(at, "cel.bind() takes a name, a value and an expression");
        };
        let name = self.variable(name)?;
        self.node(at, Kind::Bind { name, value: Box::new(value), body: Box::new(body) })
    }

    fn opt_map(&mut self, at: u32, target: Expr, function: &str, args: Vec<Expr>) -> Parse<Expr> {
        let Ok([name, body]) = <[Expr; 2]>::try_from(args) else {
            return self.fail(at, format!("{function}() takes a name and an expression"));
        };
        let name = self.variable(name)?;
        let flat = function == "optFlatMap";
        self.node(at, Kind::OptMap { target: Box::new(target), name, body: Box::new(body), flat })
    }

    fn variable(&self, expr: Expr) -> Parse<String> {
        match expr.kind {
            Kind::Ident(name) => Ok(name),
            _ => self.fail(expr.at, "argument must be a simple name"),
        }
    }
}

/// `a.b.c`, where an expression is nothing else.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, test: false, optional: false } => {
            Some(format!("{}.{field}", dotted(operand)?))
        }
        _ => None,
    }
}
