//! What a run predicted, in a file: written row by row, read without loading it whole.
//!
//! A safetensors file with `tokens` (i64, the text), `windows` (i64, start, end and first scored token of each) and `logits` (f32, a row
//! for each scored token). It appears under its name only once it is whole.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use safetensors::Dtype;
use serde_json::json;
use xfc_runtime::error::RuntimeError;
use xfc_runtime::files::write_atomic_with;
use xfc_runtime::weights::{Checkpoint, Stored};

use crate::error::{CheckError, Result};
use crate::eval::Window;

/// What the thread that writes is told.
enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// Pieces that may wait to be written.
const WAITING: usize = 4;

/// A file being written, by a thread of its own: rows come while windows are run, and the file appears once all are there.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    pieces: Option<SyncSender<Piece>>,
    writer: Option<JoinHandle<Result<(), RuntimeError>>>,
}

impl Recorder {
    /// Begins a file for the windows of a text. A link is followed; a device or a pipe is written to as it is.
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
        let (pieces, received) = sync_channel(WAITING);
        let (opened, is_open) = sync_channel(1);
        let target = path.to_owned();
        let write = move || {
            write_atomic_with(&target, move |file| {
                // Nobody listens where the recorder is gone, which the first piece tells too.
                let _ = opened.send(());
                fill(file, &received)
            })
        };
        let writer = thread::Builder::new().spawn(write).map_err(|source| RuntimeError::io(path, "write", source))?;
        let mut recorder = Recorder { path: path.to_owned(), pieces: Some(pieces), writer: Some(writer) };
        if is_open.recv().is_err() {
            recorder.end()?;
        }
        recorder.write((header.len() as u64).to_le_bytes().to_vec())?;
        recorder.write(header)?;
        recorder.write(tokens.iter().chain(&windows_flat).flat_map(|id| id.to_le_bytes()).collect())?;
        Ok(recorder)
    }

    fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        match &self.pieces {
            Some(pieces) if pieces.send(Piece::Bytes(bytes)).is_ok() => Ok(()),
            _ => self.end(),
        }
    }

    /// Adds rows of logits.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, logits: &[f32]) -> Result<()> {
        self.write(logits.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if let Some(pieces) = &self.pieces {
            // A writer that has ended says why when it is joined.
            let _ = pieces.send(Piece::End);
        }
        self.end()
    }

    /// Waits for the writer, which without [`Piece::End`] removes what it wrote.
    fn end(&mut self) -> Result<()> {
        self.pieces = None;
        let ended = self.writer.take().and_then(|writer| writer.join().ok());
        let stopped = || RuntimeError::io(&self.path, "write", io::Error::other("its writer stopped"));
        ended.unwrap_or_else(|| Err(stopped())).map_err(Into::into)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.writer.is_some() {
            let _ = self.end();
        }
    }
}

/// Writes what is received, up to its end.
fn fill(file: &mut File, pieces: &Receiver<Piece>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    loop {
        match pieces.recv() {
            Ok(Piece::Bytes(bytes)) => file.write_all(&bytes)?,
            Ok(Piece::End) => return file.flush(),
            Err(_) => return Err(io::Error::other("the run ended early")),
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
            let tensor = stored.tensor(name).filter(|t| t.dtype() == Some(Dtype::I64))?;
            Some(stored.bytes(tensor).as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).collect())
        };
        let logits = stored.tensor("logits").filter(|t| t.dtype() == Some(Dtype::F32) && t.shape.len() == 2);
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
