//! Paths as wired to checkpoint names: what `names:` says, applied to every parameter.
//!
//! A rule replaces the components that it matched; the longest match wins where two overlap, and a tie is an error. A stored tensor may be
//! transposed or hold several parameters one after another; the steps of a [`Binding`] lead from it to the parameter.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::Parameter;
use super::binding::{Binding, Step};
use super::patterns::{braces, inside, n_choices, prefix_lengths, unknown_size};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};
use crate::spec::{Datum, NameRule, Names, Target};

pub(super) struct Bound {
    pub(super) bindings: Vec<Binding>,
    pub(super) ignore: Vec<String>,
}

/// One place where a rule matches a path.
pub(super) struct Match<'a> {
    pub(super) rule: &'a NameRule,
    /// Which summand of the rule's key.
    pub(super) part: usize,
    /// The components replaced.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Components matched, enclosing patterns included.
    length: usize,
    /// What `*` stood for in the key.
    pub(super) wildcards: Vec<String>,
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
    let index = parameters.iter().enumerate().map(|(i, p)| (p.path.as_str(), i)).collect();
    let split = |k: &Arc<str>| k.split('.').map(str::to_string).collect();
    let keys = rules.iter().map(|rule| rule.keys.iter().map(split).collect()).collect();
    let counts = RefCell::default();
    let mut binder = Binder { names, rules: &rules, keys, sizes, parameters, index, counts, diagnostics };
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

