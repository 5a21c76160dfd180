//! Ports and what listens behind them: refusals, listeners that follow, and what following costs.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{SysconfVar, sysconf};
use tapway::sys::clock;

use crate::instance::{Instance, PATIENCE, TELLER};
use crate::lab::Lab;
use crate::support::{Background, ends};

/// What a machine may take for what takes 200 ms at most on a quiet one, once in a few times.
const SOON: Duration = Duration::from_secs(2);

/// A guest that opens its port at a SIGUSR1 and closes it at the next.
const ON_AND_OFF: &str = "import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); print('ready', flush=True)
while True:
    signal.sigwait({signal.SIGUSR1})
    s = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)
    print('on', flush=True)
    signal.sigwait({signal.SIGUSR1}); s.close(); print('off', flush=True)
";

fn start_on_and_off(lab: &Lab, options: &[&str]) -> Instance {
    let path = lab.write("on-and-off.py", ON_AND_OFF);
    let mut guest = lab.start("web", options, &format!("exec python3 {}", path.display()));
    assert_eq!(guest.line(), "ready");
    guest
}

/// Whether a client of the outside is refused by the host. One that is reset has been let in.
fn is_refused(lab: &Lab, address: &str) -> bool {
    let address = address.parse().unwrap();
    match lab.within(&lab.outside, || TcpStream::connect_timeout(&address, PATIENCE)) {
        Ok(_) => false,
        Err(error) => {
            let refused = error.kind() == ErrorKind::ConnectionRefused;
            assert!(refused || error.kind() == ErrorKind::ConnectionReset, "{address}: {error}");
            refused
        }
    }
}

/// How long the guest's `sign`, which a signal brings about, takes to be seen by clients.
fn reaction(lab: &Lab, guest: &mut Instance, sign: &str, addresses: &[&str]) -> Duration {
    kill(guest.guest, Signal::SIGUSR1).unwrap();
    assert_eq!(guest.line(), sign);
    let began = clock::now();
    for address in addresses {
        while is_refused(lab, address) != (sign == "off") {
            assert!(clock::now() - began < PATIENCE, "{sign} is not seen at {address}");
            assert!(!ends(guest.tapway.pid(), 2));
        }
    }
    clock::now() - began
}

#[test]
fn where_nothing_listens_clients_are_reset_at_once() {
    let lab = Lab::new();
    let path = lab.runtime().join("web.sock");
    let unix = format!("unix:{}:80", path.display());
    let mut guest = start_on_and_off(&lab, &["-p", "8080:80", "-p", &unix]);
    for address in ["192.0.2.1:8080", "[2001:db8::1]:8080"] {
        let took = [0; 3].map(|_| {
            let began = clock::now();
            // The reset may come before `connect` has returned, or after it.
            let error = lab.hear(&lab.outside, address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}");
            clock::now() - began
        });
        eprintln!("reset at {address} after {took:?}");
        // Before anybody would have sent anything again.
        assert!(*took.iter().min().unwrap() < Duration::from_secs(1), "{took:?}");
    }
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    let remarks = |guest: &Instance| {
        guest.ask(&lab, &["port", "list"], &[]).matches("no listener inside").count()
    };
    assert_eq!(remarks(&guest), 2);
    kill(guest.guest, Signal::SIGUSR1).unwrap();
    assert_eq!(guest.line(), "on");
    guest.wait_until_heard(&lab, 1);
    assert_eq!(remarks(&guest), 0);
    let stats = &guest.ask_json(&lab, &["stats"], &[])[0];
    assert_eq!(stats["forwards"][0]["refused"], 6, "{stats}");
    assert_eq!(stats["forwards"][1]["refused"], 1, "{stats}");
}

