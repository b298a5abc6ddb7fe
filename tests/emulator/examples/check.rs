//! Says which lines of PTX files the emulator does not understand.
//!
//!     cargo run -p xfc-emulator --example check -- FILE...

use std::io::Write;

use xfc_emulator::Module;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    for path in std::env::args().skip(1) {
        let mut text = std::fs::read_to_string(&path)?;
        // Each line that is not understood is taken out, to find the next.
        while let Err(error) = Module::parse(&text) {
            writeln!(out, "{path}: {error}")?;
            if error.text.is_empty() {
                break;
            }
            let mut lines: Vec<&str> = text.lines().collect();
            lines[error.line as usize - 1] = "";
            text = lines.join("\n");
        }
    }
    Ok(())
}
