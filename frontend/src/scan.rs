//! Searches bytes fast: loops over fixed blocks without a branch for each byte, which the compiler turns into
//! vector instructions of whatever the target has.
//!
//! Runs in the frontend on what the host sent; holds no state.

/// Bytes looked at together.
const BLOCK: usize = 32;

/// How far a JSON string goes on before a byte that means something: `quote`, a backslash, a control byte, FE or FF.
///
/// Returns the number of bytes before it, and whether any of them is not ASCII.
pub(crate) fn string_run(bytes: &[u8], quote: u8) -> (usize, bool) {
    let ends = |byte: u8| (byte == quote) | (byte == b'\\') | !(0x20..0xfe).contains(&byte);
    let mut length = 0;
    let mut seen = 0;
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    for block in blocks {
        let mut found = false;
        let mut bits = 0;
        for &byte in block {
            found |= ends(byte);
            bits |= byte;
        }
        if found {
            break;
        }
        seen |= bits;
        length += BLOCK;
    }
    for &byte in bytes.get(length..).unwrap_or_default() {
        if ends(byte) {
            break;
        }
        seen |= byte;
        length += 1;
    }
    (length, seen >= 0x80)
}

/// The position of the first byte that `wanted` says yes to; it must be cheap and free of branches.
pub(crate) fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for (number, block) in blocks.iter().enumerate() {
        let mut found = false;
        for &byte in block {
            found |= wanted(byte);
        }
        if found {
            return block.iter().position(|&byte| wanted(byte)).map(|at| number * BLOCK + at);
        }
    }
    rest.iter().position(|&byte| wanted(byte)).map(|at| blocks.len() * BLOCK + at)
}

/// What a text that should be base64 is made of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Bytes that are neither of the alphabet nor counted below.
    pub(crate) foreign: bool,
    /// `=`
    pub(crate) padding: usize,
    /// LF
    pub(crate) newlines: usize,
    /// CR
    pub(crate) returns: usize,
}

/// Looks at every byte of a base64 text once.
pub(crate) fn survey(text: &[u8]) -> Survey {
    let mut survey = Survey::default();
    let (blocks, rest) = text.as_chunks::<BLOCK>();
    for block in blocks {
        count(block, &mut survey);
    }
    count(rest, &mut survey);
    survey
}

#[inline(always)]
fn count(block: &[u8], survey: &mut Survey) {
    // Blocks have at most BLOCK bytes, so that a byte can count them.
    let (mut foreign, mut padding, mut newlines, mut returns) = (0u8, 0u8, 0u8, 0u8);
    for &byte in block {
        let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        let digit = byte.wrapping_sub(b'0') < 10;
        let sign = (byte == b'+') | (byte == b'/');
        let other = (byte == b'=') | (byte == b'\n') | (byte == b'\r');
        foreign |= u8::from(!(letter | digit | sign | other));
        padding = padding.wrapping_add(u8::from(byte == b'='));
        newlines = newlines.wrapping_add(u8::from(byte == b'\n'));
        returns = returns.wrapping_add(u8::from(byte == b'\r'));
    }
    survey.foreign |= foreign != 0;
    survey.padding += usize::from(padding);
    survey.newlines += usize::from(newlines);
    survey.returns += usize::from(returns);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_run_ends_where_a_look_at_each_byte_ends_it(
            bytes in proptest::collection::vec(prop_oneof![20 => 0x20u8..0x7f, 1 => any::<u8>()], 0..200),
        ) {
            let slow = bytes.iter().position(|&byte| byte == b'"' || byte == b'\\' || !(0x20..0xfe).contains(&byte));
            let slow = slow.unwrap_or(bytes.len());
            let high = bytes[..slow].iter().any(|&byte| byte >= 0x80);
            prop_assert_eq!(string_run(&bytes, b'"'), (slow, high));
        }

        #[test]
        fn a_byte_is_found_where_it_is_first(bytes in proptest::collection::vec(0u8..40, 0..200)) {
            prop_assert_eq!(find(&bytes, |byte| byte == b'\n'), bytes.iter().position(|&byte| byte == b'\n'));
        }
    }

    #[test]
    fn a_survey_counts_what_is_not_of_the_alphabet() {
        let text = [&b"A".repeat(40)[..], b"z9+/==\n\n\r"].concat();
        assert_eq!(survey(&text), Survey { foreign: false, padding: 2, newlines: 2, returns: 1 });
        for byte in *b"-_ @[`{:\x80\xff\0" {
            assert!(survey(&[byte]).foreign, "{byte:#x}");
        }
    }
}
