//! The audit log: one line of JSON for each request, two where it changes something (`docs/audit.md`).
//!
//! Written before the work begins where it changes something (`intent`), and when it has ended. It never holds
//! payload, passwords or environment values: arguments are shown as `proto` serialises them for this purpose.
//!
//! Records are chained by their hashes. A record gets its number and the hash before it when it is written, so that what was lost
//! leaves no gap: a gap is somebody else's work. Where the chain stands is announced in a memory file before each record, for the
//! broker that comes after this one (`proto::chain`).

pub(crate) mod kernel;
mod record;
mod sinks;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use authorize::{By, Origin, Permitted, Policy, Record};
use proto::chain::{self, Chain, Hash, Head, INTENTS, Intent};
use proto::settings::{AuditSettings, AuditSink};
use proto::{Failed, Request};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::Broker;
use kernel::Queue;
use record::{Body, ascii, bounded, hash};
use sinks::{Fields, Found, LogFile, Sink};

/// Bytes of records that wait for a thaw at most; the oldest go first, and are counted.
const HELD: usize = 1 << 20;
/// A record whose arguments are longer than this shows their length instead.
const ARGUMENTS: usize = 7 * 1024;
/// Other texts that a host can make long are cut to this, which six times as many bytes can stand for.
const TEXT: usize = 512;
/// The chain's head is shown outside of it after so many records, or that long after the first that has not been.
const WITNESS_RECORDS: u64 = 1000;
const WITNESS_AFTER: Duration = Duration::from_secs(600);
/// How long a request waits for another file when the log was removed.
const NEW_FILE: Duration = Duration::from_secs(1);
/// How long a request waits for the kernel's audit, where that is required.
const KERNEL: Duration = Duration::from_secs(5);
/// How long after the spawner has refused another file it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What the audit log is opened with.
#[derive(Default)]
pub struct Descriptors {
    /// The log file.
    pub file: Option<OwnedFd>,
    /// Syslog's socket or the journal's.
    pub socket: Option<OwnedFd>,
    /// Where the chain stands; see [`proto::chain`].
    pub chain: Option<OwnedFd>,
}

/// Writes records.
pub struct Audit {
    settings: AuditSettings,
    chain_file: Option<File>,
    state: RefCell<State>,
    /// Another file has been asked for, or was refused at this time.
    rotating: Cell<bool>,
    refused: Cell<Option<Instant>>,
    /// The head will be shown.
    witnessing: Cell<bool>,
}

struct State {
    sinks: Vec<Sink>,
    /// Why the last record could not be written to each of them, until one can.
    failing: Vec<Option<String>>,
    chain: Chain,
    /// The record that begins this broker's part of the chain has been written.
    begun: bool,
    /// It, until then.
    opening: Option<Entry>,
    /// Records that could not be written, and were not counted in the log yet.
    lost: u64,
    /// Records that wait for a thaw; none while nothing is frozen.
    held: Option<Held>,
    /// Another file that came meanwhile.
    another: Option<Another>,
    /// Records since the head was shown.
    unwitnessed: u64,
    line: Vec<u8>,
    announcement: Vec<u8>,
}

/// Records that wait in memory.
#[derive(Default)]
struct Held {
    records: VecDeque<Entry>,
    bytes: usize,
}

/// A record that has no place in the chain yet.
struct Entry {
    kind: &'static str,
    body: Body,
    tie: Tie,
    about: About,
    /// How many records are lost if this one is: it may be the one that counts others.
    counts: u64,
}

/// What the journal shows of it in fields.
#[derive(Default)]
struct About {
    message: String,
    command: Option<&'static str>,
    channel: Option<String>,
    decision: Option<&'static str>,
    outcome: Option<&'static str>,
}

/// What a record has to do with an intent.
enum Tie {
    None,
    /// It is one; its number is put here when it has one.
    Begins(Rc<Cell<u64>>),
    /// It is the outcome of the one with the number that is put here.
    Ends(Rc<Cell<u64>>),
    /// It says that there will be none.
    Closes(Intent),
}

/// The beginning of a record: who asked what.
pub(crate) struct Asked {
    /// When, if there is a log.
    begun: Option<Instant>,
    channel: Rc<str>,
    dialect: &'static str,
    command: &'static str,
    arguments: Option<String>,
    file: Option<String>,
    intent: OnceCell<Rc<Cell<u64>>>,
}

/// What the policy said.
#[derive(Clone, Copy)]
pub(crate) struct Decision<'a> {
    /// `allow`, `redact`, `deny`.
    pub(crate) name: &'static str,
    pub(crate) rule: &'a Origin,
    pub(crate) record: Record,
}

impl Asked {
    /// Where the file is that the request's path led to.
    pub(crate) fn led_to(&mut self, path: String) {
        self.file = Some(path);
    }
}

impl<'a> Decision<'a> {
    /// By a rule that was found when more was known.
    pub(crate) fn by(by: &'a By) -> Self {
        let record = by.terms.as_ref().map(|terms| terms.record).unwrap_or_default();
        Decision { name: by.outcome.name(), rule: &by.rule, record }
    }

    /// By a rule that permits it.
    pub(crate) fn permitted(rule: &'a Origin, permitted: &Permitted) -> Self {
        let record = permitted.terms().map(|terms| terms.record).unwrap_or_default();
        Decision { name: permitted.outcome().name(), rule, record }
    }

    /// By a rule that refuses it.
    pub(crate) fn refused(rule: &'a Origin) -> Self {
        Decision { name: "deny", rule, record: Record::Usual }
    }
}

