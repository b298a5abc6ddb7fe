//! Fuses a softmax between two products with keys and values into one `attention`, so that no row of scores is ever held.
//!
//! before   s = contract q, k {"nkgd,vkd->kgnv"} ; t = mul s, scale ; p = softmax t, mask, sink ; y = contract p, v {"kgnv,vkd->nkgd"}
//! after    a = attention q', k, v, extras {scale, mask, score, sink} ; y = reshape a        (q' is q as [N, H, Dk])
//!
//! The same without a softmax, where the scores (or zero where a mask does not hold) are multiplied with the values.
//! Everything elementwise between the products, and everything that makes the mask or the sink, becomes a graph of scalars over positions, head
//! and extras; what of it does not depend on the scores or positions is an extra. A gather from a table of one dimension is taken in with
//! its index, and the table is an operand as it is; a weight of one number a head is such a table, and the head its index. So are rows of
//! queries and rows kept of keys, of which scores take elements.

use std::collections::HashMap;

use super::Pass;
use super::analysis::mask::reach;
use super::matching::{binary, core, operand_if, remove_dead, rewrite_nodes, uniform};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::Attention;
use crate::ops::shape::ContractSpec;
use crate::ops::{BinaryOp, Core};

pub(super) struct FuseAttention;

impl Pass for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse_attention"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        rewrite_nodes(program, rewrite)
    }
}

/// Dimensions of the scores `[K, G, N, T]`, and `H`, which is `K` and `G` as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Slot {
    N,
    H,
    K,
    G,
    T,
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let [p, v] = product(graph, node, "kgnv,vkd->nkgd")?;
    let softmax = core(graph, p) == Some(&Core::Softmax);
    let (scores, mask, sink) = match (softmax, core(graph, p), &graph.operands(p.node)[..]) {
        (true, _, [scores]) => (*scores, None, None),
        (true, _, [scores, mask]) => (*scores, Some(*mask), None),
        (true, _, [scores, mask, sink]) => (*scores, Some(*mask), Some(*sink)),
        (false, Some(Core::Select), [mask, scores, zero]) if uniform(graph, *zero) == Some(0.0) => {
            (*scores, Some(*mask), None)
        }
        // Weights that are the scores themselves.
        (false, ..) => (p, None, None),
        _ => return None,
    };
    let products = find_products(graph, scores)?;
    let [q, k] = product(graph, products.node, "nkgd,vkd->kgnv")?;
    // k and v may have been widened for the products, which attention does by itself.
    let [k, v] = [k, v].map(|kept| {
        operand_if(graph, kept, |op| *op == Core::Cast)
            .filter(|x| {
                let dtype = graph.ty(*x).dtype;
                matches!(dtype, DType::BF16 | DType::F16) || dtype.blocks().is_some_and(|blocks| blocks.is_kept())
            })
            .unwrap_or(kept)
    });
    let [n, Dim::Fixed(kv_heads), Dim::Fixed(group), d] = graph.ty(q).dims[..] else { return None };
    let heads = kv_heads.checked_mul(group)?;
    let [_, _, _, keys] = graph.ty(scores).dims[..] else { return None };
    let (scaled, scale) = scale_of(graph, products);

    let mut lift = Lift {
        graph,
        shape: Shape { n, keys, kv_heads, group },
        scaled,
        bodies: [
            body("mask", &Attention::MASK_PARAMS),
            body("score", &Attention::SCORE_PARAMS),
            body("sink", &Attention::MASK_PARAMS),
        ],
        memo: HashMap::new(),
        extras: Vec::new(),
    };
    let full = [Some(Slot::K), Some(Slot::G), Some(Slot::N), Some(Slot::T)];
    let score = lift.scalar(Body::Score, scores, &full)?;
    let mask = match mask {
        Some(mask) => lift.scalar_at_the_end(Body::Mask, mask, &full)?,
        None => Builder::new(&mut lift.bodies[Body::Mask as usize]).scalar_of(1.0, DType::Bool),
    };
    let sink = match sink {
        Some(sink) => Some(lift.scalar_at_the_end(Body::Sink, sink, &full)?),
        None => None,
    };
    let Lift { bodies: [mut mask_body, mut score_body, mut sink_body], extras, .. } = lift;
    mask_body.add_output("visible", mask);
    score_body.add_output("y", score);
    remove_dead(&mut mask_body);
    remove_dead(&mut score_body);
    let sink = sink.map(|sink| {
        sink_body.add_output("sink", sink);
        remove_dead(&mut sink_body);
        sink_body
    });

    let reach = reach(&mask_body);
    let mut b = Builder::like(graph, node);
    let q = match operand_if(b.graph, q, |op| *op == Core::Reshape) {
        Some(x) if b.graph.ty(x).dims == [n, Dim::Fixed(heads), d] => x,
        _ => b.reshape(q, [n, Dim::Fixed(heads), d]).ok()?,
    };
    let operands = [&[q, k, v], &extras[..]].concat();
    let y = b
        .fused1(
            Attention {
                scale,
                mask: mask_body,
                score: score_body,
                sink,
                softmax,
                reach,
                from_start: false,
                narrow: false,
            },
            &operands,
        )
        .ok()?;
    let old = ValueId { node, port: 0 };
    let dims = b.graph.ty(old).dims.clone();
    let y = b.reshape(y, dims).ok()?;
    graph.replace(old, y);
    Some(())
}

