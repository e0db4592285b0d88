//! Sets a password with the distribution's own chpasswd(8).
//!
//! Runs in the account worker, as root. It knows the lock files, hashes, PAM rules and SELinux labels of the system; we do not.
//! The password goes into its standard input and nowhere else: not into an argument, a variable, a log line or an error.
//! What it passed through here is overwritten.

use std::ffi::{CStr, CString};
use std::io;
use std::time::Duration;

use nix::sys::wait::WaitStatus;
use proto::account::SetUserPassword;
use proto::{Failed, Secret, errno_text};
use zeroize::{Zeroize as _, Zeroizing};

use crate::program::{Ran, Run};

/// Where the program is looked for. Never in `PATH`, which somebody else may have set.
pub(crate) const PROGRAMS: &[&CStr] =
    &[c"/usr/sbin/chpasswd", c"/sbin/chpasswd", c"/usr/bin/chpasswd", c"/bin/chpasswd"];
/// Bytes of its output that an error shows at most.
const OUTPUT: usize = 4096;
/// It waits up to 15 s for its lock file (`lckpwdf(3)`).
const LIMIT: Duration = Duration::from_secs(30);

/// Sets it with the first of `programs` that is there.
///
/// # Errors
/// In qemu-ga's words, since 9.1: what cannot be passed on as one line, what the program says, that there is none.
pub(crate) fn set(request: SetUserPassword, programs: &[&CStr]) -> Result<(), Failed> {
    let SetUserPassword { username, password: Secret(text), crypted } = request;
    let text = Zeroizing::new(text);
    let mut password = decoded(&text)?;
    if let Some(end) = password.iter().position(|byte| *byte == 0) {
        // `truncate` alone would keep what is behind.
        password.get_mut(end..).unwrap_or_default().zeroize();
        password.truncate(end);
    }
    if password.contains(&b'\n') {
        return Err(Failed::new("forbidden characters in raw password"));
    }
    if username.0.iter().any(|byte| matches!(byte, b'\n' | b':' | 0)) {
        return Err(Failed::new("forbidden characters in username"));
    }
    // At its full size from the beginning: a vector that grows leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(username.0.len() + password.len() + 2));
    line.extend_from_slice(&username.0);
    line.push(b':');
    line.extend_from_slice(&password);
    line.push(b'\n');
    judge(run(&line, crypted, programs), &password)
}

fn run(line: &[u8], crypted: bool, programs: &[&CStr]) -> io::Result<Ran> {
    let arguments: &[CString] = &[c"chpasswd".to_owned(), c"-e".to_owned()];
    let arguments = if crypted { arguments } else { arguments.get(..1).unwrap_or_default() };
    let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), c"LANG=C".to_owned()];
    let mut result = Err(io::Error::from(io::ErrorKind::NotFound));
    for file in programs {
        let run = Run {
            file,
            arguments,
            environment: &environment,
            input: line,
            errors: true,
            room: OUTPUT,
            limit: LIMIT,
        };
        result = run.run();
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    result
}

fn judge(ran: io::Result<Ran>, password: &[u8]) -> Result<(), Failed> {
    const WHAT: &str = "child process has failed to set user password";
    let mut ran = ran.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(nix::libc::ENOENT);
        let why = errno_text(errno);
        Failed { text: format!("{WHAT}: failed to exec 'chpasswd': {why}\n"), errno: Some(errno) }
    })?;
    // No chpasswd that we know prints one; a PAM module might.
    let shown = !password.is_empty() && ran.output.windows(password.len()).any(|part| part == password);
    let output = if shown {
        ran.output.zeroize();
        "its output is not shown, since the password is in it".into()
    } else {
        String::from_utf8_lossy(&ran.output)
    };
    match ran.status {
        Some(WaitStatus::Exited(_, 0)) if ran.fed => Ok(()),
        Some(WaitStatus::Exited(_, 0)) => {
            Err(Failed::system("set user password: cannot write to stdin pipe", nix::libc::EPIPE))
        }
        Some(WaitStatus::Exited(_, status)) if output.is_empty() => {
            Err(Failed::new(format!("{WHAT}: exit status {status}")))
        }
        Some(WaitStatus::Exited(..)) => Err(Failed::new(format!("{WHAT}: {output}"))),
        Some(_) => Err(Failed::new("child process has terminated abnormally")),
        None => Err(Failed::new(format!(
            "{WHAT}: chpasswd had not ended after {} s and was killed",
            LIMIT.as_secs()
        ))),
    }
}

