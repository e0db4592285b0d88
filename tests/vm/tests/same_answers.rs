//! Debian's qemu-ga and Portreeve in one guest, asked the same: they answer the same, and do the same.
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

/// What is compared in another way, and where.
const ELSEWHERE: [(&str, &str); 27] = [
    ("guest-sync", "here: files_and_programs"),
    ("guest-sync-delimited", "here: files_and_programs"),
    ("guest-info", "here: what_only_reads"),
    ("guest-get-time", "here: what_only_reads"),
    ("guest-set-time", "here: what_changes"),
    ("guest-fstrim", "here: what_changes"),
    ("guest-exec", "here: files_and_programs"),
    ("guest-exec-status", "here: files_and_programs"),
    ("guest-file-open", "here: files_and_programs"),
    ("guest-file-close", "here: files_and_programs"),
    ("guest-file-read", "here: files_and_programs"),
    ("guest-file-write", "here: files_and_programs"),
    ("guest-file-seek", "here: files_and_programs"),
    ("guest-file-flush", "here: files_and_programs"),
    ("guest-fsfreeze-freeze", "fsfreeze.rs: counts_and_effects"),
    ("guest-fsfreeze-freeze-list", "fsfreeze.rs: counts_and_effects"),
    ("guest-fsfreeze-thaw", "fsfreeze.rs: counts_and_effects"),
    ("guest-set-vcpus", "hotplug.rs: answers_and_effects"),
    ("guest-set-memory-blocks", "hotplug.rs: answers_and_effects"),
    ("guest-set-user-password", "here: what_changes"),
    ("guest-ssh-get-authorized-keys", "account.rs: keys_are_listed"),
    ("guest-ssh-add-authorized-keys", "account.rs: keys_are_listed"),
    ("guest-ssh-remove-authorized-keys", "account.rs: keys_are_listed"),
    ("guest-shutdown", "power.rs: each_way_down"),
    ("guest-suspend-ram", "power.rs: each_way_down"),
    ("guest-suspend-disk", "power.rs: each_way_down"),
    ("guest-suspend-hybrid", "power.rs: each_way_down"),
];

/// Where the answers differ on purpose: the command, a member that only one of the two has, why.
const WANTED: [(&str, &str, &str); 2] = [
    ("guest-get-fsinfo", "total-bytes-privileged", "newer than qemu-ga 7.2"),
    ("guest-get-disks", "serial", "qemu-ga 7.2 asks udev, which this guest has not; ours reads sysfs, too"),
];

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
        start(&mut guest, stock);
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
        let compared = ASKED.map(|(command, _)| command).contains(&name)
            || ELSEWHERE.map(|(command, _)| command).contains(&name);
        assert!(compared, "{name} is compared nowhere");
        assert!(lists[1].contains(entry), "{entry}");
    }
}

fn start(guest: &mut Guest, stock: bool) {
    if stock { guest.start_qemu_ga(&[]) } else { guest.start_portreeve(&[]) }
}

/// A request, and a command in the guest that shows what it did. `"it"` stands for what the open or exec before has given.
type Step = (&'static str, Value, &'static str);

/// Nothing in the guest to look at.
const NOTHING: &str = "true";

/// The same steps with both, after the same preparation: same answers, same effects.
fn compare(guest: &mut Guest, before: &str, steps: &[Step]) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for stock in [true, false] {
        guest.output(before);
        start(guest, stock);
        let mut it = Value::Null;
        let mut of_one = Vec::new();
        for (command, arguments, look) in steps {
            let mut filled = arguments.clone();
            for name in ["handle", "pid"] {
                if filled.get(name) == Some(&json!("it")) {
                    filled[name] = it.clone();
                }
            }
            let mut answer = guest.agent.call(command, filled.clone());
            while answer.as_ref().is_ok_and(|answer| answer["exited"] == false) {
                answer = guest.agent.call(command, filled.clone());
            }
            let said = match answer {
                Ok(opened) if *command == "guest-file-open" => {
                    it = opened;
                    "a handle".to_owned()
                }
                Ok(started) if *command == "guest-exec" => {
                    it = started["pid"].clone();
                    "a process".to_owned()
                }
                Ok(answer) => answer.to_string(),
                Err(error) => error.to_string(),
            };
            of_one.push(format!("{command} {arguments}: {said}; {}", guest.sh(look).1));
        }
        seen.push(of_one);
        guest.stop_agent();
    }
    for (stock, ours) in seen[0].iter().zip(&seen[1]) {
        assert_eq!(ours, stock);
    }
}

