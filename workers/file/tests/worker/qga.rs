//! QEMU's dialect.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use proto::file::{self, Reply, Request};
use proto::message::Detail;
use proto::{Group, Payload};

use crate::harness::{BASE, Worker, handle};

fn open(path: &str, mode: &str) -> Request {
    Request::Open(file::Open { path: path.into(), mode: Some(mode.to_owned()) })
}

fn write(length: u64, count: Option<i64>) -> Request {
    let buf_b64 = Payload { present: true, length, ..Payload::default() };
    Request::Write(file::Write { handle: 7, buf_b64, count })
}

fn read(count: u32) -> (Request, Detail) {
    (Request::Read(file::Read { handle: 7, count: None }), Detail { handle: 1, count, ..Detail::default() })
}

#[test]
fn a_new_file_belongs_to_root_and_only_root_may_write_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let (reply, flag) = worker.ask(open("new", "w"), handle(1), &[]);
    assert_eq!((reply, flag), (Ok(Reply::Open(1)), vec![1]));
    let made = std::fs::metadata(folder.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode()), (0, 0, 0o100_644));
}

#[test]
fn a_new_file_in_a_set_gid_folder_keeps_the_folders_group() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    std::os::unix::fs::chown(folder.path(), None, Some(50)).unwrap();
    let set_gid = std::os::unix::fs::PermissionsExt::from_mode(0o2755);
    std::fs::set_permissions(folder.path(), set_gid).unwrap();
    worker.ask(open("new", "w"), handle(1), &[]).0.unwrap();
    let made = std::fs::metadata(folder.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 50));
}

#[test]
fn an_existing_file_keeps_owner_mode_and_group() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let path = folder.path().join("old");
    std::fs::write(&path, "old").unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    worker.ask(open("old", "w"), handle(1), &[]).0.unwrap();
    let old = std::fs::metadata(&path).unwrap();
    assert_eq!((old.uid(), old.gid(), old.mode(), old.len()), (12, 34, 0o100_600, 0));
}

#[test]
fn a_user_keeps_what_he_makes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("new", "w"), handle(1), &[]).0.unwrap();
    let made = std::fs::metadata(folder.path().join("new")).unwrap();
    assert_eq!(made.mode(), 0o100_644);
    assert_ne!(made.uid(), BASE + 4);
}

/// test-qga.c, `test_qga_file_ops` and `test_qga_file_write_read`.
#[test]
fn what_was_written_reads_back_after_a_seek() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("foo"), "").unwrap();
    std::fs::set_permissions(folder.path().join("foo"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("foo", "w+"), handle(1), &[]).0.unwrap();
    let done = worker.ask(write(14, None), handle(1), b"Hello World!\n\0").0;
    assert_eq!(done, Ok(Reply::Write(file::Written { count: 14, eof: false })));
    let (request, detail) = read(4096);
    let nothing = worker.ask(request.clone(), detail.clone(), &[]);
    assert_eq!(nothing, (Ok(Reply::Read(file::ReadDone { count: 0, eof: true })), vec![]));
    let seek = Request::Seek(file::Seek { handle: 7, offset: 6, whence: file::Whence(0) });
    let at = worker.ask(seek, handle(1), &[]).0;
    assert_eq!(at, Ok(Reply::Seek(file::Position { position: 6, eof: false })));
    let rest = worker.ask(request, detail, &[]);
    assert_eq!(rest, (Ok(Reply::Read(file::ReadDone { count: 8, eof: true })), b"World!\n\0".to_vec()));
}

#[test]
fn pieces_of_one_request_are_written_up_to_its_count() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("f", "w"), handle(1), &[]).0.unwrap();
    let piece = |offset| Detail { handle: 1, offset: Some(offset), ..Detail::default() };
    let counts = [(0, "abcd"), (4, "efgh"), (8, "ij")].map(|(offset, bytes)| {
        match worker.ask(write(10, Some(6)), piece(offset), bytes.as_bytes()).0 {
            Ok(Reply::Write(written)) => written.count,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(counts, [4, 2, 0]);
    worker.ask(Request::Close(file::OfHandle { handle: 7 }), handle(1), &[]).0.unwrap();
    assert_eq!(std::fs::read(folder.path().join("f")).unwrap(), b"abcdef");
}

#[test]
fn reading_ahead_leaves_the_position_and_a_write_says_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, "0123456789").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("f", "r+"), handle(1), &[]).0.unwrap();
    let (request, detail) = read(6);
    let ahead = Detail { offset: Some(2), ..detail };
    let got = worker.ask(request, ahead, &[]);
    assert_eq!(got, (Ok(Reply::Read(file::ReadDone { count: 6, eof: false })), b"234567".to_vec()));
    let detail = Detail { handle: 1, position: Some(4), ..Detail::default() };
    worker.ask(write(2, None), detail, b"XY").0.unwrap();
    worker.ask(Request::Flush(file::OfHandle { handle: 7 }), handle(1), &[]).0.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"0123XY6789");
}

/// qemu-ga keeps the handle after a failed close and aborts when it is used again.
#[test]
fn a_handle_is_gone_after_a_failed_close() {
    let mut worker = Worker::of_a_user(std::path::Path::new("/"));
    worker.ask(open("/dev/full", "w"), handle(1), &[]).0.unwrap();
    worker.ask(write(1, None), handle(1), b"x").0.unwrap();
    let close = Request::Close(file::OfHandle { handle: 7 });
    let failed = worker.ask(close.clone(), handle(1), &[]).0.unwrap_err();
    assert_eq!(failed.text, "failed to close handle: No space left on device");
    let failed = worker.ask(close, handle(1), &[]).0.unwrap_err();
    assert_eq!(failed.text, "handle '7' has not been found");
}

