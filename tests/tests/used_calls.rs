//! A rule that nothing needs goes: every line of `policy/seccomp` is seen in use by a whole agent that is asked everything once,
//! or stands on a short list with its reason.
//!
//! The agent runs under strace, as root, in a network of its own. What counts is what a process calls after its filter is on, and
//! all of what its other threads call.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use jail::Role;
use jail::seccomp::Rule;
use serde_json::{Value, json};
use tests::agent::{Agent, Host, children, is_alive, signal, wait_until};
use tests::programs;
use tests::sandbox::can_be_tested;

/// Lines that a run need not show: the name of the call, in which lists, and why it stays.
const RARE: &[(&str, &str, &str)] = &[
    ("clock_gettime", "base", "the vDSO answers where the clock source lets it: not in every guest"),
    ("clock_nanosleep", "base", "std::thread::sleep between two tries: only when a peer is slow"),
    ("getrandom", "base", "hash keys are warmed up before the filter; a later thread's are not"),
    ("futex", "base", "only under contention"),
    ("restart_syscall", "base", "the kernel's own, after a stop and a continue"),
    ("rt_sigreturn", "base", "a stack overflow is told by std's handler"),
    ("sigaltstack", "base", "the end of main: all but the compiler end by _exit"),
    ("ftruncate", "broker", "after a thaw: in virtual machines (tests/vm/tests/fsfreeze.rs)"),
    ("poll", "file", "only FIFOs and terminals are waited for"),
    ("ppoll", "file", "poll(3) on architectures without poll"),
    ("mremap", "base", "realloc of a large block: a matter of the allocator"),
    ("brk", "base", "the allocator's heap grows beyond what it had before the filter"),
    ("madvise", "base", "the allocator gives memory back when it pleases"),
    ("mprotect", "base", "the allocator's arenas of threads"),
    ("munmap", "base", "the allocator, and the stacks of threads"),
    ("epoll_pwait", "tokio", "in newer libc and on other architectures"),
    ("epoll_pwait", "netadmin", "the same"),
    ("fdatasync", "broker", "only with `sync = true` (tests/tests/audit.rs)"),
    ("fstat", "broker", "one libc has fstat and another newfstatat"),
    ("newfstatat", "broker", "the same"),
    ("fstat", "file", "one libc has fstat and another newfstatat"),
    ("newfstatat", "file", "the same"),
    ("newfstatat", "query", "the same"),
    ("readlinkat", "query", "readlink on architectures without it"),
    ("sched_yield", "file", "only under contention"),
    ("rt_sigprocmask", "file", "a thread that is only beginning when the filter comes"),
    ("set_robust_list", "file", "the same"),
    ("rseq", "file", "the same"),
    ("sched_getaffinity", "file", "the same"),
    ("gettid", "file", "the same"),
    ("exit", "file", "the end of a thread: there is none unless one panics"),
    ("fcntl", "tokio", "only when a socket or channel is full"),
    ("fsetxattr", "account", "only where the old file has an SELinux label (workers/account/tests/keys.rs)"),
    ("unlinkat", "account", "only when the new file cannot be finished"),
    // Debug builds look at a descriptor before they close it (std::os::fd), release builds do not.
    ("fcntl", "base", "debug builds only"),
];

/// Lists of those who change the machine: nothing is asked of them here. Their lines are in use in virtual machines, whose stories
/// (`tests/vm`) ask everything of them inside the same filters.
const IN_GUESTS: [&str; 5] = ["account", "clock", "fsfreeze", "hotplug", "power"];

#[test]
fn every_call_on_a_list_is_in_use_or_has_a_reason_to_be_rare() {
    if !can_be_tested() {
        return;
    }
    if Command::new("strace").arg("--version").output().is_err() {
        return programs::left_out("strace is not installed");
    }
    let seen = record();
    let mut unused = BTreeSet::new();
    let lists: BTreeMap<&str, Vec<(Role, &Rule)>> = lines();
    for (source, rules) in &lists {
        let used = rules.iter().any(|(role, rule)| seen.get(role).is_some_and(|calls| is_used(rule, calls)));
        let list = source.split('.').next().unwrap_or_default();
        let rare =
            RARE.iter().any(|(name, of, _)| *of == list && rules.iter().any(|(_, rule)| rule.name == *name));
        if !used && !rare && !IN_GUESTS.contains(&list) {
            unused.insert(format!("{source}: {} ({})", rules[0].1.name, rules[0].1.reason));
        }
    }
    assert!(unused.is_empty(), "nothing needs these lines: {unused:#?}");
    let roles: BTreeSet<Role> = seen.keys().copied().collect();
    let here = |role: &Role| {
        jail::roles::row(*role).confined && !IN_GUESTS.contains(&role.name()) && *role != Role::Keys
    };
    let all: BTreeSet<Role> = Role::ALL.into_iter().filter(here).collect();
    assert!(all.is_subset(&roles), "only these were seen: {roles:?}");
}

