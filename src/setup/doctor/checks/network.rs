//! The host's own network, and what of it unprivileged sockets may use.

use std::net::IpAddr;

use nix::errno::Errno;

use super::super::facts::{Facts, Path, Resolvers};
use super::super::report::{Check, Mend};

/// The smallest MTU that IPv6 works with (RFC 8200 §5).
const IPV6_MINIMUM_MTU: u32 = 1280;

pub(super) fn ipv4_route(facts: &Facts) -> Check {
    const NAME: &str = "ipv4-route";
    match route(&facts.ipv4) {
        Ok(seen) => Check::ok(NAME, seen),
        Err(seen) => Check::degraded(
            NAME,
            seen,
            "the way of guests to IPv4 addresses outside of this host",
            Mend::once("connect this host to an IPv4 network with a default route"),
        ),
    }
}

pub(super) fn ipv6_route(facts: &Facts) -> Check {
    const NAME: &str = "ipv6-route";
    const LOST: &str = "the way of guests to IPv6 addresses outside of this host";
    let off = facts.sysctls.disable_ipv6.is_some_and(|value| value != 0);
    match (route(&facts.ipv6), &facts.ipv6) {
        (Ok(seen), _) => Check::ok(NAME, seen),
        (Err(_), Path::NoRoute(_)) if off => Check::degraded(
            NAME,
            "IPv6 is switched off (net.ipv6.conf.all.disable_ipv6 = 1)",
            LOST,
            Mend::sysctl("net.ipv6.conf.all.disable_ipv6", "0"),
        ),
        (Err(seen), Path::NoFamily) => Check::degraded(
            NAME,
            seen,
            LOST,
            Mend::once("boot without ipv6.disable=1, on a kernel with CONFIG_IPV6"),
        ),
        (Err(seen), _) => Check::degraded(
            NAME,
            seen,
            LOST,
            Mend::once(
                "connect this host to an IPv6 network with a default route, or run guests with \
                 --ipv6 off",
            ),
        ),
    }
}

fn route(path: &Path) -> Result<String, String> {
    match path {
        Path::NoFamily => Err("the kernel makes no sockets of this family".to_owned()),
        Path::NoRoute(Errno::ENETUNREACH) => Err("no default route".to_owned()),
        Path::NoRoute(errno) => Err(format!("no way out ({errno})")),
        Path::Via { interface, source, .. } => {
            let interface = interface.as_deref().unwrap_or("an interface without that address");
            Ok(format!("by {interface} from {source}"))
        }
    }
}

pub(super) fn path_mtu(facts: &Facts) -> Check {
    const NAME: &str = "path-mtu";
    let paths = [("IPv4", &facts.ipv4), ("IPv6", &facts.ipv6)];
    let known: Vec<_> = paths
        .iter()
        .filter_map(|&(family, path)| match path {
            Path::Via { interface, mtu, .. } => Some((family, interface, *mtu)),
            Path::NoFamily | Path::NoRoute(_) => None,
        })
        .collect();
    if known.is_empty() {
        return Check::ok(NAME, "no path out to take it from");
    }
    let texts: Vec<_> = known.iter().map(|(family, _, mtu)| format!("{mtu} ({family})")).collect();
    let seen = texts.join(", ");
    let Some((_, interface, _)) = known.iter().find(|(_, _, mtu)| *mtu < IPV6_MINIMUM_MTU) else {
        return Check::ok(NAME, seen);
    };
    let interface = interface.as_deref().unwrap_or("INTERFACE");
    Check::degraded(
        NAME,
        format!("{seen}, below {IPV6_MINIMUM_MTU}"),
        "IPv6, which needs 1280 bytes; and each packet carries less",
        Mend::kept(
            format!("sudo ip link set dev {interface} mtu 1500"),
            format!("set it in the configuration that brings {interface} up"),
        ),
    )
}

pub(super) fn resolvers(facts: &Facts) -> Check {
    const NAME: &str = "resolvers";
    let degraded = |seen: String| {
        Check::degraded(
            NAME,
            seen,
            "names inside guests",
            Mend::once("name a resolver that can be reached: tapway run --dns ADDRESS"),
        )
    };
    let servers = match &facts.resolvers {
        Resolvers::Unreadable(errno) => {
            return degraded(format!("/etc/resolv.conf cannot be read ({errno})"));
        }
        Resolvers::Listed(servers) if servers.is_empty() => {
            return degraded("/etc/resolv.conf names no resolver".to_owned());
        }
        Resolvers::Listed(servers) => servers,
    };
    let texts: Vec<_> = servers
        .iter()
        .map(|(server, usable)| {
            let loopback = server.parse().is_ok_and(|address: IpAddr| address.is_loopback());
            match (usable, loopback) {
                (true, true) => format!("{server} (this host's own, forwarded)"),
                (true, false) => server.clone(),
                (false, _) => format!("{server} (no route there)"),
            }
        })
        .collect();
    let seen = texts.join(", ");
    // One is enough: a resolver without a route fails at once and the next one is asked.
    if servers.iter().any(|&(_, usable)| usable) { Check::ok(NAME, seen) } else { degraded(seen) }
}

pub(super) fn ping_sockets(facts: &Facts) -> Check {
    const NAME: &str = "ping-sockets";
    let range = facts.sysctls.ping_group_range;
    let shown =
        range.map_or_else(String::new, |(low, high)| format!(" (ping_group_range = {low} {high})"));
    // A host without IPv6 has no use for the other family's.
    let no_ipv6 = facts.ipv6 == Path::NoFamily;
    let (family, errno) = match (facts.ping4, facts.ping6) {
        (Ok(()), Ok(())) => return Check::ok(NAME, format!("tried, works{shown}")),
        (Ok(()), Err(_)) if no_ipv6 => {
            return Check::ok(NAME, format!("tried, works for IPv4{shown}"));
        }
        (Ok(()), Err(errno)) => ("IPv6", errno),
        (Err(errno), Ok(())) => ("IPv4", errno),
        (Err(errno), Err(_)) => ("either family", errno),
    };
    let caller = &facts.caller;
    let in_range = range.is_some_and(|(low, high)| {
        caller.groups.iter().chain([&caller.gid]).any(|group| (low..=high).contains(group))
    });
    let lost = "ping and echo traceroute from guests: answered as administratively prohibited";
    if in_range {
        let seen = format!("refused for {family} ({errno}), although the groups fit{shown}");
        return Check::degraded(NAME, seen, lost, super::namespaces::outside_a_container());
    }
    Check::degraded(
        NAME,
        format!("not allowed to any group of the caller{shown}"),
        lost,
        Mend::sysctl("net.ipv4.ping_group_range", "0 2147483647"),
    )
}

pub(super) fn low_ports(facts: &Facts) -> Check {
    const NAME: &str = "low-ports";
    if facts.low_port.is_ok_and(|()| facts.sysctls.unprivileged_port_start > Some(1)) {
        return Check::ok(NAME, "every port can be published: the caller may bind low ones");
    }
    // Before Linux 4.11 the floor was fixed.
    match facts.sysctls.unprivileged_port_start.unwrap_or(1024) {
        0 | 1 => Check::ok(NAME, "every port can be published"),
        floor => Check::degraded(
            NAME,
            format!("ports from {floor} on can be published"),
            format!("publishing ports 1 to {}", floor - 1),
            Mend::sysctl("net.ipv4.ip_unprivileged_port_start", "0"),
        ),
    }
}
