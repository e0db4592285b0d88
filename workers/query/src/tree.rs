//! Made-up trees of files for tests.

use std::fs;
use std::os::unix::fs::symlink;

use crate::root::Root;

/// A folder that is removed with the value.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        Tree(tempfile::tempdir().expect("a folder for the test"))
    }

    fn place(&self, path: &str) -> std::path::PathBuf {
        let place = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().expect("below the root")).expect("folders");
        place
    }

    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.place(path), content).expect("a file");
        self
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.place(path)).expect("a link");
        self
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        fs::create_dir_all(self.place(path)).expect("a folder");
        self
    }

    pub(crate) fn root(&self) -> Root {
        Root::below(self.0.path())
    }
}
