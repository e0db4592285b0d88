//! The way of one request: decided, recorded, done, recorded, answered.
//!
//! Everything that is done for a host passes [`carry_out`], and nothing passes it without a [`Permitted`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use authorize::{Asker, Permitted, Refusal, authorize, is_never_counted};
use jail::Role;
use proto::message::{Detail, Job};
use proto::{Answer, Denied, Failed, Privilege, Reply, Request, agent, exec, limits};
use tokio::time::Instant;

use crate::Broker;
use crate::ask::Ask;
use crate::audit::{Decision, Outcome};
use crate::files;
use crate::workers::{Event, Instance, NotDone, role_of};

/// What work returns: the reply, the last bytes of its first stream, and how many bytes of payload there were in all.
pub(crate) struct Work {
    pub(crate) reply: Reply,
    pub(crate) last_bytes: Vec<u8>,
    pub(crate) total: u64,
}

impl Work {
    pub(crate) fn without_bytes(reply: impl Into<Reply>) -> Self {
        Work { reply: reply.into(), last_bytes: Vec::new(), total: 0 }
    }
}

/// How long a command of this privilege may take when nobody else waits for it.
pub(crate) const fn deadline(privilege: Privilege) -> Duration {
    match privilege {
        Privilege::Agent => Duration::from_secs(1),
        Privilege::Query
        | Privilege::Net
        | Privilege::NetAdmin
        | Privilege::Exec
        | Privilege::Power
        | Privilege::Clock => Duration::from_secs(10),
        // A disk that spins up, a network filesystem that fails over.
        Privilege::File => Duration::from_secs(30),
        // Memory blocks are emptied before they go; programs that change passwords ask directories in the network.
        Privilege::Hotplug | Privilege::Account => Duration::from_secs(60),
        // Freezing waits for what is being written, trimming for every disk: hours on some.
        Privilege::Fsfreeze => Duration::from_secs(4 * 3600),
    }
}

/// What is said when a command takes longer than its deadline.
pub(crate) fn too_late(command: &str, limit: Duration) -> Failed {
    Failed::new(format!(
        "{command} has not finished after {} s and is given up; what it works on does not answer",
        limit.as_secs()
    ))
}

/// Does what is asked, if it may be done.
pub(crate) async fn carry_out(broker: &Rc<Broker>, ask: &Rc<Ask>, request: Request) {
    crate::audit::keep_up(broker).await;
    let mut asked =
        broker.audit.asked(ask.channel.clone(), &request, || broker.files.borrow().path_of(&request));
    let asker = Asker { channel: &ask.channel, frozen: broker.freeze.holds() };
    let policy = ask.decide_by(broker.policy());
    let permitted = match authorize(policy, asker, request)
        .and_then(|permitted| not_too_often(broker, permitted))
    {
        Ok(permitted) => permitted,
        Err(refusal) => {
            // Nothing is done: a record that is missing hides nothing.
            let decision = Decision::refused(&refusal.rule);
            let _ = broker.audit.request(&asked, Some(decision), None, &Outcome::Denied, ask.is_abandoned());
            return ask.answer(Answer::Denied(refusal.denied), &[]);
        }
    };
    let rule = permitted.rule().clone();
    let decision = Decision::permitted(&rule, &permitted);
    let privilege = permitted.request().privilege();
    let worker = (privilege != Privilege::Agent).then(|| privilege.name());
    let changes = permitted.request().group().changes();
    if changes || broker.audit.is_required() {
        let begins =
            broker.audit.request(&asked, Some(decision), worker, &Outcome::Begins, ask.is_abandoned());
        if let Err(failed) = begins {
            return ask.answer(Answer::Failed(failed), &[]);
        }
        if let Err(failed) = broker.audit.settled().await {
            // The kernel may have it all the same: then it is to be known that nothing came of it.
            let outcome = Outcome::Failed(&failed);
            let _ = broker.audit.request(&asked, Some(decision), worker, &outcome, ask.is_abandoned());
            return ask.answer(Answer::Failed(failed), &[]);
        }
    }
    // Not of a program's input and output: they may be passwords, which a digest would let somebody guess.
    if broker.audit.is_on() && privilege == Privilege::File {
        ask.digest_payload();
    }
    let result = work(broker, ask, permitted).await;
    let found = ask.found();
    if let Some(path) = found.as_ref().and_then(|(found, _)| found.path.as_ref()) {
        asked.led_to(path.to_string());
    }
    let decided = found.as_ref().map_or(decision, |(_, by)| Decision::by(by));
    let (outcome, decision) = match &result {
        Ok(work) => (Outcome::Done(work.total, ask.digest(&work.last_bytes)), decided),
        Err(NotDone::Failed(failed)) => (Outcome::Failed(failed), decided),
        Err(NotDone::Denied(_, rule)) => (Outcome::Denied, Decision { name: "deny", rule, ..decision }),
    };
    // It has been done; the record before it is what was required.
    let _ = broker.audit.request(&asked, Some(decision), worker, &outcome, ask.is_abandoned());
    match result {
        Ok(work) => ask.answer(Answer::Done(work.reply), &work.last_bytes),
        Err(NotDone::Failed(failed)) => ask.answer(Answer::Failed(failed), &[]),
        Err(NotDone::Denied(denied, _)) => ask.answer(Answer::Denied(denied), &[]),
    }
}

