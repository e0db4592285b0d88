//! A file of Phoenix's `file-open`: a descriptor without a buffer, whose reads may wait for data.
//!
//! Waiting is bounded twice: by the job's deadline, and by the number of threads that may wait, so that FIFOs
//! without a writer cannot take the last thread.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use proto::Text;

use crate::paths::Kind;

/// When nobody waits any more for the answer of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// A little before so many milliseconds have gone, so that the answer is still taken: what was read from a FIFO
    /// for an answer that nobody takes is lost. Never if 0.
    pub(crate) fn before(milliseconds: u32) -> Self {
        let early = (milliseconds / 8).min(250);
        let wait = Duration::from_millis(milliseconds.saturating_sub(early).into());
        Deadline((milliseconds > 0).then(|| Instant::now().checked_add(wait)).flatten())
    }

    /// Whether it is over.
    pub(crate) fn has_passed(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    fn timeout(self) -> PollTimeout {
        let Some(end) = self.0 else { return PollTimeout::NONE };
        // Rounded up, or the last millisecond would be spent in a loop.
        let rest = end.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        i32::try_from(rest).ok().and_then(|rest| PollTimeout::try_from(rest).ok()).unwrap_or(PollTimeout::MAX)
    }
}

/// How many threads may wait for a peer that may never come.
#[derive(Debug)]
pub(crate) struct Waiting {
    free: AtomicUsize,
}

impl Waiting {
    /// At most `threads` at the same time.
    pub(crate) fn new(threads: usize) -> Self {
        Waiting { free: AtomicUsize::new(threads) }
    }

    /// Waits until `fd` is ready for `event`.
    ///
    /// EAGAIN if it is not at the deadline, or if too many others wait already.
    fn wait(&self, fd: BorrowedFd<'_>, event: PollFlags, deadline: Deadline) -> Result<(), Errno> {
        if ready(fd, event, PollTimeout::ZERO)? {
            return Ok(());
        }
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        if taken.is_err() {
            return Err(Errno::EAGAIN);
        }
        let result = loop {
            match ready(fd, event, deadline.timeout()) {
                Ok(true) => break Ok(()),
                Ok(false) if deadline.has_passed() => break Err(Errno::EAGAIN),
                Ok(false) => {}
                Err(errno) => break Err(errno),
            }
        };
        self.free.fetch_add(1, Ordering::Relaxed);
        result
    }
}

fn ready(fd: BorrowedFd<'_>, event: PollFlags, timeout: PollTimeout) -> Result<bool, Errno> {
    match poll(&mut [PollFd::new(fd, event)], timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Plain {
    fd: OwnedFd,
    kind: Kind,
    path: Text,
}

impl Plain {
    /// Takes over `fd`, which was opened as `path` without blocking.
    pub(crate) fn new(fd: OwnedFd, kind: Kind, path: Text) -> Self {
        Plain { fd, kind, path }
    }

    /// For the errors of this file.
    pub(crate) fn path(&self) -> &Text {
        &self.path
    }

    /// Reads once; nothing means the end. A FIFO that nobody has opened for writing yet has not ended.
    pub(crate) fn read(
        &self,
        into: &mut [u8],
        waiting: &Waiting,
        deadline: Deadline,
    ) -> Result<usize, Errno> {
        if self.kind == Kind::Fifo {
            waiting.wait(self.fd.as_fd(), PollFlags::POLLIN, deadline)?;
        }
        loop {
            match read(&self.fd, into) {
                Err(Errno::EAGAIN) => self.again(PollFlags::POLLIN, waiting, deadline)?,
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Writes all of `bytes`; after an error an unknown part of them is written.
    pub(crate) fn write(&self, mut bytes: &[u8], waiting: &Waiting, deadline: Deadline) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match write(self.fd.as_fd(), bytes) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::EAGAIN) => self.again(PollFlags::POLLOUT, waiting, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Some devices say that they are ready and then that they are not: the deadline ends that, too.
    fn again(&self, event: PollFlags, waiting: &Waiting, deadline: Deadline) -> Result<(), Errno> {
        if deadline.has_passed() {
            return Err(Errno::EAGAIN);
        }
        waiting.wait(self.fd.as_fd(), event, deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Write as _};

    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    fn pipe() -> (Plain, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        (plain(reader), writer)
    }

    fn plain(reader: PipeReader) -> Plain {
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Plain::new(OwnedFd::from(reader), Kind::Fifo, Text::from("/fifo"))
    }

    #[test]
    fn a_read_waits_for_data_and_then_for_the_end() {
        let (plain, mut writer) = pipe();
        let writes = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            writer.write_all(b"late").unwrap();
        });
        let waiting = Waiting::new(1);
        let mut into = [0; 10];
        assert_eq!(plain.read(&mut into, &waiting, Deadline::before(10_000)), Ok(4));
        writes.join().unwrap();
        assert_eq!(plain.read(&mut into, &waiting, Deadline::before(10_000)), Ok(0));
        assert_eq!(waiting.free.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_wait_ends_early_enough_for_its_answer() {
        let now = Instant::now();
        let end =
            |milliseconds| Deadline::before(milliseconds).0.map(|end| end.duration_since(now).as_millis());
        assert!(end(30_000).is_some_and(|end| (29_750..30_000).contains(&end)));
        assert!(end(800).is_some_and(|end| (700..800).contains(&end)));
        assert_eq!(end(0), None);
    }

    #[test]
    fn nothing_until_the_deadline_is_try_again() {
        let (plain, _writer) = pipe();
        let begun = Instant::now();
        let result = plain.read(&mut [0; 10], &Waiting::new(1), Deadline::before(80));
        assert_eq!(result, Err(Errno::EAGAIN));
        assert!(begun.elapsed() >= Duration::from_millis(70));
    }

    #[test]
    fn who_finds_no_free_thread_to_wait_on_does_not_wait() {
        let (plain, _writer) = pipe();
        let result = plain.read(&mut [0; 10], &Waiting::new(0), Deadline::before(0));
        assert_eq!(result, Err(Errno::EAGAIN));
    }

    #[test]
    fn a_write_waits_until_the_reader_has_made_room() {
        let (reader, writer) = std::io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let sink = std::thread::spawn(move || std::io::read_to_string(reader).unwrap().len());
        let plain = Plain::new(OwnedFd::from(writer), Kind::Fifo, Text::from("/fifo"));
        plain.write(&[b'x'; 300_000], &Waiting::new(1), Deadline::before(10_000)).unwrap();
        drop(plain);
        assert_eq!(sink.join().unwrap(), 300_000);
    }
}
