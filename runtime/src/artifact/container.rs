//! The `.xfm` container: writing one, and reading one back with every byte checked.
//!
//! ```text
//! .xfm.table     the exported `xfm_entry_table`: where each variant's code and kernels are
//! .xfm.card      the description that was compiled, UTF-8
//! .xfm.plan.0    manifest of variant 0, JSON
//! .xfm.plan.i    what differs in the manifest of variant i, JSON
//! .xfm.code.i    code and constants of variant i, one position-independent image; absent where an earlier variant has the same
//! .xfm.sums      checksums
//! ```
//!
//! Reading executes nothing and maps nothing executable: see [`Variant::load_code`] for that.

use super::abi::PTX;
use super::code::Code;
use super::elf::{self, Section};
use super::features::HostFeatures;
use super::manifest::Manifest;
use super::sums::{self, Sums};
use super::table::{self, VariantEntries};
use super::{VERSION, delta, validate};
use crate::error::{Result, RuntimeError};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};
use serde::Deserialize as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Machine code of one variant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeImage {
    /// Position-independent code and constants, linked: no relocation is left. To be mapped at a multiple of 4096 bytes.
    pub bytes: Vec<u8>,
    /// Where kernel `k` of the manifest begins, in bytes.
    pub entries: Vec<u64>,
}

/// One variant to write.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantParts {
    /// What to run.
    pub manifest: Manifest,
    /// The code of [`Manifest::kernels`].
    pub code: CodeImage,
}