/// How a request ended.
pub(crate) enum Outcome<'a> {
    /// The policy refused it.
    Denied,
    /// It begins now.
    Begins,
    /// It was done; payload bytes that went in or out, if any did, and their digest if they may be known by it.
    Done(u64, Option<Hash>),
    /// It went wrong.
    Failed(&'a Failed),
    /// Nobody waited any more, so it was not begun.
    Cancelled,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    channel: &'a str,
    dialect: &'a str,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    decision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    abandoned: bool,
    duration_us: u64,
}

impl Audit {
    /// Writes to where the settings say, with the descriptors that the spawner gave.
    ///
    /// # Errors
    /// A text for the log if the settings want a descriptor and there is none.
    pub fn new(settings: &AuditSettings, descriptors: Descriptors) -> Result<Self, String> {
        let Descriptors { mut file, mut socket, chain } = descriptors;
        let missing = || "the audit log was not opened for the broker".to_owned();
        let mut sinks = Vec::with_capacity(settings.sinks.len());
        for sink in &settings.sinks {
            sinks.push(match sink {
                AuditSink::File => Sink::File(LogFile::new(file.take().ok_or_else(missing)?)),
                AuditSink::Syslog => Sink::Syslog(socket.take().ok_or_else(missing)?),
                AuditSink::Journald => Sink::Journald(socket.take().ok_or_else(missing)?),
                AuditSink::Log => Sink::Log,
                AuditSink::Kernel => Sink::Kernel(Rc::default()),
            });
        }
        let chain_file = chain.map(File::from);
        let chain = chain_file.as_ref().map(take_over).unwrap_or_default();
        let mut state = State {
            failing: vec![None; sinks.len()],
            sinks,
            chain,
            begun: false,
            opening: None,
            lost: 0,
            held: None,
            another: None,
            unwitnessed: 0,
            line: Vec::new(),
            announcement: Vec::new(),
        };
        state.find_place();
        Ok(Audit {
            settings: settings.clone(),
            chain_file,
            state: RefCell::new(state),
            rotating: Cell::new(false),
            refused: Cell::new(None),
            witnessing: Cell::new(false),
        })
    }

    /// Whether there is an audit log.
    pub(crate) fn is_on(&self) -> bool {
        !self.settings.sinks.is_empty()
    }

    /// Whether nothing may be done that is not recorded first.
    pub(crate) fn is_required(&self) -> bool {
        self.settings.required && self.is_on()
    }

    /// Begins this broker's part of the chain, if there is a log; `about` are the members of the record that do so.
    pub(crate) fn start(&self, mut about: serde_json::Map<String, serde_json::Value>) {
        let mut state = self.state.borrow_mut();
        let last = state.chain.last;
        let link = serde_json::json!({ "sequence": last.sequence, "hash": last.hash.to_string() });
        about.insert("link".to_owned(), if last.sequence > 0 { link } else { serde_json::Value::Null });
        if state.chain.of_a_broker {
            about.insert("restart".to_owned(), true.into());
        }
        if state.chain.cut > 0 {
            about.insert("cut".to_owned(), state.chain.cut.into());
            state.chain.cut = 0;
        }
        match Body::new("start", &about) {
            Ok(body) => state.opening = Some(Entry::note("start", body)),
            Err(why) => tracing::error!("the audit log cannot be begun: {why}"),
        }
        drop(state);
        let _ = self.put(None);
        self.witness();
    }

    /// Ends it.
    pub(crate) fn stop(&self) {
        self.note("stop", &serde_json::json!({}));
        self.witness();
    }

    /// Who asks what, of which open file; the arguments without what must not be recorded. Without a log nothing is looked up.
    pub(crate) fn asked(
        &self,
        channel: impl Into<Rc<str>>,
        request: &Request,
        file: impl FnOnce() -> Option<String>,
    ) -> Asked {
        let command = request.command();
        let is_on = self.is_on();
        Asked {
            begun: is_on.then(Instant::now),
            channel: channel.into(),
            dialect: command.dialect.name(),
            command: command.name(),
            arguments: if is_on { ascii(request) } else { None },
            file: if is_on { file() } else { None },
            intent: OnceCell::new(),
        }
    }

