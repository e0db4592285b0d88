//! Answers as Phoenix writes them: success by Go's encoder, errors by hand with other spacing.
//!
//! Runs in the frontend. Unlike Phoenix it escapes the tag of an error: a quote in it would break the line.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::output;

/// How much of an error's text is written: it may quote a name of many megabytes.
const DESCRIPTION: usize = 16 * 1024;

/// Appends a reply of a typed shape.
pub fn typed(reply: &impl Serialize, output: &mut Vec<u8>) {
    let result = reply.serialize(&mut Serializer::with_formatter(output, Style));
    // Writing to memory does not fail, and replies have no maps with keys that are not strings.
    result.expect("a reply can be written");
}

/// Appends what is in front of a reply.
pub fn begin_of_reply(output: &mut Vec<u8>) {
    output.extend_from_slice(b"{\"return\":");
}

/// Appends what is behind it.
pub fn end_of_reply(tag: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(b",\"tag\":");
    typed(&String::from_utf8_lossy(tag), output);
    output.extend_from_slice(b"}\n");
}

/// Appends an error line. `code` is an errno, or -1.
pub fn error(text: &str, code: i32, tag: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(b"{\"error\": {\"bufb64\": \"");
    let text = text.as_bytes();
    output::encode(text.get(..DESCRIPTION).unwrap_or(text), output);
    output.extend_from_slice(b"\", \"code\": ");
    typed(&code, output);
    output.extend_from_slice(b"}, \"tag\": ");
    typed(&String::from_utf8_lossy(tag), output);
    output.extend_from_slice(b"}\n");
}

/// Go's `encoding/json`.
struct Style;

impl Formatter for Style {
    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, number: f64) -> io::Result<()> {
        if number.fract() == 0.0 && number.abs() < 1e21 {
            write!(writer, "{number}")
        } else {
            serde_json::ser::CompactFormatter.write_f64(writer, number)
        }
    }

    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        let special = |character| matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        while let Some(at) = rest.find(special) {
            let (plain, behind) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = behind.chars();
            write!(writer, "\\u{:04x}", characters.next().map_or(0xfffd, u32::from))?;
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: Write + ?Sized>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Backspace => writer.write_all(b"\\u0008"),
            CharEscape::FormFeed => writer.write_all(b"\\u000c"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
            other => serde_json::ser::CompactFormatter.write_char_escape(writer, other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_by_go() {
        let mut output = Vec::new();
        typed(&"a<b>&é\u{2028}\n\u{8}\u{1}\"\\/\u{7f}", &mut output);
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "\"a\\u003cb\\u003e\\u0026é\\u2028\\n\\u0008\\u0001\\\"\\\\/\u{7f}\""
        );
    }

    #[test]
    fn numbers_are_written_as_by_go() {
        let mut output = Vec::new();
        typed(&[1.676_267_321_5, 2.0, -0.5], &mut output);
        assert_eq!(output, b"[1.6762673215,2,-0.5]");
    }

    #[test]
    fn an_error_escapes_its_tag() {
        let mut output = Vec::new();
        error("Unknown command: nope", -1, b"a\"b", &mut output);
        assert_eq!(
            output,
            b"{\"error\": {\"bufb64\": \"VW5rbm93biBjb21tYW5kOiBub3Bl\", \"code\": -1}, \"tag\": \"a\\\"b\"}\n"
        );
    }
}
