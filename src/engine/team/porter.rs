//! Porters: another worker that does the sending for a flow which keeps its own worker busy alone.
//!
//! Work can be shared between flows, not within one: its segments have an order. But what a worker
//! does for an upload has two halves of about the same weight, each with a copy of every byte: read
//! the frame from the TAP, and give its payload to the host socket. The *owner* goes on doing the
//! first and gives each frame, buffer and all, to the *porter*, who does the second:
//!
//! ```text
//!   owner  ─ TAP ─▶ machine ─▶ parcel (the frame, and where its payload lies) ─▶ porter ─▶ socket
//!          ◀── bytes taken, empty buffers ───────────────────────────────────────
//! ```
//! For the machine, bytes that are with the porter are backlog: acknowledged, counted against the
//! window, and in front of the FIN. A porter holds a descriptor of its own for the same socket, and
//! knows neither machine nor guest.
//!
//! Any worker may have a porter for one of its flows, and be one for one flow of another's. Who is
//! asked has nothing to do: while the lead is alone the worker that would be called next, else one
//! at work that has been idle. It does not have to stay so. What a porter has to do besides is done
//! as ever, and when that is much, it resigns. Whoever is a porter already declines.
//!
//! ```text
//!   owner    Hire ─▶            Carry, Carry, … ─▶                 Return ─▶
//!   porter           ◀─ Ready                      ◀─ Delivered              ◀─ Delivered, with what
//!                                                                               is not sent
//! ```
//! Of a flow that is over nothing has to come back: `LetGo` takes the place of `Return`. Mail between
//! two workers keeps its order, so whatever belongs to a porter's last flow is in front of the next.
//!
//! **Processor time.** Each byte visits the caches of two processors instead of one. One stream to a
//! veth, a gigabyte of it, on a noisy 4-core VM (Linux 6.18), from several sets of runs and different
//! builds, so roughly comparable at best: 0.38 to 0.44 s and 18 to 20 Gbit/s alone, 0.47 to 0.56 s
//! and 24 Gbit/s with a porter, and 0.27 s for a client without any helper. To hire on trial, and do
//! without a porter by whom less than an eighth was gained, is not done: while a tenth to a fifth of
//! the processors' time was taken away, single runs gave about a fifth less than runs without trial,
//! and otherwise nothing that could be told. One copy less is not to be had: a TAP neither gives nor
//! takes pages (`splice` fails with `EINVAL`), and zero-copy sends are copied by a veth.
//!
//! **Memory.** What the guest has under way is bounded by its window, which says nothing of how many
//! parcels that makes: a parcel is a whole frame's buffer only if much of it is used, else a copy,
//! and a flow with more than [`MAX_PARCELS`] of them does without its porter.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;

use super::WorkerId;
use crate::engine::ports::SocketPort;
use crate::engine::token::{Kind, Token};

/// Parcels of a flow that are under way at most: two windows of full frames, 8 MiB.
pub(in crate::engine) const MAX_PARCELS: usize = 128;

/// Payload from which a frame is given away whole.
pub(in crate::engine) const WHOLE_FRAME: usize = 8 << 10;

/// Parcels that are sent with one system call.
const PARTS: usize = 8;

/// Bytes to be sent, within a buffer that goes back when they are.
pub(in crate::engine) struct Parcel {
    pub(in crate::engine) buffer: Vec<u8>,
    pub(in crate::engine) payload: Range<usize>,
}

impl Parcel {
    /// What is to be sent.
    pub(in crate::engine) fn bytes(&self) -> &[u8] {
        &self.buffer[self.payload.clone()]
    }
}

/// Something for a porter to do, as a flow wants it. The worker makes mail of it.
pub(in crate::engine) struct Errand {
    /// Who is to do it.
    pub(in crate::engine) porter: WorkerId,
    /// For which flow.
    pub(in crate::engine) flow: Token,
    pub(in crate::engine) what: What,
}

/// What a porter is to do.
pub(in crate::engine) enum What {
    /// To send this part of the frame at hand.
    Frame(Range<usize>),
    /// To send these bytes.
    Bytes(Vec<u8>),
    /// To let go of the flow, and give back what is not sent.
    Return,
    /// To let go of the flow, and forget what is not sent.
    LetGo,
}

/// A porter, as its owner sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Engaged {
    pub(in crate::engine) porter: WorkerId,
    /// Which flow it is for. That one may not know of it yet ([`Hired`]).
    pub(in crate::engine) flow: Token,
    /// The flow is to have it. If not, the porter is let go as soon as it is ready, or has sent
    /// what it has.
    pub(in crate::engine) wanted: bool,
}

