//! The handshake: from the first SYN until the connection is established.
//!
//! ```text
//!   outbound   guest SYN ▶ Connecting ▶ (host connected) SYN-ACK ▶ SynReceived ▶ guest ACK
//!   inbound    (host accepted) SYN ▶ SynSent ▶ guest SYN-ACK ▶ ACK
//!                                      └ guest SYN ▶ SYN-ACK ▶ SynReceived ▶ guest ACK or SYN-ACK
//! ```
//! The host's kernel has completed the handshake with an inbound client before the guest sees our
//! SYN. What the client sends meanwhile waits in the host socket; a FIN follows as soon as the
//! guest has answered. A guest that refuses has the client's connection reset.

use crate::base::{DropReason, Instant, Seq};
use crate::stack::wire::{Flags, Segment};

use super::connection::{Connection, State};
use super::receive::Receive;
use super::rtt::Rtt;
use super::timers::Timers;
use super::transmit::Transmit;
use super::{Action, Emit, Options, SynOptions};

impl Connection {
    /// Answers `syn`, whose flags are exactly SYN. `iss` is our initial sequence number; it must
    /// be unpredictable to others (RFC 9293 §3.4.1).
    pub fn from_syn(now: Instant, syn: &Segment, iss: Seq, options: Options) -> Connection {
        let mut connection = Connection::new(State::Connecting, now, iss, options);
        connection.take_syn(syn, iss);
        connection
    }

    /// Opens a connection to the guest for a client whose connection the host socket is: the first
    /// SYN goes out. `iss` as in [`Connection::from_syn`].
    pub fn to_guest(now: Instant, iss: Seq, options: Options, out: &mut Vec<Action>) -> Connection {
        let mut connection = Connection::new(State::SynSent, now, iss, options);
        connection.rtt.sent(now, connection.transmit.nxt);
        connection.emit_syn(now, out);
        connection
    }

    /// Before anything is known of the guest's end.
    fn new(state: State, now: Instant, iss: Seq, options: Options) -> Connection {
        let mss = options.mss.into();
        let (first, limit) = (options.first_window, options.receive_limit);
        Connection {
            options,
            state,
            irs: Seq(0),
            scaled: true,
            sack_permitted: true,
            receive: Receive::new(first, limit, mss, window_shift(limit)),
            transmit: Transmit::new(iss, mss.max(MIN_MSS)),
            rtt: Rtt::new(),
            timers: Timers::default(),
            retries: 0,
            persist_backoff: 0,
            probes: 0,
            heard: now,
            ack_owed: false,
            last_ack: Seq(0),
            host_waiting: false,
            host_eof: false,
            host_closed: false,
            last_challenge: None,
            retransmits: 0,
        }
    }

    /// Learns from the guest's SYN, which acknowledges `ack` of ours.
    fn take_syn(&mut self, syn: &Segment, ack: Seq) {
        self.irs = syn.seq;
        // RFC 7323 §2.2: windows are scaled if both ends offered it.
        self.scaled = syn.window_scale.is_some();
        self.sack_permitted = syn.sack_permitted;
        self.receive.synchronize(syn.seq, self.scaled);
        self.last_ack = self.receive.nxt;
        // RFC 9293 §3.7.1: 536 without the option, and never more than what the link carries
        // (MMS_S there) or a path MTU allows that was learned meanwhile.
        let mss = u32::from(syn.mss.unwrap_or(536)).min(self.transmit.mss).max(MIN_MSS);
        self.transmit.synchronize(mss, syn.window_scale.unwrap_or(0));
        self.transmit.open(syn.seq, ack, syn.window, false);
    }

    /// Whether `syn` starts a new connection on the same addresses and ports, so that this one is
    /// to be dropped: the guest gave up while we were connecting, or TIME-WAIT allows it
    /// (RFC 9293 §3.10.7.4 and RFC 6191: a later sequence number).
    pub fn superseded_by(&self, syn: &Segment) -> bool {
        let is_syn = syn.flags.syn && syn.ack.is_none() && !syn.flags.rst && !syn.flags.fin;
        match self.state {
            State::Connecting => is_syn && syn.seq != self.irs,
            State::TimeWait => is_syn && self.receive.nxt.precedes(syn.seq),
            _ => false,
        }
    }

