//! Attention over kept keys and values as one online-softmax kernel.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, Type, ValueId};
use crate::ops::attributes::{Attributes, number};
use crate::ops::{Core, Op, ShapeError};

/// `softmax(score(scale · q·kᵀ) where mask) · v`, without ever holding a row of scores.
///
/// # Shapes
/// Operands: `q [tokens, H, Dk]`, `k [visible(tokens), K, Dk]`, `v [visible(tokens), K, Dv]` (or `[tokens, ..]` where nothing is
/// cached: the whole sequence in one step), then extras -> `[tokens, H, Dv]`, with `H % K == 0`. Keys and values may be of another ragged
/// axis than the queries.
/// Query head `h` reads key and value head `h / (H / K)`.
/// `mask` is a graph of scalars with parameters `(q_pos, k_pos, head, extras..)`, i64 positions and head, giving a bool.
/// `score` is a graph of scalars with parameters `(score, q_pos, k_pos, head, extras..)` giving f32; `score` is already scaled.
/// `sink`, where there is one, is a graph of scalars with the parameters of `mask` that does not read `k_pos`: the f32 score of one key more, which has no value.
/// Without a `softmax` the scores are the weights of the values themselves, and what the mask leaves out has none.
/// Extras are broadcastable to `[tokens, H, visible(tokens)]`, an element to a parameter; or tables `[n]`, whole, where the parameter is one:
/// mask and score gather from them. A table may also be a row of each query, `[tokens, H | 1, n]`, or one kept of each key,
/// `[visible(tokens), H | 1, n]`.
/// With `from_start` the last operand is the result, made in another way, and stays what it is where a sequence has earlier tokens; of sequences
/// whose first token is in the step, keys and values of the step `[tokens, ..]` are all there are, and the result is made from these.
///
/// # Precision
/// Scores, softmax and the weighted sum in f32 for any operand dtype; the result is f32, or that rounded to bf16.
///
/// # Source
/// Dao et al. 2022; Milakov and Gimelshein 2018 for the online softmax; Ainslie et al. 2023 for grouped queries.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Multiplies the products before `score` sees them.
    pub scale: f64,
    /// Which keys a query sees.
    pub mask: Graph,
    /// Identity when it returns its first parameter.
    pub score: Graph,
    /// A score that takes part in the softmax and has no value.
    pub sink: Option<Graph>,
    /// Whether scores become shares; otherwise they are the weights themselves, and there is no sink.
    pub softmax: bool,
    /// What the mask implies, derived by interval evaluation.
    pub reach: Reach,
    /// Only of sequences whose first token is in the step; the last operand is the same result, made in another way, for all others.
    pub from_start: bool,
    /// Whether the result is rounded to bf16.
    pub narrow: bool,
}

/// How far a query sees, derived from its mask: nobody declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `Some(n)`: only keys with `q_pos - k_pos < n` can be visible. `None`: any age (also when unknown).
    pub window: Option<u64>,
    /// Keys after the query can be visible: the whole sequence must be there in one step.
    pub future: bool,
}

impl Attention {
    /// Parameters of [`mask`](Self::mask) before the extras.
    pub const MASK_PARAMS: [&'static str; 3] = ["q_pos", "k_pos", "head"];
    /// Parameters of [`score`](Self::score) before the extras.
    pub const SCORE_PARAMS: [&'static str; 4] = ["score", "q_pos", "k_pos", "head"];

    /// Whether mask and score gather from an extra, rather than read it as it is.
    pub fn gathers(&self, extra: usize) -> bool {
        let param = self.score.params().get(Self::SCORE_PARAMS.len() + extra);
        param.is_some_and(|p| !self.score.ty(p.value).dims.is_empty())
    }

    /// Whether the score is used as it is.
    pub fn score_is_identity(&self) -> bool {
        self.score.outputs().first().map(|o| o.value) == self.score.params().first().map(|p| p.value)
    }
}

impl FusedOp for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        let window = self.reach.window.map_or("none".into(), |n| n.to_string());
        let mut list =
            vec![("scale", number(self.scale)), ("window", window), ("future", self.reach.future.to_string())];
        if self.from_start {
            list.push(("from_start", "true".to_owned()));
        }
        if self.narrow {
            list.push(("narrow", "true".to_owned()));
        }
        if !self.softmax {
            list.push(("softmax", "false".into()));
        }
        list
    }

