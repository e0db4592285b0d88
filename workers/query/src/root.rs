//! Reading files, links and folders, with as few system calls as it takes.
//!
//! Every open is for reading, with the flags that the role's filter knows. Nothing that may be different the next time is
//! remembered.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use runtime::mountinfo::Device;
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, StatVfs};
use rustix::io::{Errno, Result};

/// More than any file that is read whole; mountinfo has some 150 bytes for each mount.
const WHOLE_FILE_MAX: usize = 64 << 20;

/// The tree that absolute paths are looked up in: the system's, or one made up for a test.
pub(crate) struct Root {
    prefix: PathBuf,
}

impl Root {
    /// The running system.
    pub(crate) fn system() -> Self {
        Root { prefix: PathBuf::new() }
    }

    /// A tree below `prefix`. Absolute links in it lead out of it.
    #[cfg(test)]
    pub(crate) fn below(prefix: &Path) -> Self {
        Root { prefix: prefix.to_owned() }
    }

    fn path<'a>(&self, path: &'a [u8]) -> Cow<'a, Path> {
        let path = Path::new(OsStr::from_bytes(path));
        if self.prefix.as_os_str().is_empty() {
            return Cow::Borrowed(path);
        }
        Cow::Owned(self.prefix.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Opens a folder.
    pub(crate) fn folder(&self, path: &str) -> Result<Folder> {
        open(CWD, &self.path(path.as_bytes()), OFlags::DIRECTORY).map(Folder)
    }

    /// Reads once into `buffer`: enough for a file in sysfs, and for a regular file that is known to fit.
    pub(crate) fn read<'b>(&self, path: &str, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        read_once(open(CWD, &self.path(path.as_bytes()), OFlags::empty())?, buffer)
    }

    /// Opens a file to be read again and again with [`read_at_start`].
    pub(crate) fn open(&self, path: &str) -> Result<OwnedFd> {
        open(CWD, &self.path(path.as_bytes()), OFlags::empty())
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// EFBIG for more than 64 MiB, otherwise the errno of openat(2) or read(2).
    pub(crate) fn read_whole(&self, path: &str) -> Result<Vec<u8>> {
        let file = open(CWD, &self.path(path.as_bytes()), OFlags::empty())?;
        let mut content = vec![0; 8192];
        let mut length = 0;
        loop {
            let room = content.get_mut(length..).unwrap_or_default();
            match rustix::io::read(&file, room) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if length == content.len() {
                if length >= WHOLE_FILE_MAX {
                    return Err(Errno::FBIG);
                }
                content.resize(length * 2, 0);
            }
        }
        content.truncate(length);
        Ok(content)
    }

    /// Where a link leads, as it is written in it.
    pub(crate) fn link(&self, path: &str) -> Result<String> {
        link(CWD, &self.path(path.as_bytes()))
    }

    /// The device number that a device node stands for; none if it is something else, or not there.
    pub(crate) fn block_device(&self, path: &[u8]) -> Option<Device> {
        let stat = rustix::fs::stat(&*self.path(path)).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice).then(|| Device {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        })
    }

    /// How full the filesystem at `path` is.
    pub(crate) fn space(&self, path: &[u8]) -> Result<StatVfs> {
        rustix::fs::statvfs(&*self.path(path))
    }
}

/// A folder to read in without looking its own path up again.
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder in it.
    pub(crate) fn folder(&self, name: &str) -> Result<Folder> {
        open(self.0.as_fd(), Path::new(name), OFlags::DIRECTORY).map(Folder)
    }

    /// As [`Root::read`].
    pub(crate) fn read<'b>(&self, name: &str, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        read_once(open(self.0.as_fd(), Path::new(name), OFlags::empty())?, buffer)
    }

    /// As [`Root::link`].
    pub(crate) fn link(&self, name: &str) -> Result<String> {
        link(self.0.as_fd(), Path::new(name))
    }

    /// What `take` makes of its entries, in the kernel's order. Names that are not UTF-8 are passed over: neither the
    /// kernel nor systemd makes any.
    pub(crate) fn entries<T>(&self, mut take: impl FnMut(&str, FileType) -> Option<T>) -> Result<Vec<T>> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        let mut taken = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && let Some(item) = take(name, entry.file_type())
            {
                taken.push(item);
            }
        }
        Ok(taken)
    }
}

fn open(at: BorrowedFd<'_>, path: &Path, directory: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::CLOEXEC | directory, Mode::empty())
}

fn read_once(file: OwnedFd, buffer: &mut [u8]) -> Result<&[u8]> {
    loop {
        match rustix::io::read(&file, &mut *buffer) {
            Ok(length) => return Ok(buffer.get(..length).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads once from the beginning: sysfs makes the content anew for each such read.
pub(crate) fn read_at_start<'b>(file: &OwnedFd, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    loop {
        match rustix::io::pread(file, &mut *buffer, 0) {
            Ok(length) => return Ok(buffer.get(..length).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn link(at: BorrowedFd<'_>, path: &Path) -> Result<String> {
    // sysfs(5) has no path of more than PATH_MAX.
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let (target, _) = rustix::fs::readlinkat_raw(at, path, &mut buffer)?;
    String::from_utf8(target.to_vec()).map_err(|_| Errno::ILSEQ)
}

/// The absolute path that `link`, found in the folder `from`, leads to. By the text alone: in sysfs no folder on the
/// way is itself a link.
pub(crate) fn resolve(from: &str, link: &str) -> String {
    let mut path = if link.starts_with('/') { String::new() } else { from.to_owned() };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => path.truncate(path.rfind('/').unwrap_or(0)),
            name => {
                path.push('/');
                path.push_str(name);
            }
        }
    }
    path
}

/// The last part of a path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The number in names such as `cpu12`; nothing but digits may follow `before`.
pub(crate) fn number_after<N: std::str::FromStr>(name: &str, before: &str) -> Option<N> {
    let digits = name.strip_prefix(before)?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// Text of which nothing but its spelling is known: what is not UTF-8 in it becomes U+FFFD.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn a_link_is_followed_by_its_text() {
        let resolved = resolve("/sys/dev/block", "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda");
        assert_eq!(resolved, "/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda");
        assert_eq!(resolve("/sys/x", "/sys/devices/y"), "/sys/devices/y");
        assert_eq!(resolve("/a", "../../../b"), "/b");
    }

    #[test]
    fn a_file_of_any_size_is_read_to_its_end() {
        let content = "0123456789abcdef".repeat(4096);
        let tree = Tree::new().file("/proc/large", &content).file("/proc/8192", &content[..8192]);
        assert_eq!(tree.root().read_whole("/proc/large").unwrap(), content.as_bytes());
        assert_eq!(tree.root().read_whole("/proc/8192").unwrap().len(), 8192);
        assert_eq!(tree.root().read_whole("/proc/none").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn only_digits_make_a_number_in_a_name() {
        assert_eq!(number_after("cpu12", "cpu"), Some(12_u32));
        assert_eq!(number_after::<u32>("cpu", "cpu"), None);
        assert_eq!(number_after::<u32>("cpufreq", "cpu"), None);
        assert_eq!(number_after::<u32>("cpu+1", "cpu"), None);
        assert_eq!(number_after::<u32>("cpu99999999999", "cpu"), None);
    }

    #[test]
    fn what_is_not_a_block_device_has_no_number() {
        let root = Root::system();
        assert_eq!(root.block_device(b"/dev/null"), None);
        assert_eq!(root.block_device(b"/nowhere"), None);
    }
}
