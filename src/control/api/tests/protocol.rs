//! Requests and answers, byte by byte.

use serde_json::{Value, json};

use super::instance::{context, forward, info};
use crate::control::api::wire::{self, Asked, Message};
use crate::control::api::*;
use crate::gate::forward::{
    Exposure, Forward, ForwardId, HostService, Listen, PortRange, Transport,
};
use crate::observe::{FlowQuery, FlowTransport, PortRecord};

fn asked(text: &str) -> Asked {
    match wire::read(text.as_bytes(), false, &context()) {
        Message::Asked(asked) => *asked,
        Message::Refused(answer) => panic!("{text}: {}", String::from_utf8_lossy(&answer)),
        Message::Incomplete => panic!("{text}: incomplete"),
    }
}

fn request(value: &Value) -> Request {
    asked(&value.to_string()).request
}

fn refusal(text: &str) -> String {
    match wire::read(text.as_bytes(), true, &context()) {
        Message::Refused(answer) => String::from_utf8(answer).unwrap(),
        message => panic!("{text}: {message:?}"),
    }
}

fn answer(text: &str, result: Result<Reply, Failure>) -> String {
    String::from_utf8(wire::answer(asked(text).dialect, &result, &context())).unwrap()
}

fn slirp_error(text: &str) -> String {
    format!(r#"{{"error":{{"desc":"bad request: {text}"}}}}"#)
}

#[test]
fn a_request_is_complete_when_its_value_is() {
    let text = br#" {"execute":"info","arguments":{}}"#;
    for end in 0..text.len() {
        let message = wire::read(&text[..end], false, &context());
        assert!(matches!(message, Message::Incomplete), "{end}: {message:?}");
    }
    for rest in ["", "\n", "{", "garbage"] {
        let text = [&text[..], rest.as_bytes()].concat();
        assert!(matches!(wire::read(&text, false, &context()), Message::Asked(_)), "{rest}");
    }
}

#[test]
fn what_is_no_request_gets_slirps_words() {
    let large = format!(r#"{{"execute":"info","x":"{}"}}"#, "x".repeat(MAX_REQUEST));
    let almost = &large[..MAX_REQUEST - 1];
    assert!(matches!(wire::read(almost.as_bytes(), false, &context()), Message::Incomplete));
    for (text, error) in [
        ("", "cannot parse JSON"),
        ("{", "cannot parse JSON"),
        ("hello", "cannot parse JSON"),
        ("\u{0}", "cannot parse JSON"),
        (&"[".repeat(4000), "cannot parse JSON"),
        ("[]", "json_object() failed"),
        ("1", "json_object() failed"),
        ("\"x\"", "json_object() failed"),
        ("null", "json_object() failed"),
        ("{}", "no execute found"),
        (r#"{"execute":1}"#, "no execute found"),
        (r#"{"execute":"bogus"}"#, "unknown execute"),
        (&large, "too large message"),
    ] {
        assert_eq!(refusal(text), slirp_error(error), "{text}");
    }
}

#[test]
fn a_bad_hostfwd_is_refused_for_its_first_fault() {
    let good = json!({"proto": "tcp", "host_addr": "", "host_port": 80, "guest_addr": "",
        "guest_port": 8080});
    let with = |key: &str, value: Value| {
        let mut arguments = good.clone();
        arguments[key] = value;
        refusal(&json!({"execute": "add_hostfwd", "arguments": arguments}).to_string())
    };
    for (key, values) in [
        ("proto", vec![json!("sctp"), json!("TCP"), json!(6), Value::Null]),
        ("host_addr", vec![json!("::"), json!("1.2.3"), json!("localhost")]),
        ("host_port", vec![json!(0), json!(-1), json!(65_536), json!("80"), Value::Null]),
        ("guest_addr", vec![json!("::1"), json!("x")]),
        ("guest_port", vec![json!(0), json!(1e9), json!([80]), Value::Null]),
    ] {
        for value in values {
            let error = slirp_error(&format!("add_hostfwd: bad arguments.{key}"));
            assert_eq!(with(key, value.clone()), error, "{key}: {value}");
        }
    }
    let proto = slirp_error("add_hostfwd: bad arguments.proto");
    assert_eq!(refusal(r#"{"execute":"add_hostfwd"}"#), proto);
    assert_eq!(refusal(r#"{"execute":"add_hostfwd","arguments":7}"#), proto);
    for id in ["", r#""id":0"#, r#""id":"1""#, r#""id":-3"#] {
        let text = format!(r#"{{"execute":"remove_hostfwd","arguments":{{{id}}}}}"#);
        assert_eq!(refusal(&text), slirp_error("remove_hostfwd: bad arguments.id"), "{id}");
    }
}

fn slirp_forward(host: &str, guest: &str) -> Forward {
    Forward {
        transport: Transport::Udp,
        listen: Listen::Ports {
            address: Some(host.parse().unwrap()),
            interface: None,
            ports: PortRange::single(5353),
        },
        guest_address: Some(guest.parse().unwrap()),
        guest_ports: PortRange::single(53),
        when_listening: false,
    }
}

#[test]
fn hostfwds_have_slirps_defaults() {
    let add = |host: Value, guest: Value| {
        let arguments = json!({"proto": "udp", "host_addr": host, "host_port": 5353,
            "guest_addr": guest, "guest_port": 53, "unknown": true});
        request(&json!({"execute": "add_hostfwd", "arguments": arguments}))
    };
    let expected =
        |host, guest| Request::AddForward(vec![Rule::Publish(slirp_forward(host, guest))]);
    assert_eq!(add(json!(""), json!("")), expected("0.0.0.0", "10.0.2.100"));
    assert_eq!(add(Value::Null, Value::Null), expected("0.0.0.0", "10.0.2.100"));
    assert_eq!(add(json!("127.0.0.1"), json!("10.0.2.7")), expected("127.0.0.1", "10.0.2.7"));
}

#[test]
fn answers_to_slirps_verbs_are_exact() {
    let record = |id, forward: &Forward| PortRecord::published(ForwardId(id), forward);
    let add =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":1,"guest_port":2}}"#;
    let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":7}}"#;
    let list = r#"{"execute":"list_hostfwd"}"#;
    let one = record(7, &slirp_forward("192.0.2.1", "10.0.2.9"));
    let forwards = |records: &[PortRecord]| Ok(Reply::Forwards(records.to_vec()));
    assert_eq!(answer(add, forwards(std::slice::from_ref(&one))), r#"{"return":{"id":7}}"#);
    assert_eq!(answer(remove, forwards(std::slice::from_ref(&one))), r#"{"return":{}}"#);
    let entries = concat!(
        r#"[{"id":7,"proto":"udp","host_addr":"192.0.2.1","host_port":5353,"#,
        r#""guest_addr":"10.0.2.9","guest_port":53},"#,
        r#"{"id":8,"proto":"tcp","host_addr":"0.0.0.0","host_port":80,"#,
        r#""guest_addr":"10.0.2.100","guest_port":8080}]"#,
    );
    let over_ipv6 = record(9, &slirp_forward("::", "10.0.2.9"));
    let range = Forward {
        listen: Listen::Ports {
            address: None,
            interface: None,
            ports: PortRange::new(1, 2).unwrap(),
        },
        guest_ports: PortRange::new(1, 2).unwrap(),
        ..forward(1, 1)
    };
    let all = [one, record(8, &forward(80, 8080)), over_ipv6, record(10, &range)];
    assert_eq!(
        answer(list, forwards(&all)),
        format!(r#"{{"return":{{"entries":{entries}}},"entries":{entries}}}"#)
    );
    assert_eq!(answer(list, forwards(&[])), r#"{"return":{"entries":[]},"entries":[]}"#);
    let failed = |code| Err(Failure::new(code, "whatever"));
    let add_failed = slirp_error("add_hostfwd: slirp_add_hostfwd failed");
    assert_eq!(answer(add, failed(ErrorCode::InUse)), add_failed);
    let unknown = slirp_error("remove_hostfwd: bad arguments.id");
    assert_eq!(answer(remove, failed(ErrorCode::NotFound)), unknown);
    let remove_failed = slirp_error("remove_hostfwd: slirp_remove_hostfwd failed");
    assert_eq!(answer(remove, failed(ErrorCode::Failed)), remove_failed);
}

#[test]
fn native_requests_become_values() {
    assert_eq!(request(&json!({"execute": "info"})), Request::Info);
    assert_eq!(request(&json!({"execute": "stats", "arguments": {}})), Request::Stats);
    assert_eq!(request(&json!({"execute": "list_forwards"})), Request::ListForwards);
    let query = json!({"transport": "tcp", "port": 80, "address": "::1", "after": 5, "limit": 2});
    let expected = FlowQuery {
        transport: Some(FlowTransport::Tcp),
        port: Some(80),
        address: Some("::1".parse().unwrap()),
        after: Some(5),
        limit: Some(2),
    };
    let flows = request(&json!({"execute": "list_flows", "arguments": query}));
    assert_eq!(flows, Request::ListFlows(expected));
    let remove =
        |arguments: Value| request(&json!({"execute": "remove_forward", "arguments": arguments}));
    assert_eq!(remove(json!({"id": 3})), Request::RemoveForward(Selector::Id(ForwardId(3))));
    let rules = vec![Rule::Publish(forward(80, 8080))];
    let by_rule = Request::RemoveForward(Selector::Rules(rules));
    assert_eq!(remove(json!({"spec": "80:8080"})), by_rule);
}

fn added(arguments: Value) -> Rule {
    match request(&json!({"execute": "add_forward", "arguments": arguments})) {
        Request::AddForward(mut rules) if rules.len() == 1 => rules.remove(0),
        request => panic!("{request:?}"),
    }
}

#[test]
fn a_port_can_be_described_by_fields() {
    let fields = json!({"proto": "udp", "host_addr": "::1", "host_port": 5000, "host_port_end": 5010,
        "interface": "eth0", "guest_addr": "fd00::5", "guest_port": 6000, "guest_port_end": 6010,
        "when_listening": true});
    let expected = Forward {
        transport: Transport::Udp,
        listen: Listen::Ports {
            address: Some("::1".parse().unwrap()),
            interface: Some("eth0".to_owned()),
            ports: PortRange::new(5000, 5010).unwrap(),
        },
        guest_address: Some("fd00::5".parse().unwrap()),
        guest_ports: PortRange::new(6000, 6010).unwrap(),
        when_listening: true,
    };
    assert_eq!(added(fields), Rule::Publish(expected));
    assert_eq!(added(json!({"guest_port": 80})), Rule::Publish(forward(0, 80)));
    let unix = Forward { listen: Listen::Unix("/run/a.sock".into()), ..forward(1, 80) };
    let fields = json!({"unix": "/run/a.sock", "guest_port": 80});
    assert_eq!(added(fields), Rule::Publish(unix));
    let service = HostService::Ports { address: None, ports: PortRange::single(5432) };
    let exposed = Exposure { transport: Transport::Tcp, ports: PortRange::single(5432), service };
    let fields = json!({"kind": "expose", "guest_port": 5432});
    assert_eq!(added(fields), Rule::Expose(exposed.clone()));
    let service = HostService::Unix("/run/db".into());
    let fields = json!({"kind": "expose", "guest_port": 5432, "unix": "/run/db"});
    assert_eq!(added(fields), Rule::Expose(Exposure { service, ..exposed }));
    let waiting = Forward { when_listening: true, ..forward(80, 8080) };
    let fields = json!({"spec": "80:8080", "when_listening": true});
    assert_eq!(added(fields), Rule::Publish(waiting));
}

#[test]
fn native_refusals_have_a_code_and_say_what_is_wrong() {
    for (verb, arguments, words) in [
        ("info", json!({"x": 1}), "unknown field `x`"),
        ("list_flows", json!({"transport": "sctp"}), "sctp"),
        ("list_flows", json!({"port": 65_536}), "65536"),
        ("list_flows", json!("all"), "bad arguments"),
        ("add_forward", json!({}), "guest_port is missing"),
        ("add_forward", json!({"guest_port": 0}), "guest_port: 0-0"),
        ("add_forward", json!({"guest_port": 9, "guest_port_end": 8}), "9-8"),
        ("add_forward", json!({"guest_port": 9, "guest_port_end": 10}), "needs a host_port"),
        ("add_forward", json!({"guest_port": 9, "host_port_end": 10}), "goes with host_port"),
        ("add_forward", json!({"guest_port": 9, "host_port": 1, "host_port_end": 3}), "1-3 and 9"),
        ("add_forward", json!({"guest_port": 9, "unix": "/a", "host_port": 1}), "either unix"),
        ("add_forward", json!({"guest_port": 9, "unix": "/a", "proto": "udp"}), "single TCP port"),
        ("add_forward", json!({"spec": "1:2", "guest_port": 9}), "spec says everything"),
        ("add_forward", json!({"spec": "x"}), "publish x: not HOST:GUEST"),
        ("add_forward", json!({"spec": "x", "kind": "expose"}), "expose x: not HOST:GUEST"),
        (
            "add_forward",
            json!({"kind": "expose", "guest_port": 9, "when_listening": true}),
            "published ports",
        ),
        ("add_forward", json!({"kind": "expose", "guest_port": 9, "interface": "e"}), "gateway"),
        ("remove_forward", json!({}), "either id or spec"),
        ("remove_forward", json!({"id": 1, "spec": "1:2"}), "either id or spec"),
    ] {
        let text = json!({"execute": verb, "arguments": arguments}).to_string();
        let answer: Value = serde_json::from_str(&refusal(&text)).unwrap();
        assert_eq!(answer["error"]["code"], "invalid", "{text}: {answer}");
        let desc = answer["error"]["desc"].as_str().unwrap();
        assert!(desc.contains(words), "{text}: {desc}");
    }
}

#[test]
fn native_answers_are_values_or_coded_errors() {
    let text = answer(r#"{"execute":"info"}"#, Ok(Reply::Info(Box::new(info()))));
    assert!(text.starts_with(r#"{"return":{"name":"web","pid":4711,"#), "{text}");
    let hint = Some("take another".to_owned());
    let failure = Failure { code: ErrorCode::InUse, desc: "taken".to_owned(), hint };
    assert_eq!(
        answer(r#"{"execute":"list_forwards"}"#, Err(failure)),
        r#"{"error":{"desc":"taken","code":"in-use","hint":"take another"}}"#
    );
    let listed = Ok(Reply::Forwards(vec![PortRecord::published(ForwardId(1), &forward(80, 8080))]));
    let text = answer(r#"{"execute":"list_forwards"}"#, listed);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["return"]["forwards"][0]["host"]["first_port"], 80);
}
