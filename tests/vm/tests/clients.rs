//! What clients send, byte by byte, over the agent's port of a guest; and QEMU's own library for Python.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use vm::{Guest, Options, Part};

/// Nothing comes: as long as a late reply would take.
const SILENT: Duration = Duration::from_millis(500);

#[test]
fn a_late_reply_never_follows_the_sync_of_a_client_that_has_given_up() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    // A freeze that takes its time.
    guest.output("printf '#!/bin/sh\\nwhile [ -e /run/hold ]; do sleep 0.02; done\\n' > /etc/hook; chmod 755 /etc/hook; touch /run/hold");
    guest.start_portreeve(&["-F/etc/hook"]);
    // libvirt: a number of milliseconds since 1970, no 0xFF, one command after the other.
    guest.agent.raw(b"{\"execute\":\"guest-sync\", \"arguments\":{\"id\":1763630000000}}\n");
    assert_eq!(guest.agent.answer("sync").unwrap(), 1_763_630_000_000_i64);
    guest.agent.raw(b"{\"execute\":\"guest-get-fsinfo\"}\n");
    assert!(guest.agent.answer("fsinfo").unwrap().is_array());
    guest.agent.raw(b"{\"execute\":\"guest-fsfreeze-freeze\"}\n");
    assert_eq!(guest.agent.line_within(SILENT), None);
    guest.agent.raw(b"{\"execute\":\"guest-sync\", \"arguments\":{\"id\":1763630005000}}\n");
    assert_eq!(guest.agent.answer("sync").unwrap(), 1_763_630_005_000_i64);
    guest.agent.raw(b"{\"execute\":\"guest-ping\"}\n");
    assert_eq!(guest.agent.answer("ping").unwrap(), json!({}));
    guest.output("rm /run/hold");
    // Whatever it returned is said to nobody; what came of it is asked for.
    assert_eq!(guest.agent.line_within(SILENT), None);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
}

