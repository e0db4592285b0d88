//! The frozen state: how it begins, who may ask what while it holds, and how it ends for sure.
//!
//! ```text
//!  Thawed ──freeze──► Changing ──some frozen──► Frozen ──thaw · limit · end of the agent──► Changing ──► Thawed
//! ```
//!
//! The broker keeps the state and the limit; the fsfreeze worker does the work and thaws by itself when the broker goes.
//! From the first step of a freeze to the last of its thaw nothing of ours writes to a filesystem: records and log
//! lines wait in memory, the spawner is told to be silent, and what could write is refused by `authorize`.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use authorize::Terms;
use jail::Role;
use proto::fsfreeze::{Reply, Request, Status};
use proto::message::{Detail, Job};
use proto::settings::FreezeSettings;
use proto::{Failed, Group, NoArguments, Privilege};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ask::Ask;
use crate::dispatch::{Work, deadline, simple, too_late};
use crate::{Broker, frontends, logs};

/// How long file work that has begun may take before a freeze goes on without waiting for it.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a freeze, or a hook, may take where no limit is set: as long as Proxmox waits for one.
const FREEZING: Duration = Duration::from_secs(3600);
/// How often a thaw is tried, half a second apart, when its worker is killed or cannot be started.
const THAW_TRIES: u32 = 20;
/// Between attempts to have the worker there before it is needed.
const AGAIN: Duration = Duration::from_millis(500);

/// What the broker knows of frozen filesystems.
pub(crate) struct Freeze {
    state: Cell<State>,
    changed: Notify,
    /// A host has asked for something.
    wanted: Notify,
    marker: Option<File>,
    boot_id: String,
    limit: Option<Duration>,
    hook: bool,
    hook_limit: Duration,
    /// The hook has been run with `freeze`, and not yet with `thaw`.
    hook_owed: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Thawed,
    /// A freeze or thaw is under way.
    Changing,
    /// Until then, if there is a limit.
    Frozen(Option<Instant>),
}

impl Freeze {
    /// `marker` is the file that an earlier broker may have left a word in.
    pub(crate) fn new(marker: Option<OwnedFd>, settings: &FreezeSettings) -> Self {
        let limit = u64::from(settings.limit_seconds);
        let freeze = Freeze {
            state: Cell::new(State::Thawed),
            changed: Notify::new(),
            wanted: Notify::new(),
            marker: marker.map(File::from),
            boot_id: settings.boot_id.clone(),
            limit: (limit > 0).then(|| Duration::from_secs(limit)),
            hook: settings.hook.is_some(),
            hook_limit: match settings.hook_limit_seconds {
                0 => FREEZING,
                seconds => Duration::from_secs(seconds.into()),
            },
            hook_owed: Cell::new(false),
        };
        let word = freeze.word();
        freeze.hook_owed.set(freeze.hook && word.owes_hook);
        if word.frozen {
            freeze.state.set(State::Frozen(freeze.limit.map(|limit| Instant::now() + limit)));
        }
        freeze
    }

    /// Whether something is frozen, or about to be, or not yet thawed: what could write is refused.
    pub(crate) fn holds(&self) -> bool {
        self.state.get() != State::Thawed
    }

    /// A host is there.
    pub(crate) fn expect(&self) {
        self.wanted.notify_one();
    }

    /// How long a freeze may hold: the lower of what is configured and what its rule says.
    fn limit_under(&self, terms: Option<&Terms>) -> Option<Duration> {
        let of_rule = terms.and_then(|terms| terms.freeze_seconds);
        let of_rule = of_rule.map(|seconds| Duration::from_secs(seconds.into()));
        self.limit.into_iter().chain(of_rule).min()
    }

    fn set(&self, state: State) {
        self.state.set(state);
        self.changed.notify_waiters();
    }

    /// Waits for a freeze or thaw under way.
    async fn settled(&self) -> State {
        loop {
            let changed = self.changed.notified();
            match self.state.get() {
                State::Changing => changed.await,
                state => return state,
            }
        }
    }

