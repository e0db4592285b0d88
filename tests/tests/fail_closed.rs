//! A policy that is not understood whole, or that somebody else could have written: the agent starts, serves sync, ping and info, and the
//! log says where and why.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use serde_json::{Value, json};
use tests::agent::{Agent, private_directory};

const CONFIGURATION: &str = r#"
    policy = "DIR/policy/policy.toml"
    extensions = false
    [[channel]]
    name = "test"
    method = "unix-listen"
    path = "DIR/sock"
    [state]
    directory = "DIR/state"
    [audit]
    sink = "off"
"#;

const GOOD: &str = "version = 1\n[[rule]]\noutcome = \"allow\"\n";

/// Starts an agent whose policy folder was changed by `change`, which gets that folder.
fn started(change: impl FnOnce(&Path)) -> Agent {
    let directory = private_directory();
    let folder = directory.path().join("policy");
    std::fs::create_dir_all(folder.join("policy.d")).unwrap();
    std::fs::write(folder.join("policy.toml"), GOOD).unwrap();
    for path in [&*folder, &folder.join("policy.d")] {
        mode(path, 0o755);
    }
    mode(&folder.join("policy.toml"), 0o644);
    change(&folder);
    Agent::configured(directory, CONFIGURATION)
}

fn with_policy(text: &str) -> Agent {
    started(|folder| std::fs::write(folder.join("policy.toml"), text).unwrap())
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What is served, and what the log says with the folder's path as FOLDER.
fn closed(agent: &Agent) -> String {
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    assert_eq!(host.call("guest-sync", json!({ "id": 3 })), 3);
    let info = host.call("guest-info", json!({}));
    let is_on = |command: &&Value| command["enabled"] == true;
    let on = info["supported_commands"].as_array().unwrap().iter().filter(is_on);
    let on: Vec<&str> = on.filter_map(|command| command["name"].as_str()).collect();
    assert_eq!(
        on,
        ["guest-fsfreeze-status", "guest-info", "guest-ping", "guest-sync", "guest-sync-delimited"]
    );
    let text = "Command guest-get-host-name has been disabled: the command is not allowed";
    assert_eq!(host.refused("guest-get-host-name", json!({})), text);
    assert_eq!(agent.processes().len(), 2, "{:?}", agent.processes());
    let log = agent.log();
    assert!(log.contains("no policy is in force: nothing but sync, ping and info is served"), "{log}");
    log.replace(agent.path("policy").to_str().unwrap(), "FOLDER")
}

fn says(agent: &Agent, expected: &str) {
    let log = closed(agent);
    assert!(log.contains(expected), "{expected}\n---\n{log}");
}

#[test]
fn the_good_one_that_the_others_are_made_from_is_in_force() {
    let agent = started(|_| ());
    agent.connect().call("guest-get-host-name", json!({}));
    assert!(!agent.log().contains("no policy"), "{}", agent.log());
}

// ---------------------------------------------------------------- what is not understood

#[test]
fn an_unknown_key() {
    says(
        &with_policy("version = 1\n[[rule]]\noutcome = \"allow\"\ncomands = [\"guest-ping\"]\n"),
        "FOLDER/policy.toml:4: unknown field `comands`",
    );
}

#[test]
fn an_unknown_command() {
    says(
        &with_policy("version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exce\"]\n"),
        "FOLDER/policy.toml:4: unknown command \"guest-exce\"; did you mean \"guest-exec\"?\n  \
         commands = [\"guest-exce\"]\n              ^^^^^^^^^^^^\n",
    );
}

#[test]
fn a_pattern_that_is_none() {
    says(
        &with_policy("version = 1\n[[rule]]\noutcome = \"allow\"\npaths = [\"etc/**\"]\n"),
        "FOLDER/policy.toml:4: a path pattern begins with `/`",
    );
    says(
        &with_policy("version = 1\n[[rule]]\noutcome = \"allow\"\npaths = [\"/a/../b\"]\n"),
        "\n  paths = [\"/a/../b\"]\n           ^^^^^^^^^\n",
    );
}

#[test]
fn a_rule_that_can_never_match() {
    says(
        &with_policy(
            "version = 1\n[[rule]]\noutcome = \"deny\"\ngroups = [\"query\"]\npaths = [\"/etc/**\"]\n",
        ),
        "this rule can never match: none of its commands has a path\n",
    );
}

// A rule that refuses would refuse nothing.
#[test]
fn a_rule_for_a_channel_that_there_is_not() {
    says(
        &with_policy(&format!(
            "version = 1\n[[rule]]\noutcome = \"deny\"\nchannels = [\"tests\"]\n{}",
            &GOOD[12..]
        )),
        "FOLDER/policy.toml:4: this rule can never match: no channel is called \"tests\"; did you mean \"test\"?\n  \
         channels = [\"tests\"]\n              ^^^^^^^\n",
    );
}

#[test]
fn an_unknown_preset() {
    let log = closed(&with_policy("version = 1\ninclude = \"obsrve\"\n"));
    assert!(
        log.contains("FOLDER/policy.toml:2: there is no preset \"obsrve\"; did you mean \"observe\"?"),
        "{log}"
    );
    assert!(log.contains("\n  include = \"obsrve\"\n            ^^^^^^^^\n"), "{log}");
}

#[test]
fn another_version() {
    says(&with_policy("version = 2\n"), "FOLDER/policy.toml:1: ");
    says(&with_policy(""), "FOLDER/policy.toml:");
}

#[test]
fn a_part_that_is_wrong_where_the_rest_is_right() {
    let agent = started(|folder| {
        std::fs::write(folder.join("policy.d/10-a.toml"), "version = 1\n[[rule]]\noutcome = \"alow\"\n")
            .unwrap();
    });
    says(&agent, "FOLDER/policy.d/10-a.toml:3: ");
}

// ---------------------------------------------------------------- what cannot be read

#[test]
fn a_text_that_is_not_utf_8() {
    let agent = started(|folder| {
        std::fs::write(folder.join("policy.d/10-a.toml"), b"# one\n# tw\xff\n").unwrap();
    });
    says(&agent, "FOLDER/policy.d/10-a.toml: cannot be read: line 2 is not UTF-8 text\n");
}

#[test]
fn a_text_that_is_too_large() {
    let agent = with_policy(&format!("{GOOD}{}", "#".repeat(1 << 20)));
    says(&agent, "FOLDER/policy.toml: cannot be read: it is larger than 1 MiB\n");
}

#[test]
fn a_file_that_is_missing_or_is_none() {
    let agent = started(|folder| std::fs::remove_file(folder.join("policy.toml")).unwrap());
    says(&agent, "FOLDER/policy.toml: cannot be read: No such file or directory");
    let agent = started(|folder| {
        std::fs::remove_file(folder.join("policy.toml")).unwrap();
        nix::unistd::mkfifo(&folder.join("policy.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    says(&agent, "FOLDER/policy.toml: cannot be read: it is not a regular file\n");
    let agent = started(|folder| {
        std::fs::create_dir(folder.join("policy.d/10-a.toml")).unwrap();
    });
    says(&agent, "FOLDER/policy.d/10-a.toml: cannot be read: it is not a regular file\n");
}

// ---------------------------------------------------------------- what others could have written

#[test]
fn a_file_that_others_can_write() {
    let agent = started(|folder| mode(&folder.join("policy.toml"), 0o664));
    says(&agent, "FOLDER/policy.toml: can be written by others than its owner: chmod go-w\n");
}

#[test]
fn a_folder_in_which_others_could_exchange_the_file() {
    let agent = started(|folder| mode(folder, 0o775));
    says(&agent, "could be exchanged: FOLDER can be written by others than its owner: chmod go-w FOLDER\n");
}

#[test]
fn a_folder_of_parts_to_which_others_could_add_one() {
    let agent = started(|folder| mode(&folder.join("policy.d"), 0o757));
    says(
        &agent,
        "FOLDER/policy.d: could be exchanged: FOLDER/policy.d can be written by others than its owner: chmod go-w FOLDER/policy.d\n",
    );
}

#[test]
fn what_belongs_to_somebody_else() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root can give something away");
        return;
    }
    let agent = started(|folder| chown(folder.join("policy.toml"), Some(4711), None).unwrap());
    says(&agent, "FOLDER/policy.toml: belongs to another user than root: chown root\n");
    let agent = started(|folder| chown(folder.join("policy.d"), Some(4711), None).unwrap());
    says(&agent, "FOLDER/policy.d belongs to another user than root: chown root FOLDER/policy.d\n");
}

#[test]
fn a_configuration_that_others_can_write() {
    let agent = started(|_| ());
    // It says which policy is in force.
    mode(&agent.path("portreeve.toml"), 0o666);
    let mut agent = agent;
    agent.terminate();
    agent.start_again();
    let log = closed(&agent);
    assert!(log.contains("portreeve.toml: can be written by others than its owner: chmod go-w\n"), "{log}");
}
