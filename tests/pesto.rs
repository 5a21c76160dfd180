//! pesto and its socket, end to end as an ordinary user: ports come, go and carry data while the
//! guest runs; ours and the original understand each other both ways.
//!
//! The original (passt 2026-05 or later) is taken from `PATH`, or from `PESTO_BIN` and `PASTA_BIN`.
//! Where there is none, what needs it says so.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Background, Ran, binary, scratch, tapway, user};

/// The guest's servers answer with the port at which they were reached. One process, which ends
/// with tapway.
const SERVERS: &str = "
import select, socket
ports = {socket.create_server(('', port)): port for port in (4080, 4081)}
print('up', flush=True)
while True:
    for server in select.select(list(ports), [], [])[0]:
        client = server.accept()[0]
        client.sendall(b'%d\\n' % ports[server])
        client.close()
";

/// How long an answer may take, however loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    guest: Background,
    socket: PathBuf,
    ours: PathBuf,
    directory: tempfile::TempDir,
}

fn lab(options: &[&str]) -> Lab {
    let directory = scratch();
    let socket = directory.path().join("pasta.sock");
    let ours = directory.path().join("pesto");
    symlink(binary(), &ours).unwrap();
    let words = ["run", "--pesto-socket", socket.to_str().unwrap()];
    let guest = [&words, options, &["--", "python3", "-c", SERVERS]].concat();
    let mut guest = Background::start(&mut tapway(&guest));
    assert_eq!(guest.line(), "up");
    Lab { guest, socket, ours, directory }
}

impl Lab {
    fn pesto(&self, options: &[&str]) -> Ran {
        pesto(&self.ours, &self.socket, options)
    }

    /// The rules that pesto shows, without the blanks at their ends.
    fn rules(&self) -> Vec<String> {
        rules(&self.pesto(&[]))
    }
}

fn pesto(program: &Path, socket: &Path, options: &[&str]) -> Ran {
    user(program).args(options).arg(socket).output().unwrap().into()
}

fn rules(shown: &Ran) -> Vec<String> {
    assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""), "{shown:?}");
    let lines = shown.stdout.lines().skip(1);
    lines.map(|line| line.trim().to_owned()).collect()
}

fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

/// What the server behind `port` of the host says; `None` if nobody accepts.
fn answer(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    // A reset is an answer too: an empty one.
    let _ = stream.read_to_string(&mut text);
    Some(text.trim().to_owned())
}

#[test]
fn ports_come_and_go_while_the_guest_runs() {
    let (first, second, third) = (free_port(), free_port(), free_port());
    let mut lab = lab(&["-p", &format!("127.0.0.1:{first}:4080")]);
    let old = format!("TCP [127.0.0.1]:{first}  =>  4080");
    assert_eq!(lab.rules(), ["HOST", &old]);

    let spec = format!("{second}:4081");
    let added = lab.pesto(&["--add", "--tcp-ports", &spec]);
    assert_eq!((added.status, added.stdout.as_str(), added.stderr.as_str()), (Some(0), "", ""));
    let new = format!("TCP [*]:{second}  =>  4081");
    assert_eq!(lab.rules(), ["HOST", &old, &new]);
    let guest = &mut lab.guest;
    guest.until("the added port", || answer(second).as_deref() == Some("4081"));
    assert_eq!(answer(first).as_deref(), Some("4080"));

    // An open connection outlives its port, and so does the listener of a rule that stays.
    let mut held = TcpStream::connect(("127.0.0.1", first)).unwrap();
    assert_eq!(lab.pesto(&["-D", "-t", &format!("127.0.0.1/{first}:4080")]).status, Some(0));
    lab.guest.until("the port's end", || answer(first).is_none());
    assert_eq!(answer(second).as_deref(), Some("4081"));
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "4080\n");

    // The first specification replaces all of the table.
    assert_eq!(lab.pesto(&["-t", &format!("{third}:4080")]).status, Some(0));
    lab.guest.until("the replacement", || answer(third).as_deref() == Some("4080"));
    lab.guest.until("the replaced port's end", || answer(second).is_none());
    assert_eq!(lab.rules(), ["HOST", &format!("TCP [*]:{third}  =>  4080")]);
}

#[test]
fn a_port_that_is_taken_is_tried_again_until_it_is_free() {
    let mut lab = lab(&[]);
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    let ran = lab.pesto(&["-A", "-t", &format!("{port}:4080,{other}:4081")]);
    // Whether the port is to be had is not known to the client.
    assert_eq!(ran.status, Some(0), "{ran:?}");
    lab.guest.until("the port behind it", || answer(other).as_deref() == Some("4081"));
    assert_eq!(lab.rules().len(), 3);
    drop(taken);
    lab.guest.until("the port, once it is free", || answer(port).as_deref() == Some("4080"));
}

