//! Runs the real spawner as root with stand-ins for all roles, and plays the broker.
//!
//! This program is also the stand-in: copied under a role's name it does not test but plays that role. The stand-in broker
//! hands its control socket to the test over an abstract socket named in the settings; the others describe over descriptor 3
//! how they were born and then do what they are told. Without root there is nothing to show, and it says so.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jail::Role;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg};
use nix::unistd::Pid;
use spawner::reloads::{Outcome, Reloads};
use spawner::{
    Channel, Control, Descriptors, FromBroker, FromSpawner, Method, Plan, Reason, Received, Verdict,
};

const TESTS: &[(&str, fn())] = &[
    (
        "a_worker_is_born_with_exactly_its_descriptors_and_an_empty_environment",
        a_worker_is_born_with_exactly_its_descriptors_and_an_empty_environment,
    ),
    (
        "a_frontend_is_born_with_its_channel_and_without_settings",
        a_frontend_is_born_with_its_channel_and_without_settings,
    ),
    ("the_broker_is_born_with_its_files", the_broker_is_born_with_its_files),
    ("a_killed_worker_is_reported_with_its_signal", a_killed_worker_is_reported_with_its_signal),
    (
        "a_worker_that_ends_by_itself_is_reported_with_its_status",
        a_worker_that_ends_by_itself_is_reported_with_its_status,
    ),
    ("a_worker_outside_the_plan_is_refused", a_worker_outside_the_plan_is_refused),
    (
        "a_worker_that_runs_is_not_started_twice_but_another_instance_is",
        a_worker_that_runs_is_not_started_twice_but_another_instance_is,
    ),
    ("starting_again_and_again_is_refused", starting_again_and_again_is_refused),
    ("a_program_that_cannot_be_executed_is_refused", a_program_that_cannot_be_executed_is_refused),
    (
        "a_malformed_message_ends_the_broker_and_everybody_starts_anew",
        a_malformed_message_ends_the_broker_and_everybody_starts_anew,
    ),
    ("a_message_with_a_descriptor_ends_the_broker", a_message_with_a_descriptor_ends_the_broker),
    ("a_dead_frontend_is_replaced_on_the_same_channel", a_dead_frontend_is_replaced_on_the_same_channel),
    ("a_channel_that_has_gone_is_opened_anew", a_channel_that_has_gone_is_opened_anew),
    (
        "a_channel_that_has_gone_for_good_ends_the_agent_with_0",
        a_channel_that_has_gone_for_good_ends_the_agent_with_0,
    ),
    (
        "sigterm_ends_everything_with_0_even_those_who_ignore_it",
        sigterm_ends_everything_with_0_even_those_who_ignore_it,
    ),
    ("stop_ends_everything_with_the_status_it_names", stop_ends_everything_with_the_status_it_names),
    ("a_killed_spawner_leaves_nothing_behind", a_killed_spawner_leaves_nothing_behind),
    ("ready_tells_the_parent_and_systemd", ready_tells_the_parent_and_systemd),
    (
        "a_channel_that_cannot_be_opened_ends_the_start_with_1",
        a_channel_that_cannot_be_opened_ends_the_start_with_1,
    ),
    (
        "a_channel_that_is_waited_for_does_not_end_the_start",
        a_channel_that_is_waited_for_does_not_end_the_start,
    ),
    ("a_file_in_the_way_of_a_socket_is_not_removed", a_file_in_the_way_of_a_socket_is_not_removed),
    ("a_socket_path_of_108_bytes_is_too_long", a_socket_path_of_108_bytes_is_too_long),
    (
        "a_listening_socket_has_the_mode_that_was_asked_for",
        a_listening_socket_has_the_mode_that_was_asked_for,
    ),
    ("a_serial_line_is_set_to_raw", a_serial_line_is_set_to_raw),
    ("a_vsock_port_is_listened_on", a_vsock_port_is_listened_on),
    ("an_inherited_socket_reaches_the_frontend", an_inherited_socket_reaches_the_frontend),
    (
        "a_pid_file_that_is_still_ours_is_removed_at_the_end",
        a_pid_file_that_is_still_ours_is_removed_at_the_end,
    ),
    ("a_pid_file_that_somebody_replaced_stays", a_pid_file_that_somebody_replaced_stays),
    (
        "an_unconfined_spawner_starts_workers_without_a_filter",
        an_unconfined_spawner_starts_workers_without_a_filter,
    ),
    ("workers_without_a_network_share_one_empty_network", workers_without_a_network_share_one_empty_network),
    ("processes_that_name_no_file_share_one_empty_root", processes_that_name_no_file_share_one_empty_root),
    (
        "every_role_enters_its_whole_jail_under_the_spawners_filter",
        every_role_enters_its_whole_jail_under_the_spawners_filter,
    ),
    ("exec_keeps_what_its_commands_need", exec_keeps_what_its_commands_need),
    (
        "an_ordinary_users_agent_is_confined_as_far_as_it_can_be_and_says_what_is_missing",
        an_ordinary_users_agent_is_confined_as_far_as_it_can_be_and_says_what_is_missing,
    ),
    ("sighup_ends_an_agent_that_does_not_reload", sighup_ends_an_agent_that_does_not_reload),
    (
        "the_command_that_reloads_is_born_with_exactly_its_descriptors",
        the_command_that_reloads_is_born_with_exactly_its_descriptors,
    ),
    (
        "what_is_started_after_a_policy_was_accepted_is_born_with_it",
        what_is_started_after_a_policy_was_accepted_is_born_with_it,
    ),
    ("a_policy_that_the_broker_refuses_changes_nothing", a_policy_that_the_broker_refuses_changes_nothing),
    ("an_answer_to_what_was_not_offered_ends_the_broker", an_answer_to_what_was_not_offered_ends_the_broker),
    (
        "a_broker_cannot_accept_twice_or_under_another_number",
        a_broker_cannot_accept_twice_or_under_another_number,
    ),
    (
        "what_the_command_leaves_beside_a_sealed_form_and_one_message_is_no_policy",
        what_the_command_leaves_beside_a_sealed_form_and_one_message_is_no_policy,
    ),
    (
        "a_text_that_is_wrong_is_handed_over_to_be_recorded",
        a_text_that_is_wrong_is_handed_over_to_be_recorded,
    ),
    (
        "programs_are_not_permitted_by_a_reload_under_a_filter",
        programs_are_not_permitted_by_a_reload_under_a_filter,
    ),
    (
        "a_worker_that_is_not_installed_is_not_permitted_by_a_reload",
        a_worker_that_is_not_installed_is_not_permitted_by_a_reload,
    ),
    ("many_sighups_are_one_more_reload", many_sighups_are_one_more_reload),
    ("nothing_is_reloaded_while_something_is_frozen", nothing_is_reloaded_while_something_is_frozen),
    (
        "a_policy_is_offered_to_the_next_broker_but_not_for_ever",
        a_policy_is_offered_to_the_next_broker_but_not_for_ever,
    ),
    ("a_killed_command_leaves_the_old_policy", a_killed_command_leaves_the_old_policy),
    ("root_without_a_uid_base_does_not_start", root_without_a_uid_base_does_not_start),
    ("a_program_that_everybody_can_write_is_not_started", a_program_that_everybody_can_write_is_not_started),
];

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    if name == "portreeve-recompile" {
        return play_command();
    }
    if let Some(role) = Role::ALL.into_iter().find(|role| name == role.executable()) {
        return play(role);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: broker/spawner/tests/supervision.rs needs root");
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())))
        .collect();
    println!("running {} tests", chosen.len());
    for (name, test) in &chosen {
        // A failing test panics, and panics abort: its name is the last line.
        print!("test {name} ... ");
        io::stdout().flush().expect("stdout is there");
        test();
        println!("ok");
    }
    println!("test result: ok. {} passed", chosen.len());
}

// ---------------------------------------------------------------------------------------------------------------------
// The tests.

