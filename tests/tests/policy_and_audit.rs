//! What the policy permits, and what the audit log says of it, as seen from outside.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use serde_json::{Value, json};
use tests::agent::{Agent, private_directory, text, wait_until};

/// The records of requests of one command.
fn records_of(agent: &Agent, command: &str) -> Vec<Value> {
    let of_command = |record: &Value| record["command"] == command;
    agent.audit().into_iter().filter(of_command).collect()
}

fn disabled(command: &str) -> Value {
    let text = format!("Command {command} has been disabled: the command is not allowed");
    json!({ "error": { "class": "CommandNotFound", "desc": text } })
}

// ---------------------------------------------------------------- policy

#[test]
fn observe_tells_and_touches_nothing() {
    let agent = Agent::run("qga,phoenix", "observe");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.call("guest-network-get-interfaces", json!({}));
    assert_eq!(
        host.ask("{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/passwd\"}}"),
        disabled("guest-file-open")
    );
    assert_eq!(
        host.ask("{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"true\"}}"),
        disabled("guest-exec")
    );
    let up = host.ask("{\"execute\":\"net-iface-up\",\"arguments\":{\"ifname\":\"lo\"},\"tag\":\"t\"}");
    assert!(up["error"].is_object(), "{up}");
}

#[test]
fn the_preset_qemu_ga_permits_everything() {
    let agent = Agent::run("qga,phoenix", "qemu-ga");
    let mut host = agent.connect();
    let info = host.call("guest-info", json!({}));
    let is_off = |command: &&Value| command["enabled"] == false;
    let off: Vec<&Value> = info["supported_commands"].as_array().unwrap().iter().filter(is_off).collect();
    assert!(off.is_empty(), "{off:?}");
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    host.call("guest-exec", json!({ "path": "true" }));
}

#[test]
fn what_no_rule_permits_is_refused() {
    let policy = "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-get-host-name\"]\n";
    let agent = Agent::run("qga", policy);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    assert_eq!(host.ask("{\"execute\":\"guest-get-time\"}"), disabled("guest-get-time"));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = "version = 1\n[[rule]]\noutcome = \"deny\"\ncommands = [\"guest-get-users\"]\n\
                  [[rule]]\noutcome = \"allow\"\ngroups = [\"query\"]\n";
    let agent = Agent::run("qga", policy);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    assert_eq!(host.ask("{\"execute\":\"guest-get-users\"}"), disabled("guest-get-users"));
    host.send("{\"execute\":\"guest-get-users\"}");
    host.line();
    let records = records_of(&agent, "guest-get-users");
    let rule = records[0]["rule"].as_str().unwrap();
    assert!(rule.ends_with("policy.toml:2"), "{rule}");
    assert_eq!(records[0]["decision"], "deny");
}

#[test]
fn reading_may_be_permitted_and_writing_not() {
    let policy = "version = 1\n[[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\n";
    let agent = Agent::run("qga", policy);
    let mut host = agent.connect();
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let path = agent.path("new");
    let refused = host.ask(
        json!({ "execute": "guest-file-open", "arguments": { "path": text(&path), "mode": "w" } })
            .to_string(),
    );
    assert_eq!(refused["error"]["class"], "GenericError");
    let why = refused["error"]["desc"].as_str().unwrap();
    assert!(why.contains("Permission denied"), "{why}");
    assert!(!path.exists());
}

#[test]
fn rules_may_be_for_one_channel_or_one_dialect() {
    let policy = "version = 1\n[[rule]]\noutcome = \"deny\"\ndialects = [\"phoenix\"]\ngroups = [\"query\"]\n\
                  [[rule]]\noutcome = \"allow\"\nchannels = [\"test\"]\n\
                  [[rule]]\noutcome = \"deny\"\n";
    let agent = Agent::run("qga,phoenix", policy);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    assert!(host.ask("{\"execute\":\"sysinfo\",\"tag\":\"t\"}")["error"].is_object());
}

/// A folder that rules can name, with a file in it that says where it is.
fn folder(agent_directory: &std::path::Path, name: &str) -> String {
    let folder = agent_directory.canonicalize().unwrap().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), name).unwrap();
    folder.display().to_string()
}

