//! What `-t`, `-u`, `-T` and `-U` open: specifications fill two tables, as pesto's do, and their
//! rules become ports of the instance.
//!
//! | rule | of the host's table | of the table of the guest's loopback |
//! |---|---|---|
//! | ports by name | published, or the start fails | led to the host's loopback, likewise |
//! | weak | published as far as they are free | led, as far as they are free |
//! | `auto` | published while the guest listens | led while the host listens |

use super::PastaError;
use super::command::Command;
use super::passt::Mode;
use crate::cli::config::ForwardOptions;
use crate::cli::table_spec::{self, Change, PortOption};
use crate::gate::AddressPlan;
use crate::gate::forward::PortRange;
use crate::gate::table::{Caps, Table, TableRule};
use crate::setup::listen::Opener;

/// What the options of `command` open for a guest of `plan`; an option that is not there is `auto`,
/// or `none` in passt's mode.
/// `ephemeral` are the ports that the host hands out to clients.
pub(super) fn forwards(
    command: &Command,
    plan: &AddressPlan,
    ephemeral: PortRange,
) -> Result<ForwardOptions, PastaError> {
    let auto = ["auto".to_owned()];
    let (default, scans) = match command.mode {
        Mode::Pasta => (&auto[..], true),
        // Nobody can look into a machine.
        Mode::Passt => (&[][..], false),
    };
    let without = |missing: bool, caps| if missing { caps } else { Caps(0) };
    let caps = Caps::ALL
        .without(without(plan.v4.is_none(), Caps::IPV4))
        .without(without(plan.v6.is_none(), Caps::IPV6))
        .without(without(!scans, Caps::SCAN));
    let (mut host, mut inner) = (Table::new(caps), Table::new(caps));
    for (option, specs, carried) in [
        (PortOption::TCP, &command.tcp_ports, command.tcp),
        (PortOption::UDP, &command.udp_ports, command.udp),
        (PortOption::TCP_NS, &command.tcp_ns, command.tcp),
        (PortOption::UDP_NS, &command.udp_ns, command.udp),
    ] {
        let specs = if specs.is_empty() { default } else { specs };
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
    // None has a target: those would need an address to listen at, which these have not.
    options.inner = inner.rules().iter().filter_map(TableRule::inner).collect();
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
    if let Some(auto) = rule.auto() {
        options.auto_publish.push(auto);
    } else if rule.weak {
        options.publish_if_free.push(rule.forward());
    } else {
        options.publish.push(rule.forward());
    }
    Ok(())
}
