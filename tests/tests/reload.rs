//! Another policy for a running agent: by SIGHUP and by `portreeve reload`, with nothing lost, and nothing half in force.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::{Agent, children, is_alive, private_directory, signal, text, wait_until};
use tests::programs;

/// Allows whatever these groups are.
fn allowing(groups: &str) -> String {
    format!("version = 1\n[[rule]]\noutcome = \"allow\"\ngroups = [{groups}]\n")
}

const EVERYTHING: &str = "version = 1\n[[rule]]\noutcome = \"allow\"\n";

/// Everything but who is logged in.
const BUT_USERS: &str = "version = 1\n[[rule]]\noutcome = \"deny\"\ncommands = [\"guest-get-users\"]\n\
                         [[rule]]\noutcome = \"allow\"\n";

/// Puts a policy where the agent finds it, in one step.
fn write_policy(agent: &Agent, policy: &str) {
    let (file, new) = (agent.path("policy.toml"), agent.path("policy.new"));
    std::fs::write(&new, policy).unwrap();
    std::fs::rename(&new, &file).unwrap();
}

/// `portreeve reload`: its exit status and what it said.
fn reload(agent: &Agent) -> (Option<i32>, String) {
    reload_with(agent, &[])
}

fn reload_with(agent: &Agent, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(programs::program("portreeve"));
    let output = command.arg("reload").args(options).arg(agent.pid().to_string()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn put_in_force(agent: &Agent, policy: &str) {
    write_policy(agent, policy);
    let (status, said) = reload(agent);
    assert_eq!(status, Some(0), "{said}\n{}", agent.log());
}

fn records(agent: &Agent, kind: &str) -> Vec<Value> {
    agent.audit().into_iter().filter(|record| record["kind"] == kind).collect()
}

fn is_enabled(host: &mut tests::agent::Host, command: &str) -> bool {
    let info = host.call("guest-info", json!({}));
    let commands = info["supported_commands"].as_array().unwrap();
    commands.iter().any(|known| known["name"] == command && known["enabled"] == true)
}

// ---------------------------------------------------------------- in force

#[test]
fn a_reload_changes_every_answer_and_ends_nothing_but_workers_without_work() {
    let agent = Agent::run("qga", BUT_USERS);
    let mut host = agent.connect();
    host.refused("guest-get-users", json!({}));
    assert!(!is_enabled(&mut host, "guest-get-users"));
    let (broker, frontend) = (agent.process("broker"), agent.process("frontend"));
    host.call("guest-get-host-name", json!({}));
    let query = agent.process("query");

    write_policy(&agent, EVERYTHING);
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(0), "{said}");
    let policy = text(&agent.path("policy.toml")).to_owned();
    assert_eq!(said, format!("Agent {}: policy {policy} is in force.\n", agent.pid()));

    assert!(is_enabled(&mut host, "guest-get-users"));
    host.call("guest-get-users", json!({}));
    assert_eq!((agent.process("broker"), agent.process("frontend")), (broker, frontend));
    assert!(wait_until(|| !is_alive(query)), "a worker of the old policy is still there");
    let records = records(&agent, "reload");
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((&records[0]["accepted"], &records[0]["policy"]["name"]), (&json!(true), &json!(policy)));
}

#[test]
fn what_the_frontend_answers_by_itself_follows_at_once() {
    let agent = Agent::run("qga", EVERYTHING);
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    put_in_force(&agent, &allowing("\"query\""));
    assert_eq!(
        host.refused("guest-ping", json!({})),
        "Command guest-ping has been disabled: the command is not allowed"
    );
}

#[test]
fn sighup_alone_is_enough() {
    let agent = Agent::run("qga", BUT_USERS);
    let mut host = agent.connect();
    write_policy(&agent, EVERYTHING);
    signal(agent.pid(), "HUP");
    assert!(wait_until(|| is_enabled(&mut host, "guest-get-users")), "{}", agent.log());
}

#[test]
fn a_worker_that_the_new_policy_needs_can_be_started_and_one_that_it_does_not_need_is_ended() {
    let agent = Agent::run("qga", &allowing("\"file.read\", \"exec\", \"agent\""));
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let file = agent.process("file");

    put_in_force(&agent, &allowing("\"query\", \"agent\""));
    // A right that is not granted any more is not held any more, whatever it was used for.
    assert!(wait_until(|| !is_alive(file)));
    host.refused("guest-file-read", json!({ "handle": handle }));
    host.call("guest-get-host-name", json!({}));

    put_in_force(&agent, &allowing("\"file.read\", \"agent\""));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    host.refused("guest-exec", json!({ "path": "true" }));
}

#[test]
fn a_preset_can_be_exchanged_for_a_file() {
    let agent = Agent::run("qga", "observe");
    let mut host = agent.connect();
    host.refused("guest-file-open", json!({ "path": "/etc/passwd" }));
    write_policy(&agent, &allowing("\"file.read\", \"agent\""));
    let configuration = std::fs::read_to_string(agent.path("portreeve.toml")).unwrap();
    let changed = configuration
        .replace("policy = \"observe\"", &format!("policy = \"{}\"", text(&agent.path("policy.toml"))));
    std::fs::write(agent.path("portreeve.toml"), changed).unwrap();
    assert_eq!(reload(&agent).0, Some(0));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
}

#[test]
fn keys_that_need_a_restart_are_named_and_stay_as_they_were() {
    let agent = Agent::run("qga", EVERYTHING);
    let configuration = std::fs::read_to_string(agent.path("portreeve.toml")).unwrap();
    std::fs::write(
        agent.path("portreeve.toml"),
        format!("idle-seconds = 7\n{configuration}\n[log]\nverbose = true\n"),
    )
    .unwrap();
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(0), "{said}");
    let line = "but in force only after a restart: idle-seconds, log.verbose";
    assert!(said.contains(line), "{said}");
    assert!(agent.log().contains(line), "{}", agent.log());
    let (status, said) = reload_with(&agent, &["--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let report = &said["agents"][0];
    assert_eq!((status, &report["outcome"]), (Some(0), &json!("in force")));
    assert_eq!((&report["pid"], &report["why"]), (&json!(agent.pid()), &Value::Null));
    assert_eq!(report["restart-for"], json!(["idle-seconds", "log.verbose"]));
}

// ---------------------------------------------------------------- not in force

#[test]
fn a_policy_that_is_wrong_is_shown_and_the_agent_is_not_even_asked() {
    let agent = Agent::run("qga", BUT_USERS);
    write_policy(&agent, "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exce\"]\n");
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(1), "{said}");
    let place = format!(
        "{}:4: unknown command \"guest-exce\"; did you mean \"guest-exec\"?",
        text(&agent.path("policy.toml"))
    );
    assert!(said.contains(&place), "{said}");
    assert!(said.contains("\n  commands = [\"guest-exce\"]\n              ^^^^^^^^^^^^"), "{said}");
    assert!(said.contains("not reloaded, the policy in force stays"), "{said}");
    assert!(!agent.log().contains("polic"), "it was asked: {}", agent.log());
}

#[test]
fn sighup_with_a_policy_that_is_wrong_leaves_the_old_one_in_force_and_says_so() {
    let agent = Agent::run("qga", BUT_USERS);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let query = agent.process("query");
    write_policy(&agent, "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exce\"]\n");
    signal(agent.pid(), "HUP");
    assert!(wait_until(|| !records(&agent, "reload").is_empty()));
    let record = records(&agent, "reload").remove(0);
    let place = format!(
        "{}:4: unknown command \"guest-exce\"; did you mean \"guest-exec\"?",
        text(&agent.path("policy.toml"))
    );
    assert_eq!((&record["accepted"], &record["why"]), (&json!(false), &json!(place)));
    assert_eq!(record["policy"]["name"], text(&agent.path("policy.toml")));
    // The spawner says it when the broker has recorded it.
    let stays = "the policy was not reloaded: the one in force stays";
    assert!(wait_until(|| agent.log().contains(stays)), "{}", agent.log());
    let log = agent.log();
    assert!(
        log.contains(&format!("{place}\n  commands = [\"guest-exce\"]\n              ^^^^^^^^^^^^\n")),
        "{log}"
    );
    host.refused("guest-get-users", json!({}));
    host.call("guest-get-host-name", json!({}));
    assert_eq!(agent.process("query"), query);
}

#[test]
fn a_configuration_that_is_wrong_leaves_the_old_policy_in_force() {
    let agent = Agent::run("qga", BUT_USERS);
    std::fs::write(agent.path("portreeve.toml"), "polcy = \"observe\"\n").unwrap();
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("portreeve.toml:1: unknown field `polcy`"), "{said}");
    signal(agent.pid(), "HUP");
    assert!(wait_until(|| !records(&agent, "reload").is_empty()));
    assert!(records(&agent, "reload")[0]["why"].as_str().unwrap().contains("unknown field `polcy`"));
    agent.connect().call("guest-get-host-name", json!({}));
}

