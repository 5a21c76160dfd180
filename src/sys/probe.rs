//! Attempts that tell what this kernel grants the caller, and that leave nothing behind.
//!
//! [`trial`] forks a child that makes its own user, network and mount namespace and a TAP in it,
//! step by step, the way that a guest is set up. The child makes system calls only (no allocation,
//! no lock), so it may be forked from a process with many threads. It writes each step to a pipe
//! when it begins and when it ends; so the parent knows where a child stopped that hung or was
//! killed. Everything that the child makes goes away with it: its namespaces have no other member
//! and its mounts and its TAP are in them.
//!
//! The other functions ask the kernel one question each, on a descriptor of their own.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::{ForkResult, Pid};

use super::{clock, tun};

/// What the child of [`trial`] attempts, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// A user namespace.
    UserNamespace,
    /// Giving up `setgroups`, without which an unprivileged process may not map its group.
    DenySetgroups,
    /// Being root inside.
    MapUser,
    /// The same for the group.
    MapGroup,
    /// A network namespace that the user namespace owns.
    NetworkNamespace,
    /// A mount namespace that the user namespace owns.
    MountNamespace,
    /// Making its mounts private.
    PrivateMounts,
    /// A bind mount in it, as for `resolv.conf`.
    BindMount,
    /// Opening `/dev/net/tun`.
    OpenTun,
    /// Asking what the device can do at all (`TUNGETFEATURES`): also tells it from another device.
    TunFeatures,
    /// A TAP with a virtio-net header and several queues.
    MultiQueueTap,
    /// A TAP with a virtio-net header and one queue; only when the step before failed.
    SingleQueueTap,
    /// The header's length of 12 bytes.
    HeaderLength,
    /// Checksum, TCP segmentation and UDP segmentation left to the kernel.
    UdpOffloads,
    /// Checksum and TCP segmentation only; only when the step before failed.
    TcpOffloads,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Step; 15] = [
        Step::UserNamespace,
        Step::DenySetgroups,
        Step::MapUser,
        Step::MapGroup,
        Step::NetworkNamespace,
        Step::MountNamespace,
        Step::PrivateMounts,
        Step::BindMount,
        Step::OpenTun,
        Step::TunFeatures,
        Step::MultiQueueTap,
        Step::SingleQueueTap,
        Step::HeaderLength,
        Step::UdpOffloads,
        Step::TcpOffloads,
    ];
}

/// How one step of the trial went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Outcome {
    /// The kernel did it.
    Passed,
    /// The kernel refused.
    Failed(Errno),
    /// The child was killed in the middle of it: by a seccomp filter if the signal is `SIGSYS`.
    Killed(Signal),
    /// It did not come back in time.
    Hung,
    /// Not attempted: an earlier step stood in the way, or there was no need.
    #[default]
    NotTried,
}

/// What the child found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Trial {
    outcomes: [Outcome; Step::ALL.len()],
    /// Why no child could be started.
    pub not_started: Option<Errno>,
}

impl Trial {
    /// How `step` went.
    pub fn outcome(&self, step: Step) -> Outcome {
        // A `Step` is an index below the number of steps: the test below holds `ALL` to it.
        self.outcomes[step as usize]
    }

    /// Whether the child never ran, hung, or was killed, so that later steps say nothing.
    pub fn stopped(&self) -> bool {
        self.not_started.is_some()
            || self.outcomes.iter().any(|o| matches!(o, Outcome::Hung | Outcome::Killed(_)))
    }

    /// The same trial in which `step` went as `outcome` says.
    #[must_use]
    pub fn with(mut self, step: Step, outcome: Outcome) -> Trial {
        self.outcomes[step as usize] = outcome;
        self
    }
}

