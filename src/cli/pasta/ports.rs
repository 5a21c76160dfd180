//! The port grammar of `-t`, `-u`, `-T` and `-U`.
//!
//! ```text
//!   SPEC   = "none" | [LISTEN "/"] CHUNK {"," CHUNK}
//!   LISTEN = ["*" | ADDRESS] ["%" INTERFACE]         nothing at all before "/" is every address
//!   CHUNK  = "all" [":" TARGET] | "auto" | "~" RANGE
//!          | RANGE [":" (TARGET "/" RANGE | TARGET | RANGE)]
//!   RANGE  = PORT ["-" PORT]
//! ```
//! - Ports that are named are strict: one that cannot be opened is the end. `all` and exclusions by
//!   themselves mean every port that the host does not hand out to clients, as far as it is free.
//! - `auto` follows what listens on the other side: among the named ports, or among all.
//! - Exclusions count wherever they stand.
//! - `-T` and `-U` listen at the guest's loopback and lead to the host's: no addresses there.

use std::net::IpAddr;

use crate::gate::forward::{AutoForward, Bound, Forward, Inner, Listen, PortRange, Transport};
use crate::setup::IfName;

/// Which of the four options a specification belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// `-t`, `-u`: host ports in front of the guest's.
    Inbound(Transport),
    /// `-T`, `-U`: guest ports in front of the host's.
    Outbound(Transport),
}

impl Table {
    fn transport(self) -> Transport {
        match self {
            Table::Inbound(transport) | Table::Outbound(transport) => transport,
        }
    }
}

/// What the specifications of one table ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// To be opened, or else.
    pub(super) strict: Vec<Forward>,
    /// To be opened where they are free.
    pub(super) weak: Vec<Forward>,
    /// Followed.
    pub(super) auto: Vec<AutoForward>,
    /// Strict ports of the guest's loopback.
    pub(super) inner: Vec<Inner>,
    /// Followed from the guest's loopback.
    pub(super) inner_auto: Vec<AutoForward>,
}

/// Why a specification is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    /// Not of the grammar.
    #[error("Invalid port specifier {0}")]
    Syntax(String),
    /// Two ranges of which one is longer.
    #[error("Invalid port specifier {0}: both ranges must have the same number of ports")]
    Lengths(String),
    /// `none` after something.
    #[error("'none' conflicts with the port specifiers before it")]
    NoneAfter,
    /// An address in front of the guest's loopback.
    #[error("Invalid port specifier {0}: -T and -U take no address")]
    Address(String),
    /// A target of another family than the listener, or behind a listener of both.
    #[error("Invalid port specifier {0}: listen at an address of the target's family")]
    Family(String),
}

/// What `specs` mean together. `ephemeral` are the ports that the host hands out to clients.
pub(super) fn parse(
    table: Table,
    specs: &[String],
    ephemeral: PortRange,
) -> Result<Rules, SpecError> {
    let mut rules = Rules::default();
    let mut any = false;
    for spec in specs {
        if spec == "none" {
            if any {
                return Err(SpecError::NoneAfter);
            }
            continue;
        }
        any = true;
        add(table, spec, ephemeral, &mut rules)?;
    }
    Ok(rules)
}

/// A range that was named, and where it leads.
struct Named {
    ports: PortRange,
    target: PortRange,
    address: Option<IpAddr>,
}

fn add(table: Table, spec: &str, ephemeral: PortRange, rules: &mut Rules) -> Result<(), SpecError> {
    let wrong = || SpecError::Syntax(spec.to_owned());
    let (bound, chunks) = match spec.split_once('/') {
        Some(_) if matches!(table, Table::Outbound(_)) => {
            return Err(SpecError::Address(spec.to_owned()));
        }
        Some((listen, chunks)) => (bound(listen).ok_or_else(wrong)?, chunks),
        None => (Bound::default(), spec),
    };
    let (mut auto, mut all, mut exclude, mut named) = (false, None, Vec::new(), Vec::new());
    for chunk in chunks.split(',') {
        match chunk {
            "auto" => auto = true,
            "all" => all = Some(None),
            _ => match chunk.strip_prefix('~') {
                Some(range) => exclude.push(range_of(range).ok_or_else(wrong)?),
                None => match chunk.strip_prefix("all:") {
                    Some(target) => all = Some(Some(address(target).ok_or_else(wrong)?)),
                    None => named.push(named_range(chunk, spec)?),
                },
            },
        }
    }
    let targets = named.iter().filter_map(|range| range.address).chain(all.flatten());
    for target in targets {
        if matches!(table, Table::Outbound(_)) {
            return Err(SpecError::Address(spec.to_owned()));
        }
        if bound.address.is_none_or(|listen| listen.is_ipv4() != target.is_ipv4()) {
            return Err(SpecError::Family(spec.to_owned()));
        }
    }
    let transport = table.transport();
    let everything = all.is_some() || named.is_empty();
    if everything {
        exclude.push(ephemeral);
    }
    if auto {
        let only = named.iter().map(|range| range.ports).collect();
        let rule = AutoForward { transports: vec![transport], exclude, only, bound };
        match table {
            Table::Inbound(_) => rules.auto.push(rule),
            Table::Outbound(_) => rules.inner_auto.push(rule),
        }
        return Ok(());
    }
    let whole = PortRange::new(1, u16::MAX).ok_or_else(wrong)?;
    let every = everything.then(|| Named { ports: whole, target: whole, address: all.flatten() });
    for range in named {
        for (ports, target) in without(range.ports, range.target, &exclude) {
            match table {
                Table::Inbound(_) => {
                    rules.strict.push(forward(transport, &bound, ports, target, range.address));
                }
                Table::Outbound(_) => {
                    rules.inner.push(Inner { transport, ports, host_ports: target, weak: false });
                }
            }
        }
    }
    if let Some(range) = every {
        for (ports, target) in without(range.ports, range.target, &exclude) {
            match table {
                Table::Inbound(_) => {
                    rules.weak.push(forward(transport, &bound, ports, target, range.address));
                }
                Table::Outbound(_) => {
                    rules.inner.push(Inner { transport, ports, host_ports: target, weak: true });
                }
            }
        }
    }
    Ok(())
}

