//! Freezing, thawing and trimming, filesystem by filesystem.
//!
//! Runs in the fsfreeze worker. A mount point is opened for one command and closed again, so that a frozen filesystem can be
//! unmounted; what was opened is compared with the kernel's list, since a path may lead elsewhere by now.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use jail::filesystems::{freeze, thaw, trim};
use proto::fsfreeze::{TrimReport, Trimmed};
use proto::{Failed, Text, errno_text};
use runtime::mountinfo::Device;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::order::{Filesystem, Place, chosen, deepest_first, filesystems};
use crate::stack;

/// More than any list of mounts.
const MOUNTINFO: usize = 64 * 1024 * 1024;

/// What is frozen by this process, and how to freeze more.
pub(crate) struct Freezer {
    mountinfo: File,
    /// In the order of freezing.
    frozen: Vec<Device>,
}

impl Freezer {
    /// `mountinfo` is `/proc/self/mountinfo`, of which each read from the beginning is a new list.
    pub(crate) fn new(mountinfo: File) -> Self {
        Freezer { mountinfo, frozen: Vec::new() }
    }

    /// Freezes what is mounted at `points`, or everything; returns how many filesystems. All of it, or nothing.
    ///
    /// # Errors
    /// qemu-ga's words for the first filesystem that cannot be opened or frozen. Those that cannot be frozen by their nature, and
    /// those that somebody else has frozen, are passed over and not counted.
    pub(crate) fn freeze(&mut self, points: Option<&[Text]>) -> Result<i64, Failed> {
        let all = self.list()?;
        let points = points.map(|points| points.iter().map(|point| point.0.as_slice()).collect::<Vec<_>>());
        let chosen = chosen(all.clone(), points.as_deref());
        let before = self.frozen.len();
        for filesystem in deepest_first(&chosen, &all, stack::bases) {
            if let Err(failed) = self.freeze_one(&filesystem) {
                let begun = self.frozen.split_off(before);
                // The last first; whatever does not thaw now does with the next thaw.
                for device in begun.iter().rev() {
                    let _ = thaw_fully(&all, *device);
                }
                return Err(failed);
            }
        }
        Ok(i64::try_from(self.frozen.len().saturating_sub(before)).unwrap_or(i64::MAX))
    }

    fn freeze_one(&mut self, filesystem: &Filesystem) -> Result<(), Failed> {
        let (place, opened) = match open(filesystem) {
            Ok(opened) => opened,
            Err(NotOpened::Covered) => return Ok(()),
            Err(NotOpened::Failed(point, errno)) => {
                return Err(Failed::system(format_args!("failed to open {point}"), errno.raw_os_error()));
            }
        };
        match freeze(opened.as_fd()) {
            Ok(()) => {
                self.frozen.push(filesystem.device);
                Ok(())
            }
            Err(error) => match number(&error) {
                libc_errno::EOPNOTSUPP | libc_errno::EBUSY => Ok(()),
                errno => Err(Failed::system(format_args!("failed to freeze {}", shown(place)), errno)),
            },
        }
    }

    /// Thaws everything, whoever froze it; returns how many filesystems that were.
    ///
    /// # Errors
    /// The kernel's list of mounts cannot be read.
    pub(crate) fn thaw_all(&mut self) -> Result<i64, Failed> {
        let all = self.list()?;
        self.frozen.clear();
        Ok(count(all.iter().filter(|filesystem| thaw_fully(&all, filesystem.device))))
    }

    /// Thaws what this process froze, the last first.
    ///
    /// # Errors
    /// The kernel's list of mounts cannot be read.
    pub(crate) fn thaw_own(&mut self) -> Result<i64, Failed> {
        if self.frozen.is_empty() {
            return Ok(0);
        }
        let all = self.list()?;
        let own = std::mem::take(&mut self.frozen);
        Ok(count(own.iter().rev().filter(|device| thaw_fully(&all, **device))))
    }

    /// Trims every filesystem, the last mounted first.
    ///
    /// # Errors
    /// The kernel's list of mounts cannot be read. What is wrong with one filesystem is in the report.
    pub(crate) fn trim(&self, minimum: Option<i64>) -> Result<TrimReport, Failed> {
        // As qemu-ga, which hands the number to the kernel as it is.
        let minimum = minimum.unwrap_or_default().cast_unsigned();
        let all = self.list()?;
        Ok(TrimReport { paths: all.iter().rev().map(|filesystem| trim_one(filesystem, minimum)).collect() })
    }

