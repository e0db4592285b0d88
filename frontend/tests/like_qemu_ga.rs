//! The same bytes to this and to the real qemu-ga, if it is installed: the same lines come back.
//!
//! Only requests without effect are made: sync, ping, and what is wrong.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake::Fake;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const QEMU_GA: &str = "/usr/sbin/qemu-ga";

struct Oracle {
    child: Child,
    _directory: tempfile::TempDir,
    stream: UnixStream,
    syncs: u32,
}

impl Oracle {
    fn start() -> Option<Self> {
        if !Path::new(QEMU_GA).exists() {
            eprintln!("SKIPPED: {QEMU_GA} is not installed, nothing was compared");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let child = Command::new(QEMU_GA)
            .args([
                "-m",
                "unix-listen",
                "-p",
                socket.to_str().unwrap(),
                "-t",
                directory.path().to_str().unwrap(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stream = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            UnixStream::connect(&socket).ok()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Some(Oracle { child, _directory: directory, stream, syncs: 0 })
    }

    /// The lines that answer `input`: all up to those of the sync behind it.
    fn lines(&mut self, input: &[u8]) -> Vec<String> {
        self.syncs += 1;
        self.stream.write_all(input).unwrap();
        self.stream.write_all(&end(self.syncs)).unwrap();
        let marker = format!("{{\"return\": {}}}\n", 990_000 + self.syncs);
        let (mut heard, mut buffer) = (Vec::new(), [0; 65536]);
        while !heard.ends_with(marker.as_bytes()) {
            let count = self.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "qemu-ga has closed: {}", fake::shown(&heard));
            heard.extend_from_slice(&buffer[..count]);
        }
        fake::shown(&heard).lines().map(normal).collect()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Brings the reader of either to an idle state, and says so.
fn end(number: u32) -> Vec<u8> {
    let sync = format!("{{\"execute\":\"guest-sync\",\"arguments\":{{\"id\":{}}}}}", 990_000 + number);
    [b"\xff\n", sync.as_bytes()].concat()
}

/// Members in a fixed order: QEMU's is that of a hash table. What differs between 7.2 and the level reproduced is evened out.
fn normal(line: &str) -> String {
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(members) => {
                let mut members: Vec<_> =
                    members.into_iter().map(|(name, value)| (name, sorted(value))).collect();
                members.sort_by(|left, right| left.0.cmp(&right.0));
                serde_json::Value::Object(members.into_iter().collect())
            }
            serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
            other => other,
        }
    }
    let (prefix, json) = line.split_at(line.find('{').unwrap_or(0));
    match serde_json::from_str(json) {
        Ok(value) => format!("{prefix}{}", sorted(value)),
        Err(error) => format!("NO JSON ({error}): {line}"),
    }
}

/// Several faults in one request: QEMU reports the first in the order of its hash table.
fn is_arbitrary(line: &str) -> bool {
    line.contains("QMP input member")
        || line.contains("is unexpected")
        || line.contains("lacks member 'execute'")
}

fn inputs() -> impl Strategy<Value = Vec<u8>> {
    const TOKENS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\n",
        "\t",
        "\r",
        "\"",
        "'",
        "\\",
        "{\"",
        "\":",
        "\"a\"",
        "'b'",
        "\"c\":1",
        "true",
        "false",
        "null",
        "nul",
        "True",
        "0",
        "-0",
        "01",
        "-",
        "1.",
        "1.5",
        "1e5",
        "1E+2",
        "0e1",
        "0.0e1",
        "9223372036854775808",
        "18446744073709551616",
        "-9223372036854775809",
        "+1",
        ".5",
        "%",
        "%d",
        "@",
        "//",
        "\"\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ud83d\\u0041\"",
        "\"\\udc00\"",
        "\"\\u0000\"",
        "\"\\uffff\"",
        "\"\\ufdd0\"",
        "\"\\x\"",
        "\"\\'\"",
        "'\\\"'",
        "\"\\u12\"",
        "\"\\u1\"x",
        "\"é\"",
        "\"\u{7f}\"",
        "\"\u{ffff}\"",
        "\"\u{10ffff}\"",
        "\"😀\"",
        "{\"execute\":\"guest-ping\"}",
        "{\"execute\":\"guest-ping\",\"id\":",
        "{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}",
        "{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":2}}",
        "{\"execute\":\"guest-sync\",\"arguments\":",
        "{\"id\":3}",
        "\"execute\"",
        "\"arguments\"",
        "\"id\"",
        "\"guest-ping\"",
        "\"guest-nope\"",
    ];
    const BYTES: &[&[u8]] = &[
        b"\xff",
        b"\xfe",
        b"\x00",
        b"\xc0\x80",
        b"\"\xc0\x80\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf8\x88\x80\x80\x80\"",
        b"\xef\xbb\xbf",
        b"\"\xe2\x82\"",
        b"\"\xc3(\"",
        b"\x7f",
        b"\x80",
        b"\x1f",
        b"\"\x01\"",
        b"\"\x00\"",
    ];
    let part = prop_oneof![
        10 => proptest::sample::select(TOKENS).prop_map(|token| token.as_bytes().to_vec()),
        2 => proptest::sample::select(BYTES).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 1..3),
    ];
    proptest::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
}

