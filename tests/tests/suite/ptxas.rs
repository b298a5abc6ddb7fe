//! Code for GPUs, assembled by NVIDIA's own assembler: every module for its architecture, with what its kernels take of registers and shared memory.
//!
//! A quick run assembles the models below; a long one (`XFC_SEEDS`) every card for every architecture. What the hot kernels take is in the snapshot, a line
//! for each kind: `INSTA_UPDATE=always` writes it again, and a quick run looks at a part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use xfc_codegen::driver::{Options, compile};
use xfc_codegen::target;
use xfc_codegen::target::cuda::arch::{ARCHES, Arch};
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::spec::{Library, load_card};
use xfc_lang::{ElaborateOptions, elaborate};
use xfc_runtime::device::cuda::texts;
use xfc_tests::Result;
use xfc_tests::compile::known;
use xfc_tests::ptxas::{Ptxas, Taken, VERSION};

/// How models are compiled here: a word, and what it stands for.
const FORMS: [&str; 5] = ["bf16", "int4", "f32", "int8", "fp8"];

/// Of published sizes: 8B, the same in few bits, a mixture of experts, attention over latents.
const HOT: [(&str, &str); 5] =
    [("llama", "bf16"), ("llama", "int4"), ("llama", "fp8"), ("qwen3_moe", "bf16"), ("deepseek_v3", "bf16")];

/// Of those that are recorded, the architecture of each in a quick run.
const DRAWN: [usize; HOT.len()] = [1, 0, 2, 1, 0];

/// Architectures that it is recorded for: `sm_89` has the code of `sm_80`.
const RECORDED: [Arch; 3] = [ARCHES[0], ARCHES[2], ARCHES[3]];

/// Scans, convolutions, sinks, learned biases, sources, windows: each for one architecture in a quick run.
const KINDS: [(&str, &str); 8] = [
    ("t5", "f32"),
    ("gpt_oss", "bf16"),
    ("mamba2", "bf16"),
    ("qwen3_next", "bf16"),
    ("mixtral", "int8"),
    ("deberta_v2", "bf16"),
    ("granitemoehybrid", "int4"),
    ("whisper", "bf16"),
];

/// Kernels that spill up to 16 bytes, whatever registers they are given, and are not among those that are meant to be fast: in f32.
const SPILLS: [(&str, &str, &str); 1] = [("gpt_oss", "f32", "linear_f32_4of32_2880x2880_few")];

/// A kernel's module as the artifact holds it.
struct Kernel {
    arch: &'static str,
    name: String,
    text: String,
}

fn options(form: &str) -> Result<Options> {
    let bf16 = Options { dtype: DType::BF16, ..Options::default() };
    Ok(match form {
        "f32" => Options::default(),
        "fp8" => Options { quant: "fp8".parse()?, ..bf16 },
        "int4" => Options { quant: "int4".parse()?, ..bf16 },
        "int8" => Options { quant: "int8".parse()?, cache: Some(CacheType::Int8), ..bf16 },
        _ => bf16,
    })
}

/// The kernels of a card at its published sizes for architectures, in the order of the artifact.
fn kernels(card: &str, form: &str, arches: &[Arch]) -> Result<Vec<Kernel>> {
    let library = Library::embedded();
    let model = elaborate(&load_card(card, &library)?, &ElaborateOptions::default())?;
    let targets =
        arches.iter().map(|arch| target::parse(&arch.target())).collect::<std::result::Result<Vec<_>, _>>()?;
    let options = Options { known: Some(Arc::clone(known())), ..options(form)? };
    let compiled = compile(&model, card, &targets, &options)?;
    let mut kernels = Vec::new();
    for (built, arch) in compiled.built.iter().zip(arches) {
        for (kernel, entry) in built.kernels.iter().zip(&built.image.entries) {
            let text = built.image.bytes[*entry as usize..].split(|byte| *byte == 0).next().unwrap_or_default();
            let text = std::str::from_utf8(text)?.to_owned();
            kernels.push(Kernel { arch: arch.name, name: kernel.name.clone(), text });
        }
    }
    if kernels.len() < 5 * arches.len() {
        Err(format!("{card}: only {} kernels", kernels.len()).into())
    } else {
        Ok(kernels)
    }
}

/// Assembles each for its architecture, by as many processes as there are processors; in their order.
fn assemble(ptxas: &Ptxas, kernels: &[Kernel]) -> Vec<Result<Taken>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((i, kernel)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    kernels.get(i).map(|k| (i, k))
                } {
                    let taken = ptxas.assemble(&kernel.text, kernel.arch);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((i, taken));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, taken)| taken).collect()
}

