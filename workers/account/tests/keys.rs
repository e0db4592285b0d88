//! The child that works on keys, in its real jail, in homes made up for it. As root it becomes a user whom no file of this machine
//! names; as an ordinary user it stays that user.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use jail::User;
use nix::sys::stat::Mode;
use proto::account::{AddKeys, OfUser, RemoveKeys, Reply, Request};
use proto::{Failed, Text};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

/// Nobody's, and above those of containers.
const UID: u32 = 1_999_000_001;
const GID: u32 = 1_999_000_002;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A user with a home, and beside it what is not theirs.
struct Scratch {
    folder: tempfile::TempDir,
    user: User,
}

impl Scratch {
    fn new() -> Self {
        let (uid, gid) = if is_root() {
            (UID, GID)
        } else {
            (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
        };
        Self::of(uid, gid)
    }

    fn of(uid: u32, gid: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("portreeve-keys-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
        Scratch { folder, user: User { uid, gid, groups: vec![], home } }
    }

    fn ssh(&self) -> PathBuf {
        self.user.home.join(".ssh")
    }

    fn path(&self) -> PathBuf {
        self.ssh().join("authorized_keys")
    }

    fn own(&self, path: &Path, mode: u32) {
        std::os::unix::fs::lchown(path, Some(self.user.uid), Some(self.user.gid)).unwrap();
        if !path.is_symlink() {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }

    fn with_folder(self) -> Self {
        fs::create_dir(self.ssh()).unwrap();
        self.own(&self.ssh(), 0o700);
        self
    }

    fn with(self, content: &str) -> Self {
        let scratch = self.with_folder();
        fs::write(scratch.path(), content).unwrap();
        scratch.own(&scratch.path(), 0o600);
        scratch
    }

    /// A file of somebody else's, which only they can read.
    fn foreign(&self) -> PathBuf {
        let path = self.folder.path().join("foreign");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(if is_root() { 0o600 } else { 0o000 })).unwrap();
        path
    }

    fn content(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn ask(&self, request: &Request) -> Result<Reply, Failed> {
        let output = run(&self.user.arguments(), &pipe::encode_head(request).unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pipe::decode_head(&output.stdout).unwrap()
    }

    fn get(&self) -> Result<Vec<String>, String> {
        match self.ask(&Request::GetKeys(OfUser { username: "u".into() })) {
            Ok(Reply::GetKeys(keys)) => Ok(keys.keys),
            Ok(other) => panic!("{other:?}"),
            Err(failed) => Err(failed.text),
        }
    }

    fn add(&self, keys: &[&str], reset: Option<bool>) -> Result<(), String> {
        let request = Request::AddKeys(AddKeys { username: "u".into(), keys: texts(keys), reset });
        self.ask(&request).map(drop).map_err(|failed| failed.text)
    }

    fn remove(&self, keys: &[&str]) -> Result<(), String> {
        let request = Request::RemoveKeys(RemoveKeys { username: "u".into(), keys: texts(keys) });
        self.ask(&request).map(drop).map_err(|failed| failed.text)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.ssh())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn texts(keys: &[&str]) -> Vec<Text> {
    keys.iter().map(|key| Text::from(*key)).collect()
}

fn run(arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portreeve-account"))
        .arg0("portreeve-keys")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn the_first_key_makes_the_directory_and_the_file_as_their_owner_would() {
    let scratch = Scratch::new();
    scratch.add(&["algo key2 comments"], None).unwrap();
    let User { uid, gid, .. } = scratch.user;
    assert_eq!(scratch.content(), "algo key2 comments");
    assert_eq!(mode_and_owner(&scratch.ssh()), (0o700, uid, gid));
    assert_eq!(mode_and_owner(&scratch.path()), (0o600, uid, gid));
    scratch.add(&["algo key1 comments", "algo key2 comments"], Some(false)).unwrap();
    assert_eq!(scratch.content(), "algo key2 comments\nalgo key1 comments");
    assert_eq!(scratch.get().unwrap(), ["algo key1 comments", "algo key2 comments"]);
    assert_eq!(scratch.names(), ["authorized_keys"]);
}

#[test]
fn reset_leaves_only_what_is_given() {
    let scratch = Scratch::new().with("# c\nalgo key1\nalgo key2\n");
    scratch.add(&["algo key2"], Some(true)).unwrap();
    assert_eq!(scratch.content(), "algo key2");
    scratch.add(&[], Some(true)).unwrap();
    assert_eq!(scratch.content(), "");
    assert_eq!(scratch.get().unwrap(), Vec::<String>::new());
}

#[test]
fn removing_keeps_comments_and_needs_no_file() {
    let scratch = Scratch::new().with("algo key1\n# a commented line\nalgo some-key another\nalgo key2\n");
    scratch.remove(&["algo key1", "algo key2", "algo absent"]).unwrap();
    assert_eq!(scratch.content(), "# a commented line\nalgo some-key another\n");
    let empty = Scratch::new();
    empty.remove(&["algo key1"]).unwrap();
    assert!(!empty.ssh().exists());
}

#[test]
fn a_file_that_is_not_there_fails_in_qemu_gas_words() {
    for scratch in [Scratch::new(), Scratch::new().with_folder()] {
        let path = scratch.path().display().to_string();
        let wanted =
            format!("failed to read '{path}': Failed to open file “{path}”: No such file or directory");
        assert_eq!(scratch.get(), Err(wanted));
    }
}

#[test]
fn a_home_that_does_not_exist_fails_in_qemu_gas_words() {
    let scratch = Scratch::new();
    fs::remove_dir(&scratch.user.home).unwrap();
    let ssh = scratch.ssh().display().to_string();
    let wanted = format!("failed to create directory '{ssh}': No such file or directory");
    assert_eq!(scratch.add(&["k"], None), Err(wanted));
    assert_eq!(scratch.remove(&["k"]), Ok(()));
    assert!(scratch.get().unwrap_err().ends_with("No such file or directory"));
}

#[test]
fn modes_of_an_old_file_are_made_right() {
    let scratch = Scratch::new().with("old");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o644)).unwrap();
    scratch.add(&["new"], None).unwrap();
    assert_eq!(mode_and_owner(&scratch.path()).0, 0o600);
    assert_eq!(scratch.content(), "old\nnew");
}

#[test]
fn a_group_that_the_directory_would_give_is_not_the_files() {
    if !is_root() {
        return eprintln!("LEFT OUT: needs root");
    }
    let scratch = Scratch::new().with("old");
    chown(scratch.ssh(), None, Some(GID + 1)).unwrap();
    fs::set_permissions(scratch.ssh(), Permissions::from_mode(0o2700)).unwrap();
    scratch.add(&["new"], None).unwrap();
    assert_eq!(mode_and_owner(&scratch.path()), (0o600, UID, GID));
}

/// Where there is no SELinux, labels are root's to set: the child tries, says so, and goes on.
#[test]
fn a_label_that_cannot_be_kept_is_told_and_keys_are_added_all_the_same() {
    let scratch = Scratch::new().with("old");
    let label = b"system_u:object_r:ssh_home_t:s0\0";
    if rustix::fs::setxattr(scratch.path(), "security.selinux", label, XattrFlags::empty()).is_err() {
        return eprintln!("LEFT OUT: needs root and a filesystem with labels");
    }
    let request = Request::AddKeys(AddKeys { username: "u".into(), keys: texts(&["new"]), reset: None });
    let output = run(&scratch.user.arguments(), &pipe::encode_head(&request).unwrap());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(scratch.content(), "old\nnew");
    let mut kept = [0; 64];
    match rustix::fs::getxattr(scratch.path(), "security.selinux", &mut kept[..]) {
        Ok(length) => assert_eq!(kept.get(..length), Some(&label[..])),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let wanted = "keys: the SELinux label system_u:object_r:ssh_home_t:s0 was not kept: ";
            assert!(said.starts_with(wanted), "{said}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Homes that mean harm.

#[test]
fn a_directory_that_is_a_link_is_not_followed() {
    let scratch = Scratch::new();
    let elsewhere = scratch.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("authorized_keys"), "theirs").unwrap();
    scratch.own(&elsewhere, 0o777);
    symlink(&elsewhere, scratch.ssh()).unwrap();
    let ssh = scratch.ssh().display().to_string();
    let wanted =
        format!("'{ssh}' is a symbolic link, and none is followed in a home: replace it by what it leads to");
    for failed in [
        scratch.get().unwrap_err(),
        scratch.add(&["k"], Some(true)).unwrap_err(),
        scratch.remove(&["theirs"]).unwrap_err(),
    ] {
        assert!(failed.ends_with(&wanted), "{failed}");
    }
    assert_eq!(fs::read_to_string(elsewhere.join("authorized_keys")).unwrap(), "theirs");
}

#[test]
fn a_file_that_is_a_link_is_neither_read_nor_replaced() {
    for target in ["foreign", "home/own", "nothing"] {
        let scratch = Scratch::new().with_folder();
        scratch.foreign();
        fs::write(scratch.user.home.join("own"), "own").unwrap();
        symlink(scratch.folder.path().join(target), scratch.path()).unwrap();
        for failed in [
            scratch.get().unwrap_err(),
            scratch.add(&["k"], None).unwrap_err(),
            scratch.add(&["k"], Some(true)).unwrap_err(),
        ] {
            assert!(failed.contains("is a symbolic link, and none is followed"), "{target}: {failed}");
            assert!(!failed.contains("secret"));
        }
        assert!(scratch.path().is_symlink());
    }
}

#[test]
fn a_fifo_and_a_directory_are_refused_at_once() {
    let scratch = Scratch::new().with_folder();
    nix::unistd::mkfifo(&scratch.path(), Mode::S_IRWXU).unwrap();
    scratch.own(&scratch.path(), 0o600);
    assert!(scratch.get().unwrap_err().ends_with("it is not a regular file"));
    assert!(scratch.add(&["k"], None).unwrap_err().ends_with("it is not a regular file"));
    fs::remove_file(scratch.path()).unwrap();
    fs::create_dir(scratch.path()).unwrap();
    scratch.own(&scratch.path(), 0o700);
    assert!(scratch.add(&["k"], None).unwrap_err().ends_with("it is not a regular file"));
}

#[test]
fn a_hard_link_to_somebody_elses_file_gives_nothing_away_and_changes_nothing() {
    let scratch = Scratch::new().with_folder();
    let foreign = scratch.foreign();
    fs::hard_link(&foreign, scratch.path()).unwrap();
    for failed in [scratch.get().unwrap_err(), scratch.add(&["k"], None).unwrap_err()] {
        assert!(failed.ends_with("Permission denied"), "{failed}");
    }
    fs::set_permissions(&foreign, Permissions::from_mode(0o644)).unwrap();
    scratch.add(&["k"], None).unwrap();
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "secret");
    assert_eq!(scratch.content(), "secret\nk");
    assert_ne!(fs::metadata(&foreign).unwrap().ino(), fs::metadata(scratch.path()).unwrap().ino());
}

#[test]
fn somebody_elses_home_is_not_entered() {
    if !is_root() {
        return eprintln!("LEFT OUT: needs root");
    }
    let mut scratch = Scratch::new().with("theirs");
    scratch.user.uid = UID + 7;
    scratch.user.gid = GID + 7;
    assert!(scratch.get().unwrap_err().contains("Permission denied"));
    assert!(scratch.add(&["k"], Some(true)).unwrap_err().contains("Permission denied"));
    assert_eq!(scratch.content(), "theirs");
}

#[test]
fn root_in_its_own_home_needs_no_capability() {
    if !is_root() {
        return eprintln!("LEFT OUT: needs root");
    }
    let scratch = Scratch::of(0, 0);
    scratch.add(&["k"], None).unwrap();
    assert_eq!(mode_and_owner(&scratch.path()), (0o600, 0, 0));
    // The home of another, which root without capabilities cannot enter.
    let mut other = Scratch::new().with("theirs");
    (other.user.uid, other.user.gid) = (0, 0);
    assert!(other.get().unwrap_err().contains("Permission denied"));
}

/// Stops others at its end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_home_that_changes_all_the_time_is_never_left_and_no_reader_sees_half_a_file() {
    let scratch = Scratch::new().with("old\n");
    let elsewhere = scratch.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    scratch.own(&elsewhere, 0o777);
    let link = scratch.user.home.join("link");
    symlink(&elsewhere, &link).unwrap();
    let long = format!("algo {}", "x".repeat(200_000));
    let stop = AtomicBool::new(false);
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (flags, place) = (RenameFlags::EXCHANGE, scratch.ssh());
                renameat_with(CWD, &place, CWD, &link, flags).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(content) = fs::read_to_string(scratch.path()) {
                    let whole = [format!("old\n\n{long}"), "old\n".to_owned(), String::new(), long.clone()];
                    assert!(whole.contains(&content), "{} bytes", content.len());
                }
            }
        });
        // Also when a test fails in here.
        let _stop = Stop(&stop);
        for _ in 0..40 {
            results.extend([scratch.add(&[&long], None), scratch.add(&[], Some(true))]);
        }
    });
    assert!(results.iter().any(Result::is_ok), "there was a link each time");
    for failed in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(failed.contains("is a symbolic link"), "{failed}");
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "something was made behind the link");
}

