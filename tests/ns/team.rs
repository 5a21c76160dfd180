//! Several workers: connections are shared between them, and nobody can tell.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;
use tapway::sys::clock;

use crate::instance::{EndWith, Instance, PATIENCE, echo, rally};
use crate::lab::Lab;
use crate::support::Background;

/// A client of the published echo.
fn client(lab: &Lab, port: u16) -> TcpStream {
    let stream = lab.within(&lab.outside, || TcpStream::connect(("192.0.2.1", port)).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn call_and_answer(stream: &mut TcpStream) {
    let mut answer = [0; 5];
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

fn stats(lab: &Lab, guest: &Instance) -> Value {
    guest.ask_json(lab, &["stats"], &[]).remove(0)
}

#[test]
fn what_is_listed_and_counted_is_that_of_all_workers() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["--threads", "3", "-p", "8007:7"]);
    let mut clients: Vec<TcpStream> = (0..9).map(|_| client(&lab, 8007)).collect();
    clients.iter_mut().for_each(call_and_answer);
    let added = guest.ask(&lab, &["port", "add"], &["8008:7"]);
    assert!(added.contains("8008"), "{added}");
    clients.extend((0..3).map(|_| client(&lab, 8008)));
    clients.iter_mut().for_each(call_and_answer);
    let flows = guest.ask_json(&lab, &["flows"], &[]);
    let ports: BTreeSet<u16> =
        clients.iter().map(|client| client.local_addr().unwrap().port()).collect();
    let listed: BTreeSet<u16> = flows
        .iter()
        .filter_map(|flow| flow["peer"].as_str()?.rsplit_once(':')?.1.parse().ok())
        .collect();
    assert!(ports.is_subset(&listed), "{flows:?}");
    let ids: BTreeSet<u64> = flows.iter().filter_map(|flow| flow["id"].as_u64()).collect();
    assert_eq!(ids.len(), flows.len(), "{flows:?}");
    let all = stats(&lab, &guest);
    assert_eq!(all["workers"], 3, "{all}");
    assert_eq!(all["tcp"]["open"], 12, "{all}");
    let connections = |forward: usize| all["forwards"][forward]["connections"].clone();
    assert_eq!((connections(0), connections(1)), (9.into(), 3.into()), "{all}");
    assert_eq!(all["drops"]["hand_over"], 0, "{all}");
    // A port that is gone is gone with all of them; its clients stay.
    guest.ask(&lab, &["port", "rm"], &["8008:7"]);
    clients.iter_mut().for_each(call_and_answer);
    assert_eq!(stats(&lab, &guest)["forwards"].as_array().unwrap().len(), 1);
}

#[test]
fn workers_come_with_load_and_go_without() {
    let mut lab = Lab::new();
    if std::thread::available_parallelism().unwrap().get() < 4 {
        crate::support::loudly("SKIPPED: with less than four processors there is one worker");
        return;
    }
    lab.serve("iperf3 -s", "ss -Hltn sport = :5201 | grep -q .");
    let mut guest = echo(&lab, "web", &["-p", "8007:7"]);
    let mut early = client(&lab, 8007);
    call_and_answer(&mut early);
    assert_eq!(stats(&lab, &guest)["workers"], 1);
    let mut load = guest.inside_command("iperf3");
    let mut load = Background::start(load.args(["-c", "192.0.2.2", "-P", "4", "-t", "60"]));
    load.until("there are two workers", || stats(&lab, &guest)["workers"] == 2);
    // What is sent while flows change hands arrives as it was.
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut late = client(&lab, 8007);
    std::thread::scope(|scope| {
        let streams = [client(&lab, 8007), client(&lab, 8007)];
        for stream in streams {
            scope.spawn(|| rally(stream, &over, &rounds));
        }
        let _end = EndWith(&over);
        call_and_answer(&mut early);
        call_and_answer(&mut late);
        load.until("a hundred pieces went round", || rounds.load(Ordering::Relaxed) >= 100);
    });
    load.signal(Signal::SIGSTOP);
    load.until("one worker is left", || stats(&lab, &guest)["workers"] == 1);
    call_and_answer(&mut early);
    call_and_answer(&mut late);
    assert_eq!(stats(&lab, &guest)["drops"]["hand_over"], 0);
    assert_eq!(guest.tapway.errors(), "");
}

#[test]
fn an_upload_that_has_a_porter_arrives_as_it_was_sent() {
    upload_with_a_porter("auto");
}

#[test]
fn so_does_one_whose_porter_is_at_work_from_the_start() {
    upload_with_a_porter("3");
}

fn upload_with_a_porter(threads: &str) {
    let lab = Lab::new();
    if std::thread::available_parallelism().unwrap().get() < 4 {
        crate::support::loudly("SKIPPED: with less than four processors there is no porter");
        return;
    }
    // Of no length that a buffer has, so that nothing can be in another's place unseen.
    let pattern: Vec<u8> = (0..40_000_003u64).map(|at| ((at * at) >> 13) as u8).collect();
    let file = lab.write("pattern", "");
    std::fs::write(&file, &pattern).unwrap();
    let listener = lab.within(&lab.outside, || TcpListener::bind("192.0.2.2:7000").unwrap());
    let mut guest = echo(&lab, "web", &["--log-level", "debug", "--threads", threads]);
    let began = clock::now();
    while !guest.tapway.errors().contains("a porter") {
        if clock::now() - began > PATIENCE {
            // It is hired from 4 Gbit/s on, which others may leave no time for.
            return crate::support::loudly("SKIPPED: too busy a machine for a porter");
        }
        upload(&mut guest, &listener, &file, &pattern, 20);
    }
    upload(&mut guest, &listener, &file, &pattern, 10);
}

/// Sends the pattern, which is in the file, so many times with one connection.
fn upload(guest: &mut Instance, listener: &TcpListener, file: &Path, pattern: &[u8], times: usize) {
    let send = format!(
        "for i in $(seq {times}); do cat {}; done | socat -b 1048576 -u - TCP:192.0.2.2:7000",
        file.display()
    );
    let mut sender = guest.inside_command("sh");
    let mut sender = Background::start(sender.args(["-c", &send]));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut piece = vec![0; 4 << 20];
    let mut received = 0;
    loop {
        let count = stream.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        let mut rest = &piece[..count];
        while !rest.is_empty() {
            let at = received % pattern.len();
            let len = rest.len().min(pattern.len() - at);
            assert!(rest[..len] == pattern[at..at + len], "other bytes from {received} on");
            received += len;
            rest = &rest[len..];
        }
    }
    assert_eq!(received, times * pattern.len(), "{}", sender.errors());
}
