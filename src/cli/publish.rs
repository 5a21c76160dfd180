//! The grammars of `--publish` and `--expose-host`.
//!
//! ```text
//! publish = [ADDRESS[%IF]:|%IF:][PORTS]:[GUEST-ADDRESS:]PORTS[/PROTOCOL]
//!         | PORTS[/PROTOCOL]                     host ports picked
//!         | unix:PATH:[GUEST-ADDRESS:]PORT       a Unix socket of the host
//!         | PORT:unix:PATH                       an exposure
//!         | auto
//! expose  = PORTS[:[HOST-ADDRESS:]PORTS][/PROTOCOL] | PORT:unix:PATH | auto
//! auto    = "auto"[/PROTOCOL]{,~PORTS}
//! PORTS   = PORT[-PORT]        PROTOCOL = tcp | udp        IPv6 addresses in brackets
//! ```
//!
//! The first form is docker's, to which interface, guest address and Unix sockets are added.
//! Departs from docker in that ranges must have the same length on both sides: docker picks one
//! host port of a range in front of a single guest port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::control::api::Rule;
use crate::gate::forward::{
    AutoForward, Exposure, Forward, HostService, Listen, PortRange, Transport,
};
use crate::observe::PortKind;
use crate::setup::IfName;

/// A value of `--publish`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishSpec {
    /// Host listeners; several where each port of a range is picked by itself.
    Forwards(Vec<Forward>),
    /// `PORT:unix:PATH`, the other way round.
    Exposure(Exposure),
    /// `auto`.
    Auto(AutoForward),
}

/// A value of `--expose-host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExposeSpec {
    /// Ports at the gateway's addresses.
    Exposure(Exposure),
    /// `auto`.
    Auto(AutoForward),
}

/// Why a value is none. The message is to follow the value itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not a number from 1 to 65535.
    #[error("{0:?} is not a port: ports are 1 to 65535")]
    Port(String),
    /// Port 0, which docker takes for "any".
    #[error("there is no port 0: leave the host port out to have one picked, as in :80")]
    PortZero,
    /// Nothing where a port must be.
    #[error("a port is missing")]
    NoPort,
    /// A range from high to low.
    #[error("the range {0}-{1} runs backwards: write {1}-{0}")]
    Backwards(u16, u16),
    /// Ranges of different lengths.
    #[error(
        "{outer} and {inner} must have the same length, and are {} and {} ports",
        outer.count(),
        inner.count()
    )]
    Lengths {
        /// The ports in front.
        outer: PortRange,
        /// The ports behind them.
        inner: PortRange,
    },
    /// Neither tcp nor udp, or several at once.
    #[error("{0:?} is not a protocol: write /tcp or /udp, and one option for each")]
    Protocol(String),
    /// An IPv6 address without brackets, or a bracket without its pair.
    #[error("an IPv6 address goes in brackets, as in [::1]:8080:80")]
    Brackets,
    /// Not an address.
    #[error("{0:?} is not an address such as 127.0.0.1 or [::1]")]
    Address(String),
    /// An address with a single port.
    #[error("which port is on the host: write {0}:8080:{1}, or {0}::{1} to have it picked")]
    OnePort(String, String),
    /// More than four parts.
    #[error("too many colons: at most ADDRESS:PORT:GUEST-ADDRESS:PORT")]
    TooManyParts,
    /// More than three parts.
    #[error("too many colons: at most PORT:HOST-ADDRESS:PORT")]
    TooManyExposeParts,
    /// Not the name of an interface.
    #[error("{0:?} is not an interface: its name has 1 to 15 bytes, no blank and none of / : %")]
    Interface(String),
    /// An address that has the wrong meaning at its place.
    #[error("{address} {why}")]
    WrongAddress {
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A path that depends on the working directory.
    #[error("the path of a Unix socket must be absolute, and {0:?} is not")]
    RelativePath(String),
    /// A path that names a directory.
    #[error("{0:?} names a directory, not a socket")]
    DirectoryPath(String),
    /// A path longer than an address of a Unix socket.
    #[error("the path of a Unix socket has at most {MAX_UNIX_PATH} bytes, and this one has {0}")]
    LongPath(usize),
    /// A Unix socket without a port.
    #[error("the guest's port is missing: write unix:PATH:PORT")]
    UnixWithoutPort,
    /// A Unix socket in front, where it can only be behind.
    #[error("an exposed socket stands behind its port: write PORT:unix:PATH")]
    UnixInFront,
    /// A Unix socket with a protocol other than TCP.
    #[error("a Unix socket carries tcp only")]
    UnixProtocol,
    /// A Unix socket with a range.
    #[error("a Unix socket stands for one port, and {0} are {n} ports", n = .0.count())]
    UnixRange(PortRange),
    /// `auto` followed by something else.
    #[error("{0:?} does not belong after auto: exclusions are as in auto,~22,~5000-5010")]
    Auto(String),
}

