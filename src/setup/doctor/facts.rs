//! What the checks judge, as plain values, and the small parsers that make values of files' text.

use std::net::IpAddr;
use std::path::PathBuf;

use nix::errno::Errno;

use super::super::idmap::{IdRange, subordinates, subordinates_of};
use crate::sys::probe::Trial;

/// Everything that [`super::checks::judge`] looks at. [`super::gather`] fills it on a real machine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) caller: Caller,
    pub(super) kernel: Kernel,
    pub(super) sysctls: Sysctls,
    /// What a child found when it tried to set up a guest.
    pub(super) trial: Trial,
    /// Whether the kernel has its TUN driver loaded already (`/proc/misc`).
    pub(super) tun_loaded: bool,
    pub(super) subuids: Subordinate,
    pub(super) subgids: Subordinate,
    pub(super) newuidmap: Option<Helper>,
    pub(super) newgidmap: Option<Helper>,
    /// Opening a ping socket of each family.
    pub(super) ping4: Result<(), Errno>,
    pub(super) ping6: Result<(), Errno>,
    /// Binding a socket to TCP port 1 of the loopback.
    pub(super) low_port: Result<(), Errno>,
    /// The soft and the hard limit of open descriptors; `RLIM_INFINITY` is `u64::MAX`. Set-up
    /// raises the soft one to the hard one.
    pub(super) descriptors: (u64, u64),
    pub(super) ipv4: Path,
    pub(super) ipv6: Path,
    pub(super) resolvers: Resolvers,
    pub(super) runtime_dir: RuntimeDir,
    /// Where control sockets are when `runtime_dir` is not the caller's own.
    pub(super) fallback: Fallback,
}

/// Who asks, and under which restrictions.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) name: Option<String>,
    /// Whether the ids are those of a nested user namespace, as in a container.
    pub(super) nested: bool,
    pub(super) no_new_privs: bool,
    /// Whether a seccomp filter is at work.
    pub(super) seccomp: bool,
    /// Whether the root directory is surely not that of the mount namespace.
    pub(super) chrooted: bool,
}

/// What the kernel is and which of its features answer.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// `uname -r`.
    pub(super) release: String,
    pub(super) landlock: Result<u32, Errno>,
    pub(super) peek_offset: Result<(), Errno>,
    pub(super) pidfd: Result<(), Errno>,
    /// Asking what listens, over TCP and over UDP.
    pub(super) sock_diag: Result<(), Errno>,
}

/// Kernel settings; `None` where this kernel has no such file.
#[derive(Clone, Debug, Default)]
pub(super) struct Sysctls {
    pub(super) max_user_namespaces: Option<u64>,
    pub(super) max_net_namespaces: Option<u64>,
    pub(super) max_mnt_namespaces: Option<u64>,
    /// Debian's and Arch's switch.
    pub(super) unprivileged_userns_clone: Option<u64>,
    /// Ubuntu's switch, since 23.10.
    pub(super) apparmor_restrict_userns: Option<u64>,
    /// Lowest and highest group that may open ping sockets; none when the first is above the
    /// second.
    pub(super) ping_group_range: Option<(u32, u32)>,
    pub(super) unprivileged_port_start: Option<u64>,
    pub(super) disable_ipv6: Option<u64>,
}

/// The caller's share of `/etc/subuid` or `/etc/subgid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subordinate {
    /// The caller's ranges.
    pub(super) ranges: Vec<IdRange>,
    /// The first id, at or above 100000, that is above everybody's ranges.
    pub(super) next_free: u32,
    /// The source that `/etc/nsswitch.conf` names instead of the files.
    pub(super) source: Option<String>,
}

/// `newuidmap` or `newgidmap` where the search path has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Helper {
    pub(super) path: PathBuf,
    pub(super) setuid_root: bool,
    /// Whether its file capabilities give what it needs.
    pub(super) capable: bool,
    /// Whether its file system is mounted `nosuid`, which takes both away.
    pub(super) nosuid: bool,
}

/// How one address family leaves this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// The kernel makes no socket of this family.
    NoFamily,
    /// No route to the outside.
    NoRoute(Errno),
    /// By this interface and from this address.
    Via { interface: Option<String>, source: IpAddr, mtu: u32 },
}

/// `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolvers {
    /// It cannot be read.
    Unreadable(Errno),
    /// Its `nameserver` lines as written, and whether a datagram would find a route there.
    Listed(Vec<(String, bool)>),
}

/// `$XDG_RUNTIME_DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuntimeDir {
    Unset,
    /// Set, but there is no such directory.
    NotADirectory(String),
    Directory {
        path: String,
        owner: u32,
        mode: u32,
    },
}

/// Places for control sockets besides `$XDG_RUNTIME_DIR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fallback {
    /// `/run/user/UID` is a directory of the caller's own.
    pub(super) run_user: bool,
    /// Who else has taken the place in `/tmp` that would be next.
    pub(super) taken_by: Option<u32>,
}

