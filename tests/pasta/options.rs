//! Options and their effect, one by one. Where each of pasta's has its test:
//!
//! | options | effect | test |
//! |---|---|---|
//! | `-d` `--trace` `-q` | what is said | `a_log_file_…` |
//! | `-f` | foreground | `contract_pasta`: `splice_only_…`, commands |
//! | `-e` | a warning | `a_log_file_…` |
//! | `-l` `--log-size` | form, mode and size of the file | `a_log_file_…`; `setup::journal` |
//! | none of them | the system's log | `a_daemon_speaks_…` |
//! | `--stats` | lines of counters | `statistics_come_…` |
//! | `-P` | its mode, text, time | `contract_pasta`: `daemon`, `a_port_that_is_taken_…` |
//! | `-p` | a capture | `a_capture_holds_…` |
//! | `-c` | pesto | `tests/pesto.rs` |
//! | `--runas` | another user | `setup::daemon` |
//! | `-h` `--version` | texts | `contract_pasta`: `argv_…` |
//! | `-I` `--ns-mac-addr` `-M` `-m` | the interface | `contract_pasta`: `a_guest_gets_…`; here |
//! | `-a` `-n` `-g` `-i` `--config-net` `--no-copy-…` | addresses, routes | `routes`; `cli::pasta` |
//! | `-o` `--outbound-if4/6` | the way out | `flows_leave_…` |
//! | `-D` `-S` `--[no-]dhcp-dns/search` | what DHCP names | `cli::pasta` |
//! | `-H` `--fqdn` | what DHCP names | `stack::services::dhcp4` |
//! | `--dns-forward` `--dns-host` | ports 53 and 853 | `the_dns_address_…`; `tests/ns/dns.rs` |
//! | `--map-host-loopback` `--no-map-gw` `--map-guest-addr` | who is who | `ports`; `routes`; `cli` |
//! | `--freebind` | addresses of later | `with_freebind_…` |
//! | `--no-tcp` … `--no-ra` `-4` `-6` | what is carried | `cli::pasta`, `gate::plan` |
//! | `-t` `-u` `-T` `-U` | ports | `ports`, `ports_of_…` |
//! | `--host-lo-to-ns-lo` `--no-splice` `--splice-only` | the short way | `ports`; `contract_pasta` |
//! | `--userns` `--netns` `--netns-only` `--no-netns-quit` `--no-pidns` | namespaces | `life`; `contract_pasta` |
//! | `--chroot-fallback` | none: there is nothing to fall back from | |

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use crate::lab::{HOST4, Lab, PATIENCE, Transport, receipt, serve_tcp, serve_udp, tcp, user_in};
use crate::support::{Background, Ran};

