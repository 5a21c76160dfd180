//! tapway as pasta and passt: their command line, the way into the background, words, exit
//! statuses.
//!
//! Ready means that the caller's process has ended with status 0; whatever goes wrong before that
//! is told on its standard error and ends it with status 1.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use tapway::cli::ForwardOptions;
use tapway::cli::pasta::{self, Asked, Invocation, Mode, PastaError, PastaFacts, Process};
use tapway::cli::personality::Called;
use tapway::gate::forward::{Forward, Listen};
use tapway::setup::daemon::{self, Background, Person, Side};
use tapway::setup::listen::{self, AtStart, ListenError};
use tapway::setup::{self, HostFacts, SetupError, chain};
use tapway::sys::inherit;

use super::{Failure, failed, instance};

/// Who serves for root, who is not needed any more once everything is set up.
const NOBODY: &str = "nobody";

/// `pasta …` or `passt …`.
pub(super) fn main(mode: Mode, called: Called) -> ExitCode {
    let program = called.program.to_string_lossy().into_owned();
    match perform(mode, &program, called.arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            let text = match &failure {
                Failure::Pasta(e) if e.wants_usage() => {
                    format!("{program}: {e}\n{}", pasta::usage(mode, &program))
                }
                Failure::Setup(SetupError::Inner(e)) => format!(
                    "Listen failed for SPLICE {} port {}: {}\nCouldn't listen on requested ports\n",
                    e.transport.to_string().to_uppercase(),
                    e.port,
                    without_number(&e.source),
                ),
                failure => format!("{}\n", chain(failure)),
            };
            // With standard error gone there is nowhere left to say so.
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::from(super::exit::FAILED)
        }
    }
}

fn perform(mode: Mode, program: &str, arguments: Vec<OsString>) -> Result<u8, Failure> {
    let asked = match pasta::parse(mode, program, arguments)? {
        Invocation::Serve(asked) => asked,
        Invocation::Print(text) => {
            // A reader that has had enough is not a failure.
            let _ = io::stdout().write_all(text.as_bytes());
            return Ok(0);
        }
    };
    // Callers leave open whatever they had open, and wait for some of it to be closed.
    let process = asked.process();
    inherit::close_all_but_standard(process.given)
        .map_err(failed("close what the caller left open"))?;
    let person = person(&process)?;
    if process.foreground {
        return set_up(asked, person, None);
    }
    match daemon::detach()? {
        Side::Caller(status) => Ok(status),
        Side::Daemon(background) => set_up(asked, person, Some(background)),
    }
}

/// Whom to become once everything is set up.
fn person(process: &Process) -> Result<Option<Person>, Failure> {
    // The namespaces of a command belong to the user who has started it, who is needed to the end.
    if process.runs || !daemon::is_real_root() {
        return Ok(None);
    }
    let name = process.run_as.as_deref().unwrap_or_else(|| {
        let _ = writeln!(io::stderr(), "Started as root, will change to nobody.");
        NOBODY
    });
    let person = Person::find(name).ok_or_else(|| PastaError::RunAs(name.to_owned()))?;
    Ok(Some(person))
}

fn set_up(
    asked: Asked,
    person: Option<Person>,
    background: Option<Background>,
) -> Result<u8, Failure> {
    let config = asked.resolve(&facts(&asked, person)?)?;
    instance::serve(&config, background, open_ports)
}

fn facts(asked: &Asked, person: Option<Person>) -> Result<PastaFacts, Failure> {
    let (v4, v6) = asked.interfaces();
    let templates = setup::templates(v4, v6).map_err(failed("read the host's interfaces"))?;
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolvers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    Ok(PastaFacts {
        host: HostFacts::gather(None),
        hostname: nix::unistd::gethostname().unwrap_or_default(),
        person,
        templates,
        ephemeral: setup::ephemeral_ports(),
        resolvers: resolvers.collect(),
    })
}

/// Opens the ports that have to be there, and of the others those that are free.
fn open_ports(forwards: &ForwardOptions) -> Result<AtStart, Failure> {
    let mut at_start = AtStart::default();
    for forward in &forwards.publish {
        if forward.when_listening {
            at_start.waiting.push((forward.clone(), false));
        } else {
            let opened = listen::open_after_predecessor(forwards.opener, forward);
            at_start.opened.push(opened.map_err(|e| Failure::Listen(refusal(forward, &e)))?);
        }
    }
    for forward in &forwards.publish_if_free {
        if forward.when_listening {
            at_start.waiting.push((forward.clone(), true));
            continue;
        }
        let opened = forwards.opener.open_free(forward);
        at_start.opened.push(opened.map_err(|e| Failure::Listen(refusal(forward, &e)))?);
    }
    Ok(at_start)
}

/// As strerror(3) has it, without the number that the language adds.
fn without_number(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

/// Why a port is not there, in pasta's two lines.
fn refusal(forward: &Forward, error: &ListenError) -> String {
    let (address, first) = match &forward.listen {
        Listen::Ports { address, ports, .. } => (*address, ports.first()),
        Listen::Unix(_) => (None, 0),
    };
    let address = address.map_or_else(|| "*".to_owned(), |address| address.to_string());
    let errno = |code| without_number(&io::Error::from_raw_os_error(code));
    let (port, why) = match error {
        ListenError::InUse { port, .. } => (*port, errno(libc::EADDRINUSE)),
        ListenError::Privileged { port, .. } => (*port, errno(libc::EACCES)),
        ListenError::NoSuchAddress { .. } => (first, errno(libc::EADDRNOTAVAIL)),
        ListenError::NoSuchInterface { .. } => (first, errno(libc::ENODEV)),
        ListenError::NoDescriptor { .. } => (first, errno(libc::EMFILE)),
        other => (first, chain(other)),
    };
    let transport = forward.transport.to_string().to_uppercase();
    format!(
        "Listen failed for HOST {transport} port {address}/{port}: {why}\n\
         Couldn't listen on requested ports"
    )
}
