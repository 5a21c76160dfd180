//! The contenders: five ways for a guest to reach the server, each set up as its users do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::base::{ENTERED, Failure, Process, Usage, output_of};
use crate::engines::{Engine, Engines, Ports, Session};
use crate::lab::{Counters, Host, Lab, Namespace, place};
use crate::published::{self, Published};

/// Who is compared. The order is that of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// No helper at all: the client runs in the host's namespace.
    Direct,
    /// Rootful: a guest on a bridge, masqueraded by nftables.
    Bridge,
    /// The slirp4netns that `SLIRP4NETNS` names, or the one in `PATH`.
    #[value(name = "slirp4netns")]
    Slirp4netns,
    /// The pasta that `PASTA` names, or the one in `PATH`.
    Pasta,
    /// The tapway that `TAPWAY` names, or the one that cargo built with this benchmark.
    Tapway,
}

impl Contender {
    /// All of them.
    pub const ALL: [Contender; 5] =
        [Self::Direct, Self::Bridge, Self::Slirp4netns, Self::Pasta, Self::Tapway];

    /// The name in the table, the JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bridge => "bridge",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
            Self::Tapway => "tapway",
        }
    }

    /// Whether a process of an unprivileged user carries the traffic.
    pub fn is_rootless(self) -> bool {
        matches!(self, Self::Slirp4netns | Self::Pasta | Self::Tapway)
    }

    /// The rootless tools that tapway stands against.
    pub const PEERS: [Contender; 2] = [Self::Slirp4netns, Self::Pasta];

    /// The executable as the user of the benchmark names it.
    fn named(self) -> Option<PathBuf> {
        let from = |variable: &str, otherwise: &str| {
            std::env::var_os(variable).unwrap_or_else(|| OsString::from(otherwise)).into()
        };
        match self {
            Self::Direct | Self::Bridge => None,
            Self::Slirp4netns => Some(from("SLIRP4NETNS", "slirp4netns")),
            Self::Pasta => Some(from("PASTA", "pasta")),
            Self::Tapway => Some(from("TAPWAY", env!("CARGO_BIN_EXE_tapway"))),
        }
    }
}

/// The executable of a contender, and what it says about itself.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it was found.
    pub path: PathBuf,
    /// What is run: the same file, or a copy that the account can reach.
    pub runs: PathBuf,
    /// The first lines of `--version`, and the Debian package it belongs to.
    pub version: String,
    /// The first digits of its SHA-256: what `--version` does not tell.
    pub digest: String,
}

/// The executables of the contenders that have one.
#[derive(Debug, Default)]
pub struct Programs(pub BTreeMap<Contender, Program>);

impl Programs {
    /// Finds those of `contenders`; a missing one is told on stderr and left out of the comparison.
    pub fn find(lab: &Lab, contenders: &[Contender]) -> Programs {
        let mut found = BTreeMap::new();
        for &contender in contenders {
            let Some(named) = contender.named() else { continue };
            match Program::find(lab, contender, &named) {
                Ok(program) => drop(found.insert(contender, program)),
                Err(e) => eprintln!("e2e: {} is left out: {e}", contender.name()),
            }
        }
        Programs(found)
    }

    /// Whether `contender` can take part.
    pub fn allow(&self, contender: Contender) -> bool {
        !contender.is_rootless() || self.0.contains_key(&contender)
    }

    /// The executable of a rootless contender.
    pub fn get(&self, contender: Contender) -> Result<&Program, Failure> {
        let missing = || Failure(format!("no executable for {}", contender.name()));
        self.0.get(&contender).ok_or_else(missing)
    }
}

impl Program {
    fn find(lab: &Lab, contender: Contender, named: &Path) -> Result<Program, Failure> {
        let path = PathBuf::from(output_of(Command::new("which").arg(named))?.trim());
        // tapway comes out of a build directory that the account may not be able to read. The
        // peers stay in place: pasta looks beside itself for a variant for this processor.
        let runs = match contender {
            Contender::Tapway => place(&path, &lab.dir, "tapway")?,
            _ => path.clone(),
        };
        let said = output_of(Command::new(&runs).arg("--version"))
            .unwrap_or_else(|e| format!("says no version ({e})"));
        let mut version: Vec<String> = said.lines().take(1).map(str::to_owned).collect();
        version.extend(debian_package(&path));
        let digest = output_of(Command::new("sha256sum").arg(&path)).unwrap_or_default();
        let digest = digest.chars().take(12).collect();
        Ok(Program { path, runs, version: version.join(", "), digest })
    }
}

/// "Debian PACKAGE VERSION", if the file belongs to a package.
fn debian_package(path: &Path) -> Option<String> {
    let owner = output_of(Command::new("dpkg-query").arg("-S").arg(path)).ok()?;
    let package = owner.split(':').next()?;
    let format = "--showformat=${Package} ${Version}";
    let version = output_of(Command::new("dpkg-query").args(["-W", format, package])).ok()?;
    Some(format!("Debian {version}"))
}

