//! The outer of the benchmark's two processes: it makes what outlives a process, and removes it.
//!
//! ```text
//! cargo bench ── keeper ── PID and mount namespace ── benchmark (its init)
//!                  │                                    ├─ network namespaces (held by agents)
//!                  ├ account, directory                 ├─ servers, clients
//!                  └ waits, then removes both           └─ helpers
//! ```
//!
//! The benchmark is the init of a PID namespace of its own. When it ends, however it ends, the
//! kernel ends every process in there, and with them go the network namespaces, their devices and
//! the mounts. So nothing is searched for afterwards, not even after SIGKILL. What is left to the
//! keeper is the account of the helpers' user, if it made it, and the directory; it removes them on
//! SIGINT, SIGTERM and SIGHUP too.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Pid, Uid, User, chown};

use crate::base::{Failure, output_of};

/// Name of the unprivileged account; made for the run unless the machine has it already.
const ACCOUNT: &str = "tapway-bench";

/// One run at a time: two would measure each other.
const LOCK: &str = "/run/tapway-bench.lock";

/// Descriptors that a process may open, where the machine lets us choose: what 100,000 connections
/// need with what tapway keeps for other things, and more than three for each of 20,000 published ports, whatever a helper needs them for.
const DESCRIPTORS: u64 = 131_072;

/// Descriptors without which 10,000 connections cannot be: one each in client, helper and server.
const LEAST_DESCRIPTORS: u64 = 10_200;

/// Names the working directory to the inner process; its presence is what makes it the inner one.
const INSIDE: &str = "TAPWAY_E2E_INSIDE";

/// Signals on which the keeper clears up early.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The unprivileged user that the rootless helpers run as.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    pub uid: Uid,
    pub gid: Gid,
}

/// What the inner process finds ready.
#[derive(Debug)]
pub struct Premises {
    /// A directory that every user may read, removed after the run.
    pub dir: PathBuf,
    pub account: Account,
}

/// Enters the inner process, or, in the outer one, keeps it to its end.
///
/// # Errors
/// The sentence names what this machine does not allow.
pub fn enter_or_keep() -> Result<Entered, Failure> {
    match std::env::var_os(INSIDE) {
        Some(dir) => Ok(Entered::Inside(move_in(PathBuf::from(dir))?)),
        None => keep().map(Entered::Kept),
    }
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Entered {
    /// The inner one, which measures.
    Inside(Premises),
    /// The outer one; the run is over and ended with this status.
    Kept(u8),
}

fn keep() -> Result<u8, Failure> {
    if !Uid::effective().is_root() {
        return Err(Failure(
            "this benchmark makes network namespaces, a bridge and an unprivileged account: run it \
             as root, for example `sudo -E cargo bench --bench e2e`"
                .into(),
        ));
    }
    let lock = File::create(LOCK).map_err(|e| Failure::because(LOCK, e))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        Failure::because("another run of this benchmark is under way on this machine", e)
    })?;

    // Before the first thing that would have to be removed; the inner process undoes it for itself.
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_block().map_err(|e| Failure::because("block signals", e))?;
    let account = KeptAccount::find_or_make()?;
    let dir = tempfile::Builder::new()
        .prefix("tapway-e2e-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .map_err(|e| Failure::because("make a working directory", e))?;

    let (tell, told) = mpsc::channel();
    let (interrupt, interrupted) = mpsc::channel();
    thread::spawn(move || {
        if let (Ok(inner), Ok(signal)) = (told.recv(), signals.wait()) {
            let _ = interrupt.send(signal);
            // It may have ended by itself at this moment; then there is nothing to end.
            let _ = signal::kill(inner, Signal::SIGKILL);
        }
    });
    let path = dir.path().to_owned();
    let status = thread::spawn(move || run_inner(&path, &tell)).join();
    // The kernel reports the init's end only after it has ended all others of its namespace.
    drop(account);
    let status =
        status.map_err(|_| Failure("the thread of the inner process panicked".into()))??;
    Ok(interrupted.try_recv().map_or_else(|_| exit_code(status), |signal| 128 + signal as u8))
}

