//! The kernel's audit over one NETLINK_AUDIT socket; netlink(7), kernel/audit.c.
//!
//! The peer is the kernel: the socket is connected to it. Its answers are read with bounds all the same.
//!
//! Where nothing is audited the kernel acknowledges a record and drops it, and only who has CAP_AUDIT_CONTROL may ask whether that is
//! so. But it looks at a record, and refuses one without text, only where something is audited. So in front of each record goes
//! one without text, in the same packet: refused, the record behind it counts.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use proto::Failed;

/// `AUDIT_TRUSTED_APP` of audit-userspace (`lib/audit-records.h`): text of an application that is trusted to say it. AUDIT_USER is the
/// same without a meaning; those of virtualisation are a host's, about guests.
const TRUSTED_APP: u16 = 1121;

/// `struct nlmsghdr`: length, type, flags, sequence, port. `struct nlmsgerr`: an error, and the message that it is about.
const HEADER: usize = 16;
const ERROR: u16 = 2;
/// NLM_F_REQUEST and NLM_F_ACK.
const FLAGS: u16 = 1 | 4;

/// An answer repeats the record.
const BUFFER: usize = 16 * 1024;
/// The answer is there when the kernel has taken the record; if there was no memory for it there will be none.
const ANSWER_SECONDS: i64 = 5;
/// Answers to earlier records that are passed over at most.
const STALE: usize = 16;

/// A socket to it.
pub(crate) struct Kernel {
    socket: OwnedFd,
    sequence: u32,
    packet: Vec<u8>,
    buffer: Vec<u8>,
}

impl Kernel {
    /// Opens the socket. The kernel will ask whether who did so has CAP_AUDIT_WRITE, and whether who sends has it (netlink_capable).
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkAudit)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        Ok(Kernel { socket, sequence: 0, packet: Vec::new(), buffer: vec![0; BUFFER] })
    }

    /// Hands one text over, and waits until the kernel has it.
    ///
    /// # Errors
    /// For the broker: what the kernel said, and what to do about it.
    pub(crate) fn record(&mut self, text: &str) -> Result<(), Failed> {
        let (probe, record) = (self.sequence.wrapping_add(1), self.sequence.wrapping_add(2));
        self.sequence = record;
        self.packet.clear();
        put(&mut self.packet, probe, &[]);
        // The kernel makes the last byte a zero.
        put(&mut self.packet, record, &[text.as_bytes(), b"\0"].concat());
        retry(|| send(self.socket.as_raw_fd(), &self.packet, MsgFlags::empty())).map_err(failed)?;
        let is_on = self.answer(probe)?;
        let taken = self.answer(record)?;
        match (is_on, taken) {
            (Err(Errno::EINVAL), Ok(())) => Ok(()),
            (Ok(()), Ok(())) => Err(Failed::new(
                "the kernel audits nothing, so it drops records: start auditd, or boot with audit=1",
            )),
            (_, Err(errno)) | (Err(errno), Ok(())) => Err(failed(errno)),
        }
    }

    /// What the kernel says of one message.
    fn answer(&mut self, sequence: u32) -> Result<Result<(), Errno>, Failed> {
        for _ in 0..STALE {
            let length = retry(|| recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()))
                .map_err(|errno| match errno {
                    Errno::EAGAIN => Failed::new("the kernel's audit does not answer"),
                    errno => failed(errno),
                })?;
            match read(self.buffer.get(..length).unwrap_or_default()) {
                Some((of, answer)) if of == sequence => return Ok(answer),
                _ => {}
            }
        }
        Err(Failed::new("the kernel's audit answers something else"))
    }
}

fn failed(errno: Errno) -> Failed {
    let why = match errno {
        Errno::EPERM => {
            "the audit worker may not write to the kernel's audit: it needs CAP_AUDIT_WRITE, from the start on"
        }
        Errno::ECONNREFUSED => {
            "the kernel's audit takes nothing from a user namespace: choose another sink in a container"
        }
        _ => "the kernel's audit refuses a record",
    };
    Failed::system(why, errno as i32)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Adds a message to a packet.
fn put(packet: &mut Vec<u8>, sequence: u32, body: &[u8]) {
    // Texts are short.
    let length = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or(u32::MAX);
    packet.extend_from_slice(&length.to_ne_bytes());
    packet.extend_from_slice(&TRUSTED_APP.to_ne_bytes());
    packet.extend_from_slice(&FLAGS.to_ne_bytes());
    packet.extend_from_slice(&sequence.to_ne_bytes());
    packet.extend_from_slice(&0_u32.to_ne_bytes());
    packet.extend_from_slice(body);
    // Messages begin at multiples of four.
    packet.resize(packet.len().next_multiple_of(4), 0);
}

/// The sequence number that an answer is about, and what it says.
fn read(bytes: &[u8]) -> Option<(u32, Result<(), Errno>)> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?));
    let kind = u16::from_ne_bytes(bytes.get(4..)?.first_chunk().copied()?);
    let error = number(HEADER)?.cast_signed();
    let answer = if error == 0 { Ok(()) } else { Err(Errno::from_raw(error.saturating_neg())) };
    (kind == ERROR).then_some((number(8)?, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_a_record_without_text_and_one_with_it_both_to_be_answered() {
        let mut packet = Vec::new();
        put(&mut packet, 1, &[]);
        put(&mut packet, 2, b"op=x\0");
        let wanted: [&[u8]; 9] = [
            &16_u32.to_ne_bytes(),
            &1121_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &1_u32.to_ne_bytes(),
            &0_u32.to_ne_bytes(),
            &21_u32.to_ne_bytes(),
            &1121_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &2_u32.to_ne_bytes(),
        ];
        assert_eq!(packet, [&wanted.concat()[..], &0_u32.to_ne_bytes(), b"op=x\0\0\0\0"].concat());
    }

    #[test]
    fn an_answer_is_read_with_bounds() {
        let answer = |error: i32| {
            let mut bytes = Vec::new();
            put(&mut bytes, 9, &error.to_ne_bytes());
            bytes.splice(4..6, ERROR.to_ne_bytes());
            bytes
        };
        assert_eq!(read(&answer(0)), Some((9, Ok(()))));
        assert_eq!(read(&answer(-22)), Some((9, Err(Errno::EINVAL))));
        assert_eq!(read(&answer(0)[..19]), None);
        assert_eq!(read(&[]), None);
        assert_eq!(read(&answer(i32::MIN)), Some((9, Err(Errno::from_raw(i32::MAX)))));
        let mut other = answer(0);
        other.splice(4..6, 3_u16.to_ne_bytes());
        assert_eq!(read(&other), None);
    }
}
