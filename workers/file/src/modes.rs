//! What modes and permission numbers of both dialects mean. Pure; a host chooses all of it.

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// What is taken from the permissions of whatever is made, as Phoenix's agent runs with it.
const UMASK: u32 = 0o022;

/// Go's bits for set-uid, set-gid and sticky (`io/fs`, `FileMode`), and those of `chmod(2)`.
const GO_BITS: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// The file type in `st_mode`: `file-stat` shows it, so clients send it back.
const FILE_TYPE: u32 = 0o170_000;

/// What an open file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// For `openat2(2)`.
    pub(crate) flags: OFlag,
    /// Whether the file is made if there is none.
    pub(crate) creates: bool,
    /// Whether it may be written to.
    pub(crate) writes: bool,
}

/// Reads the mode of `guest-file-open`: one of fopen(3)'s 15 spellings in qga/commands-posix.c, `guest_file_open_modes`.
pub(crate) fn fopen_mode(mode: &str) -> Option<Access> {
    let (flags, creates) = match mode {
        "r" | "rb" => (OFlag::O_RDONLY, false),
        "w" | "wb" => (OFlag::O_WRONLY | OFlag::O_TRUNC, true),
        "a" | "ab" => (OFlag::O_WRONLY | OFlag::O_APPEND, true),
        "r+" | "rb+" | "r+b" => (OFlag::O_RDWR, false),
        "w+" | "wb+" | "w+b" => (OFlag::O_RDWR | OFlag::O_TRUNC, true),
        "a+" | "ab+" | "a+b" => (OFlag::O_RDWR | OFlag::O_APPEND, true),
        _ => return None,
    };
    Some(Access { flags, creates, writes: !matches!(mode, "r" | "rb") })
}

/// Reads a Phoenix permission number: `chmod(2)`'s twelve bits, Go's three high ones, and a file type that is ignored.
///
/// None for a negative number and for any other bit: the mode of a file is not left to a guess.
pub(crate) fn permissions(number: i64) -> Option<Mode> {
    let number = u32::try_from(number).ok()?;
    let known = GO_BITS.iter().fold(FILE_TYPE | 0o7777, |known, (go, _)| known | go);
    if number & !known != 0 {
        return None;
    }
    let bits = GO_BITS
        .iter()
        .filter(|(go, _)| number & go != 0)
        .fold(number & 0o7777, |bits, (_, unix)| bits | unix);
    Some(Mode::from_bits_truncate(bits))
}

/// What is left of permissions for something that is made.
pub(crate) fn for_new(permissions: Mode) -> Mode {
    permissions & !Mode::from_bits_truncate(UMASK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exactly_fifteen_spellings_are_modes() {
        let letters = ["r", "w", "a", "b", "+", "x", "e", "R", " "];
        let mut found: Vec<String> = Vec::new();
        for first in letters.iter().chain(&[""]) {
            for second in letters.iter().chain(&[""]) {
                for third in letters.iter().chain(&[""]) {
                    let mode = format!("{first}{second}{third}");
                    if fopen_mode(&mode).is_some() && !found.contains(&mode) {
                        found.push(mode);
                    }
                }
            }
        }
        found.sort();
        let modes =
            ["a", "a+", "a+b", "ab", "ab+", "r", "r+", "r+b", "rb", "rb+", "w", "w+", "w+b", "wb", "wb+"];
        assert_eq!(found, modes);
    }

    /// The broker asks for the right to write by `Open::writes`; both must agree on every mode.
    #[test]
    fn what_writes_here_needs_the_right_to_write() {
        for mode in
            ["r", "rb", "r+", "rb+", "r+b", "w", "wb", "w+", "wb+", "w+b", "a", "ab", "a+", "ab+", "a+b"]
        {
            let open = proto::file::Open { path: "/x".into(), mode: Some(mode.to_owned()) };
            assert_eq!(fopen_mode(mode).map(|access| access.writes), Some(open.writes()), "{mode}");
        }
    }

    #[test]
    fn permissions_may_be_unix_or_go_bits_or_what_stat_shows() {
        let octal = |number| permissions(number).map(|mode| mode.bits());
        assert_eq!(octal(0o644), Some(0o644));
        assert_eq!(octal(0o4755), Some(0o4755));
        assert_eq!(octal((1 << 23) | 0o755), Some(0o4755));
        assert_eq!(octal((1 << 22) | 0o755), Some(0o2755));
        assert_eq!(octal((1 << 20) | 0o777), Some(0o1777));
        assert_eq!(octal(0o100_600), Some(0o600));
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        let refused = [-1, i64::MIN, 1 << 16, 1 << 21, 1 << 24, 1 << 31, 1 << 32, i64::MAX].map(permissions);
        assert_eq!(refused, [None; 8]);
    }

    #[test]
    fn a_new_file_is_not_writable_for_others() {
        assert_eq!(for_new(Mode::from_bits_truncate(0o4777)).bits(), 0o4755);
    }

    proptest! {
        #[test]
        fn no_permission_has_more_than_twelve_bits(number in any::<i64>()) {
            prop_assert!(permissions(number).is_none_or(|mode| mode.bits() <= 0o7777));
            prop_assert!(permissions(number & 0x00d0_ffff).is_some());
        }
    }
}