#[test]
fn programs_are_not_permitted_by_a_reload_of_an_agent_with_a_filter() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root's spawner has a filter");
        return;
    }
    let agent = Agent::run("qga", "observe");
    let configuration = std::fs::read_to_string(agent.path("portreeve.toml")).unwrap();
    std::fs::write(agent.path("portreeve.toml"), configuration.replace("\"observe\"", "\"qemu-ga\""))
        .unwrap();
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("it permits programs, which would inherit the filter"), "{said}");
    agent.connect().refused("guest-exec", json!({ "path": "true" }));
    assert_eq!(records(&agent, "reload")[0]["accepted"], false);
}

#[test]
fn an_agent_in_place_of_qemu_ga_is_not_ended_by_the_command() {
    let agent = Agent::as_qemu_ga(&[]);
    let (status, said) = reload(&agent);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("it does not reload"), "{said}");
    agent.connect().call("guest-ping", json!({}));
}

#[test]
fn a_process_that_is_no_agent_is_not_sent_a_signal() {
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let mut command = Command::new(programs::program("portreeve"));
    let output = command.args(["reload", &other.id().to_string()]).output().unwrap();
    let ended = other.try_wait().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!((output.status.code(), ended), (Some(2), None));
}

// ---------------------------------------------------------------- what is held

