//! Sets of ports: what listens, by transport and family.
//!
//! A set is a bit for each port, so that whatever a guest does, a table of what listens in it has
//! one size: 32 KiB.

use std::fmt;
use std::net::IpAddr;

use super::forward::{PortRange, Transport};

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of `address`.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A set of ports.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; PortSet::WORDS]>);

impl PortSet {
    const WORDS: usize = 65_536 / 64;

    /// Adds `port`.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// Adds every port of `range`.
    pub fn insert_range(&mut self, range: PortRange) {
        (range.first()..=range.last()).for_each(|port| self.insert(port));
    }

    /// Whether `port` is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & 1 << (port % 64) != 0
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        // Empty words are passed over at once: most are.
        let words = (0_u16..).zip(self.0.iter()).filter(|&(_, &word)| word != 0);
        words.flat_map(|(at, &word)| {
            (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| at * 64 + bit)
        })
    }
}

impl Default for PortSet {
    fn default() -> PortSet {
        PortSet(Box::new([0; PortSet::WORDS]))
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Ports by transport and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTable([PortSet; 4]);

impl PortTable {
    /// The ports of one transport and family.
    pub fn of(&self, transport: Transport, family: Family) -> &PortSet {
        &self.0[PortTable::at(transport, family)]
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, transport: Transport, family: Family) -> &mut PortSet {
        &mut self.0[PortTable::at(transport, family)]
    }

    /// Adds what is in `other`.
    pub fn join(&mut self, other: &PortTable) {
        for (set, more) in self.0.iter_mut().zip(&other.0) {
            for (word, bits) in set.0.iter_mut().zip(more.0.iter()) {
                *word |= bits;
            }
        }
    }

    /// Whether `port` is there in either family.
    pub fn in_any_family(&self, transport: Transport, port: u16) -> bool {
        [Family::V4, Family::V6].into_iter().any(|family| self.of(transport, family).contains(port))
    }

    /// Each index is below the number of sets.
    fn at(transport: Transport, family: Family) -> usize {
        match (transport, family) {
            (Transport::Tcp, Family::V4) => 0,
            (Transport::Tcp, Family::V6) => 1,
            (Transport::Udp, Family::V4) => 2,
            (Transport::Udp, Family::V6) => 3,
        }
    }
}

/// The addresses at which clients arrive. A socket that is bound elsewhere does not hear them.
///
/// For published ports these are the guest's addresses on the link. A server on the guest's
/// loopback hears nobody who comes by the TAP, so it counts as not there. For exposed host ports
/// they are the host's loopback addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach(pub Vec<IpAddr>);

impl Reach {
    /// Whether clients arrive at `address`.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether a socket bound to `address` hears clients over IPv4, and whether over IPv6.
    ///
    /// An IPv6 socket takes IPv4 too where it is bound to every address, unless it is `v6only`, or
    /// to an IPv4-mapped one (ipv6(7)).
    pub fn hears(&self, address: IpAddr, v6only: bool) -> (bool, bool) {
        match address.to_canonical() {
            any if any.is_unspecified() => (any.is_ipv4() || !v6only, any.is_ipv6()),
            v4 if v4.is_ipv4() => (self.holds(v4), false),
            v6 => (false, self.holds(v6)),
        }
    }

    /// Enters a socket that is bound to `address` into `table`.
    pub fn enter(
        &self,
        table: &mut PortTable,
        transport: Transport,
        (address, port): (IpAddr, u16),
        v6only: bool,
    ) {
        let (v4, v6) = self.hears(address, v6only);
        for (heard, family) in [(v4, Family::V4), (v6, Family::V6)] {
            if heard {
                table.of_mut(transport, family).insert(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_back_its_ports_in_order() {
        let mut set = PortSet::default();
        assert_eq!(set.iter().next(), None);
        for port in [65_535, 64, 63, 1, 0, 8080] {
            set.insert(port);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 8080, 65_535]);
        assert!(set.contains(64) && !set.contains(65));
        set.insert_range(PortRange::new(65_530, 65_535).unwrap());
        assert_eq!(set.iter().filter(|&port| port > 65_000).count(), 6);
    }

    #[test]
    fn a_table_keeps_transports_and_families_apart() {
        let mut table = PortTable::default();
        table.of_mut(Transport::Udp, Family::V6).insert(53);
        assert!(table.in_any_family(Transport::Udp, 53));
        let mut more = PortTable::default();
        more.of_mut(Transport::Tcp, Family::V4).insert(80);
        more.join(&table);
        assert!(more.in_any_family(Transport::Udp, 53) && more.in_any_family(Transport::Tcp, 80));
        assert!(!table.in_any_family(Transport::Tcp, 53));
        assert!(!table.of(Transport::Udp, Family::V4).contains(53));
    }

    #[test]
    fn sockets_hear_what_their_address_lets_them() {
        let reach = Reach(vec!["10.0.2.100".parse().unwrap(), "fd00::100".parse().unwrap()]);
        for (address, v6only, expected) in [
            ("0.0.0.0", false, (true, false)),
            ("::", false, (true, true)),
            ("::", true, (false, true)),
            ("::ffff:0.0.0.0", false, (true, false)),
            ("10.0.2.100", false, (true, false)),
            ("::ffff:10.0.2.100", false, (true, false)),
            ("fd00::100", false, (false, true)),
            ("127.0.0.1", false, (false, false)),
            ("::1", true, (false, false)),
            ("::ffff:127.0.0.1", false, (false, false)),
            ("172.17.0.1", false, (false, false)),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(reach.hears(address, v6only), expected, "{address}");
        }
    }
}
