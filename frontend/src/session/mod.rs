//! One conversation with the host: requests in order, replies in order, and nobody who can hold up the others.
//!
//! Runs in the frontend. A value without I/O and without a clock: bytes of the host, messages of the broker and the
//! time go in; bytes for the host ([`Session::output`]) and messages for the broker ([`Outgoing`]) come out. It does
//! not trust the host at all, and of the broker it expects the protocol and ends the process if it is broken.
//!
//! ```text
//!            ┌──────────── QEMU's dialect: one queue, replies in its order ──────────┐
//!  request ─►│ Unsent ──16 at the broker──► Sent ──pieces, answer──► written         │
//!            │ Ready (answered in front, or wrong) ──in its turn──► written          │
//!            └───────────────────────────────────────────────────────────────────────┘
//!  Phoenix:    Unsent ──► Sent ──answer──► written, in whatever order they come
//!  client leaves: what was read is carried out as an orphan, its reply is dropped
//! ```

mod entry;
mod line;
mod verdicts;

pub use self::entry::refusal;

use std::collections::VecDeque;
use std::time::Instant;

use proto::limits::{GRACE, PATIENCE, REQUESTS_IN_FLIGHT, STARTING, WINDOW};
use proto::message::{FromFrontend, ToFrontend, Welcome};
use proto::{Answer, CommandId, Denied, Dialect, Request};

use self::entry::{Early, Entry, Form, Sent, State};
use self::line::Line;
use self::verdicts::{Front, Known, Verdicts};
use crate::output::{FULL, Output};
use crate::payload::{Rules, Upload};
use crate::phoenix::{self, Asked, lines};
use crate::qga::{self, Event};
use crate::value::{self, Member, Value};

/// Bytes that unanswered requests may hold before no more are read; one request may hold more.
const HELD: usize = 1 << 20;
/// However much they hold, so many are read, so that a sync is heard behind a large write that is stuck.
const HEARD: usize = 3;
/// Requests that may be unanswered before no more are read.
const QUEUED: usize = 4096;
/// Text of one request beside its payload: as much as Linux takes as arguments and environment of a program (execve(2)).
const ARGUMENTS: usize = 6 << 20;
/// What an entry holds beside its text.
const ENTRY: usize = 64;
/// Requests answered in front are reported at the latest after so many.
const COUNTED: u32 = 4096;
/// A request of so many bytes leaves memory behind that is worth giving back.
const MUCH: usize = 256 * 1024;
/// A reply of Phoenix's dialect is held whole, up to this; its reads return 4096 bytes.
const PHOENIX_REPLY: usize = 1 << 20;

/// Where messages for the broker go.
pub trait Outgoing {
    /// Sends or queues a message with its payload.
    ///
    /// # Errors
    /// If the message is over the limit of [`proto::limits::MESSAGE`]; then nothing of it was sent.
    fn send(&mut self, id: u64, message: &FromFrontend, payload: &[u8]) -> Result<(), TooLarge>;

    /// Whether so much is queued that no request should be added now; [`Session::tick`] tries again.
    fn is_congested(&self) -> bool;
}

/// A message that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request is too large")]
pub struct TooLarge;

