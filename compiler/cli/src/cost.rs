//! `xfc inspect --cost`: what each kernel of a step reads, writes and multiplies, how long a named machine needs at least, and what fits.
//!
//! Counted on the plan, without code and without weights. A kernel's time is the longer of reading and writing and of multiplying at the
//! machine's limits: no kernel is faster, real ones are slower.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xfc_codegen::driver;
use xfc_codegen::kernels::Outline;
use xfc_lang::view::{bytes, digits};

pub(crate) use xfc_lang::view::thousands;

use xfc_runtime::artifact::manifest::{BufferRef, Launch, Manifest, When};
use xfc_runtime::cache::CacheOptions;
use xfc_runtime::cost::{AxisShape, StepShape, Work};
use xfc_runtime::need::{Need, largest_context};
use xfc_runtime::session::DEFAULT_STEP_TOKENS;

use crate::args::{FormatArg, InspectArgs};
use crate::error::{CliError, Result};
use crate::machine::Machine;
use crate::model::Loaded;

/// Context of a step when none is asked for.
const CONTEXT_TOKENS: u64 = 4096;

/// A step that is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    batch: u32,
    pub(crate) context: u64,
    /// Tokens of a prompt; none: a token after the context.
    prompt: Option<u64>,
}

impl Asked {
    /// A session that is given such steps.
    pub(crate) fn session(self, outline: &Outline) -> CacheOptions {
        CacheOptions {
            max_sequences: self.batch,
            context_tokens: self.context,
            once_tokens: self.context,
            step_tokens: match self.prompt {
                Some(n) if outline.manifest.whole_sequences => n.saturating_mul(self.batch.into()),
                _ => DEFAULT_STEP_TOKENS.max(self.batch.into()),
            },
            pool_tokens: None,
        }
    }
}

/// What one launch has to do.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    name: String,
    /// `linear`, `attention`, `rows`.
    kind: String,
    /// Of what is computed in one of two forms: which.
    form: Option<&'static str>,
    work: Work,
    written: u64,
}

/// Launches of one layer, or of none, and the layers that have the same.
#[derive(Clone, Debug)]
struct Part {
    /// `layers`; empty outside of layers.
    list: String,
    layers: Vec<u64>,
    rows: Vec<Row>,
}

/// The table.
///
/// # Errors
/// The model has no plan, the machine cannot be read or measured, or what is asked for does not fit the model.
pub(crate) fn run(loaded: &Loaded, args: &InspectArgs) -> Result<String> {
    let options = args.model.options()?;
    let targets = args.model.targets()?;
    let [target] = &targets[..] else {
        return Err(CliError::usage("costs are told for one target", "give `--target` once"));
    };
    let fused = driver::fuse(&loaded.model, &options)?;
    let outline = driver::outline(&loaded.model, &fused.program, &**target, &options)?;
    let machine = Machine::named(args.machine.as_deref().unwrap_or("this"), &outline.manifest.target)?;
    let asked = asked(args, &outline)?;
    let parts = parts(&outline, asked);
    let forms = Forms::of(&outline, asked, &machine);
    let budget = Budget::of(&outline, asked, &machine)?;
    match args.format {
        FormatArg::Text => Ok(text(&outline, asked, &machine, &parts, forms.as_ref(), &budget)),
        FormatArg::Json => Ok(format!("{:#}", json(&outline, asked, &machine, &parts, forms.as_ref(), &budget))),
        FormatArg::Dot | FormatArg::Svg | FormatArg::Html => {
            Err(CliError::usage("costs are told as text or json", "use `--format text` or `--format json`"))
        }
    }
}

