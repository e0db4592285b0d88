//! Valid values of the binary forms, made when they are needed: as files they would be outdated by each new command.

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use compile::{Bundle, RpcList, Source};
use pipe::{Encode, encode_head};
use proto::chain::Hash;
use proto::message::{
    About, Detail, Found, FromFrontend, FromWorker, Hello, Job, ToFrontend, ToWorker, Welcome,
};
use proto::settings::{AuditSettings, AuditSink, ChannelSettings, Method, Settings};
use proto::{
    Answer, Denied, Dialect, Failed, Group, NoArguments, Payload, Reply, Request, agent, file, query,
};
use spawner::reloads::{self, Reloads};
use spawner::{Channel, Compiled, Descriptors, FromBroker, FromSpawner, Plan, Reason, Verdict};

/// Inputs for the target called `name`, beside the files in `seeds/`.
pub fn samples(name: &str) -> Vec<Vec<u8>> {
    match name {
        "frontend_survives_any_broker" => {
            vec![records(
                &[&[encoded(&to_frontend())].concat()[..], &[encoded(&end_of_a_read())].concat()[..]]
                    .concat(),
            )]
        }
        "frames_are_put_together_soundly" => vec![records(&frames())],
        "message_from_frontend_has_one_form" => encoded(&from_frontend()),
        "message_to_frontend_has_one_form" => encoded(&to_frontend()),
        "message_to_worker_has_one_form" => encoded(&to_worker()),
        "message_from_worker_has_one_form" => encoded(&from_worker()),
        "spawner_message_has_one_form" => spawner_messages(),
        "plan_has_one_form" => vec![plan().encode().expect("it is in range")],
        "sealed_policy_decodes_soundly" => {
            vec![Sealed::new(settings(), policy()).encode().expect("it is small")]
        }
        "compiled_policy_decides_soundly" => vec![policy().encode().expect("it is small")],
        "policy_bundle_is_read_soundly" => vec![bundle().encode().expect("it is small")],
        _ => Vec::new(),
    }
}

fn encoded<M: Encode>(messages: &[M]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| encode_head(message).expect("it is small")).collect()
}

fn records(records: &[Vec<u8>]) -> Vec<u8> {
    let length = |record: &Vec<u8>| u16::try_from(record.len()).expect("it is small").to_le_bytes();
    records.iter().flat_map(|record| [&length(record)[..], record].concat()).collect()
}

/// A call of some commands of each privilege.
pub(crate) fn requests() -> Vec<Request> {
    let path = || "/etc/hostname".into();
    vec![
        agent::Request::Shutdown(NoArguments {}).into(),
        query::Request::OsInfo(NoArguments {}).into(),
        file::Request::Open(file::Open { path: path(), mode: Some("r+".to_owned()) }).into(),
        file::Request::Read(file::Read { handle: 1000, count: Some(4096) }).into(),
        file::Request::Write(file::Write {
            handle: 1000,
            buf_b64: Payload { present: true, length: 3, ..Payload::default() },
            count: None,
        })
        .into(),
        file::Request::PhoenixOpen(file::PhoenixOpen {
            path: path(),
            mode: "w".to_owned(),
            perm: 0o644,
            force: false,
        })
        .into(),
    ]
}

fn hello() -> Hello {
    let confinement = vec![("landlock".to_owned(), "7".to_owned())];
    Hello { build_id: proto::BUILD_ID.to_owned(), role: "frontend".to_owned(), confinement }
}

/// What a broker tells a frontend: everything is served but changes of the network.
pub(crate) fn welcome(dialects: &[Dialect]) -> Welcome {
    let verdicts =
        proto::commands().map(|command| (command.id(), command.group != Group::NetChange)).collect();
    let versions = vec![
        (Dialect::Qga, proto::QGA_LEVEL.to_owned()),
        (Dialect::Phoenix, proto::PHOENIX_LEVEL.to_owned()),
    ];
    let channel = ChannelSettings {
        name: "test".to_owned(),
        method: Method::UnixListen,
        dialects: dialects.to_vec(),
        peer_cid: None,
    };
    Welcome { channel, frozen: false, verdicts, each: vec![proto::CommandId(0)], versions }
}

