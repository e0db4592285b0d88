//! Starts, watches and ends all other processes: one loop, one thread, no handler.
//!
//! Runs in the spawner. Believes the kernel about who has ended, and of the broker nothing but 16-byte messages:
//! whatever does not decode ends the broker. All tables have their size from the start.
//!
//! ```text
//!  broker ends ──► frontends and workers are killed ──► broker again (backoff) ──► frontends on the same channels
//!  frontend ends ──► EXITED, then again on the same channel (backoff), FRONTEND to the broker
//!  worker ends ──► EXITED to the broker, which starts another when it needs one
//!  SIGTERM, SIGINT, STOP ──► the broker's socket closes; when it has ended, or after 0.3 s, SIGTERM to all; SIGKILL after 1 s, gone after 2 s
//!  SIGTERM, SIGINT while frozen ──► THAW to the broker, which says STOP when it has, or ends; the fsfreeze worker is never killed
//!  SIGHUP ──► the policy is compiled anew (`reload`), where the plan says so
//! ```

mod reload;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use jail::Role;
use jail::empty::Empty;
use jail::roles::{Network, RootView, row};
use spawner::message::INSTANCES;
use spawner::plan::CHANNELS;
use spawner::{Channel, Control, ControlError, FromBroker, FromSpawner, Method, Plan, Reason};

use crate::channel;
use crate::rotate::Log;
use crate::start::{BORN_WITH, Birth, Born, Program, control_pair, packet_pair, pipe, start};
use crate::tell::{self, Level, Waiting, log};

pub(crate) use reload::Reload;

/// Exit status of a frontend whose channel is no more (`docs/design.md`).
const CHANNEL_GONE: i32 = 10;

/// How long `qemu-ga --retry-path` sleeps (`qga/main.c`, QGA_RETRY_INTERVAL).
const RETRY: Duration = Duration::from_secs(5);

/// How often a channel that has gone is looked for.
const REOPEN: Duration = Duration::from_secs(1);

/// A process that has lived that long starts with the shortest backoff again.
const HEALTHY: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// How often the broker may end before it was ever ready.
const BROKER_TRIES: u32 = 5;

/// Starts of one kind of worker at once; one more each second.
const ALLOWANCE: u32 = 10;

/// How long the broker may take for its last record before all others get SIGTERM. It has that blocked, and ends with its socket.
const LAST_RECORD: Duration = Duration::from_millis(300);

/// From the end's begin to SIGKILL, and to leaving those behind that hang in the kernel.
const KILL_AFTER: Duration = Duration::from_secs(1);
const LEAVE_AFTER: Duration = Duration::from_millis(1800);

/// How long the broker may take to thaw before the agent ends all the same, hooks included; systemd waits 90 s.
const THAW_WITHIN: Duration = Duration::from_secs(60);

/// How long the fsfreeze worker may take to thaw by itself when the broker has not.
const THAWING: Duration = Duration::from_secs(10);

/// Kinds of workers times instances, frontends, the broker.
const CHILDREN: usize = 11 * INSTANCES as usize + CHANNELS + 1;

/// What the supervisor works with; everything is opened before the loop begins.
pub(crate) struct Equipment {
    pub(crate) uid_base: u32,
    pub(crate) workers: Vec<Role>,
    pub(crate) programs: Vec<(Role, Program)>,
    pub(crate) null: OwnedFd,
    pub(crate) log: OwnedFd,
    pub(crate) settings: OwnedFd,
    pub(crate) audit: Option<Log>,
    pub(crate) audit_socket: Option<OwnedFd>,
    pub(crate) chain: Option<OwnedFd>,
    pub(crate) state: Option<OwnedFd>,
    pub(crate) marker: Option<OwnedFd>,
    /// The namespaces that hold nothing.
    pub(crate) empty: Option<Empty>,
    /// A signalfd for SIGTERM and SIGINT, and for SIGHUP where it reloads.
    pub(crate) signals: OwnedFd,
}

/// How long after the agent is ready its start is let go.
const QUIET: Duration = Duration::from_millis(200);

