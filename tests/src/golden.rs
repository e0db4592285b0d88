//! Texts that are committed and must be equal to what a test finds: a right that changes shows up as a changed file.
//!
//! Runs in tests only. `UPDATE_GOLDEN=1` writes what was found.

use std::fs;
use std::path::{Path, PathBuf};

/// Compares with `tests/golden/NAME`.
///
/// # Panics
/// If they differ, with both lines of the first difference.
pub fn compare(name: &str, found: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let missing: Vec<&str> =
        committed.lines().filter(|line| !found.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> =
        found.lines().filter(|line| !committed.lines().any(|other| other == *line)).collect();
    assert!(
        committed == found,
        "{} differs (UPDATE_GOLDEN=1 writes it anew)\n  only in the file:\n    {}\n  only found:\n    {}",
        path.display(),
        missing.join("\n    "),
        new.join("\n    ")
    );
}
