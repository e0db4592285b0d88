//! Each way by which a host can reach the agent, and what hosts do there.
//!
//! A virtio port needs a virtual machine; the method is tried on a pseudo-terminal, whose reads return 0 when the other
//! side has hung up, as a port's do while no host is connected.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, cfmakeraw, tcgetattr, tcsetattr,
};
use serde_json::json;
use tests::agent::{Agent, Host, children, json, private_directory, run, text, wait_until};
use tests::processes::sleeps;
use tests::programs;

const SILENCE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

// ---------------------------------------------------------------- unix-listen

// qemu-ga exits when a client closes with an answer unread (ECONNRESET).
#[test]
fn a_client_that_leaves_its_reply_unread_ends_nothing() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut rude = agent.connect();
    rude.send("{\"execute\":\"guest-info\"}{\"execute\":\"guest-ping\"}");
    sleep(SILENCE);
    drop(rude);
    agent.connect().call("guest-ping", json!({}));
}

#[test]
fn a_client_that_leaves_while_a_large_reply_is_on_its_way_ends_nothing() {
    let agent = Agent::run("qga", "qemu-ga");
    File::create(agent.path("large")).and_then(|file| file.set_len(48 << 20)).unwrap();
    let mut rude = agent.connect();
    let handle = rude.call("guest-file-open", json!({ "path": text(&agent.path("large")) }));
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 48 << 20 } });
    rude.send(read.to_string());
    sleep(SILENCE);
    drop(rude);
    let mut next = agent.connect();
    next.call("guest-ping", json!({}));
    next.call("guest-file-close", json!({ "handle": handle }));
    assert_eq!(next.line_within(SILENCE), None, "the rest of another client's reply");
}

// qemu-ga completes the first client's half request with the second one's bytes.
#[test]
fn half_a_request_of_one_client_means_nothing_to_the_next() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut first = agent.connect();
    first.send("{\"execute\":\"guest-sy");
    sleep(SILENCE);
    drop(first);
    let mut second = agent.connect();
    second.call("guest-ping", json!({}));
    assert_eq!(second.line_within(SILENCE), None);
}

#[test]
fn a_client_that_does_not_read_costs_no_processor_time() {
    let agent = Agent::run("qga", "qemu-ga");
    File::create(agent.path("large")).and_then(|file| file.set_len(48 << 20)).unwrap();
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": text(&agent.path("large")) }));
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 48 << 20 } });
    host.send(read.to_string());
    sleep(Duration::from_millis(500));
    let before = wake_ups(&agent);
    sleep(Duration::from_secs(1));
    let after = wake_ups(&agent);
    assert!(after - before <= 2, "{} wake-ups", after - before);
    assert!(host.line().len() > 64 << 20);
}

#[test]
fn requests_before_a_half_close_are_answered_and_then_the_agent_closes() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.send("{\"execute\":\"guest-get-host-name\",\"id\":1}{\"execute\":\"guest-ping\",\"id\":2}");
    host.stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    host.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    host.stream.read_to_string(&mut all).unwrap();
    let ids: Vec<_> = all.lines().map(|line| json(line.as_bytes())["id"].clone()).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn a_second_client_waits_until_the_first_has_gone() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut first = agent.connect();
    first.call("guest-ping", json!({}));
    let mut second = agent.connect();
    second.send("{\"execute\":\"guest-ping\",\"id\":\"second\"}\n");
    assert_eq!(second.line_within(SILENCE), None);
    first.call("guest-ping", json!({}));
    drop(first);
    assert_eq!(json(&second.line()), json!({ "return": {}, "id": "second" }));
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.send(
        "{\"execute\":\"guest-ping\",\"id\":1}{\"execute\":\"guest-sync\",\"arguments\":{\"id\":7},\"id\":2}\r\n\r\n\
         {\"execute\":\"guest-get-host-name\",\"id\":3}\n{\"execute\":\"guest-ping\",\"id\":4}",
    );
    let ids: Vec<_> = (0..4).map(|_| json(&host.line())["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
}

#[test]
fn a_request_that_comes_byte_by_byte_is_answered() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    for byte in b"{\"execute\":\"guest-ping\"}" {
        host.send([*byte]);
    }
    assert_eq!(json(&host.line()), json!({ "return": {} }));
}

// qemu-ga, too: requests that were read are carried out when the client has gone.
#[test]
fn what_a_client_asked_for_before_it_left_is_done() {
    let agent = Agent::run("qga", "qemu-ga");
    let trace = agent.path("trace");
    let mut host = agent.connect();
    let exec = json!({ "execute": "guest-exec", "arguments": { "path": "touch", "arg": [text(&trace)] } });
    host.send(exec.to_string());
    drop(host);
    assert!(wait_until(|| trace.exists()));
}

