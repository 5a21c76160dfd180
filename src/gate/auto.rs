//! Ports that come and go by themselves: what has to be opened and closed, given what listens.
//!
//! ```text
//!   what listens ─▶ published | exposed | led | conditional ─▶ wanted ─▶ Standing::turn ─▶ Changes
//! ```
//!
//! # What is followed
//!
//! - **`--publish auto`** opens a host listener for each port of the guest at which a client from
//!   outside would be heard ([`super::ports::Reach`]), in the families in which it would. Servers
//!   on the guest's loopback are not followed: nothing that comes by the TAP reaches them, and they
//!   were put there to be unreachable.
//! - **`--expose-host auto`** opens a port of the gateway for each port at the host's loopback,
//!   except those at which tapway itself listens: they lead back into the guest.
//! - **`-T auto`** of pasta's opens a port of the guest's loopback for each port at the host's, in
//!   the same families, with the same exceptions.
//! - **`--publish-when-listening`** opens the host side of its own ports.
//! - A UDP socket says by nothing that it is a server. One whose port is among those that the
//!   kernel hands out to clients ([`PortRange::EPHEMERAL`]) is taken for a client and not followed.
//! - Exposed ports open no socket in the guest, so nothing that was followed is followed back
//!   there.
//!
//! # Refusals
//!
//! A port that cannot be opened, taken or privileged, is tried again about once a second for as
//! long as something listens behind it ([`Standing::refusals`]): whoever has it may go away. The
//! log has one line each time that a server starts. What the guest does is bounded by [`MOST`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::forward::{
    AutoForward, Bound, Exposure, Forward, ForwardId, HostService, Inner, Listen, PortRange,
    Transport,
};
use super::ports::{Family, PortSet, PortTable, Reach};

/// The most ports that one `auto` has open. A guest that listens at every port takes neither all of
/// the host's ports nor all of our descriptors: TCP over IPv4 comes first, and low ports before
/// high.
pub const MOST: usize = 4096;

/// A guest port that `--publish auto` has opened, or is to open, on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AutoPort {
    /// The port, the same on both sides.
    pub port: u16,
    /// What it carries.
    pub transport: Transport,
    /// The family in which the guest listens.
    pub family: Family,
}

impl AutoPort {
    /// The same as a forward that listens where `bound` says. Without an address that is its
    /// family's own "every address", so that a client of the other family, whom nobody would hear,
    /// is refused by the host.
    pub fn forward(self, bound: &Bound) -> Forward {
        let every = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let address = bound.address.unwrap_or(every);
        let interface = bound.interface.clone();
        let ports = PortRange::single(self.port);
        Forward {
            transport: self.transport,
            listen: Listen::Ports { address: Some(address), interface, ports },
            guest_address: None,
            guest_ports: ports,
            when_listening: false,
        }
    }
}

/// A service of the host that `--expose-host auto` has opened, or is to open, at the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AutoService {
    /// The port, the same on both sides.
    pub port: u16,
    /// What it carries.
    pub transport: Transport,
    /// The family of the host's loopback at which it is reached.
    pub family: Family,
}

impl AutoService {
    /// The same as an exposure.
    pub fn exposure(self) -> Exposure {
        let address = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let ports = PortRange::single(self.port);
        let service = HostService::Ports { address: Some(address), ports };
        Exposure { transport: self.transport, ports, service }
    }
}

/// One port of a forward whose host side exists only while the guest listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConditionalPort {
    /// The forward.
    pub forward: ForwardId,
    /// The guest's port.
    pub guest_port: u16,
}

/// What `--publish auto` wants open. `guest` is what listens in the guest; `taken` are the host
/// ports that other forwards hold.
pub fn published(rule: &AutoForward, guest: &PortTable, taken: &PortTable) -> BTreeSet<AutoPort> {
    let hidden = |family, transport, port: u16| {
        let elsewhere = rule.bound.address.is_some_and(|at| Family::of(at) != family);
        elsewhere || taken.in_any_family(transport, port)
    };
    followed(rule, guest, hidden)
        .map(|(port, transport, family)| AutoPort { port, transport, family })
        .take(MOST)
        .collect()
}

