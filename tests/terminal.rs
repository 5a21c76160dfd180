//! tapway under a terminal: keys, job control, an interactive shell in the guest.
//!
//! A real shell runs on a pseudo-terminal of its own; the tests type at it and read what it shows.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::Pid;
use tempfile::TempDir;

use support::{PATIENCE, binary, ends, user};

/// An interactive shell of the user on a terminal.
struct Terminal {
    /// Ours; closing it hangs the terminal up.
    keyboard: Option<File>,
    shown: String,
    shell: Child,
    /// `$TMPDIR` of the shell.
    scratch: TempDir,
}

impl Terminal {
    fn new() -> Terminal {
        // Close-on-exec from the start: a program that another test starts at this moment would
        // keep the terminal from hanging up.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(ptsname_r(&master).unwrap())
            .unwrap();
        let scratch = support::scratch();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let shell = user("setsid")
            .args(["--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"])
            .env("PS1", "outer> ")
            .env("TERM", "dumb")
            .env("TAPWAY", binary())
            .env("TMPDIR", scratch.path())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let mut terminal = Terminal {
            keyboard: Some(File::from(OwnedFd::from(master))),
            shown: String::new(),
            shell,
            scratch,
        };
        terminal.shows("outer> ");
        terminal
    }

    /// Types `text`.
    fn keys(&mut self, text: &str) {
        self.keyboard.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, and forgets all up to its end.
    fn shows(&mut self, text: &str) {
        let keyboard = self.keyboard.as_mut().unwrap();
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            let mut ready = [PollFd::new(keyboard.as_fd(), PollFlags::POLLIN)];
            let count = poll(&mut ready, PollTimeout::from(PATIENCE)).unwrap();
            assert!(count > 0, "{text:?} never shows in {:?}", self.shown);
            let length = keyboard.read(&mut buffer).unwrap();
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// Types a command line and waits for its echo, so that what follows is its output.
    fn enter(&mut self, line: &str) {
        self.keys(&format!("{line}\n"));
        self.shows(&format!("{line}\r\n"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // As when a window is closed: the shell hangs up its jobs and goes.
        self.keyboard = None;
        let pid = Pid::from_raw(self.shell.id().try_into().unwrap());
        if !ends(pid, PATIENCE) {
            let _ = self.shell.kill();
        }
        let _ = self.shell.wait();
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";

#[test]
fn ctrl_c_reaches_the_command_once() {
    let mut terminal = Terminal::new();
    terminal.enter(
        "$TAPWAY run -- bash -c 'trap \"n=\\$((n+1))\" INT; echo go; \
         until [ \"$n\" ]; do sleep 0.1; done; sleep 0.5; echo got=$n; exit 9'",
    );
    terminal.shows("go\r\n");
    terminal.keys(CTRL_C);
    terminal.shows("got=1\r\n");
    terminal.shows("outer> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=9\r\n");
}

#[test]
fn ctrl_c_ends_a_command_that_does_not_mind_it() {
    let mut terminal = Terminal::new();
    terminal.enter("$TAPWAY run -- sh -c 'echo go; exec sleep 1000'");
    terminal.shows("go\r\n");
    terminal.keys(CTRL_C);
    terminal.shows("outer> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=130\r\n");
}

#[test]
fn ctrl_z_stops_a_job_and_fg_continues_it() {
    let mut terminal = Terminal::new();
    terminal.enter("$TAPWAY run -- sh -c 'echo go; while read n; do echo got=$n; done; exit 3'");
    terminal.shows("go\r\n");
    for word in ["once", "twice"] {
        terminal.keys(CTRL_Z);
        terminal.shows("Stopped  ");
        terminal.shows("outer> ");
        terminal.enter("fg");
        terminal.enter(word);
        terminal.shows(&format!("got={word}\r\n"));
    }
    terminal.keys(CTRL_D);
    terminal.shows("outer> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=3\r\n");
}

#[test]
fn a_job_in_the_background_stops_when_it_reads_the_terminal() {
    let mut terminal = Terminal::new();
    terminal.enter("$TAPWAY run -- sh -c 'read line; echo line=$line' &");
    terminal.shows("outer> ");
    terminal.enter("until jobs | grep Stopped; do sleep 0.05; done");
    terminal.shows("Stopped  ");
    terminal.shows("outer> ");
    terminal.enter("fg");
    terminal.shows("\r\n");
    terminal.enter("typed");
    terminal.shows("line=typed\r\n");
}

#[test]
fn closing_the_terminal_ends_the_guest() {
    let mut terminal = Terminal::new();
    terminal.enter("$TAPWAY run -- bash --norc --noprofile --noediting -i");
    terminal.enter("echo $$ $PPID > $TMPDIR/pids; echo written");
    terminal.shows("written\r\n");
    let pids = std::fs::read_to_string(terminal.scratch.path().join("pids")).unwrap();
    drop(terminal);
    for pid in pids.split_whitespace() {
        assert!(ends(Pid::from_raw(pid.parse().unwrap()), PATIENCE), "{pid} is still there");
    }
}

#[test]
fn an_interactive_shell_in_the_guest_has_the_terminal_to_itself() {
    let mut terminal = Terminal::new();
    terminal.enter("PS1='inner> ' $TAPWAY run -- bash --norc --noprofile --noediting -i");
    terminal.shows("inner> ");
    // No "cannot set terminal process group", no "no job control in this shell".
    assert!(!terminal.shown.contains("job control"), "{}", terminal.shown);
    terminal.enter("echo flags=$-; id -u");
    terminal.shows("flags=");
    terminal.shows("m");
    terminal.shows("\r\n0\r\n");
    terminal.shows("inner> ");

    // Ctrl-C ends the job, neither the shell nor tapway.
    terminal.enter("sh -c 'echo go; exec sleep 1000'");
    terminal.shows("go\r\n");
    terminal.keys(CTRL_C);
    terminal.shows("inner> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=130\r\n");
    terminal.shows("inner> ");

    // Ctrl-Z is a matter of the inner shell too.
    terminal.enter("cat");
    terminal.enter("one");
    terminal.shows("one\r\n");
    terminal.keys(CTRL_Z);
    terminal.shows("Stopped");
    terminal.shows("inner> ");
    terminal.enter("fg");
    terminal.enter("two");
    terminal.shows("two\r\n");
    terminal.keys(CTRL_D);
    terminal.shows("inner> ");

    // The inner shell as a job of the outer one.
    terminal.enter("suspend");
    terminal.shows("Stopped");
    terminal.shows("outer> ");
    terminal.enter("fg");
    terminal.enter("echo back");
    terminal.shows("back\r\n");
    terminal.shows("inner> ");
    terminal.enter("exit 6");
    terminal.shows("outer> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=6\r\n");
}

#[test]
fn without_a_command_the_users_shell_starts() {
    let mut terminal = Terminal::new();
    terminal.enter("SHELL=/bin/sh PS1='inner> ' $TAPWAY run");
    terminal.shows("inner> ");
    terminal.enter("cat /proc/$$/comm; exit 5");
    terminal.shows("sh\r\n");
    terminal.shows("outer> ");
    terminal.enter("echo status=$?");
    terminal.shows("status=5\r\n");
}
