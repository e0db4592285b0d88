//! The audit log: one line of JSON for each request, two where it changes something.
//!
//! Written before the work begins where it changes something (`intent`), and when it has ended. It never holds
//! payload, passwords or environment values: arguments are shown as `proto` serialises them for this purpose.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime};

use authorize::Origin;
use nix::errno::Errno;
use proto::settings::{AuditSink, Settings};
use proto::{Failed, Request};
use serde::Serialize;

/// The version of the record's form, in every record.
const VERSION: u32 = 1;
/// Bytes of records that wait for a thaw at most; the oldest go first, and are counted.
const HELD: usize = 1 << 20;
/// A record whose arguments are longer than this shows their length instead.
const ARGUMENTS: usize = 8192;

/// Writes records.
pub struct Audit {
    sink: Sink,
    required: bool,
    sequence: Cell<u64>,
    lost: Cell<u64>,
    /// Why the last record could not be written, until one can.
    failing: RefCell<Option<String>>,
    /// Records in their final form that wait for a thaw; none while nothing is frozen.
    held: RefCell<Option<Held>>,
}

/// Records that wait in memory.
#[derive(Default)]
struct Held {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
}

enum Sink {
    Off,
    File(OwnedFd),
    Syslog(OwnedFd),
    Log,
}

/// The beginning of a record: who asked what.
pub(crate) struct Asked {
    begun: Instant,
    channel: String,
    dialect: &'static str,
    command: &'static str,
    arguments: Box<serde_json::value::RawValue>,
    file: Option<String>,
}

impl Asked {
    /// Where the file is that the request's path led to.
    pub(crate) fn led_to(&mut self, path: String) {
        self.file = Some(path);
    }
}

/// How a request ended.
pub(crate) enum Outcome<'a> {
    /// The policy refused it.
    Denied,
    /// It begins now.
    Begins,
    /// It was done; payload bytes that went in or out, if any did.
    Done(u64),
    /// It went wrong.
    Failed(&'a Failed),
    /// Nobody waited any more, so it was not begun.
    Cancelled,
}

#[derive(Serialize)]
struct Line<'a, D: Serialize> {
    version: u32,
    sequence: u64,
    time: String,
    kind: &'a str,
    #[serde(flatten)]
    detail: D,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    channel: &'a str,
    dialect: &'a str,
    command: &'a str,
    arguments: &'a serde_json::value::RawValue,
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    abandoned: bool,
    duration_us: u64,
}

impl Audit {
    /// Writes to where the settings say, with the descriptor that the spawner gave.
    ///
    /// # Errors
    /// A text for the log if the settings want a descriptor and there is none.
    pub fn new(settings: &Settings, descriptor: Option<OwnedFd>) -> Result<Self, String> {
        let sink = match (settings.audit, descriptor) {
            (AuditSink::Off, _) => Sink::Off,
            (AuditSink::Log, _) => Sink::Log,
            (AuditSink::Descriptor, Some(descriptor)) => Sink::File(descriptor),
            (AuditSink::Syslog, Some(descriptor)) => Sink::Syslog(descriptor),
            (AuditSink::Descriptor | AuditSink::Syslog, None) => {
                return Err("the audit log was not opened for the broker".to_owned());
            }
        };
        let required = settings.audit_required;
        Ok(Audit {
            sink,
            required,
            sequence: Cell::new(1),
            lost: Cell::new(0),
            failing: RefCell::new(None),
            held: RefCell::new(None),
        })
    }

    /// Who asks what, of which open file; the arguments without what must not be recorded. None if nothing is recorded.
    pub(crate) fn asked(&self, channel: &str, request: &Request, file: Option<String>) -> Option<Asked> {
        if matches!(self.sink, Sink::Off) {
            return None;
        }
        let command = request.command();
        let mut arguments = serde_json::to_string(request).unwrap_or_else(|_| String::from("null"));
        if arguments.len() > ARGUMENTS {
            arguments = format!("{{\"length\":{}}}", arguments.len());
        }
        Some(Asked {
            begun: Instant::now(),
            channel: channel.to_owned(),
            dialect: command.dialect.name(),
            command: command.name(),
            arguments: serde_json::value::RawValue::from_string(arguments).unwrap_or_default(),
            file,
        })
    }

