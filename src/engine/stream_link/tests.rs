//! The link at real sockets.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

const FRAME: [u8; 60] = [0x42; 60];

/// A link with one client, and the client's end.
fn pair() -> (StreamLink, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let ends = Ends { door: None, client: Some(ours), once: true };
    (StreamLink::new(ends, None).unwrap(), theirs)
}

/// A link where clients may come to the abstract address that is returned.
fn open(once: bool) -> (StreamLink, SocketAddr) {
    let name = format!("tapway-test-{}-{once}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let door = UnixListener::bind_addr(&address).unwrap();
    door.set_nonblocking(true).unwrap();
    (StreamLink::new(Ends { door: Some(door), client: None, once }, None).unwrap(), address)
}

/// Whether the link is ready now.
fn is_ready(link: &StreamLink) -> bool {
    poll(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
}

/// What the worker does while the link is ready: the frames that come, and the end of them.
fn read_all(link: &mut StreamLink) -> (Vec<Vec<u8>>, io::Result<usize>) {
    let (mut frames, mut buffer) = (vec![], vec![0; MAX_FRAME]);
    let mut end = Ok(MAX_FRAME);
    assert!(is_ready(link) || link.has_frame());
    while is_ready(link) || link.has_frame() {
        link.on_readiness();
        loop {
            end = link.read(&mut buffer);
            match end {
                Ok(len) if len > 0 => frames.push(buffer[..len].to_vec()),
                _ => break,
            }
        }
        if kind(&end) != Some(ErrorKind::WouldBlock) {
            break;
        }
    }
    (frames, end)
}

fn kind(end: &io::Result<usize>) -> Option<ErrorKind> {
    end.as_ref().err().map(io::Error::kind)
}

fn send(client: &mut UnixStream, frame: &[u8]) {
    client.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    client.write_all(frame).unwrap();
}

fn receive(client: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    client.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    client.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_go_both_ways() {
    let (mut link, mut client) = pair();
    send(&mut client, &FRAME);
    send(&mut client, &[7; 14]);
    let (frames, end) = read_all(&mut link);
    assert_eq!(frames, [FRAME.to_vec(), vec![7; 14]]);
    assert_eq!(kind(&end), Some(ErrorKind::WouldBlock));
    assert!(!is_ready(&link) && !link.has_frame());
    link.write(&[IoSlice::new(&FRAME[..20]), IoSlice::new(&FRAME[20..])]).unwrap();
    assert_eq!(receive(&mut client), FRAME);
}

#[test]
fn a_client_that_does_not_read_congests_the_link_and_loses_nothing() {
    let (mut link, mut client) = pair();
    let frame = vec![3; 60_000];
    let mut sent = 0;
    while !link.is_congested() {
        link.write(&[IoSlice::new(&frame)]).unwrap();
        sent += 1;
    }
    link.write(&[IoSlice::new(&FRAME)]).unwrap();
    assert!(!is_ready(&link), "there is no room yet");
    let reader = std::thread::spawn(move || {
        for _ in 0..sent {
            assert!(receive(&mut client) == frame);
        }
        assert_eq!(receive(&mut client), FRAME);
        client
    });
    while link.is_congested() {
        let mut ready = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut ready, PollTimeout::from(20_000_u16)).unwrap() > 0, "never ready");
        link.on_readiness();
    }
    let _client = reader.join().unwrap();
    assert!(!is_ready(&link), "room alone is no news once nothing is kept");
}

#[test]
fn the_last_client_that_goes_is_the_end() {
    let (mut link, mut client) = pair();
    send(&mut client, &FRAME);
    drop(client);
    let (frames, end) = read_all(&mut link);
    assert_eq!((frames.len(), kind(&end)), (1, Some(ErrorKind::UnexpectedEof)));
    assert!(!is_ready(&link) && !link.has_frame());
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection() {
    for bad in [0_u32, 13, MAX_FRAME as u32 + 1, u32::MAX] {
        let (mut link, mut client) = pair();
        send(&mut client, &FRAME);
        client.write_all(&bad.to_be_bytes()).unwrap();
        let (frames, end) = read_all(&mut link);
        assert_eq!((frames.len(), kind(&end)), (1, Some(ErrorKind::UnexpectedEof)), "{bad}");
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "it is not hung up on");
    }
}

#[test]
fn a_client_that_refuses_to_read_is_gone() {
    let (mut link, client) = pair();
    client.shutdown(std::net::Shutdown::Read).unwrap();
    link.write(&[IoSlice::new(&FRAME)]).unwrap_err();
    assert!(link.has_frame() && !link.is_congested());
    let (_, end) = read_all(&mut link);
    assert_eq!(kind(&end), Some(ErrorKind::UnexpectedEof));
}

#[test]
fn one_client_is_served_at_a_time_and_the_next_is_another_guest() {
    let (mut link, address) = open(false);
    assert!(!is_ready(&link));
    assert_eq!(link.write(&[IoSlice::new(&FRAME)]).unwrap_err().kind(), ErrorKind::NotConnected);
    let mut first = UnixStream::connect_addr(&address).unwrap();
    assert_eq!(kind(&read_all(&mut link).1), Some(ErrorKind::WouldBlock));
    let mut second = UnixStream::connect_addr(&address).unwrap();
    read_all(&mut link).1.unwrap_err();
    assert_eq!(second.read(&mut [0; 8]).unwrap(), 0, "the second is not hung up on");
    assert!(!is_ready(&link));
    send(&mut first, &FRAME);
    assert_eq!(read_all(&mut link).0, [FRAME]);

    drop(first);
    assert!(matches!(read_all(&mut link), (frames, Ok(0)) if frames.is_empty()));
    let mut third = UnixStream::connect_addr(&address).unwrap();
    send(&mut third, &FRAME);
    assert_eq!(read_all(&mut link).0, [FRAME]);
}

#[test]
fn after_the_only_client_nobody_is_let_in() {
    let (mut link, address) = open(true);
    let first = UnixStream::connect_addr(&address).unwrap();
    read_all(&mut link).1.unwrap_err();
    drop(first);
    assert_eq!(kind(&read_all(&mut link).1), Some(ErrorKind::UnexpectedEof));
    let mut second = UnixStream::connect_addr(&address).unwrap();
    assert_eq!(kind(&read_all(&mut link).1), Some(ErrorKind::WouldBlock));
    assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
}