    /// Records what becomes of a request.
    ///
    /// # Errors
    /// Only when the settings require a record for everything that is done, and this one cannot be written.
    pub(crate) fn request(
        &self,
        asked: &Asked,
        decision: Option<Decision<'_>>,
        worker: Option<&str>,
        outcome: &Outcome<'_>,
        abandoned: bool,
    ) -> Result<(), Failed> {
        if !self.is_on() {
            return Ok(());
        }
        let (text, failed, bytes, sha256) = match outcome {
            Outcome::Denied => ("denied", None, None, None),
            Outcome::Begins => ("begins", None, None, None),
            Outcome::Done(bytes, sha256) => ("done", None, Some(*bytes).filter(|bytes| *bytes > 0), *sha256),
            Outcome::Failed(failed) => ("failed", Some(*failed), None, None),
            Outcome::Cancelled => ("cancelled", None, None, None),
        };
        let digest = decision.is_some_and(|decision| decision.record == Record::Digest);
        let name = decision.map_or("none", |decision| decision.name);
        let rule = decision.map(|decision| bounded(&decision.rule.to_string(), TEXT / 2).into_owned());
        let file = asked.file.as_deref().filter(|_| !digest).map(|file| bounded(file, TEXT));
        // It may repeat an argument.
        let error = failed.filter(|_| !digest).map(|failed| bounded(&failed.text, TEXT));
        let line = RequestLine {
            channel: &asked.channel,
            dialect: asked.dialect,
            command: asked.command,
            arguments: asked.arguments.as_deref().map(|arguments| shown(arguments, digest)),
            file: file.as_deref(),
            decision: name,
            rule,
            worker,
            outcome: text,
            error: error.as_deref(),
            errno: failed.and_then(|failed| failed.errno),
            bytes,
            sha256: sha256.map(|hash| hash.to_string()),
            abandoned,
            duration_us: asked
                .begun
                .map_or(0, |begun| u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)),
        };
        let begins = matches!(outcome, Outcome::Begins);
        let tie = match asked.intent.get() {
            _ if begins => Tie::Begins(asked.intent.get_or_init(Rc::default).clone()),
            Some(intent) => Tie::Ends(intent.clone()),
            None => Tie::None,
        };
        let kind = if begins { "intent" } else { "request" };
        let about = About {
            message: format!("{} on {}: {text}", asked.command, asked.channel),
            command: Some(asked.command),
            channel: Some(asked.channel.to_string()),
            decision: Some(name),
            outcome: Some(text),
        };
        let result = Body::new(kind, &line)
            .and_then(|body| self.put(Some(Entry { kind, body, tie, about, counts: 1 })));
        let result = match result {
            Ok(()) if begins && self.settings.sync => self.sync(),
            other => other,
        };
        result.or_else(|why| {
            if self.settings.required {
                Err(Failed::new(format!("not done, because it cannot be recorded: {why}")))
            } else {
                Ok(())
            }
        })
    }

    /// A request that was dropped before it began.
    pub(crate) fn cancelled(&self, channel: &Rc<str>, request: &Request) {
        // Nothing was done: even a required record that is missing hides nothing.
        let _ = self.request(
            &self.asked(channel.clone(), request, || None),
            None,
            None,
            &Outcome::Cancelled,
            true,
        );
    }

    /// Requests that a frontend answered by itself.
    pub(crate) fn counts(&self, channel: &str, counts: &[(&str, u32)]) {
        if !counts.is_empty() {
            let counts: serde_json::Map<_, _> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            self.note("front", &serde_json::json!({ "channel": channel, "counts": counts }));
        }
    }

    /// One that a frontend answered by itself, by a rule that wants a record of each.
    pub(crate) fn answered(&self, channel: &str, command: &'static proto::Command, rule: &Origin) {
        let asked = Asked {
            begun: Some(Instant::now()),
            channel: channel.into(),
            dialect: command.dialect.name(),
            command: command.name(),
            arguments: None,
            file: None,
            intent: OnceCell::new(),
        };
        let decision = Decision { name: "allow", rule, record: Record::Each };
        // It has been answered: even a required record that is missing hides nothing.
        let _ = self.request(&asked, Some(decision), None, &Outcome::Done(0, None), false);
    }

    /// Something about the agent itself.
    pub(crate) fn note(&self, kind: &'static str, detail: &serde_json::Value) {
        if self.is_on() {
            let _ = Body::new(kind, detail).and_then(|body| self.put(Some(Entry::note(kind, body))));
        }
    }

    /// From now on nothing is written: what is to be recorded waits in memory.
    pub(crate) fn hold(&self) {
        self.state.borrow_mut().held.get_or_insert_default();
    }

    /// Writes what has waited, in its order.
    pub(crate) fn release(&self) {
        let held = self.state.borrow_mut().held.take();
        for record in held.into_iter().flat_map(|held| held.records) {
            let _ = self.put(Some(record));
        }
        let another = self.state.borrow_mut().another.take();
        match another {
            Some(another) => self.go_on_in(another),
            None => self.announce(&mut self.state.borrow_mut()),
        }
    }

    /// The chain's last record: its number and its hash.
    pub(crate) fn head(&self) -> Head {
        self.state.borrow().chain.last
    }

    /// Shows the head to the agent's log, which somebody else may keep.
    fn witness(&self) {
        self.state.borrow_mut().witness();
    }

    /// Writes a record after those that are due before it; none if only they are to be written.
    fn put(&self, entry: Option<Entry>) -> Result<(), String> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.held.is_some() {
            state.hold(entry);
            self.announce(state);
            return Ok(());
        }
        let result = self.catch_up(state).and_then(|()| match &entry {
            Some(entry) => self.emit(state, entry),
            None => Ok(()),
        });
        if result.is_err() && entry.is_some() {
            state.lost = state.lost.saturating_add(1);
            self.announce(state);
        }
        result
    }

    /// Writes what has to stand before anything else.
    fn catch_up(&self, state: &mut State) -> Result<(), String> {
        if let Some(opening) = state.opening.take()
            && let Err(why) = self.emit(state, &opening)
        {
            state.opening = Some(opening);
            return Err(why);
        }
        while let Some(Intent { of: Some(of), sequence }) = state.chain.intents.first().copied() {
            let why = "the agent ended before its outcome was recorded";
            let members = serde_json::json!({
                "intent": sequence, "of": of.to_string(), "outcome": "unknown", "why": why,
            });
            let tie = Tie::Closes(Intent { of: Some(of), sequence });
            let body = Body::new("closed", &members)?;
            self.emit(state, &Entry { tie, ..Entry::note("closed", body) })?;
        }
        if state.lost > 0 {
            let body = Body::new("loss", serde_json::json!({ "records": state.lost }))?;
            let lost = std::mem::take(&mut state.lost);
            let counts = lost.saturating_add(1);
            if let Err(why) = self.emit(state, &Entry { counts, ..Entry::note("loss", body) }) {
                state.lost = lost;
                return Err(why);
            }
        }
        Ok(())
    }

    /// Gives a record its place and writes it.
    fn emit(&self, state: &mut State, entry: &Entry) -> Result<(), String> {
        let last = state.chain.last;
        let sequence = if state.begun { last.sequence.saturating_add(1) } else { 1 };
        let intent = match &entry.tie {
            Tie::Ends(intent) => Some(intent.get()).filter(|number| *number > 0),
            _ => None,
        };
        entry.body.write(&mut state.line, sequence, intent, &last.hash);
        let Some(first) = state.sinks.first() else { return Ok(()) };
        let size = if let Sink::File(file) = first { file.size_with(&state.line) } else { 0 };
        state.chain.next = Some(Head { sequence, hash: hash(&state.line), size });
        match &entry.tie {
            Tie::Begins(_) if state.chain.intents.len() < INTENTS => {
                state.chain.intents.push(Intent { of: None, sequence });
            }
            Tie::None | Tie::Begins(_) => {}
            Tie::Ends(_) => state.chain.ends = intent.map(|sequence| Intent { of: None, sequence }),
            Tie::Closes(intent) => state.chain.ends = Some(*intent),
        }
        self.announce(state);
        let fields = Fields {
            kind: entry.kind,
            sequence,
            hash: state.chain.next.map(|next| next.hash).unwrap_or_default(),
            counts: entry.counts,
            message: if entry.about.message.is_empty() { entry.kind } else { &entry.about.message },
            command: entry.about.command,
            channel: entry.about.channel.as_deref(),
            decision: entry.about.decision,
            outcome: entry.about.outcome,
        };
        for (index, (sink, failing)) in state.sinks.iter_mut().zip(&mut state.failing).enumerate() {
            let result = sink.write(&state.line, &fields);
            match &result {
                Ok(()) => *failing = None,
                Err(why) if failing.is_none() => {
                    tracing::error!("the audit log cannot be written: {why}");
                    *failing = Some(why.clone());
                }
                Err(_) => {}
            }
            // The others have copies: one that misses a record shows it.
            if index == 0 {
                state.chain.settle(result.is_ok());
                if result.is_err() {
                    self.announce(state);
                    return result;
                }
            }
        }
        state.begun = true;
        state.unwitnessed = state.unwitnessed.saturating_add(1);
        if state.unwitnessed >= WITNESS_RECORDS {
            state.witness();
        }
        if let Tie::Begins(intent) = &entry.tie {
            intent.set(sequence);
        }
        Ok(())
    }

    /// Tells whoever comes after where the chain stands.
    fn announce(&self, state: &mut State) {
        let Some(file) = &self.chain_file else { return };
        let held = state.held.as_ref().map_or(0, |held| held.records.len() as u64);
        state.chain.unwritten = state.lost.saturating_add(held);
        state.chain.turn = state.chain.turn.saturating_add(1);
        state.chain.of_a_broker = true;
        let at = state.chain.encode(&mut state.announcement);
        if let Err(error) = file.write_all_at(&state.announcement, at) {
            tracing::error!("a broker after this one will not know where the audit log goes on: {error}");
        }
    }

    /// The way to the kernel's audit, if records go there.
    fn kernel(&self) -> Option<Rc<Queue>> {
        self.state.borrow().sinks.iter().find_map(|sink| match sink {
            Sink::Kernel(queue) => Some(queue.clone()),
            _ => None,
        })
    }

    /// Waits, where a record is required and the kernel's audit is what counts, until the kernel has the last one. Called right after it
    /// was written.
    ///
    /// # Errors
    /// The kernel has not taken it.
    pub(crate) async fn settled(&self) -> Result<(), Failed> {
        let queue = match &*self.state.borrow() {
            // Until a thaw it waits with all others.
            State { held: Some(_), .. } => return Ok(()),
            State { sinks, .. } => match sinks.first() {
                Some(Sink::Kernel(queue)) if self.settings.required => queue.clone(),
                _ => return Ok(()),
            },
        };
        let settled = tokio::time::timeout(KERNEL, queue.last()).await;
        settled
            .unwrap_or_else(|_| {
                Err(format!("the kernel's audit has not taken it within {} s", KERNEL.as_secs()))
            })
            .map_err(|why| Failed::new(format!("not done, because it cannot be recorded: {why}")))
    }

    /// The spawner has seen the audit worker's end.
    pub(crate) fn worker_exited(&self) {
        if let Some(queue) = self.kernel() {
            queue.exited();
        }
    }

    /// The kernel's audit has not taken so many records that were on their way there.
    fn missed(&self, records: u64) {
        let mut state = self.state.borrow_mut();
        // What it was to have copies of is recorded elsewhere.
        if let Some(Sink::Kernel(_)) = state.sinks.first() {
            state.lost = state.lost.saturating_add(records);
            self.announce(&mut state);
        }
    }

    fn sync(&self) -> Result<(), String> {
        let state = self.state.borrow();
        match state.sinks.first() {
            Some(Sink::File(file)) if state.held.is_none() => file.sync(),
            _ => Ok(()),
        }
    }
}

