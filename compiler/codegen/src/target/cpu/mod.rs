//! CPU targets: instruction sets, schedules, object code, and the image that the runtime maps.

pub mod isa;
mod levels;
pub mod link;
pub mod mlir_to_object;
mod relocate;
pub mod schedule;
mod tuning;

use std::sync::Arc;

use xfc_lang::graph::DType;
use xfc_runtime::artifact::container::CodeImage;
use xfc_runtime::artifact::manifest::{self, Pack, Phase, Products};

use self::isa::Isa;
use self::mlir_to_object::ObjectWriter;
use self::schedule::{ProductKind, Regime};
use super::profile::{self, Family, Fields, Profile, ProfileError};
use super::{Compiled, Compiler, Emitted, Keep, SYMBOL, Target, Tiling};
use crate::error::CodegenError;
use crate::mlir::pipeline::Lowering;
use crate::mlir::schedule::{AttentionSchedule, LinearSchedule, Multiplied, RowsSchedule, panel_depth};
use crate::mlir::{attention, linear, rows};
use crate::plan::kernel::{AttentionSpec, Division, KernelSpec, LinearSpec};

/// Code for one instruction set.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    profile: Option<Arc<Profile>>,
}

impl Cpu {
    /// A target for `isa`.
    pub fn new(isa: Isa) -> Self {
        Cpu { isa, profile: None }
    }

    fn linear(&self, phase: usize, spec: &LinearSpec) -> LinearSchedule {
        let regime = Regime::ALL[phase];
        let mut schedule = schedule::linear(&self.isa, regime, ProductKind::of(spec));
        if let Some(profile) = &self.profile {
            let family = profile::Product { operand: spec.operand, parts: spec.parts, rows: regime };
            tuning::set(&mut schedule, &profile.product(&family));
            schedule.next_panel &= spec.experts.is_none();
        }
        schedule::by_tiles(&self.isa, regime, &mut schedule, spec);
        schedule
    }

    fn rows(&self, phase: usize, spec: &KernelSpec) -> RowsSchedule {
        let rows = if let KernelSpec::Rows(rows) = spec { Some(rows) } else { None };
        schedule::rows(&self.isa, Regime::ALL[phase], rows)
    }

    fn attention(&self, phase: usize, spec: &AttentionSpec) -> AttentionSchedule {
        let regime = Regime::ALL[phase];
        let family = tuning::family(spec, regime);
        let set = self.profile.as_ref().zip(family).map(|(profile, family)| profile.attention(&family));
        schedule::attention(&self.isa, regime, spec, &set.unwrap_or_default())
    }
}

impl Target for Cpu {
    fn name(&self) -> &str {
        &self.isa.name
    }

    fn describe(&self) -> manifest::Target {
        manifest::Target {
            name: self.isa.name.clone(),
            arch: self.isa.arch.to_owned(),
            features: self.isa.needs.clone(),
        }
    }

    fn rank(&self) -> u32 {
        // Wider vectors first; of equal ones, the code that uses more of the machine; of equal needs, the one tuned for a processor.
        let isa = &self.isa;
        isa.machine.lanes * 1000 + isa.needs.len() as u32 * 2 + u32::from(isa.tune.is_some())
    }

    fn pack(&self, dtype: DType) -> Pack {
        let columns = schedule::panel_columns(&self.isa);
        match dtype {
            DType::Blocks(blocks) => Pack::Blocks(linear::packed(blocks, columns, panel_depth(false))),
            _ => Pack::Panels { columns, depth: panel_depth(dtype == DType::BF16) },
        }
    }

    fn page_tokens(&self) -> u64 {
        schedule::PAGE_TOKENS
    }

    fn widened_groups(&self) -> u64 {
        schedule::widened_groups(&self.isa)
    }

    fn multiplies(&self, spec: &KernelSpec, phase: usize) -> Option<Products> {
        let KernelSpec::Linear(spec) = spec else { return None };
        let form = self.linear(phase, spec).scratch.map(|blocks| blocks.form);
        (form == Some(Multiplied::WidenedTiles)).then_some(Products::Half)
    }

    fn pages_of_rows(&self) -> bool {
        false
    }

    fn paired_bytes(&self) -> bool {
        self.isa.machine.word_dot.is_some()
    }

    fn division(&self, spec: &AttentionSpec) -> Division {
        schedule::division(spec)
    }

