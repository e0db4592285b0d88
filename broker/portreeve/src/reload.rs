//! `portreeve reload`: what is in the files now comes into force, or the reason why not is shown.
//!
//! The policy is compiled here first, with its complaints on the caller's terminal; only one that compiles is asked for. Then the spawner
//! is sent SIGHUP and reads the files by itself: what this program has compiled is not handed over. What came of it is read through
//! `/proc` from where the spawner says it ([`spawner::reloads`]), so nothing is believed that is not in force.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use authorize::Sealed;
use jail::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::settings::{ChannelSettings, Configured};
use serde_json::{Value, json};
use spawner::reloads::{LENGTH, NAME, Outcome, Reloads};

use crate::configuration::{self, Configuration};
use crate::say::{out, raw};
use crate::subcommands::Reload;
use crate::{doctor, launch, policy};

const REFUSED: u8 = 1;
const COULD_NOT_ASK: u8 = 2;
const NOT_YET: u8 = 3;

/// Between two looks at what the spawner says.
const LOOK: Duration = Duration::from_millis(5);

/// What came of one agent's reload.
enum Came {
    /// Its policy's name.
    InForce(String),
    Refused(String),
    CouldNotAsk(String),
    NotYet(String),
}

struct Report {
    pid: u32,
    came: Came,
    /// Keys of the configuration that have changed and need a restart.
    restart: Vec<String>,
}

pub(crate) fn main(given: &Reload) -> ExitCode {
    let found = match given.pid {
        Some(pid) => Ok(vec![pid]),
        None => doctor::spawners(),
    };
    let found = found.and_then(|found| {
        if found.is_empty() {
            Err("no agent is running, or none that you may see".to_owned())
        } else {
            Ok(found)
        }
    });
    let found = match found {
        Ok(found) => found,
        Err(why) => {
            raw(format_args!("portreeve reload: {why}"));
            return ExitCode::from(COULD_NOT_ASK);
        }
    };
    let limit = Duration::from_secs(given.timeout.into());
    let reports: Vec<Report> = found.into_iter().map(|pid| reload(pid, limit)).collect();
    if given.json {
        let agents: Vec<Value> = reports.iter().map(Report::as_value).collect();
        out(format_args!("{:#}\n", json!({ "agents": agents })));
    } else {
        reports.iter().for_each(|report| out(report.as_text()));
    }
    ExitCode::from(reports.iter().map(|report| report.came.status()).max().unwrap_or(COULD_NOT_ASK))
}

fn reload(pid: u32, limit: Duration) -> Report {
    let mut restart = Vec::new();
    let came = ask(pid, limit, &mut restart).unwrap_or_else(|came| came);
    Report { pid, came, restart }
}

fn ask(pid: u32, limit: Duration, restart: &mut Vec<String>) -> Result<Came, Came> {
    let agent = Agent::find(pid).map_err(Came::CouldNotAsk)?;
    let before = agent.says().map_err(Came::CouldNotAsk)?;
    // An agent of another build reads its files with its own programs; what it thinks of them is in its log.
    if let Ok(sealed) = agent.in_force(before)
        && let Some(configured) = &sealed.settings.configured
    {
        *restart = check(configured, &sealed.settings.channels).map_err(Came::Refused)?;
    }
    let target = i32::try_from(pid).map_err(|_| Came::CouldNotAsk("not a process id".to_owned()))?;
    kill(Pid::from_raw(target), Signal::SIGHUP)
        .map_err(|errno| Came::CouldNotAsk(format!("cannot send SIGHUP: {}; try as root", errno.desc())))?;
    let begin = Instant::now();
    loop {
        let now = agent.says().map_err(Came::CouldNotAsk)?;
        // The run that began after `before` was read, or a later one.
        if now.ended.wrapping_sub(before.begun).cast_signed() > 0 {
            return Ok(agent.outcome(now));
        }
        if now.waits {
            return Err(Came::NotYet(
                "filesystems are frozen: it comes into force when they are thawed".to_owned(),
            ));
        }
        if !agent.is_there() {
            return Err(Came::CouldNotAsk("it has ended meanwhile".to_owned()));
        }
        if begin.elapsed() > limit {
            return Err(Came::NotYet(format!("nothing after {} s; its log may say more", limit.as_secs())));
        }
        sleep(LOOK);
    }
}

