//! One request, who asks it, and what is taken as found out about it: all that a decision depends on.

use std::sync::Arc;

use authorize::{Asker, Facts, Origin, Outcome, Policy, Terms};
use proto::{Denied, Request};

/// What is asked, and what the worker would find out.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The channel's name.
    pub channel: String,
    /// What is asked.
    pub request: Request,
    /// What its path leads to; None if it has none.
    pub path: Option<Vec<u8>>,
    /// The number of the user that it names; None if it names none, or one that is not known.
    pub uid: Option<u32>,
    /// Whether filesystems are frozen.
    pub frozen: bool,
}

/// How a worker's findings are foretold.
pub struct Look<'a> {
    /// What a path leads to. [`literal`] takes it as it is written.
    pub path: &'a dyn Fn(&[u8]) -> Vec<u8>,
    /// The number of a user.
    pub uid: &'a dyn Fn(&[u8]) -> Option<u32>,
}

impl Case {
    /// A request by `channel`.
    pub fn new(channel: &str, request: Request, look: &Look<'_>) -> Self {
        let path = authorize::asked_path(&request).map(|path| (look.path)(&path.0));
        let uid = authorize::asked_user(&request).and_then(|user| (look.uid)(&user.0));
        Case { channel: channel.to_owned(), request, path, uid, frozen: false }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { path: self.path.as_deref(), uid: self.uid }
    }

    pub(crate) fn asker(&self) -> Asker<'_> {
        Asker { channel: &self.channel, frozen: self.frozen }
    }
}

/// The path as if nothing on it was a link: absolute, without empty parts, `.` and `..`.
pub fn literal(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return b"/".to_vec();
    }
    parts.into_iter().flat_map(|part| [b"/", part].concat()).collect()
}

/// What the policy says.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Allow, deny or redact.
    pub outcome: Outcome,
    /// The rule, or what stands for it when none matched.
    pub rule: Origin,
    /// How it is done.
    pub terms: Option<Arc<Terms>>,
    /// What the host is told, if it is refused.
    pub denied: Option<Denied>,
}

/// Decides as broker and worker do together: the worker has the last word, and knows what the case says.
pub fn decide(policy: &Policy, case: &Case) -> Verdict {
    match authorize::decide(policy, case.asker(), &case.request, case.facts()) {
        Ok(by) => Verdict { outcome: by.outcome, rule: by.rule, terms: by.terms, denied: None },
        Err((denied, rule)) => Verdict { outcome: Outcome::Deny, rule, terms: None, denied: Some(denied) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_written() {
        for (path, taken) in [
            ("/etc/hostname", "/etc/hostname"),
            ("foo", "/foo"),
            ("/etc//./x/../hostname/", "/etc/hostname"),
            ("/../..", "/"),
            ("", "/"),
        ] {
            assert_eq!(literal(path.as_bytes()), taken.as_bytes(), "{path}");
        }
    }
}
