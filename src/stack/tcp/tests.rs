//! Tests of the machine, segment in, segment out.
//!
//! A [`Talk`] holds a connection in some state and the clock. Events are methods; what the machine
//! does in answer is collected and has to be claimed by [`Talk::does`], whole and in order. What is
//! left unclaimed at the end of a test fails it, so every test also says "and then nothing more".
//!
//! Expected numbers come from the RFCs. Both sequence spaces wrap within the first few hundred
//! bytes, and no two quantities of the two sides are equal.

mod closing;
mod inbound;
mod loss;
mod opening;
mod properties;
mod receiving;
mod resets;
mod sending;
mod simulation;
mod table;

use std::time::Duration;

use super::*;
use crate::base::{DropReason, Instant};
use crate::stack::wire::Segment;

/// The guest's initial sequence number and the number of its first byte.
const GUEST_ISS: Seq = Seq(0xffff_ff00);
const G: Seq = Seq(0xffff_ff01);
/// Our initial sequence number and the number of the host's first byte.
const OUR_ISS: Seq = Seq(0xffff_fe7f);
const H: Seq = Seq(0xffff_fe80);

/// The guest's MSS, window field and shift: 64,000 bytes of window.
const GUEST_MSS: u16 = 1400;
const GUEST_WINDOW: u16 = 8000;
const GUEST_SHIFT: u8 = 3;
/// Our window, which needs a shift of 1, and the field that says so.
const LIMIT: u32 = 100_000;
const FIELD: u16 = 50_000;

const OPTIONS: Options = Options {
    mss: 1460,
    receive_limit: LIMIT,
    // No growth, so that every test sees the same numbers; `receiving` tests it.
    first_window: u32::MAX,
    in_flight_limit: 1 << 20,
    frame_limit: 61_000,
    resend_limit: 61_000,
    time_wait: Duration::from_secs(7),
};

const NO_FLAGS: Flags = Flags { syn: false, fin: false, rst: false, psh: false };
const WITH_SYN: Flags = Flags { syn: true, ..NO_FLAGS };
const WITH_FIN: Flags = Flags { fin: true, ..NO_FLAGS };
const WITH_RST: Flags = Flags { rst: true, ..NO_FLAGS };
const WITH_PSH: Flags = Flags { psh: true, ..NO_FLAGS };

/// The guest's SYN.
const SYN: Segment = Segment {
    source_port: 41_000,
    target_port: 443,
    seq: GUEST_ISS,
    ack: None,
    flags: WITH_SYN,
    window: GUEST_WINDOW,
    mss: Some(GUEST_MSS),
    window_scale: Some(GUEST_SHIFT),
    sack_permitted: true,
    sack: [None; 3],
    len: 0,
};

/// The guest's answer to our SYN.
const SYN_ACK: Segment = Segment { ack: Some(H), ..SYN };

/// A bare acknowledgment of the guest before any data.
const ACK: Segment = Segment {
    seq: G,
    ack: Some(H),
    flags: NO_FLAGS,
    mss: None,
    window_scale: None,
    sack_permitted: false,
    ..SYN
};

/// A bare acknowledgment of ours before any data.
const OURS: Emit = Emit {
    seq: H,
    ack: Some(G),
    flags: NO_FLAGS,
    window: FIELD,
    len: 0,
    segment_size: GUEST_MSS,
    syn: None,
    sack: [None; 3],
};

const OUR_SYN_ACK: Emit = Emit {
    seq: OUR_ISS,
    flags: WITH_SYN,
    // RFC 7323 §2.2: not scaled, so it cannot say more.
    window: 65_535,
    syn: Some(SynOptions { mss: 1460, window_scale: Some(1), sack_permitted: true }),
    ..OURS
};

/// Our SYN acknowledges nothing.
const OUR_SYN: Emit = Emit { ack: None, segment_size: 1460, ..OUR_SYN_ACK };

const START: Instant = Instant::from_millis(1_000_000);

const REFUSED: Result<(), DropReason> = Err(DropReason::UnacceptableSegment);

/// The guest's segment with payload behind `offset` bytes of its stream.
fn data(offset: u32, len: u32) -> Segment {
    Segment { seq: G + offset, len, ..ACK }
}

/// A bare acknowledgment of `bytes` bytes of the host's stream.
fn ack(bytes: u32) -> Segment {
    Segment { ack: Some(H + bytes), ..ACK }
}

const fn emit(emit: Emit) -> Action {
    Action::Emit(emit)
}

