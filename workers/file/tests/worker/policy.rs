//! Rules about paths, in trees that are made to get round them.
//!
//! The worker decides about what was really opened. What the kernel refuses on its own is shown where the policy would permit it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use authorize::{Conditions, Origin, Outcome, Pattern, Rule, RunAs, Terms};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use proto::file::{self, Reply, Request};
use proto::message::Detail;
use proto::{Group, Payload};
use tempfile::TempDir;

use crate::harness::{Worker, handle};

/// `allowed` and `forbidden`, side by side, in a folder whose path has no links.
struct Tree {
    _folder: TempDir,
    root: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["allowed", "forbidden"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), name).unwrap();
        }
        Tree { _folder: folder, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A rule about what is below a name of this tree.
    fn rule(&self, outcome: Outcome, groups: &[Group], pattern: &str) -> Rule {
        let paths = vec![Pattern::path(&self.text(pattern)).unwrap()];
        let when = Conditions { paths, ..Conditions::default() };
        let origin = Origin { place: "test".into(), line: 1 };
        Rule { groups: groups.to_vec(), when, ..Rule::new(outcome, origin) }
    }

    /// A worker that may do everything in `allowed`, and nothing else.
    fn worker(&self) -> Worker {
        Worker::under(&self.root, vec![self.rule(Outcome::Allow, BOTH, "allowed/**")])
    }
}

const BOTH: &[Group] = &[Group::FileRead, Group::FileWrite];

fn open(path: &str, mode: &str) -> Request {
    Request::Open(file::Open { path: path.into(), mode: Some(mode.to_owned()) })
}

