//! The TAP: the guest's interface and our queues on it.
//!
//! Opened in the network namespace of the caller. The features of design decision D1 are asked for
//! and given up one by one where the kernel, or an interface that somebody else made beforehand,
//! does not have them:
//!
//! | asked for | given up when | what is lost |
//! |---|---|---|
//! | `IFF_MULTI_QUEUE` | an existing interface was made without | one worker only |
//! | `IFF_VNET_HDR` | the kernel says `EINVAL` | all offloads: one frame is one packet of MTU size |
//! | `TUN_F_USO4`, `TUN_F_USO6` | kernels before 6.2 | UDP segmentation |
//! | `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6` | never seen | as without the header |
//!
//! Packets beyond 64 KiB towards the guest ("BIG TCP") need nothing asked for: the kernel tells
//! that it knows them (since 6.3) by an attribute of the interface.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::link::{LinkOptions, LinkSetup};
use super::netlink::Netlink;
use crate::base::Mac;
use crate::sys::tun;

/// Where the kernel hands out TUN/TAP queues.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Length in bytes of `struct virtio_net_hdr_v1`, before each frame when `vnet_hdr` is on.
pub const VNET_HEADER_LEN: usize = 12;

/// The most queues that a TAP can have (the kernel's `MAX_TAP_QUEUES`).
pub const MAX_QUEUES: usize = 256;

/// What the queues of a TAP can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapFeatures {
    /// A virtio-net header of [`VNET_HEADER_LEN`] bytes stands before each frame.
    pub vnet_hdr: bool,
    /// Frames from the guest may carry partial checksums and TCP segments of up to 64 KiB.
    pub tso: bool,
    /// Frames from the guest may carry UDP datagrams to be segmented.
    pub uso: bool,
    /// Frames to the guest may carry TCP packets beyond 64 KiB.
    pub big_packets: bool,
    /// The TAP has one queue for each worker.
    pub multi_queue: bool,
}

/// An interface name that the kernel accepts (`dev_valid_name`), free of `%`, which it would
/// expand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfName(String);

/// Text that cannot be the name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an interface name has 1 to 15 characters, no blank and none of / : %, and is not . or ..")]
pub struct ParseIfNameError;

