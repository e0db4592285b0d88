//! Disks and partitions (sysfs), and what was read and written (`/proc/diskstats`).

use proto::Failed;
use proto::query::{DiskInfo, DiskStats, DiskStatsInfo};
use rustix::fs::FileType;

use crate::root::{Folder, Root, base_name, resolve};
use crate::{block, failed, udev};

const FOLDER: &str = "/sys/block";

/// Every disk that has a size and every partition; in reverse of the kernel's order, a partition before its disk, as
/// qemu-ga has it.
///
/// # Errors
/// `/sys/block` cannot be read. What cannot be found out about a disk is left out.
pub(crate) fn disks(root: &Root) -> Result<Vec<DiskInfo>, Failed> {
    let unlisted = |errno| failed(format_args!("Can't open directory \"{FOLDER}\""), errno);
    let folder = root.folder(FOLDER).map_err(unlisted)?;
    let names = folder.entries(|name, kind| kind.is_symlink().then(|| name.to_owned())).map_err(unlisted)?;
    let mut disks = Vec::new();
    for name in names {
        if has_size(&folder, &name)
            && let Ok(link) = folder.link(&name)
        {
            disk(root, &name, &resolve(FOLDER, &link), &mut disks);
        }
    }
    disks.reverse();
    Ok(disks)
}

/// A drive without a medium, a loop device without a file and the like have size 0.
fn has_size(folder: &Folder, name: &str) -> bool {
    let mut buffer = [0; 32];
    folder.read(&format!("{name}/size"), &mut buffer).is_ok_and(|size| size.trim_ascii() != b"0")
}

fn disk(root: &Root, name: &str, path: &str, disks: &mut Vec<DiskInfo>) {
    let device = block::number(root, path);
    let (node, address, alias) = if block::is_virtual(path) {
        let mut properties = device.map(|device| udev::properties(root, device)).unwrap_or_default();
        (udev::node(&mut properties, name), None, properties.mapper_name)
    } else {
        let address = block::address(root, path, device);
        (address.dev.clone().unwrap_or_default(), Some(address), None)
    };
    let dependencies = block::slaves(root, path).unwrap_or_default().map(|slaves| {
        // The last first, as qemu-ga has it.
        slaves.iter().rev().map(|slave| node_at(root, slave)).collect()
    });
    let partitions = partitions(root, name, path);
    disks.push(DiskInfo { name: node.clone(), partition: false, dependencies, address, alias });
    disks.extend(partitions.into_iter().map(|partition| DiskInfo {
        name: node_at(root, &format!("{path}/{partition}")),
        partition: true,
        dependencies: Some(vec![node.clone()]),
        address: None,
        alias: None,
    }));
}

/// The device node of what is at this path in sysfs.
fn node_at(root: &Root, path: &str) -> String {
    let mut properties =
        block::number(root, path).map(|device| udev::properties(root, device)).unwrap_or_default();
    udev::node(&mut properties, base_name(path))
}

/// Folders in a disk's that are called like the disk, with a number or `p` and a number behind it.
fn partitions(root: &Root, disk: &str, path: &str) -> Vec<String> {
    let is_partition = |name: &str| {
        name.strip_prefix(disk).is_some_and(|rest| {
            rest.strip_prefix('p').unwrap_or(rest).starts_with(|first: char| first.is_ascii_digit())
        })
    };
    root.folder(path)
        .and_then(|folder| {
            folder.entries(|name, kind| {
                (kind == FileType::Directory && is_partition(name)).then(|| name.to_owned())
            })
        })
        .unwrap_or_default()
}

/// Counters of every block device, in the kernel's order.
///
/// # Errors
/// `/proc/diskstats` cannot be read.
pub(crate) fn statistics(root: &Root) -> Result<Vec<DiskStatsInfo>, Failed> {
    let content =
        root.read_whole("/proc/diskstats").map_err(|errno| failed("open(\"/proc/diskstats\")", errno))?;
    Ok(String::from_utf8_lossy(&content).lines().filter_map(parse_line).collect())
}

