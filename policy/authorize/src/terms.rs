//! What a rule that allows still asks of how a request is carried out.

use bincode::{Decode, Encode};

use crate::Redaction;

/// Limits and ways of doing it. `None` is no limit but the agent's own.
///
/// Whoever does the work keeps them, each in its place: the broker counts and times, the worker, which has found the same rule in its
/// own copy of the policy, limits what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Terms {
    /// Bytes that one request may read or write.
    pub request_bytes: Option<u64>,
    /// Bytes that may be read from and written to one open file, together.
    pub handle_bytes: Option<u64>,
    /// Files that may be open by this rule at one time.
    pub open_files: Option<u32>,
    /// Requests that this rule lets through in a second, on average; ten times as many at once. See [`is_never_counted`](crate::is_never_counted).
    pub requests_per_second: Option<u32>,
    /// Seconds that a program may run; then it is killed with its process group, which ends with it in any case.
    pub run_seconds: Option<u32>,
    /// Bytes of each of its outputs that are kept, up to 16 MiB, which is also what is kept without this.
    pub output_bytes: Option<u64>,
    /// Who a program runs as, and who gets files and directories that are made.
    pub run_as: Option<RunAs>,
    /// Seconds that filesystems may stay frozen, if less than what is configured.
    pub freeze_seconds: Option<u32>,
    /// Seconds that one request may move the clock, if less than what is configured.
    pub clock_step_seconds: Option<u32>,
    /// What is left out of the reply.
    pub redaction: Redaction,
    /// How it is recorded.
    pub record: Record,
}

/// What the audit log has of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    /// A record with the arguments; of what the frontend answers by itself only how often.
    #[default]
    Usual,
    /// A digest of the arguments instead of them.
    Digest,
    /// A record of each, of what the frontend answers by itself as well.
    Each,
}

impl Record {
    /// Those that are written in a policy.
    pub const ALL: [(&'static str, Record); 2] = [("digest", Record::Digest), ("each", Record::Each)];
}

/// What a request would go beyond; worded for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// [`Terms::request_bytes`].
    #[error("the policy allows {0} bytes in one request")]
    RequestBytes(u64),
    /// [`Terms::handle_bytes`].
    #[error("the policy allows {0} bytes of one open file, and they are used up")]
    HandleBytes(u64),
    /// [`Terms::open_files`].
    #[error("the policy allows {0} at a time")]
    OpenFiles(u32),
}

impl Terms {
    /// How many of `count` bytes one request may read from an open file of which `used` have been read or written: fewer are a
    /// short read, which clients expect; none at all is not.
    ///
    /// # Errors
    /// [`Exceeded`] if not one of them may be read.
    pub fn readable(&self, count: u64, used: u64) -> Result<u64, Exceeded> {
        let left = self.handle_bytes.map(|most| (most.saturating_sub(used), Exceeded::HandleBytes(most)));
        let once = self.request_bytes.map(|most| (most, Exceeded::RequestBytes(most)));
        left.into_iter().chain(once).try_fold(count, |count, (most, exceeded)| {
            if most == 0 && count > 0 { Err(exceeded) } else { Ok(count.min(most)) }
        })
    }

    /// Whether one request may read `count` bytes that are worth nothing in part.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn whole(&self, count: u64) -> Result<(), Exceeded> {
        match self.request_bytes {
            Some(most) if count > most => Err(Exceeded::RequestBytes(most)),
            _ => Ok(()),
        }
    }

    /// Whether one request may write `count` bytes to an open file of which `used` have been read or written. All or nothing: what
    /// is written in part is damage.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn writable(&self, count: u64, used: u64) -> Result<(), Exceeded> {
        match (self.request_bytes, self.handle_bytes) {
            (Some(most), _) if count > most => Err(Exceeded::RequestBytes(most)),
            (_, Some(most)) if count > most.saturating_sub(used) => Err(Exceeded::HandleBytes(most)),
            _ => Ok(()),
        }
    }

    /// Whether one more file may be opened where `open` are open by this rule.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn room(&self, open: usize) -> Result<(), Exceeded> {
        match self.open_files {
            Some(most) if usize::try_from(most).is_ok_and(|most| open >= most) => {
                Err(Exceeded::OpenFiles(most))
            }
            _ => Ok(()),
        }
    }
}

/// A user by number, without other groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct RunAs {
    /// Never 4294967295, which means "leave it".
    pub uid: u32,
    /// The same.
    pub gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(request_bytes: Option<u64>, handle_bytes: Option<u64>) -> Terms {
        Terms { request_bytes, handle_bytes, ..Terms::default() }
    }

    #[test]
    fn a_read_is_cut_to_what_is_allowed_until_nothing_is() {
        assert_eq!(terms(None, None).readable(9_000, 5), Ok(9_000));
        assert_eq!(terms(Some(100), None).readable(9_000, 5), Ok(100));
        assert_eq!(terms(Some(100), Some(110)).readable(9_000, 50), Ok(60));
        assert_eq!(terms(None, Some(50)).readable(1, 50), Err(Exceeded::HandleBytes(50)));
        assert_eq!(terms(None, Some(50)).readable(1, 90), Err(Exceeded::HandleBytes(50)));
        assert_eq!(terms(Some(0), None).readable(1, 0), Err(Exceeded::RequestBytes(0)));
        assert_eq!(terms(Some(0), Some(50)).readable(0, 50), Ok(0), "nothing may always be read");
    }

    #[test]
    fn a_write_is_done_whole_or_not() {
        assert_eq!(terms(None, None).writable(u64::MAX, u64::MAX), Ok(()));
        assert_eq!(terms(Some(100), None).writable(100, 9_000), Ok(()));
        assert_eq!(terms(Some(100), None).writable(101, 0), Err(Exceeded::RequestBytes(100)));
        assert_eq!(terms(None, Some(100)).writable(60, 40), Ok(()));
        assert_eq!(terms(None, Some(100)).writable(61, 40), Err(Exceeded::HandleBytes(100)));
        assert_eq!(terms(None, Some(100)).writable(0, 200), Ok(()));
    }

    #[test]
    fn a_rule_has_room_for_as_many_files_as_it_says() {
        let terms = Terms { open_files: Some(2), ..Terms::default() };
        assert_eq!([0, 1, 2].map(|open| terms.room(open)), [Ok(()), Ok(()), Err(Exceeded::OpenFiles(2))]);
        assert_eq!(Terms::default().room(usize::MAX), Ok(()));
    }
}