/// What a read-open gives: the file's content, or why not.
fn content(worker: &mut Worker, path: &str) -> String {
    match worker.ask(open(path, "r"), handle(1), &[]).0 {
        Ok(_) => {}
        Err(failed) => return failed.text,
    }
    let read = Request::Read(file::Read { handle: 7, count: None });
    let (reply, bytes) = worker.ask(read, Detail { handle: 1, count: 100, ..Detail::default() }, &[]);
    reply.unwrap();
    worker.ask(Request::Close(file::OfHandle { handle: 7 }), handle(1), &[]).0.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_counts_is_where_a_path_leads_and_not_how_it_is_spelled() {
    let tree = Tree::new();
    symlink(tree.path("forbidden/file"), tree.path("allowed/absolute")).unwrap();
    symlink("../forbidden", tree.path("allowed/relative")).unwrap();
    symlink("../allowed/file", tree.path("forbidden/back")).unwrap();
    symlink("/proc/self/root", tree.path("allowed/magic")).unwrap();
    fs::write(tree.path("allowed/a\nb (deleted)"), "odd").unwrap();
    let mut worker = tree.worker();
    let (allowed, forbidden) = (tree.text("allowed"), tree.text("forbidden"));
    let denied = format!("denied: {forbidden}/file");
    for (path, wanted) in [
        (format!("{allowed}/file"), "allowed"),
        ("allowed/file".to_owned(), "allowed"),
        (format!("{allowed}/a\nb (deleted)"), "odd"),
        (format!("{forbidden}/back"), "allowed"),
        (format!("{allowed}/../allowed/./file"), "allowed"),
        (format!("{forbidden}/file"), &denied),
        ("forbidden/file".to_owned(), &denied),
        (format!("{allowed}/../forbidden/file"), &denied),
        (format!("{allowed}/absolute"), &denied),
        (format!("{allowed}/relative/file"), &denied),
    ] {
        assert_eq!(content(&mut worker, &path), wanted, "{path:?}");
    }
    let magic = content(&mut worker, &format!("{allowed}/magic/etc/hostname"));
    assert!(magic.ends_with("Too many levels of symbolic links"), "{magic}");
}

#[test]
fn whether_something_is_there_is_not_told_of_what_may_not_be_asked_for() {
    let tree = Tree::new();
    let mut worker = tree.worker();
    for (path, wanted) in [
        ("forbidden/nothing", format!("denied: {}", tree.text("forbidden/nothing"))),
        ("forbidden/file/below", format!("denied: {}", tree.text("forbidden/file/below"))),
        ("forbidden/no/thing", format!("denied: {}", tree.text("forbidden/no"))),
        ("allowed/../forbidden/nothing", format!("denied: {}", tree.text("forbidden/nothing"))),
        ("/nowhere/file", "denied: /nowhere".to_owned()),
        (
            "allowed/nothing",
            "failed to open file 'allowed/nothing' (mode: 'r'): No such file or directory".to_owned(),
        ),
        (
            "allowed/file/below",
            "failed to open file 'allowed/file/below' (mode: 'r'): Not a directory".to_owned(),
        ),
    ] {
        assert_eq!(content(&mut worker, path), wanted, "{path}");
    }
}

#[test]
fn nothing_is_changed_before_it_is_decided() {
    let tree = Tree::new();
    symlink("../forbidden/file", tree.path("allowed/link")).unwrap();
    symlink("../forbidden/new", tree.path("allowed/dangling")).unwrap();
    symlink("../forbidden", tree.path("allowed/folder")).unwrap();
    let mut worker = tree.worker();
    for (path, mode) in [
        ("forbidden/file", "w"),
        ("forbidden/file", "a+"),
        ("allowed/link", "w"),
        ("allowed/folder/file", "w+"),
        ("forbidden/new", "w"),
        ("allowed/folder/new", "a"),
        ("allowed/../forbidden/new", "w"),
    ] {
        let refused = worker.ask(open(path, mode), handle(1), &[]).0.unwrap_err();
        assert!(refused.text.starts_with("denied: "), "{path}: {}", refused.text);
    }
    let dangling = worker.ask(open("allowed/dangling", "w"), handle(1), &[]).0.unwrap_err();
    assert_eq!(dangling.errno, Some(2), "{}", dangling.text);
    for request in [
        Request::PhoenixOpen(file::PhoenixOpen {
            path: "allowed/link".into(),
            mode: "w".to_owned(),
            perm: 0o644,
            force: true,
        }),
        Request::Md5Sum(file::OfPath { path: "allowed/link".into() }),
        Request::Stat(file::OfPath { path: "forbidden/file".into() }),
        Request::Chmod(file::Chmod { path: "allowed/link".into(), perm: Some(0o777) }),
        Request::Chown(file::Chown { path: "allowed/link".into(), uid: -1, gid: -1 }),
        Request::ListDirectory(file::ListDirectory { path: "allowed/folder".into(), n: 0 }),
        Request::CreateDirectory(file::CreateDirectory { path: "forbidden/made".into(), perm: 0o755 }),
        Request::CreateDirectory(file::CreateDirectory { path: "allowed/folder/made".into(), perm: 0o755 }),
        Request::CreateDirectory(file::CreateDirectory { path: "forbidden".into(), perm: 0o755 }),
    ] {
        let shown = format!("{request:?}");
        let (text, _) = worker.try_do(request).unwrap_err();
        assert!(text.starts_with("denied: "), "{shown}: {text}");
    }
    assert_eq!(fs::read(tree.path("forbidden/file")).unwrap(), b"forbidden");
    assert_eq!(fs::metadata(tree.path("forbidden/file")).unwrap().mode() & 0o777, 0o644);
    let names: Vec<_> =
        fs::read_dir(tree.path("forbidden")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
}

#[test]
fn what_the_policy_permits_is_done() {
    let tree = Tree::new();
    let mut worker = tree.worker();
    worker.ask(open("allowed/new", "w"), handle(1), &[]).0.unwrap();
    worker.ask(open("allowed/file", "w"), handle(2), &[]).0.unwrap();
    assert_eq!(fs::metadata(tree.path("allowed/file")).unwrap().len(), 0);
    let make =
        Request::CreateDirectory(file::CreateDirectory { path: "allowed/a//b/c/".into(), perm: 0o750 });
    assert_eq!(worker.try_do(make), Ok(Reply::CreateDirectory(true)));
    assert_eq!(fs::metadata(tree.path("allowed/a/b/c")).unwrap().mode() & 0o777, 0o750);
    let chmod = Request::Chmod(file::Chmod { path: "allowed/a".into(), perm: Some(0o700) });
    assert_eq!(worker.try_do(chmod), Ok(Reply::Chmod(true)));
    let link = tree.path("allowed/link");
    symlink("/nowhere", link).unwrap();
    let stat = Request::Stat(file::OfPath { path: "allowed/link".into() });
    assert!(matches!(worker.try_do(stat), Ok(Reply::Stat(info)) if info.name == "link"));
    let list = Request::ListDirectory(file::ListDirectory { path: "allowed".into(), n: 0 });
    assert!(matches!(worker.try_do(list), Ok(Reply::ListDirectory(entries)) if entries.len() == 4));
}

/// A removed file has no path, and a file whose name only looks so has one.
#[test]
fn what_was_removed_is_nowhere() {
    let tree = Tree::new();
    fs::create_dir(tree.path("allowed/gone")).unwrap();
    fs::write(tree.path("allowed/gone/file"), "x").unwrap();
    let mut worker =
        Worker::under(&tree.path("allowed/gone"), vec![tree.rule(Outcome::Allow, BOTH, "allowed/**")]);
    assert_eq!(content(&mut worker, "file"), "x");
    fs::remove_dir_all(tree.path("allowed/gone")).unwrap();
    let refused = worker.ask(open(".", "r"), handle(1), &[]).0.unwrap_err();
    assert_eq!(refused.errno, Some(2), "{}", refused.text);
    let refused = worker.ask(open("new", "w"), handle(1), &[]).0.unwrap_err();
    assert_eq!(refused.errno, Some(2), "{}", refused.text);
}

/// A path is a name of a file, and a file with two names has two paths: whoever may link a file into a place that is allowed may
/// let it be read there.
#[test]
fn a_hard_link_is_decided_about_by_the_name_that_was_opened() {
    let tree = Tree::new();
    fs::hard_link(tree.path("forbidden/file"), tree.path("allowed/second")).unwrap();
    let mut worker = tree.worker();
    assert_eq!(content(&mut worker, "allowed/second"), "forbidden");
    assert_eq!(content(&mut worker, "forbidden/file"), format!("denied: {}", tree.text("forbidden/file")));
}

#[test]
fn what_was_opened_to_be_written_is_read_only_where_reading_is_permitted() {
    let tree = Tree::new();
    let rules = vec![
        tree.rule(Outcome::Allow, &[Group::FileWrite], "forbidden/**"),
        tree.rule(Outcome::Allow, BOTH, "allowed/**"),
        tree.rule(Outcome::Allow, &[Group::FileRead], "**"),
    ];
    let deny = tree.rule(Outcome::Deny, &[Group::FileRead], "forbidden/**");
    let rules = [vec![deny], rules].concat();
    let mut worker = Worker::under(&tree.root, rules);
    worker.ask(open("forbidden/file", "r+"), handle(1), &[]).0.unwrap();
    let read = || Request::Read(file::Read { handle: 7, count: None });
    let detail = Detail { handle: 1, count: 100, ..Detail::default() };
    let refused = worker.ask(read(), detail.clone(), &[]);
    assert_eq!(refused.0.unwrap_err().text, format!("denied: {}", tree.text("forbidden/file")));
    assert_eq!(refused.1, b"");
    let buf_b64 = Payload { present: true, length: 1, ..Payload::default() };
    let write = Request::Write(file::Write { handle: 7, buf_b64, count: None });
    worker.ask(write, handle(1), b"x").0.unwrap();
}

// ---------------------------------------------------------------- races

/// Somebody exchanges an allowed file and a link to a forbidden one all the time.
#[test]
fn whoever_renames_meanwhile_gets_nothing_forbidden_read_or_written() {
    const ROUNDS: usize = 4000;
    let tree = Tree::new();
    fs::write(tree.path("allowed/file"), "allowed").unwrap();
    symlink("../forbidden/file", tree.path("allowed/other")).unwrap();
    // And the folder itself with a link to the forbidden one.
    fs::create_dir(tree.path("allowed/folder")).unwrap();
    fs::write(tree.path("allowed/folder/file"), "allowed").unwrap();
    symlink("../forbidden", tree.path("allowed/way")).unwrap();
    let mut worker = tree.worker();
    let stopped = AtomicBool::new(false);
    let exchange = |one: &str, other: &str| {
        renameat2(AT_FDCWD, &tree.path(one), AT_FDCWD, &tree.path(other), RenameFlags::RENAME_EXCHANGE)
            .unwrap();
    };
    let (mut read, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                exchange("allowed/file", "allowed/other");
                exchange("allowed/folder", "allowed/way");
            }
        });
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stopped);
        for round in 0..ROUNDS {
            let path = if round % 2 == 0 { "allowed/file" } else { "allowed/folder/file" };
            match content(&mut worker, path).as_str() {
                "allowed" => read += 1,
                text if text.starts_with("denied: ") => refused += 1,
                text if text.ends_with("No such file or directory") => {}
                other => panic!("{other}"),
            }
            // Written, it is what it was; made anew, it is in the folder that is allowed.
            for (path, mode) in [(path, "r+"), ("allowed/folder/new", "w")] {
                match worker.ask(open(path, mode), handle(1), &[]).0 {
                    Ok(_) => {
                        let buf_b64 = Payload { present: true, length: 7, ..Payload::default() };
                        let write = Request::Write(file::Write { handle: 7, buf_b64, count: None });
                        worker.ask(write, handle(1), b"allowed").0.unwrap();
                        worker.ask(Request::Close(file::OfHandle { handle: 7 }), handle(1), &[]).0.unwrap();
                    }
                    // For a moment it may have been nowhere.
                    Err(failed) => {
                        assert!(
                            failed.text.starts_with("denied: ") || failed.errno == Some(2),
                            "{}",
                            failed.text
                        );
                    }
                }
            }
        }
    });
    assert_eq!(fs::read(tree.path("forbidden/file")).unwrap(), b"forbidden");
    assert_eq!(fs::read_dir(tree.path("forbidden")).unwrap().count(), 1);
    assert!(read > 0 && refused > 0, "read {read}, refused {refused}");
}

