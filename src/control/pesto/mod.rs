//! pasta's control socket, which pesto speaks to: forwarding tables, read and replaced as a whole.
//!
//! This page is the protocol, version [`VERSION`], as observed of passt 2026-10. A Unix stream
//! socket; integers are big-endian, nothing is padded.
//!
//! ```text
//!  server                                          client
//!    hello ─────────────────────────────────────▶
//!      "basil:s\0"  version u32  128 u32  16 u32
//!    tables ────────────────────────────────────▶
//!      { pif u8  name [128]  caps u32  count u32  count × rule }  0 u8
//!                                                  shows them, changes them
//!                ◀───────────────────────────────  update, or nothing
//!                                                    { pif u8  count u32  count × rule }  0 u8
//!    closes                                          closes
//!
//!  rule, 56 bytes: listen [16]  target [16]  interface [16]  first u16  last u16  to u16
//!                  transport u8 (6 or 17)  flags u8: 1 every address, 2 weak, 4 scan
//! ```
//! - Addresses are IPv6 or mapped IPv4; a target of `::` is the other side's own address. "Every
//!   address" is of both families and goes with a listen address of `::`.
//! - A table that the client leaves out becomes empty. An update that breaks off, or holds what
//!   makes no sense, changes nothing and closes the connection. There is no answer either way:
//!   success is not known to the client, as it is not in the original.
//! - Version 1 has rules of 40 bytes, without target; the client speaks it too.
//! - Every instance tells a table `HOST`, those of pasta's a table `SPLICE` too.
//!
//! Departures, all on the server's side: a client that stalls is dropped after
//! [`PATIENCE`](super::api::PATIENCE) instead of being waited for; listeners that are in both the
//! old table and the new one stay open; a strict rule that cannot be opened does not keep the rules
//! behind it from being opened, and is tried again every second as there.
//!
//! Hostile input: whoever may write to the socket file, which is for its owner alone.

mod client;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Client, ClientError};
pub use server::{Call, Server};
pub use wire::{PifTable, WireError};

/// The version of the protocol.
pub const VERSION: u32 = 2;

/// The table of host ports that lead into the guest.
pub const HOST: u8 = 1;

/// The table of ports of the guest's loopback that lead to the host's.
pub const SPLICE: u8 = 3;
