//! What a record is about, in a few words. The words are as somebody wrote them: escape them for where they are shown.

use std::fmt::Write as _;

use records::Record;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::terminal::shortened;

/// Characters of a subject at most.
const LONGEST: usize = 300;

/// Members of arguments that say best what a command is about, the best first.
const TELLING: [&str; 18] = [
    "path",
    "username",
    "user",
    "mountpoints",
    "mountpoint",
    "name",
    "iface",
    "interface",
    "dev",
    "address",
    "addr",
    "ip",
    "dst",
    "mode",
    "time",
    "pid",
    "handle",
    "minimum",
];

/// What the policy said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Decision {
    Allow,
    Redact,
    Deny,
    /// Nothing: the request was dropped before it was asked.
    None,
}

impl Decision {
    /// Of a record; what is not known counts as no decision.
    pub(super) fn of(record: &Record<'_>) -> Self {
        match record.decision.as_deref() {
            Some("allow") => Decision::Allow,
            Some("redact") => Decision::Redact,
            Some("deny") => Decision::Deny,
            _ => Decision::None,
        }
    }

    /// As the log has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Decision::Allow => "allow",
            Decision::Redact => "redact",
            Decision::Deny => "deny",
            Decision::None => "none",
        }
    }

    /// Its place among counts: allow, redact, deny, none.
    pub(super) fn index(self) -> usize {
        match self {
            Decision::Allow => 0,
            Decision::Redact => 1,
            Decision::Deny => 2,
            Decision::None => 3,
        }
    }
}

/// Whether the record is about a request: `request` or `intent`.
pub(super) fn is_request(record: &Record<'_>) -> bool {
    matches!(&*record.kind, "request" | "intent")
}

/// What a request is about: a path, a program with its arguments, a user, or all arguments.
pub(super) fn subject(record: &Record<'_>) -> String {
    let arguments = record.arguments.map(RawValue::get).unwrap_or("null");
    // Nested too deeply for the parser is shown as it is.
    let Ok(parsed) = serde_json::from_str::<Value>(arguments) else { return shortened(arguments, LONGEST) };
    let mut text = match (record.file.as_deref(), &parsed) {
        (Some(file), _) => file.to_owned(),
        (None, Value::Object(members)) => {
            match TELLING.iter().find_map(|key| members.get(*key).filter(|value| !value.is_null())) {
                Some(value) => plain(value),
                None => {
                    let told: serde_json::Map<_, _> = members
                        .iter()
                        .filter(|(_, value)| !value.is_null())
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    if told.is_empty() { String::new() } else { Value::Object(told).to_string() }
                }
            }
        }
        (None, Value::Null) => String::new(),
        (None, other) => plain(other),
    };
    if let Some(Value::Array(words)) = parsed.get("arg") {
        for word in words {
            let word = plain(word);
            let is_simple = !word.is_empty()
                && !word.contains(|letter: char| letter.is_whitespace() || "\"'\\".contains(letter));
            let _ = if is_simple { write!(text, " {word}") } else { write!(text, " {}", Value::from(word)) };
        }
    }
    shortened(&text, LONGEST)
}

/// A text without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What is behind the outcome: `failed: No such file (errno 2)`.
pub(super) fn outcome(record: &Record<'_>) -> String {
    let mut text = record.outcome.as_deref().unwrap_or("?").to_owned();
    if let Some(error) = &record.error {
        let _ = write!(text, ": {error}");
    }
    if let Some(errno) = record.errno {
        let _ = write!(text, " (errno {errno})");
    }
    if record.abandoned {
        text.push_str(", abandoned");
    }
    shortened(&text, LONGEST)
}

