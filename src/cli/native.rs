//! The native command line, `tapway SUBCOMMAND …`: its grammar, its help, its exit codes.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::setup::doctor;

use super::complete;
use super::draft::{Draft, DraftTarget, DraftThreads};
use super::publish::{ExposeSpec, PublishSpec};
use super::show::Show;
use super::value::{self, AddedHost, Cidr, DnsChoice, Switch};
use crate::base::Mac;
use crate::gate::PublishPath;
use crate::setup::attach::{AttachOptions, Target};
use crate::setup::{IfName, InstanceName};

/// What the user wants.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// A network for a guest.
    Guest(Box<Draft>),
    /// A text for standard output: help, version, a completion script.
    Print(String),
    /// Speak to running instances.
    Show(Show),
    /// Print `tapway doctor`'s report.
    Doctor(doctor::Options),
}

/// A command line that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    message: String,
    /// What may have been meant.
    pub hint: String,
}

/// Exit codes of the native command line.
pub mod exit {
    /// `run`: tapway itself failed.
    pub const RUN_FAILED: u8 = 125;
    /// `run`: the command exists and cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// `run`: the command does not exist.
    pub const NOT_FOUND: u8 = 127;
    /// Everything but `run`: failed.
    pub const FAILED: u8 = 1;
    /// A command line that is none, or that means nothing on this host.
    pub const USAGE: u8 = 2;
}

/// The arguments of `tapway`, without the program's name, as a wish.
///
/// # Errors
/// [`UsageError`], in one sentence.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let words: Vec<OsString> = std::iter::once(OsString::from("tapway")).chain(arguments).collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(e) => {
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Invocation::Print(e.render().to_string()))
                }
                _ => Err(usage_error(&e, &words)),
            };
        }
    };
    match cli.command {
        Verb::Run(run) => {
            let target = DraftTarget::Run { command: run.command, map_user: run.map_user };
            Ok(Invocation::Guest(Box::new(run.shared.draft(target))))
        }
        Verb::Attach(attach) => {
            let target = match (attach.pid, attach.netns) {
                (Some(pid), _) => Target::Process(pid),
                (None, Some(path)) => Target::Path(path),
                // The grammar asks for one of the two.
                (None, None) => Target::Process(0),
            };
            let target =
                DraftTarget::Attach(AttachOptions { target, userns: attach.userns, watched: true });
            Ok(Invocation::Guest(Box::new(attach.shared.draft(target))))
        }
        Verb::Show(show) => Ok(Invocation::Show(show)),
        Verb::Doctor { json, strict } => {
            let colour = doctor::colour_on(&std::io::stdout());
            Ok(Invocation::Doctor(doctor::Options { json, strict, colour }))
        }
        Verb::Completions { shell } => {
            let script = complete::script(shell).map_err(|error| UsageError {
                message: format!("there is no completion script for {shell}: {error}"),
                hint: "tapway completions bash, zsh or fish".to_owned(),
            })?;
            Ok(Invocation::Print(String::from_utf8_lossy(&script).into_owned()))
        }
    }
}

/// What a completion script of `shell` gets for `arguments`; see [`mod@complete`].
pub fn complete(shell: &OsStr, arguments: &[OsString]) -> Vec<u8> {
    complete::answer(Cli::command(), shell, arguments)
}

/// The parser's message in our form: one sentence, and a hint.
fn usage_error(e: &clap::Error, words: &[OsString]) -> UsageError {
    let text = e.render().to_string();
    let mut sentence = Vec::new();
    let mut tip = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        } else if let Some(found) = line.strip_prefix("tip: ") {
            tip.get_or_insert(found.to_owned());
        } else if !line.is_empty() && tip.is_none() {
            sentence.push(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    let message = if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "say what to do, for instance: tapway run -- COMMAND".to_owned()
    } else {
        sentence.join(" ")
    };
    let hint = tip.unwrap_or_else(|| match subcommand(words) {
        Some(name) => format!("`{name} --help` explains"),
        None => "`tapway --help` and `tapway run --help` explain".to_owned(),
    });
    UsageError { message, hint }
}

/// The command that `words` name, such as "tapway port add", if they name one.
fn subcommand(words: &[OsString]) -> Option<String> {
    let mut command = &Cli::command();
    let mut name = command.get_name().to_owned();
    for word in &words[1..] {
        let Some(found) = word.to_str().and_then(|word| command.find_subcommand(word)) else {
            break;
        };
        command = found;
        name = format!("{name} {}", command.get_name());
    }
    (name != "tapway").then_some(name)
}

