//! The hardware below a block device, told from where sysfs puts the device.
//!
//! A path such as `/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1` names the PCI
//! function, the ATA port and the SCSI address on the way. Virtual devices (device mapper, md, loop) have none of that,
//! but list what they are made of in `slaves`.

use proto::Failed;
use proto::query::{BusType, CcwAddress, DiskAddress, PciAddress};
use rustix::io::Errno;

use crate::failed;
use crate::root::{Root, base_name, number_after, resolve};
use crate::udev;
use runtime::mountinfo::Device;

/// Deeper than any stack of virtual devices.
const DEPTH: usize = 16;

/// Whether the device at this path in sysfs stands for no hardware of its own.
pub(crate) fn is_virtual(path: &str) -> bool {
    path.contains("/devices/virtual/block/")
}

/// The number of the device at this path in sysfs.
pub(crate) fn number(root: &Root, path: &str) -> Option<Device> {
    let mut buffer = [0; 32];
    let number = root.read(&format!("{path}/dev"), &mut buffer).ok()?;
    Device::parse(std::str::from_utf8(number).ok()?.trim_end())
}

/// Adds the address of every disk below the device at `path`, in the kernel's order.
///
/// # Errors
/// sysfs refuses to say what a virtual device is made of.
pub(crate) fn addresses(
    root: &Root,
    path: &str,
    device: Option<Device>,
    found: &mut Vec<DiskAddress>,
) -> Result<(), Failed> {
    addresses_at(root, path, device, found, DEPTH)
}

fn addresses_at(
    root: &Root,
    path: &str,
    device: Option<Device>,
    found: &mut Vec<DiskAddress>,
    depth: usize,
) -> Result<(), Failed> {
    if !is_virtual(path) {
        found.push(address(root, path, device.or_else(|| number(root, path))));
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else { return Ok(()) };
    for slave in slaves(root, path)?.unwrap_or_default() {
        addresses_at(root, &slave, None, found, depth)?;
    }
    Ok(())
}

/// Paths of what a device is made of; none if it is not a device that is made of others.
///
/// # Errors
/// The folder or a link in it cannot be read.
pub(crate) fn slaves(root: &Root, path: &str) -> Result<Option<Vec<String>>, Failed> {
    let place = format!("{path}/slaves");
    let opened = match root.folder(&place) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.and_then(|folder| {
            let names = folder.entries(|name, kind| kind.is_symlink().then(|| name.to_owned()))?;
            Ok((folder, names))
        }),
    };
    let (folder, names) = opened.map_err(|errno| failed(format_args!("opendir(\"{place}\")"), errno))?;
    let mut slaves = Vec::with_capacity(names.len());
    for name in names {
        match folder.link(&name) {
            Ok(link) => slaves.push(resolve(&place, &link)),
            Err(Errno::NOENT) => {} // it was taken away meanwhile
            Err(errno) => return Err(failed(format_args!("realpath(\"{place}/{name}\")"), errno)),
        }
    }
    Ok(Some(slaves))
}

/// The address of a device that is not virtual. What cannot be told is -1, 0 or `unknown`.
pub(crate) fn address(root: &Root, path: &str, device: Option<Device>) -> DiskAddress {
    let mut properties = device.map(|device| udev::properties(root, device)).unwrap_or_default();
    let mut address = DiskAddress {
        pci_controller: PciAddress { domain: -1, bus: -1, slot: -1, function: -1 },
        bus_type: BusType::Unknown,
        bus: 0,
        target: 0,
        unit: 0,
        dev: Some(udev::node(&mut properties, base_name(path))),
        serial: properties.serial,
        ccw_address: None,
    };
    if let Some((_, below)) = path.split_once("/devices/pci") {
        on_pci(root, path, below, &mut address);
    } else if let Some((_, below)) = path.split_once("/devices/css") {
        address.ccw_address = ccw_address(below);
        if address.ccw_address.is_some() && path.contains("/virtio") {
            on_virtio(path, &mut address);
        }
    } else if path.contains("/virtio") {
        on_virtio(path, &mut address);
    }
    address
}

