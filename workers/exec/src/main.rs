//! The exec worker: starts the host's programs and keeps what becomes of them.
//!
//! Runs as root, unconfined, in a process of its own, because its programs must not inherit anything of the agent's; it is not
//! started unless the policy permits a program. It trusts its sealed policy, by which every job is decided again, and
//! nothing that the broker or a program says. It never starts what no job asked for, and never ends a program except one
//! that nobody waits for any more when it starts, or whose time, which the policy can limit, is over.
//!
//! One thread waits for the broker, for the ends of programs and for their pipes. Programs are started on other threads
//! ([`launch`]), since an exec from a dead file server does not return. Results stay in a bounded table ([`programs`]).
#![forbid(unsafe_code)]

mod launch;
mod programs;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jail::Role;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use proto::exec::{Exec, Reply, Request, Status, StatusDone};
use proto::{Failed, limits};
use runtime::{Birth, Connection, Event, Terms, ToBroker, give_up};

use launch::{Inherited, Launch, Launcher};
use programs::{Found, Programs};

/// How long a status waits for the end of a program that has only just started.
const MOMENT: Duration = Duration::from_millis(2);

/// Names the broker's socket among the things that are waited for.
const SOCKET: u64 = u64::MAX;

fn main() {
    let birth = Birth::of(Role::Exec);
    let inherited = Inherited::new(&birth.settings().environment);
    let connection = birth.enter(|| {});
    let shared = Shared::new(connection, inherited)
        .unwrap_or_else(|error| give_up(Role::Exec, &format_args!("cannot begin: {error}")));
    Worker::new(Arc::new(shared)).serve();
    // Programs go on, as those of qemu-ga do.
    jail::exit_now(0)
}

/// What the threads share.
pub(crate) struct Shared {
    connection: Connection,
    programs: Mutex<Programs>,
    epoll: Epoll,
    inherited: Inherited,
}

