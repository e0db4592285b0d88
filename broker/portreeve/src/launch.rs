//! From what was asked for to the spawner, in this process's place.
//!
//! Opens what the agent's processes are born with (log, audit log, state file, pid file), has the policy compiled meanwhile,
//! seals settings, policy and plan, and execs the spawner. Nothing is started that a failure would leave behind.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, ExitCode};

use authorize::{Policy, Sealed, may_ever};
use compile::Bundle;
use jail::Role;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use proto::Group;
use proto::settings::{
    AuditSettings, AuditSink, ChannelSettings, Configured, FreezeSettings, Init, Settings,
};
use spawner::{Channel, Descriptors, Method, Plan};

use crate::audit::Audit;
use crate::say::{Level, log};
use crate::{audit, daemon, left_frozen, marker, policy, state};

/// Where the other programs are when they are not beside this one.
const LIBEXEC: &str = match option_env!("PORTREEVE_LIBEXEC") {
    Some(directory) => directory,
    None => "/usr/libexec/portreeve",
};

const SPAWNER: &str = "portreeve-spawner";

/// Seconds after which frozen filesystems are thawed by themselves, unless configured: longer than any backup holds them,
/// shorter than a guest survives being stuck.
const FREEZE_SECONDS: u32 = 600;

/// Seconds for one run of the freeze hook, unless configured.
const HOOK_SECONDS: u32 = 60;

/// Seconds without work after which a worker ends, unless configured.
pub(crate) const IDLE_SECONDS: u32 = 60;

/// What is of this start only and no business of the programs that a host has run.
const NOT_INHERITED: [&str; 5] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", daemon::STARTER];

/// An agent as it was asked for.
pub(crate) struct Launch {
    /// `argv[0]` and what follows, to be seen in `ps`.
    pub(crate) called: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) lines: Vec<Line>,
    pub(crate) policy: Bundle,
    pub(crate) audit: Audit,
    pub(crate) verbose: bool,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) state_directory: Option<PathBuf>,
    /// Of no meaning without root.
    pub(crate) uid_base: u32,
    pub(crate) idle_seconds: u32,
    /// Whether commands are served that qemu-ga does not have on Linux.
    pub(crate) extensions: bool,
    pub(crate) freeze: Freeze,
    /// How process 1 is asked; found out if not set.
    pub(crate) init: Option<Init>,
    /// Seconds that one request may move the clock; 0 for any.
    pub(crate) clock_step_seconds: u32,
    /// A daemon has a pid file.
    pub(crate) daemon: Option<PathBuf>,
    /// What a reload reads anew. None: SIGHUP ends the agent, as it ends qemu-ga.
    pub(crate) configured: Option<Configured>,
}

/// How freezing is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Freeze {
    /// Seconds after which the agent thaws by itself; 0 for never.
    pub(crate) limit_seconds: u32,
    /// Absolute.
    pub(crate) hook: Option<PathBuf>,
    /// Seconds for one run of the hook.
    pub(crate) hook_limit_seconds: u32,
}

impl Default for Freeze {
    fn default() -> Self {
        Freeze { limit_seconds: FREEZE_SECONDS, hook: None, hook_limit_seconds: HOOK_SECONDS }
    }
}

impl Freeze {
    /// With the hook that was asked for; `/dev/null` stands for none, as distributions write it.
    pub(crate) fn with_hook(self, hook: Option<PathBuf>) -> Result<Self, String> {
        let hook = hook.filter(|path| path != Path::new("/dev/null"));
        let hook = hook
            .map(|path| {
                absolute(&path).map_err(|error| format!("the freeze hook {}: {error}", path.display()))
            })
            .transpose()?;
        Ok(Freeze { hook, ..self })
    }
}

/// A channel: what all processes know of it, and how the spawner opens it.
pub(crate) struct Line {
    pub(crate) settings: ChannelSettings,
    pub(crate) opened: Opened,
    pub(crate) retry: bool,
    pub(crate) reopen: bool,
}

/// How the spawner comes by a channel.
pub(crate) enum Opened {
    Later(Method),
    /// A listening socket that was passed to us.
    Already(OwnedFd),
}

/// Starts the agent. Returns when it could not, or when it has been started as a daemon.
pub(crate) fn launch(launch: Launch) -> ExitCode {
    if launch.daemon.is_some() && daemon::starter().is_none() {
        // The daemon has no terminal to say it on. Only looked at: opening a port and closing it again is seen by the host.
        if let Some(why) = launch.lines.iter().find_map(Line::missing) {
            log(Level::Critical, why);
            return ExitCode::FAILURE;
        }
        return daemon::detach(&launch.called, &launch.arguments);
    }
    match exec(launch) {
        Ok(never) => match never {},
        Err(why) => {
            log(Level::Critical, why);
            ExitCode::FAILURE
        }
    }
}

