//! Runs graphs, node by node in topological order.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::contract::contract;
use super::elementwise::{binary, cast, reduce, select, softmax, take, top_k, unary};
use super::float::Float;
use super::tensor::{Value, map_elements, strides};
use super::{InterpretError, Result, fail};
use crate::graph::path::join;
use crate::graph::{Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::shape::ContractSpec;
use crate::ops::{Core, Op};

/// One step of one sequence.
pub(super) struct Step<'s, F> {
    pub(super) program: &'s Program,
    pub(super) weights: &'s BTreeMap<String, Rc<Value<F>>>,
    /// Elements kept before this step, by axis.
    pub(super) past: Vec<usize>,
    /// Elements that this step adds, by axis.
    pub(super) added: Vec<usize>,
    /// Elements whose outputs were asked for, by axis.
    pub(super) rows: Vec<Vec<usize>>,
    pub(super) old_caches: &'s BTreeMap<String, Rc<Value<F>>>,
    /// What the caches hold after this step.
    pub(super) caches: RefCell<BTreeMap<String, Rc<Value<F>>>>,
}

impl<F: Float> Step<'_, F> {
    pub(super) fn sizes(&self, dims: &[Dim]) -> Vec<usize> {
        dims.iter()
            .map(|d| match d {
                Dim::Fixed(n) => usize::try_from(*n).unwrap_or(usize::MAX),
                Dim::Axis(a) => self.added[a.0],
                Dim::Visible(a) => self.past[a.0] + self.added[a.0],
                Dim::Rows(a) => self.rows[a.0].len(),
            })
            .collect()
    }

    /// The outputs of a graph, which stands at the absolute path `at`.
    pub(super) fn graph(&self, graph: &Graph, args: &[Rc<Value<F>>], at: &str) -> Result<Vec<Rc<Value<F>>>> {
        let mut values: HashMap<ValueId, Rc<Value<F>>> = HashMap::new();
        let mut left: HashMap<ValueId, usize> = HashMap::new();
        for node in graph.nodes() {
            for operand in graph.operands(node) {
                *left.entry(operand).or_default() += 1;
            }
        }
        for output in graph.outputs() {
            *left.entry(output.value).or_default() += 1;
        }
        let value = |values: &HashMap<ValueId, Rc<Value<F>>>, v: ValueId| {
            values.get(&v).cloned().ok_or_else(|| InterpretError("a value used before it is computed".into()))
        };
        // Matrices that each token chooses are only made as they are multiplied: all of a step would not fit into memory.
        let mut chosen: HashMap<ValueId, [Rc<Value<F>>; 2]> = HashMap::new();
        for node in graph.topological() {
            let ids = graph.operands(node);
            if let (Some(_), [table, indices]) = (product_of_rows(graph, node), &ids[..]) {
                chosen.insert(ValueId { node, port: 0 }, [value(&values, *table)?, value(&values, *indices)?]);
            } else if let Some((gathered, other)) = ids.iter().find_map(|v| chosen.remove(v)).zip(
                // The other operand of the one product that reads them.
                ids.iter().find_map(|v| values.get(v).cloned()),
            ) {
                let is_first = product_of_rows(graph, ids[0].node).is_some();
                let result = self.product_by_rows(graph, node, is_first, gathered, &other);
                values.insert(ValueId { node, port: 0 }, Rc::new(result.map_err(|e| located(graph, node, at, e))?));
            } else {
                let operands = ids.iter().map(|v| value(&values, *v)).collect::<Result<Vec<_>>>()?;
                for (port, result) in self.node(graph, node, &operands, args, at)?.into_iter().enumerate() {
                    values.insert(ValueId { node, port }, result);
                }
            }
            // A value is dropped after its last use.
            for id in ids {
                if let Some(n) = left.get_mut(&id) {
                    *n -= 1;
                    if *n == 0 {
                        values.remove(&id);
                    }
                }
            }
        }
        graph.outputs().iter().map(|o| value(&values, o.value)).collect()
    }

    fn node(
        &self,
        graph: &Graph,
        node: NodeId,
        operands: &[Rc<Value<F>>],
        args: &[Rc<Value<F>>],
        at: &str,
    ) -> Result<Vec<Rc<Value<F>>>> {
        match graph.op(node) {
            Op::Core(Core::Call { graph: callee, at: relative }) => {
                self.graph(&self.program.graphs[*callee], operands, &join(at, relative))
            }
            Op::Core(Core::Scan { path, states, step }) => self
                .scan((&join(at, path), *states, step), operands, graph.types(node), at)
                .map_err(|e| InterpretError(format!("{}: scan: {}", join(at, &graph.origin(node).path), e.0))),
            Op::Core(op) => {
                let result = self.core(op, &graph.types(node)[0], operands, args, at);
                result.map(|v| vec![v]).map_err(|e| located(graph, node, at, e))
            }
            Op::Fused(op) => {
                let types: Vec<Type> = graph.operands(node).iter().map(|v| graph.ty(*v).clone()).collect();
                let meaning = op.decompose(&types).map_err(|e| InterpretError(e.0))?;
                self.graph(&meaning, operands, at)
            }
        }
    }

    fn core(&self, op: &Core, ty: &Type, x: &[Rc<Value<F>>], args: &[Rc<Value<F>>], at: &str) -> Result<Rc<Value<F>>> {
        let dims = || self.sizes(&ty.dims);
        Ok(Rc::new(match op {
            Core::Arg { index } => {
                return args.get(*index).cloned().ok_or_else(|| InterpretError(format!("argument {index} is missing")));
            }
            Core::Weight { path } => {
                let path = join(at, path);
                return self.weights.get(&path).cloned().ok_or_else(|| InterpretError(format!("no weight '{path}'")));
            }
            Core::Cache { path } => return self.cache(join(at, path), &x[0], ty),
            Core::Const { values } if values.len() == 1 => Value::filled(values[0], ty.dtype, dims()),
            Core::Const { values } => Value::from_f64(values, ty.dtype, dims()),
            Core::Position => Value::int(dims(), self.positions(ty.dims.first())),
            Core::Index => Value::int(dims(), (0..dims()[0] as i64).collect()),
            Core::Unary(f) => unary(*f, &x[0]),
            Core::Binary(f) => binary(*f, &x[0], &x[1], &dims())?,
            Core::Select => select(&x[0], &x[1], &x[2], &dims())?,
            Core::Cast => cast(&x[0], ty.dtype),
            Core::Reshape => Value { dims: dims(), data: x[0].data.clone() },
            Core::Transpose { perm } => x[0].transpose(perm),
            Core::Slice { dim, start } => {
                let own = strides(&x[0].dims);
                x[0].strided(dims(), &own, *start as usize * own[*dim])
            }
            Core::Concat { dim } => concat(*dim, x, dims()),
            Core::Repeat { dim, times } => {
                let inner: usize = x[0].dims[dim + 1..].iter().product();
                let times = *times as usize;
                let data = map_elements!(&x[0].data, v => {
                    v.chunks_exact(inner.max(1)).flat_map(|c| std::iter::repeat_n(c, times)).flatten().copied().collect()
                });
                Value { dims: dims(), data }
            }
            Core::Broadcast => x[0].broadcast(&dims()),
            Core::Windows { dim, stride, .. } => {
                let mut steps = strides(&x[0].dims);
                let own = steps[*dim];
                steps[*dim] = own * *stride as usize;
                steps.insert(dim + 1, own);
                x[0].strided(dims(), &steps, 0)
            }
            Core::Gather => gather(&x[0], &x[1], dims())?,
            Core::Take => take(&x[0], &x[1])?,
            Core::Reduce(f) => reduce(*f, &x[0])?,
            Core::TopK { k } => top_k(&x[0], *k as usize),
            Core::Softmax => softmax(&x[0], x.get(1), x.get(2)),
            Core::Contract { spec } => contract(spec, &x[0], &x[1])?,
            Core::SelectRows => {
                let rows: &[usize] = match ty.dims.first() {
                    Some(Dim::Rows(a)) => &self.rows[a.0],
                    _ => return fail("rows of no axis"),
                };
                rows_of(&x[0], rows.iter().copied(), dims())
            }
            Core::Regroup => Value { dims: dims(), data: x[0].data.clone() },
            Core::First | Core::Last => match x[0].dims.first() {
                Some(n) if *n > 0 => {
                    let at = if *op == Core::First { 0 } else { n - 1 };
                    rows_of(&x[0], std::iter::once(at), dims())
                }
                // A later step has none of either axis.
                _ if dims().first() == Some(&0) => rows_of(&x[0], std::iter::empty(), dims()),
                _ => return fail("one element of none"),
            },
            Core::Scan { .. } | Core::Call { .. } => return fail("not one value"),
        }))
    }

    /// A product with gathered rows, one index row after another.
    fn product_by_rows(
        &self,
        graph: &Graph,
        node: NodeId,
        gathered_first: bool,
        [table, indices]: [Rc<Value<F>>; 2],
        other: &Value<F>,
    ) -> Result<Value<F>> {
        let Some(Core::Contract { spec }) = graph.op(node).as_core() else { return fail("no product of rows") };
        let dims = self.sizes(&graph.types(node)[0].dims);
        let by_row = ContractSpec::parse(spec).map_err(|e| InterpretError(e.0))?;
        let shared = by_row.a.first() == by_row.b.first();
        let mut out = Vec::with_capacity(dims.iter().product());
        for row in 0..dims[0] {
            let one = |x: &Value<F>| rows_of(x, std::iter::once(row), [&[1], &x.dims[1..]].concat());
            let at = one(&indices);
            let rows = gather(&table, &at, [&at.dims, &table.dims[1..]].concat())?;
            let other = if shared { &one(other) } else { other };
            let product = if gathered_first { contract(spec, &rows, other)? } else { contract(spec, other, &rows)? };
            out.extend_from_slice(product.floats());
        }
        Ok(Value::float(dims, out))
    }

    fn positions(&self, dim: Option<&Dim>) -> Vec<i64> {
        match dim {
            Some(Dim::Axis(a)) => (self.past[a.0]..self.past[a.0] + self.added[a.0]).map(|i| i as i64).collect(),
            Some(Dim::Visible(a)) => (0..self.past[a.0] + self.added[a.0]).map(|i| i as i64).collect(),
            Some(Dim::Rows(a)) => self.rows[a.0].iter().map(|r| (self.past[a.0] + r) as i64).collect(),
            Some(Dim::Fixed(_)) | None => Vec::new(),
        }
    }

    fn cache(&self, path: String, new: &Rc<Value<F>>, ty: &Type) -> Result<Rc<Value<F>>> {
        let dims = self.sizes(&ty.dims);
        let kept = match self.old_caches.get(&path) {
            Some(old) => concat(0, &[old.clone(), new.clone()], dims.clone()),
            None => (**new).clone(),
        };
        if kept.dims != dims {
            return fail(format!("cache '{path}' holds {:?}, not {dims:?}", kept.dims));
        }
        let kept = Rc::new(kept);
        self.caches.borrow_mut().insert(path, kept.clone());
        Ok(kept)
    }
}

