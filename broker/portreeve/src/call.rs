//! `portreeve call`: one question to an agent, from the host's side, for people and scripts.
//!
//! The guest is not trusted: lines are bounded, waiting has an end, and nothing that could move a cursor or change a colour
//! reaches a terminal unescaped.

mod connection;
mod show;

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::say::raw;
use crate::subcommands::{Call, Spoken};
use crate::terminal;
use connection::Connection;

const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const NO_ANSWER: u8 = 3;

/// Commands that answer only when they fail (qga/qapi-schema.json, `success-response: false`).
const SILENT: [&str; 4] =
    ["guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"];

/// Longest line taken from standard input in `--raw`.
const LONGEST_LINE: usize = 128 * 1024 * 1024;

/// Why there is no result.
enum Trouble {
    Usage(String),
    NoAnswer(String),
    /// The agent's error and what to do about it.
    Refused(String),
}

pub(crate) fn main(call: &Call) -> ExitCode {
    let done = if call.raw { pass_lines(call) } else { ask(call) };
    let (status, text) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Trouble::Refused(text)) => (REFUSED, text),
        Err(Trouble::Usage(text)) => (USAGE, text),
        Err(Trouble::NoAnswer(text)) => (NO_ANSWER, text),
    };
    raw(format_args!("portreeve call: {text}"));
    ExitCode::from(status)
}

fn ask(call: &Call) -> Result<(), Trouble> {
    let command = call.command.as_deref().unwrap_or_default();
    let arguments = arguments(&call.arguments).map_err(Trouble::Usage)?;
    let mut connection = connect(call)?;
    let answer = match call.dialect {
        Spoken::Qga => ask_qga(&mut connection, call, command, arguments)?,
        Spoken::Phoenix => ask_phoenix(&mut connection, call, command, arguments)?,
    };
    let Some(mut answer) = answer else { return Ok(()) };
    if let Some(error) = answer.get("error") {
        return Err(Trouble::Refused(refusal(call, error)));
    }
    let Some(mut result) = answer.get_mut("return").map(Value::take) else {
        return Err(Trouble::NoAnswer(format!(
            "{} answers neither with a result nor with an error",
            call.socket
        )));
    };
    if call.decode {
        show::decode(&mut result);
    }
    let out = io::stdout();
    let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    crate::say::out(show::pretty(&result, coloured));
    Ok(())
}

/// The answer; none where the command has none when it succeeds.
fn ask_qga(
    connection: &mut Connection,
    call: &Call,
    command: &str,
    arguments: Map<String, Value>,
) -> Result<Option<Value>, Trouble> {
    // 0xFF ends whatever an earlier client has left half written; its error line comes before our 0xFF.
    let id = RandomState::new().hash_one(command) >> 33;
    let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
    let mut request = vec![0xff];
    request.extend(sync.to_string().into_bytes());
    request.push(b'\n');
    send(connection, call, &request)?;
    loop {
        let line = receive(connection, call, "guest-sync-delimited")?;
        // What an earlier client has left unread comes first.
        let answer =
            line.iter().rposition(|byte| *byte == 0xff).and_then(|at| line.get(at.saturating_add(1)..));
        let answer = answer.and_then(|answer| serde_json::from_slice::<Value>(answer).ok());
        if answer.is_some_and(|answer| answer.get("return").and_then(Value::as_u64) == Some(id)) {
            break;
        }
    }
    let mut request = json!({"execute": command});
    if !arguments.is_empty() {
        request = json!({"execute": command, "arguments": arguments});
    }
    send(connection, call, format!("{request}\n").as_bytes())?;
    if SILENT.contains(&command) {
        return match connection.line() {
            Ok(line) => parse(call, &line).map(Some),
            Err(_) => {
                raw(format_args!("{command} was sent; it has no answer when it succeeds"));
                Ok(None)
            }
        };
    }
    let line = receive(connection, call, command)?;
    parse(call, &line).map(Some)
}

fn ask_phoenix(
    connection: &mut Connection,
    call: &Call,
    command: &str,
    arguments: Map<String, Value>,
) -> Result<Option<Value>, Trouble> {
    let tag = format!("portreeve-{:016x}", RandomState::new().hash_one(command));
    let request = json!({"execute": command, "arguments": arguments, "tag": tag});
    send(connection, call, format!("{request}\n").as_bytes())?;
    loop {
        let line = receive(connection, call, command)?;
        let answer = serde_json::from_slice::<Value>(&line).ok();
        if let Some(answer) = answer.filter(|answer| answer.get("tag").and_then(Value::as_str) == Some(&tag))
        {
            return Ok(Some(answer));
        }
    }
}

