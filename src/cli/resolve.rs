//! What a draft means on this host: defaults, and all the checks that take more than one value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tracing::level_filters::LevelFilter;

use super::config::{Action, Config, DnsOptions, ForwardOptions, LogOptions, Threads};
use super::draft::{Draft, DraftTarget, DraftThreads};
use super::publish::{ExposeSpec, PublishSpec};
use super::value::{Cidr, DnsChoice, HostTarget, Switch};
use crate::base::Mac;
use crate::engine::MAX_WORKERS;
use crate::engine::host::Outbound;
use crate::gate::forward::{self, AutoForward, Forward, OverlapError, Transport};
use crate::gate::{AddressPlan, Plan4, Plan6};
use crate::setup::attach::Target;
use crate::setup::run::Isolation;
use crate::setup::{
    HOST_NAMES, HostEntry, HostFacts, IfName, Listed, LogForm, PrivateFiles, hosts, resolv_conf,
};

/// Options that do not fit each other or this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The IPv4 network is too small or too large.
    #[error("--ipv4 {0}: the prefix length must be between 1 and 29")]
    Prefix4(String),
    /// The IPv6 network is no /64.
    #[error("--ipv6 {0}: the prefix length must be 64")]
    Prefix6(String),
    /// Loopback, multicast and the like.
    #[error("{option} {value}: {why}")]
    BadNetwork {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The guest would have an address that has a meaning already.
    #[error("{option} {value}: the guest cannot have this address, which is the {meaning}")]
    GuestAddress {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// Whose the address is.
        meaning: &'static str,
    },
    /// Neither family is left.
    #[error("--ipv4 off and --ipv6 off leave nothing: switch off one of the two at most")]
    NoFamily,
    /// Below the least that IPv4 works with.
    #[error("--mtu {0}: the MTU must be between 68 and 65520")]
    Mtu(u16),
    /// Below the least that IPv6 works with.
    #[error("--mtu {0} is too small for IPv6, which needs 1280: raise it, or add --ipv6 off")]
    MtuForV6(u16),
    /// `off` next to a value.
    #[error("{0} off contradicts the other {0} option")]
    OffAndOn(&'static str),
    /// Twice the same family.
    #[error("{option} {value}: there is already one for {family}")]
    TwicePerFamily {
        /// The option.
        option: &'static str,
        /// The second value.
        value: IpAddr,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// An address that cannot stand for the host's loopback.
    #[error("--host-loopback {address}: {why}")]
    HostLoopback {
        /// The address.
        address: IpAddr,
        /// What is wrong.
        why: &'static str,
    },
    /// An address that nothing can be sent from.
    #[error("--outbound-addr {0}: nothing can be sent from this address")]
    OutboundAddress(IpAddr),
    /// An interface that does not exist or has no address of the family.
    #[error("the host has no interface {0} with an address to send from")]
    NoAddressToSendFrom(IfName),
    /// No such interface.
    #[error("--outbound-interface {0}: the host has no such interface")]
    OutboundInterface(IfName),
    /// `host-gateway` without an address to stand for it.
    #[error("--add-host {0}:host-gateway: the host has no address towards the outside")]
    NoHostAddress(String),
    /// Two rules for the same port.
    #[error("{option} {overlap}")]
    Overlap {
        /// The option.
        option: &'static str,
        /// Which two.
        overlap: OverlapError,
    },
    /// `auto` twice.
    #[error("{option} auto follows {transport} twice: one is enough")]
    AutoTwice {
        /// The option.
        option: &'static str,
        /// What is followed twice.
        transport: Transport,
    },
    /// A published port of an address that the guest cannot have.
    #[error("--publish {rule}: {why}")]
    GuestAddressOfPort {
        /// The rule.
        rule: Box<Forward>,
        /// What is wrong with its guest address.
        why: &'static str,
    },
    /// More than there can be.
    #[error("--threads {0}: there can be {MAX_WORKERS} at most")]
    Threads(usize),
    /// Not a process.
    #[error("{0} is not a process id")]
    Pid(i32),
    /// The host gave no random bytes for a MAC address.
    #[error("the host has no random numbers for a MAC address: give one with --mac")]
    NoRandomness,
}

/// What `draft` means on the host of `facts`.
///
/// # Errors
/// The first thing found that does not fit, in the words of the command line.
pub fn resolve(draft: Draft, facts: &HostFacts) -> Result<Config, ConfigError> {
    let plan = address_plan(&draft, facts)?;
    let outbound = outbound(&draft, facts)?;
    let forwards = forward_options(&draft, &plan)?;
    let mut dns = dns_options(&draft)?;
    let threads = threads(draft.threads)?;
    let entries = host_entries(&draft, facts, &plan)?;
    dns.local_names = local_names(&entries);
    let (kind, action) = match draft.target {
        DraftTarget::Run { command, map_user } => {
            let files = PrivateFiles {
                resolv_conf: dns.enabled.then(|| resolv_conf(&plan, &plan.search)),
                hosts: hosts(&entries, &facts.hosts, &guest_addresses(&plan), &facts.hostname),
            };
            let command = if command.is_empty() {
                let shell = facts.shell.clone().unwrap_or_else(|| "/bin/sh".into());
                vec![shell.into_os_string()]
            } else {
                command
            };
            let (own_ids, files, isolation) = (map_user, Some(files), Isolation::default());
            ("run", Action::Run { command, own_ids, files, isolation })
        }
        DraftTarget::Attach(options) => {
            if let Target::Process(pid) = options.target
                && pid <= 0
            {
                return Err(ConfigError::Pid(pid));
            }
            ("attach", Action::Attach(options))
        }
    };
    let kind = match draft.conduct.listed {
        Listed::As(what) => what,
        Listed::Claimed => kind,
    };
    let default_name = || {
        // Letters, a dash and digits are a name.
        format!("{kind}-{}", facts.pid).parse().expect("a name")
    };
    Ok(Config {
        action,
        plan,
        ifname: draft.ifname.unwrap_or_else(|| "tap0".parse().expect("an interface name")),
        dns,
        outbound,
        forwards,
        publish_path: draft.publish_path,
        threads,
        pesto_socket: draft.pesto_socket,
        pcap: draft.pcap,
        log: LogOptions {
            level: draft.log_level.unwrap_or(LevelFilter::WARN),
            file: draft.log_file,
            form: LogForm::Plain,
        },
        name: draft.name.unwrap_or_else(default_name),
        link_setup: draft.link_setup,
        conduct: draft.conduct,
        identity: facts.identity.clone(),
    })
}

fn threads(draft: Option<DraftThreads>) -> Result<Threads, ConfigError> {
    match draft {
        None | Some(DraftThreads::Auto) => Ok(Threads::auto()),
        Some(DraftThreads::Count(count)) if count.get() > MAX_WORKERS => {
            Err(ConfigError::Threads(count.get()))
        }
        Some(DraftThreads::Count(count)) => Ok(Threads { least: count.get(), most: count.get() }),
    }
}

/// The network of slirp users: what every guide to rootless containers shows.
const DEFAULT_V4: Cidr<Ipv4Addr> = Cidr { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 };

/// A unique local prefix (RFC 4193) whose "random" part spells "tapway".
const DEFAULT_V6: Cidr<Ipv6Addr> =
    Cidr { address: Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 0), prefix: 64 };

/// The largest MTU of a TAP (the kernel's limit is 65535 minus the Ethernet header; 65520 is what
/// the other tools of this kind use, and a multiple of 16).
const MAX_MTU: u16 = 65_520;

/// RFC 791: every host forwards 68 bytes unfragmented.
const MIN_MTU_V4: u16 = 68;

/// RFC 8200 §5.
const MIN_MTU_V6: u16 = 1280;

fn address_plan(draft: &Draft, facts: &HostFacts) -> Result<AddressPlan, ConfigError> {
    let v4 = match draft.ipv4.unwrap_or(Switch::On(DEFAULT_V4)) {
        Switch::Off => None,
        Switch::On(cidr) => Some(plan4(cidr)?),
    };
    let v6 = match draft.ipv6.unwrap_or(Switch::On(DEFAULT_V6)) {
        Switch::Off => None,
        Switch::On(cidr) => Some(plan6(cidr)?),
    };
    if v4.is_none() && v6.is_none() {
        return Err(ConfigError::NoFamily);
    }
    let gateway = v4.map_or(Ipv4Addr::new(10, 0, 2, 2), |v4| v4.gateway);
    let [a, b, c, d] = gateway.octets();
    let mut plan = AddressPlan {
        v4,
        v6,
        gateway_mac: Mac([0x52, 0x55, a, b, c, d]),
        guest_mac: draft.mac.or(facts.random_mac).ok_or(ConfigError::NoRandomness)?,
        mtu: mtu(draft, facts, v6.is_some())?,
        host_loopback: Vec::new(),
        search: if draft.dns_search.is_empty() {
            facts.search.clone()
        } else {
            draft.dns_search.clone()
        },
        sharing: None,
        habits: draft.habits,
    };
    plan.host_loopback = host_loopback(&draft.host_loopback, &plan)?;
    Ok(plan)
}

fn plan4(cidr: Cidr<Ipv4Addr>) -> Result<Plan4, ConfigError> {
    let text = || format!("{}/{}", cidr.address, cidr.prefix);
    if !(1..=29).contains(&cidr.prefix) {
        return Err(ConfigError::Prefix4(text()));
    }
    let bad = |why| ConfigError::BadNetwork { option: "--ipv4", value: text(), why };
    let address = cidr.address;
    if address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 224 {
        return Err(bad("a guest cannot live in a loopback, multicast or reserved network"));
    }
    // Borrow the arithmetic of the plan itself; the guest is settled below.
    let mut plan = Plan4 { guest: address, prefix: cidr.prefix, gateway: address, dns: None };
    let network = u32::from(plan.network());
    plan.gateway = Ipv4Addr::from(network + 2);
    plan.dns = Some(Ipv4Addr::from(network + 3));
    let last = u32::from(plan.broadcast()) - 1;
    if address == plan.network() {
        // A /29 has 6 hosts, so the last one is neither gateway nor DNS.
        plan.guest = Ipv4Addr::from((network + 100).min(last));
        return Ok(plan);
    }
    let meaning = if address == plan.gateway {
        "gateway's"
    } else if Some(address) == plan.dns {
        "DNS forwarder's"
    } else if address == plan.broadcast() {
        "broadcast address of its network"
    } else {
        return Ok(plan);
    };
    Err(ConfigError::GuestAddress { option: "--ipv4", value: text(), meaning })
}

fn plan6(cidr: Cidr<Ipv6Addr>) -> Result<Plan6, ConfigError> {
    let text = || format!("{}/{}", cidr.address, cidr.prefix);
    if cidr.prefix != 64 {
        return Err(ConfigError::Prefix6(text()));
    }
    let address = cidr.address;
    if address.is_multicast()
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some()
    {
        let why = "a guest cannot live in a loopback, link-local, multicast or reserved network";
        return Err(ConfigError::BadNetwork { option: "--ipv6", value: text(), why });
    }
    let network = u128::from(address) >> 64 << 64;
    let at = |host: u128| Ipv6Addr::from(network | host);
    let mut plan = Plan6 {
        guest: address,
        prefix: 64,
        gateway: at(2),
        gateway_link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
        dns: Some(at(3)),
    };
    if address == at(0) {
        plan.guest = at(0x100);
        return Ok(plan);
    }
    let meaning = if address == plan.gateway {
        "gateway's"
    } else if Some(address) == plan.dns {
        "DNS forwarder's"
    } else {
        return Ok(plan);
    };
    Err(ConfigError::GuestAddress { option: "--ipv6", value: text(), meaning })
}

fn mtu(draft: &Draft, facts: &HostFacts, with_v6: bool) -> Result<u16, ConfigError> {
    if let Some(mtu) = draft.mtu {
        return match mtu {
            mtu if !(MIN_MTU_V4..=MAX_MTU).contains(&mtu) => Err(ConfigError::Mtu(mtu)),
            mtu if with_v6 && mtu < MIN_MTU_V6 => Err(ConfigError::MtuForV6(mtu)),
            mtu => Ok(mtu),
        };
    }
    let outward = facts
        .named_interface
        .as_ref()
        .map(|(_, mtu)| *mtu)
        .or_else(|| facts.v4.as_ref().map(|out| out.mtu))
        .or_else(|| facts.v6.as_ref().map(|out| out.mtu))
        .unwrap_or(1500);
    let least = if with_v6 { MIN_MTU_V6 } else { MIN_MTU_V4 };
    Ok(u16::try_from(outward).unwrap_or(MAX_MTU).clamp(least, MAX_MTU))
}

fn host_loopback(asked: &[Switch<IpAddr>], plan: &AddressPlan) -> Result<Vec<IpAddr>, ConfigError> {
    const OPTION: &str = "--host-loopback";
    let addresses: Vec<IpAddr> = asked
        .iter()
        .filter_map(|s| if let Switch::On(address) = s { Some(*address) } else { None })
        .collect();
    if addresses.is_empty() {
        return Ok(addresses);
    }
    if addresses.len() < asked.len() {
        return Err(ConfigError::OffAndOn(OPTION));
    }
    one_per_family(OPTION, &addresses)?;
    let guests = guest_addresses(plan);
    for &address in &addresses {
        let fail = |why| Err(ConfigError::HostLoopback { address, why });
        let family_off = match address {
            IpAddr::V4(_) => plan.v4.is_none(),
            IpAddr::V6(_) => plan.v6.is_none(),
        };
        let is_dns = plan.is_dns(address);
        let is_broadcast =
            plan.v4.is_some_and(|v4| address == v4.broadcast() || address == v4.network());
        if family_off {
            return fail("the guest does not have this address family");
        } else if guests.contains(&address) {
            return fail("this is the guest's own address");
        } else if is_dns {
            return fail("this is the DNS forwarder's address");
        } else if is_broadcast || !is_unicast(address) {
            return fail("a guest cannot send to this address through its gateway");
        }
    }
    Ok(addresses)
}

fn outbound(draft: &Draft, facts: &HostFacts) -> Result<Outbound, ConfigError> {
    one_per_family("--outbound-addr", &draft.outbound_addr)?;
    let mut outbound = Outbound { loopback: draft.outbound_to_loopback, ..Outbound::default() };
    for &address in &draft.outbound_addr {
        match address {
            _ if address.is_multicast() || address.is_unspecified() => {
                return Err(ConfigError::OutboundAddress(address));
            }
            IpAddr::V4(a) => outbound.v4 = Some(a),
            IpAddr::V6(a) => outbound.v6 = Some(a),
        }
    }
    for (name, ipv6) in draft.outbound_from.iter().zip([false, true]) {
        let Some(name) = name else { continue };
        let theirs = facts.addresses.iter().filter(|(interface, _)| interface == name.as_str());
        let first = theirs.map(|(_, address)| *address).find(|a| a.is_ipv6() == ipv6);
        match first.ok_or_else(|| ConfigError::NoAddressToSendFrom(name.clone()))? {
            IpAddr::V4(address) => outbound.v4 = Some(address),
            IpAddr::V6(address) => outbound.v6 = Some(address),
        }
    }
    if let Some(name) = &draft.outbound_interface {
        let Some((found, _)) = &facts.named_interface else {
            return Err(ConfigError::OutboundInterface(name.clone()));
        };
        outbound.interface4 = Some(found.clone());
        outbound.interface6 = Some(found.clone());
    }
    Ok(outbound)
}

fn forward_options(draft: &Draft, plan: &AddressPlan) -> Result<ForwardOptions, ConfigError> {
    const PUBLISH: &str = "--publish";
    const EXPOSE: &str = "--expose-host";
    let mut options = ForwardOptions::default();
    for spec in &draft.publish {
        match spec {
            PublishSpec::Forwards(forwards) => options.publish.extend_from_slice(forwards),
            PublishSpec::Exposure(exposure) => options.expose.push(exposure.clone()),
            PublishSpec::Auto(auto) => options.auto_publish.push(auto.clone()),
        }
    }
    for spec in &draft.expose_host {
        match spec {
            ExposeSpec::Exposure(exposure) => options.expose.push(exposure.clone()),
            ExposeSpec::Auto(auto) => options.auto_expose.push(auto.clone()),
        }
    }
    for forward in &mut options.publish {
        forward.when_listening = draft.publish_when_listening;
        check_guest_address(forward, plan)?;
    }
    let overlap = |option| move |overlap| ConfigError::Overlap { option, overlap };
    forward::check_forwards(&options.publish).map_err(overlap(PUBLISH))?;
    forward::check_exposures(&options.expose).map_err(overlap(EXPOSE))?;
    once_per_transport(PUBLISH, &options.auto_publish)?;
    once_per_transport(EXPOSE, &options.auto_expose)?;
    Ok(options)
}

/// A guest may have more addresses than those that the plan gives it, but not those of others.
fn check_guest_address(forward: &Forward, plan: &AddressPlan) -> Result<(), ConfigError> {
    let fail = |why| Err(ConfigError::GuestAddressOfPort { rule: Box::new(forward.clone()), why });
    match (forward.guest_address, plan.v4, plan.v6) {
        (Some(IpAddr::V4(_)), None, _) => fail("the guest has no IPv4 (--ipv4 off)"),
        (Some(IpAddr::V6(_)), _, None) => fail("the guest has no IPv6 (--ipv6 off)"),
        (Some(IpAddr::V4(a)), Some(v4), _) if a == v4.gateway || Some(a) == v4.dns => {
            fail("the guest's address is one of tapway's own")
        }
        (Some(IpAddr::V6(a)), _, Some(v6)) if a == v6.gateway || Some(a) == v6.dns => {
            fail("the guest's address is one of tapway's own")
        }
        _ => Ok(()),
    }
}

fn once_per_transport(option: &'static str, autos: &[AutoForward]) -> Result<(), ConfigError> {
    for transport in [Transport::Tcp, Transport::Udp] {
        if autos.iter().filter(|auto| auto.transports.contains(&transport)).count() > 1 {
            return Err(ConfigError::AutoTwice { option, transport });
        }
    }
    Ok(())
}

fn dns_options(draft: &Draft) -> Result<DnsOptions, ConfigError> {
    let upstreams: Vec<_> = draft
        .dns
        .iter()
        .filter_map(|c| if let DnsChoice::Server(server) = c { Some(*server) } else { None })
        .collect();
    let off = draft.dns.contains(&DnsChoice::Off);
    if off && !upstreams.is_empty() {
        return Err(ConfigError::OffAndOn("--dns"));
    }
    Ok(DnsOptions {
        enabled: !off,
        upstreams: (!upstreams.is_empty()).then_some(upstreams),
        local_names: Vec::new(),
        search: (!draft.dns_search.is_empty()).then(|| draft.dns_search.clone()),
    })
}

/// The same for those in the guest who ask the DNS service instead of reading `hosts`.
fn local_names(entries: &[HostEntry]) -> Vec<(String, Vec<IpAddr>)> {
    let mut names: Vec<(String, Vec<IpAddr>)> = Vec::new();
    for HostEntry { address, names: of_entry } in entries {
        for name in of_entry {
            match names.iter_mut().find(|(known, _)| known == name) {
                Some((_, addresses)) => addresses.push(*address),
                None => names.push((name.clone(), vec![*address])),
            }
        }
    }
    names
}

/// The lines of the guest's `hosts` file that are ours: those of `--add-host`, then the host's
/// names.
fn host_entries(
    draft: &Draft,
    facts: &HostFacts,
    plan: &AddressPlan,
) -> Result<Vec<HostEntry>, ConfigError> {
    let host = host_addresses(facts, plan);
    let mut entries = Vec::new();
    for added in &draft.add_host {
        let targets = match added.target {
            HostTarget::Address(address) => vec![address],
            HostTarget::Host if host.is_empty() => {
                return Err(ConfigError::NoHostAddress(added.name.clone()));
            }
            HostTarget::Host => host.clone(),
        };
        let entry = |address| HostEntry { address, names: vec![added.name.clone()] };
        entries.extend(targets.into_iter().map(entry));
    }
    let names = HOST_NAMES.map(str::to_owned).to_vec();
    entries.extend(host.into_iter().map(|address| HostEntry { address, names: names.clone() }));
    Ok(entries)
}

/// Where the guest reaches its host: the loopback stand-ins if there are any, so that services on
/// 127.0.0.1 answer too, else the host's own addresses.
fn host_addresses(facts: &HostFacts, plan: &AddressPlan) -> Vec<IpAddr> {
    if !plan.host_loopback.is_empty() {
        return plan.host_loopback.clone();
    }
    let v4 = facts.v4.as_ref().map(|out| IpAddr::V4(out.source)).filter(|_| plan.v4.is_some());
    let v6 = facts.v6.as_ref().map(|out| IpAddr::V6(out.source)).filter(|_| plan.v6.is_some());
    v4.into_iter().chain(v6).collect()
}

fn guest_addresses(plan: &AddressPlan) -> Vec<IpAddr> {
    let v4 = plan.v4.iter().map(|v4| IpAddr::V4(v4.guest));
    let v6 = plan.v6.iter().map(|v6| IpAddr::V6(v6.guest));
    v4.chain(v6).collect()
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && a.octets()[0] != 0 && a.octets()[0] < 224,
        IpAddr::V6(a) => {
            !a.is_loopback()
                && !a.is_unspecified()
                && !a.is_multicast()
                && !a.is_unicast_link_local()
                && a.to_ipv4_mapped().is_none()
        }
    }
}

fn one_per_family(option: &'static str, addresses: &[IpAddr]) -> Result<(), ConfigError> {
    for (at, &value) in addresses.iter().enumerate() {
        if addresses[..at].iter().any(|a| a.is_ipv4() == value.is_ipv4()) {
            let family = if value.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(ConfigError::TwicePerFamily { option, value, family });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
