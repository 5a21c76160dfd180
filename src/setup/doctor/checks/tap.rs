//! `/dev/net/tun`, and the TAP with its offloads.

use nix::errno::Errno;

use super::super::facts::{Facts, kernel_version};
use super::super::report::{Check, Mend};
use super::NO_GUEST;
use super::namespaces::{outside_a_container, unfinished};
use crate::sys::probe::{Outcome, Step};

pub(super) fn device(facts: &Facts) -> Check {
    const NAME: &str = "tun-device";
    let missing = |seen: String, mend| Check::missing(NAME, seen, NO_GUEST, mend);
    let make_node =
        || Mend::once("sudo mkdir -p /dev/net && sudo mknod -m 0666 /dev/net/tun c 10 200");
    let load =
        || Mend::kept("sudo modprobe tun", "echo tun | sudo tee /etc/modules-load.d/tapway.conf");
    match facts.trial.outcome(Step::OpenTun) {
        Outcome::Passed => {}
        Outcome::Failed(Errno::ENOENT | Errno::ENOTDIR) if facts.tun_loaded => {
            return missing("/dev/net/tun does not exist".to_owned(), make_node());
        }
        Outcome::Failed(Errno::ENOENT | Errno::ENOTDIR) => {
            let seen = "/dev/net/tun does not exist, and the tun module is not loaded";
            return missing(seen.to_owned(), load());
        }
        Outcome::Failed(Errno::ENODEV | Errno::ENXIO) => {
            return missing("/dev/net/tun has no driver behind it".to_owned(), load());
        }
        Outcome::Failed(Errno::EACCES) => {
            return missing(
                "/dev/net/tun may not be opened for reading and writing".to_owned(),
                Mend::kept(
                    "sudo chmod 0666 /dev/net/tun",
                    "echo 'KERNEL==\"tun\", MODE=\"0666\"' | \
                     sudo tee /etc/udev/rules.d/60-tapway.rules",
                ),
            );
        }
        Outcome::Failed(Errno::EPERM) => {
            return missing(
                "/dev/net/tun is there, but a device control group forbids to open it".to_owned(),
                Mend::once("start the container with --device /dev/net/tun"),
            );
        }
        Outcome::Failed(errno) => {
            return missing(format!("/dev/net/tun does not open ({errno})"), load());
        }
        Outcome::NotTried if facts.trial.stopped() => {
            return Check::ok(NAME, "not tried: the attempt ended before, see the namespaces");
        }
        other => return missing(unfinished(other), outside_a_container()),
    }
    match facts.trial.outcome(Step::TunFeatures) {
        Outcome::Passed => Check::ok(NAME, "/dev/net/tun opens"),
        Outcome::Failed(_) => missing(
            "what is at /dev/net/tun is not the TUN device".to_owned(),
            Mend::once(
                "sudo rm /dev/net/tun && sudo mknod -m 0666 /dev/net/tun c 10 200 \
                 # a container: start it with --device /dev/net/tun",
            ),
        ),
        other => missing(unfinished(other), outside_a_container()),
    }
}

pub(super) fn interface(facts: &Facts) -> Check {
    const NAME: &str = "tap";
    let missing = |seen: String, mend| Check::missing(NAME, seen, NO_GUEST, mend);
    let outcome = |step| facts.trial.outcome(step);
    let made = match outcome(Step::MultiQueueTap) {
        Outcome::Failed(_) => outcome(Step::SingleQueueTap),
        other => other,
    };
    match made {
        Outcome::Passed => {}
        Outcome::NotTried => {
            return Check::ok(NAME, "not tried: the device and the namespaces come first");
        }
        Outcome::Failed(errno) => {
            return missing(
                format!("no TAP with a virtio-net header in a new namespace ({errno})"),
                newer_kernel("3.8"),
            );
        }
        other => return missing(unfinished(other), outside_a_container()),
    }
    let tcp = match outcome(Step::UdpOffloads) {
        Outcome::Failed(_) => outcome(Step::TcpOffloads),
        other => other,
    };
    match (outcome(Step::HeaderLength), tcp) {
        (Outcome::Passed, Outcome::Passed) => {
            Check::ok(NAME, "tried, works: virtio-net header, checksum and TCP offloads")
        }
        (Outcome::Passed | Outcome::Failed(_), Outcome::Failed(_) | Outcome::NotTried) => {
            Check::degraded(
                NAME,
                "made, but its checksum and TCP offloads are refused",
                "speed: each packet of the guest costs a system call and a checksum",
                newer_kernel("3.8"),
            )
        }
        (Outcome::Passed, other) | (other, _) => missing(unfinished(other), outside_a_container()),
    }
}

pub(super) fn udp_offloads(facts: &Facts) -> Check {
    const NAME: &str = "udp-offloads";
    // TUN_F_USO4 and TUN_F_USO6 came with Linux 6.2.
    let (works, how) = tried_or_since(facts, Step::UdpOffloads, (6, 2));
    if works {
        Check::ok(NAME, format!("UDP segmentation on the TAP (USO), {how}"))
    } else {
        Check::degraded(
            NAME,
            format!("no UDP segmentation on the TAP (USO), {how}"),
            "speed of QUIC and other bulk UDP: each datagram crosses the TAP alone",
            newer_kernel("6.2"),
        )
    }
}

pub(super) fn queues(facts: &Facts) -> Check {
    const NAME: &str = "tap-queues";
    // IFF_MULTI_QUEUE came with Linux 3.8.
    let (works, how) = tried_or_since(facts, Step::MultiQueueTap, (3, 8));
    if works {
        Check::ok(NAME, format!("several queues on one TAP, {how}"))
    } else {
        Check::degraded(
            NAME,
            format!("one queue on a TAP, {how}"),
            "more than one worker thread for a guest (--threads)",
            newer_kernel("3.8"),
        )
    }
}

/// Whether a feature is there: as tried, or where an earlier step stood in the way by the kernel's
/// version.
fn tried_or_since(facts: &Facts, step: Step, since: (u32, u32)) -> (bool, &'static str) {
    match facts.trial.outcome(step) {
        Outcome::Passed => (true, "tried"),
        Outcome::Failed(_) => (false, "tried"),
        Outcome::Killed(_) | Outcome::Hung | Outcome::NotTried => (
            kernel_version(&facts.kernel.release).is_some_and(|version| version >= since),
            "by the kernel's version, not tried",
        ),
    }
}

fn newer_kernel(version: &str) -> Mend {
    Mend::once(format!("boot Linux {version} or newer"))
}
