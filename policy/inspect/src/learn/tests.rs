use super::*;
use crate::{Tester, literal};
use authorize::{Asker, authorize};
use proptest::prelude::*;
use proto::{Dialect, Request};
use serde_json::{Value as Json, json};

const LOOK: Look<'static> = Look { path: &literal, uid: &|_| None };

fn learned(wanted: Wanted, lines: &[String]) -> Learned {
    let done: Result<Learned, ()> = learn(wanted, &LOOK, |take| {
        lines.iter().for_each(|line| take(line.as_bytes()));
        Ok(())
    });
    done.unwrap()
}

fn record(sequence: usize, command: &str, arguments: Json, decision: &str) -> String {
    let dialect = if proto::find(Dialect::Qga, command).is_some() { "qga" } else { "phoenix" };
    json!({
        "version": 1, "sequence": sequence, "time": format!("2026-11-26T10:00:{:02}.000000Z", sequence % 60), "kind": "request",
        "channel": "qga", "dialect": dialect, "command": command, "arguments": arguments, "decision": decision, "outcome": "done"
    })
    .to_string()
}

fn open(sequence: usize, path: &str, decision: &str) -> String {
    record(sequence, "guest-file-open", json!({ "path": path, "mode": "r" }), decision)
}

fn run(sequence: usize, words: &[&str], decision: &str) -> String {
    let arguments =
        json!({ "path": words[0], "arg": words[1..], "env": null, "capture-output": "separated" });
    record(sequence, "guest-exec", arguments, decision)
}

/// The policy without its header.
fn rules(learned: &Learned) -> &str {
    learned.policy.split_once("version = 1\n").unwrap().1
}

#[test]
fn what_was_allowed_becomes_rules_with_how_often_and_when() {
    let lines = [
        record(1, "guest-get-users", json!({}), "allow"),
        record(2, "guest-get-users", json!({}), "allow"),
        open(3, "/var/log/syslog", "allow"),
        record(4, "guest-file-read", json!({ "handle": 1000, "count": null }), "allow"),
        open(5, "/etc/shadow", "deny"),
        run(6, &["/bin/uptime", "-p"], "allow"),
        json!({ "kind": "front", "channel": "qga", "counts": { "guest-ping": 40, "guest-sync": 2 } })
            .to_string(),
    ];
    let learned = learned(Wanted::default(), &lines);
    assert_eq!(
        rules(&learned),
        r#"
[[rule]]
commands = [
    "guest-sync", # 2 times
    "guest-ping", # 40 times
    "guest-get-users", # 2 times, 2026-11-26T10:00:01.000000Z to 2026-11-26T10:00:02.000000Z
    "guest-file-read", # once, 2026-11-26T10:00:04.000000Z
]
outcome = "allow"
channels = ["qga"]

[[rule]]
commands = ["guest-file-open"]
modes = ["r"]
paths = [
    "/var/log/syslog", # once, 2026-11-26T10:00:03.000000Z
]
outcome = "allow"
channels = ["qga"]

[[rule]]
commands = ["guest-exec"]
outcome = "allow"
channels = ["qga"]
[[rule.program]] # once, 2026-11-26T10:00:06.000000Z
path = "/bin/uptime"
arguments = ["-p"]
environment = []
"#
    );
    assert_eq!((learned.rules, learned.requests, learned.left_out.len()), (3, 47, 0));
}

#[test]
fn files_become_their_folder_but_never_one_that_makes_root_or_has_what_was_refused() {
    let files = |folder: &str| ["a", "b", "c"].map(|name| open(1, &format!("{folder}/{name}"), "allow"));
    let mut lines: Vec<String> =
        ["/srv/app", "/etc/cron.d", "/srv/mixed"].iter().flat_map(|folder| files(folder)).collect();
    lines.push(open(9, "/srv/mixed/secret", "deny"));
    let generalise = Wanted { generalise: Generalise::Paths, denied: false };
    let text = learned(generalise, &lines).policy;
    assert!(text.contains("\"/srv/app/*\", # 3 times"), "{text}");
    assert!(
        text.contains(
            "# Not \"/etc/cron.d/*\": that would take in what cron runs as root, which is as good as root."
        ),
        "{text}"
    );
    assert!(text.contains("# Not \"/srv/mixed/*\": something in it was refused."), "{text}");
    assert!(text.contains("\"/etc/cron.d/a\"") && text.contains("\"/srv/mixed/c\""), "{text}");
}

