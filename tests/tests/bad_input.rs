//! Hostile input: on the channel, on the sockets between the processes, and from a worker.
//!
//! Whoever breaks a protocol is ended or ends, with a line on the log; nobody hangs, nobody else notices.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use command_fds::{CommandFdExt, FdMapping};
use jail::Role;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use pipe::Pipe;
use proto::chain::Hash;
use proto::message::{
    About, Detail, Found, FromFrontend, FromWorker, Hello, Job, ToFrontend, ToWorker, Welcome,
};
use proto::settings::{AuditSettings, ChannelSettings, Method, Settings};
use proto::{Dialect, Failed, Group, Request, agent as agent_commands, exec, net, query};
use serde_json::json;
use spawner::{Control, FromBroker, FromSpawner};
use tests::agent::{Agent, Host, is_alive, private_directory, run, text, wait_until};
use tests::{processes, programs};

const PATIENCE: Duration = Duration::from_secs(10);

// ---------------------------------------------------------------- on the channel

/// Sends bytes while somebody else reads, then a delimited sync; returns when that is answered, with the lines before it.
fn send_and_synchronise(agent: &Agent, host: &mut Host, bytes: Vec<u8>, id: u32) -> Vec<Vec<u8>> {
    let mut writer = host.stream.try_clone().unwrap();
    writer.set_write_timeout(Some(PATIENCE)).unwrap();
    let sync = format!("\n{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}\n");
    let writing = std::thread::spawn(move || {
        writer
            .write_all(&bytes)
            .and_then(|()| writer.write_all(b"\xff"))
            .and_then(|()| writer.write_all(sync.as_bytes()))
    });
    let expected = format!("{{\"return\": {id}}}");
    let mut lines = Vec::new();
    loop {
        let line =
            host.line_within(PATIENCE).unwrap_or_else(|| panic!("no answer to sync {id}:\n{}", agent.log()));
        if line.strip_prefix(b"\xff") == Some(expected.as_bytes()) {
            writing.join().unwrap().unwrap();
            return lines;
        }
        lines.push(line);
    }
}

/// Numbers that look random and are the same each time (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()[0]).take(count).collect()
    }
}

#[test]
fn random_bytes_are_answered_with_errors_and_end_nothing() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let before = agent.process("frontend");
    let lines = send_and_synchronise(&agent, &mut host, Noise(1).bytes(1 << 18), 1);
    assert!(lines.iter().all(|line| line.starts_with(b"{\"error\": ")), "an answer that is none");
    assert_eq!(agent.process("frontend"), before);
}

#[test]
fn requests_with_a_few_wrong_bytes_are_answered_and_end_nothing() {
    const REQUESTS: [&str; 5] = [
        "{\"execute\":\"guest-get-host-name\",\"id\":{\"a\":[1,2.5,null]}}",
        "{\"execute\":\"guest-sync\",\"arguments\":{\"id\":9223372036854775807}}",
        "{'execute':'guest-file-read','arguments':{'handle':5,'count':4096}}",
        "{\"execute\":\"guest-file-write\",\"arguments\":{\"handle\":5,\"buf-b64\":\"SGVsbG8gd29ybGQ=\"}}",
        "{\"execute\":\"guest-exec-status\",\"arguments\":{\"pid\":1}}",
    ];
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let before = agent.process("frontend");
    let mut noise = Noise(2);
    for id in 0..300 {
        let mut request = REQUESTS[noise.below(REQUESTS.len())].as_bytes().to_vec();
        for _ in 0..=noise.next() % 3 {
            let place = noise.below(request.len());
            match noise.next() % 3 {
                0 => request[place] = noise.next().to_le_bytes()[0],
                1 => drop(request.remove(place)),
                _ => request.insert(place, noise.next().to_le_bytes()[0]),
            }
        }
        send_and_synchronise(&agent, &mut host, request, id);
    }
    assert_eq!(agent.process("frontend"), before);
}

// qobject/json-streamer.c, MAX_NESTING
#[test]
fn nesting_without_end_is_an_error() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let lines = send_and_synchronise(&agent, &mut host, b"[".repeat(1025), 1);
    let text = String::from_utf8(lines[0].clone()).unwrap();
    assert!(text.contains("JSON nesting depth limit exceeded"), "{text}");
    send_and_synchronise(&agent, &mut host, b"{\"a\":".repeat(100_000), 2);
}

/// KiB that the process may have at its worst.
fn peak(agent: &Agent, name: &str) -> u64 {
    processes::peak_memory(agent.process(name))
}

const MIB: u64 = 1024;

// qobject/json-streamer.c, MAX_TOKEN_SIZE: 64 MiB
#[test]
fn a_string_of_70_mib_is_an_error_and_is_not_held_whole_more_than_once() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let mut request = b"{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"".to_vec();
    request.resize(70 << 20, b'a');
    request.extend(b"\"}}");
    let lines = send_and_synchronise(&agent, &mut host, request, 1);
    let text = String::from_utf8(lines[0].clone()).unwrap();
    assert!(text.contains("JSON token size limit exceeded"), "{text}");
    assert!(peak(&agent, "frontend") < 160 * MIB, "{} KiB", peak(&agent, "frontend"));
    assert!(peak(&agent, "broker") < 40 * MIB, "{} KiB", peak(&agent, "broker"));
}

