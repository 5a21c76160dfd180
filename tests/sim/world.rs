//! Engine, link, host and guest under one virtual clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use smoltcp::wire::IpCidr;
use tapway::base::{Instant, Mac};
use tapway::engine::ports::{Event, Readiness};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{Limits, Options, Worker};
use tapway::gate::{AddressPlan, Habits, Plan4, Plan6};

use crate::guest::Guest;
use crate::guest_kernel;
use crate::host::HostPort;
use crate::link::{Faults, Lane, TapPort};
use crate::rng::Rng;

pub const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);
pub const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);
pub const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 0x100);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 2);
const GATEWAY_LINK_LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

pub fn plan(mtu: u16) -> AddressPlan {
    AddressPlan {
        v4: Some(Plan4 {
            guest: GUEST4,
            prefix: 24,
            gateway: GATEWAY4,
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
        }),
        v6: Some(Plan6 {
            guest: GUEST6,
            prefix: 64,
            gateway: GATEWAY6,
            gateway_link_local: GATEWAY_LINK_LOCAL6,
            dns: Some(Ipv6Addr::new(0xfd74, 0x6170, 0x7761, 0x79, 0, 0, 0, 3)),
        }),
        gateway_mac: GATEWAY_MAC,
        guest_mac: GUEST_MAC,
        mtu,
        host_loopback: vec![],
        search: vec![],
        sharing: None,
        habits: Habits::default(),
    }
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setting {
    pub seed: u64,
    pub vnet_header: bool,
    /// The guest's kernel takes packets beyond 64 KiB.
    pub big_packets: bool,
    pub mtu: u16,
    pub faults: Faults,
    pub limits: Limits,
    /// The engine also hears of readiness that is not there, of sockets that are gone, and of
    /// things twice.
    pub spurious_events: bool,
}

impl Setting {
    /// A link without faults, with offloads.
    pub fn calm(seed: u64) -> Setting {
        Setting {
            seed,
            vnet_header: true,
            big_packets: true,
            mtu: 1500,
            faults: Faults::default(),
            limits: Limits::default(),
            spurious_events: false,
        }
    }
}

pub struct World {
    pub now: u64,
    pub worker: Worker<TapPort, HostPort>,
    pub tap: TapPort,
    pub host: HostPort,
    pub guest: Guest,
    pub setting: Setting,
    to_engine: Lane,
    to_guest: Lane,
    rng: Rng,
    events: Vec<Event>,
}

impl World {
    pub fn new(setting: Setting) -> World {
        let mut rng = Rng::new(setting.seed);
        let tap = TapPort::default();
        let host = HostPort::default();
        let options = Options {
            plan: plan(setting.mtu),
            vnet_header: setting.vnet_header,
            uso: setting.vnet_header,
            big_packets: setting.big_packets,
            limits: setting.limits,
            seed: rng.bits(),
        };
        let worker = Worker::new(Instant::ZERO, tap.clone(), host.clone(), options);
        let addresses = [IpCidr::new(GUEST4.into(), 24), IpCidr::new(GUEST6.into(), 64)];
        let gateways: [IpAddr; 2] = [GATEWAY4.into(), GATEWAY_LINK_LOCAL6.into()];
        let guest =
            Guest::new(setting.seed, GUEST_MAC.0, &addresses, &gateways, usize::from(setting.mtu));
        World {
            now: 0,
            worker,
            tap,
            host,
            guest,
            to_engine: Lane::new(setting.faults, Rng::new(rng.bits())),
            to_guest: Lane::new(setting.faults, Rng::new(rng.bits())),
            rng,
            setting,
            events: vec![],
        }
    }

    /// Everything that happens at this moment, then the clock moves to the next.
    pub fn step(&mut self) {
        self.events.extend(self.host.0.borrow_mut().advance(self.now));
        while let Some(frame) = self.to_engine.receive(self.now) {
            let bytes = guest_kernel::to_engine(frame, self.setting.vnet_header, &mut self.rng);
            self.tap.0.borrow_mut().inbound.push_back(bytes);
        }
        if !self.tap.0.borrow().inbound.is_empty() {
            let readiness = Readiness { readable: true, ..Readiness::default() };
            self.events.push(Event { token: Token::only(Kind::Tap), readiness });
        }
        let mut events = std::mem::take(&mut self.events);
        if self.setting.spurious_events {
            self.disturb(&mut events);
        }
        self.worker.turn(Instant::from_nanos(self.now), &events).unwrap();
        self.worker.before_wait();
        let written = std::mem::take(&mut self.tap.0.borrow_mut().outbound);
        for bytes in written {
            let (vnet_header, mtu) = (self.setting.vnet_header, usize::from(self.setting.mtu));
            for frame in guest_kernel::from_engine(&bytes, vnet_header, mtu) {
                self.to_guest.send(self.now, frame);
            }
        }
        while let Some(frame) = self.to_guest.receive(self.now) {
            self.guest.receive(frame);
        }
        for frame in self.guest.run(self.now) {
            self.to_engine.send(self.now, frame);
        }
        self.advance();
    }

    fn disturb(&mut self, events: &mut Vec<Event>) {
        if let Some(&event) = events.last()
            && self.rng.chance(100)
        {
            events.push(event);
        }
        if self.rng.chance(100) {
            let token = Token {
                kind: self.rng.pick(&[Kind::Tcp, Kind::Udp, Kind::Echo, Kind::Tap]),
                generation: self.rng.range(0, 3) as u32,
                index: self.rng.range(0, 3) as u32,
            };
            let readiness = Readiness { readable: true, ..Readiness::default() };
            events.push(Event { token, readiness });
        }
    }

    fn advance(&mut self) {
        let timeout = self.worker.timeout(Instant::from_nanos(self.now));
        // The engine's edge rounds up to milliseconds; the clock here only has to move.
        let timer = timeout.map(|timeout| self.now + (timeout.as_nanos() as u64).max(1000));
        let unread = (!self.tap.0.borrow().inbound.is_empty()).then_some(self.now + 1000);
        let next = [
            timer,
            unread,
            self.host.0.borrow().next(),
            self.to_engine.next(),
            self.to_guest.next(),
            self.guest.next(self.now),
        ];
        if let Some(next) = next.into_iter().flatten().min() {
            self.now = next.max(self.now + 1000);
        } else {
            self.now += 1_000_000_000;
        }
    }

    /// Runs until `done`, for at most `limit` nanoseconds; whether it got there.
    pub fn run_until(&mut self, limit: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now > end {
                return false;
            }
            self.step();
        }
        true
    }

    /// The engine's counters must agree with what went over the link.
    pub fn check_counters(&self) {
        let counters = self.worker.counters();
        let tap = Rc::clone(&self.tap.0);
        assert_eq!(counters.frames_from_guest, tap.borrow().read, "frames from the guest");
        assert_eq!(counters.frames_to_guest, tap.borrow().written, "frames to the guest");
    }
}