/// Reads and compiles as the agent is going to; returns what a reload does not take over.
fn check(configured: &Configured, channels: &[ChannelSettings]) -> Result<Vec<String>, String> {
    let file = configured.file.as_ref().map(|path| Path::new(OsStr::from_bytes(path)));
    let configuration = configuration::load(file)?;
    let restart = configuration::changed(&configured.values, &configuration.values);
    let root = nix::unistd::geteuid().is_root();
    let uid_base = if root { configuration.uid_base } else { 0 };
    let compiler = launch::executables()?.join(Role::Compile.executable());
    let bundle = Configuration::bundle(configuration.policy);
    let compiled = policy::start(&compiler, &bundle, uid_base)?.finish();
    let compiled = policy::for_channels(compiled, &bundle, channels);
    match policy::is_closed(&compiled) {
        false => Ok(restart),
        true => Err(policy::why_closed(&compiled).to_owned()),
    }
}

/// A running agent, as far as it shows.
struct Agent {
    folder: PathBuf,
    says: File,
}

impl Agent {
    fn find(pid: u32) -> Result<Self, String> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let descriptors = fs::read_dir(folder.join("fd"))
            .map_err(|error| format!("cannot look at it: {error}; try as root"))?;
        let name = format!("/memfd:{} (deleted)", NAME.to_string_lossy());
        let is_it = |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target == Path::new(&name));
        let found = descriptors.flatten().map(|entry| entry.path()).find(is_it).ok_or(
            "it does not reload: not an agent that `portreeve run` has started. In place of qemu-ga, SIGHUP ends it; restart it instead",
        )?;
        let says = File::open(&found).map_err(|error| format!("cannot look at it: {error}; try as root"))?;
        Ok(Self { folder, says })
    }

    fn says(&self) -> Result<Reloads, String> {
        let mut bytes = [0; LENGTH];
        self.says.read_exact_at(&mut bytes, 0).map_err(|error| format!("cannot look at it: {error}"))?;
        Reloads::decode(&bytes).ok_or_else(|| "it is of another version: restart it".to_owned())
    }

    fn in_force(&self, says: Reloads) -> Result<Sealed, String> {
        let path = self.folder.join("fd").join(says.settings.to_string());
        let file = File::open(path).map_err(|error| error.to_string())?;
        let bytes = jail::sealed::read(file.as_fd(), policy::LIMIT).map_err(|error| error.to_string())?;
        Sealed::decode(&bytes).map_err(|error| error.to_string())
    }

    fn is_there(&self) -> bool {
        // A zombie has no program any more.
        fs::read_link(self.folder.join("exe")).is_ok()
    }

    fn outcome(&self, says: Reloads) -> Came {
        let log = "; the agent's log says why";
        match says.outcome {
            Outcome::Accepted => {
                let name = self.in_force(says).map(|sealed| sealed.policy.name().to_owned());
                Came::InForce(name.unwrap_or_else(|_| "of another build".to_owned()))
            }
            Outcome::NeedsRestart => Came::Refused(
                "it permits programs, which would inherit the filter that this agent was started with: restart the agent"
                    .to_owned(),
            ),
            Outcome::NotInstalled => Came::Refused(format!("it needs a program that is not installed{log}")),
            Outcome::Refused => Came::Refused(format!("the broker has not taken it{log}")),
            Outcome::NotCompiled | Outcome::Failed | Outcome::None => Came::Refused(format!("it could not be compiled{log}")),
        }
    }
}

impl Came {
    fn status(&self) -> u8 {
        match self {
            Came::InForce(_) => 0,
            Came::Refused(_) => REFUSED,
            Came::CouldNotAsk(_) => COULD_NOT_ASK,
            Came::NotYet(_) => NOT_YET,
        }
    }
}

impl Report {
    fn as_value(&self) -> Value {
        let (outcome, policy, why) = match &self.came {
            Came::InForce(policy) => ("in force", Some(policy), None),
            Came::Refused(why) => ("refused", None, Some(why)),
            Came::CouldNotAsk(why) => ("not asked", None, Some(why)),
            Came::NotYet(why) => ("not yet", None, Some(why)),
        };
        json!({ "pid": self.pid, "outcome": outcome, "policy": policy, "why": why, "restart-for": self.restart })
    }

    fn as_text(&self) -> String {
        let pid = self.pid;
        let mut text = match &self.came {
            Came::InForce(policy) => format!("Agent {pid}: policy {policy} is in force.\n"),
            Came::Refused(why) => format!("Agent {pid}: not reloaded, the policy in force stays: {why}\n"),
            Came::CouldNotAsk(why) => format!("Agent {pid}: not reloaded: {why}\n"),
            Came::NotYet(why) => format!("Agent {pid}: not reloaded yet: {why}\n"),
        };
        if !self.restart.is_empty() {
            text.push_str(&format!(
                "  Changed, but in force only after a restart: {}\n",
                self.restart.join(", ")
            ));
        }
        text
    }
}