#[test]
fn the_data_of_a_large_write_is_not_held_whole() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let path = agent.path("file");
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    let mut request =
        format!("{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":{handle},\"buf-b64\":\"")
            .into_bytes();
    request.resize(request.len() + (48 << 20), b'A');
    request.extend(b"\"}}");
    let lines = send_and_synchronise(&agent, &mut host, request, 1);
    assert_eq!(tests::agent::json(&lines[0]), json!({ "return": { "count": 36 << 20, "eof": false } }));
    assert!(peak(&agent, "frontend") < 160 * MIB, "{} KiB", peak(&agent, "frontend"));
    assert!(peak(&agent, "broker") < 40 * MIB, "{} KiB", peak(&agent, "broker"));
    assert!(peak(&agent, "file") < 40 * MIB, "{} KiB", peak(&agent, "file"));
}

// qobject/json-streamer.c, MAX_TOKEN_COUNT: 2 Mi
#[test]
fn two_million_tokens_are_an_error_and_bounded_in_memory() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let request = [&b"["[..], &b"1,".repeat(1_048_700)].concat();
    let lines = send_and_synchronise(&agent, &mut host, request, 1);
    let text = String::from_utf8(lines[0].clone()).unwrap();
    assert!(text.contains("JSON token count limit exceeded"), "{text}");
    assert!(peak(&agent, "frontend") < 160 * MIB, "{} KiB", peak(&agent, "frontend"));
}

#[test]
fn a_line_of_phoenix_without_an_end_is_bounded_in_memory() {
    let agent = Agent::run("phoenix", "qemu-ga");
    let mut host = agent.connect();
    let mut line = b"{\"execute\":\"ping\",\"tag\":\"".to_vec();
    line.resize(200 << 20, b'a');
    line.push(b'\n');
    let mut writer = host.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&line));
    let answer = tests::agent::json(&host.line());
    assert!(answer["error"].is_object(), "{answer}");
    writing.join().unwrap().unwrap();
    assert_eq!(host.ask("{\"execute\":\"ping\",\"tag\":\"t\"}"), json!({ "return": "0.7.2", "tag": "t" }));
    assert!(peak(&agent, "frontend") < 160 * MIB, "{} KiB", peak(&agent, "frontend"));
}

#[test]
fn a_client_that_asks_and_never_reads_is_bounded_in_memory() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let requests = "{\"execute\":\"guest-info\"}\n".repeat(1 << 20);
    // The agent stops reading; then so does this.
    let error = host.stream.write_all(requests.as_bytes()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    assert!(peak(&agent, "frontend") < 64 * MIB, "{} KiB", peak(&agent, "frontend"));
    drop(host);
    agent.connect().call("guest-ping", json!({}));
}

// ---------------------------------------------------------------- on the sockets between the processes

const NOBODY: u32 = 65_534;

/// A program of the agent on its own, with this test at the other end of its socket.
struct Alone {
    child: Child,
    socket: Option<OwnedFd>,
    log: std::io::PipeReader,
    _directory: tempfile::TempDir,
}

fn policy() -> Policy {
    let allow = Rule {
        groups: vec![
            Group::Agent,
            Group::Query,
            Group::NetQuery,
            Group::NetChange,
            Group::FileRead,
            Group::Exec,
        ],
        ..Rule::new(Outcome::Allow, Origin { place: "test".into(), line: 1 })
    };
    Policy::new("test", Vec::new(), vec![allow])
}

fn channel() -> ChannelSettings {
    ChannelSettings {
        name: "test".to_owned(),
        method: Method::UnixListen,
        dialects: vec![Dialect::Qga, Dialect::Phoenix],
        peer_cid: None,
    }
}

fn sealed() -> OwnedFd {
    let settings = Settings {
        channels: vec![channel()],
        audit: AuditSettings::default(),
        verbose: true,
        time_zone: None,
        os_release: None,
        environment: Vec::new(),
        idle_seconds: 0,
        ..Settings::default()
    };
    let bytes = Sealed::new(settings, policy()).encode().unwrap();
    jail::sealed::from_bytes(c"test", &bytes).unwrap()
}

