//! The manifest: everything the runtime must know besides the code, as plain data.
//!
//! An artifact has one manifest a variant (target). It is written as JSON, in field order, so that equal inputs give equal bytes.

use serde::{Deserialize, Serialize};

pub use super::blocks::Blocks;
pub use crate::cost::Products;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the type it is named after")]
pub enum DType {
    F32,
    F16,
    BF16,
    I64,
    I32,
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Bool => 1,
        }
    }
}

/// One compiled variant of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`](super::VERSION) of the compiler that wrote it.
    pub version: u32,
    /// Name and version of the compiler: `xfc 0.1.0`.
    pub compiler: String,
    /// Name of the model, for people.
    pub model: String,
    /// What the code needs.
    pub target: Target,
    /// Names of the ragged axes; the others refer to them by index. The first is that of the tokens that a sequence grows by.
    pub axes: Vec<String>,
    /// Elements that every sequence has of each axis, where that is known: 197 patches, 1 where there is one a sequence. Such a sequence is given whole.
    pub extents: Vec<Option<u64>>,
    /// What a step is given.
    pub inputs: Vec<Input>,
    /// What a step returns.
    pub outputs: Vec<Output>,
    /// The first axis of a sequence must be given whole, in one step, and keeps nothing afterwards (some query sees keys after itself).
    pub whole_sequences: bool,
    /// For each axis, positions a sequence may have, where something limits them (a table of learned positions).
    pub max_positions: Vec<Option<u64>>,
    /// Packed weights, by [`WeightId`].
    pub weights: Vec<Weight>,
    /// The checkpoint format whose names [`Source::names`] are: `hf` or `gguf`.
    #[serde(default = "hf", skip_serializing_if = "is_hf")]
    pub format: String,
    /// Glob patterns of checkpoint tensors that are not an error when nothing reads them (`*` one component, `**` any number).
    pub ignore: Vec<String>,
    /// Cache groups.
    pub caches: Vec<CacheGroup>,
    /// Working memory, one block a ragged axis and kind of rows.
    pub arenas: Vec<Arena>,
    /// Generated functions, in the order of the entry table.
    pub kernels: Vec<Kernel>,
    /// Upper bounds on the rows of a step for which each phase's kernels are meant, ascending; the last is `None`.
    pub phases: Vec<Phase>,
    /// What to run, in order.
    pub launches: Vec<Launch>,
    /// Total parameters, for people.
    pub parameters: u64,
}

impl Manifest {
    /// Most elements that a sequence may have of this axis, where something limits them: how many every sequence has, or the axis's positions.
    pub fn most_elements(&self, axis: usize) -> Option<u64> {
        let of = |limits: &[Option<u64>]| limits.get(axis).copied().flatten();
        of(&self.extents).into_iter().chain(of(&self.max_positions)).min()
    }

    /// Whether a sequence is given the elements of this axis once, whole, before or with its first tokens.
    pub fn given_once(&self, axis: usize) -> bool {
        self.caches.iter().any(|group| group.axis == axis && group.keep == Keep::Once)
    }
}

/// What the code runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As on the command line: `cpu:x86-64-v3`.
    pub name: String,
    /// `x86_64`.
    pub arch: String,
    /// CPU features the code uses, in `/proc/cpuinfo`-independent LLVM names (`avx2`, `fma`, `avx512bf16`): a CPU that lacks one gets an error.
    pub features: Vec<String>,
}

/// An input of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// As in the card: `input_ids`.
    pub name: String,
    /// Element type in the buffer that kernels read (i64 for ids).
    pub dtype: DType,
    /// Ragged axis of the first dimension.
    pub axis: usize,
    /// Other dimensions.
    pub dims: Vec<u64>,
    /// Value of every element when the input is not given; `None` makes it required.
    pub default: Option<f64>,
    /// For integer inputs that index a table: valid values are `0 .. limit`. Checked by the runtime before a kernel sees them.
    pub limit: Option<u64>,
    /// Where a step puts it.
    pub buffer: BufferRef,
}

impl Input {
    /// Values of each element.
    pub fn width(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// An output of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// As in the card: `logits`.
    pub name: String,
    /// Element type in the buffer.
    pub dtype: DType,
    /// Ragged axis of the first dimension.
    pub axis: usize,
    /// One row for each selected element (`rows`) of the axis, or for each element.
    pub rows: bool,
    /// Other dimensions.
    pub dims: Vec<u64>,
    /// Where it lies after a step.
    pub buffer: BufferRef,
}

/// Index into [`Manifest::weights`].
pub type WeightId = usize;

/// A buffer that a launch reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferRef {
    /// In an arena: `offset` bytes per row of the arena's capacity, i.e. at byte `offset * capacity_rows`, plus `column` bytes into the row.
    Arena {
        /// Which arena.
        arena: usize,
        /// Per row of capacity; a multiple of 64 once multiplied, since capacities are multiples of 64 rows.
        offset: u64,
        /// Bytes into each row: a view of some columns of a wider value.
        column: u64,
        /// Elements from one row to the next.
        row_stride: u64,
        /// Bytes of one element.
        element_bytes: u64,
    },
    /// A packed weight.
    Weight(WeightId),
    /// A slot of a cache group.
    Cache {
        /// Which group.
        group: usize,
        /// Which slot of the group.
        slot: usize,
    },
}

