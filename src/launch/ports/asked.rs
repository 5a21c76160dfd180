//! Ports that users ask for, by number or by rule: all that is asked for at once, or nothing.

use std::collections::BTreeSet;

use super::{Ports, failure};
use crate::control::api::{ErrorCode, Failure, Rule, Selector};
use crate::gate::forward::{Exposure, Forward, ForwardId};
use crate::observe::PortRecord;

impl Ports {
    /// Adds what `rules` say: all of it, or nothing.
    pub(in crate::launch) fn add(&mut self, rules: Vec<Rule>) -> Result<Vec<PortRecord>, Failure> {
        self.check_guest_addresses(&rules)?;
        self.check_overlaps(&rules)?;
        let mut opened = Vec::new();
        for rule in &rules {
            if let Rule::Publish(forward) = rule
                && !forward.when_listening
            {
                opened.push(self.opener.open(forward).map_err(|error| failure(&error))?);
            }
        }
        let mut opened = opened.into_iter();
        let mut ids = Vec::with_capacity(rules.len());
        for rule in rules {
            ids.push(match rule {
                Rule::Expose(exposure) => self.expose(exposure, false),
                Rule::Publish(forward) if forward.when_listening => {
                    self.enter_waiting(forward, false)
                }
                Rule::Publish(forward) => {
                    // One was opened for each of these, in this order.
                    let Some(opened) = opened.next() else { continue };
                    self.enter(forward, opened, false)
                }
            });
        }
        Ok(ids.iter().filter_map(|id| self.record(*id, None)).collect())
    }

    fn check_overlaps(&self, rules: &[Rule]) -> Result<(), Failure> {
        let in_use = |rule: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::InUse, format!("{rule} overlaps {other}"))
        };
        for (position, rule) in rules.iter().enumerate() {
            match rule {
                Rule::Publish(forward) => {
                    let present = self.published.values().map(|port| &port.forward);
                    let before = rules[..position].iter().filter_map(|rule| match rule {
                        Rule::Publish(forward) => Some(forward),
                        Rule::Expose(_) => None,
                    });
                    if let Some(other) = present.chain(before).find(|other| other.overlaps(forward))
                    {
                        return Err(in_use(forward, other));
                    }
                }
                Rule::Expose(exposure) => {
                    let present = self.exposed.values().map(|port| &port.exposure);
                    let before = rules[..position].iter().filter_map(|rule| match rule {
                        Rule::Expose(exposure) => Some(exposure),
                        Rule::Publish(_) => None,
                    });
                    let clashes = |other: &&Exposure| {
                        other.transport == exposure.transport
                            && other.ports.overlaps(exposure.ports)
                    };
                    if let Some(other) = present.chain(before).find(clashes) {
                        return Err(in_use(exposure, other));
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes what `selector` means; the host ports are free when it returns.
    pub(in crate::launch) async fn remove(
        &mut self,
        selector: Selector,
    ) -> Result<Vec<PortRecord>, Failure> {
        let ids = self.selected(&selector);
        if ids.is_empty() {
            return Err(Failure::new(ErrorCode::NotFound, not_found(&selector)));
        }
        let records = ids.iter().filter_map(|id| self.record(*id, None)).collect();
        self.close(&ids).await;
        Ok(records)
    }

    fn selected(&self, selector: &Selector) -> Vec<ForwardId> {
        let rules = match selector {
            Selector::Id(id) => {
                let known = self.published.contains_key(id) || self.exposed.contains_key(id);
                return known.then_some(*id).into_iter().collect();
            }
            Selector::Rules(rules) => rules,
        };
        let meant = |rule: &Rule| -> Vec<ForwardId> {
            match rule {
                Rule::Publish(forward) => {
                    let same = |other: &Forward| {
                        Forward { when_listening: forward.when_listening, ..other.clone() }
                            == *forward
                    };
                    let found = self.published.iter();
                    let found = found.filter(|(_, port)| same(&port.rule) || same(&port.forward));
                    found.map(|(id, _)| *id).collect()
                }
                Rule::Expose(exposure) => {
                    let found = self.exposed.iter().filter(|(_, port)| port.exposure == *exposure);
                    found.map(|(id, _)| *id).collect()
                }
            }
        };
        let ids: BTreeSet<ForwardId> = rules.iter().flat_map(meant).collect();
        ids.into_iter().collect()
    }
}

fn not_found(selector: &Selector) -> String {
    match selector {
        Selector::Id(ForwardId(id)) => format!(
            "there is no port with number {id}: `tapway port list` shows them; a port is removed by \
             its number, or in the words that added it, as 8080:80"
        ),
        Selector::Rules(rules) => {
            let text = |rule: &Rule| match rule {
                Rule::Publish(forward) => forward.to_string(),
                Rule::Expose(exposure) => exposure.to_string(),
            };
            let rules: Vec<String> = rules.iter().map(text).collect();
            format!("there is no port {}", rules.join(", "))
        }
    }
}
