//! Wire formats: smoltcp's behind one door, plus what it lacks.
//!
//! smoltcp is imported here and nowhere else outside tests (D2). What is added: the virtio-net
//! header, sums that are left partial for the receiving kernel, reasons for a refusal, and
//! headers written in place in front of a payload that is already where it has to be.
//! Everything is stateless.

pub mod checksum;
mod emit;
mod packet;
mod segment;
mod udp;
mod vnet;

pub use emit::{Addresses, Checksum, HEADROOM, MAX_PAYLOAD, TcpHeader, UdpHeader};
pub use packet::{IpHeader, fill_icmp_checksum, packet};
pub use segment::{Flags, SackRanges, Segment};
pub use smoltcp::wire as formats;
pub use udp::Datagram;
pub use vnet::{Gso, VNET_HEADER_LEN, VnetHeader};

/// Length of an Ethernet header in bytes.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// IP protocol numbers that tapway forwards (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Hop-by-hop options of IPv6.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows the IPv6 headers (RFC 8200 §4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
}
