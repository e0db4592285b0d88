//! The sending side of a peer: sends at once while the socket takes it, else in the order queued.

use pipe::Encode;
use pipe::Sender;
use tokio::sync::Notify;

/// One peer's outgoing messages.
pub(crate) struct Outbox<S> {
    sender: Sender<S>,
    queued: Notify,
}

impl<S: Encode> Outbox<S> {
    pub(crate) fn new(sender: Sender<S>) -> Self {
        Outbox { sender, queued: Notify::new() }
    }

    /// Sends or queues. A peer that is gone shows at its receiving side, so here it is not an error.
    pub(crate) fn send(&self, id: u64, deadline_ms: u32, message: &S, payload: &[u8]) {
        if let Err(error) = self.sender.send(id, deadline_ms, message, payload) {
            tracing::debug!("a message was not sent: {error}");
        }
        if self.sender.queued() > 0 {
            self.queued.notify_one();
        }
    }

    /// Sends what is queued, whenever there is something; ends when the peer is gone.
    pub(crate) async fn run(&self) {
        loop {
            self.queued.notified().await;
            if self.sender.flush().await.is_err() {
                return;
            }
        }
    }
}
