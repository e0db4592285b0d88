//! The presets do what their headers say: the requests of the clients that they are named after, as those send them, are held against them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at what it did not expect")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use authorize::{Asker, Outcome, Policy, authorize, may_ever, served};
use compile::{Bundle, PRESETS, Source, compile};
use proto::{Dialect, Group, Request};
use serde_json::Value;

fn policy(preset: &str) -> Policy {
    let sources = vec![Source::Preset(preset.to_owned())];
    compile(&Bundle { sources, allow: Vec::new(), block: Vec::new() }).unwrap().policy
}

fn replays() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../presets/replays")
}

/// A line of a replay: the request as it is on the wire, and what becomes of it.
struct Line {
    text: String,
    request: Request,
    expected: String,
}

fn replay(preset: &str) -> Vec<Line> {
    let file = replays().join(format!("{preset}.jsonl"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines()
        .map(|text| {
            let line: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let dialect = if line["dialect"] == "phoenix" { Dialect::Phoenix } else { Dialect::Qga };
            let name = line["request"]["execute"].as_str().unwrap();
            let none = Value::Object(serde_json::Map::new());
            let arguments = line["request"].get("arguments").unwrap_or(&none);
            let request =
                proto::decode(dialect, name, arguments).unwrap_or_else(|| panic!("unknown: {text}"));
            let request = request.unwrap_or_else(|error| panic!("{text}: {error}"));
            Line { text: text.to_owned(), request, expected: line["expect"].as_str().unwrap().to_owned() }
        })
        .collect()
}

fn decision(policy: &Policy, request: Request) -> &'static str {
    match authorize(policy, Asker { channel: "qga", frozen: false }, request) {
        Ok(permitted) => permitted.outcome().name(),
        Err(_) => Outcome::Deny.name(),
    }
}

#[test]
fn every_preset_answers_its_client_as_its_replay_says() {
    for (preset, _) in PRESETS {
        let policy = policy(preset);
        for Line { text, request, expected } in replay(preset) {
            assert_eq!(decision(&policy, request), expected, "preset {preset}: {text}");
        }
    }
}

#[test]
fn every_replay_shows_what_its_preset_refuses_too() {
    for (preset, _) in PRESETS {
        let expected: HashSet<String> = replay(preset).into_iter().map(|line| line.expected).collect();
        let wanted: &[&str] = if *preset == "qemu-ga" { &["allow"] } else { &["allow", "deny"] };
        assert_eq!(expected, wanted.iter().map(|word| (*word).to_owned()).collect(), "preset {preset}");
    }
    let files: HashSet<String> = std::fs::read_dir(replays())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted: HashSet<String> = PRESETS.iter().map(|(name, _)| format!("{name}.jsonl")).collect();
    assert_eq!(files, wanted);
}

#[test]
fn every_preset_says_for_whom_it_is_and_what_it_costs() {
    for (preset, text) in PRESETS {
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        for wanted in ["# For: ", "# Costs: "] {
            assert!(header.iter().any(|line| line.starts_with(wanted)), "preset {preset} has no `{wanted}`");
        }
    }
}

/// KubeVirt calls an agent unsupported that does not list these (`guestagent.go`).
#[test]
fn kubevirt_finds_the_commands_that_it_requires() {
    let policy = policy("kubevirt");
    let listed: HashSet<&str> = served(&policy, "qga", false, Dialect::Qga)
        .filter(|(_, enabled)| *enabled)
        .map(|(command, _)| command.name())
        .collect();
    for required in [
        "guest-ping",
        "guest-get-time",
        "guest-info",
        "guest-shutdown",
        "guest-network-get-interfaces",
        "guest-get-fsinfo",
        "guest-get-host-name",
        "guest-get-users",
        "guest-get-timezone",
        "guest-get-osinfo",
        "guest-ssh-get-authorized-keys",
        "guest-ssh-add-authorized-keys",
        "guest-ssh-remove-authorized-keys",
    ] {
        assert!(listed.contains(required), "{required}");
    }
}

#[test]
fn only_presets_that_say_so_hand_out_what_is_as_good_as_root() {
    let with = |groups: &[Group]| -> Vec<&str> {
        let grants = |preset: &str| groups.iter().any(|group| may_ever(&policy(preset), *group));
        PRESETS.iter().map(|(name, _)| *name).filter(|name| grants(name)).collect()
    };
    assert_eq!(with(&[Group::Exec]), ["qemu-ga", "proxmox-unrestricted", "ansible"]);
    assert_eq!(with(&[Group::Account]), ["qemu-ga", "rhel", "kubevirt", "proxmox-unrestricted"]);
    assert_eq!(
        with(&[Group::FileWrite]),
        ["qemu-ga", "proxmox-file-write", "proxmox-unrestricted", "ansible"]
    );
    assert_eq!(with(&[Group::NetChange]), ["qemu-ga"]);
    for (preset, text) in PRESETS {
        let root = [Group::Exec, Group::Account, Group::FileWrite];
        if root.iter().any(|group| may_ever(&policy(preset), *group)) {
            assert!(text.contains(" root"), "the header of preset {preset} does not say it");
        }
    }
}