/// A full network for a namespace of your own, without privilege
#[derive(Parser)]
#[command(
    name = "tapway",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "See `tapway run --help` for all options with their defaults.",
    long_about = "tapway gives a network namespace that belongs to an ordinary user a full IPv4 \
        and IPv6 network. It makes a TAP interface inside and carries every connection of the \
        guest on by an ordinary socket of the host, so that neither root nor a bridge, firewall \
        rule or daemon is needed.",
    after_long_help = "EXAMPLES\n  \
        tapway run -- curl https://example.org\n  \
        tapway run                              a shell with a network of its own\n  \
        tapway attach 4711                      a network for the namespace of process 4711\n  \
        tapway ps                               what runs\n  \
        tapway flows --watch                    its connections\n\n\
        See `tapway run --help` and `tapway attach --help` for all options with their defaults."
)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a command in new user, network and mount namespaces with a network
    #[command(long_about = RUN_ABOUT)]
    Run(Run),
    /// Give a network to an existing network namespace, until it goes away
    #[command(long_about = ATTACH_ABOUT)]
    Attach(Attach),
    #[command(flatten)]
    Show(Show),
    /// Check what this machine offers, and how to mend what is missing
    #[command(after_long_help = "EXIT STATUS\n  \
        0  everything needed is there (some comfort may be missing)\n  \
        1  something is missing without which tapway cannot work\n  \
        3  with --strict: something is degraded")]
    Doctor {
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
        /// Fail with status 3 when something is only degraded
        #[arg(long)]
        strict: bool,
    },
    /// Print a completion script for a shell
    #[command(
        long_about = "Prints a script that completes tapway's commands, options and running \
            instances in a shell. The script asks the tapway on your PATH, so it need not be made again \
            after an update.",
        after_long_help = "EXAMPLES\n  \
            tapway completions bash > ~/.local/share/bash-completion/completions/tapway\n  \
            tapway completions zsh > ~/.zfunc/_tapway     (~/.zfunc being in fpath)\n  \
            tapway completions fish > ~/.config/fish/completions/tapway.fish"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const RUN_ABOUT: &str = "\
        Runs COMMAND in new user, network and mount namespaces that have a full network, \
        and ends with COMMAND's exit status. Without COMMAND it runs $SHELL, or /bin/sh.\n\n\
        Inside, COMMAND is root, which outside is you; files are the host's, except \
        /etc/resolv.conf and /etc/hosts. Other users and groups exist inside if you have \
        subordinate ids (/etc/subuid, /etc/subgid) and newuidmap and newgidmap are installed.\n\n\
        Signals sent to tapway reach COMMAND; when COMMAND stops (Ctrl-Z), so does tapway. When \
        tapway dies, however it dies, COMMAND is killed.";

#[derive(Args)]
#[command(
    override_usage = "tapway run [OPTIONS] [--] [COMMAND [ARG]...]",
    after_help = "With --help: every option in detail, examples, exit status.",
    after_long_help = RUN_SECTIONS
)]
struct Run {
    /// The command and its arguments [default: $SHELL, or /bin/sh]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    /// Keep your own user and group inside, instead of being root there
    ///
    /// The command then has no privilege over its namespaces: it cannot bind ports below 1024 or
    /// change addresses.
    #[arg(long, help_heading = "Namespaces")]
    map_user: bool,

    #[command(flatten)]
    shared: Shared,
}

/// What `run` and `attach` say about ports.
macro_rules! port_sections {
    () => {
        "\
PUBLISHED PORTS
  8080:80                       on every address of the host, IPv4 and IPv6
  127.0.0.1:8080:80             for this host only
  [::1]:8080:80/tcp             IPv6 addresses go in brackets
  0.0.0.0:5000-5010:6000-6010/udp
                                ranges, of the same length on both sides
  80, :80, 127.0.0.1::80        the host's port is picked, and printed
  %eth0:8080:80, 0.0.0.0%eth0:8080:80
                                on one interface only
  8080:10.0.2.15:80             a second address of the guest
  unix:/run/user/1000/web.sock:80
                                a Unix socket of the host in front of a guest port
  80:unix:/path, as with --expose-host
                                a port of the gateway in front of a Unix socket of the host
  auto, auto/tcp, auto,~22,~5000-5010
                                whatever the guest listens on, under the same port; but not those

  A rule is for tcp unless /udp says otherwise; for both give two. Ports below 1024 need the sysctl
  net.ipv4.ip_unprivileged_port_start, or a listening socket handed over by systemd (LISTEN_FDS).
"
    };
}

