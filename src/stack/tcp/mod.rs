//! TCP towards the guest: one [`Connection`] is the far half of one guest connection, translated
//! to a connection that the host's kernel runs.
//!
//! ```text
//!   guest kernel ⇄ segments ⇄ [ Connection ] ⇄ byte counts ⇄ host socket ⇄ the peer
//! ```
//! Owns sequence numbers, windows, timers and the RFC 9293 state of *our* end. Owns no byte, no
//! descriptor, no clock: payload stays in the frame, the backlog or the retransmission queue of
//! the edge, and the machine speaks of it in ranges and lengths (D7).
//!
//! ```text
//!                  host accepted ─▶ SynSent ──SYN-ACK──────────┐
//!                                       │SYN                     ▼
//!   SYN ──▶ Connecting ──connected──▶ SynReceived ──ACK──▶ Established
//!               │ failed                                    │FIN        │host EOF
//!               ▼                                           ▼           ▼
//!             Closed                                    CloseWait    FinWait1 ─▶ FinWait2
//!                                                   host EOF│       FIN│   │ACK      │FIN
//!                                                           ▼          ▼   ▼         ▼
//!                                                        LastAck    Closing ──▶  TimeWait
//! ```
//! Follows RFC 9293, RFC 7323 §2 (window scale), RFC 2018 (SACK, both ways), RFC 6298 (RTO),
//! RFC 5961 §3–§5 (challenge ACKs). Departs:
//! - no congestion control towards the guest: the link is memory, the host's kernel does the WAN;
//! - SACK blocks of ours go with bare acknowledgments only: every segment beyond a gap causes one,
//!   and an option on data would change the size of segments;
//! - no timestamps: without reordering and with 2^31 bytes of window to spare PAWS protects
//!   nothing, and the option would cost 12 bytes in each of many small segments;
//! - urgent data is delivered in line (RFC 6093 §4), the pointer is not looked at;
//! - TIME-WAIT is short ([`Options::time_wait`]): 2 MSL on a link of microseconds.
//!
//! Hostile input: every segment. A connection's memory is constant; what it makes the edge hold is
//! bounded by [`Options::receive_limit`] and [`Options::in_flight_limit`].
#![forbid(unsafe_code)]

mod arrives;
mod connection;
mod deadlines;
mod held;
mod opening;
mod receive;
mod rtt;
mod timers;
mod transmit;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::base::Seq;
use crate::stack::wire::{Flags, SackRanges};

pub use connection::{Connection, State};

/// What the engine decides for all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// MSS that we announce: what fits the link's MTU.
    pub mss: u16,
    /// Most bytes from the guest to hold for the host socket: the largest window.
    pub receive_limit: u32,
    /// The window that is offered until the guest has shown that it uses it.
    pub first_window: u32,
    /// Most bytes towards the guest that may await acknowledgment.
    pub in_flight_limit: u32,
    /// Largest payload of one frame of new data.
    pub frame_limit: u32,
    /// Largest payload of one frame that is sent again, and of all of a connection on which a
    /// time-out showed that something inside the guest may not take larger ones.
    pub resend_limit: u32,
    /// How long an end that closed first remembers the connection.
    pub time_wait: Duration,
}

/// What the edge is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a segment to the guest.
    Emit(Emit),
    /// Payload bytes `skip..skip + len` of the segment at hand go to the host socket, or behind
    /// what already waits for it. Report with [`Connection::on_host_took`].
    Deliver {
        /// First byte of the payload to take.
        skip: u32,
        /// Bytes to take.
        len: u32,
    },
    /// Payload bytes `skip..skip + len` of the segment at hand lie beyond a gap: keep them, the
    /// first of them `offset` bytes behind the next one that is expected.
    Hold {
        /// First byte of the payload to keep.
        skip: u32,
        /// Bytes to keep.
        len: u32,
        /// Bytes that are missing or kept in front of it.
        offset: u32,
    },
    /// The gap before them is closed: the first `len` bytes that are kept go to the host socket, as
    /// with [`Action::Deliver`].
    DeliverHeld {
        /// Bytes to deliver.
        len: u32,
    },
    /// The oldest `len` bytes of the retransmission queue are done with.
    Release {
        /// Bytes to free.
        len: u32,
    },
    /// Shut the host socket down for writing: the guest sent FIN and everything before it is out.
    ShutdownWrite,
    /// Both directions are done: close the host socket in the ordinary way.
    CloseHost,
    /// Close the host socket with a reset.
    ResetHost,
    /// The guest probes whether the connection is alive: let the host's kernel do the same.
    KeepAlive,
}

/// One segment towards the guest. Its payload, if any, is found by sequence number: at the end of
/// the retransmission queue when it is new, further in front when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emit {
    /// First sequence number.
    pub seq: Seq,
    /// Acknowledgment, absent only in a reset that answers a segment without one.
    pub ack: Option<Seq>,
    /// Control bits.
    pub flags: Flags,
    /// Window field, scaled.
    pub window: u16,
    /// Payload bytes.
    pub len: u32,
    /// Largest payload of one segment: the guest's MSS.
    pub segment_size: u16,
    /// Options of our SYN or SYN-ACK.
    pub syn: Option<SynOptions>,
    /// What arrived beyond a gap, in a segment without payload.
    pub sack: SackRanges,
}

/// Options of our SYN, or of our SYN-ACK: then never more than the guest offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynOptions {
    /// MSS that we announce.
    pub mss: u16,
    /// Shift of our window fields.
    pub window_scale: Option<u8>,
    /// The guest may send SACK blocks.
    pub sack_permitted: bool,
}
