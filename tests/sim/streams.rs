//! Byte streams through the engine: complete, in order, ended as they should be, in bounded time,
//! whatever the link does.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nix::errno::Errno;
use tapway::base::DropReason;
use tapway::engine::Limits;

use crate::bench::{Bench, small_limits};
use crate::crew::Team;
use crate::frames::{Ip, SYN, TCP, Tcp};
use crate::guest::{Application, Running};
use crate::link::Faults;
use crate::peer::{End, Script};
use crate::rng::Rng;
use crate::world::{Setting, World};

const SECOND: u64 = 1_000_000_000;

/// Runs `scenario` for many seeds; a failure names its seed. `TAPWAY_SIM_SEED` runs one alone.
pub fn for_seeds(count: u64, scenario: impl Fn(u64)) {
    let only = std::env::var("TAPWAY_SIM_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = only.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed with TAPWAY_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

fn server(rng: &mut Rng, port: u16) -> SocketAddr {
    let address = rng.pick(&["192.0.2.7", "2001:db8::7"]);
    SocketAddr::new(address.parse().unwrap(), port)
}

/// A world whose link and sizes the seed chooses.
pub fn random_setting(seed: u64, rng: &mut Rng) -> Setting {
    let bad = rng.pick(&[0, 0, 10, 50, 200]);
    let faults = Faults {
        loss: bad,
        duplication: rng.pick(&[0, 0, 20, 100]),
        reordering: rng.pick(&[0, 0, 20, 200]),
        corruption: 0,
    };
    let limits = Limits {
        receive_window: rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
        in_flight: rng.pick(&[8 << 10, 64 << 10, 2 << 20]),
        slabs: rng.pick(&[2, 16, 2048]),
        ..Limits::default()
    };
    Setting {
        seed,
        vnet_header: rng.chance(500),
        big_packets: rng.chance(500),
        mtu: rng.pick(&[1280, 1500, 1500, 9000]),
        faults,
        limits,
        team: Team::random(1 + (seed % 4) as usize, seed),
        spurious_events: rng.chance(300),
    }
}

/// Buffers and reading habits of the guest, chosen by the seed: tiny buffers and late readers make
/// zero windows.
pub fn random_application(rng: &mut Rng, target: SocketAddr) -> Application {
    Application {
        behind: rng.chance(200),
        buffers: (
            rng.pick(&[1000, 3000, 16_000, 65_535, 200_000]),
            rng.pick(&[1000, 3000, 16_000, 65_535]),
        ),
        chunk: rng.pick(&[700, 5000, usize::MAX]),
        reads_from: rng.pick(&[0, 0, 50_000_000, 3 * SECOND]),
        ack_delay: rng.pick(&[None, Some(10), Some(40)]),
        nagle: rng.chance(500),
        ..Application::to(target)
    }
}

pub fn random_script(rng: &mut Rng) -> Script {
    Script {
        connect_delay: rng.range(0, 200) * 1_000_000,
        chunk: rng.pick(&[500, 4000, 65_536]),
        pace: rng.pick(&[20_000, 200_000, 2_000_000]),
        reads_from: rng.pick(&[0, 0, 30_000_000, 2 * SECOND]),
        buffer: rng.pick(&[2000, 16_000, 65_536, 400_000]),
        ..Script::default()
    }
}

/// Everything is over: sockets closed, flows forgotten, nothing held.
pub fn finish(world: &mut World) {
    let over = world.run_until(400 * SECOND, World::is_over);
    let held = world.crew.held(&world.worker);
    assert!(over, "{} flows are left: {held:?}", world.flow_count());
    assert_eq!(world.host.0.borrow().open_sockets(), 0, "host sockets are left open");
    world.check_end();
}

/// Runs until the guest's connections and the peers' are all over, and checks that every byte has
/// come through both ways.
pub fn complete(world: &mut World) {
    let done = world.run_until(900 * SECOND, |world| {
        let guest_done = |guest: &Running| guest.saw_eof && guest.is_over();
        world.guest.running.iter().all(guest_done) && world.host.0.borrow().is_quiet()
    });
    let host = world.host.0.borrow();
    for guest in &world.guest.running {
        let port = guest.application.target.port();
        let [seen] = &host.seen(port)[..] else { panic!("not one connection to port {port}") };
        let script = host.script(port);
        assert!(done, "not over:\n{guest:?}\npeer {seen:?}\n{script:?}");
        let expected = if script.echo { guest.application.sends } else { script.sends };
        assert_eq!((guest.received, guest.wrong_at), (expected, None), "to the guest");
        assert_eq!((seen.received, seen.wrong_at), (guest.application.sends, None), "to the host");
        assert_eq!(seen.end, Some(End::Eof));
    }
}

#[test]
fn streams_are_complete_and_in_order_both_ways() {
    for_seeds(300, |seed| {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut world = World::new(random_setting(seed, &mut rng));
        let script = Script {
            sends: rng.range(0, 30_000),
            waits_for_end: rng.chance(300),
            ..random_script(&mut rng)
        };
        let target = server(&mut rng, 80);
        let application = Application {
            sends: rng.range(1, 30_000),
            waits_for_end: !script.waits_for_end && rng.chance(300),
            ..random_application(&mut rng, target)
        };
        world.host.0.borrow_mut().serve(80, script);
        world.guest.connect(application);
        complete(&mut world);
        finish(&mut world);
    });
}

#[test]
fn an_echo_through_small_buffers_comes_back_whole() {
    for_seeds(100, |seed| {
        let mut rng = Rng::new(seed ^ 0xec40);
        let mut world = World::new(random_setting(seed, &mut rng));
        let script = Script { echo: true, buffer: 3000, ..random_script(&mut rng) };
        world.host.0.borrow_mut().serve(7, script);
        let target = server(&mut rng, 7);
        let sends = rng.range(1, 20_000);
        world.guest.connect(Application { sends, ..random_application(&mut rng, target) });
        complete(&mut world);
        finish(&mut world);
    });
}

#[test]
fn connections_that_share_scarce_memory_all_come_through() {
    for_seeds(30, |seed| {
        let mut rng = Rng::new(seed ^ 0x7ea);
        let mut setting = random_setting(seed, &mut rng);
        setting.limits = Limits {
            receive_window: 16 << 10,
            backlog_bytes: 40 << 10,
            tight_window: 2 << 10,
            slabs: 3,
            ..setting.limits
        };
        let mut world = World::new(setting);
        for port in 100..108 {
            let script = Script { sends: rng.range(0, 20_000), ..random_script(&mut rng) };
            world.host.0.borrow_mut().serve(port, script);
            let target = server(&mut rng, port);
            let sends = rng.range(1, 20_000);
            world.guest.connect(Application { sends, ..random_application(&mut rng, target) });
        }
        complete(&mut world);
        finish(&mut world);
    });
}

#[test]
fn damaged_frames_are_noticed_by_their_checksums() {
    let noticed = Cell::new(0);
    for_seeds(60, |seed| {
        let mut rng = Rng::new(seed ^ 0xbad);
        let mut setting = random_setting(seed, &mut rng);
        setting.faults = Faults { corruption: 100, ..Faults::default() };
        let mut world = World::new(setting);
        world.host.0.borrow_mut().serve(80, Script { sends: 20_000, ..random_script(&mut rng) });
        // IPv6 has no header checksum: a damaged address there may pass for another one.
        let target = "192.0.2.7:80".parse().unwrap();
        world.guest.connect(Application { sends: 20_000, ..random_application(&mut rng, target) });
        complete(&mut world);
        for worker in world.crew.workers(&world.worker) {
            let drops = &worker.counters().drops;
            let found =
                drops.get(DropReason::BadIpChecksum) + drops.get(DropReason::BadTransportChecksum);
            noticed.set(noticed.get() + found);
        }
        finish(&mut world);
    });
    assert!(noticed.get() > 60, "{} damaged frames", noticed.get());
}

#[test]
fn bulk_to_the_guest_goes_in_large_frames_with_room_for_the_rest() {
    for_seeds(12, |seed| {
        let faults = Faults { loss: seed / 4 * 20, ..Faults::default() };
        let setting = Setting {
            seed,
            vnet_header: true,
            big_packets: seed % 8 < 4,
            mtu: 1500,
            faults,
            limits: Limits::default(),
            team: Team::NONE,
            spurious_events: false,
        };
        let mut world = World::new(setting.clone());
        world.tap.0.borrow_mut().no_large_pages = seed % 4 == 1;
        let whole = 1 << 20;
        let script = Script { sends: 600_000, chunk: whole, buffer: whole, ..Script::default() };
        world.host.0.borrow_mut().serve(80, script);
        let target = if seed % 2 == 0 { "192.0.2.7:80" } else { "[2001:db8::7]:80" };
        let behind = seed % 4 == 3;
        let buffers = (400_000, 65_535);
        let application =
            Application { buffers, behind, ..Application::to(target.parse().unwrap()) };
        world.guest.connect(application);
        complete(&mut world);
        let written = world.worker.counters().frames_to_guest;
        assert!(written < 200, "{written} frames for what 14 of 64 KiB could carry");
        let longest = world.tap.0.borrow().longest;
        assert_eq!(longest > 66_000, setting.big_packets && !behind, "a frame of {longest} bytes");
        finish(&mut world);
    });
}

#[test]
fn a_refused_connection_is_reset_and_leaves_nothing() {
    for_seeds(60, |seed| {
        let mut rng = Rng::new(seed ^ 0x4ef);
        let mut world = World::new(random_setting(seed, &mut rng));
        let connect_error = Some((Errno::ECONNREFUSED, rng.chance(500)));
        world.host.0.borrow_mut().serve(81, Script { connect_error, ..random_script(&mut rng) });
        let target = server(&mut rng, 81);
        world.guest.connect(random_application(&mut rng, target));
        let refused = world.run_until(300 * SECOND, |world| world.guest.running[0].was_refused());
        assert!(refused, "{:?}", world.guest.running[0]);
        finish(&mut world);
    });
}

#[test]
fn an_unreachable_target_is_told_by_icmp_and_leaves_nothing() {
    for_seeds(20, |seed| {
        let mut rng = Rng::new(seed ^ 0x9a);
        let mut world =
            World::new(Setting { faults: Faults::default(), ..random_setting(seed, &mut rng) });
        let connect_error = Some((Errno::EHOSTUNREACH, rng.chance(500)));
        world.host.0.borrow_mut().serve(82, Script { connect_error, ..random_script(&mut rng) });
        let target = server(&mut rng, 82);
        world.guest.connect(random_application(&mut rng, target));
        world.run_until(3 * SECOND, |_| false);
        assert!(world.guest.unreachables > 0, "no ICMP error reached the guest");
        assert!(world.host.0.borrow().connects > 0);
        world.guest.abort_all();
        finish(&mut world);
    });
}

#[test]
fn what_a_router_says_of_a_syn_reaches_the_guest_in_its_own_words() {
    // Time exceeded, and refused by a firewall's port unreachable: no reset, which nobody has sent.
    let cases = [(Errno::EHOSTUNREACH, (11, 0), (3, 0)), (Errno::ECONNREFUSED, (3, 3), (1, 4))];
    for (errno, v4, v6) in cases {
        for (ip, router, at, (kind, code)) in
            [(Ip::v4(TCP), "198.51.100.1", 34, v4), (Ip::v6(TCP), "2001:db8:1::1", 54, v6)]
        {
            let mut bench = Bench::new(false, small_limits());
            let router: IpAddr = router.parse().unwrap();
            let script = Script {
                connect_error: Some((errno, false)),
                router: Some((router, kind, code)),
                ..Script::default()
            };
            bench.host.0.borrow_mut().serve(80, script);
            let syn = Tcp::new(SYN).frame(ip);
            assert!(bench.feed(&syn).is_empty());
            let told = bench.pass(SECOND);
            assert_eq!(told.len(), 1, "{told:02x?}");
            let frame = &told[0];
            let source = match frame[12] {
                8 => IpAddr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap()),
                _ => IpAddr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap()),
            };
            assert_eq!((source, frame[at], frame[at + 1]), (router, kind, code));
            // Ports and sequence number of the guest's SYN behind the quoted IP header.
            let quoted = at + 8 + (at - 14);
            assert_eq!(frame[quoted..quoted + 8], syn[at..at + 8]);
            assert_eq!(bench.worker.flow_count(), 0);
        }
    }
}

