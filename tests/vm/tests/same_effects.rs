//! Debian's qemu-ga and Portreeve in one guest, told the same: whatever changes something does the same.
//!
//! What differs on purpose is in the tables below, each with the reason that docs/protocol.md gives. A difference that is not there
//! fails a test, and so does one that is there and no longer shows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::{Value, json};
use vm::{Guest, Options};

/// Commands that begin so, what is seen of them with qemu-ga 7.2, what with ours, and why.
type Difference = (&'static str, &'static str, &'static str, &'static str);

const NEWER: &str = "the text of qemu-ga 10.2";

const FILES: &[Difference] = &[
    ("guest-file-", "666 ", "644 ", "new files are not writable for everybody"),
    (
        "guest-exec",
        "Guest agent command failed, error was 'Failed to execute child process “/nothing” (No such file or directory)'",
        "Failed to execute child process “/nothing” (No such file or directory)",
        NEWER,
    ),
    ("guest-exec-status", "Invalid parameter 'pid'", "PID it does not exist", NEWER),
];

const CLOCKS: &[Difference] = &[
    (
        "guest-set-time",
        "Failed to set time to guest: Invalid argument",
        "Invalid time",
        "a time before 1970 is refused before the kernel is asked",
    ),
    (
        "guest-set-time",
        "GenericError: Invalid time; 17950000 17950000",
        "{}; 40000000 17950000",
        "the clock goes beyond 2069, where only a PC's hardware clock ends",
    ),
    (
        "guest-set-user-password",
        "failed to set user password;",
        "failed to set user password: chpasswd: (user bob) pam_chauthtok() failed, error:\nUser not known to the underlying \
         authentication module\nchpasswd: (line 1, user bob) password not changed\n;",
        "what chpasswd said is told, without the password",
    ),
];

const FREEZING: &[Difference] =
    &[("guest-fsfreeze-freeze", "the agent is in frozen state", "the command is not allowed", NEWER)];

const HOTPLUG: &[Difference] = &[];

const DOWN: &[Difference] = &[
    (
        "guest-suspend-disk",
        "child process has failed to suspend",
        "suspend: cannot write to '/sys/power/state': No such device",
        "the kernel is asked, and its reason told",
    ),
    (
        "guest-suspend-hybrid",
        "the requested suspend mode is not supported by the guest",
        "suspend: cannot write to '/sys/power/state': No such device",
        "the kernel is asked, and its reason told",
    ),
];

/// A request, and a command in the guest that shows what it did. `"it"` stands for what the open or exec before has given.
type Step = (&'static str, Value, &'static str);

/// Nothing in the guest to look at.
const NOTHING: &str = "true";

/// What was seen of one step: the command, what was asked, and answer and effect.
type Seen = (&'static str, String, String);

fn start(guest: &mut Guest, stock: bool) {
    if stock { guest.start_qemu_ga(&[]) } else { guest.start_portreeve(&[]) }
}

/// The same steps with both, each after the same preparation.
fn compare(guest: &mut Guest, before: &str, steps: &[Step], wanted: &[Difference]) {
    let seen = [true, false].map(|stock| {
        guest.output(before);
        start(guest, stock);
        let mut it = Value::Null;
        let seen = steps.iter().map(|(command, arguments, look)| {
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
                Ok(answer) => without_measures(answer).to_string(),
                Err(error) => error
                    .to_string()
                    .replace(&format!("PID {it} "), "PID it ")
                    .replace(&format!("'{it}'"), "'it'"),
            };
            (*command, arguments.to_string(), format!("{said}; {}", guest.sh(look).1))
        });
        let seen: Vec<Seen> = seen.collect();
        guest.stop_agent();
        seen
    });
    assert_eq!(unwanted(wanted, &seen), "");
}

/// What depends on what was trimmed before.
fn without_measures(mut answer: Value) -> Value {
    for path in answer.get_mut("paths").and_then(Value::as_array_mut).into_iter().flatten() {
        let has = path.get("trimmed").is_some();
        if has {
            path["trimmed"] = json!("some");
        }
    }
    answer
}

