//! A lowered MLIR module to optimised LLVM IR, and to what a target machine makes of it: what all targets share. One of the files that name inkwell.
//!
//! Functions are marked `no-builtins`, so that LLVM recognises no loop as a call of `memset` or `memcpy`.

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{FileType, TargetMachine};
use inkwell::values::{AnyValue, CallSiteValue, Operand};

use crate::error::CodegenError;
use crate::mlir::pipeline::Lowered;
use crate::target::Keep;

/// Parts of the names of instructions that threads run together, or by which they wait for one another.
const TOGETHER: [&str; 4] = [".sync", "bar.", "mbarrier.", "fence."];

/// An LLVM context and target machine, one a worker thread.
#[derive(Debug)]
pub(super) struct Optimiser {
    pub(super) context: Context,
    pub(super) machine: TargetMachine,
    /// LLVM's name of the processor whose timings decide, where it is another than the code may need.
    pub(super) tune: Option<&'static str>,
}

/// What LLVM made of a module.
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) llvm: Option<String>,
    pub(super) assembly: Option<String>,
}

impl Optimiser {
    /// Compiles a module in the LLVM dialect to a file of type `file`.
    ///
    /// # Errors
    /// A module that LLVM rejects.
    pub(super) fn compile(
        &self,
        kernel: &str,
        module: &Lowered<'_>,
        file: FileType,
        keep: Keep,
    ) -> Result<Output, CodegenError> {
        let failed = |message: String| CodegenError::Llvm { kernel: kernel.to_owned(), message };
        let module = module.translate(&self.context).ok_or_else(|| failed("translation to LLVM IR failed".into()))?;
        self.finish(&module).map_err(&failed)?;
        let written = |file| {
            let buffer = self.machine.write_to_memory_buffer(&module, file).map_err(|e| failed(e.to_string()))?;
            let mut bytes = buffer.as_slice().to_vec();
            if file == FileType::Assembly {
                bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
            }
            Ok::<_, CodegenError>(bytes)
        };
        let bytes = written(file)?;
        let assembly = if keep.assembly {
            Some(String::from_utf8_lossy(&written(FileType::Assembly)?).into_owned())
        } else {
            None
        };
        let llvm = keep.llvm.then(|| module.print_to_string().to_string());
        Ok(Output { bytes, llvm, assembly })
    }

    /// Says of assembly that threads run together that it has to stay so: LLVM may not move it to where some of them go.
    fn keep_together(&self, module: &Module<'_>) {
        let convergent = self.context.create_enum_attribute(Attribute::get_named_enum_kind_id("convergent"), 0);
        let blocks = module.get_functions().flat_map(|function| function.get_basic_blocks());
        for instruction in blocks.flat_map(|block| block.get_instructions()) {
            let Ok(call) = CallSiteValue::try_from(instruction) else { continue };
            if call.get_called_fn_value().is_some() {
                continue;
            }
            // What is called is the last operand. Printed by itself, since all of a function is numbered to print one of its instructions.
            let callee = instruction.get_operand(instruction.get_num_operands() - 1).and_then(Operand::value);
            let Some(text) = callee.map(|callee| callee.print_to_string().to_string()) else { continue };
            if text.contains(" asm ") && TOGETHER.iter().any(|part| text.contains(part)) {
                call.add_attribute(AttributeLoc::Function, convergent);
            }
        }
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
        self.keep_together(module);
        module.verify().map_err(|e| e.to_string())?;
        module.run_passes("default<O3>", &self.machine, PassBuilderOptions::create()).map_err(|e| e.to_string())
    }
}
