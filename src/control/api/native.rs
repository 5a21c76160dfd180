//! The native dialect: verbs, arguments and answers as the reference in [`super`] has them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::{ErrorCode, Failure, Reply, Request, Rule, Selector};
use super::wire::{Context, MAX_ANSWER, json};
use crate::gate::forward::{
    Exposure, Forward, ForwardId, HostService, Listen, PortRange, Transport,
};
use crate::observe::{PortKind, PortRecord};

/// Native verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NativeVerb {
    Info,
    Stats,
    ListFlows,
    ListForwards,
    AddForward,
    RemoveForward,
}

/// Arguments of `add_forward`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AddArguments {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<PortKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) proto: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_addr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_port_end: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unix: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest_addr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest_port_end: Option<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) when_listening: bool,
}

/// Arguments of `remove_forward`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RemoveArguments {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<ForwardId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<PortKind>,
}

/// No arguments.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NoArguments {}

/// The return of every verb about ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Forwards<'a> {
    pub(super) forwards: Cow<'a, [PortRecord]>,
}

/// Success or failure, as it stands in the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer<T> {
    Return(T),
    Error(Description),
}

/// A failure as it stands in the answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    desc: String,
    #[serde(default)]
    code: Option<ErrorCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl From<&Failure> for Description {
    fn from(failure: &Failure) -> Self {
        let Failure { code, desc, hint } = failure.clone();
        Description { desc, code: Some(code), hint }
    }
}

impl From<Description> for Failure {
    fn from(description: Description) -> Self {
        let Description { desc, code, hint } = description;
        Failure { code: code.unwrap_or(ErrorCode::Failed), desc, hint }
    }
}

/// A failure as an answer.
pub(super) fn failure(failure: &Failure) -> Vec<u8> {
    json(&Answer::<()>::Error(failure.into()))
}

impl NativeVerb {
    pub(super) fn named(verb: &str) -> Option<NativeVerb> {
        match verb {
            "info" => Some(NativeVerb::Info),
            "stats" => Some(NativeVerb::Stats),
            "list_flows" => Some(NativeVerb::ListFlows),
            "list_forwards" => Some(NativeVerb::ListForwards),
            "add_forward" => Some(NativeVerb::AddForward),
            "remove_forward" => Some(NativeVerb::RemoveForward),
            _ => None,
        }
    }

    pub(super) fn request(self, arguments: &Value, context: &Context) -> Result<Request, Failure> {
        Ok(match self {
            NativeVerb::Info => {
                let NoArguments {} = read(arguments)?;
                Request::Info
            }
            NativeVerb::Stats => {
                let NoArguments {} = read(arguments)?;
                Request::Stats
            }
            NativeVerb::ListForwards => {
                let NoArguments {} = read(arguments)?;
                Request::ListForwards
            }
            NativeVerb::ListFlows => Request::ListFlows(read(arguments)?),
            NativeVerb::AddForward => {
                let arguments: AddArguments = read(arguments)?;
                Request::AddForward(arguments.rules(context)?)
            }
            NativeVerb::RemoveForward => {
                let RemoveArguments { id, spec, kind } = read(arguments)?;
                Request::RemoveForward(match (id, spec) {
                    (Some(id), None) => Selector::Id(id),
                    (None, Some(spec)) => Selector::Rules(parse(context, kind, &spec)?),
                    _ => return Err(invalid("say which port, by either id or spec")),
                })
            }
        })
    }

    pub(super) fn answer(self, result: &Result<Reply, Failure>) -> Vec<u8> {
        let bytes = match result {
            Ok(Reply::Info(info)) => json(&Answer::Return(info)),
            Ok(Reply::Stats(stats)) => json(&Answer::Return(stats)),
            Ok(Reply::Flows(page)) => json(&Answer::Return(page)),
            Ok(Reply::Forwards(records)) => {
                json(&Answer::Return(Forwards { forwards: Cow::Borrowed(records) }))
            }
            Err(cause) => failure(cause),
        };
        if bytes.len() > MAX_ANSWER {
            let text = format!("the answer would be longer than {MAX_ANSWER} bytes");
            return failure(&Failure::new(ErrorCode::Limit, text));
        }
        bytes
    }
}

