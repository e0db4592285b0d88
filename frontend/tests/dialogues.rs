//! What both dialects answer without a worker: recorded dialogues of qemu-ga and Phoenix, byte patterns of clients.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

mod fake;

use fake::Fake;
use proto::Dialect::{Phoenix, Qga};

/// One dialogue: what is written, and what is read then.
fn dialogue(fake: &mut Fake, steps: &[(&[u8], &str)]) {
    for (said, heard) in steps {
        assert_eq!(fake.say(said), *heard, "{}", fake::shown(said));
    }
}

/// Recorded from qemu-ga 7.2; `guest-get-devices` as by 9.1, the level that is reproduced.
#[test]
fn qemus_dialect_is_answered_as_recorded() {
    dialogue(
        &mut Fake::qga(),
        &[
            (b"{\"execute\":\"guest-ping\"}", "{\"return\": {}}\n"),
            (b"{'execute':'guest-ping'}\r\n", "{\"return\": {}}\n"),
            (
                b"{\"execute\":\"guest-ping\",\"id\":{\"z\":1,\"a\":[1,2.5,null,true,-0,1E5]}}\n",
                "{\"return\": {}, \"id\": {\"z\": 1, \"a\": [1, 2.5, null, true, 0, 100000]}}\n",
            ),
            (b"{\"execute\":\"guest-ping\",\"id\":null}\n", "{\"return\": {}, \"id\": null}\n"),
            (
                b"{\"execute\":\"guest-ping\",\"id\":\"\\u00e9\\uD83D\\uDE00\\u0000/\x7f\"}\n",
                "{\"return\": {}, \"id\": \"\\u00E9\\uD83D\\uDE00\\u0000/\\u007F\"}\n",
            ),
            (
                b"{\"execute\":\"guest-ping\",\"id\":18446744073709551615}{\"execute\":\"guest-ping\",\"id\":18446744073709551616}",
                "{\"return\": {}, \"id\": 18446744073709551615}\n{\"return\": {}, \"id\": 1.8446744073709552e+19}\n",
            ),
            (
                b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":-9223372036854775808}}\n",
                "{\"return\": -9223372036854775808}\n",
            ),
            (
                b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":9223372036854775808}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Invalid parameter type for 'id', expected: integer\"}}\n",
            ),
            (
                b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1.0},\"id\":3}\n",
                "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"Invalid parameter type for 'id', expected: integer\"}}\n",
            ),
            (
                b"{\"execute\":\"guest-sync\"}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Parameter 'id' is missing\"}}\n",
            ),
            (
                b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1,\"x\":2}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Parameter 'x' is unexpected\"}}\n",
            ),
            (
                b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":42}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}\n\\xff{\"return\": 42}\n",
            ),
            (
                b"{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":7},\"id\":\"q\"}\n{\"execute\":\"guest-ping\",\"arguments\":{}}\n",
                "\\xff{\"return\": 7, \"id\": \"q\"}\n{\"return\": {}}\n",
            ),
            (
                b"{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":\"x\"}}{\"execute\":\"guest-ping\"}",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Invalid parameter type for 'id', expected: integer\"}}\n{\"return\": {}}\n",
            ),
            (
                b"{\"execute\":\"guest-pi\xff{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\\"guest-pi\\uFFFD'\"}}\n{\"return\": 1}\n",
            ),
            (
                b"\xff\xff\n{\"execute\":\"guest-ping\"}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}\n{\"return\": {}}\n",
            ),
            (
                b"{\"execute\":\"guest-nope\",\"id\":[1]}\n",
                "{\"id\": [1], \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command guest-nope has not been found\"}}\n",
            ),
            (
                b"{\"execute\":\"guest-get-devices\"}\n",
                "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command guest-get-devices has not been found\"}}\n",
            ),
        ],
    );
}

