//! Passwords and authorized keys, of users of a guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use serde_json::{Value, json};
use vm::{Guest, Options};

fn password(user: &str, base64: &str, crypted: bool) -> Value {
    json!({ "username": user, "password": base64, "crypted": crypted })
}

/// The second field of a line of `/etc/shadow`.
fn hash(guest: &mut Guest, user: &str) -> String {
    guest.output(&format!("grep ^{user}: /etc/shadow | cut -d: -f2"))
}

/// Alice with a home, as useradd(8) would have made it.
fn home(guest: &mut Guest) {
    guest.output(
        "rm -rf /home; mkdir -p /home/alice && chown alice:alice /home/alice && chmod 755 /home/alice; \
         rm -rf /root/.ssh; echo theirs > /root/secret; chmod 600 /root/secret",
    );
}

#[test]
fn a_password_that_is_set_is_the_one_in_shadow() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // "wonder:land", with the line feed that virsh and others put behind base64.
    let done = guest.agent.call("guest-set-user-password", password("alice", "d29uZGVyOmxhbmQ=\n", false));
    assert_eq!(done.unwrap(), json!({}));
    let shadow = hash(&mut guest, "alice");
    let parts: Vec<&str> = shadow.split('$').collect();
    assert_eq!(parts[1], "6", "{shadow}");
    let again = guest.output(&format!("mkpasswd -m sha512 -S '{}' wonder:land", parts[2]));
    assert_eq!(shadow, again);
    assert_eq!(hash(&mut guest, "root"), "*");
    assert_eq!(guest.output("stat -c '%a %U %G' /etc/shadow"), "600 root root");
}

#[test]
fn a_hash_is_set_as_it_is() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // "$6$abc$def"
    guest.agent.call("guest-set-user-password", password("alice", "JDYkYWJjJGRlZg==", true)).unwrap();
    assert_eq!(hash(&mut guest, "alice"), "$6$abc$def");
}

#[test]
fn what_cannot_be_set_is_told_and_changes_nothing() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    let before = guest.output("md5sum /etc/shadow /etc/passwd");
    let mut set = |user: &str, base64: &str| {
        guest.agent.call("guest-set-user-password", password(user, base64, false)).unwrap_err().desc
    };
    assert_eq!(set("alice", "YQpyb290OmI="), "forbidden characters in raw password");
    assert_eq!(set("alice:x", "YQ=="), "forbidden characters in username");
    assert_eq!(set("alice\nroot", "YQ=="), "forbidden characters in username");
    assert_eq!(set("alice", "a b"), "Base64 data '(secret)' is not valid");
    let unknown = set("bob", "aHVudGVyMi1vZi1ib2I=");
    assert!(unknown.starts_with("child process has failed to set user password: chpasswd: "), "{unknown}");
    assert!(unknown.contains("bob") && !unknown.contains("hunter2"), "{unknown}");
    assert_eq!(guest.output("md5sum /etc/shadow /etc/passwd"), before);
    guest.output("mv /usr/sbin/chpasswd /usr/sbin/elsewhere");
    let gone = guest.agent.call("guest-set-user-password", password("alice", "YQ==", false)).unwrap_err();
    let wanted = "child process has failed to set user password: failed to exec 'chpasswd': No such file or directory\n";
    assert_eq!(gone.desc, wanted);
    assert!(!guest.agent_log().contains("hunter2"));
}

/// Somebody looks at every process all the time, who may see everything.
#[test]
fn a_password_is_on_no_command_line_and_in_no_environment() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    // A chpasswd that takes its time, so that it is surely seen.
    guest.output(
        "mv /usr/sbin/chpasswd /usr/sbin/real; \
         printf '#!/bin/sh\\nsleep 3\\nexec /usr/sbin/real \"$@\"\\n' > /usr/sbin/chpasswd; chmod 755 /usr/sbin/chpasswd; \
         (while [ ! -e /run/stop ]; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; done > /run/seen) &",
    );
    let call = password("alice", "d29uZGVybGFuZC1zZWNyZXQ=", false);
    guest.agent.call("guest-set-user-password", call).unwrap();
    guest.output("touch /run/stop; sleep 1");
    assert_eq!(guest.sh("grep -qa /usr/sbin/chpasswd /run/seen").0, 0, "it was not even seen");
    for secret in ["wonderland-secret", "d29uZGVybGFuZC1zZWNyZXQ"] {
        assert_eq!(guest.sh(&format!("grep -qa '{}' /run/seen", bracketed(secret))).0, 1, "{secret}");
        assert_eq!(guest.sh(&format!("grep -qa '{}' /run/agent.log", bracketed(secret))).0, 1, "{secret}");
    }
    assert_eq!(hash(&mut guest, "alice").get(..3), Some("$6$"));
}

