//! A worker on its thread: the real edges, the loop around `wait` and `turn`, commands from outside.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::base::Instant;
use crate::observe::Capture;
use crate::sys::clock;

use super::command::Command;
use super::host::{HostSockets, Links, Outbound};
use super::ports::{Event, FramePort, SocketPort};
use super::tap::TapQueue;
use super::token::{Kind, Token};
use super::worker::{Options, Worker};

/// Why a worker has ended.
#[derive(Debug)]
pub enum End {
    /// It cannot go on: the TAP is gone, or epoll failed.
    Failed(io::Error),
    /// It was asked to drain, and has.
    Drained,
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

/// Starts a worker on a thread of its own, on a link unless there is none. `ended` is called there
/// when the worker and its sockets are gone.
///
/// # Errors
/// Those of epoll and of starting a thread.
pub fn start(
    tap: Option<OwnedFd>,
    options: Options,
    outbound: Outbound,
    links: Links,
    commands: Commands,
    capture: Option<Capture<File>>,
    ended: impl FnOnce(End) + Send + 'static,
) -> io::Result<()> {
    let tap = tap.map(|tap| TapQueue::new(tap, options.vnet_header, capture));
    let host = HostSockets::new(outbound, links)?;
    if let Some(tap) = &tap {
        host.watch(tap, Token::only(Kind::Tap))?;
    }
    host.watch(&*commands.wake, Token::only(Kind::Commands))?;
    let worker = move || {
        let worker = Worker::new(clock::now(), tap, host, options);
        ended(serve(worker, &commands));
    };
    std::thread::Builder::new().name("worker".to_owned()).spawn(worker)?;
    Ok(())
}

/// Turns until it is told to end, or cannot go on.
fn serve(mut worker: Worker<Option<TapQueue>, HostSockets>, commands: &Commands) -> End {
    let mut events = Vec::new();
    let mut spin = Spin::new(std::thread::available_parallelism().map_or(1, usize::from));
    let mut drain = None;
    loop {
        let patience = drain.as_ref().map(|_| DRAIN_STEP);
        if let Err(error) = next_events(&mut worker, &mut spin, patience, &mut events) {
            return End::Failed(error);
        }
        let now = clock::now();
        let commanded = events.iter().any(|event| event.token.kind == Kind::Commands);
        if commanded {
            // It only fails if there was nothing to read.
            let _ = commands.wake.read();
            for command in commands.queue.try_iter() {
                match command {
                    Command::Drain => drain = Some(Drain::new(now)),
                    command => worker.on_command(now, command),
                }
            }
        }
        if let Err(error) = worker.turn(now, &events) {
            return End::Failed(error);
        }
        if drain.as_mut().is_some_and(|drain| drain.is_over(now, &worker)) {
            return End::Drained;
        }
    }
}

/// While draining, how often to look whether it is over.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// A guest that is silent for so long has sent what it had; somebody else's connection is idle.
const GUEST_QUIET: Duration = Duration::from_millis(50);
/// A host socket that takes nothing for so long will not.
const HOST_STUCK: Duration = Duration::from_secs(10);

/// What a host's kernel does for the sockets of a process that has ended: what was written is still
/// sent. So a command such as `producer | socat -u - TCP:…` may end while bytes are on their way.
struct Drain {
    progress: Instant,
    frames: u64,
    backlog: usize,
}

impl Drain {
    fn new(now: Instant) -> Drain {
        Drain { progress: now, frames: 0, backlog: 0 }
    }

    fn is_over<F: FramePort, S: SocketPort>(
        &mut self,
        now: Instant,
        worker: &Worker<F, S>,
    ) -> bool {
        if !worker.guest_unfinished() {
            return true;
        }
        let (frames, backlog) = (worker.counters().frames_from_guest, worker.backlog());
        if (frames, backlog) != (self.frames, self.backlog) {
            (self.frames, self.backlog, self.progress) = (frames, backlog, now);
        }
        now.since(self.progress) > if backlog == 0 { GUEST_QUIET } else { HOST_STUCK }
    }
}

/// Waits for the next events: first, while that has been paying, without giving up the processor.
fn next_events(
    worker: &mut Worker<Option<TapQueue>, HostSockets>,
    spin: &mut Spin,
    patience: Option<Duration>,
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
    let timeout = [worker.timeout(now), patience].into_iter().flatten().min();
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
