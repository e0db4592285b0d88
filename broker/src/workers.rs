//! Workers: started when first needed, given jobs, watched, ended when idle.
//!
//! A worker's messages are hostile input: an answer to a job that it does not have, or anything else out of order,
//! ends it. A worker that hangs is given up; the jobs of a worker that ends are answered for it.
//!
//! A worker keeps the policy that it was born with. When another comes into force it is **retired**: it gets no new work, only what
//! concerns the files and programs that it holds, and ends when it holds none; at once, with all that it holds, if the new policy has
//! no use for its kind. Where the retired ones of a kind have taken every place, the oldest gives up its own to the one that the new
//! policy needs: what is held may wait for ever to be closed, and must not keep a policy from being served.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use authorize::{Asker, By, Facts, Origin, Policy, authorize, decide, may_ever};
use jail::Role;
use pipe::Receiver;
use proto::message::{Found, FromWorker, Hello, Job, ToWorker};
use proto::{Denied, Failed, Group, PeerFault, Privilege, Reply, Request, limits};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Broker;
use crate::ask::Ask;
use crate::outbox::Outbox;
use crate::signal::Signal;

/// How many jobs may wait for a worker of one kind.
const WAITING: usize = 32;
/// How long a worker may take to shut its jail.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(5);
/// How long the spawner may take to say how a worker ended, before its jobs are answered without.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What one kind of worker can do at the same time.
struct Row {
    role: Role,
    /// Processes. The second takes over when the first hangs; stateful ones keep what they hold.
    instances: u16,
    /// Jobs in each.
    jobs: usize,
}

/// Who does the work of a privilege; nobody for what the agent itself answers.
pub(crate) const fn role_of(privilege: Privilege) -> Option<Role> {
    Some(match privilege {
        Privilege::Agent => return None,
        Privilege::Query => Role::Query,
        Privilege::File => Role::File,
        Privilege::Net => Role::Net,
        Privilege::NetAdmin => Role::NetAdmin,
        Privilege::Exec => Role::Exec,
        Privilege::Fsfreeze => Role::Fsfreeze,
        Privilege::Power => Role::Power,
        Privilege::Clock => Role::Clock,
        Privilege::Hotplug => Role::Hotplug,
        Privilege::Account => Role::Account,
    })
}

fn row(role: Role) -> Row {
    let (instances, jobs) = match role {
        Role::Query => (3, 1),
        Role::File => (2, limits::FILE_THREADS),
        Role::Net | Role::NetAdmin => (2, 1),
        Role::Exec => (1, 64),
        // What they change is one thing: two at once would contradict each other.
        _ => (1, 1),
    };
    Row { role, instances, jobs }
}

/// All workers.
pub(crate) struct Workers {
    instances: RefCell<Vec<Rc<Instance>>>,
    /// Numbers whose process the spawner has not seen ending.
    numbers: RefCell<Vec<(Role, u16)>>,
    freed: Notify,
    waiting: Cell<usize>,
    idle: Option<Duration>,
}

/// One worker process.
pub(crate) struct Instance {
    role: Role,
    number: u16,
    capacity: usize,
    outbox: OnceCell<Outbox<ToWorker>>,
    jobs: RefCell<BTreeMap<u64, Rc<Slot>>>,
    next_job: Cell<u64>,
    changed: Notify,
    state: RefCell<State>,
    /// What it was born with.
    policy: Rc<Policy>,
    /// Another policy is in force.
    retired: Cell<bool>,
    /// That policy permits nothing that its kind does.
    useless: Cell<bool>,
    /// Open files or programs that would be lost with it.
    holds: Cell<usize>,
    idle_since: Cell<Instant>,
    /// What it sees is not what there is any more: retired as well.
    stale: Cell<bool>,
}

enum State {
    Starting,
    Ready,
    /// Nothing more can be asked of it; why, if that is known by now.
    Ended(Option<String>),
}

