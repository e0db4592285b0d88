//! The last words of a process: one line on its log, then its end.
//!
//! std's own hook takes locks, asks for the thread's id and opens files for a backtrace: inside a filter each of them
//! ends the process before the message is out. This one formats into a buffer of its own and makes two system calls,
//! `write` and `exit_group`.

use std::fmt::Write as _;
use std::panic::{PanicHookInfo, set_hook};

use crate::{Role, exit_now};

/// How a process ends that panicked.
const PANICKED: i32 = 101;

/// Reports panics of this process as one line on descriptor 2 and ends it with status 101.
///
/// The first call of every `main`, before anything can fail. The line is at most 1024 bytes: longer than that
/// it could be torn or refused by a full log pipe.
pub fn report_panics(role: Role) {
    report_panics_as(role.name());
}

/// Does the same for a process that is no role, under a name of its own.
pub fn report_panics_as(name: &'static str) {
    set_hook(Box::new(move |information| {
        let line = describe(name, information);
        let text = line.bytes.get(..line.length).unwrap_or_default();
        // SAFETY: `text` is valid for its length, and write(2) only reads it. Whether descriptor 2 is open does not matter: the
        // result is not needed, since there is nobody left to tell.
        let _ = unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        exit_now(PANICKED)
    }));
}

fn describe(name: &str, information: &PanicHookInfo<'_>) -> Line {
    let message = information
        .payload()
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| information.payload().downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let mut line = Line { bytes: [0; 1024], length: 0 };
    // Writing into a Line never fails.
    let _ = match information.location() {
        Some(place) => write!(line, "{name}: panicked at {}:{}: {message}", place.file(), place.line()),
        None => write!(line, "{name}: panicked: {message}"),
    };
    line.end();
    line
}

struct Line {
    bytes: [u8; 1024],
    length: usize,
}

impl Line {
    /// Ends with a newline, in place of the last byte if the line is full.
    fn end(&mut self) {
        let last = self.length.min(self.bytes.len().saturating_sub(1));
        if let Some(place) = self.bytes.get_mut(last) {
            *place = b'\n';
            self.length = last.saturating_add(1);
        }
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                // A message may hold what a peer sent: it must not start lines or move cursors in somebody's terminal.
                *place = if byte < 0x20 || byte == 0x7f { b'?' } else { byte };
                self.length = self.length.saturating_add(1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_log() {
        let mut line = Line { bytes: [0; 1024], length: 0 };
        write!(line, "file: panicked: a\nb\x1b[2J").expect("never fails");
        line.end();
        assert_eq!(&line.bytes[..line.length], b"file: panicked: a?b?[2J\n");
    }

    #[test]
    fn a_long_message_is_cut_and_still_ends_its_line() {
        let mut line = Line { bytes: [0; 1024], length: 0 };
        write!(line, "{}", "x".repeat(5000)).expect("never fails");
        line.end();
        assert_eq!(line.length, 1024);
        assert_eq!(line.bytes[1022..], *b"x\n");
    }
}
