//! The audit log of the whole agent: whole after whatever happens to it, and honest about what is missing.
//!
//! The chain is checked here from `docs/audit.md` alone, with nothing of the agent's own code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::agent::{Agent, Host, private_directory, signal, stop, text, wait_until};
use tests::programs;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The records of these texts, one after the other.
///
/// # Panics
/// If a record has another number or another hash before it than the chain wants, is too long, or is not ASCII.
fn checked(texts: &[String]) -> Vec<Value> {
    let (mut records, mut prev, mut sequence) = (Vec::new(), "0".repeat(64), 0);
    for line in texts.iter().flat_map(|text| text.lines()) {
        assert!(line.is_ascii() && line.len() <= 16 * 1024, "{line}");
        // A line that was cut does not count.
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        assert_eq!(record["prev"], prev.as_str(), "{record}");
        sequence = if record["kind"] == "start" { 1 } else { sequence + 1 };
        assert_eq!(record["sequence"], sequence, "{record}");
        assert!(line.ends_with(&format!(",\"prev\":\"{prev}\"}}")), "{line}");
        prev = sha256(line.as_bytes());
        records.push(record);
    }
    records
}

fn read(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}

/// Without those of workers, which come and go at their own time.
fn kinds(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["kind"].as_str().unwrap()).filter(|kind| *kind != "worker").collect()
}

fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["kind"] == kind).collect()
}

/// An agent that permits everything, with an audit log as it is written here.
fn agent(audit: &str) -> Agent {
    Agent::configured(private_directory(), &configuration("policy = \"qemu-ga\"", audit))
}

fn configuration(policy: &str, audit: &str) -> String {
    format!(
        "{policy}\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
         [state]\ndirectory = \"DIR/state\"\n[audit]\n{audit}\n"
    )
}

const TO_FILE: &str = "path = \"DIR/audit.log\"";

fn ask_for_name(host: &mut Host) {
    host.call("guest-get-host-name", json!({}));
}

// ---------------------------------------------------------------- the chain

