//! Ports that come and go under load: connections stay, and nothing piles up.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tapway::sys::clock;

use crate::instance::{EndWith, Instance, PATIENCE, echo, rally};
use crate::lab::Lab;
use crate::support::{Background, Ran};

/// Ports that are added and removed again.
const CYCLES: usize = 1000;

/// One of so many added ports gets a client that stays when the port is gone.
const KEPT: usize = 40;

/// The guest sends pieces to an echo of the outside until its input ends, and compares what it
/// gets with what it has sent.
const OUTBOUND: &str = "import hashlib, os, select, socket, sys
s = socket.create_connection(('192.0.2.2', 9000), 60); rounds = 0
sent, got = hashlib.sha256(), hashlib.sha256()
print('up', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    piece = os.urandom(65536); s.sendall(piece); sent.update(piece); left = len(piece)
    while left:
        back = s.recv(left)
        if not back: sys.exit('closed by the other side')
        got.update(back); left -= len(back)
    rounds += 1
print(rounds, sent.hexdigest() == got.hexdigest())";

/// Sends back what it gets, a connection after another, until the test's process ends.
fn serve_echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut from = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut from, &mut stream);
        }
    });
}

fn request(socket: &Path, execute: &str, arguments: Value) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = json!({"execute": execute, "arguments": arguments}).to_string();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let mut answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["error"].is_null(), "{execute} {arguments}: {answer}");
    answer["return"]["forwards"].take()
}

/// A word to the echo and back.
fn call_and_answer(stream: &mut TcpStream) {
    let mut answer = [0; 5];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// Descriptors that tapway has open.
fn descriptors(guest: &Instance) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", guest.tapway.pid())).unwrap().count()
}

#[test]
fn a_thousand_changes_lose_no_connection() {
    let lab = Lab::new();
    serve_echo(lab.listener(9000));
    let mut guest = echo(&lab, "web", &["-p", "8007:7"]);
    let socket = guest.socket(&lab);
    let mut outbound = guest.inside_command("python3");
    let mut outbound = Background::start(outbound.args(["-c", OUTBOUND]).stdin(Stdio::piped()));
    assert_eq!(outbound.line(), "up");
    let connect = |port: u16| {
        let connect = || TcpStream::connect(("192.0.2.1", port)).unwrap();
        lab.within(&lab.outside, connect)
    };
    let stream = connect(8007);
    // The watch over resolv.conf stands a while after the start.
    let pid = guest.tapway.pid();
    guest.tapway.until("resolv.conf is watched", || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        links.filter(|link| link.ends_with("anon_inode:inotify")).count() > 0
    });
    let before = descriptors(&guest);
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut kept = Vec::new();
    std::thread::scope(|scope| {
        let inbound = scope.spawn(|| rally(stream, &over, &rounds));
        let end = EndWith(&over);
        let began = clock::now();
        for cycle in 0..CYCLES {
            let spec =
                ["8100:7", "127.0.0.1:8101-8104:7-10", "8105:7/udp", "[::1]:8106:7"][cycle % 4];
            let added = request(&socket, "add_forward", json!({ "spec": spec }));
            if cycle % KEPT == 0 {
                kept.push(connect(8100));
                call_and_answer(kept.last_mut().unwrap());
            }
            assert!(!inbound.is_finished(), "after {cycle} changes");
            let removed = request(&socket, "remove_forward", json!({"id": added[0]["id"]}));
            assert_eq!(removed[0]["id"], added[0]["id"]);
        }
        let took = clock::now() - began;
        drop(end);
        let slowest = inbound.join().unwrap();
        eprintln!(
            "{CYCLES} ports came and went in {took:?}; {rounds:?} pieces meanwhile, the slowest in \
             {slowest:?}"
        );
    });
    outbound.close_stdin();
    let (count, same) =
        outbound.line().split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(same, "True");
    assert!(count.parse::<u64>().unwrap() > 0 && rounds.load(Ordering::Relaxed) > 0);
    // Clients of ports that are gone are served as before.
    assert_eq!(kept.len(), CYCLES / KEPT);
    kept.iter_mut().for_each(call_and_answer);
    assert_eq!(guest.ask(&lab, &["port", "list"], &[]).lines().count(), 2);
    drop((kept, outbound));
    let pid = guest.tapway.pid();
    let now = || std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    guest.tapway.until("no descriptor is left", || now() <= before);
    assert_eq!(guest.tapway.errors(), "");
}

/// Whether no thread of a process runs: state T in proc(5).
fn is_stopped(pid: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(Result::unwrap).all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    })
}

