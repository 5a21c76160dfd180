//! Ping-pong: how long a small message takes there and back, on an idle path and beside a TCP
//! stream that fills it.
//!
//! Beside a stream, two things add up: the wait for processors, of which the stream takes all that
//! it gets, and the wait in queues in front of the helper and inside it. "bridge" has the first of
//! them as well, so the ratio to it tells the second.

use std::thread;
use std::time::Duration;

use crate::base::{Failure, pause};
use crate::contenders::Guest;
use crate::lab::{Lab, SERVER, Transport};

use super::{Cell, Ends, Way, after, client, tcp};

/// Payload of a message.
const BYTES: u64 = 64;

/// sockperf's own default.
const PORT: u16 = 11_111;

/// How long the stream runs before the first message: past slow start, on a path without delay.
const HEAD_START: Duration = Duration::from_millis(500);

/// How long a message takes one way: the mean, and the 99th percentile.
pub(super) fn alone(
    lab: &Lab,
    guest: &Guest,
    over: Transport,
    seconds: u32,
) -> Result<Cell, Failure> {
    let pings = ping(lab, guest, over, seconds)?;
    let figures = vec![(String::new(), pings.mean), ("/p99".into(), pings.p99)];
    Ok(Cell { figures, sent: pings.bytes, received: pings.bytes, ..Cell::default() })
}

/// The same with one stream from the guest beside it: the median, which says what is usual where
/// the mean says what the worst was, the 99th percentile, and what the stream carried.
pub(super) fn beside_stream(
    lab: &Lab,
    guest: &Guest,
    over: Transport,
    seconds: u32,
) -> Result<Cell, Failure> {
    let (stream, pings) = thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let ends = Ends::outward(lab, guest);
            // It begins before the messages and goes on after them.
            tcp(lab, &ends, Way::Up, 1, seconds + 1)
        });
        pause(HEAD_START);
        let pings = ping(lab, guest, over, seconds);
        let stream = stream.join();
        (stream, pings)
    });
    let stream = stream.map_err(|_| Failure("the stream's thread panicked".into()))?;
    let (stream, pings) = (stream.map_err(|e| Failure::because("the stream", e))?, pings?);
    let rate = stream.figures.first().map_or(f64::NAN, |(_, rate)| *rate);
    let figures =
        vec![(String::new(), pings.median), ("/p99".into(), pings.p99), ("/stream".into(), rate)];
    let (sent, received) = (stream.sent + pings.bytes, stream.received + pings.bytes);
    Ok(Cell { figures, sent, received, ..Cell::default() })
}

/// What sockperf found: halves of round trips, in microseconds.
struct Pings {
    mean: f64,
    median: f64,
    p99: f64,
    /// Payload each way.
    bytes: u64,
}

fn ping(lab: &Lab, guest: &Guest, over: Transport, seconds: u32) -> Result<Pings, Failure> {
    let [ip, port, bytes] = [SERVER.to_string(), PORT.to_string(), BYTES.to_string()];
    let time = seconds.to_string();
    let mut options = vec!["server", "-i", &ip, "-p", &port];
    let mut words = vec!["sockperf", "ping-pong", "-i", &ip, "-p", &port];
    words.extend(["-t", &time, "-m", &bytes]);
    if over == Transport::Tcp {
        options.push("--tcp");
        words.push("--tcp");
    }
    let mut server = lab.serve_over(over, &lab.ext, "sockperf", &options, PORT, "sockperf.log")?;
    let report = client(lab, guest.net(lab), seconds, &words)?;
    // It takes its time to end when it is asked. Should this fail, it is asked.
    let _ = server.child().kill();
    let number = |label: &str| after(&report, label).and_then(|w| w.parse::<f64>().ok());
    let mean = number("avg-latency=").or(number("avg-lat="));
    let median = number("percentile 50.000 =");
    let p99 = number("percentile 99.000 =");
    let messages = after(&report, "ReceivedMessages=")
        .and_then(|w| w.trim_end_matches([';', ']']).parse::<u64>().ok());
    let (Some(mean), Some(median), Some(p99), Some(messages)) = (mean, median, p99, messages)
    else {
        return Err(Failure::because("sockperf's report", report.trim()));
    };
    // After a datagram that was lost, it waits for the answer until its time is over.
    let least = u64::from(seconds) * LEAST_PER_SECOND;
    if messages < least {
        return Err(Failure(format!("only {messages} messages were answered, and then no more")));
    }
    Ok(Pings { mean, median, p99, bytes: messages * BYTES })
}

/// Fewer messages a second than any contender gets through beside a stream.
const LEAST_PER_SECOND: u64 = 200;
