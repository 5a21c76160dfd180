//! The walk across: what a worker does for the others of its [`team`](super::team).
//!
//! ```text
//!   packet of none of our flows ─▶ directory ─▶ mail ─▶ the owner's walk out
//!   no time to spare            ─▶ balance   ─▶ flows by mail, or another worker
//!   little to do for all        ─▶ lead      ─▶ the last worker gives everything back
//! ```

use std::io;
use std::time::Duration;

use crate::base::{DropReason, Instant, Mac};
use crate::observe::{Direction, FlowTransport};
use crate::stack::ip::{self, Packet, Parsed};
use crate::stack::wire::VnetHeader;

use super::command::Command;
use super::ports::{FramePort, SocketPort};
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::balance::{Advice, LIGHT, REVIEW};
use super::team::mail::Mail;
use super::team::{Member, WorkerId};
use super::token::{Kind, Token};
use super::worker::Worker;

/// Messages read in one turn.
const MAIL_BATCH: usize = 256;

/// Flows given back in one turn.
const GIVE_BATCH: usize = 256;

/// How often a packet is handed over before it is given up: owners change rarely.
const MAX_HOPS: u8 = 4;

/// Packets in a row that another worker had to hand over before the flow follows them.
const STRAYS: u8 = 16;

/// What the loop around a worker has to do for the team: it knows queues and threads.
#[derive(Debug)]
pub(super) enum Order {
    /// Start the thread of a worker. From the lead only.
    Start(WorkerId),
    /// Attach the worker's own queue.
    Attach,
    /// Detach the worker's own queue, and tell [`Worker::detached`].
    Detach,
    /// The guest's command is over: pass on what it has sent.
    Drain,
    /// End: a worker cannot go on.
    Fail(io::Error),
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Makes the worker a member of a team.
    pub(super) fn join(&mut self, now: Instant, member: Member<S>) {
        self.ledger.number(member.id.index() as u64, member.lead.most as u64);
        let least = member.lead.least;
        let lead = member.is_lead();
        self.queue_attached = lead;
        self.team = Some(member);
        self.divide_memory();
        if lead {
            (1..least).for_each(|_| self.grow(now));
        }
    }

    /// Who owns the connection that a packet belongs to, if it is not for this worker to say what
    /// becomes of it. `None`: it is nobody's, or new.
    pub(super) fn elsewhere(&self, key: &TcpKey) -> Option<WorkerId> {
        let team = self.team.as_ref()?;
        match team.directory()?.owner(key) {
            // The flow may be in our mail; whoever has been round and finds nothing is late.
            Some(owner) if owner == team.id => team.handed.is_none().then_some(owner),
            Some(owner) => Some(owner),
            None => (!team.attached).then_some(WorkerId::LEAD),
        }
    }

    /// Gives a packet to the worker whose flow it belongs to.
    pub(super) fn hand_over(
        &mut self,
        to: WorkerId,
        source_mac: Mac,
        packet: &Packet<'_>,
    ) -> Result<(), DropReason> {
        let Some(team) = &self.team else { return Err(DropReason::HandOver) };
        let hops = team.handed.map_or(0, |(hops, _)| hops + 1);
        let mail = Mail::Packet { from: team.id, source_mac, hops, bytes: packet.bytes.into() };
        if hops < MAX_HOPS && team.send(to, mail) { Ok(()) } else { Err(DropReason::HandOver) }
    }

    /// Gives a frame to the lead if it is for what only the lead has. `None` if this worker is to
    /// look at it.
    pub(super) fn hand_to_lead(
        &mut self,
        frame: &[u8],
        parsed: Option<&Parsed<'_>>,
    ) -> Option<Result<(), DropReason>> {
        use crate::stack::wire::protocol::TCP;
        let team = self.team.as_ref().filter(|team| !team.is_lead())?;
        if parsed.is_some_and(|parsed| matches!(parsed, Parsed::Whole(p) if p.protocol == TCP)) {
            return None;
        }
        let sent = team.send(WorkerId::LEAD, Mail::Frame(frame.into()));
        Some(if sent { Ok(()) } else { Err(DropReason::HandOver) })
    }

    /// Reads what the others have sent.
    pub(super) fn read_mail(&mut self, now: Instant) {
        for _ in 0..MAIL_BATCH {
            let Some(mail) = self.team.as_ref().and_then(|team| team.inbox.next()) else { return };
            self.on_mail(now, mail);
        }
        if let Some(team) = &self.team {
            team.inbox.bell.ring();
        }
    }

