//! Phoenix's dialect.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use proto::file::{self, Reply, Request};
use proto::message::Detail;
use proto::{Payload, Text};

use crate::harness::{Worker, handle};

fn open(path: &str, mode: &str, perm: i64) -> Request {
    open_forced(path, mode, perm, false)
}

fn open_forced(path: &str, mode: &str, perm: i64, force: bool) -> Request {
    Request::PhoenixOpen(file::PhoenixOpen { path: path.into(), mode: mode.to_owned(), perm, force })
}

fn write(length: u64, eof: bool) -> Request {
    let bufb64 = Payload { present: true, length, ..Payload::default() };
    Request::PhoenixWrite(file::PhoenixWrite { handle_id: 7, bufb64, eof })
}

fn read() -> Request {
    Request::PhoenixRead(file::PhoenixHandle { handle_id: 7 })
}

fn of(path: &str) -> file::OfPath {
    file::OfPath { path: path.into() }
}

fn chmod(path: &str, perm: Option<i64>) -> Request {
    Request::Chmod(file::Chmod { path: path.into(), perm })
}

fn chown(path: &str, uid: i64, gid: i64) -> Request {
    Request::Chown(file::Chown { path: path.into(), uid, gid })
}

fn mkdir(path: &str, perm: i64) -> Request {
    Request::CreateDirectory(file::CreateDirectory { path: path.into(), perm })
}

fn list(path: &str, n: i64) -> Request {
    Request::ListDirectory(file::ListDirectory { path: path.into(), n })
}

