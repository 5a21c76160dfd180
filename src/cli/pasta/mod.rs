//! pasta's command line: what podman, buildah and rootlesskit spawn under that name.
//!
//! ```text
//!   pasta [OPTIONS] [COMMAND …]        in new namespaces, whose status is pasta's
//!   pasta [OPTIONS] PID                in those of a process
//!   pasta [OPTIONS] --netns PATH|NAME  in this network namespace
//! ```
//! A guest of pasta's has its host's addresses and routes: [`crate::gate::Sharing`].
//!
//! Read as pasta of 2026-07 reads it. Departs:
//!
//! - Resolvers are followed when they change, where pasta reads them once.
//! - A published port that is reached over the link shows the guest its client's address. Clients
//!   on the host's loopback are joined to the guest socket to socket ([`crate::gate::Splicing`]),
//!   to its own address as it was given, not as it was last seen.
//! - Several ways of one route become the first: all go by way of us.
//! - A host without a way out over IPv6 gives no IPv6, where pasta gives the link alone.
//! - A command ends with pasta, by SIGKILL, where pasta leaves it behind.
//! - `--stats` has tapway's own counters.
//! - A pid file that was not written is removed, where pasta leaves it empty.
//!
//! Not there, and refused by name: `--fd`. passt's own mode is in [`passt`].

mod command;
mod options;
pub mod passt;
mod ports;
mod resolve;

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::cli::getopt::GetoptError;
use crate::cli::table_spec::ChangeError;
use crate::gate::table::TableRule;

pub use passt::Mode;
pub use resolve::PastaFacts;

use crate::cli::Config;
use crate::setup::machine::{Door, MachineOptions};

/// A command line that is none, or that this host cannot serve, in pasta's words where engines
/// know them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PastaError {
    /// Not by the table of options. The usage follows it.
    #[error(transparent)]
    Getopt(#[from] GetoptError),
    /// A value that cannot be.
    #[error("Invalid {what}: {value}")]
    Value {
        /// What it should be.
        what: &'static str,
        /// As typed.
        value: String,
    },
    /// A second value of a family.
    #[error("Redundant {0}: there is one for this family already")]
    Twice(&'static str),
    /// Two options that exclude each other.
    #[error("{0} and {1} are mutually exclusive")]
    Exclusive(&'static str, &'static str),
    /// The same, of options that say where bytes go, in other words of pasta's.
    #[error("{0} is incompatible with {1}")]
    Incompatible(&'static str, &'static str),
    /// An option without the one that it needs.
    #[error("{0} needs {1}")]
    Needs(&'static str, &'static str),
    /// `--netns` and a command or process.
    #[error("Both --netns and PID or command given")]
    NetnsAndWords,
    /// An option of a virtual machine's network.
    #[error("{0} is for passt mode only")]
    PasstOnly(&'static str),
    /// An option of a namespace's network.
    #[error("{0} is for pasta mode only")]
    PastaOnly(&'static str),
    /// A word where there is none.
    #[error("Extra non-option argument: {0}")]
    Extra(String),
    /// An option that this version does not have.
    #[error("{0} is not supported by this version of tapway")]
    Unsupported(&'static str),
    /// A specification of ports, or two that want the same one.
    #[error(transparent)]
    Ports(#[from] ChangeError),
    /// A target in the networks of the guest that is not the guest's.
    #[error("Invalid rule {0}: the guest cannot have this address")]
    Unreachable(Box<TableRule>),
    /// No such interface.
    #[error("Invalid interface name {0}: No such device")]
    Interface(String),
    /// An interface without the family that it was named for.
    #[error("Interface {interface} has no usable {family} address")]
    Unusable {
        /// The interface.
        interface: String,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// The host gave no random bytes for a MAC address.
    #[error("No random numbers for a MAC address: give one with --ns-mac-addr")]
    NoRandomness,
    /// `--runas` names nobody, or the caller may not become them.
    #[error("Invalid user or group {0}")]
    RunAs(String),
}

impl PastaError {
    fn value(what: &'static str, value: &str) -> PastaError {
        PastaError::Value { what, value: value.to_owned() }
    }

    /// Whether the usage is to follow the message.
    pub fn wants_usage(&self) -> bool {
        matches!(self, PastaError::Getopt(_))
    }
}

/// What the caller wants.
pub enum Invocation {
    /// A text for standard output.
    Print(String),
    /// A network.
    Serve(Asked),
}

/// A network as asked for, before anybody has looked at the host.
pub struct Asked(Box<command::Command>);

/// How the process is to behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// It runs a command.
    pub runs: bool,
    /// It stays in the foreground.
    pub foreground: bool,
    /// The user and group to become, from root.
    pub run_as: Option<String>,
    /// The descriptor that it is given.
    pub given: Option<RawFd>,
}

/// Reads `arguments`, without the program's name, as the program of `mode` does.
///
/// # Errors
/// The first mistake on the command line.
pub fn parse(
    mode: Mode,
    program: &str,
    arguments: Vec<OsString>,
) -> Result<Invocation, PastaError> {
    Ok(match command::read(mode, arguments)? {
        command::Typed::Help => Invocation::Print(usage(mode, program)),
        command::Typed::Version => Invocation::Print(version(mode)),
        command::Typed::Command(command) => Invocation::Serve(Asked(command)),
    })
}

impl Asked {
    /// The interfaces to look at for a model of the guest's, for IPv4 and IPv6.
    pub fn interfaces(&self) -> (Option<&str>, Option<&str>) {
        let Asked(command) = self;
        let any = command.interface.as_ref();
        let (v4, v6) = (command.outbound_if.v4.as_ref(), command.outbound_if.v6.as_ref());
        (any.or(v4).map(|name| name.as_str()), any.or(v6).map(|name| name.as_str()))
    }

    /// How the process is to behave.
    pub fn process(&self) -> Process {
        let Asked(command) = self;
        let runs = matches!(command.subject, command::Subject::Command(_));
        let given = match &command.subject {
            command::Subject::Machine(MachineOptions { door: Door::Descriptor(fd), .. }) => {
                Some(*fd)
            }
            _ => None,
        };
        let foreground = command.foreground || runs;
        Process { runs, foreground, run_as: command.run_as.clone(), given }
    }

    /// What it means on the host of `facts`.
    ///
    /// # Errors
    /// The first thing found that does not fit.
    pub fn resolve(&self, facts: &PastaFacts) -> Result<Config, PastaError> {
        resolve::resolve(&self.0, facts)
    }
}

/// The text of `--version`.
pub fn version(mode: Mode) -> String {
    let name = mode.name();
    format!(
        "{name} {}\ntapway, standing in for {name}\nLicense: Apache-2.0 OR MIT\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The text of `--help`, as `program` calls itself.
pub fn usage(mode: Mode, program: &str) -> String {
    if mode == Mode::Passt {
        return format!("Usage: {program} [OPTION]...\n{}", include_str!("passt_help.txt"));
    }
    format!(
        "Usage: {program} [OPTION]... [COMMAND] [ARGS]...\n       \
         {program} [OPTION]... PID\n       \
         {program} [OPTION]... --netns [PATH|NAME]\n{}",
        include_str!("help.txt")
    )
}

#[cfg(test)]
mod tests;
