//! Instructions of tensor cores: `mma`, `ldmatrix`, `stmatrix`, `movmatrix` (PTX ISA, section 9.7.14) and `wgmma` (section 9.7.15).

use super::Decoded;
use super::context::{Context, SINK};
use super::lanes::Reg;
use super::modifiers::Modifiers;
use super::program::Op;
use super::types::Ty;
use crate::ptx::ast::{Operand, Space};

/// An instruction of all lanes of a warp.
pub(crate) enum Tensor {
    Mma(Mma),
    LoadMatrix(Matrices),
    StoreMatrix(Matrices),
    MoveMatrix { d: Reg, a: Reg },
    Wgmma(Wgmma),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(usize),
}

/// `D = A · B + C` by one warp; C and D are `m` by 8.
pub(crate) struct Mma {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) a_ty: Ty,
    pub(crate) b_ty: Ty,
    /// Of C and D: F32, F16 or S32.
    pub(crate) sum: Ty,
    pub(crate) saturate: bool,
    pub(crate) d: Box<[Reg]>,
    pub(crate) a: Box<[Reg]>,
    pub(crate) b: Box<[Reg]>,
    pub(crate) c: Box<[Reg]>,
}

/// Matrices of 8 by 8 elements of 16 bits, one a register.
pub(crate) struct Matrices {
    pub(crate) registers: Box<[Reg]>,
    pub(crate) transposed: bool,
    pub(crate) space: Space,
    pub(crate) address: Reg,
    pub(crate) offset: i64,
}

/// `D = A · B + D` by four warps; D is 64 by `n`.
pub(crate) struct Wgmma {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a_ty: Ty,
    pub(crate) b_ty: Ty,
    pub(crate) sum: Ty,
    pub(crate) saturate: bool,
    pub(crate) d: Box<[Reg]>,
    pub(crate) a: Factor,
    /// The register of B's descriptor.
    pub(crate) b: Reg,
    /// The predicate without which D is not added.
    pub(crate) scale_d: Reg,
    pub(crate) negate_a: bool,
    pub(crate) negate_b: bool,
    /// Whether A and B lie in memory by columns and rows: M- and N-major.
    pub(crate) transposed: [bool; 2],
}

/// Where A is.
pub(crate) enum Factor {
    Registers(Box<[Reg]>),
    Descriptor(Reg),
}

