//! The query worker: facts of the guest, read from `/proc`, `/sys` and a few files.
//!
//! Runs as an id that owns nothing, without capabilities, network or a file of its own. It trusts the kernel's files
//! for their numbers, not for their length or shape: what does not parse is left out. It never writes, never opens a
//! device, and touches a filesystem (statfs) only if it lies on a block device and is going to be listed.
#![forbid(unsafe_code)]

mod assignments;
mod block;
mod cpus;
mod devices;
mod disks;
mod filesystems;
mod kernel;
mod memory;
mod osinfo;
mod root;
mod sessions;
mod sysinfo;
mod time_zone;
#[cfg(test)]
mod tree;
mod udev;
mod users;
mod utmp;

use jail::Role;
use proto::Failed;
use proto::query::{Reply, Request};
use runtime::Birth;

use crate::root::Root;

fn main() {
    let mut birth = Birth::of(Role::Query);
    let settings = birth.settings();
    let mut guest = Guest {
        processors: cpus::Processors::default(),
        root: Root::system(),
        time_zone: settings.time_zone.clone(),
        os_release: settings.os_release.clone(),
    };
    birth.ground.readable.extend(guest.more_files());
    birth.serve(move |request: Request, _call| guest.answer(request))
}

/// Where the facts come from.
struct Guest {
    root: Root,
    processors: cpus::Processors,
    /// `$TZ`, if set.
    time_zone: Option<String>,
    /// `$QGA_OS_RELEASE`, if set.
    os_release: Option<String>,
}

impl Guest {
    /// Files outside the places that the role always reads: those that were configured, and what links in `/etc` lead
    /// to where a distribution keeps the files elsewhere.
    fn more_files(&self) -> Vec<std::path::PathBuf> {
        let zone = self.time_zone.as_deref().map(|zone| zone.strip_prefix(':').unwrap_or(zone));
        let configured = [self.os_release.as_deref(), zone.filter(|zone| zone.starts_with('/'))];
        ["/etc/os-release", "/etc/localtime", "/etc/zoneinfo"]
            .into_iter()
            .chain(configured.into_iter().flatten())
            .filter_map(|path| std::fs::canonicalize(path).ok())
            .collect()
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Failed> {
        let root = &self.root;
        Ok(match request {
            Request::Time(_) => Reply::Time(kernel::nanoseconds_since_epoch()),
            Request::HostName(_) => Reply::HostName(kernel::host_name()),
            Request::Users(_) => Reply::Users(users::users(root)),
            Request::TimeZone(_) => Reply::TimeZone(time_zone::now(root, self.time_zone.as_deref())),
            Request::OsInfo(_) => Reply::OsInfo(Box::new(osinfo::os_info(root, self.os_release.as_deref()))),
            Request::Load(_) => Reply::Load(kernel::load()),
            Request::Devices(_) => Reply::Devices(devices::devices(root)?),
            Request::CpuStats(_) => Reply::CpuStats(cpus::statistics(root)?),
            Request::DiskStats(_) => Reply::DiskStats(disks::statistics(root)?),
            Request::Disks(_) => Reply::Disks(disks::disks(root)?),
            Request::FsInfo(_) => Reply::FsInfo(filesystems::filesystems(root)?),
            Request::Vcpus(_) => Reply::Vcpus(self.processors.all(root)?),
            Request::MemoryBlocks(_) => Reply::MemoryBlocks(memory::blocks(root)?),
            Request::MemoryBlockInfo(_) => Reply::MemoryBlockInfo(memory::block_info(root)?),
            Request::SysInfo(_) => Reply::SysInfo(Box::new(sysinfo::sys_info(root)?)),
        })
    }
}

/// A failure with the C library's text for `errno`.
fn failed(what: impl std::fmt::Display, errno: rustix::io::Errno) -> Failed {
    Failed::system(what, errno.raw_os_error())
}
