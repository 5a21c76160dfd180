//! Engine, link, host and guest under one virtual clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::IpCidr;
use tapway::base::{Instant, Mac};
use tapway::engine::ports::{Event, Readiness};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{Held, Limits, Options, Worker};
use tapway::gate::{AddressPlan, Habits, Plan4, Plan6, PublishPath};

use crate::crew::{Crew, SimWorker, Team};
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
    pub team: Team,
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
            team: Team::NONE,
            spurious_events: false,
        }
    }
}

pub struct World {
    pub now: u64,
    /// The lead of the team, or the only worker.
    pub worker: SimWorker,
    pub crew: Crew,
    /// The queue of that worker.
    pub tap: TapPort,
    pub host: HostPort,
    pub guest: Guest,
    pub setting: Setting,
    to_engine: Lane,
    to_guest: Lane,
    rng: Rng,
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
            publish_path: PublishPath::Tap,
            limits: setting.limits,
            seed: rng.bits(),
        };
        let mut worker = Worker::new(Instant::ZERO, tap.clone(), host.clone(), options.clone());
        let (queue, port) = (tap.clone(), host.clone());
        let crew = Crew::new(setting.team, options, queue, port, &mut worker, setting.seed);
        let addresses = [IpCidr::new(GUEST4.into(), 24), IpCidr::new(GUEST6.into(), 64)];
        let gateways: [IpAddr; 2] = [GATEWAY4.into(), GATEWAY_LINK_LOCAL6.into()];
        let guest =
            Guest::new(setting.seed, GUEST_MAC.0, &addresses, &gateways, usize::from(setting.mtu));
        World {
            now: 0,
            worker,
            crew,
            tap,
            host,
            guest,
            to_engine: Lane::new(setting.faults, Rng::new(rng.bits())),
            to_guest: Lane::new(setting.faults, Rng::new(rng.bits())),
            rng,
            setting,
        }
    }

    /// Everything that happens at this moment, then the clock moves to the next.
    pub fn step(&mut self) {
        self.host.0.borrow_mut().advance(self.now);
        while let Some(frame) = self.to_engine.receive(self.now) {
            let bytes =
                guest_kernel::to_engine(frame.clone(), self.setting.vnet_header, &mut self.rng);
            self.crew.deliver(self.now, &frame, bytes);
        }
        let (spurious, rng) = (self.setting.spurious_events, &mut self.rng);
        self.crew.turn(self.now, &mut self.worker, |events| {
            if spurious {
                disturb(rng, events);
            }
        });
        for (queue, bytes) in self.crew.written() {
            let (vnet_header, mtu) = (self.setting.vnet_header, usize::from(self.setting.mtu));
            for frame in guest_kernel::from_engine(&bytes, vnet_header, mtu) {
                self.crew.learn(self.now, queue, &frame);
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

    fn advance(&mut self) {
        let next = [
            self.crew.next(self.now, &self.worker),
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

    /// How many flows are open, those of all workers together.
    pub fn flow_count(&self) -> usize {
        self.crew.flow_count(&self.worker)
    }

    /// No flow is left, and no worker has anything for another.
    pub fn is_over(&self) -> bool {
        self.flow_count() == 0 && self.crew.is_quiet() && self.crew.held(&self.worker).listed == 0
    }

    /// Nothing is held, and the counters agree with what went over the link.
    pub fn check_end(&self) {
        let held = self.crew.held(&self.worker);
        assert_eq!(Held { timers: 0, ..held }, Held::default());
        self.crew.check_counters(&self.worker);
    }
}

/// Adds events that mean nothing: repeated, of sockets that are gone, of what is not ready.
fn disturb(rng: &mut Rng, events: &mut Vec<Event>) {
    if let Some(&event) = events.last()
        && rng.chance(100)
    {
        events.push(event);
    }
    if rng.chance(100) {
        let token = Token {
            kind: rng.pick(&[Kind::Tcp, Kind::Udp, Kind::Echo, Kind::Tap]),
            generation: rng.range(0, 3) as u32,
            index: rng.range(0, 3) as u32,
        };
        let readiness = Readiness { readable: true, ..Readiness::default() };
        events.push(Event { token, readiness });
    }
}
