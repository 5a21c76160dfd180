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
        if !bytes.is_empty() && self.backlog.is_empty() && self.carry(bytes, io) {
            return;
        }
        let mut taken = 0;
        if self.backlog.is_empty()
            && self.writable
            && self.porter.is_none()
            && let Some(stream) = &self.stream
        {
            // The guest's kernel has already decided what to hold back (Nagle). The first piece,
            // if it fits one segment, leaves at once in any case.
            if !self.no_delay && (!self.first_send || bytes.len() > MIN_SEGMENT) {
                self.no_delay = true;
                io.host.no_delay(stream);
            }
            self.first_send = false;
            match io.host.send(stream, &[IoSlice::new(bytes)]) {
                Ok(count) => taken = count,
                Err(error) => {
                    if self.send_failed(&error, actions) {
                        return;
                    }
                }
            }
            self.writable = taken == bytes.len();
        }
        let left = &bytes[taken..];
        if !left.is_empty() {
            self.backlog.push(left);
            io.backlog_bytes += left.len();
        }
        // At most one segment's payload.
        self.machine.on_host_took(taken as u32, actions);
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