/// Decodes as `g_base64_decode` does: line feeds are passed over, and what does not fill four characters at the end is left out.
/// The text in the error is not shown: it would be the password for who forgot to encode it.
fn decoded(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failed> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    let (mut bits, mut count, mut pads) = (0u32, 0u8, 0u8);
    for character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => 0,
            b'\n' => continue,
            _ => return Err(Failed::new("Base64 data '(secret)' is not valid")),
        };
        bits = bits << 6 | u32::from(value);
        count += 1;
        // Only of the last two of four it matters whether they are padding.
        pads = pads << 1 | u8::from(*character == b'=');
        if count == 4 {
            let [_, first, second, third] = bits.to_be_bytes();
            bytes.push(first);
            if pads & 2 == 0 {
                bytes.push(second);
            }
            if pads & 1 == 0 {
                bytes.push(third);
            }
            (bits, count) = (0, 0);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    /// A program in chpasswd's place.
    struct Stand(tempfile::TempDir, CString);

    impl Stand {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("chpasswd");
            let said = folder.path().join("said").display().to_string();
            std::fs::write(&path, format!("#!/bin/sh\n{}\n", script.replace("SAID", &said))).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let path = CString::new(path.display().to_string()).unwrap();
            Stand(folder, path)
        }

        fn set(&self, user: &str, base64: &str, crypted: bool) -> Result<(), Failed> {
            set(request(user, base64, crypted), &[c"/nonexistent/chpasswd", &self.1])
        }

        fn said(&self) -> String {
            std::fs::read_to_string(self.0.path().join("said")).unwrap_or_default()
        }
    }

    fn request(user: &str, base64: &str, crypted: bool) -> SetUserPassword {
        SetUserPassword { username: user.into(), password: Secret(base64.as_bytes().to_vec()), crypted }
    }

    const RECORD: &str = "echo \"args:$#:$*\" > SAID; cat >> SAID; tr '\\0' '\\n' < /proc/$$/environ >> SAID";

    #[test]
    fn the_program_gets_one_line_and_nothing_of_it_as_argument_or_variable() {
        let stand = Stand::new(RECORD);
        stand.set("anna", "c2VjcmV0OndvcmQ=", false).unwrap();
        assert_eq!(stand.said(), "args:0:\nanna:secret:word\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nLANG=C\n");
        stand.set("anna", "JDYkYWJj\nJGRlZg==\n", true).unwrap();
        assert!(stand.said().starts_with("args:1:-e\nanna:$6$abc$def\nPATH="), "{}", stand.said());
    }

    #[test]
    fn a_password_ends_at_its_first_nul() {
        let stand = Stand::new(RECORD);
        // "ab\0\ncd"
        stand.set("anna", "YWIACmNk", false).unwrap();
        assert!(stand.said().contains("\nanna:ab\nPATH="), "{}", stand.said());
    }

    #[test]
    fn what_would_be_another_line_or_another_user_is_refused_in_qemu_gas_order() {
        let stand = Stand::new(RECORD);
        let text = |user: &str, base64: &str| stand.set(user, base64, false).unwrap_err().text;
        assert_eq!(text("a:b", "c2Vj!"), "Base64 data '(secret)' is not valid");
        assert_eq!(text("a:b", "YQpi"), "forbidden characters in raw password");
        assert_eq!(text("a:b", "YWI="), "forbidden characters in username");
        assert_eq!(text("a\nb", "YWI="), "forbidden characters in username");
        assert_eq!(stand.said(), "");
    }

    #[test]
    fn a_failure_shows_what_the_program_printed_but_no_password() {
        let failed = |script: &str| Stand::new(script).set("anna", "c2VjcmV0", false).unwrap_err().text;
        assert_eq!(
            failed("cat > /dev/null; echo \"chpasswd: line 1: user 'anna' does not exist\" >&2; exit 1"),
            "child process has failed to set user password: chpasswd: line 1: user 'anna' does not exist\n"
        );
        assert_eq!(failed("exit 3"), "child process has failed to set user password: exit status 3");
        assert_eq!(failed("kill -9 $$"), "child process has terminated abnormally");
        let text = failed("cat; exit 1");
        assert!(text.contains("not shown") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_missing_program_is_told_in_qemu_gas_words() {
        let failed = set(request("anna", "YWI=", false), &[c"/nonexistent/chpasswd"]).unwrap_err();
        let wanted = "child process has failed to set user password: failed to exec 'chpasswd': No such file or directory\n";
        assert_eq!((failed.text.as_str(), failed.errno), (wanted, Some(nix::libc::ENOENT)));
    }

    #[test]
    fn the_secret_is_on_no_command_line_while_the_program_runs() {
        let stand = Stand::new("cat > /dev/null; sleep 1");
        let begun = Instant::now();
        let seen = std::thread::scope(|scope| {
            let setting = scope.spawn(|| stand.set("anna", "aHVudGVyMi1vZi1hbm5h", false));
            let mut seen = 0;
            while !setting.is_finished() {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                        let text = String::from_utf8_lossy(&bytes);
                        // Not in this file in one piece: a test's own arguments may hold its source.
                        assert!(!text.contains(concat!("hunter2", "-of-anna")), "{text}");
                        seen += usize::from(text.contains(stand.1.to_str().unwrap()));
                    }
                }
            }
            setting.join().unwrap().unwrap();
            seen
        });
        assert!(seen > 0, "the program was not seen at all in {:?}", begun.elapsed());
    }

    #[test]
    fn base64_is_read_as_glib_reads_it() {
        let read = |text: &str| String::from_utf8(decoded(text.as_bytes()).unwrap().to_vec()).unwrap();
        for (text, wanted) in [
            ("", ""),
            ("YQ==", "a"),
            ("YWI=", "ab"),
            ("YWJj", "abc"),
            ("YW\nJj\n", "abc"),
            ("YWJjZA", "abc"),
            ("YQ==YWI=", "aab"),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
        for text in [" ", "YWJj\r\n", "YWJj-", "\u{e9}"] {
            assert!(decoded(text.as_bytes()).is_err(), "{text}");
        }
    }
}
