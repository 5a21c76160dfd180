//! Bytes from the host, the guest's window, and the silly windows.

use super::*;

fn sends(offset: u32, len: u32) -> Action {
    emit(Emit { seq: H + offset, len, flags: WITH_PSH, ..OURS })
}

/// Established with a guest whose MSS and window (unscaled) are these.
fn towards(mss: u16, window: u16) -> Talk {
    let syn = Segment { mss: Some(mss), window, window_scale: None, ..SYN };
    let mut talk = Talk::with(syn, Options { mss: 65_480, frame_limit: 65_435, ..OPTIONS });
    talk.connected();
    talk.takes(Segment { window, ..ACK });
    talk.forget()
}

#[test]
fn data_is_sent_as_it_comes_and_pushed_at_its_end() {
    let mut talk = established();
    talk.connection.on_host_data(talk.now, 30_000, false, &mut talk.done);
    talk.connection.on_host_data(talk.now, 400, true, &mut talk.done);
    talk.does(&[emit(Emit { len: 30_000, ..OURS }), sends(30_000, 400)]);
    assert_eq!(talk.connection.in_flight(), 30_400);
}

#[test]
fn capacity_is_the_window_the_frame_and_the_cap() {
    let mut talk = established();
    // 64,000 bytes of window, 61,000 in one frame.
    assert_eq!(talk.connection.send_capacity(), 61_000);
    talk.host_data(61_000);
    assert_eq!(talk.connection.send_capacity(), 3000);
    talk.host_data(3000);
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.done.clear();

    let talk = established_with(SYN, Options { in_flight_limit: 20_000, ..OPTIONS });
    assert_eq!(talk.connection.send_capacity(), 20_000);
}

#[test]
fn what_is_acknowledged_is_released() {
    let mut talk = established();
    talk.host_data(5000);
    talk.done.clear();
    talk.takes(ack(1400));
    talk.does(&[Action::Release { len: 1400 }]);
    assert_eq!((talk.connection.queue_start(), talk.connection.in_flight()), (H + 1400, 3600));
    talk.takes(ack(5000));
    talk.does(&[Action::Release { len: 3600 }]);
    assert_eq!(talk.connection.in_flight(), 0);
    talk.takes(ack(5000));
    talk.flush();
}

#[test]
fn data_and_its_acknowledgment_in_one_segment_both_count() {
    let mut talk = established();
    talk.host_data(64);
    talk.done.clear();
    talk.takes(Segment { ack: Some(H + 64), ..data(0, 64) });
    talk.does(&[Action::Release { len: 64 }, Action::Deliver { skip: 0, len: 64 }]);
}

#[test]
fn an_acknowledgment_of_what_was_not_sent_is_challenged_and_its_text_dropped() {
    let mut talk = established();
    talk.host_data(100);
    talk.done.clear();
    for _ in 0..3 {
        assert_eq!(talk.guest(Segment { ack: Some(H + 101), ..data(0, 10) }), REFUSED);
        talk.flush();
    }
    talk.does(&[emit(Emit { seq: H + 100, ..OURS })]);
    assert_eq!(talk.connection.in_flight(), 100);
}

#[test]
fn an_acknowledgment_from_far_back_is_challenged() {
    let mut talk = established();
    // RFC 5961 §5: SND.UNA - MAX.SND.WND <= SEG.ACK; one more for a FIN outside the window.
    let oldest = H - 64_000 - 1;
    talk.takes(Segment { ack: Some(oldest), ..ACK });
    talk.flush();
    talk.does(&[]);
    assert_eq!(talk.guest(Segment { ack: Some(oldest - 1), ..ACK }), REFUSED);
    talk.flush();
    talk.does(&[emit(OURS)]);
}

