//! `--daemonize`, and the pid file.
//!
//! A process that forks by itself needs `unsafe`; instead this program is started a second time, detaches, and becomes the
//! spawner. The first one waits until the agent is up, so that its exit status is the truth, unlike qemu-ga's before 10.0.
//!
//! ```text
//! portreeve -d ──► portreeve (setsid, /, umask 077) ──exec──► spawner ──READY──► first one ends with 0
//! ```

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::{Mode, umask};
use spawner::plan::READY;

/// Names the starter's process id in the environment of the second start.
pub(crate) const STARTER: &str = "PORTREEVE_STARTER";

/// The process that has started this one in order to detach, if so.
pub(crate) fn starter() -> Option<u32> {
    let starter = std::env::var(STARTER).ok()?.parse().ok()?;
    // Inherited from elsewhere it would mean nothing.
    (starter == std::os::unix::process::parent_id()).then_some(starter)
}

/// Starts this program again, detached, and waits until the agent is up or has failed.
pub(crate) fn detach(called: &OsString, arguments: &[OsString]) -> ExitCode {
    match start_again(called, arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            crate::say::raw("the agent did not start; without -d, or with -l FILE, it says why");
            ExitCode::FAILURE
        }
        Err(error) => {
            crate::say::raw(format_args!("cannot daemonize: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start_again(called: &OsString, arguments: &[OsString]) -> io::Result<bool> {
    let (mut ready, writer) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(called)
        .args(arguments)
        .env(STARTER, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer));
    command.spawn()?;
    // Our copy of the writing end: with it open, the end of the other would go unnoticed.
    drop(command);
    let mut byte = [0];
    let length = ready.read(&mut byte)?;
    Ok(length == 1 && byte == [READY])
}

/// In the second start: leaves the terminal and takes standard output, which is the ready pipe.
///
/// # Errors
/// Those of setsid(2), chdir(2), dup2(2).
pub(crate) fn leave() -> io::Result<OwnedFd> {
    use std::os::fd::AsFd as _;
    let ready = io::stdout().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    nix::unistd::setsid()?;
    umask(Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/")?;
    Ok(ready)
}

/// Opens, locks and fills the pid file. The lock is this process's, also after exec, and ends with it.
///
/// # Errors
/// qemu-ga's texts (`util/oslib-posix.c`, `qemu_write_pidfile`); the file of another instance is left alone.
pub(crate) fn lock_pid_file(path: &Path) -> Result<File, String> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
            .map_err(|error| format!("Cannot open pid file: {}", reason(&error)))?;
        let kind = |number: i32| libc::c_short::try_from(number).unwrap_or_default();
        let lock = libc::flock {
            l_type: kind(libc::F_WRLCK),
            l_whence: kind(libc::SEEK_SET),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
            Ok(_) => {}
            // fcntl(2): either of them.
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(format!("Cannot lock pid file: {}", proto::errno_text(libc::EAGAIN)));
            }
            Err(error) => return Err(format!("Cannot lock pid file: {}", reason(&error.into()))),
        }
        // An instance that has just ended has removed what we opened: the next one would lock another file.
        let there = std::fs::symlink_metadata(path).map(|there| (there.dev(), there.ino())).ok();
        let opened = file.metadata().map(|opened| (opened.dev(), opened.ino())).ok();
        if there.is_some() && there == opened {
            let written = file
                .set_len(0)
                .and_then(|()| (&file).write_all(format!("{}\n", std::process::id()).as_bytes()));
            return written
                .map(|()| file)
                .map_err(|error| format!("Failed to write pid file: {}", reason(&error)));
        }
    }
}

fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| proto::errno_text(number).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_holds_the_process_id_and_nothing_that_was_there_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        std::fs::write(&path, "1234567890123\n").unwrap();
        let _held = lock_pid_file(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o077, 0o044, "an old file keeps its mode");
    }

    #[test]
    fn a_pid_file_that_cannot_be_made_is_reported_in_the_words_of_qemu_ga() {
        let error = lock_pid_file(Path::new("/nonexistent/pid")).unwrap_err();
        assert_eq!(error, "Cannot open pid file: No such file or directory");
    }
}
