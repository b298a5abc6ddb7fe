//! Products with weights in blocks of narrow integers: every form and group, on odd sizes, compiled for each target and compared with the interpreter.

use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::quantise::{Plan, StoredForm, prepare};
use xfc_runtime::artifact::manifest::{Pack, Products};
use xfc_runtime::step::InputData::Floats;
use xfc_tests::Result;
use xfc_tests::compare::{Precision, Tier};
use xfc_tests::program::{Given, agree, agree_in_turn, agree_on, agree_to, artifact, manifest, of_wiring};

use crate::mixtures::Mixture;
use crate::programs::floats;

/// The forms that weights can have, in every group.
pub(crate) fn all_blocks() -> impl Iterator<Item = Blocks> {
    let forms = BlockForm::ALL.into_iter().filter(|form| form.is_of_weights());
    forms.flat_map(|form| Blocks::GROUPS.into_iter().map(move |group| Blocks::weights(form, group)))
}

/// The wiring's program with its matrices held as the plan says.
pub(crate) fn held(wiring: &str, dtype: DType, plan: &str) -> String {
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

/// The product of one matrix, held so, by what tokens bring.
pub(crate) fn product(blocks: Blocks, inputs: usize, outputs: usize) -> String {
    format!(
        "program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, {inputs}]) {{\n\
         \x20 %1 = weight {{path = \"w\"}} : f32[{outputs}, {inputs}]\n\
         \x20 %2 = cast %1 : {blocks}[{outputs}, {inputs}]\n\
         \x20 %3 = cast %0 : {tokens}[tokens, {inputs}]\n\
         \x20 %4 = contract %3, %2 {{spec = \"ni,oi->no\"}} : f32[tokens, {outputs}]\n\
         \x20 return y = %4\n}}\n",
        tokens = blocks.of_tokens()
    )
}

/// Each level has instructions of its own for sums of products of bytes, and some for bytes of few bits alone.
#[test]
fn every_level_multiplies() {
    for blocks in all_blocks().filter(|blocks| blocks.group == 64) {
        let text = product(blocks, 131, 70);
        agree_on(&text, &steps(131), &["cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4"])
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

/// Rows and columns that fill no tile or several, and products that share their inputs.
#[test]
fn registers_that_hold_tiles_multiply() -> Result<()> {
    let agree = |text: &str, steps: &[Vec<Given<'static>>]| {
        agree_on(text, steps, &["cpu:x86-64-v4+amx-int8"]).map_err(|e| format!("{e}\n{text}"))
    };
    for (i, blocks) in all_blocks().enumerate() {
        let rows = if i % 4 == 0 { &[9, 16, 50, 131][..] } else { &[50, 17] };
        let steps: Vec<_> = rows.iter().map(|rows| vec![("x", Floats(floats(rows * 203)))]).collect();
        agree(&product(blocks, 203, 90), &steps)?;
    }
    let wiring = "model(x: f32[tokens, 72]) {\n\
        \x20 gate = linear(150)\n  up = linear(150)\n  q = linear(34, true)\n  k = linear(34, true)\n  v = linear(34, true)\n\
        \x20 return {gated: silu(gate(x)) * up(x) + 1, all: q(x) + k(x) * v(x)}\n}";
    for plan in ["int8:g64", "uint4:g32"] {
        let steps: Vec<_> = [65, 9, 130].map(|n| vec![("x", Floats(floats(n * 72)))]).into();
        agree(&held(wiring, DType::F32, plan), &steps)?;
    }
    // Experts that no token chose, one, or all of them.
    let of = |width, inner| {
        let mixture = Mixture { experts: 5, chosen: 2, width, inner };
        let all = [(9, None), (150, None), (150, Some(4)), (5, None)];
        let steps = all.map(|(rows, chosen)| mixture.step(rows, chosen));
        (mixture, steps)
    };
    let (mixture, steps) = of(96, 64);
    agree_on(&mixture.program("bf16"), &steps, &["cpu:x86-64-v4+amx-bf16"])?;
    let (mixture, steps) = of(72, 90);
    for plan in ["int8:g32", "uint4:g64"] {
        let mut program = parse(&mixture.program("f32"))?;
        prepare(&mut program, DType::F32, DType::F32, &plan.parse()?)?;
        agree(&program.to_string(), &steps)?;
    }
    Ok(())
}

/// Where operands are bf16 anyway, small groups are multiplied as bf16 in steps of many rows, where what tokens bring is not rounded to 8 bits.
#[test]
fn registers_that_hold_tiles_multiply_small_groups_as_bf16() -> Result<()> {
    let all = ["cpu:x86-64-v4+amx-bf16+amx-int8", "cpu:x86-64-v4+amx-bf16"];
    let agree = |text: &str, steps: &[Vec<Given<'static>>], target: &str| {
        let targets = [xfc_codegen::target::parse(target).map_err(|e| e.to_string())?];
        agree_to(text, steps, &targets, (Tier::Value, Precision::BF16)).map_err(|e| format!("{e}\n{text}"))
    };
    for (i, blocks) in all_blocks().filter(|blocks| !blocks.form.is_float()).enumerate() {
        let rows = if i % 4 == 0 { &[9, 16, 1, 50, 307, 7][..] } else { &[50, 3, 17] };
        for (inputs, outputs) in [(203, 90), (288, 64), (7, 3)].into_iter().take(if i % 3 == 0 { 3 } else { 1 }) {
            let text = product(blocks, inputs, outputs).replacen("\"w\"} : f32", "\"w\"} : bf16", 1);
            let steps: Vec<_> = rows.iter().map(|rows| vec![("x", Floats(floats(rows * inputs)))]).collect();
            agree(&text, &steps, all[i % 2])?;
        }
    }
    let wiring = "model(x: f32[tokens, 72]) {\n\
        \x20 gate = linear(150)\n  up = linear(150)\n  q = linear(34, true)\n  k = linear(34, true)\n  v = linear(34, true)\n\
        \x20 return {gated: silu(gate(x)) * up(x) + 1, all: q(x) + k(x) * v(x)}\n}";
    for plan in ["int8:g64", "uint4:g32", "int4:g64,up=int8:g128,q=none"] {
        let steps: Vec<_> = [65, 9, 1, 130].map(|n| vec![("x", Floats(floats(n * 72)))]).into();
        agree(&held(wiring, DType::BF16, plan), &steps, all[0])?;
    }
    let mixture = Mixture { experts: 5, chosen: 2, width: 72, inner: 90 };
    let steps = [mixture.step(9, None), mixture.step(3, None), mixture.step(150, None), mixture.step(150, Some(4))];
    for plan in ["int8:g32", "uint4:g64"] {
        let mut program = parse(&mixture.program("f32"))?;
        prepare(&mut program, DType::BF16, DType::BF16, &plan.parse()?)?;
        agree(&program.to_string(), &steps, all[0])?;
    }
    Ok(())
}

#[test]
fn every_form_and_group_multiplies() {
    for (i, blocks) in all_blocks().enumerate() {
        // No multiple of a group, a panel or a run of inputs, the last group has less than a vector; whole groups; less than one; one.
        let sizes = [(131, 70), (64, 16), (7, 3), (1, 5)];
        for (inputs, outputs) in sizes.into_iter().take(if i % 5 == 0 { 4 } else { 1 }) {
            let text = product(blocks, inputs, outputs);
            agree_in_turn(i, &text, &steps(inputs)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
    }
}

/// What is stored so is held so where its groups lie along a product's inputs, whole, and nowhere rounds it on the way.
#[test]
fn stored_groups_stay_where_they_lie_along_inputs() {
    let text = "program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, 64]) {\n\
        \x20 %1 = weight {path = \"a\"} : f32[70, 64]\n\
        \x20 %2 = contract %0, %1 {spec = \"ni,oi->no\"} : f32[tokens, 70]\n\
        \x20 %3 = weight {path = \"b\"} : f32[64, 71]\n\
        \x20 %4 = transpose %3 {perm = [1, 0]} : f32[71, 64]\n\
        \x20 %5 = contract %0, %4 {spec = \"ni,oi->no\"} : f32[tokens, 71]\n\
        \x20 %6 = weight {path = \"c\"} : f32[64, 72]\n\
        \x20 %7 = transpose %6 {perm = [1, 0]} : f32[72, 64]\n\
        \x20 %8 = contract %0, %7 {spec = \"ni,oi->no\"} : f32[tokens, 72]\n\
        \x20 %9 = weight {path = \"d\"} : f32[73, 128]\n\
        \x20 %10 = slice %9 {dim = 1, start = 32} : f32[73, 64]\n\
        \x20 %11 = contract %0, %10 {spec = \"ni,oi->no\"} : f32[tokens, 73]\n\
        \x20 %12 = weight {path = \"e\"} : f32[148, 64]\n\
        \x20 %13 = slice %12 {dim = 0, start = 74} : f32[74, 64]\n\
        \x20 %14 = contract %0, %13 {spec = \"ni,oi->no\"} : f32[tokens, 74]\n\
        \x20 return a = %2, b = %5, c = %8, d = %11, e = %14\n}\n";
    let four = Blocks { stored: true, ..Blocks::weights(BlockForm::Uint4, 32) };
    let forms = [("a", 1), ("b", 0), ("c", 1), ("d", 1), ("e", 1)]
        .map(|(path, along)| (path.to_owned(), StoredForm { blocks: four, along }));
    for dtype in [DType::F32, DType::BF16] {
        let mut program = parse(text).unwrap_or_else(|e| panic!("{e}"));
        let plan = Plan::stored(forms.clone().into());
        prepare(&mut program, dtype, dtype, &plan).unwrap_or_else(|e| panic!("{e}"));
        let held = program.to_string();
        for (rows, blocks) in
            [(70, "uint4g32stored"), (71, "uint4g32stored"), (72, "int8g32"), (73, "int8g32"), (74, "uint4g32stored")]
        {
            assert!(held.contains(&format!(" : {blocks}[{rows}, 64]")), "{rows}: {held}");
        }
        // Tokens bring what they bring to all of them once.
        assert_eq!(held.matches("token8g32[tokens, 64]").count(), 1, "{held}");
        let narrow = held.lines().filter(|line| line.contains("= weight") && line.contains("bf16")).count();
        assert_eq!(narrow, if dtype == DType::BF16 { 2 } else { 0 }, "{held}");
        artifact(&held).unwrap_or_else(|e| panic!("{e}\n{held}"));
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

/// One of several products of the same numbers is computed for wanted rows only: its rows are taken before they are rounded.
#[test]
fn wanted_rows_of_what_all_rows_need() {
    let wiring = "model(x: f32[tokens, 70]) {\n\
        \x20 mlp = gated_mlp(44, silu)\n\
        \x20 aside = linear(33)\n\
        \x20 h = x + mlp(x)\n\
        \x20 k, v = parts(h, [35, 35])\n\
        \x20 seen = attend(split(k, 5), cache(split(k, 5)), cache(split(v, 5)), causal)\n\
        \x20 return {seen: merge(seen), aside: aside(x)}\n}";
    let text = held(wiring, DType::F32, "int4");
    agree(&text, &steps(70)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let narrow = held(wiring, DType::BF16, "int4");
    artifact(&narrow).unwrap_or_else(|e| panic!("{e}\n{narrow}"));
}

/// Gates with two matrices, biases, residuals, norms before and rows of heads: what follows and precedes products stays fused with them.
#[test]
fn what_surrounds_products_stays() {
    let wiring = "model(x: f32[tokens, 72]) {\n\
        \x20 norm = rms_norm(1.0e-6)\n  mlp = gated_mlp(150, silu)\n  q, k, v = linear(36, true)\n  wide = linear(80)\n  narrow = linear(24)\n\
        \x20 h = x + mlp(norm(x))\n\
        \x20 heads = split(narrow(split(h, 3)), 2)\n\
        \x20 return {y: h + linear(72, true)(silu(wide(h))), q: q(h), k: k(h), v: v(h)}\n}";
    for plan in ["int8", "uint4:g32,mlp.down_proj=int8:g128,k=none", "fp8:g64,wide=fp8:g32,mlp.down_proj=int4"] {
        let text = held(wiring, DType::F32, plan);
        agree(&text, &steps(72)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let narrow = held(wiring, DType::BF16, plan);
        artifact(&narrow).unwrap_or_else(|e| panic!("{e}\n{narrow}"));
    }
}
