//! Freezing, in a guest with four filesystems: ext4, xfs, ext4 on a logical volume, ext4 in a file on the first.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use vm::{Guest, Options};

const MOUNTS: [&str; 4] = ["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"];
const SOON: Duration = Duration::from_secs(20);

/// Writers that come to a stop when their filesystem is frozen; what they wrote is in `FILE.done`.
fn start_writers(guest: &mut Guest) {
    for mount in MOUNTS {
        guest.output(&format!(
            "(echo x > {mount}/w; sync; touch /run/done{}) >/dev/null 2>&1 &",
            mount.replace('/', ".")
        ));
    }
}

fn written(guest: &mut Guest) -> usize {
    guest.output("ls /run | grep -c done || true").parse().unwrap()
}

fn nothing_is_frozen(guest: &mut Guest) {
    for mount in MOUNTS {
        let write = format!(
            "(echo y > {mount}/y && touch /run/y) & n=0; while [ ! -e /run/y ]; do n=$((n+1)); [ $n -gt 200 ] && exit 1; sleep 0.05; done; rm /run/y"
        );
        assert_eq!(guest.sh(&write).0, 0, "{mount} is frozen");
    }
}

#[test]
fn a_freeze_stops_every_writer_and_the_thaw_lets_all_of_them_go_on() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen");
    start_writers(&mut guest);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(written(&mut guest), 0);

    let refused = |guest: &mut Guest, command: &str| guest.agent.call(command, ()).unwrap_err().to_string();
    assert_eq!(
        refused(&mut guest, "guest-fsfreeze-freeze"),
        "CommandNotFound: Command guest-fsfreeze-freeze has been disabled: the command is not allowed"
    );
    assert_eq!(
        refused(&mut guest, "guest-get-osinfo"),
        "CommandNotFound: Command guest-get-osinfo has been disabled: the command is not allowed"
    );
    let info = guest.agent.call("guest-info", ()).unwrap();
    let mut enabled: Vec<&str> = info["supported_commands"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|command| command["enabled"] == true)
        .map(|command| command["name"].as_str().unwrap())
        .collect();
    enabled.sort_unstable();
    assert_eq!(
        enabled,
        [
            "guest-fsfreeze-status",
            "guest-fsfreeze-thaw",
            "guest-info",
            "guest-ping",
            "guest-sync",
            "guest-sync-delimited"
        ]
    );

    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
    assert!(guest.becomes_true("[ $(ls /run | grep -c done) = 4 ]", SOON));
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 0);
    guest.agent.call("guest-get-osinfo", ()).unwrap();
}

#[test]
fn phoenix_freezes_and_thaws_the_same_and_both_dialects_see_one_state() {
    let Some(mut guest) = Guest::with(Options::default().disks().port("phoenix")) else { return };
    let configuration = "policy = \"qemu-ga\"\n[[channel]]\nname = \"q\"\nmethod = \"virtio-serial\"\n[[channel]]\nname = \"p\"\nmethod = \"virtio-serial\"\npath = \"/dev/virtio-ports/phoenix\"\ndialects = [\"phoenix\"]\n[state]\ndirectory = \"/run/agent\"\n";
    guest.output(&format!(
        "mkdir -p /etc/portreeve; printf '{}' > /etc/portreeve/portreeve.toml",
        configuration.replace('\n', "\\n")
    ));
    let mut phoenix = guest.port("phoenix");
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    let mut ask = |command: &str| {
        phoenix.raw(format!("{{\"execute\":\"{command}\"}}\n").as_bytes());
        phoenix.line_within(SOON).expect("an answer")
    };
    assert_eq!(ask("get-freeze-status")["return"], false);
    assert_eq!(ask("fs-freeze")["return"], true);
    assert_eq!(ask("get-freeze-status")["return"], true);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen");
    start_writers(&mut guest);
    let refused = ask("sysinfo")["error"].to_string();
    let text = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        "All filesystems are frozen. Cannot execute: sysinfo",
    );
    assert!(refused.contains(&text), "{refused}");
    assert_eq!(written(&mut guest), 0);
    assert_eq!(ask("fs-unfreeze")["return"], true);
    assert!(guest.becomes_true("[ $(ls /run | grep -c done) = 4 ]", SOON));
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
}

