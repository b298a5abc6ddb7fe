//! The tables behind the names of CPU targets: levels, features that may be added, and processors by LLVM's names.
//!
//! Code is generated for a level and the features that a name adds, and only tuned for the processor: so whatever LLVM knows of a
//! processor besides, the code uses nothing that the runtime was not told to look for.

use crate::mlir::machine::{ByteDot, Machine, PairDot, WordDot};

/// What every processor of a level can do.
#[derive(Debug)]
pub(super) struct Level {
    /// As on the command line.
    pub(super) name: &'static str,
    /// Architecture, as in the artifact.
    pub(super) arch: &'static str,
    /// LLVM's name of the processor that has these features and no others.
    pub(super) llvm_cpu: &'static str,
    /// LLVM's names of what it adds to the level before it of the same architecture.
    pub(super) adds: &'static [&'static str],
    /// Vector registers.
    pub(super) registers: u32,
    /// Operations, before features are added.
    pub(super) machine: Machine,
}

/// `whole`: with instructions for fused products, rounding and f16.
const fn machine(lanes: u32, round: bool, whole: bool, byte_dot: ByteDot) -> Machine {
    Machine {
        lanes,
        threads: 1,
        groups: 1,
        side_by_side: 0,
        fma: whole,
        round,
        pair_dot: PairDot::Widened,
        byte_dot,
        word_dot: match byte_dot {
            ByteDot::Pairs { halves, .. } => Some(WordDot::Pairs(halves)),
            _ => None,
        },
        half: whole,
        tile_dot: None,
        byte_tile_dot: None,
        tile_registers: None,
        team_dot: None,
        overlaps: false,
    }
}

const fn pairs(halves: &'static str, bytes: Option<&'static str>) -> ByteDot {
    ByteDot::Pairs { halves, bytes }
}

/// Of each architecture, ascending: each has all features of those before it.
pub(super) const LEVELS: [Level; 5] = [
    Level {
        name: "x86-64",
        arch: "x86_64",
        llvm_cpu: "x86-64",
        adds: &["sse", "sse2"],
        registers: 16,
        machine: machine(4, false, false, pairs("llvm.x86.sse2.pmadd.wd", None)),
    },
    Level {
        name: "x86-64-v2",
        arch: "x86_64",
        llvm_cpu: "x86-64-v2",
        adds: &["popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"],
        registers: 16,
        machine: machine(4, true, false, pairs("llvm.x86.sse2.pmadd.wd", Some("llvm.x86.ssse3.pmadd.ub.sw.128"))),
    },
    Level {
        name: "x86-64-v3",
        arch: "x86_64",
        llvm_cpu: "x86-64-v3",
        adds: &["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"],
        registers: 16,
        machine: machine(8, true, true, pairs("llvm.x86.avx2.pmadd.wd", Some("llvm.x86.avx2.pmadd.ub.sw"))),
    },
    Level {
        name: "x86-64-v4",
        arch: "x86_64",
        llvm_cpu: "x86-64-v4",
        adds: &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
        registers: 32,
        machine: machine(16, true, true, pairs("llvm.x86.avx512.pmaddw.d.512", Some("llvm.x86.avx512.pmaddubs.w.512"))),
    },
    Level {
        name: "aarch64",
        arch: "aarch64",
        llvm_cpu: "generic",
        adds: &["fp-armv8", "neon"],
        registers: 32,
        machine: machine(4, true, true, ByteDot::Widened),
    },
];

/// A feature that may be named after a level or a processor.
#[derive(Debug)]
pub(super) struct Feature {
    /// LLVM's name.
    pub(super) name: &'static str,
    /// The lowest level whose processors may have it.
    pub(super) level: &'static str,
    /// Features that LLVM turns on with it.
    pub(super) implies: &'static [&'static str],
    /// Whether kernels use it on this host when no target is named; of the others, LLVM alone makes use.
    pub(super) host: bool,
}

const fn feature(name: &'static str, level: &'static str, implies: &'static [&'static str], host: bool) -> Feature {
    Feature { name, level, implies, host }
}

