//! `run`: a command in new user, network and mount namespaces, and in others where that is asked
//! for ([`Isolation`]).
//!
//! The child makes its user namespace first and says so; while the parent maps the ids (two
//! `execve`s of the map helpers, or two writes), the child makes the network and mount namespaces,
//! the TAP and the routes, none of which needs an id. Files need ids, so they come after the
//! answer.
//!
//! Who dies with whom: the child asks for SIGKILL at its parent's death (`PR_SET_PDEATHSIG`) after
//! the last change of its credentials, which would cancel it, and looks afterwards whether the
//! parent had died before. Until it executes the command, it also ends when the channel closes.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, getpid, getppid, sethostname};

use super::facts::on_path;
use super::files::{MountError, PrivateFiles, mount_private};
use super::idmap::{IdMaps, Identity};
use super::inside::Inside;
use super::link::{Autoconfiguration, LinkError, LinkOptions, Wanted, configure};
use super::message::{Channel, Child, Handover, Order, Report, report_failure};
use super::netlink::Netlink;
use super::tap::{Tap, TapError};
use super::{SetupError, hints};
use crate::sys::process;

/// What to run, and in what.
pub struct RunOptions<'a> {
    /// The command and its arguments; at least one.
    pub command: &'a [OsString],
    /// Keep the caller's own ids inside instead of being root there.
    pub own_ids: bool,
    /// Who calls.
    pub identity: &'a Identity,
    /// What the command has for itself.
    pub isolation: &'a Isolation,
    /// The guest's interface.
    pub link: &'a LinkOptions,
    /// The guest's files, where they differ from the host's.
    pub files: Option<&'a PrivateFiles>,
    /// Called in the child just before `execve`: gives signals back the state in which the caller
    /// of tapway left them to its children.
    pub restore_signals: &'a dyn Fn() -> io::Result<()>,
}

/// Which namespaces a command has beside those of its network and its mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Of users; without one of its own, the caller has to be privileged.
    pub users: bool,
    /// Of processes: the command is process 1, `/proc` shows its own, and all of them end with it.
    pub processes: bool,
    /// Of System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Of the host's name, which is this one.
    pub hostname: Option<OsString>,
    /// The name by which the command is told of itself, if not the one by which it is found. A
    /// shell whose own begins with `-` is a login shell.
    pub own_name: Option<OsString>,
}

impl Default for Isolation {
    /// Users alone.
    fn default() -> Isolation {
        Isolation { users: true, processes: false, ipc: false, hostname: None, own_name: None }
    }
}

impl Isolation {
    /// The namespaces that a new process is born into. One of processes cannot be entered later by
    /// itself, and whoever makes it needs a user namespace that gives the right to.
    fn at_birth(&self) -> CloneFlags {
        if !self.processes {
            return CloneFlags::empty();
        }
        CloneFlags::CLONE_NEWPID | self.user_namespace()
    }

    fn user_namespace(&self) -> CloneFlags {
        if self.users { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() }
    }

    /// The namespaces that it makes for itself, then.
    fn later(&self) -> CloneFlags {
        let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        flags.set(CloneFlags::CLONE_NEWIPC, self.ipc);
        flags.set(CloneFlags::CLONE_NEWUTS, self.hostname.is_some());
        flags
    }
}

/// A guest whose command has not been started yet. Dropping it ends the guest.
pub struct Started {
    child: Child,
    command: OsString,
    /// Our side of the guest's interface.
    pub tap: Tap,
    /// The guest's `resolv.conf`, to be rewritten when the host's changes.
    pub resolv_conf: Option<File>,
    /// Asks what listens in the guest ([`crate::sys::sock_diag`]); `None` where the kernel cannot
    /// tell.
    pub diag: Option<OwnedFd>,
    /// Opens sockets in the guest's namespace, if they were wanted.
    pub inside: Option<Inside>,
}

