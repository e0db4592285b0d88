//! `portreeve run`, `doctor`, `call`: what people type.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::configuration::{self, Configuration};
use crate::launch::{Launch, launch};
use crate::say::raw;
use crate::{call, doctor};

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
        Subcommands::Doctor(Doctor { pid, json }) => doctor::main(pid, json),
        Subcommands::Call(given) => call::main(&given),
    }
}

fn start(arguments: &[OsString], run: &Run) -> ExitCode {
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

    #[test]
    fn every_command_has_an_example_in_its_help() {
        let without: Vec<String> = Portreeve::command()
            .get_subcommands()
            .chain([&Portreeve::command()])
            .filter(|command| {
                !command.get_after_help().is_some_and(|help| help.to_string().contains("Example"))
            })
            .map(|command| command.get_name().to_owned())
            .collect();
        assert_eq!(without, Vec::<String>::new());
    }
}