impl Shared {
    fn new(connection: Connection, inherited: Inherited) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(connection.socket(), EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
        Ok(Shared { connection, programs: Mutex::default(), epoll, inherited })
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that takes jobs.
struct Worker {
    shared: Arc<Shared>,
    launcher: Launcher,
    /// Programs whose input is not complete, by job.
    gathering: HashMap<u64, Gathering>,
    /// Results on their way, by job.
    reports: HashMap<u64, Report>,
    /// Statuses of programs that will have ended in a moment.
    waiting: Vec<Waiting>,
}

/// A status that is answered when its program has ended, or a little later.
struct Waiting {
    job: u64,
    pid: i64,
    until: Instant,
}

struct Gathering {
    exec: Exec,
    terms: Option<Arc<Terms>>,
    expected: usize,
    input: Vec<u8>,
}

/// How much of a program's output has been sent.
struct Report {
    program: u64,
    sent: usize,
    credit: u16,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        let launcher = Launcher::new(shared.clone());
        Worker { shared, launcher, gathering: HashMap::new(), reports: HashMap::new(), waiting: Vec::new() }
    }

    /// Serves until the broker goes.
    fn serve(mut self) {
        let connection = self.shared.connection.clone();
        let mut buffer = ToBroker::buffer();
        let mut scratch = vec![0; limits::PIECE];
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.shared.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => give_up(Role::Exec, &format_args!("cannot wait: {errno}")),
            };
            for event in events.iter().take(count) {
                if event.data() != SOCKET {
                    self.shared.programs().happened(&self.shared.epoll, event.data(), &mut scratch);
                    continue;
                }
                match connection.receive(&mut buffer) {
                    Some(event) => self.take(event),
                    None => return,
                }
            }
            for Waiting { job, pid, until } in std::mem::take(&mut self.waiting) {
                self.status(job, pid, until);
            }
        }
    }

    /// Until the first waiting status is to be answered.
    fn patience(&self) -> EpollTimeout {
        let Some(first) = self.waiting.iter().map(|waiting| waiting.until).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, so that it has passed then.
        let milliseconds = first.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        EpollTimeout::from(u8::try_from(milliseconds).unwrap_or(u8::MAX))
    }

    fn take(&mut self, event: Event<'_, Request>) {
        match event {
            Event::Job(Request::Exec(exec), call) => self.exec(call.id, exec, call.terms, call.payload),
            Event::Job(Request::Status(Status { pid }), call) => {
                self.status(call.id, pid, Instant::now() + MOMENT);
            }
            Event::Piece(job, bytes) => self.piece(job, bytes),
            Event::More(job, count) => {
                if let Some(report) = self.reports.get_mut(&job) {
                    report.credit = report.credit.saturating_add(count).min(limits::WINDOW);
                    self.report(job);
                }
            }
            Event::Abandoned(job) => self.abandoned(job),
            Event::Forget(_) | Event::Adopt => {
                give_up(Role::Exec, &"the broker spoke of files or filesystems, and this worker has none")
            }
        }
    }

    /// Accepts a program; it starts when all of its input is there.
    fn exec(&mut self, job: u64, exec: Exec, terms: Option<Arc<Terms>>, first: &[u8]) {
        let expected = usize::try_from(exec.input_data.length).unwrap_or(usize::MAX);
        if let Err(failed) = self.shared.programs().reserve(job, expected) {
            return self.shared.connection.answer::<Reply>(job, Err(failed));
        }
        let gathering = Gathering { exec, terms, expected, input: Vec::new() };
        match self.gathering.entry(job) {
            Entry::Occupied(_) => give_up(Role::Exec, &"the broker gave two jobs one number"),
            Entry::Vacant(place) => place.insert(gathering),
        };
        self.piece(job, first);
    }

    /// Takes input of a program; of one that was refused meanwhile, it is thrown away.
    fn piece(&mut self, job: u64, bytes: &[u8]) {
        let Entry::Occupied(mut entry) = self.gathering.entry(job) else { return };
        let Gathering { expected, input, .. } = entry.get_mut();
        input.extend_from_slice(bytes);
        if input.len() < *expected {
            return self.shared.connection.taken(job);
        }
        if input.len() > *expected {
            give_up(Role::Exec, &"the broker sent more input than it had announced");
        }
        let Gathering { exec, terms, input, .. } = entry.remove();
        let input = exec.input_data.present.then_some(input);
        self.launcher.launch(Launch { job, exec, input, terms });
    }

    /// Most programs end within milliseconds: a client that asks again at once costs more than a short wait.
    fn status(&mut self, job: u64, pid: i64, until: Instant) {
        let connection = &self.shared.connection;
        match self.shared.programs().find(pid) {
            Found::Nothing => {
                connection.answer::<Reply>(job, Err(Failed::new(format!("PID {pid} does not exist"))));
            }
            Found::Young if Instant::now() < until => self.waiting.push(Waiting { job, pid, until }),
            Found::Young | Found::Running => connection.answer(job, Ok(Reply::Status(StatusDone::default()))),
            Found::Ended(program) => {
                self.reports.insert(job, Report { program, sent: 0, credit: limits::WINDOW });
            }
        }
        self.report(job);
    }

    /// Sends what may be sent of a result; forgets the program with the last of it.
    fn report(&mut self, job: u64) {
        let Some(report) = self.reports.get_mut(&job) else { return };
        let connection = &self.shared.connection;
        let mut programs = self.shared.programs();
        let Some(program) = programs.get(report.program) else { return };
        while let Some((stream, bytes, last)) = program.captured(report.sent) {
            // What ends the first stream goes with the answer, which saves a message for almost all programs.
            if last && stream == 0 {
                connection.answer_with(job, Reply::Status(program.result()), bytes);
                break;
            }
            if report.credit == 0 {
                return;
            }
            connection.piece(job, stream, bytes);
            report.credit = report.credit.saturating_sub(1);
            report.sent = report.sent.saturating_add(1);
            if last {
                connection.answer(job, Ok(Reply::Status(program.result())));
                break;
            }
        }
        if program.captured(0).is_none() {
            connection.answer(job, Ok(Reply::Status(program.result())));
        }
        programs.forget(report.program);
        self.reports.remove(&job);
    }

    /// Takes back what would be handed out: input that came, a program that starts late, a result that was not sent whole.
    fn abandoned(&mut self, job: u64) {
        let given_up = || Err(Failed::new("nobody waits for this any more"));
        if let Some(position) = self.waiting.iter().position(|waiting| waiting.job == job) {
            self.waiting.remove(position);
            self.shared.connection.answer::<Reply>(job, given_up());
        } else if self.gathering.remove(&job).is_some() {
            self.shared.programs().release(job);
            self.shared.connection.answer::<Reply>(job, given_up());
        } else if let Some(report) = self.reports.remove(&job) {
            self.shared.programs().keep(report.program);
            self.shared.connection.answer::<Reply>(job, given_up());
        } else {
            self.shared.programs().unwanted(job);
        }
    }
}