/// Sets up the namespaces and everything in them, up to but not including the start of the command.
///
/// # Errors
/// Whatever fails on either side; the child is gone by then and with it all that it made.
pub fn start(options: &RunOptions<'_>) -> Result<Started, SetupError> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source| SetupError::Host { what, source }
    };
    let Some(command) = options.command.first() else {
        return Err(fail("find a command to run")(io::Error::from_raw_os_error(libc::EINVAL)));
    };
    let maps = IdMaps::plan(options.identity, options.own_ids);
    let (ours, theirs) = Channel::pair().map_err(fail("make a socket pair"))?;
    let parent = getpid();
    let born = process::fork_into(options.isolation.at_birth());
    let born = born.map_err(|e| match options.isolation.at_birth().is_empty() {
        true => fail("start a process for the guest")(e),
        false => SetupError::Guest {
            message: format!("make user and process namespaces: {e}"),
            hint: hints::user_namespace(e.raw_os_error()),
        },
    });
    let pid = match born? {
        ForkResult::Child => {
            drop(ours);
            let Err(e) = guest(options, &theirs, parent);
            match e {
                GuestError::Execute(e) => {
                    let errno = e.raw_os_error().unwrap_or(libc::ENOEXEC);
                    // Nobody is left to tell if this fails.
                    let _ = theirs.send(&Report::NotExecuted(errno), &[]);
                }
                GuestError::Orphaned => {}
                e => report_failure(&theirs, &e, e.hint()),
            }
            process::exit_now(1)
        }
        ForkResult::Parent { child } => child,
    };
    drop(theirs);
    let mut child = Child::new(pid, ours);
    child.user_namespace()?;
    let groups = match options.isolation.users.then(|| maps.write(pid, options.identity)) {
        // As the namespace that it shares with us.
        None => (0, 0),
        Some(Ok(groups)) => groups,
        Some(Err(e)) => {
            let e = SetupError::Guest {
                message: format!("map the guest's users and groups: {}", super::chain(&e)),
                hint: hints::user_namespace(None),
            };
            return Err(child.last_words().unwrap_or(e));
        }
    };
    child.order(&Order::Mapped { groups })?;
    let Handover { tap, resolv_conf, diag, .. } = child.ready()?;
    let inside = Inside::beside(pid, options.link.inside);
    let inside = inside.map_err(fail("leave a process in the network namespace"))?;
    let resolv_conf = resolv_conf.map(File::from);
    Ok(Started { child, command: command.clone(), tap, resolv_conf, diag, inside })
}

/// The rest of a started guest, once its command runs.
pub struct Released {
    /// The command's process, a child of ours.
    pub pid: Pid,
    /// See [`Started::tap`].
    pub tap: Tap,
    /// See [`Started::resolv_conf`].
    pub resolv_conf: Option<File>,
    /// See [`Started::diag`].
    pub diag: Option<OwnedFd>,
    /// Opens sockets in the guest's namespace, if they were wanted.
    pub inside: Option<Inside>,
}

impl Started {
    /// Starts the command and waits until it runs.
    ///
    /// # Errors
    /// [`SetupError::CommandNotFound`] and its two siblings when it cannot be executed.
    pub fn release(self) -> Result<Released, SetupError> {
        self.child.order(&Order::Go)?;
        match self.child.executed()? {
            (pid, None) => {
                let Started { tap, resolv_conf, diag, inside, .. } = self;
                Ok(Released { pid, tap, resolv_conf, diag, inside })
            }
            (_, Some(errno)) => Err(refused(self.command, errno)),
        }
    }
}

/// What `execvp` means by its errno. It reports a directory of PATH that may not be searched
/// (`EACCES`) like a file that may not be executed, and a missing interpreter (`ENOENT`) like a
/// missing file.
fn refused(command: OsString, errno: i32) -> SetupError {
    let found = if command.as_bytes().contains(&b'/') {
        Path::new(&command).exists()
    } else {
        on_path(&command).is_some()
    };
    match errno {
        libc::ENOENT if found => SetupError::NoInterpreter(command),
        libc::ENOENT => SetupError::CommandNotFound(command),
        libc::EACCES if !found => SetupError::CommandNotFound(command),
        _ => {
            let source = io::Error::from_raw_os_error(errno);
            SetupError::NotExecutable { command, source }
        }
    }
}

