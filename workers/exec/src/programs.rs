//! The programs that are remembered, running or ended, with what is kept of their output.
//!
//! Runs in the exec worker, under one lock. A program's output is hostile in length and timing: it is kept up to a limit,
//! and the rest is read and thrown away, so that no program is ever held up by its pipe.
//!
//! ```text
//!  reserve ──► insert ──► ended and all its output read ──► found by a status ──► forget
//!     │           │                   │                            │ abandoned
//!  release     unwanted: killed    evicted, oldest first           └──► keep
//! ```

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use jail::spawn::Started;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, read, write};
use proto::exec::StatusDone;
use proto::{Failed, limits};

/// Input that may wait for programs to start or to read it, of all of them together: one request of the largest size.
const INPUT_HELD: usize = 64 * 1024 * 1024;

/// Captured bytes of all programs together: as much as eight programs may write.
const OUTPUT_HELD: usize = 16 * limits::CAPTURED;

/// How old a program is when nobody expects its end any more.
const YOUNG: Duration = Duration::from_millis(50);

/// How long after a program was killed its pipes are still read, when somebody else holds them open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes below which giving memory back would cost more than keeping it for the next program.
const LARGE: usize = 256 * 1024;

/// The agent's ends of a program's pipes.
pub(crate) struct Pipes {
    /// Not waiting.
    pub(crate) input: Option<OwnedFd>,
    /// Standard output, standard error.
    pub(crate) outputs: [Option<OwnedFd>; 2],
}

/// When a program is ended, with its process group, which must be its own.
pub(crate) struct Limit {
    timer: TimerFd,
    over: bool,
}

impl Limit {
    /// So many seconds from now.
    ///
    /// # Errors
    /// Of `timerfd_create(2)` and `timerfd_settime(2)`.
    pub(crate) fn after(seconds: u32) -> Result<Self, Errno> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let limit = Limit { timer, over: false };
        limit.set(Duration::from_secs(seconds.into()))?;
        Ok(limit)
    }

    fn set(&self, time: Duration) -> Result<(), Errno> {
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(time)), TimerSetTimeFlags::empty())
    }
}

/// One program.
pub(crate) struct Program {
    pid: i32,
    /// The job that started it.
    job: u64,
    started: Instant,
    pidfd: Option<OwnedFd>,
    ended: Option<Ended>,
    input: Option<Input>,
    outputs: [Output; 2],
    /// It leads a process group, which ends with it.
    leads: bool,
    /// Until nothing is waited for any more.
    limit: Option<Limit>,
    /// A status is sending its result.
    reporting: bool,
    /// Nobody knows of it: forgotten as soon as it has ended.
    unwanted: bool,
}

#[derive(Clone, Copy)]
enum Ended {
    Exited(i32),
    Signalled(i32),
    /// Somebody else reaped it: the agent was started with SIGCHLD ignored.
    Unknown,
}

struct Input {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Default)]
struct Output {
    /// None at its end, or if it was never captured.
    pipe: Option<OwnedFd>,
    /// Full pieces and a last one, so that nothing is copied when it grows or is sent.
    pieces: Vec<Vec<u8>>,
    length: usize,
    /// Bytes that are kept at most.
    most: usize,
    truncated: bool,
}

/// What a status finds.
pub(crate) enum Found {
    /// No such program, or a result that was fetched.
    Nothing,
    /// Still running, or its output is not complete, or another status is fetching its result.
    Running,
    /// Running since a moment ago.
    Young,
    /// The number of one that has ended; it is kept for this status until [`Programs::forget`] or
    /// [`Programs::keep`].
    Ended(u64),
}

/// What an event is about; the low bits of its number.
const END: u64 = 0;
const INPUT: u64 = 1;
const OUTPUT: u64 = 2;
const ERROR: u64 = 3;
const LIMIT: u64 = 4;
/// Bits of an event's number that say what it is about.
const BITS: u32 = 3;

