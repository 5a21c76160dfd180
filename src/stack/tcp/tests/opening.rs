//! From the guest's SYN to the end of the handshake.

use super::*;

#[test]
fn a_syn_is_not_answered_before_the_host_is_connected() {
    let mut talk = connecting();
    talk.is_in(State::Connecting);
    talk.flush();
    assert_eq!(talk.connection.next_deadline(), None);
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.connected();
    talk.does(&[emit(OUR_SYN_ACK)]);
    talk.is_in(State::SynReceived);
}

#[test]
fn a_guest_that_offers_no_options_gets_none_but_the_mss() {
    let bare = Segment { mss: None, window_scale: None, sack_permitted: false, ..SYN };
    let mut talk = Talk::with(bare, OPTIONS);
    talk.connected();
    let syn = SynOptions { mss: 1460, window_scale: None, sack_permitted: false };
    // RFC 9293 §3.7.1: 536 is the MSS of an end that does not say.
    talk.does(&[emit(Emit { syn: Some(syn), segment_size: 536, ..OUR_SYN_ACK })]);
    talk.takes(ACK);
    // Without the option the window field means what it says.
    assert_eq!(talk.connection.send_capacity(), u32::from(GUEST_WINDOW));
    talk.takes(data(0, 10));
    talk.flush();
    talk.does(&[
        Action::Deliver { skip: 0, len: 10 },
        emit(Emit { ack: Some(G + 10), window: 65_525, segment_size: 536, ..OURS }),
    ]);
}

#[test]
fn segments_are_no_larger_than_the_link_and_no_smaller_than_48() {
    for (offered, used) in [(65_495, 1460), (1459, 1459), (0, 48), (47, 48)] {
        let mut talk = Talk::with(Segment { mss: Some(offered), ..SYN }, OPTIONS);
        talk.connected();
        talk.does(&[emit(Emit { segment_size: used, ..OUR_SYN_ACK })]);
    }
}

#[test]
fn the_shift_is_the_smallest_that_can_say_the_limit() {
    for (limit, shift) in [(65_535, 0), (65_536, 1), (131_071, 1), (4 << 20, 7), (u32::MAX, 14)] {
        let mut talk = Talk::with(SYN, Options { receive_limit: limit, ..OPTIONS });
        talk.connected();
        let syn = SynOptions { mss: 1460, window_scale: Some(shift), sack_permitted: true };
        talk.does(&[emit(Emit { syn: Some(syn), ..OUR_SYN_ACK })]);
    }
}

#[test]
fn a_syn_repeated_while_the_host_connects_is_waited_out() {
    let mut talk = connecting();
    for _ in 0..5 {
        talk.pass(Duration::from_secs(1));
        talk.takes(SYN);
        assert!(!talk.connection.superseded_by(&SYN));
    }
    talk.connected();
    talk.does(&[emit(OUR_SYN_ACK)]);
}

#[test]
fn another_syn_supersedes_an_attempt_that_the_guest_gave_up() {
    let talk = connecting();
    let other = Segment { seq: GUEST_ISS + 77_777, ..SYN };
    assert!(talk.connection.superseded_by(&other));
    for flags in [Flags { fin: true, ..WITH_SYN }, Flags { rst: true, ..WITH_SYN }, NO_FLAGS] {
        assert!(!talk.connection.superseded_by(&Segment { flags, ..other }));
    }
    assert!(!talk.connection.superseded_by(&Segment { ack: Some(H), ..other }));
    assert!(!established().connection.superseded_by(&other));
    assert!(!syn_received().connection.superseded_by(&other));
}

#[test]
fn nothing_but_a_syn_or_reset_means_anything_while_the_host_connects() {
    let mut talk = connecting();
    for segment in [
        ACK,
        data(0, 5),
        Segment { flags: WITH_FIN, ..ACK },
        Segment { flags: NO_FLAGS, ack: None, ..ACK },
        Segment { ack: Some(H), ..SYN },
        Segment { flags: Flags { fin: true, ..WITH_SYN }, ..SYN },
        Segment { flags: WITH_RST, ack: None, seq: G + 1, ..ACK },
    ] {
        assert_eq!(talk.guest(segment), REFUSED, "{segment:?}");
    }
    talk.flush();
    talk.is_in(State::Connecting);
}