    /// Records what becomes of a request.
    ///
    /// # Errors
    /// Only when the settings require a record for everything that is done, and this one cannot be written.
    pub(crate) fn request(
        &self,
        asked: &Option<Asked>,
        rule: Option<&Origin>,
        worker: Option<&str>,
        outcome: &Outcome<'_>,
        abandoned: bool,
    ) -> Result<(), Failed> {
        let Some(asked) = asked else { return Ok(()) };
        let (decision, text, failed, bytes) = match outcome {
            Outcome::Denied => ("deny", "denied", None, None),
            Outcome::Begins => ("allow", "begins", None, None),
            Outcome::Done(bytes) => ("allow", "done", None, (*bytes > 0).then_some(*bytes)),
            Outcome::Failed(failed) => ("allow", "failed", Some(*failed), None),
            Outcome::Cancelled => ("none", "cancelled", None, None),
        };
        let line = RequestLine {
            channel: &asked.channel,
            dialect: asked.dialect,
            command: asked.command,
            arguments: &asked.arguments,
            file: asked.file.as_deref(),
            decision,
            rule: rule.map(ToString::to_string),
            worker,
            outcome: text,
            error: failed.map(|failed| failed.text.as_str()),
            errno: failed.and_then(|failed| failed.errno),
            bytes,
            abandoned,
            duration_us: u64::try_from(asked.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let kind = if matches!(outcome, Outcome::Begins) { "intent" } else { "request" };
        self.write(kind, &line).or_else(|why| {
            if self.required {
                Err(Failed::new(format!("not done, because it cannot be recorded: {why}")))
            } else {
                Ok(())
            }
        })
    }

    /// Whether nothing may be done that is not recorded first.
    pub(crate) fn is_required(&self) -> bool {
        self.required && !matches!(self.sink, Sink::Off)
    }

    /// A request that was dropped before it began.
    pub(crate) fn cancelled(&self, channel: &str, request: &Request) {
        // Nothing was done: even a required record that is missing hides nothing.
        let _ = self.request(&self.asked(channel, request, None), None, None, &Outcome::Cancelled, true);
    }

    /// Requests that a frontend answered by itself.
    pub(crate) fn counts(&self, channel: &str, counts: &[(&str, u32)]) {
        if !counts.is_empty() {
            let counts: serde_json::Map<_, _> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            self.note("front", &serde_json::json!({ "channel": channel, "counts": counts }));
        }
    }

    /// Something about the agent itself.
    pub(crate) fn note(&self, kind: &str, detail: &serde_json::Value) {
        let _ = self.write(kind, detail);
    }

    /// From now on nothing is written: what is to be recorded waits in memory.
    pub(crate) fn hold(&self) {
        self.held.borrow_mut().get_or_insert_default();
    }

    /// Writes what has waited, in its order.
    pub(crate) fn release(&self) {
        let Some(held) = self.held.borrow_mut().take() else { return };
        for record in held.records {
            if let Err(why) = self.emit(&record) {
                self.lost.set(self.lost.get().saturating_add(1));
                tracing::error!(
                    "a record of the time while filesystems were frozen cannot be written: {why}"
                );
            }
        }
    }

    fn write(&self, kind: &str, detail: impl Serialize) -> Result<(), String> {
        if matches!(self.sink, Sink::Off) {
            return Ok(());
        }
        let lost = self.lost.get();
        if lost > 0 && self.put("loss", serde_json::json!({ "records": lost })).is_ok() {
            self.lost.set(0);
        }
        let result = self.put(kind, detail);
        let mut failing = self.failing.borrow_mut();
        match &result {
            Ok(()) => *failing = None,
            Err(why) => {
                self.lost.set(self.lost.get().saturating_add(1));
                if failing.is_none() {
                    tracing::error!("the audit log cannot be written: {why}");
                    *failing = Some(why.clone());
                }
            }
        }
        result
    }

    fn put(&self, kind: &str, detail: impl Serialize) -> Result<(), String> {
        let sequence = self.sequence.get();
        let time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        let line = Line { version: VERSION, sequence, time, kind, detail };
        let mut bytes = Vec::with_capacity(512);
        if let Sink::Syslog(_) = self.sink {
            // Facility user, severity info, the name that qemu-ga uses: rfc3164.
            bytes.extend_from_slice(b"<14>qemu-ga: ");
        }
        serde_json::to_writer(&mut bytes, &line).map_err(|error| error.to_string())?;
        if let Sink::File(_) = self.sink {
            bytes.push(b'\n');
        }
        match &mut *self.held.borrow_mut() {
            Some(held) => {
                held.bytes += bytes.len();
                held.records.push_back(bytes);
                while held.bytes > HELD {
                    let Some(oldest) = held.records.pop_front() else { break };
                    held.bytes -= oldest.len();
                    self.lost.set(self.lost.get().saturating_add(1));
                }
            }
            None => self.emit(&bytes)?,
        }
        self.sequence.set(sequence + 1);
        Ok(())
    }

    fn emit(&self, bytes: &[u8]) -> Result<(), String> {
        match &self.sink {
            Sink::Off => {}
            Sink::File(file) => write_whole(file, bytes)?,
            // A datagram socket, non-blocking: a full or missing log daemon must not hold the agent up.
            Sink::Syslog(socket) => {
                nix::unistd::write(socket, bytes).map_err(|errno| errno.desc().to_owned())?;
            }
            Sink::Log => tracing::error!(target: "audit", "{}", String::from_utf8_lossy(bytes)),
        }
        Ok(())
    }
}

/// One write for one record: with O_APPEND, records of two writers do not mix.
fn write_whole(file: &OwnedFd, bytes: &[u8]) -> Result<(), String> {
    loop {
        match nix::unistd::write(file, bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(written) => return Err(format!("only {written} of {} bytes fit", bytes.len())),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.desc().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;
    use proto::{Base64Text, Payload, exec, file};

    fn audit_to_file() -> (Audit, std::fs::File) {
        let file = tempfile::tempfile().unwrap();
        let copy = file.try_clone().unwrap();
        let sink = Sink::File(file.into());
        let audit = Audit {
            sink,
            required: true,
            sequence: Cell::new(1),
            lost: Cell::new(0),
            failing: RefCell::new(None),
            held: RefCell::new(None),
        };
        (audit, copy)
    }

    fn lines(mut file: std::fs::File) -> Vec<serde_json::Value> {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_record_says_who_asked_what_by_which_rule_and_what_came_of_it() {
        let (audit, file) = audit_to_file();
        let open = file::Open { path: "/etc/hostname".into(), mode: None };
        let asked = audit.asked("port", &file::Request::Open(open).into(), None);
        let rule = Origin { place: "policy.toml".to_owned(), line: 12 };
        let failed = Failed::system("failed to open file '/etc/hostname' (mode: 'r')", 13);
        audit.request(&asked, Some(&rule), Some("file"), &Outcome::Failed(&failed), false).unwrap();
        let line = &lines(file)[0];
        assert_eq!(line["channel"], "port");
        assert_eq!(line["dialect"], "qga");
        assert_eq!(line["command"], "guest-file-open");
        assert_eq!(line["arguments"], serde_json::json!({"path": "/etc/hostname", "mode": null}));
        assert_eq!(line["decision"], "allow");
        assert_eq!(line["rule"], "policy.toml:12");
        assert_eq!(line["outcome"], "failed");
        assert_eq!(line["errno"], 13);
    }

    #[test]
    fn while_something_is_frozen_records_wait_and_then_stand_in_their_order() {
        let (audit, file) = audit_to_file();
        audit.note("before", &serde_json::json!({}));
        audit.hold();
        audit.note("frozen", &serde_json::json!({}));
        assert_eq!(lines(file.try_clone().unwrap()).len(), 1);
        audit.release();
        audit.note("after", &serde_json::json!({}));
        let kinds: Vec<_> =
            lines(file).iter().map(|line| (line["kind"].clone(), line["sequence"].clone())).collect();
        assert_eq!(serde_json::json!(kinds), serde_json::json!([["before", 1], ["frozen", 2], ["after", 3]]));
    }

    #[test]
    fn what_does_not_fit_into_memory_while_something_is_frozen_is_counted_as_lost() {
        let (audit, file) = audit_to_file();
        audit.hold();
        let text = "x".repeat(100_000);
        for _ in 0..12 {
            audit.note("long", &serde_json::json!({ "text": text }));
        }
        audit.release();
        audit.note("after", &serde_json::json!({}));
        let lines = lines(file);
        let long = lines.iter().filter(|line| line["kind"] == "long").count();
        let lost: u64 = lines.iter().filter_map(|line| line["records"].as_u64()).sum();
        assert_eq!((long, lost), (10, 2));
    }

    #[test]
    fn no_record_holds_input_or_values_of_the_environment() {
        let (audit, file) = audit_to_file();
        let text = Base64Text(b"c2VjcmV0IGlucHV0".to_vec());
        let exec = exec::Exec {
            path: "tee".into(),
            arg: Some(vec!["/tmp/x".into()]),
            env: Some(vec!["TOKEN=hunter2".into()]),
            input_data: Payload { present: true, length: 12, text },
            capture_output: exec::Capture::None,
        };
        let asked = audit.asked("port", &exec::Request::Exec(exec).into(), None);
        audit.request(&asked, None, None, &Outcome::Begins, false).unwrap();
        let line = lines(file).remove(0);
        assert_eq!(line["arguments"]["env"], serde_json::json!(["TOKEN"]));
        assert_eq!(line["arguments"]["input-data"], serde_json::json!({"bytes": 12}));
        assert!(!line.to_string().contains("hunter2") && !line.to_string().contains("c2VjcmV0"));
    }

    #[test]
    fn what_cannot_be_recorded_is_refused_where_records_are_required_and_the_loss_is_counted() {
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        let (mut audit, file) = audit_to_file();
        audit.sink = Sink::File(full.into());
        let request = Request::from(file::Request::Flush(file::OfHandle { handle: 1000 }));
        let asked = audit.asked("port", &request, None);
        let failed = audit.request(&asked, None, None, &Outcome::Begins, false).unwrap_err();
        assert_eq!(failed.text, "not done, because it cannot be recorded: No space left on device");
        audit.sink = Sink::File(file.try_clone().unwrap().into());
        audit.note("start", &serde_json::json!({}));
        let lines = lines(file);
        assert_eq!((lines[0]["kind"].as_str(), lines[0]["records"].as_u64()), (Some("loss"), Some(1)));
        assert_eq!(lines[1]["kind"], "start");
    }
}
