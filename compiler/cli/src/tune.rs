//! `xfc tune`: measures schedules on this machine and writes a profile of those that are clearly faster than what the compiler chooses by itself.
//!
//! Each family of kernels is measured in a program of its own, whose weights no cache holds where memory is what binds ([`contest`] says how). The
//! profile is written at the end and whole, or not at all.

mod contest;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use xfc_check::layers::{Heads, Layer, Loaded, matrix_bytes};
use xfc_codegen::target::cpu::schedule::Regime;
use xfc_codegen::target::profile::{Attention, Family, Float, Kept, Product, Profile, VERSION, operand};
use xfc_codegen::target::{self, Target};
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_runtime::artifact::HostFeatures;
use xfc_runtime::bench::{Machine, OTHERS_AT_MOST};
use xfc_runtime::device::cpu::ThreadPool;
use xfc_runtime::files::{check_writable, write_atomic};
use xfc_runtime::memory;

use self::contest::{Contest, Found};
use crate::error::{CliError, Result};
use crate::output::{print, remark};
use crate::tuned;

/// What is measured where nothing is said: types of weights, those of the models that people run most first.
const OPERANDS: [&str; 4] = ["bf16", "int8:g32", "int4:g32", "f32"];
/// What `--only` calls attention.
const ATTENTION: &str = "attention";
/// Least bytes of weights that memory is read for.
const LEAST_BYTES: u64 = 64 << 20;
/// Most bytes of weights: more are not made up in the time that there is.
const MOST_BYTES: u64 = 512 << 20;