#[test]
fn what_somebody_else_froze_is_thawed_and_counted() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    guest.output("/usr/sbin/fsfreeze -f /mnt/xfs");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 1);
    nothing_is_frozen(&mut guest);
}

#[test]
fn a_filesystem_that_is_mounted_often_is_frozen_once() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.output("mkdir -p /mnt/bind /mnt/ext4/dir /mnt/b1 /mnt/b2; touch /mnt/file /mnt/ext4/file; mount --bind /mnt/ext4/dir /mnt/bind; mount --bind /mnt/ext4/file /mnt/file");
    guest.output("dd if=/dev/zero of=/mnt/xfs/btrfs.img bs=1M count=0 seek=128 2>/dev/null; modprobe btrfs; mkfs.btrfs -q /mnt/xfs/btrfs.img && mount -t btrfs -o loop /mnt/xfs/btrfs.img /mnt/b1");
    guest.output("btrfs subvolume create /mnt/b1/sub >/dev/null; mount -t btrfs -o subvol=sub $(awk '$5 == \"/mnt/b1\" { print $(NF-1) }' /proc/self/mountinfo) /mnt/b2");
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 5);
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 5);
    nothing_is_frozen(&mut guest);
}

#[test]
fn a_frozen_filesystem_can_be_unmounted_and_does_not_stay_frozen() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    guest.output("umount /mnt/xfs");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 3);
    guest.output("d=$(for d in /sys/block/vd*; do [ $(cat $d/serial) = xfs ] && echo /dev/${d##*/}; done); fsck.xfs $d 2>/dev/null; mount -t xfs $d /mnt/xfs || true");
}

#[test]
fn a_trim_gives_the_hosts_disk_its_blocks_back() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    let blocks = |guest: &Guest| std::fs::metadata(guest.folder().join("ext4.img")).unwrap().blocks();
    guest.output("dd if=/dev/urandom of=/mnt/ext4/big bs=1M count=40 2>/dev/null; sync");
    let full = blocks(&guest);
    guest.output("rm /mnt/ext4/big; sync");
    let report = guest.agent.call("guest-fstrim", ()).unwrap();
    let paths = report["paths"].as_array().unwrap();
    let points: Vec<&str> = paths.iter().map(|path| path["path"].as_str().unwrap()).collect();
    assert_eq!(points, ["/mnt/loop", "/mnt/lvm", "/mnt/xfs", "/mnt/ext4"]);
    assert!(paths[3]["trimmed"].as_i64().unwrap() > 30 << 20, "{report}");
    assert!(blocks(&guest) + (30 << 11) < full, "{} of {full} blocks are left", blocks(&guest));
}

#[test]
fn the_hook_is_run_before_and_after_and_its_failure_keeps_the_guest_unfrozen() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.output("printf '#!/bin/sh\\necho $1 >> /run/hooked\\n[ ! -e /run/refuse ] || { echo no; exit 1; }\\n' > /etc/hook; chmod 755 /etc/hook");
    guest.start_portreeve(&["-F/etc/hook"]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    assert_eq!(guest.output("cat /run/hooked"), "freeze");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
    assert_eq!(guest.output("cat /run/hooked"), "freeze\nthaw");
    guest.output("touch /run/refuse");
    let failed = guest.agent.call("guest-fsfreeze-freeze", ()).unwrap_err();
    assert_eq!(failed.desc, "child process has failed to execute fsfreeze hook: no\n");
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
    // Whenever it was told of a freeze it is told of the thaw.
    assert_eq!(guest.output("tail -n 2 /run/hooked"), "freeze\nthaw");
    nothing_is_frozen(&mut guest);
}

