//! Into which parts the step of a scan falls: blocks of the first dimension of its states that know nothing of one another.
//!
//! Given the step, each dimension of each value gets a class: dimensions whose elements meet element by element are of one class. A class can be
//! divided when no operation picks, orders or sums its elements. So heads, or channels, go to different workers.

use std::collections::{BTreeMap, HashMap};

use xfc_lang::graph::{Dim, Graph, Type, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::shape::ContractSpec;

/// Most parts.
const MAX_PARTS: u64 = 64;

/// A step, divided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Divided {
    /// How many parts there are; 1 where it cannot be divided.
    pub parts: u64,
    /// The step of one part.
    pub step: Graph,
    /// Of each parameter the dimension that is divided.
    pub params: Vec<Option<usize>>,
    /// Of each output the dimension that is divided.
    pub outputs: Vec<Option<usize>>,
}

/// Divides a step of so many states, whose types are all fixed.
pub(super) fn divide(step: &Graph, states: usize) -> Divided {
    try_divide(step, states).unwrap_or_else(|| Divided {
        parts: 1,
        step: step.clone(),
        params: vec![None; step.params().len()],
        outputs: vec![None; step.outputs().len()],
    })
}

struct Classes {
    parent: Vec<usize>,
    whole: Vec<bool>,
    of: HashMap<ValueId, Vec<usize>>,
}

impl Classes {
    fn find(&self, mut class: usize) -> usize {
        while self.parent[class] != class {
            class = self.parent[class];
        }
        class
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[b] = a;
        self.whole[a] |= self.whole[b];
    }

    fn keep_whole(&mut self, class: usize) {
        let class = self.find(class);
        self.whole[class] = true;
    }

    fn all_whole(&mut self, value: ValueId) {
        for class in self.of[&value].clone() {
            self.keep_whole(class);
        }
    }
}

fn sizes(ty: &Type) -> Vec<u64> {
    ty.dims.iter().map(|d| d.fixed().unwrap_or(0)).collect()
}

fn try_divide(step: &Graph, states: usize) -> Option<Divided> {
    let first = step.params().first()?;
    let Some(Dim::Fixed(n)) = step.ty(first.value).dims.first().copied() else { return None };
    let parts = (2..=MAX_PARTS.min(n)).rev().find(|p| n % p == 0)?;
    let mut classes = Classes { parent: Vec::new(), whole: Vec::new(), of: HashMap::new() };
    for node in step.topological() {
        let value = ValueId { node, port: 0 };
        let own = sizes(step.ty(value))
            .iter()
            .map(|size| {
                classes.parent.push(classes.parent.len());
                // What is there once is everybody's.
                classes.whole.push(*size == 1);
                classes.parent.len() - 1
            })
            .collect();
        classes.of.insert(value, own);
        relate(step, value, &mut classes)?;
    }
    let class = classes.find(*classes.of[&first.value].first()?);
    if classes.whole[class] {
        return None;
    }
    let divided = |value: ValueId| -> Option<Option<usize>> {
        let mut at = None;
        for (d, c) in classes.of[&value].iter().enumerate() {
            if classes.find(*c) == class && at.replace(d).is_some() {
                return None;
            }
        }
        Some(at)
    };
    let mut of: BTreeMap<ValueId, Option<usize>> = BTreeMap::new();
    for node in step.nodes() {
        let value = ValueId { node, port: 0 };
        of.insert(value, divided(value)?);
    }
    let params: Vec<Option<usize>> = step.params().iter().map(|p| of[&p.value]).collect();
    let outputs: Vec<Option<usize>> = step.outputs().iter().map(|o| of[&o.value]).collect();
    // Each part writes its own: states lie one part after another.
    let own = params[..states].iter().chain(&outputs[..states]).all(|d| *d == Some(0));
    if !own || outputs.iter().any(Option::is_none) {
        return None;
    }
    Some(Divided { parts, step: part(step, &of, parts), params, outputs })
}

/// The step with the divided dimension of each value as large as a part.
fn part(step: &Graph, of: &BTreeMap<ValueId, Option<usize>>, parts: u64) -> Graph {
    let mut step = step.clone();
    for (value, at) in of {
        let mut ty = step.ty(*value).clone();
        if let Some(Dim::Fixed(n)) = at.and_then(|d| ty.dims.get_mut(d)) {
            *n /= parts;
            step.set_type(*value, ty);
        }
    }
    step
}

