//! pasta's contract at the level of its command line: what comes of an argv, with our binary under
//! that name and, where it is installed, with the original, so that the table itself is proved.
//!
//! Debian 12 has the original of 2023-03. Rows that a later one introduced are ours alone; where
//! only the words changed since, the row names what both say.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::contract::{For, Row, check, ours, run};
use support::{Background, PATIENCE, Ran, bare_namespace, ends, free_port, in_namespace_of, user};

/// The original.
const ORIGINAL: &str = "/usr/bin/pasta";

const QUIET: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

#[test]
fn argv_has_the_exit_status_and_the_words_of_the_contract() {
    use For::{Both, Ours};
    let table: &[Row] = &[
        (Both, &["--version"], 0, "pasta ", ""),
        (Both, &["--version", "--bogus"], 0, "pasta ", ""),
        (Both, &["--vers"], 0, "pasta ", ""),
        (Ours, &["--help"], 0, "Usage: ", ""),
        (Ours, &["--host-lo-to-ns-lo", "--version"], 0, "pasta ", ""),
        (Both, &["--bogus"], 1, "", "unrecognized option '--bogus'"),
        (Both, &["--bogus", "--version"], 1, "", "unrecognized option '--bogus'"),
        (Both, &["-Z"], 1, "", "invalid option -- 'Z'"),
        (Both, &["-t"], 1, "", "option requires an argument -- 't'"),
        (Both, &["--tcp-ports"], 1, "", "option '--tcp-ports' requires an argument"),
        (Both, &["-fqZ"], 1, "", "invalid option -- 'Z'"),
        (Both, &["-a", "127.0.0.1"], 1, "", "Invalid address: 127.0.0.1"),
        (Both, &["-n", "33"], 1, "", "Invalid netmask: 33"),
        (Both, &["-g", "bogus"], 1, "", "Invalid gateway address: bogus"),
        // Versions differ in quotes around the rest.
        (Both, &["-t", "x"], 1, "", "Invalid port specifier"),
        (Both, &["-t", "80-70"], 1, "", "Invalid port specifier"),
        (Both, &["-t", "65536"], 1, "", "Invalid port specifier"),
        (Both, &["-t", "80:"], 1, "", "Invalid port specifier"),
        (Ours, &["-t", "0"], 1, "", "Forwarding rule attempts to map from port 0"),
        (Both, &["-I", "toolonginterfacename0"], 1, "", "Invalid interface name"),
        (Both, &["-i", "nosuch0"], 1, "", "Invalid interface name nosuch0: No such device"),
        (Both, &["-D", "bogus"], 1, "", "DNS address"),
        (Ours, &["--ns-mac-addr", "xx"], 1, "", "Invalid MAC address: xx"),
        (Both, &["--netns", "/nonexistent"], 1, "", "/nonexistent"),
        (Both, &["--netns", "/proc/self/ns/net", "1"], 1, "", "--netns"),
        (Both, &["99999999"], 1, "", "99999999"),
        (Ours, &["-s", "/tmp/x"], 1, "", "passt mode only"),
        (Ours, &["--map-guest-addr", "127.0.0.1"], 1, "", "Invalid address"),
    ];
    check(ORIGINAL, table);
}

#[test]
fn an_unknown_option_is_told_in_the_first_line_and_the_usage_follows() {
    let (_directory, ours) = ours("pasta");
    let ran = run(&ours, &["--config-net", "--map-guest-addr2", "169.254.1.2"]);
    let first = format!("{}: unrecognized option '--map-guest-addr2'", ours.display());
    let mut lines = ran.stderr.lines();
    assert_eq!((ran.status, lines.next()), (Some(1), Some(first.as_str())));
    assert!(lines.next().is_some_and(|line| line.starts_with("Usage: ")), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_commands_status_is_pastas() {
    let (_directory, ours) = ours("pasta");
    // Process 1 of a namespace cannot kill itself.
    for (script, status) in [("exit 7", 7), ("kill -KILL $$", 128 + 9)] {
        let command = ["--no-pidns", "--", "sh", "-c", script];
        let ran = run(&ours, &[&QUIET[..], &command].concat());
        assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(status), "", ""));
    }
    let ran = run(&ours, &[&QUIET[..], &["/nonexistent/command"]].concat());
    assert_eq!(ran.status, Some(1), "{ran:?}");
}

