//! Asks this machine for the [`Facts`]: reads files, opens sockets that send nothing, and has a
//! child try the set-up of a guest ([`probe::trial`]). Judges nothing and writes nothing.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::super::facts::{OUTSIDE, on_path};
use super::facts::{
    self, Caller, Facts, Fallback, Helper, Kernel, Path, Resolvers, RuntimeDir, Subordinate,
    Sysctls,
};
use crate::sys::sock_diag::{self, Diag, Table};
use crate::sys::{probe, process};

/// How long the trial may take. It takes some milliseconds; loading the kernel's TUN module on the
/// first open takes longer.
const TRIAL_WITHIN: Duration = Duration::from_secs(5);

/// The bits of `CAP_SETGID` and `CAP_SETUID` in a capability set.
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

/// Gathers everything. What cannot be found out is left at the value that means so.
pub(super) fn gather() -> Facts {
    let caller = caller();
    let trial = probe::trial(caller.uid, caller.gid, TRIAL_WITHIN);
    let subordinates = |file: &str| Subordinate {
        source: facts::subid_source(&text("/etc/nsswitch.conf")),
        ..facts::subordinate(&text(file), caller.name.as_deref(), caller.uid)
    };
    Facts {
        kernel: kernel(),
        sysctls: sysctls(),
        trial,
        tun_loaded: text("/proc/misc").lines().any(|line| line.ends_with(" tun")),
        subuids: subordinates("/etc/subuid"),
        subgids: subordinates("/etc/subgid"),
        newuidmap: helper("newuidmap", CAP_SETUID),
        newgidmap: helper("newgidmap", CAP_SETGID),
        ping4: socket(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).map(drop),
        ping6: socket(Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6)).map(drop),
        low_port: low_port(),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default(),
        ipv4: path(OUTSIDE.0.into()),
        ipv6: path(OUTSIDE.1.into()),
        resolvers: resolvers(),
        runtime_dir: runtime_dir(),
        fallback: fallback(caller.uid),
        caller,
    }
}

fn caller() -> Caller {
    let uid = nix::unistd::geteuid();
    let status = text("/proc/self/status");
    let field = |key| facts::status_field(&status, key);
    Caller {
        uid: uid.as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: nix::unistd::getgroups()
            .unwrap_or_default()
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect(),
        name: nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name),
        nested: facts::is_nested(&text("/proc/self/uid_map")),
        no_new_privs: field("NoNewPrivs") == Some("1"),
        seccomp: field("Seccomp") == Some("2"),
        chrooted: facts::is_chroot(&text("/proc/self/mountinfo")),
    }
}

fn kernel() -> Kernel {
    Kernel {
        release: nix::sys::utsname::uname()
            .map(|names| names.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        landlock: probe::landlock_abi(),
        peek_offset: socket(Domain::IPV4, Type::STREAM, None)
            .and_then(|tcp| probe::set_peek_offset(tcp.as_fd(), 0)),
        pidfd: process::pidfd_open(nix::unistd::getpid()).map(drop).map_err(errno),
        sock_diag: what_listens().map_err(errno),
    }
}

/// Asks the host's own namespace; a guest's answers with the same parts of the kernel.
fn what_listens() -> io::Result<()> {
    let mut diag = Diag::new(sock_diag::open()?);
    diag.all(Table::Tcp4, &mut |_| {})?;
    diag.all(Table::Udp4, &mut |_| {})
}

fn sysctls() -> Sysctls {
    let number = |name: &str| text(&format!("/proc/sys/{name}")).trim().parse().ok();
    Sysctls {
        max_user_namespaces: number("user/max_user_namespaces"),
        max_net_namespaces: number("user/max_net_namespaces"),
        max_mnt_namespaces: number("user/max_mnt_namespaces"),
        unprivileged_userns_clone: number("kernel/unprivileged_userns_clone"),
        apparmor_restrict_userns: number("kernel/apparmor_restrict_unprivileged_userns"),
        ping_group_range: facts::group_range(&text("/proc/sys/net/ipv4/ping_group_range")),
        unprivileged_port_start: number("net/ipv4/ip_unprivileged_port_start"),
        disable_ipv6: number("net/ipv6/conf/all/disable_ipv6"),
    }
}

fn helper(program: &str, capability: u32) -> Option<Helper> {
    let path = on_path(program)?;
    let metadata = fs::metadata(&path).ok()?;
    let attribute = CString::new(path.as_os_str().as_bytes())
        .ok()
        .and_then(|path| probe::file_capabilities(&path));
    Some(Helper {
        setuid_root: metadata.uid() == 0 && metadata.mode() & 0o4000 != 0,
        capable: attribute.is_some_and(|bytes| facts::grants(&bytes, capability)),
        nosuid: statvfs(&path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID)),
        path,
    })
}

