//! Frames in, frames out: who is answered, with what, and when.

use super::fixture::{GATEWAY_MAC, GUEST_MAC, plan};
use super::*;
use crate::stack::wire::formats::{
    EthernetAddress, Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, NdiscNeighborFlags,
    NdiscRepr,
};
use crate::stack::wire::{IpHeader, packet, protocol};

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 0x100);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = ndp::ALL_NODES;

fn services() -> Services {
    Services::new(plan(), Instant::ZERO)
}

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

/// An ARP request (RFC 826) of the guest's MAC.
fn who_has(wanted: Ipv4Addr, sender: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(GUEST_MAC.0);
    arp.extend(sender.octets());
    arp.extend([0; 6]);
    arp.extend(wanted.octets());
    arp
}

/// What the guest is told upon an ARP packet.
fn arp(services: &mut Services, message: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut out = vec![];
    services.on_arp(Instant::ZERO, GUEST_MAC, message, &mut out).map(|()| out)
}

#[test]
fn our_addresses_are_told_by_arp_and_no_others() {
    let mut services = services();
    for ours in [GATEWAY4, Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(10, 0, 2, 9)] {
        let told = arp(&mut services, &who_has(ours, GUEST4)).unwrap();
        let mut expected = [&GUEST_MAC.0[..], &GATEWAY_MAC.0, &[8, 6]].concat();
        expected.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend([&GATEWAY_MAC.0[..], &ours.octets(), &GUEST_MAC.0].concat());
        expected.extend(GUEST4.octets());
        assert_eq!(told, [expected], "{ours}");
    }
    let other = who_has(Ipv4Addr::new(10, 0, 2, 77), GUEST4);
    assert_eq!(arp(&mut services, &other), Err(DropReason::ArpNotOurs));
    // Padding of the link is no part of it; half of it is none.
    let mut padded = who_has(GATEWAY4, GUEST4);
    padded.resize(46, 0);
    assert_eq!(arp(&mut services, &padded).unwrap().len(), 1);
    assert_eq!(arp(&mut services, &padded[..27]), Err(DropReason::BadArp));
}

#[test]
fn probes_for_our_addresses_are_answered_and_claims_refused() {
    let mut services = services();
    let probe = |wanted| who_has(wanted, Ipv4Addr::UNSPECIFIED);
    assert_eq!(arp(&mut services, &probe(GATEWAY4)).unwrap().len(), 1);
    assert_eq!(arp(&mut services, &probe(GUEST4)).unwrap(), [[0; 0]; 0]);
    // An announcement is news of the guest: here of one that a bridge brings.
    let further = Ipv4Addr::new(10, 0, 2, 40);
    assert_eq!(arp(&mut services, &who_has(further, further)).unwrap(), [[0; 0]; 0]);
    assert_eq!(services.mac_of(further.into()), Some(GUEST_MAC));
    let claim = who_has(GATEWAY4, GATEWAY4);
    assert_eq!(arp(&mut services, &claim), Err(DropReason::ForgedSource));
    assert_eq!(services.mac_of(GATEWAY4.into()), None);
}

/// A message of neighbour discovery, and what the guest is told.
fn ndp(
    services: &mut Services,
    now: Instant,
    [source, target]: [Ipv6Addr; 2],
    hop_limit: u8,
    message: &NdiscRepr<'_>,
) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut icmp = vec![0; message.buffer_len()];
    let mut view = Icmpv6Packet::new_unchecked(&mut icmp[..]);
    message.emit(&mut view);
    view.fill_checksum(&source, &target);
    let mut out = vec![];
    services.on_ndp(now, GUEST_MAC, source, target, hop_limit, &icmp, &mut out).map(|()| out)
}

fn mac(mac: Mac) -> Option<crate::stack::wire::formats::RawHardwareAddress> {
    Some(EthernetAddress(mac.0).into())
}

/// Source, target and protocol of a packet, and its payload.
fn received(packet: &[u8]) -> ((IpAddr, IpAddr, u8), &[u8]) {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum());
        let ends = (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header().into());
        return (ends, ip.payload());
    }
    let ip = Ipv6Packet::new_checked(packet).unwrap();
    let ends = (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header().into());
    (ends, ip.payload())
}

