//! Where records go: a file, sockets of log daemons, the agent's log, the audit worker. Each is a descriptor that the broker was born
//! with or was given by the spawner. Nothing here waits for anybody.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use proto::chain::Hash;
use proto::message::About;

use super::kernel::Queue;

/// One of the places.
pub(super) enum Sink {
    File(LogFile),
    /// A datagram socket, non-blocking: a full or missing log daemon must not hold the agent up.
    Syslog(OwnedFd),
    Journald(OwnedFd),
    Log,
    /// By the audit worker: what becomes of a record is known later.
    Kernel(Rc<Queue>),
}

/// What the journal shows of a record beside the record itself.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) kind: &'a str,
    pub(super) sequence: u64,
    pub(super) hash: Hash,
    /// How many records are lost if this one is.
    pub(super) counts: u64,
    /// For people; ASCII, one line.
    pub(super) message: &'a str,
    pub(super) command: Option<&'a str>,
    pub(super) channel: Option<&'a str>,
    pub(super) decision: Option<&'a str>,
    pub(super) outcome: Option<&'a str>,
}

impl Sink {
    /// `record` is without the end of its line.
    pub(super) fn write(&mut self, record: &[u8], fields: &Fields<'_>) -> Result<(), String> {
        match self {
            Sink::File(file) => file.append(record),
            Sink::Syslog(socket) => {
                // Facility user, severity info, the name that qemu-ga uses: RFC 3164.
                transmit(socket, &[b"<14>qemu-ga: ", record].concat())
            }
            Sink::Journald(socket) => transmit(socket, &fields.entry(record)),
            Sink::Log => {
                tracing::error!(target: "audit", "{}", String::from_utf8_lossy(record));
                Ok(())
            }
            Sink::Kernel(queue) => queue.put(fields.about(), record, fields.counts),
        }
    }
}

impl Fields<'_> {
    fn about(&self) -> About {
        About {
            sequence: self.sequence,
            hash: self.hash,
            kind: self.kind.to_owned(),
            command: self.command.map(str::to_owned),
            channel: self.channel.map(str::to_owned),
            decision: self.decision.map(str::to_owned),
            outcome: self.outcome.map(str::to_owned),
        }
    }

    /// systemd's native protocol (`systemd.io/JOURNAL_NATIVE_PROTOCOL`): fields of one line each. A record is at most 16 KiB, which a
    /// datagram always holds, so that no memory file is needed.
    fn entry(&self, record: &[u8]) -> Vec<u8> {
        let sequence = self.sequence.to_string();
        let fields = [
            ("MESSAGE", Some(self.message)),
            ("PRIORITY", Some("6")),
            ("SYSLOG_IDENTIFIER", Some("portreeve")),
            ("PORTREEVE_SEQUENCE", Some(sequence.as_str())),
            ("PORTREEVE_KIND", Some(self.kind)),
            ("PORTREEVE_CHANNEL", self.channel),
            ("PORTREEVE_COMMAND", self.command),
            ("PORTREEVE_DECISION", self.decision),
            ("PORTREEVE_OUTCOME", self.outcome),
        ];
        let mut entry = Vec::with_capacity(record.len() + 512);
        for (name, value) in fields {
            if let Some(value) = value {
                entry.extend_from_slice(name.as_bytes());
                entry.push(b'=');
                entry.extend_from_slice(value.as_bytes());
                entry.push(b'\n');
            }
        }
        entry.extend_from_slice(b"PORTREEVE_RECORD=");
        entry.extend_from_slice(record);
        entry.push(b'\n');
        entry
    }
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) -> Result<(), String> {
    loop {
        match nix::unistd::write(socket, bytes) {
            // A datagram goes whole or not at all.
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.desc().to_owned()),
        }
    }
}

/// The log file, opened for appending.
pub(super) struct LogFile {
    descriptor: OwnedFd,
    /// Its length, as far as this process has written it.
    pub(super) size: u64,
    /// It ends in the middle of a line.
    open_line: bool,
    /// It has no name any more: what is written to it is not recorded.
    removed: bool,
    buffer: Vec<u8>,
}

/// What has happened to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    AsLeft,
    /// It has no name any more: nobody will ever read it.
    Removed,
    /// It is shorter than what was written.
    CutTo(u64),
}