/// Sorted by name within an architecture.
pub(super) const FEATURES: [Feature; 31] = [
    feature("amx-bf16", "x86-64-v4", &["amx-tile"], true),
    feature("amx-int8", "x86-64-v4", &["amx-tile"], true),
    feature("amx-tile", "x86-64-v4", &[], false),
    feature("avx512bf16", "x86-64-v4", &[], true),
    feature("avx512bitalg", "x86-64-v4", &[], false),
    feature("avx512fp16", "x86-64-v4", &[], false),
    feature("avx512ifma", "x86-64-v4", &[], false),
    feature("avx512vbmi", "x86-64-v4", &[], false),
    feature("avx512vbmi2", "x86-64-v4", &[], false),
    feature("avx512vnni", "x86-64-v4", &[], true),
    feature("avx512vp2intersect", "x86-64-v4", &[], false),
    feature("avx512vpopcntdq", "x86-64-v4", &[], false),
    feature("avxifma", "x86-64-v3", &[], false),
    feature("avxneconvert", "x86-64-v3", &[], false),
    feature("avxvnni", "x86-64-v3", &[], true),
    feature("avxvnniint16", "x86-64-v3", &[], false),
    feature("avxvnniint8", "x86-64-v3", &[], false),
    feature("gfni", "x86-64-v3", &[], false),
    feature("aes", "aarch64", &[], false),
    feature("bf16", "aarch64", &[], true),
    feature("crc", "aarch64", &[], false),
    feature("dotprod", "aarch64", &[], true),
    feature("fp16fml", "aarch64", &["fullfp16"], false),
    feature("fullfp16", "aarch64", &[], false),
    feature("i8mm", "aarch64", &[], true),
    feature("lse", "aarch64", &[], false),
    feature("rcpc", "aarch64", &[], false),
    feature("rdm", "aarch64", &[], false),
    feature("sha2", "aarch64", &[], false),
    feature("sve", "aarch64", &["fullfp16"], false),
    feature("sve2", "aarch64", &["sve", "fullfp16"], false),
];

/// A processor that code can be tuned for.
#[derive(Debug)]
pub(super) struct Processor {
    /// LLVM's name.
    pub(super) name: &'static str,
    /// The highest level that it has.
    pub(super) level: &'static str,
    /// Of its other features, those worth asking for.
    pub(super) features: &'static [&'static str],
    /// Bytes that streams are asked for before they are read; 0 where the processor does better by itself.
    pub(super) prefetch: u64,
    /// Its instruction for products of pairs of bf16 is slower than two fused products of floats.
    pub(super) slow_pairs: bool,
}

const fn processor(name: &'static str, level: &'static str, features: &'static [&'static str]) -> Processor {
    Processor { name, level, features, prefetch: 0, slow_pairs: false }
}

impl Processor {
    const fn asking_ahead(self, bytes: u64) -> Self {
        Processor { prefetch: bytes, ..self }
    }

    const fn with_slow_pairs(self) -> Self {
        Processor { slow_pairs: true, ..self }
    }
}

const VNNI: &[&str] = &["avx512vnni"];
const ICE: &[&str] = &["avx512vbmi", "avx512vbmi2", "avx512vnni"];
const ZEN: &[&str] = &["avx512bf16", "avx512vbmi", "avx512vbmi2", "avx512vnni"];
const RAPIDS: &[&str] = &["avx512bf16", "avx512fp16", "avx512vbmi", "avx512vbmi2", "avx512vnni"];
const DOT: &[&str] = &["dotprod", "fullfp16"];
const MATRIX: &[&str] = &["bf16", "dotprod", "fullfp16", "i8mm"];
const SCALABLE: &[&str] = &["bf16", "dotprod", "fullfp16", "i8mm", "sve"];
const SCALABLE2: &[&str] = &["bf16", "dotprod", "fullfp16", "i8mm", "sve", "sve2"];