#[test]
fn the_window_follows_the_newest_segment_only() {
    let mut talk = established();
    talk.takes(Segment { window: 500, ..data(0, 10) });
    assert_eq!(talk.connection.send_capacity(), 4000);
    talk.takes(Segment { window: 6000, ..data(10, 10) });
    assert_eq!(talk.connection.send_capacity(), 48_000);
    // Sent before the last one (SEG.SEQ < SND.WL1): its window is history.
    talk.takes(Segment { window: 1, ..data(0, 10) });
    assert_eq!(talk.connection.send_capacity(), 48_000);
    talk.done.clear();
}

#[test]
fn a_window_that_shrinks_below_what_is_in_flight_stops_us() {
    let mut talk = established();
    talk.host_data(10_000);
    talk.done.clear();
    talk.takes(Segment { window: 100, ..ACK });
    assert_eq!(talk.connection.send_capacity(), 0);
}

#[test]
fn a_silly_window_is_not_used_while_something_is_in_flight() {
    let mut talk = towards(1400, 8000);
    talk.host_data(6000);
    talk.done.clear();
    // 2,000 bytes are left, then 1,399: less than a segment and than half of 8,000.
    assert_eq!(talk.connection.send_capacity(), 2000);
    talk.host_data(601);
    talk.done.clear();
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.takes(Segment { window: 8000, ..ack(1) });
    assert_eq!(talk.connection.send_capacity(), 1400);
    talk.done.clear();
}

#[test]
fn a_segment_as_large_as_the_window_does_not_block() {
    // A 65,520-byte link, and a guest whose window cannot be scaled.
    let mut talk = towards(65_480, 65_535);
    talk.host_data(100);
    talk.done.clear();
    assert_eq!(talk.connection.send_capacity(), 65_435);
    talk.host_data(40_000);
    talk.done.clear();
    // 25,435 bytes are left: less than half of the window, so the next ACK is waited for.
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.takes(Segment { window: 65_535, ..ack(40_100) });
    assert_eq!(talk.connection.send_capacity(), 65_435);
    talk.done.clear();
}

#[test]
fn a_window_smaller_than_a_segment_is_used_by_halves() {
    let mut talk = towards(1400, 1000);
    assert_eq!(talk.connection.send_capacity(), 1000);
    talk.host_data(1000);
    talk.done.clear();
    talk.takes(Segment { window: 499, ..ack(1000) });
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.takes(Segment { window: 500, ..ack(1000) });
    assert_eq!(talk.connection.send_capacity(), 500);
    talk.done.clear();
}

#[test]
fn a_cap_smaller_than_a_segment_does_not_block() {
    let syn = Segment { mss: Some(65_480), window: 65_535, ..SYN };
    let options = Options { mss: 65_480, in_flight_limit: 32_768, ..OPTIONS };
    let mut talk = Talk::with(syn, options);
    talk.connected();
    talk.takes(Segment { window: 65_535, ..ACK });
    talk.done.clear();
    assert_eq!(talk.connection.send_capacity(), 32_768);
    talk.host_data(20_000);
    // Nor do we trickle into what the cap leaves.
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.takes(Segment { window: 65_535, ..ack(20_000) });
    assert_eq!(talk.connection.send_capacity(), 32_768);
    talk.done.clear();
}

#[test]
fn a_window_of_a_gigabyte_is_understood() {
    let syn = Segment { window_scale: Some(14), ..SYN };
    let options = Options { in_flight_limit: u32::MAX, frame_limit: u32::MAX, ..OPTIONS };
    let mut talk = Talk::with(syn, options);
    talk.connected();
    talk.takes(Segment { window: u16::MAX, ..ACK });
    talk.done.clear();
    assert_eq!(talk.connection.send_capacity(), 65_535 << 14);
    talk.host_data(65_535 << 14);
    talk.done.clear();
    assert_eq!(talk.connection.send_capacity(), 0);
    let most: u32 = 65_535 << 14;
    talk.takes(Segment { window: u16::MAX, ..ack(most) });
    talk.does(&[Action::Release { len: most }]);
    assert_eq!(talk.connection.send_capacity(), most);
}