#[test]
fn a_listener_may_follow_the_guests() {
    let lab = Lab::new();
    let options = ["-p", "8080:80", "-p", "8090-8091:80-81", "--publish-when-listening"];
    let mut guest = start_on_and_off(&lab, &options);
    let mut quickest = Duration::MAX;
    for round in 0..3 {
        let addresses = ["192.0.2.1:8080", "[2001:db8::1]:8080", "192.0.2.1:8090"];
        let opened = reaction(&lab, &mut guest, "on", &addresses);
        assert!(is_refused(&lab, "192.0.2.1:8091"));
        let closed = reaction(&lab, &mut guest, "off", &addresses);
        eprintln!("round {round}: open after {opened:?}, closed after {closed:?}");
        quickest = quickest.min(opened.max(closed));
    }
    assert!(quickest < SOON, "{quickest:?}");
    let listed = guest.ask(&lab, &["port", "list"], &[]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[test]
fn a_port_that_is_added_may_follow_the_guests() {
    let lab = Lab::new();
    let mut guest = start_on_and_off(&lab, &[]);
    let added = guest.ask(&lab, &["port", "add", "--when-listening"], &["8080:80"]);
    assert_eq!(added, "1: publish *:8080/tcp -> *:80\n");
    reaction(&lab, &mut guest, "on", &["192.0.2.1:8080"]);
    // It may be late.
    let added = guest.ask(&lab, &["port", "add", "--when-listening"], &["8090:80"]);
    assert_eq!(added, "2: publish *:8090/tcp -> *:80\n");
    guest.wait_until_open(&lab, "192.0.2.1:8090");
    guest.ask(&lab, &["port", "rm"], &["1"]);
    assert!(is_refused(&lab, "192.0.2.1:8080"));
    reaction(&lab, &mut guest, "off", &["192.0.2.1:8090"]);
}

#[test]
fn auto_publishes_what_the_guest_listens_on() {
    let lab = Lab::new();
    let options = ["--publish", "auto,~8081,~5000-5010", "-p", "9000:8080"];
    // Port 80 is not this user's to open on the host.
    let mut teller = lab.start_teller(
        "web",
        &options,
        "tcp:8080 tcp:8081 tcp:5005 tcp:8082:127.0.0.1 tcp:80 udp:8053 tcp:8083:10.0.2.100",
    );
    for address in ["192.0.2.1:8080", "[2001:db8::1]:8080", "192.0.2.1:8083", "192.0.2.1:9000"] {
        teller.wait_until_open(&lab, address);
        let told = lab.hear(&lab.outside, address).unwrap();
        assert!(told.contains(" 192.0.2.2 ") || told.contains(" 2001:db8::2 "), "{told}");
    }
    let udp = "echo x | socat -T 10 -t 1 - UDP:192.0.2.1:8053 | grep -q ^8053";
    let asked = || lab.enter(&lab.outside, "bash").args(["-c", udp]).status().unwrap().success();
    teller.tapway.until("UDP is published", asked);
    for address in ["192.0.2.1:8081", "192.0.2.1:5005", "192.0.2.1:8082", "[2001:db8::1]:8083"] {
        assert!(is_refused(&lab, address), "{address}");
    }
    let listed = teller.ask_json(&lab, &["port", "list"], &[]);
    let mut auto: Vec<_> = listed
        .iter()
        .filter(|port| port["auto"] == true)
        .map(|port| {
            let transport = port["transport"].as_str().unwrap();
            format!("{transport} {} {}", port["host"]["address"], port["host"]["first_port"])
        })
        .collect();
    auto.sort();
    assert_eq!(
        auto,
        [
            "tcp \"0.0.0.0\" 8080",
            "tcp \"0.0.0.0\" 8083",
            "tcp \"::\" 8080",
            "udp \"0.0.0.0\" 8053",
            "udp \"::\" 8053",
        ]
    );
    // Said once for each family, however often it is looked at.
    let said = teller.tapway.errors();
    let complaints = said.matches("not published: ").count();
    assert!(complaints == 2 && said.contains("port 80 is privileged"), "{said}");
}

#[test]
fn auto_forgets_what_the_guest_has_closed() {
    let lab = Lab::new();
    let mut guest = lab.start("web", &["--publish", "auto/tcp"], "exec sleep 1000");
    let path = lab.write("teller.py", TELLER);
    for _ in 0..2 {
        let mut server = guest.inside_command("python3");
        let mut server = Background::start(server.arg(&path).args(["tcp:8080", "udp:8080"]));
        assert_eq!(server.line(), "up");
        guest.wait_until_open(&lab, "192.0.2.1:8080");
        assert!(guest.ask(&lab, &["port", "list"], &[]).lines().all(|line| !line.contains("udp")));
        drop(server);
        guest.tapway.until("the port is closed", || is_refused(&lab, "192.0.2.1:8080"));
        // The other family's follows.
        let listed = || lab.tapway(&["port", "list", "web"]).output().unwrap().stdout;
        guest.tapway.until("none is listed", || {
            listed().iter().filter(|byte| **byte == b'\n').count() == 1
        });
    }
}

#[test]
fn auto_exposes_what_the_host_listens_on() {
    let lab = Lab::new();
    let options = ["--expose-host", "auto,~5433", "-p", "127.0.0.1:8080:80"];
    let mut guest = lab.start("db", &options, "exec sleep 1000");
    let path = lab.write("teller.py", TELLER);
    let server = |ports: &[&str]| {
        let mut server = lab.enter(&lab.host, "python3");
        let mut server = Background::start(server.arg(&path).args(ports));
        assert_eq!(server.line(), "up");
        server
    };
    let first = server(&["tcp:5432:127.0.0.1", "tcp:5433:127.0.0.1", "udp:5434:127.0.0.1"]);
    let exposed = |guest: &Instance| {
        let listed = guest.ask_json(&lab, &["port", "list"], &[]);
        let mut ports: Vec<_> = listed
            .iter()
            .filter(|port| port["kind"] == "expose")
            .map(|port| port["guest"]["first_port"].as_u64().unwrap())
            .collect();
        ports.sort_unstable();
        ports
    };
    let mut last = vec![];
    for _ in 0..400 {
        last = exposed(&guest);
        if last == [5432, 5434] || ends(guest.tapway.pid(), 20) {
            break;
        }
    }
    // Its own published port, at the same loopback, is none of them.
    assert_eq!(last, [5432, 5434]);
    assert!(guest.hear("tcp", "10.0.2.2", 5432).starts_with("5432 127.0.0.1 "));
    assert!(guest.hear("udp", "10.0.2.2", 5434).starts_with("5434 127.0.0.1 "));
    drop(first);
    let _second = server(&["tcp:5435:::1"]);
    let moved = "socat -u TCP:10.0.2.2:5432 - 2>&1 | grep -q refused \
                 && socat -u TCP6:[fd74:6170:7761:79::2]:5435 - | grep -q '^5435 ::1 '";
    let tapway = guest.tapway.pid();
    for _ in 0..400 {
        if guest.inside(moved).status == Some(0) {
            return;
        }
        assert!(!ends(tapway, 20));
    }
    panic!("the change is not seen: {:?} {}", exposed(&guest), guest.tapway.errors());
}

/// Processor time of a process so far.
fn processor_time(guest: &Instance) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", guest.tapway.pid())).unwrap();
    // After the name, which may hold anything: proc(5), fields 14 and 15.
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs(1) * ticks / u32::try_from(per_second).unwrap()
}

#[test]
fn to_follow_costs_next_to_nothing() {
    let lab = Lab::new();
    let options = ["--publish", "auto", "--expose-host", "auto", "-p", "8080:80"];
    let mut guest = lab.start_teller("web", &options, "tcp:8081 udp:8081");
    guest.wait_until_open(&lab, "192.0.2.1:8081");
    // Processors that others use take longer for the same; one quiet moment tells.
    let is_cheap = || {
        let before = processor_time(&guest);
        let began = clock::now();
        assert!(!ends(guest.tapway.pid(), 2000));
        let (used, passed) = (processor_time(&guest) - before, clock::now() - began);
        eprintln!("following takes {used:?} of processor time in {passed:?}");
        used < passed / 20
    };
    assert!((0..5).any(|_| is_cheap()), "to follow takes more than a twentieth of a processor");
}
