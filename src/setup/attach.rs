//! `attach`: a network for a namespace that somebody else has made.
//!
//! The target is named by a process or by a path. It is opened and looked at by the parent; a
//! short-lived child joins the user namespace that owns it (unless that is ours) and then the
//! network namespace itself, makes the TAP there, hands it over and ends. Nothing of the target but
//! the TAP and its addresses is changed, and these go with the last descriptor of the TAP, so that
//! a tapway killed at any moment leaves nothing behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs, statfs};
use nix::unistd::{ForkResult, Pid};
use socket2::{Domain, SockAddr, Socket, Type};

use super::inside::Inside;
use super::link::{Autoconfiguration, LinkError, LinkOptions, configure};
use super::message::{Channel, Child, Handover, report_failure};
use super::netlink::Netlink;
use super::tap::{Tap, TapError, TapFeatures};
use super::{SetupError, hints};
use crate::control::lifecycle::{Anchor, NameWatch};
use crate::sys::{inherit, namespace, process};

/// Which namespace gets a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// The network namespace.
    pub target: Target,
    /// The user namespace to join for it, if not the one that the kernel says owns it.
    pub userns: Option<PathBuf>,
    /// Whether the target's end matters.
    pub watched: bool,
}

/// A network namespace, as named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That of a process.
    Process(i32),
    /// A namespace file, such as those under `/run/netns` or `/proc/PID/ns/net`.
    Path(PathBuf),
    /// None: this descriptor, which the program was started with, is a TAP already.
    Tap(RawFd),
    /// None: a listening `SOCK_SEQPACKET` socket is made at this path, and who connects first sends
    /// and receives frames there (as a port of the BESS switch does).
    Socket(PathBuf),
}

/// A namespace that has its interface.
pub struct Attached {
    /// Our side of it.
    pub tap: Tap,
    /// What tells that the target has gone away; `None` where nobody asked, or nothing can tell.
    pub anchor: Option<Anchor>,
    /// Asks what listens in the target ([`crate::sys::sock_diag`]); `None` where the kernel cannot
    /// tell.
    pub diag: Option<OwnedFd>,
    /// Opens sockets in the target, if they were wanted.
    pub inside: Option<Inside>,
}

