//! Two ends of a QUIC transfer (quinn): a server that sends or takes what a client orders.
//!
//! ```text
//!   client                                     server
//!   one stream:  order ─────────────────────▶  reads it
//!                pattern ═══════════════════▶  compares, answers how many bytes   (up)
//!                compares  ◀══════════════════ pattern                            (down)
//! ```
//! Both ends know the pattern, so that every byte is checked on arrival. The sockets are the
//! caller's: one may be in another network namespace.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime,
};
use tapway::base::Instant;
use tapway::sys::clock;

/// The name in the server's certificate.
const NAME: &str = "server.test";

/// What is sent with one call.
const CHUNK: usize = 64 << 10;

/// What a client wants: the server is the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whether the client sends.
    pub(crate) up: bool,
    /// Bytes to send at most.
    pub(crate) bytes: u64,
    /// Time to send at most.
    pub(crate) time: Duration,
}

/// What has arrived, and how long it took from the order to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// A certificate that is its own authority, and a server that shows it.
pub(crate) fn identity() -> Result<(ServerConfig, Vec<u8>), Problem> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).map_err(problem)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let certificate = CertificateDer::from(made.cert);
    let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into());
    Ok((config.map_err(problem)?, certificate.to_vec()))
}

/// Whatever goes wrong here, in words.
pub(crate) type Problem = io::Error;

fn problem(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    io::Error::other(error)
}

/// A runtime for one end.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Serves clients that come to `socket` until the process or the runtime ends.
pub(crate) async fn serve(socket: UdpSocket, config: ServerConfig) -> Result<(), Problem> {
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)?;
    while let Some(client) = endpoint.accept().await {
        let Ok(connection) = client.await else { continue };
        // A client that breaks off tells so itself.
        let _ = serve_one(&connection).await;
        connection.closed().await;
    }
    Ok(())
}

async fn serve_one(connection: &Connection) -> Result<(), Problem> {
    let (mut to_client, mut from_client) = connection.accept_bi().await.map_err(problem)?;
    let mut order = [0; 17];
    from_client.read_exact(&mut order).await.map_err(problem)?;
    let order = Order::decode(order);
    if order.up {
        let bytes = take(&mut from_client).await?;
        to_client.write_all(&bytes.to_be_bytes()).await.map_err(problem)?;
    } else {
        give(&mut to_client, order).await?;
    }
    to_client.finish().map_err(problem)
}

/// Does what `order` says with the server at `address`, which shows `certificate`.
pub(crate) async fn order(
    socket: UdpSocket,
    address: SocketAddr,
    certificate: Vec<u8>,
    order: Order,
) -> Result<Arrived, Problem> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).map_err(problem)?;
    let config = ClientConfig::with_root_certificates(Arc::new(roots)).map_err(problem)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
    let connecting = endpoint.connect_with(config, address, NAME).map_err(problem)?;
    let connection = connecting.await.map_err(problem)?;
    let (mut to_server, mut from_server) = connection.open_bi().await.map_err(problem)?;
    let start = clock::now();
    to_server.write_all(&order.encode()).await.map_err(problem)?;
    let bytes = if order.up {
        give(&mut to_server, order).await?;
        to_server.finish().map_err(problem)?;
        let mut bytes = [0; 8];
        from_server.read_exact(&mut bytes).await.map_err(problem)?;
        u64::from_be_bytes(bytes)
    } else {
        to_server.finish().map_err(problem)?;
        take(&mut from_server).await?
    };
    let time = clock::now().since(start);
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(Arrived { bytes, time })
}

/// Sends the pattern.
async fn give(stream: &mut SendStream, order: Order) -> Result<(), Problem> {
    let pattern = pattern();
    let start: Instant = clock::now();
    let mut at = 0;
    while at < order.bytes && clock::now().since(start) < order.time {
        let begin = phase(at);
        let len = (order.bytes - at).min(CHUNK as u64) as usize;
        stream.write_all(&pattern[begin..begin + len]).await.map_err(problem)?;
        at += len as u64;
    }
    Ok(())
}

/// Takes the pattern; how many bytes it was.
async fn take(stream: &mut RecvStream) -> Result<u64, Problem> {
    let pattern = pattern();
    let mut at = 0;
    while let Some(chunk) = stream.read_chunk(CHUNK, true).await.map_err(problem)? {
        let begin = phase(at);
        if chunk.bytes[..] != pattern[begin..begin + chunk.bytes.len()] {
            return Err(io::Error::other(format!("not what was sent, in {CHUNK} bytes from {at}")));
        }
        at += chunk.bytes.len() as u64;
    }
    Ok(at)
}

/// Its period is prime, so that no displacement by a power of two, or by datagrams, goes unseen.
const PERIOD: usize = 65_521;

/// A period of the pattern, and a chunk more.
fn pattern() -> Vec<u8> {
    let byte = |at: usize| ((at % PERIOD) as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
    (0..PERIOD + CHUNK).map(byte).collect()
}

fn phase(at: u64) -> usize {
    // Less than the period.
    (at % PERIOD as u64) as usize
}

impl Order {
    fn encode(self) -> [u8; 17] {
        let mut bytes = [u8::from(self.up); 17];
        bytes[1..9].copy_from_slice(&self.bytes.to_be_bytes());
        // Some seconds.
        bytes[9..].copy_from_slice(&(self.time.as_millis() as u64).to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; 17]) -> Order {
        let [up, a, b, c, d, e, f, g, h, time @ ..] = bytes;
        Order {
            up: up != 0,
            bytes: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            time: Duration::from_millis(u64::from_be_bytes(time)),
        }
    }
}
