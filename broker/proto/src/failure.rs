//! The three ways in which a request does not succeed. They are never mixed: a peer that breaks the protocol
//! is stopped, a refusal is answered and recorded, a failure is answered with what the host can act on.

use bincode::{Decode, Encode};

/// Permitted work that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{text}")]
pub struct Failed {
    /// What the host reads, in the wording of the dialect it asked in; for QEMU's clients `error.desc`.
    pub text: String,
    /// The Linux errno behind it, if there is one. Phoenix's `code`; both dialects' audit record.
    pub errno: Option<i32>,
}

impl Failed {
    /// A failure without a system cause.
    pub fn new(text: impl Into<String>) -> Self {
        Failed { text: text.into(), errno: None }
    }

    /// `what`, a colon, and the C library's English text for `errno`, as qemu-ga words it.
    pub fn system(what: impl std::fmt::Display, errno: i32) -> Self {
        Failed { text: format!("{what}: {}", errno_text(errno)), errno: Some(errno) }
    }

    /// `operation path: text`, the form of Go's path errors, whose errno Phoenix puts into `code`.
    pub fn go_path(operation: &str, path: impl std::fmt::Display, errno: i32) -> Self {
        Failed { text: format!("{operation} {path}: {}", go_errno_text(errno)), errno: Some(errno) }
    }

    /// `rtnetlink: text`; Phoenix gives -1 as the code of every network failure.
    pub fn rtnetlink(text: impl std::fmt::Display) -> Self {
        Failed { text: format!("rtnetlink: {text}"), errno: None }
    }
}

/// A correct request that the policy refuses.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Denied {
    /// The whole command is refused; worded exactly as by qemu-ga 9.1 and later, since clients compare it.
    #[error("Command {0} has been disabled: the command is not allowed")]
    Command(String),
    /// It is refused while filesystems are frozen; to QEMU's clients the same as a command that the policy refuses.
    #[error("Command {0} has been disabled: the command is not allowed")]
    Frozen(String),
    /// This call of it is refused, because of its arguments.
    #[error("{0}")]
    Arguments(String),
}

/// The process at the other end of a pipe broke the protocol. It is logged and stopped, never answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} broke the protocol: {what}")]
pub struct PeerFault {
    /// Who: `frontend 0`, `file worker`, …
    pub peer: String,
    /// What was wrong.
    pub what: String,
}

/// The C library's English text for `errno` (`No such file or directory`), independent of the locale.
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// As [`errno_text`], in lower case as Go has it (`no such file or directory`).
pub fn go_errno_text(errno: i32) -> String {
    errno_text(errno).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_failure_reads_like_qemu_gas() {
        let failed = Failed::system("failed to open file '/x' (mode: 'r')", 2);
        assert_eq!(failed.to_string(), "failed to open file '/x' (mode: 'r'): No such file or directory");
        assert_eq!(failed.errno, Some(2));
    }

    #[test]
    fn a_path_failure_reads_like_gos() {
        assert_eq!(Failed::go_path("open", "/x", 21).text, "open /x: is a directory");
    }

    #[test]
    fn errno_text_has_no_number_in_it() {
        assert_eq!(errno_text(11), "Resource temporarily unavailable");
    }
}
