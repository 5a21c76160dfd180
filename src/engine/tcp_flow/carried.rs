//! From the guest to the host socket by way of a [`porter`](crate::engine::team::porter).

use crate::stack::tcp::Action;

use super::TcpFlow;
use crate::engine::io::Io;
use crate::engine::ports::{FramePort, SocketPort};
use crate::engine::team::WorkerId;
use crate::engine::team::porter::{
    Delivery, Errand, Hired, MAX_PARCELS, Parcel, WHOLE_FRAME, What,
};
use crate::engine::token::Token;

impl<S: SocketPort> TcpFlow<S> {
    /// Whether a porter could send from here on: there is a socket, and nothing waits for it.
    pub(in crate::engine) fn may_have_porter(&self) -> bool {
        self.porter.is_none()
            && self.stream.is_some()
            && self.backlog.is_empty()
            && self.gathered.is_empty()
    }

    /// From here on `porter` sends for this flow, which its worker knows as `flow`.
    pub(in crate::engine) fn hire(&mut self, porter: WorkerId, flow: Token) {
        let hired = Hired { porter, flow, carried: 0, parcels: 0, leaving: false };
        self.porter = Some(Box::new(hired));
    }

    /// Gives bytes to the porter. Not if there is none, or if it is to go.
    pub(super) fn carry<F: FramePort>(&mut self, bytes: &[u8], io: &mut Io<F, S>) -> bool {
        let Some(hired) = self.porter.as_mut().filter(|hired| !hired.leaving) else {
            return false;
        };
        if hired.parcels == MAX_PARCELS {
            self.let_porter_go(io);
            return false;
        }
        hired.parcels += 1;
        hired.carried += bytes.len();
        io.backlog_bytes += bytes.len();
        let whole = io.frames_at_hand.filter(|at_hand| at_hand.own && bytes.len() >= WHOLE_FRAME);
        let what = match whole.and_then(|frame| frame.find(bytes)) {
            Some(payload) => {
                // The frame is gone with that.
                io.frames_at_hand = None;
                What::Frame(payload)
            }
            None => What::Bytes(bytes.to_vec()),
        };
        io.errands.push(Errand { porter: hired.porter, flow: hired.flow, what });
        true
    }

    /// The porter has sent something, or has failed.
    pub(in crate::engine) fn on_delivery<F: FramePort>(
        &mut self,
        delivery: &Delivery,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        let Some(hired) = &mut self.porter else { return };
        hired.carried -= delivery.taken;
        hired.parcels -= delivery.buffers.len();
        io.backlog_bytes -= delivery.taken;
        if delivery.failed {
            // That is the end of the flow, and it does without.
            self.machine.on_host_reset(actions);
            return self.perform(&[], io, actions);
        }
        // Bounded by the window, a u32.
        self.machine.on_host_took(delivery.taken as u32, actions);
        if let Some(left) = &delivery.left {
            let left: Vec<&[u8]> = left.iter().map(Parcel::bytes).collect();
            debug_assert_eq!(hired.carried, left.iter().map(|bytes| bytes.len()).sum::<usize>());
            // It counts as backlog already, and stands in front of what came since.
            self.backlog.push_front(&left);
            self.porter = None;
            // If the socket is full, it says so, and tells when it is not.
            self.writable = true;
            self.flush_backlog(io, actions);
        }
        self.perform(&[], io, actions);
    }

    /// The flow is to do without its porter: as soon as that one has given back what it has.
    pub(in crate::engine) fn let_porter_go<F: FramePort>(&mut self, io: &mut Io<F, S>) {
        let Some(hired) = self.porter.as_mut().filter(|hired| !hired.leaving) else { return };
        hired.leaving = true;
        let Hired { porter, flow, .. } = **hired;
        io.errands.push(Errand { porter, flow, what: What::Return });
    }

    /// Does without the porter; what that one has not sent is forgotten.
    pub(super) fn dismiss<F: FramePort>(&mut self, io: &mut Io<F, S>) {
        if let Some(hired) = self.porter.take() {
            io.backlog_bytes -= hired.carried;
            let Hired { porter, flow, .. } = *hired;
            io.errands.push(Errand { porter, flow, what: What::LetGo });
        }
    }
}
