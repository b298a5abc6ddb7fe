//! What lanes or warps do together: barriers, shuffles, votes (PTX ISA, sections 9.7.9.5 to 9.7.9.7 and 9.7.13).

use super::Decoded;
use super::context::{Context, SINK};
use super::lanes::Reg;
use super::modifiers::Modifiers;
use super::program::Op;
use super::types::Ty;
use crate::ptx::ast::Operand;

/// An instruction that needs several lanes.
pub(crate) enum Collective {
    Barrier { kind: BarrierKind, aligned: bool, id: Reg, count: Option<Reg> },
    WarpBarrier { mask: Reg },
    Shuffle { mode: Shuffle, d: Reg, valid: Reg, a: Reg, b: Reg, c: Reg, mask: Reg },
    Vote { mode: Vote, d: Reg, p: Reg, negated: bool, mask: Reg },
    Match { all: bool, d: Reg, p: Reg, a: Reg, mask: Reg },
    Reduce { op: Reduce, signed: bool, d: Reg, a: Reg, mask: Reg },
    Elect { d: Reg, p: Reg, mask: Reg },
    ActiveMask { d: Reg },
}

/// What a block's barrier does.
#[derive(Clone, Copy)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// Also reduces a predicate over all threads.
    Reduce {
        op: Reduce,
        d: Reg,
        p: Reg,
        negated: bool,
    },
}

/// Where a shuffle reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// A reduction over lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Count,
}

fn predicate(cx: &mut Context, operand: &Operand) -> Result<(Reg, bool), String> {
    match operand {
        Operand::Not(name) => Ok((cx.reg(&Operand::Name(name.clone()))?, true)),
        Operand::Int(value) => Ok((cx.source(&Operand::Int(value & 1), Ty::Pred)?, false)),
        other => Ok((cx.reg(other)?, false)),
    }
}

fn with_predicate(cx: &Context, operand: &Operand) -> Result<(Reg, Reg), String> {
    match operand {
        Operand::Pair(d, p) => Ok((cx.reg(d)?, cx.reg(p)?)),
        d => Ok((cx.reg(d)?, SINK)),
    }
}

