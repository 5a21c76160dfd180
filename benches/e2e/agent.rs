//! What the benchmark runs *inside* the namespaces: small programs behind `e2e agent NAME ARGS`.
//!
//! They are this same executable, so that the lab needs no interpreter and the client of the
//! idle-connection workload is the same for every contender. Each prints its answer on stdout;
//! those that wait do so until their stdin ends.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tapway::sys::clock;

use crate::base::{Failure, output_of, pause};
use crate::crowd;
use crate::datagrams::{self, Plan};
use crate::quic;
use crate::wan::{load, stage};

/// Runs the agent that `args` name; the returned text is its answer.
pub fn run(args: &[String]) -> Result<String, Failure> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["sit"] => sit(),
        ["whoami", port] => whoami(number(port)?),
        ["probe", server, seconds] => probe(address(server)?, number(seconds)?),
        ["hold", port] => hold(number(port)?),
        ["connect", server, count, seconds] => {
            connect(address(server)?, number(count)?, number(seconds)?)
        }
        ["publish", socket, first, last] => publish(socket, number(first)?, number(last)?),
        ["crowd-serve"] => crowd::serve(),
        ["crowd", server] => crowd::client(
            server.parse().map_err(|e| Failure::because(format_args!("{server}"), e))?,
        ),
        ["datagrams", port] => datagrams::serve(number(port)?),
        ["datagrams", server, plan @ ..] => datagrams::client(address(server)?, Plan::parse(plan)?),
        ["flood", end] => load::flood(end),
        ["gauge", end, warm_up, time] => {
            let [warm_up, time] = [number(warm_up)?, number(time)?].map(Duration::from_nanos);
            load::gauge(end, warm_up, time)
        }
        ["stage", near, near_name, far, far_name] => {
            stage::run((number(near)?, near_name), (number(far)?, far_name))
        }
        ["quic", port] => quic::serve(number(port)?),
        ["quic", server, way @ ("up" | "down"), seconds] => {
            quic::client(address(server)?, *way == "up", number(seconds)?)
        }
        ["stamp"] => Ok(clock::now().as_nanos().to_string()),
        ["launch", count, command @ ..] => launch(number(count)?, command),
        _ => Err(Failure(format!("unknown agent: {}", words.join(" ")))),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, Failure> {
    word.parse().map_err(|_| Failure(format!("not a number in range: {word}")))
}

fn address(word: &str) -> Result<SocketAddr, Failure> {
    word.parse().map_err(|_| Failure(format!("not ADDRESS:PORT: {word}")))
}

/// Tells the parent, through the pipe, that this program has come to a certain point.
pub fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| Failure::because("answer", e))
}

/// Keeps its network namespace alive, and says which one it is: `net:[INODE]`.
fn sit() -> Result<String, Failure> {
    let namespace = std::fs::read_link("/proc/self/ns/net")
        .map_err(|e| Failure::because("look at my network namespace", e))?;
    say(&namespace.to_string_lossy())?;
    // The end of stdin is the sign to go; an error is as good a reason.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(String::new())
}

/// Listens on TCP `port` of both families.
pub fn listen(port: u16) -> Result<TcpListener, Failure> {
    // One socket for both families: the lab's namespaces keep `bindv6only` at 0.
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .map_err(|e| Failure::because(format_args!("listen on port {port}"), e))
}

/// Tells each client that asks the address that its connection comes from.
///
/// The client speaks first: on a published port, some versions of pasta (Debian 12's is one) leave
/// the guest's side of the connection half open until it does.
fn whoami(port: u16) -> Result<String, Failure> {
    for client in listen(port)?.incoming().flatten() {
        // A client that went away has no use for the answer.
        let _ = tell_peer(&client);
    }
    Ok(String::new())
}

fn tell_peer(mut client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(ANSWER_TIME))?;
    client.read_exact(&mut [0; QUESTION.len()])?;
    writeln!(client, "{}", client.peer_addr()?.ip().to_canonical())
}

/// What a client of `whoami` says.
const QUESTION: &[u8] = b"whoami\n";

