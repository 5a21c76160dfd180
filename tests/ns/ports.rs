//! Published and exposed ports with real servers and clients: who is seen, and who gets in.

use std::io::ErrorKind;

use crate::instance::Instance;
use crate::lab::{Lab, sh};
use crate::support::{Background, NOBODY_SPECIAL};

const GATEWAY: &str = "10.0.2.2";
const GATEWAY_V6: &str = "fd74:6170:7761:79::2";

/// Clients at `port`, and as whom the guest sees them: on the network under their own address; on
/// the host under the address of the host that they have used, or as the gateway on its loopback.
fn clients(lab: &Lab, port: u16) -> Vec<(&str, String, &'static str)> {
    vec![
        (&lab.outside, format!("192.0.2.1:{port}"), "192.0.2.2"),
        (&lab.outside, format!("[2001:db8::1]:{port}"), "2001:db8::2"),
        (&lab.host, format!("127.0.0.1:{port}"), GATEWAY),
        (&lab.host, format!("[::1]:{port}"), GATEWAY_V6),
        (&lab.host, format!("192.0.2.1:{port}"), "192.0.2.1"),
        (&lab.host, format!("[2001:db8::1]:{port}"), "2001:db8::1"),
    ]
}

/// A page of the guest's server, by curl.
fn page(lab: &Lab, namespace: &str, options: &str, url: &str) -> String {
    lab.sh_in(namespace, &format!("curl -gsS -m 60 {options} '{url}'"))
}

/// What a file of the lab holds when it has `lines` lines.
fn lines_of(lab: &Lab, server: &mut Instance, file: &str, lines: usize) -> Vec<String> {
    let path = lab.directory.path().join(file);
    let mut found = Vec::new();
    server.tapway.until(&format!("{lines} lines in {file}"), || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        found = text.lines().map(str::to_owned).collect();
        found.len() >= lines
    });
    found
}

#[test]
fn nginx_logs_the_clients_address_and_port() {
    let lab = Lab::new();
    let root = lab.directory.path().display().to_string();
    lab.write("index.html", "hello from inside");
    let config = lab.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
            events {{}} http {{ log_format who '$remote_addr $remote_port';
            access_log {root}/access.log who;
            server {{ listen 80; listen [::]:80; root {root}; }} }}"
        ),
    );
    let script = format!("exec nginx -c {}", config.display());
    let mut nginx = lab.start("web", &["-p", "8080:80", "--publish-when-listening"], &script);
    nginx.wait_until_open(&lab, "192.0.2.1:8080");
    let clients = clients(&lab, 8080);
    for (number, (namespace, address, _)) in clients.iter().enumerate() {
        let options = format!("--local-port {}", 45_670 + number);
        let text = page(&lab, namespace, &options, &format!("http://{address}/"));
        assert_eq!(text, "hello from inside", "{address}");
    }
    let logged = lines_of(&lab, &mut nginx, "access.log", clients.len());
    let expected = clients.iter().enumerate();
    let expected: Vec<_> =
        expected.map(|(number, (_, _, seen))| format!("{seen} {}", 45_670 + number)).collect();
    assert_eq!(logged, expected);
}

#[test]
fn pythons_server_logs_the_clients_address() {
    let lab = Lab::new();
    lab.write("index.html", "hello from python");
    let script = format!(
        "cd {}; setpriv --pdeathsig KILL python3 -um http.server --bind 0.0.0.0 8000 2>access.log &
        exec python3 -um http.server --bind :: 8001 2>access6.log",
        lab.directory.path().display()
    );
    let options = ["-p", "8080:8000", "-p", "[::]:8081:8001", "--publish-when-listening"];
    let mut server = lab.start("web", &options, &script);
    for (address, log, seen) in [
        ("192.0.2.1:8080", "access.log", "192.0.2.2"),
        ("[2001:db8::1]:8081", "access6.log", "2001:db8::2"),
    ] {
        server.wait_until_open(&lab, address);
        let text = page(&lab, &lab.outside, "", &format!("http://{address}/index.html"));
        assert_eq!(text, "hello from python");
        let logged = lines_of(&lab, &mut server, log, 1);
        assert!(logged[0].starts_with(&format!("{seen} - - [")), "{logged:?}");
    }
}