/// A connection, its clock, and what it did and nobody has claimed yet.
#[derive(Clone)]
struct Talk {
    connection: Connection,
    now: Instant,
    done: Vec<Action>,
}

impl Talk {
    fn with(syn: Segment, options: Options) -> Talk {
        let connection = Connection::from_syn(START, &syn, OUR_ISS, options);
        Talk { connection, now: START, done: vec![] }
    }

    /// A connection that we open, its SYN unclaimed.
    fn to_guest(options: Options) -> Talk {
        let mut done = vec![];
        let connection = Connection::to_guest(START, OUR_ISS, options, &mut done);
        Talk { connection, now: START, done }
    }

    /// A segment of the guest.
    fn guest(&mut self, segment: Segment) -> Result<(), DropReason> {
        self.connection.on_segment(self.now, &segment, &mut self.done)
    }

    /// A segment of the guest that is taken.
    fn takes(&mut self, segment: Segment) {
        assert_eq!(self.guest(segment), Ok(()), "{segment:?}");
    }

    fn connected(&mut self) {
        self.connection.on_connected(self.now, &mut self.done);
    }

    fn host_data(&mut self, len: u32) {
        assert!(len <= self.connection.send_capacity(), "{}", self.connection.send_capacity());
        self.connection.on_host_data(self.now, len, true, &mut self.done);
    }

    fn host_eof(&mut self) {
        self.connection.on_host_eof(self.now, &mut self.done);
    }

    fn host_took(&mut self, len: u32) {
        self.connection.on_host_took(len, &mut self.done);
    }

    fn host_reset(&mut self) {
        self.connection.on_host_reset(&mut self.done);
    }

    fn flush(&mut self) {
        self.connection.flush(&mut self.done);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Time passes until the next deadline; returns how much.
    fn deadline(&mut self) -> Duration {
        let at = self.connection.next_deadline().expect("a timer runs");
        let waited = at.since(self.now);
        self.now = self.now + waited;
        self.connection.on_deadline(self.now, &mut self.done);
        waited
    }

    /// The machine did exactly this since it was asked last.
    #[track_caller]
    fn does(&mut self, expected: &[Action]) {
        assert_eq!(self.done, expected);
        self.done.clear();
    }

    #[track_caller]
    fn is_in(&self, state: State) {
        assert_eq!(self.connection.state(), state);
    }

    #[track_caller]
    fn is_over(&self) {
        self.is_in(State::Closed);
        assert!(self.connection.is_closed());
        assert_eq!(self.connection.next_deadline(), None);
        assert!(!self.connection.ack_owed());
    }

    fn forget(mut self) -> Talk {
        self.done.clear();
        self
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.done, [], "unclaimed");
        }
    }
}

// --- a connection in each state, with no byte of payload sent either way ---

fn connecting() -> Talk {
    Talk::with(SYN, OPTIONS)
}

fn syn_received() -> Talk {
    let mut talk = connecting();
    talk.connected();
    talk.forget()
}

fn syn_sent() -> Talk {
    Talk::to_guest(OPTIONS).forget()
}

/// SYN-RECEIVED of a connection that both ends open at once.
fn simultaneous() -> Talk {
    let mut talk = syn_sent();
    talk.takes(SYN);
    talk.forget()
}

fn established() -> Talk {
    established_with(SYN, OPTIONS)
}

fn established_with(syn: Segment, options: Options) -> Talk {
    let mut talk = Talk::with(syn, options);
    talk.connected();
    talk.takes(ACK);
    talk.forget()
}

fn close_wait() -> Talk {
    let mut talk = established();
    talk.takes(Segment { flags: WITH_FIN, ..ACK });
    talk.flush();
    talk.forget()
}

fn last_ack() -> Talk {
    let mut talk = close_wait();
    talk.host_eof();
    talk.forget()
}

fn fin_wait_1() -> Talk {
    let mut talk = established();
    talk.host_eof();
    talk.forget()
}

fn fin_wait_2() -> Talk {
    let mut talk = fin_wait_1();
    talk.takes(ack(1));
    talk.forget()
}

fn closing() -> Talk {
    let mut talk = fin_wait_1();
    talk.takes(Segment { flags: WITH_FIN, ..ACK });
    talk.flush();
    talk.forget()
}

fn time_wait() -> Talk {
    let mut talk = fin_wait_2();
    talk.takes(Segment { flags: WITH_FIN, ..ack(1) });
    talk.flush();
    talk.forget()
}
