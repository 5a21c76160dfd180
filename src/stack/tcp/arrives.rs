//! SEGMENT ARRIVES (RFC 9293 §3.10.7), in the RFC's order of checks.

use crate::base::{DropReason, Instant};
use crate::stack::wire::Segment;

use super::Action;
use super::connection::{Connection, State};
use super::receive::GuestFin;
use super::timers::Timer;
use super::transmit::Acked;

use std::time::Duration;

/// Challenge ACKs of one connection keep this distance (RFC 5961 §7; Linux's
/// tcp_invalid_ratelimit).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

impl Connection {
    /// Takes a segment of this connection. `Err` says why it had no effect beyond an answer.
    pub fn on_segment(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        match self.state {
            State::Closed => Err(DropReason::NoFlow),
            State::SynSent => self.in_syn_sent(now, segment, out),
            State::Connecting => self.while_connecting(segment, out),
            _ => self.synchronized(now, segment, out),
        }
    }

    fn synchronized(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        self.heard = now;
        self.probes = 0;
        if self.state == State::SynReceived && self.repeats_syn(segment) {
            // Our SYN-ACK was lost, or is slower than the guest's patience.
            self.rtt.retransmitted();
            self.emit_syn_ack(now, out);
            return Ok(());
        }
        if self.state == State::SynReceived && self.crosses_syn(segment) {
            self.take_crossed_syn(now, segment, out);
            return Ok(());
        }
        // First, sequence number. What a reset carries is a remark (RFC 9293 §3.5.3). A bare FIN
        // costs no memory, so like on Linux no window is too small for it.
        let bare_fin = segment.flags.fin && segment.sequence_len() == 1;
        let sequence_len = if segment.flags.rst || bare_fin { 0 } else { segment.sequence_len() };
        if !self.receive.acceptable(segment.seq, sequence_len) {
            return self.unacceptable(now, segment, out);
        }
        // Second, RST: exactly at RCV.NXT, else it is challenged (RFC 5961 §3.2).
        if segment.flags.rst {
            if segment.seq == self.receive.nxt {
                self.reset_by_guest(out);
                return Ok(());
            }
            self.challenge(now);
            return Err(DropReason::UnacceptableSegment);
        }
        // Fourth, SYN in the window (RFC 5961 §4.2).
        if segment.flags.syn {
            self.challenge(now);
            return Err(DropReason::UnacceptableSegment);
        }
        // Fifth, ACK.
        let Some(_) = segment.ack else { return Err(DropReason::UnacceptableSegment) };
        self.acknowledged(now, segment, out)?;
        if self.state == State::Closed {
            return Ok(());
        }
        // Seventh and eighth, text and FIN.
        self.text_and_fin(now, segment, out)
    }

    fn reset_by_guest(&mut self, out: &mut Vec<Action>) {
        if self.state == State::TimeWait {
            // Both directions were complete; what the guest sent before its FIN still goes out.
            self.close();
        } else {
            self.reset_host(out);
            self.kill();
        }
    }

    /// Outside the window: acknowledged, so that the other end learns where we are.
    fn unacceptable(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if segment.flags.rst {
            return Err(DropReason::UnacceptableSegment);
        }
        let probe = segment.seq == self.receive.nxt - 1
            && segment.len <= 1
            && !segment.flags.syn
            && !segment.flags.fin;
        // With a closed window the same segment asks for the window (Linux's zero-window probe).
        let asks_for_life = self.receive.fin == GuestFin::Open && self.receive.open() > 0;
        if probe && asks_for_life && self.state != State::SynReceived {
            out.push(Action::KeepAlive);
        }
        if probe || (segment.sequence_len() > 0 && !segment.flags.syn) {
            self.ack_owed = true;
        } else {
            // Two ends that disagree could answer each other's bare ACKs for ever.
            self.challenge(now);
        }
        if self.state == State::TimeWait && segment.flags.fin {
            self.timers.arm(Timer::TimeWait, now + self.options.time_wait);
        }
        // A retransmission, a probe, or data beyond a closed window may still carry news.
        let old = segment.seq.precedes(self.receive.nxt) || segment.seq == self.receive.nxt;
        if old && segment.ack.is_some() && !segment.flags.syn && self.state != State::SynReceived {
            self.acknowledged(now, segment, out)?;
        }
        if probe || segment.seq.precedes(self.receive.nxt) {
            Ok(())
        } else {
            Err(DropReason::UnacceptableSegment)
        }
    }

