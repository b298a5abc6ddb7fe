//! Lists of modules applied one after another: layers as calls of bodies, which equal ones share.
//!
//! What goes from one to the next is one value or several, each a tensor or a list, a tuple or a mapping of them. A body has a parameter for each
//! tensor in what it is given, and gives a result for each tensor in what it returns; what is no tensor is known while the body is expanded.

use std::rc::Rc;
use std::sync::Arc;

use super::calls::Given;
use super::expand::{Eval, Expander, Failed};
use super::value::{Instance, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{LabelKind, Origin, Type, ValueId};
use crate::ops::Core;

/// Most modules of a list that is applied; models have under 200 layers.
const MAX_COMPOSED: usize = 1 << 12;

impl Expander {
    /// A list of modules applied: each element is a call of a body, of as many values as it gives to the next.
    pub(super) fn compose(
        &mut self,
        items: &Rc<Vec<Value>>,
        name: Option<&Arc<str>>,
        given: Vec<Given>,
        span: Span,
        place: &Place,
    ) -> Eval {
        if items.len() > MAX_COMPOSED {
            let message = format!("{} modules one after another; at most {MAX_COMPOSED} are applied", items.len());
            return self.fail(Code::TooLarge, span, message, "too many");
        }
        if let Some(named) = given.iter().find(|g| g.name.is_some()) {
            let message = "values are given to a list of modules in order, without names";
            return self.fail(Code::UnknownOption, named.span, message, "a name here");
        }
        if given.is_empty() {
            let message = "a list of modules is applied to nothing";
            return self.fail(Code::MissingOption, span, message, "expected a value");
        }
        let n = given.len();
        let mut values: Vec<Value> = given.into_iter().map(|g| g.value).collect();
        for (i, item) in items.iter().enumerate() {
            let instance = match item {
                Value::Identity => continue,
                Value::Instance(instance) => Some(instance.clone()),
                Value::Def(def) => {
                    let name = name.map_or_else(|| def.module.name.name.clone(), |n| format!("{n}.{i}").into());
                    Some(self.instance(&name, def, span, place)?)
                }
                _ => None,
            };
            let result = match instance {
                Some(instance) => {
                    let inputs = values.into_iter().map(|v| self.carried(v, span, place)).collect::<Eval<Vec<_>>>()?;
                    if self.experts.is_some() {
                        // The parameters of experts are stacks of the body around them.
                        let given = inputs.into_iter().map(|value| Given::of(value, span));
                        self.apply(&instance, given.collect(), span)?
                    } else {
                        self.call_body(&instance, inputs, span)?
                    }
                }
                None => {
                    let given = values.into_iter().map(|value| Given::of(value, span));
                    let name = name.map(|n| format!("{n}.{i}").into());
                    self.call(item.clone(), name, given.collect(), span, span, place)?
                }
            };
            let result = self.bounded(result, span)?;
            values = match result {
                one if n == 1 => vec![one],
                Value::Tuple(items) if items.len() == n => items.to_vec(),
                other => {
                    let found = match &other {
                        Value::Tuple(items) => format!("{} values", items.len()),
                        other => other.kind().to_string(),
                    };
                    let message = format!("element {i} of a list applied to {n} values gives {found}");
                    let d = Diagnostic::new(Code::WrongType, message, span).label(format!("{n} values go in here"));
                    return Err(self.report(d.help("each element gives as many values as the next is given")));
                }
            };
        }
        let mut values = values.into_iter();
        match (values.next(), values.len()) {
            (Some(one), 0) => Ok(one),
            (first, _) => Ok(Value::Tuple(Rc::new(first.into_iter().chain(values).collect()))),
        }
    }

    /// A value as an instance is given it: tensors, and structures of them.
    pub(super) fn carried(&mut self, value: Value, span: Span, place: &Place) -> Eval {
        match value {
            Value::None => Ok(Value::None),
            value if value.is_structure() => value.map_tensors(&mut |leaf| match leaf {
                leaf if leaf.is_tensor_like() => self.tensor(leaf, span, place.frame.as_deref()).map(Value::Tensor),
                other => Ok(other),
            }),
            other => self.tensor(other, span, place.frame.as_deref()).map(Value::Tensor),
        }
    }

    /// An instance applied as a call of a body of its own, which equal instances share.
    fn call_body(&mut self, instance: &Rc<Instance>, inputs: Vec<Value>, span: Span) -> Eval {
        let module = instance.def.module.clone();
        let at = self.builders.relative(&instance.path);
        self.builders.push(&module.name.name, &instance.path);
        let mut outer: Vec<Tensor> = Vec::new();
        let mut given = Vec::with_capacity(inputs.len());
        for (i, input) in inputs.into_iter().enumerate() {
            let name = module.inputs.get(i).map_or("x", |p| &*p.name.name);
            let first = outer.len();
            let value = input.map_tensors(&mut |leaf| match leaf {
                Value::Tensor(tensor) => {
                    let name =
                        if outer.len() == first { name.to_owned() } else { format!("{name}{}", outer.len() - first) };
                    let inner = self.builders.parameter(&name, tensor.dtype, tensor.axes.clone());
                    outer.push(tensor);
                    Ok(Value::Tensor(inner))
                }
                other => Ok(other),
            });
            match value {
                Ok(value) => given.push(Given::of(value, span)),
                Err(Failed) => {
                    self.builders.stack.pop();
                    return Err(Failed);
                }
            }
        }
        let around = (self.at, self.depth);
        let result = self.apply(instance, given, span).and_then(|value| self.results(value, span));
        (self.at, self.depth) = around;
        let (shape, results, values) = match result {
            Ok(result) => result,
            Err(Failed) => {
                self.builders.stack.pop();
                return Err(Failed);
            }
        };
        let (graph, captures) = self.builders.finish(&values);
        let operands: Vec<_> = outer.iter().chain(&captures).filter_map(|t| self.builders.here(t)).collect();
        let types: Vec<Type> = results.iter().map(Tensor::ty).collect();
        let origin = Origin { path: at.clone(), span: Some(span) };
        let top = self.builders.top();
        let node = top.graph.add_node(Core::Call { graph, at }, &operands, types, origin);
        let id = top.id;
        let mut port = 0;
        let result = shape.map_tensors(&mut |leaf| match leaf {
            Value::Tensor(t) => {
                port += 1;
                let value = ValueId { node, port: port - 1 };
                Ok(Value::Tensor(Tensor::new(id, value, t.dtype, t.axes)))
            }
            other => Ok(other),
        })?;
        self.label(&instance.path, LabelKind::Instance, &result, module.result.span);
        Ok(result)
    }

    /// What a body returns, the tensors in it in order, and their values in its graph.
    fn results(&mut self, value: Value, span: Span) -> Eval<(Value, Vec<Tensor>, Vec<ValueId>)> {
        let value = match value {
            value if value.is_structure() => value,
            other => Value::Tensor(self.tensor(other, span, None)?),
        };
        let mut results = Vec::new();
        let shape = value.map_tensors(&mut |leaf| match leaf {
            leaf if leaf.is_tensor_like() => {
                let tensor = self.tensor(leaf, span, None)?;
                results.push(tensor.clone());
                Ok(Value::Tensor(tensor))
            }
            other => Ok(other),
        })?;
        if results.is_empty() {
            return self.fail(Code::WrongType, span, "a module that returns no tensor", "applied here");
        }
        let values: Option<Vec<_>> = results.iter().map(|t| self.builders.here(t)).collect();
        match values {
            Some(values) => Ok((shape, results, values)),
            None => self.fail(Code::Misplaced, span, "a tensor of a body that is finished", "returned here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    fn outputs(wiring: &str) -> Vec<String> {
        let made = model(wiring);
        crate::graph::verify::verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        made.arch.outputs.iter().map(|(_, ty)| ty.clone()).collect()
    }

    #[test]
    fn several_values_go_through_layers() {
        let wiring = "layer(a, b) { return b, a + b }\n\
                      model(x: f32[tokens, 4]) { layers = [layer for i in 0..3] y, z = layers(x, 2 * x) return {y: y, z: z} }";
        assert_eq!(outputs(wiring), ["f32[tokens, 4]"; 2]);
        assert_eq!(model(wiring).program.graphs.len(), 2, "equal layers are one body");
    }

    #[test]
    fn structures_go_through_layers() {
        let wiring = "layer(i)(streams, kept) {\n  total = sum(streams)\n\
                      \x20 return [s + total + q_pos for s in streams], if i == 0 then {first: total, depth: 1} else kept\n}\n\
                      model(x: f32[tokens, 4]) {\n  layers = [layer(i) for i in 0..4]\n\
                      \x20 streams, kept = layers([x, 2 * x, 3 * x], {first: none, depth: 0})\n\
                      \x20 return {y: streams[2], z: kept.first * kept.depth}\n}";
        assert_eq!(outputs(wiring), ["f32[tokens, 4]"; 2]);
        let made = model(wiring);
        assert_eq!(made.program.graphs.len(), 3, "the first is another");
        assert_eq!(made.program.graphs[1].params().len(), 3, "none is no parameter");
        assert_eq!(made.program.graphs[2].params().len(), 4);
    }

    #[test]
    fn what_one_layer_keeps_others_read() {
        let wiring = "attn(x, kept = none) {\n  q = split(x, 2)\n  k = if kept is none then cache(q) else kept[0]\n\
                      \x20 v = if kept is none then cache(q * 2) else kept[1]\n\
                      \x20 return merge(attend(q, k, v, causal)), [k, v]\n}\n\
                      mask causal = k_pos <= q_pos\n\
                      layer(x, kept) { self = attn y, k = self(x, kept) return x + y, k }\n\
                      model(x: f32[tokens, 4]) { layers = [layer for i in 0..3] y, kept = layers(x, none) return {y: y} }";
        let made = model(wiring);
        crate::graph::verify::verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        let caches: Vec<&str> = made.arch.caches.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(caches, ["layers.0.self.q", "layers.0.self.v"], "{}", made.program);
    }

    #[test]
    fn misuse_is_said() {
        let code = |call: &str| {
            codes(&format!(
                "one(x) {{ return x }}\ntwo(x, y) {{ return y, x }}\nnothing(x) {{ return none }}\n\
                 model(x: f32[tokens, 4]) {{ ones = [one for i in 0..2] twos = [two for i in 0..2] none_ = [nothing for i in 0..1] return {{y: {call}}} }}"
            ))
        };
        assert_eq!(code("twos(x, x)[0]"), [Code::WrongType; 0]);
        assert_eq!(code("twos(x)[0]"), [Code::MissingOption]);
        assert_eq!(code("ones(x, x)"), [Code::UnknownOption]);
        assert_eq!(code("ones()"), [Code::MissingOption]);
        assert_eq!(code("ones(x = x)"), [Code::UnknownOption]);
        assert_eq!(code("twos(x, 'a')[0]"), [Code::WrongType]);
        assert_eq!(code("none_(x)"), [Code::WrongType]);
    }
}