impl Program {
    /// `most` bytes of each output are kept, if that is less than usual.
    pub(crate) fn new(
        job: u64,
        started: Started,
        pipes: Pipes,
        input: Vec<u8>,
        limit: Option<Limit>,
        most: Option<u64>,
    ) -> Self {
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(limits::CAPTURED);
        let output = |pipe| Output { pipe, most: most.min(limits::CAPTURED), ..Output::default() };
        Program {
            pid: started.pid,
            job,
            started: Instant::now(),
            pidfd: Some(started.pidfd),
            ended: None,
            // An empty one is closed at once.
            input: pipes.input.filter(|_| !input.is_empty()).map(|pipe| Input {
                pipe,
                bytes: input,
                written: 0,
            }),
            outputs: pipes.outputs.map(output),
            leads: limit.is_some(),
            limit,
            reporting: false,
            unwanted: false,
        }
    }

    fn is_done(&self) -> bool {
        self.ended.is_some() && self.outputs.iter().all(|output| output.pipe.is_none())
    }

    /// The captured piece with this number: its stream, its bytes, and whether it is the last.
    pub(crate) fn captured(&self, number: usize) -> Option<(u8, &[u8], bool)> {
        let [output, error] = &self.outputs;
        let (output, error) = (output.pieces.iter(), error.pieces.iter());
        let last = output.len().checked_add(error.len())?.checked_sub(1)?;
        let mut pieces = output.map(|piece| (0, piece)).chain(error.map(|piece| (1, piece)));
        pieces.nth(number).map(|(stream, piece)| (stream, piece.as_slice(), number == last))
    }

    /// What its status says beside the captured bytes.
    pub(crate) fn result(&self) -> StatusDone {
        let truncated = |output: &Output| (output.length > 0 || output.truncated).then_some(output.truncated);
        let [output, error] = &self.outputs;
        let (exitcode, signal) = match self.ended {
            Some(Ended::Exited(code)) => (Some(code.into()), None),
            Some(Ended::Signalled(signal)) => (None, Some(signal.into())),
            Some(Ended::Unknown) | None => (None, None),
        };
        StatusDone {
            exited: self.is_done(),
            exitcode,
            signal,
            out_truncated: truncated(output),
            err_truncated: truncated(error),
        }
    }

    fn held(&self) -> usize {
        self.outputs.iter().map(|output| output.length).fold(0, usize::saturating_add)
    }

    /// Whether it has ended; it is reaped then.
    fn reap(&mut self, epoll: &Epoll) {
        self.end_group();
        let ended = match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ended::Exited(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ended::Signalled(signal as i32),
            Ok(_) | Err(Errno::EINTR) => return,
            Err(_) => Ended::Unknown,
        };
        self.ended = Some(ended);
        end_of(epoll, self.pidfd.take());
    }

    /// Kills it, if it lives, and what it has started, unless that has made itself another group.
    fn end_group(&self) {
        // Not reaped by anybody, the number is still its own.
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let pid = Pid::from_raw(self.pid);
        if self.leads && waitid(Id::Pid(pid), peek).is_ok() {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }

    /// Its time is over: first it is killed, then whoever still holds its pipes is not listened to any more.
    fn out_of_time(&mut self, epoll: &Epoll) {
        let lives = self.ended.is_none();
        if let Some(limit) = &mut self.limit
            && lives
            && !std::mem::replace(&mut limit.over, true)
        {
            let again = limit.set(LAST_WORDS);
            self.end_group();
            if again.is_ok() {
                return;
            }
        }
        for output in &mut self.outputs {
            output.truncated |= output.pipe.is_some();
            end_of(epoll, output.pipe.take());
        }
        end_of(epoll, self.limit.take().map(|limit| limit.timer));
    }

    /// Writes what the pipe takes. A program that has closed its end gets no more.
    fn feed(&mut self, epoll: &Epoll) {
        let Some(input) = &mut self.input else { return };
        let rest = input.bytes.get(input.written..).unwrap_or_default();
        match write(&input.pipe, rest) {
            Ok(count) => input.written = input.written.saturating_add(count),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => input.written = input.bytes.len(),
        }
        if input.written >= input.bytes.len() {
            let large = input.bytes.len() > LARGE;
            end_of(epoll, self.input.take().map(|input| input.pipe));
            if large {
                jail::memory::give_back();
            }
        }
    }
}

impl Output {
    /// Reads what is there and keeps at most `room` bytes of it; how many it kept.
    fn drain(&mut self, epoll: &Epoll, scratch: &mut [u8], room: usize) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        match read(pipe, scratch) {
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Ok(0) | Err(_) => {
                end_of(epoll, self.pipe.take());
                0
            }
            Ok(count) => self.keep(scratch.get(..count).unwrap_or_default(), room),
        }
    }

