//! A command line as it was typed: options in their order, words, and the mistakes that can be told
//! from them alone.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::PastaError;
use super::options::Key;
use super::passt::{self, Mode};
use crate::base::Mac;
use crate::cli::getopt::{Getopt, Item, Order};
use crate::setup::IfName;
use crate::setup::machine::MachineOptions;

/// One value for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PerFamily<A, B> {
    pub(super) v4: Option<A>,
    pub(super) v6: Option<B>,
}

impl<A, B> Default for PerFamily<A, B> {
    fn default() -> Self {
        PerFamily { v4: None, v6: None }
    }
}

/// Addresses, one of each family at most.
pub(super) type Addresses = PerFamily<Ipv4Addr, Ipv6Addr>;

impl Addresses {
    /// Enters `address`; whether its family had one already.
    fn put(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.replace(a).is_some(),
            IpAddr::V6(a) => self.v6.replace(a).is_some(),
        }
    }

    /// Those that there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4).into_iter();
        v4.chain(self.v6.map(IpAddr::V6))
    }
}

/// The other words of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A command in new namespaces; empty for the shell.
    Command(Vec<OsString>),
    /// The namespaces of a process.
    Process(i32),
    /// `--netns`.
    Path(PathBuf),
    /// A virtual machine.
    Machine(MachineOptions),
}

/// A command line as typed. `None`, empty and `false` mean "not said".
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) mode: Mode,
    pub(super) subject: Subject,
    pub(super) userns: Option<PathBuf>,
    pub(super) level: LevelFilter,
    pub(super) foreground: bool,
    pub(super) log_file: Option<PathBuf>,
    /// In bytes.
    pub(super) log_size: u64,
    /// Seconds between two lines of statistics.
    pub(super) stats: Option<u32>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) pcap: Option<PathBuf>,
    pub(super) pesto_socket: Option<PathBuf>,
    pub(super) run_as: Option<String>,
    pub(super) ifname: Option<IfName>,
    pub(super) ns_mac: Option<Mac>,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: Option<u16>,
    pub(super) address: Addresses,
    /// Of `--address A/P`, for IPv4.
    pub(super) prefix: Option<u8>,
    pub(super) netmask: Option<u8>,
    pub(super) gateway: Addresses,
    pub(super) interface: Option<IfName>,
    pub(super) outbound_if: PerFamily<IfName, IfName>,
    pub(super) outbound: Addresses,
    pub(super) config_net: bool,
    pub(super) copy_routes: bool,
    pub(super) copy_addresses: bool,
    pub(super) dns: Vec<IpAddr>,
    pub(super) search: Vec<String>,
    pub(super) hostname: Option<String>,
    pub(super) fqdn: Option<String>,
    pub(super) dhcp_dns: bool,
    pub(super) dhcp_search: bool,
    pub(super) dns_forward: Addresses,
    pub(super) dns_host: Addresses,
    pub(super) map_host_loopback: Addresses,
    pub(super) map_guest_addr: Addresses,
    pub(super) map_gateway: bool,
    pub(super) tcp: bool,
    pub(super) udp: bool,
    pub(super) icmp: bool,
    pub(super) dhcp: bool,
    pub(super) ndp: bool,
    pub(super) dhcp6: bool,
    pub(super) ra: bool,
    pub(super) v4: bool,
    pub(super) v6: bool,
    pub(super) tcp_ports: Vec<String>,
    pub(super) udp_ports: Vec<String>,
    pub(super) tcp_ns: Vec<String>,
    pub(super) udp_ns: Vec<String>,
    pub(super) host_lo_to_ns_lo: bool,
    pub(super) splice: bool,
    pub(super) splice_only: bool,
    pub(super) freebind: bool,
    pub(super) netns_only: bool,
    pub(super) own_processes: bool,
    pub(super) quit: bool,
    /// Deprecated options that were used.
    pub(super) deprecated: Vec<&'static str>,
}

/// What a command line asks for.
pub(super) enum Typed {
    Help,
    Version,
    Command(Box<Command>),
}