/// The bytes of an artifact that holds `card` (the description) and `variants`, best first: of those that a machine can run, the runtime takes
/// the first. Equal inputs give equal bytes.
///
/// # Errors
/// There is no variant, or a manifest does not pass [`validate::check`]: a mistake of the compiler.
pub fn write(card: &str, variants: &[VariantParts]) -> Result<Vec<u8>> {
    let bug = |problem: String| RuntimeError::Artifact {
        path: "artifact to write".to_owned(),
        problem,
        help: "this is a mistake of the compiler: please report it with the card".to_owned(),
    };
    let Some(first) = variants.first() else { return Err(bug("has no variants".to_owned())) };
    let entries: Vec<&[u64]> = variants.iter().map(|variant| variant.code.entries.as_slice()).collect();
    let section = |name: String, data: Vec<u8>, executable| Section { name, data, executable };

    let mut sections = vec![
        section(table::SECTION.to_owned(), vec![0; table::size_bytes(&entries)], false),
        section(CARD.to_owned(), card.as_bytes().to_vec(), false),
    ];
    for (i, variant) in variants.iter().enumerate() {
        validate::check(&variant.manifest).map_err(|problem| bug(format!("variant {i}: {problem}")))?;
        check_entries(&variant.manifest, &variant.code.entries, variant.code.bytes.len())
            .map_err(|problem| bug(format!("variant {i}: {problem}")))?;
        // Layers, weights and operands are the same for all targets: they are written once.
        let plan = if i == 0 {
            serde_json::to_vec(&variant.manifest)
        } else {
            serde_json::to_vec(&delta::between(
                &json(&first.manifest).map_err(bug)?,
                &json(&variant.manifest).map_err(bug)?,
            ))
        };
        sections.push(section(plan_name(i), plan.map_err(|error| bug(format!("variant {i}: {error}")))?, false));
    }
    // Equal code is there once, under the name of the first variant that has it.
    let home = |i: usize| variants[..i].iter().position(|v| v.code.bytes == variants[i].code.bytes).unwrap_or(i);
    let homes: Vec<usize> = (0..variants.len()).map(home).collect();
    let stored: Vec<usize> = (0..variants.len()).filter(|&i| homes[i] == i).collect();
    let summed = stored
        .iter()
        .map(|&i| code_name(i))
        .chain(sections.iter().map(|section| section.name.clone()))
        .collect::<Vec<_>>();
    let sums_index = sections.len();
    sections.push(section(sums::SECTION.to_owned(), vec![0; Sums::len(summed.iter().map(String::as_str))], false));
    for &i in &stored {
        let executable = variants[i].manifest.target.arch != PTX;
        sections.push(section(code_name(i), variants[i].code.bytes.clone(), executable));
    }

    // Where variants are of several architectures, the file is of none.
    let same_arch = variants.iter().all(|variant| variant.manifest.target.arch == first.manifest.target.arch);
    let arch = if same_arch { first.manifest.target.arch.as_str() } else { "" };
    let elf::Written { mut bytes, offsets } = elf::write(arch, &sections, table::SYMBOL, 0).map_err(bug)?;
    let code = |i: usize| {
        let at = stored.iter().position(|&s| s == homes[i]).expect("a home is stored");
        offsets[sums_index + 1 + at] as u64 - offsets[0] as u64
    };
    let rows: Vec<VariantEntries> = variants
        .iter()
        .enumerate()
        .map(|(i, variant)| VariantEntries {
            code_offset: code(i),
            code_bytes: variant.code.bytes.len() as u64,
            entries: variant.code.entries.clone(),
        })
        .collect();
    let table = table::to_bytes(&rows);
    bytes[offsets[0]..offsets[0] + table.len()].copy_from_slice(&table);

    let range = |index: usize| offsets[index]..offsets[index] + sections[index].data.len();
    let own = range(sums_index);
    let data = summed.iter().map(|name| {
        let index = sections.iter().position(|section| section.name == *name).expect("every summed name is a section");
        (name.as_str(), &bytes[range(index)])
    });
    let text = Sums::compute(&bytes, own.clone(), data).to_text();
    bytes[own].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

const CARD: &str = ".xfm.card";

fn plan_name(i: usize) -> String {
    format!(".xfm.plan.{i}")
}

fn code_name(i: usize) -> String {
    format!(".xfm.code.{i}")
}

pub(super) fn json(manifest: &Manifest) -> Result<serde_json::Value, String> {
    serde_json::to_value(manifest).map_err(|error| error.to_string())
}

/// Kernels and entries correspond, and every entry lies in the code.
fn check_entries(manifest: &Manifest, entries: &[u64], code_bytes: usize) -> Result<(), String> {
    if entries.len() != manifest.kernels.len() {
        return Err(format!("the plan names {} kernels, the code has {}", manifest.kernels.len(), entries.len()));
    }
    match entries.iter().position(|&entry| entry >= code_bytes as u64) {
        Some(k) => Err(format!("kernel {k} begins at byte {} of {code_bytes} bytes of code", entries[k])),
        None => Ok(()),
    }
}

/// An artifact in memory, verified.
#[derive(Debug)]
pub struct Artifact {
    path: String,
    bytes: Arc<[u8]>,
    card: Range<usize>,
    manifests: Vec<Arc<Manifest>>,
    variants: Vec<VariantCode>,
}

/// Where a variant's code is.
#[derive(Debug)]
struct VariantCode {
    plan_bytes: usize,
    range: Range<usize>,
    sum: u32,
    entries: Vec<u64>,
}

impl Artifact {
    /// Reads and verifies the file at `path`. It is read whole (artifacts hold no weights), so that what was verified is what is used,
    /// whatever happens to the file afterwards.
    ///
    /// # Errors
    /// The file cannot be read, or is not a whole, undamaged artifact of this [`VERSION`].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(RuntimeError::Artifact {
                path: path.display().to_string(),
                problem: "is a folder, and an artifact is a file".to_owned(),
                help: format!(
                    "`xfc compile {0}` makes an artifact of a checkpoint's folder; `xfc run {0}` compiles on the way",
                    path.display()
                ),
            });
        }
        let bytes = std::fs::read(path).map_err(|source| RuntimeError::io(path, "read", source))?;
        Self::read(path.display().to_string(), bytes.into())
    }

    /// Verifies an artifact that is already in memory.
    ///
    /// # Errors
    /// As [`Artifact::open`], but for the reading.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Self> {
        Self::read("artifact in memory".to_owned(), bytes.into())
    }

    /// Whether `bytes` look like an artifact or another ELF file, and not a card or a checkpoint.
    pub fn is_artifact(bytes: &[u8]) -> bool {
        bytes.starts_with(&object::elf::ELFMAG)
    }

    fn read(path: String, bytes: Arc<[u8]>) -> Result<Self> {
        match parse(&bytes) {
            Ok((card, manifests, variants)) => Ok(Self {
                path,
                bytes: Arc::clone(&bytes),
                card,
                manifests: manifests.into_iter().map(Arc::new).collect(),
                variants,
            }),
            Err(Refusal { problem, help }) => Err(RuntimeError::Artifact { path, problem, help: help.to_owned() }),
        }
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The description that was compiled.
    pub fn card(&self) -> &str {
        // Checked to be UTF-8 when it was read; the bytes cannot change.
        std::str::from_utf8(&self.bytes[self.card.clone()]).unwrap_or_default()
    }

    /// The manifest of each variant.
    pub fn manifests(&self) -> impl ExactSizeIterator<Item = &Manifest> {
        self.manifests.iter().map(Arc::as_ref)
    }

    /// The variant that suits this machine best, the first that it can run; or the one called `wanted`.
    ///
    /// # Errors
    /// No variant runs here; says what each lacks. There is no variant called `wanted`.
    pub fn select(&self, host: &HostFeatures, wanted: Option<&str>) -> Result<Variant<'_>> {
        let candidates: Vec<usize> = (0..self.manifests.len())
            .filter(|&i| wanted.is_none_or(|name| self.manifests[i].target.name == name))
            .collect();
        if candidates.is_empty() {
            return Err(RuntimeError::request(
                format!(
                    "{}: has no variant for {}, only for {}",
                    self.path,
                    wanted.unwrap_or("any target"),
                    self.target_names().join(", ")
                ),
                "leave the target out, or compile for it with `--target`",
            ));
        }
        let runs =
            |&index: &usize| host.missing(&self.manifests[index].target).is_some_and(|missing| missing.is_empty());
        if let Some(&index) = candidates.iter().find(|index| runs(index)) {
            return Ok(Variant { artifact: self, index });
        }
        let targets = candidates.iter().map(|&index| &self.manifests[index].target);
        Err(RuntimeError::Unsupported {
            subject: self.path.clone(),
            problem: host.refusal(targets).unwrap_or_default(),
            help: "compile the model on this machine, or for a target that it has, with `--target`".to_owned(),
        })
    }

    /// The card's and each variant's bytes, for people: `(description, [(plan, code)])`.
    pub fn sizes(&self) -> (usize, Vec<(usize, usize)>) {
        (self.card.len(), self.variants.iter().map(|variant| (variant.plan_bytes, variant.range.len())).collect())
    }

    #[cfg(test)]
    pub(crate) fn code(&self, index: usize) -> &[u8] {
        &self.bytes[self.variants[index].range.clone()]
    }

    fn target_names(&self) -> Vec<&str> {
        self.manifests.iter().map(|manifest| manifest.target.name.as_str()).collect()
    }
}

