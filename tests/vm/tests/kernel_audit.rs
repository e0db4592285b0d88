//! Records in the kernel's own audit, read as a log daemon reads them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use vm::{Guest, Options};

const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on";
/// On a disk of its own in the guest.
const LISTENER: &str = env!("CARGO_BIN_EXE_listen-to-audit");

/// A guest that audits from its start on, or nothing, with an agent whose audit log is as written here.
fn guest(audits: &str, sinks: &str) -> Option<Guest> {
    let line = format!("{COMMAND_LINE} {audits}");
    let listener = format!("if=none,id=listener,format=raw,readonly=on,file={LISTENER}");
    let disk = "virtio-blk-pci,drive=listener";
    let mut guest =
        Guest::with(Options::default().qemu(&["-append", &line, "-drive", &listener, "-device", disk]))?;
    let configuration = format!(
        "policy = \"/run/policy.toml\"\n[[channel]]\nname = \"port.1\"\nmethod = \"virtio-serial\"\n\
         path = \"/dev/virtio-ports/org.qemu.guest_agent.0\"\n[state]\ndirectory = \"/run/agent\"\n[audit]\n{sinks}\n"
    );
    let policy = "version = 1\n[[rule]]\noutcome = \"deny\"\ncommands = [\"guest-get-users\"]\n[[rule]]\noutcome = \"allow\"\n";
    for (name, text) in [("portreeve.toml", configuration.as_str()), ("policy.toml", policy)] {
        guest.output(&format!("cat > /run/{name} <<'END'\n{text}END"));
    }
    guest.output(
        "modprobe virtio_blk; cp /dev/vda /run/listen && chmod 755 /run/listen && (/run/listen > /run/audited 2>&1 &)",
    );
    assert!(guest.becomes_true("grep -q listening /run/audited", Duration::from_secs(20)));
    guest.launch("/opt/portreeve/portreeve run --config /run/portreeve.toml");
    assert!(guest.agent.answers_within(Duration::from_secs(120)), "{}", guest.agent_log());
    Some(guest)
}

/// What it audited of type 1121, AUDIT_TRUSTED_APP.
fn records(guest: &mut Guest) -> Vec<String> {
    guest.output("grep '^type=1121 ' /run/audited || true").lines().map(str::to_owned).collect()
}

/// A member of the text between `msg='` and `'`, as `ausearch` splits it: at spaces.
fn member(record: &str, name: &str) -> Option<String> {
    let text = record.split_once(" msg='")?.1.strip_suffix('\'')?;
    text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// As audit's programs read a value: in quotes as it is, else in hexadecimal.
fn decoded(value: &str) -> Vec<u8> {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"').unwrap().into(),
        None => value
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect(),
    }
}

fn of_command(guest: &mut Guest, command: &str, kind: &str) -> String {
    let is = |record: &String| {
        member(record, "op").as_deref() == Some(command) && member(record, "kind").as_deref() == Some(kind)
    };
    let found = records(guest).into_iter().rfind(is);
    found.unwrap_or_else(|| panic!("no {kind} of {command}: {:#?}\n{}", records(guest), guest.agent_log()))
}

#[test]
fn what_is_asked_stands_in_the_kernels_audit_with_who_says_so_what_was_decided_and_the_whole_record() {
    let Some(mut guest) = guest("audit=1", "sink = \"kernel\"\nrequired = true") else { return };
    a_request_has_its_members(&mut guest);
    the_longest_record_is_in_parts_that_join_to_it(&mut guest);
    no_secret_is_in_it(&mut guest);
    while_filesystems_are_frozen_nothing_comes_and_afterwards_all_of_it(&mut guest);
    guest.stop_agent();
    the_chain_is_whole(&mut guest);
}

fn a_request_has_its_members(guest: &mut Guest) {
    guest.agent.call("guest-get-host-name", ()).unwrap();
    guest.agent.call("guest-get-users", ()).unwrap_err();
    let open = json!({ "path": "/run/it's a \"new\" file", "mode": "w" });
    guest.agent.call("guest-file-open", open).unwrap();

    let record = of_command(guest, "guest-get-host-name", "request");
    // Base, and the audit worker's number in the list of roles; the kernel says so, not the worker.
    assert!(record.contains(" uid=1900000016 "), "{record}");
    assert_eq!(member(&record, "channel").unwrap(), "\"port.1\"");
    assert_eq!(member(&record, "decision").unwrap(), "allow");
    assert_eq!(member(&record, "outcome").unwrap(), "done");
    assert_eq!(member(&record, "exe").unwrap(), "\"/opt/portreeve/portreeve-audit\"");
    assert_eq!(member(&record, "res").unwrap(), "success");
    assert!(record.ends_with(" hostname=? addr=? terminal=? res=success'"), "{record}");
    let line = decoded(&member(&record, "cmd").unwrap());
    let whole: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&whole["command"], &whole["rule"]),
        (&json!("guest-get-host-name"), &json!("/run/policy.toml:5"))
    );
    let hash: String = Sha256::digest(&line).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(member(&record, "sha256").unwrap(), hash);
    assert_eq!(member(&record, "sequence").unwrap(), whole["sequence"].to_string());

    let refused = of_command(guest, "guest-get-users", "request");
    assert_eq!(member(&refused, "decision").unwrap(), "deny");
    assert_eq!(member(&refused, "res").unwrap(), "failed");

    // What changes something has its intent there before it begins.
    let intent = of_command(guest, "guest-file-open", "intent");
    assert_eq!(member(&intent, "outcome").unwrap(), "begins");
    let whole: Value = serde_json::from_slice(&decoded(&member(&intent, "cmd").unwrap())).unwrap();
    assert_eq!(whole["arguments"]["path"], "/run/it's a \"new\" file");
}

