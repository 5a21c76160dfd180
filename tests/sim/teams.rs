//! Teams of workers: flows that change hands at any moment, workers that come and go, and a guest
//! that would like to know how much they can be made to do for each other.

use std::cell::Cell;

use tapway::engine::Published;
use tapway::gate::forward::{ForwardId, Transport};

use crate::crew::Team;
use crate::guest::Application;
use crate::peer::Script;
use crate::rng::Rng;
use crate::streams::{
    complete, finish, for_seeds, random_application, random_script, random_setting,
};
use crate::world::World;

#[test]
fn flows_that_change_hands_at_any_moment_are_complete_and_in_order() {
    let adoptions = Cell::new(0);
    for_seeds(50, |seed| {
        let mut rng = Rng::new(seed ^ 0x7ea4);
        let mut setting = random_setting(seed, &mut rng);
        setting.faults.loss = setting.faults.loss.min(50);
        setting.team = Team {
            unrest: rng.pick(&[300, 900]),
            forgets: rng.pick(&[0, 20, 40]),
            ..Team::random(2 + (seed % 3) as usize, seed)
        };
        let mut world = World::new(setting);
        let (socket, listener) = world.host.listener();
        let rule = |port| Published {
            forward: ForwardId(1),
            transport: Transport::Tcp,
            guest_address: None,
            guest_port: port,
        };
        world.worker.publish_stream(rule(108), socket).unwrap();
        for port in 100..109 {
            let script = Script {
                sends: rng.range(0, 20_000),
                waits_for_end: rng.chance(300),
                ..random_script(&mut rng)
            };
            let address = rng.pick(&["192.0.2.7", "2001:db8::7"]);
            let target = format!("{}:{port}", address.replace("2001:db8::7", "[2001:db8::7]"));
            let application = Application {
                sends: rng.range(1, 20_000),
                waits_for_end: !script.waits_for_end && rng.chance(300),
                ..random_application(&mut rng, target.parse().unwrap())
            };
            if port == 108 {
                world.guest.listen(application);
                world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", port, script);
            } else {
                world.host.0.borrow_mut().serve(port, script);
                world.guest.connect(application);
            }
        }
        complete(&mut world);
        finish(&mut world);
        adoptions.set(adoptions.get() + world.host.0.borrow().adoptions);
    });
    assert!(adoptions.get() > 400, "flows changed hands {} times", adoptions.get());
}
