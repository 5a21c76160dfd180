//! Where control sockets are: a directory that belongs to one user alone.
//!
//! `$XDG_RUNTIME_DIR` counts only if it is the user's own: after `su` it may name another user's,
//! who would find a directory there that is not theirs. In `/tmp` anybody may have made the
//! directory first, so it is opened without following links and judged by its descriptor.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// What socket files end in.
const SUFFIX: &str = ".sock";

/// Why there is no directory for control sockets.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The kernel refused.
    #[error("{what} {} for control sockets", .path.display())]
    Io {
        /// "make the directory", "open the directory".
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It belongs to another user.
    #[error(
        "{} belongs to user {owner}: set XDG_RUNTIME_DIR to a directory of your own",
        .path.display()
    )]
    Foreign {
        /// Which one.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may write or look into it.
    #[error("others can use {0}: chmod 700 {0}", .path.display())]
    Open {
        /// Which one.
        path: PathBuf,
    },
}

/// Where a user's control sockets may be, the best place first.
#[derive(Clone, Debug)]
pub struct Places {
    uid: u32,
    outer: u32,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Debug)]
struct Candidate {
    /// Has to exist and to be the user's own; `None` for a directory that anybody may write to.
    base: Option<PathBuf>,
    path: PathBuf,
}

/// A user's own directory, open.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    file: File,
}

impl Places {
    /// Those of the user that this process runs as. Reads `XDG_RUNTIME_DIR`.
    pub fn of_this_user() -> Places {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let uid = geteuid().as_raw();
        let outer = fs::read_to_string("/proc/self/uid_map").ok();
        let outer = outer.and_then(|map| outer_uid(&map, uid)).unwrap_or(uid);
        Places::new(uid, outer, runtime, Path::new("/run/user"), Path::new("/tmp"))
    }

    /// Those of `uid`, who is `outer` outside of the user namespace: below `runtime`, if it is
    /// absolute as its specification demands; below `OUTER` in `run_user`; in `temporary`.
    ///
    /// Paths are named by the outer id, so that somebody who is root in a namespace of their own
    /// has the same directory there and does not collide with root's.
    pub fn new(
        uid: u32,
        outer: u32,
        runtime: Option<PathBuf>,
        run_user: &Path,
        temporary: &Path,
    ) -> Places {
        let own = |base: PathBuf| {
            let path = base.join("tapway");
            Candidate { base: Some(base), path }
        };
        let runtime = runtime.filter(|path| path.is_absolute()).map(own);
        let fallback = temporary.join(format!("tapway-{outer}"));
        let mut candidates: Vec<Candidate> = runtime.into_iter().collect();
        candidates.push(own(run_user.join(outer.to_string())));
        candidates.push(Candidate { base: None, path: fallback });
        Places { uid, outer, candidates }
    }

    /// The user's id outside of the user namespace, to which names belong as directories do.
    pub fn owner(&self) -> u32 {
        self.outer
    }

    /// The best directory that is possible, made if it does not exist.
    ///
    /// # Errors
    /// Those of the last candidate, where the better ones do not exist or are not this user's.
    pub fn create(&self) -> Result<Directory, DirectoryError> {
        self.create_among(&self.candidates)
    }

    /// As [`Places::create`], but only where the user has a directory that goes when they log out.
    ///
    /// # Errors
    /// As there.
    pub fn create_in_runtime(&self) -> Result<Directory, DirectoryError> {
        let lasting = |candidate: &&Candidate| candidate.base.is_some();
        self.create_among(self.candidates.iter().filter(lasting))
    }

