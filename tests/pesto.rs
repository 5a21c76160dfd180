//! pesto and its socket, end to end as an ordinary user: ports come, go and carry data while the
//! guest runs. What its command lines say is in `contract_pesto.rs`.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Background, Ran, binary, free_port, free_ports, scratch, tapway, user};

/// The guest's servers answer with the port at which they were reached. One process, which ends
/// with tapway.
const SERVERS: &str = "
import select, socket
ports = {socket.create_server(('', port)): port for port in (4080, 4081)}
print('up', flush=True)
while True:
    for server in select.select(list(ports), [], [])[0]:
        client = server.accept()[0]
        client.sendall(b'%d\\n' % ports[server])
        client.close()
";

/// How long an answer may take, however loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    guest: Background,
    socket: PathBuf,
    ours: PathBuf,
    _directory: tempfile::TempDir,
}

fn lab(options: &[&str]) -> Lab {
    let directory = scratch();
    let socket = directory.path().join("pasta.sock");
    let ours = directory.path().join("pesto");
    symlink(binary(), &ours).unwrap();
    let words = ["run", "--pesto-socket", socket.to_str().unwrap()];
    let guest = [&words, options, &["--", "python3", "-c", SERVERS]].concat();
    let mut guest = Background::start(&mut tapway(&guest));
    assert_eq!(guest.line(), "up");
    Lab { guest, socket, ours, _directory: directory }
}

impl Lab {
    fn pesto(&self, options: &[&str]) -> Ran {
        pesto(&self.ours, &self.socket, options)
    }

    /// The rules that pesto shows, without the blanks at their ends.
    fn rules(&self) -> Vec<String> {
        rules(&self.pesto(&[]))
    }
}

fn pesto(program: &Path, socket: &Path, options: &[&str]) -> Ran {
    user(program).args(options).arg(socket).output().unwrap().into()
}

fn rules(shown: &Ran) -> Vec<String> {
    assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""), "{shown:?}");
    let lines = shown.stdout.lines().skip(1);
    lines.map(|line| line.trim().to_owned()).collect()
}

/// What the server behind `port` of the host says; `None` if nobody accepts.
fn answer(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    // A reset is an answer too: an empty one.
    let _ = stream.read_to_string(&mut text);
    Some(text.trim().to_owned())
}

#[test]
fn ports_come_and_go_while_the_guest_runs() {
    let (first, second, third) = (free_port(), free_port(), free_port());
    let mut lab = lab(&["-p", &format!("127.0.0.1:{first}:4080")]);
    let old = format!("TCP [127.0.0.1]:{first}  =>  4080");
    assert_eq!(lab.rules(), ["HOST", &old]);

    let spec = format!("{second}:4081");
    let added = lab.pesto(&["--add", "--tcp-ports", &spec]);
    assert_eq!((added.status, added.stdout.as_str(), added.stderr.as_str()), (Some(0), "", ""));
    let new = format!("TCP [*]:{second}  =>  4081");
    assert_eq!(lab.rules(), ["HOST", &old, &new]);
    let guest = &mut lab.guest;
    guest.until("the added port", || answer(second).as_deref() == Some("4081"));
    assert_eq!(answer(first).as_deref(), Some("4080"));

    // An open connection outlives its port, and so does the listener of a rule that stays.
    let mut held = TcpStream::connect(("127.0.0.1", first)).unwrap();
    assert_eq!(lab.pesto(&["-D", "-t", &format!("127.0.0.1/{first}:4080")]).status, Some(0));
    lab.guest.until("the port's end", || answer(first).is_none());
    assert_eq!(answer(second).as_deref(), Some("4081"));
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "4080\n");

    // The first specification replaces all of the table.
    assert_eq!(lab.pesto(&["-t", &format!("{third}:4080")]).status, Some(0));
    lab.guest.until("the replacement", || answer(third).as_deref() == Some("4080"));
    lab.guest.until("the replaced port's end", || answer(second).is_none());
    assert_eq!(lab.rules(), ["HOST", &format!("TCP [*]:{third}  =>  4080")]);
}

#[test]
fn a_port_that_is_taken_is_tried_again_until_it_is_free() {
    let mut lab = lab(&[]);
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    let ran = lab.pesto(&["-A", "-t", &format!("{port}:4080,{other}:4081")]);
    // Whether the port is to be had is not known to the client.
    assert_eq!(ran.status, Some(0), "{ran:?}");
    lab.guest.until("the port behind it", || answer(other).as_deref() == Some("4081"));
    assert_eq!(lab.rules().len(), 3);
    drop(taken);
    lab.guest.until("the port, once it is free", || answer(port).as_deref() == Some("4080"));
}

