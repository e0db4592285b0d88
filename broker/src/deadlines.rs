//! Limits of time for everything that waits, at no cost for what does not wait long.
//!
//! A timer of the runtime's own for each request would wake the event loop twice for each. Here one task looks once a
//! second, and only while something waits: a limit is met up to a second late, which is nothing to the tens of seconds
//! that limits are, and an idle broker is never woken.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

const LOOK: Duration = Duration::from_secs(1);

/// All limits that are running.
#[derive(Default)]
pub(crate) struct Deadlines {
    waiting: RefCell<BTreeMap<(Instant, u64), Option<Waker>>>,
    next: Cell<u64>,
    /// The task looks already.
    looks: Cell<bool>,
    wanted: Notify,
}

/// The limit came first.
#[derive(Debug)]
pub(crate) struct Elapsed;

impl Deadlines {
    /// Waits for `work`, but not longer than `limit` and a second.
    ///
    /// It comes pinned (`pin!`): taken by value it would lie in this future twice, as an argument and as what is polled.
    pub(crate) async fn within<F: Future + Unpin>(
        &self,
        limit: Duration,
        mut work: F,
    ) -> Result<F::Output, Elapsed> {
        let entry = Entry { deadlines: self, key: (Instant::now() + limit, self.next.get()) };
        self.next.set(entry.key.1.wrapping_add(1));
        self.waiting.borrow_mut().insert(entry.key, None);
        if !self.looks.get() {
            self.wanted.notify_one();
        }
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = Pin::new(&mut work).poll(context) {
                return Poll::Ready(Ok(output));
            }
            match self.waiting.borrow_mut().get_mut(&entry.key) {
                Some(waker) => {
                    if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                        *waker = Some(context.waker().clone());
                    }
                    Poll::Pending
                }
                // The task has taken it out.
                None => Poll::Ready(Err(Elapsed)),
            }
        })
        .await
    }

    /// The task; runs as long as the broker.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            if self.waiting.borrow().is_empty() {
                self.looks.set(false);
                self.wanted.notified().await;
                self.looks.set(true);
            }
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            let still = self.waiting.borrow_mut().split_off(&(now, 0));
            let over = self.waiting.replace(still);
            over.into_values().flatten().for_each(Waker::wake);
        }
    }
}

struct Entry<'a> {
    deadlines: &'a Deadlines,
    key: (Instant, u64),
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.deadlines.waiting.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    async fn with_task<T>(test: impl AsyncFnOnce(Rc<Deadlines>) -> T) -> T {
        let deadlines = Rc::new(Deadlines::default());
        let task = deadlines.clone().run();
        tokio::select! {
            () = task => unreachable!("it runs for ever"),
            result = test(deadlines) => result,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_ends_in_time_is_returned_and_forgotten() {
        with_task(async |deadlines| {
            assert_eq!(deadlines.within(Duration::from_secs(10), pin!(async { 7 })).await.ok(), Some(7));
            assert!(deadlines.waiting.borrow().is_empty());
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_does_not_end_is_given_up_within_a_second_of_its_limit() {
        let begin = Instant::now();
        with_task(async |deadlines| {
            let never = std::future::pending::<()>();
            assert!(deadlines.within(Duration::from_millis(10), never).await.is_err());
            assert!(deadlines.waiting.borrow().is_empty());
        })
        .await;
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
}
