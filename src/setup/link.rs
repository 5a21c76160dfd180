//! The guest's interfaces: loopback up; the TAP with its MAC, MTU, queue length, addresses and
//! default routes, usable at once.
//!
//! Everything that can be told in advance goes into one netlink datagram. IPv6 is set up without
//! duplicate address detection (there is nobody to ask on a link of two) and without waiting for a
//! router advertisement. IPv6 that the kernel does not have, or has switched off, is not an error:
//! the guest then has IPv4 only, and the log says so.

use std::fs;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, Outcome};
use super::tap::IfName;
use super::template::{CopiedAddress, CopiedRoute};
use crate::gate::AddressPlan;

/// What the guest's link shall look like.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The name of the TAP in the guest.
    pub ifname: IfName,
    /// Addresses, MACs and MTU.
    pub plan: AddressPlan,
    /// Queues of the TAP, one for each worker.
    pub queues: usize,
    /// How much of it we set up.
    pub setup: LinkSetup,
    /// Which sockets of the guest's namespace are going to be wanted.
    pub inside: Wanted,
}

/// Which sockets of the guest's namespace are going to be wanted, long after the set-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// None.
    #[default]
    Nothing,
    /// Those of everybody there.
    Sockets,
    /// Those too that have addresses of clients, as the short way asks.
    ShortWay,
}

/// How much of the guest's link we set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LinkSetup {
    /// All of it, as the plan says.
    #[default]
    Planned,
    /// As the plan says, for IPv4; the guest finds its IPv6 addresses and routes by itself.
    WithoutV6,
    /// All of it, after the model of one of the host's interfaces.
    Copied(CopiedLink),
    /// Loopback comes up. The TAP gets its MAC and stays as it is: a DHCP client in the guest, or
    /// whoever has made the TAP beforehand, does the rest.
    Bare,
    /// Nothing that the guest could notice: somebody else does it.
    Nothing,
    /// There is none. Loopback comes up.
    Absent,
}

/// Addresses and routes for a link that is like the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopiedLink {
    /// Addresses, in the order in which the guest is to have them.
    pub addresses: Vec<CopiedAddress>,
    /// Routes; one that the guest's kernel refuses is left out.
    pub routes: Vec<CopiedRoute>,
    /// Whether the MTU of the plan is set.
    pub mtu: bool,
}

/// The queueing discipline of the TAP: none. The TAP has a ring of its own and never asks to wait,
/// so a discipline in front of it only costs; and the kernel's default for a device that may have
/// 256 queues is 256 rings of three bands: 60 MB and 23 ms with places for 10,000 frames, and more
/// at the end.
const NO_DISCIPLINE: &str = "noqueue";

