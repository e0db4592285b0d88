//! Rules about arguments, limits and what is left out, as a host meets them: policy files and whole agents.
//!
//! What could change this machine is only ever refused here; where that is tested, the agent runs without any right, so that a refusal
//! that fails to come changes nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::collections::BTreeSet;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::{Agent, Host, private_directory, wait_until};
use tests::programs;

/// Rules under the head that every policy has.
fn policy(rules: &str) -> String {
    format!("version = 1\n{rules}")
}

fn configuration(rules: &str) -> (tempfile::TempDir, String) {
    let directory = private_directory();
    std::fs::write(directory.path().join("policy.toml"), policy(rules)).unwrap();
    let configuration = "policy = \"DIR/policy.toml\"\n[[channel]]\nname = \"test\"\nmethod = \"unix-listen\"\n\
                         path = \"DIR/sock\"\ndialects = [\"qga\", \"phoenix\"]\n[state]\ndirectory = \"DIR/state\"\n[audit]\nsink = \"file\"\n\
                         path = \"DIR/audit.log\"\n";
    (directory, configuration.to_owned())
}

/// An agent of an ordinary user.
fn without_rights(rules: &str) -> Option<Agent> {
    if !programs::is_root() {
        programs::left_out("only root can become another user");
        return None;
    }
    let (directory, configuration) = configuration(rules);
    chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let mut command = tests::agent::run(programs::program("portreeve"), directory.path(), &configuration);
    command.uid(65534).gid(65534);
    Some(Agent::start(command, directory))
}

/// An agent in a network namespace of its own.
fn with_own_network(rules: &str) -> Option<Agent> {
    if !programs::is_root() {
        programs::left_out("only root can make a network namespace");
        return None;
    }
    let (directory, configuration) = configuration(rules);
    let run = tests::agent::run(programs::program("portreeve"), directory.path(), &configuration);
    let mut command = Command::new("unshare");
    command.arg("--net").arg(run.get_program()).args(run.get_args());
    Some(Agent::start(command, directory))
}

/// What became of the requests of one command, in their order: what was decided, by which line of the policy, done by whom.
fn decisions(agent: &Agent, command: &str) -> Vec<(String, u64, Option<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let records = agent.audit();
    let of_command =
        records.iter().filter(|record| record["command"] == command && record["kind"] == "request");
    of_command
        .map(|record| {
            let rule = text(&record["rule"]);
            let line = rule.rsplit_once(':').map_or(0, |(_, line)| line.parse().unwrap());
            (text(&record["decision"]), line, record["worker"].as_str().map(str::to_owned))
        })
        .collect()
}

fn runs(agent: &Agent, name: &str) -> bool {
    agent.processes().iter().any(|(known, _)| known == name)
}

/// The text of a refusal that is about arguments.
fn refused(host: &mut Host, command: &str, arguments: Value) -> String {
    let reply = host.ask(json!({ "execute": command, "arguments": arguments }).to_string());
    assert_eq!(reply["error"]["class"], "GenericError", "{reply}");
    reply["error"]["desc"].as_str().unwrap().to_owned()
}

fn phoenix(host: &mut Host, command: &str, arguments: Value) -> Value {
    host.ask(json!({ "execute": command, "arguments": arguments, "tag": "t" }).to_string())
}

/// Runs a program to its end; its status.
fn run(host: &mut Host, arguments: Value) -> Value {
    let pid = host.call("guest-exec", arguments)["pid"].clone();
    let mut status = json!({});
    assert!(wait_until(|| {
        status = host.call("guest-exec-status", json!({ "pid": pid }));
        status["exited"] == true
    }));
    status
}

