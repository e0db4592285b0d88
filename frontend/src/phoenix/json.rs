//! JSON as Go's `encoding/json` reads it, with its words for what is wrong.
//!
//! Runs in the frontend on what the host sent. The remainders of the texts are Go's, since somebody may compare them.

use crate::value::{self, Member, Value};

/// Values of one line. Go has no such limit; without it a line of 64 MiB would take gigabytes.
pub const VALUES: usize = 2 << 20;
/// Open objects and lists. Go: 10,000, a stack here is smaller.
const DEPTH: usize = 1024;

/// Reads one value, which must be all there is.
///
/// # Errors
/// What is wrong, without the prefix.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0, values: 0 };
    parser.space();
    let value = parser.value(0)?;
    parser.space();
    match parser.text.get(parser.at) {
        None => Ok(value),
        Some(&byte) => Err(invalid(byte, "after top-level value")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
}

fn invalid(byte: u8, place: &str) -> String {
    let shown = match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        7 => r"'\a'".to_owned(),
        8 => r"'\b'".to_owned(),
        9 => r"'\t'".to_owned(),
        10 => r"'\n'".to_owned(),
        11 => r"'\v'".to_owned(),
        12 => r"'\f'".to_owned(),
        13 => r"'\r'".to_owned(),
        0x20..=0x7e | 0xa1..=0xac | 0xae..=0xff => format!("'{}'", char::from(byte)),
        0..0x20 | 0x7f => format!(r"'\x{byte:02x}'"),
        _ => format!(r"'\u{byte:04x}'"),
    };
    format!("invalid character {shown} {place}")
}

