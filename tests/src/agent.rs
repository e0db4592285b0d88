//! One agent under test: started, talked to, ended.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::programs;

/// Longer than anything here takes; only a hang comes to it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent with a private directory. Ended when dropped.
pub struct Agent {
    child: Child,
    /// Private to this agent: socket, state, what tests put there. Also its working directory.
    pub directory: tempfile::TempDir,
    socket: PathBuf,
}

impl Agent {
    /// Starts `portreeve run` with one unix channel that speaks `dialects` (`"qga"`, `"phoenix"`, comma-separated)
    /// and a policy: a preset's name, or TOML rules.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub fn run(dialects: &str, policy: &str) -> Self {
        let directory = private_directory();
        let dialects: Vec<String> = dialects.split(',').map(|dialect| format!("\"{dialect}\"")).collect();
        let path = directory.path();
        let policy = if policy.contains('\n') {
            let file = path.join("policy.toml");
            std::fs::write(&file, policy).expect("the directory is ours");
            file.display().to_string()
        } else {
            policy.to_owned()
        };
        let configuration = format!(
            // What qemu-ga has and no more: transcripts are compared with it.
            "policy = \"{policy}\"\nextensions = false\n\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
             dialects = [{}]\n\n[state]\ndirectory = \"DIR/state\"\n\n[audit]\nsink = \"file\"\npath = \"DIR/audit.log\"\n",
            dialects.join(", "),
        );
        Self::configured(directory, &configuration)
    }

    /// Starts `portreeve run` with a configuration, in which `DIR` is the private directory. A channel must listen at
    /// `DIR/sock`.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub fn configured(directory: tempfile::TempDir, configuration: &str) -> Self {
        let command = run(programs::program("portreeve"), directory.path(), configuration);
        Self::start(command, directory)
    }

    /// Starts the agent once more in the directory of one that has ended, with its configuration.
    ///
    /// # Panics
    /// If it does not listen in time, or the other one still runs.
    pub fn start_again(&mut self) {
        assert!(!is_alive(self.pid()), "it still runs");
        let mut command = Command::new(programs::program("portreeve"));
        command.args(["run", "--config"]).arg(self.path("portreeve.toml"));
        self.child = spawn(&mut command, self.directory.path(), Stdio::null());
        self.wait_until_it_listens();
    }

    /// Starts portreeve under the name of qemu-ga, as the original's own unit test starts it.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub fn as_qemu_ga(options: &[&str]) -> Self {
        let mut command = Command::new(programs::program("portreeve"));
        command.arg0("qemu-ga");
        Self::start_qemu_ga(command, options)
    }

    /// Starts the original, if it is installed.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub fn original(options: &[&str]) -> Option<Self> {
        Some(Self::start_qemu_ga(Command::new(programs::qemu_ga()?), options))
    }

    fn start_qemu_ga(mut command: Command, options: &[&str]) -> Self {
        let directory = private_directory();
        command.args(["-m", "unix-listen", "-p"]).arg(directory.path().join("sock"));
        command.arg("-t").arg(directory.path()).args(options);
        Self::start(command, directory)
    }

    /// Starts `command`, which must listen at `sock` in `directory`.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub fn start(command: Command, directory: tempfile::TempDir) -> Self {
        let mut agent = Self::start_only(command, directory);
        agent.wait_until_it_listens();
        agent
    }

    /// Starts `command` and does not wait for anything.
    ///
    /// # Panics
    /// If it cannot be executed.
    pub fn start_only(command: Command, directory: tempfile::TempDir) -> Self {
        Self::start_with(command, directory, Stdio::null())
    }

    /// As [`Self::start_only`], with something on standard input.
    ///
    /// # Panics
    /// If it cannot be executed.
    pub fn start_with(mut command: Command, directory: tempfile::TempDir, input: Stdio) -> Self {
        let child = spawn(&mut command, directory.path(), input);
        let socket = directory.path().join("sock");
        Agent { child, directory, socket }
    }

    /// Waits until somebody can connect.
    ///
    /// # Panics
    /// If nobody can in time, or it ends.
    pub fn wait_until_it_listens(&mut self) {
        let begin = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            let ended = self.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "the agent ended with {ended:?}:\n{}", self.log());
            assert!(begin.elapsed() < PATIENCE, "the agent does not listen:\n{}", self.log());
            sleep(Duration::from_millis(2));
        }
    }

    /// Connects as a host does.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn connect(&self) -> Host {
        let stream = UnixStream::connect(&self.socket).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Host { stream, received: Vec::new(), taken: 0 }
    }

    /// The main process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the agent wrote to its standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// The audit log so far, line by line.
    ///
    /// # Panics
    /// If a line is not JSON.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path("audit.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a record is JSON")).collect()
    }

    /// Process ids of the agent's processes by the name of their program (`broker`, `frontend`, `file`, …).
    pub fn processes(&self) -> Vec<(String, u32)> {
        children(self.pid())
            .into_iter()
            .filter_map(|pid| {
                let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
                let name = program.file_name()?.to_str()?.strip_prefix("portreeve-")?;
                // A child that has not got so far as to execute its own program.
                (name != "spawner").then(|| (name.to_owned(), pid))
            })
            .collect()
    }

    /// The process id of the process with this name: waits for it.
    ///
    /// # Panics
    /// If there is none.
    pub fn process(&self, name: &str) -> u32 {
        self.successor(name, 0)
    }

    /// The process id of the process that was started in the place of `pid`, which has this name: waits for it.
    ///
    /// # Panics
    /// If no other one comes.
    pub fn successor(&self, name: &str, pid: u32) -> u32 {
        let mut found = None;
        wait_until(|| {
            found = self.processes().into_iter().find(|(known, other)| known == name && *other != pid);
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no {name} after {pid}:\n{}", self.log())).1
    }

    /// Ends it as an init system does and waits; returns how it ended and how long that took.
    ///
    /// # Panics
    /// If it does not end.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        signal(self.pid(), "TERM");
        self.wait()
    }

    /// Waits for its end; returns how it ended and how long that took.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return (status, begin.elapsed());
            }
            assert!(begin.elapsed() < PATIENCE, "the agent does not end:\n{}", self.log());
            sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let family = children(self.pid());
            signal(self.pid(), "KILL");
            let _ = self.child.wait();
            wait_until(|| family.iter().all(|pid| !is_alive(*pid)));
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log:\n{}", self.log());
        }
    }
}

