//! A flow as it is listed: what `conntrack -L` and `ss -i` tell of a connection, in one record.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::forward::{ForwardId, Transport};
use crate::stack::tcp::State;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowTransport {
    /// A TCP connection.
    Tcp,
    /// A UDP mapping, or one client of a published UDP port.
    Udp,
    /// An ICMP or ICMPv6 echo identifier; ports are that identifier.
    Icmp,
}

impl From<Transport> for FlowTransport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => FlowTransport::Tcp,
            Transport::Udp => FlowTransport::Udp,
        }
    }
}

impl fmt::Display for FlowTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FlowTransport::Tcp => "tcp",
            FlowTransport::Udp => "udp",
            FlowTransport::Icmp => "icmp",
        })
    }
}

/// Who began a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The guest.
    Outbound,
    /// The host side, through a published port.
    Inbound,
}

/// Which way the bytes of a flow go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowPath {
    /// Over the guest's link.
    Tap,
    /// From a socket of the host to one of the guest's namespace. There are no packets to count.
    Spliced,
}

impl fmt::Display for FlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FlowPath::Tap => "tap",
            FlowPath::Spliced => "spliced",
        })
    }
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// TCP: the guest has asked, the host side has not answered.
    Connecting,
    /// TCP: a client of a published port is there, the guest has not answered.
    SynSent,
    /// TCP (RFC 9293 §3.3.2), seen from our end towards the guest, as are all that follow.
    SynReceived,
    /// TCP: data flows both ways.
    Established,
    /// TCP: the guest has closed its direction.
    CloseWait,
    /// TCP: the host side has closed its direction, which the guest has not acknowledged.
    #[serde(rename = "fin-wait-1")]
    FinWait1,
    /// TCP: the host side has closed its direction.
    #[serde(rename = "fin-wait-2")]
    FinWait2,
    /// TCP: both have closed at once.
    Closing,
    /// TCP: both have closed, the guest first.
    LastAck,
    /// TCP: both have closed, the host side first.
    TimeWait,
    /// TCP: over.
    Closed,
    /// UDP and ICMP: nothing has come back yet.
    Unreplied,
    /// UDP and ICMP: both sides have sent.
    Replied,
}

impl From<State> for FlowState {
    fn from(state: State) -> Self {
        match state {
            State::Connecting => FlowState::Connecting,
            State::SynSent => FlowState::SynSent,
            State::SynReceived => FlowState::SynReceived,
            State::Established => FlowState::Established,
            State::CloseWait => FlowState::CloseWait,
            State::FinWait1 => FlowState::FinWait1,
            State::FinWait2 => FlowState::FinWait2,
            State::Closing => FlowState::Closing,
            State::LastAck => FlowState::LastAck,
            State::TimeWait => FlowState::TimeWait,
            State::Closed => FlowState::Closed,
        }
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FlowState::Connecting => "connecting",
            FlowState::SynSent => "syn-sent",
            FlowState::SynReceived => "syn-received",
            FlowState::Established => "established",
            FlowState::CloseWait => "close-wait",
            FlowState::FinWait1 => "fin-wait-1",
            FlowState::FinWait2 => "fin-wait-2",
            FlowState::Closing => "closing",
            FlowState::LastAck => "last-ack",
            FlowState::TimeWait => "time-wait",
            FlowState::Closed => "closed",
            FlowState::Unreplied => "unreplied",
            FlowState::Replied => "replied",
        })
    }
}

/// What has gone each way: payload bytes, and the packets that carried them on the guest link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// From the guest to the host.
    pub bytes_to_host: u64,
    /// From the guest to the host.
    pub packets_to_host: u64,
    /// From the host to the guest.
    pub bytes_to_guest: u64,
    /// From the host to the guest.
    pub packets_to_guest: u64,
}

impl Traffic {
    /// Counts one packet from the guest with `bytes` of payload.
    pub fn count_to_host(&mut self, bytes: usize) {
        self.count_several_to_host(1, bytes);
    }

    /// Counts so many packets from the guest with `bytes` of payload in all.
    pub fn count_several_to_host(&mut self, packets: usize, bytes: usize) {
        self.bytes_to_host += bytes as u64;
        self.packets_to_host += packets as u64;
    }

    /// Counts one packet to the guest with `bytes` of payload.
    pub fn count_to_guest(&mut self, bytes: usize) {
        self.count_several_to_guest(1, bytes);
    }

