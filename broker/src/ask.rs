//! One request under way, between the frontend that brought it and the work that is done for it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use authorize::{By, Policy};
use proto::chain::Hash;
use proto::message::{Found, ToFrontend};
use proto::{Answer, limits};
use sha2::{Digest as _, Sha256};

use crate::outbox::Outbox;
use crate::signal::Signal;

/// A request that a frontend waits for.
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) lane: u32,
    pub(crate) channel: Rc<str>,
    outbox: Rc<Outbox<ToFrontend>>,
    abandoned: Cell<bool>,
    cancelled: Cell<bool>,
    /// Pieces of the reply that may be sent.
    credit: Cell<u16>,
    /// Pieces of the payload that have come and not been used.
    pieces: RefCell<VecDeque<Vec<u8>>>,
    /// Bytes of the payload that have not come.
    missing: Cell<u64>,
    /// Of the payload that has passed, if its digest is to be recorded, and whether any has.
    digest: RefCell<Option<(Sha256, bool)>>,
    changed: Signal,
    /// The policy by which it is decided.
    policy: OnceCell<Rc<Policy>>,
    /// What was found out about it, and the rule that permits it for that.
    found: RefCell<Option<(Found, By)>>,
}

impl Ask {
    pub(crate) fn new(
        id: u64,
        lane: u32,
        channel: Rc<str>,
        outbox: Rc<Outbox<ToFrontend>>,
        first: &[u8],
        length: u64,
    ) -> Self {
        let pieces = if first.is_empty() { VecDeque::new() } else { VecDeque::from([first.to_vec()]) };
        Ask {
            id,
            lane,
            channel,
            outbox,
            abandoned: Cell::new(false),
            cancelled: Cell::new(false),
            credit: Cell::new(limits::WINDOW),
            pieces: RefCell::new(pieces),
            missing: Cell::new(length.saturating_sub(first.len() as u64)),
            digest: RefCell::new(None),
            changed: Signal::default(),
            policy: OnceCell::new(),
            found: RefCell::default(),
        }
    }

    /// It is decided now, by this policy.
    pub(crate) fn decide_by(&self, policy: Rc<Policy>) -> &Rc<Policy> {
        self.policy.get_or_init(|| policy)
    }

    /// By which policy it was decided.
    pub(crate) fn policy(&self) -> &Rc<Policy> {
        self.policy.get().expect("nothing is done for what has not been decided")
    }

    /// A further piece of the payload has come; false if it was not asked for.
    pub(crate) fn piece_came(&self, bytes: &[u8]) -> bool {
        let mut pieces = self.pieces.borrow_mut();
        if bytes.is_empty() || pieces.len() >= usize::from(limits::WINDOW) {
            return false;
        }
        pieces.push_back(bytes.to_vec());
        drop(pieces);
        self.missing.set(self.missing.get().saturating_sub(bytes.len() as u64));
        self.changed.set();
        true
    }

    /// The frontend takes that many more pieces; false if it takes more than it may.
    pub(crate) fn more_came(&self, count: u16) -> bool {
        let credit = self.credit.get().saturating_add(count);
        self.credit.set(credit);
        self.changed.set();
        credit <= limits::WINDOW
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn abandon(&self) {
        self.abandoned.set(true);
        self.changed.set();
    }

    /// Nobody waits for the answer any more, and what would be handed out with it is to be taken back.
    pub(crate) fn cancel(&self) {
        self.cancelled.set(true);
        self.abandon();
    }

    /// Waits until it is cancelled. A client that has only gone cancels nothing.
    pub(crate) async fn cancelled(&self) {
        while !self.cancelled.get() {
            self.changed.wait().await;
        }
    }

    /// Keeps what was found out about it for its record.
    pub(crate) fn note(&self, found: Option<(Found, By)>) {
        self.found.replace(found);
    }

    /// What was found out about it.
    pub(crate) fn found(&self) -> Option<(Found, By)> {
        self.found.take()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.get()
    }

    /// The next piece of the payload; nothing if the request was abandoned before all had come.
    /// Whoever uses it asks for a further one, if there is one.
    pub(crate) async fn next_piece(&self) -> Option<Vec<u8>> {
        loop {
            if let Some(piece) = self.pieces.borrow_mut().pop_front() {
                if self.missing.get() > 0 {
                    self.outbox.send(self.id, 0, &ToFrontend::More(1), &[]);
                }
                return Some(piece);
            }
            if self.abandoned.get() {
                return None;
            }
            self.changed.wait().await;
        }
    }

    /// Sends a piece of the reply when the frontend is ready for it; false if nobody waits for it any more.
    pub(crate) async fn send_piece(&self, stream: u8, bytes: &[u8]) -> bool {
        loop {
            if self.abandoned.get() {
                return false;
            }
            if let Some(left) = self.credit.get().checked_sub(1) {
                self.credit.set(left);
                self.passed(bytes);
                self.outbox.send(self.id, 0, &ToFrontend::Piece(stream), bytes);
                return true;
            }
            self.changed.wait().await;
        }
    }

    /// From now on payload that passes is digested.
    pub(crate) fn digest_payload(&self) {
        *self.digest.borrow_mut() = Some((Sha256::new(), false));
    }

    /// Payload has been read or written.
    pub(crate) fn passed(&self, bytes: &[u8]) {
        if let Some((digest, any)) = &mut *self.digest.borrow_mut() {
            digest.update(bytes);
            *any |= !bytes.is_empty();
        }
    }

    /// The digest of all payload that has passed, and of the last bytes, if there were any.
    pub(crate) fn digest(&self, last_bytes: &[u8]) -> Option<Hash> {
        self.passed(last_bytes);
        let (digest, any) = self.digest.borrow_mut().take()?;
        any.then(|| Hash(digest.finalize().into()))
    }

    /// Its worker is being started, or has been.
    pub(crate) fn starting(&self, starts: bool) {
        if !self.abandoned.get() {
            self.outbox.send(self.id, 0, &ToFrontend::Starting(starts), &[]);
        }
    }

    /// Ends the request, with the last bytes of the reply's first stream.
    pub(crate) fn answer(&self, answer: Answer, bytes: &[u8]) {
        if !self.abandoned.get() {
            self.outbox.send(self.id, 0, &ToFrontend::Answer(answer), bytes);
        }
    }
}
