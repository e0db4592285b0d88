//! `portreeve policy diff`: which requests two policies decide differently, shown by requests.
//!
//! A finite set of requests is made from the conditions of both: for each rule one that fits all of it, and others that differ from that
//! one in a single respect, just inside or just outside of one value. What only shows when two conditions are left at once, or within
//! a pattern, may be missed; the report says so.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use authorize::{Argument, Pattern, Policy, PowerMode, Program, Rule};
use proto::{Command, Group, Request};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::calls::Calls;
use crate::case::{Case, Verdict, decide, literal};
use crate::verdicts::Channels;
use crate::{Loaded, request, words};

/// Requests that are held against both policies: at most, and at least if there are so many.
const WITNESSES: (usize, usize) = (5_000, 200_000);

/// Rules that all of these are held against: each may have to be asked for each request, and patterns can be slow.
const COMPARISONS: usize = 100_000_000;

/// Values of one condition that are tried.
const VALUES: usize = 1000;

/// What differs.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// What the policies are called.
    pub policies: [String; 2],
    /// What differs, by channel and command.
    pub changes: Vec<Change>,
    /// How many requests were held against both.
    pub witnesses: usize,
    /// Whether there would have been more.
    pub is_cut: bool,
}

/// Requests of one command that are decided differently in the same way.
#[derive(Debug, Serialize)]
pub struct Change {
    /// By which channel.
    pub channel: String,
    /// Which command.
    pub command: &'static str,
    /// The decision and the rule of the first policy.
    pub from: (&'static str, String),
    /// Those of the second.
    pub to: (&'static str, String),
    /// Limits and what is left out, if that is what differs: of the first and of the second.
    pub limits: Option<[Vec<String>; 2]>,
    /// One such request in words.
    pub witness: String,
    /// The same as a line of its protocol.
    pub line: String,
    /// The number of the user, if the decision depends on it.
    pub uid: Option<u32>,
    /// How many requests were found.
    pub count: usize,
}

/// Compares two policies.
pub fn diff(left: &Loaded, right: &Loaded) -> Diff {
    let both = [&left.policy, &right.policy];
    let mut witnesses = Witnesses::of(both);
    let same = left.policy.rules().eq(right.policy.rules());
    let all = if same { Vec::new() } else { witnesses.all() };
    let mut changes: BTreeMap<_, Change> = BTreeMap::new();
    for case in &all {
        let [from, to] = both.map(|policy| decide(policy, case));
        let is_other = from.outcome != to.outcome;
        if !is_other && from.terms == to.terms {
            continue;
        }
        let command = case.request.command();
        let limits =
            [&from, &to].map(|verdict| verdict.terms.as_deref().map(words::terms).unwrap_or_default());
        let key = (
            from.outcome.name(),
            to.outcome.name(),
            case.channel.clone(),
            command.name(),
            (!is_other).then(|| limits.clone()),
        );
        let change = changes.entry(key).or_insert_with(|| {
            let said = |verdict: &Verdict| (verdict.outcome.name(), verdict.rule.to_string());
            Change {
                channel: case.channel.clone(),
                command: command.name(),
                from: said(&from),
                to: said(&to),
                limits: (!is_other).then_some(limits),
                witness: words::request(&case.request),
                line: request::to_line(&case.request),
                uid: case.uid,
                count: 0,
            }
        });
        change.count = change.count.saturating_add(1);
    }
    Diff {
        policies: both.map(|policy| policy.name().to_owned()),
        changes: changes.into_values().collect(),
        witnesses: all.len(),
        is_cut: witnesses.is_cut,
    }
}

/// What a request is filled with, where its command has a place for it.
#[derive(Clone)]
struct Fill {
    path: String,
    mode: String,
    user: String,
    uid: Option<u32>,
    interface: String,
    network: String,
    mountpoints: Option<Vec<String>>,
    unit: u64,
    power: &'static str,
    program: Json,
}

impl Fill {
    fn usual() -> Self {
        Fill {
            path: "/some/file".to_owned(),
            mode: "r".to_owned(),
            user: "someone".to_owned(),
            uid: Some(54321),
            interface: "eth9".to_owned(),
            network: "192.0.2.1/24".to_owned(),
            mountpoints: Some(vec!["/some/mount".to_owned()]),
            unit: 1,
            power: "powerdown",
            program: json!({ "path": "/some/program" }),
        }
    }

    fn request(&self, command: &'static Command) -> Option<Request> {
        let qga_mode = &self.mode;
        let arguments = match command.name() {
            "guest-file-open" => json!({ "path": self.path, "mode": qga_mode }),
            "file-open" => json!({ "path": self.path, "mode": if self.mode == "r" { "r" } else { "w" } }),
            "file-chmod" => json!({ "path": self.path, "perm": 420 }),
            "get-file-md5sum" | "file-chown" | "file-stat" | "directory-create" | "directory-list" => {
                json!({ "path": self.path })
            }
            "guest-file-read" | "guest-file-close" | "guest-file-flush" => json!({ "handle": 1000 }),
            "guest-file-write" => json!({ "handle": 1000, "buf-b64": "" }),
            "guest-file-seek" => json!({ "handle": 1000, "offset": 0, "whence": 0 }),
            "guest-sync" | "guest-sync-delimited" => json!({ "id": 1 }),
            "guest-set-user-password" => json!({ "username": self.user, "password": "", "crypted": false }),
            "guest-ssh-get-authorized-keys" => json!({ "username": self.user }),
            "guest-ssh-add-authorized-keys" | "guest-ssh-remove-authorized-keys" => {
                json!({ "username": self.user, "keys": [] })
            }
            "ipaddr-add" | "ipaddr-del" => json!({ "ip": self.network, "ifname": self.interface }),
            "net-iface-up" | "net-iface-down" => json!({ "ifname": self.interface }),
            "route-add" | "route-del" => json!({ "ifname": self.interface, "dst": self.network }),
            "guest-fsfreeze-freeze-list" => match &self.mountpoints {
                Some(list) => json!({ "mountpoints": list }),
                None => json!({}),
            },
            "guest-set-vcpus" => json!({ "vcpus": [{ "logical-id": self.unit, "online": true }] }),
            "guest-set-memory-blocks" => json!({ "mem-blks": [{ "phys-index": self.unit, "online": true }] }),
            "guest-shutdown" => json!({ "mode": self.power }),
            "guest-exec" => self.program.clone(),
            "guest-exec-status" => json!({ "pid": 1 }),
            _ => json!({}),
        };
        let line = json!({ "execute": command.name(), "arguments": arguments }).to_string();
        request::of_line(&line, Some(command.dialect)).ok()
    }
}

/// Makes requests from policies.
struct Witnesses<'a> {
    policies: [&'a Policy; 2],
    channels: Vec<String>,
    found: Vec<Case>,
    seen: HashSet<String>,
    most: usize,
    is_cut: bool,
}

impl<'a> Witnesses<'a> {
    fn of(policies: [&'a Policy; 2]) -> Self {
        let channels = Channels::of(policies);
        let mut names = channels.named.clone();
        names.push(channels.other());
        let rules: usize = policies.iter().map(|policy| policy.rules().count()).sum();
        Witnesses {
            most: COMPARISONS.checked_div(rules).unwrap_or(WITNESSES.1).clamp(WITNESSES.0, WITNESSES.1),
            policies,
            channels: names,
            found: Vec::new(),
            seen: HashSet::new(),
            is_cut: channels.left_out > 0,
        }
    }

    fn all(&mut self) -> Vec<Case> {
        let every = Calls::all();
        for mode in MODES {
            self.add(every, &Fill { mode: mode.to_owned(), ..Fill::usual() }, &[]);
        }
        // A freeze of everything, and each way to stop.
        self.add(every, &Fill { mountpoints: None, ..Fill::usual() }, &[]);
        for (power, _) in PowerMode::ALL {
            self.add(every, &Fill { power, ..Fill::usual() }, &[]);
        }
        // Rules that only one of them has come first: they are what a limit must not cut off.
        let [left, right] = self.policies.map(|policy| policy.rules().map(key).collect::<HashSet<_>>());
        for is_common in [false, true] {
            for policy in self.policies {
                for rule in policy.rules() {
                    let key = key(rule);
                    if (left.contains(&key) && right.contains(&key)) == is_common {
                        self.of_rule(rule);
                    }
                    if self.is_full() {
                        return std::mem::take(&mut self.found);
                    }
                }
            }
        }
        std::mem::take(&mut self.found)
    }

    fn is_full(&mut self) -> bool {
        let is_full = self.found.len() >= self.most;
        self.is_cut |= is_full;
        is_full
    }

    fn of_rule(&mut self, rule: &Rule) {
        if rule.when.is_empty() {
            // Its commands have their usual requests.
            return;
        }
        let calls = Calls::matched_by(rule);
        let when = &rule.when;
        let mut base = Fill::usual();
        let text = |patterns: &[Pattern], to: &mut String| {
            if let Some(first) = patterns.first() {
                *to = inside(first);
            }
        };
        text(&when.paths, &mut base.path);
        text(&when.users, &mut base.user);
        text(&when.interfaces, &mut base.interface);
        if let Some(mode) = when.modes.first() {
            base.mode.clone_from(mode);
        }
        if let Some((first, _)) = when.uids.first() {
            base.uid = Some(*first);
        }
        if let Some(network) = when.networks.first() {
            base.network = network.to_string();
        }
        if let Some(first) = when.mountpoints.first() {
            base.mountpoints = Some(vec![inside(first)]);
        }
        if let Some((first, _)) = when.units.first() {
            base.unit = *first;
        }
        if let Some(mode) = when.power.first() {
            base.power = words::power_name(*mode);
        }
        if let Some(program) = when.programs.first() {
            base.program = fitting(program);
        }
        let channels = &rule.channels;
        let mut fills = vec![base.clone()];
        for path in when.paths.iter().take(VALUES).flat_map(around) {
            fills.push(Fill { path, ..base.clone() });
        }
        if !when.modes.is_empty() || calls.has(|command, _| command.groups().count() > 1) {
            fills.extend(MODES.map(|mode| Fill { mode: mode.to_owned(), ..base.clone() }));
        }
        for user in when.users.iter().take(VALUES).flat_map(around) {
            fills.push(Fill { user, ..base.clone() });
        }
        for (first, last) in when.uids.iter().take(VALUES) {
            let uids = [first.checked_sub(1), Some(*first), Some(*last), last.checked_add(1)];
            fills.extend(uids.into_iter().flatten().map(|uid| Fill { uid: Some(uid), ..base.clone() }));
        }
        for interface in when.interfaces.iter().take(VALUES).flat_map(around) {
            fills.push(Fill { interface, ..base.clone() });
        }
        for network in when.networks.iter().take(VALUES) {
            let other = if network.to_string().contains(':') { "2001:db8::1/128" } else { "198.51.100.1/32" };
            fills.push(Fill { network: network.to_string(), ..base.clone() });
            fills.push(Fill { network: other.to_owned(), ..base.clone() });
        }
        for mountpoint in when.mountpoints.iter().take(VALUES).flat_map(around) {
            fills.push(Fill { mountpoints: Some(vec![mountpoint]), ..base.clone() });
        }
        for (first, last) in when.units.iter().take(VALUES) {
            let units = [first.checked_sub(1), Some(*first), Some(*last), last.checked_add(1)];
            fills.extend(units.into_iter().flatten().map(|unit| Fill { unit, ..base.clone() }));
        }
        for program in when.programs.iter().take(VALUES).flat_map(programs) {
            fills.push(Fill { program, ..base.clone() });
        }
        for fill in &fills {
            self.add(calls, fill, channels);
        }
    }

    fn add(&mut self, calls: Calls, fill: &Fill, channels: &[String]) {
        let mut last: Option<&'static Command> = None;
        for (_, command, _) in calls.each() {
            if last.is_some_and(|last| std::ptr::eq(last, command)) || self.is_full() {
                continue;
            }
            last = Some(command);
            let Some(request) = fill.request(command) else { continue };
            let line = request::to_line(&request);
            let uid = (request.group() == Group::Account).then_some(fill.uid).flatten();
            // Who is not named by the rule is a witness of its edge.
            let all = self.channels.clone();
            let edge = all.iter().filter(|name| !channels.contains(name)).take(if channels.is_empty() {
                all.len()
            } else {
                1
            });
            for channel in channels.iter().filter(|name| all.contains(name)).chain(edge) {
                if self.seen.insert(format!("{channel} {uid:?} {line}")) {
                    let path = authorize::asked_path(&request).map(|path| literal(&path.0));
                    let case =
                        Case { channel: channel.clone(), request: request.clone(), path, uid, frozen: false };
                    self.found.push(case);
                }
            }
        }
    }
}

const MODES: [&str; 6] = ["r", "r+", "w", "w+", "a", "a+"];

/// What a rule says, without where.
fn key(rule: &Rule) -> String {
    let Rule { outcome, commands, groups, channels, dialects, when, terms, .. } = rule;
    format!("{outcome:?}{commands:?}{groups:?}{channels:?}{dialects:?}{when:?}{terms:?}")
}

/// A name that the pattern matches.
fn inside(pattern: &Pattern) -> String {
    pattern.text().replace("**", "x").replace(['*', '?'], "x")
}

/// A name that it matches, and one beside it that it does not.
fn around(pattern: &Pattern) -> Vec<String> {
    let inside = inside(pattern);
    let anchor = String::from_utf8_lossy(pattern.anchor()).into_owned();
    let others = [
        format!("{inside}~"),
        format!("{inside}/deeper"),
        format!("{anchor}~"),
        "/elsewhere".to_owned(),
        "elsewhere".to_owned(),
    ];
    let outside = others.into_iter().filter(|name| !pattern.matches(name.as_bytes())).take(2);
    let mut all = vec![inside];
    all.extend(outside);
    all
}

/// A call that the program's rule admits.
fn fitting(program: &Program) -> Json {
    let word = |argument: &Argument| match argument {
        Argument::OneOf(words) => {
            words.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default()
        }
        Argument::Like(pattern) => inside(pattern),
        Argument::Any | Argument::Rest => "x".to_owned(),
    };
    let arguments: Vec<String> = program.arguments.iter().flatten().map(word).collect();
    json!({ "path": inside(&program.path), "arg": arguments })
}

/// A call that it admits, and calls that differ from it in one respect.
fn programs(program: &Program) -> Vec<Json> {
    let base = fitting(program);
    let with = |key: &str, value: Json| {
        let mut changed = base.clone();
        if let Some(object) = changed.as_object_mut() {
            object.insert(key.to_owned(), value);
        }
        changed
    };
    let arguments: Vec<Json> = base.get("arg").and_then(Json::as_array).cloned().unwrap_or_default();
    let mut all = vec![base.clone()];
    all.extend(around(&program.path).into_iter().map(|path| with("path", path.into())));
    all.push(with("arg", arguments.iter().cloned().chain([json!("--extra")]).collect()));
    for (place, argument) in program.arguments.iter().flatten().enumerate() {
        let values: Vec<String> = match argument {
            Argument::OneOf(words) => {
                let words = words.iter().take(VALUES).map(|word| String::from_utf8_lossy(word).into_owned());
                words.chain(["other".to_owned()]).collect()
            }
            Argument::Like(pattern) => around(pattern),
            Argument::Any | Argument::Rest => vec!["-c".to_owned()],
        };
        for value in values {
            let mut changed = arguments.clone();
            if let Some(argument) = changed.get_mut(place) {
                *argument = value.into();
            }
            all.push(with("arg", changed.into()));
        }
    }
    all.push(with("env", json!(["LD_PRELOAD=/x.so"])));
    for name in program.environment.iter().flatten().take(VALUES) {
        all.push(with("env", json!([format!("{}=x", inside(name))])));
    }
    all.push(with("input-data", json!("")));
    all
}

impl fmt::Display for Diff {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [left, right] = &self.policies;
        for change in &self.changes {
            let Change { channel, command, from, to, limits, witness, line, uid, count } = change;
            match limits {
                None => writeln!(out, "{command}: {} -> {}", from.0, to.0)?,
                Some([before, after]) => {
                    let said = |limits: &[String]| {
                        if limits.is_empty() { "no limits".to_owned() } else { limits.join(", ") }
                    };
                    writeln!(out, "{command}: {} -> {}: {} -> {}", from.0, to.0, said(before), said(after))?;
                }
            }
            writeln!(out, "  {witness}\n  {left}: {}\n  {right}: {}", from.1, to.1)?;
            let uid = uid.map(|uid| format!(" --uid {uid}")).unwrap_or_default();
            let line = line.replace('\'', "'\\''");
            writeln!(out, "  portreeve policy explain --channel {channel}{uid} --policy {right} '{line}'")?;
            if *count > 1 {
                writeln!(out, "  and {} more such requests", count.saturating_sub(1))?;
            }
        }
        let found = if self.changes.is_empty() { "no difference found" } else { "differences found" };
        let cut = if self.is_cut { "; there would have been more" } else { "" };
        writeln!(
            out,
            "{found} with {} requests made from the conditions of both{cut}. What shows only where a request leaves two conditions \
             at once, or inside of a pattern, may be missed.",
            self.witnesses
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compile::Source;

    fn load(text: &str) -> Loaded {
        let text = format!("version = 1\n{text}");
        Loaded::compile(vec![Source::File { name: "p.toml".to_owned(), text }]).unwrap()
    }

    /// What changes: command, before, after.
    fn changes(left: &str, right: &str) -> Vec<(&'static str, &'static str, &'static str)> {
        diff(&load(left), &load(right))
            .changes
            .iter()
            .map(|one| (one.command, one.from.0, one.to.0))
            .collect()
    }

    #[test]
    fn every_command_has_a_request_that_witnesses_it() {
        let without: Vec<&str> = proto::commands()
            .filter(|command| Fill::usual().request(command).is_none())
            .map(|command| command.name())
            .collect();
        assert_eq!(without, Vec::<&str>::new());
    }

    #[test]
    fn equal_policies_do_not_differ() {
        let text = "[[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\npaths = [\"/var/log/**\"]\n";
        assert_eq!(changes(text, text), []);
        assert_eq!(changes(text, &format!("\n\n{text}")), []);
    }

    #[test]
    fn a_path_more_a_mode_less_and_another_program_are_found() {
        let files = |path: &str, modes: &str| {
            format!(
                "[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-file-open\"]\npaths = [\"{path}\"]\nmodes = [{modes}]\n"
            )
        };
        assert_eq!(
            changes(&files("/var/log/*", "\"r\", \"a\""), &files("/var/log/**", "\"r\"")),
            [("guest-file-open", "allow", "deny"), ("guest-file-open", "deny", "allow")]
        );
        let program = |arguments: &str| {
            format!(
                "[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exec\"]\n[[rule.program]]\npath = \"/bin/x\"\narguments = {arguments}\nenvironment = []\n"
            )
        };
        assert_eq!(
            changes(&program("[\"a\"]"), &program("[{ any = true }]")),
            [("guest-exec", "deny", "allow")]
        );
    }

    #[test]
    fn a_limit_less_is_found_and_shown_with_a_request_to_paste() {
        let text = |rate: u32| {
            format!(
                "[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-get-users\"]\n[rule.limits]\nrequests-per-second = {rate}\n"
            )
        };
        let found = diff(&load(&text(5)), &load(&text(9)));
        let change = &found.changes[0];
        assert_eq!(
            change.limits,
            Some([vec!["requests-per-second 5".to_owned()], vec!["requests-per-second 9".to_owned()]])
        );
        assert!(found.to_string().contains("'{\"execute\":\"guest-get-users\"}'"), "{found}");
    }

    #[test]
    fn a_channel_that_only_one_names_is_told_apart() {
        let all = "[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-get-users\"]\n";
        let found = diff(&load(all), &load(&format!("{all}channels = [\"a\"]\n")));
        let channels: Vec<&str> = found.changes.iter().map(|one| one.channel.as_str()).collect();
        assert_eq!(channels, ["any"]);
    }
}