/// What `--expose-host auto` wants open. `host` is what listens at the host's loopback; `ours` are
/// the host ports at which this tapway listens, `taken` the ports of the gateway that other
/// exposures hold. A port of both families is reached over IPv4.
///
/// Forwards that have just been closed belong into `ours` until `host` is newer than that.
pub fn exposed(
    rule: &AutoForward,
    host: &PortTable,
    ours: &PortTable,
    taken: &PortTable,
) -> BTreeSet<AutoService> {
    let hidden = |family, transport, port: u16| {
        let second = family == Family::V6 && {
            let (v4, own) = (host.of(transport, Family::V4), ours.of(transport, Family::V4));
            v4.contains(port) && !own.contains(port)
        };
        second || ours.of(transport, family).contains(port) || taken.in_any_family(transport, port)
    };
    followed(rule, host, hidden)
        .map(|(port, transport, family)| AutoService { port, transport, family })
        .take(MOST)
        .collect()
}

/// Which servers of the host a port of the guest's loopback leads to, each family by itself, by
/// `rule`, which follows them; those of UDP by their TCP's numbers too. `host` and `ours` are as
/// with [`exposed`].
pub fn led(rule: &Inner, host: &PortTable, ours: &PortTable) -> BTreeSet<AutoService> {
    let with_tcp = rule.transport == Transport::Udp;
    let servers = AutoForward {
        transports: vec![rule.transport],
        only: vec![rule.host_ports],
        with_tcp,
        ..AutoForward::default()
    };
    let hidden = |family, transport, port| {
        let by_tcp = with_tcp && ours.of(Transport::Tcp, family).contains(port);
        by_tcp || ours.of(transport, family).contains(port)
    };
    followed(&servers, host, hidden)
        .map(|(port, transport, family)| AutoService { port, transport, family })
        .take(MOST)
        .collect()
}

/// Whether a socket at `port` is one to follow: not excluded, and not a client.
fn follows(rule: &AutoForward, transport: Transport, port: u16) -> bool {
    let client =
        transport == Transport::Udp && PortRange::EPHEMERAL.overlaps(PortRange::single(port));
    !client && rule.covers(transport, port)
}

/// The ports of `listening` that `rule` follows and `hidden` does not name, in the order of their
/// transports and families; each of the four in ascending order, those that follow TCP's last.
fn followed<'a>(
    rule: &'a AutoForward,
    listening: &'a PortTable,
    hidden: impl Fn(Family, Transport, u16) -> bool + Copy + 'a,
) -> impl Iterator<Item = (u16, Transport, Family)> + 'a {
    [Transport::Tcp, Transport::Udp]
        .into_iter()
        .flat_map(|transport| [Family::V4, Family::V6].map(|family| (transport, family)))
        .flat_map(move |(transport, family)| {
            let both = rule.with_tcp && transport == Transport::Udp;
            let tcp = both.then(|| listening.of(Transport::Tcp, family));
            let own = listening.of(transport, family);
            let also = tcp.into_iter().flat_map(PortSet::iter).filter(|&port| !own.contains(port));
            own.iter()
                .chain(also)
                .filter(move |&port| {
                    follows(rule, transport, port) && !hidden(family, transport, port)
                })
                .map(move |port| (port, transport, family))
        })
}

/// Which ports of the forwards that exist only while the guest listens have to be open.
///
/// Whether something listens at a guest address outside of `reach`, say of a bridge inside, cannot
/// be seen; such forwards stay open.
pub fn conditional<'a>(
    forwards: impl IntoIterator<Item = (ForwardId, &'a Forward)>,
    guest: &PortTable,
    reach: &Reach,
) -> BTreeSet<ConditionalPort> {
    let mut wanted = BTreeSet::new();
    for (id, forward) in forwards.into_iter().filter(|(_, forward)| forward.when_listening) {
        let ports = forward.guest_ports.first()..=forward.guest_ports.last();
        let heard = ports.filter(|&port| is_heard(forward, port, guest, reach) != Some(false));
        wanted.extend(heard.map(|guest_port| ConditionalPort { forward: id, guest_port }));
    }
    wanted
}

