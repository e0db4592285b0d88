//! Every transcript, played to a whole agent; those marked so to qemu-ga, too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tests::agent::Agent;
use tests::programs;
use tests::transcript::Transcript;

/// One line for each transcript, as cargo's own harness writes it, so that a name can be picked and counted.
fn main() -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    let mut paths = Vec::new();
    collect(&folder, &mut paths);
    paths.sort();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for path in paths {
        let name =
            path.strip_prefix(&folder).expect("it was found there").with_extension("").display().to_string();
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        match play(&path) {
            Ok(true) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Ok(false) => {
                left_out += 1;
                println!("test {name} ... LEFT OUT (needs root and unshare)");
            }
            Err(what) => {
                failed += 1;
                println!("test {name} ... FAILED\n  {}: {what}", path.display());
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {left_out} ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 && (left_out == 0 || !programs::is_ci()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the transcripts are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            paths.push(path);
        }
    }
}

fn play(path: &Path) -> Result<bool, String> {
    let transcript = Transcript::read(path);
    if transcript.directive("namespace").is_some() {
        return in_a_namespace(path);
    }
    if transcript.directive("root").is_some() && !programs::is_root() {
        return Ok(false);
    }
    let dialects = transcript.directive("agent").ok_or("there is no @agent line")?;
    let policy = transcript.directive("policy").unwrap_or("qemu-ga");
    let start = || Agent::run(dialects, policy);
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        let text = transcript.rewritten(&start());
        std::fs::write(path, text).map_err(|error| error.to_string())?;
        return Ok(true);
    }
    transcript.play(&start())?;
    if transcript.directive("original").is_some() {
        match Agent::original(&[]) {
            Some(original) => transcript.play(&original).map_err(|what| format!("qemu-ga itself: {what}"))?,
            None if programs::is_ci() => {
                return Err("qemu-ga is not installed (package qemu-guest-agent)".to_owned());
            }
            None => eprintln!("LEFT OUT: qemu-ga is not installed, {} ran on portreeve only", path.display()),
        }
    }
    Ok(true)
}

/// Runs this program once more for the one transcript, in a network namespace with a veth pair.
fn in_a_namespace(path: &Path) -> Result<bool, String> {
    const INSIDE: &str = "PORTREEVE_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        let transcript = Transcript::read(path);
        let dialects = transcript.directive("agent").ok_or("there is no @agent line")?;
        return transcript
            .play(&Agent::run(dialects, transcript.directive("policy").unwrap_or("qemu-ga")))
            .map(|()| true);
    }
    if !programs::is_root() {
        return Ok(false);
    }
    let script = "ip link set lo up && ip link add v0 type veth peer name v1 && ip link set v0 address 02:00:00:00:00:10 \
                  && ip link set v1 up && exec \"$@\"";
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    let name = path.strip_prefix(folder).map_err(|error| error.to_string())?.with_extension("");
    // Built outside: inside there is no network.
    programs::folder();
    let output = std::process::Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", &format!("mount -t sysfs none /sys && {script}"), "sh"])
        .arg(own)
        .arg(name)
        .env(INSIDE, "1")
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() {
        Ok(true)
    } else {
        let text = [output.stdout, output.stderr].concat();
        Err(String::from_utf8_lossy(&text).into_owned())
    }
}
