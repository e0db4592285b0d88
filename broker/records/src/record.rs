//! One record out of one line.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::{Hash, LONGEST};

/// One record. Members that are not known here are skipped; which ones a kind has is in `docs/audit.md`.
///
/// Texts are as somebody wrote them: escape them before a terminal or a browser sees them.
#[derive(Debug, Deserialize)]
pub struct Record<'a> {
    /// Of the record's form.
    pub version: u64,
    /// From 1 at each start of the agent.
    pub sequence: u64,
    /// RFC 3339.
    #[serde(borrow)]
    pub time: Text<'a>,
    /// `start`, `request`, ...
    #[serde(borrow)]
    pub kind: Text<'a>,
    /// The hash of the record before; absent in logs of agents that did not chain.
    pub prev: Option<Hash>,

    /// The channel's name.
    #[serde(borrow)]
    pub channel: Option<Text<'a>>,
    /// `qga` or `phoenix`.
    #[serde(borrow)]
    pub dialect: Option<Text<'a>>,
    /// What was asked.
    #[serde(borrow)]
    pub command: Option<Text<'a>>,
    /// What it was asked about, as JSON.
    #[serde(borrow)]
    pub arguments: Option<&'a RawValue>,
    /// The open file it is about.
    #[serde(borrow)]
    pub file: Option<Text<'a>>,
    /// `allow`, `redact`, `deny` or `none`.
    #[serde(borrow)]
    pub decision: Option<Text<'a>>,
    /// `FILE:LINE`.
    #[serde(borrow)]
    pub rule: Option<Text<'a>>,
    /// Who did it, or who ended.
    #[serde(borrow)]
    pub worker: Option<Text<'a>>,
    /// `begins`, `done`, `failed`, `denied`, `cancelled`, `unknown`.
    #[serde(borrow)]
    pub outcome: Option<Text<'a>>,
    /// What the client was told went wrong.
    #[serde(borrow)]
    pub error: Option<Text<'a>>,
    /// The system's number for it.
    pub errno: Option<i64>,
    /// Of the payload.
    pub bytes: Option<u64>,
    /// Of the payload.
    #[serde(borrow)]
    pub sha256: Option<Text<'a>>,
    /// Nobody waited for the reply any more.
    #[serde(default)]
    pub abandoned: bool,
    /// Microseconds from request to reply.
    pub duration_us: Option<u64>,
    /// The sequence of the intent that this ends.
    pub intent: Option<u64>,

    /// In `start`: where the log goes on from.
    pub link: Option<Link>,
    /// In `closed`: the last record of the run that the intent belongs to.
    pub of: Option<Hash>,
    /// In `loss`: how many.
    pub records: Option<u64>,
    /// Why it happened.
    #[serde(borrow)]
    pub why: Option<Text<'a>>,
    /// In `reload`: whether the new policy is in force.
    pub accepted: Option<bool>,

    /// In `start`: the agent's version.
    #[serde(borrow)]
    pub agent: Option<&'a RawValue>,
    /// In `start`: the kernel's boot id.
    #[serde(borrow)]
    pub boot: Option<&'a RawValue>,
    /// In `start` and `reload`: its name and hash.
    #[serde(borrow)]
    pub policy: Option<&'a RawValue>,
    /// In `front`: how many of which command.
    #[serde(borrow)]
    pub counts: Option<&'a RawValue>,
    /// In `worker`: its process.
    #[serde(borrow)]
    pub pid: Option<&'a RawValue>,
    /// In `worker`: how it ended.
    #[serde(borrow)]
    pub status: Option<&'a RawValue>,
    /// In `thaw`: what became of it.
    #[serde(borrow)]
    pub result: Option<&'a RawValue>,
    /// In `rotated`: the name that the file gets.
    #[serde(borrow)]
    pub to: Option<&'a RawValue>,
}

/// The last record of the log before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its sequence.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotARecord {
    /// So many bytes.
    TooLong(u64),
    /// No line end: cut in the middle, or still being written.
    Unended,
    /// Nothing in it.
    Empty,
    /// It does not begin with `{` and end with `}`.
    NotAnObject,
    /// The JSON parser's words. They can repeat what is in the line: escape them.
    Json(String),
    /// `time` is no RFC 3339 time since 1970 in UTC.
    Time,
}

