//! The way to the kernel's audit: records wait here until the audit worker has said what became of them.
//!
//! The worker has the right to write there; the kernel may hold it up for as long as auditd does not keep up. Nobody waits for that: what
//! does not fit into the queue is lost and counted. A worker that ends is replaced, and gets again what the one before it did not
//! answer, so a record may stand in the kernel's audit twice, with one number. Its messages are hostile input, as any worker's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use jail::Role;
use proto::PeerFault;
use proto::message::{About, FromWorker, ToWorker};
use tokio::sync::{Notify, oneshot};

use crate::Broker;
use crate::outbox::Outbox;
use crate::workers::{START_LIMIT, greet};

/// Bytes of records that wait at most: what may have waited for a thaw, and as much again.
const WAITING: usize = 2 * super::HELD;
/// How long after a worker has ended without having done anything another is started, at the earliest.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the spawner may take to see that a worker has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Records on their way, oldest first.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: RefCell<VecDeque<Waiting>>,
    bytes: Cell<usize>,
    number: Cell<u64>,
    /// Where they are sent, while there is a worker.
    outbox: RefCell<Option<Rc<Outbox<ToWorker>>>>,
    added: Notify,
    exited: Notify,
    /// Records that have not reached the kernel since one did.
    missed: Cell<u64>,
}

struct Waiting {
    number: u64,
    message: ToWorker,
    record: Vec<u8>,
    /// How many are lost with it.
    counts: u64,
    settled: Option<oneshot::Sender<Result<(), String>>>,
}

impl Queue {
    /// Takes a record, and sends it if there is a worker.
    pub(super) fn put(&self, about: About, record: &[u8], counts: u64) -> Result<(), String> {
        let bytes = self.bytes.get().saturating_add(record.len());
        if bytes > WAITING {
            self.missed.set(self.missed.get().saturating_add(counts));
            return Err("the kernel's audit has not taken those before it".to_owned());
        }
        self.bytes.set(bytes);
        self.number.set(self.number.get().wrapping_add(1));
        let (number, message) = (self.number.get(), ToWorker::Record(about));
        let waiting = Waiting { number, message, record: record.to_vec(), counts, settled: None };
        if let Some(outbox) = &*self.outbox.borrow() {
            outbox.send(number, 0, &waiting.message, record);
        }
        self.waiting.borrow_mut().push_back(waiting);
        self.added.notify_one();
        Ok(())
    }

    /// Waits for what becomes of the last one.
    pub(super) fn last(&self) -> impl Future<Output = Result<(), String>> + use<> {
        let (sender, receiver) = oneshot::channel();
        match self.waiting.borrow_mut().back_mut() {
            Some(last) => last.settled = Some(sender),
            None => _ = sender.send(Ok(())),
        }
        async { receiver.await.unwrap_or_else(|_| Err("the agent ends".to_owned())) }
    }

    /// The spawner has seen the end of the worker.
    pub(crate) fn exited(&self) {
        self.exited.notify_one();
    }

    /// All that wait are sent to a worker that is there now.
    fn connect(&self, outbox: Rc<Outbox<ToWorker>>) {
        for waiting in self.waiting.borrow().iter() {
            outbox.send(waiting.number, 0, &waiting.message, &waiting.record);
        }
        self.outbox.replace(Some(outbox));
    }

    /// The worker has answered the oldest. An error is the worker's fault.
    fn settle(&self, broker: &Broker, number: u64, result: Result<(), String>) -> Result<(), String> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.front().is_none_or(|oldest| oldest.number != number) {
            return Err("an answer to a record that is not its oldest".to_owned());
        }
        let oldest = waiting.pop_front();
        drop(waiting);
        if let Some(oldest) = oldest {
            self.forget(broker, oldest, result);
        }
        Ok(())
    }

    /// None of those that wait gets there.
    fn give_up(&self, broker: &Broker, why: &str) {
        while let Some(oldest) = { self.waiting.borrow_mut().pop_front() } {
            self.forget(broker, oldest, Err(why.to_owned()));
        }
    }

    fn forget(&self, broker: &Broker, waiting: Waiting, result: Result<(), String>) {
        let Waiting { record, counts, settled, .. } = waiting;
        self.bytes.set(self.bytes.get().saturating_sub(record.len()));
        match &result {
            Ok(()) => match self.missed.take() {
                0 => {}
                missed => tracing::error!("the kernel's audit takes records again; it misses {missed}"),
            },
            Err(why) => {
                if self.missed.get() == 0 {
                    tracing::error!("the kernel's audit does not take records: {why}");
                }
                self.missed.set(self.missed.get().saturating_add(counts));
                broker.audit.missed(counts);
            }
        }
        if let Some(settled) = settled {
            // Whoever waited for it may have given up.
            let _ = settled.send(result);
        }
    }
}

/// Sees to it that there is an audit worker, if records go to the kernel's audit.
pub(crate) async fn attend(broker: Rc<Broker>) {
    let Some(queue) = broker.audit.kernel() else { return };
    let mut instance = 0;
    loop {
        let before = queue.number.get();
        let done = Cell::new(false);
        let outcome = live(&broker, &queue, instance, &done).await;
        queue.outbox.replace(None);
        if let Err(why) = &outcome {
            tracing::error!("{}", PeerFault { peer: "audit worker".to_owned(), what: why.clone() });
        }
        // The next one has another number: this one may hang in the kernel.
        instance = (instance + 1) % spawner::message::INSTANCES;
        if !done.get() {
            let why = outcome.err().unwrap_or_else(|| "the audit worker ended".to_owned());
            queue.give_up(&broker, &why);
            tokio::time::sleep(AGAIN).await;
            // An agent that records nothing needs none.
            while queue.waiting.borrow().is_empty() && queue.number.get() == before {
                queue.added.notified().await;
            }
        }
    }
}

/// One worker, from its start to its end. `done` once it has answered.
async fn live(
    broker: &Rc<Broker>,
    queue: &Rc<Queue>,
    instance: u16,
    done: &Cell<bool>,
) -> Result<(), String> {
    let (socket, log) = broker.control.start(Role::Audit, instance).await?;
    tokio::task::spawn_local(crate::logs::copy("audit worker".to_owned(), log));
    let outcome = converse(broker, queue, socket, done).await;
    if outcome.is_err() {
        broker.control.kill(Role::Audit, instance);
    }
    let _ = tokio::time::timeout(LAST_WORDS, queue.exited.notified()).await;
    outcome
}

async fn converse(
    broker: &Rc<Broker>,
    queue: &Rc<Queue>,
    socket: OwnedFd,
    done: &Cell<bool>,
) -> Result<(), String> {
    let (sender, mut receiver) = pipe::split(socket).map_err(|error| error.to_string())?;
    let outbox = Rc::new(Outbox::new(sender));
    let greeted = tokio::time::timeout(START_LIMIT, greet(broker, Role::Audit, &outbox, &mut receiver)).await;
    if !greeted.map_err(|_| "nothing within 5 s of its start".to_owned())?? {
        return Ok(());
    }
    queue.connect(outbox.clone());
    let receive = async {
        while let Some(received) = receiver.receive().await.map_err(|error| error.to_string())? {
            let FromWorker::Recorded(result) = received.message else {
                return Err("what is no answer to a record".to_owned());
            };
            queue.settle(broker, received.id, result.map_err(|failed| failed.text))?;
            done.set(true);
        }
        Ok(())
    };
    tokio::select! {
        outcome = receive => outcome,
        () = outbox.run() => Ok(()),
    }
}
