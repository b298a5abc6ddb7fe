//! The keys of `names:` held to the names that there are: each component is one that an instance or a parameter may have.
//!
//! Given what a card defines with what it extends, and the library, gives a diagnostic for every component that no definition binds. What
//! is read is what is written, not what these sizes expand: a bias that is optional has its name here. A key is held to the card that it
//! stands in, so that a card may rename or leave out what a rule of the card below it is for.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ast::{Expr, ExprKind, Item, Param};
use super::names::{NameKey, Names};
use super::nesting::Nesting;
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};

/// Most choices of braces that are looked at in one key; what has more is refused where names are bound.
const MAX_CHOICES: usize = 1024;

/// The names that instances and parameters may have: what the wiring binds, and what those definitions of the library bind that it leads to.
pub(super) fn declared(wiring: &[Item], library: &[Item]) -> Declared {
    let mut names = Declared { nesting: Some(Nesting::of(wiring, library)), ..Declared::default() };
    wiring.iter().for_each(|item| names.item(item));
    let mut rest: Vec<&Item> = library.iter().collect();
    loop {
        let (used, unused): (Vec<&Item>, Vec<&Item>) =
            rest.iter().partition(|item| item.names().iter().any(|n| names.mentioned.contains(&n.name)));
        if used.is_empty() {
            return names;
        }
        used.into_iter().for_each(|item| names.item(item));
        rest = unused;
    }
}

/// What definitions bind.
#[derive(Default)]
pub(super) struct Declared {
    /// Instances and parameters, and other values.
    bound: BTreeSet<Arc<str>>,
    /// What is an instance under its own name where it is applied unbound: modules, and options that hold one.
    definitions: BTreeSet<Arc<str>>,
    /// What expressions speak of.
    mentioned: BTreeSet<Arc<str>>,
    /// What can lie in what.
    nesting: Option<Nesting>,
}

impl Declared {
    fn item(&mut self, item: &Item) {
        let mut items = vec![item];
        while let Some(item) = items.pop() {
            let names = if matches!(item, Item::Binding(_)) { &mut self.bound } else { &mut self.definitions };
            names.extend(item.names().iter().map(|n| n.name.clone()));
            match item {
                Item::Module(module) => {
                    self.params(&module.options);
                    self.params(&module.inputs);
                    self.expr(&module.result);
                    items.extend(&module.items);
                }
                Item::Function(function) => {
                    self.params(&function.params);
                    self.expr(&function.body);
                }
                Item::Binding(binding) => self.expr(&binding.value),
            }
        }
    }

    /// A parameter that holds a module is the name of an instance where it is applied.
    fn params(&mut self, params: &[Param]) {
        for param in params {
            self.definitions.insert(param.name.name.clone());
            param.default.iter().for_each(|default| self.expr(default));
        }
    }

    fn expr(&mut self, expr: &Expr) {
        let mut exprs = vec![expr];
        while let Some(expr) = exprs.pop() {
            match &*expr.kind {
                ExprKind::None | ExprKind::Bool(_) | ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Str(_) => {}
                ExprKind::Name(name) => {
                    self.mentioned.insert(name.clone());
                }
                ExprKind::List(items) | ExprKind::Tuple(items) => exprs.extend(items),
                ExprKind::Mapping(entries) => exprs.extend(entries.iter().map(|(_, e)| e)),
                ExprKind::Comprehension { body, variable, list } => {
                    self.definitions.insert(variable.name.clone());
                    exprs.extend([body, list]);
                }
                ExprKind::If { condition, then, otherwise } => exprs.extend([condition, then, otherwise]),
                ExprKind::Binary { left, right, .. } => exprs.extend([left, right]),
                ExprKind::Not(value) | ExprKind::Neg(value) | ExprKind::IsNone { value, .. } => exprs.push(value),
                ExprKind::Call { callee, args } => {
                    exprs.push(callee);
                    exprs.extend(args.iter().map(|arg| &arg.value));
                }
                ExprKind::Index { base, indices } => {
                    exprs.push(base);
                    exprs.extend(indices);
                }
                ExprKind::Member { base, .. } => exprs.push(base),
            }
        }
    }
}

