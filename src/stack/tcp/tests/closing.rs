//! FINs in every order, TIME-WAIT, and connections that are silent.

use super::*;

#[test]
fn eof_before_a_closed_window_is_told_and_told_again_when_that_opens() {
    let mut talk = established();
    talk.takes(Segment { window: 0, ..data(0, 1) });
    talk.host_took(1);
    talk.flush();
    talk.done.clear();
    talk.connection.on_host_waiting(talk.now, true);
    let fin = Emit { ack: Some(G + 1), flags: WITH_FIN, ..OURS };
    talk.host_eof();
    talk.does(&[emit(fin)]);
    talk.is_in(State::FinWait1);
    // A guest that has no room for it.
    let full = Segment { seq: G + 1, window: 0, ..ACK };
    talk.takes(full);
    talk.does(&[]);
    for _ in 0..30 {
        talk.deadline();
        talk.does(&[emit(fin)]);
        talk.takes(full);
    }
    talk.takes(Segment { window: GUEST_WINDOW, ..full });
    talk.does(&[emit(fin)]);
    talk.takes(Segment { seq: G + 1, ..ack(1) });
    talk.is_in(State::FinWait2);
    talk.does(&[]);
}

fn with_fin(segment: Segment) -> Segment {
    Segment { flags: WITH_FIN, ..segment }
}

#[test]
fn the_host_closes_first() {
    let mut talk = established();
    talk.host_data(20);
    talk.host_eof();
    talk.does(&[
        emit(Emit { len: 20, flags: WITH_PSH, ..OURS }),
        emit(Emit { seq: H + 20, flags: WITH_FIN, ..OURS }),
    ]);
    talk.is_in(State::FinWait1);
    talk.takes(ack(20));
    talk.is_in(State::FinWait1);
    talk.takes(ack(21));
    talk.is_in(State::FinWait2);
    talk.does(&[Action::Release { len: 20 }]);
    talk.takes(with_fin(ack(21)));
    talk.flush();
    talk.does(&[
        Action::ShutdownWrite,
        Action::CloseHost,
        emit(Emit { seq: H + 21, ack: Some(G + 1), ..OURS }),
    ]);
    talk.is_in(State::TimeWait);
    assert!(!talk.connection.is_closed());
    assert_eq!(talk.deadline(), OPTIONS.time_wait);
    talk.is_over();
}

#[test]
fn the_guest_closes_first() {
    let mut talk = established();
    talk.takes(with_fin(data(0, 9)));
    talk.does(&[Action::Deliver { skip: 0, len: 9 }]);
    talk.is_in(State::CloseWait);
    talk.host_took(9);
    talk.does(&[Action::ShutdownWrite]);
    talk.host_eof();
    talk.does(&[emit(Emit { ack: Some(G + 10), flags: WITH_FIN, ..OURS }), Action::CloseHost]);
    talk.is_in(State::LastAck);
    talk.takes(Segment { seq: G + 10, ..ack(1) });
    // The guest is the one that waits.
    talk.is_over();
}

#[test]
fn both_close_at_once() {
    let mut talk = fin_wait_1();
    talk.takes(with_fin(ACK));
    talk.is_in(State::Closing);
    talk.flush();
    talk.does(&[
        Action::ShutdownWrite,
        Action::CloseHost,
        emit(Emit { seq: H + 1, ack: Some(G + 1), ..OURS }),
    ]);
    talk.takes(Segment { seq: G + 1, ..ack(1) });
    talk.is_in(State::TimeWait);
}

#[test]
fn a_fin_that_acknowledges_ours_goes_straight_to_time_wait() {
    let mut talk = fin_wait_1();
    talk.takes(with_fin(ack(1)));
    talk.does(&[Action::ShutdownWrite, Action::CloseHost]);
    talk.is_in(State::TimeWait);
    talk.flush();
    talk.does(&[emit(Emit { seq: H + 1, ack: Some(G + 1), ..OURS })]);
}

