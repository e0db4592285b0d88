//! Recorded conversations that are tests.
//!
//! A transcript is one story. Its first lines are comments (`#`), among them directives:
//!
//! ```text
//! # @agent qga                what is spoken: qga, phoenix, or qga,phoenix
//! # @policy observe           a preset; qemu-ga if not said
//! # @original                 qemu-ga itself must answer the same (run where it is installed)
//! # @root                     needs root
//! # @namespace                needs a network namespace of its own (root), with the veth pair v0 and v1
//! ```
//!
//! Then come `>` lines, sent as they are with `\n \r \t \\ \xHH` as escapes; `<` lines, each one line that must come
//! back; `<?` lines, of which the order among their neighbours is free; `(nothing)`, where no line may come;
//! `$` lines, shell commands run in the agent's directory, of which `DIR` is the path in all lines.
//! In expected JSON, the order of members means nothing and the string `"${_}"` stands for any value; `"${name}"` does,
//! too, and `${name}` in later lines is what it was; `"base64:TEXT"` stands for the base64 of TEXT.
//!
//! `UPDATE_TRANSCRIPTS=1` writes what really comes back into the file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use serde_json::Value;

use crate::agent::{Agent, Host};

/// How long a line that may not come is waited for.
const SILENCE: Duration = Duration::from_millis(150);

/// One transcript.
pub struct Transcript {
    lines: Vec<String>,
    directives: HashMap<String, String>,
}

impl Transcript {
    /// Reads one.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(path: &Path) -> Self {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let directives = lines
            .iter()
            .filter_map(|line| line.strip_prefix("# @"))
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Transcript { lines, directives }
    }

    /// The value of a directive.
    pub fn directive(&self, name: &str) -> Option<&str> {
        self.directives.get(name).map(String::as_str)
    }

    /// Plays it to an agent; what comes back must be what is written.
    ///
    /// # Errors
    /// A text that shows the first difference, with its line.
    pub fn play(&self, agent: &Agent) -> Result<(), String> {
        let mut player = Player::new(agent);
        for (number, line) in self.lines.iter().enumerate() {
            player.line(line).map_err(|what| format!("line {}: {what}", number + 1))?;
        }
        player.end()
    }

    /// Plays it and returns its text with the lines that really came back.
    ///
    /// # Panics
    /// If the agent closes the channel.
    pub fn rewritten(&self, agent: &Agent) -> String {
        let mut host = agent.connect();
        let mut player = Player::new(agent);
        let mut text = String::new();
        for line in &self.lines {
            match line.split_at_checked(2) {
                Some(("< " | "<?", _)) => {
                    let came = escaped(&host.line()).replace(player.directory.as_str(), "DIR");
                    let _ = writeln!(text, "< {came}");
                }
                Some(("> ", sent)) => {
                    host.send(unescaped(&player.filled(sent)));
                    let _ = writeln!(text, "{line}");
                }
                Some(("$ ", _)) => {
                    player.line(line).expect("a command succeeds");
                    let _ = writeln!(text, "{line}");
                }
                _ => {
                    let _ = writeln!(text, "{line}");
                }
            }
        }
        text
    }
}

struct Player {
    host: Host,
    directory: String,
    variables: HashMap<String, Value>,
    /// Expected lines whose order is free.
    any_order: Vec<String>,
}

