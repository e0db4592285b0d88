//! The real worker in its real jail, spoken to as the broker does, beside the real qemu-ga where it is installed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use command_fds::{CommandFdExt, FdMapping};
use pipe::Pipe;
use proto::message::{Detail, FromWorker, Hello, Job, ToWorker};
use proto::settings::{AuditSettings, Settings};
use proto::{Failed, Group, NoArguments, Reply, Request, query};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::{Value, json};

struct Worker {
    process: Child,
    pipe: Pipe<ToWorker, FromWorker>,
    next: u64,
}

impl Worker {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            channels: Vec::new(),
            audit: AuditSettings::default(),
            verbose: false,
            time_zone: None,
            os_release: None,
            environment: Vec::new(),
            idle_seconds: 0,
            ..Settings::default()
        };
        change(&mut settings);
        let rule = Rule {
            groups: vec![Group::Query],
            ..Rule::new(Outcome::Allow, Origin { place: "test".into(), line: 1 })
        };
        let policy = Policy::new("test", Vec::new(), vec![rule]);
        let sealed = Sealed::new(settings, policy).encode().unwrap();
        let sealed = jail::sealed::from_bytes(c"test", &sealed).unwrap();
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let base = if is_root() { jail::DEFAULT_UID_BASE } else { 0 };
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve-query"));
        command
            .env_clear()
            .args([base.to_string(), "0".to_owned()])
            .stdin(Stdio::null())
            // A regular file here, as when the output of all tests goes to one, would end the worker at its first
            // line: its limit on the size of files is 0. Under the spawner it is a pipe.
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: theirs, child_fd: 3 },
                FdMapping { parent_fd: sealed, child_fd: 4 },
            ])
            .unwrap();
        let process = command.spawn().unwrap();
        drop(command);
        let worker = Worker { process, pipe: Pipe::new(ours), next: 1 };
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let hello = worker.pipe.receive(&mut buffer).unwrap().expect("the worker starts").message;
        assert!(matches!(&hello, FromWorker::Hello(hello) if hello.role == "query"), "{hello:?}");
        let hello = Hello {
            build_id: proto::BUILD_ID.to_owned(),
            role: "broker".to_owned(),
            confinement: Vec::new(),
        };
        worker.pipe.send(0, 0, &ToWorker::Hello(hello), &[]).unwrap();
        worker
    }

    fn send(&mut self, request: impl Into<Request>) -> u64 {
        let request = request.into();
        let job = Job { channel: "test".to_owned(), request, detail: Detail::default() };
        let id = self.next;
        self.next += 1;
        self.pipe.send(id, 0, &ToWorker::Job(job), &[]).unwrap();
        id
    }

    fn answer(&mut self, request: query::Request) -> Result<Reply, Failed> {
        let id = self.send(request);
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let received = self.pipe.receive(&mut buffer).unwrap().expect("the worker lives");
        assert_eq!(received.id, id);
        let FromWorker::Answer(result, _) = received.message else { panic!("{:?}", received.message) };
        result
    }

    fn ask(&mut self, request: query::Request) -> Value {
        serde_json::to_value(self.answer(request).unwrap()).unwrap()
    }

    fn ended(mut self) -> Option<i32> {
        drop(self.pipe);
        self.process.wait().unwrap().code()
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Every request of the contract: a new variant makes this stop compiling.
fn all() -> Vec<query::Request> {
    use query::Request::*;
    let none = NoArguments {};
    let first = Time(none);
    match first {
        Time(_) | HostName(_) | Users(_) | TimeZone(_) | OsInfo(_) | Load(_) | CpuStats(_) | DiskStats(_)
        | Disks(_) | Devices(_) | FsInfo(_) | Vcpus(_) | MemoryBlocks(_) | MemoryBlockInfo(_)
        | SysInfo(_) => {}
    }
    vec![
        first,
        HostName(none),
        Users(none),
        TimeZone(none),
        OsInfo(none),
        Load(none),
        Devices(none),
        CpuStats(none),
        DiskStats(none),
        Disks(none),
        FsInfo(none),
        Vcpus(none),
        MemoryBlocks(none),
        MemoryBlockInfo(none),
        SysInfo(none),
    ]
}

/// qemu-ga on a socket of its own, ended with the value.
struct QemuGa {
    process: Child,
    place: PathBuf,
    stream: BufReader<UnixStream>,
}

impl QemuGa {
    const PROGRAM: &str = "/usr/sbin/qemu-ga";

    fn start(environment: &[(&str, &str)]) -> Option<Self> {
        if !PathBuf::from(Self::PROGRAM).exists() {
            return None;
        }
        let place = tempfile::tempdir().unwrap().keep();
        let socket = place.join("socket");
        let mut process = Command::new(Self::PROGRAM)
            .args(["-m", "unix-listen", "-p"])
            .arg(&socket)
            .arg("-t")
            .arg(&place)
            .envs(environment.iter().copied())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pause = |_: &std::io::Error| std::thread::sleep(Duration::from_millis(10));
        let stream = (0..500).find_map(|_| UnixStream::connect(&socket).inspect_err(pause).ok());
        if stream.is_none() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let stream = BufReader::new(stream.expect("qemu-ga listens"));
        Some(QemuGa { process, place, stream })
    }

    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stream.get_mut(), "{}", json!({ "execute": command })).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["return"].take()
    }
}