fn a_worker_is_born_with_exactly_its_descriptors_and_an_empty_environment() {
    let mut agent = Agent::start("born", |_| ());
    let (worker, pid) = agent.start_worker(Role::Query, 0);
    assert_eq!(
        worker.ask("describe"),
        "fd 0 /dev/null\nfd 1 /dev/null\nfd 2 pipe nonblock\nfd 3 socket\nfd 4 memfd:settings\n\
         arguments portreeve-query 1900000000 0 in-empty-network\nenvironment 0\nleads its session\nblocked 0000000000000000\n\
         parent-death signal 9\nfilters 1\n"
    );
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/exe")).expect("exists"),
        agent.folder.join("portreeve-query")
    );
}

fn a_frontend_is_born_with_its_channel_and_without_settings() {
    let agent = Agent::start("frontend", |_| ());
    assert_eq!(
        agent.frontend.ask("describe"),
        "fd 0 /dev/null\nfd 1 /dev/null\nfd 2 pipe nonblock\nfd 3 socket\nfd 5 socket\nfd 12 mnt\nfd 13 ipc\nfd 14 uts\n\
         arguments portreeve-frontend 1900000000 0 in-empty-network with-empty-root\nenvironment 0\nleads its session\nblocked 0000000000000000\n\
         parent-death signal 9\nfilters 1\n"
    );
}

fn the_broker_is_born_with_its_files() {
    let agent = Agent::start("broker", |_| ());
    let folder = agent.folder.display().to_string();
    assert_eq!(
        agent.broker_description.replace(&folder, "FOLDER"),
        "fd 0 /dev/null\nfd 1 /dev/null\nfd 2 FOLDER/log\nfd 3 socket\nfd 4 memfd:settings\nfd 5 FOLDER/audit\n\
         fd 12 mnt\nfd 13 ipc\nfd 14 uts\n\
         arguments portreeve-broker 1900000000 0 in-empty-network with-empty-root\nenvironment 0\nleads its session\nblocked 0000000000000000\n\
         parent-death signal 9\nfilters 1\n"
    );
}

fn a_killed_worker_is_reported_with_its_signal() {
    let mut agent = Agent::start("kill", |_| ());
    let (worker, _) = agent.start_worker(Role::File, 1);
    agent.send(FromBroker::Kill { kind: Role::File, instance: 1 });
    assert_eq!(agent.receive().message, FromSpawner::Exited { kind: Role::File, instance: 1, status: 9 });
    assert!(worker.is_closed());
}

fn a_worker_that_ends_by_itself_is_reported_with_its_status() {
    let mut agent = Agent::start("exit", |_| ());
    let (worker, _) = agent.start_worker(Role::Net, 0);
    worker.tell("exit 3");
    assert_eq!(agent.receive().message, FromSpawner::Exited { kind: Role::Net, instance: 0, status: 0x300 });
}

fn a_worker_outside_the_plan_is_refused() {
    let mut agent = Agent::start("outside", |_| ());
    agent.send(FromBroker::Start { kind: Role::Exec, instance: 0 });
    let reason = Reason::NotPermitted;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::Exec, instance: 0, reason });
}

fn a_worker_that_runs_is_not_started_twice_but_another_instance_is() {
    let mut agent = Agent::start("twice", |_| ());
    let (_worker, first) = agent.start_worker(Role::File, 0);
    agent.send(FromBroker::Start { kind: Role::File, instance: 0 });
    let reason = Reason::AlreadyRunning;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::File, instance: 0, reason });
    let (_other, second) = agent.start_worker(Role::File, 1);
    assert_ne!(first, second);
}

fn starting_again_and_again_is_refused() {
    let mut agent = Agent::start("often", |_| ());
    let mut started = 0;
    let refused = loop {
        agent.send(FromBroker::Start { kind: Role::Net, instance: 0 });
        // Its socket is kept until it has been killed: without it the worker would end by itself.
        let received = agent.receive();
        let FromSpawner::Started { .. } = received.message else { break received.message };
        started += 1;
        agent.send(FromBroker::Kill { kind: Role::Net, instance: 0 });
        assert_eq!(agent.receive().message, FromSpawner::Exited { kind: Role::Net, instance: 0, status: 9 });
    };
    assert!((10..=12).contains(&started), "10 at once and one a second, but {started} were started");
    let reason = Reason::TooOften;
    assert_eq!(refused, FromSpawner::Refused { kind: Role::Net, instance: 0, reason });
    // Another kind has an allowance of its own.
    agent.start_worker(Role::Query, 0);
}

fn a_program_that_cannot_be_executed_is_refused() {
    let mut agent = Agent::start("noexec", |setup| {
        fs::write(setup.folder.join("portreeve-net"), "no program").expect("writes");
    });
    agent.send(FromBroker::Start { kind: Role::Net, instance: 0 });
    let reason = Reason::ExecFailed;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::Net, instance: 0, reason });
    assert!(agent.log().contains("cannot start net: Exec format error"), "{}", agent.log());
}

fn a_malformed_message_ends_the_broker_and_everybody_starts_anew() {
    let mut agent = Agent::start("malformed", |_| ());
    let (worker, worker_pid) = agent.start_worker(Role::Query, 0);
    let (broker, frontend) = (agent.broker, agent.frontend_pid);

    send(agent.control.as_raw_fd(), &[0; 16], MsgFlags::empty()).expect("sends");

    agent.meet_broker();
    assert!(
        agent.log().contains("the broker is ended: malformed control message: magic 0x00000000"),
        "{}",
        agent.log()
    );
    assert_ne!(agent.broker, broker);
    assert_ne!(agent.frontend_pid, frontend);
    assert!(worker.is_closed());
    assert_eq!([broker, frontend, worker_pid].map(is_alive), [false; 3]);
}

fn a_message_with_a_descriptor_ends_the_broker() {
    let mut agent = Agent::start("rights", |_| ());
    let broker = agent.broker;
    let null = File::open("/dev/null").expect("opens");
    let numbers = [null.as_raw_fd()];
    let bytes = FromBroker::Ready.encode(0);
    let sent = sendmsg::<()>(
        agent.control.as_raw_fd(),
        &[io::IoSlice::new(&bytes)],
        &[ControlMessage::ScmRights(&numbers)],
        MsgFlags::empty(),
        None,
    );
    if sent == Err(nix::errno::Errno::EPERM) {
        // Linux 6.16: the sender is told, since the spawner's end does not accept any.
        assert!(is_alive(broker));
        return;
    }
    agent.meet_broker();
    assert_ne!(agent.broker, broker);
    assert!(agent.log().contains("malformed control message: 1 descriptors"), "{}", agent.log());
}

fn a_dead_frontend_is_replaced_on_the_same_channel() {
    let mut agent = Agent::start("replace", |_| ());
    let inode = agent.frontend.ask("channel");
    let first = agent.frontend_pid;
    kill(Pid::from_raw(first), Signal::SIGABRT).expect("kills");
    assert_eq!(agent.receive().message, FromSpawner::Exited { kind: Role::Frontend, instance: 0, status: 6 });
    agent.meet_frontend();
    assert_ne!(agent.frontend_pid, first);
    assert_eq!(agent.frontend.ask("channel"), inode);
    UnixStream::connect(&agent.socket).expect("the channel listens");
}

fn a_channel_that_has_gone_is_opened_anew() {
    let mut agent = Agent::start("reopen", |setup| setup.plan.channels[0].reopen = true);
    let inode = agent.frontend.ask("channel");
    agent.frontend.tell("exit 10");
    assert_eq!(
        agent.receive().message,
        FromSpawner::Exited { kind: Role::Frontend, instance: 0, status: 0xa00 }
    );
    agent.meet_frontend();
    assert_ne!(agent.frontend.ask("channel"), inode);
    UnixStream::connect(&agent.socket).expect("the channel listens");
}

fn a_channel_that_has_gone_for_good_ends_the_agent_with_0() {
    let mut agent = Agent::start("gone", |_| ());
    agent.frontend.tell("exit 10");
    assert_eq!(agent.wait().code(), Some(0));
    assert!(agent.log().contains("channel 0 has gone: ending"), "{}", agent.log());
}