#[test]
fn ports_follow_who_listens_and_weak_ones_do_without() {
    let mut lab = lab(&[]);
    let first = free_ports(4);
    let spec = format!("{first}-{}:4079-4082,auto", first + 3);
    assert_eq!(lab.pesto(&["-t", &spec]).status, Some(0));
    lab.guest.until("the ports with servers", || {
        answer(first + 1).as_deref() == Some("4080") && answer(first + 2).as_deref() == Some("4081")
    });
    assert_eq!((answer(first), answer(first + 3)), (None, None));
    // All but a few: of these, what an ordinary user may have.
    assert_eq!(lab.pesto(&["-t", "~1-1020,~1026-65535"]).status, Some(0));
    assert_eq!(lab.rules(), ["HOST", "TCP [*]:1021-1025  =>  1021-1025  (best effort)"]);
    lab.guest.until("the ordinary ports", || answer(1025).is_some());
}

/// Whether a port that follows its server was free when the server came does not matter for ever.
#[test]
fn a_port_that_follows_its_server_comes_when_it_is_free() {
    let mut lab = lab(&[]);
    let taken = TcpListener::bind("[::]:0").unwrap();
    let (port, other) = (taken.local_addr().unwrap().port(), free_port());
    let spec = format!("{port}:4080,{other}:4081,auto");
    assert_eq!(lab.pesto(&["-t", &spec]).status, Some(0));
    lab.guest.until("the port that is free", || answer(other).as_deref() == Some("4081"));
    drop(taken);
    lab.guest.until("the other one, later", || answer(port).as_deref() == Some("4080"));
}

/// What others add and remove by the instance's own control socket, and pesto's view of it, agree.
#[test]
fn both_control_sockets_speak_of_the_same_ports() {
    let port = free_port();
    let name = format!("pesto-{}", std::process::id());
    let lab = lab(&["--name", &name]);
    let native = |verb: &str, spec: &str| {
        let output = tapway(&["port", verb, &name, spec]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    native("add", &format!("{port}:4080"));
    assert_eq!(lab.rules(), ["HOST", &format!("TCP [*]:{port}  =>  4080")]);
    native("rm", &format!("{port}:4080"));
    assert_eq!(lab.rules(), ["HOST"]);
    assert_eq!(lab.pesto(&["-A", "-t", &format!("{port}:4081")]).status, Some(0));
    assert_eq!(lab.rules().len(), 2);
    native("rm", &format!("{port}:4081"));
    assert_eq!(lab.rules(), ["HOST"]);
}

#[test]
fn what_cannot_be_is_refused() {
    let lab = lab(&[]);
    let ran = lab.pesto(&["-T", "80"]);
    assert_eq!(
        (ran.status, ran.stderr.as_str()),
        (Some(1), "Can't use -T, no outbound interface\n")
    );
    let socket = lab.socket.to_str().unwrap();
    let second = tapway(&["run", "--pesto-socket", socket, "--", "true"]).output().unwrap();
    let second = Ran::from(second);
    assert_eq!(second.status, Some(125), "{second:?}");
    assert!(second.stderr.contains("is already in use by another instance"), "{second:?}");
    // A killed instance leaves its socket, and the next one takes it over.
    lab.guest.signal(Signal::SIGKILL);
    lab.guest.end();
    assert!(lab.socket.exists());
    let third = tapway(&["run", "--pesto-socket", socket, "--", "true"]).output().unwrap();
    assert!(third.status.success(), "{third:?}");
}

/// An instance of tapway's pasta with the guest's servers, and a client for it.
fn pasta(options: &[&str]) -> Lab {
    let directory = scratch();
    let [socket, pasta, ours] =
        ["pasta.sock", "pasta", "pesto"].map(|name| directory.path().join(name));
    symlink(binary(), &pasta).unwrap();
    symlink(binary(), &ours).unwrap();
    let mut guest = user(pasta);
    guest.args(["--quiet", "--config-net", "--conf-path"]).arg(&socket);
    guest.args(options).args(["--", "python3", "-c", SERVERS]);
    let mut guest = Background::start(&mut guest);
    assert_eq!(guest.line(), "up");
    Lab { guest, socket, ours, _directory: directory }
}

#[test]
fn tapway_as_pasta_is_found_at_its_configuration_path() {
    let (first, second) = (free_port(), free_port());
    let at_first = format!("127.0.0.1/{first}:4080");
    let mut lab = pasta(&["-t", &at_first, "-u", "none", "-T", "none", "-U", "none"]);
    let old = format!("TCP [127.0.0.1]:{first}  =>  4080");
    assert_eq!(lab.rules(), ["HOST", &old, "SPLICE"]);
    let spec = format!("127.0.0.1/{second}:4081");
    assert_eq!(lab.pesto(&["-A", "-t", &spec]).status, Some(0));
    lab.guest.until("the added port", || answer(second).as_deref() == Some("4081"));
    assert_eq!(answer(first).as_deref(), Some("4080"));
}

/// What `auto` means for ports of the host and of the guest's loopback, in pesto's words.
#[test]
fn the_ports_of_the_start_are_seen_as_they_were_asked_for() {
    // None of the ports of the guest's servers, which others may have on the host.
    let low = "~61-65535,auto";
    let lab = pasta(&["-t", "~1-60,auto", "-u", "70-72,auto", "-T", low, "-U", "90:91"]);
    let rules = lab.rules();
    let text = rules.join("\n");
    // The host says where the ports for its clients begin and end.
    assert!(rules[1].starts_with("TCP [*]:61-"), "{text}");
    assert!(rules[1].ends_with("(best effort) (auto-scan)"), "{text}");
    let at = rules.iter().position(|rule| rule == "SPLICE").unwrap();
    assert_eq!(rules[at - 1], "UDP [*]:70-72  =>  70-72  (auto-scan)");
    assert_eq!(rules[at + 1], "TCP [*]%lo:1-60  =>  1-60  (best effort) (auto-scan)");
    assert_eq!(rules.last().unwrap(), "UDP [*]%lo:90  =>  91");
    // An exact rule is found and deleted.
    assert_eq!(lab.pesto(&["-D", "-u", "70-72,auto", "-U", "90:91"]).status, Some(0));
    assert_eq!(lab.rules().len(), rules.len() - 2);
}

/// A server of the host's loopback, at a port of its own, that says "host" to each client.
fn host_server() -> (u16, std::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (until, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // It ends when the test lets go of the other end.
        while ended.recv_timeout(Duration::from_millis(5))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            if let Ok((mut client, _)) = listener.accept() {
                let _ = client.write_all(b"host\n");
            }
        }
    });
    (port, until)
}

