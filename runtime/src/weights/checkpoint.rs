//! Opens a checkpoint: safetensors (one file, or several with an index), GGUF (one file, or the first of several), or none (random weights).
//!
//! Given a file or a folder, promises every tensor's name, encoding, shape and bytes, all checked to lie inside their files. Files are mapped, not
//! read.

#![allow(unsafe_code, reason = "maps files")]

use super::kept;
use super::random::Random;
use crate::error::{Result, RuntimeError};
use crate::gguf::{Encoding, Header, is_gguf_file};
use memmap2::{Mmap, MmapMut, MmapOptions};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where weights come from.
#[derive(Debug)]
pub enum Checkpoint {
    /// Mapped files.
    Stored(Stored),
    /// Made up from names: for tests and for timing without a checkpoint.
    Random(Random),
}

impl Checkpoint {
    /// Opens `path`: a `.gguf` file, a `.safetensors` file, a `.safetensors.index.json`, or a folder with one of the latter two.
    ///
    /// # Errors
    /// Nothing to read there, or a file is truncated or damaged; names the file.
    pub fn open(path: &Path) -> Result<Self> {
        Stored::open(path).map(Self::Stored)
    }

    /// Opens what the command line says: `random`, or a path as [`Checkpoint::open`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_argument(argument: &str) -> Result<Self> {
        if argument == "random" { Ok(Self::random(0)) } else { Self::open(Path::new(argument)) }
    }

    /// Weights that follow from the tensors' names and `seed`.
    pub fn random(seed: u64) -> Self {
        Self::Random(Random { seed })
    }

    /// The same, with numbers made up where a tensor is missing: for a model that departs from the checkpoint's.
    #[must_use]
    pub fn with_missing_made_up(mut self, seed: u64) -> Self {
        if let Self::Stored(stored) = &mut self {
            stored.instead_of_missing = Some(Random { seed });
        }
        self
    }

    /// Whose names its tensors have: `hf` or `gguf`, a column of a card's `names`; `None` where they are made up and have any.
    pub fn format(&self) -> Option<&'static str> {
        match self {
            Self::Stored(stored) if stored.header.is_some() => Some("gguf"),
            Self::Stored(_) => Some("hf"),
            Self::Random(_) => None,
        }
    }

    /// For messages.
    pub fn path(&self) -> String {
        match self {
            Self::Stored(stored) => stored.path.display().to_string(),
            Self::Random(_) => "random weights".to_owned(),
        }
    }
}

/// Refuses a path of a checkpoint that leads nowhere.
fn check_exists(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RuntimeError::input(
            path.display().to_string(),
            "there is no such checkpoint",
            "give the path of a checkpoint folder, of a safetensors file or of a GGUF file, or `random`",
        )),
        Err(error) => Err(RuntimeError::io(path, "open", error)),
    }
}

/// Mapped files of tensors.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    files: Vec<Mmap>,
    /// Their paths.
    paths: Vec<PathBuf>,
    tensors: BTreeMap<String, Tensor>,
    /// What the first file says besides, where it is GGUF.
    header: Option<Box<Header>>,
    instead_of_missing: Option<Random>,
    quantised: Box<Quantised>,
}

/// What config.json beside the files says of how the weights are stored.
#[derive(Debug, Default, serde::Deserialize)]
struct Quantised {
    #[serde(rename = "quant_method")]
    method: Option<String>,
    weight_block_size: Option<Vec<u64>>,
    /// Inputs that share a scale; negative: all of them.
    group_size: Option<i64>,
    checkpoint_format: Option<String>,
    /// What is said of some modules, by any name.
    #[serde(default)]
    config_groups: serde_json::Value,
}

impl Quantised {
    /// Nothing, where there is no config.json or it says nothing.
    fn beside(file: &Path) -> Self {
        let text = fs::read(file.with_file_name("config.json")).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        config.get("quantization_config").and_then(|said| Self::deserialize(said).ok()).unwrap_or_default()
    }
}

/// A tensor in a mapped file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// As stored.
    pub encoding: Encoding,
    /// As stored.
    pub shape: Vec<u64>,
    file: usize,
    bytes: Range<usize>,
}

impl Tensor {
    /// The type of its elements, where each is stored by itself.
    pub fn dtype(&self) -> Option<Dtype> {
        if let Encoding::Plain(dtype) = self.encoding { Some(dtype) } else { None }
    }
}

/// Maps a file to read it.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|source| RuntimeError::io(path, "open", source))?;
    // SAFETY: the mapping is private and only read. That nobody shortens or rewrites a checkpoint while it is loaded is the
    // assumption of every program that maps one; what is read is plain numbers, of which any bits are valid.
    unsafe { Mmap::map(&file) }.map_err(|source| RuntimeError::io(path, "map", source))
}