/// The product that alone reads a gather of several matrices a token, when it multiplies those of each token by themselves.
fn product_of_rows(graph: &Graph, node: NodeId) -> Option<NodeId> {
    let value = ValueId { node, port: 0 };
    let ([_, indices], [(user, operand)]) = (&graph.operands(node)[..], &graph.uses(value)[..]) else { return None };
    if graph.op(node).as_core() != Some(&Core::Gather) || graph.is_output(value) || graph.ty(value).dims.len() < 3 {
        return None;
    }
    let Core::Contract { spec } = graph.op(*user).as_core()? else { return None };
    let spec = ContractSpec::parse(spec).ok()?;
    let (own, other) = if *operand == 0 { (&spec.a, &spec.b) } else { (&spec.b, &spec.a) };
    let row = own.first()?;
    let by_row = spec.out.first() == Some(row) && (other.first() == Some(row) || !other.contains(row));
    let both = graph.operands(*user).iter().all(|v| graph.op(v.node).as_core() == Some(&Core::Gather));
    (by_row && !both && !graph.ty(*indices).dims.is_empty()).then_some(*user)
}

/// An error with the place of the operation that it is of.
fn located(graph: &Graph, node: NodeId, at: &str, e: InterpretError) -> InterpretError {
    let path = join(at, &graph.origin(node).path);
    InterpretError(if path.is_empty() { e.0 } else { format!("{path}: {}: {}", graph.op(node).name(), e.0) })
}

