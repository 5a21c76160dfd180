//! The room against the kernel, over loopback.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// A socket bound to `address` with any port, and its port.
fn open(address: &str, tell_local: bool) -> (OwnedFd, u16) {
    let bind = SocketAddr::new(address.parse().unwrap(), 0);
    let options = DatagramOptions { tell_local, ..DatagramOptions::new(bind) };
    let socket = open_udp(&options).unwrap();
    let port = bound_port(socket.as_fd()).unwrap();
    (socket, port)
}

fn datagram(target: SocketAddr, source: Option<IpAddr>, payload: &[u8]) -> Outgoing<'_> {
    Outgoing { target, source, payload, marks: Marks::DEFAULT, segment_size: None }
}

fn send(socket: &OwnedFd, datagrams: &[Outgoing<'_>]) -> std::io::Result<usize> {
    send_batch(socket.as_fd(), Marks::DEFAULT, datagrams)
}

/// The next datagrams of `socket`, each with its payload.
fn receive(socket: &OwnedFd) -> Vec<(Received, Vec<u8>)> {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(Duration::from_secs(5)).unwrap();
    assert_eq!(poll(&mut ready, patience), Ok(1), "nothing has arrived");
    let mut batch = Batch::new(8, 4);
    recv_batch(socket.as_fd(), &mut batch).unwrap();
    batch.datagrams().map(|(received, bytes)| (*received, bytes[4..].to_vec())).collect()
}

/// A server at a wildcard address is addressed at `addressed`, and answers from there.
fn answers_from_where_it_was_addressed(wildcard: &str, client: &str, addressed: &str) {
    let addressed: IpAddr = addressed.parse().unwrap();
    let (server, server_port) = open(wildcard, true);
    let (client, _) = open(client, false);
    send(&client, &[datagram(SocketAddr::new(addressed, server_port), None, b"ask")]).unwrap();
    let asked = receive(&server);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].0.local, &asked[0].1[..]), (Some(addressed), &b"ask"[..]));

    let reply = datagram(asked[0].0.source, asked[0].0.local, b"tell");
    assert_eq!(send(&server, &[reply]).unwrap(), 1);
    let told = receive(&client);
    assert_eq!(told[0].0.source, SocketAddr::new(addressed, server_port));
    assert_eq!((told[0].0.local, &told[0].1[..]), (None, &b"tell"[..]));
}

#[test]
fn a_wildcard_socket_answers_from_the_address_that_was_addressed() {
    answers_from_where_it_was_addressed("0.0.0.0", "127.0.0.3", "127.0.0.2");
}

#[test]
fn a_wildcard_socket_answers_from_the_ipv6_address_that_was_addressed() {
    answers_from_where_it_was_addressed("::", "::1", "::1");
}

#[test]
fn datagrams_of_one_batch_leave_from_different_addresses_with_their_marks() {
    let (server, _) = open("0.0.0.0", false);
    let (client, client_port) = open("127.0.0.3", false);
    let target = SocketAddr::new("127.0.0.3".parse().unwrap(), client_port);
    let marks = Marks { tos: 0xb8, hop_limit: 9 };
    let source = |text: &str| Some(text.parse().unwrap());
    let batch = [
        datagram(target, source("127.0.0.4"), b"first"),
        Outgoing { marks, segment_size: Some(4), ..datagram(target, source("127.0.0.5"), b"two!") },
    ];
    assert_eq!(send(&server, &batch).unwrap(), 2);
    let mut received = receive(&client);
    while received.len() < 2 {
        received.extend(receive(&client));
    }
    let seen: Vec<_> = received
        .iter()
        .map(|(about, bytes)| (about.source.ip().to_string(), about.marks, &bytes[..]))
        .collect();
    let expected = [
        ("127.0.0.4".to_owned(), Marks::DEFAULT, &b"first"[..]),
        ("127.0.0.5".to_owned(), marks, &b"two!"[..]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn an_address_of_another_host_cannot_be_the_source() {
    let (server, _) = open("0.0.0.0", true);
    let target = "127.0.0.3:9".parse().unwrap();
    let foreign = Some("192.0.2.77".parse().unwrap());
    let error = send(&server, &[datagram(target, foreign, b"x")]).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENETUNREACH)), "{error}");
}