#[test]
fn an_open_file_of_an_earlier_policy_is_used_as_far_as_both_permit() {
    let agent = Agent::run("qga", &allowing("\"file.read\", \"agent\""));
    let mut host = agent.connect();
    std::fs::write(agent.path("file"), "0123456789").unwrap();
    let handle = host.call("guest-file-open", json!({ "path": text(&agent.path("file")) }));
    let worker = agent.process("file");

    put_in_force(&agent, &allowing("\"file.read\", \"file.write\", \"agent\""));
    let read = host.call("guest-file-read", json!({ "handle": handle, "count": 3 }));
    assert_eq!(read["buf-b64"], "MDEy");
    // The new policy permits it, the one that the worker has does not: it is not even asked.
    let refused = host.refused("guest-file-write", json!({ "handle": handle, "buf-b64": "eA==" }));
    assert!(refused.contains("the policy that was in force when this was opened"), "{refused}");
    let read = host.call("guest-file-read", json!({ "handle": handle, "count": 3 }));
    assert_eq!(read["buf-b64"], "MzQ1");
    // What is opened now is opened by another worker.
    let path = text(&agent.path("new")).to_owned();
    let other = host.call("guest-file-open", json!({ "path": path, "mode": "w" }));
    host.call("guest-file-write", json!({ "handle": other, "buf-b64": "eA==" }));

    put_in_force(&agent, &allowing("\"file.write\", \"agent\""));
    let disabled = "Command guest-file-read has been disabled: the command is not allowed";
    assert_eq!(host.refused("guest-file-read", json!({ "handle": handle })), disabled);

    put_in_force(&agent, &allowing("\"file.read\", \"file.write\", \"agent\""));
    let read = host.call("guest-file-read", json!({ "handle": handle, "count": 3 }));
    assert_eq!(read["buf-b64"], "Njc4");
    assert!(is_alive(worker));
    host.call("guest-file-close", json!({ "handle": handle }));
    assert!(wait_until(|| !is_alive(worker)), "it holds nothing any more");
}