/// One variant of an artifact.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    artifact: &'a Artifact,
    index: usize,
}

impl Variant<'_> {
    /// What to run.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.artifact.manifests[self.index]
    }

    /// Whether the code is for a GPU, as PTX.
    pub fn is_ptx(&self) -> bool {
        self.manifest().target.arch == PTX
    }

    /// The code as it is stored, verified, and where each kernel begins in it.
    pub fn code(&self) -> (&[u8], &[u64]) {
        let VariantCode { range, entries, .. } = &self.artifact.variants[self.index];
        (&self.artifact.bytes[range.clone()], entries)
    }

    /// Maps the code into memory of its own, executable: a verified copy, independent of the artifact.
    ///
    /// # Errors
    /// The system gives no executable memory.
    pub fn load_code(&self) -> Result<Code> {
        if self.is_ptx() {
            return Err(RuntimeError::Unsupported {
                subject: self.artifact.path.clone(),
                problem: format!("the code for {} runs on no processor", self.manifest().target.name),
                help: "take a variant for this machine, or load it on a GPU".to_owned(),
            });
        }
        let VariantCode { range, sum, entries, .. } = &self.artifact.variants[self.index];
        Code::map(&self.artifact.bytes[range.clone()], *sum, entries)
    }
}

/// Why a file is not taken, and what to do.
struct Refusal {
    problem: String,
    help: &'static str,
}

impl Refusal {
    fn damaged(problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: "the file is damaged or incomplete: compile the model again, or copy the artifact again",
        }
    }
}

