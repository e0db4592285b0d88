//! What others have written, made fit for a terminal: nothing in it moves a cursor, changes a colour or turns the direction of
//! writing, and nothing in it is invisible.

use std::fmt;
use std::io::IsTerminal;

/// What moves cursors, changes colours, turns the direction of writing or cannot be seen: control characters, C1 among them,
/// Unicode's line ends and bidirectional controls (UAX #9), characters without width, and tags (UTS #51).
pub(crate) fn is_harmful(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with `\uXXXX` in place of what is harmful, as JSON has it.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_harmful(letter) {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(letter);
        }
    }
    safe
}

/// The text with U+FFFD in place of what is harmful, lines left as they are.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|letter| if is_harmful(letter) && letter != '\n' { '\u{fffd}' } else { letter })
        .collect()
}

/// At most `most` characters of the text; a cut one ends in `…`.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Colours, on a terminal whose owner has not said no (<https://no-color.org>).
#[derive(Clone, Copy)]
pub(crate) struct Paint {
    on: bool,
}

/// A colour.
#[derive(Clone, Copy)]
pub(crate) enum Colour {
    /// Something was refused or is broken.
    Red,
    /// As it should be.
    Green,
    /// To be looked at.
    Yellow,
    /// Less important.
    Dim,
    /// More important.
    Bold,
}

impl Paint {
    /// For what is written to `out`.
    pub(crate) fn on(out: &impl IsTerminal) -> Self {
        Paint { on: out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// None at all.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Paint { on: false }
    }

    /// The text, which must be escaped already, in a colour.
    pub(crate) fn paint(self, colour: Colour, text: impl fmt::Display) -> String {
        let code = match colour {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Dim => "2",
            Colour::Bold => "1",
        };
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_and_nothing_invisible_gets_through() {
        assert_eq!(
            escaped("a\x1b[2J\u{9b}\u{202e}b\u{200b}\u{e0041}"),
            "a\\u001b[2J\\u009b\\u202eb\\u200b\\udb40\\udc41"
        );
        assert_eq!(harmless("x\x1b[2J\ny"), "x\u{fffd}[2J\ny");
        assert_eq!(escaped("naïve привет 日本 😀"), "naïve привет 日本 😀");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shortened("añb", 3), "añb");
        assert_eq!(shortened("añbc", 3), "añ…");
    }

    #[test]
    fn without_a_terminal_there_are_no_colours() {
        assert_eq!(Paint::off().paint(Colour::Red, "x"), "x");
        assert_eq!(Paint { on: true }.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
