//! The pure protocol rooms, in walking order: what a frame meets on its way from the TAP to a host
//! socket.
//!
//! Time, frames and host events come in; answers and typed actions go out. No room here owns a
//! descriptor or reads a clock (D7), and no room calls its sibling: the engine walks them.
#![forbid(unsafe_code)]

pub mod icmp;
pub mod ip;
pub mod link;
pub mod services;
pub mod tcp;
pub mod udp;
pub mod wire;
