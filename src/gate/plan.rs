//! The address plan of one guest link, and what a destination address means under it.
//!
//! ```text
//!   10.0.2.0/24   .2 gateway   .3 DNS   .100 guest        fdXX::/64   ::2   ::3   ::100
//! ```
//! A guest packet's destination is one of: the gateway itself (echo; every port closed), the DNS
//! forwarder, the address that stands for the host's loopback (only when asked for), an address
//! out in the world, or nothing that may be forwarded.
//!
//! # Private and shared links
//!
//! The networks of a guest are its own, unless it [shares](Sharing) those of its host. Then it has
//! the host's address and routes, its neighbours are the host's neighbours, and its gateway is the
//! host's router, all of whom it reaches by way of us: we answer for every address on the link but
//! the guest's own. Its own address leads to itself, so the host, which has the same one, is
//! reached under another name only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::{DropReason, Mac};

use super::splicing::Splicing;

/// The IPv4 half of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan4 {
    /// The address configured in the guest.
    pub guest: Ipv4Addr,
    /// Prefix length of the guest's network: 1..=30, up to 32 on a shared link.
    pub prefix: u8,
    /// Our address: the guest's default route.
    pub gateway: Ipv4Addr,
    /// The address where the DNS forwarder answers, if there is one.
    pub dns: Option<Ipv4Addr>,
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
    /// The address where the DNS forwarder answers, if there is one.
    pub dns: Option<Ipv6Addr>,
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
    /// The MAC of the guest's interface; the broadcast address where it is not known.
    pub guest_mac: Mac,
    /// MTU of the guest's interface in bytes of IP packet.
    pub mtu: u16,
    /// Addresses that stand for the host's loopback (127.0.0.1 or ::1 by family); empty by default.
    pub host_loopback: Vec<IpAddr>,
    /// Search domains for DHCP and router advertisements at start.
    pub search: Vec<String>,
    /// The guest lives in its host's networks; `None` if it has networks of its own.
    pub sharing: Option<Sharing>,
    /// How our own addresses behave.
    pub habits: Habits,
}

/// How our own addresses behave where links differ from each other; by default as tapway's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habits {
    /// A closed port of the gateway is told as "network unreachable", not as "refused".
    pub closed_is_unreachable: bool,
    /// The DNS address answers echo and nothing else, not even with a refusal.
    pub dns_is_silent: bool,
    /// What DHCP gives to the guest's own interface, if not the plan's guest address.
    pub lease: Option<Ipv4Addr>,
}

/// A guest that has its host's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Addresses that stand for the host's own address, which is the guest's too.
    pub host: Vec<IpAddr>,
    /// How clients on the host's loopback reach the guest.
    pub splicing: Splicing,
    /// Resolvers that DHCP and router advertisements name.
    pub resolvers: Vec<IpAddr>,
    /// The name that DHCP gives to the guest.
    pub hostname: Option<String>,
    /// The same with its domain, for DHCP and DHCPv6.
    pub fqdn: Option<String>,
    /// What is answered on the link.
    pub services: SharedServices,
}

/// What a shared link serves and carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedServices {
    /// DHCP for IPv4.
    pub dhcp4: bool,
    /// DHCPv6.
    pub dhcp6: bool,
    /// Neighbour solicitations.
    pub neighbours: bool,
    /// Router advertisements.
    pub routers: bool,
    /// The MTU is told.
    pub mtu: bool,
    /// TCP is carried.
    pub tcp: bool,
    /// UDP is carried.
    pub udp: bool,
    /// Echo is carried.
    pub icmp: bool,
}

