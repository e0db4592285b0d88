//! Mounted filesystems that lie on block devices, for `guest-get-fsinfo`.
//!
//! Only those that will be listed are touched: statfs(2) of anything else could wait for a dead server, and makes
//! security modules complain about containers' mounts.

use proto::Failed;
use proto::query::FilesystemInfo;
use rustix::io::Errno;

use crate::root::{Root, base_name, resolve, text};
use crate::{block, failed};
use runtime::mountinfo::{Device, Mount, mounts, unescape};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount to list, and the block device that it lies on.
struct Listed<'a> {
    mount: Mount<'a>,
    device: Device,
    /// Something is mounted on its very mount point, so that its path leads elsewhere.
    covered: bool,
}

/// What is mounted, the last first.
///
/// # Errors
/// procfs is not there, or sysfs refuses.
pub(crate) fn filesystems(root: &Root) -> Result<Vec<FilesystemInfo>, Failed> {
    let content = root.read_whole(MOUNTINFO).map_err(|errno| Failed {
        // qemu-ga tries the older file where this one is missing; Linux has had both since 2.6.26.
        text: "failed to open mtab file: '/proc/self/mounts'".to_owned(),
        errno: Some(errno.raw_os_error()),
    })?;
    list(&content, |source| root.block_device(source))
        .iter()
        .rev()
        .map(|listed| filesystem(root, listed))
        .collect()
}

/// One mount for each filesystem, the first: others are bind mounts of it or of folders in it. Subvolumes of btrfs are
/// filesystems of their own in this.
fn list(mountinfo: &[u8], block_device: impl Fn(&[u8]) -> Option<Device>) -> Vec<Listed<'_>> {
    let mut list: Vec<Listed<'_>> = Vec::new();
    // Sources of btrfs by the number that the mount has: one stat(2) for each filesystem, not for each subvolume.
    let mut sources: Vec<(Device, Option<Device>)> = Vec::new();
    for mount in mounts(mountinfo) {
        if let Some(below) =
            list.iter_mut().find(|below| below.mount.id == mount.parent && below.mount.point == mount.point)
        {
            below.covered = true;
        }
        let device = if mount.device.major != 0 {
            Some(mount.device)
        } else if mount.kind == b"btrfs" {
            match sources.iter().find(|(device, _)| *device == mount.device) {
                Some((_, source)) => *source,
                None => {
                    let source = block_device(&unescape(mount.source));
                    sources.push((mount.device, source));
                    source
                }
            }
        } else {
            None
        };
        if let Some(device) = device
            && !list.iter().any(|earlier| earlier.device == device && same_volume(&earlier.mount, &mount))
        {
            list.push(Listed { mount, device, covered: false });
        }
    }
    list
}

fn same_volume(one: &Mount<'_>, other: &Mount<'_>) -> bool {
    if other.kind != b"btrfs" {
        return true;
    }
    match (one.option("subvolid"), other.option("subvolid")) {
        (None, None) => one.root == other.root, // kernels before 4.2
        (one, other) => one == other,
    }
}

fn filesystem(root: &Root, listed: &Listed<'_>) -> Result<FilesystemInfo, Failed> {
    const FOLDER: &str = "/sys/dev/block";
    let Listed { mount, device, covered } = listed;
    let mut disk = Vec::new();
    let place = format!("{FOLDER}/{device}");
    let name = match root.link(&place) {
        Ok(link) => {
            let path = resolve(FOLDER, &link);
            block::addresses(root, &path, Some(*device), &mut disk)?;
            base_name(&path).to_owned()
        }
        // Containers may see mounts of devices that their sysfs does not show.
        Err(Errno::NOENT) => device.to_string(),
        Err(errno) => return Err(failed(format_args!("realpath(\"{place}\")"), errno)),
    };
    // The last first, as qemu-ga has it.
    disk.reverse();
    let point = unescape(mount.point);
    let space = if *covered { None } else { root.space(&point).ok() };
    let space = space.map(|space| Space::of(space.f_frsize, space.f_blocks, space.f_bfree, space.f_bavail));
    Ok(FilesystemInfo {
        name,
        mountpoint: text(&point),
        r#type: text(mount.kind),
        used_bytes: space.map(|space| space.used),
        total_bytes: space.map(|space| space.total),
        total_bytes_privileged: space.map(|space| space.privileged),
        disk,
    })
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    used: u64,
    total: u64,
    privileged: u64,
}

