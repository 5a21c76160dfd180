//! How each engine is called: the words in front of a container's command.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::premises::{ARCHIVE, IMAGE, LINKS};
use super::root::Root;
use super::session::File;
use super::{Engine, Ports};
use crate::base::{Failure, output_of};
use crate::contenders::{Contender, Programs};
use crate::lab::{Lab, Namespace};
use crate::published::Published;
use crate::workloads::MTU;

/// An engine that can take part.
#[derive(Debug)]
pub struct Found {
    pub engine: Engine,
    /// The mounts that it sees, where they are not the benchmark's.
    root: Option<Root>,
}

impl Found {
    /// Looks for `engine`; also tells its version. podman imports the image.
    pub fn find(
        lab: &Lab,
        engine: Engine,
        podman5: Option<&Path>,
    ) -> Result<(Found, String), Failure> {
        let root = match (engine, podman5) {
            (Engine::Podman5, Some(directory)) => Some(Root::enter(lab, directory)?),
            (Engine::Podman5, None) => {
                return Err(Failure("--podman5 names no root directory that has it".into()));
            }
            _ => None,
        };
        let found = Found { engine, root };
        let run = |words: &[String]| output_of(&mut found.command(lab, &lab.ext, words));
        let said = run(&[engine.program().to_owned(), "--version".to_owned()])?;
        let mut version = said.lines().next().unwrap_or_default().to_owned();
        if engine != Engine::Rootlesskit {
            let runtime = run(&[RUNTIME.to_owned(), "--version".to_owned()])?;
            let _ = write!(version, ", {}", runtime.lines().next().unwrap_or_default());
            let mut words = found.podman(lab);
            words.extend(["import", "--quiet"].map(str::to_owned));
            words.extend([lab.dir.join(ARCHIVE).display().to_string(), IMAGE.to_owned()]);
            run(&words)?;
        }
        if let Some(root) = &found.root {
            let words = ["dpkg-query", "--show", "--showformat=passt ${Version}", "passt"];
            let pasta = run(&words.map(str::to_owned)).unwrap_or_else(|_| "some pasta".into());
            let _ = write!(version, ", {pasta}, in {}", root.directory.display());
        }
        Ok((found, version))
    }

    /// `words` as the account, in `net` and among the mounts of the engine.
    pub fn command(&self, lab: &Lab, net: &Namespace, words: &[String]) -> Command {
        let (program, args) = words.split_first().map_or(("", &words[..0]), |(p, a)| (p, a));
        let mut command = lab.as_user(net, Path::new(program));
        command.args(args);
        if let Some(root) = &self.root {
            command = root.wrap(&command);
        }
        // The directory of whoever started the benchmark may be closed to the account.
        command.current_dir(&lab.dir);
        command
    }

    /// podman with its files below the account's home; the paths of its sockets are short enough.
    fn podman(&self, lab: &Lab) -> Vec<String> {
        let below = |name: &str| {
            let version = if self.root.is_some() { "5" } else { "4" };
            lab.home().join(format!("{name}{version}")).display().to_string()
        };
        let options = [
            ("--root", below("s")),
            ("--runroot", below("r")),
            ("--tmpdir", below("t")),
            ("--cgroup-manager", "cgroupfs".to_owned()),
            ("--events-backend", "none".to_owned()),
            ("--storage-driver", "overlay".to_owned()),
            ("--runtime", RUNTIME.to_owned()),
        ];
        let mut words = vec!["podman".to_owned()];
        words.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        words
    }

    /// The engine's words in front of the container's command: with `ports` published or, without,
    /// for a short command.
    pub fn run(
        &self,
        lab: &Lab,
        programs: &Programs,
        contender: Contender,
        ports: Option<Ports>,
    ) -> Result<Vec<String>, Failure> {
        let helper = match contender {
            Contender::Tapway => lab.dir.join(LINKS).join(self.engine.peer().name()),
            Contender::Slirp4netns => programs.get(contender)?.runs.clone(),
            _ => PathBuf::new(),
        };
        let helper = helper.display().to_string();
        Ok(match self.engine {
            Engine::Rootlesskit => rootlesskit(contender, &helper, ports),
            Engine::Podman | Engine::Podman5 => self.podman_run(lab, contender, helper, ports),
        })
    }

    fn podman_run(
        &self,
        lab: &Lab,
        contender: Contender,
        helper: String,
        ports: Option<Ports>,
    ) -> Vec<String> {
        let mut words = self.podman(lab);
        if contender == Contender::Tapway && self.engine == Engine::Podman5 {
            // The first directory in which podman looks for helpers.
            let directory = lab.dir.join(LINKS).display().to_string();
            let variable = format!("CONTAINERS_HELPER_BINARY_DIR={directory}");
            words.splice(0..0, ["env".to_owned(), variable]);
        }
        if self.engine == Engine::Podman && contender != Contender::Direct {
            words.extend(["--network-cmd-path".to_owned(), helper]);
        }
        let network = match (contender, self.engine, ports) {
            (Contender::Direct, ..) => "none".to_owned(),
            (_, Engine::Podman5, _) => "pasta".to_owned(),
            (_, _, Some(Ports::Helpers)) => {
                format!("slirp4netns:mtu={MTU},port_handler=slirp4netns")
            }
            _ => format!("slirp4netns:mtu={MTU}"),
        };
        words.extend(["run", "--rm", "--cgroups=disabled", "--log-driver=none"].map(str::to_owned));
        if ports.is_some() {
            words.push("--interactive".to_owned());
        }
        words.extend(["--network".to_owned(), network]);
        words.extend(published(ports).into_iter().flat_map(|p| ["-p".into(), format!("{p}:{p}")]));
        words.push(IMAGE.to_owned());
        words
    }

    /// The files of which one is what the helper of `contender` executes.
    pub fn files(&self, programs: &Programs, contender: Contender) -> Result<Vec<File>, Failure> {
        let path = match (&self.root, contender) {
            (Some(root), Contender::Pasta) => root.path("/usr/bin/pasta"),
            _ => programs.get(contender)?.runs.clone(),
        };
        // pasta replaces itself by a build for the processor at hand.
        let variant = PathBuf::from(format!("{}.avx2", path.display()));
        Ok([path, variant].iter().filter_map(|path| File::at(path)).collect())
    }
}

fn rootlesskit(contender: Contender, helper: &str, ports: Option<Ports>) -> Vec<String> {
    let driver = match ports {
        Some(Ports::Helpers) => "slirp4netns",
        Some(Ports::Engines) => "builtin",
        None => "none",
    };
    let mut words = vec!["rootlesskit".to_owned(), "--copy-up=/etc".to_owned()];
    if contender == Contender::Direct {
        words.push("--net=host".to_owned());
    } else {
        words.extend(["--net=slirp4netns", "--disable-host-loopback"].map(str::to_owned));
        words.push(format!("--slirp4netns-binary={helper}"));
        words.extend([format!("--mtu={MTU}"), format!("--port-driver={driver}")]);
    }
    let map = |port| ["-p".to_owned(), format!("0.0.0.0:{port}:{port}/tcp")];
    words.extend(published(ports).into_iter().flat_map(map));
    words
}

/// A container that stays has the lab's ports published; a short command has none.
fn published(ports: Option<Ports>) -> Vec<u16> {
    ports.map_or(Vec::new(), |_| Published::Services.numbers())
}

/// The OCI runtime, the same for both helpers.
const RUNTIME: &str = "crun";
