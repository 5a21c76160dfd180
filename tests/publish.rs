//! The host side of published ports, as a real unprivileged user: what is open, and what is refused
//! in which words.

mod support;

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use support::{Background, Ran, binary, free_port, run, scratch, tapway, user};

/// A guest that has started when it gets back to the test, and stays.
fn guest(options: &[&str]) -> Background {
    let script = ["--", "sh", "-c", "echo up; exec sleep 1000"];
    let mut guest = Background::start(&mut tapway(&[&["run"], options, &script].concat()));
    assert_eq!(guest.line(), "up");
    guest
}

fn connects(address: &str, port: u16) -> bool {
    TcpStream::connect((address.parse::<IpAddr>().unwrap(), port)).is_ok()
}

fn refused(options: &[&str]) -> Ran {
    let ran = run(&[&["run"], options, &["--", "true"]].concat());
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.lines().count() <= 2, "{ran:?}");
    ran
}

#[test]
fn ports_are_open_for_as_long_as_the_guest_lives() {
    let port = free_port();
    let first = guest(&["-p", &format!("{port}:80"), "-p", &format!("{port}:53/udp")]);
    assert!(connects("127.0.0.1", port) && connects("::1", port));
    UdpSocket::bind(("127.0.0.1", port)).unwrap_err();
    UdpSocket::bind(("::1", port)).unwrap_err();
    first.signal(Signal::SIGKILL);
    first.end();
    // However it ends, the next one has the port at once.
    let loopback = guest(&["-p", &format!("127.0.0.1:{port}:80")]);
    assert!(connects("127.0.0.1", port) && !connects("::1", port));
    loopback.signal(Signal::SIGTERM);
    loopback.end();
    assert!(!connects("127.0.0.1", port));
}

#[test]
fn picked_ports_are_told_before_the_command_starts() {
    let ran = run(&["run", "-p", "80-81", "-p", "127.0.0.1::53/udp", "--", "true"]);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let lines: Vec<_> = ran.stderr.lines().collect();
    let [web, other, dns] = lines[..] else { panic!("{ran:?}") };
    for (line, place, guest) in
        [(web, "*", "80/tcp"), (other, "*", "81/tcp"), (dns, "127.0.0.1", "53/udp")]
    {
        let rest = line.strip_prefix(&format!("tapway: {place}:")).expect(line);
        let (port, rest) = rest.split_once(" -> ").expect(line);
        assert!(port.parse::<u16>().unwrap() != 0 && rest == guest, "{line}");
    }
}

#[test]
fn a_port_in_use_is_named_with_the_program_that_has_it() {
    // A process of the same user may be looked at, so its name is known.
    let mut other = user("python3");
    other.args([
        "-c",
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); \
         print(s.getsockname()[1], flush=True); time.sleep(1000)",
    ]);
    let mut other = Background::start(&mut other);
    let port = other.line();
    let ran = refused(&["-p", &format!("{port}:80")]);
    let meant = format!(
        "tapway: publish {port}:80/tcp: port {port}/tcp is in use by python3 (process {})\n",
        other.pid()
    );
    assert!(ran.stderr.starts_with(&meant), "{meant}\n{ran:?}");
}

#[test]
fn a_port_of_a_process_that_cannot_be_looked_at_is_in_use_all_the_same() {
    let port = free_port();
    let _guest = guest(&["-p", &format!("{port}:80")]);
    let ran = refused(&["-p", &format!("127.0.0.1:{port}:80")]);
    assert!(ran.stderr.contains("is in use by another process"), "{ran:?}");
    assert!(ran.stderr.contains("`tapway port list` shows whether"), "{ran:?}");
}

#[test]
fn a_failed_start_leaves_nothing_open() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = free_port();
    let directory = scratch();
    let socket = directory.path().join("web.sock");
    let unix = format!("unix:{}:80", socket.display());
    refused(&["-p", &unix, "-p", &format!("{free}:80"), "-p", &format!("{port}:81")]);
    assert!(!connects("127.0.0.1", free) && !socket.exists());
}