/// Where the events of one job arrive.
struct Slot {
    /// As it was sent.
    job: Job,
    /// What the worker has found out about it, and the rule that permits it for that.
    found: RefCell<Option<(Found, By)>>,
    /// Pieces of the reply that the worker may still send, and pieces of the payload that it has not said it took.
    pieces: Cell<u16>,
    untaken: Cell<u16>,
    events: RefCell<VecDeque<Event>>,
    arrived: Signal,
    /// Set when nobody waits any more: what to do with a late success.
    late: RefCell<Option<Late>>,
}

/// What a worker says about a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes of one of the reply's streams.
    Piece(u8, Vec<u8>),
    /// A piece of the payload has been taken.
    Taken,
    /// It has ended, perhaps with the last bytes of the first stream.
    End(Result<Reply, NotDone>, Vec<u8>),
    /// The worker has ended; what it did of the job is unknown.
    Lost(String),
}

/// Why work was not done.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// It went wrong.
    Failed(Failed),
    /// The policy refuses it, for what was found out about it; by this rule.
    Denied(Denied, Origin),
}

impl From<Failed> for NotDone {
    fn from(failed: Failed) -> Self {
        NotDone::Failed(failed)
    }
}

/// For work about which nothing is found out.
impl From<NotDone> for Failed {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::Failed(failed) => failed,
            NotDone::Denied(denied, _) => Failed::new(denied.to_string()),
        }
    }
}

/// What to do when a job that was given up succeeds after all.
pub(crate) type Late = Box<dyn FnOnce(&Broker, &Rc<Instance>, Result<Reply, NotDone>)>;

/// A job under way. Dropped before its end, it is given up.
pub(crate) struct Running {
    instance: Rc<Instance>,
    id: u64,
    slot: Rc<Slot>,
    ended: Cell<bool>,
    lost: Cell<bool>,
    late: Cell<Option<Late>>,
}

impl Workers {
    pub(crate) fn new(idle_seconds: u32) -> Self {
        Workers {
            instances: RefCell::default(),
            numbers: RefCell::default(),
            freed: Notify::new(),
            waiting: Cell::new(0),
            idle: (idle_seconds > 0).then(|| Duration::from_secs(idle_seconds.into())),
        }
    }

    /// A worker of `role` that can take a job now, started if need be; whoever asks is told while it starts.
    pub(crate) async fn acquire(
        &self,
        broker: &Rc<Broker>,
        role: Role,
        ask: Option<&Ask>,
    ) -> Result<Rc<Instance>, Failed> {
        let row = row(role);
        let mut once_more = true;
        loop {
            if let Some(instance) = self.pick(broker, &row) {
                let starts = matches!(*instance.state.borrow(), State::Starting);
                let told = ask.filter(|_| starts).inspect(|ask| ask.starting(true));
                let ready = instance.when_ready().await;
                told.inspect(|ask| ask.starting(false));
                match ready {
                    Ok(()) => return Ok(instance),
                    // By the time that it was there it was one of an earlier policy.
                    Err(_) if instance.is_retired() => continue,
                    // Killed between its exec and its hello it has done nothing yet: another can be asked as well.
                    Err(why) if instance.was_executed() && std::mem::take(&mut once_more) => {
                        tracing::warn!(
                            "the {} ended before it was ready: {why}; another is started",
                            instance.name()
                        );
                        continue;
                    }
                    Err(why) => {
                        let name = row.role.name();
                        return Err(Failed::new(format!("the {name} worker does not start: {why}")));
                    }
                }
            }
            if self.waiting.get() >= WAITING {
                return Err(Failed::new(format!(
                    "the agent is busy: its {} workers have not finished earlier requests; try again later",
                    row.role.name()
                )));
            }
            self.waiting.set(self.waiting.get() + 1);
            let count_down = CountDown(&self.waiting);
            self.freed.notified().await;
            drop(count_down);
        }
    }

