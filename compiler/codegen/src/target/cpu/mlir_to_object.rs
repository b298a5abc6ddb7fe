//! A lowered MLIR module to object code of a CPU, through LLVM. One of the files that name inkwell.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};

use super::isa::Isa;
use crate::error::CodegenError;
use crate::mlir::pipeline::Lowered;
use crate::target::optimise::{Optimiser, Output};
use crate::target::{Compiled, Keep};

/// LLVM's name of this machine's processor.
pub fn host_processor() -> String {
    TargetMachine::get_host_cpu_name().to_string()
}

/// Writes objects, one a worker thread.
#[derive(Debug)]
pub struct ObjectWriter(Optimiser);

impl ObjectWriter {
    /// Sets LLVM up for `isa`.
    ///
    /// # Errors
    /// LLVM lacks the target.
    pub fn new(isa: &Isa) -> Result<Self, CodegenError> {
        Target::initialize_x86(&InitializationConfig::default());
        Target::initialize_aarch64(&InitializationConfig::default());
        let triple = TargetTriple::create(&isa.triple());
        let failed = |message: String| CodegenError::Target { name: isa.name.clone(), reason: message };
        let target = Target::from_triple(&triple).map_err(|e| failed(e.to_string()))?;
        let machine = target
            .create_target_machine(
                &triple,
                isa.llvm_cpu,
                &isa.llvm_features(),
                OptimizationLevel::Aggressive,
                RelocMode::PIC,
                CodeModel::Small,
            )
            .ok_or_else(|| failed("LLVM has no such machine".into()))?;
        Ok(ObjectWriter(Optimiser { context: Context::create(), machine, tune: isa.tune }))
    }

    /// Compiles a module in the LLVM dialect.
    ///
    /// # Errors
    /// A module that LLVM rejects.
    pub fn compile(&self, kernel: &str, module: &Lowered<'_>, keep: Keep) -> Result<Compiled, CodegenError> {
        let Output { bytes, llvm, assembly } = self.0.compile(kernel, module, FileType::Object, keep)?;
        Ok(Compiled { object: bytes, llvm, assembly })
    }
}