fn from_frontend() -> Vec<FromFrontend> {
    let ping = agent::COMMANDS.first().expect("there are commands").id();
    let asked = requests().into_iter().map(|request| FromFrontend::Request {
        lane: 1,
        request,
        counts: vec![(ping, 2)],
    });
    let others = [
        FromFrontend::Hello(hello()),
        FromFrontend::Piece,
        FromFrontend::More(1),
        FromFrontend::Abandon { cancel: true },
        FromFrontend::Counts(vec![(ping, 7)]),
        FromFrontend::Note("a line".to_owned()),
    ];
    asked.chain(others).collect()
}

fn replies() -> Vec<Reply> {
    vec![
        file::Reply::Read(file::ReadDone { count: 3, eof: true }).into(),
        file::Reply::Open(1000).into(),
        agent::Reply::Ping(agent::Nothing {}).into(),
    ]
}

fn to_frontend() -> Vec<ToFrontend> {
    let done = replies().into_iter().map(|reply| ToFrontend::Answer(Answer::Done(reply)));
    let others = [
        ToFrontend::Hello(hello()),
        ToFrontend::Welcome(welcome(&[Dialect::Qga])),
        ToFrontend::More(2),
        ToFrontend::Starting(true),
        ToFrontend::Piece(0),
        ToFrontend::Answer(Answer::Denied(Denied::Command("guest-exec".to_owned()))),
        ToFrontend::Answer(Answer::Failed(Failed::system("failed", 2))),
    ];
    done.chain(others).collect()
}

/// A reply that the first request of [`crate::conversation::any_broker`] takes.
fn end_of_a_read() -> [ToFrontend; 2] {
    let done = file::Reply::Read(file::ReadDone { count: 3, eof: true });
    [ToFrontend::Piece(0), ToFrontend::Answer(Answer::Done(done.into()))]
}

fn to_worker() -> Vec<ToWorker> {
    let detail = Detail { handle: 1, offset: Some(4096), position: None, count: 98_304 };
    let jobs = requests()
        .into_iter()
        .map(|request| ToWorker::Job(Job { channel: "test".to_owned(), request, detail: detail.clone() }));
    let others = [
        ToWorker::Hello(hello()),
        ToWorker::Piece,
        ToWorker::More(1),
        ToWorker::Abandon,
        ToWorker::Forget(7),
        ToWorker::Record(about()),
    ];
    jobs.chain(others).collect()
}

fn about() -> About {
    let text = |text: &str| Some(text.to_owned());
    About {
        sequence: 7,
        hash: Hash([3; 32]),
        kind: "request".to_owned(),
        command: text("guest-ping"),
        channel: text("qga"),
        decision: text("allow"),
        outcome: text("done"),
    }
}

fn from_worker() -> Vec<FromWorker> {
    let done = replies().into_iter().map(|reply| FromWorker::Answer(Ok(reply), Found::default()));
    let found = Found { path: Some("/srv/file".into()), uid: Some(1000), stale: true };
    let others = [
        FromWorker::Hello(hello()),
        FromWorker::Piece(1),
        FromWorker::Answer(Err(Failed::new("failed")), found.clone()),
        FromWorker::Denied(found),
        FromWorker::Refused("no".to_owned()),
        FromWorker::Taken,
        FromWorker::Recorded(Ok(())),
    ];
    done.chain(others).collect()
}

/// Whole frames, and one message in two parts.
fn frames() -> Vec<Vec<u8>> {
    let frame = |flags: u8, id: u64, head: &[u8], payload: &[u8]| {
        let length = |bytes: usize| u32::try_from(bytes).expect("it is small").to_le_bytes();
        [
            &[0x52, 0x50, 1, flags][..],
            &length(head.len()),
            &id.to_le_bytes(),
            &5_u32.to_le_bytes(),
            &length(head.len() + payload.len()),
            head,
            payload,
        ]
        .concat()
    };
    let heads = encoded(&from_frontend());
    let (first, rest) = heads.split_first().expect("there are messages");
    let (begin, end) = first.split_at(first.len() / 2);
    let whole = rest.iter().zip(2..).map(|(head, id)| frame(0, id, head, b"payload"));
    whole.chain([frame(1, 1, begin, b""), frame(0, 1, end, b"abc")]).collect()
}

