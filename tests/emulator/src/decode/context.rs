//! Names of a function being decoded: registers, variables, labels, each in its scope; and the rows that constants get.

use std::collections::HashMap;

use super::lanes::Reg;
use super::program::{Constant, Inst, Pc, Special};
use super::types::{Ty, truncate};
use crate::ptx::ast::{Operand, Space, Variable};

/// What a name stands for.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Register(Reg),
    /// A variable: its space, its address there.
    Variable(Space, Constant),
    Targets(Vec<String>),
}

/// Names of one block.
#[derive(Default)]
pub(crate) struct Scope {
    pub(crate) names: HashMap<String, Name>,
    pub(crate) labels: HashMap<String, usize>,
    /// Nothing of scopes further out is seen: the scope of a function.
    pub(crate) closed: bool,
}

/// A row that a lane's instruction ignores.
pub(crate) const SINK: Reg = 0;

/// What is known while a kernel is decoded.
pub(crate) struct Context {
    /// From the outermost to the innermost.
    pub(crate) scopes: Vec<Scope>,
    /// The type of each row; rows of constants have none.
    pub(crate) rows: Vec<Option<Ty>>,
    pub(crate) constants: Vec<(Reg, Constant)>,
    constant_rows: HashMap<Constant, Reg>,
    /// Where each label is, once it is.
    pub(crate) labels: Vec<Option<Pc>>,
    pub(crate) code: Vec<Inst>,
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_shared: Option<u32>,
    pub(crate) local_bytes: u32,
    carry: Option<Reg>,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self {
            scopes: vec![Scope::default()],
            rows: vec![None],
            constants: Vec::new(),
            constant_rows: HashMap::new(),
            labels: Vec::new(),
            code: Vec::new(),
            shared_bytes: 0,
            dynamic_shared: None,
            local_bytes: 0,
            carry: None,
        }
    }

    pub(crate) fn register(&mut self, ty: Ty) -> Reg {
        self.rows.push(Some(ty));
        (self.rows.len() - 1) as Reg
    }

    pub(crate) fn constant(&mut self, constant: Constant) -> Reg {
        if let Some(&row) = self.constant_rows.get(&constant) {
            return row;
        }
        self.rows.push(None);
        let row = (self.rows.len() - 1) as Reg;
        self.constants.push((row, constant));
        self.constant_rows.insert(constant, row);
        row
    }

    /// The register of the carry.
    pub(crate) fn carry(&mut self) -> Reg {
        match self.carry {
            Some(carry) => carry,
            None => {
                let carry = self.register(Ty::Pred);
                self.carry = Some(carry);
                carry
            }
        }
    }

    /// Whether a function that was called is being decoded.
    pub(crate) fn inlined(&self) -> bool {
        self.scopes.iter().filter(|s| s.closed).count() > 1
    }

    fn visible(&self) -> impl Iterator<Item = &Scope> {
        let mut open = true;
        let module = self.scopes.first();
        let own = self.scopes.iter().skip(1).rev().take_while(move |scope| {
            let seen = open;
            open = open && !scope.closed;
            seen
        });
        own.chain(module)
    }

    pub(crate) fn name(&self, name: &str) -> Option<&Name> {
        self.visible().find_map(|scope| scope.names.get(name))
    }

    pub(crate) fn label(&self, name: &str) -> Result<usize, String> {
        self.visible().find_map(|s| s.labels.get(name)).copied().ok_or_else(|| format!("there is no label {name}"))
    }

    pub(crate) fn declare(&mut self, name: &str, what: Name) -> Result<(), String> {
        let scope = self.scopes.last_mut().ok_or("a name outside of a scope")?;
        match scope.names.insert(name.to_owned(), what) {
            None => Ok(()),
            Some(_) => Err(format!("{name} is declared twice")),
        }
    }

    /// Places a variable and declares it.
    pub(crate) fn variable(&mut self, variable: &Variable) -> Result<(), String> {
        let align = variable.align.max(1) as u32;
        let place = |used: &mut u32, bytes: u64| {
            let at = used.next_multiple_of(align);
            *used = at + bytes as u32;
            at
        };
        let at = match (variable.space, variable.bytes) {
            (Space::Shared, Some(bytes)) => place(&mut self.shared_bytes, bytes) + crate::exec::shared::BASE,
            // All unsized variables are the same memory; where it is is known when all others are placed.
            (Space::Shared, None) => {
                let align = self.dynamic_shared.unwrap_or(16).max(align);
                self.dynamic_shared = Some(align);
                return self.declare(&variable.name, Name::Variable(Space::Shared, Constant::DynamicShared(0)));
            }
            (Space::Local | Space::Param, Some(bytes)) => place(&mut self.local_bytes, bytes),
            _ => return Err(format!("{} cannot be declared here", variable.name)),
        };
        // Parameters of calls are memory of the thread.
        let space = if variable.space == Space::Param { Space::Local } else { variable.space };
        self.declare(&variable.name, Name::Variable(space, Constant::Bits(at.into())))
    }

    /// The row of a register.
    pub(crate) fn reg(&self, operand: &Operand) -> Result<Reg, String> {
        match operand {
            Operand::Sink => Ok(SINK),
            Operand::Name(name) => match self.name(name) {
                Some(Name::Register(reg)) => Ok(*reg),
                _ => Err(format!("{name} is not a register")),
            },
            other => Err(format!("{other:?} is not a register")),
        }
    }

    /// The declared type of a row.
    pub(crate) fn declared(&self, reg: Reg) -> Option<Ty> {
        self.rows[reg as usize]
    }

    /// The row of a source: of a register, or of the constant that the operand is as this type.
    pub(crate) fn source(&mut self, operand: &Operand, ty: Ty) -> Result<Reg, String> {
        let bits = match operand {
            Operand::Int(value) if ty == Ty::F32 || ty == Ty::F64 => {
                return Err(format!("{value} is not a number of type {ty:?}"));
            }
            Operand::Int(value) if ty == Ty::Pred => value & 1,
            Operand::Int(value) => truncate(*value, ty.bits()),
            Operand::F32(bits) => u64::from(*bits),
            Operand::F64(bits) if ty.bytes() == 4 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::F64(bits) => *bits,
            Operand::Name(name) => match self.name(name) {
                Some(Name::Register(reg)) => return Ok(*reg),
                Some(Name::Variable(_, constant)) => {
                    let constant = *constant;
                    return Ok(self.constant(constant));
                }
                _ => return Ok(self.constant(special(name)?)),
            },
            Operand::Offset(name, offset) => {
                let constant = self.address_of(name, *offset)?;
                return Ok(self.constant(constant));
            }
            other => return Err(format!("{other:?} is not a source here")),
        };
        Ok(self.constant(Constant::Bits(bits)))
    }

    fn address_of(&self, name: &str, offset: i64) -> Result<Constant, String> {
        match self.name(name) {
            Some(Name::Variable(_, Constant::Bits(at))) => Ok(Constant::Bits(at.wrapping_add_signed(offset))),
            Some(Name::Variable(_, Constant::Global(which, base))) => Ok(Constant::Global(*which, base + offset)),
            Some(Name::Variable(_, Constant::DynamicShared(0))) => Ok(Constant::DynamicShared(offset)),
            _ => Err(format!("{name} is not a variable")),
        }
    }

    /// An address: the row of its base and the offset that is added.
    pub(crate) fn address(&mut self, operand: &Operand) -> Result<(Reg, i64, Option<Space>), String> {
        let Operand::Address(base, offset, more) = operand else {
            return Err("an address in brackets is expected".into());
        };
        if !more.is_empty() {
            return Err("an address has one part here".to_owned());
        }
        let space = match &**base {
            Operand::Name(name) => match self.name(name) {
                Some(Name::Variable(space, _)) => Some(*space),
                _ => None,
            },
            _ => None,
        };
        Ok((self.source(base, Ty::B64)?, *offset, space))
    }

    /// The elements of `{a, b}`, or the one operand.
    pub(crate) fn elements(operand: &Operand) -> &[Operand] {
        match operand {
            Operand::Vector(list) => list,
            one => std::slice::from_ref(one),
        }
    }

    pub(crate) fn regs(&self, operand: &Operand) -> Result<Vec<Reg>, String> {
        Self::elements(operand).iter().map(|o| self.reg(o)).collect()
    }

    pub(crate) fn sources(&mut self, operand: &Operand, ty: Ty) -> Result<Vec<Reg>, String> {
        Self::elements(operand).iter().map(|o| self.source(o, ty)).collect()
    }

    /// A number that must be known when decoding.
    pub(crate) fn immediate(operand: &Operand) -> Result<i64, String> {
        match operand {
            Operand::Int(value) => Ok(*value as i64),
            other => Err(format!("{other:?} is not an integer constant")),
        }
    }
}