/// Whatever is killed while filesystems are frozen: either the agent still holds them and thaws on demand, or it has thawed.
#[test]
fn nothing_stays_frozen_when_a_process_is_killed() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    for (process, holds) in [("fsfreeze", true), ("frontend", true), ("broker", false)] {
        assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4, "{process}");
        guest.output(&format!("kill -9 $(pidof portreeve-{process})"));
        guest.agent.sync();
        if holds {
            assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen", "{process}");
            assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4, "{process}");
        }
        nothing_is_frozen(&mut guest);
        let until = std::time::Instant::now() + SOON;
        while guest.agent.call("guest-get-osinfo", ()).is_err() {
            assert!(std::time::Instant::now() < until, "{process}: nothing is served: {}", guest.agent_log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn sigterm_thaws_first_and_ends_with_nothing_left() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.output("printf '#!/bin/sh\\necho $1 >> /run/hooked\\n' > /etc/hook; chmod 755 /etc/hook");
    guest.start_portreeve(&["-F/etc/hook"]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    guest.stop_agent();
    nothing_is_frozen(&mut guest);
    assert_eq!(guest.output("cat /run/hooked"), "freeze\nthaw");
    assert!(guest.becomes_true("! pidof portreeve-fsfreeze portreeve-broker", SOON));
}

#[test]
fn sigkill_of_the_main_process_thaws_and_the_next_agent_runs_the_hook() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.output("printf '#!/bin/sh\\necho $1 >> /run/hooked\\n' > /etc/hook; chmod 755 /etc/hook");
    guest.start_portreeve(&["-F/etc/hook"]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    guest.output("kill -9 $(cat /run/agent.pid)");
    nothing_is_frozen(&mut guest);
    assert!(guest.becomes_true("! pidof portreeve-fsfreeze portreeve-broker", SOON));
    guest.start_portreeve(&["-F/etc/hook"]);
    assert!(guest.becomes_true("[ \"$(cat /run/hooked)\" = \"$(printf 'freeze\\nthaw')\" ]", SOON));
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
}

#[test]
fn an_agent_that_starts_while_filesystems_are_frozen_serves_the_thaw_and_nothing_else() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    // All at once, as a unit is killed: nobody is left to thaw.
    guest.output("kill -9 $(pidof portreeve-fsfreeze) $(cat /run/agent.pid)");
    assert!(guest.becomes_true("! pidof portreeve-broker", SOON));
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen");
    assert!(guest.agent.call("guest-get-osinfo", ()).is_err());
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
    nothing_is_frozen(&mut guest);
    guest.agent.call("guest-get-osinfo", ()).unwrap();
}

#[test]
fn a_freeze_that_nobody_thaws_ends_by_itself() {
    let Some(mut guest) = Guest::with(Options::default().disks().port("freeze")) else { return };
    guest.output("mkdir -p /etc/portreeve; printf 'policy = \"qemu-ga\"\\n[[channel]]\\nname = \"a\"\\nmethod = \"virtio-serial\"\\n[freeze]\\nlimit-seconds = 2\\n[state]\\ndirectory = \"/run/agent\"\\n' > /etc/portreeve/portreeve.toml");
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    start_writers(&mut guest);
    assert!(guest.becomes_true("[ $(ls /run | grep -c done) = 4 ]", SOON), "{}", guest.agent_log());
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 0);
    assert!(guest.agent_log().contains("nobody had thawed them within 2 s"), "{}", guest.agent_log());
}

/// 600 s are configured, the rule says 2; for both dialects.
#[test]
fn a_freeze_ends_when_its_rule_says() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let rules = "version = 1\n[[rule]]\noutcome = \"allow\"\n[rule.limits]\nfreeze-seconds = 2\n";
    let configuration = "policy = \"/etc/portreeve/p.toml\"\n[[channel]]\nname = \"a\"\nmethod = \"virtio-serial\"\npath = \"/dev/virtio-ports/org.qemu.guest_agent.0\"\ndialects = [\"qga\", \"phoenix\"]\n[state]\ndirectory = \"/run/agent\"\n";
    guest.output("mkdir -p /etc/portreeve");
    for (name, text) in [("p.toml", rules), ("portreeve.toml", configuration)] {
        guest.output(&format!("printf '{}' > /etc/portreeve/{name}", text.replace('\n', "\\n")));
    }
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    start_writers(&mut guest);
    assert!(guest.becomes_true("[ $(ls /run | grep -c done) = 4 ]", SOON), "{}", guest.agent_log());
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 0);
    assert_eq!(guest.agent.call("fs-freeze", ()).unwrap(), true);
    let thawed = |guest: &mut Guest| guest.agent.call("guest-fsfreeze-status", ()).unwrap() == "thawed";
    assert!(!thawed(&mut guest));
    let begin = std::time::Instant::now();
    while !thawed(&mut guest) {
        assert!(begin.elapsed() < SOON, "{}", guest.agent_log());
        std::thread::sleep(Duration::from_millis(100));
    }
    nothing_is_frozen(&mut guest);
    assert!(guest.agent_log().contains("nobody had thawed them within 2 s"), "{}", guest.agent_log());
}

