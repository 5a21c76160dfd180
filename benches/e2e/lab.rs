//! The lab: one server namespace, and for each contender a host namespace of its own.
//!
//! ```text
//!              ext                          host i                        guest
//!   198.51.100.1 (on lo)      ┌── veth ── 10.77.i.2 ── contender i ── whatever it gives
//!   servers listen here  ─────┤           fd77:i::2
//!   10.77.i.1, fd77:i::1      └── …
//! ```
//!
//! Every contender has its own host, so that the bridge's connection tracking burdens no other, and
//! so that the address that the server sees names the contender that the traffic went through. The
//! server's address is on none of the links: no helper can take it for its gateway. Where `ext`
//! plays the client of a published port, its connections come from that address too.
//!
//! A network namespace lives as long as the agent that sits in it; see [`crate::keeper`] for what
//! ends the agents. Nothing gets a name in `/run/netns`, and nothing touches the machine's own
//! network namespace.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::base::{ENTERED, Failure, Process, output_of, read_line, wait_until};
use crate::keeper::{Account, Premises};

/// Where every server of the lab listens (TEST-NET-2, RFC 5737).
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The port that tells clients their address, of the lab's server and of servers in guests.
pub const WHOAMI_PORT: u16 = 7000;

/// MTU of the links between `ext` and the hosts: that of an ordinary Ethernet.
const LINK_MTU: &str = "1500";

/// The namespaces, and the one server that runs throughout.
#[derive(Debug)]
pub struct Lab {
    /// Readable for all; holds the agent, configurations and logs.
    pub dir: PathBuf,
    /// Who the helpers and the clients run as.
    pub account: Account,
    /// This executable, where the account can reach it.
    pub agent: PathBuf,
    pub ext: Namespace,
    /// One per contender, in the order asked for.
    pub hosts: Vec<Host>,
    _whoami: Process,
}

/// The host side of one contender.
#[derive(Debug)]
pub struct Host {
    pub net: Namespace,
    /// Its address on the link to `ext`: what the server must see as the peer.
    pub address: Ipv4Addr,
}

impl Host {
    /// The host's device towards `ext`.
    pub const UPLINK: &str = "up0";
}

/// Ports at which servers listen: a client's connection that waits out its time (TIME-WAIT) at one
/// of them would keep a server from it.
const SERVERS: &str = "5201,5301,7000-7999,8080,11111";

impl Lab {
    /// Builds the lab with `hosts` hosts.
    pub fn build(premises: Premises, hosts: usize) -> Result<Lab, Failure> {
        let Premises { dir, account } = premises;
        let agent = place(&std::env::current_exe().unwrap_or_default(), &dir, "agent")?;
        let ext = Namespace::new(&agent, Command::new("unshare").args(["--net", ENTERED]))?;
        ext.ip(&format!("address add {SERVER}/32 dev lo"))?;
        // A connection per request uses a port per request; a full range of them on each side.
        ext.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        ext.sysctl("net.ipv4.ip_local_reserved_ports", SERVERS)?;
        let mut lab_hosts = Vec::new();
        for n in 1..=hosts {
            lab_hosts.push(Host::build(&agent, &ext, n)?);
        }
        let whoami = Process::start(ext.command(Some(account), &agent).args([
            "agent",
            "whoami",
            &WHOAMI_PORT.to_string(),
        ]))?;
        let lab = Lab { dir, account, agent, ext, hosts: lab_hosts, _whoami: whoami };
        wait_listening(&lab.ext, Transport::Tcp, WHOAMI_PORT)?;
        Ok(lab)
    }

    /// Starts `program` in `net` as the account and waits until it listens on TCP `port`.
    pub fn serve(
        &self,
        net: &Namespace,
        program: &str,
        args: &[&str],
        port: u16,
        log: &str,
    ) -> Result<Process, Failure> {
        self.serve_over(Transport::Tcp, net, program, args, port, log)
    }

    /// The same with a port of either transport.
    pub fn serve_over(
        &self,
        over: Transport,
        net: &Namespace,
        program: &str,
        args: &[&str],
        port: u16,
        log: &str,
    ) -> Result<Process, Failure> {
        let mut command = self.as_user(net, Path::new(program));
        let mut server = Process::start(self.logged(command.args(args), log)?)?;
        wait_listening(net, over, port).map_err(|e| match server.ended() {
            Some(status) => Failure(format!("{program} ended with {status}{}", self.tail(log))),
            None => e,
        })?;
        Ok(server)
    }