/// The operands of a contraction that is `wanted` up to the names of labels and the order of operands, in the order of `wanted`.
fn product(graph: &Graph, node: NodeId, wanted: &str) -> Option<[ValueId; 2]> {
    let Core::Contract { spec } = graph.op(node).as_core()? else { return None };
    let spec = ContractSpec::parse(spec).ok()?;
    let wanted = ContractSpec::parse(wanted).ok()?;
    let [a, b] = graph.operands(node)[..] else { return None };
    let same = |x: &[char], y: &[char]| {
        let shape = |a: &[char], b: &[char], out: &[char]| {
            let all: Vec<char> = [a, b, out].concat();
            let index = |c: &char| all.iter().position(|d| d == c);
            (a.len(), b.len(), all.iter().map(index).collect::<Vec<_>>())
        };
        shape(x, y, &spec.out) == shape(&wanted.a, &wanted.b, &wanted.out)
    };
    if same(&spec.a, &spec.b) {
        return Some([a, b]);
    }
    same(&spec.b, &spec.a).then_some([b, a])
}

/// The product of queries and keys that scores are made from, elementwise.
fn find_products(graph: &Graph, scores: ValueId) -> Option<ValueId> {
    let dims = &graph.ty(scores).dims;
    let mut stack = vec![scores];
    while let Some(value) = stack.pop() {
        if product(graph, value.node, "nkgd,vkd->kgnv").is_some() {
            return Some(value);
        }
        if super::matching::is_elementwise(graph.op(value.node)) {
            stack.extend(graph.operands(value.node).into_iter().filter(|v| graph.ty(*v).dims == *dims));
        }
    }
    None
}

/// The last of the multiplications by constants right behind the product, and their product.
fn scale_of(graph: &Graph, products: ValueId) -> (ValueId, f64) {
    let (mut scaled, mut scale) = (products, 1.0);
    while let [(user, _)] = graph.uses(scaled)[..] {
        let next = ValueId { node: user, port: 0 };
        let factor = match (binary(graph, next, BinaryOp::Mul), binary(graph, next, BinaryOp::Div)) {
            (Some([a, b]), _) if a == scaled => uniform(graph, b),
            (Some([a, _]), _) => uniform(graph, a),
            (_, Some([a, b])) if a == scaled => uniform(graph, b).map(|c| 1.0 / c),
            _ => None,
        };
        let Some(factor) = factor.filter(|c| c.is_finite() && graph.ty(next) == graph.ty(scaled)) else { break };
        (scaled, scale) = (next, scale * factor);
    }
    (scaled, scale)
}