fn decoded(base64: &Value) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64.as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn members(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

// ---------------------------------------------------------------- what is left out

const REDACTED: &str = r#"
    [[rule]]
    outcome = "redact"
    groups = ["query", "net.query"]
    [rule.redact]
    interfaces = ["lo"]
    mountpoints = ["/**"]
    users = ["**"]
    disks = ["/dev/**"]
    members = ["kernel", "serials", "hardware-addresses", "statistics", "sizes"]
"#;

#[test]
fn what_is_left_out_is_not_in_any_reply_and_the_rest_is_as_without() {
    let agents = [Agent::run("qga,phoenix", &policy(REDACTED)), Agent::run("qga,phoenix", "observe")];
    let [mut redacted, mut plain] = agents.each_ref().map(Agent::connect);
    let os = redacted.call("guest-get-osinfo", json!({}));
    let mut wanted = plain.call("guest-get-osinfo", json!({}));
    let kernel =
        ["kernel-release", "kernel-version"].map(|name| wanted.as_object_mut().unwrap().remove(name));
    assert!(kernel.iter().all(Option::is_some));
    assert_eq!(os, wanted);
    for command in ["guest-get-users", "guest-get-fsinfo", "guest-get-disks", "guest-get-diskstats"] {
        assert_eq!(redacted.call(command, json!({})), json!([]), "{command}");
    }
    let names = |reply: &Value, member: &str| -> Vec<String> {
        reply.as_array().unwrap().iter().map(|item| item[member].as_str().unwrap().to_owned()).collect()
    };
    let (reply, all) = (
        redacted.call("guest-network-get-interfaces", json!({})),
        plain.call("guest-network-get-interfaces", json!({})),
    );
    let others: Vec<String> = names(&all, "name").into_iter().filter(|name| name != "lo").collect();
    assert!(names(&all, "name").contains(&"lo".to_owned()));
    assert_eq!(names(&reply, "name"), others);
    for interface in reply.as_array().unwrap() {
        let left: BTreeSet<_> = ["name", "ip-addresses"].map(str::to_owned).into();
        assert!(members(interface).is_subset(&left), "{interface}");
    }
    for (command, member) in [("guest-network-get-route", "iface"), ("get-route-list", "ifname")] {
        let routes = redacted.ask(json!({ "execute": command }).to_string());
        assert!(!names(&routes["return"], member).contains(&"lo".to_owned()), "{command}");
    }
    let reply = redacted.ask("{\"execute\":\"get-netifaces\"}");
    assert_eq!(names(&reply["return"], "name"), others);
    assert!(reply["return"].as_array().unwrap().iter().all(|interface| interface["hwaddr"] == ""));
}

// Phoenix's clients decode into structs that have every member.
#[test]
fn sysinfo_keeps_all_its_members() {
    let agents = [Agent::run("qga,phoenix", &policy(REDACTED)), Agent::run("qga,phoenix", "observe")];
    let [redacted, plain] = agents.each_ref().map(|agent| agent.connect().ask("{\"execute\":\"sysinfo\"}"));
    if plain["error"].is_object() {
        // As Phoenix's own: without utmp there is no sysinfo.
        return assert_eq!(redacted, plain);
    }
    let (redacted, plain) = (&redacted["return"], &plain["return"]);
    assert_eq!(members(redacted), members(plain));
    assert_eq!(members(&redacted["uname"]), members(&plain["uname"]));
    assert_eq!((&redacted["uname"]["release"], &redacted["uname"]["version"]), (&json!(""), &json!("")));
    assert_eq!((&redacted["users"], &redacted["disks"]), (&json!([]), &json!([])));
    assert_eq!(redacted["uname"]["nodename"], plain["uname"]["nodename"]);
}

// ---------------------------------------------------------------- how often

const ONE_A_SECOND: &str = "[[rule]]\noutcome = \"allow\"\n[rule.limits]\nrequests-per-second = 1\n";

#[test]
fn more_than_a_rule_lets_through_is_refused_until_the_time_that_the_refusal_names() {
    let agent = Agent::run("qga", &policy(ONE_A_SECOND));
    let mut host = agent.connect();
    let begin = Instant::now();
    for _ in 0..10 {
        host.call("guest-get-host-name", json!({}));
    }
    let text = refused(&mut host, "guest-get-host-name", json!({}));
    let begins = "Command guest-get-host-name: Resource temporarily unavailable: the policy lets 1 of these through in a second; \
                  try again in ";
    let wait = text.strip_prefix(begins).and_then(|rest| rest.strip_suffix(" ms"));
    let wait: u64 = wait.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    assert!(wait <= 1000 && begin.elapsed() < Duration::from_secs(1), "{wait} {:?}", begin.elapsed());
    // Other commands under the same rule wait as well.
    refused(&mut host, "guest-get-load", json!({}));
    std::thread::sleep(Duration::from_millis(wait));
    host.call("guest-get-host-name", json!({}));
    let decisions = decisions(&agent, "guest-get-host-name");
    let query = Some("query".to_owned());
    assert_eq!(decisions[9], ("allow".to_owned(), 2, query.clone()));
    assert_eq!(decisions[10], ("deny".to_owned(), 2, None));
    assert_eq!(decisions[11], ("allow".to_owned(), 2, query));
}

#[test]
fn what_tells_whether_the_agent_lives_is_never_counted() {
    let agent = Agent::run("qga,phoenix", &policy(ONE_A_SECOND));
    let mut host = agent.connect();
    for number in 0..30 {
        host.call("guest-ping", json!({}));
        assert_eq!(host.call("guest-sync", json!({ "id": number })), number);
        host.call("guest-info", json!({}));
        assert_eq!(host.call("guest-fsfreeze-status", json!({})), "thawed");
        assert_eq!(phoenix(&mut host, "get-freeze-status", json!({}))["return"], false);
        assert!(phoenix(&mut host, "ping", json!({}))["return"].is_string());
    }
    let pid = host.call("guest-exec", json!({ "path": "sleep", "arg": ["60"] }))["pid"].clone();
    for _ in 0..30 {
        assert_eq!(host.call("guest-exec-status", json!({ "pid": pid })), json!({ "exited": false }));
    }
    tests::agent::signal(pid.as_u64().unwrap().try_into().unwrap(), "KILL");
}

// ---------------------------------------------------------------- programs

const PROGRAMS: &str = r#"
    [[rule]]
    outcome = "allow"
    groups = ["exec"]
    [[rule.program]]
    path = "/bin/echo"
    arguments = ["-n", { one-of = ["a", "b"] }, { like = "x-*" }]
    environment = ["LC_*"]
    [[rule.program]]
    path = "/bin/cat"
    arguments = []
    environment = []
    input = true
"#;

#[test]
fn a_program_is_run_as_its_template_says_and_not_otherwise() {
    let agent = Agent::run("qga", &policy(PROGRAMS));
    let mut host = agent.connect();
    let echo = |arguments: &[&str], environment: Option<&str>| {
        let mut exec = json!({ "path": "/bin/echo", "arg": arguments, "capture-output": true });
        if let Some(entry) = environment {
            exec["env"] = json!([entry]);
        }
        exec
    };
    let why = "Command guest-exec: Permission denied: the policy does not allow this exec";
    for exec in [
        echo(&["-n", "c", "x-1"], None),
        echo(&["-n", "a", "y-1"], None),
        echo(&["-n", "a", "x-1", "more"], None),
        echo(&["-n", "a"], None),
        echo(&["-n", "a", "x-1"], Some("LD_PRELOAD=/tmp/a.so")),
        json!({ "path": "echo", "arg": ["-n", "a", "x-1"] }),
        json!({ "path": "/bin/../bin/echo", "arg": ["-n", "a", "x-1"] }),
        json!({ "path": "/bin/echo", "arg": ["-n", "a", "x-1"], "input-data": "YQ==" }),
        json!({ "path": "/bin/cat", "arg": ["/etc/shadow"] }),
        json!({ "path": "/bin/sh", "arg": ["-c", "id"] }),
    ] {
        assert_eq!(refused(&mut host, "guest-exec", exec.clone()), why, "{exec}");
    }
    assert!(!runs(&agent, "exec"), "nothing was permitted so far");
    assert!(
        decisions(&agent, "guest-exec")
            .iter()
            .all(|(decision, _, worker)| decision == "deny" && worker.is_none())
    );

    let status = run(&mut host, echo(&["-n", "a", "x-1"], Some("LC_ALL=C")));
    assert_eq!(decoded(&status["out-data"]), "a x-1");
    let cat = json!({ "path": "/bin/cat", "input-data": "YWJj", "capture-output": true });
    assert_eq!(decoded(&run(&mut host, cat)["out-data"]), "abc");
}

#[test]
fn a_program_ends_when_its_time_is_over_and_keeps_as_much_output_as_the_rule_says() {
    let limits = "[rule.limits]\nrun-seconds = 1\noutput-bytes = 3\n";
    let rules = format!("[[rule]]\noutcome = \"allow\"\ngroups = [\"exec\"]\n{limits}");
    let agent = Agent::run("qga", &policy(&rules));
    let mut host = agent.connect();
    let script = "echo abcdef; sleep 600";
    let status = run(&mut host, json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true }));
    assert_eq!(status, json!({ "exited": true, "signal": 9, "out-data": "YWJj", "out-truncated": true }));
}