#[test]
fn only_so_many_policies_are_kept_for_open_files_and_then_the_oldest_is_lost() {
    let agent = Agent::run("qga", EVERYTHING);
    let mut host = agent.connect();
    let names = ["guest-get-users", "guest-get-load", "guest-get-time", "guest-get-disks"];
    let mut handles = vec![host.call("guest-file-open", json!({ "path": "/etc/passwd" }))];
    for name in names {
        let deny = format!(
            "version = 1\n[[rule]]\noutcome = \"deny\"\ncommands = [\"{name}\"]\n[[rule]]\noutcome = \"allow\"\n"
        );
        put_in_force(&agent, &deny);
        handles.push(host.call("guest-file-open", json!({ "path": "/etc/passwd" })));
    }
    let refused = host.refused("guest-file-read", json!({ "handle": handles[0] }));
    assert!(refused.contains("it was lost when the file worker ended; open the file again"), "{refused}");
    for handle in &handles[1..] {
        host.call("guest-file-read", json!({ "handle": handle }));
    }
    assert!(agent.log().contains("the oldest file worker ends with what it holds"), "{}", agent.log());
}

#[test]
fn a_program_of_an_earlier_policy_is_asked_about_where_it_was_started() {
    let agent = Agent::run("qga", EVERYTHING);
    let mut host = agent.connect();
    let exec = json!({ "path": "sh", "arg": ["-c", "sleep 0.5; echo done"], "capture-output": true });
    let pid = host.call("guest-exec", exec)["pid"].clone();
    let worker = agent.process("exec");
    put_in_force(&agent, BUT_USERS);
    let second = host.call("guest-exec", json!({ "path": "true" }))["pid"].clone();
    let mut status = json!({});
    assert!(wait_until(|| {
        status = host.call("guest-exec-status", json!({ "pid": pid }));
        status["exited"] == true
    }));
    assert_eq!(status["out-data"], "ZG9uZQo=");
    assert!(wait_until(|| host.call("guest-exec-status", json!({ "pid": second }))["exited"] == true));
    assert!(wait_until(|| !is_alive(worker)), "nothing of it is asked for any more");
}

// ---------------------------------------------------------------- under load

/// Reads 4 KiB at a time and compares; returns how much.
fn read_in_order(agent: &Agent, handle: &Value, stop: &AtomicBool) -> usize {
    let mut host = agent.connect();
    let mut at = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let read = host.call("guest-file-read", json!({ "handle": handle, "count": 4096 }));
        let expected = content(at, 4096);
        assert_eq!(read["buf-b64"], expected, "at {at}");
        at += 4096;
        if at >= LENGTH {
            host.call("guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": 0 }));
            at = 0;
        }
    }
    at
}

const LENGTH: usize = 8 << 20;

fn bytes(at: usize, length: usize) -> Vec<u8> {
    (at..at + length).map(|position| u8::try_from(position / 512 % 251).unwrap()).collect()
}

fn content(at: usize, length: usize) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes(at, length))
}

const THREE_CHANNELS: &str = r#"
    policy = "DIR/policy.toml"
    [[channel]]
    name = "test"
    method = "unix-listen"
    path = "DIR/sock"
    [[channel]]
    name = "second"
    method = "unix-listen"
    path = "DIR/second"
    [[channel]]
    name = "third"
    method = "unix-listen"
    path = "DIR/third"
    [state]
    directory = "DIR/state"
    [audit]
    sink = "file"
    path = "DIR/audit.log"
"#;

fn connect_to(path: &Path) -> tests::agent::Host {
    let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(tests::agent::PATIENCE)).unwrap();
    stream.into()
}

