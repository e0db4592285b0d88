//! Text as QEMU keeps it: UTF-8, with NUL as C0 80 (`util/unicode.c`).
//!
//! Runs in the frontend on what the host sent, and on what goes back to it.

/// The first character of `bytes`, and how many bytes it takes; no character if the sequence is malformed.
///
/// Nothing comes back for no bytes. A malformed sequence ends before the byte that does not continue it.
pub(super) fn first(bytes: &[u8]) -> Option<(Option<u32>, usize)> {
    let &lead = bytes.first()?;
    let (length, low_bits) = match lead {
        0x00 => return Some((None, 1)),
        0x01..=0x7f => return Some((Some(u32::from(lead)), 1)),
        0x80..=0xbf | 0xfe | 0xff => return Some((None, 1)),
        0xc0..=0xdf => (2, 0x1f),
        0xe0..=0xef => (3, 0x0f),
        0xf0..=0xf7 => (4, 0x07),
        0xf8..=0xfb => (5, 0x03),
        0xfc..=0xfd => (6, 0x01),
    };
    let smallest: u32 = match length {
        2 => 0x80,
        3 => 0x800,
        4 => 0x1_0000,
        5 => 0x20_0000,
        _ => 0x400_0000,
    };
    let mut character = u32::from(lead & low_bits);
    for position in 1..length {
        match bytes.get(position) {
            Some(&byte) if byte & 0xc0 == 0x80 => character = character << 6 | u32::from(byte & 0x3f),
            _ => return Some((None, position)),
        }
    }
    let shortest = character >= smallest || (character == 0 && length == 2);
    Some((Some(character).filter(|&character| shortest && is_character(character)), length))
}

/// Neither a surrogate nor a noncharacter nor out of range.
fn is_character(number: u32) -> bool {
    let noncharacter = (0xfdd0..=0xfdef).contains(&number) || number & 0xfffe == 0xfffe;
    number <= 0x10_ffff && !noncharacter && !(0xd800..=0xdfff).contains(&number)
}

/// Appends a character; false if the number is none.
pub(super) fn push(number: u32, text: &mut Vec<u8>) -> bool {
    if number == 0 {
        text.extend_from_slice(b"\xc0\x80");
        return true;
    }
    let Some(character) = char::from_u32(number).filter(|_| is_character(number)) else { return false };
    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    true
}

/// Reads the inside of a JSON string: escapes and UTF-8.
///
/// # Errors
/// The text of qemu-ga's error, without its prefix.
pub(super) fn unescape(token: &[u8], quote: u8) -> Result<Vec<u8>, Vec<u8>> {
    let mut text = Vec::with_capacity(token.len());
    let mut rest = token;
    loop {
        let run = crate::scan::find(rest, |byte| (byte == b'\\') | (byte >= 0x80)).unwrap_or(rest.len());
        let (plain, behind) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        text.extend_from_slice(plain);
        rest = match behind.first() {
            None => return Ok(text),
            Some(b'\\') => escape(behind, quote, &mut text)?,
            Some(_) => match first(behind) {
                Some((Some(character), length)) => {
                    push(character, &mut text);
                    behind.get(length..).unwrap_or_default()
                }
                _ => return Err(b"invalid UTF-8 sequence in string".to_vec()),
            },
        };
    }
}

/// Reads one escape at the beginning of `bytes`; returns what is behind it.
fn escape<'a>(bytes: &'a [u8], quote: u8, text: &mut Vec<u8>) -> Result<&'a [u8], Vec<u8>> {
    let simple = match bytes.get(1) {
        Some(&byte @ (b'"' | b'\'' | b'\\' | b'/')) => byte,
        Some(b'b') => 8,
        Some(b'f') => 12,
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'u') => return unicode_escape(bytes, quote, text),
        _ => return Err(b"invalid escape sequence in string".to_vec()),
    };
    text.push(simple);
    Ok(bytes.get(2..).unwrap_or_default())
}

fn unicode_escape<'a>(bytes: &'a [u8], quote: u8, text: &mut Vec<u8>) -> Result<&'a [u8], Vec<u8>> {
    let mut length = 6;
    let mut number = hexadecimal(bytes.get(2..6));
    if let Some(high @ 0xd800..=0xdbff) = number
        && bytes.get(6..8) == Some(b"\\u")
    {
        number = match hexadecimal(bytes.get(8..12)) {
            Some(low @ 0xdc00..=0xdfff) => {
                length = 12;
                Some(0x1_0000 + ((high & 0x3ff) << 10 | low & 0x3ff))
            }
            _ => None,
        };
    }
    if number.is_some_and(|number| push(number, text)) {
        return Ok(bytes.get(length..).unwrap_or_default());
    }
    // qemu-ga shows four characters behind the `u` whatever they are, and so, at the end, the closing quote.
    let mut message = match bytes.get(..length) {
        Some(shown) => shown.to_vec(),
        None => [bytes, &[quote]].concat(),
    };
    message.extend_from_slice(b" is not a valid Unicode character");
    Err(message)
}