fn sigterm_ends_everything_with_0_even_those_who_ignore_it() {
    let mut agent = Agent::start("sigterm", |_| ());
    let (worker, worker_pid) = agent.start_worker(Role::Query, 0);
    assert_eq!(worker.ask("ignore SIGTERM"), "done");
    let begin = Instant::now();
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
    let took = begin.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(2)).contains(&took), "{took:?}");
    assert_eq!([agent.broker, agent.frontend_pid, worker_pid].map(is_alive), [false; 3]);
}

fn stop_ends_everything_with_the_status_it_names() {
    let mut agent = Agent::start("stop", |_| ());
    let begin = Instant::now();
    agent.send(FromBroker::Stop { status: 3 });
    assert_eq!(agent.wait().code(), Some(3));
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "nobody ignores SIGTERM, but it took {:?}",
        begin.elapsed()
    );
}

fn a_killed_spawner_leaves_nothing_behind() {
    let mut agent = Agent::start("sigkill", |_| ());
    let (worker, worker_pid) = agent.start_worker(Role::Query, 0);
    let (jailed, jailed_pid) = agent.start_worker(Role::File, 0);
    assert_eq!(worker.ask("ignore SIGTERM"), "done");
    // Its new ids have taken the signal away that stage A set; stage B sets it again.
    assert_eq!(jailed.ask("enter"), "ipc uts net missing []");
    agent.signal(Signal::SIGKILL);
    assert_eq!(agent.wait().signal(), Some(9));
    // The test holds the other ends of their sockets: they do not end because those close.
    let pids = [agent.broker, agent.frontend_pid, worker_pid, jailed_pid];
    within_two_seconds(|| pids.map(is_alive) == [false; 4]);
}

fn ready_tells_the_parent_and_systemd() {
    let name = format!("portreeve-test-notify-{}", std::process::id());
    let systemd =
        UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("binds");
    let (mut parent, child) = io::pipe().expect("makes a pipe");
    let mut agent = Agent::start("ready", |setup| {
        setup.plan.notify_socket = format!("@{name}").into_bytes();
        setup.plan.descriptors.ready = Some(setup.inherit(child.into()));
    });
    agent.send(FromBroker::Ready);
    let mut told = Vec::new();
    parent.read_to_end(&mut told).expect("reads");
    assert_eq!(told, [spawner::plan::READY]);
    assert_eq!(datagram(&systemd), "READY=1\n");
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.wait().code(), Some(0));
    assert_eq!(datagram(&systemd), "STOPPING=1\n");
}

fn a_channel_that_cannot_be_opened_ends_the_start_with_1() {
    let mut setup = Setup::new("cannot");
    setup.plan.channels[0].method = Method::VirtioSerial { path: "/dev/virtio-ports/none".into() };
    let (status, log) = fail(&setup);
    assert_eq!(status, Some(1));
    let wanted =
        "critical: error opening channel '/dev/virtio-ports/none': No such file or directory (os error 2)\n";
    assert!(log.ends_with(wanted), "{log}");
}

fn a_channel_that_is_waited_for_does_not_end_the_start() {
    let (mut parent, child) = io::pipe().expect("makes a pipe");
    let mut setup = Setup::new("waited");
    let port = setup.folder.join("port");
    setup.plan.channels[0] =
        Channel { method: Method::VirtioSerial { path: port.clone() }, retry: true, reopen: false };
    setup.plan.descriptors.ready = Some(setup.inherit(child.into()));
    let mut agent = Agent::begin(setup);
    let mut told = [0];
    parent.read_exact(&mut told).expect("the waiting parent is let go");
    agent.accept_broker();
    assert!(agent.log().contains("waiting for channel path..."), "{}", agent.log());
    nix::unistd::mkfifo(&port, nix::sys::stat::Mode::S_IRWXU).expect("makes it");
    // It is looked for every 5 s.
    agent.meet_frontend();
}

fn a_file_in_the_way_of_a_socket_is_not_removed() {
    let setup = Setup::new("file");
    fs::write(&setup.socket, "precious").expect("writes");
    let (status, log) = fail(&setup);
    assert_eq!(status, Some(1));
    assert_eq!(fs::read_to_string(&setup.socket).expect("reads"), "precious");
    let wanted = format!("Failed to unlink socket {}: it is not a socket\n", setup.socket.display());
    assert!(log.ends_with(&wanted), "{log}");
}

fn a_socket_path_of_108_bytes_is_too_long() {
    let mut setup = Setup::new("long");
    let path = format!("/tmp/{}", "x".repeat(103));
    setup.plan.channels[0].method = Method::UnixListen { path: path.clone().into(), mode: None };
    let (status, log) = fail(&setup);
    assert_eq!(status, Some(1));
    assert!(log.ends_with(&format!("UNIX socket path '{path}' is too long\n")), "{log}");
}

fn a_listening_socket_has_the_mode_that_was_asked_for() {
    let agent = Agent::start("mode", |setup| {
        // A socket of an earlier run is replaced.
        drop(UnixListener::bind(&setup.socket).expect("binds"));
        let path = setup.socket.clone();
        setup.plan.channels[0].method = Method::UnixListen { path, mode: Some(0o620) };
    });
    assert_eq!(fs::metadata(&agent.socket).expect("is there").mode() & 0o777, 0o620);
}

fn a_serial_line_is_set_to_raw() {
    let pty = Pty::open();
    let agent = Agent::start("serial", |setup| {
        setup.plan.channels[0].method = Method::IsaSerial { path: pty.path.clone() };
    });
    let settings = pty.settings();
    assert_eq!(settings.c_iflag & (libc::ICRNL | libc::IXON | libc::ISTRIP | libc::BRKINT), 0);
    assert_eq!((settings.c_oflag, settings.c_lflag), (0, 0));
    assert_eq!((settings.c_cc[libc::VMIN], settings.c_cc[libc::VTIME]), (1, 0));
    drop(agent);
}

fn a_vsock_port_is_listened_on() {
    if !fs::read_to_string("/proc/net/protocols").expect("reads").contains("AF_VSOCK") {
        return print!("SKIPPED: this kernel has no vsock ");
    }
    let method = || Method::VsockListen { cid: u32::MAX, port: 0x7072_7631 };
    let agent = Agent::start("vsock", |setup| setup.plan.channels[0].method = method());
    assert!(agent.frontend.ask("channel").starts_with("socket:"));
    // The port is taken while it listens.
    let mut second = Setup::new("vsock2");
    second.plan.channels[0].method = method();
    let (status, log) = fail(&second);
    assert_eq!(status, Some(1));
    let wanted = "cannot listen on vsock 4294967295:1886549553: Address already in use (os error 98)\n";
    assert!(log.ends_with(wanted), "{log}");
}

fn an_inherited_socket_reaches_the_frontend() {
    let mut inode = String::new();
    let agent = Agent::start("inherited", |setup| {
        let listener = UnixListener::bind(setup.folder.join("activated")).expect("binds");
        let number = setup.inherit(listener.into());
        inode = fs::read_link(format!("/proc/self/fd/{number}")).expect("is open").display().to_string();
        setup.plan.channels[0].method = Method::Inherited { descriptor: number };
    });
    assert_eq!(agent.frontend.ask("channel"), inode);
}

fn a_pid_file_that_is_still_ours_is_removed_at_the_end() {
    let mut agent = Agent::start("pidfile", |setup| setup.add_pid_file());
    let path = agent.folder.join("pid");
    assert!(path.exists());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
    assert!(!path.exists());
}

fn a_pid_file_that_somebody_replaced_stays() {
    let mut agent = Agent::start("pidfile2", |setup| setup.add_pid_file());
    let path = agent.folder.join("pid");
    fs::remove_file(&path).expect("removes");
    fs::write(&path, "4711\n").expect("writes");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
    assert_eq!(fs::read_to_string(&path).expect("is there"), "4711\n");
}

fn an_unconfined_spawner_starts_workers_without_a_filter() {
    let mut agent = Agent::start("exec", |setup| setup.plan.workers.push(Role::Exec));
    let (worker, _) = agent.start_worker(Role::Exec, 0);
    let description = worker.ask("describe");
    assert!(description.ends_with("filters 0\n"), "{description}");
}

