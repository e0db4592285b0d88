//! The exec worker with real programs, beside the stock agent where it can do the same.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at what it did not expect")]

#[path = "../../net/tests/worker/mod.rs"]
mod worker;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use authorize::{Outcome, Rule, RunAs, Terms};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::exec::{Capture, Exec, Reply as ExecReply, Request, Status, StatusDone};
use proto::message::{FromWorker, ToWorker};
use proto::{Failed, Payload, Reply, Text};
use serde_json::{Value, json};
use worker::{Ended, Stock, Worker};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_portreeve-exec");

fn start() -> Worker {
    let own: Vec<(String, String)> = std::env::vars().collect();
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Worker::start(EXECUTABLE, &own)
}

/// Under a rule with these terms.
fn start_under(terms: Terms) -> Worker {
    let rule = Rule { terms: Some(Arc::new(terms)), ..Rule::new(Outcome::Allow, worker::origin()) };
    Worker::under(EXECUTABLE, &[("PATH", "/usr/bin:/bin")], rule)
}

/// `path arguments…`
fn command(words: &[&str], capture_output: Capture) -> Exec {
    let text = |word: &&str| Text::from(*word);
    Exec {
        path: words[0].into(),
        arg: Some(words[1..].iter().map(text).collect()),
        env: None,
        input_data: Payload::default(),
        capture_output,
    }
}

fn shell(script: &str, capture: Capture) -> Exec {
    command(&["/bin/sh", "-c", script], capture)
}

fn with_input(mut exec: Exec, bytes: &[u8]) -> Exec {
    exec.input_data = Payload { present: true, length: bytes.len() as u64, ..Payload::default() };
    exec
}

fn pid_of(result: Result<Reply, Failed>) -> i64 {
    match result {
        Ok(Reply::Exec(ExecReply::Exec(started))) => started.pid,
        other => panic!("not started: {other:?}"),
    }
}

fn begin(worker: &mut Worker, exec: Exec) -> i64 {
    pid_of(worker.ask(Request::Exec(exec)))
}