/// Oldest first, by maker.
pub(super) const PROCESSORS: [Processor; 37] = [
    processor("nehalem", "x86-64-v2", &[]),
    processor("sandybridge", "x86-64-v2", &[]),
    processor("haswell", "x86-64-v3", &[]),
    processor("broadwell", "x86-64-v3", &[]),
    processor("skylake", "x86-64-v3", &[]),
    processor("skylake-avx512", "x86-64-v4", &[]),
    processor("cascadelake", "x86-64-v4", VNNI),
    processor("cooperlake", "x86-64-v4", &["avx512bf16", "avx512vnni"]),
    processor("icelake-client", "x86-64-v4", ICE),
    processor("icelake-server", "x86-64-v4", ICE),
    processor("tigerlake", "x86-64-v4", ICE),
    // Where a hypervisor hides what it is, LLVM takes a server of the years after it for this one.
    processor("rocketlake", "x86-64-v4", ICE).asking_ahead(2048).with_slow_pairs(),
    processor("alderlake", "x86-64-v3", &["avxvnni"]),
    processor("raptorlake", "x86-64-v3", &["avxvnni"]),
    processor("meteorlake", "x86-64-v3", &["avxvnni"]),
    processor("arrowlake", "x86-64-v3", &["avxneconvert", "avxvnni", "avxvnniint8"]),
    processor("sierraforest", "x86-64-v3", &["avxneconvert", "avxvnni", "avxvnniint8"]),
    // One token is 16 to 30 % faster than without. VDPBF16PS begins every other cycle, 110 GFLOP/s, where two fused products of floats begin in each, 220.
    processor("sapphirerapids", "x86-64-v4", RAPIDS).asking_ahead(2048).with_slow_pairs(),
    processor("emeraldrapids", "x86-64-v4", RAPIDS).asking_ahead(2048).with_slow_pairs(),
    processor("graniterapids", "x86-64-v4", RAPIDS).asking_ahead(2048).with_slow_pairs(),
    processor("znver1", "x86-64-v3", &[]),
    processor("znver2", "x86-64-v3", &[]),
    processor("znver3", "x86-64-v3", &[]),
    processor("znver4", "x86-64-v4", ZEN),
    // Two threads of one die read 53.7 GB/s with prefetches and 47.0 without; znver4 reads 10 % less with them.
    processor("znver5", "x86-64-v4", ZEN).asking_ahead(8192),
    processor("cortex-a53", "aarch64", &[]),
    processor("cortex-a72", "aarch64", &[]),
    processor("cortex-a76", "aarch64", DOT),
    processor("neoverse-n1", "aarch64", DOT),
    processor("neoverse-v1", "aarch64", SCALABLE),
    processor("neoverse-n2", "aarch64", SCALABLE2),
    processor("neoverse-v2", "aarch64", SCALABLE2),
    processor("ampere1", "aarch64", MATRIX),
    processor("a64fx", "aarch64", &["fullfp16", "sve"]),
    processor("apple-m1", "aarch64", DOT),
    processor("apple-m2", "aarch64", MATRIX),
    processor("apple-m4", "aarch64", MATRIX),
];

/// The level of this name.
pub(super) fn level(name: &str) -> Option<&'static Level> {
    LEVELS.iter().find(|level| level.name == name)
}

impl Level {
    /// Whether this level has everything of `other`.
    pub(super) fn includes(&self, other: &Level) -> bool {
        let rank = |level: &Level| LEVELS.iter().position(|l| l.name == level.name);
        self.arch == other.arch && rank(self) >= rank(other)
    }

    /// LLVM's names of all its features, lower levels first.
    pub(super) fn features(&self) -> impl Iterator<Item = &'static str> {
        LEVELS.iter().filter(|level| self.includes(level)).flat_map(|level| level.adds).copied()
    }
}

impl Feature {
    /// Whether processors of `level` may have it.
    pub(super) fn fits(&self, level: &Level) -> bool {
        self::level(self.level).is_some_and(|lowest| level.includes(lowest))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// The macros that clang, of the LLVM that code is generated with, defines for a processor.
    fn macros(arch: &str, option: &str) -> Vec<String> {
        let prefix = std::env::var("LLVM_SYS_221_PREFIX").expect("cargo sets it from .cargo/config.toml");
        let clang = Path::new(&prefix).join("bin/clang");
        let target = format!("--target={arch}-linux-gnu");
        let ran = Command::new(&clang).args([&target, option, "-dM", "-E", "-x", "c", "/dev/null"]).output();
        let ran = ran.unwrap_or_else(|e| panic!("{}: {e}", clang.display()));
        assert!(ran.status.success(), "{option}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).lines().filter_map(|l| l.split(' ').nth(1)).map(str::to_owned).collect()
    }

    /// The macro that says that a feature is there.
    fn macro_of(arch: &str, feature: &str) -> String {
        let upper = feature.to_uppercase().replace(['.', '-'], "_");
        match (arch, feature) {
            ("x86_64", _) => format!("__{upper}__"),
            (_, "fp-armv8") => "__ARM_FP".into(),
            (_, "neon") => "__ARM_NEON".into(),
            (_, "fullfp16") => "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC".into(),
            (_, "i8mm") => "__ARM_FEATURE_MATMUL_INT8".into(),
            _ => format!("__ARM_FEATURE_{upper}"),
        }
    }

    #[test]
    fn processors_and_levels_have_what_the_tables_say() {
        let levels = LEVELS.iter().map(|l| (l.llvm_cpu, l, &[][..]));
        let processors = PROCESSORS.iter().map(|p| (p.name, level(p.level).expect(p.name), p.features));
        let mut wrong = Vec::new();
        for (cpu, level, features) in levels.chain(processors) {
            let option = if level.arch == "x86_64" { format!("-march={cpu}") } else { format!("-mcpu={cpu}") };
            let defined = macros(level.arch, &option);
            let has = |f: &&str| defined.contains(&macro_of(level.arch, f));
            wrong.extend(
                level
                    .features()
                    .chain(features.iter().copied())
                    .filter(|f| !has(f))
                    .map(|f| format!("{cpu} has no {f}")),
            );
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