fn workers_without_a_network_share_one_empty_network() {
    let mut agent = Agent::start("network", |_| ());
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).expect("reads");
    let (_query, query) = agent.start_worker(Role::Query, 0);
    let (_file, file) = agent.start_worker(Role::File, 0);
    let (_net, net) = agent.start_worker(Role::Net, 0);
    assert_eq!(
        [query, file, agent.broker, agent.frontend_pid].map(network),
        [(); 4].map(|()| network(query))
    );
    assert_ne!(network(query), network(net));
    assert_eq!(network(net), network(std::process::id().cast_signed()));
}

fn processes_that_name_no_file_share_one_empty_root() {
    let mut agent = Agent::start("root", |_| ());
    let (net, net_pid) = agent.start_worker(Role::Net, 0);
    let (query, query_pid) = agent.start_worker(Role::Query, 0);
    for process in [&agent.frontend, &net, &query] {
        process.ask("enter");
    }
    for kind in ["mnt", "ipc", "uts"] {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("reads");
        assert_eq!(namespace(agent.frontend_pid), namespace(net_pid), "{kind}");
        assert_ne!(namespace(query_pid), namespace(net_pid), "{kind}");
        assert_ne!(namespace(std::process::id().cast_signed()), namespace(net_pid), "{kind}");
    }
    let mounts = fs::read_to_string(format!("/proc/{net_pid}/mountinfo")).expect("reads");
    let [root] = mounts.lines().collect::<Vec<_>>()[..] else { panic!("more than one mount: {mounts}") };
    assert!(
        root.contains(" / / ro,nosuid,nodev,noexec,relatime - tmpfs empty rw,size=4k,nr_inodes=2,mode=555"),
        "{root}"
    );
}

fn every_role_enters_its_whole_jail_under_the_spawners_filter() {
    let mut agent = Agent::start("enter", |setup| setup.plan.workers.push(Role::NetAdmin));
    let (query, query_pid) = agent.start_worker(Role::Query, 0);
    let (file, file_pid) = agent.start_worker(Role::File, 0);
    let (net, net_pid) = agent.start_worker(Role::Net, 0);
    let (netadmin, netadmin_pid) = agent.start_worker(Role::NetAdmin, 0);
    let nothing = "missing []";

    assert_eq!(agent.frontend.ask("enter"), format!("ipc uts net mnt {nothing}"));
    assert_eq!(
        status(agent.frontend_pid),
        "uid 1900000100 caps 0 bounding 0 nnp 1 seccomp 2 filters 2 threads 1"
    );
    assert_eq!(query.ask("enter"), format!("ipc net {nothing}"));
    assert_eq!(status(query_pid), "uid 1900000003 caps 0 bounding 0 nnp 1 seccomp 2 filters 2 threads 1");
    // CHOWN 0, DAC_OVERRIDE 1, DAC_READ_SEARCH 2, FOWNER 3.
    assert_eq!(file.ask("enter"), format!("ipc uts net {nothing}"));
    assert_eq!(status(file_pid), "uid 1900000004 caps f bounding f nnp 1 seccomp 2 filters 2 threads 3");
    assert_eq!(net.ask("enter"), format!("ipc uts mnt {nothing}"));
    assert_eq!(status(net_pid), "uid 1900000005 caps 0 bounding 0 nnp 1 seccomp 2 filters 2 threads 1");
    // NET_ADMIN 12.
    assert_eq!(netadmin.ask("enter"), format!("ipc uts mnt {nothing}"));
    assert_eq!(
        status(netadmin_pid),
        "uid 1900000006 caps 1000 bounding 1000 nnp 1 seccomp 2 filters 2 threads 1"
    );

    // The empty root is empty, and query sees the host's mounts.
    assert_eq!(fs::read_dir(format!("/proc/{net_pid}/root/")).expect("reads").count(), 0);
    assert_eq!(query.ask("read /proc/self/mountinfo"), "ok");
    assert_eq!(query.ask("read /etc/hostname"), "ok");
    assert_eq!(query.ask("read /usr/bin/env"), "Permission denied (os error 13)");
    assert_eq!(query.ask("list /sys/class"), "ok");
    assert_eq!(query.ask("list /usr/bin"), "Permission denied (os error 13)");
    // Threads have the filter, too: a call that none may make ends all of them.
    file.tell("getsid in a thread");
    assert_eq!(agent.receive().message, FromSpawner::Exited { kind: Role::File, instance: 0, status: 31 });
    // A panic can be told from inside.
    net.tell("panic");
    assert_eq!(
        agent.receive().message,
        FromSpawner::Exited { kind: Role::Net, instance: 0, status: 101 << 8 }
    );
    let words = net.log();
    assert!(words.starts_with("net: panicked at broker/spawner/tests/supervision.rs:"), "{words}");
    assert!(words.ends_with(": told to\n"), "{words}");
}

fn an_ordinary_users_agent_is_confined_as_far_as_it_can_be_and_says_what_is_missing() {
    let mut agent = Agent::start("user", |setup| setup.run_as_nobody());
    let (query, query_pid) = agent.start_worker(Role::Query, 0);
    let (file, file_pid) = agent.start_worker(Role::File, 0);
    assert_eq!(agent.frontend.ask("enter"), r#" missing ["namespaces", "user id of its own"]"#);
    assert_eq!(query.ask("enter"), r#" missing ["namespaces", "user id of its own"]"#);
    assert_eq!(file.ask("enter"), r#" missing ["namespaces", "user id of its own", "capabilities"]"#);
    // The bounding set needs a capability to be lowered; it stays what it was.
    let own = status(std::process::id().cast_signed());
    let bounding = own.split(' ').nth(5).expect("the sixth word");
    assert_eq!(
        status(query_pid),
        format!("uid 65534 caps 0 bounding {bounding} nnp 1 seccomp 2 filters 1 threads 1")
    );
    assert_eq!(
        status(file_pid),
        format!("uid 65534 caps 0 bounding {bounding} nnp 1 seccomp 2 filters 1 threads 3")
    );
    assert_eq!(query.ask("read /usr/bin/env"), "Permission denied (os error 13)");
    let said = "message: not started by root: no uid separation, no namespaces, no filter on the spawner\n";
    assert!(agent.log().ends_with(said), "{}", agent.log());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
}

// ---------------------------------------------------------------------------------------------------------------------
// Reloads.

/// Workers in the plan's form.
const QUERY_AND_POWER: u32 = 1 << Role::Query as u8 | 1 << Role::Power as u8;

fn sighup_ends_an_agent_that_does_not_reload() {
    let mut agent = Agent::start("hup", |_| ());
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.wait().signal(), Some(libc::SIGHUP));
}

fn the_command_that_reloads_is_born_with_exactly_its_descriptors() {
    let mut agent = Agent::start_reloading("command", "describe");
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Failed });
    let folder = agent.folder.display().to_string();
    let described = fs::read_to_string(agent.folder.join("described")).expect("it has described itself");
    assert_eq!(
        described.replace(&folder, "FOLDER"),
        "fd 0 /dev/null\nfd 1 memfd:portreeve-settings\nfd 2 FOLDER/log\nfd 3 pipe nonblock\nfd 4 memfd:settings\n\
         fd 5 FOLDER/portreeve-compile\narguments portreeve-recompile 1900000000 0\nenvironment 0\nleads its session\n\
         blocked 0000000000000000\nparent-death signal 9\nfilters 1\n"
    );
}

