//! Owner, permissions and directories, for Phoenix.
//!
//! Landlock does not see changes of owner and mode by path, so they are made through descriptors only, which an open gave that
//! Landlock has seen: whoever takes this worker over can change nothing that the policy's paths do not hold.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use proto::Text;
use proto::file::{Chmod, Chown, CreateDirectory};
use runtime::NotDone;

use crate::Files;
use crate::asked::Asked;
use crate::modes::{for_new, permissions};
use crate::paths::{Kind, PathError};
use crate::phoenix::path_error;

pub(crate) fn chown(files: &Files, request: &Chown, asked: &Asked<'_>) -> Result<bool, NotDone> {
    let change = || {
        let file = changeable(files, &request.path, asked)?;
        let (uid, gid) = (id(request.uid)?, id(request.gid)?);
        Ok(fchown(&file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?)
    };
    let failed = |error: PathError| error.or(|errno| path_error("chown", &request.path, errno));
    change().map(|()| true).map_err(failed)
}

/// -1 leaves it alone; the kernel's own -1, 2^32 - 1, is no id.
fn id(number: i64) -> Result<Option<u32>, Errno> {
    match number {
        -1 => Ok(None),
        _ => u32::try_from(number).ok().filter(|id| *id != u32::MAX).map(Some).ok_or(Errno::EINVAL),
    }
}

pub(crate) fn chmod(files: &Files, request: &Chmod, asked: &Asked<'_>) -> Result<bool, NotDone> {
    let change = || {
        // Phoenix's agent takes a missing number for 0 and locks everybody out.
        let permissions = request.perm.and_then(permissions).ok_or(Errno::EINVAL)?;
        files.may_set_group_id(permissions)?;
        Ok(fchmod(&changeable(files, &request.path, asked)?, permissions)?)
    };
    let failed = |error: PathError| error.or(|errno| path_error("chmod", &request.path, errno));
    change().map(|()| true).map_err(failed)
}

/// Opens a file to change what is known about it. Links are followed.
///
/// Not devices and sockets: opening a device can do something (rewind a tape, start a watchdog), a socket cannot be opened at all.
fn changeable(files: &Files, path: &Text, asked: &Asked<'_>) -> Result<OwnedFd, PathError> {
    let found = files.paths.find(&path.0, true, asked)?;
    if Kind::of(&fstat(&found)?) == Kind::Other {
        return Err(Errno::EPERM.into());
    }
    match files.paths.reopen(found.as_fd(), OFlag::O_RDONLY) {
        // Its owner may be allowed to write to it only, or the policy only to write.
        Err(Errno::EACCES) => {
            Ok(files.paths.reopen(found.as_fd(), OFlag::O_WRONLY).map_err(|_| Errno::EACCES)?)
        }
        result => Ok(result?),
    }
}

/// As Go's `os.MkdirAll`: errors name the folder that they are about.
pub(crate) fn create_directory(
    files: &Files,
    request: &CreateDirectory,
    asked: &Asked<'_>,
) -> Result<bool, NotDone> {
    let path = request.path.0.as_slice();
    let failed = |part: &[u8], errno| path_error("mkdir", &Text(part.to_vec()), errno);
    // mkdir(2) ignores set-uid and set-gid: whether a folder hands down its group, the one it is in says.
    let bits = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO | Mode::S_ISVTX;
    let permissions = for_new(permissions(request.perm).ok_or_else(|| failed(path, Errno::EINVAL))?) & bits;
    let there = files.paths.find(path, true, asked).and_then(|found| Ok(fstat(found)?));
    match there.map(|stat| Kind::of(&stat)) {
        Ok(Kind::Directory) => return Ok(true),
        Ok(_) => return Err(failed(path, Errno::ENOTDIR).into()),
        Err(error @ PathError::Refused(_)) => return Err(error.or(|errno| failed(path, errno))),
        Err(_) => {}
    }
    for part in parts(path) {
        match is_directory(files, part) {
            Ok(true) => continue,
            Ok(false) => return Err(failed(part, Errno::ENOTDIR).into()),
            Err(_) => {}
        }
        match files.paths.make_directory(part, permissions, asked) {
            // Somebody else was faster, or the path ends in `.` or `..`.
            Err(PathError::Open(Errno::EEXIST)) if is_directory(files, part) == Ok(true) => {}
            result => result.map_err(|error| error.or(|errno| failed(part, errno)))?,
        }
    }
    Ok(true)
}

fn is_directory(files: &Files, path: &[u8]) -> Result<bool, Errno> {
    let stat = fstat(files.paths.look(path, true)?)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// The path up to each of its parts: `/a/b//c/` gives `/a`, `/a/b`, `/a/b//c/`. An empty path is its own only part.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last.saturating_add(1));
    let ends_part = move |(at, pair): (usize, &[u8])| match pair {
        [b'/', _] | [_] => None,
        [_, b'/'] if at.saturating_add(1) < end => path.get(..=at),
        _ => None,
    };
    path.windows(2).enumerate().filter_map(ends_part).chain(std::iter::once(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_out_of_range_are_refused_instead_of_cut() {
        assert_eq!(id(-1), Ok(None));
        assert_eq!(id(0), Ok(Some(0)));
        assert_eq!(id(4_294_967_294), Ok(Some(4_294_967_294)));
        assert_eq!([-2, 4_294_967_295, 5_000_000_000].map(id), [Err(Errno::EINVAL); 3]);
    }

    fn shown(path: &str) -> Vec<String> {
        parts(path.as_bytes()).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    #[test]
    fn a_path_is_made_part_by_part() {
        assert_eq!(shown("/a/b//c/"), ["/a", "/a/b", "/a/b//c/"]);
        assert_eq!(shown("a/b"), ["a", "a/b"]);
        assert_eq!(shown("//a"), ["//a"]);
        assert_eq!(shown("a"), ["a"]);
        assert_eq!(shown("/"), ["/"]);
        assert_eq!(shown(""), [""]);
    }

    proptest! {
        #[test]
        fn parts_grow_to_the_whole_path(path in "[a./]{0,12}") {
            let parts: Vec<&[u8]> = parts(path.as_bytes()).collect();
            prop_assert!(parts.iter().all(|part| path.as_bytes().starts_with(part)));
            prop_assert!(parts.windows(2).all(|pair| pair[0].len() < pair[1].len()));
            prop_assert_eq!(parts.last().copied(), Some(path.as_bytes()));
            let names = path.split('/').filter(|name| !name.is_empty()).count();
            prop_assert_eq!(parts.len(), names.max(1));
        }
    }
}