fn forward(
    transport: Transport,
    bound: &Bound,
    ports: PortRange,
    guest_ports: PortRange,
    guest_address: Option<IpAddr>,
) -> Forward {
    let Bound { address, interface } = bound.clone();
    Forward {
        transport,
        listen: Listen::Ports { address, interface, ports },
        guest_address,
        guest_ports,
        when_listening: false,
    }
}

/// `RANGE [":" …]`.
fn named_range(chunk: &str, spec: &str) -> Result<Named, SpecError> {
    let wrong = || SpecError::Syntax(spec.to_owned());
    let Some((ports, target)) = chunk.split_once(':') else {
        let ports = range_of(chunk).ok_or_else(wrong)?;
        return Ok(Named { ports, target: ports, address: None });
    };
    let ports = range_of(ports).ok_or_else(wrong)?;
    let (address, target) = match target.rsplit_once('/') {
        Some((to, range)) => {
            (Some(address(to).ok_or_else(wrong)?), range_of(range).ok_or_else(wrong)?)
        }
        None => match range_of(target) {
            Some(range) => (None, range),
            None => (Some(address(target).ok_or_else(wrong)?), ports),
        },
    };
    if ports.count() != target.count() {
        return Err(SpecError::Lengths(spec.to_owned()));
    }
    Ok(Named { ports, target, address })
}

/// The parts of `ports` that are in none of `exclude`, with their counterparts in `target`, which
/// is as long.
fn without(
    ports: PortRange,
    target: PortRange,
    exclude: &[PortRange],
) -> Vec<(PortRange, PortRange)> {
    let mut sorted: Vec<PortRange> =
        exclude.iter().copied().filter(|range| range.overlaps(ports)).collect();
    sorted.sort_by_key(|range| range.first());
    let mut parts = Vec::new();
    let mut part = |first: u32, end: u32| {
        let offset = |at: u32| u16::try_from(at - u32::from(ports.first())).unwrap_or(u16::MAX);
        let cut = |range: PortRange| {
            let first = range.first().checked_add(offset(first))?;
            PortRange::new(first, range.first().checked_add(offset(end - 1))?)
        };
        if first < end
            && let Some(pair) = cut(ports).zip(cut(target))
        {
            parts.push(pair);
        }
    };
    let mut next = u32::from(ports.first());
    let end = u32::from(ports.last()) + 1;
    for range in sorted {
        part(next, u32::from(range.first()).min(end));
        next = next.max(u32::from(range.last()) + 1);
    }
    part(next, end);
    parts
}

fn range_of(text: &str) -> Option<PortRange> {
    match text.split_once('-') {
        Some((first, last)) => PortRange::new(port(first)?, port(last)?),
        None => port(text).and_then(|port| PortRange::new(port, port)),
    }
}

