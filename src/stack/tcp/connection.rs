//! The connection: its state, what the host side reports, what it sends. It begins in
//! [`super::opening`]; segments arrive in [`super::arrives`], deadlines in [`super::deadlines`].

use std::time::Duration;

use crate::base::{Instant, Seq};
use crate::stack::wire::Flags;

use super::opening::{MIN_MSS, reset_at};
use super::receive::{GuestFin, Receive};
use super::rtt::Rtt;
use super::timers::{Timer, Timers};
use super::transmit::Transmit;
use super::{Action, Emit, Options};

/// RFC 9293 states of our end, plus the wait for the host's own handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The guest's SYN is answered when the host socket is connected.
    Connecting,
    /// Our SYN is sent to the guest for a client that the host has accepted.
    SynSent,
    /// SYN-ACK sent.
    SynReceived,
    /// Data flows both ways.
    Established,
    /// The guest sent FIN.
    CloseWait,
    /// The host closed; our FIN is not acknowledged.
    FinWait1,
    /// The host closed; our FIN is acknowledged.
    FinWait2,
    /// Both closed at once; our FIN is not acknowledged.
    Closing,
    /// The guest closed first, then the host; our FIN is not acknowledged.
    LastAck,
    /// The host closed first: we remember the connection for a while.
    TimeWait,
    /// Over; the edge forgets it.
    Closed,
}

/// Bytes whose acknowledgment may wait until the worker has nothing else to do, so that the answer
/// to a small request carries it. Less than two segments of a usual size (RFC 9293 §3.8.6.3), and
/// far less than a window.
const ACK_PATIENCE: i32 = 2048;

/// One TCP connection of the guest. See the header of [`super`] for what it is and is not.
///
/// Methods named `on_*` take what happened, the time, and a buffer for the [`Action`]s that follow.
/// After any of them, [`Connection::next_deadline`] may have changed.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(super) options: Options,
    pub(super) state: State,
    pub(super) irs: Seq,
    pub(super) scaled: bool,
    pub(super) sack_permitted: bool,
    pub(super) receive: Receive,
    pub(super) transmit: Transmit,
    pub(super) rtt: Rtt,
    pub(super) timers: Timers,
    pub(super) retries: u8,
    pub(super) persist_backoff: u8,
    pub(super) probes: u8,
    /// When the guest was last heard of.
    pub(super) heard: Instant,
    pub(super) ack_owed: bool,
    /// What was last acknowledged to the guest.
    pub(super) last_ack: Seq,
    /// The host socket has bytes or EOF that were not read for lack of window.
    pub(super) host_waiting: bool,
    /// The edge read EOF. Our FIN is sent, or will be when the guest completes the handshake.
    pub(super) host_eof: bool,
    /// [`Action::CloseHost`] or [`Action::ResetHost`] was given out.
    pub(super) host_closed: bool,
    pub(super) last_challenge: Option<Instant>,
    pub(super) retransmits: u32,
}