fn hexadecimal(digits: Option<&[u8]>) -> Option<u32> {
    digits?.iter().try_fold(0, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

/// Appends `bytes` as a JSON string: ASCII only, upper-case escapes, a malformed sequence as U+FFFD.
pub(super) fn quote(bytes: &[u8], output: &mut Vec<u8>) {
    output.push(b'"');
    let mut rest = bytes;
    loop {
        let special = |byte: u8| !(0x20..0x7f).contains(&byte) | (byte == b'"') | (byte == b'\\');
        let run = crate::scan::find(rest, special).unwrap_or(rest.len());
        let (plain, behind) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        output.extend_from_slice(plain);
        let Some((character, length)) = first(behind) else { break };
        // A NUL comes from our own texts only: QEMU's end there.
        let character = character.unwrap_or(if behind.first() == Some(&0) { 0 } else { 0xfffd });
        escaped(character, output);
        rest = behind.get(length..).unwrap_or_default();
    }
    output.push(b'"');
}

/// Appends one character in the form that is always possible.
pub(super) fn escaped(character: u32, output: &mut Vec<u8>) {
    let short = match character {
        0x22 => b"\\\"",
        0x5c => b"\\\\",
        0x08 => b"\\b",
        0x0c => b"\\f",
        0x0a => b"\\n",
        0x0d => b"\\r",
        0x09 => b"\\t",
        0x1_0000.. => {
            let offset = character - 0x1_0000;
            unit(0xd800 | offset >> 10, output);
            return unit(0xdc00 | offset & 0x3ff, output);
        }
        _ => return unit(character, output),
    };
    output.extend_from_slice(short);
}

fn unit(unit: u32, output: &mut Vec<u8>) {
    let digit = |shift: u32| b"0123456789ABCDEF".get((unit >> shift & 15) as usize).copied().unwrap_or(b'0');
    output.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(bytes: &[u8]) -> String {
        let mut output = Vec::new();
        quote(bytes, &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn text_leaves_as_ascii_with_upper_case_escapes() {
        assert_eq!(quoted("é😀/\u{7f}\n\u{1}\"\\".as_bytes()), r#""\u00E9\uD83D\uDE00/\u007F\n\u0001\"\\""#);
        assert_eq!(quoted(b"\xc0\x80"), r#""\u0000""#);
    }

    /// One U+FFFD for each malformed sequence, not for each byte of it.
    #[test]
    fn a_malformed_sequence_becomes_one_replacement_character() {
        assert_eq!(quoted(b"\xff"), r#""\uFFFD""#);
        assert_eq!(quoted(b"\xe2\x82("), r#""\uFFFD(""#);
        assert_eq!(quoted(b"\xed\xa0\x80"), r#""\uFFFD""#);
        assert_eq!(quoted(b"\xc0\xaf"), r#""\uFFFD""#);
        assert_eq!(quoted(b"\xf8\x88\x80\x80\x80"), r#""\uFFFD""#);
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(unescape(br#"\"\'\\\/\b\f\n\r\t"#, b'"').unwrap(), b"\"'\\/\x08\x0c\n\r\t");
        assert_eq!(unescape(br"\u00e9\uD83D\uDE00", b'"').unwrap(), "é😀".as_bytes());
        assert_eq!(unescape(br"\u0000", b'"').unwrap(), b"\xc0\x80");
    }

    #[test]
    fn a_lone_surrogate_is_named_as_it_was_sent() {
        let error = |token: &[u8]| String::from_utf8(unescape(token, b'"').unwrap_err()).unwrap();
        assert_eq!(error(br"\uD83D"), r"\uD83D is not a valid Unicode character");
        assert_eq!(error(br"\uD83D\u0041"), r"\uD83D is not a valid Unicode character");
        assert_eq!(error(br"\uDE00x"), r"\uDE00 is not a valid Unicode character");
        assert_eq!(error(br"\uffff"), r"\uffff is not a valid Unicode character");
        assert_eq!(error(br"\u1"), "\\u1\" is not a valid Unicode character");
        assert_eq!(error(br"\x41"), "invalid escape sequence in string");
    }
}
