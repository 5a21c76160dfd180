//! A worker that is fed frame by frame, without a guest's stack.

use std::collections::BTreeMap;

use tapway::base::{DropReason, Instant};
use tapway::engine::{Command, Held, Limits, Options, Reply, Worker};
use tapway::gate::{AddressPlan, PublishPath};
use tapway::stack::wire::VNET_HEADER_LEN;

use crate::crew::{Crew, SimWorker, Team};
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

/// Bytes that connections may be promised in sum: the limit, one offer that passes it for each
/// worker, and the least window (RFC 9293 §3.7.1's default segment) for each connection.
pub fn most_promised(limits: &Limits, workers: usize) -> usize {
    limits.backlog_bytes + workers * limits.tight_window as usize + limits.tcp_flows * 536
}

/// A worker that is fed by hand, or several.
pub struct Bench {
    pub now: u64,
    /// The only worker, or the lead.
    pub worker: SimWorker,
    pub crew: Crew,
    /// The queue of that worker.
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

    /// As [`Bench::new`], with a team.
    pub fn with_team(team: Team, vnet_header: bool, limits: Limits) -> Bench {
        Bench::with_all(plan(1500), team, vnet_header, vnet_header, PublishPath::Tap, limits)
    }

    /// As [`Bench::new`], where clients of published ports may go another way.
    pub fn with_publish_path(publish_path: PublishPath, limits: Limits) -> Bench {
        Bench::with_all(plan(1500), Team::NONE, true, true, publish_path, limits)
    }

    pub fn with_plan(plan: AddressPlan, vnet_header: bool, limits: Limits) -> Bench {
        Bench::with_uso(plan, vnet_header, vnet_header, limits)
    }

    /// As on a kernel before 6.2 if `uso` is off.
    pub fn with_uso(plan: AddressPlan, vnet_header: bool, uso: bool, limits: Limits) -> Bench {
        Bench::with_all(plan, Team::NONE, vnet_header, uso, PublishPath::Tap, limits)
    }

    fn with_all(
        plan: AddressPlan,
        team: Team,
        vnet_header: bool,
        uso: bool,
        publish_path: PublishPath,
        limits: Limits,
    ) -> Bench {
        let (tap, host) = (TapPort::default(), HostPort::default());
        let options =
            Options { plan, vnet_header, uso, big_packets: false, publish_path, limits, seed: 7 };
        let mut worker = Worker::new(Instant::ZERO, tap.clone(), host.clone(), options.clone());
        let mut crew = Crew::new(team, options, tap.clone(), host.clone(), &mut worker, 7);
        crew.waits = false;
        let mut bench = Bench { now: 0, worker, crew, tap, host, mtu: 1500, vnet_header };
        bench.pass(1_000_000_000);
        bench
    }

    /// Puts a frame into the TAP's queue, for the next turn.
    pub fn queue(&mut self, frame: &[u8]) {
        let header = if self.vnet_header { VNET_HEADER_LEN } else { 0 };
        let bytes = [&vec![0; header][..], frame].concat();
        self.crew.deliver(self.now, frame, bytes);
    }

    /// Feeds what a TAP would deliver, header and all; what the guest's stack sees of the answer.
    pub fn feed_raw(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        self.crew.deliver(self.now, &[], bytes);
        self.turn()
    }

    /// Feeds an Ethernet frame.
    pub fn feed(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.queue(frame);
        self.turn()
    }

    /// One turn of the engine; in a team, as many as it takes until nobody has mail.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        let mut frames = vec![];
        for _ in 0..1000 {
            self.host.0.borrow_mut().advance(self.now);
            self.crew.turn(self.now, &mut self.worker, |_| ());
            for (queue, bytes) in self.crew.written() {
                for frame in from_engine(&bytes, self.vnet_header, self.mtu) {
                    self.crew.learn(self.now, queue, &frame);
                    frames.push(frame);
                }
            }
            if self.crew.is_silent() {
                return frames;
            }
        }
        panic!("workers send each other mail for ever");
    }

    /// Lets `nanos` pass, with a turn whenever somebody has something to do.
    pub fn pass(&mut self, nanos: u64) -> Vec<Vec<u8>> {
        let end = self.now + nanos;
        let mut written = self.turn();
        while self.now < end {
            let next =
                [self.crew.next(self.now, &self.worker), self.host.0.borrow().next(), Some(end)];
            let next = next.into_iter().flatten().min().unwrap_or(end);
            self.now = next.max(self.now + 1_000_000).min(end);
            written.extend(self.turn());
        }
        written
    }

    /// One turn, and the acknowledgments that an idle worker sends.
    pub fn idle_turn(&mut self) -> Vec<Vec<u8>> {
        let mut frames = self.turn();
        self.crew.wait(&mut self.worker);
        frames.extend(self.turn());
        frames
    }

    /// What was dropped so far, by reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let mut all = BTreeMap::new();
        let workers = self.crew.workers(&self.worker);
        for (reason, count) in workers.flat_map(|worker| worker.counters().drops.nonzero()) {
            all.entry(reason as usize).or_insert((reason, 0)).1 += count;
        }
        all.into_values().collect()
    }

    /// Frames that were dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops().iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| *count)
    }

    /// How many flows are open.
    pub fn flow_count(&self) -> usize {
        self.crew.flow_count(&self.worker)
    }

    /// A command from the control thread, and what follows from it.
    pub fn command(&mut self, command: Command) -> Vec<Vec<u8>> {
        self.worker.on_command(Instant::from_nanos(self.now), command);
        self.turn()
    }

    /// A command that is answered.
    pub fn ask<T: Send + 'static>(&mut self, command: impl FnOnce(Reply<T>) -> Command) -> T {
        let (sender, answer) = std::sync::mpsc::channel();
        // What flows move meanwhile would be told twice, or by nobody.
        let unrest = self.crew.set_unrest(false);
        self.command(command(Reply::new(move |answer| sender.send(answer).unwrap())));
        self.crew.set_unrest(unrest);
        answer.try_recv().expect("all workers have answered")
    }

    /// What is held.
    pub fn held(&self) -> Held {
        self.crew.held(&self.worker)
    }
}