#[test]
fn a_client_that_opens_the_socket_for_each_command_keeps_its_files_and_programs() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // Proxmox: both requests in one write, the members in any order, then it closes.
    let mut number = 4_711_000;
    let mut ask = |guest: &mut Guest, command: &str, arguments: &Value| -> Value {
        number += 1;
        guest.agent.reopen();
        let (sync, request) = if number % 2 == 0 {
            (
                format!(r#"{{"execute":"guest-sync-delimited","arguments":{{"id":{number}}}}}"#),
                format!(r#"{{"execute":"{command}","arguments":{arguments}}}"#),
            )
        } else {
            (
                format!(r#"{{"arguments":{{"id":{number}}},"execute":"guest-sync-delimited"}}"#),
                format!(r#"{{"arguments":{arguments},"execute":"{command}"}}"#),
            )
        };
        guest.agent.raw(format!("{sync}\n{request}\n").as_bytes());
        assert_eq!(guest.agent.answer("sync").unwrap(), number, "{command}");
        guest.agent.answer(command).unwrap_or_else(|error| panic!("{command} {arguments}: {error}"))
    };
    for _ in 0..5 {
        assert_eq!(ask(&mut guest, "guest-ping", &json!({})), json!({}));
    }
    // Base64 with a line feed every 76 characters and at the end, each an escape in the JSON string.
    let content = "0123456789".repeat(20);
    let mut lines =
        BASE64.encode(&content).into_bytes().chunks(76).map(<[u8]>::to_vec).collect::<Vec<_>>().join(&b'\n');
    lines.push(b'\n');
    let lines = String::from_utf8(lines).unwrap();
    let handle = ask(&mut guest, "guest-file-open", &json!({ "path": "/run/written", "mode": "wb" }));
    let written = ask(&mut guest, "guest-file-write", &json!({ "handle": handle, "buf-b64": lines }));
    assert_eq!(written, json!({ "count": 200, "eof": false }));
    ask(&mut guest, "guest-file-close", &json!({ "handle": handle }));
    assert_eq!(guest.output("cat /run/written"), content);
    let password = json!({ "username": "alice", "password": "czNjcmV0\n", "crypted": false });
    ask(&mut guest, "guest-set-user-password", &password);
    let program = json!({ "path": "/bin/sh", "arg": ["-c", "sleep 1; echo out"], "capture-output": true });
    let started = ask(&mut guest, "guest-exec", &program);
    let status = loop {
        let status = ask(&mut guest, "guest-exec-status", &started);
        if status["exited"] == true {
            break status;
        }
    };
    assert_eq!(BASE64.decode(status["out-data"].as_str().unwrap()).unwrap(), b"out\n");
}

#[test]
fn a_client_without_line_feeds_one_that_tests_and_two_that_poll_are_answered() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // UTM: 0xFF in front, which is an error like any other, and whose answer it skips; no line feed behind, not even with what follows.
    guest.agent.raw(b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":3000000000}}");
    let stray = guest.agent.answer("0xFF").unwrap_err();
    assert_eq!(guest.agent.answer("sync").unwrap(), 3_000_000_000_i64);
    let handle = guest.agent.call("guest-file-open", json!({ "path": "/etc/passwd" })).unwrap();
    guest.agent.raw(
        format!(
            r#"{{"execute":"guest-file-seek","arguments":{{"handle":{handle},"offset":0,"whence":"set"}}}}"#
        )
        .as_bytes(),
    );
    assert_eq!(guest.agent.answer("seek").unwrap(), json!({ "position": 0, "eof": false }));
    // QEMU's test-qga: 0xFF alone, a pause, then the sync; an id; a command out of band.
    guest.agent.raw(b"\xff");
    std::thread::sleep(Duration::from_millis(200));
    guest.agent.raw(b"{'execute': 'guest-sync-delimited', 'arguments': {'id': 7 } }");
    assert_eq!(guest.agent.answer("0xFF").unwrap_err(), stray);
    assert_eq!(guest.agent.answer("sync").unwrap(), 7);
    guest.agent.raw(b"{\"execute\":\"guest-ping\",\"id\":1}\n");
    assert_eq!(guest.agent.line_within(Duration::from_secs(60)), Some(json!({ "return": {}, "id": 1 })));
    guest.agent.raw(b"{\"exec-oob\":\"guest-ping\"}\n");
    assert_eq!(guest.agent.answer("exec-oob").unwrap_err().class, "GenericError");
    // Ansible: the same question as fast as it is answered.
    let program = json!({ "path": "/bin/sh", "arg": ["-c", "sleep 1"], "capture-output": true });
    let started = guest.agent.call("guest-exec", program).unwrap();
    let mut asked = 0;
    while guest.agent.call("guest-exec-status", started.clone()).unwrap()["exited"] == false {
        asked += 1;
    }
    assert!(asked > 10, "asked {asked} times within a second");
    // oVirt: eight questions, each as soon as the one before is answered.
    const EIGHT: [&str; 8] = [
        "guest-info",
        "guest-get-users",
        "guest-get-osinfo",
        "guest-get-timezone",
        "guest-get-host-name",
        "guest-get-fsinfo",
        "guest-network-get-interfaces",
        "guest-get-vcpus",
    ];
    for _ in 0..10 {
        for (command, is_list) in EIGHT.iter().zip([false, true, false, false, false, true, true, true]) {
            let answer = guest.agent.call(command, ()).unwrap();
            assert_eq!(answer.is_array(), is_list, "{command}: {answer}");
        }
    }
}

/// Runs `clients/agent.py` on the agent's socket; what it printed.
fn python(guest: &mut Guest, library: &Path, arguments: &[&str]) -> Value {
    let path = guest.folder().join("agent");
    guest.agent.close();
    let output = Command::new("python3")
        .env("PYTHONPATH", library)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/agent.py"))
        .arg(&path)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

#[test]
fn qemus_library_for_python_does_all_that_qemu_ga_client_does() {
    if !vm::possible(&[Part::Python]) {
        return;
    }
    let library = vm::prepare(&[Part::Python], |_| {}).unwrap().python;
    // Of a kernel that survives a suspend.
    let Some(mut guest) = Guest::with(Options::default().disks().bzimage()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(python(&mut guest, &library, &["ping"]), json!({}));
    assert_eq!(python(&mut guest, &library, &["info"])["version"], "10.2.0");
    guest.output("n=0; while [ $n -lt 1000 ]; do n=$((n+1)); echo line $n; done > /run/text");
    let text = guest.output("cat /run/text");
    assert_eq!(python(&mut guest, &library, &["cat", "/run/text"]).as_str().unwrap().trim_end(), text);
    assert_eq!(
        python(&mut guest, &library, &["ifconfig"])["lo"].as_array().unwrap()[..2],
        [json!("00:00:00:00:00:00"), json!("127.0.0.1/8")]
    );
    assert_eq!(python(&mut guest, &library, &["fsfreeze", "status"]), "thawed");
    assert_eq!(python(&mut guest, &library, &["fsfreeze", "freeze"]), 4);
    assert_eq!(python(&mut guest, &library, &["fsfreeze", "status"]), "frozen");
    assert_eq!(python(&mut guest, &library, &["fsfreeze", "thaw"]), 4);
    assert_eq!(python(&mut guest, &library, &["fstrim"])["paths"].as_array().unwrap().len(), 4);
    assert_eq!(python(&mut guest, &library, &["suspend", "ram"]), Value::Null);
    guest.qmp.event("SUSPEND");
    guest.qemu("system_wakeup", ());
    guest.qmp.event("WAKEUP");
    assert_eq!(python(&mut guest, &library, &["ping"]), json!({}));
    assert_eq!(python(&mut guest, &library, &["shutdown"]), Value::Null);
    assert_eq!(guest.qmp.event("SHUTDOWN")["reason"], "guest-shutdown");
    guest.wait_for_end();
}
