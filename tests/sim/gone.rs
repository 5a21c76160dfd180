//! Guests that go, on a link that another guest may take.

use std::net::SocketAddr;

use tapway::base::DropReason;
use tapway::engine::{Held, Published};
use tapway::gate::forward::{ForwardId, Transport};

use crate::bench::{Bench, small_limits};
use crate::frames::{ACK, ICMP, Ip, PSH, SYN, TCP, Tcp, UDP, icmp_frame, udp_frame};
use crate::peer::{End, Script};

const MILLI: u64 = 1_000_000;

/// What the guest's link says when the guest is gone.
const GONE: Vec<u8> = Vec::new();

/// Publishes a port of the guest.
fn rule(guest_port: u16, transport: Transport) -> Published {
    let forward = ForwardId(guest_port.into());
    Published { forward, transport, guest_address: None, guest_port }
}

#[test]
fn a_guest_that_is_gone_leaves_nothing_to_the_next_one() {
    let mut bench = Bench::new(false, small_limits());
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(80, Transport::Tcp), socket).unwrap();
    let (socket, _) = bench.host.datagram_port();
    bench.worker.publish_datagrams(rule(53, Transport::Udp), socket).unwrap();

    // A connection, a mapping, an echo, a client of each published port, half a packet.
    bench.host.0.borrow_mut().serve(9000, Script { sends: 1 << 20, ..Script::default() });
    let ports = (40_000, 9000);
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    let frames = bench.pass(MILLI);
    let syn_ack = frames.last().unwrap();
    let seq = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
    let ack = Tcp { ports, seq: 1001, ack: seq.wrapping_add(1), ..Tcp::new(ACK) };
    bench.feed(&ack.frame(Ip::v4(TCP)));
    bench.feed(&udp_frame(Ip::v4(UDP), 5000, 5001, b"hello"));
    bench.feed(&icmp_frame(Ip::v4(ICMP), 8, 0, &[0, 7, 0, 1]));
    bench.feed(&udp_frame(Ip { more: true, ..Ip::v4(UDP) }, 5000, 5001, &[0; 24]));
    bench.host.0.borrow_mut().client(listener, "192.0.2.7:2000", 80, Script::default());
    bench.host.0.borrow_mut().inject(SocketAddr::from(([192, 0, 2, 8], 3000)), b"hi");
    bench.pass(10 * MILLI);
    assert_eq!(bench.worker.flow_count(), 5);
    let held = bench.worker.held();
    assert!(held.slabs > 0 && held.reassembly_bytes > 0, "{held:?}");

    assert_eq!(bench.feed_raw(GONE), Vec::<Vec<u8>>::new());
    assert_eq!(bench.worker.flow_count(), 0);
    let held = bench.worker.held();
    assert_eq!(Held { timers: 0, ..held }, Held::default());
    for port in [9000, 80] {
        let seen = bench.host.0.borrow().seen(port);
        assert_eq!(seen[0].end, Some(End::Reset), "the peer at {port}");
    }

    // The next guest does not know of the connection, and can have it anew.
    let late = Tcp { flags: PSH | ACK, ..ack };
    let frames = bench.feed(&late.frame(Ip::v4(TCP)));
    assert_eq!(frames.len(), 1);
    assert!(bench.drops().iter().any(|(reason, _)| *reason == DropReason::NoFlow));
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    bench.host.0.borrow_mut().client(listener, "192.0.2.7:2001", 80, Script::default());
    bench.pass(10 * MILLI);
    assert_eq!(bench.worker.flow_count(), 2, "published ports stay");
}