    fn bodies(&self) -> Vec<(&'static str, &Graph)> {
        let sink = self.sink.as_ref().map(|sink| ("sink", sink));
        [("mask", &self.mask), ("score", &self.score)].into_iter().chain(sink).collect()
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        if self.from_start {
            return self.decompose_otherwise(operands);
        }
        let [q, k, v, extras @ ..] = operands else {
            return fail(format!("takes at least 3 operands, not {}", operands.len()));
        };
        let ([n, Dim::Fixed(heads), dk], [keys, Dim::Fixed(kv_heads), _], [keys_v, kv_heads_v, dv]) =
            (&q.dims[..], &k.dims[..], &v.dims[..])
        else {
            return fail(format!("{q}, {k} and {v}"));
        };
        if keys != keys_v || *kv_heads_v != Dim::Fixed(*kv_heads) || *kv_heads == 0 || heads % kv_heads != 0 {
            return fail(format!("{q}, {k} and {v}"));
        }
        if !n.is_ragged() || !keys.is_ragged() {
            return fail(format!("queries and keys of {q} and {k} have no positions"));
        }
        let (kv, group, one) = (Dim::Fixed(*kv_heads), Dim::Fixed(heads / kv_heads), Dim::Fixed(1));
        let mut graph = Graph::new("attention");
        let mut names = vec!["q".to_string(), "k".into(), "v".into()];
        names.extend((0..extras.len()).map(|i| format!("extra{i}")));
        let values: Vec<_> =
            names.into_iter().zip(operands).map(|(name, ty)| graph.add_param(name, ty.clone())).collect();
        let b = &mut Builder::new(&mut graph);
        let grouped = b.reshape(values[0], [*n, kv, group, *dk])?; // [N, K, G, Dk]
        // Products are of one dtype: what is narrower than the other operand is widened, which rounds nothing.
        let (mut grouped, mut k) = (grouped, values[1]);
        if b.graph.ty(grouped).dtype != b.graph.ty(k).dtype {
            (grouped, k) = (b.cast(grouped, DType::F32)?, b.cast(k, DType::F32)?);
        }
        let products = b.contract("nkgd,vkd->kgnv", grouped, k)?; // [K, G, N, T]
        let scale = b.scalar(self.scale);
        let scaled = b.mul(products, scale)?; // [K, G, N, T]
        let q_pos = b.position(*n)?; // [N]
        let q_pos = b.reshape(q_pos, [*n, one])?; // [N, 1]
        let k_pos = b.position(*keys)?; // [T]
        let head = b.index(*heads)?; // [H]
        let head = b.reshape(head, [kv, group, one, one])?; // [K, G, 1, 1]
        let mut args = vec![scaled, q_pos, k_pos, head];
        for (i, (value, ty)) in values[3..].iter().zip(extras).enumerate() {
            let param = self.score.params().get(Self::SCORE_PARAMS.len() + i).map(|p| self.score.ty(p.value));
            if let Some(param) = param.filter(|p| !p.dims.is_empty()) {
                args.push(match (&param.dims[..], &ty.dims[..]) {
                    _ if param == ty && ty.dims.len() == 1 => *value,
                    // [N|T, K|1, G|1, n]
                    ([n], [_, of, m])
                        if n == m && param.dtype == ty.dtype && of.fixed().is_some_and(|h| h == 1 || h == *heads) =>
                    {
                        table_of_rows(b, *value, ty, [kv, group])?
                    }
                    _ => return fail(format!("the table {ty}")),
                });
                continue;
            }
            args.push(aligned(b, *value, ty, [*n, Dim::Fixed(*heads), *keys], [kv, group])?); // [K|1, G|1, N|1, T|1]
        }
        let full = [kv, group, *n, *keys];
        let gather = &mut |b: &mut Builder<'_>, table, index| element(b, table, index, full);
        let [scores] = b.lift_with(&self.score, &args, gather)?[..] else {
            return fail("the score has not one result");
        };
        let [mask] = b.lift_with(&self.mask, &args[1..], gather)?[..] else {
            return fail("the mask has not one result");
        };
        let sink = match &self.sink {
            None => None,
            Some(sink) => match b.lift_with(sink, &args[1..], gather)?[..] {
                [sink] => Some(sink), // [K|1, G|1, N|1, 1]
                _ => return fail("the sink has not one result"),
            },
        };
        let probabilities = if self.softmax {
            b.softmax(scores, Some(mask), sink)? // [K, G, N, T]
        } else {
            if self.sink.is_some() {
                return fail("a sink without a softmax");
            }
            let zero = b.scalar(0.0);
            b.select(mask, scores, zero)? // [K, G, N, T]
        };
        let v = b.cast(values[2], DType::F32)?; // [T, K, Dv]
        let summed = b.contract("kgnv,vkd->nkgd", probabilities, v)?; // [N, K, G, Dv]
        let y = b.reshape(summed, [*n, Dim::Fixed(*heads), *dv])?; // [N, H, Dv]
        let y = if self.narrow { b.cast(y, DType::BF16)? } else { y };
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Attention {
    /// The operands behind keys and values that mask and score read.
    pub fn extras<'o, T>(&self, operands: &'o [T]) -> &'o [T] {
        let end = operands.len().saturating_sub(usize::from(self.from_start));
        operands.get(3..end).unwrap_or_default()
    }

