//! Rules from what was seen, and their text.

use std::collections::{BTreeMap, BTreeSet};

use authorize::Pattern;
use proto::CommandId;

use super::Generalise;
use super::seen::{Item, Seen};
use crate::grants::{is_interpreter, powerful_place};

/// Files of one folder that are taken for the folder, and folders for the one above.
const ALIKE: usize = 3;

/// Values of one condition, each with how often it was seen.
type Values = BTreeMap<String, Seen>;

/// A rule with one condition that has several values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    channel: String,
    redact: bool,
    command: CommandId,
    /// Another condition with one value.
    fixed: Option<(&'static str, String)>,
    /// The condition with several.
    varying: &'static str,
}

/// A form of call of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    path: String,
    arguments: Vec<Word>,
    environment: Vec<String>,
    input: bool,
    seen: Seen,
    note: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Exactly(String),
    Begins(String),
    Any,
}

/// Rules in the making.
#[derive(Default)]
pub(super) struct Drafts {
    plain: BTreeMap<(String, bool), BTreeMap<CommandId, Seen>>,
    lists: BTreeMap<Place, Values>,
    programs: BTreeMap<(String, bool), Vec<Call>>,
    /// What was not made wider, and why.
    notes: BTreeMap<Place, BTreeSet<String>>,
}

/// The text of the rules.
pub(super) struct Rules {
    pub(super) text: String,
    pub(super) count: usize,
}

