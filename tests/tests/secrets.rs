//! Secrets that requests carry are nowhere but where they belong: in no audit record, log, state, command line, environment or
//! error reply of a whole agent.
//!
//! Each is a word of its own, looked for as it is, in base64 at each of its three alignments, and in hexadecimal, as the kernel's audit is
//! given records. A word that is no secret goes the same ways and has to be found, so that a search that finds nothing means
//! something.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::agent::{Agent, Host, private_directory, wait_until};
use tests::programs;

/// The secrets, and one that is none.
const PASSWORD: &str = "zq-password-f1c09a";
const HASH: &str = "zq-hash-2b771e";
const KEY: &str = "zq-key-77d1b0";
const INPUT: &str = "zq-input-0aa4c3";
const VARIABLE: &str = "zq-variable-9e3f52";
const CONTENT: &str = "zq-content-5d60bb";
const SECRETS: [&str; 6] = [PASSWORD, HASH, KEY, INPUT, VARIABLE, CONTENT];
/// A program's argument, which is recorded.
const NONE: &str = "zq-argument-c81e07";

/// All forms of a word.
fn forms(word: &str) -> Vec<Vec<u8>> {
    let bytes = word.as_bytes();
    let aligned = (0..3).map(|skipped| {
        // Whole groups of three, which look the same whatever stands around them.
        let bytes = &bytes[skipped..];
        STANDARD.encode(&bytes[..bytes.len() / 3 * 3]).into_bytes()
    });
    let hexadecimal = |upper: bool| {
        let digit = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
        bytes.iter().map(digit).collect::<String>().into_bytes()
    };
    [bytes.to_vec(), hexadecimal(true), hexadecimal(false)].into_iter().chain(aligned).collect()
}

fn holds(text: &[u8], word: &str) -> bool {
    forms(word).iter().any(|form| text.windows(form.len()).any(|part| part == form.as_slice()))
}

/// The secrets that a text holds.
fn told(text: &[u8]) -> Vec<&'static str> {
    SECRETS.into_iter().filter(|secret| holds(text, secret)).collect()
}

/// Everything in a folder, at any depth.
fn all_in(folder: &Path, found: &mut Vec<u8>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all_in(&path, found);
        } else if entry.file_type().unwrap().is_file() {
            found.extend(fs::read(&path).unwrap());
        }
    }
}

/// Looks at command lines and environments of all processes below the agent, as fast as it can.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    /// Of the agent's own processes and of what works for it, such as chpasswd.
    ours: BTreeSet<Vec<u8>>,
    /// Of the programs that the host has had run: their environment is what it is for.
    theirs: BTreeSet<Vec<u8>>,
}

impl Watch {
    fn begin(agent: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                seen.look(agent, false);
            }
            seen
        });
        Watch { stop, thread }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Seen {
    fn look(&mut self, pid: u32, is_theirs: bool) {
        let place = if is_theirs { &mut self.theirs } else { &mut self.ours };
        for name in ["cmdline", "environ"] {
            place.extend(fs::read(format!("/proc/{pid}/{name}")));
        }
        // In this order: whoever has such a child has executed its own program by then.
        let below = children(pid);
        let starts_theirs = fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|program| program.ends_with("portreeve-exec"));
        for child in below {
            self.look(child, is_theirs || starts_theirs);
        }
    }
}