/// Where a frame goes, and what of neighbour discovery is in it; its sums are right.
fn heard(frame: &[u8]) -> (Mac, Ipv6Addr, NdiscRepr<'_>) {
    let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
    let (source, target) = (packet.src_addr(), packet.dst_addr());
    assert_eq!(packet.hop_limit(), 255, "RFC 4861 has it so");
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    assert!(icmp.verify_checksum(&source, &target));
    (Mac(frame[..6].try_into().unwrap()), target, NdiscRepr::parse(&icmp).unwrap())
}

#[test]
fn our_addresses_are_told_by_neighbour_discovery() {
    let mut services = services();
    let solicit = |wanted, lladdr| NdiscRepr::NeighborSolicit { target_addr: wanted, lladdr };
    let solicited = |wanted: Ipv6Addr| {
        let mut octets = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
        octets[13..].copy_from_slice(&wanted.octets()[13..]);
        Ipv6Addr::from(octets)
    };
    for ours in [GATEWAY6, ROUTER] {
        let path = [GUEST6, solicited(ours)];
        let question = solicit(ours, mac(GUEST_MAC));
        let told = ndp(&mut services, at(0), path, 255, &question).unwrap();
        let (to, target, advert) = heard(&told[0]);
        assert_eq!((to, target, told.len()), (GUEST_MAC, GUEST6, 1));
        let flags = NdiscNeighborFlags::ROUTER
            | NdiscNeighborFlags::OVERRIDE
            | NdiscNeighborFlags::SOLICITED;
        let lladdr = mac(GATEWAY_MAC);
        assert_eq!(advert, NdiscRepr::NeighborAdvert { flags, target_addr: ours, lladdr });

        // Whoever tries the address for itself is told with everybody.
        let path = [Ipv6Addr::UNSPECIFIED, solicited(ours)];
        let told = ndp(&mut services, at(0), path, 255, &solicit(ours, None)).unwrap();
        let (to, target, _) = heard(&told[0]);
        assert_eq!((to, target), (ndp::ALL_NODES_MAC, ALL_NODES));
    }
    let path = [GUEST6, solicited(GUEST6)];
    let other = solicit("fd74:6170:7761:79::77".parse().unwrap(), mac(GUEST_MAC));
    assert_eq!(ndp(&mut services, at(0), path, 255, &other).unwrap(), [[0; 0]; 0]);
    // What has crossed a router is not from this link.
    let question = solicit(GATEWAY6, mac(GUEST_MAC));
    let far = ndp(&mut services, at(0), path, 254, &question);
    assert_eq!(far, Err(DropReason::BadService));
    let forged = ndp(&mut services, at(0), [GATEWAY6, path[1]], 255, &question);
    assert_eq!(forged, Err(DropReason::ForgedSource));
}

#[test]
fn routers_are_advertised_at_first_upon_request_and_every_ten_minutes() {
    let mut services = services();
    let due = |services: &mut Services, now: Instant| {
        let mut out = vec![];
        services.on_deadline(now, &mut out);
        out
    };
    assert_eq!(services.next_deadline(), Some(at(0)));
    let first = due(&mut services, at(0));
    let (to, target, advert) = heard(&first[0]);
    assert_eq!((to, target, first.len()), (ndp::ALL_NODES_MAC, ALL_NODES, 1));
    let NdiscRepr::RouterAdvert { mtu, prefix_info: Some(prefix), .. } = advert else {
        panic!("{advert:?}")
    };
    assert_eq!((mtu, prefix.prefix_len), (Some(1400), 64));
    assert_eq!(prefix.prefix, Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 0));
    assert_eq!(services.next_deadline(), Some(at(600)));

    // One who says who it is gets its own at once; of others all hear, at most every three seconds.
    let solicit = |lladdr| NdiscRepr::RouterSolicit { lladdr };
    let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let path = [GUEST6, all_routers];
    let told = ndp(&mut services, at(1), path, 255, &solicit(mac(GUEST_MAC))).unwrap();
    assert_eq!(heard(&told[0]).1, GUEST6);
    let path = [Ipv6Addr::UNSPECIFIED, all_routers];
    for _ in 0..5 {
        let told = ndp(&mut services, at(1), path, 255, &solicit(None)).unwrap();
        assert_eq!((told.len(), services.next_deadline()), (0, Some(at(3))));
    }
    assert_eq!(due(&mut services, at(2)).len(), 0);
    assert_eq!(due(&mut services, at(3)).len(), 1);
    assert_eq!(services.next_deadline(), Some(at(603)));
}

