//! Forwarding tables as pasta keeps them and pesto edits them: ordered rules that may not conflict.
//!
//! A table belongs to one side of an instance ("pif"): rules of `HOST` listen on the host and lead
//! into the guest, rules of `SPLICE` listen at the guest's loopback and lead to the host's. Both
//! ends of the control socket, server and client, hold tables to the same rules, in the words of
//! the original, which scripts may search for.
//!
//! A port that two rules want is a conflict whatever their interfaces are; a listener of both
//! families conflicts with one of either.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::forward::{AutoForward, Bound, Forward, Inner, Listen, PortRange, Transport};

/// The interface at which rules of the guest's loopback listen.
pub const LOOPBACK: &str = "lo";

/// The most rules of one table.
pub const MAX_RULES: usize = 255;

/// The most ports that the rules of one table may listen at together.
pub const MAX_PORTS: usize = 5 << 16;

/// A rule of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableRule {
    /// What it carries.
    pub transport: Transport,
    /// The address to listen at; `None` is every address of both families.
    pub listen: Option<IpAddr>,
    /// The interface to listen on.
    pub interface: Option<String>,
    /// The ports to listen at.
    pub ports: PortRange,
    /// Where the rule leads; `None` is the other side's own address.
    pub target: Option<IpAddr>,
    /// The ports there: as many.
    pub target_ports: PortRange,
    /// A port that cannot be had is done without.
    pub weak: bool,
    /// Ports are open only while something listens behind them.
    pub scan: bool,
}

impl TableRule {
    /// The published port that does what the rule says, but for [`TableRule::weak`].
    pub fn forward(&self) -> Forward {
        Forward {
            transport: self.transport,
            listen: Listen::Ports {
                address: self.listen,
                interface: self.interface.clone(),
                ports: self.ports,
            },
            guest_address: self.target,
            guest_ports: self.target_ports,
            when_listening: self.scan,
        }
    }

    /// The rule that says what `forward` does; `None` for Unix sockets and ports yet to be picked,
    /// which a table cannot hold.
    pub fn of(forward: &Forward) -> Option<TableRule> {
        let Listen::Ports { address, interface, ports } = &forward.listen else { return None };
        (*ports != PortRange::ANY).then(|| TableRule {
            transport: forward.transport,
            listen: *address,
            interface: interface.clone(),
            ports: *ports,
            target: forward.guest_address,
            target_ports: forward.guest_ports,
            weak: false,
            scan: forward.when_listening,
        })
    }

    /// The `auto` that does what the rule says, if it is one: ports that follow who listens at the
    /// same ports of the guest.
    pub fn auto(&self) -> Option<AutoForward> {
        let follows = self.scan && self.target.is_none() && self.target_ports == self.ports;
        follows.then(|| AutoForward {
            transports: vec![self.transport],
            exclude: Vec::new(),
            only: vec![self.ports],
            bound: Bound { address: self.listen, interface: self.interface.clone() },
            weak: self.weak,
            with_tcp: false,
        })
    }

    /// The rules that together do what `auto` does: one for each transport and range.
    pub fn of_auto(auto: &AutoForward) -> Vec<TableRule> {
        let only = if auto.only.is_empty() { &[PortRange::ALL][..] } else { &auto.only };
        let ranges: Vec<PortRange> =
            only.iter().flat_map(|range| range.without(&auto.exclude)).collect();
        let rule = |transport: Transport, ports: PortRange| TableRule {
            transport,
            listen: auto.bound.address,
            interface: auto.bound.interface.clone(),
            ports,
            target: None,
            target_ports: ports,
            weak: auto.weak,
            scan: true,
        };
        let of = |&transport| ranges.iter().map(move |&ports| rule(transport, ports));
        auto.transports.iter().flat_map(of).collect()
    }

    /// The port of the guest's loopback that does what the rule says, if that is one.
    pub fn inner(&self) -> Option<Inner> {
        let leads_home = self.target.is_none_or(|target| target.is_loopback());
        (leads_home && self.interface.as_deref() == Some(LOOPBACK)).then_some(Inner {
            transport: self.transport,
            ports: self.ports,
            host_ports: self.target_ports,
            weak: self.weak,
            scan: self.scan,
        })
    }

    /// The rule that says what `inner` does, for an owner that can do `caps`.
    pub fn of_inner(inner: &Inner, caps: Caps) -> TableRule {
        TableRule {
            transport: inner.transport,
            listen: caps.every_address(),
            interface: Some(LOOPBACK.to_owned()),
            ports: inner.ports,
            target: None,
            target_ports: inner.host_ports,
            weak: inner.weak,
            scan: inner.scan,
        }
    }