impl Alone {
    /// As the spawner starts it for an ordinary user.
    fn start(role: Role) -> Self {
        let directory = private_directory();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
        let mut mappings = vec![mapping(theirs, 3)];
        if role == Role::Frontend {
            let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
            listener.set_nonblocking(true).unwrap();
            mappings.push(mapping(listener.into(), 5));
        } else {
            mappings.push(mapping(sealed(), 4));
        }
        let (log, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(programs::program(role.executable()));
        command.args(["0", "0"]).env_clear().current_dir(&directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).fd_mappings(mappings).unwrap();
        if programs::is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let child = command.spawn().unwrap();
        Alone { child, socket: Some(ours), log, _directory: directory }
    }

    /// As [`Self::start`], with the greeting behind it.
    fn greeted(role: Role) -> Self {
        let alone = Self::start(role);
        alone.send_as(&ToWorker::Hello(hello()));
        alone
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().unwrap()
    }

    /// Sends bytes as one frame.
    fn send(&self, frame: &[u8]) {
        send(self.socket().as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    fn send_as<S: pipe::Encode>(&self, message: &S) {
        self.send_as_about(0, message);
    }

    fn send_as_about<S: pipe::Encode>(&self, id: u64, message: &S) {
        let pipe = Pipe::<S, FromWorker>::new(self.socket().try_clone().unwrap());
        pipe.send(id, 0, message, &[]).unwrap();
    }

    fn send_record(&self, command: &str, record: &[u8]) {
        let about = About {
            sequence: 1,
            hash: Hash::default(),
            kind: "request".to_owned(),
            command: Some(command.to_owned()),
            channel: None,
            decision: None,
            outcome: None,
        };
        let pipe = Pipe::<ToWorker, FromWorker>::new(self.socket().try_clone().unwrap());
        pipe.send(1, 0, &ToWorker::Record(about), record).unwrap();
    }

    /// Waits for its end.
    fn end(mut self) -> (ExitStatus, String) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "it hangs");
            sleep(Duration::from_millis(2));
        };
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (status, log)
    }

    /// Waits for its end, which must be with status 1 and this on the log.
    fn ends_with(self, expected: &str) {
        let (status, log) = self.end();
        assert!(log.contains(expected), "{expected:?} is not in {log:?}");
        assert_eq!(status.code(), Some(1), "{log}");
    }

    /// Whether it still runs a while later.
    fn lives_on(&mut self) -> bool {
        sleep(Duration::from_millis(300));
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hello() -> Hello {
    Hello { build_id: proto::BUILD_ID.to_owned(), role: "broker".to_owned(), confinement: Vec::new() }
}

fn foreign_hello() -> Hello {
    Hello { build_id: "0123456789abcdef".to_owned(), ..hello() }
}

/// Header, message, as `docs/protocol.md` has it.
fn frame(flags: u8, head: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x52, 0x50, 1, flags];
    frame.extend(head.to_le_bytes());
    frame.extend([0; 8 + 4]);
    frame.extend(length.to_le_bytes());
    frame.extend(body);
    frame
}

const WORKERS: [Role; 11] = [
    Role::Query,
    Role::File,
    Role::Net,
    Role::NetAdmin,
    Role::Exec,
    Role::Fsfreeze,
    Role::Power,
    Role::Clock,
    Role::Hotplug,
    Role::Account,
    Role::Audit,
];

#[test]
fn a_worker_ends_when_the_broker_sends_noise() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send(&Noise(3).bytes(100));
        worker.ends_with("the peer sent an unknown kind of frame");
    }
}

#[test]
fn a_worker_ends_at_a_frame_without_a_whole_header() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send(b"RP\x01");
        worker.ends_with("the peer sent a frame shorter than its header");
    }
}

#[test]
fn a_worker_ends_at_a_frame_that_lies_about_its_length() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send(&frame(0, 4, u32::MAX, &[0; 4]));
        worker.ends_with("the peer sent a frame whose length is not what it says");
    }
}

#[test]
fn a_worker_ends_at_a_frame_over_the_limit() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send(&vec![0x52; 150_000]);
        let (status, log) = worker.end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("the peer sent a"), "{log}");
    }
}

// A packet of no bytes is the end.
#[test]
fn a_worker_ends_when_the_broker_goes() {
    for role in WORKERS {
        let mut worker = Alone::greeted(role);
        assert!(worker.lives_on(), "{role}");
        worker.socket = None;
        let (status, log) = worker.end();
        assert_eq!((status.code(), log.as_str()), (Some(0), ""), "{role}");
    }
}

#[test]
fn a_worker_ends_at_a_packet_of_no_bytes() {
    for role in WORKERS {
        let worker = Alone::greeted(role);
        worker.send(b"");
        let (status, log) = worker.end();
        assert_eq!((status.code(), log.as_str()), (Some(0), ""), "{role}");
    }
}

#[test]
fn a_worker_does_not_serve_a_broker_of_another_build() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send_as(&ToWorker::Hello(foreign_hello()));
        worker.ends_with("the broker is of build 0123456789abcdef");
    }
}

#[test]
fn a_worker_wants_a_hello_first_and_only_one() {
    for role in WORKERS {
        let worker = Alone::start(role);
        worker.send_as(&ToWorker::Piece);
        worker.ends_with("no hello first");
        let worker = Alone::greeted(role);
        worker.send_as(&ToWorker::Hello(hello()));
        worker.ends_with("a second hello");
    }
}

#[test]
fn a_worker_ends_at_a_message_of_the_other_direction() {
    for role in WORKERS {
        let worker = Alone::greeted(role);
        worker.send_as(&FromWorker::Answer(Err(Failed::new("what a worker says")), Found::default()));
        let (status, log) = worker.end();
        assert_eq!(status.code(), Some(1), "{role}: {log}");
        assert!(log.contains("sent"), "{role}: {log}");
    }
}

