//! The real guest link: one queue of a TAP device.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::observe::Capture;
use crate::stack::wire::VNET_HEADER_LEN;
use crate::sys::clock;

use super::ports::FramePort;

/// A TAP queue in non-blocking mode. One `read` or `write` is one frame (tun(4)).
pub struct TapQueue {
    queue: File,
    capture: Option<Capture<File>>,
    /// Length of the virtio-net header in front of each frame, which a capture leaves out.
    header_len: usize,
}

impl TapQueue {
    /// Takes an attached queue; `O_NONBLOCK` must be set. `capture` sees every frame.
    pub fn new(queue: OwnedFd, vnet_header: bool, capture: Option<Capture<File>>) -> TapQueue {
        let header_len = if vnet_header { VNET_HEADER_LEN } else { 0 };
        TapQueue { queue: File::from(queue), capture, header_len }
    }

    /// Adds a frame to the capture. A capture that cannot be written ends; the traffic goes on.
    fn record(&mut self, frame: &[u8]) {
        if let Some(capture) = &mut self.capture
            && let Some(frame) = frame.get(self.header_len..)
            && let Err(error) = capture.frame(clock::wall(), frame)
        {
            tracing::error!(%error, "the capture ends here");
            self.capture = None;
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// A guest without a link has nothing to say and hears nothing.
impl FramePort for Option<TapQueue> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.as_mut().map_or(Err(io::ErrorKind::WouldBlock.into()), |tap| tap.read(buffer))
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.as_mut().map_or(Ok(()), |tap| tap.write(parts))
    }
}

impl FramePort for TapQueue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.queue.read(buffer)?;
        self.record(&buffer[..len]);
        Ok(len)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            [whole] => self.queue.write(whole)?,
            _ => self.queue.write_vectored(parts)?,
        };
        if self.capture.is_some() {
            let frame: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.record(&frame);
        }
        Ok(())
    }
}
