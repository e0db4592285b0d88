//! A record as text of the kernel's audit: `name=value`, as `ausearch` and `auparse` read it.
//!
//! The peer is the broker, which repeats what hosts say: nothing of it is written as it came. Words of ours stand for
//! themselves; any other value is quoted, or, with a space, a quote or anything else that could end it, in hexadecimal, as by
//! `audit_encode_nv_string` of audit-userspace (`lib/audit_logging.c`). The record itself is always so, under the name `cmd`, which
//! readers decode (`auparse/typetab.h`).

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use proto::limits::RECORD;
use proto::message::About;

/// Bytes of one text that the kernel shows (`AUDIT_MESSAGE_TEXT_MAX` of linux/audit.h).
const LONGEST: usize = 8560;
/// Bytes of a record in one text. Each takes two; the rest is for the other members: seven names, a hash, texts of [`VALUE`] bytes.
const PART: usize = 2048;
/// Bytes of one of the broker's texts.
const VALUE: usize = 256;

/// Writes texts.
pub(crate) struct Text {
    /// What ends each, but for the result.
    end: String,
}

impl Text {
    /// As `program`.
    pub(crate) fn new(program: &Path) -> Self {
        let mut end = String::new();
        put(&mut end, "exe", program.as_os_str().as_bytes());
        // No request comes from an address or a terminal: those of libaudit's messages, in its order.
        end.push_str(" hostname=? addr=? terminal=?");
        Text { end }
    }

    /// One text or, for a long record, several.
    ///
    /// # Errors
    /// The broker sent what is no record: what that was.
    pub(crate) fn parts(&mut self, about: &About, record: &[u8]) -> Result<Vec<String>, String> {
        if record.is_empty() || record.len() > RECORD || !is_printable(record) {
            return Err(format!("a record of {} bytes that is none", record.len()));
        }
        let mut begin = String::with_capacity(LONGEST);
        let members = [
            ("op", about.command.as_ref().or(Some(&about.kind)), put_word as Put),
            ("kind", Some(&about.kind), put_word),
            ("channel", about.channel.as_ref(), put),
            ("decision", about.decision.as_ref(), put_word),
            ("outcome", about.outcome.as_ref(), put_word),
        ];
        for (name, value, put) in members {
            let Some(value) = value else { continue };
            if value.len() > VALUE || !is_printable(value.as_bytes()) {
                return Err(format!("{} bytes that are no {name}", value.len()));
            }
            put(&mut begin, name, value.as_bytes());
        }
        let _ = write!(begin, " sequence={} sha256={}", about.sequence, about.hash);
        let is = |text: &Option<String>, word: &str| text.as_deref() == Some(word);
        let failed =
            is(&about.decision, "deny") || ["denied", "failed"].iter().any(|word| is(&about.outcome, word));
        let result = if failed { "failed" } else { "success" };
        let count = record.len().div_ceil(PART);
        let parts = record.chunks(PART).zip(1..).map(|(bytes, number)| {
            let mut text = begin.clone();
            if count > 1 {
                let _ = write!(text, " part={number}/{count}");
            }
            text.push_str(" cmd=");
            put_hexadecimal(&mut text, bytes);
            text.push_str(&self.end);
            let _ = write!(text, " res={result}");
            // `put` begins with a space.
            text.trim_start().to_owned()
        });
        Ok(parts.collect())
    }
}

type Put = fn(&mut String, &str, &[u8]);

fn is_printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Adds ` name=value` as it is, if it looks like one of our words.
fn put_word(text: &mut String, name: &str, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(word) if word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') => {
            let _ = write!(text, " {name}={word}");
        }
        _ => put(text, name, value),
    }
}

/// Adds ` name=value`.
fn put(text: &mut String, name: &str, value: &[u8]) {
    let _ = write!(text, " {name}=");
    // A single quote is not libaudit's to encode; around all of this the kernel puts two of them.
    let is_quotable = value.iter().all(|byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\''));
    match std::str::from_utf8(value) {
        Ok(value) if is_quotable => {
            let _ = write!(text, "\"{value}\"");
        }
        _ => put_hexadecimal(text, value),
    }
}

