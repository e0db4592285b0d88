//! The fsfreeze worker: freezes, thaws and trims filesystems.
//!
//! Runs in a process of its own with CAP_SYS_ADMIN, confined to three commands of ioctl(2), and is there before it is needed. It
//! trusts the kernel's list of mounts and its sealed policy; the broker, which may have been taken over, can make it freeze, thaw
//! and trim, and nothing else. It never writes to a filesystem, holds no descriptor of a frozen one, and does not end
//! before what it froze is thawed: on end-of-file from the broker and on SIGTERM it thaws first.
//!
//! A freeze that hangs in the kernel hangs this process; the broker then starts another, which thaws.
#![forbid(unsafe_code)]

mod freezer;
mod order;
mod stack;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use freezer::Freezer;
use jail::Role;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall, munlockall};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::fsfreeze::{Reply, Request};
use proto::{Failed, Text};
use runtime::{Birth, Connection, Event, ToBroker, give_up};

/// The file that tells the next agent whether something is frozen, if there is one.
const MARKER: i32 = 5;
/// What stays of it: whether the hook still has to be run.
const MARKER_HOOK: u64 = 1;

fn main() {
    let birth = Birth::of(Role::Fsfreeze);
    let marker = jail::take_fd(MARKER).ok();
    let opened = File::open("/proc/self/mountinfo").and_then(|mounts| Ok((mounts, signals()?)));
    let (mounts, signals) =
        opened.unwrap_or_else(|error| give_up(Role::Fsfreeze, &format_args!("cannot prepare: {error}")));
    may_stay();
    let connection = birth.enter(|| {});
    let mut worker = Worker { freezer: Freezer::new(mounts), adopted: false };
    let status = worker.serve(&connection, &signals);
    worker.end(marker);
    jail::exit_now(status);
}

fn signals() -> std::io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Bytes that may stay in memory; all of this process is a fraction of it.
const LOCKED: u64 = 64 << 20;

/// Lack of memory must not end us, and what is locked later must be let. An ordinary user has no right to either; then there is
/// nothing that could be frozen.
fn may_stay() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED, LOCKED);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Neither swap nor the program's own file may be needed while filesystems are frozen. Only then: it costs two megabytes.
fn stay_in_memory(stay: bool) {
    let _ = if stay { mlockall(MlockAllFlags::MCL_CURRENT) } else { munlockall() };
}

struct Worker {
    freezer: Freezer,
    /// A worker before this one froze, and it is not known what.
    adopted: bool,
}

impl Worker {
    /// Until the broker goes, or SIGTERM; returns the exit status.
    fn serve(&mut self, connection: &Connection, signals: &SignalFd) -> i32 {
        let mut buffer = ToBroker::buffer();
        while self.wait(connection, signals) {
            match connection.receive(&mut buffer) {
                Some(Event::Job(request, call)) => {
                    let result = self.work(&request).map(|reply| call.redacted(reply.into()));
                    if !connection.answer_unless_gone(call.id, result) {
                        return 0;
                    }
                }
                Some(Event::Adopt) => {
                    stay_in_memory(true);
                    self.adopted = true;
                }
                Some(Event::Abandoned(_)) => {}
                Some(Event::Piece(..) | Event::More(..) | Event::Forget(_)) => {
                    // Whoever sends that is not our broker any more; it does not go on with what it may have frozen.
                    eprintln!("fsfreeze: the broker sent a piece, or asked for one, in no job with pieces");
                    return 1;
                }
                None => return 0,
            }
        }
        0
    }

    /// False on SIGTERM.
    fn wait(&self, connection: &Connection, signals: &SignalFd) -> bool {
        loop {
            let mut polled = [
                PollFd::new(connection.socket(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => give_up(Role::Fsfreeze, &format_args!("poll: {errno}")),
                Ok(_) => {
                    let [socket, signal] = polled.map(|entry| entry.any().unwrap_or_default());
                    if socket || signal {
                        return !signal;
                    }
                }
            }
        }
    }

    fn work(&mut self, request: &Request) -> Result<Reply, Failed> {
        Ok(match request {
            Request::Freeze(_) => Reply::Freeze(self.freeze(None)?),
            Request::FreezeList(list) => Reply::FreezeList(self.freeze(list.mountpoints.as_deref())?),
            Request::PhoenixFreeze(_) => Reply::PhoenixFreeze(self.freeze(None)? > 0),
            Request::Thaw(_) => Reply::Thaw(self.thaw()?),
            Request::PhoenixThaw(_) => Reply::PhoenixThaw(self.thaw()? > 0),
            Request::Trim(trim) => Reply::Trim(self.freezer.trim(trim.minimum)?),
            Request::Status(_) | Request::PhoenixStatus(_) => {
                return Err(Failed::new(format!("{} is answered by the broker", request.command().name())));
            }
        })
    }

    fn freeze(&mut self, points: Option<&[Text]>) -> Result<i64, Failed> {
        stay_in_memory(true);
        self.freezer.freeze(points).inspect_err(|_| stay_in_memory(false))
    }

    fn thaw(&mut self) -> Result<i64, Failed> {
        let count = self.freezer.thaw_all()?;
        self.adopted = false;
        stay_in_memory(false);
        Ok(count)
    }

    /// Nobody is left who could ask for a thaw.
    fn end(&mut self, marker: Option<OwnedFd>) {
        let thawed = if self.adopted { self.freezer.thaw_all() } else { self.freezer.thaw_own() };
        match thawed {
            Err(failed) => eprintln!("fsfreeze: cannot thaw before the end: {failed}"),
            Ok(_) => {
                if let Some(marker) = marker.map(File::from)
                    && marker.metadata().is_ok_and(|metadata| metadata.len() > MARKER_HOOK)
                {
                    let _ = marker.set_len(MARKER_HOOK);
                }
            }
        }
    }
}
