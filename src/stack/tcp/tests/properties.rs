//! Any sequence of events against a small model.
//!
//! Segments are partly sensible, partly hostile; host events come in an order that an edge can
//! produce. The [`Model`] knows no states: it counts bytes and remembers what was promised, and
//! checks after every event that
//! - what is delivered continues the guest's stream and lies in the segment at hand, and nothing
//!   that fits the window is left out;
//! - the edge that was advertised never moves left, but for what a scaled field cannot say, and
//!   the backlog stays within its bound;
//! - only bytes in the retransmission queue are sent or released;
//! - the host socket is shut once, after everything was taken, and closed or reset once;
//! - nothing is sent after the end, no deadline is left behind in the past, and whatever waits for
//!   the guest has a timer.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Numbers of a segment, relative to what the machine knows.
#[derive(Clone, Copy, Debug)]
enum Number {
    Next,
    Near(i32),
    Edge(i32),
    Any(u32),
}

#[derive(Clone, Copy, Debug)]
enum Acknowledges {
    All,
    Nothing,
    /// This share of what is in flight, in 256ths.
    Part(u8),
    Any(u32),
    Absent,
}

#[derive(Clone, Debug)]
enum Op {
    Guest {
        seq: Number,
        ack: Acknowledges,
        flags: Flags,
        window: u16,
        len: u32,
        sack: Option<(u16, u16)>,
    },
    Connected,
    ConnectFailed(bool),
    Unreachable(bool),
    /// At most this many bytes wait in the host socket.
    HostData(u32, bool),
    HostWaiting(bool),
    HostEof,
    /// At most this many bytes wait, and EOF behind them.
    HostDataAndEof(u32),
    /// The host takes this share of the backlog, in 256ths.
    HostTook(u8),
    HostReset,
    Abort,
    PathMtu(u16),
    Limit(u32),
    Pass(u64),
    Deadline,
    Flush,
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        8 => Just(Number::Next),
        3 => (-2000..2000).prop_map(Number::Near),
        1 => (-2..3).prop_map(Number::Edge),
        1 => any::<u32>().prop_map(Number::Any),
    ]
}

fn acknowledges() -> impl Strategy<Value = Acknowledges> {
    prop_oneof![
        8 => Just(Acknowledges::All),
        3 => Just(Acknowledges::Nothing),
        3 => any::<u8>().prop_map(Acknowledges::Part),
        1 => any::<u32>().prop_map(Acknowledges::Any),
        1 => Just(Acknowledges::Absent),
    ]
}

