//! The spawner's side of things: start and kill by kind, and learn what has ended.
//!
//! The spawner has every right and believes nothing but 16-byte messages; it is the one peer that the broker cannot
//! do without: when it goes, so does the broker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use jail::Role;
use nix::errno::Errno;
use spawner::{Control, ControlError, FromBroker, FromSpawner, Reason};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::Broker;
use crate::frontends;

/// What came of asking for a worker: its socket and its log pipe.
type Started = Result<(OwnedFd, OwnedFd), Reason>;

/// What came of asking for another file of the audit log: the file, and what stands behind the name of the one before; or an errno.
type Rotated = Result<(OwnedFd, u32), Errno>;

/// Asks the spawner.
pub(crate) struct Spawner {
    control: Control,
    ready: AsyncFd<OwnedFd>,
    sequence: Cell<u32>,
    starting: RefCell<HashMap<u32, oneshot::Sender<Started>>>,
    rotating: RefCell<HashMap<u32, oneshot::Sender<Rotated>>>,
}

impl Spawner {
    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<Self> {
        let ready = pipe::watch(socket.try_clone()?)?;
        Ok(Spawner {
            control: Control::new(socket),
            ready,
            sequence: Cell::new(0),
            starting: RefCell::default(),
            rotating: RefCell::default(),
        })
    }

    /// Has a worker started; returns its socket and its log pipe.
    pub(crate) async fn start(&self, kind: Role, instance: u16) -> Result<(OwnedFd, OwnedFd), String> {
        let sequence = self.next_sequence();
        let (sender, receiver) = oneshot::channel();
        self.starting.borrow_mut().insert(sequence, sender);
        self.send(FromBroker::Start { kind, instance }, sequence);
        match receiver.await {
            Ok(Ok(descriptors)) => Ok(descriptors),
            Ok(Err(reason)) => Err(match reason {
                Reason::NotPermitted => "the policy in force does not need it",
                Reason::TooOften => "it has ended too often in the last seconds; try again later",
                Reason::ExecFailed => "its program could not be executed; reinstall the agent",
                Reason::AlreadyRunning => "an earlier one hangs and cannot be ended",
            }
            .to_owned()),
            Err(_) => Err("the spawner has gone".to_owned()),
        }
    }

    /// Has another file of the audit log begun.
    pub(crate) async fn rotate(&self) -> Rotated {
        let sequence = self.next_sequence();
        let (sender, receiver) = oneshot::channel();
        self.rotating.borrow_mut().insert(sequence, sender);
        self.send(FromBroker::Rotate, sequence);
        receiver.await.unwrap_or(Err(Errno::EPIPE))
    }

    pub(crate) fn kill(&self, kind: Role, instance: u16) {
        self.send(FromBroker::Kill { kind, instance }, 0);
    }

    /// All frontends are in service.
    pub(crate) fn ready(&self) {
        self.send(FromBroker::Ready, 0);
    }

    /// Whether filesystems are frozen: while they are the spawner writes nothing, and does not end the agent without thawing.
    pub(crate) fn frozen(&self, frozen: bool) {
        self.send(FromBroker::Frozen { frozen }, 0);
    }

    /// Whether the policy that was offered under this number is in force.
    pub(crate) fn reloaded(&self, sequence: u32, accepted: bool) {
        self.send(FromBroker::Reloaded { accepted }, sequence);
    }

    /// Ends the agent.
    pub(crate) fn stop(&self) {
        self.send(FromBroker::Stop { status: 0 }, 0);
    }

    fn send(&self, message: FromBroker, sequence: u32) {
        match self.control.send(message, sequence) {
            // That it ends shows at the receiving side; when the agent is stopped it is nothing to complain of.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::error!("the spawner does not take a message: {error}"),
            Ok(()) => {}
        }
    }

    fn next_sequence(&self) -> u32 {
        // 0 stands for "no answer expected".
        let next = self.sequence.get().checked_add(1).unwrap_or(1);
        self.sequence.set(next);
        next
    }

    async fn next(&self) -> Result<spawner::Received, ControlError> {
        loop {
            let mut ready = pipe::readable(&self.ready).await.map_err(ControlError::Io)?;
            match self.control.try_receive()? {
                Some(received) => return Ok(received),
                None => ready.clear_ready(),
            }
        }
    }
}

/// Follows the spawner until it closes the socket.
pub(crate) async fn serve(broker: Rc<Broker>) -> Result<(), String> {
    loop {
        let received = match broker.control.next().await {
            Ok(received) => received,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let started = broker.control.starting.borrow_mut().remove(&received.sequence);
        let rotating = broker.control.rotating.borrow_mut().remove(&received.sequence);
        match (received.message, received.descriptors) {
            (FromSpawner::Started { .. }, [Some(socket), Some(log)]) => answer(started, Ok((socket, log))),
            (FromSpawner::Refused { reason, .. }, _) => answer(started, Err(reason)),
            (FromSpawner::Frontend { channel, pid }, [Some(socket), Some(log)]) => {
                tracing::debug!("frontend {channel} is process {pid}");
                tokio::task::spawn_local(crate::logs::copy(format!("frontend {channel}"), log));
                tokio::task::spawn_local(frontends::serve(broker.clone(), channel, socket));
            }
            (FromSpawner::Exited { kind: Role::Frontend, instance, status }, _) => {
                tracing::info!("frontend {instance} ended: {}", describe(status));
            }
            (FromSpawner::Exited { kind, instance, status }, _) => {
                if status != 0 {
                    let members = serde_json::json!({ "worker": kind.name(), "status": describe(status) });
                    broker.audit.note("worker", &members);
                }
                match kind {
                    Role::Audit => broker.audit.worker_exited(),
                    _ => broker.workers.exited(kind, instance, &describe(status)),
                }
            }
            (FromSpawner::Thaw, _) => {
                let broker = broker.clone();
                tokio::task::spawn_local(async move { crate::freeze::stop(&broker).await });
            }
            (FromSpawner::Rotated { number }, [Some(file), _]) => answer(rotating, Ok((file, number))),
            (FromSpawner::Kept { errno }, _) => {
                answer(rotating, Err(Errno::from_raw(i32::try_from(errno).unwrap_or_default())));
            }
            (FromSpawner::Reload { verdict }, [Some(form), _]) => {
                let broker = broker.clone();
                tokio::task::spawn_local(crate::reload::take(broker, received.sequence, verdict, form));
            }
            (
                FromSpawner::Started { .. }
                | FromSpawner::Frontend { .. }
                | FromSpawner::Rotated { .. }
                | FromSpawner::Reload { .. },
                _,
            ) => {
                return Err("the spawner sent no descriptors".to_owned());
            }
        }
    }
}

fn answer<T>(waiting: Option<oneshot::Sender<T>>, started: T) {
    // Whoever asked may have given up; then dropping the socket ends the worker.
    if let Some(waiting) = waiting {
        let _ = waiting.send(started);
    }
}

fn describe(status: i32) -> String {
    use std::os::unix::process::ExitStatusExt;
    let status = std::process::ExitStatus::from_raw(status);
    match status.signal() {
        // SIGSYS
        Some(31) => "killed for a system call that its sandbox does not permit".to_owned(),
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}
