//! Shutdown, reboot and suspend, told by QEMU's events.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::json;
use vm::{Guest, Options};

/// No line comes on success: clients take one for a failure.
const SILENT: Duration = Duration::from_millis(300);

#[test]
fn a_guest_powers_down_in_order_and_is_not_answered() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    guest.agent.send("guest-shutdown", ());
    assert_eq!(guest.qmp.event("SHUTDOWN")["reason"], "guest-shutdown");
    assert_eq!(guest.agent.line_within(SILENT), None);
    guest.wait_for_end();
    assert!(guest.console().contains("vm: orderly shutdown"), "{}", guest.console());
}

#[test]
fn a_reboot_reboots_and_does_not_power_off() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    guest.agent.send("guest-shutdown", json!({ "mode": "reboot" }));
    assert_eq!(guest.qmp.event("SHUTDOWN")["reason"], "guest-reset");
}

#[test]
fn a_halt_halts() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    guest.agent.send("guest-shutdown", json!({ "mode": "halt" }));
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !guest.console().contains("vm: orderly shutdown") {
        assert!(std::time::Instant::now() < until, "{}", guest.console());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_cannot_be_done_is_answered() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    let wrong = guest.agent.call("guest-shutdown", json!({ "mode": "sleep" })).unwrap_err();
    assert_eq!(wrong.desc, "mode is invalid (valid values are: halt|powerdown|reboot");
    // Without swap there is nothing to hibernate to, which the kernel says when it is asked.
    let failed = guest.agent.call("guest-suspend-disk", ()).unwrap_err();
    assert!(failed.desc.starts_with("suspend: cannot write to '/sys/power/state': "), "{failed}");
    guest.agent.call("guest-ping", ()).unwrap();
}

#[test]
fn a_guest_suspended_to_memory_wakes_up_with_its_agent() {
    let Some(mut guest) = Guest::with(Options::default().bzimage()) else { return };
    guest.start_portreeve(&[]);
    guest.agent.send("guest-suspend-ram", ());
    guest.qmp.event("SUSPEND");
    guest.qemu("system_wakeup", ());
    guest.qmp.event("WAKEUP");
    guest.agent.sync();
    guest.agent.call("guest-get-osinfo", ()).unwrap();
}

#[test]
fn a_guest_suspended_to_disk_goes_on_where_it_stopped() {
    let Some(mut guest) = Guest::with(Options::default().swap()) else { return };
    guest.start_portreeve(&[]);
    guest.output("echo kept > /run/kept");
    guest.agent.send("guest-suspend-disk", ());
    guest.wait_for_end();
    let folder = tempfile::tempdir().unwrap();
    std::fs::rename(guest.folder().join("swap.img"), folder.path().join("swap.img")).unwrap();
    drop(guest);
    let mut guest = Guest::with(Options::default().swap().folder(folder.path())).unwrap();
    assert_eq!(guest.output("cat /run/kept"), "kept");
    guest.agent.sync();
    guest.agent.call("guest-get-osinfo", ()).unwrap();
}