#[test]
fn a_reset_by_the_peer_reaches_the_guest() {
    for_seeds(100, |seed| {
        let mut rng = Rng::new(seed ^ 0x4e5);
        let mut world = World::new(random_setting(seed, &mut rng));
        let script = Script {
            sends: 10_000,
            resets_after: Some(rng.range(0, 8_000)),
            ..random_script(&mut rng)
        };
        world.host.0.borrow_mut().serve(83, script);
        let target = server(&mut rng, 83);
        let sends = 10_000;
        let patient =
            Application { sends, waits_for_end: true, ..random_application(&mut rng, target) };
        world.guest.connect(patient);
        let reset = world.run_until(900 * SECOND, |world| {
            let guest = &world.guest.running[0];
            guest.is_over() && world.host.0.borrow().is_quiet()
        });
        let guest = &world.guest.running[0];
        let seen = world.host.0.borrow().seen(83);
        assert!(reset, "{guest:?} {seen:?}");
        assert_eq!((guest.wrong_at, seen[0].wrong_at), (None, None));
        finish(&mut world);
    });
}

#[test]
fn a_reset_by_the_guest_reaches_the_peer() {
    for_seeds(100, |seed| {
        let mut rng = Rng::new(seed ^ 0xabc);
        let mut world = World::new(random_setting(seed, &mut rng));
        let script = Script { sends: 20_000, waits_for_end: true, ..random_script(&mut rng) };
        world.host.0.borrow_mut().serve(84, script);
        let target = server(&mut rng, 84);
        let application = random_application(&mut rng, target);
        world.guest.connect(Application {
            sends: 5_000,
            waits_for_end: true,
            aborts_after: Some(rng.range(0, 15_000)),
            // Something is still to come, so that a reset that is lost is asked for again.
            buffers: (application.buffers.0.min(3000), application.buffers.1),
            ..application
        });
        let over = world.run_until(900 * SECOND, |world| {
            world.guest.running[0].aborted && world.host.0.borrow().is_quiet()
        });
        let guest = &world.guest.running[0];
        let seen = world.host.0.borrow().seen(84);
        assert!(over, "{guest:?} {seen:?}");
        assert!(seen.iter().all(|seen| seen.end == Some(End::Reset)), "{seen:?}");
        finish(&mut world);
    });
}