    /// The host socket is connected: the guest gets its SYN-ACK.
    pub fn on_connected(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.state == State::Connecting {
            self.state = State::SynReceived;
            self.rtt.sent(now, self.transmit.nxt);
            self.emit_syn_ack(now, out);
        }
    }

    /// The host could not connect. With `refuse` the guest gets the reset that a closed port
    /// sends; otherwise the caller tells it by ICMP, or not at all.
    pub fn on_connect_failed(&mut self, refuse: bool, out: &mut Vec<Action>) {
        if self.state != State::Connecting {
            return;
        }
        if refuse {
            out.push(reset(Seq(0), Some(self.irs + 1)));
        }
        self.kill();
    }

    /// The guest answered a segment that began at `quoted` with an ICMP error that says it is not
    /// reachable, or not allowed to be. Only our SYN is given up for that (RFC 5461 §4, RFC 5927
    /// §4); the client sees a reset.
    pub fn on_unreachable(&mut self, quoted: Seq, out: &mut Vec<Action>) {
        if self.state == State::SynSent && quoted == self.transmit.una {
            self.reset_host(out);
            self.kill();
        }
    }

    /// SYN-SENT, RFC 9293 §3.10.7.3.
    pub(super) fn in_syn_sent(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        let Flags { syn, fin, rst, .. } = segment.flags;
        // First and second, ACK and RST: a reset counts only if it knows our SYN.
        if let Some(ack) = segment.ack.filter(|&ack| ack != self.transmit.nxt) {
            if !rst {
                self.answer_older_connection(now, ack, out);
            }
            return Err(DropReason::UnacceptableSegment);
        }
        if rst && segment.ack.is_some() {
            self.reset_host(out);
            self.kill();
            return Ok(());
        }
        // Fourth, SYN. One with RST or FIN is nobody's handshake; text is sent again by the guest.
        if !syn || rst || fin {
            return Err(DropReason::UnacceptableSegment);
        }
        self.heard = now;
        match segment.ack {
            Some(ack) => {
                self.take_syn(segment, ack);
                self.ack_owed = true;
                self.establish(now, ack, out);
            }
            None => {
                self.take_syn(segment, self.transmit.una);
                self.state = State::SynReceived;
                self.emit_syn_ack(now, out);
            }
        }
        Ok(())
    }

    /// The guest remembers an older connection with the same addresses and ports, perhaps in
    /// TIME-WAIT: the reset makes it forget (RFC 9293 §3.5.1). The link keeps order, so a SYN
    /// right behind it finds the way clear, which spares the client a time-out; once, lest two
    /// ends that disagree answer each other for ever.
    fn answer_older_connection(&mut self, now: Instant, ack: Seq, out: &mut Vec<Action>) {
        out.push(reset_at(ack));
        if self.retransmits == 0 {
            self.rtt.retransmitted();
            self.retransmits = 1;
            self.emit_syn(now, out);
        }
    }

    /// In SYN-RECEIVED, both SYNs having crossed: the guest's SYN comes again, with an
    /// acknowledgment of ours (RFC 9293 §3.5 figure 8).
    pub(super) fn crosses_syn(&self, segment: &Segment) -> bool {
        let Flags { syn, fin, rst, .. } = segment.flags;
        let known = segment.seq == self.irs && segment.ack == Some(self.transmit.nxt);
        syn && !fin && !rst && known && segment.len == 0
    }

    /// Completes the handshake with the segment that [`Connection::crosses_syn`] recognized.
    pub(super) fn take_crossed_syn(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) {
        // The window of a SYN is not scaled.
        self.transmit.open(segment.seq, self.transmit.nxt, segment.window, false);
        self.ack_owed = true;
        self.establish(now, self.transmit.nxt, out);
    }

    /// The time-out of a SYN or SYN-ACK.
    pub(super) fn repeat_syn(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.retries > MAX_SYN_RETRIES {
            return self.abort(out);
        }
        self.retransmits = self.retransmits.saturating_add(1);
        match self.state {
            State::SynSent => self.emit_syn(now, out),
            _ => self.emit_syn_ack(now, out),
        }
    }

