//! The transition table, whole: each state with each event.
//!
//! A snapshot: a change of the machine that moves an arrow, or changes what goes with it, shows up
//! here as one changed line. Each line was checked against RFC 9293 §3.10 when it was written.

use std::fmt::Write as _;

use super::*;

type Event = (&'static str, fn(&mut Talk));

/// A segment of the guest in sequence that acknowledges everything we sent.
fn in_sequence(talk: &Talk) -> Segment {
    let next = match talk.connection.state() {
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait => G + 1,
        _ => G,
    };
    Segment { seq: next, ack: Some(talk.connection.queue_start() + in_flight(talk)), ..ACK }
}

fn in_flight(talk: &Talk) -> u32 {
    talk.connection.in_flight()
}

fn segment(talk: &mut Talk, segment: Segment) {
    // The verdict is for a counter; other tests look at it.
    let _ = talk.guest(segment);
    talk.flush();
}

const EVENTS: &[Event] = &[
    ("SYN again", |talk| segment(talk, SYN)),
    ("SYN-ACK", |talk| segment(talk, SYN_ACK)),
    ("ACK", |talk| {
        let ack = in_sequence(talk);
        segment(talk, ack);
    }),
    ("old ACK", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { ack: Some(OUR_ISS + 1), ..ack });
    }),
    ("data", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { len: 5, ..ack });
    }),
    ("FIN", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { flags: WITH_FIN, ..ack });
    }),
    ("FIN, old ACK", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { flags: WITH_FIN, ack: Some(OUR_ISS + 1), ..ack });
    }),
    ("RST, ACK", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { flags: WITH_RST, ..ack });
    }),
    ("RST", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { flags: WITH_RST, ack: None, ..ack });
    }),
    ("no flags", |talk| {
        let ack = in_sequence(talk);
        segment(talk, Segment { ack: None, ..ack });
    }),
    ("unreachable", |talk| {
        let quoted = talk.connection.queue_start();
        talk.connection.on_unreachable(quoted, &mut talk.done);
    }),
    ("connected", Talk::connected),
    ("refused", |talk| talk.connection.on_connect_failed(true, &mut talk.done)),
    ("host data", |talk| talk.connection.on_host_data(talk.now, 9, true, &mut talk.done)),
    ("data and EOF", |talk| {
        talk.connection.on_host_data_and_eof(talk.now, 9, &mut talk.done);
    }),
    ("host EOF", Talk::host_eof),
    ("host reset", Talk::host_reset),
    ("abort", |talk| talk.connection.abort(&mut talk.done)),
    ("deadline", |talk| {
        if talk.connection.next_deadline().is_some() {
            talk.deadline();
        }
    }),
];

fn closed() -> Talk {
    let mut talk = established();
    talk.connection.abort(&mut talk.done);
    talk.forget()
}

/// Control bits, payload length, and numbers relative to each stream's first byte.
fn describe(action: &Action) -> String {
    let Action::Emit(emit) = action else { return format!("{action:?}") };
    let mut text = String::new();
    for (set, name) in
        [(emit.flags.syn, "SYN "), (emit.flags.fin, "FIN "), (emit.flags.rst, "RST ")]
    {
        text.push_str(if set { name } else { "" });
    }
    let seq = if emit.seq == Seq(0) { "0".into() } else { H.distance(emit.seq).to_string() };
    let _ = write!(text, "<{seq}");
    if emit.len > 0 {
        let _ = write!(text, "+{}", emit.len);
    }
    if let Some(ack) = emit.ack {
        let _ = write!(text, " ack {}", G.distance(ack));
    }
    text + ">"
}

fn table() -> String {
    let states: [fn() -> Talk; 11] = [
        connecting,
        syn_sent,
        syn_received,
        established,
        close_wait,
        fin_wait_1,
        fin_wait_2,
        closing,
        last_ack,
        time_wait,
        closed,
    ];
    let mut text = String::new();
    for state in states {
        let name = format!("{:?}", state().connection.state());
        for (event, apply) in EVENTS {
            let mut talk = state();
            apply(&mut talk);
            let after = format!("{:?}", talk.connection.state());
            let arrow = if after == name { String::new() } else { format!("-> {after}") };
            let actions: Vec<String> = talk.done.iter().map(describe).collect();
            if talk.done.is_empty() && arrow.is_empty() {
                continue;
            }
            talk.done.clear();
            let line = format!("{name:<12}{event:<14}{arrow:<15}{}", actions.join(", "));
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

#[test]
fn the_transition_table_is_as_reviewed() {
    let table = table();
    for (line, (now, reviewed)) in table.lines().zip(TABLE.lines()).enumerate() {
        assert_eq!(now, reviewed, "line {line}");
    }
    assert_eq!(table.lines().count(), TABLE.lines().count(), "{table}");
}

/// State, event, next state, actions. What is not listed has no effect.
const TABLE: &str = include_str!("table.txt");