fn put_hexadecimal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::chain::Hash;

    fn about(command: &str) -> About {
        About {
            sequence: 17,
            hash: Hash([0xab; 32]),
            kind: "request".to_owned(),
            command: Some(command.to_owned()),
            channel: Some("qga".to_owned()),
            decision: Some("allow".to_owned()),
            outcome: Some("done".to_owned()),
        }
    }

    fn text() -> Text {
        Text::new(Path::new("/usr/libexec/portreeve/portreeve-audit"))
    }

    #[test]
    fn a_record_is_names_and_values_in_the_order_of_libaudits_messages() {
        let hash = "ab".repeat(32);
        assert_eq!(
            text().parts(&about("guest-ping"), b"{\"a\":1}"),
            Ok(vec![format!(
                "op=guest-ping kind=request channel=\"qga\" decision=allow outcome=done sequence=17 sha256={hash} \
                 cmd=7B2261223A317D exe=\"/usr/libexec/portreeve/portreeve-audit\" hostname=? addr=? terminal=? res=success"
            )])
        );
    }

    #[test]
    fn a_value_that_could_end_itself_is_in_hexadecimal_and_others_are_quoted() {
        let written = |value: &str| {
            let mut text = String::new();
            put(&mut text, "channel", value.as_bytes());
            text
        };
        assert_eq!(written("port-a"), " channel=\"port-a\"");
        assert_eq!(written("port.1"), " channel=\"port.1\"");
        assert_eq!(written("a res=failed"), " channel=61207265733D6661696C6564");
        assert_eq!(written("a\"b"), " channel=612262");
        assert_eq!(written("it's"), " channel=69742773");
        assert_eq!(written(""), " channel=\"\"");
    }

    #[test]
    fn what_is_none_of_our_words_is_not_written_as_one() {
        let written = |value: &str| {
            let mut text = String::new();
            put_word(&mut text, "op", value.as_bytes());
            text
        };
        assert_eq!(written("guest-ping"), " op=guest-ping");
        assert_eq!(written("CAFE"), " op=\"CAFE\"");
        assert_eq!(written("done res=success"), " op=646F6E65207265733D73756363657373");
    }

    #[test]
    fn what_was_refused_or_failed_has_the_result_failed() {
        let result = |decision: &str, outcome: &str| {
            let about = About {
                decision: Some(decision.to_owned()),
                outcome: Some(outcome.to_owned()),
                ..about("guest-ping")
            };
            text().parts(&about, b"{}").unwrap().remove(0).rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(result("deny", "denied"), "res=failed");
        assert_eq!(result("allow", "failed"), "res=failed");
        assert_eq!(result("allow", "begins"), "res=success");
    }

    #[test]
    fn the_longest_record_is_in_parts_that_the_kernel_does_not_cut_and_that_join_to_it() {
        let record = vec![b'x'; RECORD];
        let long = |length: usize| Some(" ".repeat(length));
        let about = About {
            kind: " ".repeat(VALUE),
            command: long(VALUE),
            channel: long(VALUE),
            decision: long(VALUE),
            outcome: long(VALUE),
            ..about("")
        };
        let parts = Text::new(Path::new(&format!("/{}", " ".repeat(400)))).parts(&about, &record).unwrap();
        assert_eq!(parts.len(), 8);
        assert!(parts.iter().all(|part| part.len() < LONGEST), "{:?}", parts.iter().map(String::len).max());
        let field = |part: &String| part.split(" cmd=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        assert_eq!(parts.iter().map(field).collect::<String>(), "78".repeat(RECORD));
        assert!(parts[7].contains(" part=8/8 "), "{}", parts[7]);
    }

    #[test]
    fn what_is_no_record_is_the_brokers_fault() {
        let mut text = text();
        assert!(text.parts(&about("guest-ping"), b"").is_err());
        assert!(text.parts(&about("guest-ping"), &vec![b'x'; RECORD + 1]).is_err());
        assert!(text.parts(&about("guest-ping"), b"{}\n").is_err());
        assert!(text.parts(&about("guest\nping"), b"{}").is_err());
        assert!(text.parts(&about("\u{202e}"), b"{}").is_err());
        assert!(text.parts(&about(&"x".repeat(VALUE + 1)), b"{}").is_err());
    }
}