fn exec(mut launch: Launch) -> Result<Infallible, String> {
    let files = [&launch.log_file, &launch.audit.path, &launch.daemon].into_iter().flatten();
    let thawed = launch
        .state_directory
        .as_deref()
        .and_then(|directory| left_frozen::thaw_if_needed(directory, files.map(PathBuf::as_path)));
    if let Some(path) = &launch.log_file {
        // A link is followed: `/dev/stderr` is one.
        let file = append(path, OFlag::empty())
            .map_err(|error| format!("unable to open specified log file {}: {error}", path.display()))?;
        nix::unistd::dup2_stderr(&file).map_err(|error| format!("the log: {error}"))?;
    }
    if let Some(thawed) = thawed {
        log(Level::Warning, thawed);
    }
    let executables = executables()?;
    let root = nix::unistd::geteuid().is_root();
    let uid_base = if root { launch.uid_base } else { 0 };
    let compiling = policy::start(&executables.join(Role::Compile.executable()), &launch.policy, uid_base);

    // The compiler works while this is done.
    let pid_file = match &launch.daemon {
        Some(path) => {
            let path = absolute(path).map_err(|error| format!("the pid file: {error}"))?;
            Some((daemon::lock_pid_file(&path)?, path))
        }
        None => None,
    };
    if launch.daemon.is_some() {
        launch.make_paths_absolute()?;
    }
    let state = launch.state_directory.as_deref().map(open_state).transpose()?;
    let marker = launch.state_directory.as_deref().map(marker::open).transpose()?;
    let audit::Opened {
        settings: audit_settings,
        file: audit_file,
        directory: audit_directory,
        socket,
        chain,
        plan: audit_plan,
    } = audit::open(&launch.audit)?;
    if launch.audit.if_there && audit_settings.sinks.is_empty() && launch.verbose {
        log(Level::Info, format_args!("no audit log: there is no syslog"));
    }
    let directory =
        File::open(&executables).map_err(|error| format!("{}: {error}", executables.display()))?;
    let policy = compiling.map_or_else(
        |why| {
            log(Level::Critical, &why);
            Policy::closed(why)
        },
        policy::Compiling::finish,
    );
    let channels: Vec<ChannelSettings> = launch.lines.iter().map(|line| line.settings.clone()).collect();
    let policy = policy::for_channels(policy, &launch.policy, &channels);
    if policy::is_closed(&policy) {
        log(Level::Critical, "no policy is in force: nothing but sync, ping and info is served");
    }
    let boot_id = match &marker {
        Some(marker) => marker.boot_id.clone(),
        None => marker::boot_id()?,
    };
    let frozen = marker.as_ref().is_some_and(|marker| marker.frozen);
    let settings = launch.settings(audit_settings, boot_id);
    let workers = workers(&policy, &settings);
    // Kept until the exec, which frees it at once.
    let sealed = Sealed::new(settings, policy);
    let settings = sealed.encode().map_err(|error| error.to_string())?;
    let settings = jail::sealed::from_bytes(c"portreeve-settings", &settings)
        .map_err(|error| format!("settings: {error}"))?;

    let command = launch.configured.as_ref().map(|_| own_program()).transpose()?;

    let ready = match launch.daemon {
        Some(_) => Some(daemon::leave().map_err(|error| format!("cannot daemonize: {error}"))?),
        None => None,
    };
    if launch.daemon.is_some() && launch.log_file.is_none() {
        let null =
            File::options().write(true).open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
        nix::unistd::dup2_stderr(&null).map_err(|error| format!("/dev/null: {error}"))?;
    }

    let number = |file: Option<BorrowedFd<'_>>| file.map(|file| file.as_raw_fd());
    let audit = audit_file.as_ref().map(AsFd::as_fd);
    let audit_directory = audit_directory.as_ref().map(AsFd::as_fd);
    let audit_socket = socket.as_ref().map(AsFd::as_fd);
    let chain = chain.as_ref().map(AsFd::as_fd);
    let state = state.as_ref().map(AsFd::as_fd);
    let marker = marker.as_ref().map(|marker| marker.file.as_fd());
    let ready = ready.as_ref().map(AsFd::as_fd);
    let pid = pid_file.as_ref().map(|(file, _)| file.as_fd());
    let plan = Plan {
        uid_base,
        workers,
        channels: launch.lines.iter().map(Line::channel).collect(),
        descriptors: Descriptors {
            executables: directory.as_raw_fd(),
            settings: settings.as_raw_fd(),
            log: 2,
            audit: number(audit),
            audit_directory: number(audit_directory),
            audit_socket: number(audit_socket),
            chain: number(chain),
            state: number(state),
            marker: number(marker),
            ready: number(ready),
            pid_file: number(pid),
            command: number(command.as_ref().map(AsFd::as_fd)),
        },
        audit_file: audit_plan,
        frozen,
        pid_file: pid_file.as_ref().map(|(_, path)| path.clone()),
        name: process_name(&launch.called),
        notify_socket: notify_socket(),
    };
    let plan = plan.seal().map_err(|error| error.to_string())?;

    let inherited = launch.lines.iter().filter_map(Line::descriptor);
    let others = [
        Some(directory.as_fd()),
        Some(settings.as_fd()),
        Some(plan.as_fd()),
        audit,
        audit_directory,
        audit_socket,
        chain,
        state,
        marker,
        ready,
        pid,
        command.as_ref().map(AsFd::as_fd),
    ];
    for file in others.into_iter().flatten().chain(inherited) {
        fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|error| format!("cannot hand a descriptor on: {error}"))?;
    }
    let spawner = executables.join(SPAWNER);
    let error = Command::new(&spawner)
        .arg0(&launch.called)
        .args(&launch.arguments)
        .arg(plan.as_raw_fd().to_string())
        .env_clear()
        .exec();
    Err(format!("cannot start {}: {error}", spawner.display()))
}

