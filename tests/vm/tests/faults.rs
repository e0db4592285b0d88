//! Faults while it matters: processes, units, hosts and power that go in the middle of a freeze or a write.
//!
//! The same by chance, many times: `whatever_is_killed_whenever_nothing_stays_frozen` in `fsfreeze.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::{Value, json};
use vm::{AgentError, Guest, Options, Service};

const SOON: Duration = Duration::from_secs(60);
const HOOK: &str = "-F/etc/hook";

/// A writer in each of these folders, which counts what it has written.
fn start_writers(guest: &mut Guest, folders: &[&str]) {
    for (number, folder) in folders.iter().enumerate() {
        guest.output(&format!(
            "(n=0; while :; do n=$((n+1)); echo $n > {folder}/n; echo $n > /run/n{number}; sleep 0.02; done) \
             </dev/null >/dev/null 2>&1 & echo $! >> /run/writers"
        ));
    }
}

/// Each of them writes again.
fn writers_go_on(guest: &mut Guest, told: &str) {
    let before = guest.output("cat /run/n? | tr '\\n' ' '");
    let go_on = format!(
        "i=0; for b in {before}; do [ $(cat /run/n$i) -gt $b ] || exit 1; i=$((i+1)); done; [ $i -gt 0 ]"
    );
    assert!(guest.becomes_true(&go_on, SOON), "{told}: a writer stands still: {}", guest.agent_log());
}

/// A hook that writes down what it was told, and does not end as long as there is `/run/hold-freeze` or `/run/hold-thaw`.
fn lay_hook(guest: &mut Guest) {
    guest.output(
        "printf '#!/bin/sh\\necho $1 >> /run/hooked\\nwhile [ -e /run/hold-$1 ]; do sleep 0.02; done\\n' > /etc/hook; \
         chmod 755 /etc/hook",
    );
}

/// Where a freeze is when something is killed.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing has been asked for.
    Before,
    /// The hook runs with `freeze`; nothing is frozen.
    HookBefore,
    /// One filesystem is frozen, the next waits in the kernel for a volume that does not answer, two are still to come.
    Freezing,
    Frozen,
    /// Two filesystems are thawed, the next waits in the kernel, the last is still frozen.
    Thawing,
    /// All is thawed; the hook runs with `thaw`.
    HookAfter,
    /// The thaw has been answered.
    After,
}

impl State {
    const ALL: [State; 7] = [
        State::Before,
        State::HookBefore,
        State::Freezing,
        State::Frozen,
        State::Thawing,
        State::HookAfter,
        State::After,
    ];

    fn enter(self, guest: &mut Guest) {
        const STOP_VOLUME: &str = "dmsetup suspend --nolockfs --noflush vm-data";
        let hooked = |guest: &mut Guest, what: &str| {
            let said = format!("[ \"$(tail -n 1 /run/hooked)\" = {what} ]");
            assert!(guest.becomes_true(&said, SOON), "{self:?}: no hook with {what}: {}", guest.agent_log());
        };
        let waits = |guest: &mut Guest| {
            let waits = "grep -q '^State:.D' /proc/$(pidof portreeve-fsfreeze)/status";
            assert!(guest.becomes_true(waits, SOON), "{self:?}: nothing waits: {}", guest.agent_log());
        };
        let freeze = |guest: &mut Guest| {
            assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4, "{self:?}");
        };
        guest.output("rm -f /run/hooked");
        match self {
            State::Before => {}
            State::HookBefore => {
                guest.output("touch /run/hold-freeze");
                guest.agent.send("guest-fsfreeze-freeze", ());
                hooked(guest, "freeze");
            }
            State::Freezing => {
                guest.output(&format!("{STOP_VOLUME}; echo x > /mnt/lvm/unwritten"));
                guest.agent.send("guest-fsfreeze-freeze", ());
                waits(guest);
            }
            State::Frozen => freeze(guest),
            State::Thawing => {
                freeze(guest);
                guest.output(STOP_VOLUME);
                guest.agent.send("guest-fsfreeze-thaw", ());
                waits(guest);
            }
            State::HookAfter => {
                freeze(guest);
                guest.output("touch /run/hold-thaw");
                guest.agent.send("guest-fsfreeze-thaw", ());
                hooked(guest, "thaw");
            }
            State::After => {
                freeze(guest);
                assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
            }
        }
    }

    /// Whatever was waited for comes.
    fn leave(guest: &mut Guest) {
        guest.output("rm -f /run/hold-freeze /run/hold-thaw; dmsetup resume vm-data");
    }
}