/// Reports the components of keys that are no name of `declared`, of the keys that stand in the text of that source.
pub(super) fn check(names: &Names, source: u32, text: &str, declared: &Declared, diagnostics: &mut Vec<Diagnostic>) {
    for NameKey { within, key, span } in names.keys.iter().filter(|k| k.span.source == source) {
        let before = diagnostics.len();
        let mut said: Vec<&str> = Vec::new();
        let choices = choices(key);
        for component in choices.iter().flat_map(|key| key.split('.')) {
            let is_name = declared.bound.contains(component) || declared.definitions.contains(component);
            let is_number = component.bytes().all(|b| b.is_ascii_digit());
            if is_name || is_number || component.contains('*') || said.contains(&component) {
                continue;
            }
            said.push(component);
            let among = |names: &BTreeSet<Arc<str>>| did_you_mean(component, names.iter().map(|name| &**name));
            let help = among(&declared.bound).or_else(|| among(&declared.definitions)).unwrap_or_else(|| {
                "a key is a path of instances and parameters, as `--emit arch` shows them; what a checkpoint calls them stands behind it".into()
            });
            diagnostics.push(
                Diagnostic::new(
                    Code::NamePath,
                    format!("no instance and no parameter is named `{component}`"),
                    place(component, *span, text),
                )
                .label("nothing in the wiring has this name")
                .help(help),
            );
        }
        if diagnostics.len() == before
            && let Some(nesting) = &declared.nesting
        {
            diagnostics.extend(lost(nesting, within, &choices, |component| place(component, *span, text)));
        }
    }
}

/// What is wrong with a key of which each component is a name, but not of anything in the one before.
fn lost(nesting: &Nesting, within: &[Arc<str>], keys: &[String], place: impl Fn(&str) -> Span) -> Option<Diagnostic> {
    // Of several choices outside, one that fits is enough.
    let mut outside: Vec<Vec<String>> = vec![Vec::new()];
    for pattern in within {
        let words = choices(pattern);
        if words.is_empty() || outside.len().saturating_mul(words.len()) > MAX_CHOICES {
            return None;
        }
        outside = outside
            .iter()
            .flat_map(|o| words.iter().map(|w| [o.as_slice(), std::slice::from_ref(w)].concat()))
            .collect();
    }
    for key in keys {
        let key: Vec<&str> = key.split('.').collect();
        let split = |o: &Vec<String>| o.iter().map(|p| p.split('.').map(str::to_owned).collect()).collect();
        let found: Vec<Option<(String, String)>> = outside
            .iter()
            .map(|o| {
                let o: Vec<Vec<String>> = split(o);
                let o: Vec<Vec<&str>> = o.iter().map(|p| p.iter().map(String::as_str).collect()).collect();
                nesting.lost(&o, &key).map(|(a, b)| (a.to_owned(), b.to_owned()))
            })
            .collect();
        let Some(all) = found.into_iter().collect::<Option<Vec<_>>>() else { continue };
        let Some((component, holder)) = all.into_iter().next() else { continue };
        let holders = nesting.holders(&component);
        let help = match &holders[..] {
            [] => "a key is a path of instances and parameters, as `--emit arch` shows them".to_owned(),
            [one] => format!("`{component}` lies in `{one}`"),
            [.., last] => {
                let first: Vec<String> =
                    holders[..holders.len() - 1].iter().take(4).map(|h| format!("`{h}`")).collect();
                format!("`{component}` lies in {} and `{last}`", first.join(", "))
            }
        };
        let message = format!("nothing in `{holder}` is named `{component}`");
        return Some(
            Diagnostic::new(Code::NamePath, message, place(&component)).label("whatever the sizes are").help(help),
        );
    }
    None
}

/// The keys that one with braces stands for; `{size}`, a number, becomes `*`.
fn choices(key: &str) -> Vec<String> {
    let mut done = vec![String::new()];
    let mut rest = key;
    while let Some((before, group)) = rest.split_once('{') {
        let Some((inside, after)) = group.split_once('}') else { break };
        let words: Vec<&str> =
            if inside.contains(',') { inside.split(',').map(str::trim).collect() } else { vec!["*"] };
        if done.len().saturating_mul(words.len()) > MAX_CHOICES {
            return Vec::new();
        }
        done = done.iter().flat_map(|d| words.iter().map(move |word| format!("{d}{before}{word}"))).collect();
        rest = after;
    }
    done.iter().map(|d| format!("{d}{rest}")).collect()
}

