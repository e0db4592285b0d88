//! The control socket: 16-byte messages and at most two descriptors. Runs in the spawner and in the broker.
//!
//! Neither side ever waits here: the spawner polls, the broker registers the descriptor with its runtime. The spawner accepts
//! no descriptors; the broker accepts exactly as many as the message brings. Received descriptors are close-on-exec.

use std::io;
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use crate::message::{FromBroker, FromSpawner, LENGTH, Malformed};

/// The most descriptors that a message brings.
const MOST: usize = 2;

/// Room for the control data of two descriptors, aligned as `cmsg(3)` wants it. CMSG_SPACE(8) is 24 on 64-bit systems.
#[repr(align(8))]
struct ControlData([u8; 64]);

/// One end of the control socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

/// A message as the broker gets it.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: FromSpawner,
    /// Of the Start that it answers, otherwise 0.
    pub sequence: u32,
    /// As many as the message brings: with Started and Frontend the socket's end and the log pipe's reading end.
    pub descriptors: [Option<OwnedFd>; MOST],
}

/// Why nothing could be received.
#[derive(Debug)]
pub enum ControlError {
    /// The other side has closed the socket: it is gone.
    Closed,
    /// The other side has broken the protocol.
    Malformed(Malformed),
    /// The socket failed.
    Io(io::Error),
}

impl std::fmt::Display for ControlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the control socket was closed"),
            Self::Malformed(malformed) => write!(f, "malformed control message: {malformed}"),
            Self::Io(error) => write!(f, "control socket: {error}"),
        }
    }
}

impl std::error::Error for ControlError {}

impl Control {
    /// Takes the socket over; it is closed with this value.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Receives one message of the spawner. None if there is none now. For the broker.
    ///
    /// # Errors
    /// [`ControlError`]; the broker has no use for the socket after any of them.
    pub fn try_receive(&self) -> Result<Option<Received>, ControlError> {
        // One byte more than a message, so that a longer one shows.
        let mut buffer = [0; LENGTH + 1];
        let Some((length, descriptors)) = receive(self.socket.as_fd(), &mut buffer)? else { return Ok(None) };
        let bytes = buffer.get(..length).unwrap_or_default();
        let (sequence, message) = FromSpawner::decode(bytes).map_err(ControlError::Malformed)?;
        let count = descriptors.iter().flatten().count();
        if count != message.descriptors() {
            return Err(ControlError::Malformed(Malformed::Descriptors(count)));
        }
        Ok(Some(Received { message, sequence, descriptors }))
    }

    /// Sends a message to the spawner. For the broker.
    ///
    /// # Errors
    /// EAGAIN if the spawner has not read for a long time (the socket's buffer holds hundreds of messages), EPIPE if
    /// it is gone.
    pub fn send(&self, message: FromBroker, sequence: u32) -> io::Result<()> {
        transmit(self.socket.as_fd(), &message.encode(sequence), &[])
    }

    /// Receives one message of the broker. None if there is none now. For the spawner.
    ///
    /// # Errors
    /// [`ControlError`]: the broker must be ended after any of them.
    pub fn try_receive_request(&self) -> Result<Option<(u32, FromBroker)>, ControlError> {
        let mut buffer = [0; LENGTH + 1];
        let Some((length, descriptors)) = receive(self.socket.as_fd(), &mut buffer)? else { return Ok(None) };
        let count = descriptors.iter().flatten().count();
        if count != 0 {
            return Err(ControlError::Malformed(Malformed::Descriptors(count)));
        }
        FromBroker::decode(buffer.get(..length).unwrap_or_default())
            .map(Some)
            .map_err(ControlError::Malformed)
    }

