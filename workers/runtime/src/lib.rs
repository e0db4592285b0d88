//! What all workers share: be born, enter the jail, take a job, check it again, answer.
//!
//! Runs in every worker. It trusts its own sealed copy of the policy and the descriptors it was born with; it does
//! not trust the broker, which may have been taken over: every job is decided again here, by the same policy, and
//! one that the policy refuses ends this worker. It never works for anything but its own privilege.
#![forbid(unsafe_code)]

pub mod mountinfo;

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use authorize::{Asker, By, Policy, Sealed, authorize, decide};
pub use authorize::{RunAs, Terms};
use jail::{Ground, Role};
use pipe::{Pipe, PipeError};
use proto::fsfreeze::Request as Thaw;
use proto::message::{About, Detail, Found, FromWorker, Hello, Job, ToWorker};
use proto::settings::Settings;
use proto::{Failed, Reply, Request};

/// The broker's socket.
const SOCKET: i32 = 3;
/// Settings and policy.
const SEALED: i32 = 4;
/// More than any sealed policy.
const SEALED_LIMIT: usize = 16 * 1024 * 1024;

/// The pipe to the broker, as a worker holds it.
pub type ToBroker = Pipe<FromWorker, ToWorker>;

/// A worker before its jail is shut: files can still be opened, nothing has been read from the broker.
pub struct Birth {
    role: Role,
    sealed: Arc<Sealed>,
    pipe: Arc<ToBroker>,
    /// What the jail is built from; a worker adds what it needs.
    pub ground: Ground,
}

impl Birth {
    /// First thing in `main`: takes what the spawner gave. Ends the process if anything of it is missing.
    pub fn of(role: Role) -> Self {
        jail::report_panics(role);
        let ground = Ground::from_arguments(role).unwrap_or_else(|error| give_up(role, &error));
        let socket = jail::take_fd(SOCKET).unwrap_or_else(|error| give_up(role, &error));
        let file = jail::take_fd(SEALED).unwrap_or_else(|error| give_up(role, &error));
        let bytes = jail::sealed::read(std::os::fd::AsFd::as_fd(&file), SEALED_LIMIT)
            .unwrap_or_else(|error| give_up(role, &error));
        let sealed = Sealed::decode(&bytes).unwrap_or_else(|error| give_up(role, &error));
        Birth { role, sealed: Arc::new(sealed), pipe: Arc::new(Pipe::new(socket)), ground }
    }

    /// What was configured.
    pub fn settings(&self) -> &Settings {
        &self.sealed.settings
    }

    /// What is permitted; for what depends on it as a whole, such as the rights to keep.
    pub fn policy(&self) -> &authorize::Policy {
        &self.sealed.policy
    }

