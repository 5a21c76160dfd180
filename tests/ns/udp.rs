//! UDP: mapping, filtering, sizes, bursts; DHCP.

use crate::lab::{Lab, sh};

#[test]
fn one_mapping_serves_all_peers_and_keeps_the_port() {
    let lab = Lab::new();
    let (first, second) = (lab.udp("192.0.2.2:7001"), lab.udp("192.0.2.2:7002"));
    let guest = std::thread::spawn(move || {
        let mut buffer = [0; 100];
        let (_, one) = first.recv_from(&mut buffer).unwrap();
        let (_, two) = second.recv_from(&mut buffer).unwrap();
        // RFC 4787 REQ-8: another port of an addressed peer may send, too.
        second.send_to(b"b", one).unwrap();
        first.send_to(b"a", one).unwrap();
        (one, two)
    });
    let out = lab.python(
        &[],
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60); s.bind(('', 45678))
s.sendto(b'1', ('192.0.2.2', 7001)); s.sendto(b'2', ('192.0.2.2', 7002))
print(sorted(s.recvfrom(10) for _ in 'ab'))",
    );
    assert_eq!(out, "[(b'a', ('192.0.2.2', 7001)), (b'b', ('192.0.2.2', 7002))]\n");
    let (one, two) = guest.join().unwrap();
    assert_eq!(one, two, "endpoint-independent mapping (RFC 4787 REQ-1)");
    assert_eq!(one, "192.0.2.1:45678".parse().unwrap(), "port preserved");
}

#[test]
fn a_peer_that_was_not_addressed_is_filtered() {
    let lab = Lab::new();
    sh(&format!("ip -n {} address add 192.0.2.3/24 dev eth0", lab.outside));
    let (known, stranger) = (lab.udp("192.0.2.2:7001"), lab.udp("192.0.2.3:7001"));
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        let (_, guest) = known.recv_from(&mut buffer).unwrap();
        stranger.send_to(b"stranger", guest).unwrap();
        known.send_to(b"known", guest).unwrap();
        let _ = known.recv_from(&mut buffer);
    });
    let out = lab.python(
        &[],
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60)
s.sendto(b'1', ('192.0.2.2', 7001)); print(s.recv(100))
s.settimeout(0.3)
try: print(s.recv(100))
except TimeoutError: print('nothing more')",
    );
    assert_eq!(out, "b'known'\nnothing more\n");
}

#[test]
fn datagrams_of_every_size_and_bursts_return_whole() {
    let lab = Lab::new();
    for socket in [lab.udp("192.0.2.2:7001"), lab.udp("[2001:db8::2]:7001")] {
        socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], peer).unwrap();
            }
        });
    }
    let out = lab.python(
        &[],
        "import os, socket
for kind, host in (socket.AF_INET, '192.0.2.2'), (socket.AF_INET6, '2001:db8::2'):
    s = socket.socket(kind, socket.SOCK_DGRAM); s.settimeout(60); s.connect((host, 7001))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for size in 0, 1, 1400, 1472, 1473, 3000, 60000, 65000:
        sent = os.urandom(size); s.send(sent); assert s.recv(65536) == sent, size
    burst = [os.urandom(8192) for _ in range(7)]
    for piece in burst: s.send(piece)
    assert [s.recv(65536) for _ in burst] == burst
print('whole')",
    );
    assert_eq!(out, "whole\n");
}

#[test]
fn a_closed_port_refuses() {
    let lab = Lab::new();
    let out = lab.python(
        &[],
        "import socket
for kind, host in ((socket.AF_INET, '192.0.2.2'), (socket.AF_INET6, '2001:db8::2'),
                   (socket.AF_INET, '10.0.2.2')):
    s = socket.socket(kind, socket.SOCK_DGRAM); s.settimeout(60); s.connect((host, 99)); s.send(b'x')
    try: s.recv(10)
    except ConnectionRefusedError: print('refused')",
    );
    assert_eq!(out, "refused\nrefused\nrefused\n");
}

#[test]
fn a_dhcp_client_gets_the_guests_address() {
    let lab = Lab::new();
    let out = lab.guest(
        "ip address flush dev tap0 scope global; ip route flush default 2>/dev/null
         busybox udhcpc -i tap0 -n -q -t 5 -s /bin/true 2>&1",
    );
    assert!(out.contains("lease of 10.0.2.100 obtained from 10.0.2.2"), "{out}");
}
