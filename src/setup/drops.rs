//! What the guest's kernel counts as dropped at its interface.

use std::fs;

use nix::unistd::Pid;

use crate::observe::TapStats;

/// The drops of the interface `ifname` in the network namespace of process `pid`; `None` if the
/// process or the interface is gone.
pub fn tap_drops(pid: Pid, ifname: &str) -> Option<TapStats> {
    parse(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?, ifname)
}

/// The columns of proc_pid_net(5): after the name eight of receiving, then eight of sending; the
/// fourth of each is "drop". The guest receives what goes to it.
fn parse(text: &str, ifname: &str) -> Option<TapStats> {
    let counters = text.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == ifname).then_some(counters)
    })?;
    let counters: Vec<u64> =
        counters.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let dropped_to_guest = *counters.get(3)?;
    let dropped_to_host = *counters.get(11)?;
    Some(TapStats { dropped_to_host, dropped_to_guest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_columns_of_the_right_interface_are_read() {
        let text = "Inter-|   Receive                  |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo
    lo:     0       0    0    9    0     0          0         0        0       0    0    9    0
  tap0:  4321      10    1    2    0     0          0         0     1234      20    3    4    0
";
        let expected = TapStats { dropped_to_host: 4, dropped_to_guest: 2 };
        assert_eq!(parse(text, "tap0"), Some(expected));
        assert_eq!(parse(text, "tap1"), None);
        assert_eq!(parse("garbage", "tap0"), None);
    }
}