/// A guest with its way out, ready for traffic.
#[derive(Debug)]
pub struct Guest {
    pub contender: Contender,
    /// The guest's own namespace; absent for [`Contender::Direct`].
    own: Option<Namespace>,
    /// The rootless helper, where the lab started it.
    helper: Option<Process>,
    /// The engine that started the helper otherwise.
    session: Option<Session>,
    /// The device that all of the guest's traffic crosses.
    pub device: String,
    /// What the guest's server sees as the address of a client of a published port.
    pub client_seen: Option<IpAddr>,
    host: usize,
}

impl Guest {
    /// Sets up `contender` on host number `host` with `mtu` on the guest's device and `published`
    /// ports, and proves that it carries traffic by the address that the server sees.
    pub fn start(
        lab: &Lab,
        programs: &Programs,
        contender: Contender,
        host: usize,
        mtu: u32,
        published: Published,
    ) -> Result<Guest, Failure> {
        let at = &lab.hosts[host];
        let mut guest = Guest {
            contender,
            own: None,
            helper: None,
            session: None,
            device: Host::UPLINK.into(),
            client_seen: None,
            host,
        };
        match contender {
            Contender::Direct => {}
            Contender::Bridge => {
                guest.own = Some(bridge(lab, at, mtu, published)?);
                guest.device = "eth0".into();
            }
            _ => {
                let own = rootless_guest(lab, at)?;
                let mut command = lab.as_user(&at.net, &programs.get(contender)?.runs);
                command.args(helper_args(lab, contender, mtu, published, own.pid())?);
                guest.helper =
                    Some(Process::start(lab.logged(&mut command, &log_name(contender))?)?);
                guest.own = Some(own);
            }
        }
        guest.prove(lab)?;
        if contender == Contender::Slirp4netns {
            published.request(lab, at)?;
        }
        guest.client_seen =
            published.client_seen(lab, &guest).map_err(|e| guest.explained(lab, e))?;
        Ok(guest)
    }

    /// A container of `engine` with the lab's ports published, over the helper of `contender`; the
    /// same proof.
    pub fn in_engine(
        lab: &Lab,
        programs: &Programs,
        engines: &Engines,
        (contender, host): (Contender, usize),
        engine: Engine,
        ports: Ports,
    ) -> Result<Guest, Failure> {
        let session = engines.session(lab, programs, (contender, host), engine, ports)?;
        let mut guest = Guest {
            contender,
            own: Some(session.net()),
            helper: None,
            session: Some(session),
            device: String::new(),
            client_seen: None,
            host,
        };
        guest.prove(lab)?;
        guest.client_seen = Published::Services.client_seen(lab, &guest)?;
        Ok(guest)
    }

    /// Proves that it carries traffic by the address that the server sees, and finds its device.
    fn prove(&mut self, lab: &Lab) -> Result<(), Failure> {
        let seen = lab.seen_from(self.net(lab)).map_err(|e| self.explained(lab, e))?;
        let address = self.host(lab).address;
        if seen != IpAddr::V4(address) {
            return Err(Failure(format!(
                "the server sees the guest as {seen}, not as its host {address}: the traffic goes \
                 elsewhere"
            )));
        }
        if let Some(own) = &self.own {
            self.device = own.device()?;
        }
        Ok(())
    }

    /// Adds to a failure what the helper itself said, or that it ended.
    fn explained(&mut self, lab: &Lab, failure: Failure) -> Failure {
        let Some(helper) = &mut self.helper else { return failure };
        let tail = lab.tail(&log_name(self.contender));
        match helper.ended() {
            Some(status) => Failure(format!("the helper ended with {status}{tail}")),
            None => Failure(format!("{failure}{tail}")),
        }
    }

    /// Where this contender's clients run, and the servers behind its published ports.
    pub fn net<'a>(&'a self, lab: &'a Lab) -> &'a Namespace {
        self.own.as_ref().unwrap_or(&self.host(lab).net)
    }

    /// The host side of this contender.
    pub fn host<'a>(&self, lab: &'a Lab) -> &'a Host {
        &lab.hosts[self.host]
    }

    /// The counters of the device that the traffic crosses, with those of the guest's loopback if
    /// that is a way too.
    pub fn counters(&self, lab: &Lab, or_loopback: bool) -> Result<Counters, Failure> {
        let device = self.net(lab).counters(&self.device)?;
        match or_loopback {
            true => Ok(device.and(self.net(lab).counters("lo")?)),
            false => Ok(device),
        }
    }

    /// What the helper uses; `None` where the kernel does the work.
    pub fn usage(&self) -> Option<Usage> {
        match &self.session {
            Some(session) => Some(session.usage()),
            None => self.helper.as_ref().map(|helper| Usage::of_tree(helper.id())),
        }
    }

    /// Fails if the helper is gone.
    pub fn still_runs(&mut self, lab: &Lab) -> Result<(), Failure> {
        if let Some(session) = &mut self.session {
            return session.still_runs();
        }
        match self.helper.as_mut().and_then(Process::ended) {
            None => Ok(()),
            Some(_) => Err(self.explained(lab, Failure(String::new()))),
        }
    }
}

