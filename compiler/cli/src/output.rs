//! What commands print: results on standard output, remarks and errors on standard error. A reader that went away (`xfc inspect ... | head`) ends the program quietly.

use std::io::Write as _;

use xfc_runtime::error::EXIT_FAILURE;

/// Prints text and a newline. Where it cannot be written, the program ends.
pub(crate) fn print(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            remark(format!("error: standard output: cannot write: {error}"));
            std::process::exit(EXIT_FAILURE.into());
        }
        // Nobody reads on: as when a program is stopped by SIGPIPE.
        std::process::exit(128 + 13);
    }
}

/// Prints a line beside the results. Where standard error cannot be written, nobody is there to read it, and the exit code still tells.
pub(crate) fn remark(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
