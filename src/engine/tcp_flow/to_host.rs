//! From the guest to the host socket: what it takes at once, and the backlog behind it.

use std::io::{self, IoSlice};

use crate::stack::tcp::Action;

use super::{MIN_SEGMENT, TcpFlow, is_final};
use crate::engine::io::Io;
use crate::engine::ports::{FramePort, SocketPort};

impl<S: SocketPort> TcpFlow<S> {
    /// Bytes from the guest: to the socket, or behind what already waits for it.
    pub(super) fn deliver<F: FramePort>(
        &mut self,
        bytes: &[u8],
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        self.account.traffic.bytes_to_host += bytes.len() as u64;
        io.passed_on += bytes.len() as u64;
        let is_first = self.backlog.is_empty() && self.gathered.is_empty();
        if !bytes.is_empty() && is_first && self.carry(bytes, io) || self.gather(bytes, io) {
            return;
        }
        let mut taken = 0;
        if is_first && self.writable && self.porter.is_none() {
            match self.send_at_once(&[IoSlice::new(bytes)], io, actions) {
                Some(count) => taken = count,
                None => return,
            }
        }
        let left = &bytes[taken..];
        if !left.is_empty() {
            self.backlog.push(left);
            io.backlog_bytes += left.len();
        }
        // At most one segment's payload.
        self.machine.on_host_took(taken as u32, actions);
    }

    /// Has the payload `bytes` wait for those in the frames behind it, so that one system call sends
    /// them all; whether it does. What may be a whole message does not wait.
    fn gather<F: FramePort>(&mut self, bytes: &[u8], io: &mut Io<F, S>) -> bool {
        let Some(at_hand) = io.frames_at_hand.filter(|_| self.porter.is_none()) else {
            return false;
        };
        let alone = at_hand.last || bytes.len() <= MIN_SEGMENT;
        if (self.gathered.is_empty() && alone) || !self.backlog.is_empty() || !self.writable {
            return false;
        }
        let Some(range) = at_hand.find(bytes) else { return false };
        io.backlog_bytes += bytes.len();
        self.gathered.push(range);
        true
    }

    /// Whether payloads wait for [`TcpFlow::send_gathered`].
    pub(in crate::engine) fn has_gathered(&self) -> bool {
        !self.gathered.is_empty()
    }

    pub(super) fn gathered_bytes(&self) -> usize {
        self.gathered.iter().map(|range| range.len()).sum()
    }

    /// Sends what was gathered of `frames`, the frames at hand.
    pub(in crate::engine) fn send_gathered<F: FramePort>(
        &mut self,
        frames: &[u8],
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        let parts: Vec<IoSlice<'_>> =
            self.gathered.iter().map(|range| IoSlice::new(&frames[range.clone()])).collect();
        let total = self.gathered_bytes();
        self.gathered = Vec::new();
        io.backlog_bytes -= total;
        if self.stream.is_none() {
            return;
        }
        let Some(taken) = self.send_at_once(&parts, io, actions) else {
            return self.perform(&[], io, actions);
        };
        if taken < total {
            let mut left: Vec<&[u8]> = Vec::with_capacity(parts.len());
            let mut skip = taken;
            for part in &parts {
                left.push(&part[skip.min(part.len())..]);
                skip = skip.saturating_sub(part.len());
            }
            self.backlog.push_front(&left);
            io.backlog_bytes += total - taken;
        }
        // At most the window, a u32.
        self.machine.on_host_took(taken as u32, actions);
        self.flush_backlog(io, actions);
        self.perform(&[], io, actions);
    }

    /// Sends fresh bytes; how many the socket took. `None` if the connection has ended by that.
    fn send_at_once<F: FramePort>(
        &mut self,
        parts: &[IoSlice<'_>],
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) -> Option<usize> {
        let Some(stream) = &self.stream else { return Some(0) };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        // The guest's kernel has already decided what to hold back (Nagle). The first piece,
        // if it fits one segment, leaves at once in any case.
        if !self.no_delay && (!self.first_send || len > MIN_SEGMENT) {
            self.no_delay = true;
            io.host.no_delay(stream);
        }
        self.first_send = false;
        let taken = match io.host.send(stream, parts) {
            Ok(count) => count,
            Err(error) if self.send_failed(&error, actions) => return None,
            Err(_) => 0,
        };
        self.writable = taken == len;
        Some(taken)
    }

    pub(super) fn flush_backlog<F: FramePort>(
        &mut self,
        io: &mut Io<F, S>,
        actions: &mut Vec<Action>,
    ) {
        // What a porter has is in front of it.
        while !self.backlog.is_empty() && self.writable && self.porter.is_none() {
            let Some(stream) = &self.stream else { return };
            let parts = self.backlog.slices();
            let parts = if parts[1].is_empty() { &parts[..1] } else { &parts[..] };
            match io.host.send(stream, parts) {
                Ok(taken) => {
                    self.writable = taken == self.backlog.len();
                    self.backlog.consume(taken);
                    io.backlog_bytes -= taken;
                    // The backlog is bounded by the receive limit, a u32.
                    self.machine.on_host_took(taken as u32, actions);
                }
                Err(error) => {
                    self.writable = false;
                    if self.send_failed(&error, actions) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether a failed send ended the connection. An interrupted or full one does not.
    pub(super) fn send_failed(&mut self, error: &io::Error, actions: &mut Vec<Action>) -> bool {
        if !is_final(error) {
            return false;
        }
        self.machine.on_host_reset(actions);
        true
    }
}