/// What is wrong with the target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// The process ended while we looked at it.
    #[error("process {0} ended during set-up")]
    ProcessEnded(i32),
    /// The namespaces of the process may not be opened.
    #[error("process {pid} is not yours")]
    ProcessForeign {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path cannot be opened.
    #[error("open the namespace {}", .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path is a file, a directory, a device.
    #[error("{} is not a namespace", .0.display())]
    NotANamespace(PathBuf),
    /// It is a namespace of another kind.
    #[error("{} is a {found} namespace, not a {wanted} namespace", .path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// Its kind.
        found: &'static str,
        /// The kind needed.
        wanted: &'static str,
    },
    /// It is the namespace of tapway itself.
    #[error("{0} is in the network namespace in which tapway itself runs")]
    Own(String),
    /// It belongs to somebody whose namespaces we cannot join.
    #[error("{0} belongs to another user or to a user namespace outside ours")]
    Foreign(String),
    /// The end of the target cannot be watched.
    #[error("watch {target}")]
    Watch {
        /// The target.
        target: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl TargetError {
    /// What the user can do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            TargetError::Own(_) => Some(
                "start the target in a network namespace of its own, \
                 for instance with `unshare --user --map-root-user --net`"
                    .to_owned(),
            ),
            TargetError::ProcessForeign { .. } | TargetError::Foreign(_) => Some(
                "run tapway as the user who made the namespace, or name the user namespace \
                 with --userns"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Gives the target its interface.
///
/// # Errors
/// Whatever is wrong with the target or fails in it; nothing is left there.
pub fn start(options: &AttachOptions, link: &LinkOptions) -> Result<Attached, SetupError> {
    match &options.target {
        Target::Tap(number) => return adopt(*number),
        Target::Socket(path) => return accept(path),
        Target::Process(_) | Target::Path(_) => {}
    }
    let target = Opened::open(options)?;
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source| SetupError::Host { what, source }
    };
    let (ours, theirs) = Channel::pair().map_err(fail("make a socket pair"))?;
    let pid = match process::fork().map_err(fail("start a process that joins the namespace"))? {
        ForkResult::Child => {
            drop(ours);
            match join(&target, link, &theirs) {
                Ok(()) => process::exit_now(0),
                Err(e) => {
                    report_failure(&theirs, &e, e.hint());
                    process::exit_now(1)
                }
            }
        }
        ForkResult::Parent { child } => child,
    };
    drop(theirs);
    let Handover { tap, diag, inside, .. } = Child::new(pid, ours).ready()?;
    let inside = inside.map(Inside::new).transpose().map_err(fail("speak to the namespace"))?;
    let anchor = target.still_there(options)?;
    Ok(Attached { tap, anchor, diag, inside })
}

/// A TAP that we were started with.
fn adopt(number: RawFd) -> Result<Attached, SetupError> {
    let fail =
        |source| SetupError::Host { what: format!("use descriptor {number} as TAP"), source };
    let tap = Tap::adopt(inherit::take_descriptor(number).map_err(fail)?).map_err(fail)?;
    Ok(Attached { tap, anchor: None, diag: None, inside: None })
}

/// Waits at `path` for the other end of the link.
fn accept(path: &Path) -> Result<Attached, SetupError> {
    let fail = |source: io::Error| SetupError::Host {
        what: format!("wait for a peer at {}", path.display()),
        source,
    };
    let address = SockAddr::unix(path).map_err(fail)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(fail)?;
    listener.bind(&address).map_err(fail)?;
    listener.listen(1).map_err(fail)?;
    // However long that takes, a signal ends us meanwhile as it would any program.
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ppoll(&mut waiting, None, Some(SigSet::empty())).map_err(|e| fail(e.into()))?;
    let (peer, _) = listener.accept().map_err(fail)?;
    peer.set_nonblocking(true).map_err(fail)?;
    let tap = Tap { queues: vec![peer.into()], features: TapFeatures::default() };
    Ok(Attached { tap, anchor: None, diag: None, inside: None })
}

/// The target's namespaces, open.
struct Opened {
    name: String,
    net: File,
    /// Unless it is our own.
    user: Option<OwnedFd>,
    anchor: Option<Anchor>,
}

impl Opened {
    fn open(options: &AttachOptions) -> Result<Opened, TargetError> {
        let (name, net, anchor) = match &options.target {
            Target::Process(pid) => open_process(*pid, options.watched)?,
            Target::Path(path) => open_path(path, options.watched)?,
            // These have no namespace, and never come here.
            Target::Tap(_) | Target::Socket(_) => {
                return Err(TargetError::NotANamespace(PathBuf::new()));
            }
        };
        if same_file(&net, Path::new("/proc/self/ns/net")) {
            return Err(TargetError::Own(name));
        }
        let user = match &options.userns {
            Some(path) => OwnedFd::from(open_namespace(path, CloneFlags::CLONE_NEWUSER)?),
            // Only namespaces at or below our own user namespace have an owner that we may see.
            None => {
                namespace::owner(net.as_fd()).map_err(|_| TargetError::Foreign(name.clone()))?
            }
        };
        let user = File::from(user);
        let user =
            (!same_file(&user, Path::new("/proc/self/ns/user"))).then(|| OwnedFd::from(user));
        Ok(Opened { name, net, user, anchor })
    }

    /// The anchor, if the target has not gone away since it was opened.
    fn still_there(self, options: &AttachOptions) -> Result<Option<Anchor>, TargetError> {
        let watch_failed = |source| TargetError::Watch { target: self.name.clone(), source };
        let gone = self.anchor.as_ref().map(Anchor::is_gone).transpose().map_err(watch_failed)?;
        match &options.target {
            _ if gone != Some(true) => Ok(self.anchor),
            Target::Process(pid) => Err(TargetError::ProcessEnded(*pid)),
            _ => Err(TargetError::Open {
                path: PathBuf::from(self.name),
                source: io::Error::from_raw_os_error(libc::ENOENT),
            }),
        }
    }
}

fn open_process(pid: i32, watched: bool) -> Result<(String, File, Option<Anchor>), TargetError> {
    // The descriptor of the process first: a pid that is reused later cannot deceive us then.
    let pidfd = process::pidfd_open(Pid::from_raw(pid)).map_err(|_| TargetError::NoProcess(pid))?;
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let net = match open_namespace(&path, CloneFlags::CLONE_NEWNET) {
        Ok(net) => net,
        Err(TargetError::Open { source, .. }) => {
            return Err(match source.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => TargetError::ProcessEnded(pid),
                _ => TargetError::ProcessForeign { pid, source },
            });
        }
        Err(e) => return Err(e),
    };
    Ok((format!("process {pid}"), net, watched.then_some(Anchor::Process(pidfd))))
}

fn open_path(path: &Path, watched: bool) -> Result<(String, File, Option<Anchor>), TargetError> {
    let net = open_namespace(path, CloneFlags::CLONE_NEWNET)?;
    let name = path.display().to_string();
    if !watched {
        return Ok((name, net, None));
    }
    let watch_failed = |source| TargetError::Watch { target: name.clone(), source };
    let anchor = match process_of(path) {
        // Directories of processes cannot be watched, but the process can.
        Some(pid) => Anchor::Process(
            process::pidfd_open(Pid::from_raw(pid)).map_err(|_| TargetError::ProcessEnded(pid))?,
        ),
        None => Anchor::Name(NameWatch::new(path, &net).map_err(watch_failed)?),
    };
    Ok((name, net, Some(anchor)))
}

