//! Stage B: how a process gives up its rights, each step once and none of them back.
//!
//! Runs in every role, first thing in `main`, single-threaded, before a byte is read. Trusts its arguments and descriptors
//! (the spawner's). Never goes on after a failed step: half a jail can't be repaired, so the caller ends the process.
//!
//! ```text
//!  B1 build what needs files   B5 securebits            B9  parent-death signal, parent still there?
//!  B2 namespaces, empty root   B6 groups, gid, uid      B10 W^X, no_new_privs
//!  B3 limits                   B7 capabilities; verify  B11 Landlock
//!  B4 bounding set             B8 not dumpable          B12 system call filter
//! ```
//!
//! The order is the point: mounts before Landlock, which forbids them; the bounding set before the ids, which take the right to
//! change it; dumpable and the parent-death signal after the ids, which reset both (`prctl(2)`); the filter last, so that it
//! holds no call of this file.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, chdir, getppid, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::Role;
use crate::empty::{self, empty_root};
use crate::landlock_rules::{self, TRUNCATE_SINCE};
use crate::roles::{Network, RootView, Row, row};
use crate::seccomp::Mismatch;

/// What a process stands on when it enters its jail: what the spawner said, and what its own settings add.
#[derive(Clone, Debug)]
pub struct Ground {
    /// First user id of ours. 0: not started by root, ids stay as they are.
    pub uid_base: u32,
    /// Which of several processes of one role; the channel's index for a frontend.
    pub instance: u16,
    /// Whether it may run without Landlock. None: as the role's row says.
    pub landlock: Option<Need>,
    /// More paths the query worker may read. Those that do not exist are skipped.
    pub readable: Vec<PathBuf>,
    /// What the file worker is for.
    pub files: FileRights,
    /// Where the file worker may do it. Those that do not exist are skipped.
    pub roots: Vec<Root>,
    /// Who [`Role::Keys`] becomes; None for all others.
    pub user: Option<User>,
    /// Whether the spawner has put this process into the empty network already.
    pub in_empty_network: bool,
    /// Whether it was born with the namespaces of the empty root ([`empty::BORN_WITH`]), to enter them itself: an exec from there
    /// would have no path that AppArmor could find a profile by.
    pub with_empty_root: bool,
    /// Who started us, looked up before anything else: if it changes, the spawner has died meanwhile.
    parent: i32,
}

/// Argument of a process that the spawner has put into the empty network.
pub const IN_EMPTY_NETWORK: &str = "in-empty-network";

/// Argument of a process that is born with the namespaces of the empty root, behind the other one.
pub const WITH_EMPTY_ROOT: &str = "with-empty-root";

/// Whether a process may run with less than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No.
    Required,
    /// Yes; what is missing is reported.
    BestEffort,
}

/// What the policy lets the file worker do at all. It decides which capabilities are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRights {
    /// Read files and list directories.
    pub read: bool,
    /// Write, create, remove, change owner and mode.
    pub write: bool,
}

/// A path at and below which the file worker works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Absolute. Through a symbolic link it leads nowhere: files are never seen at such a path.
    pub path: PathBuf,
    /// Whether to read files and list directories.
    pub read: bool,
    /// Whether to write, make and remove.
    pub write: bool,
    /// Whether the path itself may be made, if it is not there. What is made below the directory above it is then up to the worker.
    pub may_be_made: bool,
}

/// A user of the system, as `/etc/passwd` and `/etc/group` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Never 4294967295, which the kernel takes for "leave it as it is" (`setresuid(2)`).
    pub uid: u32,
    /// The user's own group; never 4294967295.
    pub gid: u32,
    /// Other groups; never 4294967295.
    pub groups: Vec<u32>,
    /// Absolute.
    pub home: PathBuf,
}

impl User {
    /// The words that [`Ground::from_arguments`] reads for [`Role::Keys`]: uid, gid, other groups, home.
    #[must_use]
    pub fn arguments(&self) -> [OsString; 4] {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() { "-".to_owned() } else { groups.join(",") };
        [self.uid.to_string().into(), self.gid.to_string().into(), groups.into(), self.home.clone().into()]
    }

