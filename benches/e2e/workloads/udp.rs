//! Datagrams by the count, and QUIC, which is made of them. The ends are [`crate::datagrams`] and
//! [`crate::quic`].

use crate::base::Failure;
use crate::contenders::Guest;
use crate::lab::{Lab, SERVER};

use super::{Cell, Way, client};

/// How datagrams are sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// 1400 bytes each, with segmentation offload at both ends.
    Gso,
    /// 1400 bytes each, one by one.
    Plain,
    /// 64 bytes each, one by one: their number counts.
    Small,
}

impl Sending {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gso => "gso",
            Self::Plain => "1400",
            Self::Small => "small",
        }
    }
}

/// TCP and UDP port of the datagram counter.
const DATAGRAMS_PORT: u16 = 7002;

/// Gbit/s of payload that arrived, or millions of datagrams per second where they are small.
pub(super) fn cell(
    lab: &Lab,
    guest: &Guest,
    way: Way,
    sending: Sending,
    seconds: u32,
) -> Result<Cell, Failure> {
    let (size, joined) = match sending {
        Sending::Gso => (1400, 46),
        Sending::Plain => (1400, 1),
        Sending::Small => (64, 1),
    };
    let program = lab.agent.to_string_lossy().into_owned();
    let port = DATAGRAMS_PORT.to_string();
    let options = ["agent", "datagrams", &port];
    let _server = lab.serve(&lab.ext, &program, &options, DATAGRAMS_PORT, "datagrams.log")?;
    let [size_text, joined] = [size, joined].map(|number: u64| number.to_string());
    let (server, time) = (format!("{SERVER}:{port}"), seconds.to_string());
    let words = [&program, "agent", "datagrams", &server, way.name(), &time, &size_text, &joined];
    let [datagrams, nanos] = two_numbers(&client(lab, guest.net(lab), seconds, &words)?)?;
    if nanos < u64::from(seconds) * 1_000_000_000 / 2 {
        return Err(Failure(format!("only {datagrams} datagrams arrived, and then no more")));
    }
    let bytes = datagrams * size;
    let value = match sending {
        Sending::Small => 1e3 * datagrams as f64 / nanos as f64,
        Sending::Gso | Sending::Plain => 8.0 * bytes as f64 / nanos as f64,
    };
    Ok(one_way(way, value, bytes))
}

/// What a counter of this program reports.
fn two_numbers(report: &str) -> Result<[u64; 2], Failure> {
    let numbers: Vec<u64> = report.split_whitespace().map_while(|w| w.parse().ok()).collect();
    <[u64; 2]>::try_from(numbers)
        .map_err(|_| Failure::because("the counter's report", report.trim()))
}

fn one_way(way: Way, value: f64, bytes: u64) -> Cell {
    let figures = vec![(String::new(), value)];
    match way {
        Way::Up => Cell { figures, sent: bytes, ..Cell::default() },
        Way::Down => Cell { figures, received: bytes, ..Cell::default() },
    }
}

/// TCP and UDP port of the QUIC server.
const QUIC_PORT: u16 = 7003;

pub(super) fn quic(lab: &Lab, guest: &Guest, way: Way, seconds: u32) -> Result<Cell, Failure> {
    let program = lab.agent.to_string_lossy().into_owned();
    let port = QUIC_PORT.to_string();
    let _server =
        lab.serve(&lab.ext, &program, &["agent", "quic", &port], QUIC_PORT, "quic.log")?;
    let (server, time) = (format!("{SERVER}:{port}"), seconds.to_string());
    let words = [&program, "agent", "quic", &server, way.name(), &time];
    let [bytes, nanos] = two_numbers(&client(lab, guest.net(lab), seconds, &words)?)?;
    Ok(one_way(way, 8.0 * bytes as f64 / nanos as f64, bytes))
}