impl Command {
    fn new(mode: Mode) -> Command {
        Command {
            mode,
            subject: Subject::Command(Vec::new()),
            userns: None,
            level: LevelFilter::INFO,
            foreground: false,
            log_file: None,
            log_size: DEFAULT_LOG,
            stats: None,
            pid_file: None,
            pcap: None,
            pesto_socket: None,
            run_as: None,
            ifname: None,
            ns_mac: None,
            mac: None,
            mtu: None,
            address: Addresses::default(),
            prefix: None,
            netmask: None,
            gateway: Addresses::default(),
            interface: None,
            outbound_if: PerFamily::default(),
            outbound: Addresses::default(),
            config_net: false,
            copy_routes: true,
            copy_addresses: true,
            dns: Vec::new(),
            search: Vec::new(),
            hostname: None,
            fqdn: None,
            dhcp_dns: mode == Mode::Passt,
            dhcp_search: mode == Mode::Passt,
            dns_forward: Addresses::default(),
            dns_host: Addresses::default(),
            map_host_loopback: Addresses::default(),
            map_guest_addr: Addresses::default(),
            map_gateway: true,
            tcp: true,
            udp: true,
            icmp: true,
            dhcp: true,
            ndp: true,
            dhcp6: true,
            ra: true,
            v4: true,
            v6: true,
            tcp_ports: Vec::new(),
            udp_ports: Vec::new(),
            tcp_ns: Vec::new(),
            udp_ns: Vec::new(),
            host_lo_to_ns_lo: false,
            splice: true,
            splice_only: false,
            freebind: false,
            netns_only: false,
            own_processes: true,
            quit: true,
            deprecated: Vec::new(),
        }
    }
}

/// Reads `arguments`, without the program's name. Options act in their order: the first mistake
/// counts, help and version hide what follows them.
pub(super) fn read(mode: Mode, arguments: Vec<OsString>) -> Result<Typed, PastaError> {
    let mut command = Command::new(mode);
    let mut socket = passt::Socket::default();
    let (mut netns, mut words) = (None, Vec::new());
    for item in Getopt::new(&passt::table(mode), Order::Posix, arguments) {
        let item = item?;
        if let (Mode::Passt, Item::Option(key, value)) = (mode, &item) {
            passt::refuse(*key)?;
            if socket.take(*key, value.as_deref().unwrap_or_default())? {
                continue;
            }
        }
        match item {
            Item::Word(word) => words.push(word),
            Item::Option(Key::Help, _) => return Ok(Typed::Help),
            Item::Option(Key::Version, _) => return Ok(Typed::Version),
            Item::Option(Key::Netns, value) => netns = value,
            Item::Option(Key::NetnsOnly, _) => command.netns_only = true,
            Item::Option(key, value) => take(&mut command, key, value.unwrap_or_default())?,
        }
    }
    command.subject = match mode {
        Mode::Pasta => subject(netns, words)?,
        Mode::Passt => Subject::Machine(socket.options(words)?),
    };
    if command.netns_only && command.userns.is_some() {
        return Err(PastaError::Exclusive("--userns", "--netns-only"));
    }
    if command.host_lo_to_ns_lo && !command.splice {
        return Err(PastaError::Incompatible("--host-lo-to-ns-lo", "--no-splice"));
    }
    if command.splice_only && !command.splice {
        return Err(PastaError::Incompatible("--splice-only", "--no-splice"));
    }
    if command.splice_only {
        // What only a link could carry.
        (command.icmp, command.ndp, command.ra) = (false, false, false);
        (command.dhcp, command.dhcp6) = (false, false);
        command.dns_forward = Addresses::default();
    }
    if !command.own_processes && !matches!(command.subject, Subject::Command(_)) {
        return Err(PastaError::Incompatible("--no-pidns", "PID or --netns"));
    }
    if command.prefix.is_some() && command.netmask.is_some() {
        return Err(PastaError::Exclusive("--netmask", "a prefix length in --address"));
    }
    for (said, option) in
        [(!command.copy_routes, "--no-copy-routes"), (!command.copy_addresses, "--no-copy-addrs")]
    {
        if said && !command.config_net {
            return Err(PastaError::Needs(option, "--config-net"));
        }
    }
    Ok(Typed::Command(Box::new(command)))
}

fn subject(netns: Option<OsString>, words: Vec<OsString>) -> Result<Subject, PastaError> {
    match (netns, words.as_slice()) {
        (Some(_), [_, ..]) => Err(PastaError::NetnsAndWords),
        // A name is one of iproute2's.
        (Some(name), []) if !name.as_bytes().contains(&b'/') => {
            Ok(Subject::Path(PathBuf::from("/run/netns").join(name)))
        }
        (Some(path), []) => Ok(Subject::Path(path.into())),
        (None, [pid]) if !pid.is_empty() && pid.as_bytes().iter().all(u8::is_ascii_digit) => {
            let text = pid.to_string_lossy();
            let number = text.parse().ok().filter(|pid| *pid > 0);
            number.map(Subject::Process).ok_or_else(|| PastaError::value("PID", &text))
        }
        (None, _) => Ok(Subject::Command(words)),
    }
}

