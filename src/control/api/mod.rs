//! The control socket of an instance: who may speak to it, and its protocol.
//!
//! This page is the reference of the protocol, version [`VERSION`].
//!
//! # The socket
//!
//! `NAME.sock`, a Unix stream socket in the first of these directories that is possible
//! ([`Places`]): `$XDG_RUNTIME_DIR/tapway`, `/run/user/UID/tapway`, `/tmp/tapway-UID`. The
//! directory has mode 0700, the socket 0600, and the kernel's word on the peer (`SO_PEERCRED`) has
//! to be the instance's own user or root.
//!
//! An engine may name another place ([`Server::bind_at`]). There the file's mode, 0600, is all that
//! is asked. What engines start by another name has both: beside the place that they name, if they
//! do, a `slirp4netns-PID.sock` or `pasta-PID.sock` in the first two of the directories above
//! ([`Places::create_in_runtime`]), so that its user can look on. Those that were killed leave the
//! file, and the next one removes it.
//!
//! One connection carries one request and its answer. The request is a JSON object of less than
//! [`MAX_REQUEST`] bytes; it is answered as soon as it is complete, so a client need not close its
//! side, and what follows it is not looked at. The answer is one JSON object without a final
//! newline, after which the server closes. A client has [`PATIENCE`] to send its request and as
//! long to take the answer. Of [`MAX_CLIENTS`] at a time, the one that has kept its request back
//! longest makes room for the next.
//!
//! ```text
//! $ echo '{"execute":"info"}' | socat - UNIX-CONNECT:$XDG_RUNTIME_DIR/tapway/web.sock
//! {"return":{"name":"web","pid":4711,...}}
//! ```
//!
//! # Requests
//!
//! `{"execute": VERB, "arguments": {...}}`. Success is `{"return": {...}}`, failure
//! `{"error": {"desc": SENTENCE, "code": CODE}}`, with a `hint` where there is a remedy. Codes:
//! `invalid`, `not-found`, `in-use`, `denied`, `limit`, `unavailable`, `failed` ([`ErrorCode`]).
//!
//! | verb | arguments | return |
//! |---|---|---|
//! | `info` | | [`Info`] |
//! | `stats` | | [`Stats`] |
//! | `list_flows` | [`FlowQuery`]: `transport`, `port`, `address`, `after`, `limit` | [`FlowPage`] |
//! | `list_forwards` | | `{"forwards": [`[`PortRecord`]`…]}` |
//! | `add_forward` | `spec` or fields, below | the same: what was added |
//! | `remove_forward` | `id`, or `spec` and `kind` | the same: what was removed |
//!
//! `add_forward` takes `spec` in the grammar of `--publish` (`"kind":"publish"`, the default) or
//! `--expose-host` (`"kind":"expose"`), or fields: `kind`, `proto` (`tcp` or `udp`, by default
//! `tcp`), `host_addr`, `host_port`, `host_port_end`, `interface` or `unix` for the host's end,
//! `guest_addr`, `guest_port`, `guest_port_end` for the guest's. A published port without
//! `host_port` gets one that is free; an exposed one leads to the same port of the host's loopback
//! unless said otherwise. `when_listening` publishes only while something listens inside. Arguments
//! that a native verb does not know are refused: a filter that is not applied would mislead.
//!
//! Ports that were added are lost neither by load nor by the client's end; they last until they
//! are removed or the instance ends.
//!
//! # slirp4netns
//!
//! `add_hostfwd`, `list_hostfwd` and `remove_hostfwd` answer to the byte as slirp4netns does, with
//! its error texts and without codes, except that entries are listed under both `return.entries`
//! (its documentation) and `entries` (its behaviour). Only forwards that it could have made are
//! listed: one IPv4 port each. Requests that are none get its error texts as well.
//!
//! # Versions
//!
//! [`VERSION`] rises when a field or verb goes away or changes its meaning. Fields are added
//! without notice: clients ignore those that they do not know.
//!
//! # Inside
//!
//! ```text
//!   client ─▶ server ─▶ wire (slirp, native) ─▶ Request ─▶ Call over mpsc ─▶ the instance
//!                             answer bytes  ◀─ Result<Reply, Failure> ◀─ oneshot
//! ```
//! Hostile input: clients may stall, trickle, flood and go away; they are of the same user, so they
//! can end the instance anyway, but not by mistake.
//!
//! [`Info`]: crate::observe::Info
//! [`Stats`]: crate::observe::Stats
//! [`FlowQuery`]: crate::observe::FlowQuery
//! [`FlowPage`]: crate::observe::FlowPage
//! [`PortRecord`]: crate::observe::PortRecord

mod client;
mod directory;
mod native;
mod request;
mod server;
mod slirp;
mod socket;
#[cfg(test)]
mod tests;
mod unambiguous;
mod wire;

pub use client::{Client, ClientError};
pub use directory::{Directory, DirectoryError, Places};
pub use request::{Call, ErrorCode, Failure, Reply, Request, Rule, Selector};
pub use server::{MAX_CLIENTS, PATIENCE, Server};
pub use wire::{Context, MAX_ANSWER, MAX_REQUEST, SpecParser};

/// The version of the protocol.
pub const VERSION: u32 = 1;