/// Joins the classes of a value's dimensions with those of what it is made of. `None` for what cannot be said.
fn relate(step: &Graph, value: ValueId, classes: &mut Classes) -> Option<()> {
    let operands = step.operands(value.node);
    let (own, dims) = (classes.of[&value].clone(), sizes(step.ty(value)));
    match step.op(value.node).as_core()? {
        Core::Arg { .. } => {}
        Core::Const { values } if values.len() == 1 => {}
        Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast | Core::Broadcast => {
            for operand in operands {
                let (theirs, sizes) = (classes.of[&operand].clone(), sizes(step.ty(operand)));
                let skipped = own.len().checked_sub(theirs.len())?;
                for (d, class) in theirs.into_iter().enumerate() {
                    if sizes[d] == dims[skipped + d] && sizes[d] != 1 {
                        classes.join(own[skipped + d], class);
                    }
                }
            }
        }
        Core::Reshape => reshape(&own, &dims, *operands.first()?, step, classes),
        Core::Transpose { perm } => {
            let theirs = classes.of[operands.first()?].clone();
            for (class, p) in own.iter().zip(perm) {
                classes.join(*class, *theirs.get(*p)?);
            }
        }
        Core::Slice { dim, .. } | Core::Concat { dim } | Core::Repeat { dim, .. } => {
            for operand in operands {
                let theirs = classes.of[&operand].clone();
                for (d, (a, b)) in own.iter().zip(theirs).enumerate() {
                    if d == *dim {
                        classes.keep_whole(*a);
                        classes.keep_whole(b);
                    } else {
                        classes.join(*a, b);
                    }
                }
            }
        }
        Core::Reduce(_) => {
            let theirs = classes.of[operands.first()?].clone();
            for (a, b) in own.iter().zip(&theirs).take(theirs.len().saturating_sub(1)) {
                classes.join(*a, *b);
            }
            classes.keep_whole(*theirs.last()?);
        }
        Core::Contract { spec } => {
            let spec = ContractSpec::parse(spec).ok()?;
            let mut labels: HashMap<char, usize> = spec.out.iter().copied().zip(own).collect();
            for (list, operand) in [&spec.a, &spec.b].into_iter().zip(&operands) {
                for (label, class) in list.iter().zip(classes.of[operand].clone()) {
                    match labels.get(label) {
                        Some(known) => classes.join(*known, class),
                        None => {
                            labels.insert(*label, class);
                        }
                    }
                }
            }
            for label in spec.summed() {
                classes.keep_whole(*labels.get(&label)?);
            }
        }
        _ => {
            classes.all_whole(value);
            for operand in operands {
                classes.all_whole(operand);
            }
        }
    }
    Some(())
}

/// Dimensions of the same size at the same place stay what they are; those that are cut or put together are kept whole.
fn reshape(own: &[usize], dims: &[u64], operand: ValueId, step: &Graph, classes: &mut Classes) {
    let (theirs, sizes) = (classes.of[&operand].clone(), sizes(step.ty(operand)));
    let (mut i, mut j) = (0, 0);
    while i < dims.len() || j < sizes.len() {
        if dims.get(i) == Some(&1) {
            i += 1;
            continue;
        }
        if sizes.get(j) == Some(&1) {
            j += 1;
            continue;
        }
        let (from_i, from_j) = (i, j);
        let (mut a, mut b) = (1u64, 1u64);
        while i < dims.len() || j < sizes.len() {
            if (a <= b || j >= sizes.len()) && i < dims.len() {
                a = a.saturating_mul(dims[i]);
                i += 1;
            } else if j < sizes.len() {
                b = b.saturating_mul(sizes[j]);
                j += 1;
            }
            if a == b && i > from_i && j > from_j {
                break;
            }
        }
        if i - from_i == 1 && j - from_j == 1 {
            classes.join(own[from_i], theirs[from_j]);
        } else {
            own[from_i..i].iter().chain(&theirs[from_j..j]).for_each(|class| classes.keep_whole(*class));
        }
    }
}

#[cfg(test)]
mod tests {
    use xfc_lang::graph::parse::parse;

    use super::*;

    fn step(params: &str, body: &str) -> Graph {
        let text = format!("program \"p\" axes []\n\ngraph 0 \"step\" ({params}) {{\n{body}\n}}\n");
        parse(&text).unwrap_or_else(|e| panic!("{e}")).graphs.remove(0)
    }

    #[test]
    fn heads_are_parts() {
        let made = step(
            "%0 s: f32[6, 4, 3], %1 k: f32[6, 4], %2 v: f32[6, 3]",
            "  %3 = contract %1, %2 {spec = \"hk,hv->hkv\"} : f32[6, 4, 3]\n  %4 = add %0, %3 : f32[6, 4, 3]\n\
             \x20 %5 = contract %4, %1 {spec = \"hkv,hk->hv\"} : f32[6, 3]\n  return s = %4, y = %5",
        );
        let divided = divide(&made, 1);
        assert_eq!(
            (divided.parts, &divided.params[..], &divided.outputs[..]),
            (6, &[Some(0); 3][..], &[Some(0); 2][..])
        );
        assert!(divided.step.text(&[]).contains("f32[1, 4, 3]"), "{}", divided.step.text(&[]));
    }

    #[test]
    fn channels_are_parts_of_a_window() {
        let made = step(
            "%0 s: f32[10, 2], %1 x: f32[10]",
            "  %2 = reshape %1 : f32[10, 1]\n  %3 = concat %0, %2 {dim = 1} : f32[10, 3]\n  %4 = slice %3 {dim = 1, start = 1} : f32[10, 2]\n\
             \x20 %5 = reduce_sum %3 : f32[10, 1]\n  %6 = reshape %5 : f32[10]\n  return s = %4, y = %6",
        );
        assert_eq!(divide(&made, 1).parts, 10);
    }

    #[test]
    fn what_mixes_is_one_part() {
        let summed = step(
            "%0 s: f32[6], %1 x: f32[6]",
            "  %2 = reduce_sum %0 : f32[1]\n  %3 = mul %1, %2 : f32[6]\n  return s = %3, y = %3",
        );
        assert_eq!(divide(&summed, 1).parts, 1);
        let turned = step(
            "%0 s: f32[6, 6], %1 x: f32[6]",
            "  %2 = transpose %0 {perm = [1, 0]} : f32[6, 6]\n  %3 = mul %2, %1 : f32[6, 6]\n  return s = %3, y = %3",
        );
        assert_eq!(divide(&turned, 1).parts, 1);
    }
}
