//! Debian's qemu-ga and Portreeve in one guest, asked the same: whatever only reads is answered the same.
//!
//! Whatever changes something is compared by what it does, in `same_effects.rs` and where [`ELSEWHERE`] says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use serde_json::{Value, json};
use vm::{Guest, Options};

/// What is asked, and what is taken out of both answers before they are compared, because time changes it.
const ASKED: [(&str, &[&str]); 14] = [
    ("guest-ping", &[]),
    ("guest-fsfreeze-status", &[]),
    ("guest-get-osinfo", &[]),
    ("guest-get-host-name", &[]),
    ("guest-get-timezone", &[]),
    ("guest-get-users", &[]),
    ("guest-get-vcpus", &[]),
    ("guest-get-memory-blocks", &[]),
    ("guest-get-memory-block-info", &[]),
    ("guest-network-get-interfaces", &["statistics"]),
    ("guest-get-fsinfo", &["used-bytes"]),
    ("guest-get-disks", &[]),
    ("guest-get-diskstats", &["stats"]),
    (
        "guest-get-cpustats",
        &["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice"],
    ),
];

/// What is compared by what it does, and in which test.
const ELSEWHERE: [(&str, &str, &str); 27] = [
    ("guest-sync", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-sync-delimited", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-info", "same_answers", "what_only_reads_is_answered_as_by_qemu_ga"),
    ("guest-get-time", "same_answers", "what_only_reads_is_answered_as_by_qemu_ga"),
    ("guest-set-time", "same_effects", "clocks_and_passwords_are_set_as_by_qemu_ga"),
    ("guest-fstrim", "same_effects", "filesystems_are_frozen_and_trimmed_as_by_qemu_ga"),
    ("guest-exec", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-exec-status", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-open", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-close", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-read", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-write", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-seek", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-file-flush", "same_effects", "files_and_programs_are_handled_as_by_qemu_ga"),
    ("guest-fsfreeze-freeze", "same_effects", "filesystems_are_frozen_and_trimmed_as_by_qemu_ga"),
    ("guest-fsfreeze-freeze-list", "same_effects", "filesystems_are_frozen_and_trimmed_as_by_qemu_ga"),
    ("guest-fsfreeze-thaw", "same_effects", "filesystems_are_frozen_and_trimmed_as_by_qemu_ga"),
    ("guest-set-vcpus", "same_effects", "cpus_and_memory_go_off_and_on_as_by_qemu_ga"),
    ("guest-set-memory-blocks", "same_effects", "cpus_and_memory_go_off_and_on_as_by_qemu_ga"),
    ("guest-set-user-password", "same_effects", "clocks_and_passwords_are_set_as_by_qemu_ga"),
    ("guest-ssh-get-authorized-keys", "account", "keys_are_listed_added_and_removed_as_by_qemu_ga"),
    ("guest-ssh-add-authorized-keys", "account", "keys_are_listed_added_and_removed_as_by_qemu_ga"),
    ("guest-ssh-remove-authorized-keys", "account", "keys_are_listed_added_and_removed_as_by_qemu_ga"),
    ("guest-shutdown", "same_effects", "each_way_down_is_seen_by_qemu_as_with_qemu_ga"),
    ("guest-suspend-ram", "same_effects", "each_way_down_is_seen_by_qemu_as_with_qemu_ga"),
    ("guest-suspend-disk", "same_effects", "each_way_down_is_seen_by_qemu_as_with_qemu_ga"),
    ("guest-suspend-hybrid", "same_effects", "each_way_down_is_seen_by_qemu_as_with_qemu_ga"),
];

/// Where the answers differ on purpose: the command, a member that only one of the two has, why.
const WANTED: [(&str, &str, &str); 1] =
    [("guest-get-fsinfo", "total-bytes-privileged", "newer than qemu-ga 7.2")];

fn without(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !names.contains(&name.as_str()));
            members.values_mut().for_each(|value| without(value, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| without(value, names)),
        _ => {}
    }
}

