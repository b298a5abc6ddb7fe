//! Instruction sets: what a named CPU target can do, and the features its code needs.

use xfc_lang::diagnostic::did_you_mean;
use xfc_runtime::artifact::HostFeatures;

use super::levels::{FEATURES, LEVELS, Level, PROCESSORS, Processor, level};
use super::mlir_to_object::host_processor;
use crate::error::CodegenError;
use crate::mlir::machine::{ByteDot, Machine, PairDot, TileRegisters, WordDot};

/// A CPU that code is generated for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isa {
    /// As on the command line, resolved: `cpu:x86-64-v3`.
    pub name: String,
    /// Architecture: `x86_64`, `aarch64`.
    pub arch: &'static str,
    /// LLVM's name of the processor whose features code may use.
    pub llvm_cpu: &'static str,
    /// LLVM's name of the processor whose timings decide between equal ways, where one was named.
    pub tune: Option<&'static str>,
    /// Bytes that streams of weights are asked for before they are read, or 0.
    pub prefetch: u64,
    /// LLVM features beyond `llvm_cpu`, sorted.
    pub extra: Vec<String>,
    /// Every feature the code may use; what the runtime checks.
    pub needs: Vec<String>,
    /// Vector registers.
    pub registers: u32,
    /// Vectors and operations.
    pub machine: Machine,
}

/// What may follow `cpu:`, for messages.
pub fn known() -> String {
    let levels: Vec<&str> = LEVELS.iter().map(|level| level.name).collect();
    let processors: Vec<&str> = PROCESSORS.iter().map(|processor| processor.name).collect();
    format!("levels are {}; processors are {}", levels.join(", "), processors.join(", "))
}

impl Isa {
    /// Parses what follows `cpu`: nothing (this host), or `:LEVEL` or `:PROCESSOR` with any `+feature`.
    ///
    /// # Errors
    /// Unknown names and features, and features that a level cannot have, are named with what exists.
    pub fn parse(name: &str) -> Result<Isa, CodegenError> {
        let wrong = |reason: String| CodegenError::Target { name: name.to_owned(), reason };
        let form = "targets are `cpu` (this host), `cpu:LEVEL` and `cpu:PROCESSOR`, with any `+FEATURE` after them";
        let Some(spec) = name.strip_prefix("cpu") else {
            return Err(wrong(format!("{form}; {}", known())));
        };
        if spec.is_empty() {
            return Isa::of_host(&HostFeatures::detect(), &host_processor())
                .ok_or_else(|| wrong("no code is generated for processors like this one".into()));
        }
        let spec = spec.strip_prefix(':').ok_or_else(|| wrong(form.into()))?;
        let mut parts = spec.split('+');
        let base = parts.next().unwrap_or_default();
        let processor = PROCESSORS.iter().find(|processor| processor.name == base);
        let Some(level) = level(processor.map_or(base, |processor| processor.level)) else {
            let names = LEVELS.iter().map(|l| l.name).chain(PROCESSORS.iter().map(|p| p.name));
            let near = did_you_mean(base, names).map(|near| format!("; {near}")).unwrap_or_default();
            return Err(wrong(format!("unknown processor `{base}`; {}{near}", known())));
        };
        let asked: Vec<&str> = parts.collect();
        for feature in &asked {
            check(feature, level).map_err(wrong)?;
        }
        let own = processor.map_or(&[][..], |processor| processor.features);
        let mut isa = Isa::new(level, &[own, &asked[..]].concat());
        let mut added: Vec<&str> = asked.into_iter().filter(|feature| !own.contains(feature)).collect();
        added.sort_unstable();
        added.dedup();
        isa.name = format!("cpu:{base}{}", added.iter().map(|feature| format!("+{feature}")).collect::<String>());
        isa.tune = processor.map(|processor| processor.name);
        isa.prefetch = processor.map_or(0, |processor| processor.prefetch);
        if processor.is_some_and(|processor| processor.slow_pairs) {
            isa.machine.pair_dot = PairDot::Widened;
        }
        Ok(isa)
    }