#[test]
fn files_and_programs_are_handled_as_by_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    let show = "cat /run/t 2>&1; stat -c '%a %s' /run/t 2>&1; cat /run/made 2>&1";
    let steps: Vec<Step> = vec![
        ("guest-sync", json!({ "id": 1_763_630_000_000_i64 }), NOTHING),
        ("guest-sync-delimited", json!({ "id": -1 }), NOTHING),
        ("guest-file-open", json!({ "path": "/run/t" }), show),
        ("guest-file-open", json!({ "path": "/run/none/t", "mode": "w" }), show),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "x" }), show),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "w+" }), show),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "aGVsbG8gd29ybGQ=" }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "aGVsbG8gd29ybGQ=", "count": 5 }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "aGVsbG8=", "count": 50 }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "a b" }), NOTHING),
        ("guest-file-flush", json!({ "handle": "it" }), show),
        ("guest-file-seek", json!({ "handle": "it", "offset": 6, "whence": "set" }), NOTHING),
        ("guest-file-read", json!({ "handle": "it", "count": 5 }), NOTHING),
        ("guest-file-seek", json!({ "handle": "it", "offset": -2, "whence": "cur" }), NOTHING),
        ("guest-file-read", json!({ "handle": "it", "count": 1000 }), NOTHING),
        ("guest-file-read", json!({ "handle": "it" }), NOTHING),
        ("guest-file-read", json!({ "handle": "it", "count": -1 }), NOTHING),
        ("guest-file-read", json!({ "handle": "it", "count": 10_000_000_000_i64 }), NOTHING),
        ("guest-file-seek", json!({ "handle": "it", "offset": 1, "whence": 2 }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "IQ==" }), NOTHING),
        ("guest-file-close", json!({ "handle": "it" }), show),
        ("guest-file-close", json!({ "handle": "it" }), NOTHING),
        ("guest-file-read", json!({ "handle": 77 }), NOTHING),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "a" }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "Pw==" }), NOTHING),
        ("guest-file-close", json!({ "handle": "it" }), show),
        ("guest-exec", json!({ "path": "/nothing" }), NOTHING),
        (
            "guest-exec",
            json!({ "path": "sh", "arg": ["-c", "cat; echo \"$A\" > /run/made; echo e >&2; exit 3"], "env": ["A=b c"],
                "input-data": "aW4=", "capture-output": true }),
            NOTHING,
        ),
        ("guest-exec-status", json!({ "pid": "it" }), show),
        ("guest-exec-status", json!({ "pid": "it" }), NOTHING),
        ("guest-exec", json!({ "path": "/bin/sh", "arg": ["-c", "kill -9 $$"] }), NOTHING),
        ("guest-exec-status", json!({ "pid": "it" }), NOTHING),
        ("guest-exec-status", json!({ "pid": 0 }), NOTHING),
    ];
    compare(&mut guest, "rm -f /run/t /run/made", &steps);
}

#[test]
fn what_changes_clock_passwords_and_disks_does_it_as_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    // Both clocks to the next ten seconds or so: the time goes on meanwhile.
    let clocks = "echo $(( $(date +%s) / 100 )) $(( $(cat /sys/class/rtc/rtc0/since_epoch) / 100 ))";
    let shadow = "h=$(grep ^alice: /etc/shadow | cut -d: -f2); echo $h | cut -c1-3; s=$(echo $h | cut -d'$' -f3); \
                  [ \"$(mkpasswd -m sha512 -S $s wonder:land)\" = \"$h\" ] && echo is it";
    let steps: Vec<Step> = vec![
        // In the middle of a hundred seconds.
        ("guest-set-time", json!({ "time": 1_795_000_030_000_000_000_i64 }), clocks),
        ("guest-set-time", json!({ "time": -1 }), clocks),
        (
            "guest-set-user-password",
            json!({ "username": "alice", "password": "d29uZGVyOmxhbmQ=", "crypted": false }),
            shadow,
        ),
        (
            "guest-set-user-password",
            json!({ "username": "alice", "password": "JDYkYWJjJGRlZg==", "crypted": true }),
            "grep ^alice: /etc/shadow | cut -d: -f2",
        ),
        (
            "guest-set-user-password",
            json!({ "username": "a:b", "password": "YQ==", "crypted": false }),
            NOTHING,
        ),
    ];
    compare(&mut guest, "true", &steps);
    // What is free depends on what was trimmed before.
    let mut trimmed = Vec::new();
    for stock in [true, false] {
        start(&mut guest, stock);
        let mut answer = guest.agent.call("guest-fstrim", json!({ "minimum": 4096 })).unwrap();
        without(&mut answer, &["trimmed"]);
        trimmed.push(answer);
        guest.stop_agent();
    }
    assert_eq!(trimmed[0], trimmed[1]);
    assert_eq!(trimmed[1]["paths"].as_array().unwrap().len(), 4);
}
