//! System calls that no library offers well, one function each. The only room where `unsafe` is
//! allowed.
//!
//! Functions take and give `OwnedFd`/`BorrowedFd`, use libc's own structures, and return
//! `std::io::Result` with the kernel's errno. They know no protocol and keep no state.
#![allow(unsafe_code)]

pub mod clock;
pub mod datagram;
pub mod inherit;
pub mod namespace;
pub mod pages;
pub mod probe;
pub mod process;
pub mod readiness;
pub mod scm;
pub mod sock_diag;
pub mod tcp_info;
pub mod terminal;
pub mod tun;
