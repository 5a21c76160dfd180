//! What is asked of an instance and what it answers, as values.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::gate::forward::{Exposure, Forward, ForwardId};
use crate::observe::{FlowPage, FlowQuery, Info, PortRecord, Stats};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who it is.
    Info,
    /// Its counters.
    Stats,
    /// Its flows.
    ListFlows(FlowQuery),
    /// Its ports.
    ListForwards,
    /// More ports: all of them or, on failure, none.
    AddForward(Vec<Rule>),
    /// Fewer ports.
    RemoveForward(Selector),
}

/// A port to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A published one.
    Publish(Forward),
    /// An exposed one.
    Expose(Exposure),
}

/// Which ports are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one with this number.
    Id(ForwardId),
    /// Those that were added by these rules.
    Rules(Vec<Rule>),
}

/// The instance's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Info`].
    Info(Box<Info>),
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::ListFlows`].
    Flows(FlowPage),
    /// The ports that are listed, were added, or were removed.
    Forwards(Vec<PortRecord>),
}

/// Kinds of failure, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request makes no sense.
    Invalid,
    /// There is no such port.
    NotFound,
    /// The port is taken, by another rule or another process.
    InUse,
    /// The host does not allow it to this user.
    Denied,
    /// A limit is reached: descriptors, rules, bytes of an answer.
    Limit,
    /// The instance is ending, or busy beyond measure.
    Unavailable,
    /// Anything else.
    #[serde(other)]
    Failed,
}

/// Why a request was not met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one sentence.
    pub desc: String,
    /// What can be done about it, where that is known.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: ErrorCode, desc: impl Into<String>) -> Failure {
        Failure { code, desc: desc.into(), hint: None }
    }
}

/// A request on its way to the instance, with the way back. A dropped `reply` tells the client that
/// the instance is ending; a client that has gone away makes sending to it fail, which is no error.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Reply, Failure>>,
}