/// Below a PCI root bus: the first function whose driver is a disk controller's says what it is.
fn on_pci(root: &Root, path: &str, below: &str, address: &mut DiskAddress) {
    let mut parts = below.split('/');
    let mut end = path.len() - below.len() + parts.next().map_or(0, str::len);
    for part in parts {
        let Some(function) = pci_address(part) else { return };
        end += 1 + part.len();
        let Some(controller) = path.get(..end) else { return };
        let Ok(driver) = root.link(&format!("{controller}/driver")) else { continue };
        let scsi = scsi_address(path);
        let bus_type = match base_name(&driver) {
            "virtio-pci" => match scsi {
                Some(scsi) => {
                    address.unit = scsi.unit;
                    BusType::Scsi
                }
                None => BusType::Virtio,
            },
            "ata_piix" => match (port_index(root, path), scsi) {
                (Some(index), Some(scsi)) => {
                    (address.bus, address.unit) = (index, scsi.target);
                    BusType::Ide
                }
                _ => BusType::Unknown,
            },
            "ahci" => match (port_index(root, path), scsi) {
                (Some(index), Some(_)) => {
                    address.unit = index;
                    BusType::Sata
                }
                _ => BusType::Unknown,
            },
            "sym53c8xx" => match scsi {
                Some(scsi) => {
                    address.unit = scsi.target;
                    BusType::Scsi
                }
                None => BusType::Unknown,
            },
            "nvme" => BusType::Nvme,
            "xhci_hcd" | "ehci-pci" => BusType::Usb,
            _ => continue, // a bridge
        };
        address.pci_controller = function;
        address.bus_type = bus_type;
        return;
    }
}

/// `0000:00:1f.2`
fn pci_address(part: &str) -> Option<PciAddress> {
    let (rest, function) = part.split_once('.')?;
    let mut numbers = rest.split(':').map(|number| i64::from_str_radix(number, 16).ok());
    let (domain, bus, slot) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let function = i64::from_str_radix(function, 16).ok()?;
    numbers.next().is_none().then_some(PciAddress { domain, bus, slot, function })
}

/// A virtio device that does not lie on PCI: memory-mapped, or on an s390x channel.
fn on_virtio(path: &str, address: &mut DiskAddress) {
    match scsi_address(path) {
        Some(ScsiAddress { bus, target, unit }) => {
            (address.bus_type, address.bus, address.target, address.unit) =
                (BusType::Scsi, bus, target, unit);
        }
        None => address.bus_type = BusType::Virtio,
    }
}

/// Behind `/devices/css`: `0/0.0.0001/0.0.1234/…`, the subchannel (cssid.ssid.number) and the device (its number last).
fn ccw_address(below: &str) -> Option<CcwAddress> {
    let mut parts = below.split('/').skip(1);
    let [cssid, ssid, subchno] = hexadecimal(parts.next()?)?;
    let [_, _, devno] = hexadecimal(parts.next()?)?;
    Some(CcwAddress { cssid, ssid, subchno, devno })
}

