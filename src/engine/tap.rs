//! The real guest link: one queue of a TAP device.
//!
//! Frames pass by `read` and `write`, not through an io_uring. A ring saves the way into the kernel
//! and out again, 0.1 µs, of what is mostly copying and the kernel's TCP; and many machines forbid
//! it. CPU time per frame, or per request with its answer, of a program that only moves payloads
//! between a TAP and TCP sockets across a veth; medians of five runs in turn on a noisy 4-core VM
//! (Linux 6.18), where single runs are up to a third off. The ring has one issuer and deferred work
//! (`IORING_SETUP_SINGLE_ISSUER`, `IORING_SETUP_DEFER_TASKRUN`), and reads are multishot where
//! nothing else is said, but for one at a time in the first row:
//!
//! | shape                                    | calls and epoll | ring                           |
//! |------------------------------------------|-----------------|--------------------------------|
//! | 64 KiB to the host, each in its own send | 25.2 µs         | 27.9 µs; zero-copy sends 42.8  |
//! | the same, four frames in one send        | 20.2 µs         | 22.8 µs                        |
//! | 1,400 bytes to the host, many in a send  | 2.1 µs          | 2.0 µs                         |
//! | 64 KiB to the guest                      | 22.7 µs         | 22.7 µs; eight in flight 30.5  |
//! | requests of 100 bytes, 1 connection      | 25.3 µs         | 24.8 µs                        |
//! | the same, 32 connections                 | 9.3 µs          | 9.8 µs                         |
//! | the same, 200 connections                | 9.6 µs          | 10.0 µs                        |
//!
//! More frames in flight are more memory than the cache holds, a veth or loopback device copies
//! what is sent without copies, and registered buffers make no difference that can be told.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::observe::Capture;
use crate::stack::wire::VNET_HEADER_LEN;
use crate::sys::tun;

use super::ports::FramePort;
use super::recorder::Recorder;

/// A TAP queue in non-blocking mode. One `read` or `write` is one frame (tun(4)).
pub struct TapQueue {
    queue: File,
    recorder: Recorder,
    /// Length of the virtio-net header in front of each frame, which a capture leaves out.
    header_len: usize,
}

impl TapQueue {
    /// Takes an attached queue; `O_NONBLOCK` must be set. `capture` sees every frame.
    pub fn new(queue: OwnedFd, vnet_header: bool, capture: Option<Capture<File>>) -> TapQueue {
        let header_len = if vnet_header { VNET_HEADER_LEN } else { 0 };
        TapQueue { queue: File::from(queue), recorder: Recorder::new(capture), header_len }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl FramePort for TapQueue {
    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        tun::set_queue(self.queue.as_fd(), attached)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.queue.read(buffer)?;
        if len == 0 {
            // A TAP has no end, but a socket in its place does.
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(frame) = buffer[..len].get(self.header_len..) {
            self.recorder.frame(frame);
        }
        Ok(len)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            [whole] => self.queue.write(whole)?,
            _ => self.queue.write_vectored(parts)?,
        };
        self.recorder.parts(parts, self.header_len);
        Ok(())
    }
}