fn what_is_started_after_a_policy_was_accepted_is_born_with_it() {
    let mut agent = Agent::start_reloading("accepted", &format!("workers {QUERY_AND_POWER}"));
    let (before, _) = agent.start_worker(Role::File, 0);
    agent.signal(Signal::SIGHUP);
    let offered = agent.receive();
    assert_eq!(offered.message, FromSpawner::Reload { verdict: Verdict::Compiled });
    let [form, _] = offered.descriptors;
    let form = form.expect("it comes along");
    assert_eq!(jail::sealed::read(form.as_fd(), 100).expect("is sealed"), agent.form());

    // Not yet accepted: what is started has the old one.
    let (between, _) = agent.start_worker(Role::Net, 0);
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    let (after, _) = agent.start_worker(Role::Query, 0);
    let (power, _) = agent.start_worker(Role::Power, 0);

    assert_eq!(before.ask("settings"), agent.settings());
    assert_eq!(between.ask("settings"), agent.settings());
    assert_eq!(after.ask("settings").into_bytes(), agent.form());
    assert_eq!(power.ask("settings").into_bytes(), agent.form());
    agent.send(FromBroker::Start { kind: Role::File, instance: 1 });
    let reason = Reason::NotPermitted;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::File, instance: 1, reason });
    let says = agent.reloads();
    assert_eq!((says.begun, says.ended, says.outcome), (1, 1, Outcome::Accepted));
    let link = fs::read_link(format!("/proc/{}/fd/{}", agent.spawner.id(), says.settings)).expect("is open");
    assert!(link.display().to_string().contains("portreeve-settings"), "{link:?}");
}

fn a_policy_that_the_broker_refuses_changes_nothing() {
    let mut agent = Agent::start_reloading("unaccepted", &format!("workers {QUERY_AND_POWER}"));
    agent.signal(Signal::SIGHUP);
    let offered = agent.receive();
    agent.control.send(FromBroker::Reloaded { accepted: false }, offered.sequence).expect("sends");
    let (worker, _) = agent.start_worker(Role::File, 0);
    assert_eq!(worker.ask("settings"), agent.settings());
    agent.send(FromBroker::Start { kind: Role::Power, instance: 0 });
    let reason = Reason::NotPermitted;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::Power, instance: 0, reason });
    assert_eq!(agent.reloads().outcome, Outcome::Refused);
}

fn an_answer_to_what_was_not_offered_ends_the_broker() {
    let mut agent = Agent::start_reloading("unasked", &format!("workers {QUERY_AND_POWER}"));
    let broker = agent.broker;
    agent.control.send(FromBroker::Reloaded { accepted: true }, 0).expect("sends");
    agent.meet_broker();
    assert_ne!(agent.broker, broker);
    assert!(agent.log().contains("an answer to what was not asked"), "{}", agent.log());
    agent.send(FromBroker::Start { kind: Role::Power, instance: 0 });
    let reason = Reason::NotPermitted;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::Power, instance: 0, reason });
}

fn a_broker_cannot_accept_twice_or_under_another_number() {
    let mut agent = Agent::start_reloading("twice-accepted", &format!("workers {QUERY_AND_POWER}"));
    agent.signal(Signal::SIGHUP);
    let offered = agent.receive();
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence + 1).expect("sends");
    // The next one is asked, too.
    agent.meet_broker();
    let offered = agent.receive();
    assert_eq!(offered.message, FromSpawner::Reload { verdict: Verdict::Compiled });
    let broker = agent.broker;
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    agent.meet_broker();
    assert_ne!(agent.broker, broker);
    // It was in force all the same.
    agent.start_worker(Role::Power, 0);
}

fn what_the_command_leaves_beside_a_sealed_form_and_one_message_is_no_policy() {
    let broker_among_workers = 1 << Role::Broker as u8;
    for left in [
        "nothing".to_owned(),
        "garbage".to_owned(),
        "two messages".to_owned(),
        format!("unsealed {QUERY_AND_POWER}"),
        format!("workers {broker_among_workers}"),
        "unsealed wrong".to_owned(),
        "exit 3".to_owned(),
        "exit 9".to_owned(),
    ] {
        let mut agent = Agent::start_reloading("left", &left);
        agent.signal(Signal::SIGHUP);
        assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Failed }, "{left}");
        assert_eq!(agent.reloads().outcome, Outcome::Failed, "{left}");
        agent.start_worker(Role::File, 0);
        assert!(
            agent.log().contains("the policy was not reloaded: the one in force stays"),
            "{}",
            agent.log()
        );
    }
}

fn a_text_that_is_wrong_is_handed_over_to_be_recorded() {
    let mut agent = Agent::start_reloading("wrong", "wrong text");
    let broker = agent.broker;
    agent.signal(Signal::SIGHUP);
    let received = agent.receive();
    assert_eq!(received.message, FromSpawner::Reload { verdict: Verdict::NotCompiled });
    assert_eq!(agent.reloads().outcome, Outcome::NotCompiled);
    // Only to be recorded: to accept it is an answer to what was not asked.
    agent.control.send(FromBroker::Reloaded { accepted: true }, received.sequence).expect("sends");
    agent.meet_broker();
    assert_ne!(agent.broker, broker);
    let (worker, _) = agent.start_worker(Role::File, 0);
    assert_eq!(worker.ask("settings"), agent.settings());
}

fn programs_are_not_permitted_by_a_reload_under_a_filter() {
    let exec = 1 << Role::Exec as u8;
    let mut agent = Agent::start_reloading("filtered", &format!("workers {exec}"));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::NeedsRestart });
    assert_eq!(agent.reloads().outcome, Outcome::NeedsRestart);
    agent.send(FromBroker::Start { kind: Role::Exec, instance: 0 });
    let reason = Reason::NotPermitted;
    assert_eq!(agent.receive().message, FromSpawner::Refused { kind: Role::Exec, instance: 0, reason });
    drop(agent);

    // Without a filter there is nothing to inherit.
    let mut agent = Agent::start("unfiltered", |setup| {
        setup.reload(&format!("workers {exec}"));
        setup.plan.workers.push(Role::Exec);
    });
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Compiled });
}

fn a_worker_that_is_not_installed_is_not_permitted_by_a_reload() {
    let mut agent = Agent::start("missing", |setup| {
        setup.reload(&format!("workers {QUERY_AND_POWER}"));
        fs::remove_file(setup.folder.join("portreeve-power")).expect("removes");
    });
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::NotInstalled });
    assert_eq!(agent.reloads().outcome, Outcome::NotInstalled);
    assert!(agent.log().contains("needs portreeve-power, which is not installed"), "{}", agent.log());
}

fn many_sighups_are_one_more_reload() {
    let mut agent = Agent::start_reloading("storm", &format!("workers {QUERY_AND_POWER}"));
    agent.signal(Signal::SIGHUP);
    let offered = agent.receive();
    for _ in 0..200 {
        agent.signal(Signal::SIGHUP);
    }
    // Nothing begins before this one has been answered.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(agent.reloads().begun, 1);
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    let offered = agent.receive();
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    within_two_seconds(|| agent.reloads().ended == 2);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(agent.reloads().begun, 2);
}

fn nothing_is_reloaded_while_something_is_frozen() {
    let mut agent = Agent::start_reloading("frozen", &format!("workers {QUERY_AND_POWER}"));
    agent.send(FromBroker::Frozen { frozen: true });
    let (_net, _) = agent.start_worker(Role::Net, 0);
    agent.signal(Signal::SIGHUP);
    within_two_seconds(|| agent.reloads().waits);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(agent.reloads().begun, 0);
    assert!(!agent.log().contains("thawed"), "nothing is written meanwhile: {}", agent.log());
    agent.send(FromBroker::Frozen { frozen: false });
    let offered = agent.receive();
    assert_eq!(offered.message, FromSpawner::Reload { verdict: Verdict::Compiled });
    assert!(!agent.reloads().waits);
    assert!(
        agent.log().contains("the policy is reloaded when the filesystems are thawed"),
        "{}",
        agent.log()
    );
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    let (_power, _) = agent.start_worker(Role::Power, 0);

    // One that is under way when a freeze begins is begun anew after the thaw.
    fs::write(agent.folder.join("command"), "hang").expect("writes");
    agent.signal(Signal::SIGHUP);
    within_two_seconds(|| agent.reloads().begun == 2);
    agent.send(FromBroker::Frozen { frozen: true });
    within_two_seconds(|| agent.reloads().waits);
    fs::write(agent.folder.join("command"), format!("workers {QUERY_AND_POWER}")).expect("writes");
    agent.send(FromBroker::Frozen { frozen: false });
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Compiled });
}

