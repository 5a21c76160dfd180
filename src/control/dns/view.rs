//! The resolver view, kept up to date with `resolv.conf` by inotify: no timer, no polling.
//!
//! The file may be rewritten in place, replaced by rename, be a symlink (or a chain of them) whose
//! links or target change, vanish and come back. So every directory on the way is watched: the one
//! of the path itself and, for each link, the one that it points into. After any event the way is
//! walked anew.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;

use crate::sys::readiness;

use super::resolv_conf::ResolverView;

/// Links followed on the way (the kernel's own limit is 40).
const MAX_LINKS: usize = 40;

/// Reads `path` now and again after each change, until nobody listens. Errors are those of
/// inotify; with `servers` these are asked and only the rest of the file counts; a file that cannot be read counts as empty, as it does for glibc.
pub async fn follow(
    path: &Path,
    servers: Option<Vec<SocketAddr>>,
    view: watch::Sender<ResolverView>,
) -> io::Result<()> {
    loop {
        // Watch first, read second: a change in between is an event.
        let inotify = watch_way(path)?;
        let mut now = read(path);
        if let Some(servers) = &servers {
            now.servers.clone_from(servers);
        }
        view.send_if_modified(|present| {
            let changed = *present != now;
            *present = now.clone();
            changed
        });
        let changed = readiness::readable(inotify.into())?;
        tokio::select! {
            ready = changed.readable() => drop(ready?),
            () = view.closed() => return Ok(()),
        }
    }
}

/// The view that the file gives now.
pub(super) fn read(path: &Path) -> ResolverView {
    let text = std::fs::read(path).unwrap_or_default();
    ResolverView::parse(&String::from_utf8_lossy(&text))
}

fn watch_way(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let directory = at.parent().unwrap_or(Path::new("/")).to_owned();
        watch_directory(&inotify, &directory)?;
        let Ok(target) = std::fs::read_link(&at) else { break };
        at = directory.join(target);
    }
    // Writes to the file itself, so that a busy directory does not wake us for its other files.
    add(&inotify, &at, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB)?;
    Ok(inotify)
}

/// Watches `directory` for names that come and go, or the nearest one above that exists.
fn watch_directory(inotify: &Inotify, directory: &Path) -> io::Result<()> {
    let names = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let mut directory = PathBuf::from(directory);
    while !add(inotify, &directory, names)? {
        if !directory.pop() {
            break;
        }
    }
    Ok(())
}

/// Adds a watch; `false` if there is nothing at `path`.
fn add(inotify: &Inotify, path: &Path, events: AddWatchFlags) -> io::Result<bool> {
    match inotify.add_watch(path, events) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
