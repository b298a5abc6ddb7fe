//! Tables that are matrices of products too are held once, as the products read them: rows come out of panels, of numbers and of integers of few
//! bits, compiled for each target and compared with the interpreter.

use std::fs;

use xfc_codegen::driver::{Options, fuse, outline};
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::manifest::{BufferRef, Launch, Manifest, Pack};
use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::Result;
use xfc_tests::case::Case;
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::compile::artifact;
use xfc_tests::emulate::{AARCH64_MAX, CORTEX_A53, X86_64};
use xfc_tests::model;
use xfc_tests::program::{Given, agree, agree_in_turn, manifest, of_wiring};

use crate::commands::shell;
use crate::programs::floats;

/// Steps of one row, few and many; every row of the table is asked for, the last one first.
fn steps(rows: usize, inputs: usize) -> Vec<Vec<Given<'static>>> {
    [1, 5, 40].into_iter().map(|n| given(n, rows, inputs)).collect()
}

fn given(n: usize, rows: usize, inputs: usize) -> Vec<Given<'static>> {
    let ids = |from: usize, n: usize| Ints((0..n).map(|i| ((from + i * 7) % rows) as i64).collect());
    vec![("id", ids(rows - 1, n)), ("ids", ids(3, n * 3)), ("x", Floats(floats(n * inputs)))]
}

/// A table `w` of which one row and three are looked up for each token, and the product with it; `held` makes `%11`, the table, and `%12`, the matrix.
fn program((rows, inputs): (usize, usize), held: &str, table: &str, brought: &str) -> String {
    format!(
        "program \"p\" axes [tokens]\n\n\
         graph 0 \"model\" (%0 id: i64[tokens], %1 ids: i64[tokens, 3], %2 x: f32[tokens, {inputs}]) {{\n\
         {held}\
         \x20 %20 = gather %11, %0 : {table}[tokens, {inputs}]\n\
         \x20 %21 = cast %20 : f32[tokens, {inputs}]\n\
         \x20 %22 = gather %11, %1 : {table}[tokens, 3, {inputs}]\n\
         \x20 %23 = cast %22 : f32[tokens, 3, {inputs}]\n\
         \x20 %24 = exp %23 : f32[tokens, 3, {inputs}]\n\
         \x20 %25 = add %2, %21 : f32[tokens, {inputs}]\n\
         \x20 %26 = cast %25 : {brought}[tokens, {inputs}]\n\
         \x20 %27 = contract %26, %12 {{spec = \"ni,oi->no\"}} : f32[tokens, {rows}]\n\
         \x20 return one = %21, three = %24, y = %27\n}}\n"
    )
}

