//! A module of PTX, parsed and decoded, as its users see it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::decode::flatten::flatten;
use crate::decode::program::Program;
use crate::exec::fault::FaultKind;
use crate::exec::memory::Memory;
use crate::ptx::ParseError;
use crate::ptx::ast::{Function, Initial, Space, Variable};
use crate::ptx::parser::parse;

/// A module, ready to launch kernels of.
pub struct Module {
    id: u64,
    version: String,
    target: String,
    kernels: Vec<Kernel>,
    variables: Vec<Variable>,
    source: Vec<String>,
}

/// A kernel: an `.entry` of a module.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// The block size that it requires.
    pub reqntid: Option<[u32; 3]>,
    /// The largest block size that it allows.
    pub maxntid: Option<[u32; 3]>,
    /// Registers of a thread when it begins, where the text says how many there may be: what `setmaxnreg` divides.
    pub registers: Option<u32>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    pub(crate) program: Program,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Where it starts.
    pub offset: u32,
    /// Its bytes.
    pub bytes: u32,
    /// What its offset is a multiple of.
    pub align: u32,
}

/// Registers of a processor, and the most of a thread.
const REGISTERS: u32 = 65536;
const MOST_REGISTERS: u32 = 256;

/// Registers of a thread when it begins, in eights: as many as the directives leave (PTX ISA, section 11.4, "Performance-Tuning Directives").
fn registers(function: &Function) -> Option<u32> {
    let threads = function.reqntid.or(function.maxntid).map(|n| n.iter().product::<u32>().max(1).next_multiple_of(32));
    let of_threads =
        threads.map(|threads| REGISTERS / threads.saturating_mul(function.minnctapersm.unwrap_or(1).max(1)) / 8 * 8);
    let said = function.maxnreg.map(|n| n.next_multiple_of(8));
    said.into_iter().chain(of_threads).min().map(|n| n.min(MOST_REGISTERS))
}

impl Module {
    /// Parses and decodes PTX.
    ///
    /// # Errors
    /// At the first line with something that is not understood.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let source: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        let parsed = parse(text)?;
        let mut kernels = Vec::new();
        for function in parsed.functions.iter().filter(|f| f.entry) {
            let program = flatten(&parsed, function).map_err(|(line, message)| ParseError {
                line,
                message,
                text: source.get((line as usize).saturating_sub(1)).cloned().unwrap_or_default(),
            })?;
            let places = program.params.iter().zip(&program.param_offsets);
            let params = places.map(|(p, &offset)| Param {
                name: p.name.clone(),
                offset,
                bytes: p.bytes.unwrap_or_default() as u32,
                align: p.align as u32,
            });
            kernels.push(Kernel {
                name: function.name.clone(),
                params: params.collect(),
                reqntid: function.reqntid,
                maxntid: function.maxntid,
                registers: registers(function),
                shared_bytes: program.shared_bytes,
                local_bytes: program.local_bytes,
                program,
            });
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Module { id, version: parsed.version, target: parsed.target, kernels, variables: parsed.variables, source })
    }

    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The kernel of a name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// The PTX version: `8.6`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The target: `sm_90a`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn source(&self) -> &[String] {
        &self.source
    }

    /// The address of a variable in global or constant memory.
    ///
    /// # Errors
    /// If there is no such variable.
    pub fn variable(&self, name: &str, memory: &mut Memory) -> Result<u64, FaultKind> {
        let addresses = self.place(memory)?;
        let at = self.variables.iter().position(|v| v.name == name && v.space != Space::Shared);
        at.map(|at| addresses[at]).ok_or_else(|| FaultKind::Launch(format!("the module has no variable {name}")))
    }

    /// Allocates and initialises the module's variables in a memory, once; gives their addresses.
    pub(crate) fn place(&self, memory: &mut Memory) -> Result<Vec<u64>, FaultKind> {
        if let Some(addresses) = memory.variables.get(&self.id) {
            return Ok(addresses.clone());
        }
        let addresses: Vec<u64> = self
            .variables
            .iter()
            .map(|v| if v.space == Space::Shared { 0 } else { memory.alloc(v.bytes.unwrap_or(0), v.align) })
            .collect();
        for (variable, &address) in self.variables.iter().zip(&addresses).filter(|(v, _)| v.space != Space::Shared) {
            let mut at = address;
            for initial in &variable.initial {
                let bits = match initial {
                    Initial::Bits(bits) => *bits,
                    Initial::Address(name, offset) => {
                        let which = self.variables.iter().position(|v| &v.name == name && v.space != Space::Shared);
                        let base = which.map(|which| addresses[which]);
                        let wrong = || FaultKind::Launch(format!("{} names {name}, which is nowhere", variable.name));
                        base.ok_or_else(wrong)?.wrapping_add_signed(*offset)
                    }
                };
                memory.write(at, &bits.to_le_bytes()[..variable.element.min(8) as usize])?;
                at += variable.element;
            }
            if variable.space == Space::Const {
                memory.protect(address);
            }
        }
        memory.variables.insert(self.id, addresses.clone());
        Ok(addresses)
    }
}