impl Drop for QemuGa {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

/// Takes members away, at any depth, that change by themselves or that qemu-ga 7.2 does not know yet.
fn without(value: &mut Value, members: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|name, _| !members.contains(&name.as_str()));
            object.values_mut().for_each(|value| without(value, members));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| without(value, members)),
        _ => {}
    }
}

fn same(request: query::Request, unstable: &[&str]) {
    let Some(mut stock) = QemuGa::start(&[]) else { return };
    let mut worker = Worker::start();
    let name = request.command().name();
    let (mut theirs, mut ours) = (stock.ask(name), worker.ask(request));
    without(&mut theirs, unstable);
    without(&mut ours, unstable);
    assert_eq!(ours, theirs, "{name}");
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn every_request_is_answered_from_inside_the_jail() {
    let mut worker = Worker::start();
    let answers: BTreeMap<&str, Result<Reply, Failed>> =
        all().into_iter().map(|request| (request.command().name(), worker.answer(request))).collect();
    for (name, answer) in &answers {
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    assert_eq!(answers.len(), all().len());
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn names_and_versions_are_qemu_gas() {
    same(query::Request::HostName(NoArguments {}), &[]);
    same(query::Request::OsInfo(NoArguments {}), &[]);
    same(query::Request::Users(NoArguments {}), &[]);
    same(query::Request::TimeZone(NoArguments {}), &[]);
}

#[test]
fn cpus_and_memory_blocks_are_qemu_gas_in_its_order() {
    same(query::Request::Vcpus(NoArguments {}), &[]);
    same(query::Request::MemoryBlocks(NoArguments {}), &[]);
    same(query::Request::MemoryBlockInfo(NoArguments {}), &[]);
}

#[test]
fn disks_and_filesystems_are_qemu_gas_in_its_order() {
    same(query::Request::Disks(NoArguments {}), &["smart"]);
    let Some(mut stock) = QemuGa::start(&[]) else { return };
    let mut worker = Worker::start();
    let listed = |answer: Value| {
        let mut answer = answer.as_array().unwrap().clone();
        // The first mounted stands last. Versions before 10.0 list every mount, later ones the first of a device.
        answer.reverse();
        let mut seen = BTreeSet::new();
        answer.retain(|one| seen.insert(one["name"].to_string()));
        let mut answer = Value::Array(answer);
        without(&mut answer, &["used-bytes", "total-bytes", "total-bytes-privileged"]);
        answer
    };
    let ours = listed(worker.ask(query::Request::FsInfo(NoArguments {})));
    assert_eq!(ours, listed(stock.ask("guest-get-fsinfo")));
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn counters_have_qemu_gas_shape() {
    let times = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice"];
    same(query::Request::CpuStats(NoArguments {}), &times);
    same(query::Request::DiskStats(NoArguments {}), &["stats"]);
    let Some(mut stock) = QemuGa::start(&[]) else { return };
    let mut worker = Worker::start();
    let requests = [query::Request::CpuStats(NoArguments {}), query::Request::DiskStats(NoArguments {})];
    for request in requests {
        let theirs = stock.ask(request.command().name());
        let ours = worker.ask(request);
        for (ours, theirs) in ours.as_array().unwrap().iter().zip(theirs.as_array().unwrap()) {
            assert_eq!(members(ours), members(theirs));
        }
    }
    assert_eq!(worker.ended(), Some(0));
}

fn members(value: &Value) -> Vec<String> {
    let object = value.as_object().unwrap();
    let inner = object.values().filter(|value| value.is_object()).flat_map(members);
    let mut members: Vec<String> = object.keys().cloned().chain(inner).collect();
    members.sort();
    members
}

#[test]
fn sizes_of_filesystems_are_near_qemu_gas() {
    let Some(mut stock) = QemuGa::start(&[]) else { return };
    let mut worker = Worker::start();
    let theirs = stock.ask("guest-get-fsinfo");
    let ours = worker.ask(query::Request::FsInfo(NoArguments {}));
    for theirs in theirs.as_array().unwrap() {
        let same_place = |ours: &&Value| ours["mountpoint"] == theirs["mountpoint"];
        let Some(ours) = ours.as_array().unwrap().iter().find(same_place) else { continue };
        for member in ["used-bytes", "total-bytes"] {
            let (ours, theirs) = (ours[member].as_f64().unwrap(), theirs[member].as_f64().unwrap());
            assert!((ours / theirs - 1.0).abs() < 0.1, "{member}: {ours} {theirs}");
        }
    }
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn time_goes_by_the_same_clock() {
    let mut worker = Worker::start();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let time = worker.ask(query::Request::Time(NoArguments {})).as_i64().unwrap();
    let after = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let time = u128::try_from(time).unwrap();
    assert!(before - before % 1000 <= time && time <= after, "{before} {time} {after}");
    assert_eq!(time % 1000, 0);
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn configured_time_zones_are_read_as_by_qemu_ga() {
    let zones = [
        "",
        ":",
        "EST5EDT",
        "<+03>-3",
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "+05:30",
        "-0330",
        "05:30",
        "Europe/Berlin",
        ":Europe/Berlin",
        "Foo/Bar",
        "Foo",
        "GMT",
        "Z",
        "UTC+3",
        "Asia/Kolkata",
        "AB3",
        "+5",
        "+25:00",
        "CET-1CEST",
        "/usr/share/zoneinfo/Asia/Tokyo",
        "/nonexistent",
        "CET-1CEST,J60,J300",
        "America/St_Johns",
        "Europe",
    ];
    for zone in zones {
        let Some(mut stock) = QemuGa::start(&[("TZ", zone)]) else { return };
        let mut worker = Worker::with(|settings| settings.time_zone = Some(zone.to_owned()));
        let ours = worker.ask(query::Request::TimeZone(NoArguments {}));
        assert_eq!(ours, stock.ask("guest-get-timezone"), "TZ={zone}");
        assert_eq!(worker.ended(), Some(0));
    }
}

/// qga 10.2's own test file, and what it expects of it.
#[test]
fn a_configured_os_release_is_read_wherever_it_is() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("test-qga-os-release");
    let content = "ID=qemu-ga-test\nNAME=QEMU-GA\nPRETTY_NAME=\"QEMU Guest Agent test\"\nVERSION=\"Test 1\"\n\
                   VERSION_ID=1\nVARIANT=\"Unit test \\\"\\'\\$\\`\\\\ and \\\\\\\\ etc.\"\nVARIANT_ID=unit-test\n";
    std::fs::write(&file, content).unwrap();
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open_to_all).unwrap();
    let mut worker = Worker::with(|settings| settings.os_release = Some(file.to_str().unwrap().to_owned()));
    let mut info = worker.ask(query::Request::OsInfo(NoArguments {}));
    without(&mut info, &["kernel-release", "kernel-version", "machine"]);
    let expected = json!({
        "id": "qemu-ga-test", "name": "QEMU-GA", "pretty-name": "QEMU Guest Agent test", "version": "Test 1",
        "version-id": "1", "variant": "Unit test \"'$`\\ and \\\\ etc.", "variant-id": "unit-test",
    });
    assert_eq!(info, expected);
    assert_eq!(worker.ended(), Some(0));
}

#[test]
fn another_privileges_request_ends_the_worker() {
    let mut worker = Worker::start();
    worker.send(proto::agent::Request::Ping(NoArguments {}));
    let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
    let refused = worker.pipe.receive(&mut buffer).unwrap().expect("it says why").message;
    assert!(matches!(refused, FromWorker::Refused(_)), "{refused:?}");
    assert_eq!(worker.ended(), Some(1));
}
