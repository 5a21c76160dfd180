//! Several workers for one guest (D5): who does what, and how they come to agree.
//!
//! ```text
//!            queue 0 ─▶ lead ──────────┐ services, UDP, echo, listeners, commands; TCP flows
//!   TAP ────┤                          │ mail: packets of others' flows, flows, clients
//!            queue 1 ─▶ another worker ┘ TCP flows
//! ```
//! The *lead* is the first worker and the only one while there is little to do; the queues of the
//! others are detached then and their threads asleep, or not even started. A TCP flow belongs to
//! one worker at a time, and nothing of it is shared. Two things bring packets to the right place:
//!
//! - The kernel sends a flow's packets to the queue into which the flow was last written
//!   (`tun_flow_update`), and those of unknown flows to any queue by their hash. So a SYN chooses a
//!   worker, and that worker's SYN-ACK makes the choice known.
//! - The kernel forgets after three seconds without a write, knows 4,096 flows at most, and hashes
//!   differently when queues come or go. A worker that reads a packet of none of its flows asks the
//!   [`Directory`] and hands it over to the owner by [`Mail`].
//!
//! A flow changes hands as a whole, with its socket, its buffers and its machine: the mail and the
//! entry in the directory are one step. So whoever finds the new owner there finds the flow already
//! in that owner's mail, and packets that are read in between go round once more.
//!
//! The lead alone says who is at work. It *calls* a worker once that one's thread runs, and asks
//! the last to *retire*: that one gives everything back, says so, and sleeps. A worker that gets no
//! queue says that too, and is retired as any other. When the lead is the only one again and all
//! flows have come home, the directory is emptied and not used any more.
//!
//! One flow alone cannot be shared; the work for an upload can be cut in two ([`porter`]).
//!
//! What there is to do, and when, is in [`balance`]; how it is done in `walk_team`, `walk_across`
//! and `walk_carried`. The guest can choose neither worker nor queue, and what it can make workers send
//! each other is bounded.

pub(super) mod balance;
mod directory;
pub(super) mod mail;
pub(super) mod porter;
pub(super) mod quota;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use balance::{Advice, Help, IDLE, Load, Meter, Review, Worked};
use mail::{Inbox, Mail, Post, mailbox};
use porter::Engaged;
use quota::Quota;

pub(super) use directory::{Directory, Refusal};

use super::ports::SocketPort;
use super::trail::Trail;
use crate::base::Instant;

/// The most workers of one guest.
pub const MAX_WORKERS: usize = 64;

/// Which worker of a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId(u8);

impl WorkerId {
    /// The first worker.
    pub const LEAD: WorkerId = WorkerId(0);

    /// The first that is called.
    pub(super) const SECOND: WorkerId = WorkerId(1);

    /// Its place among the members, from 0 on.
    pub fn index(self) -> usize {
        self.0.into()
    }

    fn at(index: usize) -> WorkerId {
        // At most `MAX_WORKERS`.
        WorkerId(index as u8)
    }
}

/// What all workers see.
struct Shared {
    directory: Directory,
    /// TCP flows that began outside.
    inbound: Quota,
    /// Spliced connections that did.
    spliced: Quota,
    trail: Trail,
    /// How many are at work: those with the lowest numbers. The lead alone changes it.
    active: AtomicUsize,
    /// For each worker, its latest load and when that was: milliseconds of the clock, then
    /// sixteen bits of load.
    loads: Box<[AtomicU64]>,
    /// For each worker, nanoseconds at work since the start.
    busy: Box<[AtomicU64]>,
    /// Those of them for flows that others could be given.
    for_flows: Box<[AtomicU64]>,
}

/// How long a load says something: a worker that sleeps does not tell of it.
const FRESH: u64 = 50;

impl Shared {
    fn load(&self, worker: WorkerId, now: Instant) -> Load {
        let told = self.loads[worker.index()].load(Ordering::Relaxed);
        let age = now.as_millis().saturating_sub(told >> 16);
        // The lower sixteen bits.
        if age > FRESH { 0 } else { (told & 0xffff) as Load }
    }
}

/// A worker's part in its team. Its descriptor ([`AsFd`]) becomes readable when there is mail,
/// whose event is one of [`Kind::Mail`](super::token::Kind::Mail).
pub struct Member<S: SocketPort> {
    pub(super) id: WorkerId,
    shared: Arc<Shared>,
    posts: Box<[Post<S>]>,
    pub(super) inbox: Inbox<S>,
    pub(super) meter: Meter,
    /// Called, and not asked to retire: flows may be this worker's own.
    pub(super) attached: bool,
    /// Asked to retire, and has not said that it has.
    pub(super) retires: bool,
    /// The program is ending: no flow changes hands any more.
    pub(super) settled: bool,
    /// How often the packet at hand was handed over, and by whom it was last.
    pub(super) handed: Option<(u8, WorkerId)>,
    /// The porter that one of this worker's flows has, or is about to have.
    pub(super) hired: Option<Engaged>,
    /// The lead's: how it leads.
    pub(super) lead: Lead,
}

