//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder with the workspace's programs, built by this call if need be, in the profile of the test.
///
/// # Panics
/// If they cannot be built.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("a test knows where it is");
        let in_deps = own.parent().expect("it is in a folder");
        let folder =
            if in_deps.ends_with("deps") { in_deps.parent().expect("deps is in one") } else { in_deps };
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--workspace", "--bins", "--manifest-path"]).arg(manifest());
        // `cargo test --profile` is not known here; its folder is named after it.
        match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => {
                build.args(["--profile", profile]);
            }
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "the programs under test do not build");
        folder.to_owned()
    })
}

/// One program under test.
pub fn program(name: &str) -> PathBuf {
    folder().join(name)
}

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest() -> PathBuf {
    root().join("Cargo.toml")
}

/// qemu-ga itself, to compare with; `None` where it is not installed.
pub fn qemu_ga() -> Option<PathBuf> {
    ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// Whether a test that needs something which is not there must fail instead of being left out.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Says loudly that a test is left out, and fails where nothing may be.
///
/// # Panics
/// In CI.
pub fn left_out(why: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(!is_ci(), "{name}: {why}");
    eprintln!("LEFT OUT: {name}: {why}");
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
