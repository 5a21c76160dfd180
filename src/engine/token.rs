//! Names of things that wait for readiness or time: what kind, where in its table, which life.

/// What a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The worker's TAP queue.
    Tap = 0,
    /// The eventfd that announces commands.
    Commands = 1,
    /// A TCP flow.
    Tcp = 2,
    /// A UDP mapping.
    Udp = 3,
    /// An ICMP echo mapping.
    Echo = 4,
    /// The services' and reassembly's timers.
    Housekeeping = 5,
    /// A published stream socket that listens.
    Listener = 6,
    /// A published UDP socket.
    DatagramPort = 7,
    /// A client of a published UDP socket.
    Session = 8,
    /// The bell that announces mail of other workers.
    Mail = 9,
    /// The lead's review of its team.
    Team = 10,
    /// A spliced connection, by the end that has connected to us.
    Spliced = 11,
    /// The same, by the end to which we have connected.
    SplicedTarget = 12,
    /// A client of a UDP socket whose datagrams go on by a socket of its own.
    Relayed = 13,
    /// A flow of another worker, whose porter this one is.
    Load = 14,
    /// A client's connection inside the guest's namespace that has not come about yet.
    Reaching = 15,
}

const KINDS: [Kind; 16] = [
    Kind::Tap,
    Kind::Commands,
    Kind::Tcp,
    Kind::Udp,
    Kind::Echo,
    Kind::Housekeeping,
    Kind::Listener,
    Kind::DatagramPort,
    Kind::Session,
    Kind::Mail,
    Kind::Team,
    Kind::Spliced,
    Kind::SplicedTarget,
    Kind::Relayed,
    Kind::Load,
    Kind::Reaching,
];

/// A name that fits epoll's 64 bits. The generation tells a flow from its predecessor in the same
/// place, so that a late event never reaches the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// What it names.
    pub kind: Kind,
    /// Which life of the place; 24 bits.
    pub generation: u32,
    /// Place in the table of its kind.
    pub index: u32,
}

impl Token {
    /// A token for the only thing of its kind.
    pub const fn only(kind: Kind) -> Token {
        Token { kind, generation: 0, index: 0 }
    }

    /// All 64 bits.
    pub fn to_bits(self) -> u64 {
        (self.kind as u64) << 56
            | u64::from(self.generation & 0xff_ffff) << 32
            | u64::from(self.index)
    }

    /// The token that [`Token::to_bits`] gave; `None` for bits that it never gives.
    pub fn from_bits(bits: u64) -> Option<Token> {
        let kind = *KINDS.get((bits >> 56) as usize)?;
        // Both parts are masked to their width.
        Some(Token {
            kind,
            generation: (bits >> 32) as u32 & 0xff_ffff,
            index: (bits & 0xffff_ffff) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_token_agree() {
        for (position, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, position);
            let token = Token { kind, generation: 0xab_cdef, index: 0xdead_beef };
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        assert_eq!(Token::from_bits(u64::MAX), None);
    }
}