/// What the arguments ask for, of a model with this plan.
///
/// # Errors
/// What does not fit the model.
pub(crate) fn asked(args: &InspectArgs, outline: &Outline) -> Result<Asked> {
    let manifest = &outline.manifest;
    let extent = manifest.extents.first().copied().flatten();
    let most = manifest.most_elements(0);
    let context = match (args.ctx_size, extent, most) {
        (Some(asked), _, Some(most)) if asked > most => {
            let problem = format!("a context of {asked} tokens was asked for, the model has {most}");
            return Err(CliError::usage(problem, "ask for a smaller one with `-c`"));
        }
        (Some(asked), ..) => asked,
        (None, Some(extent), _) => extent,
        (None, _, most) => most.map_or(CONTEXT_TOKENS, |n| n.min(CONTEXT_TOKENS)),
    };
    let prompt = match args.prompt {
        Some(0) => return Err(CliError::usage("a prompt has at least one token", "give `--prompt` a number above 0")),
        Some(n) if n > context => {
            let problem = format!("a prompt of {n} tokens does not fit a context of {context}");
            return Err(CliError::usage(problem, format!("give `-c {n}` or a shorter prompt")));
        }
        // Sequences that come whole have no step of one token.
        None if manifest.whole_sequences || extent.is_some() => Some(context),
        prompt => prompt,
    };
    Ok(Asked { batch: args.batch, context, prompt })
}

/// The step of one sequence, of which there are [`Asked::batch`]: the prompt, or the last token of the context.
fn shape(outline: &Outline, asked: Asked) -> StepShape {
    let manifest = &outline.manifest;
    let axis = |i: usize| {
        let own = if i == 0 {
            asked.prompt.map_or((asked.context - 1, 1), |n| (0, n))
        } else {
            match manifest.extents.get(i).copied().flatten() {
                Some(extent) => (0, extent),
                // What is given once is there already, unless the prompt is what is counted.
                None if manifest.given_once(i) && asked.prompt.is_none() => (asked.context, 0),
                None => (0, asked.prompt.unwrap_or(1)),
            }
        };
        let all = manifest.whole_sequences || manifest.extents.get(i).copied().flatten().is_some();
        let selected = if all { own.1 } else { 1 };
        AxisShape { sequences: vec![own], selected }
    };
    StepShape { axes: (0..manifest.axes.len()).map(axis).collect() }
}

/// `layers`, 3 and the rest of `layers.3.self_attn.o_proj`.
fn place(name: &str) -> Option<(&str, u64, &str)> {
    let mut at = 0;
    for part in name.split('.') {
        if let Ok(n) = part.parse::<u64>()
            && at > 0
        {
            let rest = name.get(at + part.len()..).unwrap_or_default().trim_start_matches('.');
            return Some((&name[..at - 1], n, rest));
        }
        at += part.len() + 1;
    }
    None
}

/// `self_attn.q_proj + k_proj + v_proj`: a launch's name with the other modules whose matrices it multiplies by.
fn merged(launch: &Launch, name: &str, manifest: &Manifest) -> String {
    let weight =
        |operand: &BufferRef| if let BufferRef::Weight(id) = operand { manifest.weights.get(*id) } else { None };
    let sources = launch.operands.iter().filter_map(weight).flat_map(|weight| &weight.sources);
    let mut modules: Vec<&str> = Vec::new();
    for (module, _) in sources.filter_map(|source| source.path.rsplit_once('.')) {
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    match modules.split_first() {
        Some((first, others)) if *first == launch.name => {
            let last = |module: &&str| format!(" + {}", module.rsplit('.').next().unwrap_or_default());
            format!("{name}{}", others.iter().map(last).collect::<String>())
        }
        _ => name.to_owned(),
    }
}

fn parts(outline: &Outline, asked: Asked) -> Vec<Part> {
    let (shape, batch) = (shape(outline, asked), u64::from(asked.batch));
    let mut parts: Vec<Part> = Vec::new();
    for (launch, written) in outline.manifest.launches.iter().zip(&outline.written_row_bytes) {
        // A step runs a launch where it has rows of sequences that the launch means.
        let rows = shape.rows_of(launch).saturating_mul(batch);
        if rows == 0 {
            continue;
        }
        let work = shape.work_of_copies(launch, batch);
        let (list, layer, name) = match place(&launch.name) {
            Some((list, n, rest)) => (list.to_owned(), Some(n), rest.to_owned()),
            None => (String::new(), None, launch.name.clone()),
        };
        let kernel = launch.variants.first().and_then(|v| outline.manifest.kernels.get(v.kernel));
        let kind = kernel.map_or("", |k| k.name.split('_').next().unwrap_or_default()).to_owned();
        let name = if kind == "linear" { merged(launch, &name, &outline.manifest) } else { name };
        let form = launch.when.map(form);
        let name = form.map_or_else(|| name.clone(), |form| format!("{name} ({form})"));
        let row = Row { name, kind, form, work, written: written.saturating_mul(rows) };
        let layers: Vec<u64> = layer.into_iter().collect();
        match parts.last_mut() {
            Some(part) if part.list == list && part.layers == layers => part.rows.push(row),
            _ => parts.push(Part { list, layers, rows: vec![row] }),
        }
    }
    // Layers that do the same are told once.
    let mut told: Vec<Part> = Vec::new();
    for part in parts {
        let same = |p: &&mut Part| !part.list.is_empty() && p.list == part.list && p.rows == part.rows;
        match told.iter_mut().find(same) {
            Some(known) => known.layers.extend(part.layers),
            None => told.push(part),
        }
    }
    told
}

/// What is made of what is kept, in the form of a step: keys and values of heads for sequences that begin in it, none for those that go on.
const fn form(when: When) -> &'static str {
    match when {
        When::FromStart => "expanded",
        When::Continued => "absorbed",
    }
}

