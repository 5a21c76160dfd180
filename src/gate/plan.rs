//! The address plan of one guest link, and what a destination address means under it.
//!
//! ```text
//!   10.0.2.0/24   .2 gateway   .3 DNS   .100 guest        fdXX::/64   ::2   ::3   ::100
//! ```
//! A guest packet's destination is one of: the gateway itself (echo; every port closed), the DNS
//! forwarder, the address that stands for the host's loopback (only when asked for), an address
//! out in the world, or nothing that may be forwarded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::{DropReason, Mac};

/// The IPv4 half of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan4 {
    /// The address configured in the guest.
    pub guest: Ipv4Addr,
    /// Prefix length of the guest's network, 1..=30.
    pub prefix: u8,
    /// Our address: the guest's default route.
    pub gateway: Ipv4Addr,
    /// The address where the DNS forwarder answers.
    pub dns: Ipv4Addr,
}

/// The IPv6 half of the plan. The prefix is always /64 (RFC 4862 autoconfiguration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan6 {
    /// The address configured in the guest.
    pub guest: Ipv6Addr,
    /// Prefix length, 64.
    pub prefix: u8,
    /// Our global (ULA) address; echo is answered there.
    pub gateway: Ipv6Addr,
    /// Our link-local address: the guest's default route and the source of router advertisements.
    pub gateway_link_local: Ipv6Addr,
    /// The address where the DNS forwarder answers.
    pub dns: Ipv6Addr,
}

/// Who is who on the guest link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPlan {
    /// IPv4, unless switched off.
    pub v4: Option<Plan4>,
    /// IPv6, unless switched off.
    pub v6: Option<Plan6>,
    /// Our MAC on the TAP.
    pub gateway_mac: Mac,
    /// The MAC of the guest's interface.
    pub guest_mac: Mac,
    /// MTU of the guest's interface in bytes of IP packet.
    pub mtu: u16,
    /// Addresses that stand for the host's loopback (127.0.0.1 or ::1 by family); empty by default.
    pub host_loopback: Vec<IpAddr>,
    /// Search domains for DHCP and router advertisements at start.
    pub search: Vec<String>,
}

/// What a destination address of a guest packet means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The gateway's own address: echo is answered, every port is closed.
    Gateway,
    /// The DNS forwarder's address: port 53 is served, other ports are closed.
    Dns,
    /// Out through a host socket, to this host-side address.
    Host(IpAddr),
    /// Link-wide: broadcast or multicast, for the services only.
    Link(DropReason),
    /// Not to be forwarded.
    Martian,
}

impl AddressPlan {
    /// Whether the guest may send from `source`: any address of its own networks but ours,
    /// and link-local addresses for IPv6's own housekeeping.
    pub fn source_allowed(&self, source: IpAddr) -> bool {
        match source {
            IpAddr::V4(a) => self.v4.as_ref().is_some_and(|p| {
                p.contains(a)
                    && a != p.gateway
                    && a != p.dns
                    && a != p.network()
                    && a != p.broadcast()
            }),
            IpAddr::V6(a) => self.v6.as_ref().is_some_and(|p| {
                (p.contains(a) && a != p.gateway && a != p.dns)
                    || (a.is_unicast_link_local() && a != p.gateway_link_local)
            }),
        }
    }

