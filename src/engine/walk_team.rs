//! How a worker comes to a [`team`](super::team), and what its lead decides: who is at work.
//!
//! ```text
//!   lead    Grow ─▶ Order::Start ─▶ started       Shrink                        shrinks
//!                                      │ Join        │ Retire                      ▲ Retired
//!   worker                             ▼             ▼                             │
//!                     Order::Attach ◀──┘             gives back ─▶ Order::Detach ──┘
//! ```
//! A worker knows neither threads nor queues: [`Order`]s tell the loop around it what to do with
//! them, and that loop tells the worker what came of it. Only the last of those at work retires,
//! one at a time.

use std::io;
use std::time::Duration;

use crate::base::Instant;
use crate::gate::forward::ForwardId;

use super::command::Command;
use super::exposures::Exposures;
use super::ports::{FramePort, SocketPort};
use super::team::balance::{Advice, REVIEW};
use super::team::mail::Mail;
use super::team::{Member, WorkerId};
use super::token::{Kind, Token};
use super::worker::Worker;

/// Flows given back in one turn.
const GIVE_BATCH: usize = 256;

/// Places of the table whose flows are entered in the directory in one turn: half a millisecond.
const ENTER_BATCH: usize = 2048;

/// Batches of frames read from a queue before it is detached, at most: what comes later is lost and
/// sent again.
const LAST_BATCHES: usize = 16;

/// Reviews in a row that find a worker too many before it retires.
const LIGHT_REVIEWS: u32 = 2;

/// What the loop around a worker has to do for the team: it knows queues and threads.
#[derive(Debug)]
pub enum Order {
    /// Start the thread of a worker, and tell [`Worker::started`] or [`Worker::not_started`]. From
    /// the lead only.
    Start(WorkerId),
    /// Attach the worker's own queue, and tell [`Worker::attached`].
    Attach,
    /// Read the [`Worker::last_frames`] of the worker's own queue, detach it, and tell
    /// [`Worker::detached`].
    Detach,
    /// The guest's command is over: pass on what it has sent, and tell [`Worker::drained`].
    Drain,
    /// End: a worker cannot go on.
    Fail(io::Error),
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Makes the worker a member of a team. To be called before its first turn.
    pub fn join(&mut self, now: Instant, member: Member<S>) {
        self.ledger.number(member.id.index() as u64, member.lead.most as u64);
        let least = member.lead.least;
        let lead = member.is_lead();
        self.queue_attached = lead;
        self.inbound_tcp = member.inbound();
        self.inbound_spliced = member.spliced();
        self.trail = member.trail();
        self.team = Some(member);
        self.divide_memory();
        if lead && least > 1 {
            self.grow(now);
        }
    }

    /// What the loop around has to do next. To be asked after each turn until there is nothing.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// The worker was at work for so long until `now`. To be called once for each turn; gives what
    /// to do about it.
    pub fn worked(&mut self, now: Instant, time: Duration) -> Advice {
        self.give_back();
        self.enter_flows(now);
        self.come_home();
        let passed_on = self.io.passed_on;
        let carries = self.load.is_some();
        let team = self.team.as_mut();
        team.map_or(Advice::Nothing, |team| team.worked(now, time, passed_on, carries))
    }

    /// Does what is advised, as far as the team allows.
    pub fn heed(&mut self, now: Instant, advice: Advice) {
        let Some(team) = &mut self.team else { return };
        match advice {
            Advice::Nothing => {}
            Advice::Give { to, share } => {
                if to == team.id || to.index() >= team.takers() || !team.attached {
                    return;
                }
                let tokens = team.meter.pick(share);
                team.meter.rest();
                for token in tokens {
                    self.give(token, to);
                }
            }
            Advice::Grow if team.is_lead() => self.grow(now),
            Advice::Grow => {
                team.meter.rest();
                team.send(WorkerId::LEAD, Mail::Busy);
            }
            Advice::Shrink => {
                if team.is_lead() && team.active() > team.lead.least {
                    self.retire_last();
                }
            }
            Advice::Hire => self.hire_porter(now),
            Advice::Dismiss => self.let_porter_go(),
            Advice::Resign => self.resign(),
        }
    }

