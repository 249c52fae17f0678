//! Reading the JSON that most bodies are, quicker than a parser that serves every type and tells what is wrong.
//!
//! Small whole numbers, no key twice, no great depth. Whatever else there is, [`read`] gives up, and the parser proper has
//! the say; so what is read here is what that would read. Pure.

use serde_json::{Map, Value};

/// Maps and lists inside of one another that are followed; the parser proper follows a few more.
const DEEPEST: usize = 96;
/// Digits that fit whatever they are.
const MOST_DIGITS: usize = 18;

/// The value, if it is a plain one.
pub(super) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { text, at: 0, depth: 0 };
    let value = reader.value()?;
    // Nothing but space may follow.
    reader.peek().is_none().then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    fn value(&mut self) -> Option<Value> {
        match self.peek()? {
            b'"' => self.string().map(Value::String),
            b'{' => self.deeper(Self::map),
            b'[' => self.deeper(Self::list),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            b'-' | b'0'..=b'9' => self.number(),
            _ => None,
        }
    }

    fn deeper(&mut self, read: fn(&mut Self) -> Option<Value>) -> Option<Value> {
        self.at += 1;
        self.depth += 1;
        let value = if self.depth > DEEPEST { None } else { read(self) };
        self.depth -= 1;
        value
    }

    fn map(&mut self) -> Option<Value> {
        let mut map = Map::new();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(Value::Object(map));
        }
        loop {
            if self.peek()? != b'"' {
                return None;
            }
            let key = self.string()?;
            if self.peek()? != b':' {
                return None;
            }
            self.at += 1;
            let value = self.value()?;
            if map.insert(key, value).is_some() {
                return None;
            }
            if self.ends(b'}')? {
                return Some(Value::Object(map));
            }
        }
    }

    fn list(&mut self) -> Option<Value> {
        let mut list = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(Value::Array(list));
        }
        loop {
            list.push(self.value()?);
            if self.ends(b']')? {
                return Some(Value::Array(list));
            }
        }
    }

    /// After a member: whether it was the last one.
    fn ends(&mut self, end: u8) -> Option<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => Some(false),
            byte if byte == end => Some(true),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        let found = self.text.as_bytes().get(self.at..self.at + word.len())? == word.as_bytes();
        self.at += word.len();
        found.then_some(value)
    }

    fn number(&mut self) -> Option<Value> {
        let negative = self.byte()? == b'-';
        let begin = self.at + usize::from(negative);
        let digits = self.text.as_bytes().get(begin..)?.iter().take_while(|b| b.is_ascii_digit()).count();
        let number = self.text.get(begin..begin + digits)?;
        self.at = begin + digits;
        // Fractions, exponents, zeros in front and the zero below zero are for the parser proper.
        let odd = digits == 0
            || digits > MOST_DIGITS
            || (number.starts_with('0') && (negative || digits > 1))
            || matches!(self.byte(), Some(b'.' | b'e' | b'E'));
        if odd {
            return None;
        }
        match negative {
            true => number.parse::<i64>().ok().map(|n| Value::from(-n)),
            false => number.parse::<u64>().ok().map(Value::from),
        }
    }

    /// A string, from its quote.
    fn string(&mut self) -> Option<String> {
        let begin = self.at + 1;
        let mut end = begin + stop(self.text.as_bytes().get(begin..)?)?;
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return self.text.get(begin..end).map(str::to_owned);
        }
        // A backslash, or what may not be there: the string by itself is read properly.
        loop {
            match self.text.as_bytes().get(end)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
            end += stop(self.text.as_bytes().get(end..)?)?;
        }
        self.at = end + 1;
        serde_json::from_str(self.text.get(begin - 1..=end)?).ok()
    }
}

/// Where the first quote, backslash or control character is. Eight bytes are looked at together.
fn stop(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    const TOPS: u64 = ONES * 0x80;
    // The top bit of each byte that is below `limit` (at most 128), by borrowing: the lowest one that is set is never set by
    // mistake.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & TOPS;
    let is = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let (words, rest) = text.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = below(word, 0x20) | is(word, b'"') | is(word, b'\\');
        if found != 0 {
            return Some(i * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|b| *b < 0x20 || matches!(b, b'"' | b'\\'));
    in_rest.map(|i| words.len() * 8 + i)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is read is what the parser proper reads; what it refuses is not read.
    fn agrees(text: &str) -> bool {
        let proper: Option<Value> = serde_json::from_str(text).ok();
        let written = |value: Option<&Value>| value.map(Value::to_string);
        read(text).is_none_or(|value| {
            proper.as_ref() == Some(&value) && written(proper.as_ref()) == written(Some(&value))
        })
    }

    #[test]
    fn plain_bodies_are_read_and_others_are_left() {
        for text in [
            "null",
            " [ 1 , -2 ] ",
            "{}",
            "[]",
            r#"{"a":{"b":[true,false,null,"c",{}]},"d":""}"#,
            "0",
            "-1",
            "123456789012345678",
            r#"["a\nb","\u00e4\"\\","long enough to need more than a word: \t"]"#,
            "\"\u{e4}\u{1f600}\"",
            "\t{\r\n\"a\" : 1}\n",
        ] {
            assert!(read(text).is_some() && agrees(text), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(DEEPEST + 1), "]".repeat(DEEPEST + 1));
        for text in [
            "",
            " ",
            "{",
            "[",
            "[1",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "1 2",
            "-0",
            "01",
            "1.5",
            "1e3",
            "-",
            "+1",
            "1234567890123456789",
            "tru",
            "truer",
            "nul",
            "\"",
            "\"a",
            "\"a\\\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\n\"",
            "\"a\u{1}b\"",
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            "[1]]",
            "{} x",
            &deep,
        ] {
            assert!(read(text).is_none() && agrees(text), "{text}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-9i64..9).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-z\"\\\\\u{1}]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"\\\\]{0,12}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_it_is(
            tree in tree(),
            pretty in any::<bool>(),
            cut in any::<prop::sample::Index>(),
            put in "[\\]\\[{}:,\"\\\\ 0-9a-e.-]{0,2}",
        ) {
            let text = if pretty { serde_json::to_string_pretty(&tree).unwrap() } else { tree.to_string() };
            prop_assert!(agrees(&text), "{}", text);
            // Damage.
            let mut at = cut.index(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let (head, tail) = text.split_at(at);
            let after: String = tail.chars().skip(1).collect();
            for text in [head.to_owned(), format!("{head}{put}{tail}"), format!("{head}{put}{after}")] {
                prop_assert!(agrees(&text), "{}", text);
            }
        }
    }
}
