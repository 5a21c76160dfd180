//! A hundred thousand connections of one guest: what they cost while they are silent, and whether
//! new ones come slower for them.
//!
//! ```text
//!   client in the guest ── contender ── servers in `ext`
//!     keeps connections open            HELD: accept, greet, keep
//!     opens and closes others           PASSING: accept, greet, close
//! ```
//! The client does as the cell tells it, line by line, so that the cell can look at the helper while
//! nothing happens. Each connection is proved end to end by the server's greeting, and the helper is
//! asked how many it has. "direct" is there for the kernel's own share: its tables grow as well.
//!
//! Where the limit of open files does not let a helper have so many, there are as many as it does
//! allow. The rows say how many that is, and what is promised of 100,000 is then asked of each: its
//! share of the memory, and the rate beside all that are there.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tapway::base::Instant;
use tapway::engine::Limits;
use tapway::sys::clock;

use crate::agent::{listen, say};
use crate::base::{Failure, Process, output_of, read_line};
use crate::contenders::{Contender, Guest, Programs};
use crate::keeper::descriptors;
use crate::lab::{Lab, SERVER};
use crate::workloads::{self, Cell, Figure};

/// Where connections are kept: several ports, because a client has 64,512 ports for each.
const HELD: RangeInclusive<u16> = 7100..=7107;

/// Where connections come and go, at ports that no kept one takes part of.
const PASSING: RangeInclusive<u16> = 7108..=7115;

/// How many are open while the rate is measured before all are, with the ends of the rows' ids.
const STEPS: [(usize, &str); 2] = [(100, "100"), (10_000, "10k")];

/// How many there are in the end, if the limit of open files allows it.
const MOST: usize = 100_000;

/// Descriptors that a process needs beside those of the connections, and those of connections that
/// come and go.
const SPARE: usize = 300;

/// Clients that open connections at the same time.
const OPENERS: usize = 8;

/// Clients that open and close connections at the same time: more than the cores of most machines
/// on which this runs, so that a helper always finds something to do.
const PASSERS: usize = 8;

/// Seconds that the client may take in all.
const BOUND: &str = "60";

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves on all ports until the process is ended.
pub fn serve() -> Result<String, Failure> {
    let mut servers = Vec::new();
    for port in HELD.chain(PASSING) {
        let listener = listen(port)?;
        servers.push(thread::spawn(move || {
            let mut kept = Vec::new();
            for mut client in listener.incoming().flatten() {
                let greeted = client.write_all(b".").is_ok();
                if greeted && HELD.contains(&port) {
                    kept.push(client);
                }
            }
        }));
    }
    for server in servers {
        server.join().map_err(|_| Failure("a server panicked".into()))?;
    }
    Ok(String::new())
}

/// Does what the lines of stdin say, and answers each with a number: `open COUNT` (so many in all;
/// how many there are), `pass SECONDS` (how many came and went in a second), `alive` (how many are
/// still open).
pub fn client(server: IpAddr) -> Result<String, Failure> {
    let mut open: Vec<TcpStream> = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| Failure::because("read an order", e))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &str| {
            word.parse::<usize>().map_err(|e| Failure::because(format_args!("order {line}"), e))
        };
        let answer = match words.as_slice() {
            ["open", count] => {
                let first = open.len();
                open.extend(open_all(server, first, number(count)?)?);
                open.len()
            }
            ["pass", seconds] => pass(server, Duration::from_secs(number(seconds)? as u64))?,
            ["alive"] => open.iter().filter(|stream| is_open(stream)).count(),
            _ => return Err(Failure(format!("unknown order: {line}"))),
        };
        say(&answer.to_string())?;
    }
    Ok(String::new())
}

/// Connections number `first` to `end`.
fn open_all(server: IpAddr, first: usize, end: usize) -> Result<Vec<TcpStream>, Failure> {
    let next = AtomicUsize::new(first);
    let opener = || -> Result<Vec<TcpStream>, Failure> {
        let mut opened = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return Ok(opened);
            }
            let mut stream = connect(address(server, &HELD, number));
            // A SYN that was lost, or a queue that was full.
            if stream.is_err() {
                stream = connect(address(server, &HELD, number));
            }
            let failed = |e| Failure::because(format_args!("open connection {number}"), e);
            let stream = stream.map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            opened.push(stream);
        }
    };
    let results: Vec<_> = thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(opener)).collect();
        openers.into_iter().map(|opener| opener.join()).collect()
    });
    let mut all = Vec::new();
    for opened in results {
        all.extend(opened.map_err(|_| Failure("a client panicked".into()))??);
    }
    Ok(all)
}

/// The number-th of `ports` in turn.
fn address(server: IpAddr, ports: &RangeInclusive<u16>, number: usize) -> SocketAddr {
    // There are eight of them.
    let port = ports.start() + (number % ports.len()) as u16;
    (server, port).into()
}

/// A connection over which the server's greeting came.
fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn is_open(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
}

