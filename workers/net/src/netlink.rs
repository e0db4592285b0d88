//! Dumps over one NETLINK_ROUTE socket; rtnetlink(7), netlink(7).
//!
//! Runs in the net worker. The peer is the kernel: the socket is connected to it, so nobody else's messages arrive.
//! Lengths in its answers are compared with what arrived all the same.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

/// What the kernel fills at most in one go (af_netlink.c, netlink_recvmsg).
const BUFFER: usize = 32 * 1024;
/// One message may be larger than that; far above any seen.
const BUFFER_MAX: usize = 1024 * 1024;
/// A dump that something changed meanwhile is asked for again, that often in all.
const ATTEMPTS: usize = 5;

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;

/// A socket for dumps. One dump at a time.
pub(crate) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How one attempt ended.
enum Attempt {
    Whole,
    /// Something changed while it was made, or the buffer was too small: ask again.
    Torn,
}

impl Netlink {
    /// Opens the socket in this process's network namespace.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Netlink { socket, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// Asks for all objects of one kind: `request` is an `RTM_GET…` number, `body` what follows the header.
    /// `take` is given the type and body of each answer, and a fresh value when the kernel says that the dump was torn by a
    /// change; after five torn dumps the last one is taken as it is, as getifaddrs(3) takes the first.
    pub(crate) fn dump<T: Default>(
        &mut self,
        request: u16,
        body: &[u8],
        mut take: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, Errno> {
        let mut result = T::default();
        for _ in 0..ATTEMPTS {
            result = T::default();
            match self.attempt(request, body, &mut |kind, body| take(&mut result, kind, body)) {
                Ok(Attempt::Whole) => break,
                Ok(Attempt::Torn) => {}
                Err(errno) => {
                    self.drain();
                    return Err(errno);
                }
            }
        }
        Ok(result)
    }

    fn attempt(
        &mut self,
        request: u16,
        body: &[u8],
        take: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<Attempt, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let message = message(request, sequence, body);
        retry(|| send(self.socket.as_raw_fd(), &message, MsgFlags::empty()))?;
        let mut torn = false;
        loop {
            let length = retry(|| recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC))?;
            let Some(datagram) = self.buffer.get(..length) else {
                // Its rest is lost; the dump is read to its end and made again.
                let size = length.checked_next_power_of_two().filter(|size| *size <= BUFFER_MAX);
                self.buffer = vec![0; size.ok_or(Errno::EMSGSIZE)?];
                torn = true;
                continue;
            };
            match read(datagram, sequence, take)? {
                Read::More => {}
                Read::Torn => torn = true,
                Read::End { torn: at_end } => {
                    return Ok(if torn || at_end { Attempt::Torn } else { Attempt::Whole });
                }
            }
        }
    }

    /// Reads what is left of a dump that failed, so that the next one is not refused with EBUSY.
    fn drain(&mut self) {
        const DATAGRAMS: usize = 100_000;
        for _ in 0..DATAGRAMS {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn message(request: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    /// NLM_F_REQUEST | NLM_F_DUMP; libc has them as c_int.
    const FLAGS: u16 = 0x301;
    let length = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER.saturating_add(body.len()));
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&request.to_ne_bytes());
    message.extend_from_slice(&FLAGS.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

#[derive(Debug, PartialEq)]
enum Read {
    More,
    Torn,
    End { torn: bool },
}

/// Reads one datagram. Messages of other dumps are left out: they are late answers to one that failed.
fn read(mut datagram: &[u8], sequence: u32, take: &mut dyn FnMut(u16, &[u8])) -> Result<Read, Errno> {
    // linux/netlink.h: NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLM_F_DUMP_INTR; libc has them as c_int.
    const DONE: u16 = 3;
    const ERROR: u16 = 2;
    const NOOP: u16 = 1;
    const INTERRUPTED: u16 = 0x10;
    let mut torn = false;
    while let Some((header, behind)) = datagram.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let body_length = length.checked_sub(HEADER).ok_or(Errno::EBADMSG)?;
        let body = behind.get(..body_length).ok_or(Errno::EBADMSG)?;
        datagram = behind.get(aligned(body_length)..).unwrap_or_default();
        if u32::from_ne_bytes([s0, s1, s2, s3]) != sequence {
            continue;
        }
        torn |= u16::from_ne_bytes([f0, f1]) & INTERRUPTED != 0;
        match u16::from_ne_bytes([k0, k1]) {
            DONE | ERROR if status(body) < 0 => return Err(Errno::from_raw(status(body).saturating_neg())),
            DONE | ERROR => return Ok(Read::End { torn }),
            NOOP => {}
            kind => take(kind, body),
        }
    }
    Ok(if torn { Read::Torn } else { Read::More })
}

/// The number at the beginning of an error or end: 0, or a negative errno.
fn status(body: &[u8]) -> i32 {
    body.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number))
}

