//! Asynchronous copies, mbarriers, fences (PTX ISA, sections 9.7.9.25 to 9.7.9.27 and 9.7.13.15).

use super::Decoded;
use super::context::{Context, SINK};
use super::lanes::Reg;
use super::modifiers::Modifiers;
use super::program::Op;
use super::types::Ty;
use crate::ptx::ast::{Operand, Space};

/// An address that an instruction takes: a row, an offset, a space.
pub(crate) type Place = (Reg, i64, Space);

/// An asynchronous instruction, or one that orders them.
pub(crate) enum Async {
    /// `cp.async`: of a thread. Bytes after `source_bytes` are zeros.
    Copy {
        to: Place,
        from: Place,
        bytes: u32,
        source_bytes: Option<Reg>,
        ignore: Option<Reg>,
    },
    CopyCommit,
    /// Waits for all groups but this many, or for everything.
    CopyWait(Option<usize>),
    /// `cp.async.mbarrier.arrive`: arrives when the thread's copies are done.
    CopyArrive {
        at: Place,
        counted: bool,
    },
    /// `cp.async.bulk` of bytes or of a tile, into shared memory.
    BulkLoad {
        to: Place,
        from: BulkSource,
        at: Place,
    },
    BulkStore {
        to: BulkSource,
        from: Place,
    },
    /// `cp.async.bulk.prefetch`.
    Prefetch {
        from: Place,
        bytes: Reg,
    },
    /// `griddepcontrol.wait`.
    GridWait,
    BulkCommit,
    BulkWait(usize),
    ProxyFence,
    /// `fence.mbarrier_init`.
    InitFence,
    /// `fence` and `membar`, for more threads than those of a block.
    Fence,
    Mbarrier {
        kind: Mbarrier,
        at: Place,
    },
}

/// What a bulk copy has in global memory.
pub(crate) enum BulkSource {
    Bytes { at: Place, bytes: Reg },
    Tile { map: Place, coordinates: Box<[Reg]> },
}

/// What is done to an mbarrier.
pub(crate) enum Mbarrier {
    Init {
        count: Reg,
    },
    Invalidate,
    /// The state before, and by how much: a count of arrivals, and bytes to expect.
    Arrive {
        state: Reg,
        count: Option<Reg>,
        expect: Option<Reg>,
        drop: bool,
    },
    Expect {
        bytes: Reg,
    },
    Wait {
        done: Reg,
        phase: Reg,
        parity: bool,
        block: bool,
    },
}

