use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use socket2::SockRef;

use super::*;

fn rule(transport: Transport, address: Option<&str>, ports: PortRange) -> Forward {
    Forward {
        transport,
        listen: Listen::Ports {
            address: address.map(|text| text.parse().unwrap()),
            interface: None,
            ports,
        },
        guest_address: None,
        guest_ports: if ports == PortRange::ANY { PortRange::single(80) } else { ports },
        when_listening: false,
    }
}

const OPENER: Opener = Opener { freebind: false };

fn host_port(opened: &Opened) -> u16 {
    opened.sockets[0].host_port
}

#[test]
fn tcp_at_every_address_answers_both_families_by_one_socket() {
    let opened = OPENER.open(&rule(Transport::Tcp, None, PortRange::ANY)).unwrap();
    let port = host_port(&opened);
    assert_eq!((opened.sockets.len(), opened.sockets[0].guest_port), (1, 80));
    assert_eq!(opened.forward.to_string(), format!("{port}:80/tcp"));
    assert_eq!(opened.picked_ports().collect::<Vec<_>>(), [format!("*:{port} -> 80/tcp")]);
    for address in ["127.0.0.1", "::1"] {
        TcpStream::connect((address.parse::<IpAddr>().unwrap(), port)).unwrap();
    }
    drop(opened);
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_is_listened_at_alone() {
    for (address, other) in [("127.0.0.1", "[::1]"), ("0.0.0.0", "[::1]"), ("::", "127.0.0.1")] {
        let opened = OPENER.open(&rule(Transport::Tcp, Some(address), PortRange::ANY)).unwrap();
        let refused = TcpStream::connect(format!("{other}:{}", host_port(&opened))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn udp_at_every_address_is_a_socket_of_each_family_on_one_port() {
    let opened = OPENER.open(&rule(Transport::Udp, None, PortRange::ANY)).unwrap();
    let port = host_port(&opened);
    assert_eq!(opened.sockets.iter().map(|s| s.host_port).collect::<Vec<_>>(), [port, port]);
    assert_eq!(opened.picked_ports().collect::<Vec<_>>(), [format!("*:{port} -> 80/udp")]);
    for (address, socket) in ["127.0.0.1", "::1"].into_iter().zip(&opened.sockets) {
        let client = UdpSocket::bind((address, 0)).unwrap();
        client.send_to(b"ping", (address, port)).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8];
        let (len, from) = SockRef::from(&socket.socket).recv_from(&mut buffer).unwrap();
        assert_eq!((len, from.as_socket()), (4, client.local_addr().ok()));
    }
}

#[test]
fn a_udp_port_cannot_be_taken_over() {
    let opened = OPENER.open(&rule(Transport::Udp, Some("127.0.0.1"), PortRange::ANY)).unwrap();
    let thief = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    thief.set_reuse_address(true).unwrap();
    let address = SocketAddr::new([127, 0, 0, 1].into(), host_port(&opened));
    assert_eq!(thief.bind(&address.into()).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_port_in_use_is_named_with_its_holder_and_nothing_stays_open() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let first = OPENER.open(&rule(transport, Some("127.0.0.1"), PortRange::ANY)).unwrap();
        let port = host_port(&first);
        let error = OPENER.open(&rule(transport, None, PortRange::single(port))).unwrap_err();
        let meant = format!(
            "publish {port}:{port}/{transport}: port {port}/{transport} is in use by this instance \
             itself"
        );
        assert_eq!(error.to_string(), meant);
        assert!(error.hint().is_some());
        // The second port of the range is in the way, so the first may not stay either.
        let Some(range) = PortRange::new(port - 1, port) else { continue };
        if OPENER.open(&rule(transport, Some("127.0.0.1"), PortRange::single(port - 1))).is_ok() {
            OPENER.open(&rule(transport, Some("127.0.0.1"), range)).unwrap_err();
            OPENER.open(&rule(transport, Some("127.0.0.1"), PortRange::single(port - 1))).unwrap();
        }
        drop(first);
        OPENER.open(&rule(transport, None, PortRange::single(port))).unwrap();
    }
}

#[test]
fn a_port_is_free_again_at_once_although_connections_linger() {
    let opened = OPENER.open(&rule(Transport::Tcp, None, PortRange::ANY)).unwrap();
    let port = host_port(&opened);
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // The side that closes first keeps the connection in TIME-WAIT.
    let (accepted, _) = SockRef::from(&opened.sockets[0].socket).accept().unwrap();
    drop((accepted, opened));
    drop(client);
    OPENER.open(&rule(Transport::Tcp, None, PortRange::single(port))).unwrap();
}

#[test]
fn addresses_and_interfaces_of_others_are_named() {
    let error =
        OPENER.open(&rule(Transport::Tcp, Some("192.0.2.254"), PortRange::ANY)).unwrap_err();
    assert!(error.to_string().contains("192.0.2.254 is not an address of this host"), "{error}");
    let mut forward = rule(Transport::Udp, None, PortRange::ANY);
    if let Listen::Ports { interface, .. } = &mut forward.listen {
        *interface = Some("nosuch0".to_owned());
    }
    let error = OPENER.open(&forward).unwrap_err();
    assert!(error.to_string().contains("no interface nosuch0"), "{error}");
    if let Listen::Ports { interface, .. } = &mut forward.listen {
        *interface = Some("lo".to_owned());
    }
    OPENER.open(&forward).unwrap();
}

#[test]
fn ports_of_a_range_follow_each_other_on_both_sides() {
    let mut forward = rule(Transport::Tcp, Some("127.0.0.1"), PortRange::ANY);
    forward.guest_ports = PortRange::new(6000, 6002).unwrap();
    // Each is picked by itself.
    let opened = OPENER.open(&forward).unwrap();
    assert_eq!(opened.sockets.iter().map(|s| s.guest_port).collect::<Vec<_>>(), [6000, 6001, 6002]);
    assert!(opened.sockets.iter().all(|s| s.host_port != 0));
    assert_eq!(opened.forward, forward);
    // With numbers they are paired in order. Others may have them just now, so look for free ones.
    let opened = (20_000..30_000).step_by(7).find_map(|first| {
        let ports = PortRange::new(first, first + 2).unwrap();
        let listen = Listen::Ports { address: None, interface: None, ports };
        OPENER.open(&Forward { listen, ..forward.clone() }).ok().map(|opened| (first, opened))
    });
    let (first, opened) = opened.unwrap();
    let pairs: Vec<_> = opened.sockets.iter().map(|s| (s.host_port, s.guest_port)).collect();
    assert_eq!(pairs, [(first, 6000), (first + 1, 6001), (first + 2, 6002)]);
    assert_eq!(opened.picked_ports().count(), 0);
}

#[test]
fn too_many_ports_are_refused_before_the_first_is_opened() {
    let all = PortRange::new(1, u16::MAX).unwrap();
    let mut forward = rule(Transport::Udp, None, PortRange::ANY);
    forward.guest_ports = all;
    // No limit allows as many sockets as 600 times all ports.
    let forwards = vec![forward; 600];
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let error = open_all(&forwards, Handed::default()).unwrap_err();
    let ListenError::Descriptors { need, limit: found, .. } = error else { panic!("{error}") };
    assert_eq!((need, found as u64), (600 * 2 * 65_535, limit));
}

fn unix(path: &std::path::Path) -> Forward {
    Forward {
        listen: Listen::Unix(path.to_owned()),
        ..rule(Transport::Tcp, None, PortRange::single(80))
    }
}

#[test]
fn a_unix_socket_is_its_owners_and_goes_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let opened = OPENER.open(&unix(&path)).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    drop(opened);
    assert!(!path.exists());
}

#[test]
fn only_a_socket_that_nobody_serves_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    // Its owner was killed.
    drop(UnixListener::bind(&path).unwrap());
    let opened = OPENER.open(&unix(&path)).unwrap();
    assert!(matches!(OPENER.open(&unix(&path)), Err(ListenError::SocketInUse(p)) if p == path));
    UnixStream::connect(&path).unwrap();
    // Whoever replaces the file keeps it.
    fs::remove_file(&path).unwrap();
    let other = UnixDatagram::bind(&path).unwrap();
    drop(opened);
    assert!(matches!(OPENER.open(&unix(&path)), Err(ListenError::SocketInUse(_))));
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "text").unwrap();
    assert!(matches!(OPENER.open(&unix(&path)), Err(ListenError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    let nowhere = directory.path().join("nosuch/a.sock");
    let error = OPENER.open(&unix(&nowhere)).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
}

#[test]
fn wildcard_listeners_meet_those_of_one_address() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    let error = OPENER.open(&rule(Transport::Tcp, None, PortRange::single(port))).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
}

#[test]
fn a_rule_that_waits_for_a_listener_inside_stays_closed() {
    let now = rule(Transport::Tcp, Some("127.0.0.1"), PortRange::ANY);
    let waiting = Forward { when_listening: true, ..now.clone() };
    let at_start = open_all(&[waiting.clone(), now], Handed::default()).unwrap();
    assert_eq!((at_start.opened.len(), at_start.waiting), (1, vec![(waiting, false)]));
}
