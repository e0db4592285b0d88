//! Writes chained logs as `docs/audit.md` describes them, for tests of those who read them.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use records::{Hash, Head};

/// When every log begins: 2026-11-26, 10:00 UTC.
const BEGIN: u64 = 1_795_687_200;

/// A log that is being written.
pub(crate) struct Log {
    text: String,
    sequence: u64,
    last: Hash,
    at: SystemTime,
}

impl Log {
    /// An empty log.
    pub(crate) fn new() -> Self {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN);
        Log { text: String::new(), sequence: 0, last: Hash::NONE, at }
    }

    /// An agent starts, linked to what is there.
    pub(crate) fn start(&mut self) -> u64 {
        let link = if self.sequence == 0 {
            "null".to_owned()
        } else {
            format!("{{\"sequence\":{},\"hash\":\"{}\"}}", self.sequence, self.last)
        };
        self.sequence = 0;
        self.record(
            "start",
            &format!(
                "\"boot\":\"b\",\"agent\":\"0.1.0\",\"policy\":{{\"name\":\"p\",\"sha256\":\"s\"}},\"link\":{link}"
            ),
        )
    }

    /// One record; `members` are those of its kind, as JSON without braces. Gives its sequence.
    pub(crate) fn record(&mut self, kind: &str, members: &str) -> u64 {
        self.sequence += 1;
        let time = humantime::format_rfc3339_micros(self.at);
        let (sequence, prev) = (self.sequence, self.last);
        let comma = if members.is_empty() { "" } else { "," };
        let line = format!(
            "{{\"version\":1,\"sequence\":{sequence},\"time\":\"{time}\",\"kind\":\"{kind}\"{comma}{members},\"prev\":\"{prev}\"}}"
        );
        self.last = Hash::of(line.as_bytes());
        self.at += Duration::from_millis(1500);
        writeln!(self.text, "{line}").expect("a text takes it");
        self.sequence
    }

    /// A request that was done.
    pub(crate) fn request(&mut self, command: &str) -> u64 {
        self.record(
            "request",
            &format!(
                "\"channel\":\"port\",\"dialect\":\"qga\",\"command\":\"{command}\",\"arguments\":{{}},\"decision\":\"allow\",\
                 \"rule\":\"policy.toml:3\",\"worker\":\"query\",\"outcome\":\"done\",\"duration_us\":1200"
            ),
        )
    }

    /// Time goes by.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.at += time;
    }

    /// The last record.
    pub(crate) fn head(&self) -> Head {
        Head { sequence: self.sequence, hash: self.last }
    }

    /// All of it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What was written since the last call, as the content of a file of its own.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Its lines, with their ends.
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.text.split_inclusive('\n').collect()
    }
}
