//! Connections that we open towards the guest, for clients that the host has accepted.

use super::*;

const RESET: Segment = Segment { flags: WITH_RST, ..ACK };

fn without_ack(seq: Seq) -> Action {
    emit(Emit {
        seq,
        ack: None,
        flags: WITH_RST,
        window: 0,
        len: 0,
        segment_size: u16::MAX,
        syn: None,
        sack: [None; 3],
    })
}

#[test]
fn the_first_syn_offers_everything_and_acknowledges_nothing() {
    let mut talk = Talk::to_guest(OPTIONS);
    talk.is_in(State::SynSent);
    talk.does(&[emit(OUR_SYN)]);
    assert_eq!(talk.connection.send_capacity(), 0);
    assert!(!talk.connection.guest_unfinished());
    talk.flush();
}

#[test]
fn a_syn_ack_opens_the_connection_and_is_acknowledged_at_once() {
    let mut talk = syn_sent();
    talk.pass(Duration::from_millis(5));
    talk.takes(SYN_ACK);
    talk.is_in(State::Established);
    assert!(talk.connection.ack_pressing());
    talk.flush();
    // The first acknowledgment may say the whole window.
    talk.does(&[emit(OURS)]);
    assert_eq!(talk.connection.in_flight(), 0);
    assert_eq!(talk.connection.queue_start(), H);
    assert_eq!(talk.connection.round_trip(), Some(Duration::from_millis(5)));
    assert_eq!(talk.connection.next_deadline(), Some(talk.now + Duration::from_secs(7200)));
    // RFC 7323 §2.2: the window of a SYN-ACK is not scaled; the next one is.
    assert_eq!(talk.connection.send_capacity(), u32::from(GUEST_WINDOW));
    talk.takes(ACK);
    assert_eq!(talk.connection.send_capacity(), 61_000);
}

#[test]
fn data_that_waits_carries_the_acknowledgment() {
    let mut talk = syn_sent();
    talk.connection.on_host_waiting(talk.now, true);
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.takes(SYN_ACK);
    talk.host_data(120);
    talk.does(&[emit(Emit { len: 120, flags: WITH_PSH, ..OURS })]);
    talk.flush();
}

#[test]
fn a_client_that_half_closes_at_once_is_heard_after_the_handshake() {
    let mut talk = syn_sent();
    talk.host_eof();
    talk.is_in(State::SynSent);
    talk.takes(SYN_ACK);
    talk.flush();
    talk.does(&[emit(Emit { flags: WITH_FIN, ..OURS })]);
    talk.is_in(State::FinWait1);
    // The guest still answers.
    talk.takes(Segment { len: 40, ..ack(1) });
    talk.does(&[Action::Deliver { skip: 0, len: 40 }]);
    talk.is_in(State::FinWait2);
}

#[test]
fn a_guest_that_offers_no_options_gets_none() {
    let mut talk = syn_sent();
    let bare = Segment { mss: None, window_scale: None, sack_permitted: false, ..SYN_ACK };
    talk.takes(bare);
    talk.flush();
    // RFC 9293 §3.7.1: 536. The window was offered as 65,535 and cannot say more.
    talk.does(&[emit(Emit { window: 65_535, segment_size: 536, ..OURS })]);
    assert_eq!(talk.connection.send_capacity(), u32::from(GUEST_WINDOW));
    talk.takes(data(0, 10));
    talk.flush();
    talk.does(&[
        Action::Deliver { skip: 0, len: 10 },
        emit(Emit { ack: Some(G + 10), window: 65_525, segment_size: 536, ..OURS }),
    ]);
    talk.takes(ACK);
    assert_eq!(talk.connection.send_capacity(), u32::from(GUEST_WINDOW));
}

#[test]
fn what_the_syn_offered_is_taken_even_if_memory_got_scarce() {
    let mut talk = syn_sent();
    talk.connection.set_receive_limit(1000);
    talk.takes(SYN_ACK);
    talk.flush();
    // In units of two bytes the field cannot say 65,535 (RFC 7323 §2.4); it is taken all the same.
    talk.does(&[emit(Emit { window: 32_767, ..OURS })]);
    talk.takes(data(0, 60_000));
    talk.takes(data(60_000, 5535));
    talk.does(&[Action::Deliver { skip: 0, len: 60_000 }, Action::Deliver { skip: 0, len: 5535 }]);
}

#[test]
fn segments_are_no_larger_than_the_link_and_a_path_mtu_learned_meanwhile() {
    for (offered, path, used) in
        [(65_495, 1460, 1460), (1459, 1460, 1459), (0, 1460, 48), (1400, 1300, 1300)]
    {
        let mut talk = syn_sent();
        talk.connection.on_path_mtu(talk.now, path, &mut talk.done);
        talk.takes(Segment { mss: Some(offered), ..SYN_ACK });
        talk.flush();
        talk.does(&[emit(Emit { segment_size: used, ..OURS })]);
    }
}

#[test]
fn a_reset_that_knows_our_syn_refuses_the_client() {
    let mut talk = syn_sent();
    // As Linux refuses: the sequence number is 0.
    talk.takes(Segment { seq: Seq(0), window: 0, ..RESET });
    talk.does(&[Action::ResetHost]);
    talk.is_over();
}

#[test]
fn a_reset_that_does_not_know_our_syn_is_ignored() {
    let mut talk = syn_sent();
    for ack in [None, Some(OUR_ISS), Some(H + 1), Some(OUR_ISS - 1)] {
        assert_eq!(talk.guest(Segment { ack, ..RESET }), REFUSED);
        assert_eq!(
            talk.guest(Segment { ack, flags: Flags { rst: true, ..WITH_SYN }, ..SYN }),
            REFUSED
        );
    }
    talk.flush();
    talk.is_in(State::SynSent);
}