/// Decodes a collective, `None` if the name is another instruction's.
pub(crate) fn decode(
    cx: &mut Context,
    name: &str,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Option<Decoded>, String> {
    let wrong = || Err("a wrong number of operands".to_owned());
    let (op, results, sources) = match (name, operands) {
        ("bar", [mask]) if m.take("warp") => {
            m.require("sync")?;
            let mask = cx.source(mask, Ty::B32)?;
            (Collective::WarpBarrier { mask }, vec![], vec![mask])
        }
        ("bar" | "barrier", _) => return barrier(cx, name, m, operands).map(Some),
        ("shfl", [d, a, b, c, mask]) => {
            m.require("sync")?;
            let mode = match m.one_of(&["up", "down", "bfly", "idx"]) {
                Some("up") => Shuffle::Up,
                Some("down") => Shuffle::Down,
                Some("bfly") => Shuffle::Butterfly,
                Some(_) => Shuffle::Index,
                None => return Err("shfl needs its mode".to_owned()),
            };
            m.require("b32")?;
            let (d, valid) = with_predicate(cx, d)?;
            let [a, b, c, mask] = sources(cx, [a, b, c, mask])?;
            (Collective::Shuffle { mode, d, valid, a, b, c, mask }, vec![d, valid], vec![a, b, c, mask])
        }
        ("vote", [d, p, mask]) => {
            m.require("sync")?;
            let mode = match m.one_of(&["all", "any", "uni", "ballot"]) {
                Some("all") => Vote::All,
                Some("any") => Vote::Any,
                Some("uni") => Vote::Uniform,
                Some(_) => Vote::Ballot,
                None => return Err("vote needs its mode".to_owned()),
            };
            m.require(if matches!(mode, Vote::Ballot) { "b32" } else { "pred" })?;
            let (p, negated) = predicate(cx, p)?;
            let (d, mask) = (cx.reg(d)?, cx.source(mask, Ty::B32)?);
            (Collective::Vote { mode, d, p, negated, mask }, vec![d], vec![p, mask])
        }
        ("match", [d, a, mask]) => {
            let all = m.one_of(&["all", "any"]) == Some("all");
            m.require("sync")?;
            let ty = m.ty()?;
            let (d, p) = with_predicate(cx, d)?;
            let (a, mask) = (cx.source(a, ty)?, cx.source(mask, Ty::B32)?);
            (Collective::Match { all, d, p, a, mask }, vec![d, p], vec![a, mask])
        }
        ("redux", [d, a, mask]) => {
            m.require("sync")?;
            let op = reduction(m)?;
            let signed = m.ty()?.signed();
            let (d, [a, mask]) = (cx.reg(d)?, sources(cx, [a, mask])?);
            (Collective::Reduce { op, signed, d, a, mask }, vec![d], vec![a, mask])
        }
        ("elect", [d, mask]) => {
            m.require("sync")?;
            let (d, p) = with_predicate(cx, d)?;
            let mask = cx.source(mask, Ty::B32)?;
            (Collective::Elect { d, p, mask }, vec![d, p], vec![mask])
        }
        ("activemask", [d]) => {
            m.require("b32")?;
            let d = cx.reg(d)?;
            (Collective::ActiveMask { d }, vec![d], vec![])
        }
        ("shfl" | "vote" | "match" | "redux" | "elect" | "activemask", _) => return wrong(),
        _ => return Ok(None),
    };
    Ok(Some(Decoded { op: Op::Collective(op), results, sources }))
}

fn sources<const N: usize>(cx: &mut Context, operands: [&Operand; N]) -> Result<[Reg; N], String> {
    let mut regs = [SINK; N];
    for (reg, operand) in regs.iter_mut().zip(operands) {
        *reg = cx.source(operand, Ty::B32)?;
    }
    Ok(regs)
}

fn reduction(m: &mut Modifiers<'_>) -> Result<Reduce, String> {
    Ok(match m.one_of(&["add", "min", "max", "and", "or", "xor", "popc"]) {
        Some("add") => Reduce::Add,
        Some("min") => Reduce::Min,
        Some("max") => Reduce::Max,
        Some("and") => Reduce::And,
        Some("or") => Reduce::Or,
        Some("xor") => Reduce::Xor,
        Some(_) => Reduce::Count,
        None => return Err("an operation is expected".to_owned()),
    })
}

/// The number that stands for `barrier.cluster`: none that a program can mean, whose numbers have 32 bits.
pub(crate) const CLUSTER_BARRIER: u64 = 1 << 32;

/// `bar.sync` is `barrier.sync.aligned`; both may name `.cta`, and `barrier.cluster` means this block alone.
fn barrier(cx: &mut Context, name: &str, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    m.ignore(&["cta"]);
    let aligned = m.take("aligned") || name == "bar";
    if m.take("cluster") {
        m.ignore(&["acquire", "release", "relaxed"]);
        // Arrival is where it says so; the wait after it is where the block meets.
        if m.take("arrive") {
            return Ok(Decoded { op: Op::Nop, results: vec![], sources: vec![] });
        }
        m.require("wait")?;
        let id = cx.source(&Operand::Int(CLUSTER_BARRIER), Ty::U64)?;
        let op = Collective::Barrier { kind: BarrierKind::Sync, aligned, id, count: None };
        return Ok(Decoded { op: Op::Collective(op), results: vec![], sources: vec![] });
    }
    let kind = match m.one_of(&["sync", "arrive", "red"]) {
        Some("sync") => BarrierKind::Sync,
        Some("arrive") => BarrierKind::Arrive,
        Some(_) => {
            let op = reduction(m)?;
            m.require(if matches!(op, Reduce::Count) { "u32" } else { "pred" })?;
            let [d, _, .., p] = operands else { return Err("a wrong number of operands".to_owned()) };
            let (p, negated) = predicate(cx, p)?;
            BarrierKind::Reduce { op, d: cx.reg(d)?, p, negated }
        }
        None => return Err("a barrier needs .sync, .arrive or .red".to_owned()),
    };
    let operands = match kind {
        BarrierKind::Reduce { .. } => &operands[1..operands.len() - 1],
        _ => operands,
    };
    let (id, count) = match operands {
        [id] => (id, None),
        [id, count] => (id, Some(count)),
        _ => return Err("a wrong number of operands".to_owned()),
    };
    let id = cx.source(id, Ty::U32)?;
    let count = count.map(|c| cx.source(c, Ty::U32)).transpose()?;
    if count.is_none() && matches!(kind, BarrierKind::Arrive) {
        return Err("bar.arrive needs a count of threads".to_owned());
    }
    let (results, mut sources) = match kind {
        BarrierKind::Reduce { d, p, .. } => (vec![d], vec![p]),
        _ => (vec![], vec![]),
    };
    sources.extend([id].into_iter().chain(count));
    Ok(Decoded { op: Op::Collective(Collective::Barrier { kind, aligned, id, count }), results, sources })
}
