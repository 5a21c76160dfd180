//! `tapway`: argv to Config, Config to a guest, and then its life.

#[path = "main/instance.rs"]
mod instance;
#[path = "main/pasta.rs"]
mod pasta;
#[path = "main/slirp4netns.rs"]
mod slirp4netns;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use tapway::cli::complete;
use tapway::cli::native::{self, Invocation, exit};
use tapway::cli::pasta::{Mode, PastaError};
use tapway::cli::personality::{self, Called, Personality};
use tapway::cli::pesto;
use tapway::cli::show::{self, Instances, ShowError};
use tapway::cli::{self, Draft};
use tapway::control::BindError;
use tapway::gate::forward::Forward;
use tapway::setup::listen::{self, AtStart, Handed};
use tapway::setup::{self, HostFacts, SetupError, chain, doctor};

/// Why the program fails.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Usage(#[from] native::UsageError),
    #[error(transparent)]
    Config(#[from] cli::ConfigError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Control(#[from] BindError),
    #[error(transparent)]
    Show(#[from] ShowError),
    #[error(transparent)]
    Pasta(#[from] PastaError),
    /// A published port, in the words of the personality.
    #[error("{0}")]
    Listen(String),
    #[error("{what}")]
    Run {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn main() -> ExitCode {
    let called = match Called::by(std::env::args_os(), std::env::var_os(personality::VARIABLE)) {
        Ok(called) => called,
        Err(error) => return refuse(&error.to_string(), exit::USAGE),
    };
    match called.personality {
        Personality::Native => native_main(called.arguments),
        Personality::Slirp4netns => slirp4netns::main(called),
        Personality::Pasta => pasta::main(Mode::Pasta, called),
        Personality::Passt => pasta::main(Mode::Passt, called),
        Personality::Pesto => {
            let (mut out, mut errors) = (io::stdout().lock(), io::stderr().lock());
            let ephemeral = setup::ephemeral_ports();
            let arguments = called.arguments;
            ExitCode::from(pesto::run(&called.program, arguments, ephemeral, &mut out, &mut errors))
        }
    }
}

/// Ends without having done anything.
fn refuse(why: &str, status: u8) -> ExitCode {
    // With standard error gone there is nowhere left to say so.
    let _ = writeln!(io::stderr(), "tapway: {why}");
    ExitCode::from(status)
}

/// `tapway SUBCOMMAND …`.
fn native_main(arguments: Vec<OsString>) -> ExitCode {
    if let Some(shell) = std::env::var_os(complete::VARIABLE) {
        // The shell has taken what it wanted, or is gone.
        let _ = io::stdout().write_all(&native::complete(&shell, &arguments));
        return ExitCode::SUCCESS;
    }
    let is_run = arguments.first().is_some_and(|verb| verb == "run");
    match perform(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            report(Personality::Native, &failure);
            ExitCode::from(status_of(&failure, is_run))
        }
    }
}

fn perform(arguments: Vec<OsString>) -> Result<u8, Failure> {
    let draft = match native::parse(arguments)? {
        Invocation::Guest(draft) => *draft,
        Invocation::Doctor(options) => {
            let mut out = io::stdout().lock();
            return doctor::run(options, &mut out).map_err(failed("print the report"));
        }
        Invocation::Show(command) => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            return Ok(show::run(&command, &Instances::of_this_user(), &mut out)?);
        }
        Invocation::Print(text) => {
            // A reader that has had enough (`| head`) is not a failure.
            let _ = io::stdout().write_all(text.as_bytes());
            return Ok(0);
        }
    };
    // Before anything is opened that could be taken for one of them.
    let handed = Handed::take().map_err(SetupError::from)?;
    start(draft, handed)
}

/// Makes sense of `draft` on this host and does what it says, to the end; gives the exit status.
fn start(draft: Draft, handed: Handed) -> Result<u8, Failure> {
    let interface = draft.outbound_interface.as_ref().map(setup::IfName::as_str);
    let facts = HostFacts::gather(interface);
    let config = cli::resolve(draft, &facts)?;
    instance::serve(&config, None, |forwards| open_ports(&forwards.publish, handed))
}

/// Opens the published ports and tells those that were picked.
fn open_ports(publish: &[Forward], handed: Handed) -> Result<AtStart, Failure> {
    let ports = listen::open_all(publish, handed).map_err(SetupError::from)?;
    let picked = ports.opened.iter().flat_map(listen::Opened::picked_ports);
    let text: String = picked.map(|line| format!("tapway: {line}\n")).collect();
    // Whoever has closed standard error does not want to know.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(ports)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::Run { what, source }
}

/// The whole chain once, and what to do about it.
fn report(personality: Personality, failure: &Failure) {
    let hint = match failure {
        Failure::Usage(e) => Some(e.hint.clone()),
        Failure::Setup(e) => e.hint(),
        Failure::Show(e) => e.hint(),
        Failure::Config(_)
        | Failure::Control(_)
        | Failure::Pasta(_)
        | Failure::Listen(_)
        | Failure::Run { .. } => None,
    };
    let mut text = format!("{personality}: {}\n", chain(failure));
    if let Some(hint) = hint {
        text.push_str(&format!("{personality}: hint: {hint}\n"));
    }
    // With standard error gone there is nowhere left to say so.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn status_of(failure: &Failure, is_run: bool) -> u8 {
    match failure {
        Failure::Setup(SetupError::CommandNotFound(_)) => exit::NOT_FOUND,
        Failure::Setup(SetupError::NoInterpreter(_) | SetupError::NotExecutable { .. }) => {
            exit::NOT_EXECUTABLE
        }
        Failure::Usage(_) | Failure::Config(_) | Failure::Show(ShowError::Spec(_)) => exit::USAGE,
        _ if is_run => exit::RUN_FAILED,
        _ => exit::FAILED,
    }
}
