//! A TCP flow: the machine, the host socket, and the bytes between them.
//!
//! Performs the machine's [`Action`]s and tells it what the socket did. Owns no policy: which
//! flows exist and when they are looked at is the worker's.

mod carried;
mod key;
mod to_guest;
mod to_host;

use std::io::{self, ErrorKind};
use std::ops::Range;

use crate::base::{DropReason, Instant, Mac, Seq};
use crate::stack::tcp::{Action, Connection, State};
use crate::stack::wire::{Addresses, Segment};

use super::buffers::{Backlog, RetransmitQueue};
use super::io::Io;
use super::ledger::Account;
use super::parked::Parked;
use super::ports::{FramePort, Readiness, SocketPort};
use super::team::porter::Hired;
use super::token::Token;

pub use key::TcpKey;

/// What surely fits one segment on any path (RFC 9293 §3.7.1, the default send MSS).
pub(super) const MIN_SEGMENT: usize = 536;

/// Why a connection attempt ended without a connection.
pub(super) struct ConnectFailure(pub(super) io::Error);

/// One flow. Methods put the machine's actions through `actions`, which is empty between calls.
pub(super) struct TcpFlow<S: SocketPort> {
    pub(super) key: TcpKey,
    pub(super) account: Account,
    pub(super) guest_mac: Mac,
    pub(super) machine: Connection,
    stream: Option<S::Stream>,
    readable: bool,
    writable: bool,
    /// The connection was once established.
    pub(super) answered: bool,
    /// EOF stands behind the bytes that are readable.
    closed: bool,
    /// Urgent data may stand behind a short read, and other bytes behind that.
    urgent: bool,
    /// The host socket has failed, which the guest hears of when it has acknowledged what was sent:
    /// a reset is good at exactly the byte that it expects (RFC 5961 §3.2).
    failed: bool,
    /// Slabs for the next read: more while reads fill what they are given.
    appetite: u8,
    /// What was sent to the host so far, and whether its kernel was told not to hold back.
    first_send: bool,
    no_delay: bool,
    backlog: Backlog,
    /// Payloads among the frames at hand that go to the host together, before the backlog.
    gathered: Vec<Range<usize>>,
    /// On the worker's list of flows that have such.
    pub(super) on_send_list: bool,
    /// What waits for a gap before it to be closed.
    parked: Parked,
    sent: RetransmitQueue,
    /// What [`Connection::promised`] was when it was last accounted for.
    promised: u32,
    /// The earliest entry in the timer wheel.
    pub(super) wheel_entry: Option<Instant>,
    /// On the worker's list of flows that owe an acknowledgment.
    pub(super) on_ack_list: bool,
    /// On the worker's list of flows with more to read.
    pub(super) on_read_list: bool,
    /// On the worker's list of flows that only remember their connection.
    pub(super) on_rest_list: bool,
    /// Packets in a row that another worker handed over.
    pub(super) strays: u8,
    /// Who does the sending, if it is another worker.
    pub(super) porter: Option<Box<Hired>>,
}

impl<S: SocketPort> TcpFlow<S> {
    pub(super) fn new(
        key: TcpKey,
        guest_mac: Mac,
        machine: Connection,
        stream: S::Stream,
        account: Account,
    ) -> TcpFlow<S> {
        TcpFlow {
            key,
            account,
            guest_mac,
            machine,
            stream: Some(stream),
            readable: false,
            writable: false,
            answered: false,
            closed: false,
            urgent: false,
            failed: false,
            appetite: 1,
            first_send: true,
            no_delay: false,
            backlog: Backlog::default(),
            gathered: Vec::new(),
            on_send_list: false,
            parked: Parked::default(),
            sent: RetransmitQueue::default(),
            promised: 0,
            wheel_entry: None,
            on_ack_list: false,
            on_read_list: false,
            on_rest_list: false,
            strays: 0,
            porter: None,
        }
    }

    /// The host socket, until it is closed.
    pub(super) fn stream(&self) -> Option<&S::Stream> {
        self.stream.as_ref()
    }

    /// Sends what the machine gave out when it was made.
    pub(super) fn begin<F: FramePort>(&mut self, io: &mut Io<F, S>, actions: &mut Vec<Action>) {
        // A client's connection is complete.
        self.writable = true;
        self.perform(&[], io, actions);
    }

