//! The stage: a path of chosen delay, loss and rate between two namespaces, in user space.
//!
//! ```text
//!   host                                                     ext
//!   wan0 (TAP) ══▶ up:   pump ─ line (dice, queue, delay) ══▶ wanN (TAP)
//!              ◀══ down: line (delay, queue, dice) ─ pump ◀══
//! ```
//! Not every kernel has netem, and this one also does what netem does not: it loses segments, not
//! frames (see [`super::cut`]). Both TAPs have virtio-net headers, so that a frame crosses with its
//! checksum and its segmentation still owed, at the cost of one read and one write.
//!
//! It is a process of its own, an agent of the benchmark: it enters both namespaces, and only a
//! process without threads may. It takes orders line by line on stdin and answers on stdout:
//! `set DELAY_NS LOSS_PPM RATE SEED SPARED_NS` (rate 0: none), `tell` with the tallies of both directions.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::EventFd;
use tapway::stack::wire::VNET_HEADER_LEN;
use tapway::sys::tun;

use super::line::{Conditions, Tally};
use super::pump::{Order, pump};
use crate::agent::say;
use crate::base::{Failure, Process, read_line};
use crate::lab::{Lab, Namespace};

/// Frames that wait for a TAP's reader. More than any send buffer holds, so that nothing is lost
/// besides what the line loses.
const QUEUE: u32 = 10_000;

/// The stage as the benchmark holds it.
#[derive(Debug)]
pub struct Stage {
    _process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What happened on both directions since the last change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tallies {
    pub up: Tally,
    pub down: Tally,
}

impl Stage {
    /// Connects `host`'s device `up` with `ext`'s device `far`; both are made.
    pub fn build(
        lab: &Lab,
        (host, up): (&Namespace, &str),
        (ext, far): (&Namespace, &str),
    ) -> Result<Stage, Failure> {
        let mut command = std::process::Command::new(&lab.agent);
        command.args(["agent", "stage", &host.pid().to_string(), up]);
        command.args([&ext.pid().to_string(), far]);
        let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let child = process.child();
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure("the stage has no pipes".into()));
        };
        let mut stage = Stage { _process: process, orders, answers: BufReader::new(answers) };
        stage.answer("be ready")?;
        for (net, name) in [(host, up), (ext, far)] {
            net.ip(&format!("link set {name} txqueuelen {QUEUE} up"))?;
        }
        Ok(stage)
    }

    /// Makes it another path. What is under way is lost.
    pub fn set(&mut self, conditions: Conditions) -> Result<(), Failure> {
        let Conditions { delay, loss_ppm, rate, seed, spared } = conditions;
        let (delay, rate, spared) = (delay.as_nanos(), rate.unwrap_or(0), spared.as_nanos());
        self.order(&format!("set {delay} {loss_ppm} {rate} {seed} {spared}"))?;
        self.answer("change").map(drop)
    }

    /// What happened since the last change.
    pub fn tell(&mut self) -> Result<Tallies, Failure> {
        self.order("tell")?;
        let text = self.answer("tell")?;
        let mut numbers = text.split(' ').filter_map(|word| word.parse().ok());
        let mut tally = || {
            let mut next = || numbers.next();
            Some(Tally {
                segments: next()?,
                lost: next()?,
                queue_full: next()?,
                over_limit: next()?,
            })
        };
        let both = tally().zip(tally());
        let (up, down) = both.ok_or_else(|| Failure::because("the stage's tallies", &text))?;
        Ok(Tallies { up, down })
    }

    fn order(&mut self, order: &str) -> Result<(), Failure> {
        let said = writeln!(self.orders, "{order}").and_then(|()| self.orders.flush());
        said.map_err(|e| Failure::because("tell the stage", e))
    }

    fn answer(&mut self, what: &str) -> Result<String, Failure> {
        read_line(&mut self.answers)
            .map_err(|e| Failure::because(format_args!("the stage, asked to {what}"), e))
    }
}