fn hexadecimal(part: &str) -> Option<[i64; 3]> {
    let mut numbers = part.split('.').map(|number| i64::from_str_radix(number, 16).ok());
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ScsiAddress {
    bus: i64,
    target: i64,
    unit: i64,
}

/// The part behind `targetH:B:T` is `H:B:T:L`.
fn scsi_address(path: &str) -> Option<ScsiAddress> {
    let mut parts = path.split('/').skip_while(|part| !part.starts_with("target"));
    parts.next()?;
    let mut numbers = parts.next()?.split(':').map(|number| number.parse().ok());
    numbers.next()??;
    Some(ScsiAddress { bus: numbers.next()??, target: numbers.next()??, unit: numbers.next()?? })
}

/// Which of its controller's ports a disk hangs on, from 0: the place of its `ataN`, or else its `hostN`, among all.
fn port_index(root: &Root, path: &str) -> Option<i64> {
    ["ata", "host"].into_iter().find_map(|kind| {
        let (at, own) = path.match_indices('/').find_map(|(at, _)| {
            let part = path.get(at + 1..)?.split('/').next()?;
            Some((at, number_after::<u64>(part, kind)?))
        })?;
        let siblings = root.folder(path.get(..at)?).ok()?;
        let numbers = siblings.entries(|name, _| number_after::<u64>(name, kind)).ok()?;
        if !numbers.contains(&own) {
            return None;
        }
        i64::try_from(numbers.iter().filter(|number| **number < own).count()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    const PCI: &str = "/sys/devices/pci0000:00";

    fn pci(domain: i64, bus: i64, slot: i64, function: i64) -> PciAddress {
        PciAddress { domain, bus, slot, function }
    }

    fn unknown(dev: &str) -> DiskAddress {
        DiskAddress {
            pci_controller: pci(-1, -1, -1, -1),
            bus_type: BusType::Unknown,
            bus: 0,
            target: 0,
            unit: 0,
            serial: None,
            dev: Some(dev.to_owned()),
            ccw_address: None,
        }
    }

    fn driver(function: &str, name: &str) -> Tree {
        Tree::new().link(&format!("{PCI}/{function}/driver"), &format!("../../../bus/pci/drivers/{name}"))
    }

    fn address_of(tree: Tree, path: &str) -> DiskAddress {
        address(&tree.root(), path, None)
    }

    #[test]
    fn a_virtio_disk_is_known_by_its_driver() {
        let path = format!("{PCI}/0000:00:02.0/virtio1/block/vda");
        let expected =
            DiskAddress { pci_controller: pci(0, 0, 2, 0), bus_type: BusType::Virtio, ..unknown("/dev/vda") };
        assert_eq!(address_of(driver("0000:00:02.0", "virtio-pci"), &path), expected);
    }

    #[test]
    fn a_disk_behind_bridges_belongs_to_its_controller() {
        let bridge = "0000:00:02.1";
        let path = format!("{PCI}/{bridge}/0000:01:0a.0/virtio1/host2/target2:0:1/2:0:1:3/block/sdb/sdb1");
        let tree = driver(bridge, "pcieport")
            .link(&format!("{PCI}/{bridge}/0000:01:0a.0/driver"), "../../../../bus/pci/drivers/virtio-pci");
        let expected = DiskAddress {
            pci_controller: pci(0, 1, 10, 0),
            bus_type: BusType::Scsi,
            unit: 3,
            ..unknown("/dev/sdb1")
        };
        assert_eq!(address_of(tree, &path), expected);
    }

    #[test]
    fn a_sata_disk_has_the_place_of_its_port_as_unit() {
        let function = format!("{PCI}/0000:00:1f.2");
        let path = format!("{function}/ata10/host9/target9:0:0/9:0:0:0/block/sda");
        let tree = driver("0000:00:1f.2", "ahci")
            .folder(&format!("{function}/ata9/host8"))
            .folder(&format!("{function}/ata10/host9"))
            .folder(&format!("{function}/ata11/host10"))
            .folder(&format!("{function}/ata_port"));
        let expected = DiskAddress {
            pci_controller: pci(0, 0, 31, 2),
            bus_type: BusType::Sata,
            unit: 1,
            ..unknown("/dev/sda")
        };
        assert_eq!(address_of(tree, &path), expected);
    }

    #[test]
    fn an_ide_disk_has_a_bus_and_a_unit() {
        let function = format!("{PCI}/0000:00:01.1");
        let path = format!("{function}/ata2/host1/target1:0:1/1:0:1:0/block/sr0");
        let tree = driver("0000:00:01.1", "ata_piix")
            .folder(&format!("{function}/ata1"))
            .folder(&format!("{function}/ata2"));
        let expected = DiskAddress {
            pci_controller: pci(0, 0, 1, 1),
            bus_type: BusType::Ide,
            bus: 1,
            unit: 1,
            ..unknown("/dev/sr0")
        };
        assert_eq!(address_of(tree, &path), expected);
    }

    #[test]
    fn an_old_kernel_has_hosts_without_ata_ports() {
        let function = format!("{PCI}/0000:00:01.1");
        let tree = driver("0000:00:01.1", "ata_piix")
            .folder(&format!("{function}/host0"))
            .folder(&format!("{function}/host1"));
        let found = address_of(tree, &format!("{function}/host1/target1:0:0/1:0:0:0/block/sda"));
        assert_eq!((found.bus_type, found.bus, found.unit), (BusType::Ide, 1, 0));
    }

    #[test]
    fn scsi_nvme_and_usb_controllers_are_known() {
        let function = format!("{PCI}/0000:00:05.0");
        let on = |name, below: &str| address_of(driver("0000:00:05.0", name), &format!("{function}/{below}"));
        let scsi = on("sym53c8xx", "host0/target0:0:2/0:0:2:0/block/sda");
        assert_eq!((scsi.bus_type, scsi.unit), (BusType::Scsi, 2));
        assert_eq!(on("nvme", "nvme/nvme0/nvme0n1").bus_type, BusType::Nvme);
        let usb = "usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sdb";
        assert_eq!(on("xhci_hcd", usb).bus_type, BusType::Usb);
        assert_eq!(on("ehci-pci", usb).bus_type, BusType::Usb);
    }

    #[test]
    fn an_unknown_controller_has_no_address_but_a_node() {
        let path = format!("{PCI}/0000:00:05.0/host0/target0:0:2/0:0:2:0/block/sda");
        assert_eq!(address_of(driver("0000:00:05.0", "megaraid_sas"), &path), unknown("/dev/sda"));
        assert_eq!(address_of(Tree::new(), &path), unknown("/dev/sda"));
        assert_eq!(address_of(Tree::new(), "/sys/devices/platform/f.mmc/mmcblk0"), unknown("/dev/mmcblk0"));
    }

    #[test]
    fn a_known_controller_without_a_port_is_named_all_the_same() {
        let found = address_of(driver("0000:00:1f.2", "ahci"), &format!("{PCI}/0000:00:1f.2/block/sda"));
        assert_eq!((found.pci_controller, found.bus_type), (pci(0, 0, 31, 2), BusType::Unknown));
    }

    #[test]
    fn virtio_without_pci_is_known_by_its_name() {
        let mmio = address_of(Tree::new(), "/sys/devices/platform/a003e00.virtio_mmio/virtio0/block/vda");
        assert_eq!((mmio.bus_type, mmio.pci_controller), (BusType::Virtio, pci(-1, -1, -1, -1)));
        let scsi = "/sys/devices/platform/a003e00.virtio_mmio/virtio0/host3/target3:1:2/3:1:2:4/block/sda";
        let scsi = address_of(Tree::new(), scsi);
        assert_eq!((scsi.bus_type, scsi.bus, scsi.target, scsi.unit), (BusType::Scsi, 1, 2, 4));
    }

    #[test]
    fn a_disk_on_a_channel_has_a_ccw_address() {
        let found = address_of(Tree::new(), "/sys/devices/css0/0.0.0001/0.0.000a/virtio1/block/vda/vda1");
        assert_eq!(found.ccw_address, Some(CcwAddress { cssid: 0, ssid: 0, subchno: 1, devno: 10 }));
        assert_eq!(found.bus_type, BusType::Virtio);
        let dasd = address_of(Tree::new(), "/sys/devices/css0/0.1.0fff/0.1.1234/block/dasda");
        assert_eq!(dasd.ccw_address, Some(CcwAddress { cssid: 0, ssid: 1, subchno: 0xfff, devno: 0x1234 }));
        assert_eq!(dasd.bus_type, BusType::Unknown);
        assert_eq!(address_of(Tree::new(), "/sys/devices/css0/defunct/x/block/dasda").ccw_address, None);
    }

    #[test]
    fn the_serial_number_is_udevs() {
        let path = format!("{PCI}/0000:00:02.0/virtio1/block/vda");
        let tree = driver("0000:00:02.0", "virtio-pci")
            .file(&format!("{path}/dev"), "254:0\n")
            .file("/run/udev/data/b254:0", "S:disk/by-id/virtio-disk1\nE:ID_SERIAL=disk1\n");
        let mut found = Vec::new();
        addresses(&tree.root(), &path, None, &mut found).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].serial.as_deref(), Some("disk1"));
    }

    /// dm-1 (LVM) on dm-0 (LUKS) on sda2, and on sdb.
    #[test]
    fn a_stack_of_virtual_devices_comes_down_to_its_disks() {
        let tree = Tree::new()
            .link("/sys/devices/virtual/block/dm-1/slaves/dm-0", "../../dm-0")
            .link("/sys/devices/virtual/block/dm-0/slaves/sda2", "../../../../platform/x/block/sda/sda2")
            .link("/sys/devices/virtual/block/dm-1/slaves/sdb", "../../../../platform/y/block/sdb");
        let mut found = Vec::new();
        addresses(&tree.root(), "/sys/devices/virtual/block/dm-1", None, &mut found).unwrap();
        let mut nodes: Vec<_> = found.into_iter().filter_map(|address| address.dev).collect();
        nodes.sort();
        assert_eq!(nodes, ["/dev/sda2", "/dev/sdb"]);
    }

    #[test]
    fn a_stack_without_a_bottom_ends() {
        let tree = Tree::new().link("/sys/devices/virtual/block/dm-0/slaves/dm-0", "../../dm-0");
        let mut found = Vec::new();
        assert_eq!(addresses(&tree.root(), "/sys/devices/virtual/block/dm-0", None, &mut found), Ok(()));
        assert_eq!(found, []);
    }

    #[test]
    fn a_loop_device_has_no_hardware() {
        let tree = Tree::new().folder("/sys/devices/virtual/block/loop0/slaves");
        let mut found = Vec::new();
        addresses(&tree.root(), "/sys/devices/virtual/block/loop0", None, &mut found).unwrap();
        addresses(&tree.root(), "/sys/devices/virtual/block/ram0", None, &mut found).unwrap();
        assert_eq!(found, []);
    }
}
