//! For tests that look at a jail from inside: the rules of a role, and a jail that answers instead of killing.
//!
//! No process of the agent uses this module; a test of the tree holds that. A refused call fails with EPERM here, so that one
//! process can try all of them.

use crate::Role;
use crate::enter::{EnterError, Entered, Ground, enter_with};
use crate::roles::row;
use crate::seccomp::{LISTS, Mismatch, Rule};

/// Returns the system calls that `role` may make. Empty for those that have no filter ([`Role::Exec`], [`Role::Account`], [`Role::Hook`]).
#[must_use]
pub fn rules(role: Role) -> &'static [Rule] {
    let name = row(role).seccomp.map(|filter| filter.name);
    LISTS.iter().find(|list| Some(list.name) == name).map_or(&[], |list| list.rules)
}

/// Does what [`enter`](crate::enter()) does, except that a call the filter does not know fails with EPERM.
///
/// # Errors
/// As [`enter`](crate::enter()).
pub fn enter_answering(
    role: Role,
    ground: &Ground,
    before_filter: impl FnOnce(),
) -> Result<Entered, EnterError> {
    enter_with(role, ground, Some(Mismatch::Errno), before_filter)
}

/// Does what [`enter`](crate::enter()) does but for the filter: what ids, capabilities, namespaces and Landlock refuse by
/// themselves, should the filter have a hole.
///
/// # Errors
/// As [`enter`](crate::enter()).
pub fn enter_without_filter(
    role: Role,
    ground: &Ground,
    before_filter: impl FnOnce(),
) -> Result<Entered, EnterError> {
    enter_with(role, ground, None, before_filter)
}
