//! As much of the DNS message format as a forwarder needs: the header, one question, and our own answers.
//!
//! Records of others are never parsed. No state. Source: RFC 1035, section 4.

use std::net::Ipv4Addr;

pub(super) const HEADER_LEN: usize = 12;
pub(super) const CLASS_IN: u16 = 1;
pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
const TYPE_ANY: u16 = 255;
const MAX_NAME: usize = 255;
/// Points to the name of the question, which follows the header.
const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER_LEN as u16;
const FLAG_RESPONSE: u8 = 0x80;
const FLAG_AUTHORITATIVE: u8 = 0x04;
const FLAG_RECURSION_DESIRED: u8 = 0x01;
const FLAG_RECURSION_AVAILABLE: u8 = 0x80;
const OPCODE_MASK: u8 = 0x78;

/// The question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// In lower case, without the dot at its end. Bytes that are not printable ASCII are escaped (`\DDD`), as are dots
    /// and backslashes inside a label: so two different names never look the same.
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where the question ends in the packet.
    pub(super) end: usize,
}

impl Question {
    pub(super) fn wants(&self, kind: u16) -> bool {
        self.kind == kind || self.kind == TYPE_ANY
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParseError {
    /// Too short for a header, or a response: answering could make a loop.
    NotAQuery,
    /// A query, but not a well-formed one with one question.
    Malformed,
    /// Not a standard query.
    NotImplemented,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseCode {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

pub(super) enum Record<'a> {
    Address(Ipv4Addr),
    Pointer(&'a str),
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn parse(packet: &[u8]) -> Result<Question, ParseError> {
    let header = packet.get(..HEADER_LEN).ok_or(ParseError::NotAQuery)?;
    let [_, _, flags, _, questions @ ..] = header else { return Err(ParseError::NotAQuery) };
    if flags & FLAG_RESPONSE != 0 {
        return Err(ParseError::NotAQuery);
    }
    if flags & OPCODE_MASK != 0 {
        return Err(ParseError::NotImplemented);
    }
    if !questions.starts_with(&[0, 1]) {
        return Err(ParseError::Malformed);
    }
    parse_question(packet).ok_or(ParseError::Malformed)
}

/// Reads the first question of a query or a response.
pub(super) fn parse_question(packet: &[u8]) -> Option<Question> {
    let mut at = HEADER_LEN;
    let mut name = String::new();
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // Longer ones are pointers, which have nothing to point to in a first question.
        if len > 63 || at + len - HEADER_LEN > MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in packet.get(at..at + len)? {
            match byte {
                b'.' | b'\\' => name.extend(['\\', char::from(*byte)]),
                0x21..=0x7e => name.push(char::from(byte.to_ascii_lowercase())),
                other => name.push_str(&format!("\\{other:03}")),
            }
        }
        at += len;
    }
    let (kind, class) = (u16_at(packet, at)?, u16_at(packet, at + 2)?);
    Some(Question { name, kind, class, end: at + 4 })
}

/// A reply without any question or record, to a packet whose question cannot be read.
pub(super) fn bare_reply(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let [id0, id1, flags, ..] = packet.get(..HEADER_LEN)? else { return None };
    let kept = flags & (OPCODE_MASK | FLAG_RECURSION_DESIRED);
    Some(vec![
        *id0,
        *id1,
        FLAG_RESPONSE | kept,
        FLAG_RECURSION_AVAILABLE | code as u8,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ])
}

/// A reply to a query that was parsed as `question`.
pub(super) fn reply(
    packet: &[u8],
    question: &Question,
    code: ResponseCode,
    ttl: u32,
    records: &[Record<'_>],
) -> Vec<u8> {
    let id = packet.get(..2).unwrap_or(&[0, 0]);
    let flags = packet.get(2).copied().unwrap_or_default() & FLAG_RECURSION_DESIRED;
    let authoritative = if code == ResponseCode::ServerFailure { 0 } else { FLAG_AUTHORITATIVE };
    let mut out = Vec::with_capacity(question.end + records.len() * 16);
    out.extend_from_slice(id);
    out.extend([FLAG_RESPONSE | authoritative | flags, FLAG_RECURSION_AVAILABLE | code as u8, 0, 1]);
    out.extend(u16::try_from(records.len()).unwrap_or_default().to_be_bytes());
    out.extend([0; 4]);
    out.extend_from_slice(packet.get(HEADER_LEN..question.end).unwrap_or_default());
    for record in records {
        let (kind, data) = match record {
            Record::Address(address) => (TYPE_A, address.octets().to_vec()),
            Record::Pointer(name) => (TYPE_PTR, encode_name(name)),
        };
        out.extend(POINTER_TO_QUESTION.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out.extend(ttl.to_be_bytes());
        out.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        out.extend(data);
    }
    out
}

/// Encodes a name of plain labels.
pub(super) fn encode_name(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(u8::try_from(label.len().min(63)).unwrap_or_default());
        out.extend(label.bytes().take(63));
    }
    out.push(0);
    out
}
