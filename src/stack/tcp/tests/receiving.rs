//! Bytes from the guest, the backlog, and the window that we advertise.

use super::*;

/// What a flush says after `bytes` bytes from the guest with `window` bytes of window.
fn acknowledges(bytes: u32, window: u32) -> Action {
    emit(Emit { ack: Some(G + bytes), window: (window / 2) as u16, ..OURS })
}

const fn deliver(len: u32) -> Action {
    Action::Deliver { skip: 0, len }
}

/// Established, with a first advertisement that opens the whole window.
fn open() -> Talk {
    let mut talk = established();
    talk.takes(data(0, 2));
    talk.host_took(2);
    talk.flush();
    talk.does(&[deliver(2), acknowledges(2, LIMIT)]);
    talk
}

/// Established, with `len` bytes of backlog that fill the window.
fn full() -> Talk {
    let mut talk = open();
    talk.takes(data(2, LIMIT));
    talk.flush();
    talk.does(&[deliver(LIMIT), acknowledges(2 + LIMIT, 0)]);
    talk
}

#[test]
fn a_batch_of_segments_is_acknowledged_once() {
    let mut talk = established();
    talk.takes(data(0, 1000));
    talk.takes(data(1000, 1460));
    assert!(talk.connection.ack_owed());
    talk.host_took(2460);
    talk.flush();
    talk.does(&[deliver(1000), deliver(1460), acknowledges(2460, LIMIT)]);
    assert!(!talk.connection.ack_owed());
    talk.flush();
}

#[test]
fn data_towards_the_guest_carries_the_acknowledgment() {
    let mut talk = established();
    talk.takes(data(0, 100));
    talk.host_took(100);
    talk.host_data(50);
    talk.does(&[deliver(100), emit(Emit { ack: Some(G + 100), len: 50, flags: WITH_PSH, ..OURS })]);
    talk.flush();
}

#[test]
fn bytes_that_were_received_before_are_skipped() {
    let mut talk = established();
    // Across the wrap of the guest's numbers.
    talk.takes(data(0, 300));
    talk.takes(data(100, 500));
    talk.does(&[deliver(300), Action::Deliver { skip: 200, len: 300 }]);
    // Wholly old: only acknowledged.
    talk.takes(data(0, 600));
    talk.host_took(600);
    talk.flush();
    talk.does(&[acknowledges(600, LIMIT)]);
}

/// A duplicate ACK after the first two bytes, with these ranges beyond the gap.
fn reports(ranges: &[(u32, u32)]) -> Action {
    let mut sack = [None; 3];
    for (slot, &(left, right)) in sack.iter_mut().zip(ranges) {
        *slot = Some((G + left, G + right));
    }
    emit(Emit { ack: Some(G + 2), sack, ..OURS })
}

fn hold(len: u32, offset: u32) -> Action {
    Action::Hold { skip: 0, len, offset }
}

#[test]
fn a_gap_is_answered_at_once_for_each_segment_and_closed_by_what_is_missing() {
    let mut talk = open();
    for round in 1..=3 {
        talk.takes(data(2 + round * 1000, 1000));
        // RFC 5681 §4.2, RFC 2018 §4.
        talk.does(&[hold(1000, round * 1000), reports(&[(1002, 1002 + round * 1000)])]);
    }
    talk.flush();
    talk.does(&[]);
    talk.takes(data(2, 1000));
    talk.does(&[deliver(1000), Action::DeliverHeld { len: 3000 }]);
    talk.host_took(1000);
    talk.host_took(3000);
    talk.flush();
    talk.does(&[acknowledges(4002, LIMIT)]);
    assert!(!talk.connection.holds());
}

