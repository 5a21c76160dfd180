//! The whole engine in a simulated world.
//!
//! ```text
//!   guest (smoltcp) ⇄ guest kernel edge ⇄ lossy link ⇄ [ Worker ] ⇄ scripted host sockets
//!                                         its queues ⇄ [ Worker ] ⇄
//! ```
//! Both edges of the engine are in memory, the clock is virtual, every decision comes from a seed:
//! a failure names its seed and repeats. The host side behaves like Linux where the engine can
//! tell the difference.
#![expect(unreachable_pub, reason = "everything here is for this test alone")]

mod bench;
mod crew;
mod crowds;
mod datagrams;
mod ends;
mod frames;
mod fuzz;
mod gathered;
mod gone;
mod guest;
mod guest_kernel;
mod host;
mod hostile;
mod inbound;
mod link;
mod loads;
mod offload;
mod operation;
mod peer;
mod porters;
mod reasons;
mod rng;
mod short_ways;
mod splices;
mod streams;
mod teams;
mod windows;
mod world;