#[test]
fn nothing_but_a_syn_or_reset_means_anything_before_the_handshake() {
    let mut talk = syn_sent();
    for segment in [
        ACK,
        data(0, 5),
        Segment { flags: WITH_FIN, ..ACK },
        Segment { ack: None, ..ACK },
        Segment { ack: None, flags: WITH_FIN, ..ACK },
        Segment { flags: Flags { fin: true, ..WITH_SYN }, ..SYN_ACK },
        Segment { flags: Flags { fin: true, ..WITH_SYN }, ..SYN },
    ] {
        assert_eq!(talk.guest(segment), REFUSED, "{segment:?}");
    }
    talk.flush();
    talk.is_in(State::SynSent);
}

#[test]
fn an_older_connection_of_the_guest_is_reset_and_the_syn_repeated_once() {
    for flags in [NO_FLAGS, WITH_SYN, WITH_FIN] {
        let mut talk = syn_sent();
        let deadline = talk.connection.next_deadline();
        let older = Segment { ack: Some(OUR_ISS - 70_000), flags, ..ACK };
        assert_eq!(talk.guest(older), REFUSED);
        // RFC 9293 §3.10.7.3: <SEQ=SEG.ACK><CTL=RST>
        talk.does(&[without_ack(OUR_ISS - 70_000), emit(OUR_SYN)]);
        assert_eq!(talk.guest(older), REFUSED);
        talk.does(&[without_ack(OUR_ISS - 70_000)]);
        assert_eq!(talk.connection.next_deadline(), deadline);
        talk.takes(SYN_ACK);
        // Which SYN it answers is not known (Karn).
        assert_eq!(talk.connection.round_trip(), None);
        talk.flush();
        talk.does(&[emit(OURS)]);
    }
}

#[test]
fn the_syn_is_repeated_for_two_minutes_then_the_client_is_reset() {
    let mut talk = syn_sent();
    for seconds in [1, 2, 4, 8, 16, 32] {
        assert_eq!(talk.deadline(), Duration::from_secs(seconds));
        talk.does(&[emit(OUR_SYN)]);
    }
    assert_eq!(talk.connection.retransmits(), 6);
    assert_eq!(talk.deadline(), Duration::from_secs(60));
    talk.does(&[Action::ResetHost, without_ack(H)]);
    talk.is_over();
}

#[test]
fn a_client_that_resets_meanwhile_leaves_nothing_half_open() {
    let mut talk = syn_sent();
    talk.host_reset();
    // In the guest's window if it has answered: RCV.NXT there.
    talk.does(&[without_ack(H)]);
    talk.is_over();
}

#[test]
fn an_unreachable_guest_has_the_client_reset() {
    let mut talk = syn_sent();
    talk.connection.on_unreachable(OUR_ISS + 1, &mut talk.done);
    talk.is_in(State::SynSent);
    talk.connection.on_unreachable(OUR_ISS, &mut talk.done);
    talk.does(&[Action::ResetHost]);
    talk.is_over();
}

#[test]
fn an_open_connection_is_not_given_up_for_an_unreachable_error() {
    for mut talk in [connecting(), syn_received(), simultaneous(), established(), fin_wait_1()] {
        let before = talk.connection.state();
        for quoted in [OUR_ISS, H] {
            talk.connection.on_unreachable(quoted, &mut talk.done);
        }
        talk.is_in(before);
    }
}

#[test]
fn crossing_syns_open_the_connection_from_both_ends() {
    let mut talk = syn_sent();
    talk.takes(SYN);
    talk.is_in(State::SynReceived);
    talk.does(&[emit(OUR_SYN_ACK)]);
    // RFC 9293 §3.5 figure 8: the guest's SYN-ACK repeats its SYN.
    talk.takes(SYN_ACK);
    talk.is_in(State::Established);
    talk.flush();
    talk.does(&[emit(OURS)]);
    assert_eq!(talk.connection.in_flight(), 0);
    assert_eq!(talk.connection.send_capacity(), u32::from(GUEST_WINDOW));
}

#[test]
fn crossing_syns_may_end_with_a_plain_acknowledgment() {
    let mut talk = simultaneous();
    talk.takes(ACK);
    talk.flush();
    talk.is_in(State::Established);
    assert_eq!(talk.connection.send_capacity(), 61_000);
}

#[test]
fn a_crossed_handshake_that_goes_no_further_is_given_up() {
    let mut talk = simultaneous();
    for _ in 0..6 {
        talk.deadline();
        talk.does(&[emit(OUR_SYN_ACK)]);
    }
    talk.deadline();
    talk.does(&[Action::ResetHost, emit(Emit { flags: WITH_RST, window: FIELD, ..OURS })]);
    talk.is_over();
}

#[test]
fn data_on_a_syn_ack_is_not_acknowledged() {
    let mut talk = syn_sent();
    talk.takes(Segment { len: 500, ..SYN_ACK });
    talk.flush();
    talk.does(&[emit(OURS)]);
    talk.takes(data(0, 500));
    talk.does(&[Action::Deliver { skip: 0, len: 500 }]);
}

#[test]
fn a_repeated_syn_ack_shows_that_our_acknowledgment_was_lost() {
    let mut talk = syn_sent();
    talk.takes(SYN_ACK);
    talk.flush();
    talk.done.clear();
    assert_eq!(talk.guest(SYN_ACK), Ok(()));
    talk.flush();
    talk.does(&[emit(OURS)]);
    talk.is_in(State::Established);
}

#[test]
fn a_syn_supersedes_no_attempt_of_ours() {
    let talk = syn_sent();
    assert!(!talk.connection.superseded_by(&SYN));
    assert!(!talk.connection.superseded_by(&Segment { seq: GUEST_ISS + 77_777, ..SYN }));
}
