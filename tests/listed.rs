//! Helpers that engines have started by other names are instances of their user's too: `tapway ps`,
//! `port`, `flows` and `stats` know them, and what started them notices nothing of it.

mod support;

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use support::{
    Background, PATIENCE, Ran, bare_namespace, binary, ends, free_port, in_namespace_of, scratch,
    user,
};

/// A user's runtime directory, and the programs' names.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { directory: scratch() };
        for name in ["slirp4netns", "pasta", "tapway"] {
            symlink(binary(), lab.directory.path().join(name)).unwrap();
        }
        let made = user("mkdir").args(["-m", "0700"]).arg(lab.runtime()).status().unwrap();
        assert!(made.success());
        lab
    }

    fn runtime(&self) -> PathBuf {
        self.directory.path().join("runtime")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = user(self.directory.path().join(program));
        command.args(arguments).env("XDG_RUNTIME_DIR", self.runtime());
        command
    }

    /// What tapway answers, which has to be an answer.
    fn asks(&self, arguments: &[&str]) -> String {
        let ran: Ran = self.command("tapway", arguments).output().unwrap().into();
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}: {ran:?}");
        ran.stdout
    }

    /// The names of the instances in this lab. Those whose sockets are elsewhere are others'.
    fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.asks(&["ps", "-q"]);
        names.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    }

    /// The files of control sockets.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.runtime().join("tapway"));
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries.into_iter().flatten().map(name).map(|n| n.into_string().unwrap()).collect()
    }
}

/// Speaks to the instance `name`, whose guest is behind `target`, in all ways there are.
fn speak(lab: &Lab, name: &str, target: &Background) {
    let host = free_port();
    let added = lab.asks(&["port", "add", name, &format!("127.0.0.1:{host}:80")]);
    assert!(added.contains(&host.to_string()), "{added}");
    assert!(lab.asks(&["port", "list", name]).contains(&host.to_string()));
    // It holds the connection until its client lets go.
    let server = "timeout 60 busybox nc -l -p 80 -e sh -c 'echo heard; cat'";
    std::thread::scope(|scope| {
        let served = scope.spawn(|| in_namespace_of(target, server));
        // The server needs a moment.
        let held = (0..PATIENCE / 20).find_map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", host)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut heard = [0; 6];
            let told = stream.read_exact(&mut heard);
            (told.is_ok() && heard == *b"heard\n").then_some(stream)
        });
        let Some(held) = held else { panic!("no answer: {:?}", served.join().unwrap()) };
        assert!(lab.asks(&["flows", name]).contains("tcp"));
        drop(held);
    });
    assert!(lab.asks(&["stats", name, "--json"]).contains("frames"));
    lab.asks(&["port", "rm", name, &format!("127.0.0.1:{host}:80")]);
}

#[test]
fn slirp4netns_is_listed_while_it_lives() {
    let lab = Lab::new();
    // The sandbox moves it into the namespaces of the target, whose user is its own by another id.
    for sandbox in [&[][..], &["--enable-sandbox", "--enable-seccomp"]] {
        let target = bare_namespace();
        let pid = target.pid().to_string();
        let options = [&["-c", "-r", "1", "-e", "0"], sandbox, &[&pid, "tap0"]].concat();
        let mut command = lab.command("slirp4netns", &options);
        let helper = Background::start(command.stdin(Stdio::piped()));
        let name = format!("slirp4netns-{}", helper.pid());
        let mut helper = helper;
        let file = lab.runtime().join(format!("tapway/{name}.sock"));
        helper.until("its socket", || file.exists());
        assert_eq!(lab.names("slirp4netns-"), [&name[..]]);
        speak(&lab, &name, &target);
        helper.close_stdin();
        let ran = helper.end();
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert!(!ran.stderr.contains("socket"), "{ran:?}");
        assert_eq!(lab.files(), [""; 0], "{sandbox:?}");
    }
}

#[test]
fn who_is_killed_is_forgotten() {
    let lab = Lab::new();
    let start = |target: &Background| {
        let pid = target.pid().to_string();
        let mut helper = Background::start(&mut lab.command("slirp4netns", &[&pid, "tap0"]));
        let file = format!("slirp4netns-{}.sock", helper.pid());
        helper.until("its socket", || lab.files().contains(&file));
        (helper, file)
    };
    let targets = [bare_namespace(), bare_namespace(), bare_namespace()];
    let [(first, first_file), (second, second_file)] = [start(&targets[0]), start(&targets[1])];
    first.signal(Signal::SIGKILL);
    first.end();
    assert!(lab.files().contains(&first_file));
    // The next one removes it, and nothing else.
    let (third, third_file) = start(&targets[2]);
    let mut files = lab.files();
    files.sort();
    let mut expected = [second_file, third_file];
    expected.sort();
    assert_eq!(files, expected);
    // One that ends by a signal of which it can hear leaves nothing.
    second.signal(Signal::SIGTERM);
    assert_eq!(second.end().signal, Some(Signal::SIGTERM as i32));
    third.signal(Signal::SIGKILL);
    third.end();
    assert_eq!(lab.names("slirp4netns-"), [""; 0]);
    assert_eq!(lab.files(), [""; 0]);
}

#[test]
fn pasta_is_listed_and_says_nothing_of_it() {
    let lab = Lab::new();
    let target = bare_namespace();
    let pid_file = lab.directory.path().join("pid");
    let mut command = lab.command("pasta", &["--config-net", "-t", "none", "-u", "none"]);
    command.args(["-T", "none", "-U", "none", "--pid"]).arg(&pid_file);
    let ran: Ran = command.arg(target.pid().to_string()).output().unwrap().into();
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    let pid = fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    let name = format!("pasta-{pid}");
    assert_eq!(lab.names("pasta-"), [&name[..]]);
    speak(&lab, &name, &target);
    drop(target);
    assert!(ends(Pid::from_raw(pid.parse().unwrap()), PATIENCE), "it outlives its target");
    assert_eq!(lab.files(), [""; 0]);
}

/// Without a directory that is the user's own there is no socket, and nobody hears of it.
#[test]
fn where_there_is_no_runtime_directory_nothing_is_made() {
    let lab = Lab::new();
    if std::path::Path::new(&format!("/run/user/{}", support::uid())).exists() {
        support::loudly("NOT TESTED: this user has a runtime directory");
        return;
    }
    let target = bare_namespace();
    let pid = target.pid().to_string();
    let mut command = lab.command("slirp4netns", &["-c", "-e", "0", "-r", "1", &pid, "tap0"]);
    let mut helper = Background::start(command.env_remove("XDG_RUNTIME_DIR").stdin(Stdio::piped()));
    let mine = format!("slirp4netns-{}", helper.pid());
    let up = || in_namespace_of(&target, "ip address show tap0 | grep -q 10.0.2.100");
    helper.until("the link", || up().status == Some(0));
    assert!(!lab.asks(&["ps", "-q"]).contains(&mine));
    helper.close_stdin();
    let ran = helper.end();
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert!(!ran.stderr.contains("socket"), "{ran:?}");
}