/// A pattern that matches `text` and not itself, since it stands on command lines.
fn bracketed(text: &str) -> String {
    format!("[{}]{}", &text[..1], &text[1..])
}

/// One after the other on the same homes, step by step: answers, bytes, modes and owners.
#[test]
fn keys_are_listed_added_and_removed_as_by_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    let steps: Vec<(&str, &str, Value)> = vec![
        ("", "guest-ssh-get-authorized-keys", json!({ "username": "alice" })),
        ("", "guest-ssh-remove-authorized-keys", json!({ "username": "alice", "keys": ["k"] })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["algo k1 c"] })),
        (
            "",
            "guest-ssh-add-authorized-keys",
            json!({ "username": "alice", "keys": ["algo k2", "algo k1 c", "algo k2"] }),
        ),
        ("", "guest-ssh-get-authorized-keys", json!({ "username": "alice" })),
        (
            "",
            "guest-ssh-add-authorized-keys",
            json!({ "username": "alice", "keys": ["", "algo k1"], "reset": false }),
        ),
        (
            "printf '# c\\nalgo a\\n\\n  algo b \\nalgo a\\n' > F; chmod 644 F",
            "guest-ssh-get-authorized-keys",
            json!({ "username": "alice" }),
        ),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["algo new"] })),
        (
            "",
            "guest-ssh-remove-authorized-keys",
            json!({ "username": "alice", "keys": ["algo a", "absent", "algo b"] }),
        ),
        ("", "guest-ssh-remove-authorized-keys", json!({ "username": "alice", "keys": [] })),
        (
            "",
            "guest-ssh-add-authorized-keys",
            json!({ "username": "alice", "keys": ["algo k3"], "reset": true }),
        ),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": [], "reset": true })),
        ("", "guest-ssh-get-authorized-keys", json!({ "username": "alice" })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["#k"] })),
        ("", "guest-ssh-remove-authorized-keys", json!({ "username": "alice", "keys": ["a\nb"] })),
        ("", "guest-ssh-get-authorized-keys", json!({ "username": "nobody-here" })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "", "keys": [] })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "root", "keys": ["algo root"] })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice" })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": "k" })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["k", 1] })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["k"], "reset": 1 })),
        ("", "guest-ssh-get-authorized-keys", json!({})),
        ("rm -rf /home/alice", "guest-ssh-get-authorized-keys", json!({ "username": "alice" })),
        ("", "guest-ssh-remove-authorized-keys", json!({ "username": "alice", "keys": ["k"] })),
        ("", "guest-ssh-add-authorized-keys", json!({ "username": "alice", "keys": ["k"] })),
    ];
    let mut seen: Vec<Vec<String>> = Vec::new();
    for stock in [true, false] {
        home(&mut guest);
        if stock {
            guest.start_qemu_ga(&[])
        } else {
            guest.start_portreeve(&[])
        }
        let mut of_one = Vec::new();
        for (before, command, arguments) in &steps {
            if !before.is_empty() {
                guest.output(&before.replace('F', "/home/alice/.ssh/authorized_keys"));
            }
            let answer = match guest.agent.call(command, arguments.clone()) {
                Ok(value) => value.to_string(),
                Err(error) => error.to_string(),
            };
            let files = guest.output(
                "for d in /home/alice /root; do for f in $d/.ssh $d/.ssh/*; do \
                 [ -e $f ] && stat -c '%n %a %U %G %F' $f && [ -f $f ] && od -c $f; done; done; true",
            );
            of_one.push(format!("{before} {command} {arguments}: {answer}\n{files}"));
        }
        seen.push(of_one);
        guest.stop_agent();
    }
    for (stock, ours) in seen[0].iter().zip(&seen[1]) {
        assert_eq!(ours, stock);
    }
    assert!(seen[1][3].contains("600 alice alice"), "{}", seen[1][3]);
    assert!(seen[1][17].contains("/root/.ssh/authorized_keys 600 root root"), "{}", seen[1][17]);
}