/// How long either of them waits for the other.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Asks `whoami` until it answers, at most for `seconds`: the network may still be in the making.
fn probe(server: SocketAddr, seconds: u64) -> Result<String, Failure> {
    let start = clock::now();
    let mut last = String::new();
    while clock::now().since(start) < Duration::from_secs(seconds) {
        match ask(server) {
            Ok(answer) if !answer.is_empty() => return Ok(answer.trim().to_owned()),
            Ok(_) => last = "the connection was closed without an answer".into(),
            Err(e) => last = e.to_string(),
        }
        pause(Duration::from_millis(10));
    }
    Err(Failure(format!("no connection to {server} within {seconds} s: {last}")))
}

fn ask(server: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER_TIME)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.write_all(QUESTION)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Accepts, greets with one byte, and keeps every connection until the process is ended.
fn hold(port: u16) -> Result<String, Failure> {
    let mut kept = Vec::new();
    for client in listen(port)?.incoming().flatten() {
        if (&client).write_all(b".").is_ok() {
            kept.push(client);
        }
    }
    Ok(String::new())
}

/// Opens `count` connections within `seconds`, each proved end to end by the server's greeting,
/// says so, and on the next line of stdin tells how many of them are still open.
fn connect(server: SocketAddr, count: usize, seconds: u64) -> Result<String, Failure> {
    let start = clock::now();
    let mut open = Vec::with_capacity(count);
    for n in 0..count {
        if clock::now().since(start) >= Duration::from_secs(seconds) {
            return Err(Failure(format!("only {n} of {count} connections open after {seconds} s")));
        }
        let one = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.read_exact(&mut [0])?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        open.push(one().map_err(|e| {
            Failure::because(format_args!("with {n} connections open, one more"), e)
        })?);
    }
    say("open")?;
    let mut go = String::new();
    io::stdin().lock().read_line(&mut go).map_err(|e| Failure::because("wait", e))?;
    let is_open = |mut stream: &TcpStream| {
        stream.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    };
    Ok(open.iter().filter(|stream| is_open(stream)).count().to_string())
}

/// Publishes the TCP ports from `first` to `last` through the control socket of a helper, as
/// slirp4netns's clients ask for it; per port, one line with the nanoseconds from the connection to
/// the end of the answer.
fn publish(socket: &str, first: u16, last: u16) -> Result<String, Failure> {
    let mut lines = Vec::new();
    for port in first..=last {
        let arguments = json!({ "proto": "tcp", "host_addr": "0.0.0.0", "host_port": port,
                                "guest_addr": "", "guest_port": port });
        let question = json!({ "execute": "add_hostfwd", "arguments": arguments }).to_string();
        let start = clock::now();
        let answer = request(socket, &question)
            .map_err(|e| Failure::because(format_args!("publish port {port} at {socket}"), e))?;
        let took = clock::now().since(start).as_nanos();
        let answered: Option<Value> = serde_json::from_str(&answer).ok();
        if answered.is_none_or(|value| value.pointer("/return/id").is_none()) {
            return Err(Failure::because(format_args!("publish port {port}"), answer.trim()));
        }
        lines.push(took.to_string());
    }
    Ok(lines.join("\n"))
}

/// One request, one answer, one connection.
fn request(socket: &str, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Runs `command` (which ends in `agent stamp`) `count` times; per run, one line with the
/// nanoseconds from the start to the stamp and from the start to the end.
///
/// It is run as the unprivileged user, so that the way there is not part of the measurement.
fn launch(count: usize, command: &[&str]) -> Result<String, Failure> {
    let (program, args) =
        command.split_first().ok_or_else(|| Failure("launch what command?".into()))?;
    let mut lines = Vec::with_capacity(count);
    for _ in 0..count {
        let start = clock::now();
        let answer = output_of(Command::new(program).args(args).stderr(Stdio::piped()))?;
        let total = clock::now().since(start).as_nanos();
        let stamp: u64 = number(answer.trim())?;
        lines.push(format!("{} {total}", stamp.saturating_sub(start.as_nanos())));
    }
    Ok(lines.join("\n"))
}
