//! Every role's sandbox, tried from inside: by a probe that the real spawner starts under the role's name and that enters the jail
//! through the same door as the role's program; and looked at from outside, at the real programs.
//!
//! Needs root, filters and Landlock: without them tests are left out with a line on standard error, and fail in CI.
//! `UPDATE_GOLDEN=1` rewrites `tests/golden`.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "arguments are six, and a test may panic")]

use std::collections::BTreeSet;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};

use jail::Role;
use jail::seccomp::{Condition, Rule};
use tests::agent::{PATIENCE, is_alive};
use tests::process_state::describe;
use tests::sandbox::{Compiler, Peer, Setup, Stage, can_be_tested};
use tests::{golden, programs};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// All that have a filter.
const FILTERED: [Role; 13] = [
    Role::Broker,
    Role::Frontend,
    Role::Query,
    Role::File,
    Role::Net,
    Role::NetAdmin,
    Role::Compile,
    Role::Fsfreeze,
    Role::Power,
    Role::Clock,
    Role::Hotplug,
    Role::Keys,
    Role::Audit,
];

/// Calls that would do what they are for if they were made here: the power worker's signals to process 1. What the filter refuses of
/// them is tried, what it lets pass is tried in a virtual machine.
fn would_harm(role: Role, number: i64, given: [u64; 6]) -> bool {
    role == Role::Power && number == libc::SYS_kill && is_listed(role, number, given)
}

// ---------------------------------------------------------------------------------------------------------------------
// Every number. "Compare the reached set with the committed list: equality, not subset."

#[test]
fn the_broker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Broker);
}

#[test]
fn the_frontend_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Frontend);
}

#[test]
fn the_query_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Query);
}

#[test]
fn the_file_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::File);
}

#[test]
fn the_net_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Net);
}

#[test]
fn the_netadmin_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::NetAdmin);
}

#[test]
fn the_fsfreeze_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Fsfreeze);
}

#[test]
fn the_power_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Power);
}

#[test]
fn the_clock_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Clock);
}

#[test]
fn the_hotplug_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Hotplug);
}

#[test]
fn the_audit_worker_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Audit);
}

#[test]
fn the_child_that_works_on_keys_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Keys);
}

#[test]
fn the_policy_compiler_reaches_exactly_the_calls_of_its_list() {
    reaches_exactly_its_list(Role::Compile);
}

fn reaches_exactly_its_list(role: Role) {
    let Some(jailed) = Jailed::enter(role, "errno") else { return };
    let mut tried: Vec<(i64, [u64; 6])> = Vec::new();
    for number in (0..1024).filter(|number| !ends_or_passes(*number)) {
        // −1 is no descriptor, no address, no length. Where it is refused, 0 is tried as well: flags without any bit. What would
        // wait for ever with zeros (ppoll) has no conditions on arguments and so never comes to them.
        tried.push((number, [u64::MAX; 6]));
        if !is_listed(role, number, [u64::MAX; 6]) {
            tried.push((number, [u64::MAX, 0, 0, 0, 0, 0]));
        }
    }
    for rule in jail::probe::rules(role).iter().filter(|rule| !ends_or_passes(rule.number)) {
        tried.push((rule.number, satisfying(rule)));
    }
    tried.retain(|(number, given)| !would_harm(role, *number, *given));
    assert_eq!(differences(&jailed.peer, role, &tried), Vec::<String>::new());
    golden::compare(&format!("{role}.syscalls"), &list(role));
}

/// rt_sigreturn is not tried: without a frame to return to, the process goes on with whatever lay on its stack.
#[test]
fn each_role_can_end_itself() {
    for role in FILTERED {
        let Some(jailed) = Jailed::enter(role, "errno") else { return };
        jailed.peer.tell(&format!("calls {} 7", libc::SYS_exit_group));
        assert_eq!(jailed.ended().and_then(|status| status.code()).unwrap_or(7), 7, "{role}");
    }
}

