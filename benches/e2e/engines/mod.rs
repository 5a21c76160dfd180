//! Helpers under real engines: containers of podman and of rootlesskit, the helper swapped.
//!
//! Nothing of an engine differs between two columns of a row but the path of its helper. podman
//! and rootlesskit run slirp4netns and tapway under that name; podman 5, which a directory of
//! `--podman5` brings along, pasta and tapway under that name. Each container is started by the
//! engine, on the host of its contender, with the lab's ports published; its command only sits
//! there. The load generators join its network namespace, so that nothing but the network is the
//! container's: neither an image with all tools nor the engine's seccomp filter is measured.
//!
//! Whose traffic it is, is proved: the process in the host's namespace that executes the very
//! file of the contender is found, must be there until the end, and accounts for processor time;
//! the TAP must have carried the bytes (see [`crate::workloads::measure`]). Ports that the engine
//! forwards by itself ([`Ports::Engines`]) reach the container's namespace without the helper.
//! Their rows show that a helper cannot make them slower; there the TAP must *not* have carried
//! the bytes.
//!
//! An engine that is missing is told on stderr and in the report; its rows stay out.

mod found;
mod premises;
mod root;
mod session;

use std::io::BufReader;
use std::path::Path;
use std::process::Stdio;

use found::Found;
pub use session::Session;

use crate::base::{Failure, Process, output_of, read_line};
use crate::contenders::{Contender, Programs};
use crate::lab::Lab;
use crate::report::median;
use crate::workloads::Figure;

/// An engine of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// podman over slirp4netns.
    Podman,
    /// rootlesskit over slirp4netns, as dockerd and k3s use it.
    Rootlesskit,
    /// podman 5 over pasta, in a root directory of its own.
    Podman5,
}

impl Engine {
    /// All of them, in the order of the table.
    pub const ALL: [Engine; 3] = [Self::Podman, Self::Rootlesskit, Self::Podman5];

    /// The name that its rows begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Rootlesskit => "rootlesskit",
            Self::Podman5 => "podman5",
        }
    }

    /// Whose place tapway takes.
    pub fn peer(self) -> Contender {
        match self {
            Self::Podman | Self::Rootlesskit => Contender::Slirp4netns,
            Self::Podman5 => Contender::Pasta,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Podman | Self::Podman5 => "podman",
            Self::Rootlesskit => "rootlesskit",
        }
    }
}

/// Who forwards published ports: podman's `port_handler`, rootlesskit's `--port-driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The helper.
    Helpers,
    /// A process of the engine's own.
    Engines,
}

/// What a container is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// iperf3 with one stream, from the container.
    Up,
    /// The same, towards the container.
    Down,
    /// wrk with a connection per request, from outside to a published port.
    Rate(Ports),
    /// Containers with a short command, one after the other.
    Start,
}

impl Load {
    /// The end of a row's id.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Rate(Ports::Helpers) => "rate",
            Self::Rate(Ports::Engines) => "rate-engine",
            Self::Start => "start",
        }
    }

    /// Who has to forward the ports of the container.
    pub fn ports(self) -> Ports {
        match self {
            Self::Rate(ports) => ports,
            Self::Up | Self::Down | Self::Start => Ports::Helpers,
        }
    }
}

/// The engines that can take part, and what they need of the machine.
#[derive(Debug, Default)]
pub struct Engines {
    found: Vec<Found>,
    /// Name and version of each, or why it is left out: for the report.
    pub facts: Vec<(&'static str, String)>,
}

impl Engines {
    /// Finds those of `wanted`, prepares the machine and makes the image.
    pub fn find(lab: &Lab, programs: &Programs, wanted: &[Engine], podman5: Option<&Path>) -> Self {
        let mut engines = Engines::default();
        if wanted.is_empty() {
            return engines;
        }
        let premises = premises::make(lab, programs);
        for &engine in wanted {
            let found = premises.clone().and_then(|()| Found::find(lab, engine, podman5));
            let fact = match found {
                Ok((found, version)) => {
                    engines.found.push(found);
                    version
                }
                Err(why) => {
                    eprintln!("e2e: NOT RUN: {}: {why}", engine.name());
                    format!("not run: {why}")
                }
            };
            engines.facts.push((engine.name(), fact));
        }
        engines
    }

