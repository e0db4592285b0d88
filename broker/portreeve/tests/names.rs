//! The program under its three names, as a shell sees it: exit status, standard output, standard error.
//!
//! Where qemu-ga itself should answer the same, the row is run on the installed one, too, if there is one.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

const STOCK: &str = "/usr/sbin/qemu-ga";

/// Runs `program` under the name `name` with nothing but `QGA_CONF` in its environment.
fn run(program: &str, name: &str, configuration: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .env("QGA_CONF", configuration)
        .output()
        .expect("it runs")
}

fn ours(configuration: &Path, arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_portreeve"), "qemu-ga", configuration, arguments)
}

/// Status, standard output, and whether standard error contains `stderr` (and is empty if that is).
#[track_caller]
fn assert_says(output: &Output, status: i32, stdout: &str, stderr: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()),
        (Some(status), stdout),
        "{error}"
    );
    assert!(error.contains(stderr) && (error.is_empty() == stderr.is_empty()), "{error:?} has no {stderr:?}");
}

/// As qemu-ga prints what we print: its 7.2 has no allow list, and the name it was called by is its path.
fn as_stock(stdout: &str) -> String {
    stdout.replace("allow-rpcs=\n", "")
}

/// One row: both answer the same.
#[track_caller]
fn both(configuration: &str, arguments: &[&str], status: i32, stdout: &str, stderr: &str) {
    let directory = tempfile::tempdir().expect("makes it");
    let file = directory.path().join("qemu-ga.conf");
    fs::write(&file, configuration).expect("writes it");
    assert_says(&ours(&file, arguments), status, stdout, stderr);
    if Path::new(STOCK).exists() {
        // In the C locale GLib prints curly quotes as question marks.
        let stderr = stderr.split('“').next().unwrap_or_default();
        assert_says(&run(STOCK, "qemu-ga", &file, arguments), status, &as_stock(stdout), stderr);
    }
}

/// One row that is ours alone: qemu-ga 10 differs from the installed 7.2 there, or we differ from both on purpose.
#[track_caller]
fn only_ours(configuration: &str, arguments: &[&str], status: i32, stdout: &str, stderr: &str) {
    let directory = tempfile::tempdir().expect("makes it");
    let file = directory.path().join("qemu-ga.conf");
    fs::write(&file, configuration).expect("writes it");
    assert_says(&ours(&file, arguments), status, stdout, stderr);
}

/// The dump with some lines replaced by `changes`, `key=value` each; keys that are not always there stand where they belong.
fn dump(changes: &[&str]) -> String {
    const KEYS: [(&str, Option<&str>); 11] = [
        ("daemon", Some("false")),
        ("method", Some("virtio-serial")),
        ("path", Some("/dev/virtio-ports/org.qemu.guest_agent.0")),
        ("logfile", None),
        ("pidfile", Some("/var/run/qemu-ga.pid")),
        ("fsfreeze-hook", None),
        ("statedir", Some("/var/run")),
        ("verbose", Some("false")),
        ("retry-path", Some("false")),
        ("block-rpcs", Some("")),
        ("allow-rpcs", Some("")),
    ];
    let line = |(key, usual): (&str, Option<&str>)| {
        let changed = changes.iter().find_map(|change| change.strip_prefix(key)?.strip_prefix('='));
        changed.or(usual).map(|value| format!("{key}={value}\n")).unwrap_or_default()
    };
    format!("[general]\n{}", KEYS.map(line).concat())
}

const UNKNOWN: &str = "Unknown option, try 'qemu-ga --help' for more information.\n";

#[test]
fn the_dump_shows_the_defaults_in_a_fixed_order() {
    both("", &["-D"], 0, &dump(&[]), "");
    both("", &["--dump-conf", "-m", "isa-serial"], 0, &dump(&["method=isa-serial", "path=/dev/ttyS0"]), "");
}

#[test]
fn the_command_line_goes_before_the_configuration_file() {
    let file = "[general]\nmethod=unix-listen\npath=/a\nverbose=1\nstatedir=/s\nlogfile=/l\n";
    let from_file = ["method=unix-listen", "path=/a", "verbose=true", "statedir=/s", "logfile=/l"];
    both(file, &["-D"], 0, &dump(&from_file), "");
    let both_say = [
        "method=unix-listen",
        "path=/b",
        "verbose=true",
        "statedir=/t",
        "logfile=/l",
        "daemon=true",
        "retry-path=true",
    ];
    both(file, &["-D", "-p", "/b", "-t/t", "-dr"], 0, &dump(&both_say), "");
}