#[test]
fn every_rare_call_is_still_on_its_list() {
    let lists = lines();
    let gone: Vec<_> = RARE
        .iter()
        .filter(|(name, of, _)| {
            !lists.iter().any(|(source, rules)| {
                source.split('.').next() == Some(*of) && rules.iter().any(|(_, rule)| rule.name == *name)
            })
        })
        .collect();
    assert!(gone.is_empty(), "a reason for nothing: {gone:?}");
}

/// The lines of the lists by file and number, with the roles that include them.
fn lines() -> BTreeMap<&'static str, Vec<(Role, &'static Rule)>> {
    let mut lines: BTreeMap<&str, Vec<(Role, &Rule)>> = BTreeMap::new();
    for role in Role::ALL {
        for rule in jail::probe::rules(role) {
            lines.entry(rule.source).or_default().push((role, rule));
        }
    }
    lines
}

/// A call's name and arguments.
type Seen = BTreeSet<(String, Vec<u64>)>;

fn is_used(rule: &Rule, calls: &Seen) -> bool {
    calls.iter().any(|(name, given)| {
        name == rule.name
            && rule.conditions.iter().all(|condition| {
                given.get(usize::from(condition.argument)).is_some_and(|argument| condition.holds(*argument))
            })
    })
}

// ---------------------------------------------------------------------------------------------------------------------

/// Runs a whole agent and returns what each role called.
fn record() -> BTreeMap<Role, Seen> {
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path().to_owned();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, readable).expect("the directory is ours");
    let traces = tempfile::tempdir().expect("there is room");
    let configuration = format!(
        "policy = \"{0}/policy.toml\"\n\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\npath = \"{0}/sock\"\n\
         dialects = [\"qga\", \"phoenix\"]\n\n[state]\ndirectory = \"{0}/state\"\n\n\
         [audit]\nsink = [\"file\", \"kernel\"]\npath = \"{0}/audit.log\"\nrequired = true\n",
        path.display()
    );
    // A file, not a preset: only what comes from outside needs the compiler.
    let everything = "version = 1\n\n[[rule]]\noutcome = \"allow\"\n";
    fs::write(path.join("policy.toml"), everything).expect("the directory is ours");
    fs::write(path.join("portreeve.toml"), configuration).expect("the directory is ours");
    made_up_user(&path);
    // Its own network, so that interfaces may be changed, sysfs that shows it, and no user but one who is made up.
    let script = "mount --bind \"$0\" /etc/passwd && mount -t sysfs none /sys && ip link set lo up && ip link add v1 type veth peer name v0 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "sh", "-ec", script])
        .arg(path.join("passwd"))
        .args(["strace", "-ff", "-qq", "-s", "4096", "-o"])
        .arg(traces.path().join("trace"))
        .args(["-e", "raw=!execve,execveat"])
        .arg(programs::program("portreeve"))
        .args(["run", "--config"])
        .arg(path.join("portreeve.toml"));
    let agent = Agent::start(command, directory);
    let traced = Traced(&agent);
    ask_everything(&agent, &path);
    drop(traced);
    drop(agent);
    read(traces.path())
}

/// Made up in a file that only this agent sees as `/etc/passwd`, with a home in its directory.
fn made_up_user(path: &Path) {
    const ID: u32 = jail::DEFAULT_UID_BASE + 1_000_000;
    let home = path.join("home");
    fs::create_dir(&home).expect("the directory is ours");
    std::os::unix::fs::chown(&home, Some(ID), Some(ID)).expect("root may");
    let line = format!("made-up:x:{ID}:{ID}::{}:/bin/false\n", home.display());
    fs::write(path.join("passwd"), line).expect("the directory is ours");
}