impl AddArguments {
    fn rules(self, context: &Context) -> Result<Vec<Rule>, Failure> {
        let when_listening = self.when_listening;
        let mut rules = match &self.spec {
            Some(spec) => {
                let bare = AddArguments {
                    spec: Some(spec.clone()),
                    kind: self.kind,
                    when_listening,
                    ..AddArguments::default()
                };
                if bare != self {
                    return Err(invalid(
                        "spec says everything: it goes with kind and when_listening",
                    ));
                }
                parse(context, self.kind, spec)?
            }
            None => vec![self.rule()?],
        };
        for rule in &mut rules {
            match rule {
                Rule::Publish(forward) => forward.when_listening |= when_listening,
                Rule::Expose(_) if when_listening => {
                    return Err(invalid("when_listening is for published ports"));
                }
                Rule::Expose(_) => {}
            }
        }
        Ok(rules)
    }

    /// The one rule that the fields describe.
    fn rule(self) -> Result<Rule, Failure> {
        let transport = self.proto.unwrap_or(Transport::Tcp);
        let guest_port = self.guest_port.ok_or_else(|| invalid("guest_port is missing"))?;
        let guest_ports = range("guest_port", guest_port, self.guest_port_end)?;
        let kind = self.kind.unwrap_or(PortKind::Publish);
        if let Some(path) = self.unix {
            let other = self.host_addr.is_some() || self.host_port.is_some();
            if other || self.interface.is_some() || self.host_port_end.is_some() {
                return Err(invalid("the host's end is either unix or an address with ports"));
            }
            if transport != Transport::Tcp || guest_ports.count() != 1 {
                return Err(invalid("a Unix socket goes with a single TCP port"));
            }
            return Ok(match kind {
                PortKind::Publish => {
                    let listen = Listen::Unix(path);
                    Rule::Publish(publish(transport, listen, self.guest_addr, guest_ports))
                }
                PortKind::Expose => Rule::Expose(Exposure {
                    transport,
                    ports: guest_ports,
                    service: HostService::Unix(path),
                }),
            });
        }
        let host_ports = match (self.host_port, kind) {
            (Some(first), _) => range("host_port", first, self.host_port_end)?,
            (None, _) if self.host_port_end.is_some() => {
                return Err(invalid("host_port_end goes with host_port"));
            }
            (None, PortKind::Expose) => guest_ports,
            (None, PortKind::Publish) if guest_ports.count() == 1 => PortRange::ANY,
            (None, PortKind::Publish) => return Err(invalid("a range needs a host_port")),
        };
        if host_ports.count() != guest_ports.count() {
            let text = format!("{host_ports} and {guest_ports} are not as many ports");
            return Err(invalid(text));
        }
        match kind {
            PortKind::Publish => {
                let listen = Listen::Ports {
                    address: self.host_addr,
                    interface: self.interface,
                    ports: host_ports,
                };
                Ok(Rule::Publish(publish(transport, listen, self.guest_addr, guest_ports)))
            }
            PortKind::Expose if self.guest_addr.is_some() || self.interface.is_some() => {
                Err(invalid("an exposed port is at the gateway, without guest_addr and interface"))
            }
            PortKind::Expose => {
                let service = HostService::Ports { address: self.host_addr, ports: host_ports };
                Ok(Rule::Expose(Exposure { transport, ports: guest_ports, service }))
            }
        }
    }
}

fn publish(
    transport: Transport,
    listen: Listen,
    guest_address: Option<IpAddr>,
    guest_ports: PortRange,
) -> Forward {
    Forward { transport, listen, guest_address, guest_ports, when_listening: false }
}

fn range(name: &str, first: u16, last: Option<u16>) -> Result<PortRange, Failure> {
    let last = last.unwrap_or(first);
    PortRange::new(first, last)
        .ok_or_else(|| invalid(format!("{name}: {first}-{last} is not a range of ports from 1 up")))
}

fn parse(context: &Context, kind: Option<PortKind>, spec: &str) -> Result<Vec<Rule>, Failure> {
    (context.parse_spec)(kind.unwrap_or(PortKind::Publish), spec).map_err(invalid)
}

fn invalid(desc: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Invalid, desc)
}

/// Absent arguments are no arguments.
fn read<T: DeserializeOwned + Default>(arguments: &Value) -> Result<T, Failure> {
    if arguments.is_null() {
        return Ok(T::default());
    }
    T::deserialize(arguments).map_err(|error| invalid(format!("bad arguments: {error}")))
}