fn take(command: &mut Command, key: Key, value: OsString) -> Result<(), PastaError> {
    let path = || PathBuf::from(&value);
    let text = value.to_string_lossy();
    let bad = |what| PastaError::value(what, &text);
    let name = |what| text.parse::<IfName>().map_err(|_| bad(what));
    let mac = |what| text.parse::<Mac>().map_err(|_| bad(what));
    let once = |again: bool, option| if again { Err(PastaError::Twice(option)) } else { Ok(()) };
    match key {
        Key::Debug => command.level = LevelFilter::DEBUG,
        Key::Trace => command.level = LevelFilter::TRACE,
        Key::Quiet => command.level = LevelFilter::WARN,
        Key::Foreground => command.foreground = true,
        Key::Stderr => command.deprecated.push("--stderr"),
        Key::Stats if !command.foreground => {
            return Err(PastaError::Needs("--stats", "--foreground"));
        }
        Key::Stats => {
            let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
            command.stats = Some(seconds.ok_or_else(|| bad("--stats"))?);
        }
        Key::LogFile => command.log_file = Some(path()),
        Key::LogSize => {
            let size = text.parse().ok().filter(|size| *size >= MIN_LOG);
            command.log_size = size.ok_or_else(|| bad("--log-size"))?;
        }
        Key::PidFile => command.pid_file = Some(path()),
        Key::Pcap => command.pcap = Some(path()),
        Key::ConfPath => command.pesto_socket = Some(path()),
        Key::RunAs => command.run_as = Some(text.into_owned()),
        Key::IfName => command.ifname = Some(name("interface name")?),
        Key::NsMac => command.ns_mac = Some(mac("MAC address")?),
        Key::Mac => command.mac = Some(mac("MAC address")?),
        Key::Mtu => {
            let mtu = text.parse().ok().filter(|mtu| *mtu <= MAX_MTU);
            command.mtu = Some(mtu.ok_or_else(|| bad("MTU"))?);
        }
        Key::Address => {
            let (address, prefix) = match text.split_once('/') {
                Some((address, prefix)) => (address, Some(prefix)),
                None => (&*text, None),
            };
            let address = guest_address(address).ok_or_else(|| bad("address"))?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map(|prefix| prefix.parse().ok().filter(|p| *p <= bits));
            let prefix: Option<u8> = match prefix {
                Some(None) => return Err(bad("address")),
                Some(prefix) => prefix,
                None => None,
            };
            once(command.address.put(address), "--address")?;
            if address.is_ipv4() {
                command.prefix = prefix;
            }
        }
        Key::Netmask => command.netmask = Some(netmask(&text).ok_or_else(|| bad("netmask"))?),
        Key::Gateway => {
            let gateway = guest_address(&text).ok_or_else(|| bad("gateway address"))?;
            once(command.gateway.put(gateway), "--gateway")?;
        }
        Key::Interface => command.interface = Some(name("interface name")?),
        Key::OutboundIf4 => command.outbound_if.v4 = Some(name("interface name")?),
        Key::OutboundIf6 => command.outbound_if.v6 = Some(name("interface name")?),
        Key::Outbound => {
            // An empty value is no address: engines that have none pass it on as it is.
            if !text.is_empty() {
                let address = text.parse().map_err(|_| bad("or redundant outbound address"))?;
                once(command.outbound.put(address), "--outbound")?;
            }
        }
        Key::ConfigNet => command.config_net = true,
        Key::NoCopyRoutes => {
            command.copy_routes = false;
            command.deprecated.push("--no-copy-routes");
        }
        Key::NoCopyAddrs => {
            command.copy_addresses = false;
            command.deprecated.push("--no-copy-addrs");
        }
        Key::Dns if text == "none" || text.is_empty() => command.dns.clear(),
        Key::Dns => command.dns.push(text.parse().map_err(|_| bad("DNS address"))?),
        Key::Search if text == "none" || text.is_empty() => command.search.clear(),
        Key::Search => command.search.extend(text.split_whitespace().map(str::to_owned)),
        Key::DhcpDns => command.dhcp_dns = true,
        Key::NoDhcpDns => command.dhcp_dns = false,
        Key::DhcpSearch => command.dhcp_search = true,
        Key::NoDhcpSearch => command.dhcp_search = false,
        Key::DnsForward => {
            let address = guest_address(&text).ok_or_else(|| bad("DNS forwarding address"))?;
            once(command.dns_forward.put(address), "--dns-forward")?;
        }
        Key::DnsHost => {
            let address = text.parse().map_err(|_| bad("host nameserver address"))?;
            once(command.dns_host.put(address), "--dns-host")?;
        }
        Key::MapHostLoopback if text == "none" => {
            command.map_host_loopback = Addresses::default();
            command.map_gateway = false;
        }
        Key::MapHostLoopback => {
            let address = guest_address(&text).ok_or_else(|| bad("address to remap to host"))?;
            command.map_host_loopback.put(address);
        }
        Key::MapGuestAddr if text == "none" => command.map_guest_addr = Addresses::default(),
        Key::MapGuestAddr => {
            let address = guest_address(&text).ok_or_else(|| bad("address to remap to host"))?;
            command.map_guest_addr.put(address);
        }
        Key::NoMapGw => command.map_gateway = false,
        // What they ask for is so in any case, or concerns programs that the guest does not run.
        Key::ChrootFallback => {}
        Key::Hostname => command.hostname = Some(host_name(&text).ok_or_else(|| bad("hostname"))?),
        Key::Fqdn => command.fqdn = Some(host_name(&text).ok_or_else(|| bad("FQDN"))?),
        Key::Freebind => command.freebind = true,
        Key::NoPidNs => command.own_processes = false,
        Key::NoTcp => command.tcp = false,
        Key::NoUdp => command.udp = false,
        Key::NoIcmp => {
            command.icmp = false;
            command.ndp = false;
        }
        Key::NoDhcp => command.dhcp = false,
        Key::NoNdp => command.ndp = false,
        Key::NoDhcp6 => command.dhcp6 = false,
        Key::NoRa => command.ra = false,
        Key::V4Only => (command.v4, command.v6) = (true, false),
        Key::V6Only => (command.v4, command.v6) = (false, true),
        Key::TcpPorts => command.tcp_ports.push(text.into_owned()),
        Key::UdpPorts => command.udp_ports.push(text.into_owned()),
        Key::TcpNs => command.tcp_ns.push(text.into_owned()),
        Key::UdpNs => command.udp_ns.push(text.into_owned()),
        Key::HostLoToNsLo => command.host_lo_to_ns_lo = true,
        Key::NoSplice => command.splice = false,
        Key::SpliceOnly => command.splice_only = true,
        Key::NoNetnsQuit => command.quit = false,
        Key::Userns => command.userns = Some(path()),
        Key::Fd => return Err(PastaError::Unsupported("--fd")),
        Key::Socket => return Err(PastaError::PasstOnly("--socket")),
        Key::OneOff => return Err(PastaError::PasstOnly("--one-off")),
        Key::Absent(option) => return Err(PastaError::PasstOnly(option)),
        // Taken by the caller.
        Key::Help | Key::Version | Key::Netns | Key::NetnsOnly => {}
    }
    Ok(())
}

/// The size of a log file unless said otherwise, and the least that can be said: five buffers of
/// stdio's, as pasta has it.
const DEFAULT_LOG: u64 = 1 << 20;
const MIN_LOG: u64 = 5 * 8192;

/// The largest MTU of a TAP: 65535 bytes less an Ethernet header.
const MAX_MTU: u16 = 65_521;

/// An address that somebody on the guest's link can have.
fn guest_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|address: &IpAddr| {
        !address.is_loopback()
            && !address.is_multicast()
            && !address.is_unspecified()
            && *address != IpAddr::V4(Ipv4Addr::BROADCAST)
    })
}

/// A name that DHCP can carry (RFC 1035 §2.3.4).
fn host_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(good)
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    (name.len() <= 253 && name.split('.').all(label)).then(|| text.to_owned())
}

/// A prefix length, or a mask in dotted form.
fn netmask(text: &str) -> Option<u8> {
    if let Ok(bits) = text.parse::<u8>() {
        return (1..=32).contains(&bits).then_some(bits);
    }
    let mask = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let bits = mask.leading_ones();
    (mask != 0 && mask.count_ones() == bits).then(|| u8::try_from(bits).ok()).flatten()
}
