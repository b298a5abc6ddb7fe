//! Instruction sets: what a named CPU target can do, and the features its code needs.

use crate::error::CodegenError;

/// A CPU that code is generated for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isa {
    /// As on the command line, resolved: `cpu:x86-64-v3`.
    pub name: String,
    /// Architecture: `x86_64`.
    pub arch: &'static str,
    /// LLVM's name of the CPU to generate for.
    pub llvm_cpu: &'static str,
    /// LLVM features beyond `llvm_cpu`.
    pub extra: Vec<String>,
    /// Every feature the code may use; what the runtime checks.
    pub needs: Vec<String>,
    /// f32 lanes of a vector register.
    pub lanes: u32,
    /// Vector registers.
    pub registers: u32,
    /// Whether VDPBF16PS exists.
    pub bf16_dot: bool,
}

const V3: &[&str] =
    &["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
/// Features that may be named after a level, and what they need.
const EXTRAS: &[&str] = &["avx512bf16", "avx512vnni"];

impl Isa {
    /// Parses what follows `cpu`: nothing (this host), or `:LEVEL[+feature...]`.
    ///
    /// # Errors
    /// Unknown levels and features, and features that a level lacks, are named with what exists.
    pub fn parse(name: &str) -> Result<Isa, CodegenError> {
        let wrong = |reason: String| CodegenError::Target { name: name.to_owned(), reason };
        let Some(spec) = name.strip_prefix("cpu") else {
            return Err(wrong(
                "targets are `cpu`, `cpu:x86-64-v3` and `cpu:x86-64-v4[+avx512bf16][+avx512vnni]`".into(),
            ));
        };
        if spec.is_empty() {
            return Isa::host().ok_or_else(|| {
                wrong("this CPU lacks AVX2 and FMA (x86-64-v3), the least that code is generated for".into())
            });
        }
        let spec = spec.strip_prefix(':').ok_or_else(|| wrong("write `cpu` or `cpu:LEVEL`".into()))?;
        let mut parts = spec.split('+');
        let level = parts.next().unwrap_or_default();
        let mut extra: Vec<String> = Vec::new();
        for feature in parts {
            if !EXTRAS.contains(&feature) {
                return Err(wrong(format!("unknown feature `{feature}`; known are {}", EXTRAS.join(", "))));
            }
            if !extra.iter().any(|e| e == feature) {
                extra.push(feature.to_owned());
            }
        }
        extra.sort();
        match level {
            "x86-64-v3" if extra.is_empty() => Ok(Isa::v3()),
            "x86-64-v3" => Err(wrong(format!("`{}` needs x86-64-v4", extra[0]))),
            "x86-64-v4" => Ok(Isa::v4(extra)),
            _ => Err(wrong(format!("unknown level `{level}`; known are x86-64-v3 and x86-64-v4"))),
        }
    }

    fn v3() -> Isa {
        Isa {
            name: "cpu:x86-64-v3".into(),
            arch: "x86_64",
            llvm_cpu: "x86-64-v3",
            extra: Vec::new(),
            needs: V3.iter().map(|f| (*f).to_owned()).collect(),
            lanes: 8,
            registers: 16,
            bf16_dot: false,
        }
    }

    fn v4(extra: Vec<String>) -> Isa {
        let mut needs: Vec<String> = V3.iter().chain(V4).map(|f| (*f).to_owned()).collect();
        needs.extend(extra.iter().cloned());
        let suffix: String = extra.iter().map(|e| format!("+{e}")).collect();
        Isa {
            name: format!("cpu:x86-64-v4{suffix}"),
            arch: "x86_64",
            llvm_cpu: "x86-64-v4",
            bf16_dot: extra.iter().any(|e| e == "avx512bf16"),
            extra,
            needs,
            lanes: 16,
            registers: 32,
        }
    }

    /// The best instruction set that this host has; `None` below x86-64-v3.
    #[cfg(target_arch = "x86_64")]
    fn host() -> Option<Isa> {
        use std::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl") {
            let mut extra = Vec::new();
            if has!("avx512bf16") {
                extra.push("avx512bf16".to_owned());
            }
            if has!("avx512vnni") {
                extra.push("avx512vnni".to_owned());
            }
            return Some(Isa::v4(extra));
        }
        (has!("avx2") && has!("fma") && has!("bmi2") && has!("f16c")).then(Isa::v3)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn host() -> Option<Isa> {
        None
    }

    /// LLVM's feature string.
    pub fn llvm_features(&self) -> String {
        let mut features: Vec<String> = self.extra.iter().map(|f| format!("+{f}")).collect();
        // Explicit vector widths are ours to choose.
        features.push("-prefer-256-bit".into());
        features.join(",")
    }

    /// LLVM's triple.
    pub fn triple(&self) -> String {
        format!("{}-unknown-linux-gnu", self.arch)
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn names_resolve() {
        assert_eq!(Isa::parse("cpu:x86-64-v3").unwrap().lanes, 8);
        let v4 = Isa::parse("cpu:x86-64-v4+avx512vnni+avx512bf16").unwrap();
        assert_eq!(v4.name, "cpu:x86-64-v4+avx512bf16+avx512vnni");
        assert!(v4.bf16_dot && v4.needs.iter().any(|f| f == "avx512vnni"));
        assert!(!Isa::parse("cpu:x86-64-v4").unwrap().bf16_dot);
    }

    #[test]
    fn wrong_names_say_what_exists() {
        for (name, part) in [
            ("cpu:x86-64-v9", "unknown level `x86-64-v9`"),
            ("cpu:x86-64-v3+avx512bf16", "needs x86-64-v4"),
            ("cpu:x86-64-v4+amx", "unknown feature `amx`"),
            ("gpu", "targets are"),
        ] {
            let message = Isa::parse(name).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