/// Whether somebody in the guest hears clients of `forward` at `port`; `None` where it cannot be
/// seen. Clients keep their family on the way in, unless the guest's address has another one.
pub fn is_heard(forward: &Forward, port: u16, guest: &PortTable, reach: &Reach) -> Option<bool> {
    let listen = match &forward.listen {
        Listen::Ports { address, .. } => *address,
        Listen::Unix(_) => None,
    };
    match forward.guest_address {
        Some(address) if !reach.holds(address) => None,
        address => Some(match address.or(listen) {
            Some(address) => guest.of(forward.transport, Family::of(address)).contains(port),
            None => guest.in_any_family(forward.transport, port),
        }),
    }
}

/// What to open and what to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<K> {
    /// To be opened; say [`Standing::refused`] of what could not be.
    pub open: Vec<K>,
    /// To be closed. To be done first: a port may move from one family to the other.
    pub close: Vec<K>,
}

/// What stands open, and what is wanted and was refused.
#[derive(Clone, Debug)]
pub struct Standing<K>(BTreeMap<K, Fate>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Refused,
}

impl<K> Default for Standing<K> {
    fn default() -> Self {
        Standing(BTreeMap::new())
    }
}

impl<K: Copy + Ord> Standing<K> {
    /// What turns the present state into `wanted`. What is to be opened counts as open from here
    /// on.
    pub fn turn(&mut self, wanted: &BTreeSet<K>) -> Changes<K> {
        let mut close = vec![];
        self.0.retain(|key, fate| {
            let stays = wanted.contains(key);
            if !stays && *fate == Fate::Open {
                close.push(*key);
            }
            stays
        });
        let open: Vec<K> = wanted.iter().filter(|key| !self.0.contains_key(key)).copied().collect();
        self.0.extend(open.iter().map(|key| (*key, Fate::Open)));
        Changes { open, close }
    }

    /// `key` could not be opened. Whether that is news.
    pub fn refused(&mut self, key: K) -> bool {
        self.0.insert(key, Fate::Refused) != Some(Fate::Refused)
    }

