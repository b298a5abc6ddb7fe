//! Cards drawn at random from the language and its library, and whether what is compiled of one means what is interpreted.
//!
//! [`card`] writes a whole card: norms anywhere or nowhere, attention of every kind with masks and scores, feed-forward layers, residuals of
//! several patterns, odd sizes. Most are right; some are wrong on purpose, and must then be refused in words. [`check`] promises to say which
//! of the three happened, and to return what departs as an error.

use std::fmt::Write as _;

use xfc_codegen::error::CodegenError;
use xfc_lang::graph::{DType, Dim, InputDecl, Program};
use xfc_lang::passes::PassError;
use xfc_lang::spec::{Library, parse_card};
use xfc_lang::{ElaborateOptions, elaborate};
use xfc_runtime::step::InputData;

use crate::Result;
use crate::choices::Choices;
use crate::program::{Compared, Schedule, compare_with_interpreter};

/// What became of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Compiled, and the same as interpreted.
    Agrees,
    /// Refused by the front end, in words.
    Refused,
    /// Refused by the compiler as not having a compiled form.
    NotCompiled,
    /// Its numbers are too ill-conditioned to say anything.
    Chaotic,
}

/// Expands, compiles and runs a card in steps of several sequences.
///
/// # Errors
/// Whatever departs, and whatever is a defect of the compiler.
pub fn check(text: &str, choices: &mut Choices, targets: &[&str]) -> Result<Outcome> {
    let model = parse_card("card.yaml", text, &Library::embedded());
    let model = match model.and_then(|spec| elaborate(&spec, &ElaborateOptions::default())) {
        Ok(model) => model,
        Err(report) if report.diagnostics.is_empty() => return Err("refused without a reason".into()),
        Err(report) => {
            return if report.to_string().is_empty() {
                Err("refused in no words".into())
            } else {
                Ok(Outcome::Refused)
            };
        }
    };
    let schedule = schedule(&model.program, choices);
    match compare_with_interpreter(&model.program.to_string(), &schedule, targets) {
        Ok(Compared::Same) => Ok(Outcome::Agrees),
        Ok(Compared::IllConditioned) => Ok(Outcome::Chaotic),
        // Arithmetic on all that is kept is interpreted only; anything else that is left over is a defect of a pass.
        Err(error) => match (error.downcast_ref::<CodegenError>(), error.downcast_ref::<PassError>()) {
            (Some(CodegenError::Unsupported { .. }), _) => Ok(Outcome::NotCompiled),
            (_, Some(PassError::Unfused(left))) if left.to_string().contains("visible(") => Ok(Outcome::NotCompiled),
            _ => Err(error),
        },
    }
}

/// Steps of up to three sequences: a prompt, single tokens, pieces.
fn schedule(program: &Program, choices: &mut Choices) -> Schedule {
    let lengths: [[u64; 3]; 4] = match choices.below(4) {
        0 => [[3, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]],
        1 => [[19, 0, 0], [1, 5, 0], [1, 1, 0], [4, 1, 0]],
        2 => [[1, 2, 33], [1, 1, 1], [7, 0, 1], [1, 17, 2]],
        _ => [[16, 0, 1], [0, 16, 1], [1, 1, 15], [2, 1, 1]],
    };
    let needed: Vec<&InputDecl> = program.inputs.iter().filter(|i| i.default.is_none()).collect();
    let mut values = |input: &InputDecl, n: u64| {
        let row: u64 = input.ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product();
        match input.ty.dtype {
            DType::F32 => InputData::Floats(
                (0..n * row).map(|i| (choices.below(2001) as f32 - 1000.0) / 700.0 + i as f32 * 1e-3).collect(),
            ),
            _ => InputData::Ints((0..n * row).map(|_| choices.below(SMALLEST_TABLE) as i64).collect()),
        }
    };
    let mut step = |n: u64| needed.iter().map(|i| (i.name.clone(), values(i, n))).collect();
    let steps = lengths.iter().filter(|step| step.iter().any(|n| *n > 0));
    steps.map(|lengths| lengths.iter().map(|n| (*n > 0).then(|| step(*n))).collect()).collect()
}

