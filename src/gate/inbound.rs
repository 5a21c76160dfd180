//! Who is who on a flow that comes in through a published port, as the guest sees it.
//!
//! A client on the network is seen under its own address, as rootful DNAT shows it. A client that
//! the guest could not answer is seen as the gateway: one on the host's loopback or behind a Unix
//! socket, one whose address lies in the guest's own network or on the host's link, and one of the
//! other address family.
//!
//! On a shared link the guest can answer whoever has an address of the host's networks. There the
//! host's loopback and the host itself, which has the guest's own address, are seen under the
//! addresses that stand for them, and as the gateway where there are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::{AddressPlan, Destination};

/// The loopback addresses that a stand-in stands for.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The two ends of an inbound flow on the guest link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The guest's address.
    pub guest: IpAddr,
    /// The client's address as the guest sees it; of the same family.
    pub client: IpAddr,
}

impl AddressPlan {
    /// The ends of a flow from `client` (`None` behind a Unix socket) to the guest's address
    /// `guest` (`None` is its own address of the client's family, or of the one that it has).
    /// `None` if the guest cannot have that address.
    pub fn inbound(&self, client: Option<IpAddr>, guest: Option<IpAddr>) -> Option<Inbound> {
        let v4 = self.v4.as_ref().map(|v4| (IpAddr::V4(v4.guest), IpAddr::V4(v4.gateway)));
        let v6 = self.v6.as_ref().map(|v6| (IpAddr::V6(v6.guest), IpAddr::V6(v6.gateway)));
        let prefers_v6 = guest.or(client).is_some_and(|address| address.is_ipv6());
        let (own, gateway) = match (prefers_v6, guest) {
            (false, None) => v4.or(v6)?,
            (true, None) => v6.or(v4)?,
            (false, Some(_)) => v4?,
            (true, Some(_)) => v6?,
        };
        let guest = guest.unwrap_or(own);
        if !self.source_allowed(guest) {
            return None;
        }
        if let Some(sharing) = &self.sharing {
            let stand_in = |names: &[IpAddr]| {
                names.iter().copied().find(|name| name.is_ipv4() == guest.is_ipv4())
            };
            let client = match client {
                Some(client) if LOOPBACK.contains(&client) => stand_in(&self.host_loopback),
                Some(client) if client == guest => stand_in(&sharing.host),
                client => client.filter(|client| self.is_neighbour(*client, guest)),
            };
            return Some(Inbound { guest, client: client.unwrap_or(gateway) });
        }
        let client = client.filter(|client| self.can_answer(*client, guest)).unwrap_or(gateway);
        Some(Inbound { guest, client })
    }

    /// Whether a guest on a shared link can answer `client` under the client's own address.
    fn is_neighbour(&self, client: IpAddr, guest: IpAddr) -> bool {
        client.is_ipv4() == guest.is_ipv4()
            && !self.is_reserved(client)
            && self.destination(client) == Destination::Host(client)
    }

    /// Whether packets from `guest` to `client` come to us, and would be forwarded.
    fn can_answer(&self, client: IpAddr, guest: IpAddr) -> bool {
        // An address that stands for the host's loopback is somebody else to the guest: it does
        // not lead to itself.
        client.is_ipv4() == guest.is_ipv4() && self.destination(client) == Destination::Host(client)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{plan, shared};
    use super::*;

    fn ends(client: &str, guest: &str) -> Option<(String, String)> {
        let parse = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        let Inbound { guest, client } = plan().inbound(parse(client), parse(guest))?;
        Some((client.to_string(), guest.to_string()))
    }

    #[test]
    fn clients_on_the_network_keep_their_address() {
        for (client, guest) in [
            ("192.0.2.7", "10.0.2.100"),
            ("169.254.9.9", "10.0.2.100"),
            ("240.0.0.9", "10.0.2.100"),
            ("2001:db8::7", "fd74:6170:7761:79::100"),
        ] {
            assert_eq!(ends(client, ""), Some((client.to_owned(), guest.to_owned())));
        }
    }

    #[test]
    fn clients_that_the_guest_could_not_answer_are_seen_as_the_gateway() {
        let clients = ["127.0.0.1", "127.9.9.9", "10.0.2.100", "10.0.2.77", "10.0.2.9"];
        for client in clients.into_iter().chain([""]) {
            let gateway = ("10.0.2.2".to_owned(), "10.0.2.100".to_owned());
            assert_eq!(ends(client, ""), Some(gateway), "{client}");
        }
        for client in ["::1", "fe80::7", "fd74:6170:7761:79::5"] {
            let gateway = ("fd74:6170:7761:79::2".to_owned(), "fd74:6170:7761:79::100".to_owned());
            assert_eq!(ends(client, ""), Some(gateway), "{client}");
        }
    }

    #[test]
    fn families_are_translated_by_way_of_the_gateway() {
        let v4 = ("10.0.2.2".to_owned(), "10.0.2.15".to_owned());
        assert_eq!(ends("2001:db8::7", "10.0.2.15"), Some(v4));
        let mut only_v4 = plan();
        only_v4.v6 = None;
        let inbound = only_v4.inbound(Some("2001:db8::7".parse().unwrap()), None).unwrap();
        assert_eq!(inbound.guest.to_string(), "10.0.2.100");
        assert_eq!(inbound.client.to_string(), "10.0.2.2");
    }

    #[test]
    fn a_guest_with_its_hosts_address_sees_the_host_under_other_names() {
        for (client, seen) in [
            ("192.0.2.9", "192.0.2.9"),
            ("198.51.100.9", "198.51.100.9"),
            ("127.0.0.1", "192.0.2.1"),
            ("127.0.0.2", "192.0.2.1"),
            ("192.0.2.7", "169.254.1.2"),
            ("169.254.1.2", "192.0.2.1"),
            ("2001:db8::9", "2001:db8::9"),
            ("2001:db8::7", "fe80::1"),
            ("::1", "fe80::1"),
            ("fe80::9", "fe80::1"),
        ] {
            let inbound = shared().inbound(Some(client.parse().unwrap()), None).unwrap();
            assert_eq!(inbound.client.to_string(), seen, "{client}");
            assert_eq!(Some(inbound.guest), shared().guest(client.contains("::")));
        }
    }

    #[test]
    fn addresses_that_the_guest_cannot_have_are_refused() {
        for guest in ["10.0.2.2", "10.0.2.3", "192.0.2.7", "10.0.2.255", "2001:db8::1"] {
            assert_eq!(ends("192.0.2.7", guest), None, "{guest}");
        }
    }
}
