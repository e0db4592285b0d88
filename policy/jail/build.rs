//! Turns `policy/seccomp/*.policy` into Rust tables, from which the filters are assembled while this crate is compiled: nothing is
//! parsed and nothing is assembled when a process starts.
//!
//! A line is `[ARCH] name CONDITION, CONDITION # who needs it`: the architecture and the conditions are optional, the
//! reason is not. A condition is `argN == VALUE` or `argN & MASK == VALUE` and looks at the lower 32 bits, as the kernel does at
//! an int; N counts from 0; values are numbers or names of the libc crate joined by `|`. Several lines for one name are
//! alternatives. `@include NAME` takes over another file's lines. A wrong name does not compile, since the tables name
//! `libc::SYS_…`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

const LISTS: [&str; 14] = [
    "frontend", "broker", "query", "file", "net", "netadmin", "compile", "fsfreeze", "power", "clock",
    "hotplug", "account", "audit", "spawner",
];
const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];

#[derive(Clone)]
struct Line {
    name: String,
    conditions: Vec<String>,
    reason: String,
    source: String,
}

fn main() {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../seccomp");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut out = String::new();
    for list in LISTS {
        let lines = read(&folder, list, &architecture, 0);
        emit(&mut out, list, &lines);
    }
    writeln!(out, "/// All files that belong to a process.\npub static LISTS: [List; {}] = [", LISTS.len())
        .expect("a string grows");
    for list in LISTS {
        let upper = list.to_ascii_uppercase();
        writeln!(out, "    List {{ name: {list:?}, rules: {upper}_RULES }},").expect("a string grows");
    }
    writeln!(out, "];").expect("a string grows");
    let path = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("tables.rs");
    fs::write(path, out).expect("OUT_DIR is writable");
}

fn read(folder: &Path, list: &str, architecture: &str, depth: usize) -> Vec<Line> {
    assert!(depth < 4, "policy/seccomp/{list}.policy: includes go round in circles");
    let path = folder.join(format!("{list}.policy"));
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let source = format!("{list}.policy:{}", number + 1);
        let (rule, reason) = line.split_once('#').unwrap_or((line, ""));
        let (mut rule, reason) = (rule.trim(), reason.trim());
        if rule.is_empty() {
            continue;
        }
        if let Some(other) = rule.strip_prefix("@include ") {
            lines.extend(read(folder, other.trim(), architecture, depth + 1));
            continue;
        }
        assert!(!reason.is_empty(), "{source}: no reason given; say after # who needs it");
        if let Some(rest) = rule.strip_prefix('[') {
            let (only, rest) =
                rest.split_once(']').unwrap_or_else(|| panic!("{source}: no ] after the architecture"));
            assert!(ARCHITECTURES.contains(&only), "{source}: unknown architecture {only}");
            if only != architecture {
                continue;
            }
            rule = rest.trim();
        }
        let (name, conditions) = rule.split_once(char::is_whitespace).unwrap_or((rule, ""));
        let conditions = conditions.trim();
        let conditions = if conditions.is_empty() {
            Vec::new()
        } else {
            conditions.split(',').map(|text| condition(text.trim(), &source)).collect()
        };
        lines.push(Line { name: name.to_owned(), conditions, reason: reason.to_owned(), source });
    }
    lines
}

fn condition(text: &str, source: &str) -> String {
    let rest =
        text.strip_prefix("arg").unwrap_or_else(|| panic!("{source}: a condition starts with argN: {text}"));
    let (argument, rest) = rest.split_once(' ').unwrap_or_else(|| panic!("{source}: no operator: {text}"));
    let argument: u8 =
        argument.parse().unwrap_or_else(|_| panic!("{source}: not an argument number: {text}"));
    assert!(argument < 6, "{source}: a system call has arguments 0 to 5: {text}");
    let (mask, wanted) = match rest.strip_prefix("& ") {
        Some(masked) => masked
            .split_once("==")
            .map(|(mask, wanted)| (value(mask, source), wanted))
            .unwrap_or_else(|| panic!("{source}: no == after the mask: {text}")),
        None => rest
            .strip_prefix("== ")
            .map(|wanted| ("u32::MAX".to_owned(), wanted))
            .unwrap_or_else(|| panic!("{source}: neither == nor a mask: {text}")),
    };
    let wanted = value(wanted, source);
    format!("Condition {{ argument: {argument}, mask: {mask}, value: {wanted} }}")
}

/// Names are taken from libc; signed ones are cut to the 32 bits that the kernel looks at, so that -1 compares as it should.
fn value(text: &str, source: &str) -> String {
    let words: Vec<String> = text
        .split('|')
        .map(|word| {
            let word = word.trim();
            assert!(!word.is_empty(), "{source}: empty value");
            let expression = if word.starts_with(|c: char| c.is_ascii_digit()) {
                word.to_owned()
            } else {
                assert!(
                    word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
                    "{source}: not a name: {word}"
                );
                format!("libc::{word}")
            };
            format!("{expression} as u32")
        })
        .collect();
    words.join(" | ")
}

fn emit(out: &mut String, list: &str, lines: &[Line]) {
    let mut rules: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let same = rules.entry(&line.name).or_default();
        // A call that is allowed whatever its arguments are needs no second line; one from an include is no mistake.
        let covers = |other: &&&Line| other.conditions.is_empty() || other.conditions == line.conditions;
        if let Some(first) = same.iter().find(covers) {
            let file = |line: &Line| line.source.split(':').next().map(str::to_owned);
            let twice = file(first) == file(line) && first.source != line.source;
            assert!(!twice, "{}: {} stands already in {}", line.source, line.name, first.source);
            continue;
        }
        if line.conditions.is_empty() {
            same.clear();
        }
        same.push(line);
    }
    let calls = rules.len();
    let upper = list.to_ascii_uppercase();
    writeln!(out, "const {upper}_RULES: &[Rule] = &[").expect("a string grows");
    for line in rules.values().flatten() {
        let Line { name, conditions, reason, source } = line;
        writeln!(
            out,
            "    Rule {{ name: {name:?}, number: libc::SYS_{name}, conditions: &[{}], reason: {reason:?}, source: {source:?} }},",
            conditions.join(", ")
        )
        .expect("a string grows");
    }
    writeln!(
        out,
        "];
/// The calls of `policy/seccomp/{list}.policy`.
pub static {upper}: Filter = {{
    const PROGRAM: Assembly = Assembly::of({upper}_RULES);
    Filter {{ name: {list:?}, calls: {calls}, program: &PROGRAM.cut::<{{ PROGRAM.length }}>() }}
}};"
    )
    .expect("a string grows");
}