    /// None if a number is not one that a user can have, or the home is not absolute.
    fn from_arguments(words: &[OsString]) -> Option<Self> {
        let [uid, gid, groups, home] = words else { return None };
        let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let groups = match groups.to_str()? {
            "-" => Vec::new(),
            groups => groups.split(',').map(id).collect::<Option<_>>()?,
        };
        let home = PathBuf::from(home);
        home.is_absolute().then_some(())?;
        Some(User { uid: id(uid.to_str()?)?, gid: id(gid.to_str()?)?, groups, home })
    }
}

impl Ground {
    /// Makes the ground of one process. Reads who the parent is: call it early in `main`.
    #[must_use]
    pub fn new(uid_base: u32, instance: u16) -> Self {
        Self {
            uid_base,
            instance,
            landlock: None,
            readable: Vec::new(),
            files: FileRights::default(),
            roots: Vec::new(),
            user: None,
            in_empty_network: false,
            with_empty_root: false,
            parent: getppid().as_raw(),
        }
    }

    /// Reads `argv = [executable, UID_BASE, INSTANCE]`, as the spawner sets it, with [`IN_EMPTY_NETWORK`] and [`WITH_EMPTY_ROOT`] behind
    /// them where they hold; for [`Role::Keys`] [`User::arguments`]. Call it first in `main`.
    ///
    /// # Errors
    /// [`Step::Arguments`] if there are not two decimal numbers that fit, or something else behind them, or not a user.
    pub fn from_arguments(role: Role) -> Result<Self, EnterError> {
        let mut arguments = std::env::args_os().skip(1);
        if role == Role::Keys {
            let words: Vec<OsString> = arguments.collect();
            let user = User::from_arguments(&words).ok_or_else(|| EnterError {
                role,
                step: Step::Arguments,
                cause: io::Error::from_raw_os_error(libc::EINVAL),
                advice: "this program is started by portreeve-account and takes a user's ids, groups and home",
            })?;
            return Ok(Self { user: Some(user), ..Self::new(0, 0) });
        }
        let mut number = || arguments.next().and_then(|text| text.to_str()?.parse::<u32>().ok());
        let uid_base = number();
        let instance = number().and_then(|instance| u16::try_from(instance).ok());
        let mut words = arguments.peekable();
        let in_empty_network = words.next_if(|word| word == IN_EMPTY_NETWORK).is_some();
        let with_empty_root = words.next_if(|word| word == WITH_EMPTY_ROOT).is_some();
        match (uid_base, instance, words.next()) {
            (Some(uid_base), Some(instance), None) => {
                Ok(Self { in_empty_network, with_empty_root, ..Self::new(uid_base, instance) })
            }
            _ => Err(EnterError {
                role,
                step: Step::Arguments,
                cause: io::Error::from_raw_os_error(libc::EINVAL),
                advice: "this program is started by portreeve-spawner and takes a uid base and an instance number",
            }),
        }
    }
}

/// What really holds in this process from now on. Goes into its READY message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// What Landlock enforces.
    pub landlock: Landlock,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Permitted capabilities, one bit each by the number of linux/capability.h.
    pub capabilities: u64,
    /// The user id.
    pub uid: u32,
    /// Namespaces of its own: of `mnt`, `ipc`, `uts`, `net`.
    pub namespaces: Vec<&'static str>,
    /// What was asked for and is not there, in words for the log. Empty when the jail is whole.
    pub missing: Vec<&'static str>,
}

/// What Landlock enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All that was asked for. `abi` is the kernel's.
    Full {
        /// Landlock ABI, 1 to 9.
        abi: i32,
    },
    /// What this kernel knows.
    Partial {
        /// Landlock ABI, 1 to 9.
        abi: i32,
    },
    /// Nothing.
    None,
}

/// Where entering the jail stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The arguments.
    Arguments,
    /// B1: filter and ruleset could not be built, or a second thread was there.
    Build,
    /// B2
    Namespaces,
    /// B3
    Limits,
    /// B4
    BoundingSet,
    /// B5
    Securebits,
    /// B6
    Ids,
    /// B7
    Capabilities,
    /// B8
    Dumpable,
    /// B9: also when the spawner has died meanwhile.
    ParentDeath,
    /// B10
    NoNewPrivileges,
    /// B11
    Landlock,
    /// B12
    Seccomp,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arguments => "arguments",
            Self::Build => "B1 (build)",
            Self::Namespaces => "B2 (namespaces)",
            Self::Limits => "B3 (limits)",
            Self::BoundingSet => "B4 (bounding set)",
            Self::Securebits => "B5 (securebits)",
            Self::Ids => "B6 (ids)",
            Self::Capabilities => "B7 (capabilities)",
            Self::Dumpable => "B8 (dumpable)",
            Self::ParentDeath => "B9 (parent)",
            Self::NoNewPrivileges => "B10 (no_new_privs)",
            Self::Landlock => "B11 (Landlock)",
            Self::Seccomp => "B12 (seccomp)",
        })
    }
}