/// `--raw`: lines to the agent, lines back, one for one.
fn pass_lines(call: &Call) -> Result<(), Trouble> {
    let mut connection = connect(call)?;
    let mut input = io::stdin().lock();
    let mut out = io::stdout();
    let terminal = out.is_terminal();
    loop {
        let mut line = Vec::new();
        let bounded = io::Read::take(&mut input, LONGEST_LINE as u64);
        let length = io::BufReader::with_capacity(1, bounded).read_until(b'\n', &mut line);
        match length {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(Trouble::Usage(format!("cannot read standard input: {error}"))),
        }
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        send(&mut connection, call, &line)?;
        let mut answer = receive(&mut connection, call, "the line")?;
        if terminal {
            answer = terminal::harmless(&String::from_utf8_lossy(&answer)).into_bytes();
        }
        answer.push(b'\n');
        if out.write_all(&answer).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
    }
}

fn connect(call: &Call) -> Result<Connection, Trouble> {
    Connection::open(&call.socket, Duration::from_secs(call.timeout.into())).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; is the machine running, and is this the host's end of its channel?",
            io::ErrorKind::ConnectionRefused => "; nobody listens there: is the machine running?",
            io::ErrorKind::PermissionDenied => "; run it as the user who owns the socket",
            io::ErrorKind::InvalidInput => return Trouble::Usage(error.to_string()),
            _ => "",
        };
        Trouble::NoAnswer(format!("cannot connect to {}: {error}{hint}", call.socket))
    })
}

fn send(connection: &mut Connection, call: &Call, bytes: &[u8]) -> Result<(), Trouble> {
    connection.send(bytes).map_err(|error| {
        Trouble::NoAnswer(format!("cannot send to {}: {}", call.socket, reason(call, &error)))
    })
}

fn receive(connection: &mut Connection, call: &Call, to: &str) -> Result<Vec<u8>, Trouble> {
    connection.line().map_err(|error| {
        Trouble::NoAnswer(format!("no answer to {to} from {}: {}", call.socket, reason(call, &error)))
    })
}

fn reason(call: &Call, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!(
            "nothing came for {} s; is the agent running in the guest, and does no other client hold the socket? \
             --timeout waits longer",
            call.timeout
        ),
        io::ErrorKind::UnexpectedEof => "the other end closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

fn parse(call: &Call, line: &[u8]) -> Result<Value, Trouble> {
    serde_json::from_slice(line).map_err(|error| {
        let shown: String = terminal::harmless(&String::from_utf8_lossy(line)).chars().take(200).collect();
        Trouble::NoAnswer(format!(
            "{} answers with something that is no JSON ({error}): {shown}",
            call.socket
        ))
    })
}

/// The agent's error for people, with a next step where there is one.
fn refusal(call: &Call, error: &Value) -> String {
    let text =
        |member: &str| error.get(member).and_then(Value::as_str).map(terminal::harmless).unwrap_or_default();
    if call.dialect == Spoken::Phoenix {
        let why =
            error.get("bufb64").and_then(Value::as_str).and_then(show::text_of_base64).unwrap_or_default();
        let code = error.get("code").and_then(Value::as_i64).unwrap_or(-1);
        return format!("the agent answers: {} (code {code})", terminal::harmless(&why));
    }
    let (class, why) = (text("class"), text("desc"));
    let hint = if why.contains("has been disabled") {
        format!("\nThe agent's policy refuses it. What it serves: portreeve call {} guest-info", call.socket)
    } else if class == "CommandNotFound" {
        format!("\nThis agent has no such command. What it has: portreeve call {} guest-info", call.socket)
    } else {
        String::new()
    };
    format!("the agent answers: {class}: {why}{hint}")
}

/// One JSON object, or any number of KEY=VALUE.
fn arguments(given: &[String]) -> Result<Map<String, Value>, String> {
    if let [only] = given
        && only.trim_start().starts_with('{')
    {
        return serde_json::from_str(only)
            .map_err(|error| format!("the arguments are no JSON object: {error}"));
    }
    let mut arguments = Map::new();
    for argument in given {
        let (key, value) = argument.split_once('=').ok_or_else(|| {
            format!("\"{argument}\" is neither KEY=VALUE nor a JSON object, such as path=/etc/hostname")
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if arguments.insert(key.to_owned(), value).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Value, String> {
        arguments(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).map(Value::Object)
    }

    #[test]
    fn a_value_is_json_if_it_parses_and_a_text_if_not() {
        assert_eq!(
            read(&[
                "path=/bin/ls",
                "arg=[\"-l\"]",
                "handle=1000",
                "capture-output=true",
                "empty=",
                "equal=a=b"
            ]),
            Ok(
                json!({"path": "/bin/ls", "arg": ["-l"], "handle": 1000, "capture-output": true, "empty": "", "equal": "a=b"})
            )
        );
    }

    #[test]
    fn one_object_is_all_arguments() {
        assert_eq!(read(&["{\"a\": {\"b\": 1}}"]), Ok(json!({"a": {"b": 1}})));
        assert!(read(&["{\"a\""]).unwrap_err().starts_with("the arguments are no JSON object: "));
    }

    #[test]
    fn what_is_neither_is_a_usage_error() {
        assert_eq!(
            read(&["x"]),
            Err("\"x\" is neither KEY=VALUE nor a JSON object, such as path=/etc/hostname".to_owned())
        );
        assert_eq!(read(&["a=1", "a=2"]), Err("a is given twice".to_owned()));
    }
}