/// `sun_path` of unix(7) without the final NUL.
const MAX_UNIX_PATH: usize = 107;

impl FromStr for PublishSpec {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(auto) = auto(text)? {
            return Ok(PublishSpec::Auto(auto));
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            return Ok(PublishSpec::Forwards(vec![unix_forward(rest)?]));
        }
        if let Some((port, path)) = text.split_once(":unix:") {
            return unix_exposure(port, path).map(PublishSpec::Exposure);
        }
        let (text, transport) = transport(text)?;
        let parts = split(text)?;
        let sides = match parts[..] {
            [inner] => Sides { inner, ..Sides::default() },
            [outer, inner] => match address(outer) {
                Ok(_) if !outer.is_empty() => {
                    return Err(SpecError::OnePort(outer.to_owned(), inner.to_owned()));
                }
                _ => Sides { outer, inner, ..Sides::default() },
            },
            [outer, guest, inner] if looks_like_ports(outer) && !looks_like_ports(guest) => {
                Sides { outer, guest, inner, ..Sides::default() }
            }
            [host, outer, inner] => Sides { host, outer, inner, ..Sides::default() },
            [host, outer, guest, inner] => Sides { host, outer, guest, inner },
            _ => return Err(SpecError::TooManyParts).map_err(or_brackets(&parts)),
        };
        sides.forwards(transport).map(PublishSpec::Forwards).map_err(or_brackets(&parts))
    }
}

impl FromStr for ExposeSpec {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(auto) = auto(text)? {
            return Ok(ExposeSpec::Auto(auto));
        }
        if text.starts_with("unix:") {
            return Err(SpecError::UnixInFront);
        }
        if let Some((port, path)) = text.split_once(":unix:") {
            return unix_exposure(port, path).map(ExposeSpec::Exposure);
        }
        let (text, transport) = transport(text)?;
        let parts = split(text)?;
        let exposure = match parts[..] {
            [outer] => exposure(transport, outer, "", outer),
            [outer, inner] => exposure(transport, outer, "", inner),
            [outer, host, inner] => exposure(transport, outer, host, inner),
            _ => Err(SpecError::TooManyExposeParts),
        };
        exposure.map(ExposeSpec::Exposure).map_err(or_brackets(&parts))
    }
}

/// Reads a port for a running instance, in the grammar of `--publish` or `--expose-host`.
///
/// # Errors
/// A sentence that names `spec`.
pub fn parse_rules(kind: PortKind, spec: &str) -> Result<Vec<Rule>, String> {
    let auto = || format!("{spec}: auto is for the start of an instance only");
    let wrong = |error: SpecError| format!("{spec}: {error}");
    match kind {
        PortKind::Publish => match spec.parse().map_err(wrong)? {
            PublishSpec::Forwards(forwards) => {
                Ok(forwards.into_iter().map(Rule::Publish).collect())
            }
            PublishSpec::Exposure(exposure) => Ok(vec![Rule::Expose(exposure)]),
            PublishSpec::Auto(_) => Err(auto()),
        },
        PortKind::Expose => match spec.parse().map_err(wrong)? {
            ExposeSpec::Exposure(exposure) => Ok(vec![Rule::Expose(exposure)]),
            ExposeSpec::Auto(_) => Err(auto()),
        },
    }
}

/// The parts of a published port as typed; what was left out is empty.
#[derive(Clone, Copy, Default)]
struct Sides<'a> {
    host: &'a str,
    outer: &'a str,
    guest: &'a str,
    inner: &'a str,
}

impl Sides<'_> {
    fn forwards(self, transport: Transport) -> Result<Vec<Forward>, SpecError> {
        let (address, interface) = address(self.host)?;
        if let Some(address) = address {
            check_listen_address(address, interface.is_some())?;
        }
        let guest_address = guest_address(self.guest)?;
        let inner = ports(self.inner)?;
        let forward = |ports: PortRange, guest_ports: PortRange| Forward {
            transport,
            listen: Listen::Ports { address, interface: interface.clone(), ports },
            guest_address,
            guest_ports,
            when_listening: false,
        };
        if self.outer.is_empty() {
            let each = (inner.first()..=inner.last()).map(PortRange::single);
            return Ok(each.map(|guest_port| forward(PortRange::ANY, guest_port)).collect());
        }
        let outer = ports(self.outer)?;
        same_length(outer, inner)?;
        Ok(vec![forward(outer, inner)])
    }
}