    /// Waits until nothing is frozen, nor about to be.
    pub(crate) async fn thawed(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.holds() {
                return;
            }
            changed.await;
        }
    }

    fn word(&self) -> Word {
        let Some(marker) = &self.marker else { return Word::default() };
        let mut bytes = [0; 128];
        let length = marker.read_at(&mut bytes, 0).unwrap_or_default();
        Word::read(bytes.get(..length).unwrap_or_default(), &self.boot_id)
    }

    /// Says it to whoever comes after. Before the first filesystem is frozen and after the last is thawed, so that this
    /// never waits for one.
    fn leave_word(&self, frozen: bool) {
        let Some(marker) = &self.marker else { return };
        let word = Word { owes_hook: self.hook_owed.get(), frozen };
        let text = word.text(&self.boot_id);
        let length = u64::try_from(text.len()).unwrap_or_default();
        let written = marker.write_all_at(text.as_bytes(), 0).and_then(|()| marker.set_len(length));
        if let Err(error) = written {
            tracing::warn!(
                "cannot note whether filesystems are frozen: {error}; a restart will not know of it"
            );
        }
    }
}

/// What is in the marker: `h` or `-` for whether the hook still has to be run with `thaw`, then, while something is
/// frozen, the boot it belongs to. The fsfreeze worker cuts it to the first byte when it has thawed without us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Word {
    owes_hook: bool,
    frozen: bool,
}

impl Word {
    fn read(bytes: &[u8], boot_id: &str) -> Self {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let owes_hook = words.next() == Some("h");
        let frozen = words.next() == Some("frozen") && words.next() == Some(boot_id);
        Word { owes_hook, frozen }
    }

    fn text(self, boot_id: &str) -> String {
        let hook = if self.owes_hook { "h" } else { "-" };
        match self {
            Word { frozen: true, .. } => format!("{hook} frozen {boot_id}\n"),
            Word { owes_hook: true, .. } => hook.to_owned(),
            Word { .. } => String::new(),
        }
    }
}

/// Freezes, thaws, trims, or tells the state.
pub(crate) async fn work(
    broker: &Rc<Broker>,
    ask: &Ask,
    request: Request,
    terms: Option<&Terms>,
) -> Result<Work, Failed> {
    let limit = broker.freeze.limit_under(terms);
    let reply = match request {
        Request::Status(_) => Reply::Status(match broker.freeze.settled().await {
            State::Thawed => Status::Thawed,
            _ => Status::Frozen,
        }),
        Request::PhoenixStatus(_) => Reply::PhoenixStatus(broker.freeze.settled().await != State::Thawed),
        Request::Freeze(_) => Reply::Freeze(freeze(broker, &ask.channel, request, limit).await?),
        Request::FreezeList(_) => Reply::FreezeList(freeze(broker, &ask.channel, request, limit).await?),
        Request::PhoenixFreeze(_) => {
            freeze(broker, &ask.channel, request, limit).await?;
            Reply::PhoenixFreeze(true)
        }
        Request::Thaw(_) => Reply::Thaw(thaw(broker, "it was asked for").await?),
        Request::PhoenixThaw(_) => {
            thaw(broker, "it was asked for").await?;
            Reply::PhoenixThaw(true)
        }
        Request::Trim(_) => return simple(broker, ask, request.into()).await.map_err(Failed::from),
    };
    Ok(Work::without_bytes(reply))
}

