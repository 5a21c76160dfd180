//! The resolver view, kept up to date with `resolv.conf` by inotify.
//!
//! ```text
//!   /etc/resolv.conf ─▶ ../run/systemd/resolve/stub-resolv.conf
//!   watched: "etc" in /, "resolv.conf" in /etc, "run" in /, "systemd" in /run, …, and the file
//! ```
//! The file may be rewritten in place, replaced by rename, be a symbolic link (or a chain of them)
//! whose links, target or directories are replaced, vanish and come back. So each step of the way
//! is watched: its name in the directory that it is looked up in. After an event that concerns a
//! step, and a moment for whoever is at work to finish, the way is walked anew and the file read.
//!
//! The watch begins a second after the start, for the sake of guests that live no longer: the
//! kernel makes a process that ends wait for its watches (some 15 ms). After that there is no timer
//! as long as all steps can be watched. Where the kernel's limits or a directory's mode forbid it,
//! the file is also read every few seconds.
//!
//! Trust: the host's administrator wrote the file. Still only a regular file of a sane size is
//! read, since a pipe or a device would hold up the control thread.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::sys::readiness;

use super::resolv_conf::ResolverView;

/// Links followed on the way (the kernel's own limit is 40, path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Most that is read; resolvers' own files are below 1 KiB.
const MAX_SIZE: u64 = 64 * 1024;

/// From the first event to reading: an editor that empties a file and writes it has done both.
const SETTLE: Duration = Duration::from_millis(50);

/// From the start to the watch. A change in between counts when the watch begins.
const UNWATCHED: Duration = Duration::from_secs(1);

/// How often the file is read while a step of the way cannot be watched.
const POLL: Duration = Duration::from_secs(5);

/// Reads `path` now and again after each change, until nobody listens. With `servers` these are
/// asked and only the rest of the file counts. A file that cannot be read counts as empty, as it
/// does for glibc. Errors are those of the event loop.
pub async fn follow(
    path: &Path,
    servers: Option<Vec<SocketAddr>>,
    view: watch::Sender<ResolverView>,
) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let tell = || {
        let mut now = read(&path);
        if let Some(servers) = &servers {
            now.servers.clone_from(servers);
        }
        view.send_if_modified(|present| {
            let changed = *present != now;
            *present = now;
            changed
        });
    };
    tell();
    tokio::select! {
        () = sleep(UNWATCHED) => {}
        () = view.closed() => return Ok(()),
    }
    let mut complete_before = true;
    loop {
        // Watch first, read second: a change in between is an event.
        let way = Way::watch(&path);
        if complete_before && !way.complete {
            tracing::debug!(path = %path.display(), "cannot be watched, is read every {POLL:?}");
        }
        complete_before = way.complete;
        tell();
        let changed = async {
            tokio::select! {
                changed = way.changed() => changed?,
                () = sleep(POLL), if !way.complete => {}
            }
            sleep(SETTLE).await;
            io::Result::Ok(())
        };
        tokio::select! {
            changed = changed => changed?,
            () = view.closed() => return Ok(()),
        }
    }
}

/// The view that the file gives now.
pub fn read(path: &Path) -> ResolverView {
    let text = read_small(path).unwrap_or_else(|error| {
        tracing::debug!(path = %path.display(), %error, "no resolver configuration");
        Vec::new()
    });
    ResolverView::parse(&String::from_utf8_lossy(&text))
}

/// The contents of a regular file of at most [`MAX_SIZE`] bytes.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe without a writer would block the opener.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("it has more than {MAX_SIZE} bytes")));
    }
    Ok(text)
}

/// The watched way to a file.
struct Way {
    inotify: Option<(Inotify, AsyncFd<OwnedFd>)>,
    /// The names that are looked up in each watched directory.
    steps: HashMap<WatchDescriptor, Vec<OsString>>,
    /// Whether every step is watched.
    complete: bool,
}

impl Way {
    /// Walks and watches the way to `path`, which is absolute, as far as it exists.
    fn watch(path: &Path) -> Way {
        let inotify = open().inspect_err(|error| tracing::debug!(%error, "no inotify")).ok();
        let complete = inotify.is_some();
        let mut way = Way { inotify, steps: HashMap::new(), complete };
        let mut links = 0;
        // Without symbolic links, so that its parent is the one that the kernel means by "..".
        let mut at = PathBuf::from("/");
        let mut ahead = steps_of(path);
        while let Some(step) = ahead.pop() {
            if step == ".." {
                at.pop();
                continue;
            }
            way.watch_step(&at, &step);
            at.push(step);
            match at.read_link() {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return way;
                    }
                    at.pop();
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    ahead.extend(steps_of(&target));
                }
                // Not a link.
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
                // It comes, or can be searched, with an event of the step before.
                Err(_) => return way,
            }
        }
        let written = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        way.add(&at, written | AddWatchFlags::IN_ATTRIB);
        way
    }

    /// Watches `directory` for what happens to the name `step`.
    fn watch_step(&mut self, directory: &Path, step: &OsStr) {
        let names = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        if let Some(watch) = self.add(directory, names) {
            self.steps.entry(watch).or_default().push(step.to_owned());
        }
    }

    fn add(&mut self, path: &Path, events: AddWatchFlags) -> Option<WatchDescriptor> {
        let (inotify, _) = self.inotify.as_ref()?;
        match inotify.add_watch(path, events) {
            Ok(watch) => Some(watch),
            // The step before tells when it is there.
            Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no watch");
                self.complete = false;
                None
            }
        }
    }

    /// Returns when something has happened to a step or to the file.
    async fn changed(&self) -> io::Result<()> {
        let Some((inotify, ready)) = &self.inotify else { return std::future::pending().await };
        loop {
            let mut guard = ready.readable().await?;
            match inotify.read_events() {
                Ok(events) if events.iter().any(|event| self.concerns(event)) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the event is about a step. Those without a name are about the file, a directory
    /// itself, or events that the kernel had no room for.
    fn concerns(&self, event: &InotifyEvent) -> bool {
        let Some(name) = &event.name else { return true };
        self.steps.get(&event.wd).is_some_and(|names| names.contains(name))
    }
}

fn open() -> io::Result<(Inotify, AsyncFd<OwnedFd>)> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let ready = readiness::readable(inotify.as_fd().try_clone_to_owned()?)?;
    Ok((inotify, ready))
}

/// The names of a path, the last one first.
fn steps_of(path: &Path) -> Vec<OsString> {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).rev().map(|part| part.as_os_str().to_owned()).collect()
}
