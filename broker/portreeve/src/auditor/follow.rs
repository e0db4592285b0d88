//! `portreeve audit follow`: requests as they are recorded, a line each.
//!
//! The file is watched by its name, as `tail -F` does: when it is renamed and made anew, the rest of the old one is read first,
//! then whatever lies between, then the new one.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use records::{Hash, Line, Lines, Record};

use super::files::{Sources, configured_log, name, unreadable};
use super::request::{self, Decision, is_request};
use super::{WHOLE, words};
use crate::subcommands::AuditFollow;
use crate::terminal::{Colour, Paint, escaped, shortened};

/// Requests that are shown of what was there before.
const LAST: usize = 10;
/// How often the file is looked at if nothing wakes us, in milliseconds: network filesystems tell no watcher.
const PATIENCE: u16 = 1_000;
/// How often a log is looked at whose files change their names, before it is said not to be there.
const PATIENT: u32 = 500;

pub(super) fn main(given: &AuditFollow) -> Result<u8, String> {
    let path = match &given.file {
        Some(path) => path.clone(),
        None => configured_log()?,
    };
    // SIGINT and SIGTERM are read, between two records.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    ends.thread_block().map_err(|errno| format!("cannot wait for signals: {errno}"))?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|errno| format!("cannot wait for signals: {errno}"))?;
    let mut follower = Follower {
        given,
        paint: Paint::on(&io::stdout()),
        signals,
        last: None,
        backlog: Some(VecDeque::new()).filter(|_| given.since.is_none()),
    };
    let result = if path.as_os_str() == "-" { follower.stream() } else { follower.file(&path) };
    match result {
        Ok(()) | Err(Stop::Asked) => Ok(WHOLE),
        Err(Stop::Failed(why)) => Err(why),
    }
}

/// Why following ends.
enum Stop {
    /// By a signal, or because nobody reads what is written.
    Asked,
    Failed(String),
}

struct Follower<'a> {
    given: &'a AuditFollow,
    paint: Paint,
    signals: SignalFd,
    /// The last record's hash.
    last: Option<Hash>,
    /// The last lines of what was there before, until all of that was read.
    backlog: Option<VecDeque<String>>,
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Identity(metadata.dev(), metadata.ino())
    }
}

/// A file of the log.
struct Opened {
    path: PathBuf,
    file: File,
    identity: Identity,
}