/// Rows of the smallest vocabulary, so that every id drawn is one.
const SMALLEST_TABLE: u64 = 5;

/// A card. Zeros give the simplest: one layer of attention.
pub fn card(c: &mut Choices) -> String {
    let sizes = Sizes::draw(c);
    let mut wiring = String::new();
    let norm = norm(c);
    let _ = writeln!(wiring, "  norm = {norm}");
    if c.one_in(4) {
        let _ = writeln!(wiring, "  mask seen(n) = {}", masks(c));
        let _ = writeln!(
            wiring,
            "  scored(t) = {}",
            c.of(&["score", "t * tanh(score / t)", "score - abs(q_pos - k_pos) * 0.1", "score * t * 0.25 + 0.5"])
        );
    }
    let defined = wiring.contains("mask seen");
    let numbered = c.one_in(3);
    let _ = writeln!(wiring, "  layer{}(x) {{", if numbered { "(i)" } else { "" });
    wiring += &layer(c, &sizes, numbered, defined);
    let _ = writeln!(wiring, "  }}");
    wiring += &model(c, &sizes, numbered);
    let mut text = format!(
        "xfc: 1\nname: Drawn\nsizes: {{vocab: {}, width: {}, inner: {}, heads: {}, kv: {}, dh: {}, n_layers: {}, near: {}}}\nwiring: |\n{wiring}",
        sizes.vocab, sizes.width, sizes.inner, sizes.heads, sizes.kv, sizes.dh, sizes.n_layers, sizes.near
    );
    if c.one_in(12) {
        text = damaged(c, &text);
    }
    text
}

struct Sizes {
    vocab: u64,
    width: u64,
    inner: u64,
    heads: u64,
    kv: u64,
    dh: u64,
    n_layers: u64,
    near: u64,
}

impl Sizes {
    fn draw(c: &mut Choices) -> Sizes {
        let kv = c.number(&[1, 2, 3]);
        let heads = kv * c.number(&[1, 2, 3, 5]);
        let dh = c.number(&[2, 4, 6, 8, 10, 16, 18, 34]);
        let width = if c.one_in(3) { 2 * (1 + c.below(40)) } else { heads * dh };
        Sizes {
            vocab: c.number(&[5, 7, 33, 64, 131]),
            width,
            inner: c.number(&[2, 3, 8, 16, 17, 31, 48, 65, 130]),
            heads,
            kv,
            dh,
            n_layers: c.number(&[1, 2, 3]),
            near: c.number(&[1, 2, 3, 8, 15, 16, 17, 40]),
        }
    }
}

fn norm(c: &mut Choices) -> &'static str {
    c.of(&[
        "rms_norm(1.0e-5)",
        "layer_norm(1.0e-5)",
        "rms_norm(1.0e-6, offset = 1)",
        "rms_norm(1.0e-5, gain = false)",
        "layer_norm(1.0e-5, shift = false)",
        "layer_norm(1.0e-6, gain = false)",
        "identity",
    ])
}

fn masks(c: &mut Choices) -> String {
    let one = |c: &mut Choices| {
        c.of(&[
            "causal",
            "window(near)",
            "all",
            "causal and chunk(near)",
            "around(near)",
            "dilated(3, 2)",
            "causal and (q_pos - k_pos < near or k_pos < 2)",
            "causal and not (q_pos - k_pos == 1)",
            "causal and (head % 2 == 0 or q_pos - k_pos < near)",
            "k_pos <= q_pos and (q_pos - k_pos) % 3 == 0",
            "k_pos // 4 <= q_pos // 4",
            "chunk(near)",
        ])
    };
    let first = one(c);
    if c.one_in(5) { format!("({first}) {} ({})", c.of(&["or", "and"]), one(c)) } else { first.to_string() }
}

fn activation(c: &mut Choices) -> &'static str {
    c.of(&["silu", "gelu", "relu", "gelu_tanh", "quick_gelu", "activation('gelu_new')", "tanh", "softplus"])
}

