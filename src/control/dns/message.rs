//! The little that a forwarder must know of a DNS message (RFC 1035 §4.1): header and question.

use std::net::IpAddr;

/// Length of the header in bytes.
const HEADER_LEN: usize = 12;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_IXFR: u16 = 251;
const TYPE_AXFR: u16 = 252;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// What we say that we can take over UDP, in bytes: an IPv6 packet of the least MTU (RFC 8200 §5)
/// less 48 bytes of headers.
const PAYLOAD_SIZE: u16 = 1232;

/// Response codes (RFC 1035 §4.1.1).
pub(super) mod rcode {
    pub(in super::super) const FORMAT_ERROR: u8 = 1;
    pub(in super::super) const SERVER_FAILURE: u8 = 2;
    pub(in super::super) const NOT_IMPLEMENTED: u8 = 4;
    pub(in super::super) const REFUSED: u8 = 5;
}

/// What became of a message from the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// A query that can be forwarded.
    Query,
    /// Not a query, or too short to be answered.
    Ignore,
    /// To be answered with this: a query that is malformed.
    Refuse(Vec<u8>),
}

/// Judges a message from the guest.
pub(super) fn check_query(message: &[u8]) -> Checked {
    let Some(header) = message.first_chunk::<HEADER_LEN>() else { return Checked::Ignore };
    if header[2] & 0x80 != 0 {
        return Checked::Ignore;
    }
    let questions = u16::from_be_bytes([header[4], header[5]]);
    if questions != 1 || question_end(message).is_none() {
        return Checked::Refuse(error(message, rcode::FORMAT_ERROR));
    }
    // A transfer takes many messages (RFC 5936 §2.2); who wants one asks the zone's server itself.
    if let Some((_, TYPE_AXFR | TYPE_IXFR, _)) = question(message) {
        return Checked::Refuse(error(message, rcode::NOT_IMPLEMENTED));
    }
    Checked::Query
}

/// The message's id.
pub(super) fn id(message: &[u8]) -> u16 {
    match message {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

/// Gives the message another id.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut::<2>() {
        *field = id.to_be_bytes();
    }
}

/// The response code of an answer.
pub(super) fn response_code(message: &[u8]) -> u8 {
    message.get(3).map_or(rcode::SERVER_FAILURE, |byte| byte & 0x0f)
}

/// Whether `answer` is one to `query`: id, QR bit and question, names compared without regard to
/// case (RFC 5452 §9.1). A server that could or would not read the query may leave the question
/// out.
pub(super) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let (Some(answer_head), Some(_)) =
        (answer.first_chunk::<HEADER_LEN>(), query.first_chunk::<HEADER_LEN>())
    else {
        return false;
    };
    if id(answer) != id(query) || answer_head[2] & 0x80 == 0 {
        return false;
    }
    if answer_head[4..6] == [0, 0] {
        return matches!(
            response_code(answer),
            rcode::FORMAT_ERROR | rcode::SERVER_FAILURE | rcode::NOT_IMPLEMENTED | rcode::REFUSED
        );
    }
    match (question_end(answer), question_end(query)) {
        (Some(theirs), Some(ours)) => {
            answer[HEADER_LEN..theirs].eq_ignore_ascii_case(&query[HEADER_LEN..ours])
        }
        _ => false,
    }
}

/// An answer to `query` that says only `code`; `query` is at least a header long.
pub(super) fn error(query: &[u8], code: u8) -> Vec<u8> {
    let mut answer = opening(query, code);
    add_opt(&mut answer, query);
    answer
}

/// Header and question of an answer to `query`.
fn opening(query: &[u8], code: u8) -> Vec<u8> {
    let end = question_end(query).unwrap_or(HEADER_LEN).min(query.len());
    let mut answer = query[..end].to_vec();
    // Opcode and RD are the query's; RA is set, CD copied (RFC 4035 §3.2.2).
    answer[2] = answer[2] & 0x79 | 0x80;
    answer[3] = 0x80 | answer[3] & 0x10 | code;
    let questions = u8::from(end > HEADER_LEN);
    answer[4..HEADER_LEN].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
    answer
}

