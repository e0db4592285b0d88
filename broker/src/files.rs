//! Open files: their numbers, who has them open, and reading ahead.
//!
//! The file worker holds the descriptors; the broker knows each by a number of its own and lets one operation at a time
//! work on it. A handle belongs to the agent, not to a connection; it is lost only with its worker, and then says so.
//!
//! For a regular file that is read in order the broker asks for a whole piece at the file's offset and serves what
//! follows from it, as C's stdio does for qemu-ga with its own buffer. What was read ahead is dropped at any other
//! operation on the handle, after a second, and beyond a number of files.

use std::cell::Cell;
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use authorize::{Asker, By, Exceeded, Facts, Origin, decide};
use jail::Role;
use proto::file::{self, Reply, Request};
use proto::message::{Detail, Found, Job};
use proto::{Denied, Dialect, Failed, Privilege, Text, limits};
use tokio::sync::{Mutex, MutexGuard};

use crate::Broker;
use crate::ask::Ask;
use crate::deadlines::Deadlines;
use crate::dispatch::{Work, deadline, size, too_late};
use crate::numbers::Numbers;
use crate::workers::{Instance, NotDone, Running};

const LIMIT: Duration = deadline(Privilege::File);
/// What was read ahead longer ago than this may differ from the file by now.
const FRESH: Duration = Duration::from_secs(1);
/// Files that may have something read ahead at the same time.
const AHEAD: usize = 16;
/// Keeps the two dialects' numbers apart in the worker.
const PHOENIX: u64 = 1 << 62;
/// `guest-file-read` without a count.
const DEFAULT_COUNT: i64 = 4096;

/// All open files.
pub(crate) struct Files {
    numbers: Numbers,
    open: HashMap<(Dialect, i64), Rc<OpenFile>>,
}

/// One open file.
struct OpenFile {
    /// What the worker knows it by.
    key: u64,
    /// For the log and the record: where it is, if the policy asks for that, else as it was named.
    path: String,
    /// Where it is, if the policy asks for that.
    found: Option<Text>,
    /// The rule by which it was opened, whose limits it has.
    by: By,
    /// Bytes that have been read from it and written to it.
    used: Cell<u64>,
    regular: bool,
    append: bool,
    instance: Rc<Instance>,
    deadlines: Rc<Deadlines>,
    position: Mutex<Position>,
    /// An operation was given up and has not ended.
    stuck: Cell<bool>,
}

/// Where reading goes on.
#[derive(Default)]
struct Position {
    /// Where the client thinks the file stands; nothing if only the worker knows.
    known: Option<u64>,
    /// Reads by offset have gone past the worker's own position.
    behind: bool,
    /// Where the last read ended: another one from there is reading in order.
    last_end: Option<u64>,
    ahead: Option<Ahead>,
}

/// Bytes that were read ahead.
struct Ahead {
    start: u64,
    bytes: Vec<u8>,
    /// The end of the file is behind them.
    eof: bool,
    read_at: Instant,
}

impl Files {
    pub(crate) fn new(numbers: Numbers) -> Self {
        Files { numbers, open: HashMap::new() }
    }

    /// The path of the open file that a request is about, for the record.
    pub(crate) fn path_of(&self, request: &proto::Request) -> Option<String> {
        let proto::Request::File(request) = request else { return None };
        self.open.get(&handle_of(request)?).map(|file| file.path.clone())
    }

    /// How many files are open by a rule.
    fn by_rule(&self, rule: &Origin) -> usize {
        self.open.values().filter(|file| file.by.rule == *rule && !file.instance.has_ended()).count()
    }

    fn find(&mut self, dialect: Dialect, number: i64) -> Result<Rc<OpenFile>, Failed> {
        let unknown = || match dialect {
            Dialect::Qga => Failed::new(format!("handle '{number}' has not been found")),
            Dialect::Phoenix => Failed::new("Incorrect handle id"),
        };
        let file = self.open.get(&(dialect, number)).cloned().ok_or_else(unknown)?;
        if file.instance.has_ended() {
            self.open.remove(&(dialect, number));
            tracing::warn!("handle {number} ({}) was lost with its worker", file.path);
            return Err(match dialect {
                Dialect::Qga => Failed::new(format!(
                    "handle '{number}' has not been found: it was lost when the file worker ended; open the file again"
                )),
                Dialect::Phoenix => unknown(),
            });
        }
        if file.stuck.get() {
            return Err(Failed::new(format!(
                "handle '{number}' is busy: an earlier operation on it has not finished"
            )));
        }
        Ok(file)
    }

