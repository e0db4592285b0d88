//! The frontend's session between a host that says anything and a broker that keeps to the protocol, or does not.
//!
//! The input is what the host sends. In it the byte 1E begins an event, named by the byte after it:
//!
//! | bytes | what happens |
//! | --- | --- |
//! | `0` to `9` | the broker answers that request of those it has, counted from the oldest |
//! | `p` `P` | the broker sends a piece of 10 or of 98304 bytes of the oldest reply that streams |
//! | `m` | the broker takes a piece of the oldest request that has more of them |
//! | `d` `e` | the broker refuses the oldest request, or says that it failed |
//! | `r` | the policy has changed |
//! | `c` `C` | the socket to the broker is full, and empty again |
//! | `h` `H` | the host stops reading, and reads again |
//! | `t` `T` | 30 ms or 1 s pass |
//! | `l` | the host goes, and another one comes |
//!
//! Whatever was said: every line of the agent is JSON, the broker is sent no more than it may be sent, and when the host
//! has been silent for a while a new request is answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use frontend::{Outgoing, Session, TooLarge};
use pipe::{decode_head, encode_head};
use proto::limits::{PAYLOAD, PIECE, REQUESTS_IN_FLIGHT, WINDOW};
use proto::message::{FromFrontend, ToFrontend};
use proto::{Answer, Denied, Dialect, Failed, Reply, Request, exec, file};

use super::forms::records;
use super::samples::welcome;

const EVENT: u8 = 0x1e;
/// More events than this are not looked at; a longer input finds no more.
const ROUNDS: usize = 4096;

pub(crate) fn qga(data: &[u8]) {
    let mut conversation = Conversation::new(&[Dialect::Qga]);
    conversation.play(data);
    conversation.expect_sync();
}

pub(crate) fn phoenix(data: &[u8]) {
    let mut conversation = Conversation::new(&[Dialect::Phoenix]);
    conversation.play(data);
    conversation.expect_ping();
}

pub(crate) fn both(data: &[u8]) {
    let mut conversation = Conversation::new(&[Dialect::Qga, Dialect::Phoenix]);
    conversation.play(data);
    conversation.expect_sync();
}

/// The input is a row of messages of the broker, each after its length (u16) and the id in its first byte.
pub(crate) fn any_broker(data: &[u8]) {
    const ASKED: &[u8] = b"{\"execute\":\"guest-file-read\",\"arguments\":{\"handle\":1}}\
        {\"execute\":\"guest-get-osinfo\"}{\"execute\":\"guest-exec-status\",\"arguments\":{\"pid\":1}}\
        {\"execute\":\"guest-file-write\",\"arguments\":{\"handle\":1,\"buf-b64\":\"YWJj\"}}\
        {\"execute\":\"file-read\",\"arguments\":{\"handle_id\":1},\"tag\":\"t\"}";
    let mut conversation = Conversation::new(&[Dialect::Qga, Dialect::Phoenix]);
    conversation.host_sends(ASKED);
    for record in records(data).take(ROUNDS) {
        let Some(([id], head)) = record.split_first_chunk() else { continue };
        let Ok(message) = decode_head::<ToFrontend>(head) else { return };
        let Conversation { session, broker, now, .. } = &mut conversation;
        // The process ends here.
        if session.from_broker(u64::from(*id), message, head, *now, broker).is_err() {
            return;
        }
        conversation.host_reads();
    }
}

struct Conversation {
    session: Session,
    broker: Broker,
    now: Instant,
    dialects: Vec<Dialect>,
    host_is_reading: bool,
    /// What the host has read of a line that has not ended.
    line: Vec<u8>,
    /// The last line.
    last: Vec<u8>,
    /// What the session did not take yet.
    unread: Vec<u8>,
}

impl Conversation {
    fn new(dialects: &[Dialect]) -> Self {
        Conversation {
            session: Session::new(&welcome(dialects)),
            broker: Broker::default(),
            now: Instant::now(),
            dialects: dialects.to_vec(),
            host_is_reading: true,
            line: Vec::new(),
            last: Vec::new(),
            unread: Vec::new(),
        }
    }

    /// Plays the input, then lets everyone finish.
    fn play(&mut self, data: &[u8]) {
        let mut parts = data.split(|byte| *byte == EVENT).take(ROUNDS);
        self.host_sends(parts.next().unwrap_or_default());
        for part in parts {
            if let Some((event, bytes)) = part.split_first() {
                self.happens(*event);
                self.host_sends(bytes);
            }
        }
        self.finish();
    }

