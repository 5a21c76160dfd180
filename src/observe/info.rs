//! What an instance tells of itself.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// The version of tapway.
    pub version: String,
    /// The version of the control protocol.
    pub protocol: u32,
    /// The guest's addresses.
    pub guest: Vec<IpAddr>,
    /// The gateway's addresses, as the guest sees them.
    pub gateway: Vec<IpAddr>,
    /// The addresses of the DNS forwarder.
    pub dns: Vec<IpAddr>,
    /// MTU of the guest's interface.
    pub mtu: u32,
    /// Name of the guest's interface.
    pub ifname: String,
    /// The network namespace: a path, or a process' `/proc/PID/ns/net`.
    pub namespace: String,
    /// The guest's command and its arguments; empty for an attached namespace.
    pub command: Vec<String>,
    /// When it started: seconds since the Unix epoch.
    pub started: u64,
    /// Time since it started.
    #[serde(rename = "uptime_ms", with = "super::millis")]
    pub uptime: Duration,
    /// Number of published and exposed ports, ranges counted once.
    pub ports: usize,
}