    /// Whether there is something to read that the guest's window lets through.
    pub(super) fn wants_read(&self) -> bool {
        let may_be_told = match self.failed {
            true => self.machine.in_flight() == 0,
            false => self.machine.send_capacity() > 0,
        };
        self.readable && self.stream.is_some() && may_be_told
    }

    /// A segment of this flow arrived, with its payload.
    pub(super) fn on_segment<F: FramePort>(
        &mut self,
        now: Instant,
        segment: &Segment,
        payload: &[u8],
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        self.account.heard(now);
        let verdict = self.machine.on_segment(now, segment, actions);
        let opening = [State::Connecting, State::SynSent, State::SynReceived, State::Closed];
        self.answered |= !opening.contains(&self.machine.state());
        self.perform(payload, io, actions);
        if self.wants_read() {
            self.read(now, io, actions);
        }
        verdict
    }

    /// The host socket reports readiness. `Err` if it turns out that it could not connect.
    pub(super) fn on_readiness<F: FramePort>(
        &mut self,
        now: Instant,
        ready: Readiness,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) -> Result<(), ConnectFailure> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let connecting = self.machine.state() == State::Connecting;
        // What is left to read comes before the error; the error itself only matters if nobody
        // will read any more, or if the guest does not know of the client yet.
        let unknown = self.machine.state() == State::SynSent;
        if ready.failed
            && (connecting || unknown || self.machine.host_read_ended())
            && let Some(error) = io.host.take_error(stream)
        {
            if connecting {
                return Err(ConnectFailure(error));
            }
            self.machine.on_host_reset(actions);
            self.perform(&[], io, actions);
            return Ok(());
        }
        self.readable |= ready.readable;
        self.closed |= ready.closed;
        self.urgent |= ready.urgent;
        if ready.writable {
            self.writable = true;
            if connecting {
                if self.key.is_ipv6() {
                    io.host.connected(stream);
                }
                self.machine.on_connected(now, actions);
                self.perform(&[], io, actions);
            }
            self.flush_backlog(io, actions);
            self.perform(&[], io, actions);
        }
        if self.readable {
            self.read(now, io, actions);
        }
        Ok(())
    }

    /// The machine's deadline has passed.
    pub(super) fn on_deadline<F: FramePort>(
        &mut self,
        now: Instant,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.machine.on_deadline(now, actions);
        self.perform(&[], io, actions);
        if self.wants_read() {
            self.read(now, io, actions);
        }
    }

    /// The guest's path MTU to this end shrank.
    pub(super) fn on_path_mtu<F: FramePort>(
        &mut self,
        now: Instant,
        mss: u16,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.machine.on_path_mtu(now, mss, actions);
        self.perform(&[], io, actions);
    }

    /// The guest says that the segment that began at `quoted` cannot be delivered there.
    pub(super) fn on_unreachable<F: FramePort>(
        &mut self,
        quoted: Seq,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.machine.on_unreachable(quoted, actions);
        self.perform(&[], io, actions);
    }

    /// Sends the acknowledgment that is owed after a batch.
    pub(super) fn flush<F: FramePort>(&mut self, io: &mut Io<F, S>, actions: &mut Vec<Action>) {
        self.machine.flush(actions);
        self.perform(&[], io, actions);
    }

    /// Ends the flow for the host only: the guest has already gone on to another connection.
    pub(super) fn abort_silently<F: FramePort>(
        &mut self,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.machine.abort(actions);
        actions.retain(|action| !matches!(action, Action::Emit(_)));
        self.perform(&[], io, actions);
    }

    /// Leaves a worker: nothing there knows of it any more, and what it holds is not that worker's.
    pub(super) fn leave<F: FramePort>(&mut self, io: &mut Io<F, S>) {
        if let Some(stream) = &self.stream {
            io.host.forget(stream);
        }
        io.pool.forget(self.sent.holding());
        debug_assert!(self.gathered.is_empty(), "flows leave between frames");
        io.backlog_bytes -= self.backlog.len();
        io.promised -= self.promised as usize;
        self.promised = 0;
        (self.on_ack_list, self.on_read_list, self.on_rest_list) = (false, false, false);
        self.wheel_entry = None;
        self.strays = 0;
    }

    /// Comes to a worker, where it is known by `token`.
    ///
    /// # Errors
    /// The host edge cannot watch the socket.
    pub(super) fn arrive<F: FramePort>(
        &mut self,
        token: Token,
        io: &mut Io<F, S>,
    ) -> io::Result<()> {
        io.pool.acquire(self.sent.holding());
        io.backlog_bytes += self.backlog.len();
        self.settle(io);
        self.stream.as_ref().map_or(Ok(()), |stream| io.host.adopt(token, stream))
    }

    /// Ends the flow, towards both sides.
    pub(super) fn abort<F: FramePort>(&mut self, io: &mut Io<F, S>, actions: &mut Vec<Action>) {
        self.machine.abort(actions);
        self.perform(&[], io, actions);
    }

    /// Gives every buffer back; the socket, if there still is one, is closed.
    pub(super) fn release<F: FramePort>(mut self, io: &mut Io<F, S>) {
        self.sent.clear(&mut io.pool);
        self.dismiss(io);
        io.backlog_bytes -= self.backlog.len() + self.gathered_bytes();
        io.promised -= self.promised as usize;
    }

    /// Brings the sum of promises up to date, and lets go of what nobody waits for.
    pub(super) fn settle<F: FramePort>(&mut self, io: &mut Io<F, S>) {
        if !self.machine.holds() {
            self.parked.clear();
        }
        let before = std::mem::replace(&mut self.promised, self.machine.promised());
        io.promised = io.promised + self.promised as usize - before as usize;
    }

    /// Tells the guest that the connection is refused, and closes the machine.
    pub(super) fn refuse<F: FramePort>(
        &mut self,
        with_reset: bool,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.machine.on_connect_failed(with_reset, actions);
        self.perform(&[], io, actions);
    }

    /// Performs `actions` in order; `payload` is that of the segment at hand.
    fn perform<F: FramePort>(
        &mut self,
        payload: &[u8],
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        let mut next = 0;
        while let Some(&action) = actions.get(next) {
            next += 1;
            match action {
                Action::Emit(emit) => self.emit(&emit, io),
                Action::Deliver { skip, len } => {
                    let bytes = &payload[skip as usize..(skip + len) as usize];
                    self.parked.skip(bytes.len());
                    self.deliver(bytes, io, actions);
                }
                Action::Hold { skip, len, offset } => {
                    let bytes = &payload[skip as usize..(skip + len) as usize];
                    self.parked.put(offset as usize, bytes);
                }
                Action::DeliverHeld { len } => {
                    let bytes = self.parked.take(len as usize);
                    self.deliver(&bytes, io, actions);
                }
                Action::Release { len } => self.sent.release(len, &mut io.pool),
                Action::ShutdownWrite => {
                    // Closing says FIN as well.
                    let closing = actions.get(next) == Some(&Action::CloseHost);
                    if let Some(stream) = self.stream.as_ref().filter(|_| !closing) {
                        io.host.shutdown_write(stream);
                    }
                }
                Action::CloseHost => {
                    self.dismiss(io);
                    self.stream = None;
                }
                Action::ResetHost => {
                    if let Some(stream) = self.stream.take() {
                        io.host.reset(stream);
                    }
                    self.dismiss(io);
                }
                Action::KeepAlive => {
                    if let Some(stream) = &self.stream {
                        io.host.keep_alive(stream);
                    }
                }
            }
        }
        actions.clear();
    }

    fn addresses(&self, gateway_mac: Mac) -> Addresses {
        Addresses {
            gateway_mac,
            guest_mac: self.guest_mac,
            peer: self.key.peer(),
            guest: self.key.guest(),
        }
    }
}

/// Whether the connection is over by this error of its socket.
fn is_final(error: &io::Error) -> bool {
    !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::flow_table::FlowTable;
    use crate::engine::host::HostSockets;
    use crate::engine::io::FLOW_BYTES;
    use crate::engine::wheel::Wheel;

    #[test]
    fn a_flow_takes_no_more_than_limits_say() {
        let place = FlowTable::<TcpKey, TcpFlow<HostSockets>>::FLOW_BYTES;
        // The wheel is swept when entries are twice as many as flows.
        let timers = 2 * Wheel::<Token>::ENTRY_BYTES;
        assert!(place + timers <= FLOW_BYTES, "{place} + {timers} bytes");
    }
}