impl Launch {
    fn settings(&self, audit: AuditSettings, boot_id: String) -> Settings {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let inherited = |name: &OsStr| !NOT_INHERITED.iter().any(|not| name == *not);
        Settings {
            channels: self.lines.iter().map(|line| line.settings.clone()).collect(),
            audit,
            verbose: self.verbose,
            time_zone: variable("TZ"),
            os_release: variable("QGA_OS_RELEASE"),
            environment: std::env::vars_os()
                .filter(|(name, _)| inherited(name))
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .collect(),
            idle_seconds: self.idle_seconds,
            extensions: self.extensions,
            freeze: FreezeSettings {
                limit_seconds: self.freeze.limit_seconds,
                hook: self.freeze.hook.clone().map(|path| path.into_os_string().into_vec()),
                hook_limit_seconds: self.freeze.hook_limit_seconds,
                boot_id,
            },
            init: self.init,
            clock_step_seconds: self.clock_step_seconds,
            configured: self.configured.clone(),
        }
    }

    /// A daemon leaves its directory before the spawner opens the channels.
    fn make_paths_absolute(&mut self) -> Result<(), String> {
        for line in &mut self.lines {
            if let Opened::Later(
                Method::VirtioSerial { path } | Method::IsaSerial { path } | Method::UnixListen { path, .. },
            ) = &mut line.opened
            {
                *path = absolute(&*path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Line {
    fn channel(&self) -> Channel {
        let method = match &self.opened {
            Opened::Later(method) => method.clone(),
            Opened::Already(socket) => Method::Inherited { descriptor: socket.as_raw_fd() },
        };
        Channel { method, retry: self.retry, reopen: self.reopen }
    }

    /// Why the spawner will not be able to open it, as far as that shows from outside.
    fn missing(&self) -> Option<String> {
        match &self.opened {
            Opened::Later(Method::VirtioSerial { path } | Method::IsaSerial { path }) if !self.retry => {
                let error = std::fs::metadata(path).err()?;
                Some(format!("error opening channel '{}': {error}", path.display()))
            }
            _ => None,
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.opened {
            Opened::Later(_) => None,
            Opened::Already(socket) => Some(socket.as_fd()),
        }
    }
}

/// The workers that the policy, a hook and an audit log of the kernel's have something to do for; others cannot even be started.
pub(crate) fn workers(policy: &Policy, settings: &Settings) -> Vec<Role> {
    let of = |role, groups: &[Group]| groups.iter().any(|group| may_ever(policy, *group)).then_some(role);
    [
        of(Role::Query, &[Group::Query]),
        of(Role::File, &[Group::FileRead, Group::FileWrite]),
        of(Role::Net, &[Group::NetQuery]),
        of(Role::NetAdmin, &[Group::NetChange]),
        of(Role::Exec, &[Group::Exec]),
        of(Role::Fsfreeze, &[Group::Fsfreeze]),
        of(Role::Power, &[Group::Power]),
        of(Role::Clock, &[Group::Clock]),
        of(Role::Hotplug, &[Group::Hotplug]),
        of(Role::Account, &[Group::Account]),
        of(Role::Hook, &[Group::Fsfreeze]).filter(|_| settings.freeze.hook.is_some()),
        settings.audit.sinks.contains(&AuditSink::Kernel).then_some(Role::Audit),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// This program, to be executed once more by the spawner whatever lies under its name by then.
fn own_program() -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc/self/exe", flags, nix::sys::stat::Mode::empty())
        .map_err(|error| format!("/proc/self/exe: {error}"))
}

/// Beside this program when it was built or unpacked, else where the package has put them.
pub(crate) fn executables() -> Result<PathBuf, String> {
    let own = std::fs::read_link("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
    let beside = own.parent().map(Path::to_owned).filter(|directory| directory.join(SPAWNER).exists());
    match beside {
        Some(directory) => Ok(directory),
        None if Path::new(LIBEXEC).join(SPAWNER).exists() => Ok(LIBEXEC.into()),
        None => Err(format!(
            "{SPAWNER} is neither beside {} nor in {LIBEXEC}: install all programs of one build together",
            own.display()
        )),
    }
}

fn open_state(directory: &Path) -> Result<File, String> {
    let (file, warning) = state::open(directory)?;
    if let Some(warning) = warning {
        log(Level::Warning, warning);
    }
    Ok(file)
}

/// Opens a log, for its owner only: it tells what was asked.
fn append(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path)
}

/// What `pidof` and `killall` look for; the kernel keeps 15 bytes.
fn process_name(called: &OsStr) -> Vec<u8> {
    let name = Path::new(called).file_name().map_or(&b"portreeve"[..], OsStrExt::as_bytes);
    name.get(..name.len().min(15)).unwrap_or_default().to_vec()
}

/// `sd_notify(3)`: a path or an abstract name; others (vsock) are for virtual machines.
fn notify_socket() -> Vec<u8> {
    let socket = std::env::var_os("NOTIFY_SOCKET").map(OsString::into_vec).unwrap_or_default();
    if matches!(socket.first(), Some(b'/' | b'@')) && socket.len() <= 108 { socket } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compile::Source;

    fn workers_of(preset: &str) -> Vec<Role> {
        let bundle =
            Bundle { sources: vec![Source::Preset(preset.to_owned())], allow: Vec::new(), block: Vec::new() };
        workers(&compile::compile(&bundle).unwrap().policy, &Settings::default())
    }

    #[test]
    fn workers_without_anything_to_do_are_not_in_the_plan() {
        let configured = [Role::Hook, Role::Audit];
        let all = Role::ALL.into_iter().filter(|role| role.is_worker() && !configured.contains(role));
        assert_eq!(workers_of("qemu-ga"), all.collect::<Vec<_>>());
        assert_eq!(workers_of("observe"), [Role::Query, Role::Net]);
        let mut settings = Settings::default();
        settings.freeze.hook = Some(b"/hook".to_vec());
        assert_eq!(workers(&Policy::closed("bad"), &settings), []);
    }

    /// Of the workers that are as good as root, and those whose rights only arguments narrow.
    #[test]
    fn a_worker_is_in_the_plan_as_soon_as_one_rule_may_grant_its_right_and_not_before() {
        let workers_under = |rules: &str| {
            let text = format!("version = 1\n{rules}");
            let sources = vec![Source::File { name: "p.toml".to_owned(), text }];
            workers(
                &compile::compile(&Bundle { sources, allow: Vec::new(), block: Vec::new() }).unwrap().policy,
                &Settings::default(),
            )
        };
        let rest = "[[rule]]\noutcome = \"allow\"\n";
        for (group, role, condition) in [
            ("exec", Role::Exec, "program = [{ path = \"/bin/true\" }]"),
            ("account", Role::Account, "uids = [\"1000\"]"),
            ("net.change", Role::NetAdmin, "interfaces = [\"eth0\"]"),
            ("power", Role::Power, "power = [\"reboot\"]"),
            ("hotplug", Role::Hotplug, "units = [\"1\"]"),
            ("fsfreeze", Role::Fsfreeze, "mountpoints = [\"/srv\"]"),
        ] {
            let rule = |outcome: &str, condition: &str| {
                format!("[[rule]]\noutcome = \"{outcome}\"\ngroups = [\"{group}\"]\n{condition}\n")
            };
            assert_eq!(workers_under(&rule("allow", condition)), [role], "{group}");
            assert!(
                !workers_under(&(rule("deny", "") + rest)).contains(&role),
                "{group}: all of it is refused"
            );
            assert!(workers_under(&(rule("deny", condition) + rest)).contains(&role), "{group}: a part is");
        }
    }

    #[test]
    fn the_audit_worker_is_in_the_plan_where_records_go_to_the_kernel_whatever_the_policy_and_nowhere_else() {
        let mut settings = Settings::default();
        settings.audit.sinks = vec![AuditSink::File, AuditSink::Kernel];
        assert_eq!(workers(&Policy::closed("bad"), &settings), [Role::Audit]);
        settings.audit.sinks = vec![AuditSink::File, AuditSink::Journald, AuditSink::Log];
        assert_eq!(workers(&Policy::closed("bad"), &settings), []);
    }

    #[test]
    fn a_process_name_is_the_last_part_and_fits_the_kernel() {
        assert_eq!(process_name(OsStr::new("/usr/sbin/qemu-ga")), b"qemu-ga");
        assert_eq!(process_name(OsStr::new("a-name-that-is-too-long")), b"a-name-that-is-");
    }
}
