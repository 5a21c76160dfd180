//! An address plan for tests, and answers taken apart.

use std::net::Ipv4Addr;

use crate::base::Mac;
use crate::gate::{AddressPlan, Habits, Plan4, Plan6};

pub(super) const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
pub(super) const GUEST_MAC: Mac = Mac([0x02, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);

pub(super) fn plan() -> AddressPlan {
    AddressPlan {
        v4: Some(Plan4 {
            guest: Ipv4Addr::new(10, 0, 2, 100),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
        }),
        v6: Some(Plan6 {
            guest: "fd74:6170:7761:79::100".parse().unwrap(),
            prefix: 64,
            gateway: "fd74:6170:7761:79::2".parse().unwrap(),
            gateway_link_local: "fe80::2".parse().unwrap(),
            dns: "fd74:6170:7761:79::3".parse().ok(),
        }),
        gateway_mac: GATEWAY_MAC,
        guest_mac: GUEST_MAC,
        mtu: 1400,
        host_loopback: vec!["10.0.2.9".parse().unwrap(), "fd74:6170:7761:79::9".parse().unwrap()],
        search: vec!["corp.example".into()],
        sharing: None,
        habits: Habits::default(),
    }
}
