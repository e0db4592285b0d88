//! A real worker for tests: its executable, started as the spawner starts it, with the test as its broker.
//!
//! Used by the tests of several workers, each of which uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at what it did not expect")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use pipe::Pipe;
use proto::message::{Detail, FromWorker, Hello, Job, ToWorker};
use proto::settings::{AuditSettings, Settings};
use proto::{Failed, Reply, Request};

/// The reserved numbers that the agent uses by default.
const UID_BASE: u32 = 1_900_000_000;

/// A worker whose jail is shut.
pub struct Worker {
    child: Child,
    pipe: Pipe<ToWorker, FromWorker>,
    next_job: u64,
    /// What it says that its jail enforces.
    pub confinement: Vec<(String, String)>,
}

/// How a job ended: its result, and the bytes of its streams 0 and 1.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub result: Result<Reply, Failed>,
    pub streams: [Vec<u8>; 2],
}

impl Worker {
    /// Starts `executable` under a policy that permits everything, with `environment` for the programs it may start.
    pub fn start(executable: &str, environment: &[(&str, &str)]) -> Self {
        Self::under(executable, environment, Rule::new(Outcome::Allow, origin()))
    }

    /// As [`Self::start`], under a policy of one rule.
    pub fn under(executable: &str, environment: &[(&str, &str)], rule: Rule) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let base = if nix::unistd::geteuid().is_root() { UID_BASE } else { 0 };
        let mut command = Command::new(executable);
        command
            .args([base.to_string(), "0".to_owned()])
            .env_clear()
            .stdin(Stdio::null())
            // A regular file here, as when the output of all tests goes to one, would end the worker at its first
            // line: its limit on the size of files is 0. Under the spawner it is a pipe.
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: theirs, child_fd: 3 },
                FdMapping { parent_fd: sealed(environment, rule), child_fd: 4 },
            ])
            .unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        let mut worker = Worker { child, pipe: Pipe::new(ours), next_job: 1, confinement: Vec::new() };
        let hello = Hello {
            build_id: proto::BUILD_ID.to_owned(),
            role: "broker".to_owned(),
            confinement: Vec::new(),
        };
        worker.pipe.send(0, 0, &ToWorker::Hello(hello), &[]).unwrap();
        match worker.receive() {
            (_, FromWorker::Hello(hello), _) => worker.confinement = hello.confinement,
            other => panic!("no hello first: {other:?}"),
        }
        worker
    }

    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a job with the first piece of its payload; its id comes back.
    pub fn send(&mut self, request: impl Into<Request>, piece: &[u8]) -> u64 {
        let id = self.next_job;
        self.next_job += 1;
        let job = Job { channel: "test".to_owned(), request: request.into(), detail: Detail::default() };
        self.pipe.send(id, 0, &ToWorker::Job(job), piece).unwrap();
        id
    }

    /// Sends something else about a job.
    pub fn tell(&self, id: u64, message: &ToWorker, piece: &[u8]) {
        self.pipe.send(id, 0, message, piece).unwrap();
    }

    /// Waits for the next message.
    pub fn receive(&mut self) -> (u64, FromWorker, Vec<u8>) {
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let received = self.pipe.receive(&mut buffer).unwrap().expect("the worker has ended");
        (received.id, received.message, received.payload.to_vec())
    }

    /// Waits for the end of job `id` and asks for its pieces one by one.
    pub fn end_of(&mut self, id: u64) -> Ended {
        let mut streams = [Vec::new(), Vec::new()];
        loop {
            let (from, message, payload) = self.receive();
            assert_eq!(from, id, "a message of another job: {message:?}");
            match message {
                FromWorker::Piece(stream) => {
                    streams[usize::from(stream)].extend_from_slice(&payload);
                    self.tell(id, &ToWorker::More(1), &[]);
                }
                FromWorker::Answer(result, _) => {
                    streams[0].extend_from_slice(&payload);
                    return Ended { result, streams };
                }
                FromWorker::Taken => {}
                other => panic!("not expected: {other:?}"),
            }
        }
    }

    /// Does one job without payload.
    pub fn ask(&mut self, request: impl Into<Request>) -> Result<Reply, Failed> {
        let id = self.send(request, &[]);
        self.end_of(id).result
    }

    /// As [`Self::ask`], in the form it would have on the wire; an error is its text.
    pub fn json(&mut self, request: impl Into<Request>) -> serde_json::Value {
        match self.ask(request) {
            Ok(reply) => serde_json::to_value(&reply).unwrap(),
            Err(failed) => serde_json::json!({ "error": failed.text }),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the one rule is written.
pub fn origin() -> Origin {
    Origin { place: "test".into(), line: 1 }
}

fn sealed(environment: &[(&str, &str)], rule: Rule) -> OwnedFd {
    let settings = Settings {
        channels: Vec::new(),
        audit: AuditSettings::default(),
        verbose: false,
        time_zone: None,
        os_release: None,
        environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        idle_seconds: 0,
        ..Settings::default()
    };
    let sealed = Sealed::new(settings, Policy::new("test", Vec::new(), vec![rule]));
    jail::sealed::from_bytes(c"test", &sealed.encode().unwrap()).unwrap()
}

/// Puts this thread, and what it starts, into a network namespace of its own. False, loudly, without the right to.
pub fn own_network() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to make a network namespace");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    true
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {words}: {status}");
}

/// The stock agent on a unix socket, for comparison.
pub struct Stock {
    child: Child,
    directory: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Stock {
    /// Starts qemu-ga if it is installed; None, loudly, if not.
    pub fn start(name: &str) -> Option<Self> {
        let program = Path::new("/usr/sbin/qemu-ga");
        if !program.exists() {
            eprintln!("SKIPPED: no {} to compare with", program.display());
            return None;
        }
        let directory = std::env::temp_dir().join(format!("portreeve-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("socket");
        let child = Command::new(program)
            .args(["-m", "unix-listen", "-p"])
            .arg(&socket)
            .arg("-t")
            .arg(&directory)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > Duration::from_secs(10) => panic!("qemu-ga: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Some(Stock { child, directory, stream: BufReader::new(stream) })
    }

    /// Sends a command; what it returns comes back, or an object with the error's text.
    pub fn json(&mut self, command: &str, arguments: &serde_json::Value) -> serde_json::Value {
        let request = serde_json::json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
        match reply.get("error") {
            Some(error) => serde_json::json!({ "error": error["desc"] }),
            None => reply["return"].clone(),
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
