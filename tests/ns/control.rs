//! The control socket of a running instance, from outside: to the byte, and under attack.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tapway::control::api::{MAX_CLIENTS, MAX_REQUEST};
use tapway::sys::clock;

use crate::instance::{EndWith, Instance, PATIENCE, echo, rally};
use crate::lab::Lab;
use crate::support::{NOBODY_SPECIAL, Ran};

/// What socat gets for `request` from the socket at `path`.
fn socat(lab: &Lab, path: &Path, request: &[u8]) -> String {
    let mut program = lab.as_user(&[]);
    program.args(["socat", "-t", "60", "-", &format!("UNIX-CONNECT:{}", path.display())]);
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = program.spawn().unwrap();
    // A server that has heard enough may be gone before the end.
    let _ = program.stdin.take().unwrap().write_all(request);
    String::from_utf8(program.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn slirp4netns_clients_are_answered_to_the_byte() {
    let lab = Lab::new();
    let teller = lab.start_teller("web", &[], "tcp:80 udp:80");
    let path = teller.socket(&lab);
    let ask = |request: &str| socat(&lab, &path, request.as_bytes());
    let tcp = concat!(
        r#"{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "#,
        r#""host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}"#
    );
    // As podman writes it: compact, an empty guest address, a line feed.
    let udp = concat!(
        r#"{"execute":"add_hostfwd","arguments":{"proto":"udp","host_addr":"","#,
        r#""host_port":8080,"guest_addr":"","guest_port":80}}"#,
        "\n"
    );
    let list = r#"{"execute": "list_hostfwd"}"#;
    assert_eq!(ask(list), r#"{"return":{"entries":[]},"entries":[]}"#);
    assert_eq!(ask(tcp), r#"{"return":{"id":1}}"#);
    assert_eq!(ask(udp), r#"{"return":{"id":2}}"#);
    assert!(lab.hear(&lab.outside, "192.0.2.1:8080").unwrap().starts_with("80 192.0.2.2 "));
    let entry = |id: u8, proto: &str| {
        format!(
            "{{\"id\":{id},\"proto\":\"{proto}\",\"host_addr\":\"0.0.0.0\",\"host_port\":8080,\
             \"guest_addr\":\"10.0.2.100\",\"guest_port\":80}}"
        )
    };
    let entries = format!("[{},{}]", entry(1, "tcp"), entry(2, "udp"));
    assert_eq!(
        ask(list),
        format!("{{\"return\":{{\"entries\":{entries}}},\"entries\":{entries}}}")
    );
    let again = r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#;
    assert_eq!(ask(tcp), again);
    let remove = r#"{"execute": "remove_hostfwd", "arguments": {"id": 1}}"#;
    assert_eq!(ask(remove), r#"{"return":{}}"#);
    let refused = lab.hear(&lab.outside, "192.0.2.1:8080").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // Numbers are never used again.
    assert_eq!(ask(tcp), r#"{"return":{"id":3}}"#);
    let arguments = |name: &str, value: &str| {
        let wrong = format!("\"{name}\":{value}");
        let mut fields =
            vec!["\"proto\":\"tcp\"", "\"host_port\":1080", "\"guest_port\":80", &wrong];
        fields.retain(|field| *field == wrong || !field.starts_with(&format!("\"{name}\":")));
        format!("{{\"execute\":\"add_hostfwd\",\"arguments\":{{{}}}}}", fields.join(","))
    };
    for (request, text) in [
        ("nonsense".to_owned(), "cannot parse JSON"),
        ("[1]".to_owned(), "json_object() failed"),
        ("{\"arguments\":{}}".to_owned(), "no execute found"),
        ("{\"execute\":\"dance\"}".to_owned(), "unknown execute"),
        ("\0".repeat(5000), "too large message"),
        (" ".repeat(5000), "too large message"),
        (arguments("proto", "\"sctp\""), "add_hostfwd: bad arguments.proto"),
        (arguments("host_addr", "\"::\""), "add_hostfwd: bad arguments.host_addr"),
        (arguments("host_port", "0"), "add_hostfwd: bad arguments.host_port"),
        (arguments("guest_addr", "\"x\""), "add_hostfwd: bad arguments.guest_addr"),
        (arguments("guest_port", "null"), "add_hostfwd: bad arguments.guest_port"),
        (
            "{\"execute\":\"remove_hostfwd\",\"arguments\":{\"id\":-1}}".to_owned(),
            "remove_hostfwd: bad arguments.id",
        ),
        (
            "{\"execute\":\"remove_hostfwd\",\"arguments\":{\"id\":1}}".to_owned(),
            "remove_hostfwd: bad arguments.id",
        ),
    ] {
        let expected = format!("{{\"error\":{{\"desc\":\"bad request: {text}\"}}}}");
        assert_eq!(ask(&request), expected, "{request}");
    }
}

#[test]
fn native_requests_do_what_the_commands_do() {
    let lab = Lab::new();
    let teller = lab.start_teller("web", &["-p", "8080:80"], "tcp:80 tcp:81 tcp:82");
    let ask = |execute: &str, arguments: Value| -> Value {
        let request = json!({"execute": execute, "arguments": arguments}).to_string();
        serde_json::from_str(&socat(&lab, &teller.socket(&lab), request.as_bytes())).unwrap()
    };
    let info = &ask("info", json!({}))["return"];
    assert_eq!((&info["name"], &info["protocol"]), (&json!("web"), &json!(1)));
    assert_eq!(info["pid"], teller.tapway.pid().as_raw());
    assert_eq!(info["guest"], json!(["10.0.2.100", "fd74:6170:7761:79::100"]));
    assert_eq!((&info["ports"], &info["ifname"]), (&json!(1), &json!("tap0")));
    let unix = lab.runtime().join("web.sock");
    for (arguments, id) in [
        (json!({"spec": "[::1]:8081-8082:81-82"}), 2),
        (json!({"host_addr": "192.0.2.1", "host_port": 8083, "guest_port": 82}), 3),
        (json!({"unix": unix, "guest_port": 81}), 4),
        (json!({"kind": "expose", "spec": "5432"}), 5),
        (json!({"interface": "eth0", "guest_port": 80}), 6),
    ] {
        let added = ask("add_forward", arguments);
        assert_eq!(added["return"]["forwards"][0]["id"], id, "{added}");
    }
    assert!(lab.hear(&lab.host, "[::1]:8082").unwrap().starts_with("82 "));
    assert!(lab.hear(&lab.outside, "192.0.2.1:8083").unwrap().starts_with("82 "));
    let mut text = String::new();
    UnixStream::connect(&unix).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.starts_with("81 10.0.2.2 "), "{text}");
    let listed = ask("list_forwards", json!({}));
    let listed = listed["return"]["forwards"].as_array().unwrap();
    assert_eq!(listed.len(), 6);
    let picked = listed.iter().find(|port| port["id"] == 6).unwrap();
    let picked = picked["host"]["first_port"].as_u64().unwrap();
    assert!(lab.hear(&lab.outside, &format!("192.0.2.1:{picked}")).unwrap().starts_with("80 "));
    for (execute, arguments, code) in [
        ("add_forward", json!({"spec": "8080:80"}), "in-use"),
        ("add_forward", json!({"spec": "1:80"}), "denied"),
        ("add_forward", json!({"spec": "198.51.100.9:9999:80"}), "invalid"),
        ("add_forward", json!({"spec": "9999:198.51.100.9:80"}), "invalid"),
        ("add_forward", json!({"spec": "80:x"}), "invalid"),
        ("add_forward", json!({"guest_port": 80, "colour": "red"}), "invalid"),
        ("remove_forward", json!({"id": 77}), "not-found"),
        ("remove_forward", json!({}), "invalid"),
        ("list_flows", json!({"state": "open"}), "invalid"),
    ] {
        let answer = ask(execute, arguments.clone());
        assert_eq!(answer["error"]["code"], code, "{execute} {arguments}: {answer}");
    }
    let removed = ask("remove_forward", json!({"spec": "[::1]:8081-8082:81-82"}));
    assert_eq!(removed["return"]["forwards"][0]["id"], 2, "{removed}");
    ask("remove_forward", json!({"id": 4}));
    assert!(!unix.exists() && lab.hear(&lab.host, "[::1]:8082").is_err());
    let stats = &ask("stats", json!({}))["return"];
    let first = stats["forwards"].as_array().unwrap().iter().find(|forward| forward["id"] == 3);
    assert_eq!(first.unwrap()["connections"], 1, "{stats}");
    let flows = ask("list_flows", json!({"transport": "tcp", "limit": 1}));
    assert!(flows["return"]["flows"].is_array(), "{flows}");
}

#[test]
fn an_answer_does_not_wait_for_the_clients_end() {
    let lab = Lab::new();
    let guest = lab.start("web", &[], "exec sleep 1000");
    let mut stream = UnixStream::connect(guest.socket(&lab)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for piece in ["{\"exec", "ute\":\"info\"", "}"] {
        stream.write_all(piece.as_bytes()).unwrap();
        assert!(!crate::support::ends(guest.tapway.pid(), 50));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("{\"return\":{\"name\":\"web\","), "{answer}");
}

/// Rounds of traffic during which there are attacks.
const TRAFFIC: u64 = 200;

/// What takes milliseconds and, if it had to wait for a silent client to lose patience, seconds.
const SOON: Duration = Duration::from_secs(3);

/// Clients that mean no good: silent, slow, loud, senseless, and gone before the answer.
fn attack(path: &Path, round: usize) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let request: &[u8] = match round % 6 {
        0 => b"",
        1 => b"{\"execute\":\"sta",
        2 => &[b'['; MAX_REQUEST * 4],
        3 => b"\xff\xfe\0\0garbage",
        4 => b"{\"execute\":\"list_forwards\"}",
        _ => b"{\"execute\":\"stats\"} {\"execute\":\"stats\"}",
    };
    let _ = stream.write_all(request);
    // The silent and the slow stay; the others do not wait for what they are told.
    (round % 6 < 2).then_some(stream)
}

#[test]
fn hostile_clients_disturb_neither_traffic_nor_others() {
    let lab = Lab::new();
    let mut guest = echo(&lab, "web", &["-p", "8007:7"]);
    let socket = guest.socket(&lab);
    let connect = || TcpStream::connect("192.0.2.1:8007").unwrap();
    let stream = lab.within(&lab.outside, connect);
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let slowest = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| rally(stream, &over, &rounds));
        let end = EndWith(&over);
        // Others of the silent have been sent away by then, and their places taken.
        let mut kept = VecDeque::new();
        let mut attacks = 0;
        while attacks < MAX_CLIENTS * 20 || rounds.load(Ordering::Relaxed) < TRAFFIC {
            assert!(!traffic.is_finished());
            kept.extend(attack(&socket, attacks));
            kept.drain(..kept.len().saturating_sub(MAX_CLIENTS * 2));
            attacks += 1;
        }
        // All places are taken by those who say nothing; who asks is answered all the same.
        let began = clock::now();
        guest.ask(&lab, &["stats"], &[]);
        let answered = clock::now() - began;
        drop(end);
        eprintln!("answered after {answered:?}, {attacks} attacks");
        assert!(answered < SOON, "{answered:?}");
        traffic.join().unwrap()
    });
    eprintln!("{rounds:?} rounds of 64 KiB meanwhile, the slowest in {slowest:?}");
    assert!(slowest < SOON, "{slowest:?}");
    assert_eq!(guest.tapway.errors(), "");
}

#[test]
fn the_socket_is_for_its_user_alone() {
    let lab = Lab::new();
    let guest = lab.start("web", &[], "exec sleep 1000");
    let socket = guest.socket(&lab);
    let directory = socket.parent().unwrap();
    for (path, mode) in [(directory, 0o700), (&socket, 0o600)] {
        let found = path.metadata().unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (NOBODY_SPECIAL, mode), "{path:?}");
    }
    let stranger = |script: &str| -> Ran {
        let mut command = lab.enter(&lab.host, "setpriv");
        command.args(["--reuid", "54322", "--regid", "54322", "--clear-groups", "sh", "-c"]);
        let runtime = lab.runtime();
        command
            .arg(script)
            .arg("sh")
            .arg(&socket)
            .env("XDG_RUNTIME_DIR", runtime)
            .output()
            .unwrap()
            .into()
    };
    let ask = "echo '{\"execute\":\"info\"}' | socat -t 60 - UNIX-CONNECT:$1";
    let ran = stranger(ask);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("Permission denied"), "{ran:?}");
    // Modes may be changed by mistake; the kernel's word on who asks remains.
    for (path, mode) in [(&*lab.runtime(), 0o755), (directory, 0o755), (&socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(stranger(ask).stdout, "");
    let own = socat(&lab, &socket, b"{\"execute\":\"info\"}");
    assert!(own.starts_with("{\"return\""), "{own}");
}

#[test]
fn what_runs_is_listed_with_what_it_is() {
    let lab = Lab::new();
    let web = lab.start("web", &["-p", "8080:80"], "exec sleep 1000");
    let _db = lab.start("db", &["--ipv6", "off"], "exec sleep 1000");
    let ps = |options: &[&str]| -> String {
        let ran: Ran = lab.tapway(&[&["ps"], options].concat()).output().unwrap().into();
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
        ran.stdout
    };
    let names: Vec<_> = ps(&["-q"]).lines().map(str::to_owned).collect();
    assert!(names.contains(&"web".to_owned()) && names.contains(&"db".to_owned()), "{names:?}");
    let table = ps(&[]);
    let line = table.lines().find(|line| line.starts_with("web ")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[1], web.tapway.pid().to_string());
    assert_eq!((words[2], words[3]), ("10.0.2.100,fd74:6170:7761:79::100", "1"));
    let all: Value = serde_json::from_str(&ps(&["--json"])).unwrap();
    let found = all.as_array().unwrap().iter().find(|info| info["name"] == "web").unwrap();
    assert_eq!(found["namespace"], format!("/proc/{}/ns/net", web.guest));
    assert_eq!(found["command"][0], "bash");
}

/// Samples of Prometheus' text format by name and labels; fails at what is not of that format.
fn samples(text: &str) -> HashMap<&str, f64> {
    let mut types = HashMap::new();
    let mut samples = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge"].contains(&kind) && types.insert(name, kind).is_none());
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap();
            assert!(types.contains_key(name), "{line} has no type before it");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
            for label in labels.strip_suffix('}').unwrap().split("\",") {
                let (name, value) = label.split_once("=\"").unwrap();
                assert!(!name.is_empty() && !value.contains('\\'), "{line}");
            }
            assert!(samples.insert(sample, value.parse().unwrap()).is_none(), "{line} twice");
        }
    }
    samples
}

#[test]
fn flows_and_counters_tell_what_goes_on() {
    let lab = Lab::new();
    // By the link: packets are counted there.
    let options = ["-p", "8006:6", "-p", "8007:7", "--publish-path", "tap"];
    let mut guest = echo(&lab, "web", &options);
    let connect = || TcpStream::connect("192.0.2.1:8007").unwrap();
    let mut stream = lab.within(&lab.outside, connect);
    let mut answer = vec![0; 10_000];
    stream.write_all(&answer).unwrap();
    stream.read_exact(&mut answer).unwrap();
    let port = stream.local_addr().unwrap().port();
    // Counters of the guest's acknowledgments follow.
    let flow = guest.flow(&lab, port);
    for (field, value) in [
        ("transport", json!("tcp")),
        ("direction", json!("inbound")),
        ("state", json!("established")),
        ("guest", json!("10.0.2.100:7")),
        ("peer", json!(format!("192.0.2.2:{port}"))),
        ("host_local", json!("192.0.2.1:8007")),
        ("bytes_to_guest", json!(10_000)),
        ("bytes_to_host", json!(10_000)),
        ("forward", json!(2)),
        ("retransmits", json!(0)),
    ] {
        assert_eq!(flow[field], value, "{field}: {flow}");
    }
    assert!(flow["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0 && rtt < 20_000_000), "{flow}");
    assert!(flow["packets_to_guest"].as_u64().unwrap() >= 1, "{flow}");
    let table = guest.ask(&lab, &["flows"], &["--port", &port.to_string()]);
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with("tcp") && line.contains("established"), "{table}");
    assert!(line.trim_end().ends_with("port 2"), "{table}");
    let watch = format!(
        "timeout -s INT 20 {} flows web --watch=0.1 --port {port} | head -5 | grep -c established",
        crate::support::binary().display()
    );
    let watched = lab.as_user(&[]).args(["bash", "-c", &watch]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&watched.stdout), "2\n", "{watched:?}");
    let stats = &guest.ask_json(&lab, &["stats"], &[])[0];
    assert_eq!(stats["tcp"]["open"], 1, "{stats}");
    assert_eq!(stats["forwards"][1]["bytes_to_guest"], 10_000, "{stats}");
    assert_eq!(stats["forwards"][0]["connections"], 0, "{stats}");
    let text = guest.ask(&lab, &["stats"], &["--prometheus"]);
    let samples = samples(&text);
    for (sample, value) in [
        ("tapway_flows{instance=\"web\",transport=\"tcp\"}", 1.0),
        (
            "tapway_forward_bytes_total{instance=\"web\",forward=\"2\",direction=\"to_guest\"}",
            10_000.0,
        ),
        ("tapway_forward_connections_total{instance=\"web\",forward=\"2\"}", 1.0),
        ("tapway_drops_total{instance=\"web\",reason=\"forged_source\"}", 0.0),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}\n{text}");
    }
    drop(stream);
    let name = guest.name.clone();
    guest.tapway.until("the flow is gone", || {
        let ran = lab.tapway(&["stats", &name, "--json"]).output().unwrap();
        let stats: Value = serde_json::from_slice(&ran.stdout).unwrap();
        stats["tcp"]["open"] == 0
    });
}

impl Instance {
    /// The one flow at `port`.
    fn flow(&self, lab: &Lab, port: u16) -> Value {
        let mut flows = self.ask_json(lab, &["flows"], &["--port", &port.to_string()]);
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows.remove(0)
    }
}
