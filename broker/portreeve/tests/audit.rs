//! `portreeve audit`, as a shell sees it: exit status, standard output, standard error.

#[path = "../../records/tests/log/mod.rs"]
mod log;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use log::Log;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn audit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command.arg("audit").env_remove("NO_COLOR");
    command
}

fn run(arguments: &[&str], files: &[&Path]) -> Output {
    audit().args(arguments).args(files).stdin(Stdio::null()).output().expect("it runs")
}

fn said(output: &Output) -> String {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout.clone()).expect("is text")
}

/// A folder with a log of three files: `a.jsonl.2`, the oldest, `a.jsonl.1` and `a.jsonl`.
struct Rotated {
    folder: tempfile::TempDir,
    log: Log,
}

impl Rotated {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("makes it");
        let mut log = Log::new();
        log.start();
        for name in ["a.jsonl.2", "a.jsonl.1"] {
            log.request("guest-get-osinfo");
            log.record("rotated", &format!("\"to\":\"{name}\""));
            fs::write(folder.path().join(name), log.take()).expect("writes it");
        }
        log.request("guest-get-time");
        fs::write(folder.path().join("a.jsonl"), log.text()).expect("writes it");
        Rotated { folder, log }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn newest(&self) -> PathBuf {
        self.path("a.jsonl")
    }
}

