//! Retransmission: time-outs, duplicates, SACK, path MTU.

use super::*;

/// Established, with `len` bytes in flight and no other round-trip time than the handshake's 0.
fn sent(len: u32) -> Talk {
    let mut talk = established();
    talk.host_data(len);
    talk.forget()
}

fn again(offset: u32, len: u32) -> Action {
    emit(Emit { seq: H + offset, len, ..OURS })
}

fn sacked(blocks: &[(u32, u32)]) -> Segment {
    let mut segment = ACK;
    for (slot, &(left, right)) in segment.sack.iter_mut().zip(blocks) {
        *slot = Some((H + left, H + right));
    }
    segment
}

#[test]
fn what_is_not_acknowledged_is_sent_again_with_back_off() {
    let mut talk = sent(3000);
    for millis in [200, 400, 800, 1600] {
        assert_eq!(talk.deadline(), Duration::from_millis(millis));
        talk.does(&[again(0, 3000)]);
    }
    assert_eq!(talk.connection.retransmits(), 4);
    // RFC 6298 §5.3: the timer starts anew with what is left.
    talk.takes(ack(1400));
    talk.does(&[Action::Release { len: 1400 }]);
    assert_eq!(talk.deadline(), Duration::from_millis(200));
    talk.does(&[again(1400, 1600)]);
}

#[test]
fn a_guest_that_never_answers_is_given_up_after_minutes() {
    let mut talk = sent(10);
    for _ in 0..12 {
        talk.deadline();
        talk.does(&[again(0, 10)]);
    }
    talk.deadline();
    talk.does(&[Action::ResetHost, emit(Emit { seq: H + 10, flags: WITH_RST, ..OURS })]);
    talk.is_over();
    // RFC 9293 §3.8.3: R2 of at least 100 s.
    assert!(talk.now.since(START) >= Duration::from_secs(100));
}

#[test]
fn more_than_a_frame_is_sent_again_one_frame_per_acknowledgment() {
    let options = Options { frame_limit: 10_000, resend_limit: 10_000, ..OPTIONS };
    let mut talk = established_with(SYN, options);
    for _ in 0..3 {
        talk.host_data(10_000);
    }
    talk.done.clear();
    talk.deadline();
    talk.does(&[again(0, 10_000)]);
    talk.takes(ack(10_000));
    talk.does(&[Action::Release { len: 10_000 }, again(10_000, 10_000)]);
    talk.takes(ack(20_000));
    talk.does(&[Action::Release { len: 10_000 }, again(20_000, 10_000)]);
    talk.takes(ack(30_000));
    talk.does(&[Action::Release { len: 10_000 }]);
    assert_eq!(talk.connection.next_deadline(), Some(START + Duration::from_secs(7200)));
}

#[test]
fn three_duplicates_bring_the_first_segment_again() {
    let mut talk = sent(7000);
    talk.takes(ACK);
    talk.takes(ACK);
    talk.does(&[]);
    talk.takes(ACK);
    talk.does(&[again(0, 1400)]);
    // More of them say nothing new.
    talk.takes(ACK);
    talk.takes(ACK);
    // RFC 6582 §3.2: a partial acknowledgment shows the next loss.
    talk.takes(ack(1400));
    talk.does(&[Action::Release { len: 1400 }, again(1400, 1400)]);
    talk.takes(ack(7000));
    talk.does(&[Action::Release { len: 5600 }]);
}

#[test]
fn only_bare_repetitions_with_the_same_window_are_duplicates() {
    let mut talk = sent(7000);
    for round in 0..4u16 {
        talk.takes(data(u32::from(round) * 10, 10));
        talk.takes(Segment { seq: G + u32::from(round + 1) * 10, window: 7000 + round, ..ACK });
    }
    let emitted = talk.done.iter().filter(|a| matches!(a, Action::Emit(_))).count();
    assert_eq!(emitted, 0);
    talk.done.clear();
    // With nothing in flight there is nothing to repeat.
    let mut talk = established();
    for _ in 0..5 {
        talk.takes(ACK);
    }
}

#[test]
fn sacked_bytes_are_not_sent_again() {
    let mut talk = sent(14_000);
    // RFC 6675: more than two segments above the hole are evidence enough.
    talk.takes(sacked(&[(1400, 2800)]));
    talk.does(&[]);
    talk.takes(sacked(&[(4200, 7000), (1400, 2800)]));
    talk.does(&[again(0, 1400)]);
    talk.takes(sacked(&[(4200, 8400), (1400, 2800)]));
    talk.does(&[again(2800, 1400)]);
    talk.takes(sacked(&[(4200, 14_000), (1400, 2800)]));
    talk.does(&[]);
    talk.takes(ack(14_000));
    talk.does(&[Action::Release { len: 14_000 }]);
}