/// The broker did what it may not. The process cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker broke the protocol: {0}")]
pub struct BrokerFault(pub &'static str);

/// What reads the host's bytes.
enum Spoken {
    Qga(Box<qga::Reader>),
    Phoenix(lines::Reader),
    /// QEMU's reader; a request that names a command of Phoenix's, or has a tag, is answered in its form.
    Both(Box<qga::Reader>),
}

/// A conversation, from the first client to the last.
pub struct Session {
    spoken: Spoken,
    verdicts: Verdicts,
    output: Output,
    /// QEMU's dialect, in order.
    queue: VecDeque<Entry>,
    /// When the first of the queue became the first.
    front_since: Option<Instant>,
    /// Phoenix's dialect.
    loose: VecDeque<Entry>,
    /// Lines of Phoenix's dialect that wait for the end of a line that has begun.
    deferred: Vec<u8>,
    /// Requests of clients that have left.
    orphans: VecDeque<Entry>,
    orphan_progress: Option<Instant>,
    counts: Vec<(CommandId, u32)>,
    counted: u32,
    last_id: u64,
    lane: u32,
    /// Requests at the broker whose answer is awaited.
    in_flight: usize,
    /// Entries of all lists that are [`State::Unsent`].
    unsent: usize,
    held: usize,
    /// Something large has been here since [`Session::had_much`] was asked last.
    much: bool,
    scratch: Vec<u8>,
}

impl Session {
    /// Begins, with what the broker said.
    pub fn new(welcome: &Welcome) -> Self {
        let speaks = |dialect| welcome.channel.dialects.contains(&dialect);
        let spoken = match (speaks(Dialect::Qga), speaks(Dialect::Phoenix)) {
            (false, true) => Spoken::Phoenix(lines::Reader::default()),
            (true, true) => Spoken::Both(Box::default()),
            _ => Spoken::Qga(Box::default()),
        };
        Session {
            spoken,
            verdicts: Verdicts::of(welcome),
            output: Output::default(),
            queue: VecDeque::new(),
            front_since: None,
            loose: VecDeque::new(),
            deferred: Vec::new(),
            orphans: VecDeque::new(),
            orphan_progress: None,
            counts: Vec::new(),
            counted: 0,
            last_id: 0,
            lane: 1,
            in_flight: 0,
            unsent: 0,
            held: 0,
            much: false,
            scratch: Vec::new(),
        }
    }

    /// What is to be written to the host next.
    pub fn output(&self) -> &[u8] {
        self.output.pending()
    }

    /// Whether [`Self::input`] takes anything now. Not while the host does not read, or too much is unanswered.
    pub fn wants_input(&self) -> bool {
        let unanswered = self.queue.len() + self.loose.len();
        !self.output.is_full()
            && self.deferred.len() < FULL
            && unanswered + self.orphans.len() < QUEUED
            && (self.held < HELD || unanswered < HEARD)
    }

    /// Whether all that the client asked for is answered and written.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.loose.is_empty() && self.output.pending().is_empty()
    }

    /// Whether there was something large since this was asked last, whose memory may go back to the system.
    pub fn had_much(&mut self) -> bool {
        std::mem::take(&mut self.much)
    }

    /// Takes bytes of the host; returns how many. The rest is to be given again when [`Self::wants_input`].
    pub fn input(&mut self, bytes: &[u8], now: Instant, broker: &mut impl Outgoing) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() && self.wants_input() {
            let used = match &mut self.spoken {
                Spoken::Phoenix(reader) => {
                    let (used, line) = reader.read(rest);
                    let asked = line.map(|line| match line {
                        lines::Line::Whole(line) => (phoenix::read(line), line.len()),
                        lines::Line::TooLong => (Err("JSON parse error: the line is too long".to_owned()), 0),
                    });
                    if let Some((asked, weight)) = asked {
                        self.phoenix(asked, weight, now);
                    }
                    used
                }
                Spoken::Qga(reader) => {
                    let (used, event) = reader.read(rest);
                    if let Some(event) = event {
                        self.event(event, false, now);
                    }
                    used
                }
                Spoken::Both(reader) => {
                    let (used, event) = reader.read(rest);
                    if let Some(event) = event {
                        self.event(event, true, now);
                    }
                    used
                }
            };
            rest = rest.get(used..).unwrap_or_default();
        }
        self.advance(now, broker);
        bytes.len() - rest.len()
    }

    /// Takes a message of the broker.
    ///
    /// # Errors
    /// If the broker broke the protocol.
    pub fn from_broker(
        &mut self,
        id: u64,
        message: ToFrontend,
        payload: &[u8],
        now: Instant,
        broker: &mut impl Outgoing,
    ) -> Result<(), BrokerFault> {
        match message {
            ToFrontend::Hello(_) => return Err(BrokerFault("a second hello")),
            ToFrontend::Welcome(welcome) => {
                self.verdicts = Verdicts::of(&welcome);
                return Ok(());
            }
            _ if id == 0 || id > self.last_id => return Err(BrokerFault("the id of no request")),
            ToFrontend::More(count) => self.more(id, count, now, broker),
            ToFrontend::Starting(starts) => self.starting(id, if starts { now + STARTING } else { now }),
            ToFrontend::Piece(stream) => self.piece(id, usize::from(stream), payload, now, broker)?,
            ToFrontend::Answer(answer) => self.answer(id, answer, payload, now)?,
        }
        self.advance(now, broker);
        Ok(())
    }

    /// The first `count` bytes of [`Self::output`] are written.
    pub fn sent(&mut self, count: usize, now: Instant, broker: &mut impl Outgoing) {
        let was_full = self.output.is_full();
        self.output.consume(count);
        self.much |= was_full;
        if was_full && !self.output.is_full() {
            // It was the host that held things up, not the request.
            self.front_since = self.front_since.map(|_| now);
            if let Some(Entry { state: State::Sent(sent), .. }) = self.queue.front_mut() {
                let owed = std::mem::take(&mut sent.owed);
                if owed > 0 {
                    tell(broker, sent.id, &FromFrontend::More(owed));
                }
            }
            self.advance(now, broker);
        }
        if self.is_idle() {
            self.output.shrink();
        }
    }

    /// When [`Self::tick`] wants to be called; never while nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        let orphans =
            self.orphans_wait().then(|| self.orphan_progress.map(|progress| progress + PATIENCE)).flatten();
        [self.stuck_at(), orphans].into_iter().flatten().min()
    }

    /// Gives up what is stuck and has others wait for it.
    pub fn tick(&mut self, now: Instant, broker: &mut impl Outgoing) {
        if self.stuck_at().is_some_and(|stuck_at| now >= stuck_at) {
            let waited = |entry: &Entry| now.saturating_duration_since(entry.arrived) >= GRACE;
            match self.queue.iter().rposition(|entry| entry.is_sync && waited(entry)) {
                Some(sync) => self.drop_before(sync, now, broker),
                None => self.give_up_front(now, broker),
            }
        }
        let stuck = |progress: Instant| now.saturating_duration_since(progress) >= PATIENCE;
        if self.orphans_wait() && self.orphan_progress.is_none_or(stuck) && self.forsake_orphan(broker) {
            self.orphan_progress = Some(now);
        }
        self.advance(now, broker);
    }

    /// The client has left: what it asked for is carried out, nobody hears of it. The next one begins afresh.
    pub fn leave(&mut self, now: Instant, broker: &mut impl Outgoing) {
        match &mut self.spoken {
            Spoken::Phoenix(reader) => reader.reset(),
            Spoken::Qga(reader) | Spoken::Both(reader) => reader.reset(),
        }
        let queue = std::mem::take(&mut self.queue);
        for mut entry in queue.into_iter().chain(std::mem::take(&mut self.loose)) {
            match &entry.state {
                State::Ready(_) => self.forget(&mut entry),
                State::Sent(sent) if sent.is_answered() => self.forget(&mut entry),
                // What only reads has no effect that somebody could miss.
                State::Sent(sent) if !sent.command.streams.is_empty() => {
                    tell(broker, sent.id, &FromFrontend::Abandon { cancel: false });
                    self.in_flight -= 1;
                    self.forget(&mut entry);
                }
                State::Sent(_) | State::Unsent(..) => self.orphans.push_back(entry),
            }
        }
        self.orphan_progress = Some(now);
        self.front_since = None;
        self.output.clear();
        self.deferred = Vec::new();
        self.lane = next_lane(self.lane);
        self.report_counts(broker);
        self.advance(now, broker);
    }

    // What the host says.

    fn event(&mut self, event: Event, both: bool, now: Instant) {
        match event {
            Event::Error(text) => self.put(&Form::Qga(None), now, |form, line| form.failed(&text, line)),
            Event::Value(Value::Object(members), weight) => {
                if both && self.is_for_phoenix(&members) {
                    let asked = phoenix::ask(Value::Object(members))
                        .map_err(|what| format!("JSON parse error: {what}"));
                    self.phoenix(asked, weight, now);
                } else {
                    self.qga(members.into_vec(), weight, now);
                }
            }
            Event::Value(..) => {
                let text = b"QMP input must be a JSON object";
                self.put(&Form::Qga(None), now, |form, line| form.failed(text, line));
            }
        }
    }

    fn is_for_phoenix(&self, members: &[Member]) -> bool {
        members.iter().any(|member| match &*member.name {
            b"tag" => true,
            b"execute" => {
                member.value.text().is_some_and(|name| self.verdicts.find(Dialect::Phoenix, name).is_some())
            }
            _ => false,
        })
    }

    /// A request in QEMU's dialect (`qapi/qmp-dispatch.c`).
    fn qga(&mut self, mut members: Vec<Member>, weight: usize, now: Instant) {
        let fault = qga_fault(&members);
        let form = Form::Qga(value::take(&mut members, b"id"));
        if let Some(fault) = fault {
            return self.put(&form, now, |form, line| form.failed(&fault, line));
        }
        let execute = value::take(&mut members, b"execute");
        let name = execute.as_ref().and_then(Value::text).unwrap_or_default();
        let Some(known) = self.verdicts.find(Dialect::Qga, name) else {
            return self.put(&form, now, |form, line| {
                let text = [b"The command ", name, b" has not been found"].concat();
                let Form::Qga(id) = form else { return };
                qga::encoding::error(qga::encoding::COMMAND_NOT_FOUND, &text, id.as_ref(), line);
            });
        };
        let mut arguments = match value::take(&mut members, b"arguments") {
            Some(Value::Object(arguments)) => arguments.into_vec(),
            _ => Vec::new(),
        };
        if self.in_front(known, &form, &arguments, now) {
            return;
        }
        match qga::arguments::decode(known.name, &mut arguments) {
            Some(Ok(request)) => self.take(request, form, Rules::Glib, weight, now),
            Some(Err(_)) if !known.permitted => self.deny(known, &form, now),
            Some(Err(fault)) => self.put(&form, now, |form, line| form.failed(&fault.text(), line)),
            None => self.deny(known, &form, now),
        }
    }

    /// A request in Phoenix's dialect.
    fn phoenix(&mut self, asked: Result<Asked, String>, weight: usize, now: Instant) {
        let mut asked = match asked {
            Ok(asked) => asked,
            Err(text) => {
                return self
                    .put(&Form::Phoenix(Vec::new()), now, |form, line| form.failed(text.as_bytes(), line));
            }
        };
        let form = Form::Phoenix(asked.tag);
        let known = self.verdicts.find(Dialect::Phoenix, &asked.execute);
        // Before anything else is looked at, whether the name is known or not.
        if self.verdicts.frozen && !known.is_some_and(|known| known.permitted) {
            let name = String::from_utf8_lossy(&asked.execute).into_owned();
            let denied = Denied::Frozen(name);
            return self.put(&form, now, |form, line| form.denied(&denied, line));
        }
        let Some(known) = known else {
            let text = [b"Unknown command: ", &*asked.execute].concat();
            return self.put(&form, now, |form, line| form.failed(&text, line));
        };
        if self.in_front(known, &form, &asked.arguments, now) {
            return;
        }
        match phoenix::arguments::decode(known.name, &mut asked.arguments) {
            Some(Ok(request)) => self.take(request, form, Rules::Go, weight, now),
            Some(Err(_)) if !known.permitted => self.deny(known, &form, now),
            Some(Err(fault)) => {
                self.put(&form, now, |form, line| form.failed(fault.to_string().as_bytes(), line))
            }
            None => self.deny(known, &form, now),
        }
    }

    /// Answers what needs nobody else; false if that is not so, or if there is something wrong with the arguments.
    fn in_front(&mut self, known: Known, form: &Form, arguments: &[Member], now: Instant) -> bool {
        let Some(front) = known.front else { return false };
        let verdicts = &self.verdicts;
        let made;
        let reply: &[u8] = match (front, arguments) {
            (Front::Sync | Front::SyncDelimited, [Member { name, value: Value::Int(id) }])
                if **name == *b"id" =>
            {
                made = id.to_string().into_bytes();
                &made
            }
            (Front::Ping, []) => b"{}",
            (Front::Info, []) => verdicts.info(),
            (Front::PhoenixPing, _) => {
                made = verdicts.version();
                &made
            }
            (Front::Commands, _) => verdicts.commands(),
            _ => return false,
        };
        let write = |line: &mut Vec<u8>| {
            if front == Front::SyncDelimited {
                line.push(0xff);
            }
            form.done(reply, line);
        };
        // As `put`, which cannot be called while the reply is borrowed.
        if matches!(form, Form::Qga(_)) && !self.queue.is_empty() {
            let mut line = Vec::new();
            write(&mut line);
            let is_sync = matches!(front, Front::Sync | Front::SyncDelimited);
            self.queue_line(line, is_sync, now);
        } else if self.line_is_open() {
            write(&mut self.deferred);
        } else {
            write(self.output.end());
        }
        self.count(known);
        true
    }

    fn deny(&mut self, known: Known, form: &Form, now: Instant) {
        let denied = Denied::Command(known.name.to_owned());
        self.put(form, now, |form, line| form.denied(&denied, line));
    }

    /// Writes a line that is ready, in its turn.
    fn put(&mut self, form: &Form, now: Instant, write: impl FnOnce(&Form, &mut Vec<u8>)) {
        if matches!(form, Form::Qga(_)) && !self.queue.is_empty() {
            let mut line = Vec::new();
            write(form, &mut line);
            self.queue_line(line, false, now);
        } else if self.line_is_open() {
            write(form, &mut self.deferred);
        } else {
            write(form, self.output.end());
        }
    }

    fn queue_line(&mut self, line: Vec<u8>, is_sync: bool, now: Instant) {
        let weight = ENTRY + line.len();
        self.held += weight;
        self.queue.push_back(Entry {
            form: Form::Qga(None),
            arrived: now,
            is_sync,
            lane: self.lane,
            weight,
            state: State::Ready(line),
        });
    }

    /// Takes a request that is for the broker.
    fn take(&mut self, mut request: Request, form: Form, rules: Rules, weight: usize, now: Instant) {
        let payload = request.payload().map_or(0, |payload| payload.text.0.len());
        if weight.saturating_sub(payload) > ARGUMENTS {
            return self.put(&form, now, |form, line| form.failed(TooLarge.to_string().as_bytes(), line));
        }
        let mut upload = None;
        if let Some(payload) = request.payload_mut() {
            match Upload::new(std::mem::take(&mut payload.text.0), rules) {
                Ok(begun) => {
                    payload.length = begun.length();
                    upload = Some(begun).filter(|upload| !upload.is_finished());
                }
                Err(bad) => {
                    return self.put(&form, now, |form, line| form.failed(bad.to_string().as_bytes(), line));
                }
            }
        }
        self.much |= weight >= MUCH;
        let weight = ENTRY + weight;
        self.held += weight;
        self.unsent += 1;
        let is_qga = matches!(form, Form::Qga(_));
        let entry = Entry {
            form,
            arrived: now,
            is_sync: false,
            lane: if is_qga { self.lane } else { 0 },
            weight,
            state: State::Unsent(Box::new(request), upload),
        };
        if is_qga {
            if self.queue.is_empty() {
                self.front_since = Some(now);
            }
            self.queue.push_back(entry);
        } else {
            self.loose.push_back(entry);
        }
    }

    fn count(&mut self, Known { id, each, .. }: Known) {
        self.counted = if each { COUNTED } else { self.counted + 1 };
        match self.counts.iter_mut().find(|(counted, _)| *counted == id) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((id, 1)),
        }
    }

    fn report_counts(&mut self, broker: &mut impl Outgoing) {
        if !self.counts.is_empty() {
            tell(broker, 0, &FromFrontend::Counts(std::mem::take(&mut self.counts)));
            self.counted = 0;
        }
    }

    // What the broker says.

    fn more(&mut self, id: u64, count: u16, now: Instant, broker: &mut impl Outgoing) {
        let Session { queue, loose, orphans, scratch, held, .. } = self;
        let mut entries = queue.iter_mut().chain(loose).chain(orphans);
        let Some(entry) = entries.find(|entry| entry.has_id(id)) else { return };
        let State::Sent(sent) = &mut entry.state else { return };
        sent.progress = now;
        sent.credit = sent.credit.saturating_add(count).min(WINDOW);
        send_pieces(sent, scratch, broker);
        if sent.upload.is_none() {
            *held -= std::mem::take(&mut entry.weight);
        }
        self.orphan_progress = self.orphan_progress.map(|_| now);
    }

    fn starting(&mut self, id: u64, progress: Instant) {
        let entry = self.queue.iter_mut().find(|entry| entry.has_id(id));
        if let Some(Entry { state: State::Sent(sent), .. }) = entry {
            sent.progress = progress;
        }
    }

    fn piece(
        &mut self,
        id: u64,
        stream: usize,
        bytes: &[u8],
        now: Instant,
        broker: &mut impl Outgoing,
    ) -> Result<(), BrokerFault> {
        const NO_PLACE: BrokerFault = BrokerFault("a piece that the reply has no place for");
        if let Some(position) = self.queue.iter().position(|entry| entry.has_id(id)) {
            let full = self.output.is_full();
            let Some(Entry { state: State::Sent(sent), .. }) = self.queue.get_mut(position) else {
                return Ok(());
            };
            sent.progress = now;
            if position > 0 || !sent.early.is_empty() {
                // It has not been asked for more, so there cannot be many.
                if sent.early.len() >= usize::from(WINDOW) {
                    return Err(BrokerFault("more pieces than were asked for"));
                }
                sent.early.push(Early::Piece(stream, bytes.to_vec()));
                return Ok(());
            }
            sent.line.piece(stream, bytes, self.output.end()).map_err(|_| NO_PLACE)?;
            if full || self.output.is_full() {
                sent.owed = sent.owed.saturating_add(1);
            } else {
                tell(broker, id, &FromFrontend::More(1));
            }
        } else if let Some(entry) = self.loose.iter_mut().find(|entry| entry.has_id(id)) {
            let State::Sent(sent) = &mut entry.state else { return Ok(()) };
            sent.line.piece(stream, bytes, &mut sent.text).map_err(|_| NO_PLACE)?;
            if sent.text.len() > PHOENIX_REPLY {
                return Err(BrokerFault("a reply that is too long"));
            }
            tell(broker, id, &FromFrontend::More(1));
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, answer: Answer, bytes: &[u8], now: Instant) -> Result<(), BrokerFault> {
        if let Some(position) = self.queue.iter().position(|entry| entry.has_id(id)) {
            let Some(Entry { state: State::Sent(sent), .. }) = self.queue.get_mut(position) else {
                return Ok(());
            };
            if sent.is_answered() {
                return Err(BrokerFault("a second answer"));
            }
            self.in_flight -= 1;
            if position > 0 || !sent.early.is_empty() {
                sent.early.push(Early::Answer(answer, bytes.to_vec()));
                return Ok(());
            }
            let Some(mut entry) = self.pop_front(now) else { return Ok(()) };
            let State::Sent(sent) = &mut entry.state else { return Ok(()) };
            entry.form.answer(sent, answer, bytes, self.output.end()).map_err(BrokerFault)?;
        } else if let Some(position) = self.loose.iter().position(|entry| entry.has_id(id)) {
            let Some(mut entry) = self.loose.remove(position) else { return Ok(()) };
            self.in_flight -= 1;
            self.forget(&mut entry);
            let State::Sent(sent) = &mut entry.state else { return Ok(()) };
            let mut line = std::mem::take(&mut sent.text);
            if sent.line.has_begun() && !matches!(answer, Answer::Done(_)) {
                // Nothing of it was written yet: the failure can take its place.
                line.clear();
                sent.line = Line::new(sent.command);
            }
            entry.form.answer(sent, answer, bytes, &mut line).map_err(BrokerFault)?;
            if self.line_is_open() {
                self.deferred.extend_from_slice(&line);
            } else {
                self.output.push(&line);
            }
        } else if let Some(position) = self.orphans.iter().position(|entry| entry.has_id(id)) {
            self.in_flight -= 1;
            if let Some(mut entry) = self.orphans.remove(position) {
                self.forget(&mut entry);
            }
            self.orphan_progress = Some(now);
        }
        Ok(())
    }

    // What follows from it.

    /// Writes what can be written, sends what can be sent.
    fn advance(&mut self, now: Instant, broker: &mut impl Outgoing) {
        self.write_ready(now, broker);
        if self.unsent > 0 {
            self.send_unsent(now, broker);
            // One that was too large has become an error.
            self.write_ready(now, broker);
        }
        if self.counted >= COUNTED {
            self.report_counts(broker);
        }
    }

    /// Writes all replies at the front of the queue that are there.
    fn write_ready(&mut self, now: Instant, broker: &mut impl Outgoing) {
        while let Some(entry) = self.queue.front_mut() {
            match &mut entry.state {
                State::Ready(line) => {
                    self.output.push(line);
                    self.pop_front(now);
                }
                State::Sent(sent) if !sent.early.is_empty() => {
                    let mut answered = false;
                    for early in std::mem::take(&mut sent.early) {
                        // A fault here is the broker's; the line ends as well as it can.
                        match early {
                            Early::Piece(stream, bytes) => {
                                let _ = sent.line.piece(stream, &bytes, self.output.end());
                                sent.owed = sent.owed.saturating_add(1);
                            }
                            Early::Answer(answer, bytes) => {
                                if entry.form.answer(sent, answer, &bytes, self.output.end()).is_err() {
                                    entry.form.cut_short(sent, self.output.end());
                                }
                                answered = true;
                            }
                        }
                    }
                    if answered {
                        self.pop_front(now);
                    } else if !self.output.is_full() {
                        let owed = std::mem::take(&mut sent.owed);
                        tell(broker, sent.id, &FromFrontend::More(owed));
                    }
                }
                State::Sent(_) | State::Unsent(..) => break,
            }
        }
        if !self.deferred.is_empty() && !self.line_is_open() {
            let deferred = std::mem::take(&mut self.deferred);
            self.output.push(&deferred);
        }
    }

    /// Whether a line of QEMU's dialect has begun and not ended.
    fn line_is_open(&self) -> bool {
        matches!(self.queue.front(), Some(Entry { state: State::Sent(sent), .. }) if sent.line.has_begun())
    }

    fn pop_front(&mut self, now: Instant) -> Option<Entry> {
        let mut entry = self.queue.pop_front()?;
        self.front_since = (!self.queue.is_empty()).then_some(now);
        self.forget(&mut entry);
        Some(entry)
    }

    /// An entry leaves all lists.
    fn forget(&mut self, entry: &mut Entry) {
        self.held -= std::mem::take(&mut entry.weight);
        if matches!(entry.state, State::Unsent(..)) {
            self.unsent -= 1;
        }
    }

    /// Sends requests while the broker may have more: those of clients that have left first, in their order.
    fn send_unsent(&mut self, now: Instant, broker: &mut impl Outgoing) {
        let is_unsent = |entry: &Entry| matches!(entry.state, State::Unsent(..));
        while let Some(position) = self.orphans.iter().position(is_unsent) {
            if self.in_flight >= REQUESTS_IN_FLIGHT || broker.is_congested() {
                break;
            }
            let Some(entry) = self.orphans.get_mut(position) else { break };
            self.in_flight += usize::from(launch(
                entry,
                &mut self.last_id,
                &mut self.counts,
                &mut self.scratch,
                now,
                broker,
            ));
            self.unsent -= 1;
            self.orphan_progress = Some(now);
            let keep = match &entry.state {
                State::Sent(sent) if sent.command.streams.is_empty() => true,
                State::Sent(sent) => {
                    tell(broker, sent.id, &FromFrontend::Abandon { cancel: false });
                    self.in_flight -= 1;
                    false
                }
                _ => false,
            };
            self.settle_weight(List::Orphans, position);
            if !keep && let Some(mut entry) = self.orphans.remove(position) {
                self.forget(&mut entry);
            }
        }
        for list in [List::Queue, List::Loose] {
            let mut from = 0;
            while self.unsent > 0 && !self.output.is_full() && !broker.is_congested() {
                let entries = if list == List::Queue { &mut self.queue } else { &mut self.loose };
                let Some(offset) = entries.iter().skip(from).position(is_unsent) else { break };
                from += offset;
                if self.in_flight >= REQUESTS_IN_FLIGHT && !self.forsake_orphan(broker) {
                    return;
                }
                let entries = if list == List::Queue { &mut self.queue } else { &mut self.loose };
                let Some(entry) = entries.get_mut(from) else { break };
                let sent = launch(entry, &mut self.last_id, &mut self.counts, &mut self.scratch, now, broker);
                self.in_flight += usize::from(sent);
                self.unsent -= 1;
                if sent {
                    self.counted = 0;
                }
                self.settle_weight(list, from);
                if !sent && list == List::Loose {
                    self.give_out_loose(from);
                }
            }
        }
    }

    /// What has been sent holds no memory here.
    fn settle_weight(&mut self, list: List, position: usize) {
        let entries = match list {
            List::Queue => &mut self.queue,
            List::Loose => &mut self.loose,
            List::Orphans => &mut self.orphans,
        };
        if let Some(entry) = entries.get_mut(position)
            && matches!(&entry.state, State::Sent(sent) if sent.upload.is_none())
        {
            self.held -= std::mem::take(&mut entry.weight);
        }
    }

    /// Writes the line of a request of Phoenix's dialect that could not be sent.
    fn give_out_loose(&mut self, position: usize) {
        let Some(mut entry) = self.loose.remove(position) else { return };
        self.forget(&mut entry);
        if let State::Ready(line) = entry.state {
            if self.line_is_open() {
                self.deferred.extend_from_slice(&line);
            } else {
                self.output.push(&line);
            }
        }
    }

    /// Requests of clients that have left wait until the broker may have more.
    fn orphans_wait(&self) -> bool {
        self.in_flight >= REQUESTS_IN_FLIGHT
            && self.orphans.iter().any(|entry| matches!(entry.state, State::Unsent(..)))
    }

    /// Stops waiting for the oldest request of a client that has left: it goes on, but holds nobody up any more.
    fn forsake_orphan(&mut self, broker: &mut impl Outgoing) -> bool {
        let all_sent = |entry: &Entry| matches!(&entry.state, State::Sent(sent) if sent.upload.is_none());
        let Some(position) = self.orphans.iter().position(all_sent) else { return false };
        let Some(mut entry) = self.orphans.remove(position) else { return false };
        if let State::Sent(sent) = &entry.state {
            tell(broker, sent.id, &FromFrontend::Abandon { cancel: false });
            self.in_flight -= 1;
        }
        self.forget(&mut entry);
        true
    }

    /// When the first of the queue counts as stuck, if others wait for it.
    fn stuck_at(&self) -> Option<Instant> {
        let front = self.queue.front()?;
        let next = self.queue.iter().skip(1).find(|entry| entry.is_sync || !front.is_waited_for())?;
        if self.output.is_full() {
            return None;
        }
        let progress = match &front.state {
            State::Sent(sent) => self.front_since.map_or(sent.progress, |since| since.max(sent.progress)),
            State::Unsent(..) => self.front_since.unwrap_or(front.arrived),
            State::Ready(_) => return None,
        };
        Some((progress + PATIENCE).max(next.arrived + GRACE))
    }

    /// A sync has waited: nothing before it is answered any more, nothing of it is begun.
    fn drop_before(&mut self, sync: usize, now: Instant, broker: &mut impl Outgoing) {
        for _ in 0..sync {
            let Some(mut entry) = self.pop_front(now) else { break };
            let Entry { form, state, .. } = &mut entry;
            if let State::Sent(sent) = state {
                if sent.line.has_begun() {
                    form.cut_short(sent, self.output.end());
                }
                self.abandon(sent, broker);
            }
        }
        self.lane = next_lane(self.lane);
    }

    /// Others have waited: the first is answered with an error, in its turn.
    fn give_up_front(&mut self, now: Instant, broker: &mut impl Outgoing) {
        let front_since = self.front_since;
        let Some(mut entry) = self.pop_front(now) else { return };
        let Entry { form, state, arrived, .. } = &mut entry;
        let (since, name) = match state {
            State::Sent(sent) => {
                (front_since.map_or(sent.since, |since| since.max(sent.since)), sent.command.name())
            }
            State::Unsent(request, _) => (*arrived, request.command().name()),
            State::Ready(_) => return,
        };
        match state {
            State::Sent(sent) if sent.line.has_begun() => form.cut_short(sent, self.output.end()),
            _ => {
                let waited = now.saturating_duration_since(since).as_millis();
                let text = format!(
                    "Command {name} has not finished after {waited} ms and other requests wait: given up"
                );
                form.failed(text.as_bytes(), self.output.end());
            }
        }
        if let State::Sent(sent) = state {
            self.abandon(sent, broker);
        }
    }

    fn abandon(&mut self, sent: &Sent, broker: &mut impl Outgoing) {
        if !sent.is_answered() {
            tell(broker, sent.id, &FromFrontend::Abandon { cancel: true });
            self.in_flight -= 1;
        }
    }
}

