//! Trees that somebody changes while the worker walks them. These tests run as root only: an ordinary user's worker
//! has nothing that others in the tree do not have.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proto::file::{self, Reply, Request};

use crate::harness::{BASE, Worker, handle};

const ROUNDS: usize = 500;

fn exchange(one: &Path, other: &Path) {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// Exchanges two names over and over while `work` runs.
fn while_exchanging(one: &Path, other: &Path, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange(one, other);
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_device_that_takes_a_files_place_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let (file, device) = (folder.path().join("file"), folder.path().join("device"));
    std::fs::write(&file, "").unwrap();
    mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o604), makedev(1, 3)).unwrap();
    let mut outcomes = (0, 0);
    while_exchanging(&file, &device, || {
        for _ in 0..ROUNDS {
            let request = Request::Chmod(file::Chmod { path: "file".into(), perm: Some(0o640) });
            match worker.try_do(request) {
                Ok(Reply::Chmod(true)) => outcomes.0 += 1,
                Err((text, Some(1))) => {
                    assert_eq!(text, "chmod file: operation not permitted");
                    outcomes.1 += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(outcomes.0 > 0 && outcomes.1 > 0, "nothing was exchanged in time: {outcomes:?}");
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
    let inode = std::fs::metadata(&theirs).unwrap().ino();
    let made = folder.path().join("made");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // As soon as it is there, theirs stands in its place.
                if renameat2(AT_FDCWD, &made, AT_FDCWD, &theirs, RenameFlags::RENAME_EXCHANGE).is_ok() {
                    let (ours, theirs) = if std::fs::metadata(&made).unwrap().ino() == inode {
                        (&theirs, &made)
                    } else {
                        (&made, &theirs)
                    };
                    assert_eq!(std::fs::metadata(theirs).unwrap().uid(), 1000);
                    std::fs::remove_dir(ours).unwrap();
                    if theirs == &made {
                        std::fs::rename(theirs, folder.path().join("theirs")).unwrap();
                    }
                }
            }
        });
        for _ in 0..ROUNDS {
            let request =
                Request::CreateDirectory(file::CreateDirectory { path: "made".into(), perm: 0o755 });
            match worker.try_do(request) {
                Ok(Reply::CreateDirectory(true)) => {}
                // It has gone again before it could be given to root.
                Err((text, Some(2))) => assert_eq!(text, "mkdir made: no such file or directory"),
                other => panic!("{other:?}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_file_made_while_others_make_and_remove_it_is_opened_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let path = folder.path().join("f");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = std::fs::write(&path, "");
                let _ = std::fs::remove_file(&path);
            }
        });
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
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_listing_leaves_out_what_vanishes_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    std::fs::write(folder.path().join("stays"), "").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for number in 0..50 {
                    let _ = std::fs::write(folder.path().join(number.to_string()), "");
                }
                for number in 0..50 {
                    let _ = std::fs::remove_file(folder.path().join(number.to_string()));
                }
            }
        });
        for _ in 0..ROUNDS {
            let request = Request::ListDirectory(file::ListDirectory { path: ".".into(), n: 0 });
            let Ok(Reply::ListDirectory(entries)) = worker.try_do(request) else { panic!("no listing") };
            assert!(entries.iter().any(|entry| entry.name == "stays"));
        }
        done.store(true, Ordering::Relaxed);
    });
}
