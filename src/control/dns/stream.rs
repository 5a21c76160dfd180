//! DNS over TCP for the guest (RFC 7766): several queries at a time, answers as they come.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Service;
use super::forward::over_tcp;
use super::upstream::framed;

/// Queries of one stream under way; more wait in the stream.
const MAX_PIPELINED: usize = 32;
/// A stream without a query or an answer for so long is closed (RFC 7766 §6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(15);
/// A client that does not read its answers for so long is given up.
const STALLED: Duration = Duration::from_secs(10);

/// Serves `stream` until the client has closed it and every answer is out, or it is given up.
pub(super) async fn serve(service: &Rc<Service>, stream: StdUnixStream) {
    let Ok(stream) = UnixStream::from_std(stream) else { return };
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut ready) = mpsc::channel::<Vec<u8>>(1);
    let slots = Arc::new(Semaphore::new(MAX_PIPELINED));
    let read = async move {
        let mut queries = JoinSet::new();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            let Ok(Ok(len)) = timeout(IDLE, reader.read_u16()).await else { break };
            let mut query = vec![0; usize::from(len)];
            let Ok(Ok(_)) = timeout(STALLED, reader.read_exact(&mut query)).await else { break };
            // Waits in turn with the other streams.
            let all = Arc::clone(&service.stream_queries);
            let Ok(slot_of_all) = all.acquire_owned().await else { break };
            let (service, answers) = (Rc::clone(service), answers.clone());
            queries.spawn_local(async move {
                let _slots = (slot, slot_of_all);
                if let Some(answer) = over_tcp(&service, query).await {
                    // The writer is gone if the client is.
                    let _ = answers.send(answer).await;
                }
            });
            while queries.try_join_next().is_some() {}
        }
        drop(answers);
        while queries.join_next().await.is_some() {}
    };
    let write = async move {
        while let Some(answer) = ready.recv().await {
            match timeout(STALLED, writer.write_all(&framed(&answer))).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    };
    tokio::pin!(write);
    tokio::select! {
        () = read => write.await,
        () = &mut write => {}
    }
}