fn the_longest_record_is_in_parts_that_join_to_it(guest: &mut Guest) {
    let path = format!("/run/{}", "x\u{1}".repeat(600));
    guest.agent.call("guest-file-open", json!({ "path": path, "mode": "r" })).unwrap_err();
    let last = of_command(guest, "guest-file-open", "request");
    let sequence = member(&last, "sequence").unwrap();
    let parts: Vec<String> = records(guest)
        .into_iter()
        .filter(|record| member(record, "sequence").as_deref() == Some(&sequence))
        .collect();
    assert!(parts.len() > 1, "{parts:#?}");
    let line: Vec<u8> = parts.iter().flat_map(|part| decoded(&member(part, "cmd").unwrap())).collect();
    let hash: String = Sha256::digest(&line).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(member(&last, "sha256").unwrap(), hash);
    let numbers: Vec<String> = parts.iter().map(|part| member(part, "part").unwrap()).collect();
    let wanted: Vec<String> = (1..=parts.len()).map(|number| format!("{number}/{}", parts.len())).collect();
    assert_eq!(numbers, wanted);
}

fn while_filesystems_are_frozen_nothing_comes_and_afterwards_all_of_it(guest: &mut Guest) {
    guest.output("mkdir -p /mnt/loop && dd if=/dev/zero of=/run/disk bs=1M count=16 2>/dev/null && mkfs.ext4 -q /run/disk && mount -o loop /run/disk /mnt/loop");
    let frozen = json!({ "mountpoints": ["/mnt/loop"] });
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze-list", frozen).unwrap(), 1);
    let before = records(guest);
    guest.agent.call("guest-fsfreeze-status", ()).unwrap();
    guest.agent.call("guest-get-host-name", ()).unwrap_err();
    assert_eq!(records(guest), before);
    assert_eq!(member(before.last().unwrap(), "outcome").as_deref(), Some("begins"), "the intent is there");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 1);
    guest.agent.call("guest-get-host-name", ()).unwrap();
    let refused = records(guest).into_iter().any(|record| {
        member(&record, "op").as_deref() == Some("guest-get-host-name")
            && member(&record, "res").as_deref() == Some("failed")
    });
    assert!(refused, "{:#?}", records(guest));
    of_command(guest, "guest-fsfreeze-thaw", "request");
}

/// As in the other sinks (tests/tests/secrets.rs).
fn no_secret_is_in_it(guest: &mut Guest) {
    // "zq-secret", as a password, as input and in a variable.
    let password = json!({ "username": "alice", "password": "enEtc2VjcmV0", "crypted": false });
    guest.agent.call("guest-set-user-password", password).unwrap();
    let exec = json!({ "path": "/bin/true", "env": ["TOKEN=zq-secret"], "input-data": "enEtc2VjcmV0" });
    guest.agent.call("guest-exec", exec).unwrap();
    assert!(of_command(guest, "guest-exec", "intent").contains(" cmd="));
    for record in records(guest) {
        let line = String::from_utf8(decoded(&member(&record, "cmd").unwrap())).unwrap();
        for secret in ["zq-secret", "enEtc2VjcmV0"] {
            assert!(!line.contains(secret) && !record.contains(secret), "{line}");
        }
    }
}

/// From the first record to the last of an agent that has ended.
fn the_chain_is_whole(guest: &mut Guest) {
    let (mut lines, mut hashes) = (Vec::<Vec<u8>>::new(), Vec::new());
    for record in records(guest) {
        let bytes = decoded(&member(&record, "cmd").unwrap());
        match member(&record, "part") {
            Some(part) if !part.starts_with("1/") => lines.last_mut().unwrap().extend(bytes),
            _ => {
                lines.push(bytes);
                hashes.push(member(&record, "sha256").unwrap());
            }
        }
    }
    let (mut prev, mut kinds) = ("0".repeat(64), Vec::new());
    for ((line, hash), sequence) in lines.iter().zip(hashes).zip(1..) {
        let whole: Value = serde_json::from_slice(line).unwrap();
        assert_eq!((&whole["prev"], &whole["sequence"]), (&json!(prev), &json!(sequence)), "{whole}");
        kinds.push(whole["kind"].as_str().unwrap().to_owned());
        prev = hash;
    }
    assert_eq!(
        (kinds.first().unwrap().as_str(), kinds.last().unwrap().as_str()),
        ("start", "stop"),
        "{kinds:?}"
    );
}

/// Not turned off, but turned on by nobody.
#[test]
fn a_kernel_that_audits_nothing_has_a_required_record_refused() {
    let Some(mut guest) = guest("", "sink = \"kernel\"\nrequired = true") else { return };
    let refused = guest.agent.call("guest-get-host-name", ()).unwrap_err().desc;
    assert!(refused.contains("the kernel audits nothing"), "{refused}");
    assert_eq!(records(&mut guest), Vec::<String>::new());
    guest.agent.call("guest-ping", ()).unwrap();
}
