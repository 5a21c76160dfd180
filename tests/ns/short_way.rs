//! The short way of published ports: the guest's server sees the client as it does by the link, and
//! whatever the guest does to its own namespace, clients are served.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tapway::sys::clock;

use crate::instance::{Instance, PATIENCE, echo};
use crate::lab::Lab;

/// A client of the outside, with a port of its own.
fn client(lab: &Lab, own: &str, target: &str) -> TcpStream {
    client_in(lab, &lab.outside, own, target)
}

/// A client of `namespace`, with a port of its own.
pub(crate) fn client_in(lab: &Lab, namespace: &str, own: &str, target: &str) -> TcpStream {
    lab.within(namespace, || connect(own, target))
}

/// Connects to `target` from a port that may have been in use.
pub(crate) fn connect(own: &str, target: &str) -> TcpStream {
    let [own, target]: [SocketAddr; 2] = [own, target].map(|text| text.parse().unwrap());
    let began = clock::now();
    loop {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&own.into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        match socket.connect(&target.into()) {
            // The last acknowledgement of the one before is on its way.
            Err(e)
                if e.kind() == ErrorKind::AddrNotAvailable && clock::now() - began < PATIENCE =>
            {
                std::thread::yield_now();
            }
            result => break result.map(|()| socket.into()).unwrap(),
        }
    }
}

/// What such a client hears until the other side closes.
fn hear(lab: &Lab, own: &str, target: &str) -> String {
    let mut text = String::new();
    client(lab, own, target).read_to_string(&mut text).unwrap();
    text
}

/// The path of the one flow with this client.
fn path_of(lab: &Lab, instance: &Instance, client: &TcpStream) -> String {
    let own = client.local_addr().unwrap().to_string();
    let flows = instance.ask_json(lab, &["flows"], &[]);
    let of_client = |flow: &&Value| flow["host_peer"] == *own && flow["direction"] == "inbound";
    let found: Vec<_> = flows.iter().filter(of_client).collect();
    let [flow] = found[..] else { panic!("not one flow of {own}: {flows:?}") };
    flow["path"].as_str().unwrap().to_owned()
}

/// As [`path_from`], for a client of the outside.
fn path(lab: &Lab, instance: &Instance, target: &str) -> String {
    path_from(lab, &lab.outside, instance, target)
}

/// Connects from `namespace` to the guest's echo server at `target`, says something, and gives the
/// flow's path.
pub(crate) fn path_from(lab: &Lab, namespace: &str, instance: &Instance, target: &str) -> String {
    let target: SocketAddr = target.parse().unwrap();
    let mut stream = lab.within(namespace, || TcpStream::connect(target)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    path_of(lab, instance, &stream)
}

/// Runs a script in the guest that has to succeed.
pub(crate) fn inside(instance: &Instance, script: &str) -> String {
    let ran = instance.inside(script);
    assert_eq!(ran.status, Some(0), "{script}: {ran:?}");
    ran.stdout
}

const V4: &str = "192.0.2.1:8007";
const V6: &str = "[2001:db8::1]:8007";

#[test]
fn both_ways_show_the_guest_the_same_client() {
    let lab = Lab::new();
    for (name, way) in [("short", "short"), ("link", "tap")] {
        let options = ["-p", "8080:80", "--publish-path", way];
        let guest = lab.start_teller(name, &options, "tcp:80");
        for (own, target, seen) in [
            ("192.0.2.2:45678", "192.0.2.1:8080", "80 192.0.2.2 45678\n"),
            ("[2001:db8::2]:45679", "[2001:db8::1]:8080", "80 2001:db8::2 45679\n"),
        ] {
            // Again at once, which by the link takes another port: the last one is in TIME-WAIT.
            for _ in 0..if way == "short" { 3 } else { 1 } {
                assert_eq!(hear(&lab, own, target), seen, "{way}");
            }
        }
        // Those on the host as itself, or as the gateway where the guest could not answer.
        for (own, target, seen) in [
            ("127.0.0.1:45684", "127.0.0.1:8080", "80 10.0.2.2 45684\n"),
            ("[::1]:45685", "[::1]:8080", "80 fd74:6170:7761:79::2 45685\n"),
            ("192.0.2.1:45686", "192.0.2.1:8080", "80 192.0.2.1 45686\n"),
        ] {
            let mut heard = String::new();
            client_in(&lab, &lab.host, own, target).read_to_string(&mut heard).unwrap();
            assert_eq!(heard, seen, "{way}");
        }
        guest.stop();
    }
}

#[test]
fn flows_show_which_way_they_took_and_the_guest_has_nothing_in_its_main_table() {
    let lab = Lab::new();
    let short = echo(&lab, "short", &["--publish-path", "short", "-p", "8007:7"]);
    for target in [V4, V6] {
        assert_eq!(path(&lab, &short, target), "spliced");
    }
    for family in ["-4", "-6"] {
        let rules = inside(&short, &format!("ip {family} rule; ip {family} route"));
        assert_eq!(rules.matches("29815").count(), 1, "{rules}");
    }
    short.stop();
    let link = echo(&lab, "link", &["-p", "8007:7", "--publish-path", "tap"]);
    for target in [V4, V6] {
        assert_eq!(path(&lab, &link, target), "tap");
    }
    assert!(!inside(&link, "ip rule").contains("29815"));
}

#[test]
fn a_guest_that_takes_the_means_away_is_served_by_its_link() {
    let lab = Lab::new();
    for (name, script) in [
        ("rule", "ip rule del pref 2981; ip -6 rule del pref 2981"),
        ("table", "ip route flush table 29815; ip -6 route flush table 29815"),
        ("switch", "echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept"),
    ] {
        let mut guest = echo(&lab, name, &["--publish-path", "short", "-p", "8007:7"]);
        assert_eq!(path(&lab, &guest, V4), "spliced", "{name}");
        inside(&guest, script);
        // The switch is set again when it is looked at next; rules stay as the guest has them.
        for target in [V4, V6] {
            let way = path(&lab, &guest, target);
            assert!(way == "tap" || name == "switch", "{name} {target}: {way}");
        }
        guest.wait_until_open(&lab, V4);
        guest.stop();
    }
}

#[test]
fn a_connection_that_loses_its_way_home_hurts_nobody_else() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["--publish-path", "short", "-p", "8007:7"]);
    let mut stranded = lab.within(&lab.outside, || TcpStream::connect(V4)).unwrap();
    stranded.write_all(b"x").unwrap();
    stranded.read_exact(&mut [0]).unwrap();
    inside(&guest, "ip rule del pref 2981");
    stranded.write_all(b"y").unwrap();
    for _ in 0..3 {
        assert_eq!(path(&lab, &guest, V4), "tap");
    }
}

