//! The agent as a service of systemd, in a small Debian: its unit, and systemd's own ways down.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::json;
use vm::{Guest, Options, Service};

const SOON: Duration = Duration::from_secs(30);

/// One line of `systemctl show`.
fn property(guest: &mut Guest, unit: &str, name: &str) -> String {
    guest.output(&format!("systemctl show --value -p {name} {unit}"))
}

#[test]
fn the_unit_of_qemu_guest_agent_starts_portreeve_with_nothing_changed_but_a_link() {
    let service = Service::QemuGuestAgent;
    let Some(mut guest) = Guest::with(Options::default().systemd(service)) else { return };
    guest.agent.sync();
    assert_eq!(guest.agent.call("guest-info", ()).unwrap()["version"], "10.2.0");
    assert_eq!(property(&mut guest, service.unit(), "ActiveState"), "active");
    assert_eq!(
        property(&mut guest, service.unit(), "FragmentPath"),
        "/lib/systemd/system/qemu-guest-agent.service"
    );
    assert_eq!(property(&mut guest, service.unit(), "NRestarts"), "0");
    let main = property(&mut guest, service.unit(), "MainPID");
    assert_eq!(
        guest.output(&format!("readlink /proc/{main}/exe")),
        "/usr/libexec/portreeve/portreeve-spawner"
    );
    assert_eq!(guest.output("systemctl --failed --no-legend"), "");
}

#[test]
fn the_unit_in_the_documentation_starts_portreeve_when_its_port_is_there_and_hears_that_it_is_up() {
    let service = Service::Portreeve;
    let Some(mut guest) = Guest::with(Options::default().systemd(service)) else { return };
    guest.agent.sync();
    assert_eq!(guest.agent.call("guest-get-host-name", ()).unwrap(), json!({ "host-name": "guest" }));
    assert_eq!(property(&mut guest, service.unit(), "Type"), "notify");
    // A unit of this kind is only active once its program has said so.
    assert!(guest.becomes_true("systemctl is-active portreeve.service", SOON));
    assert_eq!(property(&mut guest, service.unit(), "NRestarts"), "0");
    assert_eq!(guest.output("systemctl --failed --no-legend"), "");
}

#[test]
fn systemd_powers_down_in_order_when_the_host_asks() {
    let Some(mut guest) = Guest::with(Options::default().systemd(Service::QemuGuestAgent)) else { return };
    guest.agent.sync();
    guest.agent.send("guest-shutdown", ());
    assert_eq!(guest.qmp.event("SHUTDOWN")["reason"], "guest-shutdown");
    guest.wait_for_end();
    assert!(guest.console().contains("vm: orderly shutdown"), "{}", guest.console());
}