/// An agent whose policy is written when its directory is known.
fn agent_with_rules(dialects: &str, rules: impl Fn(&str, &str) -> String) -> (Agent, String, String) {
    let directory = private_directory();
    let (open, closed) = (folder(directory.path(), "open"), folder(directory.path(), "closed"));
    std::fs::write(directory.path().join("policy.toml"), format!("version = 1\n{}", rules(&open, &closed)))
        .unwrap();
    let dialects: Vec<String> = dialects.split(',').map(|dialect| format!("\"{dialect}\"")).collect();
    let configuration = format!(
        "policy = \"DIR/policy.toml\"\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
         dialects = [{}]\n[state]\ndirectory = \"DIR/state\"\n[audit]\nsink = \"file\"\npath = \"DIR/audit.log\"\n",
        dialects.join(", "),
    );
    (Agent::configured(directory, &configuration), open, closed)
}

#[test]
fn a_rule_about_paths_is_about_the_file_that_was_really_opened() {
    let (agent, open, closed) = agent_with_rules("qga,phoenix", |open, _| {
        format!(
            "[[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\", \"file.write\"]\npaths = [\"{open}/**\"]\n"
        )
    });
    std::os::unix::fs::symlink(format!("{closed}/file"), format!("{open}/link")).unwrap();
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": format!("{closed}/../open/file") }));
    let read = host.call("guest-file-read", json!({ "handle": handle }));
    assert_eq!((&read["buf-b64"], &read["eof"]), (&json!("b3Blbg=="), &json!(true)));
    for path in [
        format!("{closed}/file"),
        format!("{open}/../closed/file"),
        format!("{open}/link"),
        format!("{closed}/nothing"),
    ] {
        let why = host.refused("guest-file-open", json!({ "path": path, "mode": "w" }));
        assert_eq!(why, format!("failed to open file '{path}' (mode: 'w'): Permission denied"));
    }
    assert_eq!(std::fs::read(format!("{closed}/file")).unwrap(), b"closed");
    let refused = host.ask(
        json!({ "execute": "file-stat", "arguments": { "path": format!("{closed}/file") }, "tag": "t" })
            .to_string(),
    );
    // "Command file-stat: Permission denied: the policy does not allow this file.read", as Phoenix has its errors.
    let why = "Q29tbWFuZCBmaWxlLXN0YXQ6IFBlcm1pc3Npb24gZGVuaWVkOiB0aGUgcG9saWN5IGRvZXMgbm90IGFsbG93IHRoaXMgZmlsZS5yZWFk";
    assert_eq!(refused["error"]["bufb64"], why);
    // And the file worker is the same as before: a refusal is none of its faults.
    let read = host.call("guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": 0 }));
    assert_eq!(read["position"], 0);
    let records = records_of(&agent, "guest-file-open");
    let opened = records.iter().find(|record| record["outcome"] == "done").unwrap();
    assert_eq!(opened["file"], format!("{open}/file"), "where it is, not how it was named");
    let refused: Vec<&Value> = records.iter().filter(|record| record["decision"] == "deny").collect();
    assert_eq!(refused.len(), 4, "{records:?}");
    assert!(refused.iter().all(|record| record["rule"].as_str().unwrap().contains("default")), "{refused:?}");
}

#[test]
fn the_rule_that_refuses_a_path_is_recorded_with_its_own_text() {
    let (agent, _, closed) = agent_with_rules("qga", |_, closed| {
        format!(
            "[[rule]]\noutcome = \"deny\"\ngroups = [\"file.read\"]\npaths = [\"{closed}/**\"]\ntext = \"Permission denied: keep out\"\n\
             [[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\n"
        )
    });
    let mut host = agent.connect();
    let why = host.refused("guest-file-open", json!({ "path": format!("{closed}/file") }));
    assert_eq!(why, "Permission denied: keep out");
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let records = records_of(&agent, "guest-file-open");
    let rules: Vec<(&Value, &str)> = records
        .iter()
        .map(|record| {
            let rule = record["rule"].as_str().unwrap();
            (&record["decision"], rule.rsplit('/').next().unwrap())
        })
        .collect();
    assert_eq!(rules, [(&json!("deny"), "policy.toml:2"), (&json!("allow"), "policy.toml:7")]);
}