    /// Sends a message to the broker, with the descriptors that it brings: the socket's end and the log pipe's reading end, or what
    /// [`FromSpawner::Reload`] and [`FromSpawner::Rotated`] say. For the spawner.
    ///
    /// # Errors
    /// EAGAIN if the broker does not read, EPIPE if it is gone, EINVAL for a wrong number of descriptors.
    pub fn send_event(
        &self,
        message: FromSpawner,
        sequence: u32,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if descriptors.len() != message.descriptors() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        transmit(self.socket.as_fd(), &message.encode(sequence), descriptors)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

type Descriptors = [Option<OwnedFd>; MOST];

/// Receives one packet into `buffer`, with its true length (MSG_TRUNC) and its descriptors. None: nothing there.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<(usize, Descriptors)>, ControlError> {
    let mut control = ControlData([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zero bits mean "none".
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control.0);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    let length = loop {
        // SAFETY: header points to one iovec over `buffer` and to `control`, with their lengths; all of them are live locals that
        // nobody else uses during the call.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        if let Ok(length) = usize::try_from(length) {
            break length;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            // It went with messages of ours unread.
            io::ErrorKind::ConnectionReset => return Err(ControlError::Closed),
            _ => return Err(ControlError::Io(error)),
        }
    };
    // Everything that came is owned first, so that a refused packet leaks nothing.
    let mut descriptors = Descriptors::default();
    let mut count = 0_usize;
    // SAFETY: header was filled by recvmsg and points to `control`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that lies within `control`, which is aligned for it.
    while let Some(head) = unsafe { message.as_ref() } {
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: head lies within `control`; CMSG_DATA is the address behind it, CMSG_LEN(0) the distance.
            let (data, before) = unsafe { (libc::CMSG_DATA(head).cast::<RawFd>(), libc::CMSG_LEN(0)) };
            let bytes = head.cmsg_len.saturating_sub(usize::try_from(before).unwrap_or(usize::MAX));
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: index is below the number of descriptors that cmsg_len, written by the kernel, has room for; cmsg(3) data
                // may be unaligned, which read_unaligned allows.
                let number = unsafe { data.add(index).read_unaligned() };
                // SAFETY: the kernel has installed this descriptor for us in this call; nobody else owns it.
                let owned = unsafe { OwnedFd::from_raw_fd(number) };
                count = count.saturating_add(1);
                if let Some(place) = descriptors.iter_mut().find(|place| place.is_none()) {
                    *place = Some(owned);
                }
            }
        }
        // SAFETY: both point into the same, unchanged header and control data.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 || count > MOST {
        // More than fits, or the descriptor table was full: the kernel has dropped some.
        return Err(ControlError::Malformed(Malformed::Descriptors(count)));
    }
    match length {
        // A packet of no bytes cannot be told from the end; nobody of ours sends one.
        0 => Err(ControlError::Closed),
        _ if length > buffer.len() => Err(ControlError::Malformed(Malformed::Length(length))),
        _ => Ok(Some((length, descriptors))),
    }
}

