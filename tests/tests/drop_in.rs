//! In the place of qemu-ga and phoenix-ga: started under their names, as those who know only them do.
//!
//! The first part is what QEMU's own tests/unit/test-qga.c does, row by row; the second the command line, the exit status and the
//! files of qemu-ga.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::agent::{Agent, Host, is_alive, private_directory, signal, text, wait_until};
use tests::programs;

/// `qemu-ga` in `directory`.
fn qemu_ga(directory: &Path) -> Command {
    named(directory, "qemu-ga")
}

fn named(directory: &Path, name: &str) -> Command {
    let link = directory.join(name);
    if !link.exists() {
        symlink(programs::program("portreeve"), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.current_dir(directory);
    command
}

/// As test-qga.c starts it: in its directory, with socket and state there.
fn started(options: &[&str]) -> Agent {
    let directory = private_directory();
    let folder = directory.path().to_owned();
    let mut command = qemu_ga(&folder);
    command.args(["-m", "unix-listen", "-t"]).arg(&folder).arg("-p").arg(folder.join("sock")).args(options);
    Agent::start(command, directory)
}

fn output(directory: &Path, options: &[&str]) -> Output {
    qemu_ga(directory).args(options).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The error's class and text.
fn error_of(host: &mut Host, request: &str) -> (String, String) {
    let reply = host.ask(request);
    let word = |name: &str| reply["error"][name].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
    (word("class"), word("desc"))
}

// ---------------------------------------------------------------- test-qga.c

#[test]
fn sync_delimited() {
    let agent = started(&[]);
    let mut host = agent.connect();
    host.send(b"\xff");
    host.send("{'execute': 'guest-sync-delimited', 'arguments': {'id': 3735928559 } }");
    // The harness reads and discards up to the sentinel.
    let mut line = host.line();
    while !line.starts_with(b"\xff") {
        line = host.line();
    }
    assert_eq!(tests::agent::json(&line), json!({ "return": 3_735_928_559_u32 }));
}

#[test]
fn sync() {
    let agent = started(&[]);
    let reply = agent.connect().ask("{'execute': 'guest-sync', 'arguments': {'id': 305419896 } }");
    assert_eq!(reply, json!({ "return": 305_419_896 }));
}

#[test]
fn ping() {
    let agent = started(&[]);
    assert_eq!(agent.connect().ask("{'execute': 'guest-ping'}"), json!({ "return": {} }));
}

#[test]
fn info() {
    let agent = started(&[]);
    let reply = agent.connect().ask("{'execute': 'guest-info'}");
    assert_eq!(reply["return"]["version"], "10.2.0");
    let ping = json!({ "name": "guest-ping", "enabled": true, "success-response": true });
    let commands = reply["return"]["supported_commands"].as_array().unwrap();
    assert!(commands.contains(&ping), "{commands:?}");
    assert!(commands.iter().all(|command| command.as_object().unwrap().len() == 3));
}

#[test]
fn network_get_interfaces() {
    let agent = started(&[]);
    let interfaces = agent.connect().call("guest-network-get-interfaces", json!({}));
    assert!(interfaces[0]["name"].is_string(), "{interfaces}");
}

#[test]
fn get_vcpus() {
    let agent = started(&[]);
    let cpus = agent.connect().call("guest-get-vcpus", json!({}));
    assert!(cpus[0]["online"].is_boolean() && cpus[0]["logical-id"].is_number(), "{cpus}");
}

#[test]
fn get_fsinfo() {
    let agent = started(&[]);
    let filesystems = agent.connect().call("guest-get-fsinfo", json!({}));
    for filesystem in filesystems.as_array().unwrap() {
        let members = ["name", "mountpoint", "type", "disk"];
        assert!(members.iter().all(|member| filesystem.get(member).is_some()), "{filesystem}");
    }
}

#[test]
fn get_load() {
    let agent = started(&[]);
    let load = agent.connect().call("guest-get-load", json!({}));
    assert!(["load1m", "load5m", "load15m"].iter().all(|member| load[member].is_number()), "{load}");
}

#[test]
fn get_memory_block_info() {
    let agent = started(&[]);
    let reply = agent.connect().ask("{'execute': 'guest-get-memory-block-info'}");
    assert!(
        reply["return"]["size"].as_i64().is_some_and(|size| size > 0) || reply["error"].is_object(),
        "{reply}"
    );
}

#[test]
fn get_memory_blocks() {
    let agent = started(&[]);
    let reply = agent.connect().ask("{'execute': 'guest-get-memory-blocks'}");
    match reply["return"].as_array() {
        Some(blocks) => assert!(
            blocks.iter().all(|block| block["phys-index"].is_number() && block["online"].is_boolean())
        ),
        None => assert!(reply["error"].is_object(), "{reply}"),
    }
}

#[test]
fn file_ops() {
    const HELLO: &[u8] = b"Hello World!\n\0";
    let agent = started(&[]);
    let mut host = agent.connect();
    let open = host.ask("{'execute': 'guest-file-open', 'arguments': { 'path': 'foo', 'mode': 'w+' } }");
    let id = open["return"].as_i64().unwrap();
    let encoded = STANDARD.encode(HELLO);
    let write = host.ask(format!(
        "{{'execute': 'guest-file-write', 'arguments': {{ 'handle': {id}, 'buf-b64': '{encoded}' }} }}"
    ));
    assert_eq!(write, json!({ "return": { "count": 14, "eof": false } }));
    assert_eq!(host.call("guest-file-flush", json!({ "handle": id })), json!({}));
    assert_eq!(host.call("guest-file-close", json!({ "handle": id })), json!({}));
    assert_eq!(std::fs::read(agent.path("foo")).unwrap(), HELLO);

    let id = host.call("guest-file-open", json!({ "path": "foo", "mode": "r" }));
    let read = host.call("guest-file-read", json!({ "handle": id }));
    assert_eq!(read, json!({ "count": 14, "eof": true, "buf-b64": encoded }));
    let read = host.call("guest-file-read", json!({ "handle": id }));
    assert_eq!(read, json!({ "count": 0, "eof": true, "buf-b64": "" }));
    let seek = host.call("guest-file-seek", json!({ "handle": id, "offset": 6, "whence": "set" }));
    assert_eq!(seek, json!({ "position": 6, "eof": false }));
    let read = host.call("guest-file-read", json!({ "handle": id }));
    assert_eq!(read, json!({ "count": 8, "eof": true, "buf-b64": STANDARD.encode(&HELLO[6..]) }));
    assert_eq!(host.call("guest-file-close", json!({ "handle": id })), json!({}));
}

#[test]
fn file_write_read() {
    let agent = started(&[]);
    let mut host = agent.connect();
    let encoded = STANDARD.encode(b"Hello World!\n\0");
    let id = host.call("guest-file-open", json!({ "path": "foo", "mode": "w+" }));
    let write = host.call("guest-file-write", json!({ "handle": id, "buf-b64": encoded }));
    assert_eq!(write, json!({ "count": 14, "eof": false }));
    let read = host.call("guest-file-read", json!({ "handle": id }));
    assert_eq!(read, json!({ "count": 0, "eof": true, "buf-b64": "" }));
    let seek = host.call("guest-file-seek", json!({ "handle": id, "offset": 0, "whence": "set" }));
    assert_eq!(seek, json!({ "position": 0, "eof": false }));
    let read = host.call("guest-file-read", json!({ "handle": id }));
    assert_eq!(read, json!({ "count": 14, "eof": true, "buf-b64": encoded }));
    assert_eq!(host.call("guest-file-close", json!({ "handle": id })), json!({}));
}

#[test]
fn get_time() {
    let agent = started(&[]);
    assert!(agent.connect().call("guest-get-time", json!({})).as_i64().unwrap() > 0);
}

#[test]
fn id() {
    let agent = started(&[]);
    assert_eq!(agent.connect().ask("{'execute': 'guest-ping', 'id': 1}"), json!({ "return": {}, "id": 1 }));
}

#[test]
fn invalid_oob() {
    let agent = started(&[]);
    let (class, text) = error_of(&mut agent.connect(), "{'exec-oob': 'guest-ping'}");
    assert_eq!((class.as_str(), text.is_empty()), ("GenericError", false));
}

#[test]
fn invalid_cmd() {
    let agent = started(&[]);
    let (class, text) = error_of(&mut agent.connect(), "{'execute': 'guest-invalid-cmd'}");
    assert_eq!((class.as_str(), text.is_empty()), ("CommandNotFound", false));
}

#[test]
fn invalid_args() {
    let agent = started(&[]);
    let error = error_of(&mut agent.connect(), "{'execute': 'guest-ping', 'arguments': {'foo': 42 }}");
    assert_eq!(error, ("GenericError".to_owned(), "Parameter 'foo' is unexpected".to_owned()));
}

#[test]
fn fsfreeze_status() {
    let agent = started(&[]);
    assert_eq!(agent.connect().ask("{'execute': 'guest-fsfreeze-status'}"), json!({ "return": "thawed" }));
}

const DISABLED: &str = "has been disabled";

#[test]
fn blocked_rpcs() {
    let agent = started(&["-b", "guest-ping,guest-get-time"]);
    let mut host = agent.connect();
    let (class, text) = error_of(&mut host, "{'execute': 'guest-ping'}");
    assert!(class == "CommandNotFound" && text.contains(DISABLED), "{class} {text}");
    let (class, text) = error_of(&mut host, "{'execute': 'guest-get-time'}");
    assert!(class == "CommandNotFound" && text.contains(DISABLED), "{class} {text}");
    host.call("guest-get-fsinfo", json!({}));
}

#[test]
fn allowed_rpcs() {
    let agent = started(&["-a", "guest-ping,guest-get-time"]);
    let mut host = agent.connect();
    host.call("guest-ping", json!({}));
    host.call("guest-get-time", json!({}));
    let (class, text) = error_of(&mut host, "{'execute': 'guest-get-fsinfo'}");
    assert!(class == "CommandNotFound" && text.contains(DISABLED), "{class} {text}");
}

const TEST_CONFIGURATION: &str = "[general]\ndaemon=false\nmethod=virtio-serial\npath=/path/to/org.qemu.guest_agent.0\n\
    pidfile=/var/foo/qemu-ga.pid\nstatedir=/var/state\nverbose=true\nblock-rpcs=guest-ping;guest-get-time\n";

#[test]
fn config() {
    let directory = private_directory();
    let file = directory.path().join("test-qga-config");
    std::fs::write(&file, TEST_CONFIGURATION).unwrap();
    let output = qemu_ga(directory.path()).arg("-D").env_clear().env("QGA_CONF", &file).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let dump = stdout(&output);
    assert!(dump.starts_with("[general]\n"), "{dump}");
    for line in [
        "daemon=false",
        "method=virtio-serial",
        "path=/path/to/org.qemu.guest_agent.0",
        "pidfile=/var/foo/qemu-ga.pid",
        "statedir=/var/state",
        "verbose=true",
    ] {
        assert!(dump.lines().any(|dumped| dumped == line), "{line} is missing in\n{dump}");
    }
    // Read as the list that GLib makes of it.
    let blocked = dump.lines().find_map(|line| line.strip_prefix("block-rpcs=")).unwrap();
    let blocked: Vec<&str> = blocked.split_terminator(';').collect();
    assert_eq!(blocked, ["guest-ping", "guest-get-time"]);
}

/// Asks as often as answers come, as the harness does, for at most five seconds.
fn result_of(host: &mut Host, exec: Value) -> Value {
    let pid = host.call("guest-exec", exec)["pid"].clone();
    assert!(pid.as_i64().unwrap() > 0);
    let begin = Instant::now();
    loop {
        let status = host.call("guest-exec-status", json!({ "pid": pid }));
        if status["exited"] == true {
            return status;
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

fn decoded(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

const BOTH: &str = "for i in $(seq 2); do echo stdout; echo stderr 1>&2; done";

#[test]
fn guest_exec() {
    let agent = started(&[]);
    let exec = json!({ "path": "echo", "arg": ["-n", "\" test_str \""], "capture-output": true });
    let status = result_of(&mut agent.connect(), exec);
    assert_eq!(status["exitcode"], 0);
    assert_eq!(decoded(&status["out-data"]), "\" test_str \"");
}

#[test]
fn guest_exec_separated() {
    let agent = started(&[]);
    let exec = json!({ "path": "/bin/bash", "arg": ["-c", BOTH], "capture-output": "separated" });
    let status = result_of(&mut agent.connect(), exec);
    assert_eq!(status["exitcode"], 0);
    assert_eq!(decoded(&status["out-data"]), "stdout\nstdout\n");
    assert_eq!(decoded(&status["err-data"]), "stderr\nstderr\n");
}

#[test]
fn guest_exec_merged() {
    let agent = started(&[]);
    let exec = json!({ "path": "/bin/bash", "arg": ["-c", BOTH], "capture-output": "merged" });
    let status = result_of(&mut agent.connect(), exec);
    assert_eq!(status["exitcode"], 0);
    assert_eq!(decoded(&status["out-data"]), "stdout\nstderr\nstdout\nstderr\n");
    assert!(status.get("err-data").is_none());
}

#[test]
fn guest_exec_invalid() {
    let agent = started(&[]);
    let mut host = agent.connect();
    let exec = "{'execute': 'guest-exec', 'arguments': { 'path': '/bin/invalid-cmd42' } }";
    let (class, text) = error_of(&mut host, exec);
    assert_eq!((class.as_str(), text.is_empty()), ("GenericError", false));
    let (class, text) = error_of(&mut host, "{'execute': 'guest-exec-status', 'arguments': { 'pid': 0 } }");
    assert_eq!((class.as_str(), text.is_empty()), ("GenericError", false));
}

#[test]
fn guest_get_osinfo() {
    let directory = private_directory();
    let release = directory.path().join("os-release");
    std::fs::write(
        &release,
        "ID=qemu-ga-test\nNAME=QEMU-GA\nPRETTY_NAME=\"QEMU Guest Agent test\"\nVERSION=\"Test 1\"\nVERSION_ID=1\n\
         VARIANT=\"Unit test \\\"\\'\\$\\`\\\\ and \\\\\\\\ etc.\"\nVARIANT_ID=unit-test\n",
    )
    .unwrap();
    let folder = directory.path().to_owned();
    let mut command = qemu_ga(&folder);
    command.args(["-m", "unix-listen", "-t"]).arg(&folder).arg("-p").arg(folder.join("sock"));
    // Nothing else in the environment, no PATH either.
    command.env_clear().env("QGA_OS_RELEASE", &release);
    let agent = Agent::start(command, directory);
    let info = agent.connect().call("guest-get-osinfo", json!({}));
    assert_eq!(info["id"], "qemu-ga-test");
    assert_eq!(info["name"], "QEMU-GA");
    assert_eq!(info["pretty-name"], "QEMU Guest Agent test");
    assert_eq!(info["version"], "Test 1");
    assert_eq!(info["version-id"], "1");
    assert_eq!(info["variant"], "Unit test \"'$`\\ and \\\\ etc.");
    assert_eq!(info["variant-id"], "unit-test");
}

#[test]
fn guest_get_host_name() {
    let agent = started(&[]);
    assert!(agent.connect().call("guest-get-host-name", json!({}))["host-name"].is_string());
}

#[test]
fn guest_get_timezone() {
    let agent = started(&[]);
    assert!(agent.connect().call("guest-get-timezone", json!({}))["offset"].is_number());
}

#[test]
fn guest_get_users() {
    let agent = started(&[]);
    assert!(agent.connect().call("guest-get-users", json!({})).is_array());
}

// The harness removes foo, qga.state and sock, and then the directory.
#[test]
fn sigterm_is_status_0_and_nothing_but_state_and_socket_is_left_in_the_directory() {
    let mut agent = started(&[]);
    agent.connect().call("guest-file-open", json!({ "path": "foo", "mode": "w" }));
    let (status, _) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{status}");
    let mut left: Vec<String> = std::fs::read_dir(agent.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["stderr", "qemu-ga"].contains(&name.as_str()))
        .collect();
    left.sort();
    assert_eq!(left, ["foo", "portreeve.frozen", "qga.state", "sock"]);
}

// ---------------------------------------------------------------- the command line (qga/main.c)

#[test]
fn the_version_is_printed() {
    let directory = private_directory();
    let output = output(directory.path(), &["-V"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "QEMU Guest Agent 10.2.0\n"));
}

#[test]
fn help_is_printed_to_standard_output() {
    let directory = private_directory();
    let output = output(directory.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with("Usage: ") && stdout(&output).contains("--block-rpcs"));
}

#[test]
fn all_commands_are_listed() {
    let directory = private_directory();
    let output = output(directory.path(), &["-b", "help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).lines().any(|line| line == "guest-ping"));
    assert!(stdout(&output).lines().all(|line| line.starts_with("guest-")), "{}", stdout(&output));
}

#[test]
fn an_unknown_option_is_status_1() {
    let directory = private_directory();
    let output = output(directory.path(), &["--nonsense"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("unrecognized option '--nonsense'"), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("Unknown option, try '"), "{}", stdout(&output));
}

#[test]
fn a_method_without_a_path_is_status_1() {
    let directory = private_directory();
    let output = output(directory.path(), &["-m", "unix-listen", "-t", text(directory.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("must specify a path for this channel"), "{}", stderr(&output));
}

#[test]
fn an_unknown_method_is_status_1() {
    let directory = private_directory();
    let output = output(directory.path(), &["-m", "telepathy", "-p", "x", "-t", text(directory.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("unsupported channel method/type: telepathy"), "{}", stderr(&output));
}

#[test]
fn a_channel_that_cannot_be_opened_is_status_1() {
    let directory = private_directory();
    let output = output(directory.path(), &["-p", "/nonexistent/port", "-t", text(directory.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error opening channel '/nonexistent/port'"), "{}", stderr(&output));
}

#[test]
fn a_bad_configuration_file_is_status_1() {
    let directory = private_directory();
    let file = directory.path().join("conf");
    std::fs::write(&file, "[general]\nverbose=yes\n").unwrap();
    let output = output(directory.path(), &["-c", text(&file)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error loading configuration from path: "), "{}", stderr(&output));
}

#[test]
fn a_configuration_file_that_was_named_must_exist() {
    let directory = private_directory();
    let output = output(directory.path(), &["-D", "-c", "/nonexistent/conf"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No such file or directory"), "{}", stderr(&output));
}

#[test]
fn a_log_file_that_cannot_be_opened_is_status_1() {
    let directory = private_directory();
    let socket = directory.path().join("sock");
    let options =
        ["-m", "unix-listen", "-p", text(&socket), "-t", text(directory.path()), "-l", "/nonexistent/log"];
    let output = output(directory.path(), &options);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("unable to open specified log file"), "{}", stderr(&output));
}

// 7.2 reads the file first; the command line goes before it.
#[test]
fn the_command_line_goes_before_the_configuration_file() {
    let directory = private_directory();
    let file = directory.path().join("conf");
    std::fs::write(&file, "[general]\nmethod=isa-serial\npath=/dev/fromfile\nblock-rpcs=guest-exec\n")
        .unwrap();
    let output =
        output(directory.path(), &["-D", "-c", text(&file), "-p", "/dev/fromline", "-b", "guest-ping"]);
    let dump = stdout(&output);
    assert!(dump.contains("\nmethod=isa-serial\n") && dump.contains("\npath=/dev/fromline\n"), "{dump}");
    assert!(dump.contains("\nblock-rpcs=guest-exec,guest-ping\n"), "{dump}");
}

#[test]
fn a_dump_can_be_read_back() {
    let directory = private_directory();
    let file = directory.path().join("conf");
    let options =
        ["-D", "-b", "guest-exec", "-a", "guest-exec,guest-ping", "-F/opt/hook", "-v", "-l", "/tmp/a b"];
    let first = stdout(&output(directory.path(), &options));
    std::fs::write(&file, &first).unwrap();
    assert_eq!(stdout(&output(directory.path(), &["-D", "-c", text(&file)])), first);
}

// RHEL's units pass a variable that may be empty.
#[test]
fn an_empty_allow_list_allows_everything() {
    let agent = started(&["--allow-rpcs=", "--block-rpcs="]);
    agent.connect().call("guest-get-time", json!({}));
}

#[test]
fn names_separated_by_semicolons_are_blocked() {
    let agent = started(&["--block-rpcs=guest-exec; guest-get-time"]);
    let mut host = agent.connect();
    let (class, text) = error_of(&mut host, "{\"execute\":\"guest-get-time\"}");
    assert_eq!(class, "CommandNotFound");
    assert_eq!(text, "Command guest-get-time has been disabled: the command is not allowed");
    let (_, text) = error_of(&mut host, "{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"true\"}}");
    assert_eq!(text, "Command guest-exec has been disabled: the command is not allowed");
}

#[test]
fn the_old_name_of_the_block_list_works() {
    let agent = started(&["--blacklist=guest-get-time"]);
    let (_, text) = error_of(&mut agent.connect(), "{\"execute\":\"guest-get-time\"}");
    assert!(text.contains(DISABLED), "{text}");
}

#[test]
fn a_blocked_command_stands_in_guest_info_as_disabled() {
    let agent = started(&["-b", "guest-exec"]);
    let info = agent.connect().call("guest-info", json!({}));
    let exec = json!({ "name": "guest-exec", "enabled": false, "success-response": true });
    assert!(info["supported_commands"].as_array().unwrap().contains(&exec));
}

#[test]
fn a_missing_state_directory_is_made() {
    let directory = private_directory();
    let folder = directory.path().to_owned();
    let state = folder.join("deep/state");
    let mut command = qemu_ga(&folder);
    command.args(["-m", "unix-listen", "-p"]).arg(folder.join("sock")).arg("-t").arg(&state);
    let agent = Agent::start(command, directory);
    agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" }));
    let text = std::fs::read_to_string(state.join("qga.state")).unwrap();
    assert!(text.starts_with("[global]\nfd_counter="), "{text}");
}

#[test]
fn qemu_gas_state_file_is_carried_on() {
    let directory = private_directory();
    std::fs::write(directory.path().join("qga.state"), "[global]\nfd_counter=1017\n").unwrap();
    let folder = directory.path().to_owned();
    let mut command = qemu_ga(&folder);
    command.args(["-m", "unix-listen", "-p"]).arg(folder.join("sock")).arg("-t").arg(&folder);
    let agent = Agent::start(command, directory);
    assert_eq!(agent.connect().call("guest-file-open", json!({ "path": "/etc/passwd" })), 1017);
}

#[test]
fn with_retry_the_agent_waits_for_a_channel_that_is_missing() {
    let directory = private_directory();
    let folder = directory.path().to_owned();
    let port = folder.join("port");
    let mut command = qemu_ga(&folder);
    command.args(["-r", "-p"]).arg(&port).arg("-t").arg(&folder);
    let mut agent = Agent::start_only(command, directory);
    assert!(wait_until(|| agent.log().contains("waiting for channel path...")), "{}", agent.log());
    let terminal = nix::pty::openpty(None, None).unwrap();
    symlink(nix::unistd::ttyname(&terminal.slave).unwrap(), &port).unwrap();
    // qemu-ga, too, looks every five seconds.
    assert!(wait_until(|| agent.processes().iter().any(|(name, _)| name == "frontend")), "{}", agent.log());
    assert_eq!(agent.terminate().0.code(), Some(0));
}

#[test]
fn the_process_has_the_name_it_was_called_by() {
    let agent = started(&[]);
    agent.connect().call("guest-ping", json!({}));
    let name = std::fs::read_to_string(format!("/proc/{}/comm", agent.pid())).unwrap();
    assert_eq!(name, "qemu-ga\n");
}

// ---------------------------------------------------------------- daemons

/// A daemon, ended when dropped.
struct Daemon(u32);

impl Drop for Daemon {
    fn drop(&mut self) {
        signal(self.0, "KILL");
        wait_until(|| !is_alive(self.0));
    }
}

fn daemon(directory: &Path) -> (Output, PathBuf) {
    let (pid_file, socket) = (directory.join("pid"), directory.join("sock"));
    let mut command = qemu_ga(directory);
    command.args(["-d", "-m", "unix-listen", "-p"]).arg(socket).arg("-t").arg(directory);
    command.arg("-f").arg(&pid_file).arg("-l").arg(directory.join("log"));
    (command.output().unwrap(), pid_file)
}

fn pid_in(file: &Path) -> u32 {
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[test]
fn a_daemon_detaches_when_it_is_up_and_has_a_pid_file() {
    let directory = private_directory();
    let (output, pid_file) = daemon(directory.path());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let daemon = Daemon(pid_in(&pid_file));
    assert_eq!(std::fs::metadata(&pid_file).unwrap().permissions().mode() & 0o777, 0o600);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.0)).unwrap();
    let session: u32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, daemon.0, "it leads its own session");
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", daemon.0)).unwrap(), Path::new("/"));
    let stream = std::os::unix::net::UnixStream::connect(directory.path().join("sock")).unwrap();
    Host::from(stream).call("guest-ping", json!({}));
    signal(daemon.0, "TERM");
    assert!(wait_until(|| !is_alive(daemon.0)));
    assert!(!pid_file.exists(), "the pid file of a daemon that has ended");
}

// qemu-ga before 10.0 says 0 here.
#[test]
fn a_daemon_that_cannot_start_is_status_1() {
    let directory = private_directory();
    let state = text(directory.path());
    let output = output(directory.path(), &["-d", "-p", "/nonexistent/port", "-t", state, "-f", "pid"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!directory.path().join("pid").exists());
}

// qemu-ga from 10.0 on deletes the first one's pid file here.
#[test]
fn a_second_daemon_leaves_the_first_ones_pid_file_alone() {
    let directory = private_directory();
    let (output, pid_file) = daemon(directory.path());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let first = Daemon(pid_in(&pid_file));
    let (second, _) = daemon(directory.path());
    assert_eq!(second.status.code(), Some(1));
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(log.contains("Cannot lock pid file: Resource temporarily unavailable"), "{log}");
    assert_eq!(pid_in(&pid_file), first.0);
    let stream = std::os::unix::net::UnixStream::connect(directory.path().join("sock")).unwrap();
    Host::from(stream).call("guest-ping", json!({}));
}

// qemu-ga deletes the pid file of a running daemon here.
#[test]
fn dumping_the_configuration_leaves_a_daemons_pid_file_alone() {
    let directory = private_directory();
    let (_, pid_file) = daemon(directory.path());
    let first = Daemon(pid_in(&pid_file));
    let dumped = output(directory.path(), &["-D", "-d", "-f", text(&pid_file)]);
    assert_eq!(dumped.status.code(), Some(0));
    assert_eq!(pid_in(&pid_file), first.0);
}

// ---------------------------------------------------------------- phoenix-ga

#[test]
fn phoenix_prints_its_version() {
    let directory = private_directory();
    let output = named(directory.path(), "phoenix-ga").arg("-v").output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "Version: 0.7.2\n"));
}

#[test]
fn phoenix_is_served_on_the_port_that_is_named() {
    let directory = private_directory();
    let folder = directory.path().to_owned();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut settings = nix::sys::termios::tcgetattr(&terminal.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut settings);
    nix::sys::termios::tcsetattr(&terminal.slave, nix::sys::termios::SetArg::TCSANOW, &settings).unwrap();
    let mut command = named(&folder, "phoenix-ga");
    command.arg(OsStr::new("-p")).arg(nix::unistd::ttyname(&terminal.slave).unwrap());
    let mut agent = Agent::start_only(command, directory);
    let mut near = std::fs::File::from(terminal.master);
    std::io::Write::write_all(&mut near, b"{\"execute\":\"ping\",\"tag\":\"a\"}\n").unwrap();
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&near), &mut answer).unwrap();
    assert_eq!(tests::agent::json(answer.trim_end().as_bytes()), json!({ "return": "0.7.2", "tag": "a" }));
    assert_eq!(agent.terminate().0.code(), Some(0));
}

#[test]
fn a_flag_that_phoenix_does_not_have_is_status_2() {
    let directory = private_directory();
    let output = named(directory.path(), "phoenix-ga").arg("-x").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("flag provided but not defined: -x\n"), "{}", stderr(&output));
}
