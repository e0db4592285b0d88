//! Replies as qemu-ga writes them: `", "` and `": "`, ASCII only, doubles as by printf's `%.17g`.
//!
//! Runs in the frontend. Writes what the broker answered and what the host is to get back.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use super::modified_utf8;
use crate::value::Value;

/// How much of an error's text is written: it may quote a name of many megabytes.
const DESCRIPTION: usize = 16 * 1024;

/// The class of almost every error.
pub const GENERIC_ERROR: &str = "GenericError";
/// The class for commands that are unknown or refused.
pub const COMMAND_NOT_FOUND: &str = "CommandNotFound";

/// Appends a reply of a typed shape.
pub fn typed(reply: &impl Serialize, output: &mut Vec<u8>) {
    let result = reply.serialize(&mut Serializer::with_formatter(output, Style));
    // Writing to memory does not fail, and replies have no maps with keys that are not strings.
    result.expect("a reply can be written");
}

/// Appends any value.
pub fn value(value: &Value, output: &mut Vec<u8>) {
    match value {
        Value::Null => output.extend_from_slice(b"null"),
        Value::Bool(true) => output.extend_from_slice(b"true"),
        Value::Bool(false) => output.extend_from_slice(b"false"),
        Value::Int(number) => typed(number, output),
        Value::Uint(number) => typed(number, output),
        Value::Double(number) => output.extend_from_slice(double(*number).as_bytes()),
        Value::Text(bytes) => modified_utf8::quote(bytes, output),
        Value::List(items) => {
            output.push(b'[');
            for (position, item) in items.iter().enumerate() {
                separate(position == 0, output);
                self::value(item, output);
            }
            output.push(b']');
        }
        Value::Object(members) => {
            output.push(b'{');
            for (position, member) in members.iter().enumerate() {
                separate(position == 0, output);
                modified_utf8::quote(&member.name, output);
                output.extend_from_slice(b": ");
                self::value(&member.value, output);
            }
            output.push(b'}');
        }
    }
}

fn separate(first: bool, output: &mut Vec<u8>) {
    if !first {
        output.extend_from_slice(b", ");
    }
}

/// Appends what is behind the value of `return`: the request's id, the end of the object, the end of the line.
pub fn end_of_reply(id: Option<&Value>, output: &mut Vec<u8>) {
    if let Some(id) = id {
        output.extend_from_slice(b", \"id\": ");
        value(id, output);
    }
    output.extend_from_slice(b"}\n");
}

/// Appends an error line.
pub fn error(class: &str, description: &[u8], id: Option<&Value>, output: &mut Vec<u8>) {
    output.push(b'{');
    if let Some(id) = id {
        output.extend_from_slice(b"\"id\": ");
        value(id, output);
        output.extend_from_slice(b", ");
    }
    output.extend_from_slice(b"\"error\": {\"class\": \"");
    output.extend_from_slice(class.as_bytes());
    output.extend_from_slice(b"\", \"desc\": ");
    modified_utf8::quote(description.get(..DESCRIPTION).unwrap_or(description), output);
    output.extend_from_slice(b"}}\n");
}

/// A finite number as by printf's `%.17g`: 17 significant digits, without zeros at the end.
fn double(number: f64) -> String {
    let scientific = format!("{number:.16e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    match usize::try_from(16 - exponent) {
        Ok(behind_point) if exponent >= -4 => trimmed(&format!("{number:.behind_point$}")),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", trimmed(digits), exponent.unsigned_abs())
        }
    }
}

struct Style;

impl Formatter for Style {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, number: f64) -> io::Result<()> {
        writer.write_all(double(number).as_bytes())
    }

    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        // By bytes, which is the same place: nearly all that is ever written has no such character.
        while let Some(at) = rest.bytes().position(|byte| byte >= 0x7f) {
            let (plain, behind) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = behind.chars();
            let mut escaped = Vec::with_capacity(12);
            modified_utf8::escaped(characters.next().map_or(0xfffd, u32::from), &mut escaped);
            writer.write_all(&escaped)?;
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: Write + ?Sized>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        let byte = match escape {
            CharEscape::Quote => b'"',
            CharEscape::ReverseSolidus => b'\\',
            CharEscape::Solidus => b'/',
            CharEscape::Backspace => 8,
            CharEscape::FormFeed => 12,
            CharEscape::LineFeed => b'\n',
            CharEscape::CarriageReturn => b'\r',
            CharEscape::Tab => b'\t',
            CharEscape::AsciiControl(byte) => byte,
        };
        let mut escaped = Vec::with_capacity(6);
        modified_utf8::escaped(u32::from(byte), &mut escaped);
        writer.write_all(&escaped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_print_as_by_printf() {
        for (number, text) in [
            (1_767_236_645.5, "1767236645.5"),
            (1_767_236_645.0, "1767236645"),
            (2.498046875, "2.498046875"),
            (100_000.0, "100000"),
            (18_446_744_073_709_551_616.0, "1.8446744073709552e+19"),
            (0.1, "0.10000000000000001"),
            (0.0001, "0.0001"),
            (0.00001, "1.0000000000000001e-05"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (-2.5e-300, "-2.5e-300"),
            (0.0, "0"),
        ] {
            assert_eq!(double(number), text);
        }
    }

    proptest! {
        #[test]
        fn a_double_reads_back_as_it_was(number in proptest::num::f64::NORMAL) {
            prop_assert_eq!(double(number).parse::<f64>().unwrap(), number);
        }
    }

    #[test]
    fn a_typed_reply_has_the_separators_and_escapes_of_qemu() {
        #[derive(serde::Serialize)]
        struct Reply {
            name: &'static str,
            list: [f64; 2],
            nothing: (),
        }
        let mut output = Vec::new();
        typed(&Reply { name: "é/\u{7f}\u{1}\t\"😀", list: [1.0, 2.5], nothing: () }, &mut output);
        assert_eq!(
            String::from_utf8(output).unwrap(),
            r#"{"name": "\u00E9/\u007F\u0001\t\"\uD83D\uDE00", "list": [1, 2.5], "nothing": null}"#
        );
    }

    #[test]
    fn an_error_has_the_id_in_front() {
        let mut output = Vec::new();
        error(GENERIC_ERROR, b"no '\xff'", Some(&Value::Int(3)), &mut output);
        assert_eq!(
            output,
            b"{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no '\\uFFFD'\"}}\n"
        );
    }
}
