//! Which CPU features this machine has, in LLVM's names, and which GPU.
//!
//! One table a processor family. A name that the table lacks counts as missing, so that code of a newer compiler is refused and
//! not run blindly.

use super::abi::PTX;
#[cfg(target_arch = "x86_64")]
use super::code::allows_tiles;
use super::manifest::Target;
use crate::device::cuda::{self, Gpu};
use crate::error::{Result, RuntimeError};
use std::collections::BTreeSet;

/// What a machine offers to generated code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFeatures {
    /// As in [`Target::arch`]: `x86_64`, `aarch64`.
    pub arch: String,
    /// LLVM feature names.
    pub features: BTreeSet<String>,
    /// The GPU that code for GPUs runs on, where it was asked for.
    pub gpu: Option<Gpu>,
}

impl HostFeatures {
    /// Asks the processor.
    pub fn detect() -> Self {
        let features = table().into_iter().filter(|&(_, present)| present).map(|(name, _)| name.to_owned()).collect();
        Self { arch: std::env::consts::ARCH.to_owned(), features, gpu: None }
    }

    /// This machine for code of these targets, with its GPU where one of them is for GPUs: the one of number `gpu`, or the first if there is one.
    ///
    /// # Errors
    /// A number was given, and there is no such GPU, or no target is for one.
    pub fn for_targets<'a>(targets: impl IntoIterator<Item = &'a Target>, gpu: Option<usize>) -> Result<Self> {
        let host = Self::detect();
        let wants_gpu = targets.into_iter().any(|target| target.arch == PTX);
        let gpu = match gpu {
            Some(_) if !wants_gpu => {
                return Err(RuntimeError::request(
                    "a GPU was asked for, and the code is for processors",
                    "leave `--gpu` out, or compile with `--target cuda`",
                ));
            }
            Some(index) => Some(cuda::gpu(index)?),
            None if wants_gpu => cuda::gpu(0).ok(),
            None => None,
        };
        Ok(Self { gpu, ..host })
    }

    /// Why none of these targets runs here: each with what it lacks; `None` where one runs.
    pub fn refusal<'a>(&self, targets: impl IntoIterator<Item = &'a Target>) -> Option<String> {
        let mut refusals = Vec::new();
        for target in targets {
            match self.missing(target) {
                None if target.arch == PTX => {
                    let why = match cuda::gpus() {
                        Err(RuntimeError::Device { problem, .. }) => format!(" ({problem})"),
                        _ => String::new(),
                    };
                    refusals.push(format!("{} needs an NVIDIA GPU and its driver{why}", target.name));
                }
                None => refusals.push(format!("{} is for {}", target.name, target.arch)),
                Some(missing) if missing.is_empty() => return None,
                Some(missing) => refusals.push(format!("{} needs {}", target.name, missing.join(", "))),
            }
        }
        Some(format!("does not run on this {} machine: {}", self.arch, refusals.join("; ")))
    }

    /// The features of `target` that this machine lacks; `None` when it is of another architecture.
    pub fn missing(&self, target: &Target) -> Option<Vec<String>> {
        if target.arch == PTX {
            let gpu = self.gpu.as_ref()?;
            return Some(target.features.iter().filter(|arch| !gpu.runs(arch)).cloned().collect());
        }
        if target.arch != self.arch {
            return None;
        }
        Some(target.features.iter().filter(|name| !self.features.contains(*name)).cloned().collect())
    }
}

