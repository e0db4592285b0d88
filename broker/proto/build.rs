//! Derives the build id from the sources of the contract, so that equal sources give equal ids everywhere.

use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    for folder in ["src", "../pipe/src", "../../policy/authorize/src"] {
        collect(&here.join(folder), &mut files);
        println!("cargo::rerun-if-changed={}", here.join(folder).display());
    }
    files.sort();
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let mut hash = Fnv::default();
    hash.add(version.as_bytes());
    for file in files {
        hash.add(
            &std::fs::read(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display())),
        );
    }
    println!("cargo::rustc-env=PORTREEVE_BUILD_ID={version}-{:016x}", hash.0);
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// FNV-1a. It guards against mixing builds by accident, not against an attacker, who could simply lie.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
