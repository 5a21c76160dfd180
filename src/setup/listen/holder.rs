//! Whose socket has a port: from the port to the socket's inode by the kernel's tables of sockets,
//! and from there to a process by the descriptors of those processes that we may look at, which are
//! our user's own (proc(5)).

use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::gate::forward::Transport;

/// A process that has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.program, self.pid)
    }
}

/// The holder in a sentence.
pub(super) fn name(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) if holder.pid == std::process::id() => "this instance itself".to_owned(),
        Some(holder) => holder.to_string(),
        None => "another process".to_owned(),
    }
}

/// Who has `port` at whatever address of the host.
pub(super) fn find(transport: Transport, port: u16) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let mut sockets: Vec<Row> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| rows(&text, port))
        .collect();
    // Connections have their listener's port, and perhaps another owner.
    sockets.sort_by_key(|row| !row.waits);
    // A socket that is no longer anybody's, in TIME-WAIT for instance, has no inode.
    let links: Vec<String> = sockets
        .iter()
        .filter(|row| row.inode != 0)
        .map(|row| format!("socket:[{}]", row.inode))
        .collect();
    holder_of(&links)
}

/// A socket in one of the kernel's tables.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    inode: u64,
    /// It has no peer: it listens, or receives from everybody.
    waits: bool,
}

/// The rows of a table whose local port is `port`: number, local and remote address, state, queues,
/// timer, retransmits, user, timeout, inode (Documentation/networking/proc_net_tcp.rst).
fn rows(table: &str, port: u16) -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (_, local_port) = words.nth(1)?.rsplit_once(':')?;
        if u16::from_str_radix(local_port, 16) != Ok(port) {
            return None;
        }
        let (_, remote_port) = words.next()?.rsplit_once(':')?;
        Some(Row { inode: words.nth(6)?.parse().ok()?, waits: remote_port == "0000" })
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// The process that has a descriptor which leads to one of `links`, the first of them if possible.
fn holder_of(links: &[String]) -> Option<Holder> {
    if links.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of_process = |pid| {
        // Processes of others, and those that have ended meanwhile, cannot be read.
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        let rank =
            |target: PathBuf| links.iter().position(|link| target.as_os_str() == link.as_str());
        targets.filter_map(rank).min().map(|rank| (rank, pid))
    };
    let (_, pid) = ids.filter_map(of_process).min()?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder { pid, program: program.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn rows_of_the_port_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        \
                     0 31337 1 0000000000000000 100 0 0 10 0\n\
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        \
                     0 31338 1 0000000000000000 20 4 30 10 -1\n\
            2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        \
                     0 31339 1 0000000000000000 100 0 0 10 0\n";
        let meant = [Row { inode: 31337, waits: true }, Row { inode: 31338, waits: false }];
        assert_eq!(rows(table, 8080), meant);
        assert_eq!(rows(table, 31339), []);
    }

    #[test]
    fn our_own_sockets_are_found() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        for (transport, port) in [
            (Transport::Tcp, tcp.local_addr().unwrap().port()),
            (Transport::Udp, udp.local_addr().unwrap().port()),
        ] {
            let holder = find(transport, port);
            assert_eq!(holder.as_ref().map(|holder| holder.pid), Some(std::process::id()));
            assert_eq!(name(holder.as_ref()), "this instance itself");
        }
    }
}
