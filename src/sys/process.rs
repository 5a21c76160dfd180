//! Processes: fork, process descriptors, signal dispositions.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

/// Splits the process in two.
///
/// # Errors
/// Refuses (`EBUSY`) when the process has more than one thread: locks that another thread holds
/// would stay locked in the child for ever.
pub fn fork() -> io::Result<ForkResult> {
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread, so the child's copy of every lock and of the allocator is
    // in a consistent state, and the child may do whatever the parent may.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Splits the process in two, the child in new namespaces of the kinds that `namespaces` says
/// (`CLONE_NEW*`): with `CLONE_NEWPID`, it is process 1 of its own. [`fork`] without any.
///
/// # Errors
/// As [`fork`], and those of clone(2).
pub fn fork_into(namespaces: CloneFlags) -> io::Result<ForkResult> {
    if namespaces.is_empty() {
        return fork();
    }
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let flags = namespaces.bits() | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a new stack this is fork(2): the child goes on in a copy of all
    // memory, and as there is one thread, every lock in it is in a consistent state. What the C
    // library remembers of the thread (its id) is refreshed by its next fork and used by nothing
    // before that.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(ForkResult::Child),
        pid => {
            let pid = i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
            Ok(ForkResult::Parent { child: Pid::from_raw(pid) })
        }
    }
}

/// Whether the process has one thread.
pub(super) fn is_single_threaded() -> io::Result<bool> {
    // The link count of the task directory is two plus the number of threads (proc(5)).
    Ok(std::fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// A descriptor that becomes readable when the process ends (`pidfd_open(2)`), close-on-exec.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for a thread that is not a process.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether `signal` is ignored by this process.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction is plain data for which all-zero bytes are a valid value.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; the kernel writes one sigaction, which `current` is.
    let result =
        unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut current) };
    result == 0 && current.sa_sigaction == libc::SIG_IGN
}

/// Gives `signal` its default disposition, or has it ignored.
pub fn set_ignored(signal: Signal, ignored: bool) -> io::Result<()> {
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither disposition runs code of ours, so there is nothing that could be unsafe to
    // call from a signal handler.
    unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    Ok(())
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// It ended with this status and is collected.
    Exited(u8),
    /// A signal of this number, perhaps a real-time one, killed it; it is collected.
    Killed(u8),
    /// This signal stopped it.
    Stopped(Signal),
    /// It goes on after a stop.
    Continued,
}

/// The next thing that happened to the child `pid`, without waiting (`waitpid(2)`).
///
/// # Errors
/// `ECHILD` when it is no child of ours or was collected before.
pub fn next_event(pid: Pid) -> io::Result<Option<ChildEvent>> {
    loop {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
        // SAFETY: the kernel writes one int, which `status` is.
        let found = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, flags) };
        if found < 0 {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        } else if found == 0 {
            return Ok(None);
        } else if libc::WIFEXITED(status) {
            return Ok(Some(ChildEvent::Exited(libc::WEXITSTATUS(status) as u8)));
        } else if libc::WIFSIGNALED(status) {
            return Ok(Some(ChildEvent::Killed(libc::WTERMSIG(status) as u8)));
        } else if libc::WIFCONTINUED(status) {
            return Ok(Some(ChildEvent::Continued));
        } else if let Ok(signal) = Signal::try_from(libc::WSTOPSIG(status)) {
            return Ok(Some(ChildEvent::Stopped(signal)));
        }
    }
}

/// Ends the process at once, without what an ordinary exit does first: for the child of [`fork`],
/// which must not run the parent's exit handlers a second time.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: the call does not return and touches no memory of ours.
    unsafe { libc::_exit(status) }
}