    fn remove(&mut self, dialect: Dialect, number: i64) {
        if let Some(file) = self.open.remove(&(dialect, number)) {
            file.instance.release();
        }
    }

    /// Drops what was read ahead where it is oldest, so that one more may be kept.
    fn make_room_ahead(&self) {
        let mut held: Vec<(Instant, &Rc<OpenFile>)> = self
            .open
            .values()
            .filter_map(|file| Some((file.position.try_lock().ok()?.ahead.as_ref()?.read_at, file)))
            .collect();
        held.sort_by_key(|(read_at, _)| *read_at);
        for (_, file) in held.iter().take(held.len().saturating_sub(AHEAD - 1)) {
            if let Ok(mut position) = file.position.try_lock() {
                position.ahead = None;
            }
        }
    }
}

/// The handle that a request names.
fn handle_of(request: &Request) -> Option<(Dialect, i64)> {
    Some(match request {
        Request::Close(file::OfHandle { handle }) | Request::Flush(file::OfHandle { handle }) => {
            (Dialect::Qga, *handle)
        }
        Request::Read(read) => (Dialect::Qga, read.handle),
        Request::Write(write) => (Dialect::Qga, write.handle),
        Request::Seek(seek) => (Dialect::Qga, seek.handle),
        Request::PhoenixClose(close) => (Dialect::Phoenix, close.handle_id),
        Request::PhoenixRead(handle) => (Dialect::Phoenix, handle.handle_id),
        Request::PhoenixWrite(write) => (Dialect::Phoenix, write.handle_id),
        Request::Open(_)
        | Request::PhoenixOpen(_)
        | Request::Md5Sum(_)
        | Request::Chown(_)
        | Request::Chmod(_)
        | Request::Stat(_)
        | Request::CreateDirectory(_)
        | Request::ListDirectory(_) => return None,
    })
}

/// The path that a request names, and the operation as Phoenix calls it.
fn path_named(request: &Request) -> Option<(&Text, &'static str)> {
    match request {
        Request::Open(open) => Some((&open.path, "open")),
        Request::PhoenixOpen(open) => Some((&open.path, "open")),
        Request::Md5Sum(of) => Some((&of.path, "open")),
        Request::Chown(chown) => Some((&chown.path, "chown")),
        Request::Chmod(chmod) => Some((&chmod.path, "chmod")),
        Request::Stat(of) => Some((&of.path, "lstat")),
        Request::CreateDirectory(create) => Some((&create.path, "mkdir")),
        Request::ListDirectory(list) => Some((&list.path, "open")),
        Request::Close(_)
        | Request::Read(_)
        | Request::Write(_)
        | Request::Seek(_)
        | Request::Flush(_)
        | Request::PhoenixClose(_)
        | Request::PhoenixRead(_)
        | Request::PhoenixWrite(_) => None,
    }
}

/// What the worker would say if it came to it; a path is shown up to its limit.
fn refused(request: &Request, errno: nix::errno::Errno) -> Failed {
    let (path, operation) = path_named(request).map_or((String::new(), ""), |(path, operation)| {
        (String::from_utf8_lossy(path.0.get(..limits::PATH).unwrap_or(&path.0)).into_owned(), operation)
    });
    match request {
        Request::Open(open) => {
            let mode = open.mode.as_deref().unwrap_or("r");
            Failed::system(format!("failed to open file '{path}' (mode: '{mode}')"), errno as i32)
        }
        _ => Failed::go_path(operation, path, errno as i32),
    }
}