/// A jail that could not be entered. The process has lost an unknown part of its rights and must end.
#[derive(Debug)]
pub struct EnterError {
    /// Whose jail.
    pub role: Role,
    /// Where it stopped.
    pub step: Step,
    /// The errno, or what a library said.
    pub cause: io::Error,
    /// What an administrator can do about it.
    pub advice: &'static str,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: cannot enter the jail at step {}: {}; {}",
            self.role, self.step, self.cause, self.advice
        )
    }
}

impl std::error::Error for EnterError {}

/// Gives up everything that the row of `role` does not keep, for good, and returns what really holds.
///
/// `before_filter` runs after Landlock and before the filter: threads of a role that may have some are started there, and the
/// filter is then put on all of them at once. For the other roles it should do nothing that leaves a thread.
///
/// # Errors
/// [`EnterError`] with the step that failed. The caller must end the process, best with
/// [`exit_now`](crate::exit_now).
pub fn enter(role: Role, ground: &Ground, before_filter: impl FnOnce()) -> Result<Entered, EnterError> {
    enter_with(role, ground, Some(Mismatch::Kill), before_filter)
}

pub(crate) fn enter_with(
    role: Role,
    ground: &Ground,
    mismatch: Option<Mismatch>,
    before_filter: impl FnOnce(),
) -> Result<Entered, EnterError> {
    let row = row(role);
    let failed = |step, advice| move |cause| EnterError { role, step, cause, advice };
    let root = Uid::effective().is_root();
    let mut entered = Entered {
        landlock: Landlock::None,
        seccomp: false,
        capabilities: 0,
        uid: Uid::effective().as_raw(),
        namespaces: Vec::new(),
        missing: Vec::new(),
    };

    let ids = new_ids(row, ground, root).map_err(failed(
        Step::Ids,
        "start the agent as root with a uid base, or as an ordinary user without one",
    ))?;
    if !row.confined {
        not_dumpable().map_err(failed(Step::Dumpable, ADVICE_KERNEL))?;
        die_with_parent(row, ground).map_err(failed(Step::ParentDeath, ADVICE_PARENT))?;
        entered.capabilities = permitted().map_err(failed(Step::Capabilities, ADVICE_KERNEL))?;
        before_filter();
        return Ok(entered);
    }

    // B1. Later steps take the files away that these need.
    only_one_thread()
        .map_err(failed(Step::Build, "a thread was started before the jail: a bug, please report it"))?;
    let filter = row.seccomp.zip(mismatch).map(|(filter, mismatch)| filter.program(mismatch));
    let ruleset = landlock_rules::build(row, ground).map_err(failed(Step::Build, ADVICE_LANDLOCK))?;
    warm_up();

    // B2
    if root {
        enter_namespaces(row, ground, &mut entered.namespaces).map_err(failed(
            Step::Namespaces,
            "the spawner needs CAP_SYS_ADMIN: a container or unit that takes it away must run the agent as an ordinary user",
        ))?;
    } else {
        entered.missing.push("namespaces");
    }

    // B3
    limit(row, root).map_err(failed(Step::Limits, ADVICE_KERNEL))?;
    if row.limits.nothing_else && !row.threads {
        no_processes().map_err(failed(Step::Limits, ADVICE_KERNEL))?;
    }

    // B4 to B7
    let kept = kept_capabilities(row, ground);
    if let Some(ids) = &ids {
        drop_bounding_set(&kept).map_err(failed(Step::BoundingSet, ADVICE_CAPABILITIES))?;
        lock_securebits().map_err(failed(Step::Securebits, ADVICE_CAPABILITIES))?;
        become_user(ids).map_err(failed(Step::Ids, ADVICE_CAPABILITIES))?;
        keep_only(&kept).map_err(failed(Step::Capabilities, ADVICE_CAPABILITIES))?;
        verify_no_way_back(ids)
            .map_err(failed(Step::Capabilities, "rights could be taken back: not going on"))?;
        entered.uid = ids.uid;
    } else {
        if ground.user.is_none() {
            entered.missing.push("user id of its own");
        }
        keep_only(&CapsHashSet::new()).map_err(failed(Step::Capabilities, ADVICE_CAPABILITIES))?;
        if !kept.is_empty() {
            entered.missing.push("capabilities");
        }
    }
    entered.capabilities = permitted().map_err(failed(Step::Capabilities, ADVICE_KERNEL))?;

    // B8 to B10
    not_dumpable().map_err(failed(Step::Dumpable, ADVICE_KERNEL))?;
    die_with_parent(row, ground).map_err(failed(Step::ParentDeath, ADVICE_PARENT))?;
    if !refuse_executable_memory().map_err(failed(Step::NoNewPrivileges, ADVICE_KERNEL))? {
        entered.missing.push("memory-deny-write-execute (Linux 6.3)");
    }
    no_new_privileges().map_err(failed(Step::NoNewPrivileges, ADVICE_KERNEL))?;

    // B11
    if let Some(ruleset) = ruleset {
        entered.landlock =
            landlock_rules::irrevocably_restrict(ruleset).map_err(failed(Step::Landlock, ADVICE_LANDLOCK))?;
    }
    judge_landlock(row, ground, &mut entered).map_err(failed(Step::Landlock, ADVICE_LANDLOCK))?;

    before_filter();
    if row.limits.nothing_else && row.threads {
        no_processes().map_err(failed(Step::Limits, ADVICE_KERNEL))?;
    }

    // B12
    if let Some(filter) = filter {
        let applied = if row.threads {
            seccompiler::apply_filter_all_threads(&filter)
        } else {
            seccompiler::apply_filter(&filter)
        };
        applied.map_err(io::Error::other).map_err(failed(Step::Seccomp, ADVICE_KERNEL))?;
        entered.seccomp = true;
    }
    Ok(entered)
}