#[test]
fn ranges_beyond_several_gaps_are_reported_latest_first_and_closed_one_by_one() {
    let mut talk = open();
    let mut expected = vec![];
    for at in [1002, 3002, 5002, 7002] {
        talk.takes(data(at, 500));
        expected.insert(0, (at, at + 500));
        talk.does(&[hold(500, at - 2), reports(&expected)]);
    }
    // What is there already changes nothing but the order.
    assert_eq!(talk.guest(data(1002, 500)), REFUSED);
    talk.does(&[reports(&[(1002, 1502), (7002, 7502), (5002, 5502)])]);
    talk.takes(data(2, 1000));
    talk.flush();
    talk.does(&[
        deliver(1000),
        Action::DeliverHeld { len: 500 },
        emit(Emit { ack: Some(G + 1502), window: ((LIMIT - 1500) / 2) as u16, ..reported() }),
    ]);
}

/// The ranges that are left in the test above.
fn reported() -> Emit {
    let Action::Emit(emit) = reports(&[(7002, 7502), (5002, 5502), (3002, 3502)]) else {
        unreachable!("a report is a segment")
    };
    emit
}

#[test]
fn a_segment_that_reaches_over_what_is_held_closes_the_gap() {
    let mut talk = open();
    talk.takes(data(1002, 500));
    talk.takes(data(3002, 500));
    talk.done.clear();
    talk.takes(data(2, 1200));
    talk.does(&[deliver(1200), Action::DeliverHeld { len: 300 }]);
    // One that covers it whole.
    talk.takes(data(1502, 3000));
    talk.does(&[deliver(3000)]);
    assert!(!talk.connection.holds());
    talk.flush();
    talk.done.clear();
}

#[test]
fn only_what_lies_in_the_window_is_held() {
    let mut talk = open();
    talk.takes(data(LIMIT - 8, 100));
    talk.does(&[hold(10, LIMIT - 10), reports(&[(LIMIT - 8, LIMIT + 2)])]);
    assert_eq!(talk.guest(data(LIMIT + 2, 100)), REFUSED);
    talk.flush();
    talk.does(&[reports(&[(LIMIT - 8, LIMIT + 2)])]);
}

#[test]
fn a_guest_without_sack_gets_bare_duplicates() {
    let mut talk = established_with(Segment { sack_permitted: false, ..SYN }, OPTIONS);
    talk.takes(data(2, 10));
    talk.does(&[hold(10, 2), emit(OURS)]);
}

#[test]
fn data_towards_the_guest_carries_no_report() {
    let mut talk = open();
    talk.takes(data(1002, 500));
    talk.done.clear();
    talk.host_data(10);
    talk.does(&[emit(Emit { ack: Some(G + 2), len: 10, flags: WITH_PSH, ..OURS })]);
}

#[test]
fn a_fin_beyond_a_gap_counts_when_that_is_closed() {
    let mut talk = open();
    talk.takes(Segment { flags: WITH_FIN, ..data(12, 10) });
    talk.does(&[hold(10, 10), reports(&[(12, 22)])]);
    talk.is_in(State::Established);
    talk.takes(data(2, 10));
    talk.does(&[deliver(10), Action::DeliverHeld { len: 10 }]);
    talk.is_in(State::CloseWait);
    talk.host_took(20);
    talk.flush();
    talk.does(&[Action::ShutdownWrite, acknowledges(23, LIMIT - 20)]);
    // A bare one.
    let mut talk = open();
    talk.takes(Segment { flags: WITH_FIN, ..data(12, 0) });
    talk.does(&[acknowledges(2, LIMIT)]);
    talk.takes(data(2, 10));
    talk.does(&[deliver(10)]);
    talk.is_in(State::CloseWait);
    talk.flush();
    talk.done.clear();
}

#[test]
fn a_fin_in_the_midst_of_what_is_held_is_nobodys() {
    let mut talk = open();
    talk.takes(data(12, 10));
    talk.done.clear();
    talk.takes(Segment { flags: WITH_FIN, ..data(2, 15) });
    talk.does(&[deliver(15), Action::DeliverHeld { len: 5 }]);
    talk.is_in(State::Established);
    talk.flush();
    talk.done.clear();
}

#[test]
fn what_is_beyond_the_window_is_cut_and_its_fin_with_it() {
    let mut talk = open();
    talk.takes(data(2, 60_000));
    talk.takes(Segment { flags: WITH_FIN, ..data(60_002, 60_000) });
    talk.flush();
    talk.does(&[deliver(60_000), deliver(40_000), acknowledges(100_002, 0)]);
    talk.is_in(State::Established);
}

