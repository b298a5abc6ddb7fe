//! The `xfrun` command.

fn main() {}
