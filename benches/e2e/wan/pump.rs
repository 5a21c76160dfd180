//! Carries frames from one descriptor to another along a [`Line`]: the thread of one direction.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::unistd::{read, write};
use tapway::sys::clock;

use super::line::{Admitted, Conditions, Line, Tally};

/// Largest frame of a TAP: 64 KiB, Ethernet and virtio-net header, rounded up.
const FRAME: usize = 66 << 10;

/// A frame that fills less of its buffer than this is copied into one of its size.
const ROOMY: usize = FRAME / 2;

/// Buffers kept for frames to come: fresh memory costs as much as the copy that it takes.
const SPARE: usize = 64;

/// Frames read before those that are due are looked at again.
const BATCH: usize = 16;

/// What a pump is told; the byte that wakes it comes through the descriptor beside the channel.
#[derive(Debug)]
pub enum Order {
    /// Forget what is under way, and begin anew.
    Change(Conditions),
    /// Answer with what became of the segments since the last change.
    Tell(Sender<Tally>),
}

/// Carries until `from` ends, which a TAP never does. `woken` becomes readable with each order.
///
/// # Errors
/// When a descriptor fails for good.
pub fn pump(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    woken: BorrowedFd<'_>,
    orders: &Receiver<Order>,
) -> io::Result<()> {
    // The kernel rounds waits up by 50 µs unless told otherwise: as much as the shortest delay may
    // be off.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut line = Line::new(Conditions::NONE);
    let mut frame = vec![0; FRAME];
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        while let Ok(order) = orders.try_recv() {
            match order {
                Order::Change(conditions) => line = Line::new(conditions),
                // Who asked may have gone; that is no concern of the line's.
                Order::Tell(answer) => drop(answer.send(line.tally())),
            }
        }
        while let Some(due) = line.take_due(clock::now()) {
            send(to, &due)?;
            if due.capacity() >= FRAME && spare.len() < SPARE {
                spare.push(due);
            }
        }
        let mut idle = false;
        for _ in 0..BATCH {
            let len = match read(from, &mut frame) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(Errno::EAGAIN) => {
                    idle = true;
                    break;
                }
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let now = clock::now();
            match line.admit(now, &frame[..len]) {
                Admitted::Settled => {}
                Admitted::Whole(_) if line.is_transparent() => send(to, &frame[..len])?,
                Admitted::Whole(segments) if len < ROOMY => {
                    line.put(now, frame[..len].to_vec(), segments);
                }
                Admitted::Whole(segments) => {
                    let mut next = spare.pop().unwrap_or_default();
                    next.resize(FRAME, 0);
                    frame.truncate(len);
                    line.put(now, std::mem::replace(&mut frame, next), segments);
                }
            }
        }
        if !idle {
            continue;
        }
        let wait = line.next_due().map(|due| due.since(clock::now()));
        if wait.is_some_and(|time| time.is_zero()) {
            continue;
        }
        sleep(from, woken, wait)?;
    }
}

/// Writes a frame. One that the receiving device refuses for the moment is lost as on any wire.
fn send(to: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    match write(to, frame) {
        Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EIO) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits for a frame, an order, or the time.
fn sleep(from: BorrowedFd<'_>, woken: BorrowedFd<'_>, time: Option<Duration>) -> io::Result<()> {
    let mut fds = [from, woken].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match ppoll(&mut fds, time.map(TimeSpec::from_duration), None) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    if fds[1].any() == Some(true) {
        let _ = read(woken, &mut [0; 8]);
    }
    Ok(())
}