/// What only the lead keeps.
#[derive(Default)]
pub(super) struct Lead {
    /// Workers whose threads run, the lead's included.
    pub(super) started: usize,
    /// The thread of the next is to be started.
    pub(super) starting: bool,
    /// It is to be called as soon as its thread runs.
    pub(super) calling: bool,
    /// The most workers there may be; fewer if one could not be started, or got no queue.
    pub(super) most: usize,
    /// Workers that are never let go.
    pub(super) least: usize,
    /// The last worker has been asked to retire.
    pub(super) retiring: bool,
    /// Flows of the lead stand in the directory.
    pub(super) listed: bool,
    /// Whom the lead calls while its flows are entered there, and the place of the table to go on
    /// from.
    pub(super) entering: Option<(WorkerId, usize)>,
    /// Whom the next client goes to.
    pub(super) turn: usize,
    /// When to see whether all are needed.
    pub(super) review_at: Option<Instant>,
    /// What the last review of those at work saw.
    pub(super) reviewed: Option<Review>,
    /// Reviews in a row that found one too many.
    pub(super) light: u32,
    /// Workers that give no flow away any more.
    pub(super) settled: usize,
    /// Workers that have passed on all that the guest sent.
    pub(super) drained: usize,
}

/// The members of a team of `most` workers, the lead first, of whom `least` are always at work.
///
/// # Errors
/// Those of `eventfd(2)`.
pub fn members<S: SocketPort>(
    now: Instant,
    least: usize,
    most: usize,
) -> io::Result<Vec<Member<S>>> {
    let most = most.clamp(1, MAX_WORKERS);
    let (posts, inboxes): (Vec<Post<S>>, Vec<Inbox<S>>) =
        (0..most).map(|_| mailbox()).collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
    let zeros = || (0..most).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared {
        directory: Directory::new(),
        inbound: Quota::default(),
        spliced: Quota::default(),
        trail: Trail::default(),
        active: AtomicUsize::new(1),
        loads: zeros(),
        busy: zeros(),
        for_flows: zeros(),
    });
    let member = |(index, inbox): (usize, Inbox<S>)| Member {
        id: WorkerId::at(index),
        shared: Arc::clone(&shared),
        posts: posts.clone().into_boxed_slice(),
        inbox,
        meter: Meter::new(now),
        attached: index == 0,
        retires: false,
        settled: false,
        handed: None,
        hired: None,
        lead: Lead { started: 1, most, least: least.clamp(1, most), ..Lead::default() },
    };
    Ok(inboxes.into_iter().enumerate().map(member).collect())
}

impl<S: SocketPort> AsFd for Member<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.bell.wake.as_fd()
    }
}