#[test]
fn a_program_runs_as_the_user_of_its_rule() {
    let rules =
        "[[rule]]\noutcome = \"allow\"\ngroups = [\"exec\"]\n[rule.limits]\nrun-as = \"65534:65533\"\n";
    let id = json!({ "path": "/usr/bin/id", "capture-output": true });
    if programs::is_root() {
        let agent = Agent::run("qga", &policy(rules));
        let status = run(&mut agent.connect(), id.clone());
        let said = decoded(&status["out-data"]);
        assert!(said.starts_with("uid=65534") && said.contains(" gid=65533"), "{said}");
        assert!(
            said.trim_end().split("groups=").nth(1).is_none_or(|groups| groups.starts_with("65533")),
            "{said}"
        );
    }
    let Some(agent) = without_rights(rules) else { return };
    let why = "Failed to execute child process “/usr/bin/id” (the policy has it run as 65534:65533, which needs an agent that \
               was started by root)";
    assert_eq!(refused(&mut agent.connect(), "guest-exec", id), why);
}

// ---------------------------------------------------------------- files

#[test]
fn files_that_are_made_belong_to_the_user_of_the_rule_that_lets_them_be_made() {
    let (directory, _) = configuration("");
    let place = directory.path().canonicalize().unwrap().display().to_string();
    let rule = |paths: &str, limits: &str| {
        format!(
            "[[rule]]\noutcome = \"allow\"\ngroups = [\"file.write\"]\npaths = [\"{place}/{paths}\"]\n{limits}"
        )
    };
    let rules = [rule("theirs/**", "[rule.limits]\nrun-as = \"12345:54321\"\n"), rule("**", "")].concat();
    std::fs::create_dir(directory.path().join("theirs")).unwrap();
    std::fs::write(directory.path().join("theirs/old"), "").unwrap();
    if !programs::is_root() {
        return programs::left_out("only root's agent gives files away");
    }
    let agent = Agent::run("qga,phoenix", &policy(&rules));
    let mut host = agent.connect();
    let owner = |name: &str| {
        let made = std::fs::metadata(format!("{place}/{name}")).unwrap();
        (std::os::unix::fs::MetadataExt::uid(&made), std::os::unix::fs::MetadataExt::gid(&made))
    };
    for name in ["theirs/new", "theirs/old", "ours"] {
        host.call("guest-file-open", json!({ "path": format!("{place}/{name}"), "mode": "w" }));
    }
    phoenix(&mut host, "directory-create", json!({ "path": format!("{place}/theirs/a/b"), "perm": 493 }));
    assert_eq!(owner("theirs/new"), (12_345, 54_321));
    assert_eq!(owner("theirs/a"), (12_345, 54_321));
    assert_eq!(owner("theirs/a/b"), (12_345, 54_321));
    assert_eq!((owner("theirs/old"), owner("ours")), ((0, 0), (0, 0)));
}

