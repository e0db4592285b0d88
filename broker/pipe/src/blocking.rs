//! For workers: waits in the kernel, and may be shared by threads, each of which takes whole messages.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use bincode::{Decode, Encode};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, sendmsg};

use crate::PipeError;
use crate::frame::{Assembler, FRAME_MAX, Outgoing, Received};

/// One end of a socketpair: sends `S`, receives `R`.
pub struct Pipe<S, R> {
    socket: OwnedFd,
    /// The parts of one message may be taken by different threads.
    assembler: Mutex<Assembler>,
    direction: PhantomData<fn(S) -> R>,
}

impl<S: Encode, R: Decode<()>> Pipe<S, R> {
    /// Takes over a connected, blocking SOCK_SEQPACKET socket.
    pub fn new(socket: OwnedFd) -> Self {
        Pipe { socket, assembler: Mutex::default(), direction: PhantomData }
    }

    /// The socket, for those that wait for more than one thing.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A buffer for [`Self::receive`]; one for each thread.
    pub fn buffer() -> Vec<u8> {
        receive_buffer()
    }

    /// Waits for a message; `None` when the peer has gone.
    ///
    /// # Errors
    /// [`PipeError::Malformed`] if the peer broke the protocol, [`PipeError::Socket`] if the socket failed.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<Received<'a, R>>, PipeError> {
        let (arrived, length) = loop {
            let length = match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(PipeError::Socket(errno.into())),
            };
            let frame = whole_frame(buffer, length)?;
            let mut assembler = self.assembler.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(arrived) = assembler.take(frame)? {
                break (arrived, length);
            }
        };
        Ok(Some(arrived.in_frame(whole_frame(buffer, length)?)))
    }

    /// Sends a message and up to one [`PIECE`](proto::limits::PIECE) of payload; waits while the socket is full.
    ///
    /// # Errors
    /// [`PipeError::TooLarge`] before anything is sent, [`PipeError::Socket`] if the peer has gone.
    pub fn send(&self, id: u64, deadline_ms: u32, message: &S, payload: &[u8]) -> Result<(), PipeError> {
        Outgoing::default().frames(id, deadline_ms, message, payload, |parts| {
            loop {
                match sendmsg::<()>(self.socket.as_raw_fd(), parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                    Ok(_) => return Ok(()),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(PipeError::Socket(errno.into())),
                }
            }
        })
    }
}

/// What was received, if all of it fitted.
/// From this size on malloc asks the kernel for pages of their own (`mallopt(3)`, M_MMAP_THRESHOLD): they are zero without being
/// written, and those that no message has reached take no memory.
const UNTOUCHED: usize = 128 * 1024;

// Larger than a frame may be, so that too much can be told from just enough.
const _: () = assert!(UNTOUCHED > FRAME_MAX);

/// Room for any frame.
pub(crate) fn receive_buffer() -> Vec<u8> {
    vec![0; UNTOUCHED]
}

pub(crate) fn whole_frame(buffer: &[u8], length: usize) -> Result<&[u8], PipeError> {
    match buffer.get(..length) {
        Some(frame) if length <= FRAME_MAX => Ok(frame),
        _ => Err(PipeError::Malformed("a frame over the limit".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn ends() -> (Pipe<String, String>, Pipe<String, String>) {
        let (left, right) = pair();
        (Pipe::new(left), Pipe::new(right))
    }

    #[test]
    fn a_message_arrives_with_its_id_deadline_and_payload() {
        let (left, right) = ends();
        left.send(7, 250, &"open".to_owned(), b"piece").unwrap();
        let mut buffer = Pipe::<String, String>::buffer();
        let received = right.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((received.id, received.deadline_ms), (7, 250));
        assert_eq!(received.message, "open");
        assert_eq!(received.payload, b"piece");
    }

    #[test]
    fn a_message_larger_than_a_frame_arrives_whole() {
        let (left, right) = ends();
        let long = "x".repeat(1_000_000);
        let sender = std::thread::spawn({
            let long = long.clone();
            move || left.send(1, 0, &long, b"end").unwrap()
        });
        let mut buffer = Pipe::<String, String>::buffer();
        let received = right.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((received.message == long, received.payload), (true, &b"end"[..]));
        sender.join().unwrap();
    }

    #[test]
    fn the_peers_end_is_the_end() {
        let (left, right) = ends();
        drop(left);
        assert!(right.receive(&mut Pipe::<String, String>::buffer()).unwrap().is_none());
    }

    /// unix(7), SOCK_SEQPACKET: what does not fit into the buffer is lost; MSG_TRUNC tells how long it was.
    #[test]
    fn a_frame_over_the_limit_is_a_fault_and_not_cut() {
        let (left, right) = pair();
        let right = Pipe::<String, String>::new(right);
        send(left.as_raw_fd(), &vec![0; FRAME_MAX + 100], MsgFlags::empty()).unwrap();
        let error = right.receive(&mut Pipe::<String, String>::buffer()).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent a frame over the limit");
    }

    #[test]
    fn bytes_that_are_no_frame_are_a_fault() {
        let (left, right) = pair();
        let right = Pipe::<String, String>::new(right);
        send(left.as_raw_fd(), b"GET / HTTP/1.1\r\n\r\nno frame", MsgFlags::empty()).unwrap();
        let error = right.receive(&mut Pipe::<String, String>::buffer()).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent an unknown kind of frame");
    }
}
