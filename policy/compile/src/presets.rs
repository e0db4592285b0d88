//! The policies that ship, by name.

/// Name and text of every preset.
pub const PRESETS: &[(&str, &str)] = &[
    ("qemu-ga", include_str!("../../presets/qemu-ga.toml")),
    ("observe", include_str!("../../presets/observe.toml")),
    ("freeze", include_str!("../../presets/freeze.toml")),
];

/// The text of the preset called `name`.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

pub(crate) fn unknown_preset(name: &str) -> String {
    let known: Vec<&str> = PRESETS.iter().map(|(known, _)| *known).collect();
    format!("there is no preset \"{name}\"; there are {}", known.join(", "))
}
