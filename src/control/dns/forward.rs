//! One query to the resolvers, with fail-over: over UDP or over TCP.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{self, Checked, rcode};
use super::{ResolverView, Service};

/// Most that all attempts of one query may take together: glibc, musl and Go ask again or give up
/// after 5 to 10 s.
const OVERALL: Duration = Duration::from_secs(9);

/// How long a resolver stands in for one before it.
const STAND_IN_FOR: Duration = Duration::from_secs(30);

/// Room for an answer over UDP.
const MAX_DATAGRAM: usize = 65_535;

/// The answer to a query that came in a datagram; `None` if there is nothing to say.
pub(super) async fn over_udp(service: &Service, query: Vec<u8>) -> Option<Vec<u8>> {
    forward(service, query, |server, query, patience| async move {
        timeout(patience, ask_udp(server, &query)).await?
    })
    .await
}

/// The answer to a query that came over a stream.
pub(super) async fn over_tcp(service: &Service, query: Vec<u8>) -> Option<Vec<u8>> {
    forward(service, query, |server, query, patience| async move {
        timeout(patience, ask_tcp(server, &query)).await?
    })
    .await
}

async fn forward<A, R>(service: &Service, query: Vec<u8>, ask: A) -> Option<Vec<u8>>
where
    A: Fn(SocketAddr, Vec<u8>, Duration) -> R,
    R: Future<Output = io::Result<Vec<u8>>>,
{
    match message::check_query(&query) {
        Checked::Query => {}
        Checked::Ignore => return None,
        Checked::Refuse(error) => return Some(error),
    }
    if let Some(answer) = message::local_answer(&query, &service.options.local_names) {
        return Some(answer);
    }
    let mut own = query.clone();
    message::set_id(&mut own, service.fresh_id());
    let attempts = try_all(service, &own, ask);
    let found = timeout_at(Instant::now() + OVERALL, attempts).await.ok().flatten();
    let mut answer = found.unwrap_or_else(|| message::error(&query, rcode::SERVER_FAILURE));
    message::set_id(&mut answer, message::id(&query));
    Some(answer)
}

/// Goes through the resolvers, beginning with the one that answered last. A refusal is kept in
/// case nobody does better.
async fn try_all<A, R>(service: &Service, query: &[u8], ask: A) -> Option<Vec<u8>>
where
    A: Fn(SocketAddr, Vec<u8>, Duration) -> R,
    R: Future<Output = io::Result<Vec<u8>>>,
{
    let view = service.view.borrow().clone();
    let count = view.servers.len();
    let first = preferred(service, &view);
    let mut refusal = None;
    for attempt in 0..view.attempts {
        let patience = view.timeout.saturating_mul(1 << attempt.min(3));
        for step in 0..count {
            let position = (first + step) % count;
            let server = view.servers[position];
            match ask(server, query.to_vec(), patience).await {
                Ok(answer) => match message::response_code(&answer) {
                    rcode::SERVER_FAILURE | rcode::NOT_IMPLEMENTED | rcode::REFUSED => {
                        refusal = Some(answer);
                    }
                    _ => {
                        // The time is kept, so that the first resolver is tried again some day.
                        let known =
                            service.stand_in.get().is_some_and(|(known, _)| known == server);
                        if position == 0 {
                            service.stand_in.set(None);
                        } else if !known || step > 0 {
                            service.stand_in.set(Some((server, Instant::now())));
                        }
                        return Some(answer);
                    }
                },
                Err(error) => tracing::debug!(%server, %error, "no answer from a resolver"),
            }
        }
        if refusal.is_some() {
            break;
        }
    }
    refusal
}

/// Where to begin: with the first resolver, or for a while with the one that stood in for it, so that
/// a dead one does not cost every query its time-out. A view without that resolver begins anew.
fn preferred(service: &Service, view: &ResolverView) -> usize {
    let stand_in = service.stand_in.get().filter(|(_, since)| since.elapsed() < STAND_IN_FOR);
    let position = stand_in
        .and_then(|(server, _)| view.servers.iter().position(|known| *known == server))
        .unwrap_or(0);
    position + usize::from(view.rotate)
}

/// One exchange from a port of its own, so that a forger must guess port and id (RFC 5452).
async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if message::answers(&buffer[..len], query) {
            buffer.truncate(len);
            buffer.shrink_to_fit();
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&framed(query)).await?;
    loop {
        let len = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; len];
        stream.read_exact(&mut answer).await?;
        if message::answers(&answer, query) {
            return Ok(answer);
        }
    }
}

/// A message behind its length (RFC 1035 §4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(&message[..usize::from(len)]);
    bytes
}