/// Attention to latents: the form that the step takes, and what it takes beside the other.
struct Forms {
    taken: When,
    /// Seconds of the launches of that form, in all layers.
    seconds: f64,
    /// Of the absorbed form, where a step could take it but does not.
    otherwise: Option<f64>,
}

impl Forms {
    /// None where nothing has two forms.
    fn of(outline: &Outline, asked: Asked, machine: &Machine) -> Option<Self> {
        let (shape, batch) = (shape(outline, asked), u64::from(asked.batch));
        let begins =
            |launch: &&Launch| shape.axes.get(launch.axis).is_some_and(|a| a.sequences.iter().all(|s| s.0 == 0));
        let first = outline.manifest.launches.iter().find(|launch| launch.when.is_some())?;
        let taken = if begins(&first) { When::FromStart } else { When::Continued };
        let seconds = |when: When| -> f64 {
            let launches = outline.manifest.launches.iter().zip(&outline.written_row_bytes);
            let own = launches.filter(|(launch, _)| launch.when == Some(when)).map(|(launch, written)| {
                // As if it were for every sequence.
                let launch = Launch { when: None, ..launch.clone() };
                let rows = shape.rows_of(&launch).saturating_mul(batch);
                let work = shape.work_of_copies(&launch, batch);
                let row = Row { work, written: written.saturating_mul(rows), ..Row::default() };
                let (moving, multiplying) = row.seconds(machine);
                moving.max(multiplying)
            });
            own.sum()
        };
        // Keys and values of heads are made of the step's tokens alone, so only a step that has all of a sequence could take either.
        let otherwise = (taken == When::FromStart).then(|| seconds(When::Continued));
        Some(Forms { taken, seconds: seconds(taken), otherwise })
    }

    fn text(&self) -> String {
        let own = duration(self.seconds);
        match self.otherwise {
            Some(other) => format!(
                "(expanded): keys and values of heads are made for sequences that begin in this step, {own} in all layers; absorbed it would be {}\n",
                duration(other)
            ),
            None => format!(
                "(absorbed): sequences that go on are read as what is kept, {own} in all layers; no keys and values of heads are made of it\n"
            ),
        }
    }

    fn json(&self) -> Value {
        let other = self.otherwise.map(|seconds| json!({"form": form(When::Continued), "seconds": seconds}));
        json!({"taken": form(self.taken), "seconds": self.seconds, "otherwise": other})
    }
}

/// Whether it fits.
struct Budget {
    need: Need,
    /// The longest context that fits; none where nothing does.
    longest: Option<u64>,
}

impl Budget {
    fn of(outline: &Outline, asked: Asked, machine: &Machine) -> Result<Self> {
        let options = asked.session(outline);
        let workers = machine.workers;
        let need = Need::of(&outline.manifest, &options, workers)?;
        Ok(Budget { need, longest: largest_context(&outline.manifest, &options, workers, machine.memory_bytes)? })
    }
}

impl Row {
    fn read(&self) -> u64 {
        let values = self.work.value_bytes.saturating_sub(self.written);
        self.work.memory_bytes().saturating_add(values)
    }

    fn bytes(&self) -> u64 {
        self.read().saturating_add(self.written)
    }

