//! Measures what a large write costs the frontend itself: reading 22 MiB of request and cutting 16 MiB out of it.

use std::time::Instant;

use frontend::{Outgoing, Rules, Session, TooLarge, Upload, qga};
use proto::Dialect;
use proto::message::{FromFrontend, ToFrontend, Welcome};
use proto::settings::{ChannelSettings, Method};

#[derive(Default)]
struct Counting {
    last: u64,
    bytes: usize,
}

impl Outgoing for Counting {
    fn send(&mut self, id: u64, _: &FromFrontend, payload: &[u8]) -> Result<(), TooLarge> {
        self.last = id;
        self.bytes += payload.len();
        Ok(())
    }

    fn is_congested(&self) -> bool {
        false
    }
}

fn main() {
    let megabytes = 16;
    let text = "QUJD".repeat((megabytes << 20) / 3);
    let request =
        format!("{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":1,\"buf-b64\":\"{text}\"}}}}");
    let time = |what: &str, work: &mut dyn FnMut()| {
        let mut best = f64::MAX;
        for _ in 0..8 {
            let begin = Instant::now();
            work();
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let gigabytes = f64::from(u32::try_from(request.len()).unwrap_or(u32::MAX)) / 1e9;
        println!("{what:12} {:7.2} ms {:6.2} GB/s of text", best * 1e3, gigabytes / best);
    };
    let mut texts: Vec<Vec<u8>> = (0..8).map(|_| text.clone().into_bytes()).collect();
    time("survey", &mut || drop(Upload::new(texts.pop().unwrap_or_default(), Rules::Glib)));
    let mut upload: Vec<_> =
        (0..8).filter_map(|_| Upload::new(text.clone().into_bytes(), Rules::Glib).ok()).collect();
    time("decode", &mut || {
        let (mut scratch, mut upload) = (Vec::new(), upload.pop());
        while let Some(upload) = upload.as_mut().filter(|upload| !upload.is_finished()) {
            upload.next(&mut scratch);
        }
    });
    time("read", &mut || {
        let mut reader = qga::Reader::default();
        for chunk in request.as_bytes().chunks(64 * 1024) {
            reader.read(chunk);
        }
    });
    let welcome = Welcome {
        channel: ChannelSettings {
            name: "x".to_owned(),
            method: Method::UnixListen,
            dialects: vec![Dialect::Qga],
            peer_cid: None,
        },
        frozen: false,
        verdicts: proto::commands().map(|command| (command.id(), true)).collect(),
        each: Vec::new(),
        versions: Vec::new(),
    };
    let mut session = Session::new(&welcome);
    time("session", &mut || {
        let (mut broker, now) = (Counting::default(), Instant::now());
        for chunk in request.as_bytes().chunks(64 * 1024) {
            session.input(chunk, now, &mut broker);
        }
        while broker.bytes < megabytes << 20 {
            let before = broker.bytes;
            session.from_broker(broker.last, ToFrontend::More(1), b"", now, &mut broker).expect("fits");
            if broker.bytes == before {
                break;
            }
        }
        session.leave(now, &mut broker);
    });
}
