//! The 16 bytes that broker and spawner exchange, and that the recompiling command leaves the spawner. No I/O, no allocation.
//!
//! `magic u32 · seq u32 · op u8 · kind u8 · instance u16 · value u32`, little endian. Each direction is a type of its
//! own: what one side may send is what the other can decode. A field that an operation does not use is 0, so
//! that every message has one form. Whatever does not decode is the peer's fault and ends the broker.

use jail::Role;

/// Length of every message in bytes.
pub const LENGTH: usize = 16;

/// "prv1": a peer of another version does not decode.
const MAGIC: u32 = u32::from_le_bytes(*b"prv1");

/// Instances of one worker that may run at once: a replacement beside one that hangs in the kernel and cannot be killed.
pub const INSTANCES: u16 = 4;

const START: u8 = 1;
const STARTED: u8 = 2;
const REFUSED: u8 = 3;
const KILL: u8 = 4;
const EXITED: u8 = 5;
const FRONTEND: u8 = 6;
const READY: u8 = 7;
const STOP: u8 = 8;
const FROZEN: u8 = 9;
const THAW: u8 = 10;
const ROTATE: u8 = 11;
const ROTATED: u8 = 32;
const KEPT: u8 = 33;
const RELOAD: u8 = 12;
const RELOADED: u8 = 13;
const COMPILED: u8 = 14;

/// What the broker may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromBroker {
    /// Start a worker. Answered by Started or Refused with the same sequence number. `kind` is a worker,
    /// `instance` below [`INSTANCES`].
    Start {
        /// Which worker.
        kind: Role,
        /// Which of several.
        instance: u16,
    },
    /// Kill a worker or a frontend. Exited follows when it has ended; nothing does if it is not running.
    Kill {
        /// A worker or the frontend.
        kind: Role,
        /// Which of several; the channel's index for a frontend.
        instance: u16,
    },
    /// All frontends have been welcomed. Tells systemd and a waiting parent.
    Ready,
    /// Filesystems are frozen from now on, or are not any more: while they are, the spawner writes nothing and asks the broker to
    /// thaw before it ends the agent.
    Frozen {
        /// Whether they are.
        frozen: bool,
    },
    /// Begin another file of the audit log: the one in use is full or old enough by the plan, or has no name any more. The spawner
    /// looks by itself. Answered by Rotated or Kept with the same sequence number.
    Rotate,
    /// End the agent with this exit status, 0 to 255.
    Stop {
        /// Exit status.
        status: u8,
    },
    /// The answer to a [`FromSpawner::Reload`] that brought a policy, with its sequence number: what starts from now on is born with
    /// that policy, or it stays as it was.
    Reloaded {
        /// Whether the policy is in force.
        accepted: bool,
    },
}

/// What the spawner may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromSpawner {
    /// A worker runs. Two descriptors come along: the socket's end, the log pipe's reading end.
    Started {
        /// Which worker.
        kind: Role,
        /// Which of several.
        instance: u16,
        /// Process id, for the log and the audit record.
        pid: u32,
    },
    /// A worker was not started.
    Refused {
        /// Which worker.
        kind: Role,
        /// Which of several.
        instance: u16,
        /// Why.
        reason: Reason,
    },
    /// A worker or frontend has ended.
    Exited {
        /// Which.
        kind: Role,
        /// Which of several; the channel's index for a frontend.
        instance: u16,
        /// As `waitpid(2)` gives it; [`std::process::ExitStatus`] takes it apart. Signal 31 is a refused system call.
        status: i32,
    },
    /// The agent is to end while something is frozen: the broker thaws and then says Stop.
    Thaw,
    /// Another file of the audit log was begun. It comes along, opened for appending.
    Rotated {
        /// What stands behind the name of the file before; 0 if that has no name.
        number: u32,
    },
    /// The audit log's file stays in use.
    Kept {
        /// Why: an errno. EPERM: there was no reason for another. EAGAIN: too often, or something is frozen.
        errno: u32,
    },
    /// The policy was compiled anew. One descriptor comes along: sealed settings and policy. Answered by Reloaded if it was
    /// compiled, otherwise only to be recorded.
    Reload {
        /// What came of it.
        verdict: Verdict,
    },
    /// A frontend runs. Two descriptors come along, as with Started.
    Frontend {
        /// The channel's index.
        channel: u16,
        /// Process id.
        pid: u32,
    },
}