pub(crate) struct Supervisor {
    equipment: Equipment,
    waiting: Waiting,
    children: Vec<Child>,
    /// None: there is no broker, or it has lost our trust.
    control: Option<Control>,
    broker: Backoff,
    broker_deaths: u32,
    lines: Vec<Line>,
    allowances: [Allowance; Role::ALL.len()],
    ending: Option<Ending>,
    /// Filesystems are frozen: the broker says so.
    frozen: bool,
    /// Asked to end while they are: when the broker's time to thaw is over.
    thaw_until: Option<Instant>,
    /// When to let go of the memory and code that the start took.
    settle_at: Option<Instant>,
    /// None: SIGHUP ends the agent.
    reload: Option<Reload>,
}

struct Child {
    role: Role,
    instance: u16,
    born: Born,
    since: Instant,
    /// Started for a broker that is no more: its end concerns nobody.
    orphan: bool,
}

/// A channel and its frontend.
struct Line {
    channel: Channel,
    /// Kept for the next frontend.
    descriptor: Option<OwnedFd>,
    next_open: Instant,
    interval: Duration,
    frontend: Backoff,
}

struct Backoff {
    delay: Duration,
    next: Instant,
}

impl Backoff {
    fn new() -> Self {
        Self { delay: SHORTEST, next: Instant::now() }
    }

    /// After an end: later each time, unless it had run well.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.delay = SHORTEST;
        }
        let delay = self.delay;
        self.next = later(delay);
        self.delay = delay.saturating_mul(2).min(LONGEST);
        delay
    }
}

/// So many at once, and one more each time a while has passed.
pub(crate) struct Allowance {
    most: u32,
    every: Duration,
    left: u32,
    counted: Instant,
}

impl Allowance {
    pub(crate) fn new(most: u32, every: Duration) -> Self {
        Self { most, every, left: most, counted: Instant::now() }
    }

