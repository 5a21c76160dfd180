//! The walk of bytes that a [`porter`](super::team::porter) carries, on both sides: the owner's, who
//! hires one and gives it parcels, and the porter's, who sends them.
//!
//! ```text
//!   owner    Hire ─▶ socket once more ──▶ frame ─▶ parcel …              ◀─ delivery ─▶ machine
//!   porter           watches it           ─▶ sends as many as there are ──┘      until it is let go
//! ```

use crate::base::Instant;

use super::ports::{FramePort, SocketPort};
use super::reading::FRAME_LEN;
use super::team::WorkerId;
use super::team::mail::Mail;
use super::team::porter::{Delivery, Engaged, Load, Parcel, What};
use super::token::Token;
use super::walk_team::Order;
use super::worker::Worker;

/// Empty buffers that are kept while there is a porter: 2 MiB.
const SPARE_FRAMES: usize = 32;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Has another worker send for the flow that most of the latest work was for.
    pub(super) fn hire_porter(&mut self, now: Instant) {
        let Some(team) = self.team.as_mut().filter(|team| team.hired.is_none()) else { return };
        let Some(porter) = team.porter(now) else { return };
        if team.active() == 1 && team.lead.started <= porter.index() {
            if !std::mem::replace(&mut team.lead.starting, true) {
                self.orders.push_back(Order::Start(porter));
            }
            return;
        }
        let Some(token) = team.meter.heaviest() else { return };
        let Some(flow) = self.tcp.get_mut(token).filter(|flow| flow.may_have_porter()) else {
            return;
        };
        let Some(stream) = flow.stream() else { return };
        // Without a descriptor to spare it goes on as it is.
        let Ok(shared) = self.io.host.share(stream) else { return };
        self.io.host.no_delay(stream);
        team.hired = Some(Engaged { porter, flow: token, wanted: true });
        team.meter.rest();
        team.send(porter, Mail::Hire(team.id, token, shared));
    }

    /// As the owner: the porter is `ready`, or has no use of the socket.
    pub(super) fn on_ready(&mut self, token: Token, ready: bool) {
        let Some(team) = &mut self.team else { return };
        let Some(Engaged { porter, wanted, .. }) = team.hired.filter(|it| it.flow == token) else {
            return;
        };
        let flow = self.tcp.get_mut(token).filter(|flow| ready && flow.may_have_porter());
        if let Some(flow) = flow.filter(|_| wanted) {
            flow.hire(porter, token);
            tracing::debug!(peer = %flow.key.peer(), porter = porter.index(), "a porter");
        } else if ready {
            // Until it has let go there is no other: a connection has one porter at a time.
            team.send(porter, Mail::Return(team.id, token));
        } else {
            team.hired = None;
            team.meter.rest();
        }
    }

    /// Whether it has a porter, or is one. Such a pair does not look for events without sleeping:
    /// the slower of the two finds something to do whenever it looks, and the other would spend its
    /// spare time on looking. One stream up, medians of two sets of runs on a noisy machine: 0.47 and
    /// 0.51 s of processor time for a gigabyte, where spinning took 0.55 s. At an MTU of 1500 it was
    /// 0.56 instead of 0.62 s, for 17.7 instead of 19.1 Gbit/s.
    pub(super) fn works_with_porter(&self) -> bool {
        self.load.is_some() || self.team.as_ref().is_some_and(|team| team.hired.is_some())
    }

    /// Sees to it that the flow that has a porter, or is about to, does without.
    pub(super) fn let_porter_go(&mut self) {
        let hired = self.team.as_mut().and_then(|team| team.hired.as_mut());
        if let Some(hired) = hired {
            hired.wanted = false;
            let token = hired.flow;
            self.with_tcp(token, |flow, io, _| flow.let_porter_go(io));
            self.send_errands(None);
        }
    }

    /// As the owner: the porter of the flow has work of its own.
    pub(super) fn on_resignation(&mut self, token: Token) {
        if self.team.as_ref().and_then(|team| team.hired).is_some_and(|it| it.flow == token) {
            self.let_porter_go();
        }
    }

    /// Has porters do what flows want of them. An errand with the frame at hand takes `frame`, and
    /// leaves another buffer in its place.
    pub(super) fn send_errands(&mut self, mut frame: Option<&mut Vec<u8>>) {
        let Some(team) = &mut self.team else { return };
        for errand in self.io.errands.drain(..) {
            let parcel = match errand.what {
                What::Frame(payload) => {
                    // Only while a frame is at hand is there an errand with it.
                    let Some(frame) = frame.take() else { continue };
                    let spare = self.io.spare_frames.pop().unwrap_or_else(|| vec![0; FRAME_LEN]);
                    Parcel { buffer: std::mem::replace(frame, spare), payload }
                }
                What::Bytes(buffer) => Parcel { payload: 0..buffer.len(), buffer },
                What::Return => {
                    team.send(errand.porter, Mail::Return(team.id, errand.flow));
                    continue;
                }
                What::LetGo => {
                    team.send(errand.porter, Mail::LetGo(team.id, errand.flow));
                    team.hired = None;
                    team.meter.rest();
                    self.io.spare_frames = Vec::new();
                    continue;
                }
            };
            team.send(errand.porter, Mail::Carry(team.id, errand.flow, parcel));
        }
    }

    /// As the owner: the porter has sent something, or has let go of the flow.
    pub(super) fn on_delivery(&mut self, mut delivery: Delivery) {
        self.with_tcp(delivery.flow, |flow, io, actions| {
            flow.on_delivery(&delivery, io, actions);
        });
        for buffer in delivery.buffers.drain(..) {
            self.keep_frame(buffer);
        }
        self.send_errands(None);
        if let Some(team) = &mut self.team
            && team
                .hired
                .take_if(|it| delivery.left.is_some() && it.flow == delivery.flow)
                .is_some()
        {
            team.meter.rest();
            self.io.spare_frames = Vec::new();
        }
    }

    /// Keeps a buffer for the next frame, if there is a porter and it is of use.
    pub(super) fn keep_frame(&mut self, buffer: Vec<u8>) {
        let hired = self.team.as_ref().is_some_and(|team| team.hired.is_some());
        if hired && buffer.len() == FRAME_LEN && self.io.spare_frames.len() < SPARE_FRAMES {
            self.io.spare_frames.push(buffer);
        }
    }

    /// As a worker who is to serve a flow of another: it does, if it serves none.
    pub(super) fn take_load(&mut self, owner: WorkerId, flow: Token, stream: S::Stream) {
        let idle = self.load.is_none();
        if idle {
            self.load = Load::new(owner, flow, stream, &mut self.io.host).ok();
        }
        if let Some(team) = &self.team {
            team.send(owner, Mail::Ready(flow, idle && self.load.is_some()));
        }
    }

    /// As a porter: has the owner of the flow do without. Until it does, what it sends is served.
    pub(super) fn resign(&mut self) {
        if let (Some(team), Some(load)) = (&self.team, &self.load) {
            team.send(load.owner(), Mail::Resign(load.flow()));
        }
    }

    /// As a porter: something to be sent, when the rest of the mail is read.
    pub(super) fn take_parcel(&mut self, owner: WorkerId, flow: Token, parcel: Parcel) {
        if let Some(load) = self.load.as_mut().filter(|load| load.is_of(owner, flow)) {
            load.push(parcel);
        }
    }

    /// As a porter: the flow does without, and has what is not sent back.
    pub(super) fn return_load(&mut self, owner: WorkerId, flow: Token) {
        if let Some(load) = self.load.take_if(|load| load.is_of(owner, flow)) {
            let delivery = load.give_back(&mut self.io.host);
            if let Some(team) = &self.team {
                team.send(owner, Mail::Delivered(delivery));
            }
        }
    }

    /// As a porter: the flow is over.
    pub(super) fn drop_load(&mut self, owner: WorkerId, flow: Token) {
        if let Some(load) = self.load.take_if(|load| load.is_of(owner, flow)) {
            load.close(&mut self.io.host);
        }
    }

    /// As a porter: the socket takes more, or has failed.
    pub(super) fn on_load_readiness(&mut self, token: Token) {
        if let Some(load) = &mut self.load {
            // An event for another flow does no harm: sending tells how things are.
            debug_assert_eq!(token.kind, super::token::Kind::Load);
            load.on_readiness();
        }
        self.send_load();
    }

    /// As a porter: sends what there is, as far as the socket takes it.
    pub(super) fn send_load(&mut self) {
        let Some(load) = &mut self.load else { return };
        if let Some(delivery) = load.send(&mut self.io.host)
            && let Some(team) = &self.team
        {
            team.send(load.owner(), Mail::Delivered(delivery));
        }
    }
}