#[test]
fn only_the_file_worker_may_end_a_single_thread() {
    for role in FILTERED.into_iter().filter(|role| *role != Role::File) {
        let Some(jailed) = Jailed::enter(role, "errno") else { return };
        assert_eq!(jailed.peer.ask(&format!("calls {} 0", libc::SYS_exit)), "EPERM", "{role}");
    }
}

#[test]
fn exec_has_no_filter_since_its_commands_would_inherit_it() {
    assert!(jail::probe::rules(Role::Exec).is_empty());
}

// ---------------------------------------------------------------------------------------------------------------------
// Arguments. "Take the allowed value, flip one bit, add a constant, expect refusal."

#[test]
fn an_argument_that_differs_in_one_bit_from_what_a_rule_allows_is_refused() {
    for role in FILTERED {
        let Some(jailed) = Jailed::enter(role, "errno") else { return };
        let tried: Vec<(i64, [u64; 6])> = jail::probe::rules(role)
            .iter()
            .flat_map(changed)
            .filter(|(number, given)| !would_harm(role, *number, *given))
            .collect();
        assert!(tried.len() > 300, "{role} has conditions on arguments, but only {} changes", tried.len());
        let refused = tried.iter().filter(|(number, given)| !is_listed(role, *number, *given)).count();
        assert!(refused > 100, "{role}: only {refused} of {} changes are to be refused", tried.len());
        assert_eq!(differences(&jailed.peer, role, &tried), Vec::<String>::new(), "{role}");
    }
}

/// A rule's arguments, each bit of each one that has a condition flipped, and one more and one less.
fn changed(rule: &Rule) -> Vec<(i64, [u64; 6])> {
    let base = satisfying(rule);
    let arguments: BTreeSet<u8> = rule.conditions.iter().map(|condition| condition.argument).collect();
    let mut all = Vec::new();
    for argument in arguments {
        let value = base[usize::from(argument)];
        let flipped = (0..64).map(|bit| value ^ 1 << bit);
        for value in flipped.chain([value.wrapping_add(1), value.wrapping_sub(1)]) {
            let mut given = base;
            given[usize::from(argument)] = value;
            all.push((rule.number, given));
        }
    }
    all
}

// ---------------------------------------------------------------------------------------------------------------------
// Death. The same jail as in production, under the spawner's filter as well.

#[test]
fn a_worker_that_makes_a_refused_call_is_killed_and_the_broker_hears_of_signal_31() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    for role in Setup::new(PROBE).workers {
        for number in samples(role, 8) {
            let worker = stage.worker(role, 0);
            enter(&worker, "kill");
            worker.tell(&format!("calls {number}"));
            assert_eq!(stage.ended(role, 0).signal(), Some(libc::SIGSYS), "{role}, call {number}");
            assert_eq!(worker.hear(), None);
        }
    }
}

#[test]
fn a_frontend_that_makes_a_refused_call_is_killed_and_the_broker_hears_of_signal_31() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup { channels: 8, ..Setup::new(PROBE) }.start();
    for (number, (instance, frontend)) in
        samples(Role::Frontend, 8).into_iter().zip((0..).zip(&stage.frontends))
    {
        enter(frontend, "kill");
        frontend.tell(&format!("calls {number}"));
        assert_eq!(stage.ended(Role::Frontend, instance).signal(), Some(libc::SIGSYS), "call {number}");
    }
}

#[test]
fn a_broker_that_makes_a_refused_call_is_killed_and_the_log_says_signal_31() {
    if !can_be_tested() {
        return;
    }
    let mut stage = Setup::new(PROBE).start();
    for number in samples(Role::Broker, 3) {
        enter(stage.broker(), "kill");
        stage.broker().tell(&format!("calls {number}"));
        assert_eq!(stage.broker().hear(), None, "call {number}");
        stage.meet_broker();
    }
    assert_eq!(stage.log().matches("the broker has ended (signal 31").count(), 3, "{}", stage.log());
}

