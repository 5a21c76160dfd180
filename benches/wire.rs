//! What one frame costs in the wire room, in both directions.
//!
//! Question: how much of a frame's budget do parsing, header writing and sums take? At 20 Gbit/s
//! in frames of 64 KiB there are 26 µs for each. Last answer, medians on a busy 4-core VM (Linux
//! 6.18): parse 56 ns, headers 26 ns; a sum over 64 KiB 17 µs, which is why none is made (D1).
//! `cargo bench --bench wire`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use divan::{Bencher, black_box};

use tapway::base::{Mac, Seq};
use tapway::stack::ip::{Parsed, parse_v4};
use tapway::stack::wire::{
    Addresses, Checksum, ETHERNET_HEADER_LEN, Flags, HEADROOM, Segment, TcpHeader, VNET_HEADER_LEN,
    VnetHeader, checksum, protocol,
};

fn main() {
    divan::main();
}

/// Payloads of one segment at MTU 1500 with timestamps, and of the largest frame.
const PAYLOADS: [usize; 2] = [1448, 65_435];

const ADDRESSES: Addresses = Addresses {
    gateway_mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
    guest_mac: Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]),
    peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 443),
    guest: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100)), 41_000),
};

const HEADER: TcpHeader = TcpHeader {
    sack: [None; 3],
    seq: Seq(0xffff_fff0),
    ack: Some(Seq(77)),
    flags: Flags { syn: false, fin: false, rst: false, psh: true },
    window: 50_000,
    mss: None,
    window_scale: None,
    sack_permitted: false,
    segment_size: 1448,
};

/// A whole frame as it stands on the TAP.
fn frame(payload: usize) -> Vec<u8> {
    let mut buffer = vec![0x5a; HEADROOM + payload];
    let start = HEADER.emit(&mut buffer, payload, &ADDRESSES, Checksum::Partial);
    buffer.split_off(start)
}

#[divan::bench(args = PAYLOADS)]
fn parse(bencher: Bencher<'_, '_>, payload: usize) {
    let frame = frame(payload);
    bencher.bench(|| {
        let frame = black_box(&frame[..]);
        let vnet = VnetHeader::parse(frame).expect("our own header");
        let Ok(Parsed::Whole(packet)) = parse_v4(&frame[VNET_HEADER_LEN + ETHERNET_HEADER_LEN..])
        else {
            unreachable!("our own packet")
        };
        let segment = Segment::parse(packet.payload).expect("our own segment");
        (vnet, segment)
    });
}

#[divan::bench(args = PAYLOADS)]
fn emit_with_partial_checksum(bencher: Bencher<'_, '_>, payload: usize) {
    let mut buffer = vec![0x5a; HEADROOM + payload];
    bencher.bench_local(|| {
        HEADER.emit(black_box(&mut buffer), payload, &ADDRESSES, Checksum::Partial)
    });
}

#[divan::bench]
fn emit_an_acknowledgment_with_full_checksum(bencher: Bencher<'_, '_>) {
    let mut buffer = vec![0; HEADROOM];
    bencher.bench_local(|| HEADER.emit(black_box(&mut buffer), 0, &ADDRESSES, Checksum::Full));
}

#[divan::bench(args = PAYLOADS)]
fn sum(bencher: Bencher<'_, '_>, payload: usize) {
    let bytes = vec![0xa5; payload];
    bencher
        .counter(divan::counter::BytesCount::new(payload))
        .bench(|| checksum::sum(black_box(&bytes)));
}

#[divan::bench(args = PAYLOADS)]
fn verify(bencher: Bencher<'_, '_>, payload: usize) {
    let bytes = vec![0xa5; payload];
    let (source, target) = (ADDRESSES.guest.ip(), ADDRESSES.peer.ip());
    bencher
        .counter(divan::counter::BytesCount::new(payload))
        .bench(|| checksum::verify(source, target, protocol::TCP, black_box(&bytes)));
}
