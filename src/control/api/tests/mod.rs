//! The protocol by its bytes, and the server by real sockets.

mod instance;
mod protocol;
mod sockets;
