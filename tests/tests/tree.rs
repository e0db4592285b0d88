//! The tree is what the documentation says it is.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what tests share may fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use proto::Privilege;
use serde_json::Value;
use tests::programs::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names in a folder, hidden ones left out.
fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

// ---------------------------------------------------------------- one stem, five places

fn stems() -> Vec<&'static str> {
    Privilege::ALL.iter().map(|privilege| privilege.name()).collect()
}

#[test]
fn each_privilege_has_a_file_of_what_may_be_asked() {
    for stem in stems() {
        assert!(read(&format!("broker/proto/src/{stem}.rs")).starts_with("//! "), "{stem}");
    }
}

#[test]
fn each_privilege_has_a_worker_but_the_agents_own() {
    let mut expected: BTreeSet<String> = stems().into_iter().map(str::to_owned).collect();
    expected.remove("agent");
    // No command is their own: the one does a part of fsfreeze's, the other works for the audit log.
    expected.insert("hook".to_owned());
    expected.insert("audit".to_owned());
    expected.insert("runtime".to_owned());
    assert_eq!(names(&root().join("workers")), expected);
}

#[test]
fn each_privilege_has_a_filter_but_the_agents_own_and_exec() {
    for stem in stems() {
        let path = root().join(format!("policy/seccomp/{stem}.policy"));
        // The agent's is the broker's. What exec starts must not inherit a filter.
        assert_eq!(path.exists(), !["agent", "exec"].contains(&stem), "{stem}");
    }
}

