//! Bytes become values, however they are cut (`qobject/json-lexer.c`, `json-streamer.c`).
//!
//! Runs in the frontend on what the host sent. Memory is bounded: at most [`TOKEN_BYTES`] of text in one value and
//! as much again in the token that is being read, at most [`TOKENS`] tokens, at most [`NESTING`] deep.

use super::grammar::{Builder, Mark};
use super::modified_utf8;
use crate::scan;
use crate::value::{self, Value};

/// Bytes of all tokens of one value, and of one token (qemu: `MAX_TOKEN_SIZE`).
pub const TOKEN_BYTES: usize = 64 << 20;
/// Tokens of one value (qemu: `MAX_TOKEN_COUNT`).
pub const TOKENS: usize = 2 << 20;
/// Open objects and lists (qemu: `MAX_NESTING`).
pub const NESTING: i64 = 1024;
/// How much of an offending lexeme an error shows. QEMU shows all of it, which can be 64 MiB, six times that escaped.
const SHOWN: usize = 1024;
/// A token buffer larger than this is not kept for the next token.
const KEPT: usize = 16 * 1024;

/// What a reader has found.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A whole value, and the bytes of its tokens.
    Value(Value, usize),
    /// An error, to be answered with one line of this text.
    Error(Vec<u8>),
}

/// Where in a token the lexer is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// After an error: bytes are dropped until one that could begin something.
    Recovery,
    Text {
        quote: u8,
    },
    Escape {
        quote: u8,
    },
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    Keyword,
}

/// Reads a stream of values.
#[derive(Default)]
pub struct Reader {
    state: State,
    /// The token so far, without its opening quote.
    token: Vec<u8>,
    /// The token is a string without escapes and beyond ASCII.
    plain: bool,
    builder: Builder,
    braces: i64,
    brackets: i64,
    tokens: usize,
    bytes: usize,
}

impl Reader {
    /// Reads on until something is found or the bytes end; returns how many were read.
    pub fn read(&mut self, input: &[u8]) -> (usize, Option<Event>) {
        let mut rest = input;
        while let Some(&byte) = rest.first() {
            let (used, event) = match self.state {
                State::Text { quote } => self.text(rest, quote),
                _ => self.step(byte),
            };
            rest = rest.get(used..).unwrap_or_default();
            if event.is_some() {
                return (input.len() - rest.len(), event);
            }
        }
        (input.len(), None)
    }

    /// Forgets what was begun: another client begins.
    pub fn reset(&mut self) {
        *self = Reader::default();
    }

    /// Reads on inside of a string: a run of bytes at a time.
    fn text(&mut self, input: &[u8], quote: u8) -> (usize, Option<Event>) {
        let (run, beyond_ascii) = scan::string_run(input, quote);
        // The opening quote counts. One byte over the limit is taken, as by QEMU, and then the token is too large.
        let room = TOKEN_BYTES.saturating_sub(self.token.len());
        let run = run.min(room);
        self.token.extend_from_slice(input.get(..run).unwrap_or_default());
        self.plain &= !beyond_ascii;
        if run == room {
            return (run, Some(self.token_too_large()));
        }
        let Some(&byte) = input.get(run) else { return (run, None) };
        let event = if byte == quote {
            self.string(quote)
        } else if byte == b'\\' {
            self.token.push(byte);
            self.plain = false;
            self.state = State::Escape { quote };
            (self.token.len() >= TOKEN_BYTES).then(|| self.token_too_large())
        } else {
            Some(self.stray(byte))
        };
        (run + 1, event)
    }

    /// Reads one byte outside of a string, or none of it if it only ends the token before it.
    fn step(&mut self, byte: u8) -> (usize, Option<Event>) {
        let next = match (self.state, byte) {
            (State::Start, _) => return self.start(byte),
            (State::Recovery, b'\t') => State::Recovery,
            (State::Recovery, 0..0x20 | b'[' | b']' | b'{' | b'}' | b':' | b',' | 0xfe | 0xff) => {
                self.state = State::Start;
                return (0, None);
            }
            (State::Recovery, _) => State::Recovery,
            (State::Escape { quote }, 0x20..=0xfd) => {
                self.plain = false;
                State::Text { quote }
            }
            (State::Sign, b'0') => State::Zero,
            (State::Sign, b'1'..=b'9') | (State::Digits, b'0'..=b'9') => State::Digits,
            (State::Zero | State::Digits, b'.') => State::Point,
            (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Digits | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::ExponentSign,
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => {
                State::ExponentDigits
            }
            (State::Keyword, b'a'..=b'z') => State::Keyword,
            (State::Zero, b'0'..=b'9') => return (1, Some(self.stray(byte))),
            (State::Zero | State::Digits | State::Fraction | State::ExponentDigits, _) => {
                return (0, self.literal(number));
            }
            (State::Keyword, _) => return (0, self.literal(keyword)),
            _ => return (1, Some(self.stray(byte))),
        };
        self.state = next;
        if next == State::Recovery {
            return (1, None);
        }
        self.token.push(byte);
        let too_large = self.token_bytes() > TOKEN_BYTES;
        (1, too_large.then(|| self.token_too_large()))
    }

    /// Reads the first byte of a token.
    fn start(&mut self, byte: u8) -> (usize, Option<Event>) {
        self.state = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return (1, None),
            b'{' => return (1, self.mark(Mark::OpenObject)),
            b'}' => return (1, self.mark(Mark::CloseObject)),
            b'[' => return (1, self.mark(Mark::OpenList)),
            b']' => return (1, self.mark(Mark::CloseList)),
            b',' => return (1, self.mark(Mark::Comma)),
            b':' => return (1, self.mark(Mark::Colon)),
            b'"' | b'\'' => {
                self.plain = true;
                self.state = State::Text { quote: byte };
                return (1, None);
            }
            b'-' => State::Sign,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b'a'..=b'z' => State::Keyword,
            _ => return (1, Some(self.stray(byte))),
        };
        self.token.push(byte);
        (1, None)
    }

