//! The lines of an authorized_keys file: what is listed, added and taken away.
//!
//! Bytes in, bytes out. A key is a whole line here, compared byte by byte and not understood: so does qemu-ga.

use std::collections::HashSet;

use proto::{Failed, Text};

/// Refuses what could not be one line, or would be a comment.
///
/// # Errors
/// In qemu-ga's words.
pub(crate) fn check(keys: &[Text]) -> Result<(), Failed> {
    match keys.iter().find(|key| key.0.starts_with(b"#") || key.0.contains(&b'\n')) {
        Some(key) => Err(Failed::new(format!("invalid OpenSSH public key: '{key}'"))),
        None => Ok(()),
    }
}

/// Keys of a file, the last first, without blanks around them; not empty lines and comments.
pub(crate) fn listed(content: &[u8]) -> Vec<String> {
    content
        .split(|byte| *byte == b'\n')
        .rev()
        .map(trimmed)
        .filter(|line| !matches!(line.first(), None | Some(b'#')))
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect()
}

/// `content` and those of `keys` that are not a line of it, each once. No newline is put behind the last.
pub(crate) fn with(content: &[u8], keys: &[Text]) -> Vec<u8> {
    let mut lines = split(content);
    let mut present: HashSet<&[u8]> = lines.iter().copied().collect();
    lines.extend(keys.iter().map(|key| key.0.as_slice()).filter(|key| present.insert(key)));
    lines.join(&b'\n')
}

/// `content` without lines that equal one of `keys`.
pub(crate) fn without(content: &[u8], keys: &[Text]) -> Vec<u8> {
    let unwanted: HashSet<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
    let mut lines = split(content);
    lines.retain(|line| !unwanted.contains(line));
    lines.join(&b'\n')
}

/// No line at all in an empty file; an empty one behind a newline at the end.
fn split(content: &[u8]) -> Vec<&[u8]> {
    if content.is_empty() { Vec::new() } else { content.split(|byte| *byte == b'\n').collect() }
}

/// Without what `isspace(3)` has in the C locale.
fn trimmed(mut line: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0d);
    while let [first, rest @ ..] = line
        && blank(first)
    {
        line = rest;
    }
    while let [rest @ .., last] = line
        && blank(last)
    {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(keys: &[&str]) -> Vec<Text> {
        keys.iter().map(|key| Text::from(*key)).collect()
    }

    fn added(content: &str, keys: &[&str]) -> String {
        String::from_utf8(with(content.as_bytes(), &texts(keys))).unwrap()
    }

    fn left(content: &str, keys: &[&str]) -> String {
        String::from_utf8(without(content.as_bytes(), &texts(keys))).unwrap()
    }

    #[test]
    fn adding_does_what_qemu_gas_own_test_expects() {
        assert_eq!(added("", &["algo key2 comments"]), "algo key2 comments");
        assert_eq!(
            added("algo key2 comments", &["algo key1 comments", "algo key2 comments"]),
            "algo key2 comments\nalgo key1 comments"
        );
        assert_eq!(added("", &[]), "");
    }

    #[test]
    fn a_newline_at_the_end_becomes_an_empty_line_as_with_qemu_ga() {
        assert_eq!(added("old\n", &["key"]), "old\n\nkey");
        assert_eq!(added("old\n", &["old"]), "old\n");
        // There is an empty line already.
        assert_eq!(added("old\n", &[""]), "old\n");
        assert_eq!(added("old", &[""]), "old\n");
    }

    #[test]
    fn only_whole_lines_are_equal() {
        assert_eq!(added("a b c", &["a b", "a b c ", "a b c"]), "a b c\na b\na b c ");
        assert_eq!(added("", &["k", "k", "k"]), "k");
    }

    #[test]
    fn removing_does_what_qemu_gas_own_test_expects() {
        let file = "algo key1 comments\n# a commented line\nalgo some-key another\nalgo key2 comments\n";
        assert_eq!(left(file, &["not there"]), file);
        assert_eq!(left("k\nk\n# k\n", &["absent"]), "k\nk\n# k\n");
        assert_eq!(
            left(file, &["algo key1 comments", "algo key2 comments"]),
            "# a commented line\nalgo some-key another\n"
        );
        assert_eq!(left("k", &["k"]), "");
    }

    #[test]
    fn keys_are_listed_from_the_last_to_the_first_without_comments() {
        assert_eq!(listed(b"algo a\n# no\n\n \t algo b \x0b\r\n  # no\n"), ["algo b", "algo a"]);
        assert_eq!(listed(b""), Vec::<String>::new());
        assert_eq!(listed(b"\xff\xfe key"), ["\u{fffd}\u{fffd} key"]);
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        assert_eq!(with(b"\xff\x00x", &texts(&["k"])), b"\xff\x00x\nk");
        assert_eq!(without(b"\xff\x00x\nk", &texts(&["k"])), b"\xff\x00x");
    }

    #[test]
    fn what_is_not_one_line_is_refused_in_qemu_gas_words() {
        assert_eq!(check(&texts(&["", "a b", " # b"])), Ok(()));
        let text = |keys: &[&str]| check(&texts(keys)).unwrap_err().text;
        assert_eq!(text(&["a", "#b"]), "invalid OpenSSH public key: '#b'");
        assert_eq!(text(&["a\nb"]), "invalid OpenSSH public key: 'a\nb'");
    }
}
