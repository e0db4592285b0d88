//! Traps of privilege separation on Linux, each with the test that keeps us out of it. What a golden file already holds is asserted on
//! the golden file: `sandboxes.rs` holds the golden file against the kernel.
//!
//! Tested elsewhere: descriptor numbers that collide between fork and exec (`broker/spawner/tests/supervision.rs`,
//! `a_worker_is_born_with_exactly_its_descriptors_and_an_empty_environment`); lost wake-ups, empty and cut messages on SEQPACKET
//! (`broker/pipe`); decoding without a limit, bytes left over (`broker/pipe`, `policy/authorize`); x32 numbers (`sandboxes.rs`,
//! `x32_numbers_are_refused_and_deadly`).
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use jail::Role;
use jail::roles::row;
use tests::agent::{is_alive, signal, wait_until};
use tests::programs;
use tests::sandbox::{Compiler, Setup, can_be_tested};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// Whoever gives up root.
const CONFINED: [Role; 8] = [
    Role::Broker,
    Role::Frontend,
    Role::Query,
    Role::File,
    Role::Net,
    Role::NetAdmin,
    Role::Compile,
    Role::Keys,
];

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn without(line: &str, kind: &str) -> Vec<Role> {
    CONFINED
        .into_iter()
        .filter(|role| !golden(&format!("{role}.{kind}")).lines().any(|other| other == line))
        .collect()
}

fn with(start: &str, kind: &str) -> Vec<Role> {
    CONFINED
        .into_iter()
        .filter(|role| golden(&format!("{role}.{kind}")).lines().any(|line| line.starts_with(start)))
        .collect()
}

/// User 0 owns /etc/shadow, /proc/sys and /sys/power/state, with or without capabilities.
#[test]
fn nobody_confined_keeps_user_id_0() {
    assert_eq!(with("Uid: 0 ", "state"), []);
    assert_eq!(with("Gid: 0 ", "state"), []);
}

/// prctl(2): PR_SET_PDEATHSIG is cleared by a change of ids. The test holds the other ends of all sockets, so nobody ends at an
/// end of file.
#[test]
fn whoever_has_changed_ids_still_dies_with_the_spawner() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    let roles = [Role::Broker, Role::Frontend, Role::Query, Role::File, Role::Net, Role::NetAdmin];
    let peers = roles.map(|role| stage.peer(role));
    for peer in &peers {
        assert_eq!(peer.ask("enter kill"), "landlock full; missing nothing");
    }
    signal(stage.pid(), "KILL");
    assert!(wait_until(|| peers.iter().all(|peer| !is_alive(peer.pid))));
}

/// prctl(2): PR_SET_DUMPABLE is 1 again after exec and changes with the ids.
#[test]
fn nobody_confined_can_be_dumped_or_traced_by_its_own_user() {
    assert_eq!(without("owner of /proc/PID/environ: 0", "state"), []);
}

/// setrlimit(2): a write to a regular file beyond RLIMIT_FSIZE is SIGXFSZ; logs of confined processes go through pipes.
#[test]
fn who_has_a_file_size_limit_logs_to_a_pipe() {
    let limited = with("limit: Max file size 0", "state");
    assert_eq!(limited, [Role::Frontend, Role::Query, Role::Net, Role::NetAdmin]);
    let to_pipes = with("descriptor 2: pipe write, nonblock", "state");
    assert!(limited.iter().all(|role| to_pipes.contains(role)), "{to_pipes:?}");
}

/// getrlimit(2): RLIMIT_NPROC does not count for CAP_SYS_ADMIN and CAP_SYS_RESOURCE.
#[test]
fn no_new_process_is_a_matter_of_the_filter_and_nobody_is_exempt_from_the_limit() {
    assert_eq!(without("make a process (clone): filter; EAGAIN", "escapes"), []);
    assert_eq!(without("make a process (clone3): filter; EAGAIN", "escapes"), []);
}

/// landlock(7): chmod, chown, utimes, xattr and their AT_EMPTY_PATH forms are not restricted.
#[test]
fn what_landlock_does_not_see_the_filter_refuses() {
    for attempt in [
        "chmod by path",
        "chmod by an empty path",
        "chown by path",
        "chown by an empty path",
        "utimes by path",
        "setxattr by path",
    ] {
        let refused = with(&format!("{attempt}: filter; "), "escapes");
        assert_eq!(refused, CONFINED, "{attempt}");
    }
}

/// landlock(7): mounts cannot change afterwards, so the empty root is made before.
#[test]
fn the_empty_root_is_there_although_landlock_forbids_mounts() {
    assert_eq!(
        with("root: empty", "state"),
        [Role::Broker, Role::Frontend, Role::Net, Role::NetAdmin, Role::Compile]
    );
    assert_eq!(without("mount: filter; EPERM", "escapes"), []);
}

/// kernel/seccomp.c, `seccomp_uprobe_exception`: uretprobe (335) and uprobe (336) pass every filter on x86_64.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_call_that_passes_every_filter_does_nothing_for_who_makes_it() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    let peer = stage.worker(Role::Net, 0);
    assert_eq!(peer.ask("enter errno"), "landlock full; missing nothing");
    peer.tell("calls 336");
    // uprobe answers ENXIO where no probe is set; older kernels do not know it, and the spawner's filter ends who calls it.
    let answer = peer.hear();
    assert!(matches!(answer.as_deref(), Some("ENXIO") | None), "{answer:?}");
}