/// What differs and is not wanted, and what is wanted and does not differ.
fn unwanted(wanted: &[Difference], [stock, ours]: &[Vec<Seen>; 2]) -> String {
    let mut shown = vec![false; wanted.len()];
    let mut wrong = Vec::new();
    for ((command, arguments, theirs), (.., ours)) in
        stock.iter().zip(ours).filter(|(stock, ours)| stock != ours)
    {
        let row = wanted.iter().position(|(of, from, to, _)| {
            command.starts_with(of) && theirs.contains(from) && theirs.replace(from, to) == *ours
        });
        if let Some(row) = row {
            shown[row] = true;
        } else {
            wrong.push(format!("{command} {arguments}:\n  qemu-ga   {theirs}\n  portreeve {ours}"));
        }
    }
    for ((command, theirs, _, why), _) in wanted.iter().zip(shown).filter(|(_, shown)| !shown) {
        wrong.push(format!("{command} no longer differs in {theirs:?}: {why}"));
    }
    assert_eq!(stock.len(), ours.len());
    wrong.join("\n")
}

#[test]
fn files_and_programs_are_handled_as_by_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    let show = "cat /run/t 2>&1; stat -c '%a %s %U %G' /run/t 2>&1; cat /run/made 2>&1";
    let steps: Vec<Step> = vec![
        ("guest-sync", json!({ "id": 1_763_630_000_000_i64 }), NOTHING),
        ("guest-sync-delimited", json!({ "id": -1 }), NOTHING),
        ("guest-file-open", json!({ "path": "/run/t" }), show),
        ("guest-file-open", json!({ "path": "/run/none/t", "mode": "w" }), show),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "x" }), show),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "w+" }), show),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "aGVsbG8gd29ybGQ=" }), show),
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
        ("guest-file-seek", json!({ "handle": "it", "offset": 40, "whence": 2 }), show),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "IQ==" }), NOTHING),
        ("guest-file-close", json!({ "handle": "it" }), show),
        ("guest-file-close", json!({ "handle": "it" }), NOTHING),
        ("guest-file-read", json!({ "handle": 77 }), NOTHING),
        ("guest-file-open", json!({ "path": "/run/t", "mode": "a" }), "chmod 640 /run/t; chown alice /run/t"),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "Pw==" }), NOTHING),
        ("guest-file-read", json!({ "handle": "it" }), NOTHING),
        ("guest-file-close", json!({ "handle": "it" }), show),
        // What is there keeps its mode and owner.
        ("guest-file-open", json!({ "path": "/run/t", "mode": "w" }), show),
        ("guest-file-close", json!({ "handle": "it" }), show),
        ("guest-file-open", json!({ "path": "/run", "mode": "r" }), NOTHING),
        ("guest-file-read", json!({ "handle": "it" }), NOTHING),
        ("guest-file-close", json!({ "handle": "it" }), NOTHING),
        // The end of a pipe that nobody writes to, and a device that is full.
        ("guest-file-open", json!({ "path": "/run/pipe", "mode": "w" }), NOTHING),
        ("guest-file-open", json!({ "path": "/dev/full", "mode": "w" }), NOTHING),
        ("guest-file-write", json!({ "handle": "it", "buf-b64": "Pw==" }), NOTHING),
        ("guest-file-flush", json!({ "handle": "it" }), NOTHING),
        ("guest-exec", json!({ "path": "/nothing" }), NOTHING),
        (
            "guest-exec",
            json!({ "path": "sh", "arg": ["-c", "cat; echo \"$A\" > /run/made; pwd; id -u; echo e >&2; exit 3"],
                "env": ["A=b c"], "input-data": "aW4=", "capture-output": true }),
            NOTHING,
        ),
        ("guest-exec-status", json!({ "pid": "it" }), show),
        ("guest-exec-status", json!({ "pid": "it" }), NOTHING),
        ("guest-exec", json!({ "path": "/bin/sh", "arg": ["-c", "kill -9 $$"] }), NOTHING),
        ("guest-exec-status", json!({ "pid": "it" }), NOTHING),
    ];
    compare(&mut guest, "rm -f /run/t /run/made /run/pipe; mkfifo /run/pipe", &steps, FILES);
}

#[test]
fn clocks_and_passwords_are_set_as_by_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    // Both clocks to a hundred seconds: the time goes on meanwhile.
    let clocks = "echo $(( $(date +%s) / 100 )) $(( $(cat /sys/class/rtc/rtc0/since_epoch) / 100 ))";
    let shadow = "h=$(grep ^alice: /etc/shadow | cut -d: -f2); echo $h | cut -c1-3; s=$(echo $h | cut -d'$' -f3); \
                  [ \"$(mkpasswd -m sha512 -S $s wonder:land)\" = \"$h\" ] && echo is it; stat -c '%a %U %G' /etc/shadow";
    let steps: Vec<Step> = vec![
        ("guest-set-time", json!({ "time": 1_795_000_030_000_000_000_i64 }), clocks),
        ("guest-set-time", json!({ "time": -1 }), clocks),
        ("guest-set-time", json!({ "time": 4_000_000_000_000_000_000_i64 }), clocks),
        ("guest-ping", json!(null), "date -s @1000000030 >/dev/null"),
        // From the hardware clock.
        ("guest-set-time", json!(null), clocks),
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
            "md5sum /etc/shadow",
        ),
        (
            "guest-set-user-password",
            json!({ "username": "bob", "password": "d29uZGVyOmxhbmQ=", "crypted": false }),
            "md5sum /etc/shadow",
        ),
    ];
    compare(&mut guest, "date -s @1795000000", &steps, CLOCKS);
}