#[test]
fn what_is_wrong_in_qemus_dialect_is_answered_as_recorded() {
    let mut fake = Fake::qga();
    for (said, descriptions) in [
        (&b"{\"execute\":1}\n"[..], &["QMP input member 'execute' must be a string"][..]),
        (b"{}\n", &["QMP input lacks member 'execute'"]),
        (b"[]\n", &["QMP input must be a JSON object"]),
        (
            b"\"x\" 12 null\n",
            &[
                "QMP input must be a JSON object",
                "QMP input must be a JSON object",
                "QMP input must be a JSON object",
            ],
        ),
        (
            b"{\"execute\":\"guest-ping\",\"arguments\":null}\n",
            &["QMP input member 'arguments' must be an object"],
        ),
        (b"{\"exec-oob\":\"guest-ping\"}\n", &["QMP input member 'exec-oob' is unexpected"]),
        (b"{\"execute\":\"guest-ping\",\"execute\":\"guest-ping\"}\n", &["JSON parse error, duplicate key"]),
        (b"{\"execute\":\"guest-ping\",}\n", &["JSON parse error, expecting value"]),
        (b"[1,]\n", &["JSON parse error, expecting value"]),
        (b"{\"a\" 1}\n", &["JSON parse error, missing : in object pair"]),
        (b"{\"a\":1 \"b\":2}\n", &["JSON parse error, expected separator in dict"]),
        (b"[1 2]\n", &["JSON parse error, expected separator in list"]),
        (b"{1:2}\n", &["JSON parse error, key is not a string in object"]),
        (b"{]\n", &["JSON parse error, expecting value"]),
        (b"}\n", &["JSON parse error, expecting value"]),
        (b"{\"a\":[}", &[]),
        (b"]}", &["JSON parse error, expecting value", "JSON parse error, expecting value"]),
        (b"nul True\n", &["JSON parse error, invalid keyword 'nul'", "JSON parse error, stray 'T'"]),
        (
            b"{\"execute\":\"guest-ping\",\"id\":01}\n",
            &["JSON parse error, stray '01'", "JSON parse error, expecting value"],
        ),
        (b"{\"execute\":\"guest-ping\",\"id\":0e1}\n", &["JSON parse error, expected separator in dict"]),
        (
            b"{\"execute\":\"guest-ping\",\"id\":\"a\tb\"}\n",
            &["JSON parse error, stray '\\\"a\\t'", "JSON parse error, expecting value"],
        ),
        (
            b"{\"execute\":\"guest-ping\",\"id\":\"\xc3(\"}\n",
            &["JSON parse error, invalid UTF-8 sequence in string"],
        ),
        (
            b"{\"execute\":\"guest-ping\",\"id\":\"\\uDE00\"}\n",
            &["JSON parse error, \\\\uDE00 is not a valid Unicode character"],
        ),
        (
            b"{\"execute\":\"guest-ping\",\"id\":\"\\uffff\"}\n",
            &["JSON parse error, \\\\uffff is not a valid Unicode character"],
        ),
        (
            b"{\"execute\":\"guest-ping\",\"id\":\"\\x41\"}\n",
            &["JSON parse error, invalid escape sequence in string"],
        ),
        (
            b"{\"execute\":\"guest-ping\" @ , \"foo\":{\"a\":1}}\n",
            &[
                "JSON parse error, stray '@'",
                "JSON parse error, expecting value",
                "QMP input must be a JSON object",
                "JSON parse error, expecting value",
                "QMP input member 'a' is unexpected",
                "JSON parse error, expecting value",
            ],
        ),
        (b"\xef\xbb\xbf{}", &["JSON parse error, stray '\\uFFFD'", "QMP input lacks member 'execute'"]),
        (b"\x00{}", &["JSON parse error, stray ''", "QMP input lacks member 'execute'"]),
        (
            b"{\"execute\":\"guest-file-seek\",\"arguments\":{\"handle\":1,\"offset\":0,\"whence\":true}}\n",
            &["Invalid parameter type for 'whence', expected: GuestFileWhence"],
        ),
        (
            b"{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"x\",\"arg\":[\"a\",5]}}\n",
            &["Invalid parameter type for 'arg[1]', expected: string"],
        ),
        (
            b"{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"cat\",\"input-data\":\"***\"}}\n",
            &["Base64 data contains invalid characters"],
        ),
        // Not as recorded: QEMU makes it an infinity and answers `"id": inf`.
        (b"{\"execute\":\"guest-ping\",\"id\":1e999}", &["JSON parse error, number out of range"]),
    ] {
        let expected: String = descriptions
            .iter()
            .map(|text| format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"{text}\"}}}}\n"))
            .collect();
        assert_eq!(fake.say(said), expected, "{}", fake::shown(said));
    }
    assert_eq!(fake.asked(), [""; 0], "nothing of it reached the broker");
}

/// Member order varies: libvirt's is C, Proxmox's a Perl hash. UTM sends no newline.
#[test]
fn clients_are_understood_as_they_write() {
    dialogue(
        &mut Fake::qga(),
        &[
            (
                b"{\"execute\":\"guest-sync\", \"arguments\":{\"id\":1763630000000}}\n",
                "{\"return\": 1763630000000}\n",
            ),
            (
                b"{\"arguments\":{\"id\":4711001},\"execute\":\"guest-sync-delimited\"}\n{\"execute\":\"guest-ping\",\"arguments\":{}}\n",
                "\\xff{\"return\": 4711001}\n{\"return\": {}}\n",
            ),
            (
                b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":3000000000}}",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}\n\\xff{\"return\": 3000000000}\n",
            ),
            (b"\xff", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}\n"),
            (b"{'execute': 'guest-ping', 'id': 1}", "{\"return\": {}, \"id\": 1}\n"),
        ],
    );
}

