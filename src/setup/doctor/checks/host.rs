//! What the host grants a process: descriptors, and a directory for control sockets.

use super::super::facts::{Facts, RuntimeDir};
use super::super::report::{Check, Mend};

/// Descriptors that suffice for the 10,000 connections that a busy guest may hold open.
const ENOUGH: u64 = 16_384;
/// What is asked for in the remedy: systemd's own hard limit.
const AMPLE: u64 = 524_288;
/// Descriptors that are no flow: TAP queues, epoll, listeners, logs, control clients.
const RESERVED: u64 = 64;

pub(super) fn descriptors(facts: &Facts) -> Check {
    const NAME: &str = "descriptors";
    let (soft, hard) = facts.descriptors;
    if hard == u64::MAX {
        return Check::ok(NAME, "no limit of open files");
    }
    let flows = hard.saturating_sub(RESERVED);
    let seen = format!(
        "limit of open files: {hard} (raised to that from {soft}), enough for about {flows} flows"
    );
    if hard >= ENOUGH {
        return Check::ok(NAME, seen);
    }
    let user = facts.caller.name.clone().unwrap_or_else(|| facts.caller.uid.to_string());
    Check::degraded(
        NAME,
        seen,
        format!("more than about {flows} flows at once in a guest"),
        Mend::kept(
            format!("sudo prlimit --pid $$ --nofile={soft}:{AMPLE}"),
            format!(
                "echo '{user} hard nofile {AMPLE}' | \
                 sudo tee -a /etc/security/limits.d/60-tapway.conf"
            ),
        ),
    )
}

pub(super) fn runtime_dir(facts: &Facts) -> Check {
    const NAME: &str = "runtime-dir";
    const LOST: &str = "the control socket: `tapway ps`, `port` and `flows` do not find the guest";
    let uid = facts.caller.uid;
    let own = format!("/run/user/{uid}");
    let make = || {
        Mend::kept(
            format!(
                "sudo install -d -m 0700 -o {uid} -g {} {own} && export XDG_RUNTIME_DIR={own}",
                facts.caller.gid
            ),
            format!(
                "sudo loginctl enable-linger {uid} # with systemd; else at each login as above"
            ),
        )
    };
    let degraded = |seen: String, mend| Check::degraded(NAME, seen, LOST, mend);
    match &facts.runtime_dir {
        RuntimeDir::Unset => degraded("XDG_RUNTIME_DIR is not set".to_owned(), make()),
        RuntimeDir::NotADirectory(path) => {
            degraded(format!("XDG_RUNTIME_DIR={path} is not a directory that is there"), make())
        }
        RuntimeDir::Directory { path, owner, .. } if *owner != uid => {
            degraded(format!("XDG_RUNTIME_DIR={path} belongs to uid {owner}"), make())
        }
        RuntimeDir::Directory { path, mode, .. } if mode & 0o777 != 0o700 => degraded(
            format!("XDG_RUNTIME_DIR={path} has mode {mode:04o}, not 0700"),
            Mend::once("chmod 0700 \"$XDG_RUNTIME_DIR\""),
        ),
        RuntimeDir::Directory { path, .. } => Check::ok(NAME, path.clone()),
    }
}