#[test]
fn filesystems_are_frozen_and_trimmed_as_by_qemu_ga() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    // Who can write within a second. Those who cannot do it after the thaw.
    let writers = "rm -f /run/wrote.*; for m in ext4 xfs lvm loop; do (echo x > /mnt/$m/w && touch /run/wrote.$m) \
                   </dev/null >/dev/null 2>&1 & done; sleep 1; ls /run | grep ^wrote";
    let written = "n=0; while [ $(ls /run | grep -c ^wrote) != 4 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || break; done; \
                   ls /run | grep ^wrote";
    let steps: Vec<Step> = vec![
        ("guest-fsfreeze-status", json!(null), writers),
        ("guest-fsfreeze-freeze", json!(null), writers),
        ("guest-fsfreeze-status", json!(null), NOTHING),
        ("guest-fsfreeze-freeze", json!(null), NOTHING),
        ("guest-fsfreeze-thaw", json!(null), written),
        ("guest-fsfreeze-thaw", json!(null), writers),
        (
            "guest-fsfreeze-freeze-list",
            json!({ "mountpoints": ["/mnt/xfs", "/nowhere", "/mnt/loop"] }),
            writers,
        ),
        ("guest-fsfreeze-status", json!(null), NOTHING),
        ("guest-fsfreeze-thaw", json!(null), written),
        ("guest-fsfreeze-freeze-list", json!({ "mountpoints": [] }), writers),
        ("guest-fsfreeze-status", json!(null), NOTHING),
        ("guest-fstrim", json!({ "minimum": 4096 }), NOTHING),
        ("guest-fstrim", json!(null), NOTHING),
    ];
    compare(&mut guest, "true", &steps, FREEZING);
    // What the host gets back, of 40 MiB.
    let blocks = |guest: &Guest| std::fs::metadata(guest.folder().join("ext4.img")).unwrap().blocks();
    let given_back = [true, false].map(|stock| {
        start(&mut guest, stock);
        guest.output("dd if=/dev/urandom of=/mnt/ext4/big bs=1M count=40 2>/dev/null; sync");
        let full = blocks(&guest);
        guest.output("rm /mnt/ext4/big; sync");
        guest.agent.call("guest-fstrim", ()).unwrap();
        guest.stop_agent();
        (full - blocks(&guest)) >> 16
    });
    assert_eq!(given_back, [1, 1], "of 32 MiB");
}

#[test]
fn cpus_and_memory_go_off_and_on_as_by_qemu_ga() {
    let options = Options::default().processors("2").memory("512,slots=2,maxmem=2G");
    let Some(mut guest) = Guest::with(options) else { return };
    guest.qemu("object-add", json!({ "qom-type": "memory-backend-ram", "id": "m1", "size": 256 << 20 }));
    guest.qemu("device_add", json!({ "driver": "pc-dimm", "id": "d1", "memdev": "m1" }));
    let plugged = "[ -e /sys/devices/system/memory/memory33/state ]";
    assert!(guest.becomes_true(plugged, Duration::from_secs(30)));
    let cpus = "cat /sys/devices/system/cpu/online";
    let blocks = "cat /sys/devices/system/memory/memory3[23]/state";
    let cpu = |list: &[(i64, bool)]| json!({ "vcpus": list.iter().map(|(number, online)| json!({ "logical-id": number, "online": online })).collect::<Vec<_>>() });
    let block = |list: &[(i64, bool)]| json!({ "mem-blks": list.iter().map(|(number, online)| json!({ "phys-index": number, "online": online })).collect::<Vec<_>>() });
    let steps: Vec<Step> = vec![
        ("guest-set-vcpus", cpu(&[(1, false)]), cpus),
        ("guest-set-vcpus", cpu(&[(1, true), (0, false)]), cpus),
        ("guest-set-vcpus", cpu(&[(0, false), (1, false)]), cpus),
        ("guest-set-vcpus", cpu(&[(1, false), (7, false)]), cpus),
        ("guest-set-vcpus", cpu(&[(7, false), (1, true)]), cpus),
        ("guest-set-vcpus", cpu(&[]), cpus),
        ("guest-set-memory-blocks", block(&[(33, true), (999, true), (32, true)]), blocks),
        ("guest-set-memory-blocks", block(&[(33, true)]), blocks),
        ("guest-set-memory-blocks", block(&[(33, false)]), blocks),
        ("guest-set-memory-blocks", block(&[(33, false), (33, true)]), blocks),
        ("guest-set-memory-blocks", block(&[]), blocks),
    ];
    let off = "echo 1 > /sys/devices/system/cpu/cpu1/online; for n in 33 32; do echo offline > /sys/devices/system/memory/memory$n/state; done; true";
    compare(&mut guest, off, &steps, HOTPLUG);
}