pub(super) struct Binder<'a> {
    names: &'a Names,
    rules: &'a [NameRule],
    /// The components of each rule's keys.
    keys: Vec<Vec<Vec<String>>>,
    pub(super) sizes: &'a [(Arc<str>, Datum)],
    pub(super) parameters: &'a [Parameter],
    /// Parameters by path.
    pub(super) index: HashMap<&'a str, usize>,
    /// How many elements each stack has, by its path with `*` for the number.
    pub(super) counts: RefCell<HashMap<String, u64>>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Binder<'a> {
    /// The matches that apply to a path: the longest where several overlap, in the order of their places.
    fn matches(&mut self, path: &[&str]) -> Vec<Match<'a>> {
        let mut found: Vec<Match<'a>> = Vec::new();
        for (rule, keys) in self.rules.iter().zip(&self.keys) {
            for (part, key) in keys.iter().enumerate() {
                let key: Vec<&str> = key.iter().map(String::as_str).collect();
                // A component that is no pattern must be somewhere.
                if key.iter().any(|k| !k.contains('*') && !path.contains(k)) {
                    continue;
                }
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
                        let pieces = target.name.split('*').enumerate().map(|(i, piece)| {
                            let matched = if i == 0 { None } else { wildcards.next() };
                            format!("{}{piece}", matched.map_or("", String::as_str))
                        });
                        name.push(pieces.collect());
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
            // A leading part is of the same elements as the whole.
            let steps: Vec<&Step> = binding.steps.iter().filter(|s| !matches!(s, Step::Lead { .. })).collect();
            match seen.entry((&binding.names, format!("{steps:?}"))) {
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
        d = d.help(if name.contains('{') {
            "braces are choices in a key; each name is written out, under a key of its own"
        } else {
            "if they are one tensor, share it in the wiring; if they are parts of one, write `a + b: name[a | b]`"
        });
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
        let stored = matches.iter().find_map(|m| m.rule.targets.iter().find_map(|t| Some((m, t, t.layout.as_ref()?))));
        let (shape, steps) = match stored {
            None => (parameter.shape.clone(), Vec::new()),
            Some((m, target, layout)) => match self.layout(parameter, &path, (m, target), layout) {
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
        let offset = matches.iter().flat_map(|m| &m.rule.targets).map(|t| t.offset).find(|offset| *offset != 0.0);
        let offset = offset.unwrap_or_default();
        (Binding { names, shape, steps, offset }, matches.last().map(|m| m.rule.span))
    }
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
            ("'{k,norm}': proj", "a.k.bias", vec!["a.proj.bias"]),
            ("e.1: block", "e.1.e_0.weight", vec!["block.e_0.weight"]),
            ("e.*: block.*", "e.1.e_0.weight", vec!["block.1.e_0.weight"]),
            ("e: {'1.**.weight': w}", "e.1.e_0.weight", vec!["e.w"]),
            ("e.*.*.weight: of_*/w_*", "e.1.e_0.weight", vec!["of_1/w_e_0"]),
        ] {
            assert_eq!(binding(names, path).names, expected, "{names} {path}");
        }
    }

    #[test]
    fn numbers_of_the_wiring_count_as_sizes_do() {
        let bound = |names: &str| {
            let wiring = format!("times = 5 * last / 2\n{WIRING}");
            expand(
                &card(&format!("sizes: {{last: 2}}\nnames: {{hf: {names}}}\n"), &wiring),
                &ElaborateOptions::default(),
            )
        };
        let names = r#"{"e.0.e_0.weight + e.1.e_0.weight": "e[times * (0 | 1), in]", ignore: ["x.{times}"]}"#;
        let model = bound(names).unwrap_or_else(|e| panic!("{e}"));
        assert!(model.bindings.iter().any(|b| b.shape == [10, 4]));
        assert_eq!(model.ignore, ["x.5"]);
        let report = bound(&names.replace("times", "often")).expect_err("a mistake");
        assert!(
            report.diagnostics.iter().all(|d| d.message.contains("`often`") || d.message.contains("{often}")),
            "{report}"
        );
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
        let turns = binding("q.weight + k.weight: qk.weight[in, 1 * (q | k)]", "a.k.weight");
        assert_eq!(turns.steps, [Step::Slice { dim: 1, start: 2, len: 3 }, Step::Transpose { perm: vec![1, 0] }]);
        let turns = binding("e.0.e_0.weight + e.1.e_0.weight: e[5 * (0 | 1), in]", "e.1.e_0.weight");
        assert_eq!(turns.shape, [10, 4]);
        let pieces = [
            Step::Reshape { shape: vec![5, 2, 4] },
            Step::Slice { dim: 1, start: 1, len: 1 },
            Step::Reshape { shape: vec![5, 4] },
        ];
        assert_eq!(turns.steps, pieces);
        let padded = binding("n.weight: norm[1, 1, width]", "n.weight");
        assert_eq!((padded.shape, padded.steps), (vec![1, 1, 4], vec![Step::Index { dim: 0, index: 0 }; 2]));
        let stacked = binding("e.*.e_0.weight: experts[expert, in, out]", "e.1.e_0.weight");
        assert_eq!((stacked.names, stacked.shape), (vec!["experts".to_string()], vec![2, 4, 5]));
        assert_eq!(stacked.steps, [Step::Index { dim: 0, index: 1 }, Step::Transpose { perm: vec![1, 0] }]);
        let stacked = binding("'*.*.e_0.weight': '*/experts[expert, in, out]'", "e.1.e_0.weight");
        assert_eq!((stacked.names, stacked.shape), (vec!["e/experts".to_string()], vec![2, 4, 5]));
        assert_eq!(stacked.steps[0], Step::Index { dim: 0, index: 1 });
        let plain = binding("n: norm", "n.weight");
        assert_eq!(plain.steps, []);
    }

    #[test]
    fn leading_parts_of_stored_tensors() {
        let part = binding("q.weight: q.weight[out.., in]", "a.q.weight");
        assert_eq!((&part.shape, &part.steps), (&vec![2, 4], &vec![Step::Lead { dim: 0, len: 2 }]));
        for (shape, fits) in [([2, 4], true), ([3, 4], true), ([1, 4], false), ([2, 5], false), ([2, 3], false)] {
            assert_eq!(part.admits(&shape), fits, "{shape:?}");
        }
        assert!(!part.admits(&[2]) && !part.admits(&[2, 4, 1]));
        let turned = binding("q.weight: q.weight[in.., out..]", "a.q.weight");
        let steps =
            [Step::Lead { dim: 0, len: 4 }, Step::Lead { dim: 1, len: 2 }, Step::Transpose { perm: vec![1, 0] }];
        assert_eq!((turned.shape, turned.steps), (vec![4, 2], steps.to_vec()));
        let first = binding("e.*.e_0.weight: experts[expert.., in, out]", "e.1.e_0.weight");
        let steps =
            [Step::Lead { dim: 0, len: 2 }, Step::Index { dim: 0, index: 1 }, Step::Transpose { perm: vec![1, 0] }];
        assert_eq!((first.shape, first.steps), (vec![2, 4, 5], steps.to_vec()));
        assert_eq!(bound("q.weight: /same[out.., in]\nk.weight: /same").err(), Some(vec![Code::NamePattern]));
    }

    #[test]
    fn rules_that_cannot_be() {
        assert_eq!(bound("a.*: x\n'*.q': y").err(), Some(vec![Code::NameTie]));
        assert_eq!(bound("q.weight + n.weight: qn[in, q | n]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | k | v]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | q, in]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[q | v, in]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[last * (q | k), in]").err(), Some(vec![Code::NameParts]));
        assert_eq!(bound("q.weight + k.weight: qk[lost * (q | k), in]").err(), Some(vec![Code::NameParts]));
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
