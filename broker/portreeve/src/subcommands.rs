//! `portreeve run`, `reload`, `doctor`, `call`, `audit`: what people type.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{PathBuf, absolute};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proto::settings::Configured;
use records::Head;

use crate::configuration::{self, Configuration};
use crate::launch::{Launch, launch};
use crate::say::raw;
use crate::{auditor, call, doctor, policy_tools, reload};

/// Keeps the virtio port of a virtual machine: a guest agent that trusts neither the host nor itself.
#[derive(Parser)]
#[command(
    name = "portreeve",
    version,
    after_help = "Called as qemu-ga or phoenix-ga it takes their options.\n\nExample: portreeve run"
)]
struct Portreeve {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run the agent in the foreground until SIGTERM.
    #[command(
        after_help = "Without a configuration file: QEMU's dialect on org.qemu.guest_agent.0, /etc/portreeve/policy.toml or what only looks and freezes.\n\n\
                            Example: portreeve run --config /etc/portreeve/portreeve.toml"
    )]
    Run(Run),
    /// Put the policy in force that is in the files now, without ending anything.
    #[command(
        after_help = "The policy is compiled first, with what is wrong shown here; then the agent is sent SIGHUP and waited for. \
        Channels, open files and running programs stay. Other keys of the configuration need a restart.\n\n\
        Exit status: 0 in force, 1 refused: the policy in force stays, 2 could not ask, 3 not yet: filesystems are frozen, or it takes longer.\n\n\
        Example: portreeve reload && portreeve doctor"
    )]
    Reload(Reload),
    /// Look at running agents: what each process may do, and what is missing.
    #[command(after_help = "Exit status: 0 fine, 1 something is missing, 2 could not look.\n\n\
                            Example: portreeve doctor --json | jq '.agents[].processes[].role'")]
    Doctor(Doctor),
    /// Ask an agent something, from the host's side.
    #[command(
        after_help = "Exit status: 0 answered, 1 the agent answers with an error, 2 wrong usage, 3 no answer.\n\n\
        Examples: portreeve call /run/vm1-agent.sock guest-get-osinfo\n          \
                  portreeve call vsock:5:1024 guest-exec path=/bin/ls arg='[\"-l\"]' capture-output=true\n          \
                  portreeve call --dialect phoenix /run/vm1.sock file-open path=/etc/hostname\n          \
                  echo '{\"execute\":\"guest-ping\"}' | portreeve call --raw /run/vm1-agent.sock"
    )]
    Call(Call),
    /// Read the audit log: check it, watch it, report on it, pass it on.
    #[command(
        subcommand,
        after_help = "Without FILE the log that the configuration names. docs/auditor.md says how to check a log.\n\n\
                      Example: portreeve audit verify /var/log/portreeve-audit.jsonl"
    )]
    Audit(Audit),
    /// Check, show, explain, test, learn and compare policies, offline.
    #[command(after_help = "Each of them says more with --help.\n\n\
                            Example: portreeve policy explain 'guest-file-open path=/etc/shadow'")]
    Policy {
        #[command(subcommand)]
        command: policy_tools::Tool,
    },
}

/// What `portreeve audit` can do.
#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Say whether the log is what the agent wrote: its chain of hashes, gaps, edits, its end.
    #[command(after_help = "Exit status: 0 whole, 1 not whole, 2 cannot be read.\n\n\
        Examples: portreeve audit verify /var/log/portreeve-audit.jsonl\n          \
                  portreeve audit verify --head 4711:$HASH --json audit.jsonl | jq .findings\n          \
                  journalctl -t portreeve-audit -o cat | portreeve audit verify -")]
    Verify(AuditVerify),
    /// Show each request in a line as it is recorded, over rotation; ends on SIGINT with 0.
    #[command(after_help = "Without --since it begins with the last ten. Times are UTC.\n\n\
        Examples: portreeve audit follow\n          \
                  portreeve audit follow --denied --since 24h /var/log/portreeve-audit.jsonl")]
    Follow(AuditFollow),
    /// Who asked what and when, what was refused, changed, slow or went wrong.
    #[command(
        after_help = "Exit status: 0 the log is whole, 1 it is not (the report is made all the same), 2 cannot be read.\n\n\
        Examples: portreeve audit report\n          \
                  portreeve audit report --html report.html --since 2026-11-01T00:00:00Z"
    )]
    Report(AuditReport),
    /// Turn records into events of OCSF or ECS, one JSON line each, for log systems.
    #[command(
        after_help = "Exit status: 0 all lines were records, 1 some were not (they are named and left out), 2 cannot be read.\n\n\
        Example: portreeve audit export --format ecs --since 1h | curl --data-binary @- https://logs.example/_bulk"
    )]
    Export(AuditExport),
}

/// Which log, and what vouches for it.
#[derive(Args)]
pub(crate) struct Log {
    /// The log; rotated files beside it are read first. Several files are put in order. - is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Only FILE, without the rotated files beside it.
    #[arg(long)]
    pub(crate) alone: bool,
    /// A record that was noted elsewhere, as the agent's log has it; can be given several times.
    #[arg(long, value_name = "SEQUENCE:HASH")]
    pub(crate) head: Vec<Head>,
}

