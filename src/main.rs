//! `tapway`: argv to Config, Config to a guest, and then its life.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::Pid;

use tapway::cli::complete;
use tapway::cli::native::{self, Invocation, exit};
use tapway::cli::personality::{self, Called, Personality};
use tapway::cli::show::{self, Instances, ShowError};
use tapway::cli::slirp4netns;
use tapway::cli::{self, Action, Config, Draft};
use tapway::control::api::{self, Context, Places, Server};
use tapway::control::lifecycle::{Guest, Leash, Outcome, Signals};
use tapway::gate::AddressPlan;
use tapway::gate::forward::Forward;
use tapway::launch::{DataPath, InstanceOptions, LaunchOptions, PortOptions};
use tapway::observe::Info;
use tapway::setup::attach::Target;
use tapway::setup::listen::{self, AtStart, Handed};
use tapway::setup::{
    self, ControlSocket, HostFacts, NameLock, SetupError, Tap, attach, chain, doctor, open_output,
    probe_outbound, run,
};
use tapway::sys::clock;

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
    Control(#[from] api::BindError),
    #[error(transparent)]
    Show(#[from] ShowError),
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
        Personality::Slirp4netns => slirp4netns_main(&called.program, called.arguments),
        other => refuse(&format!("this version does not stand in for {other}"), exit::FAILED),
    }
}

/// Ends without having done anything.
fn refuse(why: &str, status: u8) -> ExitCode {
    // With standard error gone there is nowhere left to say so.
    let _ = writeln!(io::stderr(), "tapway: {why}");
    ExitCode::from(status)
}

/// `slirp4netns …`: every failure ends with the same status.
fn slirp4netns_main(program: &OsStr, arguments: Vec<OsString>) -> ExitCode {
    let status = match slirp4netns::parse(program, arguments) {
        // Its callers hand over descriptors by number, and no sockets to publish.
        Ok(draft) => start(draft, Handed::default()).unwrap_or_else(|failure| {
            report(Personality::Slirp4netns, &failure);
            exit::FAILED
        }),
        Err(answer) => {
            // Whoever has closed a standard stream does not want to know.
            let _ = io::stdout().write_all(answer.stdout.as_bytes());
            let _ = io::stderr().write_all(answer.stderr.as_bytes());
            answer.status
        }
    };
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

    // What can be refused without a trace comes first.
    setup::start_log(config.log.level, config.log.file.as_deref())?;
    let _name = match config.conduct.control {
        ControlSocket::Named => Some(NameLock::take(&config.name, config.identity.uid)?),
        ControlSocket::At(_) | ControlSocket::Nowhere => None,
    };
    let pcap = config.pcap.as_deref();
    let pcap = pcap.map(|path| open_output(path, "capture file", false)).transpose()?;
    if !config.conduct.trusts_outbound {
        let outbound = config.outbound.v4.map(Into::into).into_iter();
        outbound.chain(config.outbound.v6.map(Into::into)).try_for_each(probe_outbound)?;
    }
    let signals = Signals::take().map_err(failed("take over the signals"))?;
    serve(&config, &signals, pcap, handed)
}