#[test]
fn a_policy_compiler_that_makes_a_refused_call_is_killed() {
    if !can_be_tested() {
        return;
    }
    for number in samples(Role::Compile, 8) {
        let mut compiler = Compiler::start(PROBE);
        enter(&compiler.peer, "kill");
        compiler.peer.tell(&format!("calls {number}"));
        assert_eq!(compiler.ended().signal(), Some(libc::SIGSYS), "call {number}");
    }
}

#[test]
fn a_child_that_works_on_keys_and_makes_a_refused_call_is_killed() {
    if !can_be_tested() {
        return;
    }
    for number in samples(Role::Keys, 8) {
        let mut keys = Compiler::start_keys(PROBE);
        enter(&keys.peer, "kill");
        keys.peer.tell(&format!("calls {number}"));
        assert_eq!(keys.ended().signal(), Some(libc::SIGSYS), "call {number}");
    }
}

#[test]
fn a_refused_call_in_one_thread_of_the_file_worker_ends_all_of_them() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    let worker = stage.worker(Role::File, 0);
    enter(&worker, "kill");
    worker.tell(&format!("thread {}", libc::SYS_socket));
    assert_eq!(stage.ended(Role::File, 0).signal(), Some(libc::SIGSYS));
}

#[test]
fn a_panic_can_be_told_from_inside_every_jail() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    for role in std::iter::once(Role::Frontend).chain(Setup::new(PROBE).workers) {
        let peer = stage.peer(role);
        enter(&peer, "kill");
        peer.tell("panic");
        assert_eq!(stage.ended(role, 0).code(), Some(101), "{role}");
        assert!(peer.log().ends_with(": told to\n"), "{role}: {}", peer.log());
    }
    enter(stage.broker(), "kill");
    stage.broker().tell("panic");
    assert_eq!(stage.broker().hear(), None);
    tests::agent::wait_until(|| stage.log().contains("told to\n"));
    assert!(stage.log().contains("broker: panicked at "), "{}", stage.log());
}

// ---------------------------------------------------------------------------------------------------------------------
// Other tables of system calls.