#[test]
fn an_open_file_has_the_limits_of_the_rule_that_let_it_be_opened() {
    let (agent, open, closed) = agent_with_rules("qga,phoenix", |open, _| {
        format!(
            "[[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\", \"file.write\"]\npaths = [\"{open}/**\"]\n\
             [rule.limits]\nrequest-bytes = 4\nhandle-bytes = 10\nopen-files = 1\n\
             [[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\n"
        )
    });
    std::fs::write(format!("{open}/file"), "0123456789").unwrap();
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": format!("{open}/file"), "mode": "r+" }));
    let mut read = |count: u32| host.call("guest-file-read", json!({ "handle": handle, "count": count }));
    // A short read, which clients expect: "0123", then "456".
    assert_eq!(read(100), json!({ "count": 4, "buf-b64": "MDEyMw==", "eof": false }));
    assert_eq!(read(3), json!({ "count": 3, "buf-b64": "NDU2", "eof": false }));
    let why = host.refused("guest-file-write", json!({ "handle": handle, "buf-b64": "aGVsbG8=" }));
    assert_eq!(why, "failed to write to file: Permission denied: the policy allows 4 bytes in one request");
    let used_up = "Permission denied: the policy allows 10 bytes of one open file, and they are used up";
    let why = host.refused("guest-file-write", json!({ "handle": handle, "buf-b64": "aGVscA==" }));
    assert_eq!(why, format!("failed to write to file: {used_up}"));
    host.call("guest-file-write", json!({ "handle": handle, "buf-b64": "aGV5" }));
    assert_eq!(
        host.refused("guest-file-read", json!({ "handle": handle })),
        format!("failed to read file: {used_up}")
    );
    let second = format!("{open}/file");
    let why = host.refused("guest-file-open", json!({ "path": second }));
    assert_eq!(
        why,
        format!(
            "failed to open file '{second}' (mode: 'r'): Too many open files: the policy allows 1 at a time"
        )
    );
    host.call("guest-file-open", json!({ "path": format!("{closed}/file") }));
    host.call("guest-file-close", json!({ "handle": handle }));
    host.call("guest-file-open", json!({ "path": second }));
    let writes = records_of(&agent, "guest-file-write");
    let denied = writes.iter().filter(|record| record["decision"] == "deny").count();
    assert_eq!(denied, 2, "{writes:?}");
}

/// The kernel's rule is tied to the file that was there when the worker started.
#[test]
fn a_file_that_was_replaced_is_opened_by_a_new_worker_and_what_is_open_stays_with_the_old_one() {
    let (agent, open, _) = agent_with_rules("qga", |open, _| {
        format!("[[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\npaths = [\"{open}/file\"]\n")
    });
    let path = format!("{open}/file");
    let mut host = agent.connect();
    let old = host.call("guest-file-open", json!({ "path": path }));
    let worker = agent.process("file");
    std::fs::write(format!("{open}/new"), "new").unwrap();
    std::fs::rename(format!("{open}/new"), &path).unwrap();
    let new = host.call("guest-file-open", json!({ "path": path }));
    assert_eq!(host.call("guest-file-read", json!({ "handle": new }))["buf-b64"], "bmV3");
    assert_eq!(host.call("guest-file-read", json!({ "handle": old }))["buf-b64"], "b3Blbg==");
    host.call("guest-file-close", json!({ "handle": old }));
    assert!(wait_until(|| !tests::agent::is_alive(worker)), "it has nothing to do any more");
    host.call("guest-file-seek", json!({ "handle": new, "offset": 0, "whence": 0 }));
}

/// A client tells a guest by what it lists.
#[test]
fn what_qemu_ga_does_not_have_on_linux_is_listed_and_served_where_it_is_configured() {
    for (written, known) in [("", true), ("extensions = false\n", false)] {
        let configuration = format!(
            "policy = \"observe\"\n{written}[[channel]]\nname = \"a\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n[audit]\nsink = \"off\"\n"
        );
        let agent = Agent::configured(private_directory(), &configuration);
        let mut host = agent.connect();
        assert_eq!(host.call("guest-info", json!({})).to_string().contains("guest-get-devices"), known);
        if known {
            assert!(host.call("guest-get-devices", json!({})).is_array());
        } else {
            assert_eq!(
                host.refused("guest-get-devices", json!({})),
                "The command guest-get-devices has not been found"
            );
        }
    }
}

