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
    /// The hook runs with `freeze`; nothing is frozen.
    HookBefore,
    /// The worker waits in the kernel for a volume that does not answer.
    Freezing,
    Frozen,
    /// All is thawed; the hook runs with `thaw`.
    HookAfter,
}

impl State {
    fn enter(self, guest: &mut Guest) {
        let told = |guest: &mut Guest, what: &str| {
            let said = format!("[ \"$(tail -n 1 /run/hooked)\" = {what} ]");
            assert!(guest.becomes_true(&said, SOON), "{self:?}: no hook with {what}: {}", guest.agent_log());
        };
        guest.output("rm -f /run/hooked");
        match self {
            State::HookBefore => {
                guest.output("touch /run/hold-freeze");
                guest.agent.send("guest-fsfreeze-freeze", ());
                told(guest, "freeze");
            }
            State::Freezing => {
                guest.output("dmsetup suspend --nolockfs --noflush vm-data; echo x > /mnt/lvm/unwritten");
                guest.agent.send("guest-fsfreeze-freeze", ());
                let waits = "grep -q '^State:.D' /proc/$(pidof portreeve-fsfreeze)/status";
                assert!(guest.becomes_true(waits, SOON), "the freeze does not wait: {}", guest.agent_log());
            }
            State::Frozen => {
                assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4, "{self:?}");
            }
            State::HookAfter => {
                assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4, "{self:?}");
                guest.output("touch /run/hold-thaw");
                guest.agent.send("guest-fsfreeze-thaw", ());
                told(guest, "thaw");
            }
        }
    }

    /// Whatever was waited for comes.
    fn leave(guest: &mut Guest) {
        guest.output("rm -f /run/hold-freeze /run/hold-thaw; dmsetup resume vm-data");
    }
}

