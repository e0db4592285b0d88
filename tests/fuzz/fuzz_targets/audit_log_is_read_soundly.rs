//! See `TARGETS` in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("audit_log_is_read_soundly", data));