/// A whole request with one or two bytes changed, taken out or put in.
fn mutants() -> impl Strategy<Value = Vec<u8>> {
    const REQUESTS: &[&str] = &[
        r#"{"execute":"guest-ping","id":{"a":[1,2.5,"x\u00e9"],"b":null}}"#,
        r#"{'execute': 'guest-sync', 'arguments': {'id': -12345}, 'id': 1e3}"#,
        r#"{"execute":"guest-sync-delimited","arguments":{"id":9223372036854775807}}"#,
        r#"{"execute":"guest-file-seek","arguments":{"handle":1,"offset":-1,"whence":true}}"#,
        r#"{"execute":"guest-exec","arguments":{"path":7,"arg":["a","b"],"capture-output":"x"}}"#,
    ];
    let change = (
        any::<proptest::sample::Index>(),
        0..3u8,
        prop_oneof![any::<u8>(), proptest::sample::select(&b"{}[]:,\"'\\ 0e.-"[..])],
    );
    (proptest::sample::select(REQUESTS), proptest::collection::vec(change, 1..3)).prop_map(
        |(request, changes)| {
            let mut bytes = request.as_bytes().to_vec();
            for (at, kind, byte) in changes {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, byte),
                }
            }
            bytes
        },
    )
}

/// What could have an effect, or is answered by a worker, is not sent to the real one.
fn is_harmless(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    !["guest-exec\"", "guest-file-seek\""].iter().any(|name| text.contains(name))
        || text.contains("\"path\":7")
        || text.contains("\"whence\":true")
}

fn compare(oracle: &mut Oracle, input: &[u8]) -> Result<(), TestCaseError> {
    let theirs = oracle.lines(input);
    let mut fake = Fake::qga();
    let heard = fake.say(input) + &fake.say(end(oracle.syncs));
    if !fake.broker.sent.iter().all(|(id, ..)| *id == 0) {
        // A change has made it a request for a worker.
        return Err(TestCaseError::reject("for a worker"));
    }
    let ours: Vec<String> = heard.lines().map(normal).collect();
    prop_assert_eq!(
        ours.len(),
        theirs.len(),
        "\n{}\nours {:#?}\ntheirs {:#?}",
        fake::shown(input),
        ours,
        theirs
    );
    for (our, their) in ours.iter().zip(&theirs) {
        let infinite = their.starts_with("NO JSON") || our.contains("number out of range");
        prop_assert!(
            our == their || infinite || (is_arbitrary(our) && is_arbitrary(their)),
            "\n{}\nours   {our}\ntheirs {their}",
            fake::shown(input)
        );
    }
    Ok(())
}

fn run(cases: u32, strategy: impl Strategy<Value = Vec<u8>>) {
    let Some(mut oracle) = Oracle::start() else { return };
    let oracle = std::cell::RefCell::new(&mut oracle);
    // PROPTEST_CASES asks for more.
    let config = Config::default();
    let config = Config {
        cases: config.cases.max(cases),
        failure_persistence: None,
        max_global_rejects: u32::MAX,
        ..config
    };
    let outcome = TestRunner::new(config)
        .run(&strategy.prop_filter("harmless", |input| is_harmless(input)), |input| {
            compare(*oracle.borrow_mut(), &input)
        });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn any_tokens_give_the_lines_of_qemu_ga() {
    run(4000, inputs());
}

#[test]
fn changed_requests_give_the_lines_of_qemu_ga() {
    run(4000, mutants());
}
