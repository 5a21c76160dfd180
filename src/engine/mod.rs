//! Workers: the TAP queue, host sockets, timers and flow tables, and the two walks between them.
//!
//! ```text
//!   guest ── TAP ──▶ walk_out ─▶ link ─▶ ip ─▶ plan ─▶ flow ─▶ machine ─▶ actions ─▶ host socket
//!   guest ◀── TAP ── headers in place ◀── slab ◀── machine ◀── readiness ◀──────── host socket
//! ```
//! Connections between the two loopbacks take a shorter way, from socket to socket (`splice`), and
//! so do clients of published ports where the guest does not notice (`walk_short`).
//! The engine owns every byte and descriptor of the data path and calls the pure rooms of
//! [`crate::stack`]; none of them calls another. Its two edges are the traits of [`ports`]. The
//! guest's is a TAP ([`tap`]) or, of a virtual machine, a stream ([`stream_link`]).

mod buffers;
mod command;
mod datagram_flow;
mod drain;
mod exposures;
mod flow_table;
mod forget;
pub mod host;
mod inbox;
mod io;
mod ledger;
mod listing;
pub mod no_link;
mod outbox;
mod parked;
pub mod pipe;
pub mod ports;
mod published;
mod reading;
mod recorder;
mod room;
mod short_way;
mod spin;
mod splice;
pub mod stream_link;
mod syn_backlog;
pub mod tap;
mod tcp_flow;
mod team;
pub mod thread;
pub mod token;
mod trail;
mod upkeep;
mod walk_across;
mod walk_back;
mod walk_carried;
mod walk_dns;
mod walk_icmp;
mod walk_in;
mod walk_out;
mod walk_relay;
mod walk_session;
mod walk_short;
mod walk_splice;
mod walk_tcp;
mod walk_team;
mod walk_udp;
mod wheel;
mod worker;

pub use command::{Command, Reply};
pub use datagram_flow::{MappingKey, Route};
pub use flow_table::FlowTable;
pub use io::{Counters, FLOW_BYTES, Limits};
pub use published::{Led, LedId, Published, Withdrawal};
pub use tcp_flow::TcpKey;
pub use team::balance::Advice;
pub use team::{MAX_WORKERS, Member, WorkerId, members};
pub use walk_team::Order;
pub use wheel::Wheel;
pub use worker::{Held, Options, Worker};
