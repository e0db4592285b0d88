//! How long things live: the agent, its processes, and what it holds for its clients.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::agent::{Agent, children, is_alive, private_directory, signal, stop, text, wait_until};
use tests::{processes::descriptors, programs};

/// An init system waits longer, a user does not.
const AT_ONCE: Duration = Duration::from_secs(2);

const FOR_ONE_SECOND: &str = r#"
    policy = "qemu-ga"
    idle-seconds = 1
    [[channel]]
    name = "test"
    method = "unix-listen"
    path = "DIR/sock"
    [state]
    directory = "DIR/state"
    [audit]
    sink = "off"
"#;

/// All processes of the agent.
fn family(agent: &Agent) -> Vec<u32> {
    let mut family = children(agent.pid());
    family.push(agent.pid());
    family
}

fn none_is_left(family: &[u32]) -> bool {
    wait_until(|| family.iter().all(|pid| !is_alive(*pid)))
}

fn sparse_file(path: &Path, length: u64) {
    std::fs::File::create(path).and_then(|file| file.set_len(length)).expect("the directory is ours");
}

// qga/main.c, quit_handler: the exit status of an agent that is told to end is 0.
#[test]
fn sigterm_ends_the_agent_with_status_0() {
    let mut agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    let family = family(&agent);
    let (status, time) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(time < AT_ONCE, "{time:?}");
    assert!(none_is_left(&family));
}

// What the broker has asked of the spawner is unread then, and a socket that is closed with something unread says "reset".
#[test]
fn an_agent_that_is_stopped_while_it_starts_a_worker_says_so_in_its_log_and_complains_of_nothing() {
    for round in 0..10 {
        let mut agent = Agent::run("qga", "qemu-ga");
        agent.connect().send("{\"execute\":\"guest-get-host-name\"}");
        sleep(Duration::from_micros(200 * round));
        let (status, _) = agent.terminate();
        assert_eq!(status.code(), Some(0), "{status}");
        let log = agent.log();
        assert!(!log.contains("control socket") && !log.contains("the spawner"), "{log}");
        assert_eq!(agent.audit().last().unwrap()["kind"], "stop");
    }
}

#[test]
fn sigint_ends_the_agent_with_status_0() {
    let mut agent = Agent::run("qga", "qemu-ga");
    signal(agent.pid(), "INT");
    let (status, time) = agent.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(time < AT_ONCE, "{time:?}");
}

// qga/main.c sets no handler for it: the default is to end. Under its own name the agent reloads (`reload.rs`).
#[test]
fn sighup_ends_the_agent_in_place_of_qemu_ga_as_it_ends_qemu_ga() {
    let mut agent = Agent::as_qemu_ga(&[]);
    agent.connect().call("guest-get-host-name", json!({}));
    let family = family(&agent);
    signal(agent.pid(), "HUP");
    let (status, _) = agent.wait();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(1), "{status}");
    assert!(none_is_left(&family));
}

// qemu-ga spins and ignores SIGTERM until its client reads.
#[test]
fn sigterm_ends_the_agent_while_a_client_does_not_read_its_48_mib() {
    let mut agent = Agent::run("qga", "qemu-ga");
    sparse_file(&agent.path("large"), 48 << 20);
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": text(&agent.path("large")) }));
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 48 << 20 } });
    host.send(read.to_string());
    sleep(Duration::from_millis(300));
    let family = family(&agent);
    let (status, time) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(time < AT_ONCE, "{time:?}");
    assert!(none_is_left(&family));
}

#[test]
fn sigterm_ends_the_agent_while_a_worker_hangs() {
    let mut agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    stop(agent.process("query"));
    host.send("{\"execute\":\"guest-get-host-name\"}");
    sleep(Duration::from_millis(50));
    let family = family(&agent);
    let (status, time) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(time < AT_ONCE, "{time:?}");
    assert!(none_is_left(&family));
}