/// x32 numbers have bit 30 set and the same architecture as x86_64 in a filter's eyes.
#[test]
#[cfg(target_arch = "x86_64")]
fn x32_numbers_are_refused_and_deadly() {
    for role in FILTERED {
        let Some(jailed) = Jailed::enter(role, "errno") else { return };
        // read, which every role may, and getpid, which none may.
        let calls = format!("calls {}\n{}", libc::SYS_read | 1 << 30, libc::SYS_getpid | 1 << 30);
        assert_eq!(jailed.peer.ask(&calls), "EPERM EPERM", "{role}");
        let Some(jailed) = Jailed::enter(role, "kill") else { return };
        jailed.peer.tell(&format!("calls {}", libc::SYS_read | 1 << 30));
        assert_eq!(
            jailed.ended().and_then(|status| status.signal()).unwrap_or(libc::SIGSYS),
            libc::SIGSYS,
            "{role}"
        );
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_i386_gate_is_deadly() {
    let outside = Command::new(PROBE).arg("i386").output().expect("the probe can be executed");
    if outside.status.signal() == Some(libc::SIGSEGV) {
        return programs::left_out("this kernel has no i386 system calls");
    }
    for role in FILTERED {
        // A filter that answers ends the process, too: it leaves the check of the architecture as it is.
        let Some(jailed) = Jailed::enter(role, "errno") else { return };
        jailed.peer.tell("i386");
        assert_eq!(
            jailed.ended().and_then(|status| status.signal()).unwrap_or(libc::SIGSYS),
            libc::SIGSYS,
            "{role}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Ways out, with the filter and without it: the second column is what the other layers stop by themselves.

#[test]
fn the_broker_cannot_get_out() {
    ways_out(Role::Broker);
}

#[test]
fn the_frontend_cannot_get_out() {
    ways_out(Role::Frontend);
}

#[test]
fn the_query_worker_cannot_get_out() {
    ways_out(Role::Query);
}

#[test]
fn the_file_worker_cannot_get_out() {
    ways_out(Role::File);
}

#[test]
fn the_net_worker_cannot_get_out() {
    ways_out(Role::Net);
}

#[test]
fn the_netadmin_worker_cannot_get_out() {
    ways_out(Role::NetAdmin);
}

#[test]
fn the_hotplug_worker_cannot_get_out() {
    ways_out(Role::Hotplug);
}

/// Without their filters these could do here what they are for, and more.
#[test]
fn the_fsfreeze_power_and_clock_workers_cannot_get_out() {
    for role in [Role::Fsfreeze, Role::Power, Role::Clock] {
        let Some(filtered) = Jailed::enter(role, "errno narrow") else { return };
        let filtered = filtered.peer.ask(&format!("escapes {}", filtered.pids()));
        assert!(
            !filtered.contains("HOLE"),
            "{role}: a call that is not on the list reached the kernel:\n{filtered}"
        );
        golden::compare(
            &format!("{role}.escapes"),
            &format!("# What is tried: what comes of it.\n{}\n", filtered.trim_end()),
        );
    }
}

#[test]
fn the_audit_worker_cannot_get_out() {
    ways_out(Role::Audit);
}

#[test]
fn the_child_that_works_on_keys_cannot_get_out() {
    ways_out(Role::Keys);
}

#[test]
fn the_policy_compiler_cannot_get_out() {
    ways_out(Role::Compile);
}

fn ways_out(role: Role) {
    let Some(filtered) = Jailed::enter(role, "errno narrow") else { return };
    let Some(open) = Jailed::enter(role, "open narrow") else { return };
    let [filtered, open] =
        [filtered, open].map(|jailed| jailed.peer.ask(&format!("escapes {}", jailed.pids())));
    let mut text = "# What is tried: what comes of it; without the filter.\n".to_owned();
    for (with, without) in filtered.lines().zip(open.lines()) {
        let (name, with) = with.rsplit_once(": ").expect("name and outcome");
        let (other, without) = without.rsplit_once(": ").expect("name and outcome");
        assert_eq!(name, other);
        text.push_str(&format!("{name}: {with}; {without}\n"));
    }
    assert_eq!(filtered.lines().count(), open.lines().count());
    assert!(
        !filtered.contains("HOLE"),
        "{role}: a call that is not on the list reached the kernel:\n{filtered}"
    );
    golden::compare(&format!("{role}.escapes"), &text);
}

// ---------------------------------------------------------------------------------------------------------------------
// The real programs, looked at from outside when their jail is shut and nothing has been asked of them.

#[test]
fn the_brokers_state_is_the_committed_one() {
    if !can_be_tested() {
        return;
    }
    for (user, name) in [(0, "broker.state"), (NOBODY, "broker.user.state")] {
        let stage = Setup { real: vec![Role::Broker], user, ..Setup::new(PROBE) }.start();
        let pid = stage.process(Role::Broker);
        // Its filter is the last thing; before that it has the spawner's or none.
        let filters = if user == 0 { "Seccomp_filters:\t2\n" } else { "Seccomp_filters:\t1\n" };
        let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(tests::agent::wait_until(|| status().contains(filters)), "{}\n{}", status(), stage.log());
        // Socket and log pipe of the frontend, which the probe that plays it never uses, come over the control socket.
        let state = || describe(pid, stage.pid(), stage.folder());
        assert!(tests::agent::wait_until(|| state().contains(": pipe read")), "{}", stage.log());
        golden::compare(name, &state());
    }
}

#[test]
fn the_frontends_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Frontend);
}

#[test]
fn the_query_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Query);
}

#[test]
fn the_file_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::File);
}

#[test]
fn the_net_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Net);
}

#[test]
fn the_netadmin_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::NetAdmin);
}

#[test]
fn the_fsfreeze_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Fsfreeze);
}

#[test]
fn the_power_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Power);
}

#[test]
fn the_clock_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Clock);
}

#[test]
fn the_hotplug_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Hotplug);
}

#[test]
fn the_audit_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Audit);
}

#[test]
fn the_account_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Account);
}

#[test]
fn the_exec_workers_state_is_the_committed_one() {
    state_is_the_committed_one(Role::Exec);
}

