//! `portreeve audit export`: records as events of other people's schemas. The mapping is a table in `docs/audit.md`.

use std::io::{self, BufWriter, Write as _};
use std::time::{Duration, SystemTime};

use records::{Hash, Line, Record};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::request::{self, Decision, is_request};
use super::{BROKEN, Sources, UNREADABLE, WHOLE, words};
use crate::say::raw;
use crate::subcommands::{AuditExport, EventFormat};

/// The version of OCSF whose classes and members are used.
const OCSF: &str = "1.3.0";
/// The version of ECS whose fields are used.
const ECS: &str = "8.11.0";

pub(super) fn main(given: &AuditExport) -> Result<u8, String> {
    let sources = Sources::find(&given.files, given.alone)?;
    let names = sources.names();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut status = WHOLE;
    let mut failed = None;
    sources.read(|place, line| {
        if failed.is_some() {
            return;
        }
        match parse(line) {
            Ok((bytes, record)) => {
                let Some(at) = record.at().filter(|at| given.since.is_none_or(|since| *at >= since)) else {
                    return;
                };
                let event = match given.format {
                    EventFormat::Ocsf => ocsf(bytes, &record, at),
                    EventFormat::Ecs => ecs(bytes, &record, at),
                };
                failed = writeln!(out, "{event}").err();
            }
            Err(why) => {
                status = BROKEN;
                raw(format_args!(
                    "portreeve audit export: {}: {why}; it is left out",
                    words::place(&names, place)
                ));
            }
        }
    })?;
    match failed.or_else(|| out.flush().err()) {
        // A reader that has seen enough.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(status),
        Some(error) => {
            raw(format_args!("portreeve audit export: cannot write events: {error}"));
            Ok(UNREADABLE)
        }
        None => Ok(status),
    }
}

fn parse<'a>(line: &Line<'a>) -> Result<(&'a [u8], Record<'a>), String> {
    let why = match line {
        Line::Whole(bytes) => match Record::parse(bytes) {
            Ok(record) => return Ok((bytes, record)),
            Err(why) => why,
        },
        Line::TooLong(bytes) => records::NotARecord::TooLong(*bytes),
        Line::Unended(_) => records::NotARecord::Unended,
    };
    Err(words::not_a_record(&why))
}

