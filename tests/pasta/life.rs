//! How an instance begins and ends.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use crate::lab::{Lab, PATIENCE, sh, user_in};
use crate::support::{Ran, ends};

const NO_PORTS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

fn patience() -> u16 {
    u16::try_from(PATIENCE.as_millis()).unwrap()
}

/// Starts pasta by a shell that closes `closed` of its streams before.
fn start_without(lab: &mut Lab, closed: &str) {
    let pid_file = lab.directory.path().join("pid");
    let script = format!("exec \"$0\" \"$@\" {closed}");
    let mut command = user_in(lab.namespace(), "sh");
    command.args(["-c", &script, &lab.pasta(), "--quiet", "--config-net"]).args(NO_PORTS);
    command.arg("-P").arg(&pid_file).arg(lab.target.pid().to_string());
    let ran: Ran = command.output().unwrap().into();
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    let text = fs::read_to_string(&pid_file).unwrap();
    lab.daemon = Some(Pid::from_raw(text.trim().parse().unwrap()));
}

/// Nothing that the daemon opens takes the place of a stream that was closed.
#[test]
fn it_starts_with_any_of_the_standard_streams_closed() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let mut lab = Lab::new();
        start_without(&mut lab, closed);
        let daemon = lab.daemon.unwrap();
        for stream in 0..3 {
            let leads_to = fs::read_link(format!("/proc/{daemon}/fd/{stream}")).unwrap();
            assert_eq!(leads_to.to_str(), Some("/dev/null"), "{closed}: stream {stream}");
        }
        let link = format!("nsenter --net=/proc/{}/ns/net ip link show eth0", lab.target.pid());
        sh(&link);
    }
}

/// Engines read a pipe to its end, of which the daemon and its helpers may not hold the other one:
/// neither as a standard stream nor as any other descriptor.
#[test]
fn nobody_keeps_what_the_caller_waits_for() {
    let mut lab = Lab::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let pid_file = lab.directory.path().join("pid");
    // The caller forgets one, number 9, beside the three.
    let mut command = user_in(lab.namespace(), "sh");
    command.args(["-c", "exec 9>&1; exec \"$0\" \"$@\"", &lab.pasta(), "--quiet", "-T", "5001"]);
    command.args(["-P"]).arg(&pid_file).arg(lab.target.pid().to_string());
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    assert!(ends(Pid::from_raw(i32::try_from(child.id()).unwrap()), patience()));
    assert!(child.wait().unwrap().success());
    let text = fs::read_to_string(&pid_file).unwrap();
    lab.daemon = Some(Pid::from_raw(text.trim().parse().unwrap()));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let _ = sender.send(text);
    });
    assert_eq!(receiver.recv_timeout(PATIENCE).as_deref(), Ok(""));
}

/// A namespace by its name: a file of ours over which it is mounted, as podman has it.
struct Named<'a>(&'a Lab);

impl Named<'_> {
    fn path(&self) -> String {
        self.0.directory.path().join("netns").display().to_string()
    }

    /// Runs `script` where the namespace is mounted at `$N`, in a mount namespace of its own.
    fn with(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        let pid = self.0.target.pid();
        let mount = format!("touch $N; mount --bind /proc/{pid}/ns/net $N; {script}");
        command.args(["--mount", "sh", "-ec", &mount]).env("N", self.path());
        command.stdin(Stdio::null());
        command
    }
}

/// Not the mount but the name is what an instance lives for: podman unmounts lazily first.
#[test]
fn a_namespace_by_path_ends_it_with_its_name() {
    let lab = Lab::new();
    let named = Named(&lab);
    let pid_file = lab.directory.path().join("pid");
    let user = user_in(lab.namespace(), &lab.pasta());
    let words = std::iter::once(user.get_program()).chain(user.get_args());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let start = format!(
        "{} -q --config-net {} --userns /proc/{}/ns/user --netns $N -P {}",
        words.join(" "),
        NO_PORTS.join(" "),
        lab.target.pid(),
        pid_file.display(),
    );
    // It stays through the unmount, for longer than any timer of a second, and goes with the name.
    let script = format!(
        "{start}; P=$(cat {}); umount -l $N; sleep 1.5; kill -0 $P; rm $N
        for i in $(seq 600); do kill -0 $P 2>/dev/null || exit 0; sleep 0.1; done
        kill -KILL $P; exit 9",
        pid_file.display()
    );
    let ran: Ran = named.with(&script).output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
}

/// buildah's: the name is one of /proc's, and goes with its process.
#[test]
fn a_path_of_proc_ends_it_with_the_process() {
    let mut lab = Lab::new();
    let pid_file = lab.directory.path().join("pid");
    let target = lab.target.pid();
    let mut command = user_in(lab.namespace(), &lab.pasta());
    command.args(["-q", "--config-net"]).args(NO_PORTS).arg("-P").arg(&pid_file);
    command.args(["--userns", &format!("/proc/{target}/ns/user")]);
    command.args(["--netns", &format!("/proc/{target}/ns/net")]);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let text = fs::read_to_string(&pid_file).unwrap();
    let daemon = Pid::from_raw(text.trim().parse().unwrap());
    lab.daemon = Some(daemon);
    assert!(!ends(daemon, 0));
    lab.target.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(ends(daemon, patience()), "the target is gone, and it is not");
}
