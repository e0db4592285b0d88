//! Reads audit logs: lines into records, and records into a verdict about their chain. The form is in `docs/audit.md`.
//!
//! Runs in the offline commands of `portreeve`, with the rights of whoever types them, on files that a captured broker or an
//! intruder may have written. So nothing that is read is believed: lines and counts are bounded, memory does not grow with
//! the log, and whatever is no record is a finding, never a panic. It opens nothing and writes nothing.
#![forbid(unsafe_code)]

mod chain;
mod hash;
mod intents;
mod lines;
mod record;

pub use chain::{Break, Finding, Head, Notice, Place, Seen, Segment, Verdict, Verifier, Witness};
pub use hash::{Hash, NotAHash};
pub use intents::OpenIntent;
pub use lines::{LONGEST, Line, Lines};
pub use record::{Link, NotARecord, Record, Text};
