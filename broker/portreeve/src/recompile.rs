//! `portreeve-recompile`: reads configuration and policy once more, for a reload.
//!
//! Started by the spawner when SIGHUP comes, with the rights of the start and under the spawner's filter, from the program that started
//! the agent, whatever lies under its name by now. The text of the policy is parsed by the compiler, without rights, as at the start.
//! It leaves a sealed form for the broker and all who come after, and 16 bytes for the spawner; it changes nothing by itself.
//!
//! Only the policy is taken over. Everything else stays as it was sealed at the start: channels are open, logs are written, state is
//! kept; of keys that have changed the log says that they need a restart.
//!
//! Exit status: 0 compiled; 1 it could not be, and the form is a policy that serves nothing and says why; 2 nothing was left.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use authorize::{Policy, Sealed};
use proto::settings::{ChannelSettings, Configured};
use spawner::Compiled;
use spawner::plan::mask_of;

use crate::configuration::{self, Configuration};
use crate::launch::workers;
use crate::policy;
use crate::say::{Level, log};

/// Where the sealed form goes.
const FORM: i32 = 1;
/// Where the spawner reads what came of it.
const OUTCOME: i32 = 3;
/// Settings and policy in force.
const IN_FORCE: i32 = 4;
/// The compiler that belongs to this program.
const COMPILER: &str = "/proc/self/fd/5";

const NOT_COMPILED: u8 = 1;
const FAILED: u8 = 2;

/// Runs with `arguments`: the name, the first user id of ours, and a number without meaning here.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    match recompile(arguments) {
        Ok(status) => status,
        Err(why) => {
            log(Level::Critical, why);
            ExitCode::from(FAILED)
        }
    }
}

fn recompile(arguments: &[OsString]) -> Result<ExitCode, String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let uid_base = arguments.get(1).and_then(|text| text.to_str()?.parse().ok());
    let uid_base: u32 = uid_base.ok_or("this program is started by the spawner")?;
    let mut form = File::from(jail::take_fd(FORM).map_err(said("the form"))?);
    let mut outcome = File::from(jail::take_fd(OUTCOME).map_err(said("the outcome"))?);
    let in_force = jail::take_fd(IN_FORCE).map_err(said("settings"))?;
    let in_force = jail::sealed::read(in_force.as_fd(), policy::LIMIT).map_err(said("settings"))?;
    let Sealed { settings, .. } = Sealed::decode(&in_force).map_err(|error| error.to_string())?;
    let configured = settings.configured.clone().ok_or("this agent does not reload")?;

    let policy = compiled(&configured, &settings.channels, uid_base).unwrap_or_else(|why| {
        log(Level::Critical, &why);
        Policy::closed(why)
    });
    let closed = policy::is_closed(&policy);
    let workers = mask_of(&workers(&policy, &settings));
    let workers = workers.ok_or("a role among the workers that is none")?;
    let bytes = Sealed::new(settings, policy).encode().map_err(|error| error.to_string())?;
    form.write_all(&bytes).map_err(said("the form"))?;
    jail::sealed::seal(form.as_fd()).map_err(said("the form"))?;
    if closed {
        return Ok(ExitCode::from(NOT_COMPILED));
    }
    outcome.write_all(&Compiled { workers }.encode()).map_err(said("the outcome"))?;
    Ok(ExitCode::SUCCESS)
}

fn compiled(configured: &Configured, channels: &[ChannelSettings], uid_base: u32) -> Result<Policy, String> {
    let file = configured.file.as_ref().map(|path| Path::new(OsStr::from_bytes(path)));
    let configuration = configuration::load(file)?;
    let changed = configuration::changed(&configured.values, &configuration.values);
    if !changed.is_empty() {
        log(
            Level::Warning,
            format_args!("changed, but in force only after a restart: {}", changed.join(", ")),
        );
    }
    let bundle = Configuration::bundle(configuration.policy);
    let policy = policy::start(Path::new(COMPILER), &bundle, uid_base)?.finish();
    Ok(policy::for_channels(policy, &bundle, channels))
}
