//! NVIDIA GPUs: kernels as PTX, which the driver of the machine that they run on turns into its code.
//!
//! A kernel is run by blocks of threads, each of which does whole tiles as a CPU's worker does: see `mlir/block.rs`.

pub mod arch;
mod mlir_to_ptx;
mod schedule;

use xfc_lang::graph::DType;
use xfc_runtime::artifact::abi;
use xfc_runtime::artifact::container::CodeImage;
use xfc_runtime::artifact::manifest::{self, Pack, Phase};

use self::arch::Arch;
use self::mlir_to_ptx::PtxWriter;
use self::schedule::Steps;
use super::cpu::schedule::{ALL_ROWS, Regime};
use super::profile::{Family, Fields, Profile, ProfileError};
use super::{Compiled, Compiler, Emitted, Keep, SYMBOL, Target, Tiling};
use crate::error::CodegenError;
use crate::mlir::machine::Machine;
use crate::mlir::pipeline::Lowering;
use crate::mlir::{attention, linear, rows};
use crate::plan::kernel::{AttentionSpec, Division, KernelSpec};

/// Code for one architecture.
#[derive(Clone, Debug)]
pub struct Cuda {
    arch: Arch,
    name: String,
}

impl Cuda {
    /// A target for `arch`.
    pub fn new(arch: Arch) -> Self {
        Cuda { arch, name: arch.target() }
    }

    /// A machine of the architecture.
    fn on(&self, machine: Machine) -> Machine {
        Machine { overlaps: self.arch.overlaps, ..machine }
    }
}