const RUN_SECTIONS: &str = concat!(
    port_sections!(),
    "
ADDRESSES
  IPv4 10.0.2.0/24             IPv6 fd74:6170:7761:79::/64
  10.0.2.2    the gateway      fd74:6170:7761:79::2, fe80::2
  10.0.2.3    DNS forwarder    fd74:6170:7761:79::3
  10.0.2.100  the guest        fd74:6170:7761:79::100

  The host is reachable under its own addresses; the names host.tapway.internal,
  host.docker.internal and host.containers.internal lead there. Services that listen on the host's
  loopback only are out of reach unless --host-loopback is given.

EXIT STATUS
  that of COMMAND, or 128+n if signal n killed it
  2    bad command line
  125  tapway itself failed (no user namespaces, no /dev/net/tun, name in use, ...)
  126  COMMAND was found and cannot be executed
  127  COMMAND was not found

EXAMPLES
  tapway run -- apt-get update
  tapway run --ipv6 off --dns 192.0.2.53 -- make test
  tapway run --host-loopback 10.0.2.2 -- psql -h 10.0.2.2
  tapway run --outbound-interface wg0 -- firefox
  tapway run -p 8080:80 -- nginx -g 'daemon off;'
  tapway run -p 127.0.0.1:5353:53/udp --expose-host 5432 -- ./server
  tapway run --map-user --pcap guest.pcap -- ping -c 3 example.org"
);

const ATTACH_ABOUT: &str = "\
        Makes an interface with a full network in the network namespace of process PID, \
        or in the one that PATH names, and serves it until PID ends, PATH is removed, or tapway \
        is told to end by SIGINT, SIGTERM or SIGHUP. The interface and its addresses go with \
        tapway.\n\n\
        The namespace must be yours: its user namespace is joined to set up the interface. A \
        persistent TAP that is there under the same name is used instead of a new one. The \
        namespace's resolv.conf and hosts files are left alone: DNS is at 10.0.2.3.";

#[derive(Args)]
#[command(
    override_usage = "tapway attach [OPTIONS] PID\n       \
        tapway attach [OPTIONS] --netns PATH [--userns PATH]",
    after_help = "With --help: every option in detail, examples, exit status.",
    after_long_help = ATTACH_SECTIONS
)]
struct Attach {
    /// A process in the network namespace
    #[arg(
        value_name = "PID",
        required_unless_present = "netns",
        conflicts_with = "netns",
        allow_negative_numbers = true,
        value_parser = pid
    )]
    pid: Option<i32>,

    /// The network namespace by its file, such as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "PATH", help_heading = "Namespaces")]
    netns: Option<PathBuf>,

    /// The user namespace to join for it [default: the one that owns the network namespace]
    #[arg(long, value_name = "PATH", help_heading = "Namespaces")]
    userns: Option<PathBuf>,

    #[command(flatten)]
    shared: Shared,
}

const ATTACH_SECTIONS: &str = concat!(
    port_sections!(),
    "
EXIT STATUS
  0  the namespace went away, or a signal asked for the end
  1  failed
  2  bad command line

EXAMPLES
  unshare --user --map-root-user --net sleep 1000 &
  tapway attach $!
  tapway attach --netns /run/user/1000/netns/web --ifname eth0 --mtu 1500
  tapway attach --publish auto,~22 4711"
);

#[derive(Args)]
struct Shared {
    /// Name of the interface inside [default: tap0]
    #[arg(long, value_name = "NAME", help_heading = "Interface")]
    ifname: Option<IfName>,

    /// MTU of the interface inside, 68 to 65520 [default: that of the host's outbound interface]
    ///
    /// IPv6 needs at least 1280. A small MTU costs little, because the kernel hands over frames of
    /// up to 64 KiB whatever the MTU. Without an outbound interface the default is 1500.
    #[arg(long, value_name = "BYTES", value_parser = mtu, help_heading = "Interface")]
    mtu: Option<u16>,

