//! `portreeve policy`: what a policy means, for people and build pipelines.
//!
//! Runs with the rights of whoever types it, offline: it reads policy files as `portreeve run` does, tests and audit logs, and nothing of
//! a running agent. Parsing is done in this process, so do not point it at files of people you do not trust as root. What hosts
//! have put into an audit log does not reach a terminal unescaped.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use compile::{PRESETS, Source, closest};
use inspect::{Case, Level, Loaded, Look, Wanted, literal};
use jail::DEFAULT_UID_BASE;

use crate::configuration::{policy_files, policy_in_force};
use crate::say::{out, raw};
use crate::terminal::harmless;

const WELL: u8 = 0;
const NOT_WELL: u8 = 1;
const COULD_NOT_LOOK: u8 = 2;

/// Longest line of a test or log that is read.
const LONGEST_LINE: u64 = 1 << 20;

/// The tools.
#[derive(Subcommand)]
pub(crate) enum Tool {
    /// Find what is wrong with a policy, and what may not be meant.
    #[command(
        after_help = "Names errors with their lines, rules that never decide, what makes a host root, and clients that break.\n\
        POLICY is a preset's name or a file, read with the folder beside it (policy.d for policy.toml).\n\n\
        Exit status: 0 well, 1 errors (or warnings with --deny-warnings), 2 could not read it.\n\n\
        Example: portreeve policy check --deny-warnings image/etc/portreeve/policy.toml"
    )]
    Check {
        /// A preset or a file [default: what `portreeve run` takes without configuration].
        policy: Option<String>,
        /// Warnings count as errors.
        #[arg(long)]
        deny_warnings: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the rules in effect, what becomes of each command, and what the kernel lets each worker do.
    #[command(after_help = "Exit status: 0 shown, 1 the policy has errors, 2 could not read it.\n\n\
                            Example: portreeve policy show kubevirt")]
    Show {
        /// A preset or a file [default: what `portreeve run` takes without configuration].
        policy: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Explain why one request is allowed or refused.
    #[command(
        after_help = "A request is a line of QEMU's or Phoenix's protocol, or COMMAND KEY=VALUE ... as in portreeve call.\n\
        A path is taken as what is opened, unless --resolve follows the links of this machine; a user's number is that of its /etc/passwd.\n\n\
        Exit status: 0 allowed, 1 refused, 2 no such request, or the policy has errors or cannot be read.\n\n\
        Examples: portreeve policy explain 'guest-file-open path=/etc/shadow mode=r'\n          \
                  portreeve policy explain --policy kubevirt '{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"id\"}}'\n          \
                  portreeve policy explain --line 17 /var/log/portreeve-audit.jsonl"
    )]
    Explain {
        /// The request; with --line, the audit log.
        #[arg(required = true)]
        request: Vec<String>,
        /// Explain what line N of an audit log records.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        line: Option<u64>,
        #[command(flatten)]
        how: How,
        /// As if filesystems were frozen.
        #[arg(long)]
        frozen: bool,
        /// The number of the user that is named.
        #[arg(long, value_name = "N")]
        uid: Option<u32>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Test whether a policy decides as it should.
    #[command(
        after_help = "Each line of FILE is a test or a record of the audit log, whose decision is then what is expected:\n  \
        {\"request\":{\"execute\":\"guest-get-users\"},\"expect\":\"allow\"}\n\
        expect: allow, deny, redact. Optional: channel, dialect, rule (FILE:LINE), path (what is opened), uid, frozen.\n\
        `request` may also be a text, as for portreeve policy explain. FILE - is standard input.\n\n\
        Exit status: 0 all pass, 1 some do not or are no tests, 2 could not read.\n\n\
        Example: portreeve policy test --policy policy.toml policy.jsonl"
    )]
    Test {
        /// Tests or audit logs.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        how: How,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the smallest policy that allows what audit logs show to have been allowed.
    #[command(
        after_help = "Beside each value stands how often it was seen, first and last. What was generalised never takes in what was refused,\n\
        nor a place that makes root. Logs are read in the order in which they are named; - is standard input.\n\n\
        Exit status: 0 written, 1 written, but not all that was allowed can be a rule (see the comments), 2 could not read.\n\n\
        Example: portreeve policy learn --generalise paths /var/log/portreeve-audit.jsonl > policy.toml"
    )]
    Learn {
        /// Audit logs.
        #[arg(required = true)]
        logs: Vec<PathBuf>,
        /// Allow what was refused, too.
        #[arg(long)]
        denied: bool,
        /// What may be made wider than it was seen: files to their folder, arguments of one program to patterns.
        #[arg(long, value_enum, default_value = "none")]
        generalise: Generalise,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show which requests two policies decide differently.
    #[command(
        after_help = "A and B are presets or files. Each difference is shown by a request that can be explained.\n\n\
        Exit status: 0 no difference found, 1 some, 2 could not read one, or it has errors.\n\n\
        Example: portreeve policy diff rhel /etc/portreeve/policy.toml"
    )]
    Diff {
        /// The one.
        a: String,
        /// The other.
        b: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What `learn` may make wider.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Generalise {
    /// Files to their folder.
    Paths,
    /// Arguments to patterns.
    Args,
    /// Nothing.
    None,
}

/// How a decision is found.
#[derive(Args)]
pub(crate) struct How {
    /// A preset or a file [default: what `portreeve run` takes without configuration].
    #[arg(long)]
    policy: Option<String>,
    /// Who asks, where that is not said.
    #[arg(long, default_value = "qga")]
    channel: String,
    /// Follow the links of this machine to what a path leads to.
    #[arg(long)]
    resolve: bool,
}

/// What ended a tool before it had a result.
enum Stopped {
    /// With this text.
    CouldNot(String),
    /// The policy is wrong; the text says where.
    Wrong(String),
}

/// Runs one of them.
pub(crate) fn main(tool: &Tool) -> ExitCode {
    let (status, name) = match tool {
        Tool::Check { policy, deny_warnings, json } => {
            (check(policy.as_deref(), *deny_warnings, *json), "check")
        }
        Tool::Show { policy, json } => (show(policy.as_deref(), *json), "show"),
        Tool::Explain { request, line, how, frozen, uid, json } => {
            (explain(request, *line, how, *frozen, *uid, *json), "explain")
        }
        Tool::Test { files, how, json } => (test(files, how, *json), "test"),
        Tool::Learn { logs, denied, generalise, json } => (learn(logs, *denied, *generalise, *json), "learn"),
        Tool::Diff { a, b, json } => (diff(a, b, *json), "diff"),
    };
    let (status, text) = match status {
        Ok(status) => return ExitCode::from(status),
        Err(Stopped::CouldNot(text)) => (COULD_NOT_LOOK, text),
        Err(Stopped::Wrong(text)) if name == "show" => (NOT_WELL, text),
        Err(Stopped::Wrong(text)) => (COULD_NOT_LOOK, text),
    };
    raw(format_args!("portreeve policy {name}: {text}"));
    ExitCode::from(status)
}

fn check(policy: Option<&str>, deny_warnings: bool, json: bool) -> Result<u8, Stopped> {
    let check = inspect::check(sources(policy)?);
    print(&check, json);
    let worst = if deny_warnings { Level::Warning } else { Level::Error };
    Ok(if check.worst() >= Some(worst) { NOT_WELL } else { WELL })
}

fn show(policy: Option<&str>, json: bool) -> Result<u8, Stopped> {
    print(&inspect::show(&load(policy)?, DEFAULT_UID_BASE), json);
    Ok(WELL)
}

fn explain(
    request: &[String],
    line: Option<u64>,
    how: &How,
    frozen: bool,
    uid: Option<u32>,
    json: bool,
) -> Result<u8, Stopped> {
    let loaded = load(how.policy.as_deref())?;
    let users = LazyCell::new(users);
    let path = path_finder(how.resolve);
    let look = Look { path: &path, uid: &|name| uid.or_else(|| users.get(name).copied()) };
    let mut case = match (line, request) {
        (Some(number), [log]) => {
            let text = nth_line(Path::new(log), number)?;
            let entry = inspect::entry(&text, &look);
            entry.map_err(|why| Stopped::CouldNot(format!("{log}:{number}: {why}")))?.case
        }
        (Some(_), _) => return Err(Stopped::CouldNot("--line takes one audit log".to_owned())),
        (None, request) => {
            let asked = match request {
                [text] => inspect::read(text),
                words => inspect::of_words(words),
            };
            Case::new(&how.channel, asked.map_err(|why| Stopped::CouldNot(why.to_string()))?, &look)
        }
    };
    case.frozen |= frozen;
    let explanation = inspect::explain(&loaded, &case, DEFAULT_UID_BASE);
    print(&explanation, json);
    Ok(if explanation.is_refused() { NOT_WELL } else { WELL })
}

fn test(files: &[PathBuf], how: &How, json: bool) -> Result<u8, Stopped> {
    let loaded = load(how.policy.as_deref())?;
    let users = LazyCell::new(users);
    let path = path_finder(how.resolve);
    let look = Look { path: &path, uid: &|name| users.get(name).copied() };
    let mut well = true;
    let mut reports = serde_json::Map::new();
    for file in files {
        let mut tester = inspect::Tester::new(&loaded, &how.channel, &look);
        each_line(file, |line| tester.line(line))?;
        let tested = tester.finish();
        well &= tested.is_well();
        if json {
            reports.insert(file.display().to_string(), serde_json::to_value(&tested).unwrap_or_default());
        } else {
            if files.len() > 1 {
                out(format_args!("{}:\n", file.display()));
            }
            print(&tested, false);
        }
    }
    if json {
        out(format_args!("{:#}\n", serde_json::Value::Object(reports)));
    }
    Ok(if well { WELL } else { NOT_WELL })
}

fn learn(logs: &[PathBuf], denied: bool, generalise: Generalise, json: bool) -> Result<u8, Stopped> {
    let generalise = match generalise {
        Generalise::Paths => inspect::Generalise::Paths,
        Generalise::Args => inspect::Generalise::Args,
        Generalise::None => inspect::Generalise::None,
    };
    let users = LazyCell::new(users);
    let look = Look { path: &literal, uid: &|name| users.get(name).copied() };
    let learned = inspect::learn(Wanted { generalise, denied }, &look, |take| {
        logs.iter().try_for_each(|log| each_line(log, &mut *take))
    })?;
    if json {
        print(&learned, true);
    } else {
        // A policy to be written to a file: its bytes are what counts, and it has no control characters.
        out(&learned);
        for (line, why) in &learned.unusable {
            raw(format_args!("portreeve policy learn: line {line} is not used: {}", harmless(why)));
        }
        if learned.unusable_count > learned.unusable.len() as u64 {
            raw(format_args!("portreeve policy learn: {} lines are not used", learned.unusable_count));
        }
    }
    Ok(if learned.left_out.is_empty() { WELL } else { NOT_WELL })
}

fn diff(a: &str, b: &str, json: bool) -> Result<u8, Stopped> {
    let diff = inspect::diff(&load(Some(a))?, &load(Some(b))?);
    print(&diff, json);
    Ok(if diff.changes.is_empty() { WELL } else { NOT_WELL })
}

fn print<R: serde::Serialize + fmt::Display>(report: &R, json: bool) {
    if json {
        match serde_json::to_string_pretty(report) {
            Ok(text) => out(format_args!("{text}\n")),
            Err(error) => raw(format_args!("the report cannot be written as JSON: {error}")),
        }
    } else {
        let text = report.to_string();
        let lines: Vec<String> = text.lines().map(harmless).collect();
        out(format_args!("{}\n", lines.join("\n")));
    }
}

/// The texts of `policy`: a preset, or a file with its folder.
fn sources(policy: Option<&str>) -> Result<Vec<Source>, Stopped> {
    let Some(name) = policy else { return Ok(policy_in_force()) };
    let presets = || PRESETS.iter().map(|(name, _)| *name);
    if presets().any(|preset| preset == name) {
        return Ok(vec![Source::Preset(name.to_owned())]);
    }
    let path = Path::new(name);
    if let Err(error) = File::open(path) {
        let meant = closest(name, presets()).map(|meant| format!("; did you mean the preset \"{meant}\"?"));
        let hint = meant.unwrap_or_else(|| {
            if name.contains('/') {
                String::new()
            } else {
                format!("; presets are {}", presets().collect::<Vec<_>>().join(", "))
            }
        });
        return Err(Stopped::CouldNot(format!("cannot read {name}: {error}{hint}")));
    }
    Ok(policy_files(path))
}

fn load(policy: Option<&str>) -> Result<Loaded, Stopped> {
    Loaded::compile(sources(policy)?).map_err(|complaints| {
        let all: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        Stopped::Wrong(format!("the policy has errors\n{}", all.join("\n")))
    })
}

/// What a path leads to: itself, or what the links of this machine make of it.
fn path_finder(resolve: bool) -> impl Fn(&[u8]) -> Vec<u8> {
    move |path| {
        let path = if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() };
        if !resolve {
            return literal(&path);
        }
        // What is not there yet is made in what is.
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        let existing = path.ancestors().find_map(|dir| Some((dir, fs::canonicalize(dir).ok()?)));
        let resolved = existing.map(|(dir, real)| match path.strip_prefix(dir) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        });
        literal(resolved.unwrap_or(path).as_os_str().as_bytes())
    }
}