    /// Takes this worker's part of the memory, or all of it.
    fn divide_memory(&mut self) {
        let Some(team) = &self.team else { return };
        let alone = team.is_lead() && team.active() == 1;
        self.io.limits = if alone { self.limits } else { self.limits.share(team.lead.most) };
        self.io.pool.set_limit(self.io.limits.slabs);
    }

    /// As the lead: calls another worker, whose thread may have to be started first.
    pub(super) fn grow(&mut self, now: Instant) {
        let Some(team) = &mut self.team else { return };
        let Some(next) = team.next().filter(|_| !team.settled) else { return };
        if team.lead.entering.is_some() {
            return;
        }
        if next.index() < team.lead.started {
            return self.call(now, next);
        }
        team.lead.calling = true;
        if !std::mem::replace(&mut team.lead.starting, true) {
            self.orders.push_back(Order::Start(next));
        }
    }

    /// As the lead: the thread of `worker` runs.
    pub fn started(&mut self, now: Instant, worker: WorkerId) {
        // One that is started at the end is told nothing, and asked for nothing.
        let Some(team) = self.team.as_mut().filter(|team| !team.settled) else { return };
        team.lead.starting = false;
        team.lead.started = worker.index() + 1;
        if std::mem::take(&mut team.lead.calling) && team.next() == Some(worker) {
            self.call(now, worker);
        }
        if self.team.as_ref().is_some_and(|team| team.active() < team.lead.least) {
            self.grow(now);
        }
    }

    /// As the lead: the thread of `worker` cannot be started. Nobody has been told of it.
    pub fn not_started(&mut self, worker: WorkerId) {
        let Some(team) = &mut self.team else { return };
        (team.lead.starting, team.lead.calling) = (false, false);
        team.have_at_most(worker.index());
    }

    /// As the lead: `worker` is to take part. Before it reads a packet the directory has to tell
    /// whose every connection is, or it would answer with resets.
    fn call(&mut self, now: Instant, worker: WorkerId) {
        let Some(team) = &mut self.team else { return };
        let first = if team.lead.listed { usize::MAX } else { 0 };
        team.lead.entering = Some((worker, first));
        team.lead.listed = true;
        self.enter_flows(now);
    }

    /// As the lead who calls another: enters its flows in the directory, as many in each turn as do
    /// not keep others waiting. Those that begin and end meanwhile are entered and taken out as they
    /// do.
    fn enter_flows(&mut self, now: Instant) {
        let Some(team) = &mut self.team else { return };
        let Some((worker, first)) = team.lead.entering else { return };
        let end = first.saturating_add(ENTER_BATCH);
        if let Some(keys) = self.tcp.keys(first..end)
            && let Some(directory) = team.directory()
        {
            for key in keys {
                // It is refused if it has been entered; there is room for as many as a table holds.
                let _ = directory.claim(*key, team.id, self.limits.tcp_flows);
            }
        }
        if self.tcp.keys(end..end.saturating_add(1)).is_some() {
            team.lead.entering = Some((worker, end));
            // Another turn, whatever happens.
            return team.inbox.bell.ring();
        }
        team.lead.entering = None;
        if !team.settled && team.next() == Some(worker) {
            self.welcome(now, worker);
        }
    }

    /// As the lead: from here on `worker` takes part.
    fn welcome(&mut self, now: Instant, worker: WorkerId) {
        self.let_porter_go();
        let Some(team) = &mut self.team else { return };
        team.set_active(worker.index() + 1);
        team.meter.rest();
        (team.lead.reviewed, team.lead.light) = (Some(team.review(now)), 0);
        let forwards = self.ledger.forwards().collect();
        team.send(worker, Mail::Join(Box::new((self.exposures.clone(), forwards))));
        let resolvers = Command::SetResolvers(self.resolvers.clone());
        team.send(worker, Mail::Command(Box::new(resolvers)));
        self.schedule_review(now);
        self.divide_memory();
        tracing::debug!(workers = worker.index() + 1, "another worker");
    }

