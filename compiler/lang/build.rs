//! The library and the cards of `models/` are part of this crate: a file more or less there is a reason to build it again.

fn main() {
    println!("cargo::rerun-if-changed=../../models");
}
