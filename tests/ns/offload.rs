//! Segmentation offload of UDP through tapway: what one end joins (`UDP_SEGMENT`) the other end
//! gets as it was sent, joined (`UDP_GRO`) or not.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::thread;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};

use crate::instance::PATIENCE;
use crate::lab::Lab;

/// Both ends in Python: `trains(s)` sends, `check(…)` receives. A datagram's bytes follow from its
/// length and its number.
const ENDS: &str = "import socket, struct, sys
UDP, UDP_SEGMENT, UDP_GRO = socket.IPPROTO_UDP, 103, 104
def content(size, number): return bytes((number * 7 + at * 13 + at // 256) & 255 for at in range(size))
def train(size, count, last): return [content(size, n) for n in range(count)] + ([content(last, 99)] if last else [])
TRAINS = (1400, 20, 17), (1400, 2, 1), (100, 60, 100), (1200, 40, 0), (1, 9, 0)
def open(kind):
    s = socket.socket(kind, socket.SOCK_DGRAM); s.settimeout(60)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20); return s
def send(s, size, pieces, *to):
    s.sendmsg([b''.join(pieces)], [(UDP, UDP_SEGMENT, struct.pack('=H', size))], 0, *to)
def receive(s):
    data, control, _, peer = s.recvmsg(65536, 100)
    size = next((struct.unpack('=i', data)[0] for _, kind, data in control if kind == UDP_GRO), 0) or len(data) or 1
    return [data[at:at + size] for at in range(0, len(data), size)] or [b''], peer
def expect(s, pieces):
    got = []
    while len(got) < len(pieces): more, peer = receive(s); got += more
    assert got == pieces, ([len(g) for g in got], [len(p) for p in pieces])
    return peer
";

/// Echoes each train of [`ENDS`], joined.
fn echo(socket: &UdpSocket) {
    let state = UdpSocketState::new(socket.into()).unwrap();
    let mut memory = vec![0; 65_536];
    socket.set_nonblocking(false).unwrap();
    for (size, count) in [(1400, 21), (1400, 3), (100, 61), (1200, 40), (1, 9)].into_iter().cycle()
    {
        let mut train = Vec::new();
        let (mut datagrams, mut peer) = (0, None);
        while datagrams < count {
            let mut meta = [RecvMeta::default()];
            let mut slots = [IoSliceMut::new(&mut memory)];
            if state.recv(socket.into(), &mut slots, &mut meta).is_err() {
                return;
            }
            let [RecvMeta { addr, len, stride, .. }] = meta;
            datagrams += len.div_ceil(stride.max(1));
            train.extend(&memory[..len]);
            peer = Some(addr);
        }
        let transmit = Transmit {
            destination: peer.unwrap(),
            ecn: None,
            contents: &train,
            segment_size: Some(size),
            src_ip: None,
        };
        state.try_send(socket.into(), &transmit).unwrap();
    }
}

#[test]
fn joined_datagrams_of_the_guest_arrive_and_return_as_they_were_sent() {
    let lab = Lab::new();
    for address in ["192.0.2.2:7001", "[2001:db8::2]:7001"] {
        let socket = lab.udp(address);
        thread::spawn(move || echo(&socket));
    }
    let program = "
for kind, host in (socket.AF_INET, '192.0.2.2'), (socket.AF_INET6, '2001:db8::2'):
    s = open(kind); s.connect((host, 7001))
    for gro in 0, 1:
        s.setsockopt(UDP, UDP_GRO, gro)
        for size, count, last in TRAINS:
            pieces = train(size, count, last)
            send(s, size, pieces)
            expect(s, pieces)
    # The last of them once more, to see that they are still joined when they arrive.
    for size, count, last in TRAINS:
        pieces = train(size, count, last); send(s, size, pieces)
        got, _ = receive(s); print(got == pieces)
";
    let out = lab.python(&[], &[ENDS, program].concat());
    assert_eq!(out, "True\n".repeat(10));
}

#[test]
fn single_datagrams_of_one_burst_are_joined_on_their_way() {
    let lab = Lab::new();
    let socket = lab.udp("192.0.2.2:7001");
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
    thread::spawn(move || {
        let mut burst = Vec::new();
        let mut buffer = [0; 2000];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            burst.push(buffer[..len].to_vec());
            // All are here before the first returns, so that they arrive at once.
            if burst.len() == 40 {
                for datagram in burst.drain(..) {
                    socket.send_to(&datagram, peer).unwrap();
                }
            }
        }
    });
    let program = "
import time
s = open(socket.AF_INET); s.connect(('192.0.2.2', 7001))
# Where neighbours are looked for, what waits for them is overtaken.
s.send(b'1'); time.sleep(0.1)
for _ in range(39): s.send(b'1')
expect(s, [b'1'] * 40)
burst = [content(1000, n) for n in range(20)] + [b''] + [content(900, n) for n in range(19)]
for gro in 0, 1:
    s.setsockopt(UDP, UDP_GRO, gro)
    for _ in range(20):
        for datagram in burst: s.send(datagram)
        expect(s, burst)
print('whole')
";
    assert_eq!(lab.python(&[], &[ENDS, program].concat()), "whole\n");
}

