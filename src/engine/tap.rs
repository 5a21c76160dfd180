//! The real guest link: one queue of a TAP device.

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
