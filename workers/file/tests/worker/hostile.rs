//! Trees that somebody changes while the worker walks them. These tests run as root only: an ordinary user's worker
//! has nothing that others in the tree do not have.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proto::file::{self, Reply, Request};

use crate::harness::{BASE, Worker, handle};

const ROUNDS: usize = 500;

/// Does `disturb` over and over while `work` runs.
fn beside(disturb: impl Fn() + Sync, work: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                disturb();
            }
        });
        // Also when `work` fails.
        let _stop = Stop(&stopped);
        work();
    });
}

fn exchange(one: &Path, other: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
}

#[test]
fn a_device_that_takes_a_files_place_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let (file, device) = (folder.path().join("file"), folder.path().join("device"));
    std::fs::write(&file, "").unwrap();
    mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o604), makedev(1, 3)).unwrap();
    let (mut changed, mut refused) = (0, 0);
    let begun = Instant::now();
    beside(
        || exchange(&file, &device).unwrap(),
        || {
            while changed < 50 || refused < 50 {
                let request = Request::Chmod(file::Chmod { path: "file".into(), perm: Some(0o640) });
                match worker.try_do(request) {
                    Ok(Reply::Chmod(true)) => changed += 1,
                    Err((text, Some(1))) if text == "chmod file: operation not permitted" => refused += 1,
                    other => panic!("{other:?}"),
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "changed {changed}, refused {refused}");
            }
        },
    );
    let (_, device) = match std::fs::metadata(&file).unwrap().is_file() {
        true => (file, device),
        false => (device, file),
    };
    assert_eq!(std::fs::metadata(device).unwrap().mode(), 0o020_604);
}

/// A folder that takes the place of the one just made does not become root's.
#[test]
fn only_what_the_worker_made_is_given_to_root() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(1000), Some(1000)).unwrap();
    let made = folder.path().join("made");
    let disturb = || {
        // As soon as it is there, theirs stands in its place for a while.
        if exchange(&made, &theirs).is_ok() {
            std::thread::sleep(Duration::from_micros(20));
            std::fs::remove_dir(&theirs).unwrap();
            std::fs::rename(&made, &theirs).unwrap();
        }
    };
    beside(disturb, || {
        for _ in 0..20 * ROUNDS {
            let request =
                Request::CreateDirectory(file::CreateDirectory { path: "made".into(), perm: 0o755 });
            match worker.try_do(request) {
                Ok(Reply::CreateDirectory(true)) => {}
                // It has gone again before it could be given to root.
                Err((text, Some(2))) => assert_eq!(text, "mkdir made: no such file or directory"),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(std::fs::metadata(&theirs).unwrap().uid(), 1000);
}

#[test]
fn a_file_made_while_others_make_and_remove_it_is_opened_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let path = folder.path().join("f");
    let disturb = || {
        let _ = std::fs::write(&path, "");
        let _ = std::fs::remove_file(&path);
    };
    beside(disturb, || {
        for _ in 0..ROUNDS {
            let open = Request::Open(file::Open { path: "f".into(), mode: Some("w".to_owned()) });
            match worker.ask(open, handle(1), &[]).0 {
                Ok(Reply::Open(1)) => worker.forget(1),
                // The one before is not forgotten yet, or the name never stood still.
                Err(failed) if matches!(failed.errno, Some(2 | 17)) => {}
                other => panic!("{other:?}"),
            }
            if let Ok(made) = std::fs::metadata(&path) {
                assert_ne!(made.uid(), BASE + 4);
            }
        }
    });
}

#[test]
fn a_listing_leaves_out_what_vanishes_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    std::fs::write(folder.path().join("stays"), "").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let disturb = || {
        for number in 0..50 {
            let _ = std::fs::write(folder.path().join(number.to_string()), "");
        }
        for number in 0..50 {
            let _ = std::fs::remove_file(folder.path().join(number.to_string()));
        }
    };
    beside(disturb, || {
        for _ in 0..ROUNDS {
            let request = Request::ListDirectory(file::ListDirectory { path: ".".into(), n: 0 });
            let Ok(Reply::ListDirectory(entries)) = worker.try_do(request) else { panic!("no listing") };
            assert!(entries.iter().any(|entry| entry.name == "stays"));
        }
    });
}
