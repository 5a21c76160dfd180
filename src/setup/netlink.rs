//! Requests to the kernel's routing tables (rtnetlink(7)) over a blocking socket.
//!
//! Several requests travel in one datagram: the kernel performs them in order, each whether or not
//! the one before it failed, and acknowledges each. So the set-up of an interface is one system
//! call and a short read.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// A conversation with the network namespace in which it was opened.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// What the kernel made of one request: its answer if it gave one, or the errno.
pub(crate) type Outcome = Result<Option<RouteNetlinkMessage>, io::Error>;

impl Netlink {
    /// Opens a conversation with the caller's network namespace.
    pub(crate) fn open() -> io::Result<Netlink> {
        Ok(Netlink { socket: Socket::new(NETLINK_ROUTE)?, sequence: 0 })
    }

    /// Performs `requests` in order and returns one outcome for each.
    ///
    /// # Errors
    /// When the conversation itself fails; a request that the kernel refuses is an `Err` in the
    /// list.
    pub(crate) fn perform(
        &mut self,
        requests: Vec<RouteNetlinkMessage>,
    ) -> io::Result<Vec<Outcome>> {
        let first = self.sequence + 1;
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence += 1;
            outcomes.push(None);
            let mut message = NetlinkMessage::from(request);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | creation(&message.payload);
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.socket.send(&datagram, 0)?;

        let mut answers: Vec<Option<RouteNetlinkMessage>> = vec![None; outcomes.len()];
        while outcomes.iter().any(Option::is_none) {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in split(&bytes)? {
                let Some(at) = message.header.sequence_number.checked_sub(first) else { continue };
                let at = at as usize;
                let Some(outcome) = outcomes.get_mut(at) else { continue };
                match message.payload {
                    NetlinkPayload::Error(e) if e.code.is_none() => {
                        *outcome = Some(Ok(answers[at].take()));
                    }
                    NetlinkPayload::Error(e) => *outcome = Some(Err(e.to_io())),
                    NetlinkPayload::InnerMessage(answer) => answers[at] = Some(answer),
                    _ => {}
                }
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Everything of the kind that `request` asks for.
    ///
    /// # Errors
    /// When the conversation fails or the kernel refuses. A list that changed while it was read is
    /// given as it was read.
    pub(crate) fn dump(
        &mut self,
        request: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut datagram = vec![0; message.buffer_len()];
        message.serialize(&mut datagram);
        self.socket.send(&datagram, 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in split(&bytes)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => found.push(answer),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Performs one request.
    pub(crate) fn ask(&mut self, request: RouteNetlinkMessage) -> Outcome {
        self.perform(vec![request])?.pop().unwrap_or(Ok(None))
    }

    /// The interface called `name`, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Interface>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.interface(request)
    }

    /// The interface with this index, if there is one.
    pub(crate) fn link_at(&mut self, index: u32) -> io::Result<Option<Interface>> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.interface(request)
    }

    fn interface(&mut self, request: LinkMessage) -> io::Result<Option<Interface>> {
        match self.ask(RouteNetlinkMessage::GetLink(request)) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(Interface::from(link))),
            Ok(_) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What we want to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// The kernel takes IPv4 packets beyond 64 KiB on it (`IFLA_GRO_IPV4_MAX_SIZE` is there), and
    /// so those of IPv6, which are older.
    pub(crate) big_packets: bool,
    /// Present for TUN/TAP interfaces.
    pub(crate) tun: Option<TunState>,
}

/// Who uses a TUN/TAP interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TunState {
    /// It outlives its last queue.
    pub(crate) persistent: bool,
    /// Queues that processes hold open, attached or not. A single-queue interface reports none.
    pub(crate) queues: u32,
}

impl From<LinkMessage> for Interface {
    fn from(link: LinkMessage) -> Self {
        let mut interface = Interface {
            index: link.header.index,
            name: String::new(),
            mtu: 0,
            big_packets: false,
            tun: None,
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::GroIpv4MaxSize(_) => interface.big_packets = true,
                LinkAttribute::LinkInfo(parts) => interface.tun = tun_state(&parts),
                _ => {}
            }
        }
        interface
    }
}

/// Reads `IFLA_INFO_DATA` of a TUN/TAP interface (`IFLA_TUN_*` of linux/if_link.h), which the
/// library leaves uninterpreted.
fn tun_state(parts: &[LinkInfo]) -> Option<TunState> {
    use netlink_packet_core::Nla;
    const IFLA_TUN_PERSIST: u16 = 6;
    const IFLA_TUN_NUM_QUEUES: u16 = 8;
    const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

    if !parts.iter().any(|part| matches!(part, LinkInfo::Kind(InfoKind::Tun))) {
        return None;
    }
    let mut state = TunState::default();
    for part in parts {
        let LinkInfo::Data(InfoData::Tun(fields)) = part else { continue };
        for field in fields {
            let mut value = vec![0; field.value_len()];
            field.emit_value(&mut value);
            match (field.kind(), value.as_slice()) {
                (IFLA_TUN_PERSIST, [flag, ..]) => state.persistent = *flag != 0,
                (IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES, &[a, b, c, d]) => {
                    state.queues += u32::from_ne_bytes([a, b, c, d]);
                }
                _ => {}
            }
        }
    }
    Some(state)
}

/// The flags that turn a "new" request into a creation, which must not find its object there
/// already, or, for a queueing discipline, takes its place. A change of an existing link is a "set"
/// request and needs none.
fn creation(payload: &NetlinkPayload<RouteNetlinkMessage>) -> u16 {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::NewRule(_),
        ) => NLM_F_CREATE | NLM_F_EXCL,
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(_)) => {
            NLM_F_CREATE | NLM_F_REPLACE
        }
        _ => 0,
    }
}

/// The messages of one datagram.
fn split(mut bytes: &[u8]) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        // Messages start at multiples of four (NLMSG_ALIGN); a length of zero would not end.
        let length = (message.header.length as usize).next_multiple_of(4);
        messages.push(message);
        if length == 0 {
            break;
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(messages)
}
