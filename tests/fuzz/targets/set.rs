//! Bytes to `xfc_tests::fuzz::set`, guided by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xfc_tests::fuzz::set(data));