#[test]
fn the_guest_may_go_on_sending_after_the_host_has_closed() {
    for mut talk in [fin_wait_1(), fin_wait_2()] {
        let acked = Some(talk.connection.queue_start());
        for offset in [0, 1000] {
            talk.takes(Segment { ack: acked, ..data(offset, 1000) });
            talk.does(&[Action::Deliver { skip: 0, len: 1000 }]);
        }
        talk.host_took(2000);
        talk.flush();
        talk.does(&[emit(Emit { seq: H + 1, ack: Some(G + 2000), ..OURS })]);
    }
}

#[test]
fn a_repeated_fin_is_acknowledged_again() {
    for (mut talk, nxt) in
        [(close_wait(), H), (closing(), H + 1), (last_ack(), H + 1), (time_wait(), H + 1)]
    {
        for _ in 0..2 {
            let before = talk.connection.state();
            talk.takes(Segment { ack: Some(talk.connection.queue_start()), ..with_fin(ACK) });
            talk.flush();
            talk.does(&[emit(Emit { seq: nxt, ack: Some(G + 1), ..OURS })]);
            talk.is_in(before);
        }
    }
}

#[test]
fn time_wait_starts_anew_with_a_fin_and_with_nothing_else() {
    let mut talk = time_wait();
    talk.pass(Duration::from_secs(3));
    talk.takes(with_fin(ack(1)));
    assert_eq!(talk.connection.next_deadline(), Some(talk.now + OPTIONS.time_wait));
    talk.pass(Duration::from_secs(2));
    talk.takes(Segment { seq: G + 1, ..ack(1) });
    talk.takes(Segment { len: 1, ..ack(1) });
    assert_eq!(talk.deadline(), Duration::from_secs(5));
    talk.is_over();
}

#[test]
fn time_wait_gives_way_to_a_later_syn_only() {
    let talk = time_wait();
    // The FIN took G; RFC 9293 §3.10.7.4: larger than the last number of the old incarnation.
    for (seq, later) in [(G + 2, true), (G + 500_000, true), (G, false), (GUEST_ISS, false)] {
        assert_eq!(talk.connection.superseded_by(&Segment { seq, ..SYN }), later, "{seq:?}");
    }
}

#[test]
fn a_backlog_outlives_the_connection() {
    let mut talk = established();
    talk.takes(with_fin(data(0, 5000)));
    talk.host_eof();
    talk.takes(Segment { seq: G + 5001, ..ack(1) });
    talk.done.clear();
    talk.is_in(State::Closed);
    assert!(!talk.connection.is_closed());
    assert_eq!(talk.connection.next_deadline(), None);
    // The guest has nothing more to say here.
    assert_eq!(talk.guest(Segment { seq: G + 5001, ..ack(1) }), Err(DropReason::NoFlow));
    assert_eq!(talk.guest(SYN), Err(DropReason::NoFlow));
    talk.host_took(4999);
    talk.flush();
    talk.does(&[]);
    talk.host_took(1);
    talk.does(&[Action::ShutdownWrite, Action::CloseHost]);
    talk.is_over();
}

#[test]
fn a_backlog_that_cannot_be_passed_on_ends_with_the_host_socket() {
    let mut talk = established();
    talk.takes(with_fin(data(0, 5000)));
    talk.host_eof();
    talk.takes(Segment { seq: G + 5001, ..ack(1) });
    talk.done.clear();
    let mut given_up = talk.clone();
    talk.host_reset();
    talk.is_over();
    given_up.connection.abort(&mut given_up.done);
    given_up.does(&[Action::ResetHost]);
    given_up.is_over();
}

#[test]
fn a_backlog_outlives_time_wait() {
    let mut talk = fin_wait_2();
    talk.takes(with_fin(Segment { ack: Some(H + 1), ..data(0, 70) }));
    talk.flush();
    talk.done.clear();
    talk.deadline();
    talk.is_in(State::Closed);
    assert!(!talk.connection.is_closed());
    talk.host_took(70);
    talk.does(&[Action::ShutdownWrite, Action::CloseHost]);
    talk.is_over();
}

