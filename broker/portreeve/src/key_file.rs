//! GLib's key files, as qemu-ga reads its configuration and its state (`glib/gkeyfile.c`).
//!
//! Groups in brackets, `key=value` lines, `#` comments; `\s \n \t \r \\` escapes in values. A later value of a key replaces
//! an earlier one. Error texts are GLib's; its curly quotes are written as they are.

/// The content of a key file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyFile {
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    group: Vec<u8>,
    key: Vec<u8>,
    /// As written.
    value: Vec<u8>,
    line: u32,
}

/// Largest file read, in bytes.
pub(crate) const LIMIT: usize = 1024 * 1024;

impl KeyFile {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// GLib's text about the first line that is neither group, key nor comment.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut group: Option<Vec<u8>> = None;
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii_start();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Some(name) = group_name(line) {
                group = Some(name.to_vec());
            } else if let Some((key, value)) = pair(line) {
                let group = group.clone().ok_or("Key file does not start with a group")?;
                entries.push(Entry { group, key: key.to_vec(), value: value.to_vec(), line: number });
            } else {
                return Err(format!(
                    "Key file contains line “{}” which is not a key-value pair, group, or comment",
                    String::from_utf8_lossy(line)
                ));
            }
        }
        Ok(KeyFile { entries })
    }

    fn raw(&self, group: &str, key: &str) -> Option<(&[u8], u32)> {
        let is_it = |entry: &&Entry| entry.group == group.as_bytes() && entry.key == key.as_bytes();
        self.entries.iter().rev().find(is_it).map(|entry| (entry.value.as_slice(), entry.line))
    }

    /// A text, and the line it stands in.
    ///
    /// # Errors
    /// GLib's text for what is not UTF-8 or has an escape that there is not.
    pub(crate) fn text(&self, group: &str, key: &str) -> Result<Option<(String, u32)>, String> {
        let Some((raw, line)) = self.raw(group, key) else { return Ok(None) };
        let value = std::str::from_utf8(raw).ok().and_then(unescape);
        let value = value.ok_or_else(|| uninterpretable(key))?;
        Ok(Some((value, line)))
    }

    /// A boolean: `true`, `false`, `1` or `0`.
    ///
    /// # Errors
    /// GLib's text for anything else.
    pub(crate) fn boolean(&self, group: &str, key: &str) -> Result<Option<bool>, String> {
        match self.raw(group, key).map(|(raw, _)| raw.trim_ascii_end()) {
            None => Ok(None),
            Some(b"true" | b"1") => Ok(Some(true)),
            Some(b"false" | b"0") => Ok(Some(false)),
            Some(_) => Err(uninterpretable(key)),
        }
    }
}

fn uninterpretable(key: &str) -> String {
    format!("Key file contains key “{key}” which has a value that cannot be interpreted.")
}

/// `[name]`: no brackets or control characters inside.
fn group_name(line: &[u8]) -> Option<&[u8]> {
    let name = line.trim_ascii_end().strip_prefix(b"[")?.strip_suffix(b"]")?;
    let good = |byte: &u8| !matches!(byte, b'[' | b']') && !byte.is_ascii_control();
    (!name.is_empty() && name.iter().all(good)).then_some(name)
}

/// `key=value`: spaces around `=` do not count, those at the end of the value do.
fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = line.splitn(2, |byte| *byte == b'=');
    let (key, value) = (parts.next()?.trim_ascii_end(), parts.next()?);
    (!key.is_empty()).then_some((key, value.trim_ascii_start()))
}

fn unescape(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        text.push(match letters.next()? {
            's' => ' ',
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '\\' => '\\',
            _ => return None,
        });
    }
    Some(text)
}

/// A text as GLib writes it into a key file: what would be lost or end the line is escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut leading = true;
    for letter in text.chars() {
        match letter {
            ' ' if leading => escaped.push_str("\\s"),
            '\t' if leading => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\\' => escaped.push_str("\\\\"),
            other => escaped.push(other),
        }
        leading &= matches!(letter, ' ' | '\t');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> KeyFile {
        KeyFile::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn spaces_around_the_sign_are_dropped_and_those_at_the_end_stay() {
        let file = parse("# comment\n\n[general]\n  path \t=  /a b  \n");
        assert_eq!(file.text("general", "path"), Ok(Some(("/a b  ".to_owned(), 4))));
    }

    #[test]
    fn the_last_value_of_a_key_counts_and_groups_are_joined() {
        let file = parse("[general]\nmethod=a\n[other]\nmethod=b\n[general]\nmethod=c\n");
        assert_eq!(file.text("general", "method"), Ok(Some(("c".to_owned(), 6))));
        assert_eq!(file.text("other", "method"), Ok(Some(("b".to_owned(), 4))));
        assert_eq!(file.text("general", "path"), Ok(None));
    }

    #[test]
    fn escapes_are_read_and_unknown_ones_are_an_error() {
        let file = parse("[g]\na=\\sx\\ty\\\\z\\n\nb=\\x\nc=end\\\n");
        assert_eq!(file.text("g", "a").unwrap().unwrap().0, " x\ty\\z\n");
        let error = "Key file contains key “b” which has a value that cannot be interpreted.";
        assert_eq!(file.text("g", "b"), Err(error.to_owned()));
        assert!(file.text("g", "c").is_err());
    }

    #[test]
    fn a_boolean_is_one_of_four_words() {
        let file = parse("[g]\na=true\nb=1  \nc=false\nd=0\ne=yes\nf=TRUE\n");
        let read = |key| file.boolean("g", key);
        assert_eq!(
            (read("a"), read("b"), read("c"), read("d")),
            (Ok(Some(true)), Ok(Some(true)), Ok(Some(false)), Ok(Some(false)))
        );
        assert!(read("e").is_err() && read("f").is_err());
        assert_eq!(read("missing"), Ok(None));
    }

    #[test]
    fn what_is_no_key_file_is_refused_in_the_words_of_glib() {
        let error = |text: &str| KeyFile::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error("a=b\n"), "Key file does not start with a group");
        let line = "Key file contains line “rubbish” which is not a key-value pair, group, or comment";
        assert_eq!(error("[general]\nrubbish\n"), line);
        assert!(error("[gen]eral]\n").contains("“[gen]eral]”"));
        assert!(error("[g]\n=1\n").contains("“=1”"));
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["plain", "  two spaces", "tab\tinside", "back\\slash", "line\nend", "\t \tx"] {
            let file = parse(&format!("[g]\nk={}\n", escape(text)));
            assert_eq!(file.text("g", "k").unwrap().unwrap().0, text);
        }
    }
}
