//! Who reaches the guest socket to socket, without a frame on its link.
//!
//! A client on the host's loopback has no address that a link could carry. Instead of giving it
//! another one, its connection can be joined to a second one, made inside the guest's namespace.
//! Which of the guest's servers it finds there depends on the address that this one leads to.
//!
//! A client of a published port who has an address that a link can carry may be joined too, and
//! keep that address ([`PublishPath`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::AddressPlan;

/// How clients of published ports who are on the host's loopback reach a guest that shares its
/// host's networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splicing {
    /// By the link, as everybody else.
    Off,
    /// Socket to socket, at the guest's own address: what listens at its loopback alone stays its
    /// own. The guest sees itself as the client.
    #[default]
    Outward,
    /// Socket to socket, from loopback to loopback.
    Loopback,
    /// As [`Splicing::Loopback`], and there is no link: nobody else reaches the guest, and the
    /// guest nobody.
    Only,
}

/// Which way clients of published TCP ports take to a server of the guest, who sees the same of
/// them either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishPath {
    /// By the guest's link.
    Tap,
    /// Those on the host itself socket to socket where the guest cannot tell it from the link;
    /// others by the link.
    Auto,
    /// Socket to socket, whoever it is, where the guest cannot tell it from the link.
    Short,
}

impl PublishPath {
    /// Whether anybody is joined socket to socket.
    pub fn joins(self) -> bool {
        self != PublishPath::Tap
    }
}

impl AddressPlan {
    fn splicing(&self) -> Splicing {
        self.sharing.as_ref().map_or(Splicing::Off, |sharing| sharing.splicing)
    }

    /// The guest's address to which a client at `client` of a published port is joined socket to
    /// socket; `None` if it comes by the link.
    pub fn splice_target(&self, client: IpAddr) -> Option<IpAddr> {
        match (client, self.splicing()) {
            (_, Splicing::Off) => None,
            (client, _) if !client.is_loopback() => None,
            (client, Splicing::Outward) => self.guest(client.is_ipv6()),
            (IpAddr::V4(_), _) => Some(Ipv4Addr::LOCALHOST.into()),
            (IpAddr::V6(_), _) => Some(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// Whether clients may have to be joined to sockets of the guest's.
    pub fn splices(&self) -> bool {
        self.splicing() != Splicing::Off
    }

    /// Whether servers on the guest's loopback are reached from the host.
    pub fn joins_loopbacks(&self) -> bool {
        matches!(self.splicing(), Splicing::Loopback | Splicing::Only)
    }

    /// Whether the guest has a link at all.
    pub fn has_link(&self) -> bool {
        self.splicing() != Splicing::Only
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{plan, shared};
    use super::*;

    fn target(splicing: Splicing, client: &str) -> Option<String> {
        let mut plan = shared();
        plan.sharing.as_mut().unwrap().splicing = splicing;
        plan.splice_target(client.parse().unwrap()).map(|target| target.to_string())
    }

    #[test]
    fn only_clients_on_the_hosts_loopback_are_joined() {
        let table = [
            (Splicing::Off, "127.0.0.1", None),
            (Splicing::Outward, "127.9.9.9", Some("192.0.2.7")),
            (Splicing::Outward, "::1", Some("2001:db8::7")),
            (Splicing::Outward, "192.0.2.7", None),
            (Splicing::Loopback, "127.9.9.9", Some("127.0.0.1")),
            (Splicing::Loopback, "192.0.2.9", None),
            (Splicing::Only, "::1", Some("::1")),
            (Splicing::Only, "2001:db8::7", None),
        ];
        for (splicing, client, expected) in table {
            assert_eq!(target(splicing, client).as_deref(), expected, "{splicing:?} {client}");
        }
        assert_eq!(plan().splice_target("127.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn a_family_that_the_guest_lacks_is_reached_by_the_link() {
        let mut plan = shared();
        plan.v6 = None;
        assert_eq!(plan.splice_target("::1".parse().unwrap()), None);
    }
}