/// Why the child gives up.
#[derive(Debug, thiserror::Error)]
enum GuestError {
    #[error("make a user namespace")]
    UserNamespace(#[source] io::Error),
    #[error("make network and mount namespaces")]
    Namespaces(#[source] io::Error),
    #[error("bind the guest's life to ours")]
    DeathSignal(#[source] io::Error),
    #[error("talk to the kernel's routing tables")]
    Netlink(#[source] io::Error),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Files(#[from] MountError),
    #[error("talk to the parent process")]
    Parent(#[source] io::Error),
    #[error("the parent process is gone")]
    Orphaned,
    #[error("execute the command")]
    Execute(#[source] io::Error),
}

impl GuestError {
    fn hint(&self) -> Option<String> {
        match self {
            GuestError::UserNamespace(e) | GuestError::Namespaces(e) => {
                hints::user_namespace(e.raw_os_error())
            }
            GuestError::Tap(e) => hints::tap(e),
            _ => None,
        }
    }
}

/// The child: everything from its namespaces to the command.
fn guest(
    options: &RunOptions<'_>,
    channel: &Channel,
    parent: Pid,
) -> Result<Infallible, GuestError> {
    let isolation = options.isolation;
    if !isolation.processes {
        unshare(isolation.user_namespace()).map_err(|e| GuestError::UserNamespace(e.into()))?;
    }
    channel.send(&Report::UserNamespace, &[]).map_err(GuestError::Parent)?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| GuestError::DeathSignal(e.into()))?;
    // From process 1 of a namespace the parent is not in sight; its end of the channel is.
    if !isolation.processes && getppid() != parent {
        return Err(GuestError::Orphaned);
    }
    // Files of a network namespace that its root alone may read are somebody else's for good if no
    // user is its root yet when it is made; the short way needs one of them. It costs a wait.
    let early = match options.link.inside {
        Wanted::ShortWay => Some(mapped(channel)?),
        Wanted::Nothing | Wanted::Sockets => None,
    };
    unshare(isolation.later()).map_err(|e| GuestError::Namespaces(e.into()))?;
    let mut netlink = Netlink::open().map_err(GuestError::Netlink)?;
    let tap = Tap::of(options.link, &mut netlink)?;
    configure(options.link, Autoconfiguration::Off, &mut netlink)?;
    drop(netlink);
    let diag = Handover::open_diag();

    allow_ping(early.map_or_else(|| mapped(channel), Ok)?);
    allow_low_ports();
    confine(isolation);
    let resolv_conf = match options.files {
        Some(files) => mount_private(files)?,
        None => None,
    };
    let made = Handover { tap, resolv_conf, diag, inside: None };
    made.send(channel).map_err(GuestError::Parent)?;

    let Order::Go = order(channel)? else { return Err(GuestError::Orphaned) };
    (options.restore_signals)().map_err(GuestError::Execute)?;
    let mut arguments = options
        .command
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| GuestError::Execute(io::Error::from_raw_os_error(libc::EINVAL)))?;
    let Some(program) = arguments.first().cloned() else { return Err(GuestError::Orphaned) };
    if let Some(name) = &isolation.own_name
        && let Ok(name) = CString::new(name.as_bytes())
    {
        arguments[0] = name;
    }
    nix::unistd::execvp(&program, &arguments).map_err(|e| GuestError::Execute(e.into()))
}

/// Lets the command see what is its own: processes, and the host's name. A container may forbid
/// either, and the command runs all the same.
fn confine(isolation: &Isolation) {
    let mounted = || mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>);
    if isolation.processes
        && let Err(e) = mounted()
    {
        tracing::warn!("/proc shows the processes of others: {e}");
    }
    if let Some(name) = &isolation.hostname
        && let Err(e) = sethostname(name)
    {
        tracing::warn!("the host keeps its name: {e}");
    }
}

/// Waits until the ids are mapped; the lowest and the highest group.
fn mapped(channel: &Channel) -> Result<(u32, u32), GuestError> {
    match order(channel)? {
        Order::Mapped { groups } => Ok(groups),
        Order::Go => Err(GuestError::Orphaned),
    }
}

fn order(channel: &Channel) -> Result<Order, GuestError> {
    match channel.receive() {
        Ok(Some((order, _))) => Ok(order),
        Ok(None) => Err(GuestError::Orphaned),
        Err(e) => Err(GuestError::Parent(e)),
    }
}

/// Lets every user inside ping without privilege (icmp(7), `ping_group_range`).
fn allow_ping((low, high): (u32, u32)) {
    if let Err(e) = fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{low} {high}")) {
        tracing::debug!("ping inside needs privilege: ping_group_range stays as it is: {e}");
    }
}

/// Lets every user inside listen at any port, as docker and podman do (ip(7),
/// `ip_unprivileged_port_start`): ports below 1024 are nobody's in a namespace of one's own.
fn allow_low_ports() {
    if let Err(e) = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") {
        tracing::debug!("ports below 1024 need privilege inside: {e}");
    }
}