#[test]
fn a_guest_that_filters_packets_is_served_by_its_link_while_it_does() {
    let lab = Lab::new();
    let mut guest = echo(&lab, "web", &["--publish-path", "short", "-p", "8007:7"]);
    assert_eq!(path(&lab, &guest, V4), "spliced");
    let switch = "cat /proc/sys/net/ipv4/tcp_fwmark_accept";
    assert_eq!(inside(&guest, switch), "1\n");
    // A firewall that trusts its loopback, as they do, and one port of the other interface.
    inside(
        &guest,
        "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop;
         iif lo accept; meta l4proto { icmp, ipv6-icmp } accept; tcp dport 7 counter accept; }; }'",
    );
    let on_link = |guest: &mut Instance, way: &str| {
        let reached = || path(&lab, guest, V4) == way;
        let deadline = clock::now() + Duration::from_secs(20);
        let mut reached_at_last = reached();
        while !reached_at_last && clock::now() < deadline {
            reached_at_last = reached();
        }
        assert!(reached_at_last, "not {way}");
    };
    on_link(&mut guest, "tap");
    assert_eq!(inside(&guest, switch), "0\n");
    let counted = inside(&guest, "nft list ruleset");
    assert!(!counted.contains("packets 0 bytes 0 accept"), "{counted}");
    inside(&guest, "nft flush ruleset");
    on_link(&mut guest, "spliced");
}

#[test]
fn a_port_that_the_guest_itself_passes_on_leads_where_it_did() {
    let lab = Lab::new();
    // Nobody listens at 81; the guest's rules lead it to a server in a namespace behind it, which
    // sees the client's own address.
    let behind = lab.write("teller.py", crate::instance::TELLER);
    let script = format!(
        "sysctl -qw net.ipv4.ip_forward=1
        unshare -n sleep 1000 & inner=$!
        while [ /proc/$inner/ns/net -ef /proc/self/ns/net ]; do sleep 0.01; done
        ip link add br0 type bridge && ip address add 10.88.0.1/16 dev br0 && ip link set br0 up
        ip link add in0 type veth peer name eth0 netns $inner
        ip link set in0 master br0 up
        nsenter -t $inner -n sh -c 'ip link set lo up; ip address add 10.88.0.5/16 dev eth0;
            ip link set eth0 up; ip route add default via 10.88.0.1'
        nsenter -t $inner -n python3 {} tcp:80 & wait",
        behind.display()
    );
    let options =
        ["--publish-path", "short", "-p", "8080:80", "-p", "8081:81", "-p", "8082:10.88.0.5:80"];
    let mut guest = lab.start("web", &options, &script);
    assert_eq!(guest.line(), "up");
    inside(
        &guest,
        "nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat;
         tcp dport 81 dnat to 10.88.0.5:80; }; }'",
    );
    let through = hear(&lab, "192.0.2.2:45680", "192.0.2.1:8081");
    assert_eq!(through, "80 192.0.2.2 45680\n");
}

