//! CPUs and memory blocks, online and offline.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use serde_json::{Value, json};
use vm::{Guest, Options};

fn vcpus(list: &[(i64, bool)]) -> Value {
    let list: Vec<Value> =
        list.iter().map(|(number, online)| json!({ "logical-id": number, "online": online })).collect();
    json!({ "vcpus": list })
}

fn online(guest: &mut Guest) -> String {
    guest.output("cat /sys/devices/system/cpu/online")
}

#[test]
fn a_cpu_goes_offline_and_online_and_the_first_cannot() {
    let Some(mut guest) = Guest::with(Options::default().processors("2")) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-set-vcpus", vcpus(&[(1, false)])).unwrap(), 1);
    assert_eq!(online(&mut guest), "0");
    assert_eq!(guest.agent.call("guest-set-vcpus", vcpus(&[(1, true), (0, false)])).unwrap(), 1);
    assert_eq!(online(&mut guest), "0-1");
    let first = guest.agent.call("guest-set-vcpus", vcpus(&[(0, false), (1, false)])).unwrap_err();
    assert_eq!(first.desc, "logical processor #0 can't be offlined");
    assert_eq!(online(&mut guest), "0-1");
    assert_eq!(guest.agent.call("guest-set-vcpus", vcpus(&[])).unwrap(), 0);
    let wrong = guest.agent.call("guest-set-vcpus", json!({ "vcpus": [{ "logical-id": 1 }] })).unwrap_err();
    assert_eq!(wrong.desc, "Parameter 'vcpus[0].online' is missing");
}

#[test]
fn a_cpu_that_was_plugged_in_comes_online() {
    let Some(mut guest) = Guest::with(Options::default().processors("1,maxcpus=3,sockets=3")) else { return };
    guest.start_portreeve(&[]);
    let arguments =
        json!({ "driver": "max-x86_64-cpu", "socket-id": 1, "core-id": 0, "thread-id": 0, "id": "new" });
    guest.qemu("device_add", arguments);
    assert!(
        guest.becomes_true("[ -e /sys/devices/system/cpu/cpu1/online ]", std::time::Duration::from_secs(20))
    );
    assert_eq!(guest.agent.call("guest-set-vcpus", vcpus(&[(1, true)])).unwrap(), 1);
    assert_eq!(online(&mut guest), "0-1");
}

#[test]
fn memory_that_was_plugged_in_comes_online_with_a_result_for_each_block() {
    let Some(mut guest) = Guest::with(Options::default().memory("512,slots=2,maxmem=2G")) else { return };
    guest.start_portreeve(&[]);
    guest.qemu("object-add", json!({ "qom-type": "memory-backend-ram", "id": "m1", "size": 256 << 20 }));
    guest.qemu("device_add", json!({ "driver": "pc-dimm", "id": "d1", "memdev": "m1" }));
    assert!(guest.becomes_true(
        "[ -e /sys/devices/system/memory/memory33/state ]",
        std::time::Duration::from_secs(20)
    ));
    let blocks = |list: &[(u64, bool)]| -> Value {
        let list: Vec<Value> =
            list.iter().map(|(number, online)| json!({ "phys-index": number, "online": online })).collect();
        json!({ "mem-blks": list })
    };
    let result =
        guest.agent.call("guest-set-memory-blocks", blocks(&[(32, true), (999, true), (33, true)])).unwrap();
    assert_eq!(
        result,
        json!([
            { "phys-index": 32, "response": "success" },
            { "phys-index": 999, "response": "not-found", "error-code": 2 },
            { "phys-index": 33, "response": "success" },
        ])
    );
    assert_eq!(guest.output("cat /sys/devices/system/memory/memory33/state"), "online");
    let result = guest.agent.call("guest-set-memory-blocks", blocks(&[(33, false)])).unwrap();
    let state = guest.output("cat /sys/devices/system/memory/memory33/state");
    assert_eq!(result[0]["response"] == "success", state == "offline", "{result} {state}");
}

/// Stock and ours one after the other, on the same guest.
#[test]
fn answers_and_effects_are_those_of_qemu_ga() {
    let Some(mut guest) = Guest::with(Options::default().processors("2")) else { return };
    let mut seen = Vec::new();
    for stock in [true, false] {
        if stock {
            guest.start_qemu_ga(&[])
        } else {
            guest.start_portreeve(&[])
        }
        let mut answers = Vec::new();
        for list in [
            vec![(1, false)],
            vec![(1, false), (0, false)],
            vec![(1, true), (7, true)],
            vec![(7, true)],
            vec![(0, true)],
        ] {
            let answer = guest.agent.call("guest-set-vcpus", vcpus(&list));
            answers.push((answer.map_err(|error| error.to_string()), online(&mut guest)));
        }
        for wrong in [
            json!({}),
            json!({ "vcpus": 1 }),
            json!({ "vcpus": [1] }),
            json!({ "vcpus": [{ "online": true }] }),
            json!({ "vcpus": [{ "logical-id": "1", "online": true }] }),
            json!({ "vcpus": [{ "logical-id": 1, "online": true, "x": 1 }] }),
        ] {
            answers.push((
                guest.agent.call("guest-set-vcpus", wrong).map_err(|error| error.to_string()),
                String::new(),
            ));
        }
        let absent = json!({ "mem-blks": [{ "phys-index": 9999, "online": true }] });
        answers.push((
            guest.agent.call("guest-set-memory-blocks", absent).map_err(|error| error.to_string()),
            String::new(),
        ));
        seen.push(answers);
        guest.stop_agent();
    }
    assert_eq!(seen[0], seen[1]);
}
