//! Products with weights in blocks of narrow integers: every form and group, on odd sizes, compiled for each target and compared with the interpreter.

use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::manifest::{Pack, Products};
use xfc_runtime::step::InputData::Floats;
use xfc_tests::program::{Given, agree, agree_in_turn, artifact, manifest, of_wiring};

use crate::programs::floats;

/// The forms that weights can have, in every group.
fn all_blocks() -> impl Iterator<Item = Blocks> {
    let forms = BlockForm::ALL.into_iter().filter(|form| form.is_of_weights());
    forms.flat_map(|form| Blocks::GROUPS.into_iter().map(move |group| Blocks { form, group }))
}

/// The wiring's program with its matrices held as the plan says.
fn held(wiring: &str, dtype: DType, plan: &str) -> String {
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
    let mut program = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let plan: Plan = plan.parse().unwrap_or_else(|e| panic!("{e}"));
    prepare(&mut program, dtype, dtype, &plan).unwrap_or_else(|e| panic!("{e}"));
    program.to_string()
}

/// Steps of as many rows as a register tile has, fewer, more and one.
fn steps(width: usize) -> [Vec<Given<'static>>; 5] {
    [1, 5, 8, 13, 50].map(|rows| vec![("x", Floats(floats(rows * width)))])
}

#[test]
fn every_form_and_group_multiplies() {
    for (i, blocks) in all_blocks().enumerate() {
        // No multiple of a group, a panel or a run of inputs, the last group has less than a vector; whole groups; less than one.
        let sizes = [(131, 70), (64, 16), (7, 3)];
        for (inputs, outputs) in sizes.into_iter().take(if i % 5 == 0 { 3 } else { 1 }) {
            let text = format!(
                "program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, {inputs}]) {{\n\
                 \x20 %1 = weight {{path = \"w\"}} : f32[{outputs}, {inputs}]\n\
                 \x20 %2 = cast %1 : {blocks}[{outputs}, {inputs}]\n\
                 \x20 %3 = cast %0 : {tokens}[tokens, {inputs}]\n\
                 \x20 %4 = contract %3, %2 {{spec = \"ni,oi->no\"}} : f32[tokens, {outputs}]\n\
                 \x20 return y = %4\n}}\n",
                tokens = blocks.of_tokens()
            );
            agree_in_turn(i, &text, &steps(inputs)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
    }
}

#[test]
fn what_is_read_is_counted_in_bits() {
    let wiring = "model(x: f32[tokens, 128]) {\n  up = linear(70)\n  return {y: up(x)}\n}";
    for (plan, bytes) in [("int4:g64", 70 * (64 + 4)), ("uint8:g32", 70 * (128 + 16)), ("none", 70 * 512)] {
        let manifest = manifest(&held(wiring, DType::F32, plan)).unwrap_or_else(|e| panic!("{e}"));
        let costs = manifest.launches.iter().filter_map(|launch| launch.cost.as_ref());
        let weights: u64 = costs.clone().map(|cost| cost.weight_bytes).sum();
        assert_eq!(weights, bytes, "{plan}");
        assert_eq!(manifest.weights[0].stored_bytes(), bytes, "{plan}");
        let of = costs.filter_map(|cost| cost.products).collect::<Vec<_>>();
        assert_eq!(of, [if plan == "none" { Products::Single } else { Products::Byte }]);
        assert_eq!(matches!(manifest.weights[0].pack, Pack::Blocks(_)), plan != "none");
    }
}

/// Gates with two matrices, biases, residuals, norms before and rows of heads: what follows and precedes products stays fused with them.
#[test]
fn what_surrounds_products_stays() {
    let wiring = "model(x: f32[tokens, 72]) {\n\
        \x20 norm = rms_norm(1.0e-6)\n  mlp = gated_mlp(150, silu)\n  q, k, v = linear(36, true)\n  wide = linear(80)\n  narrow = linear(24)\n\
        \x20 h = x + mlp(norm(x))\n\
        \x20 heads = split(narrow(split(h, 3)), 2)\n\
        \x20 return {y: h + linear(72, true)(silu(wide(h))), q: q(h), k: k(h), v: v(h)}\n}";
    for plan in ["int8", "uint4:g32,mlp.down_proj=int8:g128,k=none"] {
        let text = held(wiring, DType::F32, plan);
        agree(&text, &steps(72)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let narrow = held(wiring, DType::BF16, plan);
        artifact(&narrow).unwrap_or_else(|e| panic!("{e}\n{narrow}"));
    }
}
