//! Runs one program to its end, with all of its input, part of its output, and a limit of time.
//!
//! Runs in the account worker. The program is trusted as far as it is root's own; what it prints is not, and only so much of it
//! is kept.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use jail::spawn::{Program, spawn};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is run.
pub(crate) struct Run<'a> {
    pub(crate) file: &'a CStr,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    /// All that it can read.
    pub(crate) input: &'a [u8],
    /// Whether its errors are output, too; else they go to our log.
    pub(crate) errors: bool,
    /// Bytes of output that are kept.
    pub(crate) room: usize,
    /// After this long it is killed.
    pub(crate) limit: Duration,
}

/// How it went.
pub(crate) struct Ran {
    /// None: it had not ended in time and was killed.
    pub(crate) status: Option<WaitStatus>,
    /// What it printed, as much of it as there was room for.
    pub(crate) output: Vec<u8>,
    /// Whether it has taken all of its input.
    pub(crate) fed: bool,
}

thread_local! {
    /// Who was killed and is still to be collected.
    static KILLED: RefCell<Vec<Pid>> = const { RefCell::new(Vec::new()) };
}

impl Run<'_> {
    /// Starts it in a session of its own, and waits.
    ///
    /// # Errors
    /// It cannot be started, with the errno of the exec; or it cannot be waited for.
    pub(crate) fn run(&self) -> io::Result<Ran> {
        KILLED.with_borrow_mut(|killed| {
            killed.retain(|pid| waitpid(*pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive));
        });
        let (their_input, input) = io::pipe()?;
        let (mut output, their_output) = io::pipe()?;
        let log = io::stderr().as_fd().try_clone_to_owned()?;
        fcntl(&input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let errors = if self.errors { their_output.as_fd() } else { log.as_fd() };
        let started = spawn(&Program {
            file: self.file,
            arguments: self.arguments,
            environment: self.environment,
            descriptors: [their_input.as_fd(), their_output.as_fd(), errors],
            session: true,
            run_as: None,
        })?;
        drop((their_input, their_output));

        let pid = Pid::from_raw(started.pid);
        let mut rest = self.input;
        let mut kept = Vec::new();
        // As large as it may become: what it holds is not left behind in smaller ones.
        kept.reserve_exact(self.room);
        let mut listening = true;
        let mut input = Some(input);
        let until = Instant::now().checked_add(self.limit);
        let status = loop {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            let mut polled = vec![PollFd::new(started.pidfd.as_fd(), PollFlags::POLLIN)];
            if listening {
                polled.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
            }
            if let Some(input) = &input {
                polled.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
            }
            let timeout =
                PollTimeout::try_from(left.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, timeout) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) => {}
            }
            let ended = polled.first().and_then(PollFd::any).unwrap_or_default();
            if let Some(open) = &mut input {
                match open.write(rest) {
                    Ok(length) => rest = rest.get(length..).unwrap_or_default(),
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    }
                    Err(_) => input = None,
                }
                if rest.is_empty() {
                    input = None;
                }
            }
            listening = listening && take(&mut output, &mut kept, self.room)?;
            if ended {
                break Some(waitpid(pid, None)?);
            }
            if left.is_zero() {
                // Itself and what it has started, unless that has made itself a session in turn. It is collected later: who hangs
                // in the kernel does not end before that lets it go.
                let _ = killpg(pid, Signal::SIGKILL);
                KILLED.with_borrow_mut(|killed| killed.push(pid));
                break None;
            }
        };
        Ok(Ran { status, output: kept, fed: rest.is_empty() })
    }
}

/// Reads what is there by now; false at its end.
fn take(output: &mut io::PipeReader, kept: &mut Vec<u8>, room: usize) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                let fits = room.saturating_sub(kept.len()).min(length);
                kept.extend_from_slice(buffer.get(..fits).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8], limit: Duration) -> Ran {
        let arguments: Vec<CString> =
            ["sh", "-c", script].iter().map(|word| CString::new(*word).unwrap()).collect();
        Run {
            file: c"/bin/sh",
            arguments: &arguments,
            environment: &[c"PATH=/usr/bin:/bin".to_owned()],
            input,
            errors: true,
            room: 100_000,
            limit,
        }
        .run()
        .unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_gets_all_of_its_input_and_its_output_comes_back() {
        let input = vec![b'x'; 1 << 20];
        let ran = shell("wc -c; echo more >&2; exit 3", &input, LONG);
        assert_eq!(String::from_utf8(ran.output).unwrap(), "1048576\nmore\n");
        assert!(matches!(ran.status, Some(WaitStatus::Exited(_, 3))), "{:?}", ran.status);
        assert!(ran.fed);
    }

    #[test]
    fn output_is_bounded_and_input_that_nobody_reads_does_not_hold_up() {
        let ran = shell("head -c 1000000 /dev/zero", &vec![0; 1 << 20], LONG);
        assert_eq!(ran.output.len(), 100_000);
        assert!(!ran.fed);
    }

    #[test]
    fn one_that_hangs_is_killed_after_its_limit_and_collected_before_the_next() {
        let begun = Instant::now();
        assert!(shell("sleep 60; true", b"", Duration::from_millis(300)).status.is_none());
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(200));
        let ran = shell("exit 0", b"", LONG);
        assert!(matches!(ran.status, Some(WaitStatus::Exited(_, 0))));
        assert_eq!(KILLED.with_borrow(Vec::len), 0);
    }
}