/// The first of four ports in a row that nobody has. Other tests, and whoever else tests here, have
/// theirs.
fn four_free_ports() -> u16 {
    loop {
        let first = free_port();
        let all = (first..).take(4).map(|port| TcpListener::bind(("::", port)));
        if all.filter(Result::is_ok).count() == 4 {
            return first;
        }
    }
}

#[test]
fn ports_follow_who_listens_and_weak_ones_do_without() {
    let mut lab = lab(&[]);
    let first = four_free_ports();
    let spec = format!("{first}-{}:4079-4082,auto", first + 3);
    assert_eq!(lab.pesto(&["-t", &spec]).status, Some(0));
    lab.guest.until("the ports with servers", || {
        answer(first + 1).as_deref() == Some("4080") && answer(first + 2).as_deref() == Some("4081")
    });
    assert_eq!((answer(first), answer(first + 3)), (None, None));
    // All but a few: of these, what an ordinary user may have.
    assert_eq!(lab.pesto(&["-t", "~1-1020,~1026-65535"]).status, Some(0));
    assert_eq!(lab.rules(), ["HOST", "TCP [*]:1021-1025  =>  1021-1025  (best effort)"]);
    lab.guest.until("the ordinary ports", || answer(1025).is_some());
}

/// Whether a port that follows its server was free when the server came does not matter for ever.
#[test]
fn a_port_that_follows_its_server_comes_when_it_is_free() {
    let mut lab = lab(&[]);
    let taken = TcpListener::bind("[::]:0").unwrap();
    let (port, other) = (taken.local_addr().unwrap().port(), free_port());
    let spec = format!("{port}:4080,{other}:4081,auto");
    assert_eq!(lab.pesto(&["-t", &spec]).status, Some(0));
    lab.guest.until("the port that is free", || answer(other).as_deref() == Some("4081"));
    drop(taken);
    lab.guest.until("the other one, later", || answer(port).as_deref() == Some("4080"));
}

