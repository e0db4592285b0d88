//! `portreeve policy` as a shell sees it: exit status, standard output, standard error.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A folder with a policy in it.
struct Place(tempfile::TempDir);

impl Place {
    fn with(policy: &str) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("policy.toml", policy);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portreeve"))
            .arg("policy")
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .output()
            .unwrap()
    }

    /// Status and standard output.
    fn says(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

const LOGS: &str = "version = 1\ninclude = \"observe\"\n\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-file-open\", \"guest-file-read\", \
    \"guest-file-close\"]\npaths = [\"/var/log/**\"]\nmodes = [\"r\"]\n";

#[test]
fn check_ends_with_0_when_there_is_nothing_worse_than_a_warning_and_says_so() {
    let place = Place::with(LOGS);
    let (status, text) = place.says(&["check", "policy.toml"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.ends_with("policy.toml: 2 rules; 0 errors, 1 warnings, 2 notes\n"), "{text}");
    // KubeVirt would miss guest-shutdown.
    assert_eq!(place.says(&["check", "--deny-warnings", "policy.toml"]).0, 1);
}

#[test]
fn check_reads_the_folder_beside_a_policy_and_shows_errors_with_carets() {
    let place = Place::with("version = 1\n");
    place.write("policy.d/10-x.toml", "version = 1\n[[rule]]\noutcome = \"alow\"\n");
    let (status, text) = place.says(&["check", "policy.toml"]);
    assert_eq!(status, 1);
    assert!(text.starts_with("policy.d/10-x.toml:3: error: unknown outcome \"alow\""), "{text}");
    assert!(text.contains("  outcome = \"alow\"\n            ^^^^^^\n"), "{text}");
    let json = place.json(&["check", "--json", "policy.toml"]);
    assert_eq!((&json["rules"], &json["findings"][0]["level"]), (&Value::from(0), &Value::from("error")));
}

#[test]
fn what_cannot_be_read_ends_with_2_and_a_next_step() {
    let place = Place::with(LOGS);
    for (arguments, why) in [
        (&["check", "observ"][..], "did you mean the preset \"observe\"?"),
        (&["show", "/nowhere/policy.toml"], "cannot read /nowhere/policy.toml: No such file or directory"),
        (&["explain", "--policy", "observe", "guest-exce"], "did you mean \"guest-exec\"?"),
        (
            &["explain", "--policy", "observe", "--line", "70", "policy.toml"],
            "policy.toml has 8 lines, none with number 70",
        ),
        (&["test", "--policy", "observe", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
    ] {
        let output = place.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
}

#[test]
fn show_has_rules_commands_and_workers() {
    let place = Place::with(LOGS);
    let (status, text) = place.says(&["show", "policy.toml"]);
    assert_eq!(status, 0);
    for wanted in [
        "  policy.toml:4: allow guest-file-open, guest-file-read, guest-file-close; paths \"/var/log/**\"; modes \"r\"\n",
        "  preset observe:8: allow group agent, group query, group net.query\n",
        "  depends   guest-file-open guest-file-close guest-file-read\n",
        "  exec      cannot exist: no rule allows what it does\n",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
    let json = place.json(&["show", "--json", "policy.toml"]);
    let file = json["workers"].as_array().unwrap().iter().find(|worker| worker["name"] == "file").unwrap();
    assert_eq!(file["capabilities"], serde_json::json!(["CAP_DAC_READ_SEARCH"]));
    assert_eq!(file["landlock"], "read /var/log");
}

#[test]
fn explain_ends_with_0_for_what_is_allowed_and_with_1_for_what_is_not() {
    let place = Place::with(LOGS);
    let explain = |request: &[&str]| {
        let mut arguments = vec!["explain", "--policy", "policy.toml"];
        arguments.extend(request);
        place.says(&arguments)
    };
    let (status, text) = explain(&["guest-file-open", "path=/var/log/syslog"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("allowed, by policy.toml:4\n    | [[rule]]\n"), "{text}");
    let (status, text) =
        explain(&["{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/shadow\"}}"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("paths \"/var/log/**\": does not hold\n"), "{text}");
    assert!(
        text.contains("\"desc\": \"failed to open file '/etc/shadow' (mode: 'r'): Permission denied\"}}"),
        "{text}"
    );
    assert_eq!(explain(&["--frozen", "guest-file-open path=/var/log/syslog"]).0, 1);
}

#[test]
fn explain_follows_links_only_when_asked_to() {
    let place = Place::with(LOGS);
    let real = fs::canonicalize(place.0.path()).unwrap();
    std::os::unix::fs::symlink("/var/log", place.path("link")).unwrap();
    let request = format!("guest-file-open path={}/link/x", real.display());
    assert_eq!(place.says(&["explain", "--policy", "policy.toml", &request]).0, 1);
    assert_eq!(place.says(&["explain", "--policy", "policy.toml", "--resolve", &request]).0, 0);
}

/// As the broker writes it.
const RECORD: &str = "{\"version\":1,\"sequence\":9,\"time\":\"2026-11-26T12:00:00.000000Z\",\"kind\":\"request\",\"channel\":\"qga\",\
    \"dialect\":\"qga\",\"command\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/shadow\",\"mode\":null},\"decision\":\"deny\",\
    \"rule\":\"policy.toml, default\",\"outcome\":\"denied\",\"duration_us\":11,\"prev\":\"00\"}";

#[test]
fn a_line_of_the_audit_log_is_explained_and_is_a_test() {
    let place = Place::with(LOGS);
    place.write("audit.jsonl", &format!("{{\"version\":1,\"sequence\":1,\"kind\":\"start\"}}\n{RECORD}\n"));
    let (status, text) = place.says(&["explain", "--policy", "policy.toml", "--line", "2", "audit.jsonl"]);
    assert_eq!(status, 1);
    assert!(text.starts_with("guest-file-open path=/etc/shadow\n  on channel qga: refused"), "{text}");
    assert_eq!(
        place.says(&["test", "--policy", "policy.toml", "audit.jsonl"]),
        (0, "1 passed, 0 failed\n".to_owned())
    );
    let (status, text) = place.says(&["test", "--policy", "qemu-ga", "audit.jsonl"]);
    assert_eq!(status, 1);
    assert!(text.contains("line 2: guest-file-open path=/etc/shadow\n  on channel qga: expected deny, but it is allow by preset qemu-ga:8\n"), "{text}");
}

#[test]
fn what_a_host_has_put_into_a_log_cannot_command_a_terminal() {
    let place = Place::with(LOGS);
    let record = RECORD
        .replace("/etc/shadow", "/x\\u001b[2J\\u202e")
        .replace("\"channel\":\"qga\"", "\"channel\":\"a\\u001bb\"");
    place.write("audit.jsonl", &record);
    let (_, text) = place.says(&["test", "--policy", "qemu-ga", "audit.jsonl"]);
    assert!(
        text.contains("expected deny") && !text.contains('\u{1b}') && !text.contains('\u{202e}'),
        "{text:?}"
    );
}

#[test]
fn a_policy_with_many_rules_and_patterns_made_to_be_slow_is_looked_at_in_seconds() {
    let mut text = String::from("version = 1\n");
    // As many as fit into a file.
    for number in 0..9000 {
        let path = if number % 10 == 0 {
            format!("/{}x{number}", "*a".repeat(8))
        } else {
            format!("/srv/{number}/**")
        };
        text.push_str(&format!(
            "[[rule]]\noutcome = \"allow\"\ngroups = [\"file.write\"]\npaths = [\"{path}\"]\n"
        ));
    }
    assert!(text.len() < 1 << 20);
    let place = Place::with(&text);
    place.write("other.toml", &text.replace("/srv/77/**", "/srv/77/*"));
    for (arguments, status) in [
        (&["check", "policy.toml"][..], 0),
        (&["show", "policy.toml"], 0),
        (&["diff", "policy.toml", "other.toml"], 1),
    ] {
        let begun = Instant::now();
        assert_eq!(place.says(arguments).0, status, "{arguments:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{arguments:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn learn_writes_a_policy_that_passes_the_log_it_was_learned_from() {
    let place = Place::with(LOGS);
    let allowed = RECORD.replace("/etc/shadow", "/var/log/syslog").replace("\"deny\"", "\"allow\"");
    place.write("audit.jsonl", &format!("{RECORD}\n{allowed}\n"));
    let (status, text) = place.says(&["learn", "audit.jsonl"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("    \"/var/log/syslog\", # once, 2026-11-26T12:00:00.000000Z\n"), "{text}");
    place.write("learned.toml", &text);
    assert_eq!(
        place.says(&["test", "--policy", "learned.toml", "audit.jsonl"]),
        (0, "2 passed, 0 failed\n".to_owned())
    );
    let (status, both) = place.says(&["learn", "--denied", "audit.jsonl"]);
    assert!(status == 0 && both.contains("\"/etc/shadow\", # once"), "{both}");
    assert_eq!(place.json(&["learn", "--json", "audit.jsonl"])["requests"], 1);
}

#[test]
fn diff_shows_a_request_that_explain_decides_as_it_says() {
    let place = Place::with(LOGS);
    place.write("wider.toml", &LOGS.replace("/var/log/**", "/var/**"));
    assert_eq!(place.says(&["diff", "policy.toml", "policy.toml"]).0, 0);
    let (status, text) = place.says(&["diff", "policy.toml", "wider.toml"]);
    assert!(status == 1 && text.starts_with("guest-file-open: deny -> allow\n"), "{text}");
    let json = place.json(&["diff", "--json", "policy.toml", "wider.toml"]);
    let line = json["changes"][0]["line"].as_str().unwrap();
    assert_eq!(place.says(&["explain", "--policy", "policy.toml", line]).0, 1, "{line}");
    assert_eq!(place.says(&["explain", "--policy", "wider.toml", line]).0, 0, "{line}");
}

#[test]
fn every_preset_can_be_shown() {
    let place = Place::with(LOGS);
    let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/presets");
    let mut shown = 0;
    for entry in fs::read_dir(presets).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert_eq!(place.says(&["show", name]).0, 0, "{name}");
            shown += 1;
        }
    }
    assert!(shown > 3);
}