impl LogFile {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        LogFile { descriptor, size: 0, open_line: false, removed: false, buffer: Vec::new() }
    }

    /// How long the file is by what the kernel says.
    pub(super) fn length(&self) -> Option<u64> {
        u64::try_from(nix::sys::stat::fstat(self.descriptor.as_fd()).ok()?.st_size).ok()
    }

    /// Whether it is as this process has left it. What others have appended does not count.
    pub(super) fn look(&mut self) -> Found {
        let Ok(status) = nix::sys::stat::fstat(self.descriptor.as_fd()) else { return Found::AsLeft };
        // Devices have no length; /dev/full is one.
        if status.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG {
            return Found::AsLeft;
        }
        let length = u64::try_from(status.st_size).unwrap_or_default();
        self.removed = status.st_nlink == 0;
        if self.removed {
            Found::Removed
        } else if length < self.size {
            Found::CutTo(length)
        } else {
            Found::AsLeft
        }
    }

    /// Goes on at another length, perhaps in the middle of a line.
    pub(super) fn go_on_at(&mut self, size: u64, open_line: bool) {
        (self.size, self.open_line) = (size, open_line);
    }

    /// How long it is with `record` in it.
    pub(super) fn size_with(&self, record: &[u8]) -> u64 {
        let ends = 1 + u64::from(self.open_line);
        self.size.saturating_add(record.len() as u64).saturating_add(ends)
    }

    /// One write for one record: with O_APPEND, records of two writers do not mix.
    fn append(&mut self, record: &[u8]) -> Result<(), String> {
        if self.removed {
            return Err("its file was removed".to_owned());
        }
        self.buffer.clear();
        if self.open_line {
            self.buffer.push(b'\n');
        }
        self.buffer.extend_from_slice(record);
        self.buffer.push(b'\n');
        loop {
            match nix::unistd::write(&self.descriptor, &self.buffer) {
                Ok(written) => {
                    self.size = self.size.saturating_add(written as u64);
                    self.open_line = written < self.buffer.len();
                    // Whatever comes next ends the line, and then it is a record: it counts from now on.
                    if written.saturating_add(1) >= self.buffer.len() {
                        return Ok(());
                    }
                    return Err(format!("only {written} of {} bytes fit", self.buffer.len()));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.desc().to_owned()),
            }
        }
    }

    /// What was written is on the disk.
    pub(super) fn sync(&self) -> Result<(), String> {
        match nix::unistd::fdatasync(&self.descriptor) {
            // A pipe or a device has nothing to bring anywhere.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.desc().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_journal_has_one_field_a_line_and_the_record_last() {
        let fields = Fields {
            kind: "request",
            sequence: 5,
            message: "qga guest-ping: done",
            command: Some("guest-ping"),
            ..Fields::default()
        };
        let entry = String::from_utf8(fields.entry(b"{}")).unwrap();
        let wanted = "MESSAGE=qga guest-ping: done\nPRIORITY=6\nSYSLOG_IDENTIFIER=portreeve\n\
                      PORTREEVE_SEQUENCE=5\nPORTREEVE_KIND=request\nPORTREEVE_COMMAND=guest-ping\n\
                      PORTREEVE_RECORD={}\n";
        assert_eq!(entry, wanted);
    }

    #[test]
    fn a_line_that_a_full_disk_has_cut_is_ended_before_the_next_record() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = std::fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        std::fs::write(file.path(), "{\"half").unwrap();
        let mut log = LogFile::new(append.into());
        log.go_on_at(6, true);
        assert_eq!(log.size_with(b"{}"), 10);
        log.append(b"{}").unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "{\"half\n{}\n");
        assert_eq!(log.size, 10);
    }

    #[test]
    fn a_record_of_which_only_the_line_end_did_not_fit_is_written_and_ended_before_the_next() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        // Two pages, which the record fills.
        let room = usize::try_from(fcntl(&writer, FcntlArg::F_SETPIPE_SZ(8192)).unwrap()).unwrap();
        let mut log = LogFile::new(writer);
        log.append(&vec![b'x'; room]).unwrap();
        assert_eq!((log.size, log.size_with(b"{}")), (room as u64, room as u64 + 4));
        let mut bytes = vec![0; room];
        assert_eq!(nix::unistd::read(&reader, &mut bytes), Ok(room));
        log.append(b"{}").unwrap();
        assert_eq!(nix::unistd::read(&reader, &mut bytes), Ok(4));
        assert_eq!(bytes.get(..4), Some(b"\n{}\n".as_slice()));
        // One byte more that is missing, and it is no record.
        let error = log.append(&vec![b'x'; room + 1]).unwrap_err();
        assert_eq!(error, format!("only {room} of {} bytes fit", room + 2));
    }

    #[test]
    fn a_file_that_was_removed_or_cut_is_noticed_and_one_that_has_grown_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = std::fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut log = LogFile::new(append.into());
        log.append(b"{}").unwrap();
        assert_eq!(log.look(), Found::AsLeft);
        std::fs::write(file.path(), "{").unwrap();
        assert_eq!(log.look(), Found::CutTo(1));
        std::fs::write(file.path(), "{}\n{}\n").unwrap();
        assert_eq!(log.look(), Found::AsLeft);
        file.close().unwrap();
        assert_eq!(log.look(), Found::Removed);
    }
}
