//! The agent answers while something of it hangs.
//!
//! What hangs is a worker that was stopped (`SIGSTOP`), or one thread of it in a file system that never answers: a FUSE mount
//! whose server does not read its device.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::fs::File;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::{Agent, Host, is_alive, json, private_directory, run, signal, stop, text, wait_until};
use tests::processes::descriptors;
use tests::programs;

/// docs/design.md, "Order": what is stuck for 100 ms is given up when another request has waited for 25 ms.
const LIVELY: Duration = Duration::from_millis(50);
const STUCK: Duration = Duration::from_millis(150);
const SILENCE: Duration = Duration::from_millis(300);

const HOST_NAME: &str = "{\"execute\":\"guest-get-host-name\"}\n";
const PING: &str = "{\"execute\":\"guest-ping\",\"id\":\"ping\"}\n";

/// An agent in a mount namespace with a file system that never answers, at `DIR/hung`. It lets go when `device` is dropped.
struct BesideHungFiles {
    /// First, so that nothing hangs when the agent is ended.
    device: Option<File>,
    agent: Agent,
}

impl Drop for BesideHungFiles {
    fn drop(&mut self) {
        self.device = None;
    }
}

const TWO_CHANNELS: &str = r#"
    policy = "qemu-ga"
    [[channel]]
    name = "one"
    method = "unix-listen"
    path = "DIR/sock"
    [[channel]]
    name = "two"
    method = "unix-listen"
    path = "DIR/sock2"
    dialects = ["qga", "phoenix"]
    [state]
    directory = "DIR/state"
    [audit]
    sink = "off"
"#;

impl BesideHungFiles {
    /// Nothing where a FUSE file system cannot be mounted.
    fn start() -> Option<Self> {
        const MOUNT: &str = "mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0,allow_other none hung \
                             && exec \"$@\" </dev/null";
        if !programs::is_root() {
            programs::left_out("only root can mount a file system");
            return None;
        }
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            programs::left_out("there is no FUSE here");
            return None;
        };
        let directory = private_directory();
        std::fs::create_dir(directory.path().join("hung")).unwrap();
        let portreeve = run(programs::program("portreeve"), directory.path(), TWO_CHANNELS);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", MOUNT, "sh"]);
        command.arg(portreeve.get_program()).args(portreeve.get_args());
        let input = Stdio::from(device.try_clone().unwrap());
        let mut agent = Agent::start_with(command, directory, input);
        agent.wait_until_it_listens();
        Some(BesideHungFiles { device: Some(device), agent })
    }

    fn open(&self) -> String {
        let path = self.agent.path("hung/file");
        let open =
            json!({ "execute": "guest-file-open", "arguments": { "path": text(&path) }, "id": "stuck" });
        format!("{open}\n")
    }

    fn exec(&self) -> String {
        let path = self.agent.path("hung/program");
        let exec = json!({ "execute": "guest-exec", "arguments": { "path": text(&path) }, "id": "stuck" });
        format!("{exec}\n")
    }
}

/// Sends something that gets stuck and, when it has been for a while, something else. Returns both answers and how long the
/// second took.
fn beside(host: &mut Host, stuck: &str, other: &str) -> (Value, Value, Duration) {
    host.send(stuck);
    sleep(STUCK);
    let begin = Instant::now();
    host.send(other);
    let (first, second) = (host.line(), host.line());
    (json(&first), json(&second), begin.elapsed())
}

/// The fastest of three: this machine has other things to do.
fn fastest(mut attempt: impl FnMut() -> Duration) -> Duration {
    (0..3).map(|_| attempt()).min().unwrap_or(Duration::MAX)
}

/// A host that takes the processors away, or moves the guest to another host, does that to all processes at once.
#[test]
fn a_machine_that_stood_still_for_a_while_is_no_reason_to_give_anything_up() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let (query, frontend) = (agent.process("query"), agent.process("frontend"));
    for _ in 0..5 {
        stop(query);
        host.send(format!("{HOST_NAME}{PING}"));
        sleep(Duration::from_millis(10));
        stop(frontend);
        sleep(SILENCE);
        // Both at once: the one that waits finds out that its time is over before the other can have answered.
        let both = [frontend, query].map(|pid| pid.to_string());
        assert!(Command::new("kill").args(["-s", "CONT"]).args(both).status().unwrap().success());
        assert!(json(&host.line())["return"]["host-name"].is_string());
        assert_eq!(json(&host.line()), json!({ "return": {}, "id": "ping" }));
    }
}

