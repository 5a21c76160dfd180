//! Ports of a guest of pasta's: every protocol, family, way in and form of specification, and what
//! is carried through them.
//!
//! ```text
//!   client at 127.0.0.1 or ::1 ───────── spliced ────────▶ ┐
//!   client at the host's own address ─── over the link ──▶ ┴ servers of the guest
//! ```
//! The host is a network namespace of its own with one interface. Servers and clients are threads of
//! the test whose sockets were made in the guest's namespace, or in the host's.

mod support;

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Background, NOBODY_SPECIAL, PATH, Ran, as_root, binary, scratch};

/// The host's addresses, which are the guest's too.
const HOST4: &str = "192.0.2.1";
const HOST6: &str = "2001:db8::1";

/// Under which a guest sees its host.
const MAPPED: &str = "169.254.1.2";

const PATIENCE: Duration = Duration::from_secs(20);

/// A host, a guest, and pasta between them.
struct Lab {
    daemon: Option<Pid>,
    target: Background,
    directory: tempfile::TempDir,
    host: Namespace,
}

/// A network namespace by name, which goes away.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
}

impl Lab {
    fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(as_root(), "these tests make network namespaces: run them as root");
        let name = format!("twp{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace(name);
        let host = &namespace.0;
        sh(&format!(
            "ip netns add {host}
            ip -n {host} link add eth0 type veth peer name eth1
            ip -n {host} address add {HOST4}/24 dev eth0
            ip -n {host} address add {HOST6}/64 dev eth0 nodad
            ip -n {host} link set lo up
            ip -n {host} link set eth0 up
            ip -n {host} link set eth1 up
            ip -n {host} route add default via 192.0.2.2
            ip -n {host} route add default via 2001:db8::2"
        ));
        let directory = scratch();
        let link = directory.path().join("pasta");
        std::os::unix::fs::symlink(binary(), link).unwrap();
        let mut target = user_in(host, "unshare");
        let script = "echo ready; exec sleep 1000";
        target.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        let mut target = Background::start(&mut target);
        assert_eq!(target.line(), "ready");
        Lab { daemon: None, target, directory, host: namespace }
    }

    /// pasta for the guest, ready when this returns.
    fn start(&mut self, options: &[&str]) {
        let pid_file = self.directory.path().join("pid");
        let mut command = user_in(&self.host.0, &self.pasta());
        command.args(["--quiet", "--map-guest-addr", MAPPED]).args(options);
        command.arg("-P").arg(&pid_file).arg(self.target.pid().to_string());
        let ran: Ran = command.output().unwrap().into();
        assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
        let text = std::fs::read_to_string(&pid_file).unwrap();
        self.daemon = Some(Pid::from_raw(text.trim().parse().unwrap()));
    }

    fn pasta(&self) -> String {
        self.directory.path().join("pasta").display().to_string()
    }

    /// Does something in the host's namespace.
    fn on_host<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        within(Path::new(&format!("/run/netns/{}", self.host.0)), act)
    }

    /// Does something in the guest's namespace.
    fn in_guest<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        within(Path::new(&format!("/proc/{}/ns/net", self.target.pid())), act)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon {
            let _ = kill(daemon, Signal::SIGKILL);
        }
    }
}

/// `program` of an ordinary user in a network namespace.
fn user_in(namespace: &str, program: &str) -> Command {
    let id = NOBODY_SPECIAL.to_string();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", program]);
    command.env("LC_ALL", "C").env("PATH", PATH).env("HOME", "/tmp").current_dir("/");
    command.stdin(std::process::Stdio::null());
    command
}

fn within<T: Send>(namespace: &Path, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    thread::scope(|scope| {
        let actor = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        actor.join().unwrap()
    })
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Bytes that differ from place to place.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// What a server says of what it has got, and from whom.
fn receipt(port: u16, peer: SocketAddr, heard: &[u8]) -> String {
    let peer = peer.ip().to_canonical();
    format!("{port} {peer} {} {:x}", heard.len(), hash(heard))
}

/// Serves every client of a listener: takes all until the client's end, then tells what it was.
fn serve_tcp(listener: TcpListener) {
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut client, peer)) = listener.accept() {
            thread::spawn(move || {
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).unwrap();
                client.write_all(receipt(port, peer, &heard).as_bytes()).unwrap();
            });
        }
    });
}