#[test]
fn a_reset_ends_the_attempt_and_the_host_socket() {
    for seq in [GUEST_ISS, G] {
        let mut talk = connecting();
        talk.takes(Segment { flags: WITH_RST, ack: None, seq, ..ACK });
        talk.does(&[Action::ResetHost]);
        talk.is_over();
    }
}

#[test]
fn a_refused_connection_gets_a_reset_that_acknowledges_the_syn() {
    let mut talk = connecting();
    talk.connection.on_connect_failed(true, &mut talk.done);
    // RFC 9293 §3.10.7.1: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
    let reset = Emit {
        seq: Seq(0),
        ack: Some(G),
        flags: WITH_RST,
        window: 0,
        len: 0,
        segment_size: u16::MAX,
        syn: None,
        sack: [None; 3],
    };
    talk.does(&[emit(reset)]);
    talk.is_over();
    // The same when the socket breaks before it is connected.
    let mut talk = connecting();
    talk.host_reset();
    talk.does(&[emit(reset)]);
    talk.is_over();
}

#[test]
fn an_attempt_that_fails_otherwise_ends_in_silence() {
    let mut talk = connecting();
    talk.connection.on_connect_failed(false, &mut talk.done);
    talk.is_over();
}

#[test]
fn a_late_failure_report_does_not_touch_an_open_connection() {
    let mut talk = established();
    talk.connection.on_connect_failed(true, &mut talk.done);
    talk.is_in(State::Established);
}

#[test]
fn a_syn_repeated_after_the_syn_ack_gets_it_again() {
    let mut talk = syn_received();
    let deadline = talk.connection.next_deadline();
    talk.pass(Duration::from_millis(300));
    talk.takes(SYN);
    talk.does(&[emit(OUR_SYN_ACK)]);
    assert_eq!(talk.connection.next_deadline(), deadline);
}

#[test]
fn the_syn_ack_is_repeated_for_a_minute_then_both_ends_are_reset() {
    let mut talk = syn_received();
    for seconds in [1, 2, 4, 8, 16, 32] {
        assert_eq!(talk.deadline(), Duration::from_secs(seconds));
        talk.does(&[emit(OUR_SYN_ACK)]);
    }
    assert_eq!(talk.connection.retransmits(), 6);
    assert_eq!(talk.deadline(), Duration::from_secs(60));
    talk.does(&[Action::ResetHost, emit(Emit { flags: WITH_RST, ..OURS })]);
    talk.is_over();
}

#[test]
fn the_acknowledgment_of_our_syn_opens_the_connection_without_an_answer() {
    let mut talk = syn_received();
    talk.pass(Duration::from_millis(3));
    talk.takes(ACK);
    talk.flush();
    talk.is_in(State::Established);
    assert_eq!(talk.connection.in_flight(), 0);
    assert_eq!(talk.connection.queue_start(), H);
    assert_eq!(talk.connection.round_trip(), Some(Duration::from_millis(3)));
    // RFC 9293 §3.8.4: keep-alive after two hours at the earliest.
    assert_eq!(talk.connection.next_deadline(), Some(talk.now + Duration::from_secs(7200)));
}

#[test]
fn a_syn_ack_that_was_repeated_gives_no_round_trip_time() {
    let mut talk = syn_received();
    talk.takes(SYN);
    talk.takes(ACK);
    assert_eq!(talk.connection.round_trip(), None);
    talk.does(&[emit(OUR_SYN_ACK)]);
}

