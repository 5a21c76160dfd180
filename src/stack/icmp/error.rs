//! ICMP errors: to the guest, so that its `connect` and `send` fail as they would on the host (D9),
//! and from the guest, which may learn a smaller path MTU behind it.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::base::Seq;
use crate::stack::ip::{Parsed, parse_v4, parse_v6};
use crate::stack::wire::{IpHeader, fill_icmp_checksum, packet, protocol};

/// RFC 1812 §4.3.2.3: as much of the original as fits into 576 bytes.
const MAX_V4: usize = 576;
/// RFC 4443 §2.4 (c): as much as fits into the minimum IPv6 MTU.
const MAX_V6: usize = 1280;

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const UNREACHABLE_V6: u8 = 1;
const TOO_BIG_V6: u8 = 2;
const TIME_EXCEEDED_V6: u8 = 3;
const PARAMETER_PROBLEM_V6: u8 = 4;

/// Type, code and the 32 bits behind the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The path MTU in bytes for "too big" and "fragmentation needed", the offset of the octet in
    /// question for ICMPv6's "parameter problem"; else 0.
    pub info: u32,
}

/// What is wrong, in words that both families know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No route to the network: `ENETUNREACH`.
    NetUnreachable,
    /// No way to the host: `EHOSTUNREACH`.
    HostUnreachable,
    /// Nobody listens there: `ECONNREFUSED`.
    PortUnreachable,
    /// The target does not speak the protocol: `ENOPROTOOPT` (IPv4).
    ProtocolUnreachable,
    /// As [`Problem::ProtocolUnreachable`] for a packet at hand, whose protocol number is the octet
    /// at this offset (RFC 4443 §3.4 code 1, RFC 8200 §4): `EPROTO` over IPv6.
    UnknownProtocol(u32),
    /// Forbidden by a policy: `EACCES` over IPv6, `EHOSTUNREACH` over IPv4, which has no better.
    Prohibited,
    /// It may not be fragmented and is larger than the path MTU in bytes: `EMSGSIZE`.
    TooBig(u32),
    /// A fragment of it never came (RFC 792 code 1).
    ReassemblyTime,
}

impl Problem {
    /// The problem that the host's errno tells of. `None` if silence says the same, as a time-out.
    pub fn from_errno(errno: i32) -> Option<Problem> {
        match Errno::from_raw(errno) {
            Errno::ECONNREFUSED => Some(Problem::PortUnreachable),
            Errno::ENETUNREACH | Errno::ENETDOWN | Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL => {
                Some(Problem::NetUnreachable)
            }
            Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::ENODEV => {
                Some(Problem::HostUnreachable)
            }
            Errno::EACCES | Errno::EPERM => Some(Problem::Prohibited),
            Errno::ENOPROTOOPT | Errno::EPROTONOSUPPORT => Some(Problem::ProtocolUnreachable),
            _ => None,
        }
    }

    /// The message for a family. Codes: RFC 792, RFC 1812 §5.2.7.1, RFC 4443 §3.
    pub fn report(self, ipv6: bool) -> Report {
        let (kind, code, info) = match (self, ipv6) {
            (Problem::NetUnreachable, false) => (UNREACHABLE, 0, 0),
            (Problem::HostUnreachable, false) => (UNREACHABLE, 1, 0),
            (Problem::ProtocolUnreachable | Problem::UnknownProtocol(_), false) => {
                (UNREACHABLE, 2, 0)
            }
            (Problem::PortUnreachable, false) => (UNREACHABLE, 3, 0),
            (Problem::TooBig(mtu), false) => (UNREACHABLE, 4, mtu),
            (Problem::Prohibited, false) => (UNREACHABLE, 13, 0),
            (Problem::ReassemblyTime, false) => (TIME_EXCEEDED, 1, 0),
            (Problem::NetUnreachable, true) => (UNREACHABLE_V6, 0, 0),
            (Problem::HostUnreachable, true) => (UNREACHABLE_V6, 3, 0),
            (Problem::Prohibited, true) => (UNREACHABLE_V6, 1, 0),
            (Problem::ProtocolUnreachable | Problem::PortUnreachable, true) => {
                (UNREACHABLE_V6, 4, 0)
            }
            (Problem::UnknownProtocol(at), true) => (PARAMETER_PROBLEM_V6, 1, at),
            (Problem::TooBig(mtu), true) => (TOO_BIG_V6, 0, mtu),
            (Problem::ReassemblyTime, true) => (TIME_EXCEEDED_V6, 1, 0),
        };
        Report { kind, code, info }
    }
}