    /// Forgets the keys that are `meant`, open or not: they are gone with whatever wanted them.
    pub fn forget(&mut self, meant: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| !meant(key));
    }

    /// What is wanted and was refused, to be tried again now and then; say [`Standing::opened`] of
    /// what is open at last.
    pub fn refusals(&self) -> impl Iterator<Item = K> + '_ {
        self.0.iter().filter(|(_, fate)| **fate == Fate::Refused).map(|(key, _)| *key)
    }

    /// `key`, which was refused, is open.
    pub fn opened(&mut self, key: K) {
        self.0.insert(key, Fate::Open);
    }

    /// What is open.
    pub fn open(&self) -> impl Iterator<Item = K> + '_ {
        self.0.iter().filter(|(_, fate)| **fate == Fate::Open).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use Family::{V4, V6};
    use Transport::{Tcp, Udp};

    use super::*;

    fn table(ports: &[(Transport, Family, u16)]) -> PortTable {
        let mut table = PortTable::default();
        for &(transport, family, port) in ports {
            table.of_mut(transport, family).insert(port);
        }
        table
    }

    fn everything() -> AutoForward {
        AutoForward { transports: vec![Tcp, Udp], ..AutoForward::default() }
    }

    fn ports(wanted: BTreeSet<AutoPort>) -> Vec<(Transport, Family, u16)> {
        wanted.into_iter().map(|p| (p.transport, p.family, p.port)).collect()
    }

    #[test]
    fn a_published_port_has_the_families_in_which_it_is_heard() {
        let guest = table(&[(Tcp, V4, 80), (Tcp, V6, 80), (Tcp, V6, 81), (Udp, V4, 53)]);
        let wanted = published(&everything(), &guest, &PortTable::default());
        assert_eq!(ports(wanted), [(Udp, V4, 53), (Tcp, V4, 80), (Tcp, V6, 80), (Tcp, V6, 81)]);
        let forward = AutoPort { port: 81, transport: Tcp, family: V6 };
        let forward = forward.forward(&Bound::default());
        let Listen::Ports { address, ports, .. } = forward.listen else { panic!("ports") };
        assert_eq!(address, Some("::".parse().unwrap()));
        assert_eq!((ports, forward.guest_ports), (PortRange::single(81), PortRange::single(81)));
    }

    #[test]
    fn exceptions_clients_and_ports_of_other_forwards_are_not_followed() {
        let guest = table(&[
            (Tcp, V4, 80),
            (Tcp, V4, 8000),
            (Tcp, V4, 40_000),
            (Udp, V4, 8000),
            (Udp, V4, 40_000),
            (Udp, V4, 61_000),
        ]);
        let exclude = vec![PortRange::new(7000, 7999).unwrap(), PortRange::single(8000)];
        let rule = AutoForward { exclude, ..everything() };
        let taken = table(&[(Tcp, V6, 80)]);
        let wanted = published(&rule, &guest, &taken);
        assert_eq!(ports(wanted), [(Tcp, V4, 40_000), (Udp, V4, 61_000)]);
        let udp_only = AutoForward { transports: vec![Udp], ..everything() };
        let wanted = published(&udp_only, &guest, &PortTable::default());
        assert_eq!(ports(wanted), [(Udp, V4, 8000), (Udp, V4, 61_000)]);
    }

    #[test]
    fn udp_follows_tcp_where_that_is_asked_for() {
        let guest = table(&[(Tcp, V4, 80), (Tcp, V6, 81), (Udp, V4, 80), (Udp, V4, 53)]);
        let rule = AutoForward { transports: vec![Udp], with_tcp: true, ..everything() };
        let wanted = published(&rule, &guest, &PortTable::default());
        assert_eq!(ports(wanted), [(Udp, V4, 53), (Udp, V4, 80), (Udp, V6, 81)]);
        let alone = AutoForward { with_tcp: false, ..rule };
        assert_eq!(published(&alone, &guest, &PortTable::default()).len(), 2);
    }

    #[test]
    fn ports_of_the_guests_loopback_lead_to_servers_of_either_family_but_not_back() {
        let host = table(&[(Tcp, V4, 80), (Tcp, V6, 80), (Tcp, V4, 81), (Udp, V4, 53)]);
        let ours = table(&[(Tcp, V4, 81)]);
        let rule = |transport| Inner {
            transport,
            ports: PortRange::new(1050, 1100).unwrap(),
            host_ports: PortRange::new(50, 100).unwrap(),
            weak: true,
            scan: true,
        };
        let found = |transport| {
            let led = led(&rule(transport), &host, &ours).into_iter();
            led.map(|at| (at.transport, at.family, at.port)).collect::<Vec<_>>()
        };
        assert_eq!(found(Tcp), [(Tcp, V4, 80), (Tcp, V6, 80)]);
        // Who listens for TCP does so for UDP now and then; 81 is our own.
        assert_eq!(found(Udp), [(Udp, V4, 53), (Udp, V4, 80), (Udp, V6, 80)]);
    }

    #[test]
    fn a_guest_that_listens_everywhere_does_not_get_everything() {
        let mut guest = PortTable::default();
        guest.of_mut(Tcp, V4).insert_range(PortRange::new(1, u16::MAX).unwrap());
        let wanted = published(&everything(), &guest, &PortTable::default());
        assert_eq!(wanted.len(), MOST);
        assert_eq!(wanted.last().map(|p| usize::from(p.port)), Some(MOST));
    }

    #[test]
    fn host_services_are_exposed_but_not_those_that_lead_into_the_guest() {
        let host = table(&[(Tcp, V4, 5432), (Tcp, V6, 5432), (Tcp, V6, 631), (Tcp, V4, 80)]);
        let host = {
            let mut host = host;
            host.of_mut(Tcp, V6).insert(80);
            host
        };
        let ours = table(&[(Tcp, V4, 80)]);
        let wanted = exposed(&everything(), &host, &ours, &PortTable::default());
        let wanted: Vec<_> = wanted.into_iter().map(|s| (s.family, s.port)).collect();
        // The host's own server at [::1]:80 is another than ours.
        assert_eq!(wanted, [(V6, 80), (V6, 631), (V4, 5432)]);
        let exposure = AutoService { port: 631, transport: Tcp, family: V6 }.exposure();
        let address = "::1".parse().unwrap();
        let service = HostService::Ports { address: Some(address), ports: PortRange::single(631) };
        assert_eq!((exposure.ports, exposure.service), (PortRange::single(631), service));
    }

    fn on_listening(id: u64, listen: Option<&str>, guest: Option<&str>) -> (ForwardId, Forward) {
        let address = listen.map(|text| text.parse().unwrap());
        let ports = PortRange::new(8000, 8009).unwrap();
        let forward = Forward {
            transport: Tcp,
            listen: Listen::Ports { address, interface: None, ports },
            guest_address: guest.map(|text| text.parse().unwrap()),
            guest_ports: PortRange::new(80, 89).unwrap(),
            when_listening: true,
        };
        (ForwardId(id), forward)
    }

    #[test]
    fn forwards_follow_listeners_of_the_family_that_their_clients_have() {
        let reach = Reach(vec!["10.0.2.100".parse().unwrap()]);
        let forwards = [
            on_listening(1, None, None),
            on_listening(2, Some("0.0.0.0"), None),
            on_listening(3, Some("::"), None),
            on_listening(4, Some("::1"), Some("10.0.2.100")),
        ];
        let guest = table(&[(Tcp, V4, 81), (Tcp, V6, 85), (Udp, V4, 82), (Tcp, V4, 90)]);
        let by_reference = forwards.iter().map(|(id, forward)| (*id, forward));
        let wanted = conditional(by_reference, &guest, &reach);
        let wanted: Vec<_> = wanted.into_iter().map(|c| (c.forward.0, c.guest_port)).collect();
        assert_eq!(wanted, [(1, 81), (1, 85), (2, 81), (3, 85), (4, 81)]);
    }

    #[test]
    fn forwards_to_where_nobody_can_look_stay_open() {
        let reach = Reach(vec!["10.0.2.100".parse().unwrap()]);
        let (id, forward) = on_listening(7, None, Some("172.17.0.2"));
        assert_eq!(is_heard(&forward, 80, &PortTable::default(), &reach), None);
        let wanted = conditional([(id, &forward)], &PortTable::default(), &reach);
        assert_eq!(wanted.len(), 10);
        let always = Forward { when_listening: false, ..forward };
        assert!(conditional([(id, &always)], &PortTable::default(), &reach).is_empty());
    }

    #[test]
    fn only_differences_are_changes() {
        let mut standing = Standing::default();
        let changes = standing.turn(&BTreeSet::from([1, 2]));
        assert_eq!(changes, Changes { open: vec![1, 2], close: vec![] });
        let changes = standing.turn(&BTreeSet::from([2, 3]));
        assert_eq!(changes, Changes { open: vec![3], close: vec![1] });
        let changes = standing.turn(&BTreeSet::from([2, 3]));
        assert_eq!(changes, Changes { open: vec![], close: vec![] });
        assert_eq!(standing.open().collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn what_was_refused_is_tried_again_when_its_server_comes_back() {
        let mut standing = Standing::default();
        let nothing = Changes { open: vec![], close: vec![] };
        standing.turn(&BTreeSet::from([80, 8080]));
        assert!(standing.refused(80));
        assert!(!standing.refused(80));
        assert_eq!(standing.turn(&BTreeSet::from([80, 8080])), nothing);
        assert_eq!(standing.open().collect::<Vec<_>>(), [8080]);
        // Nothing is closed that was never opened.
        assert_eq!(standing.turn(&BTreeSet::from([8080])), nothing);
        let again = Changes { open: vec![80], close: vec![] };
        assert_eq!(standing.turn(&BTreeSet::from([80, 8080])), again);
    }

    #[test]
    fn what_was_refused_may_open_later() {
        let mut standing = Standing::default();
        standing.turn(&BTreeSet::from([80, 8080]));
        standing.refused(80);
        assert_eq!(standing.refusals().collect::<Vec<_>>(), [80]);
        standing.opened(80);
        assert_eq!(standing.refusals().count(), 0);
        assert_eq!(standing.open().collect::<Vec<_>>(), [80, 8080]);
        assert_eq!(standing.turn(&BTreeSet::new()).close, [80, 8080]);
    }
}