#[test]
fn a_fin_right_behind_the_last_byte_of_the_window_counts() {
    let mut talk = open();
    talk.takes(Segment { flags: WITH_FIN, ..data(2, LIMIT) });
    talk.flush();
    talk.does(&[deliver(LIMIT), acknowledges(LIMIT + 3, 0)]);
    talk.is_in(State::CloseWait);
}

#[test]
fn a_bare_fin_counts_though_the_window_is_closed() {
    let mut talk = full();
    talk.takes(Segment { flags: WITH_FIN, ..data(LIMIT + 2, 0) });
    talk.is_in(State::CloseWait);
    talk.flush();
    talk.does(&[acknowledges(LIMIT + 3, 0)]);
    // Not one that lies further on, nor one with text.
    for segment in [data(LIMIT + 3, 0), data(LIMIT + 2, 1)] {
        let mut talk = full();
        assert_eq!(talk.guest(Segment { flags: WITH_FIN, ..segment }), REFUSED);
        talk.flush();
        talk.does(&[acknowledges(LIMIT + 2, 0)]);
        talk.is_in(State::Established);
    }
}

#[test]
fn everything_inside_the_window_is_taken_though_the_host_takes_nothing() {
    let mut talk = open();
    let mut sent = 2;
    while sent < LIMIT + 2 {
        let len = 1460.min(LIMIT + 2 - sent);
        talk.takes(data(sent, len));
        sent += len;
        talk.flush();
        talk.does(&[deliver(len), acknowledges(sent, LIMIT + 2 - sent)]);
    }
    assert_eq!(talk.guest(data(sent, 1)), REFUSED);
    talk.flush();
    talk.does(&[acknowledges(sent, 0)]);
}

#[test]
fn the_edge_of_a_scaled_window_creeps_but_not_without_end() {
    // Single bytes to a host that reads nothing: the field cannot say an odd edge, and rounds up.
    let mut talk = established_with(SYN, Options { receive_limit: 4 << 20, ..OPTIONS });
    let mut sent: u32 = 0;
    let mut refused = 0;
    while refused < 10 {
        let len = if sent < 3 << 20 { 60_000 } else { 1 };
        match talk.guest(data(sent, len)) {
            Ok(()) => {
                let taken = talk.done.iter().map(|a| match a {
                    Action::Deliver { len, .. } => *len,
                    _ => 0,
                });
                sent += taken.sum::<u32>();
            }
            Err(_) => refused += 1,
        }
        talk.flush();
        talk.done.clear();
        assert!(sent <= (4 << 20) + (4 << 20) / 8, "{sent}");
    }
    assert!(sent >= 4 << 20);
}

#[test]
fn a_window_that_reopens_by_a_segment_is_announced() {
    let mut talk = full();
    talk.host_took(1459);
    talk.flush();
    talk.does(&[]);
    talk.host_took(1);
    assert!(talk.connection.ack_owed());
    talk.flush();
    talk.does(&[acknowledges(LIMIT + 2, 1460)]);
}

#[test]
fn a_gain_smaller_than_a_segment_is_not_offered() {
    let mut talk = full();
    talk.host_took(1000);
    // A probe: the guest wants to know.
    assert_eq!(talk.guest(data(LIMIT + 2, 1)), REFUSED);
    talk.flush();
    talk.does(&[acknowledges(LIMIT + 2, 0)]);
}

#[test]
fn a_small_limit_reopens_by_halves() {
    // A limit below two segments: half of it is worth an update (RFC 9293 §3.8.6.2.2).
    let mut talk = established_with(SYN, Options { receive_limit: 2000, ..OPTIONS });
    talk.takes(data(0, 2000));
    talk.flush();
    talk.does(&[deliver(2000), emit(Emit { ack: Some(G + 2000), window: 0, ..OURS })]);
    talk.host_took(999);
    talk.flush();
    talk.does(&[]);
    talk.host_took(1);
    talk.flush();
    talk.does(&[emit(Emit { ack: Some(G + 2000), window: 1000, ..OURS })]);
}

