//! `cargo bench -p xfc-bench`: how fast the kernels of each family are, over the shapes of three decoders.
//!
//! A name is `family/model/what/type/rows`; `cargo bench -p xfc-bench -- attention` runs those with a part of it, `-- --test` each once. What is timed is the kernels
//! alone, from the first worker's begin to the last one's end, as `xfc bench --profile` does. Where memory is the limit there are as many copies of the
//! weights, or layers with caches of their own, as no cache of the processor holds. Weights and inputs are made up. Threads are those of the machine, or
//! `XFC_BENCH_THREADS`.
//!
//! Bytes a second are those of weights and caches that a step cannot do without; elements a second are operations, two for each weight and row.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use xfc_check::layers::{Heads, Layer, Loaded, Mixture, Timed, matrix_bytes};
use xfc_codegen::driver::Options;
use xfc_codegen::target::profile::operand;
use xfc_codegen::target::{self, Target};
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_runtime::device::cpu::ThreadPool;
use xfc_runtime::memory;

/// Result of what is made ready.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A decoder.
struct Model {
    name: &'static str,
    /// Its distinct products: what, matrices that are multiplied with the same inputs, inputs, outputs.
    products: &'static [(&'static str, usize, u64, u64)],
    heads: Heads,
    experts: Option<Mixture>,
}

const MODELS: [Model; 3] = [
    Model {
        name: "qwen3-0.6b",
        products: &[
            ("qkv", 1, 1024, 4096),
            ("o", 1, 2048, 1024),
            ("gate_up", 2, 1024, 3072),
            ("down", 1, 3072, 1024),
            ("head", 1, 1024, 151_936),
        ],
        heads: Heads { heads: 16, kv_heads: 8, dim: 128 },
        experts: None,
    },
    Model {
        name: "llama-3.2-1b",
        products: &[
            ("qkv", 1, 2048, 3072),
            ("o", 1, 2048, 2048),
            ("gate_up", 2, 2048, 8192),
            ("down", 1, 8192, 2048),
            ("head", 1, 2048, 128_256),
        ],
        heads: Heads { heads: 32, kv_heads: 8, dim: 64 },
        experts: None,
    },
    Model {
        name: "olmoe-1b-7b",
        products: &[("qkv", 1, 2048, 6144), ("o", 1, 2048, 2048), ("head", 1, 2048, 50_304)],
        heads: Heads { heads: 16, kv_heads: 16, dim: 128 },
        experts: Some(Mixture { width: 2048, inner: 1024, experts: 64, chosen: 8 }),
    },
];

const OPERANDS: [&str; 4] = ["bf16", "int8:g32", "int4:g32", "f32"];
/// Rows of a step: one sequence, some, a prompt.
const ROWS: [u64; 3] = [1, 8, 512];
/// Most rows for which memory is the limit.
const FEW: u64 = 8;
/// More outputs than a layer has: of a prompt only the last row's are computed.
const HEAD: u64 = 32_768;
/// Tokens before the one that is decoded.
const BEHIND: u64 = 4096;
/// Most copies of weights.
const MOST_COPIES: u64 = 64;
/// Launches of a list.
const LAUNCHES: usize = 64;

/// What all of them run on.
struct Bench {
    target: Box<dyn Target>,
    pool: Arc<ThreadPool>,
    /// The layers that were made last, by what they are of: steps of other numbers of rows share their weights.
    last: RefCell<Option<(String, Loaded)>>,
}

impl Bench {
    fn new() -> Result<Self> {
        let threads = match std::env::var("XFC_BENCH_THREADS") {
            Ok(n) => n.parse().map_err(|_| format!("XFC_BENCH_THREADS is `{n}`, which is no number of threads"))?,
            Err(_) => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Bench { target: target::parse("cpu")?, pool: Arc::new(ThreadPool::new(threads)?), last: RefCell::default() })
    }

    /// Times steps of `rows` tokens behind `before` others. The layer is made when the arguments ask for it.
    fn steps(
        &self,
        criterion: &mut Criterion,
        (family, name): (&str, String),
        (rows, before): (u64, u64),
        throughput: Throughput,
        layer: &dyn Fn() -> Result<Layer>,
    ) {
        let mut group = criterion.benchmark_group(family);
        group.throughput(throughput);
        let make = || -> Result<Timed> {
            let layer = Arc::new(layer()?);
            let mut last = self.last.borrow_mut();
            let loaded = match last.take().filter(|(of, _)| *of == layer.text()) {
                Some((_, loaded)) => loaded,
                None => layer.load(&*self.target, &self.pool)?,
            };
            let (_, loaded) = last.insert((layer.text(), loaded));
            Ok(loaded.timed(rows, before)?)
        };
        let mut ready: Option<Timed> = None;
        let name = format!("{name}/{rows}");
        group.bench_function(BenchmarkId::from_parameter(&name), |bencher| {
            let timed = match ready.take() {
                Some(timed) => timed,
                None => make().unwrap_or_else(|error| panic!("{family}/{name}: {error}")),
            };
            let timed = ready.insert(timed);
            bencher.iter_custom(|times| {
                let one = |_| timed.run().map(|took| took.seconds);
                let seconds = (0..times).map(one).sum::<std::result::Result<f64, _>>();
                Duration::from_secs_f64(seconds.unwrap_or_else(|error| panic!("{family}/{name}: {error}")))
            });
        });
        group.finish();
    }
}

/// Bytes where memory is the limit, else operations.
fn throughput(rows: u64, bytes: u64, operations: u64) -> Throughput {
    if rows <= FEW { Throughput::Bytes(bytes) } else { Throughput::Elements(operations) }
}