#[test]
fn the_configuration_of_qemus_own_test_comes_back_as_a_semicolon_list() {
    // tests/data/test-qga-config
    let file = "[general]\ndaemon=false\nmethod=virtio-serial\npath=/path/to/org.qemu.guest_agent.0\n\
                pidfile=/var/foo/qemu-ga.pid\nstatedir=/var/state\nverbose=true\nblock-rpcs=guest-ping;guest-get-time\n";
    let expected = dump(&[
        "path=/path/to/org.qemu.guest_agent.0",
        "pidfile=/var/foo/qemu-ga.pid",
        "statedir=/var/state",
        "verbose=true",
        "block-rpcs=guest-ping;guest-get-time",
    ]);
    both(file, &["-D"], 0, &expected, "");
}

#[test]
fn a_dumped_configuration_reads_back_as_the_same() {
    let first = dump(&["path=\\s/a\\\\b\\nc", "method=unix-listen", "block-rpcs=a,b", "allow-rpcs=c;d"]);
    only_ours(&first, &["-D"], 0, &first, "");
}

#[test]
fn lists_of_file_and_options_add_up() {
    both(
        "[general]\nblock-rpcs=a\n",
        &["-D", "-b", "b", "--block-rpcs=c"],
        0,
        &dump(&["block-rpcs=a,b,c"]),
        "",
    );
    both("", &["-D", "--blacklist=", "-b", ""], 0, &dump(&[]), "");
    // qemu-ga turns each list around: b,a.
    only_ours("", &["-D", "-b", " a ,, b", "-a", "x"], 0, &dump(&["block-rpcs=a,b", "allow-rpcs=x"]), "");
}

#[test]
fn the_old_key_of_the_block_list_adds_to_the_new_one() {
    // qemu-ga 7.2 drops what block-rpcs says.
    let warning = "config using deprecated 'blacklist' key";
    only_ours("[general]\nblacklist=a\nblock-rpcs=b\n", &["-D"], 0, &dump(&["block-rpcs=b,a"]), warning);
    both("[general]\nblacklist=a\n", &["-D"], 0, &dump(&["block-rpcs=a"]), warning);
}

#[test]
fn the_hook_has_a_default_and_takes_attached_values_only() {
    both("", &["-D", "-F"], 0, &dump(&["fsfreeze-hook=/etc/qemu/fsfreeze-hook"]), "");
    both("", &["-D", "--fsfreeze-hook", "/x"], 0, &dump(&["fsfreeze-hook=/etc/qemu/fsfreeze-hook"]), "");
    both(
        "",
        &["-vdF/x/y", "-D", "ignored", "--", "-x"],
        0,
        &dump(&["fsfreeze-hook=/x/y", "verbose=true", "daemon=true"]),
        "",
    );
}

#[test]
fn a_path_that_is_missing_is_reported() {
    both("", &["-D", "-m", "unix-listen"], 1, "", "must specify a path for this channel");
    both("", &["-m", "frob"], 1, "", "must specify a path for this channel");
    only_ours("", &["-m", "frob", "-p", "/x"], 1, "", "unsupported channel method/type: frob");
    only_ours("", &["-m", "vsock-listen", "-p", "x"], 1, "", "error parsing address 'x'");
}

#[test]
fn bad_options_end_with_1_and_a_hint() {
    both("", &["-x"], 1, UNKNOWN, "invalid option -- 'x'");
    both("", &["--frob"], 1, UNKNOWN, "unrecognized option '--frob'");
    both("", &["--ver"], 1, UNKNOWN, "option '--ver' is ambiguous; possibilities: '--version' '--verbose'");
    both("", &["--verb=1"], 1, UNKNOWN, "option '--verbose' doesn't allow an argument");
    both("", &["-m"], 1, UNKNOWN, "option requires an argument -- 'm'");
    both("", &["--method"], 1, UNKNOWN, "option '--method' requires an argument");
}