const ADVICE_KERNEL: &str = "the kernel lacks a feature that Linux 5.13 and later have";
const ADVICE_PARENT: &str = "the spawner has ended";
const ADVICE_CAPABILITIES: &str =
    "the spawner needs CAP_SETPCAP, CAP_SETUID and CAP_SETGID: check CapabilityBoundingSet= of its unit";
const ADVICE_LANDLOCK: &str =
    "boot with landlock in the lsm= list, or say landlock = \"best-effort\" in the configuration";

/// What a process becomes.
#[derive(Debug)]
struct Ids {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// The ids to become. None when there is nothing to become: an ordinary user's processes, or a role that stays root.
fn new_ids(row: &Row, ground: &Ground, root: bool) -> io::Result<Option<Ids>> {
    if (row.role == Role::Keys) != ground.user.is_some() {
        return Err(io::Error::other(
            "a user to become, and a role that becomes none, or the other way round",
        ));
    }
    if let Some(user) = &ground.user {
        // Left as they are, they would be root's.
        if [user.uid, user.gid].iter().chain(&user.groups).any(|id| *id == u32::MAX) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        return match root {
            true => Ok(Some(Ids { uid: user.uid, gid: user.gid, groups: user.groups.clone() })),
            false if Uid::effective().as_raw() == user.uid => Ok(None),
            false => Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
    }
    match (root, ground.uid_base) {
        // Root without capabilities still owns /etc/shadow and /proc/sys.
        (true, 0) if row.confined => Err(io::Error::other("started by root, but without a uid base")),
        (true, base) if row.confined => row
            .role
            .uid(base, ground.instance)
            .map(|id| Some(Ids { uid: id, gid: id, groups: Vec::new() }))
            .ok_or_else(|| io::Error::other("the uid base leaves no room")),
        (false, base) if base != 0 => Err(io::Error::from_raw_os_error(libc::EPERM)),
        _ => Ok(None),
    }
}

fn only_one_thread() -> io::Result<()> {
    // A folder's links are itself, its entry, and one for each folder in it: here, for each thread (proc_task_getattr of
    // fs/proc/base.c). Reading `status` for the same number takes ten times as long.
    match std::fs::metadata("/proc/self/task")?.nlink() {
        3 => Ok(()),
        links => Err(io::Error::other(format!("{} threads", links.saturating_sub(2)))),
    }
}

/// Makes std fetch its random keys now: from a kernel that has just booted they can take a while.
fn warm_up() {
    let keys: std::collections::HashMap<u8, u8> = std::collections::HashMap::new();
    drop(std::hint::black_box(keys));
}

fn enter_namespaces(row: &Row, ground: &Ground, entered: &mut Vec<&'static str>) -> io::Result<()> {
    entered.push("ipc");
    if row.own_uts {
        entered.push("uts");
    }
    if row.network == Network::Empty {
        entered.push("net");
    }
    if row.root == RootView::Empty {
        entered.push("mnt");
    }
    // The spawner has made the empty ones, once for all; who was not given them makes its own: `portreeve` starts the compiler,
    // tests start single roles. The words are the spawner's, who could as well have started another program; looking in /proc
    // costs as much as half of B2.
    let mut flags = CloneFlags::empty();
    if row.network == Network::Empty && !ground.in_empty_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    let shared = ground.with_empty_root && row.root == RootView::Empty;
    if !shared {
        flags |= CloneFlags::CLONE_NEWIPC;
        flags.set(CloneFlags::CLONE_NEWUTS, row.own_uts);
        flags.set(CloneFlags::CLONE_NEWNS, row.root == RootView::Empty);
    }
    if !flags.is_empty() {
        unshare(flags)?;
    }
    if ground.with_empty_root {
        for (number, kind) in empty::BORN_WITH.into_iter().zip(empty::KINDS) {
            let namespace = crate::take_fd(number)?;
            if shared && (kind != CloneFlags::CLONE_NEWUTS || row.own_uts) {
                setns(namespace, kind)?;
            }
        }
    } else if row.root == RootView::Empty {
        empty_root()?;
    }
    if row.root != RootView::Empty && row.landlock != crate::roles::LandlockPaths::PolicyRoots {
        // The file worker's clients use relative paths; nobody else's working directory should pin a mount.
        chdir("/")?;
    }
    Ok(())
}

fn limit(row: &Row, root: bool) -> io::Result<()> {
    let limits = row.limits;
    if limits.nothing_else {
        for resource in [Resource::RLIMIT_CORE, Resource::RLIMIT_MSGQUEUE, Resource::RLIMIT_RTPRIO] {
            setrlimit(resource, 0, 0)?;
        }
    }
    let wanted = [
        (Resource::RLIMIT_NOFILE, limits.descriptors),
        (Resource::RLIMIT_FSIZE, limits.file_size),
        (Resource::RLIMIT_DATA, limits.data),
    ];
    for (resource, value) in wanted {
        if let Some(value) = value {
            // Only root may raise a hard limit; for anybody else the lower one stays.
            let value = if root { value } else { value.min(getrlimit(resource)?.1) };
            setrlimit(resource, value, value)?;
        }
    }
    Ok(())
}

/// No new process or thread. Counts for each user id, so an ordinary user's other processes do not matter: 0 is 0.
/// CAP_SYS_ADMIN and CAP_SYS_RESOURCE are exempt (`getrlimit(2)`); the filter, which knows no fork, is what counts.
fn no_processes() -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NPROC, 0, 0)?)
}

