//! Talking to a guest: its agent's port, QEMU's monitor, its shell.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// For everything that waits: what a busy machine needs ten times as long for does not fail.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// A socket that carries lines.
#[derive(Debug)]
pub(crate) struct Lines {
    socket: UnixStream,
    pending: Vec<u8>,
}

impl Lines {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let until = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => return Ok(Lines { socket, pending: Vec::new() }),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    fn fill(&mut self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 65536];
        let length = match self.socket.read(&mut buffer) {
            // Whoever looks at a story with strace(1) or a debugger does not end it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            read => read?,
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
        Ok(())
    }

    /// The next line, without its end.
    fn line(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let until = Instant::now() + limit;
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            self.fill(until)?;
        }
    }

    fn value(&mut self, limit: Duration) -> io::Result<Value> {
        let line = self.line(limit)?;
        let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        serde_json::from_slice(&text)
            .map_err(|_| io::Error::other(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// The agent's own words for what went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentError {
    /// `CommandNotFound` or `GenericError`.
    pub class: String,
    /// The text.
    pub desc: String,
}

impl fmt::Display for AgentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.class, self.desc)
    }
}

/// The host's end of the agent's port.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    lines: Lines,
    limit: Duration,
}

impl Agent {
    pub(crate) fn connect(path: PathBuf) -> io::Result<Self> {
        let lines = Lines::connect(&path)?;
        Ok(Agent { path, lines, limit: LIMIT })
    }

