//! Ports of the gateway that lead to services of the host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::gate::forward::{Exposure, ForwardId, HostService, Transport};

/// Where an exposed port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// A port of the host or beyond.
    Address(SocketAddr),
    /// A Unix stream socket of the host.
    Unix(PathBuf),
}

/// The exposed ports, by transport and first port. Ranges of one transport do not overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct Exposures(BTreeMap<(Transport, u16), (ForwardId, Exposure)>);

impl Exposures {
    /// Adds a range in place of one that begins at the same port.
    pub(super) fn add(&mut self, id: ForwardId, exposure: Exposure) {
        self.0.insert((exposure.transport, exposure.ports.first()), (id, exposure));
    }

    /// Removes those for which `withdrawn` holds.
    pub(super) fn remove(&mut self, withdrawn: impl Fn(ForwardId) -> bool) {
        self.0.retain(|_, (id, _)| !withdrawn(*id));
    }

    /// Where `port` of the gateway's address `gateway` leads.
    pub(super) fn find(
        &self,
        transport: Transport,
        gateway: IpAddr,
        port: u16,
    ) -> Option<(ForwardId, Service)> {
        let (_, (id, exposure)) = self.0.range((transport, 0)..=(transport, port)).next_back()?;
        if port > exposure.ports.last() {
            return None;
        }
        let service = match &exposure.service {
            HostService::Unix(path) => Service::Unix(Path::to_owned(path)),
            HostService::Ports { address, ports } => {
                let loopback = match gateway {
                    IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                let address = address.unwrap_or(loopback);
                let port = ports.first() + (port - exposure.ports.first());
                Service::Address(SocketAddr::new(address, port))
            }
        };
        Some((*id, service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::forward::PortRange;

    #[test]
    fn ports_lead_to_their_counterparts_and_loopback_follows_the_family() {
        let mut exposures = Exposures::default();
        let exposure = Exposure {
            transport: Transport::Tcp,
            ports: PortRange::new(5000, 5002).unwrap(),
            service: HostService::Ports { address: None, ports: PortRange::new(80, 82).unwrap() },
        };
        exposures.add(ForwardId(7), exposure);
        let find = |gateway: &str, port| match exposures.find(
            Transport::Tcp,
            gateway.parse().unwrap(),
            port,
        ) {
            Some((ForwardId(7), Service::Address(address))) => Some(address.to_string()),
            Some(_) => panic!("not what was added"),
            None => None,
        };
        assert_eq!(find("10.0.2.2", 5000).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(find("fd00::2", 5002).as_deref(), Some("[::1]:82"));
        assert_eq!((find("10.0.2.2", 4999), find("10.0.2.2", 5003)), (None, None));
        assert_eq!(exposures.find(Transport::Udp, "10.0.2.2".parse().unwrap(), 5000), None);
    }

    #[test]
    fn what_is_withdrawn_is_closed() {
        let mut exposures = Exposures::default();
        let exposure = |port| Exposure {
            transport: Transport::Tcp,
            ports: PortRange::single(port),
            service: HostService::Unix("/run/service".into()),
        };
        exposures.add(ForwardId(1), exposure(80));
        exposures.add(ForwardId(2), exposure(81));
        exposures.remove(|id| id == ForwardId(1));
        let gateway = "10.0.2.2".parse().unwrap();
        assert_eq!(exposures.find(Transport::Tcp, gateway, 80), None);
        let service = Service::Unix("/run/service".into());
        assert_eq!(exposures.find(Transport::Tcp, gateway, 81), Some((ForwardId(2), service)));
    }
}