/// Nothing of it is left: the next sync, thaw, status and command are answered, and writers go on. Returns what the thaw counted.
fn serves_again(guest: &mut Guest, told: &str) -> i64 {
    assert!(guest.agent.answers_within(SOON), "{told}: no answer: {}", blocked(guest));
    let thawed =
        guest.agent.call("guest-fsfreeze-thaw", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
    writers_go_on(guest, told);
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed", "{told}");
    guest.agent.call("guest-get-osinfo", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
    thawed.as_i64().unwrap()
}

/// Who waits in the kernel, and where.
fn blocked(guest: &mut Guest) -> String {
    let list = "for p in /proc/[0-9]*; do grep -q '^State:.D' $p/status 2>/dev/null && cat $p/comm $p/stack; done; true";
    format!("{}\n{}", guest.sh(list).1, guest.agent_log())
}

#[test]
fn each_process_killed_in_each_state_of_a_freeze_leaves_nothing_frozen() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    lay_hook(&mut guest);
    guest.start_portreeve(&[HOOK]);
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    guest.agent.call("guest-get-osinfo", ()).unwrap();
    for state in State::ALL {
        for process in ["spawner", "broker", "frontend", "fsfreeze", "query", "hook", "all"] {
            let told = format!("{process} killed in {state:?}");
            // It is there only while it is needed.
            if process == "hook" && !matches!(state, State::HookBefore | State::HookAfter) {
                continue;
            }
            state.enter(&mut guest);
            let ended = match process {
                "spawner" => guest.output("kill -9 $(cat /run/agent.pid)").is_empty(),
                // As a unit is killed, the one that would thaw first. The broker may have gone with the spawner by then.
                "all" => guest
                    .output(
                        "kill -9 $(pidof portreeve-fsfreeze) $(cat /run/agent.pid) $(pidof portreeve-broker) 2>/dev/null; true",
                    )
                    .is_empty(),
                _ => guest.output(&format!("kill -9 $(pidof portreeve-{process})")).len() > 1,
            };
            State::leave(&mut guest);
            if ended {
                let gone = "! pidof portreeve-broker portreeve-frontend portreeve-fsfreeze";
                assert!(guest.becomes_true(gone, SOON), "{told}: {}", blocked(&mut guest));
                // As systemd would.
                guest.start_portreeve(&[HOOK]);
            }
            if matches!(process, "spawner" | "broker") {
                // Whoever asked for the freeze is gone: nobody has to ask for the thaw.
                writers_go_on(&mut guest, &told);
            }
            serves_again(&mut guest, &told);
            // Whatever was told of a freeze is told of its end, at least once.
            let hooked = guest.output("cat /run/hooked");
            let freezes = usize::from(!matches!(state, State::Before));
            assert_eq!(hooked.matches("freeze").count(), freezes, "{told}: {hooked}");
            assert!(hooked.ends_with("thaw"), "{told}: {hooked}");
        }
    }
}

/// Its log and its records are on a filesystem that is frozen: it can neither be started nor thawed by anybody but itself.
#[test]
fn an_agent_that_is_killed_as_a_whole_starts_although_its_log_is_on_a_frozen_filesystem() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    lay_hook(&mut guest);
    configure(
        &mut guest,
        "[state]\ndirectory = \"/run/agent\"\n[freeze]\nhook = \"/etc/hook\"\n\
         [audit]\nsink = \"file\"\npath = \"/mnt/loop/audit\"\n[log]\nfile = \"/mnt/xfs/log\"\n",
    );
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
    guest.output("kill -9 $(pidof portreeve-fsfreeze) $(cat /run/agent.pid) $(pidof portreeve-broker) 2>/dev/null; true");
    guest.launch(RUN);
    assert!(guest.agent.answers_within(SOON), "no answer: {}", blocked(&mut guest));
    let hooked = "[ \"$(cat /run/hooked)\" = \"$(printf 'freeze\\nthaw')\" ]";
    assert!(guest.becomes_true(hooked, SOON), "{}", guest.output("cat /run/hooked"));
    assert_eq!(serves_again(&mut guest, "an agent with its log on a frozen filesystem"), 0);
    let said =
        guest.output("grep -c 'killed while filesystems were frozen; /mnt/xfs/log may be' /mnt/xfs/log");
    assert_eq!(said, "1");
}