/// Asks until the program has ended: what the status says, and its output.
fn end(worker: &mut Worker, pid: i64) -> (StatusDone, [Vec<u8>; 2]) {
    let begin = Instant::now();
    loop {
        let id = worker.send(Request::Status(Status { pid }), &[]);
        let Ended { result, streams } = worker.end_of(id);
        match result {
            Ok(Reply::Exec(ExecReply::Status(done))) if done.exited => return (done, streams),
            Ok(Reply::Exec(ExecReply::Status(done))) => assert_eq!(done, StatusDone::default()),
            other => panic!("no status: {other:?}"),
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{pid} does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run(worker: &mut Worker, exec: Exec) -> (StatusDone, [Vec<u8>; 2]) {
    let pid = begin(worker, exec);
    end(worker, pid)
}

fn output_of(worker: &mut Worker, exec: Exec) -> String {
    let (done, [output, error]) = run(worker, exec);
    assert_eq!((done.exitcode, String::from_utf8_lossy(&error)), (Some(0), "".into()));
    String::from_utf8(output).unwrap()
}

fn failure(worker: &mut Worker, request: Request) -> String {
    worker.ask(request).unwrap_err().text
}

/// What a client of QEMU's dialect would get for `arguments`, its status included, with the pid left out.
fn ours(worker: &mut Worker, arguments: &Value) -> Value {
    let texts = |name: &str| {
        let list = arguments.get(name)?.as_array()?;
        Some(list.iter().map(|text| Text::from(text.as_str().unwrap())).collect())
    };
    let input = arguments.get("input-data").map(|text| STANDARD.decode(text.as_str().unwrap()).unwrap());
    let exec = Exec {
        path: arguments["path"].as_str().unwrap().into(),
        arg: texts("arg"),
        env: texts("env"),
        input_data: Payload {
            present: input.is_some(),
            length: input.as_ref().map_or(0, |input| input.len() as u64),
            ..Payload::default()
        },
        capture_output: if arguments["capture-output"] == true { Capture::Separated } else { Capture::None },
    };
    let id = worker.send(Request::Exec(exec), &input.unwrap_or_default());
    let pid = match worker.end_of(id).result {
        Err(failed) => return json!({ "error": failed.text }),
        result => pid_of(result),
    };
    let (done, streams) = end(worker, pid);
    let mut reply = serde_json::to_value(done).unwrap();
    for (member, bytes) in ["out-data", "err-data"].iter().zip(streams) {
        if !bytes.is_empty() {
            reply[*member] = STANDARD.encode(bytes).into();
        }
    }
    reply
}

fn theirs(stock: &mut Stock, arguments: &Value) -> Value {
    let started = stock.json("guest-exec", arguments);
    let Some(pid) = started.get("pid") else {
        // qemu-ga up to 9.0 wraps glib's text.
        let text = started["error"].as_str().unwrap();
        let text = text.strip_prefix("Guest agent command failed, error was '").unwrap_or(text);
        return json!({ "error": text.strip_suffix('\'').unwrap_or(text) });
    };
    loop {
        let status = stock.json("guest-exec-status", &json!({ "pid": pid }));
        if status["exited"] != false {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn programs_run_and_fail_as_under_qemu_ga() {
    let Some(mut stock) = Stock::start("exec") else { return };
    let mut worker = start();
    let folder = std::env::temp_dir().join(format!("portreeve-exec-files-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let script = folder.join("script");
    std::fs::write(&script, "echo \"$0 $*\"\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (folder, script) = (folder.to_str().unwrap(), script.to_str().unwrap());
    let own_path = format!("PATH={folder}:/bin");
    let table = [
        json!({"path": "/bin/true"}),
        json!({"path": "/bin/true", "capture-output": true}),
        json!({"path": "false"}),
        json!({"path": "echo", "arg": ["-n", "\" test_str \""], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "echo out; echo err >&2; exit 3"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "echo out; echo err >&2; exit 3"]}),
        json!({"path": "sh", "arg": ["-c", "kill -9 $$"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "kill -PIPE $$"]}),
        json!({"path": "sh", "arg": ["-c", "sleep 0.3 & exit 0"], "capture-output": true}),
        json!({"path": "cat", "arg": ["/proc/self/cmdline"], "capture-output": true}),
        json!({"path": "cat", "arg": ["/proc/self/environ"], "env": ["NOEQ", "=x", "A=1", "A=2"], "capture-output": true}),
        json!({"path": "cat", "arg": ["/proc/self/environ"], "env": [], "capture-output": true}),
        json!({"path": "sort", "arg": ["-z", "/proc/self/environ"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "pwd; umask; ulimit -a"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "grep -E '^(SigB|SigP|Cap|Seccomp|NoNew|Uid|Gid|Groups|Shd)' /proc/self/status"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "n=0; while [ $n -lt 64 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done"], "capture-output": true}),
        json!({"path": "readlink", "arg": ["/proc/self/fd/0", "/proc/self/fd/2"]}),
        json!({"path": "readlink", "arg": ["/proc/self/fd/0"], "capture-output": true}),
        json!({"path": "cat", "capture-output": true}),
        json!({"path": "cat", "capture-output": true, "input-data": ""}),
        json!({"path": "cat", "capture-output": true, "input-data": "aGVsbG8K"}),
        json!({"path": "true", "capture-output": true, "input-data": "aGVsbG8K"}),
        json!({"path": "script", "arg": ["a", "b"], "env": [own_path], "capture-output": true}),
        json!({"path": script, "arg": ["a"], "capture-output": true}),
        json!({"path": "sh", "arg": ["-c", "echo hi"], "env": ["PATH=/nonexistent"]}),
        json!({"path": "sh", "arg": ["-c", "echo hi"], "env": ["PATH="]}),
        json!({"path": "tmp", "env": ["PATH=/"]}),
        json!({"path": "/bin/invalid-cmd42"}),
        json!({"path": "invalid-cmd42"}),
        json!({"path": "/etc/passwd"}),
        json!({"path": "/etc/passwd/x"}),
        json!({"path": "/tmp"}),
        json!({"path": ""}),
        json!({"path": "head", "arg": ["-c", "300000", "/dev/zero"], "capture-output": true}),
        json!({"path": "head", "arg": ["-c", "16777216", "/dev/zero"], "capture-output": true}),
        json!({"path": "head", "arg": ["-c", "16777217", "/dev/zero"], "capture-output": true}),
    ];
    for arguments in table {
        let (ours, theirs) = (ours(&mut worker, &arguments), theirs(&mut stock, &arguments));
        assert!(
            ours == theirs,
            "{arguments}\nours:   {:.2000}\ntheirs: {:.2000}",
            ours.to_string(),
            theirs.to_string()
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn each_way_of_capturing_keeps_what_it_says() {
    let mut worker = start();
    let script = "echo stdout; echo stderr >&2; echo stdout; echo stderr >&2";
    let outputs = |worker: &mut Worker, capture| {
        let (done, [output, error]) = run(worker, shell(script, capture));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output), text(error), done.out_truncated, done.err_truncated)
    };
    let (out, err) = ("stdout\nstdout\n".to_owned(), "stderr\nstderr\n".to_owned());
    let none = String::new();
    assert_eq!(outputs(&mut worker, Capture::None), (none.clone(), none.clone(), None, None));
    assert_eq!(outputs(&mut worker, Capture::Stdout), (out.clone(), none.clone(), Some(false), None));
    assert_eq!(outputs(&mut worker, Capture::Stderr), (none.clone(), err.clone(), None, Some(false)));
    assert_eq!(outputs(&mut worker, Capture::Separated), (out, err, Some(false), Some(false)));
    let merged = "stdout\nstderr\nstdout\nstderr\n".to_owned();
    assert_eq!(outputs(&mut worker, Capture::Merged), (merged, none, Some(false), None));
}

#[test]
fn a_program_has_all_of_the_workers_rights_and_none_of_its_bonds() {
    let mut worker = start();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let line =
        |status: &str, name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let status = output_of(&mut worker, command(&["cat", "/proc/self/status"], Capture::Stdout));
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:", "Uid", "Gid"] {
        assert_eq!(line(&status, name), line(&own, name));
    }
    // A process that is not dumpable has its files in /proc owned by root and closed; every exec makes it dumpable again.
    assert_eq!(
        output_of(&mut worker, shell("cat /proc/$$/environ >/dev/null && echo yes", Capture::Stdout)),
        "yes\n"
    );
}

#[test]
fn programs_outlive_the_worker() {
    let mut worker = start();
    let pid = begin(&mut worker, command(&["sleep", "60"], Capture::None));
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    drop(worker);
    std::thread::sleep(Duration::from_millis(100));
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let _ = kill(pid, Signal::SIGKILL);
    assert_eq!(comm.unwrap(), "sleep\n");
}

#[test]
fn input_comes_in_pieces_and_the_program_starts_when_all_of_it_is_there() {
    let mut worker = start();
    let input: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut pieces = input.chunks(proto::limits::PIECE);
    let exec = with_input(command(&["cat"], Capture::Stdout), &input);
    let id = worker.send(Request::Exec(exec), pieces.next().unwrap());
    for piece in pieces {
        assert_eq!(worker.receive(), (id, FromWorker::Taken, Vec::new()));
        worker.tell(id, &ToWorker::Piece, piece);
    }
    let pid = pid_of(worker.end_of(id).result);
    let (done, [output, _]) = end(&mut worker, pid);
    assert_eq!((done.exitcode, output == input), (Some(0), true));
}

#[test]
fn a_program_that_does_not_read_its_input_ends_all_the_same() {
    let mut worker = start();
    let input = vec![b'x'; 90_000];
    let exec = with_input(shell("exec 0<&-; sleep 0.1; echo done", Capture::Stdout), &input);
    let id = worker.send(Request::Exec(exec), &input);
    let pid = pid_of(worker.end_of(id).result);
    assert_eq!(end(&mut worker, pid).1[0], b"done\n");
}

#[test]
fn a_result_is_forgotten_when_it_has_been_fetched() {
    let mut worker = start();
    let pid = begin(&mut worker, command(&["/bin/true"], Capture::None));
    assert_eq!(end(&mut worker, pid).0.exitcode, Some(0));
    let status = |pid| Request::Status(Status { pid });
    assert_eq!(failure(&mut worker, status(pid)), format!("PID {pid} does not exist"));
    assert_eq!(failure(&mut worker, status(-1)), "PID -1 does not exist");
    assert_eq!(failure(&mut worker, status(0)), "PID 0 does not exist");
}

#[test]
fn output_comes_within_the_window_and_a_result_that_was_given_up_is_kept() {
    let mut worker = start();
    let pid = begin(&mut worker, command(&["head", "-c", "1000000", "/dev/zero"], Capture::Stdout));
    std::thread::sleep(Duration::from_millis(300));
    let id = worker.send(Request::Status(Status { pid }), &[]);
    for _ in 0..proto::limits::WINDOW {
        let (from, message, payload) = worker.receive();
        assert_eq!((from, message, payload.len()), (id, FromWorker::Piece(0), proto::limits::PIECE));
    }
    // A second client asks meanwhile: the result is spoken for.
    let other = worker.send(Request::Status(Status { pid }), &[]);
    assert_eq!(worker.end_of(other).result, Ok(Reply::Exec(ExecReply::Status(StatusDone::default()))));
    worker.tell(id, &ToWorker::Abandon, &[]);
    assert!(worker.end_of(id).result.is_err());
    let (done, [output, _]) = end(&mut worker, pid);
    assert_eq!((output.len(), done.out_truncated), (1_000_000, Some(false)));
}

#[test]
fn the_oldest_result_that_nobody_fetched_goes_first_and_running_programs_never_go() {
    let mut worker = start();
    let running = begin(&mut worker, command(&["sleep", "60"], Capture::None));
    let first = begin(&mut worker, command(&["/bin/true"], Capture::None));
    let second = begin(&mut worker, command(&["/bin/true"], Capture::None));
    for _ in 3..=proto::limits::PROGRAMS {
        begin(&mut worker, command(&["/bin/true"], Capture::None));
        std::thread::sleep(Duration::from_millis(2));
    }
    let status = |pid| Request::Status(Status { pid });
    assert_eq!(failure(&mut worker, status(first)), format!("PID {first} does not exist"));
    assert_eq!(end(&mut worker, second).0.exitcode, Some(0));
    assert!(worker.ask(status(running)).is_ok());
    let _ = kill(Pid::from_raw(i32::try_from(running).unwrap()), Signal::SIGKILL);
    assert_eq!(end(&mut worker, running).0.signal, Some(9));
}

#[test]
fn when_all_places_run_no_more_is_started_until_one_ends() {
    let mut worker = start();
    let pids: Vec<i64> = (0..proto::limits::PROGRAMS)
        .map(|_| begin(&mut worker, command(&["sleep", "60"], Capture::None)))
        .collect();
    let refused = failure(&mut worker, Request::Exec(command(&["/bin/true"], Capture::None)));
    for pid in &pids {
        let _ = kill(Pid::from_raw(i32::try_from(*pid).unwrap()), Signal::SIGKILL);
    }
    assert_eq!(refused, "128 programs are running: no more can be started before one has ended");
    assert_eq!(end(&mut worker, pids[0]).0.signal, Some(9));
    begin(&mut worker, command(&["/bin/true"], Capture::None));
}

#[test]
fn more_input_than_may_wait_is_refused_at_once() {
    let mut worker = start();
    let mut exec = command(&["cat"], Capture::None);
    exec.input_data = Payload { present: true, length: 60 << 20, ..Payload::default() };
    let waiting = worker.send(Request::Exec(exec.clone()), &[0; 1000]);
    assert_eq!(worker.receive(), (waiting, FromWorker::Taken, Vec::new()));
    let refused = failure(&mut worker, Request::Exec(exec));
    assert_eq!(refused, "more than 67108864 bytes of input would be waiting for programs");
    worker.tell(waiting, &ToWorker::Abandon, &[]);
    assert!(worker.end_of(waiting).result.is_err());
}

/// A program whose exec hangs, and what makes it go on: somebody holds a lease on its file (fcntl(2), F_SETLEASE), as a dead
/// file server would hold an answer back.
struct Hung(std::process::Child, std::path::PathBuf);

impl Hung {
    fn new() -> Option<Self> {
        let file = std::env::temp_dir().join(format!("portreeve-hung-{}", std::process::id()));
        std::fs::copy("/bin/sleep", &file).unwrap();
        if !Path::new("/usr/bin/perl").exists() {
            eprintln!("SKIPPED: needs perl to take a lease on a file");
            return None;
        }
        let lease = "$SIG{IO} = 'IGNORE'; open F, '+<', $ARGV[0] or die; fcntl(F, 1024, 1) or die; $| = 1; print \"held\\n\"; sleep 60";
        let mut holder = Command::new("/usr/bin/perl")
            .args(["-e", lease])
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Some(Hung(holder, file))
    }

    fn release(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_file(&self.1);
    }
}

#[test]
fn an_exec_that_hangs_holds_up_no_other_and_is_killed_when_it_starts_after_all() {
    let Some(mut hung) = Hung::new() else { return };
    let mut worker = start();
    let file = hung.1.to_str().unwrap().to_owned();
    let stuck = worker.send(Request::Exec(command(&[&file, "60"], Capture::Separated)), &[]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(output_of(&mut worker, command(&["echo", "alive"], Capture::Separated)), "alive\n");
    worker.tell(stuck, &ToWorker::Abandon, &[]);
    hung.release();
    let pid = pid_of(worker.end_of(stuck).result);
    let begin = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(begin.elapsed() < Duration::from_secs(5), "{pid} lives");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(failure(&mut worker, Request::Status(Status { pid })), format!("PID {pid} does not exist"));
}

#[test]
fn memory_of_captured_output_is_given_back() {
    let mut worker = start();
    let resident = |worker: &Worker| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    output_of(&mut worker, command(&["echo"], Capture::Separated));
    let before = resident(&worker);
    for _ in 0..3 {
        let (_, [output, error]) = run(
            &mut worker,
            shell("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2", Capture::Separated),
        );
        assert_eq!((output.len(), error.len()), (16 << 20, 16 << 20));
    }
    // It gives back after it has answered.
    let begin = Instant::now();
    while resident(&worker) > before + 1024 {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{before} kB before, {} kB after",
            resident(&worker)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_status_waits_a_moment_for_a_program_that_has_only_just_started() {
    let mut worker = start();
    let mut asked = 0_u32;
    for _ in 0..20 {
        let pid = begin(&mut worker, command(&["/bin/true"], Capture::None));
        loop {
            asked += 1;
            match worker.ask(Request::Status(Status { pid })) {
                Ok(Reply::Exec(ExecReply::Status(done))) if done.exited => break,
                Ok(_) => {}
                Err(failed) => panic!("{failed}"),
            }
        }
    }
    // Without the wait it is asked some hundred times, since nothing sleeps here.
    assert!(asked < 150, "asked {asked} times");
    let pid = begin(&mut worker, command(&["sleep", "60"], Capture::None));
    let begin = Instant::now();
    assert_eq!(
        worker.ask(Request::Status(Status { pid })),
        Ok(Reply::Exec(ExecReply::Status(StatusDone::default())))
    );
    let waited = begin.elapsed();
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
    assert!(waited < Duration::from_millis(500), "{waited:?}");
}

// ---------------------------------------------------------------- terms

#[test]
fn a_program_whose_time_is_over_is_killed_and_its_status_says_so() {
    let mut worker = start_under(Terms { run_seconds: Some(1), ..Terms::default() });
    let began = Instant::now();
    let (done, [output, _]) =
        run(&mut worker, shell("echo begun; sleep 600; echo ended", Capture::Separated));
    assert_eq!((done.exited, done.exitcode, done.signal), (true, None, Some(9)));
    assert_eq!(String::from_utf8_lossy(&output), "begun\n");
    assert!((1..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
fn what_a_program_has_started_ends_with_it() {
    let mut worker = start_under(Terms { run_seconds: Some(1), ..Terms::default() });
    // One child while it is killed, one that it leaves behind.
    for script in ["sleep 600 & echo $!; wait", "sleep 600 > /dev/null & echo $!"] {
        let (_, [output, _]) = run(&mut worker, shell(script, Capture::Separated));
        let child: i32 = String::from_utf8_lossy(&output).trim().parse().unwrap();
        let begin = Instant::now();
        while is_running(child) {
            assert!(begin.elapsed() < Duration::from_secs(5), "{script}: {child} goes on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether there is such a process that is no zombie.
fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn who_has_left_the_group_of_a_program_and_holds_its_output_does_not_hold_up_its_status() {
    let mut worker = start_under(Terms { run_seconds: Some(1), ..Terms::default() });
    let script = "setsid sleep 6 & echo begun; wait";
    let began = Instant::now();
    let (done, [output, _]) = run(&mut worker, shell(script, Capture::Separated));
    assert_eq!((done.signal, done.out_truncated), (Some(9), Some(true)));
    assert_eq!(String::from_utf8_lossy(&output), "begun\n");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_program_that_ends_in_time_is_not_touched() {
    let mut worker = start_under(Terms { run_seconds: Some(60), ..Terms::default() });
    let (done, [output, _]) = run(&mut worker, shell("echo a; exit 3", Capture::Separated));
    assert_eq!((done.exitcode, done.signal, output.as_slice()), (Some(3), None, &b"a\n"[..]));
}

#[test]
fn of_each_output_so_many_bytes_are_kept() {
    let mut worker = start_under(Terms { output_bytes: Some(3), ..Terms::default() });
    let (done, outputs) = run(&mut worker, shell("printf abcdef; printf xy >&2", Capture::Separated));
    assert_eq!(outputs, [b"abc".to_vec(), b"xy".to_vec()]);
    assert_eq!((done.out_truncated, done.err_truncated), (Some(true), Some(false)));
    let mut worker = start_under(Terms { output_bytes: Some(0), ..Terms::default() });
    let (done, outputs) = run(&mut worker, shell("printf abcdef", Capture::Separated));
    assert_eq!((outputs[0].len(), done.out_truncated, done.err_truncated), (0, Some(true), None));
}

#[test]
fn a_program_runs_as_the_policy_says() {
    let terms = Terms { run_as: Some(RunAs { uid: 65534, gid: 65533 }), ..Terms::default() };
    let mut worker = start_under(terms);
    let ids = shell("id -u; id -g; id -G; pwd; echo \"$PATH\"", Capture::Separated);
    if !nix::unistd::geteuid().is_root() {
        let why = "Failed to execute child process “/bin/sh” (the policy has it run as 65534:65533, which needs an agent \
                   that was started by root)";
        assert_eq!(failure(&mut worker, Request::Exec(ids)), why);
        return;
    }
    let folder = std::env::current_dir().unwrap();
    let said = format!("65534\n65533\n65533\n{}\n/usr/bin:/bin\n", folder.display());
    assert_eq!(output_of(&mut worker, ids), said);
    let why = "Failed to execute child process “/etc/shadow” (Permission denied)";
    assert_eq!(failure(&mut worker, Request::Exec(command(&["/etc/shadow"], Capture::None))), why);
    let cat = shell("cat /etc/shadow 2>&1", Capture::Separated);
    let (done, [output, _]) = run(&mut worker, cat);
    assert_eq!(done.exitcode, Some(1), "{}", String::from_utf8_lossy(&output));
}