/// The arguments of attention behind its sizes.
fn attention_options(c: &mut Choices, defined: bool, numbered: bool) -> String {
    let mut options = String::new();
    let mask = match c.below(4) {
        0 => "causal".to_string(),
        1 if defined => "seen(near)".to_string(),
        2 if numbered => format!("if i % 2 == 0 then {} else {}", masks(c), masks(c)),
        _ => masks(c),
    };
    let _ = write!(options, ", mask = {mask}");
    if c.one_in(4) {
        options += ", with_bias = true";
    }
    if c.one_in(4) {
        options += ", out_bias = true";
    }
    match c.below(5) {
        1 | 2 => options += ", rotate = rotary({rope_theta: 10000.0, rope_type: 'default'})",
        3 => options += ", rotate = rotary({rope_theta: 500.0, rope_type: 'linear', factor: 4.0})",
        _ => {}
    }
    if c.one_in(4) {
        let _ = write!(
            options,
            ", qk_norm = {}",
            c.of(&["rms_norm(1.0e-6)", "layer_norm(1.0e-5)", "rms_norm(1.0e-6, gain = false)"])
        );
        if c.one_in(2) {
            options += ", qk_norm_over = 'projection'";
        }
    }
    if c.one_in(6) {
        options += ", after_rotate = tanh";
    }
    if c.one_in(6) {
        options += c.of(&[", q_scale = 0.5", ", q_scale = 1 + 0.1 * log(1 + (q_pos + 1) // 4)"]);
    }
    if c.one_in(4) {
        let scores = if defined { "scored(4.0)" } else { "30 * tanh(score / 30)" };
        let _ = write!(
            options,
            ", scores = {}",
            c.of(&[scores, "score - (q_pos - k_pos) * exp(-(head + 1) / 4)", "score * 0.5 + 1"])
        );
    }
    if c.one_in(4) {
        options += ", with_sinks = true";
    }
    if c.one_in(5) {
        options += c.of(&[", scale = 1", ", scale = 0.3", ", scale = 1 / dh"]);
    }
    options
}

/// A sublayer: what is bound before it and its application to `x`.
struct Sublayer {
    bindings: String,
    apply: &'static str,
}

fn attention(c: &mut Choices, s: &Sizes, defined: bool, numbered: bool) -> Sublayer {
    let options = attention_options(c, defined, numbered);
    let bindings = match c.below(12) {
        9 => convolution(c),
        10 | 11 => recurrence(c),
        6 => {
            // Written out: one projection, cut; values as wide as one likes.
            let dv = c.number(&[1, 3, 8, 20]);
            format!(
                "    qkv = linear((heads + kv) * dh + kv * {dv}, {})\n    back = linear(width)\n    attn(x) {{\n      q, k, v = parts(qkv(x), [heads * dh, kv * dh, kv * {dv}])\n\
                 \x20     return back(merge(attend(split(q, heads), cache(split(k, kv)), cache(split(v, kv)), {}, scale = dh ^ -0.5)))\n    }}\n",
                c.of(&["false", "true"]),
                masks(c)
            )
        }
        7 => {
            // A latent that is kept, and expanded behind the cache.
            format!(
                "    down = linear(6)\n    q_proj, up_k, up_v = linear(heads * dh)\n    back = linear(width)\n\
                 \x20   attn(x) {{\n      kept = cache(down(x))\n      return back(merge(attend(split(q_proj(x), heads), split(up_k(kept), heads), split(up_v(kept), heads), {})))\n    }}\n",
                masks(c)
            )
        }
        8 => format!(
            "    attn = mla(heads, {}, {}, {}, {}, {}, {}, rotary({{rope_theta: 100.0, rope_type: 'default'}}, '{}'), {}, {})\n",
            c.of(&["none", "5"]),
            c.number(&[4, 9, 30]),
            c.number(&[1, 4, 7]),
            c.number(&[2, 6]),
            c.number(&[3, 8]),
            c.of(&["rms_norm(1.0e-5)", "identity"]),
            c.of(&["interleaved", "halves"]),
            c.of(&["false", "true"]),
            masks(c)
        ),
        _ => format!("    attn = gqa(heads, kv, dh{options})\n"),
    };
    let _ = s;
    Sublayer { bindings, apply: "attn" }
}