/// An agent below strace, which lets go of what it traces when it is killed: the agent is to be ended first.
struct Traced<'a>(&'a Agent);

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        if let Some(spawner) = children(self.0.pid()).first() {
            signal(*spawner, "TERM");
        }
        wait_until(|| !is_alive(self.0.pid()));
    }
}

fn ask_everything(agent: &Agent, path: &Path) {
    let mut host = agent.connect();
    let file = path.join("file").display().to_string();
    fs::write(&file, vec![b'x'; 3 << 20]).expect("the directory is ours");
    let folder = path.display().to_string();
    for command in [
        "guest-info",
        "guest-ping",
        "guest-get-time",
        "guest-get-host-name",
        "guest-get-users",
        "guest-get-timezone",
        "guest-get-osinfo",
        "guest-get-load",
        "guest-get-cpustats",
        "guest-get-diskstats",
        "guest-get-disks",
        "guest-get-fsinfo",
        "guest-get-vcpus",
        "guest-get-memory-blocks",
        "guest-get-memory-block-info",
        "guest-network-get-interfaces",
        "guest-network-get-route",
    ] {
        ask(&mut host, command, json!({}));
    }
    // Files, both dialects: one read behind the other, and after a seek; short and long.
    let handle = ask(&mut host, "guest-file-open", json!({ "path": file, "mode": "r+" }));
    for count in [4096, 4096, 4096, 2 << 20] {
        ask(&mut host, "guest-file-read", json!({ "handle": handle["return"], "count": count }));
    }
    let data = json!({ "handle": handle["return"], "buf-b64": "eHh4" });
    ask(&mut host, "guest-file-write", data.clone());
    ask(&mut host, "guest-file-seek", json!({ "handle": handle["return"], "offset": 10, "whence": 0 }));
    ask(&mut host, "guest-file-write", data);
    ask(&mut host, "guest-file-flush", json!({ "handle": handle["return"] }));
    ask(&mut host, "guest-file-close", json!({ "handle": handle["return"] }));
    for mode in ["w", "a", "w+"] {
        let new = format!("{file}-{mode}");
        let handle = ask(&mut host, "guest-file-open", json!({ "path": new, "mode": mode }));
        ask(&mut host, "guest-file-close", json!({ "handle": handle["return"] }));
    }
    // A FIFO that nobody writes: the read waits in one thread and is given up by a sync.
    let status = Command::new("mkfifo").arg(path.join("fifo")).status().expect("there is mkfifo");
    assert!(status.success());
    let fifo = json!({ "path": format!("{folder}/fifo"), "mode": "r+" });
    let handle = ask(&mut host, "guest-file-open", fifo);
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle["return"] } });
    host.send(format!("{read}\n"));
    ask(&mut host, "guest-sync", json!({ "id": 7 }));
    // A program that runs cannot be written; by force it is replaced.
    let program = path.join("program");
    fs::copy("/bin/sleep", &program).expect("there is a sleep command");
    let mut running = Command::new(&program).arg("60").spawn().expect("it can be executed");
    let forced = json!({ "path": program.display().to_string(), "mode": "w", "force": true });
    let forced = ask(&mut host, "file-open", forced);
    running.kill().expect("it is our child");
    running.wait().expect("it is our child");
    assert!(forced["error"].is_null(), "{forced}");
    ask(&mut host, "guest-file-open", json!({ "path": format!("{folder}/nothing") }));
    ask(&mut host, "guest-file-open", json!({ "path": "/proc/self/mem" }));
    for (command, arguments) in [
        ("guest-ssh-add-authorized-keys", json!({ "username": "made-up", "keys": ["one", "two"] })),
        ("guest-ssh-remove-authorized-keys", json!({ "username": "made-up", "keys": ["one"] })),
        ("file-open", json!({ "path": file, "mode": "r" })),
        ("file-read", json!({ "handle_id": 1 })),
        ("file-close", json!({ "handle_id": 1 })),
        ("file-open", json!({ "path": format!("{file}-p"), "mode": "w", "perm": 384 })),
        ("file-open", json!({ "path": format!("{file}-p"), "mode": "w", "force": true })),
        ("file-stat", json!({ "path": file })),
        ("file-chmod", json!({ "path": file, "perm": 384 })),
        ("file-chown", json!({ "path": file, "uid": 1, "gid": 1 })),
        ("get-file-md5sum", json!({ "path": file })),
        ("directory-create", json!({ "path": format!("{folder}/new/below") })),
        ("directory-list", json!({ "path": folder })),
        ("get-netifaces", json!({})),
        ("get-routes", json!({})),
        ("sysinfo", json!({})),
        ("net-iface-up", json!({ "ifname": "v0" })),
        ("ipaddr-add", json!({ "ip": "192.0.2.10/24", "ifname": "v0" })),
        ("ipaddr-delete", json!({ "ip": "192.0.2.10/24", "ifname": "v0" })),
        ("net-iface-down", json!({ "ifname": "v0" })),
        ("ping", json!({})),
        ("get-commands", json!({})),
    ] {
        ask(&mut host, command, arguments);
    }
    let output = json!({ "path": "/bin/sh", "arg": ["-c", "cat; echo more >&2"], "input-data": "aW4=", "capture-output": true });
    let program = ask(&mut host, "guest-exec", output);
    wait_until(|| {
        let status = ask(&mut host, "guest-exec-status", json!({ "pid": program["return"]["pid"] }));
        status["return"]["exited"] != json!(false)
    });
    // A second client after the first, as in a terminal on the other end.
    drop(host);
    ask(&mut agent.connect(), "guest-ping", json!({}));
}