fn body(name: &str, params: &[&str]) -> Graph {
    let mut graph = Graph::new(name);
    for param in params {
        let dtype = if *param == "score" { DType::F32 } else { DType::I64 };
        graph.add_param(*param, Type::scalar(dtype));
    }
    graph
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Body {
    Mask = 0,
    Score = 1,
    Sink = 2,
}

struct Shape {
    n: Dim,
    keys: Dim,
    kv_heads: u64,
    group: u64,
}

/// Moves an elementwise expression over scores into a graph of scalars.
struct Lift<'g> {
    graph: &'g mut Graph,
    shape: Shape,
    scaled: ValueId,
    bodies: [Graph; 3],
    /// By body, value and what its dimensions stand for.
    memo: HashMap<(Body, ValueId, Vec<Option<Slot>>), ValueId>,
    /// Operands of the attention after q, k and v; parameters of both bodies in the same order.
    extras: Vec<ValueId>,
}

impl Lift<'_> {
    /// `slots` of a value's dimensions, nothing where the dimension is 1 and so repeats.
    fn known(&self, value: ValueId, slots: &[Option<Slot>]) -> Vec<Option<Slot>> {
        let dims = &self.graph.ty(value).dims;
        dims.iter().zip(slots).map(|(d, s)| s.filter(|_| *d != Dim::Fixed(1))).collect()
    }

    /// The same of a value that is aligned at the last of the dimensions that `full` stands for.
    fn scalar_at_the_end(&mut self, body: Body, value: ValueId, full: &[Option<Slot>]) -> Option<ValueId> {
        let rank = self.graph.ty(value).dims.len();
        let slots = full.get(full.len().checked_sub(rank)?..)?;
        self.scalar(body, value, slots)
    }

    /// The scalar of `body` that stands for an element of `value`.
    fn scalar(&mut self, body: Body, value: ValueId, slots: &[Option<Slot>]) -> Option<ValueId> {
        let slots = self.known(value, slots);
        let key = (body, value, slots.clone());
        if let Some(known) = self.memo.get(&key) {
            return Some(*known);
        }
        let made = self.make(body, value, &slots)?;
        self.memo.insert(key, made);
        Some(made)
    }

    fn make(&mut self, body: Body, value: ValueId, slots: &[Option<Slot>]) -> Option<ValueId> {
        let params = |this: &Self| this.bodies[body as usize].params().iter().map(|p| p.value).collect::<Vec<_>>();
        let first = usize::from(body == Body::Score);
        if value == self.scaled {
            return (body == Body::Score).then(|| params(self)[0]);
        }
        let ty = self.graph.ty(value).clone();
        if let Some(c) = uniform(self.graph, value) {
            return Some(Builder::new(&mut self.bodies[body as usize]).scalar_of(c, ty.dtype));
        }
        let named: Vec<Slot> = slots.iter().flatten().copied().collect();
        let operands = self.graph.operands(value.node);
        match core(self.graph, value).cloned() {
            Some(Core::Position) if named == [Slot::N] && ty.dims == [self.shape.n] => Some(params(self)[first]),
            Some(Core::Position) if named == [Slot::T] && ty.dims == [self.shape.keys] => Some(params(self)[first + 1]),
            Some(Core::Index) if ty.dims == [Dim::Fixed(1)] => {
                Some(Builder::new(&mut self.bodies[body as usize]).scalar_of(0.0, ty.dtype))
            }
            Some(Core::Index) if matches!(named[..], [Slot::H]) => Some(params(self)[first + 2]),
            Some(Core::Index) if matches!(named[..], [Slot::K]) && self.shape.group == 1 => {
                Some(params(self)[first + 2])
            }
            Some(Core::Index) if matches!(named[..], [Slot::G]) && self.shape.kv_heads == 1 => {
                Some(params(self)[first + 2])
            }
            Some(op @ (Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast)) => {
                let mut args = Vec::new();
                for operand in operands {
                    let missing = ty.dims.len() - self.graph.ty(operand).dims.len();
                    args.push(self.scalar(body, operand, &slots[missing..])?);
                }
                Builder::new(&mut self.bodies[body as usize]).core(op, &args, Type::scalar(ty.dtype)).ok()
            }
            Some(Core::Gather) => match operands[..] {
                [table, index] if matches!(self.graph.ty(table).dims[..], [Dim::Fixed(_)]) => {
                    let index = self.scalar(body, index, slots)?;
                    let table = self.parameter(body, table, self.graph.ty(table).clone())?;
                    Builder::new(&mut self.bodies[body as usize]).gather(table, index).ok()
                }
                _ => self.extra(body, value, slots),
            },
            Some(Core::Take) => {
                let [rows, index] = operands[..] else { return None };
                let index = self.scalar(body, index, slots)?;
                let (table, n) = self.rows(rows, slots)?;
                let table = self.parameter(body, table, Type::new(ty.dtype, [n]))?;
                Builder::new(&mut self.bodies[body as usize]).gather(table, index).ok()
            }
            // Scores and indices by key and query stand for those by query and key.
            Some(Core::Transpose { perm })
                if named.contains(&Slot::N) && named.contains(&Slot::T)
                    || operands.iter().any(|x| core(self.graph, *x) == Some(&Core::Take)) =>
            {
                let mut from = vec![None; perm.len()];
                for (slot, dim) in slots.iter().zip(&perm) {
                    *from.get_mut(*dim)? = *slot;
                }
                self.scalar(body, *operands.first()?, &from)
            }
            Some(Core::Broadcast) => {
                let x = *operands.first()?;
                let missing = slots.len().checked_sub(self.graph.ty(x).dims.len())?;
                self.scalar(body, x, &slots[missing..])
            }
            Some(Core::Reshape) => {
                let x = *operands.first()?;
                match self.through_reshape(x, &ty.dims, slots) {
                    Some(slots) => self.scalar(body, x, &slots),
                    None => self.extra(body, value, slots),
                }
            }
            _ => self.extra(body, value, slots),
        }
    }

    /// What `rows`, of which dimensions but the last stand for `slots`, are made from: a row of each query or kept of each key, `[N|T, H|1, n]`.
    fn rows(&mut self, rows: ValueId, slots: &[Option<Slot>]) -> Option<(ValueId, Dim)> {
        let Shape { n: queries, keys, kv_heads, group } = self.shape;
        let heads = Dim::Fixed(kv_heads * group);
        let own = if slots.get(slots.len().checked_sub(2)?)? == &Some(Slot::T) { keys } else { queries };
        let mut x = rows;
        let width = *self.graph.ty(x).dims.last()?;
        // Heads were moved to the front and divided, and what all heads share was repeated.
        loop {
            let dims = &self.graph.ty(x).dims[..];
            if dims == [own, heads, width] || dims == [own, Dim::Fixed(1), width] {
                return Some((x, width));
            }
            let operand = self.graph.operands(x.node).first().copied();
            x = match core(self.graph, x)? {
                Core::Broadcast | Core::Reshape => operand?,
                Core::Transpose { perm } if *perm == [1, 0, 2] => operand?,
                _ if dims == [own, width] => {
                    let x = Builder::like(self.graph, x.node).reshape(x, [own, Dim::Fixed(1), width]).ok()?;
                    return Some((x, width));
                }
                _ => return None,
            };
        }
    }

    /// What the dimensions of `x` stand for, when a reshape of it to `dims`, which stand for `slots`, only adds or removes 1-sized dimensions
    /// or splits heads into groups.
    fn through_reshape(&self, x: ValueId, dims: &[Dim], slots: &[Option<Slot>]) -> Option<Vec<Option<Slot>>> {
        let mut wanted = dims.iter().zip(slots).filter(|(d, _)| **d != Dim::Fixed(1)).peekable();
        let mut from = Vec::new();
        for have in &self.graph.ty(x).dims {
            if *have == Dim::Fixed(1) {
                from.push(None);
                continue;
            }
            match wanted.next()? {
                (d, slot) if d == have => from.push(*slot),
                (Dim::Fixed(k), Some(Slot::K)) => match wanted.next()? {
                    (Dim::Fixed(g), Some(Slot::G)) if Dim::Fixed(k * g) == *have => from.push(Some(Slot::H)),
                    _ => return None,
                },
                _ => return None,
            }
        }
        wanted.next().is_none().then_some(from)
    }

    /// A value that stays outside, as an operand that broadcasts to `[N, H, T]`.
    fn extra(&mut self, body: Body, value: ValueId, slots: &[Option<Slot>]) -> Option<ValueId> {
        let Shape { n, keys, kv_heads, group } = self.shape;
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by_key(|i| slots[*i]);
        let mut named: Vec<Slot> = slots.iter().flatten().copied().collect();
        named.sort_unstable();
        let heads = match (named.contains(&Slot::H), named.contains(&Slot::K), named.contains(&Slot::G)) {
            (false, false, false) => Dim::Fixed(1),
            (true, false, false) | (false, true, true) => Dim::Fixed(kv_heads * group),
            (false, true, false) if group == 1 => Dim::Fixed(kv_heads),
            (false, false, true) if kv_heads == 1 => Dim::Fixed(group),
            _ => return None,
        };
        let at = |slot, dim| if named.contains(&slot) { dim } else { Dim::Fixed(1) };
        let full = [at(Slot::N, n), heads, at(Slot::T, keys)];
        let skip = full.iter().position(|d| *d != Dim::Fixed(1)).unwrap_or(3);

        let in_order = slots.iter().flatten().is_sorted();
        // What was moved only to stand by heads goes back.
        let back = match core(self.graph, value) {
            Some(Core::Transpose { perm }) if !in_order && order.iter().map(|i| perm[*i]).is_sorted() => {
                self.graph.operands(value.node).first().copied()
            }
            _ => None,
        };
        let mut b = Builder::like(self.graph, value.node);
        let moved = match back {
            Some(x) => x,
            None if in_order => value,
            None => b.transpose(value, order).ok()?,
        };
        let source =
            operand_if(b.graph, moved, |op| *op == Core::Reshape).filter(|x| b.graph.ty(*x).dims == full[skip..]);
        let operand = match source {
            Some(x) => x,
            None => b.reshape(moved, &full[skip..]).ok()?,
        };
        let by_head = full[0] == Dim::Fixed(1) && full[2] == Dim::Fixed(1);
        if let Some(table) = self.table_of_heads(operand, full[1]).filter(|_| by_head) {
            return self.element_of_head(body, table);
        }
        let ty = Type::scalar(self.graph.ty(operand).dtype);
        self.parameter(body, operand, ty)
    }

    /// A weight of one number a head, or of one for all, as it is in the checkpoint.
    fn table_of_heads(&self, operand: ValueId, heads: Dim) -> Option<ValueId> {
        let mut value = operand;
        while core(self.graph, value) == Some(&Core::Reshape) {
            value = *self.graph.operands(value.node).first()?;
        }
        let held = matches!(core(self.graph, value), Some(Core::Weight { .. }));
        (held && self.graph.ty(value).dims == [heads]).then_some(value)
    }

    fn element_of_head(&mut self, body: Body, table: ValueId) -> Option<ValueId> {
        let first = usize::from(body == Body::Score);
        let one_for_all = self.graph.ty(table).dims == [Dim::Fixed(1)];
        let table = self.parameter(body, table, self.graph.ty(table).clone())?;
        let graph = &mut self.bodies[body as usize];
        let head = graph.params().get(first + 2).map(|p| p.value)?;
        let mut b = Builder::new(graph);
        let at = if one_for_all { b.scalar_of(0.0, DType::I64) } else { head };
        b.gather(table, at).ok()
    }

    /// The parameter of `body` that stands for an operand, which both bodies get.
    fn parameter(&mut self, body: Body, operand: ValueId, ty: Type) -> Option<ValueId> {
        let index = self.extras.iter().position(|e| *e == operand).unwrap_or_else(|| {
            for graph in &mut self.bodies {
                graph.add_param(format!("extra{}", self.extras.len()), ty.clone());
            }
            self.extras.push(operand);
            self.extras.len() - 1
        });
        let graph = &self.bodies[body as usize];
        let before = if body == Body::Score { Attention::SCORE_PARAMS.len() } else { Attention::MASK_PARAMS.len() };
        graph.params().get(before + index).map(|p| p.value)
    }
}