#[test]
fn what_is_forgotten_is_closed() {
    let mut worker = Worker::of_a_user(std::path::Path::new("/"));
    worker.ask(open("/dev/null", "r"), handle(1), &[]).0.unwrap();
    worker.forget(1);
    // Another thread may still be taking the message.
    let begun = Instant::now();
    while worker.ask(Request::Flush(file::OfHandle { handle: 7 }), handle(1), &[]).0.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn only_plain_storage_may_be_read_ahead() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "x").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o644))
        .unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    let flags =
        ["f", "fifo", ".", "/dev/null", "/proc/meminfo", "/sys/kernel/mm/transparent_hugepage/enabled"]
            .iter()
            .zip(1..)
            .map(|(path, number)| worker.ask(open(path, "r"), handle(number), &[]).1);
    assert_eq!(flags.collect::<Vec<_>>(), [[1], [0], [0], [0], [0], [0]]);
}

#[test]
fn a_fifo_without_a_writer_is_at_its_end_and_with_one_gives_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("fifo", "r"), handle(1), &[]).0.unwrap();
    let (request, detail) = read(4096);
    let end = worker.ask(request.clone(), detail.clone(), &[]);
    assert_eq!(end, (Ok(Reply::Read(file::ReadDone { count: 0, eof: true })), vec![]));
    let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut writer, b"abc").unwrap();
    let some = worker.ask(request.clone(), detail.clone(), &[]);
    assert_eq!(some, (Ok(Reply::Read(file::ReadDone { count: 3, eof: false })), b"abc".to_vec()));
    let failed = worker.ask(request, detail, &[]).0.unwrap_err();
    assert_eq!(failed.text, "failed to read file: Resource temporarily unavailable");
}

#[test]
fn links_may_be_followed_but_not_the_magic_ones_of_procfs() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
    link("/etc/hostname", "good");
    link("loop", "loop");
    link("/proc/self/fd/4", "sealed");
    link("/nowhere", "dangling");
    let mut worker = Worker::of_a_user(folder.path());
    let mut text = |path: &str, mode: &str| match worker.ask(open(path, mode), handle(1), &[]).0 {
        Ok(reply) => format!("{reply:?}"),
        Err(failed) => failed.text,
    };
    assert_eq!(text("good", "r"), "Open(1)");
    let prefix = "failed to open file";
    let levels = "Too many levels of symbolic links";
    assert_eq!(text("loop", "r"), format!("{prefix} 'loop' (mode: 'r'): {levels}"));
    assert_eq!(text("sealed", "r"), format!("{prefix} 'sealed' (mode: 'r'): {levels}"));
    assert_eq!(text("/proc/self/exe", "r"), format!("{prefix} '/proc/self/exe' (mode: 'r'): {levels}"));
    assert_eq!(text("dangling", "w"), format!("{prefix} 'dangling' (mode: 'w'): No such file or directory"));
}

/// Who writes into the worker's memory is the worker.
#[test]
fn a_processes_memory_cannot_be_opened_even_the_workers_own() {
    let Some(mut worker) = Worker::of_root(std::path::Path::new("/")) else { return };
    let mut text = |path: &str, mode: &str| worker.ask(open(path, mode), handle(1), &[]).0.unwrap_err().text;
    for (path, mode) in [("/proc/self/mem", "r+"), ("/proc/self/mem", "r"), ("/proc/thread-self/mem", "w")] {
        assert_eq!(
            text(path, mode),
            format!("failed to open file '{path}' (mode: '{mode}'): Permission denied")
        );
    }
}

#[test]
fn root_s_files_can_be_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "s").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    worker.ask(open("secret", "r+"), handle(1), &[]).0.unwrap();
    let failed = Worker::of_a_user(std::path::Path::new("/"))
        .ask(open(path.to_str().unwrap(), "r"), handle(1), &[])
        .0
        .unwrap_err();
    assert!(failed.text.ends_with(": Permission denied"), "{}", failed.text);
}

#[test]
fn the_jail_holds_what_the_table_says() {
    let Some(worker) = Worker::of_root(std::path::Path::new("/")) else { return };
    let value = |name: &str| {
        worker.confinement.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap()
    };
    // CAP_CHOWN 0, CAP_DAC_OVERRIDE 1, CAP_DAC_READ_SEARCH 2, CAP_FOWNER 3.
    assert_eq!(value("capabilities"), "000000000000000f");
    assert_eq!(value("uid"), (BASE + 4).to_string());
    assert_eq!(value("seccomp"), "filter");
    assert!(value("landlock").starts_with("full") || value("landlock").starts_with("partial"));
}

#[test]
fn a_policy_that_only_reads_leaves_one_capability_and_no_way_to_write() {
    let folder = tempfile::tempdir().unwrap();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut worker = Worker::start(folder.path(), BASE, None, &[Group::FileRead]);
    let capabilities = worker.confinement.iter().find(|(key, _)| key == "capabilities").unwrap().1.clone();
    assert_eq!(capabilities, "0000000000000004");
    worker.ask(open("/etc/shadow", "r"), handle(1), &[]).0.unwrap();
    let (rule, status) = worker.refuses(open("/etc/shadow", "r+"));
    assert_eq!(rule, "test, default");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn one_thousand_and_twenty_four_files_may_be_open_and_no_more() {
    let mut worker = Worker::of_a_user(std::path::Path::new("/"));
    for number in 1..=1024 {
        worker.ask(open("/dev/null", "r"), handle(number), &[]).0.unwrap();
    }
    let failed = worker.ask(open("/dev/null", "r"), handle(2000), &[]).0.unwrap_err();
    assert_eq!(failed.text, "failed to open file '/dev/null' (mode: 'r'): Too many open files");
}
