//! Which flows a listing asks for, and a page of them.

use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::flow::{FlowRecord, FlowTransport};

/// Which flows to list. Empty fields ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowQuery {
    /// Only flows that carry this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<FlowTransport>,
    /// Only flows with this port at either end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Only flows with this address at either end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Only flows whose number is above this: the `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many, 1 to [`FlowQuery::MAX_LIMIT`]; [`FlowQuery::DEFAULT_LIMIT`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Flows in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPage {
    /// The flows.
    pub flows: Vec<FlowRecord>,
    /// The `after` that gives the next page; `None` if there is none.
    pub next: Option<u64>,
}

impl FlowPage {
    /// One page of at most `length` flows of pages that begin at the same number and hold `length`
    /// flows, or all.
    pub fn merge(pages: Vec<FlowPage>, length: usize) -> FlowPage {
        let mut more = pages.iter().any(|page| page.next.is_some());
        let mut flows: Vec<FlowRecord> = pages.into_iter().flat_map(|page| page.flows).collect();
        flows.sort_by_key(|flow| flow.id);
        more |= flows.len() > length;
        flows.truncate(length);
        let next = flows.last().filter(|_| more).map(|flow| flow.id);
        FlowPage { flows, next }
    }
}

impl FlowQuery {
    /// The length of a page if the query names none.
    pub const DEFAULT_LIMIT: usize = 1024;

    /// The longest page: some 2.5 MB of JSON.
    pub const MAX_LIMIT: usize = 4096;

    /// How many flows a page holds.
    pub fn page_length(&self) -> usize {
        self.limit.unwrap_or(Self::DEFAULT_LIMIT).clamp(1, Self::MAX_LIMIT)
    }

    /// Whether a flow is asked for, by what its table knows of it: its number, transport and ends.
    pub fn wants(
        &self,
        id: u64,
        transport: FlowTransport,
        guest: SocketAddr,
        peer: SocketAddr,
    ) -> bool {
        self.after.is_none_or(|after| id > after)
            && self.transport.is_none_or(|wanted| wanted == transport)
            && self.port.is_none_or(|port| guest.port() == port || peer.port() == port)
            && self.address.is_none_or(|address| guest.ip() == address || peer.ip() == address)
    }
}

/// The flows of one page, picked from flows in any order with memory for one page: first the
/// numbers, so that records (and the system calls behind them) are made only for what is listed.
#[derive(Debug)]
pub struct Selection<T> {
    length: usize,
    /// The lowest numbers so far, and one more to know whether there is a next page.
    kept: BinaryHeap<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T>(u64, T);

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> Selection<T> {
    /// An empty selection for `query`.
    pub fn new(query: &FlowQuery) -> Selection<T> {
        Selection { length: query.page_length(), kept: BinaryHeap::new() }
    }

    /// Offers a flow that the query wants, as its number and a handle to find it again.
    pub fn offer(&mut self, id: u64, handle: T) {
        let full = self.kept.len() > self.length;
        if full && self.kept.peek().is_some_and(|highest| highest.0 < id) {
            return;
        }
        self.kept.push(Entry(id, handle));
        if full {
            self.kept.pop();
        }
    }

    /// The page, in the order of numbers; `record` makes the record of a flow.
    pub fn page(self, mut record: impl FnMut(u64, T) -> Option<FlowRecord>) -> FlowPage {
        let mut chosen = self.kept.into_sorted_vec();
        let more = chosen.len() > self.length;
        chosen.truncate(self.length);
        let next = chosen.last().filter(|_| more).map(|last| last.0);
        let flows = chosen.into_iter().filter_map(|Entry(id, handle)| record(id, handle));
        FlowPage { flows: flows.collect(), next }
    }
}

#[cfg(test)]
mod tests {
    use super::super::flow::tests::record;
    use super::*;

    fn page(query: &FlowQuery) -> FlowPage {
        let flows = [
            (12, FlowTransport::Udp, "198.51.100.1:53"),
            (10, FlowTransport::Tcp, "198.51.100.1:80"),
            (11, FlowTransport::Tcp, "198.51.100.2:80"),
            (7, FlowTransport::Tcp, "[2001:db8::1]:443"),
        ];
        let flows = flows.map(|(id, transport, peer)| record(id, transport, peer));
        let mut selection = Selection::new(query);
        for flow in &flows {
            if query.wants(flow.id, flow.transport, flow.guest, flow.peer) {
                selection.offer(flow.id, flow);
            }
        }
        selection.page(|_, flow| Some(flow.clone()))
    }

    fn ids(query: FlowQuery) -> Vec<u64> {
        page(&query).flows.iter().map(|flow| flow.id).collect()
    }

    #[test]
    fn filters_apply_to_either_end() {
        let any = FlowQuery::default;
        assert_eq!(ids(any()), [7, 10, 11, 12]);
        assert_eq!(ids(FlowQuery { transport: Some(FlowTransport::Udp), ..any() }), [12]);
        assert_eq!(ids(FlowQuery { port: Some(80), ..any() }), [10, 11]);
        assert_eq!(ids(FlowQuery { port: Some(40_000), ..any() }), [7, 10, 11, 12]);
        let address = Some("198.51.100.1".parse().unwrap());
        assert_eq!(ids(FlowQuery { address, ..any() }), [10, 12]);
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repetition() {
        let mut seen = vec![];
        let mut query = FlowQuery { limit: Some(3), ..FlowQuery::default() };
        loop {
            let page = page(&query);
            seen.push(page.flows.iter().map(|flow| flow.id).collect::<Vec<_>>());
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, [vec![7, 10, 11], vec![12]]);
        let exact = page(&FlowQuery { limit: Some(4), ..FlowQuery::default() });
        assert_eq!((exact.flows.len(), exact.next), (4, None));
    }

    #[test]
    fn a_page_has_at_least_one_flow_and_a_limit() {
        let length = |limit| FlowQuery { limit, ..FlowQuery::default() }.page_length();
        assert_eq!(length(None), 1024);
        assert_eq!(length(Some(0)), 1);
        assert_eq!(length(Some(usize::MAX)), 4096);
    }
}
