//! Rules, requests and limits in words. What a host can say is quoted with its control characters escaped.

use authorize::{Argument, Conditions, Network, Outcome, PowerMode, Program, Rule, Terms};
use proto::Request;

/// Values of one list that are shown.
const SHOWN: usize = 4;

/// A few of many, and how many more there are.
pub(crate) fn few(values: &[String]) -> String {
    let mut text = values.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = values.len().saturating_sub(SHOWN);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// What a rule is about, without its conditions.
pub(crate) fn about(rule: &Rule) -> String {
    let mut parts: Vec<String> = rule.commands.iter().filter_map(command_name).collect();
    parts.extend(rule.groups.iter().map(|group| format!("group {}", group.name())));
    let mut text = if parts.is_empty() { "every command".to_owned() } else { few(&parts) };
    let dialects: Vec<String> = rule.dialects.iter().map(|dialect| dialect.name().to_owned()).collect();
    for (what, names) in [("in dialect", &dialects), ("on channel", &rule.channels)] {
        if !names.is_empty() {
            text.push_str(&format!(" {what} {}", few(names)));
        }
    }
    text
}

/// A rule in one line.
pub(crate) fn summary(rule: &Rule) -> String {
    let mut text = format!("{} {}", rule.outcome.name(), about(rule));
    for (key, one) in rule.when.apart() {
        text.push_str(&format!("; {key} {}", few(&values(&one))));
    }
    let mut how = rule.terms.as_deref().map(terms).unwrap_or_default();
    if rule.outcome == Outcome::Deny {
        how.extend(rule.text.iter().map(|text| format!("text {text:?}")));
    }
    if !how.is_empty() {
        text.push_str(&format!("; {}", how.join(", ")));
    }
    text
}

fn command_name(id: &proto::CommandId) -> Option<String> {
    proto::commands().nth(usize::from(id.0)).map(|command| command.name().to_owned())
}

/// The values of conditions, as written in a policy.
pub(crate) fn values(when: &Conditions) -> Vec<String> {
    let patterns = [&when.paths, &when.users, &when.interfaces, &when.mountpoints];
    let mut all: Vec<String> =
        patterns.into_iter().flatten().map(|pattern| format!("{:?}", pattern.text())).collect();
    all.extend(when.modes.iter().map(|mode| format!("{mode:?}")));
    all.extend(when.uids.iter().map(|(first, last)| range(*first, *last)));
    all.extend(when.units.iter().map(|(first, last)| range(*first, *last)));
    all.extend(when.networks.iter().map(Network::to_string));
    all.extend(when.power.iter().map(|mode| power_name(*mode).to_owned()));
    all.extend(when.programs.iter().map(program));
    all
}

fn range<N: PartialEq + std::fmt::Display>(first: N, last: N) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

pub(crate) fn power_name(mode: PowerMode) -> &'static str {
    PowerMode::ALL.iter().find(|(_, known)| *known == mode).map_or("?", |(name, _)| name)
}

/// `/bin/ls -l * …`, and what else may be set.
pub(crate) fn program(program: &Program) -> String {
    let mut words = vec![program.path.text().into_owned()];
    match &program.arguments {
        None => words.push("…".to_owned()),
        Some(arguments) => words.extend(arguments.iter().map(argument)),
    }
    let mut text = format!("`{}`", words.join(" "));
    match &program.environment {
        Some(names) if names.is_empty() => {}
        Some(names) => {
            let names: Vec<String> = names.iter().map(|name| name.text().into_owned()).collect();
            text.push_str(&format!(" with environment {}", few(&names)));
        }
        None => text.push_str(" with any environment"),
    }
    if program.input {
        text.push_str(" with input");
    }
    text
}

fn argument(argument: &Argument) -> String {
    match argument {
        Argument::OneOf(words) => {
            let words: Vec<String> =
                words.iter().map(|word| String::from_utf8_lossy(word).escape_debug().to_string()).collect();
            words.join("|")
        }
        Argument::Like(pattern) => pattern.text().into_owned(),
        Argument::Any => "ANY".to_owned(),
        Argument::Rest => "…".to_owned(),
    }
}

/// Limits and what is left out, each as it is written in a policy.
pub(crate) fn terms(terms: &Terms) -> Vec<String> {
    let numbers = [
        ("request-bytes", terms.request_bytes),
        ("handle-bytes", terms.handle_bytes),
        ("open-files", terms.open_files.map(u64::from)),
        ("requests-per-second", terms.requests_per_second.map(u64::from)),
        ("run-seconds", terms.run_seconds.map(u64::from)),
        ("output-bytes", terms.output_bytes),
        ("freeze-seconds", terms.freeze_seconds.map(u64::from)),
        ("clock-step-seconds", terms.clock_step_seconds.map(u64::from)),
    ];
    let mut all: Vec<String> =
        numbers.iter().filter_map(|(key, value)| value.map(|value| format!("{key} {value}"))).collect();
    all.extend(terms.run_as.map(|run_as| format!("run-as {}:{}", run_as.uid, run_as.gid)));
    let redaction = &terms.redaction;
    for (key, patterns) in [
        ("interfaces", &redaction.interfaces),
        ("mountpoints", &redaction.mountpoints),
        ("users", &redaction.users),
        ("disks", &redaction.disks),
    ] {
        if !patterns.is_empty() {
            let patterns: Vec<String> =
                patterns.iter().map(|pattern| format!("{:?}", pattern.text())).collect();
            all.push(format!("without {key} {}", few(&patterns)));
        }
    }
    let members = authorize::Member::ALL.iter().filter(|(_, member)| redaction.members.contains(member));
    all.extend(members.map(|(name, _)| format!("without {name}")));
    all
}

/// A request in one line: its command and what of its arguments a record may show.
pub(crate) fn request(request: &Request) -> String {
    let arguments = match serde_json::to_value(request) {
        Ok(serde_json::Value::Object(arguments)) => arguments,
        _ => serde_json::Map::new(),
    };
    let mut text = request.command().name().to_owned();
    for (key, value) in arguments.iter().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(
            || value.to_string(),
            |text| {
                let plain = !text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'');
                if plain { text.to_owned() } else { format!("{text:?}") }
            },
        );
        text.push_str(&format!(" {key}={value}"));
    }
    text
}
