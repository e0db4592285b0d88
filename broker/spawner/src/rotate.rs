//! The audit log's file and the full ones before it: begins another, names the one before, removes the oldest.
//!
//! Runs in the spawner. The broker only asks, and may be anybody's by now: whether the file is full is looked at here, names are made
//! here from the plan, nothing is ever written over, and one old file goes at most every [`REMOVE_EVERY`], so that a captured
//! broker cannot push what happened before out of the log. Everything is relative to a directory that was opened before.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use spawner::AuditFile;

use crate::supervise::Allowance;
use crate::tell::{Level, log};

/// Files begun at once, and one more in that time.
const BEGIN: u32 = 10;
const BEGIN_EVERY: Duration = Duration::from_secs(60);

/// Old files removed at once, and one more in that time.
const REMOVE: u32 = 2;
const REMOVE_EVERY: Duration = Duration::from_secs(600);

/// How many numbers are tried that somebody else has used.
const TAKEN: u32 = 100;

/// The file in use, and where those before it are.
pub(crate) struct Log {
    file: OwnedFd,
    /// None: there is nothing to exchange, and never will be.
    files: Option<Files>,
}

struct Files {
    directory: OwnedFd,
    plan: AuditFile,
    /// When the last one was begun, by this process.
    begun: Option<Instant>,
    begin: Allowance,
    remove: Allowance,
}

impl Log {
    pub(crate) fn new(file: OwnedFd, files: Option<(OwnedFd, AuditFile)>) -> Self {
        let files = files.map(|(directory, plan)| Files {
            directory,
            plan,
            begun: None,
            begin: Allowance::new(BEGIN, BEGIN_EVERY),
            remove: Allowance::new(REMOVE, REMOVE_EVERY),
        });
        Self { file, files }
    }

