//! One query to the resolvers, with fail-over: over UDP or over TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::message::{self, Checked, rcode};
use super::upstream::{ask_tcp, ask_udp, fresh_id};
use super::{ResolverView, Service};

/// Most that all attempts of one query may take together: glibc, musl and Go ask again or give up
/// after 5 to 10 s.
const OVERALL: Duration = Duration::from_secs(9);

/// How long a resolver stands in for one before it.
const STAND_IN_FOR: Duration = Duration::from_secs(30);

/// The answer to a query that came in a datagram; `None` if there is nothing to say.
pub(super) async fn over_udp(service: &Service, query: Vec<u8>) -> Option<Vec<u8>> {
    let source = &service.options.source;
    let room = &service.room;
    forward(service, query, async |server, query| ask_udp(source, room, server, query).await).await
}

/// The answer to a query that came over a stream.
pub(super) async fn over_tcp(service: &Service, query: Vec<u8>) -> Option<Vec<u8>> {
    let source = &service.options.source;
    forward(service, query, async |server, query| ask_tcp(source, server, query).await).await
}

async fn forward(
    service: &Service,
    query: Vec<u8>,
    ask: impl AsyncFn(SocketAddr, &[u8]) -> io::Result<Vec<u8>>,
) -> Option<Vec<u8>> {
    match message::check_query(&query) {
        Checked::Query => {}
        Checked::Ignore => return None,
        Checked::Refuse(error) => return Some(error),
    }
    if let Some(answer) = message::local_answer(&query, &service.options.local_names) {
        return Some(answer);
    }
    let attempts = try_all(service, &query, ask);
    let found = timeout_at(Instant::now() + OVERALL, attempts).await.ok().flatten();
    let mut answer = found.unwrap_or_else(|| message::error(&query, rcode::SERVER_FAILURE));
    message::set_id(&mut answer, message::id(&query));
    Some(answer)
}

/// Goes through the resolvers, beginning with the one that answered last. A refusal is kept in
/// case nobody does better.
async fn try_all(
    service: &Service,
    query: &[u8],
    ask: impl AsyncFn(SocketAddr, &[u8]) -> io::Result<Vec<u8>>,
) -> Option<Vec<u8>> {
    let view = service.view.borrow().clone();
    let mut query = query.to_vec();
    let count = view.servers.len();
    let first = preferred(service, &view);
    let mut refusal = None;
    for attempt in 0..view.attempts {
        let patience = view.timeout.saturating_mul(1 << attempt.min(3));
        for step in 0..count {
            let position = (first + step) % count;
            let server = view.servers[position];
            // A new id each time: one that a resolver has seen must not serve to forge another's
            // answer.
            match fresh_id() {
                Ok(id) => message::set_id(&mut query, id),
                Err(error) => {
                    tracing::warn!(%error, "no randomness for a DNS query");
                    return refusal;
                }
            }
            let answer = timeout(patience, ask(server, &query)).await;
            match answer.unwrap_or_else(|elapsed| Err(elapsed.into())) {
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

/// Where to begin: with the first resolver, or for a while with the one that stood in for it, so
/// that a dead one does not cost every query its time-out. A view without that resolver begins
/// anew.
fn preferred(service: &Service, view: &ResolverView) -> usize {
    let stand_in = service.stand_in.get().filter(|(_, since)| since.elapsed() < STAND_IN_FOR);
    let position = stand_in
        .and_then(|(server, _)| view.servers.iter().position(|known| *known == server))
        .unwrap_or(0);
    position + usize::from(view.rotate)
}
