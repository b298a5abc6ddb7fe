//! PTX text to a syntax tree (PTX ISA, section 4, "Syntax"). Nothing here knows what an instruction means.

pub(crate) mod ast;
pub(crate) mod lexer;
pub(crate) mod parser;
pub(crate) mod statements;

/// Why a text is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}: `{text}`")]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: u32,
    /// What is not understood.
    pub message: String,
    /// The text of the line.
    pub text: String,
}
