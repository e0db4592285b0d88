//! utmp(5): who is logged in, as login programs write it down.
//!
//! Absent on systems without a working year 2038 story; [`sessions`](crate::sessions) is asked there.

use std::mem::{offset_of, size_of};

use rustix::io::Result;

use crate::root::Root;

/// As in glibc's `paths.h`; on most systems `/var/run` leads to `/run`.
const FILE: &str = "/var/run/utmp";

// Where things are depends on the architecture: times have 4 bytes each on x86_64, 8 on aarch64.
mod record {
    use super::{offset_of, size_of};
    use libc::utmpx;

    pub(super) const SIZE: usize = size_of::<utmpx>();
    pub(super) const LINE: (usize, usize) = (offset_of!(utmpx, ut_line), 32);
    pub(super) const USER: (usize, usize) = (offset_of!(utmpx, ut_user), 32);
    pub(super) const HOST: (usize, usize) = (offset_of!(utmpx, ut_host), 256);
    pub(super) const SECONDS: usize = offset_of!(utmpx, ut_tv);
    /// Of the seconds, and of the microseconds behind them.
    pub(super) const TIME_WIDTH: usize = (offset_of!(utmpx, ut_addr_v6) - SECONDS) / 2;
    pub(super) const USER_PROCESS: i16 = libc::USER_PROCESS;
}

/// A login by a user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Login<'a> {
    pub(crate) user: &'a [u8],
    /// Terminal, without `/dev/`.
    pub(crate) line: &'a [u8],
    /// Where from; empty at the console.
    pub(crate) host: &'a [u8],
    /// Since the epoch.
    pub(crate) seconds: i64,
    pub(crate) microseconds: i64,
}

/// The file as it is.
///
/// # Errors
/// There is none, or it cannot be read.
pub(crate) fn read(root: &Root) -> Result<Vec<u8>> {
    root.read_whole(FILE)
}

/// Records of type USER_PROCESS; a short one at the end is none.
pub(crate) fn logins(content: &[u8]) -> impl Iterator<Item = Login<'_>> {
    content.chunks_exact(record::SIZE).filter_map(login)
}

fn login(bytes: &[u8]) -> Option<Login<'_>> {
    let [low, high, ..] = *bytes else { return None };
    if i16::from_ne_bytes([low, high]) != record::USER_PROCESS {
        return None;
    }
    Some(Login {
        user: string(bytes, record::USER)?,
        line: string(bytes, record::LINE)?,
        host: string(bytes, record::HOST)?,
        seconds: number(bytes, record::SECONDS)?,
        microseconds: number(bytes, record::SECONDS + record::TIME_WIDTH)?,
    })
}

/// Up to the first NUL; there is none if the text fills the field.
fn string(bytes: &[u8], (offset, length): (usize, usize)) -> Option<&[u8]> {
    let field = bytes.get(offset..)?.get(..length)?;
    field.split(|byte| *byte == 0).next()
}

fn number(bytes: &[u8], offset: usize) -> Option<i64> {
    let bytes = bytes.get(offset..)?;
    if record::TIME_WIDTH == 8 {
        bytes.first_chunk().copied().map(i64::from_ne_bytes)
    } else {
        // Unsigned, as in glibc since 2.40: good until 2106.
        bytes.first_chunk().copied().map(u32::from_ne_bytes).map(i64::from)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::record;

    /// A record as a login program writes it. Type 7 is USER_PROCESS, 8 DEAD_PROCESS.
    pub(crate) fn record(
        kind: i16,
        user: &[u8],
        line: &str,
        host: &str,
        seconds: u32,
        micros: u32,
    ) -> Vec<u8> {
        let mut bytes = vec![0; record::SIZE];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &kind.to_ne_bytes());
        put(record::USER.0, user);
        put(record::LINE.0, line.as_bytes());
        put(record::HOST.0, host.as_bytes());
        put(record::SECONDS, &seconds.to_ne_bytes());
        put(record::SECONDS + record::TIME_WIDTH, &micros.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::samples::record;
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_record_is_as_the_manual_page_draws_it() {
        assert_eq!((record::SIZE, record::SECONDS, record::TIME_WIDTH), (384, 340, 4));
        assert_eq!((record::LINE.0, record::USER.0, record::HOST.0), (8, 44, 76));
    }

    #[test]
    fn only_users_that_are_logged_in_are_read() {
        let content = [
            record(2, b"reboot", "~", "6.1.0", 1_700_000_000, 0),
            record(7, b"root", "pts/0", "192.0.2.6", 1_700_000_100, 250_000),
            record(8, b"", "pts/1", "", 1_700_000_200, 0),
            record(7, b"bob\0junk", "tty1", "", 4_000_000_000, 1),
            vec![7, 0, 1, 2],
        ]
        .concat();
        let expected = [
            Login {
                user: b"root",
                line: b"pts/0",
                host: b"192.0.2.6",
                seconds: 1_700_000_100,
                microseconds: 250_000,
            },
            Login { user: b"bob", line: b"tty1", host: b"", seconds: 4_000_000_000, microseconds: 1 },
        ];
        assert_eq!(logins(&content).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_name_may_fill_its_field() {
        let content = record(7, &[b'x'; 32], "pts/0", "", 1, 0);
        assert_eq!(logins(&content).next().unwrap().user, [b'x'; 32]);
    }
}
