//! Text to tokens: identifiers, numbers, strings in all their quotes and escapes, signs.

use crate::ast::Literal;

/// A token with the place where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) at: u32,
    pub(crate) kind: TokenKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenKind {
    Ident(String),
    Literal(Literal),
    /// 9223372036854775808, which is an integer only with a minus before it.
    MinMagnitude,
    Sign(&'static str),
    End,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) at: u32,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at: u32::try_from(at).unwrap_or(u32::MAX), message: message.into() }
    }
}

/// Longest first, so that `<=` is not read as `<`.
const SIGNS: [&str; 25] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}", "+",
    "-", "*", "/", "%", "`",
];

/// Reads all tokens. The last is [`TokenKind::End`].
pub(crate) fn lex(text: &str) -> Result<Vec<Token>, Problem> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let start = at;
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let kind = if let Some((literal, len)) = string(rest, start)? {
            at += len;
            TokenKind::Literal(literal)
        } else if first.is_ascii_digit()
            || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()) && !after_operand(&out))
        {
            let (kind, len) = number(rest, start)?;
            at += len;
            kind
        } else if first.is_ascii_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            at += len;
            match &rest[..len] {
                "true" => TokenKind::Literal(Literal::Bool(true)),
                "false" => TokenKind::Literal(Literal::Bool(false)),
                "null" => TokenKind::Literal(Literal::Null),
                "in" => TokenKind::Sign("in"),
                word => TokenKind::Ident(word.to_owned()),
            }
        } else if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            at += sign.len();
            TokenKind::Sign(sign)
        } else {
            return Err(Problem::new(start, format!("Syntax error: token recognition error at: '{first}'")));
        };
        out.push(Token { at: Problem::new(start, "").at, kind });
    }
    out.push(Token { at: Problem::new(text.len(), "").at, kind: TokenKind::End });
    Ok(out)
}

/// Whether a dot would select from what stands before.
fn after_operand(tokens: &[Token]) -> bool {
    matches!(
        tokens.last().map(|t| &t.kind),
        Some(
            TokenKind::Ident(_)
                | TokenKind::Literal(_)
                | TokenKind::MinMagnitude
                | TokenKind::Sign(")" | "]" | "}")
        )
    )
}

fn number(rest: &str, at: usize) -> Result<(TokenKind, usize), Problem> {
    let invalid = |what: &str| Problem::new(at, format!("Syntax error: invalid {what} literal"));
    let token = |literal, len| Ok((TokenKind::Literal(literal), len));
    let digits =
        |from: usize| rest[from..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| from + n);
    if rest.starts_with("0x") || rest.starts_with("0X") {
        let end = rest[2..].find(|c: char| !c.is_ascii_hexdigit()).map_or(rest.len(), |n| n + 2);
        if rest[end..].starts_with(['u', 'U']) {
            let n = u64::from_str_radix(&rest[2..end], 16).map_err(|_| invalid("uint"))?;
            return token(Literal::Uint(n), end + 1);
        }
        let n = i64::from_str_radix(&rest[2..end], 16).map_err(|_| invalid("int"))?;
        return token(Literal::Int(n), end);
    }
    let mut end = digits(0);
    let mut float = false;
    if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
        float = true;
        end = digits(end + 1);
    }
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        if rest[end + 1 + sign..].starts_with(|c: char| c.is_ascii_digit()) {
            float = true;
            end = digits(end + 1 + sign);
        }
    }
    let text = &rest[..end];
    if float {
        let n: f64 = text.parse().map_err(|_| invalid("double"))?;
        return if n.is_finite() { token(Literal::Double(n), end) } else { Err(invalid("double")) };
    }
    if rest[end..].starts_with(['u', 'U']) {
        return token(Literal::Uint(text.parse().map_err(|_| invalid("uint"))?), end + 1);
    }
    match text.parse::<i64>() {
        Ok(n) => token(Literal::Int(n), end),
        Err(_) if text == "9223372036854775808" => Ok((TokenKind::MinMagnitude, end)),
        Err(_) => Err(invalid("int")),
    }
}

/// A string or bytes literal at the beginning of `rest`, with its length in bytes.
fn string(rest: &str, at: usize) -> Result<Option<(Literal, usize)>, Problem> {
    let mut prefix = 0;
    let (mut raw, mut bytes) = (false, false);
    for c in rest.chars().take(2) {
        match c {
            'r' | 'R' if !raw => raw = true,
            'b' | 'B' if !bytes => bytes = true,
            _ => break,
        }
        prefix += 1;
    }
    let body = &rest[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| body.starts_with(q));
    let Some(quote) = quote else { return Ok(None) };
    let triple = quote.len() == 3;
    let mut out: Vec<u8> = Vec::new();
    let mut i = quote.len();
    let open =
        || Problem::new(at, format!("Syntax error: token recognition error at: '{}'", first_line(rest)));
    loop {
        let tail = &body[i..];
        if tail.starts_with(quote) {
            i += quote.len();
            break;
        }
        let c = tail.chars().next().ok_or_else(open)?;
        if !triple && (c == '\n' || c == '\r') {
            return Err(open());
        }
        if c == '\\' && !raw {
            i += escape(&tail[1..], bytes, &mut out)
                .ok_or_else(|| Problem::new(at + prefix + i, "Syntax error: invalid escape sequence"))?
                + 1;
            continue;
        }
        if c == '\\' && raw {
            // A quote after a backslash does not end a raw string; both stay.
            out.push(b'\\');
            i += 1;
            if let Some(next) = body[i..].chars().next()
                && (next == '\\' || quote.starts_with(next))
            {
                out.push(next as u8);
                i += 1;
            }
            continue;
        }
        let mut buffer = [0; 4];
        out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
        i += c.len_utf8();
    }
    let literal = if bytes {
        Literal::Bytes(out)
    } else {
        let text =
            String::from_utf8(out).map_err(|_| Problem::new(at, "Syntax error: invalid UTF-8 string"))?;
        Literal::String(text)
    };
    Ok(Some((literal, prefix + i)))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

/// One escape after its backslash; gives how many bytes it took.
fn escape(rest: &str, bytes: bool, out: &mut Vec<u8>) -> Option<usize> {
    let c = rest.chars().next()?;
    let simple = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => c as u8,
        _ => 0,
    };
    if simple != 0 {
        out.push(simple);
        return Some(1);
    }
    let (digits, radix, skip) = match c {
        'x' | 'X' => (2, 16, 1),
        'u' => (4, 16, 1),
        'U' => (8, 16, 1),
        '0'..='3' => (3, 8, 0),
        _ => return None,
    };
    let text = rest.get(skip..skip + digits)?;
    if !text.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let code = u32::from_str_radix(text, radix).ok()?;
    if bytes {
        // In bytes these name a byte; code points have no place there.
        if matches!(c, 'u' | 'U') {
            return None;
        }
        out.push(u8::try_from(code).ok()?);
    } else {
        let mut buffer = [0; 4];
        out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut buffer).as_bytes());
    }
    Some(skip + digits)
}
