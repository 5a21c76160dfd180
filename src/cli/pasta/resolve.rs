//! What a command line of pasta's means on this host.
//!
//! Per family, the guest gets the address, the routes and the router of the host's interface
//! ([`Templates`]), unless options say otherwise. A host without a way out over IPv4 gives
//! 169.254.2.1/16 with the router 169.254.2.2, by which its own loopback is reached.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::PastaError;
use super::command::{Command, Subject};
use super::passt::{self, Mode};
use super::ports;
use crate::base::Mac;
use crate::cli::config::{Action, Config, DnsOptions, LogOptions, Threads};
use crate::engine::host::Outbound;
use crate::gate::forward::PortRange;
use crate::gate::{
    AddressPlan, Habits, Plan4, Plan6, PublishPath, SharedServices, Sharing, Splicing,
};
use crate::setup::attach::{AttachOptions, Target};
use crate::setup::daemon::Person;
use crate::setup::run::Isolation;
use crate::setup::{
    Conduct, CopiedAddress, CopiedLink, CopiedRoute, HostFacts, Identity, IfName, LinkSetup,
    Listed, LogForm, Template, Templates,
};

/// The host, as far as pasta's options depend on it.
#[derive(Clone, Debug)]
pub struct PastaFacts {
    /// What matters to every personality.
    pub host: HostFacts,
    /// Whom root becomes.
    pub person: Option<Person>,
    /// The host's name.
    pub hostname: OsString,
    /// The models for the guest's interface.
    pub templates: Templates,
    /// The ports that the host hands out to clients (`net.ipv4.ip_local_port_range`).
    pub ephemeral: PortRange,
    /// The resolvers of the host's `/etc/resolv.conf`.
    pub resolvers: Vec<IpAddr>,
}

/// The guest's address, prefix length and router on a host without a way out (RFC 3927).
const LOCAL: (Ipv4Addr, u8, Ipv4Addr) =
    (Ipv4Addr::new(169, 254, 2, 1), 16, Ipv4Addr::new(169, 254, 2, 2));

/// The router's link-local address where the host's router has none.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Our MAC on the link, as pasta's.
const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// The default MTU: the largest of a TAP, rounded down to a multiple of 16.
const DEFAULT_MTU: u16 = 65_520;

/// The interface's MTU where it is left alone (`ETH_DATA_LEN`).
const UNSET_MTU: u16 = 1500;

/// The interface's name where no interface of the host gives it one.
const LOCAL_IFNAME: &str = "tap0";

pub(super) fn resolve(command: &Command, facts: &PastaFacts) -> Result<Config, PastaError> {
    let templates = usable(command, facts)?;
    let command = &passt::with_resolver(command, &facts.resolvers);
    let v4 = command.v4.then(|| plan4(command, templates.v4.as_ref()));
    let v6 = if command.v6 { plan6(command, templates.v6.as_ref()) } else { None };
    let plan = plan(command, facts, &templates, v4, v6)?;
    let forwards = ports::forwards(command, &plan, facts.ephemeral)?;
    let link_setup = link_setup(command, &templates, &plan);
    let (action, identity) = match &command.subject {
        Subject::Command(words) => {
            let mut isolation = isolation(command, facts);
            let words = match words.is_empty() {
                false => words.clone(),
                true => {
                    let shell = facts.host.shell.clone().unwrap_or_else(|| "/bin/sh".into());
                    let mut login = OsString::from("-");
                    login.push(&shell);
                    isolation.own_name = Some(login);
                    vec![shell.into_os_string()]
                }
            };
            let action = Action::Run { command: words, own_ids: false, files: None, isolation };
            // The caller becomes root inside, and nobody else is there.
            let Identity { uid, gid, .. } = facts.host.identity;
            (action, Identity { uid, gid, ..Identity::default() })
        }
        Subject::Process(pid) => attach(command, Target::Process(*pid), facts),
        Subject::Path(path) => attach(command, Target::Path(path.clone()), facts),
        Subject::Machine(options) => (Action::Serve(options.clone()), facts.host.identity.clone()),
    };
    let name = format!("{}-{}", command.mode.name(), facts.host.pid);
    Ok(Config {
        action,
        ifname: ifname(command, &templates),
        link_setup,
        conduct: Conduct {
            pid_file: command.pid_file.clone(),
            becomes: facts.person,
            // A machine has no namespaces that anybody would have to enter.
            refuses_calls: command.mode == Mode::Passt,
            ends_when_asked: true,
            statistics: command.stats.map(|seconds| Duration::from_secs(seconds.into())),
            deprecated: command.deprecated.clone(),
            listed: Listed::As(command.mode.name()),
            ..Conduct::default()
        },
        dns: dns(command, &plan),
        outbound: outbound(command),
        forwards,
        // What it splices is said by `plan`.
        publish_path: PublishPath::Tap,
        threads: Threads::auto(),
        pcap: command.pcap.clone(),
        pesto_socket: command.pesto_socket.clone(),
        log: LogOptions {
            level: command.level,
            file: command.log_file.clone(),
            form: LogForm::Journal {
                name: command.mode.name().to_owned(),
                limit: command.log_size,
            },
        },
        // Letters, dashes and digits are a name.
        name: name.parse().expect("a name"),
        identity,
        plan,
    })
}