    fn happens(&mut self, event: u8) {
        match event {
            b'0'..=b'9' => {
                let place = usize::from(event - b'0');
                if let Some(id) = self.broker.requests.keys().copied().nth(place) {
                    self.broker_answers(id, None);
                }
            }
            b'p' => self.broker_sends_piece(10),
            b'P' => self.broker_sends_piece(PIECE),
            b'm' => self.broker_takes_piece(),
            b'd' => self.broker_answers_oldest(Answer::Denied(Denied::Arguments("not this".to_owned()))),
            b'e' => self.broker_answers_oldest(Answer::Failed(Failed::system("failed", 5))),
            b'r' => self.broker_says(0, ToFrontend::Welcome(welcome(&self.dialects)), &[]),
            b'c' => self.broker.is_congested = true,
            b'C' => self.socket_empties(),
            b'h' => self.host_is_reading = false,
            b'H' => self.host_is_reading = true,
            b't' => self.passes(Duration::from_millis(30)),
            b'T' => self.passes(Duration::from_secs(1)),
            b'l' => {
                self.unread.clear();
                self.line.clear();
                self.session.leave(self.now, &mut self.broker);
            }
            _ => {}
        }
        self.host_reads();
    }

    fn host_sends(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        loop {
            let unread = std::mem::take(&mut self.unread);
            let taken = self.session.input(&unread, self.now, &mut self.broker);
            self.unread = unread.get(taken..).expect("no more was taken than given").to_vec();
            self.host_reads();
            if taken == 0 || self.unread.is_empty() {
                return;
            }
        }
    }

    fn host_reads(&mut self) {
        while self.host_is_reading && !self.session.output().is_empty() {
            let bytes = self.session.output().to_vec();
            self.session.sent(bytes.len(), self.now, &mut self.broker);
            for part in bytes.split_inclusive(|byte| *byte == b'\n') {
                self.line.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    self.last = std::mem::take(&mut self.line);
                    is_a_reply(&self.last);
                }
            }
        }
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        if self.session.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.session.tick(self.now, &mut self.broker);
        }
    }

    fn socket_empties(&mut self) {
        self.broker.is_congested = false;
        self.session.tick(self.now, &mut self.broker);
    }

    fn broker_says(&mut self, id: u64, message: ToFrontend, payload: &[u8]) {
        let said = self.session.from_broker(id, message, payload, self.now, &mut self.broker);
        said.expect("the broker has kept to the protocol");
    }

    fn broker_answers_oldest(&mut self, answer: Answer) {
        if let Some(id) = self.broker.requests.keys().copied().next() {
            self.broker_answers(id, Some(answer));
        }
    }

    fn broker_answers(&mut self, id: u64, answer: Option<Answer>) {
        if let Some(asked) = self.broker.requests.remove(&id) {
            let answer = answer.unwrap_or_else(|| asked.answer());
            let bytes: &[u8] =
                if asked.streams && matches!(answer, Answer::Done(_)) { b"the end" } else { b"" };
            self.broker_says(id, ToFrontend::Answer(answer), bytes);
        }
    }

    fn broker_sends_piece(&mut self, length: usize) {
        let mut requests = self.broker.requests.iter_mut();
        if let Some((id, asked)) = requests.find(|(_, asked)| asked.streams && asked.may_send > 0) {
            asked.may_send -= 1;
            let id = *id;
            self.broker_says(id, ToFrontend::Piece(0), &vec![b'x'; length]);
        }
    }

    fn broker_takes_piece(&mut self) {
        let mut requests = self.broker.requests.iter_mut();
        if let Some((id, asked)) = requests.find(|(_, asked)| asked.untaken > 0) {
            asked.untaken -= 1;
            asked.window += 1;
            let id = *id;
            self.broker_says(id, ToFrontend::More(1), &[]);
        }
    }

    /// The host reads, the broker takes and answers everything. This comes to an end.
    fn finish(&mut self) {
        self.host_is_reading = true;
        self.socket_empties();
        let mut rounds = 0;
        loop {
            self.host_reads();
            self.host_sends(&[]);
            if let Some((id, asked)) = self.broker.requests.iter().next() {
                let id = *id;
                if asked.untaken > 0 { self.broker_takes_piece() } else { self.broker_answers(id, None) }
            } else if self.unread.is_empty() && self.session.is_idle() {
                break;
            }
            rounds += 1;
            assert!(rounds < 1_000_000, "the session does not come to rest");
        }
        assert_eq!(self.session.deadline(), None, "a silent agent sleeps");
    }

    fn expect_sync(&mut self) {
        self.host_sends(b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4711}}\n");
        self.finish();
        assert_eq!(String::from_utf8_lossy(&self.last), "\u{fffd}{\"return\": 4711}\n");
    }

    fn expect_ping(&mut self) {
        // The end of a line that has begun; it may be a request.
        self.host_sends(b"\n");
        self.finish();
        self.host_sends(b"{\"execute\":\"ping\",\"tag\":\"end\"}\n");
        self.finish();
        let expected = format!("{{\"return\":\"{}\",\"tag\":\"end\"}}\n", proto::PHOENIX_LEVEL);
        assert_eq!(String::from_utf8_lossy(&self.last), expected);
    }
}

