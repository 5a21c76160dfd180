//! The port grammar of pasta's and pesto's `-t`, `-u`, `-T` and `-U`: text to rules of a table.
//!
//! ```text
//!   SPEC   = "none" | [LISTEN "/"] CHUNK {"," CHUNK}
//!   LISTEN = ["*" | ADDRESS] ["%" INTERFACE]         nothing at all is every address
//!   CHUNK  = "all" [":" TARGET] | "auto" | "~" RANGE
//!          | RANGE [":" (TARGET "/" RANGE | TARGET | RANGE)]
//!   RANGE  = PORT ["-" PORT]                         addresses of IPv6 in brackets or not
//! ```
//! - Ports that are named are strict. Without any, a specification means every port that the host
//!   does not hand out to its own clients, as far as it is free ("weak"); `all` beside named ports
//!   says nothing.
//! - `auto` makes its rules follow what listens behind them.
//! - Exclusions count wherever they stand.
//! - `-T` and `-U` listen on the guest's `lo`: an address in front is refused.
//!
//! Messages are those of the original, as far as it has one for the case.

use std::fmt;
use std::net::IpAddr;

use crate::gate::forward::{PortRange, Transport};
use crate::gate::table::{Caps, LOOPBACK, Table, TableError, TableRule};
use crate::setup::IfName;

/// Which option a specification belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortOption {
    /// The option's letter: `t`, `u`, `T` or `U`.
    letter: char,
}

impl PortOption {
    /// `-t`: TCP from the host to the guest.
    pub const TCP: PortOption = PortOption { letter: 't' };
    /// `-u`: UDP from the host to the guest.
    pub const UDP: PortOption = PortOption { letter: 'u' };
    /// `-T`: TCP from the guest's loopback to the host's.
    pub const TCP_NS: PortOption = PortOption { letter: 'T' };
    /// `-U`: UDP from the guest's loopback to the host's.
    pub const UDP_NS: PortOption = PortOption { letter: 'U' };

    /// What it carries.
    pub fn transport(self) -> Transport {
        if self.letter.eq_ignore_ascii_case(&'t') { Transport::Tcp } else { Transport::Udp }
    }

    /// Whether it leads out of the guest.
    pub fn is_outbound(self) -> bool {
        self.letter.is_ascii_uppercase()
    }
}

impl std::fmt::Display for PortOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "-{}", self.letter)
    }
}

/// Why a specification is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableSpecError {
    /// Not of the grammar.
    #[error("Invalid port specifier '{0}'")]
    Syntax(String),
    /// `-T` with an address.
    #[error("Listening address not allowed for {0} {1}")]
    Address(PortOption, String),
    /// `auto` where nobody follows who listens.
    #[error("'auto' port forwarding is only allowed for pasta")]
    NoScan,
    /// An interface where listeners cannot be bound to one.
    #[error("Device binding for '{0} {1}' unsupported (requires kernel 5.7+)")]
    NoInterface(PortOption, String),
}

/// What is done with the rules of a specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// They join the table.
    Add,
    /// They leave it.
    Delete,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Change::Add => "add",
            Change::Delete => "delete",
        }
    }
}

/// Why a table is not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No specification.
    #[error(transparent)]
    Spec(#[from] TableSpecError),
    /// `none` after something.
    #[error("{0} none conflicts with previous options")]
    None(PortOption),
    /// A rule with port 0, which no table has.
    #[error("{why}\nUnable to {verb} rule {rule}")]
    Zero {
        /// What is wrong with it.
        why: String,
        /// What was tried.
        verb: &'static str,
        /// The rule's text.
        rule: String,
    },
    /// A rule that the table does not take or does not have.
    #[error("{error}\nUnable to {verb} rule {rule}")]
    Table {
        /// The table's reason.
        error: TableError,
        /// What was tried.
        verb: &'static str,
        /// The rule.
        rule: Box<TableRule>,
    },
}