fn kept_capabilities(row: &Row, ground: &Ground) -> CapsHashSet {
    row.capabilities
        .iter()
        .copied()
        .filter(|capability| {
            row.role != Role::File
                || ground.files.write
                || (ground.files.read && *capability == Capability::CAP_DAC_READ_SEARCH)
        })
        .collect()
}

/// By number, not by a crate's list of names: a capability of a later kernel goes, too.
fn drop_bounding_set(kept: &CapsHashSet) -> io::Result<()> {
    for number in (0..64u8).filter(|number| !kept.iter().any(|capability| capability.index() == *number)) {
        // SAFETY: PR_CAPBSET_DROP takes one number and answers EINVAL for one that it does not know.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) }) {
            // They are numbered without gaps, linux/capability.h: there are no more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Being uid 0 or becoming it means nothing to capabilities any more, and B6 leaves them alone.
fn lock_securebits() -> io::Result<()> {
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED;
    // SAFETY: PR_SET_SECUREBITS takes one number and changes flags of this thread, the only one.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::c_long::from(bits), 0, 0, 0) })
}

fn become_user(ids: &Ids) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    let others: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&others)?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    let (users, groups) = (getresuid()?, getresgid()?);
    if [users.real, users.effective, users.saved] != [user; 3]
        || [groups.real, groups.effective, groups.saved] != [group; 3]
    {
        return Err(io::Error::other("not all ids have changed"));
    }
    Ok(())
}