/// Opens a namespace file and makes sure of its kind.
fn open_namespace(path: &Path, kind: CloneFlags) -> Result<File, TargetError> {
    const NSFS_MAGIC: FsType = FsType(libc::NSFS_MAGIC);
    let fail = |source| TargetError::Open { path: path.to_owned(), source };
    // Without blocking, should it be a FIFO.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(fail)?;
    if fstatfs(&file).map_err(|e| fail(e.into()))?.filesystem_type() != NSFS_MAGIC {
        return Err(TargetError::NotANamespace(path.to_owned()));
    }
    let found = CloneFlags::from_bits_retain(
        namespace::kind(file.as_fd()).map_err(|_| TargetError::NotANamespace(path.to_owned()))?,
    );
    if found != kind {
        let (found, wanted) = (kind_name(found), kind_name(kind));
        return Err(TargetError::WrongKind { path: path.to_owned(), found, wanted });
    }
    Ok(file)
}

fn kind_name(kind: CloneFlags) -> &'static str {
    match kind {
        CloneFlags::CLONE_NEWNET => "network",
        CloneFlags::CLONE_NEWUSER => "user",
        CloneFlags::CLONE_NEWNS => "mount",
        CloneFlags::CLONE_NEWPID => "pid",
        CloneFlags::CLONE_NEWIPC => "ipc",
        CloneFlags::CLONE_NEWUTS => "uts",
        CloneFlags::CLONE_NEWCGROUP => "cgroup",
        _ => "time",
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().map(identity).ok() == std::fs::metadata(path).map(identity).ok()
}

/// The process whose `/proc` entry `path` leads through, symbolic links followed.
fn process_of(path: &Path) -> Option<i32> {
    let mut path = path.to_owned();
    // As many links as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        let parent = path.parent()?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = parent.canonicalize().ok()?;
        let file_name = path.file_name()?.to_owned();
        if statfs(&parent).ok()?.filesystem_type() == PROC_SUPER_MAGIC {
            let mut parts = parent.components();
            return parts.find_map(|part| part.as_os_str().to_str()?.parse().ok());
        }
        let here = parent.join(file_name);
        match here.read_link() {
            Ok(next) => path = parent.join(next),
            Err(_) => return None,
        }
    }
    None
}

/// Why the joining child gives up.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("join the user namespace of {target}")]
    User {
        target: String,
        #[source]
        source: io::Error,
    },
    #[error("join the network namespace of {target}")]
    Net {
        target: String,
        #[source]
        source: io::Error,
    },
    #[error("talk to the routing tables of {target}")]
    Netlink {
        target: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("leave a process in the network namespace")]
    Inside(#[source] io::Error),
    #[error("hand over the TAP")]
    Parent(#[source] io::Error),
}

impl JoinError {
    fn hint(&self) -> Option<String> {
        match self {
            JoinError::User { target, source } | JoinError::Net { target, source }
                if source.raw_os_error() == Some(libc::EPERM) =>
            {
                TargetError::Foreign(target.clone()).hint()
            }
            JoinError::Tap(TapError::Create { source, .. })
                if source.raw_os_error() == Some(libc::EPERM) =>
            {
                Some("name the user namespace that owns it with --userns".to_owned())
            }
            JoinError::Tap(e) => hints::tap(e),
            _ => None,
        }
    }
}

/// The child: joins, makes, hands over.
fn join(target: &Opened, link: &LinkOptions, channel: &Channel) -> Result<(), JoinError> {
    let name = || target.name.clone();
    if let Some(user) = &target.user {
        setns(user, CloneFlags::CLONE_NEWUSER)
            .map_err(|e| JoinError::User { target: name(), source: e.into() })?;
    }
    setns(&target.net, CloneFlags::CLONE_NEWNET)
        .map_err(|e| JoinError::Net { target: name(), source: e.into() })?;
    let mut netlink =
        Netlink::open().map_err(|source| JoinError::Netlink { target: name(), source })?;
    let tap = Tap::of(link, &mut netlink)?;
    configure(link, Autoconfiguration::AsFound, &mut netlink)?;
    let inside = Inside::leave_behind(link.inside).map_err(JoinError::Inside)?;
    let made = Handover { tap, resolv_conf: None, diag: Handover::open_diag(), inside };
    made.send(channel).map_err(JoinError::Parent)
}
