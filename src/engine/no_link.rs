//! The link of a guest that has none: it has nothing to say and hears nothing.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::ports::FramePort;

/// In the place of a link. Its descriptor never becomes ready.
pub struct NoLink(EventFd);

impl NoLink {
    /// Nothing.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<NoLink> {
        Ok(NoLink(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?))
    }
}

impl AsFd for NoLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FramePort for NoLink {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
}
