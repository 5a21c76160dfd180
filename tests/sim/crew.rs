//! A team of workers on one virtual clock: their threads, bells and queues, as a hostile kernel has
//! them.
//!
//! Threads run when they like: in each step in another order, some not at all. Frames come by the
//! queue that `tun_automq_select_queue` would choose, which is the one that the flow was last
//! written into unless that is forgotten, or by others. Workers follow the advice of their own
//! meters, whose loads are invented, and advice that nobody gave: so flows change hands, and
//! workers come and go, at any moment.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tapway::base::Instant;
use tapway::engine::ports::{Event, FramePort, Readiness};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{Advice, Held, Member, Options, Order, Worker, WorkerId, members};

use crate::host::HostPort;
use crate::link::TapPort;
use crate::rng::Rng;

pub type SimWorker = Worker<TapPort, HostPort>;

/// How the kernel chooses a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// The one that the flow was last written into.
    Follows,
    /// One for a flow, whatever is written: flows follow their packets.
    Leads,
    /// Any, for each frame.
    Random,
    /// This one while it is attached.
    Only(usize),
}

/// What a team is like; chances are in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Team {
    /// How many workers there may be.
    pub most: usize,
    /// How many there are at least.
    pub least: usize,
    /// By which queue a frame comes.
    pub steering: Steering,
    /// The kernel forgets which queue a flow belongs to.
    pub forgets: u64,
    /// A worker follows advice that nobody gave, in each turn.
    pub unrest: u64,
    /// A thread does not run in a step.
    pub idles: u64,
    /// A thread cannot be started.
    pub lacks_threads: u64,
    /// A queue cannot be attached.
    pub lacks_queues: u64,
}

impl Team {
    /// One worker, who is no team.
    pub const NONE: Team = Team {
        most: 1,
        least: 1,
        steering: Steering::Follows,
        forgets: 0,
        unrest: 0,
        idles: 0,
        lacks_threads: 0,
        lacks_queues: 0,
    };

    /// So many from the start to the end, whose frames come by any queue.
    pub fn fixed(workers: usize) -> Team {
        Team { most: workers, least: workers, steering: Steering::Random, ..Team::NONE }
    }

    /// A team whose habits the seed chooses.
    pub fn random(most: usize, seed: u64) -> Team {
        let mut rng = Rng::new(seed ^ 0x7ea3);
        if most == 1 {
            return Team::NONE;
        }
        Team {
            most,
            least: rng.pick(&[1, 1, most]),
            steering: rng.pick(&[Steering::Follows, Steering::Leads, Steering::Random]),
            forgets: rng.pick(&[0, 10, 100]),
            unrest: rng.pick(&[5, 50, 300]),
            idles: rng.pick(&[0, 100, 500]),
            lacks_threads: rng.pick(&[0, 0, 0, 100]),
            lacks_queues: rng.pick(&[0, 0, 0, 100]),
        }
    }
}

/// How long the kernel remembers a flow that is not written (`TUN_FLOW_EXPIRE`).
const REMEMBERED: u64 = 3_000_000_000;

/// A place in the team: the edges of its worker, and that one itself unless it is the lead.
struct Seat {
    tap: TapPort,
    host: HostPort,
    bell: Option<OwnedFd>,
    /// What it has not looked at yet.
    events: Vec<Event>,
    spare: Option<Member<HostPort>>,
    worker: Option<SimWorker>,
    /// When it had its last turn.
    turned: u64,
    draining: bool,
    /// The thread does not run.
    paused: bool,
}

/// All workers but the lead, and what the kernel keeps for all.
pub struct Crew {
    team: Team,
    options: Options,
    ids: Vec<WorkerId>,
    seats: Vec<Seat>,
    /// The queue of each flow, and when it was last written.
    flows: BTreeMap<Vec<u8>, (usize, u64)>,
    rng: Rng,
    /// All workers have drained.
    pub drained: bool,
    /// Loads and advice are invented.
    restless: bool,
    /// Nobody has time to spare.
    strained: bool,
    /// Workers are idle between turns, and so send the acknowledgments that they owe.
    pub waits: bool,
}

