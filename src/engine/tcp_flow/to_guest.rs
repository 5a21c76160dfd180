//! From the host socket to the guest: reads that become frames, and what is sent again.

use std::io::{self, ErrorKind, IoSlice};

use crate::base::Instant;
use crate::stack::tcp::{Action, Emit};
use crate::stack::wire::{Addresses, Checksum, HEADROOM, MAX_PAYLOAD, TcpHeader};

use super::{TcpFlow, is_final};
use crate::engine::buffers::{BURST, Burst};
use crate::engine::io::Io;
use crate::engine::ports::{FramePort, SocketPort};

/// Frames read from one socket before others get their turn.
const READ_BUDGET: usize = 4;

impl<S: SocketPort> TcpFlow<S> {
    /// Reads from the host socket as far as the guest's window, the link, the pool and fairness allow.
    /// [`TcpFlow::wants_read`] tells afterwards whether to come back.
    pub(in crate::engine) fn read<F: FramePort>(
        &mut self,
        now: Instant,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        for _ in 0..READ_BUDGET {
            let Some(stream) = &self.stream else { return };
            if self.failed {
                if self.machine.in_flight() == 0 {
                    self.machine.on_host_reset(actions);
                    self.perform(&[], io, actions);
                }
                return;
            }
            let capacity = self.machine.send_capacity() as usize;
            if capacity == 0 {
                let untold = self.closed && self.readable && !self.machine.host_read_ended();
                match untold.then(|| io.host.at_end(stream)) {
                    // EOF and resets need no window.
                    Some(Ok(true)) => {
                        self.readable = false;
                        self.machine.on_host_eof(now, actions);
                        self.perform(&[], io, actions);
                    }
                    Some(Err(error)) if is_final(&error) => {
                        self.failed = true;
                        continue;
                    }
                    Some(_) | None => self.machine.on_host_waiting(now, self.readable),
                }
                return;
            }
            if io.frames.is_congested() {
                return;
            }
            let wanted = capacity.min(usize::from(self.appetite) * MAX_PAYLOAD);
            let Some(mut burst) = Burst::take(&mut io.pool, wanted) else { return };
            match burst.fill(|parts| io.host.recv(stream, parts)) {
                Ok(0) => {
                    burst.give_back(&mut io.pool);
                    self.readable = false;
                    self.machine.on_host_eof(now, actions);
                    return self.perform(&[], io, actions);
                }
                Ok(_) => {
                    let mut failure = None;
                    while self.closed && !burst.is_full() && failure.is_none() {
                        // The last bytes and the FIN go in one segment.
                        match burst.fill(|parts| io.host.recv(stream, parts)) {
                            Ok(0) => {
                                self.readable = false;
                                // At most `BURST_LEN`.
                                let len = burst.len() as u32;
                                self.machine.on_host_data_and_eof(now, len, actions);
                                return self.emit_new(now, burst, io, actions);
                            }
                            Ok(_) => {}
                            Err(error) => failure = Some(error),
                        }
                    }
                    let full = burst.is_full();
                    self.appetite = if full { (2 * self.appetite).min(BURST as u8) } else { 1 };
                    // A short read has emptied the socket (epoll(7)), unless EOF is behind it or
                    // it stopped in front of urgent data.
                    self.readable = full || self.closed || self.urgent;
                    self.machine.on_host_data(now, burst.len() as u32, !self.readable, actions);
                    self.emit_new(now, burst, io, actions);
                    if let Some(error) = failure {
                        return self.read_failed(now, &error, io, actions);
                    }
                    if !self.readable {
                        return;
                    }
                }
                Err(error) => {
                    burst.give_back(&mut io.pool);
                    return self.read_failed(now, &error, io, actions);
                }
            }
        }
    }

    /// There is nothing to read for now, or the connection is over.
    pub(super) fn read_failed<F: FramePort>(
        &mut self,
        now: Instant,
        error: &io::Error,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        if is_final(error) {
            self.machine.on_host_reset(actions);
            self.perform(&[], io, actions);
        } else if error.kind() == ErrorKind::WouldBlock {
            self.readable = false;
            self.urgent = false;
            self.machine.on_host_waiting(now, false);
        }
        // After an interruption `readable` stays, so the worker comes back.
    }