/// What a command has for itself: nearly everything.
fn isolation(command: &Command, facts: &PastaFacts) -> Isolation {
    let mut name = OsString::from("pasta-");
    name.push(&facts.hostname);
    // sethostname(2) takes HOST_NAME_MAX bytes.
    let name = OsStr::from_bytes(&name.as_bytes()[..name.len().min(64)]);
    Isolation {
        users: !command.netns_only,
        processes: command.own_processes,
        ipc: true,
        hostname: Some(name.to_owned()),
        own_name: None,
    }
}

fn attach(command: &Command, target: Target, facts: &PastaFacts) -> (Action, Identity) {
    let userns: Option<PathBuf> = command.userns.clone();
    let watched = command.quit;
    let options = AttachOptions { target, userns, watched };
    (Action::Attach(options), facts.host.identity.clone())
}

/// The models of the families that the guest has. An interface that was named has to serve.
fn usable(command: &Command, facts: &PastaFacts) -> Result<Templates, PastaError> {
    let mut templates = facts.templates.clone();
    if !command.v4 {
        templates.v4 = None;
    }
    if !command.v6 {
        templates.v6 = None;
    }
    let named = [
        (&command.outbound_if.v4, templates.v4.is_some(), command.v4, "IPv4"),
        (&command.outbound_if.v6, templates.v6.is_some(), command.v6, "IPv6"),
    ];
    for (interface, found, wanted, family) in named {
        if let Some(interface) = interface.as_ref().filter(|_| wanted && !found) {
            return Err(PastaError::Unusable { interface: interface.to_string(), family });
        }
    }
    match &command.interface {
        Some(name) if templates.v4.is_none() && templates.v6.is_none() => {
            Err(PastaError::Interface(name.to_string()))
        }
        _ => Ok(templates),
    }
}

fn plan4(command: &Command, template: Option<&Template>) -> Plan4 {
    let main = template.and_then(Template::main_address);
    let main = match main {
        Some((IpAddr::V4(address), prefix)) => Some((address, prefix)),
        _ => None,
    };
    let router = template.and_then(|template| template.gateway);
    let (guest, prefix) = match command.address.v4 {
        Some(address) => (address, command.prefix.unwrap_or_else(|| classful(address))),
        None => main.unwrap_or((LOCAL.0, LOCAL.1)),
    };
    let gateway = match (command.gateway.v4, router) {
        (Some(gateway), _) | (None, Some(IpAddr::V4(gateway))) => gateway,
        _ => LOCAL.2,
    };
    let prefix = command.netmask.unwrap_or(prefix);
    Plan4 { guest, prefix, gateway, dns: command.dns_forward.v4 }
}

/// The prefix length of an address before there were any (RFC 791 §3.2).
fn classful(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=223 => 24,
        _ => 32,
    }
}

fn plan6(command: &Command, template: Option<&Template>) -> Option<Plan6> {
    let main = template.and_then(Template::main_address);
    let guest = match (command.address.v6, main) {
        (Some(address), _) | (None, Some((IpAddr::V6(address), _))) => address,
        _ => return None,
    };
    let router = template.and_then(|template| template.gateway);
    let gateway = match (command.gateway.v6, router) {
        (Some(gateway), _) | (None, Some(IpAddr::V6(gateway))) => gateway,
        _ => ROUTER,
    };
    let gateway_link_local = if gateway.is_unicast_link_local() { gateway } else { ROUTER };
    let dns = command.dns_forward.v6;
    Some(Plan6 { guest, prefix: 64, gateway, gateway_link_local, dns })
}

