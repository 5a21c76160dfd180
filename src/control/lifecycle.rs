//! How long an instance lives, and what signals mean to it.
//!
//! `run`: as long as its command. tapway then behaves as if it were the command: signals sent to it
//! reach the command, a command that stops stops tapway too (so that the user's shell sees it and
//! `fg` works), and it ends with the command's status, 128+n for signal n.
//!
//! A key such as Ctrl-C makes the terminal signal the whole foreground process group. The command
//! is in tapway's group unless it has made one of its own, as interactive shells do. So of signals
//! that the kernel sends, tapway passes on only those that the command did not get itself:
//!
//! | sender | command in our group | command in another group |
//! |---|---|---|
//! | terminal (kernel) | nothing: it has it | passed on |
//! | `kill` (a process) | passed on | passed on |
//! | the command itself | nothing | nothing |
//!
//! The terminal's foreground group is the command's business: tapway sets it in one case only, when
//! a command with a group of its own goes on after a stop and has to find the terminal as it left
//! it (`suspend` and `fg` of a shell in the guest). It blocks SIGTTOU so that a log line from the
//! background does not stop it, and SIGTTIN, which a command that reads in the background brings on
//! the whole group, so that it stops with the command and once only.
//!
//! A command of pasta's may be process 1 of a namespace, which heeds no signal that it does not
//! handle: those that ask for the end are for tapway itself there, whose end is the command's.
//!
//! `attach`: until the target is gone or SIGINT, SIGTERM or SIGHUP asks for the end.
//!
//! Held by an engine: until the engine closes its end of a descriptor, or a signal ends it. What
//! becomes of the target is the engine's to know: as long as the TAP is open, its network namespace
//! is there, with or without processes.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::stat::fstatat;
use nix::unistd::{Pid, getpgid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::process::{self, ChildEvent};
use crate::sys::readiness;

/// Whom an instance lives for.
#[derive(Debug)]
pub enum Guest {
    /// The command of `run`, a child process.
    Command(Pid),
    /// The same, where signals that ask for the end are for us. The command ends with us.
    Confined(Pid),
    /// The target of `attach`.
    Target(Anchor),
    /// Whoever started us and holds the other end.
    Held(Leash),
}

/// By what an instance is held.
#[derive(Debug)]
pub enum Leash {
    /// By its process id alone: signals.
    Signals,
    /// By a descriptor as well, which tells when its other end is closed. What is written there
    /// says nothing.
    Descriptor(OwnedFd),
    /// By a descriptor that was never open: let go already.
    Broken,
}

impl Leash {
    /// Whether the other end has let go.
    fn is_broken(&self) -> io::Result<bool> {
        let fd = match self {
            Leash::Signals => return Ok(false),
            Leash::Broken => return Ok(true),
            Leash::Descriptor(fd) => fd,
        };
        // Nothing is asked for: the kernel tells of the end, of errors and of nothing else.
        let mut end = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        Ok(poll(&mut end, PollTimeout::ZERO)? > 0)
    }
}

/// How it came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended; this is the status to end with.
    Exited(u8),
    /// The target has gone away, or whoever held us has let go.
    Gone,
    /// A signal asked for the end.
    Asked(Signal),
}

/// Signals that become events of ours instead of interrupting.
const EVENTS: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCHLD,
];

/// The process's signals, taken over before the first fork and the first thread.
#[derive(Debug)]
pub struct Signals {
    events: SignalFd,
    inherited_mask: SigSet,
    child_ignored: bool,
    hangup_ignored: bool,
}

impl Signals {
    /// Blocks the signals that are events from here on, in this thread and those that it starts.
    pub fn take() -> io::Result<Signals> {
        let events: SigSet = EVENTS.into_iter().collect();
        let mut blocked = events;
        blocked.add(Signal::SIGTTOU);
        blocked.add(Signal::SIGTTIN);
        let mut inherited_mask = SigSet::thread_get_mask()?;
        blocked.thread_block()?;
        // Where the caller ignores SIGCHLD, the kernel would throw exit statuses away.
        let child_ignored = process::is_ignored(Signal::SIGCHLD);
        process::set_ignored(Signal::SIGCHLD, false)?;
        let hangup_ignored = process::is_ignored(Signal::SIGHUP);
        // A caller that leaves these blocked, as some build tools do, gets them blocked back.
        inherited_mask.remove(Signal::SIGCHLD);
        let events = SignalFd::with_flags(&events, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { events, inherited_mask, child_ignored, hangup_ignored })
    }

