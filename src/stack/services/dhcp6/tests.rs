//! Messages as RFC 8415 §8 and §21 lay them out, octet by octet.

use std::slice::from_ref;

use proptest::prelude::*;

use super::super::fixture::{GATEWAY_MAC, GUEST_MAC, plan};
use super::*;

const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1b, 0x2cff, 0xfe3d, 0x4e5f);
const CLIENT_DUID: [u8; 10] = [0, 3, 0, 1, 0x02, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f];
const SERVER_DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 0x100);
const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 3);
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);

fn option(code: u8, data: &[u8]) -> Vec<u8> {
    [&[0, code][..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// The option that names the client, and the one that names us.
fn client_id() -> Vec<u8> {
    option(1, &CLIENT_DUID)
}

fn server_id() -> Vec<u8> {
    option(2, &SERVER_DUID)
}

/// An IA_NA of identifier `id` with `addresses`.
fn ia_na(id: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
    for address in addresses {
        data.extend(option(5, &[&address.octets()[..], &[0; 8]].concat()));
    }
    option(3, &data)
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    [&[kind, 0xa1, 0xb2, 0xc3][..], &options.concat()].concat()
}

fn ask(client: Mac, message: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
    let (plan, search) = (plan(), ["corp.example".to_owned()]);
    let v6 = plan.v6.unwrap();
    Server { plan: &plan, v6: &v6, search: &search }.answer(client, CLIENT, message)
}

/// What the guest's own interface is told: the UDP payload, behind headers of 14, 40 and 8 octets.
fn told(message: &[u8]) -> Vec<u8> {
    ask(GUEST_MAC, message).unwrap().expect("an answer")[62..].to_vec()
}

/// A lease of a day for `address`, or its end.
fn lease(address: Ipv6Addr, lasts: bool) -> Vec<u8> {
    let day = if lasts { [0, 1, 0x51, 0x80] } else { [0; 4] };
    option(5, &[&address.octets()[..], &day, &day].concat())
}

/// An IA_NA of ours: T1 after half a day, T2 after 19.2 hours.
fn granted(id: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let head = [0, 0, 0, id, 0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0x00];
    option(3, &[&head[..], &options.concat()].concat())
}

fn parameters() -> Vec<u8> {
    [option(23, &RESOLVER.octets()), option(24, b"\x04corp\x07example\x00")].concat()
}

#[test]
fn a_solicitation_is_answered_with_the_guests_address() {
    let elapsed = option(8, &[0, 0]);
    let offer = told(&message(1, &[client_id(), elapsed, ia_na(7, &[])]));
    let expected = [server_id(), client_id(), option(7, &[255]), granted(7, &[lease(GUEST, true)])];
    assert_eq!(offer, [message(2, &expected), parameters()].concat());
    // RFC 8415 §18.3.1: with rapid commit the address is the client's at once.
    let reply = told(&message(1, &[client_id(), option(14, &[]), ia_na(7, &[])]));
    let expected = [server_id(), client_id(), option(14, &[]), granted(7, &[lease(GUEST, true)])];
    assert_eq!(reply, [message(7, &expected), parameters()].concat());
}

#[test]
fn the_answer_comes_from_the_gateway_to_the_clients_port() {
    let frame = ask(GUEST_MAC, &message(11, &[])).unwrap().unwrap();
    assert_eq!(frame[..14], [&GUEST_MAC.0[..], &GATEWAY_MAC.0, &[0x86, 0xdd]].concat());
    let gateway: Ipv6Addr = "fe80::2".parse().unwrap();
    assert_eq!(frame[22..54], [gateway.octets(), CLIENT.octets()].concat());
    assert_eq!(frame[54..58], [0x02, 0x23, 0x02, 0x22], "547 to 546");
}

#[test]
fn another_client_gets_an_address_that_holds_its_mac() {
    let other = Mac([0x06, 0x10, 0x20, 0x30, 0x40, 0x50]);
    let request = message(3, &[client_id(), server_id(), ia_na(1, &[])]);
    let reply = ask(other, &request).unwrap().unwrap()[62..].to_vec();
    let address = "fd74:6170:7761:79:d6:610:2030:4050".parse().unwrap();
    let expected = [server_id(), client_id(), granted(1, &[lease(address, true)])];
    assert_eq!(reply, [message(7, &expected), parameters()].concat());
}

#[test]
fn what_a_client_must_give_up_has_no_lifetime() {
    for (kind, named) in [(3, true), (5, true), (6, false)] {
        let mut options = vec![client_id(), ia_na(9, &[ELSEWHERE, GUEST])];
        options.extend(named.then(server_id));
        let association = granted(9, &[lease(GUEST, true), lease(ELSEWHERE, false)]);
        let expected = message(7, &[server_id(), client_id(), association]);
        assert_eq!(told(&message(kind, &options)), [expected, parameters()].concat(), "{kind}");
    }
}

#[test]
fn there_is_one_address_and_no_prefix() {
    let prefix = option(25, &[&[0, 0, 0, 3][..], &[0x55; 8]].concat());
    let reply = told(&message(6, &[client_id(), ia_na(1, &[]), ia_na(2, &[]), prefix]));
    let none = granted(2, &[option(13, &[0, 2])]);
    let no_prefix = [&[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0][..], &option(13, &[0, 6])].concat();
    let expected = [
        server_id(),
        client_id(),
        granted(1, &[lease(GUEST, true)]),
        none,
        option(25, &no_prefix),
        parameters(),
    ];
    assert_eq!(reply, message(7, &expected));
}

#[test]
fn a_client_that_comes_back_is_told_whether_its_addresses_belong_here() {
    let neighbour = "fd74:6170:7761:79::5678".parse().unwrap();
    for (addresses, status) in
        [(&[GUEST, neighbour][..], [0, 0]), (&[GUEST, ELSEWHERE], [0, 4]), (&[ELSEWHERE], [0, 4])]
    {
        let reply = told(&message(4, &[client_id(), ia_na(1, addresses)]));
        assert_eq!(reply, message(7, &[server_id(), client_id(), option(13, &status)]));
    }
    assert_eq!(ask(GUEST_MAC, &message(4, &[client_id(), ia_na(1, &[])])), Ok(None));
}

#[test]
fn giving_an_address_back_is_a_success() {
    for kind in [8, 9] {
        let reply = told(&message(kind, &[client_id(), server_id(), ia_na(1, &[GUEST])]));
        assert_eq!(reply, message(7, &[server_id(), client_id(), option(13, &[0, 0])]), "{kind}");
    }
}

#[test]
fn who_wants_no_address_gets_resolver_and_domains() {
    assert_eq!(told(&message(11, &[])), [message(7, &[server_id()]), parameters()].concat());
    let named = told(&message(11, &[client_id(), server_id()]));
    assert_eq!(named, [message(7, &[server_id(), client_id()]), parameters()].concat());
}

#[test]
fn messages_for_another_server_are_not_ours() {
    let other = option(2, &[0, 3, 0, 1, 2, 2, 2, 2, 2, 2]);
    for kind in [3, 5, 8, 11] {
        let message = message(kind, &[client_id(), other.clone()]);
        assert_eq!(ask(GUEST_MAC, &message), Ok(None), "{kind}");
    }
}

#[test]
fn what_is_no_clients_message_is_not_answered() {
    let (client, server, ia) = (client_id(), server_id(), ia_na(1, &[GUEST]));
    let long = option(200, &[0; 1500]);
    let bad = [
        vec![],
        vec![1, 2, 3],
        // What is missing, and what does not belong there (RFC 8415 §16).
        message(1, from_ref(&ia)),
        message(1, &[client.clone(), server.clone()]),
        message(3, &[client.clone(), ia.clone()]),
        message(5, &[server.clone(), ia.clone()]),
        message(11, from_ref(&ia)),
        message(11, &[option(25, &[0; 12])]),
        // Servers' and relays' messages, and none at all.
        message(2, &[client.clone(), server.clone()]),
        message(7, &[client.clone(), server.clone()]),
        message(12, from_ref(&client)),
        message(0, from_ref(&client)),
        // Lengths that are not true, or not possible.
        message(1, &[client.clone(), vec![0, 3, 0, 200]]),
        message(1, &[client.clone(), vec![0, 3, 0]]),
        message(1, &[client.clone(), option(3, &[0; 11])]),
        message(1, &[client.clone(), option(3, &[&[0; 12][..], &option(5, &[0; 23])].concat())]),
        message(1, &[client.clone(), option(3, &[&[0; 12][..], &[0, 5, 0, 24]].concat())]),
        message(1, &[client.clone(), option(25, &[0; 11])]),
        message(1, &[client.clone(), option(14, &[0])]),
        message(1, &[option(1, &[0, 3])]),
        message(1, &[option(1, &[0; 131])]),
        message(1, &[client, long]),
    ];
    for message in &bad {
        assert_eq!(ask(GUEST_MAC, message), Err(DropReason::BadService), "{message:02x?}");
    }
    let (plan, good) = (plan(), message(11, &[]));
    let v6 = plan.v6.unwrap();
    let server = Server { plan: &plan, v6: &v6, search: &[] };
    assert_eq!(server.answer(GUEST_MAC, GUEST, &good), Err(DropReason::BadService));
    assert_eq!(server.answer(Mac::BROADCAST, CLIENT, &good), Err(DropReason::BadService));
}

#[test]
fn who_asks_for_more_than_anybody_needs_gets_an_answer_of_bounded_size() {
    let stale: Vec<Ipv6Addr> = (0..8).map(|n| Ipv6Addr::from(u128::from(ELSEWHERE) + n)).collect();
    let long_duid = option(1, &[7; 130]);
    let mut options = vec![long_duid];
    options.extend((0..6).map(|id| ia_na(id, &stale[..if id == 0 { 8 } else { 0 }])));
    options.extend((0..6).map(|id| option(25, &[id; 12])));
    let reply = told(&message(6, &options));
    let count = |code: u8| {
        let all = Options(&reply[4..]).map(|option| option.unwrap().0);
        all.filter(|&found| found == u16::from(code)).count()
    };
    assert_eq!((count(3), count(25)), (MAX_ITEMS, MAX_ITEMS));
    assert!(reply.len() + 48 <= 1280, "{}", reply.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_octets_make_it_panic_or_say_too_much(
        kind in 0u8..14,
        options in proptest::collection::vec(
            (
                prop_oneof![4 => 1u8..6, 2 => Just(25u8), 1 => any::<u8>()],
                proptest::collection::vec(any::<u8>(), 0..150),
            ),
            0..12,
        ),
        named in any::<bool>(),
        tail in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut all = vec![client_id()];
        all.extend(named.then(server_id));
        all.extend(options.iter().map(|(code, data)| option(*code, data)));
        all.push(tail);
        if let Ok(Some(frame)) = ask(GUEST_MAC, &message(kind, &all)) {
            prop_assert!(frame.len() <= 14 + 1280);
        }
    }
}