    /// MAC address of the interface inside [default: random]
    #[arg(long, value_name = "MAC", help_heading = "Interface")]
    mac: Option<Mac>,

    /// IPv4 network inside, or "off" [default: 10.0.2.0/24]
    ///
    /// The gateway is the network's address plus 2, the DNS forwarder plus 3, the guest plus 100,
    /// or the last address in networks too small for that. With host bits, as in 10.9.8.7/24, that
    /// address is the guest's. The prefix length is 1 to 29.
    #[arg(long, value_name = "CIDR|off", help_heading = "Interface")]
    ipv4: Option<Switch<Cidr<std::net::Ipv4Addr>>>,

    /// IPv6 network inside, or "off" [default: fd74:6170:7761:79::/64]
    ///
    /// A /64. The gateway is ::2, the DNS forwarder ::3, the guest ::100; with host bits that
    /// address is the guest's.
    #[arg(long, value_name = "CIDR|off", help_heading = "Interface")]
    ipv6: Option<Switch<Cidr<std::net::Ipv6Addr>>>,

    /// Resolver to ask instead of the host's, or "off"; repeatable
    ///
    /// ADDR or ADDR:PORT, with an IPv6 ADDR in brackets before a port. By default the forwarder
    /// asks the resolvers of the host's /etc/resolv.conf, those on its loopback included, and
    /// follows that file when it changes. With "off" there is no forwarder, and the guest keeps the
    /// host's resolv.conf.
    #[arg(long, value_name = "ADDR|off", help_heading = "Names")]
    dns: Vec<DnsChoice>,

    /// Search domain for names inside; repeatable [default: the host's]
    #[arg(long, value_name = "DOMAIN", value_parser = value::domain, help_heading = "Names")]
    dns_search: Vec<String>,

    /// Add a line to the guest's /etc/hosts (run only); repeatable
    ///
    /// ADDR may be "host-gateway", which stands for the host.
    #[arg(long, value_name = "NAME:ADDR", help_heading = "Names")]
    add_host: Vec<AddedHost>,

    /// Address inside that leads to the host's loopback, or "off"; one per family [default: off]
    ///
    /// What the guest sends to ADDR arrives at 127.0.0.1 (or ::1), where services may listen that
    /// trust everybody who can reach them. The gateway's address may be used.
    #[arg(long, value_name = "ADDR|off", help_heading = "Host")]
    host_loopback: Vec<Switch<IpAddr>>,

    /// Address of the host to send from; one per family [default: the kernel's choice]
    #[arg(long, value_name = "ADDR", help_heading = "Host")]
    outbound_addr: Vec<IpAddr>,

    /// Interface of the host to send through [default: as the host's routes say]
    #[arg(long, value_name = "IF", help_heading = "Host")]
    outbound_interface: Option<IfName>,

    /// Publish a port of the guest on the host; repeatable
    ///
    /// In docker's grammar, `[ADDRESS:][HOST-PORT]:GUEST-PORT[/tcp|udp]`: HOST-PORT on every
    /// address of the host, or on ADDRESS only, leads to GUEST-PORT of the guest, which sees the
    /// address of the client. Without HOST-PORT a free one is picked and printed. Further forms:
    /// see PUBLISHED PORTS.
    #[arg(short, long, value_name = "SPEC", help_heading = "Ports")]
    publish: Vec<PublishSpec>,

    /// Open the ports of --publish only while something listens in the guest
    ///
    /// Otherwise they are open from the start, and a client is reset at once when nothing listens
    /// behind them.
    #[arg(long, help_heading = "Ports")]
    publish_when_listening: bool,