/// The first two numbers of a kernel release.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The value of `key` in `/proc/self/status`.
pub(super) fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

/// Lowest and highest group of `net.ipv4.ping_group_range`.
pub(super) fn group_range(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether `/proc/self/uid_map` is that of a user namespace below the first one.
pub(super) fn is_nested(uid_map: &str) -> bool {
    !uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether `/proc/self/mountinfo` has no mount at `/`: the mark of a chroot into a plain directory.
/// A chroot into a mount point looks like any other root and is not seen.
pub(super) fn is_chroot(mountinfo: &str) -> bool {
    !mountinfo.is_empty()
        && !mountinfo.lines().any(|line| line.split_whitespace().nth(4) == Some("/"))
}

/// The share of user `name` or `uid` in the text of subuid(5), and where a new range may begin.
pub(super) fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Subordinate {
    let ends = subordinates(text).filter_map(|(_, range)| range.end());
    Subordinate {
        ranges: subordinates_of(text, name, uid),
        next_free: ends.fold(FIRST_SUBORDINATE, u32::max),
        source: None,
    }
}

/// Where the tools of shadow-utils begin with subordinate ids (`SUB_UID_MIN`).
const FIRST_SUBORDINATE: u32 = 100_000;

/// The source of subordinate ids that nsswitch.conf(5) names, unless it is the files.
pub(super) fn subid_source(nsswitch: &str) -> Option<String> {
    let line = nsswitch.lines().find_map(|line| line.trim().strip_prefix("subid:"))?;
    // One source only (getsubids(1)).
    line.split_whitespace().next().filter(|&source| source != "files").map(str::to_owned)
}

/// The addresses of the `nameserver` lines of resolv.conf(5).
pub(super) fn nameservers(resolv_conf: &str) -> Vec<String> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next()? == "nameserver" { words.next().map(str::to_owned) } else { None }
        })
        .collect()
}

/// Whether a raw `security.capability` attribute puts capability number `capability` (below 32)
/// into the effective set of whoever executes the file (`struct vfs_cap_data`: little-endian words,
/// the revision and the effective flag first, then the permitted set).
pub(super) fn grants(attribute: &[u8], capability: u32) -> bool {
    let word = |at: usize| {
        let bytes = attribute.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (Some(magic), Some(permitted)) = (word(0), word(4)) else { return false };
    magic & 1 != 0 && permitted & 1 << capability != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert_eq!(kernel_version("gnu"), None);
        let status = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        assert_eq!(status_field(status, "Seccomp"), Some("2"));
        assert_eq!(status_field(status, "NoNew"), None);
        assert_eq!(group_range("1\t0\n"), Some((1, 0)));
        assert_eq!(group_range("0\t2147483647\n"), Some((0, 2_147_483_647)));
        assert_eq!(group_range("1"), None);
        assert!(!is_nested("         0          0 4294967295\n"));
        assert!(is_nested("         0       1000          1\n"));
    }

    #[test]
    fn a_root_that_is_no_mount_is_a_chroot() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:5 / /proc rw - proc proc rw\n";
        assert!(!is_chroot(mounts));
        assert!(is_chroot("30 22 0:5 / /proc rw - proc proc rw\n"));
        assert!(!is_chroot(""), "without /proc nothing is known");
    }

    #[test]
    fn a_new_range_begins_behind_everybodys() {
        let text = "bob:100000:65536\nalice:165536:65536\n1000:400000:10\ncarol:7:10\n";
        let found = subordinate(text, Some("alice"), 1000);
        assert_eq!((found.ranges.len(), found.next_free), (2, 400_010));
        assert_eq!(subordinate("", None, 5).next_free, 100_000);
    }

    #[test]
    fn only_a_source_other_than_files_is_named() {
        assert_eq!(subid_source("passwd: files\nsubid: sss\n").as_deref(), Some("sss"));
        assert_eq!(subid_source("subid: files\n"), None);
        assert_eq!(subid_source("passwd: files sss\n"), None);
    }

    #[test]
    fn nameservers_are_taken_as_written() {
        let text = "# nameserver 192.0.2.9\nnameserver 127.0.0.53\n nameserver\tfe80::1%eth0 \n\
                    search a.example\nnameserver\noptions edns0\n";
        assert_eq!(nameservers(text), ["127.0.0.53", "fe80::1%eth0"]);
    }

    #[test]
    fn file_capabilities_need_the_effective_flag() {
        // What `setcap cap_setuid=ep` writes (linux/capability.h: revision 2, CAP_SETUID is bit 7).
        let setuid = [1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(grants(&setuid, 7));
        assert!(!grants(&setuid, 6));
        let mut inactive = setuid;
        inactive[0] = 0;
        assert!(!grants(&inactive, 7));
        assert!(!grants(&setuid[..6], 7));
        assert!(!grants(&[], 7));
    }
}