/// Binds TCP port 1 on the loopback and lets go of it at once; nothing listens. A port that is in
/// use was not refused for want of privilege.
fn low_port() -> Result<(), Errno> {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
    let tcp = socket(Domain::IPV4, Type::STREAM, None)?;
    match tcp.bind(&address.into()).map_err(errno) {
        Err(Errno::EADDRINUSE) => Ok(()),
        result => result,
    }
}

/// The route to `outside` as the kernel chooses it, with every rule, metric and VPN counted in: a
/// connected UDP socket knows its path.
fn path(outside: IpAddr) -> Path {
    let ask = |socket: &Socket| -> Result<(IpAddr, u32), Errno> {
        socket.connect(&SocketAddr::new(outside, 53).into()).map_err(errno)?;
        let source = socket.local_addr().map_err(errno)?.as_socket().ok_or(Errno::EAFNOSUPPORT)?;
        Ok((source.ip(), probe::path_mtu(socket.as_fd(), outside.is_ipv6())?))
    };
    let domain = if outside.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let Ok(socket) = socket(domain, Type::DGRAM, None) else { return Path::NoFamily };
    match ask(&socket) {
        Ok((source, mtu)) => Path::Via { interface: interface_of(source), source, mtu },
        Err(errno) => Path::NoRoute(errno),
    }
}

/// The interface that has the address.
fn interface_of(address: IpAddr) -> Option<String> {
    nix::ifaddrs::getifaddrs().ok()?.find_map(|entry| {
        let found = entry.address?;
        let found = match (found.as_sockaddr_in(), found.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        (found == address).then_some(entry.interface_name)
    })
}

fn resolvers() -> Resolvers {
    match fs::read_to_string("/etc/resolv.conf") {
        Ok(text) => Resolvers::Listed(
            facts::nameservers(&text)
                .into_iter()
                .map(|server| {
                    let usable = has_route(&server);
                    (server, usable)
                })
                .collect(),
        ),
        Err(error) => Resolvers::Unreadable(errno(error)),
    }
}

/// Whether a datagram to this `nameserver` would leave.
fn has_route(server: &str) -> bool {
    let (address, zone) = server.split_once('%').unwrap_or((server, ""));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let target: SockAddr = match address {
        IpAddr::V4(a) => SocketAddr::new(a.into(), 53).into(),
        IpAddr::V6(a) => {
            let scope = nix::net::if_::if_nametoindex(zone).or_else(|_| zone.parse()).unwrap_or(0);
            SocketAddrV6::new(a, 53, 0, scope).into()
        }
    };
    socket(target.domain(), Type::DGRAM, None).is_ok_and(|socket| socket.connect(&target).is_ok())
}

fn runtime_dir() -> RuntimeDir {
    let Some(path) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) else {
        return RuntimeDir::Unset;
    };
    let shown = path.to_string_lossy().into_owned();
    let path = FilePath::new(&path);
    match fs::metadata(path) {
        // Its specification takes relative paths for invalid.
        Ok(found) if found.is_dir() && path.is_absolute() => {
            RuntimeDir::Directory { path: shown, owner: found.uid(), mode: found.mode() & 0o7777 }
        }
        _ => RuntimeDir::NotADirectory(shown),
    }
}

fn fallback(uid: u32) -> Fallback {
    let run_user = fs::metadata(format!("/run/user/{uid}"));
    let in_tmp = fs::symlink_metadata(format!("/tmp/tapway-{uid}"));
    Fallback {
        run_user: run_user.is_ok_and(|found| found.is_dir() && found.uid() == uid),
        taken_by: in_tmp.ok().map(|found| found.uid()).filter(|&owner| owner != uid),
    }
}

fn socket(domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket, Errno> {
    Socket::new(domain, kind, protocol).map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// The text of a file, empty when it cannot be read.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