fn spawner_messages() -> Vec<Vec<u8>> {
    let (kind, instance) = (jail::Role::File, 1);
    let from_broker = [
        FromBroker::Start { kind, instance },
        FromBroker::Kill { kind, instance },
        FromBroker::Ready,
        FromBroker::Rotate,
        FromBroker::Stop { status: 1 },
        FromBroker::Frozen { frozen: true },
        FromBroker::Reloaded { accepted: true },
    ];
    let from_spawner = [
        FromSpawner::Started { kind, instance, pid: 4711 },
        FromSpawner::Refused { kind, instance, reason: Reason::TooOften },
        FromSpawner::Exited { kind, instance, status: 31 },
        FromSpawner::Frontend { channel: 0, pid: 4712 },
        FromSpawner::Rotated { number: 7 },
        FromSpawner::Kept { errno: 11 },
        FromSpawner::Thaw,
        FromSpawner::Reload { verdict: Verdict::Compiled },
    ];
    let reloads =
        Reloads { begun: 2, ended: 1, outcome: reloads::Outcome::Accepted, waits: false, settings: 7 };
    let one = from_broker.map(|message| message.encode(1).to_vec());
    let others = [Compiled { workers: 1 << kind as u8 }.encode().to_vec(), reloads.encode().to_vec()];
    one.into_iter().chain(from_spawner.map(|message| message.encode(2).to_vec())).chain(others).collect()
}

fn plan() -> Plan {
    let channel = |method| Channel { method, retry: true, reopen: false };
    Plan {
        uid_base: 61_184,
        workers: vec![jail::Role::Query, jail::Role::File],
        channels: vec![
            channel(spawner::Method::VirtioSerial {
                path: "/dev/virtio-ports/org.qemu.guest_agent.0".into(),
            }),
            channel(spawner::Method::UnixListen { path: "/run/guest.sock".into(), mode: Some(0o600) }),
            channel(spawner::Method::VsockListen { cid: u32::MAX, port: 1234 }),
            channel(spawner::Method::Inherited { descriptor: 9 }),
        ],
        descriptors: Descriptors {
            executables: 3,
            settings: 4,
            log: 2,
            audit: Some(5),
            audit_directory: Some(10),
            audit_socket: Some(11),
            chain: Some(12),
            state: Some(6),
            ready: None,
            marker: Some(9),
            pid_file: Some(7),
            command: Some(8),
        },
        audit_file: Some(spawner::AuditFile {
            name: b"audit.jsonl".to_vec(),
            rotate_bytes: 1 << 25,
            rotate_seconds: 86_400,
            keep: 10,
            first: 1,
            next: 4,
        }),
        frozen: false,
        pid_file: Some("/run/qemu-ga.pid".into()),
        name: b"qemu-ga".to_vec(),
        notify_socket: b"@notify".to_vec(),
    }
}

fn settings() -> Settings {
    Settings {
        channels: vec![welcome(&[Dialect::Qga, Dialect::Phoenix]).channel],
        audit: AuditSettings {
            sinks: vec![AuditSink::File, AuditSink::Journald, AuditSink::Kernel],
            required: true,
            name: "audit.jsonl".to_owned(),
            rotate_bytes: 1 << 25,
            ..AuditSettings::default()
        },
        verbose: false,
        time_zone: Some("UTC".to_owned()),
        os_release: None,
        environment: vec![(b"PATH".to_vec(), b"/usr/bin".to_vec())],
        idle_seconds: 60,
        ..Settings::default()
    }
}

fn policy() -> Policy {
    let rule = |outcome, line| Rule {
        commands: proto::find(Dialect::Qga, "guest-file-open")
            .map(|command| vec![command.id()])
            .unwrap_or_default(),
        groups: vec![Group::Query],
        channels: vec!["test".to_owned()],
        dialects: vec![Dialect::Qga],
        ..Rule::new(outcome, Origin { place: "policy.toml".into(), line })
    };
    Policy::new("policy.toml", vec![rule(Outcome::Deny, 3)], vec![rule(Outcome::Allow, 7)])
}

fn bundle() -> Bundle {
    let list = |text: &str| RpcList {
        origin: Origin { place: "--block-rpcs".into(), line: 0 },
        text: text.to_owned(),
    };
    Bundle {
        sources: vec![Source::File {
            name: "policy.toml".to_owned(),
            text: "version = 1\n[[rule]]\noutcome = \"allow\"\n".to_owned(),
        }],
        allow: vec![list("guest-ping;guest-info")],
        block: vec![list("guest-exec,guest-nonsense")],
    }
}
