//! The root directory of another system, for an engine that the machine does not have.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::{ENTERED, Failure, Process, output_of, read_line};
use crate::lab::Lab;

/// A root directory that is not the machine's, as a process and all that join it see it.
#[derive(Debug)]
pub struct Root {
    pub directory: PathBuf,
    /// The account's runtime directory there.
    runtime: PathBuf,
    sitter: Process,
}

impl Root {
    /// Lays an overlay over `directory` and makes it the root of a mount namespace, with the lab's
    /// directory in it. (In a chroot the kernel refuses user namespaces.)
    pub fn enter(lab: &Lab, directory: &Path) -> Result<Root, Failure> {
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
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.sitter.id()))
    }

    /// `command` among its mounts.
    pub fn wrap(&self, command: &Command) -> Command {
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
