//! The host's own interface, as a model for the guest's: addresses, routes, name.
//!
//! Per family, the model is the interface that was named, else that of the first default route of
//! the main table, else the first that has any route but to its own link; of a multipath route, the
//! first next hop. Read once, before anything is made.
//!
//! What is copied are plain values: addresses in the kernel's order, without link-local and
//! deprecated ones, labels and lifetimes; routes of the main table by destination, gateway and
//! metric. What belongs to the host alone stays there: preferred sources, next-hop objects,
//! encapsulation.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
    RouteNextHopFlags, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;

/// The model for one family of the guest's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The host's interface.
    pub interface: String,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<CopiedAddress>,
    /// The router of its default route; of several, the one with the highest weight.
    pub gateway: Option<IpAddr>,
    /// Its routes.
    pub routes: Vec<CopiedRoute>,
}

impl Template {
    /// The address that stands for the host: the one of the longest prefix, the first of several.
    pub fn main_address(&self) -> Option<(IpAddr, u8)> {
        let longest = self.addresses.iter().map(|address| address.prefix).max()?;
        let main = self.addresses.iter().find(|address| address.prefix == longest)?;
        Some((main.address, longest))
    }
}

/// An address without its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The prefix has a route of its own (`IFA_F_NOPREFIXROUTE`): whoever gave the address has seen
    /// to what is on the link.
    pub routed: bool,
}

impl CopiedAddress {
    /// One whose prefix is on the link.
    pub fn new(address: IpAddr, prefix: u8) -> CopiedAddress {
        CopiedAddress { address, prefix, routed: false }
    }
}

/// A route without its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedRoute {
    /// The network; unspecified with prefix length 0 for the default route.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// The next hop; `None` if the network is on the link.
    pub gateway: Option<IpAddr>,
    /// Its metric, lower is better; `None` is the kernel's default.
    pub metric: Option<u32>,
    /// The next hop is on the link although no route says so.
    pub onlink: bool,
}

impl CopiedRoute {
    /// The default route by way of `gateway`.
    pub fn default_by(gateway: IpAddr) -> CopiedRoute {
        let destination = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let gateway = Some(gateway);
        CopiedRoute { destination, prefix: 0, gateway, metric: None, onlink: true }
    }
}

/// The models of both families on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// For IPv4; `None` where the host has no way out, or no interface of the name asked for.
    pub v4: Option<Template>,
    /// For IPv6.
    pub v6: Option<Template>,
}

/// Reads the models. `v4` and `v6` name interfaces; without a name, routes decide.
///
/// # Errors
/// The kernel's tables cannot be read.
pub fn templates(v4: Option<&str>, v6: Option<&str>) -> io::Result<Templates> {
    let mut netlink = Netlink::open()?;
    Ok(Templates {
        v4: template(&mut netlink, AddressFamily::Inet, v4)?,
        v6: template(&mut netlink, AddressFamily::Inet6, v6)?,
    })
}

fn template(
    netlink: &mut Netlink,
    family: AddressFamily,
    named: Option<&str>,
) -> io::Result<Option<Template>> {
    let routes = match main_routes(netlink, family) {
        Ok(routes) => routes,
        // A kernel without the family.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
        Err(e) => return Err(e),
    };
    let index = match named {
        Some(name) => netlink.link(name)?.map(|link| link.index),
        None => choose(&routes),
    };
    let Some(index) = index else { return Ok(None) };
    let Some(link) = netlink.link_at(index)? else { return Ok(None) };
    let routes: Vec<Found> = routes.into_iter().filter(|found| found.index == index).collect();
    let default = routes.iter().find(|found| found.route.prefix == 0);
    let gateway = default.and_then(|found| found.heaviest.or(found.route.gateway));
    let routes = routes.into_iter().map(|found| found.route).collect();
    let addresses = addresses(netlink, family, index)?;
    Ok(Some(Template { interface: link.name, addresses, gateway, routes }))
}

/// The interface of the first default route, else of the first route that leads anywhere.
fn choose(routes: &[Found]) -> Option<u32> {
    let default = routes.iter().find(|found| found.route.prefix == 0);
    let leads_on =
        |found: &&Found| found.index != LOOPBACK_INDEX && !is_link_local(found.route.destination);
    let any = || routes.iter().find(leads_on);
    default.or_else(any).map(|found| found.index)
}

/// A route of the host's.
#[derive(Clone, Debug)]
struct Found {
    /// The interface by which it leads.
    index: u32,
    route: CopiedRoute,
    /// Of several routers by that interface, the first of the highest weight.
    heaviest: Option<IpAddr>,
}

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

fn main_routes(netlink: &mut Netlink, family: AddressFamily) -> io::Result<Vec<Found>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let found = netlink.dump(RouteNetlinkMessage::GetRoute(request))?;
    Ok(found.into_iter().filter_map(|message| plain_route(message, family)).collect())
}