/// Where a component stands in the text of its key; the whole key where it is put together.
fn place(component: &str, key: Span, text: &str) -> Span {
    let written = text.get(key.start as usize..key.end as usize).unwrap_or_default();
    let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '\'' | '-');
    let whole = written.match_indices(component).map(|(at, _)| at).find(|&at| {
        !written[..at].ends_with(|c: char| of_name(c) && c != '\'')
            && !written[at + component.len()..].starts_with(|c: char| of_name(c) && c != '\'')
    });
    match whole {
        Some(at) => Span { start: key.start + at as u32, end: key.start + (at + component.len()) as u32, ..key },
        None => key,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::choices;
    use crate::diagnostic::Code;
    use crate::spec::{Library, apply_sets, parse_card};
    use crate::{ElaborateOptions, elaborate};

    const LIBRARY: &str = "lin(size, with_bias = false)(x) {\n  weight = param[size, width(x)]\n  bias = if with_bias then param[size] else none\n  \
        y = einsum('ni,oi->no', x, weight)\n  return if bias is none then y else y + bias\n}\n\
        head_of(size)(x) {\n  lowest = lin(size)\n  return lowest(x)\n}\nunused(x) {\n  apart = lin(4)\n  return apart(x)\n}\n";

    const BASE: &str = "xfc: 1\nname: Base\nsizes: {n: 2}\nwiring: |\n  act = scale\n  scale(x) {\n    gain = param[width(x)]\n    return x * gain\n  }\n\
        \x20 tied = n > 1\n  upper = head_of\n\
        \x20 layer(x) {\n    up, down = lin(4)\n    return down(act(up(x)))\n  }\n\
        \x20 model(x: f32[tokens, 4]) {\n    layers = [layer for i in 0..n]\n    out = if tied then identity else upper(4)\n    return {y: out(layers(x))}\n  }\n\
        names:\n  hf: {NAMES}\n";

    /// What is wrong with a card's keys and grammar: the code, what the place of it holds, and the help.
    fn wrong(text: &str, base: &str) -> Vec<(Code, String, String)> {
        let files = [("lib/a.xf", LIBRARY), ("base.yaml", base)];
        let library = Library::build(files.into_iter().map(|(p, t)| (PathBuf::from(p), t.to_string())));
        let spec = parse_card("card.yaml", text, &library);
        let report = spec.and_then(|spec| elaborate(&spec, &ElaborateOptions::default())).err();
        let of = |r: crate::diagnostic::Report| {
            let place = |d: &crate::diagnostic::Diagnostic| {
                r.sources.text(d.primary.as_ref().map(|p| p.span).unwrap_or_default()).to_owned()
            };
            let of_keys = r.diagnostics.iter().filter(|d| matches!(d.code, Code::NamePath | Code::Syntax));
            of_keys.map(|d| (d.code, place(d), d.help.clone().unwrap_or_default())).collect()
        };
        report.map(of).unwrap_or_default()
    }

    fn of_names(names: &str) -> Vec<(Code, String, String)> {
        wrong(&BASE.replace("NAMES", names), &BASE.replace("NAMES", ""))
    }

    #[test]
    fn keys_name_what_is_written_somewhere() {
        for names in [
            "layers.*.up: a.b",
            "layers: {up.weight: c, '{up,down}': {bias: d}}",
            "layers.{n}: last",
            "'**.act.gain': e",
            "'layers.0.up.weight + layers.1.up.weight': 'f[0 | 1, in]'",
            // Of another configuration: a bias, a head that is not tied, and what the library has in it.
            "out.lowest.bias: g",
            "ignore: [nothing.at.all]",
        ] {
            assert_eq!(of_names(names), [], "{names}");
        }
    }

    #[test]
    fn a_misspelling_is_told_with_its_place() {
        let name = |names: &str, place: &str, help: &str| {
            let [(code, at, said)] = &of_names(names)[..] else { panic!("{names}: {:?}", of_names(names)) };
            assert_eq!((*code, at.as_str()), (Code::NamePath, place), "{names}");
            assert!(said.contains(help), "{said}");
        };
        name("layesr: block", "layesr", "`layers`");
        name("layers: {pu: a}", "pu", "`up`");
        name("layers.*.up.wieght: a", "wieght", "`weight`");
        name("'{layers,laiers}.0': a", "laiers", "`layers`");
        name("'layers.{up,dwon}': a", "dwon", "");
        name("'l{ayers,eyers}.0': a", "'l{ayers,eyers}.0'", "`layers`");
        name("out.apart: a", "apart", "is a path");
        name("layers.0.up + layers.0.donw: 'a[up | down, in]'", "donw", "`down`");
        assert_eq!(of_names("layesr: {pu: x}").len(), 2);
    }

    #[test]
    fn a_part_of_something_else_is_told_with_where_it_lies() {
        for (names, place, help) in [
            ("layers.0.gain: a", "gain", "`act`"),
            ("layers.*.up.down: a", "down", "`layer"),
            ("layers: {up.gain: a}", "gain", "`act`"),
            ("layers: {up: {gain: a}}", "gain", "`act`"),
            ("out.weight: a", "weight", "`lowest`"),
            ("'{layers.0.up,out}.lowest: a'", "lowest", "`out`"),
            ("'layers.0.up.weight + layers.0.lowest': 'a[0 | 1, in]'", "lowest", "`out`"),
        ] {
            let names = names.replace(": a'", "': a");
            let [(code, at, said)] = &of_names(&names)[..] else { panic!("{names}: {:?}", of_names(&names)) };
            assert_eq!((*code, at.as_str()), (Code::NamePath, place), "{names}");
            assert!(said.contains(help), "{names}: {said}");
        }
        // Anywhere inside, an element or not, through an option, in a head that these sizes leave out.
        for names in [
            "layers: {weight: a}",
            "layers: {gain: a}",
            "layers.*.act.gain: a",
            "layers: {act: {gain: a}}",
            "out: {weight: a}",
        ] {
            assert_eq!(of_names(names), [], "{names}");
        }
    }

    #[test]
    fn an_option_may_hold_whatever_is_passed() {
        let card = |names: &str| {
            let wiring = "  block(inner)(x) {\n    first = inner\n    return first(x)\n  }\n  scale(x) {\n    gain = param[width(x)]\n    return x * gain\n  }\n\
                          \x20 shift(x) {\n    by = param[width(x)]\n    return x + by\n  }\n\
                          \x20 model(x: f32[tokens, 4]) {\n    a = block(scale)\n    b = block(shift)\n    c = lin(4)\n    return {y: c(a(b(x)))}\n  }\n";
            let text = format!("xfc: 1\nname: Card\nsizes: {{}}\nwiring: |\n{wiring}names:\n  hf: {{{names}}}\n");
            wrong(&text, &BASE.replace("NAMES", ""))
        };
        for names in ["a.first.gain: x", "b.first.by: x", "c.bias: x", "a: {first: {gain: x}}"] {
            assert_eq!(card(names), [], "{names}");
        }
        for names in ["a.gain: x", "a.first.weight: x", "c.gain: x", "a: {weight: x}"] {
            assert_eq!(card(names).len(), 1, "{names}: {:?}", card(names));
        }
    }

    #[test]
    fn a_key_is_held_to_the_card_that_it_stands_in() {
        let card = |wiring: &str, names: &str| {
            let text = format!("xfc: 1\nname: Card\nextends: base\nwiring: |\n{wiring}names:\n  hf: {{{names}}}\n");
            wrong(&text, &BASE.replace("NAMES", "layers: {up: a, down: b}"))
        };
        let renamed = "  layer(x) {\n    wide = lin(4)\n    return wide(x)\n  }\n";
        assert_eq!(card(renamed, "layers.wide: c"), []);
        assert_eq!(card(renamed, "layers.*.up: c").len(), 1);
        assert_eq!(card("  act = identity\n", "layers.*.up: c"), []);
        let text = "xfc: 1\nname: Card\nextends: base\n";
        assert_eq!(wrong(text, &BASE.replace("NAMES", "layesr: a")).len(), 1, "said of the card below too");
    }

    #[test]
    fn lines_that_are_set_leave_keys_as_they_are() {
        let library = Library::build([(PathBuf::from("lib/a.xf"), LIBRARY.to_string())].into_iter());
        let mut spec = parse_card("card.yaml", &BASE.replace("NAMES", "layers.*.up: a"), &library)
            .unwrap_or_else(|e| panic!("{e}"));
        apply_sets(&mut spec, &["layer(x) { return x }".to_string()]).unwrap_or_else(|e| panic!("{e}"));
        elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn equations_that_cannot_be_read_hide_no_names() {
        let text = BASE.replace("NAMES", "layers: a").replace("[layer for", "[layer of");
        assert!(wrong(&text, "").iter().all(|(code, ..)| *code == Code::Syntax));
    }

    #[test]
    fn braces_are_bounded() {
        assert_eq!(choices("{a, b}.{c,d}.{n}"), ["a.c.*", "a.d.*", "b.c.*", "b.d.*"]);
        assert!(choices(&"{a,b}".repeat(40)).is_empty());
    }
}