/// In a guest that is starting, a worker can take a hundred times the few milliseconds that it needs otherwise. Here the spawner, who starts
/// workers, is held up.
#[test]
fn a_request_whose_worker_starts_slowly_is_not_given_up_unless_it_does_not_start_at_all() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    stop(agent.pid());
    host.send(format!("{HOST_NAME}{PING}"));
    assert_eq!(host.line_within(SILENCE), None);
    signal(agent.pid(), "CONT");
    assert!(json(&host.line())["return"]["host-name"].is_string());
    assert_eq!(json(&host.line()), json!({ "return": {}, "id": "ping" }));

    stop(agent.pid());
    let begun = Instant::now();
    host.send(format!("{{\"execute\":\"guest-network-get-interfaces\"}}\n{PING}"));
    let error = json(&host.line());
    assert!(error["error"]["desc"].as_str().unwrap().contains("given up"), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(json(&host.line()), json!({ "return": {}, "id": "ping" }));
    signal(agent.pid(), "CONT");
}

#[test]
fn a_ping_is_answered_beside_an_open_that_hangs() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut host = hung.agent.connect();
    let time = fastest(|| {
        let (stuck, ping, time) = beside(&mut host, &hung.open(), PING);
        assert_eq!((&stuck["id"], &ping), (&json!("stuck"), &json!({ "return": {}, "id": "ping" })));
        assert_eq!(stuck["error"]["class"], "GenericError");
        time
    });
    assert!(time < LIVELY, "{time:?}");
}

#[test]
fn a_ping_is_answered_beside_a_program_that_hangs_before_it_starts() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut host = hung.agent.connect();
    let time = fastest(|| {
        let (stuck, ping, time) = beside(&mut host, &hung.exec(), PING);
        assert_eq!((&stuck["id"], &ping), (&json!("stuck"), &json!({ "return": {}, "id": "ping" })));
        time
    });
    assert!(time < LIVELY, "{time:?}");
}

#[test]
fn other_programs_start_beside_one_that_hangs_before_it_starts() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut host = hung.agent.connect();
    host.call("guest-exec", json!({ "path": "true" }));
    let (_, started, time) =
        beside(&mut host, &hung.exec(), "{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"true\"}}\n");
    assert!(started["return"]["pid"].as_i64().unwrap() > 0);
    assert!(time < Duration::from_millis(500), "{time:?}");
}

#[test]
fn a_healthy_file_is_read_beside_an_open_that_hangs() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut host = hung.agent.connect();
    std::fs::write(hung.agent.path("healthy"), [b'x'; 8192]).unwrap();
    let path = hung.agent.path("healthy");
    let handle = host.call("guest-file-open", json!({ "path": text(&path) }));
    let time = fastest(|| {
        host.call("guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": "set" }));
        let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 4096 } });
        let (_, read, time) = beside(&mut host, &hung.open(), &format!("{read}\n"));
        assert_eq!(read["return"]["count"], 4096);
        time
    });
    assert!(time < LIVELY, "{time:?}");
}

fn fifo(agent: &Agent) -> String {
    let path = agent.path("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    text(&path).to_owned()
}

// fopen(3) would wait for a writer.
#[test]
fn a_fifo_that_nobody_writes_to_is_opened_and_read_without_waiting() {
    let agent = Agent::run("qga", "qemu-ga");
    let path = fifo(&agent);
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": path }));
    let time = fastest(|| {
        let begin = Instant::now();
        host.send(format!("{{\"execute\":\"guest-file-read\",\"arguments\":{{\"handle\":{handle}}}}}"));
        host.send(PING);
        let _read = host.line();
        assert_eq!(json(&host.line()), json!({ "return": {}, "id": "ping" }));
        begin.elapsed()
    });
    assert!(time < LIVELY, "{time:?}");
}

#[test]
fn phoenix_answers_a_ping_beside_a_read_that_waits_for_a_writer() {
    let agent = Agent::run("phoenix", "qemu-ga");
    let path = fifo(&agent);
    let mut host = agent.connect();
    let open = json!({ "execute": "file-open", "arguments": { "path": path }, "tag": "o" });
    let handle = host.ask(open.to_string())["return"].clone();
    let read = json!({ "execute": "file-read", "arguments": { "handle_id": handle }, "tag": "r" });
    host.send(format!("{read}\n"));
    sleep(STUCK);
    let begin = Instant::now();
    assert_eq!(host.ask("{\"execute\":\"ping\",\"tag\":\"p\"}"), json!({ "return": "0.7.2", "tag": "p" }));
    assert!(begin.elapsed() < LIVELY, "{:?}", begin.elapsed());
    std::fs::write(&path, "now").unwrap();
    let read = json(&host.line());
    assert_eq!(read, json!({ "return": { "bufb64": "bm93", "eof": false }, "tag": "r" }));
}

#[test]
fn other_files_are_opened_beside_seven_opens_that_hang() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut host = hung.agent.connect();
    for _ in 0..7 {
        let (stuck, ping, _) = beside(&mut host, &hung.open(), PING);
        assert_eq!((&stuck["id"], &ping["id"]), (&json!("stuck"), &json!("ping")));
    }
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
}

