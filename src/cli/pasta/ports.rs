//! What `-t`, `-u`, `-T` and `-U` open: specifications fill two tables, as pesto's do, and their rules
//! become ports of the instance.
//!
//! | rule | of the host's table | of the table of the guest's loopback |
//! |---|---|---|
//! | ports by name | published, or the start fails | led to the host's loopback, likewise |
//! | weak | published as far as they are free | led, as far as they are free |
//! | `auto` | published while the guest listens | led while the host listens |

use super::PastaError;
use super::options::Command;
use crate::cli::config::ForwardOptions;
use crate::cli::table_spec::{self, Change, PortOption};
use crate::gate::AddressPlan;
use crate::gate::forward::{AutoForward, Bound, Inner, PortRange, Transport};
use crate::gate::table::{Caps, Table, TableRule};
use crate::setup::listen::Opener;

/// What the options of `command` open for a guest of `plan`; an option that is not there is `auto`.
/// `ephemeral` are the ports that the host hands out to clients.
pub(super) fn forwards(
    command: &Command,
    plan: &AddressPlan,
    ephemeral: PortRange,
) -> Result<ForwardOptions, PastaError> {
    let without = |missing: bool, caps| if missing { caps } else { Caps(0) };
    let caps = Caps::ALL
        .without(without(plan.v4.is_none(), Caps::IPV4))
        .without(without(plan.v6.is_none(), Caps::IPV6));
    let (mut host, mut inner) = (Table::new(caps), Table::new(caps));
    let auto = ["auto".to_owned()];
    for (option, specs, carried) in [
        (PortOption::TCP, &command.tcp_ports, command.tcp),
        (PortOption::UDP, &command.udp_ports, command.udp),
        (PortOption::TCP_NS, &command.tcp_ns, command.tcp),
        (PortOption::UDP_NS, &command.udp_ns, command.udp),
    ] {
        let specs = if specs.is_empty() { &auto[..] } else { specs };
        let table = if option.is_outbound() { &mut inner } else { &mut host };
        for spec in specs.iter().filter(|_| carried) {
            table_spec::change(table, Change::Add, option, spec, ephemeral)?;
        }
    }
    let opener = Opener { freebind: command.freebind };
    let mut options = ForwardOptions { opener, ..ForwardOptions::default() };
    for rule in host.rules() {
        publish(rule, plan, &mut options)?;
    }
    for rule in inner.rules() {
        lead(rule, &mut options);
    }
    Ok(options)
}

/// Enters a rule of the host's table.
fn publish(
    rule: &TableRule,
    plan: &AddressPlan,
    options: &mut ForwardOptions,
) -> Result<(), PastaError> {
    if rule.target.is_some_and(|target| plan.inbound(None, Some(target)).is_none()) {
        return Err(PastaError::Unreachable(rule.clone().into()));
    }
    if rule.scan && rule.target.is_none() && rule.target_ports == rule.ports {
        let bound = Bound { address: rule.listen, interface: rule.interface.clone() };
        follow(rule, bound, &mut options.auto_publish);
    } else if rule.weak && !rule.scan {
        options.publish_if_free.push(rule.forward());
    } else {
        options.publish.push(rule.forward());
    }
    Ok(())
}

/// Enters a rule of the table of the guest's loopback.
fn lead(rule: &TableRule, options: &mut ForwardOptions) {
    let TableRule { transport, ports, target_ports: host_ports, weak, scan, .. } = *rule;
    if scan && host_ports == ports {
        follow(rule, Bound::default(), &mut options.auto_inner);
    } else {
        options.inner.push(Inner { transport, ports, host_ports, weak, when_listening: scan });
    }
}

/// Enters the ports of `rule` among those that are followed at `bound`.
fn follow(rule: &TableRule, bound: Bound, followed: &mut Vec<AutoForward>) {
    let transports = vec![rule.transport];
    let same = |known: &&mut AutoForward| known.bound == bound && known.transports == transports;
    match followed.iter_mut().find(same) {
        Some(known) => known.only.push(rule.ports),
        None => {
            let (exclude, only) = (Vec::new(), vec![rule.ports]);
            let with_tcp = rule.transport == Transport::Udp;
            followed.push(AutoForward { transports, exclude, only, with_tcp, bound });
        }
    }
}