#[test]
fn a_socket_that_is_closed_is_not_reset_as_well() {
    let mut talk = last_ack();
    for _ in 0..12 {
        talk.deadline();
        talk.does(&[emit(Emit { ack: Some(G + 1), flags: WITH_FIN, ..OURS })]);
    }
    talk.deadline();
    talk.does(&[emit(Emit { seq: H + 1, ack: Some(G + 1), flags: WITH_RST, ..OURS })]);
    talk.is_over();
    let mut talk = last_ack();
    talk.takes(Segment { seq: G + 1, flags: WITH_RST, ack: None, ..ACK });
    talk.is_over();
}

#[test]
fn a_silent_open_connection_is_probed_after_two_hours() {
    let mut talk = established();
    talk.pass(Duration::from_secs(3600));
    talk.takes(ACK);
    talk.deadline();
    talk.does(&[]);
    talk.deadline();
    assert_eq!(talk.now, START + Duration::from_secs(3600 + 7200));
    talk.does(&[emit(Emit { seq: H - 1, ..OURS })]);
    // An answer is good for two hours more.
    talk.takes(ACK);
    let answered = talk.now;
    talk.deadline();
    talk.deadline();
    assert_eq!(talk.now, answered + Duration::from_secs(7200));
    talk.does(&[emit(Emit { seq: H - 1, ..OURS })]);
}

#[test]
fn a_half_closed_connection_is_probed_soon_and_given_up_without_answers() {
    for (mut talk, seq, nxt, heard) in
        [(close_wait(), H - 1, H, G + 1), (fin_wait_2(), H, H + 1, G)]
    {
        for _ in 0..9 {
            assert_eq!(talk.deadline(), Duration::from_secs(75));
            talk.does(&[emit(Emit { seq, ack: Some(heard), ..OURS })]);
        }
        talk.deadline();
        let reset = Emit { seq: nxt, ack: Some(heard), flags: WITH_RST, ..OURS };
        talk.does(&[Action::ResetHost, emit(reset)]);
        talk.is_over();
    }
}

#[test]
fn a_half_closed_connection_that_answers_lives_on() {
    let mut talk = fin_wait_2();
    for _ in 0..40 {
        talk.deadline();
        talk.takes(ack(1));
    }
    talk.is_in(State::FinWait2);
    assert!(talk.done.iter().all(|a| *a == emit(Emit { seq: H, ..OURS })));
    talk.done.clear();
}

#[test]
fn the_last_bytes_carry_the_fin() {
    for (mut talk, next, after) in
        [(established(), G, State::FinWait1), (close_wait(), G + 1, State::LastAck)]
    {
        talk.connection.on_host_data_and_eof(talk.now, 700, &mut talk.done);
        let flags = Flags { psh: true, ..WITH_FIN };
        let last = emit(Emit { len: 700, ack: Some(next), flags, ..OURS });
        let done = [last, Action::CloseHost];
        talk.does(if after == State::LastAck { &done } else { &done[..1] });
        talk.is_in(after);
        talk.host_eof();
        assert_eq!((talk.connection.send_capacity(), talk.connection.in_flight()), (0, 701));
        assert_eq!(talk.deadline(), Duration::from_millis(200));
        talk.does(&[emit(Emit { len: 700, ack: Some(next), flags: WITH_FIN, ..OURS })]);
        talk.takes(Segment { seq: next, ..ack(701) });
        talk.does(&[Action::Release { len: 700 }]);
    }
}

#[test]
fn last_bytes_without_a_length_or_a_connection_are_no_fin() {
    for mut talk in [established(), syn_received(), fin_wait_1(), time_wait()] {
        let before = talk.connection.state();
        let len = if before == State::Established { 0 } else { 10 };
        talk.connection.on_host_data_and_eof(talk.now, len, &mut talk.done);
        talk.is_in(before);
    }
}