#[test]
fn the_chain_goes_on_when_the_agent_is_started_again() {
    let mut agent = agent(TO_FILE);
    ask_for_name(&mut agent.connect());
    agent.terminate();
    let before = read(&agent.path("audit.log"));
    agent.start_again();
    ask_for_name(&mut agent.connect());
    let records = checked(&[read(&agent.path("audit.log"))]);
    assert_eq!(kinds(&records), ["start", "request", "stop", "start", "request"], "{records:?}");
    let (last, count) = (sha256(before.lines().last().unwrap().as_bytes()), before.lines().count());
    let again = of_kind(&records, "start")[1];
    assert_eq!(again["link"], json!({ "sequence": count, "hash": last }));
    assert!(again.get("restart").is_none());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(records[0]["boot"], boot.trim());
    assert_eq!(records[0]["policy"]["name"], "qemu-ga");
    assert_eq!(records[0]["policy"]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn a_broker_killed_in_the_middle_of_a_request_leaves_an_intent_that_the_next_one_closes() {
    let agent = agent(TO_FILE);
    let mut host = agent.connect();
    host.call("guest-exec", json!({ "path": "true" }));
    stop(agent.process("exec"));
    host.send("{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"false\"}}\n");
    let log = agent.path("audit.log");
    assert!(wait_until(|| checked(&[read(&log)]).last().is_some_and(|last| last["kind"] == "intent")));
    let before = checked(&[read(&log)]);
    let intent = before.last().unwrap().clone();
    let head = sha256(read(&log).lines().last().unwrap().as_bytes());
    let broker = agent.process("broker");
    signal(broker, "KILL");
    agent.successor("broker", broker);
    assert!(wait_until(|| !of_kind(&checked(&[read(&log)]), "closed").is_empty()));
    let records = checked(&[read(&log)]);
    let start = &records[before.len()];
    assert_eq!((&start["kind"], &start["restart"]), (&json!("start"), &json!(true)));
    assert_eq!(start["link"]["hash"], head);
    let closed = of_kind(&records, "closed");
    assert_eq!(closed.len(), 1, "{closed:?}");
    assert_eq!((&closed[0]["intent"], &closed[0]["of"]), (&intent["sequence"], &json!(head)));
    assert_eq!(closed[0]["outcome"], "unknown");
}

#[test]
fn an_agent_killed_as_a_whole_is_followed_by_one_that_closes_its_intents_and_ends_its_last_line() {
    let mut agent = agent(TO_FILE);
    let mut host = agent.connect();
    host.call("guest-exec", json!({ "path": "true" }));
    stop(agent.process("exec"));
    host.send("{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"false\"}}\n");
    let log = agent.path("audit.log");
    assert!(wait_until(|| checked(&[read(&log)]).last().is_some_and(|last| last["kind"] == "intent")));
    let exec = agent.process("exec");
    signal(agent.pid(), "KILL");
    agent.wait();
    signal(exec, "KILL");
    // As the end of a machine leaves it.
    std::fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(b"{\"version\":1,\"seq").unwrap();
    assert!(wait_until(|| agent.processes().is_empty()));
    agent.start_again();
    assert!(wait_until(|| !of_kind(&checked(&[read(&log)]), "closed").is_empty()));
    let records = checked(&[read(&log)]);
    let start = of_kind(&records, "start")[1];
    assert_eq!(start["cut"], 17);
    assert_eq!(of_kind(&records, "closed").len(), 1, "{records:?}");
}

// ---------------------------------------------------------------- the file

#[test]
fn full_files_get_numbers_and_the_chain_goes_through_them() {
    let agent = agent(&format!("{TO_FILE}\nrotate-bytes = 65536\nkeep = 2"));
    let mut host = agent.connect();
    let log = agent.path("audit.log");
    let numbered = |number: u32| agent.path(&format!("audit.log.{number}"));
    for _ in 0..5 {
        for _ in 0..60 {
            host.send("{\"execute\":\"guest-get-host-name\"}\n".repeat(4));
            (0..4).for_each(|_| _ = host.line());
        }
    }
    assert!(wait_until(|| std::fs::metadata(&log).unwrap().len() < 65536), "{}", agent.log());
    let mut numbers: Vec<u32> = (1..30).filter(|number| numbered(*number).exists()).collect();
    let last = *numbers.last().unwrap();
    assert!(last >= 4, "{numbers:?}");
    // Two may be removed at once, whatever was asked for.
    assert_eq!(numbers.remove(0), 3, "{numbers:?}");
    // The spawner has renamed it before the broker writes its last record.
    assert!(wait_until(|| read(&numbered(last)).lines().last().unwrap().contains("\"kind\":\"rotated\"")));
    let texts: Vec<String> = (3..=last).map(|number| read(&numbered(number))).collect();
    for (text, number) in texts.iter().zip(3..) {
        let record: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&record["kind"], &record["to"]),
            (&json!("rotated"), &json!(format!("audit.log.{number}")))
        );
    }
    // What was removed is missing at the beginning only: put what comes first in its place.
    let all = texts.into_iter().chain([read(&log)]).collect::<String>();
    let mut lines = all.lines();
    let mut before = lines.next().unwrap();
    let mut count = 1;
    for line in lines {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["prev"], sha256(before.as_bytes()), "{record}");
        (before, count) = (line, count + 1);
    }
    assert!(count > 300, "{count}");
    assert_eq!(std::fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_log_that_is_removed_while_the_agent_runs_is_begun_anew_and_the_record_says_so() {
    let agent = agent(&format!("{TO_FILE}\nrequired = true"));
    let mut host = agent.connect();
    ask_for_name(&mut host);
    let log = agent.path("audit.log");
    // The worker that freezes starts by itself. Its record would be lost, and counted, while the file is begun anew.
    if programs::is_root() {
        assert!(wait_until(|| read(&log).contains("\"worker\":\"fsfreeze\"")));
    }
    let before = read(&log);
    std::fs::remove_file(&log).unwrap();
    ask_for_name(&mut host);
    let records = checked(&[before, read(&log)]);
    let replaced = of_kind(&records, "replaced");
    assert_eq!(replaced.len(), 1, "{records:?}");
    assert_eq!(replaced[0]["why"], "the file was removed");
    assert!(agent.log().contains("the audit log: the file was removed"), "{}", agent.log());
    assert!(of_kind(&records, "loss").is_empty(), "nothing was lost: {records:?}");
}

#[test]
fn a_log_that_is_cut_while_the_agent_runs_goes_on_and_the_record_says_so() {
    let agent = agent(TO_FILE);
    let mut host = agent.connect();
    ask_for_name(&mut host);
    let log = agent.path("audit.log");
    let before = read(&log);
    std::fs::File::options().write(true).open(&log).unwrap().set_len(100).unwrap();
    ask_for_name(&mut host);
    let after = read(&log);
    let (cut, rest) = after.split_once('\n').unwrap();
    assert_eq!(cut, &before[..100]);
    // What was cut away is known to whoever has it.
    let records = checked(&[before.clone(), rest.to_owned()]);
    let replaced = of_kind(&records, "replaced");
    assert_eq!(replaced[0]["why"], format!("the file was cut from {} to 100 bytes", before.len()));
}

/// An agent whose log is on a filesystem of 64 KiB, in a mount namespace of its own, and the path of it from here.
fn agent_on_a_small_disk(audit: &str) -> (Agent, std::path::PathBuf) {
    let directory = private_directory();
    let small = directory.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let audit = format!("path = \"DIR/small/audit.log\"\n{audit}");
    let run = configuration("policy = \"qemu-ga\"", &audit).replace("DIR", text(directory.path()));
    let file = directory.path().join("portreeve.toml");
    std::fs::write(&file, run).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=64k none \"$1\" && exec \"$2\" run --config \"$3\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(&small).arg(programs::program("portreeve")).arg(file);
    let agent = Agent::start(command, directory);
    let inside = format!("/proc/{}/root{}", agent.pid(), small.display());
    (agent, inside.into())
}

#[test]
fn a_disk_that_fills_up_and_has_room_again_costs_records_that_are_counted_and_no_gap() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (agent, small) = agent_on_a_small_disk("rotate-bytes = 0");
    let mut host = agent.connect();
    std::fs::write(small.join("filler"), vec![0; 40 * 1024]).unwrap();
    for _ in 0..100 {
        ask_for_name(&mut host);
    }
    assert!(agent.log().contains("the audit log cannot be written: "), "{}", agent.log());
    std::fs::remove_file(small.join("filler")).unwrap();
    ask_for_name(&mut host);
    let text = read(&small.join("audit.log"));
    let records = checked(std::slice::from_ref(&text));
    let lost: u64 = of_kind(&records, "loss").iter().filter_map(|record| record["records"].as_u64()).sum();
    assert!(lost > 0, "{records:?}");
    let requests = of_kind(&records, "request").len() as u64;
    assert_eq!(requests + lost, 101, "each is there or counted");
}