#[test]
fn only_the_audit_worker_is_given_records_and_it_is_given_nothing_else() {
    for role in WORKERS.into_iter().filter(|role| *role != Role::Audit) {
        let worker = Alone::greeted(role);
        worker.send_record("guest-ping", b"{}");
        worker.ends_with("the broker sent what only the audit worker is told");
    }
    let worker = Alone::greeted(Role::Audit);
    worker.send_as(&ToWorker::Abandon);
    worker.ends_with("the broker sent what is no record");
}

// "bounded length, printable only": a record that could be two ends the worker instead of being written.
#[test]
fn the_audit_worker_ends_at_what_is_no_record() {
    for (command, record) in [
        ("guest-ping", b"".to_vec()),
        ("guest-ping", b"{}\n{}".to_vec()),
        ("guest-ping", vec![b'x'; 16 * 1024 + 1]),
        ("guest-ping\n", b"{}".to_vec()),
        ("guest-ping \u{202e}", b"{}".to_vec()),
    ] {
        let worker = Alone::greeted(Role::Audit);
        worker.send_record(command, &record);
        let (status, log) = worker.end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.starts_with("audit: the broker sent ") && log.contains(" bytes that "), "{log}");
    }
}

#[test]
fn a_worker_ends_at_a_job_of_another_worker() {
    for (role, request) in [
        (Role::Query, Request::from(net::Request::Interfaces(proto::NoArguments {}))),
        (Role::File, Request::from(query::Request::Load(proto::NoArguments {}))),
        (Role::Net, Request::from(query::Request::Load(proto::NoArguments {}))),
        (Role::NetAdmin, Request::from(query::Request::Load(proto::NoArguments {}))),
        (Role::Exec, Request::from(query::Request::Load(proto::NoArguments {}))),
    ] {
        let worker = Alone::greeted(role);
        let job = Job { channel: "test".to_owned(), request, detail: Detail::default() };
        worker.send_as_about(1, &ToWorker::Job(job));
        worker.ends_with("which is not this worker's");
    }
}

// The worker decides again: a broker that was taken over cannot go beyond the policy.
#[test]
fn a_worker_refuses_what_the_policy_refuses_whatever_the_broker_says() {
    let worker = Alone::greeted(Role::File);
    let open = proto::file::Open { path: "/etc/passwd".into(), mode: Some("a".to_owned()) };
    let job = Job {
        channel: "test".to_owned(),
        request: proto::file::Request::Open(open).into(),
        detail: Detail { handle: 1, ..Detail::default() },
    };
    worker.send_as_about(1, &ToWorker::Job(job));
    worker.ends_with("guest-file-open, which the policy refuses");
}

#[test]
fn what_is_said_of_jobs_that_a_worker_does_not_have_does_no_harm_or_ends_it() {
    // It has none at all.
    for role in WORKERS.into_iter().filter(|role| *role != Role::Audit) {
        let mut worker = Alone::greeted(role);
        worker.send_as_about(77, &ToWorker::Abandon);
        assert!(worker.lives_on(), "{role}: late news are no fault");
        worker.send_as_about(77, &ToWorker::Piece);
        let _ = send(worker.socket().as_raw_fd(), b"noise", MsgFlags::MSG_NOSIGNAL);
        let (status, log) = worker.end();
        assert_eq!(status.code(), Some(1), "{role}: {log}");
    }
}

/// A frontend that has been greeted and told what is served.
fn welcomed() -> Alone {
    let frontend = Alone::start(Role::Frontend);
    frontend.send_as(&ToFrontend::Hello(hello()));
    let policy = policy();
    let served = authorize::served(&policy, "test", false, Dialect::Qga);
    let verdicts = served.map(|(command, served)| (command.id(), served)).collect();
    let welcome =
        Welcome { channel: channel(), frozen: false, verdicts, each: Vec::new(), versions: Vec::new() };
    frontend.send_as(&ToFrontend::Welcome(welcome));
    frontend
}

#[test]
fn a_frontend_ends_when_the_broker_sends_noise() {
    let frontend = Alone::start(Role::Frontend);
    frontend.send(&Noise(4).bytes(100));
    frontend.ends_with("the peer sent an unknown kind of frame");
    let frontend = welcomed();
    frontend.send(&frame(0, 4, 4, &[0xff; 4]));
    frontend.ends_with("the peer sent no message");
}

#[test]
fn a_frontend_does_not_serve_a_broker_of_another_build() {
    let frontend = Alone::start(Role::Frontend);
    frontend.send_as(&ToFrontend::Hello(foreign_hello()));
    frontend.ends_with("the broker is of build 0123456789abcdef");
}

#[test]
fn a_frontend_wants_a_greeting_first_and_only_one() {
    let frontend = Alone::start(Role::Frontend);
    frontend.send_as(&ToFrontend::More(1));
    frontend.ends_with("frontend: ");
    let frontend = welcomed();
    frontend.send_as(&ToFrontend::Hello(hello()));
    frontend.ends_with("frontend: ");
}