    fn pick(&self, broker: &Rc<Broker>, row: &Row) -> Option<Rc<Instance>> {
        let mut instances = self.instances.borrow_mut();
        instances.retain(|instance| !instance.has_ended());
        let of_kind =
            || instances.iter().filter(|instance| instance.role == row.role && !instance.is_retired());
        if let Some(free) = of_kind().find(|instance| instance.has_room()) {
            return Some(free.clone());
        }
        if of_kind().count() >= usize::from(row.instances) {
            return None;
        }
        let mut numbers = self.numbers.borrow_mut();
        let free = |number: &u16| !numbers.contains(&(row.role, *number));
        let Some(number) = (0..spawner::message::INSTANCES).find(free) else {
            // Others may be about to end; only where each of them holds something is there nothing to wait for.
            let mut living = instances.iter().filter(|instance| instance.role == row.role);
            if of_kind().next().is_none()
                && let Some(oldest) = living.next()
                && living.count() >= usize::from(spawner::message::INSTANCES - 1)
            {
                tracing::warn!(
                    "the oldest {} ends with what it holds: the policy in force needs its place",
                    oldest.name()
                );
                oldest.end(Some("reloads have brought too many policies while it held something".to_owned()));
                broker.control.kill(oldest.role, oldest.number);
            }
            return None;
        };
        numbers.push((row.role, number));
        let instance = Rc::new(Instance {
            role: row.role,
            number,
            capacity: row.jobs,
            outbox: OnceCell::new(),
            jobs: RefCell::default(),
            next_job: Cell::new(1),
            changed: Notify::new(),
            state: RefCell::new(State::Starting),
            policy: broker.policy(),
            retired: Cell::new(false),
            useless: Cell::new(false),
            holds: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            stale: Cell::new(false),
        });
        instances.push(instance.clone());
        tokio::task::spawn_local(live(broker.clone(), instance.clone()));
        Some(instance)
    }

    /// The one of its equals that a worker was born with, if there is one; otherwise itself.
    pub(crate) fn known(&self, policy: Policy) -> Rc<Policy> {
        let instances = self.instances.borrow();
        let equal = instances.iter().find(|instance| *instance.policy == policy);
        equal.map_or_else(|| Rc::new(policy), |instance| instance.policy.clone())
    }

    /// `policy` is in force: workers that were born with another get nothing new to do.
    pub(crate) fn retire(&self, policy: &Rc<Policy>) {
        for instance in self.instances.borrow().iter() {
            instance.retired.set(!Rc::ptr_eq(&instance.policy, policy));
            instance.useless.set(!has_use_for(policy, instance.role));
            instance.changed.notify_waiters();
        }
        self.freed.notify_waiters();
    }

    /// Waits until no worker of `role` has a job, but not longer than `limit`.
    pub(crate) async fn drained(&self, role: Role, limit: Duration) {
        let busy = |instance: &Rc<Instance>| instance.role == role && !instance.jobs.borrow().is_empty();
        let all = async {
            while self.instances.borrow().iter().any(busy) {
                self.freed.notified().await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("a {} worker still works when its filesystem is frozen", role.name());
        }
    }

    /// The spawner has seen a worker's end.
    pub(crate) fn exited(&self, role: Role, number: u16, how: &str) {
        self.numbers.borrow_mut().retain(|known| *known != (role, number));
        for instance in self.instances.borrow().iter() {
            if instance.role == role && instance.number == number {
                instance.end(Some(how.to_owned()));
            }
        }
        self.freed.notify_waiters();
    }
}

/// Whether `policy` permits anything that a worker of `role` does.
fn has_use_for(policy: &Policy, role: Role) -> bool {
    // The hook is run where freezing is permitted.
    let role = if role == Role::Hook { Role::Fsfreeze } else { role };
    let of_role = |group: Group| {
        proto::commands().any(|command| command.group == group && role_of(command.privilege) == Some(role))
    };
    Group::ALL.iter().any(|group| of_role(*group) && may_ever(policy, *group))
}

/// Takes a number back when the future that counted it is dropped.
struct CountDown<'a>(&'a Cell<usize>);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Instance {
    fn name(&self) -> String {
        format!("{} worker", self.role.name())
    }

    fn has_room(&self) -> bool {
        !self.is_retired() && self.jobs.borrow().len() < self.capacity
    }