/// Sees to it that the next records can be read later: called before each request. Waits for nothing unless the file is gone.
pub(crate) async fn keep_up(broker: &Rc<Broker>) {
    let audit = &broker.audit;
    if !audit.is_on() {
        return;
    }
    // One that ends: an agent that nobody asks anything is not woken.
    if !audit.witnessing.replace(true) {
        let broker = broker.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(WITNESS_AFTER).await;
            broker.audit.witnessing.set(false);
            broker.audit.witness();
        });
    }
    let Some(why) = audit.wants_another_file() else { return };
    let another = tokio::task::spawn_local(another_file(broker.clone(), why));
    if why == Why::Removed {
        // What is written to it now nobody would ever read.
        let _ = tokio::time::timeout(NEW_FILE, another).await;
    }
}

/// Why another file is to be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Full,
    Removed,
}

/// A file to go on in.
struct Another {
    file: OwnedFd,
    /// What stands behind the name of the one before; 0 if it has none.
    number: u32,
    why: Why,
}

async fn another_file(broker: Rc<Broker>, why: Why) {
    let audit = &broker.audit;
    audit.rotating.set(true);
    let result = broker.control.rotate().await;
    audit.rotating.set(false);
    match result {
        Ok((file, number)) => audit.go_on_in(Another { file, number, why }),
        Err(errno) => {
            if audit.refused.replace(Some(Instant::now())).is_none() {
                tracing::error!(
                    "the audit log goes on in its file, because another cannot be begun: {errno}"
                );
            }
        }
    }
}