#[test]
fn links_in_a_home_that_qemu_ga_follows_are_refused() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    let read = json!({ "username": "alice" });
    let add = json!({ "username": "alice", "keys": ["algo evil"] });
    for stock in [true, false] {
        if stock {
            guest.start_qemu_ga(&[])
        } else {
            guest.start_portreeve(&[])
        }
        // Root's file is read for who may not.
        home(&mut guest);
        guest.output("mkdir /home/alice/.ssh; ln -s /root/secret /home/alice/.ssh/authorized_keys; chown -R alice:alice /home/alice");
        let keys = guest.agent.call("guest-ssh-get-authorized-keys", read.clone());
        let added = guest.agent.call("guest-ssh-add-authorized-keys", add.clone());
        let copied = guest.sh("grep -q theirs /home/alice/.ssh/authorized_keys && [ ! -L /home/alice/.ssh/authorized_keys ]").0;
        if stock {
            assert_eq!(keys.unwrap(), json!({ "keys": ["theirs"] }));
            added.unwrap();
            assert_eq!(copied, 0);
        } else {
            for failed in [keys.unwrap_err(), added.unwrap_err()] {
                assert!(
                    failed.desc.contains("'/home/alice/.ssh/authorized_keys' is a symbolic link"),
                    "{failed}"
                );
            }
            assert_eq!(copied, 1);
        }
        // A key for root, by who may give one to nobody but herself.
        home(&mut guest);
        guest.output("mkdir -m 700 /root/.ssh; ln -s /root/.ssh /home/alice/.ssh; chown -h alice:alice /home/alice/.ssh");
        let added = guest.agent.call("guest-ssh-add-authorized-keys", add.clone());
        let given = guest.sh("cat /root/.ssh/authorized_keys 2>/dev/null").1;
        if stock {
            added.unwrap();
            assert_eq!(given.trim(), "algo evil");
        } else {
            let failed = added.unwrap_err();
            assert!(failed.desc.contains("'/home/alice/.ssh' is a symbolic link"), "{failed}");
            assert_eq!(given.trim(), "");
        }
        // A FIFO, which is opened for ever.
        if !stock {
            home(&mut guest);
            guest.output("mkdir /home/alice/.ssh; mkfifo /home/alice/.ssh/authorized_keys; chown -R alice:alice /home/alice");
            let failed = guest.agent.call("guest-ssh-get-authorized-keys", read.clone()).unwrap_err();
            assert!(failed.desc.ends_with("it is not a regular file"), "{failed}");
        }
        guest.stop_agent();
    }
}

#[test]
fn the_audit_log_says_whose_keys_and_passwords_and_not_what() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    home(&mut guest);
    guest.output(
        "printf 'policy = \"qemu-ga\"\\n\\n[audit]\\nsink = \"file\"\\npath = \"/run/audit.log\"\\nrequired = true\\n\\n[state]\\ndirectory = \"/run/agent\"\\n\\n\
         [[channel]]\\nname = \"host\"\\nmethod = \"virtio-serial\"\\npath = \"/dev/virtio-ports/org.qemu.guest_agent.0\"\\n\
         dialects = [\"qga\"]\\n' > /run/portreeve.toml",
    );
    guest.launch("/opt/portreeve/portreeve run --config /run/portreeve.toml");
    guest.agent.sync();
    let call = password("alice", "d29uZGVybGFuZC1zZWNyZXQ=", false);
    guest.agent.call("guest-set-user-password", call).unwrap();
    let key = "command=\"TOKEN\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN3q8Yx2kT0WfW1xJq3mA alice@example";
    let add = json!({ "username": "alice", "keys": [key] });
    guest.agent.call("guest-ssh-add-authorized-keys", add).unwrap();
    let log = guest.output("cat /run/audit.log");
    assert!(
        log.contains(r#""arguments":{"username":"alice","password":"(secret)","crypted":false}"#),
        "{log}"
    );
    // Records are ASCII.
    assert!(log.contains(r#""keys":["ssh-ed25519 \u2026Yx2kT0WfW1xJq3mA"]"#), "{log}");
    for hidden in ["d29u", "wonderland", "TOKEN", "example"] {
        assert!(!log.contains(hidden), "{hidden}: {log}");
    }
}
