//! The test harness: reference cases, numeric comparison, fixtures.