#[test]
fn what_hangs_on_one_channel_is_not_noticed_on_another() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut one = hung.agent.connect();
    let mut two = Host::from(std::os::unix::net::UnixStream::connect(hung.agent.path("sock2")).unwrap());
    two.call("guest-get-host-name", json!({}));
    one.send(hung.open());
    sleep(STUCK);
    let time = fastest(|| {
        let begin = Instant::now();
        two.call("guest-get-host-name", json!({}));
        two.call("guest-ping", json!({}));
        begin.elapsed()
    });
    assert!(time < LIVELY, "{time:?}");
    // Nobody waited for the other one, so it still hangs.
    assert_eq!(one.line_within(SILENCE), None);
}

#[test]
fn what_one_client_left_hanging_is_not_noticed_by_the_next() {
    let Some(hung) = BesideHungFiles::start() else { return };
    let mut first = hung.agent.connect();
    first.send(hung.open());
    sleep(STUCK);
    drop(first);
    let begin = Instant::now();
    let mut second = hung.agent.connect();
    second.call("guest-ping", json!({}));
    assert!(begin.elapsed() < LIVELY, "{:?}", begin.elapsed());
    assert_eq!(second.line_within(SILENCE), None);
}

// The agent's reader is not blocked by a reply, so the ping of a client who waits for a large one is not either: it comes
// behind that reply.
#[test]
fn a_ping_behind_a_large_read_is_answered_behind_it() {
    let agent = Agent::run("qga", "qemu-ga");
    let path = agent.path("large");
    File::create(&path).and_then(|file| file.set_len(48 << 20)).unwrap();
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": text(&path) }));
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 48 << 20 } });
    host.send(format!("{read}\n{PING}"));
    let (first, second) = (host.line(), json(&host.line()));
    assert!(first.len() > 64 << 20, "{} bytes", first.len());
    assert_eq!(second, json!({ "return": {}, "id": "ping" }));
}

#[test]
fn replies_leave_in_the_order_of_the_requests_one_for_each() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    stop(worker);
    host.send(
        "{\"execute\":\"guest-get-host-name\",\"id\":1}{\"execute\":\"guest-ping\",\"id\":2}\
         {\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/passwd\"},\"id\":3}\
         {\"execute\":\"guest-info\",\"id\":4}{\"execute\":\"guest-nope\",\"id\":5}",
    );
    let ids: Vec<Value> = (0..5).map(|_| json(&host.line())["id"].clone()).collect();
    signal(worker, "CONT");
    assert_eq!(ids, [json!(1), json!(2), json!(3), json!(4), json!(5)]);
    assert_eq!(host.line_within(SILENCE), None, "the late reply is not sent");
}

// Proxmox writes sync and command in one go, libvirt a command behind a sync.
#[test]
fn a_command_and_a_sync_in_one_write_are_both_answered() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.send(format!("{HOST_NAME}{{\"execute\":\"guest-sync\",\"arguments\":{{\"id\":9}}}}\n"));
    assert!(json(&host.line())["return"]["host-name"].is_string());
    assert_eq!(json(&host.line()), json!({ "return": 9 }));
}

// libvirt after a timeout: what was asked before the sync must never be answered after it.
#[test]
fn a_sync_abandons_what_hangs_before_it() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    stop(worker);
    host.send(HOST_NAME);
    sleep(STUCK);
    let begin = Instant::now();
    host.send("{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1763630000000}}\n");
    assert_eq!(json(&host.line()), json!({ "return": 1_763_630_000_000_i64 }));
    assert!(begin.elapsed() < LIVELY, "{:?}", begin.elapsed());
    signal(worker, "CONT");
    assert_eq!(host.line_within(SILENCE), None, "the late reply is not sent");
    host.call("guest-get-host-name", json!({}));
}

#[test]
fn a_delimited_sync_abandons_what_hangs_before_it() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    stop(worker);
    host.send(HOST_NAME);
    sleep(STUCK);
    host.send("{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":5}}\n");
    assert_eq!(host.line(), b"\xff{\"return\": 5}");
    signal(worker, "CONT");
    assert_eq!(host.line_within(SILENCE), None, "the late reply is not sent");
}