    fn on_mail(&mut self, now: Instant, mail: Mail<S>) {
        match mail {
            Mail::Frame(frame) => {
                if let Err(reason) = self.on_frame(now, &frame) {
                    self.io.drop_frame(reason);
                }
                self.flush_datagrams();
            }
            Mail::Packet { from, source_mac, hops, bytes } => {
                self.set_handed(Some((hops, from)));
                if let Err(reason) = self.on_packet_from(now, source_mac, &bytes) {
                    self.io.drop_frame(reason);
                }
                self.set_handed(None);
            }
            Mail::Flow(flow) => self.adopt(*flow),
            Mail::Client { rule, guest_mac, accepted } => {
                self.ledger.add_forward(rule.forward);
                // One that cannot be watched is closed.
                if self.io.host.adopt(self.tcp.next_token(), &accepted.stream).is_ok() {
                    self.take_client(now, rule, Some(guest_mac), accepted);
                }
            }
            Mail::Join(exposures) => {
                exposures.ids().for_each(|id| self.ledger.add_forward(id));
                self.exposures = *exposures;
                self.set_attached(true);
                self.orders.push(Order::Attach);
            }
            // Seen to at the end of every turn from here on.
            Mail::Retire => self.set_attached(false),
            Mail::Retired(worker) => self.on_retired(worker),
            Mail::Busy => self.grow(now),
            Mail::Command(command) => self.obey(now, *command),
            Mail::Drained => {
                if let Some(team) = &mut self.team {
                    team.lead.drained += 1;
                }
            }
            Mail::Failed(error) => self.orders.push(Order::Fail(error)),
        }
    }

    /// Another worker whose turn it is to take a client.
    pub(super) fn another_for_client(&mut self) -> Option<WorkerId> {
        let team = self.team.as_mut().filter(|team| team.active() > 1)?;
        Some(team.worker_for_client()).filter(|to| *to != team.id)
    }

    /// Gives a client to another worker.
    pub(super) fn send_client(&mut self, to: WorkerId, client: Mail<S>) {
        if let Some(team) = &self.team {
            team.send(to, client);
        }
    }

    fn set_handed(&mut self, handed: Option<(u8, WorkerId)>) {
        if let Some(team) = &mut self.team {
            team.handed = handed;
        }
    }

    fn set_attached(&mut self, attached: bool) {
        if let Some(team) = &mut self.team {
            team.attached = attached;
        }
    }

    fn on_packet_from(
        &mut self,
        now: Instant,
        source_mac: Mac,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let parsed = match bytes.first().map(|first| first >> 4) {
            Some(4) => ip::parse_v4(bytes)?,
            _ => ip::parse_v6(bytes)?,
        };
        let vouched = VnetHeader { checksum_valid: true, ..VnetHeader::default() };
        match parsed {
            Parsed::Whole(packet) => self.on_packet(now, &vouched, source_mac, false, &packet),
            Parsed::Fragment(_) => Err(DropReason::BadFragment),
        }
    }

    /// A packet for the flow has come, by the worker's own queue or handed over. A flow whose
    /// packets keep coming by another queue goes there.
    pub(super) fn follow_packets(&mut self, token: Token) {
        let Some(team) = &self.team else { return };
        let Some(flow) = self.tcp.get_mut(token) else { return };
        let Some((_, from)) = team.handed.filter(|(_, from)| *from != team.id) else {
            flow.strays = 0;
            return;
        };
        flow.strays += 1;
        if flow.strays >= STRAYS && team.attached && from.index() < team.active() {
            self.give(token, from);
        }
    }

    /// Gives a flow to another worker.
    fn give(&mut self, token: Token, to: WorkerId) {
        let Some((key, mut flow)) = self.tcp.remove(token) else { return };
        self.inbound_tcp -= usize::from(flow.account.direction == Direction::Inbound);
        flow.leave(&mut self.io);
        let Some(team) = &self.team else { return };
        // In this order: see the head of `team`.
        team.send(to, Mail::Flow(Box::new(flow)));
        if let Some(directory) = team.directory() {
            directory.pass(&key, to);
        }
    }

    /// Takes a flow that another worker has given.
    fn adopt(&mut self, mut flow: TcpFlow<S>) {
        let token = self.tcp.next_token();
        let key = flow.key;
        if flow.arrive(token, &mut self.io).is_err() {
            // No memory for another event: as if the host had lost the connection.
            flow.abort(&mut self.io, &mut self.actions);
            self.ledger.close(FlowTransport::Tcp, &flow.account, flow.answered);
            flow.release(&mut self.io);
            if let Some(directory) = self.team.as_ref().and_then(Member::directory) {
                directory.release(&key);
            }
            return;
        }
        if let Some(id) = flow.account.forward {
            self.ledger.add_forward(id);
        }
        self.inbound_tcp += usize::from(flow.account.direction == Direction::Inbound);
        // The directory holds every key once, so the table does.
        self.tcp.insert(key, flow);
        if let Some(team) = &mut self.team {
            team.meter.rest();
        }
        // What it waits for is waited for here.
        self.with_tcp(token, |_, _, _| ());
    }