impl Audit {
    /// Looks after the file. One that was cut goes on where it ends now.
    fn wants_another_file(&self) -> Option<Why> {
        let refused = self.refused.get().is_some_and(|refused| refused.elapsed() < ASK_AGAIN);
        let mut state = self.state.borrow_mut();
        let (old, waits) = (self.is_old(state.chain.begun), state.held.is_some());
        let Some(Sink::File(file)) = state.sinks.iter_mut().find(|sink| matches!(sink, Sink::File(_))) else {
            return None;
        };
        // Frozen: it may not answer.
        if waits {
            return None;
        }
        match file.look() {
            Found::Removed if !self.rotating.get() && !refused => return Some(Why::Removed),
            Found::CutTo(length) => {
                let why = format!("the file was cut from {} to {length} bytes", file.size);
                file.go_on_at(length, length > 0);
                drop(state);
                tracing::error!("the audit log: {why}");
                self.note("replaced", &serde_json::json!({ "why": why }));
                return None;
            }
            Found::Removed | Found::AsLeft => {}
        }
        let full = self.settings.rotate_bytes > 0 && file.size >= self.settings.rotate_bytes;
        ((full || old) && !self.rotating.get() && !refused).then_some(Why::Full)
    }

    fn is_old(&self, begun: u64) -> bool {
        let limit = self.settings.rotate_seconds;
        limit > 0 && now().checked_sub(begun).is_some_and(|age| age >= limit)
    }

