//! From facts to verdicts: one function for each line of the report. Pure.

mod host;
mod identity;
mod kernel;
mod namespaces;
mod network;
mod tap;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::report::Check;

/// Every check, in the order of the report.
pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let checks = [
        identity::caller(facts),
        kernel::version(facts),
        namespaces::user(facts),
        namespaces::network(facts),
        namespaces::mount(facts),
        tap::device(facts),
        tap::interface(facts),
        tap::udp_offloads(facts),
        tap::queues(facts),
        identity::subordinate_uids(facts),
        identity::subordinate_gids(facts),
        identity::newuidmap(facts),
        identity::newgidmap(facts),
        identity::new_privileges(facts),
        host::descriptors(facts),
        host::runtime_dir(facts),
        kernel::process_descriptors(facts),
        kernel::landlock(facts),
        kernel::peek_offset(facts),
        kernel::listening_sockets(facts),
        network::ipv4_route(facts),
        network::ipv6_route(facts),
        network::path_mtu(facts),
        network::resolvers(facts),
        network::ping_sockets(facts),
        network::low_ports(facts),
    ];
    checks.into_iter().map(|check| for_caller(check, facts)).collect()
}

/// Remedies are written for an ordinary user; root types them without `sudo`.
fn for_caller(mut check: Check, facts: &Facts) -> Check {
    if facts.caller.uid == 0 {
        let bare = |command: String| command.replace("sudo ", "");
        check.mend = check.mend.map(bare);
        check.keep = check.keep.map(bare);
    }
    check
}

/// What is lost with everything that a guest cannot start without.
const NO_GUEST: &str = "`tapway run` cannot start a guest";
