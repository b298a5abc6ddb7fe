//! The emulator's tests: each compares with plain Rust, or wants a certain fault.

mod harness;

mod blocks;
mod compiled;
mod control;
mod conversions;
mod copies;
mod early;
mod faults;
mod floats;
mod groups;
mod integers;
mod matrices;
mod products;
mod registers;
mod stages;
mod warps;
