//! Frontends: greeted, told what is served, listened to.
//!
//! A frontend faces the host and is believed to be taken over at any time: what it may say is a small set of messages,
//! bounded in number; the first wrong one ends it. What it asked for goes on without it, its answers are dropped.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use authorize::{Origin, Policy};
use jail::Role;
use proto::message::{FromFrontend, Hello, ToFrontend, Welcome};
use proto::settings::ChannelSettings;
use proto::{Command, CommandId, Dialect, Group, PeerFault, Request, limits};

use crate::Broker;
use crate::ask::Ask;
use crate::dispatch;
use crate::outbox::Outbox;

/// Requests of one frontend that may be under way, those that it has abandoned included.
const UNDER_WAY: usize = 64;

/// Most records that one message of a frontend can cause; it sends one message each time it has read from its channel.
const EACH: u32 = 64;

/// How long after the start its code and memory are let go: by then the first requests have usually come.
const QUIET: Duration = Duration::from_millis(200);

/// Which channels are in service.
#[derive(Default)]
pub(crate) struct Frontends {
    greeted: Vec<u16>,
    said_ready: bool,
    /// Those that are listened to.
    live: Vec<(ChannelSettings, Weak<Outbox<ToFrontend>>)>,
}

/// A frontend's life, from the spawner's start to its end.
pub(crate) async fn serve(broker: Rc<Broker>, channel: u16, socket: OwnedFd) {
    let name = format!("frontend {channel}");
    let Some(settings) = broker.settings.channels.get(usize::from(channel)).cloned() else {
        tracing::error!("{name} has no channel in the settings");
        return;
    };
    if let Err(what) = converse(&broker, channel, &settings, socket).await {
        tracing::error!("{}", PeerFault { peer: name, what });
        broker.control.kill(Role::Frontend, channel);
    }
}