impl<S: SocketPort> Member<S> {
    /// Which worker this is to be.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    pub(super) fn is_lead(&self) -> bool {
        self.id == WorkerId::LEAD
    }

    /// How many workers share the flows.
    pub(super) fn active(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// As the lead: so many share the flows from now on.
    pub(super) fn set_active(&self, active: usize) {
        self.shared.active.store(active, Ordering::Relaxed);
    }

    /// Who owns what; `None` while one worker owns everything.
    pub(super) fn directory(&self) -> Option<&Directory> {
        (self.lead.listed || !self.is_lead()).then_some(&self.shared.directory)
    }

    /// TCP flows of all workers that began outside.
    pub(super) fn inbound(&self) -> Quota {
        self.shared.inbound.clone()
    }

    /// Spliced connections of all workers that began outside.
    pub(super) fn spliced(&self) -> Quota {
        self.shared.spliced.clone()
    }

    /// Who went the short way lately, from any worker.
    pub(super) fn trail(&self) -> Trail {
        self.shared.trail.clone()
    }

    /// Bytes of packets in this worker's mail.
    pub(super) fn waiting(&self) -> usize {
        self.inbox.waiting()
    }

    /// Sends a message; whether it is under way.
    pub(super) fn send(&self, to: WorkerId, mail: Mail<S>) -> bool {
        self.posts[to.index()].send(mail)
    }

    /// The workers whose threads run, other than the lead. To be asked by the lead.
    pub(super) fn others(&self) -> impl Iterator<Item = WorkerId> + use<S> {
        (1..self.lead.started).map(WorkerId::at)
    }

    /// The next worker that could be called. To be asked by the lead.
    pub(super) fn next(&self) -> Option<WorkerId> {
        let active = self.active();
        (active < self.lead.most && !self.lead.retiring).then(|| WorkerId::at(active))
    }

    /// As the lead: there are at most so many workers from now on.
    pub(super) fn have_at_most(&mut self, most: usize) {
        self.lead.most = most.min(self.lead.most);
        self.lead.least = self.lead.least.min(self.lead.most);
    }

    /// The last of those at work.
    pub(super) fn last(&self) -> WorkerId {
        WorkerId::at(self.active() - 1)
    }

    /// How many can be given flows: of those at work, not who retires or is going to. Only the lead
    /// knows of these; whoever is given flows nevertheless gives them back.
    pub(super) fn takers(&self) -> usize {
        if !self.is_lead() {
            return self.active();
        }
        (self.active() - usize::from(self.lead.retiring)).min(self.lead.most)
    }

    /// Whom a new client goes to: all in turn.
    pub(super) fn worker_for_client(&mut self) -> WorkerId {
        self.lead.turn = (self.lead.turn + 1) % self.takers().max(1);
        WorkerId::at(self.lead.turn)
    }

    /// The worker was at work for so long until `now`, and has passed on so many bytes of the guest
    /// since the start; `carries` says whether it is a porter. What to do about it.
    pub(super) fn worked(
        &mut self,
        now: Instant,
        time: Duration,
        passed_on: u64,
        carries: bool,
    ) -> Advice {
        let worked = self.meter.worked(now, time, passed_on);
        let Some(Worked { load, busy, for_flows }) = worked else { return Advice::Nothing };
        let me = self.id.index();
        self.shared.loads[me].store(now.as_millis() << 16 | u64::from(load), Ordering::Relaxed);
        self.shared.busy[me].fetch_add(busy, Ordering::Relaxed);
        self.shared.for_flows[me].fetch_add(for_flows, Ordering::Relaxed);
        if !self.attached {
            return Advice::Nothing;
        }
        let others = (0..self.takers()).filter(|&index| index != me).map(WorkerId::at);
        let others = others.map(|worker| (worker, self.shared.load(worker, now)));
        // The others cannot know; the lead does.
        let may_grow = !self.is_lead() || self.next().is_some();
        if carries && self.meter.has_own_work(load) {
            return Advice::Resign;
        }
        self.meter.advice(load, others, may_grow, self.help(now))
    }

    /// Whether a porter can help.
    fn help(&self, now: Instant) -> Help {
        match self.hired {
            Some(_) => Help::Hired,
            None if self.porter(now).is_some() => Help::Possible,
            None => Help::None,
        }
    }

    /// Who could be a porter for this worker: of those at work, one who has had nothing to do; while
    /// there is only the lead, who would be called next, whether its thread runs or not.
    pub(super) fn porter(&self, now: Instant) -> Option<WorkerId> {
        if self.settled || !self.attached {
            return None;
        }
        if self.active() == 1 {
            return (self.is_lead() && self.lead.most > 1).then_some(WorkerId::SECOND);
        }
        let mut others = (0..self.takers()).rev().map(WorkerId::at).filter(|at| *at != self.id);
        others.find(|&worker| self.shared.load(worker, now) < IDLE)
    }

    /// Time at work until `now`, as a review has it.
    pub(super) fn review(&self, now: Instant) -> Review {
        let last = self.last().index();
        let nanos = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Review {
            at: now,
            total: self.shared.busy.iter().map(nanos).sum(),
            last: nanos(&self.shared.busy[last]),
            for_flows: nanos(&self.shared.for_flows[last]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::HostSockets;

    #[test]
    fn a_porter_is_who_has_nothing_to_do() {
        let mut team = members::<HostSockets>(Instant::ZERO, 1, 3).unwrap();
        let porter = |team: &[Member<HostSockets>], worker: usize, now| {
            team[worker].porter(now).map(WorkerId::index)
        };
        // While the lead is alone it is who would be called next.
        let now = Instant::ZERO + Duration::from_millis(10);
        assert_eq!([0, 1].map(|worker| porter(&team, worker, now)), [Some(1), None]);
        team.iter_mut().for_each(|member| member.attached = true);
        team[0].set_active(3);
        assert_eq!([0, 1, 2].map(|worker| porter(&team, worker, now)), [Some(2), Some(2), Some(1)]);
        team[2].worked(now, Duration::from_millis(1), 0, false);
        assert_eq!([0, 1, 2].map(|worker| porter(&team, worker, now)), [Some(1), Some(0), Some(1)]);
        // What was told long ago says nothing.
        let later = now + Duration::from_millis(100);
        assert_eq!(porter(&team, 0, later), Some(2));
        team[1].settled = true;
        assert_eq!(porter(&team, 1, later), None);
    }
}
