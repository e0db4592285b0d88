//! The system call filters: tables from `policy/seccomp`, compiled to BPF and put on.
//!
//! Runs in every confined process as its last step. Allow-lists only: what is not named ends the process, so calls
//! that a later kernel adds, i386 calls and x32 numbers are refused without being known here.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The system calls of one role.
#[derive(Debug)]
pub struct List {
    /// File name without `.policy`.
    pub name: &'static str,
    /// Sorted by name; several rules of one name are alternatives.
    pub rules: &'static [Rule],
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

/// A test of one argument. Comparisons are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    /// Whether all 64 bits count. The kernel looks at 32 bits of an int, so most tests do, too.
    pub wide: bool,
    /// How it is compared.
    pub test: Test,
    /// With what.
    pub value: u64,
}

/// How an argument is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `argument & mask == value`
    MaskedEqual(u64),
}

impl Condition {
    /// Whether an argument passes.
    #[must_use]
    pub fn holds(&self, argument: u64) -> bool {
        let argument = if self.wide { argument } else { argument & u64::from(u32::MAX) };
        match self.test {
            Test::Equal => argument == self.value,
            Test::NotEqual => argument != self.value,
            Test::Less => argument < self.value,
            Test::LessOrEqual => argument <= self.value,
            Test::Greater => argument > self.value,
            Test::GreaterOrEqual => argument >= self.value,
            Test::MaskedEqual(mask) => argument & mask == self.value & mask,
        }
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
    use super::{Condition, List, Rule, Test};
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}
pub use tables::{
    ACCOUNT, BROKER, CLOCK, COMPILE, FILE, FRONTEND, FSFREEZE, HOTPLUG, NET, NETADMIN, POWER, QUERY, SPAWNER,
};

/// Compiles a list to BPF.
pub(crate) fn compile(list: &List, mismatch: Mismatch) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in list.rules {
        let alternatives = rules.entry(rule.number).or_default();
        if rule.conditions.is_empty() {
            continue;
        }
        let conditions = rule
            .conditions
            .iter()
            .map(|condition| {
                let length = if condition.wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
                let operator = match condition.test {
                    Test::Equal => SeccompCmpOp::Eq,
                    Test::NotEqual => SeccompCmpOp::Ne,
                    Test::Less => SeccompCmpOp::Lt,
                    Test::LessOrEqual => SeccompCmpOp::Le,
                    Test::Greater => SeccompCmpOp::Gt,
                    Test::GreaterOrEqual => SeccompCmpOp::Ge,
                    Test::MaskedEqual(mask) => SeccompCmpOp::MaskedEq(mask),
                };
                SeccompCondition::new(condition.argument, length, operator, condition.value)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        alternatives.push(SeccompRule::new(conditions).map_err(io::Error::other)?);
    }
    let refuse = match mismatch {
        Mismatch::Kill => SeccompAction::KillProcess,
        Mismatch::Errno => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter =
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
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
    let program = compile(&SPAWNER, Mismatch::Kill)?;
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

    const LISTS: [&List; 8] = [&BROKER, &COMPILE, &FILE, &FRONTEND, &NET, &NETADMIN, &QUERY, &SPAWNER];

    #[test]
    fn every_list_compiles_to_a_program_the_kernel_accepts_in_length() {
        // BPF_MAXINSNS, linux/bpf_common.h.
        let too_long: Vec<&str> = LISTS
            .into_iter()
            .filter(|list| compile(list, Mismatch::Kill).expect("the list compiles").len() > 4096)
            .map(|list| list.name)
            .collect();
        assert_eq!(too_long, Vec::<&str>::new());
    }

    #[test]
    fn every_line_says_who_needs_it() {
        let silent: Vec<&str> = LISTS
            .into_iter()
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
            .into_iter()
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
            .into_iter()
            .flat_map(|list| list.rules)
            .filter(|rule| PATHS.contains(&rule.number))
            .map(|rule| rule.source)
            .collect();
        assert_eq!(found, Vec::<&str>::new());
    }

    #[test]
    fn the_spawner_may_do_everything_its_children_may() {
        // A filter is inherited: what the spawner's lacks, no child can do.
        let missing: Vec<&str> = LISTS
            .into_iter()
            .flat_map(|list| list.rules)
            .filter(|rule| {
                !SPAWNER.rules.iter().any(|other| {
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
            .into_iter()
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
