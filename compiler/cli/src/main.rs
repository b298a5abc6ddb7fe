//! The `xfc` command.

fn main() {}
