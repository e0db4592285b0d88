//! The policy's second look at a request: by where its path has really led.
//!
//! Where no rule has paths, nothing is asked and nothing is found out. What a rule permits is kept with the open file: its limits
//! are those of that rule, and reading or writing it is decided about where it is.

use std::cell::RefCell;
use std::sync::Arc;

use authorize::Exceeded;
use nix::errno::Errno;
use proto::message::Found;
use proto::{Failed, Request, Text, file};
use runtime::{Call, NotDone, Refused, RunAs, Terms};

use crate::paths::{PathError, Paths};
use crate::table::Table;

/// A job, and what the policy says of it.
pub(crate) struct Asked<'a> {
    pub(crate) call: &'a Call<'a>,
    request: &'a Request,
    table: &'a Table,
    grant: RefCell<Grant>,
}

/// How what was opened may be used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grant {
    /// Of the rule that permits it.
    pub(crate) terms: Option<Arc<Terms>>,
    /// Where it is; nothing if the policy does not ask.
    pub(crate) found: Found,
    /// Bytes that have been read and written.
    pub(crate) used: u64,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(call: &'a Call<'a>, request: &'a Request, table: &'a Table) -> Self {
        let grant = RefCell::new(Grant { terms: call.terms.clone(), ..Grant::default() });
        Asked { call, request, table, grant }
    }

    /// Whether it has to be found out where a path leads.
    pub(crate) fn is_about_paths(&self) -> bool {
        self.call.asks_paths()
    }

    /// Decides about the request's path, which leads to `path`. Until then nothing may have been done.
    pub(crate) fn decide(&self, path: Vec<u8>) -> Result<(), PathError> {
        let found = Found { path: Some(Text(path)), ..Found::default() };
        let by = self.call.decide(self.request, found.clone())?;
        self.grant.replace(Grant { terms: by.terms, found, used: 0 });
        self.room()
    }

    /// Whether the rule that permits it lets one more file be open, if this request opens one.
    pub(crate) fn room(&self) -> Result<(), PathError> {
        let opens =
            matches!(self.request, Request::File(file::Request::Open(_) | file::Request::PhoenixOpen(_)));
        match &self.grant.borrow().terms {
            Some(terms) if opens => self.table.room_by(terms).map_err(PathError::Full),
            _ => Ok(()),
        }
    }

    /// Of a job that was not done: whether it is this worker's age that is in the way.
    pub(crate) fn ended(&self, not_done: &NotDone, paths: &Paths) {
        let NotDone::Failed(Failed { errno, .. }) = not_done else { return };
        let found = &self.grant.borrow().found;
        if let Some(Text(path)) = &found.path
            && *errno == Some(Errno::EACCES as i32)
            && paths.has_newer_roots(path)
        {
            self.call.is_too_old();
        }
    }

    /// Who gets what is made, if the rule that permits it names somebody. Asked when it has been decided where that is.
    pub(crate) fn owner(&self) -> Option<RunAs> {
        self.grant.borrow().terms.as_ref().and_then(|terms| terms.run_as)
    }

    /// What the rule that permits it says.
    pub(crate) fn grant(&self) -> Grant {
        self.grant.borrow().clone()
    }
}

impl Grant {
    /// Whether the job may read or write where the file is: it may have been opened for something else, or by another channel.
    pub(crate) fn permits(&self, asked: &Asked<'_>) -> Result<(), Refused> {
        match self.found.path {
            Some(_) => asked.call.decide_again(asked.request, &self.found).map(drop),
            None => Ok(()),
        }
    }

    /// How many of `count` bytes may be read now. The broker has counted, too.
    pub(crate) fn readable(&self, count: usize) -> Result<usize, Exceeded> {
        let Some(terms) = &self.terms else { return Ok(count) };
        let most = terms.readable(size(count), self.used)?;
        Ok(usize::try_from(most).unwrap_or(usize::MAX).min(count))
    }

    /// Whether `count` bytes of a request of `total` may be written now.
    pub(crate) fn writable(&self, count: usize, total: u64) -> Result<(), Exceeded> {
        let Some(terms) = &self.terms else { return Ok(()) };
        terms.writable(total, 0)?;
        terms.writable(size(count), self.used)
    }

    /// Counts what was read or written.
    pub(crate) fn use_up(&mut self, count: usize) {
        self.used = self.used.saturating_add(size(count));
    }

    /// Whether reading it ahead leaves its limits as they are: what is read ahead is not always used.
    pub(crate) fn may_be_read_ahead(&self) -> bool {
        self.terms.as_ref().is_none_or(|terms| terms.handle_bytes.is_none())
    }
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
