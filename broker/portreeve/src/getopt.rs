//! GNU `getopt_long(3)`: bundled short options, abbreviated long ones, values attached or not, other arguments skipped.
//!
//! Texts of errors are glibc's (`posix/getopt.c`), because scripts show them. `POSIXLY_CORRECT` is not honoured.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Whether an option has a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    None,
    Required,
    /// Only attached: `-Fvalue`, `--name=value`.
    Optional,
}

/// One option: its letter, which also identifies it, whether that letter may be typed, its long name.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) letter: u8,
    pub(crate) short: bool,
    pub(crate) long: Option<&'static str>,
    pub(crate) value: Value,
}

/// What was found: the letter and the value.
pub(crate) type Found = (u8, Option<OsString>);

/// Reads a command line, without the program's name.
pub(crate) struct Options<'a> {
    specs: &'a [Spec],
    arguments: VecDeque<OsString>,
    /// What is left of an argument with several short options.
    bundle: Vec<u8>,
}

impl<'a> Options<'a> {
    pub(crate) fn new(specs: &'a [Spec], arguments: impl IntoIterator<Item = OsString>) -> Self {
        Options { specs, arguments: arguments.into_iter().collect(), bundle: Vec::new() }
    }

    fn long(&mut self, text: &[u8]) -> Result<Found, String> {
        let mut parts = text.splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next());
        let shown = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let spec = self.named(name).map_err(|possible| {
            if possible.is_empty() {
                return format!("unrecognized option '--{}'", shown(text));
            }
            let names: String = possible.iter().map(|name| format!(" '--{name}'")).collect();
            format!("option '--{}' is ambiguous; possibilities:{names}", shown(text))
        })?;
        let (letter, long) = (spec.letter, spec.long.unwrap_or_default());
        match (spec.value, value) {
            (Value::None, Some(_)) => Err(format!("option '--{long}' doesn't allow an argument")),
            (Value::Required, None) => match self.arguments.pop_front() {
                Some(value) => Ok((letter, Some(value))),
                None => Err(format!("option '--{long}' requires an argument")),
            },
            (_, value) => Ok((letter, value.map(|value| OsStr::from_bytes(value).to_owned()))),
        }
    }

    /// The option called `name`, or beginning like that if all that do mean the same. Else the names that begin so.
    fn named(&self, name: &[u8]) -> Result<&'a Spec, Vec<&'static str>> {
        let is_it = |spec: &&Spec| spec.long.is_some_and(|long| long.as_bytes() == name);
        if let Some(exact) = self.specs.iter().find(is_it) {
            return Ok(exact);
        }
        let begins = |spec: &&Spec| spec.long.is_some_and(|long| long.as_bytes().starts_with(name));
        let possible: Vec<&Spec> = self.specs.iter().filter(begins).collect();
        match possible.split_first() {
            Some((first, others))
                if others.iter().all(|other| other.letter == first.letter && other.value == first.value) =>
            {
                Ok(first)
            }
            _ => Err(possible.iter().filter_map(|spec| spec.long).collect()),
        }
    }

    fn short(&mut self) -> Result<Found, String> {
        let letter = self.bundle.remove(0);
        let Some(spec) = self.specs.iter().find(|spec| spec.short && spec.letter == letter) else {
            return Err(format!("invalid option -- '{}'", String::from_utf8_lossy(&[letter])));
        };
        let attached = |bundle: &mut Vec<u8>| {
            let rest = std::mem::take(bundle);
            (!rest.is_empty()).then(|| OsString::from_vec(rest))
        };
        match spec.value {
            Value::None => Ok((letter, None)),
            Value::Optional => Ok((letter, attached(&mut self.bundle))),
            Value::Required => match attached(&mut self.bundle).or_else(|| self.arguments.pop_front()) {
                Some(value) => Ok((letter, Some(value))),
                None => Err(format!("option requires an argument -- '{}'", char::from(letter))),
            },
        }
    }
}

impl Iterator for Options<'_> {
    type Item = Result<Found, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.bundle.is_empty() {
                return Some(self.short());
            }
            let argument = self.arguments.pop_front()?;
            let bytes = argument.as_bytes();
            if bytes == b"--" {
                return None;
            }
            if let Some(long) = bytes.strip_prefix(b"--") {
                return Some(self.long(long));
            }
            if let Some(bundle) = bytes.strip_prefix(b"-") {
                self.bundle = bundle.to_vec();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[Spec] = &[
        Spec { letter: b'V', short: true, long: Some("version"), value: Value::None },
        Spec { letter: b'v', short: true, long: Some("verbose"), value: Value::None },
        Spec { letter: b'F', short: true, long: Some("fsfreeze-hook"), value: Value::Optional },
        Spec { letter: b'm', short: true, long: Some("method"), value: Value::Required },
        Spec { letter: b'b', short: true, long: Some("block-rpcs"), value: Value::Required },
        Spec { letter: b'b', short: false, long: Some("blacklist"), value: Value::Required },
    ];

    /// Options as `x` or `x=value`, up to the first error.
    fn read(line: &[&str]) -> Result<Vec<String>, String> {
        Options::new(SPECS, line.iter().map(OsString::from))
            .map(|found| {
                found.map(|(letter, value)| match value {
                    Some(value) => format!("{}={}", char::from(letter), value.display()),
                    None => char::from(letter).to_string(),
                })
            })
            .collect()
    }

    fn found(line: &[&str]) -> Vec<String> {
        read(line).unwrap()
    }

    #[test]
    fn short_options_may_be_bundled_and_end_with_a_value() {
        assert_eq!(found(&["-vVmx"]), ["v", "V", "m=x"]);
        assert_eq!(found(&["-vm", "x"]), ["v", "m=x"]);
    }

    #[test]
    fn an_optional_value_is_only_taken_when_it_is_attached() {
        assert_eq!(
            found(&["-F", "/x", "-F/y", "--fsfreeze-hook", "/x", "--fsf=/z"]),
            ["F", "F=/y", "F", "F=/z"]
        );
    }

    #[test]
    fn a_required_value_may_look_like_an_option_or_be_empty() {
        assert_eq!(found(&["-m", "-v", "--method", "--", "--block-rpcs="]), ["m=-v", "m=--", "b="]);
    }

    #[test]
    fn other_arguments_are_skipped_and_two_dashes_end_the_options() {
        assert_eq!(found(&["a", "-v", "-", "b", "--", "-V"]), ["v"]);
    }

    #[test]
    fn an_abbreviation_may_fit_two_names_of_one_option() {
        assert_eq!(found(&["--bl=x"]), ["b=x"]);
    }

    #[test]
    fn errors_have_the_words_of_glibc() {
        let error = |line: &[&str]| read(line).unwrap_err();
        assert_eq!(error(&["-vx"]), "invalid option -- 'x'");
        assert_eq!(error(&["-m"]), "option requires an argument -- 'm'");
        assert_eq!(error(&["--method"]), "option '--method' requires an argument");
        assert_eq!(error(&["--frob=1"]), "unrecognized option '--frob=1'");
        assert_eq!(error(&["--verb=1"]), "option '--verbose' doesn't allow an argument");
        assert_eq!(error(&["--ver"]), "option '--ver' is ambiguous; possibilities: '--version' '--verbose'");
    }
}
