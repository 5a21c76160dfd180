//! The commands that speak to running instances: `ps`, `port`, `flows`, `stats`.
//!
//! Each command's grammar, its help and what it prints stand together in one file. They ask by
//! [`crate::control::api`] and print [`crate::observe`]'s records: as JSON exactly, as text for
//! people, with rounded numbers. Unlike the rest of [`super`], they use the system: sockets, the
//! terminal, and the locks of names that are held no more.

mod flows;
mod instances;
mod port;
mod prometheus;
mod ps;
mod stats;
mod table;

use std::io::{self, Write};

use clap::Subcommand;

use crate::control::api::ClientError;

pub use flows::FlowsArguments;
pub use instances::{Instances, SelectError};
pub use port::PortArguments;
pub use ps::PsArguments;
pub use stats::StatsArguments;

/// A command for running instances.
#[derive(Clone, Debug, Subcommand)]
pub enum Show {
    /// List your running instances
    #[command(long_about = ps::ABOUT)]
    Ps(PsArguments),
    /// Add, remove and list published ports of a running instance
    #[command(long_about = port::ABOUT)]
    Port(PortArguments),
    /// List the connections of a running instance
    #[command(long_about = flows::ABOUT)]
    Flows(FlowsArguments),
    /// Print the counters of a running instance
    #[command(long_about = stats::ABOUT)]
    Stats(StatsArguments),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// Which instance is meant.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The instance could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A port to be added that is none.
    #[error("{0}")]
    Spec(String),
    /// Standard output.
    #[error("write to standard output")]
    Output(#[source] io::Error),
    /// An answer that cannot be written as JSON.
    #[error("write JSON")]
    Json(#[source] serde_json::Error),
}

impl ShowError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ShowError::Select(error) => Some(error.hint().to_owned()),
            ShowError::Client(error) => error.hint(),
            ShowError::Spec(_) => Some("`tapway port add --help` has examples".to_owned()),
            ShowError::Output(_) | ShowError::Json(_) => None,
        }
    }
}

/// Performs `command` among `instances`, prints to `out`, and gives the exit status. A reader that
/// has had enough (`| head`) ends it without an error.
///
/// # Errors
/// [`ShowError`]; what has been printed until then stands.
pub fn run(command: &Show, instances: &Instances, out: &mut dyn Write) -> Result<u8, ShowError> {
    let done = match command {
        Show::Ps(arguments) => ps::run(arguments, instances, out),
        Show::Port(arguments) => port::run(arguments, instances, out),
        Show::Flows(arguments) => flows::run(arguments, instances, out),
        Show::Stats(arguments) => stats::run(arguments, instances, out),
    };
    match done.and_then(|()| out.flush().map_err(ShowError::Output)) {
        Err(ShowError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(error),
        Ok(()) => Ok(0),
    }
}

/// Prints `text` as it is.
fn print(out: &mut dyn Write, text: &str) -> Result<(), ShowError> {
    out.write_all(text.as_bytes()).map_err(ShowError::Output)
}

/// Prints one line of JSON.
fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), ShowError> {
    let line = serde_json::to_string(value).map_err(ShowError::Json)?;
    print(out, &line)?;
    print(out, "\n")
}
