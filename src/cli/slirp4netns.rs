//! The command line of slirp4netns, as podman, buildah and rootlesskit write it.
//!
//! `slirp4netns [OPTION]... PID|PATH|FD TAPNAME`. Reads like the original (1.3.3), as far as its
//! callers can tell: what is mistaken is told on standard error, with the usage on standard output
//! where the original shows it; every failure ends with status 1; warnings go to standard output.
//!
//! # What the words mean
//!
//! ```text
//!   10.0.2.0/24  .2 gateway = the host's loopback   .3 DNS   .15 DHCP's lease   .100 guest (-c)
//!   fd00::/64    ::2 gateway = the host's loopback  ::3 DNS  the guest autoconfigures   (-6)
//! ```
//! The instance lives for whoever started it, not for the target. Without `-c` the interface is
//! made and left alone.
//!
//! # Departs
//!
//! `--userns-path` has to exist, but the user namespace that is joined is the one which the kernel
//! says owns the network namespace: where that fails, so does the original. An MTU below 1280
//! switches IPv6 off, which does not work with it; 65521 counts as 65520. A target in our own
//! network namespace is refused. An interface name in `--outbound-addr6` is looked up by itself.
//!
//! Files are looked for while options are read, here as there: the one place of the command lines
//! that asks the system.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::text::{Greeting, USAGE, version};
use super::draft::{Draft, DraftTarget};
use super::getopt::{Flag, Getopt, Item, Order};
use super::value::{Cidr, DnsChoice, Switch};
use crate::base::Mac;
use crate::gate::Habits;
use crate::setup::attach::{AttachOptions, Target};
use crate::setup::{Conduct, IfName, Keeps, LinkSetup, Listed, LivesFor, Sees};

/// The largest MTU that is accepted.
const MAX_MTU: u16 = 65_521;

/// The largest MTU that is used.
const USED_MTU: u16 = 65_520;

/// Below it there is no IPv6 (RFC 8200 §5).
const MIN_MTU_V6: u16 = 1280;

/// The size of `sun_path` (unix(7)), its final zero included.
const SUN_PATH: usize = 108;

/// Characters of a MAC address.
const MAC_LENGTH: usize = "02:00:00:00:00:01".len();

/// The IPv6 network; it is not for choice.
const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);

/// What a command line comes to that starts nothing: texts and a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
    /// To end with.
    pub status: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    EnableIpv6,
    ApiSocket,
    Cidr,
    DisableHostLoopback,
    NoHostLoopback,
    NetnsType,
    UsernsPath,
    EnableSandbox,
    CreateSandbox,
    EnableSeccomp,
    OutboundAddr,
    OutboundAddr6,
    DisableDns,
    MacAddress,
    TargetType,
    Help,
    Version,
}

const OPTIONS: [Flag<Key>; 21] = [
    Flag::both(b'c', "configure", false, Key::Configure),
    Flag::both(b'e', "exit-fd", true, Key::ExitFd),
    Flag::both(b'r', "ready-fd", true, Key::ReadyFd),
    Flag::both(b'm', "mtu", true, Key::Mtu),
    Flag::long("cidr", true, Key::Cidr),
    Flag::long("disable-host-loopback", false, Key::DisableHostLoopback),
    Flag::long("no-host-loopback", false, Key::NoHostLoopback),
    Flag::long("netns-type", true, Key::NetnsType),
    Flag::long("userns-path", true, Key::UsernsPath),
    Flag::both(b'a', "api-socket", true, Key::ApiSocket),
    Flag::both(b'6', "enable-ipv6", false, Key::EnableIpv6),
    Flag::long("enable-sandbox", false, Key::EnableSandbox),
    Flag::long("create-sandbox", false, Key::CreateSandbox),
    Flag::long("enable-seccomp", false, Key::EnableSeccomp),
    Flag::both(b'h', "help", false, Key::Help),
    Flag::both(b'v', "version", false, Key::Version),
    Flag::long("outbound-addr", true, Key::OutboundAddr),
    Flag::long("outbound-addr6", true, Key::OutboundAddr6),
    Flag::long("disable-dns", false, Key::DisableDns),
    Flag::long("macaddress", true, Key::MacAddress),
    Flag::long("target-type", true, Key::TargetType),
];

