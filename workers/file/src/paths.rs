//! From a path to a descriptor: the only module that opens, makes or removes anything.
//!
//! A path is bytes that a host chose, in a tree that any user of the guest may change meanwhile. The kernel resolves it once, and
//! everything after that is done to the descriptor. Landlock sees each of these calls.
//!
//! Where the policy asks for paths, that one resolution opens nothing yet (`O_PATH`). The kernel says where it has led
//! (`/proc/self/fd`), the policy decides about that, and only then the very same inode is opened, or something made below the very same
//! directory. Whatever is renamed meanwhile, what is read, written or made is what was decided about.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use authorize::Exceeded;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, major, mkdirat};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, PROC_SUPER_MAGIC,
    SMB_SUPER_MAGIC, TMPFS_MAGIC, fstatfs,
};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use proto::Failed;
use proto::limits::PATH;
use runtime::{NotDone, Refused, RunAs};

use crate::asked::Asked;

/// How often a path is tried that somebody makes and removes at the same time.
const ATTEMPTS: usize = 8;

/// Filesystems without a block device whose regular files are plain bytes: reading ahead takes nothing away. All others
/// (procfs, tracefs, …) may have files that are read by waiting, or only once.
const STORAGE: [FsType; 6] = [
    TMPFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    NFS_SUPER_MAGIC,
    FUSE_SUPER_MAGIC,
    SMB_SUPER_MAGIC,
];

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// A device, or a socket (which only `O_PATH` can reach).
    Other,
}

impl Kind {
    pub(crate) fn of(stat: &FileStat) -> Self {
        let format = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if format == SFlag::S_IFREG {
            Kind::Regular
        } else if format == SFlag::S_IFDIR {
            Kind::Directory
        } else if format == SFlag::S_IFIFO {
            Kind::Fifo
        } else {
            Kind::Other
        }
    }
}

/// A file that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Closed when dropped.
    pub(crate) fd: OwnedFd,
    /// What it is.
    pub(crate) kind: Kind,
    /// Whether reading at an offset has no effect and gives what reading in order would.
    pub(crate) read_ahead: bool,
}

/// Why a file could not be opened or made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It could not be opened.
    Open(Errno),
    /// It was not made, or not left there, because it cannot be given to whom it should belong to.
    Owner(Errno),
    /// It was made, but not with the permissions it should have.
    Permissions(Errno),
    /// The policy refuses it.
    Refused(Refused),
    /// The policy allows no more files to be open.
    Full(Exceeded),
}

impl PathError {
    /// For those who make nothing of what it was that failed.
    pub(crate) fn or(self, failed: impl FnOnce(Errno) -> Failed) -> NotDone {
        match self {
            PathError::Open(errno) | PathError::Owner(errno) | PathError::Permissions(errno) => {
                failed(errno).into()
            }
            PathError::Refused(refused) => refused.into(),
            PathError::Full(exceeded) => {
                let full = failed(Errno::EMFILE);
                Failed { text: format!("{}: {exceeded}", full.text), ..full }.into()
            }
        }
    }
}

impl From<Errno> for PathError {
    fn from(errno: Errno) -> Self {
        PathError::Open(errno)
    }
}

impl From<Refused> for PathError {
    fn from(refused: Refused) -> Self {
        PathError::Refused(refused)
    }
}

/// Where something is made or removed.
struct Place<'a> {
    /// The directory that was decided about; none where nothing is, and the path begins where the worker stands.
    directory: Option<OwnedFd>,
    /// The path below it: one name, where there is a directory.
    name: &'a [u8],
}

impl Place<'_> {
    fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_ref().map_or(AT_FDCWD, |directory| directory.as_fd())
    }
}

const ROOT: RunAs = RunAs { uid: 0, gid: 0 };

/// A filesystem's number, and a file's in it.
type Identity = (u64, u64);

/// Everything about paths that a job needs.
#[derive(Debug)]
pub(crate) struct Paths {
    /// The id that this worker has instead of root's. None when it was started by an ordinary user.
    own: Option<u32>,
    /// `/proc/self/fd`: the way from an `O_PATH` descriptor to a real one of the very same file.
    descriptors: OwnedFd,
    /// What Landlock's rules are tied to: the policy's roots, and what was there when they were made.
    roots: Vec<(Vec<u8>, Option<Identity>)>,
}