/// Carries out a request of the file privilege.
pub(crate) async fn work(
    broker: &Rc<Broker>,
    ask: &Rc<Ask>,
    request: Request,
    by: By,
) -> Result<Work, NotDone> {
    // A job must fit into one frame, and the kernel would say the same.
    if path_named(&request).is_some_and(|(path, _)| path.0.len() > limits::PATH) {
        return Err(refused(&request, nix::errno::Errno::ENAMETOOLONG).into());
    }
    let find = |dialect, number| broker.files.borrow_mut().find(dialect, number);
    match request {
        Request::Open(_) | Request::PhoenixOpen(_) => open(broker, ask, request, by).await,
        Request::Read(read) => {
            let file = find(Dialect::Qga, read.handle)?;
            file.permits(ask, &Request::Read(read))?;
            file.read(broker, ask, read).await
        }
        Request::Write(write) => {
            let file = find(Dialect::Qga, write.handle)?;
            let request = Request::Write(write.clone());
            file.permits(ask, &request)?;
            let total = write.count.unwrap_or(i64::MAX);
            // A count that is no count is the worker's to refuse.
            let bytes = u64::try_from(total).unwrap_or(0).min(write.buf_b64.length);
            let written = file.write(ask, write.buf_b64.length, bytes, &request).await?;
            // What the worker refuses has not come this far, so this is what was asked for.
            let count = i64::try_from(written).unwrap_or(total);
            Ok(Work {
                total: written,
                ..Work::without_bytes(Reply::Write(file::Written { count, eof: false }))
            })
        }
        Request::Seek(seek) => {
            let file = find(Dialect::Qga, seek.handle)?;
            file.seek(ask, seek).await
        }
        Request::Flush(handle) => {
            let file = find(Dialect::Qga, handle.handle)?;
            let _one_at_a_time = file.position.lock().await;
            let (reply, _) = file.run(ask, Request::Flush(handle), Detail::default(), &[]).await?;
            Ok(Work::without_bytes(reply))
        }
        Request::Close(handle) => {
            let file = find(Dialect::Qga, handle.handle)?;
            let _one_at_a_time = file.position.lock().await;
            // Whatever closing it says, the number is gone: a failed close is not repeated.
            let result = file.close(ask, request).await;
            broker.files.borrow_mut().remove(Dialect::Qga, handle.handle);
            result.map(|()| Work::without_bytes(Reply::Close(proto::agent::Nothing {})))
        }
        Request::PhoenixRead(handle) => {
            let file = find(Dialect::Phoenix, handle.handle_id)?;
            file.permits(ask, &request)?;
            let _one_at_a_time = file.position.lock().await;
            // The worker reads no more than that.
            file.readable(Dialect::Phoenix, 1)?;
            let (reply, bytes) = file.run(ask, request, Detail::default(), &[]).await?;
            file.use_up(size(&bytes));
            if matches!(reply, Reply::PhoenixRead(file::PhoenixReadDone { eof: true })) {
                broker.files.borrow_mut().remove(Dialect::Phoenix, handle.handle_id);
            }
            Ok(Work { total: size(&bytes), last_bytes: bytes, reply: reply.into() })
        }
        Request::PhoenixWrite(write) => {
            let file = find(Dialect::Phoenix, write.handle_id)?;
            let (length, number) = (write.bufb64.length, write.handle_id);
            // Every job says so; the worker closes with the last piece, or when one fails.
            let closes = write.eof;
            let request = Request::PhoenixWrite(write);
            file.permits(ask, &request)?;
            let result = file.write(ask, length, length, &request).await;
            // What was refused has not come to the worker, which then has it open.
            if closes && !matches!(result, Err(NotDone::Denied(..))) {
                broker.files.borrow_mut().remove(Dialect::Phoenix, number);
            }
            Ok(Work { total: result?, ..Work::without_bytes(Reply::PhoenixWrite(true)) })
        }
        Request::PhoenixClose(handle) => {
            // Clients close after the end has closed for them: every number is as good.
            if let Ok(file) = find(Dialect::Phoenix, handle.handle_id) {
                let _one_at_a_time = file.position.lock().await;
                let result = file.close(ask, request).await;
                broker.files.borrow_mut().remove(Dialect::Phoenix, handle.handle_id);
                result?;
            }
            Ok(Work::without_bytes(Reply::PhoenixClose(true)))
        }
        Request::Md5Sum(_)
        | Request::Chown(_)
        | Request::Chmod(_)
        | Request::Stat(_)
        | Request::CreateDirectory(_)
        | Request::ListDirectory(_) => {
            at_path(broker, ask, &request, Detail::default()).await?.result.map(Work::without_bytes)
        }
    }
}