/// One record on the pipe: the step and what happened. `BEGUN`, 0 for success, or an errno.
const RECORD: usize = 8;
/// The record's value at the start of a step.
const BEGUN: i32 = -1;
/// The record's step after the last one.
const FINISHED: u8 = u8::MAX;
/// How long a killed child may take to go away before it is left to init.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// Has a child try what a guest needs, for at most `within`.
///
/// `uid` and `gid` are the caller's effective ids.
pub fn trial(uid: u32, gid: u32, within: Duration) -> Trial {
    // Formatted before the fork: the child must not allocate.
    let maps = Maps { user: format!("0 {uid} 1\n"), group: format!("0 {gid} 1\n") };
    let mut trial = Trial::default();
    let (reader, writer) = match nix::unistd::pipe2(OFlag::O_CLOEXEC) {
        Ok(pipe) => pipe,
        Err(errno) => return Trial { not_started: Some(errno), ..trial },
    };
    // SAFETY: the child only makes system calls through functions that neither allocate nor lock,
    // and ends with `_exit`, so the state of other threads' locks at the fork does not matter.
    let child = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => attempt_all(&writer, &maps),
        Ok(ForkResult::Parent { child }) => child,
        Err(errno) => return Trial { not_started: Some(errno), ..trial },
    };
    drop(writer);
    let end = follow(reader.as_fd(), within, &mut trial);
    if end != End::Finished {
        // A child that has ended already cannot be another process: it is not reaped yet.
        let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
    }
    let status = reap(child);
    if let Some(step) = Step::ALL.into_iter().find(|&s| trial.outcome(s) == Outcome::Hung)
        && end == End::Closed
        && let Some(WaitStatus::Signaled(_, signal, _)) = status
    {
        trial = trial.with(step, Outcome::Killed(signal));
    }
    trial
}

struct Maps {
    user: String,
    group: String,
}

#[derive(PartialEq, Eq)]
enum End {
    /// The child said that it was done.
    Finished,
    /// The child ended without saying so.
    Closed,
    /// The time was up.
    TimedOut,
}

/// Reads records until the child is done. A step that began and did not end stays
/// [`Outcome::Hung`].
fn follow(reader: BorrowedFd<'_>, within: Duration, trial: &mut Trial) -> End {
    let deadline = clock::now() + within;
    loop {
        let left = deadline.since(clock::now());
        if left.is_zero() {
            return End::TimedOut;
        }
        // Rounded up, so that the last wait is not a busy loop.
        let timeout =
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(reader, PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => return End::Closed,
        }
        // Writes to a pipe of up to PIPE_BUF bytes are atomic (pipe(7)), so records are not cut.
        let mut record = [0; RECORD];
        let [step, _, _, _, result @ ..] = match nix::unistd::read(reader, &mut record) {
            Ok(RECORD) => record,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Ok(_) | Err(_) => return End::Closed,
        };
        if step == FINISHED {
            return End::Finished;
        }
        if let Some(outcome) = trial.outcomes.get_mut(usize::from(step)) {
            *outcome = match i32::from_ne_bytes(result) {
                BEGUN => Outcome::Hung,
                0 => Outcome::Passed,
                errno => Outcome::Failed(Errno::from_raw(errno)),
            };
        }
    }
}

/// Waits for a child that is on its way out, but not for ever: one that sleeps uninterruptibly in
/// the kernel does not even heed `SIGKILL`.
fn reap(child: Pid) -> Option<WaitStatus> {
    let deadline = clock::now() + REAP_WITHIN;
    loop {
        match nix::sys::wait::waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(status) => return Some(status),
            // Reaped already by a caller that ignores SIGCHLD.
            Err(_) => return None,
        }
        if deadline.since(clock::now()).is_zero() {
            return None;
        }
        let _ = nix::poll::poll(&mut [], 1u8);
    }
}

/// The child's life. System calls only.
fn attempt_all(pipe: &OwnedFd, maps: &Maps) -> ! {
    // Whatever happens to the parent, nothing stays.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    // Mounts and a TAP must never be made in the caller's own namespaces.
    let user = attempt_user_namespace(pipe, maps).is_ok();
    let network = user && attempt_unshare(pipe, Step::NetworkNamespace, CloneFlags::CLONE_NEWNET);
    let mount = user && attempt_unshare(pipe, Step::MountNamespace, CloneFlags::CLONE_NEWNS);
    if mount {
        let _ = attempt_mounts(pipe);
    }
    if let Ok(tun) = attempt_tun(pipe)
        && network
    {
        let _ = attempt_tap(pipe, tun.as_fd());
    }
    tell(pipe, FINISHED, 0);
    // SAFETY: ends the process at once and touches no memory.
    unsafe { libc::_exit(0) }
}

