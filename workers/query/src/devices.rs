//! PCI devices and their drivers, for `guest-get-devices`.
//!
//! Runs in the query worker. qemu-ga has the command on Windows only; here sysfs tells the same.

use proto::Failed;
use proto::query::{Device, DeviceId, DeviceIdType};
use rustix::io::Errno;

use crate::failed;
use crate::root::{Root, base_name, text};

const FOLDER: &str = "/sys/bus/pci/devices";
/// More than a number or a version.
const ATTRIBUTE: usize = 256;

/// Every PCI device that a driver has, in the order of addresses.
///
/// # Errors
/// The folder is there and cannot be listed. Without PCI there are no devices.
pub(crate) fn devices(root: &Root) -> Result<Vec<Device>, Failed> {
    let folder = match root.folder(FOLDER) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(failed(format_args!("failed to list entries: {FOLDER}"), errno)),
    };
    let mut addresses = folder
        .entries(|name, _| (!name.starts_with('.')).then(|| name.to_owned()))
        .map_err(|errno| failed(format_args!("failed to list entries: {FOLDER}"), errno))?;
    addresses.sort_unstable();
    Ok(addresses.iter().filter_map(|address| device(root, &format!("{FOLDER}/{address}"))).collect())
}

/// None without a driver: there is nothing to say of it.
fn device(root: &Root, place: &str) -> Option<Device> {
    let driver = root.link(&format!("{place}/driver")).ok()?;
    let id = DeviceId {
        r#type: DeviceIdType::Pci,
        vendor_id: number(root, &format!("{place}/vendor"))?,
        device_id: number(root, &format!("{place}/device"))?,
    };
    Some(Device {
        driver_name: base_name(&driver).to_owned(),
        driver_version: line(root, &format!("{place}/driver/module/version")),
        id,
    })
}

fn number(root: &Root, path: &str) -> Option<u16> {
    u16::from_str_radix(line(root, path)?.strip_prefix("0x")?, 16).ok()
}

fn line(root: &Root, path: &str) -> Option<String> {
    let mut buffer = [0; ATTRIBUTE];
    let content = root.read(path, &mut buffer).ok()?;
    Some(text(content).trim_end().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn devices_stand_in_the_order_of_addresses_and_only_those_with_a_driver() {
        let tree = Tree::new()
            .file("/sys/bus/pci/devices/0000:00:03.0/vendor", "0x1af4\n")
            .file("/sys/bus/pci/devices/0000:00:03.0/device", "0x1003\n")
            .link("/sys/bus/pci/devices/0000:00:03.0/driver", "../../../bus/pci/drivers/virtio-pci")
            .file("/sys/bus/pci/devices/0000:00:01.1/vendor", "0x8086\n")
            .file("/sys/bus/pci/devices/0000:00:01.1/device", "0x7010\n")
            .link("/sys/bus/pci/devices/0000:00:01.1/driver", "../../drivers/ata_piix")
            .file("/sys/bus/pci/drivers/ata_piix/module/version", "2.13\n")
            .file("/sys/bus/pci/devices/0000:00:00.0/vendor", "0x8086\n")
            .file("/sys/bus/pci/devices/0000:00:00.0/device", "0x1237\n");
        let found = serde_json::to_value(devices(&tree.root()).unwrap()).unwrap();
        assert_eq!(
            found,
            serde_json::json!([
                { "driver-name": "ata_piix", "driver-version": "2.13", "id": { "type": "pci", "vendor-id": 32902, "device-id": 28688 } },
                { "driver-name": "virtio-pci", "id": { "type": "pci", "vendor-id": 6900, "device-id": 4099 } },
            ])
        );
    }

    #[test]
    fn a_guest_without_pci_has_no_devices() {
        assert_eq!(devices(&Tree::new().root()), Ok(Vec::new()));
    }
}