/// `xfc tune`.
#[derive(Args, Debug)]
pub(crate) struct TuneArgs {
    /// Measure for: cpu (this machine), or a cpu:LEVEL or cpu:PROCESSOR with any +FEATURE that this machine can run
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: String,
    /// Threads [default: one for each processor]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Measure only these: types of weights (bf16, int8:g32, int4:g64, f32) and `attention` [default: bf16,int8:g32,int4:g32,f32,attention]
    #[arg(long, value_name = "FAMILY,..", value_delimiter = ',')]
    only: Vec<String>,
    /// About how many seconds to measure
    #[arg(long, value_name = "N", default_value_t = 120.0)]
    seconds: f64,
    /// Write the profile here [default: where compiling looks for it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the table and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Small sizes and few candidates: whether it works, not what is fast
    #[arg(long, hide = true)]
    quick: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// A target that this machine does not run, a family that does not exist, a file that cannot be written.
pub(crate) fn run(args: &TuneArgs) -> Result<()> {
    let base = target::parse(&args.target)?;
    let missing = HostFeatures::detect().missing(&base.describe());
    if missing.as_ref().is_none_or(|missing| !missing.is_empty()) {
        let lacks = missing.map_or_else(|| "is of another architecture".into(), |m| format!("lacks {}", m.join(", ")));
        return Err(CliError::usage(
            format!("this machine does not run {}: it {lacks}", base.name()),
            "measure on a machine that does, and give the profile to `--tuned`",
        ));
    }
    if !(args.seconds.is_finite() && args.seconds >= 0.0) {
        return Err(CliError::usage(format!("{} seconds cannot be measured", args.seconds), "give `--seconds 120`"));
    }
    let programs = programs(&args.only)?;
    let path = output(args, &*base)?;
    let threads = match args.threads {
        Some(0) => return Err(CliError::usage("0 threads cannot run anything", "give `--threads` at least 1")),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = ThreadPool::new(threads).map_err(|e| {
        CliError::usage(format!("cannot start {threads} threads: {e}"), "give `--threads` a smaller number")
    })?;
    let pool = Arc::new(pool);
    let machine = Machine::here();
    let empty = Profile {
        profile: VERSION,
        xfc: machine.version.to_owned(),
        target: base.name().to_owned(),
        processor: machine.cpu.clone(),
        threads,
        date: machine.date.clone(),
        products: Vec::new(),
        attention: Vec::new(),
        file: String::new(),
    };
    // Families that are not measured now stay as they are.
    let before = path.as_ref().filter(|path| !args.only.is_empty() && path.is_file()).map(|path| tuned::read(path));
    let kept = before.and_then(Result::ok).filter(|p| (&p.target, &p.processor) == (&empty.target, &empty.processor));
    let mut profile = match kept {
        Some(kept) => Profile { products: kept.products, attention: kept.attention, ..empty.clone() },
        None => empty.clone(),
    };
    print(format!(
        "{} on {}, {threads} thread{}, about {:.0} s",
        base.name(),
        machine.cpu,
        if threads == 1 { "" } else { "s" },
        args.seconds
    ));
    print(format!("{:<38} {:>16} {:>16} {:>8}  {:>5}  set", "family", "default", "best", "gain", "tried"));
    let budget = Duration::from_secs_f64(args.seconds.min(1e6));
    let start = Instant::now();
    let mut left: u32 = programs.iter().map(|p| p.rows().len() as u32).sum();
    let (mut departing, mut disturbed) = (0, 0);
    for program in &programs {
        let loaded = Arc::new(program.layer(args.quick)?).load(&*base, &pool)?;
        for (family, rows) in program.families(args.quick) {
            let share = budget.saturating_sub(start.elapsed()) / left.max(1);
            left = left.saturating_sub(1);
            let contest = Contest { base: &*base, empty: &empty, family, rows, until: Instant::now() + share };
            let found = one(&contest, &loaded, args.quick)?;
            profile = profile.without(family);
            if let Some((fields, measured)) = found.chosen {
                departing += 1;
                profile = profile.with(family, fields, Some(measured));
            }
            disturbed += u32::from(found.others.is_some_and(|others| others > OTHERS_AT_MOST));
        }
    }
    if disturbed > 0 {
        remark(format!(
            "{disturbed} families (*) were measured while others used the processors: measure again on a machine that is idle"
        ));
    }
    let families = |n: u32| if n == 1 { "1 family is".to_owned() } else { format!("{n} families are") };
    match path {
        None => print(format!("{} clearly faster with what is set; nothing is written", families(departing))),
        Some(path) => {
            write_atomic(&path, profile.to_text().as_bytes())?;
            print(format!("{} clearly faster with what is set: written to {}", families(departing), path.display()));
        }
    }
    Ok(())
}

/// Measures a family and prints its row.
fn one(contest: &Contest<'_>, loaded: &Loaded, quick: bool) -> Result<Found> {
    let found = contest.run(loaded, quick)?;
    let mark = if found.others.is_some_and(|others| others > OTHERS_AT_MOST) { "*" } else { "" };
    let speed = |rate: f64| format!("{rate:.1} {}", found.unit);
    let (best, gain, set) = match &found.chosen {
        Some((fields, measured)) => {
            let gain = 100.0 * (measured.chosen / measured.default - 1.0);
            (speed(measured.chosen), format!("{gain:+.1} %"), fields.to_string())
        }
        None => (String::new(), String::new(), String::new()),
    };
    let row = format!(
        "{:<38} {:>16} {best:>16} {gain:>8}  {:>5}  {set}",
        format!("{}{mark}", contest.family),
        speed(found.default),
        found.tried
    );
    print(row.trim_end());
    Ok(found)
}

/// Where the profile goes; `None`: nowhere.
fn output(args: &TuneArgs, target: &dyn Target) -> Result<Option<PathBuf>> {
    if args.dry_run {
        return Ok(None);
    }
    let path = match &args.output {
        Some(path) => path.clone(),
        None => {
            let path = tuned::path_of(target.name()).ok_or_else(|| {
                CliError::usage("there is no folder of settings: HOME is not set", "give `-o FILE` or set XFC_TUNE_DIR")
            })?;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|e| {
                    CliError::usage(
                        format!("{}: cannot write: {e}", folder.display()),
                        "give `-o FILE` or set XFC_TUNE_DIR",
                    )
                })?;
            }
            path
        }
    };
    check_writable(&path)?;
    Ok(Some(path))
}