#[test]
fn the_policy_compilers_state_is_the_committed_one() {
    if !can_be_tested() {
        return;
    }
    for (user, name) in [(0, "compile.state"), (NOBODY, "compile.user.state")] {
        let form = jail::sealed::create(c"portreeve-policy").expect("makes it");
        let base = if user == 0 { jail::DEFAULT_UID_BASE } else { 0 };
        // In production its text is a memory file, too; a pipe holds it where it can be looked at.
        let mut compiler = Command::new(programs::program(Role::Compile.executable()))
            .args([base.to_string().as_str(), "0"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(form))
            .stderr(Stdio::null())
            .uid(user)
            .gid(user)
            .spawn()
            .expect("it can be executed");
        let pid = compiler.id();
        let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let filtered = tests::agent::wait_until(|| status().contains("Seccomp_filters:\t1\n"));
        let state = filtered.then(|| describe(pid, std::process::id(), std::path::Path::new("/nowhere")));
        let _ = compiler.kill();
        let _ = compiler.wait();
        let program = programs::program(Role::Compile.executable()).display().to_string();
        golden::compare(name, &state.expect("it shuts its jail").replace(&program, "portreeve-compile"));
    }
}

/// As the account worker starts it: its own program under another name, in a session of its own.
#[test]
fn the_state_of_the_child_that_works_on_keys_is_the_committed_one() {
    if !can_be_tested() {
        return;
    }
    let home = tempfile::tempdir().expect("there is room");
    let program = programs::program(Role::Account.executable());
    for (user, name) in [(0, "keys.state"), (NOBODY, "keys.user.state")] {
        let mut becomes = tests::sandbox::unknown_user(home.path().to_owned());
        if user != 0 {
            becomes.uid = user;
        }
        let mut keys = Command::new(&program)
            .arg0(Role::Keys.executable())
            .args(becomes.arguments())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .uid(user)
            .gid(user)
            .spawn()
            .expect("it can be executed");
        let pid = keys.id();
        let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let filtered = tests::agent::wait_until(|| status().contains("Seccomp_filters:\t1\n"));
        let state = filtered.then(|| describe(pid, std::process::id(), home.path()));
        let _ = keys.kill();
        let _ = keys.wait();
        let place = home.path().display().to_string();
        golden::compare(name, &state.expect("it shuts its jail").replace(&place, "HOME"));
    }
}

fn state_is_the_committed_one(role: Role) {
    if !can_be_tested() {
        return;
    }
    for (user, kind) in [(0, "state"), (NOBODY, "user.state")] {
        let mut workers = Setup::new(PROBE).workers;
        if role.is_worker() && !workers.contains(&role) {
            workers.push(role);
        }
        let stage = Setup { real: vec![role], workers, user, ..Setup::new(PROBE) }.start();
        let peer = stage.peer(role);
        // The first message comes when the jail is shut; it then waits for the broker's.
        assert!(peer.has_something(PATIENCE), "no hello:\n{}", stage.log());
        assert!(is_alive(peer.pid), "it has ended: {}", peer.log());
        golden::compare(&format!("{role}.{kind}"), &describe(peer.pid, stage.pid(), stage.folder()));
    }
}

/// A user who owns nothing here.
const NOBODY: u32 = 65534;

// ---------------------------------------------------------------------------------------------------------------------
// Landlock by itself.

/// `landlock(7)`; the column is the first ABI that has the right, 1 for all.
#[test]
fn landlock_stops_what_its_manual_says_and_nothing_else() {
    const ROWS: &[(i32, &str)] = &[
        (1, "open for reading: ok, EACCES"),
        (1, "open for writing: ok, EACCES"),
        (3, "open to truncate: ok, EACCES"),
        (1, "open a directory: ok, EACCES"),
        (1, "create: ok, EACCES"),
        (3, "truncate by path: ok, EACCES"),
        (1, "mkdir: ok, EACCES"),
        (1, "symlink: ok, EACCES"),
        // Not granted anywhere: a device made inside would be a way to every disk.
        (1, "make a FIFO: EACCES, EACCES"),
        (1, "make a device: EACCES, EACCES"),
        (1, "unlink: ok, EACCES"),
        // Nothing may leave the directory or come into it: EXDEV is what a program copies after.
        (2, "rename from the allowed directory: ok, EACCES"),
        (2, "link into the allowed directory: ok, EXDEV"),
        (2, "link a descriptor into the allowed directory: ok, EXDEV"),
        (1, "open a descriptor again: ok, EACCES"),
        (1, "open by handle: ok, EACCES"),
        (1, "execute: EACCES, EACCES"),
        // Not Landlock's: filter, ids and namespaces must stop these.
        (1, "open a name only: ok, ok"),
        (1, "stat: ok, ok"),
        (1, "chmod by path: ok, ok"),
        (1, "chown by path: ok, ok"),
        (1, "utimes by path: ok, ok"),
        (1, "setxattr by path: ok, ok"),
        (1, "chown by an empty path: ok, ok"),
        (1, "chmod by an empty path: ok, ok"),
        // The forms that the file worker has do nothing to a descriptor that Landlock has not approved.
        (1, "fchmod of a name: EBADF, EBADF"),
        (1, "fchown of a name: EBADF, EBADF"),
        (1, "fsetxattr of a name: EBADF, EBADF"),
        (1, "utimes of a name: EBADF, EBADF"),
    ];
    let Some(jailed) = Jailed::enter(Role::File, "open narrow") else { return };
    let abi = landlock_abi();
    let found = jailed.peer.ask("landlock");
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found.len(), ROWS.len());
    for ((since, row), found) in ROWS.iter().zip(found) {
        if *since > abi {
            programs::left_out(&format!("Landlock ABI {abi} does not know the row \"{row}\" (ABI {since})"));
        } else {
            assert_eq!(found, *row);
        }
    }
}

