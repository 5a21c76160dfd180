//! The little that a forwarder must know of a DNS message (RFC 1035 §4.1): header and question.

use std::net::IpAddr;

/// Length of the header in bytes.
const HEADER_LEN: usize = 12;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

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

/// Whether `answer` is one to `query`: id, QR bit, and the question if it has one, names compared
/// without regard to case (RFC 5452 §9.1).
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
        // Only an error may leave the question out.
        return response_code(answer) != 0;
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
    let end = question_end(query).unwrap_or(HEADER_LEN).min(query.len());
    let mut answer = query[..end].to_vec();
    answer[2] = answer[2] & 0x79 | 0x80;
    answer[3] = 0x80 | code;
    let questions = u8::from(end > HEADER_LEN);
    answer[4..HEADER_LEN].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
    answer
}

/// The answer from `names`, if `query` asks for one of them.
pub(super) fn local_answer(query: &[u8], names: &[(String, Vec<IpAddr>)]) -> Option<Vec<u8>> {
    let (name, kind, class) = question(query)?;
    let (_, addresses) = names.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name))?;
    let mut answer = error(query, 0);
    if class != CLASS_IN {
        return Some(answer);
    }
    let mut count = 0u16;
    for address in addresses {
        let data: &[u8] = match (address, kind) {
            (IpAddr::V4(a), TYPE_A) => &a.octets(),
            (IpAddr::V6(a), TYPE_AAAA) => &a.octets(),
            _ => continue,
        };
        // A pointer to the question's name; a minute to live, since the host's address can change.
        answer.extend([0xc0, HEADER_LEN as u8]);
        answer.extend(kind.to_be_bytes());
        answer.extend(class.to_be_bytes());
        answer.extend(60u32.to_be_bytes());
        // 4 or 16.
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
        count += 1;
    }
    answer[6..8].copy_from_slice(&count.to_be_bytes());
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
    let mut at = HEADER_LEN;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        match len {
            0 => break,
            1..=63 => {}
            _ => return None,
        }
        // RFC 1035 §3.1: a name is at most 255 octets.
        if at > HEADER_LEN + 255 {
            return None;
        }
    }
    (at + 4 <= message.len()).then_some(at + 4)
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
