//! Paths as wired to checkpoint names: what `names:` says, applied to every parameter.
//!
//! A rule replaces the components that it matched; the longest match wins where two overlap, and a tie is an error. A stored tensor may be
//! transposed or hold several parameters one after another; the steps of a [`Binding`] lead from it to the parameter.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::Parameter;
use super::patterns::{braces, inside, n_choices, prefix_lengths, unknown_size};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};
use crate::spec::{Datum, NameRule, Names, Target};

/// Where a parameter lies in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Names of the stored tensor, tried in order.
    pub names: Vec<String>,
    /// Its shape as stored.
    pub shape: Vec<u64>,
    /// What makes the parameter of it, first to last.
    pub steps: Vec<Step>,
}

/// A step from a stored tensor to a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Dimension `d` of the result is dimension `perm[d]`.
    Transpose {
        /// A permutation.
        perm: Vec<usize>,
    },
    /// Elements `start .. start + len` of `dim`.
    Slice {
        /// The dimension cut.
        dim: usize,
        /// First element.
        start: u64,
        /// Number of elements.
        len: u64,
    },
    /// Element `index` of `dim`, which is removed.
    Index {
        /// The dimension removed.
        dim: usize,
        /// The element.
        index: u64,
    },
    /// The same elements in row-major order.
    Reshape {
        /// The new shape.
        shape: Vec<u64>,
    },
}

pub(super) struct Bound {
    pub(super) bindings: Vec<Binding>,
    pub(super) ignore: Vec<String>,
}

/// One place where a rule matches a path.
struct Match<'a> {
    rule: &'a NameRule,
    /// Which summand of the rule's key.
    part: usize,
    /// The components replaced.
    start: usize,
    end: usize,
    /// Components matched, enclosing patterns included.
    length: usize,
    /// What `*` stood for in the key.
    wildcards: Vec<String>,
}

/// Most rules of a format, each choice of braces counted.
const MAX_RULES: usize = 1024;

/// Binds every parameter.
pub(super) fn bind(
    names: &Names,
    sizes: &[(Arc<str>, Datum)],
    parameters: &[Parameter],
    aliases: &[(String, String)],
    diagnostics: &mut Vec<Diagnostic>,
) -> Bound {
    let mut rules: Vec<NameRule> = Vec::new();
    for rule in &names.rules {
        let patterns = rule.within.iter().chain(&rule.keys);
        check_sizes(patterns.clone(), rule.span, sizes, diagnostics);
        let n = patterns.map(|p| n_choices(p)).fold(1, usize::saturating_mul);
        if rules.len().saturating_add(n) > MAX_RULES {
            diagnostics.push(too_many(n, rule.span));
            break;
        }
        rules.extend(alternatives(rule, sizes));
    }
    let mut binder = Binder { names, rules: &rules, parameters, diagnostics };
    let bindings = binder.bindings();
    let mut ignore: Vec<String> = Vec::new();
    for (pattern, span) in &names.ignore {
        check_sizes([pattern], *span, sizes, binder.diagnostics);
        let n = n_choices(pattern);
        if ignore.len().saturating_add(n) > MAX_RULES {
            binder.diagnostics.push(too_many(n, *span));
            break;
        }
        ignore.extend(braces(pattern, sizes));
    }
    for (alias, _) in aliases {
        let bound = binder.names_of(alias);
        ignore.extend(bound.into_iter().filter(|n| !ignore.contains(n)).collect::<Vec<_>>());
    }
    Bound { bindings, ignore }
}

/// Reports braces that hold one word, which is no size.
fn check_sizes<'a>(
    patterns: impl IntoIterator<Item = &'a Arc<str>>,
    span: Span,
    sizes: &[(Arc<str>, Datum)],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for unknown in patterns.into_iter().filter_map(|p| unknown_size(p, sizes)) {
        let d = Diagnostic::new(Code::NamePattern, format!("`{{{unknown}}}` is no size of the card"), span)
            .label("braces hold a size, or words with commas between them")
            .maybe_help(did_you_mean(unknown, sizes.iter().map(|(name, _)| &**name)));
        if !diagnostics.contains(&d) {
            diagnostics.push(d);
        }
    }
}

fn too_many(n: usize, span: Span) -> Diagnostic {
    let message = format!("this pattern stands for {n} choices of its braces; a format has at most {MAX_RULES} rules");
    Diagnostic::new(Code::TooLarge, message, span).label("too many choices")
}

