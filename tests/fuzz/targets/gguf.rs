//! Bytes to `xfc_tests::fuzz::gguf`, guided by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xfc_tests::fuzz::gguf(data));