/// Does `change` to `table` with the rules of `spec`. `ephemeral` are the ports that the listening
/// side hands out to its own clients.
///
/// # Errors
/// [`ChangeError`]; rules before the one at fault are changed.
pub fn change(
    table: &mut Table,
    change: Change,
    option: PortOption,
    spec: &str,
    ephemeral: PortRange,
) -> Result<(), ChangeError> {
    let Some(rules) = parse(option, spec, table.caps(), ephemeral)? else {
        let has_some = table.rules().iter().any(|rule| rule.transport == option.transport());
        return if has_some { Err(ChangeError::None(option)) } else { Ok(()) };
    };
    for rule in rules {
        let rule = rule.map_err(|zero| zero.error(change))?;
        let verb = change.verb();
        let done = match change {
            Change::Delete => table.delete(&rule),
            Change::Add => table.add(rule.clone()),
        };
        done.map_err(|error| ChangeError::Table { error, verb, rule: rule.into() })?;
    }
    Ok(())
}

/// What `spec` means; `None` for `none`. `ephemeral` are the ports that the listening side hands
/// out to its own clients.
fn parse(
    option: PortOption,
    spec: &str,
    caps: Caps,
    ephemeral: PortRange,
) -> Result<Option<Vec<Result<TableRule, Zero>>>, TableSpecError> {
    if spec == "none" {
        return Ok(None);
    }
    let (listen, chunks) = match spec.split_once('/') {
        Some(_) if option.is_outbound() && starts_with_listen(spec) => {
            return Err(TableSpecError::Address(option, spec.to_owned()));
        }
        // A slash may also stand between a target and its ports.
        Some((listen, chunks)) if starts_with_listen(spec) => {
            let listen = self::listen(listen);
            (listen.ok_or_else(|| TableSpecError::Syntax(spec.to_owned()))?, chunks)
        }
        _ => (Bound { address: None, interface: None }, spec),
    };
    if listen.interface.is_some() && !caps.has(Caps::INTERFACE) {
        return Err(TableSpecError::NoInterface(option, spec.to_owned()));
    }
    let mut parts = Parts::read(chunks)?;
    if parts.auto && !caps.has(Caps::SCAN) {
        return Err(TableSpecError::NoScan);
    }
    let weak = parts.named.is_empty();
    if weak {
        parts.exclude.push(ephemeral);
        let (ports, target) = (PortRange::ALL, parts.all);
        parts.named.push(Named { ports: ports.into(), target, target_ports: ports.into() });
    }
    let interface = if option.is_outbound() { Some(LOOPBACK.to_owned()) } else { listen.interface };
    let rule = |named: &Named, (ports, target_ports)| TableRule {
        transport: option.transport(),
        listen: listen.address.or_else(|| caps.every_address()),
        interface: interface.clone(),
        ports,
        target: named.target,
        target_ports,
        weak,
        scan: parts.auto,
    };
    let mut rules = Vec::new();
    for named in &parts.named {
        match (named.ports.range(), named.target_ports.range()) {
            (Some(ports), Some(target_ports)) => {
                let pairs = without(ports, target_ports, &parts.exclude);
                rules.extend(pairs.into_iter().map(|pair| Ok(rule(named, pair))));
            }
            _ if parts.exclude_zero && named.ports == Span::ZERO => {}
            (ports, _) => {
                let rule = rule(named, (PortRange::ALL, PortRange::ALL));
                let text = rule.between(&named.ports, &named.target_ports).to_string();
                rules.push(Err(Zero { from: ports.is_none(), rule: text }));
            }
        }
    }
    Ok(Some(rules))
}

/// Whether what stands before the first slash is an address to listen at, and not the beginning of
/// a chunk with a target: ports come first there.
fn starts_with_listen(spec: &str) -> bool {
    let before = spec.split('/').next().unwrap_or_default();
    let Some((first, _)) = before.split_once(':') else { return true };
    // `80:1.2.3.4/90`, `80-81:[::1]/90`, `1,80:…`; but `1::2/80` is an address.
    let like_ports = |part: &str| {
        matches!(part, "all" | "auto") || range(part.trim_start_matches('~')).is_some()
    };
    let is_chunk = first.split(',').all(like_ports);
    !is_chunk || listen(before).is_some()
}

/// Where rules listen.
struct Bound {
    address: Option<IpAddr>,
    interface: Option<String>,
}