type Parsed = (Range<usize>, Vec<Manifest>, Vec<VariantCode>);

/// Verifies and takes apart.
fn parse(bytes: &[u8]) -> Result<Parsed, Refusal> {
    let not_ours =
        |problem: &str| Refusal { problem: problem.to_owned(), help: "give an artifact that `xfc compile` wrote" };
    if bytes.is_empty() {
        return Err(Refusal::damaged("the file is empty"));
    }
    if !Artifact::is_artifact(bytes) {
        return Err(not_ours("is not an artifact (it does not begin as an ELF file)"));
    }
    let elf = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|error| Refusal::damaged(format!("is truncated or damaged: {error}")))?;
    let range = |name: &str| -> Option<Range<usize>> {
        let (start, len) = elf.section_by_name(name)?.file_range()?;
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= bytes.len()).then_some(start..end)
    };
    let own =
        range(sums::SECTION).ok_or_else(|| not_ours("is an ELF file but not an artifact (it has no checksums)"))?;
    let sums = Sums::parse(&bytes[own.clone()]).map_err(Refusal::damaged)?;
    sums.verify(bytes, own, |name| range(name).map(|range| &bytes[range])).map_err(Refusal::damaged)?;

    let need = |name: &str| -> Result<(Range<usize>, u32), Refusal> {
        let missing = || Refusal::damaged(format!("section {name} is missing"));
        Ok((range(name).ok_or_else(missing)?, sums.of(name).ok_or_else(missing)?))
    };
    let card = need(CARD)?.0;
    std::str::from_utf8(&bytes[card.clone()]).map_err(|_| Refusal::damaged("the description is not UTF-8"))?;
    let table_range = need(table::SECTION)?.0;
    let table_start = table_range.start as u64;
    let rows = table::parse(&bytes[table_range]).map_err(|problem| match problem {
        table::Problem::Version(version) => Refusal {
            problem: format!("is of version {version}, this runtime reads version {VERSION}"),
            help: "compile the model again with the xfc that belongs to this runtime",
        },
        table::Problem::Damaged => Refusal::damaged("the entry table is damaged"),
    })?;
    let mut manifests = Vec::new();
    let mut variants = Vec::new();
    let mut first = None;
    for (i, row) in rows.into_iter().enumerate() {
        let plan = need(&plan_name(i))?.0;
        let plan_bytes = plan.len();
        let manifest = read_plan(&bytes[plan], &mut first)
            .map_err(|problem| Refusal::damaged(format!("the plan of variant {i} cannot be read: {problem}")))?;
        validate::check(&manifest)
            .map_err(|problem| Refusal::damaged(format!("the plan of variant {i} is not valid: {problem}")))?;
        // Its own section, or that of an earlier variant with equal code.
        let is_here = |range: &Range<usize>| {
            row.code_offset.checked_add(table_start) == Some(range.start as u64) && row.code_bytes == range.len() as u64
        };
        let found = (0..=i).rev().find_map(|of| need(&code_name(of)).ok().filter(|(range, _)| is_here(range)));
        let (range, sum) = found.ok_or_else(|| {
            Refusal::damaged(format!("the entry table has code of variant {i} where no section holds it"))
        })?;
        check_entries(&manifest, &row.entries, range.len()).map_err(Refusal::damaged)?;
        manifests.push(manifest);
        variants.push(VariantCode { plan_bytes, range, sum, entries: row.entries });
    }
    Ok((card, manifests, variants))
}

/// The manifest that a plan section says: the whole of the first, of others what differs from it.
pub(super) fn read_plan(bytes: &[u8], first: &mut Option<serde_json::Value>) -> Result<Manifest, String> {
    let text = |error: serde_json::Error| error.to_string();
    match first {
        None => {
            let value: serde_json::Value = serde_json::from_slice(bytes).map_err(text)?;
            let manifest = Manifest::deserialize(&value).map_err(text)?;
            *first = Some(value);
            Ok(manifest)
        }
        Some(first) => {
            let change = serde_json::from_slice(bytes).map_err(text)?;
            serde_json::from_value(delta::apply(first, &change)?).map_err(text)
        }
    }
}