/// `PATH:[GUEST-ADDRESS:]PORT`. The path may have colons, so the port is what follows the last one.
fn unix_forward(text: &str) -> Result<Forward, SpecError> {
    let (rest, port) = text.rsplit_once(':').ok_or(SpecError::UnixWithoutPort)?;
    let port = match port.split_once('/').map(|(port, name)| (port, protocol(name))) {
        None => port,
        Some((port, Ok(Transport::Tcp))) => port,
        Some((_, Ok(Transport::Udp))) => return Err(SpecError::UnixProtocol),
        // The last colon is one of the path's.
        Some((_, Err(_))) => return Err(SpecError::UnixWithoutPort),
    };
    let (path, guest_address) = match split_address_off(rest) {
        Some((path, address)) => (path, guest_address(address)?),
        None => (rest, None),
    };
    let guest_ports = ports(port)?;
    if guest_ports.count() > 1 {
        return Err(SpecError::UnixRange(guest_ports));
    }
    Ok(Forward {
        transport: Transport::Tcp,
        listen: Listen::Unix(unix_path(path)?),
        guest_address,
        guest_ports,
        when_listening: false,
    })
}

/// `PATH:ADDRESS` in two, if it ends with an address.
fn split_address_off(text: &str) -> Option<(&str, &str)> {
    let at = if text.ends_with(']') { text.rfind(":[")? } else { text.rfind(':')? };
    let (path, after) = text.split_at(at);
    let address_text = after.strip_prefix(':')?;
    let is_address = address_text.starts_with('[') || address_text.parse::<Ipv4Addr>().is_ok();
    is_address.then_some((path, address_text))
}

fn unix_exposure(port: &str, path: &str) -> Result<Exposure, SpecError> {
    let port = match port.split_once('/') {
        Some((port, "tcp")) => port,
        Some((_, "udp")) => return Err(SpecError::UnixProtocol),
        _ => port,
    };
    let ports = ports(port)?;
    if ports.count() > 1 {
        return Err(SpecError::UnixRange(ports));
    }
    let service = HostService::Unix(unix_path(path)?);
    Ok(Exposure { transport: Transport::Tcp, ports, service })
}

fn exposure(
    transport: Transport,
    outer: &str,
    host: &str,
    inner: &str,
) -> Result<Exposure, SpecError> {
    let (address, interface) = address(host)?;
    if let Some(interface) = interface {
        return Err(SpecError::Address(format!("{host}%{interface}")));
    }
    if let Some(address) = address {
        let why = match address {
            _ if address.is_unspecified() => "is no address of a service",
            _ if address.is_multicast() || is_broadcast(address) => "is not one host's address",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "means nothing without its interface",
            _ => "",
        };
        if !why.is_empty() {
            return Err(SpecError::WrongAddress { address, why });
        }
    }
    let (outer, inner) = (ports(outer)?, ports(inner)?);
    same_length(outer, inner)?;
    let service = HostService::Ports { address, ports: inner };
    Ok(Exposure { transport, ports: outer, service })
}

/// `auto` with its exclusions; `None` for what is something else.
fn auto(text: &str) -> Result<Option<AutoForward>, SpecError> {
    let mut words = text.split(',');
    let transports = match words.next().and_then(|first| first.strip_prefix("auto")) {
        None => return Ok(None),
        Some("") => vec![Transport::Tcp, Transport::Udp],
        Some(rest) => match rest.strip_prefix('/') {
            Some(name) => vec![protocol(name)?],
            None => return Err(SpecError::Auto(rest.to_owned())),
        },
    };
    let exclusion = |word: &str| {
        let range = word.strip_prefix('~').ok_or_else(|| SpecError::Auto(word.to_owned()))?;
        ports(range)
    };
    let exclude = words.map(exclusion).collect::<Result<_, _>>()?;
    Ok(Some(AutoForward { transports, exclude, ..AutoForward::default() }))
}

/// The text before `/PROTOCOL`, and the protocol, which is TCP unless said.
fn transport(text: &str) -> Result<(&str, Transport), SpecError> {
    match text.split_once('/') {
        None => Ok((text, Transport::Tcp)),
        Some((text, name)) => Ok((text, protocol(name)?)),
    }
}

fn protocol(name: &str) -> Result<Transport, SpecError> {
    // In any case, as docker takes it.
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err(SpecError::Protocol(name.to_owned())),
    }
}

/// The parts between the colons that are not in brackets.
fn split(text: &str) -> Result<Vec<&str>, SpecError> {
    let mut parts = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b']' if inside == (byte == b'[') => return Err(SpecError::Brackets),
            b'[' => inside = true,
            b']' => inside = false,
            b':' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if inside { Err(SpecError::Brackets) } else { Ok(parts) }
}

