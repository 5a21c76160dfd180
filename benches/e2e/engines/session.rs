//! A container and the helper behind it, found by what it executes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::base::{Failure, Process, Usage, ids_in, wait_until};
use crate::lab::Namespace;

/// A container with its engine in the foreground; both end with this value.
#[derive(Debug)]
pub struct Session {
    process: Process,
    /// A process of the container.
    container: u32,
    helper: u32,
    /// What the helper executes.
    file: File,
}

impl Session {
    /// The session of the engine `process`, whose container has the network namespace
    /// `net:[INODE]`: with the helper that runs in `host` and executes one of `files`.
    pub fn find(
        process: Process,
        namespace: &str,
        host: &Namespace,
        files: &[File],
    ) -> Result<Session, Failure> {
        let among = |pid: u32, net: &str| namespace_of(pid).as_deref() == Some(net);
        let find = |net: &str, fits: &dyn Fn(u32) -> bool| {
            ids_in("/proc").into_iter().find(|&pid| among(pid, net) && fits(pid))
        };
        let container = find(namespace, &|_| true)
            .ok_or_else(|| Failure("no process has the network of the container".into()))?;
        let file_among = |pid| file_of(pid).filter(|file| files.contains(file));
        let (helper, file) = namespace_of(host.pid())
            .and_then(|net| find(&net, &|pid| file_among(pid).is_some()))
            .and_then(|pid| Some((pid, file_among(pid)?)))
            .ok_or_else(|| Failure("the engine started some other helper, or none".into()))?;
        Ok(Session { process, container, helper, file })
    }

    /// The container's network.
    pub fn net(&self) -> Namespace {
        Namespace::of_process(self.container)
    }

    /// What the helper uses.
    pub fn usage(&self) -> Usage {
        Usage::of_tree(self.helper)
    }

    /// Fails if the helper or the container is gone.
    pub fn still_runs(&mut self) -> Result<(), Failure> {
        if let Some(status) = self.process.ended() {
            return Err(Failure(format!("the engine ended with {status}")));
        }
        match file_of(self.helper) == Some(self.file) {
            true => Ok(()),
            false => Err(Failure("the helper is gone".into())),
        }
    }
}

impl Drop for Session {
    /// The container's command ends with its stdin; the engine clears up, and its helper goes.
    fn drop(&mut self) {
        const BOUND: Duration = Duration::from_secs(10);
        drop(self.process.child().stdin.take());
        wait_until(BOUND, || self.process.ended().is_some());
        wait_until(BOUND, || file_of(self.helper) != Some(self.file));
    }
}

/// A file, whatever path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    device: u64,
    inode: u64,
}

impl File {
    pub fn at(path: &Path) -> Option<File> {
        let metadata = fs::metadata(path).ok()?;
        Some(File { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What process `pid` executes.
fn file_of(pid: u32) -> Option<File> {
    File::at(Path::new(&format!("/proc/{pid}/exe")))
}

/// The network namespace of process `pid`, as `net:[INODE]`.
fn namespace_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}