    /// Begins another file, if there is a reason to. Returns what stands behind the name of the one before; 0 if it has none.
    ///
    /// # Errors
    /// EPERM without a reason, EAGAIN too often, otherwise what the kernel says; the file in use stays.
    pub(crate) fn rotate(&mut self) -> io::Result<u32> {
        let files = self.files.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))?;
        let status = status(self.file.as_fd())?;
        let removed = status.st_nlink == 0;
        let full = files.plan.rotate_bytes > 0
            && u64::try_from(status.st_size).unwrap_or_default() >= files.plan.rotate_bytes;
        let age = files.begun.map(|begun| begun.elapsed().as_secs());
        let old = files.plan.rotate_seconds > 0 && age.is_none_or(|age| age >= files.plan.rotate_seconds);
        if !(removed || full || old) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if !files.begin.take() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let (file, number) = files.begin_another()?;
        self.file = file;
        // The number is of ours, unless somebody has put another file in its place.
        Ok(if removed { 0 } else { number.unwrap_or_default() })
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Files {
    fn begin_another(&mut self) -> io::Result<(OwnedFd, Option<u32>)> {
        let name = self.name(None)?;
        let number = self.put_aside(&name)?;
        match self.create(&name) {
            Ok(file) => {
                if let Some(number) = number {
                    self.plan.next = number.saturating_add(1);
                }
                self.begun = Some(Instant::now());
                self.remove_oldest();
                Ok((file, number))
            }
            Err(error) => {
                if let Some(number) = number {
                    // It goes on, under its own name if that can be had.
                    let _ = self.rename(&self.name(Some(number))?, &name);
                }
                Err(error)
            }
        }
    }

    /// Gives what has the log's name a number behind it; none if nothing has it.
    fn put_aside(&self, name: &CString) -> io::Result<Option<u32>> {
        let mut number = self.plan.next;
        loop {
            match self.rename(name, &self.name(Some(number))?) {
                Ok(()) => return Ok(Some(number)),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    number = number.saturating_add(1);
                    if number.saturating_sub(self.plan.next) >= TAKEN {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes those that are too many, as far as that may be by now.
    fn remove_oldest(&mut self) {
        while self.plan.next.saturating_sub(self.plan.first) > self.plan.keep && self.remove.take() {
            let removed = self.name(Some(self.plan.first)).and_then(|name| {
                // SAFETY: the name is a C string that lives across the call; the directory is open.
                let result = unsafe { libc::unlinkat(self.directory.as_raw_fd(), name.as_ptr(), 0) };
                if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
            if let Err(error) = removed
                && error.raw_os_error() != Some(libc::ENOENT)
            {
                let number = self.plan.first;
                log(Level::Warning, &format_args!("audit log {number} cannot be removed and stays: {error}"));
            }
            self.plan.first = self.plan.first.saturating_add(1);
        }
    }

    fn name(&self, number: Option<u32>) -> io::Result<CString> {
        let mut name = self.plan.name.clone();
        if let Some(number) = number {
            name.push(b'.');
            name.extend(number.to_string().bytes());
        }
        Ok(CString::new(name)?)
    }

    /// Never in place of something that is there: a link is renamed itself, a file that has the name stays.
    fn rename(&self, from: &CString, to: &CString) -> io::Result<()> {
        let directory = self.directory.as_raw_fd();
        // SAFETY: both names are C strings that live across the call; the directory is open.
        let result = unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                directory,
                from.as_ptr(),
                directory,
                to.as_ptr(),
                libc::RENAME_NOREPLACE,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn create(&self, name: &CString) -> io::Result<OwnedFd> {
        let flags = libc::O_WRONLY
            | libc::O_APPEND
            | libc::O_CREAT
            | libc::O_EXCL
            | libc::O_NOFOLLOW
            | libc::O_NOCTTY
            | libc::O_CLOEXEC;
        let mode: libc::c_uint = 0o600;
        // SAFETY: the name is a C string that lives across the call; the mode is the fourth argument that O_CREAT wants.
        let number = unsafe { libc::openat(self.directory.as_raw_fd(), name.as_ptr(), flags, mode) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

fn status(file: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the stat it is given, or fails.
    if unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstat has succeeded.
    Ok(unsafe { status.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt as _;
    use std::path::{Path, PathBuf};

    use super::*;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("portreeve-rotate-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("makes it");
        Folder(path)
    }

    fn log_in(folder: &Path, change: impl FnOnce(&mut AuditFile)) -> Log {
        let file = File::options().append(true).create(true).open(folder.join("audit")).expect("opens");
        let mut plan = AuditFile {
            name: b"audit".to_vec(),
            rotate_bytes: 4,
            rotate_seconds: 0,
            keep: 2,
            first: 1,
            next: 1,
        };
        change(&mut plan);
        let directory = File::open(folder).expect("opens");
        Log::new(file.into(), Some((directory.into(), plan)))
    }

    fn write(log: &Log, text: &str) {
        use std::io::Write as _;
        let mut file = File::from(log.file.try_clone().expect("duplicates"));
        file.write_all(text.as_bytes()).expect("writes");
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("lists");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("reads").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_gets_the_next_number_and_another_is_begun_for_its_owner_only() {
        let folder = folder("full");
        let mut log = log_in(&folder.0, |_| ());
        write(&log, "abc");
        assert_eq!(log.rotate().expect_err("not full").raw_os_error(), Some(libc::EPERM));
        write(&log, "d");
        assert_eq!(log.rotate().expect("rotates"), 1);
        write(&log, "new");
        assert_eq!(fs::read_to_string(folder.0.join("audit.1")).expect("is there"), "abcd");
        assert_eq!(fs::read_to_string(folder.0.join("audit")).expect("is there"), "new");
        assert_eq!(fs::metadata(folder.0.join("audit")).expect("is there").mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_that_is_there_is_written_over_or_followed() {
        let folder = folder("there");
        fs::write(folder.0.join("audit.1"), "old").expect("writes");
        let mut log = log_in(&folder.0, |_| ());
        write(&log, "abcd");
        // Somebody has put a link in the log's place: it is put aside itself.
        fs::rename(folder.0.join("audit"), folder.0.join("moved")).expect("renames");
        std::os::unix::fs::symlink(folder.0.join("moved"), folder.0.join("audit")).expect("links");
        assert_eq!(log.rotate().expect("rotates"), 2);
        write(&log, "new");
        assert_eq!(names(&folder.0), ["audit", "audit.1", "audit.2", "moved"]);
        assert_eq!(fs::read_to_string(folder.0.join("audit.1")).expect("is there"), "old");
        assert_eq!(fs::read_to_string(folder.0.join("moved")).expect("is there"), "abcd");
        assert!(fs::symlink_metadata(folder.0.join("audit.2")).expect("is there").is_symlink());
    }

    #[test]
    fn a_file_that_was_removed_is_replaced_without_a_number() {
        let folder = folder("removed");
        let mut log = log_in(&folder.0, |_| ());
        fs::remove_file(folder.0.join("audit")).expect("removes");
        assert_eq!(log.rotate().expect("begins another"), 0);
        assert_eq!(names(&folder.0), ["audit"]);
    }

    /// A captured broker writes as much as it likes and asks as often as it likes.
    #[test]
    fn history_cannot_be_pushed_out_by_asking() {
        let folder = folder("flood");
        let mut log = log_in(&folder.0, |_| ());
        let mut answers = Vec::new();
        for _ in 0..30 {
            write(&log, "abcd");
            answers.push(log.rotate().map_err(|error| error.raw_os_error()));
        }
        let begun = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!((begun, answers.last()), (10, Some(&Err(Some(libc::EAGAIN)))));
        // Of ten, two are kept by the plan, and only two others may go so soon.
        assert!(names(&folder.0).contains(&"audit.3".to_owned()), "{:?}", names(&folder.0));
        assert_eq!(names(&folder.0).len(), 9);
    }

    #[test]
    fn by_age_a_file_is_old_enough_once_and_then_not_before_its_time() {
        let folder = folder("age");
        let mut log = log_in(&folder.0, |plan| (plan.rotate_bytes, plan.rotate_seconds) = (0, 3600));
        assert_eq!(log.rotate().expect("the agent before may have begun it"), 1);
        assert_eq!(log.rotate().expect_err("begun just now").raw_os_error(), Some(libc::EPERM));
    }
}
