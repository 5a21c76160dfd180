//! What the process was started with: descriptors and environment variables.

use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use super::process::is_single_threaded;

/// Takes over a descriptor that the program was started with, which from now on is close-on-exec.
///
/// # Errors
/// `EBADF` if there is none of this number, and if it has an owner: a standard stream, or one that
/// the program itself has opened.
pub fn take_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    let has_owner = || io::Error::from_raw_os_error(libc::EBADF);
    if fd <= libc::STDERR_FILENO {
        return Err(has_owner());
    }
    // SAFETY: asking for the flags of a number, open or not, touches no memory of ours.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    } else if flags & libc::FD_CLOEXEC != 0 {
        return Err(has_owner());
    }
    // SAFETY: as above; the descriptor stays open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody owns it: what this program opens, and what was
    // taken here before, is close-on-exec, which this one was not.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor but the standard streams and `kept`: for a program whose callers may
/// leave some open by mistake. To be called before the program opens any.
///
/// # Errors
/// `EBUSY` when the process has more than one thread; those of close_range(2).
pub fn close_all_but_standard(kept: Option<RawFd>) -> io::Result<()> {
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let first = libc::STDERR_FILENO.unsigned_abs() + 1;
    let close = |first: libc::c_uint, last: libc::c_uint| {
        // SAFETY: the call takes three integers. No descriptor behind the standard streams has an
        // owner yet, by the contract of this function: at worst a later use fails with EBADF.
        if first <= last && unsafe { libc::close_range(first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    match kept.and_then(|kept| libc::c_uint::try_from(kept).ok()) {
        Some(kept) if kept >= first => {
            close(first, kept - 1)?;
            // Descriptors are below `INT_MAX`.
            close(kept + 1, libc::c_uint::MAX)
        }
        _ => close(first, libc::c_uint::MAX),
    }
}

/// Closes every descriptor but the standard streams and `kept`, for a process that was forked from
/// one with many, and gives `kept` back.
///
/// # Errors
/// As [`close_all_but_standard`], and those of duplicating `kept`.
pub fn keep_only(kept: OwnedFd) -> io::Result<OwnedFd> {
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let number = libc::STDERR_FILENO + 1;
    // Whoever owns `number` in this process never comes to use it: its owner, and all others,
    // belong to the code that was left by the fork.
    let kept = kept.into_raw_fd();
    if kept != number {
        // SAFETY: the call takes three integers; `kept` is open.
        if unsafe { libc::dup3(kept, number, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the call takes three integers. The owners of what it closes are never reached again,
    // as above.
    if unsafe { libc::close_range(number.unsigned_abs() + 1, libc::c_uint::MAX, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and its other owners are never reached again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes a variable out of the environment, so that children do not have it.
///
/// # Errors
/// `EBUSY` when the process has more than one thread.
pub fn take_variable(name: &str) -> io::Result<Option<OsString>> {
    let value = std::env::var_os(name);
    if value.is_some() {
        if !is_single_threaded()? {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        // SAFETY: no other thread exists that could read the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn only_what_has_no_owner_is_taken() {
        let code = |fd| take_descriptor(fd).unwrap_err().raw_os_error();
        assert_eq!(code(-1), Some(libc::EBADF));
        assert_eq!(code(2), Some(libc::EBADF));
        let ours = File::open("/dev/zero").unwrap();
        assert_eq!(code(ours.as_raw_fd()), Some(libc::EBADF));
        fcntl(&ours, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let fd = ours.into_raw_fd();
        let mut taken = File::from(take_descriptor(fd).unwrap());
        taken.read_exact(&mut [1; 4]).unwrap();
        assert_eq!(code(fd), Some(libc::EBADF));
    }
}