/// One JSON object with one of the two members, behind the delimiter if it answers guest-sync-delimited.
fn is_a_reply(line: &[u8]) {
    let text = line.strip_prefix(b"\xff").unwrap_or(line);
    let reply: serde_json::Value = serde_json::from_slice(text)
        .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(line)));
    assert_ne!(reply.get("return").is_some(), reply.get("error").is_some(), "{reply}");
}

/// A request that the broker has.
struct Asked {
    request: Request,
    /// Pieces of its reply that the session is ready for.
    may_send: u16,
    streams: bool,
    /// Pieces of the payload that may come.
    window: u16,
    /// Pieces that have come and were not taken yet.
    untaken: u16,
    /// Bytes of the payload to come.
    missing: u64,
}

impl Asked {
    /// A reply that the command can have, where one is at hand.
    fn answer(&self) -> Answer {
        let reply: Reply = match &self.request {
            Request::File(file::Request::Read(_)) => {
                file::Reply::Read(file::ReadDone { count: 7, eof: true }).into()
            }
            Request::File(file::Request::PhoenixRead(_)) => {
                file::Reply::PhoenixRead(file::PhoenixReadDone { eof: false }).into()
            }
            Request::File(file::Request::Open(_)) => file::Reply::Open(1000).into(),
            Request::File(file::Request::Write(_)) => {
                file::Reply::Write(file::Written { count: 3, eof: false }).into()
            }
            Request::File(file::Request::PhoenixWrite(_)) => file::Reply::PhoenixWrite(true).into(),
            Request::Exec(exec::Request::Exec(_)) => exec::Reply::Exec(exec::Started { pid: 7 }).into(),
            _ => return Answer::Failed(Failed::new("not \"implemented\"\n\u{1f980}")),
        };
        Answer::Done(reply)
    }
}

/// Checks what it is sent.
#[derive(Default)]
struct Broker {
    requests: BTreeMap<u64, Asked>,
    last_id: u64,
    is_congested: bool,
}

impl Outgoing for Broker {
    fn send(&mut self, id: u64, message: &FromFrontend, payload: &[u8]) -> Result<(), TooLarge> {
        if encode_head(message).is_err() {
            return Err(TooLarge);
        }
        assert!(payload.len() <= PIECE);
        match message {
            FromFrontend::Request { request, .. } => {
                assert!(id > self.last_id, "a request's id is new");
                self.last_id = id;
                let length = request.payload().map_or(0, |payload| payload.length);
                assert!(length <= PAYLOAD);
                let mut asked = Asked {
                    request: request.clone(),
                    may_send: WINDOW,
                    streams: !request.command().streams.is_empty(),
                    window: WINDOW,
                    untaken: 0,
                    missing: length,
                };
                asked.takes(payload);
                self.requests.insert(id, asked);
                assert!(self.requests.len() <= REQUESTS_IN_FLIGHT, "no more than the broker may have");
            }
            // To a request that was answered early, a piece may be under way.
            FromFrontend::Piece => {
                if let Some(asked) = self.requests.get_mut(&id) {
                    assert!(!payload.is_empty());
                    asked.takes(payload);
                }
            }
            FromFrontend::More(count) => {
                if let Some(asked) = self.requests.get_mut(&id) {
                    asked.may_send += count;
                    assert!(asked.may_send <= WINDOW, "no more than the window");
                }
            }
            FromFrontend::Abandon { .. } => {
                self.requests.remove(&id);
            }
            FromFrontend::Counts(_) | FromFrontend::Note(_) => assert_eq!(id, 0),
            FromFrontend::Hello(_) => panic!("the hello is not the session's"),
        }
        Ok(())
    }

    fn is_congested(&self) -> bool {
        self.is_congested
    }
}

impl Asked {
    fn takes(&mut self, payload: &[u8]) {
        if !payload.is_empty() {
            let length = u64::try_from(payload.len()).expect("it is small");
            self.missing = self.missing.checked_sub(length).expect("no more than was said");
            self.window = self.window.checked_sub(1).expect("no more than the window");
            self.untaken += 1;
        }
    }
}
