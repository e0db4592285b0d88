//! Tokens become values while they come in (`qobject/json-parser.c`).
//!
//! Runs in the frontend on what the host sent. QEMU parses when all tokens of a value are there; here the value
//! grows with them, and the first error is kept until then. The outcome is the same, without the tokens' memory.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::value::{Member, Value};

/// From this many members on, names are found by hash: an object of many must not cost their square.
const SCANNED: usize = 16;

/// A piece of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    OpenObject,
    CloseObject,
    OpenList,
    CloseList,
    Comma,
    Colon,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expect {
    #[default]
    Value,
    /// The first of a list or object: its end may come instead.
    FirstOrEnd,
    Colon,
    Separator,
}

enum Frame {
    List(Vec<Value>),
    Object { members: Vec<Member>, key: Option<Box<[u8]>>, seen: HashSet<u64> },
}

/// A value under construction.
#[derive(Default)]
pub(super) struct Builder {
    stack: Vec<Frame>,
    expect: Expect,
    outcome: Option<Result<Value, Vec<u8>>>,
    hashes: RandomState,
}

impl Builder {
    /// Whether tokens mean nothing any more, because one before them was wrong.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }

    /// Ends the value: what has become of it, or its first error.
    pub(super) fn finish(&mut self) -> Result<Value, Vec<u8>> {
        let outcome = self.outcome.take();
        self.reset();
        // The reader ends a value when its brackets say so; then it is whole, or an error came before.
        outcome.unwrap_or_else(|| Err(b"premature EOI".to_vec()))
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        self.stack.clear();
        self.expect = Expect::Value;
        self.outcome = None;
    }

    /// Takes punctuation.
    pub(super) fn mark(&mut self, mark: Mark) {
        if self.outcome.is_some() {
            return;
        }
        match (self.expect, mark) {
            (Expect::FirstOrEnd, Mark::CloseList | Mark::CloseObject) if self.closes(mark) => self.close(),
            (Expect::Value | Expect::FirstOrEnd, Mark::OpenList) => self.open(Frame::List(Vec::new())),
            (Expect::Value | Expect::FirstOrEnd, Mark::OpenObject) => {
                self.open(Frame::Object { members: Vec::new(), key: None, seen: HashSet::new() });
            }
            (Expect::Value | Expect::FirstOrEnd, _) => self.fail(b"expecting value"),
            (Expect::Colon, Mark::Colon) => self.expect = Expect::Value,
            (Expect::Colon, _) => self.fail(b"missing : in object pair"),
            (Expect::Separator, Mark::Comma) => self.expect = Expect::Value,
            (Expect::Separator, mark) if self.closes(mark) => self.close(),
            (Expect::Separator, _) => self.fail(self.missing_separator()),
        }
    }

    /// Takes a literal.
    pub(super) fn literal(&mut self, value: Result<Value, Vec<u8>>) {
        if self.outcome.is_some() {
            return;
        }
        match (self.expect, value) {
            (Expect::Value | Expect::FirstOrEnd, Ok(value)) => self.complete(value),
            (Expect::Value | Expect::FirstOrEnd, Err(what)) => self.fail(&what),
            (Expect::Colon, _) => self.fail(b"missing : in object pair"),
            (Expect::Separator, _) => self.fail(self.missing_separator()),
        }
    }

    fn missing_separator(&self) -> &'static [u8] {
        match self.stack.last() {
            Some(Frame::List(_)) => b"expected separator in list",
            _ => b"expected separator in dict",
        }
    }

    fn fail(&mut self, what: &[u8]) {
        self.stack.clear();
        self.outcome = Some(Err(what.to_vec()));
    }

    fn open(&mut self, frame: Frame) {
        self.stack.push(frame);
        self.expect = Expect::FirstOrEnd;
    }

    fn closes(&self, mark: Mark) -> bool {
        matches!(
            (self.stack.last(), mark),
            (Some(Frame::List(_)), Mark::CloseList) | (Some(Frame::Object { .. }), Mark::CloseObject)
        )
    }

    fn close(&mut self) {
        match self.stack.pop() {
            Some(Frame::List(items)) => self.complete(Value::List(items.into())),
            Some(Frame::Object { members, .. }) => self.complete(Value::Object(members.into())),
            None => {}
        }
    }

    /// A value is whole: it belongs to what is open, or is the outcome.
    fn complete(&mut self, value: Value) {
        self.expect = Expect::Separator;
        match self.stack.last_mut() {
            None => self.outcome = Some(Ok(value)),
            Some(Frame::List(items)) => items.push(value),
            Some(Frame::Object { members, key, seen }) => match (key.take(), value) {
                (None, Value::Text(name)) => {
                    *key = Some(name);
                    self.expect = Expect::Colon;
                }
                (None, _) => self.fail(b"key is not a string in object"),
                (Some(name), value) => {
                    if stands_already(members, seen, &self.hashes, &name) {
                        self.fail(b"duplicate key");
                    } else {
                        // Most objects have one member or two, and end up in exactly the memory they need.
                        if members.len() < 2 {
                            members.reserve_exact(1);
                        }
                        members.push(Member { name, value });
                    }
                }
            },
        }
    }
}

fn stands_already(members: &[Member], seen: &mut HashSet<u64>, hashes: &RandomState, name: &[u8]) -> bool {
    let compare = || members.iter().any(|member| *member.name == *name);
    if members.len() < SCANNED {
        return compare();
    }
    if seen.is_empty() {
        seen.extend(members.iter().map(|member| hashes.hash_one(&*member.name)));
    }
    !seen.insert(hashes.hash_one(name)) && compare()
}

#[cfg(test)]
mod tests {
    use crate::qga::{Event, Reader};

    fn outcome(text: &str) -> String {
        match Reader::default().read(text.as_bytes()).1 {
            Some(Event::Value(value, _)) => format!("{value:?}"),
            Some(Event::Error(what)) => String::from_utf8(what).unwrap(),
            None => "nothing".to_owned(),
        }
    }

    #[test]
    fn the_first_error_of_a_value_is_reported_when_the_value_ends() {
        assert_eq!(outcome(r#"{"a":1 "b":2}"#), "JSON parse error, expected separator in dict");
        assert_eq!(outcome(r#"{"a":1 "b":2"#), "nothing");
        assert_eq!(outcome(r#"{[1 2]:3}"#), "JSON parse error, expected separator in list");
        assert_eq!(outcome(r#"{[1,2]:3}"#), "JSON parse error, key is not a string in object");
        assert_eq!(outcome(r#"{"a":1,"a":]}"#), "JSON parse error, expecting value");
    }

    #[test]
    fn a_name_that_stands_twice_is_found_among_few_and_among_many() {
        let object = |count: usize, last: usize| {
            let members: Vec<String> = (0..count).chain([last]).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(outcome(&object(3, 1)), "JSON parse error, duplicate key");
        assert_eq!(outcome(&object(100, 99)), "JSON parse error, duplicate key");
        assert_eq!(outcome(&object(100, 3)), "JSON parse error, duplicate key");
        assert!(outcome(&object(100, 100)).starts_with("Object"));
    }
}
