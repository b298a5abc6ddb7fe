//! Which CPU features this machine has, in LLVM's names, and which GPU.
//!
//! One table a processor family. A name that the table lacks counts as missing, so that code of a newer compiler is refused and
//! not run blindly.

use super::abi::PTX;
use super::manifest::Target;
use crate::device::cuda::{self, Gpu};
use std::collections::BTreeSet;

/// What a machine offers to generated code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFeatures {
    /// As in [`Target::arch`]: `x86_64`, `aarch64`.
    pub arch: String,
    /// LLVM feature names.
    pub features: BTreeSet<String>,
    /// Of its first GPU, where it was asked for.
    pub gpu: Option<Gpu>,
}

impl HostFeatures {
    /// Asks the processor.
    pub fn detect() -> Self {
        let features = table().into_iter().filter(|&(_, present)| present).map(|(name, _)| name.to_owned()).collect();
        Self { arch: std::env::consts::ARCH.to_owned(), features, gpu: None }
    }

    /// The same with the first GPU, if the driver has one.
    pub fn with_gpu(self) -> Self {
        let gpu = cuda::gpus().ok().and_then(|gpus| gpus.into_iter().next());
        Self { gpu, ..self }
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
    #[cfg(target_arch = "x86_64")]
    fn detects_the_baseline() {
        assert!(HostFeatures::detect().features.contains("sse2"));
    }
}