#[test]
fn the_handshake_may_end_with_data_and_fin() {
    let mut talk = syn_received();
    talk.takes(Segment { flags: WITH_FIN, ..data(0, 300) });
    talk.does(&[Action::Deliver { skip: 0, len: 300 }]);
    talk.is_in(State::CloseWait);
    talk.host_took(300);
    talk.does(&[Action::ShutdownWrite]);
    talk.flush();
    talk.does(&[emit(Emit { ack: Some(G + 301), window: 50_000, ..OURS })]);
}

#[test]
fn an_acknowledgment_of_something_else_is_answered_by_a_reset_with_its_number() {
    for wrong in [OUR_ISS, H + 1, OUR_ISS - 1] {
        let mut talk = syn_received();
        assert_eq!(talk.guest(Segment { ack: Some(wrong), ..ACK }), REFUSED);
        // RFC 9293 §3.10.7.4: <SEQ=SEG.ACK><CTL=RST>
        talk.does(&[emit(Emit {
            seq: wrong,
            ack: None,
            flags: WITH_RST,
            window: 0,
            len: 0,
            segment_size: u16::MAX,
            syn: None,
            sack: [None; 3],
        })]);
        talk.is_in(State::SynReceived);
    }
}

#[test]
fn data_on_a_syn_is_not_acknowledged() {
    let mut talk = Talk::with(Segment { len: 500, ..SYN }, OPTIONS);
    talk.connected();
    talk.does(&[emit(OUR_SYN_ACK)]);
    talk.takes(data(0, 500));
    talk.does(&[Action::Deliver { skip: 0, len: 500 }]);
}

#[test]
fn a_repeated_syn_with_other_flags_gets_no_syn_ack() {
    let mut talk = syn_received();
    // Its FIN lies in the window, so the SYN is challenged (RFC 5961 §4).
    assert_eq!(talk.guest(Segment { flags: Flags { fin: true, ..WITH_SYN }, ..SYN }), REFUSED);
    talk.flush();
    talk.does(&[emit(OURS)]);
    // This one is a reset from outside the window.
    assert_eq!(talk.guest(Segment { flags: Flags { rst: true, ..WITH_SYN }, ..SYN }), REFUSED);
    talk.flush();
    talk.is_in(State::SynReceived);
}

#[test]
fn a_reset_during_the_handshake_resets_the_host() {
    let mut talk = syn_received();
    talk.takes(Segment { flags: WITH_RST, ack: None, ..ACK });
    talk.does(&[Action::ResetHost]);
    talk.is_over();
}

#[test]
fn eof_during_the_handshake_becomes_a_fin_at_its_end() {
    let mut talk = syn_received();
    talk.host_eof();
    talk.is_in(State::SynReceived);
    talk.takes(ACK);
    talk.does(&[emit(Emit { flags: WITH_FIN, ..OURS })]);
    talk.is_in(State::FinWait1);
}

#[test]
fn a_path_mtu_learned_during_the_handshake_sends_nothing() {
    for mut talk in [connecting(), syn_received()] {
        talk.connection.on_path_mtu(talk.now, 1000, &mut talk.done);
        assert_eq!(talk.connection.retransmits(), 0);
    }
    let mut talk = syn_received();
    talk.connection.on_path_mtu(talk.now, 1000, &mut talk.done);
    talk.takes(ACK);
    talk.host_data(1200);
    talk.does(&[emit(Emit { len: 1200, flags: WITH_PSH, segment_size: 1000, ..OURS })]);
}

#[test]
fn a_window_that_is_closed_from_the_start_is_probed_if_the_host_has_data() {
    let mut talk = syn_received();
    talk.connection.on_host_waiting(talk.now, true);
    talk.takes(Segment { window: 0, ..ACK });
    // No round-trip time but that of the handshake: 0 s plus the least of 200 ms.
    assert_eq!(talk.deadline(), Duration::from_millis(200));
    talk.does(&[emit(Emit { seq: H - 1, ..OURS })]);
}

#[test]
fn a_segment_without_flags_ends_no_handshake() {
    let mut talk = syn_received();
    assert_eq!(talk.guest(Segment { ack: None, ..ACK }), REFUSED);
    talk.flush();
    talk.is_in(State::SynReceived);
}