#[test]
fn a_frontend_ends_at_answers_to_what_it_never_asked() {
    let frontend = welcomed();
    let answer = proto::Answer::Done(agent_commands::Reply::Sync(1).into());
    frontend.send_as_about(99, &ToFrontend::Answer(answer));
    frontend.ends_with("frontend: ");
}

#[test]
fn a_frontend_ends_at_a_message_of_the_other_direction() {
    let frontend = welcomed();
    frontend.send_as(&FromFrontend::Note("what a frontend says".to_owned()));
    let (status, log) = frontend.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("frontend: "), "{log}");
}

#[test]
fn a_frontend_ends_when_the_broker_goes() {
    let mut frontend = welcomed();
    assert!(frontend.lives_on());
    frontend.socket = None;
    let (status, log) = frontend.end();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
}

#[test]
fn a_compiler_that_is_given_noise_says_so_and_ends() {
    let directory = private_directory();
    let noise = directory.path().join("noise");
    std::fs::write(&noise, Noise(7).bytes(1 << 16)).unwrap();
    let mut command = Command::new(programs::program("portreeve-compile"));
    command.args(["0", "0"]).env_clear().stdin(std::fs::File::open(&noise).unwrap());
    if programs::is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && log.contains("not a bundle of policy texts"),
        "{} {log}",
        output.status
    );
    assert!(output.stdout.is_empty());
}

// ---------------------------------------------------------------- at the broker

/// A broker on its own: the test is the spawner, the frontend and every worker.
struct LoneBroker {
    alone: Alone,
    control: Control,
}

impl LoneBroker {
    fn start() -> Self {
        let alone = Alone::start(Role::Broker);
        let control = Control::new(alone.socket().try_clone().unwrap());
        LoneBroker { alone, control }
    }

    /// What the broker says to the spawner next.
    fn next(&self) -> (u32, FromBroker) {
        let begin = Instant::now();
        loop {
            if let Some(said) = self.control.try_receive_request().unwrap() {
                return said;
            }
            assert!(begin.elapsed() < PATIENCE, "the broker says nothing");
            sleep(Duration::from_millis(2));
        }
    }

    /// Hands it one end of a socket, and a log pipe.
    fn hand(&self, event: FromSpawner, sequence: u32) -> OwnedFd {
        let (ours, its) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (log, _) = std::io::pipe().unwrap();
        self.control.send_event(event, sequence, &[its.as_fd(), log.as_fd()]).unwrap();
        ours
    }

    fn frontend(&self) -> Pipe<FromFrontend, ToFrontend> {
        let socket = self.hand(FromSpawner::Frontend { channel: 0, pid: 1 }, 0);
        let pipe = Pipe::new(socket);
        let hello = Hello { role: "frontend".to_owned(), ..hello() };
        pipe.send(0, 0, &FromFrontend::Hello(hello), &[]).unwrap();
        assert_eq!(self.next().1, FromBroker::Ready);
        pipe
    }

