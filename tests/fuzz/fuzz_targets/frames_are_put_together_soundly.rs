//! See `TARGETS` in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("frames_are_put_together_soundly", data));