/// Names and numbers of `/etc/passwd`; none if it cannot be read.
fn users() -> HashMap<Vec<u8>, u32> {
    let text = fs::read("/etc/passwd").unwrap_or_default();
    let user = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?.to_vec();
        let uid = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        Some((name, uid))
    };
    text.split(|byte| *byte == b'\n').filter_map(user).collect()
}

/// Hands each line to `take`; one that is too long is cut, and then is no JSON.
fn each_line(file: &Path, mut take: impl FnMut(&[u8])) -> Result<(), Stopped> {
    let failed = |error: io::Error| Stopped::CouldNot(format!("cannot read {}: {error}", file.display()));
    let mut reader: Box<dyn BufRead> = match file.as_os_str().as_bytes() {
        b"-" => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(File::open(file).map_err(failed)?)),
    };
    let mut line = Vec::new();
    while next_line(&mut reader, &mut line).map_err(failed)? {
        take(&line);
    }
    Ok(())
}

fn nth_line(file: &Path, number: u64) -> Result<Vec<u8>, Stopped> {
    let (mut at, mut found) = (0_u64, None);
    each_line(file, |line| {
        at = at.saturating_add(1);
        if at == number {
            found = Some(line.to_vec());
        }
    })?;
    found.ok_or_else(|| {
        Stopped::CouldNot(format!("{} has {at} lines, none with number {number}", file.display()))
    })
}

/// Reads a line without its end; what is beyond the longest is skipped. False at the end of the file.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else {
        reader.skip_until(b'\n')?;
    }
    Ok(true)
}