#[test]
fn each_command_has_a_transcript_among_those_of_its_privilege() {
    let mut missing = Vec::new();
    for privilege in Privilege::ALL {
        let mut files = Vec::new();
        texts(&root().join("tests/transcripts").join(privilege.name()), &mut files);
        for command in privilege.commands() {
            let asked = format!("\"execute\":\"{}\"", command.name());
            let is_asked =
                |text: &String| text.lines().any(|line| line.starts_with('>') && line.contains(&asked));
            if !files.iter().any(|(_, text)| is_asked(text)) {
                missing.push(format!("tests/transcripts/{}: {}", privilege.name(), command.name()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn each_command_has_its_section() {
    let mut missing = Vec::new();
    for privilege in Privilege::ALL {
        let path = format!("docs/commands/{}.md", privilege.name());
        let text = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
        for command in privilege.commands() {
            let heading = format!("## {}", command.name());
            if !text.lines().any(|line| line == heading) {
                missing.push(format!("{path}: {heading}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_folders_at_the_top_are_six() {
    let mut folders = names(&root());
    folders.retain(|name| root().join(name).is_dir() && name != "target");
    let folders: Vec<String> = folders.into_iter().collect();
    assert_eq!(folders, ["broker", "docs", "frontend", "policy", "tests", "workers"]);
}

/// The keys of the policy's language: the fields of what it is read into.
fn keys_of_the_language() -> BTreeSet<String> {
    let text = read("policy/compile/src/language.rs");
    let mut keys = BTreeSet::new();
    let mut lines = text.lines();
    while lines.any(|line| line == "#[derive(Deserialize)]") {
        let mut is_kebab = false;
        let structure = lines.by_ref().take_while(|line| *line != "}");
        for line in structure {
            is_kebab |= line.contains("rename_all = \"kebab-case\"");
            let field = line.strip_prefix("    ").and_then(|line| line.split_once(": "));
            if let Some((name, _)) =
                field.filter(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            {
                keys.insert(if is_kebab { name.replace('_', "-") } else { name.to_owned() });
            }
        }
    }
    keys
}

#[test]
fn each_key_of_the_policys_language_is_documented() {
    let keys = keys_of_the_language();
    for known in ["version", "paths", "one-of", "requests-per-second", "disks", "environment"] {
        assert!(keys.contains(known), "{known} is not found: {keys:?}");
    }
    let text = read("docs/policy.md");
    let missing: Vec<&String> = keys
        .iter()
        .filter(|key| !text.contains(&format!("`{key}`")) && !text.contains(&format!("{key} =")))
        .collect();
    assert!(missing.is_empty(), "docs/policy.md: {missing:?}");
}

// ---------------------------------------------------------------- what cargo knows

fn metadata() -> Value {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
        .arg(root().join("Cargo.toml"));
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// One of our packages.
struct Package {
    /// What it is built with, tests left out, each with its features.
    dependencies: BTreeMap<String, Vec<String>>,
    /// Of libraries and programs: the file that is the crate's root.
    roots: Vec<(String, PathBuf)>,
}

fn packages() -> BTreeMap<String, Package> {
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    list(&metadata()["packages"])
        .into_iter()
        .map(|package| {
            let dependencies = list(&package["dependencies"])
                .iter()
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| {
                    (text(&dependency["name"]), list(&dependency["features"]).iter().map(text).collect())
                })
                .collect();
            let is_shipped = |target: &&Value| {
                list(&target["kind"])
                    .iter()
                    .any(|kind| ["lib", "bin"].contains(&kind.as_str().unwrap_or_default()))
            };
            let targets = list(&package["targets"]);
            let roots = targets.iter().filter(is_shipped);
            let roots =
                roots.map(|target| (text(&target["name"]), text(&target["src_path"]).into())).collect();
            (text(&package["name"]), Package { dependencies, roots })
        })
        .collect()
}

/// All of our packages that are linked into one of them.
fn linked(packages: &BTreeMap<String, Package>, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(next) = open.pop() {
        let Some(package) = packages.get(&next) else { continue };
        if found.insert(next) {
            open.extend(package.dependencies.keys().cloned());
        }
    }
    found
}

fn direct(packages: &BTreeMap<String, Package>, name: &str) -> Vec<String> {
    packages[name].dependencies.keys().cloned().collect()
}

#[test]
fn unsafe_code_is_in_the_jail_and_in_the_spawner_only() {
    const ALLOWED: [&str; 4] = ["jail", "spawner", "portreeve-spawner", "probe"];
    for package in packages().into_values() {
        for (name, path) in package.roots {
            let forbids = std::fs::read_to_string(&path).unwrap().contains("#![forbid(unsafe_code)]");
            assert_eq!(forbids, !ALLOWED.contains(&name.as_str()), "{}", path.display());
        }
    }
}

#[test]
fn the_frontend_does_not_link_what_decides() {
    let linked = linked(&packages(), "frontend");
    assert!(
        !linked.contains("authorize") && !linked.contains("broker") && !linked.contains("runtime"),
        "{linked:?}"
    );
}

#[test]
fn what_may_be_asked_is_a_crate_without_input_and_output() {
    assert_eq!(direct(&packages(), "proto"), ["bincode", "serde", "thiserror"]);
    let source = ["std::fs", "std::net", "std::os", "std::io", "std::process"];
    for file in names(&root().join("broker/proto/src")) {
        let text = read(&format!("broker/proto/src/{file}"));
        assert!(!source.iter().any(|module| text.contains(&format!("use {module}"))), "{file}");
    }
}

#[test]
fn the_decision_is_a_crate_without_input_and_output() {
    assert_eq!(direct(&packages(), "authorize"), ["bincode", "proto", "thiserror"]);
}

#[test]
fn the_spawner_links_libc_and_the_jail_only() {
    assert_eq!(direct(&packages(), "spawner"), ["jail", "libc"]);
}

#[test]
fn workers_do_not_link_the_broker() {
    let packages = packages();
    for worker in ["query", "file", "net", "netadmin", "exec", "runtime"] {
        let linked = linked(&packages, worker);
        assert!(!linked.contains("broker") && !linked.contains("spawner"), "{worker}: {linked:?}");
    }
}

#[test]
fn tokio_is_in_frontend_broker_and_netadmin_only() {
    let packages = packages();
    let with_tokio: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| package.dependencies.contains_key("tokio"))
        .map(|(name, _)| name.as_str())
        .collect();
    // In `pipe` it is a feature, which those two ask for.
    assert_eq!(with_tokio, ["broker", "frontend", "netadmin", "pipe"]);
    let asking: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| {
            package.dependencies.get("pipe").is_some_and(|features| features.iter().any(|f| f == "tokio"))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(asking, ["broker", "frontend"]);
}

// bincode 3.0.0 is a release that does not compile on purpose.
#[test]
fn bincode_is_pinned() {
    assert!(read("Cargo.toml").contains("bincode = { version = \"=2.0.1\""));
    let lock = read("Cargo.lock");
    assert!(lock.contains("name = \"bincode\"\nversion = \"2.0.1\"\n"));
    assert_eq!(lock.matches("name = \"bincode\"\n").count(), 1);
}

#[test]
fn everything_from_elsewhere_comes_from_crates_io() {
    let lock = read("Cargo.lock");
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    let sources: Vec<&str> = sources.into_iter().collect();
    assert_eq!(sources, ["\"registry+https://github.com/rust-lang/crates.io-index\""]);
    assert!(!read(".cargo/config.toml").contains("[source"));
}

/// Every file of the tree that is text, built ones left out.
fn texts(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // In a second work tree `.git` is a file that says where the first one is.
        if ["target", ".git", "corpus", "artifacts"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        if path.is_dir() {
            texts(&path, found);
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            found.push((path, text));
        }
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file does not contain them.
    let paths = [
        ["/work", "/main"],
        ["/work", "/shared"],
        ["/root/", ".cargo"],
        ["/tmp/", "target-"],
        ["/home/", "user"],
    ];
    let paths: Vec<String> = paths.iter().map(|parts| parts.concat()).collect();
    let mut found = Vec::new();
    texts(&root(), &mut found);
    assert!(found.len() > 100, "{} files", found.len());
    for (path, text) in found {
        for known in &paths {
            assert!(!text.contains(known.as_str()), "{} contains {known}", path.display());
        }
    }
}

#[test]
fn every_test_is_named_by_a_sentence() {
    let mut found = Vec::new();
    texts(&root(), &mut found);
    // The original's own names, so that the two can be held side by side.
    let exceptions = ["tests/tests/drop_in.rs"];
    for (path, text) in found {
        if path.extension().is_none_or(|kind| kind != "rs")
            || exceptions.iter().any(|name| path.ends_with(name))
        {
            continue;
        }
        let mut lines = text.lines().map(str::trim);
        while lines.any(|line| line == "#[test]") {
            let name = lines.find_map(|line| line.strip_prefix("fn ")).unwrap_or_default();
            let name = name.split('(').next().unwrap_or_default();
            assert!(name.contains('_') && !name.starts_with("test_"), "{}: {name}", path.display());
        }
    }
}
