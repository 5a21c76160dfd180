//! An instance, from its configuration to its end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::level_filters::LevelFilter;

use tapway::cli::show::Instances;
use tapway::cli::{self, Action, Config, ForwardOptions};
use tapway::control::api::{self, Context, Places, Server};
use tapway::control::lifecycle::{Guest, Leash, Outcome, Signals};
use tapway::control::pesto::Server as PestoServer;
use tapway::engine::stream_link::Ends;
use tapway::gate::AddressPlan;
use tapway::launch::{DataPath, InstanceOptions, LaunchOptions, Link, PortOptions};
use tapway::observe::Info;
use tapway::setup::attach::{self, Target};
use tapway::setup::daemon::{Background, Person, PidFile};
use tapway::setup::inside::Inside;
use tapway::setup::listen::AtStart;
use tapway::setup::machine::Machine;
use tapway::setup::{
    self, Journal, Listed, LivesFor, NameLock, SetupError, chain, open_output, probe_outbound, run,
};
use tapway::sys::{clock, pages};

use super::{Failure, failed};

/// Sets up the guest, starts what serves it, gives up all privilege, and stays until the end;
/// gives the exit status. `background` is told when everything is in place.
pub(super) fn serve(
    config: &Config,
    background: Option<Background>,
    open_ports: impl FnOnce(&ForwardOptions) -> Result<AtStart, Failure>,
) -> Result<u8, Failure> {
    let conduct = &config.conduct;
    // What can be refused without a trace comes first.
    let log = &config.log;
    let journal = setup::start_log(log.level, log.file.as_deref(), &log.form)?;
    for option in &conduct.deprecated {
        tracing::warn!("{option} is deprecated");
    }
    let pid_file = conduct.pid_file.as_deref().map(PidFile::create).transpose()?;
    let places = Places::of_this_user();
    let name = match (NameLock::take(&config.name, places.owner()), conduct.listed) {
        (Err(error), Listed::Claimed) => return Err(error.into()),
        (lock, _) => lock.ok(),
    };
    let pcap = config.pcap.as_deref();
    let pcap = pcap.map(|path| open_output(path, "capture file", false)).transpose()?;
    let pesto = config.pesto_socket.as_deref().map(PestoServer::bind).transpose()?;
    if !conduct.trusts_outbound {
        let outbound = config.outbound.v4.map(Into::into).into_iter();
        outbound.chain(config.outbound.v6.map(Into::into)).try_for_each(probe_outbound)?;
    }
    let signals = &Signals::take().map_err(failed("take over the signals"))?;
    let link = config.link();
    let (guest, data_path, guest_file, instance) = match &config.action {
        Action::Run { command, own_ids, files, isolation } => {
            let mut started = run::start(&run::RunOptions {
                command,
                own_ids: *own_ids,
                identity: &config.identity,
                link: &link,
                files: files.as_ref(),
                isolation,
                restore_signals: &|| signals.restore(),
            })?;
            setup::raise_descriptor_limit();
            let ports = open_ports(&config.forwards)?;
            let server = open_control_socket(config, &places, name.is_some());
            let api = open_api_socket(config)?;
            setup::seal(conduct.keeps)?;
            let inside = started.inside.as_ref();
            let link = Link::Tap(&mut started.tap);
            let data_path = start_data_path(config, link, pcap, &ports, inside)?;
            let released = started.release()?;
            let instance = InstanceOptions {
                info: info(config, &format!("/proc/{}/ns/net", released.pid), command),
                ports: port_options(config, ports, released.inside)?,
                server,
                api,
                pesto,
                diag: released.diag,
                guest: Some(released.pid),
                statistics: conduct.statistics,
            };
            let guest = match conduct.ends_when_asked {
                true => Guest::Confined(released.pid),
                false => Guest::Command(released.pid),
            };
            (guest, data_path, released.resolv_conf, instance)
        }
        Action::Attach(options) => {
            let mut attached = attach::start(options, &link)?;
            setup::raise_descriptor_limit();
            let ports = open_ports(&config.forwards)?;
            let server = open_control_socket(config, &places, name.is_some());
            let api = open_api_socket(config)?;
            let leash = conduct.lives_for.leash();
            greet(&conduct.greeting);
            conduct.becomes.map_or(Ok(()), Person::become_them)?;
            conduct.sees.enforce(&options.target)?;
            setup::seal(conduct.keeps)?;
            if conduct.refuses_calls {
                setup::refuse_dangerous_calls()?;
            }
            let inside = attached.inside.as_ref();
            let link = Link::Tap(&mut attached.tap);
            let data_path = start_data_path(config, link, pcap, &ports, inside)?;
            let (namespace, process) = match &options.target {
                Target::Process(pid) => (format!("/proc/{pid}/ns/net"), Some(Pid::from_raw(*pid))),
                Target::Path(path) | Target::Socket(path) => (path.display().to_string(), None),
                Target::Tap(number) => (format!("descriptor {number}"), None),
            };
            let instance = InstanceOptions {
                info: info(config, &namespace, &[]),
                ports: port_options(config, ports, attached.inside)?,
                server,
                api,
                pesto,
                diag: attached.diag,
                guest: process,
                statistics: conduct.statistics,
            };
            let guest = match (leash, attached.anchor) {
                (Some(leash), _) => Guest::Held(leash),
                (None, Some(anchor)) => Guest::Target(anchor),
                (None, None) => Guest::Held(Leash::Signals),
            };
            (guest, data_path, None, instance)
        }
        Action::Serve(options) => {
            let ports = open_ports(&config.forwards)?;
            let machine = Machine::open(&options.door).map_err(SetupError::from)?;
            setup::raise_descriptor_limit();
            let server = open_control_socket(config, &places, name.is_some());
            let api = open_api_socket(config)?;
            if config.log.level >= LevelFilter::INFO {
                // Whoever has closed standard error does not want to know.
                let _ = io::stderr().write_all(machine.instructions().as_bytes());
            }
            conduct.becomes.map_or(Ok(()), Person::become_them)?;
            setup::seal(conduct.keeps)?;
            if conduct.refuses_calls {
                setup::refuse_dangerous_calls()?;
            }
            let Machine { path, door, client } = machine;
            let ends = Ends { door, client, once: options.once };
            let data_path = start_data_path(config, Link::Stream(ends), pcap, &ports, None)?;
            let place = path.map(|path| path.display().to_string()).unwrap_or_default();
            let instance = InstanceOptions {
                info: info(config, &place, &[]),
                ports: port_options(config, ports, None)?,
                server,
                api,
                pesto,
                diag: None,
                guest: None,
                statistics: conduct.statistics,
            };
            (Guest::Held(Leash::Signals), data_path, None, instance)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the event loop"))?;
    pid_file.map_or(Ok(()), PidFile::write)?;
    if let Some(background) = background {
        background.ready()?;
        journal.iter().for_each(Journal::detach);
    }
    if let Err(error) = conduct.report_ready() {
        tracing::warn!("nobody hears that the network is ready: {error}");
    }
    pages::forget_start();
    match runtime.block_on(data_path.serve(&guest, signals, guest_file, instance)) {
        Ok(Outcome::Exited(status)) => Ok(status),
        Ok(Outcome::Asked(signal)) if matches!(conduct.lives_for, LivesFor::Starter(_)) => {
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

fn start_data_path(
    config: &Config,
    link: Link<'_>,
    pcap: Option<File>,
    ports: &AtStart,
    inside: Option<&Inside>,
) -> Result<DataPath, Failure> {
    let guest_mac = match &link {
        // The interface may be somebody else's, with a MAC of its own.
        Link::Tap(tap) => tap.mac(),
        Link::Stream(_) => None,
    };
    let guest_mac = guest_mac.unwrap_or(config.plan.guest_mac);
    let options = LaunchOptions {
        plan: AddressPlan { guest_mac, ..config.plan.clone() },
        outbound: config.outbound.clone(),
        publish_path: config.publish_path,
        upstreams: config.dns.upstreams.clone(),
        dns: config.dns.enabled,
        search: config.dns.search.clone(),
        local_names: config.dns.local_names.clone(),
        workers: config.threads.least,
        published_sockets: ports.opened.iter().map(|opened| opened.sockets.len()).sum(),
    };
    DataPath::start(link, options, pcap, inside).map_err(failed("start the data path"))
}

fn port_options(
    config: &Config,
    at_start: AtStart,
    inside: Option<Inside>,
) -> Result<PortOptions, SetupError> {
    let forwards = &config.forwards;
    // The data path may be the only one to ask.
    let inside = inside.filter(|_| config.leads_ports());
    let inner = inside.as_ref().map(|inside| inside.open_all(&forwards.inner)).transpose()?;
    Ok(PortOptions {
        at_start,
        auto_publish: forwards.auto_publish.clone(),
        expose: forwards.expose.clone(),
        auto_expose: forwards.auto_expose.clone(),
        inside,
        inner: inner.unwrap_or_default(),
        opener: forwards.opener,
    })
}

/// Opens the control socket of the instance's name. Without it there is still a network, and
/// `doctor` tells why, so that is no reason to disturb everybody.
fn open_control_socket(config: &Config, places: &Places, has_name: bool) -> Option<Server> {
    let directory = match config.conduct.listed {
        Listed::Claimed => places.create(),
        // Whoever root becomes could not remove the file in the end.
        Listed::As(_) if !has_name || config.conduct.becomes.is_some() => return None,
        Listed::As(_) => {
            Instances::at(places).tidy_helpers();
            places.create_in_runtime()
        }
    };
    let without = |error: &dyn std::error::Error| match config.conduct.listed {
        Listed::Claimed => tracing::info!("there is no control socket: {}", chain(error)),
        Listed::As(_) => tracing::debug!("there is no control socket: {}", chain(error)),
    };
    let directory = directory.inspect_err(|e| without(e)).ok()?;
    let server = Server::bind(directory, &config.name.to_string(), context(config));
    server.inspect_err(|e| without(e)).ok()
}

/// Opens the control socket that the caller has named, without which there is nothing.
fn open_api_socket(config: &Config) -> Result<Option<Server>, Failure> {
    let path = config.conduct.api_socket.as_deref();
    Ok(path.map(|path| Server::bind_at(path, context(config))).transpose()?)
}

fn context(config: &Config) -> Context {
    Context { parse_spec: cli::parse_rules, guest: config.plan.v4.map(|v4| v4.guest) }
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