// ---------------------------------------------------------------- the kernel

/// The policy permits it, and the kernel does not know of it: the folder was made after the worker had started.
#[test]
fn landlock_refuses_by_itself_what_is_in_no_root() {
    let tree = Tree::new();
    let mut worker = Worker::under(
        &tree.root,
        vec![tree.rule(Outcome::Allow, BOTH, "allowed/**"), tree.rule(Outcome::Allow, BOTH, "later/on/**")],
    );
    fs::create_dir_all(tree.path("later/on")).unwrap();
    fs::write(tree.path("later/on/file"), "x").unwrap();
    let refused = worker.ask(open("later/on/file", "r"), handle(1), &[]).0.unwrap_err();
    assert_eq!(refused.errno, Some(13), "{}", refused.text);
    let refused = worker.ask(open("later/on/new", "w"), handle(1), &[]).0.unwrap_err();
    assert_eq!(refused.errno, Some(13), "{}", refused.text);
    assert_eq!(content(&mut worker, "allowed/file"), "allowed");
}

#[test]
fn a_file_that_may_be_made_can_be_made_and_its_neighbours_cannot() {
    let tree = Tree::new();
    let mut worker = Worker::under(&tree.root, vec![tree.rule(Outcome::Allow, BOTH, "forbidden/state")]);
    worker.ask(open("forbidden/state", "w"), handle(1), &[]).0.unwrap();
    assert!(tree.path("forbidden/state").exists());
    for (path, mode) in
        [("forbidden/file", "r"), ("forbidden/file", "w"), ("forbidden/stat", "w"), ("allowed/file", "r")]
    {
        let refused = worker.ask(open(path, mode), handle(2), &[]).0.unwrap_err();
        assert_eq!(refused.text, format!("denied: {}", tree.text(path)));
    }
}

