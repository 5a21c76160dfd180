//! QUIC through tapway: quinn at both ends, one of them in the guest.

use std::net::{SocketAddr, UdpSocket};

use crate::instance::{Instance, PATIENCE};
use crate::lab::Lab;
use crate::quic_ends::{self as quic, Order};

/// More than any window, and small enough for a debug build.
const BYTES: u64 = 24 << 20;

/// Transfers both ways between a server at `server` and a client at `client`, which reaches it at
/// `address`.
fn transfer(server: UdpSocket, client: impl Fn() -> UdpSocket, address: SocketAddr) {
    let (config, certificate) = quic::identity().unwrap();
    let runtime = quic::runtime().unwrap();
    runtime.block_on(async {
        let serving = tokio::spawn(quic::serve(server, config));
        for up in [true, false] {
            let order = Order { up, bytes: BYTES, time: 5 * PATIENCE };
            let done = quic::order(client(), address, certificate.clone(), order);
            let arrived = tokio::time::timeout(5 * PATIENCE, done).await.unwrap().unwrap();
            assert_eq!(arrived.bytes, BYTES, "up: {up}");
        }
        serving.abort();
    });
}

fn traffic(lab: &Lab, guest: &Instance) -> (u64, u64) {
    let flows = guest.ask_json(lab, &["flows"], &["--proto", "udp"]);
    let sum = |field: &str| flows.iter().map(|flow| flow[field].as_u64().unwrap()).sum();
    (sum("bytes_to_host"), sum("bytes_to_guest"))
}

#[test]
fn a_client_in_the_guest_transfers_both_ways() {
    for (server, any) in [("192.0.2.2:4433", "0.0.0.0:0"), ("[2001:db8::2]:4433", "[::]:0")] {
        let lab = Lab::new();
        let guest = lab.start("quic", &[], "exec sleep 1000");
        let client = || lab.within_process(guest.guest, || UdpSocket::bind(any).unwrap());
        transfer(lab.udp(server), client, server.parse().unwrap());
        let (out, back) = traffic(&lab, &guest);
        assert!(out > BYTES && back > BYTES, "{out} and {back} bytes went through tapway");
    }
}

#[test]
fn a_server_in_the_guest_is_reached_from_outside() {
    for (own, address, any) in [
        ("0.0.0.0:443", "192.0.2.1:4433", "192.0.2.2:0"),
        ("[::]:443", "[2001:db8::1]:4433", "[2001:db8::2]:0"),
    ] {
        let lab = Lab::new();
        let guest = lab.start("quic", &["-p", "4433:443/udp"], "exec sleep 1000");
        let server = lab.within_process(guest.guest, || UdpSocket::bind(own).unwrap());
        transfer(server, || lab.udp(any), address.parse().unwrap());
        let (out, back) = traffic(&lab, &guest);
        assert!(out > BYTES && back > BYTES, "{out} and {back} bytes went through tapway");
    }
}
