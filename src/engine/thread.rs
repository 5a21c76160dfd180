//! A worker on its thread: the real edges, the loop around `wait` and `turn`, commands from outside.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::base::Instant;
use crate::observe::Capture;
use crate::sys::clock;

use super::host::{DnsLink, HostSockets, Outbound};
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
    let mut now: Instant = clock::now();
    loop {
        let timeout = worker.timeout(now);
        if let Err(error) = worker.wait(timeout, &mut events) {
            return error;
        }
        now = clock::now();
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
