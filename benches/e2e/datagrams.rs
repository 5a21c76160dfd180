//! The two ends of the UDP cells: a program that sends as fast as its kernel lets it, and one that
//! counts what arrives.
//!
//! ```text
//!   client in the guest                         server outside
//!   TCP   "up 3 1400 46"  ───────────────────▶  opens its UDP socket at the same port
//!         ◀───────────────────────────  "ready"
//!   UDP   datagrams ═════════════════════════▶  counts            (down: the other way round,
//!   TCP   "done"          ───────────────────▶                     after a greeting by UDP)
//!         ◀────────────────────  what it counted
//! ```
//! Nothing paces the sender, so what is counted is what the way in between carries when it is
//! offered more: goodput at the receiver. Every datagram has a number, a size and a pattern, and
//! one that is not as it was sent fails the cell. Segmentation offload is quinn's, which is
//! what QUIC programs use; without it one datagram is one `send(2)` and one `recv(2)`.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSliceMut, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use tapway::base::Instant;
use tapway::sys::clock;

use crate::agent::listen;
use crate::base::Failure;

/// What one client asks for.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Whether the client sends.
    pub up: bool,
    pub seconds: u64,
    /// Payload bytes of a datagram: room for its number and more.
    pub size: usize,
    /// Datagrams given to the kernel with one call; 1 is plain sending and receiving.
    pub joined: usize,
}

impl Plan {
    fn line(self) -> String {
        let Plan { up, seconds, size, joined } = self;
        format!("{} {seconds} {size} {joined}\n", if up { "up" } else { "down" })
    }

    /// Reads `up|down SECONDS SIZE JOINED`.
    pub fn parse(words: &[&str]) -> Result<Plan, Failure> {
        let bad = || Failure(format!("not a plan for datagrams: {}", words.join(" ")));
        let [way, seconds, size, joined] = words else { return Err(bad()) };
        let number = |word: &str| word.parse::<usize>().map_err(|_| bad());
        let plan = Plan {
            up: *way == "up",
            seconds: number(seconds)? as u64,
            size: number(size)?,
            joined: number(joined)?,
        };
        let fits = plan.size >= LEAST && plan.joined >= 1 && plan.size * plan.joined <= MOST;
        if fits && matches!(*way, "up" | "down") { Ok(plan) } else { Err(bad()) }
    }
}

/// Bytes of a number and its last byte once more.
const LEAST: usize = 9;

/// The longest UDP payload over IPv4.
const MOST: usize = 65_507;

/// Socket buffers asked for: more than a helper's hiccup.
const BUFFER: usize = 4 << 20;

/// How long nothing must have come before what was sent is taken to be here.
const QUIET: Duration = Duration::from_millis(200);

/// What arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    datagrams: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Tally {
    /// `DATAGRAMS NANOSECONDS`, the latter between the first and the last of them.
    fn line(self) -> String {
        let nanos =
            self.first.zip(self.last).map_or(0, |(first, last)| last.since(first).as_nanos());
        format!("{} {nanos}", self.datagrams)
    }
}

/// Serves one client after the other, at TCP and UDP `port`.
pub fn serve(port: u16) -> Result<String, Failure> {
    for client in listen(port)?.incoming().flatten() {
        if let Err(e) = serve_one(&client, port) {
            eprintln!("{e}");
        }
    }
    Ok(String::new())
}

fn serve_one(control: &TcpStream, port: u16) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::because("talk to the client", e);
    let mut lines = BufReader::new(control);
    let mut line = String::new();
    lines.read_line(&mut line).map_err(failed)?;
    let plan = Plan::parse(&line.split_whitespace().collect::<Vec<_>>())?;
    let socket = open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    let tell = |text: &str| writeln!(&mut &*control, "{text}").map_err(failed);
    tell("ready")?;
    if plan.up {
        let tally = sink(&socket, plan, || {
            line.clear();
            lines.read_line(&mut line)
        })?;
        return tell(&tally.line());
    }
    let mut greeting = [0; LEAST];
    socket.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
    let (_, client) = socket.recv_from(&mut greeting).map_err(failed)?;
    socket.connect(client).map_err(failed)?;
    source(&socket, plan)?;
    tell("done")
}

/// Does what `plan` says with the server at `server`; the answer is a [`Tally`] as a line.
pub fn client(server: SocketAddr, plan: Plan) -> Result<String, Failure> {
    let failed = |e: io::Error| Failure::because(format_args!("talk to {server}"), e);
    let control = TcpStream::connect_timeout(&server, Duration::from_secs(5)).map_err(failed)?;
    control.set_read_timeout(Some(Duration::from_secs(plan.seconds + 10))).map_err(failed)?;
    let mut lines = BufReader::new(&control);
    let mut line = String::new();
    (&control).write_all(plan.line().as_bytes()).map_err(failed)?;
    lines.read_line(&mut line).map_err(failed)?;
    let socket = open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.connect(server).map_err(failed)?;
    if plan.up {
        source(&socket, plan)?;
        (&control).write_all(b"done\n").map_err(failed)?;
        line.clear();
        lines.read_line(&mut line).map_err(failed)?;
        return Ok(line.trim().to_owned());
    }
    // Several, since UDP may lose one; the server takes the first.
    for _ in 0..3 {
        socket.send(&[0; LEAST]).map_err(failed)?;
    }
    let tally = sink(&socket, plan, || {
        line.clear();
        lines.read_line(&mut line)
    })?;
    Ok(tally.line())
}

