//! Tables and block diagrams of models: what is told of small ones, wired so that every row has something to say.

use xfc_lang::view::{Survey, recognised, survey, survey_html, survey_json, survey_svg, survey_text};
use xfc_lang::{ElaborateOptions, Library, elaborate};

const CONTEXTS: [u64; 2] = [64, 1024];

/// The survey of a card with this wiring.
fn of(name: &str, wiring: &str) -> Survey {
    let lines: Vec<String> = wiring.lines().map(|l| format!("  {l}\n")).collect();
    let card = format!("xfc: 1\nname: Small\nsizes: {{}}\nwiring: |\n{}", lines.concat());
    let spec = xfc_lang::spec::parse_card("small.yaml", &card, &Library::embedded());
    let model = spec.and_then(|s| elaborate(&s, &ElaborateOptions::default())).unwrap_or_else(|e| panic!("{e}"));
    survey(&recognised(&model.program), &model.arch, name, false)
}

/// Windows in turn, two bases, norms before and after, a cap.
fn windowed() -> Survey {
    of(
        "windowed",
        "norm = rms_norm(1.0e-6, offset = 1)
layer(i)(x) {
  a, b, c, d = norm
  attn = gqa(4, 2, 8, qk_norm = rms_norm(1.0e-6), scores = 30 * tanh(score / 30), mask = if i % 3 == 2 then causal else window(16),
             rotate = rotary({rope_theta: if i % 3 == 2 then 1000000.0 else 10000.0, rope_type: 'default'}))
  mlp = gated_mlp(48, gelu_tanh)
  h = x + b(attn(a(x)))
  return h + d(mlp(c(h)))
}
model(ids: i64[tokens]) {
  table = embedding(160, 32)
  layers = [layer(i) for i in 0..6]
  last = norm
  return {logits: unembedding(table)(last(layers(32 ^ 0.5 * table(ids))))}
}",
    )
}

/// Learned positions, both sublayers of one stream, biases; the first layer without a norm, another with none of it.
fn parallel() -> Survey {
    of(
        "parallel",
        "layer(i)(x) {
  one, two = layer_norm(1.0e-5)
  attn = gqa(4, 4, 8, true, scale = 1)
  mlp = mlp(64, relu, true)
  return x + attn(one(x)) + mlp(two(x))
}
odd(x) {
  kernel = param[32, 32]
  return einsum('ni,oi->no', x, kernel) * 2
}
model(ids: i64[tokens]) {
  words = embedding(160, 32)
  places = embedding(128, 32)
  before = layer_norm(1.0e-5)
  layers = [if i == 3 then odd else layer(i) for i in 0..4]
  out = linear(160, true)
  return {logits: out(layers(before(words(ids) + places(q_pos))))}
}",
    )
}

/// Norms after the sum, an encoder that a decoder reads, and an activation without a name.
fn translating() -> Survey {
    of(
        "translating",
        "norm = layer_norm(1.0e-5)
act(t) = t * t * sin(t)
encode(x) {
  attn = gqa(2, 2, 8, mask = all)
  ff = mlp(32, act)
  one, two = norm
  h = one(x + attn(x))
  return two(h + ff(h))
}
model(ids: i64[source], out_ids: i64[tokens]) {
  table = embedding(160, 16)
  encoder = [encode for i in 0..2]
  memory = encoder(table(ids) + sinusoids(table(ids)))
  decode(x) {
    attn = gqa(2, 1, 8)
    cross = gqa(2, 2, 8, mask = all)
    ff = mlp(32, silu)
    one, two, three = norm
    h = one(x + attn(x))
    c = two(h + cross(h, memory))
    return three(c + ff(c))
  }
  decoder = [decode for i in 0..3]
  return {logits: unembedding(table)(decoder(table(out_ids)))}
}",
    )
}

#[test]
fn what_is_told_follows_from_the_graph() {
    insta::assert_snapshot!(survey_text(&[windowed(), parallel(), translating()], &CONTEXTS));
}

#[test]
fn programs_get_every_layer() {
    let json = survey_json(&[windowed(), parallel()], &CONTEXTS);
    assert!(json["differing"].as_array().is_some_and(|d| d.contains(&"norm_placement".into())), "{json:#}");
    let kinds = json["models"][0]["stacks"][0]["kinds"].as_array().map(Vec::len);
    assert_eq!(kinds, Some(2), "{json:#}");
    insta::assert_snapshot!(format!("{:#}", json["models"][0]["stacks"][0]["kinds"][1]));
    // 6 layers keep 2 heads of 8 twice: 384 values a token; four of the layers keep 16 tokens.
    assert_eq!(json["models"][0]["facts"]["cache_bytes_per_token"]["value"], 384);
    assert_eq!(json["models"][0]["facts"]["cache_bytes_1024"]["value"], 64 * (2 * 1024 + 4 * 16));
}

#[test]
fn one_model_alone_has_no_differences() {
    let text = survey_text(&[windowed()], &CONTEXTS);
    assert!(text.lines().all(|l| !l.starts_with('~')), "{text}");
    let twice = survey_text(&[windowed(), windowed()], &CONTEXTS);
    assert!(twice.lines().all(|l| !l.starts_with('~')), "{twice}");
    let drawn = survey_html(&[windowed(), windowed()], &CONTEXTS);
    assert!(!drawn.contains("class=\"node attention shape-card mark-changed"), "the same model differs from itself");
}

