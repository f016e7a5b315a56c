//! Where issuers may be that trust policies name: at public addresses, and in networks that the operator has named.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Networks that issuers may be in although they are not public. None, as a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    base: IpAddr,
    bits: u32,
}

/// The text is not a list of networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network")]
pub struct InvalidNetwork(String);

impl Networks {
    /// How the setting looks.
    pub const SETTING: &str = "a comma-separated list of networks, such as 10.0.0.0/8,fd00::/8";

    /// Whether an issuer may be there.
    #[must_use]
    pub fn have(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.0.iter().any(|network| network.has(address))
    }
}

impl FromStr for Networks {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let names = text.split(',').map(str::trim);
        let networks = names.filter(|name| !name.is_empty()).map(|name| {
            let (base, bits) = name.split_once('/')?;
            let (base, bits) = (base.parse().ok()?, bits.parse().ok()?);
            let most = if IpAddr::is_ipv4(&base) { 32 } else { 128 };
            (bits <= most).then_some(Network { base, bits })
        });
        let networks: Option<Vec<_>> = networks.collect();
        networks
            .map(Self)
            .ok_or_else(|| InvalidNetwork(text.to_owned()))
    }
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differing = u32::from(base) ^ u32::from(address);
                differing.leading_zeros() >= self.bits
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = u128::from(base) ^ u128::from(address);
                differing.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// Whether anybody on the Internet may be there, by the registries of special-purpose addresses
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Through a NAT64 (RFC 6052), to an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Protocols' own, documentation, and IPv4 addresses in another dress (6to4).
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that is global unicast so far (RFC 3587).
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(networks: &Networks, address: &str) -> bool {
        networks.have(address.parse().expect("an address"))
    }

    #[test]
    fn what_is_not_public_is_not_reached() {
        let none = Networks::default();
        for public in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1",
            "64:ff9b::808:808",
        ] {
            assert!(may(&none, public), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!may(&none, private), "{private}");
        }
    }

    #[test]
    fn networks_that_are_named_are_reached_too() {
        let named: Networks = "10.1.0.0/16, ::1/128".parse().expect("networks");
        for reached in ["10.1.255.1", "::ffff:10.1.0.1", "::1", "8.8.8.8"] {
            assert!(may(&named, reached), "{reached}");
        }
        for other in ["10.2.0.1", "127.0.0.1", "::2"] {
            assert!(!may(&named, other), "{other}");
        }
        assert!(may(&"0.0.0.0/0".parse().expect("all"), "127.0.0.1"));
        assert_eq!("".parse(), Ok(Networks::default()));
        for wrong in [
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "x/8",
            "127.0.0.1/-1",
            "localhost/8",
        ] {
            assert!(wrong.parse::<Networks>().is_err(), "{wrong}");
        }
    }
}
