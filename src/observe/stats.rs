//! The counters of an instance, since its start unless a field says otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::flow::{FlowTransport, Traffic};
use crate::base::{DropCounters, DropReason};
use crate::gate::forward::ForwardId;

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Time since the start.
    #[serde(rename = "uptime_ms", with = "super::millis")]
    pub uptime: Duration,
    /// Workers that share the flows now.
    pub workers: usize,
    /// Frames on the guest link, headers included in the bytes. With offloads a frame holds up to
    /// 64 KiB, so frames are fewer than the packets on a wire would be.
    pub frames: Traffic,
    /// TCP connections.
    pub tcp: TransportStats,
    /// UDP mappings.
    pub udp: TransportStats,
    /// ICMP echo mappings.
    pub icmp: TransportStats,
    /// Published and exposed ports.
    pub forwards: Vec<ForwardStats>,
    /// Frames and packets that went nowhere.
    pub drops: DropTable,
    /// What the guest's interface counts.
    pub tap: TapStats,
    /// What is held now.
    pub memory: MemoryStats,
}

impl Stats {
    /// The counters of all workers of an instance, the first of which knows the ports that there
    /// are.
    pub fn sum(all: Vec<Stats>) -> Stats {
        let mut all = all.into_iter();
        let Some(mut sum) = all.next() else { return Stats::default() };
        for part in all {
            sum.workers += part.workers;
            sum.frames += part.frames;
            sum.tcp.add(&part.tcp);
            sum.udp.add(&part.udp);
            sum.icmp.add(&part.icmp);
            for forward in &mut sum.forwards {
                for other in part.forwards.iter().filter(|other| other.id == forward.id) {
                    forward.connections += other.connections;
                    forward.refused += other.refused;
                    forward.traffic += other.traffic;
                }
            }
            for (reason, count) in part.drops.0 {
                *sum.drops.0.entry(reason).or_default() += count;
            }
            sum.memory.unacknowledged_bytes += part.memory.unacknowledged_bytes;
            sum.memory.backlog_bytes += part.memory.backlog_bytes;
            sum.memory.reassembly_bytes += part.memory.reassembly_bytes;
            sum.memory.timers += part.memory.timers;
        }
        sum
    }

    /// The counters of one transport.
    pub fn of(&self, transport: FlowTransport) -> &TransportStats {
        match transport {
            FlowTransport::Tcp => &self.tcp,
            FlowTransport::Udp => &self.udp,
            FlowTransport::Icmp => &self.icmp,
        }
    }
}

/// Flows of one transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStats {
    /// Flows now.
    pub open: u64,
    /// Flows that began, those that were refused not included.
    pub opened: u64,
    /// Flows that could not begin: limits, no descriptor. A peer's refusal is none.
    pub refused: u64,
    /// What flows have carried, those that are over included.
    #[serde(flatten)]
    pub traffic: Traffic,
}

impl TransportStats {
    fn add(&mut self, other: &TransportStats) {
        self.open += other.open;
        self.opened += other.opened;
        self.refused += other.refused;
        self.traffic += other.traffic;
    }
}

/// One published or exposed port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStats {
    /// Its number.
    pub id: ForwardId,
    /// Connections (UDP: clients) that came through it.
    pub connections: u64,
    /// Of these, how many were reset because nothing answered at the far end.
    pub refused: u64,
    /// What they have carried.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Counts by the name of a [`DropReason`]; every reason is there, also those at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DropTable(pub BTreeMap<String, u64>);

impl From<&DropCounters> for DropTable {
    fn from(counters: &DropCounters) -> Self {
        let entry = |&reason: &DropReason| (reason.name().to_owned(), counters.get(reason));
        DropTable(DropReason::ALL.iter().map(entry).collect())
    }
}

/// Drops that the guest's kernel counts at the TAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapStats {
    /// The guest sent faster than its interface's queue was emptied (`tx_dropped`).
    pub dropped_to_host: u64,
    /// The guest's kernel did not take a frame (`rx_dropped`).
    pub dropped_to_guest: u64,
}

/// What is held for the guest now; every part is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Bytes of payload buffers that await the guest's acknowledgments.
    pub unacknowledged_bytes: u64,
    /// Bytes from the guest that wait for host sockets.
    pub backlog_bytes: u64,
    /// Bytes of packets that are not complete.
    pub reassembly_bytes: u64,
    /// Entries in the timer wheel.
    pub timers: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_is_listed() {
        let mut counters = DropCounters::default();
        counters.count(DropReason::ForgedSource);
        let table = DropTable::from(&counters);
        assert_eq!(table.0.len(), DropReason::ALL.len());
        assert_eq!((table.0["forged_source"], table.0["hop_limit"]), (1, 0));
    }

    #[test]
    fn statistics_survive_json() {
        let mut stats = Stats { uptime: Duration::from_millis(7), ..Stats::default() };
        stats.tcp.traffic.count_to_guest(5);
        let forward = ForwardStats {
            id: ForwardId(3),
            connections: 2,
            refused: 1,
            traffic: Traffic { bytes_to_host: 8, ..Traffic::default() },
        };
        stats.forwards.push(forward);
        stats.drops = DropTable::from(&DropCounters::default());
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["tcp"]["packets_to_guest"], 1);
        assert_eq!(json["forwards"][0]["id"], 3);
        assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    }
}
