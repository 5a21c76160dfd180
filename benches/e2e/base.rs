//! Words that the modules of this benchmark share: failing, running commands, waiting, `/proc`.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tapway::sys::clock;

/// Why a step of the benchmark could not be done, as one sentence for the reader of the table.
#[derive(Debug, Clone)]
pub struct Failure(pub String);

impl Failure {
    /// A failure of `what`, caused by `cause`.
    pub fn because(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Failure(format!("{what}: {cause}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs `command` to its end and returns what it wrote to stdout.
///
/// # Errors
/// When it cannot be started or its exit status is not 0; the sentence ends with its last words.
pub fn output_of(command: &mut Command) -> Result<String, Failure> {
    let line = command_line(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::because(format_args!("start `{line}`"), e))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let last = stderr.lines().chain(stdout.lines()).rfind(|l| !l.trim().is_empty()).unwrap_or("");
    Err(Failure(format!("`{line}` ended with {}: {}", out.status, last.trim())))
}

/// The command as one would type it, without the `nsenter … setpriv … --` in front.
fn command_line(command: &Command) -> String {
    let words: Vec<&OsStr> =
        std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let start = words.iter().rposition(|w| *w == ENTERED).map_or(0, |i| i + 1);
    let words: Vec<_> = words.iter().skip(start).map(|w| w.to_string_lossy()).collect();
    words.join(" ")
}

/// Ends the options of the commands that lead into a namespace; the real command follows.
pub const ENTERED: &str = "--";

/// A child that is ended, and waited for, when its owner lets go of it.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `command` in the background.
    pub fn start(command: &mut Command) -> Result<Self, Failure> {
        let child = command
            .spawn()
            .map_err(|e| Failure::because(format_args!("start `{}`", command_line(command)), e))?;
        Ok(Process(child))
    }

    /// The process id. The commands of the lab replace themselves (`exec`) until the program that
    /// was meant runs, so this is that program's id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child, to talk to it through its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Whether it ended already, and how.
    pub fn ended(&mut self) -> Option<String> {
        self.0.try_wait().ok().flatten().map(|status| status.to_string())
    }
}

impl Drop for Process {
    /// Asks politely first: a helper may have files of its own to remove.
    fn drop(&mut self) {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if let Ok(id) = i32::try_from(self.0.id())
            && !ended(&mut self.0)
        {
            let _ = signal::kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if !wait_until(Duration::from_secs(1), || ended(&mut self.0)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Waits until `condition` holds, looking every 5 ms; false when `bound` has passed first.
pub fn wait_until(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = clock::now();
    loop {
        if condition() {
            return true;
        }
        if clock::now().since(start) >= bound {
            return false;
        }
        pause(Duration::from_millis(5));
    }
}

/// Lets `time` pass: a measuring interval, or the step of a bounded wait.
#[expect(clippy::disallowed_methods, reason = "a measuring interval is a time, not a condition")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// What a helper's processes use, summed over all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident bytes (`VmRSS`: anonymous, file-backed and shared).
    pub resident: u64,
    /// Resident anonymous bytes (`RssAnon`): what this instance costs when the program is cached.
    pub anonymous: u64,
    /// Times that a thread went to sleep and was woken (`voluntary_ctxt_switches`).
    pub wakeups: u64,
    /// Processor time, user and system, in ticks of 10 ms (`USER_HZ` is 100 on Linux).
    pub ticks: u64,
}

impl Usage {
    /// Processor time in seconds.
    pub fn seconds(&self) -> f64 {
        self.ticks as f64 / 100.0
    }

    /// The usage of `root` and of every process that descends from it.
    pub fn of_tree(root: u32) -> Usage {
        let mut total = Usage::default();
        for pid in tree(root) {
            total.add_process(pid);
        }
        total
    }

    /// A process that ends while it is read counts as far as it could be read.
    fn add_process(&mut self, pid: u32) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        self.resident += 1024 * status_field(&status, "VmRSS:");
        self.anonymous += 1024 * status_field(&status, "RssAnon:");
        if let Some(stat) = Stat::read(pid) {
            self.ticks += stat.ticks;
        }
        for thread in ids_in(format!("/proc/{pid}/task")) {
            let path = format!("/proc/{pid}/task/{thread}/status");
            let status = std::fs::read_to_string(path).unwrap_or_default();
            self.wakeups += status_field(&status, "voluntary_ctxt_switches:");
        }
    }
}

/// The number behind `name` at the start of a line of a `/proc/PID/status`; 0 if it is not there.
fn status_field(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// `root` and all its descendants.
fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = ids_in("/proc")
        .into_iter()
        .filter_map(|pid| Stat::read(pid).map(|stat| (pid, stat.parent)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        for &(pid, _) in parents.iter().filter(|(_, of)| *of == parent) {
            if !found.contains(&pid) {
                found.push(pid);
            }
        }
    }
    found
}

/// The entries of a directory whose names are numbers.
pub fn ids_in(dir: impl AsRef<Path>) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The fields of proc_pid_stat(5) that matter here.
struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name (field 2) may hold spaces and parentheses; the last parenthesis ends it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Stat { parent: u32::try_from(number(4)?).ok()?, ticks: number(14)? + number(15)? })
    }
}

/// What the processors of the machine have done since it started, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    /// Wanted by this machine, and given to another by the hypervisor.
    stolen: u64,
    /// Nothing to do, or nothing but to wait for a disk.
    idle: u64,
    total: u64,
}

impl Processors {
    /// Reads proc_stat(5); a machine that does not tell has nothing stolen.
    pub fn now() -> Processors {
        /// `user nice system idle iowait irq softirq steal`: what follows is counted in these.
        const FIELDS: usize = 8;
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let words = text.lines().next().unwrap_or("").split_whitespace().skip(1);
        let ticks: Vec<u64> = words.take(FIELDS).filter_map(|word| word.parse().ok()).collect();
        let field = |number: usize| ticks.get(number).copied().unwrap_or(0);
        let (stolen, idle) = (field(FIELDS - 1), field(3) + field(4));
        Processors { stolen, idle, total: ticks.iter().sum() }
    }

    /// The share of time in which anything ran, or would have, since `before`.
    pub fn busy_since(self, before: Processors) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        1.0 - self.idle.saturating_sub(before.idle) as f64 / total as f64
    }

    /// The share of time that was stolen since `before`.
    pub fn stolen_since(self, before: Processors) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / total as f64
    }
}

/// Reads one line from a child's pipe.
pub fn read_line(from: &mut impl io::BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    match from.read_line(&mut line) {
        Ok(0) => Err(Failure("it ended before it answered".into())),
        Ok(_) => Ok(line.trim().to_owned()),
        Err(e) => Err(Failure::because("read its answer", e)),
    }
}