#[test]
fn drawings_hold_every_model_and_no_markup_of_names() {
    let evil = r#"</title><script>alert(1)</script><img src=x onerror=alert(2)>" ' &"#;
    let mut named = windowed();
    named.name = evil.to_owned();
    named.title = evil.to_owned();
    let all = [named, parallel(), translating()];
    for drawn in [survey_svg(&all, &CONTEXTS), survey_html(&all, &CONTEXTS)] {
        assert!(!drawn.contains("<script") && !drawn.contains("<img") && !drawn.contains("NaN"), "{drawn}");
        for expected in [
            "Grouped-query attention",
            "GeGLU (tanh) feed-forward",
            "Multi-head attention",
            "cross-attention",
            "mark-added",
        ] {
            assert!(drawn.contains(expected), "no `{expected}`");
        }
        assert_eq!(drawn.matches("<g class=\"frame").count(), drawn.matches("class=\"frame").count());
        let ids: Vec<&str> = drawn.split(" id=\"").skip(1).filter_map(|t| t.split('"').next()).collect();
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ids.len(), "ids are twice");
    }
    assert_eq!(survey_svg(&all, &CONTEXTS), survey_svg(&all, &CONTEXTS));
}

/// Experts chosen by a softmax, one that all tokens meet, and a first layer without.
fn mixed() -> Survey {
    of(
        "mixed",
        "experts(x) {
  router = linear(8)
  gate = param[8, 24, 32]
  up = param[8, 24, 32]
  down = param[8, 32, 24]
  scores = softmax(router(x))
  chosen = top_k(scores, 2)
  g = silu(einsum('ti, taoi -> tao', x, gather(gate, chosen)))
  u = einsum('ti, taoi -> tao', x, gather(up, chosen))
  y = einsum('tai, taoi -> tao', g * u, gather(down, chosen))
  return einsum('tao, ta -> to', y, take(scores, chosen))
}
layer(i)(x) {
  one, two = rms_norm(1.0e-5)
  attn = gqa(4, 2, 8)
  dense = gated_mlp(64, silu)
  mixture = experts
  shared = gated_mlp(48, silu)
  h = x + attn(one(x))
  n = two(h)
  return h + (if i == 0 then dense(n) else mixture(n) + shared(n))
}
model(ids: i64[tokens]) {
  table = embedding(160, 32)
  layers = [layer(i) for i in 0..3]
  return {logits: unembedding(table)(layers(table(ids)))}
}",
    )
}

#[test]
fn mixtures_are_told_with_who_chooses() {
    let json = survey_json(&[mixed()], &CONTEXTS);
    let facts = &json["models"][0]["facts"];
    for (key, expected) in [
        ("mixture", "8 of 24, 2 chosen (softmax), shared of 48 (layers 1-2)"),
        ("inner_width", "64 (layer 0), 24 of each expert (layers 1-2)"),
        ("activation", "SwiGLU"),
        ("residual", "one after another"),
        ("norm_placement", "before sublayers (pre-norm)"),
        ("other", ""),
    ] {
        assert_eq!(facts[key]["text"].as_str().unwrap_or_default(), expected, "{key}");
    }
    // Of the experts, a token meets two.
    let one = |experts: f64| 2.0 * 3.0 * 24.0 * 32.0 * experts;
    let shared = 2.0 * 3.0 * 48.0 * 32.0;
    let attention = 2.0 * 32.0 * (32.0 + 16.0 + 16.0 + 32.0);
    let flops = 3.0 * attention + 2.0 * 3.0 * 64.0 * 32.0 + 2.0 * (one(2.0) + shared);
    let told = facts["prefill_flops_64"]["value"].as_f64().unwrap_or_default();
    assert!((flops..1.35 * flops).contains(&told), "{told} and {flops}");
    assert!(survey_svg(&[mixed()], &CONTEXTS).contains("Mixture of SwiGLU experts"));
}

/// A token after others reads what is kept as it is, for all heads; a prompt makes keys and values of its heads.
#[test]
fn latent_attention_is_counted_as_it_is_compiled() {
    let latent = of(
        "latent",
        "layer(x) {
  attn = mla(8, none, 64, 16, 8, 16, rms_norm(1.0e-6), rotary({rope_theta: 10000.0}))
  return x + attn(x)
}
model(ids: i64[tokens]) {
  table = embedding(160, 64)
  layers = [layer for i in 0..2]
  return {logits: unembedding(table)(layers(table(ids)))}
}",
    );
    let json = survey_json(&[latent], &CONTEXTS);
    let number = |key: &str| json["models"][0]["facts"][key]["value"].as_f64().unwrap_or_default();
    let [few, many] = CONTEXTS.map(|n| n as f64);
    // For each key two products and the softmax; a prompt sees half of its keys on average.
    let absorbed = 2.0 * 8.0 * (2.0 * (64.0 + 8.0) + 2.0 * 64.0);
    let slope = (number("decode_flops_1024") - number("decode_flops_64")) / (many - few);
    assert!((absorbed..1.1 * absorbed).contains(&slope), "{slope} and {absorbed}");
    let expanded = 2.0 * 8.0 * (2.0 * (16.0 + 8.0) + 2.0 * 16.0);
    let slope = 2.0 * (number("prefill_flops_1024") - number("prefill_flops_64")) / (many - few);
    assert!((expanded..1.1 * expanded).contains(&slope), "{slope} and {expanded}");
    // Whichever it is, each matrix is multiplied once: queries, the latent, up and down again, the head.
    let matrices = 2.0 * (64.0 * 8.0 * 24.0 + 64.0 * 72.0 + 64.0 * 8.0 * 32.0 + 8.0 * 16.0 * 64.0) * 2.0;
    let fixed = number("decode_flops_64") - few * absorbed - 2.0 * 64.0 * 160.0;
    assert!((matrices..1.15 * matrices).contains(&fixed), "{fixed} and {matrices}");
}