impl Target for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> manifest::Target {
        manifest::Target {
            name: self.name.clone(),
            arch: abi::PTX.to_owned(),
            features: vec![self.arch.name.to_owned()],
        }
    }

    fn rank(&self) -> u32 {
        // A GPU before any CPU, newer ones first.
        let place = arch::ARCHES.iter().position(|known| known == &self.arch).unwrap_or(0);
        1_000_000 + place as u32
    }

    fn pack(&self, dtype: DType) -> Pack {
        let columns = schedule::PANEL_COLUMNS;
        match dtype {
            DType::Blocks(blocks) => Pack::Blocks(linear::packed(blocks, columns, schedule::depth(dtype))),
            _ => Pack::Panels { columns, depth: schedule::depth(dtype) },
        }
    }

    fn page_tokens(&self) -> u64 {
        schedule::PAGE_TOKENS
    }

    fn pages_of_rows(&self) -> bool {
        true
    }

    fn paired_bytes(&self) -> bool {
        false
    }

    fn division(&self, spec: &AttentionSpec) -> Division {
        schedule::division(&self.arch, spec)
    }

    fn phases(&self) -> Vec<Phase> {
        let phase = |steps: &Steps| Phase { name: steps.name().to_owned(), max_rows: steps.max_rows(&self.arch) };
        Steps::of(&self.arch).iter().map(phase).collect()
    }

    fn with_profile(&self, _: Profile) -> Result<Box<dyn Target>, ProfileError> {
        Err(ProfileError::wrong("", "schedules of GPUs cannot be set"))
    }

    fn profile(&self) -> Option<&Profile> {
        None
    }

    fn candidates(&self, _: &Family, _: usize, _: &Fields) -> Option<Vec<Fields>> {
        None
    }

    fn schedule(&self, spec: &KernelSpec, phase: usize) -> String {
        let steps = Steps::of(&self.arch)[phase];
        let regime = steps.regime();
        match spec {
            KernelSpec::Linear(s) => {
                let schedule = schedule::linear(&self.arch, steps, s);
                format!("{schedule:?} {:?}", schedule::product_machine(regime, s, &schedule))
            }
            KernelSpec::Attention(s) => {
                let schedule = schedule::attention(&self.arch, steps, s);
                format!("{schedule:?} {:?}", schedule::attention_machine(&schedule))
            }
            KernelSpec::Rows(_) => format!("{:?}", schedule::rows(regime)),
            KernelSpec::Combine(_) => format!("{}", steps.is_divided()),
            KernelSpec::Scan(_) => format!("{:?}", schedule::rows(Regime::One)),
        }
    }

    fn tiling(&self, spec: &KernelSpec, phase: usize) -> Tiling {
        let steps = Steps::of(&self.arch)[phase];
        let regime = steps.regime();
        match spec {
            KernelSpec::Linear(s) => Tiling::of_linear(s, &schedule::linear(&self.arch, steps, s)),
            KernelSpec::Attention(s) => {
                let schedule = schedule::attention(&self.arch, steps, s);
                let tiles_per_block = schedule::attention_tiles(&self.arch, steps, s);
                Tiling { rows_per_tile: schedule.rows_per_tile, tiles_per_block }
            }
            KernelSpec::Combine(s) if steps.is_divided() => Tiling { rows_per_tile: 1, tiles_per_block: s.heads },
            KernelSpec::Combine(_) => Tiling { rows_per_tile: ALL_ROWS, tiles_per_block: 1 },
            KernelSpec::Scan(s) => Tiling { rows_per_tile: ALL_ROWS, tiles_per_block: s.parts },
            KernelSpec::Rows(_) => Tiling { rows_per_tile: schedule::rows(regime).rows_per_tile, tiles_per_block: 1 },
        }
    }

    fn emit(&self, spec: &KernelSpec, phase: usize) -> Result<Emitted, CodegenError> {
        let steps = Steps::of(&self.arch)[phase];
        let regime = steps.regime();
        let mut shared_bytes = 0;
        let (mlir, scratch_bytes) = match spec {
            KernelSpec::Linear(s) => {
                let schedule = schedule::linear(&self.arch, steps, s);
                shared_bytes = linear::tiles::brought_bytes(s, &schedule);
                linear::emit(SYMBOL, s, &self.on(schedule::product_machine(regime, s, &schedule)), &schedule)?
            }
            KernelSpec::Attention(s) => {
                let schedule = schedule::attention(&self.arch, steps, s);
                shared_bytes = attention::shared_bytes(s, &schedule);
                attention::emit(SYMBOL, s, &self.on(schedule::attention_machine(&schedule)), &schedule)?
            }
            KernelSpec::Combine(s) => {
                let heads = steps.is_divided().then_some(1);
                attention::combine::emit(SYMBOL, s, &self.on(schedule::machine(schedule::WARP)), heads)?
            }
            KernelSpec::Rows(s) => {
                let schedule = schedule::rows(regime);
                rows::emit(SYMBOL, s, &self.on(schedule::machine(schedule.lanes)), &schedule)?
            }
            KernelSpec::Scan(s) => {
                let schedule = schedule::rows(Regime::One);
                rows::scan::emit(SYMBOL, s, &self.on(schedule::machine(schedule.lanes)), &schedule)?
            }
        };
        Ok(Emitted { mlir, scratch_bytes, shared_bytes, waits: self.arch.overlaps })
    }

    /// PTX modules one after another, each ended by a zero byte.
    fn link(&self, objects: &[(String, &[u8])]) -> Result<CodeImage, CodegenError> {
        let mut image = CodeImage::default();
        for (name, text) in objects {
            let failed = |message: &str| CodegenError::Llvm { kernel: name.clone(), message: message.into() };
            if text.contains(&0) {
                return Err(failed("PTX with a zero byte"));
            }
            let text = std::str::from_utf8(text).map_err(|_| failed("PTX that is no text"))?;
            if let Some(import) = text.lines().find(|line| line.trim_start().starts_with(".extern .func")) {
                return Err(failed(&format!("undefined function `{import}`: generated code must call nothing")));
            }
            image.entries.push(image.bytes.len() as u64);
            image.bytes.extend_from_slice(text.as_bytes());
            image.bytes.push(0);
        }
        Ok(image)
    }

    fn compiler(&self) -> Result<Box<dyn Compiler>, CodegenError> {
        Ok(Box::new(CudaCompiler { lowering: Lowering::new(), writer: PtxWriter::new(&self.arch)? }))
    }
}

struct CudaCompiler {
    lowering: Lowering,
    writer: PtxWriter,
}

impl Compiler for CudaCompiler {
    fn compile(&self, name: &str, mlir: &str, keep: Keep) -> Result<Compiled, CodegenError> {
        self.lowering.lower(name, mlir, |module| self.writer.compile(name, module, keep))
    }
}