/// What is wrong with a kernel: it is refused, or its registers do not do.
fn complaint(taken: &Result<Taken>) -> Option<String> {
    match taken {
        Err(error) => Some(error.to_string()),
        Ok(Taken { waits: true, .. }) => Some("asynchronous products are made to wait".to_owned()),
        Ok(Taken { spilled_bytes: [0, 0], .. }) => None,
        Ok(Taken { registers, spilled_bytes: [stored, loaded], .. }) => {
            Some(format!("{registers} registers do not do: {stored} bytes are spilled and {loaded} read again"))
        }
    }
}

#[test]
fn every_module_is_assembled_for_its_architecture() -> Result<()> {
    let ptxas = Ptxas::find()?;
    let mut work: Vec<(String, &str, Vec<Arch>)> = Vec::new();
    if std::env::var_os("XFC_SEEDS").is_some() {
        for (i, card) in Library::embedded().cards().enumerate() {
            work.push((card.to_owned(), "bf16", ARCHES.to_vec()));
            let form = FORMS[1 + i % (FORMS.len() - 1)];
            work.push((card.to_owned(), form, vec![ARCHES[i % ARCHES.len()]]));
        }
        work.extend(HOT.iter().flat_map(|(card, _)| FORMS.map(|form| ((*card).to_owned(), form, ARCHES.to_vec()))));
    } else {
        work.extend(
            KINDS
                .iter()
                .zip(ARCHES.iter().cycle())
                .map(|((card, form), arch)| ((*card).to_owned(), *form, vec![*arch])),
        );
    }
    let mut wrong = Vec::new();
    // Models share kernels.
    let mut seen = BTreeSet::new();
    for (card, form, arches) in work {
        let mut kernels = kernels(&card, form, &arches)?;
        kernels.retain(|kernel| seen.insert(kernel.text.clone()));
        for (kernel, taken) in kernels.iter().zip(assemble(&ptxas, &kernels)) {
            let known = SPILLS.contains(&(card.as_str(), form, kernel.name.as_str()));
            if known && taken.as_ref().is_ok_and(|taken| taken.spilled_bytes.iter().all(|bytes| *bytes <= 16)) {
                continue;
            }
            wrong.extend(
                complaint(&taken).map(|what| format!("{card} in {form}: {} for {}: {what}", kernel.name, kernel.arch)),
            );
        }
    }
    assert!(wrong.is_empty(), "{} kernels:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Products, attention, norms and scans: where the time goes.
fn is_hot(kernel: &str) -> bool {
    ["linear_", "attention_", "scan_"].iter().any(|family| kernel.starts_with(family)) || kernel.contains("_norm_")
}

/// What products of all sizes have in common: `linear_bf16_2x14336x4096_few` is `linear_bf16_2_few`, of `8of128_2x768x2048` remains `of_2`.
fn kind(kernel: &str) -> String {
    let is_size = |part: &&str| part.contains('x') && part.bytes().all(|byte| byte == b'x' || byte.is_ascii_digit());
    let parts = kernel.split('_').filter_map(|part| match part.split('x').count() {
        _ if !kernel.starts_with("linear_") => Some(part),
        _ if part.contains("of") => Some("of"),
        3 if is_size(&part) => part.split('x').next(),
        _ if is_size(&part) => None,
        _ => Some(part),
    });
    parts.collect::<Vec<_>>().join("_")
}

/// The most that kernels of a kind take: registers for each architecture, and shared memory.
#[derive(Default)]
struct Most {
    registers: [u32; RECORDED.len()],
    shared_bytes: u32,
}

/// What kinds of hot kernels take, for some of the recorded architectures; what is wrong with a kernel is added to `wrong`.
fn hot(
    ptxas: &Ptxas,
    (card, form): (&str, &str),
    arches: &[Arch],
    wrong: &mut Vec<String>,
) -> Result<BTreeMap<String, Most>> {
    let kernels = kernels(card, form, arches)?;
    let mut kinds: BTreeMap<String, Most> = BTreeMap::new();
    for (kernel, taken) in kernels.iter().zip(assemble(ptxas, &kernels)) {
        let place = || format!("{card} in {form}: {} for {}", kernel.name, kernel.arch);
        wrong.extend(complaint(&taken).map(|what| format!("{}: {what}", place())));
        let Ok(taken) = taken else { continue };
        if is_hot(&kernel.name) {
            let most = kinds.entry(kind(&kernel.name)).or_default();
            let arch = RECORDED.iter().position(|arch| arch.name == kernel.arch).ok_or_else(place)?;
            most.registers[arch] = most.registers[arch].max(taken.registers);
            most.shared_bytes = most.shared_bytes.max(taken.shared_bytes);
        }
    }
    Ok(kinds)
}

/// Where what is taken departs from the record of a model, for one architecture: kinds that are not there, other registers, more shared memory.
fn departures(record: &str, heading: &str, arch: usize, kinds: &BTreeMap<String, Most>) -> Vec<String> {
    let lines = record.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    let numbers = |line: &str| line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect::<Vec<u32>>();
    let of_line = |line: &str| Some((line.split_whitespace().next()?.to_owned(), numbers(line)));
    let recorded: BTreeMap<String, Vec<u32>> = lines.filter_map(of_line).collect();
    let mut departed = Vec::new();
    let mut names: BTreeSet<&String> = recorded.keys().collect();
    names.extend(kinds.keys());
    for name in names {
        let want = recorded.get(name).map(|n| (n.get(arch).copied().unwrap_or(0), n.last().copied().unwrap_or(0)));
        let (want_registers, want_shared) = want.unwrap_or_default();
        let got = kinds.get(name).map(|most| (most.registers[arch], most.shared_bytes));
        let (registers, shared) = got.unwrap_or_default();
        if registers != want_registers || shared > want_shared {
            departed.push(format!(
                "{heading}: {name} takes {registers} registers for {} and {shared} bytes, {want_registers} and {want_shared} are recorded",
                RECORDED[arch].name
            ));
        }
    }
    departed
}

/// A quick run looks at each model for one architecture of the record, a long one, and one that writes the record again, for all.
#[test]
fn hot_kernels_take_what_is_recorded() -> Result<()> {
    let ptxas = Ptxas::find()?;
    let mut wrong = Vec::new();
    if ["XFC_SEEDS", "INSTA_UPDATE"].iter().all(|name| std::env::var_os(name).is_none_or(|value| value == "no")) {
        let record = include_str!("snapshots/suite__ptxas__hot_kernels_take_what_is_recorded.snap");
        assert!(record.contains(&format!("\nptxas {VERSION}: ")), "the record is of another ptxas");
        // Code for teams of warps in more than one, since it is for one architecture alone.
        for ((card, form), arch) in HOT.into_iter().zip(DRAWN) {
            let kinds = hot(&ptxas, (card, form), &RECORDED[arch..=arch], &mut wrong)?;
            wrong.extend(departures(record, &format!("{card} in {form}"), arch, &kinds));
        }
        assert!(
            wrong.is_empty(),
            "{} kernels:\n{}\nINSTA_UPDATE=always records what they take",
            wrong.len(),
            wrong.join("\n")
        );
        return Ok(());
    }
    let names = RECORDED.map(|arch| arch.name).join(" ");
    let mut table = format!("ptxas {VERSION}: most registers of a thread for {names}, most bytes of shared memory\n");
    for (card, form) in HOT {
        let kinds = hot(&ptxas, (card, form), &RECORDED, &mut wrong)?;
        let _ = writeln!(table, "\n{card} in {form}");
        for (kind, Most { registers: [first, second, third], shared_bytes }) in kinds {
            let _ = writeln!(table, "{kind:30} {first:4} {second:4} {third:4} {shared_bytes:6}");
        }
    }
    assert!(wrong.is_empty(), "{} kernels:\n{}", wrong.len(), wrong.join("\n"));
    insta::assert_snapshot!(table);
    Ok(())
}

#[test]
fn what_departs_from_the_record_is_seen() {
    let record =
        "head\n\na in b\nlinear_one   40   41   42   64\nlinear_many    0   50   50  128\n\nc in d\nscan_one 1 1 1 0\n";
    let takes = |name: &str, registers, shared_bytes| (name.to_owned(), Most { registers, shared_bytes });
    let right = BTreeMap::from([takes("linear_one", [0, 41, 0], 32), takes("linear_many", [0, 50, 0], 128)]);
    assert_eq!(departures(record, "a in b", 1, &right), Vec::<String>::new());
    for wrong in [
        BTreeMap::from([takes("linear_one", [0, 41, 0], 64)]),
        BTreeMap::from([takes("linear_one", [0, 42, 0], 64), takes("linear_many", [0, 50, 0], 128)]),
        BTreeMap::from([takes("linear_one", [0, 41, 0], 65), takes("linear_many", [0, 50, 0], 128)]),
        right.into_iter().chain([takes("scan_one", [0, 1, 0], 0)]).collect(),
    ] {
        assert_eq!(departures(record, "a in b", 1, &wrong).len(), 1);
    }
}

/// A small model's kernels for an architecture, of which some are looked at one by one.
fn few(arch: &Arch) -> Result<Vec<Kernel>> {
    let mut kernels = kernels("llama", "bf16", &[*arch])?;
    kernels.retain(|kernel| is_hot(&kernel.name));
    kernels.dedup_by_key(|kernel| kernel.name.split('_').next().map(str::to_owned));
    Ok(kernels)
}

#[test]
fn code_is_for_its_architecture_and_says_the_oldest_version_that_knows_it() -> Result<()> {
    let ptxas = Ptxas::find()?;
    /// Versions of PTX, of which the one before that of an architecture must not know it.
    const VERSIONS: [u32; 16] = [65, 70, 71, 72, 73, 74, 75, 76, 77, 78, 80, 81, 82, 83, 84, 85];
    for arch in ARCHES {
        let version = |version: u32| format!(".version {}.{}", version / 10, version % 10);
        let before = VERSIONS.iter().rev().find(|before| **before < arch.ptx).ok_or("no version before it")?;
        for kernel in few(&arch)? {
            let name = format!("{} for {}", kernel.name, arch.name);
            assert!(kernel.text.contains(&format!(".target {}\n", arch.name)), "{name}");
            assert!(kernel.text.contains(&format!("{}\n", version(arch.ptx))), "{name}");
            ptxas.assemble(&kernel.text, arch.name)?;
            let older = kernel.text.replacen(&version(arch.ptx), &version(*before), 1);
            let refused = ptxas.assemble(&older, arch.name).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains(&format!("does not support .target {}", arch.name)), "{name}: {refused}");
            // Portable code goes on, code for one architecture nowhere.
            for later in ["sm_90", "sm_100", "sm_120"] {
                let newer = later != "sm_90" || arch.name != "sm_100";
                match ptxas.assemble(&kernel.text, later) {
                    Ok(_) => assert!(!arch.only && newer, "{name} is accepted for {later}"),
                    Err(error) => {
                        assert!(arch.only || !newer, "{name} is refused for {later}: {error}");
                        let why = ["cannot be compiled", "is higher than"];
                        assert!(why.iter().any(|why| error.to_string().contains(why)), "{name} for {later}: {error}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// What measures a GPU's limits is the runtime's own.
#[test]
fn what_measures_a_gpu_is_assembled() -> Result<()> {
    let ptxas = Ptxas::find()?;
    for text in texts::all() {
        let taken = ptxas.assemble(&text.text, text.arch);
        assert_eq!(complaint(&taken), None, "{} for {}", text.name, text.arch);
    }
    Ok(())
}

#[test]
fn waits_that_are_put_in_are_seen() -> Result<()> {
    let ptxas = Ptxas::find()?;
    let kernels = kernels("llama", "bf16", &[ARCHES[2]])?;
    let product = kernels.iter().find(|kernel| kernel.text.contains("wgmma")).ok_or("there is no product of teams")?;
    assert_eq!(complaint(&ptxas.assemble(&product.text, product.arch)), None);
    let wait = "wgmma.wait_group.sync.aligned 0;";
    assert!(product.text.contains(wait), "{}", product.name);
    let said = complaint(&ptxas.assemble(&product.text.replace(wait, ""), product.arch)).unwrap_or_default();
    assert!(said.contains("made to wait"), "{said:?}");
    Ok(())
}

#[test]
fn spills_are_seen() -> Result<()> {
    let ptxas = Ptxas::find()?;
    let kernels = few(&ARCHES[0])?;
    let product = kernels.iter().find(|kernel| kernel.name.starts_with("linear")).ok_or("there is no product")?;
    assert_eq!(complaint(&ptxas.assemble(&product.text, product.arch)), None);
    let (head, body) = product.text.split_once("\n{").ok_or("there is no body")?;
    let starved = format!("{head}\n.maxnreg 16\n{{{body}");
    let said = complaint(&ptxas.assemble(&starved, product.arch)).unwrap_or_default();
    assert!(said.contains("are spilled"), "{said:?}");
    let said = complaint(&ptxas.assemble(&product.text.replacen("ld.param", "ld.parm", 1), product.arch));
    assert!(said.as_ref().is_some_and(|said| said.contains("error")), "{said:?}");
    Ok(())
}
