//! The agent's log: the broker's own lines, and those of the processes that cannot write anywhere themselves.
//!
//! What a child writes is data: it is cut to lines of bounded length, its control characters are escaped, it is
//! limited in rate, and the role stands in front of it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const LINE: usize = 1024;
const LINES_A_SECOND: u32 = 50;

/// Lets `tracing` write to descriptor 2, in qemu-ga's form: `<seconds>.<microseconds>: <level>: <text>`.
pub fn to_stderr(verbose: bool) {
    let most = if verbose { Level::DEBUG } else { Level::WARN };
    // Only fails when called twice, and then the first is as good.
    let _ = tracing::subscriber::set_global_default(Log { most });
}

thread_local! {
    /// Lines that wait for a thaw; none while nothing is frozen. The broker has one thread.
    static HELD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Bytes that wait at most; what comes after them is dropped.
const HELD_BYTES: usize = 256 * 1024;

/// From now on nothing is written: the log may lie on a frozen filesystem.
pub(crate) fn hold() {
    HELD.with_borrow_mut(|held| _ = held.get_or_insert_default());
}

/// Writes what has waited.
pub(crate) fn release() {
    if let Some(lines) = HELD.take() {
        // As every line: a log that is full or gone loses it.
        let _ = std::io::stderr().write_all(&lines);
    }
}

fn write_line(line: &[u8]) {
    HELD.with_borrow_mut(|held| match held {
        Some(lines) => {
            if lines.len() + line.len() <= HELD_BYTES {
                lines.extend_from_slice(line);
            }
        }
        // There is nobody to tell that the log is gone.
        None => _ = std::io::stderr().write_all(line),
    });
}

/// Writes each event as a line. A subscriber of our own: the broker makes no spans, and the tables that crates keep for them
/// take time at its start and memory afterwards.
struct Log {
    most: Level,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.most))
    }

    fn event(&self, event: &Event<'_>) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Said whatever the level of the log is, and no error: a record, or where the chain of records stands.
        let level = match event.metadata().target() {
            "audit" => "AUDIT",
            _ => event.metadata().level().as_str(),
        };
        let mut line = format!("{}.{:06}: {level:>5} ", now.as_secs(), now.subsec_micros());
        event.record(&mut Text(&mut line));
        line.push('\n');
        write_line(line.as_bytes());
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// The text of an event; the broker's have no other fields.
struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            // Writing to a text does not fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Copies the lines of one child to the log until the child closes its end.
pub(crate) async fn copy(name: String, pipe: OwnedFd) {
    let Ok(pipe) = pipe::watch(pipe) else { return };
    let mut lines = Lines { name, pending: Vec::new(), window: Instant::now(), shown: 0, dropped: 0 };
    let mut buffer = [0; LINE];
    loop {
        let Ok(mut ready) = pipe.readable().await else { return };
        let result =
            ready.try_io(|pipe| nix::unistd::read(pipe.get_ref(), &mut buffer).map_err(std::io::Error::from));
        match result {
            Err(_would_block) => {}
            Ok(Ok(0)) | Ok(Err(_)) => break,
            Ok(Ok(length)) => lines.take(buffer.get(..length).unwrap_or_default()),
        }
    }
    lines.end();
}

struct Lines {
    name: String,
    pending: Vec<u8>,
    window: Instant,
    shown: u32,
    dropped: u32,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.show();
            } else {
                self.pending.push(byte);
                if self.pending.len() >= LINE {
                    self.show();
                }
            }
        }
    }

    fn show(&mut self) {
        let line = std::mem::take(&mut self.pending);
        if self.window.elapsed() > Duration::from_secs(1) {
            if self.dropped > 0 {
                tracing::warn!("{}: {} lines left out", self.name, self.dropped);
            }
            (self.window, self.shown, self.dropped) = (Instant::now(), 0, 0);
        }
        self.shown += 1;
        if self.shown > LINES_A_SECOND {
            self.dropped = self.dropped.saturating_add(1);
        } else if !line.is_empty() {
            tracing::warn!("{}: {}", self.name, escaped(&line));
        }
    }

    fn end(&mut self) {
        if !self.pending.is_empty() {
            self.show();
        }
    }
}

/// The line with everything that a terminal could take for a command made visible.
fn escaped(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(line).chars() {
        if character.is_control() {
            let _ = write!(text, "\\x{:02x}", u32::from(character));
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_writes_cannot_move_the_cursor() {
        assert_eq!(escaped(b"a\x1b[2Jb\rc"), "a\\x1b[2Jb\\x0dc");
    }
}
