//! Faults while it matters: a host that goes in the middle of a freeze.
//!
//! Processes that are killed by chance, many times: `whatever_is_killed_whenever_nothing_stays_frozen` in `fsfreeze.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use vm::{Guest, Options};

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

/// Proxmox's way: it gives up a slow freeze, opens the socket again and asks what came of it.
#[test]
fn a_host_that_goes_in_mid_freeze_learns_what_came_of_it_when_it_is_back() {
    let Some(mut guest) = Guest::with(Options::default().disks()) else { return };
    lay_hook(&mut guest);
    guest.start_portreeve(&[HOOK]);
    start_writers(&mut guest, &["/mnt/ext4", "/mnt/xfs", "/mnt/lvm", "/mnt/loop"]);
    guest.output("touch /run/hold-freeze");
    guest.agent.send("guest-fsfreeze-freeze", ());
    assert!(guest.becomes_true("grep -q freeze /run/hooked", SOON), "no hook: {}", guest.agent_log());
    guest.agent.reopen();
    guest.agent.raw(
        b"{\"arguments\":{\"id\":4711001},\"execute\":\"guest-sync-delimited\"}\n\
          {\"execute\":\"guest-fsfreeze-status\",\"arguments\":{}}\n",
    );
    // The sync is answered at once, the status only when it is known; what the freeze returned is said to nobody.
    assert_eq!(guest.agent.answer("sync").unwrap(), 4_711_001);
    assert_eq!(guest.agent.line_within(Duration::from_secs(1)), None);
    guest.output("rm /run/hold-freeze");
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
