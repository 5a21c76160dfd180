//! A small world: namespaces `host` and `outside`, joined by a cable, and tapway in `host`.
//!
//! ```text
//!   guest ── TAP ── tapway (an ordinary user) in `host` ── veth ── `outside` (servers)
//!                   192.0.2.1, 2001:db8::1                 192.0.2.2, 2001:db8::2
//! ```
//! Servers are threads of the test that entered `outside` for the time of one `bind`, or programs
//! that are ended when the lab is dropped. All names carry the test's process id and a number.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use crate::support::{NOBODY_SPECIAL, PATH, Ran, as_root, binary, scratch};

/// Seconds that one guest may take, however loaded the machine is.
const PATIENCE: &str = "300";

pub(crate) struct Lab {
    pub(crate) host: String,
    pub(crate) outside: String,
    pub(crate) directory: tempfile::TempDir,
    programs: Vec<Child>,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(as_root(), "these tests make network namespaces: run them as root");
        let name = format!("twt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (host, outside) = (format!("{name}h"), format!("{name}o"));
        let lab = Lab { host, outside, directory: scratch(), programs: Vec::new() };
        let (h, o) = (&lab.host, &lab.outside);
        sh(&format!(
            "ip netns add {h}; ip netns add {o}
            ip -n {h} link add eth0 type veth peer name eth0 netns {o}
            ip -n {h} address add 192.0.2.1/24 dev eth0
            ip -n {o} address add 192.0.2.2/24 dev eth0
            ip -n {h} address add 2001:db8::1/64 dev eth0 nodad
            ip -n {o} address add 2001:db8::2/64 dev eth0 nodad
            for n in {h} {o}; do ip -n $n link set lo up; ip -n $n link set eth0 up; done
            ip -n {h} route add default via 192.0.2.2
            ip -n {h} route add default via 2001:db8::2
            ip netns exec {h} sysctl -qw net.ipv4.ping_group_range='0 2147483647'"
        ));
        lab.write("resolv.conf", "nameserver 192.0.2.2\nsearch lab.test\n");
        std::fs::DirBuilder::new().mode(0o700).create(lab.runtime()).unwrap();
        std::os::unix::fs::chown(lab.runtime(), Some(NOBODY_SPECIAL), None).unwrap();
        lab
    }

    /// A file in the lab's directory, readable by all.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// `program` in a namespace, as root.
    pub(crate) fn enter(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
        command
    }

    /// tapway in `host`, as an ordinary user, with the lab's `resolv.conf` for the host's.
    pub(crate) fn tapway(&self, arguments: &[&str]) -> Command {
        let mut command = self.as_user(&["timeout", "--kill-after=5", PATIENCE]);
        command.arg(binary()).args(arguments);
        command
    }

    /// The beginning of a command in `host` that becomes, by way of `starter`, a program of an
    /// ordinary user. Without a starter that forks, the process is the program's own.
    pub(crate) fn as_user(&self, starter: &[&str]) -> Command {
        let mut command = self.enter(&self.host, "unshare");
        let id = NOBODY_SPECIAL.to_string();
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"")
            .arg("sh")
            .arg(self.directory.path().join("resolv.conf"))
            .args(starter)
            .args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
            .env("LC_ALL", "C")
            .env("HOME", "/tmp")
            .env("PATH", PATH)
            .env("XDG_RUNTIME_DIR", self.runtime())
            .stdin(Stdio::null());
        command
    }

    /// The user's own directory for sockets.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.directory.path().join("runtime")
    }

    /// Runs a bash script as the guest's command.
    pub(crate) fn guest_with(&self, options: &[&str], script: &str) -> Ran {
        let arguments = [&["run"], options, &["--", "bash", "-c", script]].concat();
        self.tapway(&arguments).output().unwrap().into()
    }

    /// Runs a bash script that must succeed; what it printed.
    pub(crate) fn guest(&self, script: &str) -> String {
        let ran = self.guest_with(&[], script);
        assert_eq!(ran.status, Some(0), "{script}\n{ran:?}");
        ran.stdout
    }

    /// Runs a Python program as the guest's command; it must succeed.
    pub(crate) fn python(&self, options: &[&str], program: &str) -> String {
        let path = self.write("program.py", program);
        let ran = self.guest_with(options, &format!("exec python3 {}", path.display()));
        assert_eq!(ran.status, Some(0), "{program}\n{ran:?}");
        ran.stdout
    }

    /// Makes a socket in a namespace, where it stays.
    pub(crate) fn within<T: Send>(&self, namespace: &str, make: impl FnOnce() -> T + Send) -> T {
        within(&format!("/run/netns/{namespace}"), make)
    }

    /// As [`Lab::within`], in the namespace of a process.
    pub(crate) fn within_process<T: Send>(
        &self,
        process: Pid,
        make: impl FnOnce() -> T + Send,
    ) -> T {
        within(&format!("/proc/{process}/ns/net"), make)
    }

    pub(crate) fn listener(&self, port: u16) -> TcpListener {
        self.within(&self.outside, || TcpListener::bind(("::", port)).unwrap())
    }

    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.within(&self.outside, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    /// Starts a server program in `outside`; it is there when `probe` succeeds in that namespace.
    pub(crate) fn serve(&mut self, command: &str, probe: &str) {
        let mut program = self.enter(&self.outside, "bash");
        program.arg("-c").arg(format!("exec {command}"));
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.programs.push(program.spawn().unwrap());
        let wait = format!("for i in $(seq 1000); do {probe} && exit 0; sleep 0.05; done; exit 1");
        let up = self.enter(&self.outside, "bash").args(["-c", &wait]).output().unwrap();
        assert!(up.status.success(), "{command} does not come up: {up:?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
        for namespace in [&self.host, &self.outside] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

/// Makes something in a namespace, on a thread of its own.
fn within<T: Send>(namespace: &str, make: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    thread::scope(|scope| {
        let maker = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            make()
        });
        maker.join().unwrap()
    })
}

/// Runs a script as root; it must succeed.
pub(crate) fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
}
