//! The repository's own files, for the tests that hold the tree to its rules.
//!
//! [`files`] lists what belongs to the project (no build output, nothing hidden but `.ci`), sorted, with paths relative to the root.

use std::fs;
use std::path::Path;

use crate::{Result, repository};

/// A text file of the project.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Relative to the root, with forward slashes.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// Numbered lines, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    /// Numbered lines without comments, so that a word in them is a word of code. Strings count as code.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines()
            .map(|(n, line)| (n, line.split("//").next().unwrap_or_default()))
            .filter(|(_, l)| !l.trim().is_empty())
    }

    /// The comment that opens the file.
    pub fn header(&self) -> String {
        self.text.lines().take_while(|line| line.starts_with("//!")).map(|line| format!("{line}\n")).collect()
    }
}

/// The text files under `folder` (relative to the root) whose names end in one of `endings`.
pub fn files(folder: &str, endings: &[&str]) -> Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    walk(&repository().join(folder), folder, endings, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(folder: &Path, path: &str, endings: &[&str], found: &mut Vec<SourceFile>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "target" || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        let path = if path.is_empty() || path == "." { name.clone() } else { format!("{path}/{name}") };
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &path, endings, found)?;
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let text = fs::read_to_string(entry.path()).map_err(|e| format!("{path}: {e}"))?;
            found.push(SourceFile { path, text });
        }
    }
    Ok(())
}
