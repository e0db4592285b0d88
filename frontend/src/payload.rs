//! Base64 text of a request becomes pieces of bytes, one at a time.
//!
//! Runs in the frontend on what the host sent. The text is looked at once as a whole, so that its decoded length
//! is known before the first piece is sent; only a text with `=` inside of it is decoded as a whole.

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurposeConfig;
use proto::limits::PIECE;

use crate::scan;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Engine = base64::engine::simd::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Engine = base64::engine::GeneralPurpose;

/// The one base64 engine: the fastest that this processor has. What is left over in the last character is ignored, as
/// by GLib and Go.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: std::sync::LazyLock<Engine> = std::sync::LazyLock::new(|| {
        let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        return Engine::standard(config);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return Engine::new(&base64::alphabet::STANDARD, config);
    });
    &ENGINE
}

/// What counts as base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// As qemu-ga has it (`util/base64.c`, GLib's `g_base64_decode`): newlines mean nothing, `=` may stand anywhere,
    /// and a last group of less than four characters is dropped.
    Glib,
    /// As Phoenix has it (Go's `base64.StdEncoding`): CR and LF mean nothing, everything else must be exact.
    Go,
}

/// A text that is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Base64 data contains invalid characters")]
pub struct BadBase64;

/// A payload on its way to the broker.
#[derive(Debug, PartialEq, Eq)]
pub struct Upload {
    /// Base64 in whole groups, or, if `decoded`, the bytes themselves.
    text: Vec<u8>,
    decoded: bool,
    /// How much of `text` has been sent.
    taken: usize,
    length: u64,
}

impl Upload {
    /// Checks a text and finds its decoded length.
    ///
    /// # Errors
    /// If the text is not base64 by `rules`.
    pub fn new(mut text: Vec<u8>, rules: Rules) -> Result<Self, BadBase64> {
        let survey = scan::survey(&text);
        if survey.foreign || (rules == Rules::Glib && survey.returns > 0) {
            return Err(BadBase64);
        }
        if survey.newlines + survey.returns > 0 {
            text.retain(|byte| !matches!(byte, b'\n' | b'\r'));
        }
        let incomplete = text.len() % 4;
        if incomplete > 0 && rules == Rules::Go {
            return Err(BadBase64);
        }
        text.truncate(text.len() - incomplete);
        let at_end = if text.ends_with(b"==") { 2 } else { usize::from(text.ends_with(b"=")) };
        let decoded = survey.padding != at_end;
        if decoded && rules == Rules::Go {
            return Err(BadBase64);
        }
        if decoded {
            text = decode_groups(&text);
        }
        let bytes = if decoded { text.len() } else { text.len() / 4 * 3 - at_end };
        Ok(Upload { text, decoded, taken: 0, length: u64::try_from(bytes).unwrap_or(u64::MAX) })
    }

    /// Decoded bytes in all.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether all has been taken.
    pub fn is_finished(&self) -> bool {
        self.taken >= self.text.len()
    }

    /// The next piece: [`PIECE`] bytes, or what is left. `scratch` is overwritten.
    pub fn next<'a>(&'a mut self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let step = if self.decoded { PIECE } else { PIECE / 3 * 4 };
        let rest = self.text.get(self.taken..).unwrap_or_default();
        let part = rest.get(..step).unwrap_or(rest);
        self.taken += part.len();
        if self.decoded {
            return part;
        }
        scratch.resize(PIECE, 0);
        // The text was found to be of the alphabet, in whole groups, with `=` at its end only.
        let length = engine().decode_slice(part, scratch).expect("the text was checked");
        scratch.get(..length).unwrap_or_default()
    }
}

/// GLib's way: each group of four gives three bytes, less those whose third or fourth character is `=`.
fn decode_groups(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (groups, _) = text.as_chunks::<4>();
    for group in groups {
        let bits = group.iter().fold(0, |bits, &character| bits << 6 | rank(character));
        let [_, high, middle, low] = u32::to_be_bytes(bits);
        bytes.push(high);
        if group[2] != b'=' {
            bytes.push(middle);
        }
        if group[3] != b'=' {
            bytes.push(low);
        }
    }
    bytes
}

fn rank(character: u8) -> u32 {
    u32::from(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &[u8], rules: Rules) -> Result<Vec<u8>, BadBase64> {
        let mut upload = Upload::new(text.to_vec(), rules)?;
        let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
        while !upload.is_finished() {
            bytes.extend_from_slice(upload.next(&mut scratch));
        }
        assert_eq!(upload.length(), bytes.len() as u64);
        Ok(bytes)
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back_in_pieces(length in 0..3 * PIECE, seed in any::<u8>()) {
            let bytes: Vec<u8> = (0..=250).map(|byte: u8| byte ^ seed).cycle().take(length).collect();
            let text = engine().encode(&bytes);
            prop_assert_eq!(all(text.as_bytes(), Rules::Glib).unwrap(), &bytes[..]);
            prop_assert_eq!(all(text.as_bytes(), Rules::Go).unwrap(), &bytes[..]);
        }

        #[test]
        fn no_text_makes_it_fail(text in "[A-Za-z0-9+/=\n]{0,40}") {
            prop_assert!(all(text.as_bytes(), Rules::Glib).is_ok());
            let _ = all(text.as_bytes(), Rules::Go);
        }
    }

    #[test]
    fn qemu_takes_what_glib_takes() {
        for (text, bytes) in [
            ("aGVsbG8=", &b"hello"[..]),
            ("aGVs\nbG8=\n", b"hello"),
            ("aGVsbG8", b"hel"),
            ("a", b""),
            ("aa", b""),
            ("aGk=aGk=", b"hihi"),
            ("====", b"\0"),
            ("", b""),
        ] {
            assert_eq!(all(text.as_bytes(), Rules::Glib).as_deref(), Ok(bytes), "{text}");
        }
        for text in ["***", "aGk =", "aG-_", "aGk=\r", "aGk=\0"] {
            assert_eq!(all(text.as_bytes(), Rules::Glib), Err(BadBase64), "{text:?}");
        }
    }

    #[test]
    fn phoenix_takes_what_go_takes() {
        assert_eq!(all(b"QUJD\r\nREVG\n", Rules::Go).as_deref(), Ok(&b"ABCDEF"[..]));
        for text in ["!!notbase64", "QQ", "QQ==QQ==", "Q===", "QQ== "] {
            assert_eq!(all(text.as_bytes(), Rules::Go), Err(BadBase64), "{text:?}");
        }
    }
}