/// Reads `arguments`, what follows the name of `program`.
///
/// # Errors
/// The [`Answer`] to a command line that starts nothing, `--help` among them.
pub fn parse(program: &OsStr, arguments: Vec<OsString>) -> Result<Draft, Answer> {
    let mut reader = Reader::default();
    let mut words = Vec::new();
    for item in Getopt::new(&OPTIONS, Order::Permute, arguments) {
        let item = item
            .map_err(|error| reader.usage(&format!("{}: {error}\n", program.to_string_lossy())))?;
        match item {
            // Only options that take a value have one.
            Item::Option(key, value) => reader.option(key, value.unwrap_or_default())?,
            Item::Word(word) => words.push(word),
        }
    }
    reader.finish(words)
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Reader {
    /// What goes to standard output, whatever becomes of the rest.
    said: String,
    configure: bool,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u16>,
    ipv6: bool,
    api_socket: Option<PathBuf>,
    cidr: Option<OsString>,
    disable_host_loopback: bool,
    netns_type: Option<OsString>,
    userns_path: bool,
    sandbox: bool,
    seccomp: bool,
    outbound: [Option<OsString>; 2],
    disable_dns: bool,
    mac: Option<OsString>,
    target_type: Option<OsString>,
}

impl Reader {
    fn option(&mut self, key: Key, value: OsString) -> Result<(), Answer> {
        match key {
            Key::Configure => self.configure = true,
            Key::ExitFd => self.exit_fd = Some(self.descriptor("exit-fd", &value)?),
            Key::ReadyFd => self.ready_fd = Some(self.descriptor("ready-fd", &value)?),
            Key::Mtu => {
                let mtu = number(&value).and_then(|n| u16::try_from(n).ok());
                let mtu = mtu.filter(|mtu| (1..=MAX_MTU).contains(mtu)).ok_or_else(|| {
                    self.usage(&format!("MTU must be a positive integer (< {})\n", MAX_MTU + 1))
                })?;
                self.mtu = Some(mtu);
            }
            Key::EnableIpv6 => {
                self.ipv6 = true;
                self.warn("Support for IPv6 is experimental");
            }
            Key::ApiSocket => self.api_socket = Some(value.into()),
            Key::Cidr => self.cidr = Some(value),
            Key::DisableHostLoopback => self.disable_host_loopback = true,
            Key::NoHostLoopback => {
                self.deprecated("no-host-loopback", "disable-host-loopback");
                self.disable_host_loopback = true;
            }
            Key::NetnsType => self.netns_type = Some(value),
            Key::UsernsPath => {
                if !Path::new(&value).exists() {
                    let path = value.to_string_lossy();
                    return Err(self.usage(&format!("userns path doesn't exist: {path}\n")));
                }
                self.userns_path = true;
            }
            Key::EnableSandbox => self.sandbox = true,
            Key::CreateSandbox => {
                self.deprecated("create-sandbox", "enable-sandbox");
                self.sandbox = true;
            }
            Key::EnableSeccomp => {
                self.seccomp = true;
                self.warn("Support for seccomp is experimental");
            }
            Key::OutboundAddr => {
                self.warn("Support for --outbound-addr is experimental");
                self.outbound[0] = Some(value);
            }
            Key::OutboundAddr6 => {
                self.warn("Support for --outbound-addr6 is experimental");
                self.outbound[1] = Some(value);
            }
            Key::DisableDns => self.disable_dns = true,
            Key::MacAddress => self.mac = Some(value),
            Key::TargetType => self.target_type = Some(value),
            Key::Help => return Err(self.end(USAGE, "", 0)),
            Key::Version => return Err(self.end(&version(), "", 0)),
        }
        Ok(())
    }

    fn descriptor(&mut self, name: &str, value: &OsStr) -> Result<RawFd, Answer> {
        let fd = number(value).and_then(|n| RawFd::try_from(n).ok()).filter(|fd| *fd >= 0);
        fd.ok_or_else(|| self.usage(&format!("{name} must be a non-negative integer\n")))
    }

    fn warn(&mut self, text: impl fmt::Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.said, "WARNING: {text}");
    }

    fn deprecated(&mut self, old: &str, new: &str) {
        self.warn(format_args!(
            "--{old} is deprecated and will be removed in future releases, \
             please use --{new} instead."
        ));
    }

    fn end(&mut self, stdout: &str, stderr: &str, status: u8) -> Answer {
        let said = std::mem::take(&mut self.said);
        Answer { stdout: said + stdout, stderr: stderr.to_owned(), status }
    }

    /// A mistake after which the original shows its usage.
    fn usage(&mut self, why: &str) -> Answer {
        self.end(USAGE, why, 1)
    }

    /// A mistake after which it does not.
    fn fail(&mut self, why: impl fmt::Display) -> Answer {
        self.end("", &format!("{why}\n"), 1)
    }

    fn finish(mut self, words: Vec<OsString>) -> Result<Draft, Answer> {
        let (target, ifname) = self.target(words)?;
        let network = self.network()?;
        let mac = self.mac()?;
        let outbound = std::mem::take(&mut self.outbound);
        let [from4, from6] = outbound;
        let v4 =
            self.source(from4, "ipv4", |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4))?;
        let v6 =
            self.source(from6, "ipv6", |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6))?;
        let path = self.api_socket.as_ref().map(|path| path.as_os_str().len());
        if path.is_some_and(|length| length >= SUN_PATH) {
            let why = format!("the specified API socket path is too long (>= {SUN_PATH})");
            return Err(self.fail(why));
        }
        let mtu = self.mtu.unwrap_or(1500);
        let with_v6 = self.ipv6 && mtu >= MIN_MTU_V6;
        let at = |offset| Ipv4Addr::from(u32::from(network.address) + offset);
        let gateway6 = Ipv6Addr::from(u128::from(NETWORK6) + 2);
        let mut host_loopback = vec![Switch::On(IpAddr::V4(at(2)))];
        host_loopback.extend(with_v6.then_some(Switch::On(IpAddr::V6(gateway6))));
        if self.disable_host_loopback {
            host_loopback.clear();
        }
        let greeting = Greeting {
            mtu,
            network,
            api_socket: self.api_socket.as_deref(),
            host_loopback: !self.disable_host_loopback,
        };
        let greeting = greeting.to_string();
        let conduct = Conduct {
            lives_for: LivesFor::Starter(self.exit_fd),
            ready_fd: self.ready_fd,
            listed: Listed::As("slirp4netns"),
            api_socket: self.api_socket.clone(),
            keeps: Keeps::LowPorts,
            sees: if self.sandbox { Sees::EtcAndRun } else { Sees::Everything },
            refuses_calls: self.seccomp,
            trusts_outbound: true,
            greeting: std::mem::take(&mut self.said) + &greeting,
            ..Conduct::default()
        };
        Ok(Draft {
            ifname,
            mtu: Some(mtu.min(USED_MTU)),
            mac,
            ipv4: Some(Switch::On(network)),
            ipv6: Some(match with_v6 {
                true => Switch::On(Cidr { address: NETWORK6, prefix: 64 }),
                false => Switch::Off,
            }),
            dns: if self.disable_dns { vec![DnsChoice::Off] } else { vec![] },
            host_loopback,
            outbound_addr: v4.0.into_iter().chain(v6.0).collect(),
            outbound_from: [v4.1, v6.1],
            outbound_to_loopback: true,
            habits: Habits {
                closed_is_unreachable: self.disable_host_loopback,
                dns_is_silent: self.disable_dns,
                lease: Some(at(15)),
            },
            link_setup: if self.configure { LinkSetup::WithoutV6 } else { LinkSetup::Nothing },
            conduct,
            ..Draft::new(DraftTarget::Attach(AttachOptions {
                target,
                userns: None,
                watched: false,
            }))
        })
    }

    /// The target and the name of the interface in it.
    fn target(&mut self, words: Vec<OsString>) -> Result<(Target, Option<IfName>), Answer> {
        let kind = self.target_type.take();
        match kind.as_deref().map(OsStr::as_bytes) {
            None | Some(b"netns") => {}
            Some(b"bess") => return self.bess(words),
            Some(_) => {
                let why = "--target-type must be either \"netns\" or \"bess\"\n";
                return Err(self.usage(why));
            }
        }
        let mut words = words.into_iter();
        let netns_type = self.netns_type.take();
        let netns_type = netns_type.as_deref().map(OsStr::as_bytes);
        let tapfd = netns_type == Some(b"tapfd");
        let Some(target) = words.next() else { return Err(self.usage("")) };
        let name = words.next();
        if name.is_none() && !tapfd {
            return Err(self.usage(""));
        }
        if words.next().is_some() || (tapfd && name.is_some()) {
            self.warn("too many arguments");
        }
        let target = match netns_type {
            None | Some(b"pid") => {
                let pid = number(&target).and_then(|n| i32::try_from(n).ok()).filter(|n| *n > 0);
                Target::Process(pid.ok_or_else(|| self.usage("PID must be a positive integer\n"))?)
            }
            Some(b"tapfd") => {
                let fd = number(&target).and_then(|n| RawFd::try_from(n).ok());
                let fd = fd.filter(|fd| *fd >= 0);
                Target::Tap(fd.ok_or_else(|| self.usage("tapfd must be a non-negative integer\n"))?)
            }
            Some(_) => {
                let path = PathBuf::from(target);
                if let Err(error) = path.metadata() {
                    let why = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)).desc();
                    let text = "existing path expected when --netns-type=path";
                    return Err(self.usage(&format!("{text}: {why}\n")));
                }
                Target::Path(path)
            }
        };
        let ifname = match name.filter(|_| !tapfd) {
            Some(name) => Some(self.ifname(&name)?),
            None => None,
        };
        if self.mac.is_some() && !self.configure {
            let why = "--macaddr cannot be specified when --configure or -c is not specified\n";
            return Err(self.usage(why));
        }
        Ok((target, ifname))
    }

    fn bess(&mut self, words: Vec<OsString>) -> Result<(Target, Option<IfName>), Answer> {
        for (given, option) in [
            (self.configure, "configure"),
            (self.netns_type.is_some(), "netns-type"),
            (self.userns_path, "userns-path"),
        ] {
            if given {
                return Err(self.usage(&format!("--{option} conflicts with --target-type=bess\n")));
            }
        }
        let mut words = words.into_iter();
        let Some(path) = words.next() else { return Err(self.usage("")) };
        if words.next().is_some() {
            return Err(self.usage("too many arguments\n"));
        }
        self.warn("BESS mode is experimental");
        if path.len() >= SUN_PATH {
            let why = format!("the specified BESS socket path is too long (>= {SUN_PATH})");
            return Err(self.fail(why));
        }
        Ok((Target::Socket(path.into()), None))
    }

    /// The interface's name, cut to what the kernel takes.
    fn ifname(&mut self, name: &OsStr) -> Result<IfName, Answer> {
        let name: String = name.to_string_lossy().chars().take(libc::IFNAMSIZ - 1).collect();
        name.parse().map_err(|error| self.fail(format_args!("{name}: {error}")))
    }

    fn network(&mut self) -> Result<Cidr<Ipv4Addr>, Answer> {
        let Some(text) = self.cidr.take() else {
            return Ok(Cidr { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 });
        };
        let text = text.to_string_lossy().into_owned();
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        let looks_right = |address: &str, prefix: &str| {
            let bytes: Vec<&str> = address.split('.').collect();
            bytes.len() == 4 && bytes.iter().all(|byte| digits(byte, 3)) && digits(prefix, 2)
        };
        let parts = text.split_once('/').filter(|(address, prefix)| looks_right(address, prefix));
        let Some((address, prefix)) = parts else {
            return Err(self.fail(format_args!("invalid CIDR: {text}")));
        };
        let (Ok(address), Ok(prefix)) = (address.parse::<Ipv4Addr>(), prefix.parse::<u32>()) else {
            return Err(self.fail(format_args!("invalid network address: {address}")));
        };
        if !(1..=25).contains(&prefix) {
            return Err(self.fail("prefix length needs to be 1-25"));
        }
        let network = u32::from(address) & (u32::MAX << (32 - prefix));
        if network != u32::from(address) {
            return Err(self.fail(format_args!(
                "CIDR needs to be a network address like {}/{prefix}, not like {text}",
                Ipv4Addr::from(network)
            )));
        }
        // At most 25.
        Ok(Cidr { address, prefix: prefix as u8 })
    }

    fn mac(&mut self) -> Result<Option<Mac>, Answer> {
        let Some(text) = self.mac.take() else { return Ok(None) };
        let text = text.to_string_lossy().into_owned();
        text.parse().map(Some).map_err(|_| {
            let too_long = if text.len() > MAC_LENGTH { "  Is it too long?" } else { "" };
            self.fail(format_args!(
                "\"{text}\" is an invalid MAC address.{too_long}\n\
                 macaddress has to be a valid MAC address \
                 (hex string, 6 bytes, each byte separated by a ':')."
            ))
        })
    }

    /// Where to send from: an address, or an interface whose address it is.
    fn source(
        &mut self,
        value: Option<OsString>,
        family: &str,
        parse: impl Fn(&str) -> Option<IpAddr>,
    ) -> Result<(Option<IpAddr>, Option<IfName>), Answer> {
        let Some(value) = value else { return Ok((None, None)) };
        let text = value.to_string_lossy();
        if let Some(address) = parse(&text) {
            // The unspecified address is the kernel's choice, as without the option.
            return Ok((Some(address).filter(|address| !address.is_unspecified()), None));
        }
        match text.parse() {
            Ok(name) => Ok((None, Some(name))),
            Err(_) => Err(self.fail(format_args!(
                "outbound-addr has to be valid {family} address or interface name."
            ))),
        }
    }
}

/// A decimal number.
fn number(text: &OsStr) -> Option<i64> {
    text.to_str()?.trim_start().parse().ok()
}

#[cfg(test)]
mod tests;
mod text;