/// Working memory whose size is proportional to the rows of one axis in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arena {
    /// Ragged axis.
    pub axis: usize,
    /// Rows are the selected elements of the axis, not all.
    pub rows: bool,
    /// Bytes for each row; the arena is `bytes_per_row * capacity_rows` with `capacity_rows` a multiple of 64.
    pub bytes_per_row: u64,
}

/// A weight as kernels read it, and how it is made from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// For people: the instance paths it holds, joined by ` + `.
    pub name: String,
    /// Element type of the packed form. Sources are converted, rounding to nearest even.
    pub dtype: DType,
    /// Shape after concatenation, before packing.
    pub shape: Vec<u64>,
    /// Concatenated along dimension 0 (one source: as it is).
    pub sources: Vec<Source>,
    /// Layout in memory.
    pub pack: Pack,
    /// Dimension of `shape` along which it may be split over devices. Reserved: nothing reads it yet.
    pub split: Option<usize>,
}

fn hf() -> String {
    "hf".to_owned()
}

fn is_hf(format: &str) -> bool {
    format == "hf"
}

/// A tensor taken from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Instance path: `layers.3.self_attn.q_proj.weight`.
    pub path: String,
    /// Names in the checkpoint, tried in order.
    pub names: Vec<String>,
    /// Shape as stored; where a step is [`Step::Lead`], of what is read of it.
    pub shape: Vec<u64>,
    /// Applied to the stored tensor, first to last.
    pub steps: Vec<Step>,
    /// Added to each stored number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: f64,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// A change of shape on the way from a stored tensor to a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Dimension `d` of the result is dimension `perm[d]`.
    Transpose {
        /// A permutation.
        perm: Vec<usize>,
    },
    /// Elements `start .. start + len` of `dim`.
    Slice {
        /// Dimension.
        dim: usize,
        /// First element.
        start: u64,
        /// Number of elements.
        len: u64,
    },
    /// The first `len` elements of `dim`, of which the stored tensor may have more than [`Source::shape`] says. Before all other steps.
    Lead {
        /// Dimension.
        dim: usize,
        /// Number of elements.
        len: u64,
    },
    /// Element `index` of `dim`, which disappears.
    Index {
        /// Dimension.
        dim: usize,
        /// Element.
        index: u64,
    },
    /// Other dimensions, same elements in row-major order.
    Reshape {
        /// New shape.
        shape: Vec<u64>,
    },
}

/// Layout of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pack {
    /// Row-major.
    Plain,
    /// A matrix `[O, I]` for `x · wᵀ`, or several `[.., O, I]`, one after another: panels of `columns` outputs; in a panel, for each group of `depth` consecutive inputs, `columns` runs of `depth` elements.
    /// Element `(o, i)` is at `((o / columns * ceil(I / depth) + i / depth) * columns + o % columns) * depth + i % depth`.
    /// O is padded to a multiple of `columns`, I to a multiple of `depth`, with zeros.
    Panels {
        /// Outputs a panel.
        columns: u64,
        /// Inputs a group.
        depth: u64,
    },
    /// Panels of integers of few bits.
    Blocks(Blocks),
}

/// Slots with the same rule of keeping, addressed through one block table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheGroup {
    /// For people: `full`, `window 4096`.
    pub name: String,
    /// Ragged axis whose elements are kept.
    pub axis: usize,
    /// What is kept.
    pub keep: Keep,
    /// Tokens per page.
    pub page_tokens: u64,
    /// What each page holds, once for each slot; slot `i` has its own memory of `page_bytes` a page.
    pub slots: Vec<CacheSlot>,
}

/// How long a token is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// As long as its sequence.
    All,
    /// The last `n` tokens (the current one counted) and what a step adds: a ring of `ceil((n + most tokens of a step) / page_tokens) + 1` pages.
    Window(u64),
    /// For the step only: nothing reads it later.
    Step,
    /// As long as its sequence, and complete from the step on that gives it: what an encoder leaves for a decoder. The axis, never the
    /// first, is given once to a sequence, whole.
    Once,
    /// A state of the sequence: a page before the step, which is read, and a page after it, which is written: entries 0 and 1 of its block table.
    /// A page is one token's. The state before the last step stays, so that the step can be taken back.
    State,
}