/// `portreeve run` with a configuration, which is written into `directory`; `DIR` in it is the directory.
///
/// # Panics
/// If it cannot be written.
pub fn run(portreeve: PathBuf, directory: &Path, configuration: &str) -> Command {
    let file = directory.join("portreeve.toml");
    let configuration = configuration.replace("DIR", text(directory));
    std::fs::write(&file, configuration).expect("the directory is ours");
    let mut command = Command::new(portreeve);
    command.args(["run", "--config"]).arg(file);
    command
}

/// In the directory, with its log in a file there.
fn spawn(command: &mut Command, directory: &Path, input: Stdio) -> Child {
    let mut log = std::fs::OpenOptions::new();
    let log = log.append(true).create(true).open(directory.join("stderr")).expect("the directory is ours");
    command.current_dir(directory).stdin(input).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("the agent can be executed")
}

/// A directory that is ours alone; other users may pass, since workers are other users.
///
/// # Panics
/// If it cannot be made.
pub fn private_directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new()
        .prefix("portreeve-")
        .tempdir()
        .expect("there is room in the temporary folder");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), permissions).expect("the directory is ours");
    directory
}

/// Sends a signal to a process that a test has started.
///
/// # Panics
/// If there is no `kill` command.
pub fn signal(pid: u32, name: &str) {
    let mut kill = Command::new("kill");
    let _ = kill
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .expect("there is a kill command");
}

/// Stops a process and waits until all of its threads stand still.
///
/// # Panics
/// If they do not.
pub fn stop(pid: u32) {
    signal(pid, "STOP");
    let stands = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    let stopped = wait_until(|| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        threads.flatten().all(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(stands))
    });
    assert!(stopped, "process {pid} does not stop");
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// All descendants of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let direct = std::fs::read_to_string(path).unwrap_or_default();
    let direct: Vec<u32> = direct.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    let below: Vec<u32> = direct.iter().flat_map(|pid| children(*pid)).collect();
    direct.into_iter().chain(below).collect()
}

/// Waits for a condition; returns whether it came true.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(2));
    }
    true
}

/// The host's end of a channel.
pub struct Host {
    /// For what a test does beyond lines.
    pub stream: UnixStream,
    received: Vec<u8>,
    /// Bytes of these that were returned as lines.
    taken: usize,
}

impl From<UnixStream> for Host {
    fn from(stream: UnixStream) -> Self {
        Host { stream, received: Vec::new(), taken: 0 }
    }
}

impl Host {
    /// Sends bytes as they are.
    ///
    /// # Panics
    /// If the agent has closed the channel.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the agent reads");
    }

    /// The next line, without its end.
    ///
    /// # Panics
    /// If none comes.
    pub fn line(&mut self) -> Vec<u8> {
        self.line_within(PATIENCE).expect("a line comes")
    }

    /// The next line, without its end, if one comes in time.
    ///
    /// # Panics
    /// If the agent closes the channel.
    pub fn line_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let begin = Instant::now();
        let mut searched = self.taken;
        loop {
            if let Some(length) = self.received.iter().skip(searched).position(|byte| *byte == b'\n') {
                let end = searched + length;
                let line = self.received.get(self.taken..end).unwrap_or_default().to_vec();
                self.taken = end + 1;
                return Some(line);
            }
            self.received.drain(..self.taken);
            self.taken = 0;
            searched = self.received.len();
            let left = limit.checked_sub(begin.elapsed())?;
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .expect("a socket takes a timeout");
            let mut buffer = vec![0; 1 << 18];
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the agent closed the channel"),
                Ok(length) => self.received.extend(buffer.iter().take(length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return None;
                }
                Err(error) => panic!("the channel failed: {error}"),
            }
        }
    }

    /// Sends a request line and returns the reply.
    ///
    /// # Panics
    /// If the reply is not JSON.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> serde_json::Value {
        self.send(request);
        self.send(b"\n");
        json(&self.line())
    }

    /// Calls a command of QEMU's dialect; `arguments` is a JSON object.
    ///
    /// # Panics
    /// If the reply is an error.
    pub fn call(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let mut reply =
            self.ask(serde_json::json!({ "execute": command, "arguments": arguments }).to_string());
        reply.get_mut("return").unwrap_or_else(|| panic!("{command}: no return")).take()
    }

    /// As [`Self::call`], for a call that must fail; returns the error's text.
    ///
    /// # Panics
    /// If it succeeds.
    pub fn refused(&mut self, command: &str, arguments: serde_json::Value) -> String {
        let reply = self.ask(serde_json::json!({ "execute": command, "arguments": arguments }).to_string());
        reply
            .pointer("/error/desc")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_else(|| panic!("{command} succeeded: {reply}"))
            .to_owned()
    }
}

/// A reply as a value.
///
/// # Panics
/// If it is not JSON.
pub fn json(line: &[u8]) -> serde_json::Value {
    let text = line.strip_prefix(b"\xff").unwrap_or(line);
    serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)))
}

/// A path as text, for requests.
///
/// # Panics
/// If it is not UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is text")
}
