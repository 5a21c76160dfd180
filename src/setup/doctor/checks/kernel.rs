//! The kernel and the features of it that tapway uses.

use nix::errno::Errno;

use super::super::facts::{Facts, kernel_version};
use super::super::report::{Check, Mend};
use super::NO_GUEST;

/// The oldest long-term kernel that its makers still mend in 2026.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn version(facts: &Facts) -> Check {
    let release = &facts.kernel.release;
    match kernel_version(release) {
        Some(version) if version >= OLDEST => Check::ok("kernel", format!("Linux {release}")),
        _ => Check::degraded(
            "kernel",
            format!("Linux {release}, older than {}.{}", OLDEST.0, OLDEST.1),
            "the assurance that all system calls are there which tapway relies on",
            Mend::once(format!("boot Linux {}.{} or newer", OLDEST.0, OLDEST.1)),
        ),
    }
}

pub(super) fn process_descriptors(facts: &Facts) -> Check {
    const NAME: &str = "process-descriptors";
    match facts.kernel.pidfd {
        Ok(()) => Check::ok(NAME, "pidfd_open works"),
        Err(errno) => {
            Check::missing(NAME, refused("pidfd_open", errno), NO_GUEST, newer(errno, "5.3"))
        }
    }
}

pub(super) fn landlock(facts: &Facts) -> Check {
    const NAME: &str = "landlock";
    const LOST: &str = "one layer of the sandbox around the process that reads the guest's frames";
    match facts.kernel.landlock {
        Ok(version) => Check::ok(NAME, format!("version {version} of its interface")),
        Err(Errno::EOPNOTSUPP) => Check::degraded(
            NAME,
            "in the kernel, but not switched on at boot",
            LOST,
            Mend::once("add landlock in front of the list in the kernel's boot parameter lsm="),
        ),
        Err(errno) => {
            let seen = refused("landlock_create_ruleset", errno);
            Check::degraded(NAME, seen, LOST, newer(errno, "5.13"))
        }
    }
}

pub(super) fn peek_offset(facts: &Facts) -> Check {
    const NAME: &str = "peek-offset";
    match facts.kernel.peek_offset {
        Ok(()) => Check::ok(NAME, "SO_PEEK_OFF works on TCP sockets"),
        Err(errno) => Check::degraded(
            NAME,
            refused("SO_PEEK_OFF on a TCP socket", errno),
            "memory: data that the guest has not acknowledged cannot stay in the host's socket",
            Mend::once("boot Linux 6.9 or newer"),
        ),
    }
}

pub(super) fn listening_sockets(facts: &Facts) -> Check {
    const NAME: &str = "listening-sockets";
    const LOST: &str = "--publish-when-listening, --publish auto and --expose-host auto; and \
                        `tapway port list` does not know where nothing listens";
    let modules = || {
        Mend::kept(
            "sudo modprobe -a tcp_diag udp_diag",
            "printf 'tcp_diag\\nudp_diag\\n' | sudo tee /etc/modules-load.d/60-tapway.conf",
        )
    };
    match facts.kernel.sock_diag {
        Ok(()) => Check::ok(NAME, "the kernel tells what listens (sock_diag)"),
        Err(Errno::ENOENT) => {
            let seen = "the kernel does not tell what listens: no tcp_diag or no udp_diag";
            Check::degraded(NAME, seen, LOST, modules())
        }
        Err(errno @ Errno::EPROTONOSUPPORT) => {
            let seen = format!("the kernel does not tell what listens: no sock_diag ({errno})");
            Check::degraded(NAME, seen, LOST, Mend::once("boot a kernel with CONFIG_INET_DIAG"))
        }
        Err(errno) => {
            let seen = refused("sock_diag", errno);
            Check::degraded(NAME, seen, LOST, super::namespaces::outside_a_container())
        }
    }
}

fn refused(what: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOSYS | Errno::EOPNOTSUPP => format!("this kernel does not have {what}"),
        _ => format!("{what} is refused ({errno})"),
    }
}

/// An absent system call wants a newer kernel; a refused one a looser filter.
fn newer(errno: Errno, version: &str) -> Mend {
    if errno == Errno::EPERM {
        super::namespaces::outside_a_container()
    } else {
        Mend::once(format!("boot Linux {version} or newer"))
    }
}