    /// Sends what [`on_host_data`] asked for straight from the slabs it was read into.
    ///
    /// [`on_host_data`]: crate::stack::tcp::Connection::on_host_data
    pub(super) fn emit_new<F: FramePort>(
        &mut self,
        now: Instant,
        mut burst: Burst,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        if let Some(&Action::Emit(emit)) = actions.first() {
            actions.remove(0);
            self.account.last_use = now;
            self.account.traffic.count_to_guest(burst.len());
            let addresses = self.addresses(io.gateway_mac);
            if io.checksum == Checksum::Full {
                let pieces = burst.pieces();
                let payload: Vec<IoSlice<'_>> = pieces
                    .map(|(slab, len)| IoSlice::new(&slab[HEADROOM..HEADROOM + len]))
                    .collect();
                io.write_cut(&tcp_header(&emit), &addresses, &payload);
            } else if burst.len() <= MAX_PAYLOAD || !write_whole(&mut burst, &emit, &addresses, io)
            {
                write_in_pieces(&mut burst, emit, &addresses, io);
            }
        }
        self.sent.keep(burst, &mut io.pool);
        self.perform(&[], io, actions);
    }

    /// A segment that is not fresh from the socket: without payload, or sent again.
    pub(super) fn emit<F: FramePort>(&mut self, emit: &Emit, io: &mut Io<F, S>) {
        self.account.traffic.packets_to_guest += 1;
        let mut headers = [0u8; HEADROOM];
        let addresses = self.addresses(io.gateway_mac);
        if emit.len == 0 {
            let start = tcp_header(emit).emit(&mut headers, 0, &addresses, io.checksum);
            return io.write(&[IoSlice::new(&headers[start..])]);
        }
        let offset = self.machine.queue_start().distance(emit.seq).max(0).cast_unsigned();
        let mut parts = vec![IoSlice::new(&[])];
        self.sent.slices(offset, emit.len, &mut parts);
        io.write_scattered(&tcp_header(emit), &addresses, &mut headers, parts);
    }
}

/// Sends a burst as one frame beyond 64 KiB. `false` if the kernel has no memory in pieces of a
/// size that would do; smaller frames then may still pass.
fn write_whole<F: FramePort, S: SocketPort>(
    burst: &mut Burst,
    emit: &Emit,
    addresses: &Addresses,
    io: &mut Io<F, S>,
) -> bool {
    let len = burst.len();
    let mut parts = [IoSlice::new(&[]); BURST];
    let mut count = 0;
    for (slab, filled) in burst.pieces() {
        let start = match count {
            0 => tcp_header(emit).emit(slab, len, addresses, Checksum::Partial),
            _ => HEADROOM,
        };
        parts[count] = IoSlice::new(&slab[start..HEADROOM + filled]);
        count += 1;
    }
    io.try_write(&parts[..count])
}

/// Sends a burst in frames of a slab each.
fn write_in_pieces<F: FramePort, S: SocketPort>(
    burst: &mut Burst,
    emit: Emit,
    addresses: &Addresses,
    io: &mut Io<F, S>,
) {
    let mut sent = 0;
    let total = burst.len();
    for (slab, len) in burst.pieces() {
        let mut header = tcp_header(&emit);
        header.seq += sent as u32;
        sent += len;
        // These say something of the last byte.
        header.flags.psh &= sent == total;
        header.flags.fin &= sent == total;
        let start = header.emit(slab, len, addresses, io.checksum);
        io.write(&[IoSlice::new(&slab[start..HEADROOM + len])]);
    }
}

/// The header fields of an [`Emit`].
fn tcp_header(emit: &Emit) -> TcpHeader {
    TcpHeader {
        seq: emit.seq,
        ack: emit.ack,
        flags: emit.flags,
        window: emit.window,
        mss: emit.syn.map(|syn| syn.mss),
        window_scale: emit.syn.and_then(|syn| syn.window_scale),
        sack_permitted: emit.syn.is_some_and(|syn| syn.sack_permitted),
        segment_size: emit.segment_size,
        sack: emit.sack,
    }
}