    pub(crate) fn take(&mut self) -> bool {
        let more = self.counted.elapsed().as_nanos().checked_div(self.every.as_nanos()).unwrap_or_default();
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(self.most);
            self.counted = Instant::now();
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

struct Ending {
    status: i32,
    /// Until the broker has had its time; then SIGTERM has been sent.
    terminate_at: Option<Instant>,
    kill_at: Instant,
    leave_at: Instant,
    thawed_by: Instant,
    killed: bool,
}

fn later(delay: Duration) -> Instant {
    let now = Instant::now();
    // A clock that cannot go on by half a minute has none left to tell.
    now.checked_add(delay).unwrap_or(now)
}

impl Supervisor {
    /// Opens the channels.
    ///
    /// # Errors
    /// What to say before ending with status 1: a channel that is not to be waited for cannot be opened.
    pub(crate) fn new(
        plan: Plan,
        equipment: Equipment,
        mut waiting: Waiting,
        reload: Option<Reload>,
    ) -> Result<Self, String> {
        let mut lines = Vec::with_capacity(CHANNELS);
        for channel in plan.channels {
            let descriptor = match channel::open(&channel.method) {
                Ok(descriptor) => Some(descriptor),
                Err(error) if channel.retry => {
                    log(Level::Warning, &format_args!("{error}: waiting for channel path..."));
                    // Nobody can say how long: who waits for us is let go.
                    waiting.ready();
                    None
                }
                Err(error) => return Err(error.to_string()),
            };
            let frontend = Backoff::new();
            lines.push(Line { channel, descriptor, next_open: later(RETRY), interval: RETRY, frontend });
        }
        Ok(Self {
            equipment,
            waiting,
            children: Vec::with_capacity(CHILDREN),
            control: None,
            broker: Backoff::new(),
            broker_deaths: 0,
            lines,
            allowances: std::array::from_fn(|_| Allowance::new(ALLOWANCE, Duration::from_secs(1))),
            ending: None,
            frozen: plan.frozen,
            thaw_until: None,
            settle_at: None,
            reload,
        })
    }

    /// Serves until the end of the agent and returns its exit status.
    pub(crate) fn run(mut self) -> i32 {
        let mut polled = Vec::with_capacity(CHILDREN.saturating_add(3));
        self.say_reloads();
        loop {
            if let Some(status) = self.finish() {
                return status;
            }
            self.start_due();
            self.wait(&mut polled);
            while let Some(signal) = self.next_signal() {
                match signal {
                    libc::SIGHUP => self.hang_up(),
                    _ => self.end_thawed(),
                }
            }
            if self.thaw_until.is_some_and(|until| Instant::now() >= until) {
                self.end(0);
            }
            self.serve_broker();
            self.reap();
            self.follow_reload();
            if self.settle_at.is_some_and(|settle_at| Instant::now() >= settle_at) {
                self.settle_at = None;
                jail::memory::let_go_of_start_code();
            }
        }
    }

    /// Goes on with ending; the status when it is done.
    fn finish(&mut self) -> Option<i32> {
        let ending = self.ending.as_mut()?;
        let now = Instant::now();
        // systemd kills what is left in the unit when this process has gone: not before it has thawed.
        let thaws = self.children.iter().any(|child| child.role == Role::Fsfreeze) && now < ending.thawed_by;
        if self.children.is_empty() || (now >= ending.leave_at && !thaws) {
            return Some(ending.status);
        }
        if ending.terminate_at.is_some_and(|at| now >= at) {
            ending.terminate_at = None;
            for child in &self.children {
                child.born.signal(libc::SIGTERM);
            }
        }
        if now >= ending.kill_at && !ending.killed {
            ending.killed = true;
            for child in self.children.iter().filter(|child| child.role != Role::Fsfreeze) {
                child.born.signal(libc::SIGKILL);
            }
        }
        None
    }

    /// Ends the agent, but has the broker thaw first if something is frozen: hooks are run then, and records written.
    fn end_thawed(&mut self) {
        if !self.frozen || self.control.is_none() {
            return self.end(0);
        }
        if self.thaw_until.is_none() {
            self.thaw_until = Some(later(THAW_WITHIN));
            self.tell(FromSpawner::Thaw, 0, &[]);
        }
    }

    fn end(&mut self, status: i32) {
        if self.ending.is_some() {
            return;
        }
        self.waiting.stopping();
        // The broker first: it sees the end of its socket, writes its last record and goes; then the others.
        self.control = None;
        let last_record = if self.is_running(Role::Broker, 0) { LAST_RECORD } else { Duration::ZERO };
        self.end_reload();
        self.thaw_until = None;
        let (kill_at, leave_at, thawed_by) = (later(KILL_AFTER), later(LEAVE_AFTER), later(THAWING));
        let terminate_at = Some(later(last_record));
        self.ending = Some(Ending { status, terminate_at, kill_at, leave_at, thawed_by, killed: false });
    }

    fn start_due(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let now = Instant::now();
        self.open_due(now);
        if !self.is_running(Role::Broker, 0) && now >= self.broker.next {
            self.start_broker();
        }
        for index in 0..self.lines.len() {
            self.start_frontend(index, now);
        }
        self.begin_reload();
    }

    fn open_due(&mut self, now: Instant) {
        for line in &mut self.lines {
            if line.descriptor.is_none() && now >= line.next_open {
                line.next_open = later(line.interval);
                // Said once when it was missed; from then on only when it is back.
                if let Ok(descriptor) = channel::open(&line.channel.method) {
                    log(Level::Message, &format_args!("channel opened"));
                    line.descriptor = Some(descriptor);
                }
            }
        }
    }

    fn start_broker(&mut self) {
        let equipment = &self.equipment;
        let started = control_pair().and_then(|(own, its)| {
            let descriptors = [
                Some(equipment.null.as_fd()),
                Some(equipment.null.as_fd()),
                Some(equipment.log.as_fd()),
                Some(its.as_fd()),
                Some(equipment.settings.as_fd()),
                equipment.audit.as_ref().map(AsFd::as_fd),
                equipment.state.as_ref().map(AsFd::as_fd),
                equipment.marker.as_ref().map(AsFd::as_fd),
                equipment.audit_socket.as_ref().map(AsFd::as_fd),
                equipment.chain.as_ref().map(AsFd::as_fd),
            ];
            let born = start(&equipment.birth(Role::Broker, 0, descriptors)?)?;
            Ok((own, born))
        });
        match started {
            Ok((own, born)) => {
                self.control = Some(Control::new(own));
                self.add(Role::Broker, 0, born);
            }
            Err(error) => {
                log(Level::Critical, &format_args!("cannot start the broker: {error}"));
                self.broker_has_ended(Duration::ZERO);
            }
        }
    }

    fn start_frontend(&mut self, index: usize, now: Instant) {
        let Ok(instance) = u16::try_from(index) else { return };
        // The broker may have been lost while an earlier frontend was announced.
        if self.control.is_none() || self.is_running(Role::Frontend, instance) {
            return;
        }
        let Some(line) = self.lines.get_mut(index).filter(|line| now >= line.frontend.next) else { return };
        let Some(channel) = &line.descriptor else { return };
        let equipment = &self.equipment;
        let started = packet_pair().and_then(|(broker, own)| {
            let (log, log_writer) = pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)?;
            let null = Some(equipment.null.as_fd());
            let descriptors = [
                null,
                null,
                Some(log_writer.as_fd()),
                Some(own.as_fd()),
                None,
                Some(channel.as_fd()),
                None,
                None,
                None,
                None,
            ];
            let born = start(&equipment.birth(Role::Frontend, instance, descriptors)?)?;
            Ok((broker, log, born))
        });
        match started {
            Ok((broker, log, born)) => {
                let pid = born.pid.unsigned_abs();
                self.add(Role::Frontend, instance, born);
                let event = FromSpawner::Frontend { channel: instance, pid };
                self.tell(event, 0, &[broker.as_fd(), log.as_fd()]);
            }
            Err(error) => {
                let delay = line.frontend.after(Duration::ZERO);
                log(
                    Level::Critical,
                    &format_args!("cannot start frontend {instance}: {error}; again in {delay:?}"),
                );
            }
        }
    }

    fn start_worker(&mut self, kind: Role, instance: u16, sequence: u32) {
        let refuse = |reason| FromSpawner::Refused { kind, instance, reason };
        if !self.equipment.workers.contains(&kind) {
            return self.tell(refuse(Reason::NotPermitted), sequence, &[]);
        }
        if self.is_running(kind, instance) {
            return self.tell(refuse(Reason::AlreadyRunning), sequence, &[]);
        }
        let allowed = self.allowances.get_mut(usize::from(kind as u8) - 1).is_some_and(Allowance::take);
        if !allowed {
            return self.tell(refuse(Reason::TooOften), sequence, &[]);
        }
        let equipment = &self.equipment;
        let started = packet_pair().and_then(|(broker, own)| {
            let (log, log_writer) = pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)?;
            let null = Some(equipment.null.as_fd());
            let settings = Some(equipment.settings.as_fd());
            let marker = equipment.marker.as_ref().filter(|_| kind == Role::Fsfreeze).map(AsFd::as_fd);
            let (log_writer, own) = (Some(log_writer.as_fd()), Some(own.as_fd()));
            let descriptors = [null, null, log_writer, own, settings, marker, None, None, None, None];
            let born = start(&equipment.birth(kind, instance, descriptors)?)?;
            Ok((broker, log, born))
        });
        match started {
            Ok((broker, log, born)) => {
                let pid = born.pid.unsigned_abs();
                self.add(kind, instance, born);
                let event = FromSpawner::Started { kind, instance, pid };
                self.tell(event, sequence, &[broker.as_fd(), log.as_fd()]);
            }
            Err(error) => {
                log(Level::Critical, &format_args!("cannot start {kind}: {error}"));
                self.tell(refuse(Reason::ExecFailed), sequence, &[]);
            }
        }
    }

