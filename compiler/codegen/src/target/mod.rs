//! Machine code, one folder a family of targets.
//!
//! To add a target: a folder here, and one line in [`parse`]. What kernels are made of (vectors, a fused multiply-add, products of bf16) a
//! target gives as a [`Machine`](crate::mlir::machine::Machine), how they are tiled as a [`schedule`](crate::mlir::schedule).

pub mod cpu;
pub mod cuda;
mod optimise;
pub mod profile;

use xfc_lang::graph::DType;
use xfc_runtime::artifact::container::CodeImage;
use xfc_runtime::artifact::manifest::{self, Pack, Products};

use self::profile::{Family, Fields, Profile, ProfileError};
use crate::error::CodegenError;
use crate::mlir::linear;
use crate::mlir::schedule::LinearSchedule;
use crate::plan::kernel::{AttentionSpec, Division, KernelSpec, LinearSpec};

/// Rows of a tile, and tiles for each block of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of a tile.
    pub rows_per_tile: u64,
    /// Tiles for each block of rows.
    pub tiles_per_block: u64,
}

impl Tiling {
    /// Of a product: by the experts of a stack or by rows, and by panels.
    pub fn of_linear(spec: &LinearSpec, schedule: &LinearSchedule) -> Tiling {
        let panels = spec.outputs.div_ceil(schedule.panel_columns).div_ceil(schedule.panels_per_tile());
        let (rows_per_tile, blocks) = match spec.experts {
            Some(experts) if schedule.by_expert => (linear::ALL_ROWS, experts.count),
            Some(experts) => (1, experts.chosen),
            None => (schedule.rows_per_tile, spec.heads),
        };
        Tiling { rows_per_tile, tiles_per_block: blocks * panels }
    }
}

/// One kernel as it is to be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// MLIR text, with the kernel under the name `kernel`.
    pub mlir: String,
    /// Scratch each worker must have.
    pub scratch_bytes: u64,
    /// Shared memory that a launch must bring for each block of threads.
    pub shared_bytes: u64,
    /// Its launches wait by themselves for those before them.
    pub waits: bool,
}

/// Something that code is generated for: decides layouts, tilings and schedules, and writes kernels.
pub trait Target: Sync {
    /// As on the command line, resolved.
    fn name(&self) -> &str;

    /// What the artifact says of it.
    fn describe(&self) -> manifest::Target;

    /// How good it is beside other targets: of those that a machine can run, the runtime takes the highest.
    fn rank(&self) -> u32;

    /// Layout of weight matrices of linears.
    fn pack(&self, dtype: DType) -> Pack;

    /// Tokens of a cache page.
    fn page_tokens(&self) -> u64;

    /// Most elements of a group of integers that products of many rows multiply as bf16, for which rows in such groups have room; 0: none are. Programs in f32 have no such products.
    fn widened_groups(&self) -> u64 {
        0
    }

    /// What a kernel's products multiply in a phase, where that is not what they are given (`Cost::products`): numbers that it rounds otherwise than the program says.
    fn multiplies(&self, _spec: &KernelSpec, _phase: usize) -> Option<Products> {
        None
    }

    /// Whether the elements of a token lie side by side in all pages; otherwise keys lie as products with one query like them best.
    fn pages_of_rows(&self) -> bool;

    /// Whether attention multiplies integers of 8 bits by pairs, which then lie side by side in pages as those of bf16 do.
    fn paired_bytes(&self) -> bool;

    /// How an attention divides the keys of a query in steps of few rows, where it has too few heads for the threads of a machine.
    fn division(&self, spec: &AttentionSpec) -> Division;

    /// Regimes of steps, ascending.
    fn phases(&self) -> Vec<manifest::Phase>;

    /// The same target with the schedules of a profile.
    ///
    /// # Errors
    /// A profile of another target, or one that sets what the generator cannot do.
    fn with_profile(&self, profile: Profile) -> Result<Box<dyn Target>, ProfileError>;

    /// Where its schedules depart from those that it chooses by itself. They decide the code as its name does.
    fn profile(&self) -> Option<&Profile>;

    /// What may be set for a family, to be measured: each departs from `best`, the best of the stages before this one. `None` behind the last
    /// stage.
    fn candidates(&self, family: &Family, stage: usize, best: &Fields) -> Option<Vec<Fields>>;

    /// The schedule of a kernel in phase `phase`, rendered; equal texts are one kernel.
    fn schedule(&self, spec: &KernelSpec, phase: usize) -> String;

    /// The tiling of a kernel in a phase.
    fn tiling(&self, spec: &KernelSpec, phase: usize) -> Tiling;

    /// Writes a kernel for a phase.
    ///
    /// # Errors
    /// A construct without a lowering.
    fn emit(&self, spec: &KernelSpec, phase: usize) -> Result<Emitted, CodegenError>;

    /// Code of kernels, `(name for messages, object)` in kernel order, as one image.
    ///
    /// # Errors
    /// Code that is not self-contained: a defect of xfc.
    fn link(&self, objects: &[(String, &[u8])]) -> Result<CodeImage, CodegenError>;

    /// A compiler of emitted kernels, one a worker thread.
    ///
    /// # Errors
    /// The back end lacks the target.
    fn compiler(&self) -> Result<Box<dyn Compiler>, CodegenError>;
}

/// Turns MLIR into machine code.
pub trait Compiler {
    /// Compiles one kernel.
    ///
    /// # Errors
    /// Text that MLIR or LLVM rejects: a defect of xfc.
    fn compile(&self, name: &str, mlir: &str, keep: Keep) -> Result<Compiled, CodegenError>;
}

/// What to keep besides the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Optimised LLVM IR.
    pub llvm: bool,
    /// Assembly.
    pub assembly: bool,
}

/// What LLVM made of a kernel.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What [`Target::link`] makes an image of: a relocatable object, or text.
    pub object: Vec<u8>,
    /// Optimised LLVM IR, when asked for.
    pub llvm: Option<String>,
    /// Assembly, when asked for.
    pub assembly: Option<String>,
}

/// Name of the function in every emitted module.
pub const SYMBOL: &str = "kernel";

/// What names of targets are made of, for people.
pub fn known() -> String {
    format!("{}; {}", cpu::isa::known(), cuda::arch::known())
}

/// The target that a name on the command line means.
///
/// # Errors
/// Unknown names, with what exists.
pub fn parse(name: &str) -> Result<Box<dyn Target>, CodegenError> {
    if name.strip_prefix("cuda").is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
        return Ok(Box::new(cuda::Cuda::new(cuda::arch::parse(name)?)));
    }
    if !name.starts_with("cpu") {
        let reason = format!("targets are `cpu` and `cuda`, with what they are for behind a colon; {}", known());
        return Err(CodegenError::Target { name: name.to_owned(), reason });
    }
    Ok(Box::new(cpu::Cpu::new(cpu::isa::Isa::parse(name)?)))
}