#[test]
fn search_domains_that_are_gone_are_withdrawn_once() {
    /// Type and length of an option with one short name (RFC 8106 §5.2), and two reserved octets.
    const DNSSL: [u8; 4] = [31, 3, 0, 0];
    let mut services = services();
    let lifetimes = |services: &mut Services, now: Instant| -> Vec<(u32, Vec<u8>)> {
        let mut out = vec![];
        services.on_deadline(now, &mut out);
        let frame = out.remove(0);
        let at = frame.windows(4).enumerate().filter(|(_, window)| *window == DNSSL);
        at.map(|(at, _)| {
            let (seconds, names) = frame[at + 4..at + 24].split_first_chunk::<4>().unwrap();
            let name = names.iter().copied().take_while(|byte| *byte != 0).collect();
            (u32::from_be_bytes(*seconds), name)
        })
        .collect()
    };
    let (old, new) = (b"\x04corp\x07example".to_vec(), b"\x04labs\x07example".to_vec());
    assert_eq!(lifetimes(&mut services, at(0)), [(9000, old.clone())]);
    services.set_search(at(10), vec!["labs.example".to_owned()]);
    assert_eq!(services.next_deadline(), Some(at(10)));
    assert_eq!(lifetimes(&mut services, at(10)), [(9000, new.clone()), (0, old)]);
    assert_eq!(lifetimes(&mut services, at(610)), [(9000, new)]);
}

#[test]
fn echo_requests_to_us_return_as_replies() {
    let services = services();
    let data = b"\x12\x34\x00\x01some data that comes back";
    for (guest, ours, number, kinds) in [
        (IpAddr::from(GUEST4), IpAddr::from(GATEWAY4), protocol::ICMP, [8, 0]),
        (GUEST6.into(), GATEWAY6.into(), protocol::ICMPV6, [128, 129]),
    ] {
        let request = |target: IpAddr, kind: u8| {
            let header =
                IpHeader { source: guest, target, protocol: number, tos: 0, hop_limit: 64 };
            let mut icmp = [&[kind, 0, 0, 0], &data[..]].concat();
            match (guest, target) {
                (IpAddr::V6(source), IpAddr::V6(target)) => {
                    Icmpv6Packet::new_unchecked(&mut icmp[..]).fill_checksum(&source, &target);
                }
                _ => Icmpv4Packet::new_unchecked(&mut icmp[..]).fill_checksum(),
            }
            packet(&header, &icmp, icmp.len()).unwrap()
        };
        let reply = services.on_echo(&request(ours, kinds[0])).unwrap();
        let (ends, payload) = received(&reply);
        assert_eq!(ends, (ours, guest, number));
        assert_eq!((payload[0], &payload[4..]), (kinds[1], &data[..]));
        let sum_is_right = match (ours, guest) {
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                Icmpv6Packet::new_unchecked(payload).verify_checksum(&source, &target)
            }
            _ => Icmpv4Packet::new_unchecked(payload).verify_checksum(),
        };
        assert!(sum_is_right, "{reply:?}");
        // Neither somebody else's, nor a reply, nor what arrives damaged.
        let not_ours = services.on_echo(&request(guest, kinds[0]));
        assert_eq!(not_ours, Err(DropReason::UnhandledIcmp));
        let unasked = services.on_echo(&request(ours, kinds[1]));
        assert_eq!(unasked, Err(DropReason::UnhandledIcmp));
        let mut damaged = request(ours, kinds[0]);
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(services.on_echo(&damaged), Err(DropReason::BadTransportChecksum));
    }
}