#[test]
fn the_socket_has_the_configured_mode() {
    let configuration = r#"
        [[channel]]
        name = "test"
        method = "unix-listen"
        path = "DIR/sock"
        mode = 0o660
        [state]
        directory = "DIR/state"
    "#;
    let agent = Agent::configured(private_directory(), configuration);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(agent.path("sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn a_file_in_place_of_the_socket_is_not_removed() {
    let directory = private_directory();
    std::fs::write(directory.path().join("sock"), "precious").unwrap();
    let configuration = "[[channel]]\nname = \"a\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
                         [state]\ndirectory = \"DIR/state\"\n";
    let command = run(programs::program("portreeve"), directory.path(), configuration);
    let mut agent = Agent::start_only(command, directory);
    let (status, _) = agent.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(agent.path("sock")).unwrap(), "precious");
    assert!(agent.log().contains("it is not a socket"), "{}", agent.log());
}

// ---------------------------------------------------------------- what the big clients send

#[test]
fn libvirt_synchronises_with_a_number_of_milliseconds() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.send("{\"execute\":\"guest-sync\", \"arguments\":{\"id\":1763630000000}}\n");
    assert_eq!(host.line(), b"{\"return\": 1763630000000}");
    host.send("{\"execute\":\"guest-get-osinfo\"}\n");
    assert!(json(&host.line())["return"].is_object());
}

#[test]
fn proxmox_sends_sync_and_command_in_one_write_and_hangs_up_after_each() {
    let agent = Agent::run("qga", "qemu-ga");
    for id in [4_711_001, 4_711_002, 4_711_003] {
        let mut host = agent.connect();
        host.send(format!(
            "{{\"arguments\":{{\"id\":{id}}},\"execute\":\"guest-sync-delimited\"}}\n{{\"execute\":\"guest-ping\",\"arguments\":{{}}}}\n"
        ));
        let expected = format!("{{\"return\": {id}}}");
        assert_eq!(host.line(), [b"\xff", expected.as_bytes()].concat());
        assert_eq!(host.line(), b"{\"return\": {}}");
    }
}

#[test]
fn proxmox_writes_base64_with_line_breaks() {
    let agent = Agent::run("qga", "qemu-ga");
    let path = agent.path("file");
    let mut host = agent.connect();
    let handle = host.call("guest-file-open", json!({ "path": text(&path), "mode": "wb" }));
    host.send(format!(
        "{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":{handle},\"buf-b64\":\"SGVs\\nbG8=\\n\"}}}}\n"
    ));
    assert_eq!(json(&host.line()), json!({ "return": { "count": 5, "eof": false } }));
    host.call("guest-file-close", json!({ "handle": handle }));
    assert_eq!(std::fs::read(path).unwrap(), b"Hello");
}

#[test]
fn utm_sends_ff_first_and_no_newline() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.send(b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":3000000000}}");
    let noise = json(&host.line());
    assert_eq!(noise["error"]["desc"], "JSON parse error, stray '\u{fffd}'");
    assert_eq!(host.line(), b"\xff{\"return\": 3000000000}");
}

#[test]
fn qemus_own_test_sends_ff_alone_and_asks_out_of_band() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    host.send(b"\xff");
    sleep(Duration::from_millis(50));
    host.send("{'execute':'guest-sync-delimited','arguments':{'id':12}}");
    assert_eq!(json(&host.line())["error"]["class"], "GenericError");
    assert_eq!(host.line(), b"\xff{\"return\": 12}");
    host.send("{'exec-oob': 'guest-ping'}\n");
    assert_eq!(json(&host.line())["error"]["class"], "GenericError");
    host.send("{'execute': 'guest-ping', 'id': 1}");
    assert_eq!(host.line(), b"{\"return\": {}, \"id\": 1}");
}

#[test]
fn ansible_asks_about_a_program_as_fast_as_answers_come() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let pid = host.call("guest-exec", json!({ "path": "sleep", "arg": ["0.5"] }))["pid"].clone();
    let begin = Instant::now();
    let mut asked = 0;
    while host.call("guest-exec-status", json!({ "pid": pid })) == json!({ "exited": false }) {
        asked += 1;
        assert!(begin.elapsed() < PATIENCE);
    }
    assert!(asked > 100, "{asked} answers in {:?}", begin.elapsed());
}

