//! Who goes which way to a published port, and who comes back by another.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use tapway::sys::clock;

use crate::instance::{Instance, echo};
use crate::lab::Lab;
use crate::short_way::{client_in, connect, inside, path_from};

/// Addresses of the host at which its own programs and those outside find the guest's echo.
const LOOPBACK: [&str; 2] = ["127.0.0.1:8007", "[::1]:8007"];
const NETWORK: [&str; 2] = ["192.0.2.1:8007", "[2001:db8::1]:8007"];

/// No client may wait for longer, whichever way it came before: whoever is not heard tries again
/// after a second (RFC 6298, 2.1).
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn those_on_the_host_itself_go_the_short_way_and_others_by_the_link() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["-p", "8007:7"]);
    let means = "ip rule; ip -6 rule; cat /proc/sys/net/ipv4/tcp_fwmark_accept";
    let before = inside(&guest, means);
    for target in NETWORK {
        assert_eq!(path_from(&lab, &lab.outside, &guest, target), "tap", "{target}");
    }
    // The guest has nothing of it before somebody goes there.
    assert_eq!(inside(&guest, means), before);
    for target in LOOPBACK.into_iter().chain(NETWORK) {
        assert_eq!(path_from(&lab, &lab.host, &guest, target), "spliced", "{target}");
    }
    assert_eq!(inside(&guest, means).matches("29815").count(), 2);
    for target in NETWORK {
        assert_eq!(path_from(&lab, &lab.outside, &guest, target), "tap", "{target}");
    }
}

#[test]
fn new_connections_are_not_marked_when_nobody_has_come_for_a_while() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["-p", "8007:7"]);
    const SWITCH: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
    let mut stream = client_in(&lab, &lab.host, "127.0.0.1:45690", LOOPBACK[0]);
    assert_eq!(inside(&guest, &format!("cat {SWITCH}")), "1\n");
    let off = format!("until grep -q 0 {SWITCH}; do sleep 0.2; done");
    inside(&guest, &format!("timeout 60 sh -c '{off}'"));
    // Those that are there go on, and who comes finds it on again.
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(path_from(&lab, &lab.host, &guest, LOOPBACK[0]), "spliced");
    assert_eq!(inside(&guest, &format!("cat {SWITCH}")), "1\n");
}

#[test]
fn what_is_to_be_captured_and_whoever_is_told_so_goes_by_the_link() {
    let lab = Lab::new();
    let file = lab.runtime().join("link.pcap");
    let file = file.to_str().unwrap();
    for options in [["--publish-path", "tap"], ["--pcap", file]] {
        let guest = echo(&lab, "web", &[&options[..], &["-p", "8007:7"]].concat());
        for target in LOOPBACK.into_iter().chain(NETWORK) {
            assert_eq!(path_from(&lab, &lab.host, &guest, target), "tap", "{options:?} {target}");
        }
        guest.stop();
    }
}

#[test]
fn ports_that_are_added_have_the_short_way_where_the_guest_has_it() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["-p", "8080:80"]);
    guest.ask(&lab, &["port", "add"], &["8007:7"]);
    assert_eq!(path_from(&lab, &lab.host, &guest, LOOPBACK[0]), "spliced");
    assert_eq!(path_from(&lab, &lab.outside, &guest, NETWORK[0]), "tap");
}

/// A client of the host with a port of its own comes to a teller, which is the first to close; the
/// port under which it is seen, and whether it was heard at once.
fn come(lab: &Lab, address: &str, port: u16, target: &str) -> (u16, bool) {
    let began = clock::now();
    let mut stream = client_in(lab, &lab.host, &format!("{address}:{port}"), target);
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    let took = clock::now() - began;
    let words: Vec<&str> = heard.split_whitespace().collect();
    let ["80", seen, port] = words[..] else { panic!("heard {heard:?}") };
    assert_eq!(seen, address);
    (port.parse().unwrap(), took < AT_ONCE)
}

/// A guest, and the two targets at which the host's own address goes the short way and by the link:
/// whoever has another address than the one that it speaks to is not taken for the host itself.
fn two_ways(lab: &Lab) -> (Instance, [&'static str; 2]) {
    lab.sh_in(&lab.host, "ip address add 198.51.100.1/32 dev lo");
    let guest = lab.start_teller("web", &["-p", "8080:80"], "tcp:80");
    (guest, ["192.0.2.1:8080", "198.51.100.1:8080"])
}

#[test]
fn a_client_that_comes_back_from_its_port_is_heard_at_once_whichever_way_it_came() {
    let lab = Lab::new();
    let (_guest, ways) = two_ways(&lab);
    let mut late = 0;
    for port in 45_700..45_704 {
        let mut went_short = 0;
        for turn in 0..32 {
            // Any order in which ways follow themselves and each other, another for each port.
            let link = 0x9e37_79b9_u32.rotate_left(port.into()) >> turn & 1 == 1;
            let (seen, at_once) = come(&lab, "192.0.2.1", port, ways[usize::from(link)]);
            late += u32::from(!at_once);
            // What the short way leaves in the guest must not be met by the link.
            let met = link && went_short > 0 && seen == port;
            assert!(!met, "{port} turn {turn}");
            // While we have its connection by the link, it goes there again, as another.
            went_short += usize::from(!link && seen == port);
        }
        assert!(went_short >= 8, "{port}: {went_short} times");
    }
    // One in 5,000 to 40,000 that come back within microseconds is heard a second late, by the link
    // alone as well. Not explained: in one capture the guest does not answer the SYN, in another its
    // SYN-ACK has no effect.
    assert!(late <= 3, "{late} were heard late");
}

#[test]
fn a_client_that_came_by_the_link_is_heard_at_once_on_the_short_way() {
    let lab = Lab::new();
    let (mut guest, [short, link]) = two_ways(&lab);
    for port in 45_800..45_840 {
        assert_eq!(come(&lab, "192.0.2.1", port, link).0, port, "by the link");
        // Once we have forgotten it; the guest has not.
        guest.wait_until_idle(&lab);
        assert_eq!(come(&lab, "192.0.2.1", port, short), (port, true), "the short way");
    }
}

#[test]
fn clients_that_close_first_come_back_by_either_way() {
    let lab = Lab::new();
    lab.sh_in(&lab.host, "ip address add 198.51.100.1/32 dev lo");
    let _guest = echo(&lab, "web", &["-p", "8007:7"]);
    for turn in 0..20 {
        let target = ["192.0.2.1:8007", "198.51.100.1:8007"][usize::from(turn % 3 == 1)];
        let began = clock::now();
        let mut stream = client_in(&lab, &lab.host, "192.0.2.1:45850", target);
        stream.write_all(b"once more").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "once more");
        let took = clock::now() - began;
        assert!(took < AT_ONCE, "turn {turn}: {took:?}");
    }
}

#[test]
fn thousands_in_a_minute_are_all_served_and_the_last_by_the_link() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["-p", "8007:7"]);
    let began = clock::now();
    lab.within(&lab.host, || {
        for port in 20_000..24_200 {
            let mut stream = connect(&format!("127.0.0.1:{port}"), LOOPBACK[0]);
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    });
    // Those of the beginning are known for a minute.
    if clock::now() - began < Duration::from_secs(50) {
        assert_eq!(path_from(&lab, &lab.host, &guest, LOOPBACK[0]), "tap");
    }
}