/// What the kernel knows: `landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)`, asked by a probe outside any jail.
fn landlock_abi() -> i32 {
    let stage = Setup { workers: vec![Role::Exec], ..Setup::new(PROBE) }.start();
    let worker = stage.worker(Role::Exec, 0);
    worker.ask("abi").parse().expect("a number")
}

// ---------------------------------------------------------------------------------------------------------------------
// The stage.

/// A probe in its jail.
struct Jailed {
    role: Role,
    peer: Peer,
    stage: Option<Stage>,
    compiler: Option<Compiler>,
}

impl Jailed {
    /// None, after a line that says why, where the jail is not whole.
    fn enter(role: Role, way: &str) -> Option<Self> {
        if !can_be_tested() {
            return None;
        }
        let mut jailed = if matches!(role, Role::Compile | Role::Keys) {
            let compiler =
                if role == Role::Keys { Compiler::start_keys(PROBE) } else { Compiler::start(PROBE) };
            let mut compiler = compiler;
            let peer = std::mem::replace(&mut compiler.peer, Peer::nobody());
            Self { role, peer, stage: None, compiler: Some(compiler) }
        } else {
            // With exec among the workers the spawner has no filter: the role's own must do.
            let mut workers = Setup::new(PROBE).workers;
            workers.push(Role::Exec);
            let stage = Setup { workers, ..Setup::new(PROBE) }.start();
            let peer = stage.peer(role);
            Self { role, peer, stage: Some(stage), compiler: None }
        };
        let said = jailed.peer.ask(&format!("enter {way}"));
        if said != "landlock full; missing nothing" {
            programs::left_out(&format!("the jail of {role} is not whole on this kernel: {said}"));
            jailed.compiler.take();
            return None;
        }
        Some(jailed)
    }

    /// How it ended. None for the broker: nobody is told but the log.
    fn ended(mut self) -> Option<ExitStatus> {
        assert_eq!(self.peer.hear(), None, "{} goes on", self.role);
        match (&self.stage, &mut self.compiler) {
            (_, Some(compiler)) => Some(compiler.ended()),
            (Some(stage), _) if self.role != Role::Broker => Some(stage.ended(self.role, 0)),
            _ => None,
        }
    }