/// A number as strtoul(3) reads it: blanks and one `+` may stand in front.
fn port(text: &str) -> Option<u16> {
    let digits = text.trim_start();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// `LISTEN`.
fn bound(text: &str) -> Option<Bound> {
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

/// An address, in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Table = Table::Inbound(Transport::Tcp);
    const TCP_NS: Table = Table::Outbound(Transport::Tcp);

    fn parse_in(table: Table, specs: &[&str]) -> Result<Rules, SpecError> {
        let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
        parse(table, &specs, PortRange::new(32_768, 60_999).unwrap())
    }

    fn strict(specs: &[&str]) -> Vec<String> {
        let rules = parse_in(TCP, specs).unwrap();
        assert!(rules.weak.is_empty() && rules.auto.is_empty(), "{specs:?}");
        rules.strict.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn named_ports_lead_where_they_say() {
        for (spec, expected) in [
            ("22", &[":22:22/tcp"][..]),
            ("22:23", &["22:23/tcp"]),
            ("22,25", &["22:22/tcp", "25:25/tcp"]),
            ("22-80:32-90", &["22-80:32-90/tcp"]),
            ("192.0.2.1/22", &["192.0.2.1:22:22/tcp"]),
            ("192.0.2.1%eth0/22", &["192.0.2.1%eth0:22:22/tcp"]),
            ("%eth0/22", &["%eth0:22:22/tcp"]),
            ("*/22", &["22:22/tcp"]),
            ("/22", &["22:22/tcp"]),
            ("::1/5000-5000:80-80", &["[::1]:5000:80/tcp"]),
            ("[::1]/5000:80", &["[::1]:5000:80/tcp"]),
            ("2000-5000,~3000-3010", &["2000-2999:2000-2999/tcp", "3011-5000:3011-5000/tcp"]),
            ("10-20:110-120,~10,~20", &["11-19:111-119/tcp"]),
            ("~15,10-20", &["10-14:10-14/tcp", "16-20:16-20/tcp"]),
            ("0.0.0.0/80:10.0.0.2/81", &["0.0.0.0:80:10.0.0.2:81/tcp"]),
            ("0.0.0.0/80-81:10.0.0.2", &["0.0.0.0:80-81:10.0.0.2:80-81/tcp"]),
            ("[::]/80:fd00::2/81", &["[::]:80:[fd00::2]:81/tcp"]),
            (" +080", &["80:80/tcp"]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|text| text.trim_start_matches(':')).collect();
            assert_eq!(strict(&[spec]), expected, "{spec}");
        }
        assert_eq!(strict(&["none", "22", "25"]), ["22:22/tcp", "25:25/tcp"]);
        assert_eq!(strict(&["none"]), [""; 0]);
    }

    #[test]
    fn all_and_exclusions_leave_out_what_the_host_hands_out() {
        for (spec, expected) in [
            ("all", &["1-32767:1-32767/tcp", "61000-65535:61000-65535/tcp"][..]),
            ("~1-32766", &["32767:32767/tcp", "61000-65535:61000-65535/tcp"]),
        ] {
            let rules = parse_in(TCP, &[spec]).unwrap();
            let weak: Vec<_> = rules.weak.iter().map(ToString::to_string).collect();
            assert_eq!(weak, expected, "{spec}");
            assert!(rules.strict.is_empty() && rules.auto.is_empty());
        }
    }

    #[test]
    fn auto_follows_all_ports_or_those_that_are_named() {
        let follows = |specs: &[&str], port| {
            let rules = parse_in(TCP, specs).unwrap();
            assert!(rules.strict.is_empty() && rules.weak.is_empty());
            rules.auto.iter().any(|rule| rule.covers(Transport::Tcp, port))
        };
        assert!(follows(&["auto"], 80) && !follows(&["auto"], 40_000));
        assert!(follows(&["80-82,auto"], 81) && !follows(&["80-82,auto"], 83));
        assert!(!follows(&["auto,~80"], 80) && follows(&["auto,~80"], 81));
        let rules = parse_in(TCP, &["127.0.0.1/auto"]).unwrap();
        assert_eq!(rules.auto[0].bound.address, Some("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn the_guests_loopback_takes_ports_alone() {
        let rules = parse_in(TCP_NS, &["9099,80:8080"]).unwrap();
        let pairs: Vec<_> = rules
            .inner
            .iter()
            .map(|inner| (inner.ports.first(), inner.host_ports.first()))
            .collect();
        assert_eq!(pairs, [(9099, 9099), (80, 8080)]);
        assert_eq!(parse_in(TCP_NS, &["auto"]).unwrap().inner_auto.len(), 1);
        for spec in ["127.0.0.1/80", "80:127.0.0.1"] {
            let refused = parse_in(TCP_NS, &[spec]);
            assert_eq!(refused, Err(SpecError::Address(spec.to_owned())), "{spec}");
        }
    }

    #[test]
    fn what_is_no_specification_is_refused() {
        for spec in [
            "",
            "0",
            "65536",
            "80-70",
            "x",
            "80:",
            ":80",
            "80:0",
            "1.2.3/80",
            "80,,81",
            "~",
            "~x",
            "%/80",
            "auto:80",
            "80-",
            "127.0.0.1/",
            "all:x",
            "none,80",
        ] {
            let refused = parse_in(TCP, &[spec]);
            assert_eq!(refused, Err(SpecError::Syntax(spec.to_owned())), "{spec:?}");
        }
        let lengths = parse_in(TCP, &["80-81:90"]);
        assert!(matches!(lengths, Err(SpecError::Lengths(_))), "{lengths:?}");
        assert_eq!(parse_in(TCP, &["22", "none"]), Err(SpecError::NoneAfter));
        for spec in ["80:10.0.0.2", "::/80:10.0.0.2", "0.0.0.0/80:fd00::2"] {
            assert_eq!(parse_in(TCP, &[spec]), Err(SpecError::Family(spec.to_owned())), "{spec}");
        }
    }
}