/// Freezes what `request` says, all of it or nothing, and for no longer than `limit`; returns how many filesystems.
async fn freeze(
    broker: &Rc<Broker>,
    channel: &str,
    request: Request,
    limit: Option<Duration>,
) -> Result<i64, Failed> {
    let freeze = &broker.freeze;
    // Two channels may both have been told that they may: the second finds it changing and is refused as if later.
    if freeze.holds() {
        return Err(Failed::new("another freeze has begun meanwhile"));
    }
    begin(broker);
    broker.workers.drained(Role::File, DRAIN).await;
    let result = freeze_between_hooks(broker, channel, request, limit).await;
    match result {
        Ok(count) if count > 0 => {
            keep(broker, limit);
            Ok(count)
        }
        Ok(none) => {
            // The hook was told of a freeze; that it fails now changes nothing that the host asked for.
            let _ = end(broker).await;
            Ok(none)
        }
        Err(Broken::Thawed(failed)) => {
            // The request's own error is the one to report.
            let _ = end(broker).await;
            Err(failed)
        }
        Err(Broken::StillFrozen(failed)) => {
            keep(broker, limit);
            Err(failed)
        }
    }
}

/// Filesystems are frozen now: until the host thaws, or the limit comes.
fn keep(broker: &Rc<Broker>, limit: Option<Duration>) {
    let until = limit.map(|limit| Instant::now() + limit);
    broker.freeze.set(State::Frozen(until));
    if let (Some(until), Some(limit)) = (until, limit) {
        tokio::task::spawn_local(thaw_at(broker.clone(), until, limit));
    }
}

/// A freeze that failed.
enum Broken {
    /// Nothing of it is left.
    Thawed(Failed),
    /// What it froze could not be thawed.
    StillFrozen(Failed),
}

async fn freeze_between_hooks(
    broker: &Rc<Broker>,
    channel: &str,
    request: Request,
    limit: Option<Duration>,
) -> Result<i64, Broken> {
    let freeze = &broker.freeze;
    if freeze.hook {
        freeze.hook_owed.set(true);
        hook(broker, request.clone()).await.map_err(Broken::Thawed)?;
    }
    freeze.leave_word(true);
    match run(broker, Role::Fsfreeze, channel, request, limit.unwrap_or(FREEZING)).await {
        Ok(reply) => Ok(count(&reply)),
        // How far it came is not known.
        Err(unfinished) if unfinished.lost => match thaw_all(broker).await {
            Ok(_) => Err(Broken::Thawed(unfinished.failed)),
            Err(_) => Err(Broken::StillFrozen(unfinished.failed)),
        },
        Err(unfinished) => Err(Broken::Thawed(unfinished.failed)),
    }
}

/// Thaws everything; returns how many filesystems that were.
async fn thaw(broker: &Rc<Broker>, why: &str) -> Result<i64, Failed> {
    let before = broker.freeze.settled().await;
    // The first of several that waited; the others find nothing left.
    begin(broker);
    let count = match thaw_all(broker).await {
        Ok(count) => count,
        Err(failed) => {
            broker.freeze.set(before);
            if before == State::Thawed {
                quiet(broker, false);
                frontends::welcome_again(broker);
            }
            return Err(failed);
        }
    };
    tracing::info!("{count} filesystems thawed: {why}");
    end(broker).await.map(|()| count)
}

async fn thaw_all(broker: &Rc<Broker>) -> Result<i64, Failed> {
    let limit = deadline(Privilege::Query);
    let mut tries = 1;
    loop {
        match run(broker, Role::Fsfreeze, "", Request::Thaw(NoArguments {}), limit).await {
            Ok(reply) => return Ok(count(&reply)),
            // A worker that was killed meanwhile is replaced, and the new one thaws what the first did not. One that an earlier
            // broker has left thaws by itself, and cannot be replaced before it has ended.
            Err(Unfinished { lost, started, .. }) if (lost || !started) && tries < THAW_TRIES => {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
            }
            Err(unfinished) => return Err(unfinished.failed),
        }
    }
}

/// Closes the gate.
fn begin(broker: &Broker) {
    broker.freeze.set(State::Changing);
    quiet(broker, true);
    frontends::welcome_again(broker);
}