    /// Whether nothing more can be asked of it.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    /// Whether it gets nothing new to do.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get() || self.stale.get()
    }

    /// Whether it is retired and has nothing left to do.
    fn is_done(&self) -> bool {
        self.is_retired() && self.jobs.borrow().is_empty() && (self.holds.get() == 0 || self.useless.get())
    }

    /// Something that it had to do has ended.
    fn did(&self) {
        self.idle_since.set(Instant::now());
        if self.is_retired() {
            self.changed.notify_waiters();
        }
    }

    /// Counts what would be lost with it.
    pub(crate) fn hold(&self) {
        self.holds.set(self.holds.get() + 1);
    }

    /// Counts down again.
    pub(crate) fn release(&self) {
        self.holds.set(self.holds.get().saturating_sub(1));
        self.did();
    }

    /// Waits for its end, or for another policy.
    pub(crate) async fn ended_or_retired(&self) {
        loop {
            let changed = self.changed.notified();
            if self.has_ended() || self.is_retired() {
                return;
            }
            changed.await;
        }
    }

    /// Whether the spawner has started it, ready or not.
    fn was_executed(&self) -> bool {
        self.outbox.get().is_some()
    }

    async fn when_ready(&self) -> Result<(), String> {
        loop {
            let changed = self.changed.notified();
            match &*self.state.borrow() {
                State::Ready => return Ok(()),
                State::Ended(why) => return Err(why.clone().unwrap_or_else(|| "it ended".to_owned())),
                State::Starting => {}
            }
            changed.await;
        }
    }

    fn end(&self, why: Option<String>) {
        let mut state = self.state.borrow_mut();
        if let State::Ended(Some(_)) = *state {
            return;
        }
        *state = State::Ended(why);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Gives it a job, with the piece of payload that belongs to it. The worker decides by its own policy, and ends when it is asked
    /// for what that refuses; so where the job was decided by another, `policy`, its own is asked first.
    pub(crate) fn run(
        self: &Rc<Self>,
        job: Job,
        policy: &Rc<Policy>,
        deadline: Duration,
        payload: &[u8],
    ) -> Running {
        let id = self.next_job.get();
        self.next_job.set(id + 1);
        let agreed = self.agrees(&job.channel, policy, || job.request.clone());
        let message = ToWorker::Job(job);
        if agreed.is_ok() && !self.has_ended() {
            let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
            self.send(id, deadline_ms, &message, payload);
        }
        let ToWorker::Job(job) = message else { unreachable!("it was made so above") };
        let slot = Rc::new(Slot::new(job));
        let event = match agreed {
            Err(not_done) => Some(Event::End(Err(not_done), Vec::new())),
            Ok(()) => self.has_ended().then(|| Event::Lost(self.lost())),
        };
        match event {
            Some(event) => slot.push(event),
            None => _ = self.jobs.borrow_mut().insert(id, slot.clone()),
        }
        Running {
            instance: self.clone(),
            id,
            slot,
            ended: Cell::new(false),
            lost: Cell::new(false),
            late: Cell::new(None),
        }
    }

    /// Whether it may be asked: its own policy permits what was decided by `policy`.
    ///
    /// # Errors
    /// What is answered instead.
    pub(crate) fn agrees(
        &self,
        channel: &str,
        policy: &Rc<Policy>,
        request: impl FnOnce() -> Request,
    ) -> Result<(), NotDone> {
        if Rc::ptr_eq(policy, &self.policy) {
            return Ok(());
        }
        let (asker, request) = (Asker { channel, frozen: false }, request());
        let name = request.command().name();
        match authorize(&self.policy, asker, request) {
            Ok(_) => Ok(()),
            Err(_) if self.is_retired() => Err(NotDone::Failed(Failed::new(format!(
                "{name}: the policy that was in force when this was opened or started does not permit it; open or start it again"
            )))),
            Err(refusal) => Err(NotDone::Denied(refusal.denied, refusal.rule)),
        }
    }

    /// Closes what was opened too late for anybody to know of it.
    pub(crate) fn forget(&self, handle: u64) {
        self.send(0, 0, &ToWorker::Forget(handle), &[]);
    }

    fn send(&self, id: u64, deadline_ms: u32, message: &ToWorker, payload: &[u8]) {
        if let Some(outbox) = self.outbox.get() {
            outbox.send(id, deadline_ms, message, payload);
        }
    }

    fn lost(&self) -> String {
        let how = match &*self.state.borrow() {
            State::Ended(Some(how)) => how.clone(),
            _ => "unexpectedly".to_owned(),
        };
        format!(
            "the {} ended ({how}) before it had answered; whether it did the work is not known",
            self.name()
        )
    }

    /// A job has ended.
    fn done(&self, broker: &Broker, id: u64) {
        self.jobs.borrow_mut().remove(&id);
        self.did();
        broker.workers.freed.notify_waiters();
    }

    /// Handles one message; an error is the worker's fault.
    fn take(
        self: &Rc<Self>,
        broker: &Rc<Broker>,
        id: u64,
        message: FromWorker,
        payload: &[u8],
    ) -> Result<(), String> {
        let slot = self.jobs.borrow().get(&id).cloned().ok_or("an answer to a job that it does not have")?;
        let event = match message {
            FromWorker::Piece(stream) => {
                use_up(&slot.pieces, "a piece that it was not asked for")?;
                Event::Piece(stream, payload.to_vec())
            }
            FromWorker::Taken => {
                use_up(&slot.untaken, "that it took what it was not given")?;
                Event::Taken
            }
            FromWorker::Answer(Ok(reply), _)
                if !std::ptr::eq(reply.command(), slot.job.request.command()) =>
            {
                let asked = slot.job.request.command().name();
                return Err(format!("a reply of {} to {asked}", reply.command().name()));
            }
            FromWorker::Answer(result, found) => {
                if found != Found::default() {
                    let by = slot.decide(&self.policy, &found)?;
                    self.stale.set(self.stale.get() || found.stale);
                    let by = by.map_err(|(_, rule)| format!("that it did what rule {rule} refuses"))?;
                    slot.found.replace(Some((found, by)));
                }
                self.done(broker, id);
                Event::End(result.map_err(NotDone::Failed), payload.to_vec())
            }
            FromWorker::Denied(found) => {
                let Err((denied, rule)) = slot.decide(&self.policy, &found)? else {
                    return Err("a refusal of what the policy permits".to_owned());
                };
                self.done(broker, id);
                Event::End(Err(NotDone::Denied(denied, rule)), Vec::new())
            }
            FromWorker::Refused(rule) => {
                return Err(format!("a refusal by rule {rule} of what was permitted"));
            }
            FromWorker::Hello(_) => return Err("a second hello".to_owned()),
            FromWorker::Recorded(_) => {
                return Err("an answer to a record, in place of one to a job".to_owned());
            }
        };
        match (slot.late.borrow_mut().take(), event) {
            (None, event) => slot.push(event),
            (Some(late), Event::End(result, _)) => late(broker, self, result),
            (Some(late), _) => *slot.late.borrow_mut() = Some(late),
        }
        Ok(())
    }
}