// ---------------------------------------------------------------------------------------------------------------------
// Limits, and a parent that means harm.

#[test]
fn a_file_over_a_mebibyte_is_neither_read_nor_made() {
    let scratch = Scratch::new().with(&"x\n".repeat(600_000));
    assert!(scratch.get().unwrap_err().ends_with("it is longer than 1 MiB"));
    let scratch = Scratch::new().with("old");
    let failed = scratch.add(&[&"x".repeat(1 << 20)], None).unwrap_err();
    assert!(failed.ends_with("it would be longer than 1 MiB"), "{failed}");
    assert_eq!(scratch.content(), "old");
    assert_eq!(scratch.names(), ["authorized_keys"]);
}

#[test]
fn keys_are_checked_again_by_the_child() {
    let scratch = Scratch::new();
    assert_eq!(scratch.add(&["a\nb"], None).unwrap_err(), "invalid OpenSSH public key: 'a\nb'");
    assert_eq!(scratch.remove(&["#b"]).unwrap_err(), "invalid OpenSSH public key: '#b'");
    assert!(!scratch.ssh().exists());
}

#[test]
fn what_is_no_request_ends_the_child_with_its_reason() {
    let scratch = Scratch::new();
    let request = Request::GetKeys(OfUser { username: "u".into() });
    let mut longer = pipe::encode_head(&request).unwrap();
    longer.push(0);
    for bytes in [&[][..], &[0xff; 64], &longer] {
        let output = run(&scratch.user.arguments(), bytes);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("keys: the peer sent "), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn arguments_that_name_no_user_end_the_child_before_it_reads() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    for words in [&["4294967295", "0", "-", home][..], &["0", "0", "-", "home"], &["0", "0", home], &[]] {
        let output = run(words, b"");
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("step arguments"), "{said}");
    }
}