#[test]
fn addresses_of_a_rule_are_the_only_ones_that_are_open() {
    let lab = Lab::new();
    sh(&format!("ip -n {} address add 192.0.2.9/24 dev eth0", lab.host));
    let options = [
        "-p",
        "127.0.0.1:8001:80",
        "-p",
        "[::1]:8002:80",
        "-p",
        "0.0.0.0:8003:80",
        "-p",
        "[::]:8004:80",
        "-p",
        "192.0.2.9:8005:80",
        "-p",
        "%eth0:8006:80",
        "-p",
        "0.0.0.0%lo:8007:80",
    ];
    let _teller = lab.start_teller("web", &options, "tcp:80");
    let open = |namespace: &str, address: &str| match lab.hear(namespace, address) {
        Ok(text) => {
            assert!(text.starts_with("80 "), "{address}: {text}");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
            false
        }
    };
    let hosts = [
        (&lab.host, "127.0.0.1"),
        (&lab.host, "[::1]"),
        (&lab.host, "192.0.2.1"),
        (&lab.outside, "192.0.2.1"),
        (&lab.outside, "192.0.2.9"),
        (&lab.outside, "[2001:db8::1]"),
    ];
    for (port, expected) in [
        (8001, [true, false, false, false, false, false]),
        (8002, [false, true, false, false, false, false]),
        (8003, [true, false, true, true, true, false]),
        (8004, [false, true, false, false, false, true]),
        (8005, [false, false, false, false, true, false]),
        // The host's own packets to an address count as received by the interface that has it.
        (8006, [false, false, true, true, true, true]),
        (8007, [true, false, false, false, false, false]),
    ] {
        let found = hosts.map(|(namespace, host)| open(namespace, &format!("{host}:{port}")));
        assert_eq!(found, expected, "{port} at {hosts:?}");
    }
}

#[test]
fn each_port_of_a_range_leads_to_its_own() {
    let lab = Lab::new();
    let teller = lab.start_teller(
        "web",
        &["-p", "8000-8003:80-83", "-p", "[::1]:9000-9001:82-83"],
        "tcp:80 tcp:81 tcp:82 tcp:83",
    );
    for offset in 0..4 {
        let text = lab.hear(&lab.outside, &format!("192.0.2.1:{}", 8000 + offset)).unwrap();
        assert!(text.starts_with(&format!("{} 192.0.2.2 ", 80 + offset)), "{text}");
    }
    assert!(lab.hear(&lab.host, "[::1]:9001").unwrap().starts_with("83 fd74:"));
    let listed = teller.ask(&lab, &["port", "list"], &[]);
    assert!(listed.contains("*:8000-8003") && listed.contains("[::1]:9000-9001"), "{listed}");
}

#[test]
fn ports_that_are_picked_are_printed_listed_and_open() {
    let lab = Lab::new();
    let options = ["-p", ":80", "-p", "81", "-p", "127.0.0.1::82"];
    let mut teller = lab.start_teller("web", &options, "tcp:80 tcp:81 tcp:82");
    let printed = teller.tapway.errors();
    let listed = teller.ask_json(&lab, &["port", "list"], &[]);
    for (number, (line, record)) in printed.lines().zip(&listed).enumerate() {
        let (guest, port) = (80 + number, record["host"]["first_port"].as_u64().unwrap());
        let place = ["*", "*", "127.0.0.1"][number];
        assert_eq!(line, format!("tapway: {place}:{port} -> {guest}/tcp"));
        assert_eq!(record["guest"]["first_port"], guest);
        let text = lab.hear(&lab.host, &format!("127.0.0.1:{port}")).unwrap();
        assert!(text.starts_with(&format!("{guest} {GATEWAY} ")), "{text}");
    }
    assert_eq!((printed.lines().count(), listed.len()), (3, 3), "{printed}");
    // One that is picked later is told by the command that adds it.
    let added = teller.ask_json(&lab, &["port", "add"], &[":80"]);
    let port = &added[0]["host"]["first_port"];
    assert!(lab.hear(&lab.outside, &format!("192.0.2.1:{port}")).unwrap().starts_with("80 "));
}

