//! The stream, with machines in this process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::{JoinHandle, spawn};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smoltcp::socket::tcp::State;

use crate::machine::{Machine, Wire};
use crate::support::{Background, PATIENCE, Ran, binary, ends, free_port, scratch, user};
use crate::{ADDRESSES, passt, patience};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Some bytes of no regular pattern.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A server on the host's loopback that sends one client back what it sends, and its port.
fn echo() -> (u16, JoinHandle<()>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        client.set_read_timeout(Some(patience())).unwrap();
        std::io::copy(&mut client.try_clone().unwrap(), &mut client).unwrap();
    });
    (port, serving)
}

#[test]
fn a_machine_gets_its_address_and_reaches_the_hosts_loopback() {
    let passt = passt(&["--one-off", "--dns", "192.0.2.53"]);
    let (mut machine, lease) = Machine::at(passt.socket());
    assert_eq!((lease.address, lease.router), (Ipv4Addr::new(192, 0, 2, 77), GATEWAY));
    assert_eq!(lease.mask, Ipv4Addr::new(255, 255, 255, 0));
    assert_eq!(lease.resolvers, [Ipv4Addr::new(192, 0, 2, 53)]);
    let (port, serving) = echo();
    let connection = machine.connect((GATEWAY, port), 40_000);
    let sent = bytes(3_000_000);
    assert!(machine.converse(connection, &sent) == sent);
    serving.join().unwrap();
    drop(machine);
    let ran = passt.process.end();
    assert_eq!(ran.status, Some(0), "{ran:?}");
}

#[test]
fn a_published_port_leads_to_a_machine_that_has_said_nothing_but_its_mac() {
    let port = free_port();
    let passt = passt(&["--one-off", "-t", &format!("{port}:8080")]);
    let (mut machine, _) = Machine::at(passt.socket());
    let server = machine.listen(8080);
    let client = spawn(move || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(patience())).unwrap();
        client.write_all(b"a question").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = vec![];
        client.read_to_end(&mut answer).unwrap();
        answer
    });
    machine.until("a client comes", |machine| machine.socket(server).may_send());
    // Clients on the host's loopback are seen at the address that stands for it.
    let seen = machine.socket(server).remote_endpoint().unwrap();
    assert_eq!(seen.addr, GATEWAY.into());
    let answer = bytes(500_000);
    assert_eq!(machine.converse(server, &answer), b"a question");
    machine.until("the answer is acknowledged", |machine| {
        !matches!(machine.socket(server).state(), State::Closing | State::LastAck)
    });
    assert!(client.join().unwrap() == answer);
}

