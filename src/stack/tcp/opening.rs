//! The handshake: from the first SYN until the connection is established.

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
        let scaled = syn.window_scale.is_some();
        // RFC 9293 §3.7.1: 536 without the option. A tiny MSS would turn one frame into thousands
        // of segments; Linux clamps at 48 too (TCP_MIN_SND_MSS).
        // Nor does a segment exceed what the link carries (MMS_S there).
        let mss = u32::from(syn.mss.unwrap_or(536).min(options.mss).max(48));
        let shift = if scaled { window_shift(options.receive_limit) } else { 0 };
        let mut transmit = Transmit::new(iss, mss, syn.window_scale.unwrap_or(0));
        transmit.open(syn.seq, iss, syn.window, false);
        Connection {
            options,
            state: State::Connecting,
            irs: syn.seq,
            scaled,
            sack_permitted: syn.sack_permitted,
            receive: Receive::new(syn.seq, options.receive_limit, options.mss.into(), shift),
            transmit,
            rtt: Rtt::new(),
            timers: Timers::default(),
            retries: 0,
            persist_backoff: 0,
            probes: 0,
            heard: now,
            ack_owed: false,
            last_ack: syn.seq + 1,
            host_waiting: false,
            host_eof: false,
            host_closed: false,
            last_challenge: None,
            retransmits: 0,
        }
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
            out.push(Action::Emit(Emit {
                seq: Seq(0),
                ack: Some(self.irs + 1),
                flags: Flags { rst: true, ..Flags::default() },
                window: 0,
                len: 0,
                segment_size: u16::MAX,
                syn: None,
            }));
        }
        self.kill();
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
            out.push(Action::Emit(Emit {
                seq: ack,
                ack: None,
                flags: Flags { rst: true, ..Flags::default() },
                window: 0,
                len: 0,
                segment_size: u16::MAX,
                syn: None,
            }));
            return Err(DropReason::UnacceptableSegment);
        }
        self.state = State::Established;
        self.transmit.open(segment.seq, ack, segment.window, self.scaled);
        self.transmit.una = ack;
        self.rtt.acked(now, ack);
        self.restart_retransmit_timer(now);
        self.arm_keep_alive(now);
        if self.host_eof {
            self.send_fin(now, out);
        }
        self.check_persist(now);
        Ok(())
    }

    pub(super) fn repeats_syn(&self, segment: &Segment) -> bool {
        let Flags { syn, fin, rst, .. } = segment.flags;
        syn && !fin && !rst && segment.ack.is_none() && segment.seq == self.irs
    }

    /// A SYN-ACK, first or again. The time-out of the first one goes on if it is only repeated
    /// because the guest asked.
    pub(super) fn emit_syn_ack(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.ack_owed = false;
        out.push(Action::Emit(Emit {
            seq: self.transmit.una,
            ack: Some(self.receive.nxt),
            flags: Flags { syn: true, ..Flags::default() },
            // RFC 7323 §2.2: the window of a SYN is never scaled.
            window: self.receive.advertise(false),
            len: 0,
            segment_size: self.transmit.mss as u16,
            syn: Some(SynOptions {
                mss: self.options.mss,
                window_scale: self.scaled.then(|| window_shift(self.options.receive_limit)),
                sack_permitted: self.sack_permitted,
            }),
        }));
        self.ensure_retransmit_timer(now);
    }
}

/// The smallest shift that can say a window of `limit` bytes (RFC 7323 §2.3: at most 14).
fn window_shift(limit: u32) -> u8 {
    (0..14).find(|shift| limit >> shift <= 65_535).unwrap_or(14)
}