// ---------------------------------------------------------------- users

const BY_NUMBER: &str = r#"
    [[rule]]
    outcome = "deny"
    commands = ["guest-ssh-get-authorized-keys"]
    uids = ["0-99"]
    [[rule]]
    outcome = "deny"
    groups = ["account"]
    users = ["no-*"]
    [[rule]]
    outcome = "allow"
    groups = ["account"]
    uids = ["1000-65534"]
"#;

// Which number a user has the account worker finds out. What it refuses is a refusal like any other, and nobody's fault.
#[test]
fn whoever_works_on_accounts_decides_by_the_number_of_the_user() {
    let Some(agent) = without_rights(BY_NUMBER) else { return };
    let mut host = agent.connect();
    let keys = |name: &str| json!({ "username": name });
    let why = |command: &str| {
        format!("Command {command}: Permission denied: the policy does not allow this account")
    };
    let last = |command: &str| decisions(&agent, command).pop().unwrap();
    let worker = Some("account".to_owned());

    let get = "guest-ssh-get-authorized-keys";
    assert_eq!(refused(&mut host, get, keys("no-such-user")), why(get));
    assert_eq!(last(get), ("deny".to_owned(), 7, None), "a name is in the request: no worker is asked");
    assert!(!runs(&agent, "account"));

    assert_eq!(refused(&mut host, get, keys("root")), why(get));
    assert_eq!(last(get), ("deny".to_owned(), 3, worker.clone()));
    let process = agent.process("account");
    // The password would be refused by itself, if it came that far.
    let password = json!({ "username": "root", "password": "YQpi", "crypted": false });
    let set = "guest-set-user-password";
    assert_eq!(refused(&mut host, set, password), why(set));
    assert_eq!(last(set), ("deny".to_owned(), 0, worker.clone()), "by default: root has none of the numbers");
    let password = json!({ "username": "nobody", "password": "YQpi", "crypted": false });
    assert_eq!(refused(&mut host, set, password), "forbidden characters in raw password");
    assert_eq!(last(set), ("allow".to_owned(), 11, worker.clone()));

    let text = refused(&mut host, get, keys("nobody"));
    assert!(text.starts_with("failed to read '/nonexistent/.ssh/authorized_keys'"), "{text}");
    assert_eq!(last(get), ("allow".to_owned(), 11, worker));
    assert_eq!(refused(&mut host, get, keys("unknown")), "failed to lookup user 'unknown': Success");
    assert_eq!(agent.process("account"), process, "it goes on");
}