/// What a worker may say so often; an error is its fault.
fn use_up(allowance: &Cell<u16>, what: &str) -> Result<(), String> {
    let left = allowance.get().checked_sub(1).ok_or_else(|| what.to_owned())?;
    allowance.set(left);
    Ok(())
}

impl Slot {
    fn new(job: Job) -> Self {
        Slot {
            job,
            found: RefCell::default(),
            pieces: Cell::new(limits::WINDOW),
            untaken: Cell::new(1),
            events: RefCell::default(),
            arrived: Signal::default(),
            late: RefCell::default(),
        }
    }

    /// What the worker's policy says of the job by what was found out about it. The worker's word for that is as good as its work: one that
    /// has been taken over can do what its jail permits, and say what it likes.
    fn decide(&self, policy: &Policy, found: &Found) -> Result<Result<By, (Denied, Origin)>, String> {
        if found.path.as_ref().is_some_and(|path| path.0.len() > limits::FOUND_PATH) {
            return Err("a path that is too long".to_owned());
        }
        let asker = Asker { channel: &self.job.channel, frozen: false };
        Ok(decide(policy, asker, &self.job.request, Facts::from(found)))
    }

    fn push(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
        self.arrived.set();
    }
}

impl Running {
    /// Waits for what happens next. Nothing happens after `End` or `Lost`.
    pub(crate) async fn next(&self) -> Event {
        loop {
            let event = self.slot.events.borrow_mut().pop_front();
            match event {
                Some(event) => {
                    self.ended.set(matches!(event, Event::End(..) | Event::Lost(_)));
                    self.lost.set(matches!(event, Event::Lost(_)));
                    return event;
                }
                None => self.slot.arrived.wait().await,
            }
        }
    }