#[test]
fn ovirt_asks_eight_things_back_to_back() {
    let agent = Agent::run("qga", "qemu-ga");
    let mut host = agent.connect();
    let begin = Instant::now();
    for command in [
        "guest-info",
        "guest-get-host-name",
        "guest-get-osinfo",
        "guest-get-timezone",
        "guest-network-get-interfaces",
        "guest-get-users",
        "guest-get-fsinfo",
        "guest-get-vcpus",
    ] {
        host.call(command, json!({}));
    }
    // It allows one second for each; cold workers are part of it.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

// ---------------------------------------------------------------- serial lines and ports

/// A pseudo-terminal whose other end is at `DIR/tty`.
struct Terminal {
    near: File,
    far: File,
}

fn terminal(link: &Path) -> Terminal {
    // Not openpty(3): what other tests start at the same time must not inherit it, or it is never hung up.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let near = posix_openpt(flags | OFlag::O_CLOEXEC).unwrap();
    grantpt(&near).unwrap();
    unlockpt(&near).unwrap();
    let name = ptsname_r(&near).unwrap();
    let far =
        File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&name).unwrap();
    let _ = std::fs::remove_file(link);
    std::os::unix::fs::symlink(name, link).unwrap();
    Terminal { near: OwnedFd::from(near).into(), far }
}

/// The next line from a terminal.
fn line_from(near: &mut File) -> String {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut line = Vec::new();
    loop {
        let ready =
            poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(near), PollFlags::POLLIN)], 10_000_u16).unwrap();
        assert!(ready > 0, "nothing after {}", String::from_utf8_lossy(&line));
        let mut byte = [0];
        assert_eq!(near.read(&mut byte).unwrap(), 1);
        if byte == *b"\n" {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte[0]);
    }
}

fn serial(method: &str) -> String {
    format!(
        "policy = \"qemu-ga\"\nidle-seconds = 0\n[[channel]]\nname = \"port\"\nmethod = \"{method}\"\npath = \"DIR/tty\"\n\
         [state]\ndirectory = \"DIR/state\"\n[audit]\nsink = \"off\"\n"
    )
}

fn agent_on(method: &str, directory: tempfile::TempDir) -> Agent {
    let command = run(programs::program("portreeve"), directory.path(), &serial(method));
    Agent::start_only(command, directory)
}

// qga/channel-posix.c, ga_channel_open: the line settings.
#[test]
fn a_serial_line_is_set_to_raw_mode() {
    let directory = private_directory();
    let mut line = terminal(&directory.path().join("tty"));
    let _agent = agent_on("isa-serial", directory);
    assert!(wait_until(|| is_raw(&line)));
    let settings = tcgetattr(&line.far).unwrap();
    let translating =
        InputFlags::ICRNL | InputFlags::INLCR | InputFlags::IGNCR | InputFlags::ISTRIP | InputFlags::IXON;
    assert!(!settings.input_flags.intersects(translating));
    assert!(settings.output_flags.is_empty());
    assert_eq!(settings.local_flags, LocalFlags::empty());
    assert!(settings.control_flags.contains(ControlFlags::CREAD));
    assert_eq!(settings.control_chars[SpecialCharacterIndices::VMIN as usize], 1);
    assert_eq!(settings.control_chars[SpecialCharacterIndices::VTIME as usize], 0);
    line.near.write_all(b"{\"execute\":\"guest-ping\"}").unwrap();
    assert_eq!(line_from(&mut line.near), "{\"return\": {}}");
}

// qemu-ga stays alive and deaf for ever.
#[test]
fn a_serial_line_that_was_hung_up_is_opened_again() {
    let directory = private_directory();
    let link = directory.path().join("tty");
    let mut first = terminal(&link);
    let agent = agent_on("isa-serial", directory);
    assert!(wait_until(|| is_raw(&first)));
    first.near.write_all(b"{\"execute\":\"guest-ping\"}").unwrap();
    assert_eq!(line_from(&mut first.near), "{\"return\": {}}");
    let mut second = terminal(&link);
    drop(first);
    // What is written before the line is opened would be thrown away by it.
    assert!(wait_until(|| is_raw(&second)), "{}", agent.log());
    second.near.write_all(b"{\"execute\":\"guest-ping\",\"id\":2}").unwrap();
    assert_eq!(line_from(&mut second.near), "{\"return\": {}, \"id\": 2}");
}

fn is_raw(terminal: &Terminal) -> bool {
    tcgetattr(&terminal.far).unwrap().local_flags.is_empty()
}

