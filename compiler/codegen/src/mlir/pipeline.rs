//! MLIR text to LLVM IR: parse, verify, lower, translate.
//!
//! One [`Lowering`] a worker thread: it owns an MLIR context with multithreading off, so that output does not depend on how many
//! threads compile. Everything MLIR says goes into the error.

use std::cell::RefCell;
use std::rc::Rc;

use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::ir::operation::OperationLike;
use melior::pass::PassManager;
use melior::utility::{
    parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
};

use crate::error::CodegenError;

/// The passes, in order. Kernels use `arith`, `scf`, `vector`, `func` and `llvm` only.
const PIPELINE: &str = "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm,convert-arith-to-llvm,convert-func-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

/// Lowers kernels one after another.
#[derive(Debug)]
pub struct Lowering {
    context: Context,
}

impl Lowering {
    /// Sets up a context.
    pub fn new() -> Self {
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        let context = Context::new_with_registry(&registry, false);
        register_all_llvm_translations(&context);
        static PASSES: std::sync::Once = std::sync::Once::new();
        PASSES.call_once(register_all_passes);
        Lowering { context }
    }

    /// Lowers `text` to the LLVM dialect and hands it to `then`.
    pub fn lower<R>(
        &self,
        kernel: &str,
        text: &str,
        then: impl FnOnce(&Lowered<'_>) -> Result<R, CodegenError>,
    ) -> Result<R, CodegenError> {
        let messages = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&messages);
        let handler = self.context.attach_diagnostic_handler(move |d| {
            sink.borrow_mut().push(format!("{}: {d}", d.location()));
            true
        });
        let result = self.lower_inner(kernel, text, then);
        self.context.detach_diagnostic_handler(handler);
        result.map_err(|e| match e {
            CodegenError::Mlir { kernel, stage, .. } => {
                CodegenError::Mlir { kernel, stage, messages: messages.borrow().join("\n") }
            }
            other => other,
        })
    }

    fn lower_inner<R>(
        &self,
        kernel: &str,
        text: &str,
        then: impl FnOnce(&Lowered<'_>) -> Result<R, CodegenError>,
    ) -> Result<R, CodegenError> {
        let failed = |stage| CodegenError::Mlir { kernel: kernel.to_owned(), stage, messages: String::new() };
        let mut module = Module::parse(&self.context, text).ok_or_else(|| failed("parsing"))?;
        if !module.as_operation().verify() {
            return Err(failed("verification"));
        }
        let passes = PassManager::new(&self.context);
        parse_pass_pipeline(passes.as_operation_pass_manager(), PIPELINE).map_err(|_| failed("pipeline"))?;
        passes.run(&mut module).map_err(|_| failed("lowering"))?;
        then(&Lowered(&module))
    }
}

impl Default for Lowering {
    fn default() -> Self {
        Lowering::new()
    }
}

/// A module in the LLVM dialect.
#[derive(Debug)]
pub struct Lowered<'m>(&'m Module<'m>);

impl Lowered<'_> {
    /// The LLVM IR of the module, in `context`; `None` when MLIR cannot translate it.
    #[expect(unsafe_code, reason = "hands LLVM IR from MLIR's C API to inkwell")]
    pub fn translate<'c>(&self, context: &'c inkwell::context::Context) -> Option<inkwell::module::Module<'c>> {
        // SAFETY: the operation is a live module in the LLVM dialect; the context outlives the result by its lifetime; both crates
        // link the one LLVM, so the pointer types are the same C types.
        unsafe {
            let raw = mlir_sys::mlirTranslateModuleToLLVMIR(self.0.as_operation().to_raw(), context.raw().cast());
            (!raw.is_null()).then(|| inkwell::module::Module::new(raw.cast()))
        }
    }

    /// The module's text.
    pub fn text(&self) -> String {
        self.0.as_operation().to_string()
    }
}
