//! Driving the real binary as a real unprivileged user.
//!
//! Run by root, the tests start everything as [`NOBODY_SPECIAL`], a user without password entry and
//! without subordinate ids; run by an ordinary user, as that user. What a test needs and the
//! machine does not have is said aloud, and the test fails, unless the kernel itself lacks it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

pub(crate) mod contract;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapway::sys::process::pidfd_open;

/// An id that no machine is likely to give to anybody.
pub(crate) const NOBODY_SPECIAL: u32 = 54_321;

/// Where an ordinary user finds programs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Milliseconds that nothing here may take, however loaded the machine is.
pub(crate) const PATIENCE: u16 = 60_000;

/// Writes a line past the test harness, which keeps the output of tests that pass: what was not
/// tested, and why.
pub(crate) fn loudly(text: &str) {
    // Without a terminal there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A port that nobody has, and nobody else gets from here.
pub(crate) fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` ports in a row that nobody has at any address, by TCP or UDP.
///
/// They are above those that the kernel picks for whoever asks for any port
/// (`ip_local_port_range`), so that they stay free until they are used; those of one test program
/// are all different, and programs that run side by side begin at different places.
pub(crate) fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 61_000;
    const RANGE: u16 = 4_500;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: u16| {
        TcpListener::bind(("::", port)).is_ok() && UdpSocket::bind(("::", port)).is_ok()
    };
    let begin = u16::try_from(std::process::id() % u32::from(RANGE)).unwrap();
    for _ in 0..RANGE {
        let at = begin.wrapping_add(NEXT.fetch_add(count, Ordering::Relaxed)) % RANGE;
        let first = FIRST + at;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no port from {FIRST} on is free");
}

/// Whether the tests themselves are run by root.
pub(crate) fn as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The user as whom tapway runs.
pub(crate) fn uid() -> u32 {
    if as_root() { NOBODY_SPECIAL } else { nix::unistd::geteuid().as_raw() }
}

/// The binary, at a place that the user of the tests may reach: where it was built, or else a copy
/// that goes away with the test program.
#[expect(clippy::zombie_processes, reason = "the janitor ends after us")]
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<(PathBuf, Option<ChildStdin>)> = OnceLock::new();
    let (path, _) = BINARY.get_or_init(|| {
        let device = fs::metadata("/dev/net/tun").expect("these tests need /dev/net/tun");
        assert!(
            device.permissions().mode() & 0o006 == 0o006 || !as_root(),
            "these tests run tapway as an ordinary user: chmod 0666 /dev/net/tun"
        );
        let built = Path::new(env!("CARGO_BIN_EXE_tapway"));
        if user("test").arg("-x").arg(built).status().unwrap().success() {
            return (built.to_owned(), None);
        }
        let directory = scratch().keep();
        let copy = directory.join("tapway");
        fs::copy(built, &copy).unwrap();
        // Statics are not dropped. This shell waits for the end of its input, which comes with
        // ours.
        let mut janitor = Command::new("sh")
            .args(["-c", "read line; rm -r \"$0\""])
            .arg(&directory)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        (copy, janitor.stdin.take())
    });
    path
}

/// A directory that the user of the tests may write to.
pub(crate) fn scratch() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("tapway-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// `program`, to be run as the unprivileged user, in English, without terminal.
pub(crate) fn user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if as_root() {
        command.uid(NOBODY_SPECIAL).gid(NOBODY_SPECIAL);
    }
    command
        .env("LC_ALL", "C")
        .env("PATH", PATH)
        .env("HOME", "/tmp")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// tapway with these arguments, as the unprivileged user.
pub(crate) fn tapway(arguments: &[&str]) -> Command {
    let mut command = user(binary());
    command.args(arguments);
    command
}

/// What came of a program.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs tapway to its end.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    tapway(arguments).output().unwrap().into()
}

/// Runs `script` by a shell inside, and returns what it printed; it must succeed in silence.
pub(crate) fn inside(options: &[&str], script: &str) -> String {
    let arguments = [&["run"], options, &["--", "sh", "-c", script]].concat();
    let ran = run(&arguments);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{script}: {ran:?}");
    ran.stdout
}

/// A program in the background that is killed when the test is over.
pub(crate) struct Background {
    child: Child,
    stdout: Option<BufReader<std::process::ChildStdout>>,
    log: Option<PathBuf>,
}

impl Background {
    pub(crate) fn start(command: &mut Command) -> Background {
        Background::spawn(command.stderr(Stdio::piped()), None)
    }

    /// Starts a program whose standard error goes to the file `log`, where it can be read
    /// meanwhile.
    pub(crate) fn start_logged(command: &mut Command, log: &Path) -> Background {
        let file = fs::File::create(log).unwrap();
        Background::spawn(command.stderr(file), Some(log.to_owned()))
    }

    fn spawn(command: &mut Command, log: Option<PathBuf>) -> Background {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Background { child, stdout, log }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// The next line that it prints, within [`PATIENCE`].
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().unwrap();
        if stdout.buffer().is_empty() {
            let mut ready = [PollFd::new(stdout.get_ref().as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut ready, PollTimeout::from(PATIENCE)).unwrap();
            assert!(ready > 0, "it prints nothing");
        }
        stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it ended without a line: {:?}", self.errors());
        line.trim_end().to_owned()
    }

    /// Ends its standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end, and no longer than [`PATIENCE`].
    pub(crate) fn end(mut self) -> Ran {
        assert!(ends(self.pid(), PATIENCE), "it does not end");
        let status = self.child.wait().unwrap();
        let mut stdout = String::new();
        if let Some(mut rest) = self.stdout.take() {
            rest.read_to_string(&mut stdout).unwrap();
        }
        Ran { status: status.code(), signal: status.signal(), stdout, stderr: self.errors() }
    }

    /// Waits until `condition` holds, asking every few milliseconds, and fails when the program
    /// ends before.
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..PATIENCE / 20 {
            if condition() {
                return;
            }
            if ends(self.pid(), 20) {
                panic!("it ended before {what}: {}", self.errors());
            }
        }
        panic!("never: {what}");
    }

    /// What it has written to its log, or to standard error until its end.
    pub(crate) fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(log) = &self.log {
            return fs::read_to_string(log).unwrap();
        }
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the process ends within `millis`; it may be anybody's, and a zombie has ended.
pub(crate) fn ends(pid: Pid, millis: u16) -> bool {
    let Ok(pidfd) = pidfd_open(pid) else { return true };
    let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::from(millis)).unwrap() > 0
}

/// A process of the user in a user and network namespace of its own, without a network.
pub(crate) fn bare_namespace() -> Background {
    let mut target = user("unshare");
    target.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut target = Background::start(&mut target);
    assert_eq!(target.line(), "ready");
    target
}

/// Runs `script` in the network namespace of `target`.
pub(crate) fn in_namespace_of(target: &Background, script: &str) -> Ran {
    user("nsenter")
        .args(["--preserve-credentials", "--user", "--net", "--target"])
        .args([&target.pid().to_string(), "sh", "-c", script])
        .output()
        .unwrap()
        .into()
}

/// The user whose `/proc` entry this is: root for a process that is not dumpable.
pub(crate) fn owner_of_proc(pid: Pid) -> u32 {
    fs::metadata(format!("/proc/{pid}/status")).unwrap().uid()
}
