//! A host in a network namespace of its own with one interface, a guest in another one, and pasta
//! between them; servers and clients as threads of the test, whose sockets are made in either.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Background, NOBODY_SPECIAL, PATH, Ran, as_root, binary, ends, scratch};

/// The host's addresses, which are the guest's too.
pub(crate) const HOST4: &str = "192.0.2.1";
pub(crate) const HOST6: &str = "2001:db8::1";

/// Under which a guest sees its host.
pub(crate) const MAPPED: &str = "169.254.1.2";

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A host, a guest, and pasta between them.
pub(crate) struct Lab {
    pub(crate) daemon: Option<Pid>,
    pub(crate) target: Background,
    pub(crate) directory: tempfile::TempDir,
    host: Namespace,
    /// What the daemon finds at `/dev/log`, if not the machine's own.
    pub(crate) system_log: Option<PathBuf>,
}

/// A network namespace by name, which goes away.
pub(crate) struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

pub(crate) fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
}

impl Lab {
    /// A host with an address of each family and default routes.
    pub(crate) fn new() -> Lab {
        Lab::on("route add default via 192.0.2.2\nroute add default via 2001:db8::2")
    }

    /// A host with addresses, for which `commands` of ip(8) follow, one in each line. There is a
    /// second interface without any.
    pub(crate) fn on(commands: &str) -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(as_root(), "these tests make network namespaces: run them as root");
        let name = format!("twp{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace(name);
        let host = &namespace.0;
        sh(&format!("ip netns add {host}"));
        let set_up = format!(
            "link add eth0 type veth peer name eth1
            link add eth2 type veth peer name eth3
            address add {HOST4}/24 dev eth0
            address add {HOST6}/64 dev eth0 nodad
            link set lo up
            link set eth0 up
            link set eth1 up
            link set eth2 up
            link set eth3 up
            {commands}"
        );
        set_up.lines().for_each(|command| sh(&format!("ip -n {host} {}", command.trim())));
        let directory = scratch();
        let link = directory.path().join("pasta");
        std::os::unix::fs::symlink(binary(), link).unwrap();
        let mut target = user_in(host, "unshare");
        let script = "echo ready; exec sleep 1000";
        target.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        let mut target = Background::start(&mut target);
        assert_eq!(target.line(), "ready");
        Lab { daemon: None, target, directory, host: namespace, system_log: None }
    }

    /// pasta for the guest, ready when this returns.
    pub(crate) fn start(&mut self, options: &[&str]) {
        let pid_file = self.directory.path().join("pid");
        let ran = self.ran(options);
        assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
        let text = std::fs::read_to_string(&pid_file).unwrap();
        self.daemon = Some(Pid::from_raw(text.trim().parse().unwrap()));
    }

    /// What comes of a start that is refused.
    pub(crate) fn refused(&self, options: &[&str]) -> Ran {
        self.ran(options)
    }

    fn ran(&self, options: &[&str]) -> Ran {
        let mut command = match &self.system_log {
            None => user_in(&self.host.0, &self.pasta()),
            Some(log) => {
                // A /dev of its own, since the machine's may have no log to lay it over.
                let script = "mkdir \"$0\"; mount --rbind /dev \"$0\"; mount -t tmpfs none /dev
                    mkdir /dev/net
                    for f in null zero urandom net/tun; do
                        touch /dev/$f; mount --bind \"$0/$f\" /dev/$f
                    done
                    touch /dev/log; mount --bind \"$1\" /dev/log; shift; exec \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-ec", script]);
                command.arg(self.directory.path().join("dev")).arg(log);
                let inner = user_in(&self.host.0, &self.pasta());
                command.arg(inner.get_program()).args(inner.get_args());
                command.env("LC_ALL", "C").env("PATH", PATH).stdin(Stdio::null());
                command
            }
        };
        command.args(["--quiet", "--map-guest-addr", MAPPED]).args(options);
        command.arg("-P").arg(self.directory.path().join("pid"));
        command.arg(self.target.pid().to_string()).output().unwrap().into()
    }

    /// The name of the host's namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.host.0
    }

    /// Waits until `condition` holds, and no longer than [`PATIENCE`].
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if condition() {
                return;
            }
            assert!(!ends(self.daemon.unwrap(), 20), "it ended before {what}");
        }
        panic!("never: {what}");
    }

    pub(crate) fn pasta(&self) -> String {
        self.directory.path().join("pasta").display().to_string()
    }

    /// Does something in the host's namespace.
    pub(crate) fn on_host<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        within(Path::new(&format!("/run/netns/{}", self.host.0)), act)
    }

    /// Does something in the guest's namespace.
    pub(crate) fn in_guest<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        within(Path::new(&format!("/proc/{}/ns/net", self.target.pid())), act)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon {
            let _ = kill(daemon, Signal::SIGKILL);
        }
    }
}

/// `program` of an ordinary user in a network namespace.
pub(crate) fn user_in(namespace: &str, program: &str) -> Command {
    let id = NOBODY_SPECIAL.to_string();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", program]);
    command.env("LC_ALL", "C").env("PATH", PATH).env("HOME", "/tmp").current_dir("/");
    command.stdin(Stdio::null());
    command
}

pub(crate) fn within<T: Send>(namespace: &Path, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    thread::scope(|scope| {
        let actor = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        actor.join().unwrap()
    })
}

pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// What a server says of what it has got, and from whom.
pub(crate) fn receipt(port: u16, peer: SocketAddr, heard: &[u8]) -> String {
    let peer = peer.ip().to_canonical();
    format!("{port} {peer} {} {:x}", heard.len(), hash(heard))
}

/// Serves every client of a listener: takes all until the client's end, then tells what it was.
pub(crate) fn serve_tcp(listener: TcpListener) {
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut client, peer)) = listener.accept() {
            thread::spawn(move || {
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).unwrap();
                client.write_all(receipt(port, peer, &heard).as_bytes()).unwrap();
            });
        }
    });
}

/// Takes datagrams up to an empty one, then tells who has sent it what they were.
pub(crate) fn serve_udp(socket: UdpSocket) {
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 65_536]);
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            heard.extend_from_slice(&buffer[..length]);
            if length == 0 {
                socket.send_to(receipt(port, peer, &heard).as_bytes(), peer).unwrap();
                heard.clear();
            }
        }
    });
}

/// Sends `sent`, then the end; what the server says.
pub(crate) fn tcp(target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// The same by datagrams of 8 KiB, back to back, and an empty one.
pub(crate) fn udp(target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    for datagram in sent.chunks(8192).chain([&[][..]]) {
        socket.send(datagram)?;
    }
    let mut buffer = vec![0; 1000];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(crate) fn serve(self, port: u16) {
        let everywhere: (IpAddr, u16) = ([0; 16].into(), port);
        match self {
            Transport::Tcp => serve_tcp(TcpListener::bind(everywhere).unwrap()),
            Transport::Udp => serve_udp(UdpSocket::bind(everywhere).unwrap()),
        }
    }

    pub(crate) fn talk(self, target: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
        match self {
            Transport::Tcp => tcp(target, sent),
            Transport::Udp => udp(target, sent),
        }
    }
}