/// One line for each of the things that a command finds to be its own, as the original of 2026-10
/// shows them.
#[test]
fn a_command_has_processes_a_name_and_queues_of_its_own() {
    let (_directory, ours) = ours("pasta");
    let script = "echo $$; ps -A -o pid= | wc -l; hostname; cat /proc/sys/net/ipv4/ping_group_range
        id -u; cat /proc/self/setgroups; ipcmk -Q >/dev/null && ipcs -q | grep -c 0x";
    let ran = run(&ours, &[&QUIET[..], &["--", "sh", "-c", script]].concat());
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    // Of processes: the shell, ps and wc.
    let expected = format!("1\n3\npasta-{host}\n0\t0\n0\ndeny\n1\n");
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (expected.as_str(), ""));
    let ran = run(&ours, &[&QUIET[..], &["--no-pidns", "--", "sh", "-c", "echo $$"]].concat());
    assert_ne!(ran.stdout, "1\n", "{ran:?}");
    assert_eq!(ran.status, Some(0), "{ran:?}");
}

#[test]
fn without_a_command_there_is_a_login_shell() {
    let (_directory, ours) = ours("pasta");
    for (shell, name) in [(Some("/bin/bash"), "-/bin/bash"), (None, "-/bin/sh")] {
        let mut command = user(&ours);
        command.args(QUIET).stdin(Stdio::piped()).stdout(Stdio::piped());
        match shell {
            Some(shell) => command.env("SHELL", shell),
            None => command.env_remove("SHELL"),
        };
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"echo I am $0; exit 9\n").unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!((ran.status, ran.stdout), (Some(9), format!("I am {name}\n")));
    }
}

#[test]
fn a_signal_ends_pasta_and_its_command_with_it() {
    let (_directory, ours) = ours("pasta");
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        // Without processes of its own the command's number is the one that it prints.
        let script = "echo $$; exec sleep 1000";
        let mut command = user(&ours);
        command.args(QUIET).args(["--no-pidns", "--", "sh", "-c", script]);
        let mut pasta = Background::start(&mut command);
        let inner = Pid::from_raw(pasta.line().parse().unwrap());
        pasta.signal(signal);
        let ran = pasta.end();
        assert_eq!((ran.status, ran.signal), (Some(0), None), "{ran:?}");
        assert!(ends(inner, PATIENCE), "the command lives on");
    }
}

#[test]
fn splice_only_gives_loopback_and_nothing_else() {
    let (directory, ours) = ours("pasta");
    let ran = run(&ours, &["--splice-only", "--config-net", "--", "ip", "-o", "link"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    assert!(ran.stdout.contains(": lo: <LOOPBACK,UP"), "{ran:?}");
    let target = bare_namespace();
    let port = free_port();
    let spec = format!("{port}:8099");
    let options = ["--splice-only", "-t", &spec, "-u", "none", "-T", "none", "-U", "none"];
    let _daemon = daemon(&ours, directory.path(), &target, &options);
    let _server = serve(&target, "bind=127.0.0.1");
    assert_eq!(ask("127.0.0.1", port).as_deref(), Some("hi\n"));
}

#[test]
fn a_guest_gets_the_addresses_that_it_is_given() {
    let (_directory, ours) = ours("pasta");
    let options = ["--config-net", "-a", "192.0.2.77/24", "-g", "192.0.2.1", "-I", "net7"];
    let script = "ip -o link show net7; ip -4 -o addr show net7; ip -4 route";
    let ran =
        run(&ours, &[&QUIET[..], &options, &["-m", "1400", "--", "sh", "-c", script]].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    for words in ["192.0.2.77/24", "default via 192.0.2.1 dev net7", "mtu 1400 "] {
        assert!(ran.stdout.contains(words), "no {words:?} in {ran:?}");
    }
    // Left alone unless it is to be configured.
    let script = "ip -o addr show net7; ip route; ip -o link show net7 | grep -c 'state DOWN'";
    let ran = run(&ours, &[&QUIET[..], &["-I", "net7", "--", "sh", "-c", script]].concat());
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), "1\n"), "{ran:?}");
}

