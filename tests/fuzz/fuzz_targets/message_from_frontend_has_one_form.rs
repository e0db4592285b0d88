//! See `TARGETS` in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("message_from_frontend_has_one_form", data));