/// Frames that a queue of the TAP holds before the kernel drops silently. With offloads a frame is
/// up to 64 KiB, so that bytes are no problem: bursts of small ones are, such as the SYNs of 10,000
/// connections that a program opens at once. A place costs 8 bytes (design decision D4).
const QUEUE_LENGTH: u32 = 32_768;

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX`).
pub(super) const LOOPBACK_INDEX: u32 = 1;

/// How far the guest's kernel takes part in IPv6 autoconfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autoconfiguration {
    /// Ours alone: router advertisements do not change what we set.
    Off,
    /// The namespace is somebody else's, and so is this choice.
    AsFound,
}

/// Which request of the set-up failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct LinkError {
    what: String,
    #[source]
    source: io::Error,
}

/// Brings up loopback and the TAP as `options` say.
pub(crate) fn configure(
    options: &LinkOptions,
    autoconfiguration: Autoconfiguration,
    netlink: &mut Netlink,
) -> Result<(), LinkError> {
    if options.setup == LinkSetup::Absent {
        return perform(vec![loopback_up()], netlink);
    }
    let name = options.ifname.as_str();
    let fail = |what: String| move |source| LinkError { what, source };
    let index = netlink
        .link(name)
        .and_then(|link| link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)))
        .map_err(fail(format!("find the interface {name}")))?
        .index;
    // Before the interface comes up, because it acts on these when it does.
    if matches!(options.setup, LinkSetup::Planned | LinkSetup::Copied(_)) {
        sysctls(options, autoconfiguration);
    }

    perform(steps(options, index), netlink)
}

fn perform(steps: Vec<Step>, netlink: &mut Netlink) -> Result<(), LinkError> {
    let fail = |what: String| move |source| LinkError { what, source };
    let (labels, requests): (Vec<_>, Vec<_>) =
        steps.into_iter().map(|step| ((step.what, step.need), step.request)).unzip();
    let outcomes = netlink.perform(requests).map_err(fail("talk to the kernel".to_owned()))?;
    let mut v6_refused = None;
    for ((what, need), outcome) in labels.into_iter().zip(outcomes) {
        match (need, refusal(outcome)) {
            (_, None) => {}
            (Need::Welcome, Some(e)) => tracing::debug!("the guest does without: {what}: {e}"),
            (Need::Always, Some(source)) => return Err(LinkError { what, source }),
            (Need::WhereV6Works, Some(source)) => {
                v6_refused.get_or_insert((what, source));
            }
        }
    }
    if let Some((what, source)) = v6_refused {
        tracing::warn!("the guest has no IPv6, because its kernel refuses it: {what}: {source}");
    }
    Ok(())
}

/// The errno of a request, unless it succeeded or its object was there already (a persistent TAP
/// that keeps the addresses of an earlier attachment).
fn refusal(outcome: Outcome) -> Option<io::Error> {
    outcome.err().filter(|e| e.raw_os_error() != Some(libc::EEXIST))
}

#[derive(Clone, Copy)]
enum Need {
    Always,
    WhereV6Works,
    /// Costs speed only.
    Welcome,
}

struct Step {
    what: String,
    need: Need,
    request: RouteNetlinkMessage,
}

fn loopback_up() -> Step {
    let request = up(LOOPBACK_INDEX, vec![]);
    Step { what: "bring up lo".to_owned(), need: Need::Always, request }
}

fn steps(options: &LinkOptions, index: u32) -> Vec<Step> {
    let LinkOptions { ifname, plan, setup, .. } = options;
    let mut steps = Vec::new();
    let mut add = |need, what: String, request| steps.push(Step { what, need, request });
    if *setup == LinkSetup::Nothing {
        let length = vec![LinkAttribute::TxQueueLen(QUEUE_LENGTH)];
        let what = format!("lengthen the queue of {ifname}");
        add(Need::Welcome, what, set_link(index, LinkFlags::empty(), length));
        let what = format!("take the queueing discipline off {ifname}");
        add(Need::Welcome, what, undisciplined(index));
        return steps;
    }
    steps.push(loopback_up());
    let mut add = |need, what: String, request| steps.push(Step { what, need, request });
    if *setup == LinkSetup::Bare {
        let mac = LinkAttribute::Address(plan.guest_mac.0.to_vec());
        let what = format!("give {ifname} the MAC {}", plan.guest_mac);
        add(Need::Always, what, set_link(index, LinkFlags::empty(), vec![mac]));
        return steps;
    }
    let copied = match setup {
        LinkSetup::Copied(copied) => Some(copied),
        _ => None,
    };
    // Before the interface comes up, which is when the kernel makes its default discipline.
    add(Need::Welcome, format!("take the queueing discipline off {ifname}"), undisciplined(index));
    let mut attributes = vec![
        LinkAttribute::Address(plan.guest_mac.0.to_vec()),
        LinkAttribute::TxQueueLen(QUEUE_LENGTH),
    ];
    if copied.is_none_or(|copied| copied.mtu) {
        attributes.push(LinkAttribute::Mtu(u32::from(plan.mtu)));
    }
    add(
        Need::Always,
        format!("bring up {ifname} with MAC {} and MTU {}", plan.guest_mac, plan.mtu),
        up(index, attributes),
    );
    if let Some(copied) = copied {
        copy(copied, ifname, index, &mut add);
        return steps;
    }
    if let Some(v4) = &plan.v4 {
        let mut message = address(index, v4.guest.into(), v4.prefix);
        message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        let what = format!("give {ifname} the address {}/{}", v4.guest, v4.prefix);
        add(Need::Always, what, RouteNetlinkMessage::NewAddress(message));
        let what = format!("route IPv4 by way of {}", v4.gateway);
        add(Need::Always, what, default_route(index, v4.gateway.into()));
    }
    if let Some(v6) = &plan.v6
        && *setup == LinkSetup::Planned
    {
        let mut message = address(index, v6.guest.into(), v6.prefix);
        message.header.flags = AddressHeaderFlags::Nodad;
        let what = format!("give {ifname} the address {}/{}", v6.guest, v6.prefix);
        add(Need::WhereV6Works, what, RouteNetlinkMessage::NewAddress(message));
        // By the gateway's global address: the guest then asks for it from its own global address,
        // which is never tentative, as its link-local one is where /proc/sys is read-only.
        let what = format!("route IPv6 by way of {}", v6.gateway);
        add(Need::WhereV6Works, what, default_route(index, v6.gateway.into()));
    }
    steps
}

/// The addresses and routes of `copied`: those to what is on the link first, since the others need
/// them.
fn copy(
    copied: &CopiedLink,
    ifname: &IfName,
    index: u32,
    add: &mut impl FnMut(Need, String, RouteNetlinkMessage),
) {
    for &CopiedAddress { address: given, prefix, routed } in &copied.addresses {
        let mut message = address(index, given, prefix);
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Noprefixroute, routed);
        let need = match given {
            IpAddr::V4(own) => {
                // /31 and /32 have none (RFC 3021).
                if let Some(rest) = u32::MAX.checked_shr(prefix.into()).filter(|rest| *rest > 1) {
                    let broadcast = (u32::from(own) | rest).into();
                    message.attributes.push(AddressAttribute::Broadcast(broadcast));
                }
                Need::Always
            }
            IpAddr::V6(_) => {
                flags |= AddressFlags::Nodad;
                Need::WhereV6Works
            }
        };
        message.attributes.push(AddressAttribute::Flags(flags));
        let what = format!("give {ifname} the address {given}/{prefix}");
        add(need, what, RouteNetlinkMessage::NewAddress(message));
    }
    let (on_link, beyond): (Vec<_>, Vec<_>) =
        copied.routes.iter().partition(|route| route.gateway.is_none());
    for route in on_link.into_iter().chain(beyond) {
        let CopiedRoute { destination, prefix, .. } = route;
        let what = format!("route {destination}/{prefix}");
        add(Need::Welcome, what, copied_route(index, route));
    }
}

fn copied_route(index: u32, route: &CopiedRoute) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination);
    message.header.destination_prefix_length = route.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope =
        if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    if route.onlink && route.gateway.is_some() {
        message.header.flags = RouteFlags::Onlink;
    }
    let mut attributes = vec![RouteAttribute::Oif(index)];
    if route.prefix > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination)));
    }
    attributes.extend(route.gateway.map(|by| RouteAttribute::Gateway(RouteAddress::from(by))));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    message.attributes = attributes;
    RouteNetlinkMessage::NewRoute(message)
}

fn up(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    set_link(index, LinkFlags::Up, attributes)
}

/// Sets `flags`, leaving the other ones as they are, and `attributes`.
fn set_link(index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

fn undisciplined(index: u32) -> RouteNetlinkMessage {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![TcAttribute::Kind(NO_DISCIPLINE.to_owned())];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

fn address(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn default_route(index: u32, gateway: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Settings of the interface for which netlink has no request. Where `/proc/sys` is read-only
/// (inside a container) they stay as they are, and IPv6 is usable a second later, after duplicate
/// detection.
fn sysctls(options: &LinkOptions, autoconfiguration: Autoconfiguration) {
    let set = |key: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{}/{key}", options.ifname);
        if let Err(e) = fs::write(&path, value) {
            tracing::debug!("{path} stays as it is: {e}");
        }
    };
    if options.plan.v6.is_none() {
        set("disable_ipv6", "1");
        return;
    }
    set("disable_ipv6", "0");
    set("accept_dad", "0");
    if autoconfiguration == Autoconfiguration::Off {
        set("accept_ra", "0");
    }
}