fn names(reply: Result<Reply, (String, Option<i32>)>) -> Vec<String> {
    let Ok(Reply::ListDirectory(entries)) = reply else { panic!("{reply:?}") };
    let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

fn error(text: &str, errno: i32) -> Result<Reply, (String, Option<i32>)> {
    Err((text.to_owned(), Some(errno)))
}

fn folder_for_all() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

#[test]
fn a_file_is_read_in_pieces_of_4096_and_closes_itself_at_its_end() {
    let folder = folder_for_all();
    std::fs::write(folder.path().join("f"), vec![b'x'; 5000]).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    let (reply, flag) = worker.ask(open("f", "junk", 0), handle(3), &[]);
    assert_eq!((reply, flag), (Ok(Reply::PhoenixOpen(3)), vec![1]));
    let mut piece = || {
        let (reply, bytes) = worker.ask(read(), handle(3), &[]);
        match reply {
            Ok(Reply::PhoenixRead(done)) => Ok((bytes.len(), done.eof)),
            Err(failed) => Err((failed.text, failed.errno)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(piece(), Ok((4096, false)));
    assert_eq!(piece(), Ok((904, false)));
    assert_eq!(piece(), Ok((0, true)));
    assert_eq!(piece(), Err(("Incorrect handle id".to_owned(), None)));
}

#[test]
fn a_folder_opens_but_does_not_read() {
    let mut worker = Worker::of_a_user(Path::new("/"));
    worker.ask(open("/etc", "r", 0), handle(3), &[]).0.unwrap();
    let failed = worker.ask(read(), handle(3), &[]).0.unwrap_err();
    assert_eq!((failed.text.as_str(), failed.errno), ("read /etc: is a directory", Some(21)));
}

#[test]
fn a_write_is_seen_at_once_and_the_last_one_is_written_before_the_close() {
    let folder = folder_for_all();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("f", "w", 0o600), handle(3), &[]).0.unwrap();
    assert_eq!(worker.ask(write(4, false), handle(3), b"one\n").0, Ok(Reply::PhoenixWrite(true)));
    assert_eq!(std::fs::read(folder.path().join("f")).unwrap(), b"one\n");
    assert_eq!(worker.ask(write(5, true), handle(3), b"LAST\n").0, Ok(Reply::PhoenixWrite(true)));
    assert_eq!(std::fs::read(folder.path().join("f")).unwrap(), b"one\nLAST\n");
    let failed = worker.ask(write(1, false), handle(3), b"x").0.unwrap_err();
    assert_eq!((failed.text.as_str(), failed.errno), ("Incorrect handle id", None));
}

#[test]
fn of_several_pieces_only_the_last_closes() {
    let folder = folder_for_all();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("f", "w", 0o600), handle(3), &[]).0.unwrap();
    let piece = |offset| Detail { handle: 3, offset: Some(offset), ..Detail::default() };
    worker.ask(write(6, true), piece(0), b"abc").0.unwrap();
    worker.ask(write(6, true), piece(3), b"def").0.unwrap();
    assert_eq!(std::fs::read(folder.path().join("f")).unwrap(), b"abcdef");
    assert!(worker.ask(write(6, true), piece(0), b"abc").0.is_err());
}

#[test]
fn the_end_of_what_was_open_for_reading_needs_no_right_to_write() {
    let mut worker = Worker::of_a_user(Path::new("/"));
    worker.ask(open("/etc/passwd", "r", 0), handle(3), &[]).0.unwrap();
    let failed = worker.ask(write(1, false), handle(3), b"x").0.unwrap_err();
    assert_eq!((failed.text.as_str(), failed.errno), ("write /etc/passwd: bad file descriptor", Some(9)));
    assert_eq!(worker.ask(write(0, true), handle(3), b"").0, Ok(Reply::PhoenixWrite(true)));
    let close = Request::PhoenixClose(file::PhoenixClose { handle_id: 7 });
    assert_eq!(worker.ask(close, handle(3), b"").0, Ok(Reply::PhoenixClose(true)));
}

#[test]
fn open_errors_read_like_gos() {
    let folder = folder_for_all();
    let path = |name: &str| format!("{}/{name}", folder.path().display());
    let mut worker = Worker::of_a_user(folder.path());
    let missing = path("missing");
    assert_eq!(
        worker.try_do(open(&missing, "a", 0)),
        error(&format!("open {missing}: no such file or directory"), 2)
    );
    assert_eq!(worker.try_do(open("", "r", 0)), error("open : no such file or directory", 2));
    assert_eq!(worker.try_do(open("/etc", "w", 0o644)), error("open /etc: is a directory", 21));
    assert_eq!(worker.try_do(open("a\0b", "r", 0)), error("open a\0b: invalid argument", 22));
    assert_eq!(worker.try_do(open("new", "w", -1)), error("open new: invalid argument", 22));
    let long = "x".repeat(5000);
    assert_eq!(worker.try_do(open(&long, "r", 0)), error(&format!("open {long}: file name too long"), 36));
}

#[test]
fn permissions_of_a_new_file_lose_the_umask() {
    let folder = folder_for_all();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    worker.ask(open("f", "w", 0o777), handle(3), &[]).0.unwrap();
    worker.ask(open("suid", "w", (1 << 23) | 0o777), handle(4), &[]).0.unwrap();
    let made = std::fs::metadata(folder.path().join("f")).unwrap();
    assert_eq!((made.mode(), made.uid(), made.gid()), (0o100_755, 0, 0));
    assert_eq!(std::fs::metadata(folder.path().join("suid")).unwrap().mode(), 0o104_755);
    assert_eq!(worker.try_do(open("sgid", "w", 0o2755)), error("open sgid: operation not permitted", 1));
    assert!(!folder.path().join("sgid").exists());
}

#[test]
fn a_running_program_is_replaced_only_by_force() {
    let folder = folder_for_all();
    let program = folder.path().join("sleep");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let mut running = std::process::Command::new(&program).arg("60").spawn().unwrap();
    let refused = worker.try_do(open("sleep", "w", 0o755));
    let forced = worker.try_do(open_forced("sleep", "w", 0o755, true));
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(refused, error("open sleep: text file busy", 26));
    assert_eq!(forced, Ok(Reply::PhoenixOpen(0)));
    assert_eq!(std::fs::metadata(program).unwrap().len(), 0);
}

#[test]
fn md5_is_lower_case_hexadecimal() {
    let folder = folder_for_all();
    std::fs::write(folder.path().join("a.txt"), "7.2\n").unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    let mut sum = |path: &str| worker.try_do(Request::Md5Sum(of(path)));
    let text = |text: &str| Ok(Reply::Md5Sum(text.to_owned()));
    assert_eq!(sum("a.txt"), text("35c59f284c90220635fb2e3696448900"));
    assert_eq!(sum("empty"), text("d41d8cd98f00b204e9800998ecf8427e"));
    assert_eq!(sum("missing"), error("open missing: no such file or directory", 2));
    assert_eq!(sum("/etc"), error("read /etc: is a directory", 21));
}

#[test]
fn chown_and_chmod_follow_links_and_do_what_they_say() {
    let folder = folder_for_all();
    let path = folder.path().join("f");
    std::fs::write(&path, "").unwrap();
    std::os::unix::fs::symlink("f", folder.path().join("link")).unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    let seen = || std::fs::metadata(&path).map(|file| (file.uid(), file.gid(), file.mode())).unwrap();
    assert_eq!(worker.try_do(chown("link", 1000, 100)), Ok(Reply::Chown(true)));
    assert_eq!(worker.try_do(chmod("link", Some(0o600))), Ok(Reply::Chmod(true)));
    assert_eq!(seen(), (1000, 100, 0o100_600));
    assert_eq!(worker.try_do(chown("f", -1, 5)), Ok(Reply::Chown(true)));
    assert_eq!(worker.try_do(chmod("f", Some((1 << 23) | 0o755))), Ok(Reply::Chmod(true)));
    assert_eq!(seen(), (1000, 5, 0o104_755));
    assert_eq!(worker.try_do(chmod(".", Some((1 << 20) | 0o777))), Ok(Reply::Chmod(true)));
    assert_eq!(std::fs::metadata(folder.path()).unwrap().mode(), 0o041_777);
}

#[test]
fn chown_and_chmod_refuse_what_they_cannot_do_as_asked() {
    let folder = folder_for_all();
    std::fs::write(folder.path().join("f"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    assert_eq!(worker.try_do(chmod("f", None)), error("chmod f: invalid argument", 22));
    assert_eq!(worker.try_do(chmod("f", Some(-1))), error("chmod f: invalid argument", 22));
    assert_eq!(worker.try_do(chmod("f", Some(0o2755))), error("chmod f: operation not permitted", 1));
    assert_eq!(
        worker.try_do(chmod("dangling", Some(0))),
        error("chmod dangling: no such file or directory", 2)
    );
    assert_eq!(worker.try_do(chmod("socket", Some(0))), error("chmod socket: operation not permitted", 1));
    assert_eq!(
        worker.try_do(chmod("/dev/null", Some(0o666))),
        error("chmod /dev/null: operation not permitted", 1)
    );
    assert_eq!(worker.try_do(chown("f", -2, 0)), error("chown f: invalid argument", 22));
    assert_eq!(worker.try_do(chown("f", 0, 5_000_000_000)), error("chown f: invalid argument", 22));
    assert_eq!(worker.try_do(chown("missing", 0, 0)), error("chown missing: no such file or directory", 2));
}

#[test]
fn a_user_may_change_what_is_his_even_if_he_may_only_write_to_it() {
    let folder = folder_for_all();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("f", "w", 0o200), handle(3), &[]).0.unwrap();
    assert_eq!(worker.try_do(chmod("f", Some(0o640))), Ok(Reply::Chmod(true)));
    assert_eq!(std::fs::metadata(folder.path().join("f")).unwrap().mode(), 0o100_640);
    assert_eq!(
        worker.try_do(chmod("/etc/passwd", Some(0o666))),
        error("chmod /etc/passwd: operation not permitted", 1)
    );
}

#[test]
fn stat_does_not_follow_links_and_names_the_last_part() {
    let folder = folder_for_all();
    std::fs::write(folder.path().join("f"), "12345").unwrap();
    std::os::unix::fs::symlink("f", folder.path().join("link")).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    let mut stat = |path: &str| match worker.try_do(Request::Stat(of(path)))? {
        Reply::Stat(info) => Ok((info.name, info.isdir, info.stat.mode, info.stat.size)),
        other => panic!("{other:?}"),
    };
    let mode = std::fs::metadata(folder.path().join("f")).unwrap().mode();
    assert_eq!(stat("f"), Ok(("f".to_owned(), false, mode, 5)));
    assert_eq!(stat("./link"), Ok(("link".to_owned(), false, 0o120_777, 1)));
    assert_eq!(stat("/proc/self/exe").map(|info| info.0), Ok("exe".to_owned()));
    assert_eq!(stat("/").map(|info| (info.0, info.1)), Ok(("/".to_owned(), true)));
    assert_eq!(stat("f/x"), Err(("lstat f/x: not a directory".to_owned(), Some(20))));
    assert_eq!(stat(""), Err(("lstat : no such file or directory".to_owned(), Some(2))));
}

#[test]
fn stat_shows_the_numbers_of_the_system() {
    let Reply::Stat(info) =
        Worker::of_a_user(Path::new("/")).try_do(Request::Stat(of("/etc/passwd"))).unwrap()
    else {
        panic!("no stat")
    };
    let std = std::fs::symlink_metadata("/etc/passwd").unwrap();
    let expected = file::StatInfo {
        name: "passwd".to_owned(),
        isdir: false,
        stat: file::Stat {
            dev: std.dev(),
            ino: std.ino(),
            nlink: std.nlink(),
            mode: std.mode(),
            uid: std.uid(),
            gid: std.gid(),
            pad0: 0,
            rdev: std.rdev(),
            size: std.len().cast_signed(),
            blksize: std.blksize().cast_signed(),
            blocks: std.blocks().cast_signed(),
            atim: file::Time { sec: std.atime(), nsec: std.atime_nsec() },
            mtim: file::Time { sec: std.mtime(), nsec: std.mtime_nsec() },
            ctim: file::Time { sec: std.ctime(), nsec: std.ctime_nsec() },
            unused: [0; 3],
        },
    };
    assert_eq!(*info, expected);
}

#[test]
fn missing_parents_are_made_with_the_same_permissions_and_belong_to_root() {
    let folder = folder_for_all();
    let Some(mut worker) = Worker::of_root(folder.path()) else { return };
    assert_eq!(worker.try_do(mkdir("p//q/r/", 0o700)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("all", 0o777)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("sticky", (1 << 20) | 0o777)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("none/of/it", 0)), Ok(Reply::CreateDirectory(true)));
    let made = ["p", "p/q", "p/q/r", "all", "sticky", "none"].map(|name| {
        let made = std::fs::metadata(folder.path().join(name)).unwrap();
        (made.mode(), made.uid(), made.gid())
    });
    let modes = [0o040_700, 0o040_700, 0o040_700, 0o040_755, 0o041_755, 0o040_000];
    assert_eq!(made, modes.map(|mode| (mode, 0, 0)));
}

#[test]
fn an_existing_folder_is_made_already_and_a_file_is_in_the_way() {
    let folder = folder_for_all();
    std::fs::write(folder.path().join("f"), "").unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    std::os::unix::fs::symlink("d", folder.path().join("link")).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    assert_eq!(worker.try_do(mkdir("d", 0o700)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("link", 0o700)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("/", 0o700)), Ok(Reply::CreateDirectory(true)));
    assert_eq!(worker.try_do(mkdir("f", 0o700)), error("mkdir f: not a directory", 20));
    assert_eq!(worker.try_do(mkdir("f/x", 0o700)), error("mkdir f: not a directory", 20));
    assert_eq!(worker.try_do(mkdir("", 0o700)), error("mkdir : no such file or directory", 2));
    assert_eq!(worker.try_do(mkdir("/proc/x", 0o700)), error("mkdir /proc/x: no such file or directory", 2));
    assert_eq!(worker.try_do(mkdir("x", -1)), error("mkdir x: invalid argument", 22));
}

#[test]
fn a_folder_is_listed_without_itself_and_its_parent() {
    let folder = folder_for_all();
    let inside = folder.path().join("d");
    std::fs::create_dir(&inside).unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::write(inside.join("q\"u"), "").unwrap();
    std::fs::create_dir(inside.join("sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", inside.join("link")).unwrap();
    std::fs::write(inside.join(std::os::unix::ffi::OsStrExt::from_bytes(b"\xff") as &std::ffi::OsStr), "")
        .unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    assert_eq!(names(worker.try_do(list("d", 0))), ["link", "q\"u", "sub", "\u{fffd}"]);
    assert_eq!(names(worker.try_do(list("d", -1))).len(), 4);
    assert_eq!(names(worker.try_do(list("d", 2))).len(), 2);
    assert_eq!(names(worker.try_do(list("d", 100))).len(), 4);
    assert_eq!(names(worker.try_do(list("empty", 0))), Vec::<String>::new());
    assert_eq!(names(worker.try_do(list("empty", 5))), Vec::<String>::new());
    assert_eq!(worker.try_do(list("missing", 0)), error("open missing: no such file or directory", 2));
    assert_eq!(worker.try_do(list("/etc/passwd", 0)), error("readdirent /etc/passwd: not a directory", 20));
}

#[test]
fn a_listing_that_fits_no_message_is_an_error_and_the_worker_lives() {
    let folder = folder_for_all();
    // 16 MiB of entries, each with a name of 250 bytes.
    for number in 0..41_000 {
        std::fs::write(folder.path().join(format!("{number:0250}")), "").unwrap();
    }
    let mut worker = Worker::of_a_user(folder.path());
    assert_eq!(worker.try_do(list(".", 0)), error("readdirent .: message too long", 90));
    assert_eq!(names(worker.try_do(list(".", 10))).len(), 10);
}

#[test]
fn stuck_fifos_do_not_delay_others() {
    let folder = folder_for_all();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let mut worker = Worker::of_a_user(folder.path());
    for number in 1..=5 {
        nix::unistd::mkfifo(&folder.path().join(number.to_string()), mode).unwrap();
        worker.ask(open(&number.to_string(), "r", 0), handle(number), &[]).0.unwrap();
    }
    let begun = Instant::now();
    let stuck: Vec<u64> = (1..=5).map(|number| worker.send(read(), handle(number), 1500, &[])).collect();
    // Three wait; the others find that three wait already.
    let refused = [worker.next_answer(), worker.next_answer()];
    for (id, (result, _)) in &refused {
        assert!(stuck.contains(id));
        let text = result.as_ref().unwrap_err().text.clone();
        assert!(text.ends_with(": resource temporarily unavailable"), "{text}");
    }
    assert!(matches!(worker.try_do(Request::Stat(of("/"))), Ok(Reply::Stat(_))));
    assert!(begun.elapsed() < Duration::from_millis(1000), "{:?}", begun.elapsed());
    // The deadline ends the wait.
    for _ in 0..3 {
        let (_, (result, _)) = worker.next_answer();
        assert_eq!(result.unwrap_err().errno, Some(11));
    }
    assert!(begun.elapsed() >= Duration::from_millis(1300));
}

#[test]
fn a_fifo_is_read_when_its_writer_comes_and_ends_when_he_goes() {
    let folder = folder_for_all();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let mut worker = Worker::of_a_user(folder.path());
    worker.ask(open("fifo", "r", 0), handle(3), &[]).0.unwrap();
    worker.send(read(), handle(3), 5000, &[]);
    std::thread::sleep(Duration::from_millis(100));
    std::fs::write(&path, "data").unwrap();
    let (_, (reply, bytes)) = worker.next_answer();
    assert_eq!(
        (reply, bytes),
        (Ok(Reply::PhoenixRead(file::PhoenixReadDone { eof: false })), b"data".to_vec())
    );
    let (reply, bytes) = worker.ask(read(), handle(3), &[]);
    assert_eq!((reply, bytes), (Ok(Reply::PhoenixRead(file::PhoenixReadDone { eof: true })), vec![]));
}

#[test]
fn handles_of_the_other_dialect_are_unknown() {
    let mut worker = Worker::of_a_user(Path::new("/"));
    worker.ask(open("/dev/null", "w", 0), handle(3), &[]).0.unwrap();
    let flush = Request::Flush(file::OfHandle { handle: 7 });
    assert_eq!(worker.ask(flush, handle(3), &[]).0.unwrap_err().text, "handle '7' has not been found");
    let stream = Request::Open(file::Open { path: Text::from("/dev/null"), mode: None });
    worker.ask(stream, handle(4), &[]).0.unwrap();
    assert_eq!(worker.ask(read(), handle(4), &[]).0.unwrap_err().text, "Incorrect handle id");
    let close = Request::PhoenixClose(file::PhoenixClose { handle_id: 7 });
    assert_eq!(worker.ask(close, handle(4), &[]).0, Ok(Reply::PhoenixClose(true)));
    assert!(worker.ask(Request::Flush(file::OfHandle { handle: 7 }), handle(4), &[]).0.is_ok());
}
