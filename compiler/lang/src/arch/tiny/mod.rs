//! `--tiny`: a card's model made small, with the same kinds of layer, the same operations and the same ratios.
//!
//! ```text
//! sizes ──probe: change one, expand, compare──▶ what each size is ──shrink by kind──▶ sizes ──expand, compare──▶ kept, or the next larger try
//! ```
//!
//! What a size is follows from what its change changes (`profile`); no name is known. A card may say `tiny: {size: value}` where it
//! knows better; what it says is kept, as is what `--set` says, and the rest is derived around it. Every candidate is expanded as a card is, and
//! taken only when each kind of body of the whole model is still there.

mod profile;

use std::collections::BTreeSet;

use self::profile::{Changes, Kind, changes, counts, kinds, vanishes};
use super::{ElaborateOptions, Model, elaborate};
use crate::diagnostic::{Code, Diagnostic, Report};
use crate::spec::{Datum, Spec};

/// Rows of the smallest shrunk table. No multiple of a tile, so that tails are seen too.
const ROWS: i64 = 131;
/// Width of a head.
const HEAD: i64 = 8;
/// Tokens of the shortest window.
const WINDOW: i64 = 8;
/// Experts, and whatever else is counted without being a layer.
const COUNT: i64 = 4;
/// A model with more parameters than this is not tiny.
const MOST_PARAMETERS: u64 = 8_000_000;
/// Most values tried for the number of layers.
const MOST_LAYERS: i64 = 64;

/// The options under which a card expands to a tiny model: `options` with more sizes set.
///
/// # Errors
/// The model is wrong as it is; the card's `tiny` names no size; nothing tiny that was tried is the same model.
pub fn tiny(spec: &Spec, options: &ElaborateOptions) -> Result<ElaborateOptions, Report> {
    let whole = elaborate(spec, options)?;
    let mut diagnostics = Vec::new();
    let mut sets = Vec::new();
    for (key, value) in &spec.tiny {
        if spec.sizes.iter().any(|s| s.name == key.text) {
            sets.push((key.text.to_string(), yaml(value)));
        } else {
            let help = crate::diagnostic::did_you_mean(&key.text, spec.sizes.iter().map(|s| &*s.name));
            let d = Diagnostic::new(Code::UnknownSize, format!("the card has no size `{}`", key.text), key.span);
            diagnostics.push(d.label("not among its sizes").maybe_help(help));
        }
    }
    if !diagnostics.is_empty() {
        return Err(Report::new(spec.sources.clone(), diagnostics));
    }
    // What the user sets comes last, and so wins.
    sets.extend(options.sets.iter().cloned());
    let given = ElaborateOptions { sets, ..options.clone() };
    let model = elaborate(spec, &given)?;
    let fixed = |name: &str| given.sets.iter().any(|(set, _)| set == name);
    let sizes = model.arch.sizes.iter().map(|(name, value)| Size {
        name: name.clone(),
        free: !fixed(name),
        value: value.clone(),
    });
    let mut search = Search { spec, kinds: kinds(&whole), sizes: sizes.collect(), model, given };
    search.counted();
    let roles = search.roles();
    match search.shrink(&roles) {
        Ok(options) => Ok(options),
        Err(why) => {
            let message = format!(
                "the model of {} could not be made tiny: nothing tried has every kind of layer and at most {MOST_PARAMETERS} parameters; \
                 of the smallest, {why}",
                spec.name
            );
            let help =
                "give sizes that fit together in the card, as in `tiny: {hidden_size: 64, num_attention_heads: 4}`";
            Err(Report {
                sources: spec.sources.clone(),
                diagnostics: vec![Diagnostic::unplaced(Code::NotShrunk, message).help(help)],
            })
        }
    }
}

struct Size {
    name: String,
    value: Datum,
    free: bool,
}

/// What a size is.
#[derive(Debug, Default)]
struct Role {
    was: i64,
    is: Is,
    changes: Changes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Is {
    /// Nothing that is made smaller.
    #[default]
    Kept,
    Rows,
    Heads,
    HeadWidth,
    Width,
    Window,
}

struct Search<'a> {
    spec: &'a Spec,
    /// Of the whole model: each must stay.
    kinds: BTreeSet<Kind>,
    sizes: Vec<Size>,
    /// At the sizes so far.
    model: Model,
    given: ElaborateOptions,
}