/// Those of all its threads.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// In the place of a log daemon: takes what comes as fast as it can, since a socket holds a few datagrams only.
struct Daemon {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

impl Daemon {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => all.extend_from_slice(&buffer[..length]),
                    Err(_) if stopped.load(Ordering::Relaxed) => return all,
                    Err(_) => {}
                }
            }
        });
        Daemon { stop, thread }
    }

    fn received(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// An agent with these sinks, and the log daemon among them.
fn agent(rules: &str, sinks: &str) -> (Agent, Daemon) {
    let directory = private_directory();
    let place = directory.path();
    fs::write(place.join("policy.toml"), format!("version = 1\n{rules}")).unwrap();
    let daemon = Daemon::at(&place.join("daemon"));
    let configuration = format!(
        "policy = \"DIR/policy.toml\"\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
         dialects = [\"qga\", \"phoenix\"]\n[state]\ndirectory = \"DIR/state\"\n[log]\nverbose = true\n\
         [audit]\nsink = [{sinks}]\npath = \"DIR/audit.log\"\nsocket = \"DIR/daemon\"\n"
    );
    if !programs::is_root() {
        return (Agent::configured(directory, &configuration), daemon);
    }
    // One user, who is made up, in a file that only this agent sees: no account of this machine is touched.
    let home = place.join("home");
    fs::create_dir(&home).unwrap();
    let id = jail::DEFAULT_UID_BASE + 1_000_000;
    std::os::unix::fs::chown(&home, Some(id), Some(id)).unwrap();
    fs::write(place.join("passwd"), format!("made-up:x:{id}:{id}::{}:/bin/false\n", home.display())).unwrap();
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
    let run = tests::agent::run(programs::program("portreeve"), place, &configuration);
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/passwd && exec \"$@\"";
    command.args(["--mount", "sh", "-ec", script]).arg(place.join("passwd"));
    command.arg(run.get_program()).args(run.get_args());
    (Agent::start(command, directory), daemon)
}

/// Asks everything that carries a secret, as it should be and in ways that are refused at each step; returns what was answered,
/// without what a request was made for to get back.
fn ask_everything(host: &mut Host, file: &str) -> Vec<u8> {
    let base64 = |word: &str| STANDARD.encode(word);
    let mut answers = Vec::new();
    let mut ask = |host: &mut Host, line: String| {
        let answer = host.ask(line);
        answers.extend(answer.to_string().into_bytes());
        // Phoenix's errors are in base64 themselves.
        if let Some(text) = answer["error"]["bufb64"].as_str() {
            answers.extend(STANDARD.decode(text).unwrap());
        }
        answer
    };
    let line =
        |command: &str, arguments: Value| json!({ "execute": command, "arguments": arguments }).to_string();

    // Passwords: of users who are not there, not base64, of the wrong type, with a name too many, cut off.
    for (password, crypted) in [(PASSWORD, false), (HASH, true)] {
        let encoded = base64(password);
        for given in [
            json!(encoded),
            json!(password),
            json!([password]),
            json!({ "a": encoded }),
            json!(format!("{encoded}=")),
        ] {
            let arguments = json!({ "username": "no-such-user", "password": given, "crypted": crypted });
            ask(host, line("guest-set-user-password", arguments));
        }
        let arguments =
            json!({ "username": "no-such-user", "password": encoded, "crypted": crypted, "more": password });
        ask(host, line("guest-set-user-password", arguments));
        let arguments = json!({ "username": "no-such-user", "password": encoded, "crypted": password });
        ask(host, line("guest-set-user-password", arguments));
        ask(
            host,
            format!("{{\"execute\":\"guest-set-user-password\",\"arguments\":{{\"password\":\"{password}\"]"),
        );
    }
    // Keys: options, comments, and what looks like none.
    for user in ["no-such-user", "made-up"] {
        let keys = json!([
            format!(
                "environment=\"A={KEY}\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN3q8Yx2kT0WfW1xJq3mA {KEY}"
            ),
            KEY
        ]);
        for command in ["guest-ssh-remove-authorized-keys", "guest-ssh-add-authorized-keys"] {
            ask(host, line(command, json!({ "username": user, "keys": keys })));
            ask(host, line(command, json!({ "username": user, "keys": KEY })));
            ask(host, line(command, json!({ "username": user, "keys": [{ "key": KEY }] })));
        }
    }
    // Programs: one that is there and takes its time to be seen, one that is not, and input that is no base64.
    for (path, input) in
        [("/bin/sh", base64(INPUT)), ("/no/program", base64(INPUT)), ("/bin/sh", INPUT.to_owned())]
    {
        let arguments = json!({
            "path": path, "arg": ["-c", "read line; sleep 0.3", NONE], "env": [format!("TOKEN={VARIABLE}")],
            "input-data": input, "capture-output": true,
        });
        let started = ask(host, line("guest-exec", arguments));
        if let Some(pid) = started["return"]["pid"].as_i64() {
            wait_until(|| {
                ask(host, line("guest-exec-status", json!({ "pid": pid })))["return"]["exited"]
                    != json!(false)
            });
        }
    }
    ask(host, line("guest-exec", json!({ "path": "/bin/true", "env": { "TOKEN": VARIABLE } })));
    // Files: written, to a handle that is not open, and what is no base64.
    let opened = ask(host, line("guest-file-open", json!({ "path": file, "mode": "w" })));
    for handle in [opened["return"].as_i64().unwrap_or(1), 4711] {
        for given in [base64(CONTENT), CONTENT.to_owned(), format!("{}!", base64(CONTENT))] {
            ask(host, line("guest-file-write", json!({ "handle": handle, "buf-b64": given })));
        }
        ask(
            host,
            line(
                "guest-file-write",
                json!({ "handle": handle, "buf-b64": base64(CONTENT), "count": CONTENT }),
            ),
        );
    }
    ask(host, line("guest-file-close", json!({ "handle": opened["return"] })));
    let opened =
        ask(host, line("file-open", json!({ "path": format!("{file}-2"), "mode": "w", "perm": 384 })));
    for handle in [opened["return"].as_i64().unwrap_or(1), 4711] {
        for given in [base64(CONTENT), CONTENT.to_owned(), format!("{}!", base64(CONTENT))] {
            ask(host, line("file-write", json!({ "handle_id": handle, "bufb64": given, "eof": false })));
        }
    }
    answers
}

/// Asks everything of an agent with this policy and looks for the secrets afterwards.
fn nothing_is_told(rules: &str, sinks: &str) {
    let (mut agent, daemon) = agent(rules, sinks);
    // What is written there is the content, so it lies elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("file").display().to_string();
    let mut host = agent.connect();
    let watch = Watch::begin(agent.pid());
    let answers = ask_everything(&mut host, &file);
    let seen = watch.end();
    assert_eq!(told(&answers), Vec::<&str>::new(), "{}", String::from_utf8_lossy(&answers));
    let ours: Vec<u8> = seen.ours.into_iter().flatten().collect();
    assert_eq!(told(&ours), Vec::<&str>::new(), "{}", String::from_utf8_lossy(&ours));
    assert!(ours.windows(16).any(|part| part == b"portreeve-broker"), "nobody was seen");

    agent.terminate();
    // Beside the sinks: state, the marker of frozen filesystems, and whatever else somebody may have left there.
    let home = agent.path("home/.ssh/authorized_keys");
    if home.exists() {
        assert!(holds(&fs::read(&home).unwrap(), KEY), "that is where it belongs");
        fs::remove_file(&home).unwrap();
    }
    let mut kept = Vec::new();
    all_in(agent.directory.path(), &mut kept);
    assert_eq!(told(&kept), Vec::<&str>::new(), "{}", String::from_utf8_lossy(&kept));
    let sent = daemon.received();
    assert_eq!(told(&sent), Vec::<&str>::new(), "{}", String::from_utf8_lossy(&sent));
    // The same words that are no secrets are everywhere.
    let (recorded, logged) = (fs::read(agent.path("audit.log")).unwrap(), agent.log().into_bytes());
    for (place, text) in [("the audit log", &recorded), ("the log", &logged), ("the log daemon", &sent)] {
        assert!(holds(text, NONE), "what is no secret is not in {place}: nothing has been looked at");
    }
    if rules.contains("allow") {
        let theirs: Vec<u8> = seen.theirs.into_iter().flatten().collect();
        assert!(holds(&theirs, VARIABLE), "the program was not seen, so others may not have been");
        assert!(holds(&fs::read(&file).unwrap(), CONTENT), "the content was not written");
    }
}

const ALLOW: &str = "[[rule]]\noutcome = \"allow\"\n";

#[test]
fn no_secret_is_told_by_an_agent_that_does_what_is_asked() {
    nothing_is_told(ALLOW, "\"file\", \"syslog\", \"stderr\"");
}

#[test]
fn no_secret_is_told_by_an_agent_that_refuses_everything() {
    nothing_is_told("[[rule]]\noutcome = \"deny\"\n", "\"file\", \"journald\", \"stderr\"");
}

#[test]
fn no_secret_is_told_by_an_agent_whose_records_go_to_the_kernels_audit() {
    if !programs::is_root() {
        return programs::left_out("records go to the kernel from an agent that was started by root only");
    }
    nothing_is_told(ALLOW, "\"file\", \"journald\", \"stderr\", \"kernel\"");
}

/// A search that would not find it proves nothing.
#[test]
fn a_word_is_found_in_each_form_that_it_may_be_told_in() {
    let around = |front: &str| STANDARD.encode(format!("{front}{PASSWORD} and more"));
    for text in [
        format!("…{PASSWORD}…"),
        around(""),
        around("a"),
        around("ab"),
        PASSWORD.bytes().map(|byte| format!("{byte:02X}")).collect(),
    ] {
        assert_eq!(told(text.as_bytes()), [PASSWORD], "{text}");
    }
    assert_eq!(told(b"zq-password-f1c09b"), Vec::<&str>::new());
}