/// Appends an OPT record if `query` has one (RFC 6891 §6.1.1): version 0, the DO bit copied
/// (RFC 3225 §3).
fn add_opt(answer: &mut Vec<u8>, query: &[u8]) {
    let Some(flags) = opt_flags(query) else { return };
    answer.push(0);
    answer.extend(TYPE_OPT.to_be_bytes());
    answer.extend(PAYLOAD_SIZE.to_be_bytes());
    answer.extend([0, 0, flags & 0x80, 0]);
    answer.extend([0, 0]);
    answer[10..HEADER_LEN].copy_from_slice(&[0, 1]);
}

/// The first byte of the flags of the OPT record of `query`. Only queries without answers and
/// authorities are looked at; no others come with one.
fn opt_flags(query: &[u8]) -> Option<u8> {
    let header = query.first_chunk::<HEADER_LEN>()?;
    if header[6..10] != [0; 4] {
        return None;
    }
    let additional = u16::from_be_bytes([header[10], header[11]]);
    let mut at = question_end(query)?;
    // Every record takes at least 11 bytes, so the message bounds this.
    for _ in 0..additional {
        let root = *query.get(at)? == 0;
        at = name_end(query, at)?;
        let fixed: &[u8; 10] = query.get(at..)?.first_chunk()?;
        if root && fixed[..2] == TYPE_OPT.to_be_bytes() {
            return Some(fixed[6]);
        }
        at += 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    }
    None
}

/// The answer from `names`, if `query` asks for one of them.
pub(super) fn local_answer(query: &[u8], names: &[(String, Vec<IpAddr>)]) -> Option<Vec<u8>> {
    let (name, kind, class) = question(query)?;
    let (_, addresses) = names.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name))?;
    let mut answer = opening(query, 0);
    let mut count = 0u16;
    for address in addresses.iter().filter(|_| class == CLASS_IN) {
        let (found, data): (u16, &[u8]) = match address {
            IpAddr::V4(a) => (TYPE_A, &a.octets()),
            IpAddr::V6(a) => (TYPE_AAAA, &a.octets()),
        };
        if kind != found && kind != TYPE_ANY {
            continue;
        }
        // A pointer to the question's name; a minute to live, since the host's address can change.
        answer.extend([0xc0, HEADER_LEN as u8]);
        answer.extend(found.to_be_bytes());
        answer.extend(class.to_be_bytes());
        answer.extend(60u32.to_be_bytes());
        // 4 or 16.
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
        count += 1;
    }
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    add_opt(&mut answer, query);
    Some(answer)
}

/// Name (dotted, without the final dot), type and class of the first question.
fn question(message: &[u8]) -> Option<(String, u16, u16)> {
    let end = question_end(message)?;
    let mut name = String::new();
    let mut at = HEADER_LEN;
    loop {
        let len = usize::from(*message.get(at)?);
        if len == 0 {
            break;
        }
        let label = message.get(at + 1..at + 1 + len)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
        at += 1 + len;
    }
    let [k0, k1, c0, c1] = *message.get(end - 4..end)?.first_chunk()?;
    Some((name, u16::from_be_bytes([k0, k1]), u16::from_be_bytes([c0, c1])))
}

/// Where the first question ends. Names in a question are not compressed by any known resolver,
/// and a pointer there could only point at itself.
fn question_end(message: &[u8]) -> Option<usize> {
    let end = name_end(message, HEADER_LEN)?;
    (end + 4 <= message.len()).then_some(end + 4)
}