impl Search<'_> {
    /// The options with some sizes changed.
    fn options(&self, changed: &[(usize, Datum)]) -> ElaborateOptions {
        let mut options = self.given.clone();
        for (i, size) in self.sizes.iter().enumerate().filter(|(_, s)| s.free) {
            let new = changed.iter().rfind(|(at, _)| *at == i).map_or(&size.value, |(_, value)| value);
            if *new != Datum::Null {
                options.sets.push((size.name.clone(), yaml(new)));
            }
        }
        options
    }

    fn expand(&self, changed: &[(usize, Datum)]) -> Option<Model> {
        elaborate(self.spec, &self.options(changed)).ok()
    }

    fn has_all_kinds(&self, model: &Model) -> bool {
        kinds(model).is_superset(&self.kinds)
    }

    /// Makes what is counted small: layers, the lists that say what they are, experts.
    fn counted(&mut self) {
        // The least first: counts are less than widths, and where layers are few, what follows is soon expanded.
        let mut free: Vec<usize> = (0..self.sizes.len()).filter(|i| self.sizes[*i].free).collect();
        free.sort_by_key(|i| match &self.sizes[*i].value {
            Datum::Int(n) => *n,
            Datum::List(items) => items.len() as i64,
            _ => 0,
        });
        for i in free {
            let shorter = |n: i64| match &self.sizes[i].value {
                Datum::Int(_) => Datum::Int(n),
                Datum::List(items) => Datum::List(items[..n as usize].to_vec()),
                other => other.clone(),
            };
            let was = match &self.sizes[i].value {
                Datum::Int(n) => *n,
                Datum::List(items) => items.len() as i64,
                _ => continue,
            };
            if was <= 2 {
                continue;
            }
            let now = counts(&self.model);
            let probe = [was - 1, was / 2].into_iter().find_map(|n| self.expand(&[(i, shorter(n))]));
            let Some(less) = probe.map(|m| counts(&m)).filter(|less| *less != now) else { continue };
            let least = if less.0 != now.0 { 2 } else { COUNT };
            for n in least..was.min(MOST_LAYERS) {
                let value = shorter(n);
                if let Some(model) = self.expand(&[(i, value.clone())]).filter(|m| self.has_all_kinds(m)) {
                    (self.sizes[i].value, self.model) = (value, model);
                    break;
                }
            }
        }
    }

    /// What each size that is a whole number is.
    fn roles(&self) -> Vec<Role> {
        let role = |i: usize| {
            let Size { value: Datum::Int(was), free: true, .. } = &self.sizes[i] else { return Role::default() };
            let was = *was;
            let tries = [was.saturating_mul(2), was / 2, was.saturating_sub(1), was.saturating_add(1)];
            let changes = tries.into_iter().filter(|n| *n > 0 && *n != was).find_map(|n| {
                let model = self.expand(&[(i, Datum::Int(n))])?;
                changes(&self.model, &model, was, n)
            });
            let changes = changes.unwrap_or_default();
            let is = match &changes {
                c if c.input => Is::Kept,
                c if c.rows => Is::Rows,
                c if c.inner && !c.stream && (c.inner_exact || !c.head_width) => Is::Heads,
                c if c.head_width => Is::HeadWidth,
                c if c.widths > 0 => Is::Width,
                c if c.position => Is::Window,
                _ => Is::Kept,
            };
            Role { was, is, changes }
        };
        (0..self.sizes.len()).map(role).collect()
    }

    /// The first of the candidates, from small to large, that is the same model; why the smallest is not, when none is.
    fn shrink(&self, roles: &[Role]) -> Result<ElaborateOptions, String> {
        let mut first = None;
        for scale in [1, 2, 3, 4, 6, 8, 16, 32] {
            for least_heads in [2, 4] {
                let changed = candidate(roles, scale, least_heads);
                let options = self.options(&changed);
                match self.departs(elaborate(self.spec, &options)) {
                    None => return Ok(options),
                    Some(why) => _ = first.get_or_insert(why),
                }
            }
        }
        Err(first.unwrap_or_default())
    }

    /// What keeps an expansion from being the same model, made tiny.
    fn departs(&self, expanded: Result<Model, Report>) -> Option<String> {
        let model = match expanded {
            Ok(model) => model,
            Err(report) => return Some(report.diagnostics.first().map(|d| d.message.clone()).unwrap_or_default()),
        };
        let n = model.arch.parameter_count();
        if n > MOST_PARAMETERS {
            return Some(format!("there are still {n} parameters"));
        }
        if !self.has_all_kinds(&model) {
            return Some("a kind of layer is gone".to_string());
        }
        vanishes(&self.model, &model).then(|| "something has shrunk to 1".to_string())
    }
}

