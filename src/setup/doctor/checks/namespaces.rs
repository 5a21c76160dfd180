//! User, network and mount namespaces.

use nix::errno::Errno;

use super::super::facts::Facts;
use super::super::report::{Check, Mend};
use super::NO_GUEST;
use crate::sys::probe::{Outcome, Step};

pub(super) fn user(facts: &Facts) -> Check {
    const NAME: &str = "user-namespaces";
    let missing = |seen: String, mend| Check::missing(NAME, seen, NO_GUEST, mend);
    if let Some(errno) = facts.trial.not_started {
        return missing(
            format!("not known: no process could be started to try ({errno})"),
            Mend::once("ulimit -u unlimited"),
        );
    }
    match facts.trial.outcome(Step::UserNamespace) {
        Outcome::Passed => {}
        Outcome::Failed(errno) => {
            let (cause, mend) = refusal(facts, errno);
            return missing(format!("refused: {cause}"), mend);
        }
        other => return missing(unfinished(other), outside_a_container()),
    }
    for (step, file) in [
        (Step::DenySetgroups, "setgroups"),
        (Step::MapUser, "uid_map"),
        (Step::MapGroup, "gid_map"),
    ] {
        match facts.trial.outcome(step) {
            Outcome::Passed => {}
            Outcome::Failed(errno) => {
                let (cause, mend) = if restricted_by_apparmor(facts) {
                    apparmor()
                } else {
                    (format!("/proc/self/{file} may not be written ({errno})"), security_module())
                };
                return missing(format!("made, but without power inside: {cause}"), mend);
            }
            other => return missing(unfinished(other), outside_a_container()),
        }
    }
    let limit = limit_text("user.max_user_namespaces", facts.sysctls.max_user_namespaces);
    Check::ok(NAME, format!("tried, works ({limit})"))
}

/// The cause of a refused user namespace, and its remedy.
fn refusal(facts: &Facts, errno: Errno) -> (String, Mend) {
    let sysctls = &facts.sysctls;
    match errno {
        // EUSERS is what kernels before 4.9 say.
        Errno::ENOSPC | Errno::EUSERS => {
            let limit = limit_text("user.max_user_namespaces", sysctls.max_user_namespaces);
            (limit, Mend::sysctl("user.max_user_namespaces", MANY))
        }
        Errno::ENOSYS | Errno::EINVAL => (
            "this kernel has no user namespaces".to_owned(),
            Mend::once("boot a kernel built with CONFIG_USER_NS=y"),
        ),
        _ if sysctls.unprivileged_userns_clone == Some(0) => (
            "kernel.unprivileged_userns_clone = 0".to_owned(),
            Mend::sysctl("kernel.unprivileged_userns_clone", "1"),
        ),
        _ if restricted_by_apparmor(facts) => apparmor(),
        _ if facts.caller.chrooted => (
            "the process runs in a chroot, where the kernel forbids them".to_owned(),
            Mend::once("start tapway outside of the chroot, or enter it with pivot_root instead"),
        ),
        _ if facts.caller.seccomp => (
            format!("{errno}, most likely by the seccomp filter of a container"),
            outside_a_container(),
        ),
        _ => (
            format!("{errno}, by a security module, or because the process runs in a chroot"),
            security_module(),
        ),
    }
}

fn restricted_by_apparmor(facts: &Facts) -> bool {
    facts.sysctls.apparmor_restrict_userns.is_some_and(|value| value != 0)
}

fn apparmor() -> (String, Mend) {
    let key = "kernel.apparmor_restrict_unprivileged_userns";
    (
        format!("{key} is on, and AppArmor has no profile that lets tapway use them"),
        Mend::sysctl(key, "0"),
    )
}

fn security_module() -> Mend {
    Mend::once("sudo dmesg | grep -iE 'audit|denied' # then allow in that policy what it denied")
}

/// For a caller whom something around it keeps from asking.
pub(super) fn outside_a_container() -> Mend {
    Mend::once(
        "start tapway outside of the container, or the container with \
         --security-opt seccomp=unconfined",
    )
}

pub(super) fn network(facts: &Facts) -> Check {
    const NAME: &str = "network-namespaces";
    let limit = facts.sysctls.max_net_namespaces;
    dependent(NAME, "user.max_net_namespaces", limit, facts, &[Step::NetworkNamespace])
}

pub(super) fn mount(facts: &Facts) -> Check {
    const NAME: &str = "mount-namespaces";
    let steps = [Step::MountNamespace, Step::PrivateMounts, Step::BindMount];
    dependent(NAME, "user.max_mnt_namespaces", facts.sysctls.max_mnt_namespaces, facts, &steps)
}

/// A namespace that the user namespace owns. Without one there is nothing to try it in, and only
/// the limit can be judged.
fn dependent(
    name: &'static str,
    key: &str,
    limit: Option<u64>,
    facts: &Facts,
    steps: &[Step],
) -> Check {
    let missing = |seen: String, mend| Check::missing(name, seen, NO_GUEST, mend);
    let limited = || Mend::sysctl(key, MANY);
    for &step in steps {
        match facts.trial.outcome(step) {
            Outcome::Passed => {}
            Outcome::NotTried if limit == Some(0) => {
                return missing(limit_text(key, limit), limited());
            }
            Outcome::NotTried => {
                let limit = limit_text(key, limit);
                return Check::ok(name, format!("{limit}; not tried, user namespaces come first"));
            }
            Outcome::Failed(Errno::ENOSPC | Errno::EUSERS) => {
                return missing(format!("refused: {}", limit_text(key, limit)), limited());
            }
            Outcome::Failed(_) if restricted_by_apparmor(facts) => {
                let (cause, mend) = apparmor();
                return missing(format!("refused: {cause}"), mend);
            }
            Outcome::Failed(errno) => {
                let deed = match step {
                    Step::PrivateMounts => "making mounts private",
                    Step::BindMount => "a bind mount inside",
                    _ => "making one",
                };
                return missing(format!("{deed} is refused ({errno})"), security_module());
            }
            other => return missing(unfinished(other), outside_a_container()),
        }
    }
    Check::ok(name, format!("tried, works ({})", limit_text(key, limit)))
}

/// A limit that is ample for one user: each guest needs one of each kind.
const MANY: &str = "15000";

fn limit_text(key: &str, limit: Option<u64>) -> String {
    limit.map_or_else(|| format!("no setting {key}"), |limit| format!("{key} = {limit}"))
}

/// What is seen of a step that never came back.
pub(super) fn unfinished(outcome: Outcome) -> String {
    match outcome {
        Outcome::Killed(signal) => format!("the process that tried it was killed by {signal}"),
        Outcome::Hung => "the attempt hung and was given up".to_owned(),
        Outcome::NotTried | Outcome::Passed | Outcome::Failed(_) => {
            "the process that should try it ended before".to_owned()
        }
    }
}
