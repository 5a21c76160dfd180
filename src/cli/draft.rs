//! What was typed, before it means anything.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::publish::{ExposeSpec, PublishSpec};
use super::value::{AddedHost, Cidr, DnsChoice, Switch};
use crate::base::Mac;
use crate::gate::{Habits, PublishPath};
use crate::setup::attach::AttachOptions;
use crate::setup::{Conduct, IfName, InstanceName, LinkSetup};

/// A command line as typed. `None` and empty mean "not said".
#[derive(Clone, Debug)]
pub struct Draft {
    /// What is to be done.
    pub target: DraftTarget,
    /// `--ifname`
    pub ifname: Option<IfName>,
    /// `--mtu`, in bytes
    pub mtu: Option<u16>,
    /// `--mac`
    pub mac: Option<Mac>,
    /// `--ipv4`
    pub ipv4: Option<Switch<Cidr<Ipv4Addr>>>,
    /// `--ipv6`
    pub ipv6: Option<Switch<Cidr<Ipv6Addr>>>,
    /// `--dns`
    pub dns: Vec<DnsChoice>,
    /// `--dns-search`
    pub dns_search: Vec<String>,
    /// `--add-host`
    pub add_host: Vec<AddedHost>,
    /// `--host-loopback`
    pub host_loopback: Vec<Switch<IpAddr>>,
    /// `--outbound-addr`
    pub outbound_addr: Vec<IpAddr>,
    /// `--outbound-interface`
    pub outbound_interface: Option<IfName>,
    /// `--publish`
    pub publish: Vec<PublishSpec>,
    /// `--publish-when-listening`
    pub publish_when_listening: bool,
    /// `--publish-path`
    pub publish_path: PublishPath,
    /// `--expose-host`
    pub expose_host: Vec<ExposeSpec>,
    /// `--name`
    pub name: Option<InstanceName>,
    /// `--threads`
    pub threads: Option<DraftThreads>,
    /// `--pesto-socket`
    pub pesto_socket: Option<PathBuf>,
    /// `--pcap`
    pub pcap: Option<PathBuf>,
    /// `--log-level`
    pub log_level: Option<LevelFilter>,
    /// `--log-file`
    pub log_file: Option<PathBuf>,
    /// How the addresses of the gateway behave.
    pub habits: Habits,
    /// How much of the guest's interface is set up.
    pub link_setup: LinkSetup,
    /// Interfaces whose first addresses, of IPv4 and of IPv6, are those to send from.
    pub outbound_from: [Option<IfName>; 2],
    /// Addresses to send from serve towards the host's loopback too.
    pub outbound_to_loopback: bool,
    /// How the instance behaves towards who calls.
    pub conduct: Conduct,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftTarget {
    /// `run`
    Run {
        /// The command; empty means the caller's shell.
        command: Vec<OsString>,
        /// `--map-user`
        map_user: bool,
    },
    /// `attach`
    Attach(AttachOptions),
}

/// A value of `--threads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftThreads {
    /// As many as tapway thinks fit.
    Auto,
    /// This many.
    Count(NonZeroUsize),
}

impl Draft {
    /// A command line without options.
    pub fn new(target: DraftTarget) -> Draft {
        Draft {
            target,
            ifname: None,
            mtu: None,
            mac: None,
            ipv4: None,
            ipv6: None,
            dns: Vec::new(),
            dns_search: Vec::new(),
            add_host: Vec::new(),
            host_loopback: Vec::new(),
            outbound_addr: Vec::new(),
            outbound_interface: None,
            publish: Vec::new(),
            publish_when_listening: false,
            publish_path: PublishPath::Tap,
            expose_host: Vec::new(),
            name: None,
            threads: None,
            pesto_socket: None,
            pcap: None,
            log_level: None,
            log_file: None,
            habits: Habits::default(),
            link_setup: LinkSetup::default(),
            outbound_from: [None, None],
            outbound_to_loopback: false,
            conduct: Conduct::default(),
        }
    }
}
