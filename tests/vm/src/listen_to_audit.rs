//! Writes what the kernel audits to standard output, one record a line: `type=NUMBER TEXT`.
//!
//! Runs in guests, as root: the kernel's log, where records go without auditd, cuts them after some thousand bytes. It takes the
//! copies that the kernel sends to whoever has asked for them (audit's multicast group), as the journal does.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// AUDIT_NLGRP_READLOG of linux/audit.h, as a bit.
const READ_LOG: u32 = 1;
/// `struct nlmsghdr`. Its length does not count what is behind it in audit's messages (audit_log_end of kernel/audit.c).
const HEADER: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let audit =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkAudit)?;
    bind(audit.as_raw_fd(), &NetlinkAddr::new(0, READ_LOG))?;
    println!("listening");
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(audit.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let packet = buffer.get(..length).unwrap_or_default();
        let Some((header, text)) = packet.split_at_checked(HEADER) else { continue };
        let kind = header.get(4..6).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes);
        let text = String::from_utf8_lossy(text);
        writeln!(std::io::stdout(), "type={kind} {}", text.trim_end_matches(['\0', '\n']))?;
    }
}