async fn acquire(broker: &Rc<Broker>, ask: &Ask, name: &str) -> Result<Rc<Instance>, Failed> {
    broker
        .deadlines
        .within(LIMIT, pin!(broker.workers.acquire(broker, Role::File, Some(ask))))
        .await
        .unwrap_or_else(|_| Err(too_late(name, LIMIT)))
}

fn job(ask: &Ask, request: Request, detail: Detail) -> Job {
    Job { channel: ask.channel.to_string(), request: request.into(), detail }
}

/// A job about a path that has ended.
struct Done {
    instance: Rc<Instance>,
    result: Result<proto::Reply, NotDone>,
    bytes: Vec<u8>,
    found: Option<(Found, By)>,
}

/// Has a job done that names a path. What the kernel refuses to a worker because it had started before the file was there, a new
/// worker does.
async fn at_path(broker: &Rc<Broker>, ask: &Ask, request: &Request, detail: Detail) -> Result<Done, NotDone> {
    let (name, key) = (request.command().name(), detail.handle);
    let mut again = false;
    loop {
        let instance = acquire(broker, ask, name).await?;
        let running = instance.run(job(ask, request.clone(), detail.clone()), ask.policy(), LIMIT, &[]);
        running.if_late(Box::new(move |_, instance, result| {
            // Only what is opened has a number.
            if result.is_ok() && key > 0 {
                instance.forget(key);
            }
        }));
        let (result, bytes) =
            broker.deadlines.within(LIMIT, pin!(running.end())).await.map_err(|_| too_late(name, LIMIT))?;
        let found = running.found();
        let is_stale = found.as_ref().is_some_and(|(found, _)| found.stale);
        if !is_stale || std::mem::replace(&mut again, true) {
            ask.note(found.clone());
            return Ok(Done { instance, result, bytes, found });
        }
    }
}

async fn open(broker: &Rc<Broker>, ask: &Ask, request: Request, by: By) -> Result<Work, NotDone> {
    let (dialect, path, append) = match &request {
        Request::Open(open) => {
            (Dialect::Qga, open.path.to_string(), open.mode.as_deref().is_some_and(|mode| mode.contains('a')))
        }
        Request::PhoenixOpen(open) => (Dialect::Phoenix, open.path.to_string(), false),
        _ => return Err(Failed::new("not an open").into()),
    };
    let name = request.command().name();
    let (number, key) = {
        let mut files = broker.files.borrow_mut();
        if files.open.len() >= limits::OPEN_FILES {
            files.open.retain(|_, file| !file.instance.has_ended());
        }
        if files.open.len() >= limits::OPEN_FILES {
            return Err(refused(&request, nix::errno::Errno::EMFILE).into());
        }
        // Where it is not known yet which rule it will be, the worker says.
        if !ask.policy().asks_paths() {
            room(&files, &request, &by)?;
        }
        match dialect {
            Dialect::Qga => {
                let number = files.numbers.next_qga();
                (number, number)
            }
            Dialect::Phoenix => {
                let number = files.numbers.next_phoenix();
                (number, number | PHOENIX)
            }
        }
    };
    let detail = Detail { handle: key, ..Detail::default() };
    let Done { instance, result, bytes: kind, found } = at_path(broker, ask, &request, detail).await?;
    result?;
    if ask.is_abandoned() {
        instance.forget(key);
        return Err(Failed::new(format!("{name} was given up before the file was open")).into());
    }
    let (found, by) = found.map_or((None, by), |(found, by)| (found.path, by));
    // Another may have been opened meanwhile.
    room(&broker.files.borrow(), &request, &by).inspect_err(|_| instance.forget(key))?;
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let regular = kind.first() == Some(&1);
    let known = (regular && !append).then_some(0);
    let file = OpenFile {
        key,
        path: found.as_ref().map_or(path, ToString::to_string),
        found,
        by,
        used: Cell::new(0),
        regular,
        append,
        instance: instance.clone(),
        deadlines: broker.deadlines.clone(),
        position: Mutex::new(Position { known, ..Position::default() }),
        stuck: Cell::new(false),
    };
    instance.hold();
    broker.files.borrow_mut().open.insert((dialect, number), Rc::new(file));
    Ok(Work::without_bytes(match dialect {
        Dialect::Qga => Reply::Open(number),
        Dialect::Phoenix => Reply::PhoenixOpen(number),
    }))
}