    /// What `address` means as the destination of a guest packet.
    pub fn destination(&self, address: IpAddr) -> Destination {
        if self.host_loopback.contains(&address) {
            return Destination::Host(match address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        match address {
            IpAddr::V4(a) => self.destination4(a),
            IpAddr::V6(a) => self.destination6(a),
        }
    }

    fn destination4(&self, a: Ipv4Addr) -> Destination {
        let Some(plan) = &self.v4 else { return Destination::Martian };
        if a == plan.gateway {
            Destination::Gateway
        } else if a == plan.dns {
            Destination::Dns
        } else if a.is_broadcast() || a == plan.broadcast() {
            Destination::Link(DropReason::Broadcast)
        } else if a.is_multicast() {
            Destination::Link(DropReason::Multicast)
        } else if a.octets()[0] == 0 || a.is_loopback() || a.octets()[0] >= 240 || plan.contains(a)
        {
            Destination::Martian
        } else {
            Destination::Host(a.into())
        }
    }

    fn destination6(&self, a: Ipv6Addr) -> Destination {
        let Some(plan) = &self.v6 else { return Destination::Martian };
        if a == plan.gateway || a == plan.gateway_link_local {
            Destination::Gateway
        } else if a == plan.dns {
            Destination::Dns
        } else if a.is_multicast() {
            Destination::Link(DropReason::Multicast)
        } else if a.is_unspecified()
            || a.is_loopback()
            || a.is_unicast_link_local()
            || a.to_ipv4_mapped().is_some()
            || plan.contains(a)
        {
            Destination::Martian
        } else {
            Destination::Host(a.into())
        }
    }

    /// Our own address of a family, if the guest has the family.
    pub fn gateway(&self, ipv6: bool) -> Option<IpAddr> {
        match ipv6 {
            false => self.v4.map(|v4| v4.gateway.into()),
            true => self.v6.map(|v6| v6.gateway.into()),
        }
    }

    /// How the guest knows a host-side address: the host's loopback by the address that stands for
    /// it, every other address as itself.
    pub fn seen_by_guest(&self, address: IpAddr) -> IpAddr {
        if !address.is_loopback() {
            return address;
        }
        let stand_in = self.host_loopback.iter().find(|a| a.is_ipv4() == address.is_ipv4());
        stand_in.copied().unwrap_or(address)
    }

    /// The host-side address for a flow to `target`, if the plan forwards there.
    pub fn host_target(&self, target: SocketAddr) -> Option<SocketAddr> {
        match self.destination(target.ip()) {
            Destination::Host(ip) => Some(SocketAddr::new(ip, target.port())),
            _ => None,
        }
    }
}

impl Plan4 {
    /// Whether `address` lies in the guest's network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = self.mask();
        u32::from(address) & mask == u32::from(self.guest) & mask
    }

    /// The network mask as a number.
    pub fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The all-zeros host address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.guest) & self.mask())
    }

    /// The directed broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.guest) | !self.mask())
    }
}

impl Plan6 {
    /// Whether `address` lies in the guest's /64.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.octets()[..8] == self.guest.octets()[..8]
    }

    /// The prefix with a zero interface identifier.
    pub fn network(&self) -> Ipv6Addr {
        let mut octets = self.guest.octets();
        octets[8..].fill(0);
        octets.into()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn plan() -> AddressPlan {
        AddressPlan {
            v4: Some(Plan4 {
                guest: Ipv4Addr::new(10, 0, 2, 100),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Ipv4Addr::new(10, 0, 2, 3),
            }),
            v6: Some(Plan6 {
                guest: "fd74:6170:7761:79::100".parse().unwrap(),
                prefix: 64,
                gateway: "fd74:6170:7761:79::2".parse().unwrap(),
                gateway_link_local: "fe80::2".parse().unwrap(),
                dns: "fd74:6170:7761:79::3".parse().unwrap(),
            }),
            gateway_mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
            guest_mac: Mac([0x02, 0, 0, 0, 0, 1]),
            mtu: 1500,
            host_loopback: vec!["10.0.2.9".parse().unwrap()],
            search: vec![],
        }
    }

    #[test]
    fn destinations_have_one_meaning_each() {
        let plan = plan();
        let meaning = |text: &str| plan.destination(text.parse().unwrap());
        assert_eq!(meaning("10.0.2.2"), Destination::Gateway);
        assert_eq!(meaning("fe80::2"), Destination::Gateway);
        assert_eq!(meaning("10.0.2.3"), Destination::Dns);
        assert_eq!(meaning("10.0.2.9"), Destination::Host(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(meaning("192.0.2.7"), Destination::Host("192.0.2.7".parse().unwrap()));
        assert_eq!(meaning("2001:db8::7"), Destination::Host("2001:db8::7".parse().unwrap()));
        assert_eq!(meaning("10.0.2.255"), Destination::Link(DropReason::Broadcast));
        assert_eq!(meaning("255.255.255.255"), Destination::Link(DropReason::Broadcast));
        assert_eq!(meaning("224.0.0.251"), Destination::Link(DropReason::Multicast));
        assert_eq!(meaning("ff02::1"), Destination::Link(DropReason::Multicast));
        for martian in [
            "127.0.0.1",
            "127.3.4.5",
            "0.0.0.0",
            "0.1.2.3",
            "240.0.0.1",
            "10.0.2.77",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fe80::77",
        ] {
            assert_eq!(meaning(martian), Destination::Martian, "{martian}");
        }
    }

    #[test]
    fn only_the_guests_own_addresses_are_good_sources() {
        let plan = plan();
        let allowed = |text: &str| plan.source_allowed(text.parse().unwrap());
        for good in ["10.0.2.100", "10.0.2.15", "fd74:6170:7761:79::100", "fe80::1234"] {
            assert!(allowed(good), "{good}");
        }
        for forged in [
            "10.0.2.2",
            "10.0.2.3",
            "10.0.2.255",
            "10.0.2.0",
            "192.0.2.1",
            "127.0.0.1",
            "fe80::2",
            "2001:db8::1",
            "::1",
        ] {
            assert!(!allowed(forged), "{forged}");
        }
    }
}