#[test]
fn a_port_is_served_and_stays_the_same_when_its_frontend_is_killed() {
    let directory = private_directory();
    let mut port = terminal(&directory.path().join("tty"));
    let mut settings = tcgetattr(&port.far).unwrap();
    cfmakeraw(&mut settings);
    tcsetattr(&port.far, SetArg::TCSANOW, &settings).unwrap();
    let agent = agent_on("virtio-serial", directory);
    port.near.write_all(b"{\"execute\":\"guest-get-host-name\"}").unwrap();
    assert!(line_from(&mut port.near).contains("host-name"));
    let frontend = agent.process("frontend");
    tests::agent::signal(frontend, "KILL");
    agent.successor("frontend", frontend);
    port.near.write_all(b"{\"execute\":\"guest-ping\"}").unwrap();
    assert_eq!(line_from(&mut port.near), "{\"return\": {}}");
    let broker = agent.process("broker");
    tests::agent::signal(broker, "KILL");
    agent.successor("broker", broker);
    port.near.write_all(b"{\"execute\":\"guest-get-host-name\"}").unwrap();
    assert!(line_from(&mut port.near).contains("host-name"));
}

// In canonical mode the terminal's end-of-file character makes one read return 0: the host's end was closed for a moment.
#[test]
fn a_port_whose_host_goes_and_comes_is_served_on() {
    let directory = private_directory();
    let mut port = terminal(&directory.path().join("tty"));
    let mut settings = tcgetattr(&port.far).unwrap();
    settings.local_flags = LocalFlags::ICANON;
    settings.output_flags = nix::sys::termios::OutputFlags::empty();
    tcsetattr(&port.far, SetArg::TCSANOW, &settings).unwrap();
    let _agent = agent_on("virtio-serial", directory);
    port.near.write_all(b"{\"execute\":\"guest-ping\",\"id\":1}\n").unwrap();
    assert_eq!(line_from(&mut port.near), "{\"return\": {}, \"id\": 1}");
    port.near.write_all(b"\x04").unwrap();
    sleep(SILENCE);
    port.near.write_all(b"{\"execute\":\"guest-ping\",\"id\":2}\n").unwrap();
    assert_eq!(line_from(&mut port.near), "{\"return\": {}, \"id\": 2}");
}

// qemu-ga wakes up ten times a second.
#[test]
fn a_port_without_a_host_wakes_nobody_up() {
    let directory = private_directory();
    let mut port = terminal(&directory.path().join("tty"));
    let agent = agent_on("virtio-serial", directory);
    port.near.write_all(b"{\"execute\":\"guest-ping\"}\n").unwrap();
    assert!(wait_until(|| agent.processes().iter().any(|(name, _)| name == "frontend")));
    sleep(SILENCE);
    let Terminal { near, far } = port;
    drop(near);
    sleep(SILENCE);
    let before = by_process(&agent);
    sleep(Duration::from_secs(2));
    assert_eq!(by_process(&agent), before);
    drop(far);
}

fn wake_ups(agent: &Agent) -> u64 {
    by_process(agent).iter().map(|(_, sleeps)| sleeps).sum()
}

fn by_process(agent: &Agent) -> Vec<(String, u64)> {
    let name =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    children(agent.pid()).into_iter().chain([agent.pid()]).map(|pid| (name(pid), sleeps(pid))).collect()
}

#[test]
fn an_agent_that_nobody_asks_wakes_nobody_up() {
    let configuration = "policy = \"qemu-ga\"\nidle-seconds = 0\n\
        [[channel]]\nname = \"a\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n\
        [state]\ndirectory = \"DIR/state\"\n[audit]\nsink = \"off\"\n";
    let agent = Agent::configured(private_directory(), configuration);
    let mut host = agent.connect();
    host.call("guest-get-host-name", json!({}));
    host.call("guest-network-get-interfaces", json!({}));
    host.call("guest-file-open", json!({ "path": "/etc/passwd" }));
    host.call("guest-exec", json!({ "path": "true" }));
    // Up to a second after the last request the broker looks once for limits of time.
    sleep(Duration::from_millis(2500));
    let before = by_process(&agent);
    sleep(Duration::from_secs(3));
    assert_eq!(by_process(&agent), before);
}

// ---------------------------------------------------------------- several channels, vsock, systemd