/// The agent: `near` and `far` are the processes whose namespaces it connects, and the names of
/// the devices it makes there.
pub fn run(near: (u32, &str), far: (u32, &str)) -> Result<String, Failure> {
    let near = Arc::new(tap_in(near.0, near.1)?);
    let far = Arc::new(tap_in(far.0, far.1)?);
    let up = Direction::start(Arc::clone(&near), Arc::clone(&far))?;
    let down = Direction::start(far, near)?;
    say("ready")?;
    for order in io::stdin().lock().lines() {
        let order = order.map_err(|e| Failure::because("read an order", e))?;
        let words: Vec<&str> = order.split(' ').collect();
        match words.as_slice() {
            ["set", numbers @ ..] => {
                let numbers: Vec<u64> = numbers.iter().map_while(|n| n.parse().ok()).collect();
                let [delay, loss_ppm, rate, seed, spared] = numbers[..] else {
                    return Err(Failure(format!("an order without its numbers: {order}")));
                };
                let conditions = Conditions {
                    delay: Duration::from_nanos(delay),
                    loss_ppm: u32::try_from(loss_ppm).unwrap_or(u32::MAX),
                    rate: (rate > 0).then_some(rate),
                    seed,
                    spared: Duration::from_nanos(spared),
                };
                up.order(Order::Change(conditions))?;
                // The same dice would lose an acknowledgment for each segment that they lose.
                down.order(Order::Change(Conditions { seed: !seed, ..conditions }))?;
                // Asked in the same order, so it is done when this is answered.
                let _ = (up.tell()?, down.tell()?);
                say("done")?;
            }
            ["tell"] => {
                let words = [up.tell()?, down.tell()?].map(|t| {
                    format!("{} {} {} {}", t.segments, t.lost, t.queue_full, t.over_limit)
                });
                say(&words.join(" "))?;
            }
            _ => return Err(Failure(format!("unknown order: {order}"))),
        }
    }
    // The end of stdin is the sign to go; the threads end with the process.
    Ok(String::new())
}

/// The thread of one direction.
struct Direction {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
}

impl Direction {
    fn start(from: Arc<OwnedFd>, to: Arc<OwnedFd>) -> Result<Direction, Failure> {
        let wake = EventFd::new().map_err(|e| Failure::because("make an eventfd", e))?;
        let wake = Arc::new(wake);
        let woken = Arc::clone(&wake);
        let (orders, told) = mpsc::channel();
        thread::spawn(move || {
            if let Err(e) = pump(from.as_fd(), to.as_fd(), woken.as_fd(), &told) {
                eprintln!("e2e: the stage stopped: {e}");
                std::process::exit(1);
            }
        });
        Ok(Direction { orders, wake })
    }

    fn order(&self, order: Order) -> Result<(), Failure> {
        let gone = || Failure("a direction of the stage has ended".into());
        self.orders.send(order).map_err(|_| gone())?;
        self.wake.write(1).map_err(|e| Failure::because("wake the stage", e)).map(drop)
    }

    fn tell(&self) -> Result<Tally, Failure> {
        let (answer, told) = mpsc::channel();
        self.order(Order::Tell(answer))?;
        told.recv().map_err(|_| Failure("a direction of the stage has ended".into()))
    }
}

/// Makes a TAP in the network namespace of process `pid`.
fn tap_in(pid: u32, name: &str) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{pid}/ns/net");
    let failed = |e: io::Error| Failure::because(format_args!("make the TAP {name}"), e);
    let net = File::open(Path::new(&path)).map_err(failed)?;
    setns(net, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(failed)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    tun::set_interface(device.as_fd(), name, flags).map_err(failed)?;
    // A dozen.
    tun::set_vnet_header_len(device.as_fd(), VNET_HEADER_LEN as libc::c_int).map_err(failed)?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    tun::set_offload(device.as_fd(), offloads).map_err(failed)?;
    Ok(device.into())
}