    /// Another role's and the spawner's; for the compiler two others of root's.
    fn pids(&self) -> String {
        match &self.stage {
            Some(stage) if self.role == Role::Broker => format!("{} {}", stage.frontends[0].pid, stage.pid()),
            Some(stage) => format!("{} {}", stage.broker().pid, stage.pid()),
            None => format!("{} 1", std::process::id()),
        }
    }
}

fn enter(peer: &Peer, way: &str) {
    let said = peer.ask(&format!("enter {way}"));
    assert!(said.starts_with("landlock "), "{said}");
}

/// Calls that end the one who makes them, and on x86_64 two that the kernel lets pass every filter: uretprobe and uprobe
/// (arch/x86/entry/syscalls, kernel/seccomp.c, `seccomp_uprobe_exception`).
fn ends_or_passes(number: i64) -> bool {
    let passes = cfg!(target_arch = "x86_64") && matches!(number, 335 | 336);
    passes || matches!(number, libc::SYS_exit | libc::SYS_exit_group | libc::SYS_rt_sigreturn)
}

/// What `policy/seccomp` says about a call.
fn is_listed(role: Role, number: i64, given: [u64; 6]) -> bool {
    jail::probe::rules(role).iter().filter(|rule| rule.number == number).any(|rule| {
        rule.conditions.iter().all(|condition| condition.holds(given[usize::from(condition.argument)]))
    })
}

/// Arguments that a rule allows; −1 where it does not look.
fn satisfying(rule: &Rule) -> [u64; 6] {
    let mut given = [u64::MAX; 6];
    for condition in rule.conditions {
        given[usize::from(condition.argument)] = condition.value.into();
    }
    let all = rule.conditions.iter().all(|condition| condition.holds(given[usize::from(condition.argument)]));
    assert!(all, "{}: conditions on one argument that this test cannot satisfy together", rule.source);
    given
}

/// Has the probe make the calls; those that were refused though listed, or not refused though not listed.
fn differences(peer: &Peer, role: Role, tried: &[(i64, [u64; 6])]) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in tried.chunks(256) {
        let lines: Vec<String> = part
            .iter()
            .map(|(number, [a, b, c, d, e, f])| format!("{number} {a} {b} {c} {d} {e} {f}"))
            .collect();
        let answer = peer.ask(&format!("calls {}", lines.join("\n")));
        let words: Vec<&str> = answer.split(' ').collect();
        assert_eq!(words.len(), part.len());
        for ((number, given), word) in part.iter().zip(words) {
            if (word != "EPERM") != is_listed(role, *number, *given) {
                wrong.push(format!("{role}: call {number} {given:x?}: {word}"));
            }
        }
    }
    wrong
}

/// The role's list as it is committed: what it may call, under which conditions.
fn list(role: Role) -> String {
    let mut text = String::new();
    for rule in jail::probe::rules(role) {
        let conditions: Vec<String> = rule.conditions.iter().map(condition).collect();
        text.push_str(format!("{} {}", rule.name, conditions.join(", ")).trim_end());
        text.push('\n');
    }
    text
}

fn condition(condition: &Condition) -> String {
    let Condition { argument, mask, value } = condition;
    let test = if *mask == u32::MAX { "==".to_owned() } else { format!("& {mask:#x} ==") };
    format!("arg{argument} {test} {value:#x}")
}

/// Numbers that are on nobody's list or only on the spawner's, spread over the whole range.
fn samples(role: Role, count: usize) -> Vec<i64> {
    let refused: Vec<i64> = (0..1024)
        .filter(|number| !ends_or_passes(*number) && !is_listed(role, *number, [u64::MAX; 6]))
        .filter(|number| !jail::probe::rules(role).iter().any(|rule| rule.number == *number))
        .collect();
    let spread = refused.iter().copied().step_by(refused.len() / (count - 2).max(1)).take(count - 2);
    // What a taken-over process would like best, of which the spawner's own filter lets both pass.
    [libc::SYS_execveat, libc::SYS_setresuid].into_iter().chain(spread).collect()
}