// ---------------------------------------------------------------- the network

const NETWORK: &str = r#"
    [[rule]]
    outcome = "deny"
    commands = ["ipaddr-add"]
    networks = ["10.9.0.0/16"]
    [[rule]]
    outcome = "allow"
    commands = ["ipaddr-add", "ipaddr-del", "route-add"]
    interfaces = ["lo"]
    networks = ["10.0.0.0/8", "fd00::/8"]
    [[rule]]
    outcome = "allow"
    commands = ["net-iface-up"]
    interfaces = ["l?"]
"#;

#[test]
fn addresses_routes_and_links_are_changed_where_the_rules_say() {
    let Some(agent) = with_own_network(NETWORK) else { return };
    let mut host = agent.connect();
    let address = |ip: &str, ifname: &str| json!({ "ip": ip, "ifname": ifname });
    for (command, arguments) in [
        ("ipaddr-add", address("192.168.0.1/32", "lo")),
        ("ipaddr-add", address("10.1.2.3/32", "eth0")),
        ("ipaddr-add", address("10.9.2.3/32", "lo")),
        ("ipaddr-del", address("127.0.0.1/8", "lo")),
        ("ipaddr-add", address("nonsense", "lo")),
        ("route-add", json!({ "ifname": "lo", "dst": "0.0.0.0/0" })),
        ("net-iface-up", json!({ "ifname": "eth0" })),
    ] {
        let reply = phoenix(&mut host, command, arguments.clone());
        assert!(reply["error"].is_object(), "{command} {arguments}: {reply}");
        let (decision, _, worker) = decisions(&agent, command).pop().unwrap();
        assert_eq!((decision.as_str(), worker), ("deny", None), "{command} {arguments}");
    }
    assert!(!runs(&agent, "netadmin"), "what is refused reaches no worker");
    assert_eq!(decisions(&agent, "ipaddr-add")[2].1, 3, "the line of the rule that refuses");

    for (command, arguments) in [
        ("net-iface-up", json!({ "ifname": "lo" })),
        ("ipaddr-add", address("10.1.2.3/32", "lo")),
        ("ipaddr-add", address("fd00::1/128", "lo")),
        ("route-add", json!({ "ifname": "lo", "dst": "10.2.0.0/16" })),
        ("ipaddr-del", address("10.1.2.3/32", "lo")),
    ] {
        let reply = phoenix(&mut host, command, arguments.clone());
        assert_eq!(reply["return"], true, "{command} {arguments}: {reply}");
    }
}