/// Namespaces and id maps. Fails only when there is no user namespace: without a map, the other
/// namespaces can still be tried.
fn attempt_user_namespace(pipe: &OwnedFd, maps: &Maps) -> nix::Result<()> {
    attempt(pipe, Step::UserNamespace, || nix::sched::unshare(CloneFlags::CLONE_NEWUSER))?;
    let _ = attempt(pipe, Step::DenySetgroups, || put(c"/proc/self/setgroups", b"deny"));
    let _ = attempt(pipe, Step::MapUser, || put(c"/proc/self/uid_map", maps.user.as_bytes()));
    let _ = attempt(pipe, Step::MapGroup, || put(c"/proc/self/gid_map", maps.group.as_bytes()));
    Ok(())
}

fn attempt_unshare(pipe: &OwnedFd, step: Step, flag: CloneFlags) -> bool {
    attempt(pipe, step, || nix::sched::unshare(flag)).is_ok()
}

fn attempt_mounts(pipe: &OwnedFd) -> nix::Result<()> {
    let mount = |source: Option<&CStr>, target: &CStr, flags| {
        nix::mount::mount(source, target, None::<&CStr>, flags, None::<&CStr>)
    };
    attempt(pipe, Step::PrivateMounts, || {
        mount(None, c"/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)
    })?;
    // Recursive, because a container has its own mounts below /etc and those are locked together.
    attempt(pipe, Step::BindMount, || {
        mount(Some(c"/etc"), c"/etc", MsFlags::MS_BIND | MsFlags::MS_REC)
    })
}

fn attempt_tun(pipe: &OwnedFd) -> nix::Result<OwnedFd> {
    let tun = attempt(pipe, Step::OpenTun, || {
        // Not blocking: what stands at this path may be something else that waits for a partner.
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        nix::fcntl::open(c"/dev/net/tun", flags, Mode::empty())
    })?;
    attempt(pipe, Step::TunFeatures, || bare(tun::features(tun.as_fd())))?;
    Ok(tun)
}

fn attempt_tap(pipe: &OwnedFd, tun: BorrowedFd<'_>) -> nix::Result<()> {
    let single = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let multi = single | libc::IFF_MULTI_QUEUE;
    let tap = attempt(pipe, Step::MultiQueueTap, || bare(tun::set_interface(tun, "", multi)));
    if tap.is_err() {
        attempt(pipe, Step::SingleQueueTap, || bare(tun::set_interface(tun, "", single)))?;
    }
    attempt(pipe, Step::HeaderLength, || bare(tun::set_vnet_header_len(tun, 12)))?;
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let offloads = attempt(pipe, Step::UdpOffloads, || bare(tun::set_offload(tun, udp)));
    if offloads.is_err() {
        attempt(pipe, Step::TcpOffloads, || bare(tun::set_offload(tun, tcp)))?;
    }
    Ok(())
}

fn attempt<T>(pipe: &OwnedFd, step: Step, what: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    tell(pipe, step as u8, BEGUN);
    let result = what();
    tell(pipe, step as u8, result.as_ref().err().map_or(0, |&errno| errno as i32));
    result
}

/// Writes one record. A parent that has gone takes the child with it, so failure has no
/// consequence.
fn tell(pipe: &OwnedFd, step: u8, result: i32) {
    let [a, b, c, d] = result.to_ne_bytes();
    let _ = nix::unistd::write(pipe, &[step, 0, 0, 0, a, b, c, d]);
}

fn put(path: &CStr, bytes: &[u8]) -> nix::Result<()> {
    let file = nix::fcntl::open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, bytes).map(drop)
}

