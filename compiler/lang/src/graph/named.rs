//! The values of a program that have names, in the order they are computed, and programs that give some of them as outputs.
//!
//! Given a program as the front end made it, [`named_values`] lists what its labels name, each under a path of its own; [`tap`]
//! promises a program that computes the same and has the chosen values among its outputs. A body is copied for the calls whose
//! inside is tapped; all other calls keep sharing theirs.

use std::collections::{BTreeMap, HashMap};

use super::path::{MAX_INSTANCES, join};
use super::{DType, Dim, Graph, LabelKind, NodeId, Program, Type, ValueId};
use crate::diagnostic::Span;
use crate::ops::{Core, Op};

/// A value with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Absolute path, distinct: the second value of one path is called `path@2`.
    pub path: String,
    /// Absolute path of the instance whose result it is, or in whose body it has its name.
    pub module: String,
    /// Its type.
    pub ty: Type,
    /// The equation that gives it its name.
    pub span: Option<Span>,
    /// Calls from the model to the body that computes it.
    calls: Vec<NodeId>,
    value: ValueId,
}

impl Named {
    /// Whether compiled code can give it as an output: one row for each element of an axis.
    pub fn is_per_element(&self) -> bool {
        let fixed = |d: &Dim| matches!(d, Dim::Fixed(_));
        matches!(self.ty.dims.split_first(), Some((Dim::Axis(_), rest)) if rest.iter().all(fixed))
    }

    /// Whether its elements are floats.
    pub fn is_float(&self) -> bool {
        matches!(self.ty.dtype, DType::F32 | DType::BF16 | DType::F16)
    }

    /// Calls that lead to its body: 0 for a value of the model itself.
    pub fn depth(&self) -> usize {
        self.calls.len()
    }

    /// Whether it is the first result of a call in the model itself: of a layer.
    pub fn is_call(&self, program: &Program) -> bool {
        let call = |main: &Graph| matches!(main.op(self.value.node).as_core(), Some(Core::Call { .. }));
        self.calls.is_empty() && self.value.port == 0 && program.graphs.first().is_some_and(call)
    }

    /// Whether both are names of one value.
    pub fn is_same_value(&self, other: &Named) -> bool {
        (&self.calls, self.value) == (&other.calls, other.value)
    }

    /// Whether it is computed inside what computes `other`: in the body of that call.
    pub fn is_inside(&self, other: &Named) -> bool {
        self.calls.len() > other.calls.len()
            && self.calls.starts_with(&other.calls)
            && self.calls[other.calls.len()] == other.value.node
    }
}

/// Every named value, operands before users. Values that are outputs of the program under the same name are left out.
pub fn named_values(program: &Program) -> Vec<Named> {
    let mut found = Vec::new();
    let Some(main) = program.graphs.first() else { return found };
    let mut walk = Walk { program, found: &mut found, bodies: 0 };
    walk.graph(0, "", &mut Vec::new());
    let mut seen: HashMap<String, usize> = main.outputs().iter().map(|o| (o.name.clone(), 1)).collect();
    found.retain_mut(|named| {
        let is_output = |o: &super::Output| o.name == named.path && named.calls.is_empty() && o.value == named.value;
        if main.outputs().iter().any(is_output) {
            return false;
        }
        let n = seen.entry(named.path.clone()).or_insert(0);
        *n += 1;
        if *n > 1 {
            named.path = format!("{}@{n}", named.path);
        }
        true
    });
    found
}

struct Walk<'p> {
    program: &'p Program,
    found: &'p mut Vec<Named>,
    bodies: usize,
}

impl Walk<'_> {
    fn graph(&mut self, index: usize, at: &str, calls: &mut Vec<NodeId>) {
        self.bodies += 1;
        if self.bodies > MAX_INSTANCES {
            return;
        }
        let graph = &self.program.graphs[index];
        let mut labels: BTreeMap<NodeId, Vec<&super::Label>> = BTreeMap::new();
        for label in graph.labels() {
            labels.entry(label.value.node).or_default().push(label);
        }
        for node in graph.topological() {
            if let Some(Core::Call { graph: callee, at: relative }) = graph.op(node).as_core()
                && *callee > index
            {
                calls.push(node);
                self.graph(*callee, &join(at, relative), calls);
                calls.pop();
            }
            for label in labels.get(&node).into_iter().flatten() {
                let path = join(at, &label.path);
                let module = match label.kind {
                    LabelKind::Instance => path.clone(),
                    LabelKind::Binding => path.rsplit_once('.').map_or("", |(module, _)| module).to_owned(),
                };
                self.found.push(Named {
                    path,
                    module,
                    ty: graph.ty(label.value).clone(),
                    span: label.span,
                    calls: calls.clone(),
                    value: label.value,
                });
            }
        }
    }
}