#[test]
fn a_configuration_that_cannot_be_understood_is_fatal() {
    let bad = |text: &str, why: &str| both(text, &["-D"], 1, "", why);
    bad("block-rpcs=a\n", "Key file does not start with a group");
    bad(
        "[general]\nrubbish\n",
        "Key file contains line “rubbish” which is not a key-value pair, group, or comment",
    );
    bad(
        "[general]\nverbose=yes\n",
        "Key file contains key “verbose” which has a value that cannot be interpreted.",
    );
    // Also when only the version is asked for: the file is read first.
    both("[general]\nverbose=yes\n", &["-V"], 1, "", "error loading configuration from path: ");
}

#[test]
fn a_configuration_file_may_be_missing_unless_it_was_asked_for() {
    let missing = Path::new("/nonexistent/qemu-ga.conf");
    assert_says(&ours(missing, &["-D"]), 0, &dump(&[]), "");
    let asked = ours(Path::new("/dev/null/x"), &["-D", "-c", "/nonexistent/qemu-ga.conf"]);
    let why = "error loading configuration from path: /nonexistent/qemu-ga.conf, No such file or directory";
    assert_says(&asked, 1, "", why);
    assert_says(&ours(Path::new("/etc"), &["-D"]), 1, "", "Not a regular file");
}

#[test]
fn the_version_is_that_of_the_level_that_is_served() {
    only_ours("", &["-V"], 0, "QEMU Guest Agent 10.2.0\n", "");
    only_ours("", &["--vers"], 0, "QEMU Guest Agent 10.2.0\n", "");
}

#[test]
fn the_help_of_a_list_names_every_command_on_a_line() {
    for arguments in [["-b", "help"], ["-b", "?"], ["--allow-rpcs", "help"]] {
        let output = ours(Path::new("/nonexistent"), &arguments);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).expect("is text");
        assert!(text.lines().any(|line| line == "guest-sync-delimited"), "{text}");
        assert!(text.lines().all(|line| line.starts_with("guest-")), "{text}");
    }
}

#[test]
fn a_socket_that_was_not_passed_to_this_process_is_not_taken() {
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve"))
        .arg0("qemu-ga")
        .args(["-D", "-m", "isa-serial"])
        .env_clear()
        .envs([("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("QGA_CONF", "/nonexistent")])
        .output()
        .expect("it runs");
    assert_says(&output, 0, &dump(&["method=isa-serial", "path=/dev/ttyS0"]), "");
}

#[test]
fn phoenix_ga_prints_its_version_and_refuses_flags_like_go() {
    let phoenix = |arguments: &[&str]| {
        run(env!("CARGO_BIN_EXE_portreeve"), "/usr/bin/phoenix-ga", Path::new("/x"), arguments)
    };
    assert_says(&phoenix(&["-v"]), 0, "Version: 0.7.2\n", "");
    assert_says(&phoenix(&["-x"]), 2, "", "flag provided but not defined: -x\nUsage of /usr/bin/phoenix-ga:");
}

#[test]
fn portreeve_run_names_file_line_and_reason_of_a_bad_configuration() {
    let directory = tempfile::tempdir().expect("makes it");
    let file = directory.path().join("p.toml");
    fs::write(&file, "[audit]\nsink = \"fil\"\n").expect("writes it");
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve"))
        .args([OsStr::new("run"), OsStr::new("--config"), file.as_os_str()])
        .output()
        .expect("it runs");
    let shown = format!(
        "{}:2: unknown sink \"fil\"; did you mean \"file\"?\n  sink = \"fil\"\n         ^^^^^\n",
        file.display()
    );
    assert_says(&output, 1, "", &shown);
}

#[test]
fn call_tells_wrong_usage_from_no_answer() {
    let call = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_portreeve")).arg("call").args(arguments).output().expect("it runs")
    };
    assert_eq!(call(&["/nonexistent/sock"]).status.code(), Some(2));
    assert_says(&call(&["vsock:x", "guest-ping"]), 2, "", "\"vsock:x\" is no vsock address");
    assert_says(
        &call(&["/nonexistent/sock", "guest-ping", "x"]),
        2,
        "",
        "\"x\" is neither KEY=VALUE nor a JSON object",
    );
    assert_says(
        &call(&["/nonexistent/sock", "guest-ping"]),
        3,
        "",
        "cannot connect to /nonexistent/sock: No such file",
    );
}