    fn create_among<'a>(
        &self,
        candidates: impl IntoIterator<Item = &'a Candidate>,
    ) -> Result<Directory, DirectoryError> {
        let mut last = None;
        for Candidate { base, path } in candidates {
            if base.as_ref().is_some_and(|base| !self.owns(base)) {
                continue;
            }
            let made = match fs::DirBuilder::new().mode(0o700).create(path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    let path = path.clone();
                    Err(DirectoryError::Io { what: "make the directory", path, source })
                }
                _ => Directory::open(path, self.uid),
            };
            match made {
                Ok(directory) => return Ok(directory),
                // A directory that is ours and open to others is to be mended, not avoided.
                Err(error @ DirectoryError::Open { .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        // Where the last candidate has no base, it was tried.
        Err(last.unwrap_or_else(|| DirectoryError::Io {
            what: "find a directory",
            path: PathBuf::new(),
            source: io::ErrorKind::NotFound.into(),
        }))
    }

    /// All directories there are: an instance may have been started with another environment.
    pub fn existing(&self) -> Vec<Directory> {
        let paths = self.candidates.iter().map(|candidate| &candidate.path);
        let mut found: Vec<Directory> = Vec::new();
        for directory in paths.filter_map(|path| Directory::open(path, self.uid).ok()) {
            if found.iter().all(|known| known.path != directory.path) {
                found.push(directory);
            }
        }
        found
    }

    fn owns(&self, base: &Path) -> bool {
        fs::metadata(base).is_ok_and(|found| found.is_dir() && found.uid() == self.uid)
    }
}

impl Directory {
    fn open(path: &Path, uid: u32) -> Result<Directory, DirectoryError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fail = |source| DirectoryError::Io {
            what: "open the directory",
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
        let file = file.map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if metadata.uid() != uid {
            return Err(DirectoryError::Foreign { path: path.to_owned(), owner: metadata.uid() });
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(DirectoryError::Open { path: path.to_owned() });
        }
        Ok(Directory { path: path.to_owned(), file })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, which stays right when the path does not.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The descriptor alone.
    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// The name of the socket file of the instance `name`.
    pub(super) fn file_name(name: &str) -> String {
        format!("{name}{SUFFIX}")
    }

    /// The path of the socket of the instance `name`, which need not exist.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path.join(Self::file_name(name))
    }

    /// The names of the instances that have a socket file here, sorted; stale ones included.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let name = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(SUFFIX).map(str::to_owned)
        };
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names
    }

    /// Removes the socket file of `name`. Only for the holder of the name's lock.
    ///
    /// # Errors
    /// Those of `unlinkat`.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.socket(name))
    }
}

/// The id outside that `uid` has by `map` (user_namespaces(7): inside, outside, length).
fn outer_uid(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, length) =
            (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < length)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn places(scratch: &Path, runtime: Option<&str>) -> Places {
        let uid = geteuid().as_raw();
        let runtime = runtime.map(|name| scratch.join(name));
        Places::new(uid, uid, runtime, &scratch.join("run"), &scratch.join("tmp"))
    }

    #[test]
    fn the_first_place_that_is_ours_is_taken_and_closed_to_others() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path();
        fs::create_dir(at.join("tmp")).unwrap();
        let uid = geteuid();
        let fallback = places(at, Some("xdg")).create().unwrap();
        assert_eq!(fallback.path(), at.join(format!("tmp/tapway-{uid}")));
        fs::create_dir_all(at.join(format!("run/{uid}"))).unwrap();
        let of_the_system = places(at, None).create().unwrap();
        assert_eq!(of_the_system.path(), at.join(format!("run/{uid}/tapway")));
        fs::create_dir(at.join("xdg")).unwrap();
        let best = places(at, Some("xdg")).create().unwrap();
        assert_eq!(best.path(), at.join("xdg/tapway"));
        assert_eq!(fs::metadata(best.path()).unwrap().mode() & 0o7777, 0o700);
        let all = places(at, Some("xdg")).existing();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn a_directory_that_others_made_or_can_use_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path();
        fs::create_dir_all(at.join("tmp")).unwrap();
        let own = at.join(format!("tmp/tapway-{}", geteuid()));
        fs::create_dir(at.join("elsewhere")).unwrap();
        symlink(at.join("elsewhere"), &own).unwrap();
        assert!(matches!(places(at, None).create(), Err(DirectoryError::Io { .. })));
        fs::remove_file(&own).unwrap();
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o710)).unwrap();
        let error = places(at, None).create().unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        let other = geteuid().as_raw() + 1;
        let another = Places::new(other, other, None, &at.join("run"), &at.join("tmp"));
        let theirs = at.join(format!("tmp/tapway-{}", geteuid().as_raw() + 1));
        fs::create_dir(&theirs).unwrap();
        assert!(matches!(another.create(), Err(DirectoryError::Foreign { .. })));
    }

    #[test]
    fn paths_are_named_by_the_id_outside() {
        assert_eq!(outer_uid("         0       1000          1\n", 0), Some(1000));
        let map = "0 1000 1\n1 300000 65536\n";
        assert_eq!((outer_uid(map, 5), outer_uid(map, 65_537)), (Some(300_004), None));
        assert_eq!(outer_uid("0 0 4294967295\n", 1000), Some(1000));
        let places = Places::new(0, 1000, None, Path::new("/r"), Path::new("/t"));
        let paths: Vec<_> = places.candidates.iter().map(|candidate| &candidate.path).collect();
        assert_eq!(paths, [Path::new("/r/1000/tapway"), Path::new("/t/tapway-1000")]);
    }

    #[test]
    fn a_relative_runtime_directory_does_not_count() {
        let uid = geteuid().as_raw();
        let places = Places::new(uid, uid, Some("run".into()), Path::new("/r"), Path::new("/t"));
        assert_eq!(places.candidates.len(), 2);
    }
}
