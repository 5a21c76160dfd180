//! Frames made by hand, so that every field can be wrong on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tapway::stack::wire::checksum;

use crate::world::{GATEWAY_MAC, GUEST_MAC, GUEST4, GUEST6};

pub const SERVER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// An Ethernet frame from the guest to the gateway.
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    ethernet_between(GUEST_MAC.0, GATEWAY_MAC.0, kind, payload)
}

pub fn ethernet_between(source: [u8; 6], target: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&target[..], &source, &kind.to_be_bytes(), payload].concat()
}

/// The fields of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub target: IpAddr,
    pub protocol: u8,
    pub hop_limit: u8,
    pub ident: u16,
    /// In bytes.
    pub offset: u16,
    pub more: bool,
}

impl Ip {
    pub fn v4(protocol: u8) -> Ip {
        Ip::between(GUEST4, SERVER4, protocol)
    }

    pub fn v6(protocol: u8) -> Ip {
        Ip::between(GUEST6, SERVER6, protocol)
    }

    pub fn between(source: impl Into<IpAddr>, target: impl Into<IpAddr>, protocol: u8) -> Ip {
        Ip {
            source: source.into(),
            target: target.into(),
            protocol,
            hop_limit: 64,
            ident: 1,
            offset: 0,
            more: false,
        }
    }

    pub fn to(self, target: impl Into<IpAddr>) -> Ip {
        Ip { target: target.into(), ..self }
    }

    pub fn from(self, source: impl Into<IpAddr>) -> Ip {
        Ip { source: source.into(), ..self }
    }

    /// The packet around `payload`, with a right header checksum.
    pub fn packet(self, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let fragment = (self.offset / 8) | (u16::from(self.more) << 13);
                let mut header = vec![0x45, 0];
                header.extend((20 + payload.len() as u16).to_be_bytes());
                header.extend(self.ident.to_be_bytes());
                header.extend(fragment.to_be_bytes());
                header.extend([self.hop_limit, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(target.octets());
                refill_ip_checksum(&mut header);
                [&header[..], payload].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let fragmented = self.more || self.offset > 0;
                let mut body = vec![];
                if fragmented {
                    body.extend([self.protocol, 0]);
                    body.extend((self.offset | u16::from(self.more)).to_be_bytes());
                    body.extend(u32::from(self.ident).to_be_bytes());
                }
                body.extend(payload);
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((body.len() as u16).to_be_bytes());
                packet.extend([if fragmented { 44 } else { self.protocol }, self.hop_limit]);
                packet.extend(source.octets());
                packet.extend(target.octets());
                packet.extend(body);
                packet
            }
            _ => panic!("one family at a time"),
        }
    }

    /// The Ethernet frame around the packet.
    pub fn frame(self, payload: &[u8]) -> Vec<u8> {
        let kind = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
        ethernet(kind, &self.packet(payload))
    }

    /// The transport checksum of `payload`, whose field is zero.
    pub fn sum(&self, payload: &[u8]) -> [u8; 2] {
        let pseudo = match self.protocol {
            ICMP => 0,
            protocol => {
                checksum::pseudo_header(self.source, self.target, protocol, payload.len() as u32)
            }
        };
        (!checksum::fold(pseudo + checksum::sum(payload))).to_be_bytes()
    }
}

/// Writes the right checksum into an IPv4 header.
pub fn refill_ip_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = !checksum::fold(checksum::sum(&header[..20]));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The fields of a TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    pub fn new(flags: u8) -> Tcp {
        Tcp {
            ports: (40_000, 80),
            seq: 1000,
            ack: if flags & ACK != 0 { 5000 } else { 0 },
            flags,
            window: 64_000,
            options: vec![],
            payload: vec![],
        }
    }

    /// The segment with a right checksum for `ip`.
    pub fn segment(&self, ip: &Ip) -> Vec<u8> {
        let mut bytes = vec![];
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let words = 5 + self.options.len().div_ceil(4);
        bytes.extend([(words as u8) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.resize(words * 4, 0);
        bytes.extend(&self.payload);
        let sum = ip.sum(&bytes);
        bytes[16..18].copy_from_slice(&sum);
        bytes
    }

    pub fn frame(&self, ip: Ip) -> Vec<u8> {
        ip.frame(&self.segment(&ip))
    }
}

/// A UDP datagram with a right checksum.
pub fn udp(ip: &Ip, source: u16, target: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(source.to_be_bytes());
    bytes.extend(target.to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    let sum = ip.sum(&bytes);
    bytes[6..8].copy_from_slice(&sum);
    bytes
}

pub fn udp_frame(ip: Ip, source: u16, target: u16, payload: &[u8]) -> Vec<u8> {
    ip.frame(&udp(&ip, source, target, payload))
}

/// An ICMP or ICMPv6 message with a right checksum; `body` follows the checksum.
pub fn icmp(ip: &Ip, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(body);
    let sum = ip.sum(&bytes);
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

pub fn icmp_frame(ip: Ip, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    ip.frame(&icmp(&ip, kind, code, body))
}