/// A pattern through a link can match nothing, so it opens nothing either.
#[test]
fn a_root_that_is_a_link_opens_nothing() {
    let tree = Tree::new();
    symlink("forbidden", tree.path("link")).unwrap();
    let mut worker = Worker::under(&tree.root, vec![tree.rule(Outcome::Allow, BOTH, "link/**")]);
    assert_eq!(content(&mut worker, "link/file"), format!("denied: {}", tree.text("forbidden/file")));
}

// ---------------------------------------------------------------- limits

#[test]
fn the_worker_keeps_the_limits_of_the_rule_that_permits_the_open() {
    let tree = Tree::new();
    fs::write(tree.path("allowed/file"), "0123456789").unwrap();
    let limited = |terms: Terms, pattern: &str| Rule {
        terms: Some(Arc::new(terms)),
        ..tree.rule(Outcome::Allow, BOTH, pattern)
    };
    let terms =
        Terms { request_bytes: Some(4), handle_bytes: Some(10), open_files: Some(1), ..Terms::default() };
    let mut worker = Worker::under(
        &tree.root,
        vec![limited(terms, "allowed/**"), limited(Terms::default(), "forbidden/**")],
    );
    let (_, ahead) = worker.ask(open("allowed/file", "r+"), handle(1), &[]);
    assert_eq!(ahead, [0], "what is read ahead would count");
    let mut read = |count| {
        let request = Request::Read(file::Read { handle: 7, count: None });
        let (reply, bytes) = worker.ask(request, Detail { handle: 1, count, ..Detail::default() }, &[]);
        reply.map(|_| String::from_utf8(bytes).unwrap()).map_err(|failed| failed.text)
    };
    assert_eq!([read(3), read(9)], [Ok("012".to_owned()), Ok("3456".to_owned())]);
    let mut write = |bytes: &[u8]| {
        let buf_b64 = Payload { present: true, length: bytes.len() as u64, ..Payload::default() };
        let request = Request::Write(file::Write { handle: 7, buf_b64, count: None });
        worker.ask(request, handle(1), bytes).0.map_err(|failed| failed.text)
    };
    let text = "failed to write to file: Permission denied: the policy allows";
    assert_eq!(write(b"abcde"), Err(format!("{text} 4 bytes in one request")));
    assert_eq!(write(b"abcd"), Err(format!("{text} 10 bytes of one open file, and they are used up")));
    assert!(write(b"abc").is_ok());
    let full = worker.ask(open("allowed/file", "r"), handle(2), &[]).0.unwrap_err();
    let text =
        "failed to open file 'allowed/file' (mode: 'r'): Too many open files: the policy allows 1 at a time";
    assert_eq!((full.text.as_str(), full.errno), (text, Some(24)));
    worker.ask(open("forbidden/file", "r"), handle(3), &[]).0.unwrap();
    worker.ask(Request::Close(file::OfHandle { handle: 7 }), handle(1), &[]).0.unwrap();
    worker.ask(open("allowed/file", "r"), handle(2), &[]).0.unwrap();
}

