//! The contract of slirp4netns, as tables: what a command line comes to, what the guest finds, what
//! the API answers. Every row runs against tapway under that name, and against the original where
//! it is installed, which proves the table.
//!
//! Rows say where the two differ, and from which version of the original on they hold.

mod api;
mod mistakes;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use support::{
    Background, PATIENCE, Ran, as_root, bare_namespace, binary, ends, free_port, in_namespace_of,
    scratch, user,
};

/// A program that is called slirp4netns.
#[derive(Clone, Debug)]
struct Helper {
    program: PathBuf,
    /// `None` for ours, which is all that the table says.
    version: Option<(u32, u32)>,
}

/// Ours, and the original where it is installed.
fn helpers() -> &'static [Helper] {
    static HELPERS: OnceLock<Vec<Helper>> = OnceLock::new();
    HELPERS.get_or_init(|| {
        let mut helpers = vec![Helper { program: binary().to_owned(), version: None }];
        let original = ["/usr/bin", "/usr/local/bin"].map(|at| Path::new(at).join("slirp4netns"));
        match original.into_iter().find(|path| path.exists()) {
            Some(program) => {
                let original = Helper { program, version: Some((0, 0)) };
                let text = original.run(&["--version"]).stdout;
                let numbers = text.lines().next().and_then(|line| line.split(' ').next_back());
                let mut numbers = numbers.unwrap().split('.').map(|n| n.parse().unwrap());
                let version = Some((numbers.next().unwrap(), numbers.next().unwrap()));
                helpers.push(Helper { version, ..original });
            }
            None => {
                support::loudly("NOT PROVED: slirp4netns is not installed; only tapway is tested")
            }
        }
        helpers
    })
}

impl Helper {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = user(&self.program);
        command.arg0("slirp4netns").args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn is_ours(&self) -> bool {
        self.version.is_none()
    }

    fn has(&self, since: (u32, u32)) -> bool {
        self.version.is_none_or(|version| version >= since)
    }
}

// --- a helper at work ---

/// A helper at work on a namespace.
struct Served {
    target: Background,
    helper: Background,
    /// The other end of its exit descriptor.
    exit: Option<File>,
    directory: tempfile::TempDir,
}