/// Columns as in the kernel's Documentation/admin-guide/iostats.rst; how many there are says which.
fn parse_line(line: &str) -> Option<DiskStatsInfo> {
    let mut columns = line.split_ascii_whitespace();
    let (major, minor) = (columns.next()?.parse().ok()?, columns.next()?.parse().ok()?);
    let name = columns.next()?.to_owned();
    let mut numbers = [0_u64; 17];
    let mut count = 0;
    for (place, column) in numbers.iter_mut().zip(columns) {
        *place = column.parse().ok()?;
        count += 1;
    }
    let [rio, rm, rs, rt, wio, wm, ws, wt, pgr, tot, wei, dio, dm, ds, dt, fio, ft] = numbers.map(Some);
    let mut stats = DiskStats::default();
    if count == 4 {
        // Partitions, before Linux 2.6.25.
        [stats.read_ios, stats.read_sectors, stats.write_ios, stats.write_sectors] = [rio, rm, rs, rt];
    }
    if count >= 11 {
        [stats.read_ios, stats.read_merges, stats.read_sectors, stats.read_ticks] = [rio, rm, rs, rt];
        [stats.write_ios, stats.write_merges, stats.write_sectors, stats.write_ticks] = [wio, wm, ws, wt];
        [stats.ios_pgr, stats.total_ticks, stats.weight_ticks] = [pgr, tot, wei];
    }
    if count >= 15 {
        [stats.discard_ios, stats.discard_merges, stats.discard_sectors, stats.discard_ticks] =
            [dio, dm, ds, dt];
    }
    if count >= 17 {
        [stats.flush_ios, stats.flush_ticks] = [fio, ft];
    }
    Some(DiskStatsInfo { name, major, minor, stats })
}

#[cfg(test)]
mod tests {
    use proto::query::BusType;

    use super::*;
    use crate::tree::Tree;

    fn virtual_disk(tree: Tree, name: &str, number: &str, size: &str) -> Tree {
        let path = format!("/sys/devices/virtual/block/{name}");
        tree.link(&format!("/sys/block/{name}"), &format!("../devices/virtual/block/{name}"))
            .file(&format!("{path}/size"), size)
            .file(&format!("{path}/dev"), number)
    }

