//! One record as bytes: a line of JSON in ASCII, of bounded length, with the hash of the one before it.
//!
//! Runs in the broker. What hosts and workers say is data here: every character outside of ASCII is escaped, so that no terminal and
//! no reader sees text of another direction, a control character or the end of a line that is none.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::SystemTime;

use proto::chain::Hash;
use proto::limits::RECORD;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use sha2::{Digest as _, Sha256};

/// The version of the record's form, in every record.
const VERSION: u32 = 1;
/// What number, `intent` and `prev` take of it.
const AROUND: usize = 256;

/// What a record says, without its place in the chain.
pub(super) struct Body(Vec<u8>);

impl Body {
    /// `members` becomes a JSON object.
    pub(super) fn new(kind: &str, members: impl Serialize) -> Result<Self, String> {
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let mut text = Vec::with_capacity(512);
        // Writing to memory does not fail.
        let _ = write!(text, "\"time\":\"{time}\",\"kind\":\"{kind}\"");
        let begin = text.len();
        members
            .serialize(&mut Serializer::with_formatter(&mut text, Ascii))
            .map_err(|why| why.to_string())?;
        let length = text.len().saturating_sub(begin);
        if text.len() > RECORD - AROUND {
            text.truncate(begin);
            let _ = write!(text, ",\"omitted\":{length}");
        } else if length <= 2 {
            text.truncate(begin);
        } else {
            // `{…}` becomes `,…`
            text.pop();
            if let Some(brace) = text.get_mut(begin) {
                *brace = b',';
            }
        }
        Ok(Body(text))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes the record into `line`, instead of what is there.
    pub(super) fn write(&self, line: &mut Vec<u8>, sequence: u64, intent: Option<u64>, prev: &Hash) {
        line.clear();
        // Writing to memory does not fail.
        let _ = write!(line, "{{\"version\":{VERSION},\"sequence\":{sequence},");
        line.extend_from_slice(&self.0);
        if let Some(intent) = intent {
            let _ = write!(line, ",\"intent\":{intent}");
        }
        let _ = write!(line, ",\"prev\":\"{prev}\"}}");
    }
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

/// As a record may show a value. For what is serialised once and used in one or two records.
pub(super) fn ascii(value: impl Serialize) -> Option<String> {
    let mut text = Vec::with_capacity(128);
    value.serialize(&mut Serializer::with_formatter(&mut text, Ascii)).ok()?;
    String::from_utf8(text).ok()
}

/// A text cut to `most` bytes, which says so.
pub(super) fn bounded(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}… ({} bytes)", text.get(..end).unwrap_or_default(), text.len()).into()
}

/// JSON in which everything outside of printable ASCII is escaped.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, character) in fragment.char_indices().filter(|(_, c)| !c.is_ascii() || *c == '\x7f') {
            writer.write_all(fragment.get(plain..at).unwrap_or_default().as_bytes())?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + character.len_utf8();
        }
        writer.write_all(fragment.get(plain..).unwrap_or_default().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(kind: &str, members: serde_json::Value) -> String {
        let mut line = Vec::new();
        Body::new(kind, members).unwrap().write(&mut line, 7, None, &Hash([0xab; 32]));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn what_a_host_can_say_is_escaped_to_ascii() {
        // A line's end, a bell, a change of direction, a letter outside of the basic plane, DEL.
        let text = text_of("x", serde_json::json!({ "path": "/a\nb\u{7}\u{202e}\u{1f600}\u{7f}é\"" }));
        let wanted = r#","kind":"x","path":"/a\nb\u0007\u202e\ud83d\ude00\u007f\u00e9\""#;
        assert!(text.contains(wanted), "{text}");
        assert!(text.is_ascii() && !text.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["path"], "/a\nb\u{7}\u{202e}\u{1f600}\u{7f}é\"");
    }

    #[test]
    fn a_record_has_its_number_first_and_the_hash_before_it_last() {
        let text = text_of("stop", serde_json::json!({}));
        assert!(text.starts_with("{\"version\":1,\"sequence\":7,\"time\":\""), "{text}");
        let end = format!("Z\",\"kind\":\"stop\",\"prev\":\"{}\"}}", "ab".repeat(32));
        assert!(text.ends_with(&end), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said_to_be() {
        let text = text_of("worker", serde_json::json!({ "x": "\u{1}".repeat(3000) }));
        assert!(text.contains(",\"kind\":\"worker\",\"omitted\":18008,\"prev\":"), "{text}");
        assert!(text_of("worker", serde_json::json!({ "x": "y".repeat(16000) })).len() < RECORD);
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_long_it_was() {
        assert_eq!(bounded("ab", 2), "ab");
        assert_eq!(bounded("aéb", 2), "a… (4 bytes)");
    }
}
