//! `guest-file-*`: C streams by number, in the words of qga/commands-posix.c.
//!
//! The broker knows which of its clients may use which handle, and does one job at a time for each. The number that a
//! client gave stands in `request.handle` and is used for error texts only; `detail.handle` is the one that counts.

use authorize::Exceeded;
use nix::errno::Errno;
use nix::unistd::Whence;
use proto::Failed;
use proto::agent::Nothing;
use proto::file::{OfHandle, Open, Position, Read, ReadDone, Seek, Write, Written};
use proto::limits::{FILE_READ, PIECE};
use runtime::NotDone;

use crate::Files;
use crate::asked::{Asked, Grant};
use crate::modes::fopen_mode;
use crate::paths::PathError;
use crate::stream::{ReadError, Stream};
use crate::table::{Kept, OpenFile, lock};

/// Of a file that is made. qemu-ga has 0666, which lets every user of the guest write to it.
const NEW_FILE: nix::sys::stat::Mode = nix::sys::stat::Mode::from_bits_truncate(0o644);

/// One byte of output goes with the answer: 1 if the broker may read the file ahead, else 0.
pub(crate) fn open(files: &Files, open: &Open, asked: &Asked<'_>) -> Result<i64, NotDone> {
    let mode = open.mode.as_deref().unwrap_or("r");
    let access = fopen_mode(mode).ok_or_else(|| Failed::new(format!("invalid file open mode '{mode}'")))?;
    let failed = |error: PathError| {
        let what = match error {
            PathError::Open(_) | PathError::Refused(_) | PathError::Full(_) => "open",
            PathError::Owner(_) => "set owner of new",
            PathError::Permissions(_) => "set permission 0644 on new",
        };
        error
            .or(|errno| system(format_args!("failed to {what} file '{}' (mode: '{mode}')", open.path), errno))
    };
    let opened = files.room(asked).and_then(|()| {
        if access.creates {
            files.paths.open_or_create(&open.path.0, access.flags, NEW_FILE, asked)
        } else {
            files.paths.open(&open.path.0, access.flags, asked)
        }
    });
    let opened = opened.map_err(failed)?;
    let stream = OpenFile::Stream(Stream::new(opened.fd, access.writes));
    files.keep(asked, stream, opened.read_ahead).map_err(|errno| failed(errno.into()))
}

pub(crate) fn close(files: &Files, close: &OfHandle, asked: &Asked<'_>) -> Result<Nothing, NotDone> {
    // The number is forgotten whatever happens: qemu-ga keeps it after a failed close, and crashes when it is used again.
    with_stream(files, asked, close.handle, |_, _| Ok(()))?;
    let file = files.table.remove(asked.call.detail.handle).ok_or_else(|| unknown(close.handle))?;
    match std::sync::Arc::into_inner(file).map(std::sync::Mutex::into_inner) {
        Some(Ok(Kept { file: OpenFile::Stream(stream), .. })) => {
            stream.close().map_err(|errno| system("failed to close handle", errno))?;
        }
        // Another job still works on it, which a broker of ours does not allow, or died doing so: it is closed after that.
        Some(Ok(Kept { file: OpenFile::Plain(_), .. }) | Err(_)) | None => {}
    }
    Ok(Nothing {})
}

/// One piece of what was asked for: at most `detail.count` bytes, in the output.
pub(crate) fn read(files: &Files, request: &Read, asked: &Asked<'_>) -> Result<ReadDone, NotDone> {
    let call = asked.call;
    with_stream(files, asked, request.handle, |stream, grant| {
        grant.permits(asked)?;
        if let Some(count) = request.count.filter(|count| !(0..=FILE_READ.cast_signed()).contains(count)) {
            return Err(invalid_count(count).into());
        }
        let most = usize::try_from(call.detail.count).unwrap_or(PIECE).min(PIECE);
        let most = grant.readable(most).map_err(|exceeded| beyond("failed to read file", exceeded))?;
        let mut output = call.output.borrow_mut();
        output.resize(most, 0);
        match stream.read(call.detail.offset, &mut output) {
            Ok((count, eof)) => {
                output.truncate(count);
                grant.use_up(count);
                Ok(ReadDone { count: signed(count), eof })
            }
            Err(error) => {
                output.clear();
                let failed = match error {
                    ReadError::Flush(errno) => system("failed to flush file", errno),
                    ReadError::Read(errno) => system("failed to read file", errno),
                };
                Err(failed.into())
            }
        }
    })
}

/// One piece of what is to be written; it begins at `detail.offset` of the request's payload, not of the file.
pub(crate) fn write(files: &Files, request: &Write, asked: &Asked<'_>) -> Result<Written, NotDone> {
    let call = asked.call;
    with_stream(files, asked, request.handle, |stream, grant| {
        grant.permits(asked)?;
        let total = request.buf_b64.length;
        let wanted = match request.count {
            None => total,
            Some(count) => u64::try_from(count)
                .ok()
                .filter(|wanted| *wanted <= total)
                .ok_or_else(|| invalid_count(count))?,
        };
        let left = wanted.saturating_sub(call.detail.offset.unwrap_or(0));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let bytes = call.payload.get(..left).unwrap_or(call.payload);
        grant
            .writable(bytes.len(), wanted)
            .map_err(|exceeded| beyond("failed to write to file", exceeded))?;
        if let Some(position) = call.detail.position {
            i64::try_from(position)
                .map_err(|_| Errno::EINVAL)
                .and_then(|position| stream.seek(position, Whence::SeekSet))
                .map_err(|errno| system("failed to seek file", errno))?;
        }
        // An error leaves open how much was written.
        grant.use_up(bytes.len());
        stream.write(bytes).map_err(|errno| system("failed to write to file", errno))?;
        Ok(Written { count: signed(bytes.len()), eof: false })
    })
}

pub(crate) fn seek(files: &Files, request: &Seek, asked: &Asked<'_>) -> Result<Position, NotDone> {
    with_stream(files, asked, request.handle, |stream, _| {
        let whence = match request.whence.0 {
            0 => Whence::SeekSet,
            1 => Whence::SeekCur,
            2 => Whence::SeekEnd,
            other => return Err(Failed::new(format!("invalid whence code {other}")).into()),
        };
        let position =
            stream.seek(request.offset, whence).map_err(|errno| system("failed to seek file", errno))?;
        Ok(Position { position, eof: false })
    })
}

pub(crate) fn flush(files: &Files, request: &OfHandle, asked: &Asked<'_>) -> Result<Nothing, NotDone> {
    with_stream(files, asked, request.handle, |stream, _| {
        stream.flush().map_err(|errno| system("failed to flush file", errno))?;
        Ok(Nothing {})
    })
}

fn with_stream<T>(
    files: &Files,
    asked: &Asked<'_>,
    number: i64,
    work: impl FnOnce(&mut Stream, &mut Grant) -> Result<T, NotDone>,
) -> Result<T, NotDone> {
    let file = files.table.find(asked.call.detail.handle).ok_or_else(|| unknown(number))?;
    let Kept { file, grant } = &mut *lock(&file);
    match file {
        OpenFile::Stream(stream) => work(stream, grant),
        OpenFile::Plain(_) => Err(unknown(number).into()),
    }
}

/// A limit that the broker should have kept.
fn beyond(what: &str, exceeded: Exceeded) -> Failed {
    Failed::new(format!("{what}: Permission denied: {exceeded}"))
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
