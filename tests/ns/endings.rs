//! Ends, orderly and not, and starts that fail: nothing is left behind.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};

use crate::instance::{Instance, PATIENCE};
use crate::lab::{Lab, sh};
use crate::support::{Background, Ran, bare_namespace, binary, ends};

/// Nothing of a tapway is left in the lab: no process, no listener, no socket file.
fn assert_nothing_is_left(lab: &Lab, what: &str) {
    let left = lab.sh_in(
        &lab.host,
        "ss -Hltunp; for p in $(ip netns pids $(ip netns identify)); do
         [ $p = $$ ] || [ ! -e /proc/$p ] || grep -sq \"^PPid:\\s*$$\\$\" /proc/$p/status || \
         tr '\\0' ' ' </proc/$p/cmdline; done",
    );
    assert_eq!(left, "", "{what}");
    let sockets = fs::read_dir(lab.runtime().join("tapway"));
    let sockets: Vec<_> =
        sockets.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    assert!(sockets.is_empty(), "{what}: {sockets:?}");
}

/// A guest that ends when it is told to.
fn start(lab: &Lab) -> Instance {
    let options = ["-p", "8080:80", "-p", "8053:53/udp", "--publish", "auto,~1-1023"];
    lab.start_teller("web", &options, "tcp:8081")
}

/// Whether the process is gone, in time.
fn is_gone(pid: nix::unistd::Pid) -> bool {
    ends(pid, u16::try_from(PATIENCE.as_millis()).unwrap())
}

#[test]
fn however_an_instance_ends_nothing_is_left() {
    let lab = Lab::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let instance = start(&lab);
        assert!(instance.socket(&lab).exists());
        let guest = instance.guest;
        instance.tapway.signal(signal);
        instance.tapway.end();
        assert!(is_gone(guest), "{signal}");
        assert_nothing_is_left(&lab, signal.as_str());
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let instance = start(&lab);
        kill(instance.guest, signal).unwrap();
        let ran = instance.tapway.end();
        assert_eq!(ran.status, Some(128 + signal as i32), "{ran:?}");
        assert_nothing_is_left(&lab, "the guest has ended");
    }
}

/// A network namespace with a file, as `ip netns` and container engines make it.
struct Named(PathBuf);

impl Named {
    fn new(lab: &Lab, target: &Background) -> Named {
        let path = lab.write("namespace", "");
        sh(&format!("mount --bind /proc/{}/ns/net {}", target.pid(), path.display()));
        Named(path)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        sh(&format!("umount --lazy {0}; rm {0}", self.0.display()));
    }
}

#[test]
fn a_namespace_that_goes_away_takes_its_instance_along() {
    let lab = Lab::new();
    let attach = |target: &str, by_path: bool| {
        let mut command = lab.as_user(&[]);
        command.arg(binary()).args(["attach", "--name", "web", "-p", "8080:80"]);
        let mut tapway = Background::start(command.args(by_path.then_some("--netns")).arg(target));
        let socket = lab.runtime().join("tapway/web.sock");
        tapway.until("the control socket", || socket.exists());
        assert_ne!(lab.sh_in(&lab.host, "ss -Hltn sport = :8080"), "");
        tapway
    };
    let target = bare_namespace();
    let tapway = attach(&target.pid().to_string(), false);
    drop(target);
    assert_eq!(tapway.end().status, Some(0));
    assert_nothing_is_left(&lab, "the process has ended");
    let target = bare_namespace();
    let named = Named::new(&lab, &target);
    let tapway = attach(named.0.to_str().unwrap(), true);
    drop(named);
    assert_eq!(tapway.end().status, Some(0));
    assert_nothing_is_left(&lab, "the name is gone");
}

#[test]
fn what_a_killed_instance_leaves_is_in_nobodys_way() {
    let lab = Lab::new();
    let killed = || {
        let instance = start(&lab);
        let (guest, socket) = (instance.guest, instance.socket(&lab));
        instance.tapway.signal(Signal::SIGKILL);
        instance.tapway.end();
        assert!(is_gone(guest) && socket.exists());
        socket
    };
    // `ps` clears it away ...
    let socket = killed();
    let ran: Ran = lab.tapway(&["ps"]).output().unwrap().into();
    assert!(ran.status == Some(0) && !ran.stdout.contains("web"), "{ran:?}");
    assert!(!socket.exists());
    // ... and the next of the name does.
    killed();
    let next = start(&lab);
    assert!(next.ask(&lab, &["port", "list"], &[]).contains("*:8080"));
    next.stop();
    assert_nothing_is_left(&lab, "the next has ended");
}

#[test]
fn a_start_that_fails_leaves_nothing_open() {
    let lab = Lab::new();
    let mut other = lab.as_user(&[]);
    other.args([
        "python3",
        "-c",
        "import socket, time; s = socket.create_server(('', 8083)); print('up', flush=True)
time.sleep(1000)",
    ]);
    let mut other = Background::start(&mut other);
    assert_eq!(other.line(), "up");
    let occupied = format!(
        "tapway: publish 8083:80/tcp: port 8083/tcp is in use by python3 (process {})",
        other.pid()
    );
    for (rules, status, words) in [
        (["8080:80", "[::1]:8081:80", "8083:80"], 125, vec![occupied.as_str()]),
        (["8080:80", "8081:80/udp", "1:80"], 125, vec!["port 1 is privileged", "sysctl -w"]),
        (["8080:80", "8081:80/udp", "8000-8090:1-91"], 2, vec!["8080:80", "8000-8090:1-91"]),
        (["8080:80", "8081:80/udp", "198.51.100.7:8082:80"], 125, vec!["198.51.100.7"]),
        (["8080:80", "8081:80/udp", "%nosuch0:8082:80"], 125, vec!["no interface nosuch0"]),
    ] {
        let [a, b, c] = rules;
        let arguments = ["run", "--name", "web", "-p", a, "-p", b, "-p", c, "--", "true"];
        let ran: Ran = lab.tapway(&arguments).output().unwrap().into();
        assert_eq!(ran.status, Some(status), "{rules:?}: {ran:?}");
        for words in words {
            assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        }
        let open = lab.sh_in(&lab.host, "ss -Hltun | grep -v ':8083 ' || true");
        assert_eq!(open, "", "{rules:?}");
        assert!(!lab.runtime().join("tapway/web.sock").exists());
    }
    drop(other);
    assert_nothing_is_left(&lab, "failed");
}