/// All files of the log, the oldest first, or the newest `alone`. They are opened under names that another process is changing, so
/// this is done again, up to so many times, until two looks see the same.
fn opened(path: &Path, alone: bool, times: u32) -> Result<VecDeque<Opened>, String> {
    let look = || {
        let sources = Sources::find(&[path.to_owned()], alone)?;
        let open = |path: &PathBuf| {
            let file = File::open(path)?;
            let identity = Identity::of(&file.metadata()?);
            Ok(Opened { path: path.clone(), file, identity })
        };
        let opened = sources.paths().iter().map(|path| open(path).map_err(|error| unreadable(path, &error)));
        opened.collect::<Result<VecDeque<Opened>, String>>()
    };
    let mut before = look();
    for _ in 0..times {
        let now = look();
        match (&before, &now) {
            (Ok(before), Ok(now))
                if before.iter().map(|file| file.identity).eq(now.iter().map(|file| file.identity)) =>
            {
                break;
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(10));
        before = now;
    }
    before
}

/// The files that were written after the one with this identity.
fn after(path: &Path, identity: Identity) -> Result<VecDeque<Opened>, String> {
    let mut files = opened(path, false, PATIENT)?;
    match files.iter().position(|file| file.identity == identity) {
        Some(at) => drop(files.drain(..=at)),
        // It is gone: the new file says by its first record whether something is missing.
        None => drop(files.drain(..files.len().saturating_sub(1))),
    }
    Ok(files)
}

impl Follower<'_> {
    /// Follows what comes in until it ends.
    fn stream(&mut self) -> Result<(), Stop> {
        self.backlog = None;
        let failed = |error: io::Error| Stop::Failed(unreadable(Path::new("-"), &error));
        // Not through the standard library's own buffer, which poll knows nothing of.
        let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
        let mut lines = Lines::new(BufReader::new(input));
        loop {
            if lines.get_ref().buffer().is_empty() {
                self.wait(Some(lines.get_ref().get_ref().as_fd()), PollTimeout::NONE)?;
            }
            match lines.next().map_err(failed)? {
                Some(line) => self.line(&line)?,
                None => return Ok(()),
            }
        }
    }

    /// Follows a file by its name.
    fn file(&mut self, path: &Path) -> Result<(), Stop> {
        // Before the file is read, so that nothing is missed between.
        let watch = watch(path);
        // Of what was there before, the newest file alone tells enough, unless an earlier beginning is asked for.
        let mut waiting = opened(path, self.given.since.is_none(), 5).map_err(Stop::Failed)?;
        while let Some(Opened { path: next, file, identity }) = waiting.pop_front() {
            let mut lines = Lines::new(BufReader::with_capacity(256 * 1024, Counted { from: file, read: 0 }));
            loop {
                while let Some(line) =
                    lines.next_ended().map_err(|error| Stop::Failed(unreadable(&next, &error)))?
                {
                    self.line(&line)?;
                }
                if !waiting.is_empty() {
                    break;
                }
                self.release_backlog()?;
                match path.metadata() {
                    Ok(now) if Identity::of(&now) != identity => {
                        // What came between our last look and the new file.
                        while let Some(line) =
                            lines.next().map_err(|error| Stop::Failed(unreadable(&next, &error)))?
                        {
                            self.line(&line)?;
                        }
                        waiting = after(path, identity).map_err(Stop::Failed)?;
                        break;
                    }
                    Ok(now) if now.len() < lines.get_ref().get_ref().read => {
                        self.say(&self.paint.paint(Colour::Red, format_args!("! {} was cut", name(path))))?;
                        waiting = opened(path, true, PATIENT).map_err(Stop::Failed)?;
                        break;
                    }
                    // Between two names there may be none for a moment.
                    Ok(_) | Err(_) => self.wait(watch.as_ref().map(Inotify::as_fd), PATIENCE.into())?,
                }
                watch.as_ref().into_iter().for_each(|watch| drop(watch.read_events()));
            }
        }
        Ok(())
    }

    /// Waits until there may be something to read, or it is time to end.
    fn wait(&self, input: Option<BorrowedFd<'_>>, patience: PollTimeout) -> Result<(), Stop> {
        let out = io::stdout();
        // Of what is written to, only that its reader has gone is of interest; it is told without being asked for.
        let mut waiting = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(out.as_fd(), PollFlags::empty()),
        ];
        waiting.extend(input.map(|input| PollFd::new(input, PollFlags::POLLIN)));
        match poll(&mut waiting, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Stop::Failed(format!("cannot wait: {errno}"))),
        }
        let is_over = |at: usize| waiting.get(at).and_then(PollFd::any).unwrap_or(false);
        if is_over(0) || is_over(1) { Err(Stop::Asked) } else { Ok(()) }
    }

    fn line(&mut self, line: &Line<'_>) -> Result<(), Stop> {
        let parsed = match line {
            Line::Whole(bytes) => Record::parse(bytes).map(|record| (*bytes, record)),
            Line::TooLong(bytes) => Err(records::NotARecord::TooLong(*bytes)),
            Line::Unended(_) => Err(records::NotARecord::Unended),
        };
        let (bytes, record) = match parsed {
            Ok(parsed) => parsed,
            Err(why) => {
                let said = self.paint.paint(Colour::Red, format_args!("! {}", words::not_a_record(&why)));
                return if self.given.json { Ok(()) } else { self.say(&said) };
            }
        };
        let breaks = matches!((record.prev, self.last), (Some(prev), Some(last)) if prev != last);
        self.last = Some(Hash::of(bytes));
        if breaks && !self.given.json {
            let said = "! the chain is broken before the next record; portreeve audit verify says more";
            self.say(&self.paint.paint(Colour::Red, said))?;
        }
        if !self.is_wanted(&record) {
            return Ok(());
        }
        if self.given.json {
            return self.say(&String::from_utf8_lossy(bytes));
        }
        let text = shown(&record, self.paint);
        self.say(&text)
    }

    fn is_wanted(&self, record: &Record<'_>) -> bool {
        let AuditFollow { denied, changes, command, since, .. } = self.given;
        let is_change = matches!(&*record.kind, "intent" | "closed") || record.intent.is_some();
        since.is_none_or(|since| record.at().is_some_and(|at| at >= since))
            && (!denied || is_request(record) && Decision::of(record) == Decision::Deny)
            && (!changes || is_change)
            && (command.is_empty()
                || record.command.as_deref().is_some_and(|name| command.iter().any(|wanted| wanted == name)))
    }

    fn say(&mut self, text: &str) -> Result<(), Stop> {
        if let Some(backlog) = &mut self.backlog {
            if backlog.len() == LAST {
                backlog.pop_front();
            }
            backlog.push_back(text.to_owned());
            return Ok(());
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|_| Stop::Asked)
    }

    fn release_backlog(&mut self) -> Result<(), Stop> {
        self.backlog.take().into_iter().flatten().try_for_each(|text| self.say(&text))
    }
}