    /// Shuts the jail and serves until the broker goes: one job after the other, on this thread.
    pub fn serve<Q, A, E>(self, mut work: impl FnMut(Q, &Call<'_>) -> Result<A, E>) -> !
    where
        Q: TryFrom<Request>,
        A: Into<Reply>,
        E: Into<NotDone>,
    {
        let connection = self.enter(|| {});
        connection.serve_jobs(&mut work, &|_| {});
        jail::exit_now(0)
    }

    /// As [`Self::serve`], on `threads` threads that all take jobs from the one socket: while some are stuck in the
    /// kernel, the others go on. Jobs must be whole messages of one frame. `forget` takes back what was handed out
    /// under a handle.
    pub fn serve_on_threads<Q, A, E>(
        self,
        threads: usize,
        forget: impl Fn(u64) + Send + Sync + 'static,
        work: impl Fn(Q, &Call<'_>) -> Result<A, E> + Send + Sync + 'static,
    ) -> !
    where
        Q: TryFrom<Request> + 'static,
        A: Into<Reply> + 'static,
        E: Into<NotDone> + 'static,
    {
        let work = Arc::new((work, forget));
        let gate = Arc::new(Gate::default());
        let connection = Connection { role: self.role, sealed: self.sealed.clone(), pipe: self.pipe.clone() };
        // They exist before the filter, which then is put on all of them: it need not permit to make threads.
        let role = self.role;
        let start = {
            let gate = gate.clone();
            move || {
                for number in 1..threads {
                    let (work, gate, connection) = (work.clone(), gate.clone(), connection.clone());
                    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
                        gate.wait();
                        connection.serve_jobs(&work.0, &work.1);
                        jail::exit_now(0)
                    });
                    if let Err(error) = thread {
                        give_up(role, &format_args!("cannot start thread {number}: {error}"));
                    }
                }
                work
            }
        };
        let mut shared = None;
        let connection = self.enter(|| shared = Some(start()));
        gate.open();
        if let Some(work) = shared {
            connection.serve_jobs(&work.0, &work.1);
        }
        jail::exit_now(0)
    }

    /// Shuts the jail and tells the broker what holds. `before_filter` runs just before the last step.
    pub fn enter(self, before_filter: impl FnOnce()) -> Connection {
        let Birth { role, sealed, pipe, ground } = self;
        let entered = jail::enter(role, &ground, before_filter).unwrap_or_else(|error| give_up(role, &error));
        let hello = Hello {
            build_id: proto::BUILD_ID.to_owned(),
            role: role.name().to_owned(),
            confinement: entered.report(),
        };
        let connection = Connection { role, sealed, pipe };
        connection.send(0, &FromWorker::Hello(hello), &[]);
        connection.expect_hello();
        // The role that everything was for is a fraction of the code that has run so far.
        jail::memory::let_go_of_start_code();
        connection
    }
}

/// Holds threads back until the jail is shut.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A worker whose jail is shut.
#[derive(Clone)]
pub struct Connection {
    role: Role,
    sealed: Arc<Sealed>,
    pipe: Arc<ToBroker>,
}

/// What came from the broker, for workers that do more than one thing at a time.
pub enum Event<'a, Q> {
    /// A job; answered with [`Connection::answer`] under its id, now or later.
    Job(Q, Call<'a>),
    /// Bytes of the payload of the job with this id.
    Piece(u64, &'a [u8]),
    /// That many more pieces of the reply to the job with this id may be sent.
    More(u64, u16),
    /// Nobody waits for the job with this id any more.
    Abandoned(u64),
    /// What was handed out under this handle is to be taken back: nobody knows of it.
    Forget(u64),
    /// Filesystems are frozen, by a worker before this one.
    Adopt,
}

impl Connection {
    /// Waits for what the broker says next; `None` when it has gone. Ends the process if the broker breaks the
    /// protocol, or permits what the policy does not.
    pub fn receive<'a, Q: TryFrom<Request>>(&'a self, buffer: &'a mut [u8]) -> Option<Event<'a, Q>> {
        let received = self.or_end(self.pipe.receive(buffer))?;
        let (id, deadline_ms, payload) = (received.id, received.deadline_ms, received.payload);
        Some(match received.message {
            ToWorker::Job(Job { channel, request, detail }) => {
                let (request, terms) = self.permitted(id, &channel, request);
                let (output, found, policy) = (RefCell::default(), RefCell::default(), &self.sealed.policy);
                let call = Call { id, channel, detail, terms, deadline_ms, payload, output, policy, found };
                Event::Job(request, call)
            }
            ToWorker::Piece => Event::Piece(id, payload),
            ToWorker::More(count) => Event::More(id, count),
            ToWorker::Abandon => Event::Abandoned(id),
            ToWorker::Forget(handle) => Event::Forget(handle),
            ToWorker::Adopt => Event::Adopt,
            ToWorker::Hello(_) => self.fault("a second hello"),
            ToWorker::Record(_) => self.fault("what only the audit worker is told"),
        })
    }

    /// Serves records instead of jobs, one after the other, until the broker goes: `work` is given what is to be shown of each, and the
    /// record itself, as they came. Its error means that the broker has sent what it must not, and ends the process.
    pub fn serve_records(&self, mut work: impl FnMut(&About, &[u8]) -> Result<Result<(), Failed>, String>) {
        let mut buffer = ToBroker::buffer();
        while let Some(received) = self.or_end(self.pipe.receive(&mut buffer)) {
            let about = match received.message {
                ToWorker::Record(about) => about,
                ToWorker::Hello(_) => self.fault("a second hello"),
                _ => self.fault("what is no record"),
            };
            let recorded = work(&about, received.payload).unwrap_or_else(|what| self.fault(&what));
            self.send(received.id, &FromWorker::Recorded(recorded), &[]);
        }
    }

    /// The socket to the broker: readable when [`Self::receive`] would not wait.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.pipe.socket()
    }

    /// Sends bytes of one of the reply's streams; at most [`PIECE`](proto::limits::PIECE).
    pub fn piece(&self, id: u64, stream: u8, bytes: &[u8]) {
        self.send(id, &FromWorker::Piece(stream), bytes);
    }

    /// Says that a piece of a job's payload has been taken.
    pub fn taken(&self, id: u64) {
        self.send(id, &FromWorker::Taken, &[]);
    }

    /// Ends a job.
    pub fn answer<A: Into<Reply>>(&self, id: u64, result: Result<A, Failed>) {
        self.send(id, &FromWorker::Answer(result.map(Into::into), Found::default()), &[]);
    }

    /// Ends a job by what became of it, with what was found out about it and the bytes of its output.
    pub fn end<A: Into<Reply>, E: Into<NotDone>>(&self, call: &Call<'_>, result: Result<A, E>) {
        let found = call.found.take();
        let answer = match result.map_err(Into::into) {
            Ok(answer) => FromWorker::Answer(Ok(call.redacted(answer.into())), found),
            Err(NotDone::Failed(failed)) => FromWorker::Answer(Err(failed), found),
            Err(NotDone::Refused(Refused { found })) => FromWorker::Denied(found),
        };
        self.send(call.id, &answer, &call.output.borrow());
    }

    /// As [`Self::answer`], for a worker that has something to do before it ends: false if the broker has gone.
    pub fn answer_unless_gone<A: Into<Reply>>(&self, id: u64, result: Result<A, Failed>) -> bool {
        match self.pipe.send(id, 0, &FromWorker::Answer(result.map(Into::into), Found::default()), &[]) {
            Ok(()) => true,
            Err(PipeError::Socket(_)) => false,
            Err(error) => give_up(self.role, &error),
        }
    }

    /// Ends a job with the last bytes of the reply's first stream; at most [`PIECE`](proto::limits::PIECE).
    pub fn answer_with<A: Into<Reply>>(&self, id: u64, answer: A, bytes: &[u8]) {
        self.send(id, &FromWorker::Answer(Ok(answer.into()), Found::default()), bytes);
    }

    /// One job after the other until the broker goes.
    fn serve_jobs<Q, A, E>(&self, mut work: impl FnMut(Q, &Call<'_>) -> Result<A, E>, forget: &impl Fn(u64))
    where
        Q: TryFrom<Request>,
        A: Into<Reply>,
        E: Into<NotDone>,
    {
        let mut buffer = ToBroker::buffer();
        let mut output = Vec::new();
        while let Some(event) = self.receive(&mut buffer) {
            match event {
                Event::Job(request, call) => {
                    call.output.replace(std::mem::take(&mut output));
                    let result = work(request, &call);
                    self.end(&call, result);
                    output = call.output.into_inner();
                    output.clear();
                }
                // It has been done by now or waits behind this message; the broker drops the answer.
                Event::Abandoned(_) => {}
                Event::Forget(handle) => forget(handle),
                Event::Adopt => self.fault("what only the fsfreeze worker is told"),
                Event::Piece(..) | Event::More(..) => {
                    self.fault("a piece, or asked for one, in no job with pieces")
                }
            }
        }
    }

    /// Decides the request again, and finds out how it is to be done. What the policy refuses here was permitted by a broker that
    /// is not ours any more.
    fn permitted<Q: TryFrom<Request>>(
        &self,
        id: u64,
        channel: &str,
        request: Request,
    ) -> (Q, Option<Arc<Terms>>) {
        let name = request.command().name();
        // Thawing is always permitted; whether something is frozen is not for this worker to know.
        let thaws = matches!(request, Request::Fsfreeze(Thaw::Thaw(_) | Thaw::PhoenixThaw(_)));
        match authorize(&self.sealed.policy, Asker { channel, frozen: thaws }, request) {
            Ok(permitted) => {
                let terms = permitted.terms().cloned();
                let request = Q::try_from(permitted.into_request())
                    .unwrap_or_else(|_| self.fault(&format!("{name}, which is not this worker's")));
                (request, terms)
            }
            Err(refusal) => {
                self.send(id, &FromWorker::Refused(refusal.rule.to_string()), &[]);
                self.fault(&format!("{name}, which the policy refuses ({})", refusal.rule))
            }
        }
    }

    fn expect_hello(&self) {
        // A hello is short.
        let mut buffer = [0; 4096];
        let Some(received) = self.or_end(self.pipe.receive(&mut buffer)) else { jail::exit_now(0) };
        match received.message {
            ToWorker::Hello(hello) if hello.build_id == proto::BUILD_ID => {}
            ToWorker::Hello(hello) => give_up(
                self.role,
                &format_args!("the broker is of build {}, this is {}", hello.build_id, proto::BUILD_ID),
            ),
            _ => self.fault("no hello first"),
        }
    }

    fn send(&self, id: u64, message: &FromWorker, payload: &[u8]) {
        match self.pipe.send(id, 0, message, payload) {
            Ok(()) => {}
            Err(PipeError::Socket(_)) => jail::exit_now(0), // the broker has gone
            Err(error) => give_up(self.role, &error),
        }
    }

    fn or_end<T>(&self, result: Result<T, PipeError>) -> T {
        result.unwrap_or_else(|error| give_up(self.role, &error))
    }

    fn fault(&self, what: &str) -> ! {
        give_up(self.role, &format_args!("the broker sent {what}"))
    }
}

/// Why a job was not done.
#[derive(Debug, PartialEq, Eq)]
pub enum NotDone {
    /// It went wrong.
    Failed(Failed),
    /// The policy refuses it, for what was found out.
    Refused(Refused),
}

/// A refusal by the policy, for what was found out about a request. Nothing may have been done then.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Refused {
    found: Found,
}

impl From<Failed> for NotDone {
    fn from(failed: Failed) -> Self {
        NotDone::Failed(failed)
    }
}

impl From<Refused> for NotDone {
    fn from(refused: Refused) -> Self {
        NotDone::Refused(refused)
    }
}

/// What is known about a job beside its request.
pub struct Call<'a> {
    /// Names the job towards the broker.
    pub id: u64,
    /// The channel it came in by.
    pub channel: String,
    /// What the broker added.
    pub detail: Detail,
    /// How the rule that permits it wants it done; none if it does not say.
    pub terms: Option<Arc<Terms>>,
    /// After so many milliseconds nobody waits any more.
    pub deadline_ms: u32,
    /// Bytes that came with it.
    pub payload: &'a [u8],
    /// Bytes of the reply's first stream, at most [`PIECE`](proto::limits::PIECE): they go out with the answer.
    /// Empty at first; its allocation is kept from job to job.
    pub output: RefCell<Vec<u8>>,
    policy: &'a Policy,
    /// Goes out with the answer.
    found: RefCell<Found>,
}

impl Call<'_> {
    /// Whether the policy asks where the file is that a path leads to.
    pub fn asks_paths(&self) -> bool {
        self.policy.asks_paths()
    }