#[test]
fn what_a_full_disk_has_no_room_for_is_not_done_where_records_are_required() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (agent, small) = agent_on_a_small_disk("rotate-bytes = 0\nrequired = true\nsync = true");
    let mut host = agent.connect();
    let path = agent.path("made");
    std::fs::write(small.join("filler"), vec![0; 48 * 1024]).unwrap();
    let mut refused = String::new();
    for _ in 0..100 {
        let reply = host.ask("{\"execute\":\"guest-get-host-name\"}");
        if let Some(why) = reply.pointer("/error/desc").and_then(Value::as_str) {
            refused = why.to_owned();
        }
    }
    assert!(refused.starts_with("not done, because it cannot be recorded: "), "{refused:?}");
    host.refused("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    assert!(!path.exists());
    std::fs::remove_file(small.join("filler")).unwrap();
    host.call("guest-file-open", json!({ "path": text(&path), "mode": "w" }));
    let records = checked(&[read(&small.join("audit.log"))]);
    assert!(!of_kind(&records, "loss").is_empty());
    // What was done has an intent before it.
    for request in of_kind(&records, "request") {
        assert!(request["intent"].is_u64(), "{request}");
    }
}

// ---------------------------------------------------------------- what is in a record

#[test]
fn of_what_is_read_and_written_length_and_digest_are_recorded() {
    let agent = agent(TO_FILE);
    let mut host = agent.connect();
    let path = agent.path("file");
    // Three pieces and a half.
    let content: Vec<u8> = (0..230_000_u32).flat_map(|number| number.to_le_bytes()).take(230_000).collect();
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "w+" }));
    let written = json!({ "handle": handle, "buf-b64": base64.encode(&content), "count": 200_000 });
    host.call("guest-file-write", written);
    host.call("guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": 0 }));
    host.call("guest-file-read", json!({ "handle": handle, "count": 150_000 }));
    let records = checked(&[read(&agent.path("audit.log"))]);
    let of = |command: &str| records.iter().rfind(|record| record["command"] == command).unwrap();
    let write = of("guest-file-write");
    assert_eq!((&write["bytes"], &write["sha256"]), (&json!(200_000), &json!(sha256(&content[..200_000]))));
    let read = of("guest-file-read");
    assert_eq!((&read["bytes"], &read["sha256"]), (&json!(150_000), &json!(sha256(&content[..150_000]))));
    let intent =
        of_kind(&records, "intent").into_iter().find(|intent| intent["command"] == "guest-file-write");
    assert_eq!(write["intent"], intent.unwrap()["sequence"]);
}

