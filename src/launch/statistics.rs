//! A line of counters now and then, for who watches an instance in the foreground.

use std::io::{self, Write};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::engine::thread::CommandSender;
use crate::engine::{Command, Reply};
use crate::observe::{Stats, TransportStats};

/// Writes a line to standard error every `interval` in which something has happened, until the
/// worker ends.
pub(super) async fn print(interval: Duration, worker: CommandSender) {
    let mut known = None;
    loop {
        tokio::time::sleep(interval).await;
        let (sender, answer) = oneshot::channel();
        worker.send(Command::Stats(Reply::new(move |stats| {
            let _ = sender.send(stats);
        })));
        let Ok(stats) = answer.await else { break };
        let now = line(&stats);
        if known.as_ref() == Some(&now) {
            continue;
        }
        let heading = if known.is_none() { heading() } else { String::new() };
        // Who has closed standard error does not want to know.
        let _ = writeln!(io::stderr(), "{heading}{now}");
        known = Some(now);
    }
    std::future::pending().await
}

fn columns(cells: [&str; 6]) -> String {
    let [frames, bytes, tcp, udp, icmp, dropped] = cells;
    format!("{frames:<19} {bytes:<23} {tcp:<13} {udp:<13} {icmp:<13} {dropped}")
}

fn heading() -> String {
    let cells = ["frames in/out", "bytes in/out", "tcp open/all", "udp open/all", "icmp open/all"];
    let [frames, bytes, tcp, udp, icmp] = cells;
    columns([frames, bytes, tcp, udp, icmp, "dropped"]) + "\n"
}

fn line(stats: &Stats) -> String {
    let frames = &stats.frames;
    let pair = |a: u64, b: u64| format!("{a}/{b}");
    let flows = |of: &TransportStats| pair(of.open, of.opened);
    columns([
        &pair(frames.packets_to_guest, frames.packets_to_host),
        &pair(frames.bytes_to_guest, frames.bytes_to_host),
        &flows(&stats.tcp),
        &flows(&stats.udp),
        &flows(&stats.icmp),
        &stats.drops.0.values().sum::<u64>().to_string(),
    ])
}