fn flags() -> impl Strategy<Value = Flags> {
    prop_oneof![
        40 => Just(NO_FLAGS),
        10 => Just(WITH_PSH),
        4 => Just(WITH_FIN),
        1 => Just(WITH_RST),
        1 => Just(WITH_SYN),
        1 => Just(Flags { fin: true, ..WITH_SYN }),
        1 => Just(Flags { rst: true, ..WITH_SYN }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let window = prop_oneof![2 => Just(0), 2 => 1u16..300, 5 => any::<u16>()];
    let len = prop_oneof![3 => Just(0), 2 => Just(1), 5 => 1u32..3000, 2 => 3000u32..65_000];
    let sack = proptest::option::weighted(0.2, (any::<u16>(), any::<u16>()));
    let guest = (number(), acknowledges(), flags(), window, len, sack).prop_map(
        |(seq, ack, flags, window, len, sack)| Op::Guest { seq, ack, flags, window, len, sack },
    );
    prop_oneof![
        60 => guest,
        4 => Just(Op::Connected),
        1 => any::<bool>().prop_map(Op::ConnectFailed),
        1 => any::<bool>().prop_map(Op::Unreachable),
        20 => (1u32..100_000, any::<bool>()).prop_map(|(most, last)| Op::HostData(most, last)),
        4 => any::<bool>().prop_map(Op::HostWaiting),
        1 => Just(Op::HostEof),
        1 => (1u32..100_000).prop_map(Op::HostDataAndEof),
        20 => any::<u8>().prop_map(Op::HostTook),
        1 => select(vec![Op::HostReset, Op::Abort]),
        2 => any::<u16>().prop_map(Op::PathMtu),
        3 => prop_oneof![Just(0), 0u32..200_000].prop_map(Op::Limit),
        5 => (0u64..3_000_000).prop_map(Op::Pass),
        10 => Just(Op::Deadline),
        15 => Just(Op::Flush),
    ]
}

/// What the guest's kernel, the host's kernel and the edge know.
struct Model {
    talk: Talk,
    /// The options of any SYN of the guest.
    syn: Segment,
    /// The guest's first byte, and what our SYN offered before that was known.
    first: Seq,
    offered: u32,
    scale: u8,
    limit: u32,
    /// Bytes delivered to the host side, and how many of them the socket took.
    delivered: u32,
    took: u32,
    /// What is held beyond a gap, by its place behind the next byte.
    held: BTreeSet<u32>,
    /// Bytes read from the host, and released from the queue.
    sent: u32,
    released: u32,
    guest_fin: bool,
    host_eof: bool,
    waiting: bool,
    edge: Option<Seq>,
    shut: u32,
    ended: u32,
    closed_by_guest: bool,
}

impl Model {
    fn new(syn: Segment, options: Options, inbound: bool) -> Model {
        let scale = (0..14).find(|s| options.receive_limit >> s <= 65_535).unwrap_or(14);
        let scaled = syn.window_scale.is_some();
        let mut model = Model {
            talk: if inbound { Talk::to_guest(options) } else { Talk::with(syn, options) },
            syn,
            first: G,
            offered: 0,
            scale: if scaled { scale } else { 0 },
            limit: options.receive_limit.min(65_535 << if scaled { 14 } else { 0 }),
            delivered: 0,
            took: 0,
            held: BTreeSet::new(),
            sent: 0,
            released: 0,
            guest_fin: false,
            host_eof: false,
            waiting: false,
            edge: None,
            shut: 0,
            ended: 0,
            closed_by_guest: false,
        };
        // Our SYN, which makes the first offer.
        model.check_actions(model.connection().state(), None);
        model
    }

    fn connection(&self) -> &Connection {
        &self.talk.connection
    }

    /// The next number that the machine expects of the guest.
    fn next(&self) -> Seq {
        self.first + self.delivered + u32::from(self.guest_fin)
    }

    fn segment(&self, op: &Op) -> Segment {
        let &Op::Guest { seq, ack, flags, window, len, sack } = op else { panic!("{op:?}") };
        let seq = match seq {
            Number::Next => self.next(),
            Number::Near(by) => self.next() + by.cast_unsigned(),
            Number::Edge(by) => self.edge.unwrap_or(self.first) + by.cast_unsigned(),
            Number::Any(any) => Seq(any),
        };
        let (start, in_flight) = (self.connection().queue_start(), self.connection().in_flight());
        let ack = match ack {
            Acknowledges::All => Some(start + in_flight),
            Acknowledges::Nothing => Some(start),
            Acknowledges::Part(part) => Some(start + in_flight / 256 * u32::from(part)),
            Acknowledges::Any(any) => Some(Seq(any)),
            Acknowledges::Absent => None,
        };
        let block = sack.map(|(left, len)| {
            let left = start + u32::from(left);
            (left, left + u32::from(len))
        });
        let options = if flags.syn { self.syn } else { ACK };
        Segment { seq, ack, flags, window, len, sack: [block, None, None], ..options }
    }

    fn apply(&mut self, op: &Op) {
        let was_closed = self.connection().state() == State::Closed;
        let state = self.connection().state();
        let mut at_hand = None;
        match *op {
            Op::Guest { .. } => {
                let segment = self.segment(op);
                let _ = self.talk.guest(segment);
                at_hand = Some(segment);
                let after = self.connection().state();
                if state == State::SynSent && !matches!(after, State::SynSent | State::Closed) {
                    self.first = segment.seq + 1;
                    self.edge = Some(self.first + self.offered);
                }
            }
            Op::Connected => self.talk.connected(),
            Op::ConnectFailed(refuse) => {
                self.talk.connection.on_connect_failed(refuse, &mut self.talk.done);
            }
            Op::Unreachable(right) => {
                let quoted = if right { OUR_ISS } else { H };
                self.talk.connection.on_unreachable(quoted, &mut self.talk.done);
            }
            Op::HostData(most, last) => {
                let len = most.min(self.connection().send_capacity());
                if len > 0 {
                    let Talk { connection, now, done } = &mut self.talk;
                    connection.on_host_data(*now, len, last, done);
                    self.sent += len;
                    self.waiting = !last;
                }
            }
            Op::HostWaiting(waiting) => {
                if !self.host_eof {
                    self.talk.connection.on_host_waiting(self.talk.now, waiting);
                    self.waiting = waiting;
                }
            }
            Op::HostDataAndEof(most) => {
                let len = most.min(self.connection().send_capacity());
                if len > 0 {
                    let Talk { connection, now, done } = &mut self.talk;
                    connection.on_host_data_and_eof(*now, len, done);
                    self.sent += len;
                    self.host_eof = true;
                    self.waiting = false;
                }
            }
            Op::HostEof => {
                self.host_eof = true;
                self.waiting = false;
                self.talk.host_eof();
            }
            Op::HostTook(share) => {
                let len =
                    ((self.delivered - self.took) as u64 * (u64::from(share) + 1) / 256) as u32;
                self.took += len;
                self.talk.host_took(len);
            }
            Op::HostReset => {
                self.ended += 1;
                self.talk.host_reset();
                // The edge drops the socket; whatever would end it again is an error.
                self.ended = self.ended.min(1);
            }
            Op::Abort => self.talk.connection.abort(&mut self.talk.done),
            Op::PathMtu(mss) => {
                let Talk { connection, now, done } = &mut self.talk;
                connection.on_path_mtu(*now, mss, done);
            }
            Op::Limit(limit) => self.talk.connection.set_receive_limit(limit),
            Op::Pass(micros) => {
                self.talk.pass(Duration::from_micros(micros));
                self.overdue();
            }
            Op::Deadline => {
                if self.connection().next_deadline().is_some() {
                    self.talk.deadline();
                }
            }
            Op::Flush => {
                self.talk.flush();
                assert!(!self.connection().ack_owed());
            }
        }
        if was_closed {
            let emitted = self.talk.done.iter().find(|a| matches!(a, Action::Emit(_)));
            assert_eq!(emitted, None, "after the end");
        }
        self.check_actions(state, at_hand.as_ref());
        self.check_standing();
    }

    /// The edge calls when a deadline has passed.
    fn overdue(&mut self) {
        let Talk { connection, now, done } = &mut self.talk;
        if connection.next_deadline().is_some_and(|at| at <= *now) {
            connection.on_deadline(*now, done);
            assert!(connection.next_deadline().is_none_or(|at| at > *now), "busy loop");
        }
    }

    fn check_actions(&mut self, state: State, at_hand: Option<&Segment>) {
        let promised = self.edge;
        let next = self.next();
        let mut delivered = 0;
        for action in std::mem::take(&mut self.talk.done) {
            match action {
                Action::Emit(emit) => self.check_emit(&emit, at_hand),
                Action::Deliver { skip, len } => {
                    let segment = at_hand.expect("only with a segment");
                    assert!(len > 0 && skip + len <= segment.len);
                    assert_eq!(segment.seq + skip, next, "a gap or a repetition");
                    assert!(!self.guest_fin);
                    delivered += len;
                    self.deliver(len);
                }
                Action::Hold { skip, len, offset } => {
                    let segment = at_hand.expect("only with a segment");
                    assert!(len > 0 && skip + len <= segment.len);
                    assert_eq!(segment.seq + skip, next + offset);
                    let edge = self.edge.expect("a window");
                    assert!((next + offset + len).at_or_before(edge), "beyond the window");
                    for at in offset..offset + len {
                        assert!(at > 0 && self.held.insert(at), "held twice");
                    }
                }
                Action::DeliverHeld { len } => {
                    assert!(len > 0 && (0..len).all(|at| self.held.contains(&at)));
                    delivered += len;
                    self.deliver(len);
                }
                Action::Release { len } => {
                    self.released += len;
                    assert!(len > 0 && self.released <= self.sent);
                }
                Action::ShutdownWrite => {
                    assert_eq!(self.took, self.delivered, "FIN before the backlog");
                    self.shut += 1;
                }
                Action::CloseHost => {
                    assert!(self.shut == 1 && self.host_eof);
                    self.ended += 1;
                }
                Action::ResetHost => self.ended += 1,
                Action::KeepAlive => assert!(at_hand.is_some()),
            }
        }
        // A FIN that was taken shows in the state.
        let before = matches!(
            state,
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        );
        let after = self.connection().state();
        self.guest_fin |= before
            && matches!(
                after,
                State::CloseWait | State::Closing | State::LastAck | State::TimeWait
            );
        self.closed_by_guest |= at_hand.is_some() && after == State::Closed;
        if self.shut > 0 {
            assert!(self.guest_fin && self.shut == 1);
        }
        assert!(self.ended <= 1, "the host socket ends once");
        let open = matches!(state, State::Established | State::FinWait1 | State::FinWait2);
        if let (Some(segment), Some(edge)) = (at_hand, promised)
            && open
            && segment.flags == NO_FLAGS
            && segment.ack == Some(self.connection().queue_start())
            && after != State::Closed
            && let Ok(old) = u32::try_from(segment.seq.distance(next))
            && old <= segment.len
        {
            let due = (segment.len - old).min(next.distance(edge).max(0).cast_unsigned());
            assert!(delivered >= due, "{delivered} of {due} bytes in the window were taken");
        }
    }

    fn deliver(&mut self, len: u32) {
        self.delivered += len;
        let later = self.held.split_off(&len);
        self.held = later.into_iter().map(|at| at - len).collect();
    }

    fn check_emit(&mut self, emit: &Emit, at_hand: Option<&Segment>) {
        if emit.flags.rst {
            return assert_eq!(emit.len, 0);
        }
        let at = H.distance(emit.seq);
        if emit.len > 0 {
            assert!(at >= 0, "{emit:?}");
            assert!(at.cast_unsigned() >= self.released, "{emit:?} was released");
            assert!(at.cast_unsigned() + emit.len <= self.sent, "{emit:?} was never read");
            assert!((48..=OPTIONS.mss).contains(&emit.segment_size));
        }
        if emit.flags.fin {
            assert!(self.host_eof);
            assert_eq!(at.cast_unsigned() + emit.len, self.sent);
        }
        let Some(ack) = emit.ack else {
            assert!(emit.flags == WITH_SYN && emit.seq == OUR_ISS && emit.syn.is_some());
            self.offered = emit.window.into();
            return;
        };
        for &(left, right) in emit.sack.iter().flatten() {
            assert!(emit.len == 0);
            let (from, to) = (self.next().distance(left), self.next().distance(right));
            assert!((from..to).all(|at| self.held.contains(&at.cast_unsigned())), "{emit:?}");
            assert!(from < to && !self.held.contains(&to.cast_unsigned()));
        }
        // The acknowledgment of the segment at hand counts its bytes and perhaps its FIN.
        let fin = at_hand.is_some_and(|segment| segment.flags.fin);
        let expected = self.next();
        assert!(ack == expected || (fin && ack == expected + 1), "{ack:?} for {expected:?}");
        let shift = if emit.syn.is_some() { 0 } else { self.scale };
        let edge = ack + (u32::from(emit.window) << shift);
        // A repeated SYN-ACK cannot say what an acknowledgment in between said with a shift.
        if let (Some(before), None) = (self.edge, emit.syn) {
            assert!(before.distance(edge) > -(1 << self.scale), "the edge moves left");
        }
        self.edge = Some(self.edge.unwrap_or(edge).later(edge));
    }

    fn check_standing(&self) {
        let connection = self.connection();
        let backlog = u64::from(self.delivered - self.took);
        let limit = u64::from(self.limit);
        assert!(backlog <= limit + (limit / 8).max(1 << self.scale), "{backlog} in the backlog");
        match connection.state() {
            State::Closed => assert_eq!(connection.next_deadline(), None),
            State::Connecting => {}
            State::SynSent | State::SynReceived | State::TimeWait => {
                assert!(connection.next_deadline().is_some())
            }
            _ => {
                let flying = self.sent - self.released;
                let fin = connection.in_flight().checked_sub(flying);
                assert!(fin.is_some_and(|fin| fin <= 1), "{} {flying}", connection.in_flight());
                let blocked = self.waiting && connection.send_capacity() == 0;
                if connection.in_flight() > 0 || blocked {
                    let at = connection.next_deadline().expect("a timer ends it");
                    assert!(at.since(self.talk.now) <= Duration::from_secs(60));
                }
            }
        }
        if connection.is_closed() {
            assert_eq!(connection.state(), State::Closed);
            assert!(!connection.ack_owed());
        }
    }
}

fn options() -> impl Strategy<Value = Options> {
    let receive_limit = select(vec![1000, 65_535, 100_000, 4 << 20]);
    let first_window = select(vec![500, 30_000, u32::MAX]);
    let in_flight_limit = select(vec![3000, 100_000, 1 << 20]);
    let frame_limit = select(vec![1460, 61_000]);
    (receive_limit, first_window, in_flight_limit, frame_limit).prop_map(
        |(receive_limit, first_window, in_flight_limit, frame_limit)| Options {
            receive_limit,
            first_window,
            in_flight_limit,
            frame_limit,
            ..OPTIONS
        },
    )
}

fn syn() -> impl Strategy<Value = Segment> {
    let mss = proptest::option::of(prop_oneof![Just(1400), any::<u16>()]);
    let scale = proptest::option::of(select(vec![0, 3, 14]));
    (mss, scale, any::<u16>()).prop_map(|(mss, window_scale, window)| Segment {
        mss,
        window_scale,
        window,
        ..SYN
    })
}

proptest! {
    // A failure prints the events that matter; they become a test of their own.
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_events_keep_the_promises(
        syn in syn(),
        options in options(),
        ops in vec(op(), 1..150),
        handshake in any::<u8>(),
        inbound in any::<bool>(),
    ) {
        let mut model = Model::new(syn, options, inbound);
        // Most runs begin with an ordinary handshake; some have to find it.
        if handshake > 20 {
            model.apply(&Op::Connected);
            model.apply(&Op::Guest {
                seq: Number::Next,
                ack: Acknowledges::All,
                flags: if inbound { WITH_SYN } else { NO_FLAGS },
                window: 5000,
                len: 0,
                sack: None,
            });
        }
        for op in &ops {
            model.apply(op);
        }
    }
}

#[test]
fn what_our_syn_offers_holds_for_the_first_segment_beyond_a_gap() {
    let syn = Segment { window: 0, mss: None, window_scale: None, ..SYN };
    let options = Options { receive_limit: 1000, first_window: 30_000, ..OPTIONS };
    let mut model = Model::new(syn, options, true);
    let guest = |seq, flags, len| Op::Guest {
        seq,
        ack: Acknowledges::All,
        flags,
        window: 0,
        len,
        sack: None,
    };
    model.apply(&guest(Number::Next, WITH_SYN, 0));
    for by in [-2, -1, 0, 1] {
        model.apply(&guest(Number::Edge(by), NO_FLAGS, 1));
    }
}