    fn is_running(&self, role: Role, instance: u16) -> bool {
        self.children.iter().any(|child| child.role == role && child.instance == instance)
    }

    fn add(&mut self, role: Role, instance: u16, born: Born) {
        self.children.push(Child { role, instance, born, since: Instant::now(), orphan: false });
    }

    /// Waits for the next thing to happen.
    fn wait(&self, polled: &mut Vec<libc::pollfd>) {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        polled.clear();
        polled.push(entry(self.equipment.signals.as_raw_fd()));
        polled.extend(self.control.as_ref().map(|control| entry(control.as_raw_fd())));
        polled.extend(self.children.iter().map(|child| entry(child.born.pidfd.as_raw_fd())));
        polled.extend(self.compiling().map(|(born, _)| entry(born.pidfd.as_raw_fd())));
        let count = libc::nfds_t::try_from(polled.len()).unwrap_or_default();
        // SAFETY: as many pollfds as are given, alive across the call. What is ready is asked again without waiting, so
        // neither revents nor the result matters.
        unsafe { libc::poll(polled.as_mut_ptr(), count, self.milliseconds_to_wait()) };
    }

    /// Until the earliest of what is due; −1 for ever.
    fn milliseconds_to_wait(&self) -> libc::c_int {
        let earliest = match &self.ending {
            Some(ending) if ending.killed && Instant::now() >= ending.leave_at => Some(ending.thawed_by),
            Some(ending) if ending.killed => Some(ending.leave_at),
            Some(ending) => Some(ending.terminate_at.unwrap_or(ending.kill_at)),
            None => {
                let broker = (!self.is_running(Role::Broker, 0)).then_some(self.broker.next);
                let lines = (0..).zip(&self.lines).filter_map(|(instance, line)| match line.descriptor {
                    None => Some(line.next_open),
                    // One that still dies is waited for, and then its successor starts.
                    Some(_) if self.control.is_none() || self.is_running(Role::Frontend, instance) => None,
                    Some(_) => Some(line.frontend.next),
                });
                let compiling = self.compiling().map(|(_, until)| until);
                let others = [self.settle_at, self.thaw_until, compiling].into_iter().flatten();
                broker.into_iter().chain(lines).chain(others).min()
            }
        };
        let Some(earliest) = earliest else { return -1 };
        let left = earliest.saturating_duration_since(Instant::now());
        // Rounded up: waking a moment early would only poll again.
        libc::c_int::try_from(left.as_millis().saturating_add(1)).unwrap_or(libc::c_int::MAX)
    }