    /// The address from which the server sees connections out of `net`, asked for up to 15 s.
    pub fn seen_from(&self, net: &Namespace) -> Result<IpAddr, Failure> {
        let server = format!("{SERVER}:{WHOAMI_PORT}");
        let answer =
            output_of(self.as_user(net, &self.agent).args(["agent", "probe", &server, "15"]))?;
        answer.trim().parse().map_err(|e| Failure::because("the server's answer", e))
    }

    /// A command to be run in `net` as the account, with a home directory of its own.
    pub fn as_user(&self, net: &Namespace, program: &Path) -> Command {
        let mut command = net.command(Some(self.account), program);
        let home = self.home();
        command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home).env("TMPDIR", &home);
        command
    }

    /// The account's home and runtime directory.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// Sends what `command` writes to a log file of the lab.
    pub fn logged<'c>(
        &self,
        command: &'c mut Command,
        log: &str,
    ) -> Result<&'c mut Command, Failure> {
        let open = || fs::File::create(self.dir.join(log));
        let out = open().map_err(|e| Failure::because(log, e))?;
        let err = out.try_clone().map_err(|e| Failure::because(log, e))?;
        Ok(command.stdin(Stdio::null()).stdout(out).stderr(err))
    }

    /// The last line of a log, as the end of a sentence.
    pub fn tail(&self, log: &str) -> String {
        let text = fs::read_to_string(self.dir.join(log)).unwrap_or_default();
        text.lines().rfind(|l| !l.trim().is_empty()).map(|l| format!(": {l}")).unwrap_or_default()
    }
}

impl Host {
    fn build(agent: &Path, ext: &Namespace, n: usize) -> Result<Host, Failure> {
        let net = Namespace::new(agent, Command::new("unshare").args(["--net", ENTERED]))?;
        let n8 = u8::try_from(n).map_err(|_| Failure("too many contenders".into()))?;
        let address = Ipv4Addr::new(10, 77, n8, 2);
        let (far, up) = (format!("host{n}"), Host::UPLINK);
        ext.ip(&format!(
            "link add {far} mtu {LINK_MTU} type veth peer name {up} mtu {LINK_MTU} netns {}",
            net.pid()
        ))?;
        ext.ip(&format!("address add 10.77.{n}.1/24 dev {far}"))?;
        ext.ip(&format!("address add fd77:{n}::1/64 dev {far} nodad"))?;
        ext.ip(&format!("link set {far} up"))?;
        // What `ext` asks of a published port comes from the same address that its servers have.
        ext.ip(&format!("route replace 10.77.{n}.0/24 dev {far} src {SERVER}"))?;
        net.ip(&format!("address add {address}/24 dev {up}"))?;
        net.ip(&format!("address add fd77:{n}::2/64 dev {up} nodad"))?;
        net.ip(&format!("link set {up} up"))?;
        net.ip(&format!("route add default via 10.77.{n}.1"))?;
        net.ip(&format!("-6 route add default via fd77:{n}::1"))?;
        net.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        net.sysctl("net.ipv4.ip_local_reserved_ports", SERVERS)?;
        // As engines recommend for rootless use; the helpers may answer ping with it.
        net.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        Ok(Host { net, address })
    }
}

fn wait_listening(net: &Namespace, over: Transport, port: u16) -> Result<(), Failure> {
    if wait_until(Duration::from_secs(5), || net.listening_over(over).contains(&port)) {
        return Ok(());
    }
    Err(Failure(format!("no server on port {port} within 5 s")))
}

/// Where a port number belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    pid: u32,
    /// Keeps it, where the lab made it.
    _sitter: Option<Process>,
}