/// New values by role; widths are `scale` times the smallest that heads allow.
fn candidate(roles: &[Role], scale: i64, least_heads: i64) -> Vec<(usize, Datum)> {
    let mut new: Vec<i64> = roles.iter().map(|r| r.was).collect();
    let of = |is: Is| {
        let mut list: Vec<usize> = (0..roles.len()).filter(|i| roles[*i].is == is).collect();
        list.sort_by_key(|i| roles[*i].was);
        list
    };
    for (n, i) in of(Is::Rows).into_iter().enumerate() {
        new[i] = roles[i].was.min(ROWS + 8 * n as i64);
    }
    for (n, i) in of(Is::Window).into_iter().enumerate() {
        new[i] = roles[i].was.min(WINDOW + 4 * n as i64);
    }
    // Heads that meet in one operation keep their ratio.
    let heads = of(Is::Heads);
    for group in groups(&heads, roles) {
        let divisor = group.iter().fold(0, |d, i| gcd(d, roles[*i].was)).max(1);
        let fewest = group.iter().map(|i| roles[*i].was / divisor).min().unwrap_or(1);
        let times = (1..=divisor).find(|t| fewest * t >= least_heads).unwrap_or(divisor);
        group.iter().for_each(|i| new[*i] = (roles[*i].was / divisor).saturating_mul(times));
    }
    let head_widths = of(Is::HeadWidth);
    if let Some(narrowest) = head_widths.first().map(|i| roles[*i].was).filter(|n| *n > HEAD) {
        head_widths.iter().for_each(|i| new[*i] = even(roles[*i].was.saturating_mul(HEAD), narrowest).max(HEAD));
    }
    // The others keep their ratio to the width that bodies are given.
    let widths = of(Is::Width);
    if let Some(main) = widths.iter().copied().max_by_key(|i| (roles[*i].changes.stream, roles[*i].changes.widths)) {
        let most = heads.last().copied();
        let head = match (most, head_widths.last()) {
            (Some(h), Some(w)) => {
                (roles[main].was.saturating_mul(new[h]) / roles[h].was).saturating_mul(new[*w]) / roles[*w].was
            }
            (Some(h), None) => new[h] * HEAD,
            _ => 2 * HEAD,
        };
        let width = head.max(2 * HEAD).saturating_mul(scale).min(roles[main].was);
        for i in widths {
            new[i] = even(roles[i].was.saturating_mul(width), roles[main].was).max(roles[i].was.min(HEAD));
        }
        new[main] = width;
    }
    (0..roles.len()).filter(|i| roles[*i].is != Is::Kept).map(|i| (i, Datum::Int(new[i]))).collect()
}

/// Sizes that change the same values, together.
fn groups(sizes: &[usize], roles: &[Role]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &i in sizes {
        let meets = |g: &Vec<usize>| g.iter().any(|j| !roles[*j].changes.places.is_disjoint(&roles[i].changes.places));
        let (mut together, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(meets);
        together.push(vec![i]);
        groups = apart;
        groups.push(together.concat());
    }
    groups
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `a / b` as an even number, rounded.
fn even(a: i64, b: i64) -> i64 {
    a.saturating_add(b) / b.saturating_mul(2) * 2
}

/// A value as text that reads as the same.
fn yaml(value: &Datum) -> String {
    match value {
        Datum::Str(s) => serde_json::Value::from(&**s).to_string(),
        Datum::List(items) => format!("[{}]", items.iter().map(yaml).collect::<Vec<_>>().join(", ")),
        Datum::Map(entries) => {
            let entries = entries.iter().map(|(k, v)| format!("{}: {}", serde_json::Value::from(&**k), yaml(v)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