/// Opens connections, each to its end by the server, for `time`; how many a second.
fn pass(server: IpAddr, time: Duration) -> Result<usize, Failure> {
    let (over, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let start: Instant = clock::now();
    let passer = |number: usize| -> io::Result<()> {
        let address = address(server, &PASSING, number);
        while !over.load(Ordering::Relaxed) {
            let mut stream = connect(address)?;
            if stream.read(&mut [0])? != 0 {
                return Err(ErrorKind::InvalidData.into());
            }
            // What is counted is a whole connection.
            let _ = stream.shutdown(Shutdown::Write);
            passed.fetch_add(1, Ordering::Relaxed);
            if clock::now().since(start) >= time {
                over.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let results: Vec<_> = thread::scope(|scope| {
        let passers: Vec<_> =
            (0..PASSERS).map(|number| scope.spawn(move || passer(number))).collect();
        passers.into_iter().map(|passer| passer.join()).collect()
    });
    for result in results {
        result
            .map_err(|_| Failure("a client panicked".into()))?
            .map_err(|e| Failure::because("open and close connections", e))?;
    }
    let seconds = clock::now().since(start).as_secs_f64();
    Ok((passed.into_inner() as f64 / seconds) as usize)
}

/// The client in the guest, seen from the cell.
struct Client {
    _process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    complaints: ChildStderr,
}

impl Client {
    fn start(lab: &Lab, guest: &Guest) -> Result<Client, Failure> {
        let mut command = lab.as_user(guest.net(lab), Path::new("timeout"));
        command.args(["--signal=KILL", BOUND]).arg(&lab.agent);
        command.args(["agent", "crowd", &SERVER.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let child = process.child();
        let (Some(orders), Some(answers), Some(complaints)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Failure("the client has no pipes".into()));
        };
        Ok(Client { _process: process, orders, answers: BufReader::new(answers), complaints })
    }

    fn obey(&mut self, order: &str) -> Result<usize, Failure> {
        let asked = writeln!(self.orders, "{order}").map_err(|e| Failure::because(order, e));
        let answer = asked.and_then(|()| read_line(&mut self.answers)).map_err(|failure| {
            let mut why = String::new();
            match self.complaints.read_to_string(&mut why) {
                Ok(1..) => Failure(why.trim().trim_start_matches("e2e: ").to_owned()),
                _ => Failure::because(format_args!("within {BOUND} s, {order}"), failure),
            }
        })?;
        answer.parse().map_err(|e| Failure::because(format_args!("the answer to {order}"), e))
    }
}

/// Opens the connections in steps, with the rate of others at each, and watches the helper with all
/// of them open.
pub fn cell(lab: &Lab, programs: &Programs, guest: &Guest, seconds: u32) -> Result<Cell, Failure> {
    let most = allowed()?;
    guest.net(lab).sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    let program = lab.agent.to_string_lossy().into_owned();
    let words = ["agent", "crowd-serve"];
    let _servers = lab.serve(&lab.ext, &program, &words, *PASSING.end(), "crowd.log")?;
    let mut client = Client::start(lab, guest)?;
    let mut rates: Vec<Figure> = Vec::new();
    let last = (most, if most == MOST { "100k" } else { "most" });
    for (count, name) in STEPS.into_iter().filter(|(count, _)| *count < most).chain([last]) {
        let open = client.obey(&format!("open {count}"))?;
        if open != count {
            return Err(Failure(format!("{open} connections are open instead of {count}")));
        }
        let rate = client.obey(&format!("pass {seconds}"))?;
        rates.push((format!("/rate-{name}"), rate as f64));
    }
    let mut figures = workloads::while_idle(lab, guest, seconds);
    if most < MOST {
        if let Some((row, resident)) = figures.iter_mut().find(|(row, _)| row == "/rss") {
            (*row, *resident) = ("/each".into(), *resident * 1e6 / most as f64);
        }
        figures.push(("/count".into(), most as f64));
    }
    if guest.contender == Contender::Tapway {
        let known = known_to_tapway(lab, programs, guest)?;
        if known < most {
            return Err(Failure(format!("tapway knows of {known} connections only")));
        }
    }
    let alive = client.obey("alive")?;
    if alive != most {
        return Err(Failure(format!("only {alive} of {most} connections stayed open")));
    }
    figures.extend(rates);
    // One byte of greeting for each of those that stayed.
    Ok(Cell { figures, received: most as u64, ..Cell::default() })
}

/// How many connections are to be open in the end: 100,000, or the thousands that the limit of open
/// files allows. A helper may keep a part of it for other things; tapway keeps a fifth, and all are
/// asked for the same number.
fn allowed() -> Result<usize, Failure> {
    let limit = usize::try_from(descriptors()?).unwrap_or(usize::MAX);
    let possible = Limits::default().with_descriptors(limit).tcp_flows;
    Ok(MOST.min(possible.saturating_sub(SPARE) / 1000 * 1000))
}

/// How many TCP connections the only instance in the host's namespace has open, as it says.
fn known_to_tapway(lab: &Lab, programs: &Programs, guest: &Guest) -> Result<usize, Failure> {
    let program = &programs.get(Contender::Tapway)?.runs;
    let mut stats = lab.as_user(&guest.host(lab).net, program);
    let text = output_of(stats.args(["stats", "--json"]))?;
    let stats: Value =
        serde_json::from_str(&text).map_err(|e| Failure::because("tapway's statistics", e))?;
    let open = stats.pointer("/tcp/open").and_then(Value::as_u64);
    open.map(|open| open as usize).ok_or_else(|| Failure("tapway counts no connections".into()))
}
