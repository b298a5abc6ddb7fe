//! The emulator's tests: each compares with plain Rust, or wants a certain fault.

mod harness;

mod compiled;
mod control;
mod conversions;
mod faults;
mod floats;
mod integers;
mod warps;