// ---------------------------------------------------------------- mounts

/// A mount is where the administrator has mounted it: the same file elsewhere has another path.
#[test]
fn a_bind_mount_has_the_path_where_it_is_mounted() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let tree = Tree::new();
    fs::create_dir(tree.path("allowed/mounted")).unwrap();
    fs::create_dir(tree.path("forbidden/mounted")).unwrap();
    // The namespace is this thread's and its children's.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            const NONE: Option<&Path> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            let bind = |from: &str, to: &str| {
                mount(Some(&tree.path(from)), &tree.path(to), NONE, MsFlags::MS_BIND, NONE).unwrap();
            };
            bind("forbidden", "allowed/mounted");
            bind("allowed", "forbidden/mounted");
            let mut worker = tree.worker();
            assert_eq!(content(&mut worker, "allowed/mounted/file"), "forbidden");
            let there = tree.text("forbidden/mounted/file");
            assert_eq!(content(&mut worker, "forbidden/mounted/file"), format!("denied: {there}"));
        });
    });
}

/// A worker that makes what is below `allowed/theirs` for somebody else.
fn for_somebody_else(tree: &Tree) -> Worker {
    let terms = Terms { run_as: Some(RunAs { uid: 12_345, gid: 54_321 }), ..Terms::default() };
    let theirs =
        Rule { terms: Some(Arc::new(terms)), ..tree.rule(Outcome::Allow, BOTH, "allowed/theirs/**") };
    Worker::under(&tree.root, vec![theirs, tree.rule(Outcome::Allow, BOTH, "allowed/**")])
}

fn force(path: &str) -> Request {
    Request::PhoenixOpen(file::PhoenixOpen {
        path: path.into(),
        mode: "w".to_owned(),
        perm: 0o640,
        force: true,
    })
}