    fn keep(&mut self, bytes: &[u8], room: usize) -> usize {
        let room = room.min(self.most.saturating_sub(self.length));
        let (kept, lost) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.truncated |= !lost.is_empty();
        self.length = self.length.saturating_add(kept.len());
        let mut rest = kept;
        while !rest.is_empty() {
            if self.pieces.last().is_none_or(|piece| piece.len() >= limits::PIECE) {
                self.pieces.push(Vec::new());
            }
            let Some(piece) = self.pieces.last_mut() else { break };
            let (here, further) =
                rest.split_at_checked(limits::PIECE.saturating_sub(piece.len())).unwrap_or((rest, &[]));
            // Twice as much as before, as vectors grow, but never more than a piece.
            let growth = here.len().max(piece.len()).min(limits::PIECE.saturating_sub(piece.len()));
            if piece.capacity().saturating_sub(piece.len()) < here.len() {
                piece.reserve_exact(growth);
            }
            piece.extend_from_slice(here);
            rest = further;
        }
        kept.len()
    }
}

/// Stops waiting for a descriptor and closes it. Both: a program that is just being started may hold a copy for a moment,
/// and the kernel would go on to report it.
fn end_of(epoll: &Epoll, descriptor: Option<impl AsFd>) {
    if let Some(descriptor) = descriptor {
        let _ = epoll.delete(&descriptor);
    }
}

/// All programs.
#[derive(Default)]
pub(crate) struct Programs {
    /// By age: a lower number was started earlier.
    remembered: BTreeMap<u64, Program>,
    last_number: u64,
    /// Jobs whose program has not started yet, with the bytes of input kept for it, and whether anybody still waits.
    starting: HashMap<u64, (usize, bool)>,
    output_held: usize,
}

impl Programs {
    /// Makes room for a program that is to start, and for `input` bytes for it.
    ///
    /// # Errors
    /// When too many programs run, or too much input is waiting.
    pub(crate) fn reserve(&mut self, job: u64, input: usize) -> Result<(), Failed> {
        let running = self.remembered.values().filter(|program| !program.is_done()).count();
        if running.saturating_add(self.starting.len()) >= limits::PROGRAMS {
            let text = format!(
                "{} programs are running: no more can be started before one has ended",
                limits::PROGRAMS
            );
            return Err(Failed { text, errno: Some(libc::EAGAIN) });
        }
        let starting = self.starting.values().map(|(input, _)| *input);
        let unread = self
            .remembered
            .values()
            .filter_map(|program| program.input.as_ref())
            .map(|input| input.bytes.len());
        let held = starting.chain(unread).fold(input, usize::saturating_add);
        if held > INPUT_HELD {
            let text = format!("more than {INPUT_HELD} bytes of input would be waiting for programs");
            return Err(Failed { text, errno: Some(libc::ENOMEM) });
        }
        self.starting.insert(job, (input, true));
        Ok(())
    }

    /// Gives back what [`Self::reserve`] took. Whether anybody still waits for the program.
    pub(crate) fn release(&mut self, job: u64) -> bool {
        self.starting.remove(&job).is_some_and(|(_, wanted)| wanted)
    }