#[test]
fn with_a_broken_policy_only_sync_ping_and_info_are_served() {
    let policy = "version = 1\n[[rule]]\noutcome = \"allow\"\ncomands = [\"guest-exec\"]\n";
    let agent = Agent::run("qga", policy);
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    assert_eq!(host.call("guest-sync", json!({ "id": 3 })), 3);
    host.send("{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4}}\n");
    assert_eq!(host.line(), b"\xff{\"return\": 4}");
    let info = host.call("guest-info", json!({}));
    let is_on = |command: &&Value| command["enabled"] == true;
    let on = info["supported_commands"].as_array().unwrap().iter().filter(is_on);
    let on: Vec<&str> = on.filter_map(|command| command["name"].as_str()).collect();
    assert_eq!(
        on,
        ["guest-fsfreeze-status", "guest-info", "guest-ping", "guest-sync", "guest-sync-delimited"]
    );
    assert_eq!(host.ask("{\"execute\":\"guest-get-time\"}"), disabled("guest-get-time"));
    let log = agent.log();
    assert!(log.contains("policy.toml:4: unknown field `comands`"), "{log}");
    assert!(log.contains("nothing but sync, ping and info is served"), "{log}");
    assert_eq!(agent.processes().len(), 2, "{:?}", agent.processes());
}

// A right that no rule grants is not even held: the worker for it cannot be started.
#[test]
fn the_exec_worker_of_a_policy_without_exec_never_exists() {
    let agent = Agent::run("qga", "observe");
    let mut host = agent.connect();
    host.refused("guest-exec", json!({ "path": "true" }));
    host.refused("guest-exec-status", json!({ "pid": 1 }));
    host.call("guest-get-host-name", json!({}));
    let names: Vec<String> = agent.processes().into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"exec".to_owned()) && names.contains(&"query".to_owned()), "{names:?}");
}

#[test]
fn the_netadmin_worker_of_a_policy_without_changes_never_exists() {
    let agent = Agent::run("phoenix", "observe");
    let mut host = agent.connect();
    assert!(
        host.ask("{\"execute\":\"net-iface-up\",\"arguments\":{\"ifname\":\"lo\"}}")["error"].is_object()
    );
    assert!(host.ask("{\"execute\":\"get-netifaces\"}")["return"].is_array());
    let names: Vec<String> = agent.processes().into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"netadmin".to_owned()) && names.contains(&"net".to_owned()), "{names:?}");
}

#[test]
fn workers_exist_from_their_first_use() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-ping", json!({}));
    agent.process("frontend");
    let mut names: Vec<String> = agent.processes().into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["broker", "frontend"]);
}

// ---------------------------------------------------------------- audit

#[test]
fn each_request_has_a_record_of_who_asked_what_by_which_rule_and_what_came_of_it() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    let records = records_of(&agent, "guest-get-host-name");
    assert_eq!(records.len(), 1, "{records:?}");
    let record = &records[0];
    assert_eq!(record["kind"], "request");
    assert_eq!(record["channel"], "test");
    assert_eq!(record["dialect"], "qga");
    assert_eq!(record["arguments"], json!({}));
    assert_eq!(record["decision"], "allow");
    assert!(record["rule"].as_str().unwrap().starts_with("preset qemu-ga:"), "{record}");
    assert_eq!(record["worker"], "query");
    assert_eq!(record["outcome"], "done");
    assert!(record["duration_us"].as_u64().is_some_and(|time| time > 0), "{record}");
    assert!(record["time"].as_str().unwrap().ends_with('Z'), "{record}");
}

#[test]
fn what_changes_something_is_recorded_before_it_begins_and_when_it_has_ended() {
    let agent = Agent::run("qga", "qemu-ga");
    let path = agent.path("file");
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    host.call("guest-file-write", json!({ "handle": handle, "buf-b64": "SGVsbG8=" }));
    let writes = records_of(&agent, "guest-file-write");
    let outcomes: Vec<(&Value, &Value)> =
        writes.iter().map(|record| (&record["kind"], &record["outcome"])).collect();
    assert_eq!(outcomes, [(&json!("intent"), &json!("begins")), (&json!("request"), &json!("done"))]);
    assert_eq!(writes[1]["bytes"], 5);
    assert_eq!(writes[1]["file"], text(&path));
    assert_eq!(writes[1]["arguments"]["buf-b64"], json!({ "bytes": 5 }));
}

