//! ICMP and ICMPv6: echo by ping sockets, errors to the guest, errors from the guest.
//!
//! Follows RFC 792, RFC 4443, RFC 1122 §3.2.2, RFC 5508 (NAT behaviour for ICMP). Pure: builds and
//! reads messages, keeps nothing. Hostile input: everything from the guest, and the quotations in
//! errors from the network.
#![forbid(unsafe_code)]

pub mod echo;
pub mod error;