/// Why a worker was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The plan does not have this kind.
    NotPermitted = 1,
    /// The kind's allowance is used up; it grows by one each second.
    TooOften = 2,
    /// The program could not be executed.
    ExecFailed = 3,
    /// This instance runs, or hangs in the kernel and cannot be reaped.
    AlreadyRunning = 4,
}

/// What came of compiling the policy anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// It is compiled, and everything that it permits can be started.
    Compiled = 1,
    /// The text is wrong, or its compiler has failed; the form says why.
    NotCompiled = 2,
    /// The command did not finish, or left something else than it should; there is no form.
    Failed = 3,
    /// It permits a worker that needs a spawner without a filter, and this one has put its own on.
    NeedsRestart = 4,
    /// It permits a worker whose program is not installed.
    NotInstalled = 5,
}

impl Verdict {
    const ALL: [Self; 5] =
        [Self::Compiled, Self::NotCompiled, Self::Failed, Self::NeedsRestart, Self::NotInstalled];
}

/// What the recompiling command leaves in its pipe when it has compiled the policy: the workers that there is something to do for, in
/// the plan's form ([`crate::plan::workers_of`]). The spawner reads nothing else of what was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// One bit for each role.
    pub workers: u32,
}

impl Compiled {
    /// Encodes the message.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        Fields { operation: COMPILED, value: self.workers, ..Fields::default() }.encode(0)
    }

    /// Decodes it.
    ///
    /// # Errors
    /// [`Malformed`]: not what the command of this version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (_, fields) = Fields::decode(bytes)?;
        if fields.operation != COMPILED {
            return Err(Malformed::Operation(fields.operation));
        }
        let message = Self { workers: fields.value };
        if message.encode() == bytes { Ok(message) } else { Err(Malformed::Field) }
    }
}

/// Bytes that are no message: the peer has broken the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not 16 bytes.
    Length(usize),
    /// Another protocol or version.
    Magic(u32),
    /// Not an operation of this direction.
    Operation(u8),
    /// Not a role that the operation can be about.
    Kind(u8),
    /// Out of range, or not 0 where it has no meaning.
    Field,
    /// Not as many descriptors as the operation brings.
    Descriptors(usize),
    /// An answer to what was not asked.
    Unasked,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(length) => write!(f, "{length} bytes instead of {LENGTH}"),
            Self::Magic(magic) => write!(f, "magic {magic:#010x}"),
            Self::Operation(operation) => write!(f, "operation {operation}"),
            Self::Kind(kind) => write!(f, "kind {kind}"),
            Self::Field => f.write_str("a field out of range"),
            Self::Descriptors(count) => write!(f, "{count} descriptors"),
            Self::Unasked => f.write_str("an answer to what was not asked"),
        }
    }
}

impl std::error::Error for Malformed {}

/// A message before its fields are understood.
#[derive(Default)]
struct Fields {
    operation: u8,
    kind: u8,
    instance: u16,
    value: u32,
}

impl Fields {
    fn encode(&self, sequence: u32) -> [u8; LENGTH] {
        let [m0, m1, m2, m3] = MAGIC.to_le_bytes();
        let [s0, s1, s2, s3] = sequence.to_le_bytes();
        let [i0, i1] = self.instance.to_le_bytes();
        let [v0, v1, v2, v3] = self.value.to_le_bytes();
        [m0, m1, m2, m3, s0, s1, s2, s3, self.operation, self.kind, i0, i1, v0, v1, v2, v3]
    }

    fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let &[m0, m1, m2, m3, s0, s1, s2, s3, operation, kind, i0, i1, v0, v1, v2, v3] = bytes else {
            return Err(Malformed::Length(bytes.len()));
        };
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        if magic != MAGIC {
            return Err(Malformed::Magic(magic));
        }
        let fields = Self {
            operation,
            kind,
            instance: u16::from_le_bytes([i0, i1]),
            value: u32::from_le_bytes([v0, v1, v2, v3]),
        };
        Ok((u32::from_le_bytes([s0, s1, s2, s3]), fields))
    }

    fn role(&self, fits: impl Fn(Role) -> bool) -> Result<Role, Malformed> {
        Role::try_from(self.kind).ok().filter(|role| fits(*role)).ok_or(Malformed::Kind(self.kind))
    }

    fn worker(&self) -> Result<Role, Malformed> {
        let role = self.role(Role::is_worker)?;
        if self.instance < INSTANCES { Ok(role) } else { Err(Malformed::Field) }
    }

    fn worker_or_frontend(&self) -> Result<Role, Malformed> {
        match self.role(|role| role.is_worker() || role == Role::Frontend)? {
            Role::Frontend => Ok(Role::Frontend),
            _ => self.worker(),
        }
    }
}

impl FromBroker {
    /// Encodes the message. `sequence` is the sender's and comes back in the answer.
    #[must_use]
    pub fn encode(self, sequence: u32) -> [u8; LENGTH] {
        let fields = match self {
            Self::Start { kind, instance } => {
                Fields { operation: START, kind: kind as u8, instance, value: 0 }
            }
            Self::Kill { kind, instance } => Fields { operation: KILL, kind: kind as u8, instance, value: 0 },
            Self::Ready => Fields { operation: READY, ..Fields::default() },
            Self::Frozen { frozen } => {
                Fields { operation: FROZEN, value: frozen.into(), ..Fields::default() }
            }
            Self::Rotate => Fields { operation: ROTATE, ..Fields::default() },
            Self::Stop { status } => Fields { operation: STOP, value: status.into(), ..Fields::default() },
            Self::Reloaded { accepted } => {
                Fields { operation: RELOADED, value: accepted.into(), ..Fields::default() }
            }
        };
        fields.encode(sequence)
    }

    /// Decodes a message and its sequence number.
    ///
    /// # Errors
    /// [`Malformed`]: the broker has broken the protocol.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let (sequence, fields) = Fields::decode(bytes)?;
        let message = match fields.operation {
            START => Self::Start { kind: fields.worker()?, instance: fields.instance },
            KILL => Self::Kill { kind: fields.worker_or_frontend()?, instance: fields.instance },
            READY => Self::Ready,
            FROZEN => Self::Frozen { frozen: fields.value != 0 },
            ROTATE => Self::Rotate,
            STOP => Self::Stop { status: u8::try_from(fields.value).map_err(|_| Malformed::Field)? },
            RELOADED => Self::Reloaded { accepted: fields.value != 0 },
            other => return Err(Malformed::Operation(other)),
        };
        // One form for each message: fields without meaning are 0.
        if message.encode(sequence) == bytes { Ok((sequence, message)) } else { Err(Malformed::Field) }
    }
}

impl FromSpawner {
    /// Encodes the message. `sequence` is that of the Start it answers, otherwise 0.
    #[must_use]
    pub fn encode(self, sequence: u32) -> [u8; LENGTH] {
        let fields = match self {
            Self::Started { kind, instance, pid } => {
                Fields { operation: STARTED, kind: kind as u8, instance, value: pid }
            }
            Self::Refused { kind, instance, reason } => {
                Fields { operation: REFUSED, kind: kind as u8, instance, value: reason as u32 }
            }
            Self::Exited { kind, instance, status } => {
                Fields { operation: EXITED, kind: kind as u8, instance, value: status.cast_unsigned() }
            }
            Self::Thaw => Fields { operation: THAW, ..Fields::default() },
            Self::Rotated { number } => Fields { operation: ROTATED, value: number, ..Fields::default() },
            Self::Kept { errno } => Fields { operation: KEPT, value: errno, ..Fields::default() },
            Self::Reload { verdict } => {
                Fields { operation: RELOAD, value: verdict as u32, ..Fields::default() }
            }
            Self::Frontend { channel, pid } => {
                Fields { operation: FRONTEND, kind: Role::Frontend as u8, instance: channel, value: pid }
            }
        };
        fields.encode(sequence)
    }