fn transmit(socket: BorrowedFd<'_>, bytes: &[u8; LENGTH], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = ControlData([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zero bits mean "none".
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let mut numbers: [RawFd; MOST] = [-1; MOST];
    for (number, descriptor) in numbers.iter_mut().zip(descriptors) {
        *number = descriptor.as_raw_fd();
    }
    let numbers =
        numbers.get(..descriptors.len()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    if !numbers.is_empty() {
        let size = libc::c_uint::try_from(size_of_val(numbers)).map_err(io::Error::other)?;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
        header.msg_controllen = usize::try_from(space).map_err(io::Error::other)?;
        // SAFETY: msg_control points to 64 aligned bytes of which msg_controllen (24) are used: room for one header and
        // two numbers, which is where CMSG_FIRSTHDR and CMSG_DATA point; one or two are copied there.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&raw const header);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = usize::try_from(length).map_err(io::Error::other)?;
            numbers.as_ptr().cast::<u8>().copy_to_nonoverlapping(libc::CMSG_DATA(head), size_of_val(numbers));
        }
    }
    loop {
        // SAFETY: header points to one iovec over `bytes`, which sendmsg only reads, and to `control` or to nothing.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        if sent >= 0 {
            // A packet goes whole or not at all, unix(7).
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::MetadataExt as _;

    use jail::Role;

    use super::*;
    use crate::message::Verdict;

    fn pair() -> (Control, Control) {
        let mut numbers = [0; 2];
        // SAFETY: socketpair(2) writes two descriptors to an array of two.
        let result = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                numbers.as_mut_ptr(),
            )
        };
        assert_eq!(result, 0);
        // SAFETY: the kernel has just made both for us.
        numbers.map(|number| Control::new(unsafe { OwnedFd::from_raw_fd(number) })).into()
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().expect("makes a pipe");
        (reader.into(), writer.into())
    }

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (spawner, broker) = pair();
        let (reader, writer) = pipe();
        let message = FromSpawner::Started { kind: Role::Query, instance: 0, pid: 42 };
        spawner.send_event(message, 5, &[reader.as_fd(), writer.as_fd()]).expect("sends");
        drop((reader, writer));

        let received = broker.try_receive().expect("receives").expect("is there");
        assert_eq!((received.message, received.sequence), (message, 5));
        let [Some(first), Some(second)] = received.descriptors else { panic!("both came along") };
        // SAFETY: F_GETFD takes no third argument; the descriptor is open.
        assert_eq!(unsafe { libc::fcntl(first.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
        File::from(second).write_all(b"hello").expect("the second one writes");
        let mut text = String::new();
        File::from(first).read_to_string(&mut text).expect("the first one reads");
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_single_descriptor_arrives_alone() {
        let (spawner, broker) = pair();
        let (reader, writer) = pipe();
        let message = FromSpawner::Rotated { number: 3 };
        spawner.send_event(message, 5, &[writer.as_fd()]).expect("sends");
        let received = broker.try_receive().expect("receives").expect("is there");
        let [Some(first), None] = received.descriptors else { panic!("one came along") };
        drop(writer);
        File::from(first).write_all(b"x").expect("writes");
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).expect("reads");
        assert_eq!((received.message, text.as_str()), (message, "x"));
        let bytes = FromSpawner::Rotated { number: 3 }.encode(0);
        transmit(spawner.as_fd(), &bytes, &[]).expect("sends");
        assert!(matches!(broker.try_receive(), Err(ControlError::Malformed(Malformed::Descriptors(0)))));
    }

    #[test]
    fn a_policy_comes_alone() {
        let (spawner, broker) = pair();
        let (reader, writer) = pipe();
        let message = FromSpawner::Reload { verdict: Verdict::Compiled };
        let both = [reader.as_fd(), writer.as_fd()];
        assert_eq!(
            spawner.send_event(message, 3, &both).expect_err("one too many").raw_os_error(),
            Some(libc::EINVAL)
        );
        spawner.send_event(message, 3, &[writer.as_fd()]).expect("sends");
        drop(writer);
        let received = broker.try_receive().expect("receives").expect("is there");
        assert_eq!((received.message, received.sequence), (message, 3));
        let [Some(file), None] = received.descriptors else { panic!("one came along") };
        File::from(file).write_all(b"hello").expect("writes");
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).expect("reads: no other copy is left");
        assert_eq!(text, "hello");
    }

    #[test]
    fn without_a_message_nobody_waits() {
        let (spawner, broker) = pair();
        assert!(broker.try_receive().expect("no error").is_none());
        assert!(spawner.try_receive_request().expect("no error").is_none());
    }

    #[test]
    fn a_closed_end_shows_as_closed() {
        let (spawner, broker) = pair();
        drop(spawner);
        assert!(matches!(broker.try_receive(), Err(ControlError::Closed)));
    }

    #[test]
    fn an_end_that_is_closed_with_messages_unread_shows_as_closed() {
        let (spawner, broker) = pair();
        broker.send(FromBroker::Ready, 0).expect("sends");
        drop(spawner);
        assert!(matches!(broker.try_receive(), Err(ControlError::Closed)));
    }

    #[test]
    fn the_spawner_refuses_descriptors_and_keeps_none_of_them() {
        let (spawner, broker) = pair();
        let (reader, writer) = pipe();
        let bytes = FromBroker::Ready.encode(0);
        transmit(broker.as_fd(), &bytes, &[reader.as_fd(), writer.as_fd()]).expect("sends");
        let error = spawner.try_receive_request().expect_err("refuses");
        assert!(matches!(error, ControlError::Malformed(Malformed::Descriptors(2))));
        // No copy of the writing end is left: the reader sees the end once ours is closed.
        drop(writer);
        assert_eq!(File::from(reader).read(&mut [0]).expect("reads"), 0);
    }

    #[test]
    fn a_message_that_lacks_its_descriptors_is_refused() {
        let (spawner, broker) = pair();
        let bytes = FromSpawner::Frontend { channel: 0, pid: 1 }.encode(0);
        transmit(spawner.as_fd(), &bytes, &[]).expect("sends");
        assert!(matches!(broker.try_receive(), Err(ControlError::Malformed(Malformed::Descriptors(0)))));
        let message = FromSpawner::Frontend { channel: 0, pid: 1 };
        assert_eq!(
            spawner.send_event(message, 0, &[]).expect_err("not sent").raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let (spawner, broker) = pair();
        let file = File::from(broker.socket);
        assert!(file.metadata().expect("stats").mode() & libc::S_IFSOCK != 0);
        (&file).write_all(&[0; 17]).expect("writes");
        let error = spawner.try_receive_request().expect_err("refuses");
        assert!(matches!(error, ControlError::Malformed(Malformed::Length(17))));
        (&file).write_all(&[0; 4000]).expect("writes");
        let error = spawner.try_receive_request().expect_err("refuses");
        assert!(matches!(error, ControlError::Malformed(Malformed::Length(4000))));
    }
}