const RUN: &str = "/opt/portreeve/portreeve run";

/// Starts it with all permitted, on the agent's port, and `more` in its configuration.
fn configure(guest: &mut Guest, more: &str) {
    let text =
        format!("policy = \"qemu-ga\"\n[[channel]]\nname = \"host\"\nmethod = \"virtio-serial\"\n{more}");
    guest.output(&format!(
        "mkdir -p /etc/portreeve; printf '{}' > /etc/portreeve/portreeve.toml",
        text.replace('\n', "\\n")
    ));
    guest.launch(RUN);
    assert!(guest.agent.answers_within(SOON), "no answer: {}", blocked(guest));
}

/// The root is frozen, too: systemd itself must get along with that.
#[test]
fn a_unit_that_is_restarted_stopped_or_killed_leaves_nothing_frozen_and_serves_again() {
    for service in [Service::Portreeve, Service::QemuGuestAgent] {
        let Some(mut guest) = Guest::with(Options::default().systemd(service)) else { return };
        guest.agent.sync();
        start_writers(&mut guest, &["/var/tmp"]);
        let unit = service.unit();
        for (way, thawed) in [
            // Both end in order, thawed, whether systemd tells the main process or all of them.
            (format!("systemctl restart {unit}"), 0),
            (format!("systemctl stop {unit}; systemctl start {unit}"), 0),
            (format!("systemctl kill -s TERM {unit}"), 0),
            (format!("systemctl kill -s KILL --kill-who=main {unit}"), 0),
            // Nobody is left to thaw but the agent that systemd starts.
            (
                "kill -9 $(pidof portreeve-fsfreeze) $(pidof portreeve-broker)".to_owned()
                    + &format!(" $(systemctl show --value -p MainPID {unit})"),
                1,
            ),
        ] {
            let told = format!("{unit}: {way}");
            assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 1, "{told}");
            let main = format!("systemctl show --value -p MainPID {unit}");
            let before = guest.output(&main);
            let begun = std::time::Instant::now();
            guest.output(&format!("({way}) 2>&1 || true"));
            // systemd gives up and kills after ten seconds here.
            let other = format!("[ $({main}) != 0 ] && [ $({main}) != {before} ]");
            assert!(guest.becomes_true(&other, SOON), "{told}: {}", blocked(&mut guest));
            assert!(begun.elapsed() < Duration::from_secs(9), "{told}: {:?}", begun.elapsed());
            assert_eq!(serves_again(&mut guest, &told), thawed, "{told}");
            assert!(guest.becomes_true(&format!("systemctl is-active {unit}"), SOON), "{told}");
        }
    }
}

/// Proxmox's way: it gives up a slow freeze, opens the socket again and asks what came of it.
#[test]
fn a_host_that_goes_in_mid_freeze_learns_what_came_of_it_when_it_is_back() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    lay_hook(&mut guest);
    guest.start_portreeve(&[HOOK]);
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    State::HookBefore.enter(&mut guest);
    guest.agent.reopen();
    guest.agent.raw(
        b"{\"arguments\":{\"id\":4711001},\"execute\":\"guest-sync-delimited\"}\n\
          {\"execute\":\"guest-fsfreeze-status\",\"arguments\":{}}\n",
    );
    // The sync is answered at once, the status only when it is known; what the freeze returned is said to nobody.
    assert_eq!(guest.agent.answer("sync").unwrap(), 4_711_001);
    assert_eq!(guest.agent.line_within(Duration::from_secs(1)), None);
    State::leave(&mut guest);
    assert_eq!(guest.agent.answer("status").unwrap(), "frozen");
    // Nobody there while all is frozen.
    let path = guest.folder().join("agent");
    guest.agent.close();
    std::thread::sleep(Duration::from_secs(1));
    guest.agent.open(&path);
    guest.agent.sync();
    assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "frozen");
    assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4);
    writers_go_on(&mut guest, "a host that was away");
}

