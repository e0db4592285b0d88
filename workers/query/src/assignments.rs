//! The format of os-release(5), which logind's session files share: `NAME=value` with the shell's quoting, one a line.

use std::borrow::Cow;

use crate::root::text;

/// Gives every assignment in `content` to `each`, in order. A line that is none is passed over, alone.
pub(crate) fn each_assignment(content: &[u8], mut each: impl FnMut(&str, String)) {
    for line in content.split(|byte| *byte == b'\n') {
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else { continue };
        let (name, rest) = line.split_at(equals);
        let Ok(name) = std::str::from_utf8(name.trim_ascii()) else { continue };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !name.is_empty() && name.bytes().all(is_name) {
            let value = rest.strip_prefix(b"=").unwrap_or(rest);
            if let Some(value) = unquote(value.trim_ascii()) {
                each(name, text(&value));
            }
        }
    }
}

/// What the shell would assign: quotes removed, escapes resolved, up to the first blank or `;` outside of quotes.
/// None if a quote does not end.
fn unquote(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let special = |byte: &u8| matches!(byte, b'"' | b'\'' | b'\\' | b';' | b' ' | b'\t');
    let Some(plain) = value.iter().position(special) else { return Some(Cow::Borrowed(value)) };
    // The usual case: quotes around everything and nothing special within.
    if let Some((quote @ (b'"' | b'\''), rest)) = value.split_first()
        && let Some((last, inner)) = rest.split_last()
        && last == quote
        && !inner.iter().any(|byte| byte == quote || *byte == b'\\')
    {
        return Some(Cow::Borrowed(inner));
    }
    let mut out = value.get(..plain).unwrap_or_default().to_vec();
    let mut bytes = value.iter().copied().skip(plain);
    while let Some(byte) = bytes.next() {
        match byte {
            b';' | b' ' | b'\t' => break,
            b'\\' => out.push(bytes.next()?),
            b'\'' => loop {
                match bytes.next()? {
                    b'\'' => break,
                    byte => out.push(byte),
                }
            },
            b'"' => loop {
                match bytes.next()? {
                    b'"' => break,
                    b'\\' => match bytes.next()? {
                        escaped @ (b'$' | b'\'' | b'"' | b'\\' | b'`') => out.push(escaped),
                        other => out.extend([b'\\', other]),
                    },
                    byte => out.push(byte),
                }
            },
            byte => out.push(byte),
        }
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignments(content: &[u8]) -> Vec<(String, String)> {
        let mut all = Vec::new();
        each_assignment(content, |name, value| all.push((name.to_owned(), value)));
        all
    }

    fn value(line: &str) -> Option<String> {
        assignments(line.as_bytes()).pop().map(|(_, value)| value)
    }

    /// os-release(5): "Variable assignment values must be enclosed in double or single quotes if they include spaces,
    /// semicolons or other special characters outside of A-Z, a-z, 0-9."
    #[test]
    fn values_are_unquoted_as_by_the_shell() {
        assert_eq!(value("A=debian").as_deref(), Some("debian"));
        assert_eq!(
            value("A=\"Debian GNU/Linux 12 (bookworm)\"").as_deref(),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
        assert_eq!(value("A='A B'").as_deref(), Some("A B"));
        assert_eq!(value("A='a\\n$b'").as_deref(), Some("a\\n$b"));
        assert_eq!(value(r#"A="x \$ \' \" \\ \` \n""#).as_deref(), Some(r#"x $ ' " \ ` \n"#));
        assert_eq!(value("A=one two").as_deref(), Some("one"));
        assert_eq!(value("A=one;two").as_deref(), Some("one"));
        assert_eq!(value(r"A=one\ two").as_deref(), Some("one two"));
        assert_eq!(value("A=a\"b c\"'d e'f").as_deref(), Some("ab cd ef"));
        assert_eq!(value("A=").as_deref(), Some(""));
        assert_eq!(value("A=\"\"").as_deref(), Some(""));
        assert_eq!(value("  A  =  spaced  ").as_deref(), Some("spaced"));
        assert_eq!(value("A=\"\u{e4}\"").as_deref(), Some("\u{e4}"));
    }

    #[test]
    fn a_bad_line_loses_only_itself() {
        let content = b"A=1\nB='no end\nnonsense\n[section]\n# C=comment\nD=\xff\n=x\nE-F=2\nG=\"x\\\nH=3";
        let expected = [("A", "1"), ("D", "\u{fffd}"), ("H", "3")];
        assert_eq!(assignments(content), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
