//! A worker on its thread: the real edges, the loop around `wait` and `turn`, commands from outside.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::observe::Capture;
use crate::sys::clock;

use super::host::{DnsLink, HostSockets, Outbound};
use super::ports::Event;
use super::tap::TapQueue;
use super::token::{Kind, Token};
use super::worker::{Options, Worker};

/// What the control thread tells a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The DNS service's answer to the query of this number.
    DnsAnswer {
        /// The number that the query had.
        token: u64,
        /// The DNS message.
        message: Vec<u8>,
    },
    /// The search domains have changed.
    SetSearch(Vec<String>),
}

/// Sends commands to a worker and wakes it.
#[derive(Clone)]
pub struct CommandSender {
    queue: Sender<Command>,
    wake: Arc<EventFd>,
}

impl CommandSender {
    /// Queues `command`; a worker that has ended takes nothing, which is no loss.
    pub fn send(&self, command: Command) {
        if self.queue.send(command).is_ok() {
            // The counter cannot overflow: the worker reads it whenever it is not zero.
            let _ = self.wake.write(1);
        }
    }
}

/// Commands on their way to a worker that is yet to start.
pub struct Commands {
    queue: Receiver<Command>,
    wake: Arc<EventFd>,
}

/// A pair of ends for [`start`].
pub fn commands() -> io::Result<(CommandSender, Commands)> {
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let wake = Arc::new(wake);
    let (sender, receiver) = channel();
    Ok((
        CommandSender { queue: sender, wake: Arc::clone(&wake) },
        Commands { queue: receiver, wake },
    ))
}

/// Starts a worker on a thread of its own. `ended` is called there if it cannot go on: the TAP is
/// gone, or epoll failed.
///
/// # Errors
/// Those of epoll and of starting a thread.
pub fn start(
    tap: OwnedFd,
    options: Options,
    outbound: Outbound,
    dns: DnsLink,
    commands: Commands,
    capture: Option<Capture<File>>,
    ended: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<()> {
    let tap = TapQueue::new(tap, options.vnet_header, capture);
    let host = HostSockets::new(outbound, dns)?;
    host.watch(&tap, Token::only(Kind::Tap))?;
    host.watch(&*commands.wake, Token::only(Kind::Commands))?;
    let worker = move || {
        let worker = Worker::new(clock::now(), tap, host, options);
        ended(serve(worker, &commands));
    };
    std::thread::Builder::new().name("worker".to_owned()).spawn(worker)?;
    Ok(())
}

/// Turns for ever; returns why it cannot.
fn serve(mut worker: Worker<TapQueue, HostSockets>, commands: &Commands) -> io::Error {
    let mut events = Vec::new();
    let mut spin = Spin::new(std::thread::available_parallelism().map_or(1, usize::from));
    loop {
        if let Err(error) = next_events(&mut worker, &mut spin, &mut events) {
            return error;
        }
        let now = clock::now();
        let commanded = events.iter().any(|event| event.token.kind == Kind::Commands);
        if commanded {
            // It only fails if there was nothing to read.
            let _ = commands.wake.read();
            for command in commands.queue.try_iter() {
                worker.on_command(now, command);
            }
        }
        if let Err(error) = worker.turn(now, &events) {
            return error;
        }
    }
}

/// Waits for the next events: first, while that has been paying, without giving up the processor.
fn next_events(
    worker: &mut Worker<TapQueue, HostSockets>,
    spin: &mut Spin,
    events: &mut Vec<Event>,
) -> io::Result<()> {
    let start = clock::now();
    if spin.worthwhile() {
        loop {
            worker.wait(Some(Duration::ZERO), events)?;
            let now = clock::now();
            let due = worker.timeout(now) == Some(Duration::ZERO);
            if !events.is_empty() || due {
                spin.paid(true);
                return Ok(());
            }
            if now.since(start) >= SPIN_TIME {
                break;
            }
        }
        spin.paid(false);
    }
    worker.before_wait();
    let now = clock::now();
    let timeout = worker.timeout(now);
    worker.wait(timeout, events)?;
    if clock::now().since(now) < SPIN_TIME && !events.is_empty() {
        spin.would_have_paid();
    }
    Ok(())
}

/// How long to look for events before sleeping. Going to sleep and being woken costs 5 to 10 µs on
/// either side; the answer of a peer on the same machine takes 10 to 30 µs.
const SPIN_TIME: Duration = Duration::from_micros(40);

/// Whether looking for events without sleeping has been paying lately: a score that rises when
/// events come soon and falls when they do not.
struct Spin {
    score: u8,
    allowed: bool,
}

impl Spin {
    /// A score from which spinning begins.
    const THRESHOLD: u8 = 8;
    const MAX: u8 = 16;

    /// With less than three processors, the peers that we wait for need the one that we hold.
    fn new(processors: usize) -> Spin {
        Spin { score: 0, allowed: processors >= 3 }
    }

    fn worthwhile(&self) -> bool {
        self.allowed && self.score >= Self::THRESHOLD
    }

    fn paid(&mut self, paid: bool) {
        self.score = match paid {
            true => (self.score + 1).min(Self::MAX),
            false => self.score.saturating_sub(2),
        };
    }

    fn would_have_paid(&mut self) {
        self.paid(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_begins_when_it_would_pay_and_ends_when_it_does_not() {
        let mut spin = Spin::new(4);
        assert!(!spin.worthwhile());
        for _ in 0..20 {
            spin.would_have_paid();
        }
        assert!(spin.worthwhile());
        for _ in 0..5 {
            spin.paid(false);
        }
        assert!(!spin.worthwhile());
    }

    #[test]
    fn small_machines_do_not_spin() {
        let mut spin = Spin::new(2);
        for _ in 0..20 {
            spin.would_have_paid();
        }
        assert!(!spin.worthwhile());
    }
}
