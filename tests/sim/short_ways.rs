//! Clients of published ports who need no frame on the guest's link, and what becomes of them where
//! that does not come about.

use std::net::SocketAddr;

use nix::errno::Errno;
use tapway::base::Instant;
use tapway::engine::Published;
use tapway::gate::PublishPath;
use tapway::gate::forward::{ForwardId, Transport};
use tapway::observe::{FlowPath, FlowQuery};

use crate::bench::{Bench, small_limits};
use crate::frames::{SYN, TCP};
use crate::peer::{End, FROM_GUEST, Script, TO_GUEST};
use crate::rng::Rng;
use crate::streams::{for_seeds, random_script};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

/// The port of the client's stream, and the guest's.
const CLIENT: u16 = 7;
const TARGET: u16 = 80;

/// An engine that has published the guest's port, and the listener's name.
fn bench(path: PublishPath) -> (Bench, u64) {
    let mut bench = Bench::with_publish_path(path, small_limits());
    let (socket, listener) = bench.host.listener();
    let (forward, transport) = (ForwardId(1), Transport::Tcp);
    let rule = Published { forward, transport, guest_address: None, guest_port: TARGET };
    bench.worker.publish_stream(rule, socket).unwrap();
    let mut host = bench.host.0.borrow_mut();
    host.short_way = true;
    host.pipes = 2;
    drop(host);
    (bench, listener)
}

/// A server of the guest, for its sockets and not for its link.
fn serve(bench: &Bench, script: Script) {
    let salts = (TO_GUEST, FROM_GUEST);
    bench.host.0.borrow_mut().serve(TARGET, Script { salts, ..script });
}

fn come(bench: &Bench, listener: u64, address: &str, script: Script) {
    bench.host.0.borrow_mut().client(listener, address, CLIENT, script);
}

/// Who waits for the other's end, and sends nothing.
fn patient() -> Script {
    Script { waits_for_end: true, connect_delay: 0, ..Script::default() }
}

/// The paths of all flows.
fn paths(bench: &mut Bench) -> Vec<FlowPath> {
    let page = bench.worker.list_flows(Instant::from_nanos(bench.now), &FlowQuery::default());
    page.flows.iter().map(|flow| flow.path).collect()
}

/// The ports of clients whose SYN is among frames to the guest.
fn syns(frames: &[Vec<u8>]) -> Vec<u16> {
    let tcp = frames.iter().filter(|frame| frame[12..14] == [8, 0] && frame[23] == TCP);
    let syns = tcp.filter(|frame| frame[47] & SYN != 0);
    syns.map(|frame| u16::from_be_bytes([frame[34], frame[35]])).collect()
}

#[test]
fn only_those_who_are_to_go_the_short_way_do() {
    for (path, client, short) in [
        (PublishPath::Auto, "127.0.0.1:5000", true),
        (PublishPath::Auto, "192.0.2.7:5000", false),
        (PublishPath::Short, "192.0.2.7:5000", true),
        (PublishPath::Tap, "127.0.0.1:5000", false),
    ] {
        let (mut bench, listener) = bench(path);
        serve(&bench, patient());
        come(&bench, listener, client, patient());
        let frames = bench.pass(SECOND / 2);
        let (expected, by_link) = if short { (FlowPath::Spliced, 0) } else { (FlowPath::Tap, 1) };
        assert_eq!(paths(&mut bench), [expected], "{path:?} {client}");
        // Once, and again while nobody answers.
        assert_eq!(syns(&frames).len().min(1), by_link, "{path:?} {client}");
        let seen = if client.starts_with("127") { "10.0.2.2:5000" } else { client };
        let ends: [SocketAddr; 2] = [seen, "10.0.2.100:80"].map(|end| end.parse().unwrap());
        let told = bench.host.0.borrow().short_ways.clone();
        assert_eq!(told, vec![(ends[0], ends[1]); usize::from(short)]);
    }
}