fn log_name(contender: Contender) -> String {
    format!("{}.log", contender.name())
}

/// The options that podman gives each peer, reduced to those that bear on speed.
///
/// slirp4netns runs without its sandbox and so without seccomp: its fastest form. pasta's scan for
/// listening ports, once a second, is off as in podman: it would spoil pasta's idle figures.
fn helper_args(
    lab: &Lab,
    contender: Contender,
    mtu: u32,
    published: Published,
    guest: u32,
) -> Result<Vec<String>, Failure> {
    let (first, last) = match contender {
        Contender::Slirp4netns if published != Published::Nothing => {
            let socket = published::control_socket(lab, contender)?;
            (format!("-c -m {mtu} -a {}", socket.display()), format!("{guest} tap0"))
        }
        Contender::Slirp4netns => (format!("-c -m {mtu}"), format!("{guest} tap0")),
        Contender::Pasta => (format!("-f {PASTA} -m {mtu}"), guest.to_string()),
        // Only who publishes is asked for more; several without a name go side by side.
        Contender::Tapway if published != Published::Nothing => {
            (format!("attach --name {} --mtu {mtu}", published::INSTANCE), guest.to_string())
        }
        Contender::Tapway => (format!("attach --mtu {mtu}"), guest.to_string()),
        Contender::Direct | Contender::Bridge => (String::new(), String::new()),
    };
    Ok(joined(&first, published.options(contender), &last))
}

/// What pasta is told with and without a command of its own.
const PASTA: &str = "--config-net --no-map-gw -u none -T none -U none";

/// The options with which a helper makes the namespace itself and runs the command that follows.
pub fn run_args(contender: Contender, published: Published) -> Vec<String> {
    let first = match contender {
        Contender::Pasta => PASTA,
        Contender::Tapway => "run",
        Contender::Slirp4netns | Contender::Direct | Contender::Bridge => return Vec::new(),
    };
    joined(first, published.options(contender), "--")
}

fn joined(first: &str, middle: Vec<String>, last: &str) -> Vec<String> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    [words(first), middle, words(last)].concat()
}

/// A user and a network namespace made by the account inside the host's network namespace, the
/// second when the first has its map, as engines do: files of a namespace in /proc belong to who was
/// its root when it was made.
fn rootless_guest(lab: &Lab, host: &Host) -> Result<Namespace, Failure> {
    let mut enter = lab.as_user(&host.net, Path::new("unshare"));
    let words = ["--user", "--map-root-user", "unshare", "--net", ENTERED];
    Namespace::new(&lab.agent, enter.args(words))
}

/// The way of a rootful engine: veth, bridge, forwarding, masquerade, destination NAT.
fn bridge(lab: &Lab, host: &Host, mtu: u32, published: Published) -> Result<Namespace, Failure> {
    let net = &host.net;
    // A guest before this one may have left its bridge, the last thing that the host gets.
    if net.ip("link show dev br0").is_err() {
        net.sysctl("net.ipv4.ip_forward", "1")?;
        let rules = format!(
            "add table ip e2e\n\
             add chain ip e2e post {{ type nat hook postrouting priority srcnat; }}\n\
             add rule ip e2e post oifname {} masquerade",
            Host::UPLINK
        );
        output_of(net.command(None, Path::new("nft")).arg(rules))?;
        net.ip("link add br0 address 02:00:00:00:00:01 type bridge")?;
        net.ip("address add 10.88.0.1/24 dev br0")?;
    }
    let guest = Namespace::new(&lab.agent, Command::new("unshare").args(["--net", ENTERED]))?;
    // The device of the guest before goes away with its namespace, but not at once.
    let _ = net.ip("link delete veth0");
    net.ip(&format!(
        "link add veth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
        guest.pid()
    ))?;
    net.ip(&format!("link set br0 mtu {mtu}"))?;
    net.ip("link set veth0 master br0 up")?;
    net.ip("link set br0 up")?;
    published.translate(net, "10.88.0.2")?;
    guest.ip("address add 10.88.0.2/24 dev eth0")?;
    guest.ip("link set eth0 up")?;
    guest.ip("route add default via 10.88.0.1")?;
    Ok(guest)
}