/// What a command does to the guest, as both schemas want to know it.
struct Meaning {
    /// OCSF's `activity_id` and its caption.
    activity: (u64, &'static str),
    /// ECS's category beside `api`, and its type.
    category: &'static str,
    kind: &'static str,
}

/// By the command's name: the log does not say which right a command needs.
fn meaning(command: &str) -> Meaning {
    const CREATE: (u64, &str) = (1, "Create");
    const READ: (u64, &str) = (2, "Read");
    const UPDATE: (u64, &str) = (3, "Update");
    const DELETE: (u64, &str) = (4, "Delete");
    let name = command.trim_start_matches("guest-");
    let (activity, category, kind) = match name {
        "exec" => (CREATE, "process", "start"),
        "exec-status" => (READ, "process", "info"),
        "file-write" | "file-flush" | "file-chown" | "file-chmod" => (UPDATE, "file", "change"),
        "directory-create" => (CREATE, "file", "creation"),
        "set-user-password" => (UPDATE, "iam", "change"),
        "ssh-add-authorized-keys" => (CREATE, "iam", "creation"),
        "ssh-remove-authorized-keys" => (DELETE, "iam", "deletion"),
        "ssh-get-authorized-keys" => (READ, "iam", "info"),
        "ipaddr-add" | "linux-ipaddr-add" | "route-add" => (CREATE, "configuration", "creation"),
        "ipaddr-del" | "linux-ipaddr-del" | "route-del" => (DELETE, "configuration", "deletion"),
        "net-iface-up" | "net-iface-down" => (UPDATE, "configuration", "change"),
        "set-time"
        | "set-vcpus"
        | "set-memory-blocks"
        | "fsfreeze-freeze"
        | "fsfreeze-freeze-list"
        | "fsfreeze-thaw"
        | "fstrim"
        | "fs-freeze"
        | "fs-unfreeze"
        | "shutdown"
        | "suspend-disk"
        | "suspend-ram"
        | "suspend-hybrid"
        | "agent-shutdown" => (UPDATE, "host", "change"),
        _ if name.starts_with("file-") || name.starts_with("get-file-") || name == "directory-list" => {
            (READ, "file", "access")
        }
        _ => (READ, "host", "info"),
    };
    Meaning { activity, category, kind }
}

/// A record as an event of OCSF: a request is API Activity (6003), everything else Application Lifecycle (6002).
fn ocsf(bytes: &[u8], record: &Record<'_>, at: SystemTime) -> Value {
    let line = String::from_utf8_lossy(bytes);
    let mut event = json!({
        "category_uid": 6,
        "category_name": "Application Activity",
        "time": milliseconds(at),
        "metadata": {
            "version": OCSF,
            "product": {"name": "portreeve", "vendor_name": "portreeve"},
            "uid": Hash::of(bytes).to_string(),
            "sequence": record.sequence,
            "original_time": &*record.time,
            "log_name": "audit",
            "log_version": record.version.to_string(),
        },
        "raw_data": line,
        "unmapped": unmapped(record),
    });
    let more = if is_request(record) { ocsf_request(record, at) } else { ocsf_lifecycle(record) };
    merge(&mut event, more);
    event
}

fn ocsf_request(record: &Record<'_>, at: SystemTime) -> Value {
    let command = record.command.as_deref().unwrap_or("unknown");
    let Meaning { activity: (activity, name), .. } = meaning(command);
    let decision = Decision::of(record);
    // Of `action_id` and `disposition_id`: allowed; denied and blocked; nothing known.
    let (action, action_name, disposition, disposition_name) = match decision {
        Decision::Allow | Decision::Redact => (1, "Allowed", 1, "Allowed"),
        Decision::Deny => (2, "Denied", 2, "Blocked"),
        Decision::None => (0, "Unknown", 0, "Unknown"),
    };
    let (status, status_name) = match record.outcome.as_deref() {
        Some("done") => (1, "Success"),
        Some("failed" | "denied" | "cancelled") => (2, "Failure"),
        _ => (0, "Unknown"),
    };
    let severity = if decision == Decision::Deny { (2, "Low") } else { (1, "Informational") };
    let mut event = json!({
        "class_uid": 6003,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": name,
        "type_uid": 600_300 + activity,
        "type_name": format!("API Activity: {name}"),
        "severity_id": severity.0,
        "severity": severity.1,
        "status_id": status,
        "status": status_name,
        "status_detail": request::outcome(record),
        "action_id": action,
        "action": action_name,
        "disposition_id": disposition,
        "disposition": disposition_name,
        "message": format!("{command} {}", request::subject(record)).trim_end(),
        "metadata": {"profiles": ["security_control"]},
        "actor": {"app_name": "host"},
        "src_endpoint": {"name": record.channel.as_deref().unwrap_or("unknown")},
        "api": {
            "operation": command,
            "service": {"name": record.dialect.as_deref().unwrap_or("unknown")},
            "request": {"uid": record.intent.unwrap_or(record.sequence).to_string(), "data": arguments(record)},
        },
    });
    if let Some(rule) = record.rule.as_deref() {
        merge(
            &mut event,
            json!({"policy": {"name": rule}, "authorizations": [{"decision": decision.word(), "policy": {"name": rule}}]}),
        );
    }
    if record.error.is_some() || record.errno.is_some() {
        let code = record.errno.map(|errno| errno.to_string());
        merge(
            &mut event,
            json!({"status_code": code, "api": {"response": {"code": record.errno, "error_message": record.error.as_deref()}}}),
        );
    }
    if let Some(micros) = record.duration_us {
        let begun = at.checked_sub(Duration::from_micros(micros)).unwrap_or(SystemTime::UNIX_EPOCH);
        merge(
            &mut event,
            json!({"duration": micros / 1000, "start_time": milliseconds(begun), "end_time": milliseconds(at)}),
        );
    }
    if let Some(path) = record.file.as_deref() {
        merge(&mut event, json!({"resources": [{"type": "file", "name": path}]}));
    }
    without_nulls(event)
}

fn ocsf_lifecycle(record: &Record<'_>) -> Value {
    let (activity, name) = match &*record.kind {
        "start" => (3, "Start"),
        "stop" => (4, "Stop"),
        _ => (99, &*record.kind),
    };
    let is_bad = matches!(&*record.kind, "loss" | "replaced" | "closed")
        || (&*record.kind == "worker" && record.status.is_some())
        || record.accepted == Some(false);
    let severity = if is_bad { (3, "Medium") } else { (1, "Informational") };
    json!({
        "class_uid": 6002,
        "class_name": "Application Lifecycle",
        "activity_id": activity,
        "activity_name": name,
        "type_uid": 600_200 + activity,
        "type_name": format!("Application Lifecycle: {name}"),
        "severity_id": severity.0,
        "severity": severity.1,
        "message": request::event(record),
        "app": {"name": "portreeve", "vendor_name": "portreeve"},
    })
}

/// A record as a document of ECS.
fn ecs(bytes: &[u8], record: &Record<'_>, at: SystemTime) -> Value {
    let line = String::from_utf8_lossy(bytes);
    let mut event = json!({
        "@timestamp": humantime::format_rfc3339_micros(at).to_string(),
        "ecs": {"version": ECS},
        "event": {
            "kind": "event",
            "module": "portreeve",
            "dataset": "portreeve.audit",
            "provider": "portreeve",
            "id": Hash::of(bytes).to_string(),
            "sequence": record.sequence,
            "original": line,
        },
        "service": {"type": "portreeve", "name": "portreeve"},
        "portreeve": unmapped(record),
    });
    let more = if is_request(record) { ecs_request(record) } else { ecs_lifecycle(record) };
    merge(&mut event, more);
    event
}

fn ecs_request(record: &Record<'_>) -> Value {
    let command = record.command.as_deref().unwrap_or("unknown");
    let Meaning { category, kind, .. } = meaning(command);
    let decision = Decision::of(record);
    let allowed = match decision {
        Decision::Allow | Decision::Redact => Some("allowed"),
        Decision::Deny => Some("denied"),
        Decision::None => None,
    };
    let outcome = match record.outcome.as_deref() {
        Some("done") => "success",
        Some("failed" | "denied" | "cancelled") => "failure",
        _ => "unknown",
    };
    let types: Vec<&str> = [Some(kind), allowed].into_iter().flatten().collect();
    let given = record.arguments.and_then(|arguments| serde_json::from_str::<Value>(arguments.get()).ok());
    let text = |key: &str| given.as_ref().and_then(|given| given.get(key)).and_then(Value::as_str);
    let path = record.file.as_deref().or_else(|| text("path"));
    without_nulls(json!({
        "event": {
            "action": command,
            "category": ["api", category],
            "type": types,
            "outcome": outcome,
            "reason": request::outcome(record),
            "duration": record.duration_us.map(|micros| micros.saturating_mul(1000)),
        },
        "message": format!("{command} {}", request::subject(record)).trim_end(),
        "rule": {"name": record.rule.as_deref()},
        "error": {"message": record.error.as_deref(), "code": record.errno.map(|errno| errno.to_string())},
        "file": {"path": path.filter(|_| category == "file")},
        "process": {
            "executable": path.filter(|_| command == "guest-exec"),
            "args": given.as_ref().and_then(|given| given.get("arg")).filter(|_| command == "guest-exec"),
        },
        "user": {"target": {"name": text("username").or_else(|| text("user")).filter(|_| category == "iam")}},
    }))
}

fn ecs_lifecycle(record: &Record<'_>) -> Value {
    let (category, kind) = match &*record.kind {
        "start" => ("process", "start"),
        "stop" => ("process", "end"),
        "reload" => ("configuration", "change"),
        "worker" if record.status.is_some() => ("process", "end"),
        "worker" => ("process", "start"),
        "thaw" => ("host", "change"),
        _ => ("host", "info"),
    };
    let outcome = match record.accepted {
        Some(true) => "success",
        Some(false) => "failure",
        None => "unknown",
    };
    json!({
        "event": {"action": &*record.kind, "category": [category], "type": [kind], "outcome": outcome},
        "message": request::event(record),
    })
}

/// What neither schema has a place for, under the log's own names.
fn unmapped(record: &Record<'_>) -> Value {
    without_nulls(json!({
        "kind": &*record.kind,
        "channel": record.channel.as_deref(),
        "dialect": record.dialect.as_deref(),
        "decision": record.decision.as_deref(),
        "worker": record.worker.as_deref(),
        "outcome": record.outcome.as_deref(),
        // As text: members of arguments are too many, and too different, to be fields.
        "arguments": record.arguments.map(RawValue::get),
        "bytes": record.bytes,
        "sha256": record.sha256.as_deref(),
        "abandoned": Some(true).filter(|_| record.abandoned),
        "intent": record.intent,
        "why": record.why.as_deref(),
        "records": record.records,
        "prev": record.prev.map(|hash| hash.to_string()),
    }))
}

fn arguments(record: &Record<'_>) -> Value {
    record.arguments.and_then(|arguments| serde_json::from_str(arguments.get()).ok()).unwrap_or(Value::Null)
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Adds members; objects in both become one.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Leaves out what is not there, and objects with nothing in them.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(key, value)| (key, without_nulls(value)))
                .filter(|(_, value)| {
                    !value.is_null() && value.as_object().is_none_or(|members| !members.is_empty())
                })
                .collect::<Map<_, _>>(),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"version":1,"sequence":7,"time":"2026-11-26T10:00:00.250000Z","kind":"request","channel":"port","dialect":"qga","command":"guest-file-open","arguments":{"path":"/etc/shadow","mode":null},"decision":"deny","rule":"policy.toml:12","outcome":"denied","duration_us":1500}"#;
    const FAILED: &str = r#"{"version":1,"sequence":9,"time":"2026-11-26T10:00:00.250000Z","kind":"request","channel":"port","dialect":"qga","command":"guest-exec","arguments":{"path":"/bin/ls","arg":["-l"]},"decision":"allow","outcome":"failed","error":"no","errno":2,"duration_us":10,"intent":8}"#;
    const STOP: &str = r#"{"version":1,"sequence":10,"time":"2026-11-26T10:00:00Z","kind":"stop"}"#;

    fn event(make: fn(&[u8], &Record<'_>, SystemTime) -> Value, line: &str) -> Value {
        let record = Record::parse(line.as_bytes()).unwrap();
        let mut event = make(line.as_bytes(), &record, record.at().unwrap());
        // What holds the whole line is looked at once, below.
        event.as_object_mut().unwrap().remove("raw_data");
        if let Some(event) = event.get_mut("event") {
            event.as_object_mut().unwrap().remove("original");
        }
        event
    }

    #[test]
    fn a_refused_request_as_ocsf() {
        let expected = json!({
            "class_uid": 6003, "class_name": "API Activity", "category_uid": 6, "category_name": "Application Activity",
            "activity_id": 2, "activity_name": "Read", "type_uid": 600_302, "type_name": "API Activity: Read",
            "severity_id": 2, "severity": "Low", "status_id": 2, "status": "Failure", "status_detail": "denied",
            "action_id": 2, "action": "Denied", "disposition_id": 2, "disposition": "Blocked",
            "time": 1_795_687_200_250_u64, "start_time": 1_795_687_200_248_u64, "end_time": 1_795_687_200_250_u64, "duration": 1,
            "message": "guest-file-open /etc/shadow",
            "metadata": {"version": "1.3.0", "product": {"name": "portreeve", "vendor_name": "portreeve"},
                "uid": Hash::of(DENIED.as_bytes()).to_string(), "sequence": 7, "original_time": "2026-11-26T10:00:00.250000Z",
                "log_name": "audit", "log_version": "1", "profiles": ["security_control"]},
            "actor": {"app_name": "host"}, "src_endpoint": {"name": "port"},
            "api": {"operation": "guest-file-open", "service": {"name": "qga"},
                "request": {"uid": "7", "data": {"path": "/etc/shadow"}}},
            "policy": {"name": "policy.toml:12"},
            "authorizations": [{"decision": "deny", "policy": {"name": "policy.toml:12"}}],
            "unmapped": {"kind": "request", "channel": "port", "dialect": "qga", "decision": "deny", "outcome": "denied",
                "arguments": "{\"path\":\"/etc/shadow\",\"mode\":null}"},
        });
        assert_eq!(event(ocsf, DENIED), expected);
    }

    #[test]
    fn a_refused_and_a_failed_request_as_ecs() {
        let expected = json!({
            "@timestamp": "2026-11-26T10:00:00.250000Z", "ecs": {"version": "8.11.0"},
            "event": {"kind": "event", "module": "portreeve", "dataset": "portreeve.audit", "provider": "portreeve",
                "id": Hash::of(DENIED.as_bytes()).to_string(), "sequence": 7, "action": "guest-file-open",
                "category": ["api", "file"], "type": ["access", "denied"], "outcome": "failure", "reason": "denied",
                "duration": 1_500_000},
            "service": {"type": "portreeve", "name": "portreeve"},
            "message": "guest-file-open /etc/shadow", "rule": {"name": "policy.toml:12"}, "file": {"path": "/etc/shadow"},
            "portreeve": {"kind": "request", "channel": "port", "dialect": "qga", "decision": "deny", "outcome": "denied",
                "arguments": "{\"path\":\"/etc/shadow\",\"mode\":null}"},
        });
        assert_eq!(event(ecs, DENIED), expected);
        let failed = event(ecs, FAILED);
        assert_eq!(failed["process"], json!({"executable": "/bin/ls", "args": ["-l"]}));
        assert_eq!(failed["error"], json!({"message": "no", "code": "2"}));
        assert_eq!(failed["event"]["category"], json!(["api", "process"]));
        assert_eq!(event(ecs, STOP)["event"]["type"], json!(["end"]));
    }

    #[test]
    fn what_is_no_request_is_the_applications_life_in_ocsf() {
        let stop = event(ocsf, STOP);
        assert_eq!((&stop["class_uid"], &stop["type_uid"]), (&json!(6002), &json!(600_204)));
        assert_eq!(stop["app"]["name"], "portreeve");
        let failed = event(ocsf, FAILED);
        assert_eq!(failed["api"]["response"], json!({"code": 2, "error_message": "no"}));
        assert_eq!(failed["api"]["request"]["uid"], "8", "intent and outcome have the same");
    }

    #[test]
    fn an_event_holds_the_record_itself() {
        let record = Record::parse(STOP.as_bytes()).unwrap();
        assert_eq!(ocsf(STOP.as_bytes(), &record, record.at().unwrap())["raw_data"], STOP);
        assert_eq!(ecs(STOP.as_bytes(), &record, record.at().unwrap())["event"]["original"], STOP);
    }
}