/// Proxmox breaks base64 lines and ends with one.
#[test]
fn base64_with_newlines_is_decoded() {
    let mut fake = Fake::qga();
    fake.say(br#"{"execute":"guest-file-write","arguments":{"handle":1000,"buf-b64":"aGVs\nbG8=\n"}}"#);
    assert_eq!(fake.broker.sent.last().unwrap().2, b"hello");
}

#[test]
fn guest_info_lists_every_command_in_reverse_and_says_what_is_refused() {
    let mut fake = Fake::denying(&[Qga], &["guest-exec"]);
    let info = fake.say(b"{\"execute\":\"guest-info\"}\n");
    let first = "{\"return\": {\"version\": \"10.2.0\", \"supported_commands\": [{\"name\": \"guest-ssh-remove-authorized-keys\", \"enabled\": true, \"success-response\": true}, ";
    assert!(info.starts_with(first), "{info}");
    assert!(
        info.contains("{\"name\": \"guest-exec\", \"enabled\": false, \"success-response\": true}, "),
        "{info}"
    );
    assert!(
        info.contains("{\"name\": \"guest-shutdown\", \"enabled\": true, \"success-response\": false}, "),
        "{info}"
    );
    assert!(
        info.ends_with(
            "{\"name\": \"guest-sync-delimited\", \"enabled\": true, \"success-response\": true}]}}\n"
        ),
        "{info}"
    );
    assert!(!info.contains("sysinfo"));
}

/// The broker records what is refused; what it could not read is refused in front.
#[test]
fn a_refused_command_goes_to_the_broker_if_its_arguments_can_be_read() {
    let mut fake = Fake::denying(&[Qga], &["guest-exec", "guest-ping"]);
    assert_eq!(
        fake.say(br#"{"execute":"guest-exec","arguments":{"nonsense":1},"id":1}"#),
        "{\"id\": 1, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-exec has been disabled: the command is not allowed\"}}\n"
    );
    assert_eq!(fake.say(br#"{"execute":"guest-ping"}"#), "");
    assert_eq!(fake.asked(), ["1 guest-ping lane 1 counts 0 bytes 0"]);
}

#[test]
fn phoenix_is_answered_as_recorded() {
    let parse_error =
        |base64: &str| format!("{{\"error\": {{\"bufb64\": \"{base64}\", \"code\": -1}}, \"tag\": \"\"}}\n");
    let mut fake = Fake::new(&[Phoenix]);
    for (said, heard) in [
        (&b"{\"execute\":\"ping\",\"tag\":\"t1\"}\n"[..], "{\"return\":\"0.7.2\",\"tag\":\"t1\"}\n"),
        (b"{\"execute\":\"ping\"}\n", "{\"return\":\"0.7.2\",\"tag\":\"\"}\n"),
        (b"{\"execute\":\"ping\",\"tag\":\"crlf\"}\r\n", "{\"return\":\"0.7.2\",\"tag\":\"crlf\"}\n"),
        (b"\n", &parse_error("SlNPTiBwYXJzZSBlcnJvcjogdW5leHBlY3RlZCBlbmQgb2YgSlNPTiBpbnB1dA==")),
        (
            b"hello\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjogaW52YWxpZCBjaGFyYWN0ZXIgJ2gnIGxvb2tpbmcgZm9yIGJlZ2lubmluZyBvZiB2YWx1ZQ==",
            ),
        ),
        (
            b"\xff\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjogaW52YWxpZCBjaGFyYWN0ZXIgJ8O/JyBsb29raW5nIGZvciBiZWdpbm5pbmcgb2YgdmFsdWU=",
            ),
        ),
        (
            b"{\"execute\":\"ping\"}{\"execute\":\"ping\"}\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjogaW52YWxpZCBjaGFyYWN0ZXIgJ3snIGFmdGVyIHRvcC1sZXZlbCB2YWx1ZQ==",
            ),
        ),
        (
            b"[]\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjoganNvbjogY2Fubm90IHVubWFyc2hhbCBhcnJheSBpbnRvIEdvIHZhbHVlIG9mIHR5cGUgbWFpbi5SZXF1ZXN0",
            ),
        ),
        // Phoenix dies of it.
        (
            b"null\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjoganNvbjogY2Fubm90IHVubWFyc2hhbCBudWxsIGludG8gR28gdmFsdWUgb2YgdHlwZSBtYWluLlJlcXVlc3Q=",
            ),
        ),
        (b"{}\n", &parse_error("VW5rbm93biBjb21tYW5kOiA=")),
        (
            b"{\"execute\":5,\"tag\":\"t\"}\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjoganNvbjogY2Fubm90IHVubWFyc2hhbCBudW1iZXIgaW50byBHbyBzdHJ1Y3QgZmllbGQgUmVxdWVzdC5leGVjdXRlIG9mIHR5cGUgc3RyaW5n",
            ),
        ),
        (
            b"{\"execute\":\"ping\",\"tag\":5}\n",
            &parse_error(
                "SlNPTiBwYXJzZSBlcnJvcjoganNvbjogY2Fubm90IHVubWFyc2hhbCBudW1iZXIgaW50byBHbyBzdHJ1Y3QgZmllbGQgUmVxdWVzdC50YWcgb2YgdHlwZSBzdHJpbmc=",
            ),
        ),
        (b"{\"EXECUTE\":\"ping\",\"Tag\":\"case\"}\n", "{\"return\":\"0.7.2\",\"tag\":\"case\"}\n"),
        (
            b"{\"execute\":\"nope\",\"execute\":\"ping\",\"tag\":\"a\",\"tag\":\"b\"}\n",
            "{\"return\":\"0.7.2\",\"tag\":\"b\"}\n",
        ),
        (
            b"{\"execute\":\"guest-ping\",\"tag\":\"u1\"}\n",
            "{\"error\": {\"bufb64\": \"VW5rbm93biBjb21tYW5kOiBndWVzdC1waW5n\", \"code\": -1}, \"tag\": \"u1\"}\n",
        ),
        (
            b"{\"execute\":\"PING\",\"tag\":\"u2\"}\n",
            "{\"error\": {\"bufb64\": \"VW5rbm93biBjb21tYW5kOiBQSU5H\", \"code\": -1}, \"tag\": \"u2\"}\n",
        ),
        (
            b"{\"execute\":\"ping\",\"tag\":\"a\\\"b<&>\xc3\xa9\\\\\"}\n",
            "{\"return\":\"0.7.2\",\"tag\":\"a\\\"b\\u003c\\u0026\\u003eé\\\\\"}\n",
        ),
        (
            b"{\"execute\":\"nope\",\"tag\":\"a\\nb\"}\n",
            "{\"error\": {\"bufb64\": \"VW5rbm93biBjb21tYW5kOiBub3Bl\", \"code\": -1}, \"tag\": \"a\\nb\"}\n",
        ),
    ] {
        assert_eq!(fake.say(said), heard, "{}", fake::shown(said));
    }
    let commands = fake.say(b"{\"execute\":\"get-commands\",\"tag\":\"g0\"}\n");
    assert!(commands.starts_with("{\"return\":[\"get-commands\",\"agent-shutdown\",\"ping\","), "{commands}");
    assert!(commands.contains("\"linux-ipaddr-add\""), "{commands}");
}