/// Whether the rule allows one more open file.
fn room(files: &Files, request: &Request, by: &By) -> Result<(), Failed> {
    let Some(terms) = by.terms.as_ref().filter(|terms| terms.open_files.is_some()) else { return Ok(()) };
    terms.room(files.by_rule(&by.rule)).map_err(|exceeded| {
        let full = refused(request, nix::errno::Errno::EMFILE);
        Failed { text: format!("{}: {exceeded}", full.text), ..full }
    })
}

impl OpenFile {
    /// Whether the worker that has it open may be asked for `request`.
    fn agrees(&self, ask: &Ask, request: &Request) -> Result<(), NotDone> {
        self.instance.agrees(&ask.channel, ask.policy(), || request.clone().into())
    }

    /// Whether the policy permits `request`, which reads or writes, where the file is: it may have been opened for something else,
    /// or by another channel.
    fn permits(&self, ask: &Ask, request: &Request) -> Result<(), NotDone> {
        // Before anything is believed to have been done: a refusal moves no position.
        self.agrees(ask, request)?;
        let Some(Text(path)) = &self.found else {
            // It was opened when nobody asked where it is.
            let asks_now = self.instance.is_retired() && ask.policy().asks_paths();
            let why = "the policy in force asks for its path, which was not looked at when it was opened: open it again";
            return if asks_now { Err(Failed::new(why).into()) } else { Ok(()) };
        };
        let asker = Asker { channel: &ask.channel, frozen: false };
        let facts = Facts { path: Some(path), uid: None };
        match decide(ask.policy(), asker, &request.clone().into(), facts) {
            Ok(_) => Ok(()),
            Err((denied, rule)) => Err(NotDone::Denied(denied, rule)),
        }
    }

    /// How many of `count` bytes may be read now.
    fn readable(&self, dialect: Dialect, count: u64) -> Result<u64, NotDone> {
        let Some(terms) = &self.by.terms else { return Ok(count) };
        terms.readable(count, self.used.get()).map_err(|exceeded| self.beyond(dialect, "read", exceeded))
    }

    /// Whether `count` bytes may be written now.
    fn writable(&self, dialect: Dialect, count: u64) -> Result<(), NotDone> {
        let Some(terms) = &self.by.terms else { return Ok(()) };
        terms.writable(count, self.used.get()).map_err(|exceeded| self.beyond(dialect, "write", exceeded))
    }

    fn use_up(&self, count: u64) {
        self.used.set(self.used.get().saturating_add(count));
    }

    /// A refusal by a limit of the rule by which the file was opened.
    fn beyond(&self, dialect: Dialect, operation: &str, exceeded: Exceeded) -> NotDone {
        let what = match (dialect, operation) {
            (Dialect::Phoenix, _) => format!("{operation} {}: permission denied", self.path),
            (Dialect::Qga, "read") => "failed to read file: Permission denied".to_owned(),
            (Dialect::Qga, _) => "failed to write to file: Permission denied".to_owned(),
        };
        NotDone::Denied(Denied::Arguments(format!("{what}: {exceeded}")), self.by.rule.clone())
    }

    fn start(&self, ask: &Ask, request: Request, mut detail: Detail, payload: &[u8]) -> Running {
        detail.handle = self.key;
        self.instance.run(job(ask, request, detail), ask.policy(), LIMIT, payload)
    }

    /// Waits for a job on this file. One that does not end leaves the file busy until it does.
    async fn finish(self: &Rc<Self>, name: &str, running: Running) -> Result<(Reply, Vec<u8>), NotDone> {
        let Ok((result, bytes)) = self.deadlines.within(LIMIT, pin!(running.end())).await else {
            self.stuck.set(true);
            let file = self.clone();
            running.if_late(Box::new(move |_, _, _| file.stuck.set(false)));
            return Err(too_late(name, LIMIT).into());
        };
        match result? {
            proto::Reply::File(reply) => Ok((reply, bytes)),
            _ => Err(Failed::new("the file worker answered something else").into()),
        }
    }

    async fn run(
        self: &Rc<Self>,
        ask: &Ask,
        request: Request,
        detail: Detail,
        payload: &[u8],
    ) -> Result<(Reply, Vec<u8>), NotDone> {
        let name = request.command().name();
        let running = self.start(ask, request, detail, payload);
        self.finish(name, running).await
    }