impl Space {
    /// From statvfs(3): blocks of `unit` bytes in all, free for root, and free for everyone.
    fn of(unit: u64, blocks: u64, free: u64, available: u64) -> Self {
        let used = blocks.saturating_sub(free);
        let bytes = |blocks: u64| blocks.saturating_mul(unit);
        Space { used: bytes(used), total: bytes(used.saturating_add(available)), privileged: bytes(blocks) }
    }
}

#[cfg(test)]
mod tests {
    use proto::query::BusType;

    use super::*;
    use crate::tree::Tree;

    fn on_virtio(mountinfo: &str) -> Tree {
        let path = "/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda";
        Tree::new()
            .file(MOUNTINFO, mountinfo)
            .link("/sys/devices/pci0000:00/0000:00:02.0/driver", "../../../bus/pci/drivers/virtio-pci")
            .folder(&format!("{path}/vda1"))
            .link("/sys/dev/block/254:0", "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda")
            .link("/sys/dev/block/254:1", "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda/vda1")
            .folder("/sys/devices/virtual/block/loop3/slaves")
            .link("/sys/dev/block/7:3", "../../devices/virtual/block/loop3")
            .link(
                "/sys/devices/virtual/block/dm-0/slaves/vda1",
                "../../../../pci0000:00/0000:00:02.0/virtio1/block/vda/vda1",
            )
            .link("/sys/dev/block/253:0", "../../devices/virtual/block/dm-0")
            .folder("/mnt/a b")
            .folder("/boot")
    }

    fn points(tree: &Tree) -> Vec<String> {
        filesystems(&tree.root()).unwrap().into_iter().map(|filesystem| filesystem.mountpoint).collect()
    }

