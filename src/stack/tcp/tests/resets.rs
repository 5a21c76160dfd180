//! Resets from the guest, from the host and from us; challenges (RFC 5961).

use super::*;

const RESET: Segment = Segment { flags: WITH_RST, ack: None, ..ACK };

/// Every state from ESTABLISHED on, with the guest's next number and ours.
fn open_states() -> Vec<(Talk, Seq, Seq)> {
    vec![
        (established(), G, H),
        (close_wait(), G + 1, H),
        (last_ack(), G + 1, H + 1),
        (fin_wait_1(), G, H + 1),
        (fin_wait_2(), G, H + 1),
        (closing(), G + 1, H + 1),
        (time_wait(), G + 1, H + 1),
    ]
}

#[test]
fn a_reset_with_exactly_the_next_number_is_obeyed_in_every_state() {
    for (mut talk, next, _) in open_states() {
        let before = talk.connection.state();
        talk.takes(Segment { seq: next, ..RESET });
        let host_is_open = !matches!(before, State::LastAck | State::Closing | State::TimeWait);
        talk.does(if host_is_open { &[Action::ResetHost] } else { &[] });
        talk.is_over();
    }
}

#[test]
fn a_reset_elsewhere_in_the_window_is_challenged() {
    for (mut talk, next, ours) in open_states() {
        let before = talk.connection.state();
        assert_eq!(talk.guest(Segment { seq: next + 1, ..RESET }), REFUSED);
        talk.flush();
        talk.does(&[emit(Emit { seq: ours, ack: Some(next), ..OURS })]);
        talk.is_in(before);
    }
}

#[test]
fn a_reset_outside_the_window_is_dropped() {
    for (mut talk, next, _) in open_states() {
        for seq in [next - 1, next + LIMIT + 1, next + (1 << 31)] {
            assert_eq!(talk.guest(Segment { seq, ..RESET }), REFUSED);
        }
        talk.flush();
        assert_ne!(talk.connection.state(), State::Closed);
    }
}

#[test]
fn a_reset_counts_whatever_it_carries_and_however_closed_the_window_is() {
    let mut talk = established();
    // A text that explains it (RFC 9293 §3.5.3), beyond the window that the SYN-ACK offered.
    talk.takes(data(0, 60_000));
    talk.takes(data(60_000, 5535));
    talk.done.clear();
    talk.takes(Segment { seq: G + 65_535, len: 30, ..RESET });
    talk.does(&[Action::ResetHost]);
    talk.is_over();
}

#[test]
fn a_syn_is_challenged_wherever_it_is() {
    for distance in [0, 1000, LIMIT + 100, u32::MAX] {
        for (mut talk, next, ours) in open_states() {
            let before = talk.connection.state();
            let verdict = talk.guest(Segment { seq: next + distance, ..SYN });
            assert!(verdict.is_err() || distance == u32::MAX);
            talk.flush();
            talk.does(&[emit(Emit { seq: ours, ack: Some(next), ..OURS })]);
            talk.is_in(before);
        }
    }
}

#[test]
fn challenges_keep_a_distance() {
    let mut talk = established();
    for _ in 0..100 {
        assert_eq!(talk.guest(Segment { seq: G + 5, ..RESET }), REFUSED);
        assert_eq!(talk.guest(Segment { seq: G + 5, ..SYN }), REFUSED);
        assert_eq!(talk.guest(Segment { ack: Some(H + 5), ..ACK }), REFUSED);
        talk.flush();
    }
    talk.does(&[emit(OURS)]);
    talk.pass(Duration::from_millis(499));
    assert_eq!(talk.guest(Segment { seq: G + 5, ..RESET }), REFUSED);
    talk.flush();
    talk.does(&[]);
    talk.pass(Duration::from_millis(1));
    assert_eq!(talk.guest(Segment { seq: G + 5, ..RESET }), REFUSED);
    talk.flush();
    talk.does(&[emit(OURS)]);
}

#[test]
fn a_reset_in_time_wait_does_not_cost_the_backlog() {
    let mut talk = fin_wait_2();
    talk.takes(Segment { flags: WITH_FIN, ack: Some(H + 1), ..data(0, 70) });
    talk.flush();
    talk.done.clear();
    talk.takes(Segment { seq: G + 71, ..RESET });
    talk.is_in(State::Closed);
    talk.does(&[]);
    talk.host_took(70);
    talk.does(&[Action::ShutdownWrite, Action::CloseHost]);
    talk.is_over();
}

#[test]
fn a_reset_of_the_host_resets_the_guest() {
    for (mut talk, next, ours) in open_states() {
        let known = talk.connection.state() != State::TimeWait;
        talk.host_reset();
        let reset = emit(Emit { seq: ours, ack: Some(next), flags: WITH_RST, ..OURS });
        talk.does(if known { std::slice::from_ref(&reset) } else { &[] });
        talk.is_over();
    }
    let mut talk = syn_received();
    talk.host_reset();
    talk.does(&[emit(Emit { flags: WITH_RST, ..OURS })]);
    talk.is_over();
}

#[test]
fn giving_up_resets_both_ends() {
    let mut talk = established();
    talk.takes(data(0, 10));
    talk.host_data(30);
    talk.done.clear();
    talk.connection.abort(&mut talk.done);
    talk.does(&[
        Action::ResetHost,
        emit(Emit { seq: H + 30, ack: Some(G + 10), window: 49_995, flags: WITH_RST, ..OURS }),
    ]);
    talk.is_over();
}

#[test]
fn nothing_happens_after_the_end() {
    let mut talk = established();
    talk.takes(data(0, 10));
    talk.host_data(30);
    talk.connection.on_host_waiting(talk.now, true);
    talk.takes(Segment { seq: G + 10, ..RESET });
    talk.done.clear();
    talk.is_over();
    for segment in [ACK, SYN, RESET, data(0, 10), data(10, 10), ack(30)] {
        assert_eq!(talk.guest(segment), Err(DropReason::NoFlow));
    }
    talk.connected();
    talk.connection.on_connect_failed(true, &mut talk.done);
    talk.connection.on_host_waiting(talk.now, true);
    talk.connection.on_host_data(talk.now, 10, false, &mut talk.done);
    talk.host_eof();
    talk.host_took(10);
    talk.host_reset();
    talk.connection.abort(&mut talk.done);
    talk.connection.set_receive_limit(0);
    talk.connection.set_receive_limit(LIMIT);
    talk.connection.on_path_mtu(talk.now, 100, &mut talk.done);
    talk.pass(Duration::from_secs(10_000));
    talk.connection.on_deadline(talk.now, &mut talk.done);
    talk.flush();
    talk.does(&[]);
    talk.is_over();
}
