//! How long a decision takes in policies of 10, 1,000 and 100,000 rules, and how large such policies are when they are sealed.
//!
//! Runs by hand, on a quiet machine: `cargo run --release -p authorize --example decisions -- [--json]`. Figures: docs/performance.md.

use std::hint::black_box;
use std::time::{Duration, Instant};

use authorize::{Asker, Conditions, Facts, Origin, Outcome, Pattern, Policy, Program, Rule, decide};
use proto::{Group, Payload, Request, account, exec, file};
use serde_json::json;

const SIZES: [usize; 3] = [10, 1_000, 100_000];
const DECISIONS: u32 = 20_000;

fn main() {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(_) => {
            eprintln!(
                "usage: decisions [--json]\nexample: cargo run --release -p authorize --example decisions -- --json"
            );
            std::process::exit(2);
        }
    };
    let rows: Vec<Row> = SIZES.into_iter().map(measure).collect();
    if json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", json!({ "decisions": DECISIONS, "rows": rows }));
        return;
    }
    println!("{:>8} {}", "rules", NAMES.map(|name| format!("{name:>14}")).concat());
    for row in rows {
        println!("{:>8} {}", row.rules, row.cells().map(|cell| format!("{cell:>14}")).concat());
    }
}

const NAMES: [&str; 10] = [
    "path",
    "not known yet",
    "no rule",
    "program",
    "user",
    "one folder",
    "sealed",
    "encode",
    "decode",
    "first",
];

struct Row {
    rules: usize,
    /// Of the last rule; of the same before it is known where the path leads; of a path that no rule has; …
    times: [Duration; 6],
    sealed: usize,
    encode: Duration,
    decode: Duration,
    /// The first decision about a command, which sorts the rules that are about it.
    first: Duration,
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let [path, unknown, none, program, user, folder] =
            self.times.map(|time| format!("{} ns", time.as_nanos()));
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let sealed = format!("{} KiB", self.sealed / 1024);
        [path, unknown, none, program, user, folder, sealed, ms(self.encode), ms(self.decode), ms(self.first)]
    }

    fn json(&self) -> serde_json::Value {
        let names = ["path_ns", "unknown_ns", "none_ns", "program_ns", "user_ns", "one_folder_ns"];
        let times =
            names.iter().zip(self.times).map(|(name, time)| ((*name).to_owned(), json!(time.as_nanos())));
        let mut row: serde_json::Map<_, _> = times.collect();
        row.insert("rules".to_owned(), json!(self.rules));
        row.insert("sealed_bytes".to_owned(), json!(self.sealed));
        row.insert("encode_us".to_owned(), json!(self.encode.as_micros()));
        row.insert("decode_us".to_owned(), json!(self.decode.as_micros()));
        row.insert("first_us".to_owned(), json!(self.first.as_micros()));
        row.into()
    }
}

fn measure(rules: usize) -> Row {
    let last = rules - 1;
    // Each kind of rule has a third of them, so that each decision is made among all.
    let mixed = policy((0..rules).map(|number| rule(number, number % 3)).collect());
    let of_kind = |kind: usize| (0..rules).rev().find(|number| number % 3 == kind).unwrap_or(0);
    let in_one_folder = policy((0..rules).map(|number| rule(number, 3)).collect());
    let path = format!("/srv/app-{}/data/file", of_kind(0));
    let there = Facts { path: Some(path.as_bytes()), uid: None };
    let elsewhere = Facts { path: Some(b"/var/lib/elsewhere/data/file"), uid: None };
    let folder = format!("/srv/any-{last}/file");
    let in_folder = Facts { path: Some(folder.as_bytes()), uid: None };
    let begun = Instant::now();
    let bytes = mixed.encode().unwrap_or_default();
    let encode = begun.elapsed();
    let begun = Instant::now();
    let decoded = Policy::decode(&bytes).expect("what was sealed is read");
    let decode = begun.elapsed();
    let begun = Instant::now();
    let _ = black_box(decide(&decoded, Asker { channel: "test", frozen: false }, &open(), there));
    let first = begun.elapsed();
    assert!(decoded == mixed, "what was sealed is what was meant");
    Row {
        rules,
        times: [
            time(&mixed, &open(), there, true),
            time(&mixed, &open(), Facts::default(), true),
            time(&mixed, &open(), elsewhere, false),
            time(&mixed, &run(of_kind(1)), Facts::default(), true),
            time(&mixed, &keys(of_kind(2)), Facts::default(), true),
            time(&in_one_folder, &open(), in_folder, true),
        ],
        sealed: bytes.len(),
        encode,
        decode,
        first,
    }
}

/// The best of ten rounds: what else the machine does only adds.
fn time(policy: &Policy, request: &Request, facts: Facts<'_>, permitted: bool) -> Duration {
    let asker = Asker { channel: "test", frozen: false };
    assert_eq!(decide(policy, asker, request, facts).is_ok(), permitted, "{request:?}");
    let begun = Instant::now();
    let _ = black_box(decide(policy, asker, request, facts));
    // Where one takes long, fewer are enough.
    let decisions = if begun.elapsed() > Duration::from_micros(100) { 20 } else { DECISIONS / 10 };
    let round = |_| {
        let begun = Instant::now();
        for _ in 0..decisions {
            let _ = black_box(decide(black_box(policy), asker, black_box(request), black_box(facts)));
        }
        begun.elapsed() / decisions
    };
    (0..10).map(round).min().unwrap_or_default()
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy::new("bench", Vec::new(), rules)
}

fn rule(number: usize, kind: usize) -> Rule {
    let pattern = |text: String| Pattern::name(&text).map(|pattern| vec![pattern]).unwrap_or_default();
    let (group, when) = match kind {
        0 => (
            Group::FileRead,
            Conditions { paths: pattern(format!("/srv/app-{number}/**")), ..Conditions::default() },
        ),
        1 => {
            let programs = pattern(format!("/usr/bin/tool-{number}")).into_iter().map(|path| Program {
                path,
                arguments: None,
                environment: None,
                input: false,
            });
            (Group::Exec, Conditions { programs: programs.collect(), ..Conditions::default() })
        }
        2 => {
            (Group::Account, Conditions { users: pattern(format!("user-{number}")), ..Conditions::default() })
        }
        _ => (
            Group::FileRead,
            Conditions { paths: pattern(format!("/srv/*-{number}/**")), ..Conditions::default() },
        ),
    };
    let line = u32::try_from(number).unwrap_or(u32::MAX);
    let origin = Origin { place: "/etc/portreeve/policy.toml".into(), line };
    Rule { groups: vec![group], when, ..Rule::new(Outcome::Allow, origin) }
}

fn open() -> Request {
    file::Request::Open(file::Open { path: "/srv/link".into(), mode: None }).into()
}

fn run(number: usize) -> Request {
    exec::Request::Exec(exec::Exec {
        path: format!("/usr/bin/tool-{number}").as_str().into(),
        arg: None,
        env: None,
        input_data: Payload::default(),
        capture_output: exec::Capture::None,
    })
    .into()
}

fn keys(number: usize) -> Request {
    account::Request::GetKeys(account::OfUser { username: format!("user-{number}").as_str().into() }).into()
}