impl Connection {
    /// The present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the edge is to forget the connection: it is over, and what the guest sent before
    /// its FIN has reached the host socket.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed && self.receive.fin != GuestFin::Received
    }

    /// The guest's initial sequence number: what an ICMP error about its SYN quotes.
    pub fn initial_sequence(&self) -> Seq {
        self.irs
    }

    /// Smoothed round-trip time to the guest.
    pub fn round_trip(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// Segments that were sent again, as far as a `u32` counts.
    pub fn retransmits(&self) -> u32 {
        self.retransmits
    }

    /// Whether the handshake with the guest is not complete.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.state, State::Connecting | State::SynSent | State::SynReceived)
    }

    /// Whether the guest may have more to send, or sent something that is not passed on yet.
    pub fn guest_unfinished(&self) -> bool {
        !matches!(self.state, State::Closed | State::TimeWait | State::SynSent)
            && self.receive.fin != GuestFin::PassedOn
            || self.receive.fin == GuestFin::Received
    }

    /// Whether the host's bytes were read to their end.
    pub fn host_read_ended(&self) -> bool {
        self.host_eof
    }

    /// Bytes that the edge holds for the host socket, or has to hold if the guest sends all that
    /// it was offered.
    pub fn promised(&self) -> u32 {
        self.receive.promised()
    }

    /// Whether bytes of the guest wait beyond a gap; if not, the edge has none to keep.
    pub fn holds(&self) -> bool {
        !self.receive.held.is_empty()
    }

    /// Bytes sent to the guest that it has not acknowledged.
    pub fn in_flight(&self) -> u32 {
        self.transmit.in_flight()
    }

    /// Oldest sequence number in the retransmission queue.
    pub fn queue_start(&self) -> Seq {
        self.transmit.una
    }

    /// When [`Connection::on_deadline`] is to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Bytes that the edge may read from the host socket now, for one frame.
    pub fn send_capacity(&self) -> u32 {
        if !self.may_send() {
            return 0;
        }
        self.transmit.capacity(self.options.in_flight_limit).min(self.options.frame_limit)
    }

    pub(super) fn may_send(&self) -> bool {
        matches!(self.state, State::Established | State::CloseWait) && !self.host_eof
    }

    /// Bounds what the guest may have waiting for the host from now on (D3, caps per guest).
    /// What was offered before is still taken: [`Connection::promised`] does not shrink by it.
    ///
    /// Raising it may open the window: [`Connection::ack_owed`] tells.
    pub fn set_receive_limit(&mut self, limit: u32) {
        self.receive.set_limit(limit.min(self.options.receive_limit));
        self.check_window_update();
    }

    /// The guest learned a smaller path MTU (RFC 1191 §6.4): segments carry at most `mss` bytes.
    pub fn on_path_mtu(&mut self, now: Instant, mss: u16, out: &mut Vec<Action>) {
        let mss = u32::from(mss).max(MIN_MSS);
        if mss >= self.transmit.mss || self.state == State::Closed {
            return;
        }
        self.transmit.mss = mss;
        // Before the guest has completed the handshake only our SYN is in flight.
        if !self.is_opening() && self.transmit.in_flight() > 0 {
            self.transmit.enter_recovery(true);
            self.resend(now, out);
        }
    }

    // --- what the host side reports ---

    /// The host socket has bytes or EOF to read. The edge reads as far as
    /// [`Connection::send_capacity`] allows; if that is nothing, the machine sees to the window.
    /// EOF needs none: if only that waits, [`Connection::on_host_eof`] is to be called.
    pub fn on_host_waiting(&mut self, now: Instant, waiting: bool) {
        self.host_waiting = waiting;
        self.check_persist(now);
    }

    /// The edge read `len` bytes, at most [`Connection::send_capacity`], into the retransmission
    /// queue; `last` if no more is known to wait.
    pub fn on_host_data(&mut self, now: Instant, len: u32, last: bool, out: &mut Vec<Action>) {
        if len == 0 || !self.may_send() {
            return;
        }
        self.host_waiting = !last;
        let seq = self.transmit.advance(len);
        self.rtt.sent(now, self.transmit.nxt);
        self.ensure_retransmit_timer(now);
        let flags = Flags { psh: last, ..Flags::default() };
        self.emit(seq, len, flags, out);
        self.check_persist(now);
    }

    /// As [`Connection::on_host_data`], and EOF stands right behind the `len` bytes: one segment
    /// carries them and our FIN.
    pub fn on_host_data_and_eof(&mut self, now: Instant, len: u32, out: &mut Vec<Action>) {
        if len == 0 || !self.may_send() {
            return;
        }
        self.host_waiting = false;
        self.host_eof = true;
        self.timers.disarm(Timer::Persist);
        let seq = self.transmit.advance(len);
        self.rtt.sent(now, self.transmit.nxt);
        self.emit_fin(now, seq, len, out);
    }

    /// The edge read EOF: our FIN goes to the guest, whatever its window. A guest that does
    /// not take a FIN beyond a closed one (recent Linux does) gets it again when that opens.
    pub fn on_host_eof(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.host_waiting = false;
        self.timers.disarm(Timer::Persist);
        if self.host_eof {
            return;
        }
        match self.state {
            State::Established | State::CloseWait => {
                self.host_eof = true;
                self.send_fin(now, out);
            }
            // RFC 9293 §3.10.4, CLOSE call: queued until the handshake is complete.
            State::Connecting | State::SynSent | State::SynReceived => self.host_eof = true,
            _ => {}
        }
    }

    /// Sends our FIN behind everything that was sent before.
    pub(super) fn send_fin(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.emit_fin(now, self.transmit.nxt, 0, out);
    }

    /// A segment with `len` bytes from `seq` up to SND.NXT, and our FIN.
    fn emit_fin(&mut self, now: Instant, seq: Seq, len: u32, out: &mut Vec<Action>) {
        self.state = match self.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            _ => return,
        };
        self.transmit.fin = Some(self.transmit.advance(1));
        let flags = Flags { fin: true, psh: len > 0, ..Flags::default() };
        self.emit(seq, len, flags, out);
        // Until the FIN is acknowledged its retransmission shows whether the guest is alive.
        self.timers.disarm(Timer::KeepAlive);
        self.ensure_retransmit_timer(now);
        self.check_host_close(out);
    }

    /// The host socket took `len` bytes of what was delivered.
    pub fn on_host_took(&mut self, len: u32, out: &mut Vec<Action>) {
        self.receive.backlog = self.receive.backlog.saturating_sub(len);
        self.check_window_update();
        self.check_guest_fin(out);
    }

    /// An update is owed if the guest can still send and the window has grown enough.
    fn check_window_update(&mut self) {
        let guest_sends =
            matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        self.ack_owed |= guest_sends && self.receive.update_due();
    }

    /// The host socket failed or was reset by the peer: so is the guest's connection. The edge
    /// drops the socket; no action tells it to.
    pub fn on_host_reset(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Closed | State::TimeWait => {}
            State::Connecting => return self.on_connect_failed(true, out),
            // The guest may have answered already; the reset ends what is half open there.
            State::SynSent => out.push(reset_at(self.transmit.nxt)),
            _ => self.emit_reset(out),
        }
        self.kill();
    }

    /// Gives the connection up from our side: both ends are reset.
    pub fn abort(&mut self, out: &mut Vec<Action>) {
        self.reset_host(out);
        self.on_host_reset(out);
    }

    // --- steps that several events share ---

    /// Sends what is known to be lost, at most one frame.
    pub(super) fn resend(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(lost) = self.transmit.next_resend(self.options.resend_limit) else { return };
        self.rtt.retransmitted();
        self.retransmits = self.retransmits.saturating_add(1);
        let flags = Flags { fin: lost.fin, ..Flags::default() };
        self.emit(lost.seq, lost.len, flags, out);
        self.timers.arm(Timer::Retransmit, now + self.rtt.timeout());
    }

    /// The guest answers but takes nothing: that is no reason to give up (RFC 9293 §3.8.6.1).
    pub(super) fn forgive_retries(&mut self) {
        self.retries = 0;
    }

    pub(super) fn ensure_retransmit_timer(&mut self, now: Instant) {
        if !self.timers.is_armed(Timer::Retransmit) {
            self.timers.arm(Timer::Retransmit, now + self.rtt.timeout());
        }
    }

    /// After an acknowledgment of something new.
    pub(super) fn restart_retransmit_timer(&mut self, now: Instant) {
        self.retries = 0;
        if self.transmit.in_flight() == 0 {
            self.timers.disarm(Timer::Retransmit);
        } else {
            self.timers.arm(Timer::Retransmit, now + self.rtt.timeout());
        }
    }

    /// Passes the guest's FIN on once everything before it is out.
    pub(super) fn check_guest_fin(&mut self, out: &mut Vec<Action>) {
        if self.receive.fin == GuestFin::Received && self.receive.backlog == 0 {
            self.receive.fin = GuestFin::PassedOn;
            out.push(Action::ShutdownWrite);
            self.check_host_close(out);
        }
    }

    /// Has the host socket closed with a reset, unless it is closed already.
    pub(super) fn reset_host(&mut self, out: &mut Vec<Action>) {
        if !self.host_closed {
            self.host_closed = true;
            out.push(Action::ResetHost);
        }
    }

    fn check_host_close(&mut self, out: &mut Vec<Action>) {
        if self.receive.fin == GuestFin::PassedOn && self.host_eof && !self.host_closed {
            self.host_closed = true;
            out.push(Action::CloseHost);
        }
    }

    /// The guest has acknowledged our FIN and we its: the side that closed first waits.
    pub(super) fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.timers.clear();
        self.timers.arm(Timer::TimeWait, now + self.options.time_wait);
    }

    /// Over in the ordinary way; a backlog may still be on its way to the host socket.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.timers.clear();
        self.ack_owed = false;
        self.receive.held.clear();
    }

    /// Over by reset: what was not passed on is lost.
    pub(super) fn kill(&mut self) {
        self.close();
        self.receive.backlog = 0;
        self.receive.fin = GuestFin::PassedOn;
        self.host_closed = true;
    }

    // --- segments out ---

    /// Whether an acknowledgment or window update waits for [`Connection::flush`].
    pub fn ack_owed(&self) -> bool {
        self.ack_owed
    }

    /// Whether that acknowledgment should not wait for data to carry it, not even for the moment
    /// until the worker is idle: it repeats one (the guest may have lost something), reports more
    /// than a little data, or belongs to a connection that is opening or that both ends close. The
    /// guest's FIN alone may wait: more often than not the host side closes in answer.
    pub fn ack_pressing(&self) -> bool {
        let unreported = self.last_ack.distance(self.receive.nxt);
        self.ack_owed
            && (unreported <= 0
                || unreported > ACK_PATIENCE
                || !matches!(self.state, State::Established | State::CloseWait))
    }

    /// Sends the acknowledgment that is still owed at the end of a batch, if no data carried it.
    pub fn flush(&mut self, out: &mut Vec<Action>) {
        if self.ack_owed {
            self.emit(self.transmit.nxt, 0, Flags::default(), out);
        }
    }

    pub(super) fn emit(&mut self, seq: Seq, len: u32, flags: Flags, out: &mut Vec<Action>) {
        self.ack_owed = false;
        self.last_ack = self.receive.nxt;
        let window = self.receive.advertise(self.scaled);
        let reports = self.sack_permitted && len == 0 && flags == Flags::default();
        out.push(Action::Emit(Emit {
            seq,
            ack: Some(self.receive.nxt),
            flags,
            window,
            len,
            // An MSS is at most 65,535.
            segment_size: self.transmit.mss as u16,
            syn: None,
            sack: if reports { self.receive.held.blocks() } else { [None; 3] },
        }));
    }

    fn emit_reset(&mut self, out: &mut Vec<Action>) {
        self.emit(self.transmit.nxt, 0, Flags { rst: true, ..Flags::default() }, out);
    }
}
