//! `portreeve doctor`: what the processes of running agents may do, as the kernel says, and what is missing.
//!
//! Reads `/proc` and nothing of the agents themselves: it would be no use to ask them. What the caller may not see is said to be
//! unknown, never assumed.

mod process;
mod verdict;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::say::{out, raw};
use process::{Namespaces, Process};
use verdict::{Finding, Kernel};

const FINE: u8 = 0;
const MISSING: u8 = 1;
const COULD_NOT_LOOK: u8 = 2;

/// One agent: its spawner, then its children in the order of their ids.
struct Agent {
    processes: Vec<Process>,
    findings: Vec<Finding>,
}

pub(crate) fn main(pid: Option<u32>, as_json: bool) -> ExitCode {
    let agents = match look(pid) {
        Ok(agents) => agents,
        Err(why) => {
            raw(format_args!("portreeve doctor: {why}"));
            return ExitCode::from(COULD_NOT_LOOK);
        }
    };
    let kernel = Kernel::look();
    let whole = kernel.findings().is_empty() && agents.iter().all(|agent| agent.findings.is_empty());
    if as_json {
        out(format_args!("{:#}\n", as_value(&agents, &kernel)));
    } else {
        out(as_text(&agents, &kernel));
    }
    ExitCode::from(if whole && !agents.is_empty() { FINE } else { MISSING })
}

/// The spawners of all agents.
///
/// # Errors
/// A text for who asked.
pub(crate) fn spawners() -> Result<Vec<u32>, String> {
    let all = process::all().map_err(|error| format!("cannot read /proc: {error}"))?;
    Ok(spawners_among(&all))
}

fn spawners_among(all: &[process::Found]) -> Vec<u32> {
    all.iter().filter(|found| found.name == "spawner").map(|found| found.pid).collect()
}

fn look(pid: Option<u32>) -> Result<Vec<Agent>, String> {
    let all = process::all().map_err(|error| format!("cannot read /proc: {error}"))?;
    let init = Namespaces::of_init();
    let spawners: Vec<u32> = match pid {
        Some(pid) if all.iter().any(|found| found.pid == pid) => vec![pid],
        Some(pid) => return Err(format!("there is no process {pid}")),
        None => spawners_among(&all),
    };
    Ok(spawners
        .into_iter()
        .map(|spawner| {
            let of_it = all.iter().filter(|found| found.pid == spawner || found.parent == spawner);
            let mut processes: Vec<Process> =
                of_it.map(|found| Process::look(found, found.pid == spawner, &init)).collect();
            processes.sort_by_key(|process| (process.pid != spawner, process.pid));
            let findings = verdict::findings(&processes);
            Agent { processes, findings }
        })
        .collect())
}

fn as_value(agents: &[Agent], kernel: &Kernel) -> Value {
    let findings = |findings: &[Finding]| -> Vec<Value> {
        findings.iter().map(|finding| json!({"missing": finding.missing, "next": finding.next})).collect()
    };
    json!({
        "kernel": {"landlock": kernel.landlock, "lsm": kernel.modules, "findings": findings(&kernel.findings())},
        "agents": agents.iter().map(|agent| json!({
            "processes": agent.processes.iter().map(Process::as_value).collect::<Vec<_>>(),
            "findings": findings(&agent.findings),
        })).collect::<Vec<_>>(),
    })
}

fn as_text(agents: &[Agent], kernel: &Kernel) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    if agents.is_empty() {
        text.push_str(
            "No agent is running, or none that you may see.\n\
             Start one: portreeve run (in the foreground), or systemctl start portreeve\n\n",
        );
    }
    for agent in agents {
        let pid = agent.processes.first().map_or(0, |process| process.pid);
        let _ = writeln!(text, "Agent {pid}");
        let rows: Vec<[String; 11]> = agent.processes.iter().map(Process::columns).collect();
        table(&mut text, &rows);
        if agent.findings.is_empty() {
            text.push_str("  Nothing is missing.\n");
        }
        said(&mut text, &agent.findings);
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "Landlock: {}. It does not show in /proc: what each process entered is in the audit log's \
                            \"start\" and \"worker\" records.",
        kernel.landlock_text()
    );
    said(&mut text, &kernel.findings());
    text
}

fn said(text: &mut String, findings: &[Finding]) {
    for Finding { missing, next } in findings {
        let _ = writeln!(text, "  Missing: {missing}\n     Next: {next}");
    }
}

const HEAD: [&str; 11] =
    ["role", "pid", "uid", "capabilities", "seccomp", "nnp", "own namespaces", "label", "PSS", "RSS", "fds"];

fn table(text: &mut String, rows: &[[String; 11]]) {
    let head = HEAD.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in all() {
        let mut line = " ".to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, " {cell:<width$}");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_there_cannot_be_looked_at() {
        assert_eq!(look(Some(u32::MAX)).err(), Some("there is no process 4294967295".to_owned()));
    }

    #[test]
    fn columns_stand_under_each_other() {
        let mut text = String::new();
        table(
            &mut text,
            &[["broker", "1", "2", "none", "filter", "yes", "net", "-", "1", "2", "3"].map(str::to_owned)],
        );
        let [head, row] = text.lines().collect::<Vec<_>>()[..] else { panic!("two lines") };
        assert_eq!(head.find("capabilities"), row.find("none"));
        assert_eq!(head.find("label"), row.find("-"));
    }
}