    /// Goes on in another file. The one before gets its last record, which says what it is called now.
    fn go_on_in(&self, another: Another) {
        self.refused.set(None);
        if self.state.borrow().held.is_some() {
            self.state.borrow_mut().another = Some(another);
            return;
        }
        let Another { file, number, why } = another;
        if number > 0 {
            let to = format!("{}.{number}", self.settings.name);
            self.note("rotated", &serde_json::json!({ "to": to }));
        }
        let mut state = self.state.borrow_mut();
        state.chain.begun = now();
        state.chain.last.size = 0;
        if let Some(sink) = state.sinks.iter_mut().find(|sink| matches!(sink, Sink::File(_))) {
            *sink = Sink::File(LogFile::new(file));
        }
        self.announce(&mut state);
        drop(state);
        if why == Why::Removed {
            let why = "the file was removed";
            tracing::error!("the audit log: {why}");
            self.note("replaced", &serde_json::json!({ "why": why }));
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

impl State {
    /// Where a broker before this one has left the log.
    fn find_place(&mut self) {
        let chain = &mut self.chain;
        // Nobody knows what a socket has taken: what is missing then shows as missing.
        let mut written = true;
        if let Some(Sink::File(file)) = self.sinks.first_mut() {
            let length = file.length().unwrap_or_default();
            let next = chain.next.map_or(chain.last.size, |next| next.size);
            // A record is there without its line end, too: `LogFile::append`.
            let with_end = length.saturating_add(1);
            written = with_end >= next || with_end < chain.last.size;
            file.go_on_at(length, length > 0 && length < next && length != chain.last.size);
        }
        chain.settle(written);
        self.lost = std::mem::take(&mut chain.unwritten);
        for intent in &mut chain.intents {
            intent.of.get_or_insert(chain.last.hash);
        }
    }

    fn witness(&mut self) {
        if std::mem::take(&mut self.unwitnessed) > 0 {
            let Head { sequence, hash, .. } = self.chain.last;
            tracing::error!(target: "audit", "head {sequence} {hash}");
        }
    }

    fn hold(&mut self, entry: Option<Entry>) {
        let (Some(held), Some(entry)) = (&mut self.held, entry) else { return };
        held.bytes = held.bytes.saturating_add(entry.body.len());
        held.records.push_back(entry);
        while held.bytes > HELD {
            let Some(oldest) = held.records.pop_front() else { break };
            held.bytes = held.bytes.saturating_sub(oldest.body.len());
            self.lost = self.lost.saturating_add(1);
        }
    }
}

impl Entry {
    fn note(kind: &'static str, body: Body) -> Self {
        Entry { kind, body, tie: Tie::None, about: About::default(), counts: 1 }
    }
}

/// Which policy is in force: its name, and the digest of its compiled form.
pub(crate) fn about_policy(policy: &Policy) -> serde_json::Value {
    let digest = policy.encode().map(|bytes| hash(&bytes).to_string()).unwrap_or_default();
    serde_json::json!({ "name": bounded(policy.name(), TEXT), "sha256": digest })
}

/// What is in the file that the spawner gives to every broker. A damaged one is none.
fn take_over(file: &File) -> Chain {
    let mut bytes = vec![0; chain::FILE];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..)
        && let Ok(count @ 1..) = file.read_at(rest, length as u64)
    {
        length += count;
    }
    Chain::decode(bytes.get(..length).unwrap_or_default()).unwrap_or_default()
}

/// Arguments as they are recorded.
fn shown(arguments: &str, digest: bool) -> Box<RawValue> {
    let text = if digest {
        format!("{{\"sha256\":\"{}\"}}", hash(arguments.as_bytes()))
    } else if arguments.len() > ARGUMENTS {
        format!("{{\"length\":{}}}", arguments.len())
    } else {
        arguments.to_owned()
    };
    RawValue::from_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;
    use proto::{Base64Text, Payload, exec, file};
    use serde_json::{Value, json};

    /// A log file and the file in which its chain is announced.
    struct Place {
        log: tempfile::NamedTempFile,
        chain: File,
    }

    impl Place {
        fn new() -> Self {
            Place { log: tempfile::NamedTempFile::new().unwrap(), chain: tempfile::tempfile().unwrap() }
        }

        /// As a broker that is started on them.
        fn audit(&self) -> Audit {
            self.audit_to(std::fs::OpenOptions::new().append(true).open(self.log.path()).unwrap())
        }

        fn audit_to(&self, file: File) -> Audit {
            let settings = AuditSettings {
                sinks: vec![AuditSink::File],
                required: true,
                name: "audit".to_owned(),
                ..AuditSettings::default()
            };
            let descriptors = Descriptors {
                file: Some(file.into()),
                socket: None,
                chain: Some(self.chain.try_clone().unwrap().into()),
            };
            let audit = Audit::new(&settings, descriptors).unwrap();
            audit.start(serde_json::Map::new());
            audit
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.log.path()).unwrap()
        }

        fn lines(&self) -> Vec<Value> {
            self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }

        fn kinds(&self) -> Vec<String> {
            self.lines().iter().map(|line| line["kind"].as_str().unwrap().to_owned()).collect()
        }

        /// What a broker says before it writes.
        fn announce(&self, chain: &Chain) {
            let mut announcement = Vec::new();
            let at = chain.encode(&mut announcement);
            self.chain.write_all_at(&announcement, at).unwrap();
        }

        /// Each record has the hash of the one before it and the number after it, or begins a part.
        fn is_chained(&self) {
            let (mut prev, mut sequence) = ("0".repeat(64), 0);
            for line in self.text().lines() {
                let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
                assert_eq!(record["prev"], prev.as_str(), "{record}");
                let expected = if record["kind"] == "start" { 1 } else { sequence + 1 };
                assert_eq!(record["sequence"], expected, "{record}");
                (prev, sequence) = (hash(line.as_bytes()).to_string(), expected);
            }
        }
    }

    fn flush() -> Request {
        file::Request::Flush(file::OfHandle { handle: 1000 }).into()
    }

    fn begin(audit: &Audit) -> Asked {
        let asked = audit.asked("port", &flush(), || None);
        audit.request(&asked, None, None, &Outcome::Begins, false).unwrap();
        asked
    }

    fn end(audit: &Audit, asked: &Asked) {
        audit.request(asked, None, None, &Outcome::Done(0, None), false).unwrap();
    }

    #[test]
    fn a_record_says_who_asked_what_by_which_rule_and_what_came_of_it() {
        let place = Place::new();
        let audit = place.audit();
        let open = file::Open { path: "/etc/hostname".into(), mode: None };
        let asked = audit.asked("port", &file::Request::Open(open).into(), || None);
        let rule = Origin { place: "policy.toml".into(), line: 12 };
        let failed = Failed::system("failed to open file '/etc/hostname' (mode: 'r')", 13);
        let decision = Decision { name: "allow", rule: &rule, record: Record::Usual };
        audit.request(&asked, Some(decision), Some("file"), &Outcome::Failed(&failed), false).unwrap();
        let line = &place.lines()[1];
        assert_eq!(line["channel"], "port");
        assert_eq!(line["dialect"], "qga");
        assert_eq!(line["command"], "guest-file-open");
        assert_eq!(line["arguments"], json!({"path": "/etc/hostname", "mode": null}));
        assert_eq!(line["decision"], "allow");
        assert_eq!(line["rule"], "policy.toml:12");
        assert_eq!(line["outcome"], "failed");
        assert_eq!(line["errno"], 13);
        place.is_chained();
    }

    #[test]
    fn by_a_rule_that_wants_digests_neither_arguments_nor_what_repeats_them_are_recorded() {
        let place = Place::new();
        let audit = place.audit();
        let open = file::Open { path: "/secret/name".into(), mode: None };
        let asked =
            audit.asked("port", &file::Request::Open(open).into(), || Some("/secret/name".to_owned()));
        let rule = Origin { place: "policy.toml".into(), line: 12 };
        let failed = Failed::system("failed to open file '/secret/name'", 13);
        let decision = Decision { name: "allow", rule: &rule, record: Record::Digest };
        audit.request(&asked, Some(decision), None, &Outcome::Failed(&failed), false).unwrap();
        let line = &place.lines()[1];
        let digest = hash(br#"{"path":"/secret/name","mode":null}"#).to_string();
        assert_eq!(line["arguments"], json!({ "sha256": digest }));
        assert_eq!(line["errno"], 13);
        assert!(!place.text().contains("secret"), "{line}");
    }

    #[test]
    fn a_broker_that_follows_a_dead_one_goes_on_with_its_chain_and_closes_its_intents() {
        let place = Place::new();
        let audit = place.audit();
        let (first, second) = (begin(&audit), begin(&audit));
        end(&audit, &first);
        drop((audit, second));
        let audit = place.audit();
        end(&audit, &begin(&audit));
        let lines = place.lines();
        let kinds = ["start", "intent", "intent", "request", "start", "closed", "intent", "request"];
        assert_eq!(place.kinds(), kinds);
        let last = hash(place.text().lines().nth(3).unwrap().as_bytes()).to_string();
        assert_eq!(lines[4]["link"], json!({ "sequence": 4, "hash": last }));
        assert_eq!((&lines[4]["restart"], &lines[0]["link"]), (&json!(true), &Value::Null));
        assert_eq!((&lines[5]["intent"], &lines[5]["of"]), (&json!(3), &json!(last)));
        assert_eq!(lines[5]["outcome"], "unknown");
        place.is_chained();
        drop(audit);
        drop(place.audit());
        assert_eq!(place.kinds().iter().filter(|kind| *kind == "closed").count(), 1, "it is closed once");
        place.is_chained();
    }

    #[test]
    fn a_broker_killed_between_its_announcement_and_the_record_leaves_no_gap() {
        let place = Place::new();
        let audit = place.audit();
        begin(&audit);
        let before = place.text();
        end(&audit, &begin(&audit));
        // As if it had been killed before either of the two was written: the announcement of the first is older by then.
        std::fs::write(place.log.path(), &before).unwrap();
        let mut state = audit.state.borrow_mut();
        state.chain = Chain { turn: state.chain.turn, ..Chain::default() };
        state.chain.last = Head {
            sequence: 2,
            hash: hash(before.lines().nth(1).unwrap().as_bytes()),
            size: before.len() as u64,
        };
        state.chain.intents = vec![Intent { of: None, sequence: 2 }];
        state.chain.next = Some(Head { sequence: 3, hash: Hash([9; 32]), size: before.len() as u64 + 300 });
        state.chain.ends = Some(Intent { of: None, sequence: 2 });
        audit.announce(&mut state);
        drop(state);
        drop(audit);
        drop(place.audit());
        assert_eq!(place.kinds(), ["start", "intent", "start", "closed"]);
        place.is_chained();
    }

    #[test]
    fn a_record_that_was_cut_by_the_end_of_its_broker_does_not_count() {
        let place = Place::new();
        let audit = place.audit();
        let asked = begin(&audit);
        end(&audit, &asked);
        drop(audit);
        let text = place.text();
        // As much of the last record as a signal in the middle of the write left.
        std::fs::write(place.log.path(), &text[..text.len() - 40]).unwrap();
        let bytes = std::fs::read(place.log.path()).unwrap();
        assert!(!bytes.ends_with(b"\n"));
        // The announcement says that it was being written.
        let mut chain = take_over(&place.chain);
        let start = text.lines().nth(1).unwrap();
        let size = text.lines().take(2).map(|line| line.len() as u64 + 1).sum();
        chain.turn += 1;
        chain.last = Head { sequence: 2, hash: hash(start.as_bytes()), size };
        chain.next = Some(Head { sequence: 3, hash: Hash([7; 32]), size: text.len() as u64 });
        chain.ends = Some(Intent { of: None, sequence: 2 });
        chain.intents = vec![Intent { of: None, sequence: 2 }];
        place.announce(&chain);
        drop(place.audit());
        let whole =
            |line: &str| serde_json::from_str::<Value>(line).map(|record| record["kind"].clone()).ok();
        let kinds: Vec<Option<Value>> = place.text().lines().map(whole).collect();
        let some = |kind: &str| Some(json!(kind));
        assert_eq!(kinds, [some("start"), some("intent"), None, some("start"), some("closed")]);
        place.is_chained();
    }

    #[test]
    fn a_record_of_which_only_the_line_end_is_missing_counts_for_the_next_broker() {
        // With the announcement of a record that was never begun, and without one.
        for announced in [true, false] {
            let place = Place::new();
            let audit = place.audit();
            let asked = begin(&audit);
            end(&audit, &asked);
            drop(audit);
            let text = place.text();
            std::fs::write(place.log.path(), text.trim_end()).unwrap();
            if announced {
                let mut chain = take_over(&place.chain);
                chain.settle(true);
                chain.turn += 1;
                let size = chain.last.size + 300;
                chain.next = Some(Head { sequence: 4, hash: Hash([7; 32]), size });
                place.announce(&chain);
            }
            drop(place.audit());
            assert_eq!(place.kinds(), ["start", "intent", "request", "start"]);
            place.is_chained();
        }
    }

    #[test]
    fn whatever_the_announcement_says_a_broker_starts() {
        for byte in [0, 1, 0x80, 0xff] {
            let place = Place::new();
            (&place.chain).write_all(&vec![byte; chain::FILE]).unwrap();
            drop(place.audit());
            assert_eq!(place.kinds().first().map(String::as_str), Some("start"));
        }
    }

    #[test]
    fn while_something_is_frozen_records_wait_and_then_stand_in_their_order_and_in_the_chain() {
        let place = Place::new();
        let audit = place.audit();
        let freeze = begin(&audit);
        audit.hold();
        end(&audit, &freeze);
        let thaw = begin(&audit);
        assert_eq!(place.lines().len(), 2);
        audit.release();
        end(&audit, &thaw);
        assert_eq!(place.kinds(), ["start", "intent", "request", "intent", "request"]);
        let lines = place.lines();
        assert_eq!((&lines[2]["intent"], &lines[4]["intent"]), (&json!(2), &json!(4)));
        place.is_chained();
    }

    #[test]
    fn an_intent_and_its_outcome_that_waited_together_know_each_other() {
        let place = Place::new();
        let audit = place.audit();
        audit.hold();
        end(&audit, &begin(&audit));
        audit.release();
        assert_eq!(place.lines()[2]["intent"], 2);
    }

    #[test]
    fn what_does_not_fit_into_memory_while_something_is_frozen_is_counted_as_lost_without_a_gap() {
        let place = Place::new();
        let audit = place.audit();
        audit.hold();
        let text = "x".repeat(15_000);
        for _ in 0..72 {
            audit.note("front", &json!({ "text": text }));
        }
        audit.release();
        let lines = place.lines();
        let long = lines.iter().filter(|line| line["kind"] == "front").count();
        assert_eq!((lines[1]["kind"].as_str(), &lines[1]["records"]), (Some("loss"), &json!(3)));
        assert_eq!(long, 69);
        place.is_chained();
    }

    #[test]
    fn records_that_waited_when_their_broker_was_killed_are_counted_by_the_next() {
        let place = Place::new();
        let audit = place.audit();
        audit.hold();
        audit.note("thaw", &json!({}));
        audit.note("thaw", &json!({}));
        drop(audit);
        drop(place.audit());
        assert_eq!(place.kinds(), ["start", "start", "loss"]);
        assert_eq!(place.lines()[2]["records"], 2);
    }

    #[test]
    fn no_record_holds_input_or_values_of_the_environment() {
        let place = Place::new();
        let audit = place.audit();
        let text = Base64Text(b"c2VjcmV0IGlucHV0".to_vec());
        let exec = exec::Exec {
            path: "tee".into(),
            arg: Some(vec!["/tmp/x".into()]),
            env: Some(vec!["TOKEN=hunter2".into()]),
            input_data: Payload { present: true, length: 12, text },
            capture_output: exec::Capture::None,
        };
        let asked = audit.asked("port", &exec::Request::Exec(exec).into(), || None);
        audit.request(&asked, None, None, &Outcome::Begins, false).unwrap();
        let line = place.lines().remove(1);
        assert_eq!(line["arguments"]["env"], json!(["TOKEN"]));
        assert_eq!(line["arguments"]["input-data"], json!({"bytes": 12}));
        assert!(!line.to_string().contains("hunter2") && !line.to_string().contains("c2VjcmV0"));
    }

    #[test]
    fn the_longest_texts_of_a_host_make_a_record_of_16_kib_at_most_that_still_says_what_was_asked() {
        let place = Place::new();
        let audit = place.audit();
        let path = "\u{1}".repeat(4000);
        let open = file::Open { path: path.as_str().into(), mode: Some(path.clone()) };
        let asked = audit.asked("port", &file::Request::Open(open).into(), || Some(path.clone()));
        let rule = Origin { place: path.as_str().into(), line: 12 };
        let decision = Decision { name: "allow", rule: &rule, record: Record::Usual };
        let failed = Failed::new(path);
        audit.request(&asked, Some(decision), Some("file"), &Outcome::Failed(&failed), false).unwrap();
        let text = place.text();
        let line = text.lines().nth(1).unwrap();
        assert!(line.len() <= proto::limits::RECORD && line.is_ascii(), "{}", line.len());
        let record = &place.lines()[1];
        assert_eq!((&record["command"], &record["outcome"]), (&json!("guest-file-open"), &json!("failed")));
        assert!(record["arguments"]["length"].is_u64(), "{record}");
    }

    #[test]
    fn what_cannot_be_recorded_is_refused_where_records_are_required_and_the_loss_is_counted() {
        let place = Place::new();
        let audit = place.audit_to(std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap());
        let asked = audit.asked("port", &flush(), || None);
        let failed = audit.request(&asked, None, None, &Outcome::Begins, false).unwrap_err();
        assert_eq!(failed.text, "not done, because it cannot be recorded: No space left on device");
        let room = std::fs::OpenOptions::new().append(true).open(place.log.path()).unwrap();
        audit.state.borrow_mut().sinks = vec![Sink::File(LogFile::new(room.into()))];
        audit.note("thaw", &json!({}));
        assert_eq!(place.kinds(), ["start", "loss", "thaw"]);
        assert_eq!(place.lines()[1]["records"], 1);
        place.is_chained();
    }

    #[test]
    fn a_file_that_was_cut_is_gone_on_with_and_the_record_says_so() {
        let place = Place::new();
        let audit = place.audit();
        let before = place.text().len();
        place.log.as_file().set_len(10).unwrap();
        assert_eq!(audit.wants_another_file(), None);
        let text = place.text();
        let (cut, rest) = text.split_once('\n').unwrap();
        assert_eq!(cut.len(), 10);
        let record: Value = serde_json::from_str(rest).unwrap();
        assert_eq!((&record["kind"], &record["sequence"]), (&json!("replaced"), &json!(2)));
        assert_eq!(record["why"], format!("the file was cut from {before} to 10 bytes"));
    }

    #[test]
    fn nothing_is_written_to_a_file_that_was_removed_and_another_goes_on_with_the_chain() {
        let place = Place::new();
        let audit = place.audit();
        let head = audit.head();
        std::fs::remove_file(place.log.path()).unwrap();
        assert_eq!(audit.wants_another_file(), Some(Why::Removed));
        let asked = audit.asked("port", &flush(), || None);
        let failed = audit.request(&asked, None, None, &Outcome::Begins, false).unwrap_err();
        assert_eq!(failed.text, "not done, because it cannot be recorded: its file was removed");
        let mut another = tempfile::tempfile().unwrap();
        let file = another.try_clone().unwrap().into();
        audit.go_on_in(Another { file, number: 0, why: Why::Removed });
        let mut text = String::new();
        another.rewind().unwrap();
        another.read_to_string(&mut text).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&records[0]["kind"], &records[1]["kind"]), (&json!("loss"), &json!("replaced")));
        assert_eq!(records[0]["prev"], head.hash.to_string());
    }
}
