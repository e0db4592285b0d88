//! For frontend and broker, which wait for many things at once (tokio).
//!
//! Not tokio's `UnixStream`: on a SEQPACKET socket it takes a short read for "drained" and then misses what is
//! queued behind it. Readiness comes from `AsyncFd`, and is given back only when the kernel has said that there is no more:
//! it is asked for two packets at once, so that one question tells what there is and whether that was all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bincode::{Decode, Encode};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::PipeError;
use crate::blocking::{receive_buffer, whole_frame};
use crate::frame::{Assembler, Outgoing, Received};

/// Bytes that may wait for a peer that does not read, before it is given up.
const QUEUE_MAX: usize = 48 * 1024 * 1024;

/// Makes two halves of one end of a socketpair: sends `S`, receives `R`.
///
/// Takes over a connected, non-blocking SOCK_SEQPACKET socket.
///
/// # Errors
/// If the socket cannot be watched.
pub fn split<S: Encode, R: Decode<()>>(socket: OwnedFd) -> std::io::Result<(Sender<S>, Receiver<R>)> {
    let socket = Arc::new(watch(socket)?);
    let sender = Sender {
        socket: socket.clone(),
        queue: RefCell::default(),
        queued: Cell::new(0),
        outgoing: RefCell::default(),
        direction: PhantomData,
    };
    let receiver = Receiver {
        socket,
        first: receive_buffer(),
        second: receive_buffer(),
        follows: None,
        is_drained: false,
        headers: MultiHeaders::preallocate(2, None),
        assembler: Assembler::default(),
        direction: PhantomData,
    };
    Ok((sender, receiver))
}

/// Watches a descriptor for being readable.
///
/// Only for that: the kernel reports every message that a peer takes off a socket as "writable again", and each of these
/// reports would wake us for nothing.
///
/// # Errors
/// If it cannot be watched (a regular file), or outside of a tokio runtime.
pub fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    watch_for(descriptor, Interest::READABLE)
}

/// Watches a descriptor for being writable, for as long as it is full: under a second number, since one number can be
/// registered only once.
///
/// # Errors
/// As [`watch`]; also when there are no descriptors left.
pub fn watch_full(descriptor: BorrowedFd<'_>) -> std::io::Result<AsyncFd<OwnedFd>> {
    watch_for(descriptor.try_clone_to_owned()?, Interest::WRITABLE)
}

/// Waits until a descriptor is readable. For one waiting task at a time: a second one takes the first one's place.
///
/// tokio's own `readable` lets any number wait, and pays for that with an entry in a list, made and removed each time.
///
/// # Errors
/// If the runtime is ending.
pub async fn readable(descriptor: &AsyncFd<OwnedFd>) -> std::io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    std::future::poll_fn(|context| descriptor.poll_read_ready(context)).await
}