    /// Seconds of moving and of multiplying.
    fn seconds(&self, machine: &Machine) -> (f64, f64) {
        (self.bytes() as f64 / machine.bytes_per_second, machine.seconds_of_products(&self.work))
    }
}

/// Sums over rows: operations, bytes read, bytes written, seconds.
fn total(rows: &[Row], machine: &Machine) -> (f64, f64, f64, f64) {
    rows.iter().fold((0.0, 0.0, 0.0, 0.0), |(flops, read, written, seconds), row| {
        let (moving, multiplying) = row.seconds(machine);
        let own = (row.work.flops() as f64, row.read() as f64, row.written as f64, moving.max(multiplying));
        (flops + own.0, read + own.1, written + own.2, seconds + own.3)
    })
}

/// Seconds in a unit that shows three digits.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s if s >= 1e-6 => format!("{:.2} µs", s * 1e6),
        s => format!("{:.0} ns", s * 1e9),
    }
}

fn text(
    outline: &Outline,
    asked: Asked,
    machine: &Machine,
    parts: &[Part],
    forms: Option<&Forms>,
    budget: &Budget,
) -> String {
    let manifest = &outline.manifest;
    let mut out = String::new();
    let what = match asked.prompt {
        Some(n) => format!("a prompt of {} tokens", digits(n)),
        None => format!("one token after {}", digits(asked.context - 1)),
    };
    let sequences = if asked.batch == 1 { "1 sequence".to_owned() } else { format!("{} sequences", asked.batch) };
    let _ = writeln!(out, "{}, {what}, {sequences}; kernels of {}", manifest.model, manifest.target.name);
    let _ = writeln!(out, "on {}\n", machine.text());
    let widest = parts.iter().flat_map(|p| &p.rows).map(|r| r.name.chars().count()).max().unwrap_or(0).clamp(30, 46);
    let mut line = |name: &str, cells: [String; 7]| {
        let [kind, flops, read, written, intensity, time, bound] = cells;
        let shown: String = name.chars().take(widest + 2).collect();
        let text = format!(
            "{shown:0$} {kind:<9} {flops:>9} {read:>9} {written:>9} {intensity:>9} {time:>11}  {bound}",
            widest + 2
        );
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line("", ["kernel", "FLOPs", "read", "written", "FLOPs/B", "at least", "bound by"].map(str::to_owned));
    let mut all = (0.0, 0.0, 0.0, 0.0);
    for part in parts {
        let times = part.layers.len().max(1) as f64;
        if !part.list.is_empty() {
            let each =
                if part.layers.len() > 1 { format!(" ({} layers, each)", part.layers.len()) } else { String::new() };
            line(&format!("{}{each}", which(part)), std::array::from_fn(|_| String::new()));
        }
        for row in &part.rows {
            let (moving, multiplying) = row.seconds(machine);
            let flops = row.work.flops() as f64;
            let bound = if multiplying > moving { "arithmetic" } else { "memory" };
            line(
                &format!("  {}", row.name),
                [
                    row.kind.clone(),
                    thousands(flops),
                    thousands(row.read() as f64),
                    thousands(row.written as f64),
                    format!("{:.2}", flops / (row.bytes() as f64).max(1.0)),
                    duration(moving.max(multiplying)),
                    bound.to_owned(),
                ],
            );
        }
        let sum = total(&part.rows, machine);
        if part.rows.len() > 1 && !part.list.is_empty() {
            line("  together", sums(sum));
        }
        all = (all.0 + times * sum.0, all.1 + times * sum.1, all.2 + times * sum.2, all.3 + times * sum.3);
    }
    line("all", sums(all));
    let tokens = f64::from(asked.batch) * asked.prompt.unwrap_or(1) as f64;
    let _ = writeln!(out, "\nat most {} tokens a second", thousands(tokens / all.3.max(f64::MIN_POSITIVE)));
    out.push_str(&forms.map_or_else(String::new, Forms::text));
    out.push_str(&verdict(outline, asked, machine, budget));
    out
}

fn sums((flops, read, written, seconds): (f64, f64, f64, f64)) -> [String; 7] {
    let intensity = format!("{:.2}", flops / (read + written).max(1.0));
    [String::new(), thousands(flops), thousands(read), thousands(written), intensity, duration(seconds), String::new()]
}

fn verdict(outline: &Outline, asked: Asked, machine: &Machine, budget: &Budget) -> String {
    let need = &budget.need;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "memory: weights {}, caches {}, values of a step {}, scratch {}: {} of {}",
        bytes(need.weights),
        bytes(need.caches),
        bytes(need.values),
        bytes(need.scratch),
        bytes(need.total()),
        bytes(machine.memory_bytes)
    );
    let fits = need.total() <= machine.memory_bytes;
    let grows = outline.manifest.caches.iter().any(|g| g.keep != xfc_runtime::artifact::manifest::Keep::Step);
    let most = outline.manifest.most_elements(0);
    let of = if asked.batch == 1 { String::new() } else { format!(" of each of {} sequences", asked.batch) };
    // Of another axis as many elements as the context has: only the growing one is looked for.
    let once: Vec<String> = (0..outline.manifest.axes.len())
        .filter(|axis| {
            outline.manifest.given_once(*axis) && outline.manifest.extents.get(*axis).copied().flatten().is_none()
        })
        .map(|axis| format!(" beside {} of `{}`", digits(asked.context), outline.manifest.axes[axis]))
        .collect();
    let of = format!("{of}{}", once.concat());
    let longest = match budget.longest {
        None if need.weights > machine.memory_bytes => "the weights alone are too much".to_owned(),
        None => format!("not even one token{of} fits beside the weights"),
        Some(n) if most == Some(n) => format!("the whole context of {} tokens{of} fits", digits(n)),
        Some(n) if !grows || n >= 1 << 31 => "no context is too long: nothing that is kept grows".to_owned(),
        Some(n) => format!("the largest context that fits is {} tokens{of}", digits(n)),
    };
    let _ = writeln!(out, "{}; {longest}", if fits { "it fits" } else { "it does not fit" });
    out
}