impl Crew {
    /// The crew of a new `lead`, which becomes the first of the team.
    pub fn new(
        team: Team,
        options: Options,
        tap: TapPort,
        host: HostPort,
        lead: &mut SimWorker,
        seed: u64,
    ) -> Crew {
        let mut crew = Crew {
            team,
            options,
            ids: vec![],
            seats: vec![],
            flows: BTreeMap::new(),
            rng: Rng::new(seed),
            drained: false,
            restless: true,
            strained: false,
            waits: true,
        };
        let mut add = |tap: TapPort, host: HostPort, bell, spare| {
            let seat = Seat {
                tap,
                host,
                bell,
                events: vec![],
                spare,
                worker: None,
                turned: 0,
                draining: false,
                paused: false,
            };
            crew.seats.push(seat);
        };
        if team.most == 1 {
            add(tap, host, None, None);
            return crew;
        }
        for member in members::<HostPort>(Instant::ZERO, team.least, team.most).unwrap() {
            let bell = member.as_fd().try_clone_to_owned().unwrap();
            crew.ids.push(member.id());
            if member.id() == WorkerId::LEAD {
                lead.join(Instant::ZERO, member);
                add(tap.clone(), host.clone(), Some(bell), None);
            } else {
                let mut tap = TapPort::default();
                tap.set_attached(false).unwrap();
                let host = HostPort(host.0.clone(), member.id().index());
                add(tap, host, Some(bell), Some(member));
            }
        }
        crew
    }

    /// Whether workers are busy, or believe it; what was so before.
    pub fn set_unrest(&mut self, on: bool) -> bool {
        std::mem::replace(&mut self.restless, on)
    }

    /// Whatever workers do takes all their time from now on.
    pub fn strain(&mut self) {
        self.strained = true;
    }

    /// The queues that are attached.
    pub fn queues(&self) -> Vec<usize> {
        self.attached().collect()
    }

    /// By which queue frames come from now on.
    pub fn steer(&mut self, steering: Steering) {
        self.team.steering = steering;
    }

    /// The thread of a worker stops, or goes on.
    pub fn pause(&mut self, worker: usize, on: bool) {
        self.seats[worker].paused = on;
    }

    /// A worker, the lead's excepted, follows advice that nobody gave.
    pub fn advise(&mut self, now: u64, worker: usize, advice: Advice) {
        if let Some(worker) = &mut self.seats[worker].worker {
            worker.heed(Instant::from_nanos(now), advice);
        }
    }

    /// The number of a worker.
    pub fn id(&self, worker: usize) -> WorkerId {
        self.ids[worker]
    }

    /// How many flows a worker has.
    pub fn flows_of(&self, worker: usize) -> usize {
        self.seats[worker].worker.as_ref().map_or(0, Worker::flow_count)
    }

    /// The most workers that there may be.
    pub fn most(&self) -> usize {
        self.team.most
    }

    /// A frame from the guest is put into a queue; which one it is follows from `frame` as the
    /// guest sent it, and `bytes` are what is read there.
    pub fn deliver(&mut self, now: u64, frame: &[u8], bytes: Vec<u8>) {
        let attached: Vec<usize> = self.attached().collect();
        let flow = flow_of(frame);
        let known = flow
            .as_ref()
            .and_then(|flow| self.flows.get(flow))
            .filter(|(queue, at)| now - at < REMEMBERED && attached.contains(queue));
        let steering = self.team.steering;
        let queue = match known {
            Some((queue, _))
                if matches!(steering, Steering::Follows | Steering::Leads)
                    && !self.rng.chance(self.team.forgets) =>
            {
                *queue
            }
            _ if let Steering::Only(queue) = steering => {
                if attached.contains(&queue) {
                    queue
                } else {
                    0
                }
            }
            _ => self.rng.pick(&attached),
        };
        if let Some(flow) = flow.filter(|_| steering == Steering::Leads) {
            self.flows.insert(flow, (queue, now));
        }
        self.seats[queue].tap.0.borrow_mut().inbound.push_back(bytes);
    }

    fn attached(&self) -> impl Iterator<Item = usize> {
        let seats = self.seats.iter().enumerate();
        seats.filter(|(_, seat)| !seat.tap.0.borrow().detached).map(|(index, _)| index)
    }

    /// What the workers have written, by their queues.
    pub fn written(&mut self) -> Vec<(usize, Vec<u8>)> {
        let seats = self.seats.iter().enumerate();
        let taken = |(index, seat): (usize, &Seat)| {
            let written = std::mem::take(&mut seat.tap.0.borrow_mut().outbound);
            written.into_iter().map(move |bytes| (index, bytes)).collect::<Vec<_>>()
        };
        seats.flat_map(taken).collect()
    }

