//! Clients that come, leave, die and do not read, on real sockets and devices.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend::channel::Channel;
use frontend::serve::{ServeError, serve};
use nix::pty::openpty;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use pipe::Pipe;
use proto::limits::PIECE;
use proto::message::{FromFrontend, Hello, ToFrontend, Welcome};
use proto::settings::{ChannelSettings, Method};
use proto::{Answer, Dialect, Reply, agent, file};

const PING: &[u8] = b"{\"execute\":\"guest-ping\"}\n";
const FLUSH: &[u8] = b"{\"execute\":\"guest-file-flush\",\"arguments\":{\"handle\":1}}\n";
const READ: &[u8] = b"{\"execute\":\"guest-file-read\",\"arguments\":{\"handle\":1,\"count\":50000000}}\n";
const PONG: &str = "{\"return\": {}}\n";

/// A frontend on a thread of its own, with the test as its broker.
struct Frontend {
    broker: Pipe<ToFrontend, FromFrontend>,
    buffer: Vec<u8>,
    thread: JoinHandle<Result<(), ServeError>>,
    task: PathBuf,
}

impl Frontend {
    fn serve(method: Method, channel: OwnedFd) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (said, task) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let task = std::fs::read_link("/proc/thread-self").unwrap();
            said.send(PathBuf::from("/proc").join(task).join("status")).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _inside = runtime.enter();
            let (sender, receiver) = pipe::split(theirs).unwrap();
            let channel = Channel::new(channel).unwrap();
            let outcome = runtime.block_on(serve(channel, sender, receiver, Vec::new()));
            eprintln!("the frontend ends: {outcome:?}");
            outcome
        });
        let buffer = Pipe::<ToFrontend, FromFrontend>::buffer();
        let mut frontend = Frontend { broker: Pipe::new(ours), buffer, thread, task: task.recv().unwrap() };
        assert!(matches!(frontend.next().1, FromFrontend::Hello(_)));
        let hello = Hello {
            build_id: proto::BUILD_ID.to_owned(),
            role: "broker".to_owned(),
            confinement: Vec::new(),
        };
        frontend.send(0, &ToFrontend::Hello(hello), b"");
        let channel =
            ChannelSettings { name: "test".to_owned(), method, dialects: vec![Dialect::Qga], peer_cid: None };
        let verdicts = proto::commands().map(|command| (command.id(), true)).collect();
        let welcome = Welcome { channel, frozen: false, verdicts, each: Vec::new(), versions: Vec::new() };
        frontend.send(0, &ToFrontend::Welcome(welcome), b"");
        frontend
    }

    fn listening() -> (Self, Socket) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        (Self::serve(Method::UnixListen, listener.into()), Socket { path, _directory: directory })
    }

    /// The next message but counts.
    fn next(&mut self) -> (u64, FromFrontend) {
        loop {
            let Some(received) = self.broker.receive(&mut self.buffer).unwrap() else {
                panic!("the frontend has ended");
            };
            if !matches!(received.message, FromFrontend::Counts(_)) {
                return (received.id, received.message);
            }
        }
    }

    fn next_request(&mut self) -> (u64, &'static str) {
        match self.next() {
            (id, FromFrontend::Request { request, .. }) => (id, request.command().name()),
            other => panic!("{other:?}"),
        }
    }

    fn send(&self, id: u64, message: &ToFrontend, payload: &[u8]) {
        self.broker.send(id, 0, message, payload).unwrap();
    }

    fn flushed(&self, id: u64) {
        let reply = Reply::File(file::Reply::Flush(agent::Nothing {}));
        self.send(id, &ToFrontend::Answer(Answer::Done(reply)), b"");
    }

    fn wake_ups(&self) -> u64 {
        wake_ups(&self.task)
    }

    /// Processor time used, in ticks: spinning causes no voluntary switches.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(self.task.with_file_name("stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// The broker goes: the frontend ends by itself.
    fn end(self) -> Result<(), ServeError> {
        drop(self.broker);
        self.thread.join().unwrap()
    }
}

