//! What a run predicted, in a file: written row by row, read without loading it whole.
//!
//! A safetensors file with `tokens` (i64, the text), `windows` (i64, start, end and first scored token of each) and `logits` (f32, a row
//! for each scored token). It appears under its name only once it is whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::json;
use xfc_runtime::error::RuntimeError;
use xfc_runtime::weights::{Checkpoint, Stored};

use crate::error::{CheckError, Result};
use crate::eval::Window;

/// A file being written.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    part: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Recorder {
    /// Begins a file for the windows of a text.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, tokens: &[i64], windows: &[Window], width: usize) -> Result<Self> {
        let windows_flat = flat(windows);
        let rows: usize = windows.iter().map(Window::len).sum();
        let (a, b) = (tokens.len() * 8, (tokens.len() + windows_flat.len()) * 8);
        let c = b + rows * width * 4;
        let header = json!({
            "__metadata__": { "format": "xfc eval 1" },
            "tokens": { "dtype": "I64", "shape": [tokens.len()], "data_offsets": [0, a] },
            "windows": { "dtype": "I64", "shape": [windows.len(), 3], "data_offsets": [a, b] },
            "logits": { "dtype": "F32", "shape": [rows, width], "data_offsets": [b, c] },
        });
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::create(&part).map_err(|source| RuntimeError::io(path, "write", source))?;
        let mut recorder = Recorder { path: path.to_owned(), part, file: Some(BufWriter::new(file)) };
        recorder.write(&(header.len() as u64).to_le_bytes())?;
        recorder.write(&header)?;
        for id in tokens.iter().chain(&windows_flat) {
            recorder.write(&id.to_le_bytes())?;
        }
        Ok(recorder)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(|source| RuntimeError::io(&self.path, "write", source).into())
    }

    /// Adds rows of logits.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, logits: &[f32]) -> Result<()> {
        logits.iter().try_for_each(|x| self.write(&x.to_le_bytes()))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let written =
            file.flush().and_then(|()| file.get_ref().sync_all()).and_then(|()| fs::rename(&self.part, &self.path));
        if written.is_err() {
            // What is left of a failed write is in nobody's way; the error to report is the first.
            let _ = fs::remove_file(&self.part);
        }
        written.map_err(|source| RuntimeError::io(&self.path, "write", source).into())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Start, end and first scored token of each window.
fn flat(windows: &[Window]) -> Vec<i64> {
    windows.iter().flat_map(|w| [w.start, w.end, w.scored]).map(|t| t as i64).collect()
}

/// A file that a run wrote.
#[derive(Debug)]
pub struct Record {
    stored: Stored,
    path: PathBuf,
    width: usize,
}

impl Record {
    /// Opens a file and checks that it is of this text and these windows.
    ///
    /// # Errors
    /// It cannot be read, is no such file, or is of another text.
    pub fn open(path: &Path, tokens: &[i64], windows: &[Window]) -> Result<Self> {
        let refuse =
            |problem: &str, help: &str| Err(RuntimeError::input(path.display().to_string(), problem, help).into());
        let Checkpoint::Stored(stored) = Checkpoint::open(path)? else {
            return refuse("is no file of logits", "give what `xfc eval --save` wrote");
        };
        let ids = |name: &str| -> Option<Vec<i64>> {
            let tensor = stored.tensor(name).filter(|t| t.dtype == Dtype::I64)?;
            Some(stored.bytes(tensor).as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).collect())
        };
        let logits = stored.tensor("logits").filter(|t| t.dtype == Dtype::F32 && t.shape.len() == 2);
        let (Some(text), Some(cut), Some(logits)) = (ids("tokens"), ids("windows"), logits) else {
            return refuse("is no file of logits", "give what `xfc eval --save` wrote");
        };
        if text != tokens {
            return refuse(
                &format!("was made of another text: {} tokens, this one has {}", text.len(), tokens.len()),
                "give the same text, tokenizer and number of chunks",
            );
        }
        let rows: usize = windows.iter().map(Window::len).sum();
        if cut != flat(windows) || logits.shape[0] != rows as u64 {
            return refuse("was made with other windows", "give the same `-c` and `--stride`");
        }
        let width = logits.shape[1] as usize;
        Ok(Record { stored, path: path.to_owned(), width })
    }

    /// Logits of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows `first .. first + n`.
    ///
    /// # Errors
    /// The file does not hold them.
    pub fn rows(&self, first: usize, n: usize) -> Result<Vec<f32>> {
        let bytes = self.stored.tensor("logits").map(|tensor| self.stored.bytes(tensor)).unwrap_or_default();
        let row = self.width * 4;
        match bytes.get(first * row..(first + n) * row) {
            Some(bytes) => Ok(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()),
            None => Err(CheckError::request(format!("{} ends early", self.path.display()), "write it again")),
        }
    }
}