    /// The length of the token so far, as QEMU counts it: with its opening quote.
    fn token_bytes(&self) -> usize {
        let quote = matches!(self.state, State::Text { .. } | State::Escape { .. });
        self.token.len() + usize::from(quote)
    }

    fn mark(&mut self, mark: Mark) -> Option<Event> {
        match mark {
            Mark::OpenObject => self.braces += 1,
            Mark::CloseObject => self.braces -= 1,
            Mark::OpenList => self.brackets += 1,
            Mark::CloseList => self.brackets -= 1,
            Mark::Comma | Mark::Colon => {}
        }
        if let Some(error) = self.count(1) {
            return Some(error);
        }
        self.builder.mark(mark);
        self.end_of_token()
    }

    fn string(&mut self, quote: u8) -> Option<Event> {
        if let Some(error) = self.count(self.token.len() + 2) {
            return Some(error);
        }
        if !self.builder.has_failed() {
            let value = if self.plain {
                Ok(self.take_token())
            } else {
                modified_utf8::unescape(&self.token, quote).map(Vec::into_boxed_slice)
            };
            self.builder.literal(value.map(Value::Text));
        }
        self.end_of_token()
    }

    fn literal(&mut self, read: impl FnOnce(&[u8]) -> Result<Value, Vec<u8>>) -> Option<Event> {
        if let Some(error) = self.count(self.token.len()) {
            return Some(error);
        }
        if !self.builder.has_failed() {
            self.builder.literal(read(&self.token));
        }
        self.end_of_token()
    }

    fn take_token(&mut self) -> Box<[u8]> {
        if self.token.len() <= KEPT {
            self.token.as_slice().into()
        } else {
            std::mem::take(&mut self.token).into_boxed_slice()
        }
    }

    /// Counts a token of `length` bytes in; an error if the value has grown too large with it.
    fn count(&mut self, length: usize) -> Option<Event> {
        let what = if self.bytes + length + 1 > TOKEN_BYTES {
            "JSON token size limit exceeded"
        } else if self.tokens + 1 > TOKENS {
            "JSON token count limit exceeded"
        } else if self.braces + self.brackets > NESTING {
            "JSON nesting depth limit exceeded"
        } else {
            self.bytes += length;
            self.tokens += 1;
            return None;
        };
        // Reading goes on behind the token, with nothing skipped.
        self.forget(State::Start);
        Some(Event::Error(what.into()))
    }