    /// Gives a child about to execute a command what tapway itself inherited. (The runtime of the
    /// language ignores SIGPIPE at start and does not tell what it was; commands expect the
    /// default.)
    pub fn restore(&self) -> io::Result<()> {
        process::set_ignored(Signal::SIGPIPE, false)?;
        process::set_ignored(Signal::SIGCHLD, self.child_ignored)?;
        self.inherited_mask.thread_set_mask()?;
        Ok(())
    }

    /// Ends this process by `signal`, one of those that ask for the end, as it would have ended had
    /// nobody taken it over. Returns only if the caller ignores the signal.
    pub fn die_of(&self, signal: Signal) -> io::Result<()> {
        stop_like(signal)
    }
}

/// What tells that the target of `attach` has gone away.
#[derive(Debug)]
pub enum Anchor {
    /// A process descriptor: readable when the process has ended.
    Process(OwnedFd),
    /// The name of a namespace file.
    Name(NameWatch),
}

impl Anchor {
    /// One that stays as long as we do.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn never() -> io::Result<Anchor> {
        Ok(Anchor::Process(process::pidfd_open(nix::unistd::getpid())?))
    }

    /// Whether the target has gone away.
    pub fn is_gone(&self) -> io::Result<bool> {
        match self {
            Anchor::Process(pidfd) => {
                let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                Ok(poll(&mut ready, PollTimeout::ZERO)? > 0)
            }
            Anchor::Name(watch) => watch.is_gone(),
        }
    }
}

impl AsFd for Anchor {
    /// Readable when it is worth asking [`Anchor::is_gone`] again.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Anchor::Process(pidfd) => pidfd.as_fd(),
            Anchor::Name(watch) => watch.changes.as_fd(),
        }
    }
}

/// Watches whether a name still leads to the file that it led to.
#[derive(Debug)]
pub struct NameWatch {
    /// Changes of the directory.
    changes: Inotify,
    directory: File,
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
}

impl NameWatch {
    /// Watches `path`, which leads to the open `file`.
    pub fn new(path: &Path, file: &File) -> io::Result<NameWatch> {
        let missing = || io::Error::from_raw_os_error(libc::ENOENT);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        changes.add_watch(
            parent,
            AddWatchFlags::IN_ONLYDIR
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF,
        )?;
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(parent)?;
        let name = path.file_name().ok_or_else(missing)?.to_owned();
        let metadata = file.metadata()?;
        let watch =
            NameWatch { changes, directory, name, identity: (metadata.dev(), metadata.ino()) };
        // It may have vanished before the watch stood.
        if watch.is_gone()? { Err(missing()) } else { Ok(watch) }
    }

