//! Requests and answers as bytes: when a request is complete, which dialect it speaks, and what an
//! answer looks like.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::Value;

use super::native::{self, NativeVerb};
use super::request::{Failure, Reply, Request, Rule};
use super::slirp::{self, SlirpVerb};
use super::unambiguous::Unambiguous;
use crate::observe::PortKind;

/// Length from which on a message is too large: what slirp4netns reads at most.
pub const MAX_REQUEST: usize = 4096;

/// Longest answer. The longest page of flows is about a sixth of it, 20,000 ports a third.
pub const MAX_ANSWER: usize = 16 << 20;

/// Reads a `spec` in the grammar of `--publish` or `--expose-host`, which the command line owns.
/// The error is a sentence that names the spec.
pub type SpecParser = fn(PortKind, &str) -> Result<Vec<Rule>, String>;

/// What the protocol has to know of its instance.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The grammar of `spec`.
    pub parse_spec: SpecParser,
    /// Where slirp4netns's forwards lead that name no guest address.
    pub guest: Option<Ipv4Addr>,
}

/// A request that can be put to the instance, and the form of its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) dialect: Dialect,
}

/// Whose words the answer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Slirp(SlirpVerb),
    Native(NativeVerb),
}

/// What the bytes received so far amount to.
#[derive(Debug)]
pub(super) enum Message {
    /// The beginning of a request.
    Incomplete,
    /// A request.
    Asked(Box<Asked>),
    /// Nothing that could be put to the instance; the answer.
    Refused(Vec<u8>),
}

/// Reads `bytes`, all that has been received. `ended` tells that nothing more will come.
pub(super) fn read(bytes: &[u8], ended: bool, context: &Context) -> Message {
    if bytes.len() >= MAX_REQUEST {
        return Message::Refused(slirp::refusal("too large message"));
    }
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Unambiguous>();
    match values.next() {
        Some(Ok(Unambiguous(value))) => match interpret(&value, context) {
            Ok(asked) => Message::Asked(Box::new(asked)),
            Err(answer) => Message::Refused(answer),
        },
        Some(Err(error)) if error.is_eof() && !ended => Message::Incomplete,
        None if !ended => Message::Incomplete,
        None | Some(Err(_)) => Message::Refused(slirp::refusal("cannot parse JSON")),
    }
}

fn interpret(value: &Value, context: &Context) -> Result<Asked, Vec<u8>> {
    let object = value.as_object().ok_or_else(|| slirp::refusal("json_object() failed"))?;
    let verb = object.get("execute").and_then(Value::as_str);
    let verb = verb.ok_or_else(|| slirp::refusal("no execute found"))?;
    let arguments = object.get("arguments").unwrap_or(&Value::Null);
    if let Some(verb) = SlirpVerb::named(verb) {
        let request = verb.request(arguments, context).map_err(slirp::refusal)?;
        return Ok(Asked { request, dialect: Dialect::Slirp(verb) });
    }
    if let Some(verb) = NativeVerb::named(verb) {
        let request = verb.request(arguments, context).map_err(|f| native::failure(&f))?;
        return Ok(Asked { request, dialect: Dialect::Native(verb) });
    }
    Err(slirp::refusal("unknown execute"))
}

/// The instance's word as the bytes that the client gets.
pub(super) fn answer(
    dialect: Dialect,
    result: &Result<Reply, Failure>,
    context: &Context,
) -> Vec<u8> {
    match dialect {
        Dialect::Slirp(verb) => verb.answer(result, context),
        Dialect::Native(verb) => verb.answer(result),
    }
}

/// JSON of one of our own answer types. These have no maps with keys that are not strings and no
/// failing implementations, so there is nothing that could go wrong.
pub(super) fn json(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_default()
}
