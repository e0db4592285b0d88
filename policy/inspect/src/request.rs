//! Requests as people and records write them.
//!
//! Four forms: a line of QEMU's protocol, a line of Phoenix's, `COMMAND KEY=VALUE …` as `portreeve call` takes it, and a record of the
//! audit log. All of them are decoded by the frontend's own code, so that what is explained is what the agent would have understood.

use compile::closest;
use frontend::value::{Member, Value};
use frontend::{phoenix, qga};
use proto::{Dialect, Request};
use serde_json::{Map, Value as Json};

/// Why a text is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is neither of the forms.
    #[error("{0}")]
    Form(String),
    /// No dialect has such a command.
    #[error("there is no command \"{name}\"{}", meant.as_ref().map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default())]
    Command {
        /// What was written.
        name: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// The agent would answer with this error, without asking the policy.
    #[error("{command} does not take these arguments; the agent answers: {error}")]
    Arguments {
        /// Of which command.
        command: String,
        /// In the dialect's words.
        error: String,
    },
    /// A record that does not say all that was asked.
    #[error("it cannot be replayed: {0}")]
    Incomplete(String),
}

/// Reads a request: JSON if it begins with `{`, else `COMMAND KEY=VALUE …`.
///
/// # Errors
/// [`Unread`].
pub fn read(text: &str) -> Result<Request, Unread> {
    let text = text.trim();
    if text.starts_with('{') { of_line(text, None) } else { of_words(&words(text)) }
}

/// Reads `COMMAND KEY=VALUE …`, already taken apart. A value is JSON if it parses, else a text; one object is all arguments.
///
/// # Errors
/// [`Unread`].
pub fn of_words(words: &[String]) -> Result<Request, Unread> {
    let Some((name, given)) = words.split_first() else {
        return Err(Unread::Form(
            "a request is {\"execute\":\"COMMAND\",\"arguments\":{…}} or COMMAND KEY=VALUE …".to_owned(),
        ));
    };
    let arguments = match given {
        [object] if object.starts_with('{') => serde_json::from_str(object)
            .map_err(|error| Unread::Form(format!("the arguments are no JSON object: {error}")))?,
        given => {
            let mut arguments = Map::new();
            for argument in given {
                let (key, value) = argument.split_once('=').ok_or_else(|| {
                    let form = "is neither KEY=VALUE nor a JSON object, such as path=/etc/hostname";
                    Unread::Form(format!("\"{argument}\" {form}"))
                })?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| Json::from(value));
                if arguments.insert(key.to_owned(), value).is_some() {
                    return Err(Unread::Form(format!("{key} is given twice")));
                }
            }
            arguments
        }
    };
    decode(dialect_of(name, None)?, name, members(arguments))
}