impl Drafts {
    pub(super) fn add(&mut self, channel: &str, item: &Item, redact: bool, seen: &Seen) {
        let place =
            |command: CommandId, fixed: Option<(&'static str, &String)>, varying: &'static str| Place {
                channel: channel.to_owned(),
                redact,
                command,
                fixed: fixed.map(|(key, value)| (key, value.clone())),
                varying,
            };
        let (place, values): (Place, Vec<String>) = match item {
            Item::Plain(command) => {
                let commands = self.plain.entry((channel.to_owned(), redact)).or_default();
                commands.entry(*command).or_default().add(seen);
                return;
            }
            Item::Program { path, arguments, environment, input } => {
                self.programs.entry((channel.to_owned(), redact)).or_default().push(Call {
                    path: path.clone(),
                    arguments: arguments.iter().cloned().map(Word::Exactly).collect(),
                    environment: environment.clone(),
                    input: *input,
                    seen: seen.clone(),
                    note: None,
                });
                return;
            }
            Item::Path(command, mode, path) => {
                (place(*command, mode.as_ref().map(|mode| ("modes", mode)), "paths"), vec![path.clone()])
            }
            Item::User(command, user) => (place(*command, None, "users"), vec![user.clone()]),
            Item::Interface(command, interface, None) => {
                (place(*command, None, "interfaces"), vec![interface.clone()])
            }
            Item::Interface(command, interface, Some(network)) => {
                (place(*command, Some(("interfaces", interface)), "networks"), vec![network.clone()])
            }
            Item::Mounts(command, paths) => (place(*command, None, "mountpoints"), paths.clone()),
            Item::Units(command, units) => {
                (place(*command, None, "units"), units.iter().map(u64::to_string).collect())
            }
            Item::Power(command, mode) => (place(*command, None, "power"), vec![(*mode).to_owned()]),
        };
        let list = self.lists.entry(place).or_default();
        for value in values {
            list.entry(value).or_default().add(seen);
        }
    }

    /// Makes wider what may be; nothing that would take in what was refused, or would make somebody root.
    pub(super) fn generalise(&mut self, how: Generalise, refused: &[(&String, &Item)]) {
        match how {
            Generalise::None => {}
            Generalise::Paths => {
                for (place, values) in self.lists.iter_mut().filter(|(place, _)| place.varying == "paths") {
                    let refused: Vec<&String> = refused
                        .iter()
                        .filter_map(|(channel, item)| match item {
                            Item::Path(command, mode, path) => {
                                let fixed = mode.as_ref() == place.fixed.as_ref().map(|(_, mode)| mode);
                                (*command == place.command && fixed && **channel == place.channel)
                                    .then_some(path)
                            }
                            _ => None,
                        })
                        .collect();
                    let notes = self.notes.entry(place.clone()).or_default();
                    folders(values, &refused, notes);
                }
            }
            Generalise::Args => {
                for ((channel, _), calls) in &mut self.programs {
                    let refused: Vec<&Item> = refused
                        .iter()
                        .filter(|(of, item)| *of == channel && matches!(item, Item::Program { .. }))
                        .map(|(_, item)| *item)
                        .collect();
                    *calls = alike(std::mem::take(calls), &refused);
                }
            }
        }
    }

    pub(super) fn write(&self) -> Rules {
        // The same rule on several channels is one rule.
        let mut rules: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mut order: Vec<(bool, String)> = Vec::new();
        let mut add = |channel, redact: bool, body: String| {
            let channels = rules.entry(body.clone()).or_default();
            if channels.is_empty() {
                order.push((!redact, body));
            }
            channels.insert(channel);
        };
        for ((channel, redact), commands) in &self.plain {
            let commands = commands.iter().map(|(id, seen)| (name(*id), seen.text())).collect::<Vec<_>>();
            add(channel, *redact, list("commands", &commands) + &outcome(*redact, ""));
        }
        // Commands with the same values of the same conditions are one rule.
        let mut bodies: BTreeMap<(&str, bool, String), BTreeSet<String>> = BTreeMap::new();
        for (place, values) in &self.lists {
            let mut body = String::new();
            for note in self.notes.get(place).into_iter().flatten() {
                body.push_str(&format!("# {note}\n"));
            }
            if let Some((key, value)) = &place.fixed {
                body.push_str(&format!("{key} = [{}]\n", quoted(value)));
            }
            let values: Vec<(String, String)> = values
                .iter()
                .map(|(value, seen)| (value.clone(), seen.text() + wild(place.varying, value)))
                .collect();
            body.push_str(&list(place.varying, &values));
            bodies.entry((&place.channel, place.redact, body)).or_default().insert(name(place.command));
        }
        for ((channel, redact, body), commands) in bodies {
            let commands: Vec<String> = commands.iter().map(|command| quoted(command)).collect();
            add(
                channel,
                redact,
                format!("commands = [{}]\n{body}{}", commands.join(", "), outcome(redact, "")),
            );
        }
        for ((channel, redact), calls) in &self.programs {
            let calls: String = calls.iter().map(Call::text).collect();
            add(channel, *redact, "commands = [\"guest-exec\"]\n".to_owned() + &outcome(*redact, &calls));
        }
        // What is left out of replies is so whatever else allows them.
        order.sort_by_key(|(is_last, _)| *is_last);
        let mut text = String::new();
        for (_, body) in &order {
            let channels: Vec<String> =
                rules.get(body).into_iter().flatten().map(|name| quoted(name)).collect();
            let (head, tail) = body.split_once(TABLES).unwrap_or((body, ""));
            text.push_str(&format!("\n[[rule]]\n{head}channels = [{}]\n{tail}", channels.join(", ")));
        }
        Rules { text, count: order.len() }
    }
}

/// Where the tables of a rule begin; its channels stand before them. No text from outside has a bare control character.
const TABLES: char = '\u{1}';

/// What a rule says, and its tables.
fn outcome(redact: bool, tables: &str) -> String {
    if !redact {
        return format!("outcome = \"allow\"\n{TABLES}{tables}");
    }
    // A log does not say what was left out.
    let members: Vec<String> = authorize::Member::ALL.iter().map(|(name, _)| quoted(name)).collect();
    format!(
        "outcome = \"redact\"\n{TABLES}{tables}# A log does not say what was left out: this is all that can be. Take out what the host needs.\n\
         [rule.redact]\nmembers = [{}]\n",
        members.join(", ")
    )
}

/// `key = [`, one value on each line with its comment, `]`.
fn list(key: &str, values: &[(String, String)]) -> String {
    let lines: String =
        values.iter().map(|(value, seen)| format!("    {}, # {seen}\n", quoted(value))).collect();
    format!("{key} = [\n{lines}]\n")
}

/// What is to be known of a value that is a pattern and was not meant as one.
fn wild(key: &str, value: &str) -> &'static str {
    let is_pattern = ["paths", "users", "interfaces", "mountpoints"].contains(&key);
    if is_pattern && value.contains(['*', '?']) && !value.ends_with("/*") && !value.ends_with("/**") {
        "; there is no way to quote: `*` and `?` match other names, too"
    } else {
        ""
    }
}

