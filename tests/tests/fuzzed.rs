//! Every decoder on its seeds and some thousand mutations of them, the same in each run: what a fuzzer without feedback
//! finds in a second. The targets themselves are in `tests/fuzz`; `.ci/run` runs them with feedback.
#![expect(
    clippy::indexing_slicing,
    reason = "positions are taken modulo the length just before; a mistake fails the test"
)]

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "there it is the root of a library")]
mod fuzz;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutations for each target.
const MUTATIONS: usize = 3000;
/// Inputs do not grow beyond this.
const LONGEST: usize = 8192;
/// What decoders treat in their own way.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"'",
    b"\\",
    b"\\u0000",
    b"\\uD800",
    b"\\uDE00",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xc0\x80",
    b"\x1e",
    b"\x1e0",
    b"\x1e5",
    b"\x1ep",
    b"\x1eP",
    b"\x1em",
    b"\x1ee",
    b"\x1ed",
    b"\x1er",
    b"\x1eh",
    b"\x1eH",
    b"\x1et",
    b"\x1eT",
    b"\x1el",
    b"{\"execute\":\"guest-ping\"}",
    b"\"tag\":\"t\"",
    b"\"id\":1,",
    b"18446744073709551616",
    b"-0",
    b"1e999",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\0\0\0\x80",
    b"[[rule]]\n",
    b"=",
    b"\"\"\"",
    b"guest-exec",
    b",",
    b":",
    b"\"prev\":\"0000000000000000000000000000000000000000000000000000000000000000\"",
    b"\"sequence\":",
    b"\"kind\":\"start\"",
    b"\"link\":null",
];

fn check(name: &str) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let mut mutator = Mutator { state: 0x9e37_79b9_7f4a_7c15 };
    for seed in &seeds {
        run(name, seed);
    }
    for _ in 0..MUTATIONS {
        let input = mutator.mutate(&seeds);
        run(name, &input);
    }
}

/// Runs one input; what it breaks is kept as a file, for `cargo fuzz run`.
fn run(name: &str, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| fuzz::run(name, input))) {
        let path = std::env::temp_dir().join(format!("{name}.input"));
        std::fs::write(&path, input).expect("the temporary folder takes a file");
        eprintln!("{name} is broken by {}: {}", path.display(), String::from_utf8_lossy(input));
        std::panic::resume_unwind(panic);
    }
}

/// The files in `seeds/`, values made by this build, and the transcripts.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &PathBuf| std::fs::read(path).expect("the file is there");
    let mut seeds: Vec<Vec<u8>> = files(&tests.join("fuzz/seeds").join(name)).iter().map(read).collect();
    seeds.extend(fuzz::samples(name));
    if name.contains("session") {
        let transcripts = files(&tests.join("transcripts"));
        seeds.extend(transcripts.iter().map(|path| said(&String::from_utf8_lossy(&read(path)))));
    }
    seeds.retain(|seed| seed.len() <= LONGEST);
    seeds
}

/// What the host says in a transcript; the agent answers after each line.
fn said(transcript: &str) -> Vec<u8> {
    let lines = transcript.lines().filter_map(|line| line.strip_prefix("> "));
    lines
        .flat_map(|line| {
            line.replace("\\n", "\n").replace("\\r", "\r").into_bytes().into_iter().chain(*b"\n\x1e0")
        })
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

/// Changes inputs, always the same way.
struct Mutator {
    state: u64,
}

impl Mutator {
    /// A number below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).expect("31 bits fit") % bound.max(1)
    }

    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(16)).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256).to_le_bytes()[0],
                2 => drop(input.drain(at..end)),
                3 => input.truncate(at),
                4 => {
                    let token = TOKENS[self.below(TOKENS.len())];
                    drop(input.splice(at..at, token.iter().copied()));
                }
                5 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    drop(input.splice(at..end, other[from..].iter().copied()));
                }
                _ => {
                    let again = input[at..end].to_vec();
                    drop(input.splice(at..at, again));
                }
            }
            input.truncate(LONGEST);
        }
        input
    }
}

/// One test for each target, so that a failure names it.
macro_rules! targets {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })+

        #[test]
        fn every_target_is_run_here_has_a_program_and_is_built() {
            let run: BTreeSet<&str> = BTreeSet::from([$(stringify!($name)),+]);
            let targets: BTreeSet<&str> = fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("the project has a manifest");
            let built: BTreeSet<&str> =
                manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\"")).collect();
            let programs = files(&folder.join("fuzz_targets"));
            let programs: BTreeSet<&str> =
                programs.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
            assert_eq!(run, targets);
            assert_eq!(programs, targets);
            assert_eq!(built, targets);
        }
    };
}

targets! {
    qga_session_always_answers_a_sync
    phoenix_session_always_answers_a_ping
    session_of_both_dialects_always_answers
    frontend_survives_any_broker
    frames_are_put_together_soundly
    message_from_frontend_has_one_form
    message_to_frontend_has_one_form
    message_to_worker_has_one_form
    message_from_worker_has_one_form
    spawner_message_has_one_form
    plan_has_one_form
    sealed_policy_decodes_soundly
    compiled_policy_decides_soundly
    policy_text_compiles_soundly
    policy_bundle_is_read_soundly
    audit_log_is_read_soundly
}