fn which(part: &Part) -> String {
    let paths: Vec<String> = part.layers.iter().map(|n| format!("{}.{n}", part.list)).collect();
    xfc_lang::view::in_short(&paths.iter().map(String::as_str).collect::<Vec<_>>())
}

fn json(
    outline: &Outline,
    asked: Asked,
    machine: &Machine,
    parts: &[Part],
    forms: Option<&Forms>,
    budget: &Budget,
) -> Value {
    let row = |row: &Row| {
        let (moving, multiplying) = row.seconds(machine);
        json!({
            "name": row.name, "kernel": row.kind, "form": row.form, "flops": row.work.flops(), "weight_bytes": row.work.weight_bytes, "cache_bytes": row.work.cache_bytes,
            "read_bytes": row.read(), "written_bytes": row.written, "flops_per_byte": row.work.flops() as f64 / (row.bytes() as f64).max(1.0),
            "seconds": moving.max(multiplying), "bound_by": if multiplying > moving { "arithmetic" } else { "memory" },
        })
    };
    let mut all = (0.0, 0.0, 0.0, 0.0);
    for part in parts {
        let (times, sum) = (part.layers.len().max(1) as f64, total(&part.rows, machine));
        all = (all.0 + times * sum.0, all.1 + times * sum.1, all.2 + times * sum.2, all.3 + times * sum.3);
    }
    let part = |p: &Part| {
        json!({
            "list": p.list, "layers": p.layers, "seconds": total(&p.rows, machine).3,
            "kernels": p.rows.iter().map(row).collect::<Vec<_>>(),
        })
    };
    let need = &budget.need;
    json!({
        "model": outline.manifest.model, "target": outline.manifest.target.name, "machine": machine.json(),
        "batch": asked.batch, "context_tokens": asked.context, "prompt_tokens": asked.prompt,
        "flops": all.0, "read_bytes": all.1, "written_bytes": all.2, "seconds": all.3,
        "parts": parts.iter().map(part).collect::<Vec<_>>(), "forms": forms.map(Forms::json),
        "memory": {
            "weight_bytes": need.weights, "cache_bytes": need.caches, "value_bytes": need.values, "scratch_bytes": need.scratch,
            "bytes": need.total(), "fits": need.total() <= machine.memory_bytes, "largest_context_tokens": budget.longest,
        },
    })
}
