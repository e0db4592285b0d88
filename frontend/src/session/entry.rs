//! One request, from when it was read until its reply is written.
//!
//! Runs in the frontend.

use std::time::Instant;

use proto::{Answer, Command, Denied, Dialect, Privilege, Reply, Request};

use super::line::Line;
use crate::payload::Upload;
use crate::qga::encoding::{COMMAND_NOT_FOUND, GENERIC_ERROR};
use crate::value::Value;
use crate::{phoenix, qga};

/// A request that is not answered yet.
pub(super) struct Entry {
    pub(super) form: Form,
    pub(super) arrived: Instant,
    /// A sync: those before it need not be answered when it is.
    pub(super) is_sync: bool,
    /// Those of one lane are worked on in order.
    pub(super) lane: u32,
    /// Bytes that it holds.
    pub(super) weight: usize,
    pub(super) state: State,
}

/// What the reply has to repeat, in the dialect it is written in.
pub(super) enum Form {
    Qga(Option<Value>),
    Phoenix(Vec<u8>),
}

pub(super) enum State {
    /// The reply is there, and waits for its turn.
    Ready(Vec<u8>),
    /// The broker has as many requests as it may have.
    Unsent(Box<Request>, Option<Upload>),
    /// The broker has it.
    Sent(Box<Sent>),
}

/// A request that the broker has.
pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) command: &'static Command,
    pub(super) since: Instant,
    /// When something was last heard of it.
    pub(super) progress: Instant,
    pub(super) upload: Option<Upload>,
    /// Pieces of the payload that may be sent.
    pub(super) credit: u16,
    pub(super) line: Line,
    /// Phoenix: the line so far. Replies leave whole there.
    pub(super) text: Vec<u8>,
    /// Pieces that were taken over and not asked for again yet.
    pub(super) owed: u16,
    /// What came before the reply's turn.
    pub(super) early: Vec<Early>,
}

pub(super) enum Early {
    Piece(usize, Vec<u8>),
    Answer(Answer, Vec<u8>),
}

impl Entry {
    /// Whether an error in its place would be worse than waiting: the machine is frozen, or its clock set, while the client believes
    /// that it is not. Then only a sync, whose client has given up, goes on without it.
    pub(super) fn is_waited_for(&self) -> bool {
        let privilege = match &self.state {
            State::Sent(sent) => sent.command.privilege,
            State::Unsent(request, _) => request.privilege(),
            State::Ready(_) => return false,
        };
        match privilege {
            Privilege::Fsfreeze
            | Privilege::Power
            | Privilege::Clock
            | Privilege::Hotplug
            | Privilege::Account => true,
            Privilege::Agent
            | Privilege::Query
            | Privilege::File
            | Privilege::Net
            | Privilege::NetAdmin
            | Privilege::Exec => false,
        }
    }
}

impl Sent {
    /// Whether the broker has answered, and the answer waits for its turn.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.early.last(), Some(Early::Answer(..)))
    }
}

/// The line that a host reads when the policy refuses a request without `id`, or in Phoenix's dialect with an empty tag.
pub fn refusal(dialect: Dialect, denied: &Denied) -> Vec<u8> {
    let form = match dialect {
        Dialect::Qga => Form::Qga(None),
        Dialect::Phoenix => Form::Phoenix(Vec::new()),
    };
    let mut line = Vec::new();
    form.denied(denied, &mut line);
    line
}

impl Form {
    /// Writes the reply of a request answered in front.
    pub(super) fn done(&self, reply: &[u8], output: &mut Vec<u8>) {
        match self {
            Form::Qga(id) => {
                output.extend_from_slice(b"{\"return\": ");
                output.extend_from_slice(reply);
                qga::encoding::end_of_reply(id.as_ref(), output);
            }
            Form::Phoenix(tag) => {
                phoenix::encoding::begin_of_reply(output);
                output.extend_from_slice(reply);
                phoenix::encoding::end_of_reply(tag, output);
            }
        }
    }

    /// Writes what is behind the value of a reply.
    pub(super) fn end(&self, output: &mut Vec<u8>) {
        match self {
            Form::Qga(id) => qga::encoding::end_of_reply(id.as_ref(), output),
            Form::Phoenix(tag) => phoenix::encoding::end_of_reply(tag, output),
        }
    }

    /// Writes an error that is not a system's.
    pub(super) fn failed(&self, text: &[u8], output: &mut Vec<u8>) {
        match self {
            Form::Qga(id) => qga::encoding::error(GENERIC_ERROR, text, id.as_ref(), output),
            Form::Phoenix(tag) => phoenix::encoding::error(&String::from_utf8_lossy(text), -1, tag, output),
        }
    }

    /// Writes a refusal.
    pub(super) fn denied(&self, denied: &Denied, output: &mut Vec<u8>) {
        let class = match denied {
            Denied::Command(_) | Denied::Frozen(_) => COMMAND_NOT_FOUND,
            Denied::Arguments(_) => GENERIC_ERROR,
        };
        match (self, denied) {
            (Form::Qga(id), _) => {
                qga::encoding::error(class, denied.to_string().as_bytes(), id.as_ref(), output);
            }
            (Form::Phoenix(tag), Denied::Frozen(name)) => {
                phoenix::encoding::error(&phoenix::frozen(name), -1, tag, output);
            }
            (Form::Phoenix(tag), _) => phoenix::encoding::error(&denied.to_string(), -1, tag, output),
        }
    }

    /// Writes the broker's answer, or ends the line that has begun.
    ///
    /// Returns what is wrong with it, if the broker broke the protocol.
    pub(super) fn answer(
        &self,
        sent: &mut Sent,
        answer: Answer,
        last: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        match answer {
            // Its client waits for the machine to go down, and takes a line for a failure.
            Answer::Done(_) if sent.command.silent => Ok(()),
            Answer::Done(reply) => self.reply(sent, &reply, last, output),
            // The broker should have ended it so: what was written cannot be taken back.
            Answer::Denied(_) | Answer::Failed(_) if sent.line.has_begun() => {
                self.cut_short(sent, output);
                Ok(())
            }
            Answer::Denied(denied) => {
                self.denied(&denied, output);
                Ok(())
            }
            Answer::Failed(failed) => {
                match self {
                    Form::Qga(_) => self.failed(failed.text.as_bytes(), output),
                    Form::Phoenix(tag) => {
                        phoenix::encoding::error(&failed.text, failed.errno.unwrap_or(-1), tag, output);
                    }
                }
                Ok(())
            }
        }
    }

    fn reply(
        &self,
        sent: &mut Sent,
        reply: &Reply,
        last: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        sent.line.finish(last, reply, output).map_err(|_| "bytes that the reply has no place for")?;
        self.end(output);
        Ok(())
    }

    /// Ends the line that has begun as a short read.
    pub(super) fn cut_short(&self, sent: &mut Sent, output: &mut Vec<u8>) {
        sent.line.cut_short(sent.command, output);
        self.end(output);
    }
}