/// A state directory on a disk, and the power goes while numbers of open files are written there.
#[test]
fn an_agent_whose_power_was_cut_while_it_wrote_its_state_gives_no_number_twice() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut last = 999;
    for opens in [40, 300, 0] {
        guest.output("mkdir -p /mnt/ext4/state; sync");
        guest.launch(
            "/opt/portreeve/qemu-ga -t /mnt/ext4/state -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0",
        );
        guest.agent.sync();
        assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
        let open = |guest: &mut Guest| {
            let opened = guest.agent.call("guest-file-open", json!({ "path": "/etc/rc" })).unwrap();
            opened.as_i64().unwrap()
        };
        // Not before the last one, and not far behind it: at most one block of numbers is lost with the power.
        let first = open(&mut guest);
        assert!((last + 1..=last + 200).contains(&first), "{first} after {last}");
        last = first;
        for _ in 0..opens {
            last = open(&mut guest);
        }
        // Each 64 of them write the file; those that come are under way when the power goes.
        for _ in 0..130 {
            guest.agent.send("guest-file-open", json!({ "path": "/etc/rc" }));
        }
        last = (0..opens / 4).fold(last, |_, _| guest.agent.answer("open").unwrap().as_i64().unwrap());
        guest.qemu("quit", ());
        guest.wait_for_end();
        for disk in ["ext4", "xfs", "lvm"] {
            let name = format!("{disk}.img");
            // From the second on they are there already.
            let _ = std::fs::rename(guest.folder().join(&name), folder.path().join(&name));
        }
        drop(guest);
        if opens == 0 {
            return;
        }
        guest = Guest::with(Options::default().disks().folder(folder.path())).unwrap();
    }
}

/// State, audit log and log on a filesystem without room.
#[test]
fn a_full_disk_stops_no_freeze_and_no_command_unless_records_are_required() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let fill = "dd if=/dev/zero of=/mnt/full/fill bs=1k 2>/dev/null; [ $(df /mnt/full | awk 'NR == 2 { print $4 }') = 0 ]";
    guest.output("mkdir -p /mnt/full; mount -t tmpfs -o size=128k full /mnt/full");
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    for required in [false, true] {
        configure(
            &mut guest,
            &format!(
                "[state]\ndirectory = \"/mnt/full/state\"\n[audit]\nsink = \"file\"\npath = \"/mnt/full/audit\"\n\
                 required = {required}\n[log]\nfile = \"/mnt/full/log\"\n"
            ),
        );
        guest.output(fill);
        // Until the last page of each file is full, too.
        let mut open = || guest.agent.call("guest-file-open", json!({ "path": "/etc/rc" }));
        let opened: Vec<Result<Value, AgentError>> = (0..100).map(|_| open()).collect();
        let frozen = guest.agent.call("guest-fsfreeze-freeze", ());
        if required {
            for refused in [opened[99].as_ref().unwrap_err(), frozen.as_ref().unwrap_err()] {
                assert_eq!(refused.desc, "not done, because it cannot be recorded: No space left on device");
            }
            // A filesystem that fills up while something is frozen must not keep it frozen.
            guest.output("rm /mnt/full/fill");
            assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
            guest.output(fill);
        } else {
            let numbers: Vec<i64> =
                opened.into_iter().map(|opened| opened.unwrap().as_i64().unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
            assert_eq!(frozen.unwrap(), 4);
        }
        assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4, "required = {required}");
        writers_go_on(&mut guest, "a full disk");
        guest.output("rm /mnt/full/fill");
        // Room again: no restart is needed.
        guest.agent.call("guest-get-host-name", ()).unwrap();
        let handle = guest.agent.call("guest-file-open", json!({ "path": "/etc/rc" })).unwrap();
        guest.agent.call("guest-file-close", json!({ "handle": handle })).unwrap();
        let last = guest.output("tail -n 1 /mnt/full/audit");
        assert!(last.contains("guest-file-close") && last.contains("\"outcome\":\"done\""), "{last}");
        guest.stop_agent();
        guest.output("rm -rf /mnt/full/*");
    }
}