    fn named<'a>(disks: &'a [DiskInfo], name: &str) -> &'a DiskInfo {
        disks.iter().find(|disk| disk.name == name).unwrap()
    }

    fn lvm_on_a_virtio_disk() -> Tree {
        let path = "/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda";
        let tree = Tree::new()
            .link("/sys/block/vda", "../devices/pci0000:00/0000:00:02.0/virtio1/block/vda")
            .link("/sys/devices/pci0000:00/0000:00:02.0/driver", "../../../bus/pci/drivers/virtio-pci")
            .file(&format!("{path}/size"), "41943040\n")
            .file(&format!("{path}/dev"), "254:0\n")
            .folder(&format!("{path}/slaves"))
            .file(&format!("{path}/vda1/dev"), "254:1\n")
            .file(&format!("{path}/vda2/dev"), "254:2\n")
            .folder(&format!("{path}/queue"))
            .file("/run/udev/data/b254:0", "E:ID_SERIAL=root\n")
            .file("/run/udev/data/b253:0", "E:DM_NAME=vg-root\nE:DM_UUID=LVM-x\n");
        virtual_disk(tree, "dm-0", "253:0\n", "40000000\n").link(
            "/sys/devices/virtual/block/dm-0/slaves/vda2",
            "../../../../pci0000:00/0000:00:02.0/virtio1/block/vda/vda2",
        )
    }

    #[test]
    fn a_disk_has_an_address_and_its_partitions_depend_on_it() {
        let disks = disks(&lvm_on_a_virtio_disk().root()).unwrap();
        assert_eq!(disks.len(), 4);
        let disk = named(&disks, "/dev/vda");
        let address = disk.address.as_ref().unwrap();
        assert_eq!((address.bus_type, address.serial.as_deref()), (BusType::Virtio, Some("root")));
        assert_eq!((disk.partition, disk.dependencies.as_deref()), (false, Some(&[][..])));
        let partition = named(&disks, "/dev/vda2");
        assert_eq!((partition.partition, &partition.address), (true, &None));
        assert_eq!(partition.dependencies.as_deref(), Some(&["/dev/vda".to_owned()][..]));
    }

    #[test]
    fn a_mapped_device_has_an_alias_and_depends_on_what_it_is_made_of() {
        let disks = disks(&lvm_on_a_virtio_disk().root()).unwrap();
        let mapped = named(&disks, "/dev/dm-0");
        assert_eq!(mapped.alias.as_deref(), Some("vg-root"));
        assert_eq!(mapped.dependencies.as_deref(), Some(&["/dev/vda2".to_owned()][..]));
        assert_eq!(mapped.address, None);
    }

    #[test]
    fn partitions_come_before_their_disk() {
        let disks = disks(&lvm_on_a_virtio_disk().root()).unwrap();
        let place = |name| disks.iter().position(|disk| disk.name == name).unwrap();
        assert!(place("/dev/vda1") < place("/dev/vda"));
        assert!(place("/dev/vda2") < place("/dev/vda"));
    }

    #[test]
    fn what_has_no_size_is_not_listed() {
        let tree = virtual_disk(Tree::new(), "loop0", "7:0\n", "0\n");
        let tree = virtual_disk(tree, "loop1", "7:1\n", "2048\n");
        let tree = tree.link("/sys/block/gone", "../devices/virtual/block/gone");
        let [one] = disks(&tree.root()).unwrap().try_into().unwrap();
        assert_eq!((one.name.as_str(), one.dependencies), ("/dev/loop1", None));
    }

    #[test]
    fn partitions_of_disks_that_end_in_a_digit_have_a_p() {
        let path = "/sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1";
        let tree = Tree::new()
            .folder(&format!("{path}/nvme0n1p1"))
            .folder(&format!("{path}/nvme0n1p15"))
            .folder(&format!("{path}/nvme0n1px"))
            .folder(&format!("{path}/nvme0c0n1"))
            .file(&format!("{path}/nvme0n1p2"), "");
        let mut found = partitions(&tree.root(), "nvme0n1", path);
        found.sort();
        assert_eq!(found, ["nvme0n1p1", "nvme0n1p15"]);
    }

    #[test]
    fn without_sysfs_the_failure_reads_as_from_qemu_ga() {
        let failure = disks(&Tree::new().root()).unwrap_err();
        assert_eq!(failure.text, "Can't open directory \"/sys/block\": No such file or directory");
        let failure = statistics(&Tree::new().root()).unwrap_err();
        assert_eq!(failure.text, "open(\"/proc/diskstats\"): No such file or directory");
    }

    #[test]
    fn the_number_of_columns_says_what_is_counted() {
        let full = parse_line("   8       0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17").unwrap();
        assert_eq!((full.name.as_str(), full.major, full.minor), ("sda", 8, 0));
        assert_eq!(
            (full.stats.read_ios, full.stats.read_merges, full.stats.read_sectors),
            (Some(1), Some(2), Some(3))
        );
        assert_eq!(
            (full.stats.write_ticks, full.stats.ios_pgr, full.stats.weight_ticks),
            (Some(8), Some(9), Some(11))
        );
        assert_eq!((full.stats.discard_ios, full.stats.discard_ticks), (Some(12), Some(15)));
        assert_eq!((full.stats.flush_ios, full.stats.flush_ticks), (Some(16), Some(17)));

        let discards = parse_line("8 0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15").unwrap().stats;
        assert_eq!((discards.discard_ticks, discards.flush_ios), (Some(15), None));
        let plain = parse_line("8 0 sda 1 2 3 4 5 6 7 8 9 10 11").unwrap().stats;
        assert_eq!((plain.weight_ticks, plain.discard_ios), (Some(11), None));
        let old = parse_line("8 1 sda1 1 2 3 4").unwrap().stats;
        assert_eq!(
            (old.read_ios, old.read_sectors, old.write_ios, old.write_sectors),
            (Some(1), Some(2), Some(3), Some(4))
        );
        assert_eq!((old.read_merges, old.total_ticks), (None, None));
        assert_eq!(parse_line("8 1 sda1").unwrap().stats, DiskStats::default());
        assert_eq!(parse_line("8 x sda1 1 2 3 4"), None);
    }

    #[test]
    fn columns_of_later_kernels_are_passed_over() {
        let line = "8 0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x";
        assert_eq!(parse_line(line).unwrap().stats.flush_ticks, Some(17));
    }
}
