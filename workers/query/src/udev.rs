//! What udev found out about a block device: its database, `/run/udev/data`. Absent where udev does not run.

use crate::root::{Root, text};
use runtime::mountinfo::Device;

/// Properties of a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    /// `ID_SERIAL`
    pub(crate) serial: Option<String>,
    /// `DM_NAME`
    pub(crate) mapper_name: Option<String>,
    /// The device node, below `/dev`; older versions of udev wrote it down.
    pub(crate) node: Option<String>,
}

/// What is known about a block device.
pub(crate) fn properties(root: &Root, device: Device) -> Properties {
    // A file has some 1 to 3 KiB; our properties would have to stand behind hundreds of links to be missed.
    match root.read(&format!("/run/udev/data/b{device}"), &mut [0; 16 * 1024]) {
        Ok(content) => parse(content),
        Err(_) => Properties::default(),
    }
}

/// One line each: a letter, a colon, and for `E` a property; see systemd's `src/libsystemd/sd-device`.
fn parse(content: &[u8]) -> Properties {
    let mut found = Properties::default();
    for line in content.split(|byte| *byte == b'\n') {
        let value =
            |name: &str| line.strip_prefix(name.as_bytes()).filter(|value| !value.is_empty()).map(text);
        if let Some(serial) = value("E:ID_SERIAL=") {
            found.serial = Some(serial);
        } else if let Some(name) = value("E:DM_NAME=") {
            found.mapper_name = Some(name);
        } else if let Some(node) = value("N:") {
            found.node = Some(node);
        }
    }
    found
}

/// The device node of the block device that the kernel calls `name`: a slash is a `!` there.
pub(crate) fn node(properties: &mut Properties, name: &str) -> String {
    match properties.node.take() {
        Some(node) => format!("/dev/{node}"),
        None => format!("/dev/{}", name.replace('!', "/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_found_among_links_and_tags() {
        let content = b"S:disk/by-id/dm-name-vg-root\nS:mapper/vg-root\nI:1234567\nE:DM_NAME=vg-root\n\
            E:ID_SERIAL_SHORT=short\nE:ID_SERIAL=QEMU_HARDDISK_QM00001\nE:ID_FS_LABEL=\nG:systemd\nQ:systemd\nV:1\n";
        let expected = Properties {
            serial: Some("QEMU_HARDDISK_QM00001".to_owned()),
            mapper_name: Some("vg-root".to_owned()),
            node: None,
        };
        assert_eq!(parse(content), expected);
        assert_eq!(parse(b"E:ID_SERIAL=\nE:DM_NAME=\n"), Properties::default());
    }

    #[test]
    fn the_node_is_udevs_or_the_kernels() {
        assert_eq!(node(&mut Properties::default(), "cciss!c0d0p1"), "/dev/cciss/c0d0p1");
        assert_eq!(node(&mut parse(b"N:mapper/x\n"), "dm-0"), "/dev/mapper/x");
    }
}
