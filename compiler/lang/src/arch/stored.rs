//! Stored tensors that hold a parameter otherwise than as wired: transposed, stacked, one part after another, pieces of parts in turn, or with
//! more of a dimension behind it; or with the two halves of each piece in turn.

use std::sync::Arc;

use super::Parameter;
use super::binding::Step;
use super::names::{Binder, Match};
use crate::spec::{Datum, StoredDim, Target};

impl<'a> Binder<'a> {
    /// The stored shape and the steps of a parameter that is one part of a stored tensor.
    pub(super) fn layout(
        &self,
        parameter: &Parameter,
        path: &[&str],
        (m, target): (&Match<'a>, &Target),
        layout: &[StoredDim],
    ) -> Result<(Vec<u64>, Vec<Step>), String> {
        let shapes =
            (0..m.rule.keys.len()).map(|part| self.part_shape(path, m, part)).collect::<Result<Vec<_>, _>>()?;
        let rank = parameter.shape.len();
        let label = |name: &str| match (name, rank) {
            ("in", 2) => Some(1),
            ("out", 2) => Some(0),
            _ => None,
        };
        let single = |dim: &StoredDim| if dim.parts.len() == 1 { label(&dim.parts[0]) } else { None };
        let is_one = |dim: &StoredDim| dim.parts.len() == 1 && &*dim.parts[0] == "1";
        let named: Vec<usize> = layout.iter().filter_map(single).collect();
        let mut free = (0..rank).filter(|d| !named.contains(d));
        let n_ones = layout.iter().filter(|d| is_one(d)).count();
        // The first words that are no dimension of the parameter are stacks, as many as it lacks.
        let mut n_stacks = (layout.len() - n_ones).saturating_sub(rank);
        let (mut shape, mut parts, mut stacked, mut perm) = (Vec::new(), Vec::new(), Vec::new(), vec![None; rank]);
        let mut paired = Vec::new();
        // What is left of the shape once the stacks are gone.
        let mut now = Vec::new();
        // What `*` in the name stands for is no element.
        let in_name = target.name.matches('*').count();
        let mut wildcards = m.wildcards.iter().enumerate().skip(in_name);
        for (stored, dim) in layout.iter().enumerate() {
            let kept = stored - stacked.len();
            if is_one(dim) {
                stacked.push(Step::Index { dim: kept, index: 0 });
                shape.push(1);
                continue;
            }
            if dim.parts.len() == 1 && single(dim).is_none() && n_stacks > 0 {
                // A stack: the component that `*` matched is the element.
                n_stacks -= 1;
                let (which, index) = wildcards
                    .next()
                    .and_then(|(which, w)| Some((which, w.parse::<u64>().ok()?)))
                    .ok_or_else(|| format!("`{}` needs a `*` in the key that is a number", dim.parts[0]))?;
                stacked.push(Step::Index { dim: kept, index });
                shape.push(self.stack_count(path, m, which));
                continue;
            }
            let d = single(dim).or_else(|| free.next()).ok_or("more dimensions than the parameter has")?;
            perm[d] = Some(kept);
            if dim.pairs {
                let n = parameter.shape[d];
                let times = self.times(dim, &[n])?;
                if !n.is_multiple_of(2 * times) {
                    return Err(format!("{n} elements do not make {times} pieces of two halves"));
                }
                paired.push((kept, times));
            } else if let (1, Some(times)) = (dim.parts.len(), &dim.times) {
                return Err(format!(
                    "`{times}` times one part is that part: write `{times} * pairs({})`, or the part alone",
                    dim.parts[0]
                ));
            }
            if dim.parts.len() == 1 {
                shape.push(parameter.shape[d]);
                now.push(parameter.shape[d]);
                continue;
            }
            // The parts in the order in which they are stored.
            let order = part_order(&dim.parts, &m.rule.keys)?;
            let length = |part: usize| shapes[part].get(d).copied().ok_or("the parts have different ranks");
            let lengths = order.iter().map(|part| length(*part)).collect::<Result<Vec<_>, _>>()?;
            let at = order.iter().position(|part| *part == m.part).ok_or("one of its parts has no label")?;
            parts.push(Part { dim: kept, lengths: lengths.clone(), at, times: self.times(dim, &lengths)? });
            shape.push(lengths.iter().sum());
            now.push(lengths.iter().sum());
        }
        let perm = perm.into_iter().collect::<Option<Vec<usize>>>().ok_or("fewer dimensions than the parameter has")?;
        let leads = layout.iter().zip(&shape).enumerate().filter(|(_, (dim, _))| dim.leading);
        let leads = leads.map(|(dim, (_, &len))| Step::Lead { dim, len });
        let mut steps: Vec<Step> = leads.chain(stacked).collect();
        for part in parts {
            part.steps(&mut now, &mut steps);
        }
        for (dim, times) in paired {
            halves(dim, times, &now, &mut steps);
        }
        if perm.iter().enumerate().any(|(i, p)| i != *p) {
            steps.push(Step::Transpose { perm });
        }
        Ok((shape, steps))
    }

    /// The shape of another summand at the same place.
    fn part_shape(&self, path: &[&str], m: &Match<'a>, part: usize) -> Result<Vec<u64>, String> {
        let mut wildcards = m.wildcards.iter();
        let key: Vec<&str> = m.rule.keys[part]
            .split('.')
            .map(|c| if c == "*" { wildcards.next().map_or(c, String::as_str) } else { c })
            .collect();
        let sibling = [&path[..m.start], &key, &path[m.end..]].concat().join(".");
        let found = self.index.get(sibling.as_str()).and_then(|i| self.parameters.get(*i));
        found.map(|p| p.shape.clone()).ok_or_else(|| format!("there is no parameter `{sibling}`"))
    }

    /// How many times the parts of a stored dimension follow one another.
    fn times(&self, dim: &StoredDim, lengths: &[u64]) -> Result<u64, String> {
        let Some(times) = &dim.times else { return Ok(1) };
        let n = match self.sizes.iter().find(|(name, _)| name == times) {
            Some((_, Datum::Int(n))) => u64::try_from(*n).ok(),
            Some((_, other)) => return Err(format!("`{times}` is {}, not a number of times", other.kind())),
            None => times.parse::<u64>().ok(),
        };
        let n = n.filter(|n| *n > 0).ok_or_else(|| {
            format!("`{times}` is no number: neither a size of the card nor a definition of its wiring that is one")
        })?;
        match lengths.iter().find(|length| !length.is_multiple_of(n)) {
            Some(length) => Err(format!("{length} elements do not make {n} equal pieces")),
            None => Ok(n),
        }
    }

    /// How many parameters a stack holds: those that differ in that wildcard only.
    fn stack_count(&self, path: &[&str], m: &Match<'a>, which: usize) -> u64 {
        let key = m.rule.keys[m.part].split('.');
        let Some((at, _)) = key.enumerate().filter(|(_, c)| *c == "*").nth(which) else { return 1 };
        let at = m.start + at;
        let mut every = path.to_vec();
        every[at] = "*";
        let every = every.join(".");
        if let Some(count) = self.counts.borrow().get(&every) {
            return *count;
        }
        let alike = |p: &&Parameter| {
            let mut other = p.path.split('.');
            path.iter().enumerate().all(|(i, a)| other.next().is_some_and(|b| b == *a || i == at))
                && other.next().is_none()
        };
        let count = self.parameters.iter().filter(alike).count() as u64;
        self.counts.borrow_mut().insert(every, count);
        count
    }
}

/// The part of a stored dimension that a parameter is.
struct Part {
    /// Of the stored tensor, once its stacks are gone.
    dim: usize,
    /// Of all the parts in the order in which they are stored.
    lengths: Vec<u64>,
    at: usize,
    times: u64,
}

impl Part {
    /// Cuts the part out of a tensor of the shape `now`.
    fn steps(&self, now: &mut [u64], steps: &mut Vec<Step>) {
        let (dim, len) = (self.dim, self.lengths[self.at]);
        let before: u64 = self.lengths[..self.at].iter().sum();
        if self.times == 1 {
            steps.push(Step::Slice { dim, start: before, len });
        } else {
            // Each time the parts follow one another is an element of a further dimension.
            let mut nested = now.to_vec();
            nested[dim] /= self.times;
            nested.insert(dim, self.times);
            steps.push(Step::Reshape { shape: nested });
            steps.push(Step::Slice { dim: dim + 1, start: before / self.times, len: len / self.times });
            let mut joined = now.to_vec();
            joined[dim] = len;
            steps.push(Step::Reshape { shape: joined });
        }
        now[dim] = len;
    }
}

/// Puts the halves of each of so many pieces one after another, of which the stored dimension has an element each in turn.
fn halves(dim: usize, times: u64, now: &[u64], steps: &mut Vec<Step>) {
    let mut nested = now.to_vec();
    nested.splice(dim..=dim, [times, now[dim] / (2 * times), 2]);
    let mut perm: Vec<usize> = (0..nested.len()).collect();
    perm.swap(dim + 1, dim + 2);
    steps.push(Step::Reshape { shape: nested });
    steps.push(Step::Transpose { perm });
    steps.push(Step::Reshape { shape: now.to_vec() });
}

/// The summands of a key in the order of the labels. A label is the last component in which the summands differ, or its beginning.
fn part_order(labels: &[Arc<str>], keys: &[Arc<str>]) -> Result<Vec<usize>, String> {
    if labels.len() != keys.len() {
        return Err(format!("{} parts for a sum of {}", labels.len(), keys.len()));
    }
    let keys: Vec<Vec<&str>> = keys.iter().map(|k| k.rsplit('.').collect()).collect();
    let shortest = keys.iter().map(Vec::len).min().unwrap_or(0);
    let differs = (0..shortest).find(|i| keys.iter().any(|k| k[*i] != keys[0][*i]));
    let at = differs.ok_or("its parts differ in no component")?;
    let parts: Vec<&str> = keys.iter().map(|k| k[at]).collect();
    let mut order: Vec<usize> = Vec::with_capacity(labels.len());
    for label in labels {
        let begun = || (0..parts.len()).filter(|i| parts[*i].starts_with(&**label)).collect::<Vec<_>>();
        let part = match parts.iter().position(|p| *p == &**label) {
            Some(part) => part,
            None => match begun().as_slice() {
                [one] => *one,
                [] => return Err(format!("no part is `{label}`; they are {}", parts.join(", "))),
                _ => return Err(format!("`{label}` begins several of the parts {}", parts.join(", "))),
            },
        };
        if order.contains(&part) {
            return Err(format!("the part `{}` is there twice", parts[part]));
        }
        order.push(part);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{card, expand};
    use crate::arch::{Binding, ElaborateOptions, Step};
    use crate::diagnostic::Code;

    /// What `rule` binds `q.weight` [6, 4] to, in a model with a `gain` [6].
    fn bound(rule: &str) -> Result<Vec<Binding>, Vec<Code>> {
        let wiring = "q(x) { weight = param[6, width(x)] gain = param[6] return gain * einsum('ni,oi->no', x, weight) }
            model(x: f32[tokens, 4]) { return {y: q(x)} }";
        let text = card(&format!("sizes: {{}}\nnames: {{gguf: {{{rule}}}}}\n"), wiring);
        let options = ElaborateOptions { format: "gguf".into(), ..ElaborateOptions::default() };
        let codes = |report: crate::diagnostic::Report| report.diagnostics.iter().map(|d| d.code).collect();
        expand(&text, &options).map(|model| model.bindings).map_err(codes)
    }

    #[test]
    fn halves_in_turn_and_numbers_added() {
        let found = bound("q.weight: \"a[in, 3 * pairs(out)]\", gain: \"b[pairs(out)] - 1\"")
            .unwrap_or_else(|e| panic!("{e:?}"));
        let of = |name: &str| found.iter().find(|b| b.names[0].ends_with(name)).unwrap_or_else(|| panic!("{found:?}"));
        let gain = [
            Step::Reshape { shape: vec![1, 3, 2] },
            Step::Transpose { perm: vec![0, 2, 1] },
            Step::Reshape { shape: vec![6] },
        ];
        assert_eq!((&of("b").shape[..], &of("b").steps[..], of("b").offset), (&[6][..], &gain[..], -1.0));
        let weight = [
            Step::Reshape { shape: vec![4, 3, 1, 2] },
            Step::Transpose { perm: vec![0, 1, 3, 2] },
            Step::Reshape { shape: vec![4, 6] },
            Step::Transpose { perm: vec![1, 0] },
        ];
        assert_eq!((&of("a").shape[..], &of("a").steps[..], of("a").offset), (&[4, 6][..], &weight[..], 0.0));
    }

    #[test]
    fn pieces_that_have_no_halves_are_refused() {
        for rule in [
            "q.weight: \"a[2 * pairs(out), in]\"",
            "q.weight: \"a[4 * pairs(out), in]\"",
            "q.weight: \"a[3 * (out), in]\"",
        ] {
            assert_eq!(bound(rule), Err(vec![Code::NameParts]), "{rule}");
        }
    }
}