/// The packet that tells the sender of `original`, an IP packet or the start of one, from `source`.
/// `None` if the packet must not be answered (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)) or is no packet.
pub fn error_packet(source: IpAddr, report: Report, original: &[u8]) -> Option<Vec<u8>> {
    let guest = sender_to_be_told(original)?;
    let (limit, header_len, protocol) = match guest {
        IpAddr::V4(_) => (MAX_V4, 20, protocol::ICMP),
        IpAddr::V6(_) => (MAX_V6, 40, protocol::ICMPV6),
    };
    let quoted = &original[..original.len().min(limit - header_len - 8)];
    let mut message = vec![report.kind, report.code, 0, 0];
    // RFC 1191 §4 has the MTU in the low 16 bits, which the larger field covers.
    message.extend(report.info.to_be_bytes());
    message.extend(quoted);
    fill_icmp_checksum(&mut message, source, guest);
    let header = IpHeader { source, target: guest, protocol, tos: 0xc0, hop_limit: 64 };
    packet(&header, &message, message.len())
}

/// Who sent `original`, if an ICMP error about it may be sent at all.
fn sender_to_be_told(original: &[u8]) -> Option<IpAddr> {
    match original.first()? >> 4 {
        4 => {
            let header = original.first_chunk::<20>()?;
            let header_len = usize::from(header[0] & 0x0f) * 4;
            let [source, target] = [12, 16].map(|at| {
                std::net::Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
            });
            let fragment_offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
            let about_error = header[9] == protocol::ICMP
                && !matches!(original.get(header_len), Some(0 | 8 | 13 | 14 | 17 | 18) | None);
            let silent = fragment_offset != 0
                || about_error
                || target.is_multicast()
                || target.is_broadcast()
                || source.is_unspecified()
                || source.is_multicast()
                || source.is_broadcast()
                || source.is_loopback();
            (!silent).then_some(source.into())
        }
        6 => {
            let header = original.first_chunk::<40>()?;
            let [source, target] = [8, 24].map(|at| {
                let octets: [u8; 16] = std::array::from_fn(|i| header[at + i]);
                std::net::Ipv6Addr::from(octets)
            });
            // ICMPv6 types below 128 are errors.
            let about_error =
                header[6] == protocol::ICMPV6 && original.get(40).is_none_or(|&kind| kind < 128);
            let silent = about_error
                || target.is_multicast()
                || source.is_unspecified()
                || source.is_multicast();
            (!silent).then_some(source.into())
        }
        _ => None,
    }
}