    /// Over vsock: the path is that of its back end, which is told the port first and closes if nobody listens there.
    pub(crate) fn connect_to_port(path: PathBuf, port: u32) -> io::Result<Self> {
        let until = Instant::now() + LIMIT;
        loop {
            let mut lines = Lines::connect(&path)?;
            lines.send(format!("CONNECT {port}\n").as_bytes())?;
            match lines.line(LIMIT) {
                Ok(line) if line.starts_with(b"OK ") => return Ok(Agent { path, lines, limit: LIMIT }),
                Ok(line) => return Err(io::Error::other(String::from_utf8_lossy(&line).into_owned())),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Asks in QEMU's dialect and waits for the answer. Arguments may be `()` for none.
    ///
    /// # Errors
    /// The agent's error.
    ///
    /// # Panics
    /// If there is no answer within five minutes, or none that can be read.
    pub fn call(&mut self, command: &str, arguments: impl Into<Value>) -> Result<Value, AgentError> {
        self.send(command, arguments);
        self.answer(command)
    }

    /// Asks only: for what answers nothing on success.
    ///
    /// # Panics
    /// If the port is closed.
    pub fn send(&mut self, command: &str, arguments: impl Into<Value>) {
        let request = match arguments.into() {
            Value::Null => json!({ "execute": command }),
            arguments => json!({ "execute": command, "arguments": arguments }),
        };
        self.raw(format!("{request}\n").as_bytes());
    }

    /// Bytes as they are.
    ///
    /// # Panics
    /// If the port is closed.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.lines.send(bytes).unwrap_or_else(|error| panic!("the agent's port: {error}"));
    }

    /// The answer to what was asked before.
    ///
    /// # Errors
    /// The agent's error.
    ///
    /// # Panics
    /// As [`Self::call`].
    pub fn answer(&mut self, what: &str) -> Result<Value, AgentError> {
        let mut answer =
            self.lines.value(self.limit).unwrap_or_else(|error| panic!("no answer to {what}: {error}"));
        if let Some(error) = answer.get("error") {
            let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(AgentError { class: text("class"), desc: text("desc") });
        }
        Ok(answer.get_mut("return").map(Value::take).unwrap_or(answer))
    }

    /// A line of whatever dialect, if one comes within `limit`.
    pub fn line_within(&mut self, limit: Duration) -> Option<Value> {
        self.lines.value(limit).ok()
    }

    /// Waits until the agent answers, whatever else is on its way.
    ///
    /// # Panics
    /// If it does not within five minutes.
    pub fn sync(&mut self) {
        assert!(self.answers_within(LIMIT), "the agent does not answer a sync within five minutes");
    }

    /// Whether it answers a sync within `limit`, whatever else is on its way.
    pub fn answers_within(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut id = 1_000_000;
        while Instant::now() < until {
            id += 1;
            let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
            self.raw(format!("{request}\n").as_bytes());
            let soon = Instant::now() + Duration::from_secs(3);
            while Instant::now() < soon {
                match self.lines.value(soon.saturating_duration_since(Instant::now())) {
                    Ok(answer) if answer.get("return") == Some(&id.into()) => return true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.reopen(),
                    Err(_) => {}
                }
            }
        }
        false
    }

    /// Closes the host's end: the guest sees that nobody is there.
    pub fn close(&mut self) {
        // A socket whose other end nobody has stands in its place.
        if let Ok((alone, _)) = UnixStream::pair() {
            self.lines = Lines { socket: alone, pending: Vec::new() };
        }
    }

    /// Opens it again.
    ///
    /// # Panics
    /// If QEMU has gone.
    pub fn open(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
        self.reopen();
    }

    /// Closes the host's end and opens it again.
    ///
    /// # Panics
    /// If QEMU has gone.
    pub fn reopen(&mut self) {
        self.lines = Lines::connect(&self.path).unwrap_or_else(|error| panic!("the agent's port: {error}"));
    }
}

/// QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines,
    events: Vec<Value>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let mut qmp = Qmp { lines: Lines::connect(path)?, events: Vec::new() };
        qmp.lines.value(LIMIT)?;
        qmp.call("qmp_capabilities", ()).map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Asks QEMU.
    ///
    /// # Errors
    /// QEMU's error, as a text.
    pub fn call(&mut self, command: &str, arguments: impl Into<Value>) -> Result<Value, String> {
        let request = match arguments.into() {
            Value::Null => json!({ "execute": command }),
            arguments => json!({ "execute": command, "arguments": arguments }),
        };
        self.lines.send(format!("{request}\n").as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let mut answer = self.lines.value(LIMIT).map_err(|error| error.to_string())?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}"));
            } else {
                return Ok(answer.get_mut("return").map(Value::take).unwrap_or_default());
            }
        }
    }

    /// Asks for a `status` again and again until it is one of those waited for, and returns it.
    pub(crate) fn status_becomes(
        &mut self,
        command: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, String> {
        let until = Instant::now() + LIMIT;
        loop {
            let answer = self.call(command, ())?;
            let status = answer.get("status").and_then(Value::as_str).unwrap_or_default();
            if wanted(status) {
                return Ok(status.to_owned());
            }
            if Instant::now() > until {
                return Err(format!("{command} says {status:?} after five minutes"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an event and returns its data.
    ///
    /// # Panics
    /// If it does not come within five minutes.
    pub fn event(&mut self, name: &str) -> Value {
        let until = Instant::now() + LIMIT;
        loop {
            let found = self.events.iter().position(|event| event.get("event") == Some(&name.into()));
            if let Some(position) = found {
                return self.events.remove(position).get("data").cloned().unwrap_or_default();
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.value(left) {
                Ok(event) => self.events.push(event),
                Err(error) => panic!("no event {name}: {error}; there were {:?}", self.events),
            }
        }
    }
}

/// Whether it is what stands behind the output of a command.
fn is_mark(line: &str) -> bool {
    let number = line.strip_prefix('@').and_then(|rest| rest.split_once("@ ")).map(|(number, _)| number);
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A root shell in the guest.
#[derive(Debug)]
pub struct Shell {
    lines: Lines,
    number: u32,
}

impl Shell {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        Ok(Shell { lines: Lines::connect(path)?, number: 0 })
    }

    /// Runs a command; its status, and what it printed.
    ///
    /// # Errors
    /// It has not ended after `limit`, or the guest has gone.
    pub fn run(&mut self, command: &str, limit: Duration) -> io::Result<(i32, String)> {
        self.number += 1;
        // In two parts, so that a shell that shows its input does not show the mark.
        let mark = format!("@{}@", self.number);
        let line = format!("(\n{command}\n) </dev/null 2>&1; printf '\\n@%s@ %s\\n' {} $?\n", self.number);
        self.lines.send(line.as_bytes())?;
        let mut output: Vec<String> = Vec::new();
        loop {
            let line = self.lines.line(limit)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(status) = line.strip_prefix(&mark) {
                let text = output.join("\n").trim_end_matches('\n').to_owned();
                return Ok((status.trim().parse().unwrap_or(-1), text));
            }
            if is_mark(&line) {
                // The end of a command that was given up.
                output.clear();
                continue;
            }
            output.push(line);
        }
    }

    /// Whether a command succeeds within `limit`, tried again and again.
    pub fn becomes_true(&mut self, command: &str, limit: Duration) -> bool {
        /// A guest that reboots meanwhile never answers what it was asked before.
        const ONE_TRY: Duration = Duration::from_secs(15);
        let until = Instant::now() + limit;
        loop {
            if self.run(command, ONE_TRY).is_ok_and(|(status, _)| status == 0) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