/// Counts what was read of a file.
struct Counted {
    from: File,
    read: u64,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.read = self.read.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

/// Tells of whatever happens in the file's folder; none where that cannot be had, and waiting alone must do.
fn watch(path: &Path) -> Option<Inotify> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, what).ok()?;
    Some(inotify)
}

/// One record as a line: time, channel, decision, command, what it is about, rule, outcome, duration.
fn shown(record: &Record<'_>, paint: Paint) -> String {
    let at = paint.paint(Colour::Dim, words::exact_time(record.at().unwrap_or(SystemTime::UNIX_EPOCH)));
    if !is_request(record) {
        let colour = match &*record.kind {
            "start" | "stop" | "front" | "rotated" => Colour::Dim,
            _ => Colour::Yellow,
        };
        return format!(
            "{at}  {}",
            paint.paint(colour, format_args!("* {}", escaped(&request::event(record))))
        );
    }
    let text = |text: Option<&str>, most: usize| shortened(&escaped(text.unwrap_or("-")), most);
    let decision = Decision::of(record);
    let colour = match decision {
        Decision::Allow => Colour::Green,
        Decision::Redact => Colour::Yellow,
        Decision::Deny => Colour::Red,
        Decision::None => Colour::Dim,
    };
    let outcome = shortened(&escaped(&request::outcome(record)), 120);
    let outcome = match record.outcome.as_deref() {
        Some("failed") => paint.paint(Colour::Red, outcome),
        Some("begins") => paint.paint(Colour::Yellow, outcome),
        _ => outcome,
    };
    let mut line = format!(
        "{at}  {:<8} {} {:<28}",
        text(record.channel.as_deref(), 20),
        paint.paint(colour, format_args!("{:<6}", decision.word())),
        text(record.command.as_deref(), 40),
    );
    let rule = record
        .rule
        .as_deref()
        .map(|rule| paint.paint(Colour::Dim, format_args!("[{}]", shortened(&escaped(rule), 60))));
    let took = record.duration_us.map(|took| words::duration(Duration::from_micros(took)));
    let subject = shortened(&escaped(&request::subject(record)), 120);
    for part in
        [Some(subject).filter(|text| !text.is_empty()), rule, Some(outcome), took].into_iter().flatten()
    {
        line.push(' ');
        line.push_str(&part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, members: &str) -> String {
        let line = format!(
            "{{\"version\":1,\"sequence\":1,\"time\":\"2026-11-26T10:00:00.123456Z\",\"kind\":\"{kind}\",{members}}}"
        );
        shown(&Record::parse(line.as_bytes()).unwrap(), Paint::off())
    }

    #[test]
    fn a_request_is_one_readable_line() {
        let members = r#""channel":"port","dialect":"qga","command":"guest-file-open","arguments":{"path":"/etc/shadow"},
            "decision":"deny","rule":"policy.toml:12","outcome":"denied","duration_us":85"#;
        assert_eq!(
            line("request", members),
            "2026-11-26 10:00:00.123  port     deny   guest-file-open              /etc/shadow [policy.toml:12] denied 85 µs"
        );
        assert_eq!(
            line("start", r#""agent":"0.1.0","policy":{"name":"observe","sha256":"x"}"#),
            "2026-11-26 10:00:00.123  * the agent starts, version 0.1.0, policy observe"
        );
    }

    #[test]
    fn what_the_host_wrote_cannot_command_the_terminal() {
        let members = r#""channel":"\u001b[2J","command":"\u202ex","arguments":{"path":"a\nb"},"outcome":"failed","error":"\u009b31m""#;
        assert_eq!(
            line("request", members),
            "2026-11-26 10:00:00.123  \\u001b[2J none   \\u202ex                      a\\u000ab failed: \\u009b31m"
        );
    }
}
