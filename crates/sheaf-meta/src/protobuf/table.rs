//! The table of messages: text in `table.txt` (see its README), read once, when the first protobuf body arrives.
//!
//! One message a line: its name, then its fields as `NUMBER:TYPE:NAME`. Names of kinds are `apps/v1/Deployment`.
//! A type is `[`, `{` or nothing (list, map by string, one), `!` where zero means something, and a [`Type`].

use std::sync::OnceLock;

use super::wire::WireError;

/// How many messages and kinds there are is checked by a test; the text is part of the program.
static TEXT: &str = include_str!("table.txt");

/// All messages.
#[derive(Debug)]
pub(super) struct Table {
    messages: Vec<Message>,
    /// `apps/v1/Deployment` and its message, sorted.
    kinds: Vec<(&'static str, u16)>,
}

/// One message: its fields by number.
#[derive(Debug)]
pub(super) struct Message {
    fields: Box<[Field]>,
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) number: u32,
    /// Name in JSON. Empty: the message's fields stand in the one that has it.
    pub(super) name: &'static str,
    pub(super) many: Many,
    /// Zero and empty are written to JSON: the schema requires the field, or Go has a pointer there, so that being on
    /// the wire means being set.
    pub(super) keep: bool,
    pub(super) ty: Type,
}

/// How often a field comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Many {
    One,
    List,
    Map,
}

/// What a field holds; letters as in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// `s`
    String,
    /// `b`
    Bool,
    /// `i`
    Int32,
    /// `l`
    Int64,
    /// `d`
    Double,
    /// `y`: base64 in JSON.
    Bytes,
    /// `m` and a line number from zero.
    Message(u16),
    /// `Q`: a message of one string.
    Quantity,
    /// `T`: whole seconds.
    Time,
    /// `U`: microseconds.
    MicroTime,
    /// `O`: a port or a percentage.
    IntOrString,
    /// `J`: a message of one field of bytes, which are JSON.
    Json,
    /// `w`: a message of one list of strings, in JSON that list.
    Strings,
    /// `A`: a schema or a list of schemas (the message is the schema).
    SchemaOrArray(u16),
    /// `B`: a schema or a boolean.
    SchemaOrBool(u16),
    /// `C`: a schema or a list of strings.
    SchemaOrStrings(u16),
}

impl Table {
    /// The table, which is read at the first call.
    pub(super) fn get() -> &'static Self {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Self::parse(TEXT))
    }

    /// Fields that this cannot read are left out; the tests see to it that there are none.
    fn parse(text: &'static str) -> Self {
        let (mut messages, mut kinds) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            if name.contains('/')
                && let Ok(index) = u16::try_from(messages.len())
            {
                kinds.push((name, index));
            }
            let mut fields: Vec<Field> = words.filter_map(field).collect();
            fields.sort_by_key(|f| f.number);
            messages.push(Message { fields: fields.into() });
        }
        kinds.sort_unstable();
        Self { messages, kinds }
    }

    /// The message of a kind.
    pub(super) fn kind(&self, api_version: &str, kind: &str) -> Option<u16> {
        let name = format!("{api_version}/{kind}");
        let at = self.kinds.binary_search_by(|(n, _)| (*n).cmp(&name)).ok()?;
        self.kinds.get(at).map(|(_, index)| *index)
    }

    /// Every kind, for tests.
    #[cfg(test)]
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|(name, _)| *name).collect()
    }

    /// A message by its line.
    pub(super) fn message(&self, index: u16) -> Result<&Message, WireError> {
        self.messages.get(usize::from(index)).ok_or(WireError::Mismatch)
    }
}

impl Message {
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        self.fields.binary_search_by_key(&number, |f| f.number).ok().and_then(|at| self.fields.get(at))
    }
    pub(super) fn fields(&self) -> &[Field] {
        &self.fields
    }
}

fn field(word: &'static str) -> Option<Field> {
    let (number, rest) = word.split_once(':')?;
    let (ty, name) = rest.split_once(':')?;
    let (many, ty) = match ty.split_at_checked(1)? {
        ("[", rest) => (Many::List, rest),
        ("{", rest) => (Many::Map, rest),
        _ => (Many::One, ty),
    };
    let (keep, ty) = ty.strip_prefix('!').map_or((false, ty), |rest| (true, rest));
    let (letter, index) = ty.split_at_checked(1)?;
    let message = || index.parse::<u16>().ok();
    let ty = match letter {
        "s" => Type::String,
        "b" => Type::Bool,
        "i" => Type::Int32,
        "l" => Type::Int64,
        "d" => Type::Double,
        "y" => Type::Bytes,
        "Q" => Type::Quantity,
        "T" => Type::Time,
        "U" => Type::MicroTime,
        "O" => Type::IntOrString,
        "J" => Type::Json,
        "w" => Type::Strings,
        "m" => Type::Message(message()?),
        "A" => Type::SchemaOrArray(message()?),
        "B" => Type::SchemaOrBool(message()?),
        "C" => Type::SchemaOrStrings(message()?),
        _ => return None,
    };
    Some(Field { number: number.parse().ok()?, name, many, keep, ty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_a_field_and_every_message_is_there() {
        let table = Table::get();
        assert!(table.kinds.len() > 50, "{} kinds", table.kinds.len());
        for (line, message) in TEXT.lines().zip(&table.messages) {
            assert_eq!(line.split(' ').count() - 1, message.fields.len(), "{line}");
            for field in &message.fields {
                if let Type::Message(m) | Type::SchemaOrArray(m) | Type::SchemaOrBool(m) = field.ty {
                    assert!(usize::from(m) < table.messages.len(), "{line}");
                }
            }
            assert!(message.fields.windows(2).all(|w| w[0].number < w[1].number), "{line}");
        }
    }
}
