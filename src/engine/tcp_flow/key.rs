//! Who talks to whom, in few bytes: there is one for each flow in its table, in the flow itself and,
//! while there are several workers, in their directory.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who talks to whom: the key of a TCP flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TcpKey {
    guest: End,
    peer: End,
}

impl TcpKey {
    /// The key of a connection between the guest's address and port and those that it talks to,
    /// both as the guest knows them. What else an IPv6 socket address may hold is of no account.
    pub fn new(guest: SocketAddr, peer: SocketAddr) -> TcpKey {
        TcpKey { guest: End::new(guest), peer: End::new(peer) }
    }

    /// The guest's address and port.
    pub fn guest(&self) -> SocketAddr {
        self.guest.address()
    }

    /// The address and port that the guest talks to, as the guest knows it.
    pub fn peer(&self) -> SocketAddr {
        self.peer.address()
    }

    /// Whether the connection is one of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.guest.is_ipv6
    }
}

impl Hash for TcpKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The families follow from the addresses, but for those that nobody uses.
        state.write_u128(u128::from_ne_bytes(self.guest.ip));
        state.write_u128(u128::from_ne_bytes(self.peer.ip));
        state.write_u32(u32::from(self.guest.port) << 16 | u32::from(self.peer.port));
    }
}

impl fmt::Debug for TcpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.guest(), self.peer())
    }
}

/// An address and a port; a [`SocketAddr`] is half as large again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End {
    /// An IPv4 address as its first four octets, zeros behind.
    ip: [u8; 16],
    port: u16,
    is_ipv6: bool,
}

impl End {
    fn new(address: SocketAddr) -> End {
        let ip = match address.ip() {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            IpAddr::V6(v6) => v6.octets(),
        };
        End { ip, port: address.port(), is_ipv6: address.is_ipv6() }
    }

    fn address(&self) -> SocketAddr {
        let [a, b, c, d, ..] = self.ip;
        match self.is_ipv6 {
            true => (Ipv6Addr::from(self.ip), self.port).into(),
            false => (Ipv4Addr::new(a, b, c, d), self.port).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_come_back_as_they_were() {
        let texts = ["10.0.2.100:65535", "0.0.0.0:1", "[fd00::64]:443", "[::ffff:10.0.2.100]:80"];
        let ends = texts.map(|text| text.parse::<SocketAddr>().unwrap());
        for guest in ends {
            for peer in ends {
                let key = TcpKey::new(guest, peer);
                assert_eq!((key.guest(), key.peer()), (guest, peer));
                assert_eq!(key.is_ipv6(), guest.is_ipv6());
                assert_eq!(key == TcpKey::new(peer, guest), guest == peer);
            }
        }
    }

    #[test]
    fn families_are_told_apart_and_a_key_is_small() {
        let [v4, v6]: [SocketAddr; 2] = ["1.2.3.4:5", "[102:304::]:5"].map(|t| t.parse().unwrap());
        assert_ne!(TcpKey::new(v4, v4), TcpKey::new(v6, v6));
        assert_eq!(size_of::<TcpKey>(), 40);
    }
}