/// A daemon that is ended with the test.
struct Daemon(Pid);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// Starts `program` for the namespace of `target` and gives its pid when it is ready.
fn daemon(program: &Path, directory: &Path, target: &Background, options: &[&str]) -> Daemon {
    let pid_file = directory.join("pid");
    let pid = target.pid().to_string();
    let path = pid_file.to_str().unwrap();
    // Whoever reads the streams to their end, as `output` does, gets there when it is ready.
    let ran = run(program, &[options, &["--quiet", "--config-net", "-P", path, &pid]].concat());
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(fs::metadata(&pid_file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&pid_file).unwrap();
    assert!(text.ends_with('\n'), "{text:?}");
    Daemon(Pid::from_raw(text.trim().parse().unwrap()))
}

#[test]
fn it_is_ready_when_the_callers_process_ends_and_goes_with_its_target() {
    let (directory, ours) = ours("pasta");
    let target = bare_namespace();
    let daemon = daemon(&ours, directory.path(), &target, &[&QUIET[..], &["-I", "net7"]].concat());
    let ran = in_namespace_of(&target, "ip -o link show net7");
    assert!(ran.stdout.contains("mtu 65520 ") && ran.stdout.contains(",UP,"), "{ran:?}");
    assert!(!ends(daemon.0, 0));
    drop(target);
    assert!(ends(daemon.0, PATIENCE), "the target is gone, and it is not");
}

#[test]
fn a_signal_ends_it() {
    let (directory, ours) = ours("pasta");
    let target = bare_namespace();
    let daemon = daemon(&ours, directory.path(), &target, &QUIET);
    kill(daemon.0, Signal::SIGTERM).unwrap();
    assert!(ends(daemon.0, PATIENCE));
}

#[test]
fn a_port_that_is_taken_is_the_end_and_leaves_no_pid_file() {
    let (directory, ours) = ours("pasta");
    let target = bare_namespace();
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let pid_file = directory.path().join("pid");
    let (spec, pid) = (port.to_string(), target.pid().to_string());
    let ran = run(&ours, &["-t", &spec, "-P", pid_file.to_str().unwrap(), &pid]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    let lines: Vec<_> = ran.stderr.lines().collect();
    let first = format!("Listen failed for HOST TCP port */{port}: Address already in use");
    assert_eq!(lines, [first.as_str(), "Couldn't listen on requested ports"]);
    assert!(!pid_file.exists());
}

#[test]
fn ports_of_the_guests_loopback_lead_to_the_hosts() {
    let (directory, ours) = ours("pasta");
    let target = bare_namespace();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let spec = format!("7:{port}");
    let options = ["-t", "none", "-u", "none", "-T", &spec, "-U", "none"];
    let _daemon = daemon(&ours, directory.path(), &target, &options);
    let serving = std::thread::spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        let mut word = [0; 4];
        client.read_exact(&mut word).unwrap();
        client.write_all(&word).unwrap();
    });
    let script = "exec 3<>/dev/tcp/127.0.0.1/7; printf ping >&3; timeout 60 cat <&3";
    let ran = in_namespace_of(&target, &format!("bash -c '{script}'"));
    assert_eq!(ran.stdout, "ping", "{ran:?}");
    serving.join().unwrap();
}

/// A server at `place` in the guest, port 8099, that greets its clients.
fn serve(target: &Background, place: &str) -> Background {
    let mut server = user("nsenter");
    server.args(["--preserve-credentials", "--user", "--net", "--target"]);
    // Its own first line says that it listens.
    let listen = format!("exec socat -d -d TCP-LISTEN:8099,fork,{place} SYSTEM:'echo hi' 2>&1");
    server.args([&target.pid().to_string(), "sh", "-c", &listen]);
    let mut server = Background::start(&mut server);
    while !server.line().contains("listening on") {}
    server
}

/// What a server at `address` says; `None` if nothing.
fn ask(address: &str, port: u16) -> Option<String> {
    let mut client = TcpStream::connect((address, port)).ok()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).ok().filter(|length| *length > 0).map(|_| answer)
}

/// What a server at `place` in the guest says to a client at `address` of a port published with
/// `options`.
fn published(place: &str, address: &str, options: &[&str]) -> Option<String> {
    let (directory, ours) = ours("pasta");
    let target = bare_namespace();
    let port = free_port();
    let spec = format!("{port}:8099");
    let options = [&["-t", &spec, "-u", "none", "-T", "none", "-U", "none"], options].concat();
    let _daemon = daemon(&ours, directory.path(), &target, &options);
    let _server = serve(&target, place);
    ask(address, port)
}

#[test]
fn published_ports_reach_the_guest_from_the_hosts_loopback() {
    let everywhere = published("bind=0.0.0.0", "127.0.0.1", &[]);
    assert_eq!(everywhere.as_deref(), Some("hi\n"));
}

#[test]
fn servers_on_the_guests_loopback_are_for_the_guest_unless_the_loopbacks_are_joined() {
    assert_eq!(published("bind=127.0.0.1", "127.0.0.1", &[]), None);
    let joined = published("bind=127.0.0.1", "127.0.0.1", &["--host-lo-to-ns-lo"]);
    assert_eq!(joined.as_deref(), Some("hi\n"));
    let joined = published("pf=ip6,bind=[::1]", "::1", &["--host-lo-to-ns-lo"]);
    assert_eq!(joined.as_deref(), Some("hi\n"));
}