/// A porter, as its flow sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Hired {
    pub(in crate::engine) porter: WorkerId,
    /// The flow's own name.
    pub(in crate::engine) flow: Token,
    /// Bytes that are with the porter.
    pub(in crate::engine) carried: usize,
    /// In so many parcels.
    pub(in crate::engine) parcels: usize,
    /// No more is given: the flow does without as soon as it has back what is not sent.
    pub(in crate::engine) leaving: bool,
}

/// What a porter has of a flow.
pub(in crate::engine) struct Load<S: SocketPort> {
    /// The flow's name with its owner.
    flow: Token,
    owner: WorkerId,
    stream: S::Stream,
    parcels: VecDeque<Parcel>,
    writable: bool,
    failed: bool,
}

/// What has become of parcels.
pub(in crate::engine) struct Delivery {
    /// The flow's name with its owner.
    pub(in crate::engine) flow: Token,
    /// Bytes that the socket took.
    pub(in crate::engine) taken: usize,
    /// The buffers of the parcels that are sent, for other use.
    pub(in crate::engine) buffers: Vec<Vec<u8>>,
    /// The socket failed; nothing more is sent.
    pub(in crate::engine) failed: bool,
    /// The porter has let go of the flow, and these are not sent.
    pub(in crate::engine) left: Option<VecDeque<Parcel>>,
}

impl<S: SocketPort> Load<S> {
    /// Nothing is with the porter yet.
    ///
    /// # Errors
    /// The host edge cannot watch the socket.
    pub(in crate::engine) fn new(
        owner: WorkerId,
        flow: Token,
        stream: S::Stream,
        host: &mut S,
    ) -> io::Result<Load<S>> {
        host.adopt(Load::<S>::token(flow), &stream)?;
        let parcels = VecDeque::new();
        Ok(Load { flow, owner, stream, parcels, writable: true, failed: false })
    }

    /// Closes the socket. It has to be forgotten first: as long as its owner has it open, epoll
    /// does not.
    pub(in crate::engine) fn close(self, host: &mut S) {
        host.forget(&self.stream);
    }

    /// By which name the porter waits for the socket of `flow`.
    fn token(flow: Token) -> Token {
        Token { kind: Kind::Load, ..flow }
    }

    /// Whose it is.
    pub(in crate::engine) fn owner(&self) -> WorkerId {
        self.owner
    }

    /// The flow's name with its owner.
    pub(in crate::engine) fn flow(&self) -> Token {
        self.flow
    }

    /// Whether it is part of this flow of this worker.
    pub(in crate::engine) fn is_of(&self, owner: WorkerId, flow: Token) -> bool {
        (self.owner, self.flow) == (owner, flow)
    }

    /// The socket takes more, or has failed.
    pub(in crate::engine) fn on_readiness(&mut self) {
        self.writable = true;
    }

    /// Something more to be sent.
    pub(in crate::engine) fn push(&mut self, parcel: Parcel) {
        self.parcels.push_back(parcel);
    }

    /// Sends what the socket takes. `None` if nothing has become of anything.
    pub(in crate::engine) fn send(&mut self, host: &mut S) -> Option<Delivery> {
        let mut delivery = self.nothing();
        let had_failed = self.failed;
        while !self.failed && self.writable && !self.parcels.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS];
            let count = self.parcels.len().min(PARTS);
            for (part, parcel) in parts.iter_mut().zip(&self.parcels) {
                *part = IoSlice::new(parcel.bytes());
            }
            let offered: usize = parts[..count].iter().map(|part| part.len()).sum();
            match host.send(&self.stream, &parts[..count]) {
                Ok(taken) => {
                    self.writable = taken == offered;
                    delivery.taken += taken;
                    self.consume(taken, &mut delivery.buffers);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.writable = false;
                    self.failed = error.kind() != ErrorKind::WouldBlock;
                }
            }
        }
        if self.failed {
            self.parcels.clear();
        }
        delivery.failed = self.failed && !had_failed;
        (delivery.taken > 0 || delivery.failed).then_some(delivery)
    }

    /// Sends what the socket takes, and gives back the rest.
    pub(in crate::engine) fn give_back(mut self, host: &mut S) -> Delivery {
        let mut delivery = self.send(host).unwrap_or_else(|| self.nothing());
        delivery.left = Some(std::mem::take(&mut self.parcels));
        self.close(host);
        delivery
    }

    fn nothing(&self) -> Delivery {
        Delivery { flow: self.flow, taken: 0, buffers: vec![], failed: false, left: None }
    }

    fn consume(&mut self, mut len: usize, buffers: &mut Vec<Vec<u8>>) {
        while let Some(first) = self.parcels.front_mut() {
            if len < first.payload.len() {
                first.payload.start += len;
                return;
            }
            len -= first.payload.len();
            buffers.extend(self.parcels.pop_front().map(|parcel| parcel.buffer));
        }
    }
}