    /// Waits for the end of a job that has no pieces.
    pub(crate) async fn end(&self) -> (Result<Reply, NotDone>, Vec<u8>) {
        loop {
            match self.next().await {
                Event::End(result, bytes) => return (result, bytes),
                Event::Lost(why) => return (Err(Failed::new(why).into()), Vec::new()),
                Event::Piece(..) | Event::Taken => {}
            }
        }
    }

    /// What the worker has found out about the job, and the rule that permits it for that; nothing before its end, and where the
    /// policy does not ask.
    pub(crate) fn found(&self) -> Option<(Found, By)> {
        self.slot.found.take()
    }

    /// Whether the worker ended before it had answered.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// What to do if it is given up and succeeds all the same.
    pub(crate) fn if_late(&self, late: Late) {
        self.late.set(Some(late));
    }

    /// Sends a further piece of the job's payload.
    pub(crate) fn piece(&self, bytes: &[u8]) {
        self.slot.untaken.set(self.slot.untaken.get().saturating_add(1));
        self.instance.send(self.id, 0, &ToWorker::Piece, bytes);
    }

    /// Lets the worker send that many more pieces of the reply.
    pub(crate) fn more(&self, count: u16) {
        self.slot.pieces.set(self.slot.pieces.get().saturating_add(count));
        self.instance.send(self.id, 0, &ToWorker::More(count), &[]);
    }

    /// Ends a worker that holds nothing, because this job of it does not end.
    pub(crate) fn kill_worker(&self, broker: &Broker) {
        tracing::warn!("the {} hangs and is ended", self.instance.name());
        self.instance.end(Some("it did not finish in time".to_owned()));
        broker.control.kill(self.instance.role, self.instance.number);
        broker.workers.freed.notify_waiters();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended.get() && !self.instance.has_ended() {
            let late = self.late.take().unwrap_or_else(|| Box::new(|_, _, _| {}));
            *self.slot.late.borrow_mut() = Some(late);
            self.instance.send(self.id, 0, &ToWorker::Abandon, &[]);
        }
    }
}

/// A worker's life, from the spawner's start to its end.
async fn live(broker: Rc<Broker>, instance: Rc<Instance>) {
    let name = instance.name();
    let socket = match broker.control.start(instance.role, instance.number).await {
        Ok((socket, log)) => {
            tokio::task::spawn_local(crate::logs::copy(name.clone(), log));
            socket
        }
        Err(why) => {
            tracing::error!("the {name} does not start: {why}");
            let gone = |known: &(Role, u16)| *known != (instance.role, instance.number);
            broker.workers.numbers.borrow_mut().retain(gone);
            instance.end(Some(why));
            return;
        }
    };
    match converse(&broker, &instance, socket).await {
        Err(what) => {
            tracing::error!("{}", PeerFault { peer: name, what });
            broker.control.kill(instance.role, instance.number);
        }
        // Its end: the spawner says how, usually at once.
        Ok(()) => {
            if instance.jobs.borrow().is_empty() {
                instance.end(Some("exit".to_owned()));
            }
            // Whoever knows of what it holds keeps its socket open, so it sees no end.
            if instance.holds.get() > 0 {
                broker.control.kill(instance.role, instance.number);
            }
        }
    }
    let _ = tokio::time::timeout(LAST_WORDS, async {
        while !matches!(*instance.state.borrow(), State::Ended(Some(_))) {
            instance.changed.notified().await;
        }
    })
    .await;
    instance.end(None);
    broker.workers.instances.borrow_mut().retain(|other| !Rc::ptr_eq(other, &instance));
    let lost = instance.lost();
    let jobs = std::mem::take(&mut *instance.jobs.borrow_mut());
    if !jobs.is_empty() || instance.holds.get() > 0 {
        tracing::warn!("{lost}");
    }
    for slot in jobs.into_values() {
        slot.push(Event::Lost(lost.clone()));
    }
    broker.workers.freed.notify_waiters();
}