impl Entry {
    fn has_id(&self, id: u64) -> bool {
        matches!(&self.state, State::Sent(sent) if sent.id == id)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Queue,
    Loose,
    Orphans,
}

/// Lane 0 has no order; all others are used in turn.
fn next_lane(lane: u32) -> u32 {
    lane.checked_add(1).unwrap_or(1)
}

/// Sends a message that is small by its kind.
fn tell(broker: &mut impl Outgoing, id: u64, message: &FromFrontend) {
    broker.send(id, message, &[]).expect("a message without a request is below the limit");
}

/// Sends an unsent request with the pieces that may go with it; false if it is too large, and then its error is ready.
fn launch(
    entry: &mut Entry,
    last_id: &mut u64,
    counts: &mut Vec<(CommandId, u32)>,
    scratch: &mut Vec<u8>,
    now: Instant,
    broker: &mut impl Outgoing,
) -> bool {
    let State::Unsent(request, mut upload) = std::mem::replace(&mut entry.state, State::Ready(Vec::new()))
    else {
        return false;
    };
    let command = request.command();
    let message =
        FromFrontend::Request { lane: entry.lane, request: *request, counts: std::mem::take(counts) };
    let first = upload.as_mut().map_or(&[][..], |upload| upload.next(scratch));
    let credit = if first.is_empty() { WINDOW } else { WINDOW - 1 };
    let id = *last_id + 1;
    if let Err(error) = broker.send(id, &message, first) {
        if let FromFrontend::Request { counts: unsent, .. } = message {
            *counts = unsent;
        }
        let mut line = Vec::new();
        entry.form.failed(error.to_string().as_bytes(), &mut line);
        entry.state = State::Ready(line);
        return false;
    }
    *last_id = id;
    let mut sent = Sent {
        id,
        command,
        since: now,
        progress: now,
        upload,
        credit,
        line: Line::new(command),
        text: Vec::new(),
        owed: 0,
        early: Vec::new(),
    };
    send_pieces(&mut sent, scratch, broker);
    entry.state = State::Sent(Box::new(sent));
    true
}

/// Sends the pieces of a payload that the broker has asked for.
fn send_pieces(sent: &mut Sent, scratch: &mut Vec<u8>, broker: &mut impl Outgoing) {
    while sent.credit > 0
        && let Some(upload) = sent.upload.as_mut().filter(|upload| !upload.is_finished())
    {
        let piece = upload.next(scratch);
        broker.send(sent.id, &FromFrontend::Piece, piece).expect("a piece is below the limit");
        sent.credit -= 1;
    }
    if sent.upload.as_ref().is_some_and(Upload::is_finished) {
        sent.upload = None;
    }
}

/// What is wrong with the members of a request in QEMU's dialect.
fn qga_fault(members: &[Member]) -> Option<Vec<u8>> {
    let mut has_execute = false;
    for Member { name, value } in members {
        match (&**name, value) {
            (b"execute", Value::Text(_)) => has_execute = true,
            (b"execute", _) => return Some(b"QMP input member 'execute' must be a string".to_vec()),
            (b"arguments", Value::Object(_)) | (b"id", _) => {}
            (b"arguments", _) => return Some(b"QMP input member 'arguments' must be an object".to_vec()),
            (other, _) => return Some([b"QMP input member '", other, b"' is unexpected"].concat()),
        }
    }
    (!has_execute).then(|| b"QMP input lacks member 'execute'".to_vec())
}