    /// How clients reach published TCP ports [default: auto, with --pcap tap]
    ///
    /// A connection to a server in the guest's namespace itself can be joined to it socket to
    /// socket. The server sees the same client address and port. With "auto", clients on the host
    /// itself are joined so, which saves processor time; with "short", all are; with "tap", none.
    /// Where it cannot be had, or the guest could tell the difference (it has nftables or iptables
    /// rules, or the server is behind a bridge of its own), or thousands come in a minute,
    /// connections go by the guest's interface. `tapway flows` shows which way each took.
    #[arg(
        long,
        value_name = "auto|short|tap",
        value_parser = publish_path,
        help_heading = "Ports"
    )]
    publish_path: Option<PublishPath>,

    /// Make a service of the host reachable at the gateway's address; repeatable
    ///
    /// PORT[:[HOST-ADDRESS:]HOST-PORT][/tcp|udp]: PORT at the gateway's addresses (10.0.2.2), as
    /// the guest sees it, leads to HOST-PORT at HOST-ADDRESS, by default the same port of the
    /// host's loopback. PORT:unix:PATH leads to a Unix socket of the host. Ranges, and "auto" with
    /// exclusions, are as in PUBLISHED PORTS.
    #[arg(long, value_name = "SPEC", help_heading = "Ports")]
    expose_host: Vec<ExposeSpec>,

    /// Name of this instance [default: run-PID or attach-PID]
    #[arg(long, value_name = "NAME", help_heading = "Instance")]
    name: Option<InstanceName>,

    /// Worker threads: so many, or as load asks [default: auto]
    #[arg(long, value_name = "N|auto", value_parser = threads, help_heading = "Instance")]
    threads: Option<DraftThreads>,

    /// Let pesto(1) show and change the published ports by a socket at PATH
    #[arg(long, value_name = "PATH", help_heading = "Instance")]
    pesto_socket: Option<PathBuf>,

    /// Write all frames of the guest to FILE, in pcap format
    #[arg(long, value_name = "FILE", help_heading = "Instance")]
    pcap: Option<PathBuf>,

    /// What to log: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", value_parser = level, help_heading = "Instance")]
    log_level: Option<LevelFilter>,

    /// Append the log to FILE [default: standard error]
    #[arg(long, value_name = "FILE", help_heading = "Instance")]
    log_file: Option<PathBuf>,
}

fn pid(text: &str) -> Result<i32, &'static str> {
    text.parse().map_err(|_| "not a process id")
}

/// Any number that the option's type holds; whether the guest can have it depends on its addresses.
fn mtu(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "not a number of bytes from 68 to 65520")
}

fn threads(text: &str) -> Result<DraftThreads, &'static str> {
    if text == "auto" {
        return Ok(DraftThreads::Auto);
    }
    text.parse().map(DraftThreads::Count).map_err(|_| "not a number of threads, nor auto")
}

fn publish_path(text: &str) -> Result<PublishPath, &'static str> {
    match text {
        "auto" => Ok(PublishPath::Auto),
        "short" => Ok(PublishPath::Short),
        "tap" => Ok(PublishPath::Tap),
        _ => Err("not one of tap, auto, short"),
    }
}

fn level(text: &str) -> Result<LevelFilter, &'static str> {
    // The library also takes numbers, which would be guesswork here.
    match text {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => {
            text.parse().map_err(|_| "not a level")
        }
        _ => Err("not one of off, error, warn, info, debug, trace"),
    }
}