#[test]
fn unix_sockets_stand_at_either_end() {
    let lab = Lab::new();
    // The name of the directory is the user's.
    let (front, behind) = (lab.runtime().join("front.sock"), lab.runtime().join("behind.sock"));
    let mut server = lab.as_user(&[]);
    server.args(["socat", &format!("UNIX-LISTEN:{},fork", behind.display())]);
    server.arg("SYSTEM:read line; echo behind got $line");
    let mut server = Background::start(&mut server);
    server.until("the socket behind", || behind.exists());
    let publish = format!("unix:{}:80", front.display());
    let expose = format!("90:unix:{}", behind.display());
    let expose_too = format!("91:unix:{}", behind.display());
    let options = ["-p", &*publish, "-p", &expose, "--expose-host", &expose_too];
    let teller = lab.start_teller("web", &options, "tcp:80");
    let ask = format!("socat -t 60 - UNIX-CONNECT:{} </dev/null", front.display());
    let told = lab.sh_in(&lab.outside, &ask);
    assert!(told.starts_with(&format!("80 {GATEWAY} ")), "{told}");
    for port in [90, 91] {
        for gateway in ["TCP:10.0.2.2", "TCP6:[fd74:6170:7761:79::2]"] {
            let ran = teller.inside(&format!("echo hello | socat -t 60 - {gateway}:{port}"));
            assert_eq!(ran.stdout, "behind got hello\n", "{ran:?}");
        }
    }
    teller.stop();
    assert!(!front.exists() && behind.exists());
}

#[test]
fn services_of_the_host_are_exposed_at_the_gateway() {
    let lab = Lab::new();
    let path = lab.write("teller.py", crate::instance::TELLER);
    let mut server = lab.enter(&lab.host, "python3");
    server.arg(path).args(["tcp:5432:127.0.0.1", "udp:5432:127.0.0.1", "tcp:5433:::1"]);
    let mut server = Background::start(&mut server);
    assert_eq!(server.line(), "up");
    let options =
        ["--expose-host", "5432", "--expose-host", "5432/udp", "--expose-host", "99:[::1]:5433"];
    let guest = lab.start("db", &options, "exec sleep 1000");
    let hear = |kind: &str, gateway: &str, port: u16| {
        let told = guest.hear(kind, gateway, port);
        told.rsplit_once(' ').unwrap().0.to_owned()
    };
    assert_eq!(hear("tcp", GATEWAY, 5432), "5432 127.0.0.1");
    assert_eq!(hear("udp", GATEWAY, 5432), "5432 127.0.0.1");
    assert_eq!(hear("tcp", GATEWAY_V6, 99), "5433 ::1");
    // What was not exposed is as far away as before.
    let ran = guest.inside("socat -u TCP:10.0.2.2:5433 -");
    assert!(ran.stderr.contains("Connection refused"), "{ran:?}");
    let listed = guest.ask(&lab, &["port", "list"], &[]);
    assert!(listed.contains("expose  udp    *:5432"), "{listed}");
}

#[test]
fn the_guest_reaches_its_own_port_through_the_host() {
    let lab = Lab::new();
    let options = ["-p", "8080:80", "-p", "8080:80/udp"];
    let teller = lab.start_teller("web", &options, "tcp:80 udp:80");
    for (kind, target, seen) in [
        ("tcp", "192.0.2.1", "192.0.2.1"),
        ("tcp", "2001:db8::1", "2001:db8::1"),
        ("tcp", "host.tapway.internal", "192.0.2.1"),
        ("udp", "192.0.2.1", "192.0.2.1"),
        ("udp", "2001:db8::1", "2001:db8::1"),
    ] {
        let told = teller.hear(kind, target, 8080);
        assert!(told.starts_with(&format!("80 {seen} ")), "{kind} {target}: {told}");
    }
}

#[test]
fn a_socket_that_root_has_opened_serves_a_low_port() {
    let lab = Lab::new();
    // As systemd does it: the listening socket becomes descriptor 3 of whom it starts.
    let starter = "import os, socket, sys
s = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)
os.dup2(s.fileno(), 3) if s.fileno() != 3 else os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[1], sys.argv[1:])";
    let teller = lab.write("teller.py", crate::instance::TELLER);
    let script = format!("exec python3 {} tcp:8000", teller.display());
    let starter = ["python3", "-c", starter];
    let mut teller = lab.start_by(&starter, "web", &["-p", "80:8000"], &script);
    assert_eq!(teller.line(), "up");
    let owner = crate::support::owner_of_proc(teller.guest);
    assert_eq!(owner, NOBODY_SPECIAL);
    for (namespace, address, seen) in clients(&lab, 80) {
        let told = lab.hear(namespace, &address).unwrap();
        assert!(told.starts_with(&format!("8000 {seen} ")), "{address}: {told}");
    }
}