#[test]
fn a_file_that_is_opened_after_a_sync_has_abandoned_it_is_closed_again() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    host.call("guest-file-close", json!({ "handle": handle }));
    let worker = agent.process("file");
    let before = descriptors(worker);
    std::fs::write(agent.path("late"), "").unwrap();
    let late = agent.path("late");
    stop(worker);
    host.send(json!({ "execute": "guest-file-open", "arguments": { "path": text(&late) } }).to_string());
    sleep(STUCK);
    host.send("{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}\n");
    assert_eq!(json(&host.line()), json!({ "return": 1 }));
    signal(worker, "CONT");
    sleep(SILENCE);
    let after = descriptors(worker);
    assert!(!after.contains(&late.display().to_string()), "{after:?}");
    assert_eq!(before.len(), after.len(), "{after:?}");
}

#[test]
fn a_program_that_starts_after_a_sync_has_abandoned_it_does_not_live() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-exec", json!({ "path": "true" }));
    let worker = agent.process("exec");
    stop(worker);
    let survived = agent.path("survived");
    let script = format!("sleep 0.5; touch {}", survived.display());
    let exec = json!({ "execute": "guest-exec", "arguments": { "path": "sh", "arg": ["-c", script] } });
    host.send(exec.to_string());
    sleep(STUCK);
    host.send("{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}\n");
    assert_eq!(json(&host.line()), json!({ "return": 1 }));
    signal(worker, "CONT");
    sleep(Duration::from_secs(1));
    assert!(!survived.exists());
    assert!(is_alive(worker));
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    let worker = agent.process("query");
    stop(worker);
    let (stuck, other, _) = beside(&mut host, "{\"execute\":\"guest-get-host-name\",\"id\":1}\n", HOST_NAME);
    assert_eq!(stuck["error"]["class"], "GenericError");
    assert!(other["return"]["host-name"].is_string(), "{other}");
    signal(worker, "CONT");
}

// Phoenix answers as things get done: its clients tell answers by their tags.
#[test]
fn phoenix_answers_in_the_order_of_completion() {
    let agent = Agent::run("phoenix", "qemu-ga");
    let mut host = agent.connect();
    host.ask("{\"execute\":\"sysinfo\",\"tag\":\"warm\"}");
    let worker = agent.process("query");
    stop(worker);
    host.send("{\"execute\":\"sysinfo\",\"tag\":\"slow\"}\n{\"execute\":\"ping\",\"tag\":\"fast\"}\n");
    host.send("{\"execute\":\"get-netifaces\",\"tag\":\"other\"}\n");
    let (first, second) = (json(&host.line()), json(&host.line()));
    assert_eq!((&first["tag"], &second["tag"]), (&json!("fast"), &json!("other")));
    signal(worker, "CONT");
    assert_eq!(json(&host.line())["tag"], "slow");
}

#[test]
fn phoenix_does_what_is_asked_of_one_file_in_the_order_of_the_requests() {
    let agent = Agent::run("phoenix", "qemu-ga");
    let mut host = agent.connect();
    let path = agent.path("file");
    let open =
        json!({ "execute": "file-open", "arguments": { "path": text(&path), "mode": "w" }, "tag": "o" });
    let handle = host.ask(open.to_string())["return"].clone();
    let line = |number: u32| {
        let bytes =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{number:04}\n"));
        let arguments = json!({ "handle_id": handle, "bufb64": bytes, "eof": number == 299 });
        format!("{}\n", json!({ "execute": "file-write", "arguments": arguments, "tag": number.to_string() }))
    };
    host.send((0..300).map(line).collect::<String>());
    let answers: Vec<Value> = (0..300).map(|_| json(&host.line())).collect();
    assert!(answers.iter().all(|answer| answer["return"] == true), "{answers:?}");
    let expected: String = (0..300).map(|number| format!("{number:04}\n")).collect();
    assert!(wait_until(|| std::fs::read_to_string(&path).is_ok_and(|text| text.len() == expected.len())));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn three_hundred_pipelined_writes_arrive_in_order() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let path = agent.path("file");
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    let write = |number: u32| {
        let bytes =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{number:04}\n"));
        let arguments = json!({ "handle": handle, "buf-b64": bytes });
        json!({ "execute": "guest-file-write", "arguments": arguments, "id": number }).to_string()
    };
    host.send((0..300).map(write).collect::<String>());
    let ids: Vec<u64> = (0..300).filter_map(|_| json(&host.line())["id"].as_u64()).collect();
    assert_eq!(ids, (0..300).collect::<Vec<u64>>());
    host.call("guest-file-close", json!({ "handle": handle }));
    let expected: String = (0..300).map(|number| format!("{number:04}\n")).collect();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}
