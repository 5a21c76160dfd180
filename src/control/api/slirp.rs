//! The dialect of slirp4netns's API socket, as its clients (podman, rootlesskit) know it.
//!
//! Checks come in its order, values are taken as loosely: strings in place of numbers count as
//! absent, an address that is no string as not given. Departs where it crashes (a missing `proto`)
//! or wraps (ports beyond 65535): both are bad arguments here.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use serde_json::Value;

use super::request::{Failure, Reply, Request, Rule, Selector};
use super::wire::{Context, json};
use crate::gate::forward::{Forward, ForwardId, Listen, PortRange, Transport};
use crate::observe::{HostEnd, PortKind, PortRecord};

/// Verbs of slirp4netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlirpVerb {
    Add,
    List,
    Remove,
}

#[derive(Serialize)]
struct Refusal {
    error: Description,
}

#[derive(Serialize)]
struct Description {
    desc: String,
}

/// An error in slirp4netns's form.
pub(super) fn refusal(text: &str) -> Vec<u8> {
    json(&Refusal { error: Description { desc: format!("bad request: {text}") } })
}

/// One line of `list_hostfwd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Entry {
    id: ForwardId,
    proto: Transport,
    host_addr: Ipv4Addr,
    host_port: u16,
    guest_addr: Ipv4Addr,
    guest_port: u16,
}

#[derive(Serialize)]
struct Return<T> {
    #[serde(rename = "return")]
    value: T,
}

#[derive(Serialize)]
struct Added {
    id: ForwardId,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Entry],
}

#[derive(Serialize)]
struct Listing<'a> {
    #[serde(rename = "return")]
    value: Entries<'a>,
    entries: &'a [Entry],
}

impl SlirpVerb {
    pub(super) fn named(verb: &str) -> Option<SlirpVerb> {
        match verb {
            "add_hostfwd" => Some(SlirpVerb::Add),
            "list_hostfwd" => Some(SlirpVerb::List),
            "remove_hostfwd" => Some(SlirpVerb::Remove),
            _ => None,
        }
    }

    /// # Errors
    /// The text after "bad request: ".
    pub(super) fn request(
        self,
        arguments: &Value,
        context: &Context,
    ) -> Result<Request, &'static str> {
        match self {
            SlirpVerb::Add => {
                let rule = Rule::Publish(forward(arguments, context)?);
                Ok(Request::AddForward(vec![rule]))
            }
            SlirpVerb::List => Ok(Request::ListForwards),
            SlirpVerb::Remove => {
                let id = whole(&arguments["id"]).filter(|&id| id > 0);
                let id = id.ok_or("remove_hostfwd: bad arguments.id")?;
                Ok(Request::RemoveForward(Selector::Id(ForwardId(id))))
            }
        }
    }

    pub(super) fn answer(self, result: &Result<Reply, Failure>, context: &Context) -> Vec<u8> {
        let records = match result {
            Ok(Reply::Forwards(records)) => records,
            // Only an instance that is broken answers another question.
            Ok(_) | Err(_) => return refusal(self.failed(result)),
        };
        match self {
            SlirpVerb::Add => match records.first() {
                Some(record) => json(&Return { value: Added { id: record.id } }),
                None => refusal(self.failed(result)),
            },
            SlirpVerb::Remove => json(&Return { value: Empty {} }),
            SlirpVerb::List => {
                let entry = |record| Entry::of(record, context);
                let entries: Vec<Entry> = records.iter().filter_map(entry).collect();
                let value = Entries { entries: &entries };
                json(&Listing { value, entries: &entries })
            }
        }
    }

    fn failed(self, result: &Result<Reply, Failure>) -> &'static str {
        use super::request::ErrorCode::NotFound;
        match self {
            SlirpVerb::Add => "add_hostfwd: slirp_add_hostfwd failed",
            SlirpVerb::List => "list_hostfwd: failed",
            SlirpVerb::Remove => match result {
                Err(Failure { code: NotFound, .. }) => "remove_hostfwd: bad arguments.id",
                _ => "remove_hostfwd: slirp_remove_hostfwd failed",
            },
        }
    }
}

fn forward(arguments: &Value, context: &Context) -> Result<Forward, &'static str> {
    let transport = match arguments["proto"].as_str() {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => return Err("add_hostfwd: bad arguments.proto"),
    };
    let host =
        address(&arguments["host_addr"]).map_err(|()| "add_hostfwd: bad arguments.host_addr")?;
    let host_port = port(&arguments["host_port"]).ok_or("add_hostfwd: bad arguments.host_port")?;
    let guest =
        address(&arguments["guest_addr"]).map_err(|()| "add_hostfwd: bad arguments.guest_addr")?;
    let guest_port =
        port(&arguments["guest_port"]).ok_or("add_hostfwd: bad arguments.guest_port")?;
    Ok(Forward {
        transport,
        listen: Listen::Ports {
            address: Some(IpAddr::V4(host.unwrap_or(Ipv4Addr::UNSPECIFIED))),
            interface: None,
            ports: PortRange::single(host_port),
        },
        guest_address: guest.or(context.guest).map(IpAddr::V4),
        guest_ports: PortRange::single(guest_port),
        when_listening: false,
    })
}

/// `None` where no address is given.
fn address(value: &Value) -> Result<Option<Ipv4Addr>, ()> {
    match value.as_str() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ()),
    }
}

/// A number without what follows its point, as a conversion in C takes it.
fn whole(value: &Value) -> Option<u64> {
    // Negative numbers become 0, which is no port and no id.
    value.as_f64().map(|number| number as u64)
}

fn port(value: &Value) -> Option<u16> {
    whole(value).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0)
}

impl Entry {
    /// `None` for what slirp4netns could not have made.
    fn of(record: &PortRecord, context: &Context) -> Option<Entry> {
        let PortRecord { kind: PortKind::Publish, host, guest, .. } = record else { return None };
        let HostEnd::Ports { address, first_port, last_port, .. } = host else { return None };
        let host_addr = match address {
            None => Ipv4Addr::UNSPECIFIED,
            Some(IpAddr::V4(address)) => *address,
            Some(IpAddr::V6(_)) => return None,
        };
        let guest_addr = match guest.address {
            None => context.guest?,
            Some(IpAddr::V4(address)) => address,
            Some(IpAddr::V6(_)) => return None,
        };
        (first_port == last_port).then_some(Entry {
            id: record.id,
            proto: record.transport,
            host_addr,
            host_port: *first_port,
            guest_addr,
            guest_port: guest.first_port,
        })
    }
}