/// A rule once for each choice of its braces. The braces of a sum's summands choose together.
fn alternatives(rule: &NameRule, sizes: &[(Arc<str>, Datum)]) -> Vec<NameRule> {
    let mut made = vec![NameRule { within: Vec::new(), keys: Vec::new(), ..rule.clone() }];
    for pattern in &rule.within {
        made = made
            .iter()
            .flat_map(|m| {
                braces(pattern, sizes)
                    .into_iter()
                    .map(|p| NameRule { within: m.within.iter().cloned().chain([p.into()]).collect(), ..m.clone() })
            })
            .collect();
    }
    let keys: Vec<Vec<String>> = rule.keys.iter().map(|k| braces(k, sizes)).collect();
    let choices = keys.iter().map(Vec::len).max().unwrap_or(0);
    made.iter()
        .flat_map(|m| {
            (0..choices).map(|i| NameRule {
                keys: keys.iter().filter_map(|k| k.get(i).or(k.first())).map(|k| Arc::from(k.as_str())).collect(),
                ..m.clone()
            })
        })
        .collect()
}

struct Binder<'a> {
    names: &'a Names,
    rules: &'a [NameRule],
    parameters: &'a [Parameter],
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Binder<'a> {
    /// The matches that apply to a path: the longest where several overlap, in the order of their places.
    fn matches(&mut self, path: &[&str]) -> Vec<Match<'a>> {
        let mut found: Vec<Match<'a>> = Vec::new();
        for rule in self.rules {
            for (part, key) in rule.keys.iter().enumerate() {
                let key: Vec<&str> = key.split('.').collect();
                for (from, within) in inside(&rule.within, path) {
                    for start in from..path.len() {
                        for (length, wildcards) in prefix_lengths(&key, &path[start..]) {
                            if length > 0 {
                                found.push(Match {
                                    rule,
                                    part,
                                    start,
                                    end: start + length,
                                    length: within + length,
                                    wildcards,
                                });
                            }
                        }
                    }
                }
            }
        }
        found.sort_by_key(|m| std::cmp::Reverse(m.length));
        let mut kept: Vec<Match<'a>> = Vec::new();
        for m in found {
            match kept.iter().find(|k| k.start < m.end && m.start < k.end) {
                None => kept.push(m),
                Some(k)
                    if k.length == m.length && !std::ptr::eq(k.rule, m.rule) && k.rule.targets != m.rule.targets =>
                {
                    let d = Diagnostic::new(
                        Code::NameTie,
                        format!("two name rules match `{}` with the same length", path.join(".")),
                        m.rule.span,
                    )
                    .label("this rule")
                    .other(k.rule.span, "and this one")
                    .help("make one of them longer: put it inside the name of an enclosing module");
                    // Once for two rules, however many paths they meet at.
                    if !self.diagnostics.iter().any(|o| o.primary == d.primary && o.others == d.others) {
                        self.diagnostics.push(d);
                    }
                }
                Some(_) => {}
            }
        }
        kept.sort_by_key(|m| m.start);
        kept
    }

    /// Every name of a path, prefixes tried in order, then each rule's targets in order; the layout of the last match.
    fn candidates(&self, path: &[&str], matches: &[Match<'a>]) -> Vec<(String, Option<&'a Target>)> {
        let mut names: Vec<(Vec<String>, bool, Option<&'a Target>)> = vec![(Vec::new(), false, None)];
        let mut at = 0;
        for m in matches {
            for (name, ..) in &mut names {
                name.extend(path[at..m.start].iter().map(ToString::to_string));
            }
            at = m.end;
            names = names
                .iter()
                .flat_map(|(name, absolute, layout)| {
                    m.rule.targets.iter().map(move |target| {
                        let mut name = if target.absolute { Vec::new() } else { name.clone() };
                        let mut wildcards = m.wildcards.iter();
                        name.extend(target.name.split('.').map(|c| {
                            if c == "*" { wildcards.next().cloned().unwrap_or_default() } else { c.to_string() }
                        }));
                        (
                            name,
                            *absolute || target.absolute,
                            if target.layout.is_some() { Some(target) } else { *layout },
                        )
                    })
                })
                .collect();
        }
        for (name, ..) in &mut names {
            name.extend(path[at..].iter().map(ToString::to_string));
        }
        let none = [Arc::from("")];
        let prefixes = if self.names.prefixes.is_empty() { &none[..] } else { &self.names.prefixes };
        let mut all: Vec<(String, Option<&'a Target>)> = Vec::new();
        for prefix in prefixes {
            for (name, absolute, layout) in &names {
                let full = if *absolute { name.join(".") } else { format!("{prefix}{}", name.join(".")) };
                if !all.iter().any(|(n, _)| *n == full) {
                    all.push((full, *layout));
                }
            }
        }
        all
    }

    fn names_of(&mut self, path: &str) -> Vec<String> {
        let components: Vec<&str> = path.split('.').collect();
        let matches = self.matches(&components);
        self.candidates(&components, &matches).into_iter().map(|(n, _)| n).collect()
    }

    /// Every parameter's binding. Two that are the same part of the same stored tensor are a mistake: what is meant to be one tensor
    /// is wired as one.
    fn bindings(&mut self) -> Vec<Binding> {
        let before = self.diagnostics.len();
        let (bindings, rules): (Vec<Binding>, Vec<Option<Span>>) =
            self.parameters.iter().map(|p| self.parameter(p)).unzip();
        // Where a rule is wrong, what it binds says nothing.
        if self.diagnostics.len() > before {
            return bindings;
        }
        let mut seen: HashMap<(&[String], String), usize> = HashMap::new();
        for (i, binding) in bindings.iter().enumerate() {
            match seen.entry((&binding.names, format!("{:?}", binding.steps))) {
                Entry::Vacant(entry) => {
                    entry.insert(i);
                }
                Entry::Occupied(entry) => {
                    let first = *entry.get();
                    self.collision([first, i].map(|p| &self.parameters[p]), &binding.names, [rules[first], rules[i]]);
                }
            }
        }
        bindings
    }

    /// Reports two parameters of one stored tensor, once for the rules that make them so.
    fn collision(&mut self, parameters: [&Parameter; 2], names: &[String], rules: [Option<Span>; 2]) {
        let [first, second] = rules;
        let Some(span) = second.or(first) else { return };
        let name = names.first().map_or("", String::as_str);
        let message =
            format!("`{}` and `{}` would both be the stored `{name}`", parameters[0].path, parameters[1].path);
        let mut d = Diagnostic::new(Code::NamePattern, message, span).label("this rule");
        if let Some(other) = first.filter(|other| *other != span) {
            d = d.other(other, "and this one");
        }
        d = d.help(
            "if they are one tensor, share it in the wiring; if they are parts of one, write `a + b: name[a | b]`",
        );
        if !self.diagnostics.iter().any(|o| o.primary == d.primary && o.others == d.others) {
            self.diagnostics.push(d);
        }
    }

    /// A parameter's binding, and the last rule that made it.
    fn parameter(&mut self, parameter: &Parameter) -> (Binding, Option<Span>) {
        let path: Vec<&str> = parameter.path.split('.').collect();
        let matches = self.matches(&path);
        let candidates = self.candidates(&path, &matches);
        let names = candidates.iter().map(|(n, _)| n.clone()).collect();
        let stored = matches
            .iter()
            .find_map(|m| m.rule.targets.iter().find_map(|t| t.layout.as_ref()).map(|layout| (m, layout)));
        let (shape, steps) = match stored {
            None => (parameter.shape.clone(), Vec::new()),
            Some((m, layout)) => match self.layout(parameter, &path, m, layout) {
                Ok(stored) => stored,
                Err(why) => {
                    let d = Diagnostic::new(
                        Code::NameParts,
                        format!("`{}` cannot be stored so: {why}", parameter.path),
                        m.rule.span,
                    )
                    .label("this rule");
                    if !self.diagnostics.iter().any(|other| other.code == d.code && other.primary == d.primary) {
                        self.diagnostics.push(d);
                    }
                    (parameter.shape.clone(), Vec::new())
                }
            },
        };
        (Binding { names, shape, steps }, matches.last().map(|m| m.rule.span))
    }

    /// The stored shape and the steps of a parameter that is one part of a stored tensor.
    fn layout(
        &self,
        parameter: &Parameter,
        path: &[&str],
        m: &Match<'a>,
        layout: &[Vec<Arc<str>>],
    ) -> Result<(Vec<u64>, Vec<Step>), String> {
        let shapes =
            (0..m.rule.keys.len()).map(|part| self.part_shape(path, m, part)).collect::<Result<Vec<_>, _>>()?;
        let rank = parameter.shape.len();
        let label = |name: &str| match (name, rank) {
            ("in", 2) => Some(1),
            ("out", 2) => Some(0),
            _ => None,
        };
        let named: Vec<usize> = layout.iter().filter(|d| d.len() == 1).filter_map(|d| label(&d[0])).collect();
        let mut free = (0..rank).filter(|d| !named.contains(d));
        let (mut shape, mut slices, mut stacked, mut perm) = (Vec::new(), Vec::new(), Vec::new(), vec![None; rank]);
        let mut wildcards = m.wildcards.iter();
        for (stored, dim) in layout.iter().enumerate() {
            let single = (dim.len() == 1).then(|| label(&dim[0])).flatten();
            if dim.len() == 1 && single.is_none() && layout.len() > rank {
                // A stack: the component that `*` matched is the element.
                let index = wildcards
                    .next()
                    .and_then(|w| w.parse::<u64>().ok())
                    .ok_or_else(|| format!("`{}` needs a `*` in the key that is a number", dim[0]))?;
                stacked.push(Step::Index { dim: stored - stacked.len(), index });
                let count = self.stack_count(path, m);
                shape.push(count);
                continue;
            }
            let d = single.or_else(|| free.next()).ok_or("more dimensions than the parameter has")?;
            let kept = stored - stacked.len();
            perm[d] = Some(kept);
            if dim.len() == 1 {
                shape.push(parameter.shape[d]);
                continue;
            }
            // The parts in the order in which they are stored.
            let order = part_order(dim, &m.rule.keys)?;
            let length = |part: usize| shapes[part].get(d).copied().ok_or("the parts have different ranks");
            let lengths = order.iter().map(|part| length(*part)).collect::<Result<Vec<_>, _>>()?;
            let at = order.iter().position(|part| *part == m.part).ok_or("one of its parts has no label")?;
            slices.push(Step::Slice { dim: kept, start: lengths[..at].iter().sum(), len: lengths[at] });
            shape.push(lengths.iter().sum());
        }
        let perm = perm.into_iter().collect::<Option<Vec<usize>>>().ok_or("fewer dimensions than the parameter has")?;
        let mut steps = stacked;
        steps.extend(slices);
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
        self.parameters
            .iter()
            .find(|p| p.path == sibling)
            .map(|p| p.shape.clone())
            .ok_or_else(|| format!("there is no parameter `{sibling}`"))
    }

    /// How many parameters a stack holds: those that differ in the first wildcard only.
    fn stack_count(&self, path: &[&str], m: &Match<'a>) -> u64 {
        let key: Vec<&str> = m.rule.keys[m.part].split('.').collect();
        let Some(at) = key.iter().position(|c| *c == "*") else { return 1 };
        let same = |p: &&Parameter| {
            let other: Vec<&str> = p.path.split('.').collect();
            other.len() == path.len()
                && other.iter().zip(path).enumerate().all(|(i, (a, b))| a == b || i == m.start + at)
        };
        self.parameters.iter().filter(same).count() as u64
    }
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
    use super::*;
    use crate::arch::testing::{card, expand};
    use crate::arch::{ElaborateOptions, Model};

    /// `a.q` [2, 4] and `a.k` [3, 4] with biases; `e.0.e_0`, `e.1.e_0` [5, 4]; `n` [4].
    const WIRING: &str = "\
        lin(size)(x) { weight = param[size, width(x)] bias = param[size] return einsum('ni,oi->no', x, weight) + bias }
        one(size)(x) { weight = param[size, width(x)] return einsum('ni,oi->no', x, weight) }
        norm(x) { weight = param[width(x)] return x * weight }
        a(x) { q = lin(2) k = lin(3) return join(q(x), k(x)) }
        pair(x) { e_0 = one(5) return e_0(x) }
        apply(f, x) = f(x)
        model(x: f32[tokens, 4]) {
          n = norm
          e = [pair for i in 0..2]
          return {y: a(n(x)), z: apply(e[0], x) + apply(e[1], x)}
        }";

    fn bound(names: &str) -> Result<Model, Vec<Code>> {
        let names: String = names.lines().map(|l| format!("    {l}\n")).collect();
        let text = card(&format!("sizes: {{last: 2}}\nnames:\n  hf:\n{names}"), WIRING);
        expand(&text, &ElaborateOptions::default()).map_err(|r| r.diagnostics.iter().map(|d| d.code).collect())
    }

    fn binding(names: &str, path: &str) -> Binding {
        let model = bound(names).unwrap_or_else(|e| panic!("{e:?}"));
        let index = model.arch.parameters.iter().position(|p| p.path == path).unwrap_or_else(|| panic!("{path}"));
        model.bindings[index].clone()
    }

    #[test]
    fn names_of_paths() {
        for (names, path, expected) in [
            ("prefix: m.", "n.weight", vec!["m.n.weight"]),
            ("prefix: [m., '']", "n.weight", vec!["m.n.weight", "n.weight"]),
            ("prefix: m.\nn: norm", "n.weight", vec!["m.norm.weight"]),
            ("prefix: m.\nn: /norm", "n.weight", vec!["norm.weight"]),
            ("prefix: m.\nn: [/x, y]", "n.weight", vec!["x.weight", "m.y.weight"]),
            ("n.weight: scale", "n.weight", vec!["scale"]),
            ("a: {q: query}", "a.q.bias", vec!["a.query.bias"]),
            ("a.q: query\nq: other", "a.q.bias", vec!["query.bias"]),
            ("'{k,none}': proj", "a.k.bias", vec!["a.proj.bias"]),
            ("e.1: block", "e.1.e_0.weight", vec!["block.e_0.weight"]),
            ("e.*: block.*", "e.1.e_0.weight", vec!["block.1.e_0.weight"]),
            ("e: {'1.**.weight': w}", "e.1.e_0.weight", vec!["e.w"]),
        ] {
            assert_eq!(binding(names, path).names, expected, "{names} {path}");
        }
    }

    #[test]
    fn parts_of_stored_tensors() {
        let names = "q.weight + k.weight: qk.weight[in, q | k]\nq.bias + k.bias: qk.bias[q | k]";
        let k = binding(names, "a.k.weight");
        assert_eq!((k.names, k.shape), (vec!["a.qk.weight".to_string()], vec![4, 5]));
        assert_eq!(k.steps, [Step::Slice { dim: 1, start: 2, len: 3 }, Step::Transpose { perm: vec![1, 0] }]);
        let turned = binding("q.weight + k.weight: qk.weight[k | q, in]", "a.q.weight");
        assert_eq!(turned.steps, [Step::Slice { dim: 0, start: 3, len: 2 }]);
        let bias = binding(names, "a.q.bias");
        assert_eq!((bias.shape, bias.steps), (vec![5], vec![Step::Slice { dim: 0, start: 0, len: 2 }]));
        let stacked = binding("e.*.e_0.weight: experts[expert, in, out]", "e.1.e_0.weight");
        assert_eq!((stacked.names, stacked.shape), (vec!["experts".to_string()], vec![2, 4, 5]));
        assert_eq!(stacked.steps, [Step::Index { dim: 0, index: 1 }, Step::Transpose { perm: vec![1, 0] }]);
        let plain = binding("n: norm", "n.weight");
        assert_eq!(plain.steps, []);
    }

    #[test]
    fn rules_that_cannot_be() {
        assert_eq!(bound("a.*: x\n'*.q': y").err(), Some(vec![Code::NameTie]));
        assert_eq!(bound("q.weight + v.weight: qv[in, q | v]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | k | v]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | q, in]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | v, in]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("'{q,k}': same").err(), Some(vec![Code::NamePattern]));
        assert_eq!(bound("e.*: block").err(), Some(vec![Code::NamePattern]));
        assert_eq!(bound("'e.{lost}': x").err(), Some(vec![Code::NamePattern]));
        assert_eq!(bound("ignore: ['e.{lost}']").err(), Some(vec![Code::NamePattern]));
        assert_eq!(bound("q.weight: q[in, out, more]").err(), Some(vec![Code::NameParts]));
    }

    #[test]
    fn choices_are_bounded() {
        let braces = "{a,b}".repeat(40);
        assert_eq!(bound(&format!("'{braces}': x")).err(), Some(vec![Code::TooLarge]));
        assert_eq!(bound(&format!("ignore: ['{braces}']")).err(), Some(vec![Code::TooLarge]));
    }

    #[test]
    fn ignored_names() {
        let model = bound("ignore: ['layers.{last}.**', '{x,y}.buffer']").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(model.ignore, ["layers.2.**", "x.buffer", "y.buffer"]);
    }
}