#[test]
fn a_closed_window_is_probed_while_the_host_has_data() {
    let mut talk = established();
    talk.takes(Segment { window: 0, ..ACK });
    talk.connection.on_host_waiting(talk.now, true);
    for millis in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000] {
        assert_eq!(talk.deadline(), Duration::from_millis(millis));
        talk.does(&[emit(Emit { seq: H - 1, ..OURS })]);
        talk.takes(Segment { window: 0, ..ACK });
    }
    // It opens: nothing more to probe.
    talk.takes(ACK);
    assert_eq!(talk.connection.send_capacity(), 61_000);
    assert!(talk.connection.next_deadline() > Some(talk.now + Duration::from_secs(1000)));
}

#[test]
fn a_closed_window_without_host_data_is_left_alone() {
    let mut talk = established();
    talk.takes(Segment { window: 0, ..ACK });
    assert_eq!(talk.connection.next_deadline(), Some(START + Duration::from_secs(7200)));
    talk.connection.on_host_waiting(talk.now, true);
    assert_eq!(talk.connection.next_deadline(), Some(START + Duration::from_millis(200)));
    talk.connection.on_host_waiting(talk.now, false);
    assert_eq!(talk.connection.next_deadline(), Some(START + Duration::from_secs(7200)));
}

#[test]
fn more_data_known_to_wait_is_remembered_when_the_window_closes() {
    let mut talk = established();
    talk.connection.on_host_data(talk.now, 60_000, false, &mut talk.done);
    talk.done.clear();
    talk.takes(Segment { window: 0, ..ack(60_000) });
    talk.does(&[Action::Release { len: 60_000 }]);
    talk.deadline();
    talk.does(&[emit(Emit { seq: H + 59_999, ..OURS })]);
}

#[test]
fn a_closed_window_whose_owner_is_silent_is_given_up() {
    let mut talk = established();
    talk.takes(Segment { window: 0, ..ACK });
    talk.connection.on_host_waiting(talk.now, true);
    for _ in 0..12 {
        talk.deadline();
        talk.does(&[emit(Emit { seq: H - 1, ..OURS })]);
    }
    talk.deadline();
    talk.does(&[Action::ResetHost, emit(Emit { flags: WITH_RST, ..OURS })]);
    talk.is_over();
    assert!(talk.now.since(START) > Duration::from_secs(100));
}

#[test]
fn a_window_that_stays_silly_is_used_when_the_timer_runs_out() {
    let mut talk = towards(1400, 8000);
    talk.takes(Segment { window: 300, ..ACK });
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.connection.on_host_waiting(talk.now, true);
    talk.deadline();
    // RFC 9293 §3.8.6.2.1: the override time-out.
    assert_eq!(talk.connection.send_capacity(), 300);
    talk.done.clear();
    talk.host_data(300);
    talk.done.clear();
    // Once: the next silly window waits again.
    talk.takes(Segment { window: 300, ..ack(300) });
    talk.does(&[Action::Release { len: 300 }]);
    assert_eq!(talk.connection.send_capacity(), 0);
}

#[test]
fn nothing_is_read_from_the_host_after_its_eof() {
    let mut talk = fin_wait_1();
    assert_eq!(talk.connection.send_capacity(), 0);
    talk.connection.on_host_data(talk.now, 10, true, &mut talk.done);
    talk.host_eof();
    assert_eq!(talk.connection.in_flight(), 1);
}

#[test]
fn data_goes_on_after_the_guest_has_closed_its_side() {
    let mut talk = close_wait();
    assert_eq!(talk.connection.send_capacity(), 61_000);
    talk.host_data(2800);
    talk.does(&[emit(Emit { len: 2800, ack: Some(G + 1), flags: WITH_PSH, ..OURS })]);
    talk.takes(Segment { seq: G + 1, ..ack(2800) });
    talk.does(&[Action::Release { len: 2800 }]);
}
