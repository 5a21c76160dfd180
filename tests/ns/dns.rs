//! Names: through the forwarder to a real DNS server outside.

use crate::lab::{Lab, sh};
use crate::support::Background;

/// dnsmasq outside, with a name, texts of 1,800 bytes, and nothing else.
fn with_server() -> Lab {
    let mut lab = Lab::new();
    let texts = (0..9)
        .map(|number| format!("txt-record=big.lab.test,{number}{}\n", "x".repeat(200)))
        .collect::<String>();
    let config = lab.write(
        "dnsmasq.conf",
        &format!(
            "no-resolv\nno-hosts\nport=53\nlisten-address=192.0.2.2\nbind-interfaces\nuser=root\n\
             pid-file=\nedns-packet-max=4096\naddress=/web.lab.test/192.0.2.2\n\
             address=/web.lab.test/2001:db8::2\nlog-queries\nlog-facility={log}\n{texts}",
            log = lab.directory.path().join("queries").display(),
        ),
    );
    lab.serve(
        &format!("dnsmasq --keep-in-foreground --conf-file={}", config.display()),
        "dig +short +time=1 +tries=1 @192.0.2.2 web.lab.test 2>/dev/null | grep -qx 192.0.2.2",
    );
    lab
}

#[test]
fn names_resolve_over_udp_and_tcp_at_any_size() {
    let lab = with_server();
    let out = lab.guest(
        "dig +short web.lab.test; dig +short +tcp web.lab.test AAAA; getent ahostsv4 web | head -1
         dig +bufsize=4096 +ignore big.lab.test TXT | grep -c 'flags: qr.* tc'
         dig +bufsize=4096 +ignore big.lab.test TXT | grep -o 'MSG SIZE.*'
         dig +bufsize=512 big.lab.test TXT | grep -o 'MSG SIZE.*'
         dig -6 +short @fd74:6170:7761:79::3 web.lab.test
         dig +short host.tapway.internal",
    );
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..2], ["192.0.2.2", "2001:db8::2"], "{out}");
    assert!(lines[2].starts_with("192.0.2.2 "), "the search domain applies: {out}");
    assert_eq!(lines[3], "0", "not truncated: {out}");
    let size = |line: &str| line.split_whitespace().last().unwrap().parse::<u32>().unwrap();
    assert!(size(lines[4]) > 1800 && size(lines[5]) > 1800, "{out}");
    assert_eq!(lines[6..], ["192.0.2.2", "192.0.2.1"], "{out}");
}

#[test]
fn a_dead_first_resolver_is_passed_over_and_changes_are_followed() {
    let lab = with_server();
    lab.write("resolv.conf", "nameserver 192.0.2.77\nnameserver 192.0.2.2\noptions timeout:1\n");
    let script = "dig +short +time=9 +tries=1 web.lab.test; echo ready; read -r go || true
                  for i in $(seq 600); do grep -q ndots:3 /etc/resolv.conf && break
                  sleep 0.1; done; grep -E '^search|ndots' /etc/resolv.conf
                  dig +short +time=9 web.lab.test";
    let mut command = lab.tapway(&["run", "--", "bash", "-c", script]);
    command.stdin(std::process::Stdio::piped());
    let mut guest = Background::start(&mut command);
    assert_eq!(guest.line(), "192.0.2.2");
    assert_eq!(guest.line(), "ready");
    lab.write("resolv.conf", "nameserver 192.0.2.2\nsearch other.test\noptions ndots:3\n");
    guest.close_stdin();
    assert_eq!(guest.line(), "search other.test");
    assert_eq!(guest.line(), "options ndots:3");
    assert_eq!(guest.line(), "192.0.2.2");
}

#[test]
fn resolvers_are_asked_from_the_outbound_address() {
    let lab = with_server();
    sh(&format!("ip -n {} address add 192.0.2.3/24 dev eth0", lab.host));
    let ran = lab.guest_with(
        &["--outbound-addr", "192.0.2.3"],
        "dig +short a.web.lab.test; dig +short +tcp b.web.lab.test",
    );
    assert_eq!(ran.stdout, "192.0.2.2\n192.0.2.2\n", "{ran:?}");
    let queries = std::fs::read_to_string(lab.directory.path().join("queries")).unwrap();
    for name in ["a", "b"] {
        let wanted = format!("query[A] {name}.web.lab.test from 192.0.2.3");
        assert!(queries.contains(&wanted), "{queries}");
    }
}

#[test]
fn resolvers_are_asked_through_the_outbound_interface() {
    let lab = with_server();
    // What is not bound to eth0 ends in a cable without another end.
    sh(&format!(
        "ip -n {0} link add blind type veth peer name end; ip -n {0} link set blind up
         ip -n {0} link set end up; ip -n {0} route add 192.0.2.2/32 dev blind",
        lab.host
    ));
    let ran = lab.guest_with(
        &["--outbound-interface", "eth0"],
        "dig +short web.lab.test; dig +short +tcp web.lab.test",
    );
    assert_eq!(ran.stdout, "192.0.2.2\n192.0.2.2\n", "{ran:?}");
}

#[test]
fn a_resolver_that_does_not_listen_is_passed_over_at_once() {
    let lab = with_server();
    lab.write("resolv.conf", "nameserver 2001:db8::2\nnameserver 192.0.2.2\noptions timeout:5\n");
    assert_eq!(lab.guest("dig +short +time=4 +tries=1 web.lab.test"), "192.0.2.2\n");
}
