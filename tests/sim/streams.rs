//! Byte streams through the engine: complete, in order, ended as they should be, in bounded time,
//! whatever the link does.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nix::errno::Errno;
use tapway::base::DropReason;
use tapway::engine::Limits;

use crate::guest::Application;
use crate::host::{End, Script};
use crate::link::Faults;
use crate::rng::Rng;
use crate::world::{Setting, World};

const SECOND: u64 = 1_000_000_000;

/// Runs `scenario` for many seeds; a failure names its seed. `TAPWAY_SIM_SEED` runs one alone.
fn for_seeds(count: u64, scenario: impl Fn(u64)) {
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
fn random_setting(seed: u64, rng: &mut Rng) -> Setting {
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
        mtu: rng.pick(&[1280, 1500, 1500, 9000]),
        faults,
        limits,
    }
}

/// Buffers and reading habits of the guest, chosen by the seed: tiny buffers and late readers make
/// zero windows.
fn random_application(rng: &mut Rng, target: SocketAddr) -> Application {
    Application {
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

fn random_script(rng: &mut Rng) -> Script {
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
fn finish(world: &mut World) {
    let over = world.run_until(400 * SECOND, |world| world.worker.flow_count() == 0);
    assert!(over, "{} flows are left", world.worker.flow_count());
    assert_eq!(world.host.0.borrow().open_sockets(), 0, "host sockets are left open");
    world.check_counters();
}

#[test]
fn streams_are_complete_and_in_order_both_ways() {
    for_seeds(150, |seed| {
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
        world.host.0.borrow_mut().serve(80, script.clone());
        world.guest.connect(application.clone());
        let done = world.run_until(600 * SECOND, |world| {
            let guest = &world.guest.running[0];
            guest.saw_eof && guest.is_over() && world.host.0.borrow().is_quiet()
        });
        let seen = world.host.0.borrow().seen(80);
        let guest = &world.guest.running[0];
        assert!(done, "not over: {guest:?}, peer {seen:?}, script {script:?}");
        assert_eq!((guest.received, guest.wrong_at), (script.sends, None));
        assert_eq!((seen[0].received, seen[0].wrong_at), (application.sends, None));
        assert_eq!(seen[0].end, Some(End::Eof));
        finish(&mut world);
    });
}
