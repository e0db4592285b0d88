//! Who is logged in: from utmp, or from logind where utmp is missing.

use proto::query::{Session, User};

use crate::root::{Root, text};
use crate::{sessions, utmp};

/// Each user once, with the earliest login, in the order of first appearance.
pub(crate) fn users(root: &Root) -> Vec<User> {
    let mut users = Vec::new();
    match utmp::read(root) {
        Ok(content) => {
            for login in utmp::logins(&content) {
                let since = login.seconds.saturating_mul(1_000_000).saturating_add(login.microseconds);
                add(&mut users, login.user, seconds(since));
            }
        }
        Err(_) => {
            for session in sessions::sessions(root) {
                add(
                    &mut users,
                    session.user.as_bytes(),
                    seconds(session.since.try_into().unwrap_or(i64::MAX)),
                );
            }
        }
    }
    users
}

/// With a fraction. From whole microseconds, so that it is the double nearest to them.
#[allow(
    clippy::cast_precision_loss,
    reason = "the protocol has a double: good to the microsecond until 2255"
)]
fn seconds(microseconds: i64) -> f64 {
    microseconds as f64 / 1e6
}

fn add(users: &mut Vec<User>, name: &[u8], login_time: f64) {
    match users.iter_mut().find(|user| user.user.as_bytes() == name) {
        Some(user) => user.login_time = user.login_time.min(login_time),
        None => users.push(User { user: text(name), login_time }),
    }
}

/// Phoenix's list: every session that came over the network.
pub(crate) fn remote_sessions(root: &Root) -> Vec<Session> {
    match utmp::read(root) {
        Ok(content) => utmp::logins(&content)
            .filter(|login| !login.user.is_empty() && !login.host.is_empty())
            .map(|login| Session {
                name: text(login.user),
                device: text(login.line),
                host: text(login.host),
                login_time: login.seconds,
            })
            .collect(),
        Err(_) => sessions::sessions(root)
            .into_iter()
            .filter(|session| !session.host.is_empty())
            .map(|session| Session {
                name: session.user,
                device: session.line,
                host: session.host,
                login_time: (session.since / 1_000_000).try_into().unwrap_or(i64::MAX),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use crate::utmp::samples::record;

    fn utmp() -> Vec<u8> {
        [
            record(7, b"root", "pts/0", "192.0.2.6", 1_700_000_100, 250_000),
            record(7, b"ann", "tty1", "", 1_700_000_300, 0),
            record(7, b"root", "tty2", "", 1_700_000_000, 500_000),
            record(7, b"bob\0junk", "pts/2", "host.example", 1_700_000_400, 0),
        ]
        .concat()
    }

    fn listed(root: &Root) -> Vec<(String, f64)> {
        users(root).into_iter().map(|user| (user.user, user.login_time)).collect()
    }

    /// qga/qapi-schema.json, guest-get-users: "Only the earliest login of each user is returned."
    #[test]
    fn a_user_is_listed_once_with_the_earliest_login() {
        let tree = Tree::new().file("/var/run/utmp", utmp());
        let expected = [("root", 1_700_000_000.5), ("ann", 1_700_000_300.0), ("bob", 1_700_000_400.0)];
        assert_eq!(listed(&tree.root()), expected.map(|(user, since)| (user.to_owned(), since)));
    }

    #[test]
    fn phoenix_lists_every_session_that_came_over_the_network() {
        let tree = Tree::new().file("/var/run/utmp", utmp());
        let session = |name: &str, device: &str, host: &str, login_time| Session {
            name: name.to_owned(),
            device: device.to_owned(),
            host: host.to_owned(),
            login_time,
        };
        let expected = [
            session("root", "pts/0", "192.0.2.6", 1_700_000_100),
            session("bob", "pts/2", "host.example", 1_700_000_400),
        ];
        assert_eq!(remote_sessions(&tree.root()), expected);
    }

    #[test]
    fn logind_is_asked_where_utmp_is_missing_and_only_there() {
        let tree = Tree::new()
            .file("/run/systemd/sessions/3", "USER=eve\nCLASS=user\nTTY=tty1\nREALTIME=1700000000000001\n")
            .file(
                "/run/systemd/sessions/4",
                "USER=eve\nCLASS=user\nREMOTE_HOST=h\nREALTIME=1700000009000000\n",
            );
        assert_eq!(listed(&tree.root()), [("eve".to_owned(), 1_700_000_000.000_001)]);
        assert_eq!(remote_sessions(&tree.root()).len(), 1);
        let tree = tree.file("/var/run/utmp", "");
        assert_eq!(listed(&tree.root()), []);
        assert_eq!(remote_sessions(&tree.root()), []);
    }

    #[test]
    fn without_any_record_nobody_is_logged_in() {
        assert_eq!(users(&Tree::new().root()), []);
        assert_eq!(remote_sessions(&Tree::new().root()), []);
    }
}