    fn conflicts(&self, other: &TableRule) -> bool {
        let addresses = match (self.listen, other.listen) {
            (Some(a), Some(b)) => {
                a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
            }
            _ => true,
        };
        self.transport == other.transport && self.ports.overlaps(other.ports) && addresses
    }
}

impl fmt::Display for TableRule {
    /// As pesto shows it: `TCP [127.0.0.1]%lo:80-81  =>  8080-8081  (best effort)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.between(&self.ports, &self.target_ports).fmt(f)
    }
}

/// A rule with other ports than its own, as far as its text goes.
struct Between<'a> {
    rule: &'a TableRule,
    ports: &'a dyn fmt::Display,
    target_ports: &'a dyn fmt::Display,
}

impl TableRule {
    /// The rule's text for ports that no rule can have.
    pub fn between<'a>(
        &'a self,
        ports: &'a dyn fmt::Display,
        target_ports: &'a dyn fmt::Display,
    ) -> impl fmt::Display + 'a {
        Between { rule: self, ports, target_ports }
    }
}

impl fmt::Display for Between<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Between { rule, ports, target_ports } = self;
        let transport = match rule.transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        match rule.listen {
            Some(address) => write!(f, "{transport} [{address}]")?,
            None => write!(f, "{transport} [*]")?,
        }
        if let Some(interface) = &rule.interface {
            write!(f, "%{interface}")?;
        }
        write!(f, ":{ports}  =>  ")?;
        if let Some(target) = rule.target {
            write!(f, "{target}:")?;
        }
        write!(f, "{target_ports} ")?;
        f.write_str(if rule.weak { " (best effort)" } else { "" })?;
        f.write_str(if rule.scan { " (auto-scan)" } else { "" })
    }
}

/// What the owner of a table can do. Bits as in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps(pub u32);

impl Caps {
    /// IPv4.
    pub const IPV4: Caps = Caps(1 << 0);
    /// IPv6.
    pub const IPV6: Caps = Caps(1 << 1);
    /// TCP.
    pub const TCP: Caps = Caps(1 << 2);
    /// UDP.
    pub const UDP: Caps = Caps(1 << 3);
    /// Rules that follow who listens.
    pub const SCAN: Caps = Caps(1 << 4);
    /// Listeners on an interface.
    pub const INTERFACE: Caps = Caps(1 << 5);
    /// All of them.
    pub const ALL: Caps = Caps(0x3f);

    const NAMES: [(Caps, &str); 6] = [
        (Caps::IPV4, "IPv4"),
        (Caps::IPV6, "IPv6"),
        (Caps::TCP, "TCP"),
        (Caps::UDP, "UDP"),
        (Caps::SCAN, "scan"),
        (Caps::INTERFACE, "ifname"),
    ];

