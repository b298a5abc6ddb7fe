//! A lowered MLIR module to object code of a CPU, through LLVM. One of the files that name inkwell.
//!
//! Functions are marked `no-builtins`, so that LLVM recognises no loop as a call of `memset` or `memcpy`.

use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};

use super::isa::Isa;
use crate::error::CodegenError;
use crate::mlir::pipeline::Lowered;
use crate::target::{Compiled, Keep};

/// LLVM's name of this machine's processor.
pub fn host_processor() -> String {
    TargetMachine::get_host_cpu_name().to_string()
}

/// An LLVM context and target machine, one a worker thread.
#[derive(Debug)]
pub struct ObjectWriter {
    context: Context,
    machine: TargetMachine,
    tune: Option<&'static str>,
}

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
        Ok(ObjectWriter { context: Context::create(), machine, tune: isa.tune })
    }

    /// Compiles a module in the LLVM dialect.
    ///
    /// # Errors
    /// A module that LLVM rejects.
    pub fn compile(&self, kernel: &str, module: &Lowered<'_>, keep: Keep) -> Result<Compiled, CodegenError> {
        let failed = |message: String| CodegenError::Llvm { kernel: kernel.to_owned(), message };
        let module = module.translate(&self.context).ok_or_else(|| failed("translation to LLVM IR failed".into()))?;
        self.finish(&module).map_err(&failed)?;
        let object =
            self.machine.write_to_memory_buffer(&module, FileType::Object).map_err(|e| failed(e.to_string()))?;
        let assembly = if keep.assembly {
            let text =
                self.machine.write_to_memory_buffer(&module, FileType::Assembly).map_err(|e| failed(e.to_string()))?;
            Some(String::from_utf8_lossy(text.as_slice()).trim_end_matches('\0').to_owned())
        } else {
            None
        };
        let llvm = keep.llvm.then(|| module.print_to_string().to_string());
        Ok(Compiled { object: object.as_slice().to_vec(), llvm, assembly })
    }

    fn finish(&self, module: &Module<'_>) -> Result<(), String> {
        module.set_triple(&self.machine.get_triple());
        module.set_data_layout(&self.machine.get_target_data().get_data_layout());
        for function in module.get_functions() {
            let tune = self.tune.map(|cpu| ("tune-cpu", cpu));
            for (name, value) in [("no-builtins", ""), ("nounwind", "")].into_iter().chain(tune) {
                function.add_attribute(AttributeLoc::Function, self.context.create_string_attribute(name, value));
            }
        }
        module.verify().map_err(|e| e.to_string())?;
        module.run_passes("default<O3>", &self.machine, PassBuilderOptions::create()).map_err(|e| e.to_string())
    }
}