/// Maps the beginning of a file that is written once, under another name, and then only removed, which leaves a mapping as it is.
pub(super) fn map_privately(file: &File, length: usize) -> std::io::Result<MmapMut> {
    // SAFETY: nothing that is written to a private mapping is seen by others, and nobody changes the file; what is read is plain numbers, of
    // which any bits are valid.
    unsafe { MmapOptions::new().len(length).map_copy(file) }
}

impl Stored {
    /// Gives back the memory in which the files were read so far; what is read again is mapped again.
    pub(super) fn release(&self) {
        #[cfg(target_os = "linux")]
        for file in &self.files {
            // SAFETY: nobody writes to the mapping, so that a page that was dropped comes back from the file as it was. One that stays is no error.
            let _ = unsafe { file.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    fn open(path: &Path) -> Result<Self> {
        check_exists(path)?;
        let metadata = fs::metadata(path).map_err(|source| RuntimeError::io(path, "open", source))?;
        let file = if metadata.is_dir() { find_in_folder(path)? } else { path.to_owned() };
        let mut stored = Self {
            path: path.to_owned(),
            files: Vec::new(),
            paths: Vec::new(),
            tensors: BTreeMap::new(),
            header: None,
            instead_of_missing: None,
            quantised: Box::new(Quantised::beside(&file)),
        };
        if file.extension().is_some_and(|extension| extension == "json") {
            stored.add_index(&file)?;
        } else if is_gguf_file(&file) || file.extension().is_some_and(|extension| extension == "gguf") {
            stored.add_gguf(&file)?;
        } else {
            stored.add_file(&file)?;
        }
        Ok(stored)
    }

    /// Maps one file and takes in its tensors.
    fn add_file(&mut self, path: &Path) -> Result<()> {
        let map = map(path)?;
        let damaged = |problem: String| {
            RuntimeError::input(
                path.display().to_string(),
                problem,
                "the file is damaged or incomplete: download or write it again",
            )
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let kind = if map.is_empty() {
                "is empty".to_owned()
            } else {
                format!("is not a whole safetensors file: {error}")
            };
            damaged(kind)
        })?;
        let start = header + size_of::<u64>();
        let mut names = metadata.offset_keys();
        names.sort();
        for name in names {
            let Some(info) = metadata.info(&name) else { continue };
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let elements = info.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
            if map.get(bytes.clone()).is_none()
                || elements.and_then(|n| n.checked_mul(info.dtype.bitsize())) != Some(bytes.len() * 8)
            {
                return Err(damaged(format!("tensor `{name}` does not lie inside the file")));
            }
            let shape = info.shape.iter().map(|&dim| dim as u64).collect();
            let tensor = Tensor { encoding: Encoding::Plain(info.dtype), shape, file: self.files.len(), bytes };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(damaged(format!("tensor `{name}` is also in another file of the checkpoint")));
            }
        }
        self.files.push(map);
        self.paths.push(path.to_owned());
        Ok(())
    }

    /// Maps a GGUF file, and the others of its checkpoint where it is the first of several.
    fn add_gguf(&mut self, path: &Path) -> Result<()> {
        let refuse =
            |path: &Path, problem: String, help: &str| RuntimeError::input(path.display().to_string(), problem, help);
        let read = |path: &Path| {
            let map = map(path)?;
            let header = Header::read(&map).map_err(|refusal| refuse(path, refusal.problem, refusal.help))?;
            Ok((map, header))
        };
        let (map, header) = read(path)?;
        let help = "keep the names that the parts were published with, all in one folder";
        let parts = header.parts(path).map_err(|problem| refuse(path, problem, help))?;
        let mut first = Some((map, header));
        for part in parts {
            let (map, mut header) = match first.take_if(|_| part == path) {
                Some(own) => own,
                None => read(&part)?,
            };
            for (name, tensor) in std::mem::take(&mut header.tensors) {
                let crate::gguf::Tensor { encoding, shape, bytes } = tensor;
                let tensor = Tensor { encoding, shape, file: self.files.len(), bytes };
                if self.tensors.insert(name.clone(), tensor).is_some() {
                    return Err(refuse(&part, format!("has the tensor `{name}`, as another part has"), help));
                }
            }
            // The first part says what the model is.
            self.header.get_or_insert_with(|| Box::new(header));
            self.files.push(map);
            self.paths.push(part);
        }
        Ok(())
    }

    /// Reads an index and all the files that it names.
    fn add_index(&mut self, path: &Path) -> Result<()> {
        let invalid = |problem: String| {
            RuntimeError::input(
                path.display().to_string(),
                problem,
                "expected {\"weight_map\": {tensor: file of the same folder}}: download the index again",
            )
        };
        let text = fs::read(path).map_err(|source| RuntimeError::io(path, "read", source))?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| invalid(format!("is not an index of tensors: {error}")))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        if files.is_empty() {
            return Err(invalid("names no tensors".to_owned()));
        }
        for file in files {
            let plain = Path::new(file).components().count() == 1
                && Path::new(file).file_name().is_some_and(|name| name == file.as_str());
            if !plain {
                return Err(invalid(format!("names `{file}`, which is not a file of the same folder")));
            }
            self.add_file(&path.with_file_name(file))?;
        }
        let absent: Vec<&str> =
            index.weight_map.keys().filter(|name| !self.tensors.contains_key(*name)).map(String::as_str).collect();
        if !absent.is_empty() {
            return Err(invalid(format!("names tensors that its files do not hold: {}", absent.join(", "))));
        }
        Ok(())
    }