/// The program with these of its [`named_values`] as further outputs, by their paths.
pub fn tap(program: &Program, taps: &[&Named]) -> Program {
    let mut taps = taps.to_vec();
    taps.dedup();
    let wanted: Vec<Wanted<'_>> =
        taps.iter().map(|t| Wanted { calls: &t.calls, value: t.value, name: Some(&t.path) }).collect();
    let mut tapper = Tapper { graphs: program.graphs.clone(), known: HashMap::new() };
    let main = tapper.graph(0, &wanted);
    Program { graphs: numbered(&tapper.graphs, main), ..program.clone() }
}

/// A value to give out of a body: through more calls, or at once.
#[derive(Clone)]
struct Wanted<'t> {
    calls: &'t [NodeId],
    value: ValueId,
    /// In the model itself; outputs of bodies are numbered.
    name: Option<&'t str>,
}

/// A graph by index, and what is wanted of it.
type Key = (usize, Vec<(Vec<NodeId>, ValueId)>);

struct Tapper {
    graphs: Vec<Graph>,
    /// Copies made, by the body and what is wanted of it.
    known: HashMap<Key, usize>,
}

impl Tapper {
    /// The index of a copy of a graph with further outputs in the order of `wanted`.
    fn graph(&mut self, index: usize, wanted: &[Wanted<'_>]) -> usize {
        let key: Key = (index, wanted.iter().map(|w| (w.calls.to_vec(), w.value)).collect());
        let named = wanted.iter().any(|w| w.name.is_some());
        if let Some(known) = self.known.get(&key).filter(|_| !named) {
            return *known;
        }
        let mut copy = self.graphs[index].clone();
        let mut through: BTreeMap<NodeId, Vec<Wanted<'_>>> = BTreeMap::new();
        for w in wanted {
            if let Some((call, rest)) = w.calls.split_first() {
                through.entry(*call).or_default().push(Wanted { calls: rest, value: w.value, name: None });
            }
        }
        let mut results: BTreeMap<NodeId, Vec<ValueId>> = BTreeMap::new();
        for (call, inner) in through {
            let Some(Core::Call { graph: callee, at }) = copy.op(call).as_core().cloned() else { continue };
            let before = self.graphs[callee].outputs().len();
            let body = self.graph(callee, &inner);
            copy.set_op(call, Op::Core(Core::Call { graph: body, at }));
            let outputs = self.graphs[body].outputs()[before..].to_vec();
            let given = outputs.iter().map(|o| copy.add_result(call, self.graphs[body].ty(o.value).clone())).collect();
            results.insert(call, given);
        }
        let first = copy.outputs().len();
        let mut taken: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (i, w) in wanted.iter().enumerate() {
            let value = match w.calls.first() {
                None => Some(w.value),
                Some(call) => {
                    let n = taken.entry(*call).or_insert(0);
                    *n += 1;
                    results.get(call).and_then(|given| given.get(*n - 1)).copied()
                }
            };
            if let Some(value) = value {
                let name = w.name.map_or_else(|| format!("tap{}", first + i), str::to_owned);
                copy.add_output(name, value);
            }
        }
        self.graphs.push(copy);
        self.known.insert(key, self.graphs.len() - 1);
        self.graphs.len() - 1
    }
}

/// The graphs that `main` needs, numbered so that a graph calls only later ones.
fn numbered(graphs: &[Graph], main: usize) -> Vec<Graph> {
    fn visit(graphs: &[Graph], at: usize, seen: &mut [bool], order: &mut Vec<usize>) {
        seen[at] = true;
        for callee in callees(&graphs[at]) {
            if !seen[callee] {
                visit(graphs, callee, seen, order);
            }
        }
        order.push(at);
    }
    let mut order = Vec::new();
    visit(graphs, main, &mut vec![false; graphs.len()], &mut order);
    order.reverse();
    let mut numbers = vec![0; graphs.len()];
    order.iter().enumerate().for_each(|(number, at)| numbers[*at] = number);
    let renumbered = |at: &usize| {
        let mut graph = graphs[*at].clone();
        for node in graph.nodes().collect::<Vec<_>>() {
            if let Op::Core(Core::Call { graph: callee, at }) = graph.op(node) {
                let call = Core::Call { graph: numbers[*callee], at: at.clone() };
                graph.set_op(node, call);
            }
        }
        graph
    };
    order.iter().map(renumbered).collect()
}

/// Bodies that a graph calls, last first, so that the numbers follow the order of the calls.
fn callees(graph: &Graph) -> Vec<usize> {
    let call = |node: NodeId| match graph.op(node).as_core() {
        Some(Core::Call { graph, .. }) => Some(*graph),
        _ => None,
    };
    let mut callees: Vec<usize> = graph.topological().into_iter().filter_map(call).collect();
    callees.reverse();
    callees
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Named, named_values, tap};
    use crate::arch::testing::model;
    use crate::graph::Program;
    use crate::graph::verify::verify;
    use crate::reference::{Interpreter, State, Tensor};

