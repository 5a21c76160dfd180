//! A mount namespace in which little is left: `/etc` and `/run`, read-only, on an empty root.
//!
//! What a helper of engines keeps in sight is what it needs while it runs: the host's resolver
//! configuration, which may be a link to somewhere below `/run` that other daemons replace. Mounts
//! that the host makes there later are seen too, and nothing that is mounted here is seen there.
//!
//! Taking the right to mount from a user namespace that is not ours changes who we are in it: user
//! and group 0. Called while there is one thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, chdir, geteuid, pivot_root, setresgid, setresuid};

use super::attach::Target;
use super::{Sees, SetupError};

/// Where the new root is put together: a directory that every system has.
const STAGE: &str = "/tmp";

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Sees {
    /// Lets this process see nothing else from now on. Without root's rights those of `target`'s
    /// user namespace serve.
    ///
    /// # Errors
    /// Whatever the kernel refuses; the process has to end then.
    pub fn enforce(self, target: &Target) -> Result<(), SetupError> {
        if self == Sees::Everything {
            return Ok(());
        }
        if !geteuid().is_root() {
            let Target::Process(pid) = target else {
                let what = "see fewer files: only the user namespace of a process gives the right";
                let source = io::Error::from_raw_os_error(libc::EPERM);
                return Err(SetupError::Host { what: what.to_owned(), source });
            };
            become_root_of(*pid).map_err(failed("enter the user namespace of the target"))?;
        }
        enclose()
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> SetupError {
    move |source| SetupError::Host { what: what.to_owned(), source }
}

fn become_root_of(pid: i32) -> io::Result<()> {
    setns(fs::File::open(format!("/proc/{pid}/ns/user"))?, CloneFlags::CLONE_NEWUSER)?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

fn enclose() -> Result<(), SetupError> {
    let resolv_conf = fs::canonicalize(RESOLV_CONF).ok();
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| failed("make a mount namespace")(e.into()))?;
    let tree = MsFlags::MS_REC;
    set("/", tree | MsFlags::MS_SLAVE).map_err(failed("part from the host's mounts"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let stage = Path::new(STAGE);
    mount(Some("tmpfs"), stage, Some("tmpfs"), flags, Some("size=1k,mode=0755"))
        .map_err(|e| failed("make an empty root")(e.into()))?;
    // The new root is to be a mount of which nobody else hears.
    set(STAGE, tree | MsFlags::MS_PRIVATE).map_err(failed("keep the empty root to ourselves"))?;
    for kept in ["/etc", "/run"] {
        keep_directory(Path::new(kept), stage).map_err(failed(&format!("keep {kept}")))?;
    }
    if let Some(file) = resolv_conf.filter(|f| !f.starts_with("/etc") && !f.starts_with("/run")) {
        keep_file(&file, stage).map_err(failed(&format!("keep {}", file.display())))?;
    }
    chdir(stage)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| chdir("/"))
        .map_err(|e| failed("turn to the empty root")(e.into()))
}

fn set(at: &str, propagation: MsFlags) -> io::Result<()> {
    Ok(mount(None::<&str>, at, None::<&str>, propagation, None::<&str>)?)
}

/// Makes `directory` appear below `stage`, with what is and will be mounted in it.
fn keep_directory(directory: &Path, stage: &Path) -> io::Result<()> {
    let place = inside(stage, directory);
    fs::create_dir(&place)?;
    bind(directory, &place)?;
    // The mounts in it hear of the host's.
    Ok(mount(
        None::<&str>,
        &place,
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?)
}

/// Makes `file` appear below `stage`.
fn keep_file(file: &Path, stage: &Path) -> io::Result<()> {
    let place = inside(stage, file);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&place, "")?;
    bind(file, &place)
}

fn inside(stage: &Path, path: &Path) -> PathBuf {
    stage.join(path.strip_prefix("/").unwrap_or(path))
}

/// A recursive bind mount, read-only at its top: below, in a user namespace, it is as it was.
fn bind(from: &Path, to: &Path) -> io::Result<()> {
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, bind, None::<&str>)?;
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags_of(to)?;
    if let Err(e) = mount(None::<&str>, to, None::<&str>, again, None::<&str>) {
        // A nested container may keep us from it, and lets nobody write either.
        tracing::debug!("{} stays writable: {e}", to.display());
    }
    Ok(())
}

/// The flags of a mount that a user namespace may not clear (mount_namespaces(7)).
fn flags_of(mounted: &Path) -> io::Result<MsFlags> {
    let found = statvfs(mounted)?.flags();
    let mut flags = MsFlags::empty();
    for (has, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if found.contains(has) {
            flags |= flag;
        }
    }
    Ok(flags)
}
