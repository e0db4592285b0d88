//! From a path to a descriptor: the only module that opens, makes or removes anything.
//!
//! A path is bytes that a host chose, in a tree that any user of the guest may change meanwhile. It is never looked at
//! here: the kernel resolves it once, and everything after that is done to the descriptor. Landlock sees each of these calls.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, major, mkdirat};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, PROC_SUPER_MAGIC,
    SMB_SUPER_MAGIC, TMPFS_MAGIC, fstatfs,
};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

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
pub(crate) enum CreateError {
    /// It could not be opened.
    Open(Errno),
    /// It was made, but could not be given to root.
    Owner(Errno),
    /// It was made, but not with the permissions it should have.
    Permissions(Errno),
}

impl CreateError {
    /// What the kernel said.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            CreateError::Open(errno) | CreateError::Owner(errno) | CreateError::Permissions(errno) => *errno,
        }
    }
}

/// Everything about paths that a job needs.
#[derive(Debug)]
pub(crate) struct Paths {
    /// The id that this worker has instead of root's. None when it was started by an ordinary user.
    own: Option<u32>,
    /// `/proc/self/fd`: the way from an `O_PATH` descriptor to a real one of the very same file.
    descriptors: OwnedFd,
}

impl Paths {
    /// Opens what is needed later. `own` is the user and group id that stands for root, if it is not the caller's.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub(crate) fn new(own: Option<u32>) -> Result<Self, Errno> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        Ok(Paths { own, descriptors: openat2(AT_FDCWD, "/proc/self/fd", how)? })
    }

    /// Whether what is made belongs to another id at first.
    pub(crate) fn acts_for_root(&self) -> bool {
        self.own.is_some()
    }

    /// Opens what is there.
    pub(crate) fn open(&self, path: &[u8], flags: OFlag) -> Result<Opened, Errno> {
        let fd = resolve(path, flags, Mode::empty())?;
        let (kind, read_ahead) = self.inspect(fd.as_fd())?;
        Ok(Opened { fd, kind, read_ahead })
    }

    /// Opens what is there, or makes a file with exactly `permissions` that belongs to root.
    pub(crate) fn open_or_create(
        &self,
        path: &[u8],
        flags: OFlag,
        permissions: Mode,
    ) -> Result<Opened, CreateError> {
        for _ in 0..ATTEMPTS {
            match self.create(path, flags, permissions) {
                Err(CreateError::Open(Errno::EEXIST)) => {}
                result => return result,
            }
            match self.open(path, flags) {
                // It has been removed meanwhile, or is a symbolic link to nothing, which is never followed to make a file.
                Err(Errno::ENOENT) => {}
                result => return result.map_err(CreateError::Open),
            }
        }
        Err(CreateError::Open(Errno::ENOENT))
    }

    /// Makes a file that was not there, with exactly `permissions`, that belongs to root.
    pub(crate) fn create(&self, path: &[u8], flags: OFlag, permissions: Mode) -> Result<Opened, CreateError> {
        // Nobody may open it before it belongs to root: mode 0 until then.
        let fd = resolve(path, flags | OFlag::O_CREAT | OFlag::O_EXCL, Mode::empty())
            .map_err(CreateError::Open)?;
        match self.finish(fd.as_fd(), permissions) {
            Ok((kind, read_ahead)) => Ok(Opened { fd, kind, read_ahead }),
            Err(error) => {
                // As qemu-ga does; but only if the path still names what was made.
                let _ = remove_if_same(path, fd.as_fd());
                Err(error)
            }
        }
    }

    fn finish(&self, fd: BorrowedFd<'_>, permissions: Mode) -> Result<(Kind, bool), CreateError> {
        let stat = fstat(fd).map_err(CreateError::Owner)?;
        self.give_to_root(fd, &stat).map_err(CreateError::Owner)?;
        // Behind the owner: a change of owner takes set-uid away (`chown(2)`).
        fchmod(fd, permissions).map_err(CreateError::Permissions)?;
        self.inspect(fd).map_err(CreateError::Open)
    }

    /// Makes one directory; `permissions` are `mkdir(2)`'s, all bits of them effective. It belongs to root.
    pub(crate) fn make_directory(&self, path: &[u8], permissions: Mode) -> Result<(), Errno> {
        mkdirat(AT_FDCWD, path, permissions)?;
        if self.own.is_some() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let fd = resolve(path, flags, Mode::empty())?;
            // If somebody has put another directory there meanwhile, it does not have our owner and stays as it is.
            self.give_to_root(fd.as_fd(), &fstat(&fd)?)?;
        }
        Ok(())
    }

    /// Removes a name.
    pub(crate) fn remove(&self, path: &[u8]) -> Result<(), Errno> {
        unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir)
    }

    /// Finds what a path names without opening it. The descriptor can be looked at, and given to [`Self::reopen`].
    pub(crate) fn look(&self, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        let flags = if follow { OFlag::O_PATH } else { OFlag::O_PATH | OFlag::O_NOFOLLOW };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(AT_FDCWD, path, how)
    }

    /// Opens what [`Self::look`] has found, and nothing else, whatever its path names by now.
    pub(crate) fn reopen(&self, found: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags);
        openat2(&self.descriptors, found.as_raw_fd().to_string().as_str(), how)
    }

    /// What only the filesystem chose (a mount option, a set-gid directory) stays as it is: root's file would have it, too.
    fn give_to_root(&self, fd: BorrowedFd<'_>, stat: &FileStat) -> Result<(), Errno> {
        match self.own {
            Some(own) if stat.st_uid == own => {
                fchown(fd, Some(Uid::from_raw(0)), (stat.st_gid == own).then_some(Gid::from_raw(0)))
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

fn resolve(path: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: a FIFO or a serial line without a peer must not hold up the thread. O_NOCTTY: nor may a terminal become ours.
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
}

fn remove_if_same(path: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let made = fstat(fd)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let there = fstat(openat2(AT_FDCWD, path, how)?)?;
    if (made.st_dev, made.st_ino) == (there.st_dev, there.st_ino) {
        unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}
