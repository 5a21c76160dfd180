//! The real guest link: one queue of a TAP device.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::ports::FramePort;

/// A TAP queue in non-blocking mode. One `read` or `write` is one frame (tun(4)).
pub struct TapQueue(File);

impl TapQueue {
    /// Takes an attached queue; `O_NONBLOCK` must be set.
    pub fn new(queue: OwnedFd) -> TapQueue {
        TapQueue(File::from(queue))
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FramePort for TapQueue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            [whole] => self.0.write(whole)?,
            _ => self.0.write_vectored(parts)?,
        };
        Ok(())
    }
}