fn keep_only(kept: &CapsHashSet) -> io::Result<()> {
    let nothing = CapsHashSet::new();
    // The crate's own clear() of the ambient set does the same; kernels before 4.3 have none and refuse it.
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &nothing).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &nothing).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, kept).map_err(io::Error::other)?;
    let wanted = kept.iter().fold(0, |mask, capability| mask | capability.bitmask());
    if permitted()? == wanted { Ok(()) } else { Err(io::Error::other("not all capabilities have gone")) }
}

/// Permitted capabilities by number, those unknown to the crate included.
fn permitted() -> io::Result<u64> {
    /// linux/capability.h: _LINUX_CAPABILITY_VERSION_3, two sets of 32 bits.
    #[repr(C)]
    struct Header {
        version: u32,
        process: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Set {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: 0x2008_0522, process: 0 };
    let mut sets = [Set::default(); 2];
    // SAFETY: version 3 of capget(2) writes two sets of three u32 at the second pointer and may write the version at the first;
    // both point to live locals of exactly these layouts.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = sets.map(|set| u64::from(set.permitted));
    Ok(high << 32 | low)
}

/// Tries to get back what was given up: every attempt must fail (OpenSSH does so in uidswap.c, permanently_set_uid).
/// Root's ids; where they are its own, since it works in root's home, somebody else's.
fn verify_no_way_back(ids: &Ids) -> io::Result<()> {
    let other = |own: u32| if own == 0 { 1 } else { 0 };
    let others = (Uid::from_raw(other(ids.uid)), Gid::from_raw(other(ids.gid)));
    let own = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    let attempts = [
        setresuid(others.0, own.0, own.0),
        setresuid(own.0, others.0, own.0),
        setresuid(own.0, own.0, others.0),
        setresgid(others.1, own.1, own.1),
        setresgid(own.1, others.1, own.1),
        setresgid(own.1, own.1, others.1),
        setgroups(&[others.1]),
    ];
    if attempts.iter().any(Result::is_ok) { Err(io::Error::other("ids came back")) } else { Ok(()) }
}

/// After exec, which sets it to 1, and after the ids, which may change it; `prctl(2)`, PR_SET_DUMPABLE.
fn not_dumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one number and changes a flag of this process.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// After the ids, which clear it; `prctl(2)`, PR_SET_PDEATHSIG.
fn die_with_parent(row: &Row, ground: &Ground) -> io::Result<()> {
    // 0 takes back what stage A has set for every child.
    let signal = if row.dies_with_spawner { libc::SIGKILL } else { 0 };
    let signal = libc::c_ulong::from(signal.unsigned_abs());
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and changes a field of this thread.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) })?;
    // If it died before the call, nobody will send the signal.
    if getppid().as_raw() == ground.parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// False on a kernel that does not know it.