/// Opens the gate again, when nothing is frozen any more; then runs the hook, if it is owed.
async fn end(broker: &Rc<Broker>) -> Result<(), Failed> {
    let freeze = &broker.freeze;
    freeze.leave_word(false);
    quiet(broker, false);
    // qemu-ga runs it for a thaw of nothing as well, and the host reads of its failure.
    let result = if freeze.hook { hook(broker, Request::Thaw(NoArguments {})).await } else { Ok(()) };
    freeze.hook_owed.set(false);
    freeze.leave_word(false);
    freeze.set(State::Thawed);
    frontends::welcome_again(broker);
    result
}

fn quiet(broker: &Broker, quiet: bool) {
    if quiet {
        broker.control.frozen(true);
        broker.audit.hold();
        logs::hold();
    } else {
        logs::release();
        broker.audit.release();
        broker.control.frozen(false);
    }
}

/// Runs the administrator's program before a freeze or after a thaw.
async fn hook(broker: &Rc<Broker>, request: Request) -> Result<(), Failed> {
    // The worker's own limit comes first, and says what was run.
    let limit = broker.freeze.hook_limit + deadline(Privilege::Query);
    run(broker, Role::Hook, "", request, limit).await.map(drop).map_err(|failed| failed.failed)
}

/// Work that went wrong, and whether what was done of it is not known.
struct Unfinished {
    failed: Failed,
    lost: bool,
    /// Whether a worker had the job at all.
    started: bool,
}

/// One job, whatever becomes of who asked for it.
async fn run(
    broker: &Rc<Broker>,
    role: Role,
    channel: &str,
    request: Request,
    limit: Duration,
) -> Result<Reply, Unfinished> {
    let name = proto::Request::from(request.clone()).command().name();
    let mut running = None;
    let work = async {
        let instance = broker.workers.acquire(broker, role, None).await?;
        let job = Job { channel: channel.to_owned(), request: request.into(), detail: Detail::default() };
        // Nothing is reloaded while this may be asked.
        let run = instance.run(job, &broker.policy(), limit, &[]);
        Ok(running.insert(run).end().await.0.map_err(Failed::from))
    };
    let result = { broker.deadlines.within(limit, pin!(work)).await };
    let lost = running.as_ref().is_some_and(crate::workers::Running::is_lost);
    let started = running.is_some();
    match result {
        Ok(Ok(Ok(proto::Reply::Fsfreeze(reply)))) => Ok(reply),
        Ok(Ok(Ok(_))) => {
            Err(Unfinished { failed: Failed::new("a reply to something else"), lost: true, started })
        }
        Ok(Ok(Err(failed)) | Err(failed)) => Err(Unfinished { failed, lost, started }),
        Err(_) => {
            if let Some(running) = running {
                running.kill_worker(broker);
            }
            Err(Unfinished { failed: too_late(name, limit), lost: true, started })
        }
    }
}

fn count(reply: &Reply) -> i64 {
    match reply {
        Reply::Freeze(count) | Reply::FreezeList(count) | Reply::Thaw(count) => *count,
        // Between worker and broker: whether there was anything. The host is always told `true`.
        Reply::PhoenixFreeze(any) | Reply::PhoenixThaw(any) => (*any).into(),
        _ => 0,
    }
}

/// Thaws when the limit has come, unless that state has ended before.
async fn thaw_at(broker: Rc<Broker>, until: Instant, limit: Duration) {
    tokio::time::sleep_until(until).await;
    if broker.freeze.state.get() != State::Frozen(Some(until)) {
        return;
    }
    let why = format!("nobody had thawed them within {} s", limit.as_secs());
    let result = thaw(&broker, &why).await;
    let result = result.map_or_else(|failed| failed.text, |count| format!("{count} filesystems thawed"));
    tracing::error!("{why}: {result}");
    broker.audit.note("thaw", &serde_json::json!({ "why": why, "result": result }));
}

