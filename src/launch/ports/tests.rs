//! Ports that follow a guest, before a worker whose link nobody uses.

use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;
use crate::base::Mac;
use crate::engine::host::{DnsLink, Links, Outbound};
use crate::engine::tap::TapQueue;
use crate::engine::{Limits, Options, thread};
use crate::gate::forward::Transport;
use crate::gate::{Habits, Plan4, PublishPath};

/// A worker that ends with this.
struct Worker {
    sender: CommandSender,
    _link: UnixDatagram,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.sender.send(Command::Drain);
    }
}

fn worker() -> Worker {
    let (tap, link) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let (sender, commands) = thread::commands().unwrap();
    let limits = Limits::default();
    let options = Options {
        plan: plan(),
        vnet_header: false,
        uso: false,
        big_packets: false,
        publish_path: PublishPath::Tap,
        limits,
        seed: 1,
    };
    let dns = DnsLink { connect: Box::new(|| None), ask: Box::new(|_, _| false) };
    let outbound = Outbound::default();
    let links = Links { dns, inside: None };
    let frames = TapQueue::new(tap.into(), false, None);
    let seats = vec![thread::Seat { frames, links }];
    thread::start(seats, 1, options, outbound, commands, |_| ()).unwrap();
    Worker { sender, _link: link }
}

fn plan() -> AddressPlan {
    let octets = |last| std::net::Ipv4Addr::new(10, 0, 2, last);
    AddressPlan {
        v4: Some(Plan4 {
            guest: octets(100),
            prefix: 24,
            gateway: octets(2),
            dns: Some(octets(3)),
        }),
        v6: None,
        gateway_mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
        guest_mac: Mac([0x02, 0, 0, 0, 0, 1]),
        mtu: 1500,
        host_loopback: vec![],
        sharing: None,
        habits: Habits::default(),
        search: vec![],
    }
}

/// TCP over IPv4 at `ports`.
fn listening(ports: &[u16]) -> PortTable {
    let mut table = PortTable::default();
    ports.iter().for_each(|&port| table.of_mut(Transport::Tcp, Family::V4).insert(port));
    table
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
}

#[test]
fn a_unix_socket_comes_and_goes_with_its_server_time_and_again() {
    let worker = worker();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("web.sock");
    let forward = Forward {
        transport: Transport::Tcp,
        listen: Listen::Unix(path.clone()),
        guest_address: None,
        guest_ports: PortRange::single(80),
        when_listening: true,
    };
    let at_start = AtStart { opened: vec![], waiting: vec![(forward, false)] };
    let options = PortOptions { at_start, ..PortOptions::default() };
    let mut ports = Ports::new(worker.sender.clone(), plan(), options);
    run(async {
        for _ in 0..3 {
            assert!(!path.exists(), "a socket that nobody serves");
            ports.follow_guest(&listening(&[80])).await;
            UnixStream::connect(&path).unwrap();
            ports.follow_guest(&listening(&[])).await;
        }
    });
}

#[test]
fn a_port_published_elsewhere_hides_no_service_of_the_hosts_loopback() {
    let hides = |address: Option<&str>| {
        let forward = Forward {
            transport: Transport::Tcp,
            listen: Listen::Ports {
                address: address.map(|text| text.parse().unwrap()),
                interface: None,
                ports: PortRange::single(8080),
            },
            guest_address: None,
            guest_ports: PortRange::single(80),
            when_listening: false,
        };
        let mut ours = PortTable::default();
        enter_loopback_ports(&mut ours, &forward);
        ours.of(Transport::Tcp, Family::V4).contains(8080)
    };
    assert!(hides(None) && hides(Some("0.0.0.0")) && hides(Some("127.0.0.1")));
    assert!(!hides(Some("192.0.2.5")) && !hides(Some("::")));
}