/// Takes datagrams up to an empty one, then tells who has sent it what they were.
fn serve_udp(socket: UdpSocket) {
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 65_536]);
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            heard.extend_from_slice(&buffer[..length]);
            if length == 0 {
                socket.send_to(receipt(port, peer, &heard).as_bytes(), peer).unwrap();
                heard.clear();
            }
        }
    });
}

/// Sends `sent`, then the end; what the server says.
fn tcp(target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// The same by datagrams of 8 KiB, back to back, and an empty one.
fn udp(target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    for datagram in sent.chunks(8192).chain([&[][..]]) {
        socket.send(datagram)?;
    }
    let mut buffer = vec![0; 1000];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn serve(self, port: u16) {
        let everywhere: (IpAddr, u16) = ([0; 16].into(), port);
        match self {
            Transport::Tcp => serve_tcp(TcpListener::bind(everywhere).unwrap()),
            Transport::Udp => serve_udp(UdpSocket::bind(everywhere).unwrap()),
        }
    }

    fn talk(self, target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
        match self {
            Transport::Tcp => tcp(target, sent),
            Transport::Udp => udp(target, sent),
        }
    }
}

/// Places where clients are: address to connect to, interface, and as whom the guest sees them.
const PLACES: [(&str, &str, &str); 4] = [
    ("127.0.0.1", "lo", HOST4),
    ("::1", "lo", HOST6),
    (HOST4, "eth0", MAPPED),
    (HOST6, "eth0", "2001:db8::2"),
];

/// Every form of specification from each of [`PLACES`], for one transport.
fn ports(transport: Transport) {
    let mut lab = Lab::new();
    let mut specs: Vec<String> =
        ["5000", "5010-5012", "5020:5021", "5030-5032:5033-5035"].map(str::to_owned).into();
    // Port on the host, port of the guest, and the only place for which they are, if there is one.
    let mut pairs = vec![(5000, 5000, None), (5020, 5021, None)];
    pairs.extend((0..3).map(|n| (5010 + n, 5010 + n, None)));
    pairs.extend((0..3).map(|n| (5030 + n, 5033 + n, None)));
    for (place, (address, interface, _)) in (0..).zip(PLACES) {
        let (by_address, by_interface) = (5040 + place, 5050 + place);
        specs.push(format!("{address}/{by_address}:5060"));
        specs.push(format!("{address}%{interface}/{by_interface}:5061"));
        pairs.extend([(by_address, 5060, Some(place)), (by_interface, 5061, Some(place))]);
    }
    let (option, other) = match transport {
        Transport::Tcp => ("-t", "-u"),
        Transport::Udp => ("-u", "-t"),
    };
    let mut options = vec!["--config-net", other, "none", "-T", "none", "-U", "none"];
    options.extend(specs.iter().flat_map(|spec| [option, spec.as_str()]));
    lab.start(&options);
    let mut served: Vec<u16> = pairs.iter().map(|&(_, guest, _)| guest).collect();
    served.sort_unstable();
    served.dedup();
    lab.in_guest(|| served.iter().for_each(|&port| transport.serve(port)));
    let text = bytes(2048);
    for (place, (address, _, seen)) in (0..).zip(PLACES) {
        for &(port, guest, only) in &pairs {
            if only.is_some_and(|only| only != place) {
                continue;
            }
            let target = SocketAddr::new(address.parse().unwrap(), port);
            let answer = lab.on_host(|| transport.talk(target, &text));
            let expected = receipt(guest, SocketAddr::new(seen.parse().unwrap(), 1), &text);
            assert_eq!(answer.ok(), Some(expected), "{transport:?} {target}");
        }
        let target = SocketAddr::new(address.parse().unwrap(), 5000);
        // The default of net.core.wmem_default over 4, as podman's tests have it.
        let much = bytes(if transport == Transport::Tcp { 10 << 20 } else { 52 << 10 });
        let answer = lab.on_host(|| transport.talk(target, &much));
        let expected = receipt(5000, SocketAddr::new(seen.parse().unwrap(), 1), &much);
        assert_eq!(answer.ok(), Some(expected), "{transport:?} {target}: much at once");
    }
}

#[test]
fn tcp_ports_of_every_form_lead_in_from_everywhere() {
    ports(Transport::Tcp);
}

#[test]
fn udp_ports_of_every_form_lead_in_from_everywhere() {
    ports(Transport::Udp);
}

/// What servers of the guest at its loopback and at all its addresses say to clients at the host's
/// loopback and at its own address, with `options`.
fn seen_by(options: &[&str]) -> [[Option<String>; 4]; 2] {
    let mut lab = Lab::new();
    let ports = ["-t", "5001,5002", "-u", "5001,5002", "-T", "none", "-U", "none"];
    lab.start(&[&ports[..], options].concat());
    lab.in_guest(|| {
        let (own, every) = ((IpAddr::from([127, 0, 0, 1]), 5001), (IpAddr::from([0; 4]), 5002));
        serve_tcp(TcpListener::bind(own).unwrap());
        serve_tcp(TcpListener::bind(every).unwrap());
        serve_udp(UdpSocket::bind(own).unwrap());
        serve_udp(UdpSocket::bind(every).unwrap());
    });
    let peer =
        |answer: std::io::Result<String>| Some(answer.ok()?.split_whitespace().nth(1)?.to_owned());
    let cells = [("127.0.0.1", 5001), ("127.0.0.1", 5002), (HOST4, 5001), (HOST4, 5002)];
    let cells = cells.map(|(address, port)| SocketAddr::new(address.parse().unwrap(), port));
    let quick = |target| -> std::io::Result<String> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect(target)?;
        socket.send(b"x")?;
        socket.send(b"")?;
        let mut buffer = [0; 1000];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    [
        cells.map(|target| peer(lab.on_host(|| tcp(target, b"x")))),
        cells.map(|target| peer(lab.on_host(|| quick(target)))),
    ]
}

/// As the original of 2026-10 shows it, whose answers these are.
#[test]
fn the_guests_loopback_is_its_own_unless_it_is_joined_with_the_hosts() {
    let some = |text: &str| Some(text.to_owned());
    for (options, expected) in [
        (&["--config-net"][..], [None, some(HOST4), None, some(MAPPED)]),
        (
            &["--config-net", "--host-lo-to-ns-lo"],
            [some("127.0.0.1"), some("127.0.0.1"), None, some(MAPPED)],
        ),
        (&["--config-net", "--no-splice"], [None, some("192.0.2.2"), None, some(MAPPED)]),
    ] {
        let [tcp, udp] = seen_by(options);
        assert_eq!(tcp, expected, "TCP, {options:?}");
        assert_eq!(udp, expected, "UDP, {options:?}");
    }
}

#[test]
fn a_client_of_a_port_without_a_server_is_reset() {
    let mut lab = Lab::new();
    let options = ["--config-net", "-t", "5000", "-u", "none", "-T", "none", "-U", "none"];
    lab.start(&options);
    for address in ["127.0.0.1", "::1", HOST4, HOST6] {
        let target = SocketAddr::new(address.parse().unwrap(), 5000);
        let kind = lab.on_host(|| {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut [0; 9])
        });
        assert_eq!(kind.unwrap_err().kind(), ErrorKind::ConnectionReset, "{target}");
    }
}

