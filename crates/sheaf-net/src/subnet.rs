//! The IPv4 subnet of a node's guests: arithmetic only, no state.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Mac;

/// An IPv4 subnet in which the first address is the gateway, and the rest is for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    network: u32,
    prefix_len: u8,
}

/// A text that is no usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `ADDRESS/LENGTH` of IPv4.
    #[error("{0:?} is no IPv4 subnet: ADDRESS/LENGTH is expected, such as 10.52.0.0/24")]
    Syntax(String),
    /// Too large to keep a table of leases for it, or too small to hold a guest.
    #[error("{0} cannot be a guest subnet: its prefix length must be 16 to 30")]
    Size(String),
    /// Bits are set beyond the prefix.
    #[error("{0} is no subnet: the address has bits beyond the prefix length")]
    HostBits(String),
}

impl Subnet {
    /// The network's own address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The address mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        self.mask_bits().into()
    }

    /// The first address: the bridge's, and with it the guests' router, DHCP and DNS server.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// The broadcast address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | !self.mask_bits()).into()
    }

    /// Whether the address lies in the subnet.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == self.network
    }

    /// How many addresses guests can get.
    #[must_use]
    pub fn pool_len(self) -> u32 {
        !self.mask_bits() - 2
    }

    /// The `n`-th address for guests; `n` below [`Subnet::pool_len`].
    #[must_use]
    pub fn pool_nth(self, n: u32) -> Ipv4Addr {
        (self.network + 2 + n % self.pool_len()).into()
    }

    /// Whether guests may have the address.
    #[must_use]
    pub fn pool_contains(self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address != self.network()
            && address != self.gateway()
            && address != self.broadcast()
    }

    /// A locally administered hardware address for the bridge that has the gateway address: stays the same when the
    /// bridge is made anew, so guests need not learn it again, and differs between nodes.
    #[must_use]
    pub fn gateway_mac(self) -> Mac {
        let [a, b, c, d] = self.gateway().octets();
        Mac([0x02, 0x5f, a, b, c, d])
    }

    fn mask_bits(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix_len))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix_len)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let syntax = || SubnetError::Syntax(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| syntax())?;
        let prefix_len: u8 = len.parse().map_err(|_| syntax())?;
        if !(16..=30).contains(&prefix_len) {
            return Err(SubnetError::Size(text.to_owned()));
        }
        let subnet = Self { network: address.into(), prefix_len };
        if subnet.network & !subnet.mask_bits() != 0 {
            return Err(SubnetError::HostBits(text.to_owned()));
        }
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_of_a_24() {
        let s: Subnet = "10.52.3.0/24".parse().unwrap();
        assert_eq!(s.gateway(), Ipv4Addr::new(10, 52, 3, 1));
        assert_eq!(s.broadcast(), Ipv4Addr::new(10, 52, 3, 255));
        assert_eq!(s.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(s.pool_len(), 253);
        assert_eq!(s.pool_nth(0), Ipv4Addr::new(10, 52, 3, 2));
        assert_eq!(s.pool_nth(252), Ipv4Addr::new(10, 52, 3, 254));
        assert_eq!((0..253).filter(|n| s.pool_contains(s.pool_nth(*n))).count(), 253);
        assert!(!s.pool_contains(s.gateway()));
        assert!(!s.contains(Ipv4Addr::new(10, 52, 4, 1)));
        assert_eq!(s.to_string(), "10.52.3.0/24");
    }

    #[test]
    fn smallest_has_one_guest() {
        let s: Subnet = "192.168.7.4/30".parse().unwrap();
        assert_eq!(s.pool_len(), 1);
        assert_eq!(s.pool_nth(0), Ipv4Addr::new(192, 168, 7, 6));
    }

    #[test]
    fn refuses_with_the_rule() {
        for bad in ["", "10.0.0.0", "fd00::/64", "10.0.0.0/x", "10.0.0/24"] {
            assert!(matches!(bad.parse::<Subnet>(), Err(SubnetError::Syntax(_))), "{bad}");
        }
        assert!(matches!("10.0.0.0/8".parse::<Subnet>(), Err(SubnetError::Size(_))));
        assert!(matches!("10.0.0.0/31".parse::<Subnet>(), Err(SubnetError::Size(_))));
        assert!(matches!("10.0.0.1/24".parse::<Subnet>(), Err(SubnetError::HostBits(_))));
    }
}
