//! One bad frame after another: each is dropped under its own reason and answered as the RFCs say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tapway::base::DropReason;
use tapway::stack::wire::VNET_HEADER_LEN;

use crate::bench::{Bench, small_limits};
use crate::frames::{
    ACK, FIN, ICMP, ICMPV6, Ip, RST, SYN, TCP, Tcp, UDP, ethernet, ethernet_between, icmp_frame,
    refill_ip_checksum, udp_frame,
};
use crate::world::{GATEWAY_MAC, GATEWAY4, GATEWAY6, GUEST_MAC, GUEST4};

/// What a frame is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Silence,
    /// A reset with these sequence and acknowledgment numbers.
    Reset(u32, Option<u32>),
    /// An ICMP or ICMPv6 message of this type and code.
    Icmp(u8, u8),
    /// ICMPv6's "unrecognized next header", with this pointer (RFC 4443 §3.4).
    Parameter(u32),
    Arp,
}

fn classify(frames: &[Vec<u8>]) -> Answer {
    let [frame] = frames else {
        assert!(frames.is_empty(), "more than one answer: {frames:02x?}");
        return Answer::Silence;
    };
    let (protocol, at) = match frame[12..14] {
        [0x08, 0x06] => return Answer::Arp,
        [0x08, 0x00] => (frame[23], 34),
        _ => (frame[20], 54),
    };
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    if protocol == ICMPV6 && frame[at..at + 2] == [4, 1] {
        return Answer::Parameter(word(at + 4));
    }
    if matches!(protocol, ICMP | ICMPV6) {
        return Answer::Icmp(frame[at], frame[at + 1]);
    }
    assert_eq!(protocol, TCP, "an answer of protocol {protocol}");
    let flags = frame[at + 13];
    assert_eq!(flags & RST, RST, "an answer that is no reset: flags {flags:#x}");
    Answer::Reset(word(at + 4), (flags & ACK != 0).then(|| word(at + 8)))
}

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    reason: Option<DropReason>,
    answer: Answer,
}

fn dropped(name: &'static str, reason: DropReason, frame: Vec<u8>) -> Case {
    Case { name, frame, reason: Some(reason), answer: Answer::Silence }
}

fn answered(
    name: &'static str,
    reason: Option<DropReason>,
    answer: Answer,
    frame: Vec<u8>,
) -> Case {
    Case { name, frame, reason, answer }
}

