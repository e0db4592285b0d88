//! What a policy means: the reports of `portreeve policy`.
//!
//! Runs in `portreeve`, with the rights of whoever typed the command and offline: nothing here opens a file, asks an agent or decides for
//! one. Policy texts and audit logs are data that may be long or wrong; every report takes time in proportion to them, or says what
//! it did not look at. Decisions come from [`authorize`], requests from the frontend's decoders, so a report says what the agent does.
#![forbid(unsafe_code)]

mod calls;
mod case;
mod check;
mod clients;
mod diff;
mod explain;
mod grants;
mod learn;
mod request;
mod shadow;
mod show;
mod source;
mod test;
mod trail;
mod verdicts;
mod words;
mod workers;

pub use case::{Case, Look, Verdict, decide, literal};
pub use check::{Check, Finding, Level, check};
pub use diff::{Change, Diff, diff};
pub use explain::{Explanation, explain};
pub use learn::{Generalise, Learned, Wanted, learn};
pub use request::{Unread, of_words, read, to_line};
pub use show::{Show, show};
pub use source::Loaded;
pub use test::{Failure, Tested, Tester};
pub use trail::{Entry, Expected, Trail, Unusable, entry};
