//! The system call filters: tables from `policy/seccomp`, assembled to BPF when this crate is compiled, and put on.
//!
//! Runs in every confined process as its last step. Allow-lists only: what is not named ends the process, so calls
//! that a later kernel adds, i386 calls and x32 numbers are refused without being known here.

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    reason = "runs in the compiler: what goes wrong there is an error of the build"
)]
mod assembly;

use std::borrow::Cow;
use std::io;

use seccompiler::sock_filter;

use assembly::Assembly;

/// A file of `policy/seccomp`, as people read it. The processes do not hold it, only its [`Filter`].
#[derive(Debug)]
pub struct List {
    /// File name without `.policy`.
    pub name: &'static str,
    /// Sorted by name; several rules of one name are alternatives.
    pub rules: &'static [Rule],
}

/// The same, as the kernel takes it.
#[derive(Debug)]
pub struct Filter {
    /// File name without `.policy`.
    pub name: &'static str,
    /// How many different calls it lets through, some of them with certain arguments only.
    pub calls: usize,
    program: &'static [sock_filter],
}

/// One line of a `.policy` file.
#[derive(Debug)]
pub struct Rule {
    /// As in the file.
    pub name: &'static str,
    /// On this architecture.
    pub number: libc::c_long,
    /// All must hold. Empty: allowed whatever the arguments are.
    pub conditions: &'static [Condition],
    /// Who needs it.
    pub reason: &'static str,
    /// File and line.
    pub source: &'static str,
}

/// A test of one argument's lower 32 bits; the kernel looks at no more of an int.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they must be; no others are set.
    pub value: u32,
}

impl Condition {
    /// Whether an argument passes.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the upper half does not count")]
    pub fn holds(&self, argument: u64) -> bool {
        argument as u32 & self.mask == self.value
    }
}

/// What happens to a process that makes a call it may not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It ends with SIGSYS, all threads at once.
    Kill,
    /// The call fails with EPERM. Only for the prober.
    Errno,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::unnecessary_cast,
    reason = "constants of libc have differing types; the kernel compares their lower 32 bits"
)]
mod tables {
    use super::{Assembly, Condition, Filter, List, Rule};
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}
pub use tables::{
    ACCOUNT, AUDIT, BROKER, CLOCK, COMPILE, FILE, FRONTEND, FSFREEZE, HOTPLUG, LISTS, NET, NETADMIN, POWER,
    QUERY, SPAWNER,
};

impl Filter {
    /// The instructions.
    pub(crate) fn program(&self, mismatch: Mismatch) -> Cow<'static, [sock_filter]> {
        match mismatch {
            Mismatch::Kill => Cow::Borrowed(self.program),
            Mismatch::Errno => Cow::Owned(assembly::answering(self.program)),
        }
    }
}

/// Puts the union list on the spawner, without `no_new_privs`.
///
/// What the spawner starts inherits the filter, so the list holds every role's calls and all of stage B. `no_new_privs` is
/// left alone because it would forbid the transition to each role's SELinux or AppArmor domain at its exec;
/// the kernel then wants CAP_SYS_ADMIN, which root has.
///
/// # Errors
/// The errno of `seccomp(2)`: EACCES without CAP_SYS_ADMIN, EINVAL or ENOSYS on a kernel without filters.
pub fn irrevocably_filter_spawner() -> io::Result<()> {
    let program = SPAWNER.program;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: header points to `length` instructions of `program`, which lives until the end of this function and has the
    // layout of the kernel's struct sock_filter (repr(C) in seccompiler, the same fields in libc). The kernel copies them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&header))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawner() -> impl Iterator<Item = &'static Rule> {
        LISTS.iter().filter(|list| list.name == "spawner").flat_map(|list| list.rules)
    }

    #[test]
    fn every_line_says_who_needs_it() {
        let silent: Vec<&str> = LISTS
            .iter()
            .flat_map(|list| list.rules)
            .filter(|rule| rule.reason.len() < 8)
            .map(|rule| rule.source)
            .collect();
        assert_eq!(silent, Vec::<&str>::new());
    }

    /// io_uring opens files without a system call that a filter sees; the others reach into other processes, mounts or the
    /// kernel, or make new processes.
    const NEVER: [libc::c_long; 24] = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_open_by_handle_at,
        libc::SYS_userfaultfd,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_personality,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_seccomp,
        libc::SYS_prctl,
        libc::SYS_mount,
        libc::SYS_connect,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
    ];

    #[test]
    fn no_role_may_reach_into_other_processes_mounts_or_the_kernel() {
        let forbidden: Vec<(&str, &str)> = LISTS
            .iter()
            .filter(|list| list.name != "spawner")
            .flat_map(|list| list.rules.iter().map(|rule| (list.name, rule)))
            .filter(|(_, rule)| NEVER.contains(&rule.number))
            .map(|(list, rule)| (list, rule.source))
            .collect();
        assert_eq!(forbidden, Vec::<(&str, &str)>::new());
    }

    #[test]
    fn metadata_changes_only_through_descriptors() {
        // Landlock does not see chmod, chown or xattr by path, so no filter lets them through; nor fchmodat2(AT_EMPTY_PATH).
        // fchmodat2 is missing from libc on some architectures; the number is the same on all (scripts/syscall.tbl).
        const FCHMODAT2: libc::c_long = 452;
        const PATHS: [libc::c_long; 5] =
            [libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_setxattr, libc::SYS_lsetxattr, FCHMODAT2];
        let found: Vec<&str> = LISTS
            .iter()
            .flat_map(|list| list.rules)
            .filter(|rule| PATHS.contains(&rule.number))
            .map(|rule| rule.source)
            .collect();
        assert_eq!(found, Vec::<&str>::new());
    }

    #[test]
    fn the_spawner_may_do_everything_its_children_may() {
        // A filter is inherited: what the spawner's lacks, no child can do. It has none where accounts are changed.
        let missing: Vec<&str> = LISTS
            .iter()
            .filter(|list| list.name != "account")
            .flat_map(|list| list.rules)
            .filter(|rule| {
                !spawner().any(|other| {
                    other.number == rule.number
                        && (other.conditions.is_empty() || other.conditions == rule.conditions)
                })
            })
            .map(|rule| rule.source)
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn memory_is_never_made_executable_by_a_role() {
        let conditions: Vec<&Condition> = LISTS
            .iter()
            .filter(|list| list.name != "spawner")
            .flat_map(|list| list.rules)
            .filter(|rule| matches!(rule.name, "mmap" | "mprotect"))
            .map(|rule| {
                rule.conditions.iter().find(|condition| condition.argument == 2).expect("looks at prot")
            })
            .collect();
        assert!(!conditions.is_empty());
        assert!(
            conditions.iter().all(|condition| !condition.holds(u64::from(libc::PROT_EXEC.unsigned_abs())))
        );
        assert!(
            conditions.iter().all(|condition| condition.holds(u64::from(libc::PROT_WRITE.unsigned_abs())))
        );
    }
}