    /// "Every address" of an owner that has one family only; `None` if it has both.
    pub fn every_address(self) -> Option<IpAddr> {
        match (self.has(Caps::IPV4), self.has(Caps::IPV6)) {
            (true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        }
    }

    /// Whether all of `other` are among these.
    pub fn has(self, other: Caps) -> bool {
        self.0 & other.0 == other.0
    }

    /// These without `other`.
    pub fn without(self, other: Caps) -> Caps {
        Caps(self.0 & !other.0)
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Caps::NAMES.iter().filter(|(cap, _)| self.has(*cap));
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        f.write_str(&names.join(" "))
    }
}

/// Why a rule cannot be added or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Two rules want the same port.
    #[error("Forwarding configuration conflict: {new} versus {old}")]
    Conflict {
        /// The one to be added.
        new: Box<TableRule>,
        /// The one that is there.
        old: Box<TableRule>,
    },
    /// The table is full.
    #[error("Too many rules (maximum {MAX_RULES})")]
    TooManyRules,
    /// More ports than the owner has sockets for.
    #[error("Rules require too many listening sockets (maximum {MAX_PORTS})")]
    TooManyPorts,
    /// A target that is many.
    #[error("Multicast target address {0} for forwarding rule")]
    Multicast(IpAddr),
    /// A target of a family that the listener, of both, does not keep to.
    #[error(
        "Dual stack forward to {} address {target} unsupported\nDid you mean {}/... instead?",
        family(*target), if target.is_ipv4() { "0.0.0.0" } else { "[::]" }
    )]
    DualStack {
        /// Where it would lead.
        target: IpAddr,
    },
    /// A target of the other family.
    #[error("Forward from {} ({listen}) to {} ({target}) unsupported", family(*listen), family(*target))]
    Families {
        /// Where it would listen.
        listen: IpAddr,
        /// Where it would lead.
        target: IpAddr,
    },
    /// Ranges of different lengths.
    #[error("Forwarding rule maps {0} ports to {1}")]
    Lengths(usize, usize),
    /// Both families, of which the owner does not have one.
    #[error("Dual stack forward, but {0} not enabled")]
    NoDualStack(&'static str),
    /// A family that the owner does not have.
    #[error("{0} forward, but {0} not enabled")]
    NoFamily(&'static str),
    /// A transport that the owner does not have.
    #[error("Can't add {0} forwarding rule, {0} not enabled")]
    NoTransport(&'static str),
    /// Nothing to delete.
    #[error("Couldn't find forwarding rule to delete: {0}")]
    NotFound(Box<TableRule>),
    /// Something else to delete than what was named.
    #[error("Specifier {named} conflicts with rule {rule}, but doesn't match it, can't delete")]
    NoMatch {
        /// What was named.
        named: Box<TableRule>,
        /// What is there.
        rule: Box<TableRule>,
    },
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A table: rules in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    caps: Caps,
    rules: Vec<TableRule>,
}

impl Table {
    /// An empty table whose owner can do `caps`.
    pub fn new(caps: Caps) -> Table {
        Table { caps, rules: Vec::new() }
    }

    /// A table as its owner gave it: what is in force is not questioned.
    pub fn received(caps: Caps, rules: Vec<TableRule>) -> Table {
        Table { caps, rules }
    }

    /// What its owner can do.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Its rules.
    pub fn rules(&self) -> &[TableRule] {
        &self.rules
    }

    /// Removes all rules.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// Adds `rule` at the end.
    ///
    /// # Errors
    /// The rule makes no sense to the owner, conflicts with another, or is one too many.
    pub fn add(&mut self, rule: TableRule) -> Result<(), TableError> {
        self.check(&rule)?;
        if let Some(old) = self.rules.iter().find(|old| old.conflicts(&rule)) {
            return Err(TableError::Conflict { new: rule.into(), old: old.clone().into() });
        }
        if self.rules.len() >= MAX_RULES {
            return Err(TableError::TooManyRules);
        }
        let ports: usize = self.rules.iter().map(|rule| rule.ports.count()).sum();
        if ports + rule.ports.count() > MAX_PORTS {
            return Err(TableError::TooManyPorts);
        }
        self.rules.push(rule);
        Ok(())
    }

    fn check(&self, rule: &TableRule) -> Result<(), TableError> {
        let (needed, name) = match rule.transport {
            Transport::Tcp => (Caps::TCP, "TCP"),
            Transport::Udp => (Caps::UDP, "UDP"),
        };
        if !self.caps.has(needed) {
            return Err(TableError::NoTransport(name));
        }
        for (needed, name) in [(Caps::IPV4, "IPv4"), (Caps::IPV6, "IPv6")] {
            match rule.listen {
                _ if self.caps.has(needed) => {}
                None => return Err(TableError::NoDualStack(name)),
                Some(listen) if family(listen) == name => return Err(TableError::NoFamily(name)),
                Some(_) => {}
            }
        }
        match (rule.listen, rule.target) {
            (_, Some(target))
                if target.is_multicast() || target == IpAddr::V4(Ipv4Addr::BROADCAST) =>
            {
                return Err(TableError::Multicast(target));
            }
            (None, Some(target)) => return Err(TableError::DualStack { target }),
            (Some(listen), Some(target)) if listen.is_ipv4() != target.is_ipv4() => {
                return Err(TableError::Families { listen, target });
            }
            _ => {}
        }
        let (from, to) = (rule.ports.count(), rule.target_ports.count());
        if from != to { Err(TableError::Lengths(from, to)) } else { Ok(()) }
    }

    /// Deletes the rule that is exactly `rule`.
    ///
    /// # Errors
    /// There is none.
    pub fn delete(&mut self, rule: &TableRule) -> Result<(), TableError> {
        if let Some(at) = self.rules.iter().position(|other| other == rule) {
            self.rules.remove(at);
            return Ok(());
        }
        Err(match self.rules.iter().find(|other| other.conflicts(rule)) {
            Some(other) => {
                TableError::NoMatch { named: rule.clone().into(), rule: other.clone().into() }
            }
            None => TableError::NotFound(rule.clone().into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(listen: Option<&str>, first: u16, last: u16) -> TableRule {
        let ports = PortRange::new(first, last).unwrap();
        TableRule {
            transport: Transport::Tcp,
            listen: listen.map(|address| address.parse().unwrap()),
            interface: None,
            ports,
            target: None,
            target_ports: ports,
            weak: false,
            scan: false,
        }
    }

    fn table(caps: Caps, rules: &[TableRule]) -> Table {
        let mut table = Table::new(caps);
        rules.iter().for_each(|rule| table.add(rule.clone()).unwrap());
        table
    }

    /// Texts of pesto 2026-10.
    #[test]
    fn rules_are_shown_as_the_original_shows_them() {
        let on_lo = TableRule {
            interface: Some("lo".into()),
            weak: true,
            scan: true,
            ..rule(None, 1, 32_767)
        };
        let mapped = TableRule {
            transport: Transport::Udp,
            target: Some("fd00::1".parse().unwrap()),
            target_ports: PortRange::single(80),
            ..rule(Some("::"), 5000, 5000)
        };
        for (rule, text) in [
            (rule(None, 5000, 5000), "TCP [*]:5000  =>  5000 "),
            (rule(Some("127.0.0.1"), 22, 24), "TCP [127.0.0.1]:22-24  =>  22-24 "),
            (on_lo, "TCP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)"),
            (mapped, "UDP [::]:5000  =>  fd00::1:80 "),
        ] {
            assert_eq!(rule.to_string(), text);
        }
    }

    #[test]
    fn what_follows_the_guest_is_auto_unless_it_leads_elsewhere() {
        let follows = TableRule { scan: true, weak: true, ..rule(Some("::1"), 80, 90) };
        let auto = follows.auto().unwrap();
        assert_eq!(auto.bound.address, Some("::1".parse().unwrap()));
        assert!(auto.covers(Transport::Tcp, 90) && !auto.covers(Transport::Udp, 90));
        assert_eq!(TableRule::of_auto(&auto), std::slice::from_ref(&follows));
        let elsewhere = TableRule { target_ports: PortRange::new(81, 91).unwrap(), ..follows };
        assert_eq!((elsewhere.auto(), rule(None, 80, 90).auto()), (None, None));
        let native = AutoForward {
            transports: vec![Transport::Tcp, Transport::Udp],
            exclude: vec![PortRange::single(22)],
            ..AutoForward::default()
        };
        let rules: Vec<_> = TableRule::of_auto(&native).iter().map(ToString::to_string).collect();
        assert_eq!(
            rules,
            [
                "TCP [*]:1-21  =>  1-21  (auto-scan)",
                "TCP [*]:23-65535  =>  23-65535  (auto-scan)",
                "UDP [*]:1-21  =>  1-21  (auto-scan)",
                "UDP [*]:23-65535  =>  23-65535  (auto-scan)",
            ]
        );
    }

    #[test]
    fn ports_of_the_guests_loopback_lead_to_the_hosts_and_nowhere_else() {
        let on_lo = TableRule {
            interface: Some(LOOPBACK.into()),
            target_ports: PortRange::single(81),
            ..rule(None, 80, 80)
        };
        let inner = on_lo.inner().unwrap();
        assert_eq!(inner.pairs().collect::<Vec<_>>(), [(80, 81)]);
        assert_eq!(TableRule::of_inner(&inner, Caps::ALL), on_lo);
        let v4 = TableRule::of_inner(&inner, Caps::ALL.without(Caps::IPV6));
        assert_eq!(v4.listen, Some("0.0.0.0".parse().unwrap()));
        let away = TableRule { target: Some("192.0.2.1".parse().unwrap()), ..on_lo.clone() };
        let elsewhere = TableRule { interface: None, ..on_lo };
        assert_eq!((away.inner(), elsewhere.inner()), (None, None));
    }

    #[test]
    fn a_port_that_two_rules_want_is_a_conflict() {
        let on = |name: &str, rule: TableRule| TableRule { interface: Some(name.into()), ..rule };
        let old = rule(Some("127.0.0.1"), 80, 90);
        for (new, conflict) in [
            (rule(None, 90, 95), true),
            (rule(Some("0.0.0.0"), 1, 80), true),
            (rule(Some("127.0.0.1"), 85, 85), true),
            (on("lo", rule(Some("127.0.0.1"), 85, 85)), true),
            (rule(Some("127.0.0.2"), 85, 85), false),
            (rule(Some("::"), 85, 85), false),
            (rule(None, 91, 91), false),
            (TableRule { transport: Transport::Udp, ..rule(None, 85, 85) }, false),
        ] {
            let refused = table(Caps::ALL, std::slice::from_ref(&old)).add(new.clone());
            assert_eq!(refused.is_err(), conflict, "{new}");
        }
        let refused = table(Caps::ALL, &[old]).add(rule(None, 85, 95)).unwrap_err().to_string();
        let text = "Forwarding configuration conflict: TCP [*]:85-95  =>  85-95  versus \
                    TCP [127.0.0.1]:80-90  =>  80-90 ";
        assert_eq!(refused, text);
    }

    #[test]
    fn only_the_very_rule_is_deleted() {
        let mut table = table(Caps::ALL, &[rule(None, 70, 70), rule(Some("::1"), 80, 80)]);
        for (named, text) in [
            (rule(None, 71, 71), "Couldn't find forwarding rule to delete: TCP [*]:71  =>  71 "),
            (
                rule(Some("0.0.0.0"), 70, 70),
                "Specifier TCP [0.0.0.0]:70  =>  70  conflicts with rule TCP [*]:70  =>  70 , \
                 but doesn't match it, can't delete",
            ),
        ] {
            assert_eq!(table.delete(&named).unwrap_err().to_string(), text);
        }
        table.delete(&rule(None, 70, 70)).unwrap();
        assert_eq!(table.rules(), [rule(Some("::1"), 80, 80)]);
    }

    #[test]
    fn what_its_owner_cannot_do_is_refused() {
        let to = |listen, target: &str| TableRule {
            target: Some(target.parse().unwrap()),
            ..rule(listen, 80, 80)
        };
        let udp = TableRule { transport: Transport::Udp, ..rule(None, 80, 80) };
        for (caps, rule, text) in [
            (
                Caps::ALL,
                to(None, "1.2.3.4"),
                "Dual stack forward to IPv4 address 1.2.3.4 unsupported\n\
                 Did you mean 0.0.0.0/... instead?",
            ),
            (
                Caps::ALL,
                to(None, "::1"),
                "Dual stack forward to IPv6 address ::1 unsupported\n\
                 Did you mean [::]/... instead?",
            ),
            (
                Caps::ALL,
                to(Some("127.0.0.1"), "::1"),
                "Forward from IPv4 (127.0.0.1) to IPv6 (::1) unsupported",
            ),
            (Caps(0xd), rule(Some("::1"), 80, 80), "IPv6 forward, but IPv6 not enabled"),
            (Caps(0x6), rule(Some("0.0.0.0"), 80, 80), "IPv4 forward, but IPv4 not enabled"),
            (Caps(0xe), rule(None, 80, 80), "Dual stack forward, but IPv4 not enabled"),
            (Caps(0xd), rule(None, 80, 80), "Dual stack forward, but IPv6 not enabled"),
            (
                Caps::ALL,
                to(Some("0.0.0.0"), "255.255.255.255"),
                "Multicast target address 255.255.255.255 for forwarding rule",
            ),
            (Caps(0x6), udp, "Can't add UDP forwarding rule, UDP not enabled"),
        ] {
            assert_eq!(Table::new(caps).add(rule).unwrap_err().to_string(), text);
        }
        let one_each = |port: u16| rule(None, port, port);
        let mut full = table(Caps::ALL, &(1000..1255).map(one_each).collect::<Vec<_>>());
        let refused = full.add(one_each(80)).unwrap_err();
        assert_eq!(refused.to_string(), "Too many rules (maximum 255)");
        let everything = |octet: u8| rule(Some(&format!("127.0.0.{octet}")), 1, 65_535);
        let mut wide = table(Caps::ALL, &[1, 2, 3, 4, 5].map(everything));
        assert_eq!(wide.add(everything(6)), Err(TableError::TooManyPorts));
    }

    #[test]
    fn a_forward_and_its_rule_say_the_same() {
        let rule = TableRule { scan: true, ..rule(Some("127.0.0.1"), 80, 82) };
        assert_eq!(TableRule::of(&rule.forward()), Some(rule));
        let picked = Forward {
            listen: Listen::Ports { address: None, interface: None, ports: PortRange::ANY },
            ..super::tests::rule(None, 80, 80).forward()
        };
        assert_eq!(TableRule::of(&picked), None);
    }
}
