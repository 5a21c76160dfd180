//! Descriptors on the control thread's event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel tells of errors unasked; a pipe whose readers are gone has nothing else to tell.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers `descriptor` with the current event loop, to be told when it can be read or fails.
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped, which the AsyncFd that takes it does last,
    // and it is always the same descriptor.
    unsafe { AsyncFd::register_with_interest(descriptor, INTEREST) }.map_err(io::Error::from)
}