/// `frame` with a change.
fn with(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// `frame`, an IPv4 one, with a change of its IP header and the checksum put right.
fn with_ip4(frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    with(frame, |frame| {
        change(&mut frame[14..]);
        refill_ip_checksum(&mut frame[14..34]);
    })
}

fn syn() -> Vec<u8> {
    Tcp::new(SYN).frame(Ip::v4(TCP))
}

fn link_cases() -> Vec<Case> {
    use DropReason::*;
    let good = syn();
    let ip = good[14..].to_vec();
    let guest = GUEST_MAC.0;
    let arp = |target: Ipv4Addr, sender: Ipv4Addr| {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(guest);
        arp.extend(sender.octets());
        arp.extend([0; 6]);
        arp.extend(target.octets());
        arp
    };
    let question = arp(GATEWAY4, GUEST4);
    vec![
        dropped("empty but for a byte", Truncated, vec![0]),
        dropped("no whole Ethernet header", Truncated, good[..13].to_vec()),
        dropped(
            "for another MAC",
            ForeignMac,
            ethernet_between(guest, [2, 9, 9, 9, 9, 9], 0x0800, &ip),
        ),
        dropped(
            "from a group MAC",
            ForgedSource,
            ethernet_between([0xff; 6], GATEWAY_MAC.0, 0x0800, &ip),
        ),
        dropped(
            "from our own MAC",
            ForgedSource,
            ethernet_between(GATEWAY_MAC.0, GATEWAY_MAC.0, 0x0800, &ip),
        ),
        dropped("802.3 length", UnknownEtherType, ethernet(ip.len() as u16, &ip)),
        dropped("VLAN tag", UnknownEtherType, ethernet(0x8100, &[&[0, 5, 8, 0][..], &ip].concat())),
        dropped("LLDP", UnknownEtherType, ethernet(0x88cc, &[0; 40])),
        dropped(
            "IPv6 under IPv4's EtherType",
            BadIpHeader,
            ethernet(0x0800, &Ip::v6(UDP).packet(&[0; 8])),
        ),
        dropped("IPv4 under IPv6's EtherType", BadIpHeader, ethernet(0x86dd, &ip)),
        dropped("short ARP", BadArp, ethernet(0x0806, &question[..20])),
        dropped(
            "ARP for Token Ring",
            BadArp,
            ethernet(0x0806, &with(question.clone(), |arp| arp[1] = 6)),
        ),
        dropped(
            "ARP with no operation",
            BadArp,
            ethernet(0x0806, &with(question.clone(), |arp| arp[7] = 0)),
        ),
        dropped(
            "ARP for somebody else",
            ArpNotOurs,
            ethernet(0x0806, &arp(Ipv4Addr::new(10, 0, 2, 77), GUEST4)),
        ),
        dropped(
            "ARP that claims the gateway",
            ForgedSource,
            ethernet(0x0806, &arp(GATEWAY4, GATEWAY4)),
        ),
        answered("ARP for the gateway", None, Answer::Arp, ethernet(0x0806, &question)),
    ]
}

fn ip_cases() -> Vec<Case> {
    use DropReason::*;
    let udp6 = udp_frame(Ip::v6(UDP), 4000, 4001, b"hello");
    let v6 = |target: &str| -> IpAddr { target.parse::<Ipv6Addr>().unwrap().into() };
    let v4 = |target: &str| -> IpAddr { target.parse::<Ipv4Addr>().unwrap().into() };
    let to4 = |target: &str| Tcp::new(SYN).frame(Ip::v4(TCP).to(v4(target)));
    let from4 = |source: &str| Tcp::new(SYN).frame(Ip::v4(TCP).from(v4(source)));
    let to6 = |target: &str| Tcp::new(SYN).frame(Ip::v6(TCP).to(v6(target)));
    let from6 = |source: &str| Tcp::new(SYN).frame(Ip::v6(TCP).from(v6(source)));
    let extended = |first: u8, body: &[u8]| Ip::v6(first).frame(body);
    let mut many = vec![];
    for _ in 0..9 {
        many.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    let unknown = |ip: Ip| Ip { protocol: 132, ..ip }.frame(&[0; 12]);
    vec![
        dropped("half an IPv4 header", BadIpHeader, syn()[..24].to_vec()),
        dropped("IPv4 version 5", BadIpHeader, with_ip4(syn(), |ip| ip[0] = 0x55)),
        dropped("IPv4 header length 16", BadIpHeader, with_ip4(syn(), |ip| ip[0] = 0x44)),
        dropped(
            "IPv4 header longer than the packet",
            BadIpHeader,
            with_ip4(syn(), |ip| ip[0] = 0x4f),
        ),
        dropped(
            "IPv4 total length beyond the frame",
            BadIpHeader,
            with_ip4(syn(), |ip| ip[3] = 200),
        ),
        dropped(
            "IPv4 total length below the header",
            BadIpHeader,
            with_ip4(syn(), |ip| ip[3] = 19),
        ),
        dropped("IPv4 header checksum", BadIpChecksum, with(syn(), |frame| frame[24] ^= 1)),
        dropped("TTL 0", HopLimit, with_ip4(syn(), |ip| ip[8] = 0)),
        dropped("half an IPv6 header", BadIpHeader, udp6[..34].to_vec()),
        dropped(
            "IPv6 payload length beyond the frame",
            BadIpHeader,
            with(udp6.clone(), |f| f[19] = 200),
        ),
        dropped("hop limit 0", HopLimit, with(udp6.clone(), |frame| frame[21] = 0)),
        dropped("too many extension headers", BadExtensionHeader, extended(60, &many)),
        dropped("extension header cut short", BadExtensionHeader, extended(60, &[17])),
        dropped(
            "extension header beyond the packet",
            BadExtensionHeader,
            extended(0, &[17, 9, 0, 0, 0, 0, 0, 0]),
        ),
        dropped(
            "routing header with segments left",
            BadExtensionHeader,
            extended(43, &[17, 0, 0, 1, 0, 0, 0, 0]),
        ),
        dropped("fragment header cut short", BadExtensionHeader, extended(44, &[17, 0, 0])),
        dropped("from the gateway", ForgedSource, from4("10.0.2.2")),
        dropped("from the DNS address", ForgedSource, from4("10.0.2.3")),
        dropped("from the network's broadcast", ForgedSource, from4("10.0.2.255")),
        dropped("from nobody", ForgedSource, from4("0.0.0.0")),
        dropped("from loopback", ForgedSource, from4("127.0.0.1")),
        dropped("from another network", ForgedSource, from4("198.51.100.1")),
        dropped("from a group", ForgedSource, from4("224.0.0.1")),
        dropped("from IPv6's gateway", ForgedSource, from6("fe80::2")),
        dropped("from IPv6's loopback", ForgedSource, from6("::1")),
        dropped("from an IPv6 group", ForgedSource, from6("ff02::1")),
        dropped("to loopback", MartianDestination, to4("127.0.0.1")),
        dropped("to this network", MartianDestination, to4("0.0.0.1")),
        dropped("to a neighbour that is not there", MartianDestination, to4("10.0.2.77")),
        dropped("to broadcast", Broadcast, to4("255.255.255.255")),
        dropped("to the network's broadcast", Broadcast, to4("10.0.2.255")),
        dropped("to a group", Multicast, to4("224.0.0.251")),
        dropped("to IPv6's loopback", MartianDestination, to6("::1")),
        dropped("to a mapped address", MartianDestination, to6("::ffff:127.0.0.1")),
        dropped("to a foreign link-local address", MartianDestination, to6("fe80::99")),
        dropped("to an IPv6 group", Multicast, to6("ff02::fb")),
        answered("SCTP", Some(UnknownProtocol), Answer::Icmp(3, 2), unknown(Ip::v4(0))),
        // RFC 8200 §4: the pointer of ICMPv6 names the next-header field that is not understood.
        answered("SCTP over IPv6", Some(UnknownProtocol), Answer::Parameter(6), unknown(Ip::v6(0))),
        answered(
            "ICMP over IPv6",
            Some(UnknownProtocol),
            Answer::Parameter(6),
            Ip::v6(ICMP).frame(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        ),
        answered(
            "SCTP behind two extension headers",
            Some(UnknownProtocol),
            Answer::Parameter(48),
            extended(0, &[60, 0, 1, 4, 0, 0, 0, 0, 132, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4]),
        ),
        dropped("no next header", UnknownProtocol, extended(59, &[1, 2, 3])),
    ]
}

fn transport_cases() -> Vec<Case> {
    use DropReason::*;
    let tcp = |flags: u8| Tcp::new(flags).frame(Ip::v4(TCP));
    let options =
        |options: &[u8]| Tcp { options: options.to_vec(), ..Tcp::new(SYN) }.frame(Ip::v4(TCP));
    let closed = |flags: u8, ip: Ip| Tcp::new(flags).frame(ip);
    let gateway = Ip::v4(UDP).to(GATEWAY4);
    let gateway6 = Ip::v6(UDP).to(GATEWAY6);
    let dns = Ip::v4(UDP).to(Ipv4Addr::new(10, 0, 2, 3));
    let ping = |ip: Ip, kind: u8| icmp_frame(ip, kind, 0, &[0, 1, 0, 2, 9, 9, 9, 9]);
    vec![
        dropped("TCP checksum", BadTransportChecksum, with(syn(), |frame| frame[50] ^= 1)),
        dropped("TCP header cut short", BadTransportChecksum, with_ip4(syn(), |ip| ip[3] = 39)),
        dropped("TCP data offset 4", BadTransportHeader, {
            let ip = Ip::v4(TCP);
            let mut segment = Tcp::new(SYN).segment(&ip);
            segment[12] = 0x40;
            segment[16..18].fill(0);
            let sum = ip.sum(&segment);
            segment[16..18].copy_from_slice(&sum);
            ip.frame(&segment)
        }),
        dropped(
            "TCP from port 0",
            PortZero,
            Tcp { ports: (0, 80), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)),
        ),
        dropped(
            "TCP to port 0",
            PortZero,
            Tcp { ports: (9, 0), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)),
        ),
        dropped("TCP option of length 0", BadTransportHeader, options(&[2, 0, 5, 0xb4])),
        dropped("TCP option beyond the header", BadTransportHeader, options(&[8, 200, 0, 0])),
        dropped("TCP option of a wrong length", BadTransportHeader, options(&[2, 3, 5, 0])),
        dropped("RST to nothing", NoFlow, tcp(RST)),
        dropped("RST and ACK to nothing", NoFlow, tcp(RST | ACK)),
        dropped("SYN and FIN", NoFlow, tcp(SYN | FIN)),
        dropped("SYN and RST", NoFlow, tcp(SYN | RST)),
        // RFC 9293 §3.10.7.1: the sequence number of a reset is the segment's acknowledgment.
        answered("ACK to nothing", Some(NoFlow), Answer::Reset(5000, None), tcp(ACK)),
        answered("SYN and ACK to nothing", Some(NoFlow), Answer::Reset(5000, None), tcp(SYN | ACK)),
        answered("FIN to nothing", Some(NoFlow), Answer::Reset(0, Some(1001)), tcp(FIN)),
        answered("no flags", Some(NoFlow), Answer::Reset(0, Some(1000)), tcp(0)),
        answered(
            "SYN to the gateway",
            None,
            Answer::Reset(0, Some(1001)),
            closed(SYN, Ip::v4(TCP).to(GATEWAY4)),
        ),
        answered(
            "SYN to IPv6's gateway",
            None,
            Answer::Reset(0, Some(1001)),
            closed(SYN, Ip::v6(TCP).to(GATEWAY6)),
        ),
        dropped(
            "UDP checksum",
            BadTransportChecksum,
            with(udp_frame(Ip::v4(UDP), 1, 2, b"x"), |f| f[42] ^= 1),
        ),
        dropped(
            "UDP over IPv6 without checksum",
            BadTransportChecksum,
            with(udp_frame(Ip::v6(UDP), 1, 2, b"x"), |f| f[60..62].fill(0)),
        ),
        dropped("UDP from port 0", PortZero, udp_frame(Ip::v4(UDP), 0, 2, b"x")),
        dropped("UDP to port 0", PortZero, udp_frame(Ip::v4(UDP), 2, 0, b"x")),
        dropped(
            "UDP length below the header",
            BadTransportHeader,
            with(udp_frame(Ip::v4(UDP), 1, 2, b""), |f| {
                f[39] = 7;
                f[40..42].fill(0);
            }),
        ),
        dropped(
            "UDP length below the header, with a checksum",
            BadTransportHeader,
            with(udp_frame(Ip::v6(UDP), 1, 2, b"x"), |f| f[59] = 7),
        ),
        dropped(
            "UDP length beyond the packet, with a checksum",
            BadTransportHeader,
            with(udp_frame(Ip::v6(UDP), 1, 2, b"x"), |f| f[59] = 10),
        ),
        dropped("UDP header cut short", BadTransportHeader, Ip::v4(UDP).frame(&[0, 1, 0, 2, 0, 8])),
        dropped(
            "UDP length beyond the packet",
            BadTransportHeader,
            with(udp_frame(Ip::v4(UDP), 1, 2, b""), |f| {
                f[39] = 99;
                f[40..42].fill(0);
            }),
        ),
        answered("UDP to the gateway", None, Answer::Icmp(3, 3), udp_frame(gateway, 9, 99, b"x")),
        answered(
            "UDP to IPv6's gateway",
            None,
            Answer::Icmp(1, 4),
            udp_frame(gateway6, 9, 99, b"x"),
        ),
        answered(
            "UDP to the DNS address, not port 53",
            None,
            Answer::Icmp(3, 3),
            udp_frame(dns, 9, 54, b"x"),
        ),
        dropped(
            "DHCP of garbage",
            BadService,
            udp_frame(
                Ip::between(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, UDP),
                68,
                67,
                &[0x5a; 300],
            ),
        ),
        dropped(
            "DHCP of nothing",
            BadService,
            udp_frame(Ip::between(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, UDP), 68, 67, b""),
        ),
        dropped(
            "DHCPv6 of garbage",
            BadService,
            udp_frame(
                Ip::v6(UDP).to("ff02::1:2".parse::<Ipv6Addr>().unwrap()),
                546,
                547,
                &[0x5a; 90],
            ),
        ),
        answered(
            "ping of the gateway",
            None,
            Answer::Icmp(0, 0),
            ping(Ip::v4(ICMP).to(GATEWAY4), 8),
        ),
        answered(
            "ping of IPv6's gateway",
            None,
            Answer::Icmp(129, 0),
            ping(Ip::v6(ICMPV6).to(GATEWAY6), 128),
        ),
        dropped("ICMP redirect", UnhandledIcmp, ping(Ip::v4(ICMP), 5)),
        dropped("ICMP of two bytes", BadTransportChecksum, Ip::v4(ICMP).frame(&[8, 0])),
        dropped(
            "an ICMP error about nothing",
            UnhandledIcmp,
            icmp_frame(Ip::v4(ICMP), 3, 4, &[0; 40]),
        ),
        dropped("a reply that nobody asked for", UnhandledIcmp, ping(Ip::v4(ICMP), 0)),
        dropped("ND from afar", BadService, neighbour_solicitation(64, &[])),
        dropped(
            "ND with an option of length 0",
            BadService,
            neighbour_solicitation(255, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        dropped(
            "ND with an option beyond its end",
            BadService,
            neighbour_solicitation(255, &[1, 9, 0, 0, 0, 0, 0, 0]),
        ),
        answered(
            "ND for the gateway",
            None,
            Answer::Icmp(136, 0),
            neighbour_solicitation(255, &[]),
        ),
        dropped("a router advertisement", Multicast, router_advertisement()),
    ]
}

fn neighbour_solicitation(hop_limit: u8, options: &[u8]) -> Vec<u8> {
    let ip = Ip { hop_limit, ..Ip::v6(ICMPV6).to(GATEWAY6) };
    icmp_frame(ip, 135, 0, &[&[0; 4][..], &GATEWAY6.octets(), options].concat())
}

fn router_advertisement() -> Vec<u8> {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let ip = Ip { hop_limit: 255, ..Ip::v6(ICMPV6).to(all_nodes) };
    icmp_frame(ip, 134, 0, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn check(case: &Case, vnet_header: bool) {
    let mut bench = Bench::new(vnet_header, small_limits());
    let answers = bench.feed(&case.frame);
    let expected: Vec<_> = case.reason.map(|reason| (reason, 1)).into_iter().collect();
    assert_eq!(bench.drops(), expected, "{}: reason", case.name);
    assert_eq!(classify(&answers), case.answer, "{}: answer", case.name);
    assert_eq!(bench.worker.flow_count(), 0, "{}: a flow was made", case.name);
}

#[test]
fn each_bad_frame_has_its_reason_and_its_answer() {
    for case in [link_cases(), ip_cases(), transport_cases()].into_iter().flatten() {
        check(&case, false);
        check(&case, true);
    }
}

#[test]
fn bad_virtio_headers_have_their_reason() {
    let header = |change: fn(&mut [u8; VNET_HEADER_LEN])| {
        let mut header = [0; VNET_HEADER_LEN];
        change(&mut header);
        [&header[..], &syn()].concat()
    };
    let cases = [
        ("no whole header", DropReason::Truncated, vec![0; 11]),
        ("nothing behind the header", DropReason::Truncated, vec![0; 12]),
        (
            "checksum beyond the frame",
            DropReason::BadOffload,
            header(|h| {
                h[0] = 1;
                h[6..8].copy_from_slice(&60u16.to_ne_bytes());
            }),
        ),
        (
            "checksum far beyond the frame",
            DropReason::BadOffload,
            header(|h| {
                h[0] = 1;
                h[6..10].fill(0xff);
            }),
        ),
        ("segments of no bytes", DropReason::BadOffload, header(|h| h[1] = 1)),
        ("UDP fragmentation offload", DropReason::BadOffload, header(|h| h[1] = 3)),
        ("unknown offload", DropReason::BadOffload, header(|h| h[1] = 0x77)),
    ];
    for (name, reason, bytes) in cases {
        let mut bench = Bench::new(true, small_limits());
        assert_eq!(classify(&bench.feed_raw(bytes)), Answer::Silence, "{name}");
        assert_eq!(bench.drops(), [(reason, 1)], "{name}");
    }
}
