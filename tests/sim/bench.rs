//! A worker that is fed frame by frame, without a guest's stack.

use tapway::base::{DropReason, Instant};
use tapway::engine::ports::{Event, Readiness};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{Limits, Options, Worker};
use tapway::gate::AddressPlan;
use tapway::stack::wire::VNET_HEADER_LEN;

use crate::guest_kernel::from_engine;
use crate::host::HostPort;
use crate::link::TapPort;
use crate::world::plan;

/// Limits that a test can reach.
pub fn small_limits() -> Limits {
    Limits {
        tcp_flows: 500,
        udp_flows: 100,
        echo_flows: 20,
        relayed: 8,
        receive_window: 16 << 10,
        in_flight: 32 << 10,
        backlog_bytes: 64 << 10,
        tight_window: 2 << 10,
        slabs: 8,
    }
}

/// Bytes that connections may be promised in sum: the limit, one offer that passes it, and the
/// least window (RFC 9293 §3.7.1's default segment) for each.
pub fn most_promised(limits: &Limits) -> usize {
    limits.backlog_bytes + limits.tight_window as usize + limits.tcp_flows * 536
}

/// A worker that is fed by hand.
pub struct Bench {
    pub now: u64,
    pub worker: Worker<TapPort, HostPort>,
    pub tap: TapPort,
    pub host: HostPort,
    /// Of the guest's device.
    pub mtu: usize,
    vnet_header: bool,
}

impl Bench {
    pub fn new(vnet_header: bool, limits: Limits) -> Bench {
        Bench::with_plan(plan(1500), vnet_header, limits)
    }

    pub fn with_plan(plan: AddressPlan, vnet_header: bool, limits: Limits) -> Bench {
        Bench::with_uso(plan, vnet_header, vnet_header, limits)
    }

    /// As on a kernel before 6.2 if `uso` is off.
    pub fn with_uso(plan: AddressPlan, vnet_header: bool, uso: bool, limits: Limits) -> Bench {
        let (tap, host) = (TapPort::default(), HostPort::default());
        let options = Options { plan, vnet_header, uso, big_packets: false, limits, seed: 7 };
        let worker = Worker::new(Instant::ZERO, tap.clone(), host.clone(), options);
        let mut bench = Bench { now: 0, worker, tap, host, mtu: 1500, vnet_header };
        bench.pass(1_000_000_000);
        bench
    }

    /// Puts a frame into the TAP's queue, for the next turn.
    pub fn queue(&mut self, frame: &[u8]) {
        let header = if self.vnet_header { VNET_HEADER_LEN } else { 0 };
        let bytes = [&vec![0; header][..], frame].concat();
        self.tap.0.borrow_mut().inbound.push_back(bytes);
    }

    /// Feeds what a TAP would deliver, header and all; what the guest's stack sees of the answer.
    pub fn feed_raw(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        self.tap.0.borrow_mut().inbound.push_back(bytes);
        self.turn()
    }

    /// Feeds an Ethernet frame.
    pub fn feed(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.queue(frame);
        self.turn()
    }

    /// One turn of the engine.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        self.host.0.borrow_mut().advance(self.now);
        let mut events = self.host.0.borrow_mut().events_of(0);
        let readiness = Readiness { readable: true, ..Readiness::default() };
        events.push(Event { token: Token::only(Kind::Tap), readiness });
        self.worker.turn(Instant::from_nanos(self.now), &events).unwrap();
        let written = std::mem::take(&mut self.tap.0.borrow_mut().outbound);
        let complete = |bytes: &Vec<u8>| from_engine(bytes, self.vnet_header, self.mtu);
        written.iter().flat_map(complete).collect()
    }

    /// Lets `nanos` pass, with a turn whenever somebody has something to do.
    pub fn pass(&mut self, nanos: u64) -> Vec<Vec<u8>> {
        let end = self.now + nanos;
        let mut written = self.turn();
        while self.now < end {
            let timeout = self.worker.timeout(Instant::from_nanos(self.now));
            let timer = timeout.map(|timeout| self.now + timeout.as_nanos() as u64);
            let next = [timer, self.host.0.borrow().next(), Some(end)];
            let next = next.into_iter().flatten().min().unwrap_or(end);
            self.now = next.max(self.now + 1_000_000).min(end);
            written.extend(self.turn());
        }
        written
    }

    /// One turn, and the acknowledgments that an idle worker sends.
    pub fn idle_turn(&mut self) -> Vec<Vec<u8>> {
        let mut frames = self.turn();
        self.worker.before_wait();
        frames.extend(self.turn());
        frames
    }

    /// What was dropped so far, by reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        self.worker.counters().drops.nonzero().collect()
    }
}