fn wake_ups(task: &Path) -> u64 {
    let status = std::fs::read_to_string(task).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct Socket {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Socket {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

fn line(stream: &UnixStream) -> String {
    let mut text = String::new();
    // One byte at a time, so that nothing of the next line is lost.
    BufReader::with_capacity(1, stream).read_line(&mut text).unwrap();
    text
}

#[test]
fn one_client_after_the_other_is_served() {
    let (frontend, socket) = Frontend::listening();
    let mut first = socket.connect();
    first.write_all(PING).unwrap();
    assert_eq!(line(&first), PONG);
    let mut second = socket.connect();
    second.write_all(PING).unwrap();
    drop(first);
    assert_eq!(line(&second), PONG);
    frontend.end().unwrap();
}

/// unix(7): the next read or write of the other side fails with ECONNRESET; qemu-ga ends of it.
#[test]
fn a_client_that_leaves_with_unread_replies_harms_nobody() {
    let (frontend, socket) = Frontend::listening();
    for _ in 0..20 {
        let mut client = socket.connect();
        client.write_all(&PING.repeat(50)).unwrap();
        assert_eq!(line(&client), PONG);
        drop(client);
    }
    let mut client = socket.connect();
    client.write_all(PING).unwrap();
    assert_eq!(line(&client), PONG);
    frontend.end().unwrap();
}

#[test]
fn a_client_that_closes_its_sending_side_gets_all_its_answers() {
    let (mut frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    client.write_all(&[PING, FLUSH, PING].concat()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (id, _) = frontend.next_request();
    std::thread::sleep(Duration::from_millis(50));
    frontend.flushed(id);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, PONG.repeat(3));
    frontend.end().unwrap();
}

#[test]
fn a_client_that_dies_in_mid_request_leaves_nothing_to_the_next() {
    let (frontend, socket) = Frontend::listening();
    socket.connect().write_all(b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\"").unwrap();
    let mut next = socket.connect();
    next.write_all(PING).unwrap();
    assert_eq!(line(&next), PONG);
    frontend.end().unwrap();
}

/// Proxmox: a freeze times out, the socket is closed and opened again while it runs.
#[test]
fn a_client_that_leaves_a_stuck_command_behind_does_not_keep_the_next_one_out() {
    let (mut frontend, socket) = Frontend::listening();
    let mut first = socket.connect();
    first.write_all(FLUSH).unwrap();
    let (id, name) = frontend.next_request();
    assert_eq!(name, "guest-file-flush");
    drop(first);
    let mut next = socket.connect();
    next.write_all(PING).unwrap();
    assert_eq!(line(&next), PONG);
    frontend.flushed(id);
    next.write_all(PING).unwrap();
    assert_eq!(line(&next), PONG);
    frontend.end().unwrap();
}

/// What was in the socket when it closed was sent: it is done, as by qemu-ga.
#[test]
fn a_request_sent_just_before_closing_is_carried_out() {
    let (mut frontend, socket) = Frontend::listening();
    socket.connect().write_all(&[PING, FLUSH].concat()).unwrap();
    assert_eq!(frontend.next_request().1, "guest-file-flush");
    frontend.end().unwrap();
}

/// qemu-ga spins and serves nothing meanwhile.
#[test]
fn a_client_that_does_not_read_is_waited_for_without_spinning_and_with_bounded_memory() {
    let (mut frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    client.write_all(READ).unwrap();
    let (id, _) = frontend.next_request();
    let piece = vec![b'x'; PIECE];
    frontend.send(id, &ToFrontend::Piece(0), &piece);
    frontend.send(id, &ToFrontend::Piece(0), &piece);
    // Pieces are asked for until the socket's and the frontend's buffers are full.
    let mut asked = 0;
    let (said, heard) = mpsc::channel();
    let status = frontend.task.clone();
    let reader = std::thread::spawn(move || {
        while let Ok(Some(received)) = frontend.broker.receive(&mut frontend.buffer) {
            if let FromFrontend::More(count) = received.message {
                said.send(count).unwrap();
                for _ in 0..count {
                    frontend.broker.send(id, 0, &ToFrontend::Piece(0), &piece).unwrap();
                }
            }
        }
    });
    while let Ok(count) = heard.recv_timeout(Duration::from_millis(300)) {
        asked += count;
    }
    assert!((1..20).contains(&asked), "{asked} pieces are held for a client that does not read");
    let before = wake_ups(&status);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(wake_ups(&status), before, "it was woken up");
    // It reads, and things go on.
    let mut much = vec![0; 3 << 20];
    client.read_exact(&mut much).unwrap();
    drop(client);
    let mut next = socket.connect();
    next.write_all(PING).unwrap();
    assert_eq!(line(&next), PONG);
    drop(reader);
}

#[test]
fn a_client_that_dies_while_much_waits_for_it_makes_room_for_the_next() {
    let (mut frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    client.write_all(READ).unwrap();
    let (id, _) = frontend.next_request();
    for _ in 0..3 {
        frontend.send(id, &ToFrontend::Piece(0), &[b'x'; PIECE]);
    }
    std::thread::sleep(Duration::from_millis(50));
    drop(client);
    let mut next = socket.connect();
    next.write_all(PING).unwrap();
    assert_eq!(line(&next), PONG);
    frontend.end().unwrap();
}

#[test]
fn a_channel_without_requests_causes_no_wake_ups() {
    let (frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    client.write_all(PING).unwrap();
    assert_eq!(line(&client), PONG);
    // Once after the start, memory goes back to the system.
    std::thread::sleep(Duration::from_millis(400));
    let before = frontend.wake_ups();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(frontend.wake_ups(), before);
    frontend.end().unwrap();
}

/// bincode counts the room for the items of an array before it has read them.
#[test]
fn the_largest_arguments_reach_the_broker() {
    let (mut frontend, socket) = Frontend::listening();
    let items = vec!["\"a\""; 128 * 1024].join(",");
    let path = "x".repeat((6 << 20) - 8 * 128 * 1024 - 1000);
    let exec = format!(
        r#"{{"execute":"guest-exec","arguments":{{"path":"{path}","arg":[{items}],"env":[{items}]}}}}"#
    );
    let mut client = socket.connect();
    client.write_all(exec.as_bytes()).unwrap();
    assert_eq!(frontend.next_request().1, "guest-exec");
    frontend.end().unwrap();
}

/// Its memory is given back a little later, once.
#[test]
fn after_a_large_request_there_is_quiet_again() {
    let (mut frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    let text = "QUJD".repeat(100_000);
    let write = format!(r#"{{"execute":"guest-file-write","arguments":{{"handle":1,"buf-b64":"{text}"}}}}"#);
    client.write_all(write.as_bytes()).unwrap();
    let (id, _) = frontend.next_request();
    let written = Reply::File(file::Reply::Write(file::Written { count: 300_000, eof: false }));
    frontend.send(id, &ToFrontend::Answer(Answer::Done(written)), b"");
    assert_eq!(line(&client), "{\"return\": {\"count\": 300000, \"eof\": false}}\n");
    std::thread::sleep(Duration::from_millis(400));
    let before = (frontend.wake_ups(), frontend.ticks());
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!((frontend.wake_ups(), frontend.ticks()), before);
    frontend.end().unwrap();
}

/// A FIFO that nobody writes to is like a virtio port without a host: end of file and hang-up, all the time.
#[test]
fn a_device_without_a_host_causes_no_wake_ups_and_the_next_host_begins_afresh() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let port =
        OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    let mut frontend = Frontend::serve(Method::VirtioSerial, port.into());
    // Once after the start, memory goes back to the system.
    std::thread::sleep(Duration::from_millis(400));
    let host = |bytes: &[u8]| {
        let mut host = File::options().write(true).open(&path).unwrap();
        host.write_all(bytes).unwrap();
        drop(host);
        std::thread::sleep(Duration::from_millis(50));
    };
    for _ in 0..2 {
        let before = frontend.wake_ups();
        std::thread::sleep(Duration::from_millis(400));
        assert!(frontend.wake_ups() <= before + 1, "it is woken up without a host");
        host(b"{\"execute\":\"guest-sync\",\"argum");
        host(FLUSH);
        assert_eq!(frontend.next_request().1, "guest-file-flush");
    }
    frontend.end().unwrap();
}

#[test]
fn a_serial_line_is_served_and_asks_to_be_opened_anew_when_it_hangs_up() {
    let line = openpty(None, None).unwrap();
    let mut settings = nix::sys::termios::tcgetattr(&line.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut settings);
    nix::sys::termios::tcsetattr(&line.slave, nix::sys::termios::SetArg::TCSANOW, &settings).unwrap();
    let frontend = Frontend::serve(Method::IsaSerial, line.slave);
    let mut host = File::from(line.master);
    host.write_all(&PING.repeat(3)).unwrap();
    let mut heard = vec![0; 3 * PONG.len()];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), PONG.repeat(3));
    drop(host);
    let error = frontend.thread.join().unwrap().unwrap_err();
    assert_eq!(error.exit_status(), 10, "{error}");
}

/// A line is larger than what a port takes at once.
#[test]
fn a_long_reply_goes_through_a_small_device() {
    let line = openpty(None, None).unwrap();
    let mut settings = nix::sys::termios::tcgetattr(&line.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut settings);
    nix::sys::termios::tcsetattr(&line.slave, nix::sys::termios::SetArg::TCSANOW, &settings).unwrap();
    let mut frontend = Frontend::serve(Method::VirtioSerial, line.slave);
    let mut host = File::from(line.master);
    host.write_all(READ).unwrap();
    let (id, _) = frontend.next_request();
    let reply = Reply::File(file::Reply::Read(file::ReadDone { count: 96, eof: true }));
    frontend.send(id, &ToFrontend::Answer(Answer::Done(reply)), &vec![b'x'; PIECE]);
    let mut heard = String::new();
    let mut host = BufReader::new(host);
    host.read_line(&mut heard).unwrap();
    assert_eq!(
        heard.len(),
        PIECE / 3 * 4 + "{\"return\": {\"buf-b64\": \"\", \"count\": 96, \"eof\": true}}\n".len()
    );
    frontend.end().unwrap();
}

#[test]
fn a_broker_of_another_build_ends_it() {
    let (channel, _peer) = UnixStream::pair().unwrap();
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let broker = Pipe::<ToFrontend, FromFrontend>::new(ours);
    let hello = Hello { build_id: "other".to_owned(), role: "broker".to_owned(), confinement: Vec::new() };
    broker.send(0, 0, &ToFrontend::Hello(hello), b"").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (sender, receiver) = pipe::split(theirs).unwrap();
    let channel = Channel::new(channel.into()).unwrap();
    let error = runtime.block_on(serve(channel, sender, receiver, Vec::new())).unwrap_err();
    assert_eq!(error.exit_status(), 1);
    assert!(error.to_string().starts_with("the broker is of build other, this is "), "{error}");
}

/// `agent-shutdown`: the broker answers and goes at once.
#[test]
fn the_last_answer_is_written_before_the_end() {
    let (mut frontend, socket) = Frontend::listening();
    let mut client = socket.connect();
    client.write_all(FLUSH).unwrap();
    let (id, _) = frontend.next_request();
    frontend.flushed(id);
    let begin = Instant::now();
    frontend.end().unwrap();
    assert_eq!(line(&client), PONG);
    assert!(begin.elapsed() < Duration::from_secs(1));
}