/// Each channel's last tokens, weighted.
fn convolution(c: &mut Choices) -> String {
    let (kernel, bias) = (c.number(&[2, 3, 4, 7]), c.of(&["false", "true"]));
    let gate = c.of(&["silu(conv(x))", "conv(x)", "x * sigmoid(conv(tanh(x)))"]);
    format!(
        "    conv = causal_conv({kernel}, {bias})\n    back = linear(width)\n    attn(x) {{\n      return back({gate})\n    }}\n"
    )
}

/// What is kept of all tokens in a state: a vector, or a matrix.
fn recurrence(c: &mut Choices) -> String {
    let decay = c.of(&["0.7", "sigmoid(split(fade(x), heads))", "rows(sigmoid(k))"]);
    let made = match c.below(4) {
        0 => "scan(blend, zeros(heads * dh), merge(q), sigmoid(merge(v)))".to_owned(),
        1 => format!("merge(scan(linear_memory, zeros(heads, dh, dh), q, k, v, {decay}))"),
        2 => {
            format!("merge(scan(delta_memory, zeros(heads, dh, dh), q, k, v, {decay}, sigmoid(split(fade(x), heads))))")
        }
        _ => "scan(read, zeros(heads * dh, dh), merge(q), narrow_k(x), narrow_q(x))".to_owned(),
    };
    format!(
        "    q_proj, k_proj, v_proj = linear(heads * dh)\n    fade = linear(heads)\n    narrow_k, narrow_q = linear(dh)\n    back = linear(width)\n\
         \x20   attn(x) {{\n      blend(h, u, keep) {{\n        after = keep * h + (1 - keep) * u\n        return after, tanh(after)\n      }}\n\
         \x20     read(h, u, key, query) {{\n        after = tanh(0.5 * h + einsum('d, n -> dn', u, key))\n        return after, einsum('dn, n -> d', after, query)\n      }}\n\
         \x20     q = split(q_proj(x), heads)\n      k = tanh(split(k_proj(x), heads)) * dh ^ -0.5\n      v = split(v_proj(x), heads)\n      return back({made})\n    }}\n"
    )
}

/// Experts of one kind or of two, how they are chosen, and where their weights stand.
fn mixture(c: &mut Choices, act: &str, bias: &str) -> String {
    let n = c.number(&[2, 3, 4, 5, 6, 8, 9]);
    let chosen = 1 + c.below(n.min(4));
    let (inner, other) = (c.number(&[1, 3, 8, 16, 17, 33]), c.number(&[2, 5, 20]));
    let some = 1 + c.below(n - 1);
    let experts = match c.below(9) {
        0 | 1 => format!("gated_mlp({inner}, {act}, {bias})"),
        2 => format!("mlp({inner}, {act}, {bias})"),
        3 => "expert".to_owned(),
        4 => format!("linear(width, {bias})"),
        5 => format!("if e < {some} then mlp({inner}, {act}, {bias}) else identity"),
        6 => format!("if e < {some} then gated_mlp({inner}, {act}) else mlp({other}, tanh, {bias})"),
        7 => {
            format!("if e % 2 == 0 then expert else if e < {some} then identity else gated_mlp({other}, {act}, {bias})")
        }
        _ => "scaled".to_owned(),
    };
    let routing = match c.below(8) {
        0 => "p = softmax(r)\n      best = top_k(p, chosen)\n      w = take(p, best)",
        1 => "p = softmax(r)\n      best = top_k(p, chosen)\n      w = shares(take(p, best), true)",
        2 => "best = top_k(r, chosen)\n      w = softmax(take(r, best))",
        3 => "p = sigmoid(r)\n      best = top_k(p + moved, chosen)\n      w = 2.5 * shares(take(p, best), true)",
        4 => "best = top_k(r, chosen)\n      w = sigmoid(take(r, best))",
        5 => "best = top_k(softplus(r) + 0.1 * moved, chosen)\n      w = 1 + tanh(take(r, best))",
        // Groups of two, of which the best are left; where there are none, the same without.
        6 if n.is_multiple_of(2) => {
            "p = softmax(r)\n      open = best_groups(p, n // 2, (chosen + 1) // 2, elsewhere = 0)\n      best = top_k(open, chosen)\n      w = take(open, best)"
        }
        _ => "best = top_k(r, chosen)\n      w = 0.5",
    };
    let shared = c.of(&["", " + shared(x)", " + sigmoid(gate(x)) * shared(x)"]);
    let mixed = match c.below(4) {
        // The weights of several choices and the elements of a row are the same dimension unless they are told apart.
        0 if chosen == 1 => "mix(experts, best)(w * x)".to_owned(),
        1 => "mix(experts, best)(x)".to_owned(),
        2 => "mix(experts, best, w)(x) - 0.5 * mix(experts, best)(tanh(x))".to_owned(),
        _ => "mix(experts, best, w)(x)".to_owned(),
    };
    let router_bias = c.of(&["false", "true"]);
    format!(
        "    expert(x) {{\n      gate, up = linear({inner}, true)\n      down = linear(width, true)\n      g = min(gate(x), 0.7)\n\
         \x20     return down((max(min(up(x), 0.5), -0.5) + 1) * g * sigmoid(1.7 * g))\n    }}\n\
         \x20   scaled(x) {{\n      gain, shift = param[width]\n      return tanh(x * (1 + gain)) + shift\n    }}\n\
         \x20   ff(x) {{\n      n = {n}\n      chosen = {chosen}\n      router = linear(n, {router_bias})\n      moved = param[n]\n      gate = linear(1)\n\
         \x20     shared = gated_mlp({other}, {act}, {bias})\n      experts = [{experts} for e in 0..{n}]\n      r = router(x)\n      {routing}\n\
         \x20     return {mixed}{shared}\n    }}\n"
    )
}