/// The same result with the bare errno, as a record carries it.
fn bare<T>(result: io::Result<T>) -> nix::Result<T> {
    result.map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

/// The version of Landlock that the kernel speaks (landlock_create_ruleset(2)).
///
/// # Errors
/// `ENOSYS` when the kernel was built without it, `EOPNOTSUPP` when it was not switched on at boot.
pub fn landlock_abi() -> nix::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes a null attribute of length 0 and reads no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    Errno::result(version).map(|version| u32::try_from(version).unwrap_or(0))
}

/// Whether data can be looked at from an offset in this socket's queue (`SO_PEEK_OFF`; for TCP
/// since Linux 6.9).
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: libc::c_int) -> nix::Result<()> {
    // SAFETY: the kernel reads one int, which `offset` is; `socket` is open for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// The MTU in bytes of the path that a connected socket sends on (`IP_MTU`, `IPV6_MTU`).
pub fn path_mtu(socket: BorrowedFd<'_>, ipv6: bool) -> nix::Result<u32> {
    let (level, name) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU) } else { (libc::IPPROTO_IP, libc::IP_MTU) };
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `mtu` has, and then the true length.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length)
    };
    Errno::result(result).map(|_| mtu.unsigned_abs())
}

/// The raw `security.capability` attribute of a file (capabilities(7)), if it has one.
pub fn file_capabilities(path: &CStr) -> Option<Vec<u8>> {
    // A version 3 attribute has 24 bytes.
    let mut value = vec![0; 64];
    // SAFETY: both strings end with a zero byte; the kernel writes at most `value.len()` bytes to
    // it.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_its_own_index() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index);
        }
    }

    #[test]
    fn a_trial_with_no_time_is_over_at_once_and_says_so() {
        let began = clock::now();
        let trial = trial(0, 0, Duration::ZERO);
        assert!(clock::now() - began < REAP_WITHIN + Duration::from_secs(1));
        assert_eq!(trial.not_started, None);
        assert!(Step::ALL.into_iter().all(|s| trial.outcome(s) == Outcome::NotTried));
    }

    #[test]
    fn a_trial_leaves_the_caller_where_it_was() {
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        let state = || {
            ["user", "net", "mnt"]
                .map(|ns| std::fs::read_link(format!("/proc/self/ns/{ns}")))
                .map(|link| link.expect("a process has its namespaces"))
        };
        let before = state();
        let interfaces = || std::fs::read_to_string("/proc/self/net/dev").unwrap().lines().count();
        let links = interfaces();
        let trial = trial(uid, gid, Duration::from_secs(10));
        assert_eq!(state(), before);
        assert_eq!(interfaces(), links);
        assert!(
            !matches!(trial.outcome(Step::UserNamespace), Outcome::NotTried | Outcome::Hung),
            "{trial:?}"
        );
    }

    #[test]
    fn each_outcome_is_read_from_its_record() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let _ = attempt(&writer, Step::UserNamespace, || Ok(()));
        let _ = attempt(&writer, Step::MapUser, || Err::<(), _>(Errno::EPERM));
        tell(&writer, Step::OpenTun as u8, BEGUN);
        // A record of a step that does not exist is passed over.
        tell(&writer, 200, 0);
        drop(writer);
        let mut trial = Trial::default();
        assert!(follow(reader.as_fd(), Duration::from_secs(5), &mut trial) == End::Closed);
        assert_eq!(trial.outcome(Step::UserNamespace), Outcome::Passed);
        assert_eq!(trial.outcome(Step::MapUser), Outcome::Failed(Errno::EPERM));
        assert_eq!(trial.outcome(Step::OpenTun), Outcome::Hung);
        assert_eq!(trial.outcome(Step::BindMount), Outcome::NotTried);
    }

    #[test]
    fn a_silent_child_is_given_up_in_time() {
        let (reader, _writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut trial = Trial::default();
        assert!(follow(reader.as_fd(), Duration::from_millis(20), &mut trial) == End::TimedOut);
    }

    #[test]
    fn landlock_answers_or_says_why_not() {
        // This suite's own floor is a kernel that has it or lacks it honestly.
        assert!(matches!(
            landlock_abi(),
            Ok(1..) | Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM)
        ));
    }
}