    /// Writes `bytes` of the request's payload, which has `length`, one job for each piece; returns how many were written.
    async fn write(
        self: &Rc<Self>,
        ask: &Ask,
        length: u64,
        bytes: u64,
        request: &Request,
    ) -> Result<u64, NotDone> {
        let mut position = self.position.lock().await;
        self.writable(request.command().dialect, bytes)?;
        position.ahead = None;
        let (mut at, mut written) = (0_u64, 0_u64);
        loop {
            let piece = if at < length { ask.next_piece().await } else { Some(Vec::new()) };
            let Some(piece) = piece else {
                return Err(Failed::new("the request was abandoned before all of its data had come").into());
            };
            let next = at.saturating_add(size(&piece));
            let detail = Detail {
                offset: Some(at),
                position: position.known.filter(|_| std::mem::take(&mut position.behind)),
                ..Detail::default()
            };
            let result = self.run(ask, request.clone(), detail, &piece).await;
            let count = match result {
                Ok((Reply::Write(done), _)) => u64::try_from(done.count).unwrap_or_default(),
                Ok(_) => size(&piece),
                Err(failed) => {
                    // How far the worker came is not known here.
                    position.known = None;
                    return Err(failed);
                }
            };
            written = written.saturating_add(count);
            self.use_up(count);
            ask.passed(usize::try_from(count).ok().and_then(|count| piece.get(..count)).unwrap_or(&piece));
            position.known =
                position.known.filter(|_| !self.append).and_then(|known| known.checked_add(count));
            at = next;
            if at >= length || count < size(&piece) {
                return Ok(written);
            }
        }
    }

    /// Has it closed, whatever its worker's own policy says of that: a file that nobody can close would be held for ever.
    async fn close(self: &Rc<Self>, ask: &Ask, request: Request) -> Result<(), NotDone> {
        if self.agrees(ask, &request).is_err() {
            self.instance.forget(self.key);
            return Ok(());
        }
        self.run(ask, request, Detail::default(), &[]).await.map(drop)
    }

    async fn seek(self: &Rc<Self>, ask: &Ask, mut seek: file::Seek) -> Result<Work, NotDone> {
        let mut position = self.position.lock().await;
        position.ahead = None;
        if seek.whence == file::Whence(1)
            && let Some(known) = position.known
        {
            // The worker's own position may be behind; below zero it is the kernel that refuses.
            let absolute = i64::try_from(known).ok().and_then(|known| known.checked_add(seek.offset));
            (seek.offset, seek.whence) = (absolute.unwrap_or(-1), file::Whence(0));
        }
        let (reply, _) = self.run(ask, Request::Seek(seek), Detail::default(), &[]).await?;
        if let Reply::Seek(done) = &reply {
            position.known = u64::try_from(done.position).ok().filter(|_| self.regular);
            position.behind = false;
            position.last_end = None;
        }
        Ok(Work::without_bytes(reply))
    }

    async fn read(
        self: &Rc<Self>,
        broker: &Rc<Broker>,
        ask: &Ask,
        read: file::Read,
    ) -> Result<Work, NotDone> {
        let count = read.count.unwrap_or(DEFAULT_COUNT);
        let wanted = u64::try_from(count)
            .ok()
            .filter(|count| *count <= limits::FILE_READ)
            .ok_or_else(|| Failed::new(format!("value '{count}' is invalid for argument count")))?;
        let position = self.position.lock().await;
        let wanted = self.readable(Dialect::Qga, wanted)?;
        let mut reading = Reading { file: self, ask, read, position, sent: 0, eof: false, in_order: false };
        let begin = reading.position.known;
        reading.in_order = begin.is_some() && reading.position.last_end == begin;
        let last_bytes = reading.pieces(broker, wanted).await?;
        let (sent, eof) = (reading.sent.saturating_add(size(&last_bytes)), reading.eof);
        self.use_up(sent);
        let mut position = reading.position;
        if let Some(begin) = begin {
            position.known = begin.checked_add(sent);
            position.last_end = position.known;
            position.behind |= sent > 0;
        }
        let reply = Reply::Read(file::ReadDone { count: i64::try_from(sent).unwrap_or(i64::MAX), eof });
        Ok(Work { reply: reply.into(), last_bytes, total: sent })
    }
}