fn name(command: CommandId) -> String {
    proto::commands().nth(usize::from(command.0)).map(|command| command.name().to_owned()).unwrap_or_default()
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

impl Call {
    fn text(&self) -> String {
        let mut text = format!("[[rule.program]] # {}\n", self.seen.text());
        if let Some(note) = self.note {
            text.push_str(&format!("# {note}\n"));
        }
        let words: Vec<String> = self.arguments.iter().map(Word::text).collect();
        let names: Vec<String> = self.environment.iter().map(|name| quoted(name)).collect();
        text.push_str(&format!(
            "path = {}\narguments = [{}]\nenvironment = [{}]\n",
            quoted(&self.path),
            words.join(", "),
            names.join(", ")
        ));
        if self.input {
            text.push_str("input = true\n");
        }
        text
    }

    fn admits(&self, arguments: &[String]) -> bool {
        self.arguments.len() == arguments.len()
            && self.arguments.iter().zip(arguments).all(|(word, given)| match word {
                Word::Exactly(word) => word == given,
                Word::Begins(beginning) => given.starts_with(beginning.as_str()),
                Word::Any => true,
            })
    }
}

impl Word {
    fn text(&self) -> String {
        match self {
            Word::Exactly(word) => quoted(word),
            Word::Begins(beginning) => format!("{{ like = {} }}", quoted(&format!("{beginning}**"))),
            Word::Any => "{ any = true }".to_owned(),
        }
    }
}

/// Puts folders in the place of their files.
fn folders(values: &mut Values, refused: &[&String], notes: &mut BTreeSet<String>) {
    // First the files of one folder, then folders below one that is not the root.
    for is_deep in [false, true] {
        let mut by_folder: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in values.keys() {
            let below = if is_deep { path.strip_suffix("/*") } else { Some(path.as_str()) };
            if let Some((folder, _)) = below.and_then(|path| path.rsplit_once('/'))
                && !folder.is_empty()
                && !folder.contains(['*', '?'])
            {
                by_folder.entry(folder.to_owned()).or_default().push(path.clone());
            }
        }
        for (folder, paths) in by_folder.into_iter().filter(|(_, paths)| paths.len() >= ALIKE) {
            let wider = format!("{folder}/{}", if is_deep { "**" } else { "*" });
            let Ok(pattern) = Pattern::path(&wider) else { continue };
            // A folder holds more than the files that were seen, even where one of those is powerful.
            if let Some(what) = powerful_place(&pattern) {
                notes.insert(format!(
                    "Not {}: that would take in {what}, which is as good as root.",
                    quoted(&wider)
                ));
            } else if refused.iter().any(|path| pattern.matches(path.as_bytes())) {
                notes.insert(format!("Not {}: something in it was refused.", quoted(&wider)));
            } else {
                let mut seen = Seen::default();
                for path in &paths {
                    if let Some(of_path) = values.remove(path) {
                        seen.add(&of_path);
                    }
                }
                values.entry(wider).or_default().add(&seen);
            }
        }
    }
}

/// Puts one form of call in the place of several with as many arguments.
fn alike(calls: Vec<Call>, refused: &[&Item]) -> Vec<Call> {
    let mut groups: BTreeMap<(String, usize, Vec<String>, bool), Vec<Call>> = BTreeMap::new();
    for call in calls {
        let key = (call.path.clone(), call.arguments.len(), call.environment.clone(), call.input);
        groups.entry(key).or_default().push(call);
    }
    groups.into_values().flat_map(|group| one(group, refused)).collect()
}

fn one(mut group: Vec<Call>, refused: &[&Item]) -> Vec<Call> {
    let Some(first) = group.first().cloned() else { return group };
    if group.len() < 2 {
        return group;
    }
    let note = |group: &mut Vec<Call>, note: &'static str| {
        if let Some(first) = group.first_mut() {
            first.note = Some(note);
        }
    };
    if Pattern::name(&first.path).is_ok_and(|path| is_interpreter(&path)) {
        note(
            &mut group,
            "Its arguments are not made wider: it runs what they say, which is as good as root.",
        );
        return group;
    }
    let mut seen = Seen::default();
    group.iter().for_each(|call| seen.add(&call.seen));
    let words = (0..first.arguments.len()).map(|place| {
        let texts: Vec<&String> = group
            .iter()
            .filter_map(|call| match call.arguments.get(place) {
                Some(Word::Exactly(word)) => Some(word),
                _ => None,
            })
            .collect();
        word(&texts)
    });
    let wider = Call { arguments: words.collect(), seen, ..first };
    let takes_in = |item: &&Item| match item {
        Item::Program { path, arguments, environment, input } => {
            *path == wider.path
                && (wider.input || !input)
                && environment.iter().all(|name| wider.environment.contains(name))
                && wider.admits(arguments)
        }
        _ => false,
    };
    if refused.iter().any(takes_in) {
        note(&mut group, "Its arguments are not made wider: a call that would then be allowed was refused.");
        return group;
    }
    vec![wider]
}

/// What all of these are.
fn word(texts: &[&String]) -> Word {
    const TELLING: usize = 3;
    let Some(first) = texts.first() else { return Word::Any };
    if texts.iter().all(|text| text == first) {
        return Word::Exactly((*first).clone());
    }
    let mut common: &str = first;
    while !texts.iter().all(|text| text.starts_with(common)) {
        let end = common.char_indices().next_back().map_or(0, |(at, _)| at);
        common = common.get(..end).unwrap_or_default();
    }
    let pattern = format!("{common}**");
    if common.len() >= TELLING && !common.contains(['*', '?']) && Pattern::name(&pattern).is_ok() {
        Word::Begins(common.to_owned())
    } else {
        Word::Any
    }
}