async fn converse(broker: &Rc<Broker>, instance: &Rc<Instance>, socket: OwnedFd) -> Result<(), String> {
    let (sender, mut receiver) = pipe::split(socket).map_err(|error| error.to_string())?;
    let outbox = instance.outbox.get_or_init(|| Outbox::new(sender));
    let greeted =
        tokio::time::timeout(START_LIMIT, greet(broker, instance.role, outbox, &mut receiver)).await;
    if !greeted.map_err(|_| "nothing within 5 s of its start".to_owned())?? {
        return Ok(());
    }
    if instance.role == Role::Fsfreeze && broker.freeze.holds() {
        outbox.send(0, 0, &ToWorker::Adopt, &[]);
    }
    *instance.state.borrow_mut() = State::Ready;
    instance.idle_since.set(Instant::now());
    instance.changed.notify_waiters();
    tokio::task::spawn_local(end_when_idle(instance.clone(), broker.workers.idle));
    let receive = async {
        loop {
            match receiver.receive().await {
                Ok(Some(received)) => {
                    instance.take(broker, received.id, received.message, received.payload)?;
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    tokio::select! {
        biased;
        outcome = receive => outcome,
        () = outbox.run() => Ok(()),
    }
}

/// Exchanges hellos with a worker. False if it went before it said anything.
pub(crate) async fn greet(
    broker: &Broker,
    role: Role,
    outbox: &Outbox<ToWorker>,
    receiver: &mut Receiver<FromWorker>,
) -> Result<bool, String> {
    let hello = ToWorker::Hello(Hello {
        build_id: proto::BUILD_ID.to_owned(),
        role: Role::Broker.name().to_owned(),
        confinement: Vec::new(),
    });
    outbox.send(0, 0, &hello, &[]);
    let Some(received) = receiver.receive().await.map_err(|error| error.to_string())? else {
        return Ok(false);
    };
    match received.message {
        FromWorker::Hello(hello) if hello.build_id == proto::BUILD_ID && hello.role == role.name() => {
            broker.audit.note("worker", &serde_json::json!({
                "worker": hello.role,
                "confinement": hello.confinement.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            }));
            Ok(true)
        }
        FromWorker::Hello(hello) => Err(format!(
            "a hello of {} of build {}: reinstall, all programs together",
            hello.role, hello.build_id
        )),
        _ => Err("no hello first".to_owned()),
    }
}

/// Ends a worker when it has had no job and held nothing for as long as was configured, or is retired and has neither. In a task of its
/// own: beside the worker's messages it would be looked at with each of them.
async fn end_when_idle(instance: Rc<Instance>, idle: Option<Duration>) {
    loop {
        let changed = instance.changed.notified();
        if instance.is_done() || instance.has_ended() {
            break;
        }
        let Some(idle) = idle else {
            changed.await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep_until(instance.idle_since.get() + idle) => {
                if !instance.jobs.borrow().is_empty() || instance.holds.get() > 0 {
                    instance.idle_since.set(Instant::now());
                } else if instance.idle_since.get().elapsed() >= idle {
                    break;
                }
            }
            () = changed => {}
        }
    }
    if !instance.has_ended() {
        // At once: until the task that hears of it runs, nobody may ask it for anything any more.
        instance.end(Some("exit".to_owned()));
    }
    if let Some(outbox) = instance.outbox.get() {
        outbox.close();
    }
}