    /// A token has been taken; the value ends if its brackets say so.
    fn end_of_token(&mut self) -> Option<Event> {
        self.clear_token();
        self.state = State::Start;
        if (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        let bytes = self.bytes;
        let outcome = self.builder.finish();
        self.forget(State::Start);
        Some(match outcome {
            Ok(value) => Event::Value(value, bytes),
            Err(what) => Event::Error([b"JSON parse error, ", &*what].concat()),
        })
    }

    fn token_too_large(&mut self) -> Event {
        self.forget(State::Start);
        Event::Error(b"JSON token size limit exceeded".to_vec())
    }

    /// A byte that nothing may begin or go on with.
    fn stray(&mut self, byte: u8) -> Event {
        let mut lexeme = Vec::new();
        if let State::Text { quote } | State::Escape { quote } = self.state {
            lexeme.push(quote);
        }
        lexeme.extend_from_slice(self.token.get(..SHOWN).unwrap_or(&self.token));
        lexeme.push(byte);
        // A C string ends at NUL.
        let shown = lexeme.split(|&byte| byte == 0).next().unwrap_or_default();
        let text = [b"JSON parse error, stray '", shown, b"'"].concat();
        self.forget(State::Recovery);
        Event::Error(text)
    }

    fn forget(&mut self, state: State) {
        self.state = state;
        self.clear_token();
        self.builder.reset();
        self.braces = 0;
        self.brackets = 0;
        self.tokens = 0;
        self.bytes = 0;
    }

    fn clear_token(&mut self) {
        self.token.clear();
        self.token.shrink_to(KEPT);
    }
}

fn number(token: &[u8]) -> Result<Value, Vec<u8>> {
    let number = std::str::from_utf8(token).ok().and_then(value::number);
    // QEMU makes it an infinity, which it then echoes as `inf`: no JSON.
    number.ok_or_else(|| b"number out of range".to_vec())
}

fn keyword(token: &[u8]) -> Result<Value, Vec<u8>> {
    match token {
        b"true" => Ok(Value::Bool(true)),
        b"false" => Ok(Value::Bool(false)),
        b"null" => Ok(Value::Null),
        _ => {
            let shown = token.get(..SHOWN).unwrap_or(token);
            Err([b"invalid keyword '", shown, b"'"].concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything found in `input`, fed in pieces that end at `cuts`.
    fn events(input: &[u8], cuts: &[usize]) -> Vec<Event> {
        let mut reader = Reader::default();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        ends.extend([0, input.len()]);
        ends.sort_unstable();
        let mut found = Vec::new();
        for piece in ends.windows(2) {
            let mut rest = &input[piece[0]..piece[1]];
            while !rest.is_empty() {
                let (used, event) = reader.read(rest);
                assert!(used > 0 || event.is_some());
                rest = &rest[used..];
                found.extend(event);
            }
        }
        found
    }

    fn texts(input: &[u8]) -> Vec<String> {
        let text = |event| match event {
            Event::Value(..) => "value".to_owned(),
            Event::Error(text) => String::from_utf8_lossy(&text).into_owned(),
        };
        events(input, &[]).into_iter().map(text).collect()
    }

    fn jsonish() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            prop_oneof![
                Just("{"),
                Just("}"),
                Just("["),
                Just("]"),
                Just(","),
                Just(":"),
                Just(" "),
                Just("\n")
            ]
            .prop_map(|text: &str| text.as_bytes().to_vec()),
            prop_oneof![
                Just("\"a\""),
                Just("'b'"),
                Just("true"),
                Just("nul"),
                Just("-1"),
                Just("0.5e7"),
                Just("01")
            ]
            .prop_map(|text: &str| text.as_bytes().to_vec()),
            prop_oneof![
                Just("\"\\u00e9\""),
                Just("\"\\ud83d\\ude00\""),
                Just("\"é\""),
                Just("\"\\x\""),
                Just("\"")
            ]
            .prop_map(|text: &str| text.as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 1..4),
        ];
        proptest::collection::vec(token, 0..30).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            input in jsonish(),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            prop_assert_eq!(events(&input, &cuts), events(&input, &[]));
        }

        #[test]
        fn there_is_at_most_one_event_for_each_byte(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            // A byte can end a number and be wrong itself.
            prop_assert!(events(&input, &[]).len() <= 2 * input.len());
        }
    }

    #[test]
    fn a_bad_byte_drops_what_follows_until_something_can_begin() {
        assert_eq!(
            texts(br#"{"execute":"guest-ping" @ , "foo":{"a":1}}"#),
            [
                "JSON parse error, stray '@'",
                "JSON parse error, expecting value",
                "value",
                "JSON parse error, expecting value",
                "value",
                "JSON parse error, expecting value",
            ]
        );
    }

    #[test]
    fn nesting_of_1024_is_read_and_of_1025_refused() {
        assert_eq!(texts(&[&b"[".repeat(1024)[..], &b"]".repeat(1024)].concat()), ["value"]);
        let deeper = texts(&b"[".repeat(1025));
        assert_eq!(deeper, ["JSON nesting depth limit exceeded"]);
    }

    #[test]
    fn the_token_after_two_million_is_refused() {
        // "[" and n numbers with a comma behind each but the last: 2n tokens, then "]".
        let list = |numbers: usize| [b"[0", &b",0".repeat(numbers - 1)[..], b"]"].concat();
        assert_eq!(texts(&list(1_048_575)), ["value"]);
        let many = texts(&list(1_048_576));
        assert_eq!(many.first().unwrap(), "JSON token count limit exceeded");
    }

    #[test]
    fn a_token_of_64_mebibytes_is_refused_inside_of_it() {
        // With both quotes and the one byte that QEMU adds.
        let fits = [b"\"", &b"x".repeat(TOKEN_BYTES - 3)[..], b"\""].concat();
        assert_eq!(texts(&fits), ["value"]);
        let whole = [b"\"", &b"x".repeat(TOKEN_BYTES - 2)[..], b"\" {}"].concat();
        assert_eq!(texts(&whole), ["JSON token size limit exceeded", "value"]);
        let open = [b"\"", &b"x".repeat(TOKEN_BYTES)[..], b" {}"].concat();
        // Read on inside of the string: what follows is new input.
        assert_eq!(texts(&open), ["JSON token size limit exceeded", "value"]);
    }

    #[test]
    fn a_large_string_gives_its_memory_away() {
        let mut reader = Reader::default();
        let text = [b"\"", &b"x".repeat(1 << 20)[..], b"\""].concat();
        assert!(
            matches!(reader.read(&text), (_, Some(Event::Value(Value::Text(text), _))) if text.len() == 1 << 20)
        );
        assert!(reader.token.capacity() <= KEPT);
    }
}