fn feed_forward(c: &mut Choices) -> Sublayer {
    let act = activation(c);
    let bias = c.of(&["false", "true"]);
    let bindings = match c.below(9) {
        6..=8 => mixture(c, act, bias),
        0 | 1 => format!("    ff = gated_mlp(inner, {act}, {bias})\n"),
        2 => format!("    ff = mlp(inner, {act}, {bias})\n"),
        3 => format!(
            "    ff(x) {{\n      up = linear(inner, {bias})\n      down = linear(width)\n      gain = param[inner]\n      return down({act}(up(x)) * (1 + gain))\n    }}\n"
        ),
        4 => format!(
            "    ff(x) {{\n      both = linear(2 * inner, {bias})\n      down = linear(width)\n      a, b = parts(both(x), [inner, inner])\n      return down(max(a, 0) * {act}(b))\n    }}\n"
        ),
        _ => format!(
            "    ff(x) {{\n      narrow, wide = linear(3), linear(width, {bias})\n      gate = linear(1)\n      y = {act}(narrow(x))\n      return sigmoid(gate(x)) * wide(where(y > 0, y, 0.1 * y))\n    }}\n"
        ),
    };
    Sublayer { bindings, apply: "ff" }
}

fn layer(c: &mut Choices, s: &Sizes, numbered: bool, defined: bool) -> String {
    let (first, second) = (attention(c, s, defined, numbered), feed_forward(c));
    let mut body = format!("{}{}    n1, n2, n3, n4 = norm\n", first.bindings, second.bindings);
    let (f, g) = (first.apply, second.apply);
    let sublayer = |c: &mut Choices, name: &str, x: &str, f: &str, before: &str, after: &str| {
        let value = match c.below(8) {
            0 | 1 => format!("{x} + {f}({before}({x}))"),
            2 => format!("{before}({x} + {f}({x}))"),
            3 => format!("{x} + {after}({f}({before}({x})))"),
            4 => format!("{before}({x}) + {f}({before}({x}))"),
            5 => format!("{x} * 0.5 + {f}({before}({x})) * 1.5"),
            6 => format!("{before}({f}({x}))"),
            _ => format!("{x} + tanh(mean({x})) * {f}({before}({x}))"),
        };
        format!("    {name} = {value}\n")
    };
    match c.below(8) {
        6 => {
            // Two attentions in one block, the second over what the first read or over what it gave.
            let _ = writeln!(body, "    other = gqa(heads, heads, dh{})", attention_options(c, defined, numbered));
            let second = c.of(&["x", "h"]);
            let _ = writeln!(body, "    h = x + {f}(n1(x))\n    y = h + other(n2({second})) + {g}(n3(h))");
        }
        7 => {
            // Keys and values from another stream than the queries.
            let _ = writeln!(
                body,
                "    cross = gqa(heads, kv, dh)\n    h = n1(x)\n    m = tanh(x) + h\n    y = x + cross(h, m) + {g}(n2(x))"
            );
        }
        0..=2 => {
            body += &sublayer(c, "h", "x", f, "n1", "n3");
            body += &sublayer(c, "y", "h", g, "n2", "n4");
        }
        3 => {
            let _ = writeln!(body, "    y = x + {f}(n1(x)) + {g}(n2(x))");
        }
        4 => {
            body += &sublayer(c, "h", "x", g, "n1", "n3");
            body += &sublayer(c, "y", "h", f, "n2", "n4");
        }
        _ => {
            let _ = writeln!(body, "    h = n1(x)\n    y = x + {f}(h) + {g}(h)");
        }
    }
    let even = s.width.is_multiple_of(2);
    let extra = match c.below(14) {
        5 => "y * (1 + 0.01 * q_pos)",
        6 => "where(y > 3, 3, y)",
        7 if even => "merge(transpose(transpose(split(y, 2))))",
        8 => "y - 0.5 * mean(y)",
        9 => "y / (1 + reduce(abs(y), 'max'))",
        10 if even => "join(parts(y, [width / 2, width / 2])[1], parts(y, [width / 2, width / 2])[0])",
        11 if even => "merge(split(y, 2) * sum(split(y, 2) * 0.1) + split(y, 2))",
        12 if even => "0.5 * merge(repeat(split(parts(y, [width / 2, width / 2])[0], 1), 2)) + y",
        13 => "y * (1 + index(width) * 0.01)",
        _ => "y",
    };
    let _ = writeln!(body, "    return {extra}");
    body
}

