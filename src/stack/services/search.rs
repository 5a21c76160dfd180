//! Search domains in the form that DHCP, DHCPv6 and router advertisements share.
//!
//! RFC 3397, RFC 3646 §4 and RFC 8106 §5.2 all carry a list of uncompressed RFC 1035 §3.1 names.
//! The domains come from the host's resolver configuration, and what a guest does with them is
//! often a shell script, so a domain with anything but letters, digits, `-`, `_` and dots is left
//! out.

/// RFC 1035 §2.3.4: octets in a label, and in a whole encoded name.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;

/// The names of `domains` one behind the other, as many of them as fit in `limit` octets.
pub(super) fn encode<S: AsRef<str>>(domains: &[S], limit: usize) -> Vec<u8> {
    let mut names = Vec::new();
    for name in domains.iter().filter_map(|domain| name(domain.as_ref())) {
        if names.len() + name.len() <= limit {
            names.extend(name);
        }
    }
    names
}

/// The first domain that is well formed, without a trailing dot.
pub(super) fn first(domains: &[String]) -> Option<&str> {
    domains.iter().find(|domain| name(domain).is_some()).map(|domain| domain.trim_end_matches('.'))
}

/// One name on the wire: labels with their lengths, then the root's zero.
fn name(domain: &str) -> Option<Vec<u8>> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let mut wire = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if label.is_empty() || label.len() > MAX_LABEL || !label.bytes().all(good) {
            return None;
        }
        // At most 63.
        wire.push(label.len() as u8);
        wire.extend(label.bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_3397_without_its_compression() {
        // RFC 3397 §3 lists "eng.apple.com." and "marketing.apple.com.".
        let names = encode(&["eng.apple.com.", "marketing.apple.com."], 255);
        assert_eq!(names, b"\x03eng\x05apple\x03com\0\x09marketing\x05apple\x03com\0");
    }

    #[test]
    fn what_is_no_host_name_is_left_out() {
        let long_label = "a".repeat(64);
        let long_name = ["abcdefg"; 33].join(".");
        for bad in ["", ".", "a..b", "a b", "x;reboot", "$(id)", "é.fr", &long_label, &long_name] {
            assert_eq!(encode(&[bad], 1000), b"", "{bad}");
        }
        assert_eq!(first(&["a..b".into(), "ok.test.".into()]), Some("ok.test"));
    }

    #[test]
    fn a_name_that_does_not_fit_is_left_out_whole() {
        assert_eq!(encode(&["aaaa.test", "b.test"], 10), b"\x01b\x04test\0");
    }
}