fn a_policy_is_offered_to_the_next_broker_but_not_for_ever() {
    let mut agent = Agent::start_reloading("offered", &format!("workers {QUERY_AND_POWER}"));
    agent.signal(Signal::SIGHUP);
    for _ in 0..3 {
        assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Compiled });
        kill(Pid::from_raw(agent.broker), Signal::SIGKILL).expect("kills");
        agent.meet_broker();
    }
    within_two_seconds(|| agent.reloads().outcome == Outcome::Refused);
    let (worker, _) = agent.start_worker(Role::File, 0);
    assert_eq!(worker.ask("settings"), agent.settings());
    // Somebody may ask again.
    agent.signal(Signal::SIGHUP);
    let offered = agent.receive();
    agent.control.send(FromBroker::Reloaded { accepted: true }, offered.sequence).expect("sends");
    agent.start_worker(Role::Power, 0);
    // A broker that comes after that is born with it.
    assert!(!agent.broker_description.ends_with("\nform"));
    kill(Pid::from_raw(agent.broker), Signal::SIGKILL).expect("kills");
    agent.meet_broker();
    assert!(agent.broker_description.ends_with("\nform"), "{}", agent.broker_description);
}

fn a_killed_command_leaves_the_old_policy() {
    let mut agent = Agent::start_reloading("killed", "hang");
    agent.signal(Signal::SIGHUP);
    let pid = agent.folder.join("pid");
    within_two_seconds(|| fs::read_to_string(&pid).is_ok_and(|text| !text.is_empty()));
    let pid: i32 = fs::read_to_string(&pid).expect("reads").parse().expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
    assert_eq!(agent.receive().message, FromSpawner::Reload { verdict: Verdict::Failed });
    assert!(agent.log().contains("could not be compiled anew (signal 9)"), "{}", agent.log());
    let (worker, _) = agent.start_worker(Role::File, 0);
    assert_eq!(worker.ask("settings"), agent.settings());
    // It does not outlive the agent either.
    agent.signal(Signal::SIGHUP);
    within_two_seconds(|| agent.reloads().begun == 2);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
}

fn root_without_a_uid_base_does_not_start() {
    let mut setup = Setup::new("nobase");
    setup.plan.uid_base = 0;
    let (status, log) = fail(&setup);
    assert_eq!(status, Some(1));
    let wanted = "the plan's uid base does not fit the user: root needs one, nobody else can use one\n";
    assert!(log.ends_with(wanted), "{log}");
}

fn exec_keeps_what_its_commands_need() {
    let mut agent = Agent::start("exec2", |setup| setup.plan.workers.push(Role::Exec));
    let (exec, pid) = agent.start_worker(Role::Exec, 0);
    assert_eq!(exec.ask("enter"), " missing []");
    let own = status(std::process::id().cast_signed()).replace("threads 1", "");
    assert_eq!(status(pid).replace("threads 1", ""), own);
    assert!(own.starts_with("uid 0 "), "{own}");
}

fn a_program_that_everybody_can_write_is_not_started() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::new("writable");
    let program = setup.folder.join("portreeve-net");
    fs::set_permissions(program, fs::Permissions::from_mode(0o777)).expect("changes");
    let (status, log) = fail(&setup);
    assert_eq!(status, Some(1));
    assert!(log.ends_with("cannot open portreeve-net: somebody else could change it\n"), "{log}");
}

// ---------------------------------------------------------------------------------------------------------------------
// The stage.

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl std::ops::Deref for Folder {
    type Target = PathBuf;

    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it: the folder is in the system's temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything before the spawner starts.
struct Setup {
    folder: Folder,
    socket: PathBuf,
    meeting: UnixListener,
    plan: Plan,
    inherited: Vec<OwnedFd>,
    user: u32,
}

impl Setup {
    fn new(name: &str) -> Self {
        // Short: socket paths have 107 bytes.
        let folder = std::env::temp_dir().join(format!("portreeve-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("makes the folder");
        for role in Role::ALL {
            fs::copy("/proc/self/exe", folder.join(role.executable())).expect("copies");
        }
        // Not an abstract name: the broker is in another network namespace.
        let address = folder.join("meeting");
        let meeting = UnixListener::bind(&address).expect("binds");
        meeting.set_nonblocking(true).expect("sets");
        let mut setup = Self {
            socket: folder.join("socket"),
            meeting,
            plan: Plan {
                uid_base: jail::DEFAULT_UID_BASE,
                workers: vec![Role::Query, Role::File, Role::Net],
                channels: Vec::new(),
                descriptors: Descriptors {
                    executables: 0,
                    settings: 0,
                    log: 2,
                    audit: None,
                    audit_directory: None,
                    audit_socket: None,
                    chain: None,
                    state: None,
                    ready: None,
                    marker: None,
                    pid_file: None,
                    command: None,
                },
                audit_file: None,
                frozen: false,
                pid_file: None,
                name: b"qemu-ga".to_vec(),
                notify_socket: Vec::new(),
            },
            inherited: Vec::new(),
            user: 0,
            folder: Folder(folder),
        };
        let method = Method::UnixListen { path: setup.socket.clone(), mode: None };
        setup.plan.channels.push(Channel { method, retry: false, reopen: false });
        let directory = File::open(&*setup.folder).expect("opens");
        setup.plan.descriptors.executables = setup.inherit(directory.into());
        let settings =
            jail::sealed::from_bytes(c"settings", address.as_os_str().as_encoded_bytes()).expect("seals");
        setup.plan.descriptors.settings = setup.inherit(settings);
        let audit = File::create(setup.folder.join("audit")).expect("makes it");
        setup.plan.descriptors.audit = Some(setup.inherit(audit.into()));
        setup
    }

    /// Leaves a descriptor open for the spawner.
    fn inherit(&mut self, descriptor: OwnedFd) -> RawFd {
        let number = descriptor.as_raw_fd();
        self.inherited.push(descriptor);
        number
    }

    /// Has SIGHUP start the stand-in for the command, which then does what `what` says.
    fn reload(&mut self, what: &str) {
        fs::write(self.folder.join("command"), what).expect("writes");
        let path = self.folder.join("portreeve-recompile");
        fs::copy("/proc/self/exe", &path).expect("copies");
        let command = nix::fcntl::open(&path, OFlag::O_PATH, nix::sys::stat::Mode::empty()).expect("opens");
        self.plan.descriptors.command = Some(self.inherit(command));
    }

    fn run_as_nobody(&mut self) {
        self.user = 65534;
        self.plan.uid_base = 0;
        for path in [&*self.folder, &self.folder.join("meeting")] {
            std::os::unix::fs::chown(path, Some(self.user), Some(self.user)).expect("changes");
        }
    }

    fn add_pid_file(&mut self) {
        let path = self.folder.join("pid");
        let file = File::create(&path).expect("makes it");
        self.plan.descriptors.pid_file = Some(self.inherit(file.into()));
        self.plan.pid_file = Some(path);
    }

    fn spawn(&self) -> Child {
        let plan = self.plan.seal().expect("seals");
        let all: Vec<BorrowedFd<'_>> =
            self.inherited.iter().map(|fd| fd.as_fd()).chain([plan.as_fd()]).collect();
        // Tests run one after the other, so nobody else starts a process meanwhile.
        for descriptor in &all {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).expect("sets");
        }
        let log = File::create(self.folder.join("log")).expect("makes it");
        let child = Command::new(env!("CARGO_BIN_EXE_portreeve-spawner"))
            .arg(plan.as_raw_fd().to_string())
            .env("PORTREEVE_TEST", "must not be seen")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .uid(self.user)
            .gid(self.user)
            .spawn()
            .expect("starts");
        for descriptor in &all {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("sets");
        }
        child
    }
}

/// Runs a spawner that cannot start, and returns its exit status and its log.
fn fail(setup: &Setup) -> (Option<i32>, String) {
    let status = setup.spawn().wait().expect("ends");
    let log = fs::read_to_string(setup.folder.join("log")).expect("reads");
    (status.code(), log)
}

/// A running spawner; the test is its broker.
struct Agent {
    spawner: Child,
    folder: Folder,
    socket: PathBuf,
    meeting: UnixListener,
    control: Control,
    broker: i32,
    broker_description: String,
    frontend: Peer,
    frontend_pid: i32,
}

impl Agent {
    fn start(name: &str, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new(name);
        change(&mut setup);
        let mut agent = Self::begin(setup);
        agent.meet_broker();
        agent
    }

    fn start_reloading(name: &str, what: &str) -> Self {
        Self::start(name, |setup| setup.reload(what))
    }

    /// What the first processes are born with.
    fn settings(&self) -> String {
        self.folder.join("meeting").display().to_string()
    }

    /// What the stand-in for the command makes of it.
    fn form(&self) -> Vec<u8> {
        (self.settings() + "\nform").into_bytes()
    }

    /// What the spawner says of reloads, where `portreeve reload` looks.
    fn reloads(&self) -> Reloads {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.spawner.id())).expect("it runs");
        let is_it = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|target| target.display().to_string().contains("portreeve-reloads"))
        };
        let path = folder.flatten().map(|entry| entry.path()).find(is_it).expect("it is open");
        let bytes = fs::read(path).expect("reads").try_into().expect("16 bytes");
        Reloads::decode(&bytes).expect("is of this version")
    }

    /// Starts the spawner and meets nobody yet.
    fn begin(setup: Setup) -> Self {
        let spawner = setup.spawn();
        let (unused, _) = UnixStream::pair().expect("makes a pair");
        let nobody = Peer { socket: unused.try_clone().expect("duplicates").into(), log: None };
        Self {
            spawner,
            folder: setup.folder,
            socket: setup.socket,
            meeting: setup.meeting,
            control: Control::new(unused.into()),
            broker: 0,
            broker_description: String::new(),
            frontend: nobody,
            frontend_pid: 0,
        }
    }

    /// Takes the control socket of the stand-in broker that has just started, and its frontend.
    fn meet_broker(&mut self) {
        self.accept_broker();
        self.meet_frontend();
    }

    fn accept_broker(&mut self) {
        let begin = Instant::now();
        let stream = loop {
            if let Ok((stream, _)) = self.meeting.accept() {
                break stream;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(8),
                "no broker comes; the log says: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        };
        let mut text = vec![0; 4096];
        let mut space = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                .expect("receives");
        let length = message.bytes;
        let number = message.cmsgs().expect("whole").find_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
            _ => None,
        });
        assert!(number.is_some(), "its socket does not come along; the log says: {}", self.log());
        // SAFETY: the kernel has just installed it for us; nobody else owns it.
        self.control = Control::new(unsafe { OwnedFd::from_raw_fd(number.expect("its socket comes along")) });
        let text = String::from_utf8(text[..length].to_vec()).expect("text");
        let (pid, description) = text.split_once('\n').expect("two parts");
        self.broker = pid.parse().expect("a number");
        self.broker_description = description.to_owned();
    }

    fn meet_frontend(&mut self) {
        let received = self.receive();
        let FromSpawner::Frontend { channel: 0, pid } = received.message else { panic!("{received:?}") };
        self.frontend_pid = pid.cast_signed();
        self.frontend = Peer::new(received);
    }

    fn send(&self, message: FromBroker) {
        self.control.send(message, 77).expect("sends");
    }

    fn receive(&mut self) -> Received {
        let begin = Instant::now();
        loop {
            if let Some(received) = self.control.try_receive().expect("a message") {
                return received;
            }
            assert!(begin.elapsed() < Duration::from_secs(8), "no message; the log says: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn start_worker(&mut self, kind: Role, instance: u16) -> (Peer, i32) {
        self.send(FromBroker::Start { kind, instance });
        let received = self.receive();
        assert_eq!(received.sequence, 77);
        match received.message {
            FromSpawner::Started { kind: of, instance: which, pid } if (of, which) == (kind, instance) => {
                (Peer::new(received), pid.cast_signed())
            }
            other => panic!("{other:?}; the log says: {}", self.log()),
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.spawner.id().cast_signed()), signal).expect("signals");
    }

    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.spawner.try_wait().expect("waits") {
                return status;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "it does not end; the log says: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).expect("reads")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.spawner.kill();
        let _ = self.spawner.wait();
    }
}

