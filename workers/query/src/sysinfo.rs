//! Phoenix's `sysinfo`: everything in one object, sizes in kB.

use std::ffi::c_long;

use proto::Failed;
use proto::query::{Disk, LoadAverage, Ram, Swap, SysInfo, Uname};
use rustix::io::Errno;

use crate::kernel::{averages, string};
use crate::memory::{MemInfo, parse_meminfo};
use crate::root::{Root, text};
use crate::users::remote_sessions;
use runtime::mountinfo::{sources, unescape};

const KB: u64 = 1024;

/// Everything.
///
/// # Errors
/// procfs or sysfs is not there, in Phoenix's words.
pub(crate) fn sys_info(root: &Root) -> Result<SysInfo, Failed> {
    let uname = rustix::system::uname();
    let info = rustix::system::sysinfo();
    let meminfo = root.read_whole("/proc/meminfo").map_err(|errno| unopened("/proc/meminfo", errno))?;
    let (one, five, fifteen) = averages(&info);
    // The unit is bytes in one unit, 1 where unsigned long holds all of memory.
    let kb = |units: u64| units.saturating_mul(info.mem_unit.into()) / KB;
    Ok(SysInfo {
        uname: Uname {
            sysname: string(uname.sysname()),
            nodename: string(uname.nodename()),
            release: string(uname.release()),
            version: string(uname.version()),
            machine: string(uname.machine()),
            domain: string(uname.domainname()),
        },
        long_bit: c_long::BITS.into(),
        uptime: info.uptime,
        loadavg: LoadAverage { one, five, fifteen },
        ram: ram(&parse_meminfo(&String::from_utf8_lossy(&meminfo))),
        swap: Swap { total: kb(info.totalswap), free: kb(info.freeswap) },
        users: remote_sessions(root),
        disks: disks(root)?,
    })
}

/// As Phoenix words the failure to open a file.
fn unopened(path: &str, errno: Errno) -> Failed {
    Failed::go_path("open", path, errno.raw_os_error())
}

/// 0.7 and 0.7.1 said `buffer`, 0.7.2 says `buffers`.
fn ram(info: &MemInfo) -> Ram {
    Ram {
        total: info.total,
        free: info.free,
        buffer: info.buffers,
        buffers: info.buffers,
        cached: info.cached,
        free_total: info.free.saturating_add(info.buffers).saturating_add(info.cached),
    }
}

/// Disks that are hardware, by name, with the filesystem that lies on the whole of one, if one does.
fn disks(root: &Root) -> Result<Vec<Disk>, Failed> {
    const FOLDER: &str = "/sys/block";
    const MOUNTS: &str = "/proc/self/mounts";
    let folder = root.folder(FOLDER).map_err(|errno| unopened(FOLDER, errno))?;
    let mut names = folder
        .entries(|name, _| (!name.starts_with('.')).then(|| name.to_owned()))
        .map_err(|errno| unopened(FOLDER, errno))?;
    names.retain(|name| folder.link(&format!("{name}/device")).is_ok());
    names.sort_unstable();
    let mounts = root.read_whole(MOUNTS).map_err(|errno| unopened(MOUNTS, errno))?;
    Ok(names.into_iter().map(|name| disk(root, &name, &mounts)).collect())
}

fn disk(root: &Root, name: &str, mounts: &[u8]) -> Disk {
    let node = format!("/dev/{name}");
    // The last line wins.
    let found = sources(mounts).filter(|(source, _)| *unescape(source) == *node.as_bytes()).last();
    let point = found.map(|(_, point)| unescape(point));
    let space = point.as_deref().and_then(|point| root.space(point).ok());
    let [unit, blocks, free, available] =
        space.map_or([0; 4], |space| [space.f_frsize, space.f_blocks, space.f_bfree, space.f_bavail]);
    let kb = |blocks: u64| blocks.saturating_mul(unit) / KB;
    Disk {
        name: node,
        is_mounted: point.is_some(),
        mountpoint: point.map(|point| text(&point)).unwrap_or_default(),
        size_total: kb(blocks),
        size_used: kb(blocks.saturating_sub(free)),
        size_avail: kb(available),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    const MEMINFO: &str =
        "MemTotal: 24684084 kB\nMemFree: 20566152 kB\nBuffers: 21920 kB\nCached: 2664376 kB\n";

    fn guest(mounts: &str) -> Tree {
        Tree::new()
            .file("/proc/meminfo", MEMINFO)
            .file("/proc/self/mounts", mounts)
            .link("/sys/block/vdb", "../devices/y/vdb")
            .link("/sys/devices/y/vdb/device", "../../virtio2")
            .link("/sys/block/vda", "../devices/x/vda")
            .link("/sys/devices/x/vda/device", "../../virtio1")
            .link("/sys/block/loop0", "../devices/virtual/block/loop0")
            .folder("/sys/devices/virtual/block/loop0")
            .folder("/mnt/a b")
    }

    #[test]
    fn memory_goes_by_the_names_of_all_versions() {
        let info = sys_info(&guest("").root()).unwrap();
        let expected = Ram {
            total: 24_684_084,
            free: 20_566_152,
            buffer: 21920,
            buffers: 21920,
            cached: 2_664_376,
            free_total: 23_252_448,
        };
        assert_eq!(info.ram, expected);
        assert_eq!(info.long_bit, 64);
        assert!(info.uptime > 0 && info.uname.sysname == "Linux");
        assert_eq!(info.users, []);
    }

    #[test]
    fn disks_are_hardware_in_the_order_of_their_names() {
        let info = sys_info(&guest("").root()).unwrap();
        let unmounted = |name: &str| Disk {
            name: name.to_owned(),
            is_mounted: false,
            mountpoint: String::new(),
            size_total: 0,
            size_used: 0,
            size_avail: 0,
        };
        assert_eq!(info.disks, [unmounted("/dev/vda"), unmounted("/dev/vdb")]);
    }

    #[test]
    fn the_last_mount_of_a_whole_disk_counts_and_may_have_a_blank_in_its_name() {
        let tree =
            guest("/dev/vda / ext4 rw 0 0\n/dev/vdb1 /x ext4 rw 0 0\n/dev/vda /mnt/a\\040b ext4 rw 0 0\n");
        let disks = disks(&tree.root()).unwrap();
        assert_eq!((disks[0].is_mounted, disks[0].mountpoint.as_str()), (true, "/mnt/a b"));
        assert!(disks[0].size_total > 0 && disks[0].size_total >= disks[0].size_used);
        assert!(!disks[1].is_mounted);
    }

    #[test]
    fn a_mount_point_that_is_gone_has_no_sizes() {
        let disks = disks(&guest("/dev/vda /gone ext4 rw 0 0\n").root()).unwrap();
        assert_eq!((disks[0].is_mounted, disks[0].size_total, disks[0].size_used), (true, 0, 0));
    }

    #[test]
    fn failures_read_as_from_phoenix() {
        let failure = sys_info(&Tree::new().root()).unwrap_err();
        assert_eq!(
            (failure.text.as_str(), failure.errno),
            ("open /proc/meminfo: no such file or directory", Some(2))
        );
        let failure = sys_info(&Tree::new().file("/proc/meminfo", MEMINFO).root()).unwrap_err();
        assert_eq!(failure.text, "open /sys/block: no such file or directory");
    }
}