/// A special register that is constant for a thread (PTX ISA, section 10).
fn special(name: &str) -> Result<Constant, String> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|a| Some(*a) == name.rsplit('.').next());
    let stem = name.split('.').next().unwrap_or_default();
    let special = match (stem, axis(name)) {
        ("%tid", Some(axis)) => Special::Tid(axis),
        ("%ntid", Some(axis)) => Special::Ntid(axis),
        ("%ctaid" | "%clusterid", Some(axis)) => Special::Ctaid(axis),
        ("%nctaid" | "%nclusterid", Some(axis)) => Special::Nctaid(axis),
        // Clusters are of one block.
        ("%cluster_ctaid", Some(_)) | ("%cluster_ctarank" | "%is_explicit_cluster", None) => {
            return Ok(Constant::Bits(0));
        }
        ("%cluster_nctaid", Some(_)) | ("%cluster_nctarank", None) => return Ok(Constant::Bits(1)),
        ("%laneid", None) => Special::LaneId,
        ("%warpid", None) => Special::WarpId,
        ("%nwarpid", None) => Special::NWarpId,
        ("%smid", None) => Special::SmId,
        ("%nsmid", None) => Special::NSmId,
        ("%gridid", None) => Special::GridId,
        ("%lanemask_eq", None) => Special::LanemaskEq,
        ("%lanemask_le", None) => Special::LanemaskLe,
        ("%lanemask_lt", None) => Special::LanemaskLt,
        ("%lanemask_ge", None) => Special::LanemaskGe,
        ("%lanemask_gt", None) => Special::LanemaskGt,
        ("%dynamic_smem_size", None) => Special::DynamicSharedBytes,
        ("%total_smem_size", None) => Special::TotalSharedBytes,
        ("WARP_SZ", None) => return Ok(Constant::Bits(32)),
        _ => return Err(format!("{name} is not declared")),
    };
    Ok(Constant::Special(special))
}
