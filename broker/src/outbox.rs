//! The sending side of a peer: sends at once while the socket takes it, else in the order queued.

use std::cell::Cell;

use pipe::Encode;
use pipe::Sender;

use crate::signal::Signal;

/// One peer's outgoing messages.
pub(crate) struct Outbox<S> {
    sender: Sender<S>,
    /// Something is queued, or it was closed.
    changed: Signal,
    is_closed: Cell<bool>,
}

impl<S: Encode> Outbox<S> {
    pub(crate) fn new(sender: Sender<S>) -> Self {
        Outbox { sender, changed: Signal::default(), is_closed: Cell::new(false) }
    }

    /// Sends or queues. A peer that is gone shows at its receiving side, so here it is not an error.
    pub(crate) fn send(&self, id: u64, deadline_ms: u32, message: &S, payload: &[u8]) {
        if let Err(error) = self.sender.send(id, deadline_ms, message, payload) {
            tracing::debug!("a message was not sent: {error}");
        }
        if self.sender.queued() > 0 {
            self.changed.set();
        }
    }

    /// Ends [`Self::run`].
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.changed.set();
    }

    /// Sends what is queued, whenever there is something; ends when the peer is gone, or it is closed.
    pub(crate) async fn run(&self) {
        while !self.is_closed.get() && self.sender.flush().await.is_ok() {
            self.changed.wait().await;
        }
    }
}
