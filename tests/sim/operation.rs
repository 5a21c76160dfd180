//! What can happen to a fuzzed worker: operations, and the connections, ports and clients that they
//! are about.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use tapway::gate::forward::Transport;

use crate::frames::{ACK, FIN, Ip, PSH, RST, SERVER4, SYN, TCP};
use crate::world::GATEWAY4;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A segment of one of a few connections, near what its state calls for.
    Segment {
        connection: usize,
        flags: u8,
        len: u16,
        seq_off: i32,
        ack_off: i32,
        window: u16,
        sack: Option<(i32, i32)>,
    },
    /// What an honest guest does next: completes the handshake, acknowledges everything.
    Behave {
        connection: usize,
        len: u16,
    },
    Datagram {
        port: u16,
        target: u16,
        to_gateway: bool,
        len: u16,
    },
    /// Opens a port, or closes it if it is open.
    TogglePort {
        port: usize,
    },
    /// Somebody connects to a published port; with `known` as the peer of one of the connections.
    Client {
        known: bool,
        client: usize,
    },
    /// Somebody sends to a published UDP port, and the guest perhaps answers.
    DatagramClient {
        port: usize,
        client: usize,
        len: u16,
        answered: bool,
    },
    Ping {
        ident: u16,
        len: u16,
    },
    /// "Fragmentation needed" about a connection.
    PathMtu {
        connection: usize,
        mtu: u16,
    },
    Fragment {
        ident: u16,
        offset: u16,
        more: bool,
        len: u16,
    },
    /// The last frame again, with one byte changed.
    Mutate {
        at: usize,
        value: u8,
    },
    Wait {
        millis: u64,
    },
    HostResets,
    HostDatagram {
        len: u16,
    },
    HostExhausted {
        on: bool,
    },
}

fn offset() -> impl Strategy<Value = i32> {
    prop_oneof![
        6 => Just(0),
        2 => -3000i32..3000,
        1 => any::<i32>(),
    ]
}

pub fn operation() -> impl Strategy<Value = Operation> {
    let flags = prop_oneof![
        4 => Just(ACK),
        2 => Just(SYN),
        2 => Just(ACK | PSH),
        2 => Just(ACK | FIN),
        1 => Just(RST),
        1 => 0u8..64,
    ];
    let len = prop_oneof![3 => Just(0u16), 3 => 0u16..100, 1 => 0u16..1460];
    let segment = (
        0..CONNECTIONS,
        flags,
        len,
        offset(),
        offset(),
        prop_oneof![Just(0u16), Just(65_535), any::<u16>()],
        proptest::option::of((-100i32..20_000, -100i32..20_000)),
    )
        .prop_map(|(connection, flags, len, seq_off, ack_off, window, sack)| {
            Operation::Segment { connection, flags, len, seq_off, ack_off, window, sack }
        });
    prop_oneof![
        8 => segment,
        8 => (0..CONNECTIONS, 0u16..1460)
            .prop_map(|(connection, len)| Operation::Behave { connection, len }),
        2 => (1u16..300, 1u16..60, any::<bool>(), 0u16..1400).prop_map(
            |(port, target, to_gateway, len)| Operation::Datagram { port, target, to_gateway, len }
        ),
        2 => (0..PORTS.len()).prop_map(|port| Operation::TogglePort { port }),
        4 => (any::<bool>(), 0usize..6)
            .prop_map(|(known, client)| Operation::Client { known, client }),
        3 => (0..PORTS.len(), 0usize..6, 0u16..3000, any::<bool>()).prop_map(
            |(port, client, len, answered)| {
                Operation::DatagramClient { port, client, len, answered }
            }
        ),
        1 => (0u16..40, 0u16..1000).prop_map(|(ident, len)| Operation::Ping { ident, len }),
        1 => (0..CONNECTIONS, any::<u16>())
            .prop_map(|(connection, mtu)| Operation::PathMtu { connection, mtu }),
        1 => (0u16..3, 0u16..200, any::<bool>(), 1u16..40).prop_map(|(ident, offset, more, len)| {
            Operation::Fragment { ident, offset: offset * 8, more, len: len * 8 }
        }),
        1 => (0usize..80, any::<u8>()).prop_map(|(at, value)| Operation::Mutate { at, value }),
        4 => prop_oneof![0u64..5, 0u64..2000, 0u64..100_000]
            .prop_map(|millis| Operation::Wait { millis }),
        1 => Just(Operation::HostResets),
        1 => (0u16..3000).prop_map(|len| Operation::HostDatagram { len }),
        1 => any::<bool>().prop_map(|on| Operation::HostExhausted { on }),
    ]
}

/// Servers by connection: source, echo, slow reader, refuser, one that never answers, resetter.
pub const SERVERS: [u16; 6] = [80, 7, 9, 81, 82, 83];

/// Connections: to these, two to exposed ports of the gateway, and four from clients.
pub const CONNECTIONS: usize = 12;

/// Guest and peer port of a connection, and the peer's address.
pub fn ends(connection: usize) -> ((u16, u16), Ipv4Addr) {
    let number = connection as u16;
    match connection {
        0..6 => ((50_000 + number, SERVERS[connection]), SERVER4),
        6..8 => ((50_000 + number, 7000 + number), GATEWAY4),
        _ => ((8080, 60_000 + number), SERVER4),
    }
}

pub fn ip_to(connection: usize) -> Ip {
    Ip::v4(TCP).to(ends(connection).1)
}

/// A port that can be open.
#[derive(Clone, Copy)]
pub enum Port {
    /// Two host ports may lead to one port of the guest.
    Published(Transport, u16),
    /// Leads to the port of the host.
    Exposed(Transport, u16, u16),
}

pub const PORTS: [Port; 8] = [
    Port::Published(Transport::Tcp, 8080),
    Port::Published(Transport::Tcp, 8080),
    Port::Published(Transport::Udp, 53),
    Port::Published(Transport::Udp, 53),
    Port::Published(Transport::Udp, 54),
    Port::Exposed(Transport::Tcp, 7006, 80),
    Port::Exposed(Transport::Tcp, 7007, 7),
    Port::Exposed(Transport::Udp, 9, 9),
];

/// Clients that know no connection; the last is behind a Unix socket.
pub const CLIENTS: [&str; 6] = [
    "192.0.2.8:6000",
    "198.51.100.8:6000",
    "127.0.0.1:6000",
    "127.0.0.2:6000",
    "[2001:db8::8]:6000",
    "",
];