impl FromStr for IfName {
    type Err = ParseIfNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |c: char| !c.is_whitespace() && !c.is_control() && !"/:%".contains(c);
        let fits = (1..libc::IFNAMSIZ).contains(&text.len());
        if fits && text != "." && text != ".." && text.chars().all(good) {
            Ok(IfName(text.to_owned()))
        } else {
            Err(ParseIfNameError)
        }
    }
}

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    /// One descriptor for each queue: non-blocking, close-on-exec. None if there is no TAP.
    pub queues: Vec<OwnedFd>,
    /// What they can do.
    pub features: TapFeatures,
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// [`TUN_DEVICE`] is missing, forbidden, or without a driver.
    #[error("open {TUN_DEVICE}")]
    Device(#[source] io::Error),
    /// Another process holds the interface.
    #[error("the interface {0} is already in use there")]
    InUse(IfName),
    /// There is an interface of that name which is something else.
    #[error("there is an interface {0} already, and it is not a TAP")]
    NotATap(IfName),
    /// The kernel refused.
    #[error("make the TAP {name}")]
    Create {
        /// The name asked for.
        name: IfName,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Tap {
    /// The interface that `link` asks for, made or found in the current network namespace; without
    /// queues if it is none.
    pub(crate) fn of(link: &LinkOptions, netlink: &mut Netlink) -> Result<Tap, TapError> {
        if link.setup == LinkSetup::Absent {
            return Ok(Tap { queues: Vec::new(), features: TapFeatures::default() });
        }
        Tap::open(&link.ifname, link.queues, netlink)
    }

    /// Makes the interface `name` in the current network namespace, or attaches to it when it is a
    /// persistent TAP that nobody uses, with `wanted` queues where it can have several.
    pub(crate) fn open(
        name: &IfName,
        wanted: usize,
        netlink: &mut Netlink,
    ) -> Result<Tap, TapError> {
        let fail = |source| TapError::Create { name: name.clone(), source };
        let existing = netlink.link(name.as_str()).map_err(fail)?;
        if let Some(interface) = &existing {
            match interface.tun {
                None => return Err(TapError::NotATap(name.clone())),
                // Without this question, a second queue on somebody else's TAP would be granted
                // and take frames away from them.
                Some(state) if !state.persistent || state.queues > 0 => {
                    return Err(TapError::InUse(name.clone()));
                }
                Some(_) => {}
            }
        }

        let first = open_device()?;
        let flags = attach_first(&first, name, existing.is_none())?;
        let multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
        let mut files = vec![first];
        while multi_queue && files.len() < wanted.min(MAX_QUEUES) {
            let next = open_device()?;
            tun::set_interface(next.as_fd(), name.as_str(), flags).map_err(fail)?;
            files.push(next);
        }

        let mut features = TapFeatures {
            vnet_hdr: flags & libc::IFF_VNET_HDR != 0,
            multi_queue,
            ..TapFeatures::default()
        };
        if features.vnet_hdr {
            // The header's length and the offloads belong to the interface, not to one queue.
            negotiate(&files[0], &mut features).map_err(fail)?;
            let made = netlink.link(name.as_str()).map_err(fail)?;
            features.big_packets = made.is_some_and(|interface| interface.big_packets);
        }
        Ok(Tap { queues: files.into_iter().map(OwnedFd::from).collect(), features })
    }
}

impl Tap {
    /// Takes a TAP that somebody else has opened, with whatever features it was given.
    pub(crate) fn adopt(queue: OwnedFd) -> io::Result<Tap> {
        let flags = tun::interface_flags(queue.as_fd())?;
        if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let status = OFlag::from_bits_retain(fcntl(&queue, FcntlArg::F_GETFL)?);
        fcntl(&queue, FcntlArg::F_SETFL(status | OFlag::O_NONBLOCK))?;
        let queue = File::from(queue);
        let mut features =
            TapFeatures { vnet_hdr: flags & libc::IFF_VNET_HDR != 0, ..TapFeatures::default() };
        if features.vnet_hdr {
            negotiate(&queue, &mut features)?;
        }
        Ok(Tap { queues: vec![queue.into()], features })
    }

    /// The MAC of the guest's interface; `None` where the link is no TAP.
    pub fn mac(&self) -> Option<Mac> {
        tun::hardware_address(self.queues.first()?.as_fd()).ok().map(Mac)
    }
}

fn open_device() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(TapError::Device)
}

/// Binds `queue` to the interface with the best flags that go, and returns them.
fn attach_first(queue: &File, name: &IfName, new: bool) -> Result<libc::c_int, TapError> {
    const PLAIN: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;
    // The interface must not appear between our question and our request.
    let exclusive = if new { libc::IFF_TUN_EXCL } else { 0 };
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for extra in [libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE, libc::IFF_VNET_HDR, 0] {
        match tun::set_interface(queue.as_fd(), name.as_str(), PLAIN | extra | exclusive) {
            Ok(()) => return Ok(PLAIN | extra),
            Err(e) => match e.raw_os_error() {
                Some(libc::EBUSY) => return Err(TapError::InUse(name.clone())),
                Some(libc::EINVAL) => refused = e,
                _ => return Err(TapError::Create { name: name.clone(), source: e }),
            },
        }
    }
    Err(TapError::Create { name: name.clone(), source: refused })
}

/// Sets the header's length and the best set of offloads that the kernel knows.
fn negotiate(queue: &File, features: &mut TapFeatures) -> io::Result<()> {
    const TSO: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    tun::set_vnet_header_len(queue.as_fd(), VNET_HEADER_LEN as libc::c_int)?;
    for (offloads, tso, uso) in [(TSO | USO, true, true), (TSO, true, false), (0, false, false)] {
        match tun::set_offload(queue.as_fd(), offloads) {
            Ok(()) => {
                features.tso = tso;
                features.uso = uso;
                return Ok(());
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && offloads != 0 => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_what_the_kernel_accepts() {
        for good in ["tap0", "e", "abcdefghijklmno", "veth-1.2@x"] {
            assert_eq!(good.parse::<IfName>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "abcdefghijklmnop", "a b", "a/b", "a:1", "tap%d", "a\tb", "a\0"]
        {
            assert_eq!(bad.parse::<IfName>(), Err(ParseIfNameError), "{bad:?}");
        }
    }
}