/// Ends the agent, with nothing left frozen.
pub(crate) async fn stop(broker: &Rc<Broker>) {
    if broker.freeze.settled().await != State::Thawed {
        let result = thaw(broker, "the agent ends").await;
        if let Err(failed) = &result {
            tracing::error!("cannot thaw before the end: {failed}");
        }
        broker.audit.note("thaw", &serde_json::json!({ "why": "the agent ends", "result": result.ok() }));
    }
    broker.control.stop();
}

/// Keeps the worker there before it is needed, and follows what an earlier broker has left. Runs as long as the broker.
pub(crate) async fn attend(broker: Rc<Broker>) {
    let freeze = &broker.freeze;
    if let State::Frozen(until) = freeze.state.get() {
        tracing::warn!("filesystems were frozen by an agent before this one: only thawing is served");
        quiet(&broker, true);
        tokio::task::spawn_local(follow_marker(broker.clone()));
        if let (Some(until), Some(limit)) = (until, freeze.limit) {
            tokio::task::spawn_local(thaw_at(broker.clone(), until, limit));
        }
    } else if freeze.hook_owed.get() {
        // They were thawed when the agent before this one ended; its hook was not run.
        begin(&broker);
        if let Err(failed) = end(&broker).await {
            tracing::error!("{failed}");
        }
    }
    // As soon as a host asks for anything: before it can ask for a freeze, and a guest that nobody asks has one process less.
    if !freeze.holds() {
        freeze.wanted.notified().await;
    }
    loop {
        let reloaded = broker.reloaded.notified();
        if !authorize::may_ever(&broker.policy(), Group::Fsfreeze) {
            reloaded.await;
            continue;
        }
        if let Ok(instance) = broker.workers.acquire(&broker, Role::Fsfreeze, None).await {
            instance.hold();
            instance.ended_or_retired().await;
            instance.release();
            if instance.is_retired() {
                continue;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The worker of the agent before thaws when that agent goes, and says so in the marker.
async fn follow_marker(broker: Rc<Broker>) {
    let found = broker.freeze.state.get();
    while broker.freeze.marker.is_some() && broker.freeze.state.get() == found {
        if !broker.freeze.word().frozen {
            begin(&broker);
            if let Err(failed) = end(&broker).await {
                tracing::error!("{failed}");
            }
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_holds_for_the_lower_of_the_configured_time_and_the_rules() {
        for (configured, of_rule, held) in [
            (600, Some(5), Some(5)),
            (600, Some(700), Some(600)),
            (600, None, Some(600)),
            (0, Some(5), Some(5)),
            (0, None, None),
        ] {
            let settings = FreezeSettings { limit_seconds: configured, ..FreezeSettings::default() };
            let terms = Terms { freeze_seconds: of_rule, ..Terms::default() };
            let limit = Freeze::new(None, &settings).limit_under(Some(&terms));
            assert_eq!(limit.map(|limit| limit.as_secs()), held, "{configured} {of_rule:?}");
        }
    }

    #[test]
    fn a_marker_says_what_was_left_and_is_believed_for_its_own_boot_only() {
        for (owes_hook, frozen, text) in [
            (false, false, ""),
            (true, false, "h"),
            (false, true, "- frozen b1\n"),
            (true, true, "h frozen b1\n"),
        ] {
            let word = Word { owes_hook, frozen };
            assert_eq!(word.text("b1"), text);
            assert_eq!(Word::read(text.as_bytes(), "b1"), word);
        }
        assert_eq!(Word::read(b"h frozen b0\n", "b1"), Word { owes_hook: true, frozen: false });
    }

    #[test]
    fn a_worker_that_has_thawed_without_us_leaves_the_hook_to_the_next() {
        assert_eq!(Word::read(b"h", "b1"), Word { owes_hook: true, frozen: false });
        assert_eq!(Word::read(b"-", "b1"), Word::default());
    }

    #[test]
    fn garbage_in_the_marker_means_nothing_is_frozen() {
        assert_eq!(Word::read(b"\xff\xfe frozen", "b1"), Word::default());
    }
}
