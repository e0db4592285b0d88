//! Setting the clock, in a guest whose clock is nobody's but the test's.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use serde_json::json;
use vm::{Guest, Options};

const NANOSECONDS: i64 = 1_000_000_000;

fn now(guest: &mut Guest) -> i64 {
    guest.output("date +%s").parse().unwrap()
}

/// What the hardware clock shows, in seconds; it shows UTC.
fn hardware(guest: &mut Guest) -> i64 {
    let text = guest.output("cat /sys/class/rtc/rtc0/since_epoch");
    text.parse().unwrap()
}

fn near(left: i64, right: i64) -> bool {
    (left - right).abs() <= 3
}

#[test]
fn both_clocks_are_set_whatever_the_century() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    for seconds in [1_000_000_000, 1_795_000_000, 3_340_000_000, 1_795_000_001] {
        let arguments = json!({ "time": seconds * NANOSECONDS });
        assert_eq!(guest.agent.call("guest-set-time", arguments).unwrap(), json!({}), "{seconds}");
        assert!(near(now(&mut guest), seconds), "{seconds}");
        // A PC's hardware clock ends with 2069.
        assert!(seconds > 3_155_760_000 || near(hardware(&mut guest), seconds), "{seconds}");
        guest.agent.call("guest-ping", ()).unwrap();
    }
}

#[test]
fn without_a_time_the_hardware_clock_is_asked() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    let right = hardware(&mut guest);
    guest.output("date -s @1000000000");
    guest.agent.call("guest-set-time", ()).unwrap();
    assert!(near(now(&mut guest), right));
}

#[test]
fn a_hardware_clock_of_local_time_is_set_and_read_as_such() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    // A TZif file of version 1 with one type: two hours east.
    let header = "TZif\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\1\\0\\0\\0\\4";
    guest.output(&format!("printf '{header}\\0\\0\\34\\40\\0\\0ABC\\0' > /etc/localtime; printf '0.0 0 0.0\\n0\\nLOCAL\\n' > /etc/adjtime"));
    guest.start_portreeve(&[]);
    let seconds = 1_795_000_000;
    guest.agent.call("guest-set-time", json!({ "time": seconds * NANOSECONDS })).unwrap();
    assert!(near(now(&mut guest), seconds));
    assert!(near(hardware(&mut guest), seconds + 7200), "{}", hardware(&mut guest));
    guest.output("date -s @1000000000");
    guest.agent.call("guest-set-time", ()).unwrap();
    assert!(near(now(&mut guest), seconds));
}

#[test]
fn a_step_beyond_the_limit_is_refused_and_changes_nothing() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.output("mkdir -p /etc/portreeve; printf 'policy = \"qemu-ga\"\\n[clock]\\nmax-step-seconds = 60\\n' > /etc/portreeve/portreeve.toml");
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    let before = now(&mut guest);
    let refused =
        guest.agent.call("guest-set-time", json!({ "time": (before + 3600) * NANOSECONDS })).unwrap_err();
    assert!(refused.desc.ends_with("and `max-step-seconds` of the configuration permits 60"), "{refused}");
    assert!(now(&mut guest) - before < 60);
    guest.agent.call("guest-set-time", json!({ "time": (before + 30) * NANOSECONDS })).unwrap();
    let negative = guest.agent.call("guest-set-time", json!({ "time": -1 })).unwrap_err();
    assert_eq!(negative.desc, "Invalid time");
}

#[test]
fn a_step_beyond_what_its_rule_permits_is_refused_by_the_worker() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    let rules = "version = 1\n[[rule]]\noutcome = \"allow\"\n[rule.limits]\nclock-step-seconds = 60\n";
    guest.output(&format!(
        "mkdir -p /etc/portreeve; printf '{}' > /etc/portreeve/p.toml; \
         echo 'policy = \"/etc/portreeve/p.toml\"' > /etc/portreeve/portreeve.toml",
        rules.replace('\n', "\\n")
    ));
    guest.launch("/opt/portreeve/portreeve run");
    guest.agent.sync();
    let before = now(&mut guest);
    let refused =
        guest.agent.call("guest-set-time", json!({ "time": (before + 3600) * NANOSECONDS })).unwrap_err();
    assert!(refused.desc.ends_with("and `clock-step-seconds` of the policy permits 60"), "{refused}");
    assert!(now(&mut guest) - before < 60);
    guest.agent.call("guest-set-time", json!({ "time": (before + 30) * NANOSECONDS })).unwrap();
    assert!(now(&mut guest) >= before + 30);
}