/// Refuses what comes more often than its rule lets through.
fn not_too_often(broker: &Broker, permitted: Permitted) -> Result<Permitted, Box<Refusal>> {
    let Some(rate) = permitted.terms().and_then(|terms| terms.requests_per_second) else {
        return Ok(permitted);
    };
    let command = permitted.request().command();
    if is_never_counted(command) {
        return Ok(permitted);
    }
    let rule = permitted.rule().clone();
    match broker.rates.take(&rule, rate, Instant::now()) {
        Ok(()) => Ok(permitted),
        Err(wait) => {
            let denied = Denied::Arguments(format!(
                "Command {}: Resource temporarily unavailable: the policy lets {rate} of these through in a second; try again in {} ms",
                command.name(),
                wait.as_micros().div_ceil(1000),
            ));
            Err(Box::new(Refusal { denied, rule, request: permitted.into_request() }))
        }
    }
}

async fn work(broker: &Rc<Broker>, ask: &Rc<Ask>, permitted: Permitted) -> Result<Work, NotDone> {
    let (request, by) = permitted.into_parts();
    match request {
        Request::Agent(request) => Ok(agent_itself(broker, ask, &request)?),
        // In memory of their own: what waits for any request has room for the largest of these otherwise.
        Request::File(request) => Box::pin(files::work(broker, ask, request, by)).await,
        Request::Exec(exec::Request::Exec(request)) => {
            Ok(Box::pin(start_program(broker, ask, request)).await?)
        }
        Request::Exec(exec::Request::Status(request)) => Ok(program_status(broker, ask, request).await?),
        Request::Fsfreeze(request) => {
            Ok(Box::pin(crate::freeze::work(broker, ask, request, by.terms.as_deref())).await?)
        }
        request @ (Request::Query(_)
        | Request::Net(_)
        | Request::NetAdmin(_)
        | Request::Power(_)
        | Request::Clock(_)
        | Request::Hotplug(_)
        | Request::Account(_)) => simple(broker, ask, request).await,
    }
}

/// What is about the agent itself and not answered in front.
fn agent_itself(broker: &Rc<Broker>, ask: &Ask, request: &agent::Request) -> Result<Work, Failed> {
    match request {
        agent::Request::Shutdown(_) => {
            // Answered first, as its documentation promises; then everything ends with status 0.
            let reply = Reply::from(agent::Reply::Shutdown(true));
            ask.answer(Answer::Done(reply.clone()), &[]);
            ask.abandon();
            let broker = broker.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                crate::freeze::stop(&broker).await;
            });
            Ok(Work::without_bytes(reply))
        }
        agent::Request::AuditHead(_) if broker.audit.is_on() => {
            let head = broker.audit.head();
            let (sequence, hash) = (head.sequence, head.hash.to_string());
            Ok(Work::without_bytes(agent::Reply::AuditHead(agent::AuditHead { sequence, hash })))
        }
        agent::Request::AuditHead(_) => Err(Failed::new("this agent keeps no audit log")),
        agent::Request::Sync(_)
        | agent::Request::SyncDelimited(_)
        | agent::Request::Ping(_)
        | agent::Request::Info(_)
        | agent::Request::PhoenixPing(_)
        | agent::Request::Commands(_) => {
            Err(Failed::new(format!("{} is answered by the frontend", request.command().name())))
        }
    }
}

/// One job, one answer. The worker holds nothing: if it hangs it is ended.
pub(crate) async fn simple(broker: &Rc<Broker>, ask: &Ask, request: Request) -> Result<Work, NotDone> {
    let privilege = request.privilege();
    let role = role_of(privilege).ok_or_else(|| Failed::new("the agent answers this by itself"))?;
    let name = request.command().name();
    let limit = deadline(privilege);
    let mut running = None;
    let done = async {
        let instance = broker.workers.acquire(broker, role, Some(ask)).await?;
        let job = Job { channel: ask.channel.to_string(), request, detail: Detail::default() };
        running.insert(instance.run(job, ask.policy(), limit, &[])).end().await.0
    };
    let done = { broker.deadlines.within(limit, pin!(done)).await };
    match done {
        Ok(result) => {
            ask.note(running.and_then(|running| running.found()));
            result.map(Work::without_bytes)
        }
        Err(_) => {
            if let Some(running) = running {
                running.kill_worker(broker);
            }
            Err(too_late(name, limit).into())
        }
    }
}

/// Programs of `guest-exec` and the worker that knows of each.
#[derive(Default)]
pub(crate) struct Programs(RefCell<HashMap<i64, Rc<Instance>>>);

