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
    let raised = match soft < hard {
        true => format!(" (raised to that from {soft})"),
        false => String::new(),
    };
    let seen = format!("limit of open files: {hard}{raised}, enough for about {flows} flows");
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

/// Control sockets are in `$XDG_RUNTIME_DIR/tapway` if the directory is the caller's own, else in
/// `/run/user/UID/tapway`, else in `/tmp/tapway-UID`.
pub(super) fn runtime_dir(facts: &Facts) -> Check {
    const NAME: &str = "runtime-dir";
    let uid = facts.caller.uid;
    let own = format!("/run/user/{uid}");
    let unusable = match &facts.runtime_dir {
        RuntimeDir::Directory { path, owner, mode } if *owner == uid => {
            // Who may write there may put another directory in the place of ours.
            return match mode & 0o022 {
                0 => Check::ok(NAME, format!("control sockets are in {path}/tapway")),
                _ => Check::degraded(
                    NAME,
                    format!("XDG_RUNTIME_DIR={path} has mode {mode:04o}: others may write to it"),
                    "the certainty that a control socket is the one of your guest",
                    Mend::once("chmod 0700 \"$XDG_RUNTIME_DIR\""),
                ),
            };
        }
        RuntimeDir::Directory { path, owner, .. } => {
            format!("XDG_RUNTIME_DIR={path} belongs to uid {owner}")
        }
        RuntimeDir::NotADirectory(path) => {
            format!("XDG_RUNTIME_DIR={path} is not the full path of a directory")
        }
        RuntimeDir::Unset => "XDG_RUNTIME_DIR is not set".to_owned(),
    };
    if facts.fallback.run_user {
        return Check::ok(NAME, format!("{unusable}; control sockets are in {own}/tapway"));
    }
    let (seen, lost) = match facts.fallback.taken_by {
        None => (
            format!("{unusable}; control sockets are in /tmp/tapway-{uid}"),
            "the certainty of a control socket: another user may take that name first",
        ),
        Some(owner) => (
            format!("{unusable}, and /tmp/tapway-{uid} belongs to uid {owner}"),
            "control sockets: `tapway ps`, `port`, `flows` and `stats` do not find guests",
        ),
    };
    let mend = Mend::kept(
        format!(
            "sudo install -d -m 0700 -o {uid} -g {} {own} && export XDG_RUNTIME_DIR={own}",
            facts.caller.gid
        ),
        format!("sudo loginctl enable-linger {uid} # with systemd; else at each login as above"),
    );
    Check::degraded(NAME, seen, lost, mend)
}