    const LAYERS: &str = "scale(x) { weight = param[width(x)] t = x * weight y = t + 1 return y }
layer(x) { a = scale h = a(x) again = a(h) return x + again }
model(x: f32[tokens, 4]) { layers = [layer for i in 0..3] first = x * 2 return {y: layers(first)} }";

    fn run(program: &Program) -> BTreeMap<String, Tensor> {
        let weights = |path: &str| {
            let layer: f64 = path.split('.').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
            Ok(Tensor::f64([4], (0..4).map(|i| layer + 0.25 * f64::from(i)).collect()))
        };
        let verified = verify(program).unwrap_or_else(|e| panic!("{e}\n{program}"));
        let inputs = BTreeMap::from([("x".to_owned(), Tensor::f64([2, 4], (0..8).map(f64::from).collect()))]);
        Interpreter::<f64>::new(verified, &weights).unwrap().step(&mut State::new(), &inputs).unwrap()
    }

    #[test]
    fn names_follow_the_instances() {
        let named = named_values(&model(LAYERS).program);
        let paths: Vec<&str> = named.iter().map(|n| n.path.as_str()).collect();
        let layer = |i: usize| {
            ["a.t", "a", "h", "a.t@2", "a@2", "again", ""]
                .map(|p| format!("layers.{i}.{p}").trim_end_matches('.').to_owned())
        };
        let expected: Vec<String> = std::iter::once("first".to_owned()).chain((0..3).flat_map(layer)).collect();
        assert_eq!(paths, expected);
        let (inside, around) = (&named[8], &named[14]);
        assert!(inside.is_inside(around) && !inside.is_inside(&named[7]) && inside.span.is_some());
        assert_eq!((named[11].path.as_str(), named[11].module.as_str()), ("layers.1.a.t@2", "layers.1.a"));
    }

    #[test]
    fn tapped_values_are_outputs_and_nothing_else_changes() {
        let program = model(LAYERS).program;
        let named = named_values(&program);
        let plain = run(&program);
        let pick =
            |paths: &[&str]| -> Vec<&Named> { named.iter().filter(|n| paths.contains(&n.path.as_str())).collect() };
        let some = tap(&program, &pick(&["first", "layers.1.h", "layers.2.a.t@2"]));
        assert_eq!(some.graphs.len(), 4, "one body for the layer without taps, two with");
        let outputs = run(&some);
        assert_eq!(outputs["y"], plain["y"]);
        assert_eq!(outputs["first"].to_f64()[..3], [0.0, 2.0, 4.0]);
        let all = run(&tap(&program, &named.iter().collect::<Vec<_>>()));
        for (path, tensor) in &outputs {
            assert_eq!(all[path], *tensor, "{path}");
        }
        // h is a's first result, and again its second.
        assert_eq!(all["layers.1.h"], all["layers.1.a"]);
        assert_eq!(all["layers.1.again"], all["layers.1.a@2"]);
        let same = tap(&program, &pick(&["layers.0.h", "layers.1.h", "layers.2.h"]));
        assert_eq!(same.graphs.len(), 2, "equal taps share a body");
    }
}