/// Where the name at `start` ends, if it is not compressed.
fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        match len {
            0 => return Some(at),
            1..=63 => {}
            _ => return None,
        }
        // RFC 1035 §3.1: a name is at most 255 octets.
        if at > start + 255 {
            return None;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A query for `name` with id 0x1234 and recursion desired.
    pub(in super::super) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn malformed_queries_are_refused_and_answers_ignored() {
        let good = query("example.org", TYPE_A);
        assert_eq!(check_query(&good), Checked::Query);
        assert_eq!(check_query(&good[..11]), Checked::Ignore);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(check_query(&answer), Checked::Ignore);
        for end in 12..good.len() {
            let Checked::Refuse(error) = check_query(&good[..end]) else { panic!("{end}") };
            assert_eq!((id(&error), response_code(&error)), (0x1234, rcode::FORMAT_ERROR));
        }
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        assert!(matches!(check_query(&pointer), Checked::Refuse(_)));
    }

    #[test]
    fn an_answer_must_fit_id_and_question() {
        let query = query("example.org", TYPE_A);
        let answer = error(&query, 0);
        assert!(answers(&answer, &query));
        assert!(!answers(&query, &query), "a query is no answer");
        let mut upper = answer.clone();
        upper[13..20].make_ascii_uppercase();
        assert!(answers(&upper, &query));
        let mut other_id = answer.clone();
        other_id[1] ^= 1;
        assert!(!answers(&other_id, &query));
        let other = error(&super::tests::query("example.com", TYPE_A), 0);
        assert!(!answers(&other, &query));
        let other_type = error(&super::tests::query("example.org", TYPE_AAAA), 0);
        assert!(!answers(&other_type, &query));
        for code in 0..16 {
            let mut bare = query[..12].to_vec();
            bare[2..6].copy_from_slice(&[0x81, 0x80 | code, 0, 0]);
            assert_eq!(answers(&bare, &query), [1, 2, 4, 5].contains(&code), "{code}");
        }
    }

    #[test]
    fn names_of_the_host_are_answered_by_family() {
        let names =
            [("host.tapway.internal".to_owned(), vec!["192.0.2.9".parse::<IpAddr>().unwrap()])];
        let a = local_answer(&query("Host.Tapway.Internal", TYPE_A), &names).unwrap();
        assert_eq!(a[6..8], [0, 1]);
        assert!(a.ends_with(&[0, 4, 192, 0, 2, 9]));
        let aaaa = local_answer(&query("host.tapway.internal", TYPE_AAAA), &names).unwrap();
        assert_eq!((aaaa[6..8].to_vec(), response_code(&aaaa)), (vec![0, 0], 0));
        assert!(local_answer(&query("tapway.internal", TYPE_A), &names).is_none());
    }

    #[test]
    fn our_answers_carry_opt_when_the_query_does() {
        let plain = query("host.internal", TYPE_ANY);
        let mut with_opt = plain.clone();
        with_opt[11] = 1;
        // RFC 6891 §6.1.2, with 4096 bytes, DO and an empty cookie.
        with_opt.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 4, 0, 10, 0, 0]);
        let opt = [0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0];
        let names = [(
            "host.internal".to_owned(),
            vec!["192.0.2.9".parse().unwrap(), "2001:db8::9".parse::<IpAddr>().unwrap()],
        )];
        for answer in
            [error(&with_opt, rcode::SERVER_FAILURE), local_answer(&with_opt, &names).unwrap()]
        {
            assert_eq!(answer[10..12], [0, 1]);
            assert!(answer.ends_with(&opt));
        }
        let answer = local_answer(&plain, &names).unwrap();
        assert_eq!(answer[4..12], [0, 1, 0, 2, 0, 0, 0, 0], "ANY gives both, without OPT");
        assert_eq!(answer.len(), plain.len() + 12 + 4 + 12 + 16);
    }

    #[test]
    fn zone_transfers_are_not_implemented() {
        for kind in [TYPE_AXFR, TYPE_IXFR] {
            let Checked::Refuse(answer) = check_query(&query("example.org", kind)) else {
                panic!("{kind} is forwarded")
            };
            assert_eq!(response_code(&answer), rcode::NOT_IMPLEMENTED);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(
            a in proptest::collection::vec(0u8.., 0..300),
            b in proptest::collection::vec(0u8.., 0..300),
        ) {
            let _ = check_query(&a);
            let _ = answers(&a, &b);
            let _ = local_answer(&a, &[("x".to_owned(), vec![])]);
        }
    }
}