#[test]
fn a_guest_without_scaling_gets_no_update_while_its_window_is_all_that_can_be_said() {
    let options = Options { receive_limit: 4 << 20, ..OPTIONS };
    let mut talk = established_with(Segment { window_scale: None, ..SYN }, options);
    talk.takes(data(0, 1000));
    talk.flush();
    talk.done.clear();
    talk.host_took(1000);
    assert!(!talk.connection.ack_owed());
}

#[test]
fn data_for_a_closed_window_is_refused_but_its_acknowledgment_counts() {
    let mut talk = full();
    talk.host_data(700);
    talk.done.clear();
    let probe = Segment { ack: Some(H + 700), ..data(LIMIT + 2, 1) };
    assert_eq!(talk.guest(probe), REFUSED);
    talk.flush();
    talk.does(&[
        Action::Release { len: 700 },
        emit(Emit { seq: H + 700, ack: Some(G + 2 + LIMIT), window: 0, ..OURS }),
    ]);
}

#[test]
fn a_keep_alive_probe_is_answered_and_carried_over() {
    for len in [0, 1] {
        let mut talk = open();
        // RFC 9293 §3.8.4: SEG.SEQ = SND.NXT-1, with or without one byte of garbage.
        talk.takes(data(1, len));
        talk.flush();
        talk.does(&[Action::KeepAlive, acknowledges(2, LIMIT)]);
        // Each one is, however close they come.
        talk.takes(data(1, len));
        talk.flush();
        talk.does(&[Action::KeepAlive, acknowledges(2, LIMIT)]);
    }
}

#[test]
fn a_probe_of_a_closed_window_is_answered_and_not_carried_over() {
    let mut talk = full();
    talk.takes(data(LIMIT + 1, 0));
    talk.flush();
    talk.does(&[acknowledges(LIMIT + 2, 0)]);
}

#[test]
fn a_segment_without_flags_is_dropped() {
    let mut talk = open();
    assert_eq!(talk.guest(Segment { ack: None, ..data(2, 10) }), REFUSED);
    assert_eq!(talk.guest(Segment { ack: None, ..data(2, 0) }), REFUSED);
    talk.flush();
    talk.does(&[]);
    assert_eq!(talk.guest(Segment { ack: None, flags: WITH_FIN, ..data(2, 0) }), REFUSED);
    talk.is_in(State::Established);
}

#[test]
fn bare_segments_from_outside_the_window_are_answered_at_a_bounded_rate() {
    let mut talk = open();
    // Two ends that disagree would otherwise answer each other for ever.
    for _ in 0..20 {
        assert_eq!(talk.guest(data(LIMIT + 3, 0)), REFUSED);
        talk.flush();
    }
    talk.does(&[acknowledges(2, LIMIT)]);
    talk.pass(Duration::from_millis(500));
    assert_eq!(talk.guest(data(LIMIT + 3, 0)), REFUSED);
    talk.flush();
    talk.does(&[acknowledges(2, LIMIT)]);
}

#[test]
fn a_lower_limit_takes_effect_as_the_window_is_used_up() {
    let mut talk = open();
    talk.connection.set_receive_limit(10_000);
    talk.takes(data(2, 50_000));
    talk.host_took(50_000);
    talk.flush();
    talk.does(&[deliver(50_000), acknowledges(50_002, 50_000)]);
    talk.takes(data(50_002, 50_000));
    talk.host_took(50_000);
    talk.flush();
    talk.does(&[deliver(50_000), acknowledges(100_002, 10_000)]);
}

#[test]
fn a_limit_that_is_raised_again_is_announced() {
    let mut talk = open();
    talk.connection.set_receive_limit(0);
    talk.takes(data(2, LIMIT));
    talk.host_took(LIMIT);
    talk.flush();
    talk.does(&[deliver(LIMIT), acknowledges(LIMIT + 2, 0)]);
    talk.connection.set_receive_limit(u32::MAX);
    talk.flush();
    talk.does(&[acknowledges(LIMIT + 2, LIMIT)]);
}