    #[test]
    fn what_lies_on_block_devices_is_listed_the_last_mounted_first() {
        let tree = on_virtio(
            "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
             27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
             28 27 0:25 / /net rw - nfs4 server:/export rw\n\
             29 27 0:26 / /var/lib/docker rw - overlay overlay rw\n\
             30 27 254:1 / /boot rw shared:5 - vfat /dev/vda1 rw\n\
             31 27 7:3 / /mnt/a\\040b ro - squashfs /dev/loop3 ro\n",
        );
        let [snap, boot, system] = filesystems(&tree.root()).unwrap().try_into().unwrap();
        assert_eq!(
            (system.name.as_str(), system.mountpoint.as_str(), system.r#type.as_str()),
            ("vda", "/", "ext4")
        );
        assert_eq!(
            (boot.name.as_str(), boot.mountpoint.as_str(), boot.r#type.as_str()),
            ("vda1", "/boot", "vfat")
        );
        assert_eq!((snap.name.as_str(), snap.mountpoint.as_str()), ("loop3", "/mnt/a b"));
        assert_eq!(system.disk[0].bus_type, BusType::Virtio);
        assert_eq!(boot.disk[0].dev.as_deref(), Some("/dev/vda1"));
        assert_eq!(snap.disk, []);
        assert!(snap.total_bytes.is_some() && snap.used_bytes.is_some());
    }

    /// qga 10.0: only the first mount of a device counts.
    #[test]
    fn bind_mounts_are_not_listed_again() {
        let tree = on_virtio(
            "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
             40 27 254:0 /srv /mnt/srv rw - ext4 /dev/vda rw\n\
             41 27 254:0 /etc/hosts /x/etc/hosts rw - ext4 /dev/vda rw\n",
        );
        assert_eq!(points(&tree), ["/"]);
    }

    /// The numbers of btrfs mounts are anonymous; all subvolumes of a filesystem have the same one.
    #[test]
    fn subvolumes_that_are_mounted_separately_are_all_listed() {
        let mountinfo = b"27 1 0:40 /@ / rw - btrfs /dev/vda2 rw,subvolid=256,subvol=/@\n\
            28 27 0:40 /@home /home rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home\n\
            29 27 0:40 /@home/ann /srv/ann rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home\n\
            30 27 0:41 / /data rw - btrfs /dev/my\\040disk rw,subvolid=5,subvol=/\n";
        let stats = std::cell::Cell::new(0);
        let list = list(mountinfo, |source| {
            stats.set(stats.get() + 1);
            let minor = match source {
                b"/dev/vda2" => 2,
                b"/dev/my disk" => 7,
                _ => return None,
            };
            Some(Device { major: 254, minor })
        });
        let listed: Vec<_> = list.iter().map(|one| (text(one.mount.point), one.device.minor)).collect();
        assert_eq!(listed, [("/".to_owned(), 2), ("/home".to_owned(), 2), ("/data".to_owned(), 7)]);
        assert_eq!(stats.get(), 2);
    }

    #[test]
    fn old_kernels_tell_subvolumes_by_their_path() {
        let mountinfo =
            b"27 1 0:40 /@ / rw - btrfs /dev/vda2 rw\n28 27 0:40 /@home /home rw - btrfs /dev/vda2 rw\n\
            29 27 0:40 /@ /mnt rw - btrfs /dev/vda2 rw\n";
        let list = list(mountinfo, |_| Some(Device { major: 254, minor: 2 }));
        assert_eq!(list.iter().map(|one| one.mount.point).collect::<Vec<_>>(), [&b"/"[..], b"/home"]);
    }

    #[test]
    fn btrfs_without_a_block_device_as_source_is_not_listed() {
        let tree = on_virtio(
            "27 1 0:40 / / rw - btrfs /dev/none rw,subvolid=5\n28 1 0:41 / /x rw - btrfs mtd0 rw\n",
        );
        assert_eq!(points(&tree), <[&str; 0]>::default());
    }

    #[test]
    fn a_mapped_device_shows_the_disk_below() {
        let tree = on_virtio("27 1 253:0 / / rw - xfs /dev/mapper/vg-root rw\n");
        let [system] = filesystems(&tree.root()).unwrap().try_into().unwrap();
        assert_eq!(system.name, "dm-0");
        assert_eq!(
            (system.disk[0].bus_type, system.disk[0].dev.as_deref()),
            (BusType::Virtio, Some("/dev/vda1"))
        );
    }

    #[test]
    fn a_device_that_sysfs_does_not_show_is_called_by_its_number() {
        let [one] = filesystems(&on_virtio("27 1 8:17 / / rw - ext4 /dev/sdb1 rw\n").root())
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!((one.name.as_str(), one.disk.len()), ("8:17", 0));
    }

    #[test]
    fn a_filesystem_that_cannot_be_reached_has_no_sizes() {
        let gone = filesystems(&on_virtio("27 1 254:0 / /gone rw - ext4 /dev/vda rw\n").root()).unwrap();
        assert_eq!(
            (gone[0].used_bytes, gone[0].total_bytes, gone[0].total_bytes_privileged),
            (None, None, None)
        );
        let covered = on_virtio(
            "27 1 254:0 / /boot rw - ext4 /dev/vda rw\n\
             28 27 0:50 / /boot rw - nfs4 server:/ rw\n",
        );
        assert_eq!(filesystems(&covered.root()).unwrap()[0].total_bytes, None);
    }

    /// Figures of a real ext4 with reserved blocks.
    #[test]
    fn total_is_what_a_user_sees_and_privileged_what_root_sees() {
        let expected = Space { used: 13_223_829_504, total: 97_568_010_240, privileged: 270_553_174_016 };
        assert_eq!(Space::of(4096, 66_053_021, 62_824_547, 20_591_841), expected);
        assert_eq!(Space::of(4096, 1, 2, 0), Space { used: 0, total: 0, privileged: 4096 });
    }

    #[test]
    fn without_procfs_the_failure_reads_as_from_qemu_ga() {
        let failure = filesystems(&Tree::new().root()).unwrap_err();
        assert_eq!(failure.text, "failed to open mtab file: '/proc/self/mounts'");
    }
}