/// What `portreeve audit verify` was given.
#[derive(Args)]
pub(crate) struct AuditVerify {
    #[command(flatten)]
    pub(crate) log: Log,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `portreeve audit follow` was given.
#[derive(Args)]
pub(crate) struct AuditFollow {
    /// The log; - is standard input.
    pub(crate) file: Option<PathBuf>,
    /// Only what was refused.
    #[arg(long)]
    pub(crate) denied: bool,
    /// Only what changes something: intents and their outcomes.
    #[arg(long)]
    pub(crate) changes: bool,
    /// Only this command; can be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) command: Vec<String>,
    /// Begin there: a time in UTC, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = auditor::since)]
    pub(crate) since: Option<SystemTime>,
    /// Print the records as they are.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `portreeve audit report` was given.
#[derive(Args)]
pub(crate) struct AuditReport {
    #[command(flatten)]
    pub(crate) log: Log,
    /// Write one HTML file that needs nothing else; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(crate) html: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Count from there on: a time in UTC, or how long ago. The chain is always checked from the beginning.
    #[arg(long, value_name = "TIME", value_parser = auditor::since)]
    pub(crate) since: Option<SystemTime>,
}

/// What `portreeve audit export` was given.
#[derive(Args)]
pub(crate) struct AuditExport {
    /// The log, as for verify.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Only FILE, without the rotated files beside it.
    #[arg(long)]
    pub(crate) alone: bool,
    /// What the events follow.
    #[arg(long, value_enum)]
    pub(crate) format: EventFormat,
    /// Begin there: a time in UTC, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = auditor::since)]
    pub(crate) since: Option<SystemTime>,
}

/// A form of events.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventFormat {
    /// Open Cybersecurity Schema Framework.
    Ocsf,
    /// Elastic Common Schema.
    Ecs,
}

#[derive(Args)]
struct Run {
    /// Configuration file; must exist when it is given.
    #[arg(long, value_name = "FILE", help = format!("Configuration file [default: {}]", configuration::PATH))]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Doctor {
    /// Process id of a spawner; all agents if not given.
    pid: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `portreeve reload` was given.
#[derive(Args)]
pub(crate) struct Reload {
    /// Process id of a spawner; all agents if not given.
    pub(crate) pid: Option<u32>,
    /// Seconds to wait until it is in force.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `portreeve call` was given.
#[derive(Args)]
pub(crate) struct Call {
    /// A unix socket's path, or vsock:CID:PORT.
    pub(crate) socket: String,
    /// The command, such as guest-info.
    #[arg(required_unless_present = "raw", conflicts_with = "raw")]
    pub(crate) command: Option<String>,
    /// KEY=VALUE (the value is JSON if it parses, else a text), or one JSON object.
    pub(crate) arguments: Vec<String>,
    /// What is spoken on the socket.
    #[arg(long, value_enum, default_value = "qga")]
    pub(crate) dialect: Spoken,
    /// Show base64 members (buf-b64, out-data, err-data, ...) as the text they hold.
    #[arg(long)]
    pub(crate) decode: bool,
    /// Send each line of standard input as it is and print each answer as it is.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Seconds to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: u32,
}

/// A dialect on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spoken {
    /// QEMU's guest agent protocol.
    Qga,
    /// Phoenix's.
    Phoenix,
}

/// Runs as `portreeve` with `arguments`, the first of which is the name it was called by.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    // clap's own statuses: 0 for help and version, 2 for wrong usage.
    match Portreeve::parse_from(arguments).command {
        Subcommands::Run(run) => start(arguments, &run),
        Subcommands::Reload(given) => reload::main(&given),
        Subcommands::Doctor(Doctor { pid, json }) => doctor::main(pid, json),
        Subcommands::Call(given) => call::main(&given),
        Subcommands::Audit(given) => auditor::main(given),
        Subcommands::Policy { command } => policy_tools::main(&command),
    }
}

fn start(arguments: &[OsString], run: &Run) -> ExitCode {
    // A reload finds it again whatever the working directory is.
    let file = run.config.as_deref().map(|path| absolute(path).unwrap_or_else(|_| path.to_owned()));
    let configuration = match configuration::load(run.config.as_deref()) {
        Ok(configuration) => configuration,
        Err(why) => {
            raw(format_args!("portreeve: {why}"));
            return ExitCode::FAILURE;
        }
    };
    launch(Launch {
        called: arguments.first().cloned().unwrap_or_default(),
        arguments: arguments.get(1..).unwrap_or_default().to_vec(),
        lines: configuration.lines,
        policy: Configuration::bundle(configuration.policy),
        audit: configuration.audit,
        audit_required: configuration.audit_required,
        verbose: configuration.verbose,
        log_file: configuration.log_file,
        state_directory: configuration.state_directory,
        uid_base: configuration.uid_base,
        idle_seconds: configuration.idle_seconds,
        extensions: configuration.extensions,
        freeze: configuration.freeze,
        init: configuration.init,
        clock_step_seconds: configuration.clock_step_seconds,
        daemon: None,
        configured: Some(Configured {
            file: file.map(|path| path.into_os_string().into_vec()),
            values: configuration.values,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Portreeve::command().debug_assert();
    }

    /// The command and all below it.
    fn tree(command: clap::Command) -> Vec<clap::Command> {
        let below: Vec<clap::Command> = command.get_subcommands().cloned().flat_map(tree).collect();
        std::iter::once(command).chain(below).collect()
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        let all = tree(Portreeve::command());
        let without: Vec<&str> = all
            .iter()
            .filter(|command| {
                !command.get_after_help().is_some_and(|help| help.to_string().contains("Example"))
            })
            .map(clap::Command::get_name)
            .collect();
        assert_eq!(without, Vec::<&str>::new());
        assert!(
            all.iter().any(|command| command.get_name() == "verify"),
            "commands below commands are looked at"
        );
    }
}
