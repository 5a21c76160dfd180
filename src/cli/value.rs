//! The grammars of option values. Each type can only hold what its option may mean by itself;
//! whether it fits the other options is for `resolve` to say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// An option that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch<T> {
    /// `off`.
    Off,
    /// A value.
    On(T),
}

impl<T: FromStr> FromStr for Switch<T> {
    type Err = T::Err;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Switch::Off) } else { text.parse().map(Switch::On) }
    }
}

/// An address with a prefix length; bits beyond the prefix are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr<A> {
    /// The address as typed.
    pub address: A,
    /// The prefix length as typed, no more than the address has bits.
    pub prefix: u8,
}

/// Why a value is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseValueError {
    /// Not `ADDRESS/PREFIX` of IPv4.
    #[error("not an IPv4 network such as 10.0.2.0/24, nor off")]
    Cidr4,
    /// Not `ADDRESS/PREFIX` of IPv6.
    #[error("not an IPv6 network such as fd00:1:2:3::/64, nor off")]
    Cidr6,
    /// Neither an address, with or without port, nor `off`.
    #[error("not an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53, nor off")]
    Dns,
    /// Not `NAME:ADDRESS`.
    #[error("not NAME:ADDRESS or NAME:host-gateway")]
    AddedHost,
    /// Not a domain name.
    #[error("not a domain name such as corp.example")]
    Domain,
}

impl FromStr for Cidr<Ipv4Addr> {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        cidr(text, 32).ok_or(ParseValueError::Cidr4)
    }
}

impl FromStr for Cidr<Ipv6Addr> {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        cidr(text, 128).ok_or(ParseValueError::Cidr6)
    }
}

fn cidr<A: FromStr>(text: &str, bits: u8) -> Option<Cidr<A>> {
    let (address, prefix) = text.split_once('/')?;
    if !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let cidr = Cidr { address: address.parse().ok()?, prefix: prefix.parse().ok()? };
    (cidr.prefix <= bits).then_some(cidr)
}

/// A value of `--dns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsChoice {
    /// No forwarder.
    Off,
    /// An upstream resolver.
    Server(SocketAddr),
}

impl FromStr for DnsChoice {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(DnsChoice::Off);
        }
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        match address.or_else(|_| text.parse()) {
            Ok(server) if server.port() != 0 && !server.ip().is_unspecified() => {
                Ok(DnsChoice::Server(server))
            }
            _ => Err(ParseValueError::Dns),
        }
    }
}

/// What a name of `--add-host` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostTarget {
    /// An address.
    Address(IpAddr),
    /// `host-gateway`: the host itself, as `host.tapway.internal`.
    Host,
}

/// A value of `--add-host`, in docker's grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedHost {
    /// The name.
    pub name: String,
    /// Where it leads.
    pub target: HostTarget,
}

impl FromStr for AddedHost {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The first separator counts: an IPv6 address has colons of its own.
        let parse = || {
            let (name, target) = text.split_once([':', '='])?;
            let target = match target {
                "host-gateway" => HostTarget::Host,
                address => {
                    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                    HostTarget::Address(bare.unwrap_or(address).parse().ok()?)
                }
            };
            is_name(name).then(|| AddedHost { name: name.to_owned(), target })
        };
        parse().ok_or(ParseValueError::AddedHost)
    }
}

/// A domain for `--dns-search`, without its final dot.
pub(super) fn domain(text: &str) -> Result<String, ParseValueError> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    if is_name(bare) { Ok(bare.to_owned()) } else { Err(ParseValueError::Domain) }
}

/// Host and domain names as files and DHCP options carry them: RFC 1123 §2.1 and RFC 1035 §2.3.4,
/// with the underscore that service names have.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_need_an_address_and_a_prefix() {
        let good: Cidr<Ipv4Addr> = "10.9.8.7/24".parse().unwrap();
        assert_eq!((good.address, good.prefix), (Ipv4Addr::new(10, 9, 8, 7), 24));
        for bad in ["", "10.0.2.0", "10.0.2.0/", "10.0.2.0/33", "10.0.2/24", "10.0.2.0/+8", "x/8"] {
            assert_eq!(bad.parse::<Cidr<Ipv4Addr>>(), Err(ParseValueError::Cidr4), "{bad}");
        }
        assert_eq!("fd00::/129".parse::<Cidr<Ipv6Addr>>(), Err(ParseValueError::Cidr6));
        assert_eq!("off".parse::<Switch<Cidr<Ipv6Addr>>>(), Ok(Switch::Off));
    }

    #[test]
    fn resolvers_have_port_53_unless_they_say_otherwise() {
        let server = |text: &str| text.parse::<DnsChoice>();
        let is = |text: &str| Ok(DnsChoice::Server(text.parse().unwrap()));
        assert_eq!(server("192.0.2.1"), is("192.0.2.1:53"));
        assert_eq!(server("192.0.2.1:5353"), is("192.0.2.1:5353"));
        assert_eq!(server("2001:db8::1"), is("[2001:db8::1]:53"));
        assert_eq!(server("[2001:db8::1]:5353"), is("[2001:db8::1]:5353"));
        assert_eq!(server("off"), Ok(DnsChoice::Off));
        for bad in ["", "dns.example", "192.0.2.1:0", "192.0.2.1:99999", "0.0.0.0"] {
            assert_eq!(server(bad), Err(ParseValueError::Dns), "{bad}");
        }
    }

    #[test]
    fn added_hosts_follow_dockers_grammar() {
        let entry = |name: &str, target| Ok(AddedHost { name: name.to_owned(), target });
        let address = |text: &str| HostTarget::Address(text.parse().unwrap());
        assert_eq!("db:192.0.2.1".parse(), entry("db", address("192.0.2.1")));
        assert_eq!("db=192.0.2.1".parse(), entry("db", address("192.0.2.1")));
        assert_eq!("db.a:2001:db8::1".parse(), entry("db.a", address("2001:db8::1")));
        assert_eq!("db:[2001:db8::1]".parse(), entry("db", address("2001:db8::1")));
        assert_eq!("db:host-gateway".parse(), entry("db", HostTarget::Host));
        for bad in ["", "db", "db:", ":192.0.2.1", "db:other", "d b:192.0.2.1", "db\n:192.0.2.1"] {
            assert_eq!(bad.parse::<AddedHost>(), Err(ParseValueError::AddedHost), "{bad:?}");
        }
    }
}
