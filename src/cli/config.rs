//! What a command line means: the options of each room, with nothing left to check.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use crate::engine::host::Outbound;
use crate::gate::forward::{AutoForward, Exposure, Forward, Inner};
use crate::gate::{AddressPlan, PublishPath};
use crate::setup::attach::AttachOptions;
use crate::setup::listen::Opener;
use crate::setup::machine::MachineOptions;
use crate::setup::run::Isolation;
use crate::setup::{
    Conduct, Identity, IfName, InstanceName, LinkOptions, LinkSetup, LogForm, PrivateFiles, Wanted,
};

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is to be done.
    pub action: Action,
    /// Who is who on the guest link.
    pub plan: AddressPlan,
    /// The name of the guest's interface.
    pub ifname: IfName,
    /// How much of that interface is set up.
    pub link_setup: LinkSetup,
    /// Where names are resolved.
    pub dns: DnsOptions,
    /// Where host sockets send from.
    pub outbound: Outbound,
    /// Which ports lead from one side to the other.
    pub forwards: ForwardOptions,
    /// Which way those lead that are published for TCP.
    pub publish_path: PublishPath,
    /// Workers, each with a queue of the TAP.
    pub threads: Threads,
    /// Where pesto finds the instance.
    pub pesto_socket: Option<PathBuf>,
    /// The capture file.
    pub pcap: Option<PathBuf>,
    /// The log.
    pub log: LogOptions,
    /// The name of the instance.
    pub name: InstanceName,
    /// How it behaves towards who calls.
    pub conduct: Conduct,
    /// Who calls.
    pub identity: Identity,
}

/// How many workers there are, as load asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// At least so many; one or more.
    pub least: usize,
    /// At most so many.
    pub most: usize,
}

/// The most workers of an instance that was not told how many: what a guest gains beyond them, its
/// peers on the same machine lose.
const MOST_UNASKED: usize = 8;

impl Threads {
    /// As load asks, up to half of the processors: the guest and its peers need the others.
    pub fn auto() -> Threads {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Threads { least: 1, most: (processors / 2).clamp(1, MOST_UNASKED) }
    }
}

impl Config {
    /// The part of the set-up that concerns the guest's interface.
    pub fn link(&self) -> LinkOptions {
        LinkOptions {
            ifname: self.ifname.clone(),
            plan: self.plan.clone(),
            queues: self.threads.most,
            setup: self.link_setup.clone(),
            inside: self.wanted_inside(),
        }
    }

    /// Whether ports of the guest's loopback lead to the host's, or may while it runs.
    pub fn leads_ports(&self) -> bool {
        // Where they can, pesto may ask for one at any time.
        let asked = self.pesto_socket.is_some() && self.plan.sharing.is_some();
        asked || self.forwards.leads_outside() || self.plan.splices()
    }

    /// Which sockets of the guest's namespace may be wanted while it runs.
    fn wanted_inside(&self) -> Wanted {
        // Where ports can be published while it runs, the first may come at any time.
        let publishes = self.forwards.publishes()
            || self.conduct.api_socket.is_some()
            || self.pesto_socket.is_some();
        if publishes && self.publish_path.joins() && self.plan.has_link() {
            Wanted::ShortWay
        } else if self.leads_ports() {
            Wanted::Sockets
        } else {
            Wanted::Nothing
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a command in new namespaces.
    Run {
        /// The command and its arguments; at least one.
        command: Vec<OsString>,
        /// Keep the caller's own ids inside.
        own_ids: bool,
        /// The guest's `resolv.conf` and `hosts`; `None` leaves the host's in place.
        files: Option<PrivateFiles>,
        /// What else it has for itself.
        isolation: Isolation,
    },
    /// Serve an existing namespace.
    Attach(AttachOptions),
    /// Serve a virtual machine.
    Serve(MachineOptions),
}

/// Options of the DNS forwarder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsOptions {
    /// The resolvers to ask; `None` follows the host's `/etc/resolv.conf`.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Whether there is a forwarder.
    pub enabled: bool,
    /// Names that the forwarder answers by itself: those of the guest's `hosts` that are ours.
    pub local_names: Vec<(String, Vec<std::net::IpAddr>)>,
    /// The guest's search domains; `None` follows the host's.
    pub search: Option<Vec<String>>,
}

/// The ports that lead from one side to the other at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardOptions {
    /// How host sockets are opened.
    pub opener: Opener,
    /// Published ports; no two of them overlap.
    pub publish: Vec<Forward>,
    /// Ports that are published as far as they are free.
    pub publish_if_free: Vec<Forward>,
    /// What is published as soon as the guest listens; no port is in two of them at one address.
    pub auto_publish: Vec<AutoForward>,
    /// Exposed ports; no two of them overlap.
    pub expose: Vec<Exposure>,
    /// What is exposed as soon as the host listens; no transport is in two of them.
    pub auto_expose: Vec<AutoForward>,
    /// Ports of the guest's loopback that lead to the host's, at once or while the host listens.
    pub inner: Vec<Inner>,
}

impl ForwardOptions {
    /// Whether ports of the guest are open on the host, or follow what listens there.
    pub fn publishes(&self) -> bool {
        let asked = !self.publish.is_empty() || !self.publish_if_free.is_empty();
        asked || !self.auto_publish.is_empty()
    }

    /// Whether something leads from the guest's loopback, for which sockets are made there.
    pub fn leads_outside(&self) -> bool {
        !self.inner.is_empty()
    }
}

/// Options of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// The file; standard error if there is none.
    pub file: Option<PathBuf>,
    /// What it looks like.
    pub form: LogForm,
}
