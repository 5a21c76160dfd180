//! The guest link: two queues of frames with a clock, and what can go wrong on the way.
//!
//! A TAP loses frames (its queue is full, the interface is down) but does not reorder; the faults
//! here are worse than any real link's, because they find the rare paths of the machines.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

use nix::errno::Errno;
use tapway::engine::ports::FramePort;

use crate::rng::Rng;

/// What can go wrong with a frame, each in a thousandth.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub duplication: u64,
    /// Arrives later than frames that were sent after it.
    pub reordering: u64,
    /// One bit is turned; the receiver's checksums have to notice.
    pub corruption: u64,
}

/// Travel time of a frame that nothing happens to, in nanoseconds.
pub const DELAY: u64 = 20_000;

/// One direction of the link: frames by arrival, in order of sending for equal times.
#[derive(Debug)]
pub struct Lane {
    faults: Faults,
    rng: Rng,
    frames: BTreeMap<(u64, u64), Vec<u8>>,
    sent: u64,
    pub lost: u64,
}

impl Lane {
    pub fn new(faults: Faults, rng: Rng) -> Lane {
        Lane { faults, rng, frames: BTreeMap::new(), sent: 0, lost: 0 }
    }

    /// A frame enters at `now`.
    pub fn send(&mut self, now: u64, mut frame: Vec<u8>) {
        if self.rng.chance(self.faults.loss) {
            self.lost += 1;
            return;
        }
        // The Ethernet header has no checksum here: beyond it, everything is covered by one.
        if frame.len() > 14 && self.rng.chance(self.faults.corruption) {
            let bit = self.rng.range(14 * 8, frame.len() as u64 * 8 - 1) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        if self.rng.chance(self.faults.duplication) {
            let late = self.rng.range(0, 20 * DELAY);
            self.queue(now + DELAY + late, frame.clone());
        }
        let late =
            if self.rng.chance(self.faults.reordering) { self.rng.range(1, 50 * DELAY) } else { 0 };
        self.queue(now + DELAY + late, frame);
    }

    fn queue(&mut self, at: u64, frame: Vec<u8>) {
        self.sent += 1;
        self.frames.insert((at, self.sent), frame);
    }

    /// The next frame that has arrived at `now`.
    pub fn receive(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.frames.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<u64> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
}

/// The TAP as the engine sees it: whole frames, with their virtio-net headers.
#[derive(Debug, Default)]
pub struct Tap {
    /// Frames that the engine can read.
    pub inbound: std::collections::VecDeque<Vec<u8>>,
    /// Frames that the engine wrote.
    pub outbound: Vec<Vec<u8>>,
    pub read: u64,
    pub written: u64,
    /// Bytes of the longest frame that was to be written.
    pub longest: usize,
    /// The kernel has memory for ordinary frames only.
    pub no_large_pages: bool,
    /// One of several queues, which carries no frames now.
    pub detached: bool,
}

/// The engine's handle of a [`Tap`].
#[derive(Clone, Debug, Default)]
pub struct TapPort(pub Rc<RefCell<Tap>>);

impl FramePort for TapPort {
    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        let mut tap = self.0.borrow_mut();
        if tap.detached != attached {
            // `tun_set_queue`
            return Err(Errno::EINVAL.into());
        }
        tap.detached = !attached;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tap = self.0.borrow_mut();
        if tap.detached {
            // `tun_chr_read_iter`
            return Err(Errno::EBADFD.into());
        }
        let frame = tap.inbound.pop_front().ok_or(ErrorKind::WouldBlock)?;
        tap.read += 1;
        buffer[..frame.len()].copy_from_slice(&frame);
        Ok(frame.len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut tap = self.0.borrow_mut();
        if tap.detached {
            // `tun_chr_write_iter`
            return Err(Errno::EBADFD.into());
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        tap.longest = tap.longest.max(len);
        if tap.no_large_pages && len > 70_000 {
            return Err(Errno::ENOBUFS.into());
        }
        tap.outbound.push(parts.iter().flat_map(|part| part.iter().copied()).collect());
        tap.written += 1;
        Ok(())
    }
}
