//! What a block device lies on, as sysfs tells it.
//!
//! Runs in the fsfreeze worker before a freeze, never while something is frozen. What cannot be read is taken for nothing: the
//! order of mounting decides then, as for qemu-ga.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use runtime::mountinfo::Device;
use rustix::fs::{CWD, Mode, OFlags, RawDir};

use crate::order::Base;

/// Longest content of a file in sysfs.
const PAGE: usize = 4096;

/// What `device` lies on directly.
pub(crate) fn bases(device: Device) -> Vec<Base> {
    let place = format!("/sys/dev/block/{device}");
    let mut bases = Vec::new();
    if let Some(file) = read(&format!("{place}/loop/backing_file")) {
        bases.push(Base::File(file));
    }
    bases.extend(
        entries(&format!("{place}/slaves"))
            .iter()
            .filter_map(|name| number(&format!("{place}/slaves/{name}/dev")).map(Base::Device)),
    );
    if read(&format!("{place}/partition")).is_some() {
        bases.extend(number(&format!("{place}/../dev")).map(Base::Device));
    }
    bases
}

fn number(path: &str) -> Option<Device> {
    Device::parse(std::str::from_utf8(&read(path)?).ok()?)
}

/// The first line; nothing if there is none.
fn read(path: &str) -> Option<Vec<u8>> {
    let file = open(path, OFlags::empty())?;
    let mut buffer = [0; PAGE];
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    let line = buffer.get(..length)?.split(|byte| *byte == b'\n').next()?;
    (!line.is_empty()).then(|| line.to_vec())
}

fn entries(path: &str) -> Vec<String> {
    let Some(folder) = open(path, OFlags::DIRECTORY) else { return Vec::new() };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut listing = RawDir::new(folder, &mut buffer);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = listing.next() {
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    names
}

pub(crate) fn open(path: impl rustix::path::Arg, kind: OFlags) -> Option<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | kind, Mode::empty()).ok()
}
