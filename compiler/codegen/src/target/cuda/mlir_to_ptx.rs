//! A lowered MLIR module to PTX, through LLVM. One of the files that name inkwell.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetTriple};

use super::arch::Arch;
use crate::error::CodegenError;
use crate::mlir::pipeline::Lowered;
use crate::target::optimise::{Optimiser, Output};
use crate::target::{Compiled, Keep};

/// Writes PTX, one a worker thread.
#[derive(Debug)]
pub(super) struct PtxWriter(Optimiser);

impl PtxWriter {
    /// Sets LLVM up for `arch`.
    ///
    /// # Errors
    /// LLVM lacks the target.
    pub(super) fn new(arch: &Arch) -> Result<Self, CodegenError> {
        Target::initialize_nvptx(&InitializationConfig::default());
        let triple = TargetTriple::create("nvptx64-nvidia-cuda");
        let failed = |message: String| CodegenError::Target { name: arch.target(), reason: message };
        let target = Target::from_triple(&triple).map_err(|e| failed(e.to_string()))?;
        let machine = target
            .create_target_machine(
                &triple,
                arch.name,
                &format!("+ptx{}", arch.ptx),
                OptimizationLevel::Aggressive,
                RelocMode::PIC,
                CodeModel::Small,
            )
            .ok_or_else(|| failed("LLVM has no such machine".into()))?;
        Ok(PtxWriter(Optimiser { context: Context::create(), machine, tune: None }))
    }

    /// Compiles a module in the LLVM dialect; the object is PTX text.
    ///
    /// # Errors
    /// A module that LLVM rejects.
    pub(super) fn compile(&self, kernel: &str, module: &Lowered<'_>, keep: Keep) -> Result<Compiled, CodegenError> {
        let keep = Keep { assembly: false, ..keep };
        let Output { bytes, llvm, .. } = self.0.compile(kernel, module, FileType::Assembly, keep)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Compiled { object: bytes, llvm, assembly: Some(text) })
    }
}
