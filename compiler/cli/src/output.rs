//! What commands print on standard output. A reader that went away (`xfc inspect ... | head`) ends the program quietly.

use std::io::Write as _;

/// Prints text and a newline.
pub(crate) fn print(text: impl std::fmt::Display) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        // Nobody reads on: as when a program is stopped by SIGPIPE.
        std::process::exit(128 + 13);
    }
}
