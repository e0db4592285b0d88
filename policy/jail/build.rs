//! Turns `policy/seccomp/*.policy` into Rust tables, so that nothing is parsed when a process starts.
//!
//! A line is `[ARCH] name CONDITION, CONDITION # who needs it`: the architecture and the conditions are optional, the
//! reason is not. A condition is `argN OP VALUE` or `argN & MASK == VALUE`; N counts from 0; OP is one of
//! `== != < <= > >=`; values are numbers or names of the libc crate joined by `|`; `argN:64` compares all 64 bits instead
//! of the lower 32. Several lines for one name are alternatives. `@include NAME` takes over another file's lines.
//! A wrong name does not compile, since the tables name `libc::SYS_…`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

const LISTS: [&str; 13] = [
    "frontend", "broker", "query", "file", "net", "netadmin", "compile", "fsfreeze", "power", "clock",
    "hotplug", "account", "spawner",
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
    let (argument, wide) = match argument.strip_suffix(":64") {
        Some(argument) => (argument, true),
        None => (argument, false),
    };
    let argument: u8 =
        argument.parse().unwrap_or_else(|_| panic!("{source}: not an argument number: {text}"));
    assert!(argument < 6, "{source}: a system call has arguments 0 to 5: {text}");
    let (test, wanted) = if let Some(masked) = rest.strip_prefix("& ") {
        let (mask, wanted) =
            masked.split_once("==").unwrap_or_else(|| panic!("{source}: no == after the mask: {text}"));
        (format!("Test::MaskedEqual({})", value(mask, wide, source)), wanted)
    } else {
        let (operator, wanted) = rest.split_once(' ').unwrap_or_else(|| panic!("{source}: no value: {text}"));
        let test = match operator {
            "==" => "Equal",
            "!=" => "NotEqual",
            "<" => "Less",
            "<=" => "LessOrEqual",
            ">" => "Greater",
            ">=" => "GreaterOrEqual",
            _ => panic!("{source}: unknown operator {operator}"),
        };
        (format!("Test::{test}"), wanted)
    };
    format!(
        "Condition {{ argument: {argument}, wide: {wide}, test: {test}, value: {} }}",
        value(wanted, wide, source)
    )
}

/// Names are taken from libc; signed ones are cut to the 32 bits that the kernel looks at, so that -1 compares as it should.
fn value(text: &str, wide: bool, source: &str) -> String {
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
            if wide { format!("{expression} as u64") } else { format!("{expression} as u32 as u64") }
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
    let upper = list.to_ascii_uppercase();
    writeln!(out, "/// The calls of `policy/seccomp/{list}.policy`.").expect("a string grows");
    writeln!(out, "pub static {upper}: List = List {{ name: {list:?}, rules: &[").expect("a string grows");
    for line in rules.values().flatten() {
        let Line { name, conditions, reason, source } = line;
        writeln!(
            out,
            "    Rule {{ name: {name:?}, number: libc::SYS_{name}, conditions: &[{}], reason: {reason:?}, source: {source:?} }},",
            conditions.join(", ")
        )
        .expect("a string grows");
    }
    writeln!(out, "] }};").expect("a string grows");
}