impl fmt::Display for NotARecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotARecord::TooLong(bytes) => {
                write!(formatter, "the line has {bytes} bytes; a record has at most {LONGEST}")
            }
            NotARecord::Unended => {
                formatter.write_str("the line has no end: the record was cut, or is being written")
            }
            NotARecord::Empty => formatter.write_str("the line is empty"),
            NotARecord::NotAnObject => {
                formatter.write_str("the line is no record: it is not one JSON object from { to }")
            }
            NotARecord::Json(why) => write!(formatter, "the line is no record: {why}"),
            NotARecord::Time => formatter.write_str("the record's time is not one of RFC 3339 in UTC"),
        }
    }
}

impl<'a> Record<'a> {
    /// Reads the bytes of one line, without its end.
    ///
    /// # Errors
    /// Why it is no record.
    pub fn parse(line: &'a [u8]) -> Result<Self, NotARecord> {
        if line.len() > LONGEST {
            return Err(NotARecord::TooLong(u64::try_from(line.len()).unwrap_or(u64::MAX)));
        }
        match line {
            [] => return Err(NotARecord::Empty),
            // JSON permits space around a value; a record's bytes, which are hashed, have none.
            [b'{', .., b'}'] => {}
            _ => return Err(NotARecord::NotAnObject),
        }
        let record: Record<'a> =
            serde_json::from_slice(line).map_err(|error| NotARecord::Json(error.to_string()))?;
        record.at().ok_or(NotARecord::Time)?;
        Ok(record)
    }

    /// When it was written.
    pub fn at(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.time).ok()
    }
}

/// A text of a record, borrowed from its line where it has no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own `Option<Cow<str>>` always copies.
        struct Borrowing;
        impl<'de> Visitor<'de> for Borrowing {
            type Value = Text<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrowing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"version":1,"sequence":7,"time":"2026-11-26T10:00:00.000001Z","kind":"request","channel":"a\"b","arguments":{"path":"/x"},"later":[{}],"errno":13}"#;

    #[test]
    fn a_record_is_read_and_what_is_not_known_is_skipped() {
        let record = Record::parse(LINE.as_bytes()).unwrap();
        assert_eq!((record.version, record.sequence, &*record.kind), (1, 7, "request"));
        assert_eq!(record.channel.as_deref(), Some("a\"b"));
        assert_eq!(record.arguments.map(RawValue::get), Some("{\"path\":\"/x\"}"));
        assert_eq!((record.errno, record.prev, record.command), (Some(13), None, None));
        assert!(matches!(record.time.0, Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_no_record_says_why() {
        let why = |line: &str| Record::parse(line.as_bytes()).err().map(|why| why.to_string());
        assert_eq!(why(""), Some("the line is empty".to_owned()));
        let not_an_object = "the line is no record: it is not one JSON object from { to }";
        for line in ["x", "{", " {}", "{} ", "[]", "\u{feff}{}"] {
            assert_eq!(why(line).as_deref(), Some(not_an_object), "{line:?}");
        }
        assert_eq!(
            why("{}").as_deref(),
            Some("the line is no record: missing field `version` at line 1 column 2")
        );
        let yesterday = LINE.replace("2026-11-26T10:00:00.000001Z", "yesterday");
        assert_eq!(why(&yesterday).as_deref(), Some("the record's time is not one of RFC 3339 in UTC"));
        let twice = LINE.replace("\"errno\":13", "\"errno\":13,\"errno\":14");
        assert!(why(&twice).unwrap().contains("duplicate field `errno`"));
        assert_eq!(
            why(&"x".repeat(LONGEST + 1)).as_deref(),
            Some("the line has 16385 bytes; a record has at most 16384")
        );
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let deep = LINE.replace("[{}]", &format!("{}{}", "[".repeat(8000), "]".repeat(8000)));
        assert!(Record::parse(deep.as_bytes()).is_ok());
    }
}