/// Decodes an asynchronous instruction, `None` if the name is another instruction's.
pub(crate) fn decode(
    cx: &mut Context,
    name: &str,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Option<Decoded>, String> {
    match name {
        "fence" => fence(m).map(Some),
        "griddepcontrol" => Ok(Some(match m.one_of(&["wait", "launch_dependents"]) {
            Some("wait") => done(Async::GridWait, vec![], vec![]),
            // Launches run one after another: what may begin early is run late, and held to what it may do early.
            Some(_) => Decoded::nothing(),
            None => return Err("griddepcontrol needs .wait or .launch_dependents".to_owned()),
        })),
        "cp" => copy(cx, m, operands).map(Some),
        "mbarrier" => mbarrier(cx, m, operands).map(Some),
        _ => Ok(None),
    }
}

fn done(operation: Async, results: Vec<Reg>, sources: Vec<Reg>) -> Decoded {
    Decoded { op: Op::Async(operation), results, sources }
}

fn fence(m: &mut Modifiers<'_>) -> Result<Decoded, String> {
    if m.take("proxy") {
        let kind = m.first().unwrap_or_default();
        let asynchronous = kind.starts_with("async") || kind.starts_with("tensormap");
        if !asynchronous && kind != "alias" {
            return Err(format!("fence.proxy.{kind} is not supported"));
        }
        m.ignore(&["global", "shared", "shared::cta", "shared::cluster"]);
        m.ignore(&[
            "acquire",
            "release",
            "cta",
            "cluster",
            "gpu",
            "sys",
            "sync_restrict::shared::cta",
            "sync_restrict::shared::cluster",
        ]);
        return Ok(if kind.starts_with("async") {
            done(Async::ProxyFence, vec![], vec![])
        } else {
            Decoded::nothing()
        });
    }
    if m.take("mbarrier_init") {
        m.ignore(&["release", "cluster"]);
        return Ok(done(Async::InitFence, vec![], vec![]));
    }
    // Threads of a block see each other's writes at once; what orders them is what the race detector watches.
    m.ignore(&["sc", "acq_rel", "acquire", "release"]);
    let between_blocks =
        m.one_of(&["gpu", "sys", "cta", "cluster"]).is_some_and(|scope| matches!(scope, "gpu" | "sys"));
    Ok(if between_blocks { Decoded::fence() } else { Decoded::nothing() })
}

fn place(cx: &mut Context, operand: &Operand, space: Space) -> Result<Place, String> {
    super::memory::located(cx, operand, space)
}

const SHARED: [&str; 3] = ["shared", "shared::cta", "shared::cluster"];

fn copy(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    m.require("async")?;
    if m.take("bulk") {
        return bulk(cx, m, operands);
    }
    if m.take("commit_group") {
        return Ok(done(Async::CopyCommit, vec![], vec![]));
    }
    if m.take("wait_all") {
        return Ok(done(Async::CopyWait(None), vec![], vec![]));
    }
    if m.take("wait_group") {
        let [n] = operands else { return Err("a number of groups is expected".to_owned()) };
        return Ok(done(Async::CopyWait(Some(Context::immediate(n)? as usize)), vec![], vec![]));
    }
    if m.take("mbarrier::arrive") || m.take("mbarrier") {
        m.ignore(&["arrive"]);
        let counted = !m.take("noinc");
        let space = if m.one_of(&SHARED).is_some() { Space::Shared } else { Space::Generic };
        m.require("b64")?;
        let [at] = operands else { return Err("one operand is expected".to_owned()) };
        let at = place(cx, at, space)?;
        return Ok(done(Async::CopyArrive { at, counted }, vec![], vec![at.0]));
    }
    let global_only = match m.one_of(&["ca", "cg"]) {
        Some(level) => level == "cg",
        None => return Err("cp.async needs .ca or .cg".to_owned()),
    };
    m.one_of(&["shared", "shared::cta"]).ok_or("cp.async writes shared memory")?;
    m.require("global")?;
    let hint = m.take("L2::cache_hint");
    m.ignore(&["L2::64B", "L2::128B", "L2::256B"]);
    let operands = if hint { &operands[..operands.len() - 1] } else { operands };
    let [to, from, bytes, rest @ ..] = operands else { return Err("operands are missing".to_owned()) };
    let bytes = Context::immediate(bytes)? as u32;
    if !(bytes == 16 || (!global_only && (bytes == 4 || bytes == 8))) {
        return Err(format!("cp.async does not copy {bytes} bytes"));
    }
    let (to, from) = (place(cx, to, Space::Shared)?, place(cx, from, Space::Global)?);
    let (source_bytes, ignore) = match rest {
        [] => (None, None),
        [one] => match cx.reg(one) {
            Ok(reg) if cx.declared(reg) == Some(Ty::Pred) => (None, Some(reg)),
            _ => (Some(cx.source(one, Ty::U32)?), None),
        },
        _ => return Err("too many operands".to_owned()),
    };
    let sources = [to.0, from.0].into_iter().chain(source_bytes).chain(ignore).collect();
    Ok(done(Async::Copy { to, from, bytes, source_bytes, ignore }, vec![], sources))
}

fn bulk(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    if m.take("commit_group") {
        return Ok(done(Async::BulkCommit, vec![], vec![]));
    }
    if m.take("wait_group") {
        // The source has been read when the copy is complete.
        m.take("read");
        let [n] = operands else { return Err("a number of groups is expected".to_owned()) };
        return Ok(done(Async::BulkWait(Context::immediate(n)? as usize), vec![], vec![]));
    }
    if m.take("prefetch") {
        if m.take("tensor") {
            while m.first().is_some() {}
            return Ok(Decoded::nothing());
        }
        m.require("L2")?;
        m.require("global")?;
        let hint = m.take("L2::cache_hint");
        let operands = if hint { &operands[..operands.len() - 1] } else { operands };
        let [from, bytes] = operands else { return Err("an address and a number of bytes are expected".to_owned()) };
        let from = place(cx, from, Space::Global)?;
        let bytes = cx.source(bytes, Ty::U32)?;
        return Ok(done(Async::Prefetch { from, bytes }, vec![], vec![from.0, bytes]));
    }
    let hint = m.take("L2::cache_hint");
    let operands = if hint { &operands[..operands.len() - 1] } else { operands };
    let dimensions = if m.take("tensor") {
        let n = m.one_of(&["1d", "2d", "3d", "4d", "5d"]).ok_or("a number of dimensions is expected")?;
        m.take("tile");
        Some(usize::from(n.as_bytes()[0] - b'0'))
    } else {
        None
    };
    // The first space is the destination's.
    let first = m.first().unwrap_or_default();
    let second = m.first().unwrap_or_default();
    let load = SHARED.contains(&first) && second == "global";
    let store = first == "global" && second == "shared::cta";
    if !(load || store) {
        return Err(format!("a bulk copy from .{second} to .{first} is not supported"));
    }
    m.require(if load { "mbarrier::complete_tx::bytes" } else { "bulk_group" })?;
    let tile = |cx: &mut Context, operand: &Operand, dimensions: usize| {
        let Operand::Address(map, 0, rest) = operand else { return Err("a tensor map is expected".to_owned()) };
        let [coordinates] = &rest[..] else { return Err("coordinates are expected".to_owned()) };
        let coordinates = cx.sources(coordinates, Ty::S32)?;
        if coordinates.len() != dimensions {
            return Err(format!("{dimensions} coordinates are expected"));
        }
        let map = place(cx, &Operand::Address(map.clone(), 0, vec![]), Space::Generic)?;
        Ok(BulkSource::Tile { map, coordinates: coordinates.into() })
    };
    let (operation, sources) = match (dimensions, load, operands) {
        (Some(n), true, [to, map, at]) => {
            let (to, at) = (place(cx, to, Space::Shared)?, place(cx, at, Space::Shared)?);
            (Async::BulkLoad { to, from: tile(cx, map, n)?, at }, vec![to.0, at.0])
        }
        (Some(n), false, [map, from]) => {
            let from = place(cx, from, Space::Shared)?;
            (Async::BulkStore { to: tile(cx, map, n)?, from }, vec![from.0])
        }
        (None, true, [to, from, bytes, at]) => {
            let (to, at) = (place(cx, to, Space::Shared)?, place(cx, at, Space::Shared)?);
            let from = place(cx, from, Space::Global)?;
            let bytes = cx.source(bytes, Ty::U32)?;
            (Async::BulkLoad { to, from: BulkSource::Bytes { at: from, bytes }, at }, vec![to.0, from.0, bytes, at.0])
        }
        (None, false, [to, from, bytes]) => {
            let (to, from) = (place(cx, to, Space::Global)?, place(cx, from, Space::Shared)?);
            let bytes = cx.source(bytes, Ty::U32)?;
            (Async::BulkStore { to: BulkSource::Bytes { at: to, bytes }, from }, vec![to.0, from.0, bytes])
        }
        _ => return Err("a wrong number of operands".to_owned()),
    };
    Ok(done(operation, vec![], sources))
}

fn mbarrier(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    let kinds = ["init", "inval", "arrive_drop", "arrive", "expect_tx", "try_wait", "test_wait"];
    let kind = m.one_of(&kinds).ok_or("this form of mbarrier is not supported")?;
    let parity = m.take("parity");
    let expects = kind.starts_with("arrive") && m.take("expect_tx");
    m.ignore(&["acquire", "release", "relaxed", "cta", "cluster"]);
    let space = if m.one_of(&SHARED).is_some() { Space::Shared } else { Space::Generic };
    m.require("b64")?;
    let (kind, at, results, mut sources) = match (kind, operands) {
        ("init", [at, count]) => {
            let count = cx.source(count, Ty::U32)?;
            (Mbarrier::Init { count }, at, vec![], vec![count])
        }
        ("inval", [at]) => (Mbarrier::Invalidate, at, vec![], vec![]),
        ("expect_tx", [at, bytes]) => {
            let bytes = cx.source(bytes, Ty::U32)?;
            (Mbarrier::Expect { bytes }, at, vec![], vec![bytes])
        }
        ("arrive" | "arrive_drop", [.., _]) => {
            let drop = kind == "arrive_drop";
            // The state may be left out, as it is for barriers of a cluster.
            let (state, rest) = match operands {
                [Operand::Address(..), ..] => (SINK, operands),
                [state, rest @ ..] => (cx.reg(state)?, rest),
                [] => return Err("operands are missing".to_owned()),
            };
            let (at, amount) = match rest {
                [at] if !expects => (at, None),
                [at, amount] => (at, Some(cx.source(amount, Ty::U32)?)),
                _ => return Err("a wrong number of operands".to_owned()),
            };
            let (count, expect) = if expects { (None, amount) } else { (amount, None) };
            let sources = amount.into_iter().collect();
            (Mbarrier::Arrive { state, count, expect, drop }, at, vec![state], sources)
        }
        ("try_wait" | "test_wait", [done, at, phase] | [done, at, phase, _]) => {
            let block = kind == "try_wait";
            let done = cx.reg(done)?;
            let phase = cx.source(phase, if parity { Ty::U32 } else { Ty::B64 })?;
            (Mbarrier::Wait { done, phase, parity, block }, at, vec![done], vec![phase])
        }
        _ => return Err("a wrong number of operands".to_owned()),
    };
    let at = place(cx, at, space)?;
    sources.push(at.0);
    Ok(done(Async::Mbarrier { kind, at }, results, sources))
}
