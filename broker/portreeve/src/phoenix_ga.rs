//! Called as `phoenix-ga`: its three flags, in Go's style.
//!
//! Source: Phoenix 0.7.2's `main.go` and Go's package `flag` (one dash or two, `-p=PATH` or `-p PATH`, the first argument
//! that is no flag ends them; a bad flag ends with status 2).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::process::ExitCode;

use compile::{Bundle, Source};
use jail::DEFAULT_UID_BASE;
use proto::settings::{ChannelSettings, Method};
use proto::{Dialect, PHOENIX_LEVEL};

use crate::audit::Audit;
use crate::launch::{Freeze, IDLE_SECONDS, Launch, Line, Opened, launch};
use crate::say::{out, raw};

const PATH: &str = "/dev/virtio-ports/org.guest-agent.0";

/// Status of Go's package `flag` for a flag that is none.
const BAD_FLAG: u8 = 2;

#[derive(Debug, PartialEq)]
struct Flags {
    path: PathBuf,
    debug: bool,
    version: bool,
}

#[derive(Debug, PartialEq)]
enum End {
    Help,
    Bad(String),
}

/// Runs as `phoenix-ga` with `arguments`, the first of which is the name it was called by.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let called = arguments.first().cloned().unwrap_or_default();
    let rest = arguments.get(1..).unwrap_or_default();
    let flags = match parse(rest) {
        Ok(flags) => flags,
        Err(End::Help) => {
            raw(usage(&called.to_string_lossy()));
            return ExitCode::SUCCESS;
        }
        Err(End::Bad(why)) => {
            raw(format_args!("{why}\n{}", usage(&called.to_string_lossy())));
            return ExitCode::from(BAD_FLAG);
        }
    };
    if flags.version {
        out(format_args!("Version: {PHOENIX_LEVEL}\n"));
        return ExitCode::SUCCESS;
    }
    launch(Launch {
        called,
        arguments: rest.to_vec(),
        lines: vec![Line {
            settings: ChannelSettings {
                name: "phoenix".to_owned(),
                method: Method::VirtioSerial,
                dialects: vec![Dialect::Phoenix],
                peer_cid: None,
            },
            opened: Opened::Later(spawner::Method::VirtioSerial { path: flags.path }),
            retry: false,
            reopen: false,
        }],
        policy: Bundle {
            sources: vec![Source::Preset("qemu-ga".to_owned())],
            allow: Vec::new(),
            block: Vec::new(),
        },
        audit: Audit::to_syslog_if_there(),
        verbose: flags.debug,
        log_file: None,
        state_directory: None,
        uid_base: DEFAULT_UID_BASE,
        idle_seconds: IDLE_SECONDS,
        freeze: Freeze::default(),
        extensions: false,
        init: None,
        clock_step_seconds: 0,
        configured: None,
        daemon: None,
    })
}

fn parse(arguments: &[OsString]) -> Result<Flags, End> {
    let mut flags = Flags { path: PATH.into(), debug: false, version: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let Some(flag) = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")) else { break };
        if flag.is_empty() {
            // "--" ends the flags; "-" is no flag.
            break;
        }
        let mut parts = flag.splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next());
        let truth = |name: &str| match value {
            None => Ok(true),
            Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
            Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
            Some(other) => {
                let other = String::from_utf8_lossy(other).into_owned();
                Err(End::Bad(format!("invalid boolean value {other:?} for -{name}: parse error")))
            }
        };
        match name {
            b"p" => {
                let value = value
                    .map(|value| OsString::from_vec(value.to_vec()))
                    .or_else(|| arguments.next().cloned());
                flags.path = value.ok_or_else(|| End::Bad("flag needs an argument: -p".to_owned()))?.into();
            }
            b"debug" => flags.debug = truth("debug")?,
            b"v" => flags.version = truth("v")?,
            b"h" | b"help" => return Err(End::Help),
            b"" => return Err(End::Bad(format!("bad flag syntax: {}", argument.display()))),
            other if other.starts_with(b"-") => {
                return Err(End::Bad(format!("bad flag syntax: {}", argument.display())));
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(End::Bad(format!("flag provided but not defined: -{other}")));
            }
        }
    }
    Ok(flags)
}

fn usage(called: &str) -> String {
    format!(
        "Usage of {called}:
  -debug
    \tlog every request to standard error
  -p string
    \tcharacter device to serve (default \"{PATH}\")
  -v\tprint the version and exit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Result<Flags, End> {
        parse(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn flags(path: &str, debug: bool, version: bool) -> Result<Flags, End> {
        Ok(Flags { path: path.into(), debug, version })
    }

    #[test]
    fn flags_have_one_dash_or_two_and_values_with_or_without_a_sign() {
        assert_eq!(parsed(&[]), flags(PATH, false, false));
        assert_eq!(parsed(&["-p=/a"]), flags("/a", false, false));
        assert_eq!(parsed(&["--p", "/a", "--debug"]), flags("/a", true, false));
        assert_eq!(parsed(&["-debug=false", "-v=T"]), flags(PATH, false, true));
    }

    #[test]
    fn the_first_argument_that_is_no_flag_ends_them() {
        assert_eq!(parsed(&["x", "-v"]), flags(PATH, false, false));
        assert_eq!(parsed(&["--", "-v"]), flags(PATH, false, false));
    }

    #[test]
    fn bad_flags_are_reported_in_the_words_of_go() {
        let bad = |text: &str| Err(End::Bad(text.to_owned()));
        assert_eq!(parsed(&["-x"]), bad("flag provided but not defined: -x"));
        assert_eq!(parsed(&["-p"]), bad("flag needs an argument: -p"));
        assert_eq!(parsed(&["---v"]), bad("bad flag syntax: ---v"));
        assert_eq!(parsed(&["-debug=maybe"]), bad("invalid boolean value \"maybe\" for -debug: parse error"));
        assert_eq!(parsed(&["-h"]), Err(End::Help));
    }
}
