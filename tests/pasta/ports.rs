//! Ports, in every protocol, family, way in and form of specification, and what is carried through
//! them.
//!
//! ```text
//!   client at 127.0.0.1 or ::1 ───────── spliced ────────▶ ┐
//!   client at the host's own address ─── over the link ──▶ ┴ servers of the guest
//! ```

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::lab::{
    HOST4, HOST6, Lab, MAPPED, PATIENCE, Transport, bytes, receipt, serve_tcp, serve_udp, tcp,
};

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
/// loopback and at its own address, with `options`. Where nothing is expected, a second's silence
/// is taken for the answer of a UDP server.
fn seen_by(options: &[&str], expected: &[Option<String>; 4]) -> [[Option<String>; 4]; 2] {
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
    let ask = |target, patience| -> std::io::Result<String> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(target)?;
        socket.send(b"x")?;
        socket.send(b"")?;
        let mut buffer = [0; 1000];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let patience = |at: usize| match expected[at] {
        Some(_) => PATIENCE,
        None => Duration::from_secs(1),
    };
    [
        cells.map(|target| peer(lab.on_host(|| tcp(target, b"x")))),
        [0, 1, 2, 3].map(|at| peer(lab.on_host(|| ask(cells[at], patience(at))))),
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
        let [tcp, udp] = seen_by(options, &expected);
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

/// `auto`: as soon as a server is there, at either of the host's loopback addresses.
#[test]
fn ports_of_the_guests_loopback_follow_servers_of_both_families() {
    let mut lab = Lab::new();
    let follow = "5001:6001,auto";
    lab.start(&["--config-net", "-t", "none", "-u", "none", "-T", follow, "-U", follow]);
    let text = bytes(2048);
    let at = ["127.0.0.1", "::1"].map(|address| SocketAddr::new(address.parse().unwrap(), 5001));
    for target in at {
        let refused = lab.in_guest(|| tcp(target, &text)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{target}");
    }
    lab.on_host(|| {
        for target in at {
            serve_tcp(TcpListener::bind((target.ip(), 6001)).unwrap());
            serve_udp(UdpSocket::bind((target.ip(), 6001)).unwrap());
        }
    });
    for (target, transport) in at.iter().flat_map(|at| [(at, Transport::Tcp), (at, Transport::Udp)])
    {
        lab.until(&format!("{transport:?} {target}"), || {
            let answer = lab.in_guest(|| transport.talk(*target, &text));
            answer.is_ok_and(|answer| answer == receipt(6001, *target, &text))
        });
    }
}
