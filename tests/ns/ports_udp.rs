//! Published UDP ports: real servers inside, clients that come and go, and the addresses that both
//! see.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use crate::instance::PATIENCE;
use crate::lab::{Lab, sh};

/// A client in `namespace` at a port of its own choice.
fn client(lab: &Lab, namespace: &str, address: &str) -> UdpSocket {
    let socket = lab.within(namespace, || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends one datagram; the answer and where it came from.
fn exchange(client: &UdpSocket, to: &str) -> (String, SocketAddr) {
    let mut buffer = [0; 100];
    client.send_to(b"who am I?", to).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

#[test]
fn a_dns_server_in_the_guest_answers_the_world() {
    let lab = Lab::new();
    let texts = (0..9)
        .map(|number| format!("txt-record=big.lab.test,{number}{}\n", "x".repeat(200)))
        .collect::<String>();
    let queries = lab.directory.path().join("queries");
    let config = lab.write(
        "dnsmasq.conf",
        &format!(
            "no-resolv\nno-hosts\nport=53\nbind-interfaces\npid-file=\nlog-queries\n\
             edns-packet-max=4096\naddress=/web.lab.test/10.0.2.100\nlog-facility={}\n{texts}",
            queries.display()
        ),
    );
    let script = format!("exec dnsmasq --no-daemon --conf-file={}", config.display());
    let options = ["-p", "5353:53/udp", "-p", "5353:53"];
    let mut server = lab.start("dns", &options, &script);
    let up = "dig +short +time=1 +tries=1 -p 5353 @192.0.2.1 web.lab.test | grep -qx 10.0.2.100";
    let up = || {
        let asked = lab.enter(&lab.outside, "bash").args(["-c", up]).status().unwrap();
        asked.success()
    };
    server.tapway.until("dnsmasq answers", up);
    let dig = |options: &str| lab.sh_in(&lab.outside, &format!("dig -p 5353 {options}"));
    for server in ["@192.0.2.1", "@2001:db8::1"] {
        for transport in ["+notcp", "+tcp"] {
            let found = dig(&format!("+short {transport} {server} web.lab.test"));
            assert_eq!(found, "10.0.2.100\n", "{server} {transport}");
        }
        // Larger than any MTU: fragments on the way out; at 512 bytes dig asks again by TCP.
        let big = dig(&format!("+bufsize=4096 +ignore {server} big.lab.test TXT"));
        assert!(big.matches("xxx\"").count() == 9 && !big.contains(" tc"), "{big}");
        let big = dig(&format!("+bufsize=512 +noedns {server} big.lab.test TXT"));
        assert!(big.contains("retrying in TCP mode") && big.matches("xxx\"").count() == 9, "{big}");
    }
    let queries = std::fs::read_to_string(queries).unwrap();
    for client in ["192.0.2.2", "2001:db8::2"] {
        let wanted = format!("query[A] web.lab.test from {client}");
        assert!(queries.contains(&wanted), "{wanted}: {queries}");
    }
}

#[test]
fn clients_are_seen_and_answered_as_themselves() {
    let lab = Lab::new();
    let _teller = lab.start_teller("web", &["-p", "8080:80/udp"], "udp:80");
    for (namespace, own, target, seen) in [
        (&lab.outside, "192.0.2.2:45671", "192.0.2.1:8080", "192.0.2.2 45671"),
        (&lab.outside, "[2001:db8::2]:45672", "[2001:db8::1]:8080", "2001:db8::2 45672"),
        (&lab.host, "127.0.0.1:45673", "127.0.0.1:8080", "10.0.2.2 45673"),
        (&lab.host, "[::1]:45674", "[::1]:8080", "fd74:6170:7761:79::2 45674"),
        (&lab.host, "192.0.2.1:45675", "192.0.2.1:8080", "192.0.2.1 45675"),
        (&lab.host, "[2001:db8::1]:45676", "[2001:db8::1]:8080", "2001:db8::1 45676"),
    ] {
        let client = client(&lab, namespace, own);
        let (text, from) = exchange(&client, target);
        assert_eq!(text, format!("80 {seen}\n"));
        assert_eq!(from, target.parse().unwrap());
    }
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let lab = Lab::new();
    sh(&format!(
        "ip -n {0} address add 192.0.2.9/24 dev eth0
        ip -n {0} address add 2001:db8::9/64 dev eth0 nodad",
        lab.host
    ));
    let _teller = lab.start_teller("web", &["-p", "8080:80/udp"], "udp:80");
    for (own, targets) in [
        ("0.0.0.0:45671", ["192.0.2.9:8080", "192.0.2.1:8080"]),
        ("[::]:45672", ["[2001:db8::9]:8080", "[2001:db8::1]:8080"]),
    ] {
        // One client, which changes its mind.
        let client = client(&lab, &lab.outside, own);
        for target in [targets[0], targets[1], targets[0]] {
            assert_eq!(exchange(&client, target).1, target.parse().unwrap());
        }
    }
}

#[test]
fn datagrams_of_every_size_pass_in_both_directions() {
    let lab = Lab::new();
    let echo = lab.write(
        "echo.py",
        "import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 7))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20); print('up', flush=True)
while True: data, peer = s.recvfrom(65536); s.sendto(data, peer)",
    );
    let script = format!("exec python3 {}", echo.display());
    let mut server = lab.start("echo", &["-p", "7007:7/udp"], &script);
    assert_eq!(server.line(), "up");
    for (own, target) in
        [("192.0.2.2:0", "192.0.2.1:7007"), ("[2001:db8::2]:0", "[2001:db8::1]:7007")]
    {
        let client = client(&lab, &lab.outside, own);
        socket2::SockRef::from(&client).set_recv_buffer_size(1 << 20).unwrap();
        client.connect(target).unwrap();
        let mut buffer = vec![0; 65_536];
        for size in [0, 1, 1400, 1472, 1473, 3000, 8192, 60_000, 65_000] {
            let sent: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
            client.send(&sent).unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert!(buffer[..length] == sent, "{size} bytes return as {length}");
        }
        for number in 0..7 {
            client.send(&vec![number; 8192]).unwrap();
        }
        for number in 0..7 {
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!((length, buffer[0], buffer[8191]), (8192, number, number));
        }
    }
}

#[test]
fn iperf3_measures_both_directions_of_a_published_port() {
    let lab = Lab::new();
    let options = ["-p", "5201:5201", "-p", "5201:5201/udp"];
    let mut server = lab.start("iperf", &options, "exec iperf3 -s >/dev/null");
    server.wait_until_heard(&lab, 1);
    for client in ["192.0.2.1 -u", "192.0.2.1 -u -R", "2001:db8::1 -u", "2001:db8::1 -u -R"] {
        // The server is busy for a moment after each test.
        let script = format!(
            "for i in $(seq 50); do iperf3 -J -k 2000 -b 20M -l 1200 -c {client} >{0} && break
            sleep 0.1; done; cat {0}",
            lab.directory.path().join("iperf.json").display()
        );
        let mut sum = serde_json::Value::Null;
        // A machine that stands still for a moment may lose a burst, but not each time.
        let arrive = (0..5).any(|_| {
            let json = lab.sh_in(&lab.outside, &script);
            let report: serde_json::Value = serde_json::from_str(&json).unwrap();
            sum = report["end"]["sum"].clone();
            let packets = sum["packets"].as_u64().unwrap_or_else(|| panic!("{client}: {json}"));
            let lost = sum["lost_packets"].as_f64().unwrap();
            packets > 1500 && lost < packets as f64 * 0.2
        });
        assert!(arrive, "{client}: {sum}");
    }
}

#[test]
fn where_nothing_listens_clients_hear_nothing() {
    let lab = Lab::new();
    let guest = lab.start("idle", &["-p", "8080:80/udp"], "exec sleep 1000");
    for (own, target) in
        [("192.0.2.2:0", "192.0.2.1:8080"), ("[2001:db8::2]:0", "[2001:db8::1]:8080")]
    {
        let client = client(&lab, &lab.outside, own);
        client.connect(target).unwrap();
        client.send(b"anybody?").unwrap();
        // The kernel of the host has a socket at the port: nobody else can say "unreachable".
        client.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let error = client.recv(&mut [0; 10]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock), "{error}");
    }
    let listed = guest.ask(&lab, &["port", "list"], &[]);
    assert!(listed.contains("no listener inside"), "{listed}");
}

#[test]
fn a_hundred_clients_of_one_port_are_told_apart() {
    let lab = Lab::new();
    let teller = lab.start_teller("web", &["-p", "8080:80/udp"], "udp:80");
    let clients: Vec<_> = (0..100).map(|_| client(&lab, &lab.outside, "192.0.2.2:0")).collect();
    for client in &clients {
        client.send_to(b"x", "192.0.2.1:8080").unwrap();
    }
    for client in &clients {
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer).unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(buffer[..length], *format!("80 192.0.2.2 {port}\n").as_bytes());
    }
    let flows = teller.ask_json(&lab, &["flows"], &["--proto", "udp"]);
    assert_eq!(flows.iter().filter(|flow| flow["direction"] == "inbound").count(), 100);
}