/// The start of a UDP packet of the guest's that is gone: what an error about it quotes.
/// `payload` is as much as the network's error quoted, `len` the datagram's true payload length if
/// known.
pub fn original_udp(guest: SocketAddr, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(8 + payload.len()).ok()?;
    let mut transport = guest.port().to_be_bytes().to_vec();
    transport.extend(peer.port().to_be_bytes());
    transport.extend(len.to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(payload);
    original(guest.ip(), peer.ip(), protocol::UDP, &transport)
}

/// The start of a SYN of the guest's: ports and sequence number (RFC 792: 64 bits).
pub fn original_tcp(guest: SocketAddr, peer: SocketAddr, seq: Seq) -> Option<Vec<u8>> {
    let mut transport = guest.port().to_be_bytes().to_vec();
    transport.extend(peer.port().to_be_bytes());
    transport.extend(seq.0.to_be_bytes());
    // The rest of a bare SYN, for receivers that want the whole header.
    transport.extend([0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
    original(guest.ip(), peer.ip(), protocol::TCP, &transport)
}

/// The start of an echo request of the guest's; `message` begins with its ICMP header.
pub fn original_echo(guest: IpAddr, peer: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    let protocol = if guest.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    original(guest, peer, protocol, message)
}

fn original(guest: IpAddr, peer: IpAddr, protocol: u8, transport: &[u8]) -> Option<Vec<u8>> {
    let header = IpHeader { source: guest, target: peer, protocol, tos: 0, hop_limit: 1 };
    packet(&header, transport, transport.len())
}

/// An error of the guest's that says that one of our packets was too big for a path behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// The new path MTU in bytes.
    pub mtu: u32,
    /// TCP or UDP.
    pub protocol: u8,
    /// Source of the packet that was too big: the flow's peer.
    pub peer: SocketAddr,
    /// Its target: the guest's side of the flow.
    pub guest: SocketAddr,
}

/// Reads "fragmentation needed" or "packet too big" in an ICMP `message` from the guest. `None` for
/// every other message, and for quotations that are cut too short.
pub fn path_mtu(message: &[u8], ipv6: bool) -> Option<PathMtu> {
    let (header, quoted) = message.split_first_chunk::<8>()?;
    let wanted = if ipv6 { (TOO_BIG_V6, 0) } else { (UNREACHABLE, 4) };
    if (header[0], header[1]) != wanted {
        return None;
    }
    let word = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    // RFC 1191 §5: 0 from old routers would mean to guess; a Linux guest always says.
    let mtu = if ipv6 { word.max(1280) } else { (word & 0xffff).max(68) };
    let (peer, guest, protocol, transport) = quoted_header(quoted, ipv6)?;
    let ports = transport.first_chunk::<4>()?;
    let peer_port = u16::from_be_bytes([ports[0], ports[1]]);
    let guest_port = u16::from_be_bytes([ports[2], ports[3]]);
    Some(PathMtu {
        mtu,
        protocol,
        peer: SocketAddr::new(peer, peer_port),
        guest: SocketAddr::new(guest, guest_port),
    })
}

/// An error of the guest's that says that one of our TCP segments cannot reach its target there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpUnreachable {
    /// Source of the segment: the flow's peer.
    pub peer: SocketAddr,
    /// Its target: the guest's side of the flow.
    pub guest: SocketAddr,
    /// Its sequence number.
    pub seq: Seq,
}

/// Reads "destination unreachable" about a TCP segment in an ICMP `message` from the guest: what a
/// packet filter there says in place of a reset, or a router towards a network behind it. `None`
/// for every other message.
pub fn tcp_unreachable(message: &[u8], ipv6: bool) -> Option<TcpUnreachable> {
    let (header, quoted) = message.split_first_chunk::<8>()?;
    let unreachable = match ipv6 {
        // Code 4 is about the size of the packet.
        false => header[0] == UNREACHABLE && header[1] != 4,
        true => header[0] == UNREACHABLE_V6,
    };
    if !unreachable {
        return None;
    }
    let (peer, guest, protocol::TCP, transport) = quoted_header(quoted, ipv6)? else { return None };
    let [from_high, from_low, to_high, to_low, seq @ ..] = transport.first_chunk::<8>()?;
    Some(TcpUnreachable {
        peer: SocketAddr::new(peer, u16::from_be_bytes([*from_high, *from_low])),
        guest: SocketAddr::new(guest, u16::from_be_bytes([*to_high, *to_low])),
        seq: Seq(u32::from_be_bytes(*seq)),
    })
}

/// Addresses, protocol and what is left of the transport of a quoted packet.
fn quoted_header(quoted: &[u8], ipv6: bool) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    // The quotation is usually shorter than its header claims, so the strict parsers of `ip`
    // see a copy that is padded to the claimed length.
    let mut whole = quoted.to_vec();
    let claimed = match (ipv6, quoted) {
        (false, [_, _, high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        (true, [_, _, _, _, high, low, ..]) => 40 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return None,
    };
    whole.resize(claimed.max(whole.len()), 0);
    let parsed = if ipv6 { parse_v6(&whole) } else { parse_v4(&whole) };
    let Ok(Parsed::Whole(packet)) = parsed else { return None };
    let at = packet.bytes.len() - packet.payload.len();
    Some((packet.source, packet.target, packet.protocol, quoted.get(at..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> SocketAddr {
        "10.0.2.100:40000".parse().unwrap()
    }

    fn guest6() -> SocketAddr {
        "[fd74::100]:40000".parse().unwrap()
    }

    #[test]
    fn an_error_quotes_the_packet_and_sums_up() {
        let peer = "192.0.2.7:53".parse().unwrap();
        let original = original_udp(guest(), peer, &[7; 1000]).unwrap();
        let source: IpAddr = "198.51.100.1".parse().unwrap();
        let report = Report { kind: 11, code: 0, info: 0 };
        let bytes = error_packet(source, report, &original).unwrap();
        assert_eq!(bytes.len(), 576);
        let Ok(Parsed::Whole(packet)) = parse_v4(&bytes) else { panic!("not whole") };
        assert_eq!((packet.source, packet.target), (source, guest().ip()));
        assert_eq!(packet.payload[..2], [11, 0]);
        assert_eq!(packet.payload[8..], original[..548]);
        assert_eq!(
            crate::stack::wire::checksum::fold(crate::stack::wire::checksum::sum(packet.payload)),
            0xffff
        );
    }

    #[test]
    fn an_ipv6_error_fills_no_more_than_the_minimum_mtu() {
        let peer = "[2001:db8::7]:53".parse().unwrap();
        let original = original_udp(guest6(), peer, &[7; 2000]).unwrap();
        let report = Problem::TooBig(1400).report(true);
        let source = "fd74::2".parse().unwrap();
        let bytes = error_packet(source, report, &original).unwrap();
        assert_eq!(bytes.len(), 1280);
        let Ok(Parsed::Whole(packet)) = parse_v6(&bytes) else { panic!("not whole") };
        assert_eq!(packet.payload[..2], [2, 0]);
        assert_eq!(packet.payload[4..8], 1400u32.to_be_bytes());
        assert!(crate::stack::wire::checksum::verify(source, guest6().ip(), 58, packet.payload));
    }

    #[test]
    fn errors_groups_and_fragments_are_not_answered() {
        let report = Problem::HostUnreachable.report(false);
        let source = "10.0.2.2".parse().unwrap();
        let peer: SocketAddr = "192.0.2.7:53".parse().unwrap();
        let good = original_udp(guest(), peer, b"x").unwrap();
        assert!(error_packet(source, report, &good).is_some());
        let mut later_fragment = good.clone();
        later_fragment[7] = 9;
        assert!(error_packet(source, report, &later_fragment).is_none());
        let group = original_udp(guest(), "224.0.0.1:9".parse().unwrap(), b"x").unwrap();
        assert!(error_packet(source, report, &group).is_none());
        let echo = original_echo(guest().ip(), peer.ip(), &[8, 0, 0, 0, 0, 1, 0, 1]).unwrap();
        assert!(error_packet(source, report, &echo).is_some());
        let error = original_echo(guest().ip(), peer.ip(), &[3, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        assert!(error_packet(source, report, &error).is_none());
        assert!(error_packet(source, report, &[]).is_none());
        assert!(error_packet(source, report, &good[..19]).is_none());
    }

    #[test]
    fn codes_give_a_linux_guest_the_hosts_errno() {
        // net/ipv4/icmp.c icmp_err_convert and net/ipv6/icmp.c tab_unreach.
        let of = |errno: Errno, ipv6| {
            Problem::from_errno(errno as i32).map(|problem| {
                let report = problem.report(ipv6);
                (report.kind, report.code)
            })
        };
        assert_eq!(of(Errno::ENETUNREACH, false), Some((3, 0)));
        assert_eq!(of(Errno::EHOSTUNREACH, false), Some((3, 1)));
        assert_eq!(of(Errno::ECONNREFUSED, false), Some((3, 3)));
        assert_eq!(of(Errno::EACCES, false), Some((3, 13)));
        assert_eq!(of(Errno::ENETUNREACH, true), Some((1, 0)));
        assert_eq!(of(Errno::EHOSTUNREACH, true), Some((1, 3)));
        assert_eq!(of(Errno::ECONNREFUSED, true), Some((1, 4)));
        assert_eq!(of(Errno::EACCES, true), Some((1, 1)));
        assert_eq!(of(Errno::ETIMEDOUT, false), None);
    }

    #[test]
    fn a_path_mtu_report_names_the_flow() {
        let peer: SocketAddr = "192.0.2.7:443".parse().unwrap();
        // Our packet went from the peer's address to the guest; the guest's router answers.
        let ours = original_tcp(peer, guest(), Seq(7)).unwrap();
        let mut message = vec![3, 4, 0, 0, 0, 0, 0x05, 0x14];
        message.extend(&ours[..28]);
        assert_eq!(
            path_mtu(&message, false),
            Some(PathMtu { mtu: 1300, protocol: 6, peer, guest: guest() })
        );
        message[1] = 3;
        assert_eq!(path_mtu(&message, false), None);
    }

    #[test]
    fn an_unreachable_report_names_the_segment() {
        for (peer, guest, kind, codes, others) in [
            // Port, and RFC 1812 §5.2.7.1's "administratively prohibited"; not "too big".
            ("192.0.2.7:443", guest(), 3, [3, 13], [(3, 4), (11, 0)]),
            // Port, and RFC 4443 §3.1's "administratively prohibited".
            ("[2001:db8::7]:443", guest6(), 1, [4, 1], [(2, 0), (3, 0)]),
        ] {
            let (peer, ipv6) = (peer.parse().unwrap(), guest.is_ipv6());
            let ours = original_tcp(peer, guest, Seq(0xfedc_ba98)).unwrap();
            let quoted = if ipv6 { &ours[..] } else { &ours[..28] };
            let read = |kind, code, quoted: &[u8]| {
                let message = [&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat();
                tcp_unreachable(&message, ipv6)
            };
            for code in codes {
                let seq = Seq(0xfedc_ba98);
                assert_eq!(read(kind, code, quoted), Some(TcpUnreachable { peer, guest, seq }));
            }
            for (kind, code) in others {
                assert_eq!(read(kind, code, quoted), None);
            }
            assert_eq!(read(kind, codes[0], &quoted[..27]), None, "cut too short");
            let datagram = original_udp(peer, guest, b"12345678").unwrap();
            assert_eq!(read(kind, codes[0], &datagram), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = (path_mtu(&bytes, false), tcp_unreachable(&bytes, false));
            let _ = (path_mtu(&bytes, true), tcp_unreachable(&bytes, true));
            let source = "10.0.2.2".parse().unwrap();
            let _ = error_packet(source, Report { kind: 3, code: 1, info: 0 }, &bytes);
        }
    }
}