#[test]
fn who_waits_at_a_port_that_is_removed_is_served() {
    let lab = Lab::new();
    let mut guest = echo(&lab, "web", &["-p", "8007:7"]);
    // The kernel completes handshakes by itself; the removal comes before any is accepted.
    guest.tapway.signal(Signal::SIGSTOP);
    let tapway = guest.tapway.pid();
    guest.tapway.until("all threads have stopped", || is_stopped(tapway));
    let connect = || TcpStream::connect("192.0.2.1:8007").unwrap();
    let mut clients: Vec<_> = (0..50).map(|_| lab.within(&lab.outside, connect)).collect();
    let waiting = "ss -Hltn sport = :8007 | awk '{ n += $2 } END { print n }'";
    guest.tapway.until("all wait", || lab.sh_in(&lab.host, waiting).trim() == "50");
    let socket = guest.socket(&lab);
    std::thread::scope(|scope| {
        scope.spawn(|| request(&socket, "remove_forward", json!({"id": 1})));
        guest.tapway.until("the request waits", || {
            let queue = "ss -Hlx | grep -F web.sock | awk '{ print $3 }'";
            lab.sh_in(&lab.host, queue).trim() == "1"
        });
        guest.tapway.signal(Signal::SIGCONT);
    });
    clients.iter_mut().for_each(call_and_answer);
}

#[test]
fn a_removed_udp_port_is_free_and_its_flows_are_gone() {
    let lab = Lab::new();
    let guest = lab.start_teller("web", &[], "udp:80");
    let client = lab.within(&lab.outside, || UdpSocket::bind("192.0.2.2:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for id in 1..=50 {
        let socket = guest.socket(&lab);
        let added = request(&socket, "add_forward", json!({"spec": "8080:80/udp"}));
        assert_eq!(added[0]["id"], id);
        client.send_to(b"x", "192.0.2.1:8080").unwrap();
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"80 192.0.2.2 "));
        request(&socket, "remove_forward", json!({ "id": id }));
        lab.within(&lab.host, || UdpSocket::bind("0.0.0.0:8080").map(drop)).unwrap();
    }
    let flows = guest.ask_json(&lab, &["flows"], &["--proto", "udp"]);
    assert!(flows.is_empty(), "{flows:?}");
}

#[test]
fn a_restart_finds_its_port_free() {
    let lab = Lab::new();
    let mut held: Vec<TcpStream> = Vec::new();
    for round in 0..10 {
        let began = clock::now();
        let mut guest =
            lab.start_teller("web", &["-p", "8080:80", "-p", "8080:80/udp"], "tcp:80 udp:80");
        eprintln!("round {round}: started in {:?}", clock::now() - began);
        // The guest closes first, so its end of each connection goes to TIME-WAIT on the host.
        for address in ["192.0.2.1:8080", "[2001:db8::1]:8080"] {
            assert!(lab.hear(&lab.outside, address).unwrap().starts_with("80 "));
        }
        let connect = || TcpStream::connect("192.0.2.1:8080").unwrap();
        held.push(lab.within(&lab.outside, connect));
        // It is there when the client's end has arrived, too.
        let waiting = "ss -Htan state time-wait sport = :8080";
        guest.tapway.until("an end waits", || !lab.sh_in(&lab.host, waiting).is_empty());
        if round % 2 == 0 {
            let ran: Ran = guest.stop();
            assert_eq!(ran.stderr, "");
        } else {
            guest.tapway.signal(Signal::SIGKILL);
            guest.tapway.end();
        }
    }
    assert_eq!(held.len(), 10);
    let listening = lab.sh_in(&lab.host, "ss -Hltun sport = :8080");
    assert_eq!(listening, "");
}

#[test]
fn to_add_a_port_takes_milliseconds() {
    let lab = Lab::new();
    let guest = lab.start("web", &["-p", "127.0.0.1:20001-21000:1-1000"], "exec sleep 1000");
    let socket = guest.socket(&lab);
    let mut took = Vec::new();
    for _ in 0..50 {
        let began = clock::now();
        let added = request(&socket, "add_forward", json!({"spec": "8080:80"}));
        took.push(clock::now() - began);
        request(&socket, "remove_forward", json!({"id": added[0]["id"]}));
    }
    took.sort();
    eprintln!("a port is added in {:?} (median), {:?} at most", took[25], took[49]);
    // 2 ms is the aim on a machine that does nothing else, with optimization. Most of the time may
    // be others': what it takes by itself is what the quickest took.
    assert!(took[4] < Duration::from_millis(50), "{took:?}");
}