/// Sets up the guest, starts what serves it, gives up all privilege, and stays until the end.
fn serve(
    config: &Config,
    signals: &Signals,
    pcap: Option<File>,
    handed: Handed,
) -> Result<u8, Failure> {
    let link = config.link();
    let (guest, data_path, guest_file, instance) = match &config.action {
        Action::Run { command, own_ids, files } => {
            let mut started = run::start(&run::RunOptions {
                command,
                own_ids: *own_ids,
                identity: &config.identity,
                link: &link,
                files: files.as_ref(),
                restore_signals: &|| signals.restore(),
            })?;
            setup::raise_descriptor_limit();
            let ports = open_ports(&config.forwards.publish, handed)?;
            let server = open_control_socket(config)?;
            setup::seal(config.conduct.keeps)?;
            let data_path = start_data_path(config, &mut started.tap, pcap, &ports)?;
            let released = started.release()?;
            let instance = InstanceOptions {
                info: info(config, &format!("/proc/{}/ns/net", released.pid), command),
                ports: port_options(config, ports),
                server,
                diag: released.diag,
                guest: Some(released.pid),
            };
            (Guest::Command(released.pid), data_path, released.resolv_conf, instance)
        }
        Action::Attach(options) => {
            let mut attached = attach::start(options, &link)?;
            setup::raise_descriptor_limit();
            let ports = open_ports(&config.forwards.publish, handed)?;
            let server = open_control_socket(config)?;
            let leash = config.conduct.lives_for.leash();
            greet(&config.conduct.greeting);
            config.conduct.sees.enforce(&options.target)?;
            setup::seal(config.conduct.keeps)?;
            if config.conduct.refuses_calls {
                setup::refuse_dangerous_calls()?;
            }
            let data_path = start_data_path(config, &mut attached.tap, pcap, &ports)?;
            let (namespace, process) = match &options.target {
                Target::Process(pid) => (format!("/proc/{pid}/ns/net"), Some(Pid::from_raw(*pid))),
                Target::Path(path) | Target::Socket(path) => (path.display().to_string(), None),
                Target::Tap(number) => (format!("descriptor {number}"), None),
            };
            let instance = InstanceOptions {
                info: info(config, &namespace, &[]),
                ports: port_options(config, ports),
                server,
                diag: attached.diag,
                guest: process,
            };
            let guest = match (leash, attached.anchor) {
                (Some(leash), _) => Guest::Held(leash),
                (None, Some(anchor)) => Guest::Target(anchor),
                (None, None) => Guest::Held(Leash::Signals),
            };
            (guest, data_path, None, instance)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the event loop"))?;
    if let Err(error) = config.conduct.report_ready() {
        tracing::warn!("nobody hears that the network is ready: {error}");
    }
    match runtime.block_on(data_path.serve(&guest, signals, guest_file, instance)) {
        Ok(Outcome::Exited(status)) => Ok(status),
        Ok(Outcome::Asked(signal)) if matches!(guest, Guest::Held(_)) => {
            signals.die_of(signal).map_err(failed("end"))?;
            Ok(0)
        }
        Ok(Outcome::Gone | Outcome::Asked(_)) => Ok(0),
        Err(source) => Err(failed("serve the guest")(source)),
    }
}

/// Says on standard output what the instance is.
fn greet(text: &str) {
    // Whoever has closed it does not want to know.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

/// Opens the published ports and tells those that were picked.
fn open_ports(publish: &[Forward], handed: Handed) -> Result<AtStart, SetupError> {
    let ports = listen::open_all(publish, handed)?;
    let picked = ports.opened.iter().flat_map(listen::Opened::picked_ports);
    let text: String = picked.map(|line| format!("tapway: {line}\n")).collect();
    // Whoever has closed standard error does not want to know.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(ports)
}

fn start_data_path(
    config: &Config,
    tap: &mut Tap,
    pcap: Option<File>,
    ports: &AtStart,
) -> Result<DataPath, Failure> {
    // The interface may be somebody else's, with a MAC of its own.
    let guest_mac = tap.mac().unwrap_or(config.plan.guest_mac);
    let options = LaunchOptions {
        plan: AddressPlan { guest_mac, ..config.plan.clone() },
        outbound: config.outbound.clone(),
        upstreams: config.dns.upstreams.clone(),
        dns: config.dns.enabled,
        search: config.dns.search.clone(),
        local_names: config.dns.local_names.clone(),
        published_sockets: ports.opened.iter().map(|opened| opened.sockets.len()).sum(),
    };
    DataPath::start(tap, options, pcap).map_err(failed("start the data path"))
}

fn port_options(config: &Config, at_start: AtStart) -> PortOptions {
    let forwards = &config.forwards;
    PortOptions {
        at_start,
        auto_publish: forwards.auto_publish.clone(),
        expose: forwards.expose.clone(),
        auto_expose: forwards.auto_expose.clone(),
    }
}

/// Opens the control socket. Without the one that bears the instance's name there is still a
/// network, and `doctor` tells why, so that is no reason to disturb everybody.
fn open_control_socket(config: &Config) -> Result<Option<Server>, Failure> {
    let context =
        Context { parse_spec: cli::parse_rules, guest: config.plan.v4.map(|v4| v4.guest) };
    match &config.conduct.control {
        ControlSocket::Nowhere => Ok(None),
        ControlSocket::At(path) => Ok(Some(Server::bind_at(path, context)?)),
        ControlSocket::Named => {
            let without = |error: &dyn std::error::Error| {
                tracing::info!("there is no control socket: {}", chain(error));
            };
            let directory = Places::of_this_user().create().inspect_err(|e| without(e)).ok();
            let server = directory.and_then(|directory| {
                let server = Server::bind(directory, &config.name.to_string(), context);
                server.inspect_err(|e| without(e)).ok()
            });
            Ok(server)
        }
    }
}

/// What the instance tells of itself.
fn info(config: &Config, namespace: &str, command: &[OsString]) -> Info {
    let plan = &config.plan;
    let (v4, v6) = (plan.v4.as_ref(), plan.v6.as_ref());
    let both = |first: Option<IpAddr>, second: Option<IpAddr>| -> Vec<IpAddr> {
        first.into_iter().chain(second).collect()
    };
    Info {
        name: config.name.to_string(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: api::VERSION,
        guest: both(v4.map(|v4| v4.guest.into()), v6.map(|v6| v6.guest.into())),
        gateway: both(v4.map(|v4| v4.gateway.into()), v6.map(|v6| v6.gateway.into())),
        dns: both(
            v4.and_then(|v4| v4.dns).map(IpAddr::V4),
            v6.and_then(|v6| v6.dns).map(IpAddr::V6),
        ),
        mtu: plan.mtu.into(),
        ifname: config.ifname.as_str().to_owned(),
        namespace: namespace.to_owned(),
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        started: clock::wall().as_secs(),
        uptime: Duration::ZERO,
        ports: 0,
    }
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
        Failure::Config(_) | Failure::Control(_) | Failure::Run { .. } => None,
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
        Failure::Usage(_) | Failure::Config(_) => exit::USAGE,
        _ if is_run => exit::RUN_FAILED,
        _ => exit::FAILED,
    }
}