    /// Decodes a message and its sequence number.
    ///
    /// # Errors
    /// [`Malformed`]: not from a spawner of this version.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let (sequence, fields) = Fields::decode(bytes)?;
        let instance = fields.instance;
        let message = match fields.operation {
            STARTED => Self::Started { kind: fields.worker()?, instance, pid: fields.value },
            REFUSED => {
                let reason = match fields.value {
                    1 => Reason::NotPermitted,
                    2 => Reason::TooOften,
                    3 => Reason::ExecFailed,
                    4 => Reason::AlreadyRunning,
                    _ => return Err(Malformed::Field),
                };
                Self::Refused { kind: fields.worker()?, instance, reason }
            }
            EXITED => {
                let status = fields.value.cast_signed();
                Self::Exited { kind: fields.worker_or_frontend()?, instance, status }
            }
            FRONTEND => {
                fields.role(|role| role == Role::Frontend)?;
                Self::Frontend { channel: instance, pid: fields.value }
            }
            THAW if fields.kind == 0 && instance == 0 && fields.value == 0 => Self::Thaw,
            ROTATED if fields.kind == 0 && instance == 0 => Self::Rotated { number: fields.value },
            KEPT if fields.kind == 0 && instance == 0 => Self::Kept { errno: fields.value },
            THAW | ROTATED | KEPT => return Err(Malformed::Field),
            RELOAD => {
                let known = Verdict::ALL.into_iter().find(|verdict| *verdict as u32 == fields.value);
                let verdict = known.filter(|_| fields.kind == 0 && instance == 0).ok_or(Malformed::Field)?;
                Self::Reload { verdict }
            }
            other => return Err(Malformed::Operation(other)),
        };
        Ok((sequence, message))
    }

    /// How many descriptors come with it.
    #[must_use]
    pub const fn descriptors(self) -> usize {
        match self {
            Self::Started { .. } | Self::Frontend { .. } => 2,
            Self::Rotated { .. } | Self::Reload { .. } => 1,
            Self::Refused { .. } | Self::Exited { .. } | Self::Thaw | Self::Kept { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_message_has_the_documented_bytes() {
        let bytes = FromBroker::Start { kind: Role::File, instance: 1 }.encode(7);
        assert_eq!(bytes, *b"prv1\x07\0\0\0\x01\x04\x01\0\0\0\0\0");
        assert_eq!(FromBroker::decode(&bytes), Ok((7, FromBroker::Start { kind: Role::File, instance: 1 })));
    }

    #[test]
    fn an_exited_message_carries_a_wait_status_with_its_top_bit() {
        let message = FromSpawner::Exited { kind: Role::Frontend, instance: 9, status: -1 };
        let bytes = message.encode(0);
        assert_eq!(bytes, *b"prv1\0\0\0\0\x05\x02\x09\0\xff\xff\xff\xff");
        assert_eq!(FromSpawner::decode(&bytes), Ok((0, message)));
    }

    #[test]
    fn a_rotation_is_asked_for_without_anything_that_the_broker_could_choose() {
        let bytes = FromBroker::Rotate.encode(9);
        assert_eq!(bytes, *b"prv1\x09\0\0\0\x0b\0\0\0\0\0\0\0");
        assert_eq!(FromBroker::decode(&bytes), Ok((9, FromBroker::Rotate)));
        assert_eq!(
            FromBroker::decode(b"prv1\x09\0\0\0\x0b\0\0\0\x01\0\0\0"),
            Err(Malformed::Field),
            "nor can it say a number"
        );
        let rotated = FromSpawner::Rotated { number: 300 };
        assert_eq!(rotated.encode(9), *b"prv1\x09\0\0\0\x20\0\0\0\x2c\x01\0\0");
        assert_eq!(FromSpawner::decode(&rotated.encode(9)), Ok((9, rotated)));
        assert_eq!(rotated.descriptors(), 1);
    }

    #[test]
    fn a_length_other_than_16_is_refused() {
        assert_eq!(FromBroker::decode(&[0; 15]), Err(Malformed::Length(15)));
        assert_eq!(FromBroker::decode(&[0; 17]), Err(Malformed::Length(17)));
        assert_eq!(FromBroker::decode(&[]), Err(Malformed::Length(0)));
    }

    #[test]
    fn another_magic_is_refused() {
        assert_eq!(FromBroker::decode(b"prv2\0\0\0\0\x07\0\0\0\0\0\0\0"), Err(Malformed::Magic(0x3276_7270)));
    }

    #[test]
    fn the_broker_cannot_say_what_only_the_spawner_says() {
        let bytes = FromSpawner::Started { kind: Role::File, instance: 0, pid: 1 }.encode(0);
        assert_eq!(FromBroker::decode(&bytes), Err(Malformed::Operation(2)));
        let bytes = FromBroker::Ready.encode(0);
        assert_eq!(FromSpawner::decode(&bytes), Err(Malformed::Operation(7)));
    }

    #[test]
    fn only_workers_can_be_started() {
        let start = |kind| FromBroker::decode(&FromBroker::Start { kind, instance: 0 }.encode(0)).err();
        assert_eq!(start(Role::Broker), Some(Malformed::Kind(1)));
        assert_eq!(start(Role::Frontend), Some(Malformed::Kind(2)));
        assert_eq!(start(Role::Compile), Some(Malformed::Kind(8)));
        assert_eq!(start(Role::Exec), None);
    }

    #[test]
    fn the_broker_cannot_be_told_to_kill_itself_but_a_frontend_can_be_killed() {
        let kill = |kind| FromBroker::decode(&FromBroker::Kill { kind, instance: 3 }.encode(0)).err();
        assert_eq!(kill(Role::Broker), Some(Malformed::Kind(1)));
        assert_eq!(kill(Role::Frontend), None);
    }

    #[test]
    fn instances_above_the_limit_are_refused() {
        let bytes = FromBroker::Start { kind: Role::File, instance: INSTANCES }.encode(0);
        assert_eq!(FromBroker::decode(&bytes), Err(Malformed::Field));
    }

    #[test]
    fn a_reload_and_its_answer_have_the_documented_bytes() {
        let bytes = FromSpawner::Reload { verdict: Verdict::NeedsRestart }.encode(7);
        assert_eq!(bytes, *b"prv1\x07\0\0\0\x0c\0\0\0\x04\0\0\0");
        let bytes = FromBroker::Reloaded { accepted: true }.encode(7);
        assert_eq!(bytes, *b"prv1\x07\0\0\0\x0d\0\0\0\x01\0\0\0");
        assert_eq!(FromBroker::decode(&bytes), Ok((7, FromBroker::Reloaded { accepted: true })));
        assert_eq!(FromSpawner::decode(&bytes), Err(Malformed::Operation(13)));
        assert_eq!(FromBroker::decode(b"prv1\0\0\0\0\x0d\0\0\0\x02\0\0\0"), Err(Malformed::Field));
    }

    #[test]
    fn what_the_compiler_leaves_is_one_message_and_no_other() {
        let bytes = Compiled { workers: 0x1234 }.encode();
        assert_eq!(bytes, *b"prv1\0\0\0\0\x0e\0\0\0\x34\x12\0\0");
        assert_eq!(Compiled::decode(&bytes), Ok(Compiled { workers: 0x1234 }));
        assert_eq!(Compiled::decode(&FromBroker::Ready.encode(0)), Err(Malformed::Operation(7)));
        assert_eq!(
            Compiled::decode(b"prv1\0\0\0\0\x0e\0\0\0\0\0\x01\0"),
            Ok(Compiled { workers: 0x0001_0000 })
        );
        // What stands for no worker is refused by whoever makes a list of it.
        assert_eq!(crate::plan::workers_of(0x0001_0000), Some(vec![Role::Audit]));
        assert_eq!(crate::plan::workers_of(0x0002_0000), None);
        assert_eq!(Compiled::decode(b"prv1\0\0\0\0\x0e\0\x01\0\0\0\0\0"), Err(Malformed::Field));
        assert_eq!(Compiled::decode(b"prv1\x01\0\0\0\x0e\0\0\0\0\0\0\0"), Err(Malformed::Field));
    }

    #[test]
    fn a_field_without_meaning_must_be_zero() {
        assert_eq!(FromBroker::decode(b"prv1\0\0\0\0\x07\0\0\0\x01\0\0\0"), Err(Malformed::Field));
        assert_eq!(FromBroker::decode(b"prv1\0\0\0\0\x07\x03\0\0\0\0\0\0"), Err(Malformed::Field));
        assert_eq!(FromBroker::decode(b"prv1\0\0\0\0\x08\0\0\0\0\x01\0\0"), Err(Malformed::Field));
    }
}