#[test]
fn verify_reads_rotated_files_in_the_order_of_their_chain_and_is_content() {
    let rotated = Rotated::new();
    fs::write(rotated.path("a.jsonl.3.gz"), "x").expect("writes it");
    fs::write(rotated.path("a.jsonl.notes"), "x").expect("writes it");
    let output = run(&["verify", "--head", &rotated.log.head().to_string()], &[&rotated.newest()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let folder = rotated.folder.path().display();
    let expected = format!(
        "The chain is whole.\n6 records in 3 files, 1 start of the agent, 2026-11-26 10:00:00 to 2026-11-26 10:00:07 UTC\n\n\
         What can be trusted\n  \
         record 1 ({folder}/a.jsonl.2:1) to record 6 ({folder}/a.jsonl:1): exactly what the agent wrote, by the witnessed head\n\n\
         What is to be known\n"
    );
    assert!(text.starts_with(&expected), "{text}");
    assert!(text.contains("a.jsonl.3.gz is compressed"), "{text}");
    assert!(text.contains("a.jsonl.notes does not begin with a record"), "{text}");
    assert!(text.contains(&format!("The head, to be kept outside\n  {}\n", rotated.log.head())), "{text}");
    // However they are named.
    let files = ["a.jsonl", "a.jsonl.1", "a.jsonl.2"].map(|name| rotated.path(name));
    let output = run(&["verify"], &[&files[0], &files[1], &files[2]]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // One alone begins in the middle.
    let text = said(&run(&["verify", "--alone"], &[&files[0]]));
    assert!(text.contains("the log begins in the middle"), "{text}");
}

#[test]
fn verify_names_the_first_bad_record_and_what_can_still_be_trusted() {
    let rotated = Rotated::new();
    let path = rotated.path("a.jsonl.1");
    let text = fs::read_to_string(&path).expect("reads it");
    fs::write(&path, text.replace("guest-get-osinfo", "guest-exec-status")).expect("writes it");
    let output = run(&["verify"], &[&rotated.newest()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1));
    let folder = rotated.folder.path().display();
    assert!(
        text.starts_with(&format!("The log is broken. The first bad record is 4: {folder}/a.jsonl.1:1.\n")),
        "{text}"
    );
    assert!(text.contains(&format!(
        "  {folder}/a.jsonl.1:1, record 4: it was changed after it was written: record 5 ({folder}/a.jsonl.1:2) holds another hash of it\n"
    )), "{text}");
    assert!(
        text.contains(&format!(
            "  record 1 ({folder}/a.jsonl.2:1) to record 3 ({folder}/a.jsonl.2:3): they follow"
        )),
        "{text}"
    );
    let value: Value =
        serde_json::from_str(&said(&run(&["verify", "--json"], &[&rotated.newest()]))).expect("is JSON");
    assert_eq!(value["result"], "broken");
    assert_eq!(value["findings"][0]["kind"], "changed");
    assert_eq!(value["findings"][0]["at"], json!({"file": path.to_str(), "line": 1}));
    assert_eq!(value["segments"][1]["first"]["sequence"], 5);
}

#[test]
fn verify_says_that_a_log_without_hashes_is_not_chained() {
    let line = "{\"version\":1,\"sequence\":1,\"time\":\"2026-11-26T10:00:00.000000Z\",\"kind\":\"start\",\"policy\":\"observe\"}\n";
    let mut child =
        audit().args(["verify", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(line.as_bytes()).expect("writes it");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).starts_with("The log is not chained: its records hold no hashes"),
        "{}",
        said(&output)
    );
}

#[test]
fn what_cannot_be_read_ends_with_2_and_a_next_step() {
    for command in [&["verify"][..], &["report"], &["follow"], &["export", "--format", "ecs"]] {
        let output = run(command, &[Path::new("/nonexistent/a.jsonl")]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("cannot read /nonexistent") && error.contains("[audit]"), "{error}");
    }
    let output = run(&["verify", "--head", "7:abc"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a hash is 64 lower-case hexadecimal digits"));
}

/// `portreeve audit follow`, running.
struct Following {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Following {
    fn begin(arguments: &[&str], file: &Path) -> Self {
        let mut child =
            audit().arg("follow").args(arguments).arg(file).stdout(Stdio::piped()).spawn().expect("it runs");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Following { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(10)).expect("a line comes")
    }

    fn end(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.child.id().try_into().expect("fits")), Signal::SIGINT).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).expect("opens it");
    file.write_all(text.as_bytes()).expect("writes it");
}

#[test]
fn follow_shows_what_comes_over_two_rotations_and_ends_with_0() {
    let mut rotated = Rotated::new();
    let newest = rotated.newest();
    let following = Following::begin(&[], &newest);
    assert!(following.line().contains("guest-get-time"));
    rotated.log.take();
    rotated.log.request("guest-one");
    let text = rotated.log.take();
    // In two parts, as nobody should write it.
    append(&newest, &text[..50]);
    std::thread::sleep(Duration::from_millis(50));
    append(&newest, &text[50..]);
    assert!(following.line().contains("guest-one"));
    for name in ["a.jsonl.later.1", "a.jsonl.later.2"] {
        rotated.log.request(&format!("guest-before-{}", &name[14..]));
        append(&newest, &rotated.log.take());
        fs::rename(&newest, rotated.path(name)).expect("renames it");
        fs::write(&newest, "").expect("writes it");
    }
    rotated.log.request("guest-after");
    append(&newest, &rotated.log.take());
    assert!(following.line().contains("guest-before-1"));
    assert!(following.line().contains("guest-before-2"));
    assert!(following.line().contains("guest-after"));
    assert_eq!(following.end(), Some(0));
}

#[test]
fn follow_filters_and_passes_records_on() {
    let folder = tempfile::tempdir().expect("makes it");
    let path = folder.path().join("a.jsonl");
    let mut log = Log::new();
    log.start();
    log.request("guest-ping");
    log.record("request", "\"command\":\"guest-exec\",\"decision\":\"deny\",\"outcome\":\"denied\"");
    log.record("intent", "\"command\":\"guest-shutdown\",\"decision\":\"allow\",\"outcome\":\"begins\"");
    fs::write(&path, log.text()).expect("writes it");
    let lines = log.lines();
    let since = ["--json", "--since", "2026-11-26T00:00:00Z"];
    for (filter, expected) in
        [(&["--denied"][..], lines[2]), (&["--changes"], lines[3]), (&["--command", "guest-ping"], lines[1])]
    {
        let following = Following::begin(&[filter, &since].concat(), &path);
        assert_eq!(following.line(), expected.trim_end());
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(following.lines.try_iter().count(), 0, "{filter:?}");
        assert_eq!(following.end(), Some(0));
    }
    let late = Following::begin(&["--since", "2026-11-26T10:00:02Z"], &path);
    assert!(late.line().contains("guest-exec"));
}

#[test]
fn follow_says_that_the_file_was_cut_and_that_the_chain_breaks() {
    let rotated = Rotated::new();
    let newest = rotated.newest();
    let following = Following::begin(&[], &newest);
    following.line();
    fs::write(&newest, "").expect("cuts it");
    assert!(following.line().starts_with("! "));
    let mut other = Log::new();
    other.start();
    append(&newest, other.text());
    assert!(following.line().starts_with("! the chain is broken before the next record"));
    assert!(following.line().contains("* the agent starts"));
}

#[test]
fn follow_ends_when_nobody_reads_it() {
    let rotated = Rotated::new();
    let mut child =
        audit().arg("follow").arg(rotated.newest()).stdout(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let begun = Instant::now();
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// A log with something of everything, hostile texts among it.
fn varied() -> Log {
    let mut log = Log::new();
    log.start();
    for _ in 0..3 {
        log.request("guest-get-osinfo");
    }
    let write = |outcome: &str, more: &str| {
        format!(
            "\"channel\":\"port\",\"dialect\":\"qga\",\"command\":\"guest-file-write\",\"arguments\":{{\"handle\":1}},\"file\":\"/srv/a\",\
             \"decision\":\"allow\",\"rule\":\"policy.toml:9\",\"worker\":\"file\",\"outcome\":\"{outcome}\"{more}"
        )
    };
    let intent = log.record("intent", &write("begins", ""));
    log.record("request", &write("done", &format!(",\"bytes\":10,\"duration_us\":2500,\"intent\":{intent}")));
    log.record("intent", &write("begins", ""));
    for path in
        ["<script>alert(1)</script>", "\\u202egpj.exe", "\\u001b[2J", "\\\"><img src=x onerror=alert(2)>"]
    {
        log.record(
            "request",
            &format!(
                "\"channel\":\"<b>port</b>\",\"dialect\":\"qga\",\"command\":\"guest-file-open\",\"arguments\":{{\"path\":\"{path}\"}},\
                 \"decision\":\"deny\",\"rule\":\"policy.toml:12\",\"outcome\":\"denied\",\"duration_us\":40"
            ),
        );
    }
    log.record("front", "\"channel\":\"port\",\"counts\":{\"guest-ping\":12}");
    log.record("worker", "\"worker\":\"file\",\"status\":\"signal 9\"");
    log.record("loss", "\"records\":2");
    log
}

fn written(log: &Log) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("makes it");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, log.text()).expect("writes it");
    (folder, path)
}

#[test]
fn a_report_for_a_terminal_says_who_asked_what_and_what_came_of_it() {
    let (_folder, path) = written(&varied());
    let output = run(&["report"], &[&path]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &text).expect("writes it");
    }
    assert_eq!(text, fs::read_to_string(&golden).expect("reads it"));
}

#[test]
fn a_page_needs_nothing_from_outside_and_shows_hostile_text_as_text() {
    let (folder, path) = written(&varied());
    let page = folder.path().join("report.html");
    let output = run(&["report", "--html", page.to_str().expect("is text")], &[&path]);
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""));
    let page = fs::read_to_string(&page).expect("reads it");
    let tags: std::collections::BTreeSet<&str> = page
        .split('<')
        .skip(1)
        .map(|tag| {
            tag.trim_start_matches('/')
                .split(|letter: char| !letter.is_alphanumeric())
                .next()
                .expect("is first")
        })
        .collect();
    let expected = "a bdi body circle code dd defs desc details div dl dt footer g h1 h2 h3 head header html li line main meta nav p \
                    pattern rect section span style summary svg table tbody td text th thead title tr ul";
    // The doctype has no name of a tag.
    let found: Vec<&str> = tags.into_iter().filter(|tag| !tag.is_empty()).collect();
    assert_eq!(found.join(" "), expected);
    for outside in ["http:", "https:", "src=", " style=", "@import", "url(h", "\u{202e}", "\u{1b}"] {
        assert!(!page.contains(outside) || outside == "src=" && !page.contains("<img"), "{outside}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("\\u202egpj.exe"));
    assert!(page.contains(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"
    ));
    assert!(page.contains("<title id=\"chart-time-title\">Requests over time, by decision</title><desc"));
}

#[test]
fn a_report_for_programs_has_the_same_tables_and_the_verdict() {
    let (_folder, path) = written(&varied());
    let value: Value = serde_json::from_str(&said(&run(&["report", "--json"], &[&path]))).expect("is JSON");
    assert_eq!(value["verify"]["result"], "whole");
    assert_eq!(
        value["summary"],
        json!({"requests": 8, "denied": 4, "redacted": 0, "changes": 2, "failed": 0, "abandoned": 0})
    );
    assert_eq!((&value["answered_in_front"], &value["payload_bytes"]), (&json!(12), &json!(10)));
    assert_eq!(value["tables"]["changes"]["rows"][0]["outcome"], "no outcome recorded");
    assert_eq!(value["tables"]["changes"]["rows"][1]["outcome"], "done");
    assert_eq!(value["tables"]["rules"]["rows"][0]["rule"], "policy.toml:12");
    let since = said(&run(&["report", "--json", "--since", "2026-11-26T10:00:08Z"], &[&path]));
    let value: Value = serde_json::from_str(&since).expect("is JSON");
    assert_eq!((&value["summary"]["requests"], &value["verify"]["records"]), (&json!(4), &json!(14)));
}

#[test]
fn a_report_on_a_broken_log_says_so_first() {
    let log = varied();
    let folder = tempfile::tempdir().expect("makes it");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, log.text().replacen("policy.toml:9", "policy.toml:8", 1)).expect("writes it");
    let output = run(&["report", "--html", "-"], &[&path]);
    assert_eq!(output.status.code(), Some(1));
    let page = said(&output);
    let verdict = page.find("The log is broken. The first bad record is 5").expect("it says so");
    assert!(verdict < page.find("In numbers").expect("there are numbers"));
}

#[test]
fn exported_events_are_one_json_line_for_each_record_and_what_is_none_is_named() {
    let log = varied();
    let folder = tempfile::tempdir().expect("makes it");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, format!("{}rubbish \u{1b}\n", log.text())).expect("writes it");
    for (format, time) in [("ocsf", "time"), ("ecs", "@timestamp")] {
        let output = run(&["export", "--format", format], &[&path]);
        let events: Vec<Value> = String::from_utf8(output.stdout)
            .expect("is text")
            .lines()
            .map(|line| serde_json::from_str(line).expect("is JSON"))
            .collect();
        assert_eq!((output.status.code(), events.len()), (Some(1), log.lines().len()));
        assert!(events.iter().all(|event| !event[time].is_null()));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("a.jsonl:15: the line is no record") && !error.contains('\u{1b}'), "{error}");
    }
}