    /// Remembers a program and waits for what it does. The oldest result that nobody has asked for is dropped if need be.
    pub(crate) fn insert(&mut self, epoll: &Epoll, mut program: Program) {
        self.last_number = self.last_number.saturating_add(1);
        let number = self.last_number;
        let wait = |descriptor: BorrowedFd<'_>, what: u64, flags| {
            epoll.add(descriptor, EpollEvent::new(flags, number << BITS | what)).is_ok()
        };
        // Who cannot be waited for (no memory) is taken as ended, so that a status does not wait for ever.
        if !program.pidfd.as_ref().is_some_and(|pidfd| wait(pidfd.as_fd(), END, EpollFlags::EPOLLIN)) {
            program.ended = Some(Ended::Unknown);
        }
        program.input = program.input.filter(|input| wait(input.pipe.as_fd(), INPUT, EpollFlags::EPOLLOUT));
        for (output, what) in program.outputs.iter_mut().zip(OUTPUT..) {
            output.pipe = output.pipe.take().filter(|pipe| wait(pipe.as_fd(), what, EpollFlags::EPOLLIN));
        }
        // A program whose time nobody would see pass does not go on.
        if program.limit.as_ref().is_some_and(|limit| !wait(limit.timer.as_fd(), LIMIT, EpollFlags::EPOLLIN))
        {
            program.end_group();
        }
        if self.remembered.len() >= limits::PROGRAMS {
            let done = |program: &Program| program.is_done() && !program.reporting;
            let oldest = self.remembered.iter().find(|(_, program)| done(program)).map(|(number, _)| *number);
            oldest.inspect(|number| self.forget(*number));
        }
        self.remembered.insert(number, program);
    }

    /// Something that [`Self::insert`] waits for has happened; `event` is the number that epoll gave.
    pub(crate) fn happened(&mut self, epoll: &Epoll, event: u64, scratch: &mut [u8]) {
        let number = event >> BITS;
        let Some(program) = self.remembered.get_mut(&number) else { return };
        let [output, error] = &mut program.outputs;
        let room = OUTPUT_HELD.saturating_sub(self.output_held);
        let kept = match event & ((1 << BITS) - 1) {
            LIMIT => {
                program.out_of_time(epoll);
                0
            }
            END => {
                program.reap(epoll);
                0
            }
            INPUT => {
                program.feed(epoll);
                0
            }
            OUTPUT => output.drain(epoll, scratch, room),
            ERROR => error.drain(epoll, scratch, room),
            _ => 0,
        };
        if program.is_done() {
            end_of(epoll, program.limit.take().map(|limit| limit.timer));
        }
        self.output_held = self.output_held.saturating_add(kept);
        if program.unwanted && program.ended.is_some() {
            self.forget(number);
        }
    }

    /// Looks for the oldest program with this pid whose result has not been fetched.
    pub(crate) fn find(&mut self, pid: i64) -> Found {
        let found = self
            .remembered
            .iter_mut()
            .find(|(_, program)| i64::from(program.pid) == pid && !program.unwanted);
        match found {
            None => Found::Nothing,
            Some((number, program)) if program.is_done() && !program.reporting => {
                program.reporting = true;
                Found::Ended(*number)
            }
            Some((_, program)) if !program.is_done() && program.started.elapsed() < YOUNG => Found::Young,
            Some(_) => Found::Running,
        }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Program> {
        self.remembered.get(&number)
    }

    /// Drops a program with all that was kept of it.
    pub(crate) fn forget(&mut self, number: u64) {
        if let Some(program) = self.remembered.remove(&number) {
            let held = program.held();
            self.output_held = self.output_held.saturating_sub(held);
            drop(program);
            if held > LARGE {
                jail::memory::give_back();
            }
        }
    }

    /// The status that was to fetch its result was given up: the next one may.
    pub(crate) fn keep(&mut self, number: u64) {
        if let Some(program) = self.remembered.get_mut(&number) {
            program.reporting = false;
        }
    }

    /// Nobody waits for what this job starts: it is killed, now or as soon as it has started.
    pub(crate) fn unwanted(&mut self, job: u64) {
        if let Some((_, wanted)) = self.starting.get_mut(&job) {
            *wanted = false;
        }
        let Some((number, program)) = self.remembered.iter_mut().find(|(_, program)| program.job == job)
        else {
            return;
        };
        let number = *number;
        program.unwanted = true;
        if program.ended.is_some() {
            self.forget(number);
        } else {
            // Not reaped, so the number is still its own.
            let _ = kill(Pid::from_raw(program.pid), Signal::SIGKILL);
        }
    }
}
