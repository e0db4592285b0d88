//! A session with a broker and a clock that do what the test says.
#![allow(dead_code, reason = "each test uses its part")]

use std::time::{Duration, Instant};

use frontend::{Outgoing, Session, TooLarge};
use proto::message::{FromFrontend, ToFrontend, Welcome};
use proto::settings::{ChannelSettings, Method};
use proto::{Answer, Dialect, Reply, Request, agent, file};

/// What the session sent.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) sent: Vec<(u64, FromFrontend, Vec<u8>)>,
    pub(crate) congested: bool,
}

impl Outgoing for Broker {
    fn send(&mut self, id: u64, message: &FromFrontend, payload: &[u8]) -> Result<(), TooLarge> {
        self.sent.push((id, message.clone(), payload.to_vec()));
        Ok(())
    }

    fn is_congested(&self) -> bool {
        self.congested
    }
}

pub(crate) struct Fake {
    pub(crate) session: Session,
    pub(crate) broker: Broker,
    pub(crate) now: Instant,
}

pub(crate) fn welcome(dialects: &[Dialect], denied: &[&str]) -> Welcome {
    Welcome {
        channel: ChannelSettings {
            name: "test".to_owned(),
            method: Method::UnixListen,
            dialects: dialects.to_vec(),
            peer_cid: None,
        },
        frozen: false,
        verdicts: proto::commands()
            .filter(|command| !command.extension)
            .map(|command| (command.id(), !denied.contains(&command.name())))
            .collect(),
        each: Vec::new(),
        versions: vec![
            (Dialect::Qga, proto::QGA_LEVEL.to_owned()),
            (Dialect::Phoenix, proto::PHOENIX_LEVEL.to_owned()),
        ],
    }
}

impl Fake {
    pub(crate) fn new(dialects: &[Dialect]) -> Self {
        Self::denying(dialects, &[])
    }

    pub(crate) fn qga() -> Self {
        Self::new(&[Dialect::Qga])
    }

    pub(crate) fn denying(dialects: &[Dialect], denied: &[&str]) -> Self {
        Fake {
            session: Session::new(&welcome(dialects, denied)),
            broker: Broker::default(),
            now: Instant::now(),
        }
    }

    /// The host writes; returns what it can read.
    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) -> String {
        let mut rest = bytes.as_ref();
        let mut heard = String::new();
        while !rest.is_empty() {
            let used = self.session.input(rest, self.now, &mut self.broker);
            rest = &rest[used..];
            let more = self.heard();
            assert!(used > 0 || !more.is_empty(), "input is refused");
            heard += &more;
        }
        heard + &self.heard()
    }

    /// What the host can read; a byte that is no text is shown as `\xHH`.
    pub(crate) fn heard(&mut self) -> String {
        let mut heard = Vec::new();
        while !self.session.output().is_empty() {
            heard.extend_from_slice(self.session.output());
            let count = self.session.output().len();
            self.session.sent(count, self.now, &mut self.broker);
        }
        shown(&heard)
    }

    pub(crate) fn broker_says(&mut self, id: u64, message: ToFrontend, payload: &[u8]) {
        self.session.from_broker(id, message, payload, self.now, &mut self.broker).unwrap();
    }

    pub(crate) fn answer(&mut self, id: u64, reply: impl Into<Reply>) {
        self.broker_says(id, ToFrontend::Answer(Answer::Done(reply.into())), b"");
    }

    pub(crate) fn after(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.session.tick(self.now, &mut self.broker);
    }

    pub(crate) fn leave(&mut self) {
        self.session.leave(self.now, &mut self.broker);
    }

    /// What was sent since this was asked last, in short.
    pub(crate) fn asked(&mut self) -> Vec<String> {
        self.broker.sent.drain(..).map(|(id, message, payload)| brief(id, &message, &payload)).collect()
    }
}

pub(crate) fn shown(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text += chunk.valid();
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
        text
    })
}

fn brief(id: u64, message: &FromFrontend, payload: &[u8]) -> String {
    match message {
        FromFrontend::Request { lane, request, counts } => {
            let counts: u32 = counts.iter().map(|(_, count)| count).sum();
            let (name, bytes) = (request.command().name(), payload.len());
            format!("{id} {name} lane {lane} counts {counts} bytes {bytes}")
        }
        FromFrontend::Piece => format!("{id} piece {}", payload.len()),
        FromFrontend::More(count) => format!("{id} more {count}"),
        FromFrontend::Abandon { cancel } => format!("{id} abandon cancel={cancel}"),
        FromFrontend::Counts(counts) => {
            format!("counts {}", counts.iter().map(|(_, count)| count).sum::<u32>())
        }
        other => format!("{other:?}"),
    }
}

pub(crate) fn read_done(count: i64, eof: bool) -> Reply {
    Reply::File(file::Reply::Read(file::ReadDone { count, eof }))
}

pub(crate) fn nothing() -> Reply {
    Reply::File(file::Reply::Flush(agent::Nothing {}))
}

pub(crate) fn request(fake: &Fake, id: u64) -> Request {
    let found = fake.broker.sent.iter().find_map(|(of, message, _)| match message {
        FromFrontend::Request { request, .. } if *of == id => Some(request.clone()),
        _ => None,
    });
    found.unwrap()
}