    /// Both ways give the same result: the meaning is that of the operand which is always right.
    fn decompose_otherwise(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        let Some((otherwise, attended)) = operands.split_last() else {
            return fail("takes at least 4 operands, not 0");
        };
        let meaning = Attention { from_start: false, ..self.clone() }.decompose(attended)?;
        let result = meaning.outputs().first().map(|o| meaning.ty(o.value));
        if result != Some(otherwise) {
            return fail(format!("the result {otherwise}, made in another way"));
        }
        let mut graph = Graph::new("attention");
        let names = (0..attended.len()).map(|i| format!("operand{i}"));
        for (name, ty) in names.zip(attended) {
            graph.add_param(name, ty.clone());
        }
        let otherwise = graph.add_param("otherwise", otherwise.clone());
        graph.add_output("y", otherwise);
        Ok(graph)
    }
}

/// Rows `[N|T, H|1, n]` of queries or keys as `[K|1, G|1, N|T, n]`.
fn table_of_rows(b: &mut Builder<'_>, x: ValueId, ty: &Type, heads: [Dim; 2]) -> Result<ValueId, ShapeError> {
    let one = Dim::Fixed(1);
    let [k, g] = if ty.dims[1] == one { [one, one] } else { heads };
    let split = b.reshape(x, [ty.dims[0], k, g, ty.dims[2]])?; // [N|T, K|1, G|1, n]
    b.transpose(split, vec![1, 2, 0, 3])
}

/// An element of a table `[n]`, or of the row of each query or key `[K|1, G|1, N|T, n]`, at an index that broadcasts to `full`, `[K, G, N, T]`.
fn element(b: &mut Builder<'_>, table: ValueId, index: ValueId, full: [Dim; 4]) -> Result<ValueId, ShapeError> {
    let ty = b.graph.ty(table).clone();
    let [_, _, of, n] = ty.dims[..] else { return b.gather(table, index) };
    let [k, g, queries, _] = full;
    let integers = Type::new(b.graph.ty(index).dtype, full);
    let rows = b.core(Core::Broadcast, &[table], Type::new(ty.dtype, [k, g, of, n]))?; // [K, G, N|T, n]
    let index = b.core(Core::Broadcast, &[index], integers)?; // [K, G, N, T]
    if of == queries {
        return b.take(rows, index);
    }
    let by_key = b.transpose(index, vec![0, 1, 3, 2])?; // [K, G, T, N]
    let taken = b.take(rows, by_key)?; // [K, G, T, N]
    b.transpose(taken, vec![0, 1, 3, 2])
}

/// An extra, broadcastable to `[N, H, T]`, as something that broadcasts to `[K, G, N, T]`.
fn aligned(b: &mut Builder<'_>, x: ValueId, ty: &Type, full: [Dim; 3], heads: [Dim; 2]) -> Result<ValueId, ShapeError> {
    let one = Dim::Fixed(1);
    if ty.dims.len() > 3 || !crate::ops::shape::broadcasts_to(&ty.dims, &full) {
        return fail(format!("the extra {ty} does not broadcast to {}", Type::show(&full)));
    }
    let at = |i: usize| (i + ty.dims.len()).checked_sub(3).map_or(one, |j| ty.dims[j]);
    let [k, g] = if at(1) == one { [one, one] } else { heads };
    if at(0) == one || at(1) == one {
        return b.reshape(x, [k, g, at(0), at(2)]);
    }
    let split = b.reshape(x, [at(0), k, g, at(2)])?; // [N, K, G, T|1]
    b.transpose(split, vec![1, 2, 0, 3])
}

pub(super) fn parse(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(Attention {
        scale: a.f64("scale")?,
        mask: a.body("mask")?,
        score: a.body("score")?,
        sink: a.optional_body("sink"),
        softmax: a.optional_bool("softmax")?.unwrap_or(true),
        reach: Reach { window: a.optional_u64("window")?, future: a.bool("future")? },
        from_start: a.flag("from_start")?,
        narrow: a.flag("narrow")?,
    }))
}