#[test]
fn a_target_that_is_not_the_guests_own_is_not_mistaken_for_it() {
    let lab = Lab::new();
    // A server at all addresses of the namespace, and a port that leads to another address.
    let options = ["--publish-path", "short", "-p", "8080:10.0.2.55:80", "-p", "8081:10.0.2.77:80"];
    let guest = lab.start_teller("web", &options, "tcp:80");
    inside(&guest, "ip address add 10.0.2.77/32 dev lo");
    assert_eq!(hear(&lab, "192.0.2.2:45681", "192.0.2.1:8081"), "80 192.0.2.2 45681\n");
    // Nobody has that address on the link: by way of it, nobody answers.
    let target: SocketAddr = "192.0.2.1:8080".parse().unwrap();
    let mut stream = lab.within(&lab.outside, || TcpStream::connect(target)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let heard = stream.read(&mut [0; 100]);
    assert!(!matches!(heard, Ok(1..)), "somebody answers: {heard:?}");
}

#[test]
fn clients_whose_ports_the_guest_uses_itself_are_served() {
    let lab = Lab::new();
    let guest =
        lab.start_teller("web", &["--publish-path", "short", "-p", "8080:80"], "tcp:80 tcp:4444");
    // The guest listens at the port that is the client's.
    assert_eq!(hear(&lab, "192.0.2.2:4444", "192.0.2.1:8080"), "80 192.0.2.2 4444\n");
    guest.stop();
    // The same client at two ports that lead to one: the second is seen under another port.
    let guest = echo(&lab, "echo", &["--publish-path", "short", "-p", "8080:7", "-p", "8081:7"]);
    let mut streams =
        ["192.0.2.1:8080", "192.0.2.1:8081"].map(|target| client(&lab, "192.0.2.2:45682", target));
    for (stream, word) in streams.iter_mut().zip([b"first", b"other"]) {
        stream.write_all(word).unwrap();
    }
    for (stream, word) in streams.iter_mut().zip([b"first", b"other"]) {
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, word);
    }
    drop(guest);
}

#[test]
fn a_client_that_is_refused_is_reset_as_by_the_link() {
    let lab = Lab::new();
    for way in ["short", "tap"] {
        let mut guest =
            lab.start(way, &["-p", "8080:80", "--publish-path", way], "echo up; exec sleep 600");
        assert_eq!(guest.line(), "up");
        let error = lab.hear(&lab.outside, "192.0.2.1:8080").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{way}");
    }
}

#[test]
fn a_thousand_clients_are_served_the_short_way() {
    let lab = Lab::new();
    let guest = echo(&lab, "web", &["--publish-path", "short", "-p", "8007:7", "--threads", "2"]);
    let target: SocketAddr = V4.parse().unwrap();
    let mut streams: Vec<TcpStream> = lab
        .within(&lab.outside, || (0..1000).map(|_| TcpStream::connect(target).unwrap()).collect());
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(number as u32).to_be_bytes()).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(u32::from_be_bytes(heard), number as u32);
    }
    let flows = guest.ask_json(&lab, &["flows"], &[]);
    let spliced = flows.iter().filter(|flow| flow["path"] == "spliced").count();
    // The server's queue has room for a hundred: who meets it full waits for it by the link.
    assert!(spliced >= 100, "{spliced} of {}", flows.len());
    // Half of them reset: the others do not notice.
    for stream in streams.split_off(500) {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    for stream in &mut streams {
        stream.write_all(b"z").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_namespace_that_is_not_ours_to_change_is_served_by_its_link() {
    let lab = Lab::new();
    // The switches are out of reach where /proc/sys is read-only, as in a container.
    let starter = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
    let script = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; \
                  exec \"$@\"";
    let path_file = lab.write("teller.py", crate::instance::TELLER);
    let server = format!("exec python3 {} tcp:80", path_file.display());
    let starter = [&starter[..], &[script, "sh"]].concat();
    let mut guest =
        lab.start_by(&starter, "web", &["--publish-path", "short", "-p", "8080:80"], &server);
    assert_eq!(guest.line(), "up");
    assert_eq!(hear(&lab, "192.0.2.2:45683", "192.0.2.1:8080"), "80 192.0.2.2 45683\n");
    assert!(!inside(&guest, "ip rule").contains("29815"));
}
