//! Real container engines over tapway, each in a sandbox of its own: a scenario is a shell script
//! beside this file, run by `sandbox.sh` as root; the engine in it runs as an unprivileged user.
//!
//! tapway is installed by `contrib/install.sh`, and engines are switched to it by the very files of
//! `contrib/containers.conf.d`. `SLIRP4NETNS_BIN=/usr/bin/slirp4netns` puts the original in its
//! place, which proves the scenarios. Images are made of the machine's own programs.
//!
//! A scenario whose engine is not installed does not run, says so on the terminal, and fails unless
//! `TAPWAY_ENGINES_OPTIONAL=1`. `TAPWAY_ENGINES_TRIXIE=1` adds podman 5 over pasta, in a root
//! directory of Debian 13 that debootstrap makes (1.3 GB, some minutes) below
//! `TAPWAY_ENGINES_ROOT`, by default `/var/tmp/tapway-trixie`, where it stays.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{NOBODY_SPECIAL, as_root, binary, loudly};

/// Seconds that a scenario may take, however loaded the machine is.
const PATIENCE: &str = "240";

/// A directory on a disk: overlay storage does not go onto an overlay, and with older kernels not
/// onto a tmpfs.
fn work() -> tempfile::TempDir {
    let work = tempfile::Builder::new().prefix("tapway-engine-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    work
}

/// Whether the programs that a scenario needs are there. If not, whoever asked for engines is told.
fn has(scenario: &str, programs: &[&str]) -> bool {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin";
    let exists = |program: &&&str| {
        path.split(':').any(|directory| Path::new(directory).join(program).exists())
    };
    let missing: Vec<_> = programs.iter().filter(|program| !exists(program)).collect();
    if missing.is_empty() {
        return true;
    }
    loudly(&format!("NOT RUN: {scenario}: there is no {missing:?} here"));
    let optional = std::env::var_os("TAPWAY_ENGINES_OPTIONAL").is_some();
    assert!(optional, "{scenario} needs {missing:?}: see contrib/check.sh");
    false
}

/// Installs tapway into `work`, and gives the directory of the links. `variable` may name a program
/// that takes the place of the link `name`.
fn install(work: &Path, name: &str, variable: &str) -> PathBuf {
    let prefix = work.join("prefix");
    let installed = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/install.sh"))
        .args(["--prefix", prefix.to_str().unwrap(), "--binary", binary().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let links = prefix.join("libexec/tapway");
    if let Some(original) = std::env::var_os(variable) {
        fs::remove_file(links.join(name)).unwrap();
        symlink(original, links.join(name)).unwrap();
    }
    links
}

/// Runs a scenario over the helper `name`; it must pass.
fn run(scenario: &str, name: &str, variable: &str, root: Option<&Path>) {
    assert!(as_root(), "engines are tested in namespaces that root makes: run this as root");
    let work = work();
    let links = install(work.path(), name, variable);
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines");
    let contrib = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib");
    // The scenario's user cannot be expected to reach the source tree, nor the root of Debian 13.
    let scripts = work.path().join("scripts");
    let copied = Command::new("cp").args(["-rL", tests]).arg(&scripts).status().unwrap();
    let confs = Command::new("cp").args(["-rL", contrib]).arg(scripts.join("contrib")).status();
    assert!(copied.success() && confs.unwrap().success());
    let output = Command::new("timeout")
        .args(["--kill-after=10", PATIENCE, "bash"])
        .arg(scripts.join("sandbox.sh"))
        .arg(scenario)
        .env("WORK", work.path())
        .env("HELPERS", &links)
        .env("HELPER", links.join(name))
        .env("CONTRIB", scripts.join("contrib"))
        .env("LAB_UID", NOBODY_SPECIAL.to_string())
        .env("ROOT", root.unwrap_or(Path::new("")))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let summary = printed.lines().find(|line| line.contains(" checks, "));
    loudly(&format!("{scenario}: {}", summary.unwrap_or("no summary")));
    assert!(output.status.success(), "{scenario}: {}\n{printed}", output.status);
}

fn over_slirp4netns(scenario: &str, programs: &[&str]) {
    let common = ["newuidmap", "busybox", "socat", "curl", "dnsmasq", "ip"];
    if has(scenario, &[&common, programs].concat()) {
        run(scenario, "slirp4netns", "SLIRP4NETNS_BIN", None);
    }
}

#[test]
fn podman() {
    over_slirp4netns("podman.sh", &["podman", "crun"]);
}

#[test]
fn buildah() {
    over_slirp4netns("buildah.sh", &["buildah", "podman", "crun"]);
}

#[test]
fn rootlesskit() {
    over_slirp4netns("rootlesskit.sh", &["rootlesskit"]);
}

#[test]
fn docker() {
    over_slirp4netns("docker.sh", &["dockerd", "docker", "rootlesskit"]);
}

/// The packages of Debian 13 that the scenario needs, beside the smallest system.
const PACKAGES: &str = "podman,crun,conmon,passt,slirp4netns,netavark,aardvark-dns,uidmap,\
                        busybox-static,iproute2,nftables,socat,curl,procps,catatonit";

/// A root directory of Debian 13, made if it is not there.
fn trixie() -> PathBuf {
    let asked = std::env::var_os("TAPWAY_ENGINES_ROOT");
    let root = asked.map_or_else(|| PathBuf::from("/var/tmp/tapway-trixie"), PathBuf::from);
    if !root.join("usr/bin/podman").exists() {
        loudly(&format!("making a root directory of Debian 13 at {}", root.display()));
        // Made aside, so that half a root is never taken for one.
        let half = root.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        let made = Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), "trixie"])
            .arg(&half)
            .output()
            .expect("the scenario of podman 5 needs debootstrap");
        assert!(made.status.success(), "{made:?}");
        fs::rename(&half, &root).unwrap();
    }
    root
}

#[test]
fn podman5() {
    if std::env::var_os("TAPWAY_ENGINES_TRIXIE").is_none_or(|value| value != "1") {
        loudly("NOT RUN: podman5.sh: TAPWAY_ENGINES_TRIXIE=1 asks for it");
        return;
    }
    if has("podman5.sh", &["busybox", "socat", "dnsmasq", "ip"]) {
        run("podman5.sh", "pasta", "PASTA_BIN", Some(&trixie()));
    }
}
