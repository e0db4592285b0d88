//! The same requests to qemu-ga and to this worker: the answers must be the same to the letter.
//!
//! Only where `/usr/sbin/qemu-ga` is installed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::message::Detail;
use proto::{Dialect, Request, file};
use serde_json::{Value, json};

use crate::harness::Worker;

const QEMU_GA: &str = "/usr/sbin/qemu-ga";

struct Stock {
    child: Child,
    socket: BufReader<UnixStream>,
}

impl Stock {
    fn start(folder: &Path, state: &Path) -> Self {
        let path = state.join("socket");
        let child = Command::new(QEMU_GA)
            .args(["-m", "unix-listen", "-t"])
            .arg(state)
            .arg("-p")
            .arg(&path)
            .arg("-f")
            .arg(state.join("pid"))
            .current_dir(folder)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Stock { child, socket: BufReader::new(socket) }
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.socket.get_mut(), "{request}").unwrap();
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        let reply: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error}: {line}"));
        match reply.get("error") {
            Some(error) => error["desc"].clone(),
            None => reply["return"].clone(),
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn decode(command: &str, arguments: &Value) -> file::Request {
    if command == "guest-file-seek" {
        // The frontend's own deserializer knows the type of `whence`; serde_json's does not.
        let whence = match &arguments["whence"] {
            Value::String(word) => ["set", "cur", "end"].iter().position(|name| name == word).unwrap() as i64,
            number => number.as_i64().unwrap(),
        };
        let number = |name: &str| arguments[name].as_i64().unwrap();
        return file::Request::Seek(file::Seek {
            handle: number("handle"),
            offset: number("offset"),
            whence: file::Whence(whence),
        });
    }
    match proto::decode(Dialect::Qga, command, arguments.clone()).unwrap().unwrap() {
        Request::File(request) => request,
        other => panic!("{other:?} is no file request"),
    }
}

/// What broker and frontend do around the worker, as far as a client sees it.
fn ask_worker(worker: &mut Worker, next: &mut u64, command: &str, arguments: &Value) -> Value {
    let mut request = decode(command, arguments);
    let number = arguments["handle"].as_u64().unwrap_or(*next);
    let mut detail = Detail { handle: number, count: 4096, ..Detail::default() };
    if let file::Request::Read(read) = &request {
        detail.count = u32::try_from(read.count.unwrap_or(4096)).unwrap_or(0);
    }
    let mut payload = Vec::new();
    if let file::Request::Write(write) = &mut request {
        payload = STANDARD.decode(&write.buf_b64.text.0).unwrap();
        write.buf_b64.length = payload.len() as u64;
    }
    let opens = matches!(request, file::Request::Open(_));
    match worker.ask(request, detail, &payload) {
        (Err(failed), _) => failed.text.into(),
        (Ok(reply), bytes) => {
            *next += u64::from(opens);
            let mut value = serde_json::to_value(&reply).unwrap();
            if let file::Reply::Read(_) = reply {
                value["buf-b64"] = STANDARD.encode(bytes).into();
            }
            value
        }
    }
}

/// Every command and every error of it that a client can provoke; handles count from 1000 in both.
fn requests() -> Vec<(&'static str, Value)> {
    let hello = STANDARD.encode(b"Hello World!\n\0");
    let block = STANDARD.encode([b'z'; 5000]);
    let mut requests = vec![
        ("open", json!({ "path": "missing" })),
        ("open", json!({ "path": "" })),
        ("open", json!({ "path": "d/missing/x", "mode": "w" })),
        ("open", json!({ "path": "file/x" })),
        ("open", json!({ "path": "file", "mode": "rw" })),
        ("open", json!({ "path": "file", "mode": "" })),
        ("open", json!({ "path": "d", "mode": "w" })),
        ("open", json!({ "path": "d", "mode": "r+" })),
        ("open", json!({ "path": "d/", "mode": "a" })),
        ("open", json!({ "path": "new/", "mode": "w" })),
        ("open", json!({ "path": "loop" })),
        ("open", json!({ "path": "dangling", "mode": "w" })),
        ("open", json!({ "path": "fifo", "mode": "w" })),
        ("open", json!({ "path": "socket" })),
        ("open", json!({ "path": "x".repeat(300) })),
        ("open", json!({ "path": "x/".repeat(2500) })),
        // 1000
        ("open", json!({ "path": "d" })),
        ("read", json!({ "handle": 1000 })),
        ("read", json!({ "handle": 1000, "count": 0 })),
        ("write", json!({ "handle": 1000, "buf-b64": hello })),
        ("flush", json!({ "handle": 1000 })),
        ("close", json!({ "handle": 1000 })),
        ("close", json!({ "handle": 1000 })),
        ("flush", json!({ "handle": -3 })),
        ("read", json!({ "handle": 5 })),
        ("write", json!({ "handle": 5, "buf-b64": hello })),
        ("seek", json!({ "handle": 5, "offset": 0, "whence": 9 })),
        // 1001
        ("open", json!({ "path": "file" })),
        ("read", json!({ "handle": 1001, "count": 3 })),
        ("read", json!({ "handle": 1001, "count": 7 })),
        ("read", json!({ "handle": 1001, "count": 7 })),
        ("seek", json!({ "handle": 1001, "offset": 2, "whence": "set" })),
        ("read", json!({ "handle": 1001 })),
        ("seek", json!({ "handle": 1001, "offset": -2, "whence": "end" })),
        ("seek", json!({ "handle": 1001, "offset": -1, "whence": 1 })),
        ("read", json!({ "handle": 1001, "count": 1 })),
        ("seek", json!({ "handle": 1001, "offset": 0, "whence": "cur" })),
        ("seek", json!({ "handle": 1001, "offset": -100, "whence": "cur" })),
        ("seek", json!({ "handle": 1001, "offset": -1, "whence": "set" })),
        ("seek", json!({ "handle": 1001, "offset": 0, "whence": 3 })),
        ("seek", json!({ "handle": 1001, "offset": 100, "whence": 0 })),
        ("read", json!({ "handle": 1001 })),
        ("read", json!({ "handle": 1001, "count": -1 })),
        ("read", json!({ "handle": 1001, "count": 50_331_649 })),
        ("read", json!({ "handle": 1001, "count": 0 })),
        ("write", json!({ "handle": 1001, "buf-b64": "" })),
        ("write", json!({ "handle": 1001, "buf-b64": hello })),
        ("close", json!({ "handle": 1001 })),
        // 1002
        ("open", json!({ "path": "foo", "mode": "w+" })),
        ("write", json!({ "handle": 1002, "buf-b64": hello })),
        ("read", json!({ "handle": 1002 })),
        ("seek", json!({ "handle": 1002, "offset": 0, "whence": "set" })),
        ("read", json!({ "handle": 1002 })),
        ("write", json!({ "handle": 1002, "buf-b64": block, "count": 4500 })),
        ("seek", json!({ "handle": 1002, "offset": 0, "whence": "cur" })),
        ("write", json!({ "handle": 1002, "buf-b64": hello, "count": -1 })),
        ("write", json!({ "handle": 1002, "buf-b64": hello, "count": 15 })),
        ("write", json!({ "handle": 1002, "buf-b64": hello, "count": 0 })),
        ("write", json!({ "handle": 1002, "buf-b64": hello, "count": 5 })),
        ("seek", json!({ "handle": 1002, "offset": 0, "whence": "end" })),
        ("seek", json!({ "handle": 1002, "offset": 10, "whence": "set" })),
        ("read", json!({ "handle": 1002, "count": 3 })),
        ("write", json!({ "handle": 1002, "buf-b64": hello })),
        ("read", json!({ "handle": 1002, "count": 3 })),
        ("flush", json!({ "handle": 1002 })),
        ("close", json!({ "handle": 1002 })),
        // 1003
        ("open", json!({ "path": "/dev/full", "mode": "w" })),
        ("write", json!({ "handle": 1003, "buf-b64": hello })),
        ("flush", json!({ "handle": 1003 })),
        ("flush", json!({ "handle": 1003 })),
        ("write", json!({ "handle": 1003, "buf-b64": block })),
        ("write", json!({ "handle": 1003, "buf-b64": hello })),
        ("seek", json!({ "handle": 1003, "offset": 0, "whence": 0 })),
        ("read", json!({ "handle": 1003 })),
        ("flush", json!({ "handle": 1003 })),
        ("close", json!({ "handle": 1003 })),
        // 1004
        ("open", json!({ "path": "/dev/full", "mode": "w+" })),
        ("write", json!({ "handle": 1004, "buf-b64": hello })),
        ("read", json!({ "handle": 1004, "count": 2 })),
        // The last on it: qemu-ga 7.2 crashes over a handle whose close failed.
        ("close", json!({ "handle": 1004 })),
        // 1005
        ("open", json!({ "path": "file", "mode": "a+" })),
        ("seek", json!({ "handle": 1005, "offset": 0, "whence": "cur" })),
        ("read", json!({ "handle": 1005, "count": 2 })),
        ("write", json!({ "handle": 1005, "buf-b64": hello })),
        ("seek", json!({ "handle": 1005, "offset": 0, "whence": "cur" })),
        ("seek", json!({ "handle": 1005, "offset": 1, "whence": "set" })),
        ("read", json!({ "handle": 1005 })),
        ("close", json!({ "handle": 1005 })),
        // 1006
        ("open", json!({ "path": "fifo", "mode": "r" })),
        ("read", json!({ "handle": 1006 })),
        ("seek", json!({ "handle": 1006, "offset": 0, "whence": 0 })),
        ("write", json!({ "handle": 1006, "buf-b64": hello })),
        ("flush", json!({ "handle": 1006 })),
        ("close", json!({ "handle": 1006 })),
        // 1007
        ("open", json!({ "path": "fifo", "mode": "r+" })),
        ("read", json!({ "handle": 1007 })),
        ("write", json!({ "handle": 1007, "buf-b64": hello })),
        ("flush", json!({ "handle": 1007 })),
        ("read", json!({ "handle": 1007, "count": 14 })),
        ("close", json!({ "handle": 1007 })),
        // 1008
        ("open", json!({ "path": "w-only", "mode": "w" })),
        ("read", json!({ "handle": 1008 })),
        ("read", json!({ "handle": 1008, "count": 0 })),
        ("write", json!({ "handle": 1008, "buf-b64": hello })),
        ("read", json!({ "handle": 1008 })),
        ("seek", json!({ "handle": 1008, "offset": 0, "whence": 1 })),
        ("close", json!({ "handle": 1008 })),
    ];
    let modes = ["r", "rb", "r+", "rb+", "r+b", "a", "ab", "a+", "ab+", "a+b", "w", "wb", "w+", "wb+", "w+b"];
    for (mode, handle) in modes.into_iter().zip(1009..) {
        requests.push(("open", json!({ "path": "modes", "mode": mode })));
        requests.push(("write", json!({ "handle": handle, "buf-b64": hello })));
        requests.push(("read", json!({ "handle": handle })));
        requests.push(("seek", json!({ "handle": handle, "offset": 0, "whence": 1 })));
        requests.push(("close", json!({ "handle": handle })));
    }
    requests
}

fn furnish(folder: &Path) -> std::os::unix::net::UnixListener {
    std::fs::write(folder.join("file"), "0123456789").unwrap();
    std::fs::write(folder.join("modes"), "0123456789").unwrap();
    std::fs::create_dir(folder.join("d")).unwrap();
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap()
}

fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    ["file", "foo", "modes", "w-only"]
        .map(|name| (name.to_owned(), std::fs::read(folder.join(name)).unwrap()))
        .to_vec()
}

#[test]
fn a_client_of_qemu_ga_notices_nothing() {
    if !Path::new(QEMU_GA).exists() {
        eprintln!("{QEMU_GA} is not installed: nothing to compare with");
        return;
    }
    let (theirs, ours, state) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _sockets = (furnish(theirs.path()), furnish(ours.path()));
    let Some(mut worker) = Worker::of_root(ours.path()) else { return };
    let mut stock = Stock::start(theirs.path(), state.path());
    let mut next = 1000;
    let mut differences = Vec::new();
    for (command, arguments) in requests() {
        let name = format!("guest-file-{command}");
        let expected = stock.ask(&name, &arguments);
        let got = ask_worker(&mut worker, &mut next, &name, &arguments);
        if got != expected {
            differences.push(format!("{name} {arguments}\n  qemu-ga: {expected}\n  worker:  {got}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(content(ours.path()), content(theirs.path()));
}