/// One kept value of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSlot {
    /// Instance path: `layers.3.self_attn.k`.
    pub path: String,
    /// Bytes of one page. Pages of a slot lie `page_bytes` apart, which is a multiple of 64.
    pub page_bytes: u64,
    /// Bytes that matter per token (of the state, with [`Keep::State`]), without padding: the analytic figure.
    pub token_bytes: u64,
    /// With [`Keep::Step`], slots with the same number may share memory (their lifetimes do not meet).
    pub alias: Option<usize>,
}

/// A generated function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// For people: `linear_f32_896x896_bias`.
    pub name: String,
    /// Scratch each worker must have.
    pub scratch_bytes: u64,
    /// Shared memory that a launch brings for each block of threads of a GPU.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_bytes: u64,
    /// Its launch may begin before those before it have ended: it waits for them before it touches anything that launches of a step write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
}

/// A regime of steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// `one`, `few`, `batch`, `many`.
    pub name: String,
    /// For steps of at most this many rows (of the launch's own axis); `None`: any.
    pub max_rows: Option<u64>,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// For people: `layers.3.self_attn.q_proj + k_proj + v_proj`.
    pub name: String,
    /// Axis whose rows it goes over.
    pub axis: usize,
    /// Rows are the selected elements of the axis.
    pub rows: bool,
    /// Rows of the kernel for each element: 1, or the heads or windows of a product of them.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub times: u64,
    /// For each phase: kernel (index into [`Manifest::kernels`]) and tiling.
    pub variants: Vec<Variant>,
    /// Buffers in the kernel's order.
    pub operands: Vec<BufferRef>,
    /// The sequences it has to do with; `None`: all. It is left out of a step that has none of them, and where it runs it may go over the rows of
    /// others too, whose results a launch for these replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// What devices do together with the last operand after the launch. Reserved: a runtime of one device refuses it.
    pub collective: Option<Collective>,
    /// What it has to do, for measuring; no result depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Which sequences of a step, by what they have on the axis of the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Those whose first element is in the step: all that they see comes with it.
    FromStart,
    /// Those that have earlier elements.
    Continued,
}

impl When {
    /// Whether it means a sequence that has so many elements before the step, of those that the step adds any to.
    pub fn holds(self, before: u64) -> bool {
        (before == 0) == (self == When::FromStart)
    }
}

fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(times: &u64) -> bool {
    *times == 1
}

/// What a launch cannot do without, as a function of the rows and the context of a step: what a perfect kernel would read and multiply.
/// [`crate::cost`] evaluates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Bytes of weights that are read once, however many rows there are; padding of the packed form not counted.
    pub weight_bytes: u64,
    /// Weights of which only the chosen ones are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<ChosenCost>,
    /// Bytes of weights that are read for each row: rows of tables.
    pub row_weight_bytes: u64,
    /// Bytes of values read and written for each row, besides weights and cached keys and values that attention reads.
    pub row_bytes: u64,
    /// Floating-point operations of products for each row: two for each weight that is multiplied.
    pub row_flops: u64,
    /// Of what, if anything is multiplied.
    pub products: Option<Products>,
    /// Reading of a cache.
    pub attention: Option<AttentionCost>,
}

/// Weights of which each row chooses some: in a step of `n` rows at least one, at most `min(of, n * each)` are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChosenCost {
    /// How many there are.
    pub of: u64,
    /// How many each row chooses.
    pub each: u64,
    /// Bytes of one.
    pub bytes: u64,
}

/// What attention cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionCost {
    /// Ragged axis of the keys.
    pub axis: usize,
    /// A query sees keys less than this many positions before itself; `None`: all before itself.
    pub window: Option<u64>,
    /// A query also sees all keys after itself.
    pub future: bool,
    /// Bytes of a key and its value.
    pub key_bytes: u64,
    /// Floating-point operations for a query and a key that it sees, over all heads.
    pub pair_flops: u64,
}

/// A step that several devices take together. Reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Every device gets the sum over all.
    AllReduce,
    /// Every device gets all parts, one after another along the last dimension.
    AllGather,
}

/// How a launch is run in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Index into [`Manifest::kernels`].
    pub kernel: usize,
    /// The launch has `ceil(rows / rows_per_tile) * tiles_per_block` tiles.
    pub rows_per_tile: u64,
    /// Tiles for each block of rows.
    pub tiles_per_block: u64,
    /// What its products multiply, where that is not [`Cost::products`]: weights in groups of integers by what tokens bring, both rounded to bf16 in place of
    /// integers of 8 bits. Results then are those of another rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplies: Option<Products>,
}