fn refuse_executable_memory() -> io::Result<bool> {
    let flags = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    // SAFETY: PR_SET_MDWE takes one number, three zeros, and changes a flag of this process.
    match check(unsafe { libc::prctl(libc::PR_SET_MDWE, flags, 0, 0, 0) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(false),
        result => result.map(|()| true),
    }
}

fn no_new_privileges() -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes 1 and three zeros, and changes a flag of this thread, the only one.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

fn judge_landlock(row: &Row, ground: &Ground, entered: &mut Entered) -> io::Result<()> {
    let required = match ground.landlock {
        Some(need) => need == Need::Required,
        None => row.landlock_required,
    };
    match entered.landlock {
        Landlock::Full { .. } => Ok(()),
        Landlock::Partial { abi } => {
            // Who may write everywhere may truncate everywhere: only a narrower policy needs what older kernels cannot do.
            let narrow = !ground.roots.iter().any(|root| root.write && root.path.as_os_str() == "/");
            let writes = row.role == Role::File && ground.files.write && narrow;
            if required && writes && abi < TRUNCATE_SINCE {
                return Err(io::Error::other(
                    "this kernel's Landlock cannot restrict truncation (Linux 6.2)",
                ));
            }
            entered.missing.push("newer Landlock rights");
            Ok(())
        }
        Landlock::None if required => Err(io::Error::other("Landlock is not available")),
        Landlock::None => {
            entered.missing.push("Landlock");
            Ok(())
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_worker_that_only_reads_keeps_one_capability() {
        let mut ground = Ground::new(1_900_000_000, 0);
        ground.files = FileRights { read: true, write: false };
        let kept = kept_capabilities(row(Role::File), &ground);
        assert_eq!(kept, CapsHashSet::from([Capability::CAP_DAC_READ_SEARCH]));
    }

    #[test]
    fn a_file_worker_without_any_right_keeps_no_capability() {
        let kept = kept_capabilities(row(Role::File), &Ground::new(1_900_000_000, 0));
        assert_eq!(kept, CapsHashSet::new());
    }

    /// Debian 12 has Linux 6.1, whose Landlock is of ABI 2.
    #[test]
    fn a_landlock_that_knows_no_truncation_is_enough_where_everything_may_be_written() {
        let judged = |root: &str| {
            let mut ground = Ground::new(1_900_000_000, 0);
            ground.files = FileRights { read: true, write: true };
            ground.roots = vec![Root { path: root.into(), read: true, write: true, may_be_made: false }];
            let mut entered = Entered {
                landlock: Landlock::Partial { abi: 2 },
                seccomp: false,
                capabilities: 0,
                uid: 0,
                namespaces: Vec::new(),
                missing: Vec::new(),
            };
            judge_landlock(row(Role::File), &ground, &mut entered).map(|()| entered.missing)
        };
        assert_eq!(judged("/").expect("nothing is to be restricted"), ["newer Landlock rights"]);
        assert!(judged("/srv").is_err());
    }

    #[test]
    fn root_without_a_uid_base_does_not_enter() {
        let error = new_ids(row(Role::Query), &Ground::new(0, 0), true).expect_err("would stay root");
        assert_eq!(error.to_string(), "started by root, but without a uid base");
    }

    #[test]
    fn an_ordinary_user_with_a_uid_base_does_not_enter() {
        let error =
            new_ids(row(Role::Query), &Ground::new(1_900_000_000, 0), false).expect_err("cannot become it");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    fn user(uid: u32, gid: u32) -> Ground {
        let user = User { uid, gid, groups: vec![4, 27], home: "/home/u".into() };
        Ground { user: Some(user), ..Ground::new(0, 0) }
    }

    #[test]
    fn a_user_is_become_by_root_only_and_by_one_role_only() {
        let ids = new_ids(row(Role::Keys), &user(1000, 100), true).expect("root may").expect("they change");
        assert_eq!((ids.uid, ids.gid, ids.groups), (1000, 100, vec![4, 27]));
        assert!(new_ids(row(Role::Keys), &Ground::new(1_900_000_000, 0), true).is_err());
        assert!(new_ids(row(Role::Query), &user(1000, 100), true).is_err());
        let error = new_ids(row(Role::Keys), &user(u32::MAX - 7, 100), false).expect_err("not this user");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_number_that_leaves_ids_as_they_are_is_nobodys() {
        for ground in [user(u32::MAX, 100), user(1000, u32::MAX)] {
            let error = new_ids(row(Role::Keys), &ground, true).expect_err("would stay root");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        let words = |words: [&str; 4]| User::from_arguments(&words.map(OsString::from));
        assert_eq!(words(["4294967295", "1", "-", "/"]), None);
        assert_eq!(words(["-1", "1", "-", "/"]), None);
        assert_eq!(words(["1", "1", "4294967295", "/"]), None);
        assert_eq!(words(["1", "1", "", "/"]), None);
        assert_eq!(words(["1", "1", "-", "home"]), None);
    }

    #[test]
    fn a_user_is_read_back_from_its_arguments() {
        for groups in [vec![], vec![7], vec![4, 27]] {
            let user = User { uid: 1000, gid: 0, groups, home: "/home/a b".into() };
            assert_eq!(User::from_arguments(&user.arguments()), Some(user));
        }
    }

    #[test]
    fn an_error_says_who_where_why_and_what_to_do() {
        let error = EnterError {
            role: Role::File,
            step: Step::Landlock,
            cause: io::Error::other("Landlock is not available"),
            advice: ADVICE_LANDLOCK,
        };
        assert_eq!(
            error.to_string(),
            "file: cannot enter the jail at step B11 (Landlock): Landlock is not available; boot with landlock in the \
             lsm= list, or say landlock = \"best-effort\" in the configuration"
        );
    }
}