    /// Whether the policy asks for the number of the user that was named.
    pub fn asks_uids(&self) -> bool {
        self.policy.asks_uids()
    }

    /// Decides about `request`, the call's own, by what was found out about it. The broker hears of it with the answer.
    ///
    /// # Errors
    /// [`Refused`]: the job ends with it, before anything has been done.
    pub fn decide(&self, request: &Request, found: Found) -> Result<By, Refused> {
        let by = self.decide_again(request, &found)?;
        self.found.replace(found);
        Ok(by)
    }

    /// Says that another worker would do what the kernel refuses to this one, which started before it was there.
    pub fn is_too_old(&self) {
        self.found.borrow_mut().stale = true;
    }

    /// As [`Self::decide`], about what was found out by an earlier job and is known to the broker.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn decide_again(&self, request: &Request, found: &Found) -> Result<By, Refused> {
        let asker = Asker { channel: &self.channel, frozen: false };
        decide(self.policy, asker, request, found.into()).map_err(|_| Refused { found: found.clone() })
    }

    /// A reply without what the rule leaves out of it.
    pub fn redacted(&self, reply: Reply) -> Reply {
        match &self.terms {
            Some(terms) => terms.redaction.of(reply),
            None => reply,
        }
    }
}

/// Says why on the log and ends the process with status 1.
pub fn give_up(role: Role, why: &dyn std::fmt::Display) -> ! {
    eprintln!("{role}: {why}");
    jail::exit_now(1)
}