/// Phoenix leaves the second line until more bytes come.
#[test]
fn two_lines_in_one_write_are_both_answered() {
    let said = b"{\"execute\":\"ping\",\"tag\":\"a\"}\n{\"execute\":\"ping\",\"tag\":\"b\"}\n";
    let heard = "{\"return\":\"0.7.2\",\"tag\":\"a\"}\n{\"return\":\"0.7.2\",\"tag\":\"b\"}\n";
    assert_eq!(Fake::new(&[Phoenix]).say(said), heard);
}

/// Phoenix writes nothing and says true.
#[test]
fn bad_base64_is_an_error_to_phoenixs_clients() {
    let heard = Fake::new(&[Phoenix])
        .say(b"{\"execute\":\"file-write\",\"arguments\":{\"handle_id\":7,\"bufb64\":\"!!notbase64\"},\"tag\":\"t\"}\n");
    assert_eq!(
        heard,
        "{\"error\": {\"bufb64\": \"QmFzZTY0IGRhdGEgY29udGFpbnMgaW52YWxpZCBjaGFyYWN0ZXJz\", \"code\": -1}, \"tag\": \"t\"}\n"
    );
}

#[test]
fn on_a_channel_of_both_dialects_each_request_is_answered_in_its_own() {
    dialogue(
        &mut Fake::new(&[Qga, Phoenix]),
        &[
            (b"{\"execute\":\"guest-ping\"}", "{\"return\": {}}\n"),
            (b"{\"execute\":\"ping\"}\n", "{\"return\":\"0.7.2\",\"tag\":\"\"}\n"),
            (
                b"{\"execute\":\"nope\",\"tag\":\"t\"}\n",
                "{\"error\": {\"bufb64\": \"VW5rbm93biBjb21tYW5kOiBub3Bl\", \"code\": -1}, \"tag\": \"t\"}\n",
            ),
            (
                b"{\"execute\":\"nope\"}\n",
                "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command nope has not been found\"}}\n",
            ),
        ],
    );
}