    /// The worker was at work for so long until `now`. Called once for each turn.
    pub(super) fn worked(&mut self, now: Instant, time: Duration) {
        let Some(team) = &mut self.team else { return };
        match team.worked(now, time) {
            Advice::Nothing => {}
            Advice::Give { to, share } => {
                let tokens = team.meter.pick(share);
                team.meter.rest();
                tokens.into_iter().for_each(|token| self.give(token, to));
            }
            Advice::Grow if team.is_lead() => self.grow(now),
            Advice::Grow => {
                team.meter.rest();
                team.send(WorkerId::LEAD, Mail::Busy);
            }
        }
        self.give_back();
    }

    /// Takes this worker's part of the memory, or all of it.
    fn divide_memory(&mut self) {
        let Some(team) = &self.team else { return };
        let alone = team.is_lead() && team.active() == 1;
        self.io.limits = if alone { self.limits } else { self.limits.share(team.lead.most) };
        self.io.pool.set_limit(self.io.limits.slabs);
    }

    /// As the lead: calls another worker.
    fn grow(&mut self, now: Instant) {
        let Some(team) = &mut self.team else { return };
        let Some(next) = team.next() else { return };
        let active = team.active();
        team.set_active(active + 1);
        team.meter.rest();
        (team.lead.reviewed, team.lead.light) = (Some((now, team.total_busy())), 0);
        if next.index() >= team.lead.started {
            team.lead.started = next.index() + 1;
            self.orders.push(Order::Start(next));
        }
        if active == 1
            && let Some(directory) = team.directory()
        {
            for (_, key, _) in self.tcp.iter() {
                // Nobody else has entered anything yet.
                let _ = directory.claim(*key, team.id);
            }
            if team.lead.most > team.lead.least {
                self.wheel.insert(now + REVIEW, Token::only(Kind::Team));
            }
        }
        team.send(next, Mail::Join(Box::new(self.exposures.clone())));
        let resolvers = Command::SetResolvers(self.resolvers.clone());
        team.send(next, Mail::Command(Box::new(resolvers)));
        self.divide_memory();
        tracing::debug!(workers = active + 1, "another worker");
    }

    /// As the lead: the thread of `worker` cannot be started. Nothing has been given to it yet.
    pub(super) fn not_started(&mut self, worker: WorkerId) {
        let Some(team) = &mut self.team else { return };
        team.lead.most = worker.index();
        team.lead.started = worker.index();
        self.shrink_to(worker.index());
    }

    /// As the lead: is the last worker needed any more?
    pub(super) fn review_team(&mut self, now: Instant) {
        let Some(team) = &mut self.team else { return };
        if team.active() == 1 {
            return;
        }
        self.wheel.insert(now + REVIEW, Token::only(Kind::Team));
        let busy = team.total_busy();
        if let Some((then, before)) = team.lead.reviewed.replace((now, busy)) {
            let elapsed = now.since(then).as_nanos().max(1);
            let light = u128::from(busy - before) * 1000 < elapsed * u128::from(LIGHT);
            team.lead.light = if light { team.lead.light + 1 } else { 0 };
        }
        if team.lead.light >= 2 && !team.lead.retiring && team.active() > team.lead.least {
            team.lead.retiring = true;
            team.send(team.last(), Mail::Retire);
        }
    }

    /// As a worker that has been asked to retire: gives everything back, a part in each turn.
    fn give_back(&mut self) {
        let Some(team) = &self.team else { return };
        if team.attached || team.is_lead() {
            return;
        }
        let tokens: Vec<Token> =
            self.tcp.iter().take(GIVE_BATCH).map(|(token, ..)| token).collect();
        tokens.into_iter().for_each(|token| self.give(token, WorkerId::LEAD));
        if !self.tcp.is_empty() {
            self.team.as_ref().inspect(|team| team.inbox.bell.ring());
        } else if self.queue_attached {
            self.orders.push(Order::Detach);
        }
    }

    /// What the loop around has to do, in order.
    pub(super) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// The worker's own part of draining is over. As the lead: whether that of the others is too.
    pub(super) fn drained(&mut self) -> bool {
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

    /// The queue is detached, or could not be attached.
    pub(super) fn detached(&mut self) {
        self.set_attached(false);
        self.queue_attached = false;
        if let Some(team) = &self.team {
            team.send(WorkerId::LEAD, Mail::Retired(team.id));
        }
    }

    /// As the lead: a worker has no flow and no queue any more.
    fn on_retired(&mut self, worker: WorkerId) {
        let Some(team) = &mut self.team else { return };
        if !std::mem::take(&mut team.lead.retiring) {
            // It could not attach its queue: it will never be called again.
            team.lead.most = worker.index();
        }
        self.shrink_to(worker.index());
    }

    fn shrink_to(&mut self, active: usize) {
        let Some(team) = &mut self.team else { return };
        if active == 1
            && let Some(directory) = team.directory()
        {
            directory.clear();
        }
        team.set_active(active);
        team.lead.light = 0;
        self.divide_memory();
        tracing::debug!(workers = active, "one worker less");
    }
}