    /// The broker's verdict on a frontend that has sent these bytes after its greeting.
    fn kills_the_frontend_that_sends(&self, bytes: &[u8]) {
        let pipe = self.frontend();
        send(pipe.socket().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
        assert_eq!(self.next().1, FromBroker::Kill { kind: Role::Frontend, instance: 0 });
    }

    /// The same for messages.
    fn kills_the_frontend_that_says(&self, messages: &[(u64, FromFrontend)]) {
        let pipe = self.frontend();
        for (id, message) in messages {
            pipe.send(*id, 0, message, &[]).unwrap();
        }
        assert_eq!(self.next().1, FromBroker::Kill { kind: Role::Frontend, instance: 0 });
    }

    fn ends(self, expected: &str) {
        self.alone.ends_with(expected);
    }
}

fn request(request: impl Into<Request>) -> FromFrontend {
    FromFrontend::Request { lane: 1, request: request.into(), counts: Vec::new() }
}

fn load() -> FromFrontend {
    request(query::Request::Load(proto::NoArguments {}))
}

#[test]
fn the_broker_ends_when_the_spawner_sends_noise() {
    let broker = LoneBroker::start();
    broker.alone.send(b"sixteen bytes!!!");
    broker.ends("malformed control message");
}

#[test]
fn the_broker_ends_when_the_spawner_sends_a_descriptor_too_few() {
    let broker = LoneBroker::start();
    // A frontend, operation 6, and no socket.
    broker.alone.send(b"prv1\0\0\0\0\x06\x02\0\0\x01\0\0\0");
    broker.ends("malformed control message");
}

#[test]
fn the_broker_ends_when_the_spawner_goes() {
    let mut broker = LoneBroker::start();
    assert!(broker.alone.lives_on());
    broker.alone.socket = None;
    let LoneBroker { alone, control } = broker;
    drop(control);
    let (status, log) = alone.end();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn the_broker_has_a_frontend_killed_that_sends_noise() {
    LoneBroker::start().kills_the_frontend_that_sends(&Noise(5).bytes(64));
}

#[test]
fn the_broker_has_a_frontend_killed_that_lies_about_a_length() {
    LoneBroker::start().kills_the_frontend_that_sends(&frame(0, u32::MAX, 4, &[0; 4]));
}

#[test]
fn the_broker_has_a_frontend_killed_that_says_hello_twice() {
    let hello = Hello { role: "frontend".to_owned(), ..hello() };
    LoneBroker::start().kills_the_frontend_that_says(&[
        (0, FromFrontend::Piece),
        (0, FromFrontend::Hello(Hello { build_id: "other".to_owned(), ..hello })),
    ]);
}

#[test]
fn the_broker_has_a_frontend_killed_that_uses_a_number_twice() {
    LoneBroker::start().kills_the_frontend_that_says(&[
        (5, request(agent_commands::Request::Sync(agent_commands::Sync { id: 1 }))),
        (5, request(agent_commands::Request::Sync(agent_commands::Sync { id: 2 }))),
    ]);
}

#[test]
fn the_broker_has_a_frontend_killed_that_counts_commands_that_do_not_exist() {
    let counts = FromFrontend::Counts(vec![(proto::CommandId(60_000), 1)]);
    LoneBroker::start().kills_the_frontend_that_says(&[(0, counts)]);
}

#[test]
fn the_broker_has_a_frontend_killed_that_asks_for_too_much_at_once() {
    let broker = LoneBroker::start();
    let pipe = broker.frontend();
    for id in 1..=20 {
        // All wait for a worker that this test does not start.
        let message = FromFrontend::Request {
            lane: 0,
            request: query::Request::Load(proto::NoArguments {}).into(),
            counts: Vec::new(),
        };
        pipe.send(id, 0, &message, &[]).unwrap();
    }
    let said = std::iter::repeat_with(|| broker.next().1);
    let killed = said.take(10).any(|said| said == FromBroker::Kill { kind: Role::Frontend, instance: 0 });
    assert!(killed);
}

#[test]
fn what_a_frontend_says_of_requests_that_are_gone_is_no_fault() {
    let mut broker = LoneBroker::start();
    let pipe = broker.frontend();
    pipe.send(44, 0, &FromFrontend::Abandon { cancel: true }, &[]).unwrap();
    pipe.send(44, 0, &FromFrontend::More(2), &[]).unwrap();
    pipe.send(44, 0, &FromFrontend::Piece, b"x").unwrap();
    sleep(Duration::from_millis(200));
    assert!(broker.control.try_receive_request().unwrap().is_none());
    assert!(broker.alone.lives_on());
}

/// A worker that the broker has started for a request of a frontend, played by this test.
fn hired(broker: &LoneBroker) -> (Pipe<FromFrontend, ToFrontend>, OwnedFd) {
    let frontend = broker.frontend();
    frontend.send(1, 0, &load(), &[]).unwrap();
    let worker = hired_for_it(broker);
    (frontend, worker)
}

/// The worker that the broker asks the spawner for.
fn hired_for_it(broker: &LoneBroker) -> OwnedFd {
    let (sequence, said) = broker.next();
    assert_eq!(said, FromBroker::Start { kind: Role::Query, instance: 0 });
    broker.hand(FromSpawner::Started { kind: Role::Query, instance: 0, pid: 1 }, sequence)
}

/// The answer that a frontend gets to its first request.
fn answer(frontend: &Pipe<FromFrontend, ToFrontend>) -> proto::Answer {
    let mut buffer = Pipe::<FromFrontend, ToFrontend>::buffer();
    loop {
        let received = frontend.receive(&mut buffer).unwrap().expect("the broker lives");
        if let (1, ToFrontend::Answer(answer)) = (received.id, received.message) {
            return answer;
        }
    }
}

/// The worker is killed.
fn has_the_worker_killed(broker: &LoneBroker) {
    assert_eq!(broker.next().1, FromBroker::Kill { kind: Role::Query, instance: 0 });
    broker
        .control
        .send_event(FromSpawner::Exited { kind: Role::Query, instance: 0, status: 9 }, 0, &[])
        .unwrap();
}

/// The worker is killed, and its job answered for it.
fn kills_the_worker(broker: &LoneBroker, frontend: &Pipe<FromFrontend, ToFrontend>) {
    has_the_worker_killed(broker);
    let proto::Answer::Failed(failed) = answer(frontend) else { panic!("no failure") };
    assert!(failed.text.contains("query worker"), "{failed}");
}

/// The worker is killed before it had a job, so that another is asked; when that one says the same, the job is
/// answered for it.
fn kills_the_worker_that_begins_with(hello: &FromWorker) {
    let broker = LoneBroker::start();
    let (frontend, first) = hired(&broker);
    say(&first, 0, hello, &[]);
    has_the_worker_killed(&broker);
    let second = hired_for_it(&broker);
    say(&second, 0, hello, &[]);
    kills_the_worker(&broker, &frontend);
}

fn worker_hello() -> FromWorker {
    FromWorker::Hello(Hello { role: "query".to_owned(), ..hello() })
}

fn say(worker: &OwnedFd, id: u64, message: &FromWorker, payload: &[u8]) {
    Pipe::<FromWorker, ToWorker>::new(worker.try_clone().unwrap()).send(id, 0, message, payload).unwrap();
}

/// As [`hired`]; the worker has said hello and been given its first job, whose number is returned.
fn employed(broker: &LoneBroker) -> (Pipe<FromFrontend, ToFrontend>, OwnedFd, u64) {
    let (frontend, worker) = hired(broker);
    say(&worker, 0, &worker_hello(), &[]);
    let pipe = Pipe::<FromWorker, ToWorker>::new(worker.try_clone().unwrap());
    let mut buffer = Pipe::<FromWorker, ToWorker>::buffer();
    loop {
        let received = pipe.receive(&mut buffer).unwrap().expect("the broker lives");
        if let ToWorker::Job(_) = received.message {
            return (frontend, worker, received.id);
        }
    }
}

#[test]
fn the_broker_has_a_worker_killed_that_sends_noise() {
    let broker = LoneBroker::start();
    let (frontend, worker, _job) = employed(&broker);
    send(worker.as_raw_fd(), &Noise(6).bytes(64), MsgFlags::MSG_NOSIGNAL).unwrap();
    kills_the_worker(&broker, &frontend);
}

#[test]
fn the_broker_has_a_worker_killed_that_is_of_another_build() {
    kills_the_worker_that_begins_with(&FromWorker::Hello(Hello {
        role: "query".to_owned(),
        ..foreign_hello()
    }));
}

#[test]
fn the_broker_has_a_worker_killed_that_is_another_worker() {
    kills_the_worker_that_begins_with(&FromWorker::Hello(Hello { role: "exec".to_owned(), ..hello() }));
}

#[test]
fn the_broker_has_a_worker_killed_that_answers_what_it_was_not_asked() {
    let broker = LoneBroker::start();
    let (frontend, worker, _job) = employed(&broker);
    say(&worker, 4711, &FromWorker::Answer(Err(Failed::new("x")), Found::default()), &[]);
    kills_the_worker(&broker, &frontend);
}

#[test]
fn the_broker_has_a_worker_killed_that_says_hello_twice() {
    let broker = LoneBroker::start();
    let (frontend, worker, _job) = employed(&broker);
    say(&worker, 0, &worker_hello(), &[]);
    kills_the_worker(&broker, &frontend);
}

#[test]
fn the_broker_has_a_worker_killed_that_refuses_what_it_permitted() {
    let broker = LoneBroker::start();
    let (frontend, worker, job) = employed(&broker);
    say(&worker, job, &FromWorker::Refused("preset:1".to_owned()), &[]);
    kills_the_worker(&broker, &frontend);
}

#[test]
fn the_broker_has_a_worker_killed_that_refuses_what_the_policy_permits_for_what_was_found() {
    let broker = LoneBroker::start();
    let (frontend, worker, job) = employed(&broker);
    let found = Found { path: Some("/etc/shadow".into()), ..Found::default() };
    say(&worker, job, &FromWorker::Denied(found), &[]);
    kills_the_worker(&broker, &frontend);
}

#[test]
fn the_broker_has_a_worker_killed_that_finds_a_path_longer_than_any() {
    let broker = LoneBroker::start();
    let (frontend, worker, job) = employed(&broker);
    let found = Found { path: Some("/a".repeat(4000).as_str().into()), ..Found::default() };
    say(&worker, job, &FromWorker::Answer(Err(Failed::new("x")), found), &[]);
    kills_the_worker(&broker, &frontend);
}

// An answer of another command's form would be encoded as this one's.
#[test]
fn an_answer_of_another_kind_of_worker_does_not_reach_the_host() {
    let broker = LoneBroker::start();
    let (frontend, worker, job) = employed(&broker);
    let reply = exec::Reply::Exec(exec::Started { pid: 1 });
    say(&worker, job, &FromWorker::Answer(Ok(reply.into()), Found::default()), &[]);
    kills_the_worker(&broker, &frontend);
}

#[test]
fn a_worker_that_sends_more_than_it_may_is_killed() {
    let broker = LoneBroker::start();
    let (frontend, worker, job) = employed(&broker);
    let piece = vec![0; proto::limits::PIECE];
    let socket = worker.try_clone().unwrap();
    // Until the broker closes the socket or, before this test's patience ends, has said that it is to be killed.
    let flood = std::thread::spawn(move || {
        let pipe = Pipe::<FromWorker, ToWorker>::new(socket);
        (0..2000).all(|_| pipe.send(job, 0, &FromWorker::Piece(0), &piece).is_ok())
    });
    assert_eq!(broker.next().1, FromBroker::Kill { kind: Role::Query, instance: 0 });
    nix::sys::socket::shutdown(worker.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    flood.join().unwrap();
    assert!(processes::peak_memory(broker.alone.child.id()) < 40 * MIB);
    drop(frontend);
}

#[test]
fn a_worker_that_never_says_hello_is_killed_after_five_seconds() {
    let broker = LoneBroker::start();
    let (_frontend, _worker) = hired(&broker);
    let begin = Instant::now();
    has_the_worker_killed(&broker);
    assert!(begin.elapsed() > Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn the_broker_sends_nothing_behind_the_end_of_a_frontend() {
    let broker = LoneBroker::start();
    let (frontend, worker) = hired(&broker);
    drop(frontend);
    say(&worker, 0, &worker_hello(), &[]);
    // The job is carried out for nobody.
    let mut buffer = Pipe::<FromWorker, ToWorker>::buffer();
    let pipe = Pipe::<FromWorker, ToWorker>::new(worker);
    let hello = pipe.receive(&mut buffer).unwrap().unwrap().message;
    assert!(matches!(hello, ToWorker::Hello(_)));
    let job = pipe.receive(&mut buffer).unwrap().unwrap();
    assert!(matches!(job.message, ToWorker::Job(_)));
    pipe.send(job.id, 0, &FromWorker::Answer(Err(Failed::new("late")), Found::default()), &[]).unwrap();
    let mut byte = [0];
    sleep(Duration::from_millis(100));
    let more = recv(pipe.socket().as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT);
    assert_eq!(more, Err(Errno::EAGAIN));
}

// ---------------------------------------------------------------- in a whole agent

/// An agent whose query worker is another program.
fn with_a_query_worker(program: &Path) -> Agent {
    let directory = private_directory();
    let folder = directory.path().join("programs");
    std::fs::create_dir(&folder).unwrap();
    let roles = Role::ALL.into_iter().filter(|role| *role != Role::Keys).map(Role::executable);
    for name in ["portreeve", "portreeve-spawner"].into_iter().chain(roles) {
        std::fs::copy(programs::program(name), folder.join(name)).unwrap();
    }
    std::fs::copy(program, folder.join("portreeve-query")).unwrap();
    let configuration = "policy = \"qemu-ga\"\n[[channel]]\nname = \"a\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
                         [state]\ndirectory = \"DIR/state\"\n[audit]\nsink = \"off\"\n";
    let command = run(folder.join("portreeve"), directory.path(), configuration);
    Agent::start(command, directory)
}

#[test]
fn a_worker_that_is_another_program_is_noticed_and_the_others_go_on() {
    let agent = with_a_query_worker(&programs::program("portreeve-net"));
    let mut host = agent.connect();
    let refused = host.refused("guest-get-host-name", json!({}));
    assert!(refused.starts_with("the query worker does not start: "), "{refused}");
    host.call("guest-network-get-interfaces", json!({}));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    assert!(agent.log().contains("query worker"), "{}", agent.log());
}

#[test]
fn a_worker_that_ends_at_once_is_noticed_and_the_others_go_on() {
    let agent = with_a_query_worker(Path::new("/bin/true"));
    let mut host = agent.connect();
    let refused = host.refused("guest-get-host-name", json!({}));
    assert!(refused.starts_with("the query worker does not start: "), "{refused}");
    host.call("guest-network-get-interfaces", json!({}));
}

#[test]
fn a_worker_that_never_gets_ready_is_noticed_and_the_others_go_on() {
    let agent = with_a_query_worker(Path::new("/bin/sleep"));
    let mut host = agent.connect();
    let (begin, mut other) = (Instant::now(), Duration::ZERO);
    host.send("{\"execute\":\"guest-get-host-name\",\"id\":1}\n{\"execute\":\"guest-network-get-interfaces\",\"id\":2}\n");
    let first = tests::agent::json(&host.line());
    let second = tests::agent::json(&host.line());
    other += begin.elapsed();
    assert_eq!((&first["id"], &second["id"]), (&json!(1), &json!(2)));
    assert!(first["error"].is_object() && second["return"].is_array(), "{first} {second}");
    assert!(other < Duration::from_secs(2), "{other:?}");
}

#[test]
fn a_worker_that_cannot_be_executed_is_noticed_and_the_others_go_on() {
    let agent = with_a_query_worker(Path::new("/etc/passwd"));
    let mut host = agent.connect();
    let refused = host.refused("guest-get-host-name", json!({}));
    assert!(refused.starts_with("the query worker does not start: "), "{refused}");
    host.call("guest-network-get-interfaces", json!({}));
}

#[test]
fn a_worker_that_ends_again_and_again_is_not_started_without_end() {
    let agent = with_a_query_worker(Path::new("/bin/true"));
    let mut host = agent.connect();
    let begin = Instant::now();
    let answers: Vec<String> = (0..30).map(|_| host.refused("guest-get-host-name", json!({}))).collect();
    let last = answers.last().unwrap();
    assert!(
        answers.iter().any(|answer| answer.contains("it has ended too often in the last seconds")),
        "{last}"
    );
    assert!(begin.elapsed() < PATIENCE);
    host.call("guest-ping", json!({}));
    let broker = agent.process("broker");
    assert!(wait_until(|| is_alive(broker)));
}