    /// Code of a level with features that processors of the level may have.
    fn new<'f>(level: &'static Level, features: &[&'f str]) -> Isa {
        let mut extra: Vec<&'f str> = features.to_vec();
        for feature in FEATURES.iter().filter(|known| features.contains(&known.name) && known.fits(level)) {
            extra.extend(feature.implies);
        }
        extra.sort_unstable();
        extra.dedup();
        let pair_dot = match level.machine.lanes {
            16 if extra.contains(&"avx512bf16") => PairDot::Intrinsic("llvm.x86.avx512bf16.dpbf16ps.512"),
            4 if extra.contains(&"bf16") => PairDot::Intrinsic("llvm.aarch64.neon.bfdot.v4f32.v8bf16"),
            _ => PairDot::Widened,
        };
        let byte_dot = match level.machine.lanes {
            16 if extra.contains(&"avx512vnni") => ByteDot::Intrinsic("llvm.x86.avx512.vpdpbusd.512"),
            8 if extra.contains(&"avxvnni") => ByteDot::Intrinsic("llvm.x86.avx512.vpdpbusd.256"),
            4 if extra.contains(&"i8mm") => ByteDot::Intrinsic("llvm.aarch64.neon.usdot.v4i32.v16i8"),
            _ => level.machine.byte_dot,
        };
        let word_dot = match level.machine.lanes {
            16 if extra.contains(&"avx512vnni") => Some(WordDot::Whole("llvm.x86.avx512.vpdpwssd.512")),
            8 if extra.contains(&"avxvnni") => Some(WordDot::Whole("llvm.x86.avx512.vpdpwssd.256")),
            _ => level.machine.word_dot,
        };
        let tile_registers = extra.contains(&"amx-tile").then_some(TileRegisters {
            configure: "llvm.x86.ldtilecfg",
            release: "llvm.x86.tilerelease",
            load: "llvm.x86.tileloadd64",
            store: "llvm.x86.tilestored64",
            zero: "llvm.x86.tilezero",
            halves: extra.contains(&"amx-bf16").then_some("llvm.x86.tdpbf16ps"),
            bytes: extra.contains(&"amx-int8").then_some("llvm.x86.tdpbsud"),
        });
        let suffix: String = extra.iter().map(|feature| format!("+{feature}")).collect();
        Isa {
            name: format!("cpu:{}{suffix}", level.name),
            arch: level.arch,
            llvm_cpu: level.llvm_cpu,
            tune: None,
            prefetch: 0,
            needs: level.features().map(str::to_owned).chain(extra.iter().map(|f| (*f).to_owned())).collect(),
            extra: extra.into_iter().map(str::to_owned).collect(),
            registers: level.registers,
            machine: Machine { pair_dot, byte_dot, word_dot, tile_registers, ..level.machine },
        }
    }

    /// The best that a machine can run, whose processor LLVM calls `processor`; `None` where code is generated for no processor of its
    /// architecture. A virtual machine may lack features of its processor, which is then known by its level alone.
    pub fn of_host(host: &HostFeatures, processor: &str) -> Option<Isa> {
        let has = |feature: &str| host.features.contains(feature);
        let level = LEVELS.iter().rfind(|level| level.arch == host.arch && level.features().all(has))?;
        let used: Vec<&str> =
            FEATURES.iter().filter(|f| f.host && f.fits(level) && has(f.name)).map(|feature| feature.name).collect();
        let whole = |known: &&Processor| {
            known.name == processor && known.level == level.name && known.features.iter().all(|feature| has(feature))
        };
        match PROCESSORS.iter().find(whole) {
            Some(known) => {
                let more: Vec<&str> = used.into_iter().filter(|feature| !known.features.contains(feature)).collect();
                Isa::parse(
                    &["cpu:", known.name].into_iter().chain(more.iter().flat_map(|f| ["+", f])).collect::<String>(),
                )
                .ok()
            }
            None => Some(Isa::new(level, &used)),
        }
    }

