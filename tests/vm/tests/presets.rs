//! The presets in force in a guest: what each one's client sends, byte for byte, is done or refused as its replay says.
//!
//! `policy/compile/tests/presets.rs` holds the decisions against the same replays; here the whole agent answers, on the port, and what is
//! allowed is really done.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use vm::{Guest, Options};

const CONFIGURATION: &str = "/etc/portreeve/portreeve.toml";

/// A line of a replay.
struct Line {
    request: Value,
    allowed: bool,
}

fn replay(preset: &str) -> Vec<Line> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/presets/replays");
    let text = std::fs::read_to_string(folder.join(format!("{preset}.jsonl"))).unwrap();
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            Line { request: line["request"].take(), allowed: line["expect"] == "allow" }
        })
        .collect()
}

/// Ends the guest or the agent, or stops the guest until somebody wakes it: `power.rs` has these.
fn ends_it(command: &str) -> bool {
    command.starts_with("guest-suspend-") || matches!(command, "guest-shutdown" | "agent-shutdown")
}

/// The policy's words, which Phoenix's dialect has in base64.
fn is_refusal(answer: &Value) -> bool {
    let error = &answer["error"];
    let text = match error["bufb64"].as_str() {
        Some(text) => String::from_utf8(STANDARD.decode(text).unwrap()).unwrap(),
        None => error["desc"].as_str().unwrap_or_default().to_owned(),
    };
    ["the command is not allowed", "Permission denied", "are not set from outside"]
        .iter()
        .any(|words| text.contains(words))
}

#[test]
fn each_preset_serves_its_client_and_refuses_the_rest() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let mut asked = 0;
    for (preset, _) in compile::PRESETS {
        guest.output(&format!(
            "mkdir -p /etc/portreeve; printf 'policy = \"{preset}\"\\n[[channel]]\\nname = \"qga\"\\nmethod = \"virtio-serial\"\\n\
             dialects = [\"qga\", \"phoenix\"]\\n' > {CONFIGURATION}"
        ));
        guest.launch("/opt/portreeve/portreeve run");
        guest.agent.sync();
        for Line { request, allowed } in replay(preset) {
            let command = request["execute"].as_str().unwrap();
            if allowed && ends_it(command) {
                continue;
            }
            guest.agent.raw(format!("{request}\n").as_bytes());
            let answer = guest.agent.line_within(Duration::from_secs(60));
            let answer = answer.unwrap_or_else(|| panic!("{preset}: no answer to {request}"));
            assert_eq!(is_refusal(&answer), !allowed, "{preset}: {request} is answered with {answer}");
            asked += 1;
        }
        guest.stop_agent();
    }
    assert!(asked > 300, "{asked} requests");
}