/// Words separated by blanks; `'…'` holds blanks together, as in a shell.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut quoted) = (String::new(), false, false);
    for letter in text.chars() {
        match letter {
            '\'' => (quoted, begun) = (!quoted, true),
            blank if blank.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            letter => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Reads a line of a protocol. Which one is said by `dialect`, a `tag`, or the command's name.
pub(crate) fn of_line(text: &str, dialect: Option<Dialect>) -> Result<Request, Unread> {
    let form = |what: String| Unread::Form(format!("not a request: {what}"));
    let mut reader = qga::Reader::default();
    // A value that is no object ends at the end of its line.
    let (_, event) = reader.read(format!("{text}\n").as_bytes());
    let mut object = match event {
        Some(qga::Event::Value(Value::Object(object), _)) => object.into_vec(),
        Some(qga::Event::Value(..)) => return Err(form("it is no JSON object".to_owned())),
        Some(qga::Event::Error(why)) => return Err(form(String::from_utf8_lossy(&why).into_owned())),
        None => return Err(form("the JSON object has no end".to_owned())),
    };
    let has = |members: &[Member], name: &[u8]| members.iter().any(|member| *member.name == *name);
    let name =
        object.iter().find(|member| *member.name == *b"execute").and_then(|member| member.value.text());
    let Some(name) = name.map(|name| String::from_utf8_lossy(name).into_owned()) else {
        return Err(form("it has no \"execute\" with the name of a command".to_owned()));
    };
    let phoenix = has(&object, b"tag").then_some(Dialect::Phoenix);
    let dialect = dialect_of(&name, dialect.or(phoenix))?;
    if dialect == Dialect::Phoenix {
        let asked = phoenix::read(text.as_bytes()).map_err(form)?;
        return decode(dialect, &name, asked.arguments);
    }
    let arguments = object.iter_mut().find(|member| *member.name == *b"arguments");
    let members = match arguments.map(|member| std::mem::take(&mut member.value)) {
        None => Vec::new(),
        Some(Value::Object(members)) => members.into_vec(),
        Some(_) => return Err(form("its \"arguments\" are no object".to_owned())),
    };
    decode(dialect, &name, members)
}

/// Reads the request that a record is about.
pub(crate) fn of_record(dialect: &str, command: &str, arguments: Json) -> Result<Request, Unread> {
    let incomplete = |why: &str| Err(Unread::Incomplete(why.to_owned()));
    let dialect = match dialect {
        "qga" => Dialect::Qga,
        "phoenix" => Dialect::Phoenix,
        other => return incomplete(&format!("\"{other}\" is no dialect")),
    };
    dialect_of(command, Some(dialect))?;
    let Json::Object(mut arguments) = arguments else {
        return incomplete("it does not say what was asked");
    };
    if let (1, Some(name)) = (arguments.len(), arguments.keys().next()) {
        match name.as_str() {
            "sha256" => return incomplete("a rule asked for a digest instead of the arguments"),
            "length" => return incomplete("its arguments were too long to be recorded"),
            _ => {}
        }
    }
    if arguments.values().any(is_cut) {
        return incomplete("a text in it was cut because it is longer than 1024 bytes");
    }
    if arguments.values().any(is_lossy) {
        return incomplete("a text in it has bytes that are no UTF-8, and a record does not say which");
    }
    // What was not there is recorded as null, bulk data by its length.
    let mut payload = None;
    arguments.retain(|_, value| !value.is_null());
    for value in arguments.values_mut() {
        if let Some(length) = value.get("bytes").and_then(Json::as_u64) {
            payload = Some(length);
            *value = Json::from("");
        }
    }
    let mut request = decode(dialect, command, members(arguments))?;
    if let (Some(length), Some(payload)) = (payload, request.payload_mut()) {
        payload.length = length;
    }
    Ok(request)
}

/// As [`proto::Text`] is recorded when it is long.
fn is_cut(value: &Json) -> bool {
    const SHOWN: usize = 1024;
    match value {
        Json::String(text) => text
            .strip_suffix(" bytes)")
            .and_then(|text| text.rsplit_once("… ("))
            .is_some_and(|(beginning, length)| beginning.len() >= SHOWN && length.parse::<u64>().is_ok()),
        Json::Array(values) => values.iter().any(is_cut),
        _ => false,
    }
}

fn is_lossy(value: &Json) -> bool {
    match value {
        Json::String(text) => text.contains('\u{fffd}'),
        Json::Array(values) => values.iter().any(is_lossy),
        _ => false,
    }
}

fn dialect_of(name: &str, wanted: Option<Dialect>) -> Result<Dialect, Unread> {
    let all = [Dialect::Qga, Dialect::Phoenix];
    let found = all
        .into_iter()
        .filter(|dialect| wanted.is_none_or(|wanted| wanted == *dialect))
        .find(|dialect| proto::find(*dialect, name).is_some());
    found.ok_or_else(|| {
        let known = proto::commands().flat_map(|command| command.names.iter().copied());
        Unread::Command { name: name.to_owned(), meant: closest(name, known).map(str::to_owned) }
    })
}

fn decode(dialect: Dialect, name: &str, mut members: Vec<Member>) -> Result<Request, Unread> {
    let decoded = match dialect {
        Dialect::Qga => {
            qga::arguments::decode(name, &mut members).map(|done| done.map_err(|why| why.to_string()))
        }
        Dialect::Phoenix => {
            phoenix::arguments::decode(name, &mut members).map(|done| done.map_err(|why| why.to_string()))
        }
    };
    match decoded {
        Some(Ok(request)) => Ok(request),
        Some(Err(error)) => Err(Unread::Arguments { command: name.to_owned(), error }),
        None => Err(Unread::Command { name: name.to_owned(), meant: None }),
    }
}

fn members(object: Map<String, Json>) -> Vec<Member> {
    let member =
        |(name, value): (String, Json)| Member { name: name.into_bytes().into(), value: self::value(value) };
    object.into_iter().map(member).collect()
}

fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::Uint(number),
            (None, None) => Value::Double(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::Text(text.into_bytes().into()),
        Json::Array(items) => Value::List(items.into_iter().map(value).collect()),
        Json::Object(object) => Value::Object(members(object).into()),
    }
}

/// The request as a line of its protocol: to be pasted, not to be sent. Secrets and bulk data are not in it.
pub fn to_line(request: &Request) -> String {
    let command = request.command();
    let mut arguments = match serde_json::to_value(request) {
        Ok(Json::Object(arguments)) => arguments,
        _ => Map::new(),
    };
    arguments.retain(|_, value| !value.is_null());
    for value in arguments.values_mut() {
        if value.get("bytes").is_some() {
            *value = Json::from("");
        }
    }
    let mut line = serde_json::json!({ "execute": command.name() });
    if let (false, Some(line)) = (arguments.is_empty(), line.as_object_mut()) {
        line.insert("arguments".to_owned(), arguments.into());
    }
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{exec, file};

    fn open(path: &str, mode: Option<&str>) -> Request {
        file::Request::Open(file::Open { path: path.into(), mode: mode.map(str::to_owned) }).into()
    }

    #[test]
    fn a_request_is_read_in_each_of_its_forms() {
        let wanted = open("/etc/hostname", Some("r"));
        for text in [
            r#"{"execute":"guest-file-open","arguments":{"path":"/etc/hostname","mode":"r"}}"#,
            r#"{'execute': 'guest-file-open', 'arguments': {'path': '/etc/hostname', 'mode': 'r'}, 'id': 7}"#,
            "guest-file-open path=/etc/hostname mode=r",
            "guest-file-open {\"path\":\"/etc/hostname\",\"mode\":\"r\"}",
        ] {
            assert_eq!(read(text), Ok(wanted.clone()), "{text}");
        }
        assert_eq!(read("file-stat path='/a b'").unwrap().command().name(), "file-stat");
        let tagged = r#"{"execute":"ping","tag":"t"}"#;
        assert_eq!(read(tagged).unwrap().command().dialect, Dialect::Phoenix);
    }

    #[test]
    fn a_program_is_read_with_its_arguments() {
        let request = read("guest-exec path=/bin/ls arg='[\"-l\", \"a b\"]' capture-output=true").unwrap();
        let Request::Exec(exec::Request::Exec(exec)) = request else { panic!("{request:?}") };
        assert_eq!(exec.arg, Some(vec!["-l".into(), "a b".into()]));
        assert_eq!(exec.capture_output, exec::Capture::Separated);
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (text, why) in [
            ("", "a request is {\"execute\":\"COMMAND\",\"arguments\":{…}} or COMMAND KEY=VALUE …"),
            ("guest-exce", "there is no command \"guest-exce\"; did you mean \"guest-exec\"?"),
            (
                "guest-file-open",
                "guest-file-open does not take these arguments; the agent answers: Parameter 'path' is missing",
            ),
            (
                "guest-ping x=1",
                "guest-ping does not take these arguments; the agent answers: Parameter 'x' is unexpected",
            ),
            ("guest-ping x", "\"x\" is neither KEY=VALUE nor a JSON object, such as path=/etc/hostname"),
            ("{\"execute\":\"guest-ping\"", "not a request: the JSON object has no end"),
            ("{}", "not a request: it has no \"execute\" with the name of a command"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), why, "{text}");
        }
    }

    #[test]
    fn a_record_that_leaves_something_out_is_not_replayed() {
        let record =
            |arguments: Json| of_record("qga", "guest-file-open", arguments).unwrap_err().to_string();
        let digest = record(serde_json::json!({ "sha256": "00" }));
        assert_eq!(digest, "it cannot be replayed: a rule asked for a digest instead of the arguments");
        let long = serde_json::to_value(open(&"x".repeat(2000), None)).unwrap();
        assert_eq!(
            record(long),
            "it cannot be replayed: a text in it was cut because it is longer than 1024 bytes"
        );
        assert!(record(serde_json::json!({ "path": "/a\u{fffd}" })).contains("no UTF-8"));
        // Whoever asks for a name that looks like it is not cut.
        assert!(of_record("qga", "guest-file-open", serde_json::json!({ "path": "x… (9 bytes)" })).is_ok());
    }
}