/// A program that families are measured in.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// Products whose weights no cache holds, for steps of few rows.
    Read { operand: DType, parts: usize },
    /// Fewer products, for steps of many rows.
    Multiply { operand: DType, parts: usize },
    /// Attention in steps of many rows.
    Attend { query: Float, kept: Kept },
}

/// What `--only` asks for.
fn programs(only: &[String]) -> Result<Vec<Program>> {
    let all: Vec<String> = OPERANDS.iter().chain(&[ATTENTION]).map(|name| (*name).to_owned()).collect();
    let mut programs = Vec::new();
    for name in if only.is_empty() { &all } else { only } {
        if name == ATTENTION {
            for (query, kept) in [(Float::Bf16, Kept::Bf16), (Float::Bf16, Kept::Int8), (Float::F32, Kept::F32)] {
                programs.push(Program::Attend { query, kept });
            }
            continue;
        }
        let operand = operand::parse(name).ok_or_else(|| {
            CliError::usage(
                format!("`--only {name}` is no family"),
                format!("families are {}, and other groups of integers such as int4:g64 or uint8:g128", all.join(", ")),
            )
        })?;
        for parts in [1, 2] {
            programs.extend([Program::Read { operand, parts }, Program::Multiply { operand, parts }]);
        }
    }
    Ok(programs)
}

impl Program {
    /// The regimes that it measures.
    fn rows(self) -> &'static [Regime] {
        match self {
            Program::Read { .. } => &[Regime::One, Regime::Few],
            Program::Multiply { .. } | Program::Attend { .. } => &[Regime::Many],
        }
    }

    /// The families that it measures, each with the rows of a step.
    fn families(self, quick: bool) -> Vec<(Family, u64)> {
        let with = |rows: Regime| {
            let n = match rows {
                Regime::One => 1,
                Regime::Few => 8,
                Regime::Many if quick => 48,
                // Whole tiles of the sizes that are tried.
                Regime::Many if matches!(self, Program::Attend { .. }) => 512,
                Regime::Many => 384,
            };
            let family = match self {
                Program::Read { operand, parts } | Program::Multiply { operand, parts } => {
                    Family::Product(Product { operand, parts, rows })
                }
                Program::Attend { query, kept } => Family::Attention(Attention { query, kept, rows }),
            };
            (family, n)
        };
        self.rows().iter().map(|rows| with(*rows)).collect()
    }

    fn layer(self, quick: bool) -> Result<Layer> {
        let layer = match self {
            Program::Read { operand, parts } | Program::Multiply { operand, parts } if quick => {
                Layer::products(operand, parts, [128, 192], 1)
            }
            Program::Read { operand, parts } => {
                let widths = if parts > 1 { [2048, 6144] } else { [2048, 8192] };
                let of_pair = 2 * parts as u64 * matrix_bytes(operand, widths[0], widths[1]);
                let bytes = (2 * memory::last_cache_bytes().unwrap_or(0)).clamp(LEAST_BYTES, MOST_BYTES);
                Layer::products(operand, parts, widths, bytes.div_ceil(of_pair))
            }
            Program::Multiply { operand, parts } => {
                let widths = if parts > 1 { [2048, 1024] } else { [2048, 2048] };
                Layer::products(operand, parts, widths, 1)
            }
            Program::Attend { query, kept } => {
                let dtype = if query == Float::Bf16 { DType::BF16 } else { DType::F32 };
                let cache = match kept {
                    Kept::F32 => CacheType::Float(DType::F32),
                    Kept::Bf16 => CacheType::Float(DType::BF16),
                    Kept::Int8 => CacheType::Int8,
                };
                let heads = if quick { 4 } else { 32 };
                Layer::attention(dtype, cache, Heads { heads, kv_heads: heads / 4, dim: 128 }, 1)
            }
        };
        Ok(layer?)
    }
}