#[test]
fn sigkill_of_the_main_process_leaves_no_other() {
    let agent = Agent::run("qga,phoenix", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.call("guest-network-get-interfaces", json!({}));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    host.refused("guest-exec", json!({ "path": "/nonexistent/program" }));
    let family = family(&agent);
    assert!(family.len() >= 7, "{:?}", agent.processes());
    signal(agent.pid(), "KILL");
    assert!(none_is_left(&family), "{:?}", agent.processes());
}

#[test]
fn the_process_that_was_started_is_the_one_that_lives() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-ping", json!({}));
    let program = std::fs::read_link(format!("/proc/{}/exe", agent.pid())).unwrap();
    assert_eq!(program.file_name().unwrap(), "portreeve-spawner");
}

/// Kills one process and returns how long it took until a new connection was answered.
fn time_to_recover(agent: &Agent, name: &str, request: &str) -> Duration {
    let begin = Instant::now();
    signal(agent.process(name), "KILL");
    let answered = wait_until(|| {
        let Ok(stream) = std::os::unix::net::UnixStream::connect(agent.path("sock")) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = (&stream).write_all(request.as_bytes());
        let mut answer = [0; 9];
        std::io::Read::read_exact(&mut &stream, &mut answer).is_ok() && answer == *b"{\"return\""
    });
    assert!(answered, "no answer after the end of {name}:\n{}", agent.log());
    begin.elapsed()
}

const SECONDS: Duration = Duration::from_secs(3);

#[test]
fn the_agent_answers_again_after_its_broker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    let spawner = agent.pid();
    let time = time_to_recover(&agent, "broker", "{\"execute\":\"guest-get-host-name\"}");
    assert!(time < SECONDS, "{time:?}");
    assert_eq!(spawner, agent.pid());
}

#[test]
fn the_agent_answers_again_after_its_frontend_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-ping", json!({}));
    let time = time_to_recover(&agent, "frontend", "{\"execute\":\"guest-ping\"}");
    assert!(time < SECONDS, "{time:?}");
}

#[test]
fn the_agent_answers_again_after_the_query_worker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    let time = time_to_recover(&agent, "query", "{\"execute\":\"guest-get-host-name\"}");
    assert!(time < SECONDS, "{time:?}");
}

#[test]
fn the_agent_answers_again_after_the_net_worker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-network-get-interfaces", json!({}));
    let time = time_to_recover(&agent, "net", "{\"execute\":\"guest-network-get-interfaces\"}");
    assert!(time < SECONDS, "{time:?}");
}

#[test]
fn the_agent_answers_again_after_the_file_worker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let open = "{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/passwd\"}}";
    let time = time_to_recover(&agent, "file", open);
    assert!(time < SECONDS, "{time:?}");
}

#[test]
fn the_agent_answers_again_after_the_exec_worker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-exec", json!({ "path": "true" }));
    let exec = "{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"true\"}}";
    let time = time_to_recover(&agent, "exec", exec);
    assert!(time < SECONDS, "{time:?}");
}

#[test]
fn the_agent_answers_again_after_the_netadmin_worker_was_killed() {
    let agent = Agent::run("phoenix", "qemu-ga");
    let up = "{\"execute\":\"net-iface-up\",\"arguments\":{\"ifname\":\"nosuch0\"}}";
    let first = agent.connect().ask(up);
    let worker = agent.process("netadmin");
    signal(worker, "KILL");
    assert!(wait_until(|| !is_alive(worker)));
    let second = agent.connect().ask(up);
    assert_eq!(first, second);
    assert_ne!(agent.process("netadmin"), worker);
}

#[test]
fn a_request_whose_worker_is_killed_is_answered_and_says_so() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let worker = agent.process("file");
    stop(worker);
    host.send("{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/passwd\"},\"id\":7}");
    sleep(Duration::from_millis(50));
    signal(worker, "KILL");
    let reply = tests::agent::json(&host.line());
    assert_eq!(reply["id"], 7);
    assert_eq!(
        reply["error"]["desc"],
        "the file worker ended (killed by signal 9) before it had answered; whether it did the work is not known"
    );
}

#[test]
fn open_files_that_were_lost_with_their_worker_say_so() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    let worker = agent.process("file");
    signal(worker, "KILL");
    assert!(wait_until(|| agent.log().contains("the file worker ended")));
    assert_eq!(
        host.refused("guest-file-read", json!({ "handle": handle })),
        format!(
            "handle '{handle}' has not been found: it was lost when the file worker ended; open the file again"
        )
    );
    // Only once: afterwards it is a number like any other.
    assert_eq!(
        host.refused("guest-file-read", json!({ "handle": handle })),
        format!("handle '{handle}' has not been found")
    );
    let next = host.call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    assert!(next > handle, "{next} after {handle}");
}