/// The most memory that a command had at once, and how long it ran.
fn measured(arguments: &[&str], path: &Path) -> (u64, Duration, Output) {
    let begun = Instant::now();
    let mut child = audit()
        .args(arguments)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut input = child.stdin.take().expect("a pipe");
    let text = fs::read_to_string(path).expect("reads it");
    // All but the last line; then the process has read everything, and still lives.
    let (all, last) = text.trim_end().rsplit_once('\n').expect("there are lines");
    input.write_all(all.as_bytes()).expect("it reads");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says so");
    let most = most.trim().trim_end_matches(" kB").parse().expect("a number");
    input.write_all(format!("\n{last}\n").as_bytes()).expect("it reads");
    drop(input);
    (most, begun.elapsed(), child.wait_with_output().expect("it ends"))
}

#[test]
fn a_log_of_100_megabytes_is_read_in_little_memory() {
    let folder = tempfile::tempdir().expect("makes it");
    let path = folder.path().join("a.jsonl");
    let mut file = fs::File::create(&path).expect("makes it");
    let mut log = Log::new();
    log.start();
    let (mut bytes, mut number) = (0, 0_u32);
    while bytes < 100_000_000 {
        for _ in 0..1000 {
            number += 1;
            // Ever new paths and rules: tables must not grow with them.
            log.record("request", &format!(
                "\"channel\":\"port\",\"dialect\":\"qga\",\"command\":\"guest-file-open\",\"arguments\":{{\"path\":\"/srv/{number}\"}},\
                 \"decision\":\"deny\",\"rule\":\"policy.toml:{number}\",\"outcome\":\"denied\",\"duration_us\":{number}"
            ));
        }
        let text = log.take();
        bytes += text.len();
        file.write_all(text.as_bytes()).expect("writes it");
    }
    for arguments in [&["verify"][..], &["report"]] {
        let (kibibytes, took, output) = measured(arguments, &path);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
        println!("{arguments:?}: {bytes} bytes in {took:?}, {kibibytes} KiB at most");
        assert!(kibibytes < 24 * 1024, "{arguments:?}: {kibibytes} KiB");
        // Of a build that is hardly optimised, on a busy machine.
        assert!(took < Duration::from_secs(120), "{arguments:?}: {took:?}");
    }
}