impl Default for SharedServices {
    /// All of them.
    fn default() -> Self {
        SharedServices {
            dhcp4: true,
            dhcp6: true,
            neighbours: true,
            routers: true,
            mtu: true,
            tcp: true,
            udp: true,
            icmp: true,
        }
    }
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
    /// and link-local addresses for IPv6's own housekeeping. On a shared link, any address that a
    /// host can have and that stands for nobody else.
    pub fn source_allowed(&self, source: IpAddr) -> bool {
        if let Some(sharing) = &self.sharing {
            return self.has_family(source)
                && is_a_hosts(source)
                && !self.host_loopback.contains(&source)
                && !sharing.host.contains(&source)
                && !self.is_dns(source)
                && Some(source) != self.gateway_link_local();
        }
        match source {
            IpAddr::V4(a) => self.v4.as_ref().is_some_and(|p| {
                p.contains(a)
                    && a != p.gateway
                    && Some(a) != p.dns
                    && a != p.network()
                    && a != p.broadcast()
            }),
            IpAddr::V6(a) => self.v6.as_ref().is_some_and(|p| {
                (p.contains(a) && a != p.gateway && Some(a) != p.dns)
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
        if let Some(sharing) = &self.sharing {
            return self.shared_destination(sharing, address);
        }
        match address {
            IpAddr::V4(a) => self.destination4(a),
            IpAddr::V6(a) => self.destination6(a),
        }
    }

    fn shared_destination(&self, sharing: &Sharing, address: IpAddr) -> Destination {
        let broadcast = match address {
            IpAddr::V4(a) => a.is_broadcast() || self.v4.is_some_and(|v4| v4.is_broadcast(a)),
            IpAddr::V6(_) => false,
        };
        if !self.has_family(address) {
            Destination::Martian
        } else if self.is_dns(address) {
            Destination::Dns
        } else if sharing.host.contains(&address) {
            match self.guest(address.is_ipv6()) {
                Some(host) => Destination::Host(host),
                None => Destination::Martian,
            }
        } else if broadcast {
            Destination::Link(DropReason::Broadcast)
        } else if address.is_multicast() {
            Destination::Link(DropReason::Multicast)
        } else if matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()) {
            // Without an interface it is nobody's; the router's is at least ours to answer for.
            let router = Some(address) == self.gateway_link_local();
            if router { Destination::Gateway } else { Destination::Martian }
        } else if is_a_hosts(address) {
            Destination::Host(address)
        } else {
            Destination::Martian
        }
    }

    fn has_family(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4.is_some(),
            IpAddr::V6(_) => self.v6.is_some(),
        }
    }

    fn gateway_link_local(&self) -> Option<IpAddr> {
        self.v6.map(|v6| v6.gateway_link_local.into())
    }

    /// Whether the DNS forwarder answers at `address`.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.is_some_and(|v4| v4.dns == Some(a)),
            IpAddr::V6(a) => self.v6.is_some_and(|v6| v6.dns == Some(a)),
        }
    }

    /// The resolvers of a family that the guest is told of.
    pub fn resolvers(&self, ipv6: bool) -> Vec<IpAddr> {
        match &self.sharing {
            Some(sharing) => {
                sharing.resolvers.iter().copied().filter(|a| a.is_ipv6() == ipv6).collect()
            }
            None => self.dns(ipv6).into_iter().collect(),
        }
    }

    /// Whether we answer for `address` when the guest asks the link who has it.
    pub fn answers_for(&self, address: IpAddr) -> bool {
        if let Some(sharing) = &self.sharing {
            let own = self.guest(address.is_ipv6()) == Some(address);
            let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
            // The guest has link-local addresses of its own, which it looks for before it uses
            // them.
            let ours = !link_local || Some(address) == self.gateway_link_local();
            let answers = address.is_ipv4() || sharing.services.neighbours;
            return self.has_family(address) && is_a_hosts(address) && !own && ours && answers;
        }
        self.is_reserved(address)
    }

    /// Whether `address` is ours or stands for something, so that the guest cannot have it.
    pub fn is_reserved(&self, address: IpAddr) -> bool {
        let gateway = match address {
            IpAddr::V4(a) => self.v4.is_some_and(|v4| a == v4.gateway),
            IpAddr::V6(a) => {
                self.v6.is_some_and(|v6| a == v6.gateway || a == v6.gateway_link_local)
            }
        };
        let stands_for_host =
            self.sharing.as_ref().is_some_and(|sharing| sharing.host.contains(&address));
        gateway || stands_for_host || self.is_dns(address) || self.host_loopback.contains(&address)
    }

    /// Whether we answer a guest that asks whether `address` is still free. On a shared link the
    /// guest may take any address but those that we need.
    pub fn defends(&self, address: IpAddr) -> bool {
        if self.sharing.is_some() { self.is_reserved(address) } else { self.answers_for(address) }
    }

    /// What is answered on the link.
    pub fn services(&self) -> SharedServices {
        self.sharing.as_ref().map(|sharing| sharing.services).unwrap_or_default()
    }

    /// The guest's own address of a family.
    pub fn guest(&self, ipv6: bool) -> Option<IpAddr> {
        match ipv6 {
            false => self.v4.map(|v4| v4.guest.into()),
            true => self.v6.map(|v6| v6.guest.into()),
        }
    }

    fn destination4(&self, a: Ipv4Addr) -> Destination {
        let Some(plan) = &self.v4 else { return Destination::Martian };
        if a == plan.gateway {
            Destination::Gateway
        } else if plan.dns == Some(a) {
            Destination::Dns
        } else if a.is_broadcast() || a == plan.broadcast() {
            Destination::Link(DropReason::Broadcast)
        } else if a.is_multicast() {
            Destination::Link(DropReason::Multicast)
        } else if a.octets()[0] == 0 || a.is_loopback() || plan.contains(a) {
            Destination::Martian
        } else {
            // 240.0.0.0/4 too, which RFC 1112 §4 reserves: networks do use it, and Linux routes it.
            Destination::Host(a.into())
        }
    }

    fn destination6(&self, a: Ipv6Addr) -> Destination {
        let Some(plan) = &self.v6 else { return Destination::Martian };
        if a == plan.gateway || a == plan.gateway_link_local {
            Destination::Gateway
        } else if plan.dns == Some(a) {
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

    /// Whether an echo request to `address` is answered here: our own addresses answer for
    /// themselves even where their ports lead to the host's loopback.
    pub fn answers_echo(&self, address: IpAddr) -> bool {
        matches!(self.destination(address), Destination::Gateway | Destination::Dns)
            || (self.sharing.is_none() && self.gateway(address.is_ipv6()) == Some(address))
    }

    /// The address where the DNS forwarder answers, if there is one for the family.
    pub fn dns(&self, ipv6: bool) -> Option<IpAddr> {
        match ipv6 {
            false => self.v4.and_then(|v4| v4.dns).map(IpAddr::V4),
            true => self.v6.and_then(|v6| v6.dns).map(IpAddr::V6),
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
    /// it, and so the address that it shares with the host; every other address as itself.
    pub fn seen_by_guest(&self, address: IpAddr) -> IpAddr {
        if !address.is_loopback() {
            let shared =
                self.sharing.as_ref().filter(|_| self.guest(address.is_ipv6()) == Some(address));
            let mut names = shared.iter().flat_map(|sharing| &sharing.host);
            return *names.find(|a| a.is_ipv4() == address.is_ipv4()).unwrap_or(&address);
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

    /// Whether `address` is the network's all-ones address. A network of one or two hosts has none
    /// (RFC 3021).
    fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        self.prefix <= 30 && address == self.broadcast()
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

/// Whether a host can have `address`: it is no loopback, multicast or broadcast address.
fn is_a_hosts(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            a.octets()[0] != 0 && !a.is_loopback() && !a.is_multicast() && !a.is_broadcast()
        }
        IpAddr::V6(a) => {
            !a.is_unspecified()
                && !a.is_loopback()
                && !a.is_multicast()
                && a.to_ipv4_mapped().is_none()
        }
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
                dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
            }),
            v6: Some(Plan6 {
                guest: "fd74:6170:7761:79::100".parse().unwrap(),
                prefix: 64,
                gateway: "fd74:6170:7761:79::2".parse().unwrap(),
                gateway_link_local: "fe80::2".parse().unwrap(),
                dns: "fd74:6170:7761:79::3".parse().ok(),
            }),
            gateway_mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
            guest_mac: Mac([0x02, 0, 0, 0, 0, 1]),
            mtu: 1500,
            host_loopback: vec!["10.0.2.9".parse().unwrap()],
            search: vec![],
            sharing: None,
            habits: Habits::default(),
        }
    }

    /// A guest with its host's address 192.0.2.7, as podman asks for it.
    pub(crate) fn shared() -> AddressPlan {
        AddressPlan {
            v4: Some(Plan4 {
                guest: Ipv4Addr::new(192, 0, 2, 7),
                prefix: 24,
                gateway: Ipv4Addr::new(192, 0, 2, 1),
                dns: Some(Ipv4Addr::new(169, 254, 1, 1)),
            }),
            v6: Some(Plan6 {
                guest: "2001:db8::7".parse().unwrap(),
                prefix: 64,
                gateway: "fe80::1".parse().unwrap(),
                gateway_link_local: "fe80::1".parse().unwrap(),
                dns: None,
            }),
            host_loopback: vec!["192.0.2.1".parse().unwrap()],
            sharing: Some(Sharing {
                host: vec!["169.254.1.2".parse().unwrap()],
                ..Sharing::default()
            }),
            ..plan()
        }
    }

    #[test]
    fn on_a_shared_link_neighbours_are_the_hosts() {
        let plan = shared();
        let meaning = |text: &str| plan.destination(text.parse().unwrap());
        let host = |text: &str| Destination::Host(text.parse().unwrap());
        for (address, expected) in [
            ("192.0.2.1", host("127.0.0.1")),
            ("192.0.2.9", host("192.0.2.9")),
            ("169.254.1.2", host("192.0.2.7")),
            ("169.254.1.1", Destination::Dns),
            ("198.51.100.1", host("198.51.100.1")),
            ("2001:db8::9", host("2001:db8::9")),
            ("fe80::1", Destination::Gateway),
            ("fe80::9", Destination::Martian),
            ("192.0.2.255", Destination::Link(DropReason::Broadcast)),
            ("224.0.0.1", Destination::Link(DropReason::Multicast)),
            ("127.0.0.1", Destination::Martian),
        ] {
            assert_eq!(meaning(address), expected, "{address}");
        }
        assert_eq!(plan.seen_by_guest("192.0.2.7".parse().unwrap()).to_string(), "169.254.1.2");
        assert_eq!(plan.seen_by_guest("2001:db8::7".parse().unwrap()).to_string(), "2001:db8::7");
    }

    #[test]
    fn on_a_shared_link_we_answer_for_everybody_but_the_guest() {
        let plan = shared();
        let answers = |text: &str| plan.answers_for(text.parse().unwrap());
        for ours in ["192.0.2.1", "192.0.2.9", "169.254.1.2", "2001:db8::9", "fe80::1"] {
            assert!(answers(ours), "{ours}");
        }
        for not_ours in ["192.0.2.7", "2001:db8::7", "fe80::7", "224.0.0.1", "0.0.0.0"] {
            assert!(!answers(not_ours), "{not_ours}");
        }
        let allowed = |text: &str| plan.source_allowed(text.parse().unwrap());
        assert!(allowed("192.0.2.7") && allowed("192.0.2.9") && allowed("fe80::7"));
        for forged in ["169.254.1.1", "169.254.1.2", "192.0.2.1", "127.0.0.1", "fe80::1"] {
            assert!(!allowed(forged), "{forged}");
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
        assert_eq!(meaning("240.0.0.1"), Destination::Host("240.0.0.1".parse().unwrap()));
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
    fn our_addresses_answer_echo_whatever_their_ports_lead_to() {
        let mut plan = plan();
        plan.host_loopback =
            vec!["10.0.2.2".parse().unwrap(), "fd74:6170:7761:79::2".parse().unwrap()];
        let answers = |text: &str| plan.answers_echo(text.parse().unwrap());
        for ours in ["10.0.2.2", "10.0.2.3", "fd74:6170:7761:79::2", "fe80::2"] {
            assert!(answers(ours), "{ours}");
        }
        for not_ours in ["10.0.2.9", "127.0.0.1", "192.0.2.7", "2001:db8::7"] {
            assert!(!answers(not_ours), "{not_ours}");
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
