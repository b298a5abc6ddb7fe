//! Elementary functions as compiled, against f64, on every instruction set that this machine has.
#![expect(unsafe_code, reason = "calls the generated code")]

use xfc_runtime::artifact::abi::XfmArgs;
use xfc_runtime::artifact::container::{self, Artifact, CodeImage, VariantParts};
use xfc_runtime::artifact::features::HostFeatures;
use xfc_runtime::artifact::manifest::{Kernel, Manifest, Phase};

use super::machine::Machine;
use super::writer::{Elem, Ty, Val, Writer};
use crate::target::cpu::isa::Isa;
use crate::target::cpu::link::link;
use crate::target::{self, Keep, SYMBOL, Target};

/// `scratch[i] = f(args[i])` for the elements `tile_begin .. tile_end`, where `args` is abused as an array of floats.
fn map_kernel(machine: &Machine, lanes: u32, f: &dyn Fn(&mut Writer, Val) -> Val) -> String {
    let (mut w, p) = Writer::kernel(SYMBOL, machine);
    let ty = Ty::of(Elem::F32, lanes);
    w.for_loop(p.tile_begin, p.tile_end, i64::from(lanes.max(1)), &[], |w, i, _| {
        let bytes = w.shl(i, 2);
        let at = w.offset(p.args, bytes);
        let x = w.load(ty, at);
        let y = f(w, x);
        let out = w.offset(p.scratch, bytes);
        w.store(y, out);
        Ok(vec![])
    })
    .unwrap();
    w.finish(0).0
}

fn run(target: &dyn Target, mlir: &str, xs: &[f32]) -> Vec<f32> {
    let compiled = target.compiler().unwrap().compile("map", mlir, Keep::default()).unwrap();
    let image = link(&[("map".into(), compiled.object.as_slice())], SYMBOL).unwrap();
    let manifest = Manifest {
        version: xfc_runtime::artifact::VERSION,
        compiler: "test".into(),
        model: "map".into(),
        target: target.describe(),
        axes: vec!["tokens".into()],
        extents: vec![None],
        inputs: vec![],
        outputs: vec![],
        whole_sequences: false,
        max_positions: vec![None],
        weights: vec![],
        format: "hf".into(),
        ignore: vec![],
        caches: vec![],
        arenas: vec![],
        kernels: vec![Kernel { name: "map".into(), scratch_bytes: 0, shared_bytes: 0, waits: false }],
        phases: vec![Phase { name: "any".into(), max_rows: None }],
        launches: vec![],
        parameters: 0,
    };
    let code = CodeImage { bytes: image.bytes, entries: image.entries };
    let bytes = container::write("", &[VariantParts { manifest, code }]).unwrap();
    let artifact = Artifact::from_bytes(bytes).unwrap();
    let code = artifact.select(&HostFeatures::detect(), None).unwrap().load_code().unwrap();
    let mut out = vec![0.0_f32; xs.len()];
    let kernel = code.kernel(0).unwrap();
    // SAFETY: the kernel reads `xs.len()` floats from its first argument and writes as many to its last; both vectors have them.
    unsafe { kernel(xs.as_ptr().cast::<XfmArgs>(), 0, xs.len() as u32, out.as_mut_ptr().cast()) };
    out
}

/// What this machine can run: each level once, and the host's own features.
fn targets() -> Vec<(Box<dyn Target>, Machine)> {
    let host = HostFeatures::detect();
    let names = ["cpu:x86-64", "cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:aarch64", "cpu"];
    let all = names.iter().map(|name| (target::parse(name).unwrap(), Isa::parse(name).unwrap().machine));
    all.filter(|(target, _)| host.missing(&target.describe()).is_some_and(|missing| missing.is_empty())).collect()
}

/// A grid over `low..high` and values of every magnitude, a multiple of 16 in number.
fn points(low: f32, high: f32) -> Vec<f32> {
    let mut xs: Vec<f32> = (0..20_000).map(|i| low + (high - low) * (i as f32 / 19_999.0)).collect();
    for e in -30..=7 {
        for m in [1.0_f32, 1.3, 1.999] {
            let x = m * 2.0_f32.powi(e);
            xs.extend([x, -x].into_iter().filter(|x| (low..=high).contains(x)));
        }
    }
    xs.resize(xs.len().next_multiple_of(16), low);
    xs
}

struct Case {
    name: &'static str,
    kernel: fn(&mut Writer, Val) -> Val,
    truth: fn(f64) -> f64,
    low: f32,
    high: f32,
    /// Allowed error in units in the last place of the result, and absolutely.
    ulps: f64,
    absolute: f64,
}

/// erf by its Taylor series where it converges fast, else by the continued fraction of erfc.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut f = 0.0;
        for k in (1..=60).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        1.0 - (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt())
    };
    y.copysign(x)
}