const NO_PORTS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// Encrypted DNS is between the guest and the host's resolver, at the port that it has there.
#[test]
fn the_dns_address_leads_to_the_resolver_for_encrypted_dns() {
    let mut lab = Lab::new();
    let resolver = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 853);
    lab.on_host(|| {
        serve_tcp(TcpListener::bind(resolver).unwrap());
        serve_udp(UdpSocket::bind(resolver).unwrap());
    });
    let dns = ["--config-net", "--dns-forward", "192.0.2.53", "--dns-host", "127.0.0.1"];
    lab.start(&[&NO_PORTS[..], &dns].concat());
    let target = SocketAddr::new(IpAddr::from([192, 0, 2, 53]), 853);
    for transport in [Transport::Tcp, Transport::Udp] {
        let answer = lab.in_guest(|| transport.talk(target, b"who is who"));
        assert_eq!(answer.ok(), Some(receipt(853, resolver, b"who is who")), "{transport:?}");
    }
    let other = SocketAddr::new(target.ip(), 854);
    let refused = lab.in_guest(|| tcp(other, b"x")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn ports_of_the_guests_loopback_follow_their_counterparts_on_the_host() {
    let mut lab = Lab::new();
    lab.start(&["--config-net", "-t", "none", "-u", "none", "-T", "5001:6001,auto", "-U", "none"]);
    let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 5001);
    let ask = || lab.in_guest(|| tcp(target, b"x"));
    assert_eq!(ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    lab.on_host(|| serve_tcp(TcpListener::bind("127.0.0.1:6001").unwrap()));
    lab.until("the port is there", || ask().ok() == Some(receipt(6001, target, b"x")));
}

#[test]
fn with_freebind_ports_are_bound_to_addresses_that_come_later() {
    for (transport, option, other) in [(Transport::Tcp, "-t", "-u"), (Transport::Udp, "-u", "-t")] {
        let mut lab = Lab::new();
        let later = "198.51.100.7/5000";
        let rest = [other, "none", "-T", "none", "-U", "none", "--config-net"];
        let refused = lab.refused(&[&[option, later], &rest[..]].concat());
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("Cannot assign requested address"), "{refused:?}");
        lab.start(&[&["--freebind", option, later], &rest[..]].concat());
        lab.in_guest(|| transport.serve(5000));
        let namespace = lab.namespace().to_owned();
        crate::lab::sh(&format!("ip -n {namespace} address add 198.51.100.7/32 dev eth0"));
        let target = SocketAddr::new(IpAddr::from([198, 51, 100, 7]), 5000);
        let answer = lab.on_host(|| transport.talk(target, b"x")).unwrap();
        assert!(answer.starts_with("5000 198.51.100.7 1 "), "{transport:?}: {answer}");
    }
}

#[test]
fn a_log_file_has_a_title_and_times_and_stays_within_its_size() {
    let lab = Lab::new();
    let log = lab.directory.path().join("log");
    let text = |options: &[&str], script: &str| {
        let mut command = user_in(lab.namespace(), &lab.pasta());
        command.args(NO_PORTS).args(options).arg("-l").arg(&log).args(["--", "sh", "-c", script]);
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(&log).unwrap()
    };
    let quiet = text(&["-q"], "true");
    let title = quiet.strip_suffix('\n').unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(title.starts_with(&format!("pasta {version}: /")), "{title:?}");
    assert!(title.ends_with(')') && !title.contains('\n'), "{title:?}");
    let warned = text(&["-e"], "true");
    let line = warned.lines().nth(1).unwrap();
    let (time, words) = line.split_once(": ").unwrap();
    assert_eq!(words, "WARNING: --stderr is deprecated");
    let (seconds, digits) = time.split_once('.').unwrap();
    assert!(seconds.parse::<u32>().is_ok() && digits.len() == 4, "{time}");

    for (size, status) in [("40959", 1), ("x", 1), ("40960", 0)] {
        let mut command = user_in(lab.namespace(), &lab.pasta());
        command.args(NO_PORTS).args(["--log-size", size, "--", "true"]);
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.status, Some(status), "{size}: {ran:?}");
        assert_eq!(ran.stderr.contains("Invalid --log-size"), status == 1, "{size}: {ran:?}");
    }
}

/// In the background without a file, the system's log is told.
#[test]
fn a_daemon_speaks_to_the_systems_log() {
    let mut lab = Lab::new();
    let place = lab.directory.path().join("log");
    let socket = UnixDatagram::bind(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    lab.system_log = Some(place);
    // Something to complain of: a port that becomes somebody else's.
    lab.start(&["--config-net", "-t", "5001,auto", "-u", "none", "-T", "none", "-U", "none"]);
    let taken = lab.on_host(|| TcpListener::bind("[::]:5001").unwrap());
    lab.in_guest(|| Transport::Tcp.serve(5001));
    let mut buffer = [0; 1000];
    let length = socket.recv(&mut buffer).unwrap();
    let message = String::from_utf8_lossy(&buffer[..length]);
    let daemon = lab.daemon.unwrap();
    assert!(message.starts_with(&format!("<28>pasta[{daemon}]: not published: ")), "{message}");
    drop(taken);
}

#[test]
fn statistics_come_when_something_has_happened() {
    let lab = Lab::new();
    let log = lab.directory.path().join("statistics");
    // The guest is there until the second line, which tells of its datagram.
    let script = format!(
        "sleep 1.5; echo x >/dev/udp/{HOST4}/9
        for i in $(seq 600); do [ $(wc -l <{}) -gt 1 ] && break; sleep 0.1; done; sleep 1.5",
        log.display()
    );
    let mut command = user_in(lab.namespace(), &lab.pasta());
    command.args(NO_PORTS).args(["-f", "--stats", "1", "--config-net", "-4", "-M"]);
    command.args(["9a:55:9a:55:9a:55", "--", "bash", "-c", &script]);
    assert!(command.stderr(fs::File::create(&log).unwrap()).status().unwrap().success());
    let said = fs::read_to_string(&log).unwrap();
    let mut lines = said.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("frames in/out")), "{said}");
    assert!((1..=3).contains(&lines.count()), "{said}");
    let mut command = user_in(lab.namespace(), &lab.pasta());
    let ran: Ran = command.args(["--stats", "1", "-f", "true"]).output().unwrap().into();
    assert_eq!(ran.status, Some(1), "{ran:?}");
}