/// The process of [`SERVERS`] below `pid`.
fn servers_of(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().map(|child| child.parse().unwrap()).find_map(|child| {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if name.starts_with("python3") { Some(child) } else { servers_of(child) }
    })
}

#[test]
fn ports_of_the_guests_loopback_come_and_go() {
    let mut lab = pasta(&["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    let (port, server) = host_server();
    let target = servers_of(lab.guest.pid().as_raw()).expect("the guest's servers").to_string();
    let inside = |at: u16| {
        let client = format!("busybox nc -w 5 127.0.0.1 {at} </dev/null");
        let mut enter = user("nsenter");
        enter.args(["--preserve-credentials", "--user", "--net", "--target", &target]);
        let ran = enter.args(["sh", "-c", &client]).output().unwrap();
        String::from_utf8(ran.stdout).unwrap()
    };
    assert_eq!(inside(7001), "");
    assert_eq!(lab.pesto(&["-T", &format!("7001:{port}")]).status, Some(0));
    lab.guest.until("the port inside", || inside(7001) == "host\n");
    assert_eq!(lab.rules(), ["HOST", "SPLICE", &format!("TCP [*]%lo:7001  =>  {port}")]);
    // In its place one that follows the host's server, at a port of another number.
    let follows = format!("7001:{port},auto");
    assert_eq!(lab.pesto(&["-T", &follows]).status, Some(0));
    lab.guest.until("the port that follows", || inside(7001) == "host\n");
    drop(server);
    lab.guest.until("the end of the server", || inside(7001).is_empty());
    assert_eq!(lab.pesto(&["-T", "none"]).status, Some(0));
    assert_eq!(lab.rules(), ["HOST", "SPLICE"]);
}

#[test]
fn auto_may_come_and_go_while_the_guest_runs() {
    let mut lab = pasta(&["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    // The servers' own ports may be another's on the host: at an address that nobody else has.
    let address = format!("127.{}.{}.9", std::process::id() >> 8 & 0xff, std::process::id() & 0xff);
    let heard = |port: u16| {
        let Ok(mut stream) = TcpStream::connect((address.as_str(), port)) else { return false };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        let waits = read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!waits, "a client of port {port} gets neither an answer nor an end");
        read.is_ok() && !text.is_empty()
    };
    assert_eq!(lab.pesto(&["-t", &format!("{address}/4080,auto")]).status, Some(0));
    lab.guest.until("a port that has a server", || heard(4080));
    assert!(!heard(4081));
    assert_eq!(lab.pesto(&["-t", &format!("{address}/4081,auto")]).status, Some(0));
    lab.guest.until("the other port", || heard(4081) && !heard(4080));
    assert_eq!(lab.pesto(&["-t", "none"]).status, Some(0));
    lab.guest.until("no port", || !heard(4081));
}
