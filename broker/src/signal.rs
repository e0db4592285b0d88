//! Wakes the one that waits for something.
//!
//! Nearly every request waits for several of these. tokio's `Notify` does the same for any number of waiters in any thread, with a lock
//! and a list; here there is one thread and, for each signal, one task that waits.

use std::cell::Cell;
use std::task::{Poll, Waker};

/// What happened is remembered until somebody has waited for it; twice is once.
#[derive(Default)]
pub(crate) struct Signal {
    is_set: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl Signal {
    /// It has happened.
    pub(crate) fn set(&self) {
        self.is_set.set(true);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    /// Waits until it has happened; at once if it has since the last wait. For one task: of two, the one that came first is forgotten.
    pub(crate) async fn wait(&self) {
        std::future::poll_fn(|context| {
            if self.is_set.take() {
                return Poll::Ready(());
            }
            let known = self.waiter.take().filter(|waiter| waiter.will_wake(context.waker()));
            self.waiter.set(Some(known.unwrap_or_else(|| context.waker().clone())));
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_has_happened_before_is_not_waited_for_and_twice_is_once() {
        let signal = Signal::default();
        signal.set();
        signal.set();
        signal.wait().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), signal.wait()).await.is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_waits_is_woken_also_after_a_wait_that_was_given_up() {
        let signal = Rc::new(Signal::default());
        assert!(tokio::time::timeout(Duration::from_millis(1), signal.wait()).await.is_err());
        let tasks = tokio::task::LocalSet::new();
        let waits = signal.clone();
        let waiter = tasks.spawn_local(async move { waits.wait().await });
        tasks
            .run_until(async {
                tokio::task::yield_now().await;
                signal.set();
                tokio::time::timeout(Duration::from_secs(5), waiter).await.expect("a lost wake-up").unwrap();
            })
            .await;
    }
}