/// Numbers that a seed decides: `x = x * a + c`, of which the upper half is used.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn whatever_is_killed_whenever_nothing_stays_frozen() {
    kill_whenever(0);
}

/// The other half of the rounds, in a guest of its own: both run at once.
#[test]
fn whatever_else_is_killed_whenever_nothing_stays_frozen() {
    kill_whenever(1);
}

/// Freezes and thaws with writers at work, while a process is killed at a moment that nobody has chosen. After each round writers go
/// on, and the agent serves. `FREEZE_ROUNDS` (of both halves) and `FREEZE_SEED` choose others.
fn kill_whenever(half: u64) {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = number("FREEZE_ROUNDS").unwrap_or(if tests::programs::is_ci() { 200 } else { 20 });
    let seed = number("FREEZE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("FREEZE_SEED={seed} FREEZE_ROUNDS={rounds}, half {half}");
    let rounds = rounds.div_ceil(2);
    let mut dice = Dice(seed.wrapping_add(half));
    guest.output("printf '#!/bin/sh\\n:\\n' > /etc/hook; chmod 755 /etc/hook");
    guest.start_portreeve(&["-F/etc/hook"]);
    // One writer for each filesystem, which counts what it has written.
    for (mount, number) in MOUNTS.iter().zip(0..) {
        guest.output(&format!("(n=0; while :; do n=$((n+1)); echo $n > {mount}/n; echo $n > /run/n{number}; sleep 0.01; done) >/dev/null 2>&1 &"));
    }
    for round in 0..rounds {
        if round % 100 == 0 {
            eprintln!("half {half}: round {round} of {rounds}");
        }
        let names = ["fsfreeze", "broker", "frontend", "hook", "query", "spawner", "all"];
        let victim = names[usize::try_from(dice.throw(7)).unwrap()];
        let told = format!("half {half}, round {round}, {victim}, FREEZE_SEED={seed}");
        let pause = |dice: &mut Dice| format!("sleep 0.{:03}", dice.throw(250));
        let kill = match victim {
            "spawner" => "kill -9 $(cat /run/agent.pid)".to_owned(),
            // The one that would thaw first.
            "all" => "kill -9 $(pidof portreeve-fsfreeze) $(cat /run/agent.pid) $(pidof portreeve-broker)"
                .to_owned(),
            _ => format!("kill -9 $(pidof portreeve-{victim})"),
        };
        guest.output(&format!(
            "rm -f /run/killed; ({}; {kill}; touch /run/killed) >/dev/null 2>&1 &",
            pause(&mut dice)
        ));
        guest.agent.send("guest-fsfreeze-freeze", ());
        guest.output(&pause(&mut dice));
        if dice.throw(2) == 0 {
            guest.agent.send("guest-fsfreeze-thaw", ());
            guest.output(&pause(&mut dice));
        }
        assert!(guest.becomes_true("[ -e /run/killed ]", SOON), "{told}");
        guest.output("sleep 0.1");
        if matches!(victim, "spawner" | "all") {
            assert!(guest.becomes_true("! pidof portreeve-broker portreeve-fsfreeze", SOON), "{told}");
            guest.start_portreeve(&["-F/etc/hook"]);
        }
        guest.agent.sync();
        guest.agent.call("guest-fsfreeze-thaw", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
        // A writer that has just emptied its file has not written its number yet.
        let before = std::iter::repeat_with(|| guest.output("cat /run/n0 /run/n1 /run/n2 /run/n3"))
            .find(|numbers| numbers.lines().count() == MOUNTS.len())
            .unwrap();
        let go_on = format!(
            "for n in 0 1 2 3; do [ $(cat /run/n$n) -gt $(echo '{before}' | sed -n $((n+1))p) ] || exit 1; done"
        );
        if !guest.becomes_true(&go_on, SOON) {
            let (_, writers) = guest.sh(
                "cat /run/n0 /run/n1 /run/n2 /run/n3; ps -o pid,stat,args | grep ' D'; dmesg | tail -n 5",
            );
            panic!("{told}: writers stand still at {before:?}: {writers}; {}", guest.agent_log());
        }
        assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed", "{told}");
        if let Err(error) = guest.agent.call("guest-get-host-name", ()) {
            panic!("{told}: {error}; {}", guest.agent_log());
        }
    }
}
