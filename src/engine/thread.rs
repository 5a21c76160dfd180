//! Workers on their threads: the real edges, the loop around `wait` and `turn`, commands from outside.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::base::Instant;
use crate::gate::forward::Transport;
use crate::sys::clock;

use super::command::Command;
use super::drain::{DRAIN_STEP, Drain};
use super::host::{HostSockets, Links, Outbound};
use super::ports::FramePort;
use super::spin::{Spin, next_events};
use super::team::{Member, members};
use super::token::{Kind, Token};
use super::walk_team::Order;
use super::worker::{Options, Worker};

/// Why a worker has ended.
#[derive(Debug)]
pub enum End {
    /// It cannot go on: the TAP is gone, or epoll failed.
    Failed(io::Error),
    /// The guest has closed its end of the link, and what it had sent is passed on.
    Gone,
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

/// One worker's share of the outside.
pub struct Seat<F> {
    /// Its end of the guest link; a queue of a TAP is attached.
    pub frames: F,
    /// Its ways to the control thread.
    pub links: Links,
}

/// Starts a worker on a thread of its own, or a team of as many as there are `seats`, of which
/// `least` are always at work and the others as load asks. `ended` is called when the workers can do no more.
///
/// # Errors
/// Those of epoll, of detaching a queue, and of starting a thread; `InvalidInput` without a seat.
pub fn start<F: FramePort + AsFd + Send + 'static>(
    seats: Vec<Seat<F>>,
    least: usize,
    options: Options,
    outbound: Outbound,
    commands: Commands,
    ended: impl FnOnce(End) + Send + 'static,
) -> io::Result<()> {
    let now = clock::now();
    let mut members = members(now, least, seats.len())?.into_iter();
    let mut seats = seats.into_iter();
    let (Some(seat), Some(member)) = (seats.next(), members.next()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let frames = seat.frames;
    let host = HostSockets::new(outbound.clone(), seat.links)?;
    host.watch(&frames, Token::only(Kind::Tap))?;
    host.watch(&*commands.wake, Token::only(Kind::Commands))?;
    let mut reserve = VecDeque::new();
    for (seat, member) in seats.zip(members) {
        let Seat { mut frames, links } = seat;
        frames.set_attached(false)?;
        let spare = Spare { frames, links, member };
        let (options, outbound) = (options.clone(), outbound.clone());
        let start: StartSpare = Box::new(move || spare.start(options, outbound));
        reserve.push_back(start);
    }
    let lead = move || {
        let mut worker = Worker::new(now, frames, host, options);
        if !reserve.is_empty() {
            if let Err(error) = worker.host_mut().watch(&member, MAIL) {
                return ended(End::Failed(error));
            }
            worker.join(now, member);
        }
        ended(serve(worker, Some(&commands), reserve));
    };
    std::thread::Builder::new().name("worker".to_owned()).spawn(lead)?;
    Ok(())
}

const MAIL: Token = Token::only(Kind::Mail);

/// Starts the thread of a worker that has been waiting for its call.
type StartSpare = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A worker that is yet to be called.
struct Spare<F> {
    frames: F,
    links: Links,
    member: Member<HostSockets>,
}

impl<F: FramePort + AsFd + Send + 'static> Spare<F> {
    fn start(self, options: Options, outbound: Outbound) -> io::Result<()> {
        let Spare { frames, links, member } = self;
        let host = HostSockets::new(outbound, links)?;
        host.watch(&member, MAIL)?;
        let name = format!("worker-{}", member.id.index());
        let worker = move || {
            let now = clock::now();
            let mut worker = Worker::new(now, frames, host, options);
            worker.join(now, member);
            // It ends by an error only, which the lead has been told.
            serve(worker, None, VecDeque::new());
        };
        std::thread::Builder::new().name(name).spawn(worker)?;
        Ok(())
    }
}

/// Turns until it is told to end, or cannot go on.
fn serve<F: FramePort + AsFd>(
    mut worker: Worker<F, HostSockets>,
    commands: Option<&Commands>,
    mut reserve: VecDeque<StartSpare>,
) -> End {
    let mut events = Vec::new();
    let mut spin = Spin::new(std::thread::available_parallelism().map_or(1, usize::from));
    let mut drain = None;
    let mut gone = false;
    let mut rest = clock::now();
    loop {
        let patience = drain.as_ref().map(|_| DRAIN_STEP);
        if let Err(error) = next_events(&mut worker, &mut spin, rest, patience, &mut events) {
            return worker.fail(error);
        }
        let now = clock::now();
        let commanded = events.iter().any(|event| event.token.kind == Kind::Commands);
        if let Some(commands) = commands.filter(|_| commanded) {
            // It only fails if there was nothing to read.
            let _ = commands.wake.read();
            for command in commands.queue.try_iter() {
                worker.on_host_command(now, command);
            }
        }
        match worker.turn(now, &events) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                gone = true;
                drain.get_or_insert_with(|| Drain::new(now));
            }
            Err(error) => return worker.fail(error),
            Ok(()) => {}
        }
        rest = clock::now();
        let advice = worker.worked(rest, rest.since(now));
        worker.heed(rest, advice);
        while let Some(order) = worker.next_order() {
            match order {
                // There is one for each member.
                Order::Start(id) => match reserve.pop_front().map_or(Ok(()), |start| start()) {
                    Ok(()) => worker.started(now, id),
                    Err(error) => {
                        tracing::warn!(%error, "another worker cannot be started");
                        worker.not_started(id);
                    }
                },
                Order::Attach => worker.attach_queue(),
                Order::Detach => worker.detach_queue(now),
                Order::Drain => drain = Some(Drain::new(now)),
                Order::Fail(error) => return End::Failed(error),
            }
        }
        if drain.as_mut().is_some_and(|drain| drain.is_over(now, &worker)) && worker.drained() {
            if commands.is_some() {
                // Before the TAP, whose close waits for other processors.
                worker.withdraw_all(now, Transport::Tcp);
                worker.withdraw_all(now, Transport::Udp);
                return if gone { End::Gone } else { End::Drained };
            }
            drain = None;
        }
    }
}

impl<F: FramePort + AsFd> Worker<F, HostSockets> {
    /// Takes part in carrying frames.
    fn attach_queue(&mut self) {
        let watched = self.frames_mut().set_attached(true).and_then(|()| {
            self.io.host.watch(&self.io.frames, Token::only(Kind::Tap)).inspect_err(|_| {
                // It has just been attached, so this does not fail.
                let _ = self.io.frames.set_attached(false);
            })
        });
        self.attached(watched);
    }

    /// Takes no part any more.
    fn detach_queue(&mut self, now: Instant) {
        self.last_frames(now);
        // Neither fails for a queue that is attached and watched.
        let _ = self.io.host.unwatch(&self.io.frames);
        let _ = self.io.frames.set_attached(false);
        self.detached();
    }
}