    /// The host has not answered yet: a repeated SYN is waited out, a reset ends the attempt.
    pub(super) fn while_connecting(
        &mut self,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if segment.flags.rst && (segment.seq == self.irs || segment.seq == self.receive.nxt) {
            self.reset_host(out);
            self.kill();
            return Ok(());
        }
        if self.repeats_syn(segment) { Ok(()) } else { Err(DropReason::UnacceptableSegment) }
    }

    /// In SYN-RECEIVED the guest acknowledges `ack`: our SYN, or nothing that we sent.
    pub(super) fn handshake_acknowledged(
        &mut self,
        now: Instant,
        segment: &Segment,
        ack: Seq,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if ack != self.transmit.nxt {
            out.push(reset_at(ack));
            return Err(DropReason::UnacceptableSegment);
        }
        self.transmit.open(segment.seq, ack, segment.window, self.scaled);
        self.establish(now, ack, out);
        Ok(())
    }

    /// Our SYN is acknowledged by `ack`, and the guest's window known.
    fn establish(&mut self, now: Instant, ack: Seq, out: &mut Vec<Action>) {
        self.state = State::Established;
        self.transmit.una = ack;
        self.rtt.acked(now, ack);
        self.restart_retransmit_timer(now);
        self.arm_keep_alive(now);
        if self.host_eof {
            self.send_fin(now, out);
        }
        self.check_persist(now);
    }

    pub(super) fn repeats_syn(&self, segment: &Segment) -> bool {
        let Flags { syn, fin, rst, .. } = segment.flags;
        syn && !fin && !rst && segment.ack.is_none() && segment.seq == self.irs
    }

    /// Our SYN, first or again.
    fn emit_syn(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.emit_with_options(None, out);
        self.ensure_retransmit_timer(now);
    }

    /// A SYN-ACK, first or again. The time-out of the first one goes on if it is only repeated
    /// because the guest asked.
    pub(super) fn emit_syn_ack(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.ack_owed = false;
        self.emit_with_options(Some(self.receive.nxt), out);
        self.ensure_retransmit_timer(now);
    }

    fn emit_with_options(&mut self, ack: Option<Seq>, out: &mut Vec<Action>) {
        out.push(Action::Emit(Emit {
            seq: self.transmit.una,
            ack,
            flags: Flags { syn: true, ..Flags::default() },
            // RFC 7323 §2.2: the window of a SYN is never scaled.
            window: self.receive.advertise(false),
            len: 0,
            // An MSS is at most 65,535.
            segment_size: self.transmit.mss as u16,
            syn: Some(SynOptions {
                mss: self.options.mss,
                window_scale: self.scaled.then(|| window_shift(self.options.receive_limit)),
                sack_permitted: self.sack_permitted,
            }),
            sack: [None; 3],
        }));
    }
}

/// <SEQ=seq><CTL=RST>: the answer to an acknowledgment of something that this connection never
/// sent, and the end of an attempt that the guest has not answered.
pub(super) fn reset_at(seq: Seq) -> Action {
    reset(seq, None)
}

fn reset(seq: Seq, ack: Option<Seq>) -> Action {
    Action::Emit(Emit {
        seq,
        ack,
        flags: Flags { rst: true, ..Flags::default() },
        window: 0,
        len: 0,
        segment_size: u16::MAX,
        syn: None,
        sack: [None; 3],
    })
}

/// SYNs or SYN-ACKs that are sent again before giving up: after 1, 2, 4 … 32 s, and a last wait of
/// a minute (Linux's tcp_syn_retries).
const MAX_SYN_RETRIES: u8 = 6;

/// A tiny MSS would turn one frame into thousands of segments; Linux clamps at 48 too
/// (TCP_MIN_SND_MSS).
pub(super) const MIN_MSS: u32 = 48;

/// The smallest shift that can say a window of `limit` bytes (RFC 7323 §2.3: at most 14).
fn window_shift(limit: u32) -> u8 {
    (0..14).find(|shift| limit >> shift <= 65_535).unwrap_or(14)
}