/// Copies of so many bytes that no cache holds them all.
fn copies(bytes: u64) -> u64 {
    (2 * memory::last_cache_bytes().unwrap_or(0)).max(64 << 20).div_ceil(bytes).clamp(1, MOST_COPIES)
}

fn products(bench: &Bench, criterion: &mut Criterion) {
    for model in &MODELS {
        for operand in OPERANDS {
            for (what, parts, inputs, outputs) in model.products {
                let Some(of) = operand::parse(operand) else { continue };
                let bytes = *parts as u64 * matrix_bytes(of, *outputs, *inputs);
                for rows in ROWS.into_iter().filter(|rows| *rows <= FEW || *outputs <= HEAD) {
                    let n = if rows <= FEW { copies(bytes) } else { 1 };
                    let operations = 2 * rows * *parts as u64 * inputs * outputs;
                    let name = format!("{}/{what}/{operand}", model.name);
                    bench.steps(
                        criterion,
                        ("product", name),
                        (rows, 0),
                        throughput(rows, n * bytes, operations),
                        &|| Ok(Layer::apart(of, *parts, *inputs, *outputs, n)?),
                    );
                }
            }
        }
    }
}

fn experts(bench: &Bench, criterion: &mut Criterion) {
    for model in &MODELS {
        let Some(mixture) = model.experts else { continue };
        for operand in &OPERANDS[..3] {
            let Some(of) = operand::parse(operand) else { continue };
            for rows in ROWS {
                let Mixture { width, inner, experts, chosen } = mixture;
                // As many matrices as the rows choose when all choose others.
                let bytes = 3 * matrix_bytes(of, inner, width) * experts.min(rows * chosen);
                let operations = 2 * rows * chosen * 3 * width * inner;
                bench.steps(
                    criterion,
                    ("experts", format!("{}/{operand}", model.name)),
                    (rows, 0),
                    throughput(rows, bytes, operations),
                    &|| Ok(Layer::experts(of, mixture)?),
                );
            }
        }
    }
}

fn attention(bench: &Bench, criterion: &mut Criterion) {
    for model in &MODELS {
        let Heads { heads, kv_heads, dim } = model.heads;
        // Of a key and a value of a head, in 8 bits with a scale.
        for (kept, cache, bytes) in
            [("bf16", CacheType::Float(DType::BF16), 4 * dim), ("int8", CacheType::Int8, 2 * (dim + 2))]
        {
            let layer = |layers: u64| Ok(Layer::attention(DType::BF16, cache, model.heads, layers)?);
            for rows in [512, 2048] {
                let operations = 4 * heads * dim * rows * (rows + 1) / 2;
                let name = format!("{}/prefill/{kept}", model.name);
                bench.steps(criterion, ("attention", name), (rows, 0), Throughput::Elements(operations), &|| layer(1));
            }
            let of_layer = (BEHIND + 1) * kv_heads * bytes;
            let n = copies(of_layer);
            let name = format!("{}/behind {BEHIND}/{kept}", model.name);
            bench.steps(criterion, ("attention", name), (1, BEHIND), Throughput::Bytes(n * of_layer), &|| layer(n));
        }
    }
}

/// Operations on rows, as they stand between products.
fn rows(bench: &Bench, criterion: &mut Criterion) {
    const ROWS: u64 = 512;
    let wirings = [
        ("rms_norm", 1024, "norm = rms_norm(1.0e-6)\n  return {y: norm(x)}"),
        ("rms_norm", 2048, "norm = rms_norm(1.0e-5)\n  return {y: norm(x)}"),
        ("layer_norm", 2048, "norm = layer_norm(1.0e-5)\n  return {y: norm(x)}"),
        ("head_norm_16x128", 2048, "norm = rms_norm(1.0e-6)\n  return {y: merge(norm(split(x, 16)))}"),
        ("rotary_16x128", 2048, "turn = rotary(rope)\n  return {y: merge(turn(split(x, 16)))}"),
        ("rotary_32x64", 2048, "turn = rotary(rope)\n  return {y: merge(turn(split(x, 32)))}"),
        ("silu", 8192, "return {y: silu(x)}"),
        ("gelu", 8192, "return {y: gelu(x)}"),
        ("softmax", 64, "return {y: softmax(x)}"),
    ];
    for (name, width, body) in wirings {
        let wiring = format!("model(x: f32[tokens, {width}]) {{\n  {body}\n}}");
        let layer = || {
            let kernels = "rows_".to_owned();
            Ok(Layer::of_wiring("{rope: {default: {rope_theta: 10000.0}}}", &wiring, Options::default(), kernels)?)
        };
        // Read once and written once.
        let bytes = Throughput::Bytes(2 * ROWS * width * 4);
        bench.steps(criterion, ("rows", format!("{name}/{width}")), (ROWS, 0), bytes, &layer);
    }
}

/// What it costs to hand out launches that do nothing, and to wait for each.
fn pool(bench: &Bench, criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool");
    group.throughput(Throughput::Elements(LAUNCHES as u64));
    for tiles in [1, 64] {
        group.bench_function(BenchmarkId::new("launches", format!("{tiles} tiles")), |bencher| {
            bencher.iter(|| {
                bench.pool.run(&[tiles; LAUNCHES], &|_, _, first, end| {
                    std::hint::black_box((first, end));
                })
            });
        });
    }
    group.finish();
}

fn main() {
    let bench = Bench::new().unwrap_or_else(|error| panic!("{error}"));
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    products(&bench, &mut criterion);
    experts(&bench, &mut criterion);
    attention(&bench, &mut criterion);
    rows(&bench, &mut criterion);
    pool(&bench, &mut criterion);
    criterion.final_summary();
}