#[test]
fn numbers_of_open_files_go_on_after_the_agent_was_started_again() {
    let mut agent = Agent::run("qga", "qemu-ga");
    let first = agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    assert_eq!(first, 1000);
    agent.terminate();
    agent.start_again();
    let mut host = agent.connect();
    let second = host.call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    assert!(second > first, "{second} after {first}");
    assert_eq!(
        host.refused("guest-file-read", json!({ "handle": first })),
        "handle '1000' has not been found"
    );
}

#[test]
fn numbers_of_open_files_go_on_after_the_broker_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    let first = agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    let broker = agent.process("broker");
    signal(broker, "KILL");
    agent.successor("broker", broker);
    let second = agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" })).as_i64().unwrap();
    assert!(second > first, "{second} after {first}");
}

// Proxmox opens a connection for each command; a written file is six of them.
#[test]
fn open_files_outlive_the_connection_they_were_opened_by() {
    let agent = Agent::run("qga", "qemu-ga");
    let path = agent.path("file");
    let handle = agent.connect().call("guest-file-open", json!({ "path": text(&path), "mode": "w+" }));
    let write = json!({ "handle": handle, "buf-b64": "SGVsbG8=" });
    assert_eq!(agent.connect().call("guest-file-write", write), json!({ "count": 5, "eof": false }));
    let seek = json!({ "handle": handle, "offset": 1, "whence": "set" });
    assert_eq!(agent.connect().call("guest-file-seek", seek), json!({ "position": 1, "eof": false }));
    let read = agent.connect().call("guest-file-read", json!({ "handle": handle }));
    assert_eq!(read, json!({ "count": 4, "buf-b64": "ZWxsbw==", "eof": true }));
    agent.connect().call("guest-file-close", json!({ "handle": handle }));
    let refused = agent.connect().refused("guest-file-close", json!({ "handle": handle }));
    assert_eq!(refused, format!("handle '{handle}' has not been found"));
}

#[test]
fn open_files_outlive_a_frontend_that_was_killed() {
    let agent = Agent::run("qga", "qemu-ga");
    std::fs::write(agent.path("file"), "kept").unwrap();
    let handle = agent.connect().call("guest-file-open", json!({ "path": text(&agent.path("file")) }));
    let frontend = agent.process("frontend");
    signal(frontend, "KILL");
    agent.successor("frontend", frontend);
    let read = agent.connect().call("guest-file-read", json!({ "handle": handle }));
    assert_eq!(read["buf-b64"], "a2VwdA==");
}

#[test]
fn programs_can_be_asked_about_from_the_next_connection() {
    let agent = Agent::run("qga", "qemu-ga");
    let exec = json!({ "path": "sh", "arg": ["-c", "sleep 0.2; echo done; exit 3"], "capture-output": true });
    let pid = agent.connect().call("guest-exec", exec)["pid"].clone();
    let mut status = json!({});
    assert!(wait_until(|| {
        status = agent.connect().call("guest-exec-status", json!({ "pid": pid }));
        status["exited"] == true
    }));
    assert_eq!(
        status,
        json!({ "exited": true, "exitcode": 3, "out-data": "ZG9uZQo=", "out-truncated": false })
    );
    let refused = agent.connect().refused("guest-exec-status", json!({ "pid": pid }));
    assert_eq!(refused, format!("PID {pid} does not exist"));
}

#[test]
fn programs_that_a_killed_worker_had_started_are_known_to_be_lost() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let exec = json!({ "path": "sleep", "arg": ["5"] });
    let pid = host.call("guest-exec", exec)["pid"].clone();
    let worker = agent.process("exec");
    signal(worker, "KILL");
    assert!(wait_until(|| agent.log().contains("the exec worker ended")));
    let refused = host.refused("guest-exec-status", json!({ "pid": pid }));
    let program = u32::try_from(pid.as_u64().unwrap()).unwrap();
    let survived = is_alive(program);
    signal(program, "KILL");
    assert_eq!(
        refused,
        format!(
            "PID {pid} does not exist: the exec worker that had started it ended, and what was known of it is lost"
        )
    );
    assert!(survived, "a program ends with the worker that started it");
    host.call("guest-exec", json!({ "path": "true" }));
}