#[test]
fn a_limit_that_changes_before_the_handshake_is_over_sends_nothing() {
    for mut talk in [connecting(), syn_received()] {
        talk.connection.set_receive_limit(0);
        talk.connection.set_receive_limit(LIMIT);
        talk.flush();
    }
}

#[test]
fn a_window_of_a_gigabyte_is_offered_and_honoured() {
    let options = Options { receive_limit: u32::MAX, ..OPTIONS };
    let mut talk = established_with(SYN, options);
    talk.takes(data(0, 1000));
    talk.flush();
    // RFC 7323 §2.3: at most 65,535 << 14. The backlog counts.
    let most: u32 = 65_535 << 14;
    let field = ((most - 1000) >> 14) as u16;
    talk.does(&[deliver(1000), emit(Emit { ack: Some(G + 1000), window: field, ..OURS })]);
    let edge = 1000 + (u32::from(field) << 14);
    assert_eq!(talk.guest(data(edge, 1)), REFUSED);
    talk.flush();
    talk.does(&[emit(Emit { ack: Some(G + 1000), window: field, ..OURS })]);
    talk.takes(data(edge - 1, 1));
    let sack = [Some((G + edge - 1, G + edge)), None, None];
    talk.does(&[
        hold(1, edge - 1001),
        emit(Emit { ack: Some(G + 1000), window: field, sack, ..OURS }),
    ]);
    talk.takes(data(1000, 60_000));
    talk.does(&[deliver(60_000)]);
}

#[test]
fn a_fin_is_passed_on_when_the_backlog_is_empty() {
    let mut talk = established();
    talk.takes(data(0, 900));
    talk.takes(Segment { flags: WITH_FIN, ..data(900, 100) });
    talk.flush();
    talk.does(&[deliver(900), deliver(100), acknowledges(1001, LIMIT - 1000)]);
    talk.host_took(999);
    talk.does(&[]);
    talk.host_took(1);
    talk.does(&[Action::ShutdownWrite]);
    talk.host_took(0);
}

#[test]
fn a_fin_behind_bytes_that_are_all_old_counts() {
    let mut talk = open();
    talk.takes(Segment { flags: WITH_FIN, ..data(0, 2) });
    talk.does(&[Action::ShutdownWrite]);
    talk.is_in(State::CloseWait);
    talk.flush();
    talk.does(&[acknowledges(3, LIMIT)]);
}

#[test]
fn text_behind_the_fin_is_ignored() {
    let mut talk = close_wait();
    assert_eq!(talk.guest(data(1, 50)), REFUSED);
    talk.flush();
    talk.does(&[acknowledges(1, LIMIT)]);
}

#[test]
fn the_acknowledgment_of_a_little_data_may_wait_for_the_answer() {
    let mut talk = open();
    talk.takes(data(2, 1000));
    assert!(talk.connection.ack_owed() && !talk.connection.ack_pressing());
    talk.takes(data(1002, 1048));
    assert!(!talk.connection.ack_pressing());
    // RFC 9293 §3.8.6.3: no more than two segments unacknowledged.
    talk.takes(data(2050, 1));
    assert!(talk.connection.ack_pressing());
    talk.flush();
    assert!(!talk.connection.ack_pressing());
    talk.done.clear();
}

#[test]
fn the_acknowledgment_of_a_fin_may_wait_for_ours() {
    let mut talk = open();
    talk.takes(Segment { flags: WITH_FIN, ..data(2, 5) });
    assert!(talk.connection.ack_owed() && !talk.connection.ack_pressing());
    talk.done.clear();
}

#[test]
fn the_acknowledgment_of_a_repetition_or_a_probe_does_not_wait() {
    for segment in [data(0, 2), data(1, 0)] {
        let mut talk = open();
        talk.takes(segment);
        assert!(talk.connection.ack_pressing(), "{segment:?}");
        talk.done.clear();
    }
    // Nor does a window that has reopened.
    let mut talk = full();
    talk.host_took(50_000);
    assert!(talk.connection.ack_pressing());
}
