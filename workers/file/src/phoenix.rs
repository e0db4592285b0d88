//! Phoenix's files: descriptors by number that close themselves at their end, and what is done to a path at once.
//!
//! Errors are Go's path errors, whose errno the client gets as a number. A handle's number as the client knows it is the
//! broker's business; here only `detail.handle` counts.

use std::fmt::Write as _;

use authorize::Exceeded;
use md5::{Digest as _, Md5};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use proto::file::{ListDirectory, OfPath, PhoenixOpen, PhoenixReadDone, PhoenixWrite, Stat, StatInfo, Time};
use proto::limits::MESSAGE;
use proto::{Failed, Text};
use runtime::NotDone;

use crate::Files;
use crate::asked::Asked;
use crate::modes::{for_new, permissions};
use crate::paths::{Kind, Opened, PathError};
use crate::plain::{Deadline, Plain};
use crate::table::{Kept, OpenFile, Shared, lock};

/// What one read returns at most; clients count on it.
const READ: usize = 4096;

/// How much of a file is in memory for its MD5.
const DIGEST_PIECE: usize = 64 * 1024;

pub(crate) fn open(files: &Files, request: &PhoenixOpen, asked: &Asked<'_>) -> Result<i64, NotDone> {
    let failed = |error: PathError| error.or(|errno| path_error("open", &request.path, errno));
    files.room(asked).map_err(failed)?;
    // Any mode but `w` reads.
    let opened = if request.writes() {
        open_for_writing(files, request, asked)
    } else {
        files.paths.open(&request.path.0, OFlag::O_RDONLY, asked)
    };
    let opened = opened.map_err(failed)?;
    let plain = Plain::new(opened.fd, opened.kind, request.path.clone());
    let kept = files.keep(asked, OpenFile::Plain(plain), opened.read_ahead);
    kept.map_err(|errno| failed(errno.into()))
}

fn open_for_writing(files: &Files, request: &PhoenixOpen, asked: &Asked<'_>) -> Result<Opened, PathError> {
    let permissions = for_new(permissions(request.perm).ok_or(Errno::EINVAL)?);
    files.may_set_group_id(permissions)?;
    let (path, flags) = (&request.path.0, OFlag::O_WRONLY | OFlag::O_TRUNC);
    match files.paths.open_or_create(path, flags, permissions, asked) {
        Err(PathError::Open(Errno::ETXTBSY)) if request.force => {
            files.paths.replace(path, flags, permissions, asked)
        }
        result => result,
    }
}

pub(crate) fn close(files: &Files, asked: &Asked<'_>) -> bool {
    // Whatever the number; an error of close(2) is not told either, as ever.
    if find(files, asked).is_ok() {
        files.table.remove(asked.call.detail.handle);
    }
    true
}

/// One read(2). At the end the file is closed, and the broker forgets its number when it sees `eof`.
pub(crate) fn read(files: &Files, asked: &Asked<'_>) -> Result<PhoenixReadDone, NotDone> {
    let call = asked.call;
    let file = find(files, asked)?;
    let mut output = call.output.borrow_mut();
    let result = {
        let Kept { file, grant } = &mut *lock(&file);
        let OpenFile::Plain(plain) = file else { return Err(unknown().into()) };
        grant.permits(asked)?;
        let most = grant.readable(READ).map_err(|exceeded| beyond("read", plain.path(), exceeded))?;
        output.resize(most, 0);
        plain
            .read(&mut output, &files.waiting, Deadline::before(call.deadline_ms))
            .inspect(|count| grant.use_up(*count))
            .map_err(|errno| path_error("read", plain.path(), errno))
    };
    output.truncate(*result.as_ref().unwrap_or(&0));
    let eof = result? == 0;
    if eof {
        files.table.remove(call.detail.handle);
    }
    Ok(PhoenixReadDone { eof })
}