/// The parts one after another along `dim`, a result of the sizes `dims`.
pub(super) fn concat<F: Float>(dim: usize, parts: &[Rc<Value<F>>], dims: Vec<usize>) -> Value<F> {
    fn joined<T: Copy>(parts: &[(&[T], usize)], outer: usize) -> Vec<T> {
        (0..outer).flat_map(|i| parts.iter().flat_map(move |(v, n)| v[i * n..(i + 1) * n].iter().copied())).collect()
    }
    let outer: usize = dims[..dim].iter().product();
    let chunk = |x: &Value<F>| x.dims[dim..].iter().product::<usize>();
    let data = map_elements!(&parts[0].data, _v => {
        let parts: Vec<_> = parts.iter().map(|p| (slice_like(_v, p), chunk(p))).collect();
        joined(&parts, outer)
    });
    Value { dims, data }
}

/// The elements of `x` as a slice of the element type of the first argument.
fn slice_like<'v, F: Float, T: Pick<F>>(_: &[T], x: &'v Value<F>) -> &'v [T] {
    T::pick(x)
}

trait Pick<F>: Sized {
    fn pick(x: &Value<F>) -> &[Self];
}

impl<F: Float> Pick<F> for F {
    fn pick(x: &Value<F>) -> &[F] {
        x.floats()
    }
}

impl<F: Float> Pick<F> for i64 {
    fn pick(x: &Value<F>) -> &[i64] {
        x.ints()
    }
}

impl<F: Float> Pick<F> for bool {
    fn pick(x: &Value<F>) -> &[bool] {
        x.bools()
    }
}

fn gather<F: Float>(table: &Value<F>, indices: &Value<F>, dims: Vec<usize>) -> Result<Value<F>> {
    let rows = table.dims.first().copied().unwrap_or(0);
    if let Some(i) = indices.ints().iter().find(|i| **i < 0 || **i as usize >= rows) {
        return fail(format!("row {i} of a table of {rows}"));
    }
    Ok(rows_of(table, indices.ints().iter().map(|i| *i as usize), dims))
}

fn rows_of<F: Float>(x: &Value<F>, rows: impl Iterator<Item = usize> + Clone, dims: Vec<usize>) -> Value<F> {
    let width: usize = x.dims[1..].iter().product();
    let data =
        map_elements!(&x.data, v => rows.clone().flat_map(|r| v[r * width..(r + 1) * width].iter().copied()).collect());
    Value { dims, data }
}
