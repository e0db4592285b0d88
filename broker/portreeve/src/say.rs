//! Lines on standard error, which is the agent's log as soon as that is open.
//!
//! A standard error that is closed or full loses the line and fails nobody.

use std::fmt;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// How grave it is; the words of qemu-ga's log (`qga/main.c`, `ga_log_level_str`).
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Critical,
    Warning,
    Info,
}

/// Writes one line in the form of the agent's log: `<unix seconds>.<microseconds>: <level>: <text>`.
pub(crate) fn log(level: Level, text: impl fmt::Display) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let word = match level {
        Level::Critical => "critical",
        Level::Warning => "warning",
        Level::Info => "info",
    };
    raw(format_args!("{}.{:06}: {word}: {text}", now.as_secs(), now.subsec_micros()));
}

/// Writes one line as it is: for who typed a command.
pub(crate) fn raw(text: impl fmt::Display) {
    let line = format!("{text}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Writes to standard output; a reader that has gone ends nothing.
pub(crate) fn out(text: impl fmt::Display) {
    let text = text.to_string();
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
