//! tapway: a full network for an unprivileged user's network namespace.
//!
//! A TAP device in the guest, a userspace translator that turns the guest's flows into ordinary
//! host sockets (masquerading without root). This page is the map of the code.
//!
//! # Rooms, in the order in which things happen
//!
//! | room | what happens there |
//! |---|---|
//! | [`cli`] | argv becomes a draft, a draft with the host's facts a [`cli::Config`] |
//! | [`setup`] | namespaces, TAP, addresses, private files; the loss of privilege; `doctor` |
//! | [`launch`] | joins the guest's link to a worker and the control services |
//! | [`engine`] | the worker: TAP queue, host sockets, flow tables, timers; both walks |
//! | [`stack`] | pure protocol rooms: wire, link, ip, tcp, udp, icmp, services |
//! | [`gate`] | who is who on the guest link, and what a destination means |
//! | [`control`] | the control thread: signals, the guest's life, DNS, the control socket |
//! | [`observe`] | the capture file; records of flows, ports and counters |
//! | [`sys`] | system calls; the only unsafe code |
//! | [`base`] | words that all rooms share |
//!
//! # The walk out
//!
//! ```text
//!  TAP ─▶ engine::tap ─▶ stack::link ─▶ stack::ip (reassembly) ─▶ stack::services  ARP ND RA DHCP
//!                                             │
//!                                   gate::AddressPlan::destination
//!                      ┌──────────────┬───────┴───────┬──────────────┐
//!                 gateway: echo   DNS address      host address    nothing to forward: dropped
//!                                     │               │            under a reason
//!                              control::dns     flow table ─▶ stack::{tcp, udp, icmp} ─▶ actions
//!                                                                                         │
//!                                                              engine::host ─▶ host sockets
//! ```
//!
//! # The walk back
//!
//! `epoll` tells that a host socket is ready; the flow reads it straight behind the header room of
//! a slab, the machine says what to send, headers are written in front of the payload, and one
//! `write` puts the frame on the TAP. The slab stays until the guest has acknowledged it.
//!
//! A virtual machine has a stream in the place of the TAP ([`engine::stream_link`]): no offloads,
//! so payload is cut into segments and summed on its way.
//!
//! # The short way
//!
//! A client of a published port who is on the host's loopback, and one on the guest's loopback
//! whose port leads to the host's, need no link: one socket on each side of the namespace's border,
//! and `splice` between them ([`gate::Splicing`]; the `splice` room of [`engine`]).
//!
//! It is also taken where the server is in the guest's namespace itself by clients of published TCP
//! ports who are on the host, and by all if that is asked for ([`gate::PublishPath`]): the socket
//! inside has the address as which the client is seen, and a mark brings the answers back to it (D8;
//! `walk_short`, `trail` and `short_way` of [`engine`], `short_way` of [`setup`]).
//!
//! # Who may use whom
//!
//! Rows use rows above them, never below, and no row uses itself except where named.
//!
//! 1. [`base`]
//! 2. [`sys`], [`stack::wire`]
//! 3. [`gate`]; the rooms of [`stack`], which use [`gate`] for the address plan; `tcp`, `udp`,
//!    `icmp` and `services` do not use each other, `icmp` reads quoted packets with `ip`
//! 4. [`observe`]
//! 5. [`setup`] (which uses [`control::lifecycle`]'s words for what an instance lives for),
//!    [`control`]
//! 6. [`engine`]
//! 7. [`cli`], [`launch`]
//! 8. `main`
//!
//! Doors: smoltcp is used through [`stack::wire`], tokio in [`control`] and [`launch`], clap in
//! [`cli`]. Only [`sys`] may be unsafe, and only [`sys::clock`] reads a clock.
//!
//! # Decisions that shape everything
//!
//! - **Offloads are the data path** (D1): frames of up to 64 KiB at any MTU, towards a kernel with
//!   "BIG TCP" of up to 256 KiB, with partial checksums; payload is neither summed nor copied by
//!   us.
//! - **Datagrams travel together** (D10): those that are alike cross the host's stack, the TAP and
//!   the guest's stack as one packet with segmentation owed ([`stack::udp::offload`]); both ends
//!   see what was sent.
//! - **A flow is a translation** (D2): the host's kernel runs the connection to the world; towards
//!   the guest there is no congestion to control, and what the link loses is repaired in a round
//!   trip.
//! - **Backlog instead of loss** (D3): what the host socket does not take is kept, and the window
//!   shrinks by it. Everything that a guest can make us hold has a limit ([`engine::Limits`]).
//! - **Workers own their flows** (D5): nothing on the hot path is shared or locked. There is one
//!   worker while one is enough; others come and go as load asks, and flows move between them.
//! - **Sans-IO machines** (D7): [`stack`] takes time, segments and host events and gives actions;
//!   it has no descriptor and no clock, so tests and simulations drive the very code that runs.
//! - **Errors keep their errno** (D9): refused is a reset, unreachable is the ICMP error that a
//!   Linux guest turns into the same errno.
//! - **TTL and DSCP are carried as they are**: tapway is not a hop. A traceroute from the guest
//!   shows what the same traceroute on the host shows.
#![deny(unsafe_code)]

pub mod base;
pub mod cli;
pub mod control;
pub mod engine;
pub mod gate;
pub mod launch;
pub mod observe;
pub mod setup;
pub mod stack;
pub mod sys;