/// One piece of what is to be written; it begins at `detail.offset` of the request's payload.
///
/// With `eof` the file is closed behind the last piece, or at once if a piece fails: in both cases the number is gone.
pub(crate) fn write(files: &Files, request: &PhoenixWrite, asked: &Asked<'_>) -> Result<bool, NotDone> {
    let call = asked.call;
    let file = find(files, asked)?;
    let result = {
        let Kept { file, grant } = &mut *lock(&file);
        let OpenFile::Plain(plain) = file else { return Err(unknown().into()) };
        grant.permits(asked)?;
        let writable = grant.writable(call.payload.len(), request.bufb64.length);
        writable.map_err(|exceeded| beyond("write", plain.path(), exceeded)).and_then(|()| {
            grant.use_up(call.payload.len());
            plain
                .write(call.payload, &files.waiting, Deadline::before(call.deadline_ms))
                .map_err(|errno| path_error("write", plain.path(), errno))
        })
    };
    let length = u64::try_from(call.payload.len()).unwrap_or(u64::MAX);
    let last = call.detail.offset.unwrap_or(0).saturating_add(length) >= request.bufb64.length;
    if request.eof && (last || result.is_err()) {
        files.table.remove(call.detail.handle);
    }
    Ok(result.map(|()| true)?)
}