/// The reply, whatever it is. Those of requests that were given up have no number and are passed over.
fn ask(host: &mut Host, command: &str, arguments: Value) -> Value {
    let mark = if command.starts_with("guest-") { "id" } else { "tag" };
    host.send(format!("{}\n", json!({ "execute": command, "arguments": arguments, mark: command })));
    loop {
        let reply = tests::agent::json(&host.line());
        if reply[mark] == command {
            return reply;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------

/// What strace wrote, one file for each process and thread.
fn read(folder: &Path) -> BTreeMap<Role, Seen> {
    let traces: BTreeMap<u64, String> = fs::read_dir(folder)
        .expect("strace wrote there")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path.extension()?.to_str()?.parse().ok()?;
            Some((pid, String::from_utf8_lossy(&fs::read(path).ok()?).into_owned()))
        })
        .collect();
    let mut seen: BTreeMap<Role, Seen> = BTreeMap::new();
    for text in traces.values() {
        let Some((role, begin)) = role_of(text) else { continue };
        let lines: Vec<&str> = text.lines().skip(begin).collect();
        let calls = seen.entry(role).or_default();
        let filter = lines.iter().rposition(|line| line.starts_with("seccomp(0x1,") && line.ends_with("= 0"));
        let Some(filter) = filter else { continue };
        calls.extend(lines.iter().skip(filter + 1).filter_map(|line| call(line)));
        // Threads are children that never exec.
        for thread in
            lines.iter().filter(|line| line.starts_with("clone3(")).filter_map(|line| returned(line))
        {
            let of_thread = traces.get(&thread).map_or("", String::as_str);
            calls.extend(of_thread.lines().filter_map(call));
        }
    }
    seen
}

/// Which role a process plays, and after which line; None if none, as the exec worker's commands.
fn role_of(text: &str) -> Option<(Role, usize)> {
    text.lines().enumerate().find_map(|(number, line)| {
        let program = line.strip_prefix("execve").filter(|rest| rest.contains(" = 0"))?;
        let role =
            Role::ALL.into_iter().find(|role| program.contains(&format!("{}\", \"", role.executable())))?;
        Some((role, number + 1))
    })
}

/// `name(0x1, 0, …) = …`
fn call(line: &str) -> Option<(String, Vec<u64>)> {
    let (name, rest) = line.split_once('(')?;
    let arguments = rest.split([')', '<']).next()?;
    let numbers = arguments.split(", ").map_while(|word| match word.trim().strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.trim().parse().ok(),
    });
    Some((name.to_owned(), numbers.collect()))
}

fn returned(line: &str) -> Option<u64> {
    let word = line.rsplit_once("= ")?.1.split(' ').next()?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}
