//! Ethernet hardware addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet address in transmission order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set (IEEE 802 clause 8: the first bit on the wire); true for
    /// broadcast too.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 0x01 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is not six colon-separated hex octets, or names an address no interface can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseMacError {
    /// Not `xx:xx:xx:xx:xx:xx`.
    #[error("not a MAC address like 52:54:00:12:34:56")]
    Form,
    /// A multicast, broadcast or all-zero address.
    #[error("a multicast or all-zero MAC address cannot belong to an interface")]
    NotUnicast,
}

impl FromStr for Mac {
    type Err = ParseMacError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseMacError::Form)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError::Form);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseMacError::Form)?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError::Form);
        }
        let mac = Mac(octets);
        if mac.is_multicast() || octets == [0; 6] {
            return Err(ParseMacError::NotUnicast);
        }
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_value_agree() {
        let mac: Mac = "52:54:00:ab:CD:01".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0x00, 0xab, 0xcd, 0x01]));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
    }

    #[test]
    fn what_no_interface_can_have_is_refused() {
        assert_eq!("ff:ff:ff:ff:ff:ff".parse::<Mac>(), Err(ParseMacError::NotUnicast));
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(ParseMacError::NotUnicast));
        for text in
            ["", "52:54:00:ab:cd", "52:54:00:ab:cd:01:02", "+2:54:00:ab:cd:01", "5:54:00:ab:cd:01"]
        {
            assert_eq!(text.parse::<Mac>(), Err(ParseMacError::Form), "{text:?}");
        }
    }
}