/// Frames of the guest's link, Ethernet, as pcap(5) has them.
#[test]
fn a_capture_holds_the_frames_of_the_guests_link() {
    let lab = Lab::new();
    let capture = lab.directory.path().join("pcap");
    let mut command = user_in(lab.namespace(), &lab.pasta());
    command.args(NO_PORTS).args(["--config-net", "-q", "-M", "9a:55:9a:55:9a:55", "-p"]);
    // The guest is there until somebody has asked for the address, by ARP.
    let script = "echo x >/dev/udp/192.0.2.9/4000
        for i in $(seq 600); do grep -qaP '\\xc0\\x00\\x02\\x09' $0 && exit; sleep 0.1; done";
    command.arg(&capture).args(["--", "bash", "-c", script]).arg(&capture);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(fs::metadata(&capture).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&capture).unwrap();
    // Big-endian, times in nanoseconds; then LINKTYPE_ETHERNET.
    assert!(bytes.starts_with(&[0xa1, 0xb2, 0x3c, 0x4d]), "{:?}", &bytes[..4]);
    assert_eq!(bytes[20..24], [0, 0, 0, 1]);
    let datagram = [192, 0, 2, 9];
    assert!(bytes.windows(4).any(|window| window == datagram), "no datagram is in it");
}

/// Each family by its own interface.
#[test]
fn flows_leave_by_the_interface_of_their_family() {
    let lab = Lab::on(
        "address add 203.0.113.1/24 dev eth2
        address add 2001:db8:7::1/64 dev eth2 nodad
        route add default via 192.0.2.2
        route add default via 2001:db8::2
        route add default via 203.0.113.2 dev eth2 metric 500
        -6 route add default via 2001:db8:7::2 dev eth2 metric 5000",
    );
    // Whom the host asks for on an interface tells what it has wanted to send there.
    let asked = |interface: &str, family: &str| {
        let namespace = lab.namespace();
        let list = format!("ip -n {namespace} {family} neigh show dev {interface}");
        let output = std::process::Command::new("sh").args(["-c", &list]).output().unwrap();
        !output.stdout.is_empty()
    };
    let script = "for a in 198.51.100.9 2001:db8:99::9; do echo x >/dev/udp/$a/4000; done; read";
    let mut command = user_in(lab.namespace(), &lab.pasta());
    command.args(NO_PORTS).args(["--config-net", "-q", "-i", "eth0"]);
    command.args(["--outbound-if4", "eth2", "--outbound-if6", "eth0"]);
    command.args(["--", "bash", "-c", script]).stdin(Stdio::piped());
    let mut pasta = Background::start(&mut command);
    pasta.until("both have left", || asked("eth2", "-4") && asked("eth0", "-6"));
    assert!(!asked("eth0", "-4") && !asked("eth2", "-6"));
    pasta.close_stdin();
    let ran = pasta.end();
    // The end of the input is no line.
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), ""), "{ran:?}");
}
