//! What commands print on standard output. A reader that went away (`xfc inspect ... | head`) ends the program quietly.

use std::io::Write as _;

use xfc_runtime::error::EXIT_FAILURE;

/// Prints text and a newline. Where it cannot be written, the program ends.
#[expect(clippy::print_stderr, reason = "the one place where nothing else is left to say it")]
pub(crate) fn print(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("error: standard output: cannot write: {error}");
            std::process::exit(EXIT_FAILURE.into());
        }
        // Nobody reads on: as when a program is stopped by SIGPIPE.
        std::process::exit(128 + 13);
    }
}
