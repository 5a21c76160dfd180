//! What workers send each other, and the bells that wake them for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::WorkerId;
use super::porter::{Delivery, Parcel};
use crate::base::Mac;
use crate::engine::command::Command;
use crate::engine::exposures::Exposures;
use crate::engine::ports::{Accepted, SocketPort};
use crate::engine::published::Published;
use crate::engine::tcp_flow::TcpFlow;
use crate::engine::token::Token;
use crate::gate::forward::ForwardId;

/// Bytes of packets that may wait for a worker, with [`PRICE`] for each. Whoever sends faster than
/// that for longer loses packets, as on a full queue of the TAP.
const WAITING: usize = 4 << 20;

/// What a packet costs beyond its bytes: the message and the allocation behind it.
const PRICE: usize = 128;

/// A message to a worker. Packets are bounded by [`WAITING`], flows and clients by the limits on
/// flows, parcels by [`MAX_PARCELS`](super::porter::MAX_PARCELS); the others are few.
pub(in crate::engine) enum Mail<S: SocketPort> {
    /// A frame for the services and flows that only the lead has, as it was read.
    Frame(Box<[u8]>),
    /// An IP packet for a TCP flow of the receiver, its checksum verified or vouched for.
    Packet {
        /// Who read it from the TAP.
        from: WorkerId,
        /// The Ethernet address that it came from.
        source_mac: Mac,
        /// How often it has been handed over before.
        hops: u8,
        /// The packet from its IP header on.
        bytes: Box<[u8]>,
    },
    /// A TCP flow: the receiver's from now on.
    Flow(Box<TcpFlow<S>>),
    /// A client of a published port, whose flow is to be the receiver's.
    Client {
        /// What it is a client of.
        rule: Published,
        /// Where the guest's address is found on the link.
        guest_mac: Mac,
        /// The connection.
        accepted: Accepted<S::Stream>,
    },
    /// Attach the queue: there is work. The ports of the gateway that lead to the host, and all
    /// that are published or exposed.
    Join(Box<(Exposures, Vec<ForwardId>)>),
    /// The sender got no queue.
    NoQueue(WorkerId),
    /// Give everything back, and detach the queue.
    Retire,
    /// The sender has done so.
    Retired(WorkerId),
    /// A port is published or exposed.
    Forward(ForwardId),
    /// The sender has no time to spare, and nobody else has: call another worker.
    Busy,
    /// The control thread's command, passed on by the lead.
    Command(Box<Command>),
    /// Be the porter of this flow of the sender: its socket once more.
    Hire(WorkerId, Token, S::Stream),
    /// The sender can be that, or not.
    Ready(Token, bool),
    /// From the porter: it has work of its own.
    Resign(Token),
    /// Something of that flow, of this owner, to be sent.
    Carry(WorkerId, Token, Parcel),
    /// The flow of this owner is to do without: give back what is not sent.
    Return(WorkerId, Token),
    /// The flow of this owner is over; what is not sent is forgotten.
    LetGo(WorkerId, Token),
    /// From the porter: what was sent, and what was not.
    Delivered(Delivery),
    /// The program is ending: give no flow away any more.
    Settle,
    /// The sender does not.
    Settled,
    /// The sender has passed on all that its guest sent.
    Drained,
    /// The sender cannot go on.
    Failed(io::Error),
}

impl<S: SocketPort> Mail<S> {
    /// Bytes that count against [`WAITING`].
    fn weight(&self) -> usize {
        match self {
            Mail::Frame(bytes) | Mail::Packet { bytes, .. } => bytes.len() + PRICE,
            _ => 0,
        }
    }
}

