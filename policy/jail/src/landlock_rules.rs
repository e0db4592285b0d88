//! Landlock: which paths stay open to a role whatever else it can do.
//!
//! The rules are built while the process can still open directories, and put on right before the filter. Every right
//! is handled, so what no rule grants is refused; TCP and, from ABI 6 on, signals and abstract sockets to the outside as well.
//! What the kernel does not know is left out and reported, never silently.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus,
    Scope,
};

use caps::Capability;

use crate::enter::{Ground, Landlock, Root};
use crate::roles::{LandlockPaths, Row};

/// The newest ABI whose rights are asked for; Linux 6.12.
const WANTED: ABI = ABI::V6;

/// Before it, an allowed directory for writing leaves truncation of all other files open; `landlock(7)`.
pub(crate) const TRUNCATE_SINCE: i32 = 3;

/// Builds the ruleset of `row`. None if the row has none.
pub(crate) fn build(row: &Row, ground: &Ground) -> io::Result<Option<RulesetCreated>> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(WANTED)))
        .and_then(|ruleset| ruleset.scope(scopes(row)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    match row.landlock {
        LandlockPaths::Unrestricted => return Ok(None),
        LandlockPaths::Nothing => {}
        LandlockPaths::Read(paths) => {
            for path in paths.iter().map(Path::new).chain(ground.readable.iter().map(AsRef::as_ref)) {
                ruleset = allow(ruleset, path, reading())?;
            }
        }
        LandlockPaths::Folders(files) => {
            ruleset = allow(ruleset, Path::new("/"), AccessFs::ReadDir.into())?;
            for path in files {
                ruleset = allow(ruleset, Path::new(path), reading())?;
            }
        }
        LandlockPaths::Devices(paths) => {
            for path in paths {
                ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile | AccessFs::IoctlDev)?;
            }
        }
        LandlockPaths::Change(paths) => {
            for path in paths {
                ruleset = allow(ruleset, Path::new(path), reading() | AccessFs::WriteFile)?;
            }
        }
        LandlockPaths::Home => {
            if let Some(user) = &ground.user {
                ruleset = allow(ruleset, &user.home, keeping())?;
            }
        }
        LandlockPaths::PolicyRoots => {
            for root in &ground.roots {
                let mut rights = BitFlags::empty();
                if ground.files.read && root.read {
                    rights |= reading();
                }
                if ground.files.write && root.write {
                    rights |= writing();
                }
                if let Some(place) = place(root) {
                    ruleset = allow(ruleset, place, rights)?;
                }
            }
        }
    }
    Ok(Some(ruleset))
}

/// What a root's rule is attached to. The kernel ties it to what is there now, so what is there later has no right until the worker
/// starts again; but what the worker may make itself it makes in the directory above, which therefore gets the right. Not in one
/// further above: the policy would not let it make what is between.
fn place(root: &Root) -> Option<&Path> {
    let is_itself = |path: &Path| path.canonicalize().is_ok_and(|real| real == path);
    if root.path.symlink_metadata().is_ok() {
        return Some(root.path.as_path()).filter(|path| is_itself(path));
    }
    let above = root.path.parent().filter(|_| root.write && root.may_be_made)?;
    (is_itself(above) && above.is_dir()).then_some(above)
}

/// Nothing of ours signals or connects to anybody outside; but who has the right to signal init does.
fn scopes(row: &Row) -> BitFlags<Scope> {
    let all = Scope::from_all(WANTED);
    if row.capabilities.contains(&Capability::CAP_KILL) { all & !Scope::Signal } else { all }
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// Never devices, sockets or pipes, never execution, never ioctls on devices. Directories are opened to be given to an owner.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

/// A file is replaced by a new one; a directory is made.
fn keeping() -> BitFlags<AccessFs> {
    reading() | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::RemoveFile
}

/// Allows `rights` at and below `path`. What does not exist now is skipped: it gets no right.
fn allow(ruleset: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    if rights.is_empty() {
        return Ok(ruleset);
    }
    let rights = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => rights,
        // A right that only means something for directories makes a rule on a file invalid.
        Ok(_) => rights & AccessFs::from_file(WANTED),
        Err(_) => return Ok(ruleset),
    };
    let Ok(place) = PathFd::new(path) else { return Ok(ruleset) };
    ruleset.add_rule(PathBeneath::new(place, rights)).map_err(io::Error::other)
}

/// Puts the ruleset on this thread and all it will start.
pub(crate) fn irrevocably_restrict(ruleset: RulesetCreated) -> io::Result<Landlock> {
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    };
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full { abi },
        RulesetStatus::PartiallyEnforced => Landlock::Partial { abi },
        RulesetStatus::NotEnforced => Landlock::None,
    })
}