/// Runs the inner process to its end, from a thread of its own: `CLONE_NEWPID` leaves a thread
/// unable to make another thread, and, once that namespace is over, any process.
fn run_inner(dir: &Path, tell: &mpsc::Sender<Pid>) -> Result<ExitStatus, Failure> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
        .map_err(|e| Failure::because("make a PID and a mount namespace", e))?;
    let executable = std::env::current_exe().map_err(|e| Failure::because("find myself", e))?;
    let mut inner = Command::new(executable)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, dir)
        .spawn()
        .map_err(|e| Failure::because("start the inner process", e))?;
    // Nobody listens any more if a signal came before; then the wait is short.
    let _ = tell.send(Pid::from_raw(inner.id().cast_signed()));
    inner.wait().map_err(|e| Failure::because("wait for the inner process", e))
}

/// As a shell would say it: 128 + n for a signal n.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The account, removed at the end if this run made it.
struct KeptAccount {
    made: bool,
}

impl KeptAccount {
    fn find_or_make() -> Result<Self, Failure> {
        if find_account()?.is_some() {
            return Ok(KeptAccount { made: false });
        }
        // An ordinary account, not a system one: those get no range in /etc/subuid.
        output_of(Command::new("useradd").args([
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
            ACCOUNT,
        ]))?;
        Ok(KeptAccount { made: true })
    }
}

impl Drop for KeptAccount {
    fn drop(&mut self) {
        if self.made
            && let Err(e) = output_of(Command::new("userdel").arg(ACCOUNT))
        {
            eprintln!("e2e: the account {ACCOUNT} is left over: {e}");
        }
    }
}

fn find_account() -> Result<Option<User>, Failure> {
    User::from_name(ACCOUNT).map_err(|e| Failure::because("look up the account", e))
}

/// Makes the new namespaces usable: signals, `/proc`, a `/dev/net/tun` for all, descriptors.
fn move_in(dir: PathBuf) -> Result<Premises, Failure> {
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_unblock().map_err(|e| Failure::because("unblock signals", e))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| Failure::because("follow my parent", e))?;

    let bind = |source: Option<&Path>, target: &str, kind: Option<&str>, flags: MsFlags| {
        mount(source, target, kind, flags, None::<&str>)
            .map_err(|e| Failure::because(format_args!("mount {target}"), e))
    };
    bind(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    bind(
        Some(Path::new("proc")),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
    )?;
    // Some machines keep the device to root. Here, and only here, it has mode 0666.
    let node = dir.join("tun");
    mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200))
        .map_err(|e| Failure::because("make a device node for the TAP", e))?;
    fs::set_permissions(&node, Permissions::from_mode(0o666))
        .map_err(|e| Failure::because("open the TAP device to everyone", e))?;
    bind(Some(&node), "/dev/net/tun", None, MsFlags::MS_BIND)?;

    raise_descriptors()?;
    let user = find_account()?.ok_or_else(|| Failure(format!("no account {ACCOUNT}")))?;
    let account = Account { uid: user.uid, gid: user.gid };
    let home = dir.join("home");
    fs::create_dir(&home).map_err(|e| Failure::because("make a home directory", e))?;
    fs::set_permissions(&home, Permissions::from_mode(0o700))
        .map_err(|e| Failure::because("close the home directory", e))?;
    chown(&home, Some(account.uid), Some(account.gid))
        .map_err(|e| Failure::because("give the home directory away", e))?;
    Ok(Premises { dir, account })
}

/// How many descriptors a helper may open.
pub fn descriptors() -> Result<u64, Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|e| Failure::because("look at the limit of open files", e))?;
    Ok(hard)
}

/// Raises the limit of open files, at least as far as the hard limit goes.
fn raise_descriptors() -> Result<(), Failure> {
    let failed = |e| Failure::because("raise the limit of open files", e);
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return Ok(());
    }
    let hard = descriptors()?;
    if hard < LEAST_DESCRIPTORS {
        return Err(Failure(format!(
            "the limit of open files is {hard}; {LEAST_DESCRIPTORS} are needed: raise it with \
             `ulimit -Hn`"
        )));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)
}
