//! Everything before the first packet: namespaces, ids, the TAP and its addresses, the guest's
//! files, and at the end the loss of every privilege.
//!
//! ```text
//!   tapway (the user's, host namespaces)          child (new or joined namespaces)
//!     HostFacts::gather, options resolved
//!     run::start | attach::start ---- fork ------->  unshare | setns
//!     uid_map, gid_map  <-- "user namespace made" -  TAP, lo, addresses, routes
//!                       --- "ids mapped" --------->  resolv.conf, hosts
//!                       <-- TAP queues, files -----  (attach: exits here)
//!     engine starts; seal()
//!     Started::release  --- "go" ----------------->  execve(COMMAND)
//! ```
//!
//! The fork comes before any thread. Of the two processes only the child enters namespaces of the
//! guest; what it makes there it hands back as open descriptors, each close-on-exec. Whatever fails
//! on either side ends as one [`SetupError`] in the parent, with the child gone.
#![forbid(unsafe_code)]

pub mod attach;
mod conduct;
pub mod daemon;
pub mod doctor;
mod drops;
mod enclose;
mod facts;
mod files;
mod hints;
mod idmap;
pub mod inside;
mod instance;
mod journal;
mod link;
pub mod listen;
mod log;
pub mod machine;
mod message;
mod netlink;
mod refuse;
pub mod run;
mod seal;
mod short_way;
mod tap;
mod template;

pub use conduct::{Conduct, Keeps, Listed, LivesFor, Sees};
pub use drops::tap_drops;
pub use facts::{HostFacts, Outward, ephemeral_ports, search_domains};
pub use files::{HOST_NAMES, HostEntry, PrivateFiles, hosts, resolv_conf};
pub use idmap::{IdRange, Identity};
pub use instance::{InstanceName, NameLock, ParseInstanceNameError, open_output, probe_outbound};
pub use journal::Journal;
pub use link::{CopiedLink, LinkOptions, LinkSetup, Wanted};
pub use log::{LogForm, start_log};
pub use refuse::refuse_dangerous_calls;
pub use seal::{raise_descriptor_limit, seal};
pub use tap::{
    IfName, MAX_QUEUES, ParseIfNameError, TUN_DEVICE, Tap, TapError, TapFeatures, VNET_HEADER_LEN,
};
pub use template::{CopiedAddress, CopiedRoute, Template, Templates, templates};

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A system call on our side.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The child could not set up its side; its own words.
    #[error("{message}")]
    Guest {
        /// The child's chain of errors in one line.
        message: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// The child died without a word.
    #[error("the process that sets up the guest died ({0})")]
    ChildDied(String),
    /// The command does not exist.
    #[error("command not found: {}", .0.display())]
    CommandNotFound(OsString),
    /// The command is a script of an interpreter that does not exist.
    #[error("cannot execute {}: the interpreter that it names does not exist", .0.display())]
    NoInterpreter(OsString),
    /// The command exists and `execve` refuses it.
    #[error("cannot execute {}", .command.display())]
    NotExecutable {
        /// As typed.
        command: OsString,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another instance of this user has the name.
    #[error("an instance named {0} is already running")]
    NameInUse(InstanceName),
    /// A file to be written cannot be.
    #[error("open the {kind} {}", .path.display())]
    Output {
        /// Which of our outputs: "log file", "capture file".
        kind: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An address given for outbound traffic is not the host's.
    #[error("the host cannot send from {address}")]
    OutboundAddress {
        /// The address.
        address: IpAddr,
        /// Why binding to it failed.
        #[source]
        source: io::Error,
    },
    /// A published port.
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    /// A port of the guest's loopback.
    #[error(transparent)]
    Inner(#[from] inside::InnerError),
    /// The socket of a virtual machine.
    #[error(transparent)]
    Machine(#[from] machine::MachineError),
    /// The target of `attach`.
    #[error(transparent)]
    Target(#[from] attach::TargetError),
}

impl SetupError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            SetupError::Guest { hint, .. } => hint.clone(),
            SetupError::NameInUse(_) => Some("choose another with --name".to_owned()),
            SetupError::OutboundAddress { .. } => {
                Some("`ip address` lists the addresses that it has".to_owned())
            }
            SetupError::Listen(e) => e.hint(),
            SetupError::Target(e) => e.hint(),
            _ => None,
        }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