#[test]
fn what_is_made_belongs_to_the_user_of_its_rule_and_what_was_there_to_whom_it_did() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("LEFT OUT: only root's worker can give files away");
    }
    let tree = Tree::new();
    fs::create_dir(tree.path("allowed/theirs")).unwrap();
    fs::write(tree.path("allowed/theirs/old"), "old").unwrap();
    std::os::unix::fs::chown(tree.path("allowed/theirs/old"), Some(12), Some(34)).unwrap();
    let program = tree.path("allowed/theirs/program");
    fs::copy("/bin/sleep", &program).unwrap();
    symlink("../theirs/through", tree.path("allowed/dangling")).unwrap();
    let mut worker = for_somebody_else(&tree);
    let owner = |name: &str| {
        let made = fs::symlink_metadata(tree.path(name)).unwrap();
        (made.uid(), made.gid(), made.mode() & 0o7777)
    };

    worker.ask(open("allowed/theirs/new", "w"), handle(1), &[]).0.unwrap();
    assert_eq!(owner("allowed/theirs/new"), (12_345, 54_321, 0o644));
    worker.ask(open("allowed/new", "w"), handle(2), &[]).0.unwrap();
    assert_eq!(owner("allowed/new"), (0, 0, 0o644));

    worker.ask(open("allowed/theirs/old", "w"), handle(3), &[]).0.unwrap();
    assert_eq!(owner("allowed/theirs/old"), (12, 34, 0o644));
    let dangling = worker.ask(open("allowed/dangling", "w"), handle(4), &[]).0.unwrap_err();
    assert_eq!(dangling.errno, Some(2), "{}", dangling.text);

    let mut running = std::process::Command::new(&program).arg("60").spawn().unwrap();
    let forced = worker.ask(force("allowed/theirs/program"), handle(5), &[]).0;
    running.kill().unwrap();
    running.wait().unwrap();
    forced.unwrap();
    assert_eq!(owner("allowed/theirs/program"), (12_345, 54_321, 0o640));

    let make = file::CreateDirectory { path: "allowed/theirs/a/b".into(), perm: 0o750 };
    worker.try_do(Request::CreateDirectory(make)).unwrap();
    for name in ["allowed/theirs/a", "allowed/theirs/a/b"] {
        assert_eq!(owner(name), (12_345, 54_321, 0o750));
    }
    assert_eq!(
        (owner("allowed/theirs").0, owner("allowed").0),
        (0, 0),
        "folders that were there stay root's"
    );
}

#[test]
fn a_folder_that_hands_down_its_group_does_so_whoever_gets_what_is_made_there() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("LEFT OUT: only root's worker can give files away");
    }
    let tree = Tree::new();
    let folder = tree.path("allowed/theirs");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, None, Some(50)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o2755)).unwrap();
    let mut worker = for_somebody_else(&tree);
    worker.ask(open("allowed/theirs/new", "w"), handle(1), &[]).0.unwrap();
    let made = fs::metadata(tree.path("allowed/theirs/new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (12_345, 50));
}

#[test]
fn an_ordinary_users_worker_makes_nothing_for_somebody_else() {
    let tree = Tree::new();
    let folder = tree.path("allowed/theirs");
    fs::create_dir(&folder).unwrap();
    for path in [&tree.path("allowed"), &folder] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let terms = Terms { run_as: Some(RunAs { uid: 12_345, gid: 54_321 }), ..Terms::default() };
    let rule = Rule { terms: Some(Arc::new(terms)), ..tree.rule(Outcome::Allow, BOTH, "allowed/**") };
    let mut worker = Worker::of_a_user_under(&tree.root, vec![rule]);
    let refused = worker.ask(open("allowed/theirs/new", "w"), handle(1), &[]).0.unwrap_err();
    let why = "failed to set owner of new file 'allowed/theirs/new' (mode: 'w'): Operation not permitted";
    assert_eq!(refused.text, why);
    let make = file::CreateDirectory { path: "allowed/theirs/a".into(), perm: 0o750 };
    let (text, errno) = worker.try_do(Request::CreateDirectory(make)).unwrap_err();
    assert_eq!((text.as_str(), errno), ("mkdir allowed/theirs/a: operation not permitted", Some(1)));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