#[test]
fn a_failure_is_recorded_with_its_text_and_errno() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().refused("guest-file-open", json!({ "path": "/nonexistent/file" }));
    let records = records_of(&agent, "guest-file-open");
    let record = records.last().unwrap();
    assert_eq!((&record["outcome"], &record["errno"]), (&json!("failed"), &json!(2)));
    assert_eq!(
        record["error"],
        "failed to open file '/nonexistent/file' (mode: 'r'): No such file or directory"
    );
}

#[test]
fn records_are_numbered_without_a_gap() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.call("guest-exec", json!({ "path": "true" }));
    let numbers: Vec<u64> = agent.audit().iter().filter_map(|record| record["sequence"].as_u64()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

#[test]
fn the_log_holds_no_payload_no_input_and_no_values_of_the_environment() {
    let agent = Agent::run("qga,phoenix", "qemu-ga");
    let mut host = agent.connect();
    // "hidden payload", "hidden input"
    let (payload, input) = ("aGlkZGVuIHBheWxvYWQ=", "aGlkZGVuIGlucHV0");
    let path = agent.path("file");
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    host.call("guest-file-write", json!({ "handle": handle, "buf-b64": payload }));
    let exec =
        json!({ "path": "cat", "env": ["TOKEN=hunter2"], "input-data": input, "capture-output": true });
    let pid = host.call("guest-exec", exec)["pid"].clone();
    let mut status = json!({});
    assert!(wait_until(|| {
        status = host.call("guest-exec-status", json!({ "pid": pid }));
        status["exited"] == true
    }));
    assert_eq!(status["out-data"], input);
    let log = std::fs::read_to_string(agent.path("audit.log")).unwrap() + &agent.log();
    for secret in ["hidden", payload, input, "hunter2"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
    assert!(log.contains("TOKEN") && log.contains("{\"bytes\":12}"), "{log}");
}

#[test]
fn what_the_frontend_answers_by_itself_is_counted() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    for _ in 0..5 {
        host.call("guest-ping", json!({}));
    }
    host.call("guest-get-host-name", json!({}));
    let pings = || -> u64 {
        agent
            .audit()
            .iter()
            .filter(|record| record["kind"] == "front")
            .filter_map(|record| record["counts"]["guest-ping"].as_u64())
            .sum()
    };
    assert!(wait_until(|| pings() == 5), "{:?}", agent.audit());
}

const AUDITED_TO_A_FULL_DISK: &str = r#"
    policy = "qemu-ga"
    [[channel]]
    name = "test"
    method = "unix-listen"
    path = "DIR/sock"
    [state]
    directory = "DIR/state"
    [audit]
    sink = "file"
    path = "/dev/full"
    required = true
"#;

#[test]
fn what_cannot_be_recorded_is_not_done_where_records_are_required() {
    let agent = Agent::configured(private_directory(), AUDITED_TO_A_FULL_DISK);
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    let path = agent.path("file");
    let refused = host.refused("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    assert_eq!(refused, "not done, because it cannot be recorded: No space left on device");
    assert!(!path.exists());
    let refused = host.refused("guest-get-host-name", json!({}));
    assert_eq!(refused, "not done, because it cannot be recorded: No space left on device");
    assert!(agent.log().contains("the audit log cannot be written"), "{}", agent.log());
}

#[test]
fn what_cannot_be_recorded_is_done_where_records_are_not_required() {
    let configuration = AUDITED_TO_A_FULL_DISK.replace("required = true", "required = false");
    let agent = Agent::configured(private_directory(), &configuration);
    agent.connect().call("guest-get-host-name", json!({}));
    assert!(agent.log().contains("the audit log cannot be written"), "{}", agent.log());
}

#[test]
fn what_a_sync_abandoned_is_recorded_as_abandoned() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    tests::agent::stop(worker);
    host.send("{\"execute\":\"guest-get-host-name\"}");
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(host.call("guest-sync", json!({ "id": 1 })), 1);
    tests::agent::signal(worker, "CONT");
    assert!(wait_until(|| records_of(&agent, "guest-get-host-name")
        .iter()
        .any(|record| record["abandoned"] == true)));
}

#[test]
fn the_log_says_what_confines_each_worker() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    let records = agent.audit();
    let worker = records.iter().find(|record| record["kind"] == "worker" && record["worker"] == "query");
    let worker = worker.expect("a record of the query worker");
    assert!(worker["confinement"].as_object().is_some_and(|parts| !parts.is_empty()), "{worker}");
    assert_eq!(records[0]["kind"], "start");
}