#[test]
fn a_name_that_is_made_to_deceive_stays_one_line_of_ascii() {
    let agent = agent(TO_FILE);
    let mut host = agent.connect();
    let path = "/tmp/\u{202e}gnp.exe\n{\"version\":1}\u{1b}[2J\u{7f}";
    host.refused("guest-file-open", json!({ "path": path }));
    host.ask(b"{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/\\ud800\\u0000\"}}");
    let text = read(&agent.path("audit.log"));
    let records = checked(std::slice::from_ref(&text));
    let asked = records.iter().find(|record| record["arguments"]["path"] == path);
    assert!(asked.is_some(), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7f}'));
}

#[test]
fn a_rule_may_ask_for_a_record_of_each_ping_and_for_digests_instead_of_arguments() {
    let directory = private_directory();
    let policy = "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-ping\"]\nrecord = \"each\"\n\
                  [[rule]]\noutcome = \"allow\"\ngroups = [\"agent\"]\n\
                  [[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\nrecord = \"digest\"\n";
    std::fs::write(directory.path().join("policy.toml"), policy).unwrap();
    let written = configuration("policy = \"DIR/policy.toml\"", TO_FILE);
    let agent = Agent::configured(directory, &written);
    let mut host = agent.connect();
    for _ in 0..3 {
        host.call("guest-ping", json!({}));
    }
    host.call("guest-sync", json!({ "id": 1 }));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let log = agent.path("audit.log");
    assert!(wait_until(|| !of_kind(&checked(&[read(&log)]), "front").is_empty()));
    let records = checked(&[read(&log)]);
    let pings: Vec<&Value> = records.iter().filter(|record| record["command"] == "guest-ping").collect();
    assert_eq!(pings.len(), 3, "{records:?}");
    assert!(pings[0]["rule"].as_str().unwrap().ends_with("policy.toml:2"), "{}", pings[0]);
    let counts: Vec<&Value> = of_kind(&records, "front").into_iter().map(|front| &front["counts"]).collect();
    assert_eq!(counts, [&json!({ "guest-sync": 1 })]);
    let open = records.iter().find(|record| record["command"] == "guest-file-open").unwrap();
    let digest = sha256(b"{\"path\":\"/etc/passwd\",\"mode\":null}");
    assert_eq!(open["arguments"], json!({ "sha256": digest }));
    assert!(!read(&log).contains("passwd"));
}