/// Asserts that all launches of a program read one weight, in panels.
fn held_once(text: &str) -> Manifest {
    let manifest = manifest(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(manifest.weights.len(), 1, "{:#?}\n{text}", manifest.weights);
    assert_ne!(manifest.weights[0].pack, Pack::Plain, "{text}");
    manifest
}

/// No multiples of panels and groups, multiples, and less than one.
const SIZES: [(usize, usize); 5] = [(131, 37), (64, 64), (70, 131), (5, 1), (1, 8)];

#[test]
fn rows_of_numbers_come_out_of_panels() {
    for (i, (rows, inputs)) in SIZES.into_iter().enumerate() {
        for dtype in ["f32", "bf16"] {
            let held = format!(
                "  %11 = weight {{path = \"w\"}} : {dtype}[{rows}, {inputs}]\n\
                 \x20 %12 = reshape %11 : {dtype}[{rows}, {inputs}]\n"
            );
            let text = program((rows, inputs), &held, dtype, dtype);
            let steps = steps(rows, inputs);
            let agreed = if i < 2 { agree(&text, &steps) } else { agree_in_turn(i, &text, &steps) };
            agreed.unwrap_or_else(|e| panic!("{e}\n{text}"));
            let manifest = held_once(&text);
            // A row for each token, and three.
            let size = if dtype == "f32" { 4 } else { 2 };
            let looked_up: u64 = manifest.launches.iter().flat_map(|l| l.cost).map(|cost| cost.row_weight_bytes).sum();
            assert_eq!(looked_up, 4 * inputs as u64 * size);
        }
    }
}

#[test]
fn rows_of_integers_come_out_of_panels() {
    let forms = BlockForm::ALL.into_iter().filter(|form| form.is_of_weights());
    let all = forms.flat_map(|form| Blocks::GROUPS.into_iter().map(move |group| Blocks::weights(form, group)));
    for (i, blocks) in all.enumerate() {
        let (rows, inputs) = SIZES[i % SIZES.len()];
        for narrow in ["f32", "bf16"] {
            let held = format!(
                "  %9 = weight {{path = \"w\"}} : {narrow}[{rows}, {inputs}]\n\
                 \x20 %12 = cast %9 : {blocks}[{rows}, {inputs}]\n\
                 \x20 %11 = cast %12 : {narrow}[{rows}, {inputs}]\n"
            );
            let text = program((rows, inputs), &held, narrow, &blocks.of_tokens().to_string());
            let agreed =
                if i == 2 { agree(&text, &steps(rows, inputs)) } else { agree_in_turn(i, &text, &steps(rows, inputs)) };
            agreed.unwrap_or_else(|e| panic!("{e}\n{text}"));
            let manifest = held_once(&text);
            let looked_up: u64 = manifest.launches.iter().flat_map(|l| l.cost).map(|cost| cost.row_weight_bytes).sum();
            assert_eq!(looked_up, 4 * blocks.row_bytes(inputs as u64), "{blocks}");
        }
    }
}

/// What panels do not hold as it is read has a copy of its own.
#[test]
fn other_numbers_are_held_apart() {
    let wirings = [
        // The product's matrix lies the other way, or is a part of the table.
        "  y = einsum('ni, io -> no', x, w)\n  return {rows: gather(w, ids), y: y}",
        "  part = parts(w, [4, 12])[0]\n  y = einsum('ni, oi -> no', parts(x, [4, 12])[0], part)\n  return {rows: gather(w, ids), y: y}",
        // The table is read otherwise too.
        "  y = einsum('ni, oi -> no', x, w)\n  return {rows: gather(w, ids) + gather(w * 2, ids), y: y}",
    ];
    for (i, wiring) in wirings.into_iter().enumerate() {
        let wiring = format!("model(ids: i64[tokens], x: f32[tokens, 16]) {{\n  w = param[16, 16]\n{wiring}\n}}");
        let text = of_wiring(&wiring).unwrap_or_else(|e| panic!("{e}\n{wiring}"));
        let steps = [1, 9]
            .map(|n| vec![("ids", Ints((0..n).map(|i| i * 5 % 16).collect())), ("x", Floats(floats(n as usize * 16)))]);
        agree(&text, &steps).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let manifest = manifest(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(manifest.weights.len(), 2, "{i}: {:#?}", manifest.weights);
    }
}

/// Rows are looked up before the product and in another body, and by two; what follows the lookups stays fused with them.
#[test]
fn plans_hold_tables_as_their_heads() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        layer(x) {\n  pre = norm\n  up = linear(72)\n  return up(pre(x)) + x\n}\n\
        model(ids: i64[tokens], more: i64[tokens]) {\n\
        \x20 table = embedding(131, 72)\n  other = embedding(131, 72)\n  layers = [layer for i in 0..2]\n\
        \x20 h = table(ids) * 8.5 + norm(table(more)) + other(ids)\n\
        \x20 return {y: unembedding(table)(layers(h)), h: h}\n}";
    let steps: Vec<Vec<Given<'_>>> = [1, 9, 40]
        .map(|n| {
            vec![
                ("ids", Ints((0..n).map(|i| i * 7 % 131).collect())),
                ("more", Ints((0..n).map(|i| 130 - i).collect())),
            ]
        })
        .into();
    for plan in ["none", "int8", "uint4:g64,table=int4:g128", "int4,table=none"] {
        for dtype in [DType::F32, DType::BF16] {
            let mut program =
                parse(&of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"))).unwrap_or_else(|e| panic!("{e}"));
            let quant: Plan = plan.parse().unwrap_or_else(|e| panic!("{e}"));
            prepare(&mut program, dtype, dtype, &quant).unwrap_or_else(|e| panic!("{plan}: {e}"));
            let text = program.to_string();
            if dtype == DType::F32 {
                agree(&text, &steps).unwrap_or_else(|e| panic!("{plan}: {e}\n{text}"));
            }
            let manifest = manifest(&text).unwrap_or_else(|e| panic!("{plan}: {e}\n{text}"));
            let tables: Vec<_> = manifest.weights.iter().filter(|w| w.shape == [131, 72]).collect();
            let packs: Vec<bool> = tables.iter().map(|w| w.pack == Pack::Plain).collect();
            // The other one has no product, and stays as it was.
            assert_eq!(packs.iter().filter(|plain| **plain).count(), 1, "{plan}: {tables:#?}");
            assert_eq!(packs.len(), 2, "{plan}: {tables:#?}");
            let in_blocks = tables.iter().any(|w| matches!(w.pack, Pack::Blocks(_)));
            assert_eq!(in_blocks, !plan.contains("none"), "{plan}: {tables:#?}");
        }
    }
}

/// Of every model whose head is its embedding, the encoder's and the decoder's among them, the table is one weight, which lookups and the product read.
#[test]
fn models_hold_a_tied_table_once() -> Result<()> {
    for (name, lookups) in [("llama3_2_tied", 1), ("gemma3", 1), ("t5", 2), ("bart", 2), ("marian", 2), ("whisper", 1)]
    {
        let case = Case::load(name)?;
        let model = model::expand(&case)?;
        for (dtype, plan) in
            [(DType::F32, "none"), (DType::BF16, "none"), (DType::BF16, "int8"), (DType::F32, "uint4:g64")]
        {
            let options = Options { dtype, quant: plan.parse()?, ..Options::default() };
            let fused = fuse(&model, &options)?;
            let manifest = outline(&model, &fused.program, &*target::parse("cpu")?, &options)?.manifest;
            let readers = |weight: usize| {
                let reads = |l: &&Launch| l.operands.contains(&BufferRef::Weight(weight));
                manifest.launches.iter().filter(reads).collect::<Vec<_>>()
            };
            let is_head = |weight: usize| readers(weight).len() > 1 && manifest.weights[weight].pack != Pack::Plain;
            let heads: Vec<usize> = (0..manifest.weights.len()).filter(|weight| is_head(*weight)).collect();
            let [head] = heads[..] else { return Err(format!("{name} {plan}: {heads:?}").into()) };
            let weight = &manifest.weights[head];
            let copies = manifest.weights.iter().filter(|w| w.sources == weight.sources).count();
            assert_eq!(copies, 1, "{name} {plan}");
            assert_eq!(matches!(weight.pack, Pack::Blocks(_)), plan != "none", "{name} {plan}");
            let looks_up = |l: &&&Launch| l.cost.is_some_and(|c| c.row_weight_bytes > 0);
            let found = readers(head).iter().filter(looks_up).count();
            assert_eq!(found, lookups, "{name} {plan}");
        }
    }
    Ok(())
}

/// Rows of integers on processors that this machine may not be: as on this one.
#[test]
fn emulated_processors_look_up_the_same() -> Result<()> {
    let case = Case::load("llama3_2_tied")?;
    let targets = ["cpu:x86-64", "cpu:aarch64", "cpu:aarch64+bf16+dotprod+i8mm"];
    for (dtype, plan) in [(DType::F32, "int8"), (DType::BF16, "uint4:g64")] {
        let shell = shell(&case)?;
        let options = Options { dtype, quant: plan.parse()?, ..Options::default() };
        fs::write(shell.folder().join("model.xfm"), artifact(&case, &targets, &options)?)?;
        let logits = [
            "logits",
            "model.xfm",
            "--checkpoint",
            "checkpoint",
            "--inputs",
            "inputs.json",
            "-t",
            "2",
            "-o",
            "out.safetensors",
        ];
        let read = || -> Result<Vec<f64>> {
            let bytes = fs::read(shell.folder().join("out.safetensors"))?;
            let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
            let data = tensors.tensor("logits")?.data().to_vec();
            Ok(data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
        };
        shell.run("xfrun", &logits)?.success()?;
        let here = read()?;
        for processor in [X86_64, CORTEX_A53, AARCH64_MAX] {
            shell.run_emulated(&processor, &logits)?.success()?;
            let got: Vec<f32> = read()?.into_iter().map(|x| x as f32).collect();
            let precision = if dtype == DType::F32 { Precision::F32 } else { Precision::BF16 };
            compare(&format!("{plan} on {processor:?}"), &[got.len()], &got, &here, Tier::Model, precision)?;
        }
    }
    Ok(())
}