/// Decodes an instruction of tensor cores, `None` if the name is another instruction's.
pub(crate) fn decode(
    cx: &mut Context,
    name: &str,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Option<Decoded>, String> {
    let (tensor, results, sources) = match name {
        "mma" => mma(cx, m, operands)?,
        "ldmatrix" | "stmatrix" => matrices(cx, name == "ldmatrix", m, operands)?,
        "movmatrix" => {
            for word in ["sync", "aligned", "m8n8", "trans", "b16"] {
                m.require(word)?;
            }
            let [d, a] = operands else { return Err("two operands are expected".to_owned()) };
            let (d, a) = (cx.reg(d)?, cx.source(a, Ty::B32)?);
            (Tensor::MoveMatrix { d, a }, vec![d], vec![a])
        }
        "wgmma" => wgmma(cx, m, operands)?,
        _ => return Ok(None),
    };
    Ok(Some(Decoded { op: Op::Tensor(Box::new(tensor)), results, sources }))
}

type Parts = (Tensor, Vec<Reg>, Vec<Reg>);

/// `m16n8k32` as three numbers.
fn shape(m: &mut Modifiers<'_>) -> Result<[usize; 3], String> {
    let word = m.first().unwrap_or_default();
    let numbers = word.split(['m', 'n', 'k']).skip(1).map(str::parse).collect::<Result<Vec<usize>, _>>();
    match numbers.as_deref() {
        Ok(&[m, n, k]) => Ok([m, n, k]),
        _ => Err(format!("{word} is not a shape")),
    }
}

/// The registers of a matrix, if they are as many as its shape wants.
fn registers(regs: Vec<Reg>, want: usize, what: &str) -> Result<Box<[Reg]>, String> {
    if regs.len() == want {
        Ok(regs.into())
    } else {
        Err(format!("{what} has {want} registers in this shape, and {} are given", regs.len()))
    }
}

fn mma(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Parts, String> {
    m.require("sync")?;
    m.require("aligned")?;
    let [rows, n, k] = shape(m)?;
    m.require("row")?;
    m.require("col")?;
    let saturate = m.take("satfinite");
    let (d_ty, a_ty, b_ty, c_ty) = (m.ty()?, m.ty()?, m.ty()?, m.ty()?);
    let bytes = matches!(a_ty, Ty::S8 | Ty::U8) && matches!(b_ty, Ty::S8 | Ty::U8);
    let eighths = matches!(a_ty, Ty::E4m3 | Ty::E5m2) && matches!(b_ty, Ty::E4m3 | Ty::E5m2);
    let floats = d_ty == c_ty && matches!(d_ty, Ty::F32 | Ty::F16);
    let fits = match (a_ty, rows, n, k) {
        _ if bytes => d_ty == Ty::S32 && c_ty == Ty::S32 && matches!((rows, n, k), (16, 8, 16 | 32) | (8, 8, 16)),
        _ if eighths => floats && !saturate && matches!((rows, n, k), (16, 8, 16 | 32)),
        (Ty::F16, 16, 8, 8 | 16) => floats && b_ty == Ty::F16,
        (Ty::Bf16, 16, 8, 8 | 16) => d_ty == Ty::F32 && c_ty == Ty::F32 && b_ty == Ty::Bf16,
        (Ty::Tf32, 16, 8, 4 | 8) => d_ty == Ty::F32 && c_ty == Ty::F32 && b_ty == Ty::Tf32,
        _ => false,
    };
    if !fits {
        return Err(format!("no mma of {rows} by {n} by {k} with {d_ty:?}, {a_ty:?}, {b_ty:?}, {c_ty:?}"));
    }
    let [d, a, b, c] = operands else { return Err("four operands are expected".to_owned()) };
    let per_register = 4 / a_ty.bytes() as usize;
    let sums = rows / 8 * if d_ty == Ty::F16 { 1 } else { 2 };
    let k_parts = k / (4 * per_register);
    let mma = Mma {
        m: rows,
        k,
        a_ty,
        b_ty,
        sum: d_ty,
        saturate,
        d: registers(cx.regs(d)?, sums, "D")?,
        a: registers(cx.sources(a, Ty::B32)?, rows / 8 * k_parts, "A")?,
        b: registers(cx.sources(b, Ty::B32)?, k_parts, "B")?,
        c: registers(cx.sources(c, d_ty)?, sums, "C")?,
    };
    let results = mma.d.to_vec();
    let sources = [&mma.a, &mma.b, &mma.c].iter().flat_map(|r| r.iter()).copied().collect();
    Ok((Tensor::Mma(mma), results, sources))
}

fn matrices(cx: &mut Context, load: bool, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Parts, String> {
    for word in ["sync", "aligned", "m8n8"] {
        m.require(word)?;
    }
    let count = match m.one_of(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err("a number of matrices is expected".to_owned()),
    };
    let transposed = m.take("trans");
    let space = if m.one_of(&["shared", "shared::cta"]).is_some() { Space::Shared } else { Space::Generic };
    m.require("b16")?;
    let [first, second] = operands else { return Err("two operands are expected".to_owned()) };
    let (value, at) = if load { (first, second) } else { (second, first) };
    let (address, offset, space) = super::memory::located(cx, at, space)?;
    let regs = if load { cx.regs(value)? } else { cx.sources(value, Ty::B32)? };
    let regs = registers(regs, count, "it")?;
    let list = regs.to_vec();
    let matrices = Matrices { registers: regs, transposed, space, address, offset };
    Ok(if load {
        (Tensor::LoadMatrix(matrices), list, vec![address])
    } else {
        (Tensor::StoreMatrix(matrices), vec![], list.into_iter().chain([address]).collect())
    })
}

fn wgmma(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Parts, String> {
    let kind = m.one_of(&["fence", "commit_group", "wait_group", "mma_async"]);
    m.require("sync")?;
    m.require("aligned")?;
    match (kind, operands) {
        (Some("fence"), []) => return Ok((Tensor::WgmmaFence, vec![], vec![])),
        (Some("commit_group"), []) => return Ok((Tensor::WgmmaCommit, vec![], vec![])),
        (Some("wait_group"), [n]) => {
            return Ok((Tensor::WgmmaWait(Context::immediate(n)? as usize), vec![], vec![]));
        }
        (Some("mma_async"), _) => {}
        _ => return Err("this form of wgmma is not supported".to_owned()),
    }
    let [rows, n, k] = shape(m)?;
    let (sum, a_ty, b_ty) = (m.ty()?, m.ty()?, m.ty()?);
    let saturate = m.take("satfinite");
    let floats = matches!(sum, Ty::F32 | Ty::F16);
    let fits = match (a_ty, b_ty, k) {
        (Ty::F16, Ty::F16, 16) | (Ty::E4m3 | Ty::E5m2, Ty::E4m3 | Ty::E5m2, 32) => floats,
        (Ty::Bf16, Ty::Bf16, 16) | (Ty::Tf32, Ty::Tf32, 8) => sum == Ty::F32,
        (Ty::S8 | Ty::U8, Ty::S8 | Ty::U8, 32) => sum == Ty::S32 && (matches!(n, 8 | 16 | 24) || n.is_multiple_of(16)),
        _ => false,
    };
    if !fits || rows != 64 || n == 0 || !n.is_multiple_of(8) || n > 256 {
        return Err(format!("no wgmma of {rows} by {n} by {k} with {sum:?}, {a_ty:?}, {b_ty:?}"));
    }
    let [d, a, b, scale_d, rest @ ..] = operands else { return Err("operands are missing".to_owned()) };
    let in_registers = matches!(a, Operand::Vector(_));
    // Integers have no signs to choose; only types of 16 bits can be transposed, and A only in memory.
    let wide = a_ty.bytes() == 2;
    let signs = if sum == Ty::S32 { 0 } else { 2 };
    let transposes = if !wide {
        0
    } else if in_registers {
        1
    } else {
        2
    };
    if rest.len() != signs + transposes {
        return Err(format!("{} operands are expected, and {} are given", 4 + signs + transposes, operands.len()));
    }
    let constants = rest.iter().map(Context::immediate).collect::<Result<Vec<_>, _>>()?;
    let (signs, transposes) = constants.split_at(signs);
    if signs.iter().any(|s| s.abs() != 1) || transposes.iter().any(|t| !(0..2).contains(t)) {
        return Err("signs are 1 or -1, transpositions 0 or 1".to_owned());
    }
    let transposed = match transposes {
        [a, b] => [*a == 1, *b == 1],
        [b] => [false, *b == 1],
        _ => [false, false],
    };
    let scale_d = match scale_d {
        Operand::Int(value) => cx.source(&Operand::Int(u64::from(*value != 0)), Ty::Pred)?,
        other => cx.reg(other)?,
    };
    if scale_d == SINK {
        return Err("a predicate is expected".to_owned());
    }
    let sums = n / if sum == Ty::F16 { 4 } else { 2 };
    let wgmma = Wgmma {
        n,
        k,
        a_ty,
        b_ty,
        sum,
        saturate,
        d: registers(cx.regs(d)?, sums, "D")?,
        a: if in_registers {
            Factor::Registers(registers(cx.sources(a, Ty::B32)?, 4, "A")?)
        } else {
            Factor::Descriptor(cx.source(a, Ty::B64)?)
        },
        b: cx.source(b, Ty::B64)?,
        scale_d,
        negate_a: signs.first() == Some(&-1),
        negate_b: signs.get(1) == Some(&-1),
        transposed,
    };
    let a: Vec<Reg> = match &wgmma.a {
        Factor::Registers(a) => a.to_vec(),
        Factor::Descriptor(a) => vec![*a],
    };
    let results = wgmma.d.to_vec();
    let sources = a.into_iter().chain([wgmma.b, wgmma.scale_d]).collect();
    Ok((Tensor::Wgmma(wgmma), results, sources))
}