fn listen(text: &str) -> Option<Bound> {
    let (place, interface) = match text.split_once('%') {
        Some((place, name)) => (place, Some(name.parse::<IfName>().ok()?.to_string())),
        None => (text, None),
    };
    let address = match place {
        "" | "*" => None,
        place => Some(address(place)?),
    };
    Some(Bound { address, interface })
}

/// An address, in brackets or not; one of IPv4 in IPv6's form is one of IPv4.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// Ports as typed, from `first` to `last`: 0 may be among them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u16,
    last: u16,
}

impl Span {
    const ZERO: Span = Span { first: 0, last: 0 };

    /// The same ports; `None` with 0 among them.
    fn range(self) -> Option<PortRange> {
        PortRange::new(self.first, self.last)
    }

    /// How many there are, less one.
    fn reach(self) -> u16 {
        self.last - self.first
    }
}

impl From<PortRange> for Span {
    fn from(range: PortRange) -> Span {
        Span { first: range.first(), last: range.last() }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range() {
            Some(range) => range.fmt(f),
            None if self.last == 0 => f.write_str("0"),
            None => write!(f, "0-{}", self.last),
        }
    }
}

/// A rule with port 0.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zero {
    /// In front, and not only behind.
    from: bool,
    /// The rule's text.
    rule: String,
}

impl Zero {
    fn error(self, change: Change) -> ChangeError {
        let why = match (change, self.from) {
            (Change::Delete, _) => {
                format!("Couldn't find forwarding rule to delete: {}", self.rule)
            }
            (Change::Add, true) => "Forwarding rule attempts to map from port 0".to_owned(),
            (Change::Add, false) => "Forwarding rule attempts to map to port 0".to_owned(),
        };
        ChangeError::Zero { why, verb: change.verb(), rule: self.rule }
    }
}

/// Ports that are named, and where they lead: to as many.
struct Named {
    ports: Span,
    target: Option<IpAddr>,
    target_ports: Span,
}

/// What the chunks of a specification say.
#[derive(Default)]
struct Parts {
    auto: bool,
    /// The target of `all:TARGET`.
    all: Option<IpAddr>,
    exclude: Vec<PortRange>,
    /// Port 0 is among those to be excluded.
    exclude_zero: bool,
    named: Vec<Named>,
}

impl Parts {
    fn read(chunks: &str) -> Result<Parts, TableSpecError> {
        let wrong = || TableSpecError::Syntax(chunks.to_owned());
        let mut parts = Parts::default();
        for chunk in chunks.split(',') {
            if chunk == "auto" {
                parts.auto = true;
            } else if chunk == "all" {
                // What the absence of named ports says anyway.
            } else if let Some(target) = chunk.strip_prefix("all:") {
                let target = address(target).ok_or_else(wrong)?;
                parts.all = Some(target).filter(|target| !target.is_unspecified());
            } else if let Some(excluded) = chunk.strip_prefix('~') {
                let Span { first, last } = range(excluded).ok_or_else(wrong)?;
                parts.exclude_zero |= first == 0;
                parts.exclude.extend(PortRange::new(first.max(1), last));
            } else {
                parts.named.push(named(chunk).ok_or_else(wrong)?);
            }
        }
        Ok(parts)
    }
}

fn named(chunk: &str) -> Option<Named> {
    let Some((ports, target)) = chunk.split_once(':') else {
        let ports = range(chunk)?;
        return Some(Named { ports, target: None, target_ports: ports });
    };
    let ports = range(ports)?;
    let (target, target_ports) = match target.rsplit_once('/') {
        Some((to, behind)) => (Some(address(to)?), Some(behind)),
        None => match address(target) {
            Some(address) => (Some(address), None),
            None => (None, Some(target)),
        },
    };
    let target_ports = match target_ports {
        Some(behind) => range(behind)?,
        None => ports,
    };
    let target = target.filter(|target| !target.is_unspecified());
    (ports.reach() == target_ports.reach()).then_some(Named { ports, target, target_ports })
}

fn range(text: &str) -> Option<Span> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(Span { first, last })
}

