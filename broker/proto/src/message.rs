//! What travels between processes. Two ends have two types: what one may send, the other may receive, so a
//! message in the wrong direction does not compile. Sent and received by `pipe`.
//!
//! A message is one of these values, the id and deadline in the frame's header, and up to one
//! [`PIECE`](crate::limits::PIECE) of raw payload behind it.

use bincode::{Decode, Encode};

use crate::chain::Hash;
use crate::{Answer, CommandId, Dialect, Failed, Request, Text, settings::ChannelSettings};

/// First message each way. A different build id ends the receiver: it belongs to another build.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`crate::BUILD_ID`] of the sender.
    pub build_id: String,
    /// What the sender is: the stem of its executable.
    pub role: String,
    /// What its jail really enforces; empty from the broker.
    pub confinement: Vec<(String, String)>,
}

/// From a frontend to the broker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum FromFrontend {
    /// Opens the conversation.
    Hello(Hello),
    /// A request; the header's id is new, and names it in all that follows. The first piece of its payload is
    /// behind it; at most [`WINDOW`](crate::limits::WINDOW) pieces, that one counted, until the broker says `More`.
    Request {
        /// Requests of one lane are worked on one after the other; lane 0 has no order (Phoenix).
        lane: u32,
        /// What is asked.
        request: Request,
        /// Requests answered in front since the last message that said so.
        counts: Vec<(CommandId, u32)>,
    },
    /// The next bytes of the request's payload are behind this message.
    Piece,
    /// The reply's reader is ready for that many more pieces.
    More(u16),
    /// Nobody waits for the answer of the request with this id any more; it is not to be sent.
    /// `cancel` if it is not to be started either, when it has not been.
    Abandon {
        /// Not to be started any more.
        cancel: bool,
    },
    /// Requests answered in front, when there is no request to send them with.
    Counts(Vec<(CommandId, u32)>),
    /// The frontend met something that the log should show.
    Note(String),
}

/// From the broker to a frontend.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToFrontend {
    /// Opens the conversation.
    Hello(Hello),
    /// After the hello, and again whenever what is served has changed: by another policy, by a freeze, by a thaw.
    Welcome(Welcome),
    /// The request's payload may go on with that many pieces.
    More(u16),
    /// The request waits for its worker to start (true); the worker has started (false). Meanwhile it does not count as one that does
    /// not move, up to [`crate::limits::STARTING`].
    Starting(bool),
    /// The next bytes of the reply's stream with this number are behind this message.
    Piece(u8),
    /// The end of a request: nothing with its id follows. The last bytes of the reply's first stream may be
    /// behind it.
    Answer(Answer),
}

/// What a frontend needs to answer in front.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// Its channel.
    pub channel: ChannelSettings,
    /// Whether filesystems are frozen: the verdicts are those of that state.
    pub frozen: bool,
    /// For each command of the channel's dialects: may it be served at all?
    pub verdicts: Vec<(CommandId, bool)>,
    /// Those answered in front of which the broker is told each time, at once, since each is to be recorded.
    pub each: Vec<CommandId>,
    /// What `guest-info` and Phoenix's `ping` say.
    pub versions: Vec<(Dialect, String)>,
}

/// From the broker to a worker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToWorker {
    /// Opens the conversation.
    Hello(Hello),
    /// Work. The piece behind it belongs to it: a file is written by one job for each piece.
    Job(Job),
    /// A further piece of the payload of a job that has not begun (`guest-exec` input).
    Piece,
    /// That many more pieces of the job's reply may be sent.
    More(u16),
    /// Nobody waits for this job any more. What it would hand out is taken back, if it has not begun it is dropped.
    Abandon,
    /// Filesystems are frozen on the agent's behalf, by a worker before this one: on end-of-file and SIGTERM it thaws all that
    /// can be thawed, not only what it froze itself.
    Adopt,
    /// Closes the file with this handle: it was opened too late for anybody to know of it.
    Forget(u64),
    /// To the audit worker only, instead of jobs: a record for the kernel's audit. The record itself is behind it, in printable ASCII, at
    /// most [`RECORD`](crate::limits::RECORD) bytes. Answered in the order in which they are sent.
    Record(About),
}

/// What the kernel's audit shows of a record beside the record itself. Texts are printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct About {
    /// Its number in the audit log.
    pub sequence: u64,
    /// Of the whole record.
    pub hash: Hash,
    /// `request`, `intent`, `start`, …
    pub kind: String,
    /// The command, for records of requests.
    pub command: Option<String>,
    /// The channel it came in by.
    pub channel: Option<String>,
    /// What the policy said.
    pub decision: Option<String>,
    /// What came of it.
    pub outcome: Option<String>,
}

/// One permitted request on its way to the worker, which checks it again by the same policy.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Job {
    /// The channel it came in by.
    pub channel: String,
    /// What to do.
    pub request: Request,
    /// What the broker adds that the host cannot say.
    pub detail: Detail,
}

/// What the broker adds to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Detail {
    /// The number that the worker knows the file by: chosen by the broker for an open, found by it otherwise.
    pub handle: u64,
    /// A read: where to read, instead of at the file's position, and leave the position alone.
    /// A write: where in the request's payload this job's piece begins.
    pub offset: Option<u64>,
    /// A write: the position to move the file to first, because reads by offset have gone past it.
    pub position: Option<u64>,
    /// A read: how many bytes of it to return now, at most [`PIECE`](crate::limits::PIECE).
    pub count: u32,
}

/// What a worker has found out about a request, where the policy asks for it: the broker decides by it as the worker has done, and
/// so knows the rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Found {
    /// The absolute path of what a path led to; at most [`FOUND_PATH`](crate::limits::FOUND_PATH) bytes.
    pub path: Option<Text>,
    /// The number of the user that was named.
    pub uid: Option<u32>,
    /// The worker's kernel refuses what the policy permits there, because it was made or replaced after the worker had started:
    /// another worker would do it.
    pub stale: bool,
}

/// From a worker to the broker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum FromWorker {
    /// Opens the conversation; sent when the jail is shut.
    Hello(Hello),
    /// Bytes of the reply's stream with this number are behind this message; at most
    /// [`WINDOW`](crate::limits::WINDOW) of them until the broker says `More`.
    Piece(u8),
    /// The job has ended. Bytes of the reply's first stream may be behind it.
    Answer(Result<crate::Reply, Failed>, Found),
    /// The job has not been done: the policy refuses it, for what was found out.
    Denied(Found),
    /// The worker's own policy refuses what the broker permitted: one of the two has been taken over.
    Refused(String),
    /// A piece of a payload has been taken (`guest-exec` input).
    Taken,
    /// The kernel's audit has the record with this id, or why not.
    Recorded(Result<(), Failed>),
}
