//! Users and their groups, from `/etc/passwd` and `/etc/group` as bytes.
//!
//! Runs in the account worker, which trusts both files: root writes them. No name service is asked (NSS, LDAP, systemd-homed):
//! its plug-ins would run as root in here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use jail::User;
use proto::{Failed, Text, errno_text};

/// More than any such file.
const FILE: u64 = 16 << 20;
/// Groups of one user. The kernel's limit is 65536, but all have to fit into one argument (`execve(2)`).
const GROUPS: usize = 4096;

/// Where users are looked up.
pub(crate) struct Users {
    passwd: PathBuf,
    group: PathBuf,
}

impl Users {
    pub(crate) fn new(passwd: impl Into<PathBuf>, group: impl Into<PathBuf>) -> Self {
        Users { passwd: passwd.into(), group: group.into() }
    }

    /// The user called `name`.
    ///
    /// # Errors
    /// There is none: in qemu-ga's words, with the errno that getpwnam(3) leaves, which is none. A file cannot be read. The user
    /// has no home, or too many groups.
    pub(crate) fn find(&self, name: &Text) -> Result<User, Failed> {
        let failed = |error: &io::Error| {
            let why = error.raw_os_error().map_or_else(|| error.to_string(), errno_text);
            Failed { text: format!("failed to lookup user '{name}': {why}"), errno: error.raw_os_error() }
        };
        let passwd = read(&self.passwd).map_err(|error| failed(&error))?;
        let (uid, gid, home) = lines(&passwd)
            .find_map(|line| entry(line, &name.0))
            .ok_or_else(|| Failed::new(format!("failed to lookup user '{name}': Success")))?;
        let home = PathBuf::from(OsStr::from_bytes(home));
        if !home.is_absolute() {
            return Err(Failed::new(format!("user '{name}' has no home directory in /etc/passwd")));
        }
        let group = match read(&self.group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            group => group.map_err(|error| failed(&error))?,
        };
        let mut groups: Vec<u32> = lines(&group).filter_map(|line| membership(line, &name.0)).collect();
        groups.sort_unstable();
        groups.dedup();
        if groups.len() > GROUPS {
            return Err(Failed::new(format!("user '{name}' is in more than {GROUPS} groups")));
        }
        Ok(User { uid, gid, groups, home })
    }
}

fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE {
        return Err(io::Error::from_raw_os_error(nix::libc::EFBIG));
    }
    Ok(bytes)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n')
}

/// uid, gid and home of a line of passwd(5) that is `name`'s. Lines with another number of fields are none, nor are those that
/// begin with `+` or `-`, which send to a name service.
fn entry<'a>(line: &'a [u8], name: &[u8]) -> Option<(u32, u32, &'a [u8])> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    let [own, _, uid, gid, _, home, _] = fields[..] else { return None };
    (own == name && !matches!(own.first(), None | Some(b'+' | b'-'))).then_some(())?;
    Some((id(uid)?, id(gid)?, home))
}

/// The number of a group of group(5) that has `name` as a member.
fn membership(line: &[u8], name: &[u8]) -> Option<u32> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    let [group, _, number, members] = fields[..] else { return None };
    let member = members.split(|byte| *byte == b',').any(|member| member == name);
    (member && !matches!(group.first(), None | Some(b'+' | b'-'))).then_some(())?;
    id(number)
}

/// Not 4294967295: to setresuid(2) it means "as it is", which would be root.
fn id(text: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(passwd: &str, group: &str) -> (tempfile::TempDir, Users) {
        let folder = tempfile::tempdir().unwrap();
        let [p, g] = ["passwd", "group"].map(|name| folder.path().join(name));
        std::fs::write(&p, passwd).unwrap();
        std::fs::write(&g, group).unwrap();
        (folder, Users::new(p, g))
    }

    #[test]
    fn a_user_comes_with_ids_home_and_all_groups() {
        let (_folder, users) = users(
            "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:100:Anna,,,:/home/anna:/bin/sh\n",
            "adm:x:4:syslog,anna\nsudo:x:27:anna\nannas:x:28:annabel\nadm2:x:4:anna\n",
        );
        let anna = users.find(&"anna".into()).unwrap();
        assert_eq!(anna, User { uid: 1000, gid: 100, groups: vec![4, 27], home: "/home/anna".into() });
        assert_eq!(users.find(&"root".into()).unwrap().groups, Vec::<u32>::new());
    }

    #[test]
    fn an_unknown_user_fails_in_qemu_gas_words() {
        let (_folder, users) = users("anna:x:1000:100::/home/anna:/bin/sh\n", "");
        for name in ["ann", "anna2", "", "x", "anna:x"] {
            let failed = users.find(&name.into()).unwrap_err();
            assert_eq!(failed.text, format!("failed to lookup user '{name}': Success"));
            assert_eq!(failed.errno, None);
        }
    }

    #[test]
    fn a_broken_line_is_nobodys() {
        for line in [
            "u:x:0",
            "u:x:-1:1::/h:/s",
            "u:x:4294967295:1::/h:/s",
            "u:x:1:4294967295::/h:/s",
            "u:x:4294967296:1::/h:/s",
            "u:x::1::/h:/s",
            "u:x: 1:1::/h:/s",
            "u:x:+1:1::/h:/s",
        ] {
            let (_folder, users) = users(line, "");
            let failed = users.find(&"u".into()).unwrap_err();
            assert_eq!(failed.text, "failed to lookup user 'u': Success", "{line}");
        }
        let (_folder, users) = users("+u:x:1:1::/h:/s\n", "");
        assert!(users.find(&"+u".into()).is_err());
    }

    #[test]
    fn a_user_without_a_home_and_a_missing_file_are_told() {
        let (folder, users) = users("u:x:1:1:::/s\nv:x:1:1::home:/s\n", "");
        for name in ["u", "v"] {
            assert!(users.find(&name.into()).unwrap_err().text.contains("has no home directory"));
        }
        std::fs::remove_file(folder.path().join("passwd")).unwrap();
        let failed = users.find(&"u".into()).unwrap_err();
        assert_eq!(failed.text, "failed to lookup user 'u': No such file or directory");
    }
}