impl Paths {
    /// Opens what is needed later. `own` is the user and group id that stands for root, if it is not the caller's.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub(crate) fn new(own: Option<u32>, roots: Vec<Vec<u8>>) -> Result<Self, Errno> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        let descriptors = openat2(AT_FDCWD, "/proc/self/fd", how)?;
        let roots = roots.into_iter().map(|root| {
            let there = at(&root);
            (root, there)
        });
        Ok(Paths { own, descriptors, roots: roots.collect() })
    }

    /// Whether `path` lies at or below a root that is another one by now, for which this worker's kernel has no rule.
    pub(crate) fn has_newer_roots(&self, path: &[u8]) -> bool {
        let holds = |root: &[u8]| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.roots.iter().any(|(root, then)| holds(root) && at(root).is_some_and(|now| *then != Some(now)))
    }

    /// Whether what is made belongs to another id at first.
    pub(crate) fn acts_for_root(&self) -> bool {
        self.own.is_some()
    }

    /// Opens what is there.
    pub(crate) fn open(&self, path: &[u8], flags: OFlag, asked: &Asked<'_>) -> Result<Opened, PathError> {
        let fd = if asked.is_about_paths() {
            self.reopen(self.find(path, true, asked)?.as_fd(), flags)?
        } else {
            resolve(AT_FDCWD, path, flags)?
        };
        let (kind, read_ahead) = self.inspect(fd.as_fd())?;
        Ok(Opened { fd, kind, read_ahead })
    }

    /// Finds what a path names without opening it, if the policy permits what is asked there. The descriptor can be looked at, and
    /// given to [`Self::reopen`].
    ///
    /// Whether something is there that may not be asked for is not said either.
    pub(crate) fn find(&self, path: &[u8], follow: bool, asked: &Asked<'_>) -> Result<OwnedFd, PathError> {
        let found = self.look(path, follow);
        if asked.is_about_paths() {
            match &found {
                Ok(found) => asked.decide(self.whereabouts(found.as_fd(), path)?)?,
                Err(_) => self.decide_about_nothing(path, asked)?,
            }
        }
        Ok(found?)
    }

    /// Decides about a path that leads nowhere, by the first part of it that does not.
    fn decide_about_nothing(&self, path: &[u8], asked: &Asked<'_>) -> Result<(), PathError> {
        if path.len() > PATH {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let mut here = self.look(if path.starts_with(b"/") { b"/" } else { b"." }, true)?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            match openat2(here.as_fd(), part, looking(true)) {
                Ok(next) => here = next,
                Err(_) if matches!(part, b"." | b"..") => break,
                Err(_) => return asked.decide(below(self.whereabouts(here.as_fd(), path)?, part)),
            }
        }
        // By now it leads somewhere.
        asked.decide(self.whereabouts(here.as_fd(), path)?)
    }

    /// The directory and the name of what is to be made or removed, if the policy permits it there.
    fn place<'a>(&self, path: &'a [u8], asked: &Asked<'_>) -> Result<Place<'a>, PathError> {
        if !asked.is_about_paths() {
            return Ok(Place { directory: None, name: path });
        }
        let (above, name) = last_part(path);
        let how = looking(true).flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        let directory = match openat2(AT_FDCWD, above, how) {
            Ok(directory) => directory,
            Err(errno) => {
                self.decide_about_nothing(path, asked)?;
                return Err(errno.into());
            }
        };
        asked.decide(below(self.whereabouts(directory.as_fd(), path)?, trimmed(name)))?;
        Ok(Place { directory: Some(directory), name })
    }

    /// The absolute path of what was found under `path`, as the kernel has it.
    fn whereabouts(&self, found: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
        for _ in 0..ATTEMPTS {
            let name = readlinkat(&self.descriptors, found.as_raw_fd().to_string().as_str())?.into_vec();
            if !name.starts_with(b"/") {
                // Without a place in any tree: pipes and the like, which only magic links lead to.
                return Err(Errno::EACCES);
            }
            // Two cases in which it is not what it seems (fs/d_path.c): what was removed is shown so, and below a working directory
            // whose mount is gone the path begins at that mount. Then it must lead back to the same file.
            let is_plain = path.starts_with(b"/") && !name.ends_with(b" (deleted)");
            if is_plain || Self::leads_to(&name, found)? {
                return Ok(name);
            }
            // It may have been renamed since.
        }
        Err(Errno::ENOENT)
    }

    fn leads_to(name: &[u8], found: BorrowedFd<'_>) -> Result<bool, Errno> {
        Ok(at(name) == Some(identity(found)?))
    }

    /// Opens what is there, or makes a file with exactly `permissions` that belongs to root, or to whom the rule names.
    pub(crate) fn open_or_create(
        &self,
        path: &[u8],
        flags: OFlag,
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<Opened, PathError> {
        for _ in 0..ATTEMPTS {
            match self.open_or_make(path, flags, permissions, asked) {
                Err(PathError::Open(Errno::EEXIST)) => {}
                result => return result,
            }
        }
        Err(PathError::Open(Errno::ENOENT))
    }

    /// EEXIST if it is there and is not: it was made or removed meanwhile, or is a symbolic link to nothing, which is never followed
    /// to make a file.
    fn open_or_make(
        &self,
        path: &[u8],
        flags: OFlag,
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<Opened, PathError> {
        // What is there comes first where it is decided about: a name in one place may be a link to another.
        let is_there = asked.is_about_paths() && !matches!(self.look(path, true), Err(Errno::ENOENT));
        if !is_there {
            match self.create(path, flags, permissions, asked) {
                Err(PathError::Open(Errno::EEXIST)) => {}
                result => return result,
            }
        }
        match self.open(path, flags, asked) {
            Err(PathError::Open(Errno::ENOENT)) => Err(PathError::Open(Errno::EEXIST)),
            result => result,
        }
    }

    /// Makes a file that was not there, with exactly `permissions`.
    fn create(
        &self,
        path: &[u8],
        flags: OFlag,
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<Opened, PathError> {
        self.make(&self.place(path, asked)?, flags, permissions, asked)
    }

    /// Removes a name and makes a file under it.
    pub(crate) fn replace(
        &self,
        path: &[u8],
        flags: OFlag,
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<Opened, PathError> {
        let place = self.place(path, asked)?;
        self.owner(asked)?;
        unlinkat(place.directory(), place.name, UnlinkatFlags::NoRemoveDir)?;
        self.make(&place, flags, permissions, asked)
    }

    fn make(
        &self,
        place: &Place<'_>,
        flags: OFlag,
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<Opened, PathError> {
        let owner = self.owner(asked)?;
        // Nobody may open it before it belongs to whom it should: mode 0 until then.
        let fd = resolve(place.directory(), place.name, flags | OFlag::O_CREAT | OFlag::O_EXCL)?;
        match self.finish(fd.as_fd(), permissions, owner) {
            Ok((kind, read_ahead)) => Ok(Opened { fd, kind, read_ahead }),
            Err(error) => {
                // As qemu-ga does; but only if the path still names what was made.
                let _ = remove_if_same(place, fd.as_fd());
                Err(error)
            }
        }
    }

    fn finish(&self, fd: BorrowedFd<'_>, permissions: Mode, owner: RunAs) -> Result<(Kind, bool), PathError> {
        let stat = fstat(fd).map_err(PathError::Owner)?;
        self.give_away(fd, &stat, owner).map_err(PathError::Owner)?;
        // Behind the owner: a change of owner takes set-uid away (`chown(2)`).
        fchmod(fd, permissions).map_err(PathError::Permissions)?;
        Ok(self.inspect(fd)?)
    }

    /// Makes one directory; `permissions` are `mkdir(2)`'s, all bits of them effective. It belongs to root, or to whom the
    /// rule names.
    pub(crate) fn make_directory(
        &self,
        path: &[u8],
        permissions: Mode,
        asked: &Asked<'_>,
    ) -> Result<(), PathError> {
        let place = self.place(path, asked)?;
        let owner = self.owner(asked)?;
        mkdirat(place.directory(), place.name, permissions)?;
        if self.own.is_some() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let fd = resolve(place.directory(), place.name, flags)?;
            // If somebody has put another directory there meanwhile, it does not have our owner and stays as it is.
            self.give_away(fd.as_fd(), &fstat(&fd)?, owner)?;
        }
        Ok(())
    }

    /// As [`Self::find`], on the way to something that is decided about.
    pub(crate) fn look(&self, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        openat2(AT_FDCWD, path, looking(follow))
    }

    /// Opens what [`Self::find`] has found, and nothing else, whatever its path names by now.
    pub(crate) fn reopen(&self, found: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags);
        openat2(&self.descriptors, found.as_raw_fd().to_string().as_str(), how)
    }

    /// Who gets what is made by the rule that permits it.
    fn owner(&self, asked: &Asked<'_>) -> Result<RunAs, PathError> {
        match asked.owner() {
            // An ordinary user's worker can make files for that user only.
            Some(_) if self.own.is_none() => Err(PathError::Owner(Errno::EPERM)),
            owner => Ok(owner.unwrap_or(ROOT)),
        }
    }

    /// Changes the owner of what this worker has just made, and of nothing else. What only the filesystem chose (a mount option, a
    /// set-gid directory) stays as it is: the owner's own file would have it, too.
    fn give_away(&self, fd: BorrowedFd<'_>, stat: &FileStat, owner: RunAs) -> Result<(), Errno> {
        let RunAs { uid, gid } = owner;
        match self.own {
            Some(own) if stat.st_uid == own => {
                fchown(fd, Some(Uid::from_raw(uid)), (stat.st_gid == own).then_some(Gid::from_raw(gid)))
            }
            _ => Ok(()),
        }
    }

    /// What it is, and whether it may be read ahead. Refuses what nobody may open.
    fn inspect(&self, fd: BorrowedFd<'_>) -> Result<(Kind, bool), Errno> {
        let stat = fstat(fd)?;
        let kind = Kind::of(&stat);
        let mut read_ahead = kind == Kind::Regular;
        // Major 0: no block device behind it (Documentation/admin-guide/devices.txt).
        if read_ahead && major(stat.st_dev) == 0 {
            let filesystem = fstatfs(fd)?.filesystem_type();
            if filesystem == PROC_SUPER_MAGIC && self.is_memory(fd)? {
                return Err(Errno::EACCES);
            }
            read_ahead = STORAGE.contains(&filesystem);
        }
        Ok((kind, read_ahead))
    }

    /// Whether a file of procfs is a process's memory. The kernel lets nobody near other processes', but lets this worker open
    /// its own (fs/proc/base.c, `proc_mem_open`; kernel/ptrace.c, `same_thread_group`): whoever writes there has taken it over.
    fn is_memory(&self, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        use std::os::unix::ffi::OsStrExt as _;
        let name = readlinkat(&self.descriptors, fd.as_raw_fd().to_string().as_str())?;
        Ok(name.as_bytes().ends_with(b"/mem"))
    }
}

/// To see what is there, and no more: it is not opened.
fn looking(follow: bool) -> OpenHow {
    let flags = if follow { OFlag::O_PATH } else { OFlag::O_PATH | OFlag::O_NOFOLLOW };
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Which file it is, whatever it is called.
fn identity(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Which file is at a path without links; none if there is none.
fn at(path: &[u8]) -> Option<Identity> {
    let how = looking(false).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    identity(openat2(AT_FDCWD, path, how).ok()?.as_fd()).ok()
}

/// The path of a name in a directory.
fn below(mut directory: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !directory.ends_with(b"/") {
        directory.push(b'/');
    }
    directory.extend_from_slice(name);
    directory
}

fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last.saturating_add(1));
    path.get(..end).unwrap_or_default()
}

/// The directory of a path, and the name in it with the slashes behind it, which mean something to the kernel.
fn last_part(path: &[u8]) -> (&[u8], &[u8]) {
    match trimmed(path).iter().rposition(|byte| *byte == b'/') {
        None => (b".", path),
        Some(slash) => {
            let (above, name) = path.split_at(slash.saturating_add(1));
            (above, name)
        }
    }
}

fn resolve(directory: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: a FIFO or a serial line without a peer must not hold up the thread. O_NOCTTY: nor may a terminal become ours.
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // What is made has mode 0 at first.
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(directory, path, how)
}

fn remove_if_same(place: &Place<'_>, made: BorrowedFd<'_>) -> Result<(), Errno> {
    let there = openat2(place.directory(), place.name, looking(false))?;
    if identity(made)? == identity(there.as_fd())? {
        unlinkat(place.directory(), place.name, UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_the_slashes_behind_it() {
        let shown = |path: &str| {
            let (above, name) = last_part(path.as_bytes());
            [above, name].map(|part| String::from_utf8_lossy(part).into_owned())
        };
        assert_eq!(shown("/a/b"), ["/a/", "b"]);
        assert_eq!(shown("/a//b//"), ["/a//", "b//"]);
        assert_eq!(shown("b"), [".", "b"]);
        assert_eq!(shown("b/"), [".", "b/"]);
        assert_eq!(shown("/b"), ["/", "b"]);
        assert_eq!(shown("/"), [".", "/"]);
        assert_eq!(shown(""), [".", ""]);
    }

    #[test]
    fn what_lies_below_the_root_has_one_slash() {
        assert_eq!(below(b"/".to_vec(), b"a"), b"/a");
        assert_eq!(below(b"/a".to_vec(), b"b\n"), b"/a/b\n");
    }
}
