//! What engines need of the machine and of the lab: cgroups, tapway under the helpers' names, an
//! image.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::base::{Failure, output_of};
use crate::contenders::{Contender, Programs};
use crate::lab::{Lab, place};

/// What containers are made of: the agent and its libraries.
pub const IMAGE: &str = "localhost/e2e";

/// Its archive, below the lab's directory.
pub const ARCHIVE: &str = "image.tar";

/// The directory with tapway under the helpers' names.
pub const LINKS: &str = "helpers";

/// Makes all of it, once per run.
pub fn make(lab: &Lab, programs: &Programs) -> Result<(), Failure> {
    cgroups()?;
    links(lab, programs)?;
    image(lab)
}

/// crun wants cgroup2 alone, as most machines have it; the mount is the benchmark's own. podman
/// wants `/` to be shared.
fn cgroups() -> Result<(), Failure> {
    const TREE: &str = "/sys/fs/cgroup";
    let none = None::<&str>;
    if statfs(TREE).map(|fs| fs.filesystem_type()) != Ok(CGROUP2_SUPER_MAGIC) {
        mount(Some("cgroup2"), TREE, Some("cgroup2"), MsFlags::empty(), none)
            .map_err(|e| Failure::because("mount cgroup2", e))?;
    }
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .map_err(|e| Failure::because("share the mounts", e))
}

/// tapway under the names of the helpers.
fn links(lab: &Lab, programs: &Programs) -> Result<(), Failure> {
    let directory = lab.dir.join(LINKS);
    fs::create_dir_all(&directory).map_err(|e| Failure::because("make a directory", e))?;
    let Ok(tapway) = programs.get(Contender::Tapway) else { return Ok(()) };
    for peer in Contender::PEERS {
        symlink(&tapway.runs, directory.join(peer.name()))
            .map_err(|e| Failure::because("link to tapway", e))?;
    }
    Ok(())
}

/// Makes the image's archive: the agent and its libraries, at the paths that they have here.
fn image(lab: &Lab) -> Result<(), Failure> {
    let said = output_of(Command::new("ldd").arg(&lab.agent))?;
    let mut files: Vec<&str> = said.split_whitespace().filter(|w| w.starts_with('/')).collect();
    let agent = lab.agent.to_string_lossy();
    files.push(&agent);
    let archive = lab.dir.join(ARCHIVE);
    let mut command = Command::new("tar");
    command.args(["--create", "--dereference", "--hard-dereference", "--directory=/", "--file"]);
    command.arg(&archive).args(files.iter().map(|file| file.trim_start_matches('/')));
    output_of(&mut command)?;
    // Readable for the account.
    place(&archive, &lab.dir, "image.copy").and_then(|copy| {
        fs::rename(copy, &archive).map_err(|e| Failure::because("name the image", e))
    })
}
