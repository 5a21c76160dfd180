//! What the host is like, as plain values: gathered once, before anything is made, so that the
//! meaning of a command line is a pure function of it and of these.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::idmap::{IdRange, Identity, subordinates_of};
use super::netlink::Netlink;
use crate::base::Mac;
use crate::gate::forward::PortRange;

/// How one address family leaves the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outward<A> {
    /// The interface of the route.
    pub interface: String,
    /// That interface's MTU in bytes.
    pub mtu: u32,
    /// The address that the host sends from.
    pub source: A,
}

/// The host, as far as the meaning of options depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The way out for IPv4, if there is one.
    pub v4: Option<Outward<Ipv4Addr>>,
    /// The way out for IPv6, if there is one.
    pub v6: Option<Outward<Ipv6Addr>>,
    /// Name and MTU of the interface asked for with `--outbound-interface`, if it exists.
    pub named_interface: Option<(String, u32)>,
    /// The addresses of the host's interfaces, in the kernel's order, with the interface's name.
    pub addresses: Vec<(String, IpAddr)>,
    /// Who calls, and which ids are theirs to give.
    pub identity: Identity,
    /// The host's name.
    pub hostname: String,
    /// The text of the host's `/etc/hosts`.
    pub hosts: String,
    /// The search domains of the host's `/etc/resolv.conf`.
    pub search: Vec<String>,
    /// Our own process id, for the default name of the instance.
    pub pid: u32,
    /// The caller's shell, for `run` without a command.
    pub shell: Option<PathBuf>,
    /// Processors that we may use.
    pub processors: usize,
    /// An address for the guest's interface that nobody else is likely to have.
    pub random_mac: Option<Mac>,
}

/// Where "outside" is, to ask for the route and the source address towards it: a.root-servers.net.
/// No packet goes there; the address only has to be one that every default route covers.
pub(super) const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 41, 0, 4), Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30));

impl HostFacts {
    /// Asks the host. `interface` is the one named on the command line. What cannot be found out is
    /// left empty: a host without network, `/etc/hosts` or password entry is still a host.
    pub fn gather(interface: Option<&str>) -> HostFacts {
        let mut facts = HostFacts {
            identity: identity(),
            hostname: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            hosts: fs::read_to_string("/etc/hosts").unwrap_or_default(),
            search: fs::read_to_string("/etc/resolv.conf")
                .map(|text| search_domains(&text))
                .unwrap_or_default(),
            pid: std::process::id(),
            shell: std::env::var_os("SHELL").filter(|s| !s.is_empty()).map(PathBuf::from),
            processors: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            random_mac: random_mac(),
            addresses: addresses(),
            ..HostFacts::default()
        };
        if let Ok(mut netlink) = Netlink::open() {
            facts.routes(&mut netlink);
            if let Some(name) = interface {
                let link = netlink.link(name).ok().flatten();
                facts.named_interface = link.map(|link| (link.name, link.mtu));
            }
        }
        facts
    }

    fn routes(&mut self, netlink: &mut Netlink) {
        let asked = vec![route_to(OUTSIDE.0.into()), route_to(OUTSIDE.1.into())];
        let Ok(answers) = netlink.perform(asked) else { return };
        for answer in answers {
            let Ok(Some(RouteNetlinkMessage::NewRoute(route))) = answer else { continue };
            let (mut index, mut source) = (None, None);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(oif) => index = Some(oif),
                    RouteAttribute::PrefSource(RouteAddress::Inet(a)) => source = Some(a.into()),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => source = Some(a.into()),
                    _ => {}
                }
            }
            let Some((index, source)) = index.zip(source) else { continue };
            let Ok(Some(link)) = netlink.link_at(index) else { continue };
            match source {
                IpAddr::V4(source) => {
                    self.v4 = Some(Outward { interface: link.name, mtu: link.mtu, source });
                }
                IpAddr::V6(source) => {
                    self.v6 = Some(Outward { interface: link.name, mtu: link.mtu, source });
                }
            }
        }
    }
}

fn route_to(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.flags = RouteFlags::empty();
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    RouteNetlinkMessage::GetRoute(message)
}

fn identity() -> Identity {
    let uid = nix::unistd::geteuid();
    let gid = nix::unistd::getegid();
    let mut identity = Identity { uid: uid.as_raw(), gid: gid.as_raw(), ..Identity::default() };
    if uid.is_root() {
        identity.own_uids = own_ids("/proc/self/uid_map");
        identity.own_gids = own_ids("/proc/self/gid_map");
        return identity;
    }
    if on_path("newuidmap").and(on_path("newgidmap")).is_some() {
        let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let subgid = fs::read_to_string("/etc/subgid").unwrap_or_default();
        if subuid.is_empty() || subgid.is_empty() {
            return identity;
        }
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        // Both files name the user: /etc/subgid too (subgid(5)).
        identity.subuids = subordinates_of(&subuid, name.as_deref(), identity.uid);
        identity.subgids = subordinates_of(&subgid, name.as_deref(), identity.uid);
    }
    identity
}

/// The ids of our own user namespace, from lines of `inside outside count`.
fn own_ids(map: &str) -> Vec<IdRange> {
    let text = fs::read_to_string(map).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let first = numbers.next()?.ok()?;
            let count = numbers.nth(1)?.ok()?;
            Some(IdRange { first, count })
        })
        .collect()
}

/// Where `program` is found by its name, by the search path that execvp(3) uses.
pub(super) fn on_path(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(&program)).find(|path| path.is_file())
}

/// The ports that this host hands out to clients (`net.ipv4.ip_local_port_range`); the kernel's
/// default where that cannot be read.
pub fn ephemeral_ports() -> PortRange {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
        return PortRange::EPHEMERAL;
    };
    PortRange::new(first, last).unwrap_or(PortRange::EPHEMERAL)
}

/// The domains of the last `search` or `domain` line (resolv.conf(5)).
pub fn search_domains(resolv_conf: &str) -> Vec<String> {
    let mut domains = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if let Some("search" | "domain") = words.next() {
            domains = words.map(str::to_owned).filter(|d| d != ".").collect();
        }
    }
    domains
}

/// The addresses of all interfaces; IPv6 link-local ones, which alone mean nothing, left out.
fn addresses() -> Vec<(String, IpAddr)> {
    let Ok(entries) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let socket = entry.address?;
        let v4 = socket.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = socket.as_sockaddr_in6().map(|v6| v6.ip());
        let v6 = v6.filter(|v6| !v6.is_unicast_link_local()).map(IpAddr::V6);
        Some((entry.interface_name, v4.or(v6)?))
    };
    entries.filter_map(address).collect()
}

/// A locally administered unicast address (IEEE 802 clause 8.2).
fn random_mac() -> Option<Mac> {
    let mut octets = [0; 6];
    getrandom::fill(&mut octets).ok()?;
    octets[0] = octets[0] & 0xfc | 0x02;
    Some(Mac(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_search_line_counts() {
        let text = "nameserver 192.0.2.1\nsearch a.example b.example\ndomain c.example\n";
        assert_eq!(search_domains(text), ["c.example"]);
        assert!(search_domains("search .\n").is_empty());
        assert!(search_domains("").is_empty());
    }
}