    /// Counts so many packets to the guest with `bytes` of payload in all.
    pub fn count_several_to_guest(&mut self, packets: usize, bytes: usize) {
        self.bytes_to_guest += bytes as u64;
        self.packets_to_guest += packets as u64;
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.bytes_to_host += more.bytes_to_host;
        self.packets_to_host += more.packets_to_host;
        self.bytes_to_guest += more.bytes_to_guest;
        self.packets_to_guest += more.packets_to_guest;
    }
}

/// One flow at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// The number of the flow in its instance: rising in the order of beginning, never used again.
    pub id: u64,
    /// What it carries.
    pub transport: FlowTransport,
    /// Who began it.
    pub direction: Direction,
    /// Which way its bytes go.
    pub path: FlowPath,
    /// How far it is.
    pub state: FlowState,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end, as the guest knows it. Of a UDP mapping with several peers, the one that was
    /// heard from or addressed last.
    pub peer: SocketAddr,
    /// Our end of the host socket; `None` while it has none (TCP), or for a Unix socket.
    pub host_local: Option<SocketAddr>,
    /// The far end of the host socket; differs from `peer` where addresses are translated.
    pub host_peer: Option<SocketAddr>,
    /// What has gone each way.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Time since it began.
    #[serde(rename = "age_ms", with = "super::millis")]
    pub age: Duration,
    /// Time since the last packet either way.
    #[serde(rename = "idle_ms", with = "super::millis")]
    pub idle: Duration,
    /// TCP: smoothed round-trip time of the host socket, in microseconds (`tcpi_rtt`).
    pub rtt_us: Option<u32>,
    /// TCP: segments that the host's kernel has sent again (`tcpi_total_retrans`).
    pub retransmits: Option<u32>,
    /// TCP: segments that were sent again to the guest.
    pub retransmits_to_guest: Option<u32>,
    /// The published or exposed port that it came through.
    pub forward: Option<ForwardId>,
    /// The policy rule that admitted it.
    pub rule: Option<String>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn record(id: u64, transport: FlowTransport, peer: &str) -> FlowRecord {
        FlowRecord {
            id,
            transport,
            direction: Direction::Outbound,
            path: FlowPath::Tap,
            state: FlowState::Established,
            guest: "10.0.2.100:40000".parse().unwrap(),
            peer: peer.parse().unwrap(),
            host_local: Some("192.0.2.7:50001".parse().unwrap()),
            host_peer: Some(peer.parse().unwrap()),
            traffic: Traffic {
                bytes_to_host: 1,
                packets_to_host: 2,
                bytes_to_guest: 3,
                packets_to_guest: 4,
            },
            age: Duration::from_micros(1_234_567),
            idle: Duration::from_millis(89),
            rtt_us: Some(250),
            retransmits: Some(0),
            retransmits_to_guest: Some(0),
            forward: Some(ForwardId(5)),
            rule: None,
        }
    }

    #[test]
    fn the_json_is_flat_and_times_are_milliseconds() {
        let record = record(9, FlowTransport::Tcp, "[2001:db8::1]:443");
        let json = serde_json::to_value(&record).unwrap();
        let expected = serde_json::json!({
            "id": 9, "transport": "tcp", "direction": "outbound", "path": "tap", "state": "established",
            "guest": "10.0.2.100:40000", "peer": "[2001:db8::1]:443",
            "host_local": "192.0.2.7:50001", "host_peer": "[2001:db8::1]:443",
            "bytes_to_host": 1, "packets_to_host": 2, "bytes_to_guest": 3, "packets_to_guest": 4,
            "age_ms": 1234, "idle_ms": 89, "rtt_us": 250, "retransmits": 0,
            "retransmits_to_guest": 0, "forward": 5, "rule": null,
        });
        assert_eq!(json, expected);
        let read: FlowRecord = serde_json::from_value(json).unwrap();
        assert_eq!(read.age, Duration::from_millis(1234));
        assert_eq!((read.peer, read.forward), (record.peer, record.forward));
    }

    #[test]
    fn states_are_shown_as_they_are_written_in_json() {
        for state in [
            FlowState::Connecting,
            FlowState::SynSent,
            FlowState::SynReceived,
            FlowState::Established,
            FlowState::CloseWait,
            FlowState::FinWait1,
            FlowState::FinWait2,
            FlowState::Closing,
            FlowState::LastAck,
            FlowState::TimeWait,
            FlowState::Closed,
            FlowState::Unreplied,
            FlowState::Replied,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
    }
}
