//! The load on a path: one end floods, the other gauges what arrives.
//!
//! Not iperf3: it talks over the same path before and after, ten round trips, and leaves out a
//! beginning only in whole seconds; a grid of a hundred paths would take hours. What is sent is
//! what iperf3 sends, blocks of 128 KiB.
//!
//! The beginning is left out, because in it the figure is that of slow start: on a path of 300 ms
//! it takes seconds until the window is open, in which the bytes double with each round trip. The
//! rate of the first seconds, or the time for a number of bytes, would say whether a helper answers
//! a SYN some milliseconds later, magnified, and not what it carries; the latency of opening is in
//! other rows of the table.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tapway::sys::clock;

use crate::base::Failure;

/// Bytes of one write, and room for one read.
const BLOCK: usize = 128 << 10;

/// How a gauge or a flood comes by its connection: the first that a port accepts, or one to a
/// server.
fn connection(end: &str) -> Result<TcpStream, Failure> {
    let made = match (end.parse::<u16>(), end.parse::<SocketAddr>()) {
        (Ok(port), _) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .and_then(|listener| listener.accept())
            .map(|(stream, _)| stream),
        (_, Ok(server)) => TcpStream::connect(server),
        _ => return Err(Failure(format!("neither a port nor ADDRESS:PORT: {end}"))),
    };
    made.map_err(|e| Failure::because(format_args!("connect ({end})"), e))
}

/// Sends as fast as it goes until the other end is gone.
pub fn flood(end: &str) -> Result<String, Failure> {
    let mut stream = connection(end)?;
    let block = vec![0x5a; BLOCK];
    while stream.write_all(&block).is_ok() {}
    Ok(String::new())
}

/// Counts the bytes that arrive within `time` after `warm_up`, and closes with a reset: what is
/// still under way is of no use to anybody.
pub fn gauge(end: &str, warm_up: Duration, time: Duration) -> Result<String, Failure> {
    /// A path that is stalled must not keep the gauge from ending in time.
    const LOOK: Duration = Duration::from_millis(20);
    let mut stream = connection(end)?;
    let failed = |e| Failure::because("read", e);
    stream.set_read_timeout(Some(LOOK)).map_err(failed)?;
    let mut block = vec![0; BLOCK];
    let from = clock::now() + warm_up;
    let to = from + time;
    let mut bytes = 0;
    loop {
        let count = match stream.read(&mut block) {
            Ok(0) => return Err(Failure("the flood ended early".into())),
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(e) => return Err(failed(e)),
        };
        let now = clock::now();
        if now >= to {
            return Ok(bytes.to_string());
        }
        if now >= from {
            bytes += count;
        }
    }
}