    /// The kernel learns from a frame that was written which queue its flow belongs to.
    pub fn learn(&mut self, now: u64, queue: usize, frame: &[u8]) {
        if let Some(flow) = flow_of(frame).filter(|_| self.team.steering == Steering::Follows) {
            self.flows.insert(flow, (queue, now));
        }
    }

    /// Every thread that runs has a turn. `disturb` may add events.
    pub fn turn(
        &mut self,
        now: u64,
        lead: &mut SimWorker,
        mut disturb: impl FnMut(&mut Vec<Event>),
    ) {
        let mut order: Vec<usize> = (0..self.seats.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.rng.range(0, last as u64) as usize);
        }
        for index in order {
            let seat = &mut self.seats[index];
            seat.events.extend(seat.host.0.borrow_mut().events_of(index));
            if seat.paused || self.rng.chance(self.team.idles) {
                continue;
            }
            if index == 0 {
                self.turn_of(index, now, lead, &mut disturb);
            } else if let Some(mut worker) = self.seats[index].worker.take() {
                self.turn_of(index, now, &mut worker, &mut disturb);
                self.seats[index].worker = Some(worker);
            }
        }
    }

    fn turn_of(
        &mut self,
        index: usize,
        nanos: u64,
        worker: &mut SimWorker,
        disturb: &mut impl FnMut(&mut Vec<Event>),
    ) {
        let now = Instant::from_nanos(nanos);
        let seat = &mut self.seats[index];
        let mut events = std::mem::take(&mut seat.events);
        let readiness = Readiness { readable: true, ..Readiness::default() };
        if seat.has_frames() {
            events.push(Event { token: Token::only(Kind::Tap), readiness });
        }
        if seat.is_rung() {
            events.push(Event { token: Token::only(Kind::Mail), readiness });
        }
        disturb(&mut events);
        // Nobody watches a queue that is detached.
        let detached = seat.tap.0.borrow().detached;
        events.retain(|event| event.token.kind != Kind::Tap || !detached);
        worker.turn(now, &events).unwrap();
        if self.waits {
            worker.before_wait();
        }
        let elapsed = nanos - std::mem::replace(&mut seat.turned, nanos);
        if seat.bell.is_some() {
            let busy = self.strained || self.restless && self.rng.chance(500);
            let advice = worker.worked(now, Duration::from_nanos(if busy { elapsed } else { 0 }));
            worker.heed(now, advice);
            if self.restless && self.rng.chance(self.team.unrest) {
                let advice = self.any_advice();
                worker.heed(now, advice);
            }
        }
        while let Some(order) = worker.next_order() {
            self.obey(index, now, worker, order);
        }
        if self.seats[index].draining && !worker.guest_unfinished() && worker.drained() {
            self.drained = index == 0;
            self.seats[index].draining = index == 0;
        }
    }

    fn any_advice(&mut self) -> Advice {
        let to = self.rng.pick(&self.ids);
        let share = self.rng.range(0, 1000) as u16;
        match self.rng.range(0, 14) {
            0 => Advice::Shrink,
            1..=3 => Advice::Grow,
            4..=6 => Advice::Hire,
            7 => Advice::Dismiss,
            _ => Advice::Give { to, share },
        }
    }

    fn obey(&mut self, index: usize, now: Instant, worker: &mut SimWorker, order: Order) {
        match order {
            Order::Start(id) => {
                let seat = &mut self.seats[id.index()];
                let member = seat.spare.take().expect("a thread is started once");
                if self.rng.chance(self.team.lacks_threads) {
                    return worker.not_started(id);
                }
                let (tap, host) = (seat.tap.clone(), seat.host.clone());
                let mut other = Worker::new(now, tap, host, self.options.clone());
                other.join(now, member);
                seat.worker = Some(other);
                worker.started(now, id);
            }
            Order::Attach if self.rng.chance(self.team.lacks_queues) => {
                worker.attached(Err(Errno::E2BIG.into()));
            }
            Order::Attach => {
                let result = worker.frames_mut().set_attached(true);
                worker.attached(result);
            }
            Order::Detach => {
                worker.last_frames(now);
                worker.frames_mut().set_attached(false).unwrap();
                worker.detached();
            }
            Order::Drain => self.seats[index].draining = true,
            Order::Fail(error) => panic!("worker {index}: {error}"),
        }
    }

    /// When somebody has something to do.
    pub fn next(&self, now: u64, lead: &SimWorker) -> Option<u64> {
        let timeouts = self.workers(lead).filter_map(|worker| {
            let timeout = worker.timeout(Instant::from_nanos(now))?;
            // The engine's edge rounds up to milliseconds; the clock here only has to move.
            Some(now + (timeout.as_nanos() as u64).max(1000))
        });
        let waits = |seat: &&Seat| seat.has_frames() || seat.is_rung() || !seat.events.is_empty();
        let waiting = self.seats.iter().find(waits).map(|_| now + 1000);
        timeouts.chain(waiting).min()
    }

    /// Nobody has mail, or a frame to read.
    pub fn is_quiet(&self) -> bool {
        !self.seats.iter().any(|seat| seat.has_frames() || seat.is_rung())
    }

    /// Nobody has mail.
    pub fn is_silent(&self) -> bool {
        !self.seats.iter().any(|seat| seat.is_rung() && !seat.paused)
    }

    /// Workers send the acknowledgments that they owe.
    pub fn wait(&mut self, lead: &mut SimWorker) {
        lead.before_wait();
        self.others_mut().for_each(Worker::before_wait);
    }

    /// All workers whose threads run but the lead.
    pub fn others_mut(&mut self) -> impl Iterator<Item = &mut SimWorker> {
        self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut())
    }

    /// All workers whose threads run, the lead first.
    pub fn workers<'a>(&'a self, lead: &'a SimWorker) -> impl Iterator<Item = &'a SimWorker> {
        std::iter::once(lead).chain(self.seats.iter().filter_map(|seat| seat.worker.as_ref()))
    }

    /// How many flows are open.
    pub fn flow_count(&self, lead: &SimWorker) -> usize {
        self.workers(lead).map(Worker::flow_count).sum()
    }

    /// What all workers hold.
    pub fn held(&self, lead: &SimWorker) -> Held {
        let mut all = Held::default();
        for held in self.workers(lead).map(Worker::held) {
            all.slabs += held.slabs;
            all.copied_bytes += held.copied_bytes;
            all.backlog_bytes += held.backlog_bytes;
            all.promised_bytes += held.promised_bytes;
            all.reassembly_bytes += held.reassembly_bytes;
            all.timers += held.timers;
            all.queued += held.queued;
            all.syn_bytes += held.syn_bytes;
            all.mail_bytes += held.mail_bytes;
            // It is one directory.
            all.listed = all.listed.max(held.listed);
        }
        all
    }

    /// The engine's counters must agree with what went over the link.
    pub fn check_counters(&self, lead: &SimWorker) {
        let seats = self.seats.iter().filter(|seat| seat.host.1 == 0 || seat.worker.is_some());
        for (worker, seat) in self.workers(lead).zip(seats) {
            let (counters, tap) = (worker.counters(), seat.tap.0.borrow());
            assert_eq!(counters.frames_from_guest, tap.read, "frames from the guest");
            assert_eq!(counters.frames_to_guest, tap.written, "frames to the guest");
        }
    }
}

impl Seat {
    fn has_frames(&self) -> bool {
        let tap = self.tap.0.borrow();
        !tap.detached && !tap.inbound.is_empty()
    }

    /// Whether the worker's bell has been rung since it last looked. One whose thread does not run
    /// hears nothing.
    fn is_rung(&self) -> bool {
        let Some(bell) = self.bell.as_ref().filter(|_| self.spare.is_none()) else { return false };
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }
}

/// What the frames of one TCP connection have in common, in both directions: addresses and ports.
fn flow_of(frame: &[u8]) -> Option<Vec<u8>> {
    let (protocol, addresses, len, ports) = match frame.get(12..14)? {
        [0x08, 0x00] => (*frame.get(23)?, 26, 4, 14 + usize::from(frame.get(14)? & 15) * 4),
        [0x86, 0xdd] => (*frame.get(20)?, 22, 16, 54),
        _ => return None,
    };
    let end = |address: usize, port: usize| {
        Some([frame.get(address..address + len)?, frame.get(port..port + 2)?].concat())
    };
    let mut ends = [end(addresses, ports)?, end(addresses + len, ports + 2)?];
    ends.sort();
    (protocol == 6).then(|| ends.concat())
}