    /// What stands for a tensor that is missing; `None`: it is an error.
    pub(super) fn instead_of_missing(&self) -> Option<&Random> {
        self.instead_of_missing.as_ref()
    }

    /// Elements of a block with one scale, for the last dimensions, where config.json says.
    pub fn weight_block(&self) -> Option<&[u64]> {
        self.quantised.weight_block_size.as_deref()
    }

    /// Inputs that share a scale, where config.json says: of all modules, or of some.
    pub fn group_sizes(&self) -> impl Iterator<Item = u64> {
        let groups = self.quantised.config_groups.as_object().into_iter().flat_map(serde_json::Map::values);
        let of_some = groups.filter_map(|group| group.pointer("/weights/group_size")?.as_i64());
        self.quantised.group_size.into_iter().chain(of_some).filter_map(|size| u64::try_from(size).ok())
    }

    /// Whether the zeros of `qzeros` are stored as they are; they are one less where config.json does not say so.
    pub fn stores_whole_zeros(&self) -> bool {
        self.quantised.checkpoint_format.as_deref() == Some("gptq_v2")
    }

    /// How the weights are quantised, where config.json says.
    pub(super) fn method(&self) -> Option<&str> {
        self.quantised.method.as_deref()
    }

    /// Adds all that decides what is read: the state of the files, and what is said of them elsewhere. `None` where that cannot be known.
    pub fn fingerprint(&self, hasher: &mut blake3::Hasher) -> Option<()> {
        let made_up = self.instead_of_missing.as_ref().map(|random| random.seed);
        hasher.update(format!("{made_up:?} {:?}", self.quantised).as_bytes());
        self.paths.iter().zip(&self.files).try_for_each(|(path, bytes)| kept::fingerprint(path, bytes, hasher))
    }

    /// What a GGUF file says of the model, with the bytes of the file that lists and texts lie in; its tensors are among
    /// [`Stored::tensors`].
    pub fn header(&self) -> Option<(&Header, &[u8])> {
        Some((self.header.as_deref()?, self.files.first()?))
    }

    /// The numbers of a tensor in f32; `None` where it is not there, or stored in a way that is not read.
    pub fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        super::convert::numbers(self, self.tensor(name)?)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A tensor's bytes, little-endian, row-major.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.files[tensor.file][tensor.bytes.clone()]
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The file of a folder to begin with.
fn find_in_folder(folder: &Path) -> Result<PathBuf> {
    for name in [SINGLE, INDEX] {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let entries = fs::read_dir(folder).map_err(|source| RuntimeError::io(folder, "read", source))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    found.sort();
    let with = |extension: &str| {
        found.iter().filter(|path| path.extension().is_some_and(|e| e == extension)).collect::<Vec<_>>()
    };
    let refuse = |problem: &str, help: &str| Err(RuntimeError::input(folder.display().to_string(), problem, help));
    match with("safetensors").as_slice() {
        [one] => Ok((*one).clone()),
        [] if !with("bin").is_empty() || !with("pt").is_empty() => refuse(
            "holds pickled weights and no safetensors",
            "convert them: `save_pretrained(..., safe_serialization=True)`",
        ),
        [] if !with("gguf").is_empty() => refuse("holds GGUF files and no safetensors", "give the .gguf file itself"),
        [] => refuse("holds no safetensors file", "give a checkpoint folder with model.safetensors, or `random`"),
        _ => refuse(
            "holds several safetensors files and no index",
            "give one of the files, or add model.safetensors.index.json",
        ),
    }
}
