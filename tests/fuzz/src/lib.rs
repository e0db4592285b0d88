//! What each decoder must uphold for any bytes: the bodies of the fuzz targets, each a function that panics if it does not.
//!
//! Used twice: by the targets in `fuzz_targets/`, under libFuzzer, and by `tests/tests/fuzzed.rs`, which runs a few
//! thousand mutations of the seeds in the normal tests. No I/O, and no clock: time is a number that the input moves.
#![forbid(unsafe_code)]

mod audit_log;
mod conversation;
mod forms;
mod samples;

pub use samples::samples;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them. The name is that of the file in `fuzz_targets/` and of the folder in `seeds/`.
pub const TARGETS: &[Target] = &[
    ("qga_session_always_answers_a_sync", conversation::qga),
    ("phoenix_session_always_answers_a_ping", conversation::phoenix),
    ("session_of_both_dialects_always_answers", conversation::both),
    ("frontend_survives_any_broker", conversation::any_broker),
    ("frames_are_put_together_soundly", forms::frames),
    ("message_from_frontend_has_one_form", forms::from_frontend),
    ("message_to_frontend_has_one_form", forms::to_frontend),
    ("message_to_worker_has_one_form", forms::to_worker),
    ("message_from_worker_has_one_form", forms::from_worker),
    ("spawner_message_has_one_form", forms::spawner_message),
    ("plan_has_one_form", forms::plan),
    ("sealed_policy_decodes_soundly", forms::sealed),
    ("compiled_policy_decides_soundly", forms::policy),
    ("policy_text_compiles_soundly", forms::policy_text),
    ("policy_bundle_is_read_soundly", forms::bundle),
    ("audit_log_is_read_soundly", audit_log::read),
];

/// Runs the target called `name`.
///
/// # Panics
/// If there is none, or if it finds something.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) = TARGETS.iter().find(|(known, _)| *known == name).expect("the target is in TARGETS");
    body(data);
}