fn model(c: &mut Choices, s: &Sizes, numbered: bool) -> String {
    let mut out = String::new();
    let floats = c.one_in(6);
    let input = if floats { "x0: f32[tokens, width]" } else { "ids: i64[tokens]" };
    let _ = writeln!(out, "  model({input}) {{");
    let tied = !floats && c.one_in(2);
    if !floats {
        out += "    table = embedding(vocab, width)\n";
    }
    let _ = writeln!(
        out,
        "    layers = [layer{} for i in 0..n_layers]\n    last = {}\n    head_out = {}",
        if numbered { "(i)" } else { "" },
        norm(c),
        if tied { "unembedding(table)" } else { "linear(vocab)" }
    );
    let start = match (floats, c.below(5)) {
        (true, _) => "x0",
        (false, 3) => "table(ids) * width ^ 0.5",
        (false, 4) => {
            out += "    places = embedding(96, width)\n";
            "table(ids) + places(q_pos)"
        }
        (false, 2) => "table(ids) + 0.1 * sin(q_pos * 0.3 + index(width))",
        (false, _) => "table(ids)",
    };
    let _ = writeln!(out, "    y = last(layers({start}))");
    let result = match c.below(5) {
        0..=2 => "{logits: head_out(y)}",
        3 => "{logits: head_out(y), hidden: y}",
        _ => "{hidden: tanh(y) * 2, logits: 5 * tanh(head_out(y) / 5)}",
    };
    let _ = writeln!(out, "    return {result}\n  }}");
    let _ = s;
    out
}

/// A card with one mistake, or what may be one.
fn damaged(c: &mut Choices, text: &str) -> String {
    match c.below(6) {
        0 => text.replacen("width: ", "width: 1", 1),
        1 => text.replacen("n1(", "n5(", 1),
        2 => text.replacen("cache(", "(", 1),
        3 => text.replacen("kv: ", "kv: 7", 1),
        4 => text.replacen(" = ", " == ", 2),
        _ => {
            let at = c.below(text.len() as u64) as usize;
            let at = (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            format!("{}{}{}", &text[..at], c.of(&["(", "0", "}", " - 1", " x "]), &text[at..])
        }
    }
}