/// A stand-in as the broker sees it.
struct Peer {
    socket: OwnedFd,
    log: Option<OwnedFd>,
}

impl Peer {
    fn new(received: Received) -> Self {
        let [Some(socket), Some(log)] = received.descriptors else { panic!("two descriptors come along") };
        // It was made not to wait; the test has nothing else to do.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).expect("sets");
        Self { socket, log: Some(log) }
    }

    fn tell(&self, what: &str) {
        send(self.socket.as_raw_fd(), what.as_bytes(), MsgFlags::MSG_NOSIGNAL).expect("sends");
    }

    fn ask(&self, what: &str) -> String {
        self.tell(what);
        let mut answer = vec![0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("answers");
        String::from_utf8(answer[..length].to_vec()).expect("text")
    }

    /// What it has written to its log; for one that has ended.
    fn log(&self) -> String {
        let log = self.log.as_ref().expect("a worker has one").try_clone().expect("duplicates");
        let mut text = String::new();
        File::from(log).read_to_string(&mut text).expect("reads to the end");
        text
    }

    fn is_closed(&self) -> bool {
        recv(self.socket.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) == Ok(0)
    }
}

/// A pseudo-terminal whose far end is opened by path.
struct Pty {
    near: File,
    path: PathBuf,
}

impl Pty {
    fn open() -> Self {
        let near = File::options().read(true).write(true).open("/dev/ptmx").expect("opens");
        let mut unlocked: libc::c_int = 0;
        let mut number: libc::c_int = 0;
        // SAFETY: both requests take a pointer to an int, alive across the call.
        unsafe {
            assert_eq!(libc::ioctl(near.as_raw_fd(), libc::TIOCSPTLCK, &raw mut unlocked), 0);
            assert_eq!(libc::ioctl(near.as_raw_fd(), libc::TIOCGPTN, &raw mut number), 0);
        }
        Self { near, path: format!("/dev/pts/{number}").into() }
    }

