//! Why a frame went nowhere. Every drop has a reason, hence a counter.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a frame, packet or datagram was dropped. The order is the order of the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable name in logs, JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }
        }
    };
}

reasons! {
    /// Shorter than the header that it should hold.
    Truncated => "truncated",
    /// An EtherType that is neither IPv4, IPv6 nor ARP.
    UnknownEtherType => "unknown_ethertype",
    /// Addressed to a MAC that is not ours.
    ForeignMac => "foreign_mac",
    /// A virtio-net header whose offsets or sizes do not fit the frame.
    BadOffload => "bad_offload",
    /// Malformed ARP, or ARP for something that is not IPv4 over Ethernet.
    BadArp => "bad_arp",
    /// ARP for an address that is not ours to answer for.
    ArpNotOurs => "arp_not_ours",
    /// Version, header length or total length do not fit the packet.
    BadIpHeader => "bad_ip_header",
    /// IPv4 header checksum.
    BadIpChecksum => "bad_ip_checksum",
    /// IPv6 extension headers that are malformed, too many, or not to be processed.
    BadExtensionHeader => "bad_extension_header",
    /// A source address that the guest may not use.
    ForgedSource => "forged_source",
    /// A destination to which nothing may be forwarded (loopback, unspecified, reserved, foreign
    /// link-local).
    MartianDestination => "martian_destination",
    /// Broadcast that no service of ours listens to.
    Broadcast => "broadcast",
    /// Multicast that no service of ours listens to.
    Multicast => "multicast",
    /// Hop limit zero on arrival.
    HopLimit => "hop_limit",
    /// A fragment with bad offset, length or overlap (RFC 5722, RFC 8200 §4.5).
    BadFragment => "bad_fragment",
    /// Reassembly is full (count or bytes).
    FragmentLimit => "fragment_limit",
    /// A reassembly that was not completed in time (RFC 791, RFC 8200: at most 60 s).
    FragmentTimeout => "fragment_timeout",
    /// A transport protocol that is not TCP, UDP or ICMP.
    UnknownProtocol => "unknown_protocol",
    /// Transport header shorter than it claims, or a bad length field.
    BadTransportHeader => "bad_transport_header",
    /// TCP, UDP or ICMP checksum.
    BadTransportChecksum => "bad_transport_checksum",
    /// Source or destination port 0.
    PortZero => "port_zero",
    /// A TCP segment that belongs to no flow and is not a SYN, or is itself a reset.
    NoFlow => "no_flow",
    /// A TCP segment outside the window, without flags, or otherwise unacceptable in its state.
    UnacceptableSegment => "unacceptable_segment",
    /// The per-guest limit of flows is reached.
    FlowLimit => "flow_limit",
    /// More connections are being begun than can wait to be opened, or than are opened in a second.
    SynBacklog => "syn_backlog",
    /// No file descriptor or host port left for a new flow.
    HostResources => "host_resources",
    /// The host's kernel refused the datagram.
    HostRefused => "host_refused",
    /// A datagram from the outside whose sender the guest has not addressed (RFC 4787 REQ-8).
    Filtered => "filtered",
    /// An ICMP message of a type that is not forwarded, or about no flow of ours.
    UnhandledIcmp => "unhandled_icmp",
    /// Ping sockets are not allowed on this host (answered with an ICMP error).
    PingForbidden => "ping_forbidden",
    /// Malformed DHCP, DHCPv6, router solicitation or neighbour message.
    BadService => "bad_service",
    /// A DHCP client for which no address is left.
    NoLease => "no_lease",
    /// Rate limit on answers that a guest can provoke.
    RateLimited => "rate_limited",
    /// For another worker, which has not kept up.
    HandOver => "hand_over",
    /// The write to the TAP failed (interface down or gone).
    TapWrite => "tap_write",
    /// A datagram from the host that is larger than anything the guest's link can carry.
    TooBig => "too_big",
}

/// One counter for each [`DropReason`].
#[derive(Clone, Debug)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        DropCounters([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Drops counted for `reason` so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that occurred, with their counts.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.get(r))).filter(|&(_, n)| n != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_positions_match() {
        let names: std::collections::HashSet<_> =
            DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (position, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, position);
        }
    }
}