#[test]
fn each_process_killed_in_each_state_of_a_freeze_leaves_nothing_frozen() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    lay_hook(&mut guest);
    guest.start_portreeve(&[HOOK]);
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    let processes = ["spawner", "broker", "frontend", "fsfreeze", "hook"];
    for state in [State::HookBefore, State::Freezing, State::Frozen, State::HookAfter] {
        for process in processes {
            let told = format!("{process} killed in {state:?}");
            state.enter(&mut guest);
            guest.output(&match process {
                "spawner" => "kill -9 $(cat /run/agent.pid)".to_owned(),
                // It is there only while it is needed.
                "hook" => "kill -9 $(pidof portreeve-hook) 2>/dev/null || true".to_owned(),
                _ => format!("kill -9 $(pidof portreeve-{process})"),
            });
            State::leave(&mut guest);
            if process == "spawner" {
                let gone = "! pidof portreeve-broker portreeve-frontend portreeve-fsfreeze";
                assert!(guest.becomes_true(gone, SOON), "{told}: {}", guest.output("ps"));
                // As systemd would.
                guest.start_portreeve(&[HOOK]);
            }
            guest.agent.sync();
            guest.agent.call("guest-fsfreeze-thaw", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
            writers_go_on(&mut guest, &told);
            assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed", "{told}");
            guest.agent.call("guest-get-osinfo", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
            // Whatever was told of a freeze is told of its end, at least once.
            let hooked = guest.output("cat /run/hooked");
            assert!(hooked.starts_with("freeze\n") && hooked.ends_with("thaw"), "{told}: {hooked}");
            assert_eq!(hooked.matches("freeze").count(), 1, "{told}: {hooked}");
        }
    }
}

/// The root is frozen, too: systemd itself must get along with that.
#[test]
fn a_unit_that_is_restarted_stopped_or_killed_leaves_nothing_frozen_and_serves_again() {
    for service in [Service::Portreeve, Service::QemuGuestAgent] {
        let Some(mut guest) = Guest::with(Options::default().systemd(service)) else { return };
        guest.agent.sync();
        start_writers(&mut guest, &["/var/tmp"]);
        let unit = service.unit();
        for ways in [
            format!("systemctl restart {unit}"),
            format!("systemctl stop {unit}; systemctl start {unit}"),
            // Every process at once: nobody is left to thaw but the agent that systemd starts.
            format!("systemctl kill -s KILL {unit}"),
            format!("systemctl kill -s TERM {unit}"),
        ] {
            let told = format!("{unit}: {ways}");
            assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 1, "{told}");
            // systemctl stop on a unit that is bound to a device may start it again by itself.
            guest.output(&format!("({ways}) 2>&1 || true"));
            guest.agent.sync();
            guest.agent.call("guest-fsfreeze-thaw", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
            writers_go_on(&mut guest, &told);
            assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed", "{told}");
            guest.agent.call("guest-get-osinfo", ()).unwrap_or_else(|error| panic!("{told}: {error}"));
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
fn an_agent_whose_power_was_cut_while_it_wrote_its_state_starts_and_serves() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        guest.output("mkdir -p /mnt/ext4/state; mount -o remount,commit=1 /mnt/ext4");
        guest.launch(
            "/opt/portreeve/qemu-ga -t /mnt/ext4/state -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0",
        );
        guest.agent.sync();
        let opened = guest.agent.call("guest-file-open", json!({ "path": "/etc/rc" })).unwrap();
        assert!(opened.as_u64().unwrap() >= 1000, "{opened}");
        assert_eq!(guest.agent.call("guest-file-close", json!({ "handle": opened })).unwrap(), json!({}));
        assert_eq!(guest.agent.call("guest-fsfreeze-status", ()).unwrap(), "thawed");
        // Each 64 of them write the file.
        for _ in 0..400 {
            guest.agent.send("guest-file-open", json!({ "path": "/etc/rc" }));
        }
        std::thread::sleep(Duration::from_millis(200 * round));
        guest.qemu("quit", ());
        guest.wait_for_end();
        for disk in ["ext4", "xfs", "lvm"] {
            let name = format!("{disk}.img");
            let _ = std::fs::rename(guest.folder().join(&name), folder.path().join(&name));
        }
        drop(guest);
        guest = Guest::with(Options::default().disks().folder(folder.path())).unwrap();
    }
}

fn start_with_all_on_a_small_disk(guest: &mut Guest, required: bool) {
    let text = format!(
        "policy = \"qemu-ga\"\\n[[channel]]\\nname = \"host\"\\nmethod = \"virtio-serial\"\\n[state]\\ndirectory = \"/mnt/full/state\"\\n\
         [audit]\\nsink = \"file\"\\npath = \"/mnt/full/audit\"\\nrequired = {required}\\n[log]\\nfile = \"/mnt/full/log\"\\n"
    );
    guest.output(&format!(
        "mkdir -p /mnt/full; mountpoint -q /mnt/full || mount -t tmpfs -o size=128k full /mnt/full; \
         mkdir -p /mnt/full/state /etc/portreeve; printf '{text}' > /etc/portreeve/portreeve.toml"
    ));
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
}

/// State, audit log and log on a filesystem without room.
#[test]
fn a_full_disk_stops_no_freeze_and_no_command_unless_records_are_required() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    let fill = "dd if=/dev/zero of=/mnt/full/fill bs=1k 2>/dev/null; [ $(df /mnt/full | awk 'NR == 2 { print $4 }') = 0 ]";
    for required in [false, true] {
        start_with_all_on_a_small_disk(&mut guest, required);
        guest.output(fill);
        // Until the last page of each file is full, too.
        let mut open = || guest.agent.call("guest-file-open", json!({ "path": "/etc/rc" }));
        let opened: Vec<Result<Value, AgentError>> = (0..40).map(|_| open()).collect();
        let frozen = guest.agent.call("guest-fsfreeze-freeze", ());
        if required {
            for refused in [opened[39].as_ref().unwrap_err(), frozen.as_ref().unwrap_err()] {
                assert!(refused.desc.contains("audit"), "{refused}");
            }
            // A filesystem that fills up while something is frozen must not keep it frozen.
            guest.output("rm /mnt/full/fill");
            assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
            guest.output(fill);
        } else {
            assert!(opened.iter().all(Result::is_ok), "{opened:?}");
            assert_eq!(frozen.unwrap(), 4);
        }
        assert_eq!(guest.agent.call("guest-fsfreeze-thaw", ()).unwrap(), 4, "required = {required}");
        start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
        writers_go_on(&mut guest, "a full disk");
        guest.output("kill $(cat /run/writers); rm /run/writers /mnt/full/fill");
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
