//! What flows have carried: an account for each, sums for all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::base::Instant;
use crate::gate::forward::ForwardId;
use crate::observe::{Direction, FlowTransport, ForwardStats, Traffic, TransportStats};

/// What is known of every flow, whatever it carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    /// The number of the flow: rising, never used again.
    pub(super) id: u64,
    pub(super) direction: Direction,
    /// The published or exposed port that it came through.
    pub(super) forward: Option<ForwardId>,
    pub(super) opened: Instant,
    pub(super) last_use: Instant,
    pub(super) traffic: Traffic,
}

impl Account {
    /// A packet of the flow came from the guest.
    pub(super) fn heard(&mut self, now: Instant) {
        self.traffic.packets_to_host += 1;
        self.last_use = now;
    }
}

/// Sums since the start, and the next flow's number.
#[derive(Debug)]
pub(super) struct Ledger {
    opened: u64,
    /// The number of the flow before the first, and how far apart numbers are.
    numbers: (u64, u64),
    /// By [`FlowTransport`]. Traffic is that of flows that are over.
    totals: [TransportStats; 3],
    /// As `totals`, for the ports that are published or exposed now.
    forwards: BTreeMap<ForwardId, ForwardStats>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        let (opened, numbers) = (0, (0, 1));
        Ledger { opened, numbers, totals: Default::default(), forwards: BTreeMap::new() }
    }
}

impl Ledger {
    /// Numbers flows from `first` on in steps of `step`, so that several ledgers agree on whose
    /// numbers are whose.
    pub(super) fn number(&mut self, first: u64, step: u64) {
        self.numbers = (first, step);
    }

    /// A flow begins.
    pub(super) fn open(
        &mut self,
        now: Instant,
        transport: FlowTransport,
        direction: Direction,
        forward: Option<ForwardId>,
    ) -> Account {
        self.opened += 1;
        self.totals[transport as usize].opened += 1;
        if let Some(stats) = forward.and_then(|id| self.forwards.get_mut(&id)) {
            stats.connections += 1;
        }
        let id = self.numbers.0 + self.opened * self.numbers.1;
        let traffic = Traffic::default();
        Account { id, direction, forward, opened: now, last_use: now, traffic }
    }

    /// A flow could not begin.
    pub(super) fn refuse(&mut self, transport: FlowTransport) {
        self.totals[transport as usize].refused += 1;
    }

    /// A flow is over. `answered`: it was more than an attempt.
    pub(super) fn close(&mut self, transport: FlowTransport, account: &Account, answered: bool) {
        self.totals[transport as usize].traffic += account.traffic;
        if let Some(stats) = account.forward.and_then(|id| self.forwards.get_mut(&id)) {
            stats.traffic += account.traffic;
            stats.refused += u64::from(!answered);
        }
    }

    /// A port is published or exposed from now on; whether it was not before.
    pub(super) fn add_forward(&mut self, id: ForwardId) -> bool {
        let Entry::Vacant(vacant) = self.forwards.entry(id) else { return false };
        let traffic = Traffic::default();
        vacant.insert(ForwardStats { id, connections: 0, refused: 0, traffic });
        true
    }

    /// What is published or exposed now.
    pub(super) fn forwards(&self) -> impl Iterator<Item = ForwardId> {
        self.forwards.keys().copied()
    }

    /// A port is not published or exposed any more.
    pub(super) fn remove_forward(&mut self, id: ForwardId) {
        self.forwards.remove(&id);
    }

    /// How many flows there have been.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// The sums, with those of `live` flows.
    pub(super) fn sums<'a>(
        &self,
        live: impl Iterator<Item = (FlowTransport, &'a Account)>,
    ) -> ([TransportStats; 3], Vec<ForwardStats>) {
        let mut totals = self.totals;
        let mut forwards = self.forwards.clone();
        for (transport, account) in live {
            totals[transport as usize].open += 1;
            totals[transport as usize].traffic += account.traffic;
            if let Some(stats) = account.forward.and_then(|id| forwards.get_mut(&id)) {
                stats.traffic += account.traffic;
            }
        }
        (totals, forwards.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_hold_what_is_over_and_what_is_alive() {
        let mut ledger = Ledger::default();
        let id = ForwardId(4);
        ledger.add_forward(id);
        let open = |ledger: &mut Ledger, forward| {
            let mut account =
                ledger.open(Instant::ZERO, FlowTransport::Tcp, Direction::Inbound, forward);
            account.traffic.count_to_guest(10);
            account
        };
        let over = open(&mut ledger, Some(id));
        ledger.close(FlowTransport::Tcp, &over, false);
        let alive = open(&mut ledger, Some(id));
        let other = open(&mut ledger, None);
        let live = [(FlowTransport::Tcp, &alive), (FlowTransport::Tcp, &other)];
        let ([tcp, udp, _], forwards) = ledger.sums(live.into_iter());
        assert_eq!((tcp.open, tcp.opened, tcp.traffic.bytes_to_guest), (2, 3, 30));
        assert_eq!(udp, TransportStats::default());
        assert_eq!((forwards[0].connections, forwards[0].refused), (2, 1));
        assert_eq!(forwards[0].traffic.bytes_to_guest, 20);
    }

    #[test]
    fn a_port_that_is_withdrawn_is_forgotten_though_flows_go_on() {
        let mut ledger = Ledger::default();
        ledger.add_forward(ForwardId(1));
        let account =
            ledger.open(Instant::ZERO, FlowTransport::Udp, Direction::Inbound, Some(ForwardId(1)));
        ledger.remove_forward(ForwardId(1));
        ledger.close(FlowTransport::Udp, &account, true);
        assert!(ledger.sums(std::iter::empty()).1.is_empty());
    }
}