impl Served {
    /// Starts `helper` with `options` and waits until it says that it is ready. `before` runs in
    /// the namespace first.
    fn start(helper: &Helper, options: &[&str], before: &str) -> Served {
        let target = bare_namespace();
        if !before.is_empty() {
            let ran = in_namespace_of(&target, before);
            assert_eq!(ran.status, Some(0), "{before}: {ran:?}");
        }
        let directory = scratch();
        let place = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&place("exit"), Mode::from_bits_retain(0o666)).unwrap();
        fs::set_permissions(place("exit"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        // Both ends, so that opening it does not wait.
        let exit = OpenOptions::new().read(true).write(true).open(place("exit")).unwrap();
        let mut command = user("bash");
        command
            .args(["-c", "at=$1; shift; exec \"$0\" \"$@\" 10>$at/ready 4<$at/exit"])
            .arg(&helper.program)
            .arg(directory.path())
            .args(["-r", "10", "-e", "4"]);
        // A link that bears the name, since a shell does not choose argv[0].
        if helper.is_ours() {
            command.env("TAPWAY_PERSONALITY", "slirp4netns");
        }
        let fill = |option: &&str| {
            let text = option.replace("{pid}", &target.pid().to_string());
            text.replace("{api}", place("api").to_str().unwrap())
        };
        command.args(options.iter().map(fill));
        let mut helper = Background::start(&mut command);
        let ready = place("ready");
        helper.until("it is ready", || fs::read(&ready).is_ok_and(|bytes| bytes == b"1"));
        Served { target, helper, exit: Some(exit), directory }
    }

    fn inside(&self, script: &str) -> String {
        let ran = in_namespace_of(&self.target, &format!("exec 2>&1; {script}"));
        format!("{}status {}", ran.stdout, ran.status.unwrap_or(-1))
    }

    /// One question to the API, and its answer.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.directory.path().join("api")).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Lets go, upon which the helper ends.
    fn release(mut self) -> Ran {
        drop(self.exit.take());
        self.helper.end()
    }
}

// --- what the guest finds ---

#[test]
fn the_guest_finds_what_the_options_say() {
    const UDHCPC: &str = "ip link set tap0 up; busybox udhcpc -i tap0 -f -n -q -s /bin/true";
    for (since, options, script, expected) in [
        ((1, 0), "-c {pid} tap0", "ip -o addr", "lo    inet 127.0.0.1/8"),
        ((1, 0), "-c {pid} tap0", "ip -o addr", "tap0    inet 10.0.2.100/24"),
        ((1, 0), "-c {pid} tap0", "ip route", "default via 10.0.2.2 dev tap0"),
        ((1, 0), "-c {pid} tap0", "ip link show tap0", "mtu 1500"),
        // Options may come last.
        ((1, 0), "{pid} eth9 -c --mtu=9000", "ip link show eth9", "mtu 9000"),
        ((1, 0), "-c --cidr=10.0.135.128/25 {pid} tap0", "ip -o addr", "inet 10.0.135.228/25"),
        (
            (1, 1),
            "-c --macaddress=0e:d4:18:d9:38:fb {pid} tap0",
            "cat /sys/class/net/tap0/address || ip link show tap0",
            "0e:d4:18:d9:38:fb",
        ),
        // Left alone without -c.
        (
            (1, 0),
            "{pid} tap0",
            "ip -o addr; ip -o link show up; ip link show tap0 | wc -l",
            "2\nstatus 0",
        ),
        ((1, 0), "{pid} tap0", UDHCPC, "lease of 10.0.2.15 obtained"),
        ((1, 0), "--cidr=10.9.0.0/16 {pid} tap0", UDHCPC, "lease of 10.9.0.15 obtained"),
        // Our addresses answer for themselves.
        ((1, 0), "-c {pid} tap0", "ping -c1 -W5 10.0.2.2", "1 received"),
        ((1, 0), "-c --disable-host-loopback {pid} tap0", "ping -c1 -W5 10.0.2.2", "1 received"),
        ((1, 0), "-c --disable-dns {pid} tap0", "ping -c1 -W5 10.0.2.3", "1 received"),
        (
            (1, 0),
            "-c --disable-host-loopback {pid} tap0",
            "bash -c 'exec 3<>/dev/tcp/10.0.2.2/80'",
            "Network is unreachable",
        ),
        (
            (1, 0),
            "-c -6 {pid} tap0",
            "for i in $(seq 100); do ip -6 -o addr | grep fd00:: && exit; sleep 0.1; done",
            "inet6 fd00::",
        ),
        // By path, with and without the user namespace.
        (
            (1, 0),
            "-c --netns-type=path --userns-path=/proc/{pid}/ns/user /proc/{pid}/ns/net t",
            "ip -o addr",
            "inet 10.0.2.100/24",
        ),
        (
            (1, 0),
            "-c --enable-seccomp --netns-type=path --userns-path=/proc/{pid}/ns/user \
             /proc/{pid}/ns/net t",
            "ip -o addr",
            "inet 10.0.2.100/24",
        ),
    ] {
        for helper in helpers().iter().filter(|helper| helper.has(since)) {
            let options: Vec<&str> = options.split(' ').collect();
            let served = Served::start(helper, &options, "");
            let found = served.inside(script);
            assert!(
                found.contains(expected),
                "{helper:?} {options:?}: {expected:?} is not in\n{found}"
            );
            let ran = served.release();
            assert_eq!(ran.status, Some(0), "{helper:?} {options:?}: {ran:?}");
        }
    }
}

#[test]
fn without_dns_its_ports_are_silent() {
    // The original sends this to the host's network, which may answer whatever it likes.
    let served = Served::start(&helpers()[0], &["-c", "--disable-dns", "{pid}", "tap0"], "");
    let found = served.inside("timeout 2 bash -c 'exec 3<>/dev/tcp/10.0.2.3/53'");
    assert_eq!(found, "status 124");
}

/// A server on the host's loopback that tells who has come.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let peer = stream.peer_addr().unwrap();
            let _ = writeln!(stream, "you are {}", peer.ip());
        }
    });
    port
}

#[test]
fn the_gateway_stands_for_the_hosts_loopback() {
    let port = greeter();
    let script = format!("bash -c 'cat </dev/tcp/10.0.2.2/{port}'");
    for (options, peer) in
        [("-c {pid} tap0", "127.0.0.1"), ("-c --outbound-addr=127.0.0.2 {pid} tap0", "127.0.0.2")]
    {
        for helper in helpers() {
            let options: Vec<&str> = options.split(' ').collect();
            let served = Served::start(helper, &options, "");
            let found = served.inside(&script);
            assert_eq!(found, format!("you are {peer}\nstatus 0"), "{helper:?} {options:?}");
        }
    }
}