#[test]
fn arguments_become_patterns_but_not_those_of_a_shell() {
    let lines = [
        run(1, &["/bin/systemctl", "restart", "app-a.service"], "allow"),
        run(2, &["/bin/systemctl", "restart", "app-b.service"], "allow"),
        run(3, &["/bin/sh", "-c", "id"], "allow"),
        run(4, &["/bin/sh", "-c", "uptime"], "allow"),
    ];
    let text = learned(Wanted { generalise: Generalise::Args, denied: false }, &lines).policy;
    assert!(text.contains("arguments = [\"restart\", { like = \"app-**\" }]"), "{text}");
    assert!(
        text.contains("arguments = [\"-c\", \"id\"]")
            && text.contains("it runs what they say, which is as good as root"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_written_as_a_rule_is_said_to_be_left_out() {
    let lines = [
        run(1, &["./x"], "allow"),
        record(2, "guest-set-vcpus", json!({ "vcpus": [{ "logical-id": -1, "online": true }] }), "allow"),
        record(3, "guest-exec", json!({ "sha256": "00" }), "allow"),
    ];
    let learned = learned(Wanted::default(), &lines);
    let left_out: Vec<&str> = learned.left_out.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    assert!(left_out[0].starts_with("guest-exec: the program \"./x\" is no pattern"), "{left_out:?}");
    assert!(
        learned
            .policy
            .contains("# Not as in the log, 1 times: guest-set-vcpus: no rule can name a negative number\n")
    );
    assert_eq!(learned.unusable_count, 1);
}

#[test]
fn what_a_host_wrote_stays_inside_of_quotes() {
    let path = "/x\"]\noutcome = \"allow\"\n#\u{7f}\\";
    let learned = learned(Wanted::default(), &[open(1, path, "allow"), run(2, &["a\nb/c"], "allow")]);
    assert!(
        learned.left_out.len() == 1 && !learned.policy.contains("\noutcome = \"allow\"\n#"),
        "{}",
        learned.policy
    );
    assert_eq!(learned.requests, 1);
}

#[test]
fn denied_requests_are_learned_when_they_are_wanted() {
    let lines = [open(1, "/etc/hostname", "deny")];
    assert!(!learned(Wanted::default(), &lines).policy.contains("/etc/hostname"));
    let all = Wanted { denied: true, ..Wanted::default() };
    assert!(learned(all, &lines).policy.contains("\"/etc/hostname\", # once"));
}

/// Requests of all kinds, in the form of their protocol.
fn requests() -> impl Strategy<Value = (String, Json)> {
    let path = "(/(srv|etc|a|b|\\*|é|\n|\"|\\.\\.)){1,3}|rel";
    let word = "(-c|a|b c|\"|\\*\\*|/etc/passwd|){1,2}";
    let name = "(eth0|root|anna|a\\?|\n){1}";
    prop_oneof![
        Just(("guest-get-users".to_owned(), json!({}))),
        Just(("guest-sync".to_owned(), json!({ "id": 7 }))),
        (path, "(r|w|rb|a\\+|zz)")
            .prop_map(|(path, mode)| ("guest-file-open".to_owned(), json!({ "path": path, "mode": mode }))),
        path.prop_map(|path| ("guest-file-open".to_owned(), json!({ "path": path }))),
        path.prop_map(|path| ("file-stat".to_owned(), json!({ "path": path }))),
        (0..3_i64).prop_map(|handle| ("guest-file-read".to_owned(), json!({ "handle": handle }))),
        (path, prop::collection::vec(word, 0..3), any::<bool>(), any::<bool>()).prop_map(
            |(path, arg, env, input)| {
                let mut arguments = json!({ "path": path, "arg": arg });
                let object = arguments.as_object_mut().unwrap();
                if env {
                    object.insert("env".to_owned(), json!(["A=1", "TOKEN=x=y"]));
                }
                if input {
                    object.insert("input-data".to_owned(), json!(""));
                }
                ("guest-exec".to_owned(), arguments)
            }
        ),
        name.prop_map(|user| ("guest-ssh-get-authorized-keys".to_owned(), json!({ "username": user }))),
        (name, "(10\\.0\\.0\\.1/8|10\\.1\\.0\\.0/16|x|fd00::1/64)")
            .prop_map(|(ifname, ip)| ("ipaddr-add".to_owned(), json!({ "ifname": ifname, "ip": ip }))),
        prop::collection::vec(path, 0..3)
            .prop_map(|list| ("guest-fsfreeze-freeze-list".to_owned(), json!({ "mountpoints": list }))),
        prop::collection::vec(-1..3_i64, 0..3).prop_map(|units| {
            let vcpus: Vec<Json> =
                units.iter().map(|unit| json!({ "logical-id": unit, "online": true })).collect();
            ("guest-set-vcpus".to_owned(), json!({ "vcpus": vcpus }))
        }),
        "(halt|reboot|x)".prop_map(|mode| ("guest-shutdown".to_owned(), json!({ "mode": mode }))),
        (0..3_i64).prop_map(|offset| {
            ("guest-file-seek".to_owned(), json!({ "handle": 1, "offset": offset, "whence": "cur" }))
        }),
    ]
}

fn decoded((command, arguments): &(String, Json)) -> Request {
    crate::read(&json!({ "execute": command, "arguments": arguments }).to_string()).unwrap()
}

/// The record that the broker would write: the arguments are those that `proto` serialises for it.
fn recorded(sequence: usize, request: &Request, decision: &str) -> String {
    record(sequence, request.command().name(), serde_json::to_value(request).unwrap(), decision)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What is learned from a log allows what the log shows to have been allowed, and refuses what it shows to have been refused.
    #[test]
    fn what_was_learned_passes_the_log_that_it_was_learned_from(
        asked in prop::collection::vec((requests(), any::<bool>()), 0..24),
        how in 0..3_usize,
    ) {
        let mut decided: BTreeMap<String, bool> = BTreeMap::new();
        let lines: Vec<String> = asked
            .iter()
            .enumerate()
            .map(|(number, (asked, allowed))| {
                let request = decoded(asked);
                let item = Item::of(&Case::new("qga", request.clone(), &LOOK));
                // A log in which one request is decided in two ways is passed by no policy.
                let allowed = *decided.entry(format!("{item:?}")).or_insert(*allowed);
                recorded(number + 1, &request, if allowed { "allow" } else { "deny" })
            })
            .collect();
        let generalise = [Generalise::None, Generalise::Paths, Generalise::Args][how];
        let learned = learned(Wanted { generalise, denied: false }, &lines);
        let source = Source::File { name: "learned.toml".to_owned(), text: learned.policy.clone() };
        let loaded = Loaded::compile(vec![source]);
        prop_assert!(loaded.is_ok(), "{:?}\n{}", loaded.err(), learned.policy);
        let loaded = loaded.unwrap();
        let mut tester = Tester::new(&loaded, "qga", &LOOK);
        lines.iter().for_each(|line| tester.line(line.as_bytes()));
        let tested = tester.finish();
        let left_out: u64 = learned.left_out.iter().map(|(_, count)| count).sum();
        // What cannot be a rule of its own may be taken in by another.
        prop_assert!(tested.failed <= left_out, "{}\n{}", tested, learned.policy);
        prop_assert_eq!(tested.wrong, 0);
    }

    /// A request and what its record says are decided alike by every policy: here by those that were learned from one of them.
    #[test]
    fn a_request_and_its_record_are_decided_alike(asked in requests(), other in requests()) {
        let request = decoded(&asked);
        let entry = crate::entry(recorded(1, &request, "allow").as_bytes(), &LOOK).unwrap();
        let learned = learned(Wanted::default(), &[recorded(1, &request, "allow"), recorded(2, &decoded(&other), "allow")]);
        let source = Source::File { name: "learned.toml".to_owned(), text: learned.policy };
        let loaded = Loaded::compile(vec![source]).unwrap();
        let case = Case::new("qga", request.clone(), &LOOK);
        prop_assert_eq!(decide(&loaded.policy, &case), decide(&loaded.policy, &entry.case));
        let asker = Asker { channel: "qga", frozen: false };
        let by_name = |request: Request| authorize(&loaded.policy, asker, request).map(|done| done.rule().clone()).map_err(|why| why.rule.clone());
        prop_assert_eq!(by_name(request), by_name(entry.case.request));
    }
}
