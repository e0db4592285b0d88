//! virsh and libvirtd as they are, and a guest with Debian's unit for qemu-ga in which `/usr/sbin/qemu-ga` is Portreeve.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use vm::{Domain, Options, Service};

const SOON: Duration = Duration::from_secs(30);

fn domain() -> Option<Domain> {
    Domain::with(&Options::default().systemd(Service::QemuGuestAgent))
}

/// As [`domain`], with `/mnt/ext4` and `/mnt/xfs` to freeze.
fn domain_with_disks() -> Option<Domain> {
    Domain::with(&Options::default().disks().systemd(Service::QemuGuestAgent))
}

/// Waits until `virsh domstate` says so.
fn state_becomes(domain: &Domain, state: &str) {
    let until = Instant::now() + SOON;
    while domain.output("domstate {}") != state {
        assert!(Instant::now() < until, "the domain is {}, not {state}", domain.output("domstate {}"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A network card with an address of its own choosing, for those that show addresses.
fn give_an_address(domain: &mut Domain) {
    domain.sh("d=$(ls /sys/class/net | grep -v lo); busybox ip addr add 10.0.2.15/24 dev $d; busybox ip link set $d up");
    let settled = "busybox ip addr show up | grep -A9 10.0.2.15 | grep fe80 | grep -vq tentative";
    assert!(domain.becomes_true(settled, SOON));
}

#[test]
fn virsh_shows_the_same_of_a_guest_with_portreeve_and_with_qemu_ga() {
    const SHOWN: [&str; 12] = [
        "domfsinfo {}",
        "guestinfo {}",
        "guestinfo {} --user",
        "guestinfo {} --os --timezone --hostname",
        "guestinfo {} --filesystem --disk --interface",
        "domhostname {} --source agent",
        "domifaddr {} --source agent --full",
        "guestvcpus {}",
        "vcpucount {} --guest",
        "get-user-sshkeys {} alice",
        "get-user-sshkeys {} bob",
        "domfsfreeze {} --mountpoint /nowhere",
    ];
    let mut seen: Vec<Vec<String>> = Vec::new();
    for service in [Service::Stock, Service::QemuGuestAgent] {
        let Some(mut domain) = Domain::with(&Options::default().disks().processors("2").systemd(service))
        else {
            return;
        };
        give_an_address(&mut domain);
        let of_one = SHOWN.map(|line| {
            let (succeeded, said) = domain.virsh(line);
            // What is written while the two are looked at.
            let kept: Vec<&str> = said.lines().filter(|line| !line.contains("used-bytes")).collect();
            format!("virsh {line}: {succeeded}\n{}", kept.join("\n"))
        });
        seen.push(of_one.to_vec());
    }
    for (stock, ours) in seen[0].iter().zip(&seen[1]) {
        assert_eq!(ours, stock);
    }
    let all = seen[1].join("\n");
    for wanted in [
        "fs.1.mountpoint     : /mnt/ext4",
        "fs.1.disk.0.alias   : vdb",
        "fs.1.disk.0.serial  : ext4",
        "hostname            : guest",
        "os.id               : debian",
        "10.0.2.15/24",
    ] {
        assert!(all.contains(wanted), "{wanted}: {all}");
    }
}

#[test]
fn virsh_qemu_agent_command_hands_json_in_and_out() {
    let Some(domain) = domain() else { return };
    assert_eq!(domain.agent_command(&json!({ "execute": "guest-ping" })), json!({ "return": {} }));
    assert_eq!(
        domain.agent_command(&json!({ "execute": "guest-ping", "id": "x" })),
        json!({ "return": {}, "id": "x" })
    );
    // What KubeVirt and others ask after: all that it needs is there.
    let info = domain.agent_command(&json!({ "execute": "guest-info" }));
    let enabled = |name: &str| {
        let entry = json!({ "name": name, "enabled": true, "success-response": true });
        info["return"]["supported_commands"].as_array().unwrap().contains(&entry)
    };
    for name in ["guest-ping", "guest-get-fsinfo", "guest-get-users", "guest-exec", "guest-exec-status"] {
        assert!(enabled(name), "{name}: {info}");
    }
    // A program, by a client that asks for its end at once and again and again.
    let exec = json!({ "execute": "guest-exec", "arguments": { "path": "/bin/sh", "arg": ["-c", "cat; exit 3"], "input-data": "aGVsbG8=", "capture-output": true } });
    let pid = domain.agent_command(&exec)["return"]["pid"].clone();
    let until = Instant::now() + SOON;
    let status = loop {
        let ask = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        let status = domain.agent_command(&ask)["return"].clone();
        if status["exited"] == true {
            break status;
        }
        assert!(Instant::now() < until, "{status}");
    };
    assert_eq!(
        status,
        json!({ "exited": true, "exitcode": 3, "out-data": "aGVsbG8=", "out-truncated": false })
    );
    let (succeeded, said) = domain.virsh("qemu-agent-command {} {\"execute\":\"guest-nothing\"}");
    assert!(!succeeded && said.contains("The command guest-nothing has not been found"), "{said}");
}

/// Started on a filesystem each; what comes to an end leaves a file in `/run`.
fn start_writers(domain: &mut Domain) {
    domain.sh("rm -f /run/done.*; for m in root mnt/ext4 mnt/xfs; do (echo x > /$m/w; sync -f /$m/w; touch /run/done.${m##*/}) >/dev/null 2>&1 </dev/null & done");
}

#[test]
fn virsh_domfsfreeze_stops_writers_and_domfsthaw_lets_them_go_on() {
    let Some(mut domain) = domain_with_disks() else { return };
    assert_eq!(domain.output("domfsfreeze {}"), "Froze 3 filesystem(s)");
    start_writers(&mut domain);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(domain.sh("ls /run | grep done || true"), "");
    // libvirt takes what is disabled for what the agent does not have.
    let (succeeded, said) = domain.virsh("domhostname {} --source agent");
    assert!(!succeeded && said.contains("no hostname found for domain guest"), "{said}");
    assert_eq!(domain.output("domfsthaw {}"), "Thawed 3 filesystem(s)");
    assert!(domain.becomes_true("[ $(ls /run | grep -c done) = 3 ]", SOON));
    assert_eq!(domain.output("domfsthaw {}"), "Thawed 0 filesystem(s)");

    assert_eq!(domain.output("domfsfreeze {} --mountpoint /mnt/xfs"), "Froze 1 filesystem(s)");
    start_writers(&mut domain);
    assert!(domain.becomes_true("[ $(ls /run | grep -c done) = 2 ]", SOON));
    assert_eq!(
        domain.sh("ls /run/done.xfs 2>&1 || true"),
        "ls: cannot access '/run/done.xfs': No such file or directory"
    );
    assert_eq!(domain.output("domfsthaw {}"), "Thawed 1 filesystem(s)");
    assert!(domain.becomes_true("[ -e /run/done.xfs ]", SOON));
}

#[test]
fn virsh_domfstrim_gives_room_back_to_the_host() {
    let Some(mut domain) = domain_with_disks() else { return };
    let image = domain.folder().join("ext4.img");
    let room = || std::fs::metadata(&image).unwrap().blocks() / 2048;
    domain.sh("dd if=/dev/urandom of=/mnt/ext4/big bs=1M count=32 2>/dev/null; sync -f /mnt/ext4; rm /mnt/ext4/big; sync -f /mnt/ext4");
    let before = room();
    domain.output("domfstrim {}");
    let after = room();
    assert!(before >= 32 && after + 24 <= before, "{before} MiB before, {after} MiB after");
}

#[test]
fn a_snapshot_with_quiesce_has_on_disk_what_a_program_had_only_written() {
    let Some(mut domain) = domain_with_disks() else { return };
    let folder = domain.folder().display().to_string();
    domain.sh("echo 1000000 > /proc/sys/vm/dirty_writeback_centisecs; echo written > /mnt/ext4/probe");
    domain.output(
        &format!(
            "snapshot-create-as {{}} s1 --disk-only --quiesce --no-metadata --diskspec vda,snapshot=no \
         --diskspec vdb,file={folder}/b.qcow2 --diskspec vdc,file={folder}/c.qcow2"
        )
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" "),
    );
    // Thawed: what is written from now on goes to the new files.
    domain.sh("echo later > /mnt/ext4/later; sync -f /mnt/ext4/later; echo later > /mnt/xfs/later; sync -f /mnt/xfs/later");
    let image = format!("{folder}/ext4.img");
    let show = |name: &str| {
        let read = Command::new("debugfs").args(["-R", &format!("cat {name}"), &image]).output().unwrap();
        String::from_utf8_lossy(&read.stdout).into_owned()
    };
    assert_eq!(show("/probe"), "written\n");
    assert_eq!(show("/later"), "");
    // A frozen filesystem has nothing left in its journal.
    let check = Command::new("e2fsck").args(["-fn", &image]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && !said.contains("recover"), "{said}");
    let log = domain.sh("journalctl -o cat --no-pager _COMM=portreeve-broke");
    let order: Vec<usize> = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
        .iter()
        .map(|name| log.find(name).expect(name))
        .collect();
    assert!(order[0] < order[1], "{log}");
}

fn guests_clock(domain: &mut Domain) -> i64 {
    domain.sh("date +%s").parse().unwrap()
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

#[test]
fn virsh_domtime_reads_and_sets_the_guests_clock_in_all_its_forms() {
    let Some(mut domain) = domain() else { return };
    let read = |domain: &Domain| -> i64 {
        domain.output("domtime {}").strip_prefix("Time: ").unwrap().parse().unwrap()
    };
    assert!((read(&domain) - guests_clock(&mut domain)).abs() <= 2);
    assert_eq!(domain.output("domtime {} --time 1000000000"), "");
    assert!((guests_clock(&mut domain) - 1_000_000_000).abs() <= 10);
    let pretty = domain.output("domtime {} --pretty");
    assert!(pretty.starts_with("Time: 2001-09-09 01:46:"), "{pretty}");
    // The hardware clock was set with it.
    assert!(domain.sh("busybox hwclock -u").contains("2001"), "{}", domain.sh("busybox hwclock -u"));
    domain.output("domtime {} --now");
    assert!((guests_clock(&mut domain) - now()).abs() <= 10);
    assert!((read(&domain) - now()).abs() <= 10);
    // From the hardware clock.
    domain.sh("date -s @1100000000");
    domain.output("domtime {} --sync");
    assert!((guests_clock(&mut domain) - now()).abs() <= 10, "{} {}", guests_clock(&mut domain), now());
}

#[test]
fn virsh_set_user_password_sets_it_and_says_why_it_cannot() {
    let Some(mut domain) = domain() else { return };
    let set = domain.output("set-user-password {} alice s3cret");
    assert_eq!(set, "Password set successfully for alice in guest");
    // perl's crypt is the C library's, which knows all of Debian's ways.
    let login = "perl -e '@f = getpwnam(\"alice\"); exit(crypt(shift, $f[1]) ne $f[1])' ";
    domain.sh(&format!("{login} s3cret"));
    assert!(!domain.becomes_true(&format!("{login} other"), Duration::ZERO));
    let before = domain.sh("md5sum /etc/shadow");
    let (succeeded, said) = domain.virsh("set-user-password {} nobodyknows hunter2");
    assert!(!succeeded);
    let wanted = "unable to execute QEMU agent command 'guest-set-user-password': child process has failed to set user password: chpasswd: ";
    assert!(said.contains(wanted) && said.contains("nobodyknows") && !said.contains("hunter2"), "{said}");
    assert_eq!(domain.sh("md5sum /etc/shadow"), before);
    // A hash, made elsewhere.
    domain.output("set-user-password {} alice $6$abc$def --encrypted");
    assert_eq!(domain.sh("grep ^alice: /etc/shadow | cut -d: -f2"), "$6$abc$def");
}

#[test]
fn virsh_keeps_a_users_ssh_keys() {
    let Some(mut domain) = domain() else { return };
    let keys = domain.folder().join("keys");
    std::fs::write(&keys, "ssh-ed25519 AAAAC3Nz first\nssh-ed25519 AAAAC3Nx second\n").unwrap();
    let keys = keys.display();
    let file = "/home/alice/.ssh/authorized_keys";
    domain.output(&format!("set-user-sshkeys {{}} alice --file {keys}"));
    assert_eq!(domain.sh(&format!("stat -c '%a %U' {file}")), "600 alice");
    assert_eq!(domain.sh(&format!("grep -c . {file}")), "2");
    let shown = domain.output("get-user-sshkeys {} alice");
    assert!(shown.contains("AAAAC3Nz first") && shown.contains("AAAAC3Nx second"), "{shown}");
    std::fs::write(domain.folder().join("one"), "ssh-ed25519 AAAAC3Nz first\n").unwrap();
    let one = domain.folder().join("one").display().to_string();
    domain.output(&format!("set-user-sshkeys {{}} alice --file {one} --remove"));
    assert_eq!(domain.output("get-user-sshkeys {} alice"), "ssh-ed25519 AAAAC3Nx second");
    // --reset puts these in the place of all others.
    domain.output(&format!("set-user-sshkeys {{}} alice --file {one} --reset"));
    assert_eq!(domain.sh(&format!("cat {file}")), "ssh-ed25519 AAAAC3Nz first");
    let (succeeded, said) = domain.virsh("get-user-sshkeys {} nobodyknows");
    assert!(!succeeded && said.contains("failed to lookup user 'nobodyknows'"), "{said}");
}

#[test]
fn virsh_takes_a_processor_from_the_guest_and_gives_it_back() {
    let Some(mut domain) = Domain::with(&Options::default().systemd(Service::QemuGuestAgent).processors("2"))
    else {
        return;
    };
    let online = "cat /sys/devices/system/cpu/online";
    assert_eq!(domain.output("vcpucount {} --guest"), "2");
    domain.output("setvcpus {} 1 --guest");
    assert_eq!(domain.sh(online), "0");
    assert_eq!(domain.output("vcpucount {} --guest"), "1");
    domain.output("guestvcpus {} --cpulist 1 --enable");
    assert_eq!(domain.sh(online), "0-1");
    domain.output("guestvcpus {} --cpulist 1 --disable");
    assert_eq!(domain.sh(online), "0");
    domain.output("setvcpus {} 2 --guest");
    assert_eq!(domain.sh(online), "0-1");
    let shown = domain.output("guestvcpus {}");
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(words, ["vcpus", ":", "0-1", "online", ":", "0-1", "offlinable", ":", "1"]);
}

#[test]
fn a_domain_that_virsh_suspends_wakes_up_with_its_agent() {
    let Some(mut domain) = domain() else { return };
    let before = domain.sh("echo here > /run/here; cat /proc/sys/kernel/random/boot_id");
    domain.output("dompmsuspend {} --target mem");
    state_becomes(&domain, "pmsuspended");
    domain.output("dompmwakeup {}");
    state_becomes(&domain, "running");
    domain.wait_for_agent();
    assert_eq!(domain.output("domhostname {} --source agent"), "guest");
    assert_eq!(domain.sh("cat /run/here /proc/sys/kernel/random/boot_id"), format!("here\n{before}"));
}

#[test]
fn a_domain_reboots_and_shuts_down_through_its_agent_in_order() {
    let Some(mut domain) = domain() else { return };
    let before = domain.sh("cat /proc/sys/kernel/random/boot_id");
    let said = domain.output("reboot {} --mode agent");
    assert_eq!(said, "Domain 'guest' is being rebooted");
    let other = format!("[ -e /run/up ] && ! grep -q {before} /proc/sys/kernel/random/boot_id");
    assert!(domain.becomes_true(&other, Duration::from_secs(90)), "{}", domain.console());
    assert_eq!(domain.console().matches("vm: orderly shutdown").count(), 1, "{}", domain.console());
    domain.wait_for_agent();
    let said = domain.output("shutdown {} --mode agent");
    assert_eq!(said, "Domain 'guest' is being shutdown");
    let until = Instant::now() + Duration::from_secs(60);
    while domain.output("list --name").contains("guest") {
        assert!(Instant::now() < until, "{}", domain.console());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(domain.console().matches("vm: orderly shutdown").count(), 2, "{}", domain.console());
}
