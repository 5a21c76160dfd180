//! Questions to a namespace file descriptor (`ioctl_ns(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kind of the namespace, one `CLONE_NEW*` flag (`NS_GET_NSTYPE`).
///
/// # Errors
/// `ENOTTY` when the descriptor is not of a namespace.
pub fn kind(ns: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: this ioctl has no argument; `ns` is open for the call.
    let kind = unsafe { libc::ioctl(ns.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

/// The user namespace that owns this namespace (`NS_GET_USERNS`), close-on-exec.
///
/// # Errors
/// `EPERM` when the owner is neither the caller's user namespace nor one below it.
pub fn owner(ns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this ioctl has no argument; `ns` is open for the call.
    let fd = unsafe { libc::ioctl(ns.as_raw_fd(), libc::NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user, as numbered in the caller's user namespace, who owns a user namespace
/// (`NS_GET_OWNER_UID`).
pub fn owner_uid(user_ns: BorrowedFd<'_>) -> io::Result<libc::uid_t> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid_t, which `uid` is; `user_ns` is open for the call.
    let result = unsafe { libc::ioctl(user_ns.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}
