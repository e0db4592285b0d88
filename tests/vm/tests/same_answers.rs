//! Debian's qemu-ga and Portreeve in one guest, asked the same: whatever only reads is answered the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use serde_json::{Value, json};
use vm::{Guest, Options};

/// What is asked, and what is taken out of both answers before they are compared, because time changes it.
const ASKED: [(&str, &[&str]); 12] = [
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

/// Where the answers differ on purpose: the command, the member, why.
const WANTED: [(&str, &str, &str); 3] = [
    ("guest-get-fsinfo", "serial", "qemu-ga 7.2 asks udev, which this guest has not; ours reads sysfs, too"),
    ("guest-get-fsinfo", "total-bytes-privileged", "newer than qemu-ga 7.2"),
    ("guest-get-disks", "serial", "as for guest-get-fsinfo"),
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
    for stock in [true, false] {
        if stock {
            guest.start_qemu_ga(&[])
        } else {
            guest.start_portreeve(&[])
        }
        let answers = ASKED.map(|(command, changing)| {
            let mut answer = match guest.agent.call(command, ()) {
                Ok(answer) => answer,
                Err(error) => json!(error.to_string()),
            };
            let wanted = WANTED.iter().filter(|(of, ..)| *of == command).map(|(_, name, _)| *name);
            let names: Vec<&str> = changing.iter().copied().chain(wanted).collect();
            without(&mut answer, &names);
            sorted(command, &mut answer);
            (command, answer)
        });
        seen.push(answers.to_vec());
        guest.stop_agent();
    }
    let different: Vec<String> = seen[0]
        .iter()
        .zip(&seen[1])
        .filter(|(stock, ours)| stock != ours)
        .map(|((command, stock), (_, ours))| format!("{command}:\n  qemu-ga   {stock}\n  portreeve {ours}"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}