#[test]
fn connections_on_the_short_way_are_complete_and_in_order_both_ways() {
    for_seeds(60, |seed| {
        let mut rng = Rng::new(seed ^ 0x5707);
        let (mut bench, listener) = bench(PublishPath::Short);
        bench.host.0.borrow_mut().pipes = rng.pick(&[0, 1, 2]);
        let mut script = |waits_for_end| Script {
            sends: rng.range(0, 300_000),
            waits_for_end,
            // At once, at the first attempt, or at the second.
            connect_delay: rng.pick(&[0, 3, 60]) * MILLI,
            ..random_script(&mut rng)
        };
        let (client, target) = (script(seed % 3 == 0), script(seed % 3 == 1));
        serve(&bench, Script { connect_error: None, ..target.clone() });
        come(&bench, listener, "192.0.2.7:5000", client.clone());
        for _ in 0..200 {
            bench.pass(SECOND);
            if bench.worker.flow_count() == 0 && bench.host.0.borrow().is_quiet() {
                break;
            }
        }
        let host = bench.host.0.borrow();
        for (port, expected) in [(CLIENT, target.sends), (TARGET, client.sends)] {
            // An attempt that came to nothing is none of the guest's.
            let seen = host.seen(port).pop().unwrap();
            assert_eq!((seen.received, seen.wrong_at), (expected, None), "at {port}");
            assert_eq!(seen.end, Some(End::Eof), "at {port}");
        }
        assert_eq!((host.open_sockets(), bench.worker.flow_count()), (0, 0));
    });
}

#[test]
fn who_is_refused_or_not_answered_goes_by_the_link() {
    let refused = Script { connect_error: Some((Errno::ECONNREFUSED, false)), ..patient() };
    let refused_late = Script { connect_delay: 5 * MILLI, ..refused.clone() };
    let silent = Script { connect_delay: 60 * SECOND, ..patient() };
    for (server, attempts) in [(refused, 1), (refused_late, 1), (silent, 2)] {
        let (mut bench, listener) = bench(PublishPath::Short);
        serve(&bench, server);
        come(&bench, listener, "192.0.2.7:5000", patient());
        let frames = bench.pass(SECOND / 2);
        assert_eq!(syns(&frames).first(), Some(&5000));
        assert_eq!(paths(&mut bench), [FlowPath::Tap]);
        assert_eq!(bench.host.0.borrow().short_ways.len(), attempts);
    }
}

#[test]
fn who_went_the_short_way_is_another_on_the_link_for_a_minute() {
    for (pause, known) in [(0, true), (50, true), (65, false)] {
        let (mut bench, listener) = bench(PublishPath::Short);
        serve(&bench, Script { connect_delay: 0, ..Script::default() });
        come(&bench, listener, "192.0.2.7:5000", patient());
        bench.pass(SECOND);
        assert_eq!((paths(&mut bench), bench.host.0.borrow().short_ways.len()), (vec![], 1));
        bench.pass(pause * SECOND);
        let refuses = Some((Errno::ECONNREFUSED, false));
        serve(&bench, Script { connect_error: refuses, connect_delay: 0, ..patient() });
        come(&bench, listener, "192.0.2.7:5000", patient());
        let frames = bench.pass(SECOND / 2);
        let port = *syns(&frames).first().expect("it goes by the link");
        assert_eq!(port != 5000, known, "after {pause} s: {port}");
    }
}

/// Under which port a client is seen that goes by the link after it went the short way, as did
/// those with the ports `others`.
fn second_port(others: &[u16]) -> u16 {
    let (mut bench, listener) = bench(PublishPath::Short);
    serve(&bench, Script { connect_delay: 0, ..Script::default() });
    for port in others.iter().chain(&[5000]) {
        come(&bench, listener, &format!("192.0.2.7:{port}"), patient());
        bench.pass(SECOND);
    }
    assert_eq!(bench.host.0.borrow().short_ways.len(), others.len() + 1);
    let refuses = Some((Errno::ECONNREFUSED, false));
    serve(&bench, Script { connect_error: refuses, connect_delay: 0, ..patient() });
    come(&bench, listener, "192.0.2.7:5000", patient());
    *syns(&bench.pass(SECOND / 2)).first().expect("it goes by the link")
}

#[test]
fn nobody_is_given_the_port_of_another_who_went_the_short_way() {
    let first = second_port(&[]);
    let second = second_port(&[first]);
    let third = second_port(&[first, second]);
    assert!(first != second && second != third && third != first, "{first} {second} {third}");
}

#[test]
fn where_there_is_no_short_way_nobody_waits_for_it() {
    let (mut bench, listener) = bench(PublishPath::Short);
    bench.host.0.borrow_mut().short_way = false;
    come(&bench, listener, "192.0.2.7:5000", patient());
    assert_eq!(syns(&bench.pass(0)), [5000]);
}