/// What others add and remove by the instance's own control socket, and pesto's view of it, agree.
#[test]
fn both_control_sockets_speak_of_the_same_ports() {
    let port = free_port();
    let name = format!("pesto-{}", std::process::id());
    let lab = lab(&["--name", &name]);
    let native = |verb: &str, spec: &str| {
        let output = tapway(&["port", verb, &name, spec]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    native("add", &format!("{port}:4080"));
    assert_eq!(lab.rules(), ["HOST", &format!("TCP [*]:{port}  =>  4080")]);
    native("rm", &format!("{port}:4080"));
    assert_eq!(lab.rules(), ["HOST"]);
    assert_eq!(lab.pesto(&["-A", "-t", &format!("{port}:4081")]).status, Some(0));
    assert_eq!(lab.rules().len(), 2);
    native("rm", &format!("{port}:4081"));
    assert_eq!(lab.rules(), ["HOST"]);
}

#[test]
fn what_cannot_be_is_refused() {
    let lab = lab(&[]);
    let ran = lab.pesto(&["-T", "80"]);
    assert_eq!(
        (ran.status, ran.stderr.as_str()),
        (Some(1), "Can't use -T, no outbound interface\n")
    );
    let socket = lab.socket.to_str().unwrap();
    let second = tapway(&["run", "--pesto-socket", socket, "--", "true"]).output().unwrap();
    let second = Ran::from(second);
    assert_eq!(second.status, Some(125), "{second:?}");
    assert!(second.stderr.contains("is already in use by another instance"), "{second:?}");
    // A killed instance leaves its socket, and the next one takes it over.
    lab.guest.signal(Signal::SIGKILL);
    lab.guest.end();
    assert!(lab.socket.exists());
    let third = tapway(&["run", "--pesto-socket", socket, "--", "true"]).output().unwrap();
    assert!(third.status.success(), "{third:?}");
}

/// The original's program, if there is one that is new enough.
fn original(variable: &str, name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        let path = user("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
        let path = String::from_utf8(path.stdout).unwrap();
        (!path.trim().is_empty()).then(|| path.trim().into())
    });
    let found = found.filter(|program| {
        let help = Command::new(program).arg("--help").output();
        let help = help.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        name == "pesto" || String::from_utf8_lossy(&help).contains("--conf-path")
    });
    if found.is_none() {
        let mut terminal = std::io::stderr();
        let _ = writeln!(terminal, "NOT RUN: no original {name} (passt 2026-05 or later) here");
    }
    found
}

/// Command lines of pesto that any pair of client and server has to treat alike, each upon the same
/// tables.
const LINES: [&str; 23] = [
    "",
    "-s",
    "-d",
    "-A",
    "-A -t none",
    "-A -t 4080 -u none",
    "-t 4080 -A -t 4081",
    "-A -t 4080",
    "-t none",
    "-D -t 4070",
    "-D -t 4070,4090",
    "-D -t 4070:4071",
    "-D -t ~1-4069,~4071-65535",
    "-s -A -t 127.0.0.1/4081-4083:4091-4093,~4082",
    "-A -t all",
    "-C HOST -u auto,~1-4000",
    "-C NOBODY",
    "-A -t 0.0.0.0/4099:192.0.2.7/80 -t [::]/4099:2001:db8::7/80",
    "-A -t 4099:1.2.3.4",
    "-A -t 127.0.0.1/4099:::1/80",
    "-A -t %lo/4090",
    "-A -t 4090-4095,4092",
    "-A -t x",
];

/// What the client said to each of [`LINES`], and what the tables were then.
fn transcript(client: &Path, socket: &Path) -> Vec<String> {
    let reset = ["-C", "HOST", "-A", "-t", "4070", "-u", "4071"];
    let said = LINES.iter().map(|line| {
        assert_eq!(pesto(client, socket, &reset).status, Some(0));
        let options: Vec<&str> = line.split_whitespace().collect();
        let ran = pesto(client, socket, &options);
        let after = pesto(client, socket, &[]);
        let text =
            format!("{line}: {:?}\n{}{}{}", ran.status, ran.stdout, ran.stderr, after.stdout);
        let text = text.replace(socket.to_str().unwrap(), "SOCKET");
        // An original instance has one table more, which nobody changes here.
        let one_more = |line: &&str| line.contains("SPLICE") || line.ends_with("PIF 3");
        let lines = text.lines().filter(|line| !one_more(line));
        lines.map(|line| format!("{line}\n")).collect()
    });
    said.collect()
}

#[test]
fn ours_and_the_original_are_interchangeable() {
    let lab = lab(&[]);
    let ours = transcript(&lab.ours, &lab.socket);
    if let Some(client) = original("PESTO_BIN", "pesto") {
        assert_same(&ours, &transcript(&client, &lab.socket), "their client, our server");
    }
    let Some(pasta) = original("PASTA_BIN", "pasta") else { return };
    let socket = lab.directory.path().join("original.sock");
    let mut instance = user(pasta);
    instance.args(["--foreground", "--quiet", "--conf-path"]).arg(&socket);
    instance.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    instance.args(["--", "sh", "-c", "echo up; exec sleep 1000"]).stdin(Stdio::null());
    let mut instance = Background::start(&mut instance);
    assert_eq!(instance.line(), "up");
    assert_same(&ours, &transcript(&lab.ours, &socket), "our client, their server");
}

#[test]
fn tapway_as_pasta_is_found_at_its_configuration_path() {
    let directory = scratch();
    let [socket, pasta, client] =
        ["pasta.sock", "pasta", "pesto"].map(|name| directory.path().join(name));
    symlink(binary(), &pasta).unwrap();
    symlink(binary(), &client).unwrap();
    let (first, second) = (free_port(), free_port());
    let mut instance = user(pasta);
    instance.args(["--quiet", "--config-net", "--conf-path"]).arg(&socket);
    instance.args(["-t", &format!("127.0.0.1/{first}:4080"), "-u", "none", "-T", "none"]);
    instance.args(["-U", "none", "--", "python3", "-c", SERVERS]).stdin(Stdio::null());
    let mut instance = Background::start(&mut instance);
    assert_eq!(instance.line(), "up");
    let old = format!("TCP [127.0.0.1]:{first}  =>  4080");
    assert_eq!(rules(&pesto(&client, &socket, &[])), ["HOST", &old]);
    let spec = format!("127.0.0.1/{second}:4081");
    assert_eq!(pesto(&client, &socket, &["-A", "-t", &spec]).status, Some(0));
    instance.until("the added port", || answer(second).as_deref() == Some("4081"));
    assert_eq!(answer(first).as_deref(), Some("4080"));
}

fn assert_same(ours: &[String], other: &[String], which: &str) {
    for (ours, other) in ours.iter().zip(other) {
        assert_eq!(ours, other, "{which}");
    }
}