/// The other way: from the guest's loopback to the host's.
#[test]
fn ports_of_the_guests_loopback_lead_to_the_hosts() {
    let mut lab = Lab::new();
    lab.on_host(|| {
        for address in ["127.0.0.1", "::1"] {
            let at = (address.parse::<IpAddr>().unwrap(), 6001);
            serve_tcp(TcpListener::bind(at).unwrap());
            serve_udp(UdpSocket::bind(at).unwrap());
        }
    });
    lab.start(&["--config-net", "-t", "none", "-u", "none", "-T", "5001:6001", "-U", "5001:6001"]);
    let (text, much, burst) = (bytes(2048), bytes(10 << 20), bytes(52 << 10));
    for address in ["127.0.0.1", "::1"] {
        let target = SocketAddr::new(address.parse().unwrap(), 5001);
        for (transport, sent) in [
            (Transport::Tcp, &text),
            (Transport::Tcp, &much),
            (Transport::Udp, &text),
            (Transport::Udp, &burst),
        ] {
            let answer = lab.in_guest(|| transport.talk(target, sent));
            let expected = receipt(6001, target, sent);
            assert_eq!(answer.ok(), Some(expected), "{transport:?} {target} {}", sent.len());
        }
    }
    // At the guest's other addresses nobody listens.
    let elsewhere = SocketAddr::new(HOST4.parse().unwrap(), 5001);
    let refused = lab.in_guest(|| tcp(elsewhere, b"x")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
