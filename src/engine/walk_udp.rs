//! UDP on the walk out, and datagrams towards the guest.

use std::io::IoSlice;
use std::net::SocketAddr;

use crate::base::{DropReason, Instant, Mac};
use crate::gate::Destination;
use crate::stack::ip::Packet;
use crate::stack::wire::{Addresses, Datagram, HEADROOM, UdpHeader, VnetHeader};

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

const DNS_PORT: u16 = 53;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A UDP packet with a good checksum from an address that the guest may use.
    pub(super) fn on_udp(
        &mut self,
        now: Instant,
        vnet: &VnetHeader,
        source_mac: Mac,
        packet: &Packet<'_>,
        destination: Destination,
    ) -> Result<(), DropReason> {
        let _ = (now, vnet);
        let datagram = Datagram::parse(packet.payload)?;
        let guest = SocketAddr::new(packet.source, datagram.source_port);
        let peer = SocketAddr::new(packet.target, datagram.target_port);
        match destination {
            Destination::Dns if peer.port() == DNS_PORT => {
                self.on_dns_query(guest, source_mac, peer, datagram.payload)
            }
            _ => Err(DropReason::UnknownProtocol),
        }
    }

    /// Sends the `len` payload bytes at [`HEADROOM`] of `buffer` as one datagram to the guest.
    pub(super) fn send_datagram(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        addresses: &Addresses,
        header: &UdpHeader,
    ) {
        let start = header.emit(&mut buffer[..HEADROOM + len], len, addresses, self.io.checksum);
        self.io.write(&[IoSlice::new(&buffer[start..HEADROOM + len])]);
    }
}