#[test]
fn privileged_ports_name_the_sysctl() {
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let start: u16 = start.trim().parse().unwrap();
    if start < 2 {
        support::loudly("SKIPPED: every port is for everybody here");
        return;
    }
    let ran = refused(&["-p", "1:80"]);
    assert!(ran.stderr.contains("port 1 is privileged"), "{ran:?}");
    assert!(ran.stderr.contains("sysctl -w net.ipv4.ip_unprivileged_port_start=1;"), "{ran:?}");
    assert!(ran.stderr.contains(&start.to_string()), "{ran:?}");
}

#[test]
fn what_the_host_does_not_have_is_named() {
    for (spec, words) in [
        ("192.0.2.254:8080:80", "192.0.2.254 is not an address of this host"),
        ("%nosuch0:8080:80", "no interface nosuch0"),
        ("unix:/nosuch/web.sock:80", "/nosuch/web.sock: No such file or directory"),
        ("unix:/dev/null:80", "/dev/null: there is a file of this name, and it is not a socket"),
    ] {
        let ran = refused(&["-p", spec]);
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}

#[test]
fn unix_sockets_are_replaced_when_stale_and_removed_in_the_end() {
    let directory = scratch();
    let socket = directory.path().join("web.sock");
    let unix = format!("unix:{}:80", socket.display());
    let killed = guest(&["-p", &unix]);
    UnixStream::connect(&socket).unwrap();
    assert!(refused(&["-p", &unix]).stderr.contains("another process serves"));
    killed.signal(Signal::SIGKILL);
    killed.end();
    assert!(socket.exists());
    let next = guest(&["-p", &unix]);
    UnixStream::connect(&socket).unwrap();
    next.signal(Signal::SIGTERM);
    next.end();
    assert!(!socket.exists());
}

/// tapway as systemd starts it: `sockets` become the descriptors from 3 on. A shell puts its own id
/// into the environment and then becomes tapway.
fn activated(sockets: &[(&str, &str)], arguments: &[&str]) -> std::process::Command {
    let starter = "import os, socket, sys\n\
        count = int(sys.argv[1])\n\
        specs = sys.argv[2:2 + 2 * count]\n\
        os.dup2(2, 3 + count)\n\
        for n in range(count):\n\
        \x20   kind, place = specs[2 * n:2 * n + 2]\n\
        \x20   if kind == 'unix':\n\
        \x20       s = socket.socket(socket.AF_UNIX); s.bind(place)\n\
        \x20   else:\n\
        \x20       host, port = place.rsplit(' ', 1)\n\
        \x20       family = socket.AF_INET6 if ':' in host else socket.AF_INET\n\
        \x20       datagrams = kind.startswith('udp')\n\
        \x20       style = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM\n\
        \x20       s = socket.socket(family, style)\n\
        \x20       if family == socket.AF_INET6: s.setsockopt(41, 26, int(kind == 'udp'))\n\
        \x20       s.bind((host, int(port)))\n\
        \x20   if kind in ('tcp', 'unix'): s.listen()\n\
        \x20   fd = s.detach(); keep = os.dup2(fd, 100 + n, inheritable=True); os.close(fd)\n\
        for n in range(count): os.dup2(100 + n, 3 + n); os.close(100 + n)\n\
        os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='a')\n\
        rest = sys.argv[2 + 2 * count:]\n\
        os.execv(rest[0], rest)\n";
    let mut command = user("python3");
    command.args(["-c", starter, &sockets.len().to_string()]);
    for (kind, place) in sockets {
        command.args([kind, place]);
    }
    command.arg(binary()).args(arguments);
    command
}

const SHOW: &str = "env | grep -c ^LISTEN_; ls -l /proc/self/fd | grep -c socket: ; echo up; \
                    exec sleep 1000";

#[test]
fn sockets_handed_over_are_used_for_their_rules_and_else_under_their_own_port() {
    let [ruled, own, dns] = [free_port(), free_port(), free_port()];
    let directory = scratch();
    let socket = directory.path().join("web.sock");
    let unix = format!("unix:{}:81", socket.display());
    let (tcp, other, udp) =
        (format!(":: {ruled}"), format!("127.0.0.1 {own}"), format!("127.0.0.1 {dns}"));
    let rules =
        [format!("{ruled}:80"), unix, format!("127.0.0.1:{dns}:53/udp"), "127.0.0.1::7".to_owned()];
    let [a, b, c, d] = &rules;
    let arguments = ["run", "-p", a, "-p", b, "-p", c, "-p", d, "--", "sh", "-c", SHOW];
    let sockets =
        [("tcp", &*tcp), ("tcp", &*other), ("udp", &*udp), ("unix", socket.to_str().unwrap())];
    let mut guest = Background::start(&mut activated(&sockets, &arguments));
    // Neither the variables nor the descriptors are the guest's.
    assert_eq!((guest.line(), guest.line(), guest.line()), ("0".into(), "0".into(), "up".into()));
    for (address, port) in [("127.0.0.1", ruled), ("::1", ruled), ("127.0.0.1", own)] {
        assert!(connects(address, port), "{address} {port}");
    }
    assert!(!connects("::1", own));
    UnixStream::connect(&socket).unwrap();
    guest.signal(Signal::SIGTERM);
    guest.end();
    // It is for whoever made it to remove.
    assert!(socket.exists());
}

#[test]
fn what_cannot_be_published_is_named_by_its_number() {
    let port = free_port();
    let directory = scratch();
    let unix = directory.path().join("web.sock");
    for (kind, place, words) in [
        ("deaf", format!("127.0.0.1 {port}"), "descriptor 3 of LISTEN_FDS"),
        ("udp46", format!(":: {port}"), "BindIPv6Only=ipv6-only"),
        ("unix", unix.to_str().unwrap().to_owned(), "-p unix:PATH:PORT"),
    ] {
        let arguments = ["run", "--", "true"];
        let ran: Ran = activated(&[(kind, &place)], &arguments).output().unwrap().into();
        assert_eq!(ran.status, Some(125), "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}

#[test]
fn sockets_of_another_process_id_are_left_alone() {
    let mut command = tapway(&["run", "--", "sh", "-c", "env | grep -c ^LISTEN_; true"]);
    let ran: Ran = command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1").output().unwrap().into();
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "0\n", ""));
}

#[test]
fn descriptors_that_do_not_suffice_are_counted() {
    let mut command = user("sh");
    command.args(["-c", "ulimit -Sn 1024 && ulimit -Hn 4096 && exec \"$@\"", "sh"]).arg(binary());
    command.args(["run", "-p", "127.0.0.1:20001-24000:1-4000", "--", "true"]);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!(ran.status, Some(125), "{ran:?}");
    for words in ["4000 descriptors", "the limit is 4096", "LimitNOFILE="] {
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
}

/// What the issue asks for, where the limit of descriptors allows; else what the limit allows.
const MANY_PORTS: u64 = 20_000;

/// Seconds that opening many ports may take; a quiet machine needs a fraction of one.
const SOON: i64 = 5;

#[test]
fn thousands_of_ports_take_neither_long_nor_threads() {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let count = MANY_PORTS.min(limit.saturating_sub(512));
    let rule = format!("127.0.0.9:10001-{}:1-{count}", 10_000 + count);
    let before = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    let guest = guest(&["-p", &rule]);
    let took = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap() - before;
    eprintln!("{count} ports in {} ms", took.num_milliseconds());
    assert!(took.num_seconds() < SOON, "{count} ports took {took}");
    let last = u16::try_from(10_000 + count).unwrap();
    assert!(connects("127.0.0.9", 10_001) && connects("127.0.0.9", last));
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    assert!(threads.trim().parse::<u32>().unwrap() <= 3, "{status}");
}