/// A record that is about no request, in a sentence.
pub(super) fn event(record: &Record<'_>) -> String {
    let raw = |value: Option<&RawValue>| value.map(plain_raw).unwrap_or_default();
    let why = record.why.as_deref().unwrap_or_default();
    let named =
        |label: &str, text: &str| if text.is_empty() { String::new() } else { format!(", {label} {text}") };
    let text = match &*record.kind {
        "start" => format!(
            "the agent starts{}{}",
            named("version", &raw(record.agent)),
            named("policy", &policy(record))
        ),
        "stop" => "the agent ends".to_owned(),
        "reload" if record.accepted == Some(true) => {
            format!("another policy is in force{}", named("policy", &policy(record)))
        }
        "reload" => format!("another policy was refused{}", named("because", why)),
        "worker" if record.status.is_some() => {
            let worker = record.worker.as_deref().unwrap_or("?");
            format!(
                "worker {worker} ended by itself{}{}",
                named("pid", &raw(record.pid)),
                named("status", &raw(record.status))
            )
        }
        "worker" => format!("worker {} starts", record.worker.as_deref().unwrap_or("?")),
        "front" => format!(
            "answered in front{}: {}",
            record.channel.as_deref().map(|channel| format!(" on {channel}")).unwrap_or_default(),
            raw(record.counts)
        ),
        "thaw" => format!(
            "filesystems were thawed{}{}",
            named("because", why),
            named("result", &raw(record.result))
        ),
        "loss" => format!("{} records could not be written", record.records.unwrap_or_default()),
        "rotated" => {
            format!("the file goes on under another name{}", named("this one becomes", &raw(record.to)))
        }
        "replaced" => format!("the log's file was removed or cut{}", named("because", why)),
        "closed" => format!(
            "the outcome of intent {} is not known{}",
            record.intent.map(|intent| intent.to_string()).unwrap_or_default(),
            named("because", why)
        ),
        other => format!("{other}{}", named("because", why)),
    };
    shortened(&text, LONGEST)
}

/// The policy's name.
fn policy(record: &Record<'_>) -> String {
    let Some(policy) = record.policy else { return String::new() };
    match serde_json::from_str::<Value>(policy.get()) {
        Ok(Value::Object(members)) => members.get("name").map(plain).unwrap_or_default(),
        Ok(other) => plain(&other),
        Err(_) => String::new(),
    }
}

fn plain_raw(value: &RawValue) -> String {
    serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(members: &str) -> String {
        let line = format!(
            "{{\"version\":1,\"sequence\":1,\"time\":\"2026-11-26T10:00:00Z\",\"kind\":\"request\",{members}}}"
        );
        let record = Record::parse(line.as_bytes()).unwrap();
        subject(&record)
    }

    #[test]
    fn a_subject_is_what_a_request_is_about() {
        assert_eq!(about(r#""arguments":{"mode":null,"path":"/etc/hostname"}"#), "/etc/hostname");
        assert_eq!(about(r#""arguments":{"path":"/bin/sh","arg":["-c","id; ls"]}"#), "/bin/sh -c \"id; ls\"");
        assert_eq!(about(r#""arguments":{"handle":7,"count":10},"file":"/etc/x""#), "/etc/x");
        assert_eq!(about(r#""arguments":{"mode":"powerdown"}"#), "powerdown");
        assert_eq!(
            about(r#""arguments":{"vcpus":[{"logical-id":1,"online":true}],"x":null}"#),
            r#"{"vcpus":[{"logical-id":1,"online":true}]}"#
        );
        assert_eq!(about(r#""arguments":{}"#), "");
        assert_eq!(about(r#""omitted":20000"#), "");
    }

    #[test]
    fn a_subject_that_is_too_long_or_too_deep_is_cut() {
        assert_eq!(
            about(&format!("\"arguments\":{{\"path\":\"{}\"}}", "x".repeat(5000))).chars().count(),
            LONGEST
        );
        let deep = format!("\"arguments\":{}1{}", "[".repeat(3000), "]".repeat(3000));
        assert_eq!(about(&deep).chars().count(), LONGEST);
    }
}
