//! Who calls, and which users can exist inside a guest.

use super::super::facts::{Facts, Helper, Subordinate};
use super::super::report::{Check, Mend};

/// As many subordinate ids as an image of a Linux distribution uses: up to and including `nobody`.
const ENOUGH: u64 = 65_536;

/// What a caller without subordinate ids does without.
const ONE_ID: &str = "all users but one inside a guest: programs that change user (apt, sshd) fail";

pub(super) fn caller(facts: &Facts) -> Check {
    let caller = &facts.caller;
    let mut seen = match (&caller.name, caller.uid) {
        (_, 0) => "root, who needs no subordinate ids".to_owned(),
        (Some(name), uid) => format!("{name} (uid {uid})"),
        (None, uid) => format!("uid {uid}, which has no name in the user database"),
    };
    if caller.nested {
        seen += "; inside a user namespace, so remedies that need root apply outside of it";
    }
    if caller.seccomp {
        seen += "; under a seccomp filter";
    }
    Check::ok("caller", seen)
}

pub(super) fn subordinate_uids(facts: &Facts) -> Check {
    subordinate("subordinate-uids", "/etc/subuid", &facts.subuids, facts)
}

pub(super) fn subordinate_gids(facts: &Facts) -> Check {
    subordinate("subordinate-gids", "/etc/subgid", &facts.subgids, facts)
}

fn subordinate(name: &'static str, file: &str, ids: &Subordinate, facts: &Facts) -> Check {
    if facts.caller.uid == 0 {
        return Check::ok(name, "not needed: root maps its own ids");
    }
    if let Some(source) = &ids.source {
        return Check::ok(
            name,
            format!("given out by {source} (/etc/nsswitch.conf), not looked at"),
        );
    }
    let count: u64 = ids.ranges.iter().map(|range| u64::from(range.count)).sum();
    let ranges: Vec<_> =
        ids.ranges.iter().map(|range| format!("{}:{}", range.first, range.count)).collect();
    let seen = format!("{file}: {}", ranges.join(", "));
    if count >= ENOUGH {
        return Check::ok(name, seen);
    }
    let user = facts.caller.name.clone().unwrap_or_else(|| facts.caller.uid.to_string());
    let line = format!("{user}:{}:{ENOUGH}", ids.next_free);
    let mend = Mend::once(format!("echo '{line}' | sudo tee -a {file}"));
    if count == 0 {
        Check::degraded(name, format!("{file} has no range for {user}"), ONE_ID, mend)
    } else {
        let lost = format!("ids above {count} inside a guest: files of such owners are refused");
        Check::degraded(name, seen, lost, mend)
    }
}

pub(super) fn newuidmap(facts: &Facts) -> Check {
    helper("newuidmap", "cap_setuid", facts.newuidmap.as_ref(), facts)
}

pub(super) fn newgidmap(facts: &Facts) -> Check {
    helper("newgidmap", "cap_setgid", facts.newgidmap.as_ref(), facts)
}

fn helper(name: &'static str, capability: &str, found: Option<&Helper>, facts: &Facts) -> Check {
    if facts.caller.uid == 0 {
        return Check::ok(name, "not needed: root writes id maps itself");
    }
    let Some(helper) = found else {
        return Check::degraded(
            name,
            "not on the search path",
            ONE_ID,
            Mend::once(
                "install the package that has it: uidmap (Debian, Ubuntu), shadow-utils (Fedora), \
                 shadow (Arch, openSUSE), shadow-subids (Alpine)",
            ),
        );
    };
    let path = helper.path.display();
    if !helper.setuid_root && !helper.capable {
        let seen = format!("{path} is neither setuid root nor has it {capability}");
        return Check::degraded(name, seen, ONE_ID, Mend::once(format!("sudo chmod u+s {path}")));
    }
    if helper.nosuid {
        return Check::degraded(
            name,
            format!("{path} is on a file system mounted nosuid"),
            ONE_ID,
            Mend::once(format!("sudo mount -o remount,suid \"$(stat -c %m {path})\"")),
        );
    }
    let how = if helper.setuid_root { "setuid root" } else { capability };
    Check::ok(name, format!("{path} ({how})"))
}

pub(super) fn new_privileges(facts: &Facts) -> Check {
    const NAME: &str = "new-privileges";
    match (facts.caller.no_new_privs, facts.caller.uid) {
        (false, _) => Check::ok(NAME, "newuidmap and newgidmap can gain theirs"),
        (true, 0) => Check::ok(NAME, "no_new_privs is set, and root needs none"),
        (true, _) => Check::degraded(
            NAME,
            "no_new_privs is set, so that newuidmap and newgidmap have no effect",
            ONE_ID,
            Mend::once(
                "start tapway where nothing sets it (systemd: NoNewPrivileges=no; containers: no \
                 --security-opt no-new-privileges)",
            ),
        ),
    }
}