    /// SIGTERM, SIGINT or SIGHUP, if one has come.
    fn next_signal(&self) -> Option<libc::c_int> {
        let mut information = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: a signalfd writes whole signalfd_siginfo structs; there is room for one. It is non-blocking.
        let read =
            unsafe { libc::read(self.equipment.signals.as_raw_fd(), information.as_mut_ptr().cast(), size) };
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel has written all of it.
        libc::c_int::try_from(unsafe { information.assume_init() }.ssi_signo).ok()
    }

    fn serve_broker(&mut self) {
        // As many as there are children: a broker that floods does not keep the others' ends from being seen.
        for _ in 0..CHILDREN {
            let Some(control) = &self.control else { return };
            match control.try_receive_request() {
                Ok(None) => return,
                Ok(Some((sequence, request))) => self.serve(sequence, request),
                Err(ControlError::Closed) => return self.lose_broker(None),
                Err(error) => return self.lose_broker(Some(&error)),
            }
        }
    }

    fn serve(&mut self, sequence: u32, request: FromBroker) {
        if self.ending.is_some() {
            return;
        }
        match request {
            FromBroker::Start { kind, instance } => self.start_worker(kind, instance, sequence),
            FromBroker::Kill { kind, instance } => {
                // It may have ended by itself; then EXITED is on its way.
                for child in &self.children {
                    if child.role == kind && child.instance == instance && !child.orphan {
                        child.born.signal(libc::SIGKILL);
                    }
                }
            }
            FromBroker::Ready => {
                if !self.frozen {
                    tell::hold(false);
                }
                self.waiting.ready();
                self.settle_at = Some(later(QUIET));
            }
            FromBroker::Frozen { frozen } => {
                self.frozen = frozen;
                tell::hold(frozen);
                self.put_reload_off();
            }
            FromBroker::Rotate => self.rotate(sequence),
            FromBroker::Stop { status } => self.end(status.into()),
            FromBroker::Reloaded { accepted } => self.reloaded(sequence, accepted),
        }
    }

    /// Begins another file of the audit log, if there is a reason to.
    fn rotate(&mut self, sequence: u32) {
        let rotated = match &mut self.equipment.audit {
            // The filesystem may be a frozen one: renaming on it would not return.
            Some(_) if self.frozen => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            Some(log) => log.rotate().and_then(|number| Ok((number, log.as_fd().try_clone_to_owned()?))),
            None => Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
        match rotated {
            Ok((number, file)) => self.tell(FromSpawner::Rotated { number }, sequence, &[file.as_fd()]),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs();
                self.tell(FromSpawner::Kept { errno }, sequence, &[]);
            }
        }
    }

