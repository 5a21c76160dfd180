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

use std::fmt::Write as _;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::base::{ENTERED, Failure, Process, Usage, ids_in, output_of, read_line, wait_until};
use crate::contenders::{Contender, Programs};
use crate::lab::{Lab, Namespace, place};
use crate::published::Published;
use crate::report::median;
use crate::workloads::{Figure, MTU};

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

#[derive(Debug)]
struct Found {
    engine: Engine,
    /// The mounts that it sees, where they are not the benchmark's.
    root: Option<Root>,
}

impl Engines {
    /// Finds those of `wanted`, prepares the machine and makes the image.
    pub fn find(lab: &Lab, programs: &Programs, wanted: &[Engine], podman5: Option<&Path>) -> Self {
        let mut engines = Engines::default();
        if wanted.is_empty() {
            return engines;
        }
        let premises = cgroups().and_then(|()| links(lab, programs)).and_then(|()| image(lab));
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
        let mut session = Session { process, net: None, helper: None };
        let container = process_in(&namespace).ok_or_else(|| {
            Failure(format!("no process has the container's network {namespace}"))
        })?;
        session.net = Some(container);
        let files = found.files(programs, contender)?;
        let host_net = namespace_of(net.pid());
        let helper = ids_in("/proc").into_iter().find(|&pid| {
            namespace_of(pid) == host_net && file_of(pid).is_some_and(|file| files.contains(&file))
        });
        let helper = helper.ok_or_else(|| {
            Failure(format!("{} did not start {} as its helper", engine.name(), contender.name()))
        })?;
        session.helper = Some((helper, file_of(helper)));
        Ok(session)
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

impl Found {
    /// Looks for `engine`; also tells its version. podman imports the image.
    fn find(lab: &Lab, engine: Engine, podman5: Option<&Path>) -> Result<(Found, String), Failure> {
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
            let pasta = run(&["pasta".to_owned(), "--version".to_owned()])?;
            let pasta = pasta.lines().next().unwrap_or_default();
            let _ = write!(version, ", {pasta}, in {}", root.directory.display());
        }
        Ok((found, version))
    }

    /// `words` as the account, in `net` and among the mounts of the engine.
    fn command(&self, lab: &Lab, net: &Namespace, words: &[String]) -> Command {
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
    fn run(
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
        let published = ports.map_or(Vec::new(), |_| Published::Services.numbers());
        if self.engine == Engine::Rootlesskit {
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
            words.extend(published.into_iter().flat_map(map));
            return Ok(words);
        }
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
        words.extend(published.into_iter().flat_map(|p| ["-p".to_owned(), format!("{p}:{p}")]));
        words.push(IMAGE.to_owned());
        Ok(words)
    }

    /// The files of which one is what the helper of `contender` executes.
    fn files(&self, programs: &Programs, contender: Contender) -> Result<Vec<File>, Failure> {
        let path = match (&self.root, contender) {
            (Some(root), Contender::Pasta) => root.path("/usr/bin/pasta"),
            _ => programs.get(contender)?.runs.clone(),
        };
        // pasta replaces itself by a build for the processor at hand.
        let variant = PathBuf::from(format!("{}.avx2", path.display()));
        Ok([path, variant].iter().filter_map(|path| File::at(path)).collect())
    }
}

fn log_name(engine: Engine, contender: Contender) -> String {
    format!("{}-{}.log", engine.name(), contender.name())
}

/// The OCI runtime, the same for both helpers.
const RUNTIME: &str = "crun";

/// What containers are made of: the agent and its libraries.
const IMAGE: &str = "localhost/e2e";

/// Its archive, below the lab's directory.
const ARCHIVE: &str = "image.tar";

/// The directory with tapway under the helpers' names.
const LINKS: &str = "helpers";

/// A container with its engine in the foreground; both end with this value.
#[derive(Debug)]
pub struct Session {
    process: Process,
    /// A process of the container.
    net: Option<u32>,
    /// The helper, and what it executes.
    helper: Option<(u32, Option<File>)>,
}

impl Session {
    /// The container's network.
    pub fn net(&self) -> Result<Namespace, Failure> {
        let none = || Failure("the container has no network".into());
        self.net.map(Namespace::of_process).ok_or_else(none)
    }

    /// What the helper uses.
    pub fn usage(&self) -> Option<Usage> {
        self.helper.map(|(pid, _)| Usage::of_tree(pid))
    }

    /// Fails if the helper or the container is gone.
    pub fn still_runs(&mut self) -> Result<(), Failure> {
        if let Some(status) = self.process.ended() {
            return Err(Failure(format!("the engine ended with {status}")));
        }
        match self.helper {
            Some((pid, file)) if file_of(pid) == file => Ok(()),
            _ => Err(Failure("the helper is gone".into())),
        }
    }
}

impl Drop for Session {
    /// The container's command ends with its stdin; the engine clears up, and its helper goes.
    fn drop(&mut self) {
        const BOUND: Duration = Duration::from_secs(10);
        drop(self.process.child().stdin.take());
        wait_until(BOUND, || self.process.ended().is_some());
        if let Some((pid, Some(file))) = self.helper {
            wait_until(BOUND, || file_of(pid) != Some(file));
        }
    }
}

/// A file, whatever path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
}

impl File {
    fn at(path: &Path) -> Option<File> {
        let metadata = fs::metadata(path).ok()?;
        Some(File { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What process `pid` executes.
fn file_of(pid: u32) -> Option<File> {
    File::at(Path::new(&format!("/proc/{pid}/exe")))
}

/// The network namespace of process `pid`, as `net:[INODE]`.
fn namespace_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// A process in the network namespace `net:[INODE]`.
fn process_in(namespace: &str) -> Option<u32> {
    ids_in("/proc").into_iter().find(|&pid| namespace_of(pid).as_deref() == Some(namespace))
}

/// crun wants cgroup2 alone, as most machines have it; the mount is the benchmark's own. podman
/// wants `/` to be shared.
fn cgroups() -> Result<(), Failure> {
    const TREE: &str = "/sys/fs/cgroup";
    let none = None::<&str>;
    if statfs(TREE).map(|fs| fs.filesystem_type()) != Ok(CGROUP2_SUPER_MAGIC) {
        mount(Some("cgroup2"), TREE, Some("cgroup2"), MsFlags::empty(), none)
            .map_err(|e| Failure::because("mount cgroup2", e))?;
    }
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .map_err(|e| Failure::because("share the mounts", e))
}

/// tapway under the names of the helpers.
fn links(lab: &Lab, programs: &Programs) -> Result<(), Failure> {
    let directory = lab.dir.join(LINKS);
    fs::create_dir_all(&directory).map_err(|e| Failure::because("make a directory", e))?;
    let Ok(tapway) = programs.get(Contender::Tapway) else { return Ok(()) };
    for peer in Contender::PEERS {
        symlink(&tapway.runs, directory.join(peer.name()))
            .map_err(|e| Failure::because("link to tapway", e))?;
    }
    Ok(())
}

/// Makes the image's archive: the agent and its libraries, at the paths that they have here.
fn image(lab: &Lab) -> Result<(), Failure> {
    let said = output_of(Command::new("ldd").arg(&lab.agent))?;
    let mut files: Vec<&str> = said.split_whitespace().filter(|w| w.starts_with('/')).collect();
    let agent = lab.agent.to_string_lossy();
    files.push(&agent);
    let archive = lab.dir.join(ARCHIVE);
    let mut command = Command::new("tar");
    command.args(["--create", "--dereference", "--hard-dereference", "--directory=/", "--file"]);
    command.arg(&archive).args(files.iter().map(|file| file.trim_start_matches('/')));
    output_of(&mut command)?;
    // Readable for the account.
    place(&archive, &lab.dir, "image.copy").and_then(|copy| {
        fs::rename(copy, &archive).map_err(|e| Failure::because("name the image", e))
    })
}

/// A root directory that is not the machine's, as a process and all that join it see it.
#[derive(Debug)]
struct Root {
    directory: PathBuf,
    /// The account's runtime directory there.
    runtime: PathBuf,
    sitter: Process,
}

impl Root {
    /// Lays an overlay over `directory` and makes it the root of a mount namespace, with the lab's
    /// directory in it. (In a chroot the kernel refuses user namespaces.)
    fn enter(lab: &Lab, directory: &Path) -> Result<Root, Failure> {
        let script = "set -e
            mkdir \"$DIR/over\" \"$DIR/root\"
            mount -t tmpfs tmpfs \"$DIR/over\"
            mkdir \"$DIR/over/upper\" \"$DIR/over/work\"
            mount -t overlay -o \"lowerdir=$BASE,upperdir=$DIR/over/upper,workdir=$DIR/over/work\" \
                overlay \"$DIR/root\"
            cd \"$DIR/root\"
            for part in dev proc sys; do mount --rbind /$part $part; done
            mkdir -p \".$DIR\" .old
            mount --bind \"$DIR\" \".$DIR\"
            for file in subuid subgid; do echo \"e2e:200000:65536\" > etc/$file; done
            echo \"e2e:x:$ACCOUNT:$ACCOUNT::$DIR/home:/bin/sh\" >> etc/passwd
            echo \"e2e:x:$ACCOUNT:\" >> etc/group
            mount --make-rprivate /
            pivot_root . .old
            cd /
            umount -l /.old
            mount --make-rshared /
            exec \"$DIR/agent\" agent sit";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]);
        command.env("DIR", &lab.dir).env("BASE", directory);
        command.env("ACCOUNT", lab.account.uid.to_string());
        lab.logged(&mut command, ROOT_LOG)?.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut sitter = Process::start(&mut command)?;
        let stdout = sitter.child().stdout.take();
        let stdout = stdout.ok_or_else(|| Failure("the sitter has no stdout".into()))?;
        read_line(&mut BufReader::new(stdout)).map_err(|_| {
            Failure(format!("make {} a root directory{}", directory.display(), lab.tail(ROOT_LOG)))
        })?;
        let runtime = lab.home().join("run5");
        output_of(lab.as_user(&lab.ext, Path::new("mkdir")).arg(&runtime))?;
        Ok(Root { directory: directory.to_owned(), runtime, sitter })
    }

    /// Where a file of it is seen from outside.
    fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.sitter.id()))
    }

    /// `command` among its mounts.
    fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("nsenter");
        wrapped.arg(format!("--mount=/proc/{}/ns/mnt", self.sitter.id())).arg(ENTERED);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        // podman keeps a process there that holds its mounts, which another podman would join.
        wrapped.env("XDG_RUNTIME_DIR", &self.runtime);
        wrapped
    }
}

/// What the script of [`Root::enter`] says.
const ROOT_LOG: &str = "root.log";