    /// LLVM's feature string.
    pub fn llvm_features(&self) -> String {
        let mut features: Vec<String> = self.extra.iter().map(|f| format!("+{f}")).collect();
        if self.arch == "x86_64" {
            // Explicit vector widths are ours to choose.
            features.push("-prefer-256-bit".into());
        }
        features.join(",")
    }

    /// LLVM's triple.
    pub fn triple(&self) -> String {
        format!("{}-unknown-linux-gnu", self.arch)
    }
}

/// Whether a feature may be added to a level; what is wrong with it.
fn check(name: &str, to: &Level) -> Result<(), String> {
    let same = |f: &&super::levels::Feature| level(f.level).is_some_and(|lowest| lowest.arch == to.arch);
    if let Some(own) = LEVELS.iter().find(|level| level.arch == to.arch && level.adds.contains(&name)) {
        return Err(format!("`{name}` is part of {}: leave it out, or name that level", own.name));
    }
    match FEATURES.iter().filter(same).find(|feature| feature.name == name) {
        Some(feature) if feature.fits(to) => Ok(()),
        Some(feature) => Err(format!("`{name}` needs {}", feature.level)),
        None => {
            let names: Vec<&str> = FEATURES.iter().filter(same).map(|feature| feature.name).collect();
            Err(format!("unknown feature `{name}`; of {} they are {}", to.arch, names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_resolve() {
        let lanes = |name: &str| Isa::parse(name).unwrap().machine.lanes;
        assert_eq!([lanes("cpu:x86-64"), lanes("cpu:x86-64-v3"), lanes("cpu:aarch64")], [4, 8, 4]);
        let v4 = Isa::parse("cpu:x86-64-v4+avx512vnni+avx512bf16+avx512vnni").unwrap();
        assert_eq!(v4.name, "cpu:x86-64-v4+avx512bf16+avx512vnni");
        assert!(v4.needs.iter().any(|f| f == "avx512vnni") && v4.needs.iter().any(|f| f == "avx2"));
        assert_ne!(v4.machine.pair_dot, PairDot::Widened);
        assert_eq!(Isa::parse("cpu:x86-64-v4").unwrap().machine.pair_dot, PairDot::Widened);
        assert_eq!(Isa::parse("cpu:x86-64").unwrap().needs, ["sse", "sse2"]);
    }

    #[test]
    fn processors_are_their_level_with_features() {
        let zen = Isa::parse("cpu:znver5").unwrap();
        assert_eq!((zen.name.as_str(), zen.llvm_cpu, zen.tune), ("cpu:znver5", "x86-64-v4", Some("znver5")));
        assert!(zen.needs.iter().any(|f| f == "avx512bf16"));
        assert_ne!(zen.machine.pair_dot, PairDot::Widened);
        let slow = Isa::parse("cpu:sapphirerapids").unwrap();
        assert!(slow.needs.iter().any(|f| f == "avx512bf16") && slow.machine.pair_dot == PairDot::Widened);
        assert_eq!(Isa::parse("cpu:znver5+avx512bf16+gfni").unwrap().name, "cpu:znver5+gfni");
        let sve = Isa::parse("cpu:aarch64+sve+bf16").unwrap();
        assert_eq!(sve.needs, ["fp-armv8", "neon", "bf16", "fullfp16", "sve"]);
        assert_eq!(sve.name, "cpu:aarch64+bf16+sve");
    }

    #[test]
    fn registers_of_tiles_are_asked_for_by_name() {
        let tiles = |name: &str| Isa::parse(name).unwrap().machine.tile_registers;
        assert_eq!(tiles("cpu:sapphirerapids"), None);
        assert!(tiles("cpu:x86-64-v4+amx-bf16").is_some_and(|names| names.halves.is_some() && names.bytes.is_none()));
        assert!(tiles("cpu:x86-64-v4+amx-int8").is_some_and(|names| names.halves.is_none() && names.bytes.is_some()));
        let both = Isa::parse("cpu:sapphirerapids+amx-bf16+amx-int8").unwrap();
        assert!(both.machine.tile_registers.is_some_and(|names| names.bytes.is_some()));
        assert!(["amx-bf16", "amx-int8", "amx-tile"].iter().all(|name| both.needs.iter().any(|needs| needs == name)));
    }

    #[test]
    fn pairs_of_integers_are_multiplied_on_every_x86() {
        let dot = |name: &str| Isa::parse(name).unwrap().machine.word_dot;
        for name in ["cpu:x86-64", "cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:x86-64-v4+avx512bf16"] {
            assert!(matches!(dot(name), Some(WordDot::Pairs(_))), "{name}");
        }
        for name in ["cpu:x86-64-v3+avxvnni", "cpu:x86-64-v4+avx512vnni", "cpu:znver5", "cpu:sapphirerapids"] {
            assert!(matches!(dot(name), Some(WordDot::Whole(_))), "{name}");
        }
        assert_eq!(dot("cpu:aarch64+i8mm"), None);
    }

    #[test]
    fn tables_agree_with_each_other() {
        for processor in &PROCESSORS {
            let level = level(processor.level).expect(processor.name);
            for feature in processor.features {
                check(feature, level).expect(processor.name);
            }
        }
        for feature in &FEATURES {
            let lowest = level(feature.level).expect(feature.name);
            assert!(feature.implies.iter().all(|implied| check(implied, lowest).is_ok()), "{}", feature.name);
            Isa::parse(&format!("cpu:{}+{}", feature.level, feature.name)).unwrap();
        }
    }

    #[test]
    fn a_host_gets_the_highest_level_it_has() {
        let host = |arch: &str, base: &str, also: &[&str]| {
            let mut features: BTreeSet<String> =
                level(base).into_iter().flat_map(Level::features).map(str::to_owned).collect();
            features.extend(also.iter().map(|f| (*f).to_owned()));
            HostFeatures { arch: arch.into(), features, gpu: None }
        };
        let named = |h: HostFeatures, processor: &str| Isa::of_host(&h, processor).map(|isa| isa.name);
        let name = |h: HostFeatures| named(h, "generic");
        assert_eq!(name(host("x86_64", "x86-64", &["avx2", "fma"])).unwrap(), "cpu:x86-64");
        assert_eq!(name(host("x86_64", "x86-64-v3", &["avx512bf16"])).unwrap(), "cpu:x86-64-v3");
        assert_eq!(name(host("x86_64", "x86-64-v4", &["avx512vnni", "gfni"])).unwrap(), "cpu:x86-64-v4+avx512vnni");
        assert_eq!(name(host("aarch64", "aarch64", &["dotprod", "sve"])).unwrap(), "cpu:aarch64+dotprod");
        assert_eq!(name(host("riscv64", "", &[])), None);
        // A processor that is known, with what it has besides; and one of which a feature is hidden.
        let zen = ["avx512bf16", "avx512vbmi", "avx512vbmi2", "avx512vnni"];
        assert_eq!(named(host("x86_64", "x86-64-v4", &zen), "znver5").unwrap(), "cpu:znver5");
        assert_eq!(named(host("x86_64", "x86-64-v4", &zen[..1]), "znver5").unwrap(), "cpu:x86-64-v4+avx512bf16");
        assert_eq!(named(host("x86_64", "x86-64-v3", &["avxvnni"]), "haswell").unwrap(), "cpu:haswell+avxvnni");
    }

    #[test]
    fn wrong_names_say_what_exists() {
        for (name, part) in [
            ("cpu:x86-64-v9", "unknown processor `x86-64-v9`; levels are x86-64, "),
            ("cpu:znver", "processors are nehalem, "),
            ("cpu:", "unknown processor ``"),
            ("cpu:x86-64-v3+avx512bf16", "needs x86-64-v4"),
            ("cpu:x86-64+avx2", "`avx2` is part of x86-64-v3"),
            ("cpu:x86-64-v4+amx", "unknown feature `amx`; of x86_64 they are amx-bf16, "),
            ("cpu:aarch64+avx512bf16", "unknown feature `avx512bf16`; of aarch64 they are aes, "),
            ("cpu:aarch64+", "unknown feature ``"),
            ("cpux", "targets are"),
            ("gpu", "targets are"),
        ] {
            let message = Isa::parse(name).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
