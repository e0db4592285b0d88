//! `portreeve-spawner`: the only long-lived root process.
//!
//! It opens the channels, starts every other process from a program opened beforehand, watches them, starts them again, and
//! ends them. It trusts the plan (root wrote it) and believes the broker fixed-size messages only. It never parses text,
//! reads a channel, or lets a peer decide how much memory it takes. std and libc only.
#![cfg_attr(target_env = "gnu", no_main)]

mod channel;
mod rotate;
mod start;
mod supervise;
mod tell;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use jail::Role;
use jail::empty::Empty;
use spawner::Plan;

use crate::rotate::Log;
use crate::start::Program;
use crate::supervise::{Equipment, Reload, Supervisor};
use crate::tell::{Level, Waiting, log};

jail::main!(spawner);

fn spawner() -> i32 {
    jail::report_panics_as("spawner");
    match run() {
        Ok(status) => status,
        Err(message) => {
            log(Level::Critical, &format_args!("{message}"));
            1
        }
    }
}

fn run() -> Result<i32, String> {
    let said = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    reset_signals();
    let mut signals =
        take_signals(&[libc::SIGTERM, libc::SIGINT], None).map_err(said("cannot take signals"))?;
    let plan = read_plan()?;
    if plan.descriptors.command.is_some() {
        let all = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        signals = take_signals(&all, Some(signals)).map_err(said("cannot take SIGHUP"))?;
    }
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root != (plan.uid_base != 0) {
        return Err(
            "the plan's uid base does not fit the user: root needs one, nobody else can use one".to_owned()
        );
    }

    let descriptors = plan.descriptors;
    let log_file = take_log(descriptors.log).map_err(said("the log"))?;
    show_name(&plan.name);
    let directory = jail::take_fd(descriptors.executables).map_err(said("the directory of programs"))?;
    let settings = jail::take_fd(descriptors.settings).map_err(said("settings"))?;
    jail::sealed::verify(settings.as_fd()).map_err(said("settings"))?;
    let take = |number: Option<RawFd>| number.map(jail::take_fd).transpose();
    let audit = take(descriptors.audit).map_err(said("the audit log"))?;
    let audit_directory = take(descriptors.audit_directory).map_err(said("the audit log's directory"))?;
    let audit_socket = take(descriptors.audit_socket).map_err(said("the audit log's socket"))?;
    let chain = take(descriptors.chain).map_err(said("the audit log's chain"))?;
    let state = take(descriptors.state).map_err(said("the state file"))?;
    let marker = take(descriptors.marker).map_err(said("the marker of frozen filesystems"))?;
    tell::hold(plan.frozen);
    let ready = take(descriptors.ready).map_err(said("the ready pipe"))?;
    let command = take(descriptors.command).map_err(said("the command"))?;
    let reloads = command.as_ref().map(|_| jail::sealed::create(spawner::reloads::NAME)).transpose();
    let reloads = reloads.map_err(said("a memory file"))?;
    let pid_file = take(descriptors.pid_file).map_err(said("the pid file"))?.zip(plan.pid_file.clone());

    let empty = root.then(Empty::make).transpose().map_err(|error| {
        format!(
            "cannot make empty namespaces: {error}; the spawner needs CAP_SYS_ADMIN and CAP_SYS_CHROOT: a container or unit that \
             takes them away must run the agent as an ordinary user"
        )
    })?;
    // With one of these there is no filter: the administrator's and the distribution's programs descend from us and would inherit it.
    let filtered = root && ![Role::Exec, Role::Account, Role::Hook].iter().any(|role| plan.permits(*role));
    if !root {
        log(
            Level::Message,
            &format_args!("not started by root: no uid separation, no namespaces, no filter on the spawner"),
        );
    } else if filtered {
        jail::seccomp::irrevocably_filter_spawner().map_err(said("cannot filter the spawner"))?;
    }
    let owner = std::fs::metadata("/proc/self/exe").map_or(0, |metadata| metadata.uid());
    let programs = open_programs(&plan, &directory, owner)?;
    let reload = match command.zip(reloads) {
        Some((command, reloads)) => {
            let compiler = open_program(&directory, Role::Compile, owner)?;
            Some(Reload::new(Program::of(command, c"portreeve-recompile"), compiler, filtered, reloads))
        }
        None => None,
    };
    let null = open_null().map_err(said("/dev/null"))?;

    let equipment = Equipment {
        uid_base: plan.uid_base,
        workers: plan.workers.clone(),
        programs,
        null,
        log: log_file,
        settings,
        audit: audit.map(|file| Log::new(file, audit_directory.zip(plan.audit_file.clone()))),
        audit_socket,
        chain,
        state,
        marker,
        empty,
        signals,
    };
    let waiting = Waiting::new(ready, plan.notify_socket.clone());
    let status = Supervisor::new(plan, equipment, waiting, reload).map(Supervisor::run);
    if let Some((file, path)) = pid_file {
        remove_pid_file(file, &path);
    }
    status
}