    fn phases(&self) -> Vec<Phase> {
        Regime::ALL.iter().map(|r| Phase { name: r.name().to_owned(), max_rows: r.max_rows() }).collect()
    }

    fn with_profile(&self, profile: Profile) -> Result<Box<dyn Target>, ProfileError> {
        tuning::check(&self.isa, &profile)?;
        Ok(Box::new(Cpu { isa: self.isa.clone(), profile: Some(Arc::new(profile)) }))
    }

    fn profile(&self) -> Option<&Profile> {
        self.profile.as_deref()
    }

    fn candidates(&self, family: &Family, stage: usize, best: &Fields) -> Option<Vec<Fields>> {
        tuning::candidates(&self.isa, family, stage, best)
    }

    fn schedule(&self, spec: &KernelSpec, phase: usize) -> String {
        match spec {
            KernelSpec::Linear(s) => format!("{:?}", self.linear(phase, s)),
            KernelSpec::Attention(s) => format!("{:?}", self.attention(phase, s)),
            KernelSpec::Combine(_) => format!("{:?}, parted: {}", self.isa.machine, is_parted(phase)),
            KernelSpec::Rows(_) | KernelSpec::Scan(_) => format!("{:?}", self.rows(phase, spec)),
        }
    }

    fn tiling(&self, spec: &KernelSpec, phase: usize) -> Tiling {
        match spec {
            KernelSpec::Linear(s) => Tiling::of_linear(s, &self.linear(phase, s)),
            KernelSpec::Attention(s) => {
                let schedule = self.attention(phase, s);
                Tiling {
                    rows_per_tile: schedule.rows_per_tile,
                    tiles_per_block: schedule.tiles_per_block(s.kv_heads, s.heads / s.kv_heads),
                }
            }
            KernelSpec::Combine(s) if is_parted(phase) => Tiling { rows_per_tile: 1, tiles_per_block: s.kv_heads },
            KernelSpec::Combine(_) => Tiling { rows_per_tile: schedule::ALL_ROWS, tiles_per_block: 1 },
            // Every part goes over all tokens.
            KernelSpec::Scan(s) => Tiling { rows_per_tile: schedule::ALL_ROWS, tiles_per_block: s.parts },
            KernelSpec::Rows(_) => Tiling { rows_per_tile: self.rows(phase, spec).rows_per_tile, tiles_per_block: 1 },
        }
    }

    fn emit(&self, spec: &KernelSpec, phase: usize) -> Result<Emitted, CodegenError> {
        let machine = &self.isa.machine;
        let (mlir, scratch_bytes) = match spec {
            KernelSpec::Linear(s) => linear::emit(SYMBOL, s, machine, &self.linear(phase, s))?,
            KernelSpec::Attention(s) => attention::emit(SYMBOL, s, machine, &self.attention(phase, s))?,
            KernelSpec::Combine(s) => {
                let heads = is_parted(phase).then(|| s.heads / s.kv_heads);
                attention::combine::emit(SYMBOL, s, machine, heads)?
            }
            KernelSpec::Rows(s) => rows::emit(SYMBOL, s, machine, &self.rows(phase, spec))?,
            KernelSpec::Scan(s) => rows::scan::emit(SYMBOL, s, machine, &self.rows(phase, spec))?,
        };
        Ok(Emitted { mlir, scratch_bytes, shared_bytes: 0, waits: false })
    }

    fn link(&self, objects: &[(String, &[u8])]) -> Result<CodeImage, CodegenError> {
        link::link(objects, SYMBOL)
    }

    fn compiler(&self) -> Result<Box<dyn Compiler>, CodegenError> {
        Ok(Box::new(CpuCompiler { lowering: Lowering::new(), writer: ObjectWriter::new(&self.isa)? }))
    }
}

/// Whether steps of a phase are of rows so few that the keys of a query may be divided into parts.
fn is_parted(phase: usize) -> bool {
    Regime::ALL[phase].max_rows().is_some_and(|rows| rows <= schedule::PARTED_ROWS)
}

struct CpuCompiler {
    lowering: Lowering,
    writer: ObjectWriter,
}

impl Compiler for CpuCompiler {
    fn compile(&self, name: &str, mlir: &str, keep: Keep) -> Result<Compiled, CodegenError> {
        self.lowering.lower(name, mlir, |module| self.writer.compile(name, module, keep))
    }
}
