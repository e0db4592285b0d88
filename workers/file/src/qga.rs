//! `guest-file-*`: C streams by number, in the words of qga/commands-posix.c.
//!
//! The broker knows which of its clients may use which handle, and does one job at a time for each. The number that a
//! client gave stands in `request.handle` and is used for error texts only; `detail.handle` is the one that counts.

use nix::errno::Errno;
use nix::unistd::Whence;
use proto::Failed;
use proto::agent::Nothing;
use proto::file::{OfHandle, Open, Position, Read, ReadDone, Seek, Write, Written};
use proto::limits::{FILE_READ, PIECE};
use proto::message::Detail;
use runtime::Call;

use crate::Files;
use crate::modes::fopen_mode;
use crate::paths::CreateError;
use crate::stream::{ReadError, Stream};
use crate::table::{OpenFile, lock};

/// Of a file that is made. qemu-ga has 0666, which lets every user of the guest write to it.
const NEW_FILE: nix::sys::stat::Mode = nix::sys::stat::Mode::from_bits_truncate(0o644);

/// One byte of output goes with the answer: 1 if the broker may read the file ahead, else 0.
pub(crate) fn open(files: &Files, open: &Open, call: &Call<'_>) -> Result<i64, Failed> {
    let mode = open.mode.as_deref().unwrap_or("r");
    let access = fopen_mode(mode).ok_or_else(|| Failed::new(format!("invalid file open mode '{mode}'")))?;
    let failed = |error: CreateError| {
        let (what, errno) = match error {
            CreateError::Open(errno) => ("open", errno),
            CreateError::Owner(errno) => ("set owner of new", errno),
            CreateError::Permissions(errno) => ("set permission 0644 on new", errno),
        };
        system(format_args!("failed to {what} file '{}' (mode: '{mode}')", open.path), errno)
    };
    let opened = files.table.room().map_err(CreateError::Open).and_then(|()| {
        if access.creates {
            files.paths.open_or_create(&open.path.0, access.flags, NEW_FILE)
        } else {
            files.paths.open(&open.path.0, access.flags).map_err(CreateError::Open)
        }
    });
    let opened = opened.map_err(failed)?;
    let stream = OpenFile::Stream(Stream::new(opened.fd, access.writes));
    files.keep(call, stream, opened.read_ahead).map_err(|errno| failed(CreateError::Open(errno)))
}

pub(crate) fn close(files: &Files, close: &OfHandle, call: &Call<'_>) -> Result<Nothing, Failed> {
    // The number is forgotten whatever happens: qemu-ga keeps it after a failed close, and crashes when it is used again.
    with_stream(files, &call.detail, close.handle, |_| Ok(()))?;
    let file = files.table.remove(call.detail.handle).ok_or_else(|| unknown(close.handle))?;
    match std::sync::Arc::into_inner(file).map(std::sync::Mutex::into_inner) {
        Some(Ok(OpenFile::Stream(stream))) => {
            stream.close().map_err(|errno| system("failed to close handle", errno))?;
        }
        // Another job still works on it, which a broker of ours does not allow, or died doing so: it is closed after that.
        Some(Ok(OpenFile::Plain(_)) | Err(_)) | None => {}
    }
    Ok(Nothing {})
}

/// One piece of what was asked for: at most `detail.count` bytes, in the output.
pub(crate) fn read(files: &Files, request: &Read, call: &Call<'_>) -> Result<ReadDone, Failed> {
    with_stream(files, &call.detail, request.handle, |stream| {
        if let Some(count) = request.count.filter(|count| !(0..=FILE_READ.cast_signed()).contains(count)) {
            return Err(invalid_count(count));
        }
        let mut output = call.output.borrow_mut();
        output.resize(usize::try_from(call.detail.count).unwrap_or(PIECE).min(PIECE), 0);
        match stream.read(call.detail.offset, &mut output) {
            Ok((count, eof)) => {
                output.truncate(count);
                Ok(ReadDone { count: signed(count), eof })
            }
            Err(error) => {
                output.clear();
                Err(match error {
                    ReadError::Flush(errno) => system("failed to flush file", errno),
                    ReadError::Read(errno) => system("failed to read file", errno),
                })
            }
        }
    })
}

/// One piece of what is to be written; it begins at `detail.offset` of the request's payload, not of the file.
pub(crate) fn write(files: &Files, request: &Write, call: &Call<'_>) -> Result<Written, Failed> {
    with_stream(files, &call.detail, request.handle, |stream| {
        let total = request.buf_b64.length;
        let wanted = match request.count {
            None => total,
            Some(count) => u64::try_from(count)
                .ok()
                .filter(|wanted| *wanted <= total)
                .ok_or_else(|| invalid_count(count))?,
        };
        let wanted = wanted.saturating_sub(call.detail.offset.unwrap_or(0));
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let bytes = call.payload.get(..wanted).unwrap_or(call.payload);
        if let Some(position) = call.detail.position {
            i64::try_from(position)
                .map_err(|_| Errno::EINVAL)
                .and_then(|position| stream.seek(position, Whence::SeekSet))
                .map_err(|errno| system("failed to seek file", errno))?;
        }
        stream.write(bytes).map_err(|errno| system("failed to write to file", errno))?;
        Ok(Written { count: signed(bytes.len()), eof: false })
    })
}

pub(crate) fn seek(files: &Files, request: &Seek, call: &Call<'_>) -> Result<Position, Failed> {
    with_stream(files, &call.detail, request.handle, |stream| {
        let whence = match request.whence.0 {
            0 => Whence::SeekSet,
            1 => Whence::SeekCur,
            2 => Whence::SeekEnd,
            other => return Err(Failed::new(format!("invalid whence code {other}"))),
        };
        let position =
            stream.seek(request.offset, whence).map_err(|errno| system("failed to seek file", errno))?;
        Ok(Position { position, eof: false })
    })
}

pub(crate) fn flush(files: &Files, request: &OfHandle, call: &Call<'_>) -> Result<Nothing, Failed> {
    with_stream(files, &call.detail, request.handle, |stream| {
        stream.flush().map_err(|errno| system("failed to flush file", errno))?;
        Ok(Nothing {})
    })
}

fn with_stream<T>(
    files: &Files,
    detail: &Detail,
    number: i64,
    work: impl FnOnce(&mut Stream) -> Result<T, Failed>,
) -> Result<T, Failed> {
    let file = files.table.find(detail.handle).ok_or_else(|| unknown(number))?;
    match &mut *lock(&file) {
        OpenFile::Stream(stream) => work(stream),
        OpenFile::Plain(_) => Err(unknown(number)),
    }
}

fn unknown(number: i64) -> Failed {
    Failed::new(format!("handle '{number}' has not been found"))
}

fn invalid_count(count: i64) -> Failed {
    Failed::new(format!("value '{count}' is invalid for argument count"))
}

fn system(what: impl std::fmt::Display, errno: Errno) -> Failed {
    Failed::system(what, errno as i32)
}

/// A count of bytes that are in memory fits.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