// ---------------------------------------------------------------- other places, and witnesses

#[test]
fn the_journal_gets_fields_and_the_file_a_copy() {
    let directory = private_directory();
    let socket = UnixDatagram::bind(directory.path().join("journal")).unwrap();
    std::fs::set_permissions(directory.path().join("journal"), std::fs::Permissions::from_mode(0o666))
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let audit = format!("sink = [\"journald\", \"file\"]\nsocket = \"DIR/journal\"\n{TO_FILE}");
    let agent = Agent::configured(directory, &configuration("policy = \"qemu-ga\"", &audit));
    ask_for_name(&mut agent.connect());
    let mut entries = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !entries.iter().any(|entry: &String| entry.contains("guest-get-host-name")) {
        let length = socket.recv(&mut buffer).unwrap();
        entries.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
    }
    let entry = entries.last().unwrap();
    for field in [
        "MESSAGE=guest-get-host-name on test: done",
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=portreeve",
        "PORTREEVE_KIND=request",
        "PORTREEVE_CHANNEL=test",
        "PORTREEVE_COMMAND=guest-get-host-name",
        "PORTREEVE_DECISION=allow",
        "PORTREEVE_OUTCOME=done",
    ] {
        assert!(entry.lines().any(|line| line == field), "{field} in\n{entry}");
    }
    let records: String = entries
        .iter()
        .map(|entry| {
            entry.lines().find_map(|line| line.strip_prefix("PORTREEVE_RECORD=")).unwrap().to_owned() + "\n"
        })
        .collect();
    let checked = checked(std::slice::from_ref(&records));
    assert_eq!(kinds(&checked), ["start", "request"]);
    let sequence = format!("PORTREEVE_SEQUENCE={}", checked.last().unwrap()["sequence"]);
    assert!(entry.lines().any(|line| line == sequence), "{entry}");
    assert_eq!(read(&agent.path("audit.log")), records);
}

#[test]
fn the_head_is_shown_in_the_log_at_start_and_end_and_to_whom_the_policy_lets_ask_for_it() {
    let directory = private_directory();
    let policy = "version = 1\n[[rule]]\noutcome = \"allow\"\ngroups = [\"audit\", \"agent\"]\n";
    std::fs::write(directory.path().join("policy.toml"), policy).unwrap();
    let written = configuration("policy = \"DIR/policy.toml\"", TO_FILE);
    let mut agent = Agent::configured(directory, &written);
    let log = agent.path("audit.log");
    assert!(wait_until(|| agent.log().contains("AUDIT head 1 ")));
    let start = sha256(read(&log).lines().next().unwrap().as_bytes());
    assert!(agent.log().contains(&format!("AUDIT head 1 {start}\n")), "{}", agent.log());
    let head = agent.connect().call("guest-audit-head", json!({}));
    // The fsfreeze worker may have started meanwhile.
    let text = read(&log);
    let at = usize::try_from(head["sequence"].as_u64().unwrap()).unwrap();
    assert_eq!(head["hash"], sha256(text.lines().nth(at - 1).unwrap().as_bytes()));
    agent.terminate();
    let text = read(&log);
    let records = checked(std::slice::from_ref(&text));
    assert_eq!(records.last().unwrap()["kind"], "stop");
    let (count, last) = (records.len(), sha256(text.lines().last().unwrap().as_bytes()));
    assert!(agent.log().contains(&format!("AUDIT head {count} {last}\n")), "{}", agent.log());
}

#[test]
fn no_preset_but_that_of_qemu_ga_shows_the_head() {
    for (preset, shown) in [("qemu-ga", true), ("observe", false)] {
        let configuration = configuration(&format!("policy = \"{preset}\""), TO_FILE);
        let agent = Agent::configured(private_directory(), &configuration);
        let reply = agent.connect().ask("{\"execute\":\"guest-audit-head\"}");
        assert_eq!(reply["return"].is_object(), shown, "{reply}");
    }
}