/// Lists that qemu-ga gives in the order of a folder's entries.
fn sorted(command: &str, value: &mut Value) {
    if let (Value::Array(items), "guest-get-vcpus" | "guest-get-memory-blocks" | "guest-get-disks") =
        (value, command)
    {
        items.sort_by_key(Value::to_string);
    }
}

#[test]
fn what_only_reads_is_answered_as_by_qemu_ga() {
    let options = Options::default()
        .disks()
        .processors("2")
        .qemu(&["-nic", "user,model=virtio-net-pci,restrict=on,ipv6=off"]);
    let Some(mut guest) = Guest::with(options) else { return };
    guest.output("modprobe virtio_net; n=0; until ip link show eth0; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0");
    // The address of its own comes a moment later, when nobody else has it.
    let settled = "ip addr show eth0 | grep fe80 | grep -vq tentative";
    assert!(guest.becomes_true(settled, std::time::Duration::from_secs(20)));
    let mut seen: Vec<Vec<(&str, Value)>> = Vec::new();
    let mut lists: Vec<Vec<Value>> = Vec::new();
    for stock in [true, false] {
        if stock {
            guest.start_qemu_ga(&[])
        } else {
            guest.start_portreeve(&[])
        }
        let answers = ASKED.map(|(command, _)| match guest.agent.call(command, ()) {
            Ok(answer) => (command, answer),
            Err(error) => (command, json!(error.to_string())),
        });
        seen.push(answers.to_vec());
        let info = guest.agent.call("guest-info", ()).unwrap();
        lists.push(info["supported_commands"].as_array().unwrap().clone());
        let told = guest.agent.call("guest-get-time", ()).unwrap().as_i64().unwrap() / 1_000_000_000;
        let now: i64 = guest.output("date +%s").parse().unwrap();
        assert!((0..=5).contains(&(now - told)), "{now} {told}");
        guest.stop_agent();
    }
    for (command, member, why) in WANTED {
        let has = |answers: &[(&str, Value)]| {
            let answer = answers.iter().find(|(of, _)| *of == command).unwrap();
            answer.1.to_string().contains(&format!("\"{member}\":"))
        };
        assert_ne!(has(&seen[0]), has(&seen[1]), "{command} no longer differs in {member}: {why}");
    }
    for (command, answer) in seen.iter_mut().flatten() {
        let changing = ASKED.iter().find(|(of, _)| of == command).unwrap().1.iter().copied();
        let wanted = WANTED.iter().filter(|(of, ..)| of == command).map(|(_, member, _)| *member);
        without(answer, &changing.chain(wanted).collect::<Vec<_>>());
        sorted(command, answer);
    }
    let different: Vec<String> = seen[0]
        .iter()
        .zip(&seen[1])
        .filter(|(stock, ours)| stock != ours)
        .map(|((command, stock), (_, ours))| format!("{command}:\n  qemu-ga   {stock}\n  portreeve {ours}"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    // Whatever qemu-ga has is here, too, and is compared somewhere.
    for entry in &lists[0] {
        let name = entry["name"].as_str().unwrap();
        // qemu-ga 7.2 lists it, disabled, where nobody can enable it.
        if name == "guest-get-devices" {
            assert_eq!(entry["enabled"], false);
            assert!(lists[1].iter().all(|entry| entry["name"] != name));
            continue;
        }
        let elsewhere = ELSEWHERE.iter().any(|(command, file, test)| {
            let source = std::fs::read_to_string(format!("tests/{file}.rs")).unwrap();
            let body = source.split_once(&format!("fn {test}()")).unwrap().1;
            *command == name && body.split("\n}\n").next().unwrap().contains(&format!("\"{name}\""))
        });
        let asked = ASKED.iter().any(|(command, _)| *command == name);
        assert!(asked || elsewhere, "{name} is compared nowhere");
        assert!(lists[1].contains(entry), "{entry}");
    }
}