#[test]
fn a_machine_that_does_not_read_for_a_while_loses_nothing() {
    let passt = passt(&["--one-off"]);
    let (mut machine, _) = Machine::at(passt.socket());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let sent = bytes(4_000_000);
    let whole = sent.clone();
    let serving = spawn(move || {
        // More connections than the socket between us holds frames for.
        let clients: Vec<TcpStream> = (0..8).map(|_| server.accept().unwrap().0).collect();
        let senders = clients.into_iter().map(|mut client| {
            let whole = whole.clone();
            spawn(move || client.write_all(&whole).unwrap())
        });
        let senders: Vec<_> = senders.collect();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
    let connections: Vec<_> =
        (0..8).map(|at| machine.connect((GATEWAY, port), 41_000 + at)).collect();
    for connection in connections {
        assert!(machine.converse(connection, b"") == sent);
    }
    serving.join().unwrap();
}

#[test]
fn guests_come_one_at_a_time_and_each_begins_anew() {
    let passt = passt(&[]);
    let (mut first, _) = Machine::at(passt.socket());
    // Whoever comes meanwhile is hung up on.
    let mut second = UnixStream::connect(passt.socket()).unwrap();
    second.set_read_timeout(Some(patience())).unwrap();
    assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let connection = first.connect((GATEWAY, port), 42_000);
    first.until("the server answers", |machine| machine.socket(connection).may_send());
    let (mut accepted, _) = server.accept().unwrap();
    accepted.set_read_timeout(Some(patience())).unwrap();
    drop(first);
    let error = accepted.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");

    // The same ends again: nothing is left of the first guest's connection.
    let (mut third, _) = Machine::at(passt.socket());
    let connection = third.connect((GATEWAY, port), 42_000);
    third.until("the server answers", |machine| machine.socket(connection).may_send());

    // Something that is no stream of frames ends the guest, and nobody else.
    let mut senseless = third.wire.stream.try_clone().unwrap();
    senseless.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    third.until("it is hung up on", |machine| machine.wire.closed);
    drop(third);
    let (mut fourth, _) = Machine::at(passt.socket());
    let (port, serving) = echo();
    let connection = fourth.connect((GATEWAY, port), 43_000);
    assert_eq!(fourth.converse(connection, b"still here"), b"still here");
    serving.join().unwrap();
    passt.process.signal(Signal::SIGTERM);
    let ran = passt.process.end();
    assert_eq!(ran.status, Some(0), "{ran:?}");
}

#[test]
fn what_a_machine_sent_last_arrives_although_it_is_gone() {
    let passt = passt(&["--one-off"]);
    let (mut machine, _) = Machine::at(passt.socket());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = machine.connect((GATEWAY, server.local_addr().unwrap().port()), 44_000);
    machine.until("the server answers", |machine| machine.socket(connection).may_send());
    let sent = bytes(200_000);
    let mut left = &sent[..];
    machine.until("everything is acknowledged", |machine| {
        let socket = machine.socket(connection);
        if !left.is_empty() {
            left = &left[socket.send_slice(left).unwrap()..];
        } else if socket.may_send() {
            socket.close();
        }
        socket.state() == State::FinWait2
    });
    drop(machine);
    assert_eq!(passt.process.end().status, Some(0));
    let mut received = vec![];
    server.accept().unwrap().0.read_to_end(&mut received).unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[test]
fn a_connection_that_it_is_started_with_is_the_only_one() {
    // By its number, and as standard input.
    for script in ["exec \"$@\" --fd 5 5<&0 </dev/null", "exec \"$@\" --fd 0"] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = user("sh");
        command.args(["-c", script, "sh"]).arg(binary());
        command.args(["--as", "passt", "--foreground", "--quiet", "--ipv4-only"]).args(ADDRESSES);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let process = Background::start(&mut command);
        drop(command);
        let (machine, lease) = Machine::over(ours);
        assert_eq!(lease.address, Ipv4Addr::new(192, 0, 2, 77));
        drop(machine);
        let ran = process.end();
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{script}");
    }
}

/// A process in the background and its socket, which both end with the test.
struct Daemon {
    pid: Pid,
    path: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn in_the_background_it_listens_at_a_path_of_its_own() {
    let directory = scratch();
    let pid_file = directory.path().join("pid");
    let mut command = user(binary());
    command.args(["--as", "passt", "--ipv4-only", "--pid"]).arg(&pid_file).args(ADDRESSES);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap());
    let path = ran.stderr.split("UNIX domain socket bound at ").nth(1).unwrap();
    let path = path.lines().next().unwrap();
    let _daemon = Daemon { pid, path: path.into() };
    assert!(path.starts_with("/tmp/passt_") && path.ends_with(".socket"), "{path}");
    let netdev = format!("-netdev stream,id=s,server=off,addr.type=unix,addr.path={path}\n");
    assert!(ran.stderr.contains(&netdev), "{ran:?}");
    // It is in use, by name and by the search for a free one.
    let ran: Ran = user(binary()).args(["--as", "passt", "-s", path]).output().unwrap().into();
    let words = format!("Socket path {path} already in use\n");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), words.as_str()));

    // It keeps no privilege, can gain none, and refuses itself dangerous system calls.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "no {line:?} in {status}");
    }

    let wire = Wire::new(UnixStream::connect(path).unwrap());
    let (_machine, lease) = Machine::over(wire.stream);
    assert_eq!(lease.router, GATEWAY);
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(ends(pid, PATIENCE), "a signal does not end it");
}
