//! logind's record of sessions, `/run/systemd/sessions`: who is logged in where utmp is not kept any more.
//!
//! The files rather than D-Bus: a bus connection would be a right, and reading is all that is needed. They are
//! readable for everybody and are replaced whole; sd-login(3) reads the same ones.

use rustix::fs::FileType;

use crate::assignments::each_assignment;
use crate::root::Root;

const FOLDER: &str = "/run/systemd/sessions";

/// A user's session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) user: String,
    /// Terminal, without `/dev/`; empty without one.
    pub(crate) line: String,
    /// Where from; empty at the console.
    pub(crate) host: String,
    /// Microseconds since the epoch.
    pub(crate) since: u64,
}

/// Users' sessions, in the order of their beginning; none without logind.
pub(crate) fn sessions(root: &Root) -> Vec<Session> {
    // Beside each file may stand a FIFO, `ID.ref`, which would block who opens it.
    let files =
        |name: &str, kind| (kind == FileType::RegularFile && !name.starts_with('.')).then(|| name.to_owned());
    let Ok(names) = root.folder(FOLDER).and_then(|folder| folder.entries(files)) else { return Vec::new() };
    let mut sessions: Vec<Session> =
        names.iter().filter_map(|name| parse(&root.read_whole(&format!("{FOLDER}/{name}")).ok()?)).collect();
    sessions.sort_by(|a, b| (a.since, &a.line).cmp(&(b.since, &b.line)));
    sessions
}

/// None if it is not a user's (a greeter's, a service manager's), or about to end.
fn parse(content: &[u8]) -> Option<Session> {
    let mut session = Session::default();
    let mut counts = true;
    each_assignment(content, |name, value| match name {
        "USER" => session.user = value,
        "TTY" => session.line = value,
        "REMOTE_HOST" => session.host = value,
        "REALTIME" => session.since = value.parse().unwrap_or(0),
        // user, user-early, user-light, user-incomplete; not manager, greeter, lock-screen, background, none.
        "CLASS" => counts &= value.starts_with("user"),
        "STATE" => counts &= value != "closing",
        _ => {}
    });
    (counts && !session.user.is_empty()).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    /// As systemd 252 writes it for an ssh login.
    pub(crate) const REMOTE: &str = "# This is private data. Do not parse.\n\
        UID=1000\nUSER=ann\nACTIVE=1\nIS_DISPLAY=1\nSTATE=active\nREMOTE=1\nTYPE=tty\nORIGINAL_TYPE=tty\nCLASS=user\n\
        SCOPE=session-4.scope\nFIFO=/run/systemd/sessions/4.ref\nTTY=pts/0\nTTY_VALIDITY=from-pam\n\
        REMOTE_HOST=192.0.2.6\nSERVICE=sshd\nLEADER=1234\nAUDIT=4\nREALTIME=1700000100250000\nMONOTONIC=99\n";

    #[test]
    fn a_remote_session_says_who_where_and_since_when() {
        let expected = Session {
            user: "ann".to_owned(),
            line: "pts/0".to_owned(),
            host: "192.0.2.6".to_owned(),
            since: 1_700_000_100_250_000,
        };
        assert_eq!(parse(REMOTE.as_bytes()), Some(expected));
    }

    #[test]
    fn greeters_managers_and_sessions_about_to_end_are_nobodys() {
        assert_eq!(parse(b"USER=gdm\nCLASS=greeter\nSTATE=active\n"), None);
        assert_eq!(parse(b"USER=ann\nCLASS=manager\nSTATE=active\n"), None);
        assert_eq!(parse(b"USER=ann\nCLASS=user\nSTATE=closing\n"), None);
        assert_eq!(parse(b"CLASS=user\n"), None);
    }

    #[test]
    fn sessions_come_in_the_order_of_their_beginning_and_fifos_are_not_opened() {
        let tree = Tree::new()
            .file("/run/systemd/sessions/4", REMOTE)
            .file("/run/systemd/sessions/c1", "USER=root\nCLASS=user\nTTY=tty1\nREALTIME=1600000000000000\n")
            .file("/run/systemd/sessions/.#4abc", "USER=half\nCLASS=user\n")
            .link("/run/systemd/sessions/4.ref", "/dev/zero");
        let users: Vec<String> = sessions(&tree.root()).into_iter().map(|session| session.user).collect();
        assert_eq!(users, ["root", "ann"]);
    }

    #[test]
    fn without_logind_nobody_is_there() {
        assert_eq!(sessions(&Tree::new().root()), []);
    }
}