#[test]
fn a_path_that_datagrams_do_not_fit_is_told_or_they_are_fragmented() {
    let lab = Lab::new();
    for address in ["192.0.2.2:7001", "[2001:db8::2]:7001"] {
        let socket = lab.udp(address);
        socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], peer).unwrap();
            }
        });
    }
    // The guest's MTU lets 8 KiB pass in one packet; the cable outside has 1500.
    let program = "
import errno, time
pieces = train(8192, 6, 4096)
s = open(socket.AF_INET); s.connect(('192.0.2.2', 7001))
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
for _ in range(2): send(s, 8192, pieces); expect(s, pieces)
for piece in pieces: s.send(piece)
expect(s, pieces)
# IP_MTU_DISCOVER and IP_MTU, IPV6_MTU_DISCOVER and IPV6_MTU; 2 is ..._PMTUDISC_DO.
for kind, host, level, discover, mtu in (
        (socket.AF_INET, '192.0.2.2', socket.IPPROTO_IP, 10, 14),
        (socket.AF_INET6, '2001:db8::2', socket.IPPROTO_IPV6, 23, 24)):
    s = open(kind); s.connect((host, 7001)); s.setsockopt(level, discover, 2)
    told = None
    for _ in range(200):
        try: send(s, 8192, pieces)
        except OSError as error: told = error.errno; break
        time.sleep(0.02)
    print(told in (errno.EMSGSIZE, errno.EINVAL), s.getsockopt(level, mtu))
";
    let out = lab.python(&["--mtu", "65520"], &[ENDS, program].concat());
    assert_eq!(out, "True 1500\nTrue 1500\n");
}

#[test]
fn clients_of_a_published_port_and_its_server_may_join_datagrams() {
    let lab = Lab::new();
    let program = "
s = open(socket.AF_INET6); s.bind(('::', 7)); s.settimeout(None); s.setsockopt(UDP, UDP_GRO, 1)
print('up', flush=True)
while True:
    for size, count, last in TRAINS:
        pieces = train(size, count, last)
        peer = expect(s, pieces); send(s, size, pieces, peer)
";
    let path = lab.write("server.py", &[ENDS, program].concat());
    let script = format!("exec python3 {}", path.display());
    let mut server = lab.start("joined", &["-p", "7007:7/udp"], &script);
    assert_eq!(server.line(), "up");
    for (own, target) in
        [("192.0.2.2:0", "192.0.2.1:7007"), ("[2001:db8::2]:0", "[2001:db8::1]:7007")]
    {
        let client = lab.udp(own);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let state = UdpSocketState::new((&client).into()).unwrap();
        client.set_nonblocking(false).unwrap();
        let destination: SocketAddr = target.parse().unwrap();
        let content = |size: usize, number: usize| -> Vec<u8> {
            (0..size).map(|at| (number * 7 + at * 13 + at / 256) as u8).collect()
        };
        for (size, count, last) in
            [(1400, 20, 17), (1400, 2, 1), (100, 60, 100), (1200, 40, 0), (1, 9, 0)]
        {
            let mut sent: Vec<u8> = (0..count).flat_map(|number| content(size, number)).collect();
            sent.extend(content(last, 99));
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &sent,
                segment_size: Some(size),
                src_ip: None,
            };
            state.try_send((&client).into(), &transmit).unwrap();
            let mut returned: Vec<u8> = Vec::new();
            let mut memory = vec![0; 65_536];
            while returned.len() < sent.len() {
                let mut meta = [RecvMeta::default()];
                let mut slots = [IoSliceMut::new(&mut memory)];
                state.recv((&client).into(), &mut slots, &mut meta).unwrap();
                assert_eq!((meta[0].addr, meta[0].stride.min(size)), (destination, meta[0].stride));
                returned.extend(&memory[..meta[0].len]);
            }
            assert!(returned == sent, "{size} bytes, {count} of them");
        }
    }
}