#[test]
fn an_interface_that_is_there_is_used_as_it_is() {
    let before = "ip link add d type dummy; ip tuntap add tap0 mode tap && ip link set tap0 up \
                  address 0e:00:00:00:00:99 && ip addr add 10.0.2.100/24 dev tap0 \
                  && ip link set lo up && ip route add default via 10.0.2.2";
    for helper in helpers() {
        let served = Served::start(helper, &["-a", "{api}", "{pid}", "tap0"], before);
        let mut server = user("nsenter");
        let script = "echo up; exec busybox nc -l -p 8000 -e echo hello";
        server.args(["--preserve-credentials", "--user", "--net", "--target"]).args([
            &served.target.pid().to_string(),
            "sh",
            "-c",
            script,
        ]);
        let mut server = Background::start(&mut server);
        assert_eq!(server.line(), "up");
        let port = free_port();
        let request = format!(
            r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"127.0.0.1",
                "host_port":{port},"guest_addr":"","guest_port":8000}}}}"#
        );
        assert_eq!(served.ask(request.as_bytes()), r#"{"return":{"id":1}}"#, "{helper:?}");
        // The guest has not said a word; its MAC is known all the same. It may not listen yet.
        let mut text = String::new();
        server.until("it answers", || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            text.clear();
            stream.read_to_string(&mut text).is_ok() && text == "hello\n"
        });
        // Nobody else may have it now.
        let second = helper.run(&[&served.target.pid().to_string(), "tap0"]);
        assert_eq!(second.status, Some(1), "{helper:?}: {second:?}");
    }
}

// --- life and death ---

#[test]
fn only_the_close_of_the_exit_descriptor_and_signals_end_it() {
    for helper in helpers() {
        let mut served = Served::start(helper, &["-c", "-a", "{api}", "{pid}", "tap0"], "");
        let api = served.directory.path().join("api");
        assert!(api.exists(), "{helper:?}");
        served.exit.as_ref().unwrap().write_all(b"still here").unwrap();
        served.target.signal(Signal::SIGKILL);
        assert!(!support::ends(served.helper.pid(), 500), "{helper:?}");
        drop(served.exit.take());
        let directory = served.directory.path().to_owned();
        let ran = served.helper.end();
        assert_eq!((ran.status, directory.join("api").exists()), (Some(0), false), "{helper:?}");
        let says = ["Starting slirp", "* MTU:             1500", "* Recommended IP:  10.0.2.100"];
        assert!(says.iter().all(|line| ran.stdout.contains(line)), "{helper:?}: {ran:?}");

        let served = Served::start(helper, &["{pid}", "tap0"], "");
        served.helper.signal(Signal::SIGTERM);
        assert_eq!(served.helper.end().signal, Some(Signal::SIGTERM as i32), "{helper:?}");

        let target = bare_namespace();
        let ran = helper.run(&["-e", "99", &target.pid().to_string(), "tap0"]);
        assert_eq!(ran.status, Some(0), "{helper:?}: {ran:?}");
    }
}

#[test]
fn the_sandbox_leaves_etc_and_run_and_low_ports() {
    for helper in helpers() {
        let served = Served::start(helper, &["-c", "--enable-sandbox", "{pid}", "tap0"], "");
        let status = fs::read_to_string(format!("/proc/{}/status", served.helper.pid())).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
            // CAP_NET_BIND_SERVICE is number 10.
            assert!(status.contains(&format!("{set}:\t0000000000000400\n")), "{helper:?} {status}");
        }
        if as_root() {
            let root = format!("/proc/{}/root", served.helper.pid());
            let mut names: Vec<_> =
                fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["etc", "run"], "{helper:?}");
        } else {
            crate::support::loudly("NOT TESTED: only root sees what the sandbox leaves");
        }
    }
}

#[test]
fn the_filter_of_system_calls_is_there() {
    for helper in helpers() {
        let served = Served::start(helper, &["-c", "--enable-seccomp", "{pid}", "tap0"], "");
        let status = fs::read_to_string(format!("/proc/{}/status", served.helper.pid())).unwrap();
        // Mode 2 is that of filters (proc(5)).
        assert!(status.contains("Seccomp:\t2\n"), "{helper:?} {status}");
        assert!(served.inside("ping -c1 -W5 10.0.2.2").contains("1 received"), "{helper:?}");
    }
}