/// Replaces an error by the one about brackets if some of the parts, with their colons, are an IPv6
/// address: then that is what was meant, and every other complaint would mislead.
fn or_brackets(parts: &[&str]) -> impl FnOnce(SpecError) -> SpecError {
    // An address has at most 8 groups; more parts than that hold no single rule anyway.
    let parts = parts.get(..parts.len().min(12)).unwrap_or_default();
    let is_v6 = |run: &[&str]| {
        run.len() > 2 && run.concat() != "" && run.join(":").parse::<Ipv6Addr>().is_ok()
    };
    let found = (0..parts.len())
        .any(|start| (start + 3..=parts.len()).any(|end| is_v6(&parts[start..end])));
    move |error| match error {
        SpecError::Address(_)
        | SpecError::Port(_)
        | SpecError::NoPort
        | SpecError::TooManyParts
        | SpecError::TooManyExposeParts
            if found =>
        {
            SpecError::Brackets
        }
        error => error,
    }
}

/// Whether the part stands for ports, in whatever state; nothing at all is a port to be picked.
fn looks_like_ports(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

fn ports(text: &str) -> Result<PortRange, SpecError> {
    if text.is_empty() {
        return Err(SpecError::NoPort);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    PortRange::new(first, last).ok_or(SpecError::Backwards(first, last))
}

fn port(text: &str) -> Result<u16, SpecError> {
    let not_a_port = || SpecError::Port(text.to_owned());
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_port());
    }
    match text.parse() {
        Ok(0) => Err(SpecError::PortZero),
        Ok(port) => Ok(port),
        Err(_) => Err(not_a_port()),
    }
}

fn same_length(outer: PortRange, inner: PortRange) -> Result<(), SpecError> {
    if outer.count() == inner.count() {
        return Ok(());
    }
    Err(SpecError::Lengths { outer, inner })
}

/// `ADDRESS`, `ADDRESS%IF` or `%IF`, where an IPv6 address is in brackets with or without its
/// interface; nothing at all is every address.
fn address(text: &str) -> Result<(Option<IpAddr>, Option<String>), SpecError> {
    let bad = || SpecError::Address(text.to_owned());
    let name = |name: &str| match name.parse::<IfName>() {
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err(SpecError::Interface(name.to_owned())),
    };
    if text.is_empty() {
        return Ok((None, None));
    }
    let (address, interface) = match text.strip_prefix('[') {
        None => match text.split_once('%') {
            Some((address, interface)) => (address, Some(interface)),
            None => (text, None),
        },
        Some(rest) => {
            let (inside, after) = rest.split_once(']').ok_or(SpecError::Brackets)?;
            let (inside, zone) = match inside.split_once('%') {
                Some((inside, zone)) => (inside, Some(zone)),
                None => (inside, None),
            };
            let address = inside.parse::<Ipv6Addr>().map_err(|_| bad())?;
            let interface = match (after, zone) {
                ("", zone) => zone,
                (after, None) => Some(after.strip_prefix('%').ok_or_else(bad)?),
                (_, Some(_)) => return Err(bad()),
            };
            let canonical = IpAddr::V6(address).to_canonical();
            return Ok((Some(canonical), interface.map(name).transpose()?));
        }
    };
    let address = match address {
        "" => None,
        v4 => Some(IpAddr::V4(v4.parse().map_err(|_| bad())?)),
    };
    Ok((address, interface.map(name).transpose()?))
}

fn check_listen_address(address: IpAddr, with_interface: bool) -> Result<(), SpecError> {
    let why = match address {
        _ if address.is_multicast() || is_broadcast(address) => "is not one host's address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() && !with_interface => {
            "needs its interface, as in [fe80::1]%eth0:8080:80"
        }
        _ => return Ok(()),
    };
    Err(SpecError::WrongAddress { address, why })
}

fn guest_address(text: &str) -> Result<Option<IpAddr>, SpecError> {
    let (address, interface) = address(text)?;
    if interface.is_some() {
        return Err(SpecError::Address(text.to_owned()));
    }
    let Some(address) = address else { return Ok(None) };
    let why = match address {
        _ if address.is_unspecified() => "is no address of a guest",
        _ if address.is_multicast() || is_broadcast(address) => "is not one guest's address",
        _ if address.is_loopback() => "is reached from inside the guest only",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is reached from the guest's link only",
        _ => return Ok(Some(address)),
    };
    Err(SpecError::WrongAddress { address, why })
}

fn is_broadcast(address: IpAddr) -> bool {
    address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn unix_path(text: &str) -> Result<PathBuf, SpecError> {
    if !text.starts_with('/') {
        return Err(SpecError::RelativePath(text.to_owned()));
    } else if text.ends_with('/') {
        return Err(SpecError::DirectoryPath(text.to_owned()));
    } else if text.len() > MAX_UNIX_PATH {
        return Err(SpecError::LongPath(text.len()));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests;