fn plain_route(message: RouteNetlinkMessage, family: AddressFamily) -> Option<Found> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let cloned = header.flags.contains(RouteFlags::Cloned);
    // Dumps have all tables, and those of IPv6 the exceptions that it learned, too.
    if header.address_family != family
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || cloned
    {
        return None;
    }
    let (mut index, mut heaviest) = (None, None);
    let mut route = CopiedRoute {
        destination: match family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        },
        prefix: header.destination_prefix_length,
        gateway: None,
        metric: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination = plain(to)?,
            RouteAttribute::Gateway(by) => route.gateway = plain(by),
            RouteAttribute::Oif(oif) => index = Some(oif),
            RouteAttribute::Priority(metric) => route.metric = Some(metric),
            RouteAttribute::MultiPath(hops) => {
                let first = hops.first()?;
                index = Some(first.interface_index);
                route.onlink |= first.flags.contains(RouteNextHopFlags::Onlink);
                route.gateway = router(first);
                heaviest = heaviest_router(&hops, first.interface_index);
            }
            // By a router of the other family, through a tunnel: nothing that a copy could use.
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some(Found { index: index?, route, heaviest })
}

fn router(hop: &RouteNextHop) -> Option<IpAddr> {
    hop.attributes.iter().find_map(|part| match part {
        RouteAttribute::Gateway(by) => plain(by.clone()),
        _ => None,
    })
}

/// The first of the routers by interface `index` that have the highest weight.
fn heaviest_router(hops: &[RouteNextHop], index: u32) -> Option<IpAddr> {
    let by_it = || hops.iter().filter(|hop| hop.interface_index == index);
    // `rtnh_hops` is the weight less one.
    let weight = by_it().map(|hop| hop.hops).max()?;
    by_it().find(|hop| hop.hops == weight).and_then(router)
}

fn plain(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(a.into()),
        RouteAddress::Inet6(a) => Some(a.into()),
        _ => None,
    }
}

fn addresses(
    netlink: &mut Netlink,
    family: AddressFamily,
    index: u32,
) -> io::Result<Vec<CopiedAddress>> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    let mut addresses = Vec::new();
    for message in netlink.dump(RouteNetlinkMessage::GetAddress(request))? {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let unusable = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Tentative;
        if message.header.index != index
            || message.header.family != family
            || message.header.flags.intersects(unusable)
        {
            continue;
        }
        let (mut own, mut shown, mut routed) = (None, None, false);
        for attribute in message.attributes {
            match attribute {
                // Of a point-to-point link, `Address` is the peer's.
                AddressAttribute::Local(address) => own = Some(address),
                AddressAttribute::Address(address) => shown = Some(address),
                // All flags, of which the header has the first eight.
                AddressAttribute::Flags(flags) => {
                    routed = flags.contains(AddressFlags::Noprefixroute);
                }
                _ => {}
            }
        }
        let Some(address) = own.or(shown) else { continue };
        if !is_link_local(address) {
            addresses.push(CopiedAddress { address, prefix: message.header.prefix_len, routed });
        }
    }
    Ok(addresses)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(index: u32, destination: &str, prefix: u8, gateway: &str) -> Found {
        let destination = destination.parse().unwrap();
        let gateway = gateway.parse().ok();
        let route = CopiedRoute { destination, prefix, gateway, metric: None, onlink: false };
        Found { index, route, heaviest: None }
    }

    #[test]
    fn the_default_route_names_the_model_and_without_one_any_way_out_does() {
        let link = route(2, "192.0.2.0", 24, "");
        let other = route(3, "198.51.100.0", 24, "192.0.2.9");
        let default = route(4, "0.0.0.0", 0, "203.0.113.1");
        let loopback = route(1, "10.0.0.0", 8, "");
        let own_link = route(5, "169.254.0.0", 16, "");
        assert_eq!(choose(&[link.clone(), default.clone(), other.clone()]), Some(4));
        assert_eq!(choose(&[loopback.clone(), own_link.clone(), other]), Some(3));
        assert_eq!(choose(&[loopback, own_link]), None);
    }

    #[test]
    fn the_longest_prefix_is_the_main_address() {
        let address = |text: &str, prefix| CopiedAddress::new(text.parse().unwrap(), prefix);
        let template = Template {
            interface: "eth0".to_owned(),
            addresses: vec![
                address("192.0.2.1", 24),
                address("192.0.2.2", 32),
                address("192.0.2.3", 32),
            ],
            gateway: None,
            routes: vec![],
        };
        assert_eq!(template.main_address(), Some(("192.0.2.2".parse().unwrap(), 32)));
    }

    #[test]
    fn what_the_kernel_says_can_be_read() {
        // Whatever this machine has: what is found is complete and leads out.
        let found = templates(None, None).unwrap();
        for template in [found.v4, found.v6].into_iter().flatten() {
            assert!(!template.interface.is_empty());
            assert!(template.routes.iter().all(|route| route.prefix <= 128));
        }
        assert_eq!(templates(Some("nosuch0"), Some("nosuch0")).unwrap(), Templates::default());
    }
}
