//! The policies that ship, by name.

use crate::closest;

/// Name and text of every preset.
pub const PRESETS: &[(&str, &str)] = &[
    ("qemu-ga", include_str!("../../presets/qemu-ga.toml")),
    ("rhel", include_str!("../../presets/rhel.toml")),
    ("kubevirt", include_str!("../../presets/kubevirt.toml")),
    ("proxmox", include_str!("../../presets/proxmox.toml")),
    ("proxmox-audit", include_str!("../../presets/proxmox-audit.toml")),
    ("proxmox-file-read", include_str!("../../presets/proxmox-file-read.toml")),
    ("proxmox-file-write", include_str!("../../presets/proxmox-file-write.toml")),
    ("proxmox-file-system-mgmt", include_str!("../../presets/proxmox-file-system-mgmt.toml")),
    ("proxmox-unrestricted", include_str!("../../presets/proxmox-unrestricted.toml")),
    ("ovirt", include_str!("../../presets/ovirt.toml")),
    ("ansible", include_str!("../../presets/ansible.toml")),
    ("observe", include_str!("../../presets/observe.toml")),
    ("freeze", include_str!("../../presets/freeze.toml")),
    ("minimal", include_str!("../../presets/minimal.toml")),
    ("confidential", include_str!("../../presets/confidential.toml")),
];

/// The text of the preset called `name`.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

pub(crate) fn unknown_preset(name: &str) -> String {
    let known: Vec<&str> = PRESETS.iter().map(|(known, _)| *known).collect();
    let meant = match closest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean \"{meant}\"? "),
        None => String::new(),
    };
    format!("there is no preset \"{name}\"; {meant}there are {}", known.join(", "))
}
