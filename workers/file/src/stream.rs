//! A file of `guest-file-open`: a descriptor that behaves as a C stream does for those who watch it from outside.
//!
//! Small writes stay in a buffer until flush, seek, read or close, so `/dev/full` takes a byte and complains at the flush, as with
//! qemu-ga. Reads are not buffered here: the position of the descriptor is the position of the stream, and the broker reads ahead.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::{Whence, close, lseek, read, write};

/// The buffer of a C stream on a file with blocks of 4096 bytes (glibc, `_IO_file_doallocate`).
pub(crate) const BUFFER: usize = 4096;

/// Why a read failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// What was written before could not be handed to the kernel.
    Flush(Errno),
    /// The read itself.
    Read(Errno),
}

/// An open file with bytes that wait to be written.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
    writes: bool,
    /// Never more than [`BUFFER`].
    pending: Vec<u8>,
}

impl Stream {
    /// Takes over `fd`, which may be written to if `writes`.
    pub(crate) fn new(fd: OwnedFd, writes: bool) -> Self {
        Stream { fd, writes, pending: Vec::new() }
    }

    /// Reads into `into` until it is full, and returns how many bytes there were and whether the end was met.
    ///
    /// At `at` if given, without moving the position. What came before an error is a short read; the error comes back
    /// with the next one. (qemu-ga loses these bytes.)
    pub(crate) fn read(&mut self, at: Option<u64>, into: &mut [u8]) -> Result<(usize, bool), ReadError> {
        self.flush().map_err(ReadError::Flush)?;
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let result = match at {
                None => read(&self.fd, rest),
                Some(at) => offset(at, done).and_then(|at| pread(&self.fd, rest, at)),
            };
            match result {
                Ok(0) => return Ok((done, true)),
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::EINTR) => {}
                Err(errno) if done == 0 => return Err(ReadError::Read(errno)),
                Err(_) => break,
            }
        }
        Ok((done, false))
    }

    /// Writes all of `bytes`, or keeps their end for later. After an error an unknown part of them is written, the rest lost.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.writes {
            return Err(Errno::EBADF);
        }
        if !self.pending.is_empty() {
            let room = BUFFER.saturating_sub(self.pending.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.pending.extend_from_slice(now);
            bytes = later;
            if bytes.is_empty() {
                return Ok(());
            }
            self.flush()?;
        }
        let (blocks, rest) = bytes.split_at(bytes.len() - bytes.len() % BUFFER);
        self.write_through(blocks)?;
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// Hands what waits to the kernel. If that fails, it is lost, as with a C stream.
    pub(crate) fn flush(&mut self) -> Result<(), Errno> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let result = self.write_through(&pending);
        self.pending = pending;
        self.pending.clear();
        result
    }

    /// Flushes, moves the position and returns it.
    pub(crate) fn seek(&mut self, to: i64, whence: Whence) -> Result<i64, Errno> {
        self.flush()?;
        lseek(&self.fd, to, whence)
    }

    /// Flushes and closes. The descriptor is gone whatever the result.
    pub(crate) fn close(mut self) -> Result<(), Errno> {
        let flushed = self.flush();
        let closed = close(self.fd);
        flushed.and(closed)
    }

    fn write_through(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match write(self.fd.as_fd(), bytes) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

fn offset(at: u64, done: usize) -> Result<i64, Errno> {
    let at = i64::try_from(at).map_err(|_| Errno::EINVAL)?;
    let done = i64::try_from(done).map_err(|_| Errno::EINVAL)?;
    at.checked_add(done).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn new_file() -> (TempDir, std::path::PathBuf, Stream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        (folder, path, Stream::new(file.into(), true))
    }

    #[test]
    fn a_small_write_is_seen_by_others_after_the_flush() {
        let (_folder, path, mut stream) = new_file();
        stream.write(b"hello").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        stream.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    }

    #[test]
    fn of_a_large_write_only_the_last_part_of_a_block_waits() {
        let (_folder, path, mut stream) = new_file();
        stream.write(&[7; 10_000]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
        stream.close().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_000);
    }

    #[test]
    fn a_full_device_takes_a_byte_and_complains_at_the_flush_once() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut stream = Stream::new(file.into(), true);
        assert_eq!(stream.write(b"x"), Ok(()));
        assert_eq!(stream.flush(), Err(Errno::ENOSPC));
        assert_eq!(stream.flush(), Ok(()));
        assert_eq!(stream.write(&[0; 5000]), Err(Errno::ENOSPC));
        stream.write(b"x").unwrap();
        assert_eq!(stream.close(), Err(Errno::ENOSPC));
    }

    #[test]
    fn what_is_open_for_reading_takes_nothing_not_even_into_the_buffer() {
        let mut stream = Stream::new(File::open("/dev/null").unwrap().into(), false);
        assert_eq!(stream.write(b"x"), Err(Errno::EBADF));
        assert_eq!(stream.write(b""), Ok(()));
    }

    #[test]
    fn the_end_is_met_only_by_a_read_that_wants_more() {
        let (_folder, _path, mut stream) = new_file();
        stream.write(b"Hello World!\n\0").unwrap();
        assert_eq!(stream.seek(0, Whence::SeekSet), Ok(0));
        let mut into = [0; 14];
        assert_eq!(stream.read(None, &mut into), Ok((14, false)));
        assert_eq!(stream.read(None, &mut into), Ok((0, true)));
        assert_eq!(stream.seek(6, Whence::SeekSet), Ok(6));
        assert_eq!(stream.read(None, &mut into), Ok((8, true)));
    }

    #[test]
    fn reading_elsewhere_leaves_the_position_alone() {
        let (_folder, _path, mut stream) = new_file();
        stream.write(b"0123456789").unwrap();
        let mut into = [0; 4];
        assert_eq!(stream.read(Some(8), &mut into), Ok((2, true)));
        assert_eq!(&into[..2], b"89");
        assert_eq!(stream.seek(0, Whence::SeekCur), Ok(10));
        assert_eq!(stream.read(Some(u64::MAX), &mut into), Err(ReadError::Read(Errno::EINVAL)));
    }

    /// qemu-ga answers `Resource temporarily unavailable` here and loses what it has read.
    #[test]
    fn a_pipe_with_less_than_was_asked_for_gives_a_short_read() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let mut stream = Stream::new(OwnedFd::from(reader), false);
        let mut into = [0; 100];
        writer.write_all(b"abc").unwrap();
        assert_eq!(stream.read(None, &mut into), Ok((3, false)));
        assert_eq!(stream.read(None, &mut into), Err(ReadError::Read(Errno::EAGAIN)));
        drop(writer);
        assert_eq!(stream.read(None, &mut into), Ok((0, true)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Read(usize),
        Write(usize, u8),
        Seek(i64),
        Flush,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..9000_usize).prop_map(Step::Read),
            (0..9000_usize, any::<u8>()).prop_map(|(count, byte)| Step::Write(count, byte)),
            (0..20_000_i64).prop_map(Step::Seek),
            Just(Step::Flush),
        ];
        proptest::collection::vec(step, 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The model has no buffer at all: within one handle nobody can tell.
        #[test]
        fn one_handle_sees_what_it_wrote_where_it_wrote_it(steps in steps()) {
            let (_folder, path, mut stream) = new_file();
            let mut model: Vec<u8> = Vec::new();
            let mut position = 0;
            for step in steps {
                match step {
                    Step::Read(count) => {
                        let mut into = vec![0; count];
                        let (done, eof) = stream.read(None, &mut into).unwrap();
                        let there = model.get(position..).unwrap_or_default();
                        let expected = &there[..there.len().min(count)];
                        prop_assert_eq!(&into[..done], expected);
                        prop_assert_eq!(eof, done < count);
                        position += done;
                    }
                    Step::Write(count, byte) => {
                        stream.write(&vec![byte; count]).unwrap();
                        if count > 0 {
                            model.resize(model.len().max(position + count), 0);
                            model[position..position + count].fill(byte);
                        }
                        position += count;
                    }
                    Step::Seek(to) => {
                        prop_assert_eq!(stream.seek(to, Whence::SeekSet), Ok(to));
                        position = usize::try_from(to).unwrap();
                    }
                    Step::Flush => stream.flush().unwrap(),
                }
                prop_assert!(stream.pending.len() <= BUFFER);
            }
            stream.close().unwrap();
            prop_assert_eq!(std::fs::read(path).unwrap(), model);
        }
    }
}