const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// The attributes behind a message's fixed part of `skip` bytes, as number and value; stops at the first that does not fit.
pub(crate) fn attributes(body: &[u8], skip: usize) -> Attributes<'_> {
    Attributes(body.get(skip..).unwrap_or_default())
}

/// An iterator over `struct rtattr`.
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// `NLA_TYPE_MASK`: the two bits above are flags.
        const NUMBER: u16 = 0x3fff;
        let ([l0, l1, k0, k1], behind) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([*l0, *l1])).checked_sub(4)?;
        let value = behind.get(..length)?;
        self.0 = behind.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([*k0, *k1]) & NUMBER, value))
    }
}

/// A number of an attribute.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

/// A text of an attribute, without its final NUL. What is not UTF-8 shows as U+FFFD: a name may have any byte.
pub(crate) fn string(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = message(kind, sequence, body);
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    type Messages = Vec<(u16, Vec<u8>)>;

    fn taken(datagram: &[u8], sequence: u32) -> (Result<Read, Errno>, Messages) {
        let mut messages = Vec::new();
        let result = read(datagram, sequence, &mut |kind, body| messages.push((kind, body.to_vec())));
        (result, messages)
    }

    #[test]
    fn messages_of_a_datagram_are_taken_until_its_end() {
        let datagram =
            [answer(16, 2, 7, b"one"), answer(16, 2, 7, b"four"), answer(3, 2, 7, &[0; 4])].concat();
        let (result, messages) = taken(&datagram, 7);
        assert_eq!(result, Ok(Read::End { torn: false }));
        assert_eq!(messages, [(16, b"one".to_vec()), (16, b"four".to_vec())]);
    }

    #[test]
    fn a_dump_that_was_interrupted_is_known_to_be_torn() {
        let (result, _) = taken(&answer(16, 0x12, 7, b"one"), 7);
        assert_eq!(result, Ok(Read::Torn));
        let (result, _) = taken(&answer(3, 0x12, 7, &[0; 4]), 7);
        assert_eq!(result, Ok(Read::End { torn: true }));
    }

    #[test]
    fn a_late_answer_to_an_earlier_dump_is_left_out() {
        let (result, messages) = taken(&[answer(16, 2, 6, b"late"), answer(3, 2, 6, &[0; 4])].concat(), 7);
        assert_eq!((result, messages), (Ok(Read::More), Vec::new()));
    }

    #[test]
    fn the_kernels_error_is_the_dumps() {
        let (result, _) = taken(&answer(2, 0, 7, &(-libc::EBUSY).to_ne_bytes()), 7);
        assert_eq!(result, Err(Errno::EBUSY));
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_refused() {
        let mut datagram = answer(16, 2, 7, b"body");
        datagram[0..4].copy_from_slice(&100_u32.to_ne_bytes());
        assert_eq!(taken(&datagram, 7).0, Err(Errno::EBADMSG));
        datagram[0..4].copy_from_slice(&15_u32.to_ne_bytes());
        assert_eq!(taken(&datagram, 7).0, Err(Errno::EBADMSG));
    }

    #[test]
    fn attributes_that_do_not_fit_end_the_list() {
        let good = [8, 0, 3, 0x80, b'l', b'o', 0, 0];
        let too_long = [9, 0, 4, 0, 1, 2, 3, 4];
        let list: Vec<_> = attributes(&[&[0; 4], &good[..], &too_long[..]].concat(), 4)
            .map(|(number, value)| (number, value.to_vec()))
            .collect();
        assert_eq!(list, [(3, b"lo\0\0".to_vec())]);
        assert_eq!(attributes(&[3, 0, 1, 0], 0).count(), 0);
        assert_eq!(attributes(&[1, 2], 4).count(), 0);
    }

    #[test]
    fn this_machines_loopback_is_found_in_a_link_dump() {
        let mut netlink = Netlink::open().unwrap();
        for _ in 0..3 {
            let count: usize = netlink.dump(libc::RTM_GETLINK, &[0; 16], |count, _, _| *count += 1).unwrap();
            assert!(count >= 1);
        }
    }

    #[test]
    fn a_message_larger_than_the_buffer_is_read_in_a_second_attempt() {
        let mut netlink = Netlink::open().unwrap();
        netlink.buffer = vec![0; 64];
        let names: Vec<String> = netlink
            .dump(libc::RTM_GETLINK, &[0; 16], |names: &mut Vec<String>, _, body| {
                names.extend(
                    attributes(body, 16).filter(|(number, _)| *number == 3).map(|(_, name)| string(name)),
                );
            })
            .unwrap();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
        assert!(netlink.buffer.len() > 64);
    }
}
