//! ICMP: ping, traceroute, path MTU.

use crate::lab::{Lab, sh};

#[test]
fn ping_reaches_the_outside_and_the_gateway_at_any_size() {
    let lab = Lab::new();
    lab.guest(
        "set -e; ping -c 1 -W 10 192.0.2.2; ping -c 1 -W 10 -s 3000 192.0.2.2
         ping -6 -c 1 -W 10 2001:db8::2; ping -6 -c 1 -W 10 -s 3000 2001:db8::2
         ping -c 1 -W 10 10.0.2.2; ping -c 1 -W 10 -s 4000 10.0.2.3
         ping -6 -c 1 -W 10 fd74:6170:7761:79::2",
    );
}

#[test]
fn where_ping_sockets_are_forbidden_the_guest_is_told() {
    let lab = Lab::new();
    sh(&format!("ip netns exec {} sysctl -qw net.ipv4.ping_group_range='1 0'", lab.host));
    let ran = lab.guest_with(&[], "ping -c 1 -W 5 192.0.2.2");
    assert_eq!(ran.status, Some(1));
    assert!(ran.stdout.contains("Packet filtered"), "{ran:?}");
}

/// Adds a router between `outside` and a far network 198.51.100.0/24, whose link has MTU 1400.
fn far_network(lab: &Lab) {
    let (h, o) = (&lab.host, &lab.outside);
    let far = format!("{o}f");
    sh(&format!(
        "ip netns add {far}
        ip -n {o} link add far0 type veth peer name eth0 netns {far}
        ip -n {o} address add 198.51.100.1/24 dev far0; ip -n {o} link set far0 mtu 1400 up
        ip -n {o} address add 2001:db8:1::1/64 dev far0 nodad
        ip -n {far} address add 198.51.100.9/24 dev eth0; ip -n {far} link set eth0 mtu 1400 up
        ip -n {far} address add 2001:db8:1::9/64 dev eth0 nodad
        ip -n {far} link set lo up
        ip -n {far} route add default via 198.51.100.1; ip -n {far} route add default via 2001:db8:1::1
        ip netns exec {o} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip -n {h} route get 198.51.100.9 >/dev/null"
    ));
}

#[test]
fn traceroute_and_tracepath_show_the_hosts_own_path() {
    let lab = Lab::new();
    far_network(&lab);
    let out = lab.guest(
        "traceroute -n -q 1 -w 5 198.51.100.9; traceroute -6 -n -q 1 -w 5 2001:db8:1::9
         tracepath -n 198.51.100.9; mtr -n -r -c 1 --udp 198.51.100.9",
    );
    // By TCP, where the last hop refuses: `traceroute` opens raw sockets, as root of the guest.
    let tcp = lab.guest(
        "traceroute -T -p 99 -n -q 1 -w 5 198.51.100.9
         traceroute -6 -T -p 99 -n -q 1 -w 5 2001:db8:1::9",
    );
    let _ = std::process::Command::new("ip")
        .args(["netns", "delete", &format!("{}f", lab.outside)])
        .status();
    let shows = |out: &str, number: u8, address: &str| {
        out.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&number.to_string()) && words.next() == Some(address)
        })
    };
    let hop = |number: u8, address: &str| shows(&out, number, address);
    assert!(hop(1, "192.0.2.2") && hop(2, "198.51.100.9"), "{out}");
    assert!(hop(1, "2001:db8::2") && hop(2, "2001:db8:1::9"), "{out}");
    assert!(out.contains("pmtu 1400"), "{out}");
    assert!(out.contains("|-- 198.51.100.9"), "{out}");
    assert!(shows(&tcp, 1, "192.0.2.2") && shows(&tcp, 2, "198.51.100.9"), "{tcp}");
    assert!(shows(&tcp, 1, "2001:db8::2") && shows(&tcp, 2, "2001:db8:1::9"), "{tcp}");
}