fn plan(
    command: &Command,
    facts: &PastaFacts,
    templates: &Templates,
    v4: Option<Plan4>,
    v6: Option<Plan6>,
) -> Result<AddressPlan, PastaError> {
    let is_there = |address: &IpAddr| if address.is_ipv4() { v4.is_some() } else { v6.is_some() };
    let gateways =
        [v4.map(|v4| IpAddr::V4(v4.gateway)), v6.map(|v6| IpAddr::V6(v6.gateway))].map(|gateway| {
            gateway.filter(|gateway| {
                let named = &command.map_host_loopback;
                let named = if gateway.is_ipv4() { named.v4.is_some() } else { named.v6.is_some() };
                command.map_gateway && !named
            })
        });
    let host_loopback =
        command.map_host_loopback.iter().chain(gateways.into_iter().flatten()).filter(is_there);
    let has_router = command.gateway.v4.is_some()
        || templates.v4.as_ref().is_none_or(|template| template.gateway.is_some());
    let resolvers = match (command.dhcp_dns, command.dns.is_empty()) {
        (false, _) => Vec::new(),
        (true, false) => command.dns.clone(),
        (true, true) => {
            let forwarder: Vec<IpAddr> = command.dns_forward.iter().collect();
            let host = facts.resolvers.iter().copied().filter(|address| !address.is_loopback());
            if forwarder.is_empty() { host.collect() } else { forwarder }
        }
    };
    let search = match (command.dhcp_search, command.search.is_empty()) {
        (false, _) => Vec::new(),
        (true, false) => command.search.clone(),
        (true, true) => facts.host.search.clone(),
    };
    let mtu = command.mtu.unwrap_or(DEFAULT_MTU);
    Ok(AddressPlan {
        v4,
        v6,
        gateway_mac: command.mac.unwrap_or(OUR_MAC),
        guest_mac: match command.mode {
            Mode::Pasta => command.ns_mac.or(facts.host.random_mac),
            // It tells with the first that it says.
            Mode::Passt => Some(Mac::BROADCAST),
        }
        .ok_or(PastaError::NoRandomness)?,
        mtu: if mtu == 0 { UNSET_MTU } else { mtu },
        host_loopback: host_loopback.collect(),
        search,
        habits: Habits::default(),
        sharing: Some(Sharing {
            host: command.map_guest_addr.iter().filter(is_there).collect(),
            splicing: match (command.splice, command.host_lo_to_ns_lo) {
                // A machine has a kernel of its own.
                _ if command.mode == Mode::Passt => Splicing::Off,
                _ if command.splice_only => Splicing::Only,
                (false, _) => Splicing::Off,
                (true, false) => Splicing::Outward,
                (true, true) => Splicing::Loopback,
            },
            resolvers,
            hostname: command.hostname.clone(),
            fqdn: command.fqdn.clone(),
            services: SharedServices {
                dhcp4: command.dhcp && has_router,
                dhcp6: command.dhcp6,
                neighbours: command.ndp,
                routers: command.ra && !command.config_net,
                mtu: mtu != 0,
                tcp: command.tcp,
                udp: command.udp,
                icmp: command.icmp,
            },
        }),
    })
}

fn link_setup(command: &Command, templates: &Templates, plan: &AddressPlan) -> LinkSetup {
    if command.splice_only {
        return LinkSetup::Absent;
    }
    if !command.config_net {
        return LinkSetup::Bare;
    }
    let mut copied = CopiedLink { mtu: plan.services().mtu, ..CopiedLink::default() };
    if let Some(v4) = &plan.v4 {
        let main = (v4.guest.into(), v4.prefix);
        let asked = command.address.v4.is_some() || command.netmask.is_some();
        let router = (command.gateway.v4.is_some(), v4.gateway.into());
        copy(command, templates.v4.as_ref(), main, asked, router, &mut copied);
    }
    if let Some(v6) = &plan.v6 {
        let main = (v6.guest.into(), v6.prefix);
        let router = (command.gateway.v6.is_some(), v6.gateway.into());
        copy(
            command,
            templates.v6.as_ref(),
            main,
            command.address.v6.is_some(),
            router,
            &mut copied,
        );
    }
    LinkSetup::Copied(copied)
}

/// The addresses and routes of a family: `main` alone where that was `asked` for, and the router
/// alone where that was.
fn copy(
    command: &Command,
    template: Option<&Template>,
    main: (IpAddr, u8),
    asked: bool,
    (router_asked, router): (bool, IpAddr),
    copied: &mut CopiedLink,
) {
    match template.filter(|_| command.copy_addresses && !asked) {
        Some(template) => copied.addresses.extend(&template.addresses),
        None => copied.addresses.push(CopiedAddress::new(main.0, main.1)),
    }
    match template.filter(|_| command.copy_routes && !router_asked) {
        Some(template) => copied.routes.extend_from_slice(&template.routes),
        None => copied.routes.push(CopiedRoute::default_by(router)),
    }
}

fn ifname(command: &Command, templates: &Templates) -> IfName {
    let model = templates.v4.as_ref().or(templates.v6.as_ref());
    let of_model = || model.and_then(|template| template.interface.parse().ok());
    let asked = command.ifname.clone();
    asked.or_else(of_model).unwrap_or_else(|| LOCAL_IFNAME.parse().expect("an interface name"))
}

fn dns(command: &Command, plan: &AddressPlan) -> DnsOptions {
    let upstreams: Vec<_> =
        command.dns_host.iter().map(|address| SocketAddr::new(address, 53)).collect();
    DnsOptions {
        enabled: command.dns_forward.iter().next().is_some(),
        upstreams: (!upstreams.is_empty()).then_some(upstreams),
        local_names: Vec::new(),
        // Not the host's, unless somebody has asked for them.
        search: Some(plan.search.clone()),
    }
}

fn outbound(command: &Command) -> Outbound {
    Outbound {
        v4: command.outbound.v4,
        v6: command.outbound.v6,
        loopback: false,
        interface4: command.outbound_if.v4.as_ref().map(ToString::to_string),
        interface6: command.outbound_if.v6.as_ref().map(ToString::to_string),
    }
}
