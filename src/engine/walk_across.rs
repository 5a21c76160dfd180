//! The walk across: what a worker does for the others of its [`team`](super::team).
//!
//! ```text
//!   packet of none of our flows ─▶ directory ─▶ mail ─▶ the owner's walk out
//!   no time to spare            ─▶ balance   ─▶ flows by mail, or another worker
//!   little to do for all        ─▶ lead      ─▶ the last worker gives everything back
//! ```
//! Who is at work, and since when, is in `walk_team`.

use crate::base::{DropReason, Instant, Mac};
use crate::observe::Direction;
use crate::stack::ip::{self, Packet, Parsed};
use crate::stack::wire::VnetHeader;

use super::ports::{FramePort, SocketPort};
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::WorkerId;
use super::team::mail::Mail;
use super::token::Token;
use super::walk_team::Order;
use super::worker::Worker;

/// Messages read in one turn.
const MAIL_BATCH: usize = 256;

/// How often a packet is handed over before it is given up: owners change rarely.
const MAX_HOPS: u8 = 4;

/// Packets in a row that another worker had to hand over before the flow follows them.
const STRAYS: u8 = 16;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Who owns the connection that a packet belongs to, if it is not for this worker to say what
    /// becomes of it. `None`: it is nobody's, or new.
    pub(super) fn elsewhere(&self, key: &TcpKey) -> Option<WorkerId> {
        let team = self.team.as_ref()?;
        // If it is this worker, the flow is in its mail, and the packet goes behind it.
        team.directory()?.owner(key).or((!team.attached).then_some(WorkerId::LEAD))
    }

    /// Gives a packet to the worker whose flow it belongs to.
    pub(super) fn hand_over(
        &mut self,
        to: WorkerId,
        source_mac: Mac,
        packet: &Packet<'_>,
    ) -> Result<(), DropReason> {
        let Some(team) = &mut self.team else { return Err(DropReason::HandOver) };
        team.meter.note_other();
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
            let Some(mail) = self.team.as_ref().and_then(|team| team.inbox.next()) else {
                return self.send_load();
            };
            let called = matches!(mail, Mail::Join(_));
            self.on_mail(now, mail);
            if called {
                // What follows is for a worker that has its queue.
                break;
            }
        }
        self.send_load();
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
                self.make_room(Direction::Inbound);
                // One that cannot be watched is closed.
                if self.io.host.adopt(self.tcp.next_token(), &accepted.stream).is_ok() {
                    self.serve_client(now, rule, Some(guest_mac), accepted);
                }
            }
            Mail::Join(ports) => self.on_call(*ports),
            Mail::NoQueue(worker) => self.on_no_queue(worker),
            Mail::Retire => self.on_retire(),
            Mail::Retired(worker) => self.on_retired(worker),
            Mail::Busy => self.grow(now),
            Mail::Forward(id) => {
                self.ledger.add_forward(id);
            }
            Mail::Command(command) => self.obey(now, *command),
            Mail::Hire(owner, flow, stream) => self.take_load(owner, flow, stream),
            Mail::Ready(flow, ready) => self.on_ready(flow, ready),
            Mail::Resign(flow) => self.on_resignation(flow),
            Mail::Carry(owner, flow, parcel) => self.take_parcel(owner, flow, parcel),
            Mail::Return(owner, flow) => self.return_load(owner, flow),
            Mail::LetGo(owner, flow) => self.drop_load(owner, flow),
            Mail::Delivered(delivery) => self.on_delivery(delivery),
            Mail::Settle => self.settle(),
            Mail::Settled => self.on_settled(),
            Mail::Drained => {
                if let Some(team) = &mut self.team {
                    team.lead.drained += 1;
                }
            }
            Mail::Failed(error) => self.orders.push_back(Order::Fail(error)),
        }
    }

    /// Another worker whose turn it is to take a client.
    pub(super) fn another_for_client(&mut self) -> Option<WorkerId> {
        let team = self.team.as_mut().filter(|team| team.active() > 1 && !team.settled)?;
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

    pub(super) fn on_packet_from(
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
        flow.strays = flow.strays.saturating_add(1);
        if flow.strays >= STRAYS && team.attached && from.index() < team.takers() {
            self.give(token, from);
        }
    }

    /// Gives a flow to another worker; whether it is gone. One that has a porter stays until it does
    /// without.
    pub(super) fn give(&mut self, token: Token, to: WorkerId) -> bool {
        let Some(team) = self.team.as_ref().filter(|team| !team.settled) else { return false };
        let Some(directory) = team.directory() else { return false };
        if team.hired.is_some_and(|hired| hired.flow == token) {
            return false;
        }
        let Some((key, mut flow)) = self.tcp.remove(token) else { return false };
        self.resting.tidy(&flow, &self.tcp);
        flow.leave(&mut self.io);
        directory.pass(&key, to, || {
            team.send(to, Mail::Flow(Box::new(flow)));
        });
        true
    }

    /// Takes a flow that another worker has given.
    fn adopt(&mut self, mut flow: TcpFlow<S>) {
        let token = self.tcp.next_token();
        let key = flow.key;
        if flow.arrive(token, &mut self.io).is_err() {
            // No memory for another event: as if the host had lost the connection.
            flow.abort(&mut self.io, &mut self.actions);
            self.forget_tcp(flow);
            return;
        }
        // The directory holds every key once, and as many as a table, so there is room.
        self.tcp.insert(key, flow);
        if let Some(team) = &mut self.team {
            team.meter.rest();
        }
        // What it waits for is waited for here.
        self.with_tcp(token, |_, _, _| ());
    }
}
