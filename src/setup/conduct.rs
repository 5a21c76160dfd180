//! What passes between an instance and whoever started it: when it lives, how it says that it is
//! ready, where it can be spoken to, which rights it keeps.
//!
//! People at a shell and engines want different answers; each command line states its own, and the
//! default is that of `tapway run` and `attach`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use super::daemon::Person;
use crate::control::lifecycle::Leash;
use crate::sys::inherit::take_descriptor;

/// How an instance behaves towards whoever started it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Whom it lives for.
    pub lives_for: LivesFor,
    /// SIGTERM and SIGQUIT end it, and its command with it, instead of reaching the command.
    pub ends_when_asked: bool,
    /// The descriptor that gets one byte, `1`, when everything is in place, and is closed then.
    pub ready_fd: Option<RawFd>,
    /// How its user finds it, by name.
    pub listed: Listed,
    /// The path of a control socket beside that of its name; without it there is nothing.
    pub api_socket: Option<PathBuf>,
    /// The file that gets its process id when everything is in place.
    pub pid_file: Option<PathBuf>,
    /// Whom it becomes once everything is set up, if root has started it.
    pub becomes: Option<Person>,
    /// What it keeps of its rights.
    pub keeps: Keeps,
    /// Which files it keeps in sight.
    pub sees: Sees,
    /// It refuses itself dangerous system calls ([`super::refuse_dangerous_calls`]).
    pub refuses_calls: bool,
    /// An address to send from need not be the host's, or not yet.
    pub trusts_outbound: bool,
    /// How often it writes its counters to standard error; `None` for never.
    pub statistics: Option<Duration>,
    /// What it says of itself on standard output once the guest's link is there.
    pub greeting: String,
    /// Options that were used and should not be, which the log tells.
    pub deprecated: Vec<&'static str>,
}

/// Whom an instance lives for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LivesFor {
    /// Its command or target; where the target's end does not matter, itself.
    #[default]
    Guest,
    /// Whoever started it, who ends it by a signal, of which it dies, or by closing the other end
    /// of the descriptor.
    Starter(Option<RawFd>),
}

/// How an instance is found among its user's others: by its name, which a control socket bears.
/// Without that socket there is still a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listed {
    /// By a name that nobody else may have, or there is nothing.
    #[default]
    Claimed,
    /// As `WHAT-PID`, without a word about it, where the user has a directory for such sockets: a
    /// caller who has started something else expects no more than that.
    As(&'static str),
}

/// What is kept when privileges are given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing.
    #[default]
    Nothing,
    /// The right to open ports below 1024, if there was one.
    LowPorts,
}

/// Which files an instance sees once it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sees {
    /// All that it saw before.
    #[default]
    Everything,
    /// `/etc`, `/run` and the host's `resolv.conf`, wherever that is, all of them read-only.
    EtcAndRun,
}

impl Conduct {
    /// Says that everything is in place.
    ///
    /// # Errors
    /// Those of `write`, and `EBADF` if there is no such descriptor.
    pub fn report_ready(&self) -> io::Result<()> {
        let Some(number) = self.ready_fd else { return Ok(()) };
        File::from(take(number)?).write_all(b"1")
    }
}

impl LivesFor {
    /// By what the starter holds the instance, if anybody does.
    pub fn leash(self) -> Option<Leash> {
        match self {
            LivesFor::Guest => None,
            LivesFor::Starter(None) => Some(Leash::Signals),
            LivesFor::Starter(Some(number)) => {
                Some(take(number).map_or(Leash::Broken, Leash::Descriptor))
            }
        }
    }
}

/// A descriptor by its number; of a standard stream, another that means the same.
pub(super) fn take(number: RawFd) -> io::Result<OwnedFd> {
    match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        2 => io::stderr().as_fd().try_clone_to_owned(),
        _ => take_descriptor(number),
    }
}