    fn settings(&self) -> libc::termios {
        let mut settings = std::mem::MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the termios it is given; the assertion sees to it.
        unsafe {
            assert_eq!(libc::tcgetattr(self.near.as_raw_fd(), settings.as_mut_ptr()), 0);
            settings.assume_init()
        }
    }
}

fn is_alive(pid: i32) -> bool {
    // A zombie has ended; it only waits for its new parent.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// What proc_pid_status(5) says about a process's rights.
fn status(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("reads");
    let field = |name: &str| {
        let words = status.lines().find_map(|line| line.strip_prefix(name)).expect("is there");
        let words: Vec<&str> = words.split_whitespace().collect();
        assert!(words.iter().all(|word| *word == words[0]), "{name} {words:?}");
        words.first().map_or("none", |word| word.trim_start_matches('0')).to_owned()
    };
    let number =
        |name: &str| Some(field(name)).filter(|text| !text.is_empty()).unwrap_or_else(|| "0".to_owned());
    assert_eq!(field("Uid:"), field("Gid:"));
    assert_eq!(
        [field("CapEff:"), field("CapInh:"), field("CapAmb:")],
        [field("CapPrm:"), "".into(), "".into()]
    );
    if number("Uid:") != "0" {
        assert_eq!(field("Groups:"), "none");
    }
    format!(
        "uid {} caps {} bounding {} nnp {} seccomp {} filters {} threads {}",
        number("Uid:"),
        number("CapPrm:"),
        number("CapBnd:"),
        number("NoNewPrivs:"),
        number("Seccomp:"),
        number("Seccomp_filters:"),
        number("Threads:")
    )
}

fn within_two_seconds(holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(2), "did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn datagram(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("sets");
    let mut text = [0; 100];
    let length = socket.recv(&mut text).expect("a datagram");
    String::from_utf8(text[..length].to_vec()).expect("text")
}

// ---------------------------------------------------------------------------------------------------------------------
// The stand-ins.

fn play(role: Role) {
    jail::report_panics(role);
    if role == Role::Broker {
        play_broker();
    }
    loop {
        let mut command = [0; 100];
        let Ok(length) = recv(3, &mut command, MsgFlags::empty()) else { std::process::exit(2) };
        let command = String::from_utf8_lossy(&command[..length]);
        let answer = match &*command {
            "" => std::process::exit(0),
            "describe" => describe(),
            "settings" => {
                // SAFETY: descriptor 4 is the settings, open for as long as this process lives.
                let settings = unsafe { BorrowedFd::borrow_raw(4) };
                String::from_utf8_lossy(&jail::sealed::contents(settings, 200).expect("reads")).into_owned()
            }
            "channel" => fs::read_link("/proc/self/fd/5").expect("is open").display().to_string(),
            "ignore SIGTERM" => {
                let nothing = nix::sys::signal::SigHandler::SigIgn;
                // SAFETY: ignoring a signal runs no code of ours.
                unsafe { nix::sys::signal::signal(Signal::SIGTERM, nothing) }.expect("ignores");
                "done".to_owned()
            }
            "enter" => enter(role),
            "getsid in a thread" => {
                CALL.store(true, Ordering::SeqCst);
                continue;
            }
            "panic" => panic!("told to"),
            read if read.starts_with("read ") => open(read.trim_start_matches("read "), OFlag::empty()),
            list if list.starts_with("list ") => open(list.trim_start_matches("list "), OFlag::O_DIRECTORY),
            exit => std::process::exit(exit.trim_start_matches("exit ").parse().expect("a status")),
        };
        send(3, answer.as_bytes(), MsgFlags::empty()).expect("answers");
    }
}

/// Opens as the query worker does, with the only flags that its filter knows; O_LARGEFILE is among them, and 0 in libc.
fn open(path: &str, directory: OFlag) -> String {
    let large_file = OFlag::from_bits_retain(if cfg!(target_arch = "aarch64") { 0x20000 } else { 0x8000 });
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | large_file | directory;
    match nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()) {
        Ok(_) => "ok".to_owned(),
        Err(errno) => std::io::Error::from(errno).to_string(),
    }
}

/// Tells the file worker's threads to make a call that its filter refuses.
static CALL: AtomicBool = AtomicBool::new(false);

fn enter(role: Role) -> String {
    let mut ground = jail::Ground::from_arguments(role).expect("two numbers");
    ground.files = jail::FileRights { read: true, write: true };
    ground.roots = vec![jail::Root { path: "/".into(), read: true, write: true, may_be_made: false }];
    let before_filter = || {
        for _ in 0..if role == Role::File { 2 } else { 0 } {
            std::thread::spawn(|| {
                while !CALL.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // SAFETY: getsid takes a number and changes nothing.
                unsafe { libc::getsid(0) };
            });
        }
    };
    match jail::enter(role, &ground, before_filter) {
        Ok(entered) => format!("{} missing {:?}", entered.namespaces.join(" "), entered.missing),
        Err(error) => error.to_string(),
    }
}

/// Gives the control socket to the test and stays, so that the spawner has somebody to watch.
fn play_broker() -> ! {
    // SAFETY: descriptor 4 is the settings, open for as long as this process lives.
    let settings = unsafe { BorrowedFd::borrow_raw(4) };
    let mut address = jail::sealed::read(settings, 200).expect("reads");
    // A reload has put something behind it.
    let line = address.iter().position(|byte| *byte == b'\n').unwrap_or(address.len());
    let behind = String::from_utf8(address.split_off(line)).expect("text");
    let stream = UnixStream::connect(OsString::from_vec(address)).expect("the test is there");
    let text = format!("{}\n{}{behind}", std::process::id(), describe_before(&stream));
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[io::IoSlice::new(text.as_bytes())],
        &[ControlMessage::ScmRights(&[3])],
        MsgFlags::empty(),
        None,
    )
    .expect("sends");
    drop(stream);
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// What it is told by a file beside it: nothing but its own descriptors says where that is.
fn play_command() {
    let compiler = fs::read_link("/proc/self/fd/5").expect("is open");
    let folder = compiler.parent().expect("has one");
    let told = fs::read_to_string(folder.join("command")).expect("reads");
    // SAFETY: 1 and 3 are open for as long as this process lives, and nobody else owns them.
    let (mut form, mut outcome) = unsafe { (File::from_raw_fd(1), File::from_raw_fd(3)) };
    let (what, number) = told.rsplit_once(' ').unwrap_or((&told, ""));
    // SAFETY: 4 is the settings in force, open for as long as this process lives.
    let in_force = jail::sealed::contents(unsafe { BorrowedFd::borrow_raw(4) }, 200).expect("reads");
    // The stand-in broker finds the test by the first line.
    let meeting = in_force.split(|byte| *byte == b'\n').next().unwrap_or_default();
    form.write_all(&[meeting, b"\nform"].concat()).expect("writes");
    if what != "unsealed" {
        jail::sealed::seal(form.as_fd()).expect("seals");
    }
    let message = |workers| spawner::Compiled { workers }.encode();
    let workers = || message(number.parse().expect("a number"));
    match what {
        "workers" => outcome.write_all(&workers()).expect("writes"),
        "describe" => {
            fs::write(folder.join("described"), describe()).expect("writes");
            std::process::exit(9);
        }
        "garbage" => outcome.write_all(b"sixteen letters.").expect("writes"),
        "two" => outcome.write_all(&[message(0), message(0)].concat()).expect("writes"),
        "wrong" => std::process::exit(1),
        "unsealed" if number == "wrong" => std::process::exit(1),
        "unsealed" => outcome.write_all(&workers()).expect("writes"),
        "exit" => std::process::exit(number.parse().expect("a status")),
        "hang" => {
            fs::write(folder.join("pid"), std::process::id().to_string()).expect("writes");
            std::thread::sleep(Duration::from_secs(60));
        }
        _ => {}
    }
}

fn describe() -> String {
    let mut out = String::new();
    for number in jail::open_descriptors().expect("lists") {
        out += &describe_descriptor(number);
    }
    out += &circumstances();
    out
}

/// Without the socket to the test.
fn describe_before(stream: &UnixStream) -> String {
    let mut out = String::new();
    for number in jail::open_descriptors().expect("lists") {
        if number != stream.as_raw_fd() {
            out += &describe_descriptor(number);
        }
    }
    out += &circumstances();
    out
}

fn describe_descriptor(number: RawFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{number}")).expect("is open").display().to_string();
    let kind = link.split(':').next().unwrap_or_default();
    let what = match kind {
        "pipe" | "socket" | "mnt" | "ipc" | "uts" => kind,
        "/memfd" => link.trim_start_matches('/').trim_end_matches(" (deleted)"),
        _ => &link,
    };
    // SAFETY: F_GETFL takes no third argument.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
    let nonblock = if kind == "pipe" && flags & libc::O_NONBLOCK != 0 { " nonblock" } else { "" };
    format!("fd {number} {what}{nonblock}\n")
}

fn circumstances() -> String {
    let arguments: Vec<_> = std::env::args_os().collect();
    let arguments = arguments.join(OsStr::new(" ")).display().to_string();
    let environment = std::env::vars_os().count();
    // Not getsid(2), which the inherited filter does not know. proc_pid_stat(5): state, parent, group, session.
    let stat = fs::read_to_string("/proc/self/stat").expect("reads");
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3));
    let leads = session == Some(&*std::process::id().to_string());
    let session = if leads { "leads its session" } else { "shares a session" };
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).expect("is there").to_owned()
    };
    let mut signal: libc::c_int = 0;
    // SAFETY: PR_GET_PDEATHSIG writes an int to a live local.
    assert_eq!(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) }, 0);
    let (blocked, filters) = (field("SigBlk:"), field("Seccomp_filters:"));
    format!(
        "arguments {arguments}\nenvironment {environment}\n{session}\nblocked {blocked}\nparent-death signal {signal}\n\
         filters {filters}\n"
    )
}