impl Namespace {
    /// Makes one that lives as long as the value: `enter` is the command that makes it and then
    /// runs the words that follow.
    pub fn new(agent: &Path, enter: &mut Command) -> Result<Namespace, Failure> {
        let command = enter.arg(agent).args(["agent", "sit"]);
        let mut sitter = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let stdout = sitter.child().stdout.take();
        let stdout = stdout.ok_or_else(|| Failure("the sitter has no stdout".into()))?;
        read_line(&mut BufReader::new(stdout))
            .map_err(|e| Failure::because("make a network namespace", e))?;
        let net = Namespace { pid: sitter.id(), _sitter: Some(sitter) };
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// That of process `pid`, which others keep.
    pub fn of_process(pid: u32) -> Namespace {
        Namespace { pid, _sitter: None }
    }

    /// A process in it; its `/proc/PID/ns/net` is the namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A command to be run inside, as `account` or as root.
    pub fn command(&self, account: Option<Account>, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid())).arg(ENTERED);
        if let Some(Account { uid, gid }) = account {
            command.args(["setpriv", "--clear-groups"]);
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]).arg(ENTERED);
        }
        command.arg(program);
        command
    }

    /// Runs `ip` inside with the words of `args`.
    pub fn ip(&self, args: &str) -> Result<String, Failure> {
        output_of(self.command(None, Path::new("ip")).args(args.split(' ')))
    }

    /// Sets a sysctl of this namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), Failure> {
        let assignment = format!("{name}={value}");
        output_of(self.command(None, Path::new("sysctl")).args(["-qw", &assignment])).map(drop)
    }

    /// Reads a sysctl of this namespace.
    pub fn sysctl_value(&self, name: &str) -> Result<String, Failure> {
        let text = output_of(self.command(None, Path::new("sysctl")).args(["-n", name]))?;
        Ok(text.trim().to_owned())
    }

    /// The TCP ports that are listened on.
    pub fn listening(&self) -> BTreeSet<u16> {
        self.listening_over(Transport::Tcp)
    }

    /// The ports that are listened on, by proc_net_tcp(5): the client's view would cost the
    /// server a connection, and some servers here serve only one.
    fn listening_over(&self, over: Transport) -> BTreeSet<u16> {
        // States of linux/tcp_states.h: a UDP socket that has no peer is as one that is closed.
        let (tables, state) = match over {
            Transport::Tcp => (["tcp", "tcp6"], "0A"),
            Transport::Udp => (["udp", "udp6"], "07"),
        };
        let port = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, port) = fields.get(1)?.rsplit_once(':')?;
            (fields.get(3) == Some(&state)).then(|| u16::from_str_radix(port, 16).ok())?
        };
        let mut ports = BTreeSet::new();
        for table in tables {
            let path = format!("/proc/{}/net/{table}", self.pid());
            let text = fs::read_to_string(path).unwrap_or_default();
            ports.extend(text.lines().filter_map(port));
        }
        ports
    }

    /// The counters of device `name`.
    pub fn counters(&self, name: &str) -> Result<Counters, Failure> {
        let text = self.ip(&format!("-s -j link show dev {name}"))?;
        let links: Value = serde_json::from_str(&text).map_err(|e| Failure::because("ip -j", e))?;
        let number = |way: &str, what: &str| {
            links
                .pointer(&format!("/0/stats64/{way}/{what}"))
                .and_then(Value::as_u64)
                .ok_or_else(|| Failure(format!("`ip -s -j link` tells no {way} {what} of {name}")))
        };
        Ok(Counters {
            received: number("rx", "bytes")?,
            sent: number("tx", "bytes")?,
            packets: number("rx", "packets")? + number("tx", "packets")?,
            received_dropped: number("rx", "dropped")?,
            sent_dropped: number("tx", "dropped")?,
        })
    }

    /// The name of the first device that is not `lo`.
    pub fn device(&self) -> Result<String, Failure> {
        let text = self.ip("-j link show")?;
        let links: Value = serde_json::from_str(&text).map_err(|e| Failure::because("ip -j", e))?;
        let names =
            links.as_array().into_iter().flatten().filter_map(|l| l.get("ifname")?.as_str());
        names
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .next()
            .ok_or_else(|| Failure("the guest has no network device".into()))
    }
}

/// Counters of a device, as its namespace sees them: `sent` left through it.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    pub received: u64,
    pub sent: u64,
    pub packets: u64,
    /// Frames that the kernel did not take from the helper.
    pub received_dropped: u64,
    /// Frames that the helper did not read in time: the ring was full.
    pub sent_dropped: u64,
}

impl Counters {
    /// What was counted since `before`.
    pub fn since(self, before: Counters) -> Counters {
        Counters {
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
            packets: self.packets.saturating_sub(before.packets),
            received_dropped: self.received_dropped.saturating_sub(before.received_dropped),
            sent_dropped: self.sent_dropped.saturating_sub(before.sent_dropped),
        }
    }

    /// What both devices counted.
    pub fn and(self, other: Counters) -> Counters {
        Counters {
            received: self.received + other.received,
            sent: self.sent + other.sent,
            packets: self.packets + other.packets,
            received_dropped: self.received_dropped + other.received_dropped,
            sent_dropped: self.sent_dropped + other.sent_dropped,
        }
    }

    /// Frames dropped in either direction.
    pub fn dropped(self) -> u64 {
        self.received_dropped + self.sent_dropped
    }
}

/// Copies an executable to where every user may run it.
pub fn place(executable: &Path, dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let copy = dir.join(name);
    fs::copy(executable, &copy)
        .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))
        .map_err(|e| Failure::because(format_args!("copy {}", executable.display()), e))?;
    Ok(copy)
}