// ---------------------------------------------------------------- the kernel's audit

/// What these need: root, and a kernel that audits nothing. Where it does, a virtual machine shows what it gets
/// (tests/vm/tests/kernel_audit.rs), and nothing is to be written into the audit of the machine that runs the tests.
fn kernel_drops_records() -> bool {
    if !programs::is_root() {
        programs::left_out("records go to the kernel from an agent that was started by root only");
        return false;
    }
    // Who turns it on: the command line, auditd, the journal.
    let audits = std::fs::read_to_string("/proc/cmdline").unwrap().contains("audit=1")
        || std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            ["auditd", "systemd-journal"].contains(&name.trim())
        });
    if audits {
        programs::left_out("this machine's kernel audits");
    }
    !audits
}

#[test]
fn what_the_kernel_audit_drops_is_refused_where_it_is_what_counts_and_required() {
    if !kernel_drops_records() {
        return;
    }
    let agent = agent("sink = \"kernel\"\nrequired = true");
    let mut host = agent.connect();
    assert_eq!(
        host.refused("guest-get-host-name", json!({})),
        "not done, because it cannot be recorded: the kernel audits nothing, so it drops records: start auditd, or boot with audit=1"
    );
    host.call("guest-ping", json!({}));
    let log = agent.log();
    assert!(log.contains("the kernel's audit does not take records: the kernel audits nothing"), "{log}");
}

#[test]
fn what_the_kernel_audit_drops_is_done_and_counted_where_it_is_not_required_or_gets_copies() {
    if !kernel_drops_records() {
        return;
    }
    for sinks in
        ["sink = \"kernel\"", "sink = [\"file\", \"kernel\"]\npath = \"DIR/audit.log\"\nrequired = true"]
    {
        let agent = agent(sinks);
        let mut host = agent.connect();
        ask_for_name(&mut host);
        ask_for_name(&mut host);
        assert_eq!(
            agent.log().matches("the kernel's audit does not take records").count(),
            1,
            "{}",
            agent.log()
        );
        // The worker lives on: it is not its fault.
        agent.process("audit");
    }
}

#[test]
fn an_audit_worker_that_is_killed_is_replaced_and_nothing_waits_for_it() {
    if !kernel_drops_records() {
        return;
    }
    let agent = agent("sink = [\"file\", \"kernel\"]\npath = \"DIR/audit.log\"\nrequired = true");
    let mut host = agent.connect();
    ask_for_name(&mut host);
    let worker = agent.process("audit");
    stop(worker);
    // More than the socket to it holds.
    for _ in 0..300 {
        ask_for_name(&mut host);
    }
    signal(worker, "KILL");
    agent.successor("audit", worker);
    ask_for_name(&mut host);
    let records = checked(&[read(&agent.path("audit.log"))]);
    assert_eq!(of_kind(&records, "request").len(), 302);
    let about: Vec<_> =
        of_kind(&records, "worker").into_iter().filter(|record| record["worker"] == "audit").collect();
    assert_eq!(
        about[0]["confinement"]["capabilities"], "0000000020000000",
        "CAP_AUDIT_WRITE is 29: {about:?}"
    );
    assert_eq!(about[1]["status"], "killed by signal 9");
}

#[test]
fn without_the_sink_no_process_can_write_to_the_kernels_audit() {
    if !programs::is_root() {
        return programs::left_out("only root has a capability to give up");
    }
    let agent = Agent::configured(private_directory(), &configuration("policy = \"observe\"", TO_FILE));
    let mut host = agent.connect();
    ask_for_name(&mut host);
    host.call("guest-network-get-interfaces", json!({}));
    host.refused("guest-file-open", json!({ "path": "/etc/hostname" }));
    let all = agent.processes();
    assert!(all.len() >= 4, "{all:?}");
    let with: Vec<String> = all
        .into_iter()
        .filter(|(_, pid)| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
            u64::from_str_radix(bounding, 16).unwrap() & 1 << 29 != 0
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(with, Vec::<String>::new());
}