/// What wakes a worker: an eventfd that is written to once for any number of messages.
#[derive(Debug)]
pub(in crate::engine) struct Bell {
    rung: AtomicBool,
    pub(in crate::engine) wake: EventFd,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Bell { rung: AtomicBool::new(false), wake })
    }

    /// Wakes the worker, unless that has been done and it has not looked yet.
    pub(in crate::engine) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow: the worker reads it whenever it is not zero.
            let _ = self.wake.write(1);
        }
    }

    /// To be called before looking for messages: who sends one from here on rings again.
    pub(in crate::engine) fn silence(&self) {
        // It only fails if there is nothing to read.
        let _ = self.wake.read();
        // The messages of those who found it rung are seen from here on.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// Where to put messages for one worker.
pub(in crate::engine) struct Post<S: SocketPort> {
    queue: Sender<Mail<S>>,
    bell: Arc<Bell>,
    waiting: Arc<AtomicUsize>,
}

impl<S: SocketPort> Clone for Post<S> {
    fn clone(&self) -> Self {
        Post {
            queue: self.queue.clone(),
            bell: Arc::clone(&self.bell),
            waiting: Arc::clone(&self.waiting),
        }
    }
}

impl<S: SocketPort> Post<S> {
    /// Sends a message; whether it is under way. Only packets are ever refused.
    pub(in crate::engine) fn send(&self, mail: Mail<S>) -> bool {
        let weight = mail.weight();
        if weight > 0 && self.waiting.load(Ordering::Relaxed) + weight > WAITING {
            return false;
        }
        self.waiting.fetch_add(weight, Ordering::Relaxed);
        // A worker that has ended takes nothing; the program is ending then.
        let sent = self.queue.send(mail).is_ok();
        self.bell.ring();
        sent
    }
}

/// Where a worker finds its messages.
pub(in crate::engine) struct Inbox<S: SocketPort> {
    queue: Receiver<Mail<S>>,
    pub(in crate::engine) bell: Arc<Bell>,
    waiting: Arc<AtomicUsize>,
}

impl<S: SocketPort> Inbox<S> {
    /// Bytes of packets that wait.
    pub(in crate::engine) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The next message.
    pub(in crate::engine) fn next(&self) -> Option<Mail<S>> {
        let mail = self.queue.try_recv().ok()?;
        self.waiting.fetch_sub(mail.weight(), Ordering::Relaxed);
        Some(mail)
    }
}

/// Both ends of the messages to one worker.
///
/// # Errors
/// Those of `eventfd(2)`.
pub(super) fn mailbox<S: SocketPort>() -> io::Result<(Post<S>, Inbox<S>)> {
    let (sender, receiver) = channel();
    let bell = Arc::new(Bell::new()?);
    let waiting = Arc::default();
    let post = Post { queue: sender, bell: Arc::clone(&bell), waiting: Arc::clone(&waiting) };
    Ok((post, Inbox { queue: receiver, bell, waiting }))
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    use super::*;
    use crate::engine::host::HostSockets;

    /// Sleeps until the bell rings, then reads everything; how many messages there were.
    fn wait(inbox: &Inbox<HostSockets>) -> usize {
        let mut fds = [PollFd::new(inbox.bell.wake.as_fd(), PollFlags::POLLIN)];
        let rung = poll(&mut fds, PollTimeout::from(10_000u16)).unwrap();
        assert!(rung > 0, "nobody rings");
        inbox.bell.silence();
        std::iter::from_fn(|| inbox.next()).count()
    }

    #[test]
    fn no_message_waits_for_the_next_one_to_wake_its_reader() {
        const MESSAGES: usize = 20_000;
        let (post, inbox) = mailbox::<HostSockets>().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let post = post.clone();
                scope.spawn(move || {
                    for message in 0..MESSAGES {
                        assert!(post.send(Mail::Busy));
                        if message % 16 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut read = 0;
            while read < 2 * MESSAGES {
                read += wait(&inbox);
            }
        });
    }

    #[test]
    fn packets_that_nobody_reads_are_bounded_and_other_messages_are_not_refused() {
        let (post, inbox) = mailbox::<HostSockets>().unwrap();
        let frame = || Mail::Frame(vec![0; 60_000].into());
        let taken = (0..1000).filter(|_| post.send(frame())).count();
        let weight = 60_000 + PRICE;
        assert_eq!((taken, inbox.waiting()), (WAITING / weight, taken * weight));
        assert!(post.send(Mail::Retire));
        assert_eq!((wait(&inbox), inbox.waiting()), (taken + 1, 0));
        assert!(post.send(frame()));
    }
}
