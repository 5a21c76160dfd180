//! How a guest ends, and what its processes hear until then.

use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::{
    Background, PATIENCE, as_root, bare_namespace, ends, loudly, owner_of_proc, run, scratch,
    tapway,
};

#[test]
fn the_exit_status_is_the_commands() {
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        ("kill -34 $$", 128 + 34),
    ] {
        let ran = run(&["run", "--", "sh", "-c", script]);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(status), ""), "{script}");
    }
}

#[test]
fn commands_that_cannot_be_executed_have_the_shells_statuses() {
    let directory = scratch();
    let script = directory.path().join("script");
    fs::write(&script, "#!/nosuch/interpreter\n").unwrap();
    make_executable(&script);
    let script = script.to_str().unwrap();
    for (command, status, sentence) in [
        ("nosuchcommand", 127, "tapway: command not found: nosuchcommand\n"),
        ("/nosuch/command", 127, "tapway: command not found: /nosuch/command\n"),
        ("/etc/passwd", 126, "tapway: cannot execute /etc/passwd: Permission denied"),
        ("/", 126, "tapway: cannot execute /: Permission denied"),
        (script, 126, "the interpreter that it names does not exist"),
    ] {
        let ran = run(&["run", "--", command]);
        assert_eq!(ran.status, Some(status), "{command}");
        assert!(ran.stderr.contains(sentence), "{command}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    // A directory of PATH that may not be searched does not make a missing command "forbidden".
    let mut closed = tapway(&["run", "--", "nosuchcommand"]);
    let closed = closed.env("PATH", "/proc/1/fd:/usr/bin").output().unwrap();
    assert_eq!(closed.status.code(), Some(127));
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A guest that prints the pid of its command, and the signals that it gets.
fn listening_guest() -> (Background, Pid) {
    let script = "for s in INT TERM HUP USR1 USR2 WINCH QUIT; do trap \"echo $s\" $s; done
                  echo $$; while :; do sleep 30 >/dev/null 2>&1 & wait; done";
    let mut guest = Background::start(&mut tapway(&["run", "--", "bash", "-c", script]));
    let pid = guest.line().parse().unwrap();
    (guest, Pid::from_raw(pid))
}

#[test]
fn signals_sent_to_tapway_reach_the_command() {
    let (mut guest, _) = listening_guest();
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
        (Signal::SIGQUIT, "QUIT"),
    ] {
        guest.signal(signal);
        assert_eq!(guest.line(), name);
    }
}

#[test]
fn a_command_that_stops_stops_tapway_which_continues_it() {
    let (mut guest, command) = listening_guest();
    nix::sys::signal::kill(command, Signal::SIGSTOP).unwrap();
    let state = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    let tapway = guest.pid();
    guest.until("tapway is stopped", || state(tapway) == 'T');
    assert_eq!(state(command), 'T');
    guest.signal(Signal::SIGCONT);
    guest.until("both go on", || state(tapway) != 'T' && state(command) != 'T');
    guest.signal(Signal::SIGUSR1);
    assert_eq!(guest.line(), "USR1");
}

#[test]
fn the_command_dies_with_tapway() {
    let mut guest =
        Background::start(&mut tapway(&["run", "--", "sh", "-c", "echo $$; exec sleep 1000"]));
    let command = Pid::from_raw(guest.line().parse().unwrap());
    guest.signal(Signal::SIGKILL);
    assert!(ends(command, PATIENCE), "the command outlives tapway");
    assert_eq!(guest.end().signal, Some(9));
}

#[test]
fn tapway_ends_when_the_command_is_killed() {
    let (guest, command) = listening_guest();
    nix::sys::signal::kill(command, Signal::SIGKILL).unwrap();
    assert_eq!(guest.end().status, Some(128 + 9));
}

#[test]
fn nothing_that_can_be_given_up_is_kept() {
    if !as_root() {
        loudly("SKIPPED: only root can look into an undumpable process");
        return;
    }
    let target = bare_namespace();
    let (guest, _) = listening_guest();
    let attached = Background::start(&mut tapway(&["attach", &target.pid().to_string()]));
    let mut both = [guest, attached];
    for tapway in &mut both {
        let pid = tapway.pid();
        tapway.until("it is sealed", || owner_of_proc(pid) == 0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        let [soft, hard] = files.split_whitespace().skip(3).take(2).collect::<Vec<_>>()[..] else {
            panic!("{files}")
        };
        assert_eq!(soft, hard);
    }
}