/// The last argument is the number of the plan's descriptor. Those before it are the command line that people typed, kept for
/// `ps` and for tests that look for an option there; they are not read.
fn read_plan() -> Result<Plan, String> {
    let number = std::env::args_os().skip(1).last().and_then(|text| text.to_str()?.parse::<RawFd>().ok());
    let Some(number) = number else {
        return Err("this program is started by portreeve and takes the number of a descriptor".to_owned());
    };
    let file = jail::take_fd(number).map_err(|error| format!("the plan: {error}"))?;
    Plan::unseal(&file).map_err(|error| error.to_string())
}

/// Sets every disposition to its default.
///
/// An inherited SIG_IGN for SIGCHLD would let the kernel collect our children behind our back, and whatever is
/// ignored here would stay ignored in every child, exec or not. SIGPIPE stays ignored, as `jail::main!` has set it.
fn reset_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGPIPE {
            // SAFETY: SIG_DFL is no function of ours. It fails for SIGKILL, SIGSTOP and libc's own signals, which have no other.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Turns these signals into a descriptor: `known`, if there is one already.
fn take_signals(signals: &[libc::c_int], known: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let number = known.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: sigemptyset fills the set before the others use it; all of them are given live locals, and there is one thread.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(number, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    match known {
        _ if result < 0 => Err(io::Error::last_os_error()),
        // The same number: the set behind it is another.
        Some(known) => Ok(known),
        // SAFETY: the kernel has just made it for us.
        None => Ok(unsafe { OwnedFd::from_raw_fd(result) }),
    }
}

/// Duplicates the log for the broker; our own lines go to it as well, through descriptor 2.
fn take_log(number: RawFd) -> io::Result<OwnedFd> {
    let file = if number == 2 { io::stderr().as_fd().try_clone_to_owned()? } else { jail::take_fd(number)? };
    if number != 2 {
        // SAFETY: dup3 takes numbers; portreeve has made sure that 2 is open, and std uses it as a number only.
        if unsafe { libc::dup3(file.as_raw_fd(), 2, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

fn show_name(name: &[u8]) {
    if let Ok(name) = std::ffi::CString::new(name)
        && !name.is_empty()
    {
        // SAFETY: PR_SET_NAME reads a C string of at most 16 bytes and cuts what is longer.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Opens what the plan permits. Where the policy can be reloaded, whatever else is installed, too: programs of one build belong
/// together, and by the next reload others may lie there.
fn open_programs(plan: &Plan, directory: &OwnedFd, owner: u32) -> Result<Vec<(Role, Program)>, String> {
    let mut programs = Vec::with_capacity(Role::ALL.len());
    for role in Role::ALL {
        if matches!(role, Role::Broker | Role::Frontend) || plan.permits(role) {
            programs.push((role, open_program(directory, role, owner)?));
        } else if role.is_worker() && plan.descriptors.command.is_some() {
            programs.extend(open_program(directory, role, owner).ok().map(|program| (role, program)));
        }
    }
    Ok(programs)
}

fn open_program(directory: &OwnedFd, role: Role, owner: u32) -> Result<Program, String> {
    Program::open(directory, role, owner)
        .map_err(|error| format!("cannot open {}: {error}", role.executable()))
}

fn open_null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Removes the pid file if it is still ours: we hold its lock, and the path still leads to it. A second instance that fails
/// to start must not take away the first one's.
fn remove_pid_file(file: OwnedFd, path: &PathBuf) {
    // SAFETY: flock is plain numbers, for which all zero bits mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::MaybeUninit::zeroed().assume_init() };
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default();
    // SAFETY: F_SETLK reads the flock it is given, alive across the call. It succeeds for who holds the lock already.
    let ours = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) } == 0;
    let file = std::fs::File::from(file);
    let same = match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(opened), Ok(there)) => opened.dev() == there.dev() && opened.ino() == there.ino(),
        _ => false,
    };
    if ours && same {
        // Gone already, or on a filesystem that is read-only by now: nothing to be done about it here.
        let _ = std::fs::remove_file(path);
    }
}
