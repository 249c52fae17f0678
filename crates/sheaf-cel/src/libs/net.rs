//! IP addresses and ranges of them. Stricter than most parsers: no zeros in front, no zones, no IPv4 in IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip(IpAddr);

/// An address with the length of a prefix. What is behind the prefix is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

const PARSE: Cost = Cost::Parse(1.0);
const TEXT_TEST: &[&str] = &["string -> bool"];
const ADDRESS_TEST: &[&str] = &[".ip -> bool"];

pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "ip", overloads: &["string -> ip", ".cidr -> ip"], cost: PARSE, call: ip },
    Function {
        name: "isIP",
        overloads: TEXT_TEST,
        cost: PARSE,
        call: |_, a| text_test(a, |s| Ip::parse(s).is_ok()),
    },
    Function { name: "ip.isCanonical", overloads: TEXT_TEST, cost: Cost::Parse(2.0), call: is_canonical },
    Function { name: "family", overloads: &[".ip -> int"], cost: Cost::One, call: family },
    Function {
        name: "isUnspecified",
        overloads: ADDRESS_TEST,
        cost: Cost::One,
        call: |_, a| test(a, IpAddr::is_unspecified),
    },
    Function {
        name: "isLoopback",
        overloads: ADDRESS_TEST,
        cost: Cost::One,
        call: |_, a| test(a, IpAddr::is_loopback),
    },
    Function {
        name: "isLinkLocalMulticast",
        overloads: ADDRESS_TEST,
        cost: Cost::One,
        call: |_, a| test(a, link_local_multicast),
    },
    Function {
        name: "isLinkLocalUnicast",
        overloads: ADDRESS_TEST,
        cost: Cost::One,
        call: |_, a| test(a, link_local_unicast),
    },
    Function {
        name: "isGlobalUnicast",
        overloads: ADDRESS_TEST,
        cost: Cost::One,
        call: |_, a| test(a, global_unicast),
    },
    Function { name: "cidr", overloads: &["string -> cidr"], cost: PARSE, call: cidr },
    Function {
        name: "isCIDR",
        overloads: TEXT_TEST,
        cost: PARSE,
        call: |_, a| text_test(a, |s| Cidr::parse(s).is_ok()),
    },
    Function {
        name: "containsIP",
        overloads: &[".cidr, ip -> bool", ".cidr, string -> bool"],
        cost: Cost::ContainsIp,
        call: contains_ip,
    },
    Function {
        name: "containsCIDR",
        overloads: &[".cidr, cidr -> bool", ".cidr, string -> bool"],
        cost: Cost::ContainsCidr,
        call: contains_cidr,
    },
    Function { name: "masked", overloads: &[".cidr -> cidr"], cost: Cost::One, call: masked },
    Function { name: "prefixLength", overloads: &[".cidr -> int"], cost: Cost::One, call: prefix_length },
];

fn embeds_v4(address: &Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

impl Ip {
    pub(crate) fn parse(text: &str) -> Result<Self, EvalError> {
        let fail = |why: &str| {
            EvalError::other(format!("IP Address {text:?} parse error during conversion from string: {why}"))
        };
        if text.contains('%') {
            return Err(fail("zones are not allowed"));
        }
        let address: IpAddr = text.parse().map_err(|_| fail("not a valid address"))?;
        if matches!(&address, IpAddr::V6(a) if embeds_v4(a)) {
            return Err(fail("IPv4-mapped IPv6 addresses are not allowed"));
        }
        Ok(Self(address))
    }
    pub(crate) fn size(self) -> u64 {
        if self.0.is_ipv4() { 4 } else { 16 }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Cidr {
    pub(crate) fn parse(text: &str) -> Result<Self, EvalError> {
        let fail = |why: &str| {
            EvalError::other(format!(
                "network address parse error during conversion from string: {text:?}: {why}"
            ))
        };
        let (address, bits) = text.split_once('/').ok_or_else(|| fail("no '/'"))?;
        let plain = bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let Ip(address) = Ip::parse(address).map_err(|_| fail("not a valid address"))?;
        let prefix: u8 = bits.parse().ok().filter(|_| plain).ok_or_else(|| fail("bad prefix length"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(fail("prefix length out of range"));
        }
        Ok(Self { address, prefix })
    }
    /// 4 or 16 bytes, as the size of a range is counted upstream by its prefix in whole bytes.
    pub(crate) fn size(self) -> u64 {
        u64::from(self.prefix).div_ceil(8)
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix);
                u32::from(a).checked_shr(shift) == u32::from(b).checked_shr(shift)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix);
                u128::from(a).checked_shr(shift) == u128::from(b).checked_shr(shift)
            }
            _ => false,
        }
    }

    fn masked(self) -> Self {
        let keep = |bits: u32| bits - u32::from(self.prefix);
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(keep(32)).unwrap_or(0);
                IpAddr::from((u32::from(a) & mask).to_be_bytes())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(keep(128)).unwrap_or(0);
                IpAddr::from((u128::from(a) & mask).to_be_bytes())
            }
        };
        Self { address, ..self }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn link_local_multicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => matches!(a.octets(), [224, 0, 0, _]),
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn global_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(broadcast
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || link_local_unicast(address))
}

fn text_test<'a>(args: &[Value<'a>], f: fn(&str) -> bool) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::Bool(f(s))),
        _ => Err(EvalError::NoOverload),
    }
}

fn test<'a>(args: &[Value<'a>], f: fn(&IpAddr) -> bool) -> Outcome<'a> {
    match args {
        [Value::Ip(Ip(address))] => Ok(Value::Bool(f(address))),
        _ => Err(EvalError::NoOverload),
    }
}

fn ip<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ip::parse(s).map(Value::Ip),
        [Value::Cidr(cidr)] => Ok(Value::Ip(Ip(cidr.address))),
        _ => Err(EvalError::NoOverload),
    }
}

fn is_canonical<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(EvalError::NoOverload) };
    Ok(Value::Bool(Ip::parse(s)?.to_string() == **s))
}

fn family<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Ip(Ip(address))] => Ok(Value::Int(if address.is_ipv4() { 4 } else { 6 })),
        _ => Err(EvalError::NoOverload),
    }
}

fn cidr<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Cidr::parse(s).map(Value::Cidr),
        _ => Err(EvalError::NoOverload),
    }
}

fn contains_ip<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (cidr, address) = match args {
        [Value::Cidr(cidr), Value::Ip(ip)] => (cidr, *ip),
        [Value::Cidr(cidr), Value::String(s)] => (cidr, Ip::parse(s)?),
        _ => return Err(EvalError::NoOverload),
    };
    Ok(Value::Bool(cidr.contains(address.0)))
}

fn contains_cidr<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (cidr, other) = match args {
        [Value::Cidr(cidr), Value::Cidr(other)] => (cidr, *other),
        [Value::Cidr(cidr), Value::String(s)] => (cidr, Cidr::parse(s)?),
        _ => return Err(EvalError::NoOverload),
    };
    Ok(Value::Bool(cidr.prefix <= other.prefix && cidr.contains(other.address)))
}

fn masked<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Cidr(cidr)] => Ok(Value::Cidr(cidr.masked())),
        _ => Err(EvalError::NoOverload),
    }
}

fn prefix_length<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Cidr(cidr)] => Ok(Value::Int(i64::from(cidr.prefix))),
        _ => Err(EvalError::NoOverload),
    }
}