/// io_uring opens files without a system call that a filter sees.
#[test]
fn io_uring_is_refused_to_everybody() {
    assert_eq!(without("io_uring: filter; (not tried)", "escapes"), []);
}

/// unix(7): SO_PEERCRED on a pair names who made it, the spawner; SCM_CREDENTIALS can be forged. Identity is the number of the
/// descriptor one was born with.
#[test]
fn nobody_asks_a_socket_who_the_peer_is() {
    let mut found = Vec::new();
    for folder in ["frontend/src", "broker", "workers", "policy"] {
        search(&programs::root().join(folder), &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

fn search(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the source is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            search(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("it is text");
            let words = ["SO_PEERCRED", "PeerCredentials", "peer_cred(", "SCM_CREDENTIALS", "ScmCredentials"];
            let asks = words
                .iter()
                .any(|word| text.lines().any(|line| line.contains(word) && !line.trim().starts_with("//")));
            if asks {
                found.push(path.display().to_string());
            }
        }
    }
}

/// bincode 3.0.0 is a release that only fails to compile.
#[test]
fn bincode_is_pinned_to_the_last_version_that_works() {
    let manifest = fs::read_to_string(programs::root().join("Cargo.toml")).expect("it is there");
    assert!(manifest.contains("bincode = { version = \"=2.0.1\""));
    let lock = fs::read_to_string(programs::root().join("Cargo.lock")).expect("it is there");
    assert_eq!(lock.matches("name = \"bincode\"\nversion = \"2.0.1\"\n").count(), 1);
    assert_eq!(lock.matches("name = \"bincode\"\n").count(), 1);
}

/// std's panic hook opens files when RUST_BACKTRACE is set, and dies of it before its message is out.
#[test]
fn a_panic_with_a_backtrace_asked_for_ends_with_101_and_not_with_sigsys() {
    if !can_be_tested() {
        return;
    }
    let mut compiler = Compiler::start_with(PROBE, &[("RUST_BACKTRACE", "full")]);
    assert_eq!(compiler.peer.ask("enter kill"), "landlock full; missing nothing");
    compiler.peer.tell("panic");
    assert_eq!(compiler.ended().code(), Some(101));
    assert_eq!(without("environment: 0 bytes", "state"), []);
}

/// std's UnixStream and send(2), recv(2) are sendto and recvfrom.
#[test]
fn every_role_can_receive_and_send_on_its_socket() {
    assert_eq!(without("recvfrom", "syscalls"), []);
    assert_eq!(without("sendto", "syscalls"), []);
}

/// Some C libraries call the forms without `at` on x86_64, which other architectures do not have.
#[test]
fn no_list_depends_on_calls_that_only_old_architectures_have() {
    const OLD: [&str; 10] =
        ["open", "stat", "lstat", "access", "mkdir", "unlink", "rename", "chmod", "chown", "pipe"];
    let lists = CONFINED.map(|role| golden(&format!("{role}.syscalls")));
    let found: Vec<&str> = lists
        .iter()
        .flat_map(|list| list.lines())
        .filter(|line| OLD.iter().any(|name| line.split(' ').next() == Some(name)))
        .collect();
    assert_eq!(found, Vec::<&str>::new());
}

/// seccomp(2): filters, no_new_privs, Landlock and limits are inherited.
#[test]
fn commands_of_guest_exec_descend_from_a_process_without_filter_and_limits() {
    let state = golden("exec.state");
    for line in ["NoNewPrivs: 0", "Seccomp: 0", "Seccomp_filters: 0", "namespaces of its own: none"] {
        assert!(state.lines().any(|other| other == line), "{line}");
    }
    assert!(!state.contains("limit: "), "{state}");
}

/// no_new_privs before an exec forbids the transition into the role's SELinux domain or AppArmor profile.
#[test]
fn no_new_privs_comes_after_the_exec() {
    if !can_be_tested() {
        return;
    }
    let stage = Setup::new(PROBE).start();
    let peer = stage.worker(Role::Query, 0);
    let flag = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        status.lines().find(|line| line.starts_with("NoNewPrivs")).map(str::to_owned)
    };
    assert_eq!(flag(stage.pid()).as_deref(), Some("NoNewPrivs:\t0"));
    assert_eq!(flag(peer.pid).as_deref(), Some("NoNewPrivs:\t0"));
    peer.ask("enter kill");
    assert_eq!(flag(peer.pid).as_deref(), Some("NoNewPrivs:\t1"));
}

/// netlink(7) asks for the sender's capability with each message: a socket from before delegates nothing.
#[test]
fn a_netlink_socket_opened_as_root_changes_nothing_for_the_net_worker() {
    assert!(golden("net.escapes").contains("change a link that is not there: the kernel answers EPERM; "));
    assert!(
        golden("netadmin.escapes").contains("change a link that is not there: the kernel answers ENODEV; ")
    );
}

/// glibc falls back from clone3 to clone on ENOSYS only. Nobody makes a thread after its filter, so neither is needed.
#[test]
fn no_thread_is_made_after_a_filter() {
    assert_eq!(with("clone", "syscalls"), []);
    let threads: Vec<Role> = CONFINED.into_iter().filter(|role| row(*role).threads).collect();
    assert_eq!(threads, [Role::File]);
}
