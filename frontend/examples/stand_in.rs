//! A stand-in for everything but the frontend, to measure it: opens a unix socket, starts `portreeve-frontend` and answers
//! as a broker would whose workers take no time. Reads and writes are of memory.
//!
//! `stand_in FRONTEND SOCKET`; ends when the frontend does.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use pipe::Pipe;
use proto::limits::{PIECE, WINDOW};
use proto::message::{FromFrontend, Hello, ToFrontend, Welcome};
use proto::settings::{ChannelSettings, Method};
use proto::{Answer, Dialect, Failed, Reply, Request, agent, file};

type ToFrontendPipe = Pipe<ToFrontend, FromFrontend>;

/// A read or write under way.
enum Transfer {
    Read { left: u64, count: u64, credit: u16 },
    Write { left: u64, count: u64 },
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(frontend), Some(path)) = (arguments.next(), arguments.next()) else {
        panic!("stand_in FRONTEND SOCKET");
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{path}: {error}"),
        _ => {}
    }
    let listener = UnixListener::bind(&path).expect("bind");
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .expect("socketpair");
    let mut child = start(&frontend, theirs, listener.into());
    converse(&Pipe::new(ours));
    std::process::exit(child.wait().expect("wait").code().unwrap_or(1));
}

/// The shell moves the descriptors to their numbers: this program may not use `unsafe`.
fn start(frontend: &str, broker: OwnedFd, channel: OwnedFd) -> std::process::Child {
    let (broker, channel) = (broker.try_clone().expect("dup"), channel.try_clone().expect("dup"));
    for descriptor in [&broker, &channel] {
        nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .expect("fcntl");
    }
    let (from, to) = (broker.as_raw_fd(), channel.as_raw_fd());
    let base = if nix::unistd::geteuid().is_root() { jail::DEFAULT_UID_BASE } else { 0 };
    let script = format!("exec \"$0\" {base} 0 3<&{from} 5<&{to} {from}<&- {to}<&-");
    let script = if from <= 5 || to <= 5 {
        format!("exec 8<&{from} 9<&{to}; exec \"$0\" {base} 0 3<&8 5<&9 8<&- 9<&- 4<&- 6<&- 7<&-")
    } else {
        script
    };
    Command::new("/bin/sh")
        .args(["-c", &script, frontend])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("start")
}

fn converse(pipe: &ToFrontendPipe) {
    let hello =
        Hello { build_id: proto::BUILD_ID.to_owned(), role: "broker".to_owned(), confinement: Vec::new() };
    pipe.send(0, 0, &ToFrontend::Hello(hello), b"").expect("send");
    let welcome = Welcome {
        channel: ChannelSettings {
            name: "bench".to_owned(),
            method: Method::UnixListen,
            dialects: vec![Dialect::Qga],
            peer_cid: None,
        },
        frozen: false,
        verdicts: proto::commands().map(|command| (command.id(), true)).collect(),
        each: Vec::new(),
        versions: vec![(Dialect::Qga, proto::QGA_LEVEL.to_owned())],
    };
    pipe.send(0, 0, &ToFrontend::Welcome(welcome), b"").expect("send");
    let mut buffer = ToFrontendPipe::buffer();
    let mut transfers = HashMap::new();
    let content = vec![0x5a; PIECE];
    while let Some(received) = pipe.receive(&mut buffer).expect("the frontend keeps to the protocol") {
        let id = received.id;
        match received.message {
            FromFrontend::Request { request: Request::File(file::Request::Read(read)), .. } => {
                let count = u64::try_from(read.count.unwrap_or(4096)).unwrap_or(0);
                transfers.insert(id, Transfer::Read { left: count, count, credit: WINDOW });
            }
            FromFrontend::Request { request: Request::File(file::Request::Write(write)), .. } => {
                let count = write.buf_b64.length;
                transfers.insert(id, Transfer::Write { left: count, count });
                taken(pipe, &mut transfers, id, received.payload.len());
            }
            FromFrontend::Request { request, .. } => answer(pipe, id, done(&request)),
            FromFrontend::Piece => taken(pipe, &mut transfers, id, received.payload.len()),
            FromFrontend::More(more) => {
                if let Some(Transfer::Read { credit, .. }) = transfers.get_mut(&id) {
                    *credit += more;
                }
            }
            FromFrontend::Abandon { .. } => drop(transfers.remove(&id)),
            FromFrontend::Hello(hello) => eprintln!("confinement: {:?}", hello.confinement),
            FromFrontend::Counts(_) | FromFrontend::Note(_) => {}
        }
        let mut ended = None;
        if let Some(Transfer::Read { left, count, credit }) = transfers.get_mut(&id) {
            let piece = u64::try_from(PIECE).unwrap_or(u64::MAX);
            while *left > piece && *credit > 0 {
                pipe.send(id, 0, &ToFrontend::Piece(0), &content).expect("send");
                (*left, *credit) = (*left - piece, *credit - 1);
            }
            if *left <= piece {
                let count = i64::try_from(*count).unwrap_or(0);
                let reply = Reply::File(file::Reply::Read(file::ReadDone { count, eof: false }));
                let last = content.get(..usize::try_from(*left).unwrap_or(0)).unwrap_or_default();
                pipe.send(id, 0, &ToFrontend::Answer(Answer::Done(reply)), last).expect("send");
                ended = Some(id);
            }
        }
        if let Some(id) = ended {
            transfers.remove(&id);
        }
    }
}

/// A piece of a payload has come.
fn taken(pipe: &ToFrontendPipe, transfers: &mut HashMap<u64, Transfer>, id: u64, bytes: usize) {
    let Some(Transfer::Write { left, count }) = transfers.get_mut(&id) else { return };
    *left = left.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
    if *left > 0 {
        return pipe.send(id, 0, &ToFrontend::More(1), b"").expect("send");
    }
    let count = i64::try_from(*count).unwrap_or(0);
    answer(pipe, id, Answer::Done(Reply::File(file::Reply::Write(file::Written { count, eof: false }))));
    transfers.remove(&id);
}

fn answer(pipe: &ToFrontendPipe, id: u64, answer: Answer) {
    pipe.send(id, 0, &ToFrontend::Answer(answer), b"").expect("send");
}

fn done(request: &Request) -> Answer {
    Answer::Done(match request {
        Request::File(file::Request::Open(_)) => Reply::File(file::Reply::Open(1000)),
        Request::File(file::Request::Seek(seek)) => {
            Reply::File(file::Reply::Seek(file::Position { position: seek.offset, eof: false }))
        }
        Request::File(file::Request::Close(_)) => Reply::File(file::Reply::Close(agent::Nothing {})),
        Request::File(file::Request::Flush(_)) => Reply::File(file::Reply::Flush(agent::Nothing {})),
        _ => return Answer::Failed(Failed::new("the stand-in does not know this")),
    })
}