#[test]
fn functions_are_as_accurate_as_they_say() {
    let cases = [
        Case { name: "exp", kernel: Writer::exp, truth: f64::exp, low: -87.3, high: 88.3, ulps: 2.0, absolute: 0.0 },
        Case {
            name: "exp2",
            kernel: Writer::exp2,
            truth: f64::exp2,
            low: -126.0,
            high: 126.0,
            ulps: 2.0,
            absolute: 0.0,
        },
        Case { name: "log", kernel: Writer::log, truth: f64::ln, low: 1e-30, high: 1e4, ulps: 2.0, absolute: 1e-7 },
        Case { name: "tanh", kernel: Writer::tanh, truth: f64::tanh, low: -12.0, high: 12.0, ulps: 3.0, absolute: 0.0 },
        Case { name: "erf", kernel: Writer::erf, truth: erf, low: -6.0, high: 6.0, ulps: 3.0, absolute: 0.0 },
        Case {
            name: "sigmoid",
            kernel: Writer::sigmoid,
            truth: |x| 1.0 / (1.0 + (-x).exp()),
            low: -80.0,
            high: 80.0,
            ulps: 3.0,
            absolute: 0.0,
        },
        Case {
            name: "softplus",
            kernel: Writer::softplus,
            truth: |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
            low: -15.0,
            high: 80.0,
            ulps: 4.0,
            absolute: 1e-7,
        },
        Case { name: "sin", kernel: Writer::sin, truth: f64::sin, low: -1e6, high: 1e6, ulps: 0.0, absolute: 2e-7 },
        Case { name: "cos", kernel: Writer::cos, truth: f64::cos, low: -1e6, high: 1e6, ulps: 0.0, absolute: 2e-7 },
    ];
    for (target, machine) in targets() {
        // Without a fused multiply-add one more rounding.
        let more = if machine.fma { 0.0 } else { 1.0 };
        for case in &cases {
            for lanes in [0, machine.lanes] {
                let xs = points(case.low, case.high);
                let ys = run(&*target, &map_kernel(&machine, lanes, &case.kernel), &xs);
                for (x, y) in xs.iter().zip(&ys) {
                    let truth = (case.truth)(f64::from(*x));
                    let ulp = f64::from((truth as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
                    let error = (f64::from(*y) - truth).abs();
                    assert!(
                        error <= (case.ulps + more) * ulp + case.absolute,
                        "{}({x}) on {} with {lanes} lanes: {y}, not {truth}",
                        case.name,
                        target.name()
                    );
                }
            }
        }
    }
}

#[test]
fn edges_are_those_of_ieee() {
    for (target, machine) in targets() {
        edges(&*target, &machine);
    }
}

fn edges(target: &dyn Target, machine: &Machine) {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let mut xs = vec![0.0, -0.0, inf, -inf, nan, 100.0, -100.0, 1.0];
    xs.resize(16, 1.0);
    let of = |f: fn(&mut Writer, Val) -> Val| run(target, &map_kernel(machine, machine.lanes, &f), &xs);
    let exp = of(Writer::exp);
    assert_eq!(exp[..4], [1.0, 1.0, inf, 0.0]);
    assert!(exp[4].is_nan());
    assert_eq!(exp[5..7], [inf, 0.0]);
    let log = of(Writer::log);
    assert_eq!((log[0], log[2], log[7]), (-inf, inf, 0.0));
    assert!(log[3].is_nan() && log[4].is_nan() && log[6].is_nan());
    for (f, at_inf) in [(Writer::tanh as fn(&mut Writer, Val) -> Val, 1.0), (Writer::erf, 1.0), (Writer::sigmoid, 1.0)]
    {
        let y = of(f);
        assert_eq!(y[2], at_inf);
        assert!(y[4].is_nan());
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let round_trip = |w: &mut Writer, x: Val| {
        let b = w.to_bf16(x);
        w.from_bf16(b)
    };
    let xs: Vec<f32> = (0..65_536_u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
    for (target, machine) in targets() {
        let ys = run(&*target, &map_kernel(&machine, machine.lanes, &round_trip), &xs);
        for (x, y) in xs.iter().zip(&ys) {
            let truth = half::bf16::from_f32(*x).to_f32();
            let same = truth.to_bits() == y.to_bits() || truth.is_nan() && y.is_nan();
            assert!(same, "{x} on {}: {y}, not {truth}", target.name());
        }
    }
}

#[test]
fn whole_numbers_below_are_exact() {
    let mut xs = points(-1e4, 1e4);
    let bits = (0..65_536_u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
    xs.extend(bits.chain([
        -0.0,
        -0.5,
        8_388_607.5,
        -8_388_607.5,
        3e9,
        -3e9,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ]));
    xs.resize(xs.len().next_multiple_of(16), 2.5);
    for (target, machine) in targets() {
        for lanes in [0, machine.lanes] {
            let ys = run(&*target, &map_kernel(&machine, lanes, &Writer::floor), &xs);
            for (x, y) in xs.iter().zip(&ys) {
                let truth = x.floor();
                let same = truth.to_bits() == y.to_bits() || truth.is_nan() && y.is_nan();
                assert!(same, "floor({x}) on {} with {lanes} lanes: {y}", target.name());
            }
        }
    }
}

/// The code of every target links to an image that imports nothing, whether or not this machine can run it.
#[test]
fn no_target_calls_a_library() {
    type Function = fn(&mut Writer, Val) -> Val;
    let functions: [(&str, Function); 10] = [
        ("exp", Writer::exp),
        ("exp2", Writer::exp2),
        ("log", Writer::log),
        ("tanh", Writer::tanh),
        ("erf", Writer::erf),
        ("softplus", Writer::softplus),
        ("sin", Writer::sin),
        ("floor", Writer::floor),
        ("sqrt", Writer::sqrt),
        ("pow", |w, x| {
            let y = w.f32(1.7, x.ty.lanes);
            w.pow(x, y, None)
        }),
    ];
    let names = ["cpu:x86-64", "cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:znver5", "cpu:aarch64", "cpu:neoverse-v1"];
    for name in names {
        let machine = Isa::parse(name).unwrap().machine;
        let compiler = target::parse(name).unwrap().compiler().unwrap();
        for (function, f) in &functions {
            for lanes in [0, machine.lanes] {
                let code = compiler.compile(function, &map_kernel(&machine, lanes, f), Keep::default()).unwrap();
                let linked = link(&[((*function).to_owned(), code.object.as_slice())], SYMBOL);
                assert!(linked.is_ok(), "{function} for {name} with {lanes} lanes: {:?}", linked.err());
            }
        }
    }
}
