//! Into the background: the caller's process waits until everything is there, and its end says so.
//!
//! ```text
//!   caller's process          the daemon
//!     detach ---- fork ---->  sets up: messages go to the caller's standard error
//!     waits                   Background::ready: new session, standard streams to /dev/null
//!     exits with 0  <-------  "ready"
//!     exits with 1  <-------  or the daemon's end before that
//! ```
//! The fork comes first, before any thread and any other descriptor, so the daemon is what it will
//! be from its first step on. Callers that collect the standard streams until they are closed
//! (podman does) get their end when the caller's process ends: by then nobody else has them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Group, Pid, Uid, User, getpid, setsid};

use super::SetupError;
use crate::sys::process;

/// Who returns from [`detach`].
pub enum Side {
    /// The caller's process, when it may end, and its exit status.
    Caller(u8),
    /// The daemon.
    Daemon(Background),
}

/// The daemon's way to tell that it is ready.
#[derive(Debug)]
pub struct Background(UnixStream);

/// The word that means "ready".
const READY: u8 = 1;

/// Splits the process; see above.
///
/// # Errors
/// Those of socketpair(2) and fork(2).
pub fn detach() -> Result<Side, SetupError> {
    let fail = |source| SetupError::Host { what: "go into the background".to_owned(), source };
    let (mut ours, theirs) = UnixStream::pair().map_err(fail)?;
    match process::fork().map_err(fail)? {
        ForkResult::Child => Ok(Side::Daemon(Background(theirs))),
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut word = [0];
            let ready = ours.read_exact(&mut word).is_ok() && word == [READY];
            Ok(Side::Caller(if ready { 0 } else { status_of(child) }))
        }
    }
}

/// The exit status of a daemon that ended before it was ready: never 0, which means that it is.
fn status_of(daemon: Pid) -> u8 {
    loop {
        return match waitpid(daemon, None) {
            Err(nix::Error::EINTR) => continue,
            Ok(WaitStatus::Exited(_, status)) => u8::try_from(status).unwrap_or(1).max(1),
            _ => 1,
        };
    }
}

impl Background {
    /// Lets go of the caller's terminal and streams, and tells that everything is there.
    ///
    /// # Errors
    /// Those of opening `/dev/null`.
    pub fn ready(mut self) -> Result<(), SetupError> {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |source| SetupError::Host { what, source }
        };
        // It fails only for the leader of a process group, which a new process is not.
        let _ = setsid();
        silence().map_err(fail("let go of the standard streams"))?;
        self.0.write_all(&[READY]).map_err(fail("tell that everything is there"))
    }
}

/// Points the standard streams to `/dev/null`.
pub(super) fn silence() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(null.as_fd())?;
    nix::unistd::dup2_stdout(null.as_fd())?;
    nix::unistd::dup2_stderr(null.as_fd())?;
    Ok(())
}

/// A file that gets our process id, made early so that it can be made, and written last. It goes
/// away again if we never come to that.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
    written: bool,
}

impl PidFile {
    /// Makes the file, empty, for its owner alone.
    ///
    /// # Errors
    /// [`SetupError::Output`].
    pub fn create(path: &Path) -> Result<PidFile, SetupError> {
        let fail = |source| SetupError::Output { kind: "pid file", path: path.to_owned(), source };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        Ok(PidFile { file, path: path.to_owned(), written: false })
    }

    /// Writes our process id.
    ///
    /// # Errors
    /// [`SetupError::Output`].
    pub fn write(mut self) -> Result<(), SetupError> {
        let text = format!("{}\n", getpid());
        self.file.write_all(text.as_bytes()).map_err(|source| SetupError::Output {
            kind: "pid file",
            path: self.path.clone(),
            source,
        })?;
        self.written = true;
        Ok(())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !self.written {
            // Whoever finds it empty anyhow knows that nobody was there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A user and a group to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Person {
    uid: Uid,
    gid: Gid,
}

impl Person {
    /// `USER[:GROUP]`, by name or number; without a group, the user's own. `None` if there is
    /// nobody of that name.
    pub fn find(text: &str) -> Option<Person> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let known = match user.parse() {
            Ok(number) => User::from_uid(Uid::from_raw(number)),
            Err(_) => User::from_name(user),
        };
        let known = known.ok().flatten();
        let uid = known.as_ref().map(|user| user.uid);
        let uid = uid.or_else(|| user.parse().ok().map(Uid::from_raw))?;
        let gid = match group {
            Some(group) => match group.parse() {
                Ok(number) => Gid::from_raw(number),
                Err(_) => Group::from_name(group).ok().flatten()?.gid,
            },
            // A number that nobody has is the number of a group that nobody has.
            None => known.map_or(Gid::from_raw(uid.as_raw()), |user| user.gid),
        };
        Some(Person { uid, gid })
    }

    /// Becomes that user, with no other groups. To be called when all set-up is done.
    ///
    /// # Errors
    /// Those of setuid(2) and its like.
    pub fn become_them(self) -> Result<(), SetupError> {
        let drop_to = || {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setresgid(self.gid, self.gid, self.gid)?;
            nix::unistd::setresuid(self.uid, self.uid, self.uid)
        };
        drop_to().map_err(|e| SetupError::Host {
            what: format!("become user {} of group {}", self.uid, self.gid),
            source: e.into(),
        })
    }
}

/// Whether we are the machine's own root, and not merely a user namespace's.
pub fn is_real_root() -> bool {
    let whole = |map: String| {
        let numbers: Vec<&str> = map.split_whitespace().collect();
        numbers == ["0", "0", "4294967295"]
    };
    Uid::effective().is_root() && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_that_was_never_written_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        drop(PidFile::create(&path).unwrap());
        assert!(!path.exists());
        PidFile::create(&path).unwrap().write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn people_are_found_by_name_and_number() {
        let person = |uid, gid| Some(Person { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) });
        assert_eq!(Person::find("root"), person(0, 0));
        assert_eq!(Person::find("54321:54322"), person(54_321, 54_322));
        assert_eq!(Person::find("54321"), person(54_321, 54_321));
        for nobody in ["", "no such user", "root:no such group", "-1"] {
            assert_eq!(Person::find(nobody), None, "{nobody:?}");
        }
    }
}