    fn challenge(&mut self, now: Instant) {
        if self.last_challenge.is_none_or(|last| now.since(last) >= CHALLENGE_INTERVAL) {
            self.last_challenge = Some(now);
            self.ack_owed = true;
        }
    }

    fn acknowledged(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        // The caller has checked that the bit is set.
        let Some(ack) = segment.ack else { return Ok(()) };
        if self.state == State::SynReceived {
            return self.handshake_acknowledged(now, segment, ack, out);
        }
        let pure = segment.len == 0 && !segment.flags.fin;
        match self.transmit.on_ack(ack, segment.window, &segment.sack, pure) {
            Acked::Outside => {
                self.challenge(now);
                return Err(DropReason::UnacceptableSegment);
            }
            Acked::Old => {
                let reopened = self.transmit.update_window(segment.seq, ack, segment.window);
                // What was sent again into the closed window is lost, and perhaps the FIN that did
                // not wait for it: once more, without waiting for a timer that has backed off.
                if reopened && (self.transmit.in_recovery() || self.transmit.fin.is_some()) {
                    self.transmit.enter_recovery(true);
                }
            }
            Acked::New { bytes, fin } => {
                self.transmit.update_window(segment.seq, ack, segment.window);
                self.rtt.acked(now, ack);
                if bytes > 0 {
                    out.push(Action::Release { len: bytes });
                }
                self.restart_retransmit_timer(now);
                if fin {
                    self.fin_acknowledged(now);
                }
            }
        }
        if self.transmit.window_is_closed() {
            self.forgive_retries();
        }
        if self.transmit.loss_noticed() {
            self.transmit.enter_recovery(false);
        }
        if self.transmit.in_recovery() {
            self.resend(now, out);
        }
        self.check_persist(now);
        Ok(())
    }

    fn fin_acknowledged(&mut self, now: Instant) {
        match self.state {
            State::FinWait1 => {
                self.state = State::FinWait2;
                self.arm_keep_alive(now);
            }
            State::Closing => self.enter_time_wait(now),
            State::LastAck => self.close(),
            _ => {}
        }
    }

    fn text_and_fin(
        &mut self,
        now: Instant,
        segment: &Segment,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if segment.len == 0 && !segment.flags.fin {
            return Ok(());
        }
        self.ack_owed = true;
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            // The guest has sent its FIN: RFC 9293 says ignore the text.
            return Err(DropReason::UnacceptableSegment);
        }
        let Some(accepted) = self.receive.accept(segment.seq, segment.len) else {
            // A gap. RFC 5681 §4.2: a duplicate ACK at once, one for each segment.
            let Segment { seq, len, flags, .. } = *segment;
            let held = self.receive.hold(seq, len, flags.fin);
            if let Some((skip, len)) = held {
                let offset = self.receive.nxt.distance(seq + skip).cast_unsigned();
                out.push(Action::Hold { skip, len, offset });
            }
            self.flush(out);
            let noted = flags.fin && self.receive.held.fin_is_at(seq + len);
            let kept = held.is_some() || noted;
            return if kept { Ok(()) } else { Err(DropReason::UnacceptableSegment) };
        };
        let mut fin = segment.flags.fin && accepted.whole;
        if accepted.len > 0 {
            self.receive.take(accepted.len);
            out.push(Action::Deliver { skip: accepted.skip, len: accepted.len });
            let len = self.receive.take_held();
            if len > 0 {
                out.push(Action::DeliverHeld { len });
                // Data behind a FIN is nobody's FIN.
                fin = false;
            }
            fin |= self.receive.held.fin_is_at(self.receive.nxt);
        }
        if fin {
            self.receive.nxt += 1;
            self.receive.held.clear();
            self.receive.fin = GuestFin::Received;
            match self.state {
                State::Established => {
                    self.state = State::CloseWait;
                    self.arm_keep_alive(now);
                }
                State::FinWait1 => self.state = State::Closing,
                State::FinWait2 => self.enter_time_wait(now),
                _ => {}
            }
            self.check_guest_fin(out);
        }
        Ok(())
    }
}