fn open(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let open = || {
        let socket = UdpSocket::bind(address)?;
        let options = socket2::SockRef::from(&socket);
        options.set_recv_buffer_size(BUFFER)?;
        options.set_send_buffer_size(BUFFER)?;
        Ok(socket)
    };
    open().map_err(|e: io::Error| Failure::because("open a UDP socket", e))
}

/// Sends for the planned time as fast as it goes.
fn source(socket: &UdpSocket, plan: Plan) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::because("send", e);
    let state = UdpSocketState::new(socket.into()).map_err(failed)?;
    let destination = socket.peer_addr().map_err(failed)?;
    if plan.joined == 1 {
        socket.set_nonblocking(false).map_err(failed)?;
    }
    let mut buffer = vec![0xa5; plan.size * plan.joined];
    let mut number = 0u64;
    let start = clock::now();
    while clock::now().since(start) < Duration::from_secs(plan.seconds) {
        for _ in 0..8 {
            for datagram in buffer.chunks_exact_mut(plan.size) {
                datagram[..8].copy_from_slice(&number.to_be_bytes());
                datagram[plan.size - 1] = number.to_be_bytes()[7];
                number += 1;
            }
            let sent = match plan.joined {
                1 => socket.send(&buffer).map(drop),
                _ => state.try_send(
                    socket.into(),
                    &Transmit {
                        destination,
                        ecn: None,
                        contents: &buffer,
                        segment_size: Some(plan.size),
                        src_ip: None,
                    },
                ),
            };
            match sent {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait(socket, PollFlags::POLLOUT);
                }
                // What an earlier datagram met with, such as a full queue on the way.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
    Ok(())
}

/// Counts what arrives until `over` returns and nothing more comes.
fn sink(
    socket: &UdpSocket,
    plan: Plan,
    over: impl FnOnce() -> io::Result<usize> + Send,
) -> Result<Tally, Failure> {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A client that is gone is as good as one that is done.
            let _ = over();
            ended.store(true, Ordering::Relaxed);
        });
        match plan.joined {
            1 => count_plain(socket, plan, &ended),
            _ => count_joined(socket, plan, &ended),
        }
        .map_err(|e| Failure::because("receive", e))
    })
}

fn count_plain(socket: &UdpSocket, plan: Plan, ended: &AtomicBool) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 65_536];
    socket.set_read_timeout(Some(QUIET))?;
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => tally.add(&buffer[..len], plan.size, plan.size)?,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if ended.load(Ordering::Relaxed) {
                    return Ok(tally);
                }
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) => return Err(e),
        }
    }
}

fn count_joined(socket: &UdpSocket, plan: Plan, ended: &AtomicBool) -> io::Result<Tally> {
    const SLOTS: usize = 16;
    let mut tally = Tally::default();
    let state = UdpSocketState::new(socket.into())?;
    let mut memory = vec![0; SLOTS * 65_536];
    loop {
        let mut about = [RecvMeta::default(); SLOTS];
        let received = {
            let mut slots: Vec<IoSliceMut<'_>> =
                memory.chunks_exact_mut(65_536).map(IoSliceMut::new).collect();
            state.recv(socket.into(), &mut slots, &mut about)
        };
        match received {
            Ok(count) => {
                for (meta, bytes) in about[..count].iter().zip(memory.chunks_exact(65_536)) {
                    tally.add(&bytes[..meta.len], meta.stride, plan.size)?;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if !wait(socket, PollFlags::POLLIN) && ended.load(Ordering::Relaxed) {
                    return Ok(tally);
                }
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) => return Err(e),
        }
    }
}

impl Tally {
    /// Counts the datagrams in `bytes`, `stride` bytes each, which should be `size`.
    fn add(&mut self, bytes: &[u8], stride: usize, size: usize) -> io::Result<()> {
        let now = clock::now();
        for datagram in bytes.chunks(stride.max(1)) {
            if datagram.len() != size || datagram[7] != datagram[size - 1] {
                let text = format!("a datagram of {} bytes is not as it was sent", datagram.len());
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            self.datagrams += 1;
        }
        self.first.get_or_insert(now);
        self.last = Some(now);
        Ok(())
    }
}

/// Waits until the socket is ready; false if it is not for as long as [`QUIET`].
fn wait(socket: &UdpSocket, what: PollFlags) -> bool {
    let mut ready = [PollFd::new(socket.as_fd(), what)];
    let patience = PollTimeout::try_from(QUIET).unwrap_or(PollTimeout::NONE);
    // A failure is a time-out that comes early; whoever waits looks again.
    poll(&mut ready, patience).is_ok_and(|count| count > 0)
}