/// A number as strtoul(3) reads it: blanks and one `+` may stand in front.
fn port(text: &str) -> Option<u16> {
    let digits = text.trim_start();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { digits.parse().ok() } else { None }
}

/// The parts of `ports` that are in none of `exclude`, with their counterparts in `target`, which
/// is as long.
fn without(
    ports: PortRange,
    target: PortRange,
    exclude: &[PortRange],
) -> Vec<(PortRange, PortRange)> {
    // Both ranges are of one length, so what lies in the one has a counterpart in the other.
    let counterpart = |part: PortRange| {
        let at = |port: u16| target.first().checked_add(port - ports.first());
        PortRange::new(at(part.first())?, at(part.last())?)
    };
    let kept = ports.without(exclude).into_iter();
    kept.filter_map(|part| Some((part, counterpart(part)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(option: PortOption, spec: &str, caps: Caps) -> Result<Vec<String>, String> {
        let ephemeral = PortRange::new(32_768, 60_999).unwrap();
        let rules = parse(option, spec, caps, ephemeral).map_err(|error| error.to_string())?;
        let text = |rule: Result<TableRule, Zero>| match rule {
            Ok(rule) => Ok(rule.to_string().trim_end().to_owned()),
            Err(zero) => Err(zero.error(Change::Add).to_string()),
        };
        rules.unwrap().into_iter().map(text).collect()
    }

    /// What pesto 2026-10 makes of each.
    #[test]
    fn rules_are_those_of_the_original() {
        for (spec, expected) in [
            ("22", &["TCP [*]:22  =>  22"][..]),
            ("/80", &["TCP [*]:80  =>  80"]),
            ("*/80", &["TCP [*]:80  =>  80"]),
            ("*%lo/80", &["TCP [*]%lo:80  =>  80"]),
            ("%lo/80", &["TCP [*]%lo:80  =>  80"]),
            ("[::1]%lo/91", &["TCP [::1]%lo:91  =>  91"]),
            ("::1/5000-5000:80-80", &["TCP [::1]:5000  =>  80"]),
            ("1::2/80", &["TCP [1::2]:80  =>  80"]),
            ("::ffff:1.2.3.4/80", &["TCP [1.2.3.4]:80  =>  80"]),
            ("22-80:32-90", &["TCP [*]:22-80  =>  32-90"]),
            ("127.0.0.1/22,25", &["TCP [127.0.0.1]:22  =>  22", "TCP [127.0.0.1]:25  =>  25"]),
            ("0.0.0.0/80-81:1.2.3.4", &["TCP [0.0.0.0]:80-81  =>  1.2.3.4:80-81"]),
            ("0.0.0.0/80:1.2.3.4/81", &["TCP [0.0.0.0]:80  =>  1.2.3.4:81"]),
            ("::/80:[fd00::1]/81", &["TCP [::]:80  =>  fd00::1:81"]),
            ("::/80:::1", &["TCP [::]:80  =>  ::1:80"]),
            ("80:::1/90", &["TCP [*]:80  =>  ::1:90"]),
            ("80:1.2.3.4", &["TCP [*]:80  =>  1.2.3.4:80"]),
            (" 80", &["TCP [*]:80  =>  80"]),
            ("+080", &["TCP [*]:80  =>  80"]),
            ("all,80", &["TCP [*]:80  =>  80"]),
            ("auto,80:81", &["TCP [*]:80  =>  81  (auto-scan)"]),
            ("~80,auto,90-100", &["TCP [*]:90-100  =>  90-100  (auto-scan)"]),
            ("22-30:122-130,~25", &["TCP [*]:22-24  =>  122-124", "TCP [*]:26-30  =>  126-130"]),
            ("80,~80", &[]),
            ("~1-32767,~61000-65535", &[]),
            (
                "all",
                &[
                    "TCP [*]:1-32767  =>  1-32767  (best effort)",
                    "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
                ],
            ),
            (
                "0.0.0.0/all:1.2.3.4,~1-32767",
                &["TCP [0.0.0.0]:61000-65535  =>  1.2.3.4:61000-65535  (best effort)"],
            ),
            (
                "::1/auto,~61000-65534,~1-32767",
                &["TCP [::1]:65535  =>  65535  (best effort) (auto-scan)"],
            ),
        ] {
            assert_eq!(parse_with(PortOption::TCP, spec, Caps::ALL).unwrap(), expected, "{spec:?}");
        }
        let none = parse(PortOption::UDP, "none", Caps::ALL, PortRange::ANY);
        assert_eq!(none, Ok(None));
    }

    #[test]
    fn the_guests_side_listens_on_its_loopback_interface() {
        for (spec, expected) in
            [("80:81", "UDP [*]%lo:80  =>  81"), ("53", "UDP [*]%lo:53  =>  53")]
        {
            assert_eq!(parse_with(PortOption::UDP_NS, spec, Caps::ALL).unwrap(), [expected]);
        }
        for spec in ["127.0.0.1/80", "%lo/80", "*/80", "/80"] {
            let refused = parse_with(PortOption::TCP_NS, spec, Caps::ALL).unwrap_err();
            assert_eq!(refused, format!("Listening address not allowed for -T {spec}"));
        }
    }

    #[test]
    fn one_family_listens_at_its_own_every_address() {
        let ipv4 = Caps::ALL.without(Caps::IPV6);
        assert_eq!(parse_with(PortOption::TCP, "80", ipv4).unwrap(), ["TCP [0.0.0.0]:80  =>  80"]);
        let ipv6 = Caps::ALL.without(Caps::IPV4);
        assert_eq!(parse_with(PortOption::TCP, "80", ipv6).unwrap(), ["TCP [::]:80  =>  80"]);
    }

    /// Texts of pesto 2026-10.
    #[test]
    fn what_is_none_is_refused_in_the_originals_words() {
        for (spec, named) in [
            ("", ""),
            ("127.0.0.1/x", "x"),
            ("1.2.3/80", "1.2.3/80"),
            ("127.1/80", "127.1/80"),
            ("%/80", "%/80"),
            ("%verylonginterfacename/80", "%verylonginterfacename/80"),
            ("[::1/80", "[::1/80"),
            ("::1]/80", "::1]/80"),
            ("[::1%lo]/92", "[::1%lo]/92"),
            ("none,80", "none,80"),
            ("80,none", "80,none"),
            ("80:/81", "80:/81"),
            ("0.0.0.0/80:1.2.3.4/", "80:1.2.3.4/"),
            ("80:80/81", "80:80/81"),
            ("80 ", "80 "),
            ("80-70", "80-70"),
            ("80-:1", "80-:1"),
            ("80:90-91", "80:90-91"),
            ("65536", "65536"),
            ("~", "~"),
            ("~95-90", "~95-90"),
            ("90-100,~95:80", "90-100,~95:80"),
            ("127.0.0.1/", ""),
            ("80,", "80,"),
            (",80", ",80"),
            ("127.0.0.1/22,127.0.0.1/23", "22,127.0.0.1/23"),
            ("auto:1.2.3.4", "auto:1.2.3.4"),
            ("all:", "all:"),
            ("*:80", "*:80"),
            ("10.0.0.1/80:10.0.0.2:81", "80:10.0.0.2:81"),
            ("1-5:1-3", "1-5:1-3"),
        ] {
            let refused = parse_with(PortOption::TCP, spec, Caps::ALL).unwrap_err();
            assert_eq!(refused, format!("Invalid port specifier '{named}'"), "{spec:?}");
        }
        for (spec, caps, text) in [
            (
                "0-3",
                Caps::ALL,
                "Forwarding rule attempts to map from port 0\n\
                 Unable to add rule TCP [*]:0-3  =>  0-3 ",
            ),
            (
                "90:0",
                Caps::ALL,
                "Forwarding rule attempts to map to port 0\n\
                 Unable to add rule TCP [*]:90  =>  0 ",
            ),
            ("auto", Caps(0x0f), "'auto' port forwarding is only allowed for pasta"),
            (
                "%lo/80",
                Caps(0x0f),
                "Device binding for '-t %lo/80' unsupported (requires kernel 5.7+)",
            ),
        ] {
            assert_eq!(parse_with(PortOption::TCP, spec, caps).unwrap_err(), text, "{spec:?}");
        }
    }
}