pub(crate) fn md5_sum(files: &Files, request: &OfPath, asked: &Asked<'_>) -> Result<String, NotDone> {
    let deadline = Deadline::before(asked.call.deadline_ms);
    let opened = files.paths.open(&request.path.0, OFlag::O_RDONLY, asked);
    let opened = opened.map_err(|error| error.or(|errno| path_error("open", &request.path, errno)))?;
    let grant = asked.grant();
    let mut total = 0_u64;
    let plain = Plain::new(opened.fd, opened.kind, request.path.clone());
    let failed = |errno| path_error("read", &request.path, errno);
    let mut digest = Md5::new();
    let mut buffer = vec![0; DIGEST_PIECE];
    loop {
        let count = plain.read(&mut buffer, &files.waiting, deadline).map_err(failed)?;
        if count == 0 {
            break;
        }
        // The sum of a part says nothing of the file.
        total = total.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        let allowed = grant.terms.as_ref().map_or(Ok(()), |terms| terms.whole(total));
        allowed.map_err(|exceeded| beyond("read", &request.path, exceeded))?;
        digest.update(buffer.get(..count).unwrap_or_default());
        // A device may have no end.
        if deadline.has_passed() {
            return Err(failed(Errno::ETIMEDOUT).into());
        }
    }
    Ok(digest.finalize().iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

pub(crate) fn stat(files: &Files, request: &OfPath, asked: &Asked<'_>) -> Result<StatInfo, NotDone> {
    let found = files.paths.find(&request.path.0, false, asked);
    let stat = found.and_then(|found| Ok(nix::sys::stat::fstat(found)?));
    let stat = stat.map_err(|error| error.or(|errno| path_error("lstat", &request.path, errno)))?;
    Ok(entry(base_name(&request.path.0), &stat))
}

pub(crate) fn list(
    files: &Files,
    request: &ListDirectory,
    asked: &Asked<'_>,
) -> Result<Vec<StatInfo>, NotDone> {
    let opened = files.paths.open(&request.path.0, OFlag::O_RDONLY, asked);
    let opened = opened.map_err(|error| error.or(|errno| path_error("open", &request.path, errno)))?;
    let failed = |errno| path_error("readdirent", &request.path, errno);
    if opened.kind != Kind::Directory {
        return Err(failed(Errno::ENOTDIR).into());
    }
    let limit = usize::try_from(request.n).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    Ok(entries(opened, limit).map_err(failed)?)
}

/// In the order of the kernel; what vanishes meanwhile is left out.
fn entries(opened: Opened, limit: usize) -> Result<Vec<StatInfo>, Errno> {
    let again = opened.fd.try_clone().map_err(|_| Errno::EMFILE)?;
    let directory = nix::dir::Dir::from_fd(again)?;
    let mut list = Vec::new();
    let mut size = 0_usize;
    for found in directory {
        let found = found?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if list.len() >= limit {
            break;
        }
        match nix::sys::stat::fstatat(&opened.fd, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let entry = entry(name.to_bytes(), &stat);
                size = size.saturating_add(ENTRY).saturating_add(entry.name.len());
                if size > LISTING {
                    return Err(Errno::EMSGSIZE);
                }
                list.push(entry);
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(list)
}

/// Bytes of one [`StatInfo`] in a message, its name apart: not more than 20 numbers of 8 bytes.
const ENTRY: usize = 20 * 8;
/// A listing that would not fit into a message is an error, not the end of this worker.
const LISTING: usize = MESSAGE - 64 * 1024;

/// As Go's `os` package cuts a path: no final slashes, no folder; the root is itself.
fn base_name(path: &[u8]) -> &[u8] {
    let end =
        path.iter().rposition(|byte| *byte != b'/').map_or(path.len().min(1), |last| last.saturating_add(1));
    let path = path.get(..end).unwrap_or_default();
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) if path.len() > 1 => path.get(slash.saturating_add(1)..).unwrap_or_default(),
        _ => path,
    }
}

fn entry(name: &[u8], stat: &nix::sys::stat::FileStat) -> StatInfo {
    StatInfo {
        name: String::from_utf8_lossy(name).into_owned(),
        isdir: Kind::of(stat) == Kind::Directory,
        stat: numbers(stat),
    }
}

#[allow(clippy::useless_conversion, reason = "the members' types differ between architectures")]
fn numbers(stat: &nix::sys::stat::FileStat) -> Stat {
    let time = |sec: i64, nsec: i64| Time { sec, nsec };
    Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        nlink: stat.st_nlink.into(),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        pad0: 0,
        rdev: stat.st_rdev,
        size: stat.st_size,
        blksize: stat.st_blksize.into(),
        blocks: stat.st_blocks,
        atim: time(stat.st_atime, stat.st_atime_nsec),
        mtim: time(stat.st_mtime, stat.st_mtime_nsec),
        ctim: time(stat.st_ctime, stat.st_ctime_nsec),
        unused: [0; 3],
    }
}

fn find(files: &Files, asked: &Asked<'_>) -> Result<Shared, Failed> {
    let file = files.table.find(asked.call.detail.handle).ok_or_else(unknown)?;
    let ours = matches!(lock(&file).file, OpenFile::Plain(_));
    if ours { Ok(file) } else { Err(unknown()) }
}

fn unknown() -> Failed {
    Failed::new("Incorrect handle id")
}

/// A limit that the broker should have kept.
fn beyond(operation: &str, path: &Text, exceeded: Exceeded) -> Failed {
    Failed::new(format!("{operation} {path}: permission denied: {exceeded}"))
}

/// A path error in Go's words.
pub(crate) fn path_error(operation: &str, path: &Text, errno: Errno) -> Failed {
    Failed::go_path(operation, path, errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_the_last_part_of_the_path_as_typed() {
        let names = ["/srv/h2/a.txt", "/srv/h2/", "/", "//", ".", "/srv/..", "a", "a//", ""]
            .map(|path| String::from_utf8_lossy(base_name(path.as_bytes())).into_owned());
        assert_eq!(names, ["a.txt", "h2", "/", "/", ".", "..", "a", "a", ""]);
    }

    proptest! {
        #[test]
        fn a_name_is_the_end_of_its_path_and_has_no_slash(path in "[a./]{0,12}") {
            let name = base_name(path.as_bytes());
            let trimmed = path.trim_end_matches('/');
            if trimmed.is_empty() {
                prop_assert_eq!(name, if path.is_empty() { b"" } else { b"/".as_slice() });
            } else {
                prop_assert!(!name.contains(&b'/') && !name.is_empty());
                prop_assert!(trimmed.as_bytes().ends_with(name));
            }
        }
    }
}