/// Every known feature and whether this processor has it.
#[cfg(target_arch = "x86_64")]
fn table() -> Vec<(&'static str, bool)> {
    /// Rows `LLVM name = Rust name`; names without `=` are the same in both.
    macro_rules! rows {
        ($($llvm:literal = $rust:tt),* $(,)?) => { vec![$(($llvm, std::is_x86_feature_detected!($rust))),*] };
    }
    let mut rows = rows! {
        "sse3" = "sse3", "ssse3" = "ssse3", "sse4.1" = "sse4.1", "sse4.2" = "sse4.2", "sse4a" = "sse4a",
        "popcnt" = "popcnt", "cx16" = "cmpxchg16b", "lzcnt" = "lzcnt", "bmi" = "bmi1", "bmi2" = "bmi2", "movbe" = "movbe",
        "xsave" = "xsave", "xsaveopt" = "xsaveopt", "xsavec" = "xsavec", "xsaves" = "xsaves",
        "aes" = "aes", "pclmul" = "pclmulqdq", "vaes" = "vaes", "vpclmulqdq" = "vpclmulqdq", "gfni" = "gfni", "sha" = "sha",
        "rdrnd" = "rdrand", "rdseed" = "rdseed", "adx" = "adx",
        "avx" = "avx", "avx2" = "avx2", "fma" = "fma", "f16c" = "f16c",
        "avxvnni" = "avxvnni", "avxvnniint8" = "avxvnniint8", "avxvnniint16" = "avxvnniint16",
        "avxifma" = "avxifma", "avxneconvert" = "avxneconvert",
        "avx512f" = "avx512f", "avx512cd" = "avx512cd", "avx512bw" = "avx512bw", "avx512dq" = "avx512dq", "avx512vl" = "avx512vl",
        "avx512vnni" = "avx512vnni", "avx512bf16" = "avx512bf16", "avx512fp16" = "avx512fp16", "avx512ifma" = "avx512ifma",
        "avx512vbmi" = "avx512vbmi", "avx512vbmi2" = "avx512vbmi2", "avx512bitalg" = "avx512bitalg",
        "avx512vpopcntdq" = "avx512vpopcntdq", "avx512vp2intersect" = "avx512vp2intersect",
        // Not asked for by itself: every processor with the feature on the right has it.
        "sahf" = "ssse3", "crc32" = "sse4.2",
    };
    // Linux keeps what the registers hold of a process that asked for it; other systems may not.
    let tiles = allows_tiles();
    let of_tiles = std::arch::x86_64::__cpuid_count(7, 0).edx;
    rows.extend(
        [("amx-tile", 24), ("amx-bf16", 22), ("amx-int8", 25)]
            .map(|(name, bit)| (name, tiles && of_tiles >> bit & 1 == 1)),
    );
    // What every 64-bit x86 has.
    rows.extend(["64bit", "x87", "mmx", "cmov", "cx8", "fxsr", "sse", "sse2"].map(|name| (name, true)));
    rows
}

/// Every known feature and whether this processor has it.
#[cfg(target_arch = "aarch64")]
fn table() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("neon", has!("neon")),
        ("fp-armv8", has!("fp")),
        ("fullfp16", has!("fp16")),
        ("fp16fml", has!("fhm")),
        ("dotprod", has!("dotprod")),
        ("bf16", has!("bf16")),
        ("i8mm", has!("i8mm")),
        ("rdm", has!("rdm")),
        ("lse", has!("lse")),
        ("rcpc", has!("rcpc")),
        ("crc", has!("crc")),
        ("aes", has!("aes")),
        ("sha2", has!("sha2")),
        ("sve", has!("sve")),
        ("sve2", has!("sve2")),
    ]
}

/// Every known feature and whether this processor has it.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn table() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let host = HostFeatures { arch: "x86_64".into(), features: ["avx2".to_owned()].into(), gpu: None };
        let target = |arch: &str| Target {
            name: "t".into(),
            arch: arch.into(),
            features: vec!["avx2".into(), "avx10.9".into()],
        };
        assert_eq!(host.missing(&target("x86_64")), Some(vec!["avx10.9".to_owned()]));
        assert_eq!(host.missing(&target("aarch64")), None);
    }

    #[test]
    fn a_gpu_for_code_of_processors_is_refused() {
        let target = Target { name: "t".into(), arch: "x86_64".into(), features: vec![] };
        assert_eq!(HostFeatures::for_targets([&target], None).unwrap().gpu, None);
        let error = HostFeatures::for_targets([&target], Some(0)).unwrap_err();
        assert!(error.help().is_some_and(|help| help.contains("--target cuda")), "{error:?}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn detects_the_baseline() {
        assert!(HostFeatures::detect().features.contains("sse2"));
    }
}
