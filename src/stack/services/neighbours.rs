//! Which MAC has which guest-side address, learned from what the guest says about itself.
//!
//! A guest may hold more addresses than the plan gave it, on more MACs than one (a bridge with
//! containers behind it). The table is small and the oldest entry makes room: a guest that floods
//! it harms only its own further addresses, since what the plan says is always there. A virtual
//! machine's own MAC is not known from the start: the plan then has the broadcast address, until
//! the machine is heard of.

use std::net::IpAddr;

use crate::base::Mac;
use crate::gate::AddressPlan;

/// Most learned addresses. Linux starts to collect its own neighbour table at 128 (gc_thresh1).
const MAX_LEARNED: usize = 128;

/// Addresses of the guest side and their MACs.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// The plan's own addresses, present from the start and never evicted.
    planned: Vec<(IpAddr, Mac)>,
    /// Others, least recently learned first.
    learned: Vec<(IpAddr, Mac)>,
}

impl Neighbours {
    pub(super) fn new(plan: &AddressPlan) -> Self {
        let v4 = plan.v4.map(|v4| IpAddr::from(v4.guest));
        let v6 = plan.v6.map(|v6| IpAddr::from(v6.guest));
        let planned = v4.into_iter().chain(v6).map(|address| (address, plan.guest_mac)).collect();
        Neighbours { planned, learned: Vec::new() }
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<Mac> {
        let mut all = self.planned.iter().chain(&self.learned);
        all.find(|(known, _)| *known == address).map(|&(_, mac)| mac)
    }

    /// The planned addresses of which nobody knows the MAC are at `mac`, the first that is heard
    /// of.
    pub(super) fn suppose(&mut self, mac: Mac) {
        if mac.is_multicast() || mac == Mac([0; 6]) {
            return;
        }
        for (_, planned) in self.planned.iter_mut().filter(|(_, mac)| *mac == Mac::BROADCAST) {
            *planned = mac;
        }
    }

    /// Notes that `address` is at `mac`, if the guest may have that address at all.
    pub(super) fn learn(&mut self, plan: &AddressPlan, address: IpAddr, mac: Mac) {
        if !plan.source_allowed(address) || mac.is_multicast() || mac == Mac([0; 6]) {
            return;
        }
        if let Some(entry) = self.planned.iter_mut().find(|(known, _)| *known == address) {
            entry.1 = mac;
            return;
        }
        self.learned.retain(|(known, _)| *known != address);
        if self.learned.len() == MAX_LEARNED {
            self.learned.remove(0);
        }
        self.learned.push((address, mac));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::services::fixture::{GUEST_MAC, plan};
    use std::net::Ipv6Addr;

    #[test]
    fn planned_addresses_survive_a_flood_of_learned_ones() {
        let plan = plan();
        let mut table = Neighbours::new(&plan);
        let at = |n: u16| IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 7, n));
        for n in 0..1000 {
            table.learn(&plan, at(n), Mac([2, 0, 0, 7, (n >> 8) as u8, n as u8]));
        }
        assert_eq!(table.learned.len(), MAX_LEARNED);
        assert_eq!(table.get(at(0)), None);
        assert_eq!(table.get(at(999)), Some(Mac([2, 0, 0, 7, 3, 0xe7])));
        assert_eq!(table.get("10.0.2.100".parse().unwrap()), Some(GUEST_MAC));
    }

    #[test]
    fn forged_addresses_and_group_macs_are_not_learned() {
        let plan = plan();
        let mut table = Neighbours::new(&plan);
        let unicast = Mac([2, 0, 0, 0, 0, 9]);
        for forged in ["10.0.2.2", "10.0.2.255", "192.0.2.9", "fe80::2", "0.0.0.0"] {
            let address = forged.parse().unwrap();
            table.learn(&plan, address, unicast);
            assert_eq!(table.get(address), None, "{forged}");
        }
        table.learn(&plan, "10.0.2.40".parse().unwrap(), Mac::BROADCAST);
        assert_eq!(table.get("10.0.2.40".parse().unwrap()), None);
    }

    #[test]
    fn a_mac_that_nobody_knows_is_that_of_the_first_message() {
        let plan = AddressPlan { guest_mac: Mac::BROADCAST, ..plan() };
        let mut table = Neighbours::new(&plan);
        let (one, two) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let guest = "10.0.2.100".parse().unwrap();
        table.suppose(Mac::BROADCAST);
        assert_eq!(table.get(guest), Some(Mac::BROADCAST));
        for mac in [one, two] {
            table.suppose(mac);
            assert_eq!(table.get(guest), Some(one));
        }
        table.learn(&plan, guest, two);
        assert_eq!(table.get(guest), Some(two));
    }

    #[test]
    fn an_address_that_moves_has_its_last_mac() {
        let plan = plan();
        let mut table = Neighbours::new(&plan);
        let (one, two) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        for address in ["10.0.2.40", "10.0.2.100"] {
            let address = address.parse().unwrap();
            table.learn(&plan, address, one);
            table.learn(&plan, address, two);
            assert_eq!(table.get(address), Some(two));
        }
    }
}