#[expect(
    deprecated,
    reason = "the replacement is unsafe because a type could close what it lends out; an OwnedFd behind a shared reference cannot"
)]
fn watch_for(descriptor: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// The sending half. Of one thread; may be shared there.
pub struct Sender<S> {
    socket: Arc<AsyncFd<OwnedFd>>,
    queue: RefCell<VecDeque<Vec<u8>>>,
    queued: Cell<usize>,
    /// Memory for what is sent next.
    outgoing: RefCell<Outgoing>,
    direction: PhantomData<fn(S)>,
}

impl<S: Encode> Sender<S> {
    /// Sends a message and up to one [`PIECE`](proto::limits::PIECE) of payload, or queues it while the socket is
    /// full: then [`Self::flush`] must be awaited.
    ///
    /// # Errors
    /// [`PipeError::TooLarge`] if the message or the queue is over its limit, [`PipeError::Socket`] if the peer
    /// has gone.
    pub fn send(&self, id: u64, deadline_ms: u32, message: &S, payload: &[u8]) -> Result<(), PipeError> {
        self.outgoing.borrow_mut().frames(id, deadline_ms, message, payload, |parts| {
            if self.queued.get() == 0 && self.send_now(parts)? {
                return Ok(());
            }
            let mut bytes = Vec::new();
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            let queued = self.queued.get() + bytes.len();
            if queued > QUEUE_MAX {
                return Err(PipeError::TooLarge(queued));
            }
            self.queued.set(queued);
            self.queue.borrow_mut().push_back(bytes);
            Ok(())
        })
    }

    /// Bytes that wait to be sent.
    pub fn queued(&self) -> usize {
        self.queued.get()
    }

    /// Sends what is queued; returns when nothing is. Safe to drop at any time.
    ///
    /// # Errors
    /// [`PipeError::Socket`] if the peer has gone.
    pub async fn flush(&self) -> Result<(), PipeError> {
        if self.queued.get() == 0 {
            return Ok(());
        }
        let full = watch_full(self.socket.as_fd())?;
        while self.queued.get() > 0 {
            let mut ready = full.writable().await?;
            let mut queue = self.queue.borrow_mut();
            while let Some(bytes) = queue.front() {
                match ready.try_io(|socket| send_parts(socket, &[IoSlice::new(bytes)]).map_err(Into::into)) {
                    Err(_would_block) => break,
                    Ok(Ok(())) => {
                        self.queued.set(self.queued.get().saturating_sub(bytes.len()));
                        queue.pop_front();
                    }
                    Ok(Err(error)) => return Err(PipeError::Socket(error)),
                }
            }
        }
        Ok(())
    }

    fn send_now(&self, parts: &[IoSlice<'_>]) -> Result<bool, PipeError> {
        match send_parts(&self.socket, parts) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(PipeError::Socket(errno.into())),
        }
    }
}

fn send_parts(socket: &AsyncFd<OwnedFd>, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            parts,
            &[],
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The receiving half.
pub struct Receiver<R> {
    socket: Arc<AsyncFd<OwnedFd>>,
    first: Vec<u8>,
    second: Vec<u8>,
    /// Length of the packet that came into the second buffer and has not been looked at.
    follows: Option<usize>,
    /// The kernel has said that there is nothing more.
    is_drained: bool,
    headers: MultiHeaders<()>,
    assembler: Assembler,
    direction: PhantomData<fn() -> R>,
}

impl<R: Decode<()>> Receiver<R> {
    /// Waits for a message; `None` when the peer has gone. Safe to drop at any time.
    ///
    /// # Errors
    /// [`PipeError::Malformed`] if the peer broke the protocol, [`PipeError::Socket`] if the socket failed.
    pub async fn receive(&mut self) -> Result<Option<Received<'_, R>>, PipeError> {
        let (arrived, of_second, length) = loop {
            let (of_second, length) = match self.follows.take() {
                Some(length) => (true, length),
                None => match self.packets().await? {
                    Some(length) => (false, length),
                    None => return Ok(None),
                },
            };
            if length == 0 {
                return Ok(None);
            }
            let buffer = if of_second { &self.second } else { &self.first };
            if let Some(arrived) = self.assembler.take(whole_frame(buffer, length)?)? {
                break (arrived, of_second, length);
            }
        };
        let buffer = if of_second { &self.second } else { &self.first };
        Ok(Some(arrived.in_frame(whole_frame(buffer, length)?)))
    }

    /// Whether [`Self::receive`] may have another message without waiting for it.
    pub fn may_have_more(&self) -> bool {
        !self.is_drained
    }

    /// Waits for one packet, or two that are there already; returns the first one's whole length, `None` when the peer has gone.
    async fn packets(&mut self) -> Result<Option<usize>, PipeError> {
        loop {
            let mut ready = readable(&self.socket).await?;
            let mut buffers = [[IoSliceMut::new(&mut self.first)], [IoSliceMut::new(&mut self.second)]];
            let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            match recvmmsg(self.socket.as_raw_fd(), &mut self.headers, buffers.iter_mut(), flags, None) {
                Ok(mut packets) => {
                    let first = packets.next().map(|packet| packet.bytes);
                    self.follows = packets.next().map(|packet| packet.bytes);
                    self.is_drained = self.follows.is_none();
                    if self.is_drained {
                        ready.clear_ready();
                    }
                    return Ok(first);
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(PipeError::Socket(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use proto::limits::PIECE;

    type Ends = (Sender<String>, Receiver<String>);

    fn ends() -> (Ends, Ends) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (left, right) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (split(left).unwrap(), split(right).unwrap())
    }

    /// tokio's UnixStream loses the second of them.
    #[tokio::test(flavor = "current_thread")]
    async fn two_messages_queued_before_the_first_poll_both_arrive() {
        let ((sender, _left), (_right, mut receiver)) = ends();
        sender.send(1, 0, &"one".to_owned(), b"").unwrap();
        sender.send(2, 0, &"two".to_owned(), b"").unwrap();
        assert_eq!(receiver.receive().await.unwrap().unwrap().message, "one");
        let second =
            tokio::time::timeout(Duration::from_secs(5), receiver.receive()).await.expect("a lost wake-up");
        assert_eq!(second.unwrap().unwrap().message, "two");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_does_not_fit_is_queued_and_flushed_in_order() {
        let ((sender, _left), (_right, mut receiver)) = ends();
        let piece = vec![7; PIECE];
        for id in 0..20 {
            sender.send(id, 0, &"piece".to_owned(), &piece).unwrap();
        }
        assert!(sender.queued() > 0, "the socket took everything");
        let read = async {
            for id in 0..20 {
                let received = receiver.receive().await.unwrap().unwrap();
                assert_eq!((received.id, received.payload.len()), (id, PIECE));
            }
        };
        let (flushed, ()) = tokio::join!(sender.flush(), read);
        flushed.unwrap();
        assert_eq!(sender.queued(), 0);
    }
}