impl Parser<'_> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn next(&mut self) -> Result<u8, String> {
        let byte = self.text.get(self.at).copied().ok_or("unexpected end of JSON input")?;
        self.at += 1;
        Ok(byte)
    }

    fn next_after_space(&mut self) -> Result<u8, String> {
        self.space();
        self.next()
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        self.values += 1;
        if self.values > VALUES {
            return Err("too many values".to_owned());
        }
        match self.next_after_space()? {
            b'{' | b'[' if depth >= DEPTH => Err("exceeded max depth".to_owned()),
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => self.string().map(Value::Text),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            byte @ (b'-' | b'0'..=b'9') => self.number(byte),
            byte => Err(invalid(byte, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        let mut members = Vec::new();
        let mut byte = self.next_after_space()?;
        if byte == b'}' {
            return Ok(Value::Object(Box::default()));
        }
        loop {
            if byte != b'"' {
                return Err(invalid(byte, "looking for beginning of object key string"));
            }
            let name = self.string()?;
            match self.next_after_space()? {
                b':' => {}
                byte => return Err(invalid(byte, "after object key")),
            }
            let value = self.value(depth + 1)?;
            members.push(Member { name, value });
            match self.next_after_space()? {
                b',' => byte = self.next_after_space()?,
                b'}' => return Ok(Value::Object(members.into())),
                byte => return Err(invalid(byte, "after object key:value pair")),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.space();
        if self.text.get(self.at) == Some(&b']') {
            self.at += 1;
            return Ok(Value::List(Box::default()));
        }
        let mut items = Vec::new();
        loop {
            items.push(self.value(depth + 1)?);
            match self.next_after_space()? {
                b',' => {}
                b']' => return Ok(Value::List(items.into())),
                byte => return Err(invalid(byte, "after array element")),
            }
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, String> {
        for expected in word.chars().skip(1) {
            let byte = self.next()?;
            if char::from(byte) != expected {
                return Err(invalid(byte, &format!("in literal {word} (expecting '{expected}')")));
            }
        }
        Ok(value)
    }

    fn digit(&self) -> bool {
        self.text.get(self.at).is_some_and(u8::is_ascii_digit)
    }

    fn digits(&mut self, place: &str) -> Result<(), String> {
        match self.next()? {
            b'0'..=b'9' => {}
            byte => return Err(invalid(byte, place)),
        }
        while self.digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self, first: u8) -> Result<Value, String> {
        let begin = self.at - 1;
        let lead = if first == b'-' { self.next()? } else { first };
        match lead {
            b'0' => {}
            b'1'..=b'9' => {
                while self.digit() {
                    self.at += 1;
                }
            }
            byte => return Err(invalid(byte, "in numeric literal")),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        let text =
            self.text.get(begin..self.at).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        value::number(text).ok_or_else(|| {
            let shown = text.get(..64).unwrap_or(text);
            format!("json: cannot unmarshal number {shown} into Go value of type float64")
        })
    }

    /// The rest of a string; what is not UTF-8, and half surrogate pairs, become U+FFFD.
    fn string(&mut self) -> Result<Box<[u8]>, String> {
        let mut bytes = Vec::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let (run, _) = crate::scan::string_run(rest, b'"');
            bytes.extend_from_slice(rest.get(..run).unwrap_or_default());
            self.at += run;
            match self.next()? {
                b'"' => break,
                b'\\' => self.escape(&mut bytes)?,
                byte @ 0..0x20 => return Err(invalid(byte, "in string literal")),
                byte => bytes.push(byte),
            }
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text.into_bytes().into(),
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned().into_bytes().into(),
        })
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        bytes.push(match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut number = self.hexadecimal()?;
                if (0xd800..=0xdbff).contains(&number) && self.text.get(self.at..self.at + 2) == Some(b"\\u")
                {
                    let before = self.at;
                    self.at += 2;
                    let low = self.hexadecimal()?;
                    if (0xdc00..=0xdfff).contains(&low) {
                        number = 0x1_0000 + ((number & 0x3ff) << 10 | low & 0x3ff);
                    } else {
                        self.at = before;
                    }
                }
                let character = char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            byte => return Err(invalid(byte, "in string escape code")),
        });
        Ok(())
    }

    fn hexadecimal(&mut self) -> Result<u32, String> {
        let mut number = 0;
        for _ in 0..4 {
            let byte = self.next()?;
            let digit = char::from(byte).to_digit(16);
            number =
                number << 4 | digit.ok_or_else(|| invalid(byte, r"in \u hexadecimal character escape"))?;
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        for (text, what) in [
            ("", "unexpected end of JSON input"),
            ("\r", "unexpected end of JSON input"),
            ("{\"execute\":\"ping\"", "unexpected end of JSON input"),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{}{", "invalid character '{' after top-level value"),
            ("{1", "invalid character '1' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 \"", "invalid character '\"' after object key:value pair"),
            ("[1 2", "invalid character '2' after array element"),
            ("\"\t\"", "invalid character '\\t' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u00g0\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("01", "invalid character '1' after top-level value"),
            ("trve", "invalid character 'v' in literal true (expecting 'u')"),
            ("'", "invalid character '\\'' looking for beginning of value"),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(what.to_owned()), "{text:?}");
        }
        assert_eq!(parse(b"\xff"), Err("invalid character 'ÿ' looking for beginning of value".to_owned()));
        assert_eq!(parse(&b"[".repeat(1025)), Err("exceeded max depth".to_owned()));
        assert!(parse(b"1e999").is_err());
    }

    #[test]
    fn what_is_not_text_becomes_replacement_characters() {
        let text =
            |json: &[u8]| parse(json).map(|value| String::from_utf8(value.text().unwrap().to_vec()).unwrap());
        assert_eq!(text(b"\"a\xffb\"").unwrap(), "a\u{fffd}b");
        assert_eq!(text(br#""\ud83d\ude00\ud83dx\u0000""#).unwrap(), "😀\u{fffd}x\0");
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_and_nothing_else(text in "[\\[\\]{}:, \"a0-9.eE+tru\\\\-]{0,12}") {
            let ours = parse(text.as_bytes());
            let theirs: Result<serde_json::Value, _> = serde_json::from_str(&text);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
        }
    }
}