#[test]
fn nothing_is_lost_while_fifty_reloads_go_back_and_forth_between_two_policies() {
    let directory = private_directory();
    std::fs::write(directory.path().join("policy.toml"), EVERYTHING).unwrap();
    std::fs::write(directory.path().join("data"), bytes(0, LENGTH)).unwrap();
    let agent = Agent::configured(directory, THREE_CHANNELS);
    let mut host = connect_to(&agent.path("second"));
    let handle = host.call("guest-file-open", json!({ "path": text(&agent.path("data")) }));
    let exec = json!({ "path": "sh", "arg": ["-c", "echo begun; read line; echo $line"], "capture-output": true,
                       "input-data": "d29yZAo=" });
    let long = json!({ "path": "sleep", "arg": ["600"] });
    let (program, sleeper) =
        (host.call("guest-exec", exec)["pid"].clone(), host.call("guest-exec", long)["pid"].clone());
    let (worker, exec_worker) = (agent.process("file"), agent.process("exec"));
    let stop = AtomicBool::new(false);

    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_in_order(&agent, &handle, &stop));
        let asker = scope.spawn(|| {
            let mut host = connect_to(&agent.path("third"));
            let (mut allowed, mut denied, mut slowest) = (0, 0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                host.call("guest-ping", json!({}));
                slowest = slowest.max(begin.elapsed());
                let reply = host.ask("{\"execute\":\"guest-get-users\"}");
                if reply["return"].is_array() {
                    allowed += 1;
                } else {
                    let text = "Command guest-get-users has been disabled: the command is not allowed";
                    assert_eq!(reply, json!({ "error": { "class": "CommandNotFound", "desc": text } }));
                    denied += 1;
                }
                let status = host.call("guest-exec-status", json!({ "pid": sleeper }));
                assert_eq!(status, json!({ "exited": false }));
            }
            (allowed, denied, slowest)
        });
        for turn in 0..50 {
            put_in_force(&agent, if turn % 2 == 0 { BUT_USERS } else { EVERYTHING });
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        let (allowed, denied, slowest) = asker.join().unwrap();
        assert!(allowed > 0 && denied > 0, "{allowed} allowed, {denied} denied");
        println!("{allowed} allowed, {denied} denied, slowest ping {slowest:?}");
    });
    let accepted = records(&agent, "reload").iter().filter(|record| record["accepted"] == true).count();
    assert_eq!(accepted, 50);
    let status = host.call("guest-exec-status", json!({ "pid": program }));
    assert_eq!((&status["exited"], &status["out-data"]), (&json!(true), &json!("YmVndW4Kd29yZAo=")));
    assert!(is_alive(worker) && is_alive(exec_worker), "they hold a file and a program");
    let sleeper = u32::try_from(sleeper.as_u64().unwrap()).unwrap();
    assert!(is_alive(sleeper));
    signal(sleeper, "KILL");
    let log = agent.log();
    assert!(!log.contains("broke the protocol") && !log.contains("does not start"), "{log}");
}

#[test]
fn a_storm_of_signals_is_few_reloads_and_the_last_policy_is_in_force() {
    let agent = Agent::run("qga", EVERYTHING);
    let mut host = agent.connect();
    for turn in 0..300 {
        if turn % 30 == 0 {
            write_policy(&agent, if turn % 60 == 0 { EVERYTHING } else { BUT_USERS });
        }
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(agent.pid()).unwrap()),
            nix::sys::signal::Signal::SIGHUP,
        )
        .unwrap();
    }
    assert!(wait_until(|| !is_enabled(&mut host, "guest-get-users")), "{}", agent.log());
    let count = records(&agent, "reload").len();
    assert!(count < 60, "{count} reloads");
    host.call("guest-get-host-name", json!({}));
}

#[test]
fn a_broker_that_comes_after_a_reload_has_the_new_policy() {
    let agent = Agent::run("qga", EVERYTHING);
    put_in_force(&agent, BUT_USERS);
    let broker = agent.process("broker");
    signal(broker, "KILL");
    agent.successor("broker", broker);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.refused("guest-get-users", json!({}));
}

#[test]
fn killed_brokers_and_compilers_in_the_middle_leave_one_policy_or_the_other() {
    let agent = Agent::run("qga", EVERYTHING);
    agent.connect().call("guest-get-host-name", json!({}));
    for turn in 0_u32..12 {
        write_policy(&agent, if turn % 2 == 0 { BUT_USERS } else { EVERYTHING });
        signal(agent.pid(), "HUP");
        std::thread::sleep(Duration::from_millis(u64::from(turn)));
        let name = ["compile", "broker", "recompile"][usize::try_from(turn).unwrap() % 3];
        let is_it = |pid: &u32| {
            let called = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            called.starts_with(&format!("portreeve-{name}\0"))
        };
        for pid in children(agent.pid()).into_iter().filter(is_it) {
            signal(pid, "KILL");
        }
    }
    // Whatever became of those, the next one is in force.
    assert!(wait_until(|| {
        write_policy(&agent, BUT_USERS);
        reload(&agent).0 == Some(0)
    }));
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.refused("guest-get-users", json!({}));
}