    fn list(&self) -> Result<Vec<Filesystem>, Failed> {
        let failed = |error: io::Error| Failed {
            text: "failed to open mtab file: '/proc/self/mounts'".to_owned(),
            errno: error.raw_os_error(),
        };
        let mut content = vec![0; 16 * 1024];
        let mut length = 0_usize;
        loop {
            let room = content.get_mut(length..).unwrap_or_default();
            let offset = u64::try_from(length).unwrap_or(u64::MAX);
            match self.mountinfo.read_at(room, offset) {
                Ok(0) => break,
                Ok(count) => length = length.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            if length >= content.len() {
                if length >= MOUNTINFO {
                    return Err(failed(Errno::FBIG.into()));
                }
                content.resize(length.saturating_mul(2), 0);
            }
        }
        Ok(filesystems(content.get(..length).unwrap_or_default()))
    }
}

fn trim_one(filesystem: &Filesystem, minimum: u64) -> Trimmed {
    let failed = |place: &str, error: String| Trimmed {
        path: place.to_owned(),
        error: Some(error),
        ..Trimmed::default()
    };
    let first = filesystem.places.first().map(shown).unwrap_or_default();
    match open(filesystem) {
        Err(NotOpened::Covered) => {
            failed(&first, "failed to open: something else is mounted on it".to_owned())
        }
        Err(NotOpened::Failed(point, errno)) => {
            failed(&point, format!("failed to open: {}", errno_text(errno.raw_os_error())))
        }
        Ok((place, opened)) => match trim(opened.as_fd(), minimum) {
            Ok((trimmed, minimum)) => Trimmed {
                path: shown(place),
                trimmed: Some(trimmed.cast_signed()),
                minimum: Some(minimum.cast_signed()),
                error: None,
            },
            Err(error) => match number(&error) {
                libc_errno::ENOTTY | libc_errno::EOPNOTSUPP => {
                    failed(&shown(place), "trim not supported".to_owned())
                }
                errno => failed(&shown(place), format!("failed to trim: {}", errno_text(errno))),
            },
        },
    }
}

/// Takes back every freeze of a filesystem: whoever froze it, how often ever. False if it was not frozen or cannot be reached.
fn thaw_fully(all: &[Filesystem], device: Device) -> bool {
    let Some(filesystem) = all.iter().find(|filesystem| filesystem.device == device) else { return false };
    let Ok((_, opened)) = open(filesystem) else { return false };
    let mut thawed = false;
    while thaw(opened.as_fd()).is_ok() {
        thawed = true;
    }
    thawed
}

enum NotOpened {
    /// Everywhere it is mounted, something else is mounted on it.
    Covered,
    /// The place, and why.
    Failed(String, Errno),
}

/// Opens a place where the filesystem is mounted, and makes sure that it is this one.
fn open(filesystem: &Filesystem) -> Result<(&Place, OwnedFd), NotOpened> {
    let mut fault = None;
    for place in &filesystem.places {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        match rustix::fs::openat(CWD, place.point.as_slice(), flags, Mode::empty()) {
            Ok(opened) if mount_of(&opened).is_none_or(|id| id == place.id) => return Ok((place, opened)),
            // A later mount hides it.
            Ok(_) => {}
            // The first place is the one that people know.
            Err(errno) => _ = fault.get_or_insert_with(|| (shown(place), errno)),
        }
    }
    Err(fault.map_or(NotOpened::Covered, |(point, errno)| NotOpened::Failed(point, errno)))
}

/// The number of the mount that a descriptor is on; none before Linux 5.8.
fn mount_of(opened: &OwnedFd) -> Option<u64> {
    let status = rustix::fs::statx(opened, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::MNT_ID).then_some(status.stx_mnt_id)
}

fn shown(place: &Place) -> String {
    String::from_utf8_lossy(&place.point).into_owned()
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

fn count(thawed: impl Iterator) -> i64 {
    i64::try_from(thawed.count()).unwrap_or(i64::MAX)
}

/// errno(3), by name.
mod libc_errno {
    use nix::errno::Errno;

    pub(super) const EOPNOTSUPP: i32 = Errno::EOPNOTSUPP as i32;
    pub(super) const EBUSY: i32 = Errno::EBUSY as i32;
    pub(super) const ENOTTY: i32 = Errno::ENOTTY as i32;
}