#[test]
fn each_channel_has_a_frontend_and_its_own_dialects() {
    let configuration = r#"
        policy = "qemu-ga"
        [[channel]]
        name = "one"
        method = "unix-listen"
        path = "DIR/sock"
        [[channel]]
        name = "two"
        method = "unix-listen"
        path = "DIR/sock2"
        dialects = ["phoenix"]
        [state]
        directory = "DIR/state"
        [audit]
        sink = "off"
    "#;
    let agent = Agent::configured(private_directory(), configuration);
    let mut one = agent.connect();
    // The agent is taken for started when the first socket is there.
    assert!(wait_until(|| agent.path("sock2").exists()));
    let mut two = Host::from(UnixStream::connect(agent.path("sock2")).unwrap());
    assert_eq!(one.ask("{\"execute\":\"guest-ping\"}"), json!({ "return": {} }));
    assert_eq!(two.ask("{\"execute\":\"ping\",\"tag\":\"t\"}"), json!({ "return": "0.7.2", "tag": "t" }));
    assert_eq!(one.ask("{\"execute\":\"ping\"}")["error"]["class"], "CommandNotFound");
    assert_eq!(two.ask("{\"execute\":\"guest-ping\",\"tag\":\"t\"}")["error"]["code"], -1);
    let frontends = agent.processes().into_iter().filter(|(name, _)| name == "frontend").count();
    assert_eq!(frontends, 2);
}

#[test]
fn a_host_on_vsock_is_served() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
    let port = 20_000 + std::process::id() % 10_000;
    let configuration = format!(
        "policy = \"qemu-ga\"\n[[channel]]\nname = \"v\"\nmethod = \"vsock-listen\"\nport = {port}\n\
         [[channel]]\nname = \"u\"\nmethod = \"unix-listen\"\npath = \"DIR/sock\"\n[state]\ndirectory = \"DIR/state\"\n"
    );
    // What the kernel lacks no installation adds, so this is said in CI, too, and does not fail there.
    let Ok(socket) = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) else {
        return eprintln!("LEFT OUT: a_host_on_vsock_is_served: there is no vsock here");
    };
    let agent = Agent::configured(private_directory(), &configuration);
    // 1: this machine itself, if the kernel has the loopback transport.
    if let Err(error) = connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &VsockAddr::new(1, port)) {
        return eprintln!("LEFT OUT: a_host_on_vsock_is_served: vsock has no loopback here: {error}");
    }
    let mut stream = File::from(socket);
    stream.write_all(b"{\"execute\":\"guest-ping\"}").unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"{\"return\": {}}\n");
    drop(agent);
}

/// qemu-ga started as systemd starts it, with a listening socket as descriptor 3.
fn activated(directory: tempfile::TempDir, listener: OwnedFd, announcement: &str) -> Agent {
    let link = directory.path().join("qemu-ga");
    std::os::unix::fs::symlink(programs::program("portreeve"), &link).unwrap();
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("exec 3<&0 </dev/null; export {announcement}; exec \"$@\""), "sh"]);
    command.arg(link).arg("-t").arg(directory.path());
    Agent::start_with(command, directory, Stdio::from(listener))
}

// sd_listen_fds(3)
#[test]
fn a_socket_that_systemd_listens_on_is_served() {
    let directory = private_directory();
    let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
    let mut agent = activated(directory, listener.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    let exec = json!({ "path": "env", "capture-output": true });
    let pid = host.call("guest-exec", exec)["pid"].clone();
    let mut status = json!({});
    assert!(wait_until(|| {
        status = host.call("guest-exec-status", json!({ "pid": pid }));
        status["exited"] == true
    }));
    let out = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        status["out-data"].as_str().unwrap(),
    );
    assert!(
        !String::from_utf8(out.unwrap()).unwrap().contains("LISTEN_"),
        "programs inherit the announcement"
    );
    assert_eq!(agent.terminate().0.code(), Some(0));
}

#[test]
fn two_sockets_of_systemd_are_refused() {
    let directory = private_directory();
    let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
    let mut agent = activated(directory, listener.into(), "LISTEN_PID=$$ LISTEN_FDS=2");
    assert_eq!(agent.wait().0.code(), Some(1));
    assert!(agent.log().contains("qemu-ga only supports listening on one socket"), "{}", agent.log());
}

#[test]
fn an_announcement_for_another_process_is_ignored() {
    let directory = private_directory();
    let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
    let mut agent = activated(directory, listener.into(), "LISTEN_PID=1 LISTEN_FDS=1");
    // It goes on to the usual port, which this machine does not have.
    assert_eq!(agent.wait().0.code(), Some(1));
    assert!(agent.log().contains("org.qemu.guest_agent.0"), "{}", agent.log());
}