impl Shared {
    fn draft(self, target: DraftTarget) -> Draft {
        // What a capture file is to show goes by the link.
        let unasked_path = match self.pcap {
            Some(_) => PublishPath::Tap,
            None => PublishPath::Auto,
        };
        Draft {
            ifname: self.ifname,
            mtu: self.mtu,
            mac: self.mac,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            dns: self.dns,
            dns_search: self.dns_search,
            add_host: self.add_host,
            host_loopback: self.host_loopback,
            outbound_addr: self.outbound_addr,
            outbound_interface: self.outbound_interface,
            publish: self.publish,
            publish_when_listening: self.publish_when_listening,
            publish_path: self.publish_path.unwrap_or(unasked_path),
            expose_host: self.expose_host,
            name: self.name,
            threads: self.threads,
            pesto_socket: self.pesto_socket,
            pcap: self.pcap,
            log_level: self.log_level,
            log_file: self.log_file,
            ..Draft::new(target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Draft, UsageError> {
        match parse(arguments.iter().map(OsString::from))? {
            Invocation::Guest(draft) => Ok(*draft),
            Invocation::Print(text) => panic!("{text}"),
            Invocation::Doctor(options) => panic!("{options:?}"),
            Invocation::Show(show) => panic!("{show:?}"),
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_in_detail_says_what_a_command_does() {
        for (command, words) in [
            ("run", "ends with COMMAND's exit status"),
            ("attach", "until PID ends"),
            ("ps", "Socket files"),
            ("port", "Established connections outlive"),
            ("flows", "conntrack -L"),
            ("stats", "drops by reason"),
        ] {
            match parse([command, "--help"].map(OsString::from)) {
                Ok(Invocation::Print(text)) => {
                    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                    assert!(text.contains(words), "{command}: {text}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        for words in [
            &["run", "--mtu", "1400", "ls", "-l", "--mtu", "9"][..],
            &["run", "--mtu", "1400", "--", "ls", "-l", "--mtu", "9"],
        ] {
            let draft = run(words).unwrap();
            assert_eq!(draft.mtu, Some(1400));
            let command = ["ls", "-l", "--mtu", "9"].map(OsString::from).to_vec();
            assert_eq!(draft.target, DraftTarget::Run { command, map_user: false });
        }
        let draft = run(&["run", "--", "--odd"]).unwrap();
        let command = vec!["--odd".into()];
        assert_eq!(draft.target, DraftTarget::Run { command, map_user: false });
    }

    #[test]
    fn ports_may_be_given_several_times() {
        let words = ["attach", "-p", "8080:80", "-p53:53/udp", "--publish", "auto", "12"];
        let draft = run(&words).unwrap();
        let meant = ["8080:80", "53:53/udp", "auto"].map(|text| text.parse().unwrap());
        assert_eq!(draft.publish, meant);
        assert!(!draft.publish_when_listening && draft.expose_host.is_empty());
        let words = ["run", "--publish-when-listening", "--expose-host", "5432", "--", "true"];
        let draft = run(&words).unwrap();
        assert_eq!(draft.expose_host, ["5432".parse().unwrap()]);
        assert!(draft.publish_when_listening);
    }

    #[test]
    fn targets_of_attach() {
        let target = |words: &[&str]| run(words).map(|draft| draft.target);
        let attach = |target, userns| {
            Ok(DraftTarget::Attach(AttachOptions { target, userns, watched: true }))
        };
        assert_eq!(target(&["attach", "12"]), attach(Target::Process(12), None));
        assert_eq!(
            target(&["attach", "--netns", "/a", "--userns", "/b"]),
            attach(Target::Path("/a".into()), Some("/b".into()))
        );
        for bad in [&["attach"][..], &["attach", "12", "--netns", "/a"], &["attach", "x"]] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn help_is_a_command_too() {
        let text = |words: &[&str]| match parse(words.iter().map(OsString::from)) {
            Ok(Invocation::Print(text)) => text,
            _ => panic!("{words:?} prints nothing"),
        };
        assert_eq!(text(&["help"]), text(&["--help"]));
        assert_eq!(text(&["help", "run"]), text(&["run", "--help"]));
    }

    #[test]
    fn the_hint_names_the_help_of_the_command_that_was_meant() {
        for (words, hint) in [
            (&["bogus"][..], "`tapway --help` and `tapway run --help` explain"),
            (&["run", "--mtu", "x"], "`tapway run --help` explains"),
            (&["attach"], "`tapway attach --help` explains"),
            (&["port", "add"], "`tapway port add --help` explains"),
            (&["completions"], "`tapway completions --help` explains"),
        ] {
            assert_eq!(run(words).unwrap_err().hint, hint, "{words:?}");
        }
    }

    #[test]
    fn usage_errors_are_one_sentence_that_names_the_option() {
        let message = |words: &[&str]| run(words).unwrap_err().to_string();
        for (words, named) in [
            (&["run", "--mtu", "x", "--", "true"][..], "--mtu"),
            (&["run", "--mtu", "99999", "--", "true"], "68 to 65520"),
            (&["attach", "web"], "not a process id"),
            (&["flows", "--port", "99999"], "ports are 1 to 65535"),
            (&["run", "--ipv4", "10.0.2.0", "--", "true"], "--ipv4"),
            (&["run", "--mac", "ff:ff:ff:ff:ff:ff", "--", "true"], "--mac"),
            (&["run", "--bogus", "--", "true"], "--bogus"),
            (&["run", "--threads", "0"], "--threads"),
            (&["run", "--log-level", "3"], "--log-level"),
            (&["run", "--name", "a/b"], "--name"),
            (&["run", "-p", "8080:80/sctp"], "--publish"),
            (&["run", "--expose-host", "x"], "--expose-host"),
            (&["run", "--publish-path", "x"], "--publish-path"),
            (&["bogus"], "bogus"),
        ] {
            let message = message(words);
            assert!(message.contains(named), "{message}");
            assert!(!message.contains('\n') && !message.contains("error:"), "{message}");
        }
    }
}