impl Programs {
    fn insert(&self, pid: i64, instance: &Rc<Instance>) {
        let mut programs = self.0.borrow_mut();
        // The worker forgets the oldest by itself; what it has forgotten need not be known here.
        if programs.len() >= 4 * limits::PROGRAMS {
            programs.retain(|_, instance| !instance.has_ended());
        }
        if programs.insert(pid, instance.clone()).is_none() {
            instance.hold();
        }
    }

    fn remove(&self, pid: i64) {
        if let Some(instance) = self.0.borrow_mut().remove(&pid) {
            instance.release();
        }
    }

    /// The worker that knows of it: after a reload not the one that starts others.
    fn find(&self, pid: i64) -> Option<Rc<Instance>> {
        self.0.borrow().get(&pid).cloned()
    }

    fn was_lost(&self, pid: i64) -> bool {
        self.0.borrow().get(&pid).is_some_and(|instance| instance.has_ended())
    }
}

async fn start_program(broker: &Rc<Broker>, ask: &Ask, request: exec::Exec) -> Result<Work, Failed> {
    let limit = deadline(Privilege::Exec);
    let length = request.input_data.length;
    // Before there is a worker: one that waits for a host is in nobody's way.
    let first = if length > 0 { ask.next_piece().await.unwrap_or_default() } else { Vec::new() };
    let instance = broker
        .deadlines
        .within(limit, pin!(broker.workers.acquire(broker, Role::Exec, Some(ask))))
        .await
        .unwrap_or_else(|_| Err(too_late("guest-exec", limit)))?;
    let mut sent = size(&first);
    let request = exec::Request::Exec(request).into();
    let running = instance.run(job(ask, request), ask.policy(), limit, &first);
    while sent < length {
        let Some(piece) = ask.next_piece().await else {
            return Err(Failed::new("guest-exec was abandoned before all of its input had come"));
        };
        match broker.deadlines.within(limit, pin!(running.next())).await {
            Ok(Event::Taken) => {}
            Ok(Event::End(result, _)) => return Ok(Work::without_bytes(result?)),
            Ok(Event::Lost(why)) => return Err(Failed::new(why)),
            Ok(Event::Piece(..)) | Err(_) => return Err(too_late("guest-exec", limit)),
        }
        sent = sent.saturating_add(size(&piece));
        running.piece(&piece);
    }
    // Given up, it is killed by the worker as soon as it starts.
    let end = pin!(running.end());
    let (result, _) = tokio::select! {
        biased;
        ended = broker.deadlines.within(limit, end) => ended.map_err(|_| too_late("guest-exec", limit))?,
        () = ask.cancelled() => return Err(Failed::new("guest-exec was abandoned before the program had started")),
    };
    let reply = result?;
    if let Reply::Exec(exec::Reply::Exec(started)) = &reply {
        broker.programs.insert(started.pid, &instance);
    }
    Ok(Work { reply, last_bytes: Vec::new(), total: length })
}

async fn program_status(broker: &Rc<Broker>, ask: &Ask, request: exec::Status) -> Result<Work, Failed> {
    let pid = request.pid;
    if broker.programs.was_lost(pid) {
        broker.programs.remove(pid);
        let why = "the exec worker that had started it ended, and what was known of it is lost";
        return Err(Failed::new(format!("PID {pid} does not exist: {why}")));
    }
    let limit = deadline(Privilege::Exec);
    let instance = match broker.programs.find(pid) {
        Some(instance) => instance,
        None => broker
            .deadlines
            .within(limit, pin!(broker.workers.acquire(broker, Role::Exec, Some(ask))))
            .await
            .unwrap_or_else(|_| Err(too_late("guest-exec-status", limit)))?,
    };
    let request = exec::Request::Status(request).into();
    let running = instance.run(job(ask, request), ask.policy(), limit, &[]);
    let mut total = 0_u64;
    loop {
        match broker.deadlines.within(limit, pin!(running.next())).await {
            Ok(Event::Piece(stream, bytes)) => {
                if !ask.send_piece(stream, &bytes).await {
                    // The worker keeps a result that nobody has taken.
                    return Err(Failed::new(
                        "guest-exec-status was abandoned before all of its output was sent",
                    ));
                }
                total = total.saturating_add(size(&bytes));
                running.more(1);
            }
            Ok(Event::End(result, last_bytes)) => {
                let reply = result?;
                if let Reply::Exec(exec::Reply::Status(exec::StatusDone { exited: true, .. })) = reply {
                    broker.programs.remove(pid);
                }
                total = total.saturating_add(size(&last_bytes));
                return Ok(Work { reply, last_bytes, total });
            }
            Ok(Event::Lost(why)) => return Err(Failed::new(why)),
            Ok(Event::Taken) => {}
            Err(_) => return Err(too_late("guest-exec-status", limit)),
        }
    }
}

fn job(ask: &Ask, request: Request) -> Job {
    Job { channel: ask.channel.to_string(), request, detail: Detail::default() }
}

pub(crate) fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