/// What QEMU is told, whether the agent says anything, and whether the guest went down in order.
#[test]
fn each_way_down_is_seen_by_qemu_as_with_qemu_ga() {
    let way = |stock: bool,
               options: &Options,
               command: &'static str,
               arguments: Value,
               event: &str|
     -> Option<Seen> {
        let mut guest = Guest::with(options.clone())?;
        start(&mut guest, stock);
        guest.agent.send(command, arguments.clone());
        let seen = match event {
            // Each way that ends in order says so on the console, and a halt nowhere else.
            "" => {
                let until = std::time::Instant::now() + Duration::from_secs(60);
                while !guest.console().contains("vm: orderly shutdown") && std::time::Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(50));
                }
                "halted".to_owned()
            }
            // Refused.
            "error" => guest.agent.answer(command).unwrap_err().to_string(),
            event => format!("{event} {}", guest.qmp.event(event)),
        };
        let answer = guest.agent.line_within(Duration::from_millis(300));
        let order = guest.console().contains("vm: orderly shutdown");
        Some((command, arguments.to_string(), format!("{seen}; answer {answer:?}; in order: {order}")))
    };
    let plain = Options::default();
    let swap = Options::default().swap();
    let ways = [
        (&plain, "guest-shutdown", json!(null), "SHUTDOWN"),
        (&plain, "guest-shutdown", json!({ "mode": "powerdown" }), "SHUTDOWN"),
        (&plain, "guest-shutdown", json!({ "mode": "reboot" }), "SHUTDOWN"),
        (&plain, "guest-shutdown", json!({ "mode": "halt" }), ""),
        (&plain, "guest-shutdown", json!({ "mode": "sleep" }), "error"),
        (&plain, "guest-suspend-ram", json!(null), "SUSPEND"),
        (&plain, "guest-suspend-disk", json!(null), "error"),
        (&plain, "guest-suspend-hybrid", json!(null), "error"),
        (&swap, "guest-suspend-disk", json!(null), "SHUTDOWN"),
    ];
    let of = |stock: bool| -> Option<Vec<Seen>> {
        ways.iter()
            .map(|(options, command, arguments, event)| {
                way(stock, options, command, arguments.clone(), event)
            })
            .collect()
    };
    let (Some(stock), Some(ours)) = (of(true), of(false)) else { return };
    assert_eq!(unwanted(DOWN, &[stock, ours]), "");
}

#[test]
fn each_wanted_difference_has_its_reason_in_the_documentation() {
    let text = std::fs::read_to_string("../../docs/protocol.md").unwrap();
    for (command, _, _, why) in [FILES, CLOCKS, FREEZING, HOTPLUG, DOWN].concat() {
        assert!(text.contains(why), "{command}: {why}");
    }
}

#[test]
fn a_difference_that_is_not_in_the_table_is_told_and_so_is_a_row_that_no_longer_differs() {
    let seen = |text: &str| vec![("guest-file-open", "{}".to_owned(), text.to_owned())];
    let table: &[Difference] = &[("guest-file-", "666 ", "644 ", "a reason")];
    assert_eq!(unwanted(table, &[seen("666 root"), seen("644 root")]), "");
    assert_eq!(
        unwanted(table, &[seen("644 root"), seen("644 root")]),
        "guest-file- no longer differs in \"666 \": a reason"
    );
    assert_eq!(
        unwanted(&[], &[seen("666 root"), seen("644 root")]),
        "guest-file-open {}:\n  qemu-ga   666 root\n  portreeve 644 root"
    );
    assert!(unwanted(table, &[seen("666 root"), seen("644 alice")]).contains("portreeve 644 alice"));
}