    /// Sends an event to the broker. One that does not read its socket has lost its use.
    fn tell(&mut self, event: FromSpawner, sequence: u32, descriptors: &[BorrowedFd<'_>]) {
        let Some(control) = &self.control else { return };
        if let Err(error) = control.send_event(event, sequence, descriptors) {
            self.lose_broker(Some(&ControlError::Io(error)));
        }
    }

    /// Kills the broker. What follows from it happens when it has ended.
    fn lose_broker(&mut self, error: Option<&ControlError>) {
        self.control = None;
        // At the end of the agent it closes its socket, with or without having read all of it.
        if let Some(error) = error.filter(|_| self.ending.is_none()) {
            log(Level::Critical, &format_args!("the broker is ended: {error}"));
        }
        if self.ending.is_none() {
            for child in self.children.iter().filter(|child| child.role == Role::Broker) {
                child.born.signal(libc::SIGKILL);
            }
        }
    }

    fn reap(&mut self) {
        let mut index = 0;
        while let Some(child) = self.children.get(index) {
            match child.born.ended() {
                Some(status) => {
                    let child = self.children.swap_remove(index);
                    self.has_ended(&child, status);
                }
                None => index = index.saturating_add(1),
            }
        }
    }

    fn has_ended(&mut self, child: &Child, status: libc::c_int) {
        let Child { role, instance, since, orphan, .. } = *child;
        if role == Role::Broker {
            match &mut self.ending {
                None => {
                    log(Level::Critical, &format_args!("the broker has ended ({})", Ended(status)));
                    self.broker_has_ended(since.elapsed());
                }
                Some(Ending { terminate_at: Some(at), .. }) => *at = Instant::now(),
                Some(_) => {}
            }
            self.control = None;
            return;
        }
        if !orphan {
            self.tell(FromSpawner::Exited { kind: role, instance, status }, 0, &[]);
        }
        if role == Role::Frontend && self.ending.is_none() && !orphan {
            self.frontend_has_ended(instance, status, since.elapsed());
        }
    }

    fn broker_has_ended(&mut self, lived: Duration) {
        for child in &mut self.children {
            child.orphan = true;
            // It sees that the broker has gone, thaws what is frozen, and ends by itself.
            if child.role != Role::Fsfreeze {
                child.born.signal(libc::SIGKILL);
            }
        }
        // Lines are still held: the next broker knows whether all is thawed.
        self.frozen = false;
        self.reload_without_answer();
        if self.thaw_until.is_some() {
            // It was to thaw before the end; its worker does, and the next agent runs the hook.
            return self.end(0);
        }
        self.broker_deaths = self.broker_deaths.saturating_add(1);
        if !self.waiting.is_ready() && self.broker_deaths >= BROKER_TRIES {
            log(Level::Critical, &format_args!("the broker does not start: giving up"));
            return self.end(1);
        }
        self.broker.after(lived);
    }

    fn frontend_has_ended(&mut self, instance: u16, status: libc::c_int, lived: Duration) {
        let Some(line) = self.lines.get_mut(usize::from(instance)) else { return };
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == CHANNEL_GONE {
            // A socket that was handed to us cannot be had again.
            let inherited = matches!(line.channel.method, Method::Inherited { .. });
            if !line.channel.reopen || inherited {
                log(Level::Message, &format_args!("channel {instance} has gone: ending"));
                return self.end(0);
            }
            log(Level::Warning, &format_args!("channel {instance} has gone: waiting for channel path..."));
            line.descriptor = None;
            line.interval = REOPEN;
            line.next_open = later(REOPEN);
            return;
        }
        let delay = line.frontend.after(lived);
        let ended = Ended(status);
        log(
            Level::Warning,
            &format_args!("frontend {instance} has ended ({ended}), starting again in {delay:?}"),
        );
    }
}

impl Equipment {
    fn birth<'a>(
        &'a self,
        role: Role,
        instance: u16,
        descriptors: [Option<BorrowedFd<'a>>; BORN_WITH],
    ) -> io::Result<Birth<'a>> {
        let program = self
            .programs
            .iter()
            .find_map(|(of, program)| (*of == role).then_some(program))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let (empty, row) = (self.empty.as_ref(), row(role));
        let network = empty.filter(|_| row.network == Network::Empty).map(|empty| empty.network.as_fd());
        let root =
            empty.filter(|_| row.root == RootView::Empty).map(|empty| empty.root.each_ref().map(AsFd::as_fd));
        Ok(Birth { program, uid_base: self.uid_base, instance, descriptors, network, root })
    }
}

/// A wait status in words.
struct Ended(libc::c_int);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if libc::WIFSIGNALED(self.0) {
            match libc::WTERMSIG(self.0) {
                libc::SIGSYS => f.write_str("signal 31: a system call that its filter refuses"),
                signal => write!(f, "signal {signal}"),
            }
        } else {
            write!(f, "status {}", libc::WEXITSTATUS(self.0))
        }
    }
}