#[test]
fn after_a_time_out_old_sack_reports_are_not_trusted() {
    let mut talk = sent(7000);
    talk.takes(sacked(&[(1400, 2800)]));
    talk.deadline();
    // RFC 2018 §8: the guest may have dropped it since.
    talk.does(&[again(0, 7000)]);
}

#[test]
fn a_lone_fin_is_sent_again() {
    let mut talk = fin_wait_1();
    talk.deadline();
    talk.does(&[emit(Emit { flags: WITH_FIN, ..OURS })]);
    talk.takes(ack(1));
    talk.is_in(State::FinWait2);
    talk.does(&[]);
}

#[test]
fn a_fin_is_sent_again_with_the_data_before_it() {
    let mut talk = sent(500);
    talk.host_eof();
    talk.done.clear();
    talk.deadline();
    talk.does(&[emit(Emit { len: 500, flags: WITH_FIN, ..OURS })]);
    // Data acknowledged, FIN not: it goes again alone.
    talk.takes(ack(500));
    talk.does(&[Action::Release { len: 500 }]);
    talk.deadline();
    talk.does(&[emit(Emit { seq: H + 500, flags: WITH_FIN, ..OURS })]);
    talk.takes(ack(501));
    talk.is_in(State::FinWait2);
}

#[test]
fn a_smaller_path_mtu_sends_again_in_smaller_segments() {
    let mut talk = sent(5000);
    talk.connection.on_path_mtu(talk.now, 1200, &mut talk.done);
    let small = Emit { len: 5000, segment_size: 1200, ..OURS };
    talk.does(&[emit(small)]);
    // Not smaller than before: nothing to do.
    talk.connection.on_path_mtu(talk.now, 1200, &mut talk.done);
    talk.connection.on_path_mtu(talk.now, 9000, &mut talk.done);
    talk.does(&[]);
    // Absurdly small: no less than 48.
    talk.connection.on_path_mtu(talk.now, 0, &mut talk.done);
    talk.does(&[emit(Emit { segment_size: 48, ..small })]);
}

#[test]
fn a_path_mtu_learned_in_the_midst_of_a_recovery_starts_it_anew() {
    let mut talk = sent(14_000);
    talk.takes(sacked(&[(4200, 14_000)]));
    talk.does(&[again(0, 4200)]);
    talk.connection.on_path_mtu(talk.now, 1000, &mut talk.done);
    let small = Emit { len: 14_000, segment_size: 1000, ..OURS };
    talk.does(&[emit(small)]);
    talk.takes(Segment { sack: sacked(&[(4200, 14_000)]).sack, ..ack(1000) });
    talk.does(&[Action::Release { len: 1000 }]);
    talk.deadline();
    talk.does(&[emit(Emit { seq: H + 1000, len: 13_000, ..small })]);
}

#[test]
fn a_path_mtu_with_nothing_in_flight_only_changes_what_follows() {
    let mut talk = established();
    talk.connection.on_path_mtu(talk.now, 1200, &mut talk.done);
    talk.does(&[]);
    talk.host_data(10);
    talk.does(&[emit(Emit { len: 10, flags: WITH_PSH, segment_size: 1200, ..OURS })]);
}

#[test]
fn a_guest_that_answers_with_a_closed_window_is_not_given_up() {
    // It dropped what it had offered to take, and says so (RFC 9293 §3.8.6: be robust).
    let mut talk = sent(1000);
    for _ in 0..30 {
        talk.deadline();
        talk.does(&[again(0, 1000)]);
        talk.takes(Segment { window: 0, ..ACK });
    }
    // It opens: once more at once, not after a minute.
    talk.takes(ACK);
    talk.does(&[again(0, 1000)]);
    talk.takes(ack(1000));
    talk.does(&[Action::Release { len: 1000 }]);
}

#[test]
fn a_round_trip_is_not_timed_by_what_was_sent_twice() {
    let mut talk = sent(1000);
    talk.deadline();
    talk.does(&[again(0, 1000)]);
    talk.takes(ack(1000));
    talk.does(&[Action::Release { len: 1000 }]);
    assert_eq!(talk.connection.round_trip(), Some(Duration::ZERO));
    talk.host_data(100);
    talk.pass(Duration::from_millis(80));
    talk.takes(ack(1100));
    // RFC 6298 §2.3: 7/8 of the old and 1/8 of the new.
    assert_eq!(talk.connection.round_trip(), Some(Duration::from_millis(10)));
    talk.done.clear();
}

#[test]
fn the_time_out_allows_for_a_delayed_acknowledgment() {
    let mut talk = established();
    for round in 1..=60 {
        talk.host_data(10);
        talk.pass(Duration::from_millis(100));
        talk.takes(ack(round * 10));
    }
    talk.host_data(10);
    talk.done.clear();
    // The variation has died out: the smoothed 100 ms plus the least of 200 ms for a delay.
    let waited = talk.deadline();
    assert!(waited >= Duration::from_millis(295), "{waited:?}");
    talk.done.clear();
}
