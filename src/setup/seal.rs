//! The end of privilege: what the process gives up once TAP, files and sockets exist.
//!
//! The guest is hostile, so the process that parses its frames keeps nothing that a bug could lend
//! to it: no capability in any set, no way to gain one by executing a file, no memory that the
//! user's other processes can read. The filesystem and the system calls follow in a later stage.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Keeps, SetupError};

/// Gives up every privilege but what it `keeps` for good. Called in the parent, after the fork and
/// after `newuidmap`, and never in the child, whose command is to have the powers of its namespace.
pub fn seal(keeps: Keeps) -> Result<(), SetupError> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| SetupError::Host { what, source }
    };
    prctl::set_no_new_privs()
        .map_err(io::Error::from)
        .map_err(fail("forbid new privileges (no_new_privs)"))?;
    // The bounding set can be emptied by the privileged only; without new privileges it decides
    // nothing. First, because emptying it takes a capability.
    let wanted: CapsHashSet = match keeps {
        Keeps::Nothing => CapsHashSet::new(),
        Keeps::LowPorts => [Capability::CAP_NET_BIND_SERVICE].into(),
    };
    let bounding = caps::read(None, CapSet::Bounding).unwrap_or_default();
    for capability in bounding.difference(&wanted) {
        if let Err(e) = caps::drop(None, CapSet::Bounding, *capability) {
            tracing::debug!("the bounding set stays: {e}");
            break;
        }
    }
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let kept: CapsHashSet = permitted.intersection(&wanted).copied().collect();
    let none = CapsHashSet::new();
    // Permitted last: it bounds the others.
    for (set, kept) in [
        (CapSet::Ambient, &none),
        (CapSet::Inheritable, &kept),
        (CapSet::Effective, &kept),
        (CapSet::Permitted, &kept),
    ] {
        caps::set(None, set, kept)
            .map_err(|e| io::Error::other(e.to_string()))
            .map_err(fail("drop the capabilities"))?;
    }
    prctl::set_dumpable(false).map_err(io::Error::from).map_err(fail("make the process undumpable"))
}

/// Raises the soft limit of open descriptors to the hard one: each flow is a socket. Called after
/// the fork, so that the command keeps the limit it was given.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::debug!("the limit of open descriptors stays as it is: {e}");
    }
}
