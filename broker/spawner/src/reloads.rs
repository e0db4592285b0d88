//! What the spawner says of reloads: 16 bytes in a memory file of its own, for `portreeve reload`, which looks through `/proc`.
//!
//! Nothing is asked of the spawner: whoever may see its descriptors (root, or the user whose agent it is) reads what there is. A run
//! that began after a file was written has read it; so who wrote it, looked at `begun` and sent SIGHUP has its outcome when `ended`
//! has passed that number.
//!
//! `magic u32 · begun u32 · ended u32 · outcome u8 · waits u8 · settings u8 · 0`, little endian.

/// Length in bytes.
pub const LENGTH: usize = 16;

/// The memory file's name, as it shows in `/proc/PID/fd`.
pub const NAME: &std::ffi::CStr = c"portreeve-reloads";

/// "prr1"
const MAGIC: u32 = u32::from_le_bytes(*b"prr1");

/// What there is to know of reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// Runs of the compiler that have begun since the start; wraps.
    pub begun: u32,
    /// Runs that have ended, one way or the other.
    pub ended: u32,
    /// How the last of them did.
    pub outcome: Outcome,
    /// Whether one is asked for or under way that waits for filesystems to be thawed.
    pub waits: bool,
    /// The spawner's descriptor of the settings and policy in force.
    pub settings: u8,
}

/// How a reload ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// There was none.
    #[default]
    None = 0,
    /// The new policy is in force.
    Accepted = 1,
    /// The text is wrong, or its compiler has failed.
    NotCompiled = 2,
    /// The command that reads it has failed.
    Failed = 3,
    /// It permits programs, and they would inherit the spawner's filter.
    NeedsRestart = 4,
    /// It permits a worker that is not installed.
    NotInstalled = 5,
    /// The broker has not taken it.
    Refused = 6,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Accepted,
        Self::NotCompiled,
        Self::Failed,
        Self::NeedsRestart,
        Self::NotInstalled,
        Self::Refused,
    ];
}

impl Reloads {
    /// The bytes.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let [m0, m1, m2, m3] = MAGIC.to_le_bytes();
        let [b0, b1, b2, b3] = self.begun.to_le_bytes();
        let [e0, e1, e2, e3] = self.ended.to_le_bytes();
        let (outcome, waits) = (self.outcome as u8, self.waits.into());
        [m0, m1, m2, m3, b0, b1, b2, b3, e0, e1, e2, e3, outcome, waits, self.settings, 0]
    }

    /// Reads them; none if they are not of this version.
    #[must_use]
    pub fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let &[_, _, _, _, b0, b1, b2, b3, e0, e1, e2, e3, outcome, waits, settings, _] = bytes;
        let outcome = Outcome::ALL.into_iter().find(|known| *known as u8 == outcome)?;
        let reloads = Self {
            begun: u32::from_le_bytes([b0, b1, b2, b3]),
            ended: u32::from_le_bytes([e0, e1, e2, e3]),
            outcome,
            waits: waits != 0,
            settings,
        };
        (reloads.encode() == *bytes).then_some(reloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_has_the_documented_bytes() {
        let reloads = Reloads { begun: 258, ended: 257, outcome: Outcome::Refused, waits: true, settings: 9 };
        let bytes = reloads.encode();
        assert_eq!(bytes, *b"prr1\x02\x01\0\0\x01\x01\0\0\x06\x01\x09\0");
        assert_eq!(Reloads::decode(&bytes), Some(reloads));
    }

    #[test]
    fn what_another_version_says_is_not_understood() {
        assert_eq!(Reloads::decode(b"prr2\x02\x01\0\0\x01\x01\0\0\x01\x01\x09\0"), None);
        assert_eq!(Reloads::decode(b"prr1\x02\x01\0\0\x01\x01\0\0\x07\x01\x09\0"), None);
        assert_eq!(Reloads::decode(b"prr1\x02\x01\0\0\x01\x01\0\0\x01\x02\x09\0"), None);
        assert_eq!(Reloads::decode(b"prr1\x02\x01\0\0\x01\x01\0\0\x01\x01\x09\x01"), None);
    }
}