    fn is_gone(&self) -> io::Result<bool> {
        // Which change it was does not matter: the question is what the name leads to now.
        loop {
            match self.changes.read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        match fstatat(&self.directory, self.name.as_os_str(), AtFlags::empty()) {
            Ok(found) => Ok((found.st_dev, found.st_ino) != self.identity),
            Err(_) => Ok(true),
        }
    }
}

/// Serves signals and watches the guest until one of the two ends the instance.
///
/// # Errors
/// When the kernel's event sources fail, which it does not do in ordinary operation.
pub async fn supervise(guest: &Guest, signals: &Signals) -> io::Result<Outcome> {
    let events = readiness::readable(signals.events.as_fd().try_clone_to_owned()?)?;
    match guest {
        Guest::Command(pid) => supervise_command(*pid, false, signals, &events).await,
        Guest::Confined(pid) => supervise_command(*pid, true, signals, &events).await,
        Guest::Target(anchor) => supervise_target(anchor, signals, &events).await,
        Guest::Held(leash) => supervise_held(leash, signals, &events).await,
    }
}

type Events = AsyncFd<OwnedFd>;

async fn supervise_command(
    pid: Pid,
    confined: bool,
    signals: &Signals,
    events: &Events,
) -> io::Result<Outcome> {
    // It may have ended before we began to listen.
    if let Some(status) = collect(pid)? {
        return Ok(Outcome::Exited(status));
    }
    loop {
        let (signal, info) = next(signals, events).await?;
        if signal == Signal::SIGCHLD {
            if let Some(status) = collect(pid)? {
                return Ok(Outcome::Exited(status));
            }
        } else if confined && matches!(signal, Signal::SIGTERM | Signal::SIGQUIT) {
            return Ok(Outcome::Asked(signal));
        } else if is_for_command(&info, pid) {
            // It may be ending just now, and then its status is on its way.
            let _ = kill(pid, signal);
        }
    }
}

async fn supervise_target(
    anchor: &Anchor,
    signals: &Signals,
    events: &Events,
) -> io::Result<Outcome> {
    let changes = readiness::readable(anchor.as_fd().try_clone_to_owned()?)?;
    loop {
        if anchor.is_gone()? {
            return Ok(Outcome::Gone);
        }
        tokio::select! {
            ready = changes.readable() => ready?.clear_ready(),
            event = next(signals, events) => {
                if let Some(signal) = asks_for_the_end(event?.0, signals)? {
                    return Ok(Outcome::Asked(signal));
                }
            }
        }
    }
}

async fn supervise_held(leash: &Leash, signals: &Signals, events: &Events) -> io::Result<Outcome> {
    let changes = match leash {
        Leash::Descriptor(fd) => match readiness::readable(fd.try_clone()?) {
            Ok(changes) => Some(changes),
            // A file (epoll_ctl(2)): it has no other end that could be closed.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => None,
            Err(e) => return Err(e),
        },
        Leash::Signals | Leash::Broken => None,
    };
    let changed = async || match &changes {
        // Each write makes it ready again, and so does the close.
        Some(changes) => changes.ready(Interest::READABLE | Interest::ERROR).await,
        None => std::future::pending().await,
    };
    loop {
        if leash.is_broken()? {
            return Ok(Outcome::Gone);
        }
        tokio::select! {
            ready = changed() => ready?.clear_ready(),
            event = next(signals, events) => {
                if let Some(signal) = asks_for_the_end(event?.0, signals)? {
                    return Ok(Outcome::Asked(signal));
                }
            }
        }
    }
}

/// The signal, if it asks for the end; one that asks to stop is obeyed.
fn asks_for_the_end(signal: Signal, signals: &Signals) -> io::Result<Option<Signal>> {
    match signal {
        Signal::SIGHUP if signals.hangup_ignored => {}
        Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM => {
            return Ok(Some(signal));
        }
        Signal::SIGTSTP => stop_like(Signal::SIGTSTP)?,
        _ => {}
    }
    Ok(None)
}

/// The next signal and who sent it.
async fn next(signals: &Signals, events: &Events) -> io::Result<(Signal, siginfo)> {
    loop {
        let mut ready = events.readable().await?;
        match signals.events.read_signal()? {
            Some(info) => {
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                if let Ok(signal) = Signal::try_from(number) {
                    return Ok((signal, info));
                }
            }
            None => ready.clear_ready(),
        }
    }
}

/// Whether a signal that reached us has still to reach the command; see the table above.
fn is_for_command(info: &siginfo, command: Pid) -> bool {
    let from_kernel = info.ssi_code > 0;
    if from_kernel {
        return getpgid(Some(command)).is_ok_and(|group| group != getpgrp());
    }
    i32::try_from(info.ssi_pid) != Ok(command.as_raw())
}

/// Takes note of what happened to the command: its final status, if it has ended.
fn collect(pid: Pid) -> io::Result<Option<u8>> {
    let mut stopped_in = None;
    loop {
        match process::next_event(pid)? {
            Some(ChildEvent::Exited(status)) => return Ok(Some(status)),
            // The shells' convention; real-time signals end at 64.
            Some(ChildEvent::Killed(signal)) => return Ok(Some(128 + signal)),
            Some(ChildEvent::Stopped(signal)) => {
                stopped_in = Some(foreground_group());
                stop_like(signal)?;
            }
            Some(ChildEvent::Continued) => stopped_in = None,
            // Somebody has woken us, and only us. (Continuing a command that runs again already
            // might undo the next stop, if that came as quickly.)
            None => match stopped_in.take() {
                Some(foreground) => {
                    give_terminal_back(pid, foreground);
                    let _ = kill(pid, Signal::SIGCONT);
                }
                None => return Ok(None),
            },
        }
    }
}

/// The foreground process group of our terminal, if one of the standard streams is that terminal.
fn foreground_group() -> Option<Pid> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(|stream| tcgetpgrp(stream).ok())
}

/// If the command was in the foreground `before` the stop with a group of its own, and we are there
/// now, puts it there again: whoever continued us knows our group only.
fn give_terminal_back(command: Pid, before: Option<Pid>) {
    let Some(group) = before.filter(|&group| group != getpgrp()) else { return };
    if getpgid(Some(command)) != Ok(group) || foreground_group() != Some(getpgrp()) {
        return;
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        if tcsetpgrp(stream, group).is_ok() {
            return;
        }
    }
}

/// Stops this process by `signal`, as the command was stopped, until somebody continues it. If the
/// process group has no parent that could, the kernel ignores all of these but SIGSTOP.
fn stop_like(signal: Signal) -> io::Result<()> {
    raise(signal)?;
    if signal != Signal::SIGSTOP {
        // It is pending, since we block it: unblocking delivers it.
        let mut mask = SigSet::empty();
        mask.add(signal);
        let before = mask.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_UNBLOCK)?;
        before.thread_set_mask()?;
    }
    Ok(())
}
