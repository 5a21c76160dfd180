//! The two ends of the QUIC cells: quinn, which makes use of segmentation offload by itself.
//!
//! The client gets the server's certificate by TCP at the same port, then transfers by UDP for as
//! long as the cell lasts. What counts is what has arrived; every byte is compared.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::agent::listen;
use crate::base::Failure;
use crate::quic_ends::{self, Arrived, Order};

/// Serves at TCP and UDP `port`.
pub fn serve(port: u16) -> Result<String, Failure> {
    let failed = |e| Failure::because("serve QUIC", e);
    let socket = open(port).map_err(failed)?;
    let (config, certificate) = quic_ends::identity().map_err(failed)?;
    let runtime = quic_ends::runtime().map_err(failed)?;
    let clients = listen(port)?;
    thread::spawn(move || {
        for mut client in clients.incoming().flatten() {
            // A client that went away has no use for it.
            let _ = client.write_all(&certificate);
        }
    });
    runtime.block_on(quic_ends::serve(socket, config)).map_err(failed)?;
    Ok(String::new())
}

/// Transfers for so many seconds, up or down: `BYTES NANOSECONDS`.
pub fn client(server: SocketAddr, up: bool, seconds: u64) -> Result<String, Failure> {
    let failed = |e| Failure::because(format_args!("QUIC with {server}"), e);
    let transfer = || {
        let mut certificate = Vec::new();
        TcpStream::connect_timeout(&server, Duration::from_secs(5))?
            .read_to_end(&mut certificate)?;
        let order = Order { up, bytes: u64::MAX, time: Duration::from_secs(seconds) };
        let done = quic_ends::order(open(0)?, server, certificate, order);
        quic_ends::runtime()?.block_on(done)
    };
    let Arrived { bytes, time } = transfer().map_err(failed)?;
    Ok(format!("{bytes} {}", time.as_nanos()))
}

fn open(port: u16) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let options = socket2::SockRef::from(&socket);
    // As quinn's manual advises for high rates; the kernel's default is 208 KiB.
    options.set_recv_buffer_size(4 << 20)?;
    options.set_send_buffer_size(4 << 20)?;
    Ok(socket)
}