async fn converse(
    broker: &Rc<Broker>,
    number: u16,
    settings: &ChannelSettings,
    socket: OwnedFd,
) -> Result<(), String> {
    let (sender, mut receiver) = pipe::split(socket).map_err(|error| error.to_string())?;
    let outbox = Rc::new(Outbox::new(sender));
    let hello = ToFrontend::Hello(Hello {
        build_id: proto::BUILD_ID.to_owned(),
        role: Role::Broker.name().to_owned(),
        confinement: Vec::new(),
    });
    outbox.send(0, 0, &hello, &[]);
    outbox.send(0, 0, &ToFrontend::Welcome(welcome(broker, settings)), &[]);
    broker.frontends.borrow_mut().live.push((settings.clone(), Rc::downgrade(&outbox)));
    let flush = {
        let outbox = outbox.clone();
        async move { outbox.run().await }
    };
    let mut lanes = Lanes::new(broker.clone(), settings, outbox);
    let shared = lanes.shared.clone();
    let mut work = Work::new(|begun| shared.clone().carry_out(begun));
    let receive = async {
        loop {
            let received = match receiver.receive().await {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
            match received.message {
                FromFrontend::Hello(hello) => greet(broker, number, &hello)?,
                message => lanes.take(received.id, message, received.payload)?,
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = receive => outcome,
        () = std::future::poll_fn(|context| work.poll(&shared, context)) => Ok(()),
        () = flush => Ok(()),
    };
    lanes.leave();
    work.go_on_alone(&shared);
    outcome
}

fn greet(broker: &Broker, number: u16, hello: &Hello) -> Result<(), String> {
    if hello.build_id != proto::BUILD_ID || hello.role != Role::Frontend.name() {
        return Err(format!(
            "a hello of {} of build {}: reinstall, all programs together",
            hello.role, hello.build_id
        ));
    }
    let mut frontends = broker.frontends.borrow_mut();
    if !frontends.greeted.contains(&number) {
        frontends.greeted.push(number);
    }
    if frontends.greeted.len() == broker.settings.channels.len() && !frontends.said_ready {
        frontends.said_ready = true;
        broker.control.ready();
        tokio::task::spawn_local(async {
            tokio::time::sleep(QUIET).await;
            jail::memory::let_go_of_start_code();
        });
    }
    Ok(())
}

/// Tells all frontends what is served from now on.
pub(crate) fn welcome_again(broker: &Broker) {
    broker.frontends.borrow_mut().live.retain(|(settings, outbox)| {
        let outbox = outbox.upgrade();
        if let Some(outbox) = &outbox {
            outbox.send(0, 0, &ToFrontend::Welcome(welcome(broker, settings)), &[]);
        }
        outbox.is_some()
    });
}

fn welcome(broker: &Broker, settings: &ChannelSettings) -> Welcome {
    let frozen = broker.freeze.holds();
    let policy = broker.policy();
    let verdicts = settings
        .dialects
        .iter()
        .flat_map(|dialect| authorize::served(&policy, &settings.name, frozen, *dialect))
        .filter(|(command, _)| broker.settings.extensions || !command.extension)
        .map(|(command, served)| (command.id(), served))
        .collect();
    let each = proto::commands().filter(|command| recorded_each(&policy, &settings.name, command).is_some());
    let each = if broker.audit.is_on() { each.map(Command::id).collect() } else { Vec::new() };
    let versions = vec![
        (Dialect::Qga, proto::QGA_LEVEL.to_owned()),
        (Dialect::Phoenix, proto::PHOENIX_LEVEL.to_owned()),
    ];
    Welcome { channel: settings.clone(), frozen, verdicts, each, versions }
}

fn recorded_each<'a>(policy: &'a Policy, channel: &str, command: &'static Command) -> Option<&'a Origin> {
    let in_front = command.group == Group::Agent;
    in_front.then(|| authorize::records_each(policy, channel, command)).flatten()
}

/// Records what a frontend has answered by itself. One at a time where each is to be recorded: told of more, it is only counted.
fn record(broker: &Broker, channel: &str, counts: &[(CommandId, u32)]) -> Result<(), String> {
    let policy = broker.policy();
    let mut others = Vec::with_capacity(counts.len());
    for (id, count) in counts {
        let command = proto::commands().nth(usize::from(id.0)).ok_or("an unknown command")?;
        match recorded_each(&policy, channel, command) {
            Some(rule) if *count <= EACH => {
                (0..*count).for_each(|_| broker.audit.answered(channel, command, rule));
            }
            _ => others.push((command.name(), *count)),
        }
    }
    broker.audit.counts(channel, &others);
    Ok(())
}

/// The requests of one frontend: those of one lane one after the other, those of lane 0 all at once.
struct Lanes {
    shared: Rc<Shared>,
    channel: Rc<str>,
    dialects: Vec<Dialect>,
    outbox: Rc<Outbox<ToFrontend>>,
    last_id: u64,
}

struct Shared {
    broker: Rc<Broker>,
    state: RefCell<LaneState>,
    /// Requests whose turn it is, for [`Work`].
    begun: RefCell<VecDeque<Begun>>,
    /// The frontend has gone: each of its requests goes on in a task of its own.
    is_alone: Cell<bool>,
}

#[derive(Default)]
struct LaneState {
    asks: BTreeMap<u64, Rc<Ask>>,
    /// For each lane that has work: what runs now, and what waits.
    lanes: BTreeMap<u32, (u64, Waiting)>,
}

/// Requests of one lane that have not begun.
type Waiting = VecDeque<Begun>;

/// A request, and what there is to know about who asks.
type Begun = (Rc<Ask>, Request);

/// What is done for one frontend, all in the frontend's own task: a task for each request would cost more than most requests do. Each
/// wake-up looks at all of it, which is little: there are rarely two, and never more than [`UNDER_WAY`].
struct Work<M, F> {
    make: M,
    running: Vec<Pin<Box<F>>>,
    /// Of one that has ended, for its memory.
    spare: Option<Pin<Box<F>>>,
}

impl<M: Fn(Begun) -> F, F: Future<Output = ()> + 'static> Work<M, F> {
    fn new(make: M) -> Self {
        Work { make, running: Vec::new(), spare: None }
    }

    /// Begins what has its turn, and goes on with the rest. It never ends by itself.
    fn poll(&mut self, shared: &Shared, context: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Some(begun) = shared.next() {
                let future = (self.make)(begun);
                let boxed = match self.spare.take() {
                    Some(mut spare) => {
                        spare.set(future);
                        spare
                    }
                    None => Box::pin(future),
                };
                self.running.push(boxed);
            }
            let mut at = 0;
            while let Some(future) = self.running.get_mut(at) {
                if future.as_mut().poll(context).is_ready() {
                    // The others keep their order: work on one file is done in the order in which it is begun here.
                    self.spare = Some(self.running.remove(at));
                } else {
                    at += 1;
                }
            }
            if shared.begun.borrow().is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// The frontend has gone: nobody polls its task any more.
    fn go_on_alone(self, shared: &Shared) {
        shared.is_alone.set(true);
        for future in self.running {
            tokio::task::spawn_local(future);
        }
        while let Some(begun) = shared.next() {
            tokio::task::spawn_local((self.make)(begun));
        }
    }
}

impl Lanes {
    fn new(broker: Rc<Broker>, settings: &ChannelSettings, outbox: Rc<Outbox<ToFrontend>>) -> Self {
        Lanes {
            shared: Rc::new(Shared {
                broker,
                state: RefCell::default(),
                begun: RefCell::default(),
                is_alone: Cell::new(false),
            }),
            channel: settings.name.as_str().into(),
            dialects: settings.dialects.clone(),
            outbox,
            last_id: 0,
        }
    }

    fn ask(&self, id: u64) -> Option<Rc<Ask>> {
        self.shared.state.borrow().asks.get(&id).cloned()
    }

    fn take(&mut self, id: u64, message: FromFrontend, payload: &[u8]) -> Result<(), String> {
        self.shared.broker.freeze.expect();
        match message {
            FromFrontend::Request { lane, request, counts } => {
                record(&self.shared.broker, &self.channel, &counts)?;
                self.begin(id, lane, request, payload)
            }
            // What has been answered or given up meanwhile is no fault of the sender's.
            FromFrontend::Piece => match self.ask(id) {
                Some(ask) if !ask.piece_came(payload) => Err("a piece that it was not asked for".to_owned()),
                _ => Ok(()),
            },
            FromFrontend::More(count) => match self.ask(id) {
                Some(ask) if !ask.more_came(count) => Err("more credit than there is".to_owned()),
                _ => Ok(()),
            },
            FromFrontend::Abandon { cancel } => {
                self.shared.abandon(id, cancel);
                Ok(())
            }
            FromFrontend::Counts(counts) => {
                record(&self.shared.broker, &self.channel, &counts)?;
                Ok(())
            }
            FromFrontend::Note(text) => {
                tracing::warn!("channel {}: {}", self.channel, text.escape_debug());
                Ok(())
            }
            FromFrontend::Hello(_) => Err("a second hello".to_owned()),
        }
    }

    fn begin(&mut self, id: u64, lane: u32, request: Request, payload: &[u8]) -> Result<(), String> {
        if id <= self.last_id {
            return Err("an id that is not new".to_owned());
        }
        self.last_id = id;
        if !self.dialects.contains(&request.command().dialect) {
            return Err(format!("{}, which is not spoken on its channel", request.command().name()));
        }
        let bytes = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        let announced = request.payload().map_or(0, |payload| payload.length);
        if bytes > announced || announced > limits::PAYLOAD {
            return Err("more payload than announced, or than there may be".to_owned());
        }
        let mut state = self.shared.state.borrow_mut();
        if state.asks.values().filter(|ask| !ask.is_abandoned()).count() >= limits::REQUESTS_IN_FLIGHT {
            return Err("more requests than may be under way".to_owned());
        }
        let length = request.payload().map_or(0, |payload| payload.length);
        let ask = Rc::new(Ask::new(id, lane, self.channel.clone(), self.outbox.clone(), payload, length));
        if state.asks.len() >= UNDER_WAY {
            let text = "the agent is busy: earlier requests have not finished; try again later";
            ask.answer(proto::Answer::Failed(proto::Failed::new(text)), &[]);
            return Ok(());
        }
        state.asks.insert(id, ask.clone());
        if lane != 0
            && let Some((_, waiting)) = state.lanes.get_mut(&lane)
        {
            waiting.push_back((ask, request));
            return Ok(());
        }
        if lane != 0 {
            state.lanes.insert(lane, (id, VecDeque::new()));
        }
        drop(state);
        self.shared.clone().start((ask, request));
        Ok(())
    }

    /// The frontend is gone: its requests are carried out, nobody hears of it.
    fn leave(&self) {
        for ask in self.shared.state.borrow().asks.values() {
            ask.abandon();
        }
    }
}

impl Shared {
    fn start(self: Rc<Self>, begun: Begun) {
        if self.is_alone.get() {
            tokio::task::spawn_local(self.carry_out(begun));
        } else {
            self.begun.borrow_mut().push_back(begun);
        }
    }

    /// The next request whose turn it is.
    fn next(&self) -> Option<Begun> {
        self.begun.borrow_mut().pop_front()
    }

    async fn carry_out(self: Rc<Self>, (ask, request): Begun) {
        dispatch::carry_out(&self.broker, &ask, request).await;
        self.state.borrow_mut().asks.remove(&ask.id);
        self.go_on(ask.lane, ask.id);
    }

    /// The lane's next request, if `id` is the one that held it up.
    fn go_on(self: Rc<Self>, lane: u32, id: u64) {
        let mut state = self.state.borrow_mut();
        let Some((running, waiting)) = state.lanes.get_mut(&lane) else { return };
        if *running != id {
            return;
        }
        if let Some(begun) = waiting.pop_front() {
            *running = begun.0.id;
            drop(state);
            self.start(begun);
        } else {
            state.lanes.remove(&lane);
        }
    }

    fn abandon(self: &Rc<Self>, id: u64, cancel: bool) {
        let Some(ask) = self.state.borrow().asks.get(&id).cloned() else { return };
        if cancel {
            ask.cancel();
        } else {
            ask.abandon();
        }
        let mut state = self.state.borrow_mut();
        let Some((running, waiting)) = state.lanes.get_mut(&ask.lane) else { return };
        if *running == id {
            // It ends unseen, beside what follows it.
            drop(state);
            self.clone().go_on(ask.lane, id);
        } else if cancel && let Some(position) = waiting.iter().position(|(waiting, _)| waiting.id == id) {
            let cancelled = waiting.remove(position);
            state.asks.remove(&id);
            if let Some((ask, request)) = cancelled {
                self.broker.audit.cancelled(&ask.channel, &request);
            }
        }
    }
}
