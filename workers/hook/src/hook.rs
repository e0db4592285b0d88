//! One run of the hook: checked, started, listened to, ended in time.
//!
//! Runs in the hook worker. What the hook prints is data: bounded, and only used for the text of an error.
//! The contract is qemu-ga's (`qga/commands-linux.c`, `execute_fsfreeze_hook`): one argument, `freeze` or `thaw`, standard input
//! from /dev/null, the agent's environment and directory, a session of its own. It differs where that contract hangs: a
//! run ends with the hook's process, not with whoever inherited its output, and after a limit.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, symlink_metadata};
use std::io::{self, PipeReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jail::spawn::{Program, spawn};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use proto::{Failed, errno_text};

/// Bytes of output that an error shows at most.
const OUTPUT: usize = 4096;
/// Group and others may not write.
const WRITABLE: u32 = 0o022;

/// The hook that was configured.
pub(crate) struct Hook {
    path: PathBuf,
    file: CString,
    environment: Vec<CString>,
    limit: Duration,
    /// Who may own the hook: root, and the agent's own user if that is somebody else.
    owner: u32,
}

impl Hook {
    /// None if `path` is not absolute or holds a NUL. A limit of zero is none.
    pub(crate) fn new(path: &[u8], environment: &[(Vec<u8>, Vec<u8>)], limit: Duration) -> Option<Self> {
        let entry = |(name, value): &(Vec<u8>, Vec<u8>)| CString::new([name, &b"="[..], value].concat()).ok();
        let file = CString::new(path).ok()?;
        let path = PathBuf::from(OsStr::from_bytes(path));
        let limit = if limit.is_zero() { Duration::from_secs(u32::MAX.into()) } else { limit };
        let owner = nix::unistd::geteuid().as_raw();
        path.is_absolute().then(|| Hook {
            path,
            file,
            environment: environment.iter().filter_map(entry).collect(),
            limit,
            owner,
        })
    }

    /// Runs it with `word`.
    ///
    /// # Errors
    /// It is not to be trusted, cannot be started, fails, is killed, or does not end in time; the first words as in
    /// qemu-ga 9.1 and later.
    pub(crate) fn run(&self, word: &CStr) -> Result<(), Failed> {
        self.trusted(&self.path)?;
        let cannot = |error: &io::Error| {
            let why = error.raw_os_error().map_or_else(|| error.to_string(), errno_text);
            let path = self.path.display();
            Failed {
                text: format!(
                    "child process has failed to execute fsfreeze hook: failed to exec '{path}': {why}\n"
                ),
                errno: error.raw_os_error(),
            }
        };
        let (output, writer) = io::pipe().map_err(|error| cannot(&error))?;
        let null = File::open("/dev/null").map_err(|error| cannot(&error))?;
        let started = spawn(&Program {
            file: &self.file,
            arguments: &[self.file.clone(), word.to_owned()],
            environment: &self.environment,
            descriptors: [null.as_fd(), writer.as_fd(), writer.as_fd()],
            session: true,
            run_as: None,
        })
        .map_err(|error| cannot(&error))?;
        drop(writer);
        let pid = Pid::from_raw(started.pid);
        let (text, ended) = self.listen(output, started.pidfd.as_fd()).map_err(|error| cannot(&error))?;
        if !ended {
            // Itself and what it has started, unless that has made itself a session in turn.
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let status = waitpid(pid, None).map_err(|errno| cannot(&errno.into()))?;
        let text = String::from_utf8_lossy(&text);
        let with = |what: &str, otherwise: String| {
            if text.is_empty() { format!("{what}{otherwise}") } else { format!("{what}: {text}") }
        };
        match status {
            _ if !ended => Err(Failed::new(format!(
                "child process has failed to execute fsfreeze hook: '{}' had not ended after {} s and was killed",
                self.path.display(),
                self.limit.as_secs()
            ))),
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, status) => Err(Failed::new(with(
                "child process has failed to execute fsfreeze hook",
                format!(": exit status {status}"),
            ))),
            _ => Err(Failed::new(with("child process has terminated abnormally", String::new()))),
        }
    }

    /// Reads what it prints until it has ended; false if it has not in time.
    fn listen(
        &self,
        mut output: PipeReader,
        process: std::os::fd::BorrowedFd<'_>,
    ) -> io::Result<(Vec<u8>, bool)> {
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let until = Instant::now().checked_add(self.limit);
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        let mut open = true;
        loop {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            let timeout =
                PollTimeout::try_from(left.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
            let mut polled = [
                PollFd::new(process, PollFlags::POLLIN),
                PollFd::new(output.as_fd(), if open { PollFlags::POLLIN } else { PollFlags::empty() }),
            ];
            let watched = if open { &mut polled[..] } else { &mut polled[..1] };
            match poll(watched, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) => {}
            }
            let ended = polled.first().and_then(PollFd::any).unwrap_or_default();
            // What it wrote last is there by now; what others write later is not its.
            while open {
                match output.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(length) => {
                        let room = OUTPUT.saturating_sub(text.len()).min(length);
                        text.extend_from_slice(buffer.get(..room).unwrap_or_default());
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if ended {
                return Ok((text, true));
            }
            if left.is_zero() {
                return Ok((text, false));
            }
        }
    }

    /// Whether nobody but root can change what is run: the file, where links lead, and every directory on the way.
    fn trusted(&self, path: &Path) -> Result<(), Failed> {
        let refuse = |path: &Path, why: &str| {
            let hook = self.path.display();
            let text = format!(
                "fsfreeze hook '{hook}' is not run: {} {why}; have root own it, `chmod go-w` it",
                path.display()
            );
            Err(Failed::new(text))
        };
        let not_there = |error: &io::Error| {
            let why = error.raw_os_error().map_or_else(|| error.to_string(), errno_text);
            let hook = self.path.display();
            Failed {
                text: format!(
                    "child process has failed to execute fsfreeze hook: failed to exec '{hook}': {why}\n"
                ),
                errno: error.raw_os_error(),
            }
        };
        // A link is as good as the directory that it is in; where it leads is looked at in full.
        let real = path.canonicalize().map_err(|error| not_there(&error))?;
        for place in path.ancestors().skip(1).chain(real.ancestors()) {
            let metadata = symlink_metadata(place).map_err(|error| not_there(&error))?;
            if metadata.is_symlink() {
                continue;
            }
            if metadata.uid() != 0 && metadata.uid() != self.owner {
                return refuse(place, "belongs to somebody else");
            }
            let sticky_directory = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
            if metadata.permissions().mode() & WRITABLE != 0 && !(sticky_directory && place != real) {
                return refuse(place, "can be written by others");
            }
        }
        if symlink_metadata(&real).is_ok_and(|metadata| metadata.is_file()) {
            Ok(())
        } else {
            refuse(&real, "is no regular file")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn new() -> Self {
            Scratch(tempfile::tempdir().unwrap())
        }

        fn hook(&self, script: &str, limit: Duration) -> Hook {
            let path = self.0.path().join("hook");
            write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            Hook::new(path.as_os_str().as_bytes(), &[(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())], limit)
                .unwrap()
        }

        fn said(&self) -> String {
            std::fs::read_to_string(self.0.path().join("said")).unwrap_or_default()
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn it_is_called_with_one_word_and_its_input_is_empty() {
        let scratch = Scratch::new();
        let said = scratch.0.path().join("said").display().to_string();
        let hook = scratch.hook(&format!("echo \"$# $1 $(cat)\" >> {said}"), LONG);
        hook.run(c"freeze").unwrap();
        hook.run(c"thaw").unwrap();
        assert_eq!(scratch.said(), "1 freeze \n1 thaw \n");
    }

    #[test]
    fn a_failure_shows_what_it_printed_and_else_its_status() {
        let scratch = Scratch::new();
        let failed = |script: &str| scratch.hook(script, LONG).run(c"freeze").unwrap_err().text;
        assert_eq!(
            failed("echo out; echo err >&2; exit 3"),
            "child process has failed to execute fsfreeze hook: out\nerr\n"
        );
        assert_eq!(failed("exit 3"), "child process has failed to execute fsfreeze hook: exit status 3");
        assert_eq!(failed("kill -9 $$"), "child process has terminated abnormally");
    }

    #[test]
    fn output_is_bounded() {
        let scratch = Scratch::new();
        let text = scratch
            .hook("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", LONG)
            .run(c"freeze")
            .unwrap_err()
            .text;
        assert_eq!(text.len(), "child process has failed to execute fsfreeze hook: ".len() + OUTPUT);
    }

    #[test]
    fn one_that_hangs_is_killed_after_its_limit() {
        let scratch = Scratch::new();
        let begun = Instant::now();
        let text = scratch.hook("exec sleep 60", Duration::from_secs(1)).run(c"freeze").unwrap_err().text;
        assert!(text.ends_with("had not ended after 1 s and was killed"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_it_leaves_in_the_background_with_its_output_does_not_hold_it_up() {
        let scratch = Scratch::new();
        let begun = Instant::now();
        scratch.hook("sleep 30 &", LONG).run(c"freeze").unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn one_that_others_can_write_is_not_run() {
        let scratch = Scratch::new();
        let said = scratch.0.path().join("said").display().to_string();
        let hook = scratch.hook(&format!("echo ran >> {said}"), LONG);
        set_permissions(&hook.path, Permissions::from_mode(0o775)).unwrap();
        let text = hook.run(c"freeze").unwrap_err().text;
        assert!(text.contains("can be written by others; have root own it, `chmod go-w` it"), "{text}");
        set_permissions(&hook.path, Permissions::from_mode(0o755)).unwrap();
        set_permissions(scratch.0.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(hook.run(c"freeze").unwrap_err().text.contains("can be written by others"));
        set_permissions(scratch.0.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(scratch.said(), "");
        hook.run(c"freeze").unwrap();
        assert_eq!(scratch.said(), "ran\n");
    }

    #[test]
    fn the_script_that_is_shipped_runs_what_is_in_its_directory_and_tells_what_failed() {
        let scratch = Scratch::new();
        let said = scratch.0.path().join("said").display().to_string();
        let hook = scratch.hook("", LONG);
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/fsfreeze-hook"), &hook.path).unwrap();
        let directory = scratch.0.path().join("fsfreeze-hook.d");
        std::fs::create_dir(&directory).unwrap();
        hook.run(c"freeze").unwrap();
        for (name, script, mode) in [
            ("10-a b", format!("echo \"a $1\" >> {said}"), 0o755),
            ("20-fails", format!("echo \"b $1\" >> {said}; [ $1 = thaw ]"), 0o755),
            ("30-c", format!("echo \"c $1\" >> {said}"), 0o755),
            ("40-not.orig", format!("echo orig >> {said}"), 0o755),
            ("50-not", format!("echo not >> {said}"), 0o644),
        ] {
            let path = directory.join(name);
            write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        let text = hook.run(c"freeze").unwrap_err().text;
        assert!(text.ends_with("20-fails freeze: status 1\n"), "{text}");
        hook.run(c"thaw").unwrap();
        assert_eq!(scratch.said(), "a freeze\nb freeze\nc freeze\na thaw\nb thaw\nc thaw\n");
    }

    #[test]
    fn one_that_is_not_there_fails_in_qemu_gas_words() {
        let scratch = Scratch::new();
        let hook = scratch.hook("", LONG);
        std::fs::remove_file(&hook.path).unwrap();
        let path = hook.path.display().to_string();
        let text = hook.run(c"freeze").unwrap_err().text;
        let wanted = "child process has failed to execute fsfreeze hook: failed to exec '{}': No such file or directory\n";
        assert_eq!(text, wanted.replace("{}", &path));
    }
}
