//! `cargo demo`: the agent on a private unix socket, driven through both dialects, with a denial, the audit log and
//! the doctor's screen. Works as root and as an ordinary user, and leaves nothing behind.
#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};
use std::time::Duration;

use tests::agent::{Agent, Host, PATIENCE, json};
use tests::programs;

const POLICY: &str = r#"version = 1

# Facts and the network may be read, and files. Nothing may be changed or run.
[[rule]]
outcome = "allow"
groups = ["agent", "query", "net.query", "file.read"]
"#;

const HELP: &str =
    "Shows what Portreeve does: builds it, starts it on a private unix socket, talks to it, stops it.

Usage: cargo demo [--help]
Example: cargo demo        (as root, to see each process under its own user id)
";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        print!("{HELP}");
        return if argument == "--help" || argument == "-h" { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let bold =
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let title = |text: &str| println!("\n{}{text}{}", bold.0, bold.1);

    title("Building (the first time takes a few minutes)");
    programs::folder();

    title("Starting the agent with this policy");
    println!("{POLICY}");
    let mut agent = Agent::run("qga,phoenix", POLICY);
    let mut host = agent.connect();

    title("What a host may ask, in QEMU's dialect");
    show(&mut host, r#"{"execute":"guest-ping"}"#);
    show(&mut host, r#"{"execute":"guest-get-osinfo"}"#);
    show(&mut host, r#"{"execute":"guest-network-get-interfaces"}"#);
    let handle = show(&mut host, r#"{"execute":"guest-file-open","arguments":{"path":"/etc/os-release"}}"#);
    let read = format!(
        r#"{{"execute":"guest-file-read","arguments":{{"handle":{},"count":60}}}}"#,
        handle.get("return").unwrap_or(&serde_json::Value::Null)
    );
    show(&mut host, &read);

    title("... and in Phoenix's, on the same channel");
    show(&mut host, r#"{"execute":"ping","tag":"a"}"#);
    show(&mut host, r#"{"execute":"file-stat","arguments":{"path":"/etc"},"tag":"b"}"#);

    title("What this policy refuses");
    show(&mut host, r#"{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","id"]}}"#);
    show(&mut host, r#"{"execute":"guest-file-open","arguments":{"path":"/etc/motd","mode":"w"}}"#);

    title("What was written down");
    // A client that leaves makes its frontend report what it answered by itself.
    drop(host);
    std::thread::sleep(Duration::from_millis(100));
    for record in agent.audit() {
        println!("{record}");
    }

    title("The processes (portreeve doctor)");
    let doctor =
        Command::new(programs::program("portreeve")).args(["doctor", &agent.pid().to_string()]).status();
    // 0 and 1 are its two verdicts; anything else means that it could not look.
    match doctor.map(|status| status.code()) {
        Ok(Some(0 | 1)) => {}
        other => {
            println!("portreeve doctor: {other:?}");
            return ExitCode::FAILURE;
        }
    }

    title("Stopping it with SIGTERM");
    let (status, time) = agent.terminate();
    println!("{status}, after {} ms", time.as_millis());
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sends a request, shows both lines, returns the reply.
fn show(host: &mut Host, request: &str) -> serde_json::Value {
    println!("> {request}");
    host.send(format!("{request}\n"));
    let line = host.line_within(PATIENCE).expect("the agent answers");
    let text = String::from_utf8_lossy(&line);
    let shown: String = text.chars().take(300).collect();
    println!("< {shown}{}", if shown.len() < text.len() { " …" } else { "" });
    json(&line)
}
