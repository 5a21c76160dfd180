//! What the API answers, to the byte, and what it does not take.

use crate::support::free_port;
use crate::{Served, helpers};

#[test]
fn the_api_answers_to_the_byte() {
    let port = free_port();
    let add =
        |arguments: &str| format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#);
    let good = format!(r#""host_addr":"127.0.0.1","host_port":{port},"guest_port":80"#);
    let error = |text: &str| format!(r#"{{"error":{{"desc":"bad request: {text}"}}}}"#);
    let entries = format!(
        r#""entries":[{{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":{port},{}}}]"#,
        r#""guest_addr":"10.0.2.100","guest_port":80"#
    );
    for helper in helpers() {
        let served = Served::start(helper, &["-c", "-a", "{api}", "{pid}", "tap0"], "");
        for (request, answer) in [
            ("foo".to_owned(), error("cannot parse JSON")),
            ("0".to_owned(), error("json_object() failed")),
            ("{}".to_owned(), error("no execute found")),
            (r#"{"execute":"bogus"}"#.to_owned(), error("unknown execute")),
            (r#"{"execute":""}"#.to_owned(), error("unknown execute")),
            (r#"{"execute":5}"#.to_owned(), error("no execute found")),
            (r#"{"EXECUTE":"list_hostfwd"}"#.to_owned(), error("no execute found")),
            (String::new(), error("cannot parse JSON")),
            (r#"{"execute":"list_hostfwd""#.to_owned(), error("cannot parse JSON")),
            (r#"{"execute":"list_hostfwd",}"#.to_owned(), error("cannot parse JSON")),
            ("{'execute':'list_hostfwd'}".to_owned(), error("cannot parse JSON")),
            (
                r#"{"execute":"list_hostfwd","execute":"list_hostfwd"}"#.to_owned(),
                error("cannot parse JSON"),
            ),
            ("x".repeat(4095), error("cannot parse JSON")),
            ("[]".to_owned(), error("json_object() failed")),
            ("null".to_owned(), error("json_object() failed")),
            ("\0".repeat(4096), error("too large message")),
            (add(&format!(r#""proto":"sctp",{good}"#)), error("add_hostfwd: bad arguments.proto")),
            (
                add(r#""proto":"tcp","host_addr":"::1","host_port":1,"guest_port":1"#),
                error("add_hostfwd: bad arguments.host_addr"),
            ),
            (
                add(r#""proto":"tcp","host_port":0,"guest_port":1"#),
                error("add_hostfwd: bad arguments.host_port"),
            ),
            (
                add(r#""proto":"udp","host_port":1,"guest_addr":"x","guest_port":1"#),
                error("add_hostfwd: bad arguments.guest_addr"),
            ),
            (add(r#""proto":"udp","host_port":1"#), error("add_hostfwd: bad arguments.guest_port")),
            (add(&format!(r#""proto":"TCP",{good}"#)), error("add_hostfwd: bad arguments.proto")),
            (add(r#""proto":"tcp""#), error("add_hostfwd: bad arguments.host_port")),
            (
                add(r#""proto":"tcp","host_port":"80","guest_port":1"#),
                error("add_hostfwd: bad arguments.host_port"),
            ),
            (
                add(r#""proto":"tcp","host_port":1,"guest_port":0"#),
                error("add_hostfwd: bad arguments.guest_port"),
            ),
            (
                add(r#""proto":"tcp","host_addr":"127.1","host_port":1,"guest_port":1"#),
                error("add_hostfwd: bad arguments.host_addr"),
            ),
            (
                add(r#""proto":"tcp","host_addr":"300.0.0.1","host_port":1,"guest_port":1"#),
                error("add_hostfwd: bad arguments.host_addr"),
            ),
            (
                add(r#""proto":"tcp","guest_addr":"::1","host_port":1,"guest_port":1"#),
                error("add_hostfwd: bad arguments.guest_addr"),
            ),
            (
                add(r#""proto":"tcp","host_addr":"203.0.113.77","host_port":2000,"guest_port":1"#),
                error("add_hostfwd: slirp_add_hostfwd failed"),
            ),
            (add(&format!(r#""proto":"tcp",{good}"#)), r#"{"return":{"id":1}}"#.to_owned()),
            (
                add(&format!(r#""proto":"tcp",{good}"#)),
                error("add_hostfwd: slirp_add_hostfwd failed"),
            ),
            (
                r#"{"execute":"remove_hostfwd","arguments":{"id":7}}"#.to_owned(),
                error("remove_hostfwd: bad arguments.id"),
            ),
            (
                r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#.to_owned(),
                error("remove_hostfwd: bad arguments.id"),
            ),
            (
                r#"{"execute":"remove_hostfwd"}"#.to_owned(),
                error("remove_hostfwd: bad arguments.id"),
            ),
        ] {
            assert_eq!(served.ask(request.as_bytes()), answer, "{helper:?} {request:?}");
        }
        let list = served.ask(br#"{"execute":"list_hostfwd"}"#);
        let expected = match helper.is_ours() {
            // What its documentation shows, and what it does.
            true => format!(r#"{{"return":{{{entries}}},{entries}}}"#),
            false => format!("{{{entries}}}"),
        };
        assert_eq!(list.replace(": ", ":").replace(", ", ","), expected, "{helper:?}");
        let removed = served.ask(br#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#);
        assert_eq!(removed, r#"{"return":{}}"#, "{helper:?}");
        if helper.is_ours() {
            // The original crashes, or takes what is no port for one.
            let no_proto = [add(&good), add(r#""proto":5"#), add(r#""proto":null"#)];
            let no_arguments = ["null", "5", "[]"]
                .map(|arguments| format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#));
            let nothing = [r#"{"execute":"add_hostfwd"}"#.to_owned()];
            for request in no_proto.iter().chain(&no_arguments).chain(&nothing) {
                let answer = served.ask(request.as_bytes());
                assert_eq!(answer, error("add_hostfwd: bad arguments.proto"), "{request}");
            }
            for port in ["-1", "65536", "1e99"] {
                let ports = format!(r#""proto":"tcp","host_port":{port},"guest_port":80"#);
                let answer = served.ask(add(&ports).as_bytes());
                assert_eq!(answer, error("add_hostfwd: bad arguments.host_port"), "{port}");
            }
        }
    }
}