// ---------------------------------------------------------------- what is only ever refused here

const NARROW: &str = r#"
    [[rule]]
    outcome = "allow"
    groups = ["power"]
    power = ["suspend-ram"]
    [[rule]]
    outcome = "allow"
    groups = ["hotplug"]
    units = ["9000-9003"]
    [[rule]]
    outcome = "allow"
    groups = ["fsfreeze"]
    mountpoints = ["/srv/**"]
    [[rule]]
    outcome = "allow"
    groups = ["query"]
"#;

#[test]
fn power_hotplug_and_freezing_are_refused_by_their_arguments_and_no_worker_hears_of_it() {
    let Some(agent) = without_rights(NARROW) else { return };
    let mut host = agent.connect();
    let why = |command: &str, group: &str| {
        format!("Command {command}: Permission denied: the policy does not allow this {group}")
    };
    for (command, arguments, group) in [
        ("guest-shutdown", json!({}), "power"),
        ("guest-shutdown", json!({ "mode": "reboot" }), "power"),
        ("guest-shutdown", json!({ "mode": "suspend-ram" }), "power"),
        ("guest-suspend-disk", json!({}), "power"),
        ("guest-suspend-hybrid", json!({}), "power"),
        ("guest-set-vcpus", json!({ "vcpus": [{ "logical-id": 9004, "online": false }] }), "hotplug"),
        (
            "guest-set-vcpus",
            json!({ "vcpus": [{ "logical-id": 9000, "online": false }, { "logical-id": 9004, "online": false }] }),
            "hotplug",
        ),
        (
            "guest-set-memory-blocks",
            json!({ "mem-blks": [{ "phys-index": 8999, "online": false }] }),
            "hotplug",
        ),
        ("guest-set-memory-blocks", json!({ "mem-blks": [] }), "hotplug"),
        ("guest-fsfreeze-freeze-list", json!({ "mountpoints": ["/nonexistent"] }), "fsfreeze"),
        ("guest-fsfreeze-freeze-list", json!({ "mountpoints": ["/srv/a", "/nonexistent"] }), "fsfreeze"),
        ("guest-fsfreeze-freeze", json!({}), "fsfreeze"),
    ] {
        assert_eq!(refused(&mut host, command, arguments.clone()), why(command, group), "{arguments}");
        let (decision, _, worker) = decisions(&agent, command).pop().unwrap();
        assert_eq!((decision.as_str(), worker), ("deny", None), "{command} {arguments}");
    }
    host.call("guest-get-host-name", json!({}));
    for name in ["power", "hotplug"] {
        assert!(!runs(&agent, name), "{:?}", agent.processes());
    }
}

#[test]
fn the_workers_of_rights_that_no_rule_grants_cannot_be_started() {
    let rules = "[[rule]]\noutcome = \"deny\"\ngroups = [\"exec\", \"account\", \"net.change\", \"clock\"]\n\
                 [[rule]]\noutcome = \"allow\"\n";
    let agent = Agent::run("qga,phoenix", &policy(rules));
    let mut host = agent.connect();
    host.refused("guest-exec", json!({ "path": "true" }));
    host.refused("guest-ssh-get-authorized-keys", json!({ "username": "root" }));
    assert!(phoenix(&mut host, "net-iface-up", json!({ "ifname": "lo" }))["error"].is_object());
    host.call("guest-get-host-name", json!({}));
    for name in ["exec", "account", "netadmin", "clock"] {
        assert!(!runs(&agent, name), "{:?}", agent.processes());
    }
}