// --- links that are no namespace ---

#[test]
fn a_tap_that_is_handed_over_is_the_link() {
    // Somebody else opens the TAP, in the namespace, and becomes the helper. TUNSETIFF is
    // 0x400454ca, IFF_TAP|IFF_NO_PI 0x1002; IFF_VNET_HDR is 0x4000.
    const OPENER: &str = "
import fcntl, os, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tap0', int(sys.argv[1], 0)))
os.dup2(tun, 9)
os.execv(sys.argv[2], ['slirp4netns', '-r', '1', '--netns-type=tapfd', '9'])
";
    for helper in helpers().iter().filter(|helper| helper.has((1, 3))) {
        for flags in ["0x1002", "0x5002"] {
            let target = bare_namespace();
            let mut command = user("nsenter");
            command
                .args(["--preserve-credentials", "--user", "--net", "--target"])
                .args([&target.pid().to_string(), "python3", "-c", OPENER, flags])
                .arg(&helper.program)
                .env("TAPWAY_PERSONALITY", "slirp4netns");
            let mut helper = Background::start(&mut command);
            let script = "ip link set tap0 up; ip addr add 10.0.2.100/24 dev tap0; \
                          ping -c1 -W5 10.0.2.2";
            let mut found = String::new();
            helper.until("the gateway answers", || {
                found = in_namespace_of(&target, script).stdout;
                found.contains("1 received")
            });
        }
    }
}

#[test]
fn a_peer_at_a_socket_is_the_link() {
    let directory = scratch();
    let path = directory.path().join("bess");
    for helper in helpers() {
        let mut helper_command = helper.command(&["--target-type=bess"]);
        let mut served = Background::start(helper_command.arg(&path));
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None);
        let mut socket = socket.unwrap();
        let address = socket2::SockAddr::unix(&path).unwrap();
        served.until("it listens", || socket.connect(&address).is_ok());
        socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        // Who has 10.0.2.2? (RFC 826)
        let mut request = vec![0xff; 6];
        request.extend([0x0e, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend([0x0e, 0, 0, 0, 0, 7, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        request.resize(60, 0);
        let mut answer = [0; 128];
        served.until("it answers", || {
            socket.write_all(&request).unwrap();
            // An ARP reply from the gateway's MAC, which says its address.
            socket.read(&mut answer).is_ok_and(|length| {
                length >= 42 && answer[12..14] == [8, 6] && answer[20..22] == [0, 2]
            })
        });
        assert_eq!(answer[22..32], [0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2], "{helper:?}");
    }
}

#[test]
fn who_waits_for_a_peer_is_ended_by_a_signal() {
    let directory = scratch();
    for (at, helper) in helpers().iter().enumerate() {
        let path = directory.path().join(at.to_string());
        let mut command = helper.command(&["--target-type=bess"]);
        let mut waiting = Background::start(command.arg(&path));
        waiting.until("it listens", || path.exists());
        waiting.signal(Signal::SIGTERM);
        // A child of the original's outlives it until somebody comes.
        assert!(ends(waiting.pid(), PATIENCE), "{helper:?}");
        let _ = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)
            .and_then(|socket| socket.connect(&socket2::SockAddr::unix(&path)?));
        assert_eq!(waiting.end().signal, Some(Signal::SIGTERM as i32), "{helper:?}");
    }
}

#[test]
fn the_name_may_be_said_in_other_ways() {
    let bogus = "slirp4netns: unrecognized option '--bogus'\n";
    let by_option = support::run(&["--as", "slirp4netns", "--bogus"]);
    assert_eq!((by_option.status, &*by_option.stderr), (Some(1), bogus));
    let mut by_variable = support::tapway(&["--bogus"]);
    by_variable.arg0("slirp4netns").env("TAPWAY_PERSONALITY", "slirp4netns");
    assert_eq!(Ran::from(by_variable.output().unwrap()).stderr, bogus);
    let nobody = support::run(&["--as", "vpnkit"]);
    assert_eq!(nobody.status, Some(2));
    assert!(nobody.stderr.starts_with("tapway: --as vpnkit: "), "{nobody:?}");
}