/// One `guest-file-read` under way.
struct Reading<'a> {
    file: &'a Rc<OpenFile>,
    ask: &'a Ask,
    read: file::Read,
    position: MutexGuard<'a, Position>,
    /// Bytes that have gone to the frontend.
    sent: u64,
    eof: bool,
    in_order: bool,
}

impl Reading<'_> {
    /// Sends all pieces but the last, which it returns. What goes wrong after the first piece is a short read.
    async fn pieces(&mut self, broker: &Rc<Broker>, wanted: u64) -> Result<Vec<u8>, NotDone> {
        let mut last = self.take_ahead(wanted);
        let mut asked: Option<Running> = None;
        loop {
            let have = self.sent.saturating_add(size(&last));
            if have >= wanted || self.eof {
                return Ok(last);
            }
            // The worker reads on while this piece is on its way to the frontend.
            let running = match asked.take() {
                Some(running) => running,
                None => self.ask_worker(have, wanted),
            };
            // What fits into one message is sent with the answer.
            if !last.is_empty() && wanted > size_of_piece() {
                if !self.ask.send_piece(0, &last).await {
                    return Ok(Vec::new());
                }
                self.sent = have;
                last.clear();
            }
            let (done, mut bytes) = match self.file.finish("guest-file-read", running).await {
                Ok((Reply::Read(done), bytes)) => (done, bytes),
                Ok(_) => return Err(Failed::new("the file worker answered something else").into()),
                Err(_) if have > 0 => return Ok(last),
                Err(failed) => return Err(failed),
            };
            let room = usize::try_from(wanted.saturating_sub(have)).unwrap_or(usize::MAX);
            if bytes.len() > room {
                let start = self.position.known.and_then(|known| known.checked_add(wanted));
                let rest = bytes.split_off(room);
                if let Some(start) = start {
                    broker.files.borrow().make_room_ahead();
                    self.position.ahead =
                        Some(Ahead { start, bytes: rest, eof: done.eof, read_at: Instant::now() });
                }
            } else {
                self.eof = done.eof && bytes.len() < room;
            }
            let is_short =
                bytes.is_empty() || (self.position.known.is_none() && size(&bytes) < size_of_piece());
            if last.is_empty() {
                last = bytes;
            } else {
                last.extend_from_slice(&bytes);
            }
            let have = self.sent.saturating_add(size(&last));
            if is_short {
                return Ok(last);
            }
            if have < wanted && !self.eof && self.position.known.is_some() {
                asked = Some(self.ask_worker(have, wanted));
            }
        }
    }

    /// What is there already, as far as it is wanted.
    fn take_ahead(&mut self, wanted: u64) -> Vec<u8> {
        let known = self.position.known;
        let Some(mut ahead) = self.position.ahead.take() else { return Vec::new() };
        if Some(ahead.start) != known || ahead.read_at.elapsed() > FRESH {
            return Vec::new();
        }
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        if wanted < ahead.bytes.len() || (wanted == ahead.bytes.len() && !ahead.eof) {
            let rest = ahead.bytes.split_off(wanted);
            let bytes = std::mem::replace(&mut ahead.bytes, rest);
            ahead.start = ahead.start.saturating_add(size(&bytes));
            if !ahead.bytes.is_empty() {
                self.position.ahead = Some(ahead);
            }
            return bytes;
        }
        // All of it; the end was met if more was wanted than there is.
        self.eof = ahead.eof && wanted > ahead.bytes.len();
        ahead.bytes
    }

    fn ask_worker(&self, have: u64, wanted: u64) -> Running {
        let left = wanted.saturating_sub(have);
        let offset = self.position.known.and_then(|known| known.checked_add(have));
        // In order, a whole piece is read whatever is wanted of it now.
        let count =
            if offset.is_some() && self.in_order { size_of_piece() } else { left.min(size_of_piece()) };
        let detail = Detail { offset, count: u32::try_from(count).unwrap_or(u32::MAX), ..Detail::default() };
        self.file.start(self.ask, Request::Read(self.read), detail, &[])
    }
}

fn size_of_piece() -> u64 {
    u64::try_from(limits::PIECE).unwrap_or(u64::MAX)
}