#[test]
fn programs_outlive_the_agent() {
    let mut agent = Agent::run("qga", "qemu-ga");
    let pid = agent.connect().call("guest-exec", json!({ "path": "sleep", "arg": ["60"] }))["pid"].clone();
    let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
    agent.terminate();
    let survived = is_alive(pid);
    signal(pid, "KILL");
    assert!(survived);
}

#[test]
fn a_worker_without_work_ends_and_comes_again_when_needed() {
    let agent = Agent::configured(private_directory(), FOR_ONE_SECOND);
    let mut host = agent.connect();
    let name = host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    assert!(wait_until(|| !is_alive(worker)), "it is still there");
    assert_eq!(host.call("guest-get-host-name", json!({})), name);
    assert_ne!(agent.process("query"), worker);
    assert!(!agent.log().contains("query"), "that is no event:\n{}", agent.log());
}

#[test]
fn a_worker_that_holds_open_files_does_not_end() {
    let agent = Agent::configured(private_directory(), FOR_ONE_SECOND);
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let worker = agent.process("file");
    sleep(Duration::from_millis(2500));
    assert!(is_alive(worker));
    host.call("guest-file-close", json!({ "handle": handle }));
    assert!(wait_until(|| !is_alive(worker)), "it is still there");
}

#[test]
fn there_are_1024_open_files_and_no_more() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let open = json!({ "execute": "guest-file-open", "arguments": { "path": "/etc/passwd" } }).to_string();
    let replies: Vec<_> = (0..1024).map(|_| host.ask(&open)).collect();
    assert_eq!((&replies[0]["return"], &replies[1023]["return"]), (&json!(1000), &json!(2023)));
    assert_eq!(
        host.refused("guest-file-open", json!({ "path": "/etc/passwd" })),
        "failed to open file '/etc/passwd' (mode: 'r'): Too many open files"
    );
    host.call("guest-file-close", json!({ "handle": 1500 }));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
}

#[test]
fn there_are_128_running_programs_and_no_more() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let exec =
        json!({ "execute": "guest-exec", "arguments": { "path": "sleep", "arg": ["60"] } }).to_string();
    let replies: Vec<_> = (0..128).map(|_| host.ask(&exec)).collect();
    let refused = host.ask(&exec);
    let pids: Vec<u32> =
        replies.iter().filter_map(|reply| reply["return"]["pid"].as_u64()?.try_into().ok()).collect();
    pids.iter().for_each(|pid| signal(*pid, "KILL"));
    assert_eq!(pids.len(), 128);
    assert_eq!(refused["error"]["class"], "GenericError");
    let text = refused["error"]["desc"].as_str().unwrap();
    assert!(text.contains("128"), "{text}");
}

#[test]
fn a_hundred_clients_leave_no_descriptor_behind() {
    let agent = Agent::run("qga", "qemu-ga");
    agent.connect().call("guest-get-host-name", json!({}));
    // It is started without being asked for, a moment after the others.
    assert!(wait_until(|| agent.processes().iter().any(|(name, _)| name == "fsfreeze")));
    let settled = |name: &str| {
        sleep(Duration::from_millis(100));
        descriptors(agent.process(name)).len()
    };
    let before = (settled("frontend"), settled("broker"), descriptors(agent.pid()).len());
    for _ in 0..100 {
        agent.connect().call("guest-get-host-name", json!({}));
    }
    let after = (settled("frontend"), settled("broker"), descriptors(agent.pid()).len());
    assert_eq!(before, after);
}

#[test]
fn an_ordinary_user_can_run_the_agent() {
    if !programs::is_root() {
        return programs::left_out("only root can become another user");
    }
    let directory = private_directory();
    std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let mut command = tests::agent::run(programs::program("portreeve"), directory.path(), FOR_ONE_SECOND);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    std::os::unix::process::CommandExt::gid(&mut command, 65534);
    let mut agent = Agent::start(command, directory);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let path = agent.path("file");
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    host.call("guest-file-close", json!({ "handle": handle }));
    let (status, _) = agent.terminate();
    assert_eq!(status.code(), Some(0));
}