impl Player {
    fn new(agent: &Agent) -> Self {
        let directory = agent.directory.path().display().to_string();
        Player { host: agent.connect(), directory, variables: HashMap::new(), any_order: Vec::new() }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if !line.starts_with("<?") {
            self.end_of_any_order()?;
        }
        match line.split_at_checked(2) {
            Some(("> ", sent)) => self.host.send(unescaped(&self.filled(sent))),
            Some(("< ", expected)) => {
                let came = self.host.line_within(Duration::from_secs(10)).ok_or("no line came")?;
                self.compare(expected, &came)?;
            }
            Some(("<?", expected)) => self.any_order.push(expected.trim_start().to_owned()),
            Some(("$ ", command)) => self.shell(command)?,
            _ if line == "(nothing)" => {
                if let Some(came) = self.host.line_within(SILENCE) {
                    return Err(format!("nothing was to come, but: {}", escaped(&came)));
                }
            }
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => return Err(format!("not a line of a transcript: {line}")),
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), String> {
        self.end_of_any_order()?;
        match self.host.line_within(SILENCE) {
            Some(came) => Err(format!("a line too many: {}", escaped(&came))),
            None => Ok(()),
        }
    }

    fn end_of_any_order(&mut self) -> Result<(), String> {
        let mut expected = std::mem::take(&mut self.any_order);
        while !expected.is_empty() {
            let came = self.host.line_within(Duration::from_secs(10)).ok_or("a line is missing")?;
            let fits = expected.iter().position(|line| self.compare(line, &came).is_ok());
            let fits = fits.ok_or_else(|| format!("unexpected: {}", escaped(&came)))?;
            expected.remove(fits);
        }
        Ok(())
    }

    fn shell(&self, command: &str) -> Result<(), String> {
        let mut shell = Command::new("sh");
        let output = shell.arg("-ec").arg(self.filled(command)).current_dir(&self.directory).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    fn filled(&self, text: &str) -> String {
        let mut text = text.replace("DIR", &self.directory);
        for (name, value) in &self.variables {
            text = text.replace(&format!("${{{name}}}"), &value.to_string());
        }
        text
    }

    fn compare(&mut self, expected: &str, came: &[u8]) -> Result<(), String> {
        let filled = expected.replace("DIR", &self.directory);
        let wanted = unescaped(&filled);
        let differs = || format!("\n  expected {filled}\n  came     {}", escaped(came));
        // The sentinel is part of the line, what follows it is JSON.
        if wanted.starts_with(b"\xff") != came.starts_with(b"\xff") {
            return Err(differs());
        }
        let value =
            |bytes: &[u8]| serde_json::from_slice::<Value>(bytes.strip_prefix(b"\xff").unwrap_or(bytes)).ok();
        match (value(&wanted), value(came)) {
            (Some(wanted), Some(came)) => {
                if self.fits(&wanted, &came) {
                    Ok(())
                } else {
                    Err(differs())
                }
            }
            _ if wanted == came => Ok(()),
            _ => Err(differs()),
        }
    }

    fn fits(&mut self, wanted: &Value, came: &Value) -> bool {
        match (wanted, came) {
            (Value::String(text), came) if text.starts_with("${") && text.ends_with('}') => {
                let name = text.trim_start_matches("${").trim_end_matches('}');
                if name == "_" {
                    return true;
                }
                let known = self.variables.entry(name.to_owned()).or_insert_with(|| came.clone());
                known == came
            }
            (Value::String(text), Value::String(came)) if text.starts_with("base64:") => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(came).unwrap_or_default();
                text.trim_start_matches("base64:").as_bytes() == decoded
            }
            (Value::Object(wanted), Value::Object(came)) => {
                wanted.len() == came.len()
                    && wanted
                        .iter()
                        .all(|(name, value)| came.get(name).is_some_and(|other| self.fits(value, other)))
            }
            (Value::Array(wanted), Value::Array(came)) => {
                wanted.len() == came.len()
                    && wanted.iter().zip(came).all(|(value, other)| self.fits(value, other))
            }
            (Value::Number(wanted), Value::Number(came)) => {
                wanted == came || wanted.as_f64() == came.as_f64()
            }
            _ => wanted == came,
        }
    }
}

/// The bytes that a line of a transcript stands for.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'n') => bytes.push(b'\n'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'x') => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.push(
                    u8::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("\\x{digits} is no byte")),
                );
            }
            Some(other) => bytes.push(other),
            None => panic!("a backslash at the end of {text}"),
        }
    }
    bytes
}

/// A line as a transcript shows it.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}
