//! The agent on real ports of a real guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::time::Duration;

use serde_json::json;
use vm::{Guest, Options, Vsock};

const SOON: Duration = Duration::from_secs(20);

/// How often the frontend has been woken up, by itself or by others.
fn wake_ups(guest: &mut Guest) -> u64 {
    let status = guest.output("grep -h ctxt_switches /proc/$(pidof portreeve-frontend)/status | cut -f2");
    status.lines().map(|count| count.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_guest_answers_a_ping_over_its_virtio_port() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-ping", ()).unwrap(), json!({}));
}

/// A port whose host has gone reads as ended, over and over: an agent that reads on spins.
#[test]
fn a_host_that_has_gone_is_waited_for_without_waking_up_and_answered_when_it_is_back() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // What was asked last is answered to nobody.
    guest.agent.send("guest-get-osinfo", ());
    let path = guest.folder().join("agent");
    guest.agent.close();
    std::thread::sleep(Duration::from_secs(1));
    let before = wake_ups(&mut guest);
    std::thread::sleep(Duration::from_secs(2));
    let after = wake_ups(&mut guest);
    assert!(after - before <= 2, "{} wake-ups in 2 s without a host", after - before);
    guest.agent.open(&path);
    guest.agent.sync();
    guest.agent.call("guest-get-osinfo", ()).unwrap();
}

/// The first bytes of a host may be there before the guest's kernel says that a host is; each client here asks once, and waits.
#[test]
fn a_host_that_comes_back_is_answered_the_first_time_it_asks() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    for round in 0..20 {
        let path = guest.folder().join("agent");
        guest.agent.close();
        // Long enough for the guest to have gone to sleep.
        std::thread::sleep(Duration::from_millis(300));
        guest.agent.open(&path);
        assert_eq!(guest.agent.call("guest-ping", ()).unwrap(), json!({}), "round {round}");
    }
}

#[test]
fn a_host_that_does_not_read_gets_its_answers_when_it_does() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    let requests = "{\"execute\":\"guest-info\"}\n".repeat(400);
    guest.agent.raw(requests.as_bytes());
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..400 {
        assert_eq!(guest.agent.answer("guest-info").unwrap()["version"], "10.2.0");
    }
    let memory: u64 =
        guest.output("grep VmHWM /proc/$(pidof portreeve-frontend)/status | tr -dc 0-9").parse().unwrap();
    assert!(memory < 40_000, "{memory} KiB");
}

#[test]
fn a_host_that_sends_noise_is_answered_when_it_speaks() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    let noise: Vec<u8> =
        (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    guest.agent.raw(&noise);
    guest.agent.raw(b"\xff\n");
    guest.agent.sync();
}

#[test]
fn a_port_that_is_unplugged_and_plugged_in_again_is_served_again() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.output("mkdir -p /etc/portreeve; printf 'policy = \"qemu-ga\"\\n' > /etc/portreeve/portreeve.toml");
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    guest.qemu("device_del", json!({ "id": "agentport" }));
    assert!(guest.becomes_true("[ ! -e /sys/class/virtio-ports/vport0p1 ]", SOON));
    std::thread::sleep(Duration::from_secs(1));
    let port = json!({ "driver": "virtserialport", "bus": "ports.0", "nr": 1, "id": "agentport", "chardev": "agent", "name": "org.qemu.guest_agent.0" });
    guest.qemu("device_add", port);
    assert!(guest.becomes_true("[ -s /sys/class/virtio-ports/vport0p1/name ] && /etc/ports", SOON));
    guest.agent.sync();
    assert!(guest.becomes_true("kill -0 $(cat /run/agent.pid)", SOON));
}

#[test]
fn a_serial_line_is_served() {
    let Some(mut guest) = Guest::with(Options::default().serial()) else { return };
    guest.launch("/opt/portreeve/qemu-ga -t /run/agent -m isa-serial -p /dev/ttyS1");
    guest.agent.sync();
    // Every byte arrives as it was sent: the line is raw.
    let text = "\u{1}\u{3}\u{4}\u{11}\u{13}\u{1a}\\r\\n".to_owned();
    let path = json!({ "path": "/run/raw", "mode": "w" });
    let handle = guest.agent.call("guest-file-open", path).unwrap();
    let buffer = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &text);
    guest.agent.call("guest-file-write", json!({ "handle": handle, "buf-b64": buffer })).unwrap();
    guest.agent.call("guest-file-close", json!({ "handle": handle })).unwrap();
    assert_eq!(guest.output("wc -c < /run/raw"), text.len().to_string());
}

#[test]
fn two_ports_speak_one_dialect_each() {
    let Some(mut guest) = Guest::with(Options::default().port("phoenix")) else { return };
    let configuration = "policy = \"qemu-ga\"\n[[channel]]\nname = \"q\"\nmethod = \"virtio-serial\"\n[[channel]]\nname = \"p\"\nmethod = \"virtio-serial\"\npath = \"/dev/virtio-ports/phoenix\"\ndialects = [\"phoenix\"]\n";
    guest.output(&format!(
        "mkdir -p /etc/portreeve; printf '{}' > /etc/portreeve/portreeve.toml",
        configuration.replace('\n', "\\n")
    ));
    let mut phoenix = guest.port("phoenix");
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    phoenix.raw(b"{\"execute\":\"ping\",\"tag\":\"t\"}\n");
    assert_eq!(phoenix.line_within(SOON), Some(json!({ "return": "0.7.2", "tag": "t" })));
    guest.agent.send("ping", ());
    assert!(guest.agent.answer("ping").unwrap_err().desc.contains("ping has not been found"));
}

#[test]
fn a_host_on_vsock_is_served_and_a_program_of_the_guest_is_not() {
    let Some(vsock) = Vsock::start() else { return };
    let Some(mut guest) = Guest::with(vsock.plugged_into(Options::default())) else { return };
    guest.output("modprobe vmw_vsock_virtio_transport; modprobe vsock_loopback");
    let configuration = "policy = \"qemu-ga\"\n[[channel]]\nname = \"v\"\nmethod = \"vsock-listen\"\nport = 1024\npeer-cid = 2\n";
    guest.output(&format!(
        "mkdir -p /etc/portreeve; printf '{}' > /etc/portreeve/portreeve.toml",
        configuration.replace('\n', "\\n")
    ));
    guest.launch("/opt/portreeve/portreeve run");
    let mut host = vsock.connect(1024);
    host.sync();
    assert!(host.call("guest-get-osinfo", ()).unwrap().is_object());
    for _ in 0..100 {
        assert_eq!(host.call("guest-ping", ()).unwrap(), json!({}));
    }
    // Through the loopback: from somebody in the guest.
    let asked =
        "echo '{\"execute\":\"guest-ping\"}' | timeout 5 socat -t 2 - VSOCK-CONNECT:1:1024 2>&1 || true";
    let answered = guest.output(asked);
    assert!(!answered.contains("return"), "{answered}");
    drop(host);
    // The next one, as after a host's restart.
    let mut host = vsock.connect(1024);
    host.sync();
    assert_eq!(host.call("guest-get-host-name", ()).unwrap()["host-name"], guest.output("hostname").trim());
}