    /// Those that take part.
    pub fn found(&self) -> Vec<Engine> {
        self.found.iter().map(|found| found.engine).collect()
    }

    fn get(&self, engine: Engine) -> Result<&Found, Failure> {
        let missing = || Failure(format!("{} is not here", engine.name()));
        self.found.iter().find(|found| found.engine == engine).ok_or_else(missing)
    }

    /// Starts a container on the host of `contender`, whose helper is to carry its traffic.
    pub fn session(
        &self,
        lab: &Lab,
        programs: &Programs,
        (contender, host): (Contender, usize),
        engine: Engine,
        ports: Ports,
    ) -> Result<Session, Failure> {
        let found = self.get(engine)?;
        let net = &lab.hosts[host].net;
        let words = found.run(lab, programs, contender, Some(ports))?;
        let mut command = found.command(lab, net, &words);
        command.arg(&lab.agent).args(["agent", "sit"]);
        let log = log_name(engine, contender);
        lab.logged(&mut command, &log)?.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let stdout = process.child().stdout.take();
        let stdout = stdout.ok_or_else(|| Failure("the engine has no stdout".into()))?;
        let namespace = read_line(&mut BufReader::new(stdout)).map_err(|e| {
            Failure::because(format_args!("start a container{}", lab.tail(&log)), e)
        })?;
        let files = found.files(programs, contender)?;
        Session::find(process, &namespace, net, &files).map_err(|e| {
            Failure::because(format_args!("{} over {}", engine.name(), contender.name()), e)
        })
    }

    /// Starts containers whose command only looks at the clock, one contender after the other:
    /// the median milliseconds to that command and to the end of everything.
    ///
    /// [`Contender::Direct`] has no network of its own: what no helper can save.
    pub fn start(
        &self,
        lab: &Lab,
        programs: &Programs,
        engine: Engine,
        contenders: &[(usize, Contender)],
    ) -> Vec<(Contender, Result<Vec<Figure>, Failure>)> {
        /// Enough for a median of each round.
        const STARTS: usize = 10;
        let mut times = vec![Ok((Vec::new(), Vec::new())); contenders.len()];
        for turn in 0..STARTS {
            let mut order: Vec<usize> = (0..contenders.len()).collect();
            // Whoever comes first finds colder caches: they take turns.
            if turn % 2 == 1 {
                order.reverse();
            }
            for n in order {
                let (host, contender) = contenders[n];
                let Ok((first, total)) = &mut times[n] else { continue };
                match self.start_once(lab, programs, engine, contender, host) {
                    Ok((to_first, to_end)) => {
                        first.push(to_first);
                        total.push(to_end);
                    }
                    Err(why) => times[n] = Err(why),
                }
            }
        }
        let figures = |(first, total): (Vec<f64>, Vec<f64>)| {
            let id = format!("{}-start", engine.name());
            let medians = [(id.clone(), median(&total)), (format!("{id}/first"), median(&first))];
            medians.into_iter().filter_map(|(row, value)| Some((row, value?))).collect()
        };
        let names = contenders.iter().map(|(_, contender)| *contender);
        names.zip(times.into_iter().map(|times| times.map(figures))).collect()
    }

    fn start_once(
        &self,
        lab: &Lab,
        programs: &Programs,
        engine: Engine,
        contender: Contender,
        host: usize,
    ) -> Result<(f64, f64), Failure> {
        let found = self.get(engine)?;
        let mut words = vec![lab.agent.display().to_string()];
        words.extend(["agent", "launch", "1"].map(str::to_owned));
        words.extend(found.run(lab, programs, contender, None)?);
        let mut command = found.command(lab, &lab.hosts[host].net, &words);
        let report = output_of(command.arg(&lab.agent).args(["agent", "stamp"]))?;
        let mut nanos = report.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
        match (nanos.next(), nanos.next()) {
            (Some(to_first), Some(to_end)) => Ok((to_first / 1e6, to_end / 1e6)),
            _ => Err(Failure::because("the launcher's report", report.trim())),
        }
    }
}

fn log_name(engine: Engine, contender: Contender) -> String {
    format!("{}-{}.log", engine.name(), contender.name())
}