    /// As a worker that is called: its part begins when it has its queue.
    pub(super) fn on_call(&mut self, (exposures, forwards): (Exposures, Vec<ForwardId>)) {
        let Some(team) = &mut self.team else { return };
        team.attached = true;
        self.exposures = exposures;
        for id in forwards {
            self.ledger.add_forward(id);
        }
        self.orders.push_back(Order::Attach);
    }

    /// The queue is attached, or cannot be.
    pub fn attached(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.queue_attached = true,
            Err(error) => {
                tracing::warn!(%error, "another worker gets no queue of the TAP");
                let Some(team) = &mut self.team else { return };
                team.attached = false;
                team.send(WorkerId::LEAD, Mail::NoQueue(team.id));
            }
        }
    }

    /// As the lead: a worker that was called is of no use, nor are those behind it.
    pub(super) fn on_no_queue(&mut self, worker: WorkerId) {
        if let Some(team) = &mut self.team {
            team.have_at_most(worker.index());
            self.retire_surplus();
        }
    }

    /// As the lead: who is at work beyond those that there may be has to retire.
    fn retire_surplus(&mut self) {
        if self.team.as_ref().is_some_and(|team| team.active() > team.lead.most) {
            self.retire_last();
        }
    }

    /// As the lead: asks the last worker to retire, unless one is at it.
    fn retire_last(&mut self) {
        let Some(team) = self.team.as_mut().filter(|team| team.active() > 1) else { return };
        if !std::mem::replace(&mut team.lead.retiring, true) {
            team.send(team.last(), Mail::Retire);
        }
    }

    /// As a worker that is asked to retire. The rest is seen to after every turn from here on.
    pub(super) fn on_retire(&mut self) {
        if let Some(team) = &mut self.team {
            (team.attached, team.retires) = (false, true);
        }
        self.let_porter_go();
    }

    /// As a worker whose part is over, or that was given flows nevertheless: gives everything back,
    /// as much in each turn as does not keep others waiting.
    fn give_back(&mut self) {
        let Some(team) = &mut self.team else { return };
        if team.attached || team.settled {
            return;
        }
        if self.tcp.is_empty() {
            if std::mem::take(&mut team.retires) {
                match self.queue_attached {
                    true => self.orders.push_back(Order::Detach),
                    false => self.detached(),
                }
            }
            return;
        }
        for _ in 0..GIVE_BATCH {
            let Some(token) = self.tcp.oldest() else { break };
            if !self.give(token, WorkerId::LEAD) {
                // It can when its porter has returned what it has, by mail.
                return;
            }
        }
        if let Some(team) = &self.team {
            // Another turn, if only to say that everything is given back.
            team.inbox.bell.ring();
        }
    }

    /// Reads what is left in a queue that is about to be detached.
    pub fn last_frames(&mut self, now: Instant) {
        for _ in 0..LAST_BATCHES {
            let before = self.counters().frames_from_guest;
            // An error is met again when the queue is attached next.
            if self.read_frames(now).is_err() || self.counters().frames_from_guest == before {
                return;
            }
        }
    }

    /// The queue is detached.
    pub fn detached(&mut self) {
        self.queue_attached = false;
        if let Some(team) = &self.team {
            team.send(WorkerId::LEAD, Mail::Retired(team.id));
        }
    }

    /// As the lead: the last worker has no flow and no queue any more.
    pub(super) fn on_retired(&mut self, worker: WorkerId) {
        let Some(team) = &mut self.team else { return };
        team.lead.retiring = false;
        team.set_active(worker.index());
        // What was seen of the one that is gone says nothing of the last one now.
        (team.lead.reviewed, team.lead.light) = (None, 0);
        self.divide_memory();
        tracing::debug!(workers = worker.index(), "one worker less");
        self.retire_surplus();
    }

    /// As the lead: when nobody else is at work and all flows are here, the directory is not
    /// needed. Flows that others gave each other while one of them retired may be on their way for
    /// longer.
    fn come_home(&mut self) {
        let Some(team) = &mut self.team else { return };
        if !team.lead.listed || team.active() > 1 || team.lead.entering.is_some() {
            return;
        }
        if let Some(directory) = team.directory()
            && directory.len() == self.tcp.len()
        {
            directory.clear();
            team.lead.listed = false;
        }
    }

    /// As the lead: makes sure that it is reviewed whether all workers are needed.
    pub(super) fn schedule_review(&mut self, now: Instant) {
        let Some(team) = self.team.as_mut().filter(|team| team.active() > 1) else { return };
        if team.lead.most > team.lead.least && team.lead.review_at.is_none() {
            team.lead.review_at = Some(now + REVIEW);
            self.wheel.insert(now + REVIEW, Token::only(Kind::Team));
        }
    }

    /// As the lead: is the last worker needed any more?
    pub(super) fn review_team(&mut self, now: Instant) {
        let Some(team) = &mut self.team else { return };
        if team.lead.review_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let review = team.review(now);
        if let Some(before) = team.lead.reviewed.replace(review) {
            let light = review.finds_one_too_many(&before);
            team.lead.light = if light { team.lead.light + 1 } else { 0 };
        }
        if team.lead.light >= LIGHT_REVIEWS {
            self.heed(now, Advice::Shrink);
        }
        self.schedule_review(now);
    }

    /// As the lead: the guest's command is over. Flows that are on their way between workers would
    /// be overlooked, so everybody settles first.
    pub(super) fn drain_team(&mut self) {
        self.let_porter_go();
        let Some(team) = &mut self.team else { return self.orders.push_back(Order::Drain) };
        if std::mem::replace(&mut team.settled, true) {
            return;
        }
        team.others().for_each(|worker| {
            team.send(worker, Mail::Settle);
        });
        self.begin_draining();
    }

    /// As another worker: no flow leaves from here on.
    pub(super) fn settle(&mut self) {
        self.let_porter_go();
        if let Some(team) = &mut self.team {
            team.settled = true;
            team.send(WorkerId::LEAD, Mail::Settled);
        }
    }

    /// As the lead: one more has settled.
    pub(super) fn on_settled(&mut self) {
        if let Some(team) = &mut self.team {
            team.lead.settled += 1;
            self.begin_draining();
        }
    }

    /// As the lead: when all have settled, everybody drains. What they gave each other before is in
    /// front of the command, wherever it is.
    fn begin_draining(&mut self) {
        let Some(team) = &self.team else { return };
        if team.lead.settled + 1 < team.lead.started {
            return;
        }
        team.others().for_each(|worker| {
            team.send(worker, Mail::Command(Box::new(Command::Drain)));
        });
        self.orders.push_back(Order::Drain);
    }

    /// The worker's own part of draining is over. As the lead: whether that of the others is too.
    pub fn drained(&mut self) -> bool {
        let Some(team) = &self.team else { return true };
        if !team.is_lead() {
            return team.send(WorkerId::LEAD, Mail::Drained);
        }
        team.lead.drained + 1 >= team.lead.started
    }

    /// The worker cannot go on, so the guest's network is gone. Gives the end of this thread.
    pub(super) fn fail(self, error: io::Error) -> super::thread::End {
        match self.team.filter(|team| !team.is_lead()) {
            Some(team) => {
                team.send(WorkerId::LEAD, Mail::Failed(error));
                super::thread::End::Drained
            }
            None => super::thread::End::Failed(error),
        }
    }
}
