//! `portreeve audit`: the readers of the audit log, for those who must say what the host did.
//!
//! They run offline, with the rights of whoever types them, and read files that a captured broker or an intruder may have
//! written: what `records` makes of them is bounded, and every text out of them is escaped for where it is shown.

mod export;
mod files;
mod follow;
mod report;
mod request;
mod verify;
mod words;

use std::process::ExitCode;
use std::time::SystemTime;

use crate::say::raw;
use crate::subcommands::Audit;
use files::Sources;

/// The log is whole, or what was asked for was done.
const WHOLE: u8 = 0;
/// The log is not what the agent wrote, or cannot be shown to be.
const BROKEN: u8 = 1;
/// The log cannot be read.
const UNREADABLE: u8 = 2;

/// Runs what was typed.
pub(crate) fn main(audit: Audit) -> ExitCode {
    let (name, result) = match audit {
        Audit::Verify(given) => ("verify", verify::main(&given)),
        Audit::Follow(given) => ("follow", follow::main(&given)),
        Audit::Report(given) => ("report", report::main(&given)),
        Audit::Export(given) => ("export", export::main(&given)),
    };
    ExitCode::from(result.unwrap_or_else(|why| {
        raw(format_args!("portreeve audit {name}: {why}"));
        UNREADABLE
    }))
}

/// The beginning of what was asked for: a time, or so long ago.
pub(crate) fn since(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text)
        .ok()
        .or_else(|| SystemTime::now().checked_sub(humantime::parse_duration(text).ok()?))
        .ok_or_else(|| {
            "give a time in UTC such as 2026-11-26T10:00:00Z, or how long ago, such as 15m, 2h, 7days"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_beginning_is_a_time_or_a_duration() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_687_200);
        assert_eq!(since("2026-11-26T10:00:00Z"), Ok(at));
        assert_eq!(since("2026-11-26 10:00:00"), Ok(at));
        let ago = SystemTime::now().duration_since(since("2h").unwrap()).unwrap();
        assert!((7199..7260).contains(&ago.as_secs()), "{ago:?}");
        assert!(since("yesterday").is_err());
    }
}
